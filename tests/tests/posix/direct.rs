//! O_DIRECT.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::data;
use avidfs_tests::files::{Aligned, open};
use avidfs_tests::posix::{everywhere, on_the_mount};
use libc::{O_CREAT, O_DIRECT, O_RDWR};

#[test]
fn direct() {
    everywhere(cases!(
        aligned_bytes_go_through,
        direct_and_cached_handles_see_the_same,
        a_direct_read_ends_at_the_end,
    ));
}

#[test]
fn unaligned() {
    // ext4 refuses them with EINVAL; no disk below us asks for it.
    on_the_mount(cases!(unaligned_bytes_go_through_as_well));
}

fn aligned_bytes_go_through(at: &Path) {
    let file = open(&at.join("file"), O_RDWR | O_CREAT | O_DIRECT, 0o600).unwrap();
    let mut bytes = Aligned::new(1 << 20);
    data::fill(1, 0, bytes.bytes());
    file.write_all_at(bytes.bytes(), 0).unwrap();
    file.write_all_at(&bytes.bytes()[..4096], 3 << 20).unwrap();
    bytes.bytes().fill(0);
    file.read_exact_at(bytes.bytes(), 0).unwrap();
    assert!(bytes.bytes() == data::bytes(1, 0, 1 << 20));
    assert_eq!(file.metadata().unwrap().len(), (3 << 20) + 4096);
    file.read_exact_at(bytes.bytes(), 1 << 20).unwrap();
    assert!(bytes.bytes().iter().all(|byte| *byte == 0));
}

fn direct_and_cached_handles_see_the_same(at: &Path) {
    fs::write(at.join("file"), [1; 16_384]).unwrap();
    let cached = open(&at.join("file"), O_RDWR, 0).unwrap();
    let direct = open(&at.join("file"), O_RDWR | O_DIRECT, 0).unwrap();
    let (mut page, mut byte) = (Aligned::new(4096), [0]);
    cached.read_exact_at(&mut byte, 5000).unwrap();
    page.bytes().fill(2);
    direct.write_all_at(page.bytes(), 4096).unwrap();
    cached.read_exact_at(&mut byte, 5000).unwrap();
    assert_eq!(byte, [2]);
    cached.write_all_at(&[3], 9000).unwrap();
    direct.read_exact_at(page.bytes(), 8192).unwrap();
    assert_eq!(page.bytes()[9000 - 8192], 3);
}

fn a_direct_read_ends_at_the_end(at: &Path) {
    fs::write(at.join("file"), [1; 5000]).unwrap();
    let file = open(&at.join("file"), O_RDWR | O_DIRECT, 0).unwrap();
    let mut bytes = Aligned::new(8192);
    assert_eq!(file.read_at(bytes.bytes(), 0).unwrap(), 5000);
    assert_eq!(file.read_at(bytes.bytes(), 4096).unwrap(), 904);
    assert_eq!(file.read_at(bytes.bytes(), 8192).unwrap(), 0);
}

fn unaligned_bytes_go_through_as_well(at: &Path) {
    let file = open(&at.join("file"), O_RDWR | O_CREAT | O_DIRECT, 0o600).unwrap();
    let bytes = data::bytes(1, 0, 100_003);
    file.write_all_at(&bytes[..], 7).unwrap();
    let mut found = vec![0; 100_003];
    file.read_exact_at(&mut found[..], 7).unwrap();
    assert!(found == bytes);
    assert_eq!(fs::read(at.join("file")).unwrap()[..7], [0; 7]);
}
