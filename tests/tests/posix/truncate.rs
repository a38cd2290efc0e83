//! truncate(2) and ftruncate(2).

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::files::{Mapped, open, truncate};
use avidfs_tests::posix::{NOBODY, everywhere, refused, tick};

#[test]
fn truncation() {
    everywhere(cases!(
        a_cut_and_grown_file_has_zeros_where_it_was_cut,
        truncation_stamps_the_file,
        a_mapping_beyond_the_cut_reads_zeros,
        a_file_is_truncated_while_others_hold_it,
        what_truncate_refuses,
    ));
}

fn a_cut_and_grown_file_has_zeros_where_it_was_cut(at: &Path) {
    let path = at.join("file");
    for (cut, grown) in [(0, 5000), (1, 4096), (4095, 4097), (4097, 9000), (9999, 10_001)] {
        fs::write(&path, [7; 10_000]).unwrap();
        truncate(&path, cut).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), cut as u64);
        truncate(&path, grown).unwrap();
        let bytes = fs::read(&path).unwrap();
        let (kept, zeros) = bytes.split_at(cut as usize);
        assert_eq!(bytes.len(), grown as usize);
        assert!(kept.iter().all(|byte| *byte == 7) && zeros.iter().all(|byte| *byte == 0), "{cut}");
    }
}

fn truncation_stamps_the_file(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "text").unwrap();
    let stamps = || {
        let now = fs::metadata(&path).unwrap();
        ((now.mtime(), now.mtime_nsec()), (now.ctime(), now.ctime_nsec()))
    };
    let before = stamps();
    tick();
    truncate(&path, 2).unwrap();
    let after = stamps();
    assert!(after.0 > before.0 && after.1 > before.1);
    tick();
    open(&path, libc::O_WRONLY, 0).unwrap().set_len(2).unwrap();
    assert!(stamps().0 > after.0, "also to the same length");
}

fn a_mapping_beyond_the_cut_reads_zeros(at: &Path) {
    fs::write(at.join("file"), [7; 8192]).unwrap();
    let file = open(&at.join("file"), libc::O_RDWR, 0).unwrap();
    let mut mapped = Mapped::new(&file, 8192).unwrap();
    assert_eq!(mapped.bytes()[8191], 7);
    file.set_len(5000).unwrap();
    assert_eq!((mapped.bytes()[4999], mapped.bytes()[5000]), (7, 0));
    file.set_len(8192).unwrap();
    assert!(mapped.bytes()[5000..].iter().all(|byte| *byte == 0));
}

fn a_file_is_truncated_while_others_hold_it(at: &Path) {
    fs::write(at.join("file"), "0123456789").unwrap();
    let (reader, writer) = (File::open(at.join("file")).unwrap(), open(&at.join("file"), libc::O_WRONLY, 0));
    truncate(&at.join("file"), 3).unwrap();
    let mut bytes = [0; 10];
    assert_eq!(reader.read_at(&mut bytes, 0).unwrap(), 3);
    assert_eq!(reader.read_at(&mut bytes, 3).unwrap(), 0);
    writer.unwrap().write_all_at(b"x", 5).unwrap();
    assert_eq!(fs::read(at.join("file")).unwrap(), b"012\0\0x");
}

fn what_truncate_refuses(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    refused(libc::ENOENT, truncate(&at.join("none"), 0));
    refused(libc::EISDIR, truncate(at, 0));
    refused(libc::EINVAL, truncate(&at.join("file"), -1));
    refused(libc::ENOTDIR, truncate(&at.join("file/x"), 0));
    refused(libc::EFBIG, truncate(&at.join("file"), i64::MAX));
    refused(libc::EINVAL, File::open(at.join("file")).unwrap().set_len(0));
    refused(libc::EACCES, NOBODY.does(|| truncate(&at.join("file"), 0)));
}
