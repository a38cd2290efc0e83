//! The connection that writes, and how its verbs share transactions.
//!
//! To commit costs more than most verbs. So they run one after the other in one transaction, the **group**, each in a
//! savepoint, so that one that fails undoes only itself. Before a verb returns, its records are in the redo log, and
//! from there they are applied again should the process end, or the commit fail, before the group is in the database.
//! A verb that changes what its records do not say is a transaction of its own.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::Connection;

use super::outbox;
use super::redo::RedoLog;
use super::replay;
use super::transaction::{Change, Numbers, Savepoint, Transaction, UsageChange, View};
use super::volume;
use super::wal::Wal;
use crate::error::{Error, Result};
use crate::metadata::Usage;

/// A group of so many changes is committed: by then a commit is a small part of what they cost.
const GROUP: usize = 64;
/// So is one of more bytes of records than this, which bounds the log.
const GROUP_BYTES: usize = 1 << 20;

/// The writing connection. Whoever has it keeps all others from writing.
pub(super) struct Writer {
    db: Connection,
    numbers: Numbers,
    /// Number of the last change.
    changes: u64,
    /// None in memory, where each group is one verb.
    redo: Option<RedoLog>,
    /// Counts commits, once there is a -wal file.
    pub(super) wal: Option<Arc<Wal>>,
    /// Whether verbs returned whose changes no other connection sees.
    uncommitted: Arc<AtomicBool>,
    /// Reads that waited for this connection since the last commit.
    waited: usize,
}

/// What a verb did.
pub(super) struct Done<T> {
    pub(super) value: T,
    /// Rows it wrote.
    pub(super) rows: u64,
    pub(super) usage: UsageChange,
}

impl Writer {
    /// Begin on a database that is prepared, the one in the file `path` unless it is in memory, with what a killed
    /// process left in its redo log. Returns also the totals.
    pub(super) fn open(db: Connection, path: Option<&Path>) -> Result<(Writer, Usage)> {
        let transaction = Transaction::begin(&db)?;
        let mut redo = match path {
            Some(path) => Some(RedoLog::open(path, volume::salt(View(&db))?)?),
            None => None,
        };
        if let Some(redo) = &mut redo {
            apply(&db, redo, u64::MAX)?;
            redo.renew(volume::draw_salt(&db)?);
        }
        let usage = volume::take_usage(&db)?;
        let changes = outbox::last(View(&db))?;
        transaction.commit()?;
        let writer = Writer {
            db,
            numbers: Numbers::default(),
            changes,
            redo,
            wal: None,
            uncommitted: Arc::default(),
            waited: 0,
        };
        Ok((writer, usage))
    }

