//! Which daemon serves which mount: one note per device, so that a daemon is found even while it does not answer.
//! A note is a hint; whoever reads it asks the daemon, and a daemon that has ended holds its state folder no more.

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

/// Note a mount of this process. A device has one mount as long as the kernel knows it, so an older note is void.
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
    let path = folder.join(&mount.device);
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
    let Some(text) = host::read_if_there(&folder.join(&mount.device))? else { return Ok(None) };
    check_owner(folder, mount.user)?;
    Ok(serde_json::from_str(&text).ok())
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
        std::fs::write(folder.path().join("0:1"), serde_json::to_vec(&dead).unwrap()).unwrap();
        let _noted = note_in(folder.path(), mount.user, &mount, Path::new("/state")).unwrap();
        assert!(!folder.path().join("0:1").exists() && folder.path().join("0:98").exists());
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
