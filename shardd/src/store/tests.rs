//! The store on a real folder: what is kept, refused, lost and found again.

mod moves;

use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use common::codec::{Codec, split};
use common::hash::HashId;
use common::wire::ObjectId;

use super::segment::faults::{self, Fault, Faults};
use super::*;

/// One object of code 2+2, encoded.
struct Object {
    fpcc: Vec<u8>,
    fragments: Vec<Bytes>,
}

fn object(seed: u64, length: usize) -> Object {
    let code = "2+2".parse().unwrap();
    let bytes: Vec<u8> = (0..length as u64)
        .map(|i| ((i + 1).wrapping_mul(seed | 1).wrapping_mul(0x9e37_79b9) >> 13) as u8)
        .collect();
    let codec = Codec::of(code);
    let data = split(code, &bytes.into());
    let parity = codec.parity_of(&data);
    let fragments: Vec<Bytes> = data.into_iter().chain(parity.into_iter().map(Bytes::from)).collect();
    let slices: Vec<&[u8]> = fragments.iter().map(|fragment| &fragment[..]).collect();
    let fpcc = Fpcc::compute(&codec, HashId::Blake3, length as u64, &slices);
    Object { fpcc: fpcc.to_bytes(), fragments }
}

fn name(key: &str, index: u8) -> FragmentName {
    FragmentName { key: key.into(), version: 1, index }
}

fn open(path: &Path) -> Arc<Store> {
    Store::open(StoreOptions { capacity: Some(64 << 20), ..StoreOptions::new(path) }).unwrap()
}

/// In memory where that is to be had: for tests that open a store a thousand times.
fn quick_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn error(errno: i32) -> Fault {
    Arc::new(move || Err(std::io::Error::from_raw_os_error(errno)))
}

const C: Author = Author::Client;
const S: Space = Space::ObjectStore;

impl Store {
    fn keep_object(&self, key: &str, index: u8, object: &Object) -> Result<(), StoreError> {
        self.put(&C, &name(key, index), &object.fpcc, &object.fragments[usize::from(index)])
    }

    /// Every fragment there is verifies. How many.
    fn verified(&self) -> usize {
        let mut count = 0;
        for object in self.list(S, "", 1000).unwrap().objects {
            for index in object.indexes {
                let kept = self.get(S, &name(&object.key, index)).unwrap();
                Fpcc::parse(&kept.fpcc()).unwrap().check_bytes(index.into(), &kept.fragment()).unwrap();
                count += 1;
            }
        }
        count
    }

    /// From now on there is no room for data.
    pub(crate) fn fill(&self) {
        self.used.fetch_add(self.usage().available_bytes, Ordering::SeqCst);
    }

    fn crash(self: Arc<Self>) {
        self.upkeep.stop();
    }
}

#[test]
fn a_fragment_is_kept_and_found_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let kept = object(1, 5000);
    let store = open(folder.path());
    let (node, boot) = (store.node(), store.boot());
    store.keep_object("k", 1, &kept).unwrap();
    store.keep_object("k", 1, &kept).unwrap();
    assert_eq!(store.usage().fragments, 1);
    store.crash();
    let store = open(folder.path());
    assert_eq!(store.node(), node);
    assert_ne!(store.boot(), boot);
    let found = store.get(S, &name("k", 1)).unwrap();
    assert_eq!((&found.fpcc()[..], &found.fragment()), (&kept.fpcc[..], &kept.fragments[1]));
    assert_eq!(store.status(S, "k", 1).unwrap().indexes, [1]);
}

#[test]
fn what_is_inconsistent_is_refused_and_nothing_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let object = object(1, 5000);
    let mut flipped = object.fragments[0].to_vec();
    flipped[7] ^= 1;
    let refused: [(u8, &[u8], &[u8]); 6] = [
        (0, &object.fpcc, &flipped),
        (0, &object.fpcc, &object.fragments[1]),
        (0, &object.fpcc, &object.fragments[0][1..]),
        (4, &object.fpcc, &object.fragments[0]),
        (0, &object.fpcc[1..], &object.fragments[0]),
        (0, b"", &object.fragments[0]),
    ];
    for (index, fpcc, fragment) in refused {
        let result = store.put(&C, &name("k", index), fpcc, fragment);
        assert!(matches!(result, Err(StoreError::Inconsistent(_))), "{result:?}");
    }
    assert_eq!((store.usage().fragments, store.usage().used_bytes), (0, 0));
}

#[test]
fn another_fpcc_for_a_version_is_a_conflict_at_every_index() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.keep_object("k", 1, &object(1, 5000)).unwrap();
    for index in [1, 2] {
        let result = store.keep_object("k", index, &object(2, 5000));
        assert!(matches!(result, Err(StoreError::Conflict(_))), "{result:?}");
    }
    store.delete(&C, "k", 1, None).unwrap();
    store.keep_object("k", 2, &object(2, 5000)).unwrap();
    store.crash();
    let store = open(folder.path());
    assert_eq!(store.status(S, "k", 1).unwrap().indexes, [2]);
}

