//! The metadata store in one SQLite database, as docs/metadata.md draws it.
//! Only this folder knows SQL; what a verb means stands in the trait.
//!
//! One connection writes, behind a lock, so that a verb finds nobody in its way; what it wrote may be committed with
//! what later ones do (writer.rs). It reads too while it is idle, because its page cache is warm, and alone sees what is
//! not committed; otherwise others read meanwhile on connections of their own.

mod attributes;
mod check;
mod checkpoint;
mod data;
mod intents;
mod mend;
mod namespace;
mod objects;
mod outbox;
mod paths;
mod redo;
mod replay;
mod rows;
mod schema;
mod snapshots;
mod transaction;
mod volume;
mod wal;
mod writer;

use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::wire::{NodeId, ObjectId};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::Connection;

use self::checkpoint::Checkpoints;
use self::transaction::{Change, Transaction, View};
use self::wal::Wal;
use self::writer::{Done, Writer};
use super::check::Flaws;
use super::*;
use crate::stages::{self, Stage};

/// Extents that one change takes away at most, each of which is a record of it: the journal never cuts a change.
const ERASED_AT_ONCE: usize = 16 << 10;
/// Connections that read while the writing one is busy.
const READERS: usize = 4;

/// The embedded store: one file (with its `-wal` and `-redo` while it is open), one process.
pub struct SqliteStore {
    writer: Arc<Mutex<Writer>>,
    /// Whether verbs returned whose changes only the writer sees.
    uncommitted: Arc<AtomicBool>,
    usage: Mutex<Usage>,
    /// None in memory.
    disk: Option<Disk>,
}

/// What only a store in a file has.
struct Disk {
    path: PathBuf,
    readers: Vec<Mutex<Connection>>,
    checkpoints: Checkpoints,
    wal: Arc<Wal>,
}

impl SqliteStore {
    /// Open the store in the file `path`, made if there is none. `Store` for a file of another kind or version,
    /// and for one that another process has open. To open it twice in one process is the caller's mistake.
    ///
    /// Fast after a clean close; after a crash it reads all inodes and objects once to count them.
    pub fn open(path: &Path) -> Result<SqliteStore> {
        let mut store = SqliteStore::over(schema::open(path)?, Some(path))?;
        let reader = |_| schema::open_reader(path).map(Mutex::new);
        // The first transaction, of `over`, made the -wal file.
        let wal = Arc::new(Wal::open(path)?);
        store.writer.lock().wal = Some(Arc::clone(&wal));
        store.disk = Some(Disk {
            path: path.to_owned(),
            readers: (0..READERS).map(reader).collect::<Result<_>>()?,
            checkpoints: Checkpoints::begin(schema::open_checkpoints(path)?, Arc::clone(&store.writer))?,
            wal,
        });
        Ok(store)
    }

    /// An empty store that ends with the value; for tests.
    pub fn open_in_memory() -> Result<SqliteStore> {
        SqliteStore::over(schema::open_in_memory()?, None)
    }

    fn over(db: Connection, path: Option<&Path>) -> Result<SqliteStore> {
        let (writer, usage) = Writer::open(db, path)?;
        let uncommitted = writer.uncommitted();
        Ok(SqliteStore {
            writer: Arc::new(Mutex::new(writer)),
            uncommitted,
            usage: Mutex::new(usage),
            disk: None,
        })
    }

    /// Run a verb whose records say all that it changes: all of it happens, or with an error nothing.
    fn write<T>(&self, verb: impl FnOnce(&mut Change) -> Result<T>) -> Result<T> {
        let _lasting = stages::begin(Stage::Commit);
        let mut writer = self.writer.lock();
        let done = writer.write(verb)?;
        Ok(self.count(done))
    }

    /// Run a verb that may change what no record says.
    fn write_alone<T>(&self, verb: impl FnOnce(&mut Change) -> Result<T>) -> Result<T> {
        let _lasting = stages::begin(Stage::Commit);
        let mut writer = self.writer.lock();
        let done = writer.write_alone(verb)?;
        Ok(self.count(done))
    }

    /// Take what a verb did into the totals, while the writer is still held.
    fn count<T>(&self, done: Done<T>) -> T {
        done.usage.apply(&mut self.usage.lock());
        if let Some(disk) = &self.disk {
            disk.checkpoints.wrote(done.rows);
        }
        done.value
    }

