//! Making commits safe from power loss: one flush of the -wal file for all who ask.
//!
//! Why that is enough, with `synchronous = NORMAL` (https://www.sqlite.org/wal.html, "Performance Considerations",
//! and https://www.sqlite.org/pragma.html#pragma_synchronous). A commit that returned lies in one of two places:
//!
//! * In the -wal file, written but not flushed. Then fdatasync of that file makes it durable, and with it all
//!   earlier ones that are still there: replay takes the longest prefix of whole, checksummed transactions.
//! * In the database, put there by a checkpoint. A checkpoint flushes the -wal file before it writes into the
//!   database, and flushes the database before the -wal file may be begun anew; when it is, its new header is
//!   flushed before frames follow, so that no old frame can be taken for a new one.
//!
//! So a flush of the -wal file that *begins* after a commit returned makes it durable wherever it lies, also if a
//! checkpoint runs meanwhile. The file stays the same one while a connection is open: only the last to close
//! deletes it. Its name in the folder is flushed once, at the open.
//!
//! Changes that are only in the redo log are none of this: whoever wants a flush commits them first, so the log itself
//! never needs one.
//!
//! (Opening and closing the -wal file takes no lock of SQLite's away, which opening and closing the *database* by
//! other means would: its POSIX lock lies there.)

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use common::paths::folder_of;
use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};

/// The -wal file, and how far it is flushed.
pub(super) struct Wal {
    file: File,
    /// Commits that returned.
    committed: AtomicU64,
    flushed: Mutex<Flushed>,
    changed: Condvar,
}

#[derive(Default)]
struct Flushed {
    /// So many commits survive power loss.
    commits: u64,
    /// Somebody is at it.
    running: bool,
    /// Why a flush went wrong. It stays: the kernel reports an error once and then counts the pages as clean, so
    /// a later flush that goes well says nothing about what was lost.
    failed: Option<String>,
}

impl Wal {
    /// The -wal file of the open database `path`, and its name made durable.
    pub(super) fn open(path: &Path) -> Result<Wal> {
        let name = wal_of(path);
        let trouble = |error: std::io::Error| Error::Host(format!("{}: {error}", name.display()));
        let file = File::open(&name).map_err(trouble)?;
        file.sync_all().map_err(trouble)?;
        File::open(folder_of(path)).and_then(|folder| folder.sync_all()).map_err(trouble)?;
        Ok(Wal { file, committed: AtomicU64::new(0), flushed: Mutex::default(), changed: Condvar::new() })
    }

    /// A commit returned.
    pub(super) fn committed(&self) {
        self.committed.fetch_add(1, Ordering::Release);
    }

    /// Whether every commit that returned is durable.
    #[cfg(test)]
    pub(super) fn is_flushed(&self) -> bool {
        self.flushed.lock().commits == self.committed.load(Ordering::Acquire)
    }

    /// Make every commit that returned before the call durable. Free if there was none since the last time; all
    /// who come while a flush runs share the next one.
    pub(super) fn sync(&self) -> Result<()> {
        let wanted = self.committed.load(Ordering::Acquire);
        let mut flushed = self.flushed.lock();
        loop {
            if let Some(reason) = &flushed.failed {
                return Err(Error::Host(format!("the metadata store could not be flushed: {reason}")));
            }
            if flushed.commits >= wanted {
                return Ok(());
            }
            if flushed.running {
                self.changed.wait(&mut flushed);
                continue;
            }
            flushed.running = true;
            drop(flushed);
            let covered = self.committed.load(Ordering::Acquire);
            let outcome = self.file.sync_data();
            flushed = self.flushed.lock();
            flushed.running = false;
            match outcome {
                Ok(()) => flushed.commits = covered,
                Err(error) => flushed.failed = Some(error.to_string()),
            }
            self.changed.notify_all();
        }
    }
}

fn wal_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push("-wal");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that cannot be flushed.
    fn unflushable() -> Wal {
        Wal {
            file: File::open("/dev/null").unwrap(),
            committed: AtomicU64::new(0),
            flushed: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    #[test]
    fn nothing_to_flush_is_no_flush() {
        unflushable().sync().unwrap();
    }

    #[test]
    fn a_flush_that_failed_is_never_forgotten() {
        let mut wal = unflushable();
        wal.committed();
        assert!(matches!(wal.sync(), Err(Error::Host(_))));
        wal.file = tempfile::tempfile().unwrap();
        assert!(matches!(wal.sync(), Err(Error::Host(_))), "the lost pages do not come back");
    }
}
