//! The metadata store: names, inodes, extents and objects, as whole operations that each happen or do not.
//! It knows no bytes of files and no nodes beyond their identities.
//!
//! No SQL and no idiom of one database stands above this trait, ids are allocated by the store, and callers keep
//! nothing that the store could not invalidate, so that a second implementation for several mounts can follow.

pub mod check;
pub mod record;
pub mod sqlite;

use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};

use common::code::Code;
use common::hash::{Hash, HashId};
use common::wire::{NodeId, ObjectId, VolumeId};

use crate::error::Result;
use crate::inode::{Ino, Inode, Time};
use check::Flaws;

/// Longest name of an extended attribute, in bytes.
pub const MAX_XATTR_NAME: usize = 255;
/// Longest value of an extended attribute, in bytes.
pub const MAX_XATTR_VALUE: usize = 65_536;

/// The most bytes in one intent.
pub const MAX_INTENT: usize = 64 << 10;

/// What a volume is; written once when it is formatted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeSettings {
    /// Its identity.
    pub volume: VolumeId,
    /// Its name in the pool.
    pub name: String,
    /// Its default code.
    pub code: Code,
    /// The hash of its FPCCs.
    pub hash: HashId,
    /// The most bytes in one object.
    pub object_size: u32,
    /// Owner and group of the root directory at first.
    pub root: (u32, u32),
    /// When it was formatted.
    pub created: Time,
}

/// A list of node identities over which objects are placed. Objects remember which one by its number, so that a
/// pool that grows or loses a node for good does not move what is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Configuration {
    /// Counts from 1.
    pub number: u32,
    /// The nodes, in the order they were named.
    pub nodes: Vec<NodeId>,
}

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Position in the directory, below 2^63; never reused while the directory lives. 1 and 2 are kept for `.` and
    /// `..`. A name that rename replaces, swaps or changes inside its directory keeps its position.
    pub cookie: u64,
    /// Any bytes but `/` and NUL.
    pub name: Vec<u8>,
    /// What it names.
    pub inode: Inode,
}

/// One name in a directory, for who only wants to know the names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Name {
    /// As in `Entry`.
    pub cookie: u64,
    /// As in `Entry`.
    pub name: Vec<u8>,
    /// What it names.
    pub ino: Ino,
    /// The type and permission bits of that.
    pub mode: u32,
}

/// What a new inode begins with.
#[derive(Clone, Debug, Default)]
pub struct NewInode {
    /// Type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, for device nodes.
    pub rdev: u32,
    /// Target, for symbolic links.
    pub target: Option<Vec<u8>>,
    /// Extended attributes, name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// How rename treats what is at the destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RenameMode {
    /// Replace it, as rename(2).
    Replace,
    /// Refuse, as RENAME_NOREPLACE.
    NoReplace,
    /// Swap the two, as RENAME_EXCHANGE.
    Exchange,
}

/// What a removed name had named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Removed {
    /// Its attributes after the removal.
    pub inode: Inode,
    /// Whether no name is left: it is now an orphan until `reclaim`.
    pub orphaned: bool,
}

/// Attributes to change; `None` stays. The caller has already decided what is allowed.
#[derive(Clone, Debug, Default)]
pub struct AttributeChange {
    /// Permission bits (07777); the type stays.
    pub permissions: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last access.
    pub atime: Option<Time>,
    /// Last change of the content.
    pub mtime: Option<Time>,
    /// Last change of the inode.
    pub ctime: Option<Time>,
    /// Extended attributes that belong to the change: those to set, and those (without a value) to remove if present.
    pub xattrs: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// A run of a file's bytes inside one object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub length: u32,
    /// The object.
    pub object: ObjectId,
    /// Where it begins in the object.
    pub object_offset: u32,
}

impl Extent {
    /// The range of the file it covers.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.length)
    }
}

/// What is known of a stored object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectRecord {
    /// Which.
    pub id: ObjectId,
    /// Its bytes.
    pub length: u32,
    /// Digest of its FPCC; what anchors every read.
    pub fpcc: Hash,
    /// Its code.
    pub code: Code,
    /// Number of the configuration its homes are computed over.
    pub configuration: u32,
    /// Fragments that are not at home.
    pub exceptions: Vec<Exception>,
}

/// A fragment that is not at its home.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Its index.
    pub index: u8,
    /// The node that keeps it meanwhile; none if nobody does.
    pub node: Option<NodeId>,
}

/// Written bytes that the metadata carries until they lie in an object, so that one entry of the journal makes them
/// durable. They are laid over what the extents say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Intent {
    /// Where they belong in the file.
    pub offset: u64,
    /// Counts how often intents of the file were noted; a commit says which ones it makes superfluous.
    pub number: u64,
    /// At least one byte, at most `MAX_INTENT`.
    pub bytes: Vec<u8>,
}

