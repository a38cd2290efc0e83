//! The records of a segment, one after the other, without reading fragments. What the disk cannot read is no record.

use std::io;

use super::record::{ALIGNMENT, HEADER, Head, Lengths, Life, Position, Seal};
use super::segment::{BLOCK, Segment};

/// Bytes read at once where records are far apart, and where they are close.
const WINDOW: std::ops::RangeInclusive<usize> = 4 << 10..=256 << 10;

/// A walk over one segment. What is no record is stepped over.
pub struct Walk<'a> {
    segment: &'a Segment,
    seal: &'a Seal,
    length: u64,
    at: u64,
    window: Vec<u8>,
    window_at: u64,
    window_size: usize,
}

/// One record found.
pub struct Found<'a> {
    /// Where it begins.
    pub offset: u64,
    /// What stands before its fragment.
    pub head: Head<'a>,
    /// Whether it is alive.
    pub life: Life,
    /// The file goes on to its end.
    pub complete: bool,
}

impl Found<'_> {
    /// Where its fragment lies.
    pub fn fragment(&self) -> std::ops::Range<u64> {
        let lengths = self.head.lengths();
        self.offset + lengths.head() as u64..self.offset + lengths.content() as u64
    }
}

impl<'a> Walk<'a> {
    /// From the beginning of `segment` to where it ends now.
    pub fn new(segment: &'a Segment, seal: &'a Seal) -> io::Result<Walk<'a>> {
        Ok(Walk {
            segment,
            seal,
            length: segment.length()?,
            at: 0,
            window: Vec::new(),
            window_at: 0,
            window_size: *WINDOW.start(),
        })
    }

    /// The next record.
    pub fn next(&mut self) -> io::Result<Option<Found<'_>>> {
        let Some((offset, lengths)) = self.find()? else { return Ok(None) };
        self.at = offset + lengths.record();
        let position = Position { segment: self.segment.number, offset };
        let from = (offset - self.window_at) as usize;
        let (head, life) =
            Head::decode(self.seal, position, &self.window[from..]).expect("find() decoded it");
        let complete = offset + lengths.whole() as u64 <= self.length;
        Ok(Some(Found { offset, head, life, complete }))
    }

    /// The next valid head, which is then in the window.
    fn find(&mut self) -> io::Result<Option<(u64, Lengths)>> {
        while self.cover(HEADER)? {
            let (at, header) = (self.at, self.ahead().first_chunk().expect("covered"));
            if let Some(lengths) = Lengths::of_header(header)
                && self.cover(lengths.head())?
            {
                if self.at != at {
                    // What stood there is a hole by now.
                    continue;
                }
                if Head::decode(self.seal, self.position(), self.ahead()).is_some() {
                    return Ok(Some((self.at, lengths)));
                }
            }
            self.at += ALIGNMENT;
        }
        Ok(None)
    }

    fn position(&self) -> Position {
        Position { segment: self.segment.number, offset: self.at }
    }

    fn ahead(&self) -> &[u8] {
        &self.window[(self.at - self.window_at) as usize..]
    }

    /// Have `wanted` bytes from `at` on in the window; `false` at the end of the segment. Steps over holes.
    fn cover(&mut self, wanted: usize) -> io::Result<bool> {
        let window_end = self.window_at + self.window.len() as u64;
        if (self.window_at..=window_end).contains(&self.at) && self.at + wanted as u64 <= window_end {
            return Ok(true);
        }
        self.resize_window(window_end);
        match self.segment.file().next_data(self.at)? {
            Some(data) => self.at = self.at.max(data / ALIGNMENT * ALIGNMENT),
            None => return Ok(false),
        }
        self.fill(wanted)
    }

    /// Read more at once while records are close together, little when the last one was large.
    fn resize_window(&mut self, window_end: u64) {
        let close = self.at <= window_end;
        self.window_size = if close { (2 * self.window_size).min(*WINDOW.end()) } else { *WINDOW.start() };
    }

    fn fill(&mut self, wanted: usize) -> io::Result<bool> {
        let left = self.length.saturating_sub(self.at);
        let size = left.min(self.window_size.max(wanted) as u64) as usize;
        self.window.resize(size, 0);
        self.window_at = self.at;
        if self.segment.read(self.at, &mut self.window).is_err() {
            self.fill_by_blocks();
        }
        Ok(size >= wanted)
    }

    /// Fill the window but for what the disk cannot read: zeros stand there, which are no record.
    fn fill_by_blocks(&mut self) {
        let mut at = self.window_at;
        let mut rest = &mut self.window[..];
        while !rest.is_empty() {
            let size = ((at / BLOCK + 1) * BLOCK - at).min(rest.len() as u64) as usize;
            let (block, behind) = rest.split_at_mut(size);
            if let Err(error) = self.segment.read(at, block) {
                tracing::warn!(segment = self.segment.number, offset = at, %error, "unreadable block stepped over");
                block.fill(0);
            }
            (at, rest) = (at + size as u64, behind);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use avidfs_tests::fuzz::fuzz;

    use super::super::disk::{Disk, LocalDisk};
    use super::super::record::{Space, reseal};
    use super::*;

    const SEAL: Seal = Seal([7; 32]);

    fn head(sequence: u64) -> Head<'static> {
        Head {
            sequence,
            space: Space::ObjectStore,
            key: "k",
            version: 1,
            index: 0,
            fpcc: b"an fpcc",
            fragment_length: 100,
            tree_groups: 0,
        }
    }

    /// Records one after the other, and the checks of all heads as they should be where they stand now.
    fn segment(bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for offset in (0..bytes.len()).step_by(ALIGNMENT as usize) {
            let position = Position { segment: 1, offset: offset as u64 };
            reseal(&SEAL, position, &mut bytes[offset..]);
        }
        bytes
    }

    fn records(count: u64) -> Vec<u8> {
        let record = |sequence| {
            let mut record = head(sequence).encode(&SEAL, Position { segment: 1, offset: 0 });
            record.resize(head(sequence).lengths().record() as usize, 0xee);
            record
        };
        segment(&(1..=count).flat_map(record).collect::<Vec<u8>>())
    }

    /// A record in whose fragment another one stands.
    fn carrier() -> Vec<u8> {
        let head = Head { fragment_length: 400, ..head(1) };
        let mut record = head.encode(&SEAL, Position { segment: 1, offset: 0 });
        record.resize(head.lengths().record() as usize, 0);
        record[2 * ALIGNMENT as usize..][..ALIGNMENT as usize * 3].copy_from_slice(&records(1));
        segment(&record)
    }

    /// Where each record begins and ends.
    fn walked(folder: &Path, bytes: &[u8]) -> Vec<(u64, u64)> {
        let disk: Arc<dyn Disk> = Arc::new(LocalDisk);
        let file = Segment::create(&disk, folder, 1).unwrap();
        file.file().write(0, &segment(bytes)).unwrap();
        let mut walk = Walk::new(&file, &SEAL).unwrap();
        let mut found = Vec::new();
        while let Some(record) = walk.next().unwrap() {
            assert_eq!(
                record.complete,
                record.offset + record.head.lengths().whole() as u64 <= bytes.len() as u64
            );
            found.push((record.offset, record.offset + record.head.lengths().record()));
        }
        file.remove().unwrap();
        found
    }

    #[test]
    fn whatever_the_bytes_a_walk_ends_and_its_records_stand_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(walked(folder.path(), &records(3)).len(), 3);
        assert_eq!(walked(folder.path(), &carrier()), [(0, carrier().len() as u64)]);
        let valid = [records(3), records(1), carrier()];
        let parse = |bytes: &[u8]| Some(walked(folder.path(), bytes));
        fuzz(
            "segment",
            &valid,
            |length| 8 * length + (16 << 10),
            parse,
            |found, bytes| {
                assert!(
                    found
                        .iter()
                        .all(|(from, _)| from.is_multiple_of(ALIGNMENT) && *from < bytes.len() as u64)
                );
                assert!(found.is_sorted_by(|before, after| before.1 <= after.0), "{found:?}");
            },
        );
    }
}
