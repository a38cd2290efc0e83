//! What the store asks of Linux beyond std: holes, free space, dropping cached pages. The only file with unsafe code.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use rand::TryRngCore;
use rand::rngs::OsRng;

/// What a file system has.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Bytes in all.
    pub total: u64,
    /// Bytes an ordinary process may still take.
    pub free: u64,
}

/// Give the blocks of a range back to the file system; it then reads as zeros. The length stays.
pub fn punch(file: &File, from: u64, to: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: a plain system call on a descriptor that `file` keeps open.
    let done = unsafe { libc::fallocate(file.as_raw_fd(), mode, from as i64, (to - from) as i64) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The first byte at or after `from` that is not in a hole; `None` when only a hole follows.
pub fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    seek(file, from, libc::SEEK_DATA)
}

/// The first byte at or after `from` that is in a hole; the end of the file counts as one.
pub fn next_hole(file: &File, from: u64) -> io::Result<Option<u64>> {
    seek(file, from, libc::SEEK_HOLE)
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

/// Forget what the page cache has of a flushed file, so that the next read asks the disk. Best effort.
pub fn drop_cached(file: &File) {
    // SAFETY: a plain system call on an open descriptor; advice changes no bytes.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
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

/// Make the names in a folder durable.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
