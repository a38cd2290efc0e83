//! Nodes that come back with the disk of an earlier day, or with none: what was lost with it is read from the others,
//! and an older state is never taken for the newest.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use avidfs_tests::cluster::Cluster;
use avidfs_tests::fsck::fsck_mount;
use avidfs_tests::mount::{Mount, said};
use avidfs_tests::process::run;
use avidfs_tests::{data, eventually, process};

const NO_DISK_CACHE: &[&str] = &["--cache-disk", "0", "--io-timeout", "5s"];

/// Keeps copies of nodes' disks.
struct Attic<'a> {
    cluster: &'a Cluster,
}

impl Attic<'_> {
    fn place(&self, node: usize) -> PathBuf {
        self.cluster.data_dir(node).with_extension("copy")
    }

    /// Copy a node's disk while it is down.
    fn keep(&self, node: usize) {
        self.cluster.terminate(node);
        let (from, to) = (self.cluster.data_dir(node), self.place(node));
        run(Command::new("cp").arg("-a").args([&from, &to]));
        self.cluster.restart(node);
    }

    /// Kill a node, and let it go on with its old disk.
    fn bring_back(&self, node: usize) {
        self.cluster.kill(node);
        fs::remove_dir_all(self.cluster.data_dir(node)).unwrap();
        fs::rename(self.place(node), self.cluster.data_dir(node)).unwrap();
        self.cluster.restart(node);
    }

    /// The same with nothing at all on it.
    fn empty(&self, node: usize) {
        self.cluster.kill(node);
        fs::remove_dir_all(self.cluster.data_dir(node)).unwrap();
        self.cluster.restart(node);
    }
}

fn all_up(mount: &Mount) {
    eventually(Duration::from_secs(20), "every node is up", || mount.status()["nodes_up"] == 5);
}

/// Files of an earlier day, `count` of them from `first` on.
fn write(mount: &Mount, first: u64, count: u64) {
    for i in first..first + count {
        data::keep(&mount.path(format!("{i}")), i, 300_000 * (i % 10 + 1)).unwrap();
    }
}

fn check(mount: &Mount, first: u64, count: u64) {
    for i in first..first + count {
        data::check(&mount.path(format!("{i}")), i, 300_000 * (i % 10 + 1));
    }
}

/// A volume that went on after a node's disk was copied.
fn went_on(cluster: &Cluster, copied: &[usize]) -> Mount {
    let mount = Mount::new(cluster, NO_DISK_CACHE);
    write(&mount, 0, 8);
    copied.iter().for_each(|node| Attic { cluster }.keep(*node));
    all_up(&mount);
    write(&mount, 10, 8);
    // Content, and a name, that the old disk has otherwise.
    data::keep(&mount.path("0"), 20, 700_000).unwrap();
    fs::rename(mount.path("1"), mount.path("one")).unwrap();
    fs::File::open(mount.root()).unwrap().sync_all().unwrap();
    mount
}

fn is_the_newest(mount: &Mount) {
    check(mount, 2, 6);
    check(mount, 10, 8);
    data::check(&mount.path("0"), 20, 700_000);
    data::check(&mount.path("one"), 1, 600_000);
    assert!(!mount.path("1").exists());
}

#[test]
fn an_old_disk_under_a_running_mount_costs_no_byte_with_another_node_dead() {
    let cluster = Cluster::start(5);
    let mount = went_on(&cluster, &[1]);
    Attic { cluster: &cluster }.bring_back(1);
    is_the_newest(&mount);
    for dead in [0, 2, 3, 4] {
        cluster.kill(dead);
        // No cache, of the kernel's or the mount's, answers for the nodes.
        mount.remount();
        is_the_newest(&mount);
        cluster.restart(dead);
        all_up(&mount);
    }
    mount.unmount();
}

#[test]
fn an_old_disk_between_mounts_costs_no_byte_with_another_node_dead() {
    let cluster = Cluster::start(5);
    let mount = went_on(&cluster, &[1]);
    mount.unmount();
    Attic { cluster: &cluster }.bring_back(1);
    for dead in [0, 4] {
        cluster.kill(dead);
        mount.mount();
        is_the_newest(&mount);
        mount.unmount();
        cluster.restart(dead);
    }
}

