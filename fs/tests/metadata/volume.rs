//! The volume as a whole.

use avidfs::error::Error;
use avidfs::inode::{Ino, ROOT};
use avidfs::metadata::Usage;
use common::wire::NodeId;

use crate::support::*;

#[test]
fn a_store_has_no_volume_before_format_and_remembers_it_afterwards() {
    on_every_empty_store(|store| {
        assert_eq!(store.settings().unwrap(), None);
        assert_error!(store.inode(ROOT), Error::NotFound);
        assert_error!(store.begin_epoch(0), Error::Invalid(_));
        store.format(&settings()).unwrap();
        assert_eq!(store.settings().unwrap(), Some(settings()));
    });
}

#[test]
fn format_makes_an_empty_root_directory() {
    on_every_store(|store| {
        let root = store.inode(ROOT).unwrap();
        assert_eq!((root.ino, root.mode, root.links), (Ino(1), libc::S_IFDIR | 0o755, 2));
        assert_eq!((root.uid, root.gid, root.size), (1000, 100, 0));
        assert_eq!([root.atime, root.mtime, root.ctime, root.btime], [at(1); 4]);
        assert_eq!(store.parent(ROOT).unwrap(), ROOT);
        assert!(store.list(ROOT, 0, 10).unwrap().is_empty());
        assert_eq!(store.usage().unwrap(), Usage { inodes: 1, ..Usage::default() });
    });
}

#[test]
fn a_second_format_is_refused_and_changes_nothing() {
    on_every_store(|store| {
        let other = avidfs::metadata::VolumeSettings { name: "other".into(), ..settings() };
        assert_error!(store.format(&other), Error::Exists);
        assert_eq!(store.settings().unwrap(), Some(settings()));
    });
}

#[test]
fn every_epoch_is_one_more_than_the_last() {
    on_every_store(|store| {
        let first = store.begin_epoch(0).unwrap();
        assert_eq!(store.begin_epoch(0).unwrap(), first + 1);
        assert_eq!(store.begin_epoch(first + 9).unwrap(), first + 10, "greater than any seen elsewhere");
    });
}

#[test]
fn a_configuration_is_remembered_once() {
    on_every_store(|store| {
        let known = store.configurations().unwrap();
        assert_eq!((known.len(), known[0].number), (1, 1));
        assert_eq!(store.configure(&known[0].nodes).unwrap(), known[0]);
        let reversed: Vec<NodeId> = known[0].nodes.iter().rev().copied().collect();
        let other = store.configure(&reversed).unwrap();
        assert_eq!((other.number, &other.nodes), (2, &reversed), "the order of nodes counts");
        assert_eq!(store.configurations().unwrap(), [known[0].clone(), other]);
        assert_error!(store.configure(&[]), Error::Invalid(_));
    });
}

#[test]
fn a_configuration_places_objects_as_long_as_something_refers_to_one() {
    on_every_store(|store| {
        assert!(!store.places_objects(1).unwrap());
        let ino = file(store, ROOT, "a");
        write(store, ino, 0, 1, 100);
        assert!(store.places_objects(1).unwrap() && !store.places_objects(2).unwrap());
        store.unlink(ROOT, b"a", at(2)).unwrap();
        store.reclaim(&[ino]).unwrap();
        assert_eq!((condemned(store), store.places_objects(1).unwrap()), (vec![1], false));
    });
}

#[test]
fn sync_may_be_called_at_any_time() {
    on_every_store(|store| {
        store.sync().unwrap();
        file(store, ROOT, "a");
        store.sync().unwrap();
        store.sync().unwrap();
    });
}
