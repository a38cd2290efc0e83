//! One of the five processes: verifies what comes, appends it, and gives it back.

use std::fs::File;
use std::io::{BufReader, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use avidfs::buffers::{Buffer, Buffers};
use common::fpcc::Fpcc;

/// A file takes so many bytes.
const SEGMENT: u64 = 256 << 20;
/// So many files are kept.
const KEPT: usize = 3;
/// Small fragments come in one piece; large ones go past this buffer to their place.
const RECEIVED: usize = 64 << 10;
/// In place of a length: what follows is the number of a fragment to be given back.
const GET: u32 = u32::MAX;

/// Where a fragment lies.
struct Place {
    file: usize,
    offset: u64,
    length: usize,
    fpcc: Vec<u8>,
}

/// What was appended so far.
struct Segments {
    path: PathBuf,
    files: Vec<Option<File>>,
    length: u64,
    places: Vec<Place>,
}

/// Serve whoever listens on a port, keeping fragments of this index below `path`.
pub fn node(port: &str, index: usize, path: &Path) {
    let link = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    link.set_nodelay(true).unwrap();
    let mut link = BufReader::with_capacity(RECEIVED, link);
    let mut segments =
        Segments { path: path.to_owned(), files: Vec::new(), length: SEGMENT, places: Vec::new() };
    let (mut head, mut fpcc) = ([0; 8], Vec::new());
    while link.read_exact(&mut head).is_ok() {
        let [fpcc_length, length] = numbers(head);
        if fpcc_length == GET {
            let (place, bytes) = segments.read(length as usize);
            send(link.get_ref(), &place.fpcc, &bytes);
            continue;
        }
        fpcc.resize(fpcc_length as usize, 0);
        link.read_exact(&mut fpcc).unwrap();
        let mut bytes = Buffers::shared().take_dirty_at(head.len() + fpcc.len(), length as usize);
        link.read_exact(bytes.as_mut_slice()).unwrap();
        Fpcc::parse(&fpcc).unwrap().check_bytes(index, &bytes).unwrap();
        segments.append(&fpcc, &bytes);
        link.get_mut().write_all(&[1]).unwrap();
    }
}

impl Segments {
    fn append(&mut self, fpcc: &[u8], bytes: &[u8]) {
        if self.length >= SEGMENT {
            self.begin_file();
        }
        let file = self.files.len() - 1;
        self.files[file].as_mut().unwrap().write_all(bytes).unwrap();
        let place = Place { file, offset: self.length, length: bytes.len(), fpcc: fpcc.to_vec() };
        self.places.push(place);
        self.length += bytes.len() as u64;
    }

    /// What was written some files ago goes, as a file that is written again frees what it held.
    fn begin_file(&mut self) {
        let number = self.files.len();
        if let Some(old) = number.checked_sub(KEPT) {
            self.files[old] = None;
            std::fs::remove_file(self.path.with_extension(old.to_string())).unwrap();
        }
        let path = self.path.with_extension(number.to_string());
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
        self.files.push(Some(file));
        self.length = 0;
    }

    fn read(&self, number: usize) -> (&Place, Buffer) {
        let place = &self.places[number];
        let mut bytes = Buffers::shared().take_dirty_at(place.offset as usize, place.length);
        self.files[place.file].as_ref().unwrap().read_exact_at(bytes.as_mut_slice(), place.offset).unwrap();
        (place, bytes)
    }
}

/// What a head says.
pub fn numbers(head: [u8; 8]) -> [u32; 2] {
    [0, 4].map(|at| u32::from_le_bytes(head[at..at + 4].try_into().unwrap()))
}

/// A fragment, either way.
pub fn send(mut link: &TcpStream, fpcc: &[u8], bytes: &[u8]) {
    let head = [fpcc.len() as u32, bytes.len() as u32].map(u32::to_le_bytes).concat();
    let mut parts = [IoSlice::new(&head), IoSlice::new(fpcc), IoSlice::new(bytes)];
    let mut parts = &mut parts[..];
    while !parts.is_empty() {
        let sent = link.write_vectored(parts).unwrap();
        IoSlice::advance_slices(&mut parts, sent);
    }
}

/// Ask for a fragment by its number.
pub fn ask(mut link: &TcpStream, number: usize) {
    link.write_all(&[GET, number as u32].map(u32::to_le_bytes).concat()).unwrap();
}
