//! What only the SQLite store promises about changes that are not committed yet: they outlive the process, are seen by
//! all, and after a power loss are there in order or not at all.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use avidfs::inode::{Ino, ROOT};
use avidfs::metadata::sqlite::SqliteStore;
use avidfs::metadata::*;
use common::wire::NodeId;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::*;

/// A step: which verb, and what it is about.
type Step = (u8, usize, usize, u64);

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Does steps, and remembers what they are about. Those that make no sense fail, which is part of it.
struct Hand<'s> {
    store: &'s dyn MetadataStore,
    directories: Vec<Ino>,
    inodes: Vec<Ino>,
    objects: u64,
    snapshots: u64,
}

impl Hand<'_> {
    fn on(store: &dyn MetadataStore) -> Hand<'_> {
        Hand { store, directories: vec![ROOT], inodes: vec![ROOT], objects: 0, snapshots: 0 }
    }

    fn directory(&self, which: usize) -> Ino {
        self.directories[which % self.directories.len()]
    }

    fn inode(&self, which: usize) -> Ino {
        self.inodes[which % self.inodes.len()]
    }

    fn create(&mut self, a: usize, b: usize, new: &NewInode) {
        let made = self.store.create(self.directory(a), NAMES[b % NAMES.len()].as_bytes(), new, at(3));
        if let Ok(inode) = made {
            self.inodes.push(inode.ino);
            if inode.is_directory() {
                self.directories.push(inode.ino);
            }
        }
    }

    /// A new object for one or two files, of which some may be covered at once.
    fn write(&mut self, a: usize, b: usize, c: u64) {
        self.objects += 1;
        let new = self.objects;
        let mut files = vec![file_commit(self.inode(a), &[extent(c % 40, 10, new, 0)])];
        if b.is_multiple_of(3) {
            files.push(FileCommit { intents: c, ..file_commit(self.inode(b), &[extent(c % 7, 5, new, 5)]) });
        }
        if b.is_multiple_of(5) {
            files.push(FileCommit { size: 50, mtime: Some(at(9)), ..file_commit(self.inode(a), &[]) });
        }
        let _ = self.store.commit(&Commit { objects: vec![object(new, 10)], files });
    }

    fn relocate(&mut self, a: usize) {
        let ino = self.inode(a);
        let Ok(old) = self.store.extents(ino, 0..u64::MAX) else { return };
        self.objects += 1;
        let new = object(self.objects, 1000);
        let moves: Vec<_> = old.iter().map(|from| (*from, Extent { object: new.id, ..*from })).collect();
        let _ = self.store.relocate(ino, &new, &moves);
    }

    fn exceptions(&mut self, a: usize, c: u64) {
        let node = c.is_multiple_of(2).then_some(NodeId([4; 16]));
        let exceptions: Vec<_> = (0..c % 3).map(|index| Exception { index: index as u8, node }).collect();
        let _ = self.store.set_exceptions(id(a as u64 % (self.objects + 1)), &exceptions);
    }

    fn place_anew(&mut self, a: usize, c: u64) {
        let Ok(object) = self.store.object(id(a as u64 % (self.objects + 1))) else { return };
        let configurations = self.store.configurations().unwrap();
        let Some(to) = configurations.get(c as usize % configurations.len().max(1)) else { return };
        let away: Vec<_> = (0..c % 3).map(|index| Exception { index: index as u8, node: None }).collect();
        assert!(self.store.place_anew(&object, to.number, &away).unwrap());
    }

    fn snapshot(&mut self, c: u64) {
        self.snapshots += 1;
        let Ok(number) = self.store.begin_snapshot(&self.snapshots.to_string(), at(4)) else { return };
        if !c.is_multiple_of(3) {
            self.store.pin_snapshot(number, id(self.objects + 1), b"pin").unwrap();
        }
    }

    fn delete_snapshot(&mut self, a: usize) {
        let there = self.store.snapshots().unwrap();
        if let Some(snapshot) = there.get(a % there.len().max(1)) {
            self.store.delete_snapshot(snapshot.number).unwrap();
        }
    }

    fn forget(&mut self, a: usize) {
        let gone = self.store.condemned(None, a % 4).unwrap();
        self.store.forget(&gone.iter().map(|record| record.id).collect::<Vec<_>>()).unwrap();
    }

    fn change(&mut self, a: usize, b: usize, c: u64) {
        let value = c.is_multiple_of(2).then(|| b"value".to_vec());
        let change = AttributeChange {
            permissions: Some(c as u32 & 0o777),
            uid: c.is_multiple_of(3).then_some(77),
            atime: Some(at(c as i64)),
            xattrs: vec![(NAMES[b % NAMES.len()].into(), value)],
            ..AttributeChange::default()
        };
        let _ = self.store.set_attributes(self.inode(a), &change);
    }

    fn step(&mut self, (verb, a, b, c): Step) {
        let store = self.store;
        let name = |which: usize| NAMES[which % NAMES.len()].as_bytes();
        match verb {
            0..=3 => self.create(a, b, &new_file()),
            4..=5 => self.create(a, b, &new_directory()),
            6 => {
                let xattrs = vec![(b"user.new".to_vec(), b"1".to_vec())];
                self.create(a, b, &NewInode { xattrs, ..new_link(b"target") });
            }
            7 => drop(store.link(self.inode(a), self.directory(b), name(c as usize), at(3))),
            8 => drop(store.unlink(self.directory(a), name(b), at(3))),
            9 => drop(store.rmdir(self.directory(a), name(b), at(3))),
            10..=11 => {
                let mode = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange][c as usize % 3];
                let (from, to) = ((self.directory(a), name(b)), (self.directory(b), name(c as usize)));
                drop(store.rename(from, to, mode, at(4)));
            }
            12 => store.reclaim(&[self.inode(a), self.inode(b)]).unwrap(),
            13..=16 => self.write(a, b, c),
            17 => drop(store.truncate(self.inode(a), c % 50, at(5))),
            18 => drop(store.punch(self.inode(a), c % 50..c % 50 + b as u64 % 20, at(5))),
            19 => drop(store.copy_extents((self.inode(a), c % 9), (self.inode(b), c % 31), 11, at(6))),
            20 => self.forget(a),
            21 => self.exceptions(a, c),
            22 => store.set_accessed(&[(self.inode(a), at(7)), (self.inode(b), at(8))]).unwrap(),
            23 => self.change(a, b, c),
            24 => {
                let bytes = vec![c as u8; 1 + c as usize % 9];
                let intent = Intent { offset: c % 45, number: c, bytes };
                drop(store.put_intents(self.inode(a), &[intent], Some(at(9))));
            }
            25 => self.snapshot(c),
            26 => self.delete_snapshot(a),
            27 => drop(store.revive(self.inode(a), &[extent(0, 5, c % (self.objects + 1), 0)], 9)),
            28 => self.relocate(a),
            29 => {
                drop(store.configure(&std::array::from_fn::<_, 5, _>(|k| NodeId([(c + k as u64) as u8; 16]))))
            }
            30 => drop(store.begin_epoch(c as u32 % 9)),
            31 => store.shipped(store.last_change().saturating_sub(c % 20), name(a)).unwrap(),
            32 => self.place_anew(a, c),
            _ => drop(store.remove_xattr(self.inode(a), b"user.new", at(9))),
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    (0..34u8, 0..64usize, 0..64usize, 0..1000u64)
}

