//! Verified data fragments, in memory and then on the local disk, least recently used out first.
//! It knows no network; what it is given was checked, and what it reads back from disk it checks itself.

mod disk;

use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use common::wire::ObjectId;
use lru::LruCache;
use parking_lot::Mutex;

use crate::buffers::{Buffers, LARGE};
use crate::error::Result;
use disk::Disk;

/// What a fragment in memory costs besides its bytes: its entry in map and list, and the shared handle.
const ENTRY_BYTES: u64 = 200;

/// Fragments that passed by and are remembered by name alone, so that they are kept when they come again.
const PASSED: NonZeroUsize = NonZeroUsize::new(16 << 10).expect("not zero");

/// Which fragment: the object and the index.
type Key = (ObjectId, u8);

/// How likely a fragment is to be asked for again once memory has lost it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reuse {
    /// As any other.
    Likely,
    /// It was fetched ahead of somebody who reads everything once. It goes to disk only if it was here before: what is
    /// read a single time would push out what is read often, and writing it costs as much as fetching it did.
    Unlikely,
}

/// How much may be kept, and where.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// Bytes in memory, with what it costs to find them.
    pub memory_bytes: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Folder of the disk level, made if absent and emptied; none: memory only.
    pub disk: Option<PathBuf>,
}

/// What a cache did and holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct CacheStats {
    /// Fragments found in memory.
    pub memory_hits: u64,
    /// Fragments asked for and not in memory.
    pub memory_misses: u64,
    /// Bytes in memory, overhead included.
    pub memory_bytes: u64,
    /// Fragments in memory.
    pub memory_fragments: u64,
    /// Fragments, whole or in part, found on disk and good.
    pub disk_hits: u64,
    /// Fragments asked for and not on disk.
    pub disk_misses: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// Fragments on disk.
    pub disk_fragments: u64,
    /// Fragments on disk whose bytes had changed.
    pub disk_rotten: u64,
    /// Fragments that left memory and were not written to disk because the disk was behind.
    pub disk_skipped: u64,
    /// Fragments that left memory and were not written to disk because they were read ahead for the first time.
    pub disk_passed: u64,
}

/// See the module. Besides its two bounds it holds up to `disk::QUEUE_BYTES` on their way from memory to disk, and
/// in memory a thousandth of what is on disk and the names of `PASSED` fragments.
pub struct Cache {
    memory: Mutex<Memory>,
    passed: Mutex<LruCache<Key, ()>>,
    passed_by: AtomicU64,
    memory_hits: AtomicU64,
    memory_misses: AtomicU64,
    disk: Option<Disk>,
}

impl Cache {
    /// An empty cache; what an earlier one left in the disk folder is removed.
    pub fn open(options: CacheOptions) -> Result<Arc<Cache>> {
        let disk = match options.disk {
            Some(folder) if options.disk_bytes > 0 => Some(Disk::open(folder, options.disk_bytes)?),
            _ => None,
        };
        Ok(Arc::new(Cache {
            memory: Mutex::new(Memory::new(options.memory_bytes)),
            passed: Mutex::new(LruCache::new(PASSED)),
            passed_by: AtomicU64::new(0),
            memory_hits: AtomicU64::new(0),
            memory_misses: AtomicU64::new(0),
            disk,
        }))
    }

