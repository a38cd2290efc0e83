//! A client of a mounted volume that does what its model does, and looks whether the volume is what the model is.

use std::collections::BTreeMap;
use std::sync::Arc;

use avidfs::error::{Error, Result};
use avidfs::inode::{Caller, Ino, ROOT, SetAttributes, Time};
use avidfs::metadata::{NewInode, RenameMode};
use avidfs::volume::Volume;
use bytes::Bytes;

use crate::failing_store::is_by_test;
use crate::fate::Fate;
use crate::model::{FileId, Loss, Model, Node};

const FILES: [&str; 5] = ["a", "b", "c", "d", "e"];
const DIRECTORIES: [&str; 2] = ["x", "y"];
const LARGEST: u64 = 14_000;

const CALLER: Caller = Caller { uid: 0, gid: 0, now: Time { seconds: 1, nanos: 0 } };

/// See the module.
pub struct Client {
    pub fate: Fate,
    pub model: Model,
}

/// Whether an error may be met by somebody who does nothing wrong: nodes do not answer, or another mount took over.
fn is_excused(error: &Error) -> bool {
    matches!(
        error,
        Error::TooFewNodes(_)
            | Error::TimedOut(_)
            | Error::Unreadable { .. }
            | Error::ReadOnly
            | Error::NoSpace(_)
    ) || is_by_test(error)
}

impl Client {
    pub fn new(fate: Fate) -> Client {
        Client { fate, model: Model::new() }
    }

    pub fn caller(&self) -> Caller {
        CALLER
    }

    /// One random operation.
    pub async fn act(&mut self, volume: &Arc<Volume>) {
        match self.fate.below(100) {
            0..12 => self.create(volume),
            12..36 => self.write(volume).await,
            36..42 => self.truncate(volume).await,
            42..47 => self.punch(volume).await,
            47..55 => self.rename(volume),
            55..60 => self.unlink(volume),
            60..64 => self.make_directory(volume),
            64..67 => self.remove_directory(volume),
            67..70 => self.link(volume),
            70..74 => self.copy(volume).await,
            74..84 => drop(self.fsync(volume).await),
            84..91 => self.flush(volume).await,
            _ => self.read(volume).await,
        }
    }

    fn note<T: std::fmt::Debug>(&self, what: &str, outcome: &Result<T>) {
        match outcome {
            Ok(_) => self.fate.note(what),
            Err(error) => {
                self.fate.note(&format!("{what}: {error}"));
                assert!(is_excused(error), "{what}: {error}");
            }
        }
    }

    fn any_path(&self) -> String {
        let name = *self.fate.pick(&FILES);
        match self.fate.below(3) {
            0 => format!("{}/{name}", self.fate.pick(&DIRECTORIES)),
            _ => name.to_owned(),
        }
    }

