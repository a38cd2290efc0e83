//! Large buffers used again, because the first touch of a page costs more than filling it.
//! It knows nothing of what is in them.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use parking_lot::Mutex;

/// Shorter buffers are ordinary vectors: the allocator serves them from pages already touched.
pub const LARGE: usize = 64 << 10;

/// Bytes of a cache line.
const LINE: usize = 64;

/// What the process-wide buffers keep for reuse: enough for the fragments of a few objects in flight.
const KEPT_BYTES: usize = 32 << 20;

/// Buffers waiting to be used again, and which memory is lent out. Cheap to clone; clones share.
#[derive(Clone)]
pub struct Buffers {
    shelf: Arc<Mutex<Shelf>>,
}

struct Shelf {
    /// Most bytes kept.
    bound: usize,
    /// Bytes kept now.
    kept_bytes: usize,
    /// By capacity.
    kept: BTreeMap<usize, Vec<Vec<u8>>>,
    /// Frozen buffers still referred to: where each begins and how much memory it holds.
    frozen: BTreeMap<usize, usize>,
}

impl Buffers {
    /// Keeps at most `bound` bytes of unused memory.
    pub fn new(bound: usize) -> Buffers {
        let shelf = Shelf { bound, kept_bytes: 0, kept: BTreeMap::new(), frozen: BTreeMap::new() };
        Buffers { shelf: Arc::new(Mutex::new(shelf)) }
    }

    /// The ones of this process.
    pub fn shared() -> &'static Buffers {
        static SHARED: LazyLock<Buffers> = LazyLock::new(|| Buffers::new(KEPT_BYTES));
        &SHARED
    }

    /// An empty buffer that holds `capacity` bytes without growing.
    pub fn take(&self, capacity: usize) -> Buffer {
        let mut bytes = self.take_as_left(capacity);
        bytes.clear();
        Buffer { bytes, start: 0, home: self.clone() }
    }

    fn take_as_left(&self, capacity: usize) -> Vec<u8> {
        if capacity < LARGE {
            return Vec::with_capacity(capacity);
        }
        let rounded = round_up(capacity);
        let kept = self.shelf.lock().take(rounded);
        kept.unwrap_or_else(|| Vec::with_capacity(rounded))
    }

    /// A buffer of `length` bytes of whatever was in its memory before. Only for who writes all of them: clearing them
    /// first would cost as much as that does.
    pub fn take_dirty(&self, length: usize) -> Buffer {
        let mut bytes = self.take_as_left(length);
        bytes.resize(length, 0);
        Buffer { bytes, start: 0, home: self.clone() }
    }

    /// The same, for what is `position` bytes behind the beginning of what it comes in: a large one lies in lines of the
    /// cache as that does. Copying to where is a few bytes further in its line, or its page, than where from takes three times
    /// as long on some processors: what is loaded looks as if it had just been stored.
    pub fn take_dirty_at(&self, position: usize, length: usize) -> Buffer {
        if length < LARGE {
            return self.take_dirty(length);
        }
        let mut bytes = self.take_as_left(length + LINE);
        let start = position.wrapping_sub(bytes.as_ptr() as usize) % LINE;
        bytes.resize(start + length, 0);
        Buffer { bytes, start, home: self.clone() }
    }

    /// How much memory `bytes` keeps from being used again: the whole buffer it is a slice of,
    /// or its own length where it is not from here.
    pub fn held_by(&self, bytes: &[u8]) -> usize {
        let start = bytes.as_ptr() as usize;
        match self.shelf.lock().frozen.range(..=start).next_back() {
            Some((&from, &length)) if start < from + length => length,
            _ => bytes.len(),
        }
    }

    /// Bytes of memory kept unused.
    pub fn kept_bytes(&self) -> usize {
        self.shelf.lock().kept_bytes
    }

    fn give_back(&self, bytes: Vec<u8>) {
        if bytes.capacity() < LARGE {
            return;
        }
        // What does not fit is freed after the lock is.
        let _refused = self.shelf.lock().keep(bytes);
    }
}