#[test]
fn what_an_old_disk_lacks_is_rebuilt_once_a_reader_missed_it() {
    let cluster = Cluster::start(5);
    let mount = went_on(&cluster, &[1]);
    let addresses: Vec<_> = (0..5).map(|node| cluster.address(node)).collect();
    let data_on =
        |name: &String, node| (0..3).any(|index| mount.info(name).holder(&addresses, index) == node);
    let since: Vec<String> = (10..18).map(|i| i.to_string()).filter(|name| data_on(name, 1)).collect();
    assert!(!since.is_empty(), "of eight files one has a data fragment there");
    Attic { cluster: &cluster }.bring_back(1);
    mount.remount();
    assert!(
        since.iter().all(|name| !mount.info(name).all_home()),
        "what was written since is not on the old disk"
    );
    is_the_newest(&mount);
    eventually(Duration::from_secs(60), "what was missed is at home", || {
        since.iter().all(|name| mount.info(name).all_home())
    });
    for (a, b) in [(0, 2), (3, 4)] {
        cluster.kill(a);
        cluster.kill(b);
        mount.remount();
        for name in &since {
            let i: u64 = name.parse().unwrap();
            data::check(&mount.path(name), i, 300_000 * (i % 10 + 1));
        }
        cluster.restart(a);
        cluster.restart(b);
    }
    mount.unmount();
}

#[test]
fn a_recovered_volume_is_the_newest_also_with_an_old_disk_and_a_dead_node() {
    let cluster = Cluster::start(5);
    let mount = went_on(&cluster, &[2]);
    let key = mount.key();
    mount.unmount();
    Attic { cluster: &cluster }.bring_back(2);
    for dead in [0, 4] {
        cluster.kill(dead);
        fs::remove_dir_all(mount.state()).unwrap();
        mount.recover(&key);
        mount.mount();
        is_the_newest(&mount);
        mount.unmount();
        cluster.restart(dead);
    }
}

#[test]
fn nodes_with_old_disks_alone_are_refused_by_a_store_that_has_seen_more() {
    let cluster = Cluster::start(5);
    let mount = went_on(&cluster, &[0, 1, 2]);
    mount.unmount();
    let attic = Attic { cluster: &cluster };
    (0..3).for_each(|node| attic.bring_back(node));
    let current = [3, 4];
    current.iter().for_each(|node| cluster.kill(*node));
    let sentence = mount.try_mount().unwrap_err().sentence;
    assert!(sentence.contains("this store has seen entry"), "{sentence}");
    for node in current {
        assert!(sentence.contains(&cluster.address(node).to_string()), "the silent are named: {sentence}");
    }
    // One that has the newest state is enough for the metadata; of bytes, two of five fragments are not.
    current.iter().for_each(|node| cluster.restart(*node));
    mount.mount();
    check(&mount, 2, 6);
    assert!(mount.path("one").exists() && !mount.path("1").exists());
    let lost = data::compare(&mount.path("10"), 10, 300_000).unwrap_err();
    assert!(lost.contains("Input/output error"), "an error, and never other bytes: {lost}");
    mount.unmount();
}

#[test]
fn a_volume_recovered_from_old_disks_alone_is_of_one_day_and_says_of_which() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    write(&mount, 0, 8);
    let key = mount.key();
    mount.unmount();
    let attic = Attic { cluster: &cluster };
    (0..3).for_each(|node| attic.keep(node));
    mount.mount();
    write(&mount, 10, 8);
    fs::rename(mount.path("1"), mount.path("one")).unwrap();
    mount.unmount();
    (0..3).for_each(|node| attic.bring_back(node));
    [3, 4].iter().for_each(|node| cluster.kill(*node));
    fs::remove_dir_all(mount.state()).unwrap();
    let said = mount.recover(&key);
    assert!(
        said.contains("its last durable change is in entry ") && said.contains(", of epoch 1, written "),
        "{said}"
    );
    mount.mount();
    check(&mount, 0, 8);
    assert_eq!(fs::read_dir(mount.root()).unwrap().count(), 8);
    mount.unmount();
}

#[test]
fn a_node_that_lost_its_disk_costs_no_byte_with_another_one_dead_and_none_once_its_files_were_written_again()
{
    let cluster = Cluster::start(5);
    let mount = went_on(&cluster, &[]);
    let key = mount.key();
    let attic = Attic { cluster: &cluster };
    attic.empty(3);
    is_the_newest(&mount);
    for dead in [0, 4] {
        cluster.kill(dead);
        is_the_newest(&mount);
        mount.remount();
        is_the_newest(&mount);
        cluster.restart(dead);
        all_up(&mount);
    }
    mount.unmount();
    fs::remove_dir_all(mount.state()).unwrap();
    cluster.kill(1);
    mount.recover(&key);
    mount.mount();
    is_the_newest(&mount);
    cluster.restart(1);
    mount.remount();
    // What is written from now on is over the new disk.
    write(&mount, 30, 4);
    for (a, b) in [(0, 1), (2, 4)] {
        cluster.kill(a);
        cluster.kill(b);
        mount.remount();
        check(&mount, 30, 4);
        cluster.restart(a);
        cluster.restart(b);
    }
    mount.unmount();
}

