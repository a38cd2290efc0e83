//! The rename matrix.

use avidfs::error::Error;
use avidfs::inode::{Ino, ROOT};
use avidfs::metadata::RenameMode::{Exchange, NoReplace, Replace};
use avidfs::metadata::{MetadataStore, RenameMode};

use crate::support::*;

fn rename(
    store: &dyn MetadataStore,
    from: (Ino, &str),
    to: (Ino, &str),
    mode: RenameMode,
) -> avidfs::error::Result<Option<avidfs::metadata::Removed>> {
    store.rename((from.0, from.1.as_bytes()), (to.0, to.1.as_bytes()), mode, at(50))
}

#[test]
fn a_file_moves_and_all_three_inodes_are_stamped() {
    on_every_store(|store| {
        let (a, b) = (directory(store, ROOT, "a"), directory(store, ROOT, "b"));
        let ino = file(store, a, "f");
        for mode in [Replace, NoReplace] {
            assert_eq!(rename(store, (a, "f"), (b, "g"), mode).unwrap(), None);
            assert_error!(store.lookup(a, b"f"), Error::NotFound);
            let moved = store.lookup(b, b"g").unwrap();
            assert_eq!((moved.ino, moved.ctime, moved.mtime), (ino, at(50), at(2)));
            for parent in [a, b] {
                let parent = store.inode(parent).unwrap();
                assert_eq!((parent.mtime, parent.ctime), (at(50), at(50)));
            }
            rename(store, (b, "g"), (a, "f"), mode).unwrap();
        }
    });
}

#[test]
fn a_directory_moves_with_its_link_to_the_parent() {
    on_every_store(|store| {
        let (a, b) = (directory(store, ROOT, "a"), directory(store, ROOT, "b"));
        let sub = directory(store, a, "sub");
        rename(store, (a, "sub"), (b, "sub2"), Replace).unwrap();
        assert_eq!(store.parent(sub).unwrap(), b);
        assert_eq!((store.inode(a).unwrap().links, store.inode(b).unwrap().links), (2, 3));
    });
}

#[test]
fn a_name_that_changes_inside_its_directory_keeps_its_position() {
    on_every_store(|store| {
        for name in ["a", "b", "c"] {
            file(store, ROOT, name);
        }
        let position = store.list(ROOT, 0, 10).unwrap()[1].cookie;
        rename(store, (ROOT, "b"), (ROOT, "z"), Replace).unwrap();
        assert_eq!(names(store, ROOT), ["a", "z", "c"]);
        assert_eq!(store.list(ROOT, 0, 10).unwrap()[1].cookie, position);
    });
}

#[test]
fn a_name_that_comes_from_elsewhere_gets_a_position_of_its_own() {
    on_every_store(|store| {
        let a = directory(store, ROOT, "a");
        file(store, a, "f");
        let old = store.list(a, 0, 10).unwrap()[0].cookie;
        rename(store, (a, "f"), (ROOT, "f"), Replace).unwrap();
        rename(store, (ROOT, "f"), (a, "f"), Replace).unwrap();
        assert!(store.list(a, 0, 10).unwrap()[0].cookie > old);
    });
}

#[test]
fn rename_replaces_a_file_and_returns_it() {
    on_every_store(|store| {
        let a = directory(store, ROOT, "a");
        let (old, new) = (file(store, ROOT, "old"), file(store, a, "new"));
        write(store, old, 0, 1, 10);
        let position = store.list(ROOT, 0, 10).unwrap()[1].cookie;
        let removed = rename(store, (a, "new"), (ROOT, "old"), Replace).unwrap().unwrap();
        assert!(removed.orphaned);
        assert_eq!((removed.inode.ino, removed.inode.links, removed.inode.ctime), (old, 0, at(50)));
        assert_eq!(ino_of(store, ROOT, "old"), new);
        assert_eq!(store.list(ROOT, 0, 10).unwrap()[1].cookie, position, "the name stays where it was");
        assert_eq!(store.orphans().unwrap(), [old]);
        assert!(condemned(store).is_empty());
    });
}

