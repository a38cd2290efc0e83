//! Nodes and daemons that die, hang, fill up and come back, through a real mount: no byte is lost or wrong, nothing hangs.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use avidfs_tests::cluster::Cluster;
use avidfs_tests::files::errno;
use avidfs_tests::mount::{Mount, said};
use avidfs_tests::relay::{Relay, Uplink};
use avidfs_tests::scratch::{is_mounted, scratch};
use avidfs_tests::seed::{Dice, rounds, seed};
use avidfs_tests::{data, eventually, timed};

const MIB: u64 = 1 << 20;
/// So that reads ask nodes after a remount.
const NO_DISK_CACHE: &[&str] = &["--cache-disk", "0"];
/// A quick end for what cannot succeed.
const HASTY: &[&str] = &["--cache-disk", "0", "--io-timeout", "3s"];
/// What `--io-timeout 3s` allows, with time for a busy machine.
const HASTE: Duration = Duration::from_secs(6);
/// Moving home begins when the pool has noticed that a node is back.
const HOMECOMING: Duration = Duration::from_secs(60);

/// Files of many sizes, each with its own content.
fn write_files(mount: &Mount, name: &str) -> Vec<(String, u64, u64)> {
    let sizes = [1, 1000, 100_000, MIB, 4 * MIB, 9 * MIB + 17];
    let files: Vec<_> =
        sizes.into_iter().enumerate().map(|(i, size)| (format!("{name}-{i}"), i as u64 + 1, size)).collect();
    for (name, seed, size) in &files {
        data::put(&mount.path(name), *seed, *size);
    }
    files
}

fn check_files(mount: &Mount, files: &[(String, u64, u64)]) {
    for (name, seed, size) in files {
        data::check(&mount.path(name), *seed, *size);
    }
}

fn pairs(count: usize) -> Vec<(usize, usize)> {
    (0..count).flat_map(|a| (a + 1..count).map(move |b| (a, b))).collect()
}

fn all_home(mount: &Mount, name: &str) {
    eventually(HOMECOMING, "every fragment is at home", || mount.info(name).all_home());
    let info = mount.info(name);
    assert!(info.spread().iter().all(|counts| counts.iter().all(|count| *count == 1)), "{:?}", info.spread());
}

#[test]
fn any_two_dead_nodes_leave_every_byte_readable() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    let files = write_files(&mount, "file");
    for (a, b) in pairs(5) {
        cluster.kill(a);
        cluster.kill(b);
        mount.remount();
        check_files(&mount, &files);
        cluster.restart(a);
        cluster.restart(b);
    }
    mount.unmount();
}

#[test]
fn nodes_killed_in_the_middle_of_writes_cost_no_byte() {
    let mut dice = Dice::new(seed());
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    for round in 0..rounds(4, 100) {
        let (a, b) = *dice.pick(&pairs(5));
        let (first, second) = (dice.below(300), dice.below(300));
        let (sizes, file) = ([MIB, 6 * MIB, 5000, 11 * MIB], |i: u64| format!("r{round}-{i}"));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(first));
                cluster.kill(a);
                std::thread::sleep(Duration::from_millis(second));
                cluster.kill(b);
            });
            for i in 0..24 {
                data::put(&mount.path(file(i)), round * 100 + i, sizes[i as usize % 4]);
            }
        });
        mount.remount();
        for i in 0..24 {
            data::check(&mount.path(file(i)), round * 100 + i, sizes[i as usize % 4]);
        }
        cluster.restart(a);
        cluster.restart(b);
        all_home(&mount, &file(23));
        for i in 0..24 {
            fs::remove_file(mount.path(file(i))).unwrap();
        }
    }
    mount.unmount();
}

#[test]
fn nodes_killed_in_the_middle_of_reads_cost_no_byte() {
    let mut dice = Dice::new(seed());
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    let size = 96 * MIB;
    data::put(&mount.path("file"), 7, size);
    for _ in 0..rounds(4, 100) {
        let (a, b) = *dice.pick(&pairs(5));
        let (first, second) = (dice.below(150), dice.below(150));
        mount.remount();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(first));
                cluster.kill(a);
                std::thread::sleep(Duration::from_millis(second));
                cluster.kill(b);
            });
            data::check(&mount.path("file"), 7, size);
        });
        cluster.restart(a);
        cluster.restart(b);
    }
}

