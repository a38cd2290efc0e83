//! What one node keeps: fragments it has verified, in a log on disk, found through an index in memory.
//!
//! Synchronous and independent of HTTP; docs/node-store.md draws the disk and states the rules.

mod ahead;
mod compaction;
mod disk;
mod flush;
mod folder;
mod index;
mod lengths;
mod log;
mod modelled;
mod moves;
mod ranges;
mod record;
mod segment;
mod slice;
mod start;
#[cfg(test)]
mod tests;
mod upkeep;
mod volumes;
mod walk;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use common::fpcc::Fpcc;
use common::hash::{Hash, HashId};
use common::slice::{GROUP_LENGTH, Tree};
use common::wire::{
    BootId, FragmentName, JOURNAL_PREFIX, LeaseRequest, Listing, MAX_KEY, MAX_PAGE, NodeId, ObjectStatus,
    Signature, VolumeDescriptor, VolumeId, VolumeList,
};
use ed25519_dalek::SigningKey;
use parking_lot::Mutex;

use crate::buffers::Buffers;
use crate::dispersal::Dispersed;
use crate::error::StoreError;
use crate::metrics::StoreCounts;
use flush::Flushing;
use folder::Folder;
use index::{Index, PAGE_BYTES, Shape};
use log::{Log, Reserved};
use moves::Moves;
use record::{Head, Lengths, Position};
use segment::{BLOCK, Segment};
use upkeep::Upkeep;
use volumes::Volumes;

pub use disk::{Disk, DiskFile, LocalDisk, keep_files_private, raise_file_limit, settle_allocator};
pub use lengths::LIST_BYTES;
pub use modelled::{Act, ModelledDisk};
pub use record::Space;

/// Idle buffers kept for the next large fragment.
const IDLE_BUFFER_BYTES: usize = 32 << 20;

/// How to open a store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Its data folder; made if absent.
    pub data: PathBuf,
    /// Bytes it may fill; everything its file system has if `None`.
    pub capacity: Option<u64>,
    /// What may fail together with it.
    pub zone: Option<String>,
    /// What its segments are on.
    pub disk: Arc<dyn Disk>,
    /// Whether a thread seals and compacts segments unasked; without one `Store::tend` does.
    pub has_upkeep: bool,
}

impl StoreOptions {
    /// The data folder alone, everything else by default.
    pub fn new(data: impl Into<PathBuf>) -> StoreOptions {
        StoreOptions {
            data: data.into(),
            capacity: None,
            zone: None,
            disk: Arc::new(LocalDisk),
            has_upkeep: true,
        }
    }
}

/// One node's fragments. Open it with [`Store::open`], end it with [`Store::close`].
pub struct Store {
    folder: Folder,
    zone: Option<String>,
    capacity: u64,
    reserve: u64,
    log: Log,
    index: Mutex<Index>,
    /// Lengths of the live records and of those being written.
    used: AtomicU64,
    volumes: Volumes,
    /// Segments with dead records whose space has not been given back.
    buried_in: Mutex<BTreeSet<u32>>,
    moves: Moves,
    boot: Mutex<BootId>,
    flushing: Flushing,
    upkeep: Arc<Upkeep>,
    buffers: Arc<Buffers>,
    /// What happened inside, for metrics.
    pub(crate) counts: StoreCounts,
}

/// Who asks for a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Author {
    /// A client of the object store.
    Client,
    /// The trusted writer of a volume.
    Writer {
        /// The volume.
        volume: VolumeId,
        /// The epoch it writes under.
        epoch: u32,
    },
}

impl Author {
    /// The space it writes in.
    pub fn space(&self) -> Space {
        match self {
            Author::Client => Space::ObjectStore,
            Author::Writer { volume, .. } => Space::Volume(*volume),
        }
    }
}

/// How much of the space a record may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// What data may.
    Data,
    /// Half of the reserve as well: what it says leads to deletions.
    Reserve,
}

/// A fragment as it is kept, not verified again: who reads it does.
#[derive(Clone, Debug)]
pub struct StoredFragment {
    /// The FPCC's length, the FPCC and the fragment, as the wire has them in a fragment body.
    pub body: Bytes,
    fpcc_length: usize,
}

impl StoredFragment {
    /// Its encoded FPCC.
    pub fn fpcc(&self) -> Bytes {
        self.body.slice(4..4 + self.fpcc_length)
    }

    /// Its bytes.
    pub fn fragment(&self) -> Bytes {
        self.body.slice(4 + self.fpcc_length..)
    }
}

