//! A disk in memory that forgets what was not flushed, and fails where it is told to: for tests.
//!
//! It is as unkind as a page cache may be. Written pages reach it at any time and in any order, each as it was at some
//! moment since the last flush, and torn between sectors at worst. Names reach it in the order they were made in. A
//! flush that fails leaves pages that count as written and are not, as Linux does. A page that was spoiled cannot be read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug, Formatter};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::{Disk, DiskFile};

const PAGE: u64 = 4096;
const SECTOR: usize = 512;

type Page = Arc<[u8; PAGE as usize]>;

/// A number below the one given, by lot.
pub type Lot<'l> = dyn FnMut(u64) -> u64 + 'l;

/// What a disk is asked that may fail.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Act {
    /// A new file.
    Create,
    /// Bytes of a file.
    Write,
    /// An end of a file before the one it had.
    Cut,
    /// A flush of a file.
    Sync,
    /// Another name for a file.
    Rename,
    /// A file less.
    Remove,
    /// A flush of a folder's names.
    SyncFolder,
}

type Watch = Arc<dyn Fn(Act) -> io::Result<()> + Send + Sync>;

/// See the module. It outlives the stores on it, as a disk does.
#[derive(Default)]
pub struct ModelledDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<u64, Content>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    changes: Vec<Change>,
    /// Who was plugged in under another number has no disk any more.
    plug: u64,
    watch: Option<Watch>,
}

#[derive(Clone)]
enum Change {
    Put(PathBuf, u64),
    /// Atomic, as with every file system that has a journal.
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl Change {
    fn path(&self) -> &Path {
        match self {
            Change::Put(path, _) | Change::Rename(path, _) | Change::Remove(path) => path,
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Change::Put(path, file) => names.insert(path.clone(), *file),
            Change::Rename(from, to) => names.remove(from).and_then(|file| names.insert(to.clone(), file)),
            Change::Remove(path) => names.remove(path),
        };
    }
}

/// A page that is not there is a hole.
#[derive(Default)]
struct Content {
    pages: BTreeMap<u64, Page>,
    length: u64,
    durable: BTreeMap<u64, Page>,
    durable_length: u64,
    /// What each page was after each change since the last flush.
    dirty: BTreeMap<u64, Vec<Option<Page>>>,
    /// Pages that cannot be read.
    spoiled: BTreeSet<u64>,
}

impl ModelledDisk {
    /// The disk for one run of a store; it is gone after `crash` and `lose_power`.
    pub fn plugged(&self) -> Arc<dyn Disk> {
        Arc::new(Plugged { plug: self.state.lock().plug, state: self.state.clone() })
    }

    /// The process that uses it is no more; what it wrote is still in the page cache.
    pub fn crash(&self) {
        self.state.lock().plug += 1;
    }

    /// What was not flushed is kept, dropped or torn, as `lot` has it.
    pub fn lose_power(&self, lot: &mut Lot<'_>) {
        let mut state = self.state.lock();
        state.plug += 1;
        for content in state.files.values_mut() {
            content.lose_power(lot);
        }
        let kept = lot(state.changes.len() as u64 + 1) as usize;
        let State { changes, durable_names, .. } = &mut *state;
        changes.drain(..).take(kept).for_each(|change| change.apply(durable_names));
        state.names = state.durable_names.clone();
        let State { files, names, .. } = &mut *state;
        files.retain(|file, _| names.values().any(|named| named == file));
    }

    /// From now on the page at this offset of a file cannot be read; `false` if there is no such file.
    pub fn spoil(&self, path: &Path, offset: u64) -> bool {
        let mut state = self.state.lock();
        let file = state.find(path).ok();
        let content = file.and_then(|file| state.files.get_mut(&file));
        content.map(|content| content.spoiled.insert(offset / PAGE)).is_some()
    }

    /// Called before each act; its error is the disk's, and nothing happens then.
    pub fn watch(&self, watch: impl Fn(Act) -> io::Result<()> + Send + Sync + 'static) {
        self.state.lock().watch = Some(Arc::new(watch));
    }
}

impl Debug for ModelledDisk {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "ModelledDisk({} files)", self.state.lock().names.len())
    }
}

/// What a store sees of it.
struct Plugged {
    state: Arc<Mutex<State>>,
    plug: u64,
}

impl Debug for Plugged {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Plugged({})", self.plug)
    }
}

