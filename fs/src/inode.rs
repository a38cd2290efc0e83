//! Inodes and what callers bring along: plain values, no storage and no kernel types.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The number of an inode; 1 is the root.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Ino(pub u64);

/// The root directory.
pub const ROOT: Ino = Ino(1);
/// Longest name of an entry, in bytes.
pub const MAX_NAME: usize = 255;
/// Longest target of a symbolic link, in bytes.
pub const MAX_TARGET: usize = 4095;
/// Most links to one inode, as ext4 has it.
pub const MAX_LINKS: u32 = 65_000;
/// Largest size of a file, in bytes: 2^63 - 1 less a page, so that every page has a valid end.
pub const MAX_SIZE: u64 = i64::MAX as u64 - 4096;

/// A point in time: seconds since 1970, before it negative, and nanoseconds from there on, 0 to 999,999,999.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// Nanoseconds after that second.
    pub nanos: u32,
}

impl Time {
    /// The host's clock. Only the edges (fuse.rs, background tasks) ask; everything below is told.
    pub fn now() -> Time {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Time {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Time { seconds: after.as_secs() as i64, nanos: after.subsec_nanos() },
            Err(error) => {
                let before = error.duration();
                match before.subsec_nanos() {
                    0 => Time { seconds: -(before.as_secs() as i64), nanos: 0 },
                    nanos => Time { seconds: -(before.as_secs() as i64) - 1, nanos: 1_000_000_000 - nanos },
                }
            }
        }
    }
}

impl From<Time> for SystemTime {
    fn from(time: Time) -> SystemTime {
        let nanos = Duration::from_nanos(u64::from(time.nanos));
        match u64::try_from(time.seconds) {
            Ok(seconds) => UNIX_EPOCH + Duration::from_secs(seconds) + nanos,
            Err(_) => UNIX_EPOCH - Duration::from_secs(time.seconds.unsigned_abs()) + nanos,
        }
    }
}

/// Who asks, and when: time is an argument, so that tests own the clock.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The caller's user.
    pub uid: u32,
    /// The caller's group.
    pub gid: u32,
    /// When the request arrived.
    pub now: Time,
}

/// The attributes of an inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inode {
    /// Its number.
    pub ino: Ino,
    /// Type and permission bits, as `st_mode`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Links; of a directory 2 and one for each subdirectory.
    pub links: u32,
    /// Size in bytes; of a directory the number of entries times a constant, of a link its target's length.
    pub size: u64,
    /// Bytes that extents cover, for `st_blocks`.
    pub allocated: u64,
    /// Device number of a device node.
    pub rdev: u32,
    /// Last access.
    pub atime: Time,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Birth.
    pub btime: Time,
}

impl Inode {
    /// The type bits of the mode (`S_IFMT`).
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }

    /// Its content changed then, if that is newer than what it knows.
    pub fn written_at(&mut self, mtime: Time) {
        self.mtime = self.mtime.max(mtime);
        self.ctime = self.ctime.max(mtime);
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind() == libc::S_IFREG
    }
}

/// A time to set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetTime {
    /// The caller's now.
    Now,
    /// A given one.
    At(Time),
}

/// Attributes a caller wants changed; `None` stays. The kernel has checked that the caller may.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SetAttributes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size of a regular file, bytes.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the content.
    pub mtime: Option<SetTime>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_survive_the_way_there_and_back() {
        for time in [
            Time { seconds: -2, nanos: 800_000_000 },
            Time { seconds: -1, nanos: 0 },
            Time { seconds: -2_177_452_800, nanos: 1 },
            Time { seconds: 15_032_385_535, nanos: 999_999_999 },
        ] {
            assert_eq!(Time::from(SystemTime::from(time)), time);
        }
    }
}
