//! Bytes that the metadata carries until they lie in an object.

use std::collections::HashMap;
use std::ops::Range;

use avidfs::error::Error;
use avidfs::inode::{Ino, ROOT};
use avidfs::metadata::{Commit, FileCommit, Intent, MAX_INTENT, MetadataStore};
use proptest::prelude::*;

use crate::support::*;

fn intent(offset: u64, number: u64, bytes: &[u8]) -> Intent {
    Intent { offset, number, bytes: bytes.to_vec() }
}

fn put(store: &dyn MetadataStore, ino: Ino, offset: u64, number: u64, bytes: &[u8]) {
    store.put_intents(ino, &[intent(offset, number, bytes)], None).unwrap();
}

#[test]
fn what_is_carried_is_named_by_file_and_makes_the_file_longer() {
    on_every_store(|store| {
        let (a, b) = (file(store, ROOT, "a"), file(store, ROOT, "b"));
        store.put_intents(a, &[intent(5, 1, b"five"), intent(20, 1, b"20")], Some(at(9))).unwrap();
        assert_eq!(store.intents(a).unwrap(), [intent(5, 1, b"five"), intent(20, 1, b"20")]);
        assert_eq!(store.intents(b).unwrap(), []);
        assert_eq!(store.with_intents().unwrap(), [a]);
        let inode = store.inode(a).unwrap();
        assert_eq!((inode.size, inode.allocated, inode.mtime, inode.ctime), (22, 0, at(9), at(9)));
    });
}

#[test]
fn a_newer_one_takes_away_what_it_covers() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        put(store, ino, 0, 1, b"0123456789");
        put(store, ino, 3, 2, b"abc");
        put(store, ino, 9, 3, b"xyz");
        let left = [intent(0, 1, b"012"), intent(3, 2, b"abc"), intent(6, 1, b"678"), intent(9, 3, b"xyz")];
        assert_eq!(store.intents(ino).unwrap(), left);
    });
}

#[test]
fn a_commit_takes_away_what_it_makes_superfluous_and_nothing_newer() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        put(store, ino, 0, 1, b"0123456789");
        put(store, ino, 2, 2, b"ab");
        let part = FileCommit { intents: 1, ..file_commit(ino, &[extent(1, 6, 1, 0)]) };
        store.commit(&Commit { objects: vec![object(1, 6)], files: vec![part] }).unwrap();
        let left = [intent(0, 1, b"0"), intent(2, 2, b"ab"), intent(7, 1, b"789")];
        assert_eq!(store.intents(ino).unwrap(), left);
        write(store, ino, 0, 2, 10);
        assert_eq!(store.intents(ino).unwrap(), left, "a commit that knows of none leaves all");
    });
}

#[test]
fn whatever_takes_bytes_away_takes_away_what_is_carried_of_them() {
    on_every_store(|store| {
        let fresh = |name| {
            let ino = file(store, ROOT, name);
            put(store, ino, 0, 1, b"0123456789");
            ino
        };
        let cut = fresh("cut");
        store.truncate(cut, 4, at(5)).unwrap();
        assert_eq!(store.intents(cut).unwrap(), [intent(0, 1, b"0123")]);
        let punched = fresh("punched");
        store.punch(punched, 2..8, at(5)).unwrap();
        assert_eq!(store.intents(punched).unwrap(), [intent(0, 1, b"01"), intent(8, 1, b"89")]);
        let (covered, source) = (fresh("covered"), file(store, ROOT, "source"));
        write(store, source, 0, 1, 5);
        store.copy_extents((source, 0), (covered, 5), 5, at(5)).unwrap();
        assert_eq!(store.intents(covered).unwrap(), [intent(0, 1, b"01234")]);
        let gone = fresh("gone");
        store.unlink(ROOT, b"gone", at(5)).unwrap();
        assert_eq!(store.intents(gone).unwrap().len(), 1, "an open file keeps its bytes");
        store.reclaim(&[gone]).unwrap();
        assert_eq!(store.with_intents().unwrap(), [cut, punched, covered]);
    });
}

#[test]
fn what_cannot_be_carried_is_refused() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        let put = |ino, bytes: &[u8]| store.put_intents(ino, &[intent(0, 1, bytes)], None);
        assert_error!(put(ino, b""), Error::Invalid(_));
        assert_error!(put(ino, &vec![0; MAX_INTENT + 1]), Error::Invalid(_));
        assert_error!(put(ROOT, b"a"), Error::IsDirectory);
        assert_error!(put(Ino(999), b"a"), Error::NotFound);
        assert_error!(store.put_intents(ino, &[intent(u64::MAX, 1, b"abc")], None), Error::TooLarge);
        assert_eq!(store.with_intents().unwrap(), []);
        put(ino, &vec![7; MAX_INTENT]).unwrap();
        store.punch(ino, MAX_INTENT as u64 - 1..MAX_INTENT as u64, at(3)).unwrap();
        assert_eq!(store.intents(ino).unwrap()[0].bytes.len(), MAX_INTENT - 1);
    });
}

