//! Mounts on nodes of which some are the program's own lying ones (`shardd --evil`): with as many of them as the code is
//! made for everything goes on, with one more there are errors, and in no case is a wrong byte read.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io;
use std::time::Duration;

use avidfs_tests::cluster::Cluster;
use avidfs_tests::evil::{self, MODES};
use avidfs_tests::mount::Mount;
use avidfs_tests::seed::{Dice, is_soak, seed};
use avidfs_tests::{data, timed};

/// Beyond one group of a BLAKE3 slice in each fragment, and beyond what an entry of the journal carries.
const SIZE: u64 = 200_000;
/// The files that were written while all nodes were honest, of one length, so that fragments pass for each other.
const OLD: u64 = 4;
/// What `--io-timeout 5s` allows, twice as the kernel asks once more, and time for a busy machine.
const HASTE: Duration = Duration::from_secs(15);

/// A volume with some files on honest nodes, unmounted.
struct Pool {
    cluster: Cluster,
    mount: Mount,
}

impl Pool {
    fn new(code: &str, nodes: usize) -> Pool {
        let cluster = Cluster::start(nodes);
        let options = ["--code", code, "--cache-disk", "0", "--cache-memory", "1MiB", "--io-timeout", "5s"];
        let mount = Mount::new(&cluster, &options);
        (0..OLD).for_each(|i| data::put(&mount.path(format!("old{i}")), i, SIZE));
        mount.unmount();
        Pool { cluster, mount }
    }

    fn make_evil(&self, nodes: &[usize], mode: &str, seed: u64) {
        nodes.iter().for_each(|node| self.cluster.make_evil(*node, mode, seed));
    }

    fn make_honest(&self, nodes: &[usize]) {
        nodes.iter().for_each(|node| self.cluster.make_honest(*node));
    }

    /// Whether one of these nodes lied; the relay that breaks HTTP counts nothing.
    fn was_lied_to(&self, nodes: &[usize], mode: &str) -> bool {
        mode == "garbage-http" || nodes.iter().any(|node| self.cluster.lies(*node) > 0)
    }
}

/// With as many liars as the code is made for, each set of them lying in each of these ways.
fn evil_nodes_cost_no_byte_and_no_call(
    code: &str,
    nodes: usize,
    modes: &[&str],
    dice: &mut Dice,
    sets: impl Fn(&mut Dice) -> Vec<Vec<usize>>,
) {
    let pool = Pool::new(code, nodes);
    let mount = &pool.mount;
    let mut silent = Vec::new();
    // No content twice, so that an older version of a file is a wrong one.
    let mut contents = OLD..;
    for mode in modes {
        for evil in sets(dice) {
            let case = format!("{mode} by nodes {evil:?} of {code}");
            pool.make_evil(&evil, mode, dice.roll());
            mount.mount();
            let mut content = || contents.next().expect("there is no end of them");
            let (flushed, closed) = (content(), content());
            let read = |name: String, seed: u64| {
                let (read, time) = timed(|| data::compare(&mount.path(name), seed, SIZE));
                read.unwrap_or_else(|wrong| panic!("{case}: {wrong}"));
                assert!(time < HASTE, "{case}: a read took {time:?}");
            };
            let (_, time) = timed(|| (0..OLD).for_each(|i| read(format!("old{i}"), i)));
            let (kept, write_time) = timed(|| data::keep(&mount.path("flushed"), flushed, SIZE));
            kept.unwrap_or_else(|error| panic!("{case}: fsync: {error}"));
            assert!(write_time < HASTE, "{case}: an fsync took {write_time:?}");
            data::put(&mount.path("closed"), closed, SIZE);
            mount.remount();
            read("flushed".into(), flushed);
            read("closed".into(), closed);
            mount.unmount();
            silent.extend((!pool.was_lied_to(&evil, mode)).then(|| case.clone()));
            eprintln!("{case}: {OLD} reads {time:.1?}, an fsync {write_time:.1?}");
            pool.make_honest(&evil);
            mount.mount();
            read("flushed".into(), flushed);
            mount.unmount();
        }
    }
    assert_few_were(&silent);
}

/// A node that happens to hold nothing but parity may not be asked; that a mode lies at all other tests show.
fn assert_few_were(silent: &[String]) {
    assert!(silent.len() <= if is_soak() { 20 } else { 2 }, "nobody lied: {}", silent.join(", "));
}

fn one_evil_node_costs_no_byte_and_no_call(code: &str, nodes: usize) {
    let mut dice = Dice::new(seed());
    evil_nodes_cost_no_byte_and_no_call(code, nodes, &MODES, &mut dice, |dice| evil::subsets(nodes, 1, dice));
}

#[test]
fn one_evil_node_of_3_and_2_costs_no_byte_and_no_call() {
    one_evil_node_costs_no_byte_and_no_call("3+2", 5);
}

#[test]
fn one_evil_node_of_2_and_2_costs_no_byte_and_no_call() {
    one_evil_node_costs_no_byte_and_no_call("2+2", 4);
}

#[test]
fn as_many_evil_nodes_as_a_larger_code_is_made_for_cost_no_byte_and_no_call() {
    let mut dice = Dice::new(seed());
    for (code, nodes, faults) in evil::LARGER {
        let modes = evil::modes(&MODES, &mut dice);
        let sets = |dice: &mut Dice| vec![evil::some(nodes, faults, dice)];
        evil_nodes_cost_no_byte_and_no_call(code, nodes, &modes, &mut dice, sets);
    }
}

