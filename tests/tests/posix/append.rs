//! O_APPEND and concurrent writes.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::files::open;
use avidfs_tests::posix::everywhere;
use libc::{O_APPEND, O_CREAT, O_RDWR, O_WRONLY};

#[test]
fn append() {
    everywhere(cases!(
        an_append_goes_to_the_end_wherever_the_offset_is,
        an_append_sees_what_others_added_or_cut,
        appends_of_many_at_once_all_stay_whole,
        writes_of_two_handles_to_one_page_both_stay,
    ));
}

fn an_append_goes_to_the_end_wherever_the_offset_is(at: &Path) {
    fs::write(at.join("file"), "begin").unwrap();
    let mut file = open(&at.join("file"), O_RDWR | O_APPEND, 0).unwrap();
    file.seek(SeekFrom::Start(1)).unwrap();
    file.write_all(b" one").unwrap();
    assert_eq!(file.stream_position().unwrap(), 9);
    file.write_all_at(b" two", 0).unwrap();
    assert_eq!(fs::read(at.join("file")).unwrap(), b"begin one two", "pwrite(2) of Linux appends as well");
    file.seek(SeekFrom::Start(6)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one two");
}

fn an_append_sees_what_others_added_or_cut(at: &Path) {
    let mut one = open(&at.join("file"), O_WRONLY | O_APPEND | O_CREAT, 0o644).unwrap();
    let mut two = open(&at.join("file"), O_WRONLY | O_APPEND, 0).unwrap();
    one.write_all(b"1").unwrap();
    two.write_all(b"2").unwrap();
    one.write_all(b"1").unwrap();
    two.set_len(1).unwrap();
    one.write_all(b"3").unwrap();
    assert_eq!(fs::read(at.join("file")).unwrap(), b"13");
}

fn appends_of_many_at_once_all_stay_whole(at: &Path) {
    File::create(at.join("log")).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4u8 {
            scope.spawn(move || {
                let mut log = open(&at.join("log"), O_WRONLY | O_APPEND, 0).unwrap();
                (0..100).for_each(|_| log.write_all(&[b'a' + writer; 100]).unwrap());
            });
        }
    });
    let bytes = fs::read(at.join("log")).unwrap();
    assert_eq!(bytes.len(), 4 * 100 * 100);
    assert!(bytes.chunks(100).all(|line| line.iter().all(|byte| *byte == line[0])));
}

fn writes_of_two_handles_to_one_page_both_stay(at: &Path) {
    fs::write(at.join("file"), [0; 4096]).unwrap();
    std::thread::scope(|scope| {
        for half in [0u64, 1] {
            scope.spawn(move || {
                let file = open(&at.join("file"), O_RDWR, 0).unwrap();
                (0..2048).for_each(|i| file.write_all_at(&[1 + half as u8], 2 * i + half).unwrap());
            });
        }
    });
    let bytes = fs::read(at.join("file")).unwrap();
    assert!(bytes.chunks(2).all(|pair| pair == [1, 2]));
}
