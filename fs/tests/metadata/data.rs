//! Extents, and what they count.

use avidfs::error::Error;
use avidfs::inode::{Ino, MAX_SIZE, ROOT};
use avidfs::metadata::{Commit, Extent, FileCommit, MetadataStore};

use crate::support::*;

#[test]
fn a_commit_makes_bytes_visible_with_size_and_times() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        let part = FileCommit { size: 150, mtime: Some(at(9)), ..file_commit(ino, &[extent(20, 100, 1, 0)]) };
        store.commit(&Commit { objects: vec![object(1, 100)], files: vec![part] }).unwrap();
        let inode = store.inode(ino).unwrap();
        assert_eq!((inode.size, inode.allocated, inode.mtime, inode.ctime), (150, 100, at(9), at(9)));
        assert_eq!(extents(store, ino), [extent(20, 100, 1, 0)]);
        assert_eq!(store.object(id(1)).unwrap(), object(1, 100));
    });
}

#[test]
fn a_commit_never_shrinks_a_file_and_never_turns_its_times_back() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        store.truncate(ino, 1000, at(9)).unwrap();
        let part = FileCommit { size: 10, mtime: Some(at(8)), ..file_commit(ino, &[extent(0, 10, 1, 0)]) };
        store.commit(&Commit { objects: vec![object(1, 10)], files: vec![part] }).unwrap();
        let inode = store.inode(ino).unwrap();
        assert_eq!((inode.size, inode.mtime, inode.ctime), (1000, at(9), at(9)));
        write(store, ino, 995, 2, 10);
        assert_eq!(store.inode(ino).unwrap().size, 1005, "no extent lies beyond the size");
    });
}

#[test]
fn only_extents_that_touch_the_range_are_named_and_uncut() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        for (counter, offset) in [(1, 0), (2, 100), (3, 300)] {
            write(store, ino, offset, counter, 100);
        }
        let (first, second, third) = (extent(0, 100, 1, 0), extent(100, 100, 2, 0), extent(300, 100, 3, 0));
        assert_eq!(store.extents(ino, 0..400).unwrap(), [first, second, third]);
        assert_eq!(store.extents(ino, 100..101).unwrap(), [second]);
        assert_eq!(store.extents(ino, 199..300).unwrap(), [second]);
        assert_eq!(store.extents(ino, 199..301).unwrap(), [second, third]);
        assert_eq!(store.extents(ino, 350..u64::MAX).unwrap(), [third]);
        assert!(store.extents(ino, 200..300).unwrap().is_empty());
        assert!(store.extents(ino, 150..150).unwrap().is_empty());
        assert!(store.extents(ino, 400..500).unwrap().is_empty());
        assert_error!(store.extents(Ino(999_999), 0..1), Error::NotFound);
    });
}

#[test]
fn a_later_write_splits_what_it_falls_into() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        write(store, ino, 0, 1, 100);
        write(store, ino, 40, 2, 20);
        assert_eq!(extents(store, ino), [extent(0, 40, 1, 0), extent(40, 20, 2, 0), extent(60, 40, 1, 60)]);
        assert_eq!(store.inode(ino).unwrap().allocated, 100);
        assert!(condemned(store).is_empty());
    });
}

#[test]
fn a_later_write_trims_and_swallows_its_neighbours() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        for counter in 0..3 {
            write(store, ino, 100 * counter, counter, 100);
        }
        write(store, ino, 50, 9, 200);
        assert_eq!(extents(store, ino), [extent(0, 50, 0, 0), extent(50, 200, 9, 0), extent(250, 50, 2, 50)]);
        assert_eq!(condemned(store), [1]);
        assert_eq!(store.usage().unwrap().live_bytes, 300);
        write(store, ino, 0, 10, 300);
        assert_eq!(extents(store, ino), [extent(0, 300, 10, 0)]);
        assert_eq!(condemned(store), [0, 1, 2, 9]);
    });
}

