//! A request's bytes, and the method that they ask for.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::protocol::{IN_HEADER, WRITE_KILL_SUIDGID, opcode, set};
use super::reply::{Errno, Listing, Reply, Way};
use super::{Filesystem, Make, Request, Write};
use crate::inode::{SetAttributes, SetTime, Time};

/// What a request begins with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) length: u32,
    pub(super) opcode: u32,
    /// Its number; the answer carries it too.
    pub(super) unique: u64,
    pub(super) request: Request,
}

impl Header {
    /// Read it; `None` of fewer bytes than it has.
    pub(super) fn of(bytes: &[u8]) -> Option<Header> {
        let mut fields = Fields(bytes.get(..IN_HEADER)?);
        Some(Header {
            length: fields.u32()?,
            opcode: fields.u32()?,
            unique: fields.u64()?,
            request: Request {
                node: fields.u64()?,
                uid: fields.u32()?,
                gid: fields.u32()?,
                pid: fields.u32()?,
            },
        })
    }

    /// Whether the kernel wants an answer.
    pub(super) fn is_answered(&self) -> bool {
        !matches!(self.opcode, opcode::FORGET | opcode::BATCH_FORGET)
    }
}

/// Ask a file system what a request, without its header, asks for.
pub(super) fn dispatch(fs: &impl Filesystem, header: &Header, body: &[u8], way: Way) {
    let mut way = Some(way);
    // Whatever panics has answered by that, with EIO. The thread goes on: others wait for it.
    let asked = catch_unwind(AssertUnwindSafe(|| ask(fs, header, Fields(body), &mut way)));
    match way {
        Some(way) if header.is_answered() => {
            tracing::error!(opcode = header.opcode, ?asked, "a request of the kernel without an answer");
            way.send(Err(Errno::EIO));
        }
        // Nobody waits, but the place is wanted again.
        Some(way @ Way::Ring(_)) => way.send(Ok(Default::default())),
        _ => {}
    }
}

/// `None` if the request is shorter than such a one is; then the way was not taken.
fn ask(fs: &impl Filesystem, header: &Header, mut body: Fields<'_>, way: &mut Option<Way>) -> Option<()> {
    let request = &header.request;
    /// The promise of an answer; of what kind, the method says.
    macro_rules! reply {
        () => {
            Reply::new(way.take()?)
        };
    }
    match header.opcode {
        opcode::LOOKUP => fs.lookup(request, body.name()?, reply!()),
        opcode::FORGET => fs.forget(request.node, body.u64()?),
        opcode::BATCH_FORGET => {
            let (count, _) = (body.u32()?, body.u32()?);
            for _ in 0..count {
                fs.forget(body.u64()?, body.u64()?);
            }
        }
        opcode::GETATTR => fs.getattr(request, reply!()),
        opcode::SETATTR => fs.setattr(request, body.change()?, reply!()),
        opcode::READLINK => fs.readlink(request, reply!()),
        opcode::SYMLINK => {
            let (name, target) = (body.name()?, body.name()?);
            fs.symlink(request, name, target.as_bytes(), reply!());
        }
        opcode::MKNOD => {
            let [mode, rdev, umask, _] = body.words()?;
            fs.mknod(request, body.name()?, Make { mode, umask, rdev }, reply!());
        }
        opcode::MKDIR => {
            let [mode, umask] = body.words()?;
            fs.mkdir(request, body.name()?, Make { mode, umask, rdev: 0 }, reply!());
        }
        opcode::CREATE => {
            let [_flags, mode, umask, _] = body.words()?;
            fs.create(request, body.name()?, Make { mode, umask, rdev: 0 }, reply!());
        }
        opcode::UNLINK => fs.unlink(request, body.name()?, reply!()),
        opcode::RMDIR => fs.rmdir(request, body.name()?, reply!()),
        opcode::RENAME | opcode::RENAME2 => {
            let to = body.u64()?;
            let [flags, _] = if header.opcode == opcode::RENAME2 { body.words()? } else { [0, 0] };
            let (from_name, to_name) = (body.name()?, body.name()?);
            fs.rename(request, from_name, (to, to_name), flags, reply!());
        }
        opcode::LINK => {
            let node = body.u64()?;
            fs.link(request, node, body.name()?, reply!());
        }
        opcode::OPEN => fs.open(request, body.u32()? as i32, reply!()),
        opcode::READ => {
            let stretch = body.stretch()?;
            fs.read(request, stretch.offset, stretch.size, stretch.open_flags, reply!());
        }
        opcode::WRITE => {
            let stretch = body.stretch()?;
            let write = Write {
                offset: stretch.offset,
                data: body.bytes(stretch.size as usize)?,
                clears_set_id: stretch.flags & WRITE_KILL_SUIDGID != 0,
            };
            fs.write(request, write, reply!());
        }
        opcode::STATFS => fs.statfs(request, reply!()),
        opcode::FLUSH => fs.flush(request, reply!()),
        opcode::RELEASE => fs.release(request, reply!()),
        opcode::FSYNC => fs.fsync(request, reply!()),
        opcode::OPENDIR => fs.opendir(request, reply!()),
        opcode::READDIR => {
            let stretch = body.stretch()?;
            fs.readdir(request, stretch.offset, Listing::new(stretch.size), reply!());
        }
        opcode::READDIRPLUS => {
            let stretch = body.stretch()?;
            fs.readdirplus(request, stretch.offset, Listing::new(stretch.size), reply!());
        }
        opcode::RELEASEDIR => fs.releasedir(request, reply!()),
        opcode::FSYNCDIR => fs.fsyncdir(request, reply!()),
        opcode::SETXATTR => {
            let [size, flags] = body.words()?;
            let name = body.name()?;
            fs.setxattr(request, name, body.bytes(size as usize)?, flags as i32, reply!());
        }
        opcode::GETXATTR => {
            let [size, _] = body.words()?;
            fs.getxattr(request, body.name()?, size, reply!());
        }
        opcode::LISTXATTR => fs.listxattr(request, body.u32()?, reply!()),
        opcode::REMOVEXATTR => fs.removexattr(request, body.name()?, reply!()),
        opcode::FALLOCATE => {
            let (_handle, offset, length) = (body.u64()?, body.u64()?, body.u64()?);
            fs.fallocate(request, offset, length, body.u32()? as i32, reply!());
        }
        opcode::LSEEK => {
            let (_handle, offset) = (body.u64()?, body.u64()?);
            fs.lseek(request, offset as i64, body.u32()? as i32, reply!());
        }
        opcode::COPY_FILE_RANGE => {
            let (_handle, offset, node) = (body.u64()?, body.u64()?, body.u64()?);
            let (_handle_out, offset_out, length) = (body.u64()?, body.u64()?, body.u64()?);
            fs.copy_file_range(request, offset, (node, offset_out), length, reply!());
        }
        opcode::DESTROY => Reply::<()>::new(way.take()?).ok(()),
        // Interrupts too: from the device the kernel sends no further ones then.
        _ => Reply::<()>::new(way.take()?).error(Errno::ENOSYS),
    }
    Some(())
}

