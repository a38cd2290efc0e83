//! What a writer knows of its folder: what is there now, and what may be there once the mount daemon was killed: names as
//! they were at some moment since the last fsync, and of each file bytes that it had in some version since its own.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::Path;

use avidfs_tests::data;

/// A file, whatever it is called.
pub type FileId = u64;

/// What a name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    Folder,
    File(FileId),
}

/// Paths below the writer's folder.
pub type Names = BTreeMap<String, Entry>;

/// What is found there: the bytes of each file, and none of a folder.
type Found = BTreeMap<String, Option<Vec<u8>>>;

/// A change of a file's bytes.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// Bytes `offset..offset + length` of the content `seed`.
    Write { seed: u64, offset: u64, length: usize },
    /// truncate(2), to either side.
    Resize(u64),
}

/// See the module.
pub struct Known {
    pub names: Names,
    /// Since the last fsync, the oldest first; the last one is `names`.
    states: Vec<Names>,
    /// Of every file that is in one of the states.
    contents: HashMap<FileId, Content>,
    next: FileId,
}

/// The bytes of a file.
#[derive(Clone, Default)]
pub struct Content {
    pub now: Vec<u8>,
    /// As they were at its last fsync.
    kept: Vec<u8>,
    /// Since then.
    changes: Vec<Change>,
}

impl Known {
    /// An empty folder.
    pub fn new() -> Known {
        Known { names: Names::new(), states: vec![Names::new()], contents: HashMap::new(), next: 0 }
    }

    /// All files with their paths.
    pub fn files(&self) -> Vec<(String, FileId)> {
        let file = |(path, entry): (&String, &Entry)| match entry {
            Entry::File(id) => Some((path.clone(), *id)),
            Entry::Folder => None,
        };
        self.names.iter().filter_map(file).collect()
    }

    /// A file's bytes.
    pub fn content(&self, id: FileId) -> &Content {
        &self.contents[&id]
    }

    /// Bytes of all files.
    pub fn size(&self) -> usize {
        self.files().iter().map(|(_, id)| self.content(*id).now.len()).sum()
    }

    /// How much an fsync would settle.
    pub fn unsettled(&self, id: FileId) -> usize {
        self.content(id).changes.len().max(self.states.len() / 8)
    }

    /// A new empty file.
    pub fn create(&mut self, path: &str) -> FileId {
        let id = self.next;
        self.next += 1;
        self.contents.insert(id, Content::default());
        self.names.insert(path.to_owned(), Entry::File(id));
        self.states.push(self.names.clone());
        id
    }

    /// A new folder.
    pub fn add_folder(&mut self, path: &str) {
        self.names.insert(path.to_owned(), Entry::Folder);
        self.states.push(self.names.clone());
    }

    /// rename(2) of a file, also over another one.
    pub fn rename(&mut self, from: &str, to: &str) {
        let entry = self.names.remove(from).expect("the writer renames what there is");
        self.names.insert(to.to_owned(), entry);
        self.states.push(self.names.clone());
    }

    /// unlink(2).
    pub fn remove(&mut self, path: &str) {
        self.names.remove(path);
        self.states.push(self.names.clone());
    }

    /// A change of a file's bytes, known before it is tried.
    pub fn change(&mut self, id: FileId, change: Change) {
        let content = self.contents.get_mut(&id).expect("the writer changes what there is");
        apply(change, &mut content.now);
        content.changes.push(change);
    }

    /// An fsync of a file was acknowledged: its bytes are durable, and all names as they are.
    pub fn kept(&mut self, id: FileId) {
        let content = self.contents.get_mut(&id).expect("the writer flushes what there is");
        content.kept.clone_from(&content.now);
        content.changes.clear();
        self.settle(self.names.clone());
    }

    fn settle(&mut self, names: Names) {
        self.contents.retain(|id, _| names.values().any(|entry| *entry == Entry::File(*id)));
        self.states = vec![names.clone()];
        self.names = names;
    }