impl Shelf {
    /// At most twice as large as wanted, so that a small one does not hold a large one's memory.
    fn take(&mut self, capacity: usize) -> Option<Vec<u8>> {
        let (&found, waiting) = self.kept.range_mut(capacity..=2 * capacity).next()?;
        let bytes = waiting.pop();
        if waiting.is_empty() {
            self.kept.remove(&found);
        }
        self.kept_bytes -= found;
        bytes
    }

    fn keep(&mut self, bytes: Vec<u8>) -> Option<Vec<u8>> {
        let capacity = bytes.capacity();
        if self.kept_bytes + capacity > self.bound {
            return Some(bytes);
        }
        self.kept_bytes += capacity;
        self.kept.entry(capacity).or_default().push(bytes);
        None
    }
}

/// To an eighth of the next lower power of two: sizes nearly alike share buffers, at most an eighth is wasted.
fn round_up(capacity: usize) -> usize {
    let step = (1 << capacity.ilog2()) / 8;
    capacity.next_multiple_of(step)
}

/// A growing run of bytes; its memory goes back to where it was taken from.
pub struct Buffer {
    bytes: Vec<u8>,
    /// Where it begins in them.
    start: usize,
    home: Buffers,
}

impl Buffer {
    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes it holds without growing.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity() - self.start
    }

    /// Append.
    pub fn extend_from_slice(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
    }

    /// Append the next `length` bytes of `source`; fewer there are an error.
    pub fn extend_from_reader(&mut self, source: impl Read, length: usize) -> io::Result<()> {
        match source.take(length as u64).read_to_end(&mut self.bytes)? {
            read if read == length => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Append the next bytes of `source`, up to `length`; fewer there are at its end.
    pub fn extend_from_stream(&mut self, source: impl Read, length: usize) -> io::Result<usize> {
        source.take(length as u64).read_to_end(&mut self.bytes)
    }

    /// Cut to `length`, or pad to it with `value`.
    pub fn resize(&mut self, length: usize, value: u8) {
        self.bytes.resize(self.start + length, value);
    }

    /// Its bytes, to change.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }

    /// Never to change again, shared without copying; the memory goes back when the last slice is dropped.
    pub fn freeze(mut self) -> Bytes {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.capacity() < LARGE {
            return Bytes::from(bytes).slice(self.start..);
        }
        let (start, home) = (self.start, self.home.clone());
        home.shelf.lock().frozen.insert(bytes.as_ptr() as usize, bytes.capacity());
        Bytes::from_owner(Frozen { bytes, start, home })
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.bytes));
    }
}

