//! Stores to test, and short words for what tests do with them.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use avidfs::error::Result;
use avidfs::inode::{Ino, Inode, ROOT, Time};
use avidfs::metadata::record::{self, Record};
use avidfs::metadata::sqlite::SqliteStore;
use avidfs::metadata::*;
use common::hash::{Hash, HashId};
use common::wire::{NodeId, ObjectId, VolumeId};
use tempfile::TempDir;

/// A store, and what has to outlive it.
pub struct Fixture {
    pub store: Box<dyn MetadataStore>,
    _folder: Option<TempDir>,
}

fn stores() -> Vec<(&'static str, Fixture)> {
    let folder = tempfile::tempdir().unwrap();
    let on_disk = SqliteStore::open(&folder.path().join("metadata.db")).unwrap();
    let in_memory = SqliteStore::open_in_memory().unwrap();
    vec![
        ("SQLite on disk", Fixture { store: Box::new(on_disk), _folder: Some(folder) }),
        ("SQLite in memory", Fixture { store: Box::new(in_memory), _folder: None }),
    ]
}

/// A folder, and where a store in it may lie.
pub fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metadata.db");
    (folder, path)
}

/// Its -wal file.
pub fn wal_of(path: &Path) -> PathBuf {
    path.with_extension("db-wal")
}

/// Its redo log.
pub fn redo_of(path: &Path) -> PathBuf {
    path.with_extension("db-redo")
}

/// The files as another process would find them if this one were killed now. No verb runs meanwhile. (To open and
/// close a database's file takes SQLite's lock on it away, which only another process would miss.)
pub fn copy_as_killed(path: &Path, to: &Path) {
    std::fs::copy(path, to).unwrap();
    std::fs::copy(wal_of(path), wal_of(to)).unwrap();
    std::fs::copy(redo_of(path), redo_of(to)).unwrap();
}

/// Check a claim on every kind of store, empty.
pub fn on_every_empty_store(claim: impl Fn(&dyn MetadataStore)) {
    for (name, fixture) in stores() {
        println!("on {name}");
        claim(&*fixture.store);
    }
}

/// Check a claim on every kind of store, freshly formatted; what it leaves must add up.
pub fn on_every_store(claim: impl Fn(&dyn MetadataStore)) {
    on_every_empty_store(|store| {
        format(store);
        claim(store);
        audit(store);
        audit_journal(store);
    });
}

pub fn settings() -> VolumeSettings {
    VolumeSettings {
        volume: VolumeId([7; 16]),
        name: "photos".into(),
        code: "3+2".parse().unwrap(),
        hash: HashId::Sha256,
        object_size: 4 << 20,
        root: (1000, 100),
        created: at(1),
    }
}

pub fn format(store: &dyn MetadataStore) {
    store.format(&settings()).unwrap();
    store.begin_epoch(0).unwrap();
    store.configure(&[1, 2, 3, 4, 5].map(|k| NodeId([k; 16]))).unwrap();
}

pub fn at(seconds: i64) -> Time {
    Time { seconds, nanos: 500 }
}

pub fn new_file() -> NewInode {
    NewInode { mode: libc::S_IFREG | 0o644, uid: 1, gid: 2, ..NewInode::default() }
}

pub fn new_directory() -> NewInode {
    NewInode { mode: libc::S_IFDIR | 0o755, ..new_file() }
}

pub fn new_link(target: &[u8]) -> NewInode {
    NewInode { mode: libc::S_IFLNK | 0o777, target: Some(target.to_vec()), ..new_file() }
}

/// Make a file.
pub fn file(store: &dyn MetadataStore, parent: Ino, name: &str) -> Ino {
    store.create(parent, name.as_bytes(), &new_file(), at(2)).unwrap().ino
}

/// Make a directory.
pub fn directory(store: &dyn MetadataStore, parent: Ino, name: &str) -> Ino {
    store.create(parent, name.as_bytes(), &new_directory(), at(2)).unwrap().ino
}

