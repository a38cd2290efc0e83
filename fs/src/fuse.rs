//! The kernel's FUSE requests in front of a `Volume`: kernel types become ours, the caller's time is stamped, errors
//! become errnos. The only file that knows fuser. Metadata is answered on the thread that read the request; what may
//! wait for nodes goes to the runtime with its reply.

mod directories;
mod listings;
mod prepared;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fuser::{
    BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, Notifier, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, Session, SessionACL,
    SessionUnmounter, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;

use self::listings::Listings;
use self::prepared::Prepared;
use crate::error::{Error, Result};
use crate::host;
use crate::inode::{Caller, Ino, Inode, MAX_LINKS, Time};
use crate::metadata::{NewInode, RenameMode};
use crate::stages::{self, Stage};
use crate::volume::{SetAttributes, SetTime, Volume, Written};
use crate::{acl, begun};

/// How long the kernel may trust what it was told. Every change passes through this kernel, so for as long as it likes.
pub const TTL: Duration = Duration::from_secs(3600);
/// Inode numbers are never reused.
const GENERATION: Generation = Generation(0);
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
    /// The daemon's control socket.
    pub control: PathBuf,
}

/// A mount that answers.
pub struct Mounted {
    session: Session<Fuse>,
    unmounter: Unmounter,
}

/// Unmounts from any thread.
pub struct Unmounter(SessionUnmounter);

impl Unmounter {
    /// Unmount.
    ///
    /// # Errors
    /// EBUSY while somebody uses it.
    pub fn unmount(&mut self) -> io::Result<()> {
        self.0.unmount()
    }
}

impl Mounted {
    /// Take out what unmounts from any thread.
    pub fn split(self) -> (Serving, Unmounter) {
        (Serving(self.session), self.unmounter)
    }
}

/// A mount to be served.
pub struct Serving(Session<Fuse>);

impl Serving {
    /// Answer the kernel until the file system is unmounted.
    ///
    /// # Errors
    /// The device's.
    pub fn wait(self) -> io::Result<()> {
        self.0.run()
    }
}

/// Mount a volume. It answers once `Serving::wait` runs.
///
/// # Errors
/// mount(2)'s or fusermount3's.
pub fn mount(
    volume: Arc<Volume>,
    mountpoint: &Path,
    options: &FuseOptions,
    runtime: Handle,
) -> io::Result<Mounted> {
    let mut config = threads();
    config.mount_options = mount_options(options);
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    let notifier = Arc::<OnceLock<Notifier>>::default();
    let fuse = Fuse {
        volume,
        runtime,
        control: options.control.clone(),
        notifier: notifier.clone(),
        listings: Listings::default(),
        prepared: Prepared::default(),
    };
    let mut session = if host::is_root() {
        // Mounted by ourselves: only so is its type fuse.avidfs and not merely fuse.
        let device = host::mount_fuse(mountpoint, &options.name, &kernel_options(options))?;
        Session::from_fd(fuse, device, config.acl, config)?
    } else {
        Session::new(fuse, mountpoint, &config)?
    };
    let _first = notifier.set(session.notifier());
    let unmounter = Unmounter(session.unmount_callable());
    Ok(Mounted { session, unmounter })
}

/// With as many threads that read requests as this machine is worth.
pub fn threads() -> Config {
    let mut config = Config::default();
    config.n_threads = Some(std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8)));
    config.clone_fd = true;
    config
}

/// What the kernel is asked for when it begins.
pub fn agree(config: &mut KernelConfig) {
    let wanted = [
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_READDIRPLUS_AUTO,
        InitFlags::FUSE_ASYNC_DIO,
        InitFlags::FUSE_CACHE_SYMLINKS,
        InitFlags::FUSE_POSIX_ACL,
        // The umask comes along: a default access control list takes its place.
        InitFlags::FUSE_DONT_MASK,
        // All changes pass through this kernel: it need not drop pages because an mtime moved.
        InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    ];
    for flag in wanted {
        // What an older kernel lacks only costs speed.
        let _ = config.add_capabilities(flag);
    }
    let _ = config.set_max_write(MAX_REQUEST);
    let _ = config.set_max_readahead(u32::MAX);
    let _ = config.set_max_background(64);
    let _ = config.set_congestion_threshold(48);
    let _ = config.set_time_granularity(Duration::from_nanos(1));
}

