//! avidfs as a part of the system: mount(8), umount(8), fstab, what lists of mounts say, and the installation.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use avidfs_tests::cluster::Cluster;
use avidfs_tests::eventually;
use avidfs_tests::mount::{Mount, said};
use avidfs_tests::process::{self, Process, need_program, need_root, output, program, run, shell};
use avidfs_tests::scratch::{detach, is_mounted, scratch};
use avidfs_tests::timed;
use tempfile::TempDir;

/// What mount(8) and umount(8) look for, and in no other folder.
const HELPERS: [&str; 5] =
    ["mount.avidfs", "mount.fuse.avidfs", "umount.avidfs", "umount.fuse.avidfs", "umount.fuse"];

/// The helpers in /sbin for the time of a test. One test at a time, whichever process it runs in.
struct Helpers {
    made: Vec<PathBuf>,
    _alone: File,
}

impl Helpers {
    fn new() -> Helpers {
        need_root("only root puts helpers of mount(8) into /sbin");
        let alone = OpenOptions::new().create(true).append(true).open("/run/lock/avidfs-tests").unwrap();
        alone.lock().unwrap();
        let mut helpers = Helpers { made: Vec::new(), _alone: alone };
        for path in HELPERS.map(|name| Path::new("/sbin").join(name)) {
            // What a test left that was killed.
            if path.read_link().is_ok_and(|target| target.parent() == program("avidfs").parent()) {
                fs::remove_file(&path).unwrap();
            }
            std::os::unix::fs::symlink(program("avidfs"), &path)
                .unwrap_or_else(|error| panic!("{}: {error}: uninstall avidfs first", path.display()));
            helpers.made.push(path);
        }
        helpers
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        self.made.iter().for_each(|path| drop(fs::remove_file(path)));
    }
}

/// A place that mount(8) mounts on; nothing stays mounted there.
struct Place {
    folder: TempDir,
    _helpers: Helpers,
}