#[test]
fn a_replaced_inode_with_another_name_is_no_orphan() {
    on_every_store(|store| {
        let (old, _) = (file(store, ROOT, "old"), file(store, ROOT, "new"));
        store.link(old, ROOT, b"other", at(3)).unwrap();
        let removed = rename(store, (ROOT, "new"), (ROOT, "old"), Replace).unwrap().unwrap();
        assert!(!removed.orphaned);
        assert_eq!((removed.inode.ino, removed.inode.links), (old, 1));
    });
}

#[test]
fn rename_replaces_an_empty_directory() {
    on_every_store(|store| {
        let (a, b) = (directory(store, ROOT, "a"), directory(store, ROOT, "b"));
        let (moved, replaced) = (directory(store, a, "x"), directory(store, b, "y"));
        let removed = rename(store, (a, "x"), (b, "y"), Replace).unwrap().unwrap();
        assert_eq!((removed.inode.ino, removed.inode.links, removed.orphaned), (replaced, 0, true));
        assert_eq!(store.parent(moved).unwrap(), b);
        assert_eq!((store.inode(a).unwrap().links, store.inode(b).unwrap().links), (2, 3));
        assert_error!(store.create(replaced, b"f", &new_file(), at(51)), Error::NotFound);
        // Also beside it in the same directory.
        let beside = directory(store, b, "z");
        rename(store, (b, "z"), (b, "y"), Replace).unwrap().unwrap();
        assert_eq!((ino_of(store, b, "y"), store.inode(b).unwrap().links), (beside, 3));
    });
}

#[test]
fn rename_tells_what_is_in_its_way() {
    on_every_store(|store| {
        let full = directory(store, ROOT, "full");
        file(store, full, "inside");
        directory(store, ROOT, "empty");
        let plain = file(store, ROOT, "file");
        assert_error!(rename(store, (ROOT, "empty"), (ROOT, "full"), Replace), Error::NotEmpty);
        assert_error!(rename(store, (ROOT, "file"), (ROOT, "empty"), Replace), Error::IsDirectory);
        assert_error!(rename(store, (ROOT, "empty"), (ROOT, "file"), Replace), Error::NotDirectory);
        assert_error!(rename(store, (ROOT, "file"), (ROOT, "empty"), NoReplace), Error::Exists);
        assert_error!(rename(store, (ROOT, "file"), (ROOT, "file"), NoReplace), Error::Exists);
        assert_error!(rename(store, (ROOT, "file"), (ROOT, "none"), Exchange), Error::NotFound);
        assert_error!(rename(store, (ROOT, "none"), (ROOT, "file"), Replace), Error::NotFound);
        assert_error!(rename(store, (plain, "x"), (ROOT, "y"), Replace), Error::NotDirectory);
        assert_error!(rename(store, (ROOT, "file"), (plain, "y"), Replace), Error::NotDirectory);
        assert_error!(rename(store, (ROOT, "file"), (Ino(999_999), "y"), Replace), Error::NotFound);
        let long = "x".repeat(256);
        assert_error!(rename(store, (ROOT, "file"), (ROOT, &long), Replace), Error::NameTooLong);
        assert_error!(rename(store, (ROOT, "file"), (ROOT, ".."), Replace), Error::Invalid(_));
        assert_eq!(names(store, ROOT), ["full", "empty", "file"]);
        assert_eq!(store.inode(ROOT).unwrap().mtime, at(2), "a refusal leaves no trace");
    });
}

