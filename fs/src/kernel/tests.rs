//! The protocol against a kernel that is a pair of sockets: each message of one is a request or an answer.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use socket2::{Domain, Socket, Type};

use super::protocol::{agree, opcode};
use super::*;
use crate::inode::{SetTime, Time};

/// A file system that notes what it is asked, and answers something that can be told from anything else.
#[derive(Default)]
struct Noting(Mutex<Vec<String>>);

impl Noting {
    fn note(&self, request: &Request, what: impl Into<String>) {
        assert_eq!((request.uid, request.gid, request.pid), (1000, 100, 4711));
        self.0.lock().push(format!("{} {}", request.node, what.into()));
    }
}

fn node() -> Node {
    let time = |seconds, nanos| Time { seconds, nanos };
    Node {
        ino: 0x0101,
        size: 0x0202,
        blocks: 0x0303,
        atime: time(-4, 0x44),
        mtime: time(0x0505, 0x55),
        ctime: time(0x0606, 0x66),
        mode: libc::S_IFREG | 0o640,
        links: 0x07,
        uid: 0x08,
        gid: 0x09,
        rdev: 0x0a,
        block_size: 0x0b,
    }
}

fn entry() -> Entry {
    Entry { node: node(), valid: Duration::new(60, 7) }
}

impl Filesystem for Noting {
    fn lookup(&self, request: &Request, name: &OsStr, reply: Reply<Entry>) {
        self.note(request, format!("lookup {name:?}"));
        reply.ok(entry());
    }

    fn forget(&self, node: u64, count: u64) {
        self.0.lock().push(format!("{node} forget {count}"));
    }

    fn getattr(&self, request: &Request, reply: Reply<Attributes>) {
        self.note(request, "getattr");
        reply.ok(Attributes { node: node(), valid: Duration::new(60, 7) });
    }

    fn setattr(&self, request: &Request, change: SetAttributes, reply: Reply<Attributes>) {
        self.note(request, format!("setattr {change:?}"));
        reply.error(Errno(libc::EPERM));
    }

    fn readlink(&self, request: &Request, reply: Reply<Data>) {
        self.note(request, "readlink");
        reply.ok(Data((0..9u8).map(|part| vec![part; 2].into()).collect()));
    }

    fn symlink(&self, request: &Request, name: &OsStr, target: &[u8], reply: Reply<Entry>) {
        self.note(request, format!("symlink {name:?} {target:?}"));
        reply.ok(entry());
    }

    fn mknod(&self, request: &Request, name: &OsStr, make: Make, reply: Reply<Entry>) {
        self.note(request, format!("mknod {name:?} {make:?}"));
        reply.ok(entry());
    }

    fn mkdir(&self, request: &Request, name: &OsStr, make: Make, reply: Reply<Entry>) {
        self.note(request, format!("mkdir {name:?} {make:?}"));
        reply.ok(entry());
    }

    fn unlink(&self, request: &Request, name: &OsStr, reply: Reply<()>) {
        self.note(request, format!("unlink {name:?}"));
        reply.ok(());
    }

    fn rename(&self, request: &Request, name: &OsStr, to: (u64, &OsStr), flags: u32, reply: Reply<()>) {
        self.note(request, format!("rename {name:?} {to:?} {flags}"));
        reply.ok(());
    }

    fn link(&self, request: &Request, node: u64, name: &OsStr, reply: Reply<Entry>) {
        self.note(request, format!("link {node} {name:?}"));
        reply.ok(entry());
    }

    fn open(&self, request: &Request, flags: i32, reply: Reply<Opened>) {
        self.note(request, format!("open {flags}"));
        reply.ok(Opened(opened::KEEP_CACHE));
    }

    fn create(&self, request: &Request, name: &OsStr, make: Make, reply: Reply<Created>) {
        self.note(request, format!("create {name:?} {make:?}"));
        reply.ok(Created { entry: entry(), opened: Opened(opened::NOFLUSH) });
    }

    fn read(&self, request: &Request, offset: u64, size: u32, flags: i32, reply: Reply<Data>) {
        self.note(request, format!("read {offset} {size} {flags}"));
        reply.ok(Data(vec![vec![1, 2].into(), vec![3].into()]));
    }

