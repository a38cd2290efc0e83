//! Who uses a mount, as /proc tells: what fuser(1) says, without asking the mount anything.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::host::{self, MountEntry};

/// So many are named; the others are counted.
const NAMED: usize = 5;

/// A process that keeps a mount in use.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct User {
    /// Its name.
    pub name: String,
    /// Its id.
    pub pid: u32,
    /// What it has there.
    pub what: &'static str,
}

/// The processes that have something at or below a mount point, as far as they may be looked at, found within a limit.
/// Links are read and not followed: a daemon that hangs is no obstacle.
pub fn users(mountpoint: &Path, limit: Duration) -> Vec<User> {
    let end = Instant::now() + limit;
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let in_time = |_: &u32| Instant::now() < end;
    pids.take_while(in_time).filter_map(|pid| user(pid, mountpoint, end)).collect()
}

fn user(pid: u32, mountpoint: &Path, end: Instant) -> Option<User> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let is_there = |link: PathBuf| link.read_link().is_ok_and(|target| target.starts_with(mountpoint));
    let links = [("cwd", "current folder"), ("root", "root folder"), ("exe", "running program")];
    let what = links.into_iter().find(|(link, _)| is_there(process.join(link))).map(|(_, what)| what);
    let open = || {
        let mut files = process.join("fd").read_dir().ok()?.flatten().take_while(|_| Instant::now() < end);
        files.any(|file| is_there(file.path())).then_some("open file")
    };
    let mapped = || {
        let maps = std::fs::read(process.join("maps")).ok()?;
        let mut paths = maps.split(|byte| *byte == b'\n').filter_map(mapped_path);
        paths.any(|path| path.starts_with(mountpoint)).then_some("mapped file")
    };
    let what = what.or_else(open).or_else(mapped)?;
    let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
    Some(User { name: name.trim_end().to_owned(), pid, what })
}

/// The path of a line of /proc/PID/maps: what begins with a slash there is one.
fn mapped_path(line: &[u8]) -> Option<PathBuf> {
    let start = line.iter().position(|byte| *byte == b'/')?;
    Some(PathBuf::from(std::ffi::OsString::from_vec(line[start..].to_vec())))
}

/// Why a mount cannot be unmounted, and what helps, in a sentence.
pub fn sentence(mountpoint: &Path, users: &[User]) -> String {
    let shown = mountpoint.display();
    let below = mount_below(mountpoint).unwrap_or_default();
    let named: Vec<String> = users.iter().take(NAMED).map(ToString::to_string).collect();
    let more = match users.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    match (below, users) {
        (Some(below), _) => {
            format!("{shown} is in use by the mount at {}: unmount that first", below.mountpoint.display())
        }
        (None, []) => format!("{shown} is in use: close what is open there, and leave its folders"),
        (None, _) => format!(
            "{shown} is in use by {}{more}: close what is open there, and leave its folders",
            named.join(", ")
        ),
    }
}

/// The last mount below a path, which may be a mount point itself. Asks no file system.
pub fn mount_below(path: &Path) -> io::Result<Option<MountEntry>> {
    Ok(host::mounts()?.into_iter().rev().find(|mount| is_below(&mount.mountpoint, path)))
}

fn is_below(path: &Path, mountpoint: &Path) -> bool {
    path != mountpoint && path.starts_with(mountpoint)
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (process {}, {})", self.name, self.pid, self.what)
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn a_process_is_found_by_its_folder_and_by_what_it_has_open() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().canonicalize().unwrap();
        assert_eq!(users(&place, LIMIT), []);
        let mut child = Command::new("cat")
            .current_dir(&place)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let here = User { name: "cat".into(), pid: child.id(), what: "current folder" };
        // Until it runs its own program it has the name of this one.
        while users(&place, LIMIT) != [here.clone()] {
            std::thread::yield_now();
        }
        drop(child.stdin.take());
        child.wait().unwrap();
        let _open = std::fs::File::create(place.join("file")).unwrap();
        let found = users(&place, LIMIT);
        assert_eq!((found.len(), found[0].pid, found[0].what), (1, std::process::id(), "open file"));
        assert_eq!(users(&place, Duration::ZERO), []);
    }

    #[test]
    fn five_are_named_and_the_others_counted() {
        let user = |pid| User { name: "cat".into(), pid, what: "open file" };
        let users: Vec<User> = (1..=7).map(user).collect();
        let said = sentence(Path::new("/mnt/none"), &users);
        assert!(
            said.contains("by cat (process 1, open file), cat") && said.contains("5, open file) and 2 more:")
        );
        assert!(!sentence(Path::new("/mnt/none"), &users[..5]).contains("more"));
    }

    #[test]
    fn the_path_of_a_mapping_is_read() {
        let line = b"7f0000000000-7f0000001000 r-xp 00000000 00:62 7          /mnt/a b";
        assert_eq!(mapped_path(line).unwrap(), Path::new("/mnt/a b"));
        assert_eq!(mapped_path(b"7ffd0000-7ffd1000 rw-p 00000000 00:00 0    [stack]"), None);
    }
}
