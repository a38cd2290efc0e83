//! From an object's bytes to fragments on nodes, and back. It decides which node is asked for what and when an object
//! is *stored*; it knows no names, no files and no metadata store.
//!
//! The decisions are values without network or clock ([`spread`], [`gather`], [`ledger`]); around each stands one
//! task per object that sends and waits ([`store`], [`fetch`], [`flush`]).

mod answers;
mod census;
mod cpu;
mod delete;
mod encoded;
mod fetch;
mod flush;
mod gather;
mod inquiry;
mod ledger;
mod listing;
mod locate;
mod rehome;
mod roots;
mod spread;
mod store;
mod window;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use common::code::Code;
use common::hash::HashId;
use common::wire::{NodeId, ObjectId, VolumeId};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::{Instant, sleep};

pub use self::census::{Census, Held, Standing, Unverified, Verdict};
pub use self::encoded::{Coded, encode};
pub use self::listing::Listed;
pub use self::locate::{Flushed, FragmentLocation, Presence};
pub use self::roots::RootKeys;
pub use self::spread::fewest_nodes;

use self::cpu::Cpu;
use self::fetch::Fetches;
use self::flush::FlushRequest;
use self::ledger::Ledger;
use self::window::Window;
use crate::authority::Authority;
use crate::cache::{Cache, CacheStats};
use crate::error::{Error, Result};
use crate::metadata::{Configuration, Exception, ObjectRecord};
use crate::placement;
use crate::pool::Pool;
use crate::transport::Writer;

/// What a stripe is told once.
#[derive(Clone, Debug)]
pub struct StripeOptions {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch of this mount.
    pub epoch: u32,
    /// What lets it write.
    pub authority: Arc<Authority>,
    /// The code of new objects.
    pub code: Code,
    /// The hash of their FPCCs.
    pub hash: HashId,
    /// The longest any call may take; that of `store` from when its object's turn has come.
    pub io_limit: Duration,
    /// Bytes of fragments kept because they are not flushed yet, from which on all nodes are flushed in the
    /// background. At twice as many, stores wait.
    pub unflushed_bytes: u64,
    /// How long a *stored* object waits at least for the rest of its acknowledgements, before the rest is left to the
    /// background; as long as becoming *stored* took, if that is longer.
    pub grace: Duration,
    /// How long a node may take for a fragment before another one is asked too.
    pub patience: Duration,
    /// How long a node may take to flush before the others are enough.
    pub flush_patience: Duration,
    /// How long to wait, once, for nodes to return before too few of them are an error: a little more than the pool's
    /// interval between probes of a node that is down. Zero: not at all.
    pub return_time: Duration,
    /// How long the fragments missing when an object became *stored* are tried for.
    pub completion_limit: Duration,
    /// Objects read ahead at once; more are left out.
    pub prefetches: usize,
    /// Fragments up to so many bytes are cached as they are stored, copied.
    pub cached_on_store: usize,
}

impl StripeOptions {
    /// The usual limits.
    pub fn new(volume: VolumeId, epoch: u32, code: Code, hash: HashId) -> StripeOptions {
        StripeOptions {
            volume,
            epoch,
            authority: Arc::new(Authority::new(volume, None)),
            code,
            hash,
            io_limit: Duration::from_secs(30),
            unflushed_bytes: 32 << 20,
            grace: Duration::from_millis(50),
            patience: Duration::from_secs(1),
            flush_patience: Duration::from_secs(2),
            return_time: Duration::from_millis(1500),
            completion_limit: Duration::from_secs(10),
            prefetches: 8,
            cached_on_store: 256 << 10,
        }
    }
}

/// How it goes.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct StripeStatus {
    /// Objects being sent.
    pub sending_objects: usize,
    /// Those of them that are *stored* already and wait for the rest of their fragments.
    pub completing_objects: usize,
    /// *Stored* objects not yet flushed on enough nodes.
    pub unflushed_objects: usize,
    /// Bytes of fragments kept for them.
    pub unflushed_bytes: u64,
    /// Objects being fetched from nodes.
    pub fetching_objects: usize,
    /// Requests sent because another one was late.
    pub hedges: u64,
    /// Fetches that had to decode.
    pub degraded_reads: u64,
    /// Answers that did not check, by node.
    pub lies: BTreeMap<NodeId, u64>,
    /// The cache of fragments.
    #[serde(default)]
    pub cache: CacheStats,
}