/// The inode number under a name.
pub fn ino_of(store: &dyn MetadataStore, parent: Ino, name: &str) -> Ino {
    store.lookup(parent, name.as_bytes()).unwrap().ino
}

/// All names in a directory, in listing order.
pub fn names(store: &dyn MetadataStore, directory: Ino) -> Vec<String> {
    let entries = store.list(directory, 0, usize::MAX).unwrap();
    entries.into_iter().map(|entry| String::from_utf8(entry.name).unwrap()).collect()
}

pub fn id(counter: u64) -> ObjectId {
    ObjectId { epoch: 1, counter }
}

pub fn object(counter: u64, length: u32) -> ObjectRecord {
    ObjectRecord {
        id: id(counter),
        length,
        fpcc: Hash::from([counter as u8; 32]),
        code: "3+2".parse().unwrap(),
        configuration: 1,
        exceptions: Vec::new(),
    }
}

pub fn extent(offset: u64, length: u32, counter: u64, object_offset: u32) -> Extent {
    Extent { offset, length, object: id(counter), object_offset }
}

pub fn file_commit(ino: Ino, extents: &[Extent]) -> FileCommit {
    FileCommit { ino, extents: extents.to_vec(), size: 0, mtime: None, intents: 0 }
}

/// Write a whole new object at an offset of a file.
pub fn write(store: &dyn MetadataStore, ino: Ino, offset: u64, counter: u64, length: u32) {
    let extents = [extent(offset, length, counter, 0)];
    store
        .commit(&Commit { objects: vec![object(counter, length)], files: vec![file_commit(ino, &extents)] })
        .unwrap();
}

pub fn extents(store: &dyn MetadataStore, ino: Ino) -> Vec<Extent> {
    store.extents(ino, 0..u64::MAX).unwrap()
}

pub fn condemned(store: &dyn MetadataStore) -> Vec<u64> {
    store.condemned(None, usize::MAX).unwrap().into_iter().map(|record| record.id.counter).collect()
}

/// Assert the kind of an error.
macro_rules! assert_error {
    ($result:expr, $($pattern:tt)+) => {{
        let result = $result;
        assert!(matches!(result, Err($($pattern)+)), "{result:?} is not {}", stringify!($($pattern)+));
    }};
}
pub(crate) use assert_error;

/// Everything counted must be what counting anew gives.
pub fn audit(store: &dyn MetadataStore) {
    let mut links: BTreeMap<Ino, u32> = BTreeMap::new();
    let mut inodes = vec![store.inode(ROOT).unwrap()];
    let mut directories = vec![(ROOT, ROOT)];
    while let Some((directory, parent)) = directories.pop() {
        assert_eq!(store.parent(directory).unwrap(), parent);
        let entries = store.list(directory, 0, usize::MAX).unwrap();
        assert!(entries.is_sorted_by(|a, b| a.cookie < b.cookie) && entries.iter().all(|e| e.cookie > 2));
        let subdirectories = entries.iter().filter(|entry| entry.inode.is_directory()).count() as u32;
        links.insert(directory, 2 + subdirectories);
        assert_eq!(store.inode(directory).unwrap().size, 32 * entries.len() as u64, "size of {directory:?}");
        for Entry { inode, name, .. } in entries {
            assert_eq!(store.lookup(directory, &name).unwrap(), inode);
            if inode.is_directory() {
                directories.push((inode.ino, directory));
                inodes.push(inode);
            } else {
                let count = links.entry(inode.ino).or_default();
                *count += 1;
                if *count == 1 {
                    inodes.push(inode);
                }
            }
        }
    }
    inodes.iter().for_each(|inode| assert_eq!(inode.links, links[&inode.ino], "links of {inode:?}"));
    for orphan in store.orphans().unwrap() {
        let inode = store.inode(orphan).unwrap();
        assert_eq!(inode.links, 0);
        inodes.push(inode);
    }
    audit_data(store, &inodes);
}

/// Records as `Replay` takes them.
pub fn pieces(records: &[&[u8]]) -> std::vec::IntoIter<Result<Vec<u8>>> {
    records.iter().map(|records| Ok(records.to_vec())).collect::<Vec<_>>().into_iter()
}

