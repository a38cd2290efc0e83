//! What the command line asks of the operating system: mounts, processes, limits. Every libc call of it stands here.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use common::paths::folder_of;

/// The type of our mounts in /proc/self/mountinfo.
pub const FILESYSTEM_TYPE: &str = "fuse.avidfs";

/// One line of /proc/self/mountinfo.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountEntry {
    /// Its number, which no other mount has meanwhile.
    pub id: String,
    /// `MAJOR:MINOR` of its device.
    pub device: String,
    /// What of its file system is seen there: `/`, or the part that is bound.
    pub root: PathBuf,
    /// Where.
    pub mountpoint: PathBuf,
    /// Its type, such as `ext4` or `fuse.avidfs`.
    pub kind: String,
    /// What is mounted; of ours, `avidfs:` and the volume's name, or what an fstab line calls it.
    pub source: PathBuf,
    /// Its flags, and the file system's own options.
    pub options: Vec<String>,
    /// Of a FUSE mount, the user whose daemon serves it.
    pub user: u32,
}

impl MountEntry {
    /// Whether it is one of ours.
    pub fn is_ours(&self) -> bool {
        self.kind == FILESYSTEM_TYPE
    }

    /// Whether it shows all of its file system, and not a part that is bound elsewhere.
    pub fn is_whole(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where a path on this mount lies, from the root of the file system; empty for that root. `None` if the path is not
    /// below the mount point, or what is bound there has no name any more.
    pub fn inside(&self, path: &Path) -> Option<PathBuf> {
        // So ends what d_path of the kernel says of it; two slashes stand in no other path.
        if self.root.as_os_str().as_bytes().ends_with(b"//deleted") {
            return None;
        }
        let below = path.strip_prefix(&self.mountpoint).ok()?;
        let root = self.root.strip_prefix("/").ok()?;
        Some(root.components().chain(below.components()).collect())
    }
}

/// All mounts, in the order they were made: of several at one place the last one counts.
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(mount_entry).collect())
}

/// The mount that is seen at exactly this place. Asks no file system, so it answers for dead mounts too.
pub fn mount_at(mountpoint: &Path) -> io::Result<Option<MountEntry>> {
    let mountpoint = resolve_parent(mountpoint);
    Ok(mounts()?.into_iter().rev().find(|mount| mount.mountpoint == mountpoint))
}

/// The mount that a path lies on; a link in its last place is not followed. By the mount's number, for a file system may be
/// mounted, and a part of it bound, at many places.
pub fn mount_of(path: &Path) -> io::Result<Option<MountEntry>> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let id = mount_id(&File::options().read(true).custom_flags(flags).open(path)?)?;
    Ok(mounts()?.into_iter().find(|mount| mount.id == id))
}

/// The number of the mount that a file was opened on, from proc(5)'s fdinfo.
fn mount_id(file: &File) -> io::Result<String> {
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = told.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    id.map(|id| id.trim().to_owned()).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// The path with links and dots before its last name resolved; the last name may be a dead mount and is not asked.
pub fn resolve_parent(path: &Path) -> PathBuf {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return path.to_owned() };
    match parent.canonicalize() {
        Ok(parent) => parent.join(name),
        Err(_) => path.to_owned(),
    }
}

/// The path with links and dots resolved as far as it exists.
pub fn resolve(path: &Path) -> PathBuf {
    let real = path.ancestors().find_map(|ancestor| Some((ancestor, ancestor.canonicalize().ok()?)));
    match real {
        Some((ancestor, real)) => real.join(path.strip_prefix(ancestor).unwrap_or(Path::new(""))),
        None => path.to_owned(),
    }
}

/// A line of mountinfo, as proc(5): `36 35 98:0 /root /mountpoint options tags.. - type source super-options`.
pub fn mount_entry(line: &[u8]) -> Option<MountEntry> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let separator = fields.iter().position(|field| *field == b"-")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let list = |bytes: &[u8]| text(bytes).split(',').map(str::to_owned).collect::<Vec<_>>();
    let own = fields.get(separator + 3).map(|own| list(own)).unwrap_or_default();
    let user = own.iter().find_map(|option| option.strip_prefix("user_id=")?.parse().ok());
    Some(MountEntry {
        id: text(fields.first()?),
        device: text(fields.get(2)?),
        root: unescaped(fields.get(3)?),
        mountpoint: unescaped(fields.get(4)?),
        kind: text(fields.get(separator + 1)?),
        source: unescaped(fields.get(separator + 2)?),
        options: list(fields.get(5)?).into_iter().chain(own).collect(),
        user: user.unwrap_or(0),
    })
}

