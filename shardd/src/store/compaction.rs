//! Moving what is alive out of a segment, so that its file can go.

use std::sync::Arc;

use common::fpcc::Fpcc;
use common::wire::FragmentName;

use super::index::Index;
use super::moves::Original;
use super::record::{HEADER, Head, Lengths, Life, Position};
use super::segment::Segment;
use super::walk::Walk;
use super::{Named, Space, Store, shape};
use crate::error::StoreError;

impl Store {
    /// Rewrite what is alive in `segment` at the end of the log, flush it, and remove the segment. After an error
    /// everything stands where it stood.
    pub(super) fn compact(&self, segment: &Arc<Segment>) -> Result<(), StoreError> {
        tracing::debug!(segment = segment.number, live = segment.live_bytes(), "compaction");
        segment.begin_move();
        let moved = self.move_out(segment);
        if let Err(error) = moved.and_then(|_| self.flush_blocking()) {
            self.undo_move(segment);
            return Err(error);
        }
        self.end_move(segment)?;
        self.counts.compactions.add(1);
        Ok(())
    }

    /// Copy every live record of `segment` to the end of the log, verified, and point the index there. How many were
    /// damaged and are no longer kept.
    ///
    /// Between `begin_move` and, once the copies are flushed, `end_move`; `undo_move` if they cannot be.
    pub(super) fn move_out(&self, segment: &Arc<Segment>) -> Result<u64, StoreError> {
        let mut dropped = 0;
        let failed = |error| StoreError::Io { what: format!("walk segment {}", segment.number), error };
        let mut walk = Walk::new(segment, self.log.seal()).map_err(failed)?;
        while let Some(found) = walk.next().map_err(failed)? {
            if found.life == Life::Live && !self.move_record(segment, found.offset, &found.head)? {
                dropped += 1;
            }
        }
        Ok(dropped + self.drop_unreadable(segment))
    }

    /// Remove a segment nothing is left in, now that copies of what was are safe.
    pub(super) fn end_move(&self, segment: &Segment) -> Result<(), StoreError> {
        segment.end_move();
        self.remove_if_useless(segment)
    }

    /// Let the originals count again: of their copies none is known to be safe.
    pub(super) fn undo_move(&self, segment: &Segment) {
        let mut is_restored = true;
        for (copy, original) in self.moves.out_of(segment) {
            is_restored &= self.restore(copy, &original);
        }
        // Where a copy was moved on meanwhile, the segment stays until the next start.
        if is_restored {
            segment.end_move();
        }
    }

    /// Point the index to an original again, if it points to the copy, which is dead then.
    fn restore(&self, copy: Position, original: &Original) -> bool {
        let Some((space, name)) = self.name_at(&original.segment, original.offset) else { return false };
        let mut index = self.index.lock();
        if index.position(space, &name) != Some(copy) {
            return false;
        }
        self.point_back(&mut index, space, &name, copy);
        drop(index);
        if let Some(segment) = self.log.segment(copy.segment)
            && let Err(error) = segment.bury(copy.offset, original.length)
        {
            tracing::warn!(segment = segment.number, %error, "a copy that does not count stays");
        }
        true
    }

    /// Have the index point to what a copy, to which it points now, was made of. False if that is not known.
    fn point_back(&self, index: &mut Index, space: Space, name: &FragmentName, copy: Position) -> bool {
        let Some(original) = self.moves.take(copy) else { return false };
        let holding = index.find(space, &name.key, name.version).expect("it has a position");
        let shape = holding.shape();
        original.segment.enliven(original.length);
        let before = index.insert(space, name, &shape, original.position());
        debug_assert_eq!(before, Ok(Some(copy)));
        self.log.segment(copy.segment).iter().for_each(|segment| segment.forget(original.length));
        true
    }

