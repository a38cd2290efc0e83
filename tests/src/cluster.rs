//! Real nodes: shardd processes on loopback with data below a temporary folder.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;

use crate::eventually;
use crate::namespaces::Namespace;
use crate::process::{self, Process};
use crate::scratch::scratch;

/// A node that starts on an existing folder reads it first.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Nodes, numbered from 0. Every verb takes `&self`, so that a thread may kill while another one reads.
pub struct Cluster {
    nodes: Vec<Mutex<Node>>,
    /// Of each node.
    options: Vec<Vec<String>>,
    folder: TempDir,
}

struct Node {
    process: Option<Process>,
    address: SocketAddr,
    /// What makes it lie, if it does.
    evil: Vec<String>,
    /// What leaves it no room, if anything does.
    narrow: Vec<String>,
    /// Where it lives, if not beside everyone else.
    namespace: Option<Namespace>,
}

impl Node {
    fn new(namespace: Option<Namespace>) -> Node {
        let ip = namespace.as_ref().map_or_else(own_ip, Namespace::address);
        let address = SocketAddr::new(ip, 0);
        Node { process: None, address, evil: Vec::new(), narrow: Vec::new(), namespace }
    }
}

/// What somebody answers `GET /metrics` with, head and body.
pub fn metrics(address: SocketAddr) -> String {
    let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let mut answer = String::new();
    let mut socket = TcpStream::connect(address).expect("it listens");
    socket.write_all(request.as_bytes()).expect("it takes a request");
    socket.read_to_string(&mut answer).expect("metrics are text");
    answer
}

impl Cluster {
    /// So many nodes, all answering.
    pub fn start(count: usize) -> Cluster {
        Cluster::with(count, &[])
    }

    /// The same with further options of shardd.
    pub fn with(count: usize, options: &[&str]) -> Cluster {
        Cluster::with_each(count, |_| options.to_vec())
    }