/// Space, tab, newline and backslash stand there as `\040` and so on.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal =
            (byte == b'\\' && tail.len() >= 3).then(|| std::str::from_utf8(&tail[..3]).ok()).flatten();
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &tail[3..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Mount a FUSE file system without the help of fusermount3, which only root may; everything it is asked comes from
/// the returned device. `options` are mount(8)'s, and the kernel's own for FUSE.
pub fn mount_fuse(mountpoint: &Path, source: &str, options: &[&str]) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let mode = mountpoint.metadata()?.mode();
    let (user, group) = user_and_group();
    let mut data = format!("fd={},rootmode={mode:o},user_id={user},group_id={group}", device.as_raw_fd());
    let mut flags = 0;
    for option in options {
        match with_option(flags, option) {
            Some(changed) => flags = changed,
            None => data = format!("{data},{option}"),
        }
    }
    let [source, mountpoint, kind, data] = [
        CString::new(source)?,
        CString::new(mountpoint.as_os_str().as_bytes())?,
        CString::new(FILESYSTEM_TYPE)?,
        CString::new(data)?,
    ];
    // SAFETY: all four are C strings that outlive the call; FUSE takes its data as one.
    check(unsafe {
        libc::mount(source.as_ptr(), mountpoint.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast())
    })?;
    Ok(device.into())
}

/// Mount a FUSE file system with the help of fusermount3, which whoever owns the place may; everything it is asked comes
/// from the returned device. `options` are fusermount3's.
pub fn mount_fuse_with_helper(mountpoint: &Path, options: &[String]) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new("fusermount3");
    command.arg("-o").arg(options.join(",")).arg("--").arg(mountpoint);
    // The device is sent through what stands there: the child's standard input.
    command.env("_FUSE_COMMFD", "0").stdin(OwnedFd::from(theirs)).stderr(Stdio::piped());
    let child = command.spawn()?;
    // Its end of the pair is with the child alone from here on.
    drop(command);
    let device = receive_descriptor(&ours);
    let output = child.wait_with_output()?;
    match device {
        Ok(Some(device)) if output.status.success() => Ok(device),
        Err(error) if output.status.success() => Err(error),
        _ => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// A descriptor that comes through a socket; none if the other end is closed.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = 0u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // Room for a header and one descriptor, aligned as a header.
    let mut control = [0u64; 8];
    // SAFETY: all zeros is a msghdr that says nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    (message.msg_control, message.msg_controllen) = ((&raw mut control).cast(), size_of_val(&control) as _);
    loop {
        // SAFETY: `message` points to `part` and `control`, which outlive the call, and says how long they are.
        let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match usize::try_from(got).map_err(|_| io::Error::last_os_error()) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // SAFETY: `message` is what recvmsg left; a header is read only where the macros of cmsg(3) find one, a descriptor only
    // where that says there is one, and only the returned value owns it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null()
            || ((*header).cmsg_level, (*header).cmsg_type) != (libc::SOL_SOCKET, libc::SCM_RIGHTS)
        {
            return Ok(None);
        }
        let descriptor = libc::CMSG_DATA(header).cast::<i32>().read_unaligned();
        Ok(Some(OwnedFd::from_raw_fd(descriptor)))
    }
}

/// One more device for what is mounted from a FUSE device.
pub fn clone_fuse(device: &File) -> io::Result<OwnedFd> {
    const CLONE: libc::Ioctl = libc::_IOR::<u32>(229, 0);
    let another = File::options().read(true).write(true).open("/dev/fuse")?;
    let number = device.as_raw_fd() as u32;
    // SAFETY: FUSE_DEV_IOC_CLONE reads one u32, which outlives the call.
    check(unsafe { libc::ioctl(another.as_raw_fd(), CLONE, &raw const number) })?;
    Ok(another.into())
}

