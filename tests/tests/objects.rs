//! The object store as people use it: `avidfs put`, `get`, `delete` and `list` against real nodes, of which some die,
//! lie, or are left out.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use avidfs_tests::cluster::{Cluster, own_ip};
use avidfs_tests::evil;
use avidfs_tests::mount::said;
use avidfs_tests::process::{command, output, run};
use avidfs_tests::scratch::scratch;
use avidfs_tests::seed::{Dice, is_soak, seed};
use avidfs_tests::{data, eventually, timed};
use credentials::pki::{Pki, USUAL_DAYS};
use serde_json::Value;
use tempfile::TempDir;

/// Nobody has anything under this key.
const NO_SUCH_KEY: i32 = 3;
/// Two parts and something, with `--object-size 64KiB`.
const SIZE: u64 = 150_000;
const MIB: u64 = 1 << 20;
/// What no put or get takes longer than, with one node that does whatever it does.
const HASTE: Duration = Duration::from_secs(15);

/// Somebody with a key of his own.
struct Client<'a> {
    cluster: &'a Cluster,
    options: Vec<String>,
    folder: TempDir,
}

impl Client<'_> {
    fn new(cluster: &Cluster) -> Client<'_> {
        Client::by(cluster, "http", &[])
    }

    fn by<'a>(cluster: &'a Cluster, scheme: &str, access: &[String]) -> Client<'a> {
        let mut options = vec!["--peers".to_owned(), cluster.peers_by(scheme)];
        options.extend_from_slice(access);
        Client { cluster, options, folder: scratch() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = command("avidfs");
        command.args(words).args(&self.options).env("XDG_DATA_HOME", self.folder.path());
        command
    }

    fn try_put(&self, key: &str, seed: u64, size: u64) -> Output {
        let file = self.path("from");
        data::put(&file, seed, size);
        output(&mut self.command(&["put", file.to_str().unwrap(), "--key", key, "--object-size", "64KiB"]))
    }

    fn put(&self, key: &str, seed: u64, size: u64) {
        let answer = self.try_put(key, seed, size);
        assert!(answer.status.success(), "put {key}: {}", said(&answer));
    }

    fn try_get(&self, key: &str, to: &Path) -> Output {
        output(&mut self.command(&["get", "--key", key, "--out", to.to_str().unwrap()]))
    }

    /// What is read is the content of this seed.
    fn check(&self, key: &str, seed: u64, size: u64) {
        let to = self.path("to");
        let answer = self.try_get(key, &to);
        assert!(answer.status.success(), "get {key}: {}", said(&answer));
        data::compare(&to, seed, size).unwrap_or_else(|wrong| panic!("{key}: {wrong}"));
    }

    fn keys(&self) -> Vec<String> {
        let list = run(&mut self.command(&["list", "--json"]));
        let list: Value = serde_json::from_str(&list).unwrap();
        let objects = list.as_array().or_else(|| list["objects"].as_array()).unwrap();
        objects.iter().map(|object| object["key"].as_str().unwrap().to_owned()).collect()
    }

    /// Fragments of the store on a node, notes apart.
    fn fragments(&self, node: usize) -> usize {
        avidfs_tests::segments::records(&self.cluster.data_dir(node))
            .iter()
            .filter(|record| !record.key.starts_with('!'))
            .count()
    }
}

#[test]
fn objects_are_put_read_listed_and_deleted_while_a_node_is_dead_and_when_it_is_back() {
    let cluster = Cluster::agreeing(5, "3+2", &[], "http", &[]);
    let client = Client::new(&cluster);
    client.put("letters/a", 1, SIZE);
    client.put("empty", 2, 0);
    cluster.kill(1);
    client.put("letters/b", 3, SIZE);
    client.put("letters/a", 4, 2 * SIZE);
    client.check("letters/a", 4, 2 * SIZE);
    client.check("letters/b", 3, SIZE);
    client.check("empty", 2, 0);
    run(&mut client.command(&["delete", "--key", "empty"]));
    assert_eq!(client.keys(), ["letters/a", "letters/b"]);
    let gone = client.try_get("empty", &client.path("to"));
    assert_eq!(gone.status.code(), Some(NO_SUCH_KEY), "{}", said(&gone));
    assert!(!client.path("to").with_file_name("none").exists());
    // It hears of everything, completes what it lacks, and lets go of what is over.
    cluster.restart(1);
    let others = client.fragments(0);
    eventually(Duration::from_secs(20), "it has what the others have", || client.fragments(1) == others);
    cluster.kill(0);
    client.check("letters/a", 4, 2 * SIZE);
    client.check("letters/b", 3, SIZE);
}

