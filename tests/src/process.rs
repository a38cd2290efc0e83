//! Child processes that cannot outlive the tests, and what /proc tells of them.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

/// One of the two programs: from the folder AVIDFS_BIN, or where cargo put it next to the running test.
pub fn program(name: &str) -> PathBuf {
    let folder = std::env::var_os("AVIDFS_BIN").map(PathBuf::from).unwrap_or_else(|| {
        let test = std::env::current_exe().expect("a test knows its own program");
        test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps").to_owned()
    });
    let path = folder.join(name);
    assert!(
        path.is_file(),
        "{} is missing: build the programs first with `cargo build`, or name their folder in AVIDFS_BIN",
        path.display()
    );
    path
}

/// A command for one of the two programs, free of the environment's options.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(program(name));
    for (variable, _) in std::env::vars_os() {
        let text = variable.to_string_lossy();
        if text.starts_with("AVIDFS_") || text.starts_with("SHARDD_") {
            command.env_remove(&variable);
        }
    }
    command.stdin(Stdio::null());
    command
}

type Order = (Command, Sender<io::Result<Child>>);

/// The kernel ends a child when the *thread* that started it ends. This one lives as long as the process.
static STARTER: LazyLock<Mutex<Sender<Order>>> = LazyLock::new(|| {
    let (orders, inbox) = channel::<Order>();
    std::thread::spawn(move || {
        for (mut command, answer) in inbox {
            // SAFETY: prctl is async-signal-safe and touches no memory of ours.
            unsafe {
                command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                });
            }
            let _ = answer.send(command.spawn());
        }
    });
    Mutex::new(orders)
});

/// A running child; killed and reaped when dropped.
pub struct Process {
    child: Child,
}

impl Process {
    /// Start a command.
    pub fn start(command: Command) -> Process {
        let shown = format!("{command:?}");
        let (answer, started) = channel();
        STARTER.lock().expect("nobody panics while ordering").send((command, answer)).expect("it never ends");
        let child = started.recv().expect("it always answers");
        Process { child: child.unwrap_or_else(|error| panic!("{shown}: {error}")) }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Send it a signal. Nothing happens if it has ended.
    pub fn signal(&self, signal: i32) {
        // The child is not reaped before `self` is gone or has its status, so the id is still its own.
        // SAFETY: kill takes two integers.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Wait for its end, at most so long.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            match self.ended() {
                None if Instant::now() < end => std::thread::sleep(Duration::from_millis(5)),
                status => return status,
            }
        }
    }

    /// SIGKILL, and wait until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Run a command to its end.
pub fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Run a command to its end and want success; returns what it printed.
pub fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Run a line of shell and want success; returns what it printed.
pub fn shell(line: &str) -> String {
    run(Command::new("bash").args(["-euo", "pipefail", "-c", line]))
}

/// A line of /proc/PID/status in bytes, such as `VmHWM`, the most memory it ever held.
pub fn memory_bytes(pid: u32, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let value = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    let kib: u64 = value
        .and_then(|text| text.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or_else(|| panic!("/proc/{pid}/status has no {line}"));
    kib << 10
}

/// Root, or a test that needs it fails.
pub fn need_root(why: &str) {
    // SAFETY: geteuid takes nothing and cannot fail.
    let user = unsafe { libc::geteuid() };
    assert_eq!(user, 0, "run this test as root: {why}");
}

/// A test program from the package registry: `scripts/test.sh` installs it below the target folder.
pub fn tool(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own program");
    let target = test.ancestors().nth(3).expect("a test lies in target/PROFILE/deps");
    let path = target.join("tools/bin").join(name);
    assert!(path.is_file(), "{} is missing: scripts/test.sh installs it", path.display());
    path
}

/// A program that the test calls, or it fails.
pub fn need_program(name: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    assert!(found, "the program {name} is missing: install it");
}
