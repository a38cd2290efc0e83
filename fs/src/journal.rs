//! The journal: the changes of the metadata, in the pool. docs/journal.md draws it and says what is true when.
//! One task writes; whoever needs changes to be durable waits for the entry that holds them, and shares it.

pub mod chain;
pub mod compare;
mod discard;
pub mod entry;
mod inherited;
pub mod key;
pub mod pin;
pub mod rows;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::wire::{JOURNAL_PREFIX, MountId, NodeId, ObjectId, VolumeId};
use ed25519_dalek::{SigningKey, VerifyingKey};
use futures_util::{Stream, TryStreamExt};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::TryRecvError;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use self::chain::{Chain, Holders, Progress, Reader};
use self::discard::Discard;
use self::entry::{BLOCK, Digest, Entry, INLINE, Place, Signed};
use self::pin::Pin;
use crate::blocking;
use crate::error::{Error, Result};
use crate::inode::Time;
use crate::metadata::record::{self, Fields, Record};
use crate::metadata::{Configuration, MetadataStore, ObjectRecord, Replay, Snapshot};
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

/// How a journal is written.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch of this mount.
    pub epoch: u32,
    /// What the state folder of this mount is known by.
    pub mount: MountId,
    /// The nodes over which new objects are placed.
    pub configuration: Configuration,
    /// How long a change may wait.
    pub interval: Duration,
    /// When everything is written anew.
    pub checkpoints: Checkpoints,
}

/// When a checkpoint is worth its bytes: when the entries since the last one hold more than it does, and enough.
#[derive(Clone, Copy, Debug)]
pub struct Checkpoints {
    /// They have at least so many bytes.
    pub bytes: u64,
    /// And at the latest after so many entries, which are read one by one.
    pub entries: u64,
}

impl Default for Checkpoints {
    fn default() -> Checkpoints {
        Checkpoints { bytes: 4 << 20, entries: 4096 }
    }
}

/// How far the journal is.
#[derive(Clone, Debug, Default)]
pub struct Position {
    /// Of the newest entry; 0 for none.
    sequence: u64,
    epoch: u32,
    digest: Digest,
    /// Number of the list of nodes that was current then.
    configuration: u32,
    /// Sequence of the last checkpoint.
    checkpoint: u64,
    /// Number of the last change in the pool.
    upto: u64,
    /// Bytes of blocks in the last checkpoint, and in the entries since.
    checkpoint_bytes: u64,
    bytes: u64,
    /// Blocks that are objects, of the last checkpoint and since, and where all these entries stand.
    parts: Vec<ObjectRecord>,
    places: Vec<Place>,
    /// Whether the pool lacks what the store has, and the next entry must hold everything.
    anew: bool,
    /// Keys of entries that were there before it when the journal was read.
    before: Vec<String>,
    /// Up to where each node has, or had, every entry from the checkpoint on.
    heard: BTreeMap<NodeId, Place>,
    /// Nodes that lack some of that: their disks are older than what they acknowledged.
    old_disks: BTreeSet<NodeId>,
}

/// What the store remembers, as docs/metadata.md draws it: the newest entry, and up to where nodes have every one.
fn remembered(position: &Position) -> Vec<u8> {
    let mut head = position.sequence.to_le_bytes().to_vec();
    head.extend_from_slice(&position.epoch.to_le_bytes());
    head.extend_from_slice(&position.digest);
    for (node, place) in &position.heard {
        head.extend_from_slice(&node.0);
        head.extend_from_slice(&place.sequence.to_le_bytes());
        head.extend_from_slice(&place.epoch.to_le_bytes());
    }
    head
}

/// What `remembered` wrote.
#[derive(Default)]
struct Recalled {
    sequence: u64,
    digest: Digest,
    heard: BTreeMap<NodeId, Place>,
}

