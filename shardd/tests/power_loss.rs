//! A node on a disk that loses power, and on one that fails at each of its acts once.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use avidfs_tests::seed::{self, Dice};
use common::fpcc::Fpcc;
use common::wire::{BootId, FragmentName, LeaseRequest, MountId, VolumeDescriptor, VolumeId};
use shardd::{Author, ModelledDisk, Space, Store, StoreError, StoreOptions};
use support::{Encoded, object};
use tempfile::TempDir;

const VOLUME: VolumeId = VolumeId([7; 16]);
const SPACE: Space = Space::Volume(VOLUME);

/// What is known of a fragment.
#[derive(Clone, Copy, PartialEq, Debug)]
enum State {
    /// Acknowledged, under this boot id.
    Put(BootId),
    /// Flushed since.
    Safe,
    /// Deleted, and not flushed since.
    Deleting,
    /// Deleted and flushed since; or never there.
    Gone,
    /// The node answered with an error, or lost power before a flush.
    Unknown,
}

/// A node, and what was promised by it.
struct Bench {
    folder: TempDir,
    disk: ModelledDisk,
    node: Option<Arc<Store>>,
    objects: Vec<Encoded>,
    /// By key; the object's number follows from it.
    fragments: BTreeMap<u64, State>,
    next: u64,
    epoch: u32,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let objects = [300, 900, 3000, 9000, 30_000, 200_000].map(|length| object(length as u64, length));
        let mut bench = Bench {
            folder,
            disk: ModelledDisk::default(),
            node: None,
            objects: objects.into(),
            fragments: BTreeMap::new(),
            next: 0,
            epoch: 0,
        };
        bench.start();
        bench
    }

    fn start(&mut self) {
        let options = StoreOptions {
            capacity: Some(16 << 20),
            disk: self.disk.plugged(),
            has_upkeep: false,
            ..StoreOptions::new(self.folder.path())
        };
        // A disk that fails while the node starts keeps it from starting, once.
        let opened = Store::open(options.clone()).or_else(|_| Store::open(options));
        let node = opened.unwrap();
        let descriptor = VolumeDescriptor {
            volume: VOLUME,
            name: "v".into(),
            code: "2+2".into(),
            hash: "blake3".into(),
            object_size: 4 << 20,
            owner: None,
        };
        let _again = node.register(descriptor.clone()).or_else(|_| node.register(descriptor));
        self.node = Some(node);
    }

    fn node(&self) -> &Arc<Store> {
        self.node.as_ref().unwrap()
    }

    fn object(&self, key: u64) -> &Encoded {
        &self.objects[(key * 7 / 3) as usize % self.objects.len()]
    }

    fn author(&self) -> Author {
        Author::Writer { volume: VOLUME, epoch: self.epoch }
    }

    fn put(&mut self, key: u64) {
        let (object, boot) = (self.object(key), self.node().boot());
        let put = self.node().put(&self.author(), &name(key), &object.fpcc, &object.fragments[0]);
        let before = self.fragments.get(&key).copied().unwrap_or(State::Gone);
        let after = match (put, before) {
            (_, State::Safe) => State::Safe,
            (Ok(()), _) => State::Put(boot),
            (Err(_), _) => State::Unknown,
        };
        self.fragments.insert(key, after);
    }

    /// What journal entries are to a node: one after the other, small, and each flushed.
    fn put_flushed(&mut self, count: u64) {
        for _ in 0..count {
            self.next += 1;
            while self.object(self.next).fragments[0].len() > 5000 {
                self.next += 1;
            }
            self.put(self.next);
            self.flush();
        }
    }

    fn delete(&mut self, key: u64) {
        let deleted = self.node().delete(&self.author(), &key.to_string(), 1, None);
        self.fragments.insert(key, if deleted.is_ok() { State::Deleting } else { State::Unknown });
    }

    /// What a writer does: after another boot id it asks for what was not flushed.
    fn flush(&mut self) {
        if self.node().flush_blocking().is_err() {
            return;
        }
        let (node, now) = (self.node().clone(), self.node().boot());
        for (key, state) in &mut self.fragments {
            *state = match *state {
                State::Put(boot) if boot == now => State::Safe,
                State::Put(_) if node.has(SPACE, &name(*key)).is_ok() => State::Safe,
                State::Put(_) => State::Unknown,
                State::Deleting => State::Gone,
                state => state,
            };
        }
        self.check();
    }

    fn grant(&mut self) {
        let (epoch, mount) = (self.epoch + 1, MountId([3; 16]));
        let request = LeaseRequest { epoch, mount, host: "h".into(), lease_ms: 1, take_over: true };
        if self.node().lease(VOLUME, &request).is_ok() {
            self.epoch = epoch;
        }
    }

    fn step(&mut self, dice: &mut Dice) {
        match dice.below(42) {
            0..22 => {
                self.next += 1;
                self.put(self.next);
            }
            22..33 if self.next > 0 => self.delete(1 + dice.below(self.next)),
            33..36 => self.flush(),
            36..38 => self.node().tend(),
            38 => self.grant(),
            39..41 => self.put_flushed(dice.below(12)),
            _ => self.restart(),
        }
    }

    /// The process ends and is begun anew; the page cache stays.
    fn restart(&mut self) {
        self.disk.crash();
        self.node = None;
        self.start();
        self.check();
    }

    fn lose_power(&mut self, dice: &mut Dice) {
        self.node = None;
        self.disk.lose_power(&mut |bound| dice.below(bound));
        for state in self.fragments.values_mut() {
            if matches!(state, State::Put(_) | State::Deleting) {
                *state = State::Unknown;
            }
        }
        self.start();
        self.check();
        // What is seen after a start is durable: who asks once may rely on it.
        for (key, state) in &mut self.fragments {
            let has = self.node.as_ref().unwrap().has(SPACE, &name(*key)).is_ok();
            *state = if has { State::Safe } else { State::Gone };
        }
    }

    /// Whoever is promised to be there is, what is deleted for good is not, and nothing is torn.
    fn check(&self) {
        let boot = self.node().boot();
        for (key, state) in &self.fragments {
            let kept = self.node().get(SPACE, &name(*key));
            match (state, &kept) {
                (State::Gone | State::Deleting, Err(StoreError::NotFound(_))) | (State::Unknown, Err(_)) => {}
                (State::Put(before), Err(_)) if *before != boot => {}
                (State::Safe | State::Put(_) | State::Unknown, Ok(kept)) => {
                    let fpcc = Fpcc::parse(&kept.fpcc()).unwrap();
                    fpcc.check_bytes(0, &kept.fragment()).unwrap();
                    assert_eq!(kept.fragment(), self.object(*key).fragments[0], "fragment {key}");
                }
                _ => panic!("fragment {key} is {state:?}, and the node says {:?}", kept.map(|_| ())),
            }
        }
        let epoch = self.node().volumes().volumes.first().map_or(0, |volume| volume.epoch);
        assert!(epoch >= self.epoch, "epoch {} was granted, and {epoch} is remembered", self.epoch);
    }
}