impl Place {
    fn new() -> Place {
        let folder = scratch();
        fs::create_dir(folder.path().join("mnt")).unwrap();
        Place { folder, _helpers: Helpers::new() }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    fn state(&self) -> String {
        format!("state={}", self.folder.path().join("state").display())
    }

    /// `mount -t KIND SOURCE DIR -o state=..,OPTIONS`
    fn try_mount(&self, kind: &str, source: &str, options: &str) -> Output {
        let options = format!("{},{options}", self.state());
        output(system("mount").args(["-t", kind, source]).arg(self.root()).args(["-o", &options]))
    }

    fn mount(&self, kind: &str, source: &str, options: &str) {
        let done = self.try_mount(kind, source, options);
        assert!(done.status.success() && is_mounted(&self.root()), "{}", said(&done));
    }

    fn remount(&self, options: &str) -> Output {
        output(system("mount").args(["-o", &format!("remount,{options}")]).arg(self.root()))
    }

    /// umount(8); its daemon has ended when it returns, and nothing of the mount is left.
    fn unmount(&self, what: &str) {
        let pid = self.daemon();
        run(system("umount").arg(what));
        assert!(!is_mounted(&self.root()), "{what} is unmounted");
        assert!(has_ended(pid), "the daemon has ended when umount(8) returns");
    }

    fn unmount_here(&self) {
        self.unmount(self.root().to_str().unwrap());
    }

    fn daemon(&self) -> u32 {
        let lock = fs::read_to_string(self.folder.path().join("state/lock")).unwrap();
        lock.trim().parse().unwrap()
    }

    /// A field of the line of /proc/mounts: source, place, type, options.
    fn told(&self, field: usize) -> String {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let root = self.root();
        let mut ours = mounts.lines().filter(|line| line.split(' ').nth(1) == root.to_str());
        let line = ours.next().expect("it is mounted");
        assert_eq!(ours.next(), None, "mounted once");
        line.split(' ').nth(field).unwrap().to_owned()
    }

    fn has_option(&self, option: &str) -> bool {
        self.told(3).split(',').any(|told| told == option)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !is_mounted(&self.root()) {
            return;
        }
        detach(&self.root());
        let lock = fs::read_to_string(self.folder.path().join("state/lock")).unwrap_or_default();
        let Ok(daemon) = lock.trim().parse() else { return };
        if fs::read_to_string(format!("/proc/{daemon}/comm")).is_ok_and(|name| name == "avidfs\n") {
            kill(daemon);
        }
    }
}

/// SIGKILL a daemon that mount(8) has started.
fn kill(daemon: u32) {
    signal(daemon, libc::SIGKILL);
}

fn signal(daemon: u32, signal: i32) {
    // SAFETY: kill takes two integers.
    unsafe { libc::kill(daemon as i32, signal) };
}

/// Whether a process has ended, be it that nobody has asked yet how.
fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

/// A program of the system, free of the environment's options and in the language of its manual.
fn system(name: &str) -> Command {
    need_program(name);
    let mut command = Command::new(name);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

fn avidfs() -> Command {
    process::command("avidfs")
}

#[test]
fn mount_8_and_umount_8_work_through_their_helpers() {
    let place = Place::new();
    for (round, kind) in ["fuse.avidfs", "avidfs"].into_iter().enumerate() {
        place.mount(kind, "avidfs:files", "");
        assert_eq!((place.told(0), place.told(2)), ("avidfs:files".into(), "fuse.avidfs".into()));
        let names = fs::read_dir(place.root()).unwrap().count();
        assert_eq!(names, round, "what was there before umount(8) is there after mount(8)");
        fs::write(place.path(kind), vec![7; 3 << 20]).unwrap();
        if round == 0 {
            place.unmount_here();
        } else {
            place.unmount("avidfs:files");
        }
    }
    place.mount("avidfs", "files", "ro");
    assert_eq!((place.told(0), fs::read(place.path("avidfs")).unwrap()), ("files".into(), vec![7; 3 << 20]));
    place.unmount("files");
}

#[test]
fn lists_of_mounts_name_the_volume() {
    let place = Place::new();
    place.mount("avidfs", "none", "volume=letters");
    assert_eq!(place.told(0), "none");
    place.unmount_here();
    run(avidfs().arg("mount").arg(place.root()).args(["-o", &place.state()]));
    let source = run(system("findmnt").args(["-n", "-o", "SOURCE", "-t", "fuse.avidfs"]).arg(place.root()));
    assert_eq!(source, "avidfs:letters\n");
    let listed = run(system("df").args(["--output=source"]).arg(place.root()));
    assert_eq!(listed.lines().nth(1), Some("avidfs:letters"));
    place.unmount("avidfs:letters");
}

#[test]
fn a_line_of_fstab_is_mounted_once() {
    let place = Place::new();
    let cluster = Cluster::start(3);
    let (root, state, peers) = (place.root(), place.state(), cluster.peers());
    let fstab = place.folder.path().join("fstab");
    let options = format!("_netdev,nofail,noatime,x-systemd.automount,code=2+1,peers={peers},{state}");
    fs::write(&fstab, format!("avidfs:files {} avidfs {options} 0 0\n", root.display())).unwrap();
    for _ in 0..2 {
        run(system("mount").arg("-a").arg("-T").arg(&fstab));
        assert_eq!(place.told(0), "avidfs:files");
    }
    assert!(place.has_option("noatime"));
    let status = run(avidfs().args(["status", "--json"]).arg(&root));
    assert!(status.contains("2+1") && status.contains(&cluster.address(2).to_string()), "{status}");
    place.unmount_here();
    run(system("mount").arg("-T").arg(&fstab).arg(&root));
    place.unmount_here();
}

#[test]
fn a_remount_makes_it_read_only_and_writable_again() {
    let place = Place::new();
    place.mount("avidfs", "files", "nosuid,noexec");
    fs::write(place.path("file"), "before").unwrap();
    assert!(place.remount("ro").status.success());
    let refused = fs::write(place.path("file"), "meanwhile").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    assert!(place.has_option("ro") && place.has_option("nosuid") && place.has_option("noexec"));
    assert!(place.remount("ro,rw,exec").status.success());
    fs::write(place.path("file"), "after").unwrap();
    assert!(place.has_option("rw") && place.has_option("nosuid") && !place.has_option("noexec"));
    place.unmount_here();
    place.mount("avidfs", "files", "rw,ro");
    assert_eq!(fs::read_to_string(place.path("file")).unwrap(), "after");
    let refused = place.remount("rw");
    assert_eq!(refused.status.code(), Some(32));
    assert!(said(&refused).contains("was mounted read-only: unmount it"), "{}", said(&refused));
    place.unmount_here();
}

#[test]
fn flags_are_what_was_said_last() {
    let place = Place::new();
    place.mount("avidfs", "files", "ro,rw,nosuid,nodev,noexec,noatime,nodiratime,user=somebody");
    for flag in ["rw", "nosuid", "nodev", "noexec", "noatime", "nodiratime"] {
        assert!(place.has_option(flag), "{flag}: {}", place.told(3));
    }
    place.unmount_here();
    place.mount("avidfs", "files", "nosuid,suid,nodev,dev,noexec,exec,noatime,relatime,defaults,auto");
    for flag in ["nosuid", "nodev", "noexec", "noatime"] {
        assert!(!place.has_option(flag), "{flag}: {}", place.told(3));
    }
    assert!(place.has_option("relatime"));
    place.unmount_here();
}

#[test]
fn mount_8_is_told_in_its_own_exit_codes() {
    let place = Place::new();
    let unknown = place.try_mount("avidfs", "files", "nodelalloc");
    assert_eq!(unknown.status.code(), Some(1), "{}", said(&unknown));
    assert!(said(&unknown).contains("no option nodelalloc"));
    let path = place.try_mount("avidfs", "/srv/files", "");
    assert_eq!(path.status.code(), Some(1));
    assert!(said(&path).contains("write avidfs:files"), "{}", said(&path));
    fs::write(place.path("letter"), "kept").unwrap();
    assert_eq!(place.try_mount("avidfs", "files", "").status.code(), Some(32));
    fs::remove_file(place.path("letter")).unwrap();
    let helper = || {
        let mut helper = system("/sbin/mount.avidfs");
        helper.arg("files").arg(place.root()).args(["-o", &place.state(), "-o", "nodelalloc"]);
        helper
    };
    assert_eq!(output(helper().arg("-f")).status.code(), Some(1));
    run(helper().arg("-sfnv"));
    assert!(!is_mounted(&place.root()), "-f does nothing");
    run(helper().arg("-sn").args(["-t", "fuse.avidfs"]));
    place.unmount_here();
    let gone = output(system("/sbin/umount.avidfs").arg(place.root()));
    assert_eq!(gone.status.code(), Some(32), "{}", said(&gone));
}

/// As umount.fuse this program is called for everyone's mounts.
#[test]
fn mounts_of_others_are_handed_back_to_umount_8() {
    let place = Place::new();
    run(system("mount").args(["-t", "tmpfs", "none"]).arg(place.root()));
    run(system("/sbin/umount.fuse").arg(place.root()).arg("-n"));
    assert!(!is_mounted(&place.root()));
}

fn sleeper(folder: &Path) -> Process {
    let mut sleep = system("sleep");
    sleep.arg("1000").current_dir(folder).stdin(Stdio::null());
    let process = Process::start(sleep);
    let name = format!("/proc/{}/comm", process.pid());
    eventually(Duration::from_secs(10), "sleep runs", || {
        fs::read_to_string(&name).is_ok_and(|n| n == "sleep\n")
    });
    process
}

#[test]
fn who_keeps_a_mount_busy_is_named() {
    let place = Place::new();
    place.mount("avidfs", "files", "");
    fs::create_dir(place.path("folder")).unwrap();
    let one = sleeper(&place.path("folder"));
    let name = format!("is in use by sleep (process {}, current folder): close", one.pid());
    for asked in [
        output(avidfs().arg("umount").arg(place.root())),
        output(system("umount").arg(place.root())),
        output(system("umount").arg("files")),
    ] {
        assert!(!asked.status.success() && said(&asked).contains(&name), "{}", said(&asked));
    }
    let six: Vec<Process> = (0..6).map(|_| sleeper(&place.path("folder"))).collect();
    let asked = output(avidfs().arg("umount").arg(place.root()));
    assert_eq!(said(&asked).matches("(process ").count(), 5, "{}", said(&asked));
    assert!(said(&asked).contains(" and 2 more: "), "{}", said(&asked));
    drop((one, six));
    fs::write(place.path("file"), "still there").unwrap();
    place.unmount_here();
}

#[test]
fn umount_8_instead_of_a_busy_one_makes_it_read_only() {
    let place = Place::new();
    place.mount("avidfs", "files", "");
    let busy = sleeper(&place.root());
    let asked = output(system("/sbin/umount.avidfs").arg(place.root()).arg("-r"));
    assert!(said(&asked).contains("it is read-only now") && place.has_option("ro"), "{}", said(&asked));
    drop(busy);
    place.unmount_here();
}

#[test]
fn a_lazy_umount_stores_when_the_last_user_leaves() {
    let place = Place::new();
    place.mount("avidfs", "files", "");
    let pid = place.daemon();
    let mut open = File::create(place.path("file")).unwrap();
    run(system("umount").arg("-l").arg(place.root()));
    open.write_all(b"late").unwrap();
    drop(open);
    eventually(Duration::from_secs(30), "the daemon ends", || has_ended(pid));
    place.mount("avidfs", "files", "");
    assert_eq!(fs::read_to_string(place.path("file")).unwrap(), "late");
    place.unmount_here();
}

#[test]
fn a_daemon_that_is_ended_takes_away_its_own_mount_alone() {
    let place = Place::new();
    for detached in [true, false] {
        place.mount("avidfs", "files", "");
        let pid = place.daemon();
        let mut open = File::create(place.path("file")).unwrap();
        open.write_all(b"kept").unwrap();
        if detached {
            run(system("umount").arg("-l").arg(place.root()));
        }
        run(system("mount").args(["-t", "tmpfs", "another"]).arg(place.root()));
        fs::write(place.path("of another"), "here").unwrap();
        signal(pid, libc::SIGTERM);
        eventually(Duration::from_secs(60), "the daemon ends", || has_ended(pid));
        assert_eq!(fs::read_to_string(place.path("of another")).unwrap(), "here");
        run(system("umount").arg(place.root()));
        drop(open);
        if !detached {
            run(system("umount").arg("-l").arg(place.root()));
        }
        place.mount("avidfs", "files", "");
        assert_eq!(fs::read_to_string(place.path("file")).unwrap(), "kept");
        place.unmount_here();
    }
}

#[test]
fn the_dead_mount_of_a_killed_daemon_is_no_obstacle() {
    let place = Place::new();
    place.mount("avidfs", "files", "");
    fs::write(place.path("file"), "kept").unwrap();
    for again in [false, true] {
        let daemon = place.daemon();
        kill(daemon);
        eventually(Duration::from_secs(10), "it is killed", || has_ended(daemon));
        assert!(is_mounted(&place.root()));
        if !again {
            run(system("umount").arg(place.root()));
            assert!(!is_mounted(&place.root()));
        }
        place.mount("avidfs", "files", "");
        assert_eq!(fs::read_to_string(place.path("file")).unwrap(), "kept");
    }
    place.unmount_here();
}

/// Where the daemon of a mount is noted.
fn note_of(mount: &Mount) -> PathBuf {
    let device = mount.root().metadata().unwrap().dev();
    let name = format!("{}:{}-{}", libc::major(device), libc::minor(device), mount.pid());
    Path::new("/run/avidfs").join(name)
}

#[test]
fn a_daemon_that_hangs_is_named_and_one_that_is_not_noted_is_found() {
    need_root("notes of root's mounts lie in /run/avidfs");
    let mount = Mount::embedded(&[]);
    let note = note_of(&mount);
    eventually(Duration::from_secs(5), "the mount is noted", || note.exists());
    mount.signal(libc::SIGSTOP);
    let (asked, took) = timed(|| output(avidfs().arg("umount").arg(mount.root())));
    mount.signal(libc::SIGCONT);
    let name = format!("process {}) does not answer", mount.pid());
    assert!(said(&asked).contains(&name) && took < Duration::from_secs(20), "{took:?}: {}", said(&asked));
    fs::remove_file(&note).unwrap();
    assert_eq!(mount.status()["read_only"], false);
    mount.signal(libc::SIGSTOP);
    let (asked, took) = timed(|| output(avidfs().arg("umount").arg(mount.root())));
    mount.signal(libc::SIGCONT);
    assert!(!asked.status.success() && took < Duration::from_secs(20), "{took:?}: {}", said(&asked));
    mount.unmount();
    mount.mount();
    let note = note_of(&mount);
    // A mount that stays in the foreground answers a moment before it is noted.
    eventually(Duration::from_secs(5), "the mount is noted", || note.exists());
    mount.unmount();
    assert!(!note.exists(), "the note goes with the mount");
}

#[test]
fn a_mount_bound_elsewhere_is_unmounted_there_alone() {
    need_root("only root binds mounts");
    let mount = Mount::embedded(&[]);
    let elsewhere = scratch();
    run(system("mount").arg("--bind").arg(mount.root()).arg(elsewhere.path()));
    let asked = output(avidfs().arg("umount").arg(elsewhere.path()));
    assert!(asked.status.success() && said(&asked).is_empty(), "{}", said(&asked));
    assert!(!is_mounted(elsewhere.path()));
    fs::write(mount.path("file"), "the other one serves on").unwrap();
    mount.unmount();
}

#[test]
fn no_request_of_a_mount_of_mount_8_takes_longer_than_io_timeout() {
    let place = Place::new();
    let cluster = Cluster::start(5);
    place.mount("avidfs", "files", &format!("peers={},io-timeout=2s", cluster.peers()));
    (0..3).for_each(|node| cluster.stop(node));
    let (written, took) = timed(|| {
        let mut file = File::create(place.path("file"))?;
        file.write_all(&[7; 1 << 20])?;
        file.sync_all()
    });
    assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(took < Duration::from_secs(8), "{took:?}");
    (0..3).for_each(|node| cluster.cont(node));
    place.unmount_here();
}

#[test]
fn what_daemon_and_nodes_keep_is_for_its_user_alone_and_what_programs_make_is_as_they_ask() {
    let mount = Mount::prepared(None, &[]);
    fs::create_dir(mount.state()).unwrap();
    fs::set_permissions(mount.state(), fs::Permissions::from_mode(0o755)).unwrap();
    mount.mount();
    shell(&format!("umask 022; cd {}; touch file; mkdir folder", mount.root().display()));
    let mode = |path: &Path| path.symlink_metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&mount.path("file")), mode(&mount.path("folder"))), (0o644, 0o755));
    mount.status();
    assert_eq!(mode(&mount.state()), 0o700);
    let cluster = Cluster::start(1);
    for path in [mount.state(), cluster.data_dir(0)].iter().flat_map(|folder| everything_below(folder)) {
        assert_eq!(mode(&path) & 0o077, 0, "{}", path.display());
    }
    mount.unmount();
}