fn recall(metadata: &dyn MetadataStore) -> Result<Recalled> {
    let Some(head) = metadata.head()? else { return Ok(Recalled::default()) };
    recalled(&head).ok_or_else(|| Error::Store("damaged: the journal's place cannot be read".into()))
}

fn recalled(head: &[u8]) -> Option<Recalled> {
    let mut fields = Fields(head);
    let (sequence, _epoch, digest) = (fields.u64()?, fields.u32()?, fields.array()?);
    let mut heard = BTreeMap::new();
    while !fields.0.is_empty() {
        let node = NodeId(fields.array()?);
        heard.insert(node, Place { sequence: fields.u64()?, epoch: fields.u32()? });
    }
    Some(Recalled { sequence, digest, heard })
}

impl Position {
    fn at(chain: &Chain) -> Position {
        let mut position = Position { before: chain.stale.clone(), ..Position::default() };
        for signed in &chain.entries {
            let _before = position.step(signed);
        }
        position
    }

    /// Compare what nodes have with what they once had; that is remembered until they have it again.
    fn find_old_disks(&mut self, holders: &Holders, had: BTreeMap<NodeId, Place>) {
        self.old_disks.extend(holders.with_old_disks(&self.places, &had));
        self.heard = had;
    }

    /// Where the newest entry stands.
    fn head(&self) -> Option<Place> {
        self.places.last().copied()
    }

    /// Nodes have the newest entry; one that had all before it, or needs none of those, has all.
    fn kept_by(&mut self, nodes: &[NodeId], before: Option<Place>) {
        let Some(head) = self.head() else { return };
        let is_first = self.places.len() == 1;
        for node in nodes {
            if is_first || self.heard.get(node) == before.as_ref() {
                self.heard.insert(*node, head);
            }
        }
    }

    /// Go on to the next entry. Returns the entries and parts that nobody needs for what is there now.
    fn step(&mut self, signed: &Signed) -> (Vec<Place>, Vec<ObjectRecord>) {
        let mut before = (Vec::new(), Vec::new());
        let entry = &signed.entry;
        let bytes =
            entry.parts.iter().map(|part| u64::from(part.length)).sum::<u64>() + entry.inline.len() as u64;
        if entry.is_checkpoint() {
            (self.checkpoint, self.checkpoint_bytes, self.bytes) = (entry.place.sequence, bytes, 0);
            self.anew = false;
            before = (std::mem::take(&mut self.places), std::mem::take(&mut self.parts));
        } else {
            self.bytes += bytes;
        }
        (self.sequence, self.epoch) = (entry.place.sequence, entry.place.epoch);
        self.configuration = entry.configurations.last().map_or(0, |configuration| configuration.number);
        (self.digest, self.upto) = (signed.digest, entry.upto);
        self.parts.extend(entry.parts.iter().cloned());
        self.places.push(entry.place);
        before
    }

    fn wants_checkpoint(&self, due: Checkpoints) -> bool {
        self.bytes > self.checkpoint_bytes.max(due.bytes) || self.sequence - self.checkpoint > due.entries
    }
}

/// Bring a store and the pool's journal to one state, before the volume is served: what the store lacks is replayed.
/// What it has and the pool lacks stays in its outbox, and is shipped once the journal is written; but where nodes lost
/// objects that it names, which no fsync covered, the store goes back to what the pool has.
///
/// # Errors
/// `Pool`: the pool's journal cannot be read whole, is older than or another one than the store has seen, or was written
/// by others while the store has changes that never reached it, or while bytes written here wait in `backlog`, if that is
/// given: they would be laid over newer ones; or nodes do not answer that may have what it names.
pub async fn catch_up(
    metadata: &Arc<dyn MetadataStore>,
    reader: &Reader,
    public: &VerifyingKey,
    mount: MountId,
    backlog: Option<&Path>,
) -> Result<Position> {
    let position = bring_together(metadata, reader, public, mount, backlog).await?;
    if position.anew {
        // The pool has less than the store, and nothing to go back to.
        return Ok(position);
    }
    let lost = inherited::lost_objects(metadata, reader, position.upto).await?;
    if lost.is_empty() {
        return Ok(position);
    }
    let Some(chain) = reader.read(Some(public)).await? else { return Ok(position) };
    let changes = metadata.last_change() - position.upto;
    tracing::error!(
        changes,
        objects = lost.len(),
        "changes are lost: nodes lost power before anything was flushed"
    );
    let position = Position { upto: metadata.last_change(), ..position };
    replay(metadata, true, reader.records(&chain.entries, &|_, _| ())?, &position).await?;
    Ok(position)
}