/// Everything there is, and that it adds up.
fn state(store: &dyn MetadataStore) -> String {
    let rows = dumped(store);
    assert_eq!(store.check().unwrap().listed, []);
    let lists =
        (store.orphans().unwrap(), condemned(store), store.with_exceptions(None, usize::MAX).unwrap());
    let outbox = (store.last_change(), store.outbox(0, usize::MAX).unwrap(), store.outbox_bytes().unwrap());
    format!("{:?}", (rows, lists, outbox, store.head().unwrap(), store.usage().unwrap()))
}

/// A store in a file beside `path`, as it would be found if this process were killed now.
fn after_a_kill(path: &Path, name: &str) -> (PathBuf, SqliteStore) {
    let copy = path.with_file_name(name);
    copy_as_killed(path, &copy);
    let store = SqliteStore::open(&copy).unwrap();
    (copy, store)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn a_killed_store_is_what_it_was(
        before in vec(step(), 0..60),
        after in vec(step(), 1..60),
    ) {
        let (_folder, path) = folder();
        let store = SqliteStore::open(&path).unwrap();
        format(&store);
        let mut hand = Hand::on(&store);
        before.into_iter().for_each(|step| hand.step(step));
        store.sync().unwrap();
        after.into_iter().for_each(|step| hand.step(step));
        let (copy, once) = after_a_kill(&path, "once.db");
        // Before anything is asked of it: its process is killed as soon as it had opened it.
        let (_, twice) = after_a_kill(&copy, "twice.db");
        let was = state(&store);
        prop_assert_eq!(state(&once), was.clone());
        prop_assert_eq!(state(&twice), was);
        let highest = store.list(ROOT, 0, usize::MAX).unwrap().last().map_or(2, |entry| entry.cookie);
        let made = once.create(ROOT, b"new", &new_file(), at(9)).unwrap().ino;
        prop_assert!(hand.inodes.iter().all(|ino| *ino < made));
        prop_assert!(once.list(ROOT, highest, 9).unwrap().iter().any(|entry| entry.inode.ino == made));
    }
}

