//! unlink(2) and rmdir(2), also of what is open.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use avidfs_tests::cases;
use avidfs_tests::files::{self, Mapped};
use avidfs_tests::posix::{everywhere, refused, tick};

#[test]
fn unlink() {
    everywhere(cases!(
        an_open_file_without_a_name_is_whole,
        a_mapped_file_without_a_name_is_whole,
        an_open_directory_without_a_name_is_empty_and_takes_nothing,
        a_file_without_a_name_gets_no_new_one,
        unlink_moves_the_times_of_what_is_left,
        what_unlink_refuses,
        what_rmdir_refuses,
    ));
}

fn an_open_file_without_a_name_is_whole(at: &Path) {
    let mut file = files::open(&at.join("file"), libc::O_RDWR | libc::O_CREAT, 0o600).unwrap();
    file.write_all(b"before").unwrap();
    fs::remove_file(at.join("file")).unwrap();
    file.write_all(b" and after").unwrap();
    file.sync_all().unwrap();
    file.set_len(12).unwrap();
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before and a");
    assert_eq!((file.metadata().unwrap().nlink(), file.metadata().unwrap().len()), (0, 12));
    let by_descriptor = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    assert_eq!(fs::read(by_descriptor).unwrap(), b"before and a", "it can be opened again");
    fs::write(at.join("file"), "new").unwrap();
    assert_ne!(fs::metadata(at.join("file")).unwrap().ino(), file.metadata().unwrap().ino());
}

fn a_mapped_file_without_a_name_is_whole(at: &Path) {
    fs::write(at.join("file"), [7; 10_000]).unwrap();
    let file = files::open(&at.join("file"), libc::O_RDWR, 0).unwrap();
    let mut mapped = Mapped::new(&file, 10_000).unwrap();
    drop(file);
    fs::remove_file(at.join("file")).unwrap();
    mapped.bytes()[9_000] = 8;
    mapped.sync().unwrap();
    assert!(mapped.bytes()[..9_000].iter().all(|byte| *byte == 7) && mapped.bytes()[9_000] == 8);
}

fn an_open_directory_without_a_name_is_empty_and_takes_nothing(at: &Path) {
    fs::create_dir(at.join("dir")).unwrap();
    let directory = File::open(at.join("dir")).unwrap();
    fs::remove_dir(at.join("dir")).unwrap();
    assert_eq!(directory.metadata().unwrap().nlink(), 0);
    let inside = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    refused(libc::ENOENT, fs::write(inside.join("x"), ""));
    refused(libc::ENOENT, fs::create_dir(inside.join("x")));
    assert_eq!(fs::read_dir(&inside).map(Iterator::count).unwrap_or(0), 0);
}

fn a_file_without_a_name_gets_no_new_one(at: &Path) {
    let file = File::create(at.join("file")).unwrap();
    fs::remove_file(at.join("file")).unwrap();
    refused(libc::ENOENT, files::link_open(&file, &at.join("again")));
}

fn unlink_moves_the_times_of_what_is_left(at: &Path) {
    fs::write(at.join("one"), "").unwrap();
    fs::hard_link(at.join("one"), at.join("two")).unwrap();
    let times = |path: &Path| {
        let now = fs::metadata(path).unwrap();
        (now.ctime(), now.ctime_nsec())
    };
    let (file, directory) = (times(&at.join("two")), times(at));
    tick();
    fs::remove_file(at.join("one")).unwrap();
    assert!(times(&at.join("two")) > file && times(at) > directory);
}

fn what_unlink_refuses(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    fs::create_dir(at.join("dir")).unwrap();
    refused(libc::EISDIR, fs::remove_file(at.join("dir")));
    refused(libc::ENOENT, fs::remove_file(at.join("none")));
    refused(libc::ENOTDIR, fs::remove_file(at.join("file/x")));
    refused(libc::ENOTDIR, fs::remove_file(at.join("file/")));
}

fn what_rmdir_refuses(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    fs::create_dir_all(at.join("dir/sub")).unwrap();
    refused(libc::ENOTEMPTY, fs::remove_dir(at.join("dir")));
    refused(libc::ENOTDIR, fs::remove_dir(at.join("file")));
    refused(libc::ENOENT, fs::remove_dir(at.join("none")));
    refused(libc::EINVAL, fs::remove_dir(at.join("dir/sub/.")));
    refused(libc::ENOTEMPTY, fs::remove_dir(at.join("dir/sub/..")));
    fs::remove_dir(at.join("dir/sub")).unwrap();
    fs::write(at.join("dir/file"), "").unwrap();
    refused(libc::ENOTEMPTY, fs::remove_dir(at.join("dir")));
}
