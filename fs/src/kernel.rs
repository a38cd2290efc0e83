//! The kernel's side of FUSE: what it asks and how it is answered. It knows no volume.
//!
//! Requests come in one of two ways. From /dev/fuse (device.rs), by reading and writing it: each costs two system calls,
//! and a thread that waits for any request is woken, on whatever processor the kernel takes. Or in rings shared with the
//! kernel (ring.rs; FUSE over io_uring, Linux 6.14), one for each processor, whose thread stays there: the processor that
//! asks goes on with the answer, and nobody is woken elsewhere.
//!
//! The protocol is that of include/uapi/linux/fuse.h, 7.42: native byte order, all numbers aligned.

mod device;
mod dispatch;
mod notice;
mod protocol;
mod reply;
mod ring;
mod session;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;

use crate::inode::SetAttributes;

pub use self::notice::Notifier;
pub use self::protocol::{agree, opened};
pub use self::reply::{
    Attributes, Created, Data, Entry, Errno, Listing, Node, Offset, Opened, Reply, Statistics, Written, Xattr,
};
pub use self::session::{Agreement, Session};

/// Inode number of the root.
pub const ROOT: u64 = 1;

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The inode it is about; of names, the directory.
    pub node: u64,
    /// The caller's user, as the file system that it was mounted from sees it.
    pub uid: u32,
    /// The caller's group.
    pub gid: u32,
    /// The caller's process; 0 of what the kernel does by itself.
    pub pid: u32,
}

/// How an inode comes to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Make {
    /// Type and permissions, as asked for.
    pub mode: u32,
    /// What the caller wants to have taken away from them.
    pub umask: u32,
    /// Of a device, which.
    pub rdev: u32,
}

/// A stretch of a file that is written.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// From here on.
    pub offset: u64,
    /// These bytes.
    pub data: &'a [u8],
    /// Whether set-user-id and set-group-id bits have to go.
    pub clears_set_id: bool,
}