    /// Directory and name of a path, if its directory is there.
    fn place<'p>(&self, path: &'p str) -> Option<(Ino, &'p [u8])> {
        let Some((directory, name)) = path.split_once('/') else { return Some((ROOT, path.as_bytes())) };
        match self.model.tree().get(directory) {
            Some(Node::Directory(ino)) => Some((*ino, name.as_bytes())),
            _ => None,
        }
    }

    fn any_file(&self) -> Option<(String, FileId)> {
        let files = self.model.tree().iter().filter_map(|(path, node)| match node {
            Node::File(file) => Some((path.clone(), *file)),
            Node::Directory(_) => None,
        });
        let files: Vec<_> = files.collect();
        (!files.is_empty()).then(|| self.fate.pick(&files).clone())
    }

    pub fn create(&mut self, volume: &Volume) {
        let path = self.any_path();
        self.create_at(volume, &path);
    }

    pub fn create_at(&mut self, volume: &Volume, path: &str) {
        let Some((directory, name)) = self.place(path) else { return };
        if self.model.tree().contains_key(path) {
            return;
        }
        let new = NewInode { mode: libc::S_IFREG | 0o644, ..NewInode::default() };
        let made = volume.create(directory, name, new, 0, CALLER);
        self.note(&format!("create {path}"), &made);
        if let Ok(inode) = made.or_else(|_| volume.lookup(directory, name)) {
            let file = self.model.new_file(inode.ino);
            self.model.change(|tree| tree.insert(path.to_owned(), Node::File(file)));
        }
    }

    async fn write(&mut self, volume: &Arc<Volume>) {
        let Some((path, _)) = self.any_file() else { return self.create(volume) };
        let offset = self.fate.below(LARGEST);
        let length = 1 + self.fate.below(if self.fate.chance(30) { 9000 } else { 500 });
        self.write_at(volume, &path, offset, length as usize).await;
    }

    pub async fn write_at(&mut self, volume: &Arc<Volume>, path: &str, offset: u64, length: usize) {
        let file = self.file(path);
        let ino = self.model.ino(file);
        let data = self.fate.bytes(length);
        let (from, end) = (offset as usize, offset as usize + length);
        self.model.write(file, |bytes| {
            bytes.resize(bytes.len().max(end), 0);
            bytes[from..end].copy_from_slice(&data);
        });
        let outcome = match volume.open_file(ino) {
            Ok(()) => {
                let written = volume.write(ino, offset, Bytes::from(data), CALLER.now).await;
                volume.close_file(ino);
                written
            }
            Err(error) => Err(error),
        };
        self.note(&format!("write {path} {from}..{end}"), &outcome);
        if outcome.is_err() {
            self.model.undo(file);
        }
    }

    fn file(&self, path: &str) -> FileId {
        match self.model.tree().get(path) {
            Some(Node::File(file)) => *file,
            other => panic!("{path} is {other:?}"),
        }
    }

    async fn truncate(&mut self, volume: &Arc<Volume>) {
        let Some((path, _)) = self.any_file() else { return };
        let size = self.fate.below(LARGEST);
        self.truncate_at(volume, &path, size).await;
    }

    pub async fn truncate_at(&mut self, volume: &Arc<Volume>, path: &str, size: u64) {
        let file = self.file(path);
        let set = SetAttributes { size: Some(size), ..SetAttributes::default() };
        let outcome = volume.set_attributes(self.model.ino(file), &set, CALLER).map(drop);
        self.note(&format!("truncate {path} to {size}"), &outcome);
        self.changed(volume, file, outcome, |bytes| bytes.resize(size as usize, 0)).await;
    }

    async fn punch(&mut self, volume: &Arc<Volume>) {
        let Some((path, _)) = self.any_file() else { return };
        let (offset, length) = (self.fate.below(LARGEST), 1 + self.fate.below(6000));
        self.punch_at(volume, &path, offset, length).await;
    }

    pub async fn punch_at(&mut self, volume: &Arc<Volume>, path: &str, offset: u64, length: u64) {
        let file = self.file(path);
        let ino = self.model.ino(file);
        let outcome = volume.open_file(ino).and_then(|()| {
            let punched = volume.punch(ino, offset..offset + length, true, CALLER);
            volume.close_file(ino);
            punched
        });
        self.note(&format!("punch {path} {offset}+{length}"), &outcome);
        let punch = |bytes: &mut Vec<u8>| {
            let end = (offset + length).min(bytes.len() as u64) as usize;
            bytes[(offset as usize).min(end)..end].fill(0);
        };
        self.changed(volume, file, outcome, punch).await;
    }

    /// A file's bytes were changed, or not: where the store failed only the volume can say.
    async fn changed(
        &mut self,
        volume: &Arc<Volume>,
        file: FileId,
        outcome: Result<()>,
        change: impl FnOnce(&mut Vec<u8>),
    ) {
        match outcome {
            Ok(()) => self.model.write(file, change),
            Err(error) if is_by_test(&error) => {
                let before = self.model.bytes(file).to_vec();
                self.model.write(file, change);
                let found = read(volume, self.model.ino(file), 0, 1 << 20).await.expect("it fails only once");
                if found != self.model.bytes(file) {
                    assert!(found == before, "half a change");
                    self.model.undo(file);
                }
            }
            Err(_) => {}
        }
    }

    fn rename(&mut self, volume: &Volume) {
        let Some((from, _)) = self.any_file() else { return };
        let to = self.any_path();
        self.rename_to(volume, &from, &to);
    }

    pub fn rename_to(&mut self, volume: &Volume, from: &str, to: &str) {
        let (Some(source), Some(target)) = (self.place(from), self.place(to)) else { return };
        let (moved, replaced) = (self.file(from), self.model.tree().get(to).copied());
        if replaced == Some(Node::File(moved)) {
            return;
        }
        let outcome = volume.rename(source, target, RenameMode::Replace, CALLER);
        self.note(&format!("rename {from} to {to}"), &outcome);
        let is_moved = || volume.lookup(source.0, source.1).is_err();
        if outcome.is_ok() || is_moved() {
            self.model.change(|tree| {
                tree.remove(from);
                tree.insert(to.to_owned(), Node::File(moved))
            });
            self.forget_if_gone(volume, replaced);
        }
    }

    /// The kernel lets go of what has no name.
    fn forget_if_gone(&self, volume: &Volume, node: Option<Node>) {
        if let Some(Node::File(file)) = node
            && !self.model.tree().values().any(|named| *named == Node::File(file))
        {
            volume.forget(self.model.ino(file), 1000);
        }
    }

    fn unlink(&mut self, volume: &Volume) {
        let Some((path, _)) = self.any_file() else { return };
        self.unlink_at(volume, &path);
    }

    pub fn unlink_at(&mut self, volume: &Volume, path: &str) {
        let Some((directory, name)) = self.place(path) else { return };
        let outcome = volume.unlink(directory, name, CALLER);
        self.note(&format!("unlink {path}"), &outcome);
        if outcome.is_ok() || volume.lookup(directory, name).is_err() {
            let gone = self.model.tree().get(path).copied();
            self.model.change(|tree| tree.remove(path));
            self.forget_if_gone(volume, gone);
        }
    }

    fn make_directory(&mut self, volume: &Volume) {
        let path = *self.fate.pick(&DIRECTORIES);
        if self.model.tree().contains_key(path) {
            return;
        }
        let new = NewInode { mode: libc::S_IFDIR | 0o755, ..NewInode::default() };
        let made = volume.create(ROOT, path.as_bytes(), new, 0, CALLER);
        self.note(&format!("mkdir {path}"), &made);
        if let Ok(inode) = made.or_else(|_| volume.lookup(ROOT, path.as_bytes())) {
            self.model.change(|tree| tree.insert(path.to_owned(), Node::Directory(inode.ino)));
        }
    }

    fn remove_directory(&mut self, volume: &Volume) {
        let path = *self.fate.pick(&DIRECTORIES);
        let inside = format!("{path}/");
        let tree = self.model.tree();
        if !tree.contains_key(path) || tree.keys().any(|other| other.starts_with(&inside)) {
            return;
        }
        let outcome = volume.rmdir(ROOT, path.as_bytes(), CALLER);
        self.note(&format!("rmdir {path}"), &outcome);
        if outcome.is_ok() || volume.lookup(ROOT, path.as_bytes()).is_err() {
            self.model.change(|tree| tree.remove(path));
        }
    }

    fn link(&mut self, volume: &Volume) {
        let Some((from, file)) = self.any_file() else { return };
        let to = self.any_path();
        let Some((directory, name)) = self.place(&to) else { return };
        if self.model.tree().contains_key(&to) {
            return;
        }
        let outcome = volume.link(self.model.ino(file), directory, name, CALLER);
        self.note(&format!("link {from} as {to}"), &outcome);
        if outcome.is_ok() || volume.lookup(directory, name).is_ok() {
            self.model.change(|tree| tree.insert(to, Node::File(file)));
        }
    }

    async fn copy(&mut self, volume: &Arc<Volume>) {
        let (Some((from, source)), Some((to, target))) = (self.any_file(), self.any_file()) else { return };
        if source == target {
            return;
        }
        let (offset, at) = (self.fate.below(LARGEST), self.fate.below(LARGEST));
        let length = 1 + self.fate.below(6000);
        let data = self.model.bytes(source);
        let end = (offset + length).min(data.len() as u64) as usize;
        let data = data[(offset as usize).min(end)..end].to_vec();
        let inos = (self.model.ino(source), self.model.ino(target));
        // Before it is done, as a crash may come after it was and before it is known.
        self.model.write(target, |bytes| {
            let (from, end) = (at as usize, at as usize + data.len());
            bytes.resize(bytes.len().max(if data.is_empty() { 0 } else { end }), 0);
            if !data.is_empty() {
                bytes[from..end].copy_from_slice(&data);
            }
        });
        let copied = copy_range(volume, (inos.0, offset), (inos.1, at), length).await;
        self.note(&format!("copy {from} {offset}+{length} to {to} {at}"), &copied);
        match copied {
            Ok(copied) => assert_eq!(copied, data.len() as u64),
            Err(_) => self.model.undo(target),
        }
    }

    /// Whether a random file is durable now; without any, all names are.
    pub async fn fsync(&mut self, volume: &Arc<Volume>) -> bool {
        match self.any_file() {
            Some((path, _)) => self.fsync_at(volume, &path).await,
            None => {
                let outcome = volume.sync().await;
                self.note("sync", &outcome);
                if outcome.is_ok() {
                    self.model.names_synced();
                }
                outcome.is_ok()
            }
        }
    }

    pub async fn fsync_at(&mut self, volume: &Arc<Volume>, path: &str) -> bool {
        let file = self.file(path);
        let outcome = volume.fsync(self.model.ino(file)).await;
        self.note(&format!("fsync {path}"), &outcome);
        if outcome.is_ok() {
            self.model.synced(file);
        }
        outcome.is_ok()
    }

    async fn flush(&mut self, volume: &Arc<Volume>) {
        let Some((path, file)) = self.any_file() else { return };
        let outcome = volume.flush(self.model.ino(file)).await;
        self.note(&format!("close {path}"), &outcome);
        if outcome.is_ok() {
            self.model.stored(file);
        }
    }

    /// Read all of a file that is open; whether that went.
    pub async fn read_at(&self, volume: &Arc<Volume>, path: &str) -> bool {
        let file = self.file(path);
        let read = volume.read(self.model.ino(file), 0, 1 << 20).await;
        self.note(&format!("read {path}"), &read);
        if let Ok(read) = read {
            assert!(read.concat() == self.model.bytes(file), "{path} has other bytes");
            return true;
        }
        false
    }

    pub fn bytes_of(&self, path: &str) -> Vec<u8> {
        self.model.bytes(self.file(path)).to_vec()
    }

    pub fn ino_of(&self, path: &str) -> Ino {
        self.model.ino(self.file(path))
    }

    async fn read(&mut self, volume: &Arc<Volume>) {
        let Some((path, file)) = self.any_file() else { return };
        let (offset, length) = (self.fate.below(LARGEST), 1 + self.fate.below(LARGEST));
        let read = read(volume, self.model.ino(file), offset, length as u32).await;
        self.note(&format!("read {path} {offset}+{length}"), &read);
        let Ok(read) = read else { return };
        let bytes = self.model.bytes(file);
        let end = (offset + length).min(bytes.len() as u64) as usize;
        assert!(read == bytes[(offset as usize).min(end)..end], "{path} at {offset}, {length} bytes");
    }

    /// After a crash: what is there is what may be there. It is the present from now on.
    pub async fn adopt(&mut self, volume: &Arc<Volume>, loss: Loss) {
        let found = walk(volume);
        self.fate.note(&format!("after losing {loss:?} the tree is {found:?}"));
        self.model.adopt_tree(&found, loss).unwrap_or_else(|wrong| panic!("after losing {loss:?} {wrong}"));
        let mut seen = Vec::new();
        for (path, node) in self.model.tree().clone() {
            let Node::File(file) = node else { continue };
            if seen.contains(&file) {
                continue;
            }
            seen.push(file);
            let bytes = read(volume, self.model.ino(file), 0, 1 << 20).await;
            let bytes = bytes.unwrap_or_else(|error| panic!("after losing {loss:?} {path}: {error}"));
            self.fate.note(&format!("{path} has {} bytes {}", bytes.len(), blake3::hash(&bytes)));
            let adopted = self.model.adopt_bytes(file, bytes, loss);
            adopted.unwrap_or_else(|wrong| panic!("after losing {loss:?} {path}: {wrong}"));
        }
    }
}

