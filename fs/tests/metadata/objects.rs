//! Objects: their records, their exceptions, their end.

use avidfs::error::Error;
use avidfs::inode::{Ino, ROOT};
use avidfs::metadata::{Commit, Exception, ObjectRecord};
use common::wire::{NodeId, ObjectId};

use crate::support::*;

fn at_node(index: u8, node: u8) -> Exception {
    Exception { index, node: Some(NodeId([node; 16])) }
}

fn nowhere(index: u8) -> Exception {
    Exception { index, node: None }
}

#[test]
fn the_objects_of_a_file_come_by_offset_a_page_at_a_time() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        for counter in 1..=3 {
            write(store, ino, 100 * (3 - counter), counter, 100);
        }
        write(store, ino, 50, 9, 10);
        let offsets = |from, limit| -> Vec<_> {
            let page = store.objects_of(ino, from, limit).unwrap();
            assert!(page.iter().all(|(extent, record)| extent.object == record.id));
            page.iter().map(|(extent, record)| (extent.offset, record.id.counter)).collect()
        };
        assert_eq!(offsets(0, 2), [(0, 3), (50, 9)]);
        assert_eq!(offsets(60, 2), [(60, 3), (100, 2)]);
        assert_eq!(
            offsets(59, 10),
            [(50, 9), (60, 3), (100, 2), (200, 1)],
            "also the one that reaches there"
        );
        assert_eq!(offsets(100, 1), [(100, 2)], "one that ends there takes no place in the page");
        assert_eq!(offsets(299, 10), [(200, 1)]);
        assert!(offsets(300, 10).is_empty());
        assert!(offsets(u64::MAX, 10).is_empty());
        assert_error!(store.objects_of(Ino(999_999), 0, 1), Error::NotFound);
    });
}

#[test]
fn the_objects_of_small_files_come_by_inode_number() {
    on_every_store(|store| {
        let files: Vec<Ino> = (0..6).map(|i| file(store, ROOT, &format!("{i}"))).collect();
        for (i, ino) in files.iter().enumerate() {
            // The third begins with a hole, the fourth is empty, the fifth large.
            match i {
                2 => write(store, *ino, 100, 10 + i as u64, 100),
                3 => (),
                4 => write(store, *ino, 0, 10 + i as u64, 5000),
                _ => write(store, *ino, 0, 10 + i as u64, 100),
            }
        }
        let counters = |first: usize, last: usize, limit| -> Vec<u64> {
            let inos = files[first].0..=files[last].0;
            let found = store.small_files(inos, 4000, limit).unwrap();
            found.iter().map(|record| record.id.counter).collect()
        };
        assert_eq!(counters(0, 5, 10), [10, 11, 15]);
        assert_eq!(counters(0, 5, 2), [10, 11]);
        assert_eq!(counters(1, 4, 10), [11]);
        assert!(store.small_files(files[5].0 + 1..=u64::MAX, 4000, 10).unwrap().is_empty());
    });
}

#[test]
fn an_unknown_object_is_not_found() {
    on_every_store(|store| {
        assert_error!(store.object(id(1)), Error::NotFound);
        assert_error!(store.object(ObjectId { epoch: u32::MAX, counter: u64::MAX }), Error::NotFound);
    });
}

#[test]
fn an_identity_the_store_has_no_room_for_is_refused() {
    on_every_store(|store| {
        let record = ObjectRecord { id: ObjectId { epoch: u32::MAX, counter: 1 }, ..object(1, 1) };
        assert_error!(store.commit(&Commit { objects: vec![record], files: vec![] }), Error::Invalid(_));
    });
}

#[test]
fn exceptions_are_remembered_replaced_and_listed() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        let with = ObjectRecord { exceptions: vec![nowhere(4), at_node(2, 7)], ..object(1, 10) };
        let extents = [extent(0, 10, 1, 0)];
        store.commit(&Commit { objects: vec![with], files: vec![file_commit(ino, &extents)] }).unwrap();
        write(store, ino, 10, 2, 10);
        write(store, ino, 20, 3, 10);
        assert_eq!(store.object(id(1)).unwrap().exceptions, [at_node(2, 7), nowhere(4)]);
        store.set_exceptions(id(3), &[at_node(0, 1)]).unwrap();
        let listed = |after: Option<u64>, limit| -> Vec<u64> {
            let found = store.with_exceptions(after.map(id), limit).unwrap();
            assert!(found.iter().all(|record| store.object(record.id).unwrap() == *record));
            found.iter().map(|record| record.id.counter).collect()
        };
        assert_eq!(listed(None, 10), [1, 3]);
        assert_eq!(listed(None, 1), [1]);
        assert_eq!(listed(Some(1), 10), [3]);
        assert_eq!(store.usage().unwrap().objects_with_exceptions, 2);
        store.set_exceptions(id(1), &[]).unwrap();
        assert!(store.object(id(1)).unwrap().exceptions.is_empty());
        assert_eq!(listed(None, 10), [3]);
        store.set_exceptions(id(2), &[nowhere(1), at_node(1, 5), at_node(0, 6)]).unwrap();
        assert_eq!(
            store.object(id(2)).unwrap().exceptions,
            [at_node(0, 6), at_node(1, 5)],
            "the last counts"
        );
        store.set_exceptions(id(2), &[]).unwrap();
        store.set_exceptions(id(77), &[nowhere(1)]).unwrap();
        assert_eq!(store.usage().unwrap().objects_with_exceptions, 1);
    });
}

