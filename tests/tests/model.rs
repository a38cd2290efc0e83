//! The mount against a local directory: the same random operations on both, the same answers and the same bytes.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use avidfs_tests::cluster::Cluster;
use avidfs_tests::data;
use avidfs_tests::eventually;
use avidfs_tests::files::{self, Mapped};
use avidfs_tests::mount::Mount;
use avidfs_tests::scratch::scratch;
use avidfs_tests::seed::{Dice, announce, is_given, rounds, seed};
use tempfile::TempDir;

/// Files open at once.
const MAX_OPEN: usize = 6;
/// Longest write, mapping or copy.
const MAX_LENGTH: u64 = 200_000;

/// One operation; paths are below the root of either side, handles are places in the list of open files.
#[derive(Clone, Debug)]
enum Operation {
    Open { path: String, create: bool, append: bool },
    Close { handle: usize },
    Write { handle: usize, offset: u64, length: u64, seed: u64 },
    Append { handle: usize, length: u64, seed: u64 },
    Read { handle: usize, offset: u64, length: u64 },
    SetLength { handle: usize, length: u64 },
    Punch { handle: usize, offset: u64, length: u64 },
    Mapped { handle: usize, at: u64, length: u64, seed: u64 },
    Copy { from: usize, from_offset: u64, to: usize, to_offset: u64, length: u64 },
    Sync { handle: usize },
    Look { handle: usize },
    WriteFile { path: String, length: u64, seed: u64 },
    ReadFile { path: String },
    Truncate { path: String, length: u64 },
    Rename { from: String, to: String, flags: u32 },
    Link { from: String, to: String },
    Symlink { target: String, path: String },
    Unlink { path: String },
    MakeDirectory { path: String },
    RemoveDirectory { path: String },
    List { path: String },
    Stat { path: String },
    Mode { path: String, mode: u32 },
    Times { path: String, seconds: i64, nanos: i64 },
    SetAttribute { path: String, name: String, seed: u64 },
    Attributes { path: String },
}

fn draw_path(dice: &mut Dice) -> String {
    let folder = *dice.pick(&["", "", "", "d0/", "d0/", "d1/", "d0/e0/", "d1/e1/"]);
    let name = *dice.pick(&["a", "b", "c", "f0", "f1", "d0", "d1", "e0", "e1"]);
    format!("{folder}{name}")
}

fn draw_offset(dice: &mut Dice) -> u64 {
    match dice.below(4) {
        0 => 0,
        1 => dice.below(10_000),
        2 => dice.below(256) * 4096,
        _ => dice.below(3 << 20),
    }
}

fn draw_length(dice: &mut Dice) -> u64 {
    let most = *dice.pick(&[1, 100, 5000, 70_000, MAX_LENGTH]);
    1 + dice.below(most)
}

fn draw(dice: &mut Dice, open: usize) -> Operation {
    if open > 0 && dice.chance(50) { draw_on_handle(dice, open) } else { draw_on_path(dice) }
}

fn draw_on_handle(dice: &mut Dice, open: usize) -> Operation {
    let handle = dice.below(open as u64) as usize;
    let (offset, length, seed) = (draw_offset(dice), draw_length(dice), dice.roll());
    match dice.below(20) {
        0..6 => Operation::Write { handle, offset, length, seed },
        6..8 => Operation::Append { handle, length, seed },
        8..12 => Operation::Read { handle, offset, length },
        12 => Operation::SetLength { handle, length: offset },
        13 => Operation::Punch { handle, offset, length },
        14 => Operation::Mapped { handle, at: offset, length, seed },
        15 => {
            let (to, to_offset) = (dice.below(open as u64) as usize, draw_offset(dice));
            Operation::Copy { from: handle, from_offset: offset, to, to_offset, length }
        }
        16 => Operation::Sync { handle },
        17 => Operation::Look { handle },
        _ => Operation::Close { handle },
    }
}