/// What the outbox holds must make the same volume elsewhere, also when it comes twice, and so must a dump.
fn audit_journal(store: &dyn MetadataStore) {
    let outbox = store.outbox(0, usize::MAX).unwrap();
    assert_eq!(outbox.last, store.last_change());
    assert_eq!(store.outbox_bytes().unwrap(), outbox.records.len() as u64);
    let everything = dumped(store);
    let records = [&outbox.records[..], &outbox.records[..]];
    for records in [&records[..1], &records[..], &[&encoded(&everything)]] {
        let copy = SqliteStore::open_in_memory().unwrap();
        let records = &mut pieces(records);
        copy.replay(Replay { anew: true, records, upto: 7, head: b"here" }).unwrap();
        assert_eq!(copy.head().unwrap().unwrap(), b"here");
        assert_eq!(copy.last_change(), 7);
        assert_eq!(dumped(&copy), everything);
        assert_eq!(copy.usage().unwrap(), store.usage().unwrap());
        audit(&copy);
    }
}

/// All rows as records, in an order of their own; without the numbers, of which each store reserves some.
pub fn dumped(store: &dyn MetadataStore) -> Vec<Record> {
    let mut records = Vec::new();
    let last = store.dump(&mut |bytes| {
        records.extend(record::decode_all(bytes)?);
        Ok(())
    });
    assert_eq!(last.unwrap(), store.last_change());
    records.retain(|record| !matches!(record, Record::Numbers { .. }));
    records.sort_by_cached_key(|record| format!("{record:?}"));
    records
}

/// Records as the journal has them.
pub fn encoded(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    // These are said of an inode or an object that is there.
    let (parents, rest): (Vec<_>, Vec<_>) = records
        .iter()
        .partition(|record| matches!(record, Record::Parent(..) | Record::Exceptions(..) | Record::Kept(..)));
    rest.into_iter().chain(parents).for_each(|record| record.encode(&mut bytes));
    bytes
}

fn audit_data(store: &dyn MetadataStore, inodes: &[Inode]) {
    let mut live_bytes = 0;
    let mut referred = HashSet::new();
    for inode in inodes {
        let extents = extents(store, inode.ino);
        let bytes: u64 = extents.iter().map(|extent| u64::from(extent.length)).sum();
        assert_eq!(inode.allocated, bytes, "allocated bytes of {inode:?}");
        live_bytes += bytes;
        for pair in extents.windows(2) {
            let continues = pair[0].object == pair[1].object
                && pair[0].range().end == pair[1].offset
                && pair[0].object_offset + pair[0].length == pair[1].object_offset;
            assert!(pair[0].range().end <= pair[1].offset && !continues, "{pair:?}");
        }
        for extent in &extents {
            assert!(extent.length > 0 && extent.range().end <= inode.size, "{extent:?} of {inode:?}");
            let record = store.object(extent.object).unwrap();
            assert!(extent.object_offset + extent.length <= record.length);
            referred.insert(extent.object);
        }
    }
    let condemned = store.condemned(None, usize::MAX).unwrap();
    assert!(condemned.iter().all(|record| !referred.contains(&record.id)));
    let usage = store.usage().unwrap();
    assert_eq!(usage.inodes, inodes.len() as u64);
    assert_eq!(usage.live_bytes, live_bytes);
    // Besides there are those that snapshots keep.
    if store.snapshots().unwrap().is_empty() {
        assert_eq!(
            usage.objects,
            (referred.len() + condemned.len()) as u64,
            "an object is live or condemned"
        );
        let referred = referred.iter().map(|id| u64::from(store.object(*id).unwrap().length));
        let condemned = condemned.iter().map(|record| u64::from(record.length));
        assert_eq!(usage.object_bytes, referred.chain(condemned).sum::<u64>());
    }
    let exceptional = store.with_exceptions(None, usize::MAX).unwrap();
    assert_eq!(usage.objects_with_exceptions, exceptional.len() as u64);
}