/// How often the other mounts are looked at that begin now, 10 ms apart.
const LOCK_TRIES: u32 = 200;
/// Whether the kernel offers rings to file systems that are mounted now.
const FUSE_RINGS: &str = "/sys/module/fuse/parameters/enable_uring";

/// As long as this lives, the kernel offers rings to FUSE file systems that begin. Systems come with that turned off; those
/// that have rings keep them.
pub struct FuseRings(
    #[allow(dead_code, reason = "locked, so that two mounts do not undo each other's")] File,
);

impl FuseRings {
    /// Have it offer them; `None` if it does already, cannot, or we may not.
    pub fn offer() -> Option<FuseRings> {
        let setting = File::options().read(true).write(true).open(FUSE_RINGS).ok()?;
        // For a moment each. Whoever may read it can lock it, so nobody is waited for without end.
        for _ in 0..LOCK_TRIES {
            match setting.try_lock() {
                Ok(()) => return FuseRings::offer_locked(setting),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
                Err(TryLockError::Error(_)) => return None,
            }
        }
        None
    }

    fn offer_locked(setting: File) -> Option<FuseRings> {
        if std::fs::read_to_string(FUSE_RINGS).ok()?.trim() != "N" {
            return None;
        }
        std::fs::write(FUSE_RINGS, "Y").ok().map(|()| FuseRings(setting))
    }
}

impl Drop for FuseRings {
    fn drop(&mut self) {
        let _ = std::fs::write(FUSE_RINGS, "N");
    }
}

/// How many processors this machine can have.
pub fn possible_processors() -> io::Result<usize> {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    count_of_list(list.trim()).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, list))
}

/// How many numbers a list such as `0-3,6` has.
fn count_of_list(list: &str) -> Option<usize> {
    let ranges = list.split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        Some(last.checked_sub(first)? + 1)
    });
    ranges.sum()
}

/// The processors that this program's threads may run on, if one of them was told to stay on one.
static ALLOWED: OnceLock<libc::cpu_set_t> = OnceLock::new();

/// Let this thread run on one processor alone; an error, and wherever it may, if that is not one of those. Threads that it
/// starts begin there too: `run_anywhere` is for them.
pub fn stay_on_processor(processor: usize) -> io::Result<()> {
    // SAFETY: all zeros is a set without processors, which the call fills in for this thread.
    let allowed = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        check(libc::sched_getaffinity(0, size_of_val(&set), &raw mut set))?;
        set
    };
    let allowed = ALLOWED.get_or_init(|| allowed);
    // SAFETY: a set has room for CPU_SETSIZE processors.
    if processor >= libc::CPU_SETSIZE as usize || !unsafe { libc::CPU_ISSET(processor, allowed) } {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: as above, and the processor is one of them.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        check(libc::sched_setaffinity(0, size_of_val(&set), &raw const set)).map(drop)
    }
}

/// Let this thread run wherever the program may, whoever started it.
pub fn run_anywhere() {
    if let Some(allowed) = ALLOWED.get() {
        // SAFETY: sets what was read.
        unsafe {
            libc::sched_setaffinity(0, size_of_val(allowed), std::ptr::from_ref(allowed));
        }
    }
}

/// Bytes of a page.
pub fn page_size() -> u32 {
    // SAFETY: takes a number; every system has this.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as u32 }
}

/// Wakes who waits for it to become readable.
#[derive(Debug)]
pub struct Wake(File);

impl Wake {
    /// An eventfd(2).
    pub fn new() -> io::Result<Wake> {
        // SAFETY: takes two integers and opens a new descriptor, which only the returned value owns.
        unsafe {
            let event = check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?;
            Ok(Wake(File::from_raw_fd(event)))
        }
    }

    /// Wake it.
    pub fn wake(&self) -> io::Result<()> {
        (&self.0).write_all(&1u64.to_ne_bytes())
    }
}

