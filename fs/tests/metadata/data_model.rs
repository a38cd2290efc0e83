//! Random writes, cuts, holes and copies against a model that remembers each byte by itself.

use avidfs::inode::{Ino, ROOT};
use avidfs::metadata::sqlite::SqliteStore;
use avidfs::metadata::{Commit, Extent, MetadataStore};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::*;

const FILES: usize = 2;
const LARGEST: u64 = 64;

#[derive(Clone, Debug)]
enum Step {
    /// One new object, and where pieces of it go: (file, offset, length, object offset).
    Write(Vec<(usize, u64, u32, u32)>),
    Truncate(usize, u64),
    Punch(usize, u64, u64),
    Copy(usize, u64, usize, u64, u64),
    Forget,
}

fn step() -> impl Strategy<Value = Step> {
    let piece = (0..FILES, 0..LARGEST, 1..24u32, 0..8u32);
    prop_oneof![
        4 => vec(piece, 1..4).prop_map(Step::Write),
        1 => (0..FILES, 0..LARGEST).prop_map(|(file, size)| Step::Truncate(file, size)),
        1 => (0..FILES, 0..LARGEST, 0..LARGEST).prop_map(|(file, start, length)| Step::Punch(file, start, length)),
        2 => (0..FILES, 0..LARGEST, 0..FILES, 0..LARGEST, 0..LARGEST)
            .prop_map(|(from, at, to, there, length)| Step::Copy(from, at, to, there, length)),
        1 => Just(Step::Forget),
    ]
}

/// Where a byte lies: object and offset in it.
type Byte = Option<(u64, u32)>;

#[derive(Default, Clone)]
struct Model {
    files: [Vec<Byte>; FILES],
}

impl Model {
    fn put(&mut self, file: usize, offset: u64, bytes: &[Byte]) {
        let end = offset as usize + bytes.len();
        let file = &mut self.files[file];
        if file.len() < end && !bytes.is_empty() {
            file.resize(end, None);
        }
        file.iter_mut().skip(offset as usize).zip(bytes).for_each(|(old, new)| *old = *new);
    }

    fn bytes(&self, file: usize, offset: u64, length: u64) -> Vec<Byte> {
        (offset..offset + length).map(|at| self.files[file].get(at as usize).copied().flatten()).collect()
    }

    /// The objects bytes lie in.
    fn live(&self) -> std::collections::BTreeSet<u64> {
        self.files.iter().flatten().flatten().map(|(object, _)| *object).collect()
    }
}

fn run(store: &dyn MetadataStore, inos: [Ino; FILES], steps: &[Step]) {
    let mut model = Model::default();
    let mut made = Vec::new();
    for (counter, step) in (1..).zip(steps) {
        match step {
            Step::Write(pieces) => {
                made.push(counter);
                let mut commit = Commit { objects: vec![object(counter, 64)], files: Vec::new() };
                for (file, offset, length, object_offset) in pieces {
                    let extent = extent(*offset, *length, counter, *object_offset);
                    commit.files.push(file_commit(inos[*file], &[extent]));
                    let bytes: Vec<Byte> =
                        (0..*length).map(|at| Some((counter, object_offset + at))).collect();
                    model.put(*file, *offset, &bytes);
                }
                store.commit(&commit).unwrap();
            }
            Step::Truncate(file, size) => {
                store.truncate(inos[*file], *size, at(3)).unwrap();
                model.files[*file].resize(*size as usize, None);
            }
            Step::Punch(file, start, length) => {
                store.punch(inos[*file], *start..start + length, at(3)).unwrap();
                let file = &mut model.files[*file];
                file.iter_mut().skip(*start as usize).take(*length as usize).for_each(|byte| *byte = None);
            }
            Step::Copy(from, source, to, target, length) => {
                let copied = store.copy_extents((inos[*from], *source), (inos[*to], *target), *length, at(3));
                if from == to && source.abs_diff(*target) < *length {
                    assert!(copied.is_err());
                } else {
                    copied.unwrap();
                    let bytes = model.bytes(*from, *source, *length);
                    model.put(*to, *target, &bytes);
                }
            }
            Step::Forget => {
                let ids = condemned(store);
                store.forget(&ids.iter().map(|counter| id(*counter)).collect::<Vec<_>>()).unwrap();
                made.retain(|counter| !ids.contains(counter));
            }
        }
        for (file, ino) in inos.into_iter().enumerate() {
            check_file(store, ino, &model.files[file]);
        }
        let live = model.live();
        let dead: Vec<u64> = made.iter().copied().filter(|counter| !live.contains(counter)).collect();
        assert_eq!(condemned(store), dead);
        audit(store);
    }
}

fn check_file(store: &dyn MetadataStore, ino: Ino, bytes: &[Byte]) {
    let mut found: Vec<Byte> = vec![None; store.inode(ino).unwrap().size as usize];
    for Extent { offset, length, object, object_offset } in extents(store, ino) {
        for at in 0..length {
            found[offset as usize + at as usize] = Some((object.counter, object_offset + at));
        }
    }
    assert_eq!(found, bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn extents_say_of_every_byte_what_was_last_written_there(steps in vec(step(), 1..40)) {
        let store = SqliteStore::open_in_memory().unwrap();
        format(&store);
        let inos = ["a", "b"].map(|name| file(&store, ROOT, name));
        run(&store, inos, &steps);
    }
}
