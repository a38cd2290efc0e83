//! The redo log: records of changes whose verbs returned and whose transaction is not committed yet, in a file beside
//! the database. docs/metadata.md draws it. It knows bytes and numbers of changes, and no SQL.
//!
//! A frame is whole once its one write has returned, as far as the kernel knows: that outlives the process, and not a
//! power loss. So nothing here is ever flushed, and after a power loss any frame may be missing, torn or an old one.
//! Each checksum is one over all before it, back to the salt in the header, so that no such mixture passes for a log.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut};

use crate::error::{Error, Result};

/// What the file begins with; the digit is its version.
const MAGIC: &[u8; 8] = b"AVIDRDO1";
/// Magic and salt.
const HEADER: usize = 16;
/// Checksum, length and number.
const FRAME_HEADER: usize = CHECKSUM + 4 + 8;
const CHECKSUM: usize = 16;

/// Of the header or a frame, and of all before it.
type Checksum = [u8; CHECKSUM];

/// The records of one change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Frame {
    /// Number of the change.
    pub(super) number: u64,
    /// What `outbox` has of it.
    pub(super) records: Vec<u8>,
}

/// The file, and where its next frame goes.
pub(super) struct RedoLog {
    path: PathBuf,
    pub(super) file: File,
    header: [u8; HEADER],
    /// Whether the file is known to begin with this header.
    begun: bool,
    end: End,
    frames: usize,
}

/// Where a log ends, and the checksum its next frame goes on from.
#[derive(Clone, Copy)]
struct End {
    offset: usize,
    checksum: Checksum,
}

/// The log with one frame more, which counts once `keep` is given this.
pub(super) struct Written(End);

impl RedoLog {
    /// The log of the database `database`, made with its permissions if there is none. What it holds counts only if
    /// it was written under `salt`.
    pub(super) fn open(database: &Path, salt: u64) -> Result<RedoLog> {
        let path = path_of(database);
        let open = || {
            let mode = std::fs::metadata(database)?.permissions().mode() & 0o777;
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(mode).open(&path)
        };
        let file = open().map_err(|error| Error::Host(format!("{}: {error}", path.display())))?;
        let header = header(salt);
        Ok(RedoLog { path, file, header, begun: false, end: End::of(&header), frames: 0 })
    }

    /// What the file holds, in order.
    pub(super) fn read(&self) -> Result<Vec<Frame>> {
        let read = || {
            let mut bytes = vec![0; self.file.metadata()?.len() as usize];
            self.file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        };
        Ok(parse(&read().map_err(|error| self.trouble(error))?, &self.header))
    }

    /// Write a frame behind the last that was kept. After an error, and until `keep`, the next one takes its place.
    pub(super) fn write(&self, number: u64, records: &[u8]) -> Result<Written> {
        let mut bytes = Vec::with_capacity(HEADER + FRAME_HEADER + records.len());
        if !self.begun {
            bytes.put_slice(&self.header);
        }
        let offset = self.end.offset - bytes.len();
        let checksum = encode(&mut bytes, &self.end.checksum, number, records);
        self.file.write_all_at(&bytes, offset as u64).map_err(|error| self.trouble(error))?;
        Ok(Written(End { offset: offset + bytes.len(), checksum }))
    }

    /// Let a frame count.
    pub(super) fn keep(&mut self, Written(end): Written) {
        self.end = end;
        self.begun = true;
        self.frames += 1;
    }

    /// Everything in it is committed: the next frame is the first again.
    pub(super) fn restart(&mut self) {
        self.end = End::of(&self.header);
        self.frames = 0;
    }

    /// Restart under another salt, after which nothing counts that was written before.
    pub(super) fn renew(&mut self, salt: u64) {
        self.header = header(salt);
        self.begun = false;
        self.restart();
    }

    /// How many frames were kept since it began.
    pub(super) fn frames(&self) -> usize {
        self.frames
    }

    /// How long it is, in bytes.
    pub(super) fn length(&self) -> usize {
        self.end.offset
    }