/// How full a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Bytes it may fill.
    pub capacity_bytes: u64,
    /// Bytes it has filled.
    pub used_bytes: u64,
    /// Bytes that data may still take.
    pub available_bytes: u64,
    /// Fragments it holds.
    pub fragments: u64,
}

impl Store {
    /// The identity of its data folder.
    pub fn node(&self) -> NodeId {
        self.folder.node
    }

    /// This run of it; another one after a flush failed.
    pub fn boot(&self) -> BootId {
        *self.boot.lock()
    }

    /// What may fail together with it.
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// How full it is.
    pub fn usage(&self) -> Usage {
        let used = self.used.load(Ordering::SeqCst);
        Usage {
            capacity_bytes: self.capacity,
            used_bytes: used,
            available_bytes: self.available(used),
            fragments: self.index.lock().fragments(),
        }
    }

    /// Buffers for what is on its way in or out.
    pub fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// Verify a fragment and keep it.
    ///
    /// When it returns, the fragment is found by every reader and survives the end of the process; it survives a power
    /// loss after the next flush. The same again changes nothing. After an error nothing was kept.
    pub fn put(
        &self,
        author: &Author,
        name: &FragmentName,
        fpcc: &[u8],
        fragment: &[u8],
    ) -> Result<(), StoreError> {
        // A volume's journal: so that what empties a full pool can be written down.
        let is_journal = author.space() != Space::ObjectStore && name.key.starts_with(JOURNAL_PREFIX);
        self.put_within(if is_journal { Claim::Reserve } else { Claim::Data }, author, name, fpcc, fragment)
    }

    /// The same within this much of the space.
    pub fn put_within(
        &self,
        claim: Claim,
        author: &Author,
        name: &FragmentName,
        fpcc: &[u8],
        fragment: &[u8],
    ) -> Result<(), StoreError> {
        check_name(name)?;
        let inconsistent = |why: &dyn std::fmt::Display| {
            StoreError::Inconsistent(format!("{}: {why}", Named(author.space(), name)))
        };
        let parsed = Fpcc::parse(fpcc).map_err(|error| inconsistent(&error))?;
        let tree = parsed.check_with_tree(name.index.into(), fragment);
        let tree = tree.map_err(|error| inconsistent(&error))?.map_or_else(Vec::new, |tree| tree.to_bytes());
        let shape = shape(&parsed, fpcc.len());
        let record = Record { name, shape: &shape, fpcc, fragment, tree: &tree };
        self.admitted(author, |space| self.keep(space, &record, claim))
    }

    /// Keep a fragment of the object store that was checked already, under this key.
    pub fn put_dispersed(
        &self,
        claim: Claim,
        key: &str,
        version: u64,
        dispersed: &Dispersed,
    ) -> Result<(), StoreError> {
        let fragment = dispersed.fragment();
        let name = FragmentName { key: key.to_owned(), version, index: fragment.index() as u8 };
        check_name(&name)?;
        let fpcc = dispersed.fpcc().to_bytes();
        let tree = dispersed.tree().map_or_else(Vec::new, Tree::to_bytes);
        let shape = shape(dispersed.fpcc(), fpcc.len());
        let record =
            Record { name: &name, shape: &shape, fpcc: &fpcc, fragment: fragment.bytes(), tree: &tree };
        self.keep(Space::ObjectStore, &record, claim)
    }

    /// What the node signs with: derived from the secret of its folder, so it is there as long as the node is itself.
    pub fn signing_key(&self) -> SigningKey {
        SigningKey::from_bytes(&blake3::derive_key("avidfs 2026 shardd signing key", &self.folder.seal.0))
    }

    /// Read a fragment.
    pub fn get(&self, space: Space, name: &FragmentName) -> Result<StoredFragment, StoreError> {
        self.check_space(space)?;
        // A deletion or a move between finding and reading is seen by asking the index again; thrice is bad luck.
        for _ in 0..3 {
            let (segment, position, lengths) = self.locate(space, name)?;
            let mut bytes = self.buffers.take_at(position.offset as usize, lengths.content());
            let read = segment.read(position.offset, &mut bytes);
            if self.index.lock().position(space, name) != Some(position) {
                continue;
            }
            read.map_err(StoreError::io(format!("read {}", Named(space, name))))?;
            if self.head_of(space, name, position, &bytes).is_none() {
                self.drop_damaged(space, name, position);
                continue;
            }
            let prefix = lengths.head() - lengths.fpcc - 4;
            bytes[prefix..prefix + 4].copy_from_slice(&(lengths.fpcc as u32).to_le_bytes());
            return Ok(StoredFragment {
                body: bytes.into_bytes().slice(prefix..),
                fpcc_length: lengths.fpcc,
            });
        }
        Err(not_found(space, name))
    }

