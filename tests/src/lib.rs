//! What the suites share: clusters of real nodes, real mounts, seeded data and faults.
//!
//! Everything started here is a process of its own that is ended and reaped when its value is dropped, and killed by
//! the kernel when the test process ends in any other way. A test that cannot run fails and says what is missing.

// Helpers outside #[test] functions are tests as well.
#![allow(clippy::unwrap_used)]

pub mod cluster;
pub mod data;
pub mod evil;
pub mod files;
pub mod fsck;
pub mod fuzz;
pub mod liar;
pub mod mount;
pub mod namespaces;
pub mod posix;
pub mod process;
pub mod relay;
pub mod scratch;
pub mod seed;
pub mod segments;
pub mod small_disk;

use std::time::{Duration, Instant};

/// Wait until something holds. Panics with `what` when it does not within the limit.
pub fn eventually(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Do something and say how long it took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed())
}