impl AsRawFd for Wake {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Memory that somebody else, too, is told the address of: small pages, all zeros, which take room once they are touched.
#[derive(Debug)]
pub struct Shared {
    start: *mut u8,
    length: usize,
}

// SAFETY: memory of the process's own, which no thread has a special part in.
unsafe impl Send for Shared {}
// SAFETY: what it does itself with the bytes, `give_back`, says who may call it; whoever goes by the address answers for it.
unsafe impl Sync for Shared {}

impl Shared {
    /// So many bytes.
    pub fn new(length: usize) -> io::Result<Shared> {
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: asks for memory where there is none yet.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, access, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: advice on what was just mapped. Without huge pages in the kernel it is an error that means nothing.
        unsafe {
            libc::madvise(start, length, libc::MADV_NOHUGEPAGE);
        }
        Ok(Shared { start: start.cast(), length })
    }

    /// Its first byte.
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// Give pages back to the system; they are zeros then. Nobody may use these meanwhile.
    pub fn give_back(&self, from: usize, length: usize) -> io::Result<()> {
        assert!(from.checked_add(length).is_some_and(|end| end <= self.length), "inside the memory");
        // SAFETY: within the memory, which is mapped as long as `self` lives.
        check(unsafe { libc::madvise(self.start.add(from).cast(), length, libc::MADV_DONTNEED) }).map(drop)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; whoever was told its address is told here not to use it any more, or is gone.
        unsafe {
            libc::munmap(self.start.cast(), self.length);
        }
    }
}

/// What this host is called.
pub fn name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "a host without a name".to_owned(),
        name => name.to_owned(),
    }
}

/// The supplementary groups of a process; none of one that has ended.
pub fn groups_of(pid: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    groups.split_whitespace().filter_map(|group| group.parse().ok()).collect()
}

/// Change the flags of a mount; those that `options` do not name stay. Only root may.
pub fn remount(mount: &MountEntry, options: &[&str]) -> io::Result<()> {
    let told = |option: &str| mount.options.iter().any(|told| told == option);
    // Strict times of access are told by saying nothing.
    let strict = if told("relatime") || told("noatime") { 0 } else { libc::MS_STRICTATIME };
    let now = mount.options.iter().map(String::as_str);
    let flags = now
        .chain(options.iter().copied())
        .fold(strict, |flags, option| with_option(flags, option).unwrap_or(flags));
    let [source, mountpoint, kind] = [
        CString::new(mount.source.as_os_str().as_bytes())?,
        CString::new(mount.mountpoint.as_os_str().as_bytes())?,
        CString::new(mount.kind.as_str())?,
    ];
    let flags = flags | libc::MS_REMOUNT;
    // SAFETY: all three are C strings that outlive the call, and a remount needs no data.
    check(unsafe {
        libc::mount(source.as_ptr(), mountpoint.as_ptr(), kind.as_ptr(), flags, std::ptr::null())
    })
    .map(drop)
}

/// Go on in the mount namespace of a process, or of a file such as /proc/PID/ns/mnt. Before any thread is started.
pub fn enter_mount_namespace(namespace: &str) -> io::Result<()> {
    let path = match namespace.parse::<u32>() {
        Ok(pid) => format!("/proc/{pid}/ns/mnt"),
        Err(_) => namespace.to_owned(),
    };
    let namespace = File::open(path)?;
    // SAFETY: setns takes two integers; the descriptor is open for the length of the call.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) }).map(drop)
}

/// How a mount notes accesses: one of these, or none for the kernel's default, relatime.
const ATIME: libc::c_ulong = libc::MS_NOATIME | libc::MS_RELATIME | libc::MS_STRICTATIME;

