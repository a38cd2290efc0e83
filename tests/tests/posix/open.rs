//! open(2) and creat(2).

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use avidfs_tests::cases;
use avidfs_tests::files::open;
use avidfs_tests::posix::{DAEMON, NOBODY, everywhere, refused, with_umask};
use libc::{O_CREAT, O_DIRECTORY, O_EXCL, O_PATH, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};

#[test]
fn opening() {
    everywhere(cases!(
        a_new_file_has_the_mode_without_the_umask,
        a_handle_may_do_what_its_mode_forbids_others,
        exclusive_creation_follows_no_link,
        truncation_at_open_empties_and_stamps,
        the_kernel_checks_access_by_mode_and_owner,
        a_directory_is_searched_and_read_by_permission,
        a_path_handle_reads_nothing,
        a_program_runs_and_is_not_written_meanwhile,
        what_open_refuses,
    ));
}

fn a_new_file_has_the_mode_without_the_umask(at: &Path) {
    for (mask, asked, got) in [(0o022, 0o666, 0o644), (0o077, 0o777, 0o700), (0, 0o7777, 0o7777)] {
        let path = at.join(format!("{mask:o}"));
        let file = with_umask(mask, || open(&path, O_WRONLY | O_CREAT, asked)).unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, got);
    }
    let again = open(&at.join("0"), O_WRONLY | O_CREAT, 0o600).unwrap();
    assert_eq!(again.metadata().unwrap().mode() & 0o7777, 0o7777, "of an existing file nothing changes");
}

fn a_handle_may_do_what_its_mode_forbids_others(at: &Path) {
    fs::set_permissions(at, fs::Permissions::from_mode(0o777)).unwrap();
    NOBODY.does(|| {
        let mut file = open(&at.join("file"), O_RDWR | O_CREAT | O_EXCL, 0o000).unwrap();
        file.write_all(b"mine").unwrap();
        refused(libc::EACCES, File::open(at.join("file")));
    });
    assert_eq!(fs::read(at.join("file")).unwrap(), b"mine");
}

fn exclusive_creation_follows_no_link(at: &Path) {
    symlink("nowhere", at.join("dangling")).unwrap();
    refused(libc::EEXIST, open(&at.join("dangling"), O_WRONLY | O_CREAT | O_EXCL, 0o644));
    open(&at.join("dangling"), O_WRONLY | O_CREAT, 0o644).unwrap();
    assert!(at.join("nowhere").is_file());
    refused(libc::EEXIST, open(&at.join("nowhere"), O_WRONLY | O_CREAT | O_EXCL, 0o644));
}

fn truncation_at_open_empties_and_stamps(at: &Path) {
    fs::write(at.join("file"), "text").unwrap();
    let held = File::open(at.join("file")).unwrap();
    let before = held.metadata().unwrap();
    avidfs_tests::posix::tick();
    drop(open(&at.join("file"), O_WRONLY | O_TRUNC, 0).unwrap());
    let after = held.metadata().unwrap();
    assert_eq!(after.len(), 0);
    assert!((after.mtime(), after.mtime_nsec()) > (before.mtime(), before.mtime_nsec()));
    let mut text = String::new();
    (&held).read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
}

fn the_kernel_checks_access_by_mode_and_owner(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    std::os::unix::fs::chown(at.join("file"), Some(NOBODY.uid), Some(DAEMON.gid)).unwrap();
    let set = |mode| fs::set_permissions(at.join("file"), fs::Permissions::from_mode(mode)).unwrap();
    let may = |flags| open(&at.join("file"), flags, 0).is_ok();
    set(0o040);
    assert!(!NOBODY.does(|| may(O_RDONLY)), "the owner's bits count for the owner");
    assert!(DAEMON.does(|| may(O_RDONLY)) && !DAEMON.does(|| may(O_RDWR)));
    assert!(avidfs_tests::posix::BIN.does(|| may(O_RDONLY)), "also by a further group");
    set(0o606);
    assert!(NOBODY.does(|| may(O_RDWR)) && !DAEMON.does(|| may(O_RDONLY)));
    set(0o000);
    assert!(may(O_RDWR), "root may all");
}

fn a_directory_is_searched_and_read_by_permission(at: &Path) {
    fs::create_dir(at.join("dir")).unwrap();
    fs::write(at.join("dir/file"), "x").unwrap();
    let set = |mode| fs::set_permissions(at.join("dir"), fs::Permissions::from_mode(mode)).unwrap();
    set(0o711);
    NOBODY.does(|| {
        assert_eq!(fs::read(at.join("dir/file")).unwrap(), b"x", "searched");
        refused(libc::EACCES, fs::read_dir(at.join("dir")));
        refused(libc::EACCES, fs::write(at.join("dir/new"), ""));
    });
    set(0o744);
    NOBODY.does(|| {
        assert_eq!(fs::read_dir(at.join("dir")).unwrap().count(), 1, "read");
        refused(libc::EACCES, fs::metadata(at.join("dir/file")));
    });
}

fn a_path_handle_reads_nothing(at: &Path) {
    fs::write(at.join("file"), "x").unwrap();
    let file = open(&at.join("file"), O_PATH, 0).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1);
    refused(libc::EBADF, (&file).read(&mut [0]));
}

fn a_program_runs_and_is_not_written_meanwhile(at: &Path) {
    let program = at.join("sleep");
    fs::copy("/bin/sleep", &program).unwrap();
    let mut child = Command::new(&program).arg("60").spawn().unwrap();
    refused(libc::ETXTBSY, open(&program, O_WRONLY, 0));
    child.kill().unwrap();
    child.wait().unwrap();
    let written = open(&program, O_WRONLY, 0).unwrap();
    refused(libc::ETXTBSY, Command::new(&program).arg("0").status());
    drop(written);
    assert!(Command::new(&program).arg("0").status().unwrap().success());
    fs::set_permissions(&program, fs::Permissions::from_mode(0o644)).unwrap();
    refused(libc::EACCES, Command::new(&program).arg("0").status());
}

fn what_open_refuses(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    refused(libc::ENOENT, open(&at.join("none"), O_RDONLY, 0));
    refused(libc::ENOENT, open(&at.join("none/x"), O_WRONLY | O_CREAT, 0o644));
    refused(libc::ENOTDIR, open(&at.join("file/x"), O_WRONLY | O_CREAT, 0o644));
    refused(libc::ENOTDIR, open(&at.join("file"), O_RDONLY | O_DIRECTORY, 0));
    refused(libc::ENOTDIR, open(&at.join("file/"), O_RDONLY, 0));
    refused(libc::EISDIR, open(at, O_WRONLY, 0));
    refused(libc::EISDIR, open(at, O_RDONLY | O_CREAT, 0o644));
    refused(libc::EISDIR, open(&at.join("new/"), O_WRONLY | O_CREAT, 0o644));
    refused(libc::EISDIR, (&File::open(at).unwrap()).read(&mut [0]));
    refused(libc::EBADF, (&open(&at.join("file"), O_RDONLY, 0).unwrap()).write(b"x"));
    refused(libc::EBADF, (&open(&at.join("file"), O_WRONLY, 0).unwrap()).read(&mut [0]));
}