/// An object whose fragments lie elsewhere than its metadata says: its newest exceptions.
pub type PlacementChange = (ObjectId, Vec<Exception>);

/// See the module.
pub struct Stripe {
    pool: Arc<Pool>,
    cache: Arc<Cache>,
    configurations: HashMap<u32, Vec<NodeId>>,
    current: u32,
    options: StripeOptions,
    counter: AtomicU64,
    cpu: Cpu,
    /// One permit for each KiB of fragments kept; twice `unflushed_bytes` in all.
    room: Arc<Semaphore>,
    /// What may be on its way at once.
    window: Window,
    /// Told when room is short, to whoever waits for a slow node.
    pressure: Notify,
    ledger: Mutex<Ledger>,
    changed: Notify,
    finished: Notify,
    flushes: mpsc::UnboundedSender<FlushRequest>,
    flush_is_coming: AtomicBool,
    flushing: Mutex<HashSet<NodeId>>,
    rechecking: Mutex<HashSet<NodeId>>,
    fetches: Fetches,
    tally: Tally,
}

#[derive(Default)]
struct Tally {
    hedges: AtomicU64,
    degraded_reads: AtomicU64,
    lies: Mutex<BTreeMap<NodeId, u64>>,
}

impl Stripe {
    /// Begin. Call it inside a tokio runtime: flushes and the pool's events are followed by tasks that end when the
    /// stripe is dropped. Every object's configuration must be among `configurations`, as must `current`, over
    /// which new objects are placed, with at least n nodes each.
    pub fn new(
        pool: Arc<Pool>,
        cache: Arc<Cache>,
        configurations: Vec<Configuration>,
        current: u32,
        options: StripeOptions,
    ) -> Arc<Stripe> {
        let (flushes, requests) = mpsc::unbounded_channel();
        let room = (2 * options.unflushed_bytes).div_ceil(1 << 10) as usize;
        let stripe = Arc::new(Stripe {
            configurations: configurations.into_iter().map(|c| (c.number, c.nodes)).collect(),
            current,
            counter: AtomicU64::new(1),
            cpu: Cpu::new(),
            room: Arc::new(Semaphore::new(room.clamp(1, Semaphore::MAX_PERMITS))),
            window: Window::new(options.io_limit, 2 * options.unflushed_bytes),
            pressure: Notify::new(),
            ledger: Mutex::default(),
            changed: Notify::new(),
            finished: Notify::new(),
            flush_is_coming: AtomicBool::new(false),
            flushes,
            flushing: Mutex::default(),
            rechecking: Mutex::default(),
            fetches: Fetches::new(options.prefetches),
            tally: Tally::default(),
            pool,
            cache,
            options,
        });
        stripe.follow_flushes(requests);
        stripe.follow_events();
        stripe
    }

    /// A new object's id; never given twice, because every mount has a new epoch.
    pub fn next_id(&self) -> ObjectId {
        ObjectId { epoch: self.options.epoch, counter: self.counter.fetch_add(1, Ordering::Relaxed) }
    }

    /// What it was told.
    pub fn options(&self) -> &StripeOptions {
        &self.options
    }

    /// Where fragments lie that are elsewhere than the record returned by `store`, or the last change, said.
    /// The caller writes it to the metadata; what belongs to an object that is not committed yet it gives back with
    /// [`Stripe::keep_placement_changes`].
    pub fn take_placement_changes(&self) -> Vec<PlacementChange> {
        self.ledger.lock().take_changes()
    }

    /// Changes to be taken again later; a newer one of the same object wins.
    pub fn keep_placement_changes(&self, changes: Vec<PlacementChange>) {
        self.ledger.lock().keep_changes(changes);
    }

    /// Fragments that the nodes that should have them said they have not, found when reading: object and index.
    /// The caller makes an exception of each that the metadata still says is somewhere, so that it is rebuilt.
    pub fn take_losses(&self) -> Vec<(ObjectId, u8)> {
        self.ledger.lock().take_losses()
    }