#[test]
fn with_two_dead_writes_go_on_and_their_fragments_move_home_later() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    // What is not flushed yet when nodes die is sent again, elsewhere.
    data::keep(&mount.path("before"), 1, 9 * MIB).unwrap();
    assert_eq!(mount.info("before").survives(), 2);
    cluster.kill(1);
    cluster.kill(3);
    let files = write_files(&mount, "during");
    for (name, _, _) in &files {
        let info = mount.info(name);
        assert!(info.object_count() > 0);
        assert!(info.spread().iter().all(|counts| counts[..] == [2, 2, 1]), "{name}: {:?}", info.spread());
        assert_eq!(info.survives(), 1);
    }
    assert_eq!(mount.info("before").survives(), 0, "of five fragments two are on dead nodes");
    cluster.restart(1);
    cluster.restart(3);
    for (name, _, _) in &files {
        all_home(&mount, name);
        assert_eq!(mount.info(name).survives(), 2);
    }
    cluster.kill(0);
    cluster.kill(4);
    mount.remount();
    check_files(&mount, &files);
    data::check(&mount.path("before"), 1, 9 * MIB);
    mount.unmount();
}

#[test]
fn with_three_dead_everything_fails_in_time_and_nothing_is_lost() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, HASTY);
    data::put(&mount.path("before"), 1, 5 * MIB);
    mount.remount();
    for node in [0, 2, 4] {
        cluster.kill(node);
    }
    let (read, time) = timed(|| fs::read(mount.path("before")));
    assert_eq!(errno(&read), libc::EIO);
    assert!(time < HASTE, "a read that cannot succeed took {time:?}");

    let kept_open = data::write(&mount.path("open"), 2, 3 * MIB).unwrap();
    let (synced, time) = timed(|| kept_open.sync_all());
    assert_eq!(errno(&synced), libc::EIO);
    assert!(time < HASTE, "an fsync that cannot succeed took {time:?}");
    let (closed, time) = timed(|| data::close(data::write(&mount.path("closed"), 3, 3 * MIB).unwrap()));
    assert_eq!(errno(&closed), libc::EIO);
    assert!(time < HASTE, "a close that cannot succeed took {time:?}");
    assert!(fs::metadata(mount.path("before")).is_ok(), "names need no nodes");

    for node in [0, 2, 4] {
        cluster.restart(node);
    }
    eventually(HASTE * 5, "fsync succeeds again", || kept_open.sync_all().is_ok());
    let reopened = OpenOptions::new().write(true).open(mount.path("closed")).unwrap();
    eventually(HASTE * 5, "also of what a close could not store", || reopened.sync_all().is_ok());
    data::close(reopened).unwrap();
    data::close(kept_open).unwrap();
    eventually(HASTE * 5, "reads succeed again", || fs::read(mount.path("before")).is_ok());
    mount.remount();
    data::check(&mount.path("before"), 1, 5 * MIB);
    data::check(&mount.path("open"), 2, 3 * MIB);
    data::check(&mount.path("closed"), 3, 3 * MIB);
    mount.unmount();
}

#[test]
fn an_unwritable_pool_stops_a_long_write_in_time() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, HASTY);
    let mut file = File::create(mount.path("file")).unwrap();
    for node in 0..3 {
        cluster.kill(node);
    }
    let chunk = data::bytes(1, 0, MIB as usize);
    let mut slowest = Duration::ZERO;
    let mut written = 0;
    let failed = loop {
        let (result, time) = timed(|| file.write_all(&chunk));
        slowest = slowest.max(time);
        match result {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 4096, "4 GiB were taken with nowhere to go");
    };
    assert_eq!(failed.raw_os_error(), Some(libc::EIO));
    assert!(slowest < HASTE, "one write took {slowest:?}");
    for node in 0..3 {
        cluster.restart(node);
    }
    eventually(HASTE * 5, "it can be stored after all", || file.sync_all().is_ok());
    assert!(file.metadata().unwrap().len() >= written * MIB);
}

