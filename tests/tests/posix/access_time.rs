//! Times of access, as relatime keeps them: the first access after a change is noted, and one a day.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::files::{Mapped, open, set_times, set_xattr, truncate};
use avidfs_tests::mount::Mount;
use avidfs_tests::posix::{NOBODY, everywhere, refused, tick};

#[test]
fn access_times() {
    everywhere(cases!(
        the_first_read_after_a_change_is_noted_and_the_next_is_not,
        a_read_after_a_day_is_noted,
        what_was_not_read_was_not_accessed,
        a_handle_with_noatime_notes_nothing,
        listing_a_directory_is_an_access,
        following_a_link_is_an_access,
        an_access_moves_no_other_time,
        an_access_that_was_noted_outlives_other_changes,
        others_may_not_ask_for_noatime,
        running_a_program_is_an_access,
        a_mapped_read_is_an_access,
    ));
}

fn atime(path: &Path) -> (i64, i64) {
    let now = fs::symlink_metadata(path).unwrap();
    (now.atime(), now.atime_nsec())
}

/// Set a time of access that lies before the change, so that the next access is due.
fn make_due(path: &Path) {
    set_times(path, (1000, 0), (2000, 0)).unwrap();
}

fn the_first_read_after_a_change_is_noted_and_the_next_is_not(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "text").unwrap();
    make_due(&path);
    tick();
    fs::read(&path).unwrap();
    let first = atime(&path);
    assert!(first.0 > 1_700_000_000, "{first:?}");
    tick();
    fs::read(&path).unwrap();
    assert_eq!(atime(&path), first);
    tick();
    fs::write(&path, "changed").unwrap();
    assert_eq!(atime(&path), first, "a write is no access");
    tick();
    fs::read(&path).unwrap();
    assert!(atime(&path) > first);
}

fn a_read_after_a_day_is_noted(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "text").unwrap();
    let now = fs::metadata(&path).unwrap().ctime();
    set_times(&path, (now + 1000, 0), (now - 90_000, 0)).unwrap();
    fs::read(&path).unwrap();
    assert_eq!(atime(&path).0, now + 1000, "later than every change");
    set_times(&path, (now - 86_500, 0), (now - 90_000, 0)).unwrap();
    fs::read(&path).unwrap();
    assert!(atime(&path).0 >= now);
}

fn what_was_not_read_was_not_accessed(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "text").unwrap();
    make_due(&path);
    drop(open(&path, libc::O_WRONLY, 0).unwrap());
    fs::metadata(&path).unwrap();
    fs::hard_link(&path, at.join("other")).unwrap();
    fs::rename(&path, at.join("moved")).unwrap();
    assert_eq!(atime(&at.join("moved")), (1000, 0));
}

fn a_handle_with_noatime_notes_nothing(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "text").unwrap();
    make_due(&path);
    let mut file = open(&path, libc::O_RDONLY | libc::O_NOATIME, 0).unwrap();
    file.read_to_end(&mut Vec::new()).unwrap();
    drop(file);
    assert_eq!(atime(&path), (1000, 0));
}

fn listing_a_directory_is_an_access(at: &Path) {
    let path = at.join("dir");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("file"), "").unwrap();
    make_due(&path);
    assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
    assert!(atime(&path).0 > 1000);
}

fn following_a_link_is_an_access(at: &Path) {
    fs::write(at.join("file"), "text").unwrap();
    for (name, follow) in [("read", true), ("followed", false)] {
        let path = at.join(name);
        symlink("file", &path).unwrap();
        make_due(&path);
        match follow {
            true => drop(fs::read_link(&path).unwrap()),
            false => drop(fs::read(&path).unwrap()),
        }
        assert!(atime(&path).0 > 1000, "{name}");
    }
}

fn an_access_moves_no_other_time(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "text").unwrap();
    make_due(&path);
    let before = fs::metadata(&path).unwrap();
    tick();
    fs::read(&path).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!(
        (after.mtime(), after.ctime(), after.ctime_nsec()),
        (2000, before.ctime(), before.ctime_nsec())
    );
}