async fn copy_range(volume: &Arc<Volume>, from: (Ino, u64), to: (Ino, u64), length: u64) -> Result<u64> {
    volume.open_file(from.0)?;
    volume.open_file(to.0)?;
    let copied = volume.copy_range(from, to, length, CALLER).await;
    volume.close_file(from.0);
    volume.close_file(to.0);
    copied
}

async fn read(volume: &Arc<Volume>, ino: Ino, offset: u64, length: u32) -> Result<Vec<u8>> {
    volume.open_file(ino)?;
    let read = volume.read(ino, offset, length).await;
    volume.close_file(ino);
    Ok(read?.concat())
}

fn walk(volume: &Volume) -> BTreeMap<String, Ino> {
    let mut found = BTreeMap::new();
    let mut list = |directory: Ino, before: &str| {
        let entries = volume.list(directory, 0, 1000).unwrap();
        let mut directories = Vec::new();
        for entry in entries {
            let path = format!("{before}{}", String::from_utf8_lossy(&entry.name));
            if entry.inode.is_directory() {
                directories.push((entry.inode.ino, format!("{path}/")));
            }
            found.insert(path, entry.inode.ino);
        }
        directories
    };
    for (directory, before) in list(ROOT, "") {
        list(directory, &before);
    }
    found
}
