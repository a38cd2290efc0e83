//! The power fails for all nodes and the mount host at once. They come back in any order, some late, and the host's disk
//! may have forgotten its last writes: what was fsynced is there.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use avidfs_tests::cluster::Cluster;
use avidfs_tests::data;
use avidfs_tests::mount::Mount;
use avidfs_tests::process::{self, need_program};
use avidfs_tests::seed::{Dice, rounds, seed};

const BLOCK: usize = 4096;

/// How far each kind of writer got, as the kernel or the program told it.
#[derive(Default, Debug)]
struct Acknowledged {
    /// Directories made, and fsynced from above.
    folders: u64,
    /// Number of the content last renamed into place and fsynced, and of the one on its way.
    renamed: u64,
    /// Blocks written with O_SYNC.
    blocks: u64,
    /// Rows committed with synchronous=EXTRA.
    rows: u64,
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn make_folders(mount: &Mount, told: &Mutex<Acknowledged>) -> io::Result<()> {
    let next = told.lock().unwrap().folders + 1;
    for i in next.. {
        let folder = mount.path("folders").join(format!("{i}"));
        // One of the power failure before may be there.
        fs::create_dir_all(folder.join("below"))?;
        sync(&folder)?;
        told.lock().unwrap().folders = i;
    }
    Ok(())
}

fn rename_into_place(mount: &Mount, told: &Mutex<Acknowledged>) -> io::Result<()> {
    let next = told.lock().unwrap().renamed + 1;
    for i in next.. {
        data::keep(&mount.path("draft"), i, 10_000 + i)?;
        fs::rename(mount.path("draft"), mount.path("document"))?;
        sync(&mount.root())?;
        told.lock().unwrap().renamed = i;
    }
    Ok(())
}

fn write_through(mount: &Mount, told: &Mutex<Acknowledged>) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let file = options.create(true).write(true).custom_flags(libc::O_SYNC).open(mount.path("through"))?;
    let next = told.lock().unwrap().blocks;
    for i in next.. {
        file.write_all_at(&data::bytes(i, 0, BLOCK), i * BLOCK as u64)?;
        told.lock().unwrap().blocks = i + 1;
    }
    Ok(())
}

/// One program, one transaction after the other; each that succeeds was committed. With FULL the removal of the rollback
/// journal, which is what commits, is not fsynced, and a power loss may undo it: https://www.sqlite.org/pragma.html#pragma_synchronous
fn insert_rows(mount: &Mount, journal: &str, told: &Mutex<Acknowledged>, over: &AtomicBool) {
    let base = mount.path("base.db");
    while !over.load(Ordering::SeqCst) {
        let next = told.lock().unwrap().rows + 1;
        let lines = format!(
            "pragma journal_mode={journal}; pragma synchronous=extra; create table if not exists t(i integer primary key, x); \
             insert or ignore into t values({next}, hex(randomblob(300)));"
        );
        let done = process::output(Command::new("sqlite3").arg("-bail").arg(&base).arg(lines));
        match done.status.success() {
            true => told.lock().unwrap().rows = next,
            false => return,
        }
    }
}

fn check(mount: &Mount, told: &Acknowledged) {
    for i in 1..=told.folders {
        let below = mount.path("folders").join(format!("{i}/below"));
        if let Err(error) = below.read_dir() {
            let left = fs::read_dir(mount.path("folders")).map(Iterator::count);
            panic!("folder {i} of {}, {left:?} are there: {error}", told.folders);
        }
    }
    let document = mount.path("document");
    let is = |i: u64| data::compare(&document, i, 10_000 + i);
    if told.renamed > 0 && is(told.renamed + 1).is_err() {
        is(told.renamed).unwrap_or_else(|wrong| panic!("content {}: {wrong}", told.renamed));
    }
    if told.blocks > 0 {
        let file = File::open(mount.path("through")).unwrap();
        for i in 0..told.blocks {
            let mut found = vec![0; BLOCK];
            file.read_exact_at(&mut found, i * BLOCK as u64).unwrap();
            assert!(found == data::bytes(i, 0, BLOCK), "block {i} of {}", told.blocks);
        }
    }
    if told.rows > 0 {
        let asked = "pragma integrity_check; select count(*), max(i) from t where i <= ";
        let said = process::run(
            Command::new("sqlite3").arg(mount.path("base.db")).arg(format!("{asked}{}", told.rows)),
        );
        assert_eq!(said, format!("ok\n{0}|{0}\n", told.rows));
    }
}