#[test]
fn a_directory_does_not_move_below_itself() {
    on_every_store(|store| {
        let a = directory(store, ROOT, "a");
        let b = directory(store, a, "b");
        let c = directory(store, b, "c");
        for below in [a, b, c] {
            assert_error!(rename(store, (ROOT, "a"), (below, "x"), Replace), Error::Invalid(_));
        }
        // Neither way of an exchange.
        assert_error!(rename(store, (ROOT, "a"), (b, "c"), Exchange), Error::Invalid(_));
        assert_error!(rename(store, (b, "c"), (ROOT, "a"), Exchange), Error::Invalid(_));
        assert_error!(rename(store, (b, "c"), (ROOT, "a"), Replace), Error::NotEmpty);
        let plain = file(store, b, "f");
        assert_error!(rename(store, (b, "f"), (ROOT, "a"), Exchange), Error::Invalid(_));
        assert_eq!(ino_of(store, b, "f"), plain);
    });
}

#[test]
fn nothing_moves_into_a_removed_directory() {
    on_every_store(|store| {
        let gone = directory(store, ROOT, "gone");
        file(store, ROOT, "f");
        store.rmdir(ROOT, b"gone", at(3)).unwrap();
        assert_error!(rename(store, (ROOT, "f"), (gone, "f"), Replace), Error::NotFound);
    });
}

#[test]
fn two_names_of_one_inode_both_stay() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        store.link(ino, ROOT, b"b", at(3)).unwrap();
        let before = store.inode(ROOT).unwrap();
        for mode in [Replace, Exchange] {
            assert_eq!(rename(store, (ROOT, "a"), (ROOT, "b"), mode).unwrap(), None);
            assert_eq!(rename(store, (ROOT, "a"), (ROOT, "a"), mode).unwrap(), None);
        }
        assert_eq!(names(store, ROOT), ["a", "b"]);
        assert_eq!(store.inode(ROOT).unwrap(), before);
        assert_eq!(store.inode(ino).unwrap().ctime, at(3));
    });
}

#[test]
fn exchange_swaps_also_a_file_and_a_directory() {
    on_every_store(|store| {
        let (a, b) = (directory(store, ROOT, "a"), directory(store, ROOT, "b"));
        let (plain, full) = (file(store, a, "x"), directory(store, b, "y"));
        file(store, full, "inside");
        let positions = [a, b].map(|parent| store.list(parent, 0, 1).unwrap()[0].cookie);
        assert_eq!(rename(store, (a, "x"), (b, "y"), Exchange).unwrap(), None);
        assert_eq!((ino_of(store, a, "x"), ino_of(store, b, "y")), (full, plain));
        assert_eq!(store.parent(full).unwrap(), a);
        assert_eq!((store.inode(a).unwrap().links, store.inode(b).unwrap().links), (3, 2));
        for ino in [plain, full] {
            assert_eq!(store.inode(ino).unwrap().ctime, at(50));
        }
        for parent in [a, b] {
            assert_eq!(store.inode(parent).unwrap().mtime, at(50));
        }
        assert_eq!([a, b].map(|parent| store.list(parent, 0, 1).unwrap()[0].cookie), positions);
        assert_eq!(ino_of(store, full, "inside"), store.list(full, 0, 1).unwrap()[0].inode.ino);
    });
}

#[test]
fn exchange_of_two_directories_swaps_their_parents() {
    on_every_store(|store| {
        let (a, b) = (directory(store, ROOT, "a"), directory(store, ROOT, "b"));
        let (x, y) = (directory(store, a, "x"), directory(store, b, "y"));
        rename(store, (a, "x"), (b, "y"), Exchange).unwrap();
        assert_eq!((store.parent(x).unwrap(), store.parent(y).unwrap()), (b, a));
        assert_eq!((store.inode(a).unwrap().links, store.inode(b).unwrap().links), (3, 3));
        // And inside one directory.
        rename(store, (ROOT, "a"), (ROOT, "b"), Exchange).unwrap();
        assert_eq!((ino_of(store, ROOT, "a"), ino_of(store, ROOT, "b")), (b, a));
    });
}