    /// Read a fragment and check it: the digest of the FPCC that it fits. One that fits none is not kept any more.
    pub fn audit(&self, space: Space, name: &FragmentName) -> Result<Hash, StoreError> {
        let (_, position, _) = self.locate(space, name)?;
        let kept = self.get(space, name)?;
        let fpcc = Fpcc::parse(&kept.fpcc()).ok();
        match fpcc.filter(|fpcc| fpcc.check_bytes(name.index.into(), &kept.fragment()).is_ok()) {
            Some(fpcc) => Ok(fpcc.digest()),
            None => {
                self.drop_damaged(space, name, position);
                Err(not_found(space, name))
            }
        }
    }

    /// Bytes of the fragment body that `get` would return.
    pub fn body_length(&self, space: Space, name: &FragmentName) -> Option<usize> {
        let index = self.index.lock();
        let holding = index.find(space, &name.key, name.version)?;
        holding.position(name.index)?;
        let lengths = holding.lengths(name.key.len());
        Some(4 + lengths.fpcc + lengths.fragment)
    }

    /// The digest of the FPCC under which a fragment is kept.
    pub fn has(&self, space: Space, name: &FragmentName) -> Result<Hash, StoreError> {
        self.check_space(space)?;
        let index = self.index.lock();
        let holding = index.find(space, &name.key, name.version);
        let holding = holding.filter(|holding| holding.position(name.index).is_some());
        holding.map(|holding| holding.shape().fpcc).ok_or_else(|| not_found(space, name))
    }

    /// Delete fragment `index` of a version, or all of them; how many there were. What they fill goes back to the disk
    /// with the next `give_back`, once for many.
    ///
    /// It needs no space on disk. A power loss before the next flush may bring them back, whole.
    pub fn delete(
        &self,
        author: &Author,
        key: &str,
        version: u64,
        index: Option<u8>,
    ) -> Result<u64, StoreError> {
        self.admitted(author, |space| {
            let kept = self.index.lock().find(space, key, version).map(|holding| holding.indexes());
            let wanted = kept.into_iter().flatten().filter(|kept| index.is_none_or(|index| index == *kept));
            let mut deleted = 0;
            for index in wanted {
                let name = FragmentName { key: key.to_owned(), version, index };
                deleted += u64::from(self.delete_one(space, &name)?);
            }
            Ok(deleted)
        })
    }

    /// Let the disk have what was deleted until now.
    pub fn give_back(&self) {
        let segments = std::mem::take(&mut *self.buried_in.lock());
        segments.into_iter().filter_map(|number| self.log.segment(number)).for_each(|s| s.give_back());
    }

    /// What is kept of one version.
    pub fn status(&self, space: Space, key: &str, version: u64) -> Result<ObjectStatus, StoreError> {
        self.check_space(space)?;
        let status = self.index.lock().status(space, key, version);
        status.ok_or_else(|| StoreError::NotFound(format!("version {version} of {key:?}")))
    }

    /// What is kept of the highest version of `key`.
    pub fn latest(&self, space: Space, key: &str) -> Result<ObjectStatus, StoreError> {
        self.check_space(space)?;
        self.index.lock().latest(space, key).ok_or_else(|| StoreError::NotFound(format!("{key:?}")))
    }

    /// The objects of up to `keys` keys (at most `MAX_PAGE`, and one page) after `after`, in order.
    pub fn list(&self, space: Space, after: &str, keys: usize) -> Result<Listing, StoreError> {
        self.check_space(space)?;
        let (objects, next) = self.index.lock().list(space, after, keys.min(MAX_PAGE), PAGE_BYTES);
        Ok(Listing { objects, next })
    }

    /// Remember a volume, durably. The same again changes nothing; another shape or a name taken is a conflict.
    pub fn register(&self, descriptor: VolumeDescriptor) -> Result<(), StoreError> {
        self.volumes.register(&self.folder, descriptor)
    }

    /// Grant a mount an epoch of a volume and a lease on it; renew the lease; give it back.
    pub fn lease(&self, volume: VolumeId, request: &LeaseRequest) -> Result<(), StoreError> {
        let volume = self.volumes.find(volume)?;
        self.volumes.lease(&self.folder, &volume, request)
    }

    /// Whether who shows this may change a volume under an epoch.
    pub fn authorize(
        &self,
        volume: VolumeId,
        epoch: u32,
        shown: Option<Signature>,
    ) -> Result<(), StoreError> {
        self.volumes.find(volume)?.authorize(epoch, self.node(), shown)
    }