    /// Compare the folder with what is there now, to the byte; returns how many bytes that were.
    pub fn check(&self, root: &Path) -> Result<u64, String> {
        let found = found_below(root)?;
        self.has_names(&self.names, &found)?;
        for (path, id) in self.files() {
            let (bytes, wanted) = (bytes_of(&found, &path), &self.content(id).now);
            difference(bytes, wanted).map_or(Ok(()), |wrong| Err(format!("{path}: {wrong}")))?;
        }
        Ok(self.size() as u64)
    }

    /// After the daemon was killed and the volume mounted again: what is found must be what may be, and is taken as known;
    /// returns how many bytes that are.
    pub fn adopt(&mut self, root: &Path) -> Result<u64, String> {
        let found = found_below(root)?;
        let mut complaints = Vec::new();
        let state =
            self.states.iter().rev().find(|state| {
                self.may_be(state, &found).map_err(|complaint| complaints.push(complaint)).is_ok()
            });
        let Some(state) = state.cloned() else {
            let newest = complaints.first().map_or("", String::as_str);
            return Err(format!("none of {} states since the last fsync; {newest}", self.states.len()));
        };
        self.settle(state);
        for (path, id) in self.files() {
            let bytes = bytes_of(&found, &path).to_vec();
            self.contents.insert(id, Content { now: bytes.clone(), kept: bytes, changes: Vec::new() });
        }
        Ok(self.size() as u64)
    }

    fn may_be(&self, state: &Names, found: &Found) -> Result<(), String> {
        self.has_names(state, found)?;
        let files = state.iter().filter_map(|(path, entry)| match entry {
            Entry::File(id) => Some((path, id)),
            Entry::Folder => None,
        });
        for (path, id) in files {
            self.contents[id].may_be(bytes_of(found, path)).map_err(|wrong| format!("{path}: {wrong}"))?;
        }
        Ok(())
    }

    fn has_names(&self, names: &Names, found: &Found) -> Result<(), String> {
        let wanted = names.iter().map(|(path, entry)| (path, *entry == Entry::Folder));
        let there = found.iter().map(|(path, bytes)| (path, bytes.is_none()));
        if wanted.eq(there) {
            return Ok(());
        }
        Err(format!("there is {:?} instead of {:?}", found.keys(), names.keys()))
    }
}

impl Content {
    /// Whether a file may have these bytes once what no fsync acknowledged may be lost.
    fn may_be(&self, found: &[u8]) -> Result<(), String> {
        if found == self.now {
            return Ok(());
        }
        let mut version = self.kept.clone();
        let mut lengths = version.len()..=version.len();
        // What lies beyond the end of a version was nothing then, and is zero in a longer one.
        let had = |version: &[u8], at: usize| version.get(at).copied().unwrap_or(0) == found[at];
        let mut known: Vec<bool> = (0..found.len()).map(|at| had(&version, at)).collect();
        for change in &self.changes {
            let touched = apply(*change, &mut version);
            lengths = *lengths.start().min(&version.len())..=*lengths.end().max(&version.len());
            for (at, known) in known.iter_mut().enumerate().take(touched.end).skip(touched.start) {
                *known |= had(&version, at);
            }
        }
        if !lengths.contains(&found.len()) {
            return Err(format!("{} bytes, and it had {lengths:?} since its last fsync", found.len()));
        }
        match known.iter().position(|known| !known) {
            None => Ok(()),
            Some(at) => Err(format!(
                "WRONG BYTE at {at} of {}: {:#04x} was there in none of {} versions since its last fsync",
                found.len(),
                found[at],
                self.changes.len() + 1
            )),
        }
    }
}

