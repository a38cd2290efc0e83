//! Real mounts: `avidfs mount -f` as a child process.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::eventually;
use crate::process::{self, Process};
use crate::scratch::{detach, is_mounted, scratch};

/// A mount stores its backlog before it answers.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);
/// Longest `avidfs umount` may take in a test, with `--io-timeout` at its default of 30 s.
const UMOUNT_LIMIT: Duration = Duration::from_secs(90);

/// A mounted volume; unmounted when dropped, and never left behind dead.
pub struct Mount {
    daemon: Mutex<Option<Process>>,
    peers: Option<String>,
    options: Vec<String>,
    folder: TempDir,
}

/// A mount that did not come about.
#[derive(Debug)]
pub struct Refused {
    /// How the program ended.
    pub status: ExitStatus,
    /// What it said.
    pub sentence: String,
}

impl Mount {
    /// Mount a volume on a cluster; `options` of `avidfs mount` come after --peers and --state.
    pub fn new(cluster: &Cluster, options: &[&str]) -> Mount {
        Mount::on(Some(cluster.peers()), options)
    }

    /// Mount a volume on the nodes inside the daemon.
    pub fn embedded(options: &[&str]) -> Mount {
        Mount::on(None, options)
    }

    /// Mount a volume on nodes somewhere.
    pub fn on(peers: Option<String>, options: &[&str]) -> Mount {
        let mount = Mount::prepared(peers, options);
        mount.mount();
        mount
    }

    /// Everything but the mount itself.
    pub fn prepared(peers: Option<String>, options: &[&str]) -> Mount {
        assert!(Path::new("/dev/fuse").exists(), "/dev/fuse is missing: load the kernel module fuse");
        let folder = scratch();
        std::fs::create_dir(folder.path().join("mnt")).expect("the folder can be written");
        let options = options.iter().map(|option| option.to_string()).collect();
        Mount { daemon: Mutex::new(None), peers, options, folder }
    }

