//! The state folder of a mount: whose it is, who uses it now, and where everything in it lies.
//! What stands inside the metadata, cache and backlog others know.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use common::wire::{MountId, NodeId, VolumeId};
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::evidence;
use crate::host::{self, MountEntry, reason};
use crate::journal::key::VolumeKey;
use crate::roster;
use crate::transport::NodeAddress;
use crate::volume::BACKLOG_NOTE;

/// Why something was not done, in one sentence for the person who asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal(error.to_string())
    }
}

/// The format of this folder; another one is refused.
const FORMAT: u32 = 1;
/// Name of the metadata store.
const METADATA: &str = "metadata.sqlite";
/// Name of the volume's key.
const KEY: &str = "volume.key";
/// Name of a key that lay there when another volume was made.
const OLD_KEY: &str = "volume.key.old";
/// A log of more bytes than this is put aside when the next mount begins.
const MAX_LOG: u64 = 16 << 20;
/// What may lie in a folder in which no volume was finished, or whose pool.json was lost.
const OWN_NAMES: [&str; 18] = [
    "lock",
    "mount.id",
    KEY,
    OLD_KEY,
    "avidfs.log",
    "avidfs.log.old",
    "nodes",
    "pool.new",
    "metadata.sqlite",
    "metadata.sqlite-redo",
    "metadata.sqlite-wal",
    "metadata.sqlite-shm",
    "cache",
    "backlog",
    BACKLOG_NOTE,
    "views",
    "snapshots",
    evidence::FILE,
];

/// What a mount must know before it can reach its pool: pool.json.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Remembered {
    /// `FORMAT` of the folder.
    pub format: u32,
    /// The volume whose state this is.
    pub volume: VolumeId,
    /// Its name.
    pub name: String,
    /// Where its nodes answered last.
    pub nodes: Vec<RememberedNode>,
    /// Where those were whose address another one has now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<RememberedNode>,
}

/// A node and where it answered last.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RememberedNode {
    /// Who.
    pub node: NodeId,
    /// Where.
    pub address: String,
}

impl Remembered {
    /// What is remembered of a volume, each of whose nodes has an address.
    pub fn new(
        volume: VolumeId,
        name: &str,
        nodes: impl IntoIterator<Item = (NodeId, NodeAddress)>,
    ) -> Remembered {
        let (nodes, gone) = (remembered_nodes(nodes), Vec::new());
        Remembered { format: FORMAT, volume, name: name.to_owned(), nodes, gone }
    }

    /// The same with those that have none any more, and the one they had.
    pub fn with_gone(self, gone: impl IntoIterator<Item = (NodeId, NodeAddress)>) -> Remembered {
        Remembered { gone: remembered_nodes(gone), ..self }
    }

    /// Nodes and addresses.
    pub fn known(&self) -> Vec<(NodeAddress, NodeId)> {
        at_addresses(&self.nodes)
    }

    /// Nodes that are gone, and the addresses they had, which others have now.
    pub fn gone(&self) -> Vec<(NodeAddress, NodeId)> {
        at_addresses(&self.gone)
    }
}

fn remembered_nodes(nodes: impl IntoIterator<Item = (NodeId, NodeAddress)>) -> Vec<RememberedNode> {
    nodes.into_iter().map(|(node, address)| RememberedNode { node, address: address.0 }).collect()
}

fn at_addresses(nodes: &[RememberedNode]) -> Vec<(NodeAddress, NodeId)> {
    nodes.iter().map(|known| (NodeAddress(known.address.clone()), known.node)).collect()
}

/// Look at a folder without changing anything: what it remembers, `None` if it is new or empty.
///
/// # Errors
/// It holds something else, or is of another format.
pub fn look(path: &Path) -> Result<Option<Remembered>, Refusal> {
    let shown = path.display();
    let pool = host::read_if_there(&path.join("pool.json"))
        .map_err(|error| Refusal(format!("the state folder {shown} cannot be used: {}", reason(&error))))?;
    if let Some(text) = pool {
        return remembered(&text, path).map(Some);
    }
    match foreign_name(path) {
        Ok(None) => Ok(None),
        Ok(Some(name)) => Err(Refusal(format!(
            "the state folder {shown} holds {name} and no avidfs volume: give an empty or a new folder"
        ))),
        Err(error) => Err(Refusal(format!("the state folder {shown} cannot be used: {}", reason(&error)))),
    }
}