#[test]
fn of_two_fpccs_that_arrive_at_once_one_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let objects: Vec<_> = (0..4).map(|seed| object(seed * 2 + 1, 40_000)).collect();
    for round in 0..20 {
        let key = format!("k{round}");
        let results: Vec<_> = std::thread::scope(|scope| {
            let put = |i: usize| {
                let (store, object, key) = (&store, &objects[i], &key);
                scope.spawn(move || store.keep_object(key, i as u8, object))
            };
            let threads: Vec<_> = (0..4).map(put).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    }
    assert_eq!(store.verified(), 20);
}

#[test]
fn a_full_node_stays_readable_and_can_be_emptied_and_filled_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let kept = object(1, 400_000);
    for _ in 0..2 {
        let mut count = 0;
        let refused = loop {
            match store.keep_object(&format!("k{count:04}"), 0, &kept) {
                Ok(()) => count += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, StoreError::NoSpace { .. }), "{refused}");
        let kept_bytes = count * 200_000;
        assert!((58 << 20..60 << 20).contains(&kept_bytes), "{kept_bytes}");
        assert_eq!(store.verified(), count);
        store.flush_blocking().unwrap();
        assert!(on_disk(folder.path()) >= kept_bytes as u64);
        for i in 0..count {
            assert_eq!(store.delete(&C, &format!("k{i:04}"), 1, None).unwrap(), 1);
        }
        store.give_back();
        assert_eq!(store.usage().used_bytes, 0);
        assert!(on_disk(folder.path()) < 2 << 20, "{}", on_disk(folder.path()));
    }
}

fn segments(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path.join("segments")).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Bytes the file system gave the segments.
fn on_disk(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    segments(path).iter().map(|path| std::fs::metadata(path).unwrap().blocks() * 512).sum()
}

#[test]
fn small_fragments_give_their_blocks_back_when_neighbours_die() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let small = object(1, 600);
    (0..2000).for_each(|i| store.keep_object(&format!("{i}"), 0, &small).unwrap());
    store.flush_blocking().unwrap();
    let before = on_disk(folder.path());
    (0..1000).for_each(|i| {
        store.delete(&C, &format!("{i}"), 1, None).unwrap();
    });
    assert!(on_disk(folder.path()) > before * 9 / 10);
    store.give_back();
    assert!(on_disk(folder.path()) < before * 6 / 10, "{} of {before}", on_disk(folder.path()));
    assert_eq!(store.verified(), 1000);
}

#[test]
fn compaction_gives_back_what_scattered_deletions_leave() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.upkeep.stop();
    let small = object(1, 600);
    let count = 30_000;
    (0..count).for_each(|i| store.keep_object(&format!("{i:05}"), 0, &small).unwrap());
    store.flush_blocking().unwrap();
    let scattered = (0..count).filter(|i| i % 4 != 0);
    scattered.for_each(|i| {
        store.delete(&C, &format!("{i:05}"), 1, None).unwrap();
    });
    let (before, used) = (on_disk(folder.path()), store.usage().used_bytes);
    let held = store.get(S, &name("00000", 0)).unwrap();
    let sealed: Vec<_> = store.log.segments().into_iter().filter(|s| s.is_sealed()).collect();
    assert!(sealed.len() >= 3);
    for segment in sealed {
        assert!(segment.is_sparse() && segment.wastes_blocks().unwrap());
        store.compact(&segment).unwrap();
    }
    assert_eq!(store.usage().used_bytes, used);
    assert!(on_disk(folder.path()) < before / 2, "{} of {before}", on_disk(folder.path()));
    assert_eq!(held.fragment(), small.fragments[0]);
    let kept = || (0..count).step_by(4).map(|i| format!("{i:05}"));
    kept().for_each(|key| assert!(store.get(S, &name(&key, 0)).is_ok()));
    store.crash();
    let store = open(folder.path());
    assert_eq!(store.usage().fragments, kept().count() as u64);
    kept().for_each(|key| assert!(store.get(S, &name(&key, 0)).is_ok()));
}

#[test]
fn ten_thousand_small_fragments_make_few_files_and_one_flush() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let small = object(1, 2048);
    let flushes = store.counts.flushes.get();
    for counter in 0..10_000 {
        store.keep_object(&ObjectId { epoch: 1, counter }.key(), 0, &small).unwrap();
    }
    store.upkeep.stop();
    store.flush_blocking().unwrap();
    let background = segments(folder.path()).len() as u64;
    assert!(background <= 5, "{background} files");
    assert!(store.counts.flushes.get() - flushes <= 1 + background);
    assert_eq!(store.list(S, "", 1000).unwrap().objects.len(), 1000);
}