    /// Take the file away; a log of which everything is committed is of no use.
    pub(super) fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }

    fn trouble(&self, error: std::io::Error) -> Error {
        Error::Host(format!("{}: {error}", self.path.display()))
    }
}

impl End {
    fn of(header: &[u8; HEADER]) -> End {
        // Not a digest: what follows it is hashed with it.
        End { offset: HEADER, checksum: *header }
    }
}

fn path_of(database: &Path) -> PathBuf {
    let mut name = OsString::from(database);
    name.push("-redo");
    name.into()
}

fn header(salt: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..].copy_from_slice(&salt.to_le_bytes());
    header
}

/// Append a frame; returns its checksum.
fn encode(bytes: &mut Vec<u8>, before: &Checksum, number: u64, records: &[u8]) -> Checksum {
    let start = bytes.len();
    // The checksum before it first, which is hashed with the rest and then gives way to its own.
    bytes.put_slice(before);
    bytes.put_u32_le(u32::try_from(records.len()).expect("SQLite takes no blob of 4 GiB"));
    bytes.put_u64_le(number);
    bytes.put_slice(records);
    let checksum = checksum(&[&bytes[start..]]);
    bytes[start..start + CHECKSUM].copy_from_slice(&checksum);
    checksum
}

fn checksum(parts: &[&[u8]]) -> Checksum {
    let mut hasher = blake3::Hasher::new();
    parts.iter().for_each(|part| {
        hasher.update(part);
    });
    *hasher.finalize().as_bytes().first_chunk().expect("a digest is longer than a checksum")
}

/// The frames behind a header, up to the first that is torn, left from before, or does not continue the numbers.
fn parse(bytes: &[u8], header: &[u8; HEADER]) -> Vec<Frame> {
    let Some(mut bytes) = bytes.strip_prefix(header) else { return Vec::new() };
    let mut frames: Vec<Frame> = Vec::new();
    let mut before = End::of(header).checksum;
    while let Some((frame, checksum)) = next(&mut bytes, &before) {
        if frames.last().is_some_and(|last| last.number.checked_add(1) != Some(frame.number)) {
            break;
        }
        frames.push(frame);
        before = checksum;
    }
    frames
}

fn next(bytes: &mut &[u8], before: &Checksum) -> Option<(Frame, Checksum)> {
    let (said, rest) = bytes.split_first_chunk::<CHECKSUM>()?;
    let mut fields = rest;
    let length = fields.try_get_u32_le().ok()? as usize;
    let number = fields.try_get_u64_le().ok()?;
    let (records, left) = fields.split_at_checked(length)?;
    let hashed = &rest[..FRAME_HEADER - CHECKSUM + length];
    if checksum(&[before, hashed]) != *said {
        return None;
    }
    *bytes = left;
    Some((Frame { number, records: records.to_vec() }, *said))
}

#[cfg(test)]
mod tests {
    use avidfs_tests::fuzz::fuzz;
    use tempfile::TempDir;

    use super::*;

    const SALT: u64 = 7;

    fn log() -> (TempDir, RedoLog) {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("metadata.db");
        std::fs::write(&database, "").unwrap();
        let log = RedoLog::open(&database, SALT).unwrap();
        (folder, log)
    }

    fn frame(number: u64, records: &str) -> Frame {
        Frame { number, records: records.as_bytes().to_vec() }
    }

    fn append(log: &mut RedoLog, number: u64, records: &str) {
        let written = log.write(number, records.as_bytes()).unwrap();
        log.keep(written);
    }

    fn bytes_of(log: &RedoLog) -> Vec<u8> {
        std::fs::read(&log.path).unwrap()
    }

