//! Files and directories in memory, asked by the kernel as avidfs is asked, with the same time to trust an answer.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::{Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use avidfs::fuse::{PREFERRED, TTL, agree};
use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};

use crate::pipeline::{OBJECT, Pipeline};

/// With nodes, the bytes of a file from here on go there alone.
const LARGE: u64 = OBJECT as u64;

/// See the module.
pub struct Memory {
    tree: Mutex<Tree>,
    pipeline: Option<Pipeline>,
}

struct Tree {
    nodes: HashMap<u64, Node>,
    last: u64,
}

struct Node {
    attr: FileAttr,
    parent: u64,
    bytes: Vec<u8>,
    entries: BTreeMap<OsString, u64>,
}

impl Memory {
    /// An empty one.
    pub fn new(pipeline: Option<Pipeline>) -> Memory {
        let mut tree = Tree { nodes: HashMap::new(), last: 0 };
        tree.add(1, FileType::Directory, 0o755);
        Memory { tree: Mutex::new(tree), pipeline }
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap()
    }
}

impl Tree {
    fn add(&mut self, parent: u64, kind: FileType, mode: u32) -> FileAttr {
        self.last += 1;
        let now = SystemTime::now();
        let attr = FileAttr {
            ino: INodeNo(self.last),
            size: 0,
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: UNIX_EPOCH,
            kind,
            perm: (mode & 0o7777) as u16,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: PREFERRED,
            flags: 0,
        };
        self.nodes.insert(self.last, Node { attr, parent, bytes: Vec::new(), entries: BTreeMap::new() });
        attr
    }

    fn make(&mut self, parent: INodeNo, name: &OsStr, kind: FileType, mode: u32) -> FileAttr {
        let attr = self.add(parent.0, kind, mode);
        self.node(parent).entries.insert(name.to_owned(), attr.ino.0);
        attr
    }

    fn node(&mut self, ino: INodeNo) -> &mut Node {
        self.nodes.get_mut(&ino.0).unwrap()
    }

    fn child(&mut self, parent: INodeNo, name: &OsStr) -> Option<INodeNo> {
        self.node(parent).entries.get(name).copied().map(INodeNo)
    }

    fn remove(&mut self, parent: INodeNo, name: &OsStr) {
        if let Some(ino) = self.node(parent).entries.remove(name) {
            // Its bytes alone: the kernel may still ask about it. Whoever has it open is not served, which no figure needs.
            self.node(INodeNo(ino)).bytes = Vec::new();
        }
    }

    /// The dots and then the entries from number `offset` on.
    fn listed(&mut self, ino: INodeNo, offset: u64) -> Vec<(u64, OsString, FileAttr)> {
        let parent = self.node(ino).parent;
        let dots = [(OsString::from("."), ino.0), (OsString::from(".."), parent)];
        let entries = self.node(ino).entries.clone();
        let all = dots.into_iter().chain(entries).enumerate().skip(offset as usize).take(1024);
        all.map(|(at, (name, ino))| (at as u64 + 1, name, self.node(INodeNo(ino)).attr)).collect()
    }
}

impl Filesystem for Memory {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        agree(config);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut tree = self.tree();
        match tree.child(parent, name) {
            Some(ino) => reply.entry(&TTL, &tree.node(ino).attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn forget(&self, _req: &Request, _ino: INodeNo, _nlookup: u64) {}

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.tree().node(ino).attr);
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut tree = self.tree();
        let node = tree.node(ino);
        if let Some(mode) = mode {
            node.attr.perm = (mode & 0o7777) as u16;
        }
        if let Some(TimeOrNow::SpecificTime(time)) = mtime {
            node.attr.mtime = time;
        }
        if let Some(size) = size {
            node.bytes.resize(size as usize, 0);
            node.attr.size = size;
        }
        (node.attr.uid, node.attr.gid) = (uid.unwrap_or(node.attr.uid), gid.unwrap_or(node.attr.gid));
        reply.attr(&TTL, &node.attr);
    }

    fn mkdir(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.entry(&TTL, &self.tree().make(parent, name, FileType::Directory, mode), Generation(0));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.tree().remove(parent, name);
        reply.ok();
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.tree().remove(parent, name);
        reply.ok();
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut tree = self.tree();
        tree.remove(newparent, newname);
        let ino = tree.node(parent).entries.remove(name).unwrap();
        tree.node(newparent).entries.insert(newname.to_owned(), ino);
        reply.ok();
    }

    fn open(&self, _req: &Request, _ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let only_reads = flags.0 & libc::O_ACCMODE == libc::O_RDONLY;
        let how = if only_reads { FopenFlags::FOPEN_NOFLUSH } else { FopenFlags::empty() };
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | how);
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        self.pipeline.iter().for_each(Pipeline::begin);
        let attr = self.tree().make(parent, name, FileType::RegularFile, mode);
        reply.created(&TTL, &attr, Generation(0), FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut tree = self.tree();
        let node = tree.node(ino);
        let held = node.attr.size.max(offset);
        let range = offset as usize..held.min(offset + u64::from(size)) as usize;
        match &self.pipeline {
            Some(pipeline) if node.attr.size > LARGE => {
                drop(tree);
                match pipeline.read(range).as_slice() {
                    [whole] => reply.data(whole),
                    parts => reply.data(&parts.concat()),
                }
            }
            _ => reply.data(&node.bytes[range]),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut tree = self.tree();
        let node = tree.node(ino);
        let end = offset + data.len() as u64;
        node.attr.size = node.attr.size.max(end);
        node.attr.mtime = SystemTime::now();
        if self.pipeline.is_none() || end <= LARGE {
            let size = node.attr.size as usize;
            node.bytes.resize(size, 0);
            node.bytes[offset as usize..end as usize].copy_from_slice(data);
        }
        drop(tree);
        self.pipeline.iter().for_each(|pipeline| pipeline.write(data));
        reply.written(data.len() as u32);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.pipeline.iter().for_each(Pipeline::flush);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.pipeline.iter().for_each(Pipeline::flush);
        reply.ok();
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        for (next, name, attr) in self.tree().listed(ino, offset) {
            if reply.add(attr.ino, next, attr.kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        for (next, name, attr) in self.tree().listed(ino, offset) {
            if reply.add(attr.ino, next, name, &TTL, &attr, Generation(0)) {
                break;
            }
        }
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 24, 1 << 24, 1 << 24, 1 << 24, 1 << 24, 4096, 255, 4096);
    }

    fn getxattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENODATA);
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.size(0);
    }
}
