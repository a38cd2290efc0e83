//! The mount host's disk is lost, and the pool is enough.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::time::Duration;

use avidfs_tests::cluster::Cluster;
use avidfs_tests::data;
use avidfs_tests::mount::Mount;
use avidfs_tests::{eventually, process};

const MIB: u64 = 1 << 20;

fn avidfs(arguments: &[&str]) -> Output {
    process::command("avidfs").args(arguments).output().unwrap()
}

fn refused(arguments: &[&str]) -> String {
    let output = avidfs(arguments);
    assert!(!output.status.success(), "{arguments:?} was not refused");
    String::from_utf8(output.stderr).unwrap()
}

/// A volume with a tree on five nodes, unmounted; the key beside it.
fn filled(cluster: &Cluster) -> (Mount, String) {
    let mount = Mount::new(cluster, &[]);
    data::put(&mount.path("large"), 1, 9 * MIB);
    fs::create_dir_all(mount.path("a/b/c")).unwrap();
    for k in 0..300 {
        fs::write(mount.path(format!("a/b/c/{k}")), format!("small {k}")).unwrap();
    }
    std::os::unix::fs::symlink("b/c", mount.path("a/link")).unwrap();
    fs::hard_link(mount.path("a/b/c/7"), mount.path("a/seven")).unwrap();
    mount.unmount();
    let key = avidfs(&["key", "export", "--state", mount.state().to_str().unwrap()]);
    assert!(key.status.success());
    (mount, String::from_utf8(key.stdout).unwrap())
}

fn check_tree(mount: &Mount) {
    data::check(&mount.path("large"), 1, 9 * MIB);
    assert_eq!(fs::read_dir(mount.path("a/link")).unwrap().count(), 300);
    assert_eq!(fs::read(mount.path("a/seven")).unwrap(), b"small 7");
    for k in 0..300 {
        assert_eq!(fs::read_to_string(mount.path(format!("a/b/c/{k}"))).unwrap(), format!("small {k}"));
    }
}