#[test]
fn of_one_commit_the_later_extent_wins() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        let first = file_commit(ino, &[extent(0, 100, 1, 0), extent(50, 100, 2, 0)]);
        let second = file_commit(ino, &[extent(90, 20, 1, 80)]);
        store
            .commit(&Commit { objects: vec![object(1, 100), object(2, 100)], files: vec![first, second] })
            .unwrap();
        let expected =
            [extent(0, 50, 1, 0), extent(50, 40, 2, 0), extent(90, 20, 1, 80), extent(110, 40, 2, 60)];
        assert_eq!(extents(store, ino), expected);
    });
}

#[test]
fn extents_that_continue_each_other_become_one() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        let pieces = [extent(0, 10, 1, 0), extent(20, 10, 1, 20), extent(10, 10, 1, 10)];
        store
            .commit(&Commit { objects: vec![object(1, 100)], files: vec![file_commit(ino, &pieces)] })
            .unwrap();
        assert_eq!(extents(store, ino), [extent(0, 30, 1, 0)]);
        // Not if they lie apart in the object or in the file.
        let pieces = [extent(30, 10, 1, 50), extent(50, 10, 1, 60)];
        store.commit(&Commit { objects: vec![], files: vec![file_commit(ino, &pieces)] }).unwrap();
        assert_eq!(extents(store, ino).len(), 3);
    });
}

#[test]
fn several_files_share_an_object() {
    on_every_store(|store| {
        let inos = ["a", "b", "c"].map(|name| file(store, ROOT, name));
        let files = (0..3).map(|i| file_commit(inos[i as usize], &[extent(0, 10, 1, 10 * i)])).collect();
        store.commit(&Commit { objects: vec![object(1, 30)], files }).unwrap();
        for (name, left) in [("a", 20), ("b", 10), ("c", 0)] {
            assert!(condemned(store).is_empty());
            let ino = ino_of(store, ROOT, name);
            store.unlink(ROOT, name.as_bytes(), at(3)).unwrap();
            store.reclaim(&[ino]).unwrap();
            assert_eq!(store.usage().unwrap().live_bytes, left);
        }
        assert_eq!(condemned(store), [1]);
    });
}

/// What one change erases is bounded, so that its records are: the journal does not cut them.
#[test]
fn what_has_many_extents_goes_in_several_changes() {
    const MANY: u64 = 40_000;
    let fragmented = |store: &dyn MetadataStore, name: &str, counter: u64| {
        let ino = file(store, ROOT, name);
        // Against their order in the object, so that none continues the one before.
        let of = |k: u64| extent(10 * k, 10, counter, 10 * (MANY - 1 - k) as u32);
        let extents: Vec<Extent> = (0..MANY).map(of).collect();
        let files = vec![file_commit(ino, &extents)];
        store.commit(&Commit { objects: vec![object(counter, 10 * MANY as u32)], files }).unwrap();
        ino
    };
    let changes = |store: &dyn MetadataStore, verb: &dyn Fn()| {
        let before = store.last_change();
        verb();
        let mut after = before;
        while after < store.last_change() {
            let change = store.outbox(after, 1).unwrap();
            assert!(change.records.len() < 1 << 20, "{} bytes", change.records.len());
            after = change.last;
        }
        store.last_change() - before
    };
    on_every_store(|store| {
        let ino = fragmented(store, "truncated", 1);
        let truncate = || assert_eq!(store.truncate(ino, 55, at(4)).unwrap().size, 55);
        assert_eq!(changes(store, &truncate), 3);
        assert_eq!(extents(store, ino).len(), 6);
        assert_eq!(store.inode(ino).unwrap().mtime, at(4));
        store.truncate(ino, 0, at(5)).unwrap();
        let ino = fragmented(store, "punched", 2);
        let copy = file(store, ROOT, "copy");
        assert_eq!(changes(store, &|| store.copy_extents((ino, 0), (copy, 5), 10 * MANY, at(4)).unwrap()), 3);
        assert_eq!(extents(store, copy).len() as u64, MANY);
        let over = || store.copy_extents((copy, 10 * MANY), (copy, 0), 5, at(4)).unwrap();
        assert_eq!(changes(store, &over), 1);
        let large = file(store, ROOT, "large");
        write(store, large, 0, 9, 10 * MANY as u32);
        assert_eq!(
            changes(store, &|| store.copy_extents((large, 0), (copy, 0), 10 * MANY, at(4)).unwrap()),
            3
        );
        assert_eq!(
            extents(store, copy).iter().map(|extent| u64::from(extent.length)).sum::<u64>(),
            10 * MANY + 5
        );
        store.truncate(copy, 0, at(5)).unwrap();
        store.truncate(large, 0, at(5)).unwrap();
        let punch = || assert_eq!(store.punch(ino, 15..10 * MANY - 5, at(4)).unwrap().size, 10 * MANY);
        assert_eq!(changes(store, &punch), 3);
        assert_eq!(extents(store, ino).iter().map(|extent| extent.length).collect::<Vec<_>>(), [10, 5, 5]);
        store.truncate(ino, 0, at(5)).unwrap();
        let orphans = [3, 4].map(|counter| {
            let ino = fragmented(store, &counter.to_string(), counter);
            store.unlink(ROOT, counter.to_string().as_bytes(), at(3)).unwrap();
            ino
        });
        // The third change takes the last of the first orphan, and some of the second.
        assert_eq!(changes(store, &|| store.reclaim(&orphans).unwrap()), 5);
        orphans.iter().for_each(|ino| assert_error!(store.inode(*ino), Error::NotFound));
        assert_eq!(store.usage().unwrap().live_bytes, 0);
        assert_eq!(condemned(store), [1, 2, 3, 4, 9]);
    });
}

