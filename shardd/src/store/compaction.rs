//! Moving what is alive out of a segment, so that its file can go.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::fpcc::Fpcc;
use common::wire::FragmentName;

use super::record::{Head, Life, Position};
use super::segment::Segment;
use super::walk::Walk;
use super::{Named, Space, Store, shape};
use crate::error::StoreError;

impl Store {
    /// Rewrite what is alive in `segment` at the end of the log, flush it, and remove the segment.
    pub(super) fn compact(&self, segment: &Arc<Segment>) -> Result<(), StoreError> {
        tracing::debug!(segment = segment.number, live = segment.live_bytes(), "compaction");
        let moved = self.move_out(segment);
        let flushed = moved.and_then(|_| self.flush_blocking());
        self.end_move(segment)?;
        self.counts.compactions.add(1);
        flushed
    }

    /// Copy every live record of `segment` to the end of the log, verified, and point the index there. How many were
    /// damaged and are no longer kept.
    ///
    /// Until the copies are flushed and `end_move` was called, the segment stays.
    pub(super) fn move_out(&self, segment: &Arc<Segment>) -> Result<u64, StoreError> {
        segment.moving.store(true, Ordering::SeqCst);
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
        segment.moving.store(false, Ordering::SeqCst);
        if segment.is_spent() {
            return self.log.remove(segment).map_err(StoreError::io("remove a segment"));
        }
        Ok(())
    }

    /// `false` if the record was damaged and is no longer kept.
    fn move_record(&self, segment: &Arc<Segment>, offset: u64, head: &Head<'_>) -> Result<bool, StoreError> {
        let from = Position { segment: segment.number, offset };
        let name = FragmentName { key: head.key.to_owned(), version: head.version, index: head.index };
        if self.index.lock().position(head.space, &name) != Some(from) {
            return Ok(true);
        }
        let lengths = head.lengths();
        let mut bytes = self.buffers.take(lengths.whole());
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
        let before = index.insert(head.space, &name, &shape(&fpcc, head.fpcc.len()), copy.position);
        debug_assert_eq!(before, Ok(Some(from)));
        segment.forget(length);
        Ok(true)
    }

    /// Stop keeping a fragment that cannot be read or does not verify, so that nobody is told it is here; `false` if it
    /// was gone already.
    pub(super) fn drop_damaged(&self, space: Space, name: &FragmentName, position: Position) -> bool {
        let mut index = self.index.lock();
        if index.position(space, name) != Some(position) {
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

    /// Drop the fragments of `segment` whose records the walk could not find. How many.
    fn drop_unreadable(&self, segment: &Segment) -> u64 {
        if segment.live_bytes() == 0 || segment.writers.load(Ordering::SeqCst) > 0 {
            return 0;
        }
        let lost = self.index.lock().fragments_in(segment.number);
        let dropped =
            lost.iter().filter(|(space, name, position)| self.drop_damaged(*space, name, *position));
        dropped.count() as u64
    }
}

fn verify(head: &Head<'_>, fragment: &[u8]) -> Option<Fpcc> {
    let fpcc = Fpcc::parse(head.fpcc).ok()?;
    fpcc.check_bytes(head.index.into(), fragment).ok()?;
    Some(fpcc)
}
