//! Kill the daemon and nodes at any moment: what close and fsync acknowledged is there at the next mount.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::time::Duration;

use avidfs_tests::cluster::Cluster;
use avidfs_tests::data;
use avidfs_tests::fsck::{fsck_folder, fsck_mount};
use avidfs_tests::mount::Mount;
use avidfs_tests::process;
use avidfs_tests::seed::{Dice, rounds, seed};

/// Bytes of a block of the file that is overwritten in place.
const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;

/// What a file is known to be: the state that was acknowledged, and the one that was on its way.
#[derive(Clone, Default, Debug)]
struct Known {
    acknowledged: Option<(u64, u64)>,
    attempted: Option<(u64, u64)>,
}

/// What the writer knows outside the mount.
#[derive(Default)]
struct Log {
    /// Whole files: content's seed and length.
    files: BTreeMap<String, Known>,
    /// Bytes of each append-only file that were fsynced, and that were written.
    appended: BTreeMap<String, (u64, u64)>,
    /// Blocks of the file that is overwritten: fsynced version, written versions since.
    blocks: BTreeMap<u64, (Option<u64>, Vec<u64>)>,
}

struct Writer<'a> {
    mount: &'a Mount,
    log: &'a Mutex<Log>,
    dice: Dice,
    round: u64,
    /// Whether what only close acknowledged does not count: the mount host's disk may be lost.
    fsyncs: bool,
}

impl Writer<'_> {
    /// Write until the mount dies.
    fn run(mut self) {
        for step in 0u64.. {
            let done = match self.dice.below(10) {
                0..4 => self.write_new(step),
                4..6 => self.append(),
                6..8 => self.overwrite_blocks(),
                _ => self.replace(),
            };
            if done.is_err() {
                return;
            }
        }
    }

    fn size(&mut self) -> u64 {
        let most = *self.dice.pick(&[100, 10_000, 300_000, 5_000_000]);
        1 + self.dice.below(most)
    }

    fn write_new(&mut self, step: u64) -> std::io::Result<()> {
        let (name, seed, size) = (format!("new-{}-{step}", self.round), self.dice.roll(), self.size());
        self.attempt(&name, seed, size);
        let file = data::write(&self.mount.path(&name), seed, size)?;
        if self.fsyncs {
            file.sync_all()?;
        }
        data::close(file)?;
        self.acknowledge(&name);
        Ok(())
    }

    /// As editors do: a draft, then rename.
    fn replace(&mut self) -> std::io::Result<()> {
        let (name, seed, size) = (format!("replaced-{}", self.dice.below(3)), self.dice.roll(), self.size());
        let draft = self.mount.path("draft");
        let file = data::write(&draft, seed, size)?;
        if self.dice.chance(50) {
            file.sync_all()?;
        }
        data::close(file)?;
        self.attempt(&name, seed, size);
        fs::rename(&draft, self.mount.path(&name))?;
        // Durable at the next fsync of the directory; until then the old one may be there.
        File::open(self.mount.root())?.sync_all()?;
        self.acknowledge(&name);
        Ok(())
    }

    fn append(&mut self) -> std::io::Result<()> {
        let (which, length) = (self.dice.below(3), 1 + self.dice.below(100_000));
        let name = format!("appended-{which}");
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).open(self.mount.path(&name))?;
        let from = self.log.lock().unwrap().appended.get(&name).map_or(0, |(_, written)| *written);
        file.write_all_at(&data::bytes(which, from, length as usize), from)?;
        let sure = self.log.lock().unwrap().appended.get(&name).map_or(0, |(sure, _)| *sure);
        self.log.lock().unwrap().appended.insert(name.clone(), (sure, from + length));
        file.sync_all()?;
        self.log.lock().unwrap().appended.insert(name, (from + length, from + length));
        data::close(file)
    }

    fn overwrite_blocks(&mut self) -> std::io::Result<()> {
        let path = self.mount.path("blocks");
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        let blocks: Vec<u64> = (0..1 + self.dice.below(8)).map(|_| self.dice.below(BLOCKS)).collect();
        for block in &blocks {
            let version = self.dice.roll();
            self.log.lock().unwrap().blocks.entry(*block).or_default().1.push(version);
            file.write_all_at(&data::bytes(version, 0, BLOCK), block * BLOCK as u64)?;
        }
        file.sync_data()?;
        for block in blocks {
            let mut log = self.log.lock().unwrap();
            let (sure, written) = log.blocks.get_mut(&block).unwrap();
            *sure = written.last().copied().or(*sure);
            written.clear();
        }
        data::close(file)
    }

    fn attempt(&self, name: &str, seed: u64, size: u64) {
        self.log.lock().unwrap().files.entry(name.to_owned()).or_default().attempted = Some((seed, size));
    }

    fn acknowledge(&self, name: &str) {
        let mut log = self.log.lock().unwrap();
        let known = log.files.get_mut(name).unwrap();
        known.acknowledged = known.attempted.take();
    }
}