impl Intent {
    /// The range of the file.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.bytes.len() as u64
    }

    /// What lies before and after a range that it overlaps.
    pub fn without(&self, hole: &Range<u64>) -> (Option<Intent>, Option<Intent>) {
        let range = self.range();
        let part = |from: u64, to: u64| {
            (from < to).then(|| Intent {
                offset: from,
                number: self.number,
                bytes: self.bytes[(from - range.start) as usize..(to - range.start) as usize].to_vec(),
            })
        };
        (part(range.start, range.end.min(hole.start)), part(range.start.max(hole.end), range.end))
    }
}

/// New bytes of a file becoming visible: objects that are *stored* and the extents that refer to them.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// New objects. One that the store knows already, with the same length, digest and code, stays as it is.
    pub objects: Vec<ObjectRecord>,
    /// In the order of their writes: a later one wins where they overlap.
    pub files: Vec<FileCommit>,
}

/// The part of a commit that concerns one file.
#[derive(Clone, Debug)]
pub struct FileCommit {
    /// Which file. If it is gone meanwhile its part is skipped and its objects are condemned.
    pub ino: Ino,
    /// Extents, in order.
    pub extents: Vec<Extent>,
    /// The size it has then at least, as it has where its extents end; the store never shrinks it here.
    pub size: u64,
    /// Last change of the content (and of the inode), if newer than what the store has.
    pub mtime: Option<Time>,
    /// Intents up to this number are superfluous where the extents lie; 0 for none.
    pub intents: u64,
}

/// An extent that could lie better.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scattered {
    /// Whose.
    pub ino: Ino,
    /// Which.
    pub extent: Extent,
    /// Its object.
    pub object: ObjectRecord,
    /// Whether less than half of that is in use.
    pub sparse: bool,
}

/// How much the volume holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Inodes, orphans included.
    pub inodes: u64,
    /// Objects.
    pub objects: u64,
    /// Bytes in objects.
    pub object_bytes: u64,
    /// Bytes of them that extents refer to; what files share counts for each of them.
    pub live_bytes: u64,
    /// Objects with a fragment that is not at home.
    pub objects_with_exceptions: u64,
}

/// Changes the pool does not have yet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outbox {
    /// Number of the last of them.
    pub last: u64,
    /// Their records, encoded, in order.
    pub records: Vec<u8>,
}

/// A state of the volume that is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Counts from 1; greater than that of every one there was when it was begun.
    pub number: u32,
    /// By what people know it; no two have the same.
    pub name: String,
    /// When it was begun.
    pub created: Time,
    /// Objects from this one on are not part of it. The greatest there is while it is being taken.
    pub next: ObjectId,
    /// Where its metadata lies in the journal; opaque, and empty while it is being taken.
    pub pin: Vec<u8>,
}

/// What a snapshot costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SnapshotUsage {
    /// Bytes in objects that nothing but snapshots needs any more.
    pub kept_bytes: u64,
    /// Those of them that no other snapshot needs.
    pub alone_bytes: u64,
}

/// A piece of the pool's journal to apply.
pub struct Replay<'r> {
    /// Begin from nothing: the records are all that the volume is.
    pub anew: bool,
    /// Encoded records, in order and in pieces, each taken when the one before it is applied.
    pub records: &'r mut dyn Iterator<Item = Result<Vec<u8>>>,
    /// Number of the last change among them, in this store's own counting; changes up to it leave the outbox.
    pub upto: u64,
    /// Where the journal is then; opaque.
    pub head: &'r [u8],
}