fn name(key: u64) -> FragmentName {
    FragmentName { key: key.to_string(), version: 1, index: 0 }
}

#[test]
fn what_was_flushed_survives_a_power_loss_and_what_was_not_is_whole_or_gone() {
    let first = seed::seed();
    let seeds = if seed::is_given() { 1 } else { seed::rounds(60, 3000) };
    for seed in first..first + seeds {
        eprintln!("seed {seed}");
        let (mut bench, mut dice) = (Bench::new(), Dice::new(seed));
        for _ in 0..6 {
            for _ in 0..dice.below(120) {
                bench.step(&mut dice);
            }
            bench.lose_power(&mut dice);
        }
    }
}

/// A short life of a node, in which the power may go after its segments were compacted: returns how many acts its disk was
/// asked.
fn life_with_one_failure(failing: u64, loses_power: bool) -> u64 {
    let (mut bench, mut dice) = (Bench::new(), Dice::new(failing));
    let acts = Arc::new(AtomicU64::new(0));
    let counted = acts.clone();
    bench.disk.watch(move |act| match counted.fetch_add(1, Ordering::SeqCst) {
        at if at == failing => Err(std::io::Error::other(format!("{act:?} {at} fails (by test)"))),
        _ => Ok(()),
    });
    bench.grant();
    for key in 1..=90 {
        bench.put(key);
    }
    bench.flush();
    bench.restart();
    for key in (1..=90).filter(|key| key % 4 != 0) {
        bench.delete(key);
    }
    bench.node().tend();
    if loses_power {
        bench.lose_power(&mut dice);
    }
    bench.flush();
    bench.put(200);
    bench.grant();
    bench.put(201);
    bench.flush();
    bench.put(202);
    bench.restart();
    bench.next = 300;
    bench.put_flushed(12);
    bench.lose_power(&mut dice);
    acts.load(Ordering::SeqCst)
}

#[test]
fn a_disk_that_fails_once_anywhere_takes_nothing_that_was_flushed() {
    for loses_power in [false, true] {
        let acts = life_with_one_failure(u64::MAX, loses_power);
        assert!(acts > 200, "{acts} acts");
        for failing in 0..acts {
            eprintln!("act {failing} of {acts} fails; the power goes: {loses_power}");
            life_with_one_failure(failing, loses_power);
        }
    }
}
