//! Set-user-id and set-group-id: when they are lost, and that they work.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use avidfs_tests::cases;
use avidfs_tests::files::{copy_range, fallocate, open, punch, truncate};
use avidfs_tests::posix::{NOBODY, User, everywhere};
use libc::{O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};

#[test]
fn set_id() {
    everywhere(cases!(
        a_program_runs_as_its_owner,
        a_write_of_another_user_takes_the_bits_away,
        root_writes_and_they_stay,
        every_way_to_change_the_content_takes_them_away,
        a_new_owner_takes_them_away,
        set_group_id_without_execution_is_a_lock_mark_and_stays_at_a_write,
        directories_keep_theirs,
    ));
}

const OWNED: User = NOBODY;

/// A file of that mode and of `OWNED`'s, writable by everyone.
fn file(at: &Path, mode: u32) -> std::path::PathBuf {
    let path = at.join("file");
    fs::write(&path, [1; 10_000]).unwrap();
    chown(&path, Some(OWNED.uid), Some(OWNED.gid)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn a_program_runs_as_its_owner(at: &Path) {
    let path = at.join("id");
    fs::copy("/usr/bin/id", &path).unwrap();
    chown(&path, Some(1), Some(2)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).unwrap();
    let id = |flag: &str| String::from_utf8(Command::new(&path).arg(flag).output().unwrap().stdout).unwrap();
    assert_eq!((id("-u").trim(), id("-g").trim()), ("1", "2"));
    assert_eq!(id("-ru").trim().len() + id("-u").trim().len(), 2);
}

fn a_write_of_another_user_takes_the_bits_away(at: &Path) {
    let path = file(at, 0o6777);
    NOBODY.does(|| open(&path, O_WRONLY, 0).unwrap().write_all(b"x").unwrap());
    assert_eq!(mode(&path), 0o777);
}

fn root_writes_and_they_stay(at: &Path) {
    let path = file(at, 0o6777);
    open(&path, O_WRONLY, 0).unwrap().write_all(b"x").unwrap();
    truncate(&path, 5).unwrap();
    assert_eq!(mode(&path), 0o6777);
}

type Way = fn(&Path);

fn every_way_to_change_the_content_takes_them_away(at: &Path) {
    let ways: [(&str, Way); 6] = [
        ("truncate", |path| truncate(path, 5).unwrap()),
        ("open", |path| drop(open(path, O_WRONLY | O_TRUNC, 0).unwrap())),
        ("allocate", |path| fallocate(&open(path, O_RDWR, 0).unwrap(), 0, 0, 20_000).unwrap()),
        ("punch", |path| punch(&open(path, O_RDWR, 0).unwrap(), 0, 5000).unwrap()),
        ("write", |path| open(path, O_WRONLY, 0).unwrap().write_all_at(b"x", 3).unwrap()),
        ("copy", |path| {
            let from = open(path, O_RDONLY, 0).unwrap();
            copy_range(&from, 0, &open(path, O_RDWR, 0).unwrap(), 8000, 100).unwrap();
        }),
    ];
    for (name, way) in ways {
        let path = file(at, 0o6777);
        NOBODY.does(|| way(&path));
        assert_eq!(mode(&path), 0o777, "{name}");
    }
}

fn a_new_owner_takes_them_away(at: &Path) {
    let path = file(at, 0o6777);
    chown(&path, Some(1), None).unwrap();
    assert_eq!(mode(&path), 0o777);
    let path = file(at, 0o6755);
    NOBODY.does(|| chown(&path, None, Some(NOBODY.gid))).unwrap();
    assert_eq!(mode(&path), 0o755);
}

fn set_group_id_without_execution_is_a_lock_mark_and_stays_at_a_write(at: &Path) {
    let path = file(at, 0o2666);
    NOBODY.does(|| open(&path, O_WRONLY, 0).unwrap().write_all(b"x").unwrap());
    assert_eq!(mode(&path), 0o2666);
}

fn directories_keep_theirs(at: &Path) {
    fs::create_dir(at.join("dir")).unwrap();
    fs::set_permissions(at.join("dir"), fs::Permissions::from_mode(0o6777)).unwrap();
    chown(at.join("dir"), Some(1), Some(1)).unwrap();
    NOBODY.does(|| fs::write(at.join("dir/file"), "x")).unwrap();
    assert_eq!(mode(&at.join("dir")), 0o6777);
}