/// The flags of mount(2) after one more option of mount(8); `None` if it is no flag.
fn with_option(flags: libc::c_ulong, option: &str) -> Option<libc::c_ulong> {
    let atime = flags & !ATIME;
    Some(match option {
        "ro" => flags | libc::MS_RDONLY,
        "rw" => flags & !libc::MS_RDONLY,
        "nosuid" => flags | libc::MS_NOSUID,
        "suid" => flags & !libc::MS_NOSUID,
        "nodev" => flags | libc::MS_NODEV,
        "dev" => flags & !libc::MS_NODEV,
        "noexec" => flags | libc::MS_NOEXEC,
        "exec" => flags & !libc::MS_NOEXEC,
        "noatime" => atime | libc::MS_NOATIME,
        "atime" => flags & !libc::MS_NOATIME,
        "relatime" => atime | libc::MS_RELATIME,
        "strictatime" => atime | libc::MS_STRICTATIME,
        "nodiratime" => flags | libc::MS_NODIRATIME,
        "diratime" => flags & !libc::MS_NODIRATIME,
        "sync" => flags | libc::MS_SYNCHRONOUS,
        "async" => flags & !libc::MS_SYNCHRONOUS,
        "dirsync" => flags | libc::MS_DIRSYNC,
        "nosymfollow" => flags | libc::MS_NOSYMFOLLOW,
        "symfollow" => flags & !libc::MS_NOSYMFOLLOW,
        _ => return None,
    })
}

/// An extended attribute of at most 4 KiB. Asks the file system.
pub fn xattr(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let (path, name) = (CString::new(path.as_os_str().as_bytes())?, CString::new(name)?);
    let mut value = vec![0u8; 4096];
    // SAFETY: `path` and `name` are C strings, and `value` has as many bytes as are said.
    let length =
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(length).map_err(|_| io::Error::last_os_error())?);
    Ok(value)
}

/// Unmount; `lazily` means at once, for all who come later, even while it is in use.
/// `ResourceBusy` while it is in use.
pub fn unmount(mountpoint: &Path, lazily: bool) -> io::Result<()> {
    if is_root() { unmount_as_root(mountpoint, lazily) } else { unmount_with_helper(mountpoint, lazily) }
}

fn unmount_as_root(mountpoint: &Path, lazily: bool) -> io::Result<()> {
    let path = CString::new(mountpoint.as_os_str().as_bytes())?;
    let flags = libc::UMOUNT_NOFOLLOW | if lazily { libc::MNT_DETACH } else { 0 };
    // SAFETY: `path` is a C string that outlives the call.
    check(unsafe { libc::umount2(path.as_ptr(), flags) }).map(drop)
}

/// Unmount what does not answer: the kernel gives up every request on its way, and waits for those that lie in rings until
/// the daemon runs or is gone. Only root may.
pub fn unmount_by_force(mountpoint: &Path) -> io::Result<()> {
    let path = CString::new(mountpoint.as_os_str().as_bytes())?;
    // SAFETY: `path` is a C string that outlives the call.
    check(unsafe { libc::umount2(path.as_ptr(), libc::UMOUNT_NOFOLLOW | libc::MNT_FORCE) }).map(drop)
}

fn unmount_with_helper(mountpoint: &Path, lazily: bool) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg(if lazily { "-uz" } else { "-u" }).arg("--").arg(mountpoint);
    // In the language that is looked for below.
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = if words.contains("busy") { io::ErrorKind::ResourceBusy } else { io::ErrorKind::Other };
    Err(io::Error::new(kind, words))
}

/// Everything programs wrote to the file system that a path lies on is handed to it.
pub fn sync_file_system(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: a plain system call on a descriptor that `file` keeps open.
    check(unsafe { libc::syncfs(file.as_raw_fd()) }).map(drop)
}

/// Open an inode of a FUSE mount, by its number, that somebody has open; `ESTALE` if nobody has. Only root may.
pub fn open_inode(mount: &File, ino: u64) -> io::Result<File> {
    /// struct file_handle, as fs/fuse makes those with the number and a generation, here always 0.
    #[repr(C)]
    struct Handle {
        length: u32,
        kind: i32,
        ino: [u32; 2],
        generation: u32,
    }
    const INO64_GENERATION: i32 = 0x81;
    let ino = [(ino >> 32) as u32, ino as u32];
    let mut handle = Handle { length: 12, kind: INO64_GENERATION, ino, generation: 0 };
    let flags = libc::O_RDONLY | libc::O_NOATIME | libc::O_CLOEXEC;
    // SAFETY: `handle` is a file_handle with as many bytes behind it as it says; what is opened is the returned value's.
    unsafe {
        let handle = (&raw mut handle).cast();
        Ok(File::from_raw_fd(check(libc::open_by_handle_at(mount.as_raw_fd(), handle, flags))?))
    }
}

