//! Disks that rot and nodes that lie: a read gives the right bytes or an error, never a wrong byte, and never waits long.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use avidfs_tests::cluster::Cluster;
use avidfs_tests::files::errno;
use avidfs_tests::liar::{LIES, Liar, Lie};
use avidfs_tests::mount::Mount;
use avidfs_tests::process::memory_bytes;
use avidfs_tests::seed::{Dice, seed};
use avidfs_tests::segments::{Place, every_place, records, records_of};
use avidfs_tests::{data, timed};

const MIB: u64 = 1 << 20;
const NO_DISK_CACHE: &[&str] = &["--cache-disk", "0"];
const HASTY: &[&str] = &["--cache-disk", "0", "--io-timeout", "3s"];
/// What `--io-timeout 3s` allows, with time for a busy machine.
const HASTE: Duration = Duration::from_secs(6);
/// Of 3+2: beyond one group of a BLAKE3 slice in each fragment.
const SIZE: u64 = 100_000;

/// A file whose object is damaged at one kind of place in some of its fragments.
struct Victim {
    name: String,
    seed: u64,
    place: Place,
    indexes: &'static [u8],
}

/// One file for every kind of place and set of indexes.
fn victims(mount: &Mount, sets: &[&'static [u8]]) -> Vec<Victim> {
    let mut victims = Vec::new();
    for (i, place) in every_place(3, 5).into_iter().enumerate() {
        for (j, indexes) in sets.iter().enumerate() {
            let victim = Victim { name: format!("{i}-{j}"), seed: (100 * i + j) as u64, place, indexes };
            data::put(&mount.path(&victim.name), victim.seed, SIZE);
            victims.push(victim);
        }
    }
    victims
}

fn damage(cluster: &Cluster, mount: &Mount, victims: &[Victim], dice: &mut Dice) {
    let keys: Vec<Vec<String>> = victims.iter().map(|victim| mount.info(&victim.name).keys()).collect();
    for node in 0..cluster.len() {
        let found = records(&cluster.data_dir(node));
        for (victim, keys) in victims.iter().zip(&keys) {
            let hit = |record: &&avidfs_tests::segments::Record| {
                keys.contains(&record.key) && victim.indexes.contains(&record.index)
            };
            found.iter().filter(hit).for_each(|record| record.damage(victim.place, dice.roll() >> 8));
        }
    }
}

fn restart_all(cluster: &Cluster) {
    (0..cluster.len()).for_each(|node| cluster.kill(node));
    (0..cluster.len()).for_each(|node| cluster.restart(node));
}

#[test]
fn damage_to_any_byte_of_two_fragments_costs_no_byte() {
    let mut dice = Dice::new(seed());
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    let victims = victims(&mount, &[&[0], &[0, 1], &[1, 3], &[3, 4], &[2, 4]]);
    mount.unmount();
    mount.mount();
    damage(&cluster, &mount, &victims, &mut dice);
    let check = |when: &str| {
        for Victim { name, seed, place, indexes } in &victims {
            if let Err(wrong) = data::compare(&mount.path(name), *seed, SIZE) {
                panic!("{wrong} ({place:?} of fragments {indexes:?} damaged, {when})");
            }
        }
    };
    check("nodes running");
    mount.unmount();
    restart_all(&cluster);
    mount.mount();
    check("nodes restarted");
    mount.unmount();
}

#[test]
fn damage_to_three_fragments_gives_an_error_and_never_a_wrong_byte() {
    let mut dice = Dice::new(seed());
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, HASTY);
    let victims = victims(&mount, &[&[0, 1, 2], &[2, 3, 4]]);
    mount.unmount();
    mount.mount();
    damage(&cluster, &mount, &victims, &mut dice);
    let check = |when: &str| {
        for Victim { name, seed, place, indexes } in &victims {
            let (compared, time) = timed(|| data::compare(&mount.path(name), *seed, SIZE));
            assert!(time < HASTE, "{place:?} of fragments {indexes:?} damaged: {time:?}, {when}");
            let in_fragment = matches!(
                place,
                Place::FragmentFirst | Place::FragmentMiddle | Place::FragmentLast | Place::FragmentZeroed
            );
            match compared {
                Ok(()) if in_fragment => {
                    panic!("{name}: {place:?} of {indexes:?} was not damaged at all, {when}")
                }
                Ok(()) => {}
                Err(sentence) => assert!(
                    sentence.contains(&format!("os error {}", libc::EIO)),
                    "{sentence} ({place:?} of fragments {indexes:?} damaged, {when})"
                ),
            }
        }
    };
    check("nodes running");
    mount.unmount();
    restart_all(&cluster);
    mount.mount();
    check("nodes restarted");
    mount.unmount();
}

