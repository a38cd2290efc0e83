//! Snapshots of the volume: take one, name them, give one up, and bring back from one what has changed or gone since.
//!
//! A snapshot is a place in the journal and the objects that were referred to there; taking one copies nothing. Its
//! metadata is read from the pool when it is asked for, into a store of its own that is kept as long as it fits.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Volume;
use crate::blocking;
use crate::error::{Error, Result};
use crate::inode::{Ino, Inode, ROOT, Time};
use crate::journal::pin::Pin;
use crate::journal::{self, Journal};
use crate::metadata::{AttributeChange, MetadataStore, NewInode, Snapshot};

/// Longest name of a snapshot, in bytes.
pub const MAX_SNAPSHOT_NAME: usize = 64;
/// Extents given to a file at once.
const EXTENTS: usize = 1024;
/// Entries of a directory read at once.
const ENTRIES: usize = 1024;

/// Makes an empty metadata store in a file, or opens the one that is there.
pub type OpenStore = fn(&Path) -> Result<Arc<dyn MetadataStore>>;

/// Where the metadata of snapshots is read into.
#[derive(Clone, Debug)]
pub struct Views {
    /// A folder; made when it is needed.
    pub folder: PathBuf,
    /// How.
    pub open: OpenStore,
}

/// A snapshot as `avidfs snapshot list` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotReport {
    /// Its name.
    pub name: String,
    /// When it was taken, in seconds since 1970.
    pub created: i64,
    /// The entry of the journal that holds its state; none while it is being taken.
    pub entry: Option<u64>,
    /// Bytes in objects that only snapshots need, this one among them.
    pub kept_bytes: u64,
    /// Bytes that come free when it is given up.
    pub alone_bytes: u64,
}

/// A state that a file was in, as `avidfs versions` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VersionReport {
    /// The snapshots that have it so, oldest first.
    pub snapshots: Vec<String>,
    /// Whether it is so now.
    pub current: bool,
    /// Its inode number.
    pub ino: u64,
    /// Its type and permissions.
    pub mode: u32,
    /// Its size, in bytes.
    pub size: u64,
    /// Last change of its content, in seconds since 1970.
    pub modified: i64,
    /// Nanoseconds of that.
    pub modified_ns: u32,
}

/// What was brought back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RestoreReport {
    /// Files and the like.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Bytes of the files.
    pub bytes: u64,
}

/// Whether a snapshot may have a name: it is also a folder's, and typed by people.
///
/// # Errors
/// `Invalid`.
pub fn check_snapshot_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-:+@".contains(c);
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins_well && name.len() <= MAX_SNAPSHOT_NAME && name.chars().all(good) {
        return Ok(());
    }
    Err(Error::Invalid(
        "a snapshot's name has 1 to 64 of A-Z a-z 0-9 . _ - : + @ and begins with a letter or digit",
    ))
}

impl Volume {
    /// Keep the state the volume has now, with every byte written before. It is in the pool when this returns.
    ///
    /// # Errors
    /// `Exists`, `Invalid` for the name; as `fsync`. Nothing is kept then.
    pub async fn take_snapshot(self: &Arc<Self>, name: &str) -> Result<SnapshotReport> {
        self.writable()?;
        check_snapshot_name(name)?;
        let number = self.metadata.begin_snapshot(name, Time::now())?;
        if let Err(error) = self.pin_snapshot(number).await {
            self.metadata.delete_snapshot(number)?;
            return Err(error);
        }
        self.snapshot_report(self.snapshot(name)?)
    }

    async fn pin_snapshot(self: &Arc<Self>, number: u32) -> Result<()> {
        self.store_dirty().await?;
        self.journal_of_writer()?.pin(number).await
    }

    /// All snapshots, oldest first.
    ///
    /// # Errors
    /// The store's.
    pub fn list_snapshots(&self) -> Result<Vec<SnapshotReport>> {
        self.metadata.snapshots()?.into_iter().map(|snapshot| self.snapshot_report(snapshot)).collect()
    }

    /// Give a snapshot up, and with it the bytes it alone kept.
    ///
    /// # Errors
    /// `NotFound`; as `fsync`.
    pub async fn delete_snapshot(&self, name: &str) -> Result<()> {
        self.writable()?;
        let snapshot = self.snapshot(name)?;
        self.journal_of_writer()?.unpin(snapshot.number).await?;
        let _one_at_a_time = self.viewing.lock().await;
        remove_view(&self.view_of(&snapshot));
        self.work.notify_one();
        Ok(())
    }

    /// Give up what a crash left half taken.
    pub(super) fn forget_half_taken(&self) -> Result<()> {
        for snapshot in self.metadata.snapshots()? {
            if snapshot.pin.is_empty() {
                tracing::warn!(name = snapshot.name, "this snapshot was never finished");
                self.metadata.delete_snapshot(snapshot.number)?;
            }
        }
        Ok(())
    }

