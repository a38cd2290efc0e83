//! The journal: the changes of the metadata, in the pool. docs/journal.md draws it and says what is true when.
//! One task writes; whoever needs changes to be durable waits for the entry that holds them, and shares it.

mod catch_up;
pub mod chain;
pub mod compare;
mod discard;
pub mod entry;
mod inherited;
pub mod key;
mod parts;
pub mod pin;
mod position;
pub mod rows;
mod writer;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use common::wire::{MountId, NodeId, ObjectId, VolumeId};
use ed25519_dalek::SigningKey;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use self::catch_up::{catch_up, is_at, restore, snapshots};
use self::parts::Parts;
pub use self::position::Position;
use self::writer::Writer;
use crate::error::{Error, Result};
use crate::metadata::{Configuration, Exception, MetadataStore, ObjectRecord};
use crate::stripe::Stripe;

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
    parts: Parts,
    /// Parts that nothing needs any more, and that are still on some node.
    let_go: HashSet<ObjectId>,
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
        let mut writer = Writer::new(metadata.clone(), stripe, key, position, options, shown.clone());
        // Before anybody asks what is the journal's own.
        writer.begin();
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
        let shown = self.shown.lock();
        shown.parts.all().map(|part| part.id).chain(shown.let_go.iter().copied()).collect()
    }

    /// The parts that the journal, or a snapshot, needs; their exceptions are those last told to `revise_part`, and at first
    /// those of the entry that names them.
    pub fn parts(&self) -> Vec<ObjectRecord> {
        self.shown.lock().parts.all().cloned().collect()
    }

    /// One of them; none if nothing needs it.
    pub fn part(&self, id: ObjectId) -> Option<ObjectRecord> {
        self.shown.lock().parts.get(id).cloned()
    }

    /// What of a part is not at home now. False if nothing needs it any more: what was stored of it since it was asked for is
    /// the caller's to delete.
    pub fn revise_part(&self, id: ObjectId, exceptions: &[Exception]) -> bool {
        self.shown.lock().parts.revise(id, exceptions)
    }

    /// How many parts have a fragment that is not at home.
    pub fn parts_away(&self) -> u64 {
        self.shown.lock().parts.all().filter(|part| !part.exceptions.is_empty()).count() as u64
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