#[test]
fn a_stopped_node_is_waited_for_once_not_at_every_request() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    for i in 0..50 {
        data::put(&mount.path(format!("{i}")), i, 300_000);
    }
    mount.remount();
    cluster.stop(2);
    let ((), reads) = timed(|| (0..50).for_each(|i| data::check(&mount.path(format!("{i}")), i, 300_000)));
    assert!(reads < Duration::from_secs(10), "50 reads beside a stopped node took {reads:?}");
    let ((), writes) = timed(|| (50..70).for_each(|i| data::put(&mount.path(format!("{i}")), i, 300_000)));
    assert!(writes < Duration::from_secs(15), "20 writes beside a stopped node took {writes:?}");
    let file = OpenOptions::new().write(true).open(mount.path("60")).unwrap();
    let (synced, time) = timed(|| file.sync_all());
    synced.unwrap();
    assert!(time < Duration::from_secs(15), "fsync beside a stopped node took {time:?}");
    drop(file);
    let ((), unmounting) = timed(|| mount.unmount());
    assert!(unmounting < Duration::from_secs(40), "umount beside a stopped node took {unmounting:?}");
    cluster.cont(2);
    mount.mount();
    (0..70).for_each(|i| data::check(&mount.path(format!("{i}")), i, 300_000));
    eprintln!(
        "beside a stopped node: 50 reads {reads:?}, 20 writes {writes:?}, fsync {time:?}, umount {unmounting:?}"
    );
}

#[test]
fn nodes_come_back_with_everything_they_had() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    let files = write_files(&mount, "file");
    for node in 0..5 {
        match node % 2 {
            0 => cluster.terminate(node),
            _ => cluster.kill(node),
        }
        cluster.restart(node);
    }
    mount.remount();
    check_files(&mount, &files);
    for (name, _, _) in &files {
        all_home(&mount, name);
    }
    // All at once, between closing and any flush.
    let more = write_files(&mount, "more");
    (0..5).for_each(|node| cluster.kill(node));
    (0..5).for_each(|node| cluster.restart(node));
    eventually(HOMECOMING, "the daemon finds its nodes again", || fs::read(mount.path(&files[0].0)).is_ok());
    mount.remount();
    check_files(&mount, &files);
    check_files(&mount, &more);
    mount.unmount();
}

#[test]
fn a_killed_daemon_loses_nothing_that_was_closed_and_its_dead_mount_is_cleared_away() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    let files = write_files(&mount, "file");
    fs::create_dir(mount.path("dir")).unwrap();
    fs::rename(mount.path(&files[0].0), mount.path("dir/moved")).unwrap();
    let open = data::write(&mount.path("open"), 9, MIB).unwrap();
    mount.kill();
    // What is asked before the kernel has seen all of its end is given up, with another error.
    eventually(Duration::from_secs(5), "the mount is dead", || {
        fs::metadata(mount.root()).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN))
    });
    drop(open);
    mount.mount();
    check_files(&mount, &files[1..]);
    data::check(&mount.path("dir/moved"), files[0].1, files[0].2);
    mount.kill();
    let detached = avidfs_tests::process::output(
        avidfs_tests::process::command("avidfs").arg("umount").arg(mount.root()),
    );
    assert!(detached.status.success(), "umount detaches a dead mount: {}", said(&detached));
    assert!(!is_mounted(&mount.root()));
    mount.mount();
    check_files(&mount, &files[1..]);
    mount.unmount();
}

