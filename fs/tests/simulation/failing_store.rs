//! A metadata store that fails once, at a call that is told beforehand: before anything was done, or after all of it
//! was, as a store behind a network does whose answer is lost.

use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use avidfs::error::{Error, Result};
use avidfs::inode::{Ino, Inode, Time};
use avidfs::metadata::check::Flaws;
use avidfs::metadata::{
    AttributeChange, Commit, Configuration, Entry, Exception, Extent, Intent, MetadataStore, Name, NewInode,
    ObjectRecord, Outbox, Removed, RenameMode, Replay, Scattered, Snapshot, SnapshotUsage, Usage,
    VolumeSettings,
};
use common::wire::{NodeId, ObjectId};

use crate::fate::Fate;

const BY_TEST: &str = "the store fails (by test)";

/// When a call fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// Nothing is done.
    Before,
    /// Everything is; only calls that change something are counted.
    After,
}

/// The call that fails, of all stores there will be.
pub struct StoreFaults {
    fate: Fate,
    nth: u64,
    moment: Moment,
    calls: AtomicU64,
    is_paused: AtomicBool,
}

impl StoreFaults {
    pub fn new(fate: Fate, nth: u64, moment: Moment) -> Arc<StoreFaults> {
        let (calls, is_paused) = (AtomicU64::new(0), AtomicBool::new(false));
        Arc::new(StoreFaults { fate, nth, moment, calls, is_paused })
    }

    /// Calls that could have failed.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    /// Count nothing and let nothing fail until this is unset.
    pub fn pause(&self, paused: bool) {
        self.is_paused.store(paused, Ordering::SeqCst);
    }

    fn is_its_turn(&self, verb: &str) -> bool {
        if self.is_paused.load(Ordering::SeqCst) || self.calls.fetch_add(1, Ordering::SeqCst) != self.nth {
            return false;
        }
        self.fate.note(&format!("the store fails: {verb}, {:?}", self.moment));
        true
    }
}

/// Whether this is such a failure: what was asked for may have been done.
pub fn is_by_test(error: &Error) -> bool {
    matches!(error, Error::Host(why) if why.contains(BY_TEST))
}

/// See the module.
pub struct FailingStore {
    pub store: Arc<dyn MetadataStore>,
    pub faults: Arc<StoreFaults>,
}

impl FailingStore {
    fn reads<T>(&self, verb: &str, call: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.faults.moment == Moment::Before && self.faults.is_its_turn(verb) {
            return Err(Error::Host(BY_TEST.into()));
        }
        call()
    }

    fn changes<T>(&self, verb: &str, call: impl FnOnce() -> Result<T>) -> Result<T> {
        let failure = self.faults.is_its_turn(verb).then(|| Error::Host(BY_TEST.into()));
        match (failure, self.faults.moment) {
            (None, _) => call(),
            (Some(failure), Moment::Before) => Err(failure),
            (Some(failure), Moment::After) => call().and(Err(failure)),
        }
    }
}

macro_rules! forward {
    ($($kind:ident $verb:ident($($argument:ident: $type:ty),*) -> $value:ty;)*) => { $(
        fn $verb(&self, $($argument: $type),*) -> Result<$value> {
            self.$kind(stringify!($verb), || self.store.$verb($($argument),*))
        }
    )* };
}

