//! One open file per inode, shared by all its handles: what is written and not yet in the metadata, in layers.
//! Newest first: dirty runs, seals on their way to the nodes, extents the store knows. A value under one lock; it
//! sends nothing and commits nothing itself.

pub mod dirty;
pub mod fresh;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use common::code::Code;
use common::wire::ObjectId;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::buffers::{Buffer, Buffers};
use crate::cache::Reuse;
use crate::error::{Error, Result};
use crate::inode::{Ino, Inode, Time};
use crate::metadata::{Extent, FileCommit, Intent, MAX_INTENT, MetadataStore, ObjectRecord};
use dirty::{DirtyRuns, MOST_RUNS, PADDING};
use fresh::Fresh;

/// How many extents are remembered at once.
const REMEMBERED: usize = 256;

/// A file that is open, or closed with bytes still on their way.
pub struct OpenFile {
    /// Which.
    pub ino: Ino,
    state: Mutex<State>,
    /// Told whenever a seal has moved on.
    pub changed: Notify,
}

impl OpenFile {
    /// A file as the store knows it.
    pub fn new(inode: &Inode, code: Code, object_size: u32) -> OpenFile {
        let state = State {
            handles: 0,
            size: inode.size,
            access_noted: false,
            mtime: None,
            stamped: inode.mtime.max(inode.ctime),
            dirty: DirtyRuns::new(object_size as usize),
            fresh: Fresh::default(),
            intents: 0,
            dirty_since: None,
            seals: VecDeque::new(),
            next_sequence: 0,
            known: Known::default(),
            ahead: ReadAhead::default(),
            code,
        };
        OpenFile { ino: inode.ino, state: Mutex::new(state), changed: Notify::new() }
    }

    /// Its layers. Never held across an await; the metadata store may be asked meanwhile.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Wait until every seal before `sequence` is committed.
    ///
    /// # Errors
    /// The first failed one's error; its bytes stay and can be tried again.
    pub async fn committed(&self, sequence: u64) -> Result<()> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that no change between look and wait is missed.
            changed.as_mut().enable();
            {
                let state = self.state();
                if let Some(error) = state.failure() {
                    return Err(error);
                }
                if state.seals.front().is_none_or(|seal| seal.sequence >= sequence) {
                    return Ok(());
                }
            }
            changed.await;
        }
    }
}

/// What one lock guards.
pub struct State {
    /// Open handles.
    pub handles: u32,
    /// The size every reader sees.
    pub size: u64,
    /// Whether the next read need not be noted as an access.
    pub access_noted: bool,
    /// When it was last written, if the store does not know yet.
    pub mtime: Option<Time>,
    /// The newest time that the store is known to say, or to be told; a write that comes before it finds it in the future.
    pub stamped: Time,
    /// Written and not sealed.
    pub dirty: DirtyRuns,
    /// What of that no intent carries.
    fresh: Fresh,
    /// How often intents were noted.
    intents: u64,
    /// Since when something is dirty.
    pub dirty_since: Option<Instant>,
    /// Sealed and not committed, oldest first; they are committed in this order.
    pub seals: VecDeque<Seal>,
    next_sequence: u64,
    known: Known,
    ahead: ReadAhead,
    code: Code,
}

/// Bytes bound to an object and on their way to the nodes.
pub struct Seal {
    /// Its place among the file's seals.
    pub sequence: u64,
    /// The object; the same bytes keep it through every retry.
    pub id: ObjectId,
    /// The object's bytes, filled up with zeros to whole fragments.
    pub padded: Bytes,
    /// The object's true length.
    pub length: u32,
    /// Where its bytes belong in the file, by offset; cut when the file is truncated meanwhile.
    pub extents: Vec<Extent>,
    /// Bytes of the write-behind budget it holds.
    pub charged: u64,
    /// When the newest of them was written.
    pub mtime: Option<Time>,
    /// Intents up to this number have older bytes, or the same.
    pub intents: u64,
    /// Whether intents carry all of it.
    pub carried: bool,
    /// How far it is.
    pub progress: Progress,
}

/// How far a seal is.
pub enum Progress {
    /// On its way.
    Storing,
    /// On enough nodes; waits for those before it.
    Stored(ObjectRecord),
    /// Not on enough nodes; to be tried again.
    Failed(Error),
}