/// Bytes of the only segment's file behind its last record.
fn ahead(store: &Store) -> u64 {
    let [segment] = &store.log.segments()[..] else { panic!("one segment") };
    let end = segment.filled.load(Ordering::SeqCst).max(segment.length().unwrap());
    end - segment.filled.load(Ordering::SeqCst)
}

/// Put `count` small fragments and flush after each.
fn put_flushed(store: &Store, count: usize) {
    let small = object(1, 5000);
    for _ in 0..count {
        let key = format!("journal-{}", store.usage().fragments);
        store.keep_object(&key, 0, &small).unwrap();
        store.flush_blocking().unwrap();
    }
}

#[test]
fn small_flushed_puts_find_their_blocks_written_and_leave_none_behind() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    put_flushed(&store, 3);
    assert_eq!(ahead(&store), 0, "nothing is known yet of what is to come");
    put_flushed(&store, 1);
    let (room, length) = (ahead(&store), on_disk(folder.path()));
    assert!(room > 100_000, "{room}");
    put_flushed(&store, 20);
    assert_eq!(on_disk(folder.path()), length, "the file did not grow");
    store.close().unwrap();
    assert_eq!((ahead(&store), store.verified()), (0, 24));
    assert!(on_disk(folder.path()) < store.usage().used_bytes + 8192);
    assert!(segments(folder.path())[0].to_string_lossy().ends_with(".seg"));
}

#[test]
fn a_crash_leaves_no_room_that_was_written_ahead() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    put_flushed(&store, 10);
    assert!(ahead(&store) > 0);
    let used = store.usage().used_bytes;
    store.crash();
    let store = open(folder.path());
    assert_eq!((ahead(&store), store.verified(), store.usage().used_bytes), (0, 10, used));
    assert!(on_disk(folder.path()) < used + 8192);
}

/// A power loss may undo the cut of a segment that was sealed after it.
#[test]
fn zeros_behind_a_sealed_segment_go_at_the_next_start_and_anything_else_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    put_flushed(&store, 2);
    store.close().unwrap();
    store.crash();
    let path = &segments(folder.path())[0];
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.write_all_at(&vec![0; 600_000], length).unwrap();
    file.set_len(2 << 20).unwrap();
    open(folder.path()).crash();
    assert!(file.metadata().unwrap().len().abs_diff(length) < 64);
    file.write_all_at(&[1], length + 300_000).unwrap();
    let store = open(folder.path());
    assert_eq!((file.metadata().unwrap().len(), store.verified()), (length + 300_001, 2));
}

#[test]
fn large_fragments_are_not_written_twice() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let large = object(1, 200_000);
    for i in 0..10 {
        store.keep_object(&format!("k{i}"), 0, &large).unwrap();
        store.flush_blocking().unwrap();
    }
    assert_eq!(ahead(&store), 0);
}

#[test]
fn no_room_is_written_ahead_on_a_node_that_has_none_left() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let left = store.usage().available_bytes;
    store.used.fetch_add(left - 100_000, Ordering::SeqCst);
    put_flushed(&store, 10);
    assert_eq!(ahead(&store), 0);
    store.used.fetch_sub(left - 100_000, Ordering::SeqCst);
    put_flushed(&store, 1);
    assert!(ahead(&store) > 0);
}

#[test]
fn a_disk_that_takes_no_zeros_flushes_all_the_same() {
    let (folder, disk) = (quick_folder(), ModelledDisk::default());
    let options = StoreOptions {
        capacity: Some(64 << 20),
        disk: disk.plugged(),
        has_upkeep: false,
        ..StoreOptions::new(folder.path())
    };
    let store = Store::open(options).unwrap();
    put_flushed(&store, 3);
    store.keep_object("last", 0, &object(1, 5000)).unwrap();
    disk.watch(|act| match act {
        Act::Write => Err(std::io::Error::from_raw_os_error(libc::ENOSPC)),
        _ => Ok(()),
    });
    store.flush_blocking().unwrap();
    disk.watch(|_| Ok(()));
    put_flushed(&store, 3);
    assert_eq!((ahead(&store), store.verified()), (0, 7));
}

/// A crash may cut the last record anywhere.
#[test]
fn a_torn_tail_costs_only_what_was_torn() {
    let folder = quick_folder();
    let store = open(folder.path());
    let objects = [object(1, 300), object(2, 300)];
    store.keep_object("first", 0, &objects[0]).unwrap();
    store.keep_object("last", 0, &objects[1]).unwrap();
    store.crash();
    let [path] = &segments(folder.path())[..] else { panic!("one segment") };
    let whole = std::fs::read(path).unwrap();
    for length in whole.len() / 2 - 64..=whole.len() {
        let torn = copy_of(folder.path());
        std::fs::write(torn.path().join("segments").join(path.file_name().unwrap()), &whole[..length])
            .unwrap();
        let store = open(torn.path());
        let expected = usize::from(length >= whole.len() / 2) + usize::from(length == whole.len());
        let seen = store.verified();
        assert!(seen == expected || length.abs_diff(whole.len() / 2) < 64, "{seen} at {length}");
        store.keep_object("last", 0, &objects[1]).unwrap();
        store.crash();
        assert!(open(torn.path()).get(S, &name("last", 0)).is_ok());
    }
}

