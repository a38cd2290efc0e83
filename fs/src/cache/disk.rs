//! The level on disk: one file per fragment, written by one thread in the background, checked when read back.
//! What each block must hash to stays in memory, because the local disk may rot.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use common::wire::ObjectId;
use lru::LruCache;
use parking_lot::Mutex;

use super::{CacheStats, Key};
use crate::buffers::Buffers;
use crate::error::{Error, Result};

/// Most bytes waiting to be written; what comes when there are more is not kept.
pub const QUEUE_BYTES: u64 = 16 << 20;
/// Most jobs waiting.
const QUEUE_JOBS: usize = 1024;
/// Shorter fragments are not worth a file.
const LEAST_BYTES: usize = 16 << 10;
/// Checked as one: a small read costs this much.
const BLOCK: usize = 16 << 10;
/// Files take whole ones.
const DISK_PAGE: u64 = 4096;
/// Nothing else in the folder is ever touched.
const SUFFIX: &str = "fragment";

/// A block's BLAKE3, its first half: an accident needs 2^64 tries to go unseen.
type Check = [u8; 16];

/// See the module.
pub struct Disk {
    shared: Arc<Shared>,
    /// None only while it is dropped.
    queue: Option<SyncSender<Job>>,
    writer: Option<JoinHandle<()>>,
}

struct Shared {
    folder: PathBuf,
    bound: u64,
    index: Mutex<Index>,
    queued_bytes: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    rotten: AtomicU64,
    skipped: AtomicU64,
    /// A write failed, and it was said; the next are tried all the same.
    troubled: AtomicBool,
}

struct Index {
    fragments: LruCache<Key, Arc<Kept>>,
    bytes: u64,
    /// Names are never used twice, so no reader finds another fragment under the name it was given.
    next_name: u64,
    closing: bool,
}

/// A fragment on disk.
struct Kept {
    name: u64,
    length: usize,
    checks: Box<[Check]>,
}

enum Job {
    Write(Key, Bytes),
    Unlink(Vec<Arc<Kept>>),
    #[cfg(test)]
    Rendezvous(Arc<std::sync::Barrier>),
}

impl Disk {
    pub fn open(folder: PathBuf, bound: u64) -> Result<Disk> {
        clear(&folder).map_err(|error| Error::Host(format!("cache folder {}: {error}", folder.display())))?;
        let index = Index { fragments: LruCache::unbounded(), bytes: 0, next_name: 0, closing: false };
        let shared = Arc::new(Shared {
            folder,
            bound,
            index: Mutex::new(index),
            queued_bytes: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            rotten: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            troubled: AtomicBool::new(false),
        });
        let (queue, jobs) = sync_channel(QUEUE_JOBS);
        let worker = shared.clone();
        let writer = std::thread::Builder::new()
            .name("cache-disk".into())
            .spawn(move || worker.work(jobs))
            .map_err(|error| Error::Host(format!("no thread for the cache: {error}")))?;
        Ok(Disk { shared, queue: Some(queue), writer: Some(writer) })
    }

