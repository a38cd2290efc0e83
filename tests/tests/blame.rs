//! What nodes are caught at, and what becomes of them: `avidfs blame`.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use avidfs_tests::cluster::Cluster;
use avidfs_tests::mount::{Mount, said};
use avidfs_tests::process::{command, output};
use avidfs_tests::segments::{Place, records};
use avidfs_tests::{data, eventually};
use serde_json::Value;

const SIZE: u64 = 100_000;
const OPTIONS: &[&str] = &["--cache-disk", "0", "--cache-memory", "1MiB", "--io-timeout", "5s"];
const FILES: u64 = 12;

fn blame(place: &[&str]) -> Vec<Value> {
    let answer = output(command("avidfs").arg("blame").args(place).arg("--json"));
    assert!(answer.status.success(), "{}", said(&answer));
    serde_json::from_slice::<Value>(&answer.stdout).unwrap().as_array().unwrap().clone()
}

fn of_mount(mount: &Mount) -> Vec<Value> {
    blame(&[mount.root().to_str().unwrap()])
}

/// A volume of 3+2 on six nodes with some files, on none of which anything is cached.
fn volume() -> (Cluster, Mount) {
    let cluster = Cluster::start(6);
    let mount = Mount::new(&cluster, OPTIONS);
    // Each in an object of its own.
    (0..FILES).for_each(|i| data::keep(&mount.path(format!("old{i}")), i, SIZE).unwrap());
    mount.unmount();
    (cluster, mount)
}

fn read_all(mount: &Mount) {
    for i in 0..FILES {
        data::compare(&mount.path(format!("old{i}")), i, SIZE).unwrap();
    }
}

/// What status says of the node at an address.
fn status_of(mount: &Mount, address: &str) -> Value {
    let status = mount.status();
    let nodes = status["nodes"].as_array().unwrap();
    nodes.iter().find(|node| node["address"].as_str().unwrap().ends_with(address)).unwrap().clone()
}

#[test]
fn a_liar_is_shown_with_what_it_signed_and_gets_nothing_new_until_it_is_cleared() {
    let (cluster, mount) = volume();
    let liar = cluster.address(0).to_string();
    cluster.make_evil(0, "flip", 5);
    mount.mount();
    read_all(&mount);
    eventually(Duration::from_secs(10), "it is blamed", || !of_mount(&mount).is_empty());
    let identity = status_of(&mount, &liar)["node"].as_str().unwrap().to_owned();
    for case in of_mount(&mount) {
        assert_eq!((case["node"].as_str(), case["verdict"].as_str()), (Some(&*identity), Some("lied")));
        assert_ne!(case["expected"], case["found"]);
        assert!(case["signed"]["signature"].is_string(), "{case}");
    }
    cluster.make_honest(0);
    eventually(Duration::from_secs(20), "it answers", || status_of(&mount, &liar)["state"] != "down");
    assert_eq!(status_of(&mount, &liar)["quarantined"], true);
    let holders = |name: &str| mount.info(name).0.to_string().contains(&liar);
    let put = |names: &[&str]| {
        names.iter().zip(50..).for_each(|(name, seed)| data::keep(&mount.path(name), seed, SIZE).unwrap());
    };
    put(&["a", "b", "c", "d"]);
    assert!(["a", "b", "c", "d"].iter().all(|name| !holders(name)), "it got something new");
    // It stays so over mounts, and can be seen without one.
    mount.unmount();
    let state = mount.state();
    let state = ["--state", state.to_str().unwrap()];
    assert!(!blame(&state).is_empty());
    mount.mount();
    assert_eq!(status_of(&mount, &liar)["quarantined"], true);
    let root = mount.root();
    let root = root.to_str().unwrap();
    let other = "0".repeat(32);
    assert!(!output(command("avidfs").args(["blame", root, "--clear", &other])).status.success());
    assert!(output(command("avidfs").args(["blame", root, "--clear", &identity])).status.success());
    assert_eq!((of_mount(&mount).len(), &status_of(&mount, &liar)["quarantined"]), (0, &Value::Bool(false)));
    put(&["e", "f", "g", "h"]);
    assert!(["e", "f", "g", "h"].iter().any(|name| holders(name)), "five of six nodes hold each");
    mount.unmount();
    assert!(blame(&state).is_empty());
}

#[test]
fn a_node_whose_disk_rots_owns_up_and_is_trusted_as_before() {
    let (cluster, mount) = volume();
    mount.mount();
    let keys = mount.info("old0").keys();
    let rotten = records(&cluster.data_dir(0)).into_iter().find(|record| keys.contains(&record.key));
    let (node, record) = match rotten {
        Some(record) => (0, record),
        None => (1, records(&cluster.data_dir(1)).into_iter().find(|r| keys.contains(&r.key)).unwrap()),
    };
    record.damage(Place::FragmentMiddle, 1000);
    // Its fragment may be one that a healthy read does not ask for.
    let checked = output(command("avidfs").args(["fsck", "--deep", "--repair"]).arg(mount.root()));
    assert_eq!(checked.status.code(), Some(1), "found and repaired: {}", said(&checked));
    eventually(Duration::from_secs(10), "it is noted", || !of_mount(&mount).is_empty());
    let cases = of_mount(&mount);
    assert_eq!((cases.len(), cases[0]["verdict"].as_str()), (1, Some("rotten")), "{cases:?}");
    assert_eq!(cases[0]["signed"], Value::Null);
    assert_eq!(status_of(&mount, &cluster.address(node).to_string())["quarantined"], false);
    read_all(&mount);
    mount.unmount();
}
