//! Room for users' bytes: what the code leaves of the nodes' room, and the volume's own capacity.

use std::ops::Range;
use std::sync::Arc;

use common::code::Code;
use parking_lot::Mutex;

use super::{SpaceReport, Volume};
use crate::error::{Error, Result};
use crate::open_file::{OpenFile, Source};
use crate::pool::{NodeSpace, Space};

/// What the nodes said last, and how many bytes the volume had written then: between two of their answers the room
/// still shrinks as data is written.
#[derive(Default)]
pub(super) struct Seen(Mutex<(Space, u64)>);

impl Volume {
    /// Room for users' bytes, one fragment per node. A node that never answered this mount is taken for as large as the
    /// smallest that did; it is down, not gone.
    pub fn space(&self) -> SpaceReport {
        let pool = self.pool.space();
        let silent = self.pool.nodes().len().saturating_sub(pool.nodes.len());
        let usable = |room: fn(&NodeSpace) -> u64| {
            let known = pool.nodes.iter().map(room);
            let smallest = known.clone().min().unwrap_or(0);
            usable_bytes(self.settings.code, known.chain(std::iter::repeat_n(smallest, silent)).collect())
        };
        let (total, available) = (usable(|node| node.capacity_bytes), usable(|node| node.available_bytes));
        let available = available.saturating_sub(self.written_since_seen(&pool));
        match self.options.capacity_bytes {
            None => SpaceReport { total_bytes: total, available_bytes: available },
            Some(capacity) => SpaceReport {
                total_bytes: total.min(capacity),
                available_bytes: available.min(capacity.saturating_sub(self.taken())),
            },
        }
    }

    /// Notice what the nodes said since the last look, so that what is written from now on counts.
    pub(super) fn look_at_space(&self) {
        self.written_since_seen(&self.pool.space());
    }

    fn written_since_seen(&self, pool: &Space) -> u64 {
        let written = self.metadata.usage().map_or(0, |usage| usage.object_bytes) + self.budget.used();
        let mut seen = self.seen.0.lock();
        if seen.0 != *pool {
            *seen = (pool.clone(), written);
        }
        written.saturating_sub(seen.1)
    }

    /// Bytes of files, those still on their way included.
    fn taken(&self) -> u64 {
        self.metadata.usage().map_or(0, |usage| usage.live_bytes) + self.budget.used()
    }

    /// Whether so many bytes more surely fit the volume's capacity.
    pub(super) fn surely_fits(&self, bytes: u64) -> bool {
        self.options.capacity_bytes.is_none_or(|capacity| self.taken() + bytes <= capacity)
    }

    /// Near the volume's capacity, find out whether a write fits: what is on its way is stored first, so that bytes
    /// that replace others are not counted twice.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(super) async fn fit(self: &Arc<Self>, file: &OpenFile, range: Range<u64>) -> Result<()> {
        let Some(capacity) = self.options.capacity_bytes else { return Ok(()) };
        if self.surely_fits(range.end - range.start) {
            return Ok(());
        }
        let files = self.open_files();
        // What cannot be stored still counts as on its way, and is reported to whoever wrote it.
        let saves = futures_util::future::join_all(files.iter().map(|file| self.save(file, false)));
        let _outcomes = tokio::time::timeout(self.options.io_limit, saves).await;
        if self.taken() + self.holes(file, range)? <= capacity {
            return Ok(());
        }
        Err(Error::NoSpace(format!("the volume's capacity of {capacity} bytes is used up")))
    }

    /// Bytes of a range that are in no extent and not dirty, those beyond the end included.
    fn holes(&self, file: &OpenFile, range: Range<u64>) -> Result<u64> {
        let mut state = file.state();
        let inside = range.start.min(state.size)..range.end.min(state.size);
        let beyond = (range.end - range.start) - (inside.end - inside.start);
        if inside.is_empty() {
            return Ok(beyond);
        }
        let pieces = state.plan(file.ino, inside, &*self.metadata)?;
        let holes = pieces.iter().filter(|piece| matches!(piece.source, Source::Hole));
        Ok(beyond + holes.map(|piece| piece.range.end - piece.range.start).sum::<u64>())
    }

    /// Refuse to set aside what could never be written. (Nothing is set aside: an object is made of what is written.)
    ///
    /// # Errors
    /// `NoSpace`.
    pub(super) fn check_room_for(&self, file: &OpenFile, range: Range<u64>) -> Result<()> {
        let available = self.space().available_bytes;
        let length = range.end - range.start;
        if length > available && self.holes(file, range)? > available {
            return Err(Error::NoSpace(format!("{available} bytes are left")));
        }
        Ok(())
    }
}

/// The most users' bytes that fit when every object puts one fragment on each of n of the nodes: the greatest t with
/// sum(min(room, t)) >= n * t, times m. (With t bytes per fragment position no node can give more than t.)
fn usable_bytes(code: Code, mut rooms: Vec<u64>) -> u64 {
    rooms.sort_unstable();
    let n = code.n();
    if rooms.len() < n {
        return 0;
    }
    let fits = |t: u64| {
        rooms.iter().map(|room| u128::from(*room.min(&t))).sum::<u128>() >= n as u128 * u128::from(t)
    };
    let total: u128 = rooms.iter().map(|room| u128::from(*room)).sum();
    let (mut low, mut high) = (0, u64::try_from(total / n as u128).unwrap_or(u64::MAX));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low.saturating_mul(code.m() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> Code {
        text.parse().unwrap()
    }

    #[test]
    fn room_is_what_the_smallest_nodes_allow() {
        assert_eq!(usable_bytes(code("3+2"), vec![100; 5]), 300);
        assert_eq!(usable_bytes(code("3+2"), vec![100, 100, 100, 100, 10]), 30);
        assert_eq!(usable_bytes(code("3+2"), vec![100; 10]), 600);
        assert_eq!(usable_bytes(code("3+2"), vec![100; 4]), 0);
        assert_eq!(usable_bytes(code("1+1"), vec![100, 1000, 100]), 200);
    }
}