fn remembered(text: &str, path: &Path) -> Result<Remembered, Refusal> {
    #[derive(Deserialize)]
    struct Versioned {
        format: u32,
    }
    let damaged =
        |error: serde_json::Error| Refusal(format!("{}: {error}", path.join("pool.json").display()));
    let versioned: Versioned = serde_json::from_str(text).map_err(damaged)?;
    if versioned.format != FORMAT {
        return Err(Refusal(format!(
            "the state folder {} is of format {}, this avidfs knows format {FORMAT}",
            path.display(),
            versioned.format
        )));
    }
    serde_json::from_str(text).map_err(damaged)
}

fn foreign_name(path: &Path) -> io::Result<Option<String>> {
    let names = names_in(path)?.unwrap_or_default();
    let mut foreign = names.iter().filter(|name| !OWN_NAMES.iter().any(|own| name == own));
    Ok(foreign.next().map(|name| name.to_string_lossy().into_owned()))
}

/// None if there is no such folder.
fn names_in(path: &Path) -> io::Result<Option<Vec<OsString>>> {
    match std::fs::read_dir(path) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>().map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the volume's key lies in a folder.
pub fn has_key(path: &Path) -> bool {
    path.join(KEY).exists()
}

/// The state folder of a mounted snapshot, below that of its volume.
pub fn snapshot_folder(state: &Path, name: &str) -> PathBuf {
    state.join("snapshots").join(name)
}

/// Where the nodes lie that run inside the mount daemon of a state folder.
pub fn nodes_in(state: &Path) -> PathBuf {
    state.join("nodes")
}

/// Whether metadata of a volume may lie in a folder, even if pool.json was lost.
pub fn has_metadata(path: &Path) -> bool {
    path.join(METADATA).exists()
}

/// A state folder that only this process uses.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    /// The lock ends with the process; it is closed on exec, so that no child keeps it.
    _lock: File,
    /// What lay in it before, and what it allowed; none if there was no folder.
    before: Option<(Vec<OsString>, Permissions)>,
}

impl StateFolder {
    /// Make the folder if there is none, and keep everyone else out of it.
    ///
    /// # Errors
    /// Another mount uses it; or it cannot be written.
    pub fn take(path: &Path) -> Result<StateFolder, Refusal> {
        let refused = |error: io::Error| {
            Refusal(format!("the state folder {} cannot be used: {}", path.display(), reason(&error)))
        };
        let found = names_in(path).map_err(refused)?;
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(refused)?;
        let allowed = path.metadata().map_err(refused)?.permissions();
        // Other things may lie in a folder that was named by mistake.
        if look(path).is_ok() {
            host::keep_others_out(path).map_err(refused)?;
        }
        let mut open = OpenOptions::new();
        open.read(true).write(true).create(true).truncate(false).mode(0o600);
        let lock = open.open(path.join("lock")).map_err(refused)?;
        match lock.try_lock() {
            Ok(()) => {
                // For people and scripts that look for the daemon; nothing here reads it.
                let _ = lock.set_len(0).and_then(|()| writeln!(&lock, "{}", std::process::id()));
                let before = found.map(|found| (found, allowed));
                Ok(StateFolder { path: path.to_owned(), _lock: lock, before })
            }
            Err(TryLockError::WouldBlock) => Err(Refusal(in_use(path))),
            Err(TryLockError::Error(error)) => Err(refused(error)),
        }
    }

    /// Undo `take`, where nothing was made in the folder that is worth keeping. What lay there before stays.
    pub fn give_back(self) {
        let found = self.before.iter().flat_map(|(found, _)| found);
        let is_new = |name: &str| !found.clone().any(|found| found == name);
        if is_new("nodes") {
            let _ = std::fs::remove_dir_all(self.nodes());
        }
        let metadata = ["", "-redo", "-wal", "-shm"].map(|suffix| format!("{METADATA}{suffix}"));
        let others = ["lock", "pool.json", KEY, "mount.id", "avidfs.log"].map(str::to_owned);
        for name in metadata.iter().chain(&others).filter(|name| is_new(name)) {
            let _ = std::fs::remove_file(self.path.join(name));
        }
        let _ = match self.before {
            Some((_, allowed)) => std::fs::set_permissions(&self.path, allowed),
            None => std::fs::remove_dir(&self.path),
        };
    }

