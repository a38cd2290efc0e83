//! The data folder: whose it is, who uses it, and files in it that are replaced whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use common::hash::Hash;
use common::paths::folder_of;
use common::wire::NodeId;
use serde::{Deserialize, Serialize};

use super::disk::{self, Disk, LocalDisk, Room};
use super::record::Seal;
use crate::error::StoreError;

const FORMAT: u32 = 1;
const NODE: &str = "node.json";
const LOCK: &str = "lock";
const SEGMENTS: &str = "segments";

/// A data folder, locked while this lives.
pub struct Folder {
    path: PathBuf,
    /// Its identity.
    pub node: NodeId,
    /// What keys its records' checks.
    pub seal: Seal,
    lock: File,
    disk: Arc<dyn Disk>,
}

#[derive(Serialize, Deserialize)]
struct NodeFile {
    format: u32,
    node: NodeId,
    seal: Hash,
    created: u64,
}

impl Folder {
    /// Open the data folder at `path`, making it if it is absent or empty. What changes in it later is on `disk`.
    pub fn open(path: &Path, disk: Arc<dyn Disk>) -> Result<Folder, StoreError> {
        let refused = |why: String| StoreError::folder(path, why);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| refused(error.to_string()))?;
        let is_new = !path.join(NODE).exists();
        if is_new && !is_empty(path).map_err(|error| refused(error.to_string()))? {
            return Err(refused("it is neither empty nor a node's".into()));
        }
        // A file system without modes is no obstacle.
        if let Err(error) = disk::keep_others_out(path) {
            tracing::warn!(%error, folder = %path.display(), "others may enter it");
        }
        let lock = lock(path)?;
        if is_new && !path.join(NODE).exists() {
            create(path).map_err(|error| refused(error.to_string()))?;
        }
        let node = read_node(path)?;
        let segments = path.join(SEGMENTS);
        fs::create_dir_all(&segments).map_err(|error| refused(error.to_string()))?;
        Ok(Folder { path: path.to_owned(), node: node.node, seal: Seal(*node.seal.as_bytes()), lock, disk })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What its segments are on.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Where its segments are.
    pub fn segments(&self) -> PathBuf {
        self.path.join(SEGMENTS)
    }

    /// Make the names in it and of its segments durable.
    pub fn sync_names(&self) -> io::Result<()> {
        self.disk.sync_folder(&self.path)?;
        self.disk.sync_folder(&self.segments())
    }

    /// Space of its file system.
    pub fn room(&self) -> io::Result<Room> {
        disk::room(&self.lock)
    }

    /// Read a file of it; `None` if it is absent.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match self.disk.open(&self.path.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut bytes = vec![0; file.length()? as usize];
        file.read(0, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// Replace a file of it, durably, all or nothing.
    pub fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        replace(&*self.disk, &self.path, name, bytes)
    }
}

/// What a start that was interrupted leaves does not make a folder somebody's.
fn is_empty(path: &Path) -> io::Result<bool> {
    let ours = [LOCK, "node.json.tmp", "lost+found"];
    for entry in fs::read_dir(path)? {
        if !ours.iter().any(|name| entry.as_ref().is_ok_and(|entry| entry.file_name() == *name)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn lock(path: &Path) -> Result<File, StoreError> {
    // std opens with O_CLOEXEC, so no child keeps the lock alive.
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path.join(LOCK));
    let file = file.map_err(|error| StoreError::folder(path, format!("{LOCK}: {error}")))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StoreError::folder(path, "another shardd is using it")),
        Err(fs::TryLockError::Error(error)) => Err(StoreError::folder(path, format!("{LOCK}: {error}"))),
    }
}

fn create(path: &Path) -> io::Result<()> {
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    let node = NodeFile {
        format: FORMAT,
        node: NodeId(disk::random_bytes()),
        seal: Hash::from(disk::random_bytes::<32>()),
        created,
    };
    replace(&LocalDisk, path, NODE, &serde_json::to_vec(&node)?)?;
    LocalDisk.sync_folder(folder_of(path))
}

fn read_node(path: &Path) -> Result<NodeFile, StoreError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let refused = |error: &dyn std::fmt::Display| StoreError::folder(path, format!("{NODE}: {error}"));
    let bytes = fs::read(path.join(NODE)).map_err(|error| refused(&error))?;
    let Format { format } = serde_json::from_slice(&bytes).map_err(|error| refused(&error))?;
    if format != FORMAT {
        let why = format!("its format is {format}, this program reads format {FORMAT}");
        return Err(StoreError::folder(path, why));
    }
    serde_json::from_slice(&bytes).map_err(|error| refused(&error))
}

fn replace(disk: &dyn Disk, folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = folder.join(format!("{name}.tmp"));
    // One that a crash left is of no use to anybody.
    match disk.remove(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create(&new)?;
    file.write(0, bytes)?;
    file.sync()?;
    disk.rename(&new, &folder.join(name))?;
    disk.sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn open(path: &Path) -> Result<Folder, StoreError> {
        Folder::open(path, Arc::new(LocalDisk))
    }

    fn why(path: &Path) -> String {
        open(path).err().expect("refused").to_string()
    }

    #[test]
    fn identity_stays_with_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let node = open(&folder.path().join("new/node")).unwrap().node;
        assert_eq!(open(&folder.path().join("new/node")).unwrap().node, node);
        assert_ne!(open(&folder.path().join("other")).unwrap().node, node);
    }

    #[test]
    fn a_folder_in_use_is_refused_in_one_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let _first = open(folder.path()).unwrap();
        assert!(why(folder.path()).ends_with("another shardd is using it"));
    }

    #[test]
    fn a_folder_that_was_there_lets_nobody_in_but_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let mode = || folder.path().metadata().unwrap().permissions().mode() & 0o777;
        // An empty one, and one of a node.
        for _ in 0..2 {
            fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
            open(folder.path()).unwrap();
            assert_eq!(mode(), 0o700);
        }
    }

    #[test]
    fn somebody_elses_folder_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mode = || folder.path().metadata().unwrap().permissions().mode();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let before = mode();
        fs::write(folder.path().join("thesis.tex"), "text").unwrap();
        assert!(why(folder.path()).ends_with("it is neither empty nor a node's"));
        assert_eq!((fs::read_dir(folder.path()).unwrap().count(), mode()), (1, before));
    }

    #[test]
    fn another_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(NODE), r#"{"format":2,"new":"field"}"#).unwrap();
        assert!(why(folder.path()).ends_with("its format is 2, this program reads format 1"));
        fs::write(folder.path().join(NODE), "{").unwrap();
        assert!(why(folder.path()).contains("node.json"));
    }

    #[test]
    fn a_start_interrupted_while_the_folder_was_made_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("lock"), "").unwrap();
        fs::write(folder.path().join("node.json.tmp"), "{\"form").unwrap();
        assert!(open(folder.path()).is_ok());
    }
}