    /// Whether verbs returned whose changes no other connection sees; to be asked without having the writer.
    pub(super) fn uncommitted(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.uncommitted)
    }

    /// Number of the last change.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Run a verb whose records say all that it changes: all of it happens, or with an error nothing.
    pub(super) fn write<T>(&mut self, verb: impl FnOnce(&mut Change) -> Result<T>) -> Result<Done<T>> {
        self.make_again()?;
        if self.is_long() {
            // It could not be committed so far, and the log is not to grow without end.
            self.commit()?;
        }
        let done = self.join(verb);
        if self.db.is_autocommit() {
            // SQLite undoes the whole transaction where the disk is full or broken in the middle of a statement.
            // What was reserved in it is not reserved.
            self.numbers = Numbers::default();
        }
        if self.redo.is_none() {
            self.commit()?;
        }
        self.commit_when_long();
        done
    }

    /// Run a verb in the group.
    fn join<T>(&mut self, verb: impl FnOnce(&mut Change) -> Result<T>) -> Result<Done<T>> {
        let Writer { db, numbers, changes, redo, .. } = self;
        if db.is_autocommit() {
            Transaction::begin(db)?.leave_open();
        }
        numbers.refill(db)?;
        let savepoint = Savepoint::begin(db)?;
        let number = *changes + 1;
        let (done, records) = carry_out(db, numbers, number, verb)?;
        if records.is_empty() {
            savepoint.keep()?;
            return Ok(done);
        }
        let written = redo.as_ref().map(|redo| redo.write(number, &records)).transpose()?;
        savepoint.keep()?;
        if let Some((redo, written)) = redo.as_mut().zip(written) {
            redo.keep(written);
            self.uncommitted.store(true, Ordering::Release);
        }
        *changes = number;
        numbers.were_noted();
        Ok(done)
    }

    /// Run a verb as a transaction of its own, which may change what no record says, and as much as it likes. What is
    /// logged later does not follow on what was before it. With an error nothing happened.
    pub(super) fn write_alone<T>(&mut self, verb: impl FnOnce(&mut Change) -> Result<T>) -> Result<Done<T>> {
        self.commit()?;
        let done = self.alone(verb);
        if done.is_err() {
            // Numbers it reserved on its way are not reserved.
            self.numbers = Numbers::default();
        }
        done
    }

    fn alone<T>(&mut self, verb: impl FnOnce(&mut Change) -> Result<T>) -> Result<Done<T>> {
        let Writer { db, numbers, changes, redo, .. } = self;
        let transaction = Transaction::begin(db)?;
        numbers.refill(db)?;
        let (done, records) = carry_out(db, numbers, *changes + 1, verb)?;
        let salt = redo.as_ref().map(|_| volume::draw_salt(db)).transpose()?;
        transaction.commit()?;
        if !records.is_empty() {
            *changes += 1;
            numbers.were_noted();
        }
        if let Some((redo, salt)) = redo.as_mut().zip(salt) {
            redo.renew(salt);
        }
        self.committed();
        Ok(done)
    }

    /// What the store is now, uncommitted changes included.
    ///
    /// # Errors
    /// `Host` while a group that was undone cannot be made again.
    pub(super) fn view(&self) -> Result<View<'_>> {
        self.make_again()?;
        Ok(View(&self.db))
    }

    /// A read had to wait for this connection, which others could spare it. Enough of them end the group, so that
    /// those who read after a change do so beside each other again.
    pub(super) fn was_waited_for(&mut self) {
        self.waited += 1;
        self.commit_when_long();
    }

    /// Commit the group: others see it, and a flush of the -wal file covers it.
    ///
    /// # Errors
    /// `Host` if it cannot be; its changes stay in the redo log, and are made again before anything else is done.
    pub(super) fn commit(&mut self) -> Result<()> {
        self.make_again()?;
        self.waited = 0;
        if self.db.is_autocommit() {
            return Ok(());
        }
        if let Err(error) = Transaction::resume(&self.db).commit() {
            self.numbers = Numbers::default();
            return Err(Error::Host(format!("changes of the metadata cannot be committed: {error}")));
        }
        self.committed();
        Ok(())
    }

    fn commit_when_long(&mut self) {
        if self.is_long()
            && let Err(error) = self.commit()
        {
            // No matter of the verb that came last: it is in the log like the others. The next one tries again.
            tracing::error!(%error, "changes of the metadata wait in the redo log");
        }
    }

    fn is_long(&self) -> bool {
        let is_long = |redo: &RedoLog| redo.frames() + self.waited >= GROUP || redo.length() >= GROUP_BYTES;
        self.redo.as_ref().is_some_and(is_long)
    }

    fn committed(&mut self) {
        if let Some(wal) = &self.wal {
            wal.committed();
        }
        if let Some(redo) = &mut self.redo {
            redo.restart();
        }
        self.uncommitted.store(false, Ordering::Release);
    }

    /// Whether a group was undone though its verbs had returned.
    fn is_undone(&self) -> bool {
        self.db.is_autocommit() && self.redo.as_ref().is_some_and(|redo| redo.frames() > 0)
    }

    /// Make a group again that was undone, before anything else is done. It is not committed here: who only reads needs
    /// no room on a disk that is full.
    fn make_again(&self) -> Result<()> {
        if !self.is_undone() {
            return Ok(());
        }
        let waiting = |error| Error::Host(format!("changes of the metadata wait in the redo log: {error}"));
        self.again().map_err(waiting)
    }

    fn again(&self) -> Result<()> {
        let Some(redo) = &self.redo else { return Ok(()) };
        let transaction = Transaction::begin(&self.db)?;
        apply(&self.db, redo, self.changes)?;
        if outbox::last(View(&self.db))? != self.changes {
            return Err(Error::Store("damaged: the log lacks some of them".into()));
        }
        transaction.leave_open();
        Ok(())
    }

    /// All state is to be looked at anew: others than verbs changed it.
    pub(super) fn look_again(&mut self) -> Result<Usage> {
        self.numbers = Numbers::default();
        self.changes = outbox::last(View(&self.db))?;
        volume::count_usage(View(&self.db))
    }

    /// Leave a store that opens fast: nothing in the log, and the totals written down.
    pub(super) fn close(&mut self, usage: &Usage) {
        // Without the totals the next open counts, and finds in the log what could not be committed.
        let left = self.commit().and_then(|()| volume::leave_usage(&self.db, &self.numbers, usage));
        if let (Ok(()), Some(redo)) = (left, &self.redo) {
            redo.remove();
        }
    }
}

