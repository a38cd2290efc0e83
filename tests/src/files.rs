//! System calls that std does not offer, with errors as `io::Error`.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path has no NUL")
}

fn c_text(text: &str) -> CString {
    CString::new(text).expect("a name has no NUL")
}

fn check(answer: i64) -> io::Result<u64> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as u64) }
}

/// fallocate(2).
pub fn fallocate(file: &File, mode: i32, offset: u64, length: u64) -> io::Result<()> {
    // SAFETY: it takes integers only.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset as i64, length as i64) }.into()).map(drop)
}

/// Let a range become a hole; the size stays.
pub fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, length)
}

/// Drop what the kernel keeps of a file's pages, so that the next read asks the file system.
pub fn forget_pages(file: &File) -> io::Result<()> {
    // SAFETY: it takes integers only.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// lseek(2) with SEEK_DATA or SEEK_HOLE.
pub fn seek(file: &File, offset: u64, whence: i32) -> io::Result<u64> {
    // SAFETY: it takes integers only.
    check(unsafe { libc::lseek(file.as_raw_fd(), offset as i64, whence) })
}

/// copy_file_range(2), once.
pub fn copy_range(from: &File, from_offset: u64, to: &File, to_offset: u64, length: u64) -> io::Result<u64> {
    let (mut from_offset, mut to_offset) = (from_offset as i64, to_offset as i64);
    // SAFETY: both offsets outlive the call.
    let copied = unsafe {
        libc::copy_file_range(
            from.as_raw_fd(),
            &mut from_offset,
            to.as_raw_fd(),
            &mut to_offset,
            length as usize,
            0,
        )
    };
    check(copied as i64)
}

/// open(2) with any flags; the handle is closed on exec.
pub fn open(path: &Path, flags: i32, mode: u32) -> io::Result<File> {
    let path = c_path(path);
    // SAFETY: the path is a C string that outlives the call.
    let descriptor = check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode) }.into())?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { File::from_raw_fd(descriptor as i32) })
}

/// mknod(2).
pub fn make_node(path: &Path, mode: u32, device: u64) -> io::Result<()> {
    let path = c_path(path);
    // SAFETY: the path is a C string that outlives the call.
    check(unsafe { libc::mknod(path.as_ptr(), mode, device) }.into()).map(drop)
}

/// Give what is open a (further) name: linkat(2) through /proc.
pub fn link_open(file: &File, to: &Path) -> io::Result<()> {
    let from = c_text(&format!("/proc/self/fd/{}", file.as_raw_fd()));
    let (to, follow) = (c_path(to), libc::AT_SYMLINK_FOLLOW);
    // SAFETY: both paths are C strings that outlive the call.
    let answer = unsafe { libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), follow) };
    check(answer.into()).map(drop)
}

/// truncate(2).
pub fn truncate(path: &Path, length: i64) -> io::Result<()> {
    let path = c_path(path);
    // SAFETY: the path is a C string that outlives the call.
    check(unsafe { libc::truncate(path.as_ptr(), length) }.into()).map(drop)
}

/// flock(2).
pub fn flock(file: &File, operation: i32) -> io::Result<()> {
    // SAFETY: it takes integers only.
    check(unsafe { libc::flock(file.as_raw_fd(), operation) }.into()).map(drop)
}

/// fcntl(2) with a command about locks, from `start` for `length` bytes; returns what it filled in.
pub fn lock(file: &File, command: i32, kind: i32, start: i64, length: i64) -> io::Result<libc::flock> {
    // SAFETY: zeros are a valid flock.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    (lock.l_type, lock.l_whence) = (kind as i16, libc::SEEK_SET as i16);
    (lock.l_start, lock.l_len) = (start, length);
    // SAFETY: `lock` outlives the call, which reads and writes nothing else.
    check(unsafe { libc::fcntl(file.as_raw_fd(), command, &mut lock) }.into())?;
    Ok(lock)
}

/// Bytes at an address that O_DIRECT wants: a multiple of 4096.
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// So many zeros.
    pub fn new(length: usize) -> Aligned {
        let bytes = vec![0; length + 4096];
        let start = bytes.as_ptr().align_offset(4096);
        Aligned { bytes, start, length }
    }

    /// They.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

/// renameat2(2) with flags such as RENAME_NOREPLACE.
pub fn rename_with(from: &Path, to: &Path, flags: u32) -> io::Result<()> {
    let (from, to) = (c_path(from), c_path(to));
    // SAFETY: both paths are C strings that outlive the call.
    let answer =
        unsafe { libc::renameat2(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags) };
    check(answer.into()).map(drop)
}

/// utimensat(2): atime and mtime as seconds and nanoseconds; does not follow a symbolic link.
pub fn set_times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) -> io::Result<()> {
    let spec = |(tv_sec, tv_nsec): (i64, i64)| libc::timespec { tv_sec, tv_nsec };
    let times = [spec(atime), spec(mtime)];
    let path = c_path(path);
    // SAFETY: the path is a C string and there are two times; both outlive the call.
    let answer =
        unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) };
    check(answer.into()).map(drop)
}

