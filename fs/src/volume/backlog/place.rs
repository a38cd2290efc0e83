//! Where a volume's backlog is, and what the state folder remembers of one that was left elsewhere: docs/backlog.md draws
//! the note. A mount that would serve a volume without bytes that wait for it is refused.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use common::wire::{ObjectId, VolumeId};

use super::{backlog_files, host};
use crate::error::{Error, Result};
use crate::host::{resolve, write_durably};

/// What a note begins with.
const HEAD: &[u8] = b"avidfs backlog 1\n";
/// Name of the backlog in the state folder, which is the volume's own.
const OWN: &str = "backlog";
/// Name of the note in the state folder.
pub const NOTE: &str = "backlog.left";

/// Where sealed bytes of one volume wait.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backlog {
    /// Nothing of another volume lies in it.
    pub folder: PathBuf,
    /// Whether it lies below a folder that was given, and may be out of sight at the next mount.
    is_given: bool,
    /// Where it is noted that bytes were left in such a folder.
    note: Option<PathBuf>,
}

impl Backlog {
    /// In a folder that goes where the metadata goes.
    pub fn own(folder: PathBuf) -> Backlog {
        Backlog { folder, is_given: false, note: None }
    }

    /// Where a mount keeps the bytes of a volume: in its state folder, or in a folder named after it below a `given` one,
    /// in which other volumes may have theirs.
    pub fn of(volume: VolumeId, state: &Path, given: Option<&Path>) -> Backlog {
        let (own, note) = (state.join(OWN), Some(state.join(NOTE)));
        match given.filter(|given| resolve(given) != resolve(&own)) {
            None => Backlog { folder: own, is_given: false, note },
            Some(given) => Backlog { folder: given.join(volume.to_string()), is_given: true, note },
        }
    }

    /// The folder in which bytes of the volume wait by what its state folder knows, whether or not it is this one.
    ///
    /// # Errors
    /// The disk, or a damaged note.
    pub fn left(&self, state: &Path) -> Result<Option<PathBuf>> {
        if let Some(noted) = noted(&state.join(NOTE))?
            // Where the folder is still there, a crash came before the first byte or after the last.
            && !(noted.is_dir() && is_empty(&noted)?)
        {
            return Ok(Some(noted));
        }
        let own = state.join(OWN);
        Ok((!is_empty(&own)?).then_some(own))
    }

    /// That a mount which writes stores what was `left`, and nothing else.
    ///
    /// # Errors
    /// `Host`: bytes wait elsewhere, or cannot be seen; or there are some of which the state folder does not know.
    pub fn check(&self, name: &str, state: &Path, left: Option<&Path>) -> Result<()> {
        let (folder, own, note) = (self.folder.display(), state.join(OWN), state.join(NOTE));
        let refused = |sentence: String| Err(Error::Host(sentence));
        let is_here = |left: &Path| resolve(left) == resolve(&self.folder);
        match left {
            Some(left) if is_here(left) && left.is_dir() => {}
            Some(left) if is_here(left) => {
                return refused(format!(
                    "bytes of volume {name} wait in {folder}, which is not there: mount the disk it is on, or remove {} \
                     to mount without them",
                    note.display()
                ));
            }
            Some(left) if left == own => {
                return refused(format!(
                    "bytes of volume {name} wait in {}: mount once without --backlog-dir, or move that folder away to mount \
                     without them",
                    own.display()
                ));
            }
            Some(left) => {
                let given = left.parent().unwrap_or(left).display();
                return refused(format!(
                    "bytes of volume {name} wait in {}: mount with --backlog-dir {given}, or remove {} to mount without them",
                    left.display(),
                    note.display()
                ));
            }
            None if !is_empty(&self.folder)? => {
                return refused(format!(
                    "bytes in {folder} were left by another state folder, or given up by this one, and newer ones may have \
                     been written since: move that folder away to mount without them"
                ));
            }
            None => {}
        }
        match self.nobodys()? {
            None => Ok(()),
            Some(item) => refused(format!(
                "{} was left by an earlier avidfs and does not say of which volume it is: move it and its like into {} and \
                 mount once without --backlog-dir, if they are of volume {name}, and elsewhere if not",
                item.display(),
                own.display()
            )),
        }
    }

