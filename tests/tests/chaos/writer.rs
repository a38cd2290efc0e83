//! The load: a writer does at random what programs do, in a folder of its own, and compares everything it reads with what
//! it knows. It survives the mount daemon, and tolerates no other error.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use avidfs_tests::data;
use avidfs_tests::eventually;
use avidfs_tests::files::forget_pages;
use avidfs_tests::seed::Dice;

use super::known::{Change, FileId, Known, difference};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// Names in a folder.
const NAMES: u64 = 8;
const FOLDERS: [&str; 3] = ["", "one/", "two/"];
/// Files that stay as they are, so that some bytes are as old as the volume: name and length.
const OLD: [(&str, u64); 4] = [("old0", 900), ("old1", 70 * KIB), ("old2", MIB), ("old3", 5 * MIB)];
/// A writer's bytes; beyond them it removes.
const MOST_BYTES: usize = 20 << 20;
/// A file's.
const LONGEST: u64 = 5 * MIB;
/// Changes of a file, or of names, before it is flushed: what a kill may leave of them is compared version by version.
const MOST_UNSETTLED: usize = 24;
/// Mounting stores what an earlier mount left.
const MOUNT_LIMIT: Duration = Duration::from_secs(90);

/// What writers and disturber tell each other.
#[derive(Default)]
pub struct Stage {
    /// Counts kills and mounts of the daemon: while it is odd there is none.
    life: AtomicU64,
    /// Writers that have looked at what they find since the last mount.
    settled: AtomicU64,
    /// The run ends, well or not.
    over: AtomicBool,
    /// Taken to write while nothing is to be written.
    load: RwLock<()>,
    pub bytes_verified: AtomicU64,
}

impl Stage {
    /// Before the daemon is killed, and after it was mounted again.
    pub fn turn(&self) {
        self.settled.store(0, Ordering::SeqCst);
        self.life.fetch_add(1, Ordering::SeqCst);
    }

    /// Wait until so many writers know what the kill left them.
    pub fn wait_until_settled(&self, writers: u64) {
        eventually(MOUNT_LIMIT, "every writer has seen what the kill left", || {
            self.settled.load(Ordering::SeqCst) == writers || self.is_over()
        });
    }

    /// No writer does anything while this is held.
    pub fn hush(&self) -> RwLockWriteGuard<'_, ()> {
        self.load.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn speak(&self) -> RwLockReadGuard<'_, ()> {
        self.load.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn life(&self) -> u64 {
        self.life.load(Ordering::SeqCst)
    }
}

/// Ends the run when dropped, so that who panics does not leave the others at work.
pub struct Ending<'a>(pub &'a Stage);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

/// One writer, in a folder of its own.
pub struct Writer<'a> {
    pub stage: &'a Stage,
    pub folder: PathBuf,
    pub known: Known,
    dice: Dice,
    /// The daemon's life it works in.
    life: u64,
    pub steps: u64,
    pub slowest: (Duration, String),
    /// What it is about, for messages.
    about: String,
}

