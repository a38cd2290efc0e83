//! Network namespaces, each behind a veth with an address of its own, whose link can be taken down as a cable is pulled.
//!
//! Names carry the process id, as those of scratch folders do, so that what a killed test left is known and taken away.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::{self, need_program, need_root};

const PREFIX: &str = "avidfs-tests-";
/// 198.18.0.0/15 is kept free for tests of networks (RFC 2544): no host has it for anything else.
const NETWORK: u32 = u32::from_be_bytes([198, 18, 0, 0]);
/// Of two addresses each.
const LINKS: u32 = 1 << 16;
/// Those a process begins with; beyond them it meets the next one's, and passes by what is taken.
const LINKS_OF_A_PROCESS: u32 = 16;
/// What its end of the link is called inside.
const INSIDE: &str = "eth0";

/// A namespace with one link to the host; both are gone when it is dropped.
pub struct Namespace {
    name: String,
    /// The host's end of the link.
    outside: String,
    address: Ipv4Addr,
}

impl Namespace {
    /// A new one with its link up.
    pub fn create() -> Namespace {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static SWEPT: Once = Once::new();
        need_root("it makes network namespaces");
        need_program("ip");
        SWEPT.call_once(sweep);
        let (pid, number) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let (host, address) = free_link(pid.wrapping_mul(LINKS_OF_A_PROCESS).wrapping_add(number));
        // A link's name has 15 characters at most.
        let (name, outside) = (format!("{PREFIX}{pid}-{number}"), format!("av{pid:x}-{number}"));
        ip(&["netns", "add", &name]);
        let made = Namespace { name, outside, address };
        let Namespace { name, outside, .. } = &made;
        ip(&["link", "add", outside, "type", "veth", "peer", "name", INSIDE, "netns", name]);
        ip(&["-n", name, "addr", "add", &format!("{address}/31"), "dev", INSIDE]);
        ip(&["-n", name, "link", "set", "lo", "up"]);
        ip(&["addr", "add", &format!("{host}/31"), "dev", outside]);
        ip(&["link", "set", outside, "up"]);
        made.mend();
        made
    }

    /// Its address, which the host can reach.
    pub fn address(&self) -> IpAddr {
        self.address.into()
    }

    /// Have a command run inside.
    pub fn hold(&self, command: &mut Command) {
        let path = Path::new("/run/netns").join(&self.name);
        let namespace = File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // SAFETY: setns is async-signal-safe and takes integers; the descriptor lives as long as the closure.
        unsafe {
            command.pre_exec(move || match libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
    }

    /// Take the link down: connections stay, and nothing arrives. At its inner end, as the host would otherwise lose its
    /// route and say at once that there is none.
    pub fn cut(&self) {
        ip(&["-n", &self.name, "link", "set", INSIDE, "down"]);
    }

    /// Take it up again.
    pub fn mend(&self) {
        ip(&["-n", &self.name, "link", "set", INSIDE, "up"]);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The other end goes with it, now and not when the last connection inside has timed out.
        let _ = Command::new("ip").args(["link", "del", &self.outside]).output();
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// The addresses of the first link from this one on that no other test has: the host's and the namespace's.
fn free_link(first: u32) -> (Ipv4Addr, Ipv4Addr) {
    let taken = process::run(Command::new("ip").args(["-o", "-4", "addr", "show", "to", "198.18.0.0/15"]));
    let links = (0..LINKS).map(|further| first.wrapping_add(further) % LINKS);
    let addresses = links.map(|link| NETWORK + 2 * link).map(|host| (host.into(), (host + 1).into()));
    let is_free = |(host, _): &(Ipv4Addr, Ipv4Addr)| !taken.contains(&format!(" {host}/"));
    addresses.into_iter().find(is_free).expect("65536 links are enough")
}

/// Take away what test processes left that were killed.
fn sweep() {
    let listed = process::run(Command::new("ip").args(["netns", "list"]));
    for name in listed.lines().filter_map(|line| line.split(' ').next()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

fn ip(words: &[&str]) {
    process::run(Command::new("ip").args(words));
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::process::Stdio;
    use std::time::Duration;

    use super::*;
    use crate::eventually;
    use crate::process::Process;

    #[test]
    fn who_is_inside_is_silent_while_the_link_is_down_and_gone_with_the_namespace() {
        let namespace = Namespace::create();
        let name = namespace.name.clone();
        // Answers one line for each, on one connection.
        let serve = "import socket,sys\n\
                     s=socket.create_server((sys.argv[1],7001)).accept()[0].makefile('rwb',0)\n\
                     for line in s: s.write(line)";
        let mut command = Command::new("python3");
        command.args(["-c", serve, &namespace.address().to_string()]).stdout(Stdio::null());
        namespace.hold(&mut command);
        let server = Process::start(command);
        let mut socket = None;
        eventually(Duration::from_secs(20), "it listens", || {
            socket = TcpStream::connect((namespace.address(), 7001)).ok();
            socket.is_some()
        });
        let mut socket = socket.unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut answer = [0; 2];
        socket.write_all(b"a\n").unwrap();
        socket.read_exact(&mut answer).unwrap();
        namespace.cut();
        socket.write_all(b"b\n").unwrap();
        assert!(socket.read_exact(&mut answer).is_err(), "nothing comes through");
        namespace.mend();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"b\n", "it was only late");
        drop(server);
        drop(namespace);
        assert!(!process::run(Command::new("ip").args(["netns", "list"])).contains(&name));
    }
}
