//! The kernel's FUSE requests in front of a `Volume`: kernel types become ours, the caller's time is stamped, errors
//! become errnos. Metadata is answered on the thread that took the request; what may wait for nodes goes to the runtime
//! with its reply.

mod directories;
mod listings;
mod prepared;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;

use self::listings::Listings;
use self::prepared::Prepared;
use crate::error::{Error, Result};
use crate::host::{self, FuseRings};
use crate::inode::{Caller, Ino, Inode, MAX_LINKS, SetAttributes, SetTime, Time};
use crate::kernel::{
    self, Agreement, Attributes, Created, Data, Entry, Errno, Filesystem, Listing, Make, Node, Notifier,
    Offset, Opened, Reply, Request, Session, Statistics, Write, Written, Xattr, agree, opened,
};
use crate::metadata::{NewInode, RenameMode};
use crate::stages::{self, Stage};
use crate::volume::{self, Volume};
use crate::{acl, begun};

/// How long the kernel may trust what it was told. Every change passes through this kernel, so for as long as it likes.
pub const TTL: Duration = Duration::from_secs(3600);
/// Bytes that programs best read and write of a file at once: `cp` takes as many, and each write of it is a request.
pub const PREFERRED: u32 = 512 << 10;
/// Largest read or write the kernel sends at once.
const MAX_REQUEST: u32 = 1 << 20;
/// Name of the extended attribute of the root that tells where the daemon is reached.
pub const CONTROL_XATTR: &str = "avidfs.control";

/// How the kernel shows the mount, and to whom.
#[derive(Clone, Debug)]
pub struct FuseOptions {
    /// The source in /proc/mounts.
    pub name: String,
    /// Whether other users may use it.
    pub allow_other: bool,
    /// Whether the kernel refuses changes.
    pub read_only: bool,
    /// Further options of mount(8): nosuid, nodev, noexec, noatime, ...
    pub extra: Vec<String>,
    /// Whether requests may come in rings, where the kernel can (FUSE over io_uring).
    pub rings: bool,
    /// The daemon's control socket.
    pub control: PathBuf,
}

/// A mount to be served.
pub struct Mounted(Session<Fuse>);

impl Mounted {
    /// Answer the kernel until the file system is unmounted.
    ///
    /// # Errors
    /// The device's.
    pub fn serve(self) -> io::Result<()> {
        self.0.serve()
    }
}

/// Mount a volume. It answers once `Mounted::serve` runs.
///
/// # Errors
/// mount(2)'s or fusermount3's.
pub fn mount(
    volume: Arc<Volume>,
    mountpoint: &Path,
    options: &FuseOptions,
    runtime: Handle,
) -> io::Result<Mounted> {
    let _offered = if options.rings { FuseRings::offer() } else { None };
    let device = if host::is_root() {
        // Mounted by ourselves: only so is its type fuse.avidfs and not merely fuse.
        host::mount_fuse(mountpoint, &options.name, &kernel_options(options))?
    } else {
        host::mount_fuse_with_helper(mountpoint, &helper_options(options))?
    };
    let fuse = |notifier| Fuse {
        volume,
        runtime,
        control: options.control.clone(),
        notifier,
        listings: Listings::default(),
        prepared: Prepared::default(),
    };
    let session = Session::begin(device, fuse, agreement(options.rings)).inspect_err(|_| {
        // Nobody would ever serve it.
        let _ = host::unmount(mountpoint, true);
    })?;
    let how = if session.has_rings() { "rings" } else { "/dev/fuse" };
    tracing::info!(how, "requests of the kernel");
    Ok(Mounted(session))
}

/// What the kernel is asked for when it begins.
pub fn agreement(rings: bool) -> Agreement {
    Agreement {
        flags: agree::ASYNC_READ
            | agree::PARALLEL_DIROPS
            | agree::DO_READDIRPLUS
            | agree::READDIRPLUS_AUTO
            | agree::ASYNC_DIO
            | agree::CACHE_SYMLINKS
            | agree::POSIX_ACL
            | agree::DONT_MASK
            // All changes pass through this kernel: it need not drop pages because an mtime moved.
            | agree::EXPLICIT_INVAL_DATA
            | agree::HANDLE_KILLPRIV_V2,
        max_request: MAX_REQUEST,
        max_background: 64,
        // As many as this machine is worth.
        threads: std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8)),
        rings,
    }
}

