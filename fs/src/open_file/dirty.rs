//! Bytes that were written and not yet sealed: runs of a file that do not overlap. A value; it knows no object.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::buffers::{Buffer, Buffers};

/// Room left behind an object's bytes for the zeros that fill up its last data fragment (m - 1 at most).
pub const PADDING: usize = 256;

/// A run grows in these steps, in bytes, so that neither a small file holds a large buffer nor a large one is
/// copied more than a few times on its way to a whole object.
/// Runs in one object, at most. In the store each may become three extents, and there a change is bounded.
pub const MOST_RUNS: usize = 4 << 10;
const STEPS: [usize; 3] = [16 << 10, 128 << 10, 1 << 20];

/// The dirty runs of one file.
pub struct DirtyRuns {
    runs: BTreeMap<u64, Buffer>,
    bytes: u64,
    object_size: usize,
    /// Where the last full run ended: one that begins there very likely gets its full length, too.
    full_until: Option<u64>,
}

impl DirtyRuns {
    /// None yet; no run will be longer than `object_size` bytes.
    pub fn new(object_size: usize) -> DirtyRuns {
        DirtyRuns { runs: BTreeMap::new(), bytes: 0, object_size, full_until: None }
    }

    /// Bytes in all runs.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether nothing is dirty.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Where the last run ends; 0 if there is none.
    pub fn end(&self) -> u64 {
        self.runs.last_key_value().map_or(0, |(start, run)| start + run.len() as u64)
    }

    /// The range of the first run that ends after an offset.
    pub fn next_run(&self, after: u64) -> Option<Range<u64>> {
        let range = |(start, run): (&u64, &Buffer)| *start..*start + run.len() as u64;
        let before = self.runs.range(..=after).next_back().map(range).filter(|run| run.end > after);
        before.or_else(|| self.runs.range(after..).next().map(range))
    }

    /// Lay `data` over the runs at `offset`; returns how many bytes are dirty that were not before.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> u64 {
        let before = self.bytes;
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let taken = self.write_some(at, rest);
            at += taken as u64;
            rest = &rest[taken..];
        }
        self.bytes - before
    }

    /// As much as one run takes, at least one byte.
    fn write_some(&mut self, at: u64, data: &[u8]) -> usize {
        let object_size = self.object_size;
        let next = self.runs.range(at + 1..).next().map(|(start, _)| *start);
        let gap = next.map_or(data.len(), |next| data.len().min((next - at) as usize));
        if let Some((start, run)) = self.runs.range_mut(..=at).next_back() {
            let inside = (at - start) as usize;
            if inside < run.len() {
                let taken = data.len().min(run.len() - inside);
                run.as_mut_slice()[inside..inside + taken].copy_from_slice(&data[..taken]);
                return taken;
            }
            if inside == run.len() && run.len() < object_size {
                let taken = gap.min(object_size - run.len());
                append(run, &data[..taken], object_size);
                self.bytes += taken as u64;
                return taken;
            }
            if inside == run.len() {
                self.full_until = Some(at);
            }
        }
        let taken = gap.min(object_size);
        let capacity = if self.full_until == Some(at) { object_size + PADDING } else { taken };
        let mut run = Buffers::shared().take(capacity);
        run.extend_from_slice(&data[..taken]);
        self.runs.insert(at, run);
        self.bytes += taken as u64;
        taken
    }

    /// Forget what lies in `range`; returns how many bytes are no longer dirty.
    pub fn clip(&mut self, range: Range<u64>) -> u64 {
        let before = self.bytes;
        let touched: Vec<u64> = self
            .runs
            .range(..range.end)
            .rev()
            .take_while(|(start, run)| **start + run.len() as u64 > range.start)
            .map(|(start, _)| *start)
            .collect();
        for start in touched {
            let run = self.runs.remove(&start).expect("the run was just listed");
            self.bytes -= run.len() as u64;
            let end = start + run.len() as u64;
            if start < range.start {
                self.keep(start, &run[..(range.start - start) as usize]);
            }
            if end > range.end {
                self.keep(range.end, &run[(range.end - start) as usize..]);
            }
        }
        before - self.bytes
    }

    fn keep(&mut self, start: u64, bytes: &[u8]) {
        let mut run = Buffers::shared().take(bytes.len());
        run.extend_from_slice(bytes);
        self.bytes += bytes.len() as u64;
        self.runs.insert(start, run);
    }

    /// The dirty pieces within `range`, by offset.
    pub fn pieces(&self, range: Range<u64>) -> impl Iterator<Item = (u64, &[u8])> {
        let first = self.runs.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        self.runs.range(first..range.end.max(first)).filter_map(move |(&start, run)| {
            let end = start + run.len() as u64;
            let from = start.max(range.start);
            let to = end.min(range.end);
            (from < to).then(|| (from, &run[(from - start) as usize..(to - start) as usize]))
        })
    }

    /// Take out what makes an object's worth after a write to `written`: a run of full length there, or, once that
    /// many bytes are dirty in several runs, the first that fit together. None while less has gathered.
    pub fn take_full(&mut self, written: Range<u64>) -> Option<Vec<(u64, Buffer)>> {
        let full = self
            .runs
            .range(..written.end)
            .rev()
            .take_while(|(start, run)| *start + run.len() as u64 > written.start)
            .find(|(_, run)| run.len() >= self.object_size)
            .map(|(start, _)| *start);
        if let Some(start) = full {
            let run = self.runs.remove(&start).expect("the run was just found");
            self.full_until = Some(start + run.len() as u64);
            self.bytes -= run.len() as u64;
            return Some(vec![(start, run)]);
        }
        let is_much = self.bytes >= self.object_size as u64 || self.runs.len() >= MOST_RUNS;
        if is_much && self.runs.len() > 1 {
            return self.take_some();
        }
        None
    }

    /// Take out the first runs that fit into one object together, and are not too many; none if nothing is dirty.
    pub fn take_some(&mut self) -> Option<Vec<(u64, Buffer)>> {
        let mut taken = Vec::new();
        let mut length = 0;
        while let Some(entry) = self.runs.first_entry() {
            let is_full = length + entry.get().len() > self.object_size || taken.len() == MOST_RUNS;
            if is_full && !taken.is_empty() {
                break;
            }
            let (start, run) = entry.remove_entry();
            length += run.len();
            taken.push((start, run));
        }
        self.bytes -= length as u64;
        (!taken.is_empty()).then_some(taken)
    }
}

