//! link(2).

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::posix::{everywhere, refused, tick};

#[test]
fn link() {
    everywhere(cases!(
        names_of_one_file_are_equal,
        a_link_moves_the_times_of_file_and_directory,
        a_link_to_a_symbolic_link_is_one_to_the_link_itself,
        what_link_refuses,
    ));
}

fn names_of_one_file_are_equal(at: &Path) {
    fs::write(at.join("one"), "text").unwrap();
    fs::hard_link(at.join("one"), at.join("two")).unwrap();
    fs::create_dir(at.join("dir")).unwrap();
    fs::hard_link(at.join("two"), at.join("dir/three")).unwrap();
    let look = |name: &str| fs::metadata(at.join(name)).unwrap();
    assert_eq!((look("one").ino(), look("one").nlink()), (look("dir/three").ino(), 3));
    fs::write(at.join("dir/three"), "changed").unwrap();
    fs::remove_file(at.join("one")).unwrap();
    assert_eq!(fs::read(at.join("two")).unwrap(), b"changed");
    assert_eq!(look("two").nlink(), 2);
}

fn a_link_moves_the_times_of_file_and_directory(at: &Path) {
    fs::write(at.join("one"), "text").unwrap();
    let (file, directory) = (fs::metadata(at.join("one")).unwrap(), fs::metadata(at).unwrap());
    tick();
    fs::hard_link(at.join("one"), at.join("two")).unwrap();
    let (file_now, directory_now) = (fs::metadata(at.join("one")).unwrap(), fs::metadata(at).unwrap());
    let ctime = |of: &fs::Metadata| (of.ctime(), of.ctime_nsec());
    let mtime = |of: &fs::Metadata| (of.mtime(), of.mtime_nsec());
    assert!(ctime(&file_now) > ctime(&file) && mtime(&file_now) == mtime(&file));
    assert!(ctime(&directory_now) > ctime(&directory) && mtime(&directory_now) > mtime(&directory));
}

fn a_link_to_a_symbolic_link_is_one_to_the_link_itself(at: &Path) {
    symlink("nowhere", at.join("soft")).unwrap();
    fs::hard_link(at.join("soft"), at.join("hard")).unwrap();
    assert_eq!(fs::read_link(at.join("hard")).unwrap(), Path::new("nowhere"));
    assert_eq!(fs::symlink_metadata(at.join("soft")).unwrap().nlink(), 2);
}

fn what_link_refuses(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    fs::create_dir(at.join("dir")).unwrap();
    let link = |from: &str, to: &str| fs::hard_link(at.join(from), at.join(to));
    refused(libc::EEXIST, link("file", "file"));
    refused(libc::EEXIST, link("file", "dir"));
    refused(libc::ENOENT, link("none", "x"));
    refused(libc::ENOENT, link("file", "none/x"));
    refused(libc::ENOTDIR, link("file", "file/x"));
    refused(libc::EPERM, link("dir", "x"));
    refused(libc::EXDEV, fs::hard_link(at.join("file"), "/dev/shm/avidfs-tests-link"));
}
