//! Temporary folders that leave nothing behind: not even the dead mounts of a test that was killed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;

use tempfile::TempDir;

const PREFIX: &str = "avidfs-tests-";

/// A new empty folder below TMPDIR, removed when dropped.
pub fn scratch() -> TempDir {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(sweep);
    let prefix = format!("{PREFIX}{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir().expect("a temporary folder can be made")
}

/// Take away what test processes left that were killed.
fn sweep() {
    for mountpoint in mounts_below(&std::env::temp_dir()) {
        if owner(&mountpoint).is_some_and(is_gone) {
            detach(&mountpoint);
        }
    }
    let entries = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if owner(&path).is_some_and(is_gone) {
            let _ = std::fs::remove_dir_all(&path);
        }
    }
}

/// The test process in whose folder this lies.
fn owner(path: &Path) -> Option<u32> {
    let below = path.strip_prefix(std::env::temp_dir()).ok()?;
    let first = below.components().next()?.as_os_str().to_str()?;
    first.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// All mounts at or below a folder, the last one first; asks no file system.
pub fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let mut found: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|path| path.starts_with(folder))
        .collect();
    found.reverse();
    found
}

/// Whether something is mounted at exactly this place.
pub fn is_mounted(mountpoint: &Path) -> bool {
    mounts_below(mountpoint).iter().any(|path| path == mountpoint)
}

/// Take a mount away, in use or dead.
pub fn detach(mountpoint: &Path) {
    let lazily = |program: &str, flag: &str| {
        Command::new(program).arg(flag).arg(mountpoint).output().is_ok_and(|output| output.status.success())
    };
    let _ = lazily("umount", "-l") || lazily("fusermount3", "-uz");
}
