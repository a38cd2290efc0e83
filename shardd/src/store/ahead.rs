//! Whether zeros are to be written ahead of the log's end before a flush. It knows no file.
//!
//! A flush that finds the file longer, or with more blocks, than the last one has the file system commit its own journal;
//! one that finds old blocks with new bytes has not. Zeros cost a second write of every byte, which small records that are
//! flushed one by one earn many times over, and a stream of large ones never.

use std::ops::Range;

/// Bytes since the last flush up to which it counts as small.
const SMALL: u64 = 64 << 10;
/// Small flushes in a row after which more are expected.
const STREAK: u32 = 4;
/// Zeros written at once: one commit for some two hundred records of 5 KB.
const STEP: u64 = 1 << 20;
/// Parts of a segment, of which a step is at most one; and parts of a step, of which the last is where the next begins.
const PARTS: u64 = 8;
const PAGE: u64 = 4096;

/// What the last flushes of a log were like, and how far its active segment has zeros.
#[derive(Default)]
pub struct Ahead {
    flushed: u64,
    small_flushes: u32,
    zeros: u64,
}

impl Ahead {
    /// A new segment began; it is expected to be used as the last one was.
    pub fn begin_segment(&mut self) {
        (self.flushed, self.zeros) = (0, 0);
    }

    /// The log, which ends at `tail`, is about to be flushed: what to fill with zeros before, if that is going to pay.
    ///
    /// Asked once for each flush. Nothing is written from `limit` on.
    pub fn before_flush(&mut self, tail: u64, limit: u64) -> Option<Range<u64>> {
        let grown = tail.saturating_sub(std::mem::replace(&mut self.flushed, tail));
        if grown == 0 {
            return None;
        }
        self.small_flushes = if grown <= SMALL { self.small_flushes.saturating_add(1) } else { 0 };
        let step = STEP.min(limit / PARTS);
        let from = self.zeros.max(tail);
        if self.small_flushes < STREAK || from - tail >= step / PARTS || from >= limit {
            return None;
        }
        let to = (from + step).min(limit) / PAGE * PAGE;
        (from < to).then_some(from..to)
    }

    /// There are zeros up to `end`.
    pub fn wrote(&mut self, end: u64) {
        self.zeros = end;
    }

    /// The disk takes no zeros: not tried again in this segment.
    pub fn give_up(&mut self) {
        self.zeros = u64::MAX;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 256 << 20;

    /// What is written ahead while `records` are appended and each is flushed.
    fn written(records: impl IntoIterator<Item = u64>, limit: u64) -> Vec<Range<u64>> {
        let (mut ahead, mut tail, mut written) = (Ahead::default(), 0, Vec::new());
        for record in records {
            tail += record;
            if let Some(range) = ahead.before_flush(tail, limit) {
                assert!(range.start >= tail && range.end <= limit, "{range:?} with the end at {tail}");
                ahead.wrote(range.end);
                written.push(range);
            }
        }
        written
    }

    #[test]
    fn small_flushes_are_given_room_once_in_two_hundred() {
        let written = written(std::iter::repeat_n(5 << 10, 2000), LIMIT);
        assert!((9..=12).contains(&written.len()), "{written:?}");
        assert!(written.windows(2).all(|pair| pair[0].end == pair[1].start), "no gap and nothing twice");
    }

    #[test]
    fn a_few_small_flushes_and_large_ones_are_given_none() {
        assert_eq!(written([5 << 10; 3], LIMIT), []);
        assert_eq!(written([1 << 20; 100], LIMIT), []);
        assert_eq!(written((0..100).map(|i| if i % 3 == 0 { 1 << 20 } else { 5 << 10 }), LIMIT), []);
    }

    #[test]
    fn a_flush_of_nothing_new_changes_nothing() {
        let mut ahead = Ahead::default();
        for _ in 0..10 {
            assert_eq!(ahead.before_flush(5 << 10, LIMIT), None);
        }
    }

    #[test]
    fn nothing_is_written_behind_the_end_of_a_segment_however_small_it_is() {
        for limit in [1 << 20, 1 << 21, LIMIT] {
            let count = limit / (5 << 10) + 3;
            let written = written(std::iter::repeat_n(5 << 10, count as usize), limit);
            assert!(written.iter().all(|range| range.end - range.start <= limit / PARTS));
            assert_eq!(written.last().map(|range| range.end), Some(limit));
        }
    }

    #[test]
    fn a_new_segment_goes_on_as_the_last_one_and_a_disk_without_room_is_asked_once() {
        let mut ahead = Ahead::default();
        assert_eq!((1..=STREAK as u64).filter_map(|i| ahead.before_flush(i << 10, LIMIT)).count(), 1);
        ahead.give_up();
        assert!((10..50).all(|i| ahead.before_flush(i << 10, LIMIT).is_none()));
        ahead.begin_segment();
        assert!(ahead.before_flush(1 << 10, LIMIT).is_some());
    }
}
