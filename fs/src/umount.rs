//! `avidfs umount`, seen from the one who asks; what the daemon does then is daemon.rs.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::control::{Daemon, Ending, Presence, Request};
use crate::host::{self, MountEntry, Process, reason};
use crate::state::Refusal;

/// A daemon that lives answers a ping at once.
const PING_LIMIT: Duration = Duration::from_secs(5);
/// From its last word to its end a daemon only closes what it has open.
const END_LIMIT: Duration = Duration::from_secs(30);

/// How an unmounted mount was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unmounted {
    /// Its daemon stored everything and has ended.
    Clean,
    /// Its daemon had ended before; it is detached.
    Dead,
}

/// Store everything, unmount, and return when the mount daemon has ended. A dead mount is detached.
///
/// # Errors
/// It is not ours, is in use, or not everything could be stored; the sentence says which.
pub fn umount(mountpoint: &Path) -> Result<Unmounted, Refusal> {
    let mount = find(mountpoint)?;
    match daemon_of(&mount)? {
        Some(daemon) => end(daemon),
        None => detach(&mount),
    }
}

/// The avidfs mount at exactly this place.
pub fn find(mountpoint: &Path) -> Result<MountEntry, Refusal> {
    let shown = mountpoint.display();
    // A mount is looked for by name first, so that no dead one is asked; then where the name leads.
    let by_name = host::mount_at(mountpoint);
    let mount = match by_name {
        Ok(None) => mountpoint.canonicalize().and_then(|path| host::mount_at(&path)),
        found => found,
    };
    let mount = mount.map_err(|error| Refusal(format!("{shown}: {}", reason(&error))))?;
    match mount {
        Some(mount) if mount.is_ours() => Ok(mount),
        Some(mount) => Err(Refusal(format!("{shown} is a mount of {}, not of avidfs", mount.kind))),
        None => Err(Refusal(format!("nothing is mounted at {shown}"))),
    }
}

/// The daemon of a mount, `None` if it has ended.
pub fn daemon_of(mount: &MountEntry) -> Result<Option<Daemon>, Refusal> {
    let shown = mount.mountpoint.display();
    let mut daemon = match Daemon::connect(&mount.source) {
        Ok(daemon) => daemon,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(Refusal(format!(
                "the mount at {shown} is another user's: only that user and root may ask it"
            )));
        }
        Err(error) => {
            return Err(Refusal(format!("the daemon of {shown} cannot be asked: {}", reason(&error))));
        }
    };
    let presence: Presence = daemon.ask(Request::Ping, Some(PING_LIMIT))?;
    // The state folder may be mounted elsewhere by now, and this mount be the dead one it left.
    Ok((presence.mountpoint == mount.mountpoint).then_some(daemon))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory
    )
}

fn end(mut daemon: Daemon) -> Result<Unmounted, Refusal> {
    let pid = daemon.pid();
    let process =
        Process::open(pid).map_err(|error| Refusal(format!("process {pid}: {}", reason(&error))))?;
    let ending: Ending = daemon.ask(Request::Umount, None)?;
    match process.wait(END_LIMIT) {
        Ok(true) => {}
        Ok(false) => {
            return Err(Refusal(format!("unmounted, but the mount daemon (process {pid}) does not end")));
        }
        Err(error) => return Err(Refusal(format!("process {pid}: {}", reason(&error)))),
    }
    match ending.unsaved {
        None => Ok(Unmounted::Clean),
        Some(sentence) => Err(Refusal(format!("unmounted, but {sentence}"))),
    }
}

fn detach(mount: &MountEntry) -> Result<Unmounted, Refusal> {
    host::unmount(&mount.mountpoint, true).map_err(|error| {
        Refusal(format!("{} cannot be detached: {}", mount.mountpoint.display(), reason(&error)))
    })?;
    Ok(Unmounted::Dead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_avidfs_are_unmounted() {
        assert_eq!(umount(Path::new("/proc")).unwrap_err().0, "/proc is a mount of proc, not of avidfs");
        let folder = tempfile::tempdir().unwrap();
        let sentence = umount(folder.path()).unwrap_err().0;
        assert!(sentence.starts_with("nothing is mounted at "), "{sentence}");
        assert!(umount(&folder.path().join("none")).unwrap_err().0.ends_with("no such file or directory"));
    }
}