    /// Run a verb that only reads, on one state of the store.
    fn read<T>(&self, verb: impl FnOnce(View) -> Result<T>) -> Result<T> {
        // Whoever holds the writer keeps all others from writing, so it needs no snapshot.
        if let Some(writer) = self.writer.try_lock() {
            return verb(writer.view()?);
        }
        // The others see all that returned unless some of it is uncommitted.
        let reader = match self.uncommitted.load(Ordering::Acquire) {
            true => None,
            false => self.idle_reader(),
        };
        let Some(reader) = reader else {
            let mut writer = self.writer.lock();
            let value = verb(writer.view()?);
            writer.was_waited_for();
            return value;
        };
        let snapshot = Transaction::snapshot(&reader)?;
        let value = verb(View(&reader))?;
        snapshot.commit()?;
        Ok(value)
    }

    fn idle_reader(&self) -> Option<MutexGuard<'_, Connection>> {
        self.disk.iter().flat_map(|disk| &disk.readers).find_map(Mutex::try_lock)
    }

    /// A connection for who reads all there is: the writer would keep everybody waiting for as long as that takes, and for
    /// ever if what is read is waited for by somebody who waits for the writer. None in memory.
    fn long_reader(&self) -> Result<Option<Connection>> {
        self.disk.as_ref().map(|disk| schema::open_reader(&disk.path)).transpose()
    }

    /// Let all connections see what returned.
    fn commit_group(&self) -> Result<()> {
        if self.uncommitted.load(Ordering::Acquire) { self.writer.lock().commit() } else { Ok(()) }
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        // The writer closes last: the last to close empties the -wal file.
        self.disk = None;
        self.writer.lock().close(&self.usage.lock());
    }
}

impl MetadataStore for SqliteStore {
    fn format(&self, settings: &VolumeSettings) -> Result<()> {
        self.write(|change| volume::format(change, settings))
    }

    fn settings(&self) -> Result<Option<VolumeSettings>> {
        self.read(volume::settings)
    }

    fn begin_epoch(&self, seen: u32) -> Result<u32> {
        let epoch = self.write(|change| volume::begin_epoch(change, seen))?;
        // An epoch that power loss takes back would be begun twice, and two objects would share an identity.
        self.sync()?;
        Ok(epoch)
    }

    fn configure(&self, nodes: &[NodeId]) -> Result<Configuration> {
        self.write(|change| volume::configure(change, nodes))
    }

    fn configurations(&self) -> Result<Vec<Configuration>> {
        self.read(volume::configurations)
    }

    fn places_objects(&self, configuration: u32) -> Result<bool> {
        self.read(|view| volume::places_objects(view, configuration))
    }

    fn sync(&self) -> Result<()> {
        self.commit_group()?;
        self.disk.as_ref().map_or(Ok(()), |disk| disk.wal.sync())
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Inode> {
        self.read(|view| namespace::lookup(view, parent, name))
    }

    fn inode(&self, ino: Ino) -> Result<Inode> {
        self.read(|view| view.inode(ino))
    }

    fn parent(&self, directory: Ino) -> Result<Ino> {
        self.read(|view| namespace::parent(view, directory))
    }

    fn target(&self, ino: Ino) -> Result<Vec<u8>> {
        self.read(|view| namespace::target(view, ino))
    }

    fn list(&self, directory: Ino, after: u64, limit: usize) -> Result<Vec<Entry>> {
        self.read(|view| namespace::list(view, directory, after, limit))
    }

    fn names(&self, directory: Ino, after: u64, limit: usize) -> Result<Vec<Name>> {
        self.read(|view| namespace::names(view, directory, after, limit))
    }

    fn create(&self, parent: Ino, name: &[u8], new: &NewInode, now: Time) -> Result<Inode> {
        self.write(|change| namespace::create(change, parent, name, new, now))
    }

    fn link(&self, ino: Ino, parent: Ino, name: &[u8], now: Time) -> Result<Inode> {
        self.write(|change| namespace::link(change, ino, parent, name, now))
    }

    fn unlink(&self, parent: Ino, name: &[u8], now: Time) -> Result<Removed> {
        self.write(|change| namespace::unlink(change, parent, name, now))
    }

    fn rmdir(&self, parent: Ino, name: &[u8], now: Time) -> Result<Removed> {
        self.write(|change| namespace::rmdir(change, parent, name, now))
    }

    fn rename(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
        now: Time,
    ) -> Result<Option<Removed>> {
        self.write(|change| namespace::rename(change, from, to, mode, now))
    }

    fn set_attributes(&self, ino: Ino, change: &AttributeChange) -> Result<Inode> {
        self.write(|transaction| attributes::set(transaction, ino, change))
    }

    fn set_accessed(&self, accesses: &[(Ino, Time)]) -> Result<()> {
        self.write(|change| attributes::set_accessed(change, accesses))
    }

    fn truncate(&self, ino: Ino, size: u64, now: Time) -> Result<Inode> {
        while let Some(size) = self.read(|view| data::nearer_end(view, ino, size, ERASED_AT_ONCE))? {
            self.write(|change| data::truncate(change, ino, size, now))?;
        }
        self.write(|change| data::truncate(change, ino, size, now))
    }

    fn punch(&self, ino: Ino, mut range: Range<u64>, now: Time) -> Result<Inode> {
        while let Some(end) = self.read(|view| data::nearer_begin(view, ino, &range, ERASED_AT_ONCE))? {
            self.write(|change| data::punch(change, ino, range.start..end, now))?;
            range.start = end;
        }
        self.write(|change| data::punch(change, ino, range, now))
    }

    fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.read(|view| attributes::xattr(view, ino, name))
    }

