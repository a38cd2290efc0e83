//! Creating, linking, listing and removing names.

use avidfs::error::Error;
use avidfs::inode::{Ino, MAX_LINKS, ROOT, Time};
use avidfs::metadata::{Entry, Name, NewInode};

use crate::support::*;

#[test]
fn a_new_inode_is_found_under_its_name_with_what_it_was_given() {
    on_every_store(|store| {
        let new = NewInode {
            mode: libc::S_IFCHR | 0o4600,
            uid: 5,
            gid: u32::MAX,
            rdev: 0x0103,
            ..NewInode::default()
        };
        let made = store.create(ROOT, b"null", &new, at(9)).unwrap();
        assert_eq!((made.mode, made.uid, made.gid, made.rdev), (libc::S_IFCHR | 0o4600, 5, u32::MAX, 0x0103));
        assert_eq!((made.links, made.size, made.allocated), (1, 0, 0));
        assert_eq!([made.atime, made.mtime, made.ctime, made.btime], [at(9); 4]);
        assert_eq!(store.lookup(ROOT, b"null").unwrap(), made);
        assert_eq!(store.inode(made.ino).unwrap(), made);
    });
}

#[test]
fn names_are_any_bytes_but_slash_and_nul_up_to_255() {
    on_every_store(|store| {
        let longest = [b'x'; 255];
        for name in [&b"\xff\xfe"[..], b"a\nb", "ü".as_bytes(), b" ", b"...", &longest] {
            store.create(ROOT, name, &new_file(), at(2)).unwrap();
            store.lookup(ROOT, name).unwrap();
        }
        assert_error!(store.lookup(ROOT, b"\xff"), Error::NotFound);
        let too_long = [b'x'; 256];
        assert_error!(store.create(ROOT, &too_long, &new_file(), at(2)), Error::NameTooLong);
        assert_error!(store.lookup(ROOT, &too_long), Error::NameTooLong);
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert_error!(store.create(ROOT, name, &new_file(), at(2)), Error::Invalid(_));
        }
    });
}

#[test]
fn create_tells_what_is_in_its_way() {
    on_every_store(|store| {
        let existing = file(store, ROOT, "a");
        assert_error!(store.create(ROOT, b"a", &new_directory(), at(3)), Error::Exists);
        assert_error!(store.create(existing, b"b", &new_file(), at(3)), Error::NotDirectory);
        assert_error!(store.create(Ino(999_999), b"b", &new_file(), at(3)), Error::NotFound);
        assert_error!(store.create(Ino(u64::MAX), b"b", &new_file(), at(3)), Error::NotFound);
        let untyped = NewInode { mode: 0o644, ..new_file() };
        assert_error!(store.create(ROOT, b"b", &untyped, at(3)), Error::Invalid(_));
        assert_eq!(names(store, ROOT), ["a"]);
        assert_eq!(store.inode(ROOT).unwrap().mtime, at(2), "a refusal leaves no trace");
    });
}

#[test]
fn creating_counts_and_stamps_the_parent() {
    on_every_store(|store| {
        store.create(ROOT, b"file", &new_file(), at(5)).unwrap();
        let root = store.inode(ROOT).unwrap();
        assert_eq!((root.links, root.size), (2, 32));
        assert_eq!((root.atime, root.mtime, root.ctime), (at(1), at(5), at(5)));
        store.create(ROOT, b"directory", &new_directory(), at(6)).unwrap();
        let root = store.inode(ROOT).unwrap();
        assert_eq!((root.links, root.size, root.mtime, root.ctime), (3, 64, at(6), at(6)));
    });
}

