//! mmap(2).

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::files::{Mapped, open, punch, set_times};
use avidfs_tests::posix::everywhere;
use libc::O_RDWR;

#[test]
fn mapping() {
    everywhere(cases!(
        stores_and_writes_see_each_other,
        what_is_stored_outlives_the_mapping,
        a_store_stamps_the_file_once_it_is_synced,
        bytes_after_the_end_in_the_last_page_are_not_kept,
        a_hole_punched_below_a_mapping_is_seen_in_it,
        a_private_mapping_changes_nothing,
    ));
}

fn stores_and_writes_see_each_other(at: &Path) {
    fs::write(at.join("file"), [0; 20_000]).unwrap();
    let file = open(&at.join("file"), O_RDWR, 0).unwrap();
    let mut mapped = Mapped::new(&file, 20_000).unwrap();
    for offset in [0, 4095, 4096, 19_999] {
        mapped.bytes()[offset] = 1;
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset as u64).unwrap();
        assert_eq!(byte, [1]);
        file.write_all_at(&[2], offset as u64).unwrap();
        assert_eq!(mapped.bytes()[offset], 2);
    }
}

fn what_is_stored_outlives_the_mapping(at: &Path) {
    fs::write(at.join("file"), [0; 300_000]).unwrap();
    let file = open(&at.join("file"), O_RDWR, 0).unwrap();
    let mut mapped = Mapped::new(&file, 300_000).unwrap();
    drop(file);
    mapped.bytes().fill(5);
    drop(mapped);
    assert!(fs::read(at.join("file")).unwrap().iter().all(|byte| *byte == 5));
}

fn a_store_stamps_the_file_once_it_is_synced(at: &Path) {
    let path = at.join("file");
    fs::write(&path, [0; 4096]).unwrap();
    set_times(&path, (1000, 0), (1000, 0)).unwrap();
    let file = open(&path, O_RDWR, 0).unwrap();
    let mut mapped = Mapped::new(&file, 4096).unwrap();
    mapped.bytes()[0] = 1;
    mapped.sync().unwrap();
    assert!(fs::metadata(&path).unwrap().mtime() > 1000);
}

fn bytes_after_the_end_in_the_last_page_are_not_kept(at: &Path) {
    fs::write(at.join("file"), [1; 100]).unwrap();
    let file = open(&at.join("file"), O_RDWR, 0).unwrap();
    let mut mapped = Mapped::new(&file, 4096).unwrap();
    assert_eq!(mapped.bytes()[100..], [0; 3996]);
    mapped.bytes()[200] = 9;
    mapped.sync().unwrap();
    drop(mapped);
    assert_eq!(fs::metadata(at.join("file")).unwrap().len(), 100);
    file.write_all_at(&[1], 300).unwrap();
    assert_eq!(fs::read(at.join("file")).unwrap()[100..300], [0; 200]);
}

fn a_hole_punched_below_a_mapping_is_seen_in_it(at: &Path) {
    fs::write(at.join("file"), [1; 40_000]).unwrap();
    let file = open(&at.join("file"), O_RDWR, 0).unwrap();
    let mut mapped = Mapped::new(&file, 40_000).unwrap();
    mapped.bytes()[10_000] = 2;
    punch(&file, 5000, 20_000).unwrap();
    assert!(mapped.bytes()[5000..25_000].iter().all(|byte| *byte == 0));
    assert_eq!((mapped.bytes()[4999], mapped.bytes()[25_000]), (1, 1));
}

fn a_private_mapping_changes_nothing(at: &Path) {
    fs::write(at.join("file"), [1; 4096]).unwrap();
    let file = open(&at.join("file"), O_RDWR, 0).unwrap();
    let mut mapped = Mapped::private(&file, 4096).unwrap();
    mapped.bytes()[0] = 9;
    drop(mapped);
    assert_eq!(fs::read(at.join("file")).unwrap(), [1; 4096]);
}