    /// Where it is mounted.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    /// A path on the mount.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root().join(name)
    }

    /// Its state folder.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// The mount daemon's process.
    pub fn pid(&self) -> u32 {
        self.daemon().as_ref().expect("it is mounted").pid()
    }

    /// What the daemon logged in its present life.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("mount.log")).unwrap_or_default()
    }

    /// Mount it (again); a dead mount that a kill left is the program's to detach.
    pub fn mount(&self) {
        if let Err(refused) = self.try_mount() {
            panic!("avidfs mount: {}: {}", refused.status, refused.sentence);
        }
    }

    /// As `mount`, with what the program says when it refuses.
    pub fn try_mount(&self) -> Result<(), Refused> {
        let log = File::create(self.folder.path().join("mount.log")).expect("the folder can be written");
        let mut command = process::command("avidfs");
        command.arg("mount").arg(self.root()).arg("-f").arg("--state").arg(self.state());
        if let Some(peers) = &self.peers {
            command.arg("--peers").arg(peers);
        }
        command.args(&self.options);
        command
            .stdout(Stdio::from(log.try_clone().expect("a file can be opened twice")))
            .stderr(Stdio::from(log));
        let mut daemon = Process::start(command);
        let mut ended = None;
        eventually(MOUNT_LIMIT, "the mount answers", || {
            ended = daemon.ended();
            // A dead mount that a kill left answers nothing; when it is detached, the folder below it answers.
            ended.is_some() || is_fuse(&self.root())
        });
        if let Some(status) = ended {
            return Err(Refused { status, sentence: self.log() });
        }
        *self.daemon() = Some(daemon);
        Ok(())
    }

    /// `avidfs key export`: what `recover` needs for a volume that can be written.
    pub fn key(&self) -> String {
        process::run(process::command("avidfs").args(["key", "export", "--state"]).arg(self.state()))
    }

    /// `avidfs recover` into this mount's state folder, whatever it says.
    pub fn try_recover(&self, key: &str) -> Output {
        let key_file = self.folder.path().join("key");
        std::fs::write(&key_file, key).expect("the folder can be written");
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&key_file, private).expect("it is ours");
        let mut command = process::command("avidfs");
        command.args(["recover", "--peers", self.peers.as_deref().expect("it is on nodes somewhere")]);
        process::output(command.arg("--state").arg(self.state()).arg("--key").arg(key_file))
    }

    /// The same, and it must succeed; returns what it said.
    pub fn recover(&self, key: &str) -> String {
        let output = self.try_recover(key);
        assert!(output.status.success(), "avidfs recover: {}: {}", output.status, said(&output));
        said(&output)
    }

    /// Leave these options out of the next mount and give those instead.
    pub fn set_options(&mut self, options: &[&str]) {
        self.options = options.iter().map(|option| option.to_string()).collect();
    }

    /// Name these nodes at the next mount.
    pub fn set_peers(&mut self, peers: String) {
        self.peers = Some(peers);
    }

    /// `avidfs umount`; fails the test unless everything was stored and both programs ended well.
    pub fn unmount(&self) {
        let output = self.try_unmount();
        assert!(
            output.status.success(),
            "avidfs umount: {}: {}\n{}",
            output.status,
            said(&output),
            self.log()
        );
    }

    /// `avidfs umount`, whatever it says. The daemon must have ended when it returns, unless it refused.
    pub fn try_unmount(&self) -> Output {
        let mut command = process::command("avidfs");
        let output = process::output(command.arg("umount").arg(self.root()));
        if !is_mounted(&self.root()) {
            let mut daemon = self.daemon().take().expect("it was mounted");
            let status = daemon.wait(Duration::from_secs(1));
            let status = status.expect("avidfs umount returns when the daemon has ended");
            assert_eq!(
                status.success(),
                output.status.success(),
                "daemon and umount say the same: {}",
                self.log()
            );
        }
        output
    }

    /// Wait for the daemon's own end: after SIGTERM, or fusermount3 -u.
    pub fn wait(&self) -> ExitStatus {
        let mut daemon = self.daemon().take().expect("it was mounted");
        daemon.wait(UMOUNT_LIMIT).unwrap_or_else(|| panic!("the daemon ends within {UMOUNT_LIMIT:?}"))
    }

    /// Send the daemon a signal.
    pub fn signal(&self, signal: i32) {
        self.daemon().as_ref().expect("it is mounted").signal(signal);
    }

    /// SIGKILL the daemon; a dead mount stays.
    pub fn kill(&self) {
        *self.daemon() = None;
    }

    /// Unmount, and mount again: no cache of the kernel survives that.
    pub fn remount(&self) {
        self.unmount();
        self.mount();
    }

    /// `avidfs info PATH --json`.
    pub fn info(&self, name: impl AsRef<Path>) -> Info {
        let mut command = process::command("avidfs");
        let text = process::run(command.arg("info").arg(self.path(name)).arg("--json"));
        Info(
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("avidfs info --json: {error}: {text}")),
        )
    }

    /// `avidfs status MOUNTPOINT --json`.
    pub fn status(&self) -> Value {
        let mut command = process::command("avidfs");
        let text = process::run(command.arg("status").arg(self.root()).arg("--json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("avidfs status --json: {error}: {text}"))
    }

    fn daemon(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        // A test thread that panicked holding it leaves nothing half done.
        self.daemon.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of {}\n{}", self.root().display(), last_lines(&self.log(), 40));
        }
        if let Some(daemon) = self.daemon().as_mut() {
            // Detached first, so that no request of ours is left waiting, then ended.
            detach(&self.root());
            daemon.signal(libc::SIGCONT);
            daemon.kill();
        }
        while is_mounted(&self.root()) {
            detach(&self.root());
        }
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// What a program printed.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Whether a FUSE mount answers at a path.
fn is_fuse(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: `path` is a C string and `answer` has room for what statfs writes; zeros are a valid statfs.
    let answer = unsafe {
        let mut answer: libc::statfs = std::mem::zeroed();
        (libc::statfs(path.as_ptr(), &raw mut answer) == 0).then_some(answer)
    };
    answer.is_some_and(|answer| answer.f_type == libc::FUSE_SUPER_MAGIC)
}

/// statvfs(2).
pub fn statfs(path: &Path) -> io::Result<libc::statvfs> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut answer = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `path` is a C string and `answer` has room for what statvfs writes; zeros are a valid statvfs.
    unsafe {
        match libc::statvfs(path.as_ptr(), answer.as_mut_ptr()) {
            0 => Ok(answer.assume_init()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// What `avidfs info --json` said.
#[derive(Clone, Debug)]
pub struct Info(pub Value);

impl Info {
    fn objects(&self) -> &[Value] {
        self.0["objects"].as_array().expect("info has objects")
    }

    /// How many objects the file lies in.
    pub fn object_count(&self) -> usize {
        self.objects().len()
    }

    /// For each object, how many of its fragments that are there lie on each node, greatest first: 2, 2, 1.
    pub fn spread(&self) -> Vec<Vec<usize>> {
        let per_node = |object: &Value| {
            let mut counts = std::collections::BTreeMap::new();
            for fragment in fragments(object).iter().filter(|fragment| fragment["present"] == true) {
                *counts.entry(fragment["node"].to_string()).or_insert(0) += 1;
            }
            let mut counts: Vec<usize> = counts.into_values().collect();
            counts.sort_unstable_by(|a, b| b.cmp(a));
            counts
        };
        self.objects().iter().map(per_node).collect()
    }

    /// Whether every fragment of every object is at its home and there.
    pub fn all_home(&self) -> bool {
        let home = |fragment: &Value| fragment["place"] == "home" && fragment["present"] == true;
        self.objects().iter().all(|object| fragments(object).iter().all(home))
    }

    /// How many more nodes may be lost.
    pub fn survives(&self) -> u64 {
        self.0["survives"].as_u64().unwrap_or_else(|| panic!("info says how much it survives: {}", self.0))
    }

    /// The keys of its objects.
    pub fn keys(&self) -> Vec<String> {
        let key = |object: &Value| object["key"].as_str().expect("an object has a key").to_owned();
        self.objects().iter().map(key).collect()
    }

    /// Which of these addresses holds the fragment of an index of the first object.
    pub fn holder(&self, addresses: &[SocketAddr], index: u64) -> usize {
        let object = self.objects().first().expect("the file has an object");
        let fragment = fragments(object).iter().find(|fragment| fragment["index"] == index);
        let address = fragment.and_then(|fragment| fragment["address"].as_str()).expect("its node is known");
        let found = addresses.iter().position(|known| address.ends_with(&known.to_string()));
        found.unwrap_or_else(|| panic!("{address} is one of {addresses:?}"))
    }
}

fn fragments(object: &Value) -> &[Value] {
    object["fragments"].as_array().expect("an object has fragments")
}