    /// Every volume it was told of.
    pub fn volumes(&self) -> VolumeList {
        self.volumes.list()
    }

    /// Refuse a volume it was never told of.
    pub fn check_space(&self, space: Space) -> Result<(), StoreError> {
        match space {
            Space::ObjectStore => Ok(()),
            Space::Volume(volume) => self.volumes.find(volume).map(|_| ()),
        }
    }

    /// Carry out a change, unless its epoch is over.
    fn admitted<T>(
        &self,
        author: &Author,
        change: impl FnOnce(Space) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let Author::Writer { volume, epoch } = *author else { return change(Space::ObjectStore) };
        let volume = self.volumes.find(volume)?;
        let _turn = self.volumes.admit(&self.folder, &volume, epoch)?;
        change(author.space())
    }

    fn keep(&self, space: Space, record: &Record<'_>, claim: Claim) -> Result<(), StoreError> {
        let Record { name, shape, fragment, .. } = *record;
        let conflict = |other: Hash| {
            StoreError::Conflict(format!("{} is kept under another FPCC, {other}", Named(space, name)))
        };
        if self.has_good_copy(space, name, shape, fragment) {
            return Ok(());
        }
        self.index.lock().arriving(space, name, shape.fpcc).map_err(conflict)?;
        let kept = self.append(space, record, claim);
        let mut index = self.index.lock();
        index.arrived(space, name);
        let reserved = kept?;
        let replaced = self.point_to(&mut index, space, name, shape, &reserved);
        drop(index);
        if let Some((segment, offset, length)) = replaced {
            self.bury(&segment, offset, length)?;
            self.give_back();
        }
        self.counts.stored.add(1);
        Ok(())
    }

    /// Whether the very bytes are on disk already, and readable.
    fn has_good_copy(&self, space: Space, name: &FragmentName, shape: &Shape, fragment: &[u8]) -> bool {
        let is_same = |holding: &index::Holding| {
            holding.position(name.index).is_some() && holding.shape().fpcc == shape.fpcc
        };
        let is_kept = self.index.lock().find(space, &name.key, name.version).is_some_and(is_same);
        is_kept && self.get(space, name).is_ok_and(|kept| kept.fragment() == fragment)
    }

    /// Write a record, within the space it may take.
    fn append(&self, space: Space, record: &Record<'_>, claim: Claim) -> Result<Reserved, StoreError> {
        let Record { name, shape, fpcc, fragment, tree } = *record;
        let head = Head {
            sequence: 0,
            space,
            key: &name.key,
            version: name.version,
            index: name.index,
            fpcc,
            fragment_length: fragment.len() as u32,
            tree_groups: shape.tree_groups(),
        };
        let length = head.lengths().record();
        self.claim(claim, length)?;
        self.log.append(&head, fragment, tree, false).map_err(|error| {
            self.used.fetch_sub(length, Ordering::SeqCst);
            self.write_error(error, length)
        })
    }

    fn write_error(&self, error: std::io::Error, needed: u64) -> StoreError {
        if disk::is_full(&error) {
            return StoreError::NoSpace { needed, available: self.usage().available_bytes.min(needed - 1) };
        }
        StoreError::Io { what: "write a record".into(), error }
    }

    /// Let the index point to a record just written; the record it replaces, if any.
    fn point_to(
        &self,
        index: &mut Index,
        space: Space,
        name: &FragmentName,
        shape: &Shape,
        reserved: &Reserved,
    ) -> Option<(Arc<Segment>, u64, u64)> {
        let length = shape.lengths(name.key.len()).record();
        reserved.segment.enliven(length);
        let before = index.insert(space, name, shape, reserved.position);
        let before = before.expect("arriving() settled the FPCC of this name")?;
        self.forget(before, length)
    }

    /// Stop counting a record the index no longer points to.
    fn forget(&self, position: Position, length: u64) -> Option<(Arc<Segment>, u64, u64)> {
        self.used.fetch_sub(length, Ordering::SeqCst);
        let segment = self.log.segment(position.segment)?;
        segment.forget(length);
        Some((segment, position.offset, length))
    }

    fn delete_one(&self, space: Space, name: &FragmentName) -> Result<bool, StoreError> {
        let mut index = self.index.lock();
        let Some(holding) = index.find(space, &name.key, name.version) else { return Ok(false) };
        let length = holding.lengths(name.key.len()).record();
        let Some(position) = index.remove(space, name) else { return Ok(false) };
        let forgotten = self.forget(position, length);
        drop(index);
        if let Some((segment, offset, length)) = forgotten {
            self.bury(&segment, offset, length)?;
        }
        self.counts.deleted.add(1);
        Ok(true)
    }