#[test]
fn a_file_that_is_gone_is_skipped_and_its_objects_are_condemned() {
    on_every_store(|store| {
        let (stays, gone) = (file(store, ROOT, "a"), file(store, ROOT, "b"));
        store.unlink(ROOT, b"b", at(3)).unwrap();
        store.reclaim(&[gone]).unwrap();
        let files =
            vec![file_commit(gone, &[extent(0, 10, 1, 0)]), file_commit(stays, &[extent(0, 10, 2, 0)])];
        store.commit(&Commit { objects: vec![object(1, 10), object(2, 10)], files }).unwrap();
        assert_eq!(condemned(store), [1]);
        assert_eq!(extents(store, stays), [extent(0, 10, 2, 0)]);
        assert_error!(store.inode(gone), Error::NotFound);
    });
}

#[test]
fn an_object_without_a_living_extent_is_condemned_at_once() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        let covered = file_commit(ino, &[extent(0, 10, 1, 0), extent(0, 10, 2, 0)]);
        let objects = vec![object(1, 10), object(2, 10), object(3, 10)];
        store.commit(&Commit { objects, files: vec![covered] }).unwrap();
        assert_eq!(condemned(store), [1, 3]);
    });
}

#[test]
fn a_commit_that_cannot_be_is_refused_whole() {
    on_every_store(|store| {
        let (ino, sub) = (file(store, ROOT, "a"), directory(store, ROOT, "sub"));
        write(store, ino, 0, 1, 10);
        let before = store.inode(ino).unwrap();
        let good = || file_commit(ino, &[extent(0, 10, 2, 0)]);
        let bad = [
            file_commit(ino, &[extent(0, 10, 77, 0)]),
            file_commit(ino, &[extent(0, 11, 2, 0)]),
            file_commit(ino, &[extent(0, 10, 2, 1)]),
            file_commit(ino, &[extent(0, 10, 2, u32::MAX)]),
            file_commit(ino, &[extent(0, 0, 2, 0)]),
            file_commit(ino, &[extent(0, 11, 1, 0)]),
        ];
        for part in bad {
            let commit = Commit { objects: vec![object(2, 10)], files: vec![good(), part] };
            assert_error!(store.commit(&commit), Error::Invalid(_));
        }
        let far = file_commit(ino, &[extent(MAX_SIZE - 5, 10, 2, 0)]);
        let farther = file_commit(ino, &[extent(u64::MAX - 5, 10, 2, 0)]);
        let large = FileCommit { size: MAX_SIZE + 1, ..good() };
        for part in [far, farther, large] {
            let commit = Commit { objects: vec![object(2, 10)], files: vec![good(), part] };
            assert_error!(store.commit(&commit), Error::TooLarge);
        }
        let on_directory = file_commit(sub, &[extent(0, 10, 2, 0)]);
        let commit = Commit { objects: vec![object(2, 10)], files: vec![good(), on_directory] };
        assert_error!(store.commit(&commit), Error::IsDirectory);
        let other = Commit { objects: vec![object(1, 11)], files: vec![] };
        assert_error!(store.commit(&other), Error::Invalid(_));
        assert_eq!(store.inode(ino).unwrap(), before);
        assert_error!(store.object(id(2)), Error::NotFound);
    });
}