fn draw_on_path(dice: &mut Dice) -> Operation {
    let (path, seed) = (draw_path(dice), dice.roll());
    match dice.below(40) {
        0..8 => Operation::Open { path, create: dice.chance(70), append: dice.chance(20) },
        8..12 => Operation::WriteFile { path, length: draw_length(dice), seed },
        12..15 => Operation::ReadFile { path },
        15 => Operation::Truncate { path, length: draw_offset(dice) },
        16..20 => {
            let flags = *dice.pick(&[0, 0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE]);
            Operation::Rename { from: path, to: draw_path(dice), flags }
        }
        20..22 => Operation::Link { from: path, to: draw_path(dice) },
        22 => Operation::Symlink { target: draw_path(dice), path },
        23..25 => Operation::Unlink { path },
        25..29 => Operation::MakeDirectory { path },
        29..31 => Operation::RemoveDirectory { path },
        31..33 => Operation::List { path },
        33..35 => Operation::Stat { path },
        35 => Operation::Mode { path, mode: dice.below(0o1000) as u32 | 0o600 },
        36 => {
            // What ext4 can keep.
            let seconds = dice.below(8_000_000_000) as i64 - 2_000_000_000;
            Operation::Times { path, seconds, nanos: dice.below(1_000_000_000) as i64 }
        }
        37..39 => Operation::SetAttribute { path, name: format!("user.{}", dice.below(3)), seed },
        _ => Operation::Attributes { path },
    }
}

/// One of the two file systems.
struct Side {
    root: PathBuf,
    open: Vec<File>,
}

impl Side {
    /// Carry an operation out; the answer is what both sides must agree on.
    fn apply(&mut self, operation: &Operation) -> String {
        match self.answer(operation) {
            Ok(answer) => answer,
            Err(error) => match error.raw_os_error() {
                Some(errno) => format!("errno {errno}"),
                None => format!("error {error}"),
            },
        }
    }

    fn answer(&mut self, operation: &Operation) -> io::Result<String> {
        let at = |path: &String| self.root.join(path);
        let done = |()| "done".to_owned();
        match operation {
            Operation::Open { path, create, append } => {
                let mut options = OpenOptions::new();
                options.read(true).write(!append).append(*append).create(*create);
                let file = options.open(at(path))?;
                self.open.push(file);
                Ok(format!("handle {}", self.open.len()))
            }
            Operation::Close { handle } => data::close(self.open.remove(*handle)).map(done),
            Operation::Write { handle, offset, length, seed } => {
                let bytes = data::bytes(*seed, 0, *length as usize);
                self.open[*handle].write_all_at(&bytes, *offset).map(done)
            }
            Operation::Append { handle, length, seed } => {
                // Through an O_APPEND handle, or where the offset of an ordinary one is: both sides have the same.
                (&self.open[*handle]).write_all(&data::bytes(*seed, 0, *length as usize)).map(done)
            }
            Operation::Read { handle, offset, length } => {
                let mut bytes = vec![0; *length as usize];
                let mut count = 0;
                loop {
                    match self.open[*handle].read_at(&mut bytes[count..], offset + count as u64)? {
                        0 => break,
                        more => count += more,
                    }
                }
                Ok(format!("{count} bytes, {}", hash(&bytes[..count])))
            }
            Operation::SetLength { handle, length } => self.open[*handle].set_len(*length).map(done),
            Operation::Punch { handle, offset, length } => {
                files::punch(&self.open[*handle], *offset, *length).map(done)
            }
            Operation::Mapped { handle, at, length, seed } => {
                write_mapped(&self.open[*handle], *at, *length, *seed)
            }
            Operation::Copy { from, from_offset, to, to_offset, length } => {
                let (from, to) = (&self.open[*from], &self.open[*to]);
                copy_all(from, *from_offset, to, *to_offset, *length).map(|copied| format!("{copied} copied"))
            }
            Operation::Sync { handle } => self.open[*handle].sync_all().map(done),
            Operation::Look { handle } => {
                let metadata = self.open[*handle].metadata()?;
                Ok(format!("{} bytes, {} links", metadata.len(), metadata.nlink()))
            }
            Operation::WriteFile { path, length, seed } => {
                let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(at(path))?;
                file.write_all(&data::bytes(*seed, 0, *length as usize))?;
                data::close(file).map(done)
            }
            Operation::ReadFile { path } => {
                fs::read(at(path)).map(|bytes| format!("{} bytes, {}", bytes.len(), hash(&bytes)))
            }
            Operation::Truncate { path, length } => {
                OpenOptions::new().write(true).open(at(path))?.set_len(*length).map(done)
            }
            Operation::Rename { from, to, flags } => files::rename_with(&at(from), &at(to), *flags).map(done),
            Operation::Link { from, to } => fs::hard_link(at(from), at(to)).map(done),
            Operation::Symlink { target, path } => symlink(target, at(path)).map(done),
            Operation::Unlink { path } => fs::remove_file(at(path)).map(done),
            Operation::MakeDirectory { path } => fs::create_dir(at(path)).map(done),
            Operation::RemoveDirectory { path } => fs::remove_dir(at(path)).map(done),
            Operation::List { path } => {
                let names: io::Result<Vec<_>> = fs::read_dir(at(path))?
                    .map(|entry| Ok(entry?.file_name().into_string().unwrap()))
                    .collect();
                let mut names = names?;
                names.sort();
                Ok(names.join(" "))
            }
            Operation::Stat { path } => fs::symlink_metadata(at(path)).map(|metadata| shape(&metadata)),
            Operation::Mode { path, mode } => {
                fs::set_permissions(at(path), fs::Permissions::from_mode(*mode)).map(done)
            }
            Operation::Times { path, seconds, nanos } => {
                files::set_times(&at(path), (*seconds, 0), (*seconds, *nanos))?;
                let metadata = fs::symlink_metadata(at(path))?;
                Ok(format!("{}.{:09} {}", metadata.mtime(), metadata.mtime_nsec(), metadata.atime()))
            }
            Operation::SetAttribute { path, name, seed } => {
                files::set_xattr(&at(path), name, &data::bytes(*seed, 0, (*seed % 100) as usize), 0).map(done)
            }
            Operation::Attributes { path } => {
                let names = files::xattrs(&at(path))?.into_iter().filter(|name| name.starts_with("user."));
                let values: io::Result<Vec<String>> =
                    names.map(|name| Ok(format!("{name}={:?}", files::xattr(&at(path), &name)?))).collect();
                Ok(values?.join(" "))
            }
        }
    }