/// A file system as the kernel asks it. A request that is not answered when its `Reply` is dropped fails with EIO. Of
/// what has no method here, and of the methods not overridden, the kernel is told that there is no such thing (ENOSYS).
///
/// Methods are called on the threads that take requests: while one runs, others wait, so what takes long goes elsewhere
/// with its reply.
#[allow(unused_variables)]
pub trait Filesystem: Send + Sync + 'static {
    /// The inode of a name; it is remembered until it is forgotten.
    fn lookup(&self, request: &Request, name: &OsStr, reply: Reply<Entry>) {
        reply.error(Errno::ENOSYS);
    }

    /// The kernel forgets an inode that it was told `count` times.
    fn forget(&self, node: u64, count: u64) {}

    /// What an inode is.
    fn getattr(&self, request: &Request, reply: Reply<Attributes>) {
        reply.error(Errno::ENOSYS);
    }

    /// Change it.
    fn setattr(&self, request: &Request, change: SetAttributes, reply: Reply<Attributes>) {
        reply.error(Errno::ENOSYS);
    }

    /// The target of a symbolic link.
    fn readlink(&self, request: &Request, reply: Reply<Data>) {
        reply.error(Errno::ENOSYS);
    }

    /// A new symbolic link.
    fn symlink(&self, request: &Request, name: &OsStr, target: &[u8], reply: Reply<Entry>) {
        reply.error(Errno::ENOSYS);
    }

    /// A new file that is not opened, pipe, socket or device.
    fn mknod(&self, request: &Request, name: &OsStr, make: Make, reply: Reply<Entry>) {
        reply.error(Errno::ENOSYS);
    }

    /// A new directory.
    fn mkdir(&self, request: &Request, name: &OsStr, make: Make, reply: Reply<Entry>) {
        reply.error(Errno::ENOSYS);
    }

    /// Remove a name of what is no directory.
    fn unlink(&self, request: &Request, name: &OsStr, reply: Reply<()>) {
        reply.error(Errno::ENOSYS);
    }

    /// Remove a directory.
    fn rmdir(&self, request: &Request, name: &OsStr, reply: Reply<()>) {
        reply.error(Errno::ENOSYS);
    }

    /// Give another name, in another directory perhaps; `flags` are those of renameat2(2).
    fn rename(&self, request: &Request, name: &OsStr, to: (u64, &OsStr), flags: u32, reply: Reply<()>) {
        reply.error(Errno::ENOSYS);
    }

    /// One more name, in the directory that is asked, of the inode `node`.
    fn link(&self, request: &Request, node: u64, name: &OsStr, reply: Reply<Entry>) {
        reply.error(Errno::ENOSYS);
    }

    /// Open a file; `flags` are those of open(2).
    fn open(&self, request: &Request, flags: i32, reply: Reply<Opened>) {
        reply.error(Errno::ENOSYS);
    }

    /// A new file that is open.
    fn create(&self, request: &Request, name: &OsStr, make: Make, reply: Reply<Created>) {
        reply.error(Errno::ENOSYS);
    }

    /// Read from a file that was opened with these flags; fewer bytes than asked for are its end.
    fn read(&self, request: &Request, offset: u64, size: u32, flags: i32, reply: Reply<Data>) {
        reply.error(Errno::ENOSYS);
    }

    /// Write.
    fn write(&self, request: &Request, write: Write<'_>, reply: Reply<Written>) {
        reply.error(Errno::ENOSYS);
    }

    /// Somebody closes a descriptor.
    fn flush(&self, request: &Request, reply: Reply<()>) {
        reply.error(Errno::ENOSYS);
    }

    /// The last descriptor of an `open` is gone.
    fn release(&self, request: &Request, reply: Reply<()>) {
        reply.ok(());
    }

    /// Bring what was written to where it lasts.
    fn fsync(&self, request: &Request, reply: Reply<()>) {
        reply.error(Errno::ENOSYS);
    }

    /// Open a directory.
    fn opendir(&self, request: &Request, reply: Reply<Opened>) {
        reply.error(Errno::ENOSYS);
    }

    /// Names and types after a cookie, 0 for the first, as many as the listing takes.
    fn readdir(&self, request: &Request, offset: u64, listing: Listing, reply: Reply<Listing>) {
        reply.error(Errno::ENOSYS);
    }

    /// Entries with their attributes, likewise. Those handed out count as looked up, but for the two dots.
    fn readdirplus(&self, request: &Request, offset: u64, listing: Listing, reply: Reply<Listing>) {
        reply.error(Errno::ENOSYS);
    }

    /// A directory is closed.
    fn releasedir(&self, request: &Request, reply: Reply<()>) {
        reply.ok(());
    }

    /// Bring a directory to where it lasts.
    fn fsyncdir(&self, request: &Request, reply: Reply<()>) {
        reply.error(Errno::ENOSYS);
    }

    /// How much room there is.
    fn statfs(&self, request: &Request, reply: Reply<Statistics>) {
        reply.error(Errno::ENOSYS);
    }

    /// Set an extended attribute; `flags` are those of setxattr(2).
    fn setxattr(&self, request: &Request, name: &OsStr, value: &[u8], flags: i32, reply: Reply<()>) {
        reply.error(Errno::ENOSYS);
    }

    /// An extended attribute; with a size of 0, how long it is.
    fn getxattr(&self, request: &Request, name: &OsStr, size: u32, reply: Reply<Xattr>) {
        reply.error(Errno::ENOSYS);
    }

    /// The names of all, each with a zero after it; with a size of 0, how long they are.
    fn listxattr(&self, request: &Request, size: u32, reply: Reply<Xattr>) {
        reply.error(Errno::ENOSYS);
    }

    /// Remove an extended attribute.
    fn removexattr(&self, request: &Request, name: &OsStr, reply: Reply<()>) {
        reply.error(Errno::ENOSYS);
    }

    /// Set room aside or give it back; `mode` is that of fallocate(2).
    fn fallocate(&self, request: &Request, offset: u64, length: u64, mode: i32, reply: Reply<()>) {
        reply.error(Errno::ENOSYS);
    }

    /// Where the next data or hole is; `whence` is that of lseek(2).
    fn lseek(&self, request: &Request, offset: i64, whence: i32, reply: Reply<Offset>) {
        reply.error(Errno::ENOSYS);
    }

    /// Copy a stretch of the file that is asked to another, each with the offset.
    fn copy_file_range(
        &self,
        request: &Request,
        offset: u64,
        to: (u64, u64),
        length: u64,
        reply: Reply<Written>,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
