//! Random changes of names against a tree that is nothing but maps; errors are compared too.

use std::collections::BTreeMap;

use avidfs::error::Error;
use avidfs::inode::{Ino, ROOT};
use avidfs::metadata::sqlite::SqliteStore;
use avidfs::metadata::{MetadataStore, RenameMode};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::*;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// A directory (one of all that were ever made) and a name in it.
type Place = (usize, usize);

#[derive(Clone, Debug)]
enum Step {
    File(Place),
    Directory(Place),
    /// Link one of all inodes ever made.
    Link(usize, Place),
    Unlink(Place),
    Rmdir(Place),
    Rename(Place, Place, RenameMode),
    Reclaim(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0..64usize, 0..NAMES.len());
    let mode =
        prop_oneof![Just(RenameMode::Replace), Just(RenameMode::NoReplace), Just(RenameMode::Exchange)];
    prop_oneof![
        3 => place().prop_map(Step::File),
        5 => place().prop_map(Step::Directory),
        1 => (0..64usize, place()).prop_map(|(inode, place)| Step::Link(inode, place)),
        1 => place().prop_map(Step::Unlink),
        2 => place().prop_map(Step::Rmdir),
        8 => (place(), place(), mode).prop_map(|(from, to, mode)| Step::Rename(from, to, mode)),
        1 => (0..64usize).prop_map(Step::Reclaim),
    ]
}

#[derive(Clone, Debug, Default)]
struct Node {
    /// Of a directory.
    entries: Option<BTreeMap<usize, Ino>>,
    /// The directory that holds it, of a directory.
    parent: Option<Ino>,
    names: u32,
}

/// Nodes that were reclaimed are gone.
#[derive(Default)]
struct Model {
    nodes: BTreeMap<Ino, Node>,
}

/// The error's variant.
type Outcome = Result<(), String>;

fn outcome<T>(result: Result<T, Error>) -> Outcome {
    let variant = |error| format!("{error:?}").split('(').next().unwrap_or_default().to_owned();
    result.map(|_| ()).map_err(variant)
}

fn refuse<T>(variant: &str) -> Result<T, String> {
    Err(variant.to_owned())
}

impl Model {
    fn entries(&mut self, directory: Ino) -> Result<&mut BTreeMap<usize, Ino>, String> {
        let Some(node) = self.nodes.get_mut(&directory) else { return refuse("NotFound") };
        node.entries.as_mut().ok_or("NotDirectory".to_owned())
    }

    /// The entries of a directory that has a name.
    fn living(&mut self, directory: Ino) -> Result<&mut BTreeMap<usize, Ino>, String> {
        self.entries(directory)?;
        if self.nodes[&directory].names == 0 { refuse("NotFound") } else { self.entries(directory) }
    }

    fn is_directory(&self, ino: Ino) -> bool {
        self.nodes[&ino].entries.is_some()
    }

    fn is_full(&self, ino: Ino) -> bool {
        self.nodes[&ino].entries.as_ref().is_some_and(|entries| !entries.is_empty())
    }

    fn create(&mut self, (parent, name): (Ino, usize)) -> Outcome {
        if self.living(parent)?.contains_key(&name) { refuse("Exists") } else { Ok(()) }
    }

    fn created(&mut self, (parent, name): (Ino, usize), ino: Ino, directory: bool) {
        self.entries(parent).unwrap().insert(name, ino);
        let entries = directory.then(BTreeMap::new);
        self.nodes.insert(ino, Node { entries, parent: directory.then_some(parent), names: 1 });
    }

    fn link(&mut self, ino: Ino, (parent, name): (Ino, usize)) -> Outcome {
        if !self.nodes.contains_key(&ino) {
            return refuse("NotFound");
        }
        self.create((parent, name))?;
        if self.is_directory(ino) {
            return refuse("NotPermitted");
        }
        if self.nodes[&ino].names == 0 {
            return refuse("NotFound");
        }
        self.entries(parent)?.insert(name, ino);
        self.nodes.get_mut(&ino).unwrap().names += 1;
        Ok(())
    }

    fn remove(&mut self, (parent, name): (Ino, usize), directory: bool) -> Outcome {
        let Some(ino) = self.entries(parent)?.get(&name).copied() else { return refuse("NotFound") };
        match (directory, self.is_directory(ino)) {
            (true, false) => return refuse("NotDirectory"),
            (false, true) => return refuse("IsDirectory"),
            _ => {}
        }
        if self.is_full(ino) {
            return refuse("NotEmpty");
        }
        self.entries(parent)?.remove(&name);
        self.nodes.get_mut(&ino).unwrap().names -= 1;
        Ok(())
    }

    fn lies_in(&self, mut inner: Ino, outer: Ino) -> bool {
        loop {
            if inner == outer {
                return true;
            }
            match self.nodes[&inner].parent {
                Some(parent) if parent != inner => inner = parent,
                _ => return false,
            }
        }
    }

