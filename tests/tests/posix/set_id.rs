//! Set-user-id and set-group-id: when they are lost, and that they work.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use avidfs_tests::cases;
use avidfs_tests::files::{copy_range, errno, fallocate, open, punch, set_xattr, truncate, xattr};
use avidfs_tests::posix::{BIN, DAEMON, NOBODY, User, everywhere, refused};
use libc::{O_CREAT, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};

#[test]
fn set_id() {
    everywhere(cases!(
        a_program_runs_as_its_owner,
        a_write_of_another_user_takes_the_bits_away,
        a_program_that_another_user_changed_no_longer_runs_as_its_owner,
        root_writes_and_they_stay,
        every_way_to_change_the_content_takes_them_away,
        a_new_owner_takes_them_away,
        set_group_id_without_execution_is_a_lock_mark_and_stays_at_a_write,
        set_group_id_without_execution_stays_at_a_chown_of_a_member,
        a_foreign_groups_set_group_id_is_not_to_be_had_by_making_a_file,
        capabilities_of_a_program_go_when_its_content_or_owner_changes,
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

/// At once, and although nobody asked for the mode meanwhile.
fn a_program_that_another_user_changed_no_longer_runs_as_its_owner(at: &Path) {
    let path = at.join("id");
    for how in ["printf '\\177' 1<>id", "fallocate -l 1 id"] {
        fs::copy("/usr/bin/id", &path).unwrap();
        chown(&path, Some(DAEMON.uid), Some(DAEMON.gid)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6777)).unwrap();
        assert_eq!(mode(&path), 0o6777);
        let id = |script: &str| {
            let mut sh = Command::new("sh");
            sh.current_dir(at).uid(NOBODY.uid).gid(NOBODY.gid).arg("-c").arg(script);
            String::from_utf8(sh.output().unwrap().stdout).unwrap()
        };
        assert_eq!(id("exec ./id -u").trim(), DAEMON.uid.to_string());
        assert_eq!(id(&format!("{how} && exec ./id -u")).trim(), NOBODY.uid.to_string(), "{how}");
    }
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

fn set_group_id_without_execution_stays_at_a_chown_of_a_member(at: &Path) {
    let path = file(at, 0o2666);
    NOBODY.does(|| chown(&path, Some(OWNED.uid), None)).unwrap();
    assert_eq!(mode(&path), 0o2666);
    chown(&path, Some(1), None).unwrap();
    assert_eq!(mode(&path), 0o2666);
}

fn a_foreign_groups_set_group_id_is_not_to_be_had_by_making_a_file(at: &Path) {
    fs::create_dir(at.join("dir")).unwrap();
    chown(at.join("dir"), Some(0), Some(DAEMON.gid)).unwrap();
    fs::set_permissions(at.join("dir"), fs::Permissions::from_mode(0o2777)).unwrap();
    let made = |name: &str| drop(open(&at.join("dir").join(name), O_WRONLY | O_CREAT, 0o6755).unwrap());
    NOBODY.does(|| made("foreign"));
    assert_eq!(mode(&at.join("dir/foreign")), 0o4755);
    assert_eq!(fs::metadata(at.join("dir/foreign")).unwrap().gid(), DAEMON.gid);
    BIN.does(|| made("own"));
    assert_eq!(mode(&at.join("dir/own")), 0o6755, "a member by a further group");
}

fn capabilities_of_a_program_go_when_its_content_or_owner_changes(at: &Path) {
    // struct vfs_cap_data of linux/capability.h, revision 2: CAP_NET_RAW permitted.
    let value = [0x0200_0000u32, 1 << 13, 0, 0, 0].map(u32::to_le_bytes).concat();
    let changes: [(&str, Way); 5] = [
        ("write", |path| open(path, O_WRONLY, 0).unwrap().write_all(b"x").unwrap()),
        ("truncate", |path| truncate(path, 5).unwrap()),
        ("open", |path| drop(open(path, O_WRONLY | O_TRUNC, 0).unwrap())),
        ("punch", |path| punch(&open(path, O_RDWR, 0).unwrap(), 0, 5000).unwrap()),
        ("chown", |path| chown(path, Some(1), None).unwrap()),
    ];
    for (name, change) in changes {
        let path = file(at, 0o777);
        set_xattr(&path, "security.capability", &value, 0).unwrap();
        assert_eq!(xattr(&path, "security.capability").unwrap(), value);
        change(&path);
        let left = xattr(&path, "security.capability");
        assert_eq!(errno(&left), libc::ENODATA, "{name} by root");
    }
    let path = file(at, 0o777);
    set_xattr(&path, "security.capability", &value, 0).unwrap();
    NOBODY.does(|| open(&path, O_WRONLY, 0).unwrap().write_all(b"x").unwrap());
    refused(libc::ENODATA, xattr(&path, "security.capability"));
}

fn directories_keep_theirs(at: &Path) {
    fs::create_dir(at.join("dir")).unwrap();
    fs::set_permissions(at.join("dir"), fs::Permissions::from_mode(0o6777)).unwrap();
    chown(at.join("dir"), Some(1), Some(1)).unwrap();
    NOBODY.does(|| fs::write(at.join("dir/file"), "x")).unwrap();
    assert_eq!(mode(&at.join("dir")), 0o6777);
}
