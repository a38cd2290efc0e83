//! How the kernel's requests come: in rings where it has them, from /dev/fuse otherwise, and for whom.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use avidfs_tests::cluster::Cluster;
use avidfs_tests::mount::{Mount, said};
use avidfs_tests::process::{Process, command, need_program, need_root, output};
use avidfs_tests::scratch::{is_mounted, scratch};
use avidfs_tests::{data, eventually, timed};

const MIB: u64 = 1 << 20;
/// Whether the kernel offers rings to who begins; where it is not, there are none.
const OFFERED: &str = "/sys/module/fuse/parameters/enable_uring";

/// Eight at once make, write, sync, read, list and remove files.
fn use_it(mount: &Mount) {
    let work = |worker: u64| {
        let folder = mount.path(format!("{worker}"));
        fs::create_dir(&folder).unwrap();
        for number in 0..30 {
            let file = folder.join(format!("{number}"));
            data::put(&file, worker + number, number * 1000);
            data::check(&file, worker + number, number * 1000);
        }
        data::put(&folder.join("large"), worker, 3 * MIB);
        fs::File::open(folder.join("large")).unwrap().sync_all().unwrap();
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 31);
        data::check(&folder.join("large"), worker, 3 * MIB);
        fs::remove_dir_all(&folder).unwrap();
    };
    std::thread::scope(|threads| (0..8).for_each(|worker| drop(threads.spawn(move || work(worker)))));
    assert_eq!(fs::read_dir(mount.root()).unwrap().count(), 0);
}

/// The device as udev's rules leave it, where nobody ran them.
struct OpenToAll<'a>(&'a Path, fs::Permissions);

impl OpenToAll<'_> {
    fn new(path: &Path) -> OpenToAll<'_> {
        let before = path.metadata().unwrap().permissions();
        fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
        OpenToAll(path, before)
    }
}

impl Drop for OpenToAll<'_> {
    fn drop(&mut self) {
        fs::set_permissions(self.0, self.1.clone()).unwrap();
    }
}

fn how(mount: &Mount) -> String {
    let log = mount.log();
    let line = log.lines().find(|line| line.contains("requests of the kernel"));
    line.and_then(|line| line.split("how=").nth(1)).unwrap_or_else(|| panic!("{log}")).replace('"', "")
}

#[test]
fn they_come_in_rings_where_the_kernel_has_them_and_leave_its_setting_as_it_was() {
    need_root("only root may have the kernel offer rings");
    let before = fs::read_to_string(OFFERED).ok();
    let rings = Mount::embedded(&[]);
    assert_eq!(how(&rings), if before.is_some() { "rings" } else { "/dev/fuse" });
    assert_eq!(fs::read_to_string(OFFERED).ok(), before);
    use_it(&rings);
    // What it has it keeps, and begins with again.
    rings.remount();
    use_it(&rings);
    rings.unmount();
}

#[test]
fn they_come_from_the_device_where_somebody_wants_that() {
    let device = Mount::embedded(&["--no-io-uring"]);
    assert_eq!(how(&device), "/dev/fuse");
    use_it(&device);
    device.remount();
    use_it(&device);
    device.unmount();
}

#[test]
fn no_thread_but_those_of_the_rings_stays_on_one_processor() {
    let mount = Mount::embedded(&[]);
    use_it(&mount);
    let said = |task: &Path, what: &str| {
        let status = fs::read_to_string(task.join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
        line.trim().to_owned()
    };
    let all = said(Path::new("/proc/self"), "Cpus_allowed_list:");
    let tasks = fs::read_dir(format!("/proc/{}/task", mount.pid())).unwrap();
    let tasks: Vec<_> = tasks.map(|task| task.unwrap().path()).collect();
    let held = tasks.iter().filter(|task| said(task, "Cpus_allowed_list:") != all);
    let held: Vec<String> = held.map(|task| said(task, "Name:")).collect();
    assert!(held.iter().all(|name| name.starts_with("fuse-ring-")), "{held:?}");
    assert!(tasks.len() > held.len());
    mount.unmount();
}

#[test]
fn who_waits_for_nodes_does_not_keep_others_of_the_same_processor_waiting() {
    const READERS: u64 = 50;
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, &[]);
    let file = |number| mount.path(format!("{number}"));
    (0..READERS).for_each(|number| data::put(&file(number), number, 100_000));
    mount.remount();
    (0..3).for_each(|node| cluster.stop(node));
    let on_one_processor = |program: &str, path: PathBuf| {
        let mut command = Command::new("taskset");
        command.args(["-c", "0", program]).arg(path);
        command
    };
    let mut readers: Vec<Process> = (0..READERS)
        .map(|number| {
            let mut command = on_one_processor("cat", file(number));
            command.stdout(Stdio::null());
            Process::start(command)
        })
        .collect();
    std::thread::sleep(Duration::from_secs(1));
    assert!(readers.iter_mut().all(|reader| reader.ended().is_none()));
    for number in 0..10 {
        let unknown = mount.path(format!("unknown-{number}"));
        let (made, took) = timed(|| output(&mut on_one_processor("mkdir", unknown)));
        assert!(made.status.success() && took < Duration::from_secs(2), "{took:?}: {}", said(&made));
    }
    (0..3).for_each(|node| cluster.cont(node));
    for reader in &mut readers {
        assert!(reader.wait(Duration::from_secs(30)).is_some_and(|ended| ended.success()));
    }
    (0..READERS).for_each(|number| data::check(&file(number), number, 100_000));
    mount.unmount();
}