    /// Everything below the root: by path its shape and content.
    fn tree(&self) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        self.walk(&self.root, &mut found);
        found
    }

    fn walk(&self, folder: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = match metadata.file_type() {
                kind if kind.is_file() => {
                    hash(&fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
                }
                kind if kind.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
                _ => String::new(),
            };
            if metadata.is_dir() {
                self.walk(&path, found);
            }
            let name = path.strip_prefix(&self.root).unwrap().to_owned();
            found.insert(name, format!("{} {content}", shape(&metadata)));
        }
    }
}

/// Type, mode, and for what is no directory size and links: file systems count those of directories differently.
fn shape(metadata: &fs::Metadata) -> String {
    let counted = if metadata.is_dir() { (0, 0) } else { (metadata.len(), metadata.nlink()) };
    let owner = (metadata.uid(), metadata.gid());
    format!("{:o} {owner:?} {} bytes, {} links", metadata.mode(), counted.0, counted.1)
}

fn hash(bytes: &[u8]) -> String {
    common::hash::HashId::Blake3.hash(bytes).to_string()[..16].to_owned()
}

/// Write through a shared mapping, as far as the file goes.
fn write_mapped(file: &File, at: u64, length: u64, seed: u64) -> io::Result<String> {
    let size = file.metadata()?.len();
    if size == 0 {
        return Ok("nothing to map".into());
    }
    let at = at % size;
    let end = (at + length).min(size);
    let mut mapped = Mapped::new(file, size as usize)?;
    let before = hash(&mapped.bytes()[at as usize..end as usize]);
    data::fill(seed, 0, &mut mapped.bytes()[at as usize..end as usize]);
    mapped.sync()?;
    Ok(format!("over {before}"))
}

fn copy_all(from: &File, from_offset: u64, to: &File, to_offset: u64, length: u64) -> io::Result<u64> {
    let mut copied = 0;
    while copied < length {
        let left = length - copied;
        match files::copy_range(from, from_offset + copied, to, to_offset + copied, left)? {
            0 => break,
            more => copied += more,
        }
    }
    Ok(copied)
}

/// Both sides, and what happens to the nodes meanwhile.
struct World {
    cluster: Cluster,
    mount: Mount,
    ours: Side,
    theirs: Side,
    _reference: TempDir,
    past: Vec<String>,
}