/// Owner of what `Buffer::freeze` handed out.
struct Frozen {
    bytes: Vec<u8>,
    start: usize,
    home: Buffers,
}

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.home.shelf.lock().frozen.remove(&(self.bytes.as_ptr() as usize));
        self.home.give_back(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn memory_is_used_again_once_the_last_slice_is_gone() {
        let buffers = Buffers::new(8 * MIB);
        let mut buffer = buffers.take(MIB);
        buffer.resize(MIB, 7);
        let address = buffer.as_ptr();
        let whole = buffer.freeze();
        let slice = whole.slice(100..200);
        drop(whole);
        assert_eq!(buffers.kept_bytes(), 0, "a slice still refers to it");
        assert_eq!(&slice[..], &[7; 100]);
        drop(slice);
        assert_eq!(buffers.kept_bytes(), MIB);
        let again = buffers.take(MIB - 1000);
        assert_eq!((again.as_ptr(), again.len()), (address, 0));
    }

    #[test]
    fn no_more_than_the_bound_is_kept() {
        let buffers = Buffers::new(3 * MIB);
        let taken: Vec<Buffer> = (0..5).map(|_| buffers.take(MIB)).collect();
        drop(taken);
        assert_eq!(buffers.kept_bytes(), 3 * MIB);
    }

    #[test]
    fn a_small_buffer_does_not_take_a_much_larger_one() {
        let buffers = Buffers::new(8 * MIB);
        drop(buffers.take(4 * MIB));
        assert!(buffers.take(MIB).capacity() < 2 * MIB);
        assert_eq!(buffers.kept_bytes(), 5 * MIB);
    }

    #[test]
    fn a_dirty_buffer_has_its_length_and_a_clean_one_none() {
        let buffers = Buffers::new(8 * MIB);
        let mut first = buffers.take(MIB);
        first.resize(MIB / 2, 7);
        drop(first);
        let longer = buffers.take_dirty(MIB);
        assert_eq!((longer.len(), longer[MIB / 2 - 1], longer[MIB / 2]), (MIB, 7, 0));
        drop(longer);
        assert_eq!(buffers.take_dirty(MIB - 1000).len(), MIB - 1000);
        assert_eq!((buffers.take_dirty(1000).len(), buffers.take(MIB).len()), (1000, 0));
    }

    #[test]
    fn a_buffer_lies_in_its_line_as_what_comes_in_it() {
        let buffers = Buffers::new(8 * MIB);
        for position in [0, 14, 63, 64, 1000] {
            let mut buffer = buffers.take_dirty_at(position, MIB);
            assert_eq!(buffer.as_ptr() as usize % LINE, position % LINE);
            buffer.as_mut_slice().fill(7);
            buffer.extend_from_slice(&[8]);
            buffer.resize(MIB + 2, 9);
            let (length, whole) = (buffer.len(), buffer.freeze());
            assert_eq!((length, &whole[..2], &whole[MIB - 1..]), (MIB + 2, &[7, 7][..], &[7, 8, 9][..]));
            assert!(buffers.held_by(&whole) > MIB);
        }
        assert_eq!(buffers.take_dirty_at(14, 1000).freeze().len(), 1000);
    }

    #[test]
    fn small_buffers_are_not_kept() {
        let buffers = Buffers::new(8 * MIB);
        let mut small = buffers.take(1000);
        small.extend_from_slice(b"abc");
        assert_eq!(&small.freeze()[..], b"abc");
        assert_eq!(buffers.kept_bytes(), 0);
    }

    #[test]
    fn a_slice_holds_its_whole_buffer_until_it_is_dropped() {
        let buffers = Buffers::new(8 * MIB);
        let mut buffer = buffers.take(MIB);
        buffer.resize(MIB, 0);
        let slice = buffer.freeze().slice(MIB - 10..);
        assert_eq!(buffers.held_by(&slice), MIB);
        assert_eq!(buffers.held_by(&[1, 2, 3]), 3);
        drop(slice);
        assert!(buffers.shelf.lock().frozen.is_empty());
    }

    #[test]
    fn a_buffer_that_grew_goes_back_too() {
        let buffers = Buffers::new(8 * MIB);
        let mut buffer = buffers.take(10);
        buffer.resize(MIB, 1);
        drop(buffer.freeze());
        assert_eq!(buffers.kept_bytes(), MIB);
    }

    #[test]
    fn what_is_read_is_appended_and_must_be_all_there() {
        let mut buffer = Buffers::new(MIB).take(10);
        buffer.extend_from_slice(b"ab");
        buffer.extend_from_reader(&b"cdef"[..], 3).unwrap();
        assert_eq!(&buffer[..], b"abcde");
        assert!(buffer.extend_from_reader(&b"f"[..], 2).is_err());
    }

    #[test]
    fn rounding_wastes_at_most_an_eighth() {
        for capacity in [LARGE, LARGE + 1, 100_000, 1_398_102, 4 * MIB, 32 * MIB + 1] {
            let rounded = round_up(capacity);
            assert!(rounded >= capacity && rounded <= capacity + capacity / 8, "{capacity} -> {rounded}");
        }
    }
}
