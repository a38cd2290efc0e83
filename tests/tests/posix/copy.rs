//! copy_file_range(2).

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::data;
use avidfs_tests::files::{copy_range, open, set_times};
use avidfs_tests::posix::{everywhere, refused};
use libc::{O_CREAT, O_RDWR};

#[test]
fn copies() {
    everywhere(cases!(
        any_range_is_copied_to_any_place,
        bytes_that_were_just_written_are_copied,
        a_copy_is_not_changed_with_its_source,
        a_copy_ends_where_the_source_ends,
        a_copy_stamps_the_target_and_not_the_source,
        what_copy_file_range_refuses,
    ));
}

fn pair(at: &Path) -> (File, File) {
    data::put(&at.join("from"), 1, 300_000);
    data::put(&at.join("to"), 2, 300_000);
    (open(&at.join("from"), O_RDWR, 0).unwrap(), open(&at.join("to"), O_RDWR, 0).unwrap())
}

fn any_range_is_copied_to_any_place(at: &Path) {
    let (from, to) = pair(at);
    let mut wanted = data::bytes(2, 0, 300_000);
    for (start, target, length) in [(0, 0, 1), (1, 2, 4096), (4096, 100_000, 65_536), (99_999, 123, 70_001)] {
        let mut copied = 0;
        while copied < length {
            copied += copy_range(&from, start + copied, &to, target + copied, length - copied).unwrap();
        }
        wanted[target as usize..(target + length) as usize].copy_from_slice(&data::bytes(
            1,
            start,
            length as usize,
        ));
        assert!(fs::read(at.join("to")).unwrap() == wanted, "{start} {target} {length}");
    }
}

fn bytes_that_were_just_written_are_copied(at: &Path) {
    let (from, to) = pair(at);
    from.write_all_at(b"fresh", 70_000).unwrap();
    assert_eq!(copy_range(&from, 70_000, &to, 299_999, 5).unwrap(), 5);
    let bytes = fs::read(at.join("to")).unwrap();
    assert_eq!((bytes.len(), &bytes[299_999..]), (300_004, &b"fresh"[..]));
}

fn a_copy_is_not_changed_with_its_source(at: &Path) {
    let (from, to) = pair(at);
    let mut copied = 0;
    while copied < 300_000 {
        copied += copy_range(&from, copied, &to, copied, 300_000 - copied).unwrap();
    }
    from.write_all_at(&[0; 1000], 5000).unwrap();
    data::check(&at.join("to"), 1, 300_000);
    to.write_all_at(&[0; 1000], 100_000).unwrap();
    assert_eq!(fs::read(at.join("from")).unwrap()[100_000..101_000], data::bytes(1, 100_000, 1000));
    drop((from, to));
    fs::remove_file(at.join("from")).unwrap();
    assert_eq!(fs::read(at.join("to")).unwrap()[..100_000], data::bytes(1, 0, 100_000));
}

fn a_copy_ends_where_the_source_ends(at: &Path) {
    let (from, to) = pair(at);
    assert_eq!(copy_range(&from, 299_990, &to, 0, 1000).unwrap(), 10);
    assert_eq!(copy_range(&from, 300_000, &to, 0, 1000).unwrap(), 0);
    assert_eq!(copy_range(&from, 1 << 40, &to, 0, 1000).unwrap(), 0);
    assert_eq!(copy_range(&from, 0, &to, 0, 0).unwrap(), 0);
    assert_eq!(to.metadata().unwrap().len(), 300_000);
}

fn a_copy_stamps_the_target_and_not_the_source(at: &Path) {
    let (from, to) = pair(at);
    set_times(&at.join("from"), (5, 5), (5, 5)).unwrap();
    set_times(&at.join("to"), (5, 5), (5, 5)).unwrap();
    copy_range(&from, 0, &to, 0, 1000).unwrap();
    assert_eq!(from.metadata().unwrap().mtime(), 5);
    assert!(to.metadata().unwrap().mtime() > 5);
}

fn what_copy_file_range_refuses(at: &Path) {
    let (from, to) = pair(at);
    refused(libc::EINVAL, copy_range(&from, 0, &from, 100, 200));
    refused(libc::EBADF, copy_range(&from, 0, &File::open(at.join("to")).unwrap(), 0, 1));
    refused(
        libc::EBADF,
        copy_range(&from, 0, &open(&at.join("to"), O_RDWR | libc::O_APPEND, 0).unwrap(), 0, 1),
    );
    refused(libc::EISDIR, copy_range(&File::open(at).unwrap(), 0, &to, 0, 1));
    assert_eq!(copy_range(&from, 0, &from, 200_000, 1000).unwrap(), 1000, "within one file, apart");
    let new = open(&at.join("new"), O_RDWR | O_CREAT, 0o600).unwrap();
    refused(libc::EFBIG, copy_range(&from, 0, &new, i64::MAX as u64 - 10, 5));
}
