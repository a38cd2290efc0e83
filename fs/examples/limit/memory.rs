//! Files and directories in memory, asked by the kernel as avidfs is asked, with the same time to trust an answer.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::sync::{Mutex, MutexGuard};

use avidfs::fuse::{PREFERRED, TTL};
use avidfs::inode::{SetAttributes, SetTime, Time};
use avidfs::kernel::{
    self, Attributes, Created, Data, Entry, Errno, Filesystem, Listing, Make, Node as Inode, Opened, Reply,
    Request, Statistics, Write, Written, Xattr, opened,
};
use bytes::Bytes;

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
    inode: Inode,
    parent: u64,
    bytes: Vec<u8>,
    entries: BTreeMap<OsString, u64>,
}

impl Memory {
    /// An empty one.
    pub fn new(pipeline: Option<Pipeline>) -> Memory {
        let mut tree = Tree { nodes: HashMap::new(), last: 0 };
        tree.add(kernel::ROOT, libc::S_IFDIR | 0o755);
        Memory { tree: Mutex::new(tree), pipeline }
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap()
    }
}

impl Tree {
    fn add(&mut self, parent: u64, mode: u32) -> Inode {
        self.last += 1;
        let now = Time::now();
        let links = if mode & libc::S_IFMT == libc::S_IFDIR { 2 } else { 1 };
        let inode = Inode {
            ino: self.last,
            atime: now,
            mtime: now,
            ctime: now,
            mode,
            links,
            block_size: PREFERRED,
            ..Inode::default()
        };
        self.nodes.insert(self.last, Node { inode, parent, bytes: Vec::new(), entries: BTreeMap::new() });
        inode
    }

    fn make(&mut self, parent: u64, name: &OsStr, mode: u32) -> Entry {
        let inode = self.add(parent, mode);
        self.node(parent).entries.insert(name.to_owned(), inode.ino);
        entry(inode)
    }

    fn node(&mut self, ino: u64) -> &mut Node {
        self.nodes.get_mut(&ino).unwrap()
    }

    fn remove(&mut self, parent: u64, name: &OsStr) {
        if let Some(ino) = self.node(parent).entries.remove(name) {
            // Its bytes alone: the kernel may still ask about it. Whoever has it open is not served, which no figure needs.
            self.node(ino).bytes = Vec::new();
        }
    }

    /// The dots and then the entries from number `offset` on.
    fn listed(&mut self, ino: u64, offset: u64) -> Vec<(u64, OsString, Inode)> {
        let parent = self.node(ino).parent;
        let dots = [(OsString::from("."), ino), (OsString::from(".."), parent)];
        let entries = self.node(ino).entries.clone();
        let all = dots.into_iter().chain(entries).enumerate().skip(offset as usize).take(1024);
        all.map(|(at, (name, ino))| (at as u64 + 1, name, self.node(ino).inode)).collect()
    }
}

fn entry(node: Inode) -> Entry {
    Entry { node, valid: TTL }
}

impl Filesystem for Memory {
    fn lookup(&self, req: &Request, name: &OsStr, reply: Reply<Entry>) {
        let mut tree = self.tree();
        let found = tree.node(req.node).entries.get(name).copied();
        reply.answer(found.map(|ino| entry(tree.node(ino).inode)).ok_or(Errno::ENOENT));
    }

    fn getattr(&self, req: &Request, reply: Reply<Attributes>) {
        reply.ok(Attributes { node: self.tree().node(req.node).inode, valid: TTL });
    }

    fn setattr(&self, req: &Request, change: SetAttributes, reply: Reply<Attributes>) {
        let mut tree = self.tree();
        let node = tree.node(req.node);
        let inode = &mut node.inode;
        if let Some(mode) = change.mode {
            inode.mode = inode.mode & libc::S_IFMT | mode & 0o7777;
        }
        if let Some(SetTime::At(time)) = change.mtime {
            inode.mtime = time;
        }
        if let Some(size) = change.size {
            node.bytes.resize(size as usize, 0);
            inode.size = size;
        }
        (inode.uid, inode.gid) = (change.uid.unwrap_or(inode.uid), change.gid.unwrap_or(inode.gid));
        reply.ok(Attributes { node: *inode, valid: TTL });
    }

    fn mkdir(&self, req: &Request, name: &OsStr, make: Make, reply: Reply<Entry>) {
        reply.ok(self.tree().make(req.node, name, libc::S_IFDIR | make.mode & 0o7777));
    }

