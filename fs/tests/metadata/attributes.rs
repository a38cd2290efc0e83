//! Attributes, plain and extended.

use avidfs::error::Error;
use avidfs::inode::{Ino, ROOT};
use avidfs::metadata::AttributeChange;

use crate::support::*;

#[test]
fn only_what_is_named_changes() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        let before = store.inode(ino).unwrap();
        assert_eq!(store.set_attributes(ino, &AttributeChange::default()).unwrap(), before);
        let change = AttributeChange { permissions: Some(0o4711), mtime: Some(at(-5)), ..Default::default() };
        let after = store.set_attributes(ino, &change).unwrap();
        assert_eq!(after, avidfs::inode::Inode { mode: libc::S_IFREG | 0o4711, mtime: at(-5), ..before });
        assert_eq!(store.inode(ino).unwrap(), after);
        let change = AttributeChange {
            uid: Some(u32::MAX - 1),
            gid: Some(7),
            atime: Some(at(60)),
            ctime: Some(at(61)),
            ..Default::default()
        };
        let last = store.set_attributes(ino, &change).unwrap();
        let expected =
            avidfs::inode::Inode { uid: u32::MAX - 1, gid: 7, atime: at(60), ctime: at(61), ..after };
        assert_eq!(last, expected);
    });
}

#[test]
fn permissions_do_not_change_the_type() {
    on_every_store(|store| {
        let change = AttributeChange { permissions: Some(libc::S_IFREG | 0o7777), ..Default::default() };
        assert_eq!(store.set_attributes(ROOT, &change).unwrap().mode, libc::S_IFDIR | 0o7777);
        assert_error!(store.set_attributes(Ino(999_999), &change), Error::NotFound);
    });
}

#[test]
fn extended_attributes_come_back_as_they_were_set() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        let largest = vec![9; 65_536];
        for (name, value) in [(&b"user.b"[..], &b""[..]), (b"user.a", b"\0\xff"), (&[b'n'; 255], &largest)] {
            store.set_xattr(ino, name, value, false, false, at(5)).unwrap();
            assert_eq!(store.xattr(ino, name).unwrap(), value);
        }
        store.set_xattr(ino, b"user.a", b"new", false, false, at(6)).unwrap();
        assert_eq!(store.xattr(ino, b"user.a").unwrap(), b"new");
        let mut names = store.xattrs(ino).unwrap();
        names.sort();
        assert_eq!(names, [&[b'n'; 255][..], b"user.a", b"user.b"]);
        let inode = store.inode(ino).unwrap();
        assert_eq!((inode.ctime, inode.mtime), (at(6), at(2)));
    });
}

#[test]
fn create_and_replace_are_kept_apart() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        assert_error!(store.set_xattr(ino, b"user.x", b"1", false, true, at(5)), Error::NoAttribute);
        store.set_xattr(ino, b"user.x", b"1", true, false, at(5)).unwrap();
        assert_error!(store.set_xattr(ino, b"user.x", b"2", true, false, at(6)), Error::Exists);
        store.set_xattr(ino, b"user.x", b"3", false, true, at(7)).unwrap();
        assert_eq!(store.xattr(ino, b"user.x").unwrap(), b"3");
        assert_eq!(store.inode(ino).unwrap().ctime, at(7));
    });
}

#[test]
fn what_is_not_there_or_does_not_fit_is_named() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        assert_error!(store.xattr(ino, b"user.x"), Error::NoAttribute);
        assert_error!(store.remove_xattr(ino, b"user.x", at(5)), Error::NoAttribute);
        assert_error!(store.xattr(Ino(999_999), b"user.x"), Error::NotFound);
        assert_error!(store.xattrs(Ino(999_999)), Error::NotFound);
        assert_error!(store.set_xattr(Ino(999_999), b"user.x", b"", false, false, at(5)), Error::NotFound);
        assert_error!(store.remove_xattr(Ino(999_999), b"user.x", at(5)), Error::NotFound);
        assert_error!(store.set_xattr(ino, &[b'n'; 256], b"", false, false, at(5)), Error::Range);
        assert_error!(store.set_xattr(ino, b"", b"", false, false, at(5)), Error::Range);
        assert_error!(store.set_xattr(ino, b"user.x", &[0; 65_537], false, false, at(5)), Error::Range);
        assert!(store.xattrs(ino).unwrap().is_empty());
        assert_eq!(store.inode(ino).unwrap().ctime, at(2));
    });
}

#[test]
fn a_removed_extended_attribute_is_gone() {
    on_every_store(|store| {
        let ino = file(store, ROOT, "a");
        store.set_xattr(ino, b"user.x", b"1", false, false, at(5)).unwrap();
        store.remove_xattr(ino, b"user.x", at(8)).unwrap();
        assert_error!(store.xattr(ino, b"user.x"), Error::NoAttribute);
        assert_eq!(store.inode(ino).unwrap().ctime, at(8));
    });
}