/// Run a verb in the transaction that is open, and put what it noted into the outbox. Returns also that.
fn carry_out<T>(
    db: &Connection,
    numbers: &mut Numbers,
    number: u64,
    verb: impl FnOnce(&mut Change) -> Result<T>,
) -> Result<(Done<T>, Vec<u8>)> {
    let mut change =
        Change { view: View(db), numbers, rows: 0, log: Vec::new(), usage: UsageChange::default() };
    let value = verb(&mut change)?;
    let records = outbox::put(&mut change, number)?;
    Ok((Done { value, rows: change.rows, usage: change.usage }, records))
}

/// Make what the redo log holds and the database lacks, up to the change numbered `upto`.
fn apply(db: &Connection, redo: &RedoLog, upto: u64) -> Result<()> {
    let numbers = &mut Numbers::default();
    let mut change =
        Change { view: View(db), numbers, rows: 0, log: Vec::new(), usage: UsageChange::default() };
    replay::redo(&mut change, &redo.read()?, upto)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;

    use common::hash::HashId;
    use common::wire::VolumeId;
    use tempfile::TempDir;

    use crate::inode::{ROOT, Time};
    use crate::metadata::sqlite::{SqliteStore, checkpoint, schema};
    use crate::metadata::{MetadataStore, NewInode, VolumeSettings};

    use super::*;

    const NOW: Time = Time { seconds: 5, nanos: 0 };

    fn store() -> (TempDir, PathBuf, SqliteStore) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metadata.db");
        let store = SqliteStore::open(&path).unwrap();
        let settings = VolumeSettings {
            volume: VolumeId([7; 16]),
            name: "photos".into(),
            code: "3+2".parse().unwrap(),
            hash: HashId::Blake3,
            object_size: 4 << 20,
            root: (0, 0),
            created: NOW,
        };
        store.format(&settings).unwrap();
        store.sync().unwrap();
        (folder, path, store)
    }

    fn make(store: &SqliteStore, name: &str) -> Result<()> {
        let new = NewInode { mode: libc::S_IFREG | 0o644, ..NewInode::default() };
        store.create(ROOT, name.as_bytes(), &new, NOW).map(drop)
    }

    fn names(store: &SqliteStore) -> Result<Vec<String>> {
        let entries = store.list(ROOT, 0, 1000)?;
        Ok(entries.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()).collect())
    }

    /// What another process would find if this one were killed now.
    fn after_a_kill(path: &Path) -> SqliteStore {
        let copy = path.with_file_name("copy.db");
        for ending in ["", "-wal", "-redo"] {
            let file = |path: &Path| PathBuf::from(format!("{}{ending}", path.display()));
            std::fs::copy(file(path), file(&copy)).unwrap();
        }
        SqliteStore::open(&copy).unwrap()
    }

    fn assert_sound(store: &SqliteStore) {
        assert_eq!(store.check().unwrap().listed, []);
    }

    /// A statement for the writing connection, beside all verbs.
    fn directly(store: &SqliteStore, sql: &str) {
        store.writer.lock().db.execute_batch(sql).unwrap();
    }

    /// Let the next verb of a group that has begun fail so that SQLite undoes all of it, and then every change.
    fn break_disk(store: &SqliteStore) {
        directly(store, "INSERT INTO broken VALUES (1)");
        assert!(make(store, "fails").is_err());
        assert!(store.writer.lock().is_undone());
        directly(store, "INSERT INTO broken VALUES (1)");
    }

    /// To be done before the group begins.
    fn prepare_to_break_disk(store: &SqliteStore) {
        let triggers = "CREATE TEMP TABLE broken (x); CREATE TEMP TRIGGER breaks BEFORE INSERT ON main.outbox \
                        WHEN EXISTS (SELECT 1 FROM broken) BEGIN SELECT RAISE(ROLLBACK, 'a broken disk'); END;";
        directly(store, triggers);
    }

    fn is_host<T>(result: Result<T>) -> bool {
        matches!(result, Err(Error::Host(_)))
    }

    #[test]
    fn a_group_is_committed_when_it_is_long() {
        let (_folder, _path, store) = store();
        for count in 1..GROUP {
            make(&store, &count.to_string()).unwrap();
            assert!(store.uncommitted.load(Ordering::Acquire));
        }
        make(&store, "last").unwrap();
        assert!(!store.uncommitted.load(Ordering::Acquire));
        let large = vec![b'x'; crate::metadata::MAX_XATTR_VALUE];
        for count in 0..GROUP_BYTES / large.len() {
            assert_eq!(store.uncommitted.load(Ordering::Acquire), count > 0);
            store.set_xattr(ROOT, b"user.x", &large, false, false, NOW).unwrap();
        }
        assert!(!store.uncommitted.load(Ordering::Acquire));
    }

    #[test]
    fn a_sync_flushes_what_was_committed_before_and_what_was_not() {
        let (_folder, _path, store) = store();
        let is_flushed = || store.disk.as_ref().unwrap().wal.is_flushed();
        make(&store, "a").unwrap();
        store.writer.lock().commit().unwrap();
        make(&store, "b").unwrap();
        assert!(!is_flushed());
        store.sync().unwrap();
        assert!(is_flushed() && !store.uncommitted.load(Ordering::Acquire));
        store.shipped(1, b"head").unwrap();
        assert!(!is_flushed());
    }

    #[test]
    fn reads_that_wait_end_a_group() {
        let (_folder, _path, store) = store();
        make(&store, "a").unwrap();
        for _ in 1..GROUP {
            assert!(store.uncommitted.load(Ordering::Acquire));
            store.writer.lock().was_waited_for();
        }
        assert!(!store.uncommitted.load(Ordering::Acquire));
    }

    #[test]
    fn a_verb_that_cannot_be_logged_is_undone_and_the_group_stays() {
        let (_folder, path, store) = store();
        make(&store, "a").unwrap();
        let full = File::options().read(true).write(true).open("/dev/full").unwrap();
        let swap = |file: File| {
            let mut writer = store.writer.lock();
            std::mem::replace(&mut writer.redo.as_mut().unwrap().file, file)
        };
        let file = swap(full);
        let (last, usage) = (store.last_change(), store.usage().unwrap());
        assert!(is_host(make(&store, "b")));
        assert_eq!((store.last_change(), store.usage().unwrap()), (last, usage));
        assert_eq!(names(&store).unwrap(), ["a"]);
        // Some of the frame may have been written.
        let end = store.writer.lock().redo.as_ref().unwrap().length();
        file.write_all_at(&[0xa5; 200], end as u64).unwrap();
        swap(file);
        let killed = after_a_kill(&path);
        assert_eq!(names(&killed).unwrap(), ["a"]);
        assert_sound(&killed);
        drop(killed);
        make(&store, "c").unwrap();
        assert_eq!(names(&after_a_kill(&path)).unwrap(), ["a", "c"]);
        assert_eq!(names(&store).unwrap(), ["a", "c"]);
        assert_sound(&store);
    }

    /// Let COMMIT fail once the group that comes holds a reference to nothing.
    fn prepare_to_fail_commit(store: &SqliteStore) {
        let tables = "PRAGMA foreign_keys = ON; CREATE TEMP TABLE a (x INTEGER PRIMARY KEY); \
                      CREATE TEMP TABLE b (y REFERENCES a (x) DEFERRABLE INITIALLY DEFERRED);";
        directly(store, tables);
    }

    fn fail_commit(store: &SqliteStore) {
        directly(store, "INSERT INTO b VALUES (1)");
        assert!(is_host(store.sync()));
    }

    #[test]
    fn a_group_that_cannot_be_committed_is_made_again() {
        let (_folder, path, store) = store();
        prepare_to_fail_commit(&store);
        make(&store, "a").unwrap();
        make(&store, "b").unwrap();
        let usage = store.usage().unwrap();
        fail_commit(&store);
        assert_eq!(names(&after_a_kill(&path)).unwrap(), ["a", "b"]);
        assert_eq!(names(&store).unwrap(), ["a", "b"]);
        make(&store, "c").unwrap();
        assert_eq!(store.usage().unwrap().inodes, usage.inodes + 1);
        assert_sound(&store);
    }

    #[test]
    fn a_verb_that_failed_when_its_frame_was_whole_is_not_made_again() {
        let (_folder, _path, store) = store();
        prepare_to_fail_commit(&store);
        make(&store, "a").unwrap();
        let _not_kept = {
            let writer = store.writer.lock();
            writer.redo.as_ref().unwrap().write(writer.changes + 1, b"").unwrap()
        };
        fail_commit(&store);
        assert_eq!(names(&store).unwrap(), ["a"]);
        make(&store, "b").unwrap();
        assert_sound(&store);
    }

    /// They are reserved in the group, and no record says so before a verb succeeds.
    #[test]
    fn numbers_reserved_in_a_group_that_was_undone_are_reserved_again() {
        let (_folder, path, store) = store();
        drop(store);
        let store = SqliteStore::open(&path).unwrap();
        prepare_to_fail_commit(&store);
        make(&store, "").unwrap_err();
        directly(&store, "INSERT INTO b VALUES (1)");
        assert!(is_host(store.check()));
        make(&store, "a").unwrap();
        assert_sound(&store);
    }

    #[test]
    fn numbers_reserved_for_a_verb_that_failed_stay_reserved() {
        let (_folder, path, store) = store();
        drop(store);
        let store = SqliteStore::open(&path).unwrap();
        make(&store, "").unwrap_err();
        make(&store, "a").unwrap();
        assert_sound(&store);
    }

    #[test]
    fn a_checkpoint_commits_the_group_so_that_the_wal_file_begins_anew() {
        let (_folder, path, store) = store();
        let length = || std::fs::metadata(path.with_extension("db-wal")).unwrap().len();
        make(&store, "a").unwrap();
        checkpoint::checkpoint(&schema::open_checkpoints(&path).unwrap(), &store.writer).unwrap();
        let after = length();
        make(&store, "b").unwrap();
        store.sync().unwrap();
        assert_eq!(length(), after);
    }

    #[test]
    fn a_group_that_was_undone_and_is_not_in_the_log_either_is_not_forgotten() {
        let (_folder, _path, store) = store();
        prepare_to_fail_commit(&store);
        make(&store, "a").unwrap();
        store.writer.lock().redo.as_ref().unwrap().file.set_len(0).unwrap();
        fail_commit(&store);
        assert!(is_host(names(&store)) && is_host(make(&store, "b")));
    }

    #[test]
    fn nothing_is_read_or_written_until_a_group_that_was_undone_is_made_again() {
        let (_folder, path, store) = store();
        prepare_to_break_disk(&store);
        make(&store, "a").unwrap();
        make(&store, "b").unwrap();
        break_disk(&store);
        for _ in 0..2 {
            assert!(is_host(names(&store)) && is_host(store.inode(ROOT)));
            assert!(is_host(make(&store, "d")) && is_host(store.sync()) && is_host(store.check()));
            assert!(is_host(store.shipped(1, b"head")));
        }
        assert_eq!(names(&after_a_kill(&path)).unwrap(), ["a", "b"]);
        directly(&store, "DELETE FROM broken");
        assert_eq!(names(&store).unwrap(), ["a", "b"]);
        make(&store, "c").unwrap();
        store.sync().unwrap();
        assert_eq!(names(&store).unwrap(), ["a", "b", "c"]);
        assert_sound(&store);
    }

    /// A commit is more than a read needs.
    #[test]
    fn what_returned_is_read_while_it_cannot_be_committed_and_no_more_is_taken_than_a_group() {
        let (_folder, path, store) = store();
        prepare_to_fail_commit(&store);
        let mut made = Vec::new();
        for count in 0.. {
            let name = format!("{count:03}");
            match make(&store, &name) {
                Ok(()) => made.push(name),
                Err(error) => {
                    assert!(matches!(error, Error::Host(_)));
                    break;
                }
            }
            assert_eq!(names(&store).unwrap(), made);
            // What is undone takes this along.
            directly(&store, "INSERT INTO b VALUES (1)");
        }
        assert_eq!(made.len(), GROUP);
        assert_eq!(names(&store).unwrap(), made);
        assert_eq!(names(&after_a_kill(&path)).unwrap(), made);
        store.sync().unwrap();
        make(&store, "more").unwrap();
        assert_sound(&store);
    }

    #[test]
    fn a_store_that_closes_with_an_undone_group_has_it_when_it_opens() {
        let (_folder, path, store) = store();
        prepare_to_break_disk(&store);
        make(&store, "a").unwrap();
        break_disk(&store);
        drop(store);
        let store = SqliteStore::open(&path).unwrap();
        assert_eq!(names(&store).unwrap(), ["a"]);
        assert_sound(&store);
    }

    #[test]
    fn a_full_disk_takes_nothing_that_returned() {
        let (_folder, path, store) = store();
        let pages: i64 = store.writer.lock().db.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        directly(&store, &format!("PRAGMA max_page_count = {}", pages + 2));
        let long = "x".repeat(200);
        let mut made = Vec::new();
        for count in 0.. {
            let name = format!("{count}{long}");
            match make(&store, &name) {
                Ok(()) => made.push(name),
                Err(error) => {
                    assert!(matches!(error, Error::Host(_)), "{error:?}");
                    break;
                }
            }
        }
        assert!(made.len() > 3);
        assert_eq!(names(&after_a_kill(&path)).unwrap(), made);
        assert_eq!(names(&store).unwrap(), made);
        assert!(is_host(make(&store, &long)));
        directly(&store, "PRAGMA max_page_count = 1000000");
        make(&store, "more").unwrap();
        assert_eq!(names(&store).unwrap().len(), made.len() + 1);
        assert_sound(&store);
    }
}