#[test]
fn what_no_pool_would_take_waits_in_the_backlog_for_the_next_mount() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, HASTY);
    data::put(&mount.path("before"), 1, 2 * MIB);
    (0..3).for_each(|node| cluster.kill(node));
    let closed = data::close(data::write(&mount.path("waits"), 2, 3 * MIB).unwrap());
    assert_eq!(errno(&closed), libc::EIO);
    let (unmounted, time) = timed(|| mount.try_unmount());
    assert!(!unmounted.status.success(), "umount says that something waits");
    assert!(!is_mounted(&mount.root()), "and has unmounted: {}", said(&unmounted));
    assert!(time < HASTE * 2, "umount took {time:?}");
    let backlog = || fs::read_dir(mount.state().join("backlog")).map_or(0, |entries| entries.count());
    assert!(backlog() > 0);
    let refused = mount.try_mount().expect_err("two of five nodes are too few");
    assert!(!refused.status.success() && refused.sentence.contains("3 are needed"), "{}", refused.sentence);
    assert!(backlog() > 0, "a mount that was refused changes nothing");
    (0..3).for_each(|node| cluster.restart(node));
    mount.mount();
    data::check(&mount.path("before"), 1, 2 * MIB);
    data::check(&mount.path("waits"), 2, 3 * MIB);
    assert_eq!(mount.status()["backlog_bytes"], 0);
    assert_eq!(backlog(), 0);
    mount.remount();
    data::check(&mount.path("waits"), 2, 3 * MIB);
    mount.unmount();
}

/// The next mount found its own backlog empty, served what was there before, and a later one laid old bytes over new.
#[test]
fn a_backlog_elsewhere_is_not_passed_over_by_a_mount_without_the_option() {
    let cluster = Cluster::start(5);
    let big = scratch();
    let given = big.path().to_str().unwrap();
    let elsewhere = [HASTY, &["--backlog-dir", given]].concat();
    let mut mount = Mount::new(&cluster, &elsewhere);
    let volume = mount.status()["volume"].as_str().unwrap().to_owned();
    (0..3).for_each(|node| cluster.kill(node));
    let closed = data::close(data::write(&mount.path("waits"), 2, 3 * MIB).unwrap());
    assert_eq!(errno(&closed), libc::EIO);
    assert!(!mount.try_unmount().status.success());
    (0..3).for_each(|node| cluster.restart(node));
    mount.set_options(HASTY);
    let sentence = mount.try_mount().unwrap_err().sentence;
    let folder = big.path().join(volume);
    assert!(sentence.contains(&format!("wait in {}: mount with", folder.display())), "{sentence}");

    // It takes nothing of another volume's.
    let cluster_of_another = Cluster::start(5);
    let another = Mount::new(&cluster_of_another, &elsewhere);
    another.remount();
    another.unmount();

    mount.set_options(&[HASTY, &["--read-only"]].concat());
    mount.mount();
    assert!(mount.log().contains(&format!("wait in {}", folder.display())), "{}", mount.log());
    mount.unmount();
    mount.set_options(&elsewhere);
    mount.mount();
    data::check(&mount.path("waits"), 2, 3 * MIB);
    mount.unmount();
    assert_eq!(fs::read_dir(big.path()).unwrap().count(), 0);
    mount.set_options(HASTY);
    mount.mount();
    data::check(&mount.path("waits"), 2, 3 * MIB);
    mount.unmount();
}

#[test]
fn an_unmount_while_two_are_dead_stores_everything_and_the_next_mount_brings_it_home() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    cluster.kill(0);
    cluster.kill(1);
    let files = write_files(&mount, "file");
    mount.unmount();
    mount.mount();
    check_files(&mount, &files);
    mount.unmount();
    cluster.restart(0);
    cluster.restart(1);
    mount.mount();
    for (name, _, _) in &files {
        all_home(&mount, name);
    }
    cluster.kill(2);
    cluster.kill(3);
    mount.remount();
    check_files(&mount, &files);
    mount.unmount();
}