    /// Which fragment's record stands there, if one does.
    fn name_at(&self, segment: &Segment, offset: u64) -> Option<(Space, FragmentName)> {
        let mut header = [0; HEADER];
        segment.read(offset, &mut header).ok()?;
        let mut bytes = vec![0; Lengths::of_header(&header)?.head()];
        segment.read(offset, &mut bytes).ok()?;
        let position = Position { segment: segment.number, offset };
        let (head, _) = Head::decode(self.log.seal(), position, &bytes)?;
        Some((head.space, head.name()))
    }

    /// Remove the file of a segment that nothing needs any more.
    pub(super) fn remove_if_useless(&self, segment: &Segment) -> Result<(), StoreError> {
        let index = self.index.lock();
        if !segment.is_useless() {
            return Ok(());
        }
        self.moves.forget(segment);
        drop(index);
        self.log.remove(segment).map_err(StoreError::io("remove a segment"))
    }

    /// `false` if the record was damaged and is no longer kept.
    fn move_record(&self, segment: &Arc<Segment>, offset: u64, head: &Head<'_>) -> Result<bool, StoreError> {
        let from = Position { segment: segment.number, offset };
        let name = head.name();
        if self.index.lock().position(head.space, &name) != Some(from) {
            return Ok(true);
        }
        let lengths = head.lengths();
        let mut bytes = self.buffers.take_at(offset as usize, lengths.whole());
        let read = segment.read(offset, &mut bytes);
        let (fragment, tree) = bytes[lengths.head()..].split_at(lengths.fragment);
        let Some(fpcc) = read.ok().and_then(|()| verify(head, fragment)) else {
            return Ok(!self.drop_damaged(head.space, &name, from));
        };
        let copy = self.log.append(head, fragment, tree, true);
        let copy = copy.map_err(|error| self.write_error(error, lengths.record()))?;
        let mut index = self.index.lock();
        if index.position(head.space, &name) != Some(from) {
            drop(index);
            // Deleted meanwhile.
            let length = head.lengths().record();
            copy.segment.bury(copy.position.offset, length).map_err(StoreError::io("bury"))?;
            copy.segment.give_back();
            return Ok(true);
        }
        let length = head.lengths().record();
        copy.segment.enliven(length);
        self.moves.note(copy.position, Original { segment: segment.clone(), offset, length });
        let before = index.insert(head.space, &name, &shape(&fpcc, head.fpcc.len()), copy.position);
        debug_assert_eq!(before, Ok(Some(from)));
        segment.forget(length);
        Ok(true)
    }

    /// Stop keeping a fragment that cannot be read or does not verify, so that nobody is told it is here; `false` if it
    /// was gone already, or if another copy of it is there, which counts from now on.
    pub(super) fn drop_damaged(&self, space: Space, name: &FragmentName, position: Position) -> bool {
        let mut index = self.index.lock();
        if index.position(space, name) != Some(position) || self.point_back(&mut index, space, name, position)
        {
            return false;
        }
        let holding = index.find(space, &name.key, name.version).expect("it has a position");
        let length = holding.lengths(name.key.len()).record();
        index.remove(space, name);
        self.forget(position, length);
        drop(index);
        tracing::warn!(fragment = %Named(space, name), "damaged fragment dropped");
        self.counts.damaged.add(1);
        true
    }

    /// Drop the fragments of `segment` whose records a walk cannot find. How many.
    fn drop_unreadable(&self, segment: &Segment) -> u64 {
        if segment.live_bytes() == 0 {
            return 0;
        }
        let left = self.index.lock().fragments_in(segment.number);
        let is_lost = |(space, name, position): &&(Space, FragmentName, Position)| {
            // One that was still being written when the walk came by, or that counts again since, is there.
            self.name_at(segment, position.offset).is_none_or(|found| found != (*space, name.clone()))
                && self.drop_damaged(*space, name, *position)
        };
        left.iter().filter(is_lost).count() as u64
    }
}

fn verify(head: &Head<'_>, fragment: &[u8]) -> Option<Fpcc> {
    let fpcc = Fpcc::parse(head.fpcc).ok()?;
    fpcc.check_bytes(head.index.into(), fragment).ok()?;
    Some(fpcc)
}