    /// Remember this from now on.
    pub fn remember(&self, remembered: &Remembered) -> Result<(), Refusal> {
        let text = serde_json::to_string_pretty(remembered).expect("ids and strings are JSON");
        let path = self.path.join("pool.json");
        host::write_durably(&path, text.as_bytes())
            .map_err(|error| Refusal(format!("{}: {}", path.display(), reason(&error))))
    }

    /// What nodes know the mounts of this folder by: of bytes drawn once, and of where it lies, so that a copy of the
    /// folder is known by another.
    pub fn mount_id(&self) -> Result<MountId, Refusal> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.drawn_id()?.0);
        hasher.update(host::name().as_bytes());
        hasher.update(self.path.as_os_str().as_encoded_bytes());
        Ok(MountId(*hasher.finalize().as_bytes().first_chunk().expect("a hash is longer")))
    }

    fn drawn_id(&self) -> Result<MountId, Refusal> {
        let path = self.path.join("mount.id");
        let refused = |error: &io::Error| Refusal(format!("{}: {}", path.display(), reason(error)));
        let known = host::read_if_there(&path).map_err(|error| refused(&error))?;
        if let Some(id) = known.and_then(|text| text.trim().parse().ok()) {
            return Ok(id);
        }
        let mut bytes = [0; 16];
        OsRng.try_fill_bytes(&mut bytes).expect("the kernel gives random bytes");
        let id = MountId(bytes);
        host::write_durably(&path, format!("{id}\n").as_bytes()).map_err(|error| refused(&error))?;
        Ok(id)
    }

    /// The volume's key.
    ///
    /// # Errors
    /// It is not there, or is none.
    pub fn key(&self) -> Result<VolumeKey, Refusal> {
        key_in(&self.path)
    }

    /// Keep the volume's key here, for nobody else to read. One that lies here already is put aside: it may be the only one.
    ///
    /// # Errors
    /// One was put aside before; or it cannot be written.
    pub fn keep_key(&self, key: &VolumeKey) -> Result<(), Refusal> {
        let path = self.path.join(KEY);
        let write = || {
            let old = self.path.join(OLD_KEY);
            match (path.exists(), old.exists()) {
                (true, true) => return Err(io::Error::other(format!("{OLD_KEY} is there already"))),
                (true, false) => std::fs::rename(&path, old)?,
                (false, _) => {}
            }
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(&path)?;
            file.write_all(key.to_text().as_bytes())?;
            file.sync_all()?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|error: io::Error| Refusal(format!("{}: {}", path.display(), reason(&error))))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where metadata of snapshots is read into.
    pub fn views(&self) -> PathBuf {
        self.path.join("views")
    }

    /// The metadata store.
    pub fn metadata(&self) -> PathBuf {
        self.path.join(METADATA)
    }

    /// The disk level of the cache.
    pub fn cache(&self) -> PathBuf {
        self.path.join("cache")
    }

    /// The folders of embedded nodes.
    pub fn nodes(&self) -> PathBuf {
        nodes_in(&self.path)
    }

    /// The log of a mount in the background, opened to be continued; an overlong one is put aside first.
    pub fn open_log(&self) -> io::Result<File> {
        let path = self.path.join("avidfs.log");
        if path.metadata().is_ok_and(|log| log.len() > MAX_LOG) {
            std::fs::rename(&path, self.path.join("avidfs.log.old"))?;
        }
        OpenOptions::new().create(true).append(true).mode(0o600).open(path)
    }
}

/// The key of the volume whose state lies in a folder.
///
/// # Errors
/// It is not there, or is none.
pub fn key_in(path: &Path) -> Result<VolumeKey, Refusal> {
    let path = path.join(KEY);
    let text = std::fs::read_to_string(&path)
        .map_err(|error| Refusal(format!("the volume's key {}: {}", path.display(), reason(&error))))?;
    VolumeKey::from_text(&text).map_err(|error| Refusal(format!("{}: {error}", path.display())))
}

fn in_use(path: &Path) -> String {
    let mount = host::mounts()
        .ok()
        .and_then(|mounts| mounts.into_iter().find(|mount| mount.is_ours() && is_state_of(path, mount)));
    match mount {
        Some(mount) => format!(
            "the state folder {} is in use by the mount at {}",
            path.display(),
            mount.mountpoint.display()
        ),
        None => format!("the state folder {} is in use by another avidfs", path.display()),
    }
}