    /// Have it written, if the writer is not behind. Never waits.
    pub fn offer(&self, key: Key, fragment: Bytes) {
        let shared = &self.shared;
        let bytes = fragment.len() as u64;
        let here = shared.index.lock().fragments.get(&key).is_some();
        if here || fragment.len() < LEAST_BYTES || bytes > shared.bound {
            return;
        }
        let waiting = shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        if waiting + bytes > QUEUE_BYTES || self.queue().try_send(Job::Write(key, fragment)).is_err() {
            shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            shared.skipped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The whole fragment.
    pub async fn get(&self, key: Key) -> Option<Bytes> {
        self.find(key, |kept| Some(0..kept.length)).await
    }

    /// A range of it; none if it ends beyond the fragment.
    pub async fn get_range(&self, key: Key, range: Range<usize>) -> Option<Bytes> {
        self.find(key, |kept| (range.start <= range.end && range.end <= kept.length).then_some(range)).await
    }

    async fn find(&self, key: Key, range: impl FnOnce(&Kept) -> Option<Range<usize>>) -> Option<Bytes> {
        let kept = self.shared.index.lock().fragments.get(&key).cloned();
        let found = match kept.and_then(|kept| Some((range(&kept)?, kept))) {
            Some((range, kept)) => {
                let shared = self.shared.clone();
                tokio::task::spawn_blocking(move || shared.read(key, &kept, range)).await.ok().flatten()
            }
            None => None,
        };
        let counter = if found.is_some() { &self.shared.hits } else { &self.shared.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    pub fn remove(&self, object: ObjectId) {
        let gone = self.shared.index.lock().take_object(object);
        if gone.is_empty() {
            return;
        }
        if let Err(TrySendError::Full(Job::Unlink(gone)) | TrySendError::Disconnected(Job::Unlink(gone))) =
            self.queue().try_send(Job::Unlink(gone))
        {
            self.shared.unlink(&gone);
        }
    }

    pub fn count_in(&self, stats: &mut CacheStats) {
        let index = self.shared.index.lock();
        stats.disk_hits = self.shared.hits.load(Ordering::Relaxed);
        stats.disk_misses = self.shared.misses.load(Ordering::Relaxed);
        stats.disk_rotten = self.shared.rotten.load(Ordering::Relaxed);
        stats.disk_skipped = self.shared.skipped.load(Ordering::Relaxed);
        stats.disk_bytes = index.bytes;
        stats.disk_fragments = index.fragments.len() as u64;
    }

    fn queue(&self) -> &SyncSender<Job> {
        self.queue.as_ref().expect("the queue is there until the disk level is dropped")
    }

    /// Returns once all that was offered before is written.
    #[cfg(test)]
    pub fn settle(&self) {
        drop(self.hold_up());
    }

    /// The writer has done all it was given before, and does nothing until what is returned is dropped.
    #[cfg(test)]
    pub fn hold_up(&self) -> HeldUp {
        let barrier = Arc::new(std::sync::Barrier::new(2));
        self.queue()
            .send(Job::Rendezvous(barrier.clone()))
            .expect("the writer lives as long as the disk level");
        barrier.wait();
        HeldUp(barrier)
    }
}

/// See `Disk::hold_up`.
#[cfg(test)]
pub struct HeldUp(Arc<std::sync::Barrier>);

#[cfg(test)]
impl Drop for HeldUp {
    fn drop(&mut self) {
        self.0.wait();
    }
}

impl Drop for Disk {
    /// Waits for the file being written, not for those still waiting.
    fn drop(&mut self) {
        self.shared.index.lock().closing = true;
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Index {
    fn take_object(&mut self, object: ObjectId) -> Vec<Arc<Kept>> {
        (0..=u8::MAX).filter_map(|index| self.take((object, index))).collect()
    }

    fn take(&mut self, key: Key) -> Option<Arc<Kept>> {
        let kept = self.fragments.pop(&key)?;
        self.bytes -= kept.disk_bytes();
        Some(kept)
    }

    /// The least recently used, until there is room for `bytes` more.
    fn make_room(&mut self, bytes: u64, bound: u64) -> Vec<Arc<Kept>> {
        let mut gone = Vec::new();
        while self.bytes + bytes > bound {
            let Some((_, kept)) = self.fragments.pop_lru() else { break };
            self.bytes -= kept.disk_bytes();
            gone.push(kept);
        }
        gone
    }
}

impl Kept {
    fn disk_bytes(&self) -> u64 {
        (self.length as u64).next_multiple_of(DISK_PAGE)
    }
}

impl Shared {
    fn work(&self, jobs: Receiver<Job>) {
        yield_to_others();
        for job in jobs {
            match job {
                Job::Write(key, fragment) => {
                    self.write(key, &fragment);
                    self.queued_bytes.fetch_sub(fragment.len() as u64, Ordering::Relaxed);
                }
                Job::Unlink(gone) => self.unlink(&gone),
                #[cfg(test)]
                Job::Rendezvous(barrier) => {
                    barrier.wait();
                    barrier.wait();
                }
            }
        }
    }

    fn write(&self, key: Key, fragment: &Bytes) {
        let kept = {
            let mut index = self.index.lock();
            if index.closing || index.fragments.contains(&key) {
                return;
            }
            index.next_name += 1;
            let checks = Box::default();
            Kept { name: index.next_name, length: fragment.len(), checks }
        };
        let kept = Arc::new(Kept { checks: fragment.chunks(BLOCK).map(check).collect(), ..kept });
        let gone = self.index.lock().make_room(kept.disk_bytes(), self.bound);
        self.unlink(&gone);
        if let Err(error) = fs::write(self.path(&kept), fragment) {
            if !self.troubled.swap(true, Ordering::Relaxed) {
                tracing::warn!(%error, folder = %self.folder.display(), "the disk cache cannot be written");
            }
            return self.unlink(&[kept]);
        }
        let mut index = self.index.lock();
        index.bytes += kept.disk_bytes();
        index.fragments.put(key, kept);
    }

    /// Bytes that differ from what was written are never given; the fragment is dropped.
    fn read(&self, key: Key, kept: &Arc<Kept>, range: Range<usize>) -> Option<Bytes> {
        let first = range.start / BLOCK;
        let start = first * BLOCK;
        let end = range.end.next_multiple_of(BLOCK).min(kept.length);
        let mut blocks = Buffers::shared().take(end.saturating_sub(start));
        let read = File::open(self.path(kept)).and_then(|mut file| {
            file.seek(SeekFrom::Start(start as u64))?;
            blocks.extend_from_reader(file, end.saturating_sub(start))
        });
        let good = blocks.chunks(BLOCK).zip(&kept.checks[first..]).all(|(block, of)| check(block) == *of);
        if read.is_ok() && good {
            return Some(blocks.freeze().slice(range.start - start..range.end - start));
        }
        self.forget(key, kept);
        None
    }

    /// Unless it made room for others meanwhile, which is no sign of rot.
    fn forget(&self, key: Key, kept: &Arc<Kept>) {
        let mut index = self.index.lock();
        if index.fragments.peek(&key).is_some_and(|now| Arc::ptr_eq(now, kept)) {
            index.take(key);
            drop(index);
            tracing::warn!(object = %key.0, index = key.1, "a cached fragment changed on the local disk; dropped");
            self.rotten.fetch_add(1, Ordering::Relaxed);
            self.unlink(std::slice::from_ref(kept));
        }
    }

    fn unlink(&self, gone: &[Arc<Kept>]) {
        for kept in gone {
            // What cannot be removed now is when the cache is opened next.
            let _ = fs::remove_file(self.path(kept));
        }
    }

    fn path(&self, kept: &Kept) -> PathBuf {
        self.folder.join(format!("{:016x}.{SUFFIX}", kept.name))
    }
}

fn check(block: &[u8]) -> Check {
    let hash = blake3::hash(block);
    hash.as_bytes()[..16].try_into().expect("a BLAKE3 hash has 32 bytes")
}

/// Make the folder, and remove what an earlier cache left in it: its checks are gone.
fn clear(folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    for file in folder.read_dir()? {
        let path = file?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let ours = stem.len() == 16 && stem.bytes().all(|digit| digit.is_ascii_hexdigit());
        if ours && path.extension().is_some_and(|suffix| suffix == SUFFIX) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Filling the cache is worth less than whatever else the processor could do.
fn yield_to_others() {
    // SAFETY: setpriority touches no memory; who = 0 is the calling thread (setpriority(2), "C library/kernel
    // differences"). Its failure leaves the priority as it was.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}