    fn write(&self, request: &Request, write: Write<'_>, reply: Reply<Written>) {
        self.note(request, format!("write {write:?}"));
        // From another thread, and later.
        std::thread::spawn(move || reply.ok(Written(3)));
    }

    fn readdir(&self, request: &Request, offset: u64, mut listing: Listing, reply: Reply<Listing>) {
        self.note(request, format!("readdir {offset}"));
        let mut full = Vec::new();
        for name in ["a", "eight...", "nine....."] {
            full.push(listing.name(5, 6, libc::S_IFDIR | 0o700, OsStr::new(name)));
        }
        assert_eq!(full, [false, false, true], "32 and 32 bytes fit into 72, 40 do not");
        reply.ok(listing);
    }

    fn readdirplus(&self, request: &Request, offset: u64, mut listing: Listing, reply: Reply<Listing>) {
        self.note(request, format!("readdirplus {offset}"));
        assert!(!listing.entry(&entry(), 6, OsStr::new("a")) && listing.entry(&entry(), 7, OsStr::new("b")));
        reply.ok(listing);
    }

    fn statfs(&self, request: &Request, reply: Reply<Statistics>) {
        self.note(request, "statfs");
        reply.ok(Statistics { blocks: 1, free: 2, files: 3, files_free: 4, block_size: 5, name_length: 6 });
    }

    fn setxattr(&self, request: &Request, name: &OsStr, value: &[u8], flags: i32, reply: Reply<()>) {
        self.note(request, format!("setxattr {name:?} {value:?} {flags}"));
        reply.ok(());
    }

    fn getxattr(&self, request: &Request, name: &OsStr, size: u32, reply: Reply<Xattr>) {
        self.note(request, format!("getxattr {name:?} {size}"));
        reply.ok(if size == 0 { Xattr::Length(3) } else { Xattr::Value(vec![7, 8, 9]) });
    }

    fn removexattr(&self, _request: &Request, name: &OsStr, reply: Reply<()>) {
        panic!("{name:?} {reply:?}");
    }

    fn fallocate(&self, request: &Request, offset: u64, length: u64, mode: i32, reply: Reply<()>) {
        self.note(request, format!("fallocate {offset} {length} {mode}"));
        drop(reply);
    }

    fn lseek(&self, request: &Request, offset: i64, whence: i32, reply: Reply<Offset>) {
        self.note(request, format!("lseek {offset} {whence}"));
        reply.ok(Offset(77));
    }

    fn copy_file_range(
        &self,
        request: &Request,
        offset: u64,
        to: (u64, u64),
        length: u64,
        reply: Reply<Written>,
    ) {
        self.note(request, format!("copy {offset} {to:?} {length}"));
        reply.ok(Written(4));
    }
}

/// Numbers and bytes in the order they are sent.
#[derive(Clone, Default)]
struct Message(Vec<u8>);

impl Message {
    fn of(words: &[u32]) -> Message {
        Message::default().words(words)
    }

    fn words(mut self, words: &[u32]) -> Message {
        words.iter().for_each(|word| self.0.extend(word.to_ne_bytes()));
        self
    }

    fn longs(mut self, longs: &[u64]) -> Message {
        longs.iter().for_each(|long| self.0.extend(long.to_ne_bytes()));
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Message {
        self.0.extend(bytes);
        self
    }
}

fn message() -> Message {
    Message::default()
}

/// The kernel.
struct Kernel {
    socket: File,
    sent: u64,
}

impl Kernel {
    fn new() -> (Kernel, OwnedFd) {
        let (ours, theirs) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        (Kernel { socket: File::from(OwnedFd::from(ours)), sent: 0 }, theirs.into())
    }

    fn send(&mut self, opcode: u32, body: &Message) {
        self.sent += 1;
        let length = 40 + body.0.len() as u32;
        let header = Message::of(&[length, opcode]).longs(&[self.sent, 9]).words(&[1000, 100, 4711, 0]);
        self.socket.write_all(&header.bytes(&body.0).0).unwrap();
    }