/// Everything below a folder.
fn everything_below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

fn install(destdir: &Path, options: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("scripts/install.sh");
    let mut command = system("bash");
    command.arg(script).arg("--destdir").arg(destdir).args(options);
    output(command.env("BIN", program("avidfs-pages").parent().unwrap()))
}

fn installed(destdir: &Path, options: &[&str]) {
    let done = install(destdir, options);
    assert!(done.status.success(), "{}", said(&done));
}

#[test]
fn what_is_installed_is_taken_away_again_and_nothing_else() {
    let folder = scratch();
    let system_bin = folder.path().join("usr/local/bin");
    fs::create_dir_all(&system_bin).unwrap();
    fs::write(system_bin.join("other"), "kept").unwrap();
    let before = everything_below(folder.path());
    installed(folder.path(), &[]);
    let after = everything_below(folder.path());
    for name in [
        "usr/local/bin/avidfs",
        "usr/local/bin/shardd",
        "sbin/mount.fuse.avidfs",
        "sbin/umount.fuse",
        "usr/local/share/man/man1/avidfs-mount.1",
        "usr/local/share/man/man8/shardd.8",
        "usr/local/share/man/man8/mount.avidfs.8",
        "usr/local/share/bash-completion/completions/avidfs",
        "usr/local/share/zsh/site-functions/_shardd",
        "usr/local/share/fish/vendor_completions.d/avidfs.fish",
        "usr/local/lib/systemd/system/shardd@.service",
    ] {
        assert!(after.contains(&folder.path().join(name)), "{name} is missing");
    }
    let helper = folder.path().join("sbin/mount.avidfs").read_link().unwrap();
    assert_eq!(helper, Path::new("/usr/local/bin/avidfs"));
    installed(folder.path(), &[]);
    assert_eq!(everything_below(folder.path()), after, "a second time changes nothing");
    fs::write(folder.path().join("usr/local/share/man/man8/other.8"), "kept").unwrap();
    installed(folder.path(), &["--uninstall"]);
    let left = everything_below(folder.path());
    let others: Vec<_> = left.difference(&before).filter(|path| !path.is_dir()).collect();
    assert_eq!(others, [&folder.path().join("usr/local/share/man/man8/other.8")]);
    assert!(left.is_superset(&before) && !folder.path().join("sbin").exists());
    assert!(!install(folder.path(), &["--uninstall"]).status.success(), "once is enough");
}