    /// The states a path was in, oldest first; the same state in snapshots that follow each other counts once.
    ///
    /// # Errors
    /// As reading the journal. A path that is in none is an empty list.
    pub async fn versions(&self, path: &[u8]) -> Result<Vec<VersionReport>> {
        let _one_at_a_time = self.viewing.lock().await;
        let mut versions: Vec<VersionReport> = Vec::new();
        for snapshot in self.metadata.snapshots()? {
            let Some(pin) = Pin::of(&snapshot)? else { continue };
            let view = self.view(&snapshot, &pin).await?;
            if let Some(inode) = found(&*view, path)? {
                add_version(&mut versions, &inode, Some(snapshot.name));
            }
        }
        let commits = self.commits.count();
        if let Some(inode) = found(&*self.metadata, path)? {
            add_version(&mut versions, &self.overlay(inode, commits)?, None);
        }
        Ok(versions)
    }

    /// Make what a path led to in a snapshot anew, under a name in a directory of today. No bytes are copied: the new
    /// files refer to the old objects. What the name stands for must be made visible by the caller, who also removes
    /// it after an error.
    ///
    /// # Errors
    /// `NotFound` for the snapshot or the path in it, `Exists` for the name; as reading the journal, and as `fsync`.
    pub async fn restore(
        &self,
        snapshot: &str,
        path: &[u8],
        directory: Ino,
        name: &[u8],
    ) -> Result<RestoreReport> {
        self.writable()?;
        let _one_at_a_time = self.viewing.lock().await;
        let snapshot = self.snapshot(snapshot)?;
        let pin = Pin::of(&snapshot)?.ok_or(Error::NotFound)?;
        let view = self.view(&snapshot, &pin).await?;
        let source = found(&*view, path)?.ok_or(Error::NotFound)?;
        let (metadata, name) = (self.metadata.clone(), name.to_vec());
        let _whole_or_not_at_all = self.hide(directory, &name);
        let (report, carried) = blocking::run(move || {
            let mut copy = Copy {
                view: &*view,
                metadata: &*metadata,
                known: HashMap::new(),
                carried: Vec::new(),
                report: RestoreReport::default(),
            };
            copy.tree(source, directory, name)?;
            Ok((copy.report, copy.carried))
        })
        .await?;
        self.adopt_intents(&carried)?;
        self.journal_of_writer()?.sync().await?;
        Ok(report)
    }

    /// Nobody finds a name until this is dropped: what lists a directory that is being made would keep that it is as short.
    fn hide(&self, directory: Ino, name: &[u8]) -> impl Drop + use<'_> {
        *self.hidden.lock() = Some(Hidden { directory, name: name.to_vec() });
        Shown(&self.hidden)
    }

    pub(super) fn journal_of_writer(&self) -> Result<&Arc<Journal>> {
        self.journal.as_ref().ok_or(Error::ReadOnly)
    }

    pub(super) fn snapshot(&self, name: &str) -> Result<Snapshot> {
        let found = self.metadata.snapshots()?.into_iter().find(|snapshot| snapshot.name == name);
        found.ok_or(Error::NotFound)
    }

    fn snapshot_report(&self, snapshot: Snapshot) -> Result<SnapshotReport> {
        let usage = self.metadata.snapshot_usage(snapshot.number)?;
        let entry = Pin::of(&snapshot)?.and_then(|pin| pin.head()).map(|place| place.sequence);
        Ok(SnapshotReport {
            name: snapshot.name,
            created: snapshot.created.seconds,
            entry,
            kept_bytes: usage.kept_bytes,
            alone_bytes: usage.alone_bytes,
        })
    }

    fn view_of(&self, snapshot: &Snapshot) -> PathBuf {
        self.options.views.folder.join(format!("{}.sqlite", snapshot.number))
    }

    /// The metadata of a snapshot. Whoever asks holds `viewing`, for a store is opened once at a time.
    pub(super) async fn view(&self, snapshot: &Snapshot, pin: &Pin) -> Result<Arc<dyn MetadataStore>> {
        let (path, open) = (self.view_of(snapshot), self.options.views.open);
        let folder = self.options.views.folder.clone();
        std::fs::create_dir_all(&folder)
            .map_err(|error| Error::Host(format!("{}: {error}", folder.display())))?;
        if path.exists()
            && let Ok(view) = open(&path)
            && journal::is_at(&*view, pin)
        {
            return Ok(view);
        }
        remove_view(&path);
        let reader = self.reader();
        let chain = reader.read_pinned(pin, &self.options.public).await?;
        let view = open(&path)?;
        journal::restore(&view, &reader, &chain, &|_, _| ()).await?;
        Ok(view)
    }
}

/// A name that nobody finds.
pub(super) struct Hidden {
    directory: Ino,
    name: Vec<u8>,
}

impl Hidden {
    pub(super) fn is(&self, directory: Ino, name: &[u8]) -> bool {
        self.directory == directory && self.name == name
    }
}

struct Shown<'v>(&'v Mutex<Option<Hidden>>);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