/// Where bytes asked for are.
#[derive(Clone, Debug)]
pub enum Source {
    /// Here.
    Memory(Bytes),
    /// Nowhere: zeros.
    Hole,
    /// In this range of an object.
    Object(Arc<ObjectRecord>, Range<u32>),
}

/// One piece of a read: a range of the file and where its bytes are.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The file's range.
    pub range: Range<u64>,
    /// Where to have it from.
    pub source: Source,
}

impl State {
    /// Whether the store knows everything.
    pub fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.seals.is_empty()
    }

    /// The error of the first seal that failed, until a retry has stored it.
    pub fn failure(&self) -> Option<Error> {
        self.seals.iter().find_map(|seal| match &seal.progress {
            Progress::Failed(error) => Some(error.clone()),
            _ => None,
        })
    }

    /// Bytes not yet in the metadata.
    pub fn unsaved(&self) -> u64 {
        self.dirty.bytes() + self.seals.iter().map(|seal| u64::from(seal.length)).sum::<u64>()
    }

    /// Lay what the store does not know yet over what it says.
    pub fn overlay(&self, inode: &mut Inode) {
        inode.size = self.size;
        if let Some(mtime) = self.mtime {
            inode.written_at(mtime);
        }
        inode.allocated += self.unsaved();
    }

    /// The sequence the next seal gets: all that is sealed now lies before it.
    pub fn sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Lay written bytes over everything; returns how many more are dirty than before.
    pub fn write(&mut self, offset: u64, data: &[u8], now: Time) -> u64 {
        let taken = self.dirty.write(offset, data);
        let end = offset + data.len() as u64;
        self.fresh.add(offset..end);
        self.size = self.size.max(end);
        // Writes of one moment bring their times in any order.
        self.mtime = self.mtime.max(Some(now));
        self.stamped = self.stamped.max(Time { seconds: now.seconds - 1, ..now });
        self.dirty_since.get_or_insert_with(Instant::now);
        taken
    }

    /// Lay bytes over everything that intents of an earlier mount carry; returns how many are dirty.
    pub fn adopt(&mut self, intents: Vec<Intent>) -> u64 {
        for intent in intents {
            self.dirty.write(intent.offset, &intent.bytes);
            self.intents = self.intents.max(intent.number);
            self.dirty_since.get_or_insert_with(Instant::now);
        }
        self.dirty.bytes()
    }

    /// What intents must carry so that everything written is durable once they are: nothing if they do already, none if
    /// that is more than `most` bytes, not known, or sealed.
    pub fn to_carry(&self, most: u64) -> Option<Vec<Intent>> {
        if self.failure().is_some() || !self.seals.iter().all(|seal| seal.carried) {
            return None;
        }
        let number = self.intents + 1;
        let pieces = self.fresh.ranges(most)?.iter().flat_map(|range| self.dirty.pieces(range.clone()));
        let intents = pieces.flat_map(|(offset, bytes)| {
            let parts = bytes.chunks(MAX_INTENT).enumerate();
            parts.map(move |(at, part)| Intent {
                offset: offset + (at * MAX_INTENT) as u64,
                number,
                bytes: part.to_vec(),
            })
        });
        Some(intents.collect())
    }

    /// What `to_carry` said was given to the store: with success intents carry it now. Without they may all the same, and
    /// what is sealed from now on makes them superfluous.
    pub fn carried(&mut self, with_success: bool) {
        self.intents += 1;
        if with_success {
            self.fresh.clear();
        }
    }

    /// Cut everything beyond `size` out of what the store does not know; returns what that held of the budget.
    pub fn truncate(&mut self, size: u64) -> u64 {
        let released = self.clip(size..u64::MAX);
        self.size = size;
        released
    }

    /// Cut a range out of what the store does not know, and forget what is remembered of the store. Returns what that
    /// held of the budget.
    pub fn clip(&mut self, range: Range<u64>) -> u64 {
        for seal in &mut self.seals {
            seal.extents = seal.extents.iter().flat_map(|extent| without(extent, &range)).collect();
        }
        self.known = Known::default();
        self.fresh.remove(&range);
        self.dirty.clip(range) + self.drop_unwanted()
    }

    /// Let go of failed seals of which nothing is left in the file: there is nothing to try again for. Returns what
    /// they held of the budget.
    pub fn drop_unwanted(&mut self) -> u64 {
        let mut released = 0;
        self.seals.retain(|seal| {
            let unwanted = seal.extents.is_empty() && matches!(seal.progress, Progress::Failed(_));
            released += if unwanted { seal.charged } else { 0 };
            !unwanted
        });
        released
    }

    /// The store has the file in this size, and nobody knows what else: what is remembered of it counts no more.
    pub fn learn_anew(&mut self, stored_size: u64) {
        let sealed = self.seals.iter().flat_map(|seal| &seal.extents).map(|extent| extent.range().end);
        self.size = stored_size.max(self.dirty.end()).max(sealed.max().unwrap_or(0));
        // Intents may have been taken away, too.
        self.fresh.lose_track();
        self.seals.iter_mut().for_each(|seal| seal.carried = false);
        self.known = Known::default();
    }

    /// The store has newer times, or one set by hand, up to `newest`: bytes that are still on their way bring none of their
    /// own.
    pub fn keep_mtime(&mut self, newest: Time) {
        self.stamped = newest;
        self.mtime = None;
        self.seals.iter_mut().for_each(|seal| seal.mtime = None);
    }

    /// Forget what is remembered of the store's extents.
    pub fn forget_extents(&mut self) {
        self.known = Known::default();
    }

    /// Seal what a write to `written` has made whole; `id` names the new object.
    pub fn seal_full(&mut self, written: Range<u64>, id: impl FnOnce() -> ObjectId) -> Option<u64> {
        let runs = self.dirty.take_full(written)?;
        Some(self.seal(runs, id()))
    }

    /// Seal everything dirty, in objects of at most the object size; returns their sequences.
    pub fn seal_all(&mut self, mut id: impl FnMut() -> ObjectId) -> Vec<u64> {
        std::iter::from_fn(|| self.dirty.take_some().map(|runs| self.seal(runs, id()))).collect()
    }

    fn seal(&mut self, runs: Vec<(u64, Buffer)>, id: ObjectId) -> u64 {
        let length: usize = runs.iter().map(|(_, run)| run.len()).sum();
        let mut extents = Vec::with_capacity(runs.len());
        let mut object_offset = 0;
        let mut carried = true;
        for (offset, run) in &runs {
            let range = *offset..*offset + run.len() as u64;
            carried &= !self.fresh.touches(&range);
            self.fresh.remove(&range);
            extents.push(Extent { offset: *offset, length: run.len() as u32, object: id, object_offset });
            object_offset += run.len() as u32;
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.seals.push_back(Seal {
            sequence,
            id,
            padded: pad(gather(runs, length), self.code),
            length: length as u32,
            extents,
            charged: length as u64,
            mtime: self.mtime,
            intents: self.intents,
            carried,
            progress: Progress::Storing,
        });
        if self.dirty.is_empty() {
            self.dirty_since = None;
            self.fresh.clear();
        }
        sequence
    }

    /// A seal that is still here.
    pub fn seal_mut(&mut self, sequence: u64) -> Option<&mut Seal> {
        self.seals.iter_mut().find(|seal| seal.sequence == sequence)
    }

    /// Whether the store does not know yet what there is of a range.
    pub fn has_unstored(&self, range: Range<u64>) -> bool {
        let touches = |extent: &Extent| extent.range().start < range.end && range.start < extent.range().end;
        self.dirty.pieces(range.clone()).next().is_some()
            || self.seals.iter().flat_map(|seal| &seal.extents).any(touches)
    }

    /// Let every failed seal be tried again; returns their sequences.
    pub fn rearm(&mut self) -> Vec<u64> {
        let failed = self.seals.iter_mut().filter(|seal| matches!(seal.progress, Progress::Failed(_)));
        failed
            .map(|seal| {
                seal.progress = Progress::Storing;
                seal.sequence
            })
            .collect()
    }

    /// What the first stored seals at the front say to the metadata: one file commit each, in order, and the objects. With
    /// so many extents, if there is more than one, as a change may have.
    pub fn ready(&self, ino: Ino) -> (Vec<ObjectRecord>, Vec<FileCommit>) {
        let mut extents = 0;
        self.seals
            .iter()
            .map_while(|seal| match &seal.progress {
                Progress::Stored(record) => Some((record.clone(), seal)),
                _ => None,
            })
            .enumerate()
            .take_while(|(place, (_, seal))| {
                extents += seal.extents.len();
                *place == 0 || extents <= MOST_RUNS
            })
            .map(|(_, stored)| stored)
            .map(|(record, seal)| {
                let size = seal.extents.iter().map(|extent| extent.range().end).max().unwrap_or(0);
                let (extents, mtime, intents) = (seal.extents.clone(), seal.mtime, seal.intents);
                (record, FileCommit { ino, extents, size, mtime, intents })
            })
            .unzip()
    }

    /// The first `count` seals are in the metadata; returns what they held of the budget.
    pub fn drop_committed(&mut self, count: usize) -> u64 {
        let charged = self.seals.drain(..count).map(|seal| seal.charged).sum();
        self.known = Known::default();
        if self.is_clean() {
            self.mtime = None;
        }
        charged
    }

    /// Where the bytes of `range` are, by offset and without gaps; `range` lies within the size.
    pub fn plan(&mut self, ino: Ino, range: Range<u64>, store: &dyn MetadataStore) -> Result<Vec<Piece>> {
        let mut plan = Plan::new(range.clone());
        if !self.dirty.is_empty() {
            for (offset, bytes) in self.dirty.pieces(range.clone()) {
                plan.fill(offset..offset + bytes.len() as u64, |part| {
                    let from = (part.start - offset) as usize;
                    Source::Memory(Bytes::copy_from_slice(
                        &bytes[from..from + (part.end - part.start) as usize],
                    ))
                });
            }
        }
        for seal in self.seals.iter().rev() {
            plan.fill_extents(&seal.extents, |_, part| {
                Source::Memory(seal.padded.slice(part.start as usize..part.end as usize))
            });
        }
        for gap in plan.gaps() {
            self.known.cover(ino, gap.clone(), store)?;
            let known = &self.known;
            let touching = known.touching(&gap);
            for (extent, record) in touching {
                plan.fill_extent(extent, |part| Source::Object(record.clone(), part));
            }
        }
        Ok(plan.finish())
    }

    /// The first offset from `from` on that has bytes.
    pub fn next_data(&mut self, ino: Ino, from: u64, store: &dyn MetadataStore) -> Result<Option<u64>> {
        Ok(self.next_ranges(ino, from, store)?.map(|range| range.start.max(from)).min())
    }

    /// The first offset from `from` on that has none; `from` lies within the size, and the end is a hole. Looks at every
    /// range of bytes before it.
    pub fn next_hole(&mut self, ino: Ino, from: u64, store: &dyn MetadataStore) -> Result<u64> {
        let mut at = from;
        while at < self.size {
            let here = self.next_ranges(ino, at, store)?.filter(|range| range.start <= at);
            match here.map(|range| range.end).max() {
                Some(end) => at = end,
                None => break,
            }
        }
        Ok(at)
    }

    /// Of each layer the first range of bytes that ends after an offset.
    fn next_ranges(
        &mut self,
        ino: Ino,
        after: u64,
        store: &dyn MetadataStore,
    ) -> Result<impl Iterator<Item = Range<u64>>> {
        self.known.cover(ino, after..after + 1, store)?;
        // What is remembered ends with an extent, or at the end of the file.
        let stored = self.known.touching(&(after..u64::MAX)).next().map(|(extent, _)| extent.range());
        let sealed = self.seals.iter().filter_map(move |seal| {
            let next = seal.extents.partition_point(|extent| extent.range().end <= after);
            seal.extents.get(next).map(Extent::range)
        });
        Ok(self.dirty.next_run(after).into_iter().chain(sealed).chain(stored))
    }

    /// How likely what is read now is read again soon.
    pub fn reuse(&self) -> Reuse {
        if self.ahead.is_in_order() { Reuse::Unlikely } else { Reuse::Likely }
    }

    /// Note a read; returns the objects to fetch ahead because the file is being read in order.
    pub fn read_ahead(
        &mut self,
        ino: Ino,
        range: &Range<u64>,
        window: u64,
        store: &dyn MetadataStore,
    ) -> Vec<Arc<ObjectRecord>> {
        let Some(ahead) = self.ahead.note(range, self.size, window) else { return Vec::new() };
        if self.known.cover(ino, ahead.start..ahead.start + 1, store).is_err() {
            return Vec::new();
        }
        let mut objects: Vec<Arc<ObjectRecord>> = Vec::new();
        for (_, record) in self.known.touching(&ahead) {
            if objects.last().is_none_or(|last| last.id != record.id) {
                objects.push(record.clone());
            }
        }
        objects
    }
}

