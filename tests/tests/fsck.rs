//! `avidfs fsck` on real nodes: what is well is called clean, what is not is named with path, object and node, and repaired.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use avidfs_tests::cluster::Cluster;
use avidfs_tests::fsck::{Checked, fsck_folder, fsck_mount, run};
use avidfs_tests::mount::{Mount, said};
use avidfs_tests::segments::{Place, records_of};
use avidfs_tests::{data, eventually, process};

const MIB: u64 = 1 << 20;
const NO_DISK_CACHE: &[&str] = &["--cache-disk", "0"];

/// A bit of what people do all day.
fn everyday(mount: &Mount) {
    data::put(&mount.path("large"), 1, 9 * MIB + 17);
    fs::create_dir_all(mount.path("a/b/c")).unwrap();
    for k in 0..100 {
        fs::write(mount.path(format!("a/b/{k}")), format!("small {k}")).unwrap();
    }
    for k in 0..30 {
        fs::rename(mount.path(format!("a/b/{k}")), mount.path(format!("a/b/c/{k}"))).unwrap();
        fs::remove_file(mount.path(format!("a/b/{}", 99 - k))).unwrap();
    }
    fs::rename(mount.path("a/b/c"), mount.path("c")).unwrap();
    fs::hard_link(mount.path("c/7"), mount.path("seven")).unwrap();
    std::os::unix::fs::symlink("c/7", mount.path("link")).unwrap();
    let file = OpenOptions::new().write(true).open(mount.path("large")).unwrap();
    file.write_all_at(&data::bytes(2, 0, 300_000), MIB).unwrap();
    file.set_len(5 * MIB).unwrap();
    file.set_len(6 * MIB).unwrap();
    process::run(std::process::Command::new("cp").arg("-r").args([mount.path("c"), mount.path("copy")]));
    fs::remove_dir_all(mount.path("copy")).unwrap();
    file.sync_all().unwrap();
}

/// Which node of the cluster a problem names.
fn node_of(cluster: &Cluster, problem: &serde_json::Value) -> usize {
    let named = problem["node"].as_str().unwrap();
    (0..cluster.len()).find(|node| named.ends_with(&cluster.address(*node).to_string())).unwrap()
}

#[track_caller]
fn assert_repaired(checked: &Checked) {
    assert!(
        checked.code == 1 && checked.number("left") == 0,
        "exit code {}: {:#}",
        checked.code,
        checked.report
    );
    assert!(checked.problems().iter().all(|problem| problem["repaired"] == true), "{:#}", checked.report);
}

#[test]
fn after_an_everyday_workload_a_volume_is_clean_mounted_and_not() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    everyday(&mount);
    let open = File::open(mount.path("c/7")).unwrap();
    fs::remove_file(mount.path("c/7")).unwrap();
    fs::remove_file(mount.path("seven")).unwrap();
    let checked = fsck_mount(&mount.root(), &["--deep"]);
    assert!(checked.is_clean().number("verified") >= 5 * checked.number("objects"), "{:#}", checked.report);
    assert!(checked.report["journal"].as_str().unwrap().contains("make the same"), "{:#}", checked.report);
    let output = run(&[mount.root().to_str().unwrap()]);
    let text = said(&output);
    assert!(output.status.success() && text.ends_with("\nclean\n"), "{text}");
    fsck_mount(&mount.root(), &["--repair"]).is_clean();
    drop(open);
    mount.unmount();
    let state = mount.state();
    fsck_folder(&state, &["--deep"]).is_clean();
    fsck_folder(&state, &["--repair", "--peers", &cluster.peers()]).is_clean();
    fsck_folder(&state, &[]).is_clean();
    mount.mount();
    assert_eq!(fs::read_to_string(mount.path("c/8")).unwrap(), "small 8");
    mount.unmount();
}