/// Compare everything with the log, and take what is there as known from now on.
fn verify(mount: &Mount, log: &mut Log) {
    for (name, known) in &mut log.files {
        let path = mount.path(name);
        let is = |state: Option<(u64, u64)>| {
            state.is_some_and(|(seed, size)| data::compare(&path, seed, size).is_ok())
        };
        if is(known.acknowledged) {
            known.attempted = None;
        } else if is(known.attempted) {
            known.acknowledged = known.attempted.take();
        } else if let Some((seed, size)) = known.acknowledged {
            panic!("what was acknowledged is gone: {:?}", data::compare(&path, seed, size));
        }
    }
    // A file that was never acknowledged may be there in any length.
    let never: Vec<String> = log
        .files
        .iter()
        .filter(|(_, known)| known.acknowledged.is_none())
        .map(|(name, _)| name.clone())
        .collect();
    for name in never {
        log.files.remove(&name);
        let _ = fs::remove_file(mount.path(&name));
    }
    for (which, (name, (sure, written))) in log.appended.iter_mut().enumerate() {
        let which: u64 = name.rsplit('-').next().unwrap().parse().unwrap_or(which as u64);
        let file = match File::open(mount.path(name)) {
            Ok(file) => file,
            // Its first fsync had not returned: its name may not have reached the pool either.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && *sure == 0 => {
                *written = 0;
                continue;
            }
            Err(error) => panic!("{name}, {sure} bytes fsynced: {error}"),
        };
        let size = file.metadata().unwrap().len();
        assert!(
            (*sure..=*written).contains(&size),
            "{name} has {size} bytes, {sure} were fsynced, {written} written"
        );
        data::compare_range(&file, which, 0, size).unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
        (*sure, *written) = (size, size);
    }
    if log.blocks.is_empty() {
        return;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(mount.path("blocks"))
        .unwrap();
    for (block, (sure, written)) in &mut log.blocks {
        let mut found = vec![0; BLOCK];
        let count = file.read_at(&mut found, block * BLOCK as u64).unwrap();
        let is = |version: &u64| found == data::bytes(*version, 0, BLOCK);
        let blank = count == 0 || found.iter().all(|byte| *byte == 0);
        match written.iter().chain(sure.iter()).find(|version| is(version)) {
            Some(version) => *sure = Some(*version),
            None => assert!(blank && sure.is_none(), "block {block} is none of the versions written to it"),
        }
        written.clear();
    }
}

/// Files to verify do not become more and more: beyond some the first are removed, which is one more thing to go wrong.
fn forget_the_oldest(mount: &Mount, log: &mut Log) {
    const KEPT: usize = 60;
    let mut new: Vec<(u64, String)> = Vec::new();
    for name in log.files.keys() {
        let round = name.strip_prefix("new-").and_then(|rest| rest.split('-').next());
        new.extend(round.and_then(|round| Some((round.parse().ok()?, name.clone()))));
    }
    new.sort();
    for (_, name) in &new[..new.len().saturating_sub(KEPT)] {
        fs::remove_file(mount.path(name)).unwrap();
        log.files.remove(name);
    }
}

