//! Where an object's bytes come from, a part at a time.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

use common::code::Code;

use super::ObjectError;
use crate::buffers::{Buffer, Buffers};
use crate::host::reason;

/// Bytes to be put.
pub trait Source: Read + Send + 'static {
    /// Begin anew, if that can be done.
    ///
    /// # Errors
    /// It should be possible, and was not.
    fn rewind(&mut self) -> io::Result<bool>;
}

/// A file; it can be read as often as needed.
#[derive(Debug)]
pub struct FileSource(File);

impl FileSource {
    /// The file at `path`, and how many bytes it has now.
    ///
    /// # Errors
    /// `Host`: it cannot be read.
    pub fn open(path: &Path) -> Result<(FileSource, u64), ObjectError> {
        let opened = File::open(path).and_then(|file| {
            let metadata = file.metadata()?;
            if metadata.is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            Ok((FileSource(file), metadata.len()))
        });
        opened.map_err(|error| ObjectError::Host(format!("{}: {}", path.display(), reason(&error))))
    }
}

impl Read for FileSource {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Source for FileSource {
    /// What is no regular file, as a pipe with a name, cannot be read again.
    fn rewind(&mut self) -> io::Result<bool> {
        match self.0.metadata()?.is_file() {
            true => self.0.rewind().map(|()| true),
            false => Ok(false),
        }
    }
}

/// What comes once, as standard input does.
#[derive(Debug)]
pub struct StreamSource<R>(pub R);

impl<R: Read> Read for StreamSource<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read + Send + 'static> Source for StreamSource<R> {
    fn rewind(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}

/// A source cut into parts, with the hash of what was cut so far.
pub(super) struct Cutter<S> {
    source: S,
    code: Code,
    part_bytes: usize,
    /// The first byte of the next part: read to know whether there is one.
    ahead: Option<u8>,
    hasher: blake3::Hasher,
    length: u64,
}

impl<S: Source> Cutter<S> {
    pub(super) fn new(source: S, code: Code, part_bytes: u32) -> Cutter<S> {
        let part_bytes = part_bytes as usize;
        Cutter { source, code, part_bytes, ahead: None, hasher: blake3::Hasher::new(), length: 0 }
    }

    /// The next part, with room for what pads it, and whether it is the last one. Waits for the source.
    pub(super) fn next(&mut self) -> Result<(Buffer, bool), ObjectError> {
        let mut buffer = Buffers::shared().take(self.code.padded_length(self.part_bytes as u64));
        buffer.extend_from_slice(self.ahead.take().as_slice());
        let wanted = self.part_bytes - buffer.len();
        buffer.extend_from_stream(&mut self.source, wanted).map_err(|error| unreadable(&error))?;
        self.hasher.update(&buffer);
        self.length += buffer.len() as u64;
        if buffer.len() == self.part_bytes {
            self.ahead = self.peek().map_err(|error| unreadable(&error))?;
        }
        Ok((buffer, self.ahead.is_none()))
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        let read = read_some(&mut self.source, &mut byte)?;
        Ok((read == 1).then_some(byte[0]))
    }

    /// Begin anew, if the source can.
    pub(super) fn rewind(&mut self) -> Result<bool, ObjectError> {
        let can = self.source.rewind().map_err(|error| unreadable(&error))?;
        if can {
            (self.ahead, self.length) = (None, 0);
            self.hasher.reset();
        }
        Ok(can)
    }

    /// Bytes so far, and their BLAKE3.
    pub(super) fn so_far(&self) -> (u64, common::hash::Hash) {
        (self.length, (*self.hasher.finalize().as_bytes()).into())
    }
}

fn read_some(mut source: impl Read, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

fn unreadable(error: &io::Error) -> ObjectError {
    ObjectError::Host(format!("what is to be put cannot be read: {}", reason(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(bytes: &'static [u8]) -> Vec<(Vec<u8>, bool)> {
        // A reader that gives one byte at a time.
        let source = StreamSource(bytes.chain(io::empty()));
        let mut cutter = Cutter::new(source, "3+2".parse().unwrap(), 4);
        let mut parts = Vec::new();
        loop {
            let (part, is_last) = cutter.next().unwrap();
            parts.push((part.to_vec(), is_last));
            if is_last {
                assert_eq!(cutter.so_far(), (bytes.len() as u64, (*blake3::hash(bytes).as_bytes()).into()));
                return parts;
            }
        }
    }

    #[test]
    fn parts_are_full_but_the_last_and_none_is_empty_but_the_only_one() {
        assert_eq!(cut(b""), [(vec![], true)]);
        assert_eq!(cut(b"abc"), [(b"abc".to_vec(), true)]);
        assert_eq!(cut(b"abcd"), [(b"abcd".to_vec(), true)]);
        assert_eq!(cut(b"abcde"), [(b"abcd".to_vec(), false), (b"e".to_vec(), true)]);
        assert_eq!(cut(b"abcdefgh"), [(b"abcd".to_vec(), false), (b"efgh".to_vec(), true)]);
    }

    #[test]
    fn a_file_can_be_read_again_and_a_folder_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"abcdefghij").unwrap();
        let (source, length) = FileSource::open(&path).unwrap();
        assert_eq!(length, 10);
        let mut cutter = Cutter::new(source, "3+2".parse().unwrap(), 4);
        cutter.next().unwrap();
        assert!(cutter.rewind().unwrap());
        assert_eq!(&cutter.next().unwrap().0[..], b"abcd");
        assert_eq!(cutter.so_far().0, 4);
        let error = FileSource::open(folder.path()).unwrap_err().to_string();
        assert!(error.ends_with("is a directory"), "{error}");
    }
}