/// futimens(2).
pub fn set_times_of(file: &File, atime: (i64, i64), mtime: (i64, i64)) -> io::Result<()> {
    let spec = |(tv_sec, tv_nsec): (i64, i64)| libc::timespec { tv_sec, tv_nsec };
    let times = [spec(atime), spec(mtime)];
    // SAFETY: there are two times, which outlive the call.
    check(unsafe { libc::futimens(file.as_raw_fd(), times.as_ptr()) }.into()).map(drop)
}

/// setxattr(2).
pub fn set_xattr(path: &Path, name: &str, value: &[u8], flags: i32) -> io::Result<()> {
    let (path, name) = (c_path(path), c_text(name));
    // SAFETY: path and name are C strings, the value has its length; all outlive the call.
    let answer =
        unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    check(answer.into()).map(drop)
}

/// getxattr(2).
pub fn xattr(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let (path, name) = (c_path(path), c_text(name));
    let mut value = vec![0u8; 65536];
    // SAFETY: path and name are C strings, the buffer has its length; all outlive the call.
    let answer =
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(check(answer as i64)? as usize);
    Ok(value)
}

/// getxattr(2) into a buffer of that size; 0 asks for the size alone.
pub fn xattr_size(path: &Path, name: &str, size: usize) -> io::Result<u64> {
    let (path, name) = (c_path(path), c_text(name));
    let mut value = vec![0u8; size];
    // SAFETY: path and name are C strings, the buffer has its length; all outlive the call.
    check(unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), size) } as i64)
}

/// listxattr(2), sorted.
pub fn xattrs(path: &Path) -> io::Result<Vec<String>> {
    let path = c_path(path);
    let mut names = vec![0u8; 65536];
    // SAFETY: the path is a C string, the buffer has its length; both outlive the call.
    let answer = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(check(answer as i64)? as usize);
    let mut names: Vec<String> = names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect();
    names.sort();
    Ok(names)
}

/// removexattr(2).
pub fn remove_xattr(path: &Path, name: &str) -> io::Result<()> {
    let (path, name) = (c_path(path), c_text(name));
    // SAFETY: path and name are C strings that outlive the call.
    check(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }.into()).map(drop)
}

/// A directory being read: opendir(3).
pub struct Listing(*mut libc::DIR);

impl Listing {
    /// Begin to read a directory.
    pub fn open(path: &Path) -> io::Result<Listing> {
        let path = c_path(path);
        // SAFETY: the path is a C string that outlives the call.
        let stream = unsafe { libc::opendir(path.as_ptr()) };
        if stream.is_null() { Err(io::Error::last_os_error()) } else { Ok(Listing(stream)) }
    }

    /// The next entry's name and number, also of the two dots.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<(String, u64)> {
        // SAFETY: the stream is open; the entry is read before anybody uses the stream again.
        unsafe {
            let entry = libc::readdir64(self.0).as_ref()?;
            let name = std::ffi::CStr::from_ptr(entry.d_name.as_ptr());
            Some((name.to_string_lossy().into_owned(), entry.d_ino))
        }
    }

    /// Where it is: telldir(3).
    pub fn place(&mut self) -> i64 {
        // SAFETY: the stream is open.
        unsafe { libc::telldir(self.0) }
    }

    /// Go on from such a place: seekdir(3).
    pub fn go(&mut self, place: i64) {
        // SAFETY: the stream is open, and the place is one it named.
        unsafe { libc::seekdir(self.0, place) }
    }

    /// Begin anew: rewinddir(3).
    pub fn rewind(&mut self) {
        // SAFETY: the stream is open.
        unsafe { libc::rewinddir(self.0) }
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        // SAFETY: the stream is open, and nobody uses it any more.
        unsafe { libc::closedir(self.0) };
    }
}

/// A file's pages shared with everyone, writable; unmapped when dropped.
pub struct Mapped {
    address: *mut libc::c_void,
    length: usize,
}

impl Mapped {
    /// mmap(2) the first `length` bytes.
    pub fn new(file: &File, length: usize) -> io::Result<Mapped> {
        Mapped::with(file, length, libc::MAP_SHARED)
    }

    /// The same for this process alone.
    pub fn private(file: &File, length: usize) -> io::Result<Mapped> {
        Mapped::with(file, length, libc::MAP_PRIVATE)
    }

    fn with(file: &File, length: usize, flags: i32) -> io::Result<Mapped> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Mapped { address, length })
        }
    }

    /// Its bytes. Touching one beyond the end of the file kills the process (SIGBUS).
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping has `length` bytes and lives as long as `self`; `&mut self` keeps this process's
        // access exclusive, and what others write to the file are still bytes.
        unsafe { std::slice::from_raw_parts_mut(self.address.cast(), self.length) }
    }

    /// msync(2), waiting for it.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: address and length are those of the mapping.
        check(unsafe { libc::msync(self.address, self.length, libc::MS_SYNC) }.into()).map(drop)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: address and length are those of the mapping, which nobody uses any more.
        unsafe { libc::munmap(self.address, self.length) };
    }
}

/// The errno of a result, 0 for success.
pub fn errno<T>(result: &io::Result<T>) -> i32 {
    match result {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    }
}
