//! The file system as a value: what a kernel asks of it, without the kernel.
//!
//! Data first, names last: bytes are *stored* on nodes before the metadata refers to them, and taken off nodes only
//! after it no longer does. Time is told by the caller; waiting is bounded by `io_limit`, and for
//! bytes to be *stored* as long as any are.

mod access;
mod acl;
mod attributes;
mod backlog;
mod budget;
mod compaction;
mod data;
mod fsck;
mod gc;
mod namespace;
mod neighbours;
mod old_disks;
mod parts;
mod rebalance;
mod report;
mod snapshots;
mod space;
#[cfg(test)]
mod tests;
mod upkeep;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ed25519_dalek::VerifyingKey;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::error::{Error, Result};
use crate::inode::{Ino, Inode, Time};
use crate::journal::Journal;
use crate::journal::chain::Reader;
use crate::lease::LeaseWatch;
use crate::metadata::{MetadataStore, VolumeSettings};
use crate::open_file::OpenFile;
use crate::pool::Pool;
use crate::stripe::Stripe;
use access::Accesses;
use budget::Budget;
use neighbours::Neighbours;
use snapshots::Hidden;

pub use access::AccessTimes;
pub use backlog::{Backlog, NOTE as BACKLOG_NOTE, Unsaved};
pub use compaction::CompactionReport;
pub use data::Written;
pub use fsck::{FsckProgress, FsckReport, FsckWish, Problem};
pub use gc::GarbageReport;
pub use rebalance::RebalanceReport;
pub use report::{FileReport, FragmentReport, NodeReport, ObjectReport, SpaceReport, VolumeStatus};
pub use snapshots::{
    MAX_SNAPSHOT_NAME, OpenStore, RestoreReport, SnapshotReport, VersionReport, Views, check_snapshot_name,
};

/// How a volume is served; each with its default in config.rs.
#[derive(Clone, Debug)]
pub struct VolumeOptions {
    /// Most bytes that are written and not yet stored.
    pub write_behind_bytes: u64,
    /// Dirty bytes older than this are sealed and committed unasked.
    pub dirty_interval: Duration,
    /// Up to so many bytes of a file an fsync lets the metadata carry, whole on every node that keeps the journal; what is
    /// more is cheaper in fragments, although these take a round of their own.
    pub carried_bytes: u64,
    /// No request takes longer, but one that waits for a file to be *stored*, while anything is.
    pub io_limit: Duration,
    /// Where what no pool would take waits.
    pub backlog: Backlog,
    /// Most bytes in it.
    pub backlog_bytes: u64,
    /// Most bytes of files; none: what the pool has room for.
    pub capacity_bytes: Option<u64>,
    /// Whether changes are refused.
    pub read_only: bool,
    /// Which accesses are noted; none while changes are refused.
    pub access_times: AccessTimes,
    /// Where the metadata of snapshots is read into.
    pub views: Views,
    /// How the right to write is doing, where there is one.
    pub lease: Option<LeaseWatch>,
    /// The key whose signatures the journal must have.
    pub public: VerifyingKey,
}

/// How long a mount waits for its first entry in the journal, and serves all the same.
const FIRST_ENTRY: Duration = Duration::from_secs(3);

/// A mounted volume.
pub struct Volume {
    metadata: Arc<dyn MetadataStore>,
    stripe: Arc<Stripe>,
    pool: Arc<Pool>,
    /// None while changes are refused.
    journal: Option<Arc<Journal>>,
    settings: VolumeSettings,
    epoch: u32,
    options: VolumeOptions,
    files: Mutex<HashMap<Ino, Arc<OpenFile>>>,
    commits: Commits,
    lookups: Lookups,
    orphans: Orphans,
    accesses: Accesses,
    /// When the mount began.
    begun: Time,
    budget: Budget,
    seen: space::Seen,
    /// Earlier configurations by which no object is placed any more.
    drained: Mutex<HashSet<u32>>,
    /// Reads in flight, so that no object is deleted under one.
    reads: upkeep::ReadGate,
    /// Which files are read one after the other.
    neighbours: Mutex<Neighbours>,
    /// Told when there is something to delete.
    work: Notify,
    /// Told when fragments are away from home that were not.
    away: Notify,
    /// How far a check is.
    checking: Mutex<FsckProgress>,
    /// Held while the metadata of snapshots is looked at.
    viewing: tokio::sync::Mutex<()>,
    /// What a snapshot is being restored to.
    hidden: Mutex<Option<Hidden>>,
    stop: watch::Sender<bool>,
    shut: AtomicBool,
}