fn kernel_options(options: &FuseOptions) -> Vec<&str> {
    let mut list = vec!["default_permissions"];
    list.extend(options.allow_other.then_some("allow_other"));
    list.extend(options.read_only.then_some("ro"));
    list.extend(options.extra.iter().map(String::as_str));
    list
}

/// As fusermount3 takes them. Times of access are the daemon's to note, and it was told.
fn helper_options(options: &FuseOptions) -> Vec<String> {
    let unknown = ["relatime", "strictatime", "diratime", "nodiratime", "symfollow", "nosymfollow"];
    let known = kernel_options(options).into_iter().filter(|option| !unknown.contains(option));
    let named = [format!("fsname={}", options.name), "subtype=avidfs".to_owned()];
    named.into_iter().chain(known.map(str::to_owned)).collect()
}

struct Fuse {
    volume: Arc<Volume>,
    runtime: Handle,
    control: PathBuf,
    /// What tells the kernel that something it was told is no longer so.
    notifier: Notifier,
    listings: Listings,
    prepared: Prepared,
}

impl Fuse {
    /// Do what may have to wait, and waits elsewhere.
    fn begin(&self, work: impl Future<Output = ()> + Send + 'static) {
        let _inside = self.runtime.enter();
        begun::begin(work);
    }

    fn control(&self) -> Vec<u8> {
        let told = serde_json::json!({ "socket": self.control, "pid": std::process::id() });
        told.to_string().into_bytes()
    }

    /// Somebody who is not root changes the content. The kernel asks for it at a write and leaves it to us elsewhere.
    ///
    /// It believes the mode that it was told, and would run a program as its owner: so if bits were taken away it is to be
    /// answered only once what is returned has ended.
    fn clear_set_id(
        &self,
        req: &Request,
        node: Ino,
    ) -> Result<Option<impl Future<Output = ()> + Send + 'static>> {
        if req.uid == 0 || !self.volume.clear_set_id(node)? {
            return Ok(None);
        }
        // On a thread of its own: the kernel may ask us something before it takes the notice.
        let notifier = self.notifier.clone();
        // An inode the kernel has forgotten needs no notice.
        let told = self.runtime.spawn_blocking(move || drop(notifier.attributes_changed(node.0)));
        Ok(Some(async move { drop(told.await) }))
    }

    /// Write what has to wait for something, and then perhaps for room.
    fn write_later(
        &self,
        (node, offset, data, now): (Ino, u64, &[u8], Time),
        before: impl Future<Output = ()> + Send + 'static,
        lasting: impl Send + 'static,
        reply: Reply<Written>,
    ) {
        let (volume, data) = (self.volume.clone(), Bytes::copy_from_slice(data));
        self.begin(async move {
            before.await;
            let length = data.len() as u32;
            let written = volume.write(node, offset, data, now).await;
            drop(lasting);
            reply.answer(told(written.map(|()| Written(length))));
        });
    }

    /// An inode under a new name.
    fn make(&self, req: &Request, name: &OsStr, (mode, umask): (u32, u32), more: NewInode) -> Result<Inode> {
        let new = NewInode { mode, uid: req.uid, gid: req.gid, ..more };
        self.volume.create(Ino(req.node), name.as_bytes(), new, umask, caller(req))
    }
}

/// Whether reads through such a handle count as accesses.
fn notes_access(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_WRONLY && flags & libc::O_NOATIME == 0
}

/// Whether the caller is root or in a group, by what the kernel tells of the process; one that has ended is not.
fn is_in_group(req: &Request, group: u32) -> bool {
    req.uid == 0 || req.gid == group || host::groups_of(req.pid).contains(&group)
}