fn copy_of(path: &Path) -> tempfile::TempDir {
    let copy = quick_folder();
    std::fs::create_dir(copy.path().join("segments")).unwrap();
    std::fs::copy(path.join("node.json"), copy.path().join("node.json")).unwrap();
    for segment in segments(path) {
        std::fs::copy(&segment, copy.path().join("segments").join(segment.file_name().unwrap())).unwrap();
    }
    copy
}

/// Sealed or not, a flipped byte costs at most the record it is in.
#[test]
fn a_flipped_byte_anywhere_loses_at_most_its_own_record() {
    for sealed in [false, true] {
        let folder = quick_folder();
        let store = open(folder.path());
        let objects: Vec<_> = (0..3).map(|seed| object(seed * 2 + 1, 300)).collect();
        for (key, object) in ["a", "b", "c"].iter().zip(&objects) {
            store.keep_object(key, 0, object).unwrap();
        }
        if sealed {
            store.close().unwrap();
        }
        store.crash();
        let [path] = &segments(folder.path())[..] else { panic!("one segment") };
        let whole = std::fs::read(path).unwrap();
        let record = whole.len() / 3 / 64 * 64 + 64;
        for at in record..2 * record {
            let damaged = copy_of(folder.path());
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(damaged.path().join("segments").join(path.file_name().unwrap()), bytes).unwrap();
            let store = open(damaged.path());
            for (key, object) in [("a", &objects[0]), ("c", &objects[2])] {
                assert_eq!(store.get(S, &name(key, 0)).unwrap().fragment(), object.fragments[0], "{at}");
            }
            let good =
                store.get(S, &name("b", 0)).is_ok_and(|kept| kept.fragment() == objects[1].fragments[0]);
            let silent_padding = at - record >= 64 + 1 + objects[1].fpcc.len() + 150 || at == record + 4;
            assert_eq!(good, silent_padding, "byte {}", at - record);
            store.keep_object("b", 0, &objects[1]).unwrap();
            assert_eq!(store.verified(), 3);
        }
    }
}

#[test]
fn a_damaged_record_is_not_found_while_running() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let kept = object(1, 5000);
    store.keep_object("k", 0, &kept).unwrap();
    let [path] = &segments(folder.path())[..] else { panic!("one segment") };
    std::fs::write(path, vec![0; 5000]).unwrap();
    assert!(matches!(store.get(S, &name("k", 0)), Err(StoreError::NotFound(_))));
    assert!(store.has(S, &name("k", 0)).is_err(), "it does not say it has what it cannot give");
    store.keep_object("k", 0, &kept).unwrap();
    let length = std::fs::metadata(path).unwrap().len();
    std::fs::File::options().write(true).open(path).unwrap().set_len(length - 3000).unwrap();
    assert!(matches!(store.get(S, &name("k", 0)), Err(StoreError::Io { .. })));
    store.keep_object("k", 0, &kept).unwrap();
    assert_eq!(store.verified(), 1);
}

/// After a power loss every page is as it was at the last flush, or newer.
#[test]
fn a_power_loss_keeps_what_was_flushed_and_shows_nothing_torn() {
    for seed in 0..30u64 {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        store.upkeep.stop();
        let mut random = Random(seed);
        let objects: Vec<_> = (0..8).map(|seed| object(seed * 2 + 1, 3000 << (seed % 4))).collect();
        (0..30).for_each(|i| store.keep_object(&format!("f{i}"), 0, &objects[i % 8]).unwrap());
        delete(&store, 0..10);
        if seed % 2 == 0 {
            store.log.leave(None);
        }
        store.flush_blocking().unwrap();
        let flushed = copy_of(folder.path());
        delete(&store, 10..20);
        (0..20).for_each(|i| store.keep_object(&format!("n{i}"), 0, &objects[i % 8]).unwrap());
        let lost = lose_power(flushed.path(), folder.path(), &mut random);
        store.crash();
        let store = open(lost.path());
        let seen = store.verified();
        assert!((10..=50).contains(&seen), "seed {seed}: {seen}");
        for i in 20..30 {
            let kept = store.get(S, &name(&format!("f{i}"), 0)).unwrap();
            assert_eq!(kept.fragment(), objects[i % 8].fragments[0], "seed {seed}: f{i}");
        }
        for i in 0..10 {
            assert!(store.get(S, &name(&format!("f{i}"), 0)).is_err(), "seed {seed}: f{i} came back");
        }
    }
}