#[test]
fn a_commit_may_be_repeated() {
    on_every_store(|store| {
        let (ino, gone) = (file(store, ROOT, "a"), file(store, ROOT, "b"));
        store.unlink(ROOT, b"b", at(3)).unwrap();
        store.reclaim(&[gone]).unwrap();
        let files = vec![
            file_commit(ino, &[extent(0, 10, 1, 0), extent(5, 10, 2, 0)]),
            file_commit(gone, &[extent(0, 9, 3, 0)]),
        ];
        let commit = Commit { objects: vec![object(1, 10), object(2, 10), object(3, 10)], files };
        store.commit(&commit).unwrap();
        let once = (store.inode(ino).unwrap(), extents(store, ino), store.usage().unwrap());
        store.commit(&commit).unwrap();
        assert_eq!((store.inode(ino).unwrap(), extents(store, ino), store.usage().unwrap()), once);
        assert_eq!(condemned(store), [3]);
    });
}

#[test]
fn nothing_refers_again_to_a_condemned_object() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        store.commit(&Commit { objects: vec![object(1, 10)], files: vec![] }).unwrap();
        for objects in [vec![], vec![object(1, 10)]] {
            let again = Commit { objects, files: vec![file_commit(ino, &[extent(0, 10, 1, 0)])] };
            assert_error!(store.commit(&again), Error::Invalid(_));
        }
        assert_eq!(condemned(store), [1]);
    });
}

#[test]
fn truncate_cuts_and_a_longer_file_ends_in_a_hole() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        write(store, ino, 0, 1, 100);
        write(store, ino, 100, 2, 100);
        let cut = store.truncate(ino, 50, at(9)).unwrap();
        assert_eq!((cut.size, cut.allocated, cut.mtime, cut.ctime), (50, 50, at(9), at(9)));
        assert_eq!(extents(store, ino), [extent(0, 50, 1, 0)]);
        assert_eq!(condemned(store), [2]);
        let grown = store.truncate(ino, 500, at(10)).unwrap();
        assert_eq!((grown.size, grown.allocated, grown.mtime), (500, 50, at(10)));
        assert_eq!(extents(store, ino), [extent(0, 50, 1, 0)], "what was cut off does not come back");
        assert_eq!(store.truncate(ino, 500, at(11)).unwrap().mtime, at(11));
        store.truncate(ino, 0, at(12)).unwrap();
        assert_eq!(condemned(store), [1, 2]);
    });
}

#[test]
fn truncate_and_punch_tell_what_is_in_their_way() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        let link = store.create(ROOT, b"l", &new_link(b"t"), at(2)).unwrap().ino;
        assert_error!(store.truncate(ROOT, 0, at(3)), Error::IsDirectory);
        assert_error!(store.truncate(link, 0, at(3)), Error::Invalid(_));
        assert_error!(store.truncate(Ino(999_999), 0, at(3)), Error::NotFound);
        assert_error!(store.truncate(ino, MAX_SIZE + 1, at(3)), Error::TooLarge);
        assert_eq!(store.truncate(ino, MAX_SIZE, at(3)).unwrap().size, MAX_SIZE);
        assert_error!(store.punch(ROOT, 0..1, at(3)), Error::IsDirectory);
        #[allow(clippy::reversed_empty_ranges)]
        let backwards = 2..1;
        assert_error!(store.punch(ino, backwards, at(3)), Error::Invalid(_));
    });
}