#[test]
fn a_verb_that_fails_in_a_group_leaves_the_others() {
    let (_folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    format(&store);
    let first = file(&store, ROOT, "a");
    let usage = store.usage().unwrap();
    // It fails after it wrote: the directory counts the name already.
    let many = NewInode { xattrs: vec![(Vec::new(), Vec::new())], ..new_file() };
    store.create(ROOT, b"b", &many, at(3)).unwrap_err();
    assert_eq!(store.usage().unwrap(), usage);
    let last = file(&store, ROOT, "c");
    assert!(last > first);
    let (_, killed) = after_a_kill(&path, "copy.db");
    for store in [&store, &killed] {
        assert_eq!(names(store, ROOT), ["a", "c"]);
        audit(store);
    }
}

#[test]
fn a_torn_frame_and_what_follows_it_is_as_if_it_had_not_been() {
    let (folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    format(&store);
    store.sync().unwrap();
    let lengths: Vec<u64> = ["a", "b", "c"]
        .map(|name| {
            file(&store, ROOT, name);
            std::fs::metadata(redo_of(&path)).unwrap().len()
        })
        .into();
    let whole = std::fs::read(redo_of(&path)).unwrap();
    let left = |name: &str, log: &[u8]| {
        let copy = folder.path().join(name);
        copy_as_killed(&path, &copy);
        std::fs::write(redo_of(&copy), log).unwrap();
        let store = SqliteStore::open(&copy).unwrap();
        audit(&store);
        names(&store, ROOT).concat()
    };
    assert_eq!(left("whole.db", &whole), "abc");
    let [first, second, third] = lengths[..] else { panic!("{lengths:?}") };
    for (length, expected) in [(third - 1, "ab"), (second + 1, "ab"), (second, "ab"), (first, "a"), (20, "")]
    {
        assert_eq!(left(&format!("{length}.db"), &whole[..length as usize]), expected);
    }
    let mut torn = whole.clone();
    torn[second as usize - 9..second as usize].fill(0);
    assert_eq!(left("torn.db", &torn), "a", "c is whole, but b is not");
    let without_b = [&whole[..first as usize], &whole[second as usize..]].concat();
    assert_eq!(left("gap.db", &without_b), "a");
}

/// What a disk may have of the files after a power loss: each as it was at some moment.
struct Lost {
    path: PathBuf,
    copies: AtomicU64,
}

/// The files at one moment.
struct Moment {
    database: Vec<u8>,
    wal: Vec<u8>,
    redo: Vec<u8>,
}

impl Lost {
    fn now(&self) -> Moment {
        let read = |path: &Path| std::fs::read(path).unwrap_or_default();
        let (wal, redo) = (read(&wal_of(&self.path)), read(&redo_of(&self.path)));
        Moment { database: read(&self.path), wal, redo }
    }

    /// The names in the root of a store whose database is of one moment and whose redo log is of another.
    fn names(&self, database: &Moment, redo: &Moment) -> String {
        let copy = self.copies.fetch_add(1, Ordering::Relaxed);
        let copy = self.path.with_file_name(format!("lost-{copy}.db"));
        std::fs::write(&copy, &database.database).unwrap();
        std::fs::write(wal_of(&copy), &database.wal).unwrap();
        std::fs::write(redo_of(&copy), &redo.redo).unwrap();
        let store = SqliteStore::open(&copy).unwrap();
        if store.settings().unwrap().is_none() {
            return "nothing".into();
        }
        audit(&store);
        assert_eq!(store.check().unwrap().listed, []);
        names(&store, ROOT).concat()
    }
}

#[test]
fn after_a_power_loss_the_log_counts_only_where_it_follows_on_the_database() {
    let (_folder, path) = folder();
    let lost = Lost { path: path.clone(), copies: AtomicU64::new(0) };
    let store = SqliteStore::open(&path).unwrap();
    let empty = lost.now();
    format(&store);
    file(&store, ROOT, "a");
    store.sync().unwrap();
    let a = lost.now();
    file(&store, ROOT, "b");
    let b = lost.now();
    store.sync().unwrap();
    let synced = lost.now();
    file(&store, ROOT, "c");
    let c = lost.now();
    assert_eq!(lost.names(&c, &c), "abc");
    assert_eq!(lost.names(&a, &b), "ab", "nothing is missing between the two");
    assert_eq!(lost.names(&a, &c), "a", "b is missing between the two");
    assert_eq!(lost.names(&empty, &c), "nothing");
    assert_eq!(lost.names(&c, &b), "ab", "an older log");
    assert_eq!(lost.names(&synced, &a), "ab", "an even older one");
}

/// A replay is no change with a number, and what is logged after it needs it.
#[test]
fn after_a_power_loss_the_log_does_not_count_where_a_replay_before_it_is_missing() {
    let (_folder, path) = folder();
    let lost = Lost { path: path.clone(), copies: AtomicU64::new(0) };
    let store = SqliteStore::open(&path).unwrap();
    format(&store);
    file(&store, ROOT, "a");
    store.sync().unwrap();
    let before = lost.now();
    let records = &mut pieces(&[&encoded(&dumped(&store))]);
    let upto = store.last_change();
    store.replay(Replay { anew: true, records, upto, head: b"head" }).unwrap();
    file(&store, ROOT, "b");
    let after = lost.now();
    assert_eq!(lost.names(&after, &after), "ab");
    assert_eq!(lost.names(&before, &after), "a");
}

#[test]
fn a_log_is_of_no_use_to_another_database() {
    let (_folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    let lost = Lost { path: path.clone(), copies: AtomicU64::new(0) };
    store.format(&settings()).unwrap();
    file(&store, ROOT, "a");
    let log = lost.now();
    assert_eq!(lost.names(&log, &log), "a");
    let nothing = Moment { database: Vec::new(), wal: Vec::new(), redo: Vec::new() };
    assert_eq!(lost.names(&nothing, &log), "nothing", "though the log begins with the first change");
}

#[test]
fn a_store_from_before_the_log_is_brought_up_to_date() {
    let (_folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    format(&store);
    file(&store, ROOT, "a");
    let before = state(&store);
    drop(store);
    let old = "DELETE FROM counter WHERE name = 'redo'; PRAGMA user_version = 4;";
    rusqlite::Connection::open(&path).unwrap().execute_batch(old).unwrap();
    assert!(!redo_of(&path).exists());
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(state(&store), before);
    file(&store, ROOT, "b");
    assert_eq!(names(&after_a_kill(&path, "copy.db").1, ROOT), ["a", "b"]);
    let format: i64 = rusqlite::Connection::open(path.with_file_name("copy.db"))
        .unwrap()
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .unwrap();
    assert_eq!(format, 5);
}

/// Whatever returned before a read began is in it, also where others write meanwhile and nothing of it is committed.
#[test]
fn readers_see_all_that_returned() {
    let (_folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    format(&store);
    let (returned, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let first = store.last_change();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let count = returned.load(Ordering::Acquire);
                    if count > 0 {
                        store.lookup(ROOT, count.to_string().as_bytes()).unwrap();
                    }
                    let count = returned.load(Ordering::Acquire);
                    assert!(
                        store.outbox(first + count.saturating_sub(1), usize::MAX).unwrap().last
                            >= first + count
                    );
                    assert!(store.last_change() >= first + count);
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let count = returned.load(Ordering::Acquire);
                assert!(store.dump(&mut |_| Ok(())).unwrap() >= first + count);
                assert_eq!(store.check().unwrap().listed, []);
            }
        });
        for count in 1..4000u64 {
            file(&store, ROOT, &count.to_string());
            returned.store(count, Ordering::Release);
        }
        done.store(true, Ordering::Relaxed);
    });
    audit(&store);
}