    fn xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        self.read(|view| attributes::xattrs(view, ino))
    }

    fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        create: bool,
        replace: bool,
        now: Time,
    ) -> Result<()> {
        self.write(|change| attributes::set_xattr(change, ino, name, value, create, replace, now))
    }

    fn remove_xattr(&self, ino: Ino, name: &[u8], now: Time) -> Result<()> {
        self.write(|change| attributes::remove_xattr(change, ino, name, now))
    }

    fn extents(&self, ino: Ino, range: Range<u64>) -> Result<Vec<Extent>> {
        self.read(|view| data::extents(view, ino, range))
    }

    fn commit(&self, commit: &Commit) -> Result<()> {
        self.write(|change| data::commit(change, commit))
    }

    fn copy_extents(
        &self,
        mut from: (Ino, u64),
        mut to: (Ino, u64),
        mut length: u64,
        now: Time,
    ) -> Result<()> {
        while let Some(piece) =
            self.read(|view| data::first_piece(view, [from, to], length, ERASED_AT_ONCE))?
        {
            self.write(|change| data::copy_extents(change, from, to, piece, now))?;
            (from.1, to.1, length) = (from.1 + piece, to.1 + piece, length - piece);
        }
        self.write(|change| data::copy_extents(change, from, to, length, now))
    }

    fn object(&self, id: ObjectId) -> Result<ObjectRecord> {
        self.read(|view| objects::object(view, id))
    }

    fn put_intents(&self, ino: Ino, intents: &[Intent], mtime: Option<Time>) -> Result<()> {
        self.write(|change| intents::put(change, ino, intents, mtime))
    }

    fn intents(&self, ino: Ino) -> Result<Vec<Intent>> {
        self.read(|view| intents::of_file(view, ino))
    }

    fn with_intents(&self) -> Result<Vec<Ino>> {
        self.read(intents::files)
    }

    fn objects_of(&self, ino: Ino, from: u64, limit: usize) -> Result<Vec<(Extent, ObjectRecord)>> {
        self.read(|view| objects::objects_of(view, ino, from, limit))
    }

    fn small_files(
        &self,
        inos: RangeInclusive<u64>,
        longest: u32,
        limit: usize,
    ) -> Result<Vec<ObjectRecord>> {
        self.read(|view| objects::small_files(view, inos, longest, limit))
    }

    fn set_exceptions(&self, id: ObjectId, exceptions: &[Exception]) -> Result<()> {
        self.write(|change| objects::set_exceptions(change, id, exceptions))
    }

    fn revise_exceptions(
        &self,
        before: &ObjectRecord,
        after: &[Exception],
    ) -> Result<Option<Vec<Exception>>> {
        self.write(|change| objects::revise_exceptions(change, before, after))
    }

    fn place_anew(
        &self,
        before: &ObjectRecord,
        configuration: u32,
        exceptions: &[Exception],
    ) -> Result<bool> {
        self.write(|change| objects::place_anew(change, before, configuration, exceptions))
    }

    fn with_exceptions(&self, after: Option<ObjectId>, limit: usize) -> Result<Vec<ObjectRecord>> {
        self.read(|view| objects::with_exceptions(view, after, limit))
    }

    fn scattered(&self, after: (Ino, u64), small: u32, limit: usize) -> Result<Vec<Scattered>> {
        self.read(|view| objects::scattered(view, after, small, limit))
    }

    fn relocate(&self, ino: Ino, object: &ObjectRecord, moves: &[(Extent, Extent)]) -> Result<usize> {
        self.write(|change| data::relocate(change, ino, object, moves))
    }

    fn orphans(&self) -> Result<Vec<Ino>> {
        self.read(objects::orphans)
    }

    fn reclaim(&self, orphans: &[Ino]) -> Result<()> {
        let mut left = orphans;
        while !left.is_empty() {
            left = &left[self.write(|change| data::reclaim(change, left, ERASED_AT_ONCE))?..];
        }
        Ok(())
    }

    fn condemned(&self, after: Option<ObjectId>, limit: usize) -> Result<Vec<ObjectRecord>> {
        self.read(|view| objects::condemned(view, after, limit))
    }

    fn forget(&self, objects: &[ObjectId]) -> Result<()> {
        self.write(|change| objects::forget(change, objects))
    }

    fn usage(&self) -> Result<Usage> {
        Ok(*self.usage.lock())
    }

    fn begin_snapshot(&self, name: &str, now: Time) -> Result<u32> {
        self.write(|change| snapshots::begin(change, name, now))
    }

    fn pin_snapshot(&self, number: u32, next: ObjectId, pin: &[u8]) -> Result<()> {
        self.write(|change| snapshots::pin(change, number, next, pin))
    }

    fn snapshots(&self) -> Result<Vec<Snapshot>> {
        self.read(snapshots::all)
    }

    fn snapshot_usage(&self, number: u32) -> Result<SnapshotUsage> {
        self.read(|view| snapshots::usage(view, number))
    }

    fn delete_snapshot(&self, number: u32) -> Result<()> {
        self.write(|change| snapshots::delete(change, number))
    }

    fn revive(&self, ino: Ino, extents: &[Extent], size: u64) -> Result<()> {
        self.write(|change| data::revive(change, ino, extents, size))
    }

    fn last_change(&self) -> u64 {
        self.writer.lock().changes()
    }

    fn outbox(&self, after: u64, bytes: usize) -> Result<Outbox> {
        self.read(|view| outbox::read(view, after, bytes))
    }

    fn outbox_bytes(&self) -> Result<u64> {
        self.read(outbox::waiting)
    }

    fn shipped(&self, upto: u64, head: &[u8]) -> Result<()> {
        self.write_alone(|change| outbox::shipped(change, upto, head))
    }

    fn head(&self) -> Result<Option<Vec<u8>>> {
        self.read(outbox::head)
    }

    fn replay(&self, replay: Replay<'_>) -> Result<()> {
        let mut writer = self.writer.lock();
        writer.write_alone(|change| {
            if replay.anew {
                replay::clear(change)?;
            }
            for records in replay.records {
                replay::apply_all(change, &records?)?;
            }
            outbox::shipped(change, replay.upto, replay.head)?;
            replay::apply_outbox(change)?;
            replay::settle(change)
        })?;
        // Numbers handed out elsewhere are not handed out again, and the totals are others.
        *self.usage.lock() = writer.look_again()?;
        Ok(())
    }

    fn dump(&self, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<u64> {
        self.commit_group()?;
        match self.long_reader()? {
            Some(reader) => {
                let snapshot = Transaction::snapshot(&reader)?;
                let last = replay::dump(View(&reader), sink)?;
                snapshot.commit()?;
                Ok(last)
            }
            None => replay::dump(self.writer.lock().view()?, sink),
        }
    }

    fn check(&self) -> Result<Flaws> {
        match self.long_reader()? {
            Some(reader) => {
                // The totals belong to the state that the reader sees: nobody writes until it has begun to look.
                let mut writer = self.writer.lock();
                writer.commit()?;
                let snapshot = Transaction::snapshot(&reader)?;
                View(&reader).row("SELECT 1 FROM counter", [], |_| Ok(()))?;
                let usage = *self.usage.lock();
                drop(writer);
                let flaws = check::check(View(&reader), usage)?;
                snapshot.commit()?;
                Ok(flaws)
            }
            None => {
                let writer = self.writer.lock();
                check::check(writer.view()?, *self.usage.lock())
            }
        }
    }

    fn mend(&self, now: Time) -> Result<()> {
        mend::STEPS.iter().try_for_each(|step| self.write_alone(|change| step(change, now)))?;
        let writer = self.writer.lock();
        *self.usage.lock() = volume::count_usage(writer.view()?)?;
        Ok(())
    }

    fn objects(&self, after: Option<ObjectId>, limit: usize) -> Result<Vec<(ObjectRecord, bool)>> {
        self.read(|view| check::objects(view, after, limit))
    }

    fn users(&self, objects: &BTreeSet<ObjectId>, limit: usize) -> Result<Vec<(ObjectId, Vec<String>)>> {
        self.read(|view| check::users(view, objects, limit))
    }

    fn paths(&self, inos: &[Ino]) -> Result<Vec<String>> {
        self.read(|view| paths::of(view, inos))
    }
}
