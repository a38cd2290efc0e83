//! The commands about states of a volume that are kept. The mount daemon makes what is brought back, under a name that
//! nobody uses; it is put in its place from here, through the mount, so that the kernel knows of every name that changes.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use avidfs::busy;
use avidfs::cli::{SnapshotCommand, VersionsArgs};
use avidfs::control::Request;
use avidfs::host::{self, MountEntry, reason};
use avidfs::report;
use avidfs::umount;
use avidfs::volume::{RestoreReport, SnapshotReport, VersionReport};

use super::{daemon, garbled, pretty, print};
use crate::{Failure, host_refusal, surroundings};

pub fn snapshot(command: &SnapshotCommand) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Create { name, mountpoint } => create(name, mountpoint),
        SnapshotCommand::List { mountpoint, json } => list(mountpoint, *json),
        SnapshotCommand::Delete { name, mountpoint } => {
            daemon(&mount_named(mountpoint)?)?
                .ask::<()>(Request::DeleteSnapshot { name: name.clone() }, None)?;
            Ok(())
        }
        SnapshotCommand::Restore { name, path, to } => restore(name, path, to.as_deref()),
    }
}

fn mount_named(mountpoint: &Path) -> Result<MountEntry, Failure> {
    Ok(umount::find(&surroundings()?.current_dir.join(mountpoint))?)
}

fn create(name: &str, mountpoint: &Path) -> Result<(), Failure> {
    let mount = mount_named(mountpoint)?;
    // What programs wrote through a mapping may still be the kernel's.
    let shown = mount.mountpoint.display().to_string();
    host::sync_file_system(&mount.mountpoint).map_err(|error| host_refusal(&shown, &error))?;
    let taken: SnapshotReport = daemon(&mount)?.ask(Request::TakeSnapshot { name: name.to_owned() }, None)?;
    print(&format!("snapshot {} is in the pool\n", taken.name))
}

fn list(mountpoint: &Path, json: bool) -> Result<(), Failure> {
    let value: serde_json::Value = daemon(&mount_named(mountpoint)?)?.ask(Request::Snapshots, None)?;
    if json {
        return print(&pretty(&value));
    }
    let snapshots: Vec<SnapshotReport> = serde_json::from_value(value).map_err(|error| garbled(&error))?;
    print(&report::snapshots(&snapshots))
}

pub fn versions(args: &VersionsArgs) -> Result<(), Failure> {
    let place = place_of(&args.path)?;
    let request = Request::Versions { path: place.inside.as_os_str().as_bytes().to_vec() };
    let value: serde_json::Value = daemon(&place.mount)?.ask(request, None)?;
    if args.json {
        return print(&pretty(&value));
    }
    let versions: Vec<VersionReport> = serde_json::from_value(value).map_err(|error| garbled(&error))?;
    if versions.is_empty() {
        let shown = args.path.display();
        return Err(Failure::Refused(format!("{shown} is in no snapshot, and not there now")));
    }
    print(&report::versions(&versions))
}

/// A path on one of our mounts.
struct Place {
    mount: MountEntry,
    /// From the root of the volume; empty for the root.
    inside: PathBuf,
    /// From the root of this host.
    path: PathBuf,
}

/// Where a path lies, also when it does not exist any more.
fn place_of(path: &Path) -> Result<Place, Failure> {
    let shown = path.display().to_string();
    let absolute = surroundings()?.current_dir.join(path);
    // The last name is not followed: it may be a symbolic link that is asked for.
    let resolved = match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => host::resolve(parent).join(name),
        _ => host::resolve(&absolute),
    };
    let there = resolved.ancestors().find(|ancestor| ancestor.symlink_metadata().is_ok());
    let there = there.unwrap_or(Path::new("/"));
    let mount = host::mount_of(there).map_err(|error| host_refusal(&shown, &error))?;
    let mount = mount.filter(MountEntry::is_ours);
    let mount = mount.ok_or_else(|| Failure::Refused(format!("{shown} is not on an avidfs mount")))?;
    let inside = mount.inside(&resolved).ok_or_else(|| {
        let mountpoint = mount.mountpoint.display();
        Failure::Refused(format!(
            "where {shown} lies in the volume cannot be told from the mount at {mountpoint}"
        ))
    })?;
    Ok(Place { mount, inside, path: resolved })
}