fn without(extent: &Extent, hole: &Range<u64>) -> impl Iterator<Item = Extent> + use<> {
    let range = extent.range();
    let cut = |part: Range<u64>| {
        (part.start < part.end).then(|| Extent {
            offset: part.start,
            length: (part.end - part.start) as u32,
            object: extent.object,
            object_offset: extent.object_offset + (part.start - extent.offset) as u32,
        })
    };
    let before = cut(range.start..range.end.min(hole.start));
    let after = cut(range.start.max(hole.end)..range.end);
    before.into_iter().chain(after)
}

fn gather(mut runs: Vec<(u64, Buffer)>, length: usize) -> Buffer {
    if runs.len() == 1 {
        return runs.remove(0).1;
    }
    let mut whole = Buffers::shared().take(length + PADDING);
    for (_, run) in &runs {
        whole.extend_from_slice(run);
    }
    whole
}

/// Fill up with zeros to m whole fragments.
fn pad(mut object: Buffer, code: Code) -> Bytes {
    let padded = code.padded_length(object.len() as u64);
    if padded > object.capacity() {
        let mut larger = Buffers::shared().take(padded);
        larger.extend_from_slice(&object);
        object = larger;
    }
    object.resize(padded, 0);
    object.freeze()
}

/// A read being put together: what is still missing, and what was found.
struct Plan {
    gaps: Vec<Range<u64>>,
    found: Vec<Piece>,
}