/// An empty disk answered at the same address: all was well, and after three of them bytes were lost.
#[test]
fn a_node_that_lost_its_disk_is_gone_until_nothing_is_placed_on_it_any_more() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    write(&mount, 0, 4);
    Attic { cluster: &cluster }.empty(3);
    let gone = || {
        let nodes = mount.status()["nodes"].as_array().unwrap().clone();
        let gone = nodes.iter().filter(|node| node["state"] == "gone");
        gone.map(|node| node["address"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let lost = format!("http://{}", cluster.address(3));
    eventually(Duration::from_secs(20), "it is missed", || gone() == [lost.as_str()]);
    assert_eq!(mount.status()["nodes_up"], 4);
    let told = || run(process::command("avidfs").arg("status").arg(mount.root()));
    assert!(told().contains("4 of 5 up, 1 gone: reading and writing go on"), "{}", told());
    assert!(told().contains("any one more node may be lost"), "{}", told());

    // The new disk joins.
    mount.remount();
    assert!(mount.log().contains(&format!("another one answers at {lost}, where it was")), "{}", mount.log());
    assert!(told().contains("5 of 6 up, 1 gone: "), "{}", told());
    mount.remount();
    assert_eq!(gone(), [lost.as_str()]);
    (0..4).for_each(|i| fs::remove_file(mount.path(format!("{i}"))).unwrap());
    eventually(Duration::from_secs(20), "nothing of it is missed", || gone().is_empty());
    assert!(told().contains("5 of 5 up: all is well"), "{}", told());
    mount.unmount();
}

/// `avidfs rebalance`; returns what it printed.
fn rebalance(mount: &Mount, words: &[&str]) -> String {
    run(process::command("avidfs").arg("rebalance").arg(mount.root()).args(words))
}

fn gone(mount: &Mount) -> usize {
    let status = mount.status();
    let nodes = status["nodes"].as_array().unwrap();
    nodes.iter().filter(|node| node["state"] == "gone").count()
}

/// A node whose disk is lost for good could be replaced only by writing all files again.
#[test]
fn what_was_on_a_lost_disk_is_made_anew_on_the_one_in_its_place() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    write(&mount, 0, 20);
    mount.unmount();
    Attic { cluster: &cluster }.empty(1);
    mount.mount();
    all_up(&mount);
    assert_eq!(gone(&mount), 1);
    let told = rebalance(&mount, &["--dry-run"]);
    assert!(told.contains("20 fragments would be made anew"), "{told}");
    assert_eq!(gone(&mount), 1);
    // Whoever mounts it next goes on.
    rebalance(&mount, &["--no-wait"]);
    mount.kill();
    mount.mount();
    check(&mount, 0, 20);
    let told = rebalance(&mount, &[]);
    assert!(told.contains("everything is placed by the current list"), "{told}");
    assert_eq!((gone(&mount), mount.status()["objects_not_at_home"].as_u64()), (0, Some(0)));
    fsck_mount(&mount.root(), &["--deep"]).is_clean();
    for (a, b) in [(0, 2), (3, 4)] {
        cluster.kill(a);
        cluster.kill(b);
        mount.remount();
        check(&mount, 0, 20);
        cluster.restart(a);
        cluster.restart(b);
        all_up(&mount);
    }
    mount.unmount();
}

/// It waits no longer than anything arrives.
#[test]
fn rebalancing_onto_a_node_that_is_down_says_so_and_goes_on_later() {
    let cluster = Cluster::start(6);
    let five: Vec<String> = (0..5).map(|node| format!("http://{}", cluster.address(node))).collect();
    let mut mount = Mount::on(Some(five.join(",")), NO_DISK_CACHE);
    write(&mount, 0, 10);
    mount.unmount();
    mount.set_peers(cluster.peers());
    mount.mount();
    cluster.kill(5);
    eventually(Duration::from_secs(20), "the new one is down", || mount.status()["nodes_up"] == 5);
    let output = process::command("avidfs").arg("rebalance").arg(mount.root()).output().unwrap();
    let told = said(&output);
    assert!(!output.status.success() && told.contains("objects wait to go where they belong"), "{told}");
    check(&mount, 0, 10);
    cluster.restart(5);
    rebalance(&mount, &[]);
    fsck_mount(&mount.root(), &["--deep"]).is_clean();
    mount.unmount();
}
