//! Content that is a function of seed and offset: any part of any file can be written and checked alone.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::hash::{Hash, HashId};

use crate::seed::mixed;

const WORD: u64 = 8;
/// Bytes written or compared at once.
const CHUNK: usize = 1 << 20;

/// Fill `bytes` with what stands at `offset` of the content `seed`.
pub fn fill(seed: u64, offset: u64, bytes: &mut [u8]) {
    let key = mixed(seed ^ 0x5bd1_e995);
    let word = |index: u64| mixed(key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_le_bytes();
    let skip = ((WORD - offset % WORD) % WORD) as usize;
    let (head, rest) = bytes.split_at_mut(skip.min(bytes.len()));
    let first = word(offset / WORD);
    let start = (offset % WORD) as usize;
    head.copy_from_slice(&first[start..start + head.len()]);
    let from = offset.div_ceil(WORD);
    for (index, chunk) in rest.chunks_mut(WORD as usize).enumerate() {
        chunk.copy_from_slice(&word(from + index as u64)[..chunk.len()]);
    }
}

/// The bytes `offset..offset + length` of the content `seed`.
pub fn bytes(seed: u64, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fill(seed, offset, &mut bytes);
    bytes
}

/// Write a file of the content `seed`; returned without being closed, so that the caller sees what close says.
pub fn write(path: &Path, seed: u64, length: u64) -> io::Result<File> {
    let mut file = File::create(path)?;
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    while offset < length {
        let part = &mut chunk[..(length - offset).min(CHUNK as u64) as usize];
        fill(seed, offset, part);
        file.write_all(part)?;
        offset += part.len() as u64;
    }
    Ok(file)
}

/// Write a file of the content `seed` and close it; whatever fails fails the test.
pub fn put(path: &Path, seed: u64, length: u64) {
    let file = write(path, seed, length).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    close(file).unwrap_or_else(|error| panic!("close {}: {error}", path.display()));
}

/// Write a file of the content `seed`, fsync and close it, with the first error of the three.
pub fn keep(path: &Path, seed: u64, length: u64) -> io::Result<()> {
    let file = write(path, seed, length)?;
    file.sync_all()?;
    close(file)
}

/// close(2) with its answer, which dropping a `File` throws away.
pub fn close(file: File) -> io::Result<()> {
    use std::os::fd::IntoRawFd;
    // SAFETY: the descriptor was the file's alone and is given up here.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a file holds exactly `length` bytes of the content `seed`; otherwise a sentence, also for an I/O error.
pub fn compare(path: &Path, seed: u64, length: u64) -> Result<(), String> {
    let shown = path.display();
    let file = File::open(path).map_err(|error| format!("open {shown}: {error}"))?;
    let size = file.metadata().map_err(|error| format!("stat {shown}: {error}"))?.len();
    if size != length {
        return Err(format!("{shown} has {size} bytes instead of {length}"));
    }
    compare_range(&file, seed, 0, length).map_err(|wrong| format!("{shown}: {wrong}"))
}

/// Whether a range of a file is that of the content `seed`.
pub fn compare_range(file: &File, seed: u64, offset: u64, length: u64) -> Result<(), String> {
    let (mut found, mut wanted) = (vec![0; CHUNK], vec![0; CHUNK]);
    let end = offset + length;
    let mut at = offset;
    while at < end {
        let part = (end - at).min(CHUNK as u64) as usize;
        file.read_exact_at(&mut found[..part], at).map_err(|error| format!("read at {at}: {error}"))?;
        fill(seed, at, &mut wanted[..part]);
        if let Some(wrong) = (0..part).find(|&i| found[i] != wanted[i]) {
            return Err(format!(
                "WRONG BYTE at {}: {:#04x}, not {:#04x}",
                at + wrong as u64,
                found[wrong],
                wanted[wrong]
            ));
        }
        at += part as u64;
    }
    Ok(())
}

/// As `compare`, and anything else than these bytes fails the test.
pub fn check(path: &Path, seed: u64, length: u64) {
    if let Err(sentence) = compare(path, seed, length) {
        panic!("{sentence}");
    }
}

/// The BLAKE3 hash of a file.
pub fn digest(path: &Path) -> Hash {
    let mut hasher = HashId::Blake3.hasher();
    let mut file = File::open(path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
    let mut chunk = vec![0; CHUNK];
    loop {
        match io::Read::read(&mut file, &mut chunk)
            .unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
        {
            0 => return hasher.finish(),
            count => hasher.update(&chunk[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_the_same_wherever_one_begins() {
        let whole = bytes(7, 0, 100);
        for start in 0..20 {
            for end in start..100 {
                assert_eq!(bytes(7, start as u64, end - start), whole[start..end]);
            }
        }
        assert_ne!(bytes(8, 0, 100), whole);
    }

    #[test]
    fn a_wrong_byte_is_found_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        put(&path, 1, 3_000_000);
        assert_eq!(compare(&path, 1, 3_000_000), Ok(()));
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[bytes(1, 2_500_000, 1)[0] ^ 1], 2_500_000).unwrap();
        assert!(compare(&path, 1, 3_000_000).unwrap_err().contains("WRONG BYTE at 2500000"));
        assert!(compare(&path, 1, 3_000_001).unwrap_err().contains("instead of 3000001"));
    }
}
