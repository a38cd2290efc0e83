//! rename(2) and renameat2(2).

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::files::{self, rename_with};
use avidfs_tests::posix::{everywhere, refused, tick};

#[test]
fn rename() {
    everywhere(cases!(
        a_replaced_file_lives_while_it_is_open,
        an_open_file_goes_along,
        names_of_the_same_file_both_stay,
        a_moved_directory_has_a_new_parent,
        a_directory_replaces_an_empty_one_alone,
        a_symbolic_link_is_moved_and_replaced_itself,
        noreplace_replaces_nothing,
        exchange_swaps_whatever_is_there,
        rename_moves_the_times_of_both_directories,
        what_rename_refuses,
    ));
}

fn a_replaced_file_lives_while_it_is_open(at: &Path) {
    fs::write(at.join("old"), "old").unwrap();
    fs::write(at.join("new"), "new").unwrap();
    let mut open = files::open(&at.join("old"), libc::O_RDWR, 0).unwrap();
    fs::rename(at.join("new"), at.join("old")).unwrap();
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    open.write_all(b"er").unwrap();
    assert_eq!(text, "old");
    assert_eq!((open.metadata().unwrap().nlink(), open.metadata().unwrap().len()), (0, 5));
    assert_eq!(fs::read(at.join("old")).unwrap(), b"new");
}

fn an_open_file_goes_along(at: &Path) {
    let mut open = File::create(at.join("a")).unwrap();
    open.write_all(b"one ").unwrap();
    fs::create_dir(at.join("dir")).unwrap();
    fs::rename(at.join("a"), at.join("dir/b")).unwrap();
    open.write_all(b"two").unwrap();
    assert_eq!(fs::read(at.join("dir/b")).unwrap(), b"one two");
}

fn names_of_the_same_file_both_stay(at: &Path) {
    fs::write(at.join("a"), "x").unwrap();
    fs::hard_link(at.join("a"), at.join("b")).unwrap();
    fs::rename(at.join("a"), at.join("b")).unwrap();
    fs::rename(at.join("a"), at.join("a")).unwrap();
    assert_eq!(fs::metadata(at.join("a")).unwrap().nlink(), 2);
}

fn a_moved_directory_has_a_new_parent(at: &Path) {
    fs::create_dir_all(at.join("from/dir")).unwrap();
    fs::create_dir(at.join("to")).unwrap();
    let look = |name: &str| fs::metadata(at.join(name)).unwrap();
    assert_eq!((look("from").nlink(), look("to").nlink()), (3, 2));
    fs::rename(at.join("from/dir"), at.join("to/dir")).unwrap();
    assert_eq!((look("from").nlink(), look("to").nlink()), (2, 3));
    assert_eq!(look("to/dir/..").ino(), look("to").ino());
}

fn a_directory_replaces_an_empty_one_alone(at: &Path) {
    fs::create_dir_all(at.join("full/sub")).unwrap();
    fs::create_dir(at.join("empty")).unwrap();
    fs::create_dir(at.join("other")).unwrap();
    refused(libc::ENOTEMPTY, fs::rename(at.join("other"), at.join("full")));
    let nlink = fs::metadata(at).unwrap().nlink();
    fs::rename(at.join("full"), at.join("empty")).unwrap();
    assert!(at.join("empty/sub").is_dir());
    assert_eq!(fs::metadata(at).unwrap().nlink(), nlink - 1);
}

fn a_symbolic_link_is_moved_and_replaced_itself(at: &Path) {
    fs::write(at.join("file"), "x").unwrap();
    symlink("file", at.join("link")).unwrap();
    fs::rename(at.join("link"), at.join("moved")).unwrap();
    assert_eq!(fs::read_link(at.join("moved")).unwrap(), Path::new("file"));
    fs::rename(at.join("file"), at.join("moved")).unwrap();
    assert!(fs::symlink_metadata(at.join("moved")).unwrap().is_file());
}

fn noreplace_replaces_nothing(at: &Path) {
    fs::write(at.join("a"), "a").unwrap();
    fs::write(at.join("b"), "b").unwrap();
    refused(libc::EEXIST, rename_with(&at.join("a"), &at.join("b"), libc::RENAME_NOREPLACE));
    rename_with(&at.join("a"), &at.join("c"), libc::RENAME_NOREPLACE).unwrap();
    assert_eq!((fs::read(at.join("b")).unwrap(), fs::read(at.join("c")).unwrap()), (vec![b'b'], vec![b'a']));
}

fn exchange_swaps_whatever_is_there(at: &Path) {
    fs::create_dir_all(at.join("dir/sub")).unwrap();
    fs::create_dir(at.join("below")).unwrap();
    fs::write(at.join("below/file"), "x").unwrap();
    rename_with(&at.join("dir"), &at.join("below/file"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read(at.join("dir")).unwrap(), b"x");
    assert!(at.join("below/file/sub").is_dir());
    assert_eq!(fs::metadata(at.join("below")).unwrap().nlink(), 3);
    assert_eq!(fs::metadata(at).unwrap().nlink(), 3);
    refused(libc::ENOENT, rename_with(&at.join("dir"), &at.join("none"), libc::RENAME_EXCHANGE));
    let below_itself = rename_with(&at.join("below"), &at.join("below/file"), libc::RENAME_EXCHANGE);
    refused(libc::EINVAL, below_itself);
    let both = libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE;
    refused(libc::EINVAL, rename_with(&at.join("dir"), &at.join("below"), both));
}

fn rename_moves_the_times_of_both_directories(at: &Path) {
    fs::create_dir(at.join("from")).unwrap();
    fs::create_dir(at.join("to")).unwrap();
    fs::write(at.join("from/file"), "x").unwrap();
    let look = |name: &str| {
        let now = fs::metadata(at.join(name)).unwrap();
        ((now.mtime(), now.mtime_nsec()), (now.ctime(), now.ctime_nsec()))
    };
    let (from, to, file) = (look("from"), look("to"), look("from/file"));
    tick();
    fs::rename(at.join("from/file"), at.join("to/file")).unwrap();
    assert!(look("from").0 > from.0 && look("to").0 > to.0);
    assert!(look("to/file").1 > file.1, "the ctime of what was moved");
    assert_eq!(look("to/file").0, file.0, "not its mtime");
}

fn what_rename_refuses(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    fs::create_dir_all(at.join("dir/sub")).unwrap();
    let rename = |from: &str, to: &str| fs::rename(at.join(from), at.join(to));
    refused(libc::ENOENT, rename("none", "x"));
    refused(libc::ENOENT, rename("file", "none/x"));
    refused(libc::EISDIR, rename("file", "dir"));
    refused(libc::ENOTDIR, rename("dir", "file"));
    refused(libc::ENOTDIR, rename("file", "file/x"));
    refused(libc::ENOTDIR, rename("file", "x/"));
    refused(libc::EINVAL, rename("dir", "dir/sub/x"));
    refused(libc::ENOTEMPTY, rename("dir/sub", "dir"));
    refused(libc::EBUSY, rename("dir/.", "x"));
    refused(libc::EXDEV, fs::rename(at.join("file"), "/dev/shm/avidfs-tests-rename"));
}
