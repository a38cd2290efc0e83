//! Sealed bytes that no pool would take, kept on the mount host's disk over a restart. One file per object, named
//! after it; docs/backlog.md draws it. The next mount stores them before it serves anything.

mod place;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use common::wire::ObjectId;

use super::Volume;
use super::data::within;
use crate::blocking;
use crate::error::{Error, Result};
use crate::inode::{Ino, Time};
use crate::metadata::{Commit, Extent, FileCommit};
use crate::open_file::{OpenFile, Seal};

pub use place::{Backlog, NOTE};

const MAGIC: &[u8; 8] = b"AVIDBKL2";
/// Without intents.
const MAGIC_1: &[u8; 8] = b"AVIDBKL1";
const HEAD_1: usize = 40;
const HEAD: usize = 48;
const EXTENT: usize = 16;
const HASH: usize = 32;

/// What could not be brought to the nodes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Unsaved {
    /// Bytes that wait in the backlog.
    pub bytes: u64,
    /// In how many files.
    pub files: usize,
    /// Changes that are on this host alone, because no pool would take the journal.
    pub changes: u64,
    /// Bytes that did not even get there, and why.
    pub lost: Option<(u64, String)>,
    /// Why the nodes did not take them.
    pub reason: String,
}

impl std::fmt::Display for Unsaved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of {} files", self.bytes, self.files)?;
        if self.changes > 0 {
            write!(f, " and {} changes of names and attributes", self.changes)?;
        }
        write!(f, " wait in the backlog ({})", self.reason)?;
        match &self.lost {
            Some((bytes, why)) => write!(f, "; {bytes} bytes could not be kept: {why}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Unsaved {}

/// One sealed object and where it belongs.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Item {
    ino: Ino,
    id: ObjectId,
    bytes: Bytes,
    length: u32,
    extents: Vec<Extent>,
    mtime: Option<Time>,
    intents: u64,
}

/// For what ends in time by itself, and can say which node said what.
const TO_SAY_WHY: Duration = Duration::from_millis(500);

impl Volume {
    /// Bring everything to the nodes; the rest to the backlog.
    pub(super) async fn save_everything(self: &Arc<Self>) -> std::result::Result<(), Unsaved> {
        if self.options.read_only {
            // What intents carry is dirty, and stays where it is.
            return Ok(());
        }
        // A write that was let in just before changes were refused may lay its bytes after the first round.
        while !self.unclean_files().is_empty() {
            if let Err(error) = within(self.options.io_limit + TO_SAY_WHY, self.store_dirty()).await {
                return self.keep_backlog(error.to_string()).await;
            }
        }
        match self.settle().await {
            Ok(()) => Ok(()),
            // Everything is stored; what leads to it waits in the store on this host.
            Err(error) => self.keep_backlog(error.to_string()).await,
        }
    }

    /// Bring everything written until now to the nodes.
    pub(super) async fn store_dirty(self: &Arc<Self>) -> Result<()> {
        let files = self.unclean_files();
        let saves = files.iter().map(|file| self.save(file, false));
        futures_util::future::join_all(saves).await.into_iter().collect()
    }

    fn unclean_files(&self) -> Vec<Arc<OpenFile>> {
        let mut files = self.open_files();
        files.retain(|file| !file.state().is_clean());
        files
    }

    async fn keep_backlog(&self, reason: String) -> std::result::Result<(), Unsaved> {
        let items: Vec<Item> = self.open_files().iter().flat_map(|file| unsaved_items(file)).collect();
        let backlog = self.options.backlog.clone();
        let limit = self.options.backlog_bytes;
        let kept = blocking::run(move || Ok(keep(&backlog, limit, &items))).await;
        let mut unsaved = kept.unwrap_or_default();
        unsaved.reason = reason;
        unsaved.changes = match &self.journal {
            Some(journal) => journal.status().map_or(0, |status| status.waiting_changes),
            None => 0,
        };
        let metadata = self.metadata.clone();
        if let Err(error) = blocking::run(move || metadata.sync()).await {
            tracing::error!(%error, "changes are not on stable storage of this host");
        }
        Err(unsaved)
    }

    /// Store what the last run left behind.
    pub(super) async fn store_backlog(self: &Arc<Self>) -> Result<()> {
        let folder = self.options.backlog.folder.clone();
        if folder.exists()
            && let Err(error) = keep_others_out(&folder)
        {
            tracing::warn!(%error, folder = %folder.display(), "others may enter it");
        }
        for path in backlog_files(&folder)? {
            let item = read_item(&path)?;
            let (id, is_deleted) = (item.id, matches!(self.metadata.inode(item.ino), Err(Error::NotFound)));
            let padded = crate::stripe::pad(self.settings.code, &item.bytes);
            let record = self.stripe.store(id, padded, item.length, true).await?;
            let size = item.extents.iter().map(|extent| extent.range().end).max().unwrap_or(0);
            let Item { ino, length, extents, mtime, intents, .. } = item;
            let file = FileCommit { ino, extents, size, mtime, intents };
            // Of a deleted file too: what of the object has reached nodes before is deleted with it.
            self.metadata.commit(&Commit { objects: vec![record], files: vec![file] })?;
            self.sync().await?;
            remove(&folder, &path).map_err(|error| host("remove", &path, &error))?;
            match is_deleted {
                false => tracing::info!(object = %id, bytes = length, "stored from the backlog"),
                true => {
                    tracing::warn!(object = %id, ino = ino.0, bytes = length, "the backlog had bytes of a deleted file");
                }
            }
        }
        self.options.backlog.clear()
    }

    /// Bytes in the backlog now.
    pub(super) fn backlog_bytes(&self) -> u64 {
        let files = backlog_files(&self.options.backlog.folder).unwrap_or_default();
        files.iter().filter_map(|path| fs::metadata(path).ok()).map(|file| file.len()).sum()
    }
}

fn unsaved_items(file: &OpenFile) -> Vec<Item> {
    let state = file.state();
    let item = |seal: &Seal| Item {
        ino: file.ino,
        id: seal.id,
        bytes: seal.padded.slice(..seal.length as usize),
        length: seal.length,
        extents: seal.extents.clone(),
        mtime: seal.mtime,
        intents: seal.intents,
    };
    state.seals.iter().map(item).collect()
}

fn keep(backlog: &Backlog, limit: u64, items: &[Item]) -> Unsaved {
    let mut unsaved = Unsaved::default();
    // Without the note the bytes are still better there than nowhere.
    if !items.is_empty()
        && let Err(error) = backlog.note()
    {
        tracing::error!(%error, folder = %backlog.folder.display(), "the next mount does not know of the backlog");
    }
    let mut files = std::collections::HashSet::new();
    for item in items {
        let length = u64::from(item.length);
        let written = if unsaved.bytes + length > limit {
            Err(Error::NoSpace(format!("the backlog holds {limit} bytes at most")))
        } else {
            write_item(&backlog.folder, item)
        };
        match written {
            Ok(()) => {
                unsaved.bytes += length;
                files.insert(item.ino);
            }
            Err(error) => {
                let lost = unsaved.lost.get_or_insert((0, error.to_string()));
                lost.0 += length;
            }
        }
    }
    unsaved.files = files.len();
    unsaved
}

fn write_item(folder: &Path, item: &Item) -> Result<()> {
    make(folder).map_err(|error| host("create", folder, &error))?;
    let path = folder.join(item.id.to_string());
    let unfinished = folder.join(format!("{}.new", item.id));
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&unfinished)?;
        file.write_all(&encode(item))?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|error| host("write", &path, &error))
}