/// Swap what two paths on one file system name, all at once.
pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    let one = CString::new(one.as_os_str().as_bytes())?;
    let other = CString::new(other.as_os_str().as_bytes())?;
    let (here, flags) = (libc::AT_FDCWD, libc::RENAME_EXCHANGE);
    // SAFETY: both are C strings that outlive the call.
    check(unsafe { libc::renameat2(here, one.as_ptr(), here, other.as_ptr(), flags) }).map(drop)
}

/// Remove a file, or a folder with all below it, and leave what is on another mount than the folder it lies in.
///
/// # Errors
/// What could not be removed, by its path; what comes after it is left.
pub fn remove_all(path: &Path) -> io::Result<()> {
    let folder = open_folder(folder_of(path))?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    remove_from(&folder, name, path, &mount_id(&folder)?)
}

/// By descriptors: what a path leads to may change meanwhile. By the number of the mount: a folder of the same file system
/// may be bound there. What is mounted on a file the kernel leaves itself.
fn remove_from(folder: &File, name: &OsStr, path: &Path, mount: &str) -> io::Result<()> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {}", path.display(), reason(&error)));
    let place = descriptor_path(folder).join(name);
    if !place.symlink_metadata().map_err(named)?.is_dir() {
        return std::fs::remove_file(&place).map_err(named);
    }
    let below = open_folder(&place).map_err(named)?;
    if mount_id(&below)? != mount {
        return Err(io::Error::other(format!("{} is another file system, and is left", path.display())));
    }
    let names = descriptor_path(&below).read_dir().map_err(named)?.map(|entry| Ok(entry?.file_name()));
    for name in names.collect::<io::Result<Vec<_>>>().map_err(named)? {
        remove_from(&below, &name, &path.join(&name), mount)?;
    }
    std::fs::remove_dir(&place).map_err(named)
}