    #[test]
    fn frames_come_back_as_far_as_they_are_whole() {
        let (_folder, mut log) = log();
        assert_eq!(log.read().unwrap(), []);
        append(&mut log, 4, "four");
        let first = log.length();
        append(&mut log, 5, "five");
        let both = [frame(4, "four"), frame(5, "five")];
        assert_eq!(log.read().unwrap(), both);
        let whole = bytes_of(&log);
        for length in 0..whole.len() {
            let found = parse(&whole[..length], &log.header);
            assert_eq!(found, both[..usize::from(length >= first)]);
        }
        for at in 0..whole.len() {
            let mut torn = whole.clone();
            torn[at] ^= 1;
            let expected = if at < HEADER { 0 } else { usize::from(at >= first) };
            assert_eq!(parse(&torn, &log.header), both[..expected], "byte {at}");
        }
    }

    #[test]
    fn what_is_left_from_before_never_continues_a_log() {
        let (_folder, mut log) = log();
        for number in 1..6 {
            append(&mut log, number, "same");
        }
        log.restart();
        append(&mut log, 2, "same");
        assert_eq!(log.read().unwrap(), [frame(2, "same")], "though 3 stands behind it");
        // As after a power loss that took the database back: the same change again, and what had followed on it.
        log.restart();
        append(&mut log, 1, "same");
        assert_eq!(log.read().unwrap().len(), 5);
        log.renew(SALT + 1);
        assert_eq!(log.read().unwrap(), []);
        append(&mut log, 1, "same");
        assert_eq!(log.read().unwrap(), [frame(1, "same")], "it is another timeline");
    }

    #[test]
    fn numbers_that_do_not_follow_end_a_log() {
        let (_folder, mut log) = log();
        append(&mut log, 1, "one");
        append(&mut log, 3, "three");
        assert_eq!(log.read().unwrap(), [frame(1, "one")]);
    }

    #[test]
    fn a_frame_that_was_not_kept_gives_way() {
        let (_folder, mut log) = log();
        append(&mut log, 1, "one");
        log.write(2, b"undone, and longer than what comes in its place").unwrap();
        append(&mut log, 2, "two");
        assert_eq!(log.read().unwrap(), [frame(1, "one"), frame(2, "two")]);
    }

    #[test]
    fn the_file_has_the_permissions_of_the_database() {
        let (_folder, log) = log();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&log.path), mode(&log.path.with_extension("db")));
        let narrow = log.path.with_extension("narrow");
        std::fs::write(&narrow, "").unwrap();
        std::fs::set_permissions(&narrow, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(mode(&RedoLog::open(&narrow, SALT).unwrap().path) & 0o777, 0o600);
    }

    #[test]
    fn bytes_are_those_drawn_in_the_docs() {
        let (_folder, mut log) = log();
        append(&mut log, 9, "ab");
        let bytes = bytes_of(&log);
        assert_eq!(bytes[..16], *b"AVIDRDO1\x07\0\0\0\0\0\0\0");
        assert_eq!(bytes[32..], *b"\x02\0\0\0\x09\0\0\0\0\0\0\0ab");
        let digest = blake3::hash(&[&bytes[..16], &bytes[32..]].concat());
        assert_eq!(bytes[16..32], digest.as_bytes()[..16]);
    }

    fn encode_all(frames: &[Frame]) -> Vec<u8> {
        let mut bytes = header(SALT).to_vec();
        let mut before = header(SALT);
        for Frame { number, records } in frames {
            before = encode(&mut bytes, &before, *number, records);
        }
        bytes
    }

    #[test]
    fn whatever_the_bytes_only_what_was_written_is_read() {
        let frames: Vec<Frame> = (1..4).map(|number| frame(number, "some records")).collect();
        let valid: Vec<Vec<u8>> = (0..=3).map(|count| encode_all(&frames[..count])).collect();
        // The value of the shortest frame has more room than its bytes, and vectors grow by doubling.
        let most = |length| 8 * length + 1024;
        let parse = |bytes: &[u8]| bytes.starts_with(MAGIC).then(|| parse(bytes, &header(SALT)));
        fuzz("redo-log", &valid, most, parse, |found, bytes| {
            if !found.is_empty() {
                assert!(bytes.starts_with(&encode_all(&found)));
            }
        });
    }
}