    /// The first of the items that an earlier version left beside the folders of volumes.
    fn nobodys(&self) -> Result<Option<PathBuf>> {
        let Some(given) = self.folder.parent().filter(|_| self.is_given) else { return Ok(None) };
        let is_item = |path: &PathBuf| {
            let name = path.file_name().and_then(OsStr::to_str);
            name.is_some_and(|name| name.parse::<ObjectId>().is_ok())
        };
        Ok(backlog_files(given)?.into_iter().find(is_item))
    }

    /// Before the first byte is left there: the next mount finds it by the note.
    pub(super) fn note(&self) -> Result<()> {
        let Some(note) = self.note.as_ref().filter(|_| self.is_given) else { return Ok(()) };
        make_durably(&self.folder).map_err(|error| host("create", &self.folder, &error))?;
        let text = [HEAD, self.folder.as_os_str().as_bytes(), b"\n"].concat();
        write_durably(note, &text).map_err(|error| host("write", note, &error))
    }

    /// After the last byte was stored. The note goes first: without the folder it would tell of bytes that are out of sight.
    pub(super) fn clear(&self) -> Result<()> {
        let Some(note) = &self.note else { return Ok(()) };
        let removed =
            fs::remove_file(note).and_then(|()| File::open(note.parent().unwrap_or(note))?.sync_all());
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(host("remove", note, &error)),
            _ => {
                if self.is_given {
                    // What was never finished may lie there still.
                    let _ = fs::remove_dir(&self.folder);
                }
                Ok(())
            }
        }
    }
}

fn is_empty(folder: &Path) -> Result<bool> {
    Ok(backlog_files(folder)?.is_empty())
}

/// The folder that a note tells of; paths are bytes.
fn noted(note: &Path) -> Result<Option<PathBuf>> {
    let text = match fs::read(note) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(host("read", note, &error)),
    };
    let folder = text.strip_prefix(HEAD).and_then(|rest| rest.strip_suffix(b"\n"));
    match folder.filter(|folder| !folder.is_empty()) {
        Some(folder) => Ok(Some(PathBuf::from(OsStr::from_bytes(folder)))),
        None => Err(Error::Host(format!(
            "{} does not say where bytes wait; remove it to mount without them",
            note.display()
        ))),
    }
}