#[test]
fn a_punched_range_is_a_hole_and_the_size_stays() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        write(store, ino, 0, 1, 100);
        let punched = store.punch(ino, 20..60, at(9)).unwrap();
        assert_eq!((punched.size, punched.allocated, punched.mtime, punched.ctime), (100, 60, at(9), at(9)));
        assert_eq!(extents(store, ino), [extent(0, 20, 1, 0), extent(60, 40, 1, 60)]);
        store.punch(ino, 30..30, at(10)).unwrap();
        store.punch(ino, 90..1000, at(10)).unwrap();
        assert_eq!(extents(store, ino), [extent(0, 20, 1, 0), extent(60, 30, 1, 60)]);
        assert_eq!(store.punch(ino, 0..u64::MAX, at(11)).unwrap().size, 100);
        assert_eq!(condemned(store), [1]);
    });
}

#[test]
fn copied_extents_share_the_objects_and_holes_come_along() {
    on_every_store(|store| {
        let (from, to) = (file(store, ROOT, "from"), file(store, ROOT, "to"));
        write(store, from, 0, 1, 100);
        write(store, from, 200, 2, 100);
        write(store, to, 0, 3, 1000);
        store.copy_extents((from, 50), (to, 400), 200, at(9)).unwrap();
        let expected =
            [extent(0, 400, 3, 0), extent(400, 50, 1, 50), extent(550, 50, 2, 0), extent(600, 400, 3, 600)];
        assert_eq!(extents(store, to), expected);
        let inode = store.inode(to).unwrap();
        assert_eq!((inode.size, inode.allocated, inode.mtime, inode.ctime), (1000, 900, at(9), at(9)));
        assert_eq!(store.inode(from).unwrap().mtime, at(2));
        store.truncate(from, 0, at(10)).unwrap();
        assert!(condemned(store).is_empty(), "the copy still needs them");
        store.truncate(to, 0, at(10)).unwrap();
        assert_eq!(condemned(store), [1, 2, 3]);
    });
}

#[test]
fn a_copy_grows_its_file_and_may_stay_inside_one() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        write(store, ino, 0, 1, 100);
        store.copy_extents((ino, 0), (ino, 100), 100, at(9)).unwrap();
        assert_eq!(extents(store, ino), [extent(0, 100, 1, 0), extent(100, 100, 1, 0)]);
        store.copy_extents((ino, 0), (ino, 500), 100, at(9)).unwrap();
        let inode = store.inode(ino).unwrap();
        assert_eq!((inode.size, inode.allocated), (600, 300));
        assert_eq!(store.usage().unwrap().live_bytes, 300, "each reference counts");
        // A copied hole at the end also counts as written.
        store.copy_extents((ino, 300), (ino, 700), 50, at(9)).unwrap();
        assert_eq!(store.inode(ino).unwrap().size, 750);
        assert_error!(store.copy_extents((ino, 0), (ino, 99), 100, at(9)), Error::Invalid(_));
        assert_error!(store.copy_extents((ino, 99), (ino, 0), 100, at(9)), Error::Invalid(_));
        assert_error!(store.copy_extents((ino, 0), (ino, MAX_SIZE), 1, at(9)), Error::TooLarge);
        assert_error!(store.copy_extents((ino, 0), (ROOT, 0), 1, at(9)), Error::IsDirectory);
        assert_error!(store.copy_extents((ino, 0), (Ino(999_999), 0), 1, at(9)), Error::NotFound);
    });
}

#[test]
fn copying_a_piece_over_itself_in_place_merges_again() {
    on_every_store(|store| {
        let (a, b) = (file(store, ROOT, "a"), file(store, ROOT, "b"));
        write(store, a, 0, 1, 100);
        for start in [50, 0, 25, 75] {
            store.copy_extents((a, start), (b, start), 25, at(9)).unwrap();
        }
        assert_eq!(extents(store, b), [extent(0, 100, 1, 0)]);
    });
}