fn is_state_of(path: &Path, mount: &MountEntry) -> bool {
    matches!(roster::find(mount), Ok(Some(note)) if note.state == path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn some_volume() -> Remembered {
        let address = NodeAddress("http://127.0.0.1:7001".into());
        Remembered::new(VolumeId([7; 16]), "home", [(NodeId([1; 16]), address)])
    }

    #[test]
    fn a_folder_remembers_its_volume_and_nodes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        assert_eq!(look(&path), Ok(None));
        assert!(!path.exists(), "looking makes nothing");
        let state = StateFolder::take(&path).unwrap();
        assert_eq!(look(&path), Ok(None));
        state.remember(&some_volume()).unwrap();
        assert_eq!(look(&path), Ok(Some(some_volume())));
        let gone = (NodeId([2; 16]), NodeAddress("http://127.0.0.1:7001".into()));
        let with_gone = some_volume().with_gone([gone.clone()]);
        state.remember(&with_gone).unwrap();
        assert_eq!(look(&path), Ok(Some(with_gone.clone())));
        assert_eq!(with_gone.gone(), [(gone.1, gone.0)]);
    }

    #[test]
    fn a_folder_with_something_else_in_it_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("thesis.tex"), "x").unwrap();
        let refusal = look(folder.path()).unwrap_err();
        assert!(refusal.0.contains("thesis.tex"), "{refusal}");
        let file = folder.path().join("thesis.tex");
        assert!(look(&file).unwrap_err().0.contains("not a directory"));
    }

    #[test]
    fn a_folder_of_another_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("pool.json"), r#"{"format":2,"nodes":"elsewhere"}"#).unwrap();
        assert!(look(folder.path()).unwrap_err().0.ends_with("is of format 2, this avidfs knows format 1"));
        std::fs::write(folder.path().join("pool.json"), "{").unwrap();
        assert!(look(folder.path()).is_err());
    }

    #[test]
    fn a_folder_is_used_by_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateFolder::take(folder.path()).unwrap();
        let refusal = StateFolder::take(folder.path()).unwrap_err();
        assert!(refusal.0.contains("is in use by another avidfs"), "{refusal}");
        drop(first);
        StateFolder::take(folder.path()).unwrap();
    }

    #[test]
    fn a_folder_given_back_is_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let state = StateFolder::take(&path).unwrap();
        state.remember(&some_volume()).unwrap();
        std::fs::create_dir_all(state.nodes().join("0")).unwrap();
        state.give_back();
        assert!(!path.exists());
        let mode = || folder.path().metadata().unwrap().permissions().mode() & 0o777;
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let state = StateFolder::take(folder.path()).unwrap();
        assert_eq!(mode(), 0o700, "only its owner may enter it");
        state.give_back();
        assert_eq!(mode(), 0o755);
        // Not even that, where other things lie in it.
        std::fs::write(folder.path().join("thesis.tex"), "x").unwrap();
        StateFolder::take(folder.path()).unwrap();
        assert_eq!(mode(), 0o755);
    }

    #[test]
    fn what_lay_in_a_folder_before_is_not_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let key = VolumeKey::random();
        StateFolder::take(folder.path()).unwrap().keep_key(&key).unwrap();
        std::fs::create_dir_all(folder.path().join("nodes/0")).unwrap();
        let state = StateFolder::take(folder.path()).unwrap();
        state.remember(&some_volume()).unwrap();
        state.give_back();
        assert_eq!(key_in(folder.path()).unwrap().to_text(), key.to_text());
        assert!(folder.path().join("nodes/0").exists() && !folder.path().join("pool.json").exists());
    }

    #[test]
    fn a_key_is_put_aside_for_another_and_never_lost() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::take(folder.path()).unwrap();
        let [first, second] = [VolumeKey::random(), VolumeKey::random()];
        state.keep_key(&first).unwrap();
        state.keep_key(&second).unwrap();
        let read = |name| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!((read(KEY), read(OLD_KEY)), (second.to_text(), first.to_text()));
        assert!(state.keep_key(&VolumeKey::random()).is_err());
        assert_eq!((read(KEY), read(OLD_KEY)), (second.to_text(), first.to_text()));
        assert_eq!(look(folder.path()), Ok(None));
    }

    #[test]
    fn an_overlong_log_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::take(folder.path()).unwrap();
        state.open_log().unwrap().set_len(MAX_LOG + 1).unwrap();
        assert_eq!(state.open_log().unwrap().metadata().unwrap().len(), 0);
        assert!(folder.path().join("avidfs.log.old").exists());
    }
}
