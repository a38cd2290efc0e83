//! fallocate(2).

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::files::{fallocate, open, set_times};
use avidfs_tests::posix::{everywhere, refused};
use libc::{EBADF, EFBIG, EINVAL, ENODEV, EOPNOTSUPP, ESPIPE};
use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, O_CREAT, O_RDWR};

#[test]
fn allocation() {
    everywhere(cases!(
        the_size_grows_and_what_was_there_stays,
        with_keep_size_the_size_stays,
        a_hole_is_punched_at_any_bytes,
        a_range_of_zeros_may_grow_the_file,
        a_change_of_content_stamps_the_file,
        what_fallocate_refuses,
    ));
}

fn file(at: &Path) -> File {
    fs::write(at.join("file"), [1; 10_000]).unwrap();
    open(&at.join("file"), O_RDWR, 0).unwrap()
}

/// The file is of ones, except for zeros in this range, and so long.
#[track_caller]
fn check(at: &Path, zeros: std::ops::Range<usize>, length: usize) {
    let bytes = fs::read(at.join("file")).unwrap();
    assert_eq!(bytes.len(), length);
    let wrong = bytes.iter().enumerate().find(|(i, byte)| **byte != u8::from(!zeros.contains(i)));
    assert_eq!(wrong, None);
}

fn the_size_grows_and_what_was_there_stays(at: &Path) {
    let file = file(at);
    fallocate(&file, 0, 5000, 20_000).unwrap();
    check(at, 10_000..25_000, 25_000);
    fallocate(&file, 0, 0, 100).unwrap();
    check(at, 10_000..25_000, 25_000);
}

fn with_keep_size_the_size_stays(at: &Path) {
    let file = file(at);
    fallocate(&file, FALLOC_FL_KEEP_SIZE, 5000, 20_000).unwrap();
    check(at, 0..0, 10_000);
    fallocate(&file, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 9000, 20_000).unwrap();
    check(at, 9000..10_000, 10_000);
}

fn a_hole_is_punched_at_any_bytes(at: &Path) {
    let file = file(at);
    let punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 1, 1).unwrap();
    check(at, 1..2, 10_000);
    fallocate(&file, punch, 1, 4095).unwrap();
    check(at, 1..4096, 10_000);
    fallocate(&file, punch, 4000, 5001).unwrap();
    check(at, 1..9001, 10_000);
    fallocate(&file, punch, 9000, 1 << 40).unwrap();
    check(at, 1..10_000, 10_000);
    file.write_all_at(&[1; 10_000], 0).unwrap();
    check(at, 0..0, 10_000);
}

fn a_range_of_zeros_may_grow_the_file(at: &Path) {
    let file = file(at);
    fallocate(&file, FALLOC_FL_ZERO_RANGE, 100, 300).unwrap();
    check(at, 100..400, 10_000);
    file.write_all_at(&[1; 300], 100).unwrap();
    fallocate(&file, FALLOC_FL_ZERO_RANGE, 7000, 7000).unwrap();
    check(at, 7000..14_000, 14_000);
}

fn a_change_of_content_stamps_the_file(at: &Path) {
    let file = file(at);
    file.sync_all().unwrap();
    for mode in [0, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE] {
        set_times(&at.join("file"), (5, 5), (5, 5)).unwrap();
        fallocate(&file, mode, 3000, 90_000).unwrap();
        assert!(file.metadata().unwrap().mtime() > 5, "mode {mode}");
        file.set_len(10_000).unwrap();
    }
}

fn what_fallocate_refuses(at: &Path) {
    let file = file(at);
    refused(EINVAL, fallocate(&file, 0, 0, 0));
    refused(EINVAL, fallocate(&file, 0, u64::MAX, 1));
    refused(EFBIG, fallocate(&file, 0, i64::MAX as u64, 1));
    refused(EOPNOTSUPP, fallocate(&file, FALLOC_FL_PUNCH_HOLE, 0, 10));
    refused(EBADF, fallocate(&File::open(at.join("file")).unwrap(), 0, 0, 10));
    refused(EBADF, fallocate(&File::open(at).unwrap(), 0, 0, 10));
    avidfs_tests::files::make_node(&at.join("pipe"), libc::S_IFIFO | 0o600, 0).unwrap();
    refused(ESPIPE, fallocate(&open(&at.join("pipe"), O_RDWR, 0).unwrap(), 0, 0, 10));
    avidfs_tests::files::make_node(&at.join("null"), libc::S_IFCHR | 0o600, libc::makedev(1, 3)).unwrap();
    refused(ENODEV, fallocate(&open(&at.join("null"), O_RDWR, 0).unwrap(), 0, 0, 10));
    let new = open(&at.join("new"), O_RDWR | O_CREAT, 0o600).unwrap();
    fallocate(&new, 0, 0, 1).unwrap();
    assert_eq!(new.metadata().unwrap().len(), 1);
}