impl MetadataStore for FailingStore {
    forward! {
        changes format(settings: &VolumeSettings) -> ();
        reads settings() -> Option<VolumeSettings>;
        changes begin_epoch(seen: u32) -> u32;
        changes configure(nodes: &[NodeId]) -> Configuration;
        reads configurations() -> Vec<Configuration>;
        reads places_objects(configuration: u32) -> bool;
        changes sync() -> ();
        reads lookup(parent: Ino, name: &[u8]) -> Inode;
        reads inode(ino: Ino) -> Inode;
        reads parent(directory: Ino) -> Ino;
        reads target(ino: Ino) -> Vec<u8>;
        reads list(directory: Ino, after: u64, limit: usize) -> Vec<Entry>;
        reads names(directory: Ino, after: u64, limit: usize) -> Vec<Name>;
        changes create(parent: Ino, name: &[u8], new: &NewInode, now: Time) -> Inode;
        changes link(ino: Ino, parent: Ino, name: &[u8], now: Time) -> Inode;
        changes unlink(parent: Ino, name: &[u8], now: Time) -> Removed;
        changes rmdir(parent: Ino, name: &[u8], now: Time) -> Removed;
        changes rename(from: (Ino, &[u8]), to: (Ino, &[u8]), mode: RenameMode, now: Time) -> Option<Removed>;
        changes set_attributes(ino: Ino, change: &AttributeChange) -> Inode;
        changes set_accessed(accesses: &[(Ino, Time)]) -> ();
        changes truncate(ino: Ino, size: u64, now: Time) -> Inode;
        changes punch(ino: Ino, range: Range<u64>, now: Time) -> Inode;
        reads xattr(ino: Ino, name: &[u8]) -> Vec<u8>;
        reads xattrs(ino: Ino) -> Vec<Vec<u8>>;
        changes set_xattr(
            ino: Ino, name: &[u8], value: &[u8], create: bool, replace: bool, now: Time
        ) -> ();
        changes remove_xattr(ino: Ino, name: &[u8], now: Time) -> ();
        reads extents(ino: Ino, range: Range<u64>) -> Vec<Extent>;
        changes commit(commit: &Commit) -> ();
        changes copy_extents(from: (Ino, u64), to: (Ino, u64), length: u64, now: Time) -> ();
        changes put_intents(ino: Ino, intents: &[Intent], mtime: Option<Time>) -> ();
        reads intents(ino: Ino) -> Vec<Intent>;
        reads with_intents() -> Vec<Ino>;
        reads object(id: ObjectId) -> ObjectRecord;
        reads objects_of(ino: Ino, from: u64, limit: usize) -> Vec<(Extent, ObjectRecord)>;
        reads small_files(inos: RangeInclusive<u64>, longest: u32, limit: usize) -> Vec<ObjectRecord>;
        changes set_exceptions(id: ObjectId, exceptions: &[Exception]) -> ();
        changes revise_exceptions(before: &ObjectRecord, after: &[Exception]) -> Option<Vec<Exception>>;
        changes place_anew(before: &ObjectRecord, configuration: u32, exceptions: &[Exception]) -> bool;
        reads with_exceptions(after: Option<ObjectId>, limit: usize) -> Vec<ObjectRecord>;
        reads scattered(after: (Ino, u64), small: u32, limit: usize) -> Vec<Scattered>;
        changes relocate(ino: Ino, object: &ObjectRecord, moves: &[(Extent, Extent)]) -> usize;
        reads orphans() -> Vec<Ino>;
        changes reclaim(orphans: &[Ino]) -> ();
        reads condemned(after: Option<ObjectId>, limit: usize) -> Vec<ObjectRecord>;
        changes forget(objects: &[ObjectId]) -> ();
        reads usage() -> Usage;
        changes begin_snapshot(name: &str, now: Time) -> u32;
        changes pin_snapshot(number: u32, next: ObjectId, pin: &[u8]) -> ();
        reads snapshots() -> Vec<Snapshot>;
        reads snapshot_usage(number: u32) -> SnapshotUsage;
        changes delete_snapshot(number: u32) -> ();
        changes revive(ino: Ino, extents: &[Extent], size: u64) -> ();
        reads outbox(after: u64, bytes: usize) -> Outbox;
        reads outbox_bytes() -> u64;
        changes shipped(upto: u64, head: &[u8]) -> ();
        reads head() -> Option<Vec<u8>>;
        changes replay(replay: Replay<'_>) -> ();
        reads dump(sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> u64;
        reads check() -> Flaws;
        changes mend(now: Time) -> ();
        reads objects(after: Option<ObjectId>, limit: usize) -> Vec<(ObjectRecord, bool)>;
        reads users(objects: &BTreeSet<ObjectId>, limit: usize) -> Vec<(ObjectId, Vec<String>)>;
        reads paths(inos: &[Ino]) -> Vec<String>;
    }

    fn last_change(&self) -> u64 {
        self.store.last_change()
    }
}