#[test]
fn a_deep_check_shows_on_a_terminal_how_far_it_is_and_nowhere_else() {
    process::need_program("script");
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    everyday(&mount);
    let check = |words: &str| {
        let line = format!("{} fsck {words}", process::program("avidfs").display());
        process::run(std::process::Command::new("script").args(["-qec", &line, "/dev/null"]))
    };
    let root = mount.root().display().to_string();
    let objects = fsck_mount(&mount.root(), &["--deep"]).number("objects");
    // What waits to be deleted is passed over, and counts as done.
    let is_shown = |printed: &str| {
        let (_, after) =
            printed.rsplit_once("\rverifying fragments: ").unwrap_or_else(|| panic!("{printed:?}"));
        let (done, all) =
            after.split_once(" objects\r\n").and_then(|(counts, _)| counts.split_once(" of ")).unwrap();
        assert!(done == all && all.parse::<u64>().unwrap() >= objects, "{printed:?}");
    };
    let on_terminal = check(&format!("{root} --deep"));
    is_shown(&on_terminal);
    assert!(!check(&root).contains("verifying"), "only a deep check takes long");
    let elsewhere = said(&run(&[&root, "--deep"]));
    assert!(!elsewhere.contains("verifying"), "{elsewhere}");
    mount.unmount();
    let on_terminal = check(&format!("--state {} --deep", mount.state().display()));
    is_shown(&on_terminal);
}

#[test]
fn nodes_inside_the_daemon_are_checked_too() {
    let mount = Mount::embedded(&["--code", "2+1"]);
    everyday(&mount);
    fsck_mount(&mount.root(), &["--deep"]).is_clean();
    mount.unmount();
    fsck_folder(&mount.state(), &["--deep", "--repair"]).is_clean();
}

#[test]
fn a_flipped_bit_is_found_by_a_deep_check_and_the_fragment_made_anew() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    data::put(&mount.path("file"), 1, MIB);
    mount.remount();
    let key = mount.info("file").keys().remove(0);
    for (index, place) in [(1, Place::FragmentMiddle), (4, Place::Hash(2)), (0, Place::FragmentZeroed)] {
        let node = mount.info("file").holder(&nodes(&cluster), index);
        records_of(&cluster.data_dir(node), &key)[0].damage(place, 3);
        fsck_mount(&mount.root(), &[]).is_clean();
        let checked = fsck_mount(&mount.root(), &["--deep", "--repair"]);
        assert_repaired(&checked);
        let problem = &checked.problems()[0];
        assert_eq!((checked.kinds(), node_of(&cluster, problem)), (vec!["corrupt"], node));
        assert_eq!((&problem["paths"][0], &problem["object"]), (&"/file".into(), &key.as_str().into()));
        assert_eq!(problem["fragment"], index);
        fsck_mount(&mount.root(), &["--deep"]).is_clean();
        assert!(mount.info("file").all_home());
    }
    mount.remount();
    data::check(&mount.path("file"), 1, MIB);
    mount.unmount();
}

#[test]
fn what_a_disk_lost_is_found_without_reading_and_made_anew_mounted_and_not() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    data::put(&mount.path("file"), 1, MIB);
    mount.remount();
    let lose = |node: usize| {
        let key = mount_key(&mount);
        cluster.kill(node);
        records_of(&cluster.data_dir(node), &key)[0].damage(Place::Header(0, 4), 1);
        cluster.restart(node);
        key
    };
    let key = lose(2);
    let checked = fsck_mount(&mount.root(), &[]);
    assert_eq!((checked.code, checked.kinds()), (4, vec!["missing"]), "{:#}", checked.report);
    assert_eq!(
        (node_of(&cluster, &checked.problems()[0]), &checked.problems()[0]["paths"][0]),
        (2, &"/file".into())
    );
    let text = said(&run(&[mount.root().to_str().unwrap()]));
    let line = format!("/file: object {key}: fragment ");
    assert!(
        text.starts_with(&line) && text.contains(&format!("is missing on http://{}\n", cluster.address(2))),
        "{text}"
    );
    assert_repaired(&fsck_mount(&mount.root(), &["--repair"]));
    fsck_mount(&mount.root(), &["--deep"]).is_clean();
    lose(3);
    mount.unmount();
    assert_eq!(fsck_folder(&mount.state(), &[]).kinds(), ["missing"]);
    assert_repaired(&fsck_folder(&mount.state(), &["--repair"]));
    fsck_folder(&mount.state(), &["--deep"]).is_clean();
    mount.mount();
    data::check(&mount.path("file"), 1, MIB);
    mount.unmount();
}

