//! The disk below the store: what is asked of it, and Linux's own. The only file with unsafe code.
//!
//! A trait, so that a disk that loses power or fails can be modelled (modelled.rs). Lock and identity of a data folder
//! are not asked through it: they are written once, durably, before there is anything to lose.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rand::TryRngCore;
use rand::rngs::OsRng;

/// Files and their names. A name is durable once its folder was flushed, bytes once their file was.
pub trait Disk: Debug + Send + Sync {
    /// Make a new file, to be read and written.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Open a file, to be read and written.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Rename a file; it takes the place of what was there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Remove a file; who has it open still can read it.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// The names in a folder, in any order.
    fn names(&self, folder: &Path) -> io::Result<Vec<String>>;
    /// Make the names in a folder durable.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
}

/// An open file. Offsets are named with each call, so that many may use it at once.
pub trait DiskFile: Send + Sync {
    /// Fill `buffer` from `offset`; `UnexpectedEof` where the file ends before.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Write all of `bytes` at `offset`.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// fdatasync.
    fn sync(&self) -> io::Result<()>;
    /// Give the blocks of a range back to the file system; it then reads as zeros. The length stays.
    fn punch(&self, from: u64, to: u64) -> io::Result<()>;
    /// End the file at `length`, before which it did not end.
    fn cut(&self, length: u64) -> io::Result<()>;
    /// The first byte at or after `from` that is not in a hole; `None` when only a hole follows.
    fn next_data(&self, from: u64) -> io::Result<Option<u64>>;
    /// The first byte at or after `from` that is in a hole; the end of the file counts as one.
    fn next_hole(&self, from: u64) -> io::Result<Option<u64>>;
    /// Its length.
    fn length(&self) -> io::Result<u64>;
    /// Bytes that the file system gave it.
    fn allocated(&self) -> io::Result<u64>;
    /// Forget what the page cache has of it, flushed before, so that the next read asks the disk. Best effort.
    fn drop_cached(&self);
}

/// The files of this host.
#[derive(Debug)]
pub struct LocalDisk;

impl Disk for LocalDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<String>> {
        let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
        fs::read_dir(folder)?.map(name).collect()
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        File::open(folder)?.sync_all()
    }
}

impl DiskFile for File {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn punch(&self, from: u64, to: u64) -> io::Result<()> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: a plain system call on a descriptor that `self` keeps open.
        let done = unsafe { libc::fallocate(self.as_raw_fd(), mode, from as i64, (to - from) as i64) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        seek(self, from, libc::SEEK_DATA)
    }

    fn next_hole(&self, from: u64) -> io::Result<Option<u64>> {
        seek(self, from, libc::SEEK_HOLE)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.metadata()?.blocks() * 512)
    }

    fn drop_cached(&self) {
        // SAFETY: a plain system call on an open descriptor; advice changes no bytes.
        unsafe { libc::posix_fadvise(self.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }
}

/// What a file system has.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Bytes in all.
    pub total: u64,
    /// Bytes an ordinary process may still take.
    pub free: u64,
}

fn seek(file: &File, from: u64, whence: i32) -> io::Result<Option<u64>> {
    // SAFETY: a plain system call on an open descriptor; the offset it moves is used by nobody, reads and writes name theirs.
    let found = unsafe { libc::lseek(file.as_raw_fd(), from as i64, whence) };
    if found >= 0 {
        return Ok(Some(found as u64));
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENXIO) { Ok(None) } else { Err(error) }
}

/// Space of the file system that holds an open file.
pub fn room(file: &File) -> io::Result<Room> {
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `stat` has room for the answer, which is read only when the call says it is there.
    let stat = unsafe {
        if libc::fstatvfs(file.as_raw_fd(), stat.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        stat.assume_init()
    };
    Ok(Room { total: stat.f_blocks * stat.f_frsize, free: stat.f_bavail * stat.f_frsize })
}

/// Let this process have as many files open as it may: one per segment. Best effort.
pub fn raise_file_limit() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a pointer to a live `rlimit` and keep none.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// Have the allocator give large buffers back to the system, and small ones share few arenas.
///
/// Left alone it keeps freed buffers scattered over an arena per thread, which doubled a node's memory.
pub fn settle_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets two numbers of the allocator; called before there are threads.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 512 << 10);
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// What this program makes from now on is for its user alone.
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
    // SAFETY: geteuid takes nothing and cannot fail.
    let is_ours = found.uid() == unsafe { libc::geteuid() } && found.dev() == above.dev();
    match is_ours && found.mode() & 0o077 != 0 {
        true => fs::set_permissions(folder, Permissions::from_mode(0o700)),
        false => Ok(()),
    }
}

/// Bytes nobody can guess.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    OsRng.try_fill_bytes(&mut bytes).expect("Linux gives random bytes");
    bytes
}

/// Whether the disk said that it is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}