fn an_access_that_was_noted_outlives_other_changes(at: &Path) {
    let path = at.join("file");
    fs::write(&path, "text").unwrap();
    make_due(&path);
    fs::read(&path).unwrap();
    let noted = atime(&path);
    assert!(noted.0 > 1000);
    set_times(&path, (0, libc::UTIME_OMIT), (3000, 0)).unwrap();
    chown(&path, Some(1), None).unwrap();
    truncate(&path, 1).unwrap();
    set_xattr(&path, "user.x", b"x", 0).unwrap();
    fs::hard_link(&path, at.join("other")).unwrap();
    fs::rename(&path, at.join("moved")).unwrap();
    assert_eq!((atime(&at.join("moved")), atime(&at.join("other"))), (noted, noted));
}

fn others_may_not_ask_for_noatime(at: &Path) {
    fs::write(at.join("file"), "text").unwrap();
    let flags = libc::O_RDONLY | libc::O_NOATIME;
    refused(libc::EPERM, NOBODY.does(|| open(&at.join("file"), flags, 0)));
}

fn running_a_program_is_an_access(at: &Path) {
    let path = at.join("true");
    fs::copy("/bin/true", &path).unwrap();
    make_due(&path);
    assert!(std::process::Command::new(&path).status().unwrap().success());
    assert!(atime(&path).0 > 1000);
}

fn a_mapped_read_is_an_access(at: &Path) {
    let path = at.join("file");
    fs::write(&path, [1; 5000]).unwrap();
    make_due(&path);
    let file = open(&path, libc::O_RDWR, 0).unwrap();
    let mut mapped = Mapped::private(&file, 5000).unwrap();
    assert_eq!(mapped.bytes()[4999], 1);
    assert!(atime(&path).0 > 1000);
}

/// A mount and a file in it that is due.
fn mounted(options: &[&str]) -> (Mount, std::path::PathBuf) {
    let mount = Mount::embedded(options);
    let path = mount.path("file");
    fs::write(&path, "text").unwrap();
    make_due(&path);
    (mount, path)
}

#[test]
fn accesses_outlive_a_remount_and_set_times_are_not_overwritten() {
    let (mount, path) = mounted(&[]);
    fs::read(&path).unwrap();
    let noted = atime(&path);
    assert!(noted.0 > 1000);
    mount.remount();
    assert_eq!(atime(&path), noted);
    fs::read(&path).unwrap();
    set_times(&path, (3000, 5), (2000, 0)).unwrap();
    mount.remount();
    assert_eq!(atime(&path), (3000, 5));
}

/// Of a file that was not touched since the mount began the kernel has no bytes, and the access is noted when it asks for
/// them, not when the file is opened.
#[test]
fn the_first_read_since_the_mount_began_is_seen_at_once_and_outlives_it() {
    let (mount, path) = mounted(&[]);
    mount.remount();
    drop(File::open(&path).unwrap());
    assert_eq!(atime(&path), (1000, 0), "it was opened and not read");
    fs::read(&path).unwrap();
    let first = atime(&path);
    assert!(first.0 > 1000);
    tick();
    fs::read(&path).unwrap();
    assert_eq!(atime(&path), first);
    mount.remount();
    assert_eq!(atime(&path), first);
}

#[test]
fn a_mount_with_noatime_notes_nothing() {
    let (mount, path) = mounted(&["-o", "noatime"]);
    fs::read(&path).unwrap();
    assert_eq!(fs::read_dir(mount.root()).unwrap().count(), 1);
    assert_eq!(atime(&path), (1000, 0));
}

#[test]
fn a_mount_with_nodiratime_notes_files_alone() {
    let (mount, path) = mounted(&["-o", "nodiratime"]);
    fs::create_dir(mount.path("dir")).unwrap();
    make_due(&mount.path("dir"));
    assert_eq!(fs::read_dir(mount.path("dir")).unwrap().count(), 0);
    assert_eq!(atime(&mount.path("dir")), (1000, 0));
    fs::read(&path).unwrap();
    assert!(atime(&path).0 > 1000);
}

#[test]
fn a_mount_with_strictatime_notes_every_open() {
    let (_mount, path) = mounted(&["-o", "strictatime"]);
    let mut before = atime(&path);
    for _ in 0..3 {
        tick();
        std::io::read_to_string(File::open(&path).unwrap()).unwrap();
        assert!(atime(&path) > before);
        before = atime(&path);
    }
}