#[test]
fn of_exceptions_only_those_are_revised_that_are_as_they_were() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        write(store, ino, 0, 1, 10);
        let revise = |before: &[Exception], after: &[Exception]| {
            let before = ObjectRecord { exceptions: before.to_vec(), ..object(1, 10) };
            let revised = store.revise_exceptions(&before, after).unwrap().unwrap();
            assert_eq!(store.object(id(1)).unwrap().exceptions, revised);
            revised
        };
        assert_eq!(revise(&[], &[nowhere(1)]), [nowhere(1)]);
        // Found lost since they were read.
        assert_eq!(revise(&[], &[at_node(3, 7)]), [nowhere(1), at_node(3, 7)]);
        assert_eq!(revise(&[nowhere(1)], &[]), [at_node(3, 7)]);
        // Moved since.
        assert_eq!(revise(&[at_node(3, 8)], &[nowhere(3)]), [at_node(3, 7)]);
        assert_eq!(revise(&[at_node(3, 7)], &[nowhere(3), nowhere(0)]), [nowhere(0), nowhere(3)]);
        assert_eq!(revise(&[nowhere(0), nowhere(3)], &[]), []);
        assert_eq!(store.usage().unwrap().objects_with_exceptions, 0);
        assert_eq!(store.revise_exceptions(&object(77, 10), &[nowhere(1)]).unwrap(), None);
    });
}

#[test]
fn an_object_is_placed_by_another_configuration_unless_its_placement_changed() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        write(store, ino, 0, 1, 10);
        let other = store.configure(&[NodeId([8; 16]), NodeId([9; 16])]).unwrap().number;
        let before = store.object(id(1)).unwrap();
        assert_ne!(before.configuration, other);
        store.set_exceptions(id(1), &[nowhere(2)]).unwrap();
        assert!(!store.place_anew(&before, other, &[]).unwrap(), "found lost since");
        let before = store.object(id(1)).unwrap();
        assert!(store.place_anew(&before, other, &[at_node(0, 7), nowhere(2)]).unwrap());
        let placed = ObjectRecord {
            configuration: other,
            exceptions: vec![at_node(0, 7), nowhere(2)],
            ..before.clone()
        };
        assert_eq!(store.object(id(1)).unwrap(), placed);
        assert!(!store.place_anew(&before, other, &[]).unwrap(), "placed anew since");
        // Whoever brought a fragment to where it was at home before knows nothing of where that is now.
        assert_eq!(store.revise_exceptions(&before, &[]).unwrap(), None);
        assert_eq!(store.object(id(1)).unwrap(), placed);
        assert_eq!(store.usage().unwrap().objects_with_exceptions, 1);
        assert!(store.place_anew(&placed, before.configuration, &[]).unwrap());
        assert_eq!(store.object(id(1)).unwrap(), ObjectRecord { exceptions: vec![], ..before });
        assert_eq!(store.usage().unwrap().objects_with_exceptions, 0);
        assert!(!store.place_anew(&object(77, 10), other, &[]).unwrap());
        assert_error!(store.place_anew(&store.object(id(1)).unwrap(), 77, &[]), Error::Invalid(_));
    });
}

#[test]
fn a_condemned_object_is_known_until_it_is_forgotten() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        for counter in 1..=3 {
            write(store, ino, 0, counter, 10);
        }
        store.set_exceptions(id(1), &[nowhere(0)]).unwrap();
        assert_eq!(condemned(store), [1, 2]);
        let first = store.condemned(None, 1).unwrap();
        assert_eq!(first, [ObjectRecord { exceptions: vec![nowhere(0)], ..object(1, 10) }]);
        assert_eq!(store.condemned(Some(id(1)), 10).unwrap(), [object(2, 10)]);
        assert_eq!(store.object(id(2)).unwrap(), object(2, 10));
        store.forget(&[id(1), id(77)]).unwrap();
        store.forget(&[id(1)]).unwrap();
        assert_eq!(condemned(store), [2]);
        assert_error!(store.object(id(1)), Error::NotFound);
        assert_eq!(store.usage().unwrap().objects_with_exceptions, 0);
    });
}

#[test]
fn an_object_in_use_is_not_forgotten() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        write(store, ino, 0, 1, 10);
        write(store, ino, 0, 2, 10);
        assert_error!(store.forget(&[id(1), id(2)]), Error::Invalid(_));
        assert_eq!(condemned(store), [1], "all or nothing");
    });
}