fn open_folder(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

/// A path to what a descriptor has open, whatever became of its name.
fn descriptor_path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Whether a FUSE mount that said this has no daemon any more. Of one that was just killed the kernel gives up requests
/// (`ECONNABORTED`) before it says so at once (`ENOTCONN`).
pub fn says_dead(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// Bytes that may still be written where `path` is; also tells whether a mount answers.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut answer = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: `path` is a C string, and `answer` has room for what statvfs writes.
    check(unsafe { libc::statvfs(path.as_ptr(), answer.as_mut_ptr()) })?;
    // SAFETY: all zeroes is a statvfs, and statvfs has filled it in besides.
    let answer = unsafe { answer.assume_init() };
    Ok(answer.f_bavail.saturating_mul(answer.f_frsize))
}

/// Have the allocator share few arenas. Left alone it has one for many threads, and freed buffers lie scattered over all
/// of them: a third more memory, which was touched for the first time more often. Called before there are threads.
pub fn settle_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Have the kernel forget what it has cached of a file, if nothing of that is dirty.
pub fn forget_pages(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `file` lives.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Bytes of disk that a folder takes, with all below it; what cannot be seen does not count.
pub fn disk_usage(folder: &Path) -> u64 {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_usage(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// Let the kernel read so far ahead on a mount; only root may.
pub fn set_read_ahead(mountpoint: &Path, kib: u32) -> io::Result<()> {
    // The mount itself is not asked: this is for its daemon to call.
    let mount = mount_at(mountpoint)?.ok_or(io::ErrorKind::NotFound)?;
    let setting = format!("/sys/class/bdi/{}/read_ahead_kb", mount.device);
    std::fs::write(setting, kib.to_string())
}

/// Whether root runs this.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Whether a program can be found.
pub fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// User and group that run this.
pub fn user_and_group() -> (u32, u32) {
    // SAFETY: both take nothing and cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// What this program makes from now on is for its user alone. Modes of files on a mount come with the kernel's requests.
pub fn keep_files_private() {
    // SAFETY: takes a number and cannot fail.
    unsafe {
        libc::umask(0o077);
    }
}

/// Let nobody but its owner enter a folder. One of another user stays as it is, and so does a mount point: its mode is that
/// of another file system's root.
pub fn keep_others_out(folder: &Path) -> io::Result<()> {
    let (found, above) = (folder.metadata()?, folder.join("..").metadata()?);
    let is_ours = found.uid() == user_and_group().0 && found.dev() == above.dev();
    match is_ours && found.mode() & 0o077 != 0 {
        true => std::fs::set_permissions(folder, Permissions::from_mode(0o700)),
        false => Ok(()),
    }
}

/// Leave the terminal and the process group of whoever started this.
pub fn begin_session() -> io::Result<()> {
    // SAFETY: setsid takes nothing; it fails only for the leader of a process group.
    check(unsafe { libc::setsid() }).map(drop)
}

/// Let standard output and error go to `log`, and standard input come from nowhere.
pub fn redirect_standard_streams(log: &File) -> io::Result<()> {
    let nothing = File::open("/dev/null")?;
    for (from, to) in [(nothing.as_raw_fd(), 0), (log.as_raw_fd(), 1), (log.as_raw_fd(), 2)] {
        // SAFETY: `from` is open for the length of the call; 0, 1 and 2 are no one's `OwnedFd`.
        check(unsafe { libc::dup2(from, to) })?;
    }
    Ok(())
}

/// Standard output as a file of its own that no child inherits.
pub fn take_standard_output() -> io::Result<File> {
    // SAFETY: F_DUPFD_CLOEXEC opens a new descriptor, which only the returned `File` owns.
    unsafe { Ok(File::from_raw_fd(check(libc::fcntl(1, libc::F_DUPFD_CLOEXEC, 3))?)) }
}

/// A process, by a handle that no other process can come to have.
pub struct Process(OwnedFd);

impl Process {
    /// The process that has this id now.
    pub fn open(pid: u32) -> io::Result<Process> {
        // SAFETY: pidfd_open takes two integers and opens a new descriptor, which only the returned value owns.
        unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0);
            Ok(Process(OwnedFd::from_raw_fd(check(fd as i32)?)))
        }
    }

    /// Wait until it has ended, at most so long; whether it has.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let limit_ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: `poll` is one pollfd that outlives the call.
        Ok(check(unsafe { libc::poll(&mut poll, 1, limit_ms) })? == 1)
    }
}

/// The process at the other end of a Unix socket when it was connected (or began to listen).
pub fn peer_process(socket: &UnixStream) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` has `length` bytes of room, and both outlive the call.
    check(unsafe {
        let peer = (&raw mut peer).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, peer, &mut length)
    })?;
    Ok(peer.pid as u32)
}

fn check(answer: i32) -> io::Result<i32> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// Replace a file, all or nothing, durably.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = folder_of(path);
    let draft = path.with_extension("new");
    let mut file = File::create(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&draft, path)?;
    File::open(folder)?.sync_all()
}

/// A file's content; `None` if there is no such file.
pub fn read_if_there(path: &Path) -> io::Result<Option<String>> {
    let mut text = String::new();
    match File::open(path).and_then(|mut file| file.read_to_string(&mut text)) {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the operating system says, as part of our sentence: lower case, without "(os error 2)".
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_list_are_counted() {
        for (list, count) in [("0", 1), ("0-3", 4), ("0,2-3,7", 4)] {
            assert_eq!(count_of_list(list), Some(count), "{list}");
        }
        for list in ["", "0-", "3-0", "a"] {
            assert_eq!(count_of_list(list), None, "{list}");
        }
    }

    #[test]
    fn a_line_of_mountinfo_is_read_with_its_escapes() {
        let line = br"36 35 0:98 / /mnt/a\040b rw,nosuid shared:1 master:2 - fuse.avidfs /var/lib/avidfs/x\134y rw,user_id=1000";
        let mount = mount_entry(line).unwrap();
        assert_eq!((mount.id.as_str(), mount.device.as_str()), ("36", "0:98"));
        assert!(mount.is_whole());
        assert_eq!(mount.mountpoint, Path::new("/mnt/a b"));
        assert_eq!(mount.source, Path::new("/var/lib/avidfs/x\\y"));
        assert_eq!((mount.user, &mount.options[..2]), (1000, &["rw".to_owned(), "nosuid".to_owned()][..]));
        assert!(mount.is_ours());
        assert_eq!(mount_entry(b"36 35 0:98 / /mnt rw"), None);
    }

    #[test]
    fn of_contrary_mount_options_the_last_one_counts() {
        let flags = |list: &str| list.split(',').try_fold(0, with_option).unwrap();
        assert_eq!(flags("ro,nosuid,rw,nodev"), libc::MS_NOSUID | libc::MS_NODEV);
        assert_eq!(flags("rw,ro,nosuid,suid"), libc::MS_RDONLY);
        assert_eq!(flags("strictatime,noatime"), libc::MS_NOATIME);
        assert_eq!(flags("noatime,nodiratime,relatime"), libc::MS_RELATIME | libc::MS_NODIRATIME);
        assert_eq!(with_option(0, "user_id=0"), None);
    }

    #[test]
    fn a_path_on_a_mount_is_known_from_the_root_of_the_file_system() {
        let mount = |root: &str| {
            let line = format!("36 35 0:98 {root} /srv/www rw - fuse.avidfs avidfs:files rw");
            mount_entry(line.as_bytes()).unwrap()
        };
        let inside = |root: &str, path: &str| mount(root).inside(Path::new(path));
        assert_eq!(inside("/", "/srv/www/a/b"), Some("a/b".into()));
        assert_eq!(inside("/", "/srv/www"), Some("".into()));
        assert_eq!(inside("/a\\040b", "/srv/www/c"), Some("a b/c".into()));
        assert_eq!(inside("/part", "/srv/www").unwrap().as_os_str(), "part");
        assert_eq!(inside("/part", "/srv/wwwroot"), None, "not below it");
        assert_eq!(inside("/", "/srv"), None);
        assert_eq!(inside("/part//deleted", "/srv/www/c"), None);
        assert!(mount("/").is_whole() && !mount("/part").is_whole());
    }

    #[test]
    fn the_mount_of_a_path_is_found_by_its_number() {
        let mount = mount_of(Path::new("/proc/self/mountinfo")).unwrap().unwrap();
        assert_eq!((mount.mountpoint.as_path(), mount.kind.as_str()), (Path::new("/proc"), "proc"));
        assert_eq!(mount_at(Path::new("/proc")).unwrap().unwrap(), mount);
    }

    #[test]
    fn a_folder_is_removed_with_all_below_it_except_what_is_on_another_mount() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("old/below/file");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "some").unwrap();
        std::os::unix::fs::symlink(folder.path(), folder.path().join("old/link")).unwrap();
        let (old, opened) = (folder.path().join("old"), File::open(folder.path()).unwrap());
        let refusal = remove_from(&opened, OsStr::new("old"), &old, "of another number").unwrap_err();
        assert_eq!(refusal.to_string(), format!("{} is another file system, and is left", old.display()));
        assert!(file.exists());
        remove_all(&old).unwrap();
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        let refusal = remove_all(&old).unwrap_err().to_string();
        assert_eq!(refusal, format!("{}: no such file or directory", old.display()));
    }

    #[test]
    fn a_path_is_resolved_as_far_as_it_exists() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
        assert_eq!(resolve(&real.join("link/a/b")), real.join("a/b"));
        assert_eq!(resolve(&real), real);
    }

    #[test]
    fn waiting_for_a_process_ends_with_it() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(!process.wait(Duration::from_millis(1)).unwrap());
        drop(child.stdin.take());
        assert!(process.wait(Duration::from_secs(10)).unwrap());
        child.wait().unwrap();
    }

    #[test]
    fn a_file_is_replaced_all_or_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pool.json");
        assert_eq!(read_if_there(&path).unwrap(), None);
        write_durably(&path, b"one").unwrap();
        write_durably(&path, b"two").unwrap();
        assert_eq!(read_if_there(&path).unwrap().as_deref(), Some("two"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_reason_is_lower_case_and_without_numbers() {
        let error = File::open("/nowhere/at/all").unwrap_err();
        assert_eq!(reason(&error), "no such file or directory");
    }
}
