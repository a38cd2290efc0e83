//! Snapshots: what they keep, and for how long.

use std::collections::{BTreeMap, BTreeSet};

use avidfs::error::Error;
use avidfs::inode::{Ino, ROOT};
use avidfs::metadata::{MetadataStore, SnapshotUsage};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

use crate::support::*;

/// Take a snapshot; objects from `next` on are not part of it.
fn take(store: &dyn MetadataStore, name: &str, next: u64) -> u32 {
    let number = store.begin_snapshot(name, at(3)).unwrap();
    store.pin_snapshot(number, id(next), b"pin").unwrap();
    number
}

fn kept_and_alone(store: &dyn MetadataStore, number: u32) -> (u64, u64) {
    let SnapshotUsage { kept_bytes, alone_bytes } = store.snapshot_usage(number).unwrap();
    (kept_bytes, alone_bytes)
}

#[test]
fn what_a_snapshot_needs_is_condemned_when_it_is_deleted() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        write(store, ino, 0, 1, 100);
        let number = take(store, "first", 2);
        write(store, ino, 0, 2, 100);
        write(store, ino, 0, 3, 100);
        assert_eq!(condemned(store), [2], "which came after the snapshot");
        assert_error!(store.forget(&[id(1)]), Error::Invalid(_));
        assert_eq!(kept_and_alone(store, number), (100, 100));
        store.delete_snapshot(number).unwrap();
        assert_eq!(condemned(store), [1, 2]);
    });
}

#[test]
fn what_was_condemned_before_is_not_kept() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        write(store, ino, 0, 1, 100);
        write(store, ino, 0, 2, 100);
        take(store, "late", 3);
        assert_eq!(condemned(store), [1]);
    });
}

#[test]
fn while_one_is_being_taken_everything_is_kept() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        write(store, ino, 0, 1, 100);
        let number = store.begin_snapshot("half", at(3)).unwrap();
        write(store, ino, 0, 2, 100);
        assert!(condemned(store).is_empty());
        assert!(store.snapshots().unwrap()[0].pin.is_empty());
        store.delete_snapshot(number).unwrap();
        assert_eq!(condemned(store), [1]);
    });
}

#[test]
fn names_are_used_once_and_what_is_not_there_is_not_found() {
    on_every_store(|store| {
        let number = take(store, "a", 1);
        assert_error!(store.begin_snapshot("a", at(4)), Error::Exists);
        assert_error!(store.delete_snapshot(number + 1), Error::NotFound);
        assert_error!(store.pin_snapshot(number + 1, id(1), b"pin"), Error::NotFound);
        assert_error!(store.snapshot_usage(number + 1), Error::NotFound);
        store.delete_snapshot(number).unwrap();
        take(store, "a", 1);
        let names: Vec<String> =
            store.snapshots().unwrap().into_iter().map(|snapshot| snapshot.name).collect();
        assert_eq!(names, ["a"]);
    });
}

#[test]
fn a_file_gets_back_the_bytes_only_a_snapshot_keeps_and_nothing_else() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        write(store, ino, 0, 1, 100);
        take(store, "first", 2);
        write(store, ino, 0, 2, 100);
        write(store, ino, 0, 3, 100);
        let back = file(store, ROOT, "back");
        store.revive(back, &[extent(0, 100, 1, 0)], 250).unwrap();
        assert_eq!(
            (extents(store, back), store.inode(back).unwrap().size),
            (vec![extent(0, 100, 1, 0)], 250)
        );
        assert_error!(store.revive(back, &[extent(0, 100, 2, 0)], 250), Error::Invalid(_));
        assert_error!(
            store.commit(&avidfs::metadata::Commit {
                objects: Vec::new(),
                files: vec![file_commit(ino, &[extent(0, 100, 2, 0)])],
            }),
            Error::Invalid(_)
        );
        assert_eq!(condemned(store), [2]);
        store.unlink(ROOT, b"back", at(5)).unwrap();
        store.reclaim(&[back]).unwrap();
        assert_eq!(condemned(store), [2], "the snapshot keeps it as before");
    });
}

/// Which objects each snapshot needs, by how the files were when it was taken.
#[derive(Default)]
struct Model {
    files: BTreeMap<Ino, BTreeSet<u64>>,
    snapshots: BTreeMap<u32, BTreeSet<u64>>,
    ever: u64,
}

impl Model {
    fn live(&self) -> BTreeSet<u64> {
        self.files.values().flatten().copied().collect()
    }

    fn check(&self, store: &dyn MetadataStore, seed: u64) {
        let needed: BTreeSet<u64> = self.snapshots.values().flatten().copied().chain(self.live()).collect();
        let condemned: BTreeSet<u64> = condemned(store).into_iter().collect();
        let all: BTreeSet<u64> = (1..=self.ever).collect();
        assert_eq!(condemned, &all - &needed, "seed {seed}: exactly what nobody needs is condemned");
        for (number, objects) in &self.snapshots {
            let only_kept = objects - &self.live();
            let others = self.snapshots.iter().filter(|(other, _)| *other != number);
            let others: BTreeSet<u64> = others.flat_map(|(_, objects)| objects).copied().collect();
            let alone = &only_kept - &others;
            let expected = (10 * only_kept.len() as u64, 10 * alone.len() as u64);
            assert_eq!(kept_and_alone(store, *number), expected, "seed {seed}: snapshot {number}");
        }
    }
}

#[test]
fn exactly_what_nobody_needs_is_condemned_whatever_comes_and_goes() {
    for seed in 0..20 {
        on_every_store(|store| {
            let mut random = StdRng::seed_from_u64(seed);
            let mut model = Model::default();
            for step in 0..60 {
                match random.random_range(0..10) {
                    0 | 1 => {
                        let ino = file(store, ROOT, &format!("{step}"));
                        model.files.insert(ino, BTreeSet::new());
                    }
                    2..6 => {
                        let Some((ino, objects)) = model.files.iter_mut().choose(&mut random) else {
                            continue;
                        };
                        model.ever += 1;
                        if random.random() {
                            store.truncate(*ino, 0, at(4)).unwrap();
                            objects.clear();
                        }
                        write(store, *ino, 10 * model.ever, model.ever, 10);
                        objects.insert(model.ever);
                    }
                    6 => {
                        let number = take(store, &format!("{step}"), model.ever + 1);
                        model.snapshots.insert(number, model.live());
                    }
                    7 => {
                        let Some(number) = model.snapshots.keys().copied().choose(&mut random) else {
                            continue;
                        };
                        store.delete_snapshot(number).unwrap();
                        model.snapshots.remove(&number);
                    }
                    _ => {
                        let Some(ino) = model.files.keys().copied().choose(&mut random) else { continue };
                        store.truncate(ino, 0, at(4)).unwrap();
                        model.files.insert(ino, BTreeSet::new());
                    }
                }
                model.check(store, seed);
            }
        });
    }
}