impl Volume {
    /// Serve a volume: stores what the last run left in the backlog, gives up orphans, and begins the upkeep.
    ///
    /// # Errors
    /// The backlog cannot be stored yet, the store fails, or there is no volume in it. Nothing runs then.
    pub async fn open(
        metadata: Arc<dyn MetadataStore>,
        stripe: Arc<Stripe>,
        pool: Arc<Pool>,
        journal: Option<Arc<Journal>>,
        options: VolumeOptions,
    ) -> Result<Arc<Volume>> {
        let access_times = if options.read_only { AccessTimes::Never } else { options.access_times };
        let options = VolumeOptions { access_times, ..options };
        let settings = metadata.settings()?.ok_or_else(|| Error::Store("there is no volume here".into()))?;
        let volume = Arc::new(Volume {
            budget: Budget::new(options.write_behind_bytes),
            epoch: stripe.options().epoch,
            metadata,
            stripe,
            pool,
            journal,
            settings,
            options,
            files: Mutex::default(),
            commits: Commits::default(),
            lookups: Lookups::default(),
            orphans: Orphans::default(),
            accesses: Accesses::default(),
            begun: Time::now(),
            seen: space::Seen::default(),
            drained: Mutex::default(),
            reads: upkeep::ReadGate::default(),
            neighbours: Mutex::default(),
            work: Notify::new(),
            away: Notify::new(),
            checking: Mutex::default(),
            viewing: tokio::sync::Mutex::default(),
            hidden: Mutex::default(),
            stop: watch::Sender::new(false),
            shut: AtomicBool::new(false),
        });
        if !volume.options.read_only {
            volume.forget_half_taken()?;
            volume.store_backlog().await?;
            volume.metadata.reclaim(&volume.metadata.orphans()?)?;
        }
        volume.adopt_intents(&volume.metadata.with_intents()?)?;
        if !volume.options.read_only {
            volume.be_the_newest().await;
            volume.start_upkeep();
        }
        Ok(volume)
    }

    /// Have an entry of this mount in the journal before anybody sees the volume: what is seen must not give way to an
    /// entry of an earlier mount that reached one node alone and was never acknowledged, when that node returns.
    async fn be_the_newest(&self) {
        let Some(journal) = &self.journal else { return };
        match tokio::time::timeout(self.options.io_limit.min(FIRST_ENTRY), journal.sync()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the journal does not know of this mount yet"),
            Err(_) => tracing::warn!("the journal does not know of this mount yet"),
        }
    }

    /// What the volume is.
    pub fn settings(&self) -> &VolumeSettings {
        &self.settings
    }

    /// Refuse further changes, stop the upkeep and bring everything dirty to the nodes, within `io_limit`; what they
    /// do not take goes to the backlog. Further calls do nothing.
    ///
    /// # Errors
    /// How much waits in the backlog.
    pub async fn shut_down(self: &Arc<Self>) -> std::result::Result<(), Unsaved> {
        if self.shut.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        if let Err(error) = self.write_accesses() {
            tracing::warn!(%error, "times of access are lost");
        }
        if let Err(error) = self.reclaim_given_up() {
            tracing::warn!(%error, "orphans wait for the next mount");
        }
        let saved = self.save_everything().await;
        self.stop.send_replace(true);
        saved
    }

    fn writable(&self) -> Result<()> {
        let stuck = self.journal.as_ref().map_or(0, |journal| journal.stuck_bytes());
        if self.options.read_only || self.is_fenced() {
            Err(Error::ReadOnly)
        } else if stuck > self.options.backlog_bytes {
            Err(Error::TooFewNodes(format!("{stuck} bytes of changes wait to be written to the journal")))
        } else if self.shut.load(Ordering::SeqCst) {
            Err(Error::Host("the file system is being unmounted".into()))
        } else {
            Ok(())
        }
    }

