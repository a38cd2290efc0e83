//! Opening a data folder: what is on disk becomes the index, and what a crash tore is taken out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::fpcc::Fpcc;
use common::wire::{BootId, FragmentName};
use parking_lot::Mutex;

use super::folder::Folder;
use super::index::Index;
use super::log::Log;
use super::moves::Moves;
use super::record::{Head, Life, Position, Seal};
use super::segment::Segment;
use super::upkeep::Upkeep;
use super::volumes::Volumes;
use super::walk::{Found, Walk};
use super::{Flushing, IDLE_BUFFER_BYTES, Named, Space, Store, StoreOptions, disk, shape};
use crate::buffers::Buffers;
use crate::error::StoreError;
use crate::metrics::StoreCounts;

const SMALL_CAPACITY: u64 = 1 << 30;
const LEAST_RESERVE: u64 = 64 << 20;
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=256 << 20;

impl Store {
    /// Open a data folder, or make one.
    ///
    /// Everything flushed is there afterwards, also after a power loss; nothing that is there is half-written.
    pub fn open(options: StoreOptions) -> Result<Arc<Store>, StoreError> {
        let folder = Folder::open(&options.data, options.disk)?;
        let volumes = Volumes::load(&folder)?;
        let room = folder.room().map_err(|error| StoreError::folder(folder.path(), error.to_string()))?;
        let capacity = options.capacity.unwrap_or(room.total);
        let scanned = scan(&folder)?;
        let upkeep = Arc::<Upkeep>::default();
        let log = Log::new(
            folder.disk().clone(),
            folder.segments(),
            folder.seal.clone(),
            (capacity / 16).clamp(*SEGMENT_BYTES.start(), *SEGMENT_BYTES.end()),
            upkeep.clone(),
            scanned.segments.into_values().collect(),
            scanned.next_sequence,
        );
        let store = Arc::new(Store {
            folder,
            zone: options.zone,
            capacity,
            reserve: reserve(capacity),
            log,
            index: Mutex::new(scanned.index),
            used: AtomicU64::new(scanned.used),
            volumes,
            buried_in: Mutex::default(),
            moves: Moves::default(),
            boot: Mutex::new(BootId(disk::random_bytes())),
            flushing: Flushing::default(),
            upkeep,
            buffers: Buffers::new(IDLE_BUFFER_BYTES),
            counts: StoreCounts::default(),
        });
        // Whatever is seen from now on is durable, names included, which the last run may not have come to flush; what it
        // left open is verified, so it is sealed.
        store.folder.sync_names().map_err(StoreError::io("flush names"))?;
        store.flush_blocking()?;
        if options.has_upkeep {
            store.upkeep.start(Arc::downgrade(&store)).map_err(StoreError::io("start a thread"))?;
        }
        Ok(store)
    }
}

fn reserve(capacity: u64) -> u64 {
    if capacity < SMALL_CAPACITY { capacity / 16 } else { (capacity / 100).max(LEAST_RESERVE) }
}

/// What a scan makes of the segments.
struct Scan {
    seal: Seal,
    index: Index,
    segments: BTreeMap<u32, Arc<Segment>>,
    used: u64,
    next_sequence: u64,
    torn: u64,
}

fn scan(folder: &Folder) -> Result<Scan, StoreError> {
    let mut scan = Scan {
        seal: folder.seal.clone(),
        index: Index::default(),
        segments: BTreeMap::new(),
        used: 0,
        next_sequence: 1,
        torn: 0,
    };
    for segment in open_segments(folder)? {
        let failed = StoreError::io(format!("scan segment {}", segment.number));
        scan.segments.insert(segment.number, segment.clone());
        scan.segment(&segment).map_err(failed)?;
    }
    scan.segments.values().for_each(|segment| segment.give_back());
    if scan.torn > 0 {
        tracing::warn!(records = scan.torn, "torn records dropped");
    }
    Ok(scan)
}

fn open_segments(folder: &Folder) -> Result<Vec<Arc<Segment>>, StoreError> {
    let path = folder.segments();
    let refused = |why: String| StoreError::folder(folder.path(), why);
    let mut segments = Vec::new();
    for name in folder.disk().names(&path).map_err(|error| refused(error.to_string()))? {
        let (number, sealed) =
            Segment::parse_name(&name).ok_or_else(|| refused(format!("segments/{name} is not a segment")))?;
        let segment = Segment::open(folder.disk(), &path, number, sealed);
        segments.push(Arc::new(segment.map_err(|error| refused(format!("segments/{name}: {error}")))?));
    }
    segments.sort_by_key(|segment| segment.number);
    Ok(segments)
}