#[test]
fn everything_acknowledged_is_there_after_all_nodes_were_killed() {
    let cluster = Cluster::agreeing(5, "3+2", &[], "http", &[]);
    let client = Client::new(&cluster);
    for round in 0..3 {
        for key in 0..5 {
            client.put(&format!("{key}"), 10 * round + key, SIZE + key);
        }
        (0..5).for_each(|node| cluster.kill(node));
        (0..5).for_each(|node| cluster.restart(node));
        for key in 0..5 {
            client.check(&format!("{key}"), 10 * round + key, SIZE + key);
        }
    }
    assert_eq!(client.keys(), ["0", "1", "2", "3", "4"]);
}

#[test]
fn owners_have_their_own_keys() {
    let cluster = Cluster::agreeing(4, "2+2", &[], "http", &[]);
    let (alice, bob) = (Client::new(&cluster), Client::new(&cluster));
    alice.put("same", 1, 1000);
    bob.put("same", 2, 1000);
    alice.check("same", 1, 1000);
    bob.check("same", 2, 1000);
    run(&mut bob.command(&["delete", "--key", "same"]));
    assert_eq!((alice.keys(), bob.keys()), (vec!["same".to_owned()], vec![]));
}

#[test]
fn bytes_go_through_pipes_and_no_file_appears_before_it_is_whole() {
    let cluster = Cluster::agreeing(5, "3+2", &[], "http", &[]);
    let client = Client::new(&cluster);
    let file = client.path("from");
    data::put(&file, 1, SIZE);
    let mut put = client.command(&["put", "-", "--key", "piped", "--object-size", "64KiB"]);
    assert!(put.stdin(fs::File::open(&file).unwrap()).status().unwrap().success());
    let got = output(&mut client.command(&["get", "--key", "piped", "--out", "-"]));
    assert!(got.status.success() && got.stdout == fs::read(&file).unwrap(), "{}", said(&got));
    // Three of five nodes are not there: nothing can be read, and what was there stays.
    (0..3).for_each(|node| cluster.kill(node));
    fs::write(client.path("to"), "before").unwrap();
    let to = client.path("to");
    let to_name = to.to_str().unwrap();
    let mut get = client.command(&["get", "--key", "piped", "--io-timeout", "2s", "--out", to_name]);
    let (refused, took) = timed(|| output(&mut get));
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(took < HASTE, "{took:?}");
    assert_eq!(fs::read_to_string(&to).unwrap(), "before");
    let names: Vec<_> = fs::read_dir(client.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "nothing half-read is left: {names:?}");
}

#[test]
fn nodes_speak_to_each_other_over_tls_and_let_no_node_in_as_a_client() {
    let folder = scratch();
    let pki = Pki::init(folder.path(), USUAL_DAYS).unwrap();
    let words = |files: &credentials::TlsFiles| -> Vec<String> {
        let shown = |path: &Path| path.to_str().unwrap().to_owned();
        let given = [("--tls-cert", &files.cert), ("--tls-key", &files.key), ("--tls-ca", &files.ca)];
        given.iter().flat_map(|(option, file)| [(*option).to_owned(), shown(file)]).collect()
    };
    let strs = |words: &[String]| -> Vec<&'static str> {
        words.iter().map(|word| &*Box::leak(word.clone().into_boxed_str())).collect()
    };
    let of_nodes = words(&pki.node(&[&own_ip().to_string()], None).unwrap());
    let of_client = words(&pki.client("client").unwrap());
    let cluster = Cluster::agreeing(5, "3+2", &strs(&of_nodes), "https", &strs(&of_client));
    let client = Client::by(&cluster, "https", &of_client);
    client.put("a", 1, SIZE);
    client.check("a", 1, SIZE);
    let broken_in = Client::by(&cluster, "https", &of_nodes);
    let refused = broken_in.try_put("a", 2, SIZE);
    assert!(!refused.status.success());
    assert!(said(&refused).contains("the certificate is a node's"), "{}", said(&refused));
}

/// The most memory a child ever held, in bytes.
fn peak_memory(mut command: Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: `usage` is plain numbers, of which zeros are some; the child is ours and was not waited for.
    let (usage, status) = unsafe {
        let (mut usage, mut status) = (std::mem::zeroed::<libc::rusage>(), 0);
        assert_eq!(libc::wait4(pid, &raw mut status, 0, &raw mut usage), pid);
        (usage, status)
    };
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{command:?}");
    let _ = child.try_wait();
    usage.ru_maxrss as u64 * 1024
}

