//! What a FUSE mount, or this one, does not do: it says so, with the errno programs know how to live with.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::files::{fallocate, open, rename_with};
use avidfs_tests::posix::{on_the_mount, refused};

#[test]
fn unsupported() {
    on_the_mount(cases!(
        no_file_begins_without_a_name,
        no_range_is_inserted_or_collapsed,
        no_file_is_cloned_by_ioctl,
        no_inode_has_flags,
        no_whiteout_is_left_by_a_rename,
        no_time_of_birth_is_told,
    ));
}

fn file(at: &Path) -> File {
    fs::write(at.join("file"), [1; 10_000]).unwrap();
    open(&at.join("file"), libc::O_RDWR, 0).unwrap()
}

fn no_file_begins_without_a_name(at: &Path) {
    refused(libc::EOPNOTSUPP, open(at, libc::O_RDWR | libc::O_TMPFILE, 0o600));
}

fn no_range_is_inserted_or_collapsed(at: &Path) {
    let file = file(at);
    for mode in [libc::FALLOC_FL_INSERT_RANGE, libc::FALLOC_FL_COLLAPSE_RANGE, libc::FALLOC_FL_UNSHARE_RANGE]
    {
        refused(libc::EOPNOTSUPP, fallocate(&file, mode, 0, 4096));
    }
    assert_eq!(fs::read(at.join("file")).unwrap(), [1; 10_000]);
}

fn ioctl(file: &File, request: u64, argument: u64) -> io::Result<()> {
    // SAFETY: the requests of these cases read an integer or write one where `argument` points, which has room.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn no_file_is_cloned_by_ioctl(at: &Path) {
    const FICLONE: u64 = 0x4004_9409;
    let (file, to) = (file(at), File::create(at.join("to")).unwrap());
    refused(libc::EOPNOTSUPP, ioctl(&to, FICLONE, file.as_raw_fd() as u64));
}

fn no_inode_has_flags(at: &Path) {
    const FS_IOC_GETFLAGS: u64 = 0x8008_6601;
    let mut flags = 0u64;
    refused(libc::ENOTTY, ioctl(&file(at), FS_IOC_GETFLAGS, &raw mut flags as u64));
}

fn no_whiteout_is_left_by_a_rename(at: &Path) {
    drop(file(at));
    refused(libc::EINVAL, rename_with(&at.join("file"), &at.join("other"), libc::RENAME_WHITEOUT));
    assert!(at.join("file").exists());
}

fn no_time_of_birth_is_told(at: &Path) {
    let told = file(at).metadata().unwrap().created();
    assert_eq!(told.unwrap_err().kind(), io::ErrorKind::Unsupported);
}