    /// Returns when there may be placement changes or losses to take.
    pub async fn placement_changed(&self) {
        let changed = self.changed.notified();
        if !self.ledger.lock().has_news() {
            changed.await;
        }
    }

    /// How it goes.
    pub fn status(&self) -> StripeStatus {
        let ledger = self.ledger.lock();
        StripeStatus {
            sending_objects: ledger.sending(),
            completing_objects: ledger.completing(),
            unflushed_objects: ledger.unflushed_objects().len(),
            unflushed_bytes: ledger.held_bytes(),
            fetching_objects: self.fetches.count(),
            hedges: self.tally.hedges.load(Ordering::Relaxed),
            degraded_reads: self.tally.degraded_reads.load(Ordering::Relaxed),
            lies: self.tally.lies.lock().clone(),
            cache: self.cache.stats(),
        }
    }

    /// What comes of something that waits for objects to be *stored*. `TimedOut` when none has been for `io_limit`.
    pub async fn while_stored<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let silent =
            || Error::TimedOut(format!("nothing could be stored for {} s", self.options.io_limit.as_secs()));
        self.window.while_stored(work).await.unwrap_or_else(|| Err(silent()))
    }

    /// The nodes of each configuration.
    pub fn configurations(&self) -> &HashMap<u32, Vec<NodeId>> {
        &self.configurations
    }

    /// The configuration over which new objects are placed.
    pub fn current(&self) -> u32 {
        self.current
    }

    fn writer(&self, node: NodeId) -> Writer {
        self.options.authority.writer(node, self.options.epoch)
    }

    fn homes(&self, configuration: u32, id: ObjectId, code: Code) -> Vec<NodeId> {
        placement::homes(self.nodes_of(configuration), id, code.n())
    }

    fn homes_of(&self, object: &ObjectRecord) -> Vec<NodeId> {
        self.homes(object.configuration, object.id, object.code)
    }

    fn nodes_of(&self, configuration: u32) -> &[NodeId] {
        self.configurations.get(&configuration).expect("every object's configuration is known")
    }

    /// Change the ledger, and wake whoever waits for placement changes if that made some.
    fn book<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut ledger = self.ledger.lock();
        let done = change(&mut ledger);
        if ledger.has_news() {
            self.changed.notify_waiters();
        }
        done
    }

    /// What is left until `deadline`, but enough for a healthy node to answer: what times out counts as down.
    fn left(&self, deadline: Instant) -> Duration {
        (deadline - Instant::now()).max(Duration::from_secs(1))
    }

    /// Try once more, after some time, what too few nodes took: one that was just started counts as down until it is
    /// probed. Not once the time a request may take is over: nobody would be asked any more, nor say what is wrong.
    async fn patiently<T, F: Future<Output = Result<T>>>(&self, attempt: impl Fn() -> F) -> Result<T> {
        let (began, pause) = (Instant::now(), self.options.return_time);
        let ended = attempt().await;
        let may_return = !pause.is_zero() && began.elapsed() + pause < self.options.io_limit;
        if !may_return || !matches!(ended, Err(Error::TooFewNodes(_))) {
            return ended;
        }
        sleep(pause).await;
        attempt().await
    }

    fn count_lie(&self, node: NodeId) {
        *self.tally.lies.lock().entry(node).or_default() += 1;
    }
}

/// An object's bytes followed by the zeros `store` wants. Copies; who fills a buffer anyway pads it there.
pub fn pad(code: Code, bytes: &[u8]) -> Bytes {
    let mut padded = bytes.to_vec();
    padded.resize(code.padded_length(bytes.len() as u64), 0);
    padded.into()
}

/// The fragments that hold a range of an object's bytes, and which part of each.
fn cover(code: Code, length: u32, range: Range<u32>) -> Vec<(usize, Range<usize>)> {
    let (start, end) = (range.start as usize, range.end.min(length) as usize);
    if start >= end {
        return Vec::new();
    }
    let fragment = code.fragment_length(u64::from(length));
    let within = |index: usize| {
        let base = index * fragment;
        (index, start.max(base) - base..end.min(base + fragment) - base)
    };
    (start / fragment..=(end - 1) / fragment).map(within).collect()
}

#[cfg(test)]
mod tests;