fn delete(store: &Store, keys: std::ops::Range<usize>) {
    for i in keys {
        assert_eq!(store.delete(&C, &format!("f{i}"), 1, None).unwrap(), 1);
    }
}

/// Mix the pages of two states of a folder. Pages of zeros become holes, as those punched are.
fn lose_power(old: &Path, new: &Path, random: &mut Random) -> tempfile::TempDir {
    let lost = copy_of(new);
    for path in segments(new) {
        let file_name = path.file_name().unwrap();
        // Sealed or not is the flushed state's: renaming comes after the flush.
        let before = std::fs::read(old.join("segments").join(file_name)).unwrap_or_default();
        let bytes = std::fs::read(&path).unwrap();
        let file = std::fs::File::create(lost.path().join("segments").join(file_name)).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for (page, new) in bytes.chunks(4096).enumerate() {
            let old = before.get(page * 4096..).unwrap_or_default();
            let kept = if random.next().is_multiple_of(3) { &old[..old.len().min(new.len())] } else { new };
            if kept.iter().any(|&byte| byte != 0) {
                file.write_all_at(kept, page as u64 * 4096).unwrap();
            }
        }
    }
    lost
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 31)
    }
}

/// The kernel reports a lost page once and then says that all is well.
#[test]
fn a_failed_flush_is_not_followed_by_a_success_that_means_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.upkeep.stop();
    let kept = object(1, 50_000);
    store.keep_object("k", 0, &kept).unwrap();
    let (boot, disk) = (store.boot(), folder.path().join("segments"));
    faults::set(&disk, Faults { sync: Some(error(libc::EIO)), ..Faults::default() });
    for _ in 0..3 {
        assert!(matches!(store.flush_blocking(), Err(StoreError::Flush(_))));
        assert_eq!(store.get(S, &name("k", 0)).unwrap().fragment(), kept.fragments[0]);
    }
    assert_ne!(store.boot(), boot);
    let poisoned = segments(folder.path());
    faults::set(&disk, Faults::default());
    store.flush_blocking().unwrap();
    assert!(segments(folder.path()).iter().all(|path| !poisoned.contains(path)), "copied to a new segment");
    assert_eq!(store.verified(), 1);
}

#[test]
fn a_page_lost_by_a_failed_flush_is_not_said_to_be_there() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.upkeep.stop();
    let objects = [object(1, 50_000), object(3, 50_000)];
    store.keep_object("good", 0, &objects[0]).unwrap();
    store.keep_object("lost", 0, &objects[1]).unwrap();
    let disk = folder.path().join("segments");
    faults::set(&disk, Faults { sync: Some(error(libc::EIO)), ..Faults::default() });
    assert!(store.flush_blocking().is_err());
    let boot = store.boot();
    let [path] = &segments(folder.path())[..] else { panic!("one segment") };
    let mut bytes = std::fs::read(path).unwrap();
    let length = bytes.len();
    bytes[length - 2000] ^= 1;
    std::fs::write(path, bytes).unwrap();
    faults::set(&disk, Faults::default());
    store.flush_blocking().unwrap();
    assert_ne!(store.boot(), boot, "who was told it is there must ask again");
    assert!(store.has(S, &name("good", 0)).is_ok());
    assert!(matches!(store.has(S, &name("lost", 0)), Err(StoreError::NotFound(_))));
}

#[test]
fn a_disk_that_is_full_refuses_data_and_forgets_what_it_began() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let kept = object(1, 50_000);
    store.keep_object("before", 0, &kept).unwrap();
    let (used, disk) = (store.usage().used_bytes, folder.path().join("segments"));
    for (errno, is_full) in [(libc::ENOSPC, true), (libc::EDQUOT, true), (libc::EIO, false)] {
        faults::set(&disk, Faults { write: Some(error(errno)), ..Faults::default() });
        let result = store.keep_object("k", 0, &kept);
        assert_eq!(matches!(result, Err(StoreError::NoSpace { .. })), is_full, "{result:?}");
        assert!(result.is_err() && store.get(S, &name("k", 0)).is_err());
    }
    assert_eq!(store.usage().used_bytes, used);
    assert_eq!(store.verified(), 1);
    assert_eq!(store.delete(&C, "before", 1, None).unwrap(), 1);
    faults::set(&disk, Faults::default());
    store.keep_object("k", 0, &object(3, 50_000)).unwrap();
    store.crash();
    assert_eq!(open(folder.path()).verified(), 1);
}