/// What is read or written of a file or a directory.
struct Stretch {
    offset: u64,
    size: u32,
    flags: u32,
    open_flags: i32,
}

/// The bytes of a request that are not yet read, in native order.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_ne_bytes)
    }

    fn words<const N: usize>(&mut self) -> Option<[u32; N]> {
        let mut words = [0; N];
        for word in &mut words {
            *word = self.u32()?;
        }
        Some(words)
    }

    /// Bytes up to a zero.
    fn name(&mut self) -> Option<&'a OsStr> {
        let length = self.0.iter().position(|byte| *byte == 0)?;
        let name = self.bytes(length + 1)?;
        Some(OsStr::from_bytes(&name[..length]))
    }

    fn stretch(&mut self) -> Option<Stretch> {
        let (_handle, offset) = (self.u64()?, self.u64()?);
        let [size, flags] = self.words()?;
        let _lock_owner = self.u64()?;
        let [open_flags, _] = self.words()?;
        Some(Stretch { offset, size, flags, open_flags: open_flags as i32 })
    }

    fn change(&mut self) -> Option<SetAttributes> {
        let [valid, _] = self.words()?;
        let (_handle, size, _lock_owner) = (self.u64()?, self.u64()?, self.u64()?);
        let (atime, mtime, _ctime) = (self.u64()?, self.u64()?, self.u64()?);
        let [atime_nanos, mtime_nanos, _ctime_nanos, mode, _, uid, gid, _] = self.words()?;
        let said = |field| valid & field != 0;
        let time = |field, now, seconds: u64, nanos| match (said(field), said(now)) {
            (_, true) => Some(SetTime::Now),
            // Nanoseconds count upwards before 1970 too.
            (true, false) => Some(SetTime::At(Time { seconds: seconds as i64, nanos })),
            (false, false) => None,
        };
        Some(SetAttributes {
            mode: said(set::MODE).then_some(mode),
            uid: said(set::UID).then_some(uid),
            gid: said(set::GID).then_some(gid),
            size: said(set::SIZE).then_some(size),
            atime: time(set::ATIME, set::ATIME_NOW, atime, atime_nanos),
            mtime: time(set::MTIME, set::MTIME_NOW, mtime, mtime_nanos),
        })
    }
}