#[test]
fn any_three_of_five_nodes_and_the_key_give_the_volume_back() {
    let cluster = Cluster::start(5);
    let (mount, key) = filled(&cluster);
    let state = mount.state();
    let key_file = state.with_extension("key");
    fs::write(&key_file, key).unwrap();
    for (dead, mode) in [([0, 1], 0o644), ([2, 4], 0o640), ([1, 3], 0o600)] {
        fs::set_permissions(&key_file, fs::Permissions::from_mode(mode)).unwrap();
        dead.iter().for_each(|k| cluster.kill(*k));
        fs::remove_dir_all(&state).unwrap();
        let (peers, state) = (cluster.peers(), state.to_str().unwrap());
        let key = key_file.to_str().unwrap();
        let output = avidfs(&["recover", "--peers", &peers, "--state", state, "--key", key]);
        let warned = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{warned}");
        let is_told = warned.contains("others may read or change the volume's key: chmod 600 ");
        assert_eq!(is_told, mode != 0o600, "{warned}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.starts_with("recovered volume default into "), "{said}");
        mount.mount();
        check_tree(&mount);
        fs::write(mount.path("after"), format!("without {dead:?}")).unwrap();
        mount.unmount();
        dead.iter().for_each(|k| cluster.restart(*k));
    }
    // A state folder that is there is not overwritten.
    let (peers, state) = (cluster.peers(), state.to_str().unwrap());
    assert!(refused(&["recover", "--peers", &peers, "--state", state]).contains("has a volume already"));
}

#[test]
fn without_the_key_the_volume_can_be_read_and_not_written() {
    let cluster = Cluster::start(5);
    let (mount, _) = filled(&cluster);
    let state = mount.state();
    fs::remove_dir_all(&state).unwrap();
    let output = avidfs(&["recover", "--peers", &cluster.peers(), "--state", state.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8(output.stdout).unwrap().contains("--read-only"));
    let sentence = mount.try_mount().unwrap_err().sentence;
    assert!(sentence.contains("only the public half"), "{sentence}");
    let reading = Mount::prepared(Some(cluster.peers()), &["--read-only"]);
    fs::rename(&state, reading.state()).unwrap();
    reading.mount();
    check_tree(&reading);
    assert!(fs::write(reading.path("new"), "x").is_err());
    reading.unmount();
}

/// Without `--peers`, as a volume is mounted again.
fn mounted_again(mount: &Mount) -> String {
    let (root, state) = (mount.root(), mount.state());
    refused(&["mount", root.to_str().unwrap(), "-f", "--state", state.to_str().unwrap()])
}

fn lose_metadata(mount: &Mount) {
    for file in fs::read_dir(mount.state()).unwrap().map(|entry| entry.unwrap().path()) {
        if file.file_name().unwrap().to_str().unwrap().starts_with("metadata.sqlite") {
            fs::remove_file(file).unwrap();
        }
    }
}

#[test]
fn a_folder_whose_metadata_is_gone_becomes_no_other_volume() {
    let cluster = Cluster::start(5);
    let (mount, key) = filled(&cluster);
    lose_metadata(&mount);
    let refusal = mounted_again(&mount);
    assert!(refusal.contains("the metadata of volume") && refusal.contains("avidfs recover"), "{refusal}");
    assert!(mount.try_mount().is_err(), "nor with --peers");
    assert_eq!(mount.key(), key);
    fs::rename(mount.state(), mount.state().with_extension("old")).unwrap();
    mount.recover(&key);
    mount.mount();
    check_tree(&mount);
    mount.unmount();
}

#[test]
fn nodes_inside_a_daemon_stay_when_the_metadata_is_gone_and_give_the_volume_back() {
    let inside = Mount::embedded(&[]);
    data::put(&inside.path("only copy"), 1, 3 * MIB);
    inside.unmount();
    let key = inside.key();
    lose_metadata(&inside);
    let refusal = mounted_again(&inside);
    assert!(refusal.contains("once `shardd --data` serves each folder"), "{refusal}");
    assert_eq!(inside.key(), key);
    let cluster = Cluster::start(5);
    for node in 0..5 {
        cluster.kill(node);
        fs::remove_dir_all(cluster.data_dir(node)).unwrap();
        fs::rename(inside.state().join("nodes").join(node.to_string()), cluster.data_dir(node)).unwrap();
        cluster.restart(node);
    }
    let outside = Mount::prepared(Some(cluster.peers()), &[]);
    outside.recover(&key);
    outside.mount();
    data::check(&outside.path("only copy"), 1, 3 * MIB);
    outside.unmount();
}

#[test]
fn a_wrong_key_and_too_few_nodes_are_refused_and_nothing_is_touched() {
    let cluster = Cluster::start(5);
    let (mount, key) = filled(&cluster);
    let state = mount.state();
    fs::remove_dir_all(&state).unwrap();
    let (peers, state_text) = (cluster.peers(), state.to_str().unwrap());
    let other = state.with_extension("other");
    let digit = if key.ends_with("0\n") { "1\n" } else { "0\n" };
    fs::write(&other, format!("{}{digit}", &key[..key.len() - 2])).unwrap();
    let other = other.to_str().unwrap();
    let wrong = refused(&["recover", "--peers", &peers, "--state", state_text, "--key", other]);
    assert!(wrong.contains("this is not the volume's key"), "{wrong}");
    let zeros = "0".repeat(64);
    let wrong = refused(&["recover", "--peers", &peers, "--state", state_text, "--fingerprint", &zeros]);
    assert!(wrong.contains("the volume is signed with"), "{wrong}");
    let wrong = refused(&["recover", "--peers", &peers, "--state", state_text, "--volume", "music"]);
    assert!(wrong.contains("the nodes know no volume music"), "{wrong}");
    [0, 1, 2].iter().for_each(|k| cluster.kill(*k));
    let few = refused(&["recover", "--peers", &peers, "--state", state_text]);
    assert!(few.contains("2 nodes of volume default answer, 3 are needed"), "{few}");
    assert!(!state.exists(), "a refusal makes nothing");
}

#[test]
fn a_second_host_is_kept_out_until_it_takes_over_and_then_the_first_is_fenced() {
    let cluster = Cluster::start(5);
    let (first, key) = filled(&cluster);
    let second = Mount::prepared(Some(cluster.peers()), &[]);
    let key_file = second.state().with_extension("key");
    fs::write(&key_file, key).unwrap();
    let (peers, state) = (cluster.peers(), second.state());
    let arguments = [
        "recover",
        "--peers",
        &peers,
        "--state",
        state.to_str().unwrap(),
        "--key",
        key_file.to_str().unwrap(),
    ];
    assert!(avidfs(&arguments).status.success());
    first.mount();
    fs::write(first.path("kept"), "by the first").unwrap();
    fs::File::open(first.path("kept")).unwrap().sync_all().unwrap();
    let sentence = second.try_mount().unwrap_err().sentence;
    assert!(sentence.contains("is mounted on ") && sentence.contains("--take-over"), "{sentence}");

    let taking = Mount::prepared(Some(cluster.peers()), &["--take-over"]);
    fs::rename(second.state(), taking.state()).unwrap();
    taking.mount();
    check_tree(&taking);
    assert_eq!(fs::read(taking.path("kept")).unwrap(), b"by the first");
    fs::write(taking.path("new"), "by the second").unwrap();
    // Whatever the first still tries, nothing of it reaches the volume.
    let _refused = fs::write(first.path("late"), "by the first")
        .and_then(|()| fs::File::open(first.path("late"))?.sync_all());
    eventually(Duration::from_secs(20), "the first is fenced", || {
        let written = fs::write(first.path("later"), "x");
        written.is_err_and(|error| error.raw_os_error() == Some(libc::EROFS))
    });
    assert_eq!(fs::read(taking.path("new")).unwrap(), b"by the second");
    assert!(!taking.path("late").exists());
    taking.unmount();
    first.kill();
}