/// What a scan finds once the record around a forged one is damaged.
fn found_of_forged(seal: impl Fn(&Store) -> record::Seal) -> Vec<ObjectStatus> {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let inner = object(1, 300);
    let forged = Head {
        sequence: 99,
        space: S,
        key: "forged",
        version: 1,
        index: 0,
        fpcc: &inner.fpcc,
        fragment_length: 150,
        tree_groups: 0,
    };
    let encode = |bytes: &[u8]| {
        let codec = Codec::of("1+1".parse().unwrap());
        Fpcc::compute(&codec, HashId::Blake3, 5000, &[bytes, bytes]).to_bytes()
    };
    let mut bytes = vec![7; 5000];
    let begins = record::HEADER + "carrier".len() + encode(&bytes).len();
    let at = begins.next_multiple_of(64);
    let position = Position { segment: 1, offset: at as u64 };
    let record = [&forged.encode(&seal(&store), position), &inner.fragments[0][..]].concat();
    bytes[at - begins..][..record.len()].copy_from_slice(&record);
    store.put(&C, &name("carrier", 0), &encode(&bytes), &bytes).unwrap();
    store.crash();
    let [path] = &segments(folder.path())[..] else { panic!("one segment") };
    let mut damaged = std::fs::read(path).unwrap();
    damaged[0] ^= 1;
    std::fs::write(path, damaged).unwrap();
    open(folder.path()).list(S, "", 10).unwrap().objects
}

#[test]
fn a_client_cannot_hide_a_record_inside_a_fragment() {
    assert_eq!(found_of_forged(|_| record::Seal([0; 32])), []);
    assert_eq!(
        found_of_forged(|store| store.log.seal().clone()).len(),
        1,
        "it would be found with the right seal"
    );
}

#[test]
fn slices_verify_wherever_they_are_cut() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for length in [100, 32_768, 32_769, 32_770, 200_001, 1_000_000] {
        let object = object(length as u64, length);
        let (fpcc, key) = (Fpcc::parse(&object.fpcc).unwrap(), format!("k{length}"));
        store.keep_object(&key, 1, &object).unwrap();
        let end = object.fragments[1].len() as u64;
        for range in [0..1, 0..end, end - 1..end, end / 2..end / 2 + 1, end / 3..end] {
            let kept = store.slice(S, &name(&key, 1), range.clone()).unwrap();
            assert_eq!(kept.fpcc(), object.fpcc);
            let length = store.slice_length(S, &name(&key, 1), range.clone()).unwrap();
            assert_eq!(kept.body.len(), length);
            let root = fpcc.fragment_hash(1);
            let bytes = common::slice::verify_slice(root, end, range.clone(), kept.fragment()).unwrap();
            assert_eq!(bytes, object.fragments[1].slice(range.start as usize..range.end as usize));
        }
        for wrong in [0..0, std::ops::Range { start: 5, end: 4 }, 0..end + 1, u64::MAX - 1..u64::MAX] {
            assert!(matches!(store.slice(S, &name(&key, 1), wrong), Err(StoreError::Request(_))));
        }
    }
}

#[test]
fn a_damaged_tree_costs_time_and_a_damaged_fragment_its_slices() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let object = object(1, 200_000);
    store.keep_object("k", 0, &object).unwrap();
    let [path] = &segments(folder.path())[..] else { panic!("one segment") };
    let whole = std::fs::read(path).unwrap();
    let flip = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    flip(whole.len() - 100);
    let kept = store.slice(S, &name("k", 0), 50_000..50_010).unwrap();
    let root = *Fpcc::parse(&object.fpcc).unwrap().fragment_hash(0);
    assert!(common::slice::verify_slice(&root, 100_000, 50_000..50_010, kept.fragment()).is_ok());
    flip(64 + 1 + object.fpcc.len() + 50_000);
    assert!(store.slice(S, &name("k", 0), 0..10).is_ok());
    assert!(matches!(store.slice(S, &name("k", 0), 50_000..50_010), Err(StoreError::NotFound(_))));
    assert!(store.has(S, &name("k", 0)).is_err());
}

#[tokio::test]
async fn flushes_that_wait_share_one_round() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let turn = store.flushing.turn.clone().lock_owned().await;
    let (before, asked) = (store.counts.flushes.get(), store.flushing.asked.load(Ordering::SeqCst));
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            tokio::spawn({
                let store = store.clone();
                async move { store.flush().await }
            })
        })
        .collect();
    while store.flushing.asked.load(Ordering::SeqCst) < asked + 50 {
        tokio::task::yield_now().await;
    }
    drop(turn);
    for flushed in waiting {
        flushed.await.unwrap().unwrap();
    }
    assert_eq!(store.counts.flushes.get() - before, 1);
}