    /// Mark a record dead that the index no longer points to, and see what that makes of its segment.
    fn bury(&self, segment: &Arc<Segment>, offset: u64, length: u64) -> Result<(), StoreError> {
        if let Some(original) = self.moves.take(Position { segment: segment.number, offset }) {
            self.bury(&original.segment, original.offset, original.length)?;
        }
        if segment.is_spent() {
            self.remove_if_useless(segment)?;
        }
        self.log.note_changed(BLOCK);
        let buried = segment.bury(offset, length);
        self.buried_in.lock().insert(segment.number);
        self.upkeep.after_burial(segment);
        buried.map_err(StoreError::io("mark a record dead"))
    }

    fn locate(
        &self,
        space: Space,
        name: &FragmentName,
    ) -> Result<(Arc<Segment>, Position, Lengths), StoreError> {
        let index = self.index.lock();
        let holding = index.find(space, &name.key, name.version).ok_or_else(|| not_found(space, name))?;
        let position = holding.position(name.index).ok_or_else(|| not_found(space, name))?;
        // Under the index's lock: a segment is removed only after the index stopped pointing there.
        let segment = self.log.segment(position.segment).ok_or_else(|| not_found(space, name))?;
        Ok((segment, position, holding.lengths(name.key.len())))
    }

    /// What stands before the fragment, if `bytes` begin with the record that the index means.
    fn head_of<'a>(
        &self,
        space: Space,
        name: &FragmentName,
        position: Position,
        bytes: &'a [u8],
    ) -> Option<Head<'a>> {
        let (head, _) = Head::decode(self.log.seal(), position, bytes)?;
        let is_meant = head.space == space
            && head.key == name.key
            && head.version == name.version
            && head.index == name.index;
        is_meant.then_some(head)
    }

    /// Take `length` bytes of the space.
    fn claim(&self, claim: Claim, length: u64) -> Result<(), StoreError> {
        let kept_free = match claim {
            Claim::Data => self.reserve,
            Claim::Reserve => self.reserve / 2,
        };
        let used = self.used.fetch_add(length, Ordering::SeqCst);
        let available = self.room(used, kept_free);
        if length <= available {
            return Ok(());
        }
        self.used.fetch_sub(length, Ordering::SeqCst);
        Err(StoreError::NoSpace { needed: length, available })
    }

    /// What data may still take when `used` is taken.
    fn available(&self, used: u64) -> u64 {
        self.room(used, self.reserve)
    }

    fn room(&self, used: u64, kept_free: u64) -> u64 {
        let by_capacity = self.capacity.saturating_sub(kept_free).saturating_sub(used);
        let on_disk = self.folder.room().map_or(0, |room| room.free.saturating_sub(kept_free));
        by_capacity.min(on_disk)
    }
}

/// What is to be kept.
#[derive(Clone, Copy)]
struct Record<'a> {
    name: &'a FragmentName,
    shape: &'a Shape,
    fpcc: &'a [u8],
    fragment: &'a [u8],
    tree: &'a [u8],
}

/// How people name a fragment.
struct Named<'a>(Space, &'a FragmentName);

impl std::fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Named(space, FragmentName { key, version, index }) = self;
        if let Space::Volume(volume) = space {
            write!(f, "volume {volume} ")?;
        }
        write!(f, "object {key:?} version {version} fragment {index}")
    }
}

fn not_found(space: Space, name: &FragmentName) -> StoreError {
    StoreError::NotFound(Named(space, name).to_string())
}

fn check_name(name: &FragmentName) -> Result<(), StoreError> {
    let wrong = |why: &str| Err(StoreError::Request(why.into()));
    if name.key.is_empty() || name.key.len() > MAX_KEY {
        return wrong("a key has 1 to 1024 bytes");
    }
    if name.version == 0 {
        return wrong("versions begin at 1");
    }
    Ok(())
}

fn shape(fpcc: &Fpcc, fpcc_length: usize) -> Shape {
    Shape {
        fpcc: fpcc.digest(),
        code: fpcc.code(),
        object_length: fpcc.object_length(),
        fragment_length: fpcc.fragment_length() as u32,
        fpcc_length: fpcc_length as u16,
        has_tree: fpcc.hash_id() == HashId::Blake3 && fpcc.fragment_length() > GROUP_LENGTH,
    }
}