fn make(folder: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    keep_others_out(folder)
}

/// Unless other things lie in it, which others may need.
fn keep_others_out(folder: &Path) -> std::io::Result<()> {
    let is_item = |path: PathBuf| {
        let id = path.file_stem().and_then(|id| id.to_str()?.parse::<ObjectId>().ok());
        id.is_some() && path.extension().is_none_or(|unfinished| unfinished == "new")
    };
    match folder.read_dir()?.all(|entry| entry.is_ok_and(|entry| is_item(entry.path()))) {
        true => crate::host::keep_others_out(folder),
        false => Ok(()),
    }
}

/// Gone for good: one that came back after a power loss would lay old bytes over newer ones.
fn remove(folder: &Path, path: &Path) -> std::io::Result<()> {
    fs::remove_file(path)?;
    File::open(folder)?.sync_all()
}

/// The files of the backlog in the order of sealing; one that was not finished is not among them.
fn backlog_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(host("list", folder, &error)),
    };
    let mut paths: Vec<_> = entries
        .filter_map(|entry| entry.ok())
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_none())
        .collect();
    // Names are object ids in hex of fixed width: sorted, they are in the order of sealing.
    paths.sort();
    Ok(paths)
}

fn encode(item: &Item) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEAD + item.extents.len() * EXTENT + item.bytes.len() + HASH);
    bytes.put_slice(MAGIC);
    bytes.put_u64_le(item.ino.0);
    bytes.put_u32_le(item.length);
    bytes.put_u32_le(item.extents.len() as u32);
    let mtime = item.mtime.unwrap_or_default();
    bytes.put_i64_le(mtime.seconds);
    bytes.put_u32_le(mtime.nanos);
    bytes.put_u32_le(u32::from(item.mtime.is_some()));
    bytes.put_u64_le(item.intents);
    for extent in &item.extents {
        bytes.put_u64_le(extent.offset);
        bytes.put_u32_le(extent.length);
        bytes.put_u32_le(extent.object_offset);
    }
    bytes.put_slice(&item.bytes);
    let hash = blake3::hash(&bytes);
    bytes.put_slice(hash.as_bytes());
    bytes.freeze()
}