/// Put a fragment, and say whether its flush is carried out by the thread that asks for it.
async fn is_in_place(store: &Arc<Store>, segments: &Path, object: &Object) -> bool {
    store.keep_object(&format!("k{}", store.usage().fragments), 0, object).unwrap();
    let synced_by = Arc::new(Mutex::new(None));
    let (store, seen) = (store.clone(), synced_by.clone());
    let fault: Fault = Arc::new(move || {
        *seen.lock() = Some(std::thread::current().id());
        Ok(())
    });
    faults::set(segments, Faults { sync: Some(fault), ..Faults::default() });
    let flushing = tokio::spawn(async move {
        let asking = std::thread::current().id();
        store.flush().await.unwrap();
        *synced_by.lock() == Some(asking)
    });
    flushing.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_that_will_be_short_is_not_handed_over_and_any_other_is() {
    let folder = quick_folder();
    let (store, segments) = (open(folder.path()), folder.path().join("segments"));
    store.upkeep.stop();
    let (small, large) = (object(1, 5000), object(1, 200_000));
    let was_short = |short| store.flushing.was_short.store(short, Ordering::SeqCst);
    was_short(true);
    assert!(is_in_place(&store, &segments, &small).await);
    was_short(false);
    assert!(!is_in_place(&store, &segments, &small).await, "the last one took long");
    was_short(true);
    assert!(!is_in_place(&store, &segments, &large).await, "there is much to write");
    was_short(true);
    let place = flush::Place::take();
    assert!(place.is_some());
    assert!(!is_in_place(&store, &segments, &small).await, "another thread waits for a disk already");
    drop(place);
    was_short(true);
    assert!(is_in_place(&store, &segments, &small).await);
}

#[test]
fn a_disk_that_takes_its_time_and_one_that_fails_are_waited_for_elsewhere() {
    let folder = quick_folder();
    let (store, segments) = (open(folder.path()), folder.path().join("segments"));
    let slow: Fault = Arc::new(|| {
        std::thread::sleep(2 * flush::SHORT);
        Ok(())
    });
    for fault in [slow, error(libc::EIO)] {
        store.flushing.was_short.store(true, Ordering::SeqCst);
        store.keep_object(&format!("k{}", store.usage().fragments), 0, &object(1, 5000)).unwrap();
        faults::set(&segments, Faults { sync: Some(fault), ..Faults::default() });
        let _either = store.flush_blocking();
        assert!(!store.flushing.was_short.load(Ordering::SeqCst));
    }
    faults::set(&segments, Faults::default());
    let is_short = || store.flush_blocking().is_ok() && store.flushing.was_short.load(Ordering::SeqCst);
    assert!((0..1000).any(|_| is_short()), "on a disk in memory one of a thousand is");
}

/// Writers with names of their own put, delete, read and flush while segments roll, are compacted and removed.
#[test]
fn what_each_writer_did_last_is_what_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        Store::open(StoreOptions { capacity: Some(16 << 20), ..StoreOptions::new(folder.path()) }).unwrap()
    };
    let store = open();
    let objects: Vec<_> =
        [500, 900, 1500, 2500, 4000, 80_000].map(|length| object(length, length as usize)).into();
    let models: Vec<Vec<Option<usize>>> = std::thread::scope(|scope| {
        let writer = |id: u64| {
            let (store, objects) = (&store, &objects);
            scope.spawn(move || act(store, objects, id))
        };
        let writers: Vec<_> = (0..4).map(writer).collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    let check = |store: &Store| {
        let mut fragments = 0;
        for (id, model) in models.iter().enumerate() {
            for (i, kept) in model.iter().enumerate() {
                let found = store.get(S, &name(&format!("w{id}-{i}"), 0)).ok().map(|found| found.fragment());
                assert_eq!(found, kept.map(|kept| objects[kept].fragments[0].clone()), "w{id}-{i}");
                fragments += u64::from(kept.is_some());
            }
        }
        assert_eq!(store.usage().fragments, fragments);
        store.usage().used_bytes
    };
    let used = check(&store);
    assert!(store.counts.compactions.get() > 0, "segments were compacted meanwhile");
    store.crash();
    assert_eq!(check(&open()), used);
}

/// What is kept of each of a writer's names after it did many things to them.
fn act(store: &Store, objects: &[Object], id: u64) -> Vec<Option<usize>> {
    let mut random = Random(id);
    let mut model: Vec<Option<usize>> = vec![None; 300];
    // Until compaction came by as well, which on a busy machine it may not soon.
    let is_compacted = || store.counts.compactions.get() > 0;
    for step in (0..).take_while(|step| *step < 6000 || *step < 600_000 && !is_compacted()) {
        let i = random.next() as usize % model.len();
        let (key, choice) = (format!("w{id}-{i}"), random.next() as usize % objects.len());
        match (random.next() % 8, model[i]) {
            (0, Some(kept)) if kept != choice => {
                let conflict = store.keep_object(&key, 0, &objects[choice]);
                assert!(matches!(conflict, Err(StoreError::Conflict(_))), "{conflict:?}");
            }
            (1..4, Some(_)) => {
                assert_eq!(store.delete(&C, &key, 1, None).unwrap(), 1);
                store.give_back();
                model[i] = None;
            }
            (_, Some(kept)) => {
                let found = store.get(S, &name(&key, 0)).unwrap();
                assert_eq!(found.fragment(), objects[kept].fragments[0], "{key}");
            }
            (_, None) if step % 3 == 0 || choice < 4 => match store.keep_object(&key, 0, &objects[choice]) {
                Ok(()) => model[i] = Some(choice),
                Err(error) => assert!(matches!(error, StoreError::NoSpace { .. }), "{error}"),
            },
            _ => assert!(store.has(S, &name(&key, 0)).is_err()),
        }
        if step % 500 == 0 {
            store.flush_blocking().unwrap();
        }
    }
    model
}

/// A disk on which `happening` comes before the first record that is written from now on.
fn while_writing(disk: &Path, happening: impl Fn() + Send + Sync + 'static) {
    let first = std::sync::atomic::AtomicBool::new(true);
    let fault: Fault = Arc::new(move || {
        if first.swap(false, Ordering::SeqCst) {
            happening();
        }
        Ok(())
    });
    faults::set(disk, Faults { write: Some(fault), ..Faults::default() });
}

#[test]
fn another_fpcc_is_refused_while_the_first_is_still_being_written() {
    let folder = tempfile::tempdir().unwrap();
    let (store, disk) = (open(folder.path()), folder.path().join("segments"));
    let second = store.clone();
    while_writing(&disk, move || {
        for index in [0, 1] {
            let result = second.keep_object("k", index, &object(3, 500));
            assert!(matches!(result, Err(StoreError::Conflict(_))), "{result:?}");
        }
        second.keep_object("k", 0, &object(1, 500)).unwrap();
        second.keep_object("k", 1, &object(1, 500)).unwrap();
    });
    store.keep_object("k", 0, &object(1, 500)).unwrap();
    faults::set(&disk, Faults::default());
    assert_eq!((store.verified(), store.usage().fragments), (2, 2));
}

#[test]
fn what_is_deleted_while_compaction_copies_it_stays_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let (store, disk) = (open(folder.path()), folder.path().join("segments"));
    store.upkeep.stop();
    store.keep_object("gone", 0, &object(1, 500)).unwrap();
    store.keep_object("kept", 0, &object(3, 500)).unwrap();
    store.log.leave(None);
    store.flush_blocking().unwrap();
    let deleting = store.clone();
    while_writing(&disk, move || {
        deleting.delete(&C, "gone", 1, None).unwrap();
        deleting.keep_object("gone", 0, &object(5, 500)).unwrap();
    });
    store.compact(&store.log.segment(1).unwrap()).unwrap();
    faults::set(&disk, Faults::default());
    assert!(store.log.segment(1).is_none());
    let check = |store: &Store| {
        assert_eq!(store.verified(), 2);
        assert_eq!(store.get(S, &name("gone", 0)).unwrap().fragment(), object(5, 500).fragments[0]);
    };
    check(&store);
    let used = store.usage().used_bytes;
    store.crash();
    let store = open(folder.path());
    check(&store);
    assert_eq!(store.usage().used_bytes, used);
}