/// The host's disk as it was at an earlier failure: its last writes were never flushed.
struct Forgetful {
    copy: PathBuf,
}

impl Forgetful {
    fn note(&self, state: &Path) {
        let _ = fs::remove_dir_all(&self.copy);
        process::run(Command::new("cp").arg("-a").args([state, &self.copy]));
    }

    fn forget(&self, state: &Path) {
        fs::remove_dir_all(state).unwrap();
        process::run(Command::new("cp").arg("-a").args([&self.copy, state]));
    }
}

fn fail_again_and_again(journal: &str, rounds: u64) {
    need_program("sqlite3");
    let mut dice = Dice::new(seed());
    let cluster = Cluster::start(5);
    let mount = Mount::new(&cluster, &["--cache-disk", "0", "--io-timeout", "5s"]);
    fs::create_dir(mount.path("folders")).unwrap();
    sync(&mount.path("folders")).unwrap();
    let forgetful = Forgetful { copy: mount.state().with_extension("copy") };
    let told = Mutex::new(Acknowledged::default());
    for round in 0..rounds {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| make_folders(&mount, &told));
            scope.spawn(|| rename_into_place(&mount, &told));
            scope.spawn(|| write_through(&mount, &told));
            scope.spawn(|| insert_rows(&mount, journal, &told, &over));
            std::thread::sleep(Duration::from_millis(300 + dice.below(900)));
            over.store(true, Ordering::SeqCst);
            let mut victims: Vec<usize> = (0..6).collect();
            shuffle(&mut victims, &mut dice);
            for victim in victims {
                if victim == 5 { mount.kill() } else { cluster.kill(victim) }
            }
        });
        match round % 3 {
            0 => forgetful.note(&mount.state()),
            1 => {}
            _ => forgetful.forget(&mount.state()),
        }
        let mut order: Vec<usize> = (0..5).collect();
        shuffle(&mut order, &mut dice);
        let (early, late) = order.split_at(3 + dice.below(3) as usize);
        early.iter().for_each(|node| cluster.restart(*node));
        let late = mounted(&mount, &cluster, late);
        check(&mount, &told.lock().unwrap());
        late.iter().for_each(|node| cluster.restart(*node));
        eprintln!("round {round}: late {late:?}, {:?}", told.lock().unwrap());
        avidfs_tests::eventually(Duration::from_secs(60), "every fragment is at home", || {
            let status = mount.status();
            status["nodes_up"] == 5 && status["objects_not_at_home"] == 0
        });
    }
    mount.remount();
    let told = told.into_inner().unwrap();
    check(&mount, &told);
    assert!(told.folders > 0 && told.renamed > 0 && told.blocks > 0 && told.rows > 0, "{told:?}");
    mount.unmount();
}

/// Mount while some nodes are late, and return those that still are. What no fsync covered may lie on three nodes alone,
/// two fragments on each of two, for the others were dead already: while it may be on those that are late nothing is given
/// up, and the mount says which it waits for.
fn mounted<'n>(mount: &Mount, cluster: &Cluster, late: &'n [usize]) -> &'n [usize] {
    let Err(refused) = mount.try_mount() else { return late };
    let sentence = &refused.sentence;
    let waits = sentence.contains("was committed and never reached the journal");
    assert!(waits && late.len() == 2, "{sentence}");
    assert!(late.iter().all(|node| sentence.contains(&cluster.address(*node).to_string())), "{sentence}");
    late.iter().for_each(|node| cluster.restart(*node));
    mount.mount();
    &[]
}

fn shuffle(list: &mut [usize], dice: &mut Dice) {
    for i in (1..list.len()).rev() {
        list.swap(i, dice.below(i as u64 + 1) as usize);
    }
}

#[test]
fn what_was_fsynced_survives_the_end_of_all_nodes_and_of_the_mount_at_once() {
    fail_again_and_again("delete", rounds(3, 60));
}

#[test]
fn a_database_with_a_write_ahead_log_survives_it_too() {
    fail_again_and_again("wal", rounds(1, 60));
}
