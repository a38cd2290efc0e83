//! Holes: files that are longer than what was written, lseek(2) with SEEK_DATA and SEEK_HOLE.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::files::{open, punch, seek};
use avidfs_tests::posix::{everywhere, refused};
use libc::{O_CREAT, O_RDWR, SEEK_DATA, SEEK_HOLE};

#[test]
fn sparse() {
    everywhere(cases!(
        a_hole_reads_as_zeros_and_takes_no_room,
        data_and_holes_are_found_in_turn,
        a_punched_hole_gives_room_back,
        bytes_lie_as_far_out_as_ext4_takes_them,
    ));
}

fn a_hole_reads_as_zeros_and_takes_no_room(at: &Path) {
    let file = open(&at.join("file"), O_RDWR | O_CREAT, 0o644).unwrap();
    file.write_all_at(b"end", 10 << 20).unwrap();
    file.sync_all().unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), (10 << 20) + 3);
    assert!(metadata.blocks() * 512 <= 64 << 10, "{} blocks", metadata.blocks());
    let bytes = fs::read(at.join("file")).unwrap();
    assert!(bytes[..10 << 20].iter().all(|byte| *byte == 0) && &bytes[10 << 20..] == b"end");
}

fn data_and_holes_are_found_in_turn(at: &Path) {
    let file = open(&at.join("file"), O_RDWR | O_CREAT, 0o644).unwrap();
    file.set_len(5 << 20).unwrap();
    file.write_all_at(&[1; 4096], 1 << 20).unwrap();
    file.write_all_at(&[1; 4096], 3 << 20).unwrap();
    for synced in [false, true] {
        if synced {
            file.sync_all().unwrap();
        }
        assert_eq!(seek(&file, 0, SEEK_DATA).unwrap(), 1 << 20);
        assert_eq!(seek(&file, 1 << 20, SEEK_DATA).unwrap(), 1 << 20);
        assert_eq!(seek(&file, 1 << 20, SEEK_HOLE).unwrap(), (1 << 20) + 4096);
        assert_eq!(seek(&file, 2 << 20, SEEK_DATA).unwrap(), 3 << 20);
        assert_eq!(seek(&file, 2 << 20, SEEK_HOLE).unwrap(), 2 << 20);
        refused(libc::ENXIO, seek(&file, 4 << 20, SEEK_DATA));
        refused(libc::ENXIO, seek(&file, 5 << 20, SEEK_HOLE));
        refused(libc::ENXIO, seek(&file, u64::MAX, SEEK_DATA));
    }
    fs::write(at.join("full"), [1; 10_000]).unwrap();
    let full = open(&at.join("full"), O_RDWR, 0).unwrap();
    assert_eq!(seek(&full, 5000, SEEK_HOLE).unwrap(), 10_000, "there is one at the end");
}

fn a_punched_hole_gives_room_back(at: &Path) {
    fs::write(at.join("file"), vec![1; 8 << 20]).unwrap();
    let file = open(&at.join("file"), O_RDWR, 0).unwrap();
    file.sync_all().unwrap();
    let before = file.metadata().unwrap().blocks();
    punch(&file, 1 << 20, 6 << 20).unwrap();
    file.sync_all().unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), 8 << 20);
    assert!(metadata.blocks() + (5 << 11) < before, "{before} blocks became {}", metadata.blocks());
    assert_eq!(seek(&file, 0, SEEK_HOLE).unwrap(), 1 << 20);
    assert_eq!(seek(&file, 1 << 20, SEEK_DATA).unwrap(), 7 << 20);
}

fn bytes_lie_as_far_out_as_ext4_takes_them(at: &Path) {
    let file = open(&at.join("file"), O_RDWR | O_CREAT, 0o644).unwrap();
    let far = (16 << 40) - 8192;
    file.write_all_at(b"far", far).unwrap();
    let mut bytes = [0; 3];
    file.read_exact_at(&mut bytes, far).unwrap();
    assert_eq!(&bytes, b"far");
    assert_eq!(file.metadata().unwrap().len(), far + 3);
    assert_eq!(seek(&file, 4096, SEEK_DATA).unwrap(), far);
    refused(libc::EFBIG, file.write_at(b"x", i64::MAX as u64 - 1));
    refused(libc::EINVAL, file.write_at(b"x", i64::MAX as u64 + 1));
}
