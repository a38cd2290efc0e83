//! The task that writes the journal: it brings changes to the pool, keeps entries on all nodes, and lets go of those that
//! nothing needs any more.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::wire::{JOURNAL_PREFIX, ObjectId};
use ed25519_dalek::SigningKey;
use parking_lot::Mutex;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, timeout, timeout_at};

use super::chain::Holders;
use super::discard::Discard;
use super::entry::{self, BLOCK, Entry, INLINE, Place, Signed};
use super::pin::Pin;
use super::position::{Position, remembered};
use super::{JournalOptions, Request, Shown, inherited};
use crate::blocking;
use crate::error::{Error, Result};
use crate::inode::Time;
use crate::metadata::{MetadataStore, ObjectRecord};
use crate::pool::PoolEvent;
use crate::stages::{self, Stage};
use crate::stripe::{Stripe, pad};

/// An entry that no node has room for as data may have a block of so many bytes inline.
const LARGEST_INLINE: usize = 4 << 20;

/// Between tries to copy entries to nodes that lack them.
const SPREAD_PATIENCE: Duration = Duration::from_secs(5);

/// So many entries are in the pool, at most, before the store notes that they are. It writes half as much for each then,
/// and a mount that finds its store behind by as many replays them.
const NOTED_TOGETHER: usize = 64;
/// While nobody asks for anything, that waits no longer than this.
const NOTED_AFTER: Duration = Duration::from_millis(10);

/// See the module.
pub(super) struct Writer {
    metadata: Arc<dyn MetadataStore>,
    stripe: Arc<Stripe>,
    key: SigningKey,
    options: JournalOptions,
    position: Position,
    /// An entry that may have reached some node: it is put again as it is until it counts, as its place is bound to it.
    unsent: Option<(Signed, Bytes)>,
    /// Entries that are in the pool, which the store has not noted.
    unnoted: usize,
    /// Nothing was shipped yet: changes of an earlier mount may name objects that are not whole.
    first: bool,
    discard: Discard,
    /// What snapshots need, by their numbers.
    pins: BTreeMap<u32, Pin>,
    spread: Spread,
    /// Whether enough nodes keep what was there when the journal was read.
    confirmed: bool,
    shown: Arc<Mutex<Shown>>,
}

/// Whether some node may lack entries that it should keep.
struct Spread {
    events: broadcast::Receiver<PoolEvent>,
    due: bool,
    /// When it was tried in vain.
    tried: Option<Instant>,
}

