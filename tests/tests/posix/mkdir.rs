//! mkdir(2).

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::posix::{NOBODY, everywhere, refused, with_umask};

#[test]
fn mkdir() {
    everywhere(cases!(
        a_new_directory_has_mode_owner_and_two_links,
        a_directory_counts_those_in_it,
        a_set_group_id_directory_hands_on_its_group,
        what_mkdir_refuses,
    ));
}

fn make(path: &Path, mode: u32) -> std::io::Result<()> {
    fs::DirBuilder::new().mode(mode).create(path)
}

fn a_new_directory_has_mode_owner_and_two_links(at: &Path) {
    with_umask(0o027, || make(&at.join("dir"), 0o1777)).unwrap();
    let dir = fs::metadata(at.join("dir")).unwrap();
    assert_eq!((dir.mode() & 0o7777, dir.nlink(), dir.uid()), (0o1750, 2, 0));
    fs::set_permissions(at, fs::Permissions::from_mode(0o777)).unwrap();
    NOBODY.does(|| make(&at.join("theirs"), 0o700)).unwrap();
    let theirs = fs::metadata(at.join("theirs")).unwrap();
    assert_eq!((theirs.uid(), theirs.gid()), (NOBODY.uid, NOBODY.gid));
}

fn a_directory_counts_those_in_it(at: &Path) {
    for count in 0..5 {
        assert_eq!(fs::metadata(at).unwrap().nlink(), 2 + count);
        make(&at.join(format!("{count}")), 0o755).unwrap();
        fs::write(at.join(format!("file{count}")), "").unwrap();
    }
    fs::remove_dir(at.join("0")).unwrap();
    assert_eq!(fs::metadata(at).unwrap().nlink(), 6);
}

fn a_set_group_id_directory_hands_on_its_group(at: &Path) {
    make(&at.join("dir"), 0o755).unwrap();
    chown(at.join("dir"), None, Some(1)).unwrap();
    fs::set_permissions(at.join("dir"), fs::Permissions::from_mode(0o2777)).unwrap();
    let shape = |name: &str| {
        let found = fs::symlink_metadata(at.join("dir").join(name)).unwrap();
        (found.gid(), found.mode() & 0o7777)
    };
    NOBODY.does(|| {
        make(&at.join("dir/sub"), 0o755).unwrap();
        fs::write(at.join("dir/file"), "").unwrap();
        symlink("x", at.join("dir/link")).unwrap();
    });
    assert_eq!((shape("sub"), shape("file")), ((1, 0o2755), (1, 0o644)));
    assert_eq!(shape("link").0, 1);
}

fn what_mkdir_refuses(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    symlink("nowhere", at.join("dangling")).unwrap();
    refused(libc::EEXIST, make(at, 0o755));
    refused(libc::EEXIST, make(&at.join("file"), 0o755));
    refused(libc::EEXIST, make(&at.join("dangling"), 0o755));
    refused(libc::ENOENT, make(&at.join("none/dir"), 0o755));
    refused(libc::ENOTDIR, make(&at.join("file/dir"), 0o755));
    refused(libc::ENOENT, make(&at.join("dir/."), 0o755));
    refused(libc::EACCES, NOBODY.does(|| make(&at.join("dir"), 0o755)));
}
