//! Which daemon serves which mount: one note per device and daemon, so that a daemon is found even while it does not
//! answer. A note is a hint; whoever reads it asks the daemon, and a daemon that has ended holds its state folder no
//! more.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::host::{self, MountEntry};

/// What is noted of a mount.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Note {
    /// The daemon's process.
    pub pid: u32,
    /// Where it has mounted the volume.
    pub mountpoint: PathBuf,
    /// Its state folder.
    pub state: PathBuf,
}

/// A note on the roster; taken off it when dropped.
#[derive(Debug)]
pub struct Noted(PathBuf);

impl Drop for Noted {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Note a mount of this process. A device has one mount as long as the kernel knows it, so an older note is void; a
/// daemon that has unmounted takes its own away a moment later, and none but its own: the next mount may have the device
/// by then.
///
/// # Errors
/// The folder cannot be written, or is another user's.
pub fn note(mount: &MountEntry, state: &Path) -> io::Result<Noted> {
    let (user, _) = host::user_and_group();
    let folder = folders(user).into_iter().find(|folder| folder.parent().is_some_and(Path::is_dir));
    note_in(&folder.ok_or(io::ErrorKind::NotFound)?, user, mount, state)
}

fn note_in(folder: &Path, user: u32, mount: &MountEntry, state: &Path) -> io::Result<Noted> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    check_owner(folder, user)?;
    let note =
        Note { pid: std::process::id(), mountpoint: mount.mountpoint.clone(), state: state.to_owned() };
    take_off_the_dead(folder);
    let path = folder.join(format!("{}-{}", mount.device, note.pid));
    host::write_durably(&path, &serde_json::to_vec(&note)?)?;
    Ok(Noted(path))
}

/// A killed daemon leaves its note behind. Its mount is known to be dead without one.
fn take_off_the_dead(folder: &Path) {
    for path in folder.read_dir().into_iter().flatten().flatten().map(|entry| entry.path()) {
        let note = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Note>(&text).ok());
        if note.is_some_and(|note| !Path::new(&format!("/proc/{}", note.pid)).exists()) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What is noted of a mount, `None` if nothing is.
///
/// # Errors
/// `PermissionDenied` if it is another user's.
pub fn find(mount: &MountEntry) -> io::Result<Option<Note>> {
    for folder in folders(mount.user) {
        if let Some(note) = find_in(&folder, mount)? {
            return Ok(Some(note));
        }
    }
    Ok(None)
}

fn find_in(folder: &Path, mount: &MountEntry) -> io::Result<Option<Note>> {
    let entries = match folder.read_dir() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    check_owner(folder, mount.user)?;
    let written = |path: &PathBuf| path.metadata().and_then(|file| file.modified()).ok();
    let notes = entries.flatten().map(|entry| entry.path()).filter(|path| is_of(path, &mount.device));
    let Some(newest) = notes.max_by_key(written) else { return Ok(None) };
    let text = host::read_if_there(&newest)?;
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
}

/// Whether a file is a whole note of a device.
fn is_of(path: &Path, device: &str) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let daemon = name.and_then(|name| name.strip_prefix(device)?.strip_prefix('-'));
    daemon.is_some_and(|pid| pid.parse::<u32>().is_ok())
}

/// Where a user's notes may lie, best first. Found by the user's number and not by XDG_RUNTIME_DIR, so that root and
/// other sessions of the same user look in the same place.
fn folders(user: u32) -> Vec<PathBuf> {
    match user {
        0 => vec!["/run/avidfs".into()],
        user => vec![format!("/run/user/{user}/avidfs").into(), format!("/tmp/avidfs-{user}").into()],
    }
}

/// Below /tmp anyone may have made the folder.
fn check_owner(folder: &Path, user: u32) -> io::Result<()> {
    let found = folder.symlink_metadata()?;
    if found.is_dir() && found.uid() == user && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{} is another user's", folder.display())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn some_mount() -> MountEntry {
        let (user, _) = host::user_and_group();
        let line = format!("36 35 0:98 / /mnt rw - fuse.avidfs avidfs:home rw,user_id={user}");
        host::mount_entry(line.as_bytes()).unwrap()
    }

    #[test]
    fn a_note_is_found_until_its_mount_ends() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, mount) = (folder.path().join("avidfs"), some_mount());
        assert_eq!(find_in(&folder, &mount).unwrap(), None);
        let noted = note_in(&folder, mount.user, &mount, Path::new("/state")).unwrap();
        let note = find_in(&folder, &mount).unwrap().unwrap();
        assert_eq!((note.pid, note.state.as_path()), (std::process::id(), Path::new("/state")));
        drop(noted);
        assert_eq!(find_in(&folder, &mount).unwrap(), None);
    }

    #[test]
    fn the_note_of_a_killed_daemon_goes_with_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let mount = some_mount();
        let dead = Note { pid: u32::MAX, mountpoint: "/mnt".into(), state: "/state".into() };
        let left = folder.path().join("0:1-4294967295");
        std::fs::write(&left, serde_json::to_vec(&dead).unwrap()).unwrap();
        let _noted = note_in(folder.path(), mount.user, &mount, Path::new("/state")).unwrap();
        assert!(!left.exists());
        assert!(find_in(folder.path(), &mount).unwrap().is_some());
    }

    #[test]
    fn a_daemon_that_ends_leaves_the_note_of_the_next_mount_of_its_device() {
        let folder = tempfile::tempdir().unwrap();
        let mount = some_mount();
        let ending = note_in(folder.path(), mount.user, &mount, Path::new("/old")).unwrap();
        let next = Note { pid: 1, mountpoint: "/mnt".into(), state: "/new".into() };
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(folder.path().join("0:98-1"), serde_json::to_vec(&next).unwrap()).unwrap();
        assert_eq!(find_in(folder.path(), &mount).unwrap().as_ref(), Some(&next), "the newest");
        std::fs::write(folder.path().join("0:98-2.new"), "half of").unwrap();
        std::fs::write(folder.path().join("0:981-2"), "another device's").unwrap();
        drop(ending);
        assert_eq!(find_in(folder.path(), &mount).unwrap(), Some(next));
    }

    #[test]
    fn a_folder_that_others_may_write_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, mount) = (folder.path().join("avidfs"), some_mount());
        let _noted = note_in(&folder, mount.user, &mount, Path::new("/state")).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(find_in(&folder, &mount).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
