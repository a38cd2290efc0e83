//! Reading the journal: what the pool holds of it, from a checkpoint to its head, each entry bound to the next by its
//! digest and signed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use common::code::Code;
use common::hash::HashId;
use common::wire::{JOURNAL_PREFIX, NodeId, VolumeId};
use ed25519_dalek::VerifyingKey;
use futures_util::stream::{self, Stream, StreamExt};

use super::entry::{self, Entry, Place, Signed};
use super::pin::Pin;
use crate::cache::{Cache, CacheOptions, Reuse};
use crate::error::{Error, Result};
use crate::metadata::{Configuration, ObjectRecord};
use crate::pool::Pool;
use crate::stripe::{RootKeys, Stripe, StripeOptions};

/// Entries fetched at once.
const FETCHES: usize = 16;
/// Blocks fetched at once; each becomes 4 MiB of records.
const BLOCKS: usize = 2;

/// Whose journal, and how to reach it.
#[derive(Clone)]
pub struct Reader {
    /// The nodes.
    pub pool: Arc<Pool>,
    /// The volume.
    pub volume: VolumeId,
    /// Its code.
    pub code: Code,
    /// Its hash.
    pub hash: HashId,
    /// The longest any request may take.
    pub io_limit: Duration,
    /// The entries from this one on may be given up, says the operator.
    pub accept_loss: Option<u64>,
    /// The nodes that were asked for the reader's epoch and have not granted it. They may still take entries of who had the
    /// volume before, after they were asked which they have: so they are not counted among those that answer.
    pub unfenced: HashSet<NodeId>,
}

/// Told how many blocks of how many were read.
pub type Progress<'p> = dyn Fn(usize, usize) + Send + Sync + 'p;

/// Who has which entry of the journal.
#[derive(Clone, Debug, Default)]
pub struct Holders {
    /// The entries, and the nodes that have each.
    pub places: BTreeMap<Place, Vec<NodeId>>,
    /// The nodes that answered.
    pub answered: Vec<NodeId>,
}

impl Holders {
    /// What nodes said.
    pub fn of(found: &RootKeys) -> Holders {
        let placed = |(key, nodes): (&String, &Vec<NodeId>)| Some((Place::of_key(key)?, nodes.clone()));
        Holders { places: found.keys.iter().filter_map(placed).collect(), answered: found.answered.clone() }
    }

    /// The nodes that answered and lack one of `entries`, although they once had each up to what `had` says.
    pub fn with_old_disks<'a>(
        &'a self,
        entries: &'a [Place],
        had: &'a BTreeMap<NodeId, Place>,
    ) -> impl Iterator<Item = NodeId> + 'a {
        self.answered.iter().copied().filter(move |node| {
            let Some(upto) = had.get(node) else { return false };
            let lacks = |place: &Place| !self.places.get(place).is_some_and(|nodes| nodes.contains(node));
            entries.iter().any(|place| place <= upto && lacks(place))
        })
    }
}

/// The journal from its last checkpoint on.
#[derive(Debug)]
pub struct Chain {
    /// By sequence, the head last; the first is a checkpoint.
    pub entries: Vec<Signed>,
    /// Keys of entries before the checkpoint, which nobody needs any more.
    pub stale: Vec<String>,
    /// Nodes that did not answer.
    pub silent: Vec<String>,
    /// How many of the nodes that keep it answered.
    pub answered: usize,
    /// Who has which entry, of the nodes that answered.
    pub holders: Holders,
}

impl Chain {
    /// Its newest entry.
    pub fn head(&self) -> &Signed {
        self.entries.last().expect("a chain has a checkpoint at least")
    }

    /// The sequence of its checkpoint.
    pub fn first(&self) -> u64 {
        self.entries[0].entry.place.sequence
    }
}

impl Reader {
    /// Everything the pool holds of the journal; none if it holds nothing. With `public` only what is signed by it,
    /// without only what so many nodes hold alike that one that was acknowledged is among them.
    ///
    /// # Errors
    /// `Pool`: an entry that must be there is not to be had; the sentence names the nodes that did not answer.
    pub async fn read(&self, public: Option<&VerifyingKey>) -> Result<Option<Chain>> {
        let stripe = self.stripe(Vec::new())?;
        let known = known(&stripe).await;
        let Some(head) = self.head(&stripe, &known, public).await? else { return Ok(None) };
        self.check_newest(&head, &known)?;
        self.back_from(&stripe, head, known).await.map(Some)
    }

    /// The sequence of the checkpoint where reading begins now; none if the pool holds nothing of the journal.
    ///
    /// # Errors
    /// `Pool`: the newest entry is not to be had.
    pub async fn checkpoint(&self, public: &VerifyingKey) -> Result<Option<u64>> {
        let stripe = self.stripe(Vec::new())?;
        let head = self.head(&stripe, &known(&stripe).await, Some(public)).await?;
        Ok(head.map(|head| head.entry.checkpoint))
    }