    /// From memory.
    pub fn get(&self, object: ObjectId, index: u8) -> Option<Bytes> {
        let found = self.memory.lock().get((object, index));
        let counter = if found.is_some() { &self.memory_hits } else { &self.memory_misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// The whole fragment from disk, checked; it is in memory afterwards.
    pub async fn get_disk(&self, object: ObjectId, index: u8) -> Option<Bytes> {
        let fragment = self.disk.as_ref()?.get((object, index)).await?;
        self.insert(object, index, fragment.clone(), Reuse::Likely);
        Some(fragment)
    }

    /// A range of a fragment from disk; only the blocks it touches are read and checked.
    pub async fn get_disk_range(&self, object: ObjectId, index: u8, range: Range<usize>) -> Option<Bytes> {
        self.disk.as_ref()?.get_range((object, index), range).await
    }

    /// Keep a fragment. Only bytes that passed the FPCC check.
    pub fn insert(&self, object: ObjectId, index: u8, fragment: Bytes, reuse: Reuse) {
        let key = (object, index);
        if self.memory.lock().get(key).is_some() {
            return;
        }
        let fragment = unpinned(fragment);
        let victims = self.memory.lock().insert(key, fragment, reuse);
        let Some(disk) = &self.disk else { return };
        for (key, fragment, reuse) in victims {
            if reuse == Reuse::Likely || self.was_here_before(key) {
                disk.offer(key, fragment);
            } else {
                self.passed_by.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Whether it passed by before; from now on it did.
    fn was_here_before(&self, key: Key) -> bool {
        self.passed.lock().put(key, ()).is_some()
    }

    /// Forget every fragment of an object.
    pub fn remove(&self, object: ObjectId) {
        let _freed_unlocked = self.memory.lock().remove(object);
        if let Some(disk) = &self.disk {
            disk.remove(object);
        }
    }

    /// What it did and holds.
    pub fn stats(&self) -> CacheStats {
        let mut stats = CacheStats {
            memory_hits: self.memory_hits.load(Ordering::Relaxed),
            memory_misses: self.memory_misses.load(Ordering::Relaxed),
            disk_passed: self.passed_by.load(Ordering::Relaxed),
            ..CacheStats::default()
        };
        if let Some(disk) = &self.disk {
            disk.count_in(&mut stats);
        }
        let memory = self.memory.lock();
        CacheStats { memory_bytes: memory.bytes, memory_fragments: memory.fragments.len() as u64, ..stats }
    }
}

/// The fragment in memory that holds little more than itself. A slice of a larger buffer is copied out of it.
/// The origin of small ones is not known; copying them costs microseconds.
fn unpinned(fragment: Bytes) -> Bytes {
    if fragment.len() < LARGE {
        return Bytes::copy_from_slice(&fragment);
    }
    if Buffers::shared().held_by(&fragment) <= fragment.len() + fragment.len() / 4 {
        return fragment;
    }
    let mut own = Buffers::shared().take(fragment.len());
    own.extend_from_slice(&fragment);
    own.freeze()
}

/// The level in memory.
struct Memory {
    /// With the bytes each is counted for.
    fragments: LruCache<Key, (Bytes, u64, Reuse)>,
    bytes: u64,
    bound: u64,
}

impl Memory {
    fn new(bound: u64) -> Memory {
        Memory { fragments: LruCache::unbounded(), bytes: 0, bound }
    }

    fn get(&mut self, key: Key) -> Option<Bytes> {
        self.fragments.get(&key).map(|(fragment, ..)| fragment.clone())
    }

    /// What had to go for it; the fragment itself where it alone is more than the bound.
    fn insert(&mut self, key: Key, fragment: Bytes, reuse: Reuse) -> Vec<(Key, Bytes, Reuse)> {
        let cost = Buffers::shared().held_by(&fragment) as u64 + ENTRY_BYTES;
        if cost > self.bound {
            return vec![(key, fragment, reuse)];
        }
        if let Some((_, replaced, _)) = self.fragments.put(key, (fragment, cost, reuse)) {
            self.bytes -= replaced;
        }
        self.bytes += cost;
        let mut victims = Vec::new();
        while self.bytes > self.bound {
            let (key, (fragment, cost, reuse)) =
                self.fragments.pop_lru().expect("bytes are those of fragments");
            self.bytes -= cost;
            victims.push((key, fragment, reuse));
        }
        victims
    }

    fn remove(&mut self, object: ObjectId) -> Vec<Bytes> {
        let found = (0..=u8::MAX).filter_map(|index| self.fragments.pop(&(object, index)));
        let (fragments, costs): (Vec<Bytes>, Vec<u64>) =
            found.map(|(fragment, cost, _)| (fragment, cost)).unzip();
        self.bytes -= costs.iter().sum::<u64>();
        fragments
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::path::Path;

    const KIB: usize = 1 << 10;

    fn object(counter: u64) -> ObjectId {
        ObjectId { epoch: 1, counter }
    }

    /// Bytes of its own that differ from object to object.
    fn fragment(counter: u64, length: usize) -> Bytes {
        let mut buffer = Buffers::shared().take(length);
        for place in 0..length {
            buffer.extend_from_slice(&[(place as u64 * 31 + counter * 7 + place as u64 / 256) as u8]);
        }
        buffer.freeze()
    }

    fn open(memory_bytes: usize, disk_bytes: usize, folder: Option<&Path>) -> Arc<Cache> {
        let disk = folder.map(Path::to_path_buf);
        Cache::open(CacheOptions { memory_bytes: memory_bytes as u64, disk_bytes: disk_bytes as u64, disk })
            .unwrap()
    }

    /// A cache with room for one fragment of 256 KiB in memory, and fragments 0 to 3 of which the first three are
    /// on disk.
    fn spilled(folder: &Path) -> Arc<Cache> {
        let cache = open(300 * KIB, 10_000 * KIB, Some(folder));
        for counter in 0..4 {
            cache.insert(object(counter), 0, fragment(counter, 256 * KIB), Reuse::Likely);
            cache.disk.as_ref().unwrap().settle();
        }
        assert_eq!(cache.stats().disk_fragments, 3);
        cache
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = folder.read_dir().unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn what_was_put_in_comes_out_until_it_is_removed() {
        let cache = open(1000 * KIB, 0, None);
        for index in [0, 2, 254] {
            cache.insert(object(1), index, fragment(u64::from(index), 100 * KIB), Reuse::Likely);
        }
        assert_eq!(cache.get(object(1), 2), Some(fragment(2, 100 * KIB)));
        assert_eq!(cache.get(object(1), 1), None);
        assert_eq!(cache.get(object(2), 0), None);
        cache.remove(object(1));
        assert_eq!(cache.get(object(1), 254), None);
        let stats = cache.stats();
        assert_eq!((stats.memory_hits, stats.memory_misses), (1, 3));
        assert_eq!((stats.memory_bytes, stats.memory_fragments), (0, 0));
    }

    #[test]
    fn memory_stays_within_its_bound_and_loses_the_least_recently_used() {
        let cache = open(1000 * KIB, 0, None);
        for counter in 0..20 {
            cache.insert(object(counter), 0, fragment(counter, 100 * KIB), Reuse::Likely);
            cache.get(object(0), 0);
            assert!(cache.stats().memory_bytes <= 1000 * KIB as u64);
        }
        let kept: Vec<u64> = (0..20).filter(|counter| cache.get(object(*counter), 0).is_some()).collect();
        assert_eq!(kept.first(), Some(&0));
        assert!(kept.len() >= 8 && kept[1..].iter().all(|counter| *counter > 11), "{kept:?}");
    }

    #[test]
    fn tiny_fragments_are_counted_with_their_overhead() {
        let cache = open(100 * ENTRY_BYTES as usize, 0, None);
        for counter in 0..1000 {
            cache.insert(object(counter), 0, fragment(counter, 1), Reuse::Likely);
        }
        assert_eq!(cache.stats().memory_fragments, 99);
    }

    #[test]
    fn a_slice_does_not_keep_its_receive_buffer() {
        let cache = open(10_000 * KIB, 0, None);
        let body = fragment(1, 4000 * KIB);
        for (index, range) in [(0, 5..5 + 300 * KIB), (1, 0..10), (2, 4..4000 * KIB)] {
            let slice = body.slice(range);
            cache.insert(object(1), index, slice.clone(), Reuse::Likely);
            let kept = cache.get(object(1), index).unwrap();
            assert_eq!(kept, slice);
            let held = Buffers::shared().held_by(&kept);
            assert!(held <= slice.len() + slice.len() / 4, "{held} held for {}", slice.len());
        }
        assert_eq!(
            cache.get(object(1), 2).unwrap().as_ptr(),
            body[4..].as_ptr(),
            "nearly all of it: no copy"
        );
    }

    #[test]
    fn what_is_larger_than_memory_is_not_kept_there() {
        let cache = open(100 * KIB, 0, None);
        cache.insert(object(1), 0, fragment(1, 10 * KIB), Reuse::Likely);
        cache.insert(object(2), 0, fragment(2, 200 * KIB), Reuse::Likely);
        assert_eq!((cache.get(object(1), 0).is_some(), cache.get(object(2), 0)), (true, None));
    }

    #[tokio::test]
    async fn what_memory_loses_comes_back_from_disk_and_into_memory() {
        let folder = tempfile::tempdir().unwrap();
        let cache = spilled(folder.path());
        assert_eq!(cache.get(object(1), 0), None);
        assert_eq!(cache.get_disk(object(1), 0).await, Some(fragment(1, 256 * KIB)));
        assert_eq!(cache.get(object(1), 0), Some(fragment(1, 256 * KIB)));
        assert_eq!(cache.get_disk(object(9), 0).await, None);
        let stats = cache.stats();
        assert_eq!((stats.disk_hits, stats.disk_misses), (1, 1));
    }

    #[test]
    fn what_is_read_ahead_goes_to_disk_only_when_it_comes_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(300 * KIB, 10_000 * KIB, Some(folder.path()));
        let pass = || {
            for counter in 0..4 {
                cache.insert(object(counter), 0, fragment(counter, 256 * KIB), Reuse::Unlikely);
            }
            cache.disk.as_ref().unwrap().settle();
            let stats = cache.stats();
            (stats.disk_fragments, stats.disk_passed)
        };
        assert_eq!(pass(), (0, 3), "the last is still in memory");
        assert_eq!(pass(), (3, 4), "the last passes by for the first time");
    }

    #[tokio::test]
    async fn a_range_comes_from_disk_alone() {
        let folder = tempfile::tempdir().unwrap();
        let cache = spilled(folder.path());
        let whole = fragment(2, 256 * KIB);
        for range in [0..1, 100..200, 16 * KIB - 1..16 * KIB + 1, 200 * KIB..256 * KIB, 0..256 * KIB, 5..5] {
            assert_eq!(cache.get_disk_range(object(2), 0, range.clone()).await, Some(whole.slice(range)));
        }
        assert_eq!(cache.get_disk_range(object(2), 0, 0..256 * KIB + 1).await, None);
        assert_eq!(cache.get(object(2), 0), None);
    }

    #[tokio::test]
    async fn rotten_bytes_are_a_miss_and_gone() {
        let folder = tempfile::tempdir().unwrap();
        let cache = spilled(folder.path());
        let file = &files(folder.path())[1];
        let mut bytes = std::fs::read(file).unwrap();
        bytes[100 * KIB] ^= 1;
        std::fs::write(file, &bytes).unwrap();
        let untouched = cache.get_disk_range(object(1), 0, 0..50 * KIB).await;
        assert_eq!(
            untouched,
            Some(fragment(1, 256 * KIB).slice(..50 * KIB)),
            "only what is touched is checked"
        );
        assert_eq!(cache.get_disk_range(object(1), 0, 99 * KIB..101 * KIB).await, None);
        assert_eq!(cache.get_disk(object(1), 0).await, None);
        assert_eq!(cache.stats().disk_rotten, 1);
        assert_eq!(files(folder.path()).len(), 2);
    }

    #[tokio::test]
    async fn a_file_cut_short_or_gone_is_a_miss() {
        let folder = tempfile::tempdir().unwrap();
        let cache = spilled(folder.path());
        let whole_blocks_cut_off = File::options().write(true).open(&files(folder.path())[0]).unwrap();
        whole_blocks_cut_off.set_len(64 * KIB as u64).unwrap();
        std::fs::remove_file(&files(folder.path())[1]).unwrap();
        assert_eq!(cache.get_disk(object(0), 0).await, None);
        assert_eq!(cache.get_disk(object(1), 0).await, None);
        assert!(cache.get_disk(object(2), 0).await.is_some());
        assert_eq!(cache.stats().disk_rotten, 2);
    }

    #[test]
    fn the_disk_stays_within_its_bound() {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(0, 1000 * KIB, Some(folder.path()));
        for counter in 0..12 {
            cache.insert(object(counter), 0, fragment(counter, 256 * KIB), Reuse::Likely);
            cache.disk.as_ref().unwrap().settle();
            let on_disk: u64 = files(folder.path()).iter().map(|file| file.metadata().unwrap().len()).sum();
            assert!(on_disk <= 1000 * KIB as u64 && cache.stats().disk_bytes <= 1000 * KIB as u64);
        }
        assert_eq!((files(folder.path()).len(), cache.stats().disk_fragments), (3, 3));
    }

    #[tokio::test]
    async fn small_fragments_do_not_go_to_disk() {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(0, 1000 * KIB, Some(folder.path()));
        cache.insert(object(1), 0, fragment(1, 15 * KIB), Reuse::Likely);
        cache.disk.as_ref().unwrap().settle();
        assert_eq!(files(folder.path()).len(), 0);
    }

    #[tokio::test]
    async fn a_removed_object_is_gone_from_disk_too() {
        let folder = tempfile::tempdir().unwrap();
        let cache = spilled(folder.path());
        cache.remove(object(0));
        cache.disk.as_ref().unwrap().settle();
        assert_eq!(cache.get_disk(object(0), 0).await, None);
        assert_eq!((files(folder.path()).len(), cache.stats().disk_fragments), (2, 2));
    }

    #[test]
    fn opening_removes_what_an_earlier_cache_left_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        drop(spilled(folder.path()));
        assert_eq!(files(folder.path()).len(), 3);
        let mut others = ["notes.fragment", "0123456789abcdef.txt"].map(|name| folder.path().join(name));
        others.iter().for_each(|file| std::fs::write(file, b"mine").unwrap());
        let cache = open(0, 1000 * KIB, Some(folder.path()));
        others.sort();
        assert_eq!(files(folder.path()), others);
        assert_eq!(cache.stats(), CacheStats::default());
    }

    #[tokio::test]
    async fn a_disk_that_is_behind_is_passed_by_and_costs_nothing_but_the_fragment() {
        let folder = tempfile::tempdir().unwrap();
        let cache = open(0, 100_000 * KIB, Some(folder.path()));
        let held = cache.disk.as_ref().unwrap().hold_up();
        for counter in 0..100 {
            cache.insert(object(counter), 0, fragment(counter, 1000 * KIB), Reuse::Likely);
        }
        drop(held);
        cache.disk.as_ref().unwrap().settle();
        let stats = cache.stats();
        assert_eq!(stats.disk_fragments + stats.disk_skipped, 100);
        assert!((10..=20).contains(&stats.disk_fragments), "{stats:?}");
    }
}