#[test]
fn an_object_of_any_size_takes_64_mib_of_memory() {
    let size = if is_soak() { 1024 * MIB } else { 192 * MIB };
    let cluster = Cluster::agreeing(5, "3+2", &[], "http", &[]);
    let client = Client::new(&cluster);
    let (from, to) = (client.path("from"), client.path("to"));
    data::put(&from, 1, size);
    let put = peak_memory(client.command(&["put", from.to_str().unwrap(), "--key", "large"]));
    let get = peak_memory(client.command(&["get", "--key", "large", "--out", to.to_str().unwrap()]));
    data::compare(&to, 1, size).unwrap();
    cluster.kill(2);
    let decoded = peak_memory(client.command(&["get", "--key", "large", "--out", to.to_str().unwrap()]));
    data::compare(&to, 1, size).unwrap();
    let taken = [put, get, decoded].map(|bytes| bytes / MIB);
    eprintln!("{} MiB: put, get, and get with a node dead took {taken:?} MiB", size / MIB);
    assert!(taken.iter().all(|mib| *mib < 64), "put, get, and get with a node dead took {taken:?} MiB");
}

/// Every way to lie.
fn modes() -> Vec<&'static str> {
    [&evil::MODES[..], &evil::MODES_OF_AGREEMENT].concat()
}

fn with_evil_nodes_all_puts_and_gets_complete(
    code: &str,
    nodes: usize,
    modes: &[&str],
    dice: &mut Dice,
    sets: impl Fn(&mut Dice) -> Vec<Vec<usize>>,
) {
    let cluster = Cluster::agreeing(nodes, code, &[], "http", &[]);
    let client = Client::new(&cluster);
    (0..3).for_each(|key| client.put(&format!("old{key}"), key, SIZE));
    let mut contents = 10..;
    for mode in modes {
        for evil in sets(dice) {
            let case = format!("{mode} by nodes {evil:?} of {code}");
            eprintln!("{case}");
            evil.iter().for_each(|node| cluster.make_evil(*node, mode, dice.roll()));
            let (new, newest) = (contents.next().unwrap(), contents.next().unwrap());
            let ((), took) = timed(|| {
                (0..3).for_each(|key| client.check(&format!("old{key}"), key, SIZE));
                client.put("new", new, SIZE);
                client.check("new", new, SIZE);
                client.put("new", newest, 1000);
                client.check("new", newest, 1000);
            });
            assert!(took < 2 * HASTE, "{case}: {took:?}");
            let keys = client.keys();
            assert!(keys.iter().all(|key| key == "new" || key.starts_with("old")), "{case}: {keys:?}");
            assert_eq!(keys.len(), 4, "{case}: {keys:?}");
            evil.iter().for_each(|node| cluster.make_honest(*node));
            client.check("new", newest, 1000);
        }
    }
}

fn with_one_evil_node_all_puts_and_gets_complete(code: &str, nodes: usize) {
    let mut dice = Dice::new(seed());
    let sets = |dice: &mut Dice| evil::subsets(nodes, 1, dice);
    with_evil_nodes_all_puts_and_gets_complete(code, nodes, &modes(), &mut dice, sets);
}

#[test]
fn with_as_many_evil_nodes_as_a_larger_code_is_made_for_all_puts_and_gets_complete() {
    let mut dice = Dice::new(seed());
    for (code, nodes, faults) in evil::LARGER {
        let modes = evil::modes(&modes(), &mut dice);
        let sets = |dice: &mut Dice| vec![evil::some(nodes, faults, dice)];
        with_evil_nodes_all_puts_and_gets_complete(code, nodes, &modes, &mut dice, sets);
    }
}

#[test]
fn with_one_evil_node_of_3_and_2_all_puts_and_gets_complete() {
    with_one_evil_node_all_puts_and_gets_complete("3+2", 5);
}

#[test]
fn with_one_evil_node_of_2_and_2_all_puts_and_gets_complete() {
    with_one_evil_node_all_puts_and_gets_complete("2+2", 4);
}

#[test]
fn with_two_evil_nodes_no_wrong_byte_is_read() {
    let mut dice = Dice::new(seed());
    let cluster = Cluster::agreeing(5, "3+2", &[], "http", &[]);
    let client = Client::new(&cluster);
    client.put("old", 1, SIZE);
    for mode in modes() {
        for evil in evil::subsets(5, 2, &mut dice) {
            evil.iter().for_each(|node| cluster.make_evil(*node, mode, dice.roll()));
            let to = client.path("to");
            let to_name = to.to_str().unwrap();
            let mut get = client.command(&["get", "--key", "old", "--io-timeout", "3s", "--out", to_name]);
            let answer = output(&mut get);
            eprintln!("{mode} by nodes {evil:?}: {}", said(&answer));
            if answer.status.success() {
                data::compare(&to, 1, SIZE).unwrap_or_else(|wrong| panic!("{mode} by {evil:?}: {wrong}"));
            }
            evil.iter().for_each(|node| cluster.make_honest(*node));
        }
    }
    client.check("old", 1, SIZE);
}