/// What a mount does to one file, in an order in which it may happen.
#[derive(Clone, Debug)]
enum Step {
    Write(Range<u64>),
    Carry(Range<u64>),
    Seal(Range<u64>),
    Commit,
    Truncate(u64),
    Punch(Range<u64>),
}

const SIZE: u64 = 60;

fn range() -> impl Strategy<Value = Range<u64>> {
    (0..SIZE, 1..20u64).prop_map(|(from, length)| from..(from + length).min(SIZE))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => range().prop_map(Step::Write),
        2 => range().prop_map(Step::Carry),
        2 => range().prop_map(Step::Seal),
        2 => Just(Step::Commit),
        1 => (0..SIZE).prop_map(Step::Truncate),
        1 => range().prop_map(Step::Punch),
    ]
}

/// A file in the memory of a mount: of each byte the last write, 0 for none, and what is durable of it.
struct Model<'s> {
    store: &'s dyn MetadataStore,
    ino: Ino,
    writes: u8,
    written: [u8; SIZE as usize],
    durable: [u8; SIZE as usize],
    number: u64,
    /// Where the first byte of each belongs, and its bytes.
    objects: HashMap<u64, (u64, Vec<u8>)>,
    /// Sealed and not committed: object, where it lies, and the intents before it.
    seals: Vec<(u64, Vec<Range<u64>>, u64)>,
}

impl Model<'_> {
    fn step(&mut self, step: Step) {
        let part = |range: &Range<u64>| range.start as usize..range.end as usize;
        match step {
            Step::Write(range) => {
                self.writes += 1;
                self.written[part(&range)].fill(self.writes);
            }
            Step::Carry(range) => {
                self.number += 1;
                let bytes = self.written[part(&range)].to_vec();
                put(self.store, self.ino, range.start, self.number, &bytes);
                self.make_durable(range.start, &bytes);
            }
            Step::Seal(range) => {
                let counter = self.objects.len() as u64 + 1;
                self.objects.insert(counter, (range.start, self.written[part(&range)].to_vec()));
                self.seals.push((counter, vec![range], self.number));
            }
            Step::Commit if self.seals.is_empty() => {}
            Step::Commit => self.commit(),
            Step::Truncate(size) => {
                self.store.truncate(self.ino, size, at(3)).unwrap();
                self.take_away(size..SIZE);
            }
            Step::Punch(range) => {
                self.store.punch(self.ino, range.clone(), at(3)).unwrap();
                self.take_away(range);
            }
        }
    }

    fn commit(&mut self) {
        let (counter, ranges, intents) = self.seals.remove(0);
        let (first, bytes) = self.objects[&counter].clone();
        let extents: Vec<_> = ranges
            .iter()
            .map(|range| {
                let at = range.start - first;
                extent(range.start, (range.end - range.start) as u32, counter, at as u32)
            })
            .collect();
        let part = FileCommit { intents, ..file_commit(self.ino, &extents) };
        let objects = vec![object(counter, bytes.len() as u32)];
        self.store.commit(&Commit { objects, files: vec![part] }).unwrap();
        for range in ranges {
            let inside = (range.start - first) as usize..(range.end - first) as usize;
            self.make_durable(range.start, &bytes[inside]);
        }
    }

    fn make_durable(&mut self, from: u64, bytes: &[u8]) {
        for (at, byte) in bytes.iter().enumerate() {
            let durable = &mut self.durable[from as usize + at];
            *durable = (*durable).max(*byte);
        }
    }

    fn take_away(&mut self, gone: Range<u64>) {
        self.written[gone.start as usize..gone.end as usize].fill(0);
        self.durable[gone.start as usize..gone.end as usize].fill(0);
        for (_, ranges, _) in &mut self.seals {
            *ranges = ranges
                .iter()
                .flat_map(|range| {
                    [range.start..range.end.min(gone.start), range.start.max(gone.end)..range.end]
                })
                .filter(|range| range.start < range.end)
                .collect();
        }
    }

    /// What the next mount sees.
    fn seen(&self) -> [u8; SIZE as usize] {
        let mut seen = [0; SIZE as usize];
        for extent in extents(self.store, self.ino) {
            let (_, bytes) = &self.objects[&extent.object.counter];
            for at in 0..extent.length as usize {
                seen[extent.offset as usize + at] = bytes[extent.object_offset as usize + at];
            }
        }
        for intent in self.store.intents(self.ino).unwrap() {
            seen[intent.offset as usize..][..intent.bytes.len()].copy_from_slice(&intent.bytes);
        }
        seen
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn whenever_a_mount_ends_the_last_bytes_that_were_carried_or_committed_are_there(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        on_every_store(|store| {
            let ino = file(store, ROOT, "a");
            store.truncate(ino, SIZE, at(2)).unwrap();
            let mut model = Model {
                store,
                ino,
                writes: 0,
                written: [0; SIZE as usize],
                durable: [0; SIZE as usize],
                number: 0,
                objects: HashMap::new(),
                seals: Vec::new(),
            };
            for step in steps.clone() {
                model.step(step);
                assert_eq!(model.seen(), model.durable);
            }
        });
    }
}