#[test]
fn in_a_larger_pool_no_node_ever_has_two_fragments_of_an_object() {
    let cluster = Cluster::start(7);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    data::put(&mount.path("healthy"), 1, 60 * MIB);
    let spread = |name: &str| mount.info(name).spread();
    assert!(spread("healthy").iter().all(|counts| counts[..] == [1; 5]));
    let nodes = mount.status()["nodes"].as_array().unwrap().clone();
    assert_eq!(nodes.len(), 7);
    for node in 0..7 {
        let held = avidfs_tests::segments::records(&cluster.data_dir(node)).len();
        assert!(held > 0, "every node of seven has something of 15 objects");
    }
    cluster.kill(2);
    cluster.kill(5);
    data::put(&mount.path("degraded"), 2, 60 * MIB);
    assert!(spread("degraded").iter().all(|counts| counts[..] == [1; 5]), "{:?}", spread("degraded"));
    mount.remount();
    data::check(&mount.path("healthy"), 1, 60 * MIB);
    data::check(&mount.path("degraded"), 2, 60 * MIB);
    cluster.restart(2);
    cluster.restart(5);
    all_home(&mount, "degraded");
    mount.unmount();
}

fn survives_p_dead(code: &str, n: usize, p: usize) {
    let cluster = Cluster::start(n);
    let mount = Mount::new(&cluster, &["--cache-disk", "0", "--code", code]);
    let files = write_files(&mount, "before");
    (0..p).for_each(|node| cluster.kill(node * 2));
    mount.remount();
    check_files(&mount, &files);
    let more = write_files(&mount, "during");
    mount.remount();
    check_files(&mount, &more);
    (0..p).for_each(|node| cluster.restart(node * 2));
    for (name, _, _) in &more {
        all_home(&mount, name);
    }
    (0..p).for_each(|node| cluster.kill(node * 2 + 1));
    mount.remount();
    check_files(&mount, &files);
    check_files(&mount, &more);
    mount.unmount();
}

#[test]
fn code_2_1_survives_one_dead_node() {
    survives_p_dead("2+1", 3, 1);
}

#[test]
fn code_4_2_survives_two_dead_nodes() {
    survives_p_dead("4+2", 6, 2);
}

#[test]
fn code_10_4_survives_four_dead_nodes() {
    survives_p_dead("10+4", 14, 4);
}

#[test]
fn a_volume_hashed_with_sha256_survives_as_well() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, &["--cache-disk", "0", "--hash", "sha256"]);
    assert_eq!(mount.status()["hash"], "sha256");
    let files = write_files(&mount, "file");
    cluster.kill(0);
    cluster.kill(1);
    mount.remount();
    check_files(&mount, &files);
    // Small reads in the middle, where a BLAKE3 volume would ask for a slice.
    let file = File::open(mount.path(&files[5].0)).unwrap();
    for at in [0, 3 * MIB + 5, 9 * MIB] {
        data::compare_range(&file, files[5].1, at, 17).unwrap();
    }
    drop(file);
    mount.unmount();
}

#[test]
fn small_reads_of_large_objects_are_right_healthy_and_degraded() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    let size = 16 * MIB;
    data::put(&mount.path("file"), 5, size);
    let mut dice = Dice::new(seed());
    for dead in [vec![], vec![0, 1], vec![2, 4]] {
        dead.iter().for_each(|node| cluster.kill(*node));
        mount.remount();
        let file = File::open(mount.path("file")).unwrap();
        for _ in 0..40 {
            let at = dice.below(size - 20_000);
            data::compare_range(&file, 5, at, 1 + dice.below(20_000)).unwrap();
        }
        drop(file);
        dead.iter().for_each(|node| cluster.restart(*node));
    }
}

#[test]
fn a_full_node_is_written_around() {
    let options = |node: usize| if node == 3 { vec!["--capacity", "24MiB"] } else { vec![] };
    let cluster = Cluster::with_each(5, options);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    data::put(&mount.path("file"), 1, 120 * MIB);
    let file = OpenOptions::new().write(true).open(mount.path("file")).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mount.remount();
    data::check(&mount.path("file"), 1, 120 * MIB);
    assert!(mount.info("file").survives() >= 1);
    mount.unmount();
}

