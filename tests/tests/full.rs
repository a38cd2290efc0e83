//! Disks that are full, of nodes and of the mount host, wherever that comes: everything ends in time, what was fsynced
//! is there, and with room again it goes on.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use avidfs_tests::cluster::Cluster;
use avidfs_tests::files::{errno, set_xattr, xattr};
use avidfs_tests::mount::{Mount, said};
use avidfs_tests::process;
use avidfs_tests::seed::{Dice, rounds, seed};
use avidfs_tests::small_disk::SmallDisk;
use avidfs_tests::{data, eventually, timed};

const MIB: u64 = 1 << 20;
const HASTY: &[&str] = &["--cache-disk", "0", "--io-timeout", "3s", "--backlog-size", "16MiB"];
/// What one call may take, with time for a busy machine.
const HASTE: Duration = Duration::from_secs(12);
/// Room comes back when what was removed is deleted on the nodes.
const HOMECOMING: Duration = Duration::from_secs(60);

/// Files that were fsynced, by number: name, content and length follow from it.
struct Kept(Vec<u64>);

impl Kept {
    fn length(number: u64) -> u64 {
        [100, 5000, 70_000, MIB, 3 * MIB][number as usize % 5] + number
    }

    fn name(number: u64) -> String {
        format!("file-{number}")
    }

    /// Write files one after the other until one does not go, and say why.
    fn write_until_full(&mut self, mount: &Mount, first: u64) -> io::Error {
        for number in first..first + 10_000 {
            let path = mount.path(Kept::name(number));
            let (done, time) = timed(|| data::keep(&path, number, Kept::length(number)));
            assert!(time < HASTE, "file {number} took {time:?}");
            match done {
                Ok(()) => self.0.push(number),
                Err(error) => {
                    // What is dirty of it would wait for room.
                    let _ = fs::remove_file(&path);
                    return error;
                }
            }
        }
        panic!("10000 files fit: the disk is not small");
    }

    fn check(&self, mount: &Mount) {
        self.0
            .iter()
            .for_each(|number| data::check(&mount.path(Kept::name(*number)), *number, Kept::length(*number)));
    }

    /// Remove every second one.
    fn thin_out(&mut self, mount: &Mount) {
        let mut position = 0;
        self.0.retain(|number| {
            position += 1;
            let stays = position % 2 == 0;
            if !stays {
                fs::remove_file(mount.path(Kept::name(*number))).unwrap();
            }
            stays
        });
    }
}

fn writes_again(mount: &Mount, kept: &mut Kept, number: u64) {
    eventually(HOMECOMING, "a file can be written again", || {
        data::keep(&mount.path(Kept::name(number)), number, Kept::length(number)).is_ok()
    });
    kept.0.push(number);
}

fn is_enospc_or_eio(error: &io::Error) {
    assert!(matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EIO)), "{error}");
}

