//! One file of the log: written once, marked dead in place, given back in holes.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::disk::{Disk, DiskFile};
use super::ranges::{Ranges, blocks_freed};
use super::record::DEATH;

/// Holes are made of whole blocks of this size; where a file system's are larger, punching zeroes the rest, which is dead.
pub const BLOCK: u64 = 4096;
/// Fragments up to this are copied behind what stands before them, to be written in one call.
const ONE_WRITE: usize = 64 << 10;
/// Written again and again where zeros go.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// One file of the log.
pub struct Segment {
    /// Its number, never used again while the node lives.
    pub number: u32,
    file: Box<dyn DiskFile>,
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    name: Mutex<Name>,
    /// Nothing is appended to it any more.
    pub left: AtomicBool,
    /// Something was written since the last flush.
    pub dirty: AtomicBool,
    /// A flush of it failed: what it holds must be copied elsewhere before it counts as flushed.
    pub broken: AtomicBool,
    /// How many are copying its records elsewhere; only they may remove the file.
    movers: AtomicU32,
    /// Records reserved but not yet written or given up.
    pub writers: AtomicU32,
    live_records: AtomicU64,
    live_bytes: AtomicU64,
    /// Where its last record ends.
    pub filled: AtomicU64,
    /// Live bytes when compaction last looked and left it alone.
    looked_at: AtomicU64,
    dead: Mutex<Dead>,
}

/// What its file is called.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    /// Not everything in it was flushed once.
    Open,
    /// Nothing will be appended, and everything was flushed once.
    Sealed,
    /// The file is gone.
    Removed,
}

/// What is dead of it.
#[derive(Default)]
struct Dead {
    ranges: Ranges,
    /// Whole blocks of that, not given back yet.
    due: Ranges,
}

impl Segment {
    /// Make a new, empty one.
    pub fn create(disk: &Arc<dyn Disk>, folder: &Path, number: u32) -> io::Result<Segment> {
        let file = disk.create(&path(folder, number, Name::Open))?;
        Ok(Segment::of(disk, folder, number, file, Name::Open))
    }

    /// Open one left by an earlier run; nothing is appended to it.
    pub fn open(disk: &Arc<dyn Disk>, folder: &Path, number: u32, sealed: bool) -> io::Result<Segment> {
        let name = if sealed { Name::Sealed } else { Name::Open };
        let file = disk.open(&path(folder, number, name))?;
        let segment = Segment::of(disk, folder, number, file, name);
        segment.left.store(true, Ordering::SeqCst);
        segment.filled.store(segment.length()?, Ordering::SeqCst);
        Ok(segment)
    }

    fn of(disk: &Arc<dyn Disk>, folder: &Path, number: u32, file: Box<dyn DiskFile>, name: Name) -> Segment {
        Segment {
            number,
            file,
            disk: disk.clone(),
            folder: folder.to_owned(),
            name: Mutex::new(name),
            left: AtomicBool::new(false),
            dirty: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            movers: AtomicU32::new(0),
            writers: AtomicU32::new(0),
            live_records: AtomicU64::new(0),
            live_bytes: AtomicU64::new(0),
            filled: AtomicU64::new(0),
            looked_at: AtomicU64::new(u64::MAX),
            dead: Mutex::default(),
        }
    }

    /// Number and state of the segment a file's name stands for.
    pub fn parse_name(name: &str) -> Option<(u32, bool)> {
        let (number, state) = name.split_once('.')?;
        let sealed = match state {
            "seg" => true,
            "open" => false,
            _ => return None,
        };
        let digits = number.len() == 8 && number.bytes().all(|digit| digit.is_ascii_digit());
        Some((digits.then(|| number.parse().ok()).flatten()?, sealed))
    }

    /// The open file, for walking it.
    pub fn file(&self) -> &dyn DiskFile {
        &*self.file
    }

    /// Whether it is full and was flushed.
    pub fn is_sealed(&self) -> bool {
        *self.name.lock() == Name::Sealed
    }

    /// Write a record. What stands before the fragment last: a head is never on disk before what it announces.
    pub fn write(&self, offset: u64, head: &[u8], fragment: &[u8], tree: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        faults::before_write(&self.folder)?;
        if fragment.len() <= ONE_WRITE {
            return self.file.write(offset, &[head, fragment, tree].concat());
        }
        let content = offset + head.len() as u64;
        self.file.write(content, fragment)?;
        self.file.write(content + fragment.len() as u64, tree)?;
        self.file.write(offset, head)
    }