impl World {
    fn new(options: &[&str]) -> World {
        let cluster = Cluster::start(5);
        let mount = Mount::new(&cluster, options);
        let reference = scratch();
        fs::create_dir(reference.path().join("root")).unwrap();
        let ours = Side { root: mount.root(), open: Vec::new() };
        let theirs = Side { root: reference.path().join("root"), open: Vec::new() };
        World { cluster, mount, ours, theirs, _reference: reference, past: Vec::new() }
    }

    fn step(&mut self, dice: &mut Dice) {
        match dice.below(100) {
            0 => self.remount(),
            1..3 => self.lose_a_node(dice),
            3..6 => self.get_nodes_back(),
            _ => self.both(&draw(dice, self.ours.open.len())),
        }
        if self.ours.open.len() > MAX_OPEN {
            self.both(&Operation::Close { handle: 0 });
        }
    }

    fn both(&mut self, operation: &Operation) {
        let (ours, theirs) = (self.ours.apply(operation), self.theirs.apply(operation));
        self.past.push(format!("{operation:?} -> {theirs}"));
        if ours != theirs {
            self.fail(&format!("the mount answers {ours:?}, a local directory {theirs:?}"));
        }
    }

    fn compare(&mut self) {
        let (ours, theirs) = (self.ours.tree(), self.theirs.tree());
        if ours == theirs {
            return;
        }
        let paths = ours.keys().chain(theirs.keys());
        let differs: Vec<String> = paths
            .filter(|path| ours.get(*path) != theirs.get(*path))
            .map(|path| format!("{}: {:?} instead of {:?}", path.display(), ours.get(path), theirs.get(path)))
            .collect();
        self.fail(&format!("the trees differ: {}", differs.join("; ")));
    }

    fn fail(&self, sentence: &str) -> ! {
        let past = &self.past[self.past.len().saturating_sub(60)..];
        panic!("{sentence}\nafter {} steps, the last of which:\n{}", self.past.len(), past.join("\n"));
    }

    fn remount(&mut self) {
        self.past.push("remount".into());
        self.ours.open.drain(..).for_each(|file| data::close(file).unwrap());
        self.theirs.open.clear();
        self.mount.remount();
        self.compare();
    }

    fn lose_a_node(&mut self, dice: &mut Dice) {
        let living = self.cluster.living();
        if living.len() == self.cluster.len() {
            // What was written while nodes were dead survives the loss of two again only once it is at home.
            eventually(Duration::from_secs(60), "every fragment is at home", || {
                self.mount.status()["objects_not_at_home"] == 0
            });
        }
        if living.len() > 3 {
            let node = *dice.pick(&living);
            self.past.push(format!("kill node {node}"));
            self.cluster.kill(node);
        }
    }

    fn get_nodes_back(&mut self) {
        for node in (0..self.cluster.len()).filter(|node| !self.cluster.is_alive(*node)) {
            self.past.push(format!("restart node {node}"));
            self.cluster.restart(node);
        }
    }
}

fn run(seed: u64, steps: u64) {
    let mut dice = Dice::new(seed);
    let size = *dice.pick(&["64KiB", "256KiB", "4MiB"]);
    let cache = *dice.pick(&["0", "4MiB"]);
    let mut world = World::new(&[
        "--object-size",
        size,
        "--cache-disk",
        cache,
        "--cache-memory",
        "4MiB",
        "--dirty-interval",
        "1s",
    ]);
    for step in 1..=steps {
        world.step(&mut dice);
        if step % 60 == 0 {
            world.compare();
        }
    }
    world.compare();
    world.remount();
    world.get_nodes_back();
    world.mount.unmount();
}

/// Seeds for one of five tests, so that they can run side by side: 10 in all, 200 with AVIDFS_SOAK=1.
fn share() {
    let (mut seed, steps) = (seed(), rounds(300, 500));
    let seeds = if is_given() { 1 } else { rounds(2, 40) };
    for _ in 0..seeds {
        announce(seed);
        run(seed, steps);
        seed += 1;
    }
}

#[test]
fn the_mount_answers_as_a_local_directory_1() {
    share();
}

#[test]
fn the_mount_answers_as_a_local_directory_2() {
    share();
}

#[test]
fn the_mount_answers_as_a_local_directory_3() {
    share();
}

#[test]
fn the_mount_answers_as_a_local_directory_4() {
    share();
}

#[test]
fn the_mount_answers_as_a_local_directory_5() {
    share();
}
