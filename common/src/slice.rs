//! A byte range of a BLAKE3 fragment with what verifies it against the fragment's hash.
//!
//! The format is drawn in docs/fpcc.md, "Slices". A slice proves that its bytes are those the hash names;
//! whether the object was encoded rightly only the whole fragment's check tells.

use std::ops::Range;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use bytes::{Buf, Bytes};

use crate::fpcc::Inconsistent;
use crate::hash::Hash;

/// Bytes of a group, the leaf of our tree: 16 BLAKE3 chunks, which the widest registers hash at once.
pub const GROUP_LENGTH: u64 = 16 << 10;

const CHAINING_VALUE_LENGTH: u64 = 32;

/// The chaining values of a fragment's groups: what makes slices without reading the whole fragment again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tree {
    shape: Shape,
    /// One per group; none when there is only one group, which BLAKE3 hashes as the root.
    groups: Vec<ChainingValue>,
}

/// The tree of a fragment. Costs one hash of it.
///
/// Panics for an empty fragment, which no object has.
pub fn tree(fragment: &[u8]) -> Tree {
    assert!(!fragment.is_empty(), "a fragment has at least one byte");
    let shape = Shape { length: fragment.len() as u64 };
    let groups = match shape.group_count() {
        1 => Vec::new(),
        _ => (0..)
            .zip(fragment.chunks(GROUP_LENGTH as usize))
            .map(|(i, group)| chaining_value(i, group))
            .collect(),
    };
    Tree { shape, groups }
}

impl Tree {
    /// Reads what [`Tree::to_bytes`] wrote for a fragment of this length; `None` when the lengths do not fit.
    ///
    /// Wrong values make slices that no verifier accepts.
    pub fn parse(fragment_length: u64, bytes: &[u8]) -> Option<Tree> {
        let shape = Shape { length: fragment_length };
        let (groups, rest) = bytes.as_chunks();
        let fits = fragment_length > 0 && rest.is_empty() && groups.len() as u64 == shape.kept_groups();
        fits.then(|| Tree { shape, groups: groups.to_vec() })
    }

    /// 32 bytes for each group, in order; none for a fragment of one group.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.groups.concat()
    }

    /// The fragment's hash; `None` for a fragment of one group, whose tree is empty.
    pub fn root(&self) -> Option<Hash> {
        if self.groups.is_empty() {
            return None;
        }
        let (left, right) = halves(&(0..self.groups.len() as u64))?;
        let root = merge_subtrees_root(&self.merged(left), &self.merged(right), Mode::Hash);
        Some(Hash::from(*root.as_bytes()))
    }

    /// What goes before the bytes [`covered`] by `range` to make the slice.
    pub fn proof(&self, range: Range<u64>) -> Result<Vec<u8>, Inconsistent> {
        let wanted = self.shape.groups_of(&range)?;
        Ok(self.shape.siblings(&wanted).into_iter().flat_map(|subtree| self.merged(subtree)).collect())
    }

    /// The slice of `fragment`, whose tree this is: proof and covered bytes.
    pub fn slice(&self, fragment: &[u8], range: Range<u64>) -> Result<Vec<u8>, Inconsistent> {
        let (expected, found) = (self.shape.length, fragment.len() as u64);
        if expected != found {
            return Err(Inconsistent::Length { expected, found });
        }
        let covered = covered(expected, range.clone())?;
        let mut slice = self.proof(range)?;
        slice.extend_from_slice(&fragment[covered.start as usize..covered.end as usize]);
        Ok(slice)
    }

    /// The chaining value of the subtree over `groups`.
    fn merged(&self, groups: Range<u64>) -> ChainingValue {
        match halves(&groups) {
            None => self.groups[groups.start as usize],
            Some((left, right)) => {
                merge_subtrees_non_root(&self.merged(left), &self.merged(right), Mode::Hash)
            }
        }
    }
}

/// The bytes that a slice of `range` carries: whole groups, to the end of the fragment at most.
pub fn covered(fragment_length: u64, range: Range<u64>) -> Result<Range<u64>, Inconsistent> {
    let shape = Shape { length: fragment_length };
    Ok(shape.bytes_of(&shape.groups_of(&range)?))
}

/// How long the slice of `range` is, proof and bytes.
pub fn slice_length(fragment_length: u64, range: Range<u64>) -> Result<u64, Inconsistent> {
    let shape = Shape { length: fragment_length };
    let wanted = shape.groups_of(&range)?;
    let bytes = shape.bytes_of(&wanted);
    Ok((bytes.end - bytes.start).saturating_add(shape.proof_length(&wanted)))
}