impl Plan {
    fn new(range: Range<u64>) -> Plan {
        Plan { gaps: vec![range], found: Vec::new() }
    }

    fn gaps(&self) -> Vec<Range<u64>> {
        self.gaps.clone()
    }

    /// Let `range` come from `source`, as far as nothing newer has it.
    fn fill(&mut self, range: Range<u64>, source: impl Fn(Range<u64>) -> Source) {
        let mut gaps = Vec::with_capacity(self.gaps.len() + 1);
        for gap in self.gaps.drain(..) {
            let part = gap.start.max(range.start)..gap.end.min(range.end);
            if part.start >= part.end {
                gaps.push(gap);
                continue;
            }
            if gap.start < part.start {
                gaps.push(gap.start..part.start);
            }
            if part.end < gap.end {
                gaps.push(part.end..gap.end);
            }
            self.found.push(Piece { range: part.clone(), source: source(part) });
        }
        self.gaps = gaps;
    }

    fn fill_extent(&mut self, extent: &Extent, source: impl Fn(Range<u32>) -> Source) {
        self.fill(extent.range(), |part| {
            let from = extent.object_offset + (part.start - extent.offset) as u32;
            source(from..from + (part.end - part.start) as u32)
        });
    }

    /// `extents` are sorted by offset and do not overlap.
    fn fill_extents(&mut self, extents: &[Extent], source: impl Fn(&Extent, Range<u32>) -> Source) {
        for gap in self.gaps() {
            let first = extents.partition_point(|extent| extent.range().end <= gap.start);
            for extent in extents[first..].iter().take_while(|extent| extent.offset < gap.end) {
                self.fill_extent(extent, |part| source(extent, part));
            }
        }
    }

