//! A file system of few bytes, mounted where a program keeps its data, so that the disk is full at a place that the
//! program did not choose; and emptied again.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::mount::statfs;
use crate::process::{need_root, run};
use crate::scratch::detach;

/// What fills it lies here.
const BALLAST: &str = "ballast";

/// Memory mounted at a folder; detached when dropped.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mount one of so many bytes; the folder is made, or must be empty.
    pub fn mount(path: &Path, size: u64) -> SmallDisk {
        need_root("it mounts a tmpfs");
        fs::create_dir_all(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let options = format!("size={size},mode=0700");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "avidfs-tests"]).arg(path));
        SmallDisk { path: path.to_owned() }
    }

    /// Take all room but so many bytes, in whole pages.
    pub fn fill_but(&self, left: u64) {
        self.empty();
        let mut ballast = File::create(self.path.join(BALLAST)).expect("there is room for a name");
        let page = [0; 4096];
        for _ in 0..self.free().saturating_sub(left) / page.len() as u64 {
            if ballast.write_all(&page).is_err() {
                return;
            }
        }
    }

    /// Give the room back.
    pub fn empty(&self) {
        let _ = fs::remove_file(self.path.join(BALLAST));
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        let room = statfs(&self.path).expect("a mounted tmpfs answers");
        room.f_bavail * room.f_bsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        detach(&self.path);
    }
}
