//! Large buffers, used again: the first touch of fresh memory costs as much as hashing it.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// Smaller ones come from the allocator, which is quick with them.
const SMALLEST: usize = 32 << 10;
/// Lengths are rounded up to this, so that buffers of nearly one length serve each other.
const STEP: usize = 64 << 10;

/// Bytes of a cache line.
const LINE: usize = 64;

/// A bounded pool of idle buffers.
pub struct Buffers {
    idle: Mutex<Idle>,
    most_bytes: usize,
}

#[derive(Default)]
struct Idle {
    buffers: Vec<Box<[u8]>>,
    bytes: usize,
}

/// A buffer of a given length, its contents whatever they were; it goes back to the pool by itself.
pub struct Buffer {
    bytes: Box<[u8]>,
    /// Where it begins in them.
    start: usize,
    length: usize,
    pool: Arc<Buffers>,
}

impl Buffers {
    /// A pool that keeps at most `most_bytes` idle.
    pub fn new(most_bytes: usize) -> Arc<Buffers> {
        Arc::new(Buffers { idle: Mutex::default(), most_bytes })
    }

    /// A buffer of `length` bytes.
    pub fn take(self: &Arc<Self>, length: usize) -> Buffer {
        self.take_at(0, length)
    }

    /// The same, for what is `position` bytes behind the beginning of what it comes in: a large one lies in lines of the
    /// cache as that does. Copying to where is a few bytes further in its line, or its page, than where from takes three times
    /// as long on some processors: what is loaded looks as if it had just been stored.
    pub fn take_at(self: &Arc<Self>, position: usize, length: usize) -> Buffer {
        let room = if length < SMALLEST { 0 } else { LINE };
        let bytes = self.idle.lock().take(length + room);
        let rounded = if room == 0 { length } else { (length + room).next_multiple_of(STEP) };
        let bytes = bytes.unwrap_or_else(|| vec![0; rounded].into());
        let start = if room == 0 { 0 } else { position.wrapping_sub(bytes.as_ptr() as usize) % LINE };
        Buffer { bytes, start, length, pool: self.clone() }
    }
}

impl Idle {
    /// The one used last that is long enough and not much too long.
    fn take(&mut self, length: usize) -> Option<Box<[u8]>> {
        if length < SMALLEST {
            return None;
        }
        let fitting = length..=2 * length + STEP;
        let found = self.buffers.iter().rposition(|buffer| fitting.contains(&buffer.len()))?;
        let buffer = self.buffers.remove(found);
        self.bytes -= buffer.len();
        Some(buffer)
    }

    /// The one idle for longest makes room.
    fn give(&mut self, buffer: Box<[u8]>, most_bytes: usize) {
        if buffer.len() < SMALLEST || buffer.len() > most_bytes {
            return;
        }
        self.bytes += buffer.len();
        self.buffers.push(buffer);
        while self.bytes > most_bytes {
            self.bytes -= self.buffers.remove(0).len();
        }
    }
}

impl Buffer {
    /// As shared bytes; the buffer returns to the pool with the last of them.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.pool.idle.lock().give(bytes, self.pool.most_bytes);
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..][..self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.length]
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_buffer_is_used_again_and_the_pool_is_bounded() {
        let pool = Buffers::new(1 << 20);
        let first = pool.take(300 << 10);
        let address = first.as_ptr();
        drop(first.into_bytes());
        assert_eq!(pool.take(290 << 10).as_ptr(), address);
        let many: Vec<_> = (0..10).map(|_| pool.take(300 << 10)).collect();
        drop(many);
        assert!(pool.idle.lock().bytes <= 1 << 20);
        assert_eq!(pool.take(300 << 10).len(), 300 << 10);
    }

    #[test]
    fn a_buffer_lies_in_its_line_as_what_comes_in_it() {
        let pool = Buffers::new(1 << 20);
        for (position, length) in [(0, SMALLEST), (4, SMALLEST), (63, 300 << 10), (1000, 300 << 10)] {
            let mut buffer = pool.take_at(position, length);
            assert_eq!((buffer.as_ptr() as usize % LINE, buffer.len()), (position % LINE, length));
            buffer.fill(7);
            assert_eq!(buffer.into_bytes(), vec![7; length]);
        }
        assert_eq!(pool.take_at(4, 1000).len(), 1000);
    }

    #[test]
    fn a_small_buffer_does_not_hold_a_large_one() {
        let pool = Buffers::new(1 << 20);
        drop(pool.take(1 << 20));
        assert!(pool.take(64 << 10).bytes.len() < 1 << 20);
    }
}