    /// The same with further options for each.
    pub fn with_each<'a>(count: usize, options: impl Fn(usize) -> Vec<&'a str>) -> Cluster {
        let owned = |node| options(node).into_iter().map(str::to_owned).collect();
        Cluster::of((0..count).map(|_| Node::new(None)).collect(), (0..count).map(owned).collect())
    }

    /// So many nodes, each in a network namespace of its own, for tests that take its link down.
    pub fn apart(count: usize) -> Cluster {
        let nodes = (0..count).map(|_| Node::new(Some(Namespace::create()))).collect();
        Cluster::of(nodes, vec![vec!["--insecure".to_owned()]; count])
    }

    fn of(mut nodes: Vec<Node>, options: Vec<Vec<String>>) -> Cluster {
        let mut cluster = Cluster { nodes: Vec::new(), options, folder: scratch() };
        for (number, node) in nodes.iter_mut().enumerate() {
            node.process = Some(cluster.launch(number, node));
        }
        for (number, mut node) in nodes.into_iter().enumerate() {
            node.address = cluster.wait_for_address(number, &mut node);
            cluster.nodes.push(Mutex::new(node));
        }
        cluster
    }

    /// Nodes that agree on objects by this code. `access` are the options by which clients reach them over `scheme`.
    pub fn agreeing(count: usize, code: &str, options: &[&str], scheme: &str, access: &[&str]) -> Cluster {
        let mut cluster = Cluster::with(count, options);
        let members = cluster.folder.path().join("members.json");
        let mut asking = process::command("avidfs");
        asking.args(["members", "--code", code, "--peers", &cluster.peers_by(scheme)]).args(access);
        std::fs::write(&members, process::run(&mut asking)).expect("a temporary folder takes a file");
        let members = members.to_str().expect("a temporary folder has a plain name").to_owned();
        for options in &mut cluster.options {
            options.extend(["--members".to_owned(), members.clone()]);
        }
        (0..count).for_each(|node| cluster.restart(node));
        cluster
    }

    /// How many there are, living or not.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// What `--peers` takes.
    pub fn peers(&self) -> String {
        self.peers_by("http")
    }

    /// The same with another scheme.
    pub fn peers_by(&self, scheme: &str) -> String {
        let urls: Vec<String> =
            (0..self.len()).map(|node| format!("{scheme}://{}", self.address(node))).collect();
        urls.join(",")
    }

    /// Where a node listens, or listened.
    pub fn address(&self, node: usize) -> SocketAddr {
        self.node(node).address
    }

    /// A node's `--data`.
    pub fn data_dir(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("node{node}"))
    }

    /// The process of a living node.
    pub fn pid(&self, node: usize) -> u32 {
        self.node(node).process.as_ref().expect("the node lives").pid()
    }

    /// SIGKILL; returns when it is gone. Nothing happens to a dead one.
    pub fn kill(&self, node: usize) {
        self.node(node).process = None;
    }

    /// SIGTERM; fails the test if it does not end, with success, within 20 s.
    pub fn terminate(&self, node: usize) {
        let mut process = self.node(node).process.take().expect("the node lives");
        process.signal(libc::SIGTERM);
        let status = process.wait(Duration::from_secs(20)).expect("SIGTERM ends a node within 20 s");
        assert!(status.success(), "node {node} ended with {status}: {}", self.log(node));
    }

    /// SIGSTOP: it stays connected and says nothing.
    pub fn stop(&self, node: usize) {
        self.node(node).process.as_ref().expect("the node lives").signal(libc::SIGSTOP);
    }

    /// SIGCONT.
    pub fn cont(&self, node: usize) {
        self.node(node).process.as_ref().expect("the node lives").signal(libc::SIGCONT);
    }

    /// Start a dead node again, at the same address and on the same data; a living one is killed first.
    pub fn restart(&self, node: usize) {
        let mut guard = self.node(node);
        guard.process = None;
        guard.process = Some(self.launch(node, &guard));
        let address = self.wait_for_address(node, &mut guard);
        assert_eq!(address, guard.address, "node {node} listens where it was told to");
    }

    /// Start a node again as one that lies in these modes of `shardd --evil`, until it is made honest.
    pub fn make_evil(&self, node: usize, modes: &str, seed: u64) {
        let seed = seed.to_string();
        self.node(node).evil = ["--evil", modes, "--evil-seed", &seed].map(str::to_owned).to_vec();
        self.restart(node);
    }

    /// Start a node again as one that does not lie.
    pub fn make_honest(&self, node: usize) {
        self.node(node).evil.clear();
        self.restart(node);
    }

    /// Start a node again as one that has room for nothing but what it has.
    pub fn make_full(&self, node: usize) {
        self.node(node).narrow = ["--capacity", "1MiB"].map(str::to_owned).to_vec();
        self.restart(node);
    }

    /// Start a node again with all the room there is.
    pub fn make_roomy(&self, node: usize) {
        self.node(node).narrow.clear();
        self.restart(node);
    }

    /// Take the link of a node apart down: it lives, and nothing arrives.
    pub fn cut(&self, node: usize) {
        self.node(node).namespace.as_ref().expect("the node lives apart").cut();
    }

    /// Take the link up again.
    pub fn mend(&self, node: usize) {
        self.node(node).namespace.as_ref().expect("the node lives apart").mend();
    }

    /// How many answers a node falsified in its present life; 0 of an honest one.
    pub fn lies(&self, node: usize) -> u64 {
        let answer = metrics(self.address(node));
        let told = answer.lines().find_map(|line| line.strip_prefix("shardd_lies_total ")?.parse().ok());
        told.unwrap_or(0)
    }

    /// Whether a node runs.
    pub fn is_alive(&self, node: usize) -> bool {
        self.node(node).process.is_some()
    }

    /// Those that run.
    pub fn living(&self) -> Vec<usize> {
        (0..self.len()).filter(|node| self.is_alive(*node)).collect()
    }

    /// What a node printed as its errors and log in its present life.
    pub fn log(&self, node: usize) -> String {
        std::fs::read_to_string(self.output_path(node, "log")).unwrap_or_default()
    }

    fn node(&self, node: usize) -> std::sync::MutexGuard<'_, Node> {
        // A test thread that panicked while it killed a node leaves nothing half done.
        self.nodes[node].lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn output_path(&self, node: usize, kind: &str) -> PathBuf {
        self.folder.path().join(format!("node{node}.{kind}"))
    }

    fn launch(&self, number: usize, node: &Node) -> Process {
        let file = |kind| File::create(self.output_path(number, kind)).expect("the folder can be written");
        let mut command = process::command("shardd");
        command.arg("--listen").arg(node.address.to_string()).arg("--data").arg(self.data_dir(number));
        if !node.evil.is_empty() {
            command.args(&node.evil).env("SHARDD_ALLOW_EVIL", "1");
        }
        if let Some(namespace) = &node.namespace {
            namespace.hold(&mut command);
        }
        command.args(&self.options[number]).args(&node.narrow);
        command.stdout(Stdio::from(file("out"))).stderr(Stdio::from(file("log")));
        Process::start(command)
    }

    fn wait_for_address(&self, node: usize, started: &mut Node) -> SocketAddr {
        let mut address = None;
        let (out, log) = (self.output_path(node, "out"), self.output_path(node, "log"));
        let process = started.process.as_mut().expect("it was just started");
        eventually(START_LIMIT, "a node says where it listens", || {
            if let Some(status) = process.ended() {
                panic!("node {node} ended with {status}: {}{}", text(&out), text(&log));
            }
            address = text(&out).lines().find_map(address_in);
            address.is_some()
        });
        address.expect("it was found")
    }
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// `... http://127.0.0.1:7001 ...` in a finished line, or `https://`.
fn address_in(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("://")?;
    rest.split(|c: char| c.is_whitespace() || c == '/' || c == ',' || c == '"').next()?.parse().ok()
}

/// Where all nodes of this process listen that do not live apart: a loopback address that only this process uses. A node
/// finds its port free when it comes back, because nobody else's connection can have taken it meanwhile.
pub fn own_ip() -> IpAddr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    IpAddr::from([127, 64 + a % 64, b, c])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_found_in_what_a_node_prints() {
        let wanted: SocketAddr = "127.0.0.1:7001".parse().unwrap();
        for line in [
            "shardd listens on http://127.0.0.1:7001",
            "http://127.0.0.1:7001/ ready",
            "listening on https://127.0.0.1:7001",
            "{\"url\":\"http://127.0.0.1:7001\"}",
        ] {
            assert_eq!(address_in(line), Some(wanted), "{line}");
        }
        assert_eq!(address_in("starting"), None);
    }
}