fn kernel_options(options: &FuseOptions) -> Vec<&str> {
    let mut list = vec!["default_permissions"];
    list.extend(options.allow_other.then_some("allow_other"));
    list.extend(options.read_only.then_some("ro"));
    list.extend(options.extra.iter().map(String::as_str));
    list
}

fn mount_options(options: &FuseOptions) -> Vec<MountOption> {
    let mut list = vec![
        MountOption::FSName(options.name.clone()),
        MountOption::Subtype("avidfs".into()),
        MountOption::DefaultPermissions,
    ];
    if options.read_only {
        list.push(MountOption::RO);
    }
    // fusermount3 does not know these words. Times of access are the daemon's to note, and it was told.
    let unknown = ["relatime", "strictatime", "diratime", "nodiratime", "symfollow", "nosymfollow"];
    let known = options.extra.iter().filter(|option| !unknown.contains(&option.as_str()));
    list.extend(known.map(|option| match option.as_str() {
        "nosuid" => MountOption::NoSuid,
        "suid" => MountOption::Suid,
        "nodev" => MountOption::NoDev,
        "dev" => MountOption::Dev,
        "noexec" => MountOption::NoExec,
        "exec" => MountOption::Exec,
        "noatime" => MountOption::NoAtime,
        "atime" => MountOption::Atime,
        "dirsync" => MountOption::DirSync,
        "sync" => MountOption::Sync,
        "async" => MountOption::Async,
        other => MountOption::CUSTOM(other.into()),
    }));
    list
}

struct Fuse {
    volume: Arc<Volume>,
    runtime: Handle,
    control: PathBuf,
    /// What tells the kernel that something it was told is no longer so.
    notifier: Arc<OnceLock<Notifier>>,
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
        node: INodeNo,
    ) -> Result<Option<impl Future<Output = ()> + Send + 'static>> {
        if req.uid() == 0 || !self.volume.clear_set_id(ino(node))? {
            return Ok(None);
        }
        // On a thread of its own: the kernel may ask us something before it takes the notice.
        let tell = |notifier: Notifier| {
            // Attributes alone; an inode the kernel has forgotten needs no notice.
            self.runtime.spawn_blocking(move || drop(notifier.inval_inode(node, -1, 0)))
        };
        let told = self.notifier.get().cloned().map(tell);
        Ok(Some(async move {
            if let Some(told) = told {
                let _ = told.await;
            }
        }))
    }

    /// Write what has to wait for something, and then perhaps for room.
    fn write_later(
        &self,
        (node, offset, data, now): (Ino, u64, &[u8], Time),
        before: impl Future<Output = ()> + Send + 'static,
        lasting: impl Send + 'static,
        reply: ReplyWrite,
    ) {
        let (volume, data) = (self.volume.clone(), Bytes::copy_from_slice(data));
        self.begin(async move {
            let _lasting = lasting;
            before.await;
            let length = data.len() as u32;
            match volume.write(node, offset, data, now).await {
                Ok(()) => reply.written(length),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    /// An inode of this mode under a new name.
    fn make(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        (mode, umask): (u32, u32),
        more: NewInode,
    ) -> Result<Inode> {
        let new = NewInode { mode, uid: req.uid(), gid: req.gid(), ..more };
        self.volume.create(ino(parent), name.as_bytes(), new, umask, caller(req))
    }
}

/// Whether reads through such a handle count as accesses.
fn notes_access(flags: OpenFlags) -> bool {
    flags.0 & libc::O_ACCMODE != libc::O_WRONLY && flags.0 & libc::O_NOATIME == 0
}

/// Whether the caller is root or in a group, by what the kernel tells of the process; one that has ended is not.
fn is_in_group(req: &Request, group: u32) -> bool {
    req.uid() == 0 || req.gid() == group || host::groups_of(req.pid()).contains(&group)
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

fn ino(ino: INodeNo) -> Ino {
    Ino(ino.0)
}

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), now: Time::now() }
}

/// The errno of an error, which is logged here, once, if somebody should read about it.
fn errno(error: &Error) -> Errno {
    if error.is_trouble() {
        tracing::warn!(%error, "a request failed");
    }
    Errno::from_i32(error.errno())
}

/// fuser 0.18 takes nanoseconds before 1970 for negative ones as well; the kernel counts them upwards.
fn time_from_kernel(time: SystemTime) -> Time {
    match time.duration_since(UNIX_EPOCH) {
        Ok(_) => time.into(),
        Err(error) => {
            let before = error.duration();
            Time { seconds: -(before.as_secs() as i64), nanos: before.subsec_nanos() }
        }
    }
}

fn set_time(time: Option<TimeOrNow>) -> Option<SetTime> {
    time.map(|time| match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(within_ext4s_range(time_from_kernel(time))),
    })
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

fn kind(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

fn attr(inode: &Inode) -> FileAttr {
    FileAttr {
        ino: INodeNo(inode.ino.0),
        size: inode.size,
        blocks: inode.allocated.div_ceil(512),
        atime: inode.atime.into(),
        mtime: inode.mtime.into(),
        ctime: inode.ctime.into(),
        crtime: inode.btime.into(),
        kind: kind(inode.mode),
        perm: (inode.mode & 0o7777) as u16,
        // As ext4: what a directory has that is not counted any more.
        nlink: if inode.is_directory() && inode.links >= MAX_LINKS { 1 } else { inode.links },
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
        blksize: if kind(inode.mode) == FileType::RegularFile { PREFERRED } else { 4096 },
        flags: 0,
    }
}

/// What tells the kernel that there is no such name, so that it remembers that, too.
fn nothing() -> FileAttr {
    let never = UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: never,
        mtime: never,
        ctime: never,
        crtime: never,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn reply_entry(reply: ReplyEntry, result: Result<Inode>) {
    match result {
        Ok(inode) => reply.entry(&TTL, &attr(&inode), GENERATION),
        Err(error) => reply.error(errno(&error)),
    }
}

fn reply_empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

fn reply_data(reply: ReplyData, result: Result<Vec<Bytes>>) {
    match result {
        Ok(parts) => match parts.as_slice() {
            [] => reply.data(&[]),
            [whole] => reply.data(whole),
            _ => reply.data(&parts.concat()),
        },
        Err(error) => reply.error(errno(&error)),
    }
}

fn reply_xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(&error)),
    }
}

