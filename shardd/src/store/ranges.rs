//! Which bytes of a segment are dead, so that neighbours can be given back together.

use std::collections::BTreeMap;
use std::ops::Range;

/// Disjoint ranges that do not touch, by where they begin.
#[derive(Default, Debug)]
pub struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Add `range`, which overlaps none, and return the whole range it is now part of.
    pub fn add(&mut self, range: Range<u64>) -> Range<u64> {
        let mut whole = range;
        if let Some((&start, &end)) = self.0.range(..=whole.start).next_back()
            && end >= whole.start
        {
            whole = start..whole.end.max(end);
        }
        while let Some((&start, &end)) = self.0.range(whole.start..=whole.end).next() {
            self.0.remove(&start);
            whole.end = whole.end.max(end);
        }
        self.0.insert(whole.start, whole.end);
        whole
    }

    /// Every range, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(&start, &end)| start..end)
    }
}

/// The whole blocks inside `dead` that `added` has a part of: what giving `added` back lets the file system have.
pub fn blocks_freed(dead: &Range<u64>, added: &Range<u64>, block: u64) -> Option<Range<u64>> {
    let mut from = added.start / block * block;
    if from < dead.start {
        from += block;
    }
    let mut to = added.end.next_multiple_of(block);
    if to > dead.end {
        to -= block;
    }
    (from < to).then_some(from..to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbours_become_one() {
        let mut ranges = Ranges::default();
        assert_eq!(ranges.add(0..10), 0..10);
        assert_eq!(ranges.add(20..30), 20..30);
        assert_eq!(ranges.add(10..20), 0..30);
        assert!(ranges.iter().eq(std::iter::once(0..30)));
    }

    #[test]
    fn a_block_is_freed_when_its_last_part_dies() {
        assert_eq!(blocks_freed(&(64..4000), &(64..4000), 4096), None);
        assert_eq!(blocks_freed(&(64..9000), &(64..9000), 4096), Some(4096..8192));
        assert_eq!(blocks_freed(&(0..4096), &(4032..4096), 4096), Some(0..4096));
        assert_eq!(blocks_freed(&(0..8192), &(4096..8192), 4096), Some(4096..8192));
    }

    proptest! {
        #[test]
        fn every_dead_block_is_freed_exactly_when_it_is_complete(
            order in Just((0..64u64).collect::<Vec<_>>()).prop_shuffle(), taken in 0..64usize,
        ) {
            let (unit, block) = (64, 256);
            let mut ranges = Ranges::default();
            let mut freed = std::collections::BTreeSet::new();
            for &at in &order[..taken] {
                let added = at * unit..(at + 1) * unit;
                let dead = ranges.add(added.clone());
                if let Some(blocks) = blocks_freed(&dead, &added, block) {
                    freed.extend((blocks.start / block)..(blocks.end / block));
                }
            }
            let dead: std::collections::BTreeSet<_> = order[..taken].iter().collect();
            let complete = (0..16).filter(|b| (b * 4..b * 4 + 4).all(|at| dead.contains(&at))).collect();
            prop_assert_eq!(freed, complete);
        }
    }
}