    /// Whether another mount has taken the volume over.
    fn is_fenced(&self) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.is_fenced())
    }

    /// Who reads the pool's journal.
    fn reader(&self) -> Reader {
        Reader {
            pool: self.pool.clone(),
            volume: self.settings.volume,
            code: self.settings.code,
            hash: self.settings.hash,
            io_limit: self.options.io_limit,
            accept_loss: None,
            unfenced: HashSet::new(),
        }
    }

    /// The open file of an inode, if there is one.
    fn file(&self, ino: Ino) -> Option<Arc<OpenFile>> {
        self.files.lock().get(&ino).cloned()
    }

    /// The files that somebody has open, or that are dirty still.
    pub fn open_inodes(&self) -> Vec<Ino> {
        self.files.lock().keys().copied().collect()
    }

    fn open_files(&self) -> Vec<Arc<OpenFile>> {
        self.files.lock().values().cloned().collect()
    }

    /// An inode as the store says it, with what an open file knows better laid over it.
    fn current(&self, ask: impl FnOnce() -> Result<Inode>) -> Result<Inode> {
        let commits = self.commits.count();
        self.overlay(ask()?, commits)
    }

    /// Lay what an open file knows better over what the store said after so many `commits`. What was committed since, the
    /// open file need not know any more, nor be there: then the store is asked once more.
    fn overlay(&self, mut inode: Inode, commits: u64) -> Result<Inode> {
        if inode.is_file() {
            let file = self.file(inode.ino);
            let state = file.as_ref().map(|file| file.state());
            if self.commits.has_since(commits, inode.ino) {
                inode = match self.metadata.inode(inode.ino) {
                    Err(Error::NotFound) => inode,
                    found => found?,
                };
            }
            if let Some(state) = state {
                state.overlay(&mut inode);
            }
        }
        self.accesses.overlay(&mut inode);
        Ok(inode)
    }
}

/// How many commits of open files there were, and whose the last ones were.
#[derive(Default)]
struct Commits(Mutex<(u64, VecDeque<Ino>)>);

impl Commits {
    /// So many are remembered: more than happen while somebody asks the store.
    const REMEMBERED: usize = 64;

    fn count(&self) -> u64 {
        self.0.lock().0
    }

    /// Noted after the store has learned it, and before the open file forgets it.
    fn note(&self, ino: Ino) {
        let (count, last) = &mut *self.0.lock();
        *count += 1;
        last.push_front(ino);
        last.truncate(Self::REMEMBERED);
    }

    /// Whether a commit of the inode may have come after the first `before`.
    fn has_since(&self, before: u64, ino: Ino) -> bool {
        let (count, last) = &*self.0.lock();
        let since = (count - before) as usize;
        since > last.len() || last.range(..since).any(|known| *known == ino)
    }
}

/// Inodes without a name.
#[derive(Default)]
struct Orphans {
    /// Those the kernel still knows.
    known: Mutex<HashSet<Ino>>,
    /// Those nobody can use any more; given up in the store many at a time.
    given_up: Mutex<Vec<Ino>>,
    /// Told when there are some.
    more: Notify,
}

/// How often the kernel was told of each inode; it may use one until it has forgotten it as often.
#[derive(Default)]
struct Lookups {
    counts: Mutex<HashMap<Ino, u64>>,
}

impl Lookups {
    fn add(&self, ino: Ino) {
        *self.counts.lock().entry(ino).or_insert(0) += 1;
    }

    /// Whether none is left.
    fn remove(&self, ino: Ino, count: u64) -> bool {
        let mut counts = self.counts.lock();
        let Some(left) = counts.get_mut(&ino) else { return true };
        *left = left.saturating_sub(count);
        if *left > 0 {
            return false;
        }
        counts.remove(&ino);
        true
    }

    fn knows(&self, ino: Ino) -> bool {
        self.counts.lock().contains_key(&ino)
    }
}