    /// The journal up to the entry a snapshot is pinned to.
    ///
    /// # Errors
    /// As `read`; and `Pool` if that entry is another one now.
    pub async fn read_pinned(&self, pin: &Pin, public: &VerifyingKey) -> Result<Chain> {
        let stripe = self.stripe(Vec::new())?;
        let known = known(&stripe).await;
        let place = pin.head().ok_or(Error::NotFound)?;
        let nodes = known.holders.places.get(&place).ok_or_else(|| missing(place.sequence, &known.silent))?;
        let head = self.fetch(&stripe, place, nodes, Some(public)).await?;
        if head.digest != pin.digest {
            let sentence =
                format!("entry {} of the journal is not the one the snapshot names", place.sequence);
            return Err(Error::Pool(sentence));
        }
        self.back_from(&stripe, head, known).await
    }

    /// Whether so many of the nodes that keep the journal answer that its newest entry is among their answers.
    fn check_newest(&self, head: &Signed, known: &Known) -> Result<()> {
        let needed = self.code.reading_quorum();
        let (answered, all) = known.roots_of(head, self.code, &self.unfenced);
        if answered >= needed || self.accept_loss.is_some() {
            return Ok(());
        }
        Err(Error::Pool(format!(
            "{answered} of the {all} nodes that keep the journal answer, {needed} are needed to know its newest entry{}; \
             --accept-loss {} goes on without what only they may have",
            silent_nodes(&known.silent),
            head.entry.place.sequence + 1
        )))
    }

    /// From the checkpoint that an entry names to the entry itself.
    async fn back_from(&self, stripe: &Arc<Stripe>, head: Signed, known: Known) -> Result<Chain> {
        let (answered, _) = known.roots_of(&head, self.code, &HashSet::new());
        let Known { holders, silent } = known;
        let places = &holders.places;
        let first = Place { sequence: head.entry.checkpoint, epoch: 0 };
        let wanted = places.range(first..head.entry.place);
        let fetches: Vec<_> =
            wanted.map(|(place, nodes)| self.fetch(stripe, *place, nodes, Some(&head.public))).collect();
        let fetched: Vec<Result<Signed>> = stream::iter(fetches).buffer_unordered(FETCHES).collect().await;
        // One that cannot be read is missing only if the chain leads through it.
        let mut known: HashMap<entry::Digest, Signed> =
            fetched.into_iter().flatten().map(|signed| (signed.digest, signed)).collect();
        let mut entries = vec![head];
        while entries[entries.len() - 1].entry.place.sequence > first.sequence {
            let next = &entries[entries.len() - 1].entry;
            let sequence = next.place.sequence - 1;
            let before =
                known.remove(&next.previous).filter(|signed| signed.entry.place.sequence == sequence);
            let before = before.ok_or_else(|| missing(sequence, &silent))?;
            entries.push(before);
        }
        entries.reverse();
        let stale = places.range(..first).map(|(place, _)| place.key()).collect();
        Ok(Chain { entries, stale, silent, answered, holders })
    }

    /// The entry of the newest epoch, and there of the highest sequence, that holds. A node may name keys of which it
    /// has nothing; what so many nodes have, or may have, that it may have been acknowledged must be readable.
    async fn head(
        &self,
        stripe: &Arc<Stripe>,
        known: &Known,
        public: Option<&VerifyingKey>,
    ) -> Result<Option<Signed>> {
        let given_up = |place: &Place| self.accept_loss.is_some_and(|lost| place.sequence >= lost);
        let mut newest_first: Vec<_> =
            known.holders.places.iter().filter(|(place, _)| !given_up(place)).collect();
        // Whoever got an epoch read all there was before; what an older one still brought to some nodes is not part of it.
        newest_first.sort_by_key(|(place, _)| std::cmp::Reverse((place.epoch, place.sequence)));
        let mut unreliable: HashSet<NodeId> = HashSet::new();
        for (place, nodes) in newest_first {
            let is_acknowledged = nodes.len() + known.silent.len() >= self.code.quorum();
            // Who names what it does not have may name much of it, and take its time for each.
            if !is_acknowledged && nodes.iter().all(|node| unreliable.contains(node)) {
                continue;
            }
            match self.fetch(stripe, *place, nodes, public).await {
                Ok(signed) if public.is_some() || self.is_agreed(stripe, &signed, nodes).await => {
                    return Ok(Some(signed));
                }
                Ok(_) => {
                    tracing::warn!(key = place.key(), "too few nodes agree on this entry of the journal")
                }
                Err(error) if is_acknowledged => {
                    let (answers, sequence) = (silent_nodes(&known.silent), place.sequence);
                    return Err(Error::Pool(format!(
                        "entry {sequence} of the journal may have been acknowledged and cannot be read: {error}{answers}; \
                         --accept-loss {sequence} goes on without it and what came after"
                    )));
                }
                Err(error) => {
                    tracing::warn!(%error, "this entry of the journal was never acknowledged");
                    unreliable.extend(nodes);
                }
            }
        }
        Ok(None)
    }

