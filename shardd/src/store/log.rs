//! The log: its segments, and where the next record goes.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::ahead::Ahead;
use super::disk::Disk;
use super::record::{Head, Position, Seal};
use super::segment::Segment;
use super::upkeep::Upkeep;

/// The log of one node.
pub struct Log {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    seal: Seal,
    segment_bytes: u64,
    upkeep: Arc<Upkeep>,
    end: Mutex<End>,
    segments: RwLock<BTreeMap<u32, Arc<Segment>>>,
    /// Segments whose names no fsync of the folder covered yet.
    unnamed: Mutex<Vec<Arc<Segment>>>,
    /// A segment was removed since the last fsync of the folder: until then a power loss brings it back.
    removed: AtomicBool,
    /// Bytes changed since the last flush began, about.
    unflushed: AtomicU64,
}

struct End {
    active: Option<Arc<Segment>>,
    tail: u64,
    next_number: u32,
    next_sequence: u64,
    ahead: Ahead,
}

/// Room for one record, reserved. While it lives its segment is not sealed.
pub struct Reserved {
    /// The segment.
    pub segment: Arc<Segment>,
    /// Where in it.
    pub position: Position,
    /// The record's sequence, unless it is a copy.
    pub sequence: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.segment.writers.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Log {
    /// A log of segments that earlier runs left, continued with `next_sequence`.
    pub fn new(
        disk: Arc<dyn Disk>,
        folder: PathBuf,
        seal: Seal,
        segment_bytes: u64,
        upkeep: Arc<Upkeep>,
        segments: Vec<Arc<Segment>>,
        next_sequence: u64,
    ) -> Log {
        let next_number = segments.iter().map(|segment| segment.number + 1).max().unwrap_or(1);
        Log {
            disk,
            folder,
            seal,
            segment_bytes,
            upkeep,
            end: Mutex::new(End {
                active: None,
                tail: 0,
                next_number,
                next_sequence,
                ahead: Ahead::default(),
            }),
            segments: RwLock::new(segments.into_iter().map(|s| (s.number, s)).collect()),
            unnamed: Mutex::default(),
            removed: AtomicBool::new(false),
            unflushed: AtomicU64::new(0),
        }
    }

    /// What keys its records' checks.
    pub fn seal(&self) -> &Seal {
        &self.seal
    }

    /// About how many bytes a flush would have to write.
    pub fn unflushed(&self) -> u64 {
        self.unflushed.load(Ordering::SeqCst)
    }

    /// Note that about so many bytes were changed.
    pub fn note_changed(&self, bytes: u64) {
        self.unflushed.fetch_add(bytes, Ordering::SeqCst);
    }

    /// What is noted from now on is for the next flush.
    pub fn begin_flush(&self) {
        self.unflushed.store(0, Ordering::SeqCst);
    }

    /// Make durable that segments were created and removed; with the error those are given whose names may not be.
    pub fn sync_names(&self) -> Result<(), (io::Error, Vec<Arc<Segment>>)> {
        let created = std::mem::take(&mut *self.unnamed.lock());
        if !self.removed.swap(false, Ordering::SeqCst) && created.is_empty() {
            return Ok(());
        }
        self.disk.sync_folder(&self.folder).map_err(|error| {
            self.removed.store(true, Ordering::SeqCst);
            (error, created)
        })
    }

    /// Every segment, oldest first.
    pub fn segments(&self) -> Vec<Arc<Segment>> {
        self.segments_where(|_| true)
    }

    /// Those of them that `wanted` picks.
    pub fn segments_where(&self, wanted: impl Fn(&Segment) -> bool) -> Vec<Arc<Segment>> {
        self.segments.read().values().filter(|segment| wanted(segment)).cloned().collect()
    }

    /// The segment with this number, unless it was removed.
    pub fn segment(&self, number: u32) -> Option<Arc<Segment>> {
        self.segments.read().get(&number).cloned()
    }

    /// Append a record and mark its segment as to be flushed. `copied` keeps the sequence of what it is a copy of.
    ///
    /// What comes back must live until the index knows the record. After an error nothing of the record is ever found.
    pub fn append(
        &self,
        head: &Head<'_>,
        fragment: &[u8],
        tree: &[u8],
        copied: bool,
    ) -> io::Result<Reserved> {
        let length = head.lengths().record();
        let reserved = self.reserve(length)?;
        self.note_changed(length);
        let sequence = if copied { head.sequence } else { reserved.sequence };
        let bytes = Head { sequence, ..*head }.encode(&self.seal, reserved.position);
        let written = reserved.segment.write(reserved.position.offset, &bytes, fragment, tree);
        reserved.segment.dirty.store(true, Ordering::SeqCst);
        match written {
            Ok(()) => Ok(reserved),
            Err(error) => {
                self.give_back(&reserved, length);
                Err(error)
            }
        }
    }

    /// To be called before each flush: write zeros behind the end of the log if that makes the flushes to come cheaper, and
    /// `room` is there for them.
    ///
    /// Best effort: a disk that takes none takes records all the same.
    pub fn write_ahead(&self, room: impl FnOnce() -> u64) {
        // Held while writing, or a record would come to stand where the zeros then go.
        let mut end = self.end.lock();
        let End { active: Some(active), tail, ahead, .. } = &mut *end else { return };
        let Some(zeros) = ahead.before_flush(*tail, self.segment_bytes) else { return };
        if room() < zeros.end - zeros.start {
            return;
        }
        match active.write_zeros(zeros.clone()) {
            Ok(()) => ahead.wrote(zeros.end),
            Err(error) => {
                tracing::debug!(segment = active.number, %error, "write ahead");
                ahead.give_up();
            }
        }
    }

    /// Append nothing more to `segment`, or to whichever is active.
    pub fn leave(&self, segment: Option<&Segment>) {
        let mut end = self.end.lock();
        let active = end.active.as_ref().map(|active| active.number);
        if segment.is_none_or(|segment| Some(segment.number) == active) {
            end.leave();
        }
    }

    /// Forget a segment and remove its file.
    pub fn remove(&self, segment: &Segment) -> io::Result<()> {
        match self.segments.write().remove(&segment.number) {
            Some(_) => {
                segment.remove()?;
                self.removed.store(true, Ordering::SeqCst);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn reserve(&self, length: u64) -> io::Result<Reserved> {
        let mut end = self.end.lock();
        if end.active.is_some() && end.tail + length > self.segment_bytes {
            end.leave();
            // Sealing what was left also has the disk write it while the next one fills.
            self.upkeep.flush_soon();
        }
        let segment = match &end.active {
            Some(segment) => segment.clone(),
            None => self.begin_segment(&mut end)?,
        };
        segment.writers.fetch_add(1, Ordering::SeqCst);
        let position = Position { segment: segment.number, offset: end.tail };
        let sequence = end.next_sequence;
        end.tail += length;
        segment.filled.store(end.tail, Ordering::SeqCst);
        end.next_sequence += 1;
        Ok(Reserved { segment, position, sequence })
    }

    fn begin_segment(&self, end: &mut End) -> io::Result<Arc<Segment>> {
        let segment = Arc::new(Segment::create(&self.disk, &self.folder, end.next_number)?);
        end.next_number += 1;
        end.tail = 0;
        end.ahead.begin_segment();
        end.active = Some(segment.clone());
        self.segments.write().insert(segment.number, segment.clone());
        self.unnamed.lock().push(segment.clone());
        Ok(segment)
    }

    /// A failed write's room goes back: to the log if nothing came after it, otherwise to the file system.
    fn give_back(&self, reserved: &Reserved, length: u64) {
        let Position { segment, offset } = reserved.position;
        let mut end = self.end.lock();
        let is_last =
            end.active.as_ref().is_some_and(|active| active.number == segment) && end.tail == offset + length;
        reserved.segment.unwrite(offset, length);
        if is_last {
            end.tail = offset;
        } else {
            reserved.segment.note_dead(offset, offset + length);
        }
    }
}

impl End {
    fn leave(&mut self) {
        if let Some(active) = self.active.take() {
            active.left.store(true, Ordering::SeqCst);
        }
        self.tail = 0;
    }
}
