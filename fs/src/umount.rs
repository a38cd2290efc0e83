//! `avidfs umount`, seen from the one who asks; what the daemon does then is daemon.rs.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::asking::{self, Question};
use crate::control::{Daemon, Ending, Presence, Request};
use crate::host::{self, MountEntry, Process, reason};
use crate::roster::{self, Note};
use crate::state::Refusal;

/// A daemon that lives answers a ping at once.
const PING_LIMIT: Duration = Duration::from_secs(5);
/// From its last word to its end a daemon only closes what it has open.
const END_LIMIT: Duration = Duration::from_secs(30);

/// After which a daemon whose mount is taken from it by force hangs, with requests that the kernel waits for.
const FORCE_LIMIT: Duration = Duration::from_secs(10);
/// In which an unmounted daemon that nobody asked has stored everything, or put it into the backlog.
const STORE_LIMIT: Duration = Duration::from_secs(120);

/// What the extended attribute of a mount's root tells.
#[derive(Deserialize)]
struct Told {
    socket: PathBuf,
    pid: u32,
}

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
    match presence(&mount)? {
        Some((daemon, presence)) if mount.is_whole() && presence.mountpoint == mount.mountpoint => {
            end(daemon)
        }
        // Bound or moved here: the daemon would unmount another place.
        Some((daemon, _)) => end_here(&mount, &daemon, |place| host::unmount(place, false)),
        None => detach(&mount),
    }
}

/// Unmount by force: no daemon is asked, and what it has not yet been given is lost. A daemon that lives stores what
/// it has; returns when it has ended.
///
/// # Errors
/// It is not ours, or the daemon does not end.
pub fn umount_by_force(mountpoint: &Path) -> Result<Unmounted, Refusal> {
    let mount = find(mountpoint)?;
    match connect(&mount)? {
        Some(daemon) => {
            let force = |place: &Path| asking::ask(&Question::Force, place, FORCE_LIMIT).map(drop);
            end_here(&mount, &daemon, force).map_err(|refusal| match process_of(&daemon) {
                Ok(_) => Refusal(format!("{refusal}; its daemon is process {}", daemon.pid())),
                Err(_) => refusal,
            })
        }
        None => detach(&mount),
    }
}

/// Detach a mount from the tree of names at once; its daemon stores everything when nobody uses it any more.
///
/// # Errors
/// It is not ours, or the kernel refuses.
pub fn umount_lazily(mountpoint: &Path) -> Result<(), Refusal> {
    detach(&find(mountpoint)?).map(drop)
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
    Ok(presence(mount)?.map(|(daemon, _)| daemon))
}

fn presence(mount: &MountEntry) -> Result<Option<(Daemon, Presence)>, Refusal> {
    let Some(mut daemon) = connect(mount)? else { return Ok(None) };
    let presence = daemon.ask(Request::Ping, Some(PING_LIMIT))?;
    Ok(Some((daemon, presence)))
}

/// The daemon of a mount, whether it answers or not.
fn connect(mount: &MountEntry) -> Result<Option<Daemon>, Refusal> {
    let shown = mount.mountpoint.display();
    let refused = |error: &io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            Refusal(format!("the mount at {shown} is another user's: only that user and root may ask it"))
        }
        _ => Refusal(format!("the daemon of {shown} cannot be asked: {}", reason(error))),
    };
    let gone_is_none = |asked: io::Result<Option<Daemon>>| match asked {
        Err(error) if is_gone(&error) => Ok(None),
        asked => asked.map_err(|error| refused(&error)),
    };
    if let Some(note) = roster::find(mount).map_err(|error| refused(&error))?
        && let Some(daemon) = gone_is_none(connect_to(&note))?
    {
        return Ok(Some(daemon));
    }
    // A mount is seen before it is on the roster, and its number may have been that of a dead one, whose note is there.
    gone_is_none(told(mount).and_then(|note| connect_to(&note)))
}

/// The daemon of a note. The state folder may be mounted elsewhere by now, and the mount be the dead one it left.
fn connect_to(note: &Note) -> io::Result<Option<Daemon>> {
    let daemon = Daemon::connect(&note.state)?;
    Ok((daemon.pid() == note.pid).then_some(daemon))
}

/// What a mount that is on no roster tells of itself.
fn told(mount: &MountEntry) -> io::Result<Note> {
    // The root of the volume tells it, which a bound part does not show.
    let is_root = |other: &MountEntry| other.device == mount.device && other.is_whole();
    let place = match mount.is_whole() {
        true => mount.mountpoint.clone(),
        false => host::mounts()?.into_iter().find(is_root).ok_or(io::ErrorKind::NotFound)?.mountpoint,
    };
    let told = asking::ask(&Question::Itself, &place, PING_LIMIT)?;
    let told: Told = serde_json::from_slice(&told)?;
    let state = told.socket.parent().unwrap_or(Path::new("/")).to_owned();
    Ok(Note { pid: told.pid, mountpoint: mount.mountpoint.clone(), state })
}

fn is_gone(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused, io::ErrorKind::NotADirectory];
    kinds.contains(&error.kind()) || host::says_dead(error)
}

fn end(mut daemon: Daemon) -> Result<Unmounted, Refusal> {
    let process = process_of(&daemon)?;
    let ending: Ending = daemon.ask(Request::Umount, None)?;
    wait_for_end(&daemon, &process, END_LIMIT)?;
    match ending.unsaved {
        None => Ok(Unmounted::Clean),
        Some(sentence) => Err(Refusal(format!("unmounted, but {sentence}"))),
    }
}

/// Unmount one place; if it was the last one, the daemon stores everything of its own accord, and is waited for.
fn end_here(
    mount: &MountEntry,
    daemon: &Daemon,
    unmount: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<Unmounted, Refusal> {
    let place = &mount.mountpoint;
    let process = process_of(daemon)?;
    unmount(place)
        .map_err(|error| Refusal(format!("{} cannot be unmounted: {}", place.display(), reason(&error))))?;
    let mounts = host::mounts().map_err(|error| Refusal(reason(&error)))?;
    if mounts.iter().all(|other| other.device != mount.device) {
        wait_for_end(daemon, &process, STORE_LIMIT)?;
    }
    Ok(Unmounted::Clean)
}

fn process_of(daemon: &Daemon) -> Result<Process, Refusal> {
    let pid = daemon.pid();
    Process::open(pid).map_err(|error| Refusal(format!("process {pid}: {}", reason(&error))))
}

fn wait_for_end(daemon: &Daemon, process: &Process, limit: Duration) -> Result<(), Refusal> {
    let pid = daemon.pid();
    match process.wait(limit) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Refusal(format!("unmounted, but the mount daemon (process {pid}) does not end"))),
        Err(error) => Err(Refusal(format!("process {pid}: {}", reason(&error)))),
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
