//! Everything at once: programs work on a mount while nodes crash, hang, are cut off, late, full, rotten and lying, and the
//! mount daemon is killed. No byte is wrong, nothing acknowledged is lost, and no call fails.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use avidfs_tests::fsck::fsck_mount;
use avidfs_tests::process::need_root;
use avidfs_tests::seed::{Dice, is_soak, seed};
use chaos::disturber::{Disturber, Kind, Pool};
use chaos::writer::{Ending, Stage, Writer};

mod chaos {
    pub mod disturber;
    pub mod known;
    pub mod writer;
}

const MIB: u64 = 1 << 20;
const NODES: usize = 7;
const WRITERS: usize = 4;
/// Reads ask nodes, and what cannot succeed ends soon. Two nodes that fail during one fsync, one of them silently, cost
/// it two rounds of patience and what they kept is sent elsewhere: on two busy cores some seconds.
const OPTIONS: &[&str] =
    &["--cache-disk", "0", "--cache-memory", "1MiB", "--io-timeout", "10s", "--dirty-interval", "1s"];

/// For how long things go wrong; putting everything right and reading it takes some seconds more.
fn length() -> Duration {
    Duration::from_secs(if is_soak() { 29 * 60 } else { 42 })
}

#[test]
fn in_all_that_goes_wrong_no_byte_is_wrong_and_nothing_acknowledged_is_lost() {
    need_root("it makes network namespaces");
    let mut dice = Dice::new(seed());
    let pool = Pool::new(NODES, OPTIONS, &mut dice);
    let stage = Stage::default();
    let folder = |writer| pool.mount.path(format!("writer{writer}"));
    let mut writers: Vec<Writer> =
        (0..WRITERS).map(|writer| Writer::new(&stage, folder(writer), dice.roll())).collect();
    let mut disturber = Disturber::new(&pool, &stage, WRITERS as u64, Dice::new(dice.roll()));
    std::thread::scope(|scope| {
        let _ending = Ending(&stage);
        for writer in &mut writers {
            scope.spawn(|| writer.run());
        }
        disturber.run(length());
    });

    // What a node lacks and never said is found at most once.
    let root = pool.mount.root();
    if fsck_mount(&root, &["--deep"]).code != 0 {
        let repaired = fsck_mount(&root, &["--deep", "--repair"]);
        assert_eq!(repaired.code, 1, "{:#}", repaired.report);
        fsck_mount(&root, &["--deep"]).is_clean();
    }
    verify(&pool, &writers, &stage);
    // Every fragment is there and right: any two nodes may go.
    let first = dice.below(NODES as u64) as usize;
    let second = (first + 1 + dice.below(NODES as u64 - 1) as usize) % NODES;
    [first, second].into_iter().for_each(|node| pool.cluster.kill(node));
    verify(&pool, &writers, &stage);
    [first, second].into_iter().for_each(|node| pool.cluster.restart(node));
    summarise(&writers, &disturber, &stage);
    enough_happened(&writers, &disturber);
    pool.mount.unmount();
}

/// Every byte, by a daemon and a kernel that have none of them yet.
fn verify(pool: &Pool, writers: &[Writer], stage: &Stage) {
    pool.mount.remount();
    for writer in writers {
        let bytes = writer.known.check(&writer.folder);
        let bytes = bytes.unwrap_or_else(|wrong| panic!("{}: {wrong}", writer.folder.display()));
        stage.bytes_verified.fetch_add(bytes, Ordering::Relaxed);
    }
}

fn summarise(writers: &[Writer], disturber: &Disturber, stage: &Stage) {
    let steps: u64 = writers.iter().map(|writer| writer.steps).sum();
    let slowest = writers.iter().map(|writer| &writer.slowest).max().unwrap();
    eprintln!(
        "{steps} operations, {:?}, {} lies told, {} noticed, blamed {:?}, {} fragments repaired, {} MiB verified, wrong bytes 0; the slowest \
         operation took {:.1?} ({}), the slowest healing {:.1?}, {} without load",
        disturber.counts,
        disturber.lies,
        disturber.lies_noticed,
        disturber.blamed,
        disturber.repairs,
        stage.bytes_verified.load(Ordering::Relaxed) / MIB,
        slowest.0,
        slowest.1,
        disturber.slowest_healing,
        disturber.hushes,
    );
}

/// A run in which little happened shows little.
fn enough_happened(writers: &[Writer], disturber: &Disturber) {
    let steps: u64 = writers.iter().map(|writer| writer.steps).sum();
    let kinds: BTreeSet<Kind> = disturber.counts.keys().copied().collect();
    let events: u64 = disturber.counts.values().sum();
    let (least_steps, least_events) = if is_soak() { (10_000, 150) } else { (200, 6) };
    assert!(steps >= least_steps, "only {steps} operations");
    assert!(events >= least_events, "only {events} events");
    let missing: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| !kinds.contains(kind)).collect();
    let most_missing = if is_soak() { 0 } else { 7 };
    assert!(missing.len() <= most_missing, "these never happened: {missing:?}");
}
