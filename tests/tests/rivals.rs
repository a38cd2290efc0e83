//! Two daemons that both believe they own the volume: one is the writer, and nothing of the other's is ever seen.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use avidfs_tests::cluster::Cluster;
use avidfs_tests::files::errno;
use avidfs_tests::mount::{Mount, said};
use avidfs_tests::process::{self, need_program};
use avidfs_tests::{data, eventually};

const MIB: u64 = 1 << 20;
/// Nothing is sent off that was not asked for, and what cannot succeed ends soon.
const RETICENT: &[&str] = &["--cache-disk", "0", "--dirty-interval", "1h", "--io-timeout", "5s"];
const TAKING_OVER: &[&str] = &["--cache-disk", "0", "--io-timeout", "5s", "--take-over"];
/// A fenced daemon learns of it when it asks a node for anything, and it renews its lease every 3 s.
const FENCING: Duration = Duration::from_secs(20);

fn sync_root(mount: &Mount) -> io::Result<()> {
    File::open(mount.root())?.sync_all()
}

/// Files that the first of the two had acknowledged.
fn written_by_the_first(mount: &Mount) {
    data::keep(&mount.path("kept"), 1, 5 * MIB).unwrap();
    data::keep(&mount.path("changed"), 2, 3 * MIB).unwrap();
    data::keep(&mount.path("deleted"), 3, 2 * MIB).unwrap();
    data::keep(&mount.path("renamed"), 4, MIB).unwrap();
    fs::create_dir(mount.path("folder")).unwrap();
    sync_root(mount).unwrap();
}

fn changed_by_the_second(mount: &Mount) {
    data::check(&mount.path("kept"), 1, 5 * MIB);
    data::keep(&mount.path("new"), 10, 6 * MIB).unwrap();
    data::keep(&mount.path("changed"), 11, 4 * MIB).unwrap();
    fs::remove_file(mount.path("deleted")).unwrap();
    fs::rename(mount.path("renamed"), mount.path("folder/moved")).unwrap();
    sync_root(mount).unwrap();
}

/// The second's state of the volume, and not a name more.
fn is_as_the_second_left_it(mount: &Mount) {
    let mut names: Vec<_> = fs::read_dir(mount.root()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["changed", "folder", "kept", "new"]);
    data::check(&mount.path("kept"), 1, 5 * MIB);
    data::check(&mount.path("new"), 10, 6 * MIB);
    data::check(&mount.path("changed"), 11, 4 * MIB);
    data::check(&mount.path("folder/moved"), 4, MIB);
    assert_eq!(fs::read_dir(mount.path("folder")).unwrap().count(), 1);
}

/// A process that has a file of the first open, with bytes in it that were acknowledged to nobody. Not this one: every
/// program it starts would close the file, and wait for a daemon that is stopped.
struct Holder {
    child: Child,
    told: BufReader<ChildStdout>,
}

const HOLDER: &str = "
import os, sys
file = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(file, b'x' * 300000, 1000)
print('dirty', flush=True)
for line in sys.stdin:
    try:
        os.pwrite(file, b'by the first', 0)
        os.fsync(file)
        print(0, flush=True)
    except OSError as error:
        print(error.errno, flush=True)
";

