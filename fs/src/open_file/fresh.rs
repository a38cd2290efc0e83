//! Ranges of a file that were written and are durable nowhere yet. A value; it knows no bytes.

use std::ops::Range;

/// More ranges than this are not kept apart.
const MOST: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub struct Fresh {
    /// By offset, apart from each other.
    ranges: Vec<Range<u64>>,
    /// Too many to know: anything may be fresh.
    anything: bool,
}

impl Fresh {
    /// A range was written.
    pub fn add(&mut self, range: Range<u64>) {
        let first = self.ranges.partition_point(|known| known.end < range.start);
        let end = first + self.ranges[first..].partition_point(|known| known.start <= range.end);
        let whole = self.ranges[first..end]
            .iter()
            .fold(range, |whole, known| whole.start.min(known.start)..whole.end.max(known.end));
        self.ranges.splice(first..end, [whole]);
        if self.ranges.len() > MOST {
            self.lose_track();
        }
    }

    /// A range is somebody else's business from now on, or gone.
    pub fn remove(&mut self, range: &Range<u64>) {
        let parts = |known: &Range<u64>| {
            let before = known.start..known.end.min(range.start);
            let after = known.start.max(range.end)..known.end;
            [before, after].into_iter().filter(|part| part.start < part.end)
        };
        self.ranges = self.ranges.iter().flat_map(parts).collect();
    }

    /// It is not known any more what is durable.
    pub fn lose_track(&mut self) {
        (self.anything, self.ranges) = (true, Vec::new());
    }

    /// Everything is durable.
    pub fn clear(&mut self) {
        *self = Fresh::default();
    }

    /// Whether something of a range may be fresh.
    pub fn touches(&self, range: &Range<u64>) -> bool {
        self.anything || self.ranges.iter().any(|known| known.start < range.end && range.start < known.end)
    }

    /// The ranges, by offset, if they are known and have at most `most` bytes together.
    pub fn ranges(&self, most: u64) -> Option<&[Range<u64>]> {
        let bytes: u64 = self.ranges.iter().map(|range| range.end - range.start).sum();
        (!self.anything && bytes <= most).then_some(&self.ranges)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_added_and_not_removed_is_fresh(
            steps in proptest::collection::vec((any::<bool>(), 0u64..200, 1u64..40), 0..60),
        ) {
            let (mut fresh, mut model) = (Fresh::default(), [false; 240]);
            for (adds, start, length) in steps {
                let range = start..start + length;
                model[start as usize..(start + length) as usize].fill(adds);
                if adds { fresh.add(range) } else { fresh.remove(&range) }
            }
            for (at, is_fresh) in model.iter().enumerate() {
                prop_assert_eq!(fresh.touches(&(at as u64..at as u64 + 1)), *is_fresh, "byte {}", at);
            }
            let bytes = model.iter().filter(|is_fresh| **is_fresh).count() as u64;
            let ranges = fresh.ranges(bytes).unwrap();
            prop_assert!(ranges.is_sorted_by(|a, b| a.end < b.start));
            prop_assert!(bytes == 0 || fresh.ranges(bytes - 1).is_none());
        }
    }

    #[test]
    fn of_too_many_ranges_it_is_only_known_that_there_are_some() {
        let mut fresh = Fresh::default();
        (0..=MOST as u64).for_each(|at| fresh.add(at * 10..at * 10 + 5));
        assert!(fresh.touches(&(7..8)) && fresh.ranges(u64::MAX).is_none());
        fresh.remove(&(0..u64::MAX));
        assert!(fresh.touches(&(7..8)));
        fresh.clear();
        assert!(!fresh.touches(&(0..u64::MAX)));
    }
}