fn append(run: &mut Buffer, data: &[u8], object_size: usize) {
    let needed = run.len() + data.len();
    if needed > run.capacity() {
        let whole = object_size + PADDING;
        let step = STEPS.into_iter().find(|step| *step >= needed && *step < whole).unwrap_or(whole);
        let mut larger = Buffers::shared().take(step);
        larger.extend_from_slice(run);
        *run = larger;
    }
    run.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OBJECT: usize = 64;

    #[test]
    fn an_object_has_no_more_runs_than_it_may() {
        let mut dirty = DirtyRuns::new(1 << 20);
        for k in 0..MOST_RUNS as u64 {
            assert!(dirty.take_full(0..0).is_none());
            dirty.write(2 * k, &[1]);
        }
        assert_eq!(dirty.take_full(0..0).map(|runs| runs.len()), Some(MOST_RUNS));
        for k in 0..MOST_RUNS as u64 + 9 {
            dirty.write(2 * k, &[1]);
        }
        let taken: Vec<usize> = std::iter::from_fn(|| dirty.take_some()).map(|runs| runs.len()).collect();
        assert_eq!(taken, [MOST_RUNS, 9]);
        assert_eq!(dirty.bytes(), 0);
    }

    /// What the runs say of the first `length` bytes of the file.
    fn image(dirty: &DirtyRuns, length: u64) -> Vec<Option<u8>> {
        let mut image = vec![None; length as usize];
        for (start, bytes) in dirty.pieces(0..length) {
            for (at, byte) in bytes.iter().enumerate() {
                let place = &mut image[start as usize + at];
                assert!(place.is_none(), "two runs at {}", start as usize + at);
                *place = Some(*byte);
            }
        }
        image
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write(u64, Vec<u8>),
        Clip(u64, u64),
        TakeFull(u64, u64),
        TakeSome,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u64..300, proptest::collection::vec(any::<u8>(), 1..150)).prop_map(|(o, d)| Step::Write(o, d)),
            2 => (0u64..300, 0u64..200).prop_map(|(a, n)| Step::Clip(a, a + n)),
            1 => (0u64..450, 1u64..100).prop_map(|(a, n)| Step::TakeFull(a, a + n)),
            1 => Just(Step::TakeSome),
        ]
    }

    proptest! {
        #[test]
        fn runs_are_the_file_that_was_written(steps in proptest::collection::vec(step(), 1..40)) {
            const END: u64 = 500;
            let mut dirty = DirtyRuns::new(OBJECT);
            let mut model: Vec<Option<u8>> = vec![None; END as usize];
            for step in steps {
                match step {
                    Step::Write(offset, data) => {
                        let fresh = (0..data.len()).filter(|at| model[offset as usize + at].is_none()).count() as u64;
                        prop_assert_eq!(dirty.write(offset, &data), fresh);
                        for (at, byte) in data.iter().enumerate() {
                            model[offset as usize + at] = Some(*byte);
                        }
                    }
                    Step::Clip(from, to) => {
                        let gone = (from..to).filter(|at| model[*at as usize].is_some()).count() as u64;
                        prop_assert_eq!(dirty.clip(from..to), gone);
                        (from..to).for_each(|at| model[at as usize] = None);
                    }
                    Step::TakeFull(..) | Step::TakeSome => {
                        let taken = match step {
                            Step::TakeFull(from, to) => dirty.take_full(from..to),
                            _ => dirty.take_some(),
                        };
                        let runs = taken.unwrap_or_default();
                        prop_assert!(runs.iter().map(|(_, run)| run.len()).sum::<usize>() <= OBJECT);
                        for (start, run) in runs {
                            for (at, byte) in run.iter().enumerate() {
                                let place = &mut model[start as usize + at];
                                prop_assert_eq!(*place, Some(*byte));
                                *place = None;
                            }
                        }
                    }
                }
                prop_assert_eq!(image(&dirty, END), model.clone());
                prop_assert_eq!(dirty.bytes(), model.iter().flatten().count() as u64);
            }
        }
    }

    #[test]
    fn pieces_are_cut_to_the_range_asked_for() {
        let mut dirty = DirtyRuns::new(OBJECT);
        dirty.write(10, b"abcdef");
        let pieces: Vec<_> = dirty.pieces(12..14).collect();
        assert_eq!(pieces, [(12, &b"cd"[..])]);
        assert_eq!(dirty.pieces(16..20).count(), 0);
        assert_eq!(dirty.pieces(0..10).count(), 0);
    }

    #[test]
    fn sequential_writes_make_whole_objects() {
        let mut dirty = DirtyRuns::new(OBJECT);
        let mut at = 0;
        let mut objects = Vec::new();
        for _ in 0..10 {
            dirty.write(at, &[7; 20]);
            at += 20;
            while let Some(runs) = dirty.take_full(at - 20..at) {
                objects.push((runs[0].0, runs[0].1.len()));
            }
        }
        assert_eq!(objects, [(0, 64), (64, 64), (128, 64)]);
        assert_eq!(dirty.bytes(), 200 - 192);
    }

    /// After the first full run each run had a whole object's buffer, however far away and small.
    #[test]
    fn only_a_run_that_continues_a_full_one_has_a_whole_objects_buffer() {
        const OBJECT: usize = 1 << 20;
        let capacity = |dirty: &DirtyRuns, start: u64| dirty.runs[&start].capacity();
        let mut dirty = DirtyRuns::new(OBJECT);
        // A stream whose writes end at the object's end, and one whose writes do not.
        for (from, write) in [(0u64, OBJECT / 4), (64 << 20, OBJECT / 4 + 1000)] {
            let mut at = from;
            while at < from + 3 * OBJECT as u64 {
                dirty.write(at, &vec![7; write]);
                at += write as u64;
                while dirty.take_full(at - write as u64..at).is_some() {}
                if let Some(start) = dirty.runs.keys().next().filter(|start| **start >= from + OBJECT as u64)
                {
                    assert!(capacity(&dirty, *start) >= OBJECT + PADDING, "{start}");
                }
            }
            for far in 1..100 {
                let offset = (1 << 30) + far * OBJECT as u64;
                dirty.write(offset, &[7; 4096]);
                assert!(capacity(&dirty, offset) < 16 << 10, "{}", capacity(&dirty, offset));
            }
            dirty.clip(0..u64::MAX);
        }
    }
}