async fn bring_together(
    metadata: &Arc<dyn MetadataStore>,
    reader: &Reader,
    public: &VerifyingKey,
    mount: MountId,
    backlog: Option<&Path>,
) -> Result<Position> {
    let Recalled { sequence, digest, heard } = recall(&**metadata)?;
    let Some(chain) = reader.read(Some(public)).await? else {
        return match sequence {
            0 => Ok(Position::default()),
            _ if reader.accept_loss == Some(1) => Ok(Position::default()),
            _ => Err(Error::Pool(format!(
                "the pool holds nothing of the journal, of which entry {sequence} was written"
            ))),
        };
    };
    let head = chain.head();
    let mut position = Position::at(&chain);
    position.find_old_disks(&chain.holders, heard);
    let at = head.entry.place.sequence;
    let differs = |sequence: u64| {
        Err(Error::Pool(format!(
            "entry {sequence} of the pool's journal is another one than this store has seen"
        )))
    };
    if at < sequence && reader.accept_loss.is_some_and(|lost| lost <= at + 1) {
        // What the pool lost is here, and becomes a checkpoint.
        tracing::warn!(
            pool = at,
            store = sequence,
            "the pool has lost entries of its journal, and gets them anew"
        );
        (position.upto, position.anew) = (0, true);
        return Ok(position);
    }
    if at < sequence {
        let silent = if chain.silent.is_empty() {
            String::new()
        } else {
            format!("; no answer from {}", chain.silent.join(", "))
        };
        return Err(Error::Pool(format!(
            "the pool's journal ends with entry {at}, and this store has seen entry {sequence}: the nodes have old disks{silent}; --accept-loss {} lets the pool have this store's state",
            at + 1
        )));
    }
    let same = chain.entries.iter().find(|signed| signed.entry.place.sequence == sequence);
    if same.is_some_and(|signed| signed.digest != digest) {
        return differs(sequence);
    }
    if at == sequence {
        // The head may be another host's, which counts changes in its own way.
        position.upto = shipped_changes(&**metadata)?;
        return Ok(position);
    }
    // A checkpoint says what there is, and not what is gone: a store that forgot its last changes may still have that.
    let anew = sequence < chain.first();
    let missed: Vec<Signed> = chain
        .entries
        .iter()
        .filter(|signed| anew || signed.entry.place.sequence > sequence)
        .cloned()
        .collect();
    if !anew && missed[0].entry.previous != digest {
        return differs(sequence + 1);
    }
    if missed.iter().any(|signed| signed.entry.mount != mount) {
        let reached = reached_unnoted(&**metadata, reader, &missed, mount).await?;
        let own = unshipped_changes(&**metadata, reached)?;
        if own > 0 {
            return Err(Error::Pool(format!(
                "the volume was written elsewhere, up to entry {at} of its journal, and {own} changes made here never \
                 reached the pool: move this state folder away, and recover into a new one"
            )));
        }
        if let Some(folder) = backlog {
            return Err(Error::Pool(format!(
                "the volume was written elsewhere, up to entry {at} of its journal, and bytes written here before wait in {}: \
                 move that folder away to mount without them",
                folder.display()
            )));
        }
        // Others count their changes in their own way. That this mount began is still to be told.
        position.upto = reached;
    }
    tracing::info!(entries = missed.len(), anew, "the store catches up with the pool's journal");
    replay(metadata, anew, reader.records(&missed, &|_, _| ())?, &position).await?;
    Ok(position)
}