/// With the folders above it, of which none is lost by a power loss that leaves the note.
fn make_durably(folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    folder.ancestors().skip(1).take(2).try_for_each(|above| File::open(above)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::super::{Item, keep, tests::item};
    use super::*;

    const ONE: VolumeId = VolumeId([1; 16]);
    const OTHER: VolumeId = VolumeId([2; 16]);

    /// Two state folders and one folder for backlogs.
    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Host {
            let host = Host(tempfile::tempdir().unwrap());
            ["one", "other", "big"].iter().for_each(|name| fs::create_dir(host.path(name)).unwrap());
            host
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn one(&self, given: Option<&str>) -> Backlog {
            Backlog::of(ONE, &self.path("one"), given.map(|name| self.path(name)).as_deref())
        }

        /// What a mount that writes finds, or why it is refused.
        fn mount(&self, backlog: &Backlog, state: &str) -> std::result::Result<Option<PathBuf>, String> {
            let state = self.path(state);
            let left = backlog.left(&state).map_err(|error| error.to_string())?;
            backlog.check("home", &state, left.as_deref()).map_err(|error| error.to_string())?;
            Ok(left)
        }

        fn refused(&self, backlog: &Backlog) -> String {
            self.mount(backlog, "one").expect_err("bytes would be passed over, or be laid over newer ones")
        }
    }

    fn leave(backlog: &Backlog) {
        assert_eq!(keep(backlog, 1000, &[item()]).lost, None);
    }

    fn stored(backlog: &Backlog) {
        backlog_files(&backlog.folder).unwrap().iter().for_each(|path| fs::remove_file(path).unwrap());
        backlog.clear().unwrap();
    }

    /// Bytes waited in the folder of one mount, the next one looked into another and served what was before.
    #[test]
    fn a_mount_that_looks_elsewhere_is_told_where_bytes_wait() {
        let host = Host::new();
        let (big, own) = (host.one(Some("big")), host.one(None));
        assert_eq!(host.mount(&big, "one"), Ok(None));
        leave(&big);
        let sentence = host.refused(&own);
        let given = format!("--backlog-dir {},", host.path("big").display());
        assert!(
            sentence.contains(&big.folder.display().to_string()) && sentence.contains(&given),
            "{sentence}"
        );
        assert_eq!(host.refused(&host.one(Some("small"))), sentence);
        assert_eq!(host.mount(&big, "one"), Ok(Some(big.folder.clone())));
        stored(&big);
        assert_eq!(host.mount(&own, "one"), Ok(None));
        assert_eq!(fs::read_dir(host.path("big")).unwrap().count(), 0);

        leave(&own);
        let sentence = host.refused(&big);
        assert!(sentence.contains(&own.folder.display().to_string()), "{sentence}");
        assert_eq!(host.mount(&own, "one"), Ok(Some(own.folder.clone())));
        assert_eq!(host.one(Some("one/backlog")), own);
    }

    #[test]
    fn a_disk_that_is_not_mounted_is_not_an_empty_backlog() {
        let host = Host::new();
        let big = host.one(Some("big"));
        leave(&big);
        fs::rename(host.path("big"), host.path("away")).unwrap();
        fs::create_dir(host.path("big")).unwrap();
        let sentence = host.refused(&big);
        assert!(sentence.contains("which is not there") && sentence.contains(NOTE), "{sentence}");
        // Cut off before the first byte, or after the last one.
        fs::create_dir(&big.folder).unwrap();
        assert_eq!(host.mount(&big, "one"), Ok(None));
    }

    /// After they were given up the volume was written again.
    #[test]
    fn bytes_that_were_given_up_are_not_laid_over_newer_ones() {
        let host = Host::new();
        let (big, own) = (host.one(Some("big")), host.one(None));
        leave(&big);
        fs::remove_file(host.path("one").join(NOTE)).unwrap();
        assert_eq!(host.mount(&own, "one"), Ok(None));
        assert!(host.refused(&big).contains("move that folder away"));
    }

    /// They were stored into whatever file of the other volume had the same number.
    #[test]
    fn volumes_that_share_a_folder_leave_each_others_bytes_alone() {
        let host = Host::new();
        let (one, big) = (host.one(Some("big")), host.path("big"));
        leave(&one);
        let other = Backlog::of(OTHER, &host.path("other"), Some(&big));
        assert_eq!(host.mount(&other, "other"), Ok(None));
        leave(&other);
        stored(&other);
        assert_eq!(backlog_files(&one.folder).unwrap().len(), 1);
        assert_eq!(host.mount(&one, "one"), Ok(Some(one.folder)));
    }

    #[test]
    fn what_an_earlier_version_left_is_taken_where_it_can_only_be_the_volumes_own() {
        let host = Host::new();
        let earlier: Item = item();
        let own = host.path("one").join(OWN);
        assert_eq!(keep(&Backlog::own(host.path("big")), 1000, &[earlier]).lost, None);
        let sentence = host.refused(&host.one(Some("big")));
        assert!(sentence.contains("00000003-0000000000000009 was left by an earlier avidfs"), "{sentence}");
        fs::rename(host.path("big"), &own).unwrap();
        assert_eq!(host.mount(&host.one(None), "one"), Ok(Some(own)));
    }

    #[test]
    fn a_damaged_note_is_refused() {
        let host = Host::new();
        for text in ["", "avidfs backlog 1\n\n", "avidfs backlog 2\n/big\n", "avidfs backlog 1\n/big"] {
            fs::write(host.path("one").join(NOTE), text).unwrap();
            assert!(host.refused(&host.one(None)).contains("does not say where"), "{text:?}");
        }
    }
}
