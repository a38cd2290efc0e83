//! The numbers of include/uapi/linux/fuse.h that are used here.

/// Version of the protocol spoken: 7.42 is the first with rings.
pub(super) const MAJOR: u32 = 7;
pub(super) const MINOR: u32 = 42;
/// Before 7.23 what the kernel is told at the beginning was shorter.
pub(super) const OLDEST_MINOR: u32 = 23;

/// Bytes of what a request begins with.
pub(super) const IN_HEADER: usize = 40;
/// Bytes of what an answer begins with.
pub(super) const OUT_HEADER: usize = 16;

/// What a request asks for.
pub(super) mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
}

/// What kernel and daemon agree on at the beginning.
pub mod agree {
    /// Reads of one file may be under way at once.
    pub const ASYNC_READ: u64 = 1 << 0;
    /// Writes may be larger than a page.
    pub const BIG_WRITES: u64 = 1 << 5;
    /// The umask comes along instead of being applied: a default access control list takes its place.
    pub const DONT_MASK: u64 = 1 << 6;
    /// Attributes may be listed along with names,
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    /// where somebody looks at them.
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    /// Direct reads and writes of one call may be under way at once.
    pub const ASYNC_DIO: u64 = 1 << 15;
    /// Lookups and listings of a directory may be under way at once.
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    /// There are access control lists, for the kernel to look at.
    pub const POSIX_ACL: u64 = 1 << 20;
    /// A request may have more pages than 32.
    pub const MAX_PAGES: u64 = 1 << 22;
    /// Targets of symbolic links are remembered.
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    /// Remembered pages stay when an mtime moves.
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    /// Set-id bits are taken away by the daemon.
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    /// There are flags beyond the 32nd.
    pub const INIT_EXT: u64 = 1 << 30;
    /// Requests come in rings.
    pub const OVER_IO_URING: u64 = 1 << 41;
}

/// How a file or directory is open.
pub mod opened {
    /// What the kernel remembers of the content stays.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// It may remember the listing.
    pub const CACHE_DIR: u32 = 1 << 3;
    /// A close need not tell.
    pub const NOFLUSH: u32 = 1 << 5;
}

/// Which fields of a SETATTR count.
pub(super) mod set {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
}

/// Of a WRITE: set-id bits have to go.
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;

/// Code of the notice that what is remembered of an inode is no longer so.
pub(super) const NOTIFY_INVAL_INODE: i32 = 2;