fn remove_view(path: &Path) {
    for suffix in ["", "-redo", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let _ = std::fs::remove_file(name);
    }
}

/// What a path from the root leads to; symbolic links are not followed.
fn found(store: &dyn MetadataStore, path: &[u8]) -> Result<Option<Inode>> {
    let mut inode = store.inode(ROOT)?;
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        inode = match store.lookup(inode.ino, name) {
            Err(Error::NotFound | Error::NotDirectory) => return Ok(None),
            found => found?,
        };
    }
    Ok(Some(inode))
}

fn add_version(versions: &mut Vec<VersionReport>, inode: &Inode, snapshot: Option<String>) {
    let (current, snapshots) = (snapshot.is_none(), snapshot.into_iter().collect());
    let (modified, modified_ns) = (inode.mtime.seconds, inode.mtime.nanos);
    let (ino, mode, size) = (inode.ino.0, inode.mode, inode.size);
    let version = VersionReport { snapshots, current, ino, mode, size, modified, modified_ns };
    let state = |version: &VersionReport| (version.ino, version.size, version.modified, version.modified_ns);
    match versions.last_mut().filter(|last| state(last) == state(&version)) {
        Some(last) => {
            last.snapshots.extend(version.snapshots);
            last.current |= version.current;
        }
        None => versions.push(version),
    }
}

/// Makes what is in a snapshot anew in the volume.
struct Copy<'s> {
    view: &'s dyn MetadataStore,
    metadata: &'s dyn MetadataStore,
    /// What became of inodes with more than one name.
    known: HashMap<Ino, Ino>,
    /// New files of which intents carry something.
    carried: Vec<Ino>,
    report: RestoreReport,
}

impl Copy<'_> {
    fn tree(&mut self, source: Inode, directory: Ino, name: Vec<u8>) -> Result<()> {
        let mut waiting = vec![(source, directory, name)];
        // Times of directories are set last: what is made in them changes them.
        let mut directories = Vec::new();
        while let Some((source, parent, name)) = waiting.pop() {
            let Some(ino) = self.one(&source, parent, &name)? else { continue };
            if !source.is_directory() {
                continue;
            }
            let mut after = 0;
            loop {
                let entries = self.view.list(source.ino, after, ENTRIES)?;
                let Some(last) = entries.last() else { break };
                after = last.cookie;
                waiting.extend(entries.into_iter().map(|entry| (entry.inode, ino, entry.name)));
            }
            directories.push((source, ino));
        }
        directories.iter().rev().try_for_each(|(source, ino)| self.set_times(source, *ino))
    }

    /// Make one inode; none if it is a further name of one that is made already.
    fn one(&mut self, source: &Inode, parent: Ino, name: &[u8]) -> Result<Option<Ino>> {
        if let Some(known) = self.known.get(&source.ino) {
            self.metadata.link(*known, parent, name, source.ctime)?;
            return Ok(None);
        }
        let xattrs = self.view.xattrs(source.ino)?.into_iter().map(|name| {
            let value = self.view.xattr(source.ino, &name)?;
            Ok((name, value))
        });
        let is_link = source.mode & libc::S_IFMT == libc::S_IFLNK;
        let new = NewInode {
            mode: source.mode,
            uid: source.uid,
            gid: source.gid,
            rdev: source.rdev,
            target: is_link.then(|| self.view.target(source.ino)).transpose()?,
            xattrs: xattrs.collect::<Result<_>>()?,
        };
        let ino = self.metadata.create(parent, name, &new, source.ctime)?.ino;
        if source.is_directory() {
            self.report.directories += 1;
            return Ok(Some(ino));
        }
        self.report.files += 1;
        if source.links > 1 {
            self.known.insert(source.ino, ino);
        }
        if source.is_file() {
            self.report.bytes += source.size;
            self.bytes(source, ino)?;
        }
        self.set_times(source, ino)?;
        Ok(Some(ino))
    }

    fn bytes(&mut self, source: &Inode, ino: Ino) -> Result<()> {
        let mut from = 0;
        loop {
            let page = self.view.objects_of(source.ino, from, EXTENTS)?;
            let extents: Vec<_> = page.into_iter().map(|(extent, _)| extent).collect();
            let Some(last) = extents.last() else { break };
            from = last.range().end;
            self.metadata.revive(ino, &extents, from)?;
        }
        self.metadata.revive(ino, &[], source.size)?;
        // An fsync between what was sealed for the snapshot and the snapshot itself.
        let intents = self.view.intents(source.ino)?;
        if !intents.is_empty() {
            self.metadata.put_intents(ino, &intents, None)?;
            self.carried.push(ino);
        }
        Ok(())
    }

    fn set_times(&self, source: &Inode, ino: Ino) -> Result<()> {
        let (atime, mtime) = (Some(source.atime), Some(source.mtime));
        let change = AttributeChange { atime, mtime, ctime: Some(Time::now()), ..AttributeChange::default() };
        self.metadata.set_attributes(ino, &change).map(drop)
    }
}