#[test]
fn damage_in_every_block_of_two_disks_costs_no_byte() {
    let mut dice = Dice::new(seed());
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    let size = 40 * MIB;
    data::put(&mount.path("file"), 1, size);
    mount.unmount();
    for node in [1, 4] {
        for entry in fs::read_dir(cluster.data_dir(node).join("segments")).unwrap() {
            scribble(&entry.unwrap().path(), 4096, &mut dice);
        }
    }
    mount.mount();
    data::check(&mount.path("file"), 1, size);
    mount.unmount();
    restart_all(&cluster);
    mount.mount();
    data::check(&mount.path("file"), 1, size);
    data::put(&mount.path("more"), 2, size);
    mount.remount();
    data::check(&mount.path("more"), 2, size);
    mount.unmount();
}

/// Flip a bit somewhere in every block of a file.
fn scribble(path: &Path, block: u64, dice: &mut Dice) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    for start in (0..length).step_by(block as usize) {
        let at = start + dice.below(block.min(length - start));
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ (1 << dice.below(8))], at).unwrap();
    }
}

#[test]
fn a_damaged_disk_cache_costs_a_read_and_no_byte() {
    let mut dice = Dice::new(seed());
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, &["--cache-memory", "8MiB"]);
    let size = 40 * MIB;
    data::put(&mount.path("file"), 1, size);
    mount.remount();
    data::check(&mount.path("file"), 1, size);
    mount.unmount();
    let files = files_below(&mount.state().join("cache"));
    let cached: u64 = files.iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(cached > 8 * MIB, "something is in the disk cache: {cached} bytes in {files:?}");
    files.iter().for_each(|path| scribble(path, 4096, &mut dice));
    mount.mount();
    data::check(&mount.path("file"), 1, size);
    mount.unmount();
    // Cut short, too.
    for path in files_below(&mount.state().join("cache")) {
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    }
    mount.mount();
    data::check(&mount.path("file"), 1, size);
    mount.unmount();
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files_below(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

/// A mount on five nodes that can be told to lie.
struct Court {
    liars: Vec<Liar>,
    mount: Mount,
    _cluster: Cluster,
}

impl Court {
    fn new() -> Court {
        let cluster = Cluster::start(5);
        let (liars, peers) = Liar::before_all(&cluster);
        let mount = Mount::on(Some(peers), HASTY);
        Court { liars, mount, _cluster: cluster }
    }

    /// The liars before the nodes that hold these fragments of a file.
    fn before(&self, name: &str, indexes: &[u64]) -> Vec<&Liar> {
        let addresses: Vec<SocketAddr> = self.liars.iter().map(Liar::address).collect();
        let info = self.mount.info(name);
        indexes.iter().map(|index| &self.liars[info.holder(&addresses, *index)]).collect()
    }

    fn all(&self, lie: Lie) {
        self.liars.iter().for_each(|liar| liar.tell(lie));
    }
}

#[test]
fn two_lying_nodes_cost_time_and_no_byte() {
    let court = Court::new();
    let mount = &court.mount;
    // One object each, of one size, so that fragments of one pass for those of another.
    for i in 0..8 {
        data::put(&mount.path(format!("{i}")), i, 3 * MIB);
    }
    let mut slow = Vec::new();
    for (round, lie) in LIES.into_iter().enumerate() {
        // A fragment that a node denied is rebuilt and brought home, before its node is asked for it again.
        avidfs_tests::eventually(HASTE * 5, "every fragment is at home", || {
            mount.status()["objects_not_at_home"] == 0
        });
        mount.remount();
        data::check(&mount.path("0"), 0, 3 * MIB);
        let pair: [u64; 2] = [[0, 1], [1, 2], [0, 2], [1, 4]][round % 4];
        let liars = court.before("1", &pair);
        liars.iter().for_each(|liar| liar.tell(lie));
        let told: u64 = liars.iter().map(|liar| liar.told()).sum();
        let (whole, time) = timed(|| data::compare(&mount.path("1"), 1, 3 * MIB));
        whole.unwrap_or_else(|wrong| panic!("{wrong} while two nodes lie: {lie:?}"));
        let now: u64 = liars.iter().map(|liar| liar.told()).sum();
        assert!(now > told, "{lie:?} was never told");
        // A little of the middle of other files; then the rest, by nodes that are known to lie by now.
        let (parts, time_of_parts) = timed(|| -> Result<(), String> {
            for i in 2..8 {
                let file = File::open(mount.path(format!("{i}"))).map_err(|error| error.to_string())?;
                data::compare_range(&file, i, MIB / 2 * i / 2, 10_000)?;
                data::compare_range(&file, i, 0, 3 * MIB)?;
            }
            Ok(())
        });
        parts.unwrap_or_else(|wrong| panic!("{wrong} while two nodes lie: {lie:?}"));
        slow.push(format!("{lie:?} {time:.1?} then {time_of_parts:.1?}"));
        assert!(time < HASTE, "{lie:?} held one read up for {time:?}");
        assert!(time_of_parts < HASTE * 2, "{lie:?} held twelve reads up for {time_of_parts:?}");
        court.all(Lie::Honest);
    }
    let held = memory_bytes(mount.pid(), "VmHWM");
    eprintln!("daemon at most {} MiB; {}", held / MIB, slow.join(", "));
    assert!(held <= 512 * MIB, "the daemon held {} MiB", held / MIB);
    mount.unmount();
}

#[test]
fn three_lying_nodes_give_an_error_in_time_and_never_a_wrong_byte() {
    let court = Court::new();
    let mount = &court.mount;
    for i in 0..4 {
        data::put(&mount.path(format!("{i}")), i, 3 * MIB);
    }
    for lie in LIES {
        avidfs_tests::eventually(HASTE * 5, "every fragment is at home", || {
            mount.status()["objects_not_at_home"] == 0
        });
        mount.remount();
        data::check(&mount.path("0"), 0, 3 * MIB);
        let liars = court.before("1", &[0, 2, 3]);
        liars.iter().for_each(|liar| liar.tell(lie));
        let told: Vec<u64> = liars.iter().map(|liar| liar.told()).collect();
        let (read, time) = timed(|| fs::read(mount.path("1")));
        let lied = liars.iter().zip(&told).filter(|(liar, before)| liar.told() > **before).count();
        match read {
            // Whose FPCC alone is wrong still has the right fragment, and an honest node's FPCC proves it. And who has
            // no other object to tell of tells the truth.
            Ok(bytes) if lie == Lie::FlippedFpcc || lied < 3 => {
                assert!(
                    bytes == data::bytes(1, 0, bytes.len()),
                    "wrong bytes while three nodes lie: {lie:?}"
                );
            }
            read => assert_eq!(errno(&read), libc::EIO, "while three nodes lie: {lie:?}"),
        }
        // The kernel asks for a page once more when its read-ahead has failed: two requests, each within the limit.
        assert!(time < HASTE * 2, "{lie:?} held the error up for {time:?}");
        court.all(Lie::Honest);
        let honest = avidfs_tests::eventually;
        honest(HASTE * 5, "honest again, they are believed again", || {
            data::compare(&mount.path("1"), 1, 3 * MIB)
                .map_err(|wrong| assert!(!wrong.contains("WRONG"), "{wrong}"))
                .is_ok()
        });
    }
    let held = memory_bytes(mount.pid(), "VmHWM");
    assert!(held <= 512 * MIB, "the daemon held {} MiB", held / MIB);
    mount.unmount();
}

#[test]
fn an_older_version_of_a_file_is_never_taken_for_the_newest() {
    let court = Court::new();
    let mount = &court.mount;
    data::put(&mount.path("file"), 1, 3 * MIB);
    mount.remount();
    data::check(&mount.path("file"), 1, 3 * MIB);
    data::put(&mount.path("file"), 2, 3 * MIB);
    mount.remount();
    court.before("file", &[0, 1]).iter().for_each(|liar| liar.tell(Lie::AnotherObject));
    data::check(&mount.path("file"), 2, 3 * MIB);
    mount.remount();
    court.all(Lie::AnotherObject);
    let read = fs::read(mount.path("file"));
    assert_eq!(errno(&read), libc::EIO, "all five tell of the older version");
    court.all(Lie::Honest);
}

#[test]
fn a_node_that_acknowledges_and_forgets_costs_nothing_while_the_others_live() {
    let court = Court::new();
    let mount = &court.mount;
    court.liars[2].tell(Lie::Forgets);
    for i in 0..10 {
        data::put(&mount.path(format!("{i}")), i, MIB * (i + 1));
    }
    assert!(court.liars[2].told() > 0);
    court.liars[2].tell(Lie::Honest);
    court._cluster.kill(0);
    mount.remount();
    for i in 0..10 {
        data::check(&mount.path(format!("{i}")), i, MIB * (i + 1));
    }
    mount.unmount();
}

#[test]
fn nodes_that_exchange_their_disks_are_known_by_their_names() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    for i in 0..6 {
        data::put(&mount.path(format!("{i}")), i, 2 * MIB);
    }
    let swap = |mount: &Mount| {
        cluster.kill(0);
        cluster.kill(3);
        let (a, b, aside) = (cluster.data_dir(0), cluster.data_dir(3), cluster.data_dir(99));
        fs::rename(&a, &aside).unwrap();
        fs::rename(&b, &a).unwrap();
        fs::rename(&aside, &b).unwrap();
        cluster.restart(0);
        cluster.restart(3);
        (0..6).for_each(|i| data::check(&mount.path(format!("{i}")), i, 2 * MIB));
    };
    mount.remount();
    swap(&mount);
    mount.remount();
    (0..6).for_each(|i| data::check(&mount.path(format!("{i}")), i, 2 * MIB));
    assert!((0..6).all(|i| mount.info(format!("{i}")).all_home()), "home is where the disk is");
    mount.unmount();
}