impl Filesystem for Fuse {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        agree(config);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _lasting = stages::begin(Stage::Lookup);
        match self.volume.lookup(ino(parent), name.as_bytes()) {
            Err(Error::NotFound) => reply.entry(&TTL, &nothing(), GENERATION),
            result => reply_entry(reply, result),
        }
    }

    fn forget(&self, _req: &Request, node: INodeNo, nlookup: u64) {
        self.listings.forget(ino(node));
        self.prepared.forget(ino(node));
        self.volume.forget(ino(node), nlookup);
    }

    fn getattr(&self, _req: &Request, node: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let _lasting = stages::begin(Stage::Attributes);
        match self.volume.attributes(ino(node)) {
            Ok(inode) => reply.attr(&TTL, &attr(&inode)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _lasting = stages::begin(Stage::Change);
        let set = SetAttributes { mode, uid, gid, size, atime: set_time(atime), mtime: set_time(mtime) };
        match self.volume.set_attributes(ino(node), &set, caller(req)) {
            Ok(inode) => reply.attr(&TTL, &attr(&inode)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readlink(&self, _req: &Request, node: INodeNo, reply: ReplyData) {
        let _lasting = stages::begin(Stage::Attributes);
        let target =
            self.volume.accessed(ino(node), Time::now()).and_then(|()| self.volume.target(ino(node)));
        match target {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let _lasting = stages::begin(Stage::Change);
        let more = NewInode { rdev, ..NewInode::default() };
        reply_entry(reply, self.make(req, parent, name, (mode, umask), more));
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let _lasting = stages::begin(Stage::Change);
        let mode = libc::S_IFDIR | mode & 0o7777;
        reply_entry(reply, self.make(req, parent, name, (mode, umask), NewInode::default()));
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _lasting = stages::begin(Stage::Change);
        reply_empty(reply, self.volume.unlink(ino(parent), name.as_bytes(), caller(req)));
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _lasting = stages::begin(Stage::Change);
        reply_empty(reply, self.volume.rmdir(ino(parent), name.as_bytes(), caller(req)));
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let _lasting = stages::begin(Stage::Change);
        let more = NewInode { target: Some(target.as_os_str().as_bytes().to_vec()), ..NewInode::default() };
        reply_entry(reply, self.make(req, parent, name, (libc::S_IFLNK | 0o777, 0), more));
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let _lasting = stages::begin(Stage::Change);
        let mode = match flags {
            flags if flags.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return reply.error(Errno::EINVAL),
        };
        let (from, to) = ((ino(parent), name.as_bytes()), (ino(newparent), newname.as_bytes()));
        reply_empty(reply, self.volume.rename(from, to, mode, caller(req)));
    }

    fn link(&self, req: &Request, node: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let _lasting = stages::begin(Stage::Change);
        reply_entry(reply, self.volume.link(ino(node), ino(newparent), newname.as_bytes(), caller(req)));
    }

    fn open(&self, _req: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _lasting = stages::begin(Stage::Open);
        let noted = self.volume.open_file(ino(node)).and_then(|()| match notes_access(flags) {
            true => self.volume.opened_for_reading(ino(node), Time::now()),
            false => Ok(false),
        });
        // Through a handle that only reads nothing becomes dirty, so that its close has nothing to wait for.
        let only_reads = flags.0 & libc::O_ACCMODE == libc::O_RDONLY;
        let how = if only_reads { FopenFlags::FOPEN_NOFLUSH } else { FopenFlags::empty() };
        let opened = move |reply: ReplyOpen| reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | how);
        match (noted, self.notifier.get().cloned()) {
            (Ok(true), Some(notifier)) => {
                // On a thread of its own: the kernel may ask us something before it takes the notice.
                self.runtime.spawn_blocking(move || {
                    // Attributes alone, whatever the length; an inode the kernel has forgotten needs no notice.
                    let _ = notifier.inval_inode(node, -1, 0);
                    opened(reply);
                });
            }
            (Ok(_), _) => opened(reply),
            (Err(error), _) => reply.error(errno(&error)),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let _lasting = stages::begin(Stage::Change);
        let mode = libc::S_IFREG | mode & 0o7777;
        let created = self.make(req, parent, name, (mode, umask), NewInode::default());
        match created {
            Ok(inode) => {
                self.volume.open_created(&inode);
                reply.created(&TTL, &attr(&inode), GENERATION, FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn read(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let lasting = stages::begin(Stage::Read);
        let _inside = self.runtime.enter();
        let now = (flags.0 & libc::O_NOATIME == 0).then(Time::now);
        match self.volume.try_read(ino(node), offset, size, now) {
            Ok(Some(parts)) => reply_data(reply, Ok(parts)),
            Ok(None) => {
                let volume = self.volume.clone();
                self.begin(async move {
                    let _lasting = lasting;
                    reply_data(reply, volume.read(ino(node), offset, size).await);
                });
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn write(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let lasting = stages::begin(Stage::Write);
        let _inside = self.runtime.enter();
        let now = Time::now();
        let what = (ino(node), offset, data, now);
        if write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
            match self.clear_set_id(req, node) {
                Ok(None) => {}
                Ok(Some(told)) => return self.write_later(what, told, lasting, reply),
                Err(error) => return reply.error(errno(&error)),
            }
        }
        match self.volume.try_write(ino(node), offset, data, now) {
            Ok(Written::Done) => reply.written(data.len() as u32),
            Ok(Written::Full) => self.write_later(what, std::future::ready(()), lasting, reply),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let lasting = stages::begin(Stage::Flush);
        if self.volume.is_clean(ino(node)) {
            return reply.ok();
        }
        let volume = self.volume.clone();
        self.begin(async move {
            let _lasting = lasting;
            reply_empty(reply, volume.flush(ino(node)).await);
        });
    }

    fn release(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.volume.close_file(ino(node));
        reply.ok();
    }

    fn fsync(&self, _req: &Request, node: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let lasting = stages::begin(Stage::Sync);
        let volume = self.volume.clone();
        self.begin(async move {
            let _lasting = lasting;
            reply_empty(reply, volume.fsync(ino(node)).await);
        });
    }

    fn opendir(&self, _req: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let remembered = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
        let may_be = self.listings.may_be_remembered(ino(node));
        reply.opened(FileHandle(0), if may_be { remembered } else { FopenFlags::empty() });
    }

    fn readdir(&self, _req: &Request, node: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let _lasting = stages::begin(Stage::List);
        self.list_names(ino(node), offset, reply);
    }

    fn readdirplus(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let _lasting = stages::begin(Stage::List);
        self.list_entries(ino(node), offset, reply);
    }

    fn releasedir(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.prepared.forget(ino(node));
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _node: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let lasting = stages::begin(Stage::Sync);
        let volume = self.volume.clone();
        self.begin(async move {
            let _lasting = lasting;
            reply_empty(reply, volume.sync().await);
        });
    }

    fn statfs(&self, _req: &Request, _node: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u32 = 4096;
        let space = self.volume.space();
        let (total, free) = (space.total_bytes / u64::from(BLOCK), space.available_bytes / u64::from(BLOCK));
        match self.volume.inodes() {
            // An inode needs no room in the pool but for its bytes; as many may come as there are blocks.
            Ok(inodes) => reply.statfs(total, free, free, inodes + free, free, BLOCK, 255, BLOCK),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        node: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let _lasting = stages::begin(Stage::Change);
        if let Err(error) = check_xattr_name(name.as_bytes()) {
            return reply.error(errno(&error));
        }
        if [acl::ACCESS, acl::DEFAULT].contains(&name.as_bytes()) {
            let done = self.volume.attributes(ino(node)).and_then(|inode| {
                let drop_set_gid = !is_in_group(req, inode.gid);
                self.volume.set_acl(ino(node), name.as_bytes(), value, drop_set_gid, caller(req))
            });
            return reply_empty(reply, done);
        }
        reply_empty(reply, self.volume.set_xattr(ino(node), name.as_bytes(), value, flags, caller(req)));
    }

    fn getxattr(&self, _req: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _lasting = stages::begin(Stage::Attributes);
        if node == INodeNo::ROOT && name == CONTROL_XATTR {
            return reply_xattr(reply, size, Ok(self.control()));
        }
        let value = check_xattr_name(name.as_bytes());
        let value = value.and_then(|()| self.volume.xattr(ino(node), name.as_bytes()));
        reply_xattr(reply, size, value);
    }

    fn listxattr(&self, _req: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        let _lasting = stages::begin(Stage::Attributes);
        let joined = self.volume.xattrs(ino(node)).map(|names| {
            let terminated = names.into_iter().flat_map(|name| name.into_iter().chain([0]));
            terminated.collect()
        });
        reply_xattr(reply, size, joined);
    }

    fn removexattr(&self, req: &Request, node: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let _lasting = stages::begin(Stage::Change);
        let named = check_xattr_name(name.as_bytes());
        let done = named.and_then(|()| self.volume.remove_xattr(ino(node), name.as_bytes(), caller(req)));
        reply_empty(reply, done);
    }

    fn fallocate(
        &self,
        req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(end) = offset.checked_add(length) else { return reply.error(Errno::EFBIG) };
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let told = match self.clear_set_id(req, node) {
            Ok(told) => told,
            Err(error) => return reply.error(errno(&error)),
        };
        let node = ino(node);
        let result = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => self.volume.allocate(node, offset..end, keep_size, caller(req)),
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE => {
                self.volume.punch(node, offset..end, keep_size, caller(req))
            }
            _ => Err(Error::Unsupported),
        };
        match told {
            None => reply_empty(reply, result),
            Some(told) => self.begin(async move {
                told.await;
                reply_empty(reply, result);
            }),
        }
    }

    fn lseek(
        &self,
        _req: &Request,
        node: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        match self.volume.seek(ino(node), offset, data) {
            Ok(Some(found)) => reply.offset(found as i64),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let told = match self.clear_set_id(req, ino_out) {
            Ok(told) => told,
            Err(error) => return reply.error(errno(&error)),
        };
        // The answer is a u32: clip below 4 GiB, in whole pages.
        let length = len.min(u64::from(u32::MAX) & !4095);
        let (volume, caller) = (self.volume.clone(), caller(req));
        self.begin(async move {
            if let Some(told) = told {
                told.await;
            }
            let (from, to) = ((ino(ino_in), offset_in), (ino(ino_out), offset_out));
            match volume.copy_range(from, to, length, caller).await {
                Ok(copied) => reply.written(copied as u32),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_mean_what_the_kernel_meant() {
        // -1.2 s is sent as -2 s and 800,000,000 ns, which fuser decodes as 2.8 s before 1970.
        let decoded = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(time_from_kernel(decoded), Time { seconds: -2, nanos: 800_000_000 });
        assert_eq!(time_from_kernel(UNIX_EPOCH - Duration::new(5, 0)), Time { seconds: -5, nanos: 0 });
    }
}