    fn unlink(&self, req: &Request, name: &OsStr, reply: Reply<()>) {
        self.tree().remove(req.node, name);
        reply.ok(());
    }

    fn rmdir(&self, req: &Request, name: &OsStr, reply: Reply<()>) {
        self.tree().remove(req.node, name);
        reply.ok(());
    }

    fn rename(&self, req: &Request, name: &OsStr, to: (u64, &OsStr), _flags: u32, reply: Reply<()>) {
        let mut tree = self.tree();
        tree.remove(to.0, to.1);
        let ino = tree.node(req.node).entries.remove(name).unwrap();
        tree.node(to.0).entries.insert(to.1.to_owned(), ino);
        reply.ok(());
    }

    fn open(&self, _req: &Request, flags: i32, reply: Reply<Opened>) {
        let only_reads = flags & libc::O_ACCMODE == libc::O_RDONLY;
        reply.ok(Opened(opened::KEEP_CACHE | if only_reads { opened::NOFLUSH } else { 0 }));
    }

    fn create(&self, req: &Request, name: &OsStr, make: Make, reply: Reply<Created>) {
        self.pipeline.iter().for_each(Pipeline::begin);
        let entry = self.tree().make(req.node, name, libc::S_IFREG | make.mode & 0o7777);
        reply.ok(Created { entry, opened: Opened(opened::KEEP_CACHE) });
    }

    fn read(&self, req: &Request, offset: u64, size: u32, _flags: i32, reply: Reply<Data>) {
        let mut tree = self.tree();
        let node = tree.node(req.node);
        let held = node.inode.size.max(offset);
        let range = offset as usize..held.min(offset + u64::from(size)) as usize;
        match &self.pipeline {
            Some(pipeline) if node.inode.size > LARGE => {
                drop(tree);
                reply.ok(Data(pipeline.read(range)));
            }
            // One copy more than a program needs that answers from what it has.
            _ => reply.ok(Data(vec![Bytes::copy_from_slice(&node.bytes[range])])),
        }
    }

    fn write(&self, req: &Request, write: Write<'_>, reply: Reply<Written>) {
        let Write { offset, data, .. } = write;
        let mut tree = self.tree();
        let node = tree.node(req.node);
        let end = offset + data.len() as u64;
        node.inode.size = node.inode.size.max(end);
        node.inode.mtime = Time::now();
        if self.pipeline.is_none() || end <= LARGE {
            let size = node.inode.size as usize;
            node.bytes.resize(size, 0);
            node.bytes[offset as usize..end as usize].copy_from_slice(data);
        }
        drop(tree);
        self.pipeline.iter().for_each(|pipeline| pipeline.write(data));
        reply.ok(Written(data.len() as u32));
    }

    fn flush(&self, _req: &Request, reply: Reply<()>) {
        self.pipeline.iter().for_each(Pipeline::flush);
        reply.ok(());
    }

    fn fsync(&self, _req: &Request, reply: Reply<()>) {
        self.pipeline.iter().for_each(Pipeline::flush);
        reply.ok(());
    }

    fn opendir(&self, _req: &Request, reply: Reply<Opened>) {
        reply.ok(Opened(opened::KEEP_CACHE | opened::CACHE_DIR));
    }

    fn readdir(&self, req: &Request, offset: u64, mut listing: Listing, reply: Reply<Listing>) {
        let listed = self.tree().listed(req.node, offset);
        let _full = listed.iter().any(|(next, name, inode)| listing.name(inode.ino, *next, inode.mode, name));
        reply.ok(listing);
    }

    fn readdirplus(&self, req: &Request, offset: u64, mut listing: Listing, reply: Reply<Listing>) {
        let listed = self.tree().listed(req.node, offset);
        let _full = listed.iter().any(|(next, name, inode)| listing.entry(&entry(*inode), *next, name));
        reply.ok(listing);
    }

    fn fsyncdir(&self, _req: &Request, reply: Reply<()>) {
        reply.ok(());
    }

    fn statfs(&self, _req: &Request, reply: Reply<Statistics>) {
        const MANY: u64 = 1 << 24;
        reply.ok(Statistics {
            blocks: MANY,
            free: MANY,
            files: MANY,
            files_free: MANY,
            block_size: 4096,
            name_length: 255,
        });
    }

    fn getxattr(&self, _req: &Request, _name: &OsStr, _size: u32, reply: Reply<Xattr>) {
        reply.error(Errno::ENODATA);
    }

    fn listxattr(&self, _req: &Request, _size: u32, reply: Reply<Xattr>) {
        reply.ok(Xattr::Length(0));
    }
}
