//! chmod(2).

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::posix::{BIN, DAEMON, NOBODY, everywhere, refused, tick};

#[test]
fn chmod() {
    everywhere(cases!(
        every_mode_is_kept,
        chmod_moves_ctime_alone,
        only_the_owner_and_root_change_the_mode,
        set_group_id_is_for_members_of_the_group,
        what_is_open_stays_open,
        what_chmod_refuses,
    ));
}

fn set(path: &Path, mode: u32) -> std::io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn every_mode_is_kept(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    fs::create_dir(at.join("dir")).unwrap();
    for bits in (0..0o10000).step_by(0o123) {
        for name in ["file", "dir"] {
            set(&at.join(name), bits).unwrap();
            assert_eq!(mode(&at.join(name)), bits);
        }
    }
}

fn chmod_moves_ctime_alone(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    let before = fs::metadata(at.join("file")).unwrap();
    tick();
    set(&at.join("file"), 0o600).unwrap();
    let after = fs::metadata(at.join("file")).unwrap();
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
    assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
}

fn only_the_owner_and_root_change_the_mode(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    chown(at.join("file"), Some(NOBODY.uid), Some(DAEMON.gid)).unwrap();
    set(&at.join("file"), 0o666).unwrap();
    NOBODY.does(|| set(&at.join("file"), 0o660)).unwrap();
    refused(libc::EPERM, DAEMON.does(|| set(&at.join("file"), 0o666)));
    assert_eq!(mode(&at.join("file")), 0o660);
}

fn set_group_id_is_for_members_of_the_group(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    chown(at.join("file"), Some(NOBODY.uid), Some(DAEMON.gid)).unwrap();
    NOBODY.does(|| set(&at.join("file"), 0o2770)).unwrap();
    assert_eq!(mode(&at.join("file")), 0o770, "not for him");
    chown(at.join("file"), Some(BIN.uid), Some(DAEMON.gid)).unwrap();
    BIN.does(|| set(&at.join("file"), 0o6770)).unwrap();
    assert_eq!(mode(&at.join("file")), 0o6770, "by a further group");
}

fn what_is_open_stays_open(at: &Path) {
    fs::write(at.join("file"), "text").unwrap();
    chown(at.join("file"), Some(NOBODY.uid), None).unwrap();
    NOBODY.does(|| {
        let open = File::open(at.join("file")).unwrap();
        set(&at.join("file"), 0).unwrap();
        assert_eq!(std::io::read_to_string(open).unwrap(), "text");
        refused(libc::EACCES, File::open(at.join("file")));
    });
}

fn what_chmod_refuses(at: &Path) {
    fs::write(at.join("file"), "").unwrap();
    refused(libc::ENOENT, set(&at.join("none"), 0o644));
    refused(libc::ENOTDIR, set(&at.join("file/x"), 0o644));
}