/// A file has these bytes, or cannot be read, and in time.
fn is_right_or_an_error(case: &str, mount: &Mount, name: &str, seed: u64) -> bool {
    let (read, time) = timed(|| fs::read(mount.path(name)));
    assert!(time < HASTE, "{case}: {name} took {time:?}");
    match read {
        Ok(bytes) => {
            let is_right = bytes == data::bytes(seed, 0, SIZE as usize);
            assert!(is_right, "{case}: {name} has wrong bytes, {} of them", bytes.len());
            true
        }
        Err(error) => {
            assert_ne!(error.kind(), io::ErrorKind::NotFound, "{case}: {name} is gone");
            false
        }
    }
}

/// Nothing is written, so that one volume does for all modes. Two lying nodes leave enough honest ones to read from, three
/// do not: what is read then were honest answers all the same.
fn evil_nodes_give_no_wrong_byte(code: &str, nodes: usize, count: u32) {
    let mut dice = Dice::new(seed());
    let mut pool = Pool::new(code, nodes);
    let options = ["--read-only", "--cache-disk", "0", "--cache-memory", "1MiB", "--io-timeout", "5s"];
    pool.mount.set_options(&options);
    let modes: Vec<&str> = MODES.into_iter().filter(|mode| *mode != "drop-after-ack").collect();
    let begin = dice.below(modes.len() as u64) as usize;
    let mut silent = Vec::new();
    let enough = if count == 2 || is_soak() { modes.len() } else { 3 };
    for mode in modes.into_iter().cycle().skip(begin).take(enough) {
        for evil in evil::subsets(nodes, count, &mut dice) {
            let case = format!("{mode} by nodes {evil:?} of {code}");
            pool.make_evil(&evil, mode, dice.roll());
            let (mounted, time) = timed(|| pool.mount.try_mount());
            assert!(time < HASTE * 2, "{case}: mounting took {time:?}");
            match mounted {
                Ok(()) => {
                    let is_right = |i| is_right_or_an_error(&case, &pool.mount, &format!("old{i}"), i);
                    let (right, time) = timed(|| (0..OLD).filter(|i| is_right(*i)).count());
                    // Nothing was put since, so who shows what was before shows everything.
                    let lied = mode == "stale" || pool.was_lied_to(&evil, mode);
                    silent.extend((!lied).then(|| case.clone()));
                    assert!(count > 2 || right == OLD as usize, "{case}: {right} of {OLD} were read");
                    eprintln!("{case}: {right} of {OLD} read in {time:.1?}");
                    pool.mount.unmount();
                }
                Err(refused) => eprintln!("{case}: {}", refused.sentence.trim()),
            }
            pool.make_honest(&evil);
        }
    }
    assert_few_were(&silent);
}

#[test]
fn two_or_three_evil_nodes_of_3_and_2_give_no_wrong_byte() {
    [2, 3].into_iter().for_each(|count| evil_nodes_give_no_wrong_byte("3+2", 5, count));
}

#[test]
fn two_or_three_evil_nodes_of_2_and_2_give_no_wrong_byte() {
    [2, 3].into_iter().for_each(|count| evil_nodes_give_no_wrong_byte("2+2", 4, count));
}

/// More nodes than the code is made for say that they keep what they are given, or answer something else.
fn what_two_evil_nodes_were_given_is_right_or_an_error(code: &str, nodes: usize, mode: &str) {
    let mut dice = Dice::new(seed());
    for evil in evil::subsets(nodes, 2, &mut dice) {
        let case = format!("{mode} by nodes {evil:?} of {code}");
        let pool = Pool::new(code, nodes);
        pool.make_evil(&evil, mode, dice.roll());
        if let Err(refused) = pool.mount.try_mount() {
            eprintln!("{case}: {}", refused.sentence.trim());
            continue;
        }
        let (kept, time) = timed(|| data::keep(&pool.mount.path("new"), 7, SIZE));
        assert!(time < HASTE, "{case}: an fsync took {time:?}");
        let overwritten = data::keep(&pool.mount.path("old0"), 8, SIZE);
        eprintln!("{case}: {kept:?} {overwritten:?}");
        let _ = pool.mount.try_unmount();
        pool.mount.kill();
        pool.make_honest(&evil);
        match pool.mount.try_mount() {
            Err(refused) => eprintln!("{case}: {}", refused.sentence.trim()),
            Ok(()) => {
                for i in 1..OLD {
                    is_right_or_an_error(&case, &pool.mount, &format!("old{i}"), i);
                }
                if kept.is_ok() {
                    let right = is_right_or_an_error(&case, &pool.mount, "new", 7);
                    eprintln!("{case}: new can be read: {right}");
                }
                if overwritten.is_ok() {
                    is_right_or_an_error(&case, &pool.mount, "old0", 8);
                }
            }
        }
    }
}

#[test]
fn what_two_evil_nodes_of_3_and_2_were_given_is_right_or_an_error() {
    for mode in ["drop-after-ack", "replay"] {
        what_two_evil_nodes_were_given_is_right_or_an_error("3+2", 5, mode);
    }
}

#[test]
fn what_two_evil_nodes_of_2_and_2_were_given_is_right_or_an_error() {
    for mode in ["drop-after-ack", "replay"] {
        what_two_evil_nodes_were_given_is_right_or_an_error("2+2", 4, mode);
    }
}