#[test]
fn what_was_acknowledged_survives_kills_at_any_moment() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, &["--cache-disk", "16MiB", "--dirty-interval", "300ms"]);
    kill_again_and_again(&cluster, &mount, rounds(6, 120), false, || mount.mount());
}

#[test]
fn what_was_fsynced_survives_kills_and_the_loss_of_the_mount_hosts_disk() {
    let cluster = Cluster::start(5);
    // The lease of who was killed lives on for some seconds, and a new state folder is somebody else's.
    let mount = Mount::new(&cluster, &["--cache-disk", "16MiB", "--dirty-interval", "300ms", "--take-over"]);
    let state = mount.state();
    let key = state.with_extension("key");
    fs::copy(state.join("volume.key"), &key).unwrap();
    let mut round = 0;
    kill_again_and_again(&cluster, &mount, rounds(10, 300), true, || {
        round += 1;
        if round % 3 == 1 {
            fs::remove_dir_all(&state).unwrap();
            let mut recover = process::command("avidfs");
            recover.args(["recover", "--peers", &cluster.peers()]);
            let output = recover.arg("--state").arg(&state).arg("--key").arg(&key).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            fsck_folder(&state, &[]).is_clean();
        }
        mount.mount();
    });
}

fn kill_again_and_again(
    cluster: &Cluster,
    mount: &Mount,
    rounds: u64,
    fsyncs: bool,
    mut mount_again: impl FnMut(),
) {
    let mut dice = Dice::new(seed());
    let log = Mutex::new(Log::default());
    for round in 0..rounds {
        let moment = Duration::from_millis(30 + dice.below(900));
        // Also all five: fsync and close mean that the nodes have the bytes, not that they go on living.
        let victims: Vec<usize> = (0..5).filter(|_| dice.chance(25)).collect();
        let nodes_first = dice.chance(50);
        std::thread::scope(|scope| {
            let writer = Writer { mount, log: &log, dice: Dice::new(dice.roll()), round, fsyncs };
            let writing = scope.spawn(|| writer.run());
            std::thread::sleep(moment);
            if nodes_first && victims.len() <= 2 {
                victims.iter().for_each(|node| cluster.kill(*node));
                std::thread::sleep(moment / 4);
            }
            mount.kill();
            victims.iter().for_each(|node| cluster.kill(*node));
            writing.join().unwrap();
        });
        victims.iter().for_each(|node| cluster.restart(*node));
        mount_again();
        fsck_mount(&mount.root(), &[]).is_clean();
        let mut log = log.lock().unwrap();
        verify(mount, &mut log);
        forget_the_oldest(mount, &mut log);
    }
    mount.remount();
    verify(mount, &mut log.lock().unwrap());
    fsck_mount(&mount.root(), &["--deep"]).is_clean();
    let log = log.into_inner().unwrap();
    eprintln!("{} files, {} blocks, {:?}", log.files.len(), log.blocks.len(), log.appended);
    assert!(log.files.len() > 5, "the writer got something done");
    mount.unmount();
}

#[test]
fn a_clean_unmount_and_dead_nodes_at_once_lose_nothing_that_was_fsynced() {
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, &["--cache-disk", "0"]);
    for i in 0..20 {
        let file = data::write(&mount.path(format!("{i}")), i, 200_000 * (i + 1)).unwrap();
        file.sync_all().unwrap();
        data::close(file).unwrap();
    }
    mount.kill();
    (0..5).for_each(|node| cluster.kill(node));
    [1, 2, 4].into_iter().for_each(|node| cluster.restart(node));
    mount.mount();
    for i in 0..20 {
        data::check(&mount.path(format!("{i}")), i, 200_000 * (i + 1));
    }
    mount.unmount();
}
