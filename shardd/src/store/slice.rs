//! A verified range of a fragment, without reading the rest of it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use common::fpcc::{Fpcc, Inconsistent};
use common::hash::HashId;
use common::slice::{Tree, covered, slice_length, tree, verify_slice};
use common::wire::{FragmentName, fragment_prefix};

use super::record::{Lengths, Position};
use super::segment::Segment;
use super::{Named, Space, Store, StoredFragment, not_found};
use crate::error::StoreError;

impl Store {
    /// The range of a fragment with what verifies it: a slice in the place of the fragment.
    ///
    /// Only where the hash is BLAKE3. It was verified against the FPCC.
    pub fn slice(
        &self,
        space: Space,
        name: &FragmentName,
        range: Range<u64>,
    ) -> Result<StoredFragment, StoreError> {
        self.check_space(space)?;
        for _ in 0..3 {
            let (segment, position, lengths) = self.locate(space, name)?;
            let made = self.cut(&segment, position, lengths, (space, name), &range);
            if self.index.lock().position(space, name) == Some(position) {
                return made;
            }
        }
        Err(not_found(space, name))
    }

    /// Bytes of the slice body that `slice` would return.
    pub fn slice_length(
        &self,
        space: Space,
        name: &FragmentName,
        range: Range<u64>,
    ) -> Result<usize, StoreError> {
        self.check_space(space)?;
        let (.., lengths) = self.locate(space, name)?;
        let slice = slice_length(lengths.fragment as u64, range).map_err(wrong_range)?;
        Ok(4 + lengths.fpcc + slice as usize)
    }

    fn cut(
        &self,
        segment: &Arc<Segment>,
        position: Position,
        lengths: Lengths,
        (space, name): (Space, &FragmentName),
        range: &Range<u64>,
    ) -> Result<StoredFragment, StoreError> {
        let record = Record { segment, offset: position.offset, lengths };
        let failed = || StoreError::io(format!("read {}", Named(space, name)));
        let head = record.read(0..lengths.head()).map_err(failed())?;
        let damaged = || {
            self.drop_damaged(space, name, position);
            not_found(space, name)
        };
        let head = self.head_of(space, name, position, &head).ok_or_else(damaged)?;
        let fpcc = Fpcc::parse(head.fpcc).map_err(|_| damaged())?;
        if fpcc.hash_id() != HashId::Blake3 {
            return Err(StoreError::Request(format!(
                "{} has no slices: its hash is SHA-256",
                Named(space, name)
            )));
        }
        let length = lengths.fragment as u64;
        let covered = covered(length, range.clone()).map_err(wrong_range)?;
        let verifies = |slice: &Bytes| {
            let root = fpcc.fragment_hash(name.index.into());
            verify_slice(root, length, range.clone(), slice.clone()).is_ok()
        };
        let quick = record.slice_by_tree(range, &covered).map_err(failed())?.filter(verifies);
        let slice = match quick {
            Some(slice) => slice,
            None => {
                let slow = record.slice_of_whole(range).map_err(failed())?;
                slow.filter(verifies).ok_or_else(damaged)?
            }
        };
        let body = [&fragment_prefix(head.fpcc)[..], &slice].concat();
        Ok(StoredFragment { body: body.into(), fpcc_length: head.fpcc.len() })
    }
}

/// One record on disk, believed to have these lengths.
struct Record<'a> {
    segment: &'a Segment,
    offset: u64,
    lengths: Lengths,
}

impl Record<'_> {
    fn read(&self, range: Range<usize>) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; range.len()];
        self.segment.read(self.offset + range.start as u64, &mut bytes)?;
        Ok(bytes)
    }

    /// From the tree kept and the bytes covered; whatever the disk has, so it may not verify.
    fn slice_by_tree(&self, range: &Range<u64>, covered: &Range<u64>) -> std::io::Result<Option<Bytes>> {
        let kept = self.read(self.lengths.content()..self.lengths.whole())?;
        let tree = Tree::parse(self.lengths.fragment as u64, &kept);
        let Some(mut slice) = tree.and_then(|tree| tree.proof(range.clone()).ok()) else { return Ok(None) };
        let from = self.lengths.head();
        slice.extend_from_slice(&self.read(from + covered.start as usize..from + covered.end as usize)?);
        Ok(Some(slice.into()))
    }

    fn slice_of_whole(&self, range: &Range<u64>) -> std::io::Result<Option<Bytes>> {
        let fragment = self.read(self.lengths.head()..self.lengths.content())?;
        Ok(tree(&fragment).slice(&fragment, range.clone()).ok().map(Bytes::from))
    }
}

fn wrong_range(error: Inconsistent) -> StoreError {
    StoreError::Request(error.to_string())
}