/// The kernel passes on any name; these are the kinds that xattr(7) knows, and that ext4 keeps.
fn check_xattr_name(name: &[u8]) -> Result<()> {
    if [acl::ACCESS, acl::DEFAULT].contains(&name) {
        return Ok(());
    }
    let kinds = [b"user.".as_slice(), b"trusted.", b"security."];
    match kinds.into_iter().find_map(|kind| name.strip_prefix(kind)) {
        Some(b"") => Err(Error::Invalid("an attribute needs a name after its kind")),
        Some(_) => Ok(()),
        None => Err(Error::Unsupported),
    }
}

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid, gid: req.gid, now: Time::now() }
}

/// What the kernel is told of a result.
fn told<T>(result: Result<T>) -> std::result::Result<T, Errno> {
    result.map_err(|error| errno(&error))
}

/// The errno of an error, which is logged here, once, if somebody should read about it.
fn errno(error: &Error) -> Errno {
    if error.is_trouble() {
        tracing::warn!(%error, "a request failed");
    }
    Errno(error.errno())
}

fn set_time(time: SetTime) -> SetTime {
    match time {
        SetTime::Now => SetTime::Now,
        SetTime::At(time) => SetTime::At(within_ext4s_range(time)),
    }
}

/// The kernel cuts times to what a file system can hold, but knows no limits of FUSE's; these are ext4's, 1901 to
/// 2446, and as there a time that is cut has no nanoseconds (timestamp_truncate in fs/inode.c).
fn within_ext4s_range(time: Time) -> Time {
    const FIRST: i64 = i32::MIN as i64;
    const LAST: i64 = 0x3_7fff_ffff;
    match time.seconds {
        seconds if seconds <= FIRST => Time { seconds: FIRST, nanos: 0 },
        seconds if seconds >= LAST => Time { seconds: LAST, nanos: 0 },
        _ => time,
    }
}

fn node(inode: &Inode) -> Node {
    Node {
        ino: inode.ino.0,
        size: inode.size,
        blocks: inode.allocated.div_ceil(512),
        atime: inode.atime,
        mtime: inode.mtime,
        ctime: inode.ctime,
        mode: inode.mode,
        // As ext4: what a directory has that is not counted any more.
        links: if inode.is_directory() && inode.links >= MAX_LINKS { 1 } else { inode.links },
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        block_size: if inode.mode & libc::S_IFMT == libc::S_IFREG { PREFERRED } else { 4096 },
    }
}

fn entry(inode: Inode) -> Entry {
    Entry { node: node(&inode), valid: TTL }
}

/// What tells the kernel that there is no such name, so that it remembers that, too.
fn nothing() -> Entry {
    Entry { node: Node::default(), valid: TTL }
}

fn attributes(inode: Inode) -> Attributes {
    Attributes { node: node(&inode), valid: TTL }
}

fn reply_xattr(reply: Reply<Xattr>, size: u32, result: Result<Vec<u8>>) {
    reply.answer(told(result).and_then(|value| match size {
        0 => Ok(Xattr::Length(value.len() as u32)),
        size if value.len() > size as usize => Err(Errno::ERANGE),
        _ => Ok(Xattr::Value(value)),
    }));
}

impl Filesystem for Fuse {
    fn lookup(&self, req: &Request, name: &OsStr, reply: Reply<Entry>) {
        let _lasting = stages::begin(Stage::Lookup);
        match self.volume.lookup(Ino(req.node), name.as_bytes()) {
            Err(Error::NotFound) => reply.ok(nothing()),
            result => reply.answer(told(result.map(entry))),
        }
    }

    fn forget(&self, node: u64, count: u64) {
        let node = Ino(node);
        self.listings.forget(node);
        self.prepared.forget(node);
        self.volume.forget(node, count);
    }

    fn getattr(&self, req: &Request, reply: Reply<Attributes>) {
        let _lasting = stages::begin(Stage::Attributes);
        reply.answer(told(self.volume.attributes(Ino(req.node)).map(attributes)));
    }

    fn setattr(&self, req: &Request, change: SetAttributes, reply: Reply<Attributes>) {
        let _lasting = stages::begin(Stage::Change);
        let (atime, mtime) = (change.atime.map(set_time), change.mtime.map(set_time));
        let set = SetAttributes { atime, mtime, ..change };
        let done = self.volume.set_attributes(Ino(req.node), &set, caller(req));
        reply.answer(told(done.map(attributes)));
    }