impl Writer<'_> {
    /// A writer in an empty folder, which it makes.
    pub fn new(stage: &Stage, folder: PathBuf, seed: u64) -> Writer<'_> {
        fs::create_dir(&folder).unwrap();
        let mut dice = Dice::new(seed);
        let mut known = Known::new();
        // With the first fsync the folder itself is durable.
        for (path, length) in OLD {
            let (id, seed) = (known.create(path), dice.roll());
            known.change(id, Change::Write { seed, offset: 0, length: length as usize });
            data::keep(&folder.join(path), seed, length).unwrap();
            known.kept(id);
        }
        Writer {
            stage,
            folder,
            known,
            dice,
            life: 0,
            steps: 0,
            slowest: Default::default(),
            about: String::new(),
        }
    }

    /// Work until the run is over.
    pub fn run(&mut self) {
        let _ending = Ending(self.stage);
        while !self.stage.is_over() {
            if self.stage.life() != self.life {
                self.settle();
                continue;
            }
            let stage = self.stage;
            let _speaking = stage.speak();
            let began = Instant::now();
            let done = self.step();
            let time = began.elapsed();
            if time > self.slowest.0 {
                self.slowest = (time, self.about.clone());
            }
            self.steps += 1;
            if let Err(error) = done
                && self.stage.life() == self.life
            {
                panic!("{} after {time:.1?}: {error}", self.about);
            }
        }
    }

    /// Wait for the new mount, and see what is left.
    fn settle(&mut self) {
        let mut life = 0;
        eventually(MOUNT_LIMIT, "the volume is mounted again", || {
            life = self.stage.life();
            life.is_multiple_of(2) || self.stage.is_over()
        });
        if self.stage.is_over() {
            return;
        }
        let bytes = self.known.adopt(&self.folder);
        let bytes = bytes.unwrap_or_else(|wrong| panic!("after a kill, {}: {wrong}", self.folder.display()));
        self.stage.bytes_verified.fetch_add(bytes, Ordering::Relaxed);
        self.life = life;
        self.stage.settled.fetch_add(1, Ordering::SeqCst);
    }

    fn step(&mut self) -> io::Result<()> {
        if self.known.size() > MOST_BYTES {
            return self.remove();
        }
        match self.dice.below(100) {
            0..20 => self.create(),
            20..42 => self.overwrite(),
            42..48 => self.resize(),
            48..68 => self.read_whole(),
            68..80 => self.read_part(),
            80..87 => self.rename(),
            87..92 => self.remove(),
            92..95 => self.make_folder(),
            _ => self.flush(),
        }
    }

    /// A new file, or another one in place of one that is there.
    fn create(&mut self) -> io::Result<()> {
        let path = self.any_path();
        let most = *self.dice.pick(&[200, 20 * KIB, 300 * KIB, 4 * MIB]);
        let (seed, length) = (self.dice.roll(), 1 + self.dice.below(most));
        self.about = format!("create {path} with {length} bytes");
        let is_there = self.known.names.contains_key(&path);
        if is_there {
            self.known.remove(&path);
            fs::remove_file(self.folder.join(&path))?;
        }
        let id = self.known.create(&path);
        let file = OpenOptions::new().write(true).create_new(true).open(self.folder.join(&path))?;
        self.known.change(id, Change::Write { seed, offset: 0, length: length as usize });
        file.write_all_at(&data::bytes(seed, 0, length as usize), 0)?;
        self.finish(id, file, 40)
    }

    fn overwrite(&mut self) -> io::Result<()> {
        let Some((path, id)) = self.young_file() else { return Ok(()) };
        let file = OpenOptions::new().write(true).open(self.folder.join(&path))?;
        let end = self.known.content(id).now.len() as u64;
        for _ in 0..1 + self.dice.below(4) {
            let most = *self.dice.pick(&[100, 5000, 64 * KIB, MIB]);
            let (seed, length) = (self.dice.roll(), 1 + self.dice.below(most));
            // At times beyond the end, so that a hole comes to be.
            let offset = self.dice.below(end + 1 + end / 8).min(LONGEST - length);
            self.about = format!("write {length} bytes at {offset} of {path}");
            self.known.change(id, Change::Write { seed, offset, length: length as usize });
            file.write_all_at(&data::bytes(seed, offset, length as usize), offset)?;
        }
        self.finish(id, file, 35)
    }

    fn resize(&mut self) -> io::Result<()> {
        let Some((path, id)) = self.young_file() else { return Ok(()) };
        let end = self.known.content(id).now.len() as u64;
        let length = self.dice.below(end + 1 + end / 4).min(LONGEST);
        self.about = format!("truncate {path} from {end} to {length} bytes");
        let file = OpenOptions::new().write(true).open(self.folder.join(&path))?;
        self.known.change(id, Change::Resize(length));
        file.set_len(length)?;
        self.finish(id, file, 20)
    }

    /// Flush at times, and when much is unsettled; then close.
    fn finish(&mut self, id: FileId, file: File, percent: u64) -> io::Result<()> {
        if self.dice.chance(percent) || self.known.unsettled(id) >= MOST_UNSETTLED {
            self.about += ", fsync";
            file.sync_all()?;
            self.kept(id);
        }
        self.about += ", close";
        data::close(file)
    }

    fn flush(&mut self) -> io::Result<()> {
        let (path, id) = self.any_file();
        self.about = format!("fsync {path}");
        File::open(self.folder.join(&path))?.sync_all()?;
        self.kept(id);
        Ok(())
    }

    /// An fsync was acknowledged; if the daemon was killed since the step began, it may have been the next one's, of what
    /// that one found.
    fn kept(&mut self, id: FileId) {
        if self.stage.life() == self.life {
            self.known.kept(id);
        }
    }

    fn read_whole(&mut self) -> io::Result<()> {
        let (path, id) = self.any_file();
        self.about = format!("read {path}");
        let mut found = Vec::new();
        self.open_to_read(&path)?.read_to_end(&mut found)?;
        let wrong = difference(&found, &self.known.content(id).now);
        self.verified(found.len(), wrong);
        Ok(())
    }

    fn read_part(&mut self) -> io::Result<()> {
        let (path, id) = self.any_file();
        let end = self.known.content(id).now.len();
        let from = self.dice.below(end as u64 + 1) as usize;
        let length = self.dice.below(200 * KIB).min((end - from) as u64) as usize;
        self.about = format!("read {length} bytes at {from} of {path}");
        let mut found = vec![0; length];
        self.open_to_read(&path)?.read_exact_at(&mut found, from as u64)?;
        let wrong = difference(&found, &self.known.content(id).now[from..from + length]);
        self.verified(length, wrong);
        Ok(())
    }

    /// Mostly so that the nodes are asked.
    fn open_to_read(&mut self, path: &str) -> io::Result<File> {
        let file = File::open(self.folder.join(path))?;
        if self.dice.chance(70) {
            forget_pages(&file)?;
        }
        Ok(file)
    }

    fn verified(&self, length: usize, wrong: Option<String>) {
        if self.stage.life() != self.life {
            return;
        }
        if let Some(wrong) = wrong {
            panic!("{}/: {}: {wrong}", self.folder.display(), self.about);
        }
        self.stage.bytes_verified.fetch_add(length as u64, Ordering::Relaxed);
    }

    fn rename(&mut self) -> io::Result<()> {
        let Some((from, _)) = self.young_file() else { return Ok(()) };
        let to = self.any_path();
        self.about = format!("rename {from} to {to}");
        if from != to {
            self.known.rename(&from, &to);
        }
        fs::rename(self.folder.join(from), self.folder.join(to))
    }

    fn remove(&mut self) -> io::Result<()> {
        let Some((path, _)) = self.young_file() else { return Ok(()) };
        self.about = format!("remove {path}");
        self.known.remove(&path);
        fs::remove_file(self.folder.join(path))
    }

    fn make_folder(&mut self) -> io::Result<()> {
        let missing = |folder: &&&str| {
            !folder.is_empty() && !self.known.names.contains_key(folder.trim_end_matches('/'))
        };
        let Some(folder) = FOLDERS.iter().find(missing) else { return Ok(()) };
        let folder = folder.trim_end_matches('/');
        self.about = format!("mkdir {folder}");
        self.known.add_folder(folder);
        fs::create_dir(self.folder.join(folder))
    }

    fn any_file(&mut self) -> (String, FileId) {
        self.dice.pick(&self.known.files()).clone()
    }

    /// Any but the old ones, if there is one.
    fn young_file(&mut self) -> Option<(String, FileId)> {
        let mut files = self.known.files();
        files.retain(|(path, _)| OLD.iter().all(|(old, _)| path != old));
        (!files.is_empty()).then(|| self.dice.pick(&files).clone())
    }

    /// A name in a folder that is there.
    fn any_path(&mut self) -> String {
        let folder = *self.dice.pick(&FOLDERS);
        let is_there = self.known.names.contains_key(folder.trim_end_matches('/'));
        format!("{}f{}", if is_there { folder } else { "" }, self.dice.below(NAMES))
    }
}
