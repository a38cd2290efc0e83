//! When inodes were last accessed. Noted in memory and written to the store now and then, many in one transaction: a
//! reader never waits for it, and a crash loses a few times of access and nothing else.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::Volume;
use crate::error::Result;
use crate::inode::{Ino, Inode, Time};

/// After so long an access is noted even though nothing was changed since the last one, in seconds; relatime's rule.
const A_DAY: i64 = 24 * 60 * 60;

/// Which accesses are noted, as mount(8) names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AccessTimes {
    /// The first after a change, and one a day.
    #[default]
    Relative,
    /// As `Relative`, but none of directories.
    RelativeOfFiles,
    /// All that reach the daemon.
    Strict,
    /// None.
    Never,
}

impl AccessTimes {
    /// Whether an access now is to be noted.
    pub fn are_due(self, inode: &Inode, now: Time) -> bool {
        match self {
            AccessTimes::Never => false,
            AccessTimes::Strict => true,
            AccessTimes::RelativeOfFiles if inode.is_directory() => false,
            AccessTimes::Relative | AccessTimes::RelativeOfFiles => {
                inode.atime <= inode.mtime
                    || inode.atime <= inode.ctime
                    || now.seconds - inode.atime.seconds >= A_DAY
            }
        }
    }
}

/// Accesses the store does not know of yet.
#[derive(Default)]
pub struct Accesses {
    noted: Mutex<HashMap<Ino, Time>>,
    /// Held while some are written to the store.
    writing: Mutex<()>,
}

impl Accesses {
    /// An access.
    pub fn note(&self, ino: Ino, now: Time) {
        self.noted.lock().insert(ino, now);
    }

    /// The time is set by hand, or the inode is gone: what was noted until now does not reach the store any more.
    pub fn forget(&self, ino: Ino) {
        let _nothing_is_written = self.writing.lock();
        self.noted.lock().remove(&ino);
    }

    /// Lay what is noted over what the store says.
    pub fn overlay(&self, inode: &mut Inode) {
        if let Some(time) = self.noted.lock().get(&inode.ino) {
            inode.atime = *time;
        }
    }
}

impl Volume {
    /// A file was opened for reading; the kernel may answer all reads from its cache, so this is when the access is
    /// noted if it is due. Returns whether the kernel's idea of the time of access is now an old one.
    ///
    /// Of a file that nothing was done with since the mount began the kernel has no bytes. Its first read comes to us, and
    /// is an access of which the kernel knows.
    ///
    /// # Errors
    /// The store's.
    pub fn opened_for_reading(&self, ino: Ino, now: Time) -> Result<bool> {
        let inode = self.attributes(ino)?;
        if self.options.access_times != AccessTimes::Strict && self.is_untouched(&inode, now) {
            return Ok(false);
        }
        let due = inode.size > 0 && self.options.access_times.are_due(&inode, now);
        if due {
            self.accesses.note(ino, now);
        }
        Ok(due)
    }

    /// Whether the mount, which is not a day old, has neither read nor written it: an access that is due today is noted.
    fn is_untouched(&self, inode: &Inode, now: Time) -> bool {
        let last = inode.atime.max(inode.mtime).max(inode.ctime);
        last < self.begun && now.seconds - self.begun.seconds < A_DAY
    }

    /// A directory was listed, a link followed: note it if it is due.
    ///
    /// # Errors
    /// The store's.
    pub fn accessed(&self, ino: Ino, now: Time) -> Result<()> {
        if self.options.access_times.are_due(&self.attributes(ino)?, now) {
            self.accesses.note(ino, now);
        }
        Ok(())
    }

    /// Write to the store what was noted; what cannot be written stays noted. Nothing once another mount has the volume: it
    /// would not reach the pool.
    pub(super) fn write_accesses(&self) -> Result<()> {
        if self.is_fenced() {
            return Ok(());
        }
        let _writing = self.accesses.writing.lock();
        let noted: Vec<(Ino, Time)> =
            self.accesses.noted.lock().iter().map(|(ino, time)| (*ino, *time)).collect();
        if noted.is_empty() {
            return Ok(());
        }
        self.metadata.set_accessed(&noted)?;
        let mut now = self.accesses.noted.lock();
        for (ino, time) in noted {
            // One that was noted anew meanwhile is written the next time.
            if now.get(&ino) == Some(&time) {
                now.remove(&ino);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(atime: i64, mtime: i64) -> Inode {
        let at = |seconds| Time { seconds, nanos: 0 };
        Inode {
            ino: Ino(2),
            mode: libc::S_IFREG,
            uid: 0,
            gid: 0,
            links: 1,
            size: 1,
            allocated: 1,
            rdev: 0,
            atime: at(atime),
            mtime: at(mtime),
            ctime: at(mtime),
            btime: at(0),
        }
    }

    #[test]
    fn relatime_notes_the_first_access_after_a_change_and_one_a_day() {
        let due = |atime, mtime, now| {
            AccessTimes::Relative.are_due(&inode(atime, mtime), Time { seconds: now, nanos: 0 })
        };
        assert!(due(5, 5, 6) && due(5, 6, 7));
        assert!(!due(7, 6, 8) && !due(7, 6, 7 + A_DAY - 1));
        assert!(due(7, 6, 7 + A_DAY));
    }

    #[test]
    fn a_time_set_by_hand_waits_for_those_that_are_written() {
        let accesses = Accesses::default();
        accesses.note(Ino(2), Time { seconds: 1, nanos: 0 });
        let writing = accesses.writing.lock();
        std::thread::scope(|threads| {
            let setting = threads.spawn(|| accesses.forget(Ino(2)));
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(!setting.is_finished());
            drop(writing);
        });
        assert!(accesses.noted.lock().is_empty());
    }

    #[test]
    fn the_other_policies_are_what_they_are_called() {
        let now = Time { seconds: 9, nanos: 0 };
        let (read, fresh) = (inode(7, 6), inode(5, 6));
        let directory = Inode { mode: libc::S_IFDIR, ..fresh.clone() };
        assert!(AccessTimes::Strict.are_due(&read, now));
        assert!(!AccessTimes::Never.are_due(&fresh, now));
        assert!(AccessTimes::RelativeOfFiles.are_due(&fresh, now));
        assert!(!AccessTimes::RelativeOfFiles.are_due(&directory, now));
    }
}