/// Change bytes; returns which of them are others now, or nothing.
fn apply(change: Change, bytes: &mut Vec<u8>) -> std::ops::Range<usize> {
    let before = bytes.len();
    match change {
        Change::Write { seed, offset, length } => {
            let range = offset as usize..offset as usize + length;
            bytes.resize(before.max(range.end), 0);
            data::fill(seed, offset, &mut bytes[range.clone()]);
            range
        }
        Change::Resize(length) => {
            bytes.resize(length as usize, 0);
            before.min(bytes.len())..before.max(bytes.len())
        }
    }
}

/// Where bytes begin to differ from those that are wanted, as a sentence.
pub fn difference(found: &[u8], wanted: &[u8]) -> Option<String> {
    if found == wanted {
        return None;
    }
    if found.len() != wanted.len() {
        return Some(format!("{} bytes instead of {}", found.len(), wanted.len()));
    }
    let wrong: Vec<usize> = (0..found.len()).filter(|at| found[*at] != wanted[*at]).collect();
    let first = wrong[0];
    Some(format!(
        "{} WRONG BYTES from {first} on, of {}: {:#04x}, not {:#04x}",
        wrong.len(),
        found.len(),
        found[first],
        wanted[first]
    ))
}

fn bytes_of<'a>(found: &'a Found, path: &str) -> &'a [u8] {
    found[path].as_deref().expect("a file was found there")
}

fn found_below(root: &Path) -> Result<Found, String> {
    let mut found = Found::new();
    gather(root, "", &mut found).map_err(|error| format!("{}: {error}", root.display()))?;
    Ok(found)
}

fn gather(root: &Path, folder: &str, found: &mut Found) -> io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let name = entry.file_name().into_string().expect("writers make plain names");
        let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
        if entry.file_type()?.is_dir() {
            gather(root, &path, found)?;
            found.insert(path, None);
        } else {
            found.insert(path, Some(fs::read(entry.path())?));
        }
    }
    Ok(())
}

#[test]
fn after_a_kill_only_what_an_fsync_acknowledged_is_sure() {
    let folder = avidfs_tests::scratch::scratch();
    let path = folder.path().join("a");
    let mut known = Known::new();
    let id = known.create("a");
    known.change(id, Change::Write { seed: 1, offset: 0, length: 100 });
    known.kept(id);
    known.change(id, Change::Write { seed: 2, offset: 50, length: 100 });
    known.change(id, Change::Resize(120));
    let kept = data::bytes(1, 0, 100);
    let later = data::bytes(2, 50, 100);
    let now = [&kept[..50], &later[..70]].concat();
    let half = [&kept[..80], &later[30..100]].concat();
    let may_be = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let mut copy =
            Known { contents: known.contents.clone(), states: known.states.clone(), ..Known::new() };
        copy.adopt(folder.path())
    };
    assert!(may_be(&kept).is_ok() && may_be(&now).is_ok() && may_be(&half).is_ok());
    assert!(may_be(&kept[..99]).unwrap_err().contains("99 bytes"));
    let mut wrong = now.clone();
    wrong[60] ^= 1;
    assert!(may_be(&wrong).unwrap_err().contains("WRONG BYTE at 60"));
    wrong = now.clone();
    wrong[10] = 0;
    assert!(may_be(&wrong).unwrap_err().contains("WRONG BYTE at 10"));
    fs::write(&path, &now).unwrap();
    assert_eq!(known.check(folder.path()), Ok(120));
    fs::write(&path, &wrong).unwrap();
    assert!(known.check(folder.path()).unwrap_err().contains("1 WRONG BYTES from 10"));
    // A name that was there before the last fsync and not since.
    known.rename("a", "b");
    fs::rename(&path, folder.path().join("b")).unwrap();
    fs::write(folder.path().join("b"), &now).unwrap();
    known.kept(id);
    known.adopt(folder.path()).unwrap();
    fs::rename(folder.path().join("b"), &path).unwrap();
    assert!(known.adopt(folder.path()).unwrap_err().contains("instead of"));
}
