//! Answers, and the promise to give one.

use std::ffi::OsStr;
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::device::Device;
use super::ring::Place;
use crate::inode::Time;

/// An error of Linux, by its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

impl Errno {
    /// No such request.
    pub const ENOSYS: Errno = Errno(libc::ENOSYS);
    /// Something went wrong.
    pub const EIO: Errno = Errno(libc::EIO);
    /// It makes no sense.
    pub const EINVAL: Errno = Errno(libc::EINVAL);
    /// No such file.
    pub const ENOENT: Errno = Errno(libc::ENOENT);
    /// Too large for a file.
    pub const EFBIG: Errno = Errno(libc::EFBIG);
    /// No such offset.
    pub const ENXIO: Errno = Errno(libc::ENXIO);
    /// Too long for the caller's buffer.
    pub const ERANGE: Errno = Errno(libc::ERANGE);
    /// No such attribute.
    pub const ENODATA: Errno = Errno(libc::ENODATA);
}

/// The attributes of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Node {
    /// Its number; 0 says that there is no such name.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Room taken, in units of 512 bytes.
    pub blocks: u64,
    /// Time of the last access.
    pub atime: Time,
    /// Time of the last change of the content.
    pub mtime: Time,
    /// Time of the last change.
    pub ctime: Time,
    /// Type and permissions.
    pub mode: u32,
    /// Names that it has.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Of a device, which.
    pub rdev: u32,
    /// Bytes that are best read and written at once.
    pub block_size: u32,
}

/// What a name stands for, and how long that may be believed.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The inode.
    pub node: Node,
    /// For so long the name stands for it, and it has these attributes.
    pub valid: Duration,
}

/// What an inode is, and how long that may be believed.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// The inode.
    pub node: Node,
    /// For so long.
    pub valid: Duration,
}

/// It is open, with these flags of `opened`.
#[derive(Clone, Copy, Debug)]
pub struct Opened(pub u32);

/// It is there, and open.
#[derive(Clone, Copy, Debug)]
pub struct Created {
    /// What it is.
    pub entry: Entry,
    /// How it is open.
    pub opened: Opened,
}

/// So many bytes were written.
#[derive(Clone, Copy, Debug)]
pub struct Written(pub u32);

/// An offset in a file.
#[derive(Clone, Copy, Debug)]
pub struct Offset(pub u64);

/// How much room there is, as statvfs(3) has it.
#[derive(Clone, Copy, Debug)]
pub struct Statistics {
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks that are free, for whoever.
    pub free: u64,
    /// Inodes in all.
    pub files: u64,
    /// Inodes that may still come.
    pub files_free: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// Longest name, bytes.
    pub name_length: u32,
}

/// Bytes, in parts.
#[derive(Clone, Debug, Default)]
pub struct Data(pub Vec<Bytes>);

/// An extended attribute.
#[derive(Clone, Debug)]
pub enum Xattr {
    /// How long it is.
    Length(u32),
    /// It.
    Value(Vec<u8>),
}

/// Entries of a directory, as many as the caller has room for.
#[derive(Debug)]
pub struct Listing {
    bytes: Vec<u8>,
    room: usize,
}

impl Listing {
    pub(super) fn new(room: u32) -> Listing {
        let room = room as usize;
        Listing { bytes: Vec::with_capacity(room), room }
    }

    /// Add a name, the cookie to go on after it, and what it stands for; whether there was no room for it.
    pub fn name(&mut self, ino: u64, cookie: u64, mode: u32, name: &OsStr) -> bool {
        let length = dirent_length(name);
        if self.bytes.len() + length > self.room {
            return true;
        }
        self.dirent(ino, cookie, mode, name);
        false
    }

    /// Add an entry with its attributes, likewise.
    pub fn entry(&mut self, entry: &Entry, cookie: u64, name: &OsStr) -> bool {
        const ENTRY: usize = 128;
        if self.bytes.len() + ENTRY + dirent_length(name) > self.room {
            return true;
        }
        let mut head = Head::default();
        entry.encode(&mut head);
        self.bytes.extend_from_slice(head.bytes());
        self.dirent(entry.node.ino, cookie, entry.node.mode, name);
        false
    }

    fn dirent(&mut self, ino: u64, cookie: u64, mode: u32, name: &OsStr) {
        let end = self.bytes.len() + dirent_length(name);
        let name = name.as_bytes();
        self.bytes.extend_from_slice(&ino.to_ne_bytes());
        self.bytes.extend_from_slice(&cookie.to_ne_bytes());
        self.bytes.extend_from_slice(&(name.len() as u32).to_ne_bytes());
        // As in the type of a mode, shifted.
        self.bytes.extend_from_slice(&((mode & libc::S_IFMT) >> 12).to_ne_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
    }
}

/// A name with what stands before it, in whole words.
fn dirent_length(name: &OsStr) -> usize {
    (24 + name.len()).next_multiple_of(8)
}

/// The fixed part of an answer: whole words in native order, at most 160 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; Head::MOST],
    length: usize,
}

impl Default for Head {
    fn default() -> Head {
        Head { bytes: [0; Head::MOST], length: 0 }
    }
}

impl Head {
    const MOST: usize = 160;

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    pub(super) fn u64(&mut self, number: u64) -> &mut Head {
        self.put(&number.to_ne_bytes())
    }

    pub(super) fn u32(&mut self, number: u32) -> &mut Head {
        self.put(&number.to_ne_bytes())
    }