#[test]
fn a_symbolic_link_keeps_its_target() {
    on_every_store(|store| {
        let link = store.create(ROOT, b"link", &new_link(b"../x\xff"), at(2)).unwrap();
        assert_eq!(link.size, 5);
        assert_eq!(store.target(link.ino).unwrap(), b"../x\xff");
        store.create(ROOT, b"longest", &new_link(&[b'y'; 4095]), at(2)).unwrap();
        assert_error!(store.create(ROOT, b"b", &new_link(&[b'y'; 4096]), at(2)), Error::NameTooLong);
        assert_error!(store.create(ROOT, b"b", &new_link(b""), at(2)), Error::Invalid(_));
        let without = NewInode { target: None, ..new_link(b"") };
        assert_error!(store.create(ROOT, b"b", &without, at(2)), Error::Invalid(_));
        let with = NewInode { target: Some(b"t".to_vec()), ..new_file() };
        assert_error!(store.create(ROOT, b"b", &with, at(2)), Error::Invalid(_));
        assert_error!(store.target(ROOT), Error::Invalid(_));
        assert_error!(store.target(Ino(999_999)), Error::NotFound);
    });
}

#[test]
fn times_from_1901_to_2446_survive_to_the_nanosecond() {
    on_every_store(|store| {
        for time in [
            Time { seconds: -2_147_483_648, nanos: 1 },
            Time { seconds: -2, nanos: 800_000_000 },
            Time { seconds: 15_032_385_535, nanos: 999_999_999 },
        ] {
            let name = time.seconds.to_string();
            let made = store.create(ROOT, name.as_bytes(), &new_file(), time).unwrap();
            assert_eq!(store.inode(made.ino).unwrap().btime, time);
        }
    });
}

#[test]
fn inode_numbers_are_never_reused() {
    on_every_store(|store| {
        let mut last = ROOT;
        for _ in 0..3 {
            let ino = file(store, ROOT, "a");
            assert!(ino > last);
            store.unlink(ROOT, b"a", at(3)).unwrap();
            store.reclaim(&[ino]).unwrap();
            last = ino;
        }
    });
}

#[test]
fn lookup_and_list_tell_a_missing_name_from_a_missing_directory() {
    on_every_store(|store| {
        let plain = file(store, ROOT, "plain");
        assert_error!(store.lookup(ROOT, b"b"), Error::NotFound);
        assert_error!(store.lookup(plain, b"b"), Error::NotDirectory);
        assert_error!(store.lookup(Ino(999_999), b"b"), Error::NotFound);
        assert_error!(store.list(plain, 0, 1), Error::NotDirectory);
        assert_error!(store.list(Ino(999_999), 0, 1), Error::NotFound);
        assert_error!(store.names(plain, 0, 1), Error::NotDirectory);
        assert_error!(store.names(Ino(999_999), 0, 1), Error::NotFound);
        assert_error!(store.parent(plain), Error::NotDirectory);
        assert_error!(store.inode(Ino(0)), Error::NotFound);
    });
}

#[test]
fn a_listing_goes_on_where_it_stopped_while_names_come_and_go() {
    on_every_store(|store| {
        for name in ["a", "b", "c", "d", "e"] {
            file(store, ROOT, name);
        }
        let first = store.list(ROOT, 0, 2).unwrap();
        let seen: Vec<_> = first.iter().map(|entry| entry.name.clone()).collect();
        store.unlink(ROOT, b"a", at(3)).unwrap();
        store.unlink(ROOT, b"b", at(3)).unwrap();
        store.unlink(ROOT, b"d", at(3)).unwrap();
        file(store, ROOT, "a");
        let rest = store.list(ROOT, first[1].cookie, usize::MAX).unwrap();
        let rest_names: Vec<_> = rest.iter().map(|entry| entry.name.clone()).collect();
        assert_eq!(seen, [b"a", b"b"]);
        assert_eq!(rest_names, [b"c", b"e", b"a"], "the new a is another entry, with a position of its own");
        assert!(store.list(ROOT, rest[2].cookie, 10).unwrap().is_empty());
        assert!(store.list(ROOT, u64::MAX, 10).unwrap().is_empty());
        assert!(store.list(ROOT, 0, 0).unwrap().is_empty());
    });
}