impl Scan {
    fn segment(&mut self, segment: &Arc<Segment>) -> std::io::Result<()> {
        let seal = self.seal.clone();
        let holes = Holes::of(segment)?;
        // What an earlier run marked dead and did not flush is flushed with the rest before anybody is told of it.
        segment.dirty.store(true, Ordering::SeqCst);
        let mut end = 0;
        let mut walk = Walk::new(segment, &seal)?;
        while let Some(found) = walk.next()? {
            let record = found.offset..found.offset + found.head.lengths().record();
            segment.note_dead(end, found.offset);
            end = record.end;
            self.next_sequence = self.next_sequence.max(found.head.sequence + 1);
            if found.life == Life::Dead {
                segment.note_dead(record.start, record.end);
            } else if is_whole(segment, &holes, &found) {
                self.adopt(segment, found.offset, &found.head)?;
            } else {
                self.torn += 1;
                segment.bury(record.start, record.end - record.start)?;
            }
        }
        segment.trim_zeros(end)
    }

    /// Take a record into the index, or bury it or what it supersedes.
    fn adopt(&mut self, segment: &Arc<Segment>, offset: u64, head: &Head<'_>) -> std::io::Result<()> {
        let position = Position { segment: segment.number, offset };
        let length = head.lengths().record();
        let name = head.name();
        let Ok(fpcc) = Fpcc::parse(head.fpcc) else { return segment.bury(offset, length) };
        let shape = shape(&fpcc, head.fpcc.len());
        let rivals = self.rivals(head.space, &name, &shape.fpcc);
        if let Some(newest) = rivals.iter().map(|(_, rival)| self.sequence(*rival)).max() {
            // Equal sequences are copies: the one found later stays, its segment was the younger.
            if newest > head.sequence {
                tracing::debug!(fragment = %Named(head.space, &name), "superseded");
                return segment.bury(offset, length);
            }
            for (rival, position) in rivals {
                self.supersede(head.space, &rival, position)?;
            }
        }
        let before = self.index.insert(head.space, &name, &shape, position);
        debug_assert_eq!(before, Ok(None), "rivals are gone");
        segment.enliven(length);
        self.used += length;
        Ok(())
    }

    /// Records that cannot stay beside one of this name and FPCC.
    fn rivals(
        &self,
        space: Space,
        name: &FragmentName,
        fpcc: &common::hash::Hash,
    ) -> Vec<(FragmentName, Position)> {
        let Some(holding) = self.index.find(space, &name.key, name.version) else { return Vec::new() };
        let other_fpcc = holding.shape().fpcc != *fpcc;
        let indexes = holding.indexes().into_iter().filter(|index| other_fpcc || *index == name.index);
        let rival = |index| FragmentName { index, ..name.clone() };
        indexes.map(|index| (rival(index), holding.position(index).expect("held"))).collect()
    }

    fn supersede(&mut self, space: Space, name: &FragmentName, position: Position) -> std::io::Result<()> {
        let holding = self.index.find(space, &name.key, name.version).expect("a rival is kept");
        let length = holding.lengths(name.key.len()).record();
        self.index.remove(space, name);
        self.used -= length;
        let segment = &self.segments[&position.segment];
        segment.forget(length);
        segment.bury(position.offset, length)
    }

    /// The sequence of a record that was adopted; 0 if it is not readable any more.
    fn sequence(&self, position: Position) -> u64 {
        let mut header = [0; 16];
        let read = self.segments[&position.segment].read(position.offset, &mut header);
        let sequence = header[8..].first_chunk().expect("8 bytes");
        read.map_or(0, |()| u64::from_le_bytes(*sequence))
    }
}

/// What of a segment's records needs to be verified.
enum Holes {
    /// Everything: no flush covered it for sure.
    Unflushed,
    /// Nothing.
    None,
    /// What touches a hole.
    Some,
}

impl Holes {
    fn of(segment: &Segment) -> std::io::Result<Holes> {
        if !segment.is_sealed() {
            // What a failed flush left in the page cache is not what the disk has.
            segment.sync()?;
            segment.file().drop_cached();
            return Ok(Holes::Unflushed);
        }
        let length = segment.length()?;
        let first = segment.file().next_hole(0)?;
        Ok(if first.is_none_or(|first| first >= length) { Holes::None } else { Holes::Some })
    }
}

fn is_whole(segment: &Segment, holes: &Holes, found: &Found<'_>) -> bool {
    let fragment = found.fragment();
    let verify = match holes {
        Holes::Unflushed => true,
        Holes::None => false,
        Holes::Some => {
            let hole = segment.file().next_hole(fragment.start);
            hole.map_or(true, |hole| hole.is_some_and(|hole| hole < fragment.end))
        }
    };
    found.complete && (!verify || verifies(segment, found))
}

fn verifies(segment: &Segment, found: &Found<'_>) -> bool {
    let mut fragment = vec![0; found.head.fragment_length as usize];
    let read = segment.read(found.fragment().start, &mut fragment);
    let fpcc = Fpcc::parse(found.head.fpcc);
    read.is_ok() && fpcc.is_ok_and(|fpcc| fpcc.check_bytes(found.head.index.into(), &fragment).is_ok())
}
