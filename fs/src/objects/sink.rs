//! Where an object's bytes go.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use common::paths::folder_of;
use common::wire::NodeId;
use rand::TryRngCore;
use rand::rngs::OsRng;

use super::ObjectError;
use crate::host::reason;

/// Takes an object's bytes in their order.
pub trait Sink: Write + Send + 'static {
    /// Take back all that was written, if that can be done.
    ///
    /// # Errors
    /// It should be possible, and was not.
    fn begin_again(&mut self) -> io::Result<bool>;
}

/// A file that appears under its name only when it is whole. Dropped before, nothing of it is left.
#[derive(Debug)]
pub struct FileSink {
    file: File,
    draft: PathBuf,
    path: PathBuf,
}

impl FileSink {
    /// Write to a new file beside `path`, whose name begins with a dot.
    ///
    /// # Errors
    /// `Host`: it cannot be made.
    pub fn create(path: &Path) -> Result<FileSink, ObjectError> {
        let refused = |error: io::Error| ObjectError::Host(format!("{}: {}", path.display(), reason(&error)));
        if path.is_dir() {
            return Err(refused(io::ErrorKind::IsADirectory.into()));
        }
        let draft = path.with_file_name(draft_name(path).map_err(refused)?);
        let file = OpenOptions::new().write(true).create_new(true).open(&draft).map_err(refused)?;
        Ok(FileSink { file, draft, path: path.to_owned() })
    }

    /// Have it on stable storage, then under its name, in place of what was there.
    ///
    /// # Errors
    /// `Host`; what was there before is there still.
    pub fn keep(self) -> Result<(), ObjectError> {
        let kept = self.file.sync_all().and_then(|()| {
            fs::rename(&self.draft, &self.path)?;
            File::open(folder_of(&self.path))?.sync_all()
        });
        kept.map_err(|error| ObjectError::Host(format!("{}: {}", self.path.display(), reason(&error))))
    }
}

fn draft_name(path: &Path) -> io::Result<OsString> {
    let mut number = [0; 16];
    OsRng.try_fill_bytes(&mut number).map_err(io::Error::other)?;
    let _name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(format!(".avidfs-{}", NodeId(number)).into())
}

impl Write for FileSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Sink for FileSink {
    fn begin_again(&mut self) -> io::Result<bool> {
        io::Seek::rewind(&mut self.file)?;
        self.file.set_len(0)?;
        Ok(true)
    }
}

impl Drop for FileSink {
    fn drop(&mut self) {
        // Gone already where it was kept.
        let _ = fs::remove_file(&self.draft);
    }
}

/// What is written and gone, as to standard output.
#[derive(Debug)]
pub struct StreamSink<W> {
    stream: W,
    has_written: bool,
}

impl<W: Write> StreamSink<W> {
    /// Writes to `stream`.
    pub fn new(stream: W) -> StreamSink<W> {
        StreamSink { stream, has_written: false }
    }
}

impl<W: Write> Write for StreamSink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.has_written |= !bytes.is_empty();
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<W: Write + Send + 'static> Sink for StreamSink<W> {
    fn begin_again(&mut self) -> io::Result<bool> {
        Ok(!self.has_written)
    }
}

#[cfg(test)]
impl Sink for Vec<u8> {
    fn begin_again(&mut self) -> io::Result<bool> {
        self.clear();
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_appears_when_it_is_kept_and_nothing_is_left_otherwise() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        fs::write(&path, b"before").unwrap();
        let mut sink = FileSink::create(&path).unwrap();
        sink.write_all(b"half").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"before");
        drop(sink);
        assert_eq!(names(folder.path()), ["out"]);
        let mut sink = FileSink::create(&path).unwrap();
        sink.write_all(b"an old version").unwrap();
        assert!(sink.begin_again().unwrap());
        sink.write_all(b"whole").unwrap();
        sink.keep().unwrap();
        assert_eq!((fs::read(&path).unwrap(), names(folder.path()).len()), (b"whole".to_vec(), 1));
    }

    #[test]
    fn a_folder_is_no_file_to_write() {
        let folder = tempfile::tempdir().unwrap();
        assert!(FileSink::create(folder.path()).unwrap_err().to_string().ends_with("is a directory"));
        assert!(FileSink::create(&folder.path().join("no/where")).is_err());
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_stream_can_begin_again_only_before_its_first_byte() {
        let mut sink = StreamSink::new(Vec::new());
        assert!(sink.begin_again().unwrap());
        sink.write_all(b"a").unwrap();
        assert!(!sink.begin_again().unwrap());
    }
}
