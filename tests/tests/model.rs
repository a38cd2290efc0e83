//! The mount against a local directory: the same random operations on both, the same answers and the same bytes. What
//! fails is tried again with fewer and fewer operations, and the shortest list that fails is shown.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use avidfs_tests::cluster::Cluster;
use avidfs_tests::data;
use avidfs_tests::eventually;
use avidfs_tests::files::{self, Aligned, Mapped};
use avidfs_tests::mount::Mount;
use avidfs_tests::posix::{BIN, DAEMON, NOBODY, User, with_umask};
use avidfs_tests::process::need_root;
use avidfs_tests::scratch::scratch;
use avidfs_tests::seed::{Dice, announce, is_given, rounds, seed};
use tempfile::TempDir;

/// Files open at once.
const MAX_OPEN: usize = 6;
/// Longest write, mapping or copy.
const MAX_LENGTH: u64 = 200_000;

/// What a direct transfer is a multiple of.
const BLOCK: u64 = 4096;
/// Who tries to open what root made.
const USERS: &[User] = &[NOBODY, DAEMON, BIN];
/// How long a failure is made shorter.
const SHRINK_LIMIT: Duration = Duration::from_secs(60);

/// One operation; paths are below the root of either side, handles are places in the list of open files.
#[derive(Clone, Debug)]
enum Operation {
    Open { path: String, flags: i32 },
    Close { handle: usize },
    Write { handle: usize, offset: u64, length: u64, seed: u64 },
    Append { handle: usize, length: u64, seed: u64 },
    Read { handle: usize, offset: u64, length: u64 },
    SetLength { handle: usize, length: u64 },
    Allocate { handle: usize, mode: i32, offset: u64, length: u64 },
    WriteDirect { handle: usize, block: u64, count: u64, seed: u64 },
    ReadDirect { handle: usize, block: u64, count: u64 },
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
    RemoveAttribute { path: String, name: String },
    Attributes { path: String },
    AccessList { path: String, default: bool, permissions: u64 },
    Owner { path: String, uid: u32, gid: u32 },
    MakeSocket { path: String },
    May { path: String, user: usize },
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

/// Room set aside is nothing that an answer shows; a hole and a range of zeros are.
const ALLOCATE: &[i32] = &[
    0,
    libc::FALLOC_FL_KEEP_SIZE,
    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
    libc::FALLOC_FL_ZERO_RANGE,
    libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
];

fn draw_on_handle(dice: &mut Dice, open: usize) -> Operation {
    let handle = dice.below(open as u64) as usize;
    let (offset, length, seed) = (draw_offset(dice), draw_length(dice), dice.roll());
    match dice.below(20) {
        0..6 => Operation::Write { handle, offset, length, seed },
        6..8 => Operation::Append { handle, length, seed },
        8..12 => Operation::Read { handle, offset, length },
        12 => Operation::SetLength { handle, length: offset },
        13 => Operation::Allocate { handle, mode: *dice.pick(ALLOCATE), offset, length },
        14 if dice.chance(50) => {
            let (block, count) = (dice.below(700), 1 + dice.below(40));
            match dice.chance(50) {
                true => Operation::WriteDirect { handle, block, count, seed },
                false => Operation::ReadDirect { handle, block, count },
            }
        }
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
    match dice.below(56) {
        0..8 => {
            let mut flags = if dice.chance(70) { libc::O_CREAT } else { 0 };
            for (flag, percent) in [(libc::O_APPEND, 20), (libc::O_TRUNC, 10), (libc::O_EXCL, 10)] {
                flags |= if dice.chance(percent) { flag } else { 0 };
            }
            // What it does without O_CREAT is not defined.
            let exclusive = if flags & libc::O_CREAT == 0 { !libc::O_EXCL } else { !0 };
            Operation::Open { path, flags: flags & exclusive }
        }
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
        35 | 50..53 => Operation::Mode { path, mode: dice.below(0o1000) as u32 | 0o600 },
        36 => {
            // What ext4 can keep.
            let seconds = dice.below(8_000_000_000) as i64 - 2_000_000_000;
            Operation::Times { path, seconds, nanos: dice.below(1_000_000_000) as i64 }
        }
        37..39 => Operation::SetAttribute { path, name: format!("user.{}", dice.below(3)), seed },
        39 => Operation::RemoveAttribute { path, name: format!("user.{}", dice.below(3)) },
        40 | 41 => Operation::Owner { path, uid: dice.below(3) as u32, gid: dice.below(3) as u32 },
        42 => Operation::MakeSocket { path },
        43..45 | 53..56 => Operation::AccessList { path, default: false, permissions: dice.roll() },
        45 => {
            let path = dice.pick(&["", "d0", "d1", "d0/e0"]).to_string();
            Operation::AccessList { path, default: true, permissions: dice.roll() }
        }
        46..48 => Operation::May { path, user: dice.below(USERS.len() as u64) as usize },
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
            Operation::Open { path, flags } => {
                let file = files::open(&at(path), libc::O_RDWR | flags, 0o666)?;
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
            Operation::Allocate { handle, mode, offset, length } => {
                files::fallocate(&self.open[*handle], *mode, *offset, *length).map(done)
            }
            Operation::WriteDirect { handle, block, count, seed } => {
                let mut bytes = Aligned::new((count * BLOCK) as usize);
                data::fill(*seed, 0, bytes.bytes());
                direct(&self.open[*handle])?.write_all_at(bytes.bytes(), block * BLOCK).map(done)
            }
            Operation::ReadDirect { handle, block, count } => {
                let mut bytes = Aligned::new((count * BLOCK) as usize);
                let count = direct(&self.open[*handle])?.read_at(bytes.bytes(), block * BLOCK)?;
                Ok(format!("{count} bytes, {}", hash(&bytes.bytes()[..count])))
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
            Operation::Attributes { path } => attributes(&at(path)),
            Operation::RemoveAttribute { path, name } => files::remove_xattr(&at(path), name).map(done),
            Operation::AccessList { path, default, permissions } => {
                let name = if *default { "system.posix_acl_default" } else { "system.posix_acl_access" };
                files::set_xattr(&at(path), name, &access_list(*permissions), 0).map(done)
            }
            Operation::Owner { path, uid, gid } => lchown(at(path), Some(*uid), Some(*gid)).map(done),
            Operation::MakeSocket { path } => {
                files::make_node(&at(path), libc::S_IFSOCK | 0o644, 0).map(done)
            }
            Operation::May { path, user } => {
                let path = at(path);
                let opens = |flags| files::errno(&files::open(&path, flags, 0));
                let (read, write) = USERS[*user].does(|| (opens(libc::O_RDONLY), opens(libc::O_WRONLY)));
                Ok(format!("errno {read} to read, {write} to write"))
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
            let attributes = attributes(&path).unwrap_or_else(|error| error.to_string());
            found.insert(name, format!("{} {content} {attributes}", shape(&metadata)));
        }
    }
}

/// Type, mode, and for what is no directory size and links: file systems count those of directories differently.
fn shape(metadata: &fs::Metadata) -> String {
    let counted = if metadata.is_dir() { (0, 0) } else { (metadata.len(), metadata.nlink()) };
    let owner = (metadata.uid(), metadata.gid());
    format!("{:o} {owner:?} {} bytes, {} links", metadata.mode(), counted.0, counted.1)
}

/// Extended attributes and access control lists; those of a symbolic link are what it points to, if it does.
fn attributes(path: &Path) -> io::Result<String> {
    let shown = |name: &String| name.starts_with("user.") || name.starts_with("system.posix_acl_");
    let names = files::xattrs(path)?.into_iter().filter(shown);
    let values: io::Result<Vec<String>> =
        names.map(|name| Ok(format!("{name}={:?}", files::xattr(path, &name)?))).collect();
    Ok(values?.join(" "))
}

/// The same file, past the kernel's cache.
fn direct(file: &File) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)
}

/// An access control list in the kernel's bytes: owner, a user, group, mask and others, three bits of `permissions`
/// each; or a list without user and mask, or one with a mask alone.
fn access_list(permissions: u64) -> Vec<u8> {
    let kept: &[usize] = match permissions >> 60 {
        0..10 => &[0, 1, 2, 3, 4],
        10..13 => &[0, 2, 4],
        _ => &[0, 2, 3, 4],
    };
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for entry in kept {
        let (tag, id) = [(1u16, u32::MAX), (2, 1), (4, u32::MAX), (16, u32::MAX), (32, u32::MAX)][*entry];
        bytes.extend(tag.to_le_bytes());
        bytes.extend((permissions as u16 >> (3 * entry) & 0o7).to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
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

/// Both sides of a comparison.
struct Pair {
    mount: Mount,
    ours: Side,
    theirs: Side,
    _reference: TempDir,
}

impl Pair {
    fn new(mount: Mount) -> Pair {
        need_root("it changes owners and acts as other users");
        let reference = scratch();
        let theirs = reference.path().join("root");
        fs::create_dir(&theirs).unwrap();
        // Others get as far as the permissions below let them.
        for folder in [reference.path(), mount.root().parent().unwrap(), &mount.root(), &theirs] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let ours = Side { root: mount.root(), open: Vec::new() };
        let theirs = Side { root: theirs, open: Vec::new() };
        Pair { mount, ours, theirs, _reference: reference }
    }

    /// Carry an operation out on both; the answer, or a sentence if there are two.
    fn both(&mut self, operation: &Operation) -> Result<String, String> {
        let (ours, theirs) = with_umask(0o022, || (self.ours.apply(operation), self.theirs.apply(operation)));
        if ours != theirs {
            return Err(format!("the mount answers {ours:?}, a local directory {theirs:?}"));
        }
        if self.ours.open.len() > MAX_OPEN {
            self.both(&Operation::Close { handle: 0 })?;
        }
        Ok(theirs)
    }

    fn compare(&self) -> Result<(), String> {
        let (ours, theirs) = (self.ours.tree(), self.theirs.tree());
        if ours == theirs {
            return Ok(());
        }
        let paths: BTreeSet<&PathBuf> = ours.keys().chain(theirs.keys()).collect();
        let differs: Vec<String> = paths
            .into_iter()
            .filter(|path| ours.get(*path) != theirs.get(*path))
            .map(|path| format!("{}: {:?} instead of {:?}", path.display(), ours.get(path), theirs.get(path)))
            .collect();
        Err(format!("the trees differ: {}", differs.join("; ")))
    }

    fn remount(&mut self) -> Result<(), String> {
        self.ours.open.drain(..).for_each(|file| data::close(file).unwrap());
        self.theirs.open.clear();
        self.mount.remount();
        self.compare()
    }
}

/// A pair, and what happens to the nodes meanwhile.
struct World {
    cluster: Cluster,
    pair: Pair,
    past: Vec<String>,
    /// The operations of the past, to be tried again.
    operations: Vec<Operation>,
}

impl World {
    fn new(options: &[&str]) -> World {
        let cluster = Cluster::start(5);
        let pair = Pair::new(Mount::new(&cluster, options));
        World { cluster, pair, past: Vec::new(), operations: Vec::new() }
    }

    fn step(&mut self, dice: &mut Dice) -> Result<(), String> {
        match dice.below(100) {
            0 => {
                self.past.push("remount".into());
                self.pair.remount()?;
            }
            1..3 => self.lose_a_node(dice),
            3..6 => self.get_nodes_back(),
            _ => {
                let operation = draw(dice, self.pair.ours.open.len());
                self.operations.push(operation.clone());
                let answer = self.pair.both(&operation);
                self.past.push(format!("{operation:?} -> {answer:?}"));
                answer?;
            }
        }
        Ok(())
    }

    fn lose_a_node(&mut self, dice: &mut Dice) {
        let living = self.cluster.living();
        if living.len() == self.cluster.len() {
            // What was written while nodes were dead survives the loss of two again only once it is at home.
            eventually(Duration::from_secs(60), "every fragment is at home", || {
                self.pair.mount.status()["objects_not_at_home"] == 0
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

    /// All steps, with comparisons in between and a last one after a remount.
    fn live(&mut self, dice: &mut Dice, steps: u64) -> Result<(), String> {
        for step in 1..=steps {
            self.step(dice)?;
            if step % 60 == 0 {
                self.pair.compare()?;
            }
        }
        self.pair.compare()?;
        self.pair.remount()
    }
}

fn run(seed: u64, steps: u64) {
    let mut dice = Dice::new(seed);
    let size = *dice.pick(&["64KiB", "256KiB", "4MiB"]);
    let cache = *dice.pick(&["0", "4MiB"]);
    let options =
        ["--object-size", size, "--cache-disk", cache, "--cache-memory", "4MiB", "--dirty-interval", "1s"];
    let mut world = World::new(&options);
    if let Err(sentence) = world.live(&mut dice, steps) {
        let last = world.past[world.past.len().saturating_sub(40)..].join("\n");
        eprintln!("{sentence}\nafter {} steps, the last of which:\n{last}", world.past.len());
        match shortest(&options, world.operations) {
            Some((shown, sentence)) => panic!("{sentence}\nat the end of these alone:\n{}", shown.join("\n")),
            None => panic!("{sentence}\nbut not without remounts and lost nodes"),
        }
    }
    world.get_nodes_back();
    world.pair.mount.unmount();
}

/// Leave operations out as long as the rest still fails on a mount of its own.
fn shortest(options: &[&str], mut operations: Vec<Operation>) -> Option<(Vec<String>, String)> {
    let end = Instant::now() + SHRINK_LIMIT;
    let mut sentence = replay(options, &operations)?;
    let mut part = operations.len() / 2;
    while part > 0 {
        let mut at = 0;
        while at < operations.len() && Instant::now() < end {
            let mut fewer = operations.clone();
            fewer.drain(at..(at + part).min(fewer.len()));
            match replay(options, &fewer) {
                Some(same) => (operations, sentence) = (fewer, same),
                None => at += part,
            }
        }
        part /= 2;
    }
    Some((operations.iter().map(|operation| format!("{operation:?}")).collect(), sentence))
}

/// In what these operations fail, if they do.
fn replay(options: &[&str], operations: &[Operation]) -> Option<String> {
    let mut pair = Pair::new(Mount::embedded(options));
    for operation in operations {
        if let Some(operation) = operation.on_one_of(pair.ours.open.len())
            && let Err(sentence) = pair.both(&operation)
        {
            return Some(sentence);
        }
    }
    pair.compare().and_then(|()| pair.remount()).err()
}

impl Operation {
    /// The same on a handle that is open, where the one it was made for may be left out; none if none is.
    fn on_one_of(&self, open: usize) -> Option<Operation> {
        let mut same = self.clone();
        let handles: &mut [&mut usize] = match &mut same {
            Operation::Close { handle }
            | Operation::Write { handle, .. }
            | Operation::Append { handle, .. }
            | Operation::Read { handle, .. }
            | Operation::SetLength { handle, .. }
            | Operation::Allocate { handle, .. }
            | Operation::WriteDirect { handle, .. }
            | Operation::ReadDirect { handle, .. }
            | Operation::Mapped { handle, .. }
            | Operation::Sync { handle }
            | Operation::Look { handle } => &mut [handle],
            Operation::Copy { from, to, .. } => &mut [from, to],
            _ => &mut [],
        };
        for handle in handles {
            **handle = handle.checked_rem(open)?;
        }
        Some(same)
    }
}

/// Seeds for one of five tests, so that they can run side by side: 10 in all, 200 with AVIDFS_SOAK=1.
fn share() {
    let first = seed();
    let seeds = if is_given() { 1 } else { rounds(2, 40) };
    for seed in first..first + seeds {
        announce(seed);
        run(seed, 500);
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