    fn rename(&mut self, from: (Ino, usize), to: (Ino, usize), mode: RenameMode) -> Outcome {
        let source = self.entries(from.0)?.get(&from.1).copied();
        let target = self.living(to.0)?.get(&to.1).copied();
        let Some(source) = source else { return refuse("NotFound") };
        if mode == RenameMode::NoReplace && target.is_some() {
            return refuse("Exists");
        }
        if mode == RenameMode::Exchange && target.is_none() {
            return refuse("NotFound");
        }
        if target == Some(source) {
            return Ok(());
        }
        if self.is_directory(source) && self.lies_in(to.0, source) {
            return refuse("Invalid");
        }
        let Some(target) = target else {
            self.entries(from.0)?.remove(&from.1);
            self.place(to, source);
            return Ok(());
        };
        if mode == RenameMode::Exchange {
            if self.is_directory(target) && self.lies_in(from.0, target) {
                return refuse("Invalid");
            }
            self.place(to, source);
            self.place(from, target);
            return Ok(());
        }
        match (self.is_directory(source), self.is_directory(target)) {
            (true, false) => return refuse("NotDirectory"),
            (false, true) => return refuse("IsDirectory"),
            _ => {}
        }
        if self.is_full(target) {
            return refuse("NotEmpty");
        }
        self.entries(from.0)?.remove(&from.1);
        self.place(to, source);
        self.nodes.get_mut(&target).unwrap().names -= 1;
        Ok(())
    }

    fn place(&mut self, (parent, name): (Ino, usize), ino: Ino) {
        self.entries(parent).unwrap().insert(name, ino);
        let node = self.nodes.get_mut(&ino).unwrap();
        node.parent = node.entries.is_some().then_some(parent);
    }

    fn check(&self, store: &dyn MetadataStore) {
        let mut orphans = Vec::new();
        for (ino, node) in &self.nodes {
            let inode = store.inode(*ino).unwrap();
            let Some(entries) = &node.entries else {
                assert_eq!(inode.links, node.names);
                if node.names == 0 {
                    orphans.push(*ino);
                }
                continue;
            };
            if node.names == 0 {
                orphans.push(*ino);
            }
            assert_eq!(store.parent(*ino).unwrap(), node.parent.unwrap());
            let mut listed: Vec<_> = store.list(*ino, 0, usize::MAX).unwrap();
            listed.sort_by(|a, b| a.name.cmp(&b.name));
            let listed: Vec<_> = listed.into_iter().map(|entry| (entry.name, entry.inode.ino)).collect();
            let expected: Vec<_> =
                entries.iter().map(|(name, ino)| (NAMES[*name].as_bytes().to_vec(), *ino)).collect();
            assert_eq!(listed, expected);
        }
        assert_eq!(store.orphans().unwrap(), orphans);
    }
}

fn run(store: &dyn MetadataStore, steps: &[Step]) {
    let mut model = Model::default();
    let root = Node { entries: Some(BTreeMap::new()), parent: Some(ROOT), names: 1 };
    model.nodes.insert(ROOT, root);
    let (mut directories, mut inodes) = (vec![ROOT], vec![ROOT]);
    for step in steps {
        let at_place = |(directory, name): Place| (directories[directory % directories.len()], name);
        let named = |(directory, name): (Ino, usize)| (directory, NAMES[name].as_bytes());
        match step.clone() {
            Step::File(place) | Step::Directory(place) => {
                let is_directory = matches!(step, Step::Directory(_));
                let new = if is_directory { new_directory() } else { new_file() };
                let place = at_place(place);
                let made = store.create(named(place).0, named(place).1, &new, at(3));
                assert_eq!(outcome(made.clone()), model.create(place), "{step:?}");
                if let Ok(inode) = made {
                    model.created(place, inode.ino, is_directory);
                    inodes.push(inode.ino);
                    if is_directory {
                        directories.push(inode.ino);
                    }
                }
            }
            Step::Link(inode, place) => {
                let (ino, place) = (inodes[inode % inodes.len()], at_place(place));
                let linked = store.link(ino, named(place).0, named(place).1, at(3));
                assert_eq!(outcome(linked), model.link(ino, place), "{step:?}");
            }
            Step::Unlink(place) => {
                let place = at_place(place);
                let removed = store.unlink(named(place).0, named(place).1, at(3));
                assert_eq!(outcome(removed), model.remove(place, false), "{step:?}");
            }
            Step::Rmdir(place) => {
                let place = at_place(place);
                let removed = store.rmdir(named(place).0, named(place).1, at(3));
                assert_eq!(outcome(removed), model.remove(place, true), "{step:?}");
            }
            Step::Rename(from, to, mode) => {
                let (from, to) = (at_place(from), at_place(to));
                let renamed = store.rename(named(from), named(to), mode, at(3));
                assert_eq!(outcome(renamed), model.rename(from, to, mode), "{step:?}");
            }
            Step::Reclaim(inode) => {
                let ino = inodes[inode % inodes.len()];
                store.reclaim(&[ino]).unwrap();
                if model.nodes.get(&ino).is_some_and(|node| node.names == 0) {
                    model.nodes.remove(&ino);
                }
            }
        }
        model.check(store);
        audit(store);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn names_change_as_in_a_tree_of_maps(steps in vec(step(), 1..60)) {
        let store = SqliteStore::open_in_memory().unwrap();
        format(&store);
        run(&store, &steps);
    }
}
