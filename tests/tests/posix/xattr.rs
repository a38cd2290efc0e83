//! Extended attributes: setxattr(2), getxattr(2), listxattr(2), removexattr(2).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::files::{remove_xattr, set_xattr, xattr, xattr_size, xattrs};
use avidfs_tests::posix::{NOBODY, everywhere, on_the_mount, refused, tick};

#[test]
fn attributes() {
    everywhere(cases!(
        values_are_kept_listed_and_removed,
        create_and_replace_are_minded,
        sizes_are_told_before_and_after,
        setting_one_moves_ctime_alone,
        attributes_belong_to_the_inode,
        users_attributes_follow_the_permissions_and_trusted_ones_are_roots,
        user_attributes_are_for_files_and_directories,
        what_is_refused,
    ));
}

#[test]
fn large_attributes() {
    // ext4 keeps them within a block, 4 KiB; the kernel's limit is 64 KiB.
    on_the_mount(cases!(a_value_may_have_what_the_kernel_passes_on));
}

fn values_are_kept_listed_and_removed(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "").unwrap();
    assert_eq!(xattrs(&path).unwrap(), [""; 0]);
    set_xattr(&path, "user.one", b"1\0\xff", 0).unwrap();
    set_xattr(&path, "user.empty", b"", 0).unwrap();
    set_xattr(&path, "trusted.two", &[2; 1000], 0).unwrap();
    set_xattr(&path, "security.three", b"3", 0).unwrap();
    set_xattr(&path, "user.one", b"one", 0).unwrap();
    assert_eq!(xattr(&path, "user.one").unwrap(), b"one");
    assert_eq!(xattr(&path, "user.empty").unwrap(), b"");
    assert_eq!(xattrs(&path).unwrap(), ["security.three", "trusted.two", "user.empty", "user.one"]);
    remove_xattr(&path, "user.empty").unwrap();
    refused(libc::ENODATA, remove_xattr(&path, "user.empty"));
    refused(libc::ENODATA, xattr(&path, "user.empty"));
    assert_eq!(xattrs(&path).unwrap().len(), 3);
}

fn create_and_replace_are_minded(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    let set = |flags| set_xattr(&at.join("file"), "user.x", b"x", flags);
    refused(libc::ENODATA, set(libc::XATTR_REPLACE));
    set(libc::XATTR_CREATE).unwrap();
    refused(libc::EEXIST, set(libc::XATTR_CREATE));
    set(libc::XATTR_REPLACE).unwrap();
}

fn sizes_are_told_before_and_after(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "").unwrap();
    set_xattr(&path, "user.x", &[1; 100], 0).unwrap();
    assert_eq!(xattr_size(&path, "user.x", 0).unwrap(), 100);
    assert_eq!(xattr_size(&path, "user.x", 100).unwrap(), 100);
    refused(libc::ERANGE, xattr_size(&path, "user.x", 99));
}

fn setting_one_moves_ctime_alone(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    let before = fs::metadata(at.join("file")).unwrap();
    tick();
    set_xattr(&at.join("file"), "user.x", b"x", 0).unwrap();
    let after = fs::metadata(at.join("file")).unwrap();
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
    assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
}

fn attributes_belong_to_the_inode(at: &Path) {
    fs::write(at.join("a"), "").unwrap();
    fs::write(at.join("b"), "").unwrap();
    fs::hard_link(at.join("a"), at.join("c")).unwrap();
    set_xattr(&at.join("a"), "user.x", b"x", 0).unwrap();
    fs::rename(at.join("a"), at.join("b")).unwrap();
    assert_eq!(xattr(&at.join("b"), "user.x").unwrap(), b"x");
    assert_eq!(xattr(&at.join("c"), "user.x").unwrap(), b"x");
    fs::remove_file(at.join("b")).unwrap();
    fs::remove_file(at.join("c")).unwrap();
    fs::write(at.join("c"), "").unwrap();
    refused(libc::ENODATA, xattr(&at.join("c"), "user.x"));
}

fn users_attributes_follow_the_permissions_and_trusted_ones_are_roots(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "").unwrap();
    set_xattr(&path, "user.x", b"x", 0).unwrap();
    set_xattr(&path, "trusted.x", b"x", 0).unwrap();
    NOBODY.does(|| {
        assert_eq!(xattr(&path, "user.x").unwrap(), b"x");
        refused(libc::EACCES, set_xattr(&path, "user.x", b"y", 0));
        refused(libc::EACCES, remove_xattr(&path, "user.x"));
        refused(libc::EPERM, set_xattr(&path, "trusted.x", b"y", 0));
        refused(libc::EPERM, set_xattr(&path, "security.x", b"y", 0));
        refused(libc::ENODATA, xattr(&path, "trusted.x"));
    });
    fs::set_permissions(&path, fs::Permissions::from_mode(0o602)).unwrap();
    NOBODY.does(|| {
        refused(libc::EACCES, xattr(&path, "user.x"));
        set_xattr(&path, "user.x", b"y", 0).unwrap();
    });
}

fn user_attributes_are_for_files_and_directories(at: &Path) {
    fs::create_dir(at.join("dir")).unwrap();
    set_xattr(&at.join("dir"), "user.x", b"x", 0).unwrap();
    symlink("nowhere", at.join("link")).unwrap();
    refused(libc::ENOENT, set_xattr(&at.join("link"), "user.x", b"x", 0));
    avidfs_tests::files::make_node(&at.join("pipe"), libc::S_IFIFO | 0o644, 0).unwrap();
    refused(libc::EPERM, set_xattr(&at.join("pipe"), "user.x", b"x", 0));
    set_xattr(&at.join("pipe"), "trusted.x", b"x", 0).unwrap();
    fs::set_permissions(at.join("dir"), fs::Permissions::from_mode(0o1777)).unwrap();
    refused(libc::EPERM, NOBODY.does(|| set_xattr(&at.join("dir"), "user.y", b"x", 0)));
}

fn what_is_refused(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "").unwrap();
    refused(libc::ERANGE, set_xattr(&path, &format!("user.{}", "n".repeat(251)), b"", 0));
    set_xattr(&path, &format!("user.{}", "n".repeat(250)), b"", 0).unwrap();
    refused(libc::E2BIG, set_xattr(&path, "user.x", &[0; 65_537], 0));
    refused(libc::EOPNOTSUPP, set_xattr(&path, "nonsense.x", b"", 0));
    refused(libc::EOPNOTSUPP, set_xattr(&path, "system.x", b"", 0));
    refused(libc::EOPNOTSUPP, xattr(&path, "nonsense.x"));
    refused(libc::EOPNOTSUPP, remove_xattr(&path, "nonsense.x"));
    refused(libc::EINVAL, set_xattr(&path, "user.", b"", 0));
    refused(libc::ERANGE, set_xattr(&path, "", b"", 0));
    refused(libc::ENOENT, xattr(&at.join("none"), "user.x"));
}

fn a_value_may_have_what_the_kernel_passes_on(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    set_xattr(&at.join("file"), "user.x", &[7; 65_536], 0).unwrap();
    assert_eq!(xattr(&at.join("file"), "user.x").unwrap(), [7; 65_536]);
    assert_eq!(fs::metadata(at.join("file")).unwrap().len(), 0);
}