fn mount_key(mount: &Mount) -> String {
    mount.info("file").keys().remove(0)
}

fn nodes(cluster: &Cluster) -> Vec<std::net::SocketAddr> {
    (0..cluster.len()).map(|node| cluster.address(node)).collect()
}

#[test]
fn dead_nodes_are_named_and_are_no_damage() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    data::put(&mount.path("before"), 1, MIB);
    // What is flushed nowhere yet would be sent to other nodes.
    mount.remount();
    cluster.kill(1);
    cluster.kill(3);
    let checked = fsck_mount(&mount.root(), &["--deep"]);
    assert_eq!(checked.is_clean().report["silent"].as_array().unwrap().len(), 2);
    assert_eq!(checked.number("unseen_fragments"), 2);
    data::put(&mount.path("meanwhile"), 2, MIB);
    fsck_mount(&mount.root(), &["--repair"]).is_clean();
    mount.unmount();
    fsck_folder(&mount.state(), &[]).is_clean();
    cluster.restart(1);
    cluster.restart(3);
    mount.mount();
    eventually(Duration::from_secs(60), "every fragment is at home", || mount.info("meanwhile").all_home());
    let checked = fsck_mount(&mount.root(), &["--deep"]);
    assert_eq!(checked.is_clean().number("awaited_fragments"), 0);
    mount.unmount();
}

#[test]
fn a_damaged_metadata_store_is_made_anew_from_the_journal() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    everyday(&mount);
    mount.unmount();
    let state = mount.state();
    damage(&state, "DELETE FROM entry WHERE name = x'6c61726765'; UPDATE inode SET links = 9 WHERE ino = 1");
    let checked = fsck_folder(&state, &[]);
    assert_eq!(
        (checked.code, checked.kinds()),
        (4, vec!["journal", "links", "size", "unnamed"]),
        "{:#}",
        checked.report
    );
    assert_repaired(&fsck_folder(&state, &["--repair"]));
    fsck_folder(&state, &["--deep"]).is_clean();
    mount.mount();
    assert_eq!(fs::metadata(mount.path("large")).unwrap().len(), 6 * MIB);
    assert!(!mount.path("lost+found").exists(), "the journal knew its name");
    mount.unmount();
}

fn damage(state: &Path, sql: &str) {
    let db = rusqlite::Connection::open(state.join("metadata.sqlite")).unwrap();
    db.execute_batch(sql).unwrap();
}

#[test]
fn what_cannot_be_checked_is_refused_in_one_sentence() {
    let mount = Mount::embedded(&[]);
    // A mount is seen a moment before it is noted who serves it, and answers once it is.
    mount.status();
    let (root, state) = (mount.root(), mount.state());
    let (root, state) = (root.to_str().unwrap(), state.to_str().unwrap());
    let refused = |words: &[&str], code: i32| {
        let output = run(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", said(&output));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.starts_with("avidfs: ") && text.lines().count() == 1, "{text}");
        text
    };
    let sentence = refused(&["--state", state], 8);
    assert!(
        sentence.contains("is in use by the mount at") && sentence.contains("give the mount point"),
        "{sentence}"
    );
    let elsewhere = mount.path("nothing");
    let nothing = elsewhere.to_str().unwrap();
    assert!(refused(&["--state", nothing, "--repair"], 8).contains("there is no volume in"));
    assert!(!elsewhere.exists(), "a refusal makes nothing");
    refused(&[nothing], 8);
    refused(&[], 2);
    refused(&[root, "--state", state], 2);
    refused(&[root, "--peers", "http://127.0.0.1:1"], 2);
    refused(&[root, "--deeper"], 2);
    mount.unmount();
    let read_only = Mount::prepared(None, &["--read-only"]);
    fs::rename(mount.state(), read_only.state()).unwrap();
    read_only.mount();
    fsck_mount(&read_only.root(), &["--deep"]).is_clean();
    assert!(refused(&[read_only.root().to_str().unwrap(), "--repair"], 8).contains("read-only"));
    read_only.unmount();
}