    fn finish(mut self) -> Vec<Piece> {
        self.found.extend(self.gaps.drain(..).map(|range| Piece { range, source: Source::Hole }));
        self.found.sort_unstable_by_key(|piece| piece.range.start);
        self.found
    }
}

/// Extents remembered from the store, over a window of the file; whoever changes the store's extents clears it.
#[derive(Default)]
struct Known {
    window: Option<Range<u64>>,
    extents: Vec<(Extent, Arc<ObjectRecord>)>,
}

impl Known {
    /// Make sure that every extent touching `range` is remembered.
    fn cover(&mut self, ino: Ino, range: Range<u64>, store: &dyn MetadataStore) -> Result<()> {
        if self.window.as_ref().is_some_and(|window| window.start <= range.start && range.end <= window.end) {
            return Ok(());
        }
        let mut extents: Vec<(Extent, Arc<ObjectRecord>)> = Vec::new();
        let mut from = range.start;
        loop {
            let page = store.objects_of(ino, from, REMEMBERED)?;
            let last_page = page.len() < REMEMBERED;
            for (extent, record) in page {
                match extents.last() {
                    Some((_, last)) if last.id == record.id => {
                        let shared = last.clone();
                        extents.push((extent, shared));
                    }
                    _ => extents.push((extent, Arc::new(record))),
                }
            }
            let end = if last_page {
                u64::MAX
            } else {
                extents.last().map_or(u64::MAX, |(last, _)| last.range().end)
            };
            if end >= range.end {
                *self = Known { window: Some(range.start..end), extents };
                return Ok(());
            }
            from = end;
        }
    }