/// Number of the last change that is not in the outbox any more.
fn shipped_changes(metadata: &dyn MetadataStore) -> Result<u64> {
    let waiting = metadata.outbox(0, 1)?;
    Ok(if waiting.records.is_empty() { metadata.last_change() } else { waiting.last - 1 })
}

/// Number of the last change that reached the pool before others wrote, whether or not the store had noted that: by an
/// entry of this state folder, or, where it is a copy of the one that wrote them, by one that holds the very same.
async fn reached_unnoted(
    metadata: &dyn MetadataStore,
    reader: &Reader,
    missed: &[Signed],
    mount: MountId,
) -> Result<u64> {
    let mut reached = shipped_changes(metadata)?;
    for signed in missed {
        if signed.entry.mount == mount {
            reached = reached.max(signed.entry.upto);
            continue;
        }
        if signed.entry.is_checkpoint() {
            break;
        }
        let theirs: Vec<Vec<u8>> =
            reader.records(std::slice::from_ref(signed), &|_, _| ())?.try_collect().await?;
        let theirs = theirs.concat();
        let (mut ours, mut last) = (Vec::new(), reached);
        while ours.len() < theirs.len() {
            let next = metadata.outbox(last, 1)?;
            if next.records.is_empty() {
                break;
            }
            last = next.last;
            ours.extend_from_slice(&next.records);
        }
        if ours != theirs {
            break;
        }
        reached = last;
    }
    Ok(reached)
}

/// Changes in the outbox after one that reached the pool, which say more than that a mount was begun.
fn unshipped_changes(metadata: &dyn MetadataStore, reached: u64) -> Result<usize> {
    let outbox = metadata.outbox(reached, usize::MAX)?;
    let says_more = |record: &Record| {
        !matches!(record, Record::Epoch(_) | Record::Numbers { .. } | Record::Configuration(_))
    };
    Ok(record::decode_all(&outbox.records)?.iter().filter(|record| says_more(record)).count())
}

/// The snapshots that a journal knows of, oldest first.
///
/// # Errors
/// `Unreadable`, `Store`.
pub async fn snapshots(reader: &Reader, chain: &Chain) -> Result<Vec<Snapshot>> {
    let mut known = BTreeMap::new();
    let mut blocks = pin!(reader.records(&chain.entries, &|_, _| ())?);
    while let Some(records) = blocks.try_next().await? {
        for record in record::decode_all(&records)? {
            match record {
                Record::Snapshot(snapshot) => {
                    known.insert(snapshot.number, snapshot);
                }
                Record::NoSnapshot(number) => {
                    known.remove(&number);
                }
                _ => {}
            }
        }
    }
    Ok(known.into_values().collect())
}

/// Make a store anew from a chain; after an error it is as it was.
///
/// # Errors
/// `Unreadable`, `Store`.
pub async fn restore(
    metadata: &Arc<dyn MetadataStore>,
    reader: &Reader,
    chain: &Chain,
    progress: &Progress<'_>,
) -> Result<()> {
    replay(metadata, true, reader.records(&chain.entries, progress)?, &Position::at(chain)).await
}

async fn replay(
    metadata: &Arc<dyn MetadataStore>,
    anew: bool,
    records: impl Stream<Item = Result<Vec<u8>>> + Send,
    position: &Position,
) -> Result<()> {
    let (metadata, head, upto) = (metadata.clone(), remembered(position), position.upto);
    let work = move |records: &mut dyn Iterator<Item = Result<Vec<u8>>>| {
        metadata.replay(Replay { anew, records, upto, head: &head })?;
        metadata.sync()
    };
    blocking::run_on(records, work).await
}