#[test]
fn a_node_that_lost_its_disk_comes_back_as_another_one() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    data::put(&mount.path("before"), 1, 20 * MIB);
    mount.remount();
    cluster.kill(1);
    fs::remove_dir_all(cluster.data_dir(1)).unwrap();
    cluster.restart(1);
    data::check(&mount.path("before"), 1, 20 * MIB);
    data::put(&mount.path("after"), 2, 20 * MIB);
    mount.remount();
    data::put(&mount.path("later"), 3, 20 * MIB);
    cluster.kill(4);
    mount.remount();
    data::check(&mount.path("before"), 1, 20 * MIB);
    data::check(&mount.path("after"), 2, 20 * MIB);
    data::check(&mount.path("later"), 3, 20 * MIB);
    assert!(
        records_of(&cluster.data_dir(1), &mount.info("later").keys()[0]).len() == 1,
        "the new one is used"
    );
    mount.unmount();
}

#[test]
fn another_client_of_the_pool_neither_changes_a_volume_nor_takes_it_over() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, NO_DISK_CACHE);
    data::put(&mount.path("file"), 1, 2 * MIB);
    let keys = mount.info("file").keys();
    let listed = exchange(cluster.address(0), b"GET /volumes HTTP/1.1\r\nhost: x\r\n\r\n", b"");
    let body: serde_json::Value = serde_json::from_str(listed.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let volume = body["volumes"][0]["volume"].as_str().unwrap();
    let epoch = body["volumes"][0]["epoch"].as_u64().unwrap();
    let ask = |node: usize, method: &str, path: &str, epoch: u64, body: &str| {
        let length = body.len();
        let head = format!(
            "{method} /volumes/{volume}/{path} HTTP/1.1\r\nhost: x\r\navid-epoch: {epoch}\r\n\
             content-length: {length}\r\n\r\n"
        );
        let answer = exchange(cluster.address(node), head.as_bytes(), body.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 403"), "{method} {path} was answered {answer:?}");
    };
    for node in 0..5 {
        for epoch in [epoch, epoch + 1] {
            ask(node, "DELETE", &format!("objects/{}/1", keys[0]), epoch, "");
            ask(node, "POST", &format!("objects/{}/1/fragment/0", keys[0]), epoch, "another fragment");
            let lease = serde_json::json!({
                "epoch": epoch, "mount": "07".repeat(16), "host": "thief", "lease_ms": 60_000, "take_over": true,
            });
            ask(node, "POST", "lease", epoch, &lease.to_string());
        }
    }
    data::put(&mount.path("later"), 2, MIB);
    mount.remount();
    data::check(&mount.path("file"), 1, 2 * MIB);
    data::check(&mount.path("later"), 2, MIB);
    mount.unmount();
}

#[test]
fn a_node_answers_garbage_with_4xx_and_goes_on() {
    let cluster = Cluster::start(1);
    let address = cluster.address(0);
    let object = "/volumes/00112233445566778899aabbccddeeff/objects/00000001-0000000000000001/1";
    let post = |path: &str, length: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: x\r\navid-epoch: 1\r\ncontent-length: {length}\r\n\r\n")
    };
    let heads = [
        post(&format!("{object}/fragment/0"), "4294967296"),
        post(&format!("{object}/fragment/0"), "18446744073709551615"),
        post(&format!("{object}/fragment/0"), "-1"),
        post(&format!("{object}/fragment/999"), "10"),
        post("/volumes/00112233445566778899aabbccddeeff/batch", "10"),
        post("/volumes/zz/batch", "10"),
        "GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        "GET /objects/%00%ff%2e%2e/1/fragment/0 HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(1 << 20)),
        format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1 << 20)),
        "\0\u{1}\u{2} not http at all\r\n\r\n".to_owned(),
    ];
    for head in &heads {
        let answer = exchange(address, head.as_bytes(), &data::bytes(1, 0, 10));
        let shown: String = head.chars().take(80).collect();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{shown:?} was answered {answer:?}");
    }
    // More than announced limits, from many at once, none of whom finishes.
    let unfinished: Vec<TcpStream> = (0..64)
        .map(|_| {
            let mut socket = TcpStream::connect(address).unwrap();
            // What the node does not take at once it does not take later: its memory is bounded.
            socket.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
            let _ = socket.write_all(post(&format!("{object}/fragment/0"), "30000000").as_bytes());
            let _ = socket.write(&data::bytes(2, 0, 4 << 20));
            socket
        })
        .collect();
    let healthy = exchange(address, b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"");
    assert!(healthy.starts_with("HTTP/1.1 200"), "{healthy:?}");
    drop(unfinished);
    let held = memory_bytes(cluster.pid(0), "VmHWM");
    assert!(held <= 128 * MIB, "the node held {} MiB", held / MIB);
}

/// Send bytes, and read what comes until the node closes or is silent for a while.
fn exchange(address: SocketAddr, head: &[u8], body: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let _ = socket.write_all(head);
    let _ = socket.write_all(body);
    let mut answer = vec![0; 4096];
    let count = socket.read(&mut answer).unwrap_or(0);
    String::from_utf8_lossy(&answer[..count]).into_owned()
}
