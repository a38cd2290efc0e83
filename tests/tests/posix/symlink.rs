//! symlink(2) and readlink(2).

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::files::open;
use avidfs_tests::posix::{everywhere, refused};

#[test]
fn symlinks() {
    everywhere(cases!(
        a_target_is_kept_as_it_was_given,
        a_link_is_followed_where_its_target_exists,
        links_that_lead_nowhere_end,
        what_symlink_refuses,
    ));
}

fn a_target_is_kept_as_it_was_given(at: &Path) {
    for (i, target) in ["x", "../..//./x/", "/absolute/path", &"t".repeat(4095)].iter().enumerate() {
        let link = at.join(format!("{i}"));
        symlink(target, &link).unwrap();
        assert_eq!(fs::read_link(&link).unwrap().as_os_str(), *target);
        let metadata = fs::symlink_metadata(&link).unwrap();
        assert_eq!((metadata.len(), metadata.mode()), (target.len() as u64, libc::S_IFLNK | 0o777));
    }
}

fn a_link_is_followed_where_its_target_exists(at: &Path) {
    fs::create_dir(at.join("dir")).unwrap();
    symlink("dir", at.join("link")).unwrap();
    fs::write(at.join("link/file"), "x").unwrap();
    assert_eq!(fs::read(at.join("dir/file")).unwrap(), b"x");
    symlink("link/made", at.join("other")).unwrap();
    fs::write(at.join("other"), "through two").unwrap();
    assert_eq!(fs::read(at.join("dir/made")).unwrap(), b"through two");
    assert_eq!(fs::metadata(at.join("link")).unwrap().ino(), fs::metadata(at.join("dir")).unwrap().ino());
    refused(libc::ENOTDIR, fs::remove_dir(at.join("link")));
}

fn links_that_lead_nowhere_end(at: &Path) {
    symlink("loop", at.join("loop")).unwrap();
    refused(libc::ELOOP, fs::read(at.join("loop")));
    for i in 0..42 {
        symlink(format!("{}", i + 1), at.join(format!("{i}"))).unwrap();
    }
    fs::write(at.join("42"), "x").unwrap();
    refused(libc::ELOOP, fs::read(at.join("0")));
    assert_eq!(fs::read(at.join("2")).unwrap(), b"x", "forty links are followed");
    refused(libc::ELOOP, open(&at.join("2"), libc::O_RDONLY | libc::O_NOFOLLOW, 0));
}

fn what_symlink_refuses(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    refused(libc::EEXIST, symlink("x", at.join("file")));
    refused(libc::ENOENT, symlink("", at.join("empty")));
    refused(libc::ENOENT, symlink("x", at.join("none/link")));
    refused(libc::ENOTDIR, symlink("x", at.join("file/link")));
    refused(libc::ENAMETOOLONG, symlink("t".repeat(4096), at.join("long")));
    refused(libc::EINVAL, fs::read_link(at.join("file")));
}