fn read_item(path: &Path) -> Result<Item> {
    let bytes = fs::read(path).map_err(|error| host("read", path, &error))?;
    let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    id.and_then(|id| decode(id, bytes.into())).ok_or_else(|| {
        Error::Host(format!("{} is damaged; move it away to mount without it", path.display()))
    })
}

fn decode(id: ObjectId, whole: Bytes) -> Option<Item> {
    let body = whole.len().checked_sub(HASH)?;
    let hash: [u8; HASH] = whole[body..].try_into().ok()?;
    let head = match whole.first_chunk()? {
        MAGIC => HEAD,
        MAGIC_1 => HEAD_1,
        _ => return None,
    };
    if body < head || blake3::hash(&whole[..body]) != blake3::Hash::from(hash) {
        return None;
    }
    let mut bytes = whole.slice(8..body);
    let ino = Ino(bytes.get_u64_le());
    let length = bytes.get_u32_le();
    let count = bytes.get_u32_le() as usize;
    let mtime = Time { seconds: bytes.get_i64_le(), nanos: bytes.get_u32_le() };
    let mtime = (bytes.get_u32_le() != 0).then_some(mtime);
    let intents = if head == HEAD { bytes.get_u64_le() } else { 0 };
    if bytes.len() != count.checked_mul(EXTENT)? + length as usize || length == 0 {
        return None;
    }
    let extents: Vec<Extent> = (0..count)
        .map(|_| Extent {
            offset: bytes.get_u64_le(),
            length: bytes.get_u32_le(),
            object: id,
            object_offset: bytes.get_u32_le(),
        })
        .collect();
    if !extents.iter().all(|extent| lies_within(extent, length)) {
        return None;
    }
    Some(Item { ino, id, bytes, length, extents, mtime, intents })
}

/// Whether a file can have such an extent, and an object of so many bytes has what it refers to.
fn lies_within(extent: &Extent, object_length: u32) -> bool {
    let fits_file = extent.offset.checked_add(extent.length.into()).is_some();
    let end = extent.object_offset.checked_add(extent.length);
    extent.length > 0 && fits_file && end.is_some_and(|end| end <= object_length)
}