    /// Whether enough nodes keep the very same entry.
    async fn is_agreed(&self, stripe: &Arc<Stripe>, signed: &Signed, nodes: &[NodeId]) -> bool {
        let place = signed.entry.place;
        let copies = nodes.iter().map(|node| self.fetch(stripe, place, std::slice::from_ref(node), None));
        let copies = futures_util::future::join_all(copies).await;
        let same = copies.iter().flatten().filter(|copy| copy.digest == signed.digest);
        same.count() >= self.code.quorum()
    }

    async fn fetch(
        &self,
        stripe: &Arc<Stripe>,
        place: Place,
        nodes: &[NodeId],
        public: Option<&VerifyingKey>,
    ) -> Result<Signed> {
        let key = place.key();
        let check = |bytes: &bytes::Bytes| Entry::check_under(&key, bytes, self.volume, public);
        stripe.get_root(&key, nodes, check).await
    }

    /// The records of entries, block by block, in order; only a few blocks are in memory at a time.
    ///
    /// # Errors
    /// `Pool`. Of a block `Unreadable`: fewer than m good fragments of it can be had.
    pub fn records<'p>(
        &self,
        entries: &[Signed],
        progress: &'p Progress<'p>,
    ) -> Result<impl Stream<Item = Result<Vec<u8>>> + Send + use<'p>> {
        let named = entries.iter().flat_map(|signed| signed.entry.configurations.iter().cloned());
        let stripe = self.stripe(named.collect())?;
        let blocks = entries.iter().flat_map(|signed| {
            let parts = signed.entry.parts.iter().map(|part| Block::Part(part.clone()));
            let inline =
                (!signed.entry.inline.is_empty()).then(|| Block::Inline(signed.entry.inline.clone()));
            parts.chain(inline)
        });
        let blocks: Vec<Block> = blocks.collect();
        let all = blocks.len();
        let read = stream::iter(blocks).map(move |block| block.records(stripe.clone())).buffered(BLOCKS);
        Ok(read.enumerate().map(move |(before, block)| {
            progress(before + 1, all);
            block
        }))
    }

    pub(super) fn stripe(&self, mut configurations: Vec<Configuration>) -> Result<Arc<Stripe>> {
        let cache = Cache::open(CacheOptions { memory_bytes: 0, disk_bytes: 0, disk: None })?;
        configurations.sort_by_key(|configuration| configuration.number);
        configurations.dedup_by_key(|configuration| configuration.number);
        let current = configurations.last().map_or(0, |configuration| configuration.number);
        let options = StripeOptions {
            io_limit: self.io_limit,
            ..StripeOptions::new(self.volume, 0, self.code, self.hash)
        };
        Ok(Stripe::new(self.pool.clone(), cache, configurations, current, options))
    }
}

enum Block {
    Part(ObjectRecord),
    Inline(bytes::Bytes),
}

impl Block {
    async fn records(self, stripe: Arc<Stripe>) -> Result<Vec<u8>> {
        match self {
            Block::Inline(block) => entry::records(&block),
            Block::Part(part) => {
                entry::records(&stripe.read(&part, 0..part.length, Reuse::Likely).await?.concat())
            }
        }
    }
}

/// Which entries nodes have, and who answers.
struct Known {
    holders: Holders,
    silent: Vec<String>,
}

async fn known(stripe: &Arc<Stripe>) -> Known {
    let found = stripe.root_keys(JOURNAL_PREFIX).await;
    Known { holders: Holders::of(&found), silent: found.silent }
}

impl Known {
    /// How many of the nodes that keep an entry answered, but for `uncounted` ones, and how many there are.
    fn roots_of(&self, signed: &Signed, code: Code, uncounted: &HashSet<NodeId>) -> (usize, usize) {
        let newest = signed.entry.configurations.last();
        let roots = newest.map_or(&[][..], |configuration| &configuration.nodes);
        let roots = &roots[..code.n().min(roots.len())];
        let counts = |root: &&NodeId| self.holders.answered.contains(root) && !uncounted.contains(root);
        (roots.iter().filter(counts).count(), roots.len())
    }
}

fn missing(sequence: u64, silent: &[String]) -> Error {
    Error::Pool(format!("entry {sequence} of the journal is missing{}", silent_nodes(silent)))
}

fn silent_nodes(silent: &[String]) -> String {
    match silent {
        [] => ", and every node answers".to_owned(),
        silent => format!("; no answer from {}", silent.join(", ")),
    }
}