/// The volume as a new host has it.
fn check_recovered(mount: &Mount, kept: &Kept) {
    let key = mount.key();
    mount.unmount();
    for entry in fs::read_dir(mount.state()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    mount.recover(&key);
    mount.mount();
    kept.check(mount);
    mount.unmount();
}

#[test]
fn nodes_whose_disks_are_full_take_nothing_lose_nothing_and_go_on_when_emptied() {
    let mut dice = Dice::new(seed());
    for _ in 0..rounds(1, 20) {
        let cluster = Cluster::with(5, &["--capacity", "64MiB"]);
        // The disk is full long before the node's capacity is reached, and on each at another place.
        let put_on_small_disk = |node| {
            cluster.kill(node);
            fs::remove_dir_all(cluster.data_dir(node)).unwrap();
            let disk = SmallDisk::mount(&cluster.data_dir(node), 12 * MIB + 4096 * dice.below(500));
            cluster.restart(node);
            disk
        };
        let disks: Vec<SmallDisk> = (0..5).map(put_on_small_disk).collect();
        let mount = Mount::new(&cluster, HASTY);
        let mut kept = Kept(Vec::new());
        is_enospc_or_eio(&kept.write_until_full(&mount, 0));
        assert!(kept.0.len() >= 5, "{:?}", kept.0);
        kept.check(&mount);
        kept.thin_out(&mount);
        writes_again(&mount, &mut kept, 20_003);
        mount.remount();
        kept.check(&mount);

        // Others fill the disks while nodes write: what they keep free for themselves is gone as well.
        std::thread::scope(|scope| {
            let filling = scope.spawn(|| kept.write_until_full(&mount, 30_000));
            disks.iter().for_each(|disk| disk.fill_but(4096 * dice.below(20)));
            is_enospc_or_eio(&filling.join().unwrap());
        });
        kept.check(&mount);
        (0..5).for_each(|node| cluster.kill(node));
        (0..5).for_each(|node| cluster.restart(node));
        kept.check(&mount);
        disks.iter().for_each(SmallDisk::empty);
        writes_again(&mount, &mut kept, 40_002);
        check_recovered(&mount, &kept);
    }
}

/// A mount whose state folder lies on a disk of its own.
fn on_small_disk(cluster: &Cluster, size: u64) -> (Mount, SmallDisk) {
    let mount = Mount::prepared(Some(cluster.peers()), HASTY);
    let disk = SmallDisk::mount(&mount.state(), size);
    mount.mount();
    (mount, disk)
}

#[test]
fn a_mount_host_whose_disk_is_full_makes_no_file_and_goes_on_when_emptied() {
    let mut dice = Dice::new(seed());
    // The names stay, so that each disk is good for a few rounds.
    (0..rounds(1, 25)).for_each(|_| fill_a_mount_host(&mut dice));
}

fn fill_a_mount_host(dice: &mut Dice) {
    let cluster = Cluster::start(5);
    let (mount, disk) = on_small_disk(&cluster, 16 * MIB);
    let mut kept = Kept(Vec::new());
    for round in 0..4 {
        let first = round * 10_000;
        data::keep(&mount.path(Kept::name(first)), first, Kept::length(first)).unwrap();
        kept.0.push(first);
        // Somewhere in what a file takes in the database and its log.
        disk.fill_but(4096 * dice.below(40));
        let mut names = 0;
        let full = loop {
            let (made, time) = timed(|| File::create(mount.path(format!("empty-{round}-{names}"))));
            assert!(time < HASTE, "a name took {time:?}");
            match made {
                Ok(_) if names < 200_000 => names += 1,
                Ok(_) => panic!("200000 names fit: the disk is not small"),
                Err(error) => break error,
            }
        };
        is_enospc_or_eio(&full);
        kept.check(&mount);
        let (refused, time) = timed(|| data::keep(&mount.path("too much"), 1, MIB));
        assert!(time < HASTE, "{time:?}");
        assert!(matches!(errno(&refused), 0 | libc::ENOSPC | libc::EIO), "{refused:?}");
        if dice.chance(50) {
            mount.kill();
            let (mounted, time) = timed(|| mount.try_mount());
            assert!(time < HASTE, "a mount on a full disk took {time:?}");
            disk.empty();
            match mounted {
                Ok(()) => {}
                Err(refused) => {
                    assert!(refused.sentence.contains("avidfs: "), "{}", refused.sentence);
                    mount.mount();
                }
            }
        } else {
            disk.empty();
        }
        eventually(HOMECOMING, "a name is made again", || fs::write(mount.path("again"), "x").is_ok());
        fs::remove_file(mount.path("again")).unwrap();
        kept.check(&mount);
    }
    mount.remount();
    kept.check(&mount);
    check_recovered(&mount, &kept);
    drop(disk);
}

#[test]
fn what_a_full_disk_keeps_out_of_the_backlog_is_said_and_nothing_else_is_lost() {
    let cluster = Cluster::start(5);
    let (mount, disk) = on_small_disk(&cluster, 24 * MIB);
    let mut kept = Kept(vec![4]);
    data::keep(&mount.path(Kept::name(4)), 4, Kept::length(4)).unwrap();
    (0..3).for_each(|node| cluster.kill(node));
    let waits = data::keep(&mount.path("waits"), 1, 6 * MIB);
    assert_eq!(errno(&waits), libc::EIO);
    disk.fill_but(3 * MIB);
    let (unmounted, time) = timed(|| mount.try_unmount());
    let sentence = said(&unmounted);
    assert!(!unmounted.status.success() && time < HASTE, "{time:?}: {sentence}");
    assert!(sentence.contains("could not be kept"), "{sentence}");
    (0..3).for_each(|node| cluster.restart(node));
    disk.empty();
    mount.mount();
    kept.check(&mount);
    fs::remove_file(mount.path("waits")).unwrap();
    writes_again(&mount, &mut kept, 5);
    check_recovered(&mount, &kept);
    drop(disk);
}

#[test]
fn a_snapshot_on_a_full_host_is_taken_or_refused_and_the_next_one_is_whole() {
    let cluster = Cluster::start(5);
    let (mount, disk) = on_small_disk(&cluster, 16 * MIB);
    let mut kept = Kept(Vec::new());
    for number in 0..10 {
        data::keep(&mount.path(Kept::name(number)), number, Kept::length(number)).unwrap();
        kept.0.push(number);
    }
    let take = |name: &str| {
        process::output(process::command("avidfs").args(["snapshot", "create", name]).arg(mount.root()))
    };
    disk.fill_but(0);
    // The log of the database has room that it took before: fill that as well.
    for i in 0.. {
        if File::create(mount.path(format!("filling-{i}"))).is_err() {
            break;
        }
    }
    let (full, time) = timed(|| take("full"));
    assert!(time < HASTE, "{time:?}: {}", said(&full));
    assert!(!full.status.success(), "{}", said(&full));
    disk.empty();
    eventually(HOMECOMING, "a snapshot is taken", || take("whole").status.success());
    let restored = process::output(
        Command::new(process::program("avidfs"))
            .args(["snapshot", "restore", "whole"])
            .arg(mount.path(Kept::name(3)))
            .arg("--to")
            .arg(mount.path("restored")),
    );
    assert!(restored.status.success(), "{}", said(&restored));
    data::check(&mount.path("restored"), 3, Kept::length(3));
    kept.check(&mount);
    check_recovered(&mount, &kept);
    drop(disk);
}

/// Extended attributes, 5 MB of metadata that does not compress: more than an entry of the journal holds.
struct Attributes {
    generation: u64,
}

impl Attributes {
    const COUNT: u64 = 80;

    fn each(&self, mount: &Mount, kept: &Kept, act: impl Fn(&Path, &str, Vec<u8>)) {
        for number in 0..Attributes::COUNT {
            let file = kept.0[number as usize % kept.0.len()];
            let value = data::bytes(self.generation * Attributes::COUNT + number, 0, 60_000);
            act(&mount.path(Kept::name(file)), &format!("user.{number}"), value);
        }
    }

    fn set_anew(&mut self, mount: &Mount, kept: &Kept) {
        self.generation += 1;
        self.each(mount, kept, |path, name, value| set_xattr(path, name, &value, 0).unwrap());
    }

    fn check(&self, mount: &Mount, kept: &Kept) {
        self.each(mount, kept, |path, name, value| assert!(xattr(path, name).unwrap() == value, "{name}"));
    }
}

/// Files that are kept, and attributes of theirs.
fn with_attributes(mount: &Mount) -> (Kept, Attributes) {
    let mut kept = Kept(Vec::new());
    for number in 0..8 {
        data::keep(&mount.path(Kept::name(number)), number, Kept::length(number)).unwrap();
        kept.0.push(number);
    }
    let mut attributes = Attributes { generation: 0 };
    attributes.set_anew(mount, &kept);
    (kept, attributes)
}

/// The journal's last checkpoint.
fn checkpoint(mount: &Mount) -> u64 {
    mount.status()["journal"]["checkpoint"].as_u64().unwrap()
}

#[test]
fn a_checkpoint_that_comes_while_the_host_is_full_is_written_or_waits_and_nothing_is_lost() {
    let mut dice = Dice::new(seed());
    let cluster = Cluster::start(5);
    let (mount, disk) = on_small_disk(&cluster, 96 * MIB);
    let (kept, mut attributes) = with_attributes(&mount);
    for _ in 0..rounds(2, 40) {
        let before = checkpoint(&mount);
        // What waits for three nodes makes a checkpoint due when they are back: twice what there is.
        (0..3).for_each(|node| cluster.kill(node));
        (0..2).for_each(|_| attributes.set_anew(&mount, &kept));
        disk.fill_but(4096 * dice.below(40));
        (0..3).for_each(|node| cluster.restart(node));
        eventually(HOMECOMING, "the journal goes on, or says why not", || {
            // A checkpoint alone has no room where every entry had: then nothing waits, and it is tried again.
            let journal = &mount.status()["journal"];
            let says_why = journal["problem"].as_str().is_some_and(|problem| problem.contains("full"));
            says_why || journal["waiting_changes"] == 0
        });
        if dice.chance(50) {
            mount.kill();
            let (mounted, time) = timed(|| mount.try_mount());
            assert!(time < HASTE, "a mount on a full disk took {time:?}");
            disk.empty();
            if let Err(refused) = mounted {
                assert!(refused.sentence.contains("avidfs: "), "{}", refused.sentence);
                mount.mount();
            }
        }
        disk.empty();
        eventually(HOMECOMING, "a checkpoint is written", || checkpoint(&mount) > before);
        kept.check(&mount);
        attributes.check(&mount, &kept);
    }
    let key = mount.key();
    mount.unmount();
    drop(disk);
    mount.recover(&key);
    mount.mount();
    kept.check(&mount);
    attributes.check(&mount, &kept);
    mount.unmount();
}

#[test]
fn a_recovery_onto_a_full_disk_is_refused_in_a_sentence_and_can_be_run_again() {
    let mut dice = Dice::new(seed());
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, HASTY);
    let (kept, attributes) = with_attributes(&mount);
    let key = mount.key();
    mount.unmount();
    fs::remove_dir_all(mount.state()).unwrap();
    // The log of the database takes 5 MB, and the database as much. What fills the disk lies beside its folder.
    let place = mount.state().with_extension("disk");
    let disk = SmallDisk::mount(&place, 32 * MIB);
    symlink(place.join("state"), mount.state()).unwrap();
    for round in 0..rounds(6, 60) {
        // What an earlier try left is room that it could use; the last one's is there when it succeeds.
        let _none = fs::remove_dir_all(place.join("state"));
        fs::create_dir(place.join("state")).unwrap();
        // At once, in the middle of the records, and somewhere.
        disk.fill_but([0, 3 * MIB, 4096 * dice.below(1000)][round as usize % 3]);
        let (refused, time) = timed(|| mount.try_recover(&key));
        let sentence = said(&refused);
        assert!(!refused.status.success() && time < HASTE, "{time:?}: {sentence}");
        assert!(sentence.contains("avidfs: ") && sentence.trim().lines().count() == 1, "{sentence}");
        assert!(sentence.contains("full") || sentence.contains("No space"), "{sentence}");
    }
    disk.empty();
    mount.recover(&key);
    mount.mount();
    kept.check(&mount);
    attributes.check(&mount, &kept);
    fs::write(mount.path("again"), "x").unwrap();
    mount.unmount();
    drop(disk);
}
