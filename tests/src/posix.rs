//! What the cases of the POSIX suite share: each runs in a directory of its own, first on ext4, which is what it
//! claims to describe, and then on a mount.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::mount::Mount;
use crate::process::need_root;
use crate::scratch::scratch;

/// A case by its name; it is given an empty directory that everyone may search and root alone may change.
pub type Case = (&'static str, fn(&Path));

/// A user who owns nothing, in no group but his own.
pub const NOBODY: User = User { uid: 65534, gid: 65534, groups: &[] };
/// Another one.
pub const DAEMON: User = User { uid: 1, gid: 1, groups: &[] };
/// A third, who is in the group of the second besides.
pub const BIN: User = User { uid: 2, gid: 2, groups: &[1] };

/// Name the cases of a file: `cases!(a, b)` is `[("a", a), ("b", b)]`.
#[macro_export]
macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        &[$((stringify!($case), $case as fn(&std::path::Path))),*]
    };
}

/// Run cases on ext4, if that is what lies below TMPDIR, and on a mount. Fails with all those that failed.
pub fn everywhere(cases: &[Case]) {
    let folder = scratch();
    let reference = folder.path().join("ext4");
    fs::create_dir(&reference).expect("the folder can be written");
    let mut failed = Vec::new();
    if is_ext4(&reference) {
        failed.extend(run("ext4", &reference, cases));
    } else {
        eprintln!("no ext4 below TMPDIR: nothing checks what these cases expect");
    }
    failed.extend(run_mounted(cases));
    assert!(failed.is_empty(), "{} failed: {}", failed.len(), failed.join(", "));
}

/// Run cases on a mount alone: those that say in what it differs from ext4.
pub fn on_the_mount(cases: &[Case]) {
    let failed = run_mounted(cases);
    assert!(failed.is_empty(), "{} failed: {}", failed.len(), failed.join(", "));
}

fn run_mounted(cases: &[Case]) -> Vec<String> {
    let mount = Mount::embedded(&[]);
    let failed = run("the mount", &mount.root(), cases);
    if failed.is_empty() {
        // A reference that was counted wrongly keeps it busy.
        mount.unmount();
    }
    failed
}

/// `root` lies in a scratch folder of its own, which others may search from then on.
fn run(place: &str, root: &Path, cases: &[Case]) -> Vec<String> {
    need_root("the cases act as several users");
    // SAFETY: umask takes an integer and cannot fail.
    unsafe { libc::umask(0o022) };
    let searchable = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755));
    let folder = root.parent().expect("it lies in a scratch folder");
    assert_ne!(folder, std::env::temp_dir(), "what is not the test's own keeps its mode");
    searchable(root).and_then(|()| searchable(folder)).expect("root may");
    let mut failed = Vec::new();
    for (name, case) in cases {
        let folder = root.join(name);
        fs::create_dir(&folder).unwrap_or_else(|error| panic!("mkdir {}: {error}", folder.display()));
        if catch_unwind(AssertUnwindSafe(|| case(&folder))).is_err() {
            eprintln!("^ {name} on {place}");
            failed.push(format!("{name} on {place}"));
        }
    }
    failed
}

fn is_ext4(path: &Path) -> bool {
    let text = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    let mounts = text.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        Some((before.split(' ').nth(4)?.to_owned(), after.split(' ').next()?.to_owned()))
    });
    let covering = mounts.filter(|(place, _)| path.starts_with(place)).max_by_key(|(place, _)| place.len());
    covering.is_some_and(|(_, kind)| kind == "ext4")
}

/// Want an errno.
#[track_caller]
pub fn refused<T>(wanted: i32, result: io::Result<T>) {
    match result {
        Ok(_) => panic!("done, instead of {}", io::Error::from_raw_os_error(wanted)),
        Err(error) if error.raw_os_error() == Some(wanted) => {}
        Err(error) => panic!("{error} instead of {}", io::Error::from_raw_os_error(wanted)),
    }
}

/// Somebody other than root.
#[derive(Clone, Copy, Debug)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups.
    pub groups: &'static [u32],
}

impl User {
    /// Do something as this user, on a thread of its own: the kernel knows credentials by thread.
    pub fn does<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        on_a_thread(move || {
            let (uid, gid) = (self.uid, self.gid);
            // The C library would change all threads; the system calls change this one.
            // SAFETY: they take integers and a list of group ids with its length.
            let answers = unsafe {
                [
                    libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr()),
                    libc::syscall(libc::SYS_setresgid, gid, gid, gid),
                    libc::syscall(libc::SYS_setresuid, uid, uid, uid),
                ]
            };
            assert_eq!(answers, [0; 3], "root may become anybody");
            work()
        })
    }
}

/// Do something as another process would whose files are its own: fcntl(2) locks belong to a table of open files.
pub fn as_another_process<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    on_a_thread(move || {
        // SAFETY: it takes an integer; files opened before are open in both tables.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0, "a table of open files can be copied");
        let done = work();
        // The kernel would do it a moment after others see the thread end, and find the mount in use meanwhile.
        // SAFETY: what `work` opened it has closed; the rest is open in the other table, where it is used.
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
        done
    })
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Do something under another umask.
pub fn with_umask<T>(mask: u32, work: impl FnOnce() -> T) -> T {
    // SAFETY: umask takes an integer and cannot fail.
    let before = unsafe { libc::umask(mask) };
    let done = work();
    // SAFETY: as above.
    unsafe { libc::umask(before) };
    done
}

/// Let the clock that stamps files move on.
pub fn tick() {
    let now = || {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `now` has room for what it writes.
        unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &mut now) };
        (now.tv_sec, now.tv_nsec)
    };
    let before = now();
    while now() == before {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