    fn readlink(&self, req: &Request, reply: Reply<Data>) {
        let _lasting = stages::begin(Stage::Attributes);
        let node = Ino(req.node);
        let target = self.volume.accessed(node, Time::now()).and_then(|()| self.volume.target(node));
        reply.answer(told(target.map(|target| Data(vec![target.into()]))));
    }

    fn symlink(&self, req: &Request, name: &OsStr, target: &[u8], reply: Reply<Entry>) {
        let _lasting = stages::begin(Stage::Change);
        let more = NewInode { target: Some(target.to_vec()), ..NewInode::default() };
        reply.answer(told(self.make(req, name, (libc::S_IFLNK | 0o777, 0), more).map(entry)));
    }

    fn mknod(&self, req: &Request, name: &OsStr, make: Make, reply: Reply<Entry>) {
        let _lasting = stages::begin(Stage::Change);
        let more = NewInode { rdev: make.rdev, ..NewInode::default() };
        reply.answer(told(self.make(req, name, (make.mode, make.umask), more).map(entry)));
    }

    fn mkdir(&self, req: &Request, name: &OsStr, make: Make, reply: Reply<Entry>) {
        let _lasting = stages::begin(Stage::Change);
        let mode = libc::S_IFDIR | make.mode & 0o7777;
        reply.answer(told(self.make(req, name, (mode, make.umask), NewInode::default()).map(entry)));
    }

    fn unlink(&self, req: &Request, name: &OsStr, reply: Reply<()>) {
        let _lasting = stages::begin(Stage::Change);
        reply.answer(told(self.volume.unlink(Ino(req.node), name.as_bytes(), caller(req))));
    }

    fn rmdir(&self, req: &Request, name: &OsStr, reply: Reply<()>) {
        let _lasting = stages::begin(Stage::Change);
        reply.answer(told(self.volume.rmdir(Ino(req.node), name.as_bytes(), caller(req))));
    }