/// The bytes `range` of the fragment with BLAKE3 hash `root`, if `slice` proves them.
///
/// The fragment's length is that of the FPCC; a slice without the last group does not prove it.
/// The answer shares the slice's memory. Works in no more memory than the slice has.
pub fn verify_slice(
    root: &Hash,
    fragment_length: u64,
    range: Range<u64>,
    slice: Bytes,
) -> Result<Bytes, Inconsistent> {
    let (expected, found) = (slice_length(fragment_length, range.clone())?, slice.len() as u64);
    if expected != found {
        return Err(Inconsistent::Length { expected, found });
    }
    let shape = Shape { length: fragment_length };
    let wanted = shape.groups_of(&range)?;
    let mut bytes = slice;
    let proof = bytes.split_to(shape.proof_length(&wanted) as usize);
    let start = (range.start - shape.bytes_of(&wanted).start) as usize;
    let length = (range.end - range.start) as usize;
    let answer = bytes.slice(start..start + length);

    let found = Slice { wanted, proof, bytes }.root(&shape);
    if found != *root {
        return Err(Inconsistent::Hash { expected: *root, found });
    }
    Ok(answer)
}

/// A slice being consumed from left to right.
struct Slice {
    wanted: Range<u64>,
    proof: Bytes,
    bytes: Bytes,
}

impl Slice {
    /// The hash of the whole fragment that this slice implies; its length was checked.
    fn root(mut self, shape: &Shape) -> Hash {
        let root = match halves(&(0..shape.group_count())) {
            None => blake3::hash(&self.bytes),
            Some((left, right)) => {
                let left = self.subtree(left);
                merge_subtrees_root(&left, &self.subtree(right), Mode::Hash)
            }
        };
        Hash::from(*root.as_bytes())
    }

    fn subtree(&mut self, groups: Range<u64>) -> ChainingValue {
        if are_disjoint(&groups, &self.wanted) {
            return self.next_of_proof();
        }
        match halves(&groups) {
            None => self.next_group(groups.start),
            Some((left, right)) => {
                let left = self.subtree(left);
                merge_subtrees_non_root(&left, &self.subtree(right), Mode::Hash)
            }
        }
    }

    fn next_of_proof(&mut self) -> ChainingValue {
        let mut value = ChainingValue::default();
        self.proof.copy_to_slice(&mut value);
        value
    }

    fn next_group(&mut self, index: u64) -> ChainingValue {
        let length = self.bytes.len().min(GROUP_LENGTH as usize);
        chaining_value(index, &self.bytes.split_to(length))
    }
}

/// The chaining value of group `index`, not being the only one.
fn chaining_value(index: u64, group: &[u8]) -> ChainingValue {
    blake3::Hasher::new().set_input_offset(index * GROUP_LENGTH).update(group).finalize_non_root()
}

/// The groups of a fragment of `length` bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Shape {
    length: u64,
}

impl Shape {
    fn group_count(&self) -> u64 {
        self.length.div_ceil(GROUP_LENGTH)
    }

    /// How many chaining values a tree has.
    fn kept_groups(&self) -> u64 {
        Some(self.group_count()).filter(|&count| count > 1).unwrap_or(0)
    }

    /// The groups that `range` touches.
    fn groups_of(&self, range: &Range<u64>) -> Result<Range<u64>, Inconsistent> {
        if range.is_empty() || range.end > self.length {
            return Err(Inconsistent::Range { start: range.start, end: range.end, length: self.length });
        }
        Ok(range.start / GROUP_LENGTH..(range.end - 1) / GROUP_LENGTH + 1)
    }

    /// The bytes of these groups.
    fn bytes_of(&self, groups: &Range<u64>) -> Range<u64> {
        let end = groups.end.saturating_mul(GROUP_LENGTH).min(self.length);
        groups.start * GROUP_LENGTH..end
    }

    fn proof_length(&self, wanted: &Range<u64>) -> u64 {
        self.siblings(wanted).len() as u64 * CHAINING_VALUE_LENGTH
    }

    /// The largest subtrees that hold none of the wanted groups, left to right; at most two for each level.
    fn siblings(&self, wanted: &Range<u64>) -> Vec<Range<u64>> {
        let mut found = Vec::new();
        add_siblings(0..self.group_count(), wanted, &mut found);
        found
    }
}

fn add_siblings(groups: Range<u64>, wanted: &Range<u64>, found: &mut Vec<Range<u64>>) {
    if are_disjoint(&groups, wanted) {
        return found.push(groups);
    }
    let is_within = wanted.start <= groups.start && groups.end <= wanted.end;
    if let (false, Some((left, right))) = (is_within, halves(&groups)) {
        add_siblings(left, wanted, found);
        add_siblings(right, wanted, found);
    }
}