fn host(verb: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::Host(format!("{verb} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use avidfs_tests::fuzz::fuzz;

    use super::*;

    pub(super) fn item() -> Item {
        let id = ObjectId { epoch: 3, counter: 9 };
        let extents = vec![Extent { offset: 1 << 40, length: 5, object: id, object_offset: 2 }];
        Item {
            ino: Ino(7),
            id,
            bytes: Bytes::from_static(b"0123456789"),
            length: 10,
            extents,
            mtime: Some(Time { seconds: -1, nanos: 5 }),
            intents: 7,
        }
    }

    #[test]
    fn an_item_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        write_item(folder.path(), &item()).unwrap();
        let paths = backlog_files(folder.path()).unwrap();
        assert_eq!(paths.len(), 1);
        assert_eq!(read_item(&paths[0]).unwrap(), item());
    }

    #[test]
    fn a_folder_that_was_there_is_for_its_owner_alone_unless_other_things_lie_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let mode = || folder.path().metadata().unwrap().permissions().mode() & 0o777;
        let open = || fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // Empty, and with an item.
        for _ in 0..2 {
            open();
            write_item(folder.path(), &item()).unwrap();
            assert_eq!(mode(), 0o700);
        }
        open();
        fs::write(folder.path().join("thesis.tex"), "x").unwrap();
        write_item(folder.path(), &item()).unwrap();
        assert_eq!(mode(), 0o755);
    }

    #[test]
    fn an_item_damaged_anywhere_is_refused() {
        let good = encode(&item());
        for at in 0..good.len() {
            let mut bad = good.to_vec();
            bad[at] ^= 1;
            assert!(decode(item().id, bad.into()).is_none(), "byte {at}");
            assert!(decode(item().id, good.slice(..at)).is_none(), "cut at {at}");
        }
    }

    /// Whoever can write the folder can hash as well; an extent beyond every file's end overflowed at the next mount.
    #[test]
    fn an_item_whose_extents_lie_in_no_file_or_not_in_its_object_is_refused() {
        let with = |offset, length, object_offset| {
            let extents = vec![Extent { offset, length, object: item().id, object_offset }];
            decode(item().id, encode(&Item { extents, ..item() }))
        };
        assert!(with(0, 10, 0).is_some() && with(1 << 40, 1, 9).is_some());
        for (offset, length, object_offset) in
            [(u64::MAX - 4, 5, 0), (0, 5, 6), (0, 11, 0), (0, 0, 0), (0, 1, u32::MAX)]
        {
            assert!(with(offset, length, object_offset).is_none(), "{offset} {length} {object_offset}");
        }
    }

    #[test]
    fn what_does_not_fit_is_counted_as_lost() {
        let folder = tempfile::tempdir().unwrap();
        let unsaved = keep(&Backlog::own(folder.path().to_owned()), 15, &[item(), item()]);
        assert_eq!((unsaved.bytes, unsaved.files), (10, 1));
        assert_eq!(unsaved.lost.unwrap().0, 10);
    }

    /// With the hash that goes with it, which is no secret.
    fn hashed(body: &[u8]) -> Bytes {
        [body, blake3::hash(body).as_bytes()].concat().into()
    }

    #[test]
    fn whatever_the_bytes_an_item_is_refused_or_comes_back_and_lies_in_its_object() {
        let whole = encode(&item());
        let body = &whole[..whole.len() - HASH];
        let older = [MAGIC_1, &body[8..HEAD_1], &body[HEAD..]].concat();
        let parse = |body: &[u8]| decode(item().id, hashed(body));
        fuzz(
            "backlog",
            &[body.to_vec(), older],
            |length| 4 * length + 1024,
            parse,
            |item, _| {
                assert_eq!(decode(item.id, encode(&item)), Some(item.clone()));
                assert_eq!(item.bytes.len(), item.length as usize);
                for extent in &item.extents {
                    assert!(extent.range().end > extent.offset, "{extent:?}");
                    assert!(u64::from(extent.object_offset) + u64::from(extent.length) <= item.length.into());
                }
            },
        );
    }
}