/// Whether a store is of the very state that a pin names.
pub fn is_at(metadata: &dyn MetadataStore, pin: &Pin) -> bool {
    recall(metadata).is_ok_and(|recalled| recalled.digest == pin.digest)
}

/// How the journal is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct JournalStatus {
    /// Its newest entry.
    pub sequence: u64,
    /// Sequence of the last checkpoint.
    pub checkpoint: u64,
    /// Changes that are not in the pool.
    pub waiting_changes: u64,
    /// Bytes of their records.
    pub waiting_bytes: u64,
    /// For how long the oldest of them has waited, in seconds.
    pub oldest_seconds: Option<u64>,
    /// Why the last entry could not be written.
    pub problem: Option<String>,
}

/// The writer of a journal.
pub struct Journal {
    metadata: Arc<dyn MetadataStore>,
    requests: mpsc::UnboundedSender<Request>,
    shown: Arc<Mutex<Shown>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What the writer is asked for, and who waits for it.
enum Request {
    /// Every change made until now is to be in the pool.
    Sync(oneshot::Sender<Result<()>>),
    /// And the store is to have noted that.
    Settle(oneshot::Sender<Result<()>>),
    /// The snapshot of this number, which was begun, is to be of the state that is then in the pool.
    Pin(u32, oneshot::Sender<Result<()>>),
    /// The snapshot of this number is to be given up.
    Unpin(u32, oneshot::Sender<Result<()>>),
}

#[derive(Default)]
struct Shown {
    sequence: u64,
    checkpoint: u64,
    upto: u64,
    waiting_bytes: u64,
    objects: HashSet<ObjectId>,
    /// Since when something waits.
    behind: Option<Instant>,
    problem: Option<Error>,
    /// Whether a checkpoint is asked for.
    is_to_be_anew: bool,
    /// Nodes found to have an old disk.
    old_disks: BTreeSet<NodeId>,
}

impl Journal {
    /// Begin to write after `position`. The task ends when the journal is dropped.
    pub fn start(
        metadata: Arc<dyn MetadataStore>,
        stripe: Arc<Stripe>,
        key: SigningKey,
        position: Position,
        options: JournalOptions,
    ) -> Arc<Journal> {
        let (requests, incoming) = mpsc::unbounded_channel();
        let old_disks = position.old_disks.clone();
        let shown = Arc::new(Mutex::new(Shown { upto: position.upto, old_disks, ..Shown::default() }));
        let interval = options.interval;
        let stripe_events = stripe.node_events();
        let writer = Writer {
            metadata: metadata.clone(),
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
            spread: Spread { events: stripe_events, due: true, tried: None },
            shown: shown.clone(),
        };
        let writer = tokio::spawn(writer.run(incoming, interval));
        Arc::new(Journal { metadata, requests, shown, writer: Mutex::new(Some(writer)) })
    }

    /// Returns when every change made before is in the pool, flushed, with every object it names.
    ///
    /// # Errors
    /// `TooFewNodes`, `NoSpace`, `TimedOut`; `ReadOnly` once another mount has taken the volume over. What waits stays, and
    /// is tried again.
    pub async fn sync(&self) -> Result<()> {
        let is_done = |shown: &Shown| shown.problem.is_none() && shown.upto >= self.metadata.last_change();
        if is_done(&self.shown.lock()) {
            return Ok(());
        }
        self.ask(Request::Sync).await
    }

    /// As `sync`, and the store has noted it, so that the next mount has nothing to replay.
    ///
    /// # Errors
    /// As `sync`.
    pub async fn settle(&self) -> Result<()> {
        self.ask(Request::Settle).await
    }

    /// Let a snapshot that was begun be of the state the volume has now; it is in the pool when this returns.
    ///
    /// # Errors
    /// As `sync`; it is as it was begun then.
    pub async fn pin(&self, snapshot: u32) -> Result<()> {
        self.ask(|answer| Request::Pin(snapshot, answer)).await
    }