#[test]
fn files_of_others_are_not_overwritten() {
    let folder = scratch();
    fs::create_dir(folder.path().join("sbin")).unwrap();
    fs::write(folder.path().join("sbin/umount.fuse"), "another's").unwrap();
    installed(folder.path(), &["--prefix", "/usr", "--no-systemd"]);
    assert!(!folder.path().join("usr/lib").exists());
    installed(folder.path(), &["--uninstall", "--prefix", "/usr"]);
    assert_eq!(fs::read_to_string(folder.path().join("sbin/umount.fuse")).unwrap(), "another's");
    fs::write(folder.path().join("sbin/mount.avidfs"), "another's").unwrap();
    let refused = install(folder.path(), &[]);
    assert!(!refused.status.success() && said(&refused).contains("not from here"), "{}", said(&refused));
    assert_eq!(fs::read_to_string(folder.path().join("sbin/mount.avidfs")).unwrap(), "another's");
}

#[test]
fn pages_can_be_read_and_completions_parsed() {
    let folder = scratch();
    run(Command::new(program("avidfs-pages")).arg(folder.path()));
    let pages: Vec<PathBuf> = everything_below(folder.path())
        .into_iter()
        .filter(|path| ["1", "8"].iter().any(|section| path.extension().is_some_and(|e| e == *section)))
        .collect();
    assert!(pages.len() >= 9, "{pages:?}");
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        let is_page = text.contains(".TH ") && text.contains("NAME") && text.contains("SYNOPSIS");
        let leads = text.strip_prefix(".so ").map(|target| folder.path().join(target.trim_end()));
        assert!(is_page || leads.is_some_and(|target| target.is_file()), "{}", page.display());
    }
    let mount = fs::read_to_string(folder.path().join("man1/avidfs-mount.1")).unwrap();
    for option in ["io\\-timeout", "peers", "fsname"] {
        assert!(mount.contains(option), "{option} is missing");
    }
    assert!(!mount.contains("\\-\\-daemon"), "what is hidden stays hidden");
    for name in ["avidfs", "shardd"] {
        let script = folder.path().join(format!("bash/{name}.bash"));
        assert!(script.metadata().unwrap().len() > 1000);
        run(system("bash").arg("-n").arg(script));
    }
}