    pub(super) fn u16(&mut self, number: u16) -> &mut Head {
        self.put(&number.to_ne_bytes())
    }

    pub(super) fn zeros(&mut self, count: usize) -> &mut Head {
        self.length += count;
        self
    }

    fn put(&mut self, bytes: &[u8]) -> &mut Head {
        self.bytes[self.length..][..bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
        self
    }

    fn node(&mut self, node: &Node) -> &mut Head {
        let Node { atime, mtime, ctime, .. } = node;
        self.u64(node.ino).u64(node.size).u64(node.blocks);
        self.u64(atime.seconds as u64).u64(mtime.seconds as u64).u64(ctime.seconds as u64);
        self.u32(atime.nanos).u32(mtime.nanos).u32(ctime.nanos);
        self.u32(node.mode).u32(node.links).u32(node.uid).u32(node.gid);
        self.u32(node.rdev).u32(node.block_size).u32(0)
    }
}

/// What can be answered.
pub trait Answer {
    /// Write its fixed part.
    fn encode(&self, head: &mut Head);

    /// What follows that.
    fn data(self) -> Vec<Bytes>;
}

/// Of an answer that is no more than its fixed part, that.
macro_rules! answers {
    ($($kind:ty: |$answer:ident, $head:ident| $encode:expr;)*) => {$(
        impl Answer for $kind {
            fn encode(&self, $head: &mut Head) {
                let $answer = self;
                $encode;
            }

            fn data(self) -> Vec<Bytes> {
                Vec::new()
            }
        }
    )*};
}

answers! {
    (): |_nothing, _head| {};
    Entry: |entry, head| {
        let (seconds, nanos) = (entry.valid.as_secs(), entry.valid.subsec_nanos());
        // The inode's generation is always 0: numbers are not used again.
        head.u64(entry.node.ino).u64(0).u64(seconds).u64(seconds).u32(nanos).u32(nanos).node(&entry.node)
    };
    Attributes: |attributes, head| {
        let valid = attributes.valid;
        head.u64(valid.as_secs()).u32(valid.subsec_nanos()).u32(0).node(&attributes.node)
    };
    // There are no file handles: inodes are asked.
    Opened: |opened, head| head.u64(0).u32(opened.0).u32(0);
    Created: |created, head| {
        created.entry.encode(head);
        created.opened.encode(head);
    };
    Written: |written, head| head.u32(written.0).u32(0);
    Offset: |offset, head| head.u64(offset.0);
    Statistics: |of, head| {
        head.u64(of.blocks).u64(of.free).u64(of.free).u64(of.files).u64(of.files_free);
        head.u32(of.block_size).u32(of.name_length).u32(of.block_size).zeros(28)
    };
}

impl Answer for Data {
    fn encode(&self, _head: &mut Head) {}

    fn data(self) -> Vec<Bytes> {
        self.0
    }
}

impl Answer for Listing {
    fn encode(&self, _head: &mut Head) {}

    fn data(self) -> Vec<Bytes> {
        vec![self.bytes.into()]
    }
}

impl Answer for Xattr {
    fn encode(&self, head: &mut Head) {
        if let Xattr::Length(length) = self {
            head.u32(*length).u32(0);
        }
    }

    fn data(self) -> Vec<Bytes> {
        match self {
            Xattr::Length(_) => Vec::new(),
            Xattr::Value(value) => vec![value.into()],
        }
    }
}

/// Where an answer goes.
#[derive(Debug)]
pub(super) enum Way {
    /// To the device, for the request of this number.
    Device(Arc<Device>, u64),
    /// To the place in a ring that the request lies in.
    Ring(Place),
}

impl Way {
    pub(super) fn send(self, answer: Result<(Head, Vec<Bytes>), Errno>) {
        let (error, head, data) = match answer {
            Ok((head, data)) => (0, head, data),
            Err(Errno(error)) => (-error, Head::default(), Vec::new()),
        };
        match self {
            Way::Ring(place) => place.answer(error, head, data),
            Way::Device(device, unique) => device.answer(unique, error, head.bytes(), &data),
        }
    }
}

/// The promise of an answer: exactly one is given, from whatever thread, and if none is, then that something went wrong.
#[derive(Debug)]
#[must_use]
pub struct Reply<A> {
    way: Option<Way>,
    answers: PhantomData<fn(A)>,
}

impl<A> Reply<A> {
    pub(super) fn new(way: Way) -> Reply<A> {
        Reply { way: Some(way), answers: PhantomData }
    }

    /// It failed.
    pub fn error(mut self, error: Errno) {
        self.send(Err(error));
    }

    fn send(&mut self, answer: Result<(Head, Vec<Bytes>), Errno>) {
        if let Some(way) = self.way.take() {
            way.send(answer);
        }
    }
}

impl<A: Answer> Reply<A> {
    /// Answer.
    pub fn ok(mut self, answer: A) {
        let mut head = Head::default();
        answer.encode(&mut head);
        self.send(Ok((head, answer.data())));
    }

    /// Answer, or say what went wrong.
    pub fn answer(self, result: Result<A, Errno>) {
        match result {
            Ok(answer) => self.ok(answer),
            Err(error) => self.error(error),
        }
    }
}

impl<A> Drop for Reply<A> {
    fn drop(&mut self) {
        if self.way.is_some() {
            tracing::warn!("a request of the kernel was left without an answer");
            self.send(Err(Errno::EIO));
        }
    }
}
