//! Reading the journal: what the pool holds of it, from a checkpoint to its head, each entry bound to the next by its
//! digest and signed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use common::code::Code;
use common::hash::HashId;
use common::wire::{JOURNAL_PREFIX, NodeId, VolumeId};
use ed25519_dalek::VerifyingKey;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::entry::{self, Entry, Place, Signed};
use super::pin::Pin;
use crate::cache::{Cache, CacheOptions};
use crate::error::{Error, Result};
use crate::metadata::{Configuration, ObjectRecord};
use crate::pool::Pool;
use crate::stripe::{RootKeys, Stripe, StripeOptions};

/// Entries and blocks fetched at once.
const FETCHES: usize = 16;

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
}

/// Told how many blocks of how many were read.
pub type Progress<'p> = dyn Fn(usize, usize) + Send + Sync + 'p;

/// The journal from its last checkpoint on.
#[derive(Debug)]
pub struct Chain {
    /// By sequence, the head last; the first is a checkpoint.
    pub entries: Vec<Signed>,
    /// Keys of entries before the checkpoint, which nobody needs any more.
    pub stale: Vec<String>,
    /// Nodes that did not answer.
    pub silent: Vec<String>,
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
        let (places, silent) = places(&stripe).await;
        let Some(head) = self.head(&stripe, &places, public, &silent).await? else { return Ok(None) };
        self.back_from(&stripe, head, &places, silent).await.map(Some)
    }

    /// The journal up to the entry a snapshot is pinned to.
    ///
    /// # Errors
    /// As `read`; and `Pool` if that entry is another one now.
    pub async fn read_pinned(&self, pin: &Pin, public: &VerifyingKey) -> Result<Chain> {
        let stripe = self.stripe(Vec::new())?;
        let (places, silent) = places(&stripe).await;
        let place = pin.head().ok_or(Error::NotFound)?;
        let nodes = places.get(&place).ok_or_else(|| missing(place.sequence, &silent))?;
        let head = self.fetch(&stripe, place, nodes, Some(public)).await?;
        if head.digest != pin.digest {
            let sentence =
                format!("entry {} of the journal is not the one the snapshot names", place.sequence);
            return Err(Error::Pool(sentence));
        }
        self.back_from(&stripe, head, &places, silent).await
    }

    /// From the checkpoint that an entry names to the entry itself.
    async fn back_from(
        &self,
        stripe: &Arc<Stripe>,
        head: Signed,
        places: &BTreeMap<Place, Vec<NodeId>>,
        silent: Vec<String>,
    ) -> Result<Chain> {
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
        Ok(Chain { entries, stale, silent })
    }

    /// The entry with the highest place that holds. A node may name keys of which it has nothing; what so many nodes
    /// have that it may have been acknowledged must be readable.
    async fn head(
        &self,
        stripe: &Arc<Stripe>,
        places: &BTreeMap<Place, Vec<NodeId>>,
        public: Option<&VerifyingKey>,
        silent: &[String],
    ) -> Result<Option<Signed>> {
        for (place, nodes) in places.iter().rev() {
            match self.fetch(stripe, *place, nodes, public).await {
                Ok(signed) if public.is_some() || self.is_agreed(stripe, &signed, nodes).await => {
                    return Ok(Some(signed));
                }
                Ok(_) => {
                    tracing::warn!(key = place.key(), "too few nodes agree on this entry of the journal")
                }
                Err(error) if nodes.len() >= self.code.quorum() => {
                    let answers = silent_nodes(silent);
                    return Err(Error::Pool(format!("the journal's head cannot be read: {error}{answers}")));
                }
                Err(error) => tracing::warn!(%error, "this entry of the journal was never acknowledged"),
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
        let check = |bytes: &bytes::Bytes| {
            let signed = Entry::check(bytes, self.volume, public)?;
            match signed.entry.place == place {
                true => Ok(signed),
                false => Err(Error::Store("another entry than its key says".into())),
            }
        };
        stripe.get_root(&place.key(), nodes, check).await
    }

    /// The records of entries, block by block, in order.
    ///
    /// # Errors
    /// `Unreadable`: fewer than m good fragments of a block can be had.
    pub async fn records(&self, entries: &[Signed], progress: &Progress<'_>) -> Result<Vec<Vec<u8>>> {
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
        let mut records = Vec::with_capacity(all);
        let mut read = stream::iter(blocks).map(|block| block.records(&stripe)).buffered(FETCHES);
        while let Some(block) = read.try_next().await? {
            records.push(block);
            progress(records.len(), all);
        }
        Ok(records)
    }

    fn stripe(&self, mut configurations: Vec<Configuration>) -> Result<Arc<Stripe>> {
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
    async fn records(self, stripe: &Arc<Stripe>) -> Result<Vec<u8>> {
        match self {
            Block::Inline(block) => entry::records(&block),
            Block::Part(part) => entry::records(&stripe.read(&part, 0..part.length).await?.concat()),
        }
    }
}

/// Which entries nodes have, and who does not answer.
async fn places(stripe: &Arc<Stripe>) -> (BTreeMap<Place, Vec<NodeId>>, Vec<String>) {
    let RootKeys { keys, silent } = stripe.root_keys(JOURNAL_PREFIX).await;
    let placed = |(key, nodes): (String, _)| Some((Place::of_key(&key)?, nodes));
    (keys.into_iter().filter_map(placed).collect(), silent)
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