impl Plugged {
    fn with<T>(&self, act: Option<Act>, then: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let watch = {
            let state = self.state.lock();
            if state.plug != self.plug {
                return Err(io::Error::other("the disk is gone (modelled)"));
            }
            state.watch.clone()
        };
        // Not under the lock: whoever watches may look at the disk.
        let allowed = act.zip(watch).map_or(Ok(()), |(act, watch)| watch(act));
        let mut state = self.state.lock();
        if state.plug != self.plug {
            return Err(io::Error::other("the disk is gone (modelled)"));
        }
        allowed.and_then(|()| then(&mut state))
    }

    fn file(&self, id: u64) -> Box<dyn DiskFile> {
        Box::new(ModelledFile { disk: Plugged { state: self.state.clone(), plug: self.plug }, id })
    }
}

impl State {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }

    fn find(&self, path: &Path) -> io::Result<u64> {
        self.names.get(path).copied().ok_or_else(|| ErrorKind::NotFound.into())
    }
}

impl Disk for Plugged {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.with(Some(Act::Create), |state| {
            if state.names.contains_key(path) {
                return Err(ErrorKind::AlreadyExists.into());
            }
            let id = state.files.last_key_value().map_or(1, |(last, _)| last + 1);
            state.files.insert(id, Content::default());
            state.change(Change::Put(path.to_owned(), id));
            Ok(self.file(id))
        })
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.with(None, |state| Ok(self.file(state.find(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.with(Some(Act::Rename), |state| {
            state.find(from)?;
            state.change(Change::Rename(from.to_owned(), to.to_owned()));
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.with(Some(Act::Remove), |state| {
            state.find(path)?;
            state.change(Change::Remove(path.to_owned()));
            Ok(())
        })
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.with(None, |state| {
            let inside = state.names.keys().filter(|path| path.parent() == Some(folder));
            Ok(inside.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
        })
    }

    /// Renames stay within their folder.
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.with(Some(Act::SyncFolder), |state| {
            let State { changes, durable_names, .. } = state;
            changes.retain(|change| {
                let inside = change.path().parent() == Some(folder);
                if inside {
                    change.apply(durable_names);
                }
                !inside
            });
            Ok(())
        })
    }
}

struct ModelledFile {
    disk: Plugged,
    id: u64,
}

impl ModelledFile {
    fn with<T>(&self, act: Option<Act>, then: impl FnOnce(&mut Content) -> T) -> io::Result<T> {
        let gone = || io::Error::other("the file is gone (modelled)");
        self.disk.with(act, |state| state.files.get_mut(&self.id).map(then).ok_or_else(gone))
    }
}

impl DiskFile for ModelledFile {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.with(None, |content| content.read(offset, buffer))?
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(Some(Act::Write), |content| content.write(offset, bytes))
    }

    fn sync(&self) -> io::Result<()> {
        let synced = self.with(Some(Act::Sync), Content::sync);
        if synced.is_err() {
            self.with(None, |content| content.dirty.clear())?;
        }
        synced
    }

    fn punch(&self, from: u64, to: u64) -> io::Result<()> {
        self.with(None, |content| content.punch(from..to))
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.with(Some(Act::Cut), |content| content.cut(length))
    }

    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        self.with(None, |content| {
            let data = content.pages.range(from / PAGE..).next().map(|(page, _)| (page * PAGE).max(from));
            data.filter(|data| *data < content.length)
        })
    }

    fn next_hole(&self, from: u64) -> io::Result<Option<u64>> {
        self.with(None, |content| {
            if from >= content.length {
                return None;
            }
            let hole = (from / PAGE..).find(|page| !content.pages.contains_key(page)).expect("pages end");
            Some((hole * PAGE).clamp(from, content.length))
        })
    }

    fn length(&self) -> io::Result<u64> {
        self.with(None, |content| content.length)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.with(None, |content| content.pages.len() as u64 * PAGE)
    }

    fn drop_cached(&self) {
        let _gone = self.with(None, |content| {
            let Content { pages, durable, dirty, .. } = content;
            pages.retain(|page, _| dirty.contains_key(page));
            let clean = durable.iter().filter(|(page, _)| !dirty.contains_key(page));
            pages.extend(clean.map(|(page, bytes)| (*page, bytes.clone())));
        });
    }
}

/// The pages a range touches, each with the range within it.
fn pieces(range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> {
    let pages = range.start / PAGE..range.end.div_ceil(PAGE);
    pages.map(move |page| {
        let within = |at: u64| at.saturating_sub(page * PAGE).min(PAGE) as usize;
        (page, within(range.start)..within(range.end))
    })
}

fn bytes_of(page: Option<&Page>) -> [u8; PAGE as usize] {
    page.map_or([0; PAGE as usize], |page| **page)
}

impl Content {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let range = offset..offset + buffer.len() as u64;
        if range.end > self.length {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if pieces(range.clone()).any(|(page, _)| self.spoiled.contains(&page)) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let mut rest = buffer;
        for (page, within) in pieces(range) {
            let (piece, behind) = rest.split_at_mut(within.len());
            match self.pages.get(&page) {
                Some(bytes) => piece.copy_from_slice(&bytes[within]),
                None => piece.fill(0),
            }
            rest = behind;
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for (page, within) in pieces(offset..offset + bytes.len() as u64) {
            let (piece, behind) = rest.split_at(within.len());
            let mut changed = bytes_of(self.pages.get(&page));
            changed[within].copy_from_slice(piece);
            self.set(page, Some(Arc::new(changed)));
            rest = behind;
        }
        self.length = self.length.max(offset + bytes.len() as u64);
    }

    fn punch(&mut self, range: Range<u64>) {
        for (page, within) in pieces(range) {
            let Some(before) = self.pages.get(&page) else { continue };
            let mut changed = **before;
            let whole = within.len() as u64 == PAGE;
            changed[within].fill(0);
            self.set(page, (!whole).then(|| Arc::new(changed)));
        }
    }

    /// The length is known to the disk at the next flush or before it, and pages may go sooner or later than that.
    fn cut(&mut self, length: u64) {
        self.punch(length..self.length.next_multiple_of(PAGE));
        self.length = length;
    }

    fn set(&mut self, page: u64, bytes: Option<Page>) {
        match &bytes {
            Some(bytes) => self.pages.insert(page, bytes.clone()),
            None => self.pages.remove(&page),
        };
        self.dirty.entry(page).or_default().push(bytes);
    }

    fn sync(&mut self) {
        for (page, versions) in std::mem::take(&mut self.dirty) {
            let last = versions.last().cloned().flatten();
            self.make_durable(page, last);
        }
        self.durable_length = self.length;
    }

    fn make_durable(&mut self, page: u64, bytes: Option<Page>) {
        match bytes {
            Some(bytes) => self.durable.insert(page, bytes),
            None => self.durable.remove(&page),
        };
    }

    fn lose_power(&mut self, lot: &mut Lot<'_>) {
        let mut end = self.durable_length;
        for (page, versions) in std::mem::take(&mut self.dirty) {
            let before = self.durable.get(&page).cloned();
            let versions: Vec<Option<Page>> = std::iter::once(before).chain(versions).collect();
            let newest = versions.len() - 1;
            let kept = match lot(3) {
                0 => 0,
                1 => newest,
                _ => lot(versions.len() as u64) as usize,
            };
            let bytes = match versions.get(kept + 1) {
                // A hole is made by the file system's own journal: whole or not at all.
                Some(Some(next)) if lot(4) == 0 => Some(torn(versions[kept].as_ref(), next, lot)),
                _ => versions[kept].clone(),
            };
            if bytes.is_some() {
                end = end.max((page + 1) * PAGE).min(self.length.max(self.durable_length));
            }
            self.make_durable(page, bytes);
        }
        self.durable_length = match lot(4) {
            0 => self.durable_length,
            1 => self.length,
            _ => end,
        };
        self.forget_behind_end();
        (self.pages, self.length) = (self.durable.clone(), self.durable_length);
    }

    /// Behind its end a file has nothing.
    fn forget_behind_end(&mut self) {
        let end = self.durable_length;
        self.durable.retain(|page, _| page * PAGE < end);
        if let Some((page, bytes)) = self.durable.last_key_value().map(|(page, bytes)| (*page, **bytes))
            && (page + 1) * PAGE > end
        {
            let mut bytes = bytes;
            bytes[(end - page * PAGE) as usize..].fill(0);
            self.durable.insert(page, Arc::new(bytes));
        }
    }
}

/// Some sectors of one, the others of the other.
fn torn(before: Option<&Page>, after: &Page, lot: &mut Lot<'_>) -> Page {
    let mut bytes = bytes_of(before);
    for (mine, new) in bytes.chunks_mut(SECTOR).zip(after.chunks(SECTOR)) {
        if lot(2) == 0 {
            mine.copy_from_slice(new);
        }
    }
    Arc::new(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept_after(write: impl Fn(&dyn Disk, &dyn DiskFile), seed: u64) -> Option<Vec<u8>> {
        let disk = ModelledDisk::default();
        let plugged = disk.plugged();
        let path = Path::new("/folder/file");
        write(&*plugged, &*plugged.create(path).unwrap());
        let mut state = seed;
        disk.lose_power(&mut |bound| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % bound
        });
        assert!(plugged.open(path).is_err(), "who was plugged in before has no disk");
        let file = disk.plugged().open(path).ok()?;
        let mut bytes = vec![0; file.length().unwrap() as usize];
        file.read(0, &mut bytes).unwrap();
        Some(bytes)
    }

    #[test]
    fn what_was_flushed_with_its_name_stays_and_all_else_may_go_or_tear() {
        let (old, new) = ([1u8; 10_000], [2u8; 10_000]);
        let mut seen = [0; 4];
        for seed in 0..200 {
            let kept = kept_after(
                |disk, file| {
                    file.write(0, &old).unwrap();
                    file.sync().unwrap();
                    disk.sync_folder(Path::new("/folder")).unwrap();
                    file.write(0, &new).unwrap();
                },
                seed,
            );
            let kept = kept.expect("its name was flushed");
            assert_eq!(kept.len(), old.len());
            let count = kept.iter().filter(|byte| **byte == 2).count();
            assert!(kept.iter().all(|byte| matches!(byte, 1 | 2)));
            seen[match count {
                0 => 0,
                10_000 => 1,
                count if count % 4096 == 0 => 2,
                _ => 3,
            }] += 1;
        }
        assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
        let unnamed = (0..20).filter(|seed| kept_after(|_, file| file.sync().unwrap(), *seed).is_none());
        assert!((1..20).contains(&unnamed.count()), "a name that was not flushed may be there");
    }

    #[test]
    fn a_flush_that_failed_is_not_made_good_by_the_next() {
        let disk = ModelledDisk::default();
        let file = disk.plugged().create(Path::new("/a")).unwrap();
        file.write(0, b"lost").unwrap();
        disk.watch(|act| if act == Act::Sync { Err(io::Error::other("broken")) } else { Ok(()) });
        assert!(file.sync().is_err());
        disk.watch(|_| Ok(()));
        file.sync().unwrap();
        let mut bytes = [0; 4];
        file.read(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"lost");
        file.drop_cached();
        file.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 4]);
    }

    #[test]
    fn holes_are_found_and_punched() {
        let disk = ModelledDisk::default();
        let file = disk.plugged().create(Path::new("/a")).unwrap();
        file.write(3 * PAGE, &[7; 2 * PAGE as usize]).unwrap();
        assert_eq!((file.next_data(5).unwrap(), file.next_hole(5).unwrap()), (Some(3 * PAGE), Some(5)));
        assert_eq!(file.next_hole(3 * PAGE).unwrap(), Some(5 * PAGE));
        assert_eq!(file.allocated().unwrap(), 2 * PAGE);
        file.punch(3 * PAGE, 4 * PAGE).unwrap();
        assert_eq!(file.next_data(0).unwrap(), Some(4 * PAGE));
        assert_eq!((file.allocated().unwrap(), file.next_data(5 * PAGE).unwrap()), (PAGE, None));
    }

    #[test]
    fn a_file_that_was_cut_has_zeros_where_it_grows_again() {
        let disk = ModelledDisk::default();
        let file = disk.plugged().create(Path::new("/a")).unwrap();
        file.write(0, &[7; 3 * PAGE as usize]).unwrap();
        file.cut(PAGE + 10).unwrap();
        assert_eq!((file.length().unwrap(), file.allocated().unwrap()), (PAGE + 10, 2 * PAGE));
        assert!(file.read(PAGE + 10, &mut [0]).is_err());
        file.write(2 * PAGE, &[7]).unwrap();
        let mut bytes = [7; 20];
        file.read(PAGE, &mut bytes).unwrap();
        assert_eq!(bytes, [[7; 10], [0; 10]].concat()[..]);
    }

    #[test]
    fn a_cut_that_was_not_flushed_is_there_or_not() {
        let lengths = (0..40).map(|seed| {
            let cut = |disk: &dyn Disk, file: &dyn DiskFile| {
                file.write(0, &[7; 9000]).unwrap();
                file.sync().unwrap();
                disk.sync_folder(Path::new("/folder")).unwrap();
                file.cut(3000).unwrap();
            };
            let kept = kept_after(cut, seed).expect("its name was flushed");
            assert!(kept.iter().take(3000).all(|byte| *byte == 7));
            kept.len()
        });
        let lengths: BTreeSet<_> = lengths.collect();
        assert_eq!(lengths, [3000, 9000].into());
    }
}