    fn touching(&self, range: &Range<u64>) -> impl Iterator<Item = &(Extent, Arc<ObjectRecord>)> {
        let first = self.extents.partition_point(|(extent, _)| extent.range().end <= range.start);
        let end = range.end;
        self.extents[first..].iter().take_while(move |(extent, _)| extent.offset < end)
    }
}

/// Whether a file is read in order, and how far it has been fetched ahead.
#[derive(Default)]
struct ReadAhead {
    expected: u64,
    run: u64,
    fetched: u64,
}

impl ReadAhead {
    /// Bytes read in order before anything is fetched ahead.
    const PATIENCE: u64 = 128 << 10;

    fn is_in_order(&self) -> bool {
        self.run >= Self::PATIENCE
    }

    /// Note a read of `range`; the range to fetch now, if any.
    fn note(&mut self, range: &Range<u64>, size: u64, window: u64) -> Option<Range<u64>> {
        // The kernel sends the pieces of its own read-ahead side by side, so order is judged loosely.
        let slack = 4 << 20;
        if range.start > self.expected + slack || range.end + slack < self.expected {
            *self = ReadAhead::default();
        }
        self.run += range.end - range.start;
        self.expected = self.expected.max(range.end);
        if !self.is_in_order() {
            return None;
        }
        let from = self.fetched.max(range.end);
        let to = (range.end + window).min(size);
        // In steps of a quarter, so that the store is not asked at every read.
        if to <= from || (to - from < window / 4 && to < size) {
            return None;
        }
        self.fetched = to;
        Some(from..to)
    }
}

#[cfg(test)]
mod tests {
    use common::hash::{Hash, HashId};
    use common::wire::{NodeId, VolumeId};
    use proptest::prelude::*;

    use super::*;
    use crate::inode::ROOT;
    use crate::metadata::sqlite::SqliteStore;
    use crate::metadata::{Commit, NewInode, VolumeSettings};

    const NOW: Time = Time { seconds: 1, nanos: 0 };

