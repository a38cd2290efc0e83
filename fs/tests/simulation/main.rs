//! Pool, journal, leases and clock in one process and on one thread, and everything that can happen to them, by seed.
//!
//! A run is repeated exactly by its seed: repeatable.rs says why, and a test that it is so. What a run does stands in
//! story.rs; docs/design.md says what is simulated and what is not.
#![allow(clippy::unwrap_used)]

mod client;
mod fail_at_n;
mod failing_store;
mod fate;
mod model;
mod repeatable;
mod story;
mod world;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use avidfs::transport::faulty::Fault;
use avidfs_tests::seed;
use fail_at_n::Failing;
use failing_store::Moment;

/// Seeds of a run of scripts/test.sh, and of one round of scripts/soak.sh.
const SEEDS: (u64, u64) = (100, 1000);

#[test]
fn whatever_happens_nothing_that_was_acknowledged_is_lost() {
    let first = seed::seed();
    let count = match std::env::var("AVIDFS_SEEDS") {
        Ok(count) => count.parse().expect("AVIDFS_SEEDS is a number"),
        Err(_) if seed::is_given() => 1,
        Err(_) => seed::rounds(SEEDS.0, SEEDS.1),
    };
    let began = Instant::now();
    on_all_cores(first..first + count, |seed| {
        story::run(seed);
    });
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    println!("{count} seeds from {first} on, {:.0} per minute", count as f64 / minutes);
}

/// Run every number of a range; a panic of one is the caller's.
fn on_all_cores(range: Range<u64>, run: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(range.start);
    let work = || {
        while let number = next.fetch_add(1, Ordering::SeqCst)
            && number < range.end
        {
            run(number);
        }
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        ended.into_iter().for_each(|ended| ended.expect("one of them failed; see above"));
    });
}

/// How many things can fail in a life in which nothing does, and that it has everything in it.
fn count(failing: fn(u64) -> Failing) -> u64 {
    let lived = fail_at_n::live(failing(u64::MAX));
    assert!(
        lived.checkpoints.len() > 3 && lived.pinned > 0 && lived.moved > 0 && lived.placed > 0,
        "{lived:?}"
    );
    assert!(lived.count > 30, "{lived:?}");
    lived.count
}

#[test]
fn a_request_that_is_lost_or_whose_answer_is_takes_nothing_that_was_acknowledged() {
    let requests = count(|nth| Failing::Request(nth, Fault::Lose));
    // Each is lost, or its answer is; in the long run first the one and then the other.
    for round in 0..seed::rounds(1, 2) {
        on_all_cores(0..requests, |request| {
            let fault = if (request + round) % 2 == 0 { Fault::Lose } else { Fault::LoseAnswer };
            fail_at_n::live(Failing::Request(request, fault));
        });
    }
}

#[test]
fn a_nodes_disk_that_fails_once_takes_nothing_that_was_acknowledged() {
    let acts = count(Failing::Disk);
    on_all_cores(0..acts, |act| {
        fail_at_n::live(Failing::Disk(act));
    });
}

/// A journal that could not read what snapshots need, once, was not written any more: every fsync failed until the next
/// mount.
#[test]
fn a_metadata_store_that_fails_once_takes_nothing_that_was_acknowledged() {
    let calls = count(|nth| Failing::Store(nth, Moment::Before));
    on_all_cores(0..calls, |call| {
        fail_at_n::live(Failing::Store(call, Moment::Before));
    });
}

/// A file that had been truncated or punched all the same went on being read by what was remembered of it.
#[test]
fn a_metadata_store_whose_answer_is_lost_takes_nothing_that_was_acknowledged() {
    let calls = count(|nth| Failing::Store(nth, Moment::After));
    on_all_cores(0..calls, |call| {
        fail_at_n::live(Failing::Store(call, Moment::After));
    });
}

#[test]
fn the_same_seed_is_the_same_run() {
    let first = seed::seed();
    for seed in first..first + seed::rounds(5, 50) {
        assert_eq!(story::run(seed), story::run(seed), "seed {seed}");
        assert_ne!(story::run(seed), story::run(seed + 1));
    }
}
