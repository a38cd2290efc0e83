//! `avidfs bench`: what a folder does for programs, in about a minute. It uses files as any program would, so that it
//! measures other file systems as well.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use serde::Serialize;

use crate::host;

/// Bytes of one request of the large file.
const PIECE: usize = 1 << 20;
/// The large file is no longer than this.
const MOST_BYTES: u64 = 1 << 30;
/// Bytes of a small file, and of a request at random.
const SMALL: usize = 4 << 10;
/// Small files are no more than this.
const MOST_FILES: usize = 20_000;

/// One figure.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: &'static str,
    /// How much.
    pub value: f64,
    /// Of what: `MB/s` or `/s`.
    pub unit: &'static str,
    /// Milliseconds that half of the operations took at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_ms: Option<f64>,
    /// The same of 99 of a hundred.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_ms: Option<f64>,
}

/// How long operations took.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn note(&mut self, began: Instant) {
        self.0.push(began.elapsed());
    }

    /// Operations a second, over the time they took together.
    fn figure(mut self, name: &'static str) -> Figure {
        let all: Duration = self.0.iter().sum();
        let value = self.0.len() as f64 / all.as_secs_f64().max(1e-9);
        self.0.sort_unstable();
        let at = |share: f64| {
            let place = ((self.0.len() as f64 * share).ceil() as usize).clamp(1, self.0.len().max(1)) - 1;
            self.0.get(place).map(|time| time.as_secs_f64() * 1e3)
        };
        Figure { name, value, unit: "/s", p50_ms: at(0.5), p99_ms: at(0.99) }
    }
}

/// Measure below a folder, `limit` for each figure, and tell of each as it is there. What was written is removed.
///
/// # Errors
/// The folder's.
pub fn run(folder: &Path, limit: Duration, mut tell: impl FnMut(&Figure)) -> io::Result<Vec<Figure>> {
    let place = Place::make(folder)?;
    let mut figures = Vec::new();
    let mut keep = |figure: Figure| {
        tell(&figure);
        figures.push(figure);
    };
    let large = place.0.join("large");
    keep(write_large(&large, limit)?);
    keep(read_large(&large, limit)?);
    keep(read_at_random(&large, limit)?);
    keep(write_at_random(&large, limit)?);
    keep(write_and_sync(&large, limit)?);
    fs::remove_file(&large)?;
    let folder = place.0.join("small");
    fs::create_dir(&folder)?;
    let (figure, count) = create_small(&folder, limit)?;
    keep(figure);
    let each = |name, act: &dyn Fn(&Path) -> io::Result<()>| -> io::Result<Figure> {
        let mut times = Times::default();
        for i in 0..count {
            let path = small(&folder, i);
            let began = Instant::now();
            act(&path)?;
            times.note(began);
        }
        Ok(times.figure(name))
    };
    keep(each("stat", &|path| path.metadata().map(drop))?);
    keep(each("read of 4 KiB files", &|path| fs::read(path).map(drop))?);
    keep(each("remove", &|path| fs::remove_file(path))?);
    place.remove()?;
    Ok(figures)
}

/// A folder of its own, which goes with it.
struct Place(PathBuf);

impl Place {
    fn make(folder: &Path) -> io::Result<Place> {
        let place = folder.join(format!(".avidfs-bench-{}", std::process::id()));
        fs::create_dir(&place)?;
        Ok(Place(place))
    }

    fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(&self.0)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Gone already if all went well.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn megabytes(name: &'static str, bytes: u64, began: Instant) -> Figure {
    let value = bytes as f64 / 1e6 / began.elapsed().as_secs_f64().max(1e-9);
    Figure { name, value, unit: "MB/s", p50_ms: None, p99_ms: None }
}

fn write_large(path: &Path, limit: Duration) -> io::Result<Figure> {
    // No two pieces alike, and none that packs.
    let mut piece = vec![0; PIECE];
    StdRng::seed_from_u64(1).fill_bytes(&mut piece);
    let mut file = File::create(path)?;
    let (began, mut bytes) = (Instant::now(), 0);
    while bytes < MOST_BYTES && began.elapsed() < limit {
        piece[..8].copy_from_slice(&bytes.to_le_bytes());
        file.write_all(&piece)?;
        bytes += PIECE as u64;
    }
    file.sync_all()?;
    Ok(megabytes("write, with fsync", bytes, began))
}

/// The kernel is asked to forget the file first; what a mount daemon has cached it may not.
fn read_large(path: &Path, limit: Duration) -> io::Result<Figure> {
    let mut file = forgotten(path)?;
    let mut piece = vec![0; PIECE];
    let (began, mut bytes) = (Instant::now(), 0);
    while began.elapsed() < limit {
        match file.read(&mut piece)? {
            0 => break,
            length => bytes += length as u64,
        }
    }
    Ok(megabytes("read", bytes, began))
}

fn forgotten(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    host::forget_pages(&file)?;
    Ok(file)
}

/// Places of so many bytes in a file, at random.
fn places(file: &File) -> io::Result<impl FnMut() -> u64 + use<>> {
    let places = (file.metadata()?.len() / SMALL as u64).max(1);
    let mut dice = StdRng::seed_from_u64(2);
    Ok(move || dice.random_range(0..places) * SMALL as u64)
}

fn read_at_random(path: &Path, limit: Duration) -> io::Result<Figure> {
    let file = forgotten(path)?;
    let mut place = places(&file)?;
    let (mut times, mut block) = (Times::default(), [0; SMALL]);
    let end = Instant::now() + limit;
    while Instant::now() < end {
        let began = Instant::now();
        file.read_at(&mut block, place())?;
        times.note(began);
    }
    Ok(times.figure("random 4 KiB reads"))
}

fn write_at_random(path: &Path, limit: Duration) -> io::Result<Figure> {
    let file = OpenOptions::new().write(true).open(path)?;
    let mut place = places(&file)?;
    let (mut times, block) = (Times::default(), [7; SMALL]);
    let end = Instant::now() + limit / 2;
    while Instant::now() < end {
        let began = Instant::now();
        file.write_all_at(&block, place())?;
        times.note(began);
    }
    let began = Instant::now();
    file.sync_all()?;
    let (count, synced) = (times.0.len() as f64, began.elapsed());
    let mut figure = times.figure("random 4 KiB writes, fsync at the end");
    // The sync is part of it.
    figure.value = count / (count / figure.value + synced.as_secs_f64()).max(1e-9);
    Ok(figure)
}

fn write_and_sync(path: &Path, limit: Duration) -> io::Result<Figure> {
    let file = OpenOptions::new().write(true).open(path)?;
    let mut place = places(&file)?;
    let (mut times, block) = (Times::default(), [9; SMALL]);
    let end = Instant::now() + limit;
    while Instant::now() < end {
        let began = Instant::now();
        file.write_all_at(&block, place())?;
        file.sync_data()?;
        times.note(began);
    }
    Ok(times.figure("4 KiB write + fdatasync"))
}

fn small(folder: &Path, i: usize) -> PathBuf {
    folder.join(format!("{i:06}"))
}

fn create_small(folder: &Path, limit: Duration) -> io::Result<(Figure, usize)> {
    let (mut times, mut bytes) = (Times::default(), [0; SMALL]);
    StdRng::seed_from_u64(3).fill_bytes(&mut bytes);
    let end = Instant::now() + limit;
    while times.0.len() < MOST_FILES && Instant::now() < end {
        let path = small(folder, times.0.len());
        let began = Instant::now();
        fs::write(path, bytes)?;
        times.note(began);
    }
    let count = times.0.len();
    Ok((times.figure("create 4 KiB files"), count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_measured_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let mut told = 0;
        let figures = run(folder.path(), Duration::from_millis(20), |_| told += 1).unwrap();
        assert_eq!((figures.len(), told), (9, 9));
        assert!(figures.iter().all(|figure| figure.value > 0.0), "{figures:?}");
        assert!(figures.iter().all(|figure| figure.p50_ms.is_some() == (figure.unit == "/s")));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn percentiles_are_of_the_operations() {
        let times = Times((1..=100).map(Duration::from_millis).collect());
        let figure = times.figure("x");
        assert_eq!((figure.p50_ms, figure.p99_ms), (Some(50.0), Some(99.0)));
        assert!((figure.value - 100.0 / 5.05).abs() < 1e-6);
    }
}