impl Holder {
    fn of(path: &Path) -> Holder {
        need_program("python3");
        let mut command = Command::new("python3");
        command.args(["-c", HOLDER]).arg(path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let told = BufReader::new(child.stdout.take().unwrap());
        let mut holder = Holder { child, told };
        assert_eq!(holder.line(), "dirty");
        holder
    }

    /// Let it write and fsync; the errno.
    fn write(&mut self) -> i32 {
        self.child.stdin.as_ref().unwrap().write_all(b"\n").unwrap();
        self.line().parse().unwrap()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.told.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program tries on a mount that has lost the volume: all it needs are names that are there.
struct Attempt<'a> {
    rename: (&'a str, &'a str),
    remove: &'a str,
    create: &'a str,
}

const BEFORE_IT_KNOWS: Attempt = Attempt { rename: ("kept", "taken"), remove: "deleted", create: "late" };
const ONCE_IT_KNOWS: Attempt = Attempt { rename: ("taken", "kept"), remove: "renamed", create: "later" };

impl Attempt<'_> {
    /// Each is brought to the nodes; the first that is not refused is returned, with its errno.
    fn goes_through(&self, first: &Mount, holder: &mut Holder) -> Option<(&'static str, i32)> {
        // What no node is asked for comes first: the first fsync tells the daemon that it lost the volume.
        let renamed = fs::rename(first.path(self.rename.0), first.path(self.rename.1));
        let removed = fs::remove_file(first.path(self.remove));
        let changed = OpenOptions::new().write(true).open(first.path("changed"));
        let changed =
            changed.and_then(|file| file.write_all_at(&[7; 5000], 100).and_then(|()| file.sync_all()));
        let created = data::keep(&first.path(self.create), 9, 3 * MIB);
        let all = [
            ("an open file", holder.write()),
            ("a file opened now", errno(&changed)),
            ("a new file", errno(&created)),
            ("a rename", errno(&renamed.and_then(|()| sync_root(first)))),
            ("a removal", errno(&removed.and_then(|()| sync_root(first)))),
        ];
        all.into_iter().find(|(_, number)| !matches!(*number, libc::EROFS | libc::EIO))
    }
}

fn says_it_is_fenced(first: &Mount) {
    eventually(FENCING, "the first refuses every change", || {
        errno(&fs::write(first.path("another"), "x")) == libc::EROFS
    });
    eventually(FENCING, "its status says why", || {
        let problem = &first.status()["journal"]["problem"];
        problem.as_str().is_some_and(|problem| problem.contains("read-only"))
    });
    let log = first.log();
    assert!(log.contains("the lease on the volume is lost") || log.contains("is read-only"), "{log}");
}

/// A mount on a state folder of its own, made from the pool.
fn recovered(cluster: &Cluster, key: &str, options: &[&str]) -> Mount {
    let mount = Mount::prepared(Some(cluster.peers()), options);
    mount.recover(key);
    mount
}

fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

#[test]
fn a_daemon_that_was_paused_and_replaced_changes_nothing_when_it_goes_on() {
    let cluster = Cluster::start(5);
    let first = Mount::new(&cluster, RETICENT);
    written_by_the_first(&first);
    let mut holder = Holder::of(&first.path("kept"));
    let key = first.key();
    first.signal(libc::SIGSTOP);

    let mut second = recovered(&cluster, &key, &["--cache-disk", "0"]);
    let refused = second.try_mount().unwrap_err();
    let sentence = &refused.sentence;
    assert!(sentence.contains(&format!("is mounted on {}", host_name())), "{sentence}");
    assert!(sentence.contains("--take-over"), "{sentence}");
    second.set_options(TAKING_OVER);
    second.mount();
    changed_by_the_second(&second);

    first.signal(libc::SIGCONT);
    assert_eq!(BEFORE_IT_KNOWS.goes_through(&first, &mut holder), None);
    says_it_is_fenced(&first);
    assert_eq!(ONCE_IT_KNOWS.goes_through(&first, &mut holder), None);
    is_as_the_second_left_it(&second);
    second.remount();
    is_as_the_second_left_it(&second);

    drop(holder);
    let unmounted = first.try_unmount();
    assert!(!unmounted.status.success(), "{}", said(&unmounted));
    assert!(said(&unmounted).contains("wait in the backlog"), "{}", said(&unmounted));
    let backlog = fs::read_dir(first.state().join("backlog")).unwrap().count();
    assert!(backlog > 0, "the bytes that were dirty are on the first's disk");

    second.unmount();
    let third = recovered(&cluster, &key, RETICENT);
    third.mount();
    is_as_the_second_left_it(&third);
    third.unmount();
    // Its folder has changes that never reached the pool: it is not served, and nothing in it is touched.
    let sentence = first.try_mount().unwrap_err().sentence;
    assert!(sentence.contains("move this state folder away, and recover into a new one"), "{sentence}");
    assert_eq!(fs::read_dir(first.state().join("backlog")).unwrap().count(), backlog);
    third.mount();
    is_as_the_second_left_it(&third);
    third.unmount();
}

#[test]
fn a_fenced_daemon_that_changed_nothing_since_catches_up_at_its_next_mount() {
    let cluster = Cluster::start(5);
    let first = Mount::new(&cluster, RETICENT);
    written_by_the_first(&first);
    let key = first.key();
    first.signal(libc::SIGSTOP);
    let second = recovered(&cluster, &key, TAKING_OVER);
    second.mount();
    changed_by_the_second(&second);
    second.unmount();
    first.signal(libc::SIGCONT);
    first.kill();
    first.mount();
    is_as_the_second_left_it(&first);
    data::keep(&first.path("again"), 5, MIB).unwrap();
    first.remount();
    data::check(&first.path("again"), 5, MIB);
    first.unmount();
}

#[test]
fn what_a_fenced_daemon_kept_is_not_laid_over_what_others_wrote_since() {
    let cluster = Cluster::start(5);
    let first = Mount::new(&cluster, RETICENT);
    written_by_the_first(&first);
    let key = first.key();
    let holders = ["changed", "deleted"].map(|name| Holder::of(&first.path(name)));
    first.signal(libc::SIGSTOP);
    let second = recovered(&cluster, &key, TAKING_OVER);
    second.mount();
    changed_by_the_second(&second);
    first.signal(libc::SIGCONT);
    drop(holders);
    let unmounted = first.try_unmount();
    assert!(said(&unmounted).contains("wait in the backlog"), "{}", said(&unmounted));
    second.unmount();
    match first.try_mount() {
        Ok(()) => {
            is_as_the_second_left_it(&first);
            first.unmount();
        }
        Err(refused) => assert!(refused.sentence.contains("written elsewhere"), "{}", refused.sentence),
    }
    second.mount();
    is_as_the_second_left_it(&second);
    second.unmount();
}

#[test]
fn a_backlog_is_not_laid_over_what_another_host_wrote_since() {
    let cluster = Cluster::start(5);
    let first = Mount::new(&cluster, RETICENT);
    written_by_the_first(&first);
    let key = first.key();
    first.remount();
    (0..3).for_each(|node| cluster.kill(node));
    let changed = OpenOptions::new().write(true).open(first.path("changed")).unwrap();
    changed.write_all_at(&[7; 300_000], 1000).unwrap();
    drop(changed);
    let unmounted = first.try_unmount();
    assert!(said(&unmounted).contains("wait in the backlog"), "{}", said(&unmounted));
    (0..3).for_each(|node| cluster.restart(node));
    let second = recovered(&cluster, &key, TAKING_OVER);
    second.mount();
    changed_by_the_second(&second);
    second.unmount();
    let sentence = first.try_mount().unwrap_err().sentence;
    let backlog = first.state().join("backlog");
    assert!(
        sentence.contains(&format!("wait in {}: move that folder away", backlog.display())),
        "{sentence}"
    );
    fs::rename(&backlog, first.state().join("kept aside")).unwrap();
    first.mount();
    is_as_the_second_left_it(&first);
    first.unmount();
}

#[test]
fn a_copied_state_folder_is_kept_out_and_fences_the_original_when_it_takes_over() {
    let cluster = Cluster::start(5);
    let first = Mount::new(&cluster, RETICENT);
    written_by_the_first(&first);
    let mut second = Mount::prepared(Some(cluster.peers()), &["--cache-disk", "0", "--io-timeout", "5s"]);
    // As an image of the host's disk would have it, taken while it runs.
    process::run(Command::new("cp").arg("-a").arg(first.state()).arg(second.state()));
    let mut holder = Holder::of(&first.path("kept"));

    let sentence = second.try_mount().unwrap_err().sentence;
    assert!(sentence.contains("is mounted on ") && sentence.contains("--take-over"), "{sentence}");
    second.set_options(TAKING_OVER);
    second.mount();
    changed_by_the_second(&second);
    assert_eq!(BEFORE_IT_KNOWS.goes_through(&first, &mut holder), None);
    says_it_is_fenced(&first);
    second.remount();
    is_as_the_second_left_it(&second);
    second.unmount();
    drop(holder);
    let _waits = first.try_unmount();
    match first.try_mount() {
        Ok(()) => is_as_the_second_left_it(&first),
        Err(refused) => assert!(refused.sentence.contains("recover"), "{}", refused.sentence),
    }
}