    /// A file in a store, and which of its bytes are in no hole.
    struct Sparse {
        store: SqliteStore,
        file: OpenFile,
        objects: u64,
        model: Vec<bool>,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, usize),
        Seal,
        Commit,
        Punch(u64, u64),
        Truncate(u64),
    }

    impl Sparse {
        fn new() -> Sparse {
            let store = SqliteStore::open_in_memory().unwrap();
            let settings = VolumeSettings {
                volume: VolumeId([7; 16]),
                name: "test".into(),
                code: Code::new(3, 2).unwrap(),
                hash: HashId::Blake3,
                object_size: 4096,
                root: (0, 0),
                created: NOW,
            };
            store.format(&settings).unwrap();
            store.configure(&[1, 2, 3, 4, 5].map(|k| NodeId([k; 16]))).unwrap();
            let new = NewInode { mode: libc::S_IFREG, ..NewInode::default() };
            let inode = store.create(ROOT, b"a", &new, NOW).unwrap();
            let file = OpenFile::new(&inode, settings.code, settings.object_size);
            Sparse { store, file, objects: 0, model: Vec::new() }
        }

        fn step(&mut self, step: &Step) {
            match *step {
                Step::Write(offset, length) => self.write(offset, length),
                Step::Seal => self.seal(),
                Step::Commit => self.commit(),
                Step::Punch(from, to) => {
                    let to = to.min(self.model.len() as u64);
                    let from = from.min(to);
                    self.store.punch(self.file.ino, from..to, NOW).unwrap();
                    self.file.state().clip(from..to);
                    self.model[from as usize..to as usize].fill(false);
                }
                Step::Truncate(size) => {
                    self.store.truncate(self.file.ino, size, NOW).unwrap();
                    self.file.state().truncate(size);
                    self.model.resize(size as usize, false);
                }
            }
        }

        fn write(&mut self, offset: u64, length: usize) {
            let (from, end) = (offset as usize, offset as usize + length);
            self.file.state().write(offset, &vec![7; length], NOW);
            self.model.resize(self.model.len().max(end), false);
            self.model[from..end].fill(true);
        }

        fn seal(&mut self) {
            self.file.state().seal_all(|| {
                self.objects += 1;
                ObjectId { epoch: 1, counter: self.objects }
            });
        }

        /// The older half of what is sealed.
        fn commit(&mut self) {
            let mut state = self.file.state();
            let half = state.seals.len().div_ceil(2);
            for seal in state.seals.iter_mut().take(half) {
                seal.progress = Progress::Stored(ObjectRecord {
                    id: seal.id,
                    length: seal.length,
                    fpcc: Hash::from([1; 32]),
                    code: Code::new(3, 2).unwrap(),
                    configuration: 1,
                    exceptions: Vec::new(),
                });
            }
            let (objects, files) = state.ready(self.file.ino);
            self.store.commit(&Commit { objects, files }).unwrap();
            state.drop_committed(half);
        }

        fn seek(&self, from: u64) -> (Option<u64>, u64) {
            let (mut state, ino) = (self.file.state(), self.file.ino);
            let data = state.next_data(ino, from, &self.store).unwrap();
            (data, state.next_hole(ino, from, &self.store).unwrap())
        }

        fn check(&self, from: usize) {
            let next = |wanted: bool| self.model[from..].iter().position(|byte| *byte == wanted);
            let data = next(true).map(|at| (from + at) as u64);
            let hole = next(false).map_or(self.model.len(), |at| from + at) as u64;
            assert_eq!(self.seek(from as u64), (data, hole), "from {from}");
        }
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u64..300, 1usize..40).prop_map(|(offset, length)| Step::Write(offset, length)),
            2 => Just(Step::Seal),
            2 => Just(Step::Commit),
            1 => (0u64..300, 0u64..100).prop_map(|(from, length)| Step::Punch(from, from + length)),
            1 => (0u64..350).prop_map(Step::Truncate),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn data_and_holes_are_found_in_whatever_layer_they_are(steps in proptest::collection::vec(step(), 1..40)) {
            let mut file = Sparse::new();
            for step in &steps {
                file.step(step);
                // Backwards too: what is remembered is of another place then.
                (0..file.model.len()).step_by(7).for_each(|from| file.check(from));
                (0..file.model.len()).rev().step_by(5).for_each(|from| file.check(from));
            }
        }
    }

    #[test]
    fn data_and_holes_are_found_among_more_extents_than_are_remembered() {
        let mut file = Sparse::new();
        for first in [0, 2] {
            (0..2 * REMEMBERED as u64).for_each(|k| file.write(4 * k + first, 1));
            file.seal();
            file.commit();
            assert!(file.file.state().is_clean());
            (0..file.model.len()).for_each(|from| file.check(from));
        }
        // Without a hole, in extents of several objects.
        for first in [1, 3] {
            (0..2 * REMEMBERED as u64).for_each(|k| file.write(4 * k + first, 1));
            file.seal();
            file.commit();
        }
        assert_eq!(file.seek(0), (Some(0), 8 * REMEMBERED as u64));
    }

    #[test]
    fn who_reads_in_order_is_known_until_he_jumps() {
        let (mut ahead, size, window) = (ReadAhead::default(), 1 << 30, 16 << 20);
        let read = |ahead: &mut ReadAhead, offset: u64, length: u64| {
            ahead.note(&(offset..offset + length), size, window);
            ahead.is_in_order()
        };
        assert!(!read(&mut ahead, 0, 64 << 10) && read(&mut ahead, 64 << 10, 64 << 10));
        assert!(read(&mut ahead, 1 << 20, 1 << 20), "the kernel's pieces come in any order");
        assert!(!read(&mut ahead, 512 << 20, 64 << 10), "elsewhere");
    }
}
