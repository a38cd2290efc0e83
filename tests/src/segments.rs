//! A node's segments from outside, as docs/node-store.md draws them: find a fragment's bytes on the disk and damage them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::seed::Dice;

const ALIGNMENT: u64 = 64;
const HEADER: u64 = 64;
/// Header of an encoded FPCC.
const FPCC_HEADER: u64 = 32;
const LIVE: u8 = 0x5a;

/// A live record: one fragment with its FPCC.
#[derive(Clone, Debug)]
pub struct Record {
    /// The segment.
    pub file: PathBuf,
    /// Where the record begins.
    pub offset: u64,
    /// The object's key.
    pub key: String,
    /// The fragment's index.
    pub index: u8,
    /// m of its FPCC.
    pub m: u64,
    /// n of its FPCC.
    pub n: u64,
    key_length: u64,
    fpcc_length: u64,
    fragment_length: u64,
}

/// A kind of byte that is damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Bytes `.0` to `.1` of what stands before key and FPCC: magic, state, index, lengths, check ...
    Header(u64, u64),
    /// The object's key.
    Key,
    /// Bytes `.0` to `.1` of the FPCC's header: magic, version, hash, m, n, lengths ...
    FpccHeader(u64, u64),
    /// One of the n hashes.
    Hash(u64),
    /// One of the m fingerprints.
    Fingerprint(u64),
    /// The fragment: its first byte, the last, one in the middle.
    FragmentFirst,
    /// See `FragmentFirst`.
    FragmentMiddle,
    /// See `FragmentFirst`.
    FragmentLast,
    /// The whole fragment becomes zeros.
    FragmentZeroed,
}

impl Record {
    /// The bytes of the segment that a place covers.
    pub fn range(&self, place: Place) -> Range<u64> {
        let key = self.offset + HEADER;
        let fpcc = key + self.key_length;
        let fragment = fpcc + self.fpcc_length;
        let one = |at: u64| at..at + 1;
        match place {
            Place::Header(from, to) => self.offset + from..self.offset + to,
            Place::Key => key..fpcc,
            Place::FpccHeader(from, to) => fpcc + from..fpcc + to,
            Place::Hash(i) => fpcc + FPCC_HEADER + 32 * i..fpcc + FPCC_HEADER + 32 * (i + 1),
            Place::Fingerprint(i) => {
                let first = fpcc + FPCC_HEADER + 32 * self.n;
                first + 16 * i..first + 16 * (i + 1)
            }
            Place::FragmentFirst => one(fragment),
            Place::FragmentMiddle => one(fragment + self.fragment_length / 2),
            Place::FragmentLast => one(fragment + self.fragment_length - 1),
            Place::FragmentZeroed => fragment..fragment + self.fragment_length,
        }
    }

    /// Damage one byte of a place (`choice` says which), or set all of them to zero for `FragmentZeroed`.
    pub fn damage(&self, place: Place, choice: u64) {
        self.try_damage(place, choice).unwrap_or_else(|error| panic!("{}: {error}", self.file.display()));
    }

    fn try_damage(&self, place: Place, choice: u64) -> io::Result<()> {
        let file = File::options().read(true).write(true).open(&self.file)?;
        let range = self.range(place);
        if place == Place::FragmentZeroed {
            let zeros = vec![0; (range.end - range.start) as usize];
            return file.write_all_at(&zeros, range.start);
        }
        let at = range.start + choice % (range.end - range.start);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ (1 << (choice % 8))], at)
    }
}

/// Damage about so many of a hundred live records anywhere, each in one place, and say how many. The node may run: what it
/// takes away meanwhile is passed by.
pub fn rot(data_dir: &Path, percent: u64, dice: &mut Dice) -> usize {
    let records = files(data_dir).iter().flat_map(|file| walk(file).unwrap_or_default()).collect::<Vec<_>>();
    let chosen = records.iter().filter(|_| dice.chance(percent)).collect::<Vec<_>>();
    let mut damage = |record: &&&Record| {
        let place = *dice.pick(&every_place(record.m, record.n));
        record.try_damage(place, dice.roll()).is_ok()
    };
    chosen.iter().filter(|record| damage(record)).count()
}

/// Every class of byte of a record of code m+p with n fragments.
pub fn every_place(m: u64, n: u64) -> Vec<Place> {
    let header =
        [(0, 4), (4, 5), (5, 6), (6, 8), (8, 16), (16, 32), (32, 40), (40, 42), (42, 44), (44, 48), (48, 64)];
    let fpcc = [(0, 8), (8, 9), (9, 10), (10, 11), (11, 12), (12, 14), (14, 16), (16, 24), (24, 32)];
    let mut places: Vec<Place> = header.into_iter().map(|(from, to)| Place::Header(from, to)).collect();
    places.push(Place::Key);
    places.extend(fpcc.into_iter().map(|(from, to)| Place::FpccHeader(from, to)));
    places.extend((0..n).map(Place::Hash));
    places.extend((0..m).map(Place::Fingerprint));
    places.extend([Place::FragmentFirst, Place::FragmentMiddle, Place::FragmentLast, Place::FragmentZeroed]);
    places
}

/// All live records in a node's data folder.
pub fn records(data_dir: &Path) -> Vec<Record> {
    let walked = |file: &PathBuf| walk(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    files(data_dir).iter().flat_map(walked).collect()
}

fn files(data_dir: &Path) -> Vec<PathBuf> {
    let folder = data_dir.join("segments");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a folder can be listed").path())
        .collect();
    files.sort();
    files
}

/// The live records of one object.
pub fn records_of(data_dir: &Path, key: &str) -> Vec<Record> {
    records(data_dir).into_iter().filter(|record| record.key == key).collect()
}

fn walk(path: &Path) -> io::Result<Vec<Record>> {
    let bytes = std::fs::read(path)?;
    let mut found = Vec::new();
    let mut offset = 0;
    while offset + HEADER <= bytes.len() as u64 {
        match record(&bytes, path, offset) {
            Some((record, state)) => {
                let end = record.range(Place::FragmentZeroed).end;
                offset = end.next_multiple_of(ALIGNMENT);
                if state == LIVE {
                    found.push(record);
                }
            }
            None => offset += ALIGNMENT,
        }
    }
    Ok(found)
}

fn record(bytes: &[u8], path: &Path, offset: u64) -> Option<(Record, u8)> {
    let header = bytes.get(offset as usize..(offset + HEADER) as usize)?;
    if !header.starts_with(b"AVR1") {
        return None;
    }
    let u32_at = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let key_length = u64::from(u16::from_le_bytes([header[6], header[7]]));
    let fpcc_length = u64::from(u16::from_le_bytes([header[40], header[41]]));
    let fragment_length = u64::from(u32_at(44));
    let fpcc_at = offset + HEADER + key_length;
    let key = bytes.get((offset + HEADER) as usize..fpcc_at as usize)?;
    let fpcc = bytes.get(fpcc_at as usize..(fpcc_at + fpcc_length) as usize)?;
    let u16_in_fpcc = |at: usize| Some(u64::from(u16::from_le_bytes([*fpcc.get(at)?, *fpcc.get(at + 1)?])));
    let record = Record {
        file: path.to_owned(),
        offset,
        key: std::str::from_utf8(key).ok()?.to_owned(),
        index: header[5],
        m: u16_in_fpcc(12)?,
        n: u16_in_fpcc(14)?,
        key_length,
        fpcc_length,
        fragment_length,
    };
    Some((record, header[4]))
}