fn restore(snapshot: &str, path: &Path, to: Option<&Path>) -> Result<(), Failure> {
    let from = place_of(path)?;
    let to = to.map(|to| target(&from, to)).transpose()?;
    let place = to.as_ref().unwrap_or(&from);
    let target = &place.path;
    let all = place.inside.as_os_str().is_empty();
    if !all && *target == place.mount.mountpoint {
        return Err(Failure::Refused(format!(
            "{} is where {} of the volume is bound: restore that where the whole volume is mounted",
            target.display(),
            place.inside.display()
        )));
    }
    let below = busy::mount_below(target).map_err(|error| host_refusal("/proc/self/mountinfo", &error))?;
    if let Some(below) = below {
        return Err(Failure::Refused(format!(
            "{} is not replaced while {} is mounted below it: unmount that first",
            target.display(),
            below.mountpoint.display()
        )));
    }
    let folder = if all { target } else { target.parent().unwrap_or(target) };
    let directory =
        fs::metadata(folder).map_err(|error| host_refusal(&folder.display().to_string(), &error))?;
    let name = format!(".avidfs-restore-{}", std::process::id());
    let made = folder.join(&name);
    let request = Request::Restore {
        snapshot: snapshot.to_owned(),
        path: from.inside.as_os_str().as_bytes().to_vec(),
        directory: directory.ino(),
        name: name.into_bytes(),
    };
    let outcome = daemon(&from.mount)?.ask::<RestoreReport>(request, None);
    let report = match outcome {
        Ok(report) => report,
        Err(refusal) => {
            let _ = host::remove_all(&made);
            return Err(refusal.into());
        }
    };
    let put = if all { put_everything(&made, target) } else { put(&made, target) };
    put.map_err(|stuck| {
        let (shown, made) = (target.display(), made.display());
        Failure::Refused(match stuck {
            Stuck::Putting(error) => format!(
                "{shown} could not be replaced, what was brought back is at {made}: {}",
                reason(&error)
            ),
            Stuck::Removing(error) => {
                format!(
                    "{shown} is replaced, but what was there before is not all removed: {}",
                    reason(&error)
                )
            }
        })
    })?;
    print(&report::restored(&target.display().to_string(), snapshot, &report))
}

fn target(from: &Place, to: &Path) -> Result<Place, Failure> {
    let place = place_of(to)?;
    let shown = to.display();
    if place.mount.id != from.mount.id {
        return Err(Failure::Refused(format!("{shown} is not on the same mount")));
    }
    if place.path.symlink_metadata().is_ok() {
        return Err(Failure::Refused(format!("{shown} exists already")));
    }
    Ok(place)
}

/// Where putting something in its place ended early.
enum Stuck {
    /// Not all of it is there.
    Putting(io::Error),
    /// All of it is, and some of what was there before.
    Removing(io::Error),
}

/// Put what was made in its place, all at once, and remove what was there.
fn put(made: &Path, target: &Path) -> Result<(), Stuck> {
    if target.symlink_metadata().is_err() {
        return fs::rename(made, target).map_err(Stuck::Putting);
    }
    host::exchange(made, target).map_err(Stuck::Putting)?;
    host::remove_all(made).map_err(Stuck::Removing)
}

/// Put everything that was made into the root, one name after the other, and remove what was not there then.
fn put_everything(made: &Path, root: &Path) -> Result<(), Stuck> {
    let left = put_names(made, root).map_err(Stuck::Putting)?;
    for path in left {
        host::remove_all(&path).map_err(Stuck::Removing)?;
    }
    take_on_attributes(made, root).map_err(Stuck::Putting)?;
    host::remove_all(made).map_err(Stuck::Removing)
}

/// Put every name that was made into the root; returns what else is there.
fn put_names(made: &Path, root: &Path) -> io::Result<Vec<PathBuf>> {
    let names = |folder: &Path| -> io::Result<Vec<_>> {
        folder.read_dir()?.map(|entry| entry.map(|entry| entry.file_name())).collect()
    };
    let (then, now) = (names(made)?, names(root)?);
    for name in &then {
        match now.contains(name) {
            true => host::exchange(&made.join(name), &root.join(name))?,
            false => fs::rename(made.join(name), root.join(name))?,
        }
    }
    let left = now.iter().filter(|name| !then.contains(name) && made.file_name() != Some(name));
    Ok(left.map(|name| root.join(name)).collect())
}

fn take_on_attributes(made: &Path, root: &Path) -> io::Result<()> {
    let attributes = fs::metadata(made)?;
    std::os::unix::fs::chown(root, Some(attributes.uid()), Some(attributes.gid()))?;
    fs::set_permissions(root, attributes.permissions())
}