impl Spread {
    /// Hear of nodes that came back.
    fn hear(&mut self) {
        loop {
            match self.events.try_recv() {
                Ok(PoolEvent::Returned(_) | PoolEvent::Rebooted { .. }) | Err(TryRecvError::Lagged(_)) => {
                    (self.due, self.tried) = (true, None);
                }
                Ok(PoolEvent::WentDown(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    fn is_due(&self) -> bool {
        self.due && self.tried.is_none_or(|tried| tried.elapsed() >= SPREAD_PATIENCE)
    }
}

impl Writer {
    pub(super) fn new(
        metadata: Arc<dyn MetadataStore>,
        stripe: Arc<Stripe>,
        key: SigningKey,
        position: Position,
        options: JournalOptions,
        shown: Arc<Mutex<Shown>>,
    ) -> Writer {
        let events = stripe.node_events();
        Writer {
            metadata,
            stripe,
            key,
            options,
            position,
            unsent: None,
            unnoted: 0,
            first: true,
            discard: Discard::default(),
            pins: BTreeMap::new(),
            confirmed: false,
            spread: Spread { events, due: true, tried: None },
            shown,
        }
    }

    /// Before it runs: tell what is there.
    pub(super) fn begin(&mut self) {
        let begun = self.read_pins();
        self.show_parts();
        self.show(begun);
    }

    /// Answer requests, and write what waits once in an interval, for as long as there may be requests.
    pub(super) async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>, interval: Duration) {
        // At once the first time: whoever had the volume before must find that somebody else has it.
        let mut patience = Duration::ZERO;
        loop {
            let patience = std::mem::replace(&mut patience, interval);
            let Some(first) = self.next_request(&mut requests, patience).await else { return };
            let mut waiting = Vec::from_iter(first);
            waiting.extend(std::iter::from_fn(|| requests.try_recv().ok()));
            let mut outcome = self.ship().await;
            if outcome.is_ok() && std::mem::take(&mut self.shown.lock().is_to_be_anew) {
                outcome = self.checkpoint().await;
            }
            self.show(outcome.clone());
            for request in waiting {
                self.answer(request, outcome.clone()).await;
            }
            if outcome.is_ok() {
                self.delete_before().await;
                self.spread_when_due().await;
            }
            if outcome.is_ok()
                && self.position.wants_checkpoint(self.options.checkpoints)
                && let Err(error) = self.checkpoint().await
            {
                tracing::warn!(%error, "a checkpoint of the journal has to wait");
            }
            self.show(outcome);
        }
    }

    /// The next request, or `Some(None)` when there was none for so long; none is to come after `None`.
    async fn next_request(
        &mut self,
        requests: &mut mpsc::UnboundedReceiver<Request>,
        patience: Duration,
    ) -> Option<Option<Request>> {
        let end = Instant::now() + patience;
        if self.unnoted > 0 {
            match timeout(NOTED_AFTER.min(patience), requests.recv()).await {
                Ok(request) => return request.map(Some),
                Err(_) => self.note_in_time(),
            }
        }
        match timeout_at(end, requests.recv()).await {
            Ok(request) => request.map(Some),
            Err(_) => Some(None),
        }
    }

    async fn answer(&mut self, request: Request, shipped: Result<()>) {
        let (answer, done) = match (request, shipped) {
            (Request::Sync(answer), shipped) => (answer, shipped),
            (Request::Settle(answer), shipped) => (answer, shipped.and_then(|()| self.note())),
            (Request::Pin(_, answer) | Request::Unpin(_, answer), Err(error)) => (answer, Err(error)),
            (Request::Pin(number, answer), Ok(())) => (answer, self.pin(number).await),
            (Request::Unpin(number, answer), Ok(())) => (answer, self.unpin(number).await),
        };
        let _gone = answer.send(done);
    }

    fn read_pins(&mut self) -> Result<()> {
        for snapshot in self.metadata.snapshots()? {
            if let Some(pin) = Pin::of(&snapshot)? {
                self.pins.insert(snapshot.number, pin);
            }
        }
        Ok(())
    }

    /// What is in the pool now becomes a snapshot's, before anything else is written.
    async fn pin(&mut self, number: u32) -> Result<()> {
        let Position { digest, places, parts, .. } = &self.position;
        let pin = Pin { digest: *digest, places: places.clone(), parts: parts.clone() };
        // Whatever the state refers to was made before this identity was drawn.
        self.metadata.pin_snapshot(number, self.stripe.next_id(), &pin.encode())?;
        self.pins.insert(number, pin);
        self.ship().await
    }

    async fn unpin(&mut self, number: u32) -> Result<()> {
        self.metadata.delete_snapshot(number)?;
        // Its bytes go last: a pool that still names the snapshot must still have it.
        self.ship().await?;
        let Some(pin) = self.pins.remove(&number) else { return Ok(()) };
        let current: HashSet<Place> = self.position.places.iter().copied().collect();
        let places = pin.places.into_iter().filter(|place| !current.contains(place)).collect();
        let live: HashSet<ObjectId> = self.position.parts.iter().map(|part| part.id).collect();
        let parts = pin.parts.into_iter().filter(|part| !live.contains(&part.id)).collect();
        self.let_go(places, parts).await;
        Ok(())
    }

    /// Delete entries and parts that the journal does not need any more, but for those that snapshots do.
    async fn let_go(&mut self, places: Vec<Place>, parts: Vec<ObjectRecord>) {
        let pinned: HashSet<Place> = self.pins.values().flat_map(|pin| pin.places.iter().copied()).collect();
        let kept: HashSet<ObjectId> =
            self.pins.values().flat_map(|pin| &pin.parts).map(|part| part.id).collect();
        let keys = places.iter().filter(|place| !pinned.contains(place)).map(|place| place.key());
        self.discard.add(keys, parts.into_iter().filter(|part| !kept.contains(&part.id)));
        // Before they are deleted: who brings one home meanwhile is to find that nothing needs it.
        self.show_parts();
        self.discard.delete(&self.stripe).await;
    }

    /// Let nodes that came back have the entries they missed.
    async fn spread_when_due(&mut self) {
        self.spread.hear();
        if !self.spread.is_due() {
            return;
        }
        let done = self.spread_entries().await;
        if let Err(error) = &done {
            tracing::debug!(%error, "entries of the journal could not be copied to all nodes");
        }
        self.spread.due = !done.unwrap_or(false);
        self.spread.tried = self.spread.due.then(Instant::now);
    }

    /// Whether all nodes that are up have all entries now.
    async fn spread_entries(&mut self) -> Result<bool> {
        let quorum = self.stripe.options().code.quorum();
        let found = self.stripe.root_keys_of(JOURNAL_PREFIX, quorum).await;
        let holders = Holders::of(&found);
        for node in holders.with_old_disks(&self.position.places, &self.position.heard) {
            tracing::warn!(%node, "this node has an older disk than it had");
            self.shown.lock().old_disks.insert(node);
        }
        let pinned = self.pins.values().flat_map(|pin| &pin.places);
        let keys: BTreeSet<String> =
            self.position.places.iter().chain(pinned).map(|place| place.key()).collect();
        if keys.is_empty() {
            return Ok(true);
        }
        let (volume, public) = (self.options.volume, self.key.verifying_key());
        let check =
            |key: &str, bytes: &Bytes| Entry::check_under(key, bytes, volume, Some(&public)).map(drop);
        let (copied, complete) = self.stripe.spread_roots(&found, &Vec::from_iter(keys), check).await?;
        if copied > 0 {
            tracing::info!(copied, "entries of the journal were copied to nodes that lacked them");
        }
        if let (true, Some(head)) = (complete, self.position.head()) {
            let roots = self.stripe.root_nodes().into_iter().filter(|node| found.answered.contains(node));
            self.position.heard.extend(roots.map(|node| (node, head)));
        }
        Ok(complete)
    }

    /// Delete entries from before the checkpoint, which a crash, or a node that was down, left.
    async fn delete_before(&mut self) {
        let before = std::mem::take(&mut self.position.before);
        let places: Vec<Place> = before.iter().filter_map(|key| Place::of_key(key)).collect();
        if !places.is_empty() {
            self.let_go(places, Vec::new()).await;
        }
    }

    /// Tell which parts are needed, and which are not any more.
    fn show_parts(&self) {
        let mut shown = self.shown.lock();
        let pinned = self.pins.values().flat_map(|pin| &pin.parts);
        shown.parts.keep(self.position.parts.iter().chain(pinned));
        shown.let_go = self.discard.blocks().iter().map(|part| part.id).collect();
    }

    fn show(&self, outcome: Result<()>) {
        let mut shown = self.shown.lock();
        let position = &self.position;
        (shown.sequence, shown.checkpoint, shown.upto) =
            (position.sequence, position.checkpoint, position.upto);
        shown.let_go = self.discard.blocks().iter().map(|part| part.id).collect();
        if self.metadata.last_change() > position.upto {
            shown.behind.get_or_insert_with(Instant::now);
        } else {
            shown.behind = None;
        }
        if let (Err(error), None) = (&outcome, &shown.problem) {
            tracing::warn!(%error, "changes wait to be written to the pool's journal");
        }
        shown.waiting_bytes = if outcome.is_err() { self.metadata.outbox_bytes().unwrap_or(0) } else { 0 };
        shown.problem = outcome.err();
    }

    /// Bring every change made until now to the pool. Where other nodes are to keep the journal from now on, the first
    /// entry holds everything: they have nothing of what was before.
    async fn ship(&mut self) -> Result<()> {
        if !self.confirmed {
            // Whatever a snapshot may need stays: until that is known nothing is written, and nothing let go of.
            self.read_pins()?;
            self.show_parts();
            // The newest entry may have reached too few nodes before a crash; what follows hangs on it.
            let spread = self.spread_entries().await;
            if matches!(spread, Err(Error::TooFewNodes(_))) && self.stripe.is_taken_over().await {
                // Who has the volume now has let go of the entries this one looks for, and would look for ever.
                return Err(Error::ReadOnly);
            }
            self.spread.due = !spread?;
            self.confirmed = true;
        }
        self.send_unsent().await?;
        if self.first {
            inherited::make_whole(&*self.metadata, &self.stripe, self.position.upto).await?;
            self.first = false;
        }
        let target = self.metadata.last_change();
        let everything = self.position.sequence == 0
            || self.position.anew
            || self.position.configuration != self.options.configuration.number;
        if everything && target > 0 {
            return self.checkpoint().await;
        }
        let _lasting = (self.position.upto < target).then(|| stages::begin(Stage::Journal));
        while self.position.upto < target {
            let outbox = self.metadata.outbox(self.position.upto, BLOCK)?;
            // What the records name is flushed before they are.
            self.stripe.flush().await?;
            let entry = match self.store_block(entry::block(&outbox.records)).await? {
                Stored::Object(part) => self.entry(outbox.last, false, vec![part], Bytes::new()),
                Stored::Inline(block) => self.entry(outbox.last, false, Vec::new(), block),
            };
            self.put(entry).await?;
        }
        Ok(())
    }

    /// Write everything there is, and let go of the entries before it.
    async fn checkpoint(&mut self) -> Result<()> {
        let (mut parts, mut inline) = (Vec::new(), Bytes::new());
        let upto = match self.dump(&mut parts, &mut inline).await {
            Ok(upto) => upto,
            Err(error) => {
                self.discard.add([], parts);
                return Err(error);
            }
        };
        self.put(self.entry(upto, true, parts, inline)).await
    }

    /// Store all there is in blocks, and flush what it names; returns the number of the last change in it.
    async fn dump(&self, parts: &mut Vec<ObjectRecord>, inline: &mut Bytes) -> Result<u64> {
        let metadata = self.metadata.clone();
        let (mut blocks, dump) =
            blocking::pieces(move |hand_out| metadata.dump(&mut |records| hand_out(entry::block(records))));
        while let Some(block) = blocks.recv().await {
            // Only the block of a small volume, which is its only one, lies in the entry itself.
            match block.len() <= INLINE && inline.is_empty() {
                true => *inline = block.into(),
                false => parts.push(self.store_object(&block).await?),
            }
        }
        let upto = dump.await?;
        self.stripe.flush().await?;
        Ok(upto)
    }

    fn entry(&self, upto: u64, checkpoint: bool, parts: Vec<ObjectRecord>, inline: Bytes) -> (Signed, Bytes) {
        let position = &self.position;
        let sequence = position.sequence + 1;
        let entry = Entry {
            volume: self.options.volume,
            place: Place { sequence, epoch: self.options.epoch },
            mount: self.options.mount,
            previous: position.digest,
            upto,
            checkpoint: if checkpoint { sequence } else { position.checkpoint },
            written: Time::now().seconds.max(0) as u64,
            configurations: vec![self.options.configuration.clone()],
            parts,
            inline,
        };
        let bytes = entry.sign(&self.key);
        let digest = entry::digest(&bytes);
        (Signed { entry, public: self.key.verifying_key(), digest }, bytes)
    }

    async fn put(&mut self, entry: (Signed, Bytes)) -> Result<()> {
        self.unsent = Some(entry);
        self.send_unsent().await
    }

    async fn send_unsent(&mut self) -> Result<()> {
        let Some((signed, bytes)) = &self.unsent else { return Ok(()) };
        let kept = self.stripe.put_root(&signed.entry.place.key(), bytes.clone()).await?;
        let before = self.position.head();
        let (is_checkpoint, has_parts) = (signed.entry.is_checkpoint(), !signed.entry.parts.is_empty());
        let (places, parts) = self.position.step(signed);
        self.position.kept_by(&kept, before);
        // It counts from now on, also where the store cannot write that down.
        self.unsent = None;
        self.unnoted += 1;
        if self.unnoted >= NOTED_TOGETHER || is_checkpoint {
            self.note_in_time();
        }
        if !places.is_empty() {
            self.let_go(places, parts).await;
        } else if has_parts {
            self.show_parts();
        }
        Ok(())
    }

    /// Let the store note how far the pool is.
    fn note(&mut self) -> Result<()> {
        if self.unnoted > 0 {
            self.metadata.shipped(self.position.upto, &remembered(&self.position))?;
            self.unnoted = 0;
        }
        Ok(())
    }

    /// The same; where it cannot now, it is tried again.
    fn note_in_time(&mut self) {
        if let Err(error) = self.note() {
            tracing::warn!(%error, "the store cannot note how far the journal is");
        }
    }

    async fn store_block(&self, block: Vec<u8>) -> Result<Stored> {
        if block.len() <= INLINE {
            return Ok(Stored::Inline(block.into()));
        }
        match self.store_object(&block).await {
            Ok(part) => Ok(Stored::Object(part)),
            // A full pool takes the journal all the same, so that it can be emptied.
            Err(Error::NoSpace(_)) if block.len() <= LARGEST_INLINE => Ok(Stored::Inline(block.into())),
            Err(error) => Err(error),
        }
    }

    async fn store_object(&self, block: &[u8]) -> Result<ObjectRecord> {
        let padded = pad(self.stripe.options().code, block);
        self.stripe.store_at_once(self.stripe.next_id(), padded, block.len() as u32, true).await
    }
}

enum Stored {
    Object(ObjectRecord),
    Inline(Bytes),
}