#[test]
fn another_user_mounts_with_the_help_of_fusermount3() {
    need_root("it becomes another user");
    need_program("fusermount3");
    const NOBODY: u32 = 65_534;
    let _open = OpenToAll::new(Path::new("/dev/fuse"));
    let folder = scratch();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The program may lie where only root looks.
    let program = folder.path().join("avidfs");
    fs::copy(command("avidfs").get_program(), &program).unwrap();
    let (home, mountpoint) = (folder.path().join("home"), folder.path().join("home/mnt"));
    fs::create_dir_all(&mountpoint).unwrap();
    for place in [&home, &mountpoint] {
        chown(place, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let as_nobody = |program: &Path| {
        let mut command = Command::new(program);
        command.uid(NOBODY).gid(NOBODY).env("HOME", &home).env_remove("XDG_RUNTIME_DIR").stdin(Stdio::null());
        command.current_dir("/");
        command
    };
    let mut mount = as_nobody(&program);
    mount.arg("mount").arg(&mountpoint).args(["-f", "--state"]).arg(home.join("state"));
    let log = fs::File::create(folder.path().join("mount.log")).unwrap();
    mount.stdout(log.try_clone().unwrap()).stderr(log);
    let mut daemon = Process::start(mount);
    let log = || fs::read_to_string(folder.path().join("mount.log")).unwrap();
    eventually(Duration::from_secs(30), "it is mounted", || {
        assert!(daemon.ended().is_none(), "{}", log());
        is_mounted(&mountpoint)
    });
    let script = "echo from nobody > file && cat file && rm file && ls";
    let used = output(
        as_nobody(Path::new("/bin/sh")).arg("-c").arg(format!("cd {} && {script}", mountpoint.display())),
    );
    assert!(used.status.success(), "{}", said(&used));
    assert_eq!(String::from_utf8_lossy(&used.stdout), "from nobody\n");
    assert!(fs::read_dir(&mountpoint).is_err(), "nobody else was let in, not even root");
    let ended = output(as_nobody(&program).arg("umount").arg(&mountpoint));
    assert!(ended.status.success(), "{} {}", said(&ended), log());
    eventually(Duration::from_secs(20), "the daemon has ended", || daemon.ended().is_some());
    assert!(!is_mounted(&mountpoint));
}

#[test]
fn the_mount_of_a_daemon_that_hangs_is_taken_away_or_its_process_is_named() {
    need_root("only root unmounts by force");
    let mount = Mount::embedded(&[]);
    fs::write(mount.path("file"), "some").unwrap();
    // It has begun when it answers this.
    mount.status();
    mount.signal(libc::SIGSTOP);
    let mut waiting = Process::start({
        let mut command = Command::new("stat");
        command.arg(mount.path("unknown")).stdout(Stdio::null()).stderr(Stdio::null());
        command
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(waiting.ended().is_none());
    let (forced, took) =
        timed(|| output(command("avidfs").arg0("umount.avidfs").arg(mount.root()).arg("-f")));
    mount.signal(libc::SIGCONT);
    assert!(took < Duration::from_secs(60), "{took:?}");
    let named = said(&forced).contains(&format!("process {}", mount.pid()));
    assert!(forced.status.success() || named, "{}", said(&forced));
    assert!(mount.wait().success(), "{}", mount.log());
    eventually(Duration::from_secs(10), "whoever asked has an answer", || waiting.ended().is_some());
    // It was in use by who asked.
    if is_mounted(&mount.root()) {
        mount.mount();
        assert_eq!(fs::read_to_string(mount.path("file")).unwrap(), "some");
        mount.unmount();
    }
}