/// A copy of a deleted record is younger on disk than what came after the deletion, but not by its sequence.
#[test]
fn of_two_fpccs_found_on_disk_the_one_put_last_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let (old, new) = (object(1, 500), object(3, 500));
    store.keep_object("k", 0, &old).unwrap();
    let old_head = Head {
        sequence: 1,
        space: S,
        key: "k",
        version: 1,
        index: 0,
        fpcc: &old.fpcc,
        fragment_length: 250,
        tree_groups: 0,
    };
    store.delete(&C, "k", 1, None).unwrap();
    store.keep_object("k", 1, &new).unwrap();
    store.log.append(&old_head, &old.fragments[0], &[], true).unwrap();
    store.crash();
    for _ in 0..2 {
        let store = open(folder.path());
        assert_eq!(store.status(S, "k", 1).unwrap().indexes, [1]);
        assert_eq!(store.get(S, &name("k", 1)).unwrap().fragment(), new.fragments[1]);
        store.crash();
    }
}

/// A crash after a compaction's copy and before the original was removed.
#[test]
fn of_two_copies_found_on_disk_one_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.keep_object("k", 0, &object(1, 500)).unwrap();
    store.close().unwrap();
    let used = store.usage().used_bytes;
    let before = copy_of(folder.path());
    store.move_out(&store.log.segment(1).unwrap()).unwrap();
    store.flush_blocking().unwrap();
    store.crash();
    std::fs::copy(&segments(before.path())[0], folder.path().join("segments/00000001.seg")).unwrap();
    for _ in 0..2 {
        let store = open(folder.path());
        assert_eq!((store.verified(), store.usage().used_bytes), (1, used));
        store.delete(&C, "k", 1, None).unwrap();
        store.keep_object("k", 0, &object(1, 500)).unwrap();
        store.crash();
    }
}
