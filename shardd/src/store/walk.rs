//! The records of a segment, one after the other, without reading fragments.

use std::io;

use super::record::{ALIGNMENT, HEADER, Head, Lengths, Life, Position, Seal};
use super::segment::Segment;

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
            let header = self.ahead().first_chunk().expect("covered");
            if let Some(lengths) = Lengths::of_header(header)
                && self.cover(lengths.head())?
                && Head::decode(self.seal, self.position(), self.ahead()).is_some()
            {
                return Ok(Some((self.at, lengths)));
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
        if let Err(error) = self.segment.read(self.at, &mut self.window) {
            self.window.clear();
            return Err(error);
        }
        Ok(size >= wanted)
    }
}