    fn rename(&self, req: &Request, name: &OsStr, to: (u64, &OsStr), flags: u32, reply: Reply<()>) {
        let _lasting = stages::begin(Stage::Change);
        let mode = match flags {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let (from, to) = ((Ino(req.node), name.as_bytes()), (Ino(to.0), to.1.as_bytes()));
        reply.answer(told(self.volume.rename(from, to, mode, caller(req))));
    }

    fn link(&self, req: &Request, node: u64, name: &OsStr, reply: Reply<Entry>) {
        let _lasting = stages::begin(Stage::Change);
        let linked = self.volume.link(Ino(node), Ino(req.node), name.as_bytes(), caller(req));
        reply.answer(told(linked.map(entry)));
    }

    fn open(&self, req: &Request, flags: i32, reply: Reply<Opened>) {
        let _lasting = stages::begin(Stage::Open);
        let node = req.node;
        let noted = self.volume.open_file(Ino(node)).and_then(|()| match notes_access(flags) {
            true => self.volume.opened_for_reading(Ino(node), Time::now()),
            false => Ok(false),
        });
        // Through a handle that only reads nothing becomes dirty, so that its close has nothing to wait for.
        let only_reads = flags & libc::O_ACCMODE == libc::O_RDONLY;
        let how = Opened(opened::KEEP_CACHE | if only_reads { opened::NOFLUSH } else { 0 });
        match noted {
            Ok(true) => {
                let notifier = self.notifier.clone();
                // On a thread of its own: the kernel may ask us something before it takes the notice.
                self.runtime.spawn_blocking(move || {
                    // Whatever the length; an inode the kernel has forgotten needs no notice.
                    let _ = notifier.attributes_changed(node);
                    reply.ok(how);
                });
            }
            noted => reply.answer(told(noted.map(|_| how))),
        }
    }

    fn create(&self, req: &Request, name: &OsStr, make: Make, reply: Reply<Created>) {
        let _lasting = stages::begin(Stage::Change);
        let mode = libc::S_IFREG | make.mode & 0o7777;
        let created = self.make(req, name, (mode, make.umask), NewInode::default()).map(|inode| {
            self.volume.open_created(&inode);
            Created { entry: entry(inode), opened: Opened(opened::KEEP_CACHE) }
        });
        reply.answer(told(created));
    }

    fn read(&self, req: &Request, offset: u64, size: u32, flags: i32, reply: Reply<Data>) {
        let lasting = stages::begin(Stage::Read);
        let _inside = self.runtime.enter();
        let now = (flags & libc::O_NOATIME == 0).then(Time::now);
        let node = Ino(req.node);
        match self.volume.try_read(node, offset, size, now) {
            Ok(Some(parts)) => reply.ok(Data(parts)),
            Ok(None) => {
                let volume = self.volume.clone();
                self.begin(async move {
                    let read = volume.read(node, offset, size).await;
                    drop(lasting);
                    reply.answer(told(read.map(Data)));
                });
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn write(&self, req: &Request, write: Write<'_>, reply: Reply<Written>) {
        let lasting = stages::begin(Stage::Write);
        let _inside = self.runtime.enter();
        let Write { offset, data, clears_set_id } = write;
        let (node, now) = (Ino(req.node), Time::now());
        let what = (node, offset, data, now);
        if clears_set_id {
            match self.clear_set_id(req, node) {
                Ok(None) => {}
                Ok(Some(told)) => return self.write_later(what, told, lasting, reply),
                Err(error) => return reply.error(errno(&error)),
            }
        }
        match self.volume.try_write(node, offset, data, now) {
            Ok(volume::Written::Done) => reply.ok(Written(data.len() as u32)),
            Ok(volume::Written::Full) => self.write_later(what, std::future::ready(()), lasting, reply),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn flush(&self, req: &Request, reply: Reply<()>) {
        let lasting = stages::begin(Stage::Flush);
        let node = Ino(req.node);
        if self.volume.is_clean(node) {
            return reply.ok(());
        }
        let volume = self.volume.clone();
        self.begin(async move {
            let flushed = volume.flush(node).await;
            // Whoever has his answer finds it counted.
            drop(lasting);
            reply.answer(told(flushed));
        });
    }

    fn release(&self, req: &Request, reply: Reply<()>) {
        self.volume.close_file(Ino(req.node));
        reply.ok(());
    }

    fn fsync(&self, req: &Request, reply: Reply<()>) {
        let lasting = stages::begin(Stage::Sync);
        let (volume, node) = (self.volume.clone(), Ino(req.node));
        self.begin(async move {
            let synced = volume.fsync(node).await;
            // Whoever has his answer finds it counted.
            drop(lasting);
            reply.answer(told(synced));
        });
    }

    fn opendir(&self, req: &Request, reply: Reply<Opened>) {
        let may_be = self.listings.may_be_remembered(Ino(req.node));
        reply.ok(Opened(if may_be { opened::KEEP_CACHE | opened::CACHE_DIR } else { 0 }));
    }

    fn readdir(&self, req: &Request, offset: u64, listing: Listing, reply: Reply<Listing>) {
        let _lasting = stages::begin(Stage::List);
        reply.answer(told(self.list_names(Ino(req.node), offset, listing)));
    }

    fn readdirplus(&self, req: &Request, offset: u64, listing: Listing, reply: Reply<Listing>) {
        let _lasting = stages::begin(Stage::List);
        reply.answer(told(self.list_entries(Ino(req.node), offset, listing)));
    }

    fn releasedir(&self, req: &Request, reply: Reply<()>) {
        self.prepared.forget(Ino(req.node));
        reply.ok(());
    }

    fn fsyncdir(&self, _req: &Request, reply: Reply<()>) {
        let lasting = stages::begin(Stage::Sync);
        let volume = self.volume.clone();
        self.begin(async move {
            let synced = volume.sync().await;
            // Whoever has his answer finds it counted.
            drop(lasting);
            reply.answer(told(synced));
        });
    }

    fn statfs(&self, _req: &Request, reply: Reply<Statistics>) {
        const BLOCK: u32 = 4096;
        let space = self.volume.space();
        let (blocks, free) = (space.total_bytes / u64::from(BLOCK), space.available_bytes / u64::from(BLOCK));
        reply.answer(told(self.volume.inodes().map(|inodes| Statistics {
            blocks,
            free,
            // An inode needs no room in the pool but for its bytes; as many may come as there are blocks.
            files: inodes + free,
            files_free: free,
            block_size: BLOCK,
            name_length: 255,
        })));
    }

    fn setxattr(&self, req: &Request, name: &OsStr, value: &[u8], flags: i32, reply: Reply<()>) {
        let _lasting = stages::begin(Stage::Change);
        let (node, name) = (Ino(req.node), name.as_bytes());
        let done = check_xattr_name(name).and_then(|()| {
            if ![acl::ACCESS, acl::DEFAULT].contains(&name) {
                return self.volume.set_xattr(node, name, value, flags, caller(req));
            }
            let drop_set_gid = !is_in_group(req, self.volume.attributes(node)?.gid);
            self.volume.set_acl(node, name, value, drop_set_gid, caller(req))
        });
        reply.answer(told(done));
    }

    fn getxattr(&self, req: &Request, name: &OsStr, size: u32, reply: Reply<Xattr>) {
        let _lasting = stages::begin(Stage::Attributes);
        if req.node == kernel::ROOT && name == CONTROL_XATTR {
            return reply_xattr(reply, size, Ok(self.control()));
        }
        let value = check_xattr_name(name.as_bytes());
        let value = value.and_then(|()| self.volume.xattr(Ino(req.node), name.as_bytes()));
        reply_xattr(reply, size, value);
    }

    fn listxattr(&self, req: &Request, size: u32, reply: Reply<Xattr>) {
        let _lasting = stages::begin(Stage::Attributes);
        let joined = self.volume.xattrs(Ino(req.node)).map(|names| {
            let terminated = names.into_iter().flat_map(|name| name.into_iter().chain([0]));
            terminated.collect()
        });
        reply_xattr(reply, size, joined);
    }

    fn removexattr(&self, req: &Request, name: &OsStr, reply: Reply<()>) {
        let _lasting = stages::begin(Stage::Change);
        let named = check_xattr_name(name.as_bytes());
        let remove = || self.volume.remove_xattr(Ino(req.node), name.as_bytes(), caller(req));
        reply.answer(told(named.and_then(|()| remove())));
    }

    fn fallocate(&self, req: &Request, offset: u64, length: u64, mode: i32, reply: Reply<()>) {
        let Some(end) = offset.checked_add(length) else { return reply.error(Errno::EFBIG) };
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let node = Ino(req.node);
        let notice = match self.clear_set_id(req, node) {
            Ok(notice) => notice,
            Err(error) => return reply.error(errno(&error)),
        };
        let result = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => self.volume.allocate(node, offset..end, keep_size, caller(req)),
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE => {
                self.volume.punch(node, offset..end, keep_size, caller(req))
            }
            _ => Err(Error::Unsupported),
        };
        let result = told(result);
        match notice {
            None => reply.answer(result),
            Some(notice) => self.begin(async move {
                notice.await;
                reply.answer(result);
            }),
        }
    }

    fn lseek(&self, req: &Request, offset: i64, whence: i32, reply: Reply<Offset>) {
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let found = told(self.volume.seek(Ino(req.node), offset, data));
        reply.answer(found.and_then(|found| found.map(Offset).ok_or(Errno::ENXIO)));
    }

    fn copy_file_range(
        &self,
        req: &Request,
        offset: u64,
        to: (u64, u64),
        length: u64,
        reply: Reply<Written>,
    ) {
        let (from, to) = ((Ino(req.node), offset), (Ino(to.0), to.1));
        let notice = match self.clear_set_id(req, to.0) {
            Ok(notice) => notice,
            Err(error) => return reply.error(errno(&error)),
        };
        // The answer is a u32: clip below 4 GiB, in whole pages.
        let length = length.min(u64::from(u32::MAX) & !4095);
        let (volume, caller) = (self.volume.clone(), caller(req));
        self.begin(async move {
            if let Some(notice) = notice {
                notice.await;
            }
            let copied = volume.copy_range(from, to, length, caller).await;
            reply.answer(told(copied.map(|copied| Written(copied as u32))));
        });
    }
}