    /// Give a snapshot up, in the pool too, and let go of the entries that it alone needed.
    ///
    /// # Errors
    /// As `sync`, and `NotFound`. After `TooFewNodes` it is given up here, and the pool learns it later.
    pub async fn unpin(&self, snapshot: u32) -> Result<()> {
        self.ask(|answer| Request::Unpin(snapshot, answer)).await
    }

    async fn ask(&self, request: impl FnOnce(oneshot::Sender<Result<()>>) -> Request) -> Result<()> {
        let ended = || Error::Host("the journal is not written any more".into());
        let (answer, written) = oneshot::channel();
        self.requests.send(request(answer)).map_err(|_| ended())?;
        written.await.map_err(|_| ended())?
    }

    /// Write everything there is anew, also if nothing changed: nothing that was written before is needed then.
    ///
    /// # Errors
    /// As `sync`.
    pub async fn checkpoint(&self) -> Result<()> {
        self.shown.lock().is_to_be_anew = true;
        self.ask(Request::Sync).await
    }

    /// Nodes that have less of the journal than they acknowledged, since this was last asked: whatever else they
    /// acknowledged may be gone as well.
    pub fn take_old_disks(&self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.shown.lock().old_disks)
    }

    /// How it is doing.
    ///
    /// # Errors
    /// The store's.
    pub fn status(&self) -> Result<JournalStatus> {
        let waiting_bytes = self.metadata.outbox_bytes()?;
        let last = self.metadata.last_change();
        let shown = self.shown.lock();
        Ok(JournalStatus {
            sequence: shown.sequence,
            checkpoint: shown.checkpoint,
            waiting_changes: last.saturating_sub(shown.upto),
            waiting_bytes,
            oldest_seconds: shown.behind.map(|since| since.elapsed().as_secs()),
            problem: shown.problem.as_ref().map(Error::to_string),
        })
    }

    /// Objects of earlier mounts that are the journal's own.
    pub fn objects(&self) -> HashSet<ObjectId> {
        self.shown.lock().objects.clone()
    }

    /// Whether another mount has taken the volume over: nothing will be written any more.
    pub fn is_fenced(&self) -> bool {
        matches!(self.shown.lock().problem, Some(Error::ReadOnly))
    }

    /// Bytes of records that could not be written to the pool when it was last tried; 0 while all is well.
    pub fn stuck_bytes(&self) -> u64 {
        let shown = self.shown.lock();
        if shown.problem.is_some() { shown.waiting_bytes } else { 0 }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.lock().take() {
            writer.abort();
        }
    }
}

struct Writer {
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
    async fn run(mut self, mut requests: mpsc::UnboundedReceiver<Request>, interval: Duration) {
        let begun = self.read_pins();
        self.show(begun);
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
        self.discard.delete(&self.stripe).await;
    }

    /// Let nodes that came back have the entries they missed, and blocks that lie elsewhere a place of their own.
    async fn spread_when_due(&mut self) {
        self.spread.hear();
        if !self.spread.is_due() {
            return;
        }
        let scattered = self.position.parts.iter().any(|part| !part.exceptions.is_empty());
        let done = match self.spread_entries().await {
            Ok(true) if scattered => self.checkpoint().await.map(|()| true),
            done => done,
        };
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

    fn show(&self, outcome: Result<()>) {
        let mut shown = self.shown.lock();
        let position = &self.position;
        (shown.sequence, shown.checkpoint, shown.upto) =
            (position.sequence, position.checkpoint, position.upto);
        let pinned = self.pins.values().flat_map(|pin| &pin.parts);
        shown.objects =
            position.parts.iter().chain(self.discard.blocks()).chain(pinned).map(|part| part.id).collect();
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
        let is_checkpoint = signed.entry.is_checkpoint();
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
        self.stripe.store(self.stripe.next_id(), padded, block.len() as u32, true).await
    }
}

enum Stored {
    Object(ObjectRecord),
    Inline(Bytes),
}