#[test]
fn a_listing_brings_each_inode_as_it_is() {
    on_every_store(|store| {
        let made = [file(store, ROOT, "a"), directory(store, ROOT, "b")];
        let listed = store.list(ROOT, 0, 10).unwrap();
        let found: Vec<_> = listed.into_iter().map(|entry| entry.inode).collect();
        assert_eq!(found, made.map(|ino| store.inode(ino).unwrap()));
    });
}

#[test]
fn names_alone_are_listed_as_entries_are() {
    on_every_store(|store| {
        for name in ["b", "a", "d"] {
            file(store, ROOT, name);
        }
        directory(store, ROOT, "c");
        for (after, limit) in [(0, 10), (0, 2), (4, 10), (u64::MAX, 10), (0, 0)] {
            let entries = store.list(ROOT, after, limit).unwrap().into_iter();
            let expected: Vec<_> = entries
                .map(|Entry { cookie, name, inode }| Name { cookie, name, ino: inode.ino, mode: inode.mode })
                .collect();
            assert_eq!(store.names(ROOT, after, limit).unwrap(), expected);
        }
    });
}

#[test]
fn a_hard_link_is_the_same_inode_until_its_last_name_is_gone() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        let sub = directory(store, ROOT, "sub");
        let linked = store.link(ino, sub, b"b", at(7)).unwrap();
        assert_eq!((linked.ino, linked.links, linked.ctime, linked.mtime), (ino, 2, at(7), at(2)));
        assert_eq!(store.inode(sub).unwrap().mtime, at(7));
        let removed = store.unlink(ROOT, b"a", at(8)).unwrap();
        assert!(!removed.orphaned);
        assert_eq!((removed.inode.links, removed.inode.ctime), (1, at(8)));
        assert_eq!(ino_of(store, sub, "b"), ino);
        assert!(store.unlink(sub, b"b", at(9)).unwrap().orphaned);
    });
}

#[test]
fn link_tells_what_is_in_its_way() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        let sub = directory(store, ROOT, "sub");
        assert_error!(store.link(sub, ROOT, b"b", at(3)), Error::NotPermitted);
        assert_error!(store.link(ino, ROOT, b"sub", at(3)), Error::Exists);
        assert_error!(store.link(ino, ino, b"b", at(3)), Error::NotDirectory);
        assert_error!(store.link(Ino(999_999), ROOT, b"b", at(3)), Error::NotFound);
        assert_error!(store.link(ino, Ino(999_999), b"b", at(3)), Error::NotFound);
        assert_error!(store.link(ino, ROOT, &[b'x'; 256], at(3)), Error::NameTooLong);
        store.unlink(ROOT, b"a", at(3)).unwrap();
        assert_error!(store.link(ino, ROOT, b"b", at(3)), Error::NotFound);
        assert_eq!(names(store, ROOT), ["sub"]);
    });
}

#[test]
fn a_file_has_at_most_65000_links_and_a_directory_any_number_of_others() {
    let store = avidfs::metadata::sqlite::SqliteStore::open_in_memory().unwrap();
    format(&store);
    use avidfs::metadata::MetadataStore;
    let ino = file(&store, ROOT, "a");
    for count in 1..MAX_LINKS {
        store.link(ino, ROOT, count.to_string().as_bytes(), at(3)).unwrap();
    }
    assert_error!(store.link(ino, ROOT, b"one more", at(3)), Error::TooManyLinks);
    assert_eq!(store.inode(ino).unwrap().links, MAX_LINKS);
    // A directory has as many others in it as are made.
    let parent = directory(&store, ROOT, "parent");
    for count in 2..MAX_LINKS + 2 {
        directory(&store, parent, &count.to_string());
    }
    assert_eq!(store.inode(parent).unwrap().links, MAX_LINKS + 2);
    directory(&store, ROOT, "b");
    store.rename((ROOT, b"b"), (parent, b"moved"), avidfs::metadata::RenameMode::Replace, at(4)).unwrap();
    assert_eq!(store.inode(parent).unwrap().links, MAX_LINKS + 3);
}