/// The two subtrees below the one over `groups`, as BLAKE3 splits it; none below a single group.
fn halves(groups: &Range<u64>) -> Option<(Range<u64>, Range<u64>)> {
    let last = groups.end - groups.start - 1;
    let left = 1 << last.checked_ilog2()?;
    let middle = groups.start + left;
    Some((groups.start..middle, middle..groups.end))
}

fn are_disjoint(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.end <= b.start || b.end <= a.start
}

#[cfg(test)]
mod tests {
    use avidfs_tests::fuzz::fuzz;
    use proptest::prelude::*;

    use super::*;
    use crate::hash::HashId;

    const GROUP: usize = GROUP_LENGTH as usize;

    fn fragment(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at % 251 + at / 16_384) as u8).collect()
    }

    fn verified(fragment: &[u8], range: Range<u64>) -> Result<Bytes, Inconsistent> {
        let slice = tree(fragment).slice(fragment, range.clone())?;
        verify_slice(&HashId::Blake3.hash(fragment), fragment.len() as u64, range, slice.into())
    }

    #[test]
    fn a_slice_yields_its_range_for_lengths_around_every_border() {
        let borders = [1, 1024, GROUP, 2 * GROUP, 3 * GROUP, 4 * GROUP, 5 * GROUP, 8 * GROUP, 17 * GROUP];
        let lengths = borders.into_iter().flat_map(|border| [border - 1, border, border + 1]);
        for length in lengths.filter(|&length| length > 0) {
            let fragment = fragment(length);
            let borders = [0, 1, GROUP - 1, GROUP, GROUP + 1, 3 * GROUP, length / 2, length - 1, length];
            for (start, end) in borders.into_iter().flat_map(|a| borders.map(|b| (a, b))) {
                if start < end && end <= length {
                    let range = start as u64..end as u64;
                    let bytes = verified(&fragment, range.clone());
                    assert_eq!(bytes.as_deref(), Ok(&fragment[start..end]), "{length} {range:?}");
                }
            }
        }
    }

    #[test]
    fn a_trees_root_is_the_hash() {
        for length in [1, GROUP, GROUP + 1, 2 * GROUP, 5 * GROUP - 1, 86 * GROUP + 7] {
            let fragment = fragment(length);
            let root = (length > GROUP).then(|| HashId::Blake3.hash(&fragment));
            assert_eq!(tree(&fragment).root(), root, "{length}");
        }
    }

    #[test]
    fn a_slice_carries_whole_groups_and_few_chaining_values() {
        let fragment = fragment(5 * GROUP);
        let slice = tree(&fragment).slice(&fragment, 2 * GROUP_LENGTH + 5..2 * GROUP_LENGTH + 6).unwrap();
        assert_eq!(slice.len(), 3 * 32 + GROUP);
        assert_eq!(slice[3 * 32..], fragment[2 * GROUP..3 * GROUP]);
        assert_eq!(slice[64..96], chaining_value(4, &fragment[4 * GROUP..]));
        assert_eq!(slice_length(fragment.len() as u64, 0..fragment.len() as u64), Ok(fragment.len() as u64));
    }

    #[test]
    fn every_tampered_byte_of_a_slice_is_noticed() {
        let fragment = fragment(6 * GROUP + 100);
        let length = fragment.len() as u64;
        let root = HashId::Blake3.hash(&fragment);
        for range in [GROUP_LENGTH..GROUP_LENGTH + 10, length - 1..length] {
            let slice = tree(&fragment).slice(&fragment, range.clone()).unwrap();
            for at in 0..slice.len() {
                let mut tampered = slice.clone();
                tampered[at] ^= 1 << (at % 8);
                let refusal = verify_slice(&root, length, range.clone(), tampered.into());
                assert!(matches!(refusal, Err(Inconsistent::Hash { .. })), "{range:?} byte {at}");
            }
        }
    }

    #[test]
    fn a_slice_is_good_for_its_own_range_and_fragment_only() {
        let fragment = fragment(4 * GROUP);
        let length = fragment.len() as u64;
        let root = HashId::Blake3.hash(&fragment);
        let slice = Bytes::from(tree(&fragment).slice(&fragment, 0..1).unwrap());
        let verify = |root, length, range| verify_slice(root, length, range, slice.clone());
        assert!(verify(&root, length, 0..GROUP_LENGTH).is_ok(), "the same groups");
        assert!(matches!(
            verify(&root, length, GROUP_LENGTH..GROUP_LENGTH + 1),
            Err(Inconsistent::Hash { .. })
        ));
        assert!(matches!(verify(&root, length + 1, 0..1), Err(Inconsistent::Length { .. })), "a fifth group");
        assert!(matches!(verify(&root, length, 0..GROUP_LENGTH + 1), Err(Inconsistent::Length { .. })));
        let other = HashId::Blake3.hash(b"another");
        assert!(matches!(verify(&other, length, 0..1), Err(Inconsistent::Hash { .. })));
    }

    #[test]
    fn a_range_outside_the_fragment_is_refused() {
        let fragment = fragment(100);
        #[expect(clippy::reversed_empty_ranges, reason = "it is what is refused")]
        for range in [0..0, 100..100, 50..40, 0..101, u64::MAX - 1..u64::MAX] {
            assert!(matches!(verified(&fragment, range), Err(Inconsistent::Range { .. })));
        }
    }

    #[test]
    fn a_tree_is_read_back_as_it_was() {
        for length in [1, GROUP, GROUP + 1, 5 * GROUP] {
            let tree = tree(&fragment(length));
            let bytes = tree.to_bytes();
            assert_eq!(Tree::parse(length as u64, &bytes), Some(tree));
            assert_eq!(Tree::parse(length as u64, &[&bytes[..], &[0]].concat()), None);
            assert_eq!(Tree::parse((length + 2 * GROUP) as u64, &bytes), None);
        }
        assert_eq!(Tree::parse(0, &[]), None);
    }

    proptest! {
        #[test]
        fn any_range_of_any_fragment_is_verified(length in 1..200_000usize, a: u64, b: u64) {
            let fragment = fragment(length);
            let (a, b) = (a % length as u64, b % length as u64);
            let range = a.min(b)..a.max(b) + 1;
            let expected = &fragment[range.start as usize..range.end as usize];
            let bytes = verified(&fragment, range);
            prop_assert_eq!(bytes.as_deref(), Ok(expected));
        }
    }

    /// Length, beginning and end, as the other side says them, and the slice.
    fn claimed(length: u64, range: Range<u64>, slice: Vec<u8>) -> Vec<u8> {
        [length, range.start, range.end].into_iter().flat_map(u64::to_le_bytes).chain(slice).collect()
    }

    #[test]
    fn whatever_is_claimed_of_a_slice_it_is_refused_or_gives_the_fragments_bytes() {
        let fragment = fragment(3 * GROUP + 100);
        let (length, root) = (fragment.len() as u64, HashId::Blake3.hash(&fragment));
        let claims = [0..1, GROUP_LENGTH - 5..GROUP_LENGTH, length - 1..length];
        let slice = |range: Range<u64>| tree(&fragment).slice(&fragment, range).unwrap();
        let valid = claims.map(|range| claimed(length, range.clone(), slice(range)));
        let parse = |bytes: &[u8]| {
            let (head, slice) = bytes.split_at_checked(24)?;
            let number = |i: usize| u64::from_le_bytes(head.as_chunks().0[i]);
            let range = number(1)..number(2);
            let bytes = verify_slice(&root, number(0), range.clone(), Bytes::copy_from_slice(slice)).ok()?;
            Some((range, bytes))
        };
        // At most two subtrees for each level are listed.
        fuzz(
            "slice",
            &valid,
            |length| length + (8 << 10),
            parse,
            |(range, bytes), _| {
                assert_eq!(bytes, fragment[range.start as usize..range.end as usize]);
            },
        );
    }

    #[test]
    fn whatever_the_bytes_a_tree_is_refused_or_written_the_same() {
        let of =
            |length: u64| [&length.to_le_bytes()[..], &tree(&fragment(length as usize)).to_bytes()].concat();
        let valid = [of(5 * GROUP_LENGTH), of(GROUP_LENGTH + 1), of(1)];
        let parse = |bytes: &[u8]| {
            let (length, tree) = bytes.split_first_chunk()?;
            Tree::parse(u64::from_le_bytes(*length), tree)
        };
        fuzz(
            "tree",
            &valid,
            |length| length + 256,
            parse,
            |tree, bytes| {
                assert_eq!(tree.to_bytes(), bytes[8..]);
                let _ = (tree.root(), tree.proof(0..1));
            },
        );
    }

    /// The right number of bytes for a fragment that could not exist: refused by the hash, without a panic.
    #[test]
    fn the_largest_length_there_is_does_not_overflow() {
        let root = HashId::Blake3.hash(b"any");
        for range in [0..1, u64::MAX - 1..u64::MAX, 1 << 63..(1 << 63) + 1] {
            let length = slice_length(u64::MAX, range.clone()).unwrap();
            let slice = vec![7; length as usize].into();
            assert!(matches!(verify_slice(&root, u64::MAX, range, slice), Err(Inconsistent::Hash { .. })));
        }
    }
}