#[test]
fn a_full_pool_says_so_stays_readable_and_can_be_emptied() {
    let cluster = Cluster::with(5, &["--capacity", "32MiB"]);
    let mount = Mount::new(&cluster, HASTY);
    data::put(&mount.path("small"), 1, 10 * MIB);
    let filled = data::write(&mount.path("large"), 2, 200 * MIB).and_then(|file| {
        file.sync_all()?;
        data::close(file)
    });
    assert_eq!(errno(&filled), libc::ENOSPC);
    data::check(&mount.path("small"), 1, 10 * MIB);
    fs::remove_file(mount.path("large")).unwrap();
    eventually(HOMECOMING, "there is room again", || {
        data::write(&mount.path("again"), 3, 20 * MIB)
            .and_then(|file| file.sync_all().and_then(|()| data::close(file)))
            .is_ok()
    });
    mount.remount();
    data::check(&mount.path("small"), 1, 10 * MIB);
    data::check(&mount.path("again"), 3, 20 * MIB);
    mount.unmount();
}

#[test]
fn a_file_written_in_place_while_nodes_come_and_go_is_right() {
    let mut dice = Dice::new(seed());
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    let size = 8 * MIB;
    let mut wanted = data::bytes(1, 0, size as usize);
    data::put(&mount.path("file"), 1, size);
    for _ in 0..rounds(6, 60) {
        let (a, b) = *dice.pick(&pairs(5));
        cluster.kill(a);
        cluster.kill(b);
        let file = OpenOptions::new().write(true).open(mount.path("file")).unwrap();
        for _ in 0..20 {
            let at = dice.below(size - 70_000) as usize;
            let bytes = data::bytes(dice.roll(), 0, 1 + dice.below(60_000) as usize);
            file.write_all_at(&bytes, at as u64).unwrap();
            wanted[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        file.sync_all().unwrap();
        data::close(file).unwrap();
        mount.remount();
        assert!(fs::read(mount.path("file")).unwrap() == wanted, "with nodes {a} and {b} dead");
        cluster.restart(a);
        cluster.restart(b);
        // Two more may die only once these two are back and have what others kept for them.
        eventually(Duration::from_secs(60), "every fragment is at home", || {
            let status = mount.status();
            status["nodes_up"] == 5 && status["objects_not_at_home"] == 0
        });
    }
    all_home(&mount, "file");
    mount.unmount();
}

/// 32 MiB are 53 MiB of fragments, and take ten seconds together where an object of them has four.
#[test]
fn over_a_slow_line_a_large_file_is_stored_a_little_at_a_time_and_once() {
    let cluster = Cluster::start(6);
    let uplink = Uplink::new(5 * MIB);
    let any = "127.0.0.1:0".parse().unwrap();
    let relay = |node| Relay::over(Some(uplink.clone()), cluster.address(node), any, node as u64);
    let relays: Vec<Relay> = (0..cluster.len()).map(relay).collect();
    let peers: Vec<String> = relays.iter().map(|relay| format!("http://{}", relay.address())).collect();
    let mount = Mount::on(Some(peers.join(",")), &["--cache-disk", "0", "--io-timeout", "4s"]);
    let files = [("fsynced", 1, 32 * MIB), ("closed", 2, 8 * MIB)];
    std::thread::scope(|scope| {
        let large = scope.spawn(|| data::keep(&mount.path(files[0].0), files[0].1, files[0].2));
        // Whoever stores little meanwhile has its turn, too.
        let mut small = 0;
        while !large.is_finished() {
            small += 1;
            data::keep(&mount.path(format!("small{small}")), 3, 50_000).unwrap();
        }
        large.join().unwrap().unwrap();
        assert!(small > 5, "{small} were stored");
    });
    data::put(&mount.path(files[1].0), files[1].1, files[1].2);
    let needed = (files[0].2 + files[1].2) * 5 / 3;
    let sent = uplink.passed();
    assert!(sent < needed * 3 / 2, "{sent} bytes were sent, {needed} are needed");
    mount.remount();
    for (name, seed, size) in files {
        data::check(&mount.path(name), seed, size);
    }
    mount.unmount();
}
