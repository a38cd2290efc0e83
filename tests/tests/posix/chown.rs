//! chown(2).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown as set, lchown, symlink};
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::posix::{BIN, NOBODY, everywhere, refused, tick};

#[test]
fn chown() {
    everywhere(cases!(
        every_owner_is_kept,
        chown_moves_ctime_alone,
        an_owner_gives_to_his_groups_and_nobody_gives_away,
        a_link_has_an_owner_of_its_own,
        what_chown_refuses,
    ));
}

fn owner(path: &Path) -> (u32, u32) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.uid(), found.gid())
}

fn every_owner_is_kept(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    let path = at.join("file");
    set(&path, Some(4_000_000_000), Some(3_999_999_999)).unwrap();
    assert_eq!(owner(&path), (4_000_000_000, 3_999_999_999));
    set(&path, None, Some(5)).unwrap();
    set(&path, Some(6), None).unwrap();
    set(&path, None, None).unwrap();
    assert_eq!(owner(&path), (6, 5));
}

fn chown_moves_ctime_alone(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    let before = fs::metadata(at.join("file")).unwrap();
    tick();
    set(at.join("file"), Some(1), None).unwrap();
    let after = fs::metadata(at.join("file")).unwrap();
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
    assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
}

fn an_owner_gives_to_his_groups_and_nobody_gives_away(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    set(&path, Some(BIN.uid), Some(BIN.gid)).unwrap();
    BIN.does(|| {
        set(&path, None, Some(BIN.groups[0])).unwrap();
        set(&path, Some(BIN.uid), Some(BIN.gid)).unwrap();
        refused(libc::EPERM, set(&path, Some(NOBODY.uid), None));
        refused(libc::EPERM, set(&path, None, Some(NOBODY.gid)));
    });
    refused(libc::EPERM, NOBODY.does(|| set(&path, Some(NOBODY.uid), None)));
    refused(libc::EPERM, NOBODY.does(|| set(&path, None, Some(NOBODY.gid))));
}

fn a_link_has_an_owner_of_its_own(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    symlink("file", at.join("link")).unwrap();
    lchown(at.join("link"), Some(1), Some(2)).unwrap();
    set(at.join("link"), Some(3), Some(4)).unwrap();
    assert_eq!((owner(&at.join("link")), owner(&at.join("file"))), ((1, 2), (3, 4)));
}

fn what_chown_refuses(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    refused(libc::ENOENT, set(at.join("none"), Some(1), None));
    refused(libc::ENOTDIR, set(at.join("file/x"), Some(1), None));
}
