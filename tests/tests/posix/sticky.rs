//! The sticky bit of directories.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use avidfs_tests::cases;
use avidfs_tests::files::rename_with;
use avidfs_tests::posix::{BIN, DAEMON, NOBODY, everywhere, refused};

#[test]
fn sticky() {
    everywhere(cases!(names_are_taken_away_by_owners_alone, without_it_whoever_may_write_may_take_away));
}

fn shared(at: &Path, mode: u32) -> std::path::PathBuf {
    let dir = at.join("dir");
    fs::create_dir(&dir).unwrap();
    chown(&dir, Some(BIN.uid), None).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
    DAEMON.does(|| ["a", "b", "c"].iter().for_each(|name| fs::write(dir.join(name), "theirs").unwrap()));
    NOBODY.does(|| fs::write(dir.join("mine"), "mine")).unwrap();
    dir
}

fn names_are_taken_away_by_owners_alone(at: &Path) {
    let dir = shared(at, 0o1777);
    NOBODY.does(|| {
        refused(libc::EPERM, fs::remove_file(dir.join("a")));
        refused(libc::EPERM, fs::rename(dir.join("a"), dir.join("x")));
        refused(libc::EPERM, fs::rename(dir.join("mine"), dir.join("a")));
        let exchange = libc::RENAME_EXCHANGE;
        refused(libc::EPERM, rename_with(&dir.join("mine"), &dir.join("a"), exchange));
        fs::remove_file(dir.join("mine")).unwrap();
    });
    DAEMON.does(|| fs::remove_file(dir.join("a"))).unwrap();
    BIN.does(|| fs::remove_file(dir.join("b"))).unwrap();
    fs::remove_file(dir.join("c")).unwrap();
}

fn without_it_whoever_may_write_may_take_away(at: &Path) {
    let dir = shared(at, 0o777);
    NOBODY.does(|| {
        fs::remove_file(dir.join("a")).unwrap();
        fs::rename(dir.join("mine"), dir.join("b")).unwrap();
    });
}