#[test]
fn unlink_removes_no_directory_and_rmdir_nothing_else() {
    on_every_store(|store| {
        file(store, ROOT, "file");
        let sub = directory(store, ROOT, "sub");
        file(store, sub, "inside");
        assert_error!(store.unlink(ROOT, b"sub", at(3)), Error::IsDirectory);
        assert_error!(store.rmdir(ROOT, b"file", at(3)), Error::NotDirectory);
        assert_error!(store.rmdir(ROOT, b"sub", at(3)), Error::NotEmpty);
        assert_error!(store.unlink(ROOT, b"none", at(3)), Error::NotFound);
        assert_error!(store.rmdir(ROOT, b"none", at(3)), Error::NotFound);
        assert_error!(store.unlink(Ino(999_999), b"none", at(3)), Error::NotFound);
        store.unlink(sub, b"inside", at(3)).unwrap();
        let removed = store.rmdir(ROOT, b"sub", at(4)).unwrap();
        assert!(removed.orphaned);
        assert_eq!((removed.inode.links, removed.inode.ctime), (0, at(4)));
        let root = store.inode(ROOT).unwrap();
        assert_eq!((root.links, root.size, root.mtime, root.ctime), (2, 32, at(4), at(4)));
    });
}

#[test]
fn nothing_is_made_in_a_removed_directory() {
    on_every_store(|store| {
        let sub = directory(store, ROOT, "sub");
        let ino = file(store, ROOT, "a");
        store.rmdir(ROOT, b"sub", at(3)).unwrap();
        assert_error!(store.create(sub, b"b", &new_file(), at(4)), Error::NotFound);
        assert_error!(store.link(ino, sub, b"b", at(4)), Error::NotFound);
        assert_error!(store.lookup(sub, b"b"), Error::NotFound);
        assert!(store.list(sub, 0, 10).unwrap().is_empty());
        assert_eq!(store.parent(sub).unwrap(), ROOT, "where it was last");
    });
}

#[test]
fn an_orphan_keeps_everything_until_it_is_reclaimed() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        write(store, ino, 0, 1, 100);
        store.set_xattr(ino, b"user.x", b"1", false, false, at(2)).unwrap();
        let removed = store.unlink(ROOT, b"a", at(5)).unwrap();
        assert!(removed.orphaned);
        assert_eq!(store.orphans().unwrap(), [ino]);
        assert_eq!(store.inode(ino).unwrap(), removed.inode);
        assert_eq!(extents(store, ino), [extent(0, 100, 1, 0)]);
        assert_eq!(store.xattr(ino, b"user.x").unwrap(), b"1");
        write(store, ino, 100, 2, 50);
        assert_eq!(store.inode(ino).unwrap().size, 150, "an open file without a name can still be written");
        store.reclaim(&[ino]).unwrap();
        assert_error!(store.inode(ino), Error::NotFound);
        assert_error!(store.extents(ino, 0..1), Error::NotFound);
        assert_error!(store.xattrs(ino), Error::NotFound);
        assert!(store.orphans().unwrap().is_empty());
        assert_eq!(condemned(store), [1, 2]);
    });
}

#[test]
fn reclaim_leaves_alone_what_has_a_name_or_is_gone() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        store.reclaim(&[ino]).unwrap();
        store.reclaim(&[Ino(999_999)]).unwrap();
        store.inode(ino).unwrap();
        let link = store.create(ROOT, b"l", &new_link(b"t"), at(2)).unwrap().ino;
        store.unlink(ROOT, b"l", at(2)).unwrap();
        assert_eq!(store.target(link).unwrap(), b"t");
        store.reclaim(&[link]).unwrap();
        store.reclaim(&[link]).unwrap();
        assert_error!(store.target(link), Error::NotFound);
    });
}