/// The store. Synchronous; each verb happens as a whole and is visible to all when it returns; one that fails
/// changed nothing. Durable against the end of the process when it returns, against power loss after `sync`.
///
/// Every verb may also fail with `Store` (damage, a foreign format) or `Host` (the disk is full or broken).
/// Where an inode number stands for nothing the answer is `NotFound`, where a directory is needed and there is
/// another inode `NotDirectory`; each name is checked: `NameTooLong`, and `Invalid` for what cannot be one.
/// Permissions and quotas are the caller's business; so is to lock out a second process.
pub trait MetadataStore: Send + Sync + 'static {
    /// Make an empty volume with a root directory of mode 0755. `Exists` if there is one.
    fn format(&self, settings: &VolumeSettings) -> Result<()>;
    /// The volume, if one was formatted here.
    fn settings(&self) -> Result<Option<VolumeSettings>>;
    /// Begin a new epoch: one more than the greatest ever begun here and than `seen`, 1 at first. Survives power loss
    /// when it returns, as no epoch may begin twice. `Invalid` before `format`.
    fn begin_epoch(&self, seen: u32) -> Result<u32>;
    /// Remember a configuration; an equal one (also in its order) keeps its number. `Invalid` for an empty one.
    fn configure(&self, nodes: &[NodeId]) -> Result<Configuration>;
    /// All configurations ever used, by number.
    fn configurations(&self) -> Result<Vec<Configuration>>;
    /// Whether an object to which something refers is placed by a configuration. Looks at all objects where none is.
    fn places_objects(&self, configuration: u32) -> Result<bool>;
    /// After this everything that returned before survives power loss of this host. Callers at the same time share
    /// one flush; without a change since the last one it is free. Once it failed it fails until the store is opened
    /// anew, because nobody knows then what the disk has.
    fn sync(&self) -> Result<()>;

    /// The inode under a name. `NotFound`, `NotDirectory`, `NameTooLong`.
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Inode>;
    /// An inode, orphans included. `NotFound`.
    fn inode(&self, ino: Ino) -> Result<Inode>;
    /// The directory that holds this directory, or held it last; the root's is the root. `NotDirectory`.
    fn parent(&self, directory: Ino) -> Result<Ino>;
    /// The target of a symbolic link. `Invalid` for anything else.
    fn target(&self, ino: Ino) -> Result<Vec<u8>>;
    /// At most `limit` entries with a cookie greater than `after`, by cookie; without `.` and `..`. An entry that
    /// is there all along is met once by a caller who goes on from the last cookie, whatever comes and goes
    /// meanwhile. A removed directory is empty.
    fn list(&self, directory: Ino, after: u64, limit: usize) -> Result<Vec<Entry>>;
    /// As `list`, without the attributes, which are most of its cost.
    fn names(&self, directory: Ino, after: u64, limit: usize) -> Result<Vec<Name>>;

    /// A new inode under a new name; also counts the parent's links and size and stamps its mtime and ctime.
    /// `Exists`, `NotFound` (also for a removed parent), `NotDirectory`, `NameTooLong`, `TooManyLinks`; `Invalid`
    /// for a mode without a type, and for a target where there should be none or none where there should be one.
    fn create(&self, parent: Ino, name: &[u8], new: &NewInode, now: Time) -> Result<Inode>;
    /// One more name for an inode that is no directory; stamps its ctime and the parent's mtime and ctime.
    /// `NotPermitted` for a directory, `NotFound` for an orphan or in a removed parent, `Exists`, `TooManyLinks`.
    fn link(&self, ino: Ino, parent: Ino, name: &[u8], now: Time) -> Result<Inode>;
    /// Remove a name that is no directory's; stamps as `link`. `IsDirectory`, `NotFound`.
    fn unlink(&self, parent: Ino, name: &[u8], now: Time) -> Result<Removed>;
    /// Remove an empty directory, which is an orphan then; stamps as `link`. `NotDirectory`, `NotEmpty`, `NotFound`.
    fn rmdir(&self, parent: Ino, name: &[u8], now: Time) -> Result<Removed>;
    /// Rename with rename(2)'s rules; returns what was replaced. Both names of one inode: nothing happens.
    /// Stamps mtime and ctime of both directories and ctime of what moved and what was replaced.
    ///
    /// `NotFound` (also for a removed destination directory, and for an exchange with nothing), `NotDirectory` (a
    /// directory over something else), `IsDirectory` (something else over a directory), `NotEmpty`, `Exists` (with
    /// `NoReplace`), `Invalid` (a directory would lie below itself), `TooManyLinks`.
    fn rename(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        mode: RenameMode,
        now: Time,
    ) -> Result<Option<Removed>>;

    /// Change attributes; returns them all. Stamps nothing by itself. `Range` as `set_xattr`.
    fn set_attributes(&self, ino: Ino, change: &AttributeChange) -> Result<Inode>;
    /// When inodes were last accessed; one that is gone is passed over.
    fn set_accessed(&self, accesses: &[(Ino, Time)]) -> Result<()>;
    /// Set a file's size; bytes beyond it are gone, a longer one ends in a hole. Stamps mtime and ctime.
    /// `IsDirectory`, `Invalid` (neither file nor directory), `TooLarge`.
    fn truncate(&self, ino: Ino, size: u64, now: Time) -> Result<Inode>;
    /// Let a range become a hole; the size stays. Stamps mtime and ctime. Errors as `truncate`.
    fn punch(&self, ino: Ino, range: Range<u64>, now: Time) -> Result<Inode>;

    /// An extended attribute's value. `NoAttribute`.
    fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>>;
    /// The names of all extended attributes.
    fn xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>>;
    /// Set one; `create` refuses one that exists (`Exists`), `replace` one that does not (`NoAttribute`). Stamps
    /// ctime. `Range` beyond `MAX_XATTR_NAME` or `MAX_XATTR_VALUE` and for an empty name.
    fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        create: bool,
        replace: bool,
        now: Time,
    ) -> Result<()>;
    /// Remove one. Stamps ctime. `NoAttribute`.
    fn remove_xattr(&self, ino: Ino, name: &[u8], now: Time) -> Result<()>;

    /// The extents that have bytes in a range, by offset, uncut. They never overlap, and none lies beyond the size.
    fn extents(&self, ino: Ino, range: Range<u64>) -> Result<Vec<Extent>>;
    /// Let new bytes become visible, all or nothing. Whatever they cover is gone. An object that no extent refers to
    /// afterwards, because its file is gone or it was covered at once, is condemned; so all files that share a new
    /// object belong in the commit that brings it.
    ///
    /// `Invalid` for another object of a known identity, and for an extent that is empty, reaches beyond its object,
    /// or refers to one that is unknown or condemned; `TooLarge`; `IsDirectory`. It may be retried after any error,
    /// and also after success as long as nobody wrote to the files meanwhile.
    fn commit(&self, commit: &Commit) -> Result<()>;
    /// Refer from one file's range to another's objects; no bytes move, holes come along. Costs O(extents).
    /// Stamps the target's mtime and ctime and grows it to the range's end; the caller has cut the range to the
    /// source's size. `Invalid` where two ranges of one file overlap; otherwise errors as `truncate`.
    fn copy_extents(&self, from: (Ino, u64), to: (Ino, u64), length: u64, now: Time) -> Result<()>;

    /// Carry bytes that were written, each piece instead of older ones where it lies. The file is then as long as they
    /// reach at least; `mtime` as in a commit. Truncating, punching and copying over them takes them away like extents.
    /// `Invalid` for an empty or too long one; `IsDirectory`, `TooLarge`.
    fn put_intents(&self, ino: Ino, intents: &[Intent], mtime: Option<Time>) -> Result<()>;
    /// What is carried of a file, by offset. They never overlap.
    fn intents(&self, ino: Ino) -> Result<Vec<Intent>>;
    /// Files of which something is carried.
    fn with_intents(&self) -> Result<Vec<Ino>>;

    /// A stored object, condemned ones included. `NotFound`.
    fn object(&self, id: ObjectId) -> Result<ObjectRecord>;
    /// At most `limit` extents of a file that have bytes at the offset `from` or later, by offset and uncut, each
    /// with its object's record (which so comes once for each extent). The next page is `from` the end of the last.
    fn objects_of(&self, ino: Ino, from: u64, limit: usize) -> Result<Vec<(Extent, ObjectRecord)>>;
    /// The objects of files that are one extent of at most `longest` bytes from their beginning, of the inodes in a
    /// range, in their order; at most `limit`.
    fn small_files(&self, inos: RangeInclusive<u64>, longest: u32, limit: usize)
    -> Result<Vec<ObjectRecord>>;
    /// Replace an object's exceptions; of several for one index the last counts. An object that is gone: nothing
    /// happens.
    fn set_exceptions(&self, id: ObjectId, exceptions: &[Exception]) -> Result<()>;
    /// Change the exceptions in which `after` differs from those `before`, each unless it is no longer as it was: somebody
    /// else has seen something newer. Returns what they are then, by index. None, and nothing happens, if the object is gone,
    /// or placed by another configuration now, by which it has other homes.
    fn revise_exceptions(&self, before: &ObjectRecord, after: &[Exception])
    -> Result<Option<Vec<Exception>>>;
    /// Place an object by another configuration, by which its exceptions are these; where its bytes are needed, they are to
    /// be moved afterwards. False, and nothing happens, if it is gone, or its placement no longer as it was `before`.
    fn place_anew(&self, before: &ObjectRecord, configuration: u32, exceptions: &[Exception])
    -> Result<bool>;
    /// At most `limit` objects that have exceptions, greater than `after`, ascending.
    fn with_exceptions(&self, after: Option<ObjectId>, limit: usize) -> Result<Vec<ObjectRecord>>;

    /// At most `limit` extents, by inode and offset, after one place: of objects of which less than half is in use, and
    /// of those with at most `small` bytes; but for objects that files share or a snapshot may need.
    fn scattered(&self, after: (Ino, u64), small: u32, limit: usize) -> Result<Vec<Scattered>>;
    /// Let extents of a file refer to a new object instead: each pair is what was read, and what holds its bytes now.
    /// Only those that still are what was read are replaced; returns how many. The new object is condemned if none is.
    /// Otherwise as `commit`.
    fn relocate(&self, ino: Ino, object: &ObjectRecord, moves: &[(Extent, Extent)]) -> Result<usize>;

    /// Inodes without a name: left open when removed, or by a crash.
    fn orphans(&self) -> Result<Vec<Ino>>;
    /// Give up orphans: inodes, attributes and extents. What has a name or is gone stays as it is.
    fn reclaim(&self, orphans: &[Ino]) -> Result<()>;
    /// At most `limit` objects to which nothing refers any more, and which no snapshot keeps, greater than `after`,
    /// ascending; their records are kept until `forget`, so that a crash between deleting bytes and forgetting them leaves no
    /// unnamed garbage.
    /// Once condemned, an object is never referred to again.
    fn condemned(&self, after: Option<ObjectId>, limit: usize) -> Result<Vec<ObjectRecord>>;
    /// Their fragments are deleted. Unknown ones are passed over; `Invalid`, and nothing happens, if an extent
    /// still refers to one, or a snapshot keeps it.
    fn forget(&self, objects: &[ObjectId]) -> Result<()>;
    /// Totals; cheap enough for statfs.
    fn usage(&self) -> Result<Usage>;

    /// Begin to take a snapshot: from now on nothing that is referred to is condemned. Returns its number. `Exists`.
    fn begin_snapshot(&self, name: &str, now: Time) -> Result<u32>;
    /// It is taken: what `pin` leads to is its state, and objects from `next` on are not part of it. `NotFound`.
    fn pin_snapshot(&self, number: u32, next: ObjectId, pin: &[u8]) -> Result<()>;
    /// All of them, by number, also those that are being taken.
    fn snapshots(&self) -> Result<Vec<Snapshot>>;
    /// What one costs. Reads all objects that are kept. `NotFound`.
    fn snapshot_usage(&self, number: u32) -> Result<SnapshotUsage>;
    /// Give it up: objects that it alone kept are condemned. `NotFound`.
    fn delete_snapshot(&self, number: u32) -> Result<()>;
    /// Give an empty file bytes that it had in a snapshot, and this size: as `commit`, but the extents may also refer
    /// to objects that only snapshots keep. `Invalid` for one of which that is not true either.
    fn revive(&self, ino: Ino, extents: &[Extent], size: u64) -> Result<()>;

    /// Number of the last change. Every verb that changes anything is one, and puts its records in the outbox.
    fn last_change(&self) -> u64;
    /// Changes after the one numbered `after`, whole ones, about `bytes` of records at most.
    fn outbox(&self, after: u64, bytes: usize) -> Result<Outbox>;
    /// Bytes of records in the outbox.
    fn outbox_bytes(&self) -> Result<u64>;
    /// The pool has every change up to `upto`: they leave the outbox, and where the journal is now (opaque) is remembered.
    fn shipped(&self, upto: u64, head: &[u8]) -> Result<()>;
    /// What `shipped` or `replay` remembered last.
    fn head(&self) -> Result<Option<Vec<u8>>>;
    /// Apply a piece of the pool's journal, all or nothing, also where its records end with an error, which is the answer
    /// then. What is left in the outbox counts as made after it. Others may wait until the last record has come.
    fn replay(&self, replay: Replay<'_>) -> Result<()>;
    /// Hand on everything there is as encoded records, of one state, in pieces; returns the number of its last change.
    fn dump(&self, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<u64>;

    /// Everything that does not add up, of one state of the store. Reads all there is, and keeps nobody waiting.
    fn check(&self) -> Result<Flaws>;
    /// Mend what `check` finds, as far as the store says what was meant: what follows from other rows is counted anew,
    /// what refers to nothing is removed, and what lost its name gets one in `/lost+found`. Changes like any others,
    /// several of them; after an error those before it stay.
    fn mend(&self, now: Time) -> Result<()>;
    /// At most `limit` objects greater than `after`, ascending, and whether anything needs each.
    fn objects(&self, after: Option<ObjectId>, limit: usize) -> Result<Vec<(ObjectRecord, bool)>>;
    /// The paths of the files that have bytes in these objects, at most `limit` for each. Passes over all extents.
    fn users(&self, objects: &BTreeSet<ObjectId>, limit: usize) -> Result<Vec<(ObjectId, Vec<String>)>>;
    /// The path of each inode by its first name, or `inode 17` where no name leads there. Passes over all names.
    fn paths(&self, inos: &[Ino]) -> Result<Vec<String>>;
}