    /// The next answer, which is to the last request: the errno, and what follows.
    fn answer(&mut self) -> (i32, Vec<u8>) {
        let mut buffer = vec![0; 8192];
        let length = self.socket.read(&mut buffer).unwrap();
        let header = Message::of(&[length as u32]).0;
        assert_eq!((&buffer[..4], &buffer[8..16]), (&header[..], &message().longs(&[self.sent]).0[..]));
        (-i32::from_ne_bytes(buffer[4..8].try_into().unwrap()), buffer[16..length].to_vec())
    }

    fn ask(&mut self, opcode: u32, body: Message) -> (i32, Vec<u8>) {
        self.send(opcode, &body);
        self.answer()
    }

    fn first(&mut self, flags: u64) {
        let body = Message::of(&[7, 45, 131_072, flags as u32, (flags >> 32) as u32]).bytes(&[0; 44]);
        self.send(opcode::INIT, &body);
    }
}

fn agreement() -> Agreement {
    Agreement { flags: agree::DONT_MASK, max_request: 1 << 20, max_background: 64, threads: 1, rings: false }
}

/// A kernel with which it was agreed, and who serves it.
fn served() -> (Kernel, std::sync::Arc<Noting>, JoinHandle<std::io::Result<()>>) {
    let (mut kernel, device) = Kernel::new();
    kernel.first(u64::MAX);
    let session = Session::begin(device, |_| Noting::default(), agreement()).unwrap();
    kernel.answer();
    let noting = session.filesystem();
    (kernel, noting, std::thread::spawn(|| session.serve()))
}

#[test]
fn they_agree_on_what_both_can() {
    let own = agree::BIG_WRITES | agree::MAX_PAGES | agree::INIT_EXT;
    for (can, agreed) in [(u64::MAX, own | agree::DONT_MASK), (agree::BIG_WRITES, agree::BIG_WRITES)] {
        let (mut kernel, device) = Kernel::new();
        kernel.first(can);
        Session::begin(device, |_| Noting::default(), agreement()).unwrap();
        // 64 requests in the background and, as many as 48, a crowd; 256 pages; nanoseconds.
        let expected = Message::of(&[7, 42, 131_072, agreed as u32, 64 | 48 << 16, 1 << 20, 1, 256])
            .words(&[(agreed >> 32) as u32])
            .bytes(&[0; 28]);
        assert_eq!(kernel.answer(), (0, expected.0));
    }
}

#[test]
fn a_kernel_of_another_age_is_told_what_is_spoken_here() {
    let (mut kernel, device) = Kernel::new();
    kernel.send(opcode::INIT, &Message::of(&[8, 0]));
    let beginning =
        std::thread::spawn(|| Session::begin(device, |_| Noting::default(), agreement()).map(drop));
    assert_eq!(kernel.answer().1[..8], Message::of(&[7, 42]).0);
    kernel.first(u64::MAX);
    assert_eq!(kernel.answer().0, 0);
    beginning.join().unwrap().unwrap();

    let (mut kernel, device) = Kernel::new();
    kernel.send(opcode::INIT, &Message::of(&[7, 22, 131_072, 0]));
    let refused = Session::begin(device, |_| Noting::default(), agreement()).map(drop).unwrap_err();
    assert_eq!((refused.kind(), kernel.answer().0), (std::io::ErrorKind::Unsupported, libc::EPROTO));
}

#[test]
fn every_request_asks_for_what_it_means() {
    let (mut kernel, noting, serving) = served();
    let attr = message()
        .longs(&[0x0101, 0x0202, 0x0303, -4i64 as u64, 0x0505, 0x0606])
        .words(&[0x44, 0x55, 0x66, 0o100_640, 7, 8, 9, 10, 11, 0]);
    let entry = message().longs(&[0x0101, 0, 60, 60]).words(&[7, 7]).bytes(&attr.0);
    let attributes = message().longs(&[60]).words(&[7, 0]).bytes(&attr.0);
    let dirent = |mode: u32, name: &[u8]| message().words(&[name.len() as u32, mode]).bytes(name);
    let names = message().longs(&[5, 6]).bytes(&dirent(4, b"a").0).bytes(&[0; 7]);
    let names = names.longs(&[5, 6]).bytes(&dirent(4, b"eight...").0);
    let plus = entry.clone().longs(&[0x0101, 6]).bytes(&dirent(8, b"a").0).bytes(&[0; 7]);
    let stretch = |offset, size, flags| {
        message().longs(&[0, offset]).words(&[size, flags]).longs(&[0]).words(&[libc::O_NOATIME as u32, 0])
    };
    let nothing = message();
    let made = |how, rdev| format!("{how} \"n\" {:?}", Make { mode: 0o100_600, umask: 0o22, rdev });
    let (mknod, mkdir, create) = (made("mknod", 5), made("mkdir", 0), made("create", 0));
    let asked: Vec<(u32, Message, &str, Result<Message, i32>)> = vec![
        (opcode::LOOKUP, message().bytes(b"n\0"), "lookup \"n\"", Ok(entry.clone())),
        (opcode::GETATTR, message(), "getattr", Ok(attributes)),
        (
            opcode::READLINK,
            message(),
            "readlink",
            Ok(message().bytes(&(0..18).map(|at| at / 2).collect::<Vec<u8>>())),
        ),
        (opcode::SYMLINK, message().bytes(b"n\0to\0"), "symlink \"n\" [116, 111]", Ok(entry.clone())),
        (opcode::MKNOD, Message::of(&[0o100_600, 5, 0o22, 0]).bytes(b"n\0"), &mknod, Ok(entry.clone())),
        (opcode::MKDIR, Message::of(&[0o100_600, 0o22]).bytes(b"n\0"), &mkdir, Ok(entry.clone())),
        (
            opcode::CREATE,
            Message::of(&[66, 0o100_600, 0o22, 0]).bytes(b"n\0"),
            &create,
            Ok(entry.clone().longs(&[0]).words(&[opened::NOFLUSH, 0])),
        ),
        (opcode::UNLINK, message().bytes(b"n\0"), "unlink \"n\"", Ok(nothing.clone())),
        (
            opcode::RENAME,
            message().longs(&[8]).bytes(b"n\0m\0"),
            "rename \"n\" (8, \"m\") 0",
            Ok(nothing.clone()),
        ),
        (
            opcode::RENAME2,
            message().longs(&[8]).words(&[2, 0]).bytes(b"n\0m\0"),
            "rename \"n\" (8, \"m\") 2",
            Ok(nothing.clone()),
        ),
        (opcode::LINK, message().longs(&[8]).bytes(b"n\0"), "link 8 \"n\"", Ok(entry)),
        (
            opcode::OPEN,
            Message::of(&[1, 0]),
            "open 1",
            Ok(message().longs(&[0]).words(&[opened::KEEP_CACHE, 0])),
        ),
        (opcode::READ, stretch(5, 6, 0), "read 5 6 262144", Ok(message().bytes(&[1, 2, 3]))),
        (
            opcode::WRITE,
            stretch(5, 3, 4).bytes(b"abc"),
            "write Write { offset: 5, data: [97, 98, 99], clears_set_id: true }",
            Ok(Message::of(&[3, 0])),
        ),
        (opcode::READDIR, stretch(5, 72, 0), "readdir 5", Ok(names)),
        (opcode::READDIRPLUS, stretch(5, 170, 0), "readdirplus 5", Ok(plus)),
        (
            opcode::STATFS,
            message(),
            "statfs",
            Ok(message().longs(&[1, 2, 2, 3, 4]).words(&[5, 6, 5]).bytes(&[0; 28])),
        ),
        (
            opcode::SETXATTR,
            Message::of(&[2, 1]).bytes(b"user.n\0vw"),
            "setxattr \"user.n\" [118, 119] 1",
            Ok(nothing),
        ),
        (opcode::GETXATTR, Message::of(&[0, 0]).bytes(b"n\0"), "getxattr \"n\" 0", Ok(Message::of(&[3, 0]))),
        (
            opcode::GETXATTR,
            Message::of(&[9, 0]).bytes(b"n\0"),
            "getxattr \"n\" 9",
            Ok(message().bytes(&[7, 8, 9])),
        ),
        // Dropped without an answer.
        (opcode::FALLOCATE, message().longs(&[0, 5, 6]).words(&[3, 0]), "fallocate 5 6 3", Err(libc::EIO)),
        (opcode::LSEEK, message().longs(&[0, 5]).words(&[4, 0]), "lseek 5 4", Ok(message().longs(&[77]))),
        (
            opcode::COPY_FILE_RANGE,
            message().longs(&[0, 5, 8, 0, 6, 7, 0]),
            "copy 5 (8, 6) 7",
            Ok(Message::of(&[4, 0])),
        ),
        // Two that Noting does not have.
        (opcode::RMDIR, message().bytes(b"n\0"), "", Err(libc::ENOSYS)),
        (36, message().longs(&[1]), "", Err(libc::ENOSYS)),
    ];
    for (opcode, body, note, expected) in asked {
        let answer = kernel.ask(opcode, body.clone());
        let expected = expected.map_or_else(|errno| (errno, Vec::new()), |answer| (0, answer.0));
        assert_eq!(answer, expected, "{opcode} {note}");
        let noted = std::mem::take(&mut *noting.0.lock());
        let notes = if note.is_empty() { vec![] } else { vec![format!("9 {note}")] };
        assert_eq!(noted, notes);
        // Cut off it means nothing, and is answered all the same.
        if !body.0.is_empty() && expected.0 != libc::ENOSYS {
            assert_eq!(kernel.ask(opcode, message()), (libc::EIO, vec![]), "{opcode} {note}");
            assert_eq!(*noting.0.lock(), [""; 0]);
        }
    }
    drop(kernel);
    assert!(serving.join().unwrap().is_err(), "a real one would have said ENODEV");
}

#[test]
fn times_before_1970_mean_what_the_kernel_meant() {
    let (mut kernel, noting, _serving) = served();
    let change = |valid: u32, atime: i64, nanos: u32| {
        message()
            .words(&[valid, 0])
            .longs(&[0, 5, 0, atime as u64, 8, 0])
            .words(&[nanos, 9, 0, 0o644, 0, 1, 2, 0])
    };
    // -1.2 s is sent as -2 s and 800,000,000 ns.
    kernel.ask(opcode::SETATTR, change(1 << 4, -2, 800_000_000));
    kernel.ask(opcode::SETATTR, change(1 << 4 | 1 << 7 | 1 << 5 | 1 << 3 | 0b111, 0, 0));
    let at = |seconds, nanos| Some(SetTime::At(Time { seconds, nanos }));
    let first = SetAttributes { atime: at(-2, 800_000_000), ..SetAttributes::default() };
    let second = SetAttributes {
        mode: Some(0o644),
        uid: Some(1),
        gid: Some(2),
        size: Some(5),
        atime: Some(SetTime::Now),
        mtime: at(8, 9),
    };
    assert_eq!(*noting.0.lock(), [first, second].map(|change| format!("9 setattr {change:?}")));
}

#[test]
fn what_the_kernel_forgets_is_not_answered() {
    let (mut kernel, noting, _serving) = served();
    kernel.send(opcode::FORGET, &message().longs(&[2]));
    kernel.send(opcode::BATCH_FORGET, &Message::of(&[2, 0]).longs(&[11, 1, 12, 3]));
    // Answers come in order: the next is to this.
    assert_eq!(kernel.ask(opcode::UNLINK, message().bytes(b"n\0")).0, 0);
    assert_eq!(*noting.0.lock(), ["9 forget 2", "11 forget 1", "12 forget 3", "9 unlink \"n\""]);
}

#[test]
fn a_panic_is_an_answer_and_others_are_served_on() {
    let (mut kernel, _noting, _serving) = served();
    assert_eq!(kernel.ask(opcode::REMOVEXATTR, message().bytes(b"n\0")).0, libc::EIO);
    assert_eq!(kernel.ask(opcode::UNLINK, message().bytes(b"n\0")).0, 0);
}

#[test]
fn names_that_are_no_text_are_names() {
    let (mut kernel, noting, _serving) = served();
    kernel.ask(opcode::UNLINK, message().bytes(b"\xff\0"));
    assert_eq!(*noting.0.lock(), [format!("9 unlink {:?}", OsStr::from_bytes(b"\xff"))]);
}
