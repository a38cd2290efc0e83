//! Files that are read one after the other in the order in which they were made, as tar, cp -r and grep -r do: whose
//! turn comes next. Inode numbers in, ranges of them out; no store and no clock.

use std::ops::RangeInclusive;

use crate::inode::Ino;

/// So many inodes may lie between two files of a run: directories, links, larger files.
const GAP: u64 = 8;
/// So many files are a run.
const RUN: u32 = 3;
/// So many inodes a run is looked ahead of.
const AHEAD: u64 = 128;

/// How files are being read at the moment.
#[derive(Default)]
pub struct Neighbours {
    last: u64,
    run: u32,
    /// The last inode that was told.
    told: u64,
}

impl Neighbours {
    /// A file's first bytes are read. Returns the inodes whose files are worth fetching now, if it is time for some.
    pub fn read(&mut self, ino: Ino) -> Option<RangeInclusive<u64>> {
        let Ino(ino) = ino;
        if ino == self.last {
            return None;
        }
        let follows = ino > self.last && ino - self.last <= GAP;
        self.last = ino;
        if !follows {
            (self.run, self.told) = (1, ino);
            return None;
        }
        self.run = self.run.saturating_add(1);
        self.told = self.told.max(ino);
        // Half of what was told is still to come: time enough to fetch the next half.
        if self.run < RUN || self.told - ino > AHEAD / 2 {
            return None;
        }
        let next = self.told + 1..=ino + AHEAD;
        self.told = ino + AHEAD;
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_told_ahead_once_and_in_order() {
        let mut neighbours = Neighbours::default();
        let mut told = Vec::new();
        for ino in 100..500 {
            if let Some(range) = neighbours.read(Ino(ino)) {
                assert!(*range.start() > ino && *range.end() == ino + AHEAD, "{range:?} at {ino}");
                told.extend(range);
            }
            // Reading on in the same file says nothing.
            assert_eq!(neighbours.read(Ino(ino)), None);
        }
        assert_eq!(told, (103..=told[told.len() - 1]).collect::<Vec<_>>());
        assert!(told.len() >= 397 + AHEAD as usize / 2);
    }

    #[test]
    fn what_is_no_run_is_told_nothing() {
        let mut neighbours = Neighbours::default();
        for ino in [5, 900, 901, 30, 31, 2000, 1999, 1998, 1997, 1996, 50, 90, 130, 170] {
            assert_eq!(neighbours.read(Ino(ino)), None, "{ino}");
        }
    }

    #[test]
    fn directories_between_files_do_not_end_a_run_and_another_place_begins_one() {
        let mut neighbours = Neighbours::default();
        let starts = |neighbours: &mut Neighbours, inos: &[u64]| {
            inos.iter().filter_map(|ino| neighbours.read(Ino(*ino))).collect::<Vec<_>>()
        };
        assert_eq!(starts(&mut neighbours, &[10, 12, 20]), [21..=148]);
        assert_eq!(starts(&mut neighbours, &[1000, 1001, 1002]), [1003..=1130]);
    }
}