    /// Fill a range behind its last record with zeros, for records to come.
    pub fn write_zeros(&self, range: Range<u64>) -> io::Result<()> {
        self.dirty.store(true, Ordering::SeqCst);
        range.clone().step_by(ZEROS.len()).try_for_each(|start| {
            let size = (range.end - start).min(ZEROS.len() as u64);
            self.file.write(start, &ZEROS[..size as usize])
        })
    }

    /// Give back what was written ahead of its last record; nothing is appended any more.
    pub fn trim(&self) -> io::Result<()> {
        let filled = self.filled.load(Ordering::SeqCst);
        if self.length()? > filled {
            self.file.cut(filled)?;
            self.dirty.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Give back what follows `end`, where its last record ends, if that is zeros alone: room for records that never came.
    /// What cannot be read is none.
    pub fn trim_zeros(&self, end: u64) -> io::Result<()> {
        if end < self.length()? && self.has_only_zeros(end)? {
            self.filled.store(end, Ordering::SeqCst);
            self.trim()?;
        }
        Ok(())
    }

    fn has_only_zeros(&self, from: u64) -> io::Result<bool> {
        let (mut at, length) = (from, self.length()?);
        let mut bytes = vec![0; ZEROS.len().min((length - from) as usize)];
        while let Some(data) = self.file.next_data(at)? {
            let piece = &mut bytes[..ZEROS.len().min((length - data) as usize)];
            if self.read(data, piece).is_err() || piece != &ZEROS[..piece.len()] {
                return Ok(false);
            }
            at = data + piece.len() as u64;
        }
        Ok(true)
    }

    /// Undo a write that failed, as far as the disk lets us: its head, written last, is not there or is dead.
    pub fn unwrite(&self, offset: u64, length: u64) {
        let (at, dead) = DEATH;
        // Whether the range becomes a hole or only dead does not matter, nor does a disk that takes neither: a record that is
        // whole in spite of its error may as well be found.
        let _ = self.file.punch(offset, offset + length).or_else(|_| self.file.write(offset + at, &dead));
    }

    /// Fill `buffer` from `offset`.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, buffer)
    }

    /// Count a record as alive.
    pub fn enliven(&self, record: u64) {
        self.live_records.fetch_add(1, Ordering::SeqCst);
        self.live_bytes.fetch_add(record, Ordering::SeqCst);
    }

    /// Count a record as no longer alive.
    pub fn forget(&self, record: u64) {
        self.live_bytes.fetch_sub(record, Ordering::SeqCst);
        self.live_records.fetch_sub(1, Ordering::SeqCst);
    }

    /// Lengths of its live records.
    pub fn live_bytes(&self) -> u64 {
        self.live_bytes.load(Ordering::SeqCst)
    }

    /// Whether nothing in it is alive and nothing will come.
    pub fn is_spent(&self) -> bool {
        // Writers before records: a writer counts its record before it stops being one.
        self.left.load(Ordering::SeqCst)
            && self.writers.load(Ordering::SeqCst) == 0
            && self.live_records.load(Ordering::SeqCst) == 0
    }

    /// Keep the file: what it holds is being copied elsewhere.
    pub fn begin_move(&self) {
        self.movers.fetch_add(1, Ordering::SeqCst);
    }

    /// Nothing of it is needed any more for the sake of who called `begin_move`.
    pub fn end_move(&self) {
        self.movers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether the file may go: nothing in it is alive, nothing will come, and no copy depends on it. To be asked while the
    /// index does not change, or a move may be undone between the two looks.
    pub fn is_useless(&self) -> bool {
        self.is_spent() && self.movers.load(Ordering::SeqCst) == 0
    }

    /// Whether a flush has anything to do with it: to flush, seal or remove it. Of a large node's segments few are.
    pub fn is_unsettled(&self) -> bool {
        self.dirty.load(Ordering::SeqCst) || self.is_spent() || !self.is_sealed()
    }

    /// Whether so little of it is alive that compaction should look, and half of what was when it last did.
    pub fn is_sparse(&self) -> bool {
        let live = self.live_bytes();
        self.left.load(Ordering::SeqCst)
            && 2 * live < self.filled.load(Ordering::SeqCst)
            && live < self.looked_at.load(Ordering::SeqCst) / 2
    }

    /// Note that compaction looks.
    pub fn look(&self) {
        self.looked_at.store(self.live_bytes(), Ordering::SeqCst);
    }

    /// Whether the file system gave it noticeably more than what is alive.
    pub fn wastes_blocks(&self) -> io::Result<bool> {
        let live = self.live_bytes();
        Ok(self.allocated()? > live + live / 4 + (64 << 10))
    }

    /// Mark a record dead; what it and its dead neighbours fill is given back by the next `give_back`.
    pub fn bury(&self, offset: u64, record: u64) -> io::Result<()> {
        let (at, dead) = DEATH;
        self.file.write(offset + at, &dead)?;
        self.dirty.store(true, Ordering::SeqCst);
        self.let_go(offset, record);
        Ok(())
    }

    /// Have a range, which no live record touches, given back by the next `give_back`.
    pub fn let_go(&self, offset: u64, length: u64) {
        let added = offset..offset + length;
        let mut dead = self.dead.lock();
        let whole = dead.ranges.add(added.clone());
        if let Some(blocks) = blocks_freed(&whole, &added, BLOCK) {
            dead.due.add(blocks);
        }
    }

    /// Punch what was let go of: neighbours at once, as one call costs as much as the other.
    pub fn give_back(&self) {
        // The lock is held while punching, so that a range is never given back late, over something newer.
        let mut dead = self.dead.lock();
        for blocks in std::mem::take(&mut dead.due).iter() {
            if let Err(error) = self.file.punch(blocks.start, blocks.end) {
                tracing::debug!(segment = self.number, %error, "punch");
            }
        }
    }

    /// Note that a range is dead without giving it back: compaction sees to what a start finds.
    pub fn note_dead(&self, from: u64, to: u64) {
        if from < to {
            self.dead.lock().ranges.add(from..to);
        }
    }

    /// Punch every dead range again, as a crash may have come between death and punch.
    pub fn punch_dead(&self) -> io::Result<()> {
        let ranges: Vec<_> = self.dead.lock().ranges.iter().collect();
        let blocks = ranges.iter().filter_map(|dead| blocks_freed(dead, dead, BLOCK));
        blocks.into_iter().try_for_each(|blocks| self.file.punch(blocks.start, blocks.end))
    }

    /// Length of the file.
    pub fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    /// Bytes that the file system gave it.
    pub fn allocated(&self) -> io::Result<u64> {
        self.file.allocated()
    }

    /// fdatasync.
    pub fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        faults::before_sync(&self.folder)?;
        self.file.sync()
    }

    /// Give it its final name. It must be left, without writers and flushed.
    pub fn seal(&self) -> io::Result<()> {
        let mut name = self.name.lock();
        if *name == Name::Open {
            self.disk.rename(&self.path(Name::Open), &self.path(Name::Sealed))?;
            *name = Name::Sealed;
        }
        Ok(())
    }

    /// Remove the file; who reads it still can.
    pub fn remove(&self) -> io::Result<()> {
        let mut name = self.name.lock();
        if *name != Name::Removed {
            self.disk.remove(&self.path(*name))?;
            *name = Name::Removed;
        }
        Ok(())
    }

    fn path(&self, name: Name) -> PathBuf {
        path(&self.folder, self.number, name)
    }
}

fn path(folder: &Path, number: u32, name: Name) -> PathBuf {
    let ending = if name == Name::Sealed { "seg" } else { "open" };
    folder.join(format!("{number:08}.{ending}"))
}

/// Disks that fail, or let something happen, on demand, by segment folder.
#[cfg(test)]
pub mod faults {
    use std::collections::HashMap;
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use parking_lot::Mutex;

    /// Runs before the disk is asked; its error is the disk's.
    pub type Fault = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

    /// What happens in a folder.
    #[derive(Clone, Default)]
    pub struct Faults {
        /// Before every fdatasync.
        pub sync: Option<Fault>,
        /// Before every record is written.
        pub write: Option<Fault>,
    }

    static FAULTS: Mutex<Option<HashMap<PathBuf, Faults>>> = Mutex::new(None);

    /// From now on this happens to the disk of `segments`.
    pub fn set(segments: &Path, faults: Faults) {
        FAULTS.lock().get_or_insert_default().insert(segments.to_owned(), faults);
    }

    fn of(segments: &Path) -> Faults {
        FAULTS.lock().as_ref().and_then(|all| all.get(segments).cloned()).unwrap_or_default()
    }

    pub(super) fn before_sync(segments: &Path) -> io::Result<()> {
        of(segments).sync.map_or(Ok(()), |fault| fault())
    }

    pub(super) fn before_write(segments: &Path) -> io::Result<()> {
        of(segments).write.map_or(Ok(()), |fault| fault())
    }
}
