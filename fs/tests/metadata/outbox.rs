//! Changes on their way to the pool, and back.

use avidfs::error::Error;
use avidfs::inode::ROOT;
use avidfs::metadata::sqlite::SqliteStore;
use avidfs::metadata::{AttributeChange, MetadataStore, Replay};

use crate::support::*;

#[test]
fn what_was_shipped_leaves_the_outbox_and_nothing_else() {
    on_every_empty_store(|store| {
        format(store);
        store.create(ROOT, b"a", &new_file(), at(2)).unwrap();
        let first = store.outbox(0, 1).unwrap();
        assert!(first.last < store.last_change());
        store.shipped(first.last, b"head 1").unwrap();
        assert_eq!(store.head().unwrap().unwrap(), b"head 1");
        let rest = store.outbox(0, usize::MAX).unwrap();
        assert_eq!(rest.last, store.last_change());
        assert!(rest.records.len() > first.records.len());
        store.shipped(rest.last, b"head 2").unwrap();
        assert_eq!(store.outbox_bytes().unwrap(), 0);
        store.create(ROOT, b"b", &new_file(), at(3)).unwrap();
        assert_eq!(store.last_change(), rest.last + 1, "numbers go on from the last one shipped");
    });
}

#[test]
fn numbers_of_changes_are_not_used_twice_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metadata.db");
    let store = SqliteStore::open(&path).unwrap();
    format(&store);
    store.shipped(store.last_change(), b"head").unwrap();
    let last = store.last_change();
    drop(store);
    assert_eq!(SqliteStore::open(&path).unwrap().last_change(), last);
}

#[test]
fn a_verb_that_fails_leaves_nothing_in_the_outbox() {
    on_every_store(|store| {
        let before = store.last_change();
        store.unlink(ROOT, b"nothing", at(2)).unwrap_err();
        store.set_attributes(ROOT, &AttributeChange::default()).unwrap();
        store.create(ROOT, b"", &new_file(), at(2)).unwrap_err();
        assert_eq!(store.last_change(), before + 1);
    });
}

#[test]
fn a_store_that_is_behind_catches_up_and_keeps_what_it_has_not_shipped() {
    on_every_empty_store(|store| {
        format(store);
        let file = store.create(ROOT, b"a", &new_file(), at(2)).unwrap();
        let shipped = store.outbox(0, usize::MAX).unwrap();
        // The pool has these; the answer was lost, and more was done meanwhile.
        let change = AttributeChange { uid: Some(77), ..AttributeChange::default() };
        store.set_attributes(file.ino, &change).unwrap();
        let records = &mut pieces(&[&shipped.records]);
        store.replay(Replay { anew: false, records, upto: shipped.last, head: b"h" }).unwrap();
        assert_eq!(store.inode(file.ino).unwrap().uid, 77, "what was done after it stays done");
        assert_eq!(store.outbox(0, usize::MAX).unwrap().last, shipped.last + 1);
    });
}

#[test]
fn damaged_records_change_nothing() {
    on_every_store(|store| {
        let records = &mut pieces(&[b"\xffgarbage"]);
        store.replay(Replay { anew: true, records, upto: 99, head: b"h" }).unwrap_err();
        assert_eq!(store.settings().unwrap(), Some(settings()));
        assert_eq!(store.head().unwrap(), None);
    });
}

#[test]
fn records_of_which_the_rest_never_comes_change_nothing() {
    on_every_store(|store| {
        let before = dumped(store);
        let everything = encoded(&before);
        let rest = std::iter::once(Err(Error::Host("nobody sends the rest".into())));
        let records = &mut pieces(&[&everything]).chain(rest);
        let refused = store.replay(Replay { anew: true, records, upto: 99, head: b"h" }).unwrap_err();
        assert!(refused.to_string().contains("the rest"), "{refused}");
        assert_eq!(dumped(store), before);
        assert_eq!(store.head().unwrap(), None);
    });
}
