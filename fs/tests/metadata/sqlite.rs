//! What only the SQLite store promises: files, restarts, kills, power loss, threads.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use avidfs::error::Error;
use avidfs::inode::ROOT;
use avidfs::metadata::sqlite::SqliteStore;
use avidfs::metadata::{Exception, MetadataStore, RenameMode};
use rusqlite::Connection;

use crate::support::*;

fn refusal(path: &Path) -> String {
    match SqliteStore::open(path) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(Error::Store(reason)) => reason,
        Err(other) => panic!("{other:?}"),
    }
}

/// A bit of everything.
fn fill(store: &dyn MetadataStore) {
    format(store);
    let sub = directory(store, ROOT, "sub");
    let ino = file(store, sub, "file");
    write(store, ino, 0, 1, 100);
    write(store, ino, 50, 2, 100);
    write(store, ino, 0, 3, 150);
    store.set_exceptions(id(3), &[Exception { index: 1, node: None }]).unwrap();
    store.set_xattr(ino, b"user.x", b"value", true, false, at(3)).unwrap();
    store.create(ROOT, b"link", &new_link(b"sub/file"), at(4)).unwrap();
    let open = file(store, ROOT, "open");
    store.unlink(ROOT, b"open", at(5)).unwrap();
    write(store, open, 0, 4, 10);
}

/// Everything one can ask.
fn everything(store: &dyn MetadataStore) -> String {
    audit(store);
    let sub = store.lookup(ROOT, b"sub").unwrap().ino;
    let ino = store.lookup(sub, b"file").unwrap().ino;
    let link = store.lookup(ROOT, b"link").unwrap().ino;
    format!(
        "{:?}",
        (
            store.settings().unwrap(),
            store.configurations().unwrap(),
            [ROOT, sub].map(|directory| store.list(directory, 0, 100).unwrap()),
            store.objects_of(ino, 0, 100).unwrap(),
            (store.xattr(ino, b"user.x").unwrap(), store.target(link).unwrap()),
            (
                store.orphans().unwrap(),
                store.condemned(None, 100).unwrap(),
                store.with_exceptions(None, 100).unwrap()
            ),
            store.usage().unwrap(),
        )
    )
}

#[test]
fn a_restart_keeps_everything() {
    let (_folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    fill(&store);
    let before = everything(&store);
    drop(store);
    assert!(!wal_of(&path).exists() && !redo_of(&path).exists(), "a clean close leaves one file");
    assert_eq!(everything(&SqliteStore::open(&path).unwrap()), before);
}

#[test]
fn a_kill_keeps_everything_and_the_totals_are_counted_anew() {
    let (folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    fill(&store);
    let copy = folder.path().join("copy.db");
    copy_as_killed(&path, &copy);
    assert_eq!(everything(&SqliteStore::open(&copy).unwrap()), everything(&store));
}

#[test]
fn nothing_that_was_handed_out_is_handed_out_again_after_a_restart_or_a_kill() {
    let (folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    format(&store);
    let handed_out = |store: &SqliteStore| {
        let made = store.create(ROOT, b"f", &new_file(), at(2)).unwrap().ino;
        let cookie = store.list(ROOT, 0, 10).unwrap().last().unwrap().cookie;
        store.unlink(ROOT, b"f", at(2)).unwrap();
        store.reclaim(&[made]).unwrap();
        (store.begin_epoch(0).unwrap(), made, cookie)
    };
    let first = handed_out(&store);
    let copy = folder.path().join("copy.db");
    copy_as_killed(&path, &copy);
    drop(store);
    let restarted = handed_out(&SqliteStore::open(&path).unwrap());
    assert_eq!(
        restarted,
        (first.0 + 1, avidfs::inode::Ino(first.1.0 + 1), first.2 + 1),
        "nor are any wasted"
    );
    let killed = handed_out(&SqliteStore::open(&copy).unwrap());
    assert!(killed.0 > first.0 && killed.1 > first.1 && killed.2 > first.2);
}

/// The test runs itself a second time as the process to kill, which says what returned, line by line.
#[test]
fn what_returned_survives_sigkill() {
    const STORE: &str = "AVIDFS_TEST_STORE_TO_KILL";
    if let Some(path) = std::env::var_os(STORE) {
        write_until_killed(Path::new(&path));
    }
    for wanted in [1, 30, 500, 3000] {
        let (_folder, path) = folder();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sqlite::what_returned_survives_sigkill", "--nocapture"])
            .env(STORE, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut returned = 0;
        while returned < wanted {
            let line = lines.next().expect("the child writes until it is killed");
            returned = line.strip_prefix("returned ").map_or(returned, |count| count.parse().unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        returned =
            lines.filter_map(|line| line.strip_prefix("returned ")?.parse().ok()).last().unwrap_or(returned);
        let store = SqliteStore::open(&path).unwrap();
        audit(&store);
        let files = names(&store, ROOT).len();
        assert!(files == returned || files == returned + 1, "{files} files, but {returned} returned");
    }
}

fn write_until_killed(path: &Path) -> ! {
    let store = SqliteStore::open(path).unwrap();
    format(&store);
    println!();
    for count in 1.. {
        let ino = file(&store, ROOT, &count.to_string());
        write(&store, ino, 0, count, 10);
        println!("returned {count}");
    }
    unreachable!("there are enough numbers")
}

/// Power loss keeps what was flushed, and of what was not any beginning, the last page of it torn.
#[test]
fn power_loss_keeps_what_was_synced_and_tears_no_verb() {
    let (folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    format(&store);
    let both = |count: u64| {
        let ino = file(&store, ROOT, &format!("{count:03}"));
        write(&store, ino, 0, count, 10);
    };
    (0..10).for_each(both);
    store.sync().unwrap();
    let wal = wal_of(&path);
    let synced = std::fs::metadata(&wal).unwrap().len();
    // Some groups of changes, so that the -wal file has them.
    (10..120).for_each(both);
    let whole = std::fs::read(&wal).unwrap();
    let mut lost = 0;
    for (round, length) in (synced..=whole.len() as u64).step_by(7919).enumerate() {
        let copy = folder.path().join(format!("{round}.db"));
        copy_as_killed(&path, &copy);
        let mut left = whole[..length as usize].to_vec();
        let torn = left.len().saturating_sub(700).max(synced as usize);
        left[torn..].fill(0xa5);
        std::fs::write(wal_of(&copy), left).unwrap();
        if round % 2 == 0 {
            std::fs::remove_file(redo_of(&copy)).unwrap();
        }
        let after = SqliteStore::open(&copy).unwrap();
        audit(&after);
        let expected: Vec<String> = (0..120).map(|count| format!("{count:03}")).collect();
        let found = names(&after, ROOT);
        assert!(found.len() >= 10 && expected.starts_with(&found), "{found:?}");
        lost += 120 - found.len();
    }
    assert!(lost > 0, "something was to be lost");
}

#[test]
fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let (_folder, path) = folder();
    std::fs::write(&path, [b'x'; 5000]).unwrap();
    assert!(refusal(&path).contains("not a SQLite database"));
    assert_eq!(std::fs::read(&path).unwrap(), [b'x'; 5000]);
    std::fs::remove_file(&path).unwrap();
    let foreign = Connection::open(&path).unwrap();
    foreign.execute_batch("CREATE TABLE recipes (cake TEXT)").unwrap();
    drop(foreign);
    let before = std::fs::read(&path).unwrap();
    assert!(refusal(&path).contains("not a metadata store of avidfs"));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn another_format_is_refused_in_one_sentence() {
    let (_folder, path) = folder();
    drop(SqliteStore::open(&path).unwrap());
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 9).unwrap();
    let sentence = format!("{}: metadata format 9, but this program reads 5", path.display());
    assert_eq!(refusal(&path), sentence);
}

#[test]
fn a_store_from_before_snapshots_is_brought_up_to_date() {
    let (_folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    format(&store);
    let ino = file(&store, ROOT, "a");
    write(&store, ino, 0, 1, 100);
    write(&store, ino, 0, 2, 100);
    drop(store);
    let old = "DROP TABLE intent; DROP TABLE snapshot; DROP INDEX condemned; DROP INDEX kept; ALTER TABLE object DROP COLUMN kept; \
               CREATE INDEX condemned ON object (live) WHERE live = 0; PRAGMA user_version = 2;";
    Connection::open(&path).unwrap().execute_batch(old).unwrap();
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(condemned(&store), [1]);
    store.begin_snapshot("new", at(3)).unwrap();
    write(&store, ino, 0, 3, 100);
    assert_eq!(condemned(&store), [1]);
    audit(&store);
}

#[test]
fn a_store_cannot_be_opened_where_there_is_no_folder() {
    let (folder, _) = folder();
    assert!(SqliteStore::open(&folder.path().join("none/metadata.db")).is_err());
}

#[test]
fn a_name_that_stands_for_nothing_is_damage_and_said() {
    let (_folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    format(&store);
    let ino = file(&store, ROOT, "a");
    drop(store);
    Connection::open(&path).unwrap().execute("DELETE FROM inode WHERE ino = ?", [ino.0 as i64]).unwrap();
    let store = SqliteStore::open(&path).unwrap();
    assert_error!(store.lookup(ROOT, b"a"), Error::Store(_));
    assert_error!(store.list(ROOT, 0, 10), Error::Store(_));
    assert_error!(store.unlink(ROOT, b"a", at(3)), Error::Store(_));
}

/// Whatever lies in the file: an answer or an error, no panic.
#[test]
fn damaged_pages_are_errors() {
    let (folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    format(&store);
    for count in 0..300 {
        let ino = file(&store, ROOT, &format!("a longer name, so that there are pages {count}"));
        write(&store, ino, 0, count, 10);
    }
    drop(store);
    let whole = std::fs::read(&path).unwrap();
    let mut errors = 0;
    for page in 1..whole.len() / 4096 {
        for damage in [0x00, 0xff, 0x0d] {
            let mut bytes = whole.clone();
            bytes[page * 4096 + 3..page * 4096 + 200].fill(damage);
            let copy = folder.path().join("copy.db");
            let _ = std::fs::remove_file(wal_of(&copy));
            std::fs::write(&copy, &bytes).unwrap();
            errors += usize::from(read_all(&copy).is_err());
        }
    }
    assert!(errors > 0);
}

fn read_all(path: &Path) -> Result<(), Error> {
    let store = SqliteStore::open(path)?;
    for entry in store.list(ROOT, 0, 1000)? {
        store.lookup(ROOT, &entry.name)?;
        store.objects_of(entry.inode.ino, 0, 10)?;
        store.truncate(entry.inode.ino, 0, at(3))?;
    }
    store.condemned(None, 1000).map(|_| ())
}

#[test]
fn readers_see_each_verb_whole_while_others_write() {
    let (_folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    format(&store);
    let (a, b) = (file(&store, ROOT, "a"), file(&store, ROOT, "b"));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let listed = store.list(ROOT, 0, 10).unwrap();
                    let mut inos: Vec<_> = listed.iter().map(|entry| entry.inode.ino).collect();
                    inos.sort();
                    assert_eq!(inos, [a, b]);
                    store.sync().unwrap();
                }
            });
        }
        for count in 0..2000 {
            store.rename((ROOT, b"a"), (ROOT, b"b"), RenameMode::Exchange, at(count)).unwrap();
            // What this thread wrote it reads at once, whoever holds the writer.
            assert_eq!(store.inode(a).unwrap().ctime, at(count));
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn other_tools_can_read_a_copy_while_it_is_open() {
    let (folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    fill(&store);
    store.sync().unwrap();
    let copy = folder.path().join("copy.db");
    copy_as_killed(&path, &copy);
    let tool = Connection::open(&copy).unwrap();
    let inodes: i64 = tool.query_row("SELECT count(*) FROM inode", [], |row| row.get(0)).unwrap();
    assert_eq!(inodes as u64, store.usage().unwrap().inodes);
    let check: String = tool.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
}

/// The test runs itself a second time as the other process.
#[test]
fn another_process_is_kept_out() {
    const STORE: &str = "AVIDFS_TEST_STORE_IN_USE";
    if let Some(path) = std::env::var_os(STORE) {
        println!("\nrefused: {}", refusal(Path::new(&path)));
        return;
    }
    let (_folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    fill(&store);
    let other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sqlite::another_process_is_kept_out", "--nocapture"])
        .env(STORE, &path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&other.stdout);
    assert!(said.contains("refused: ") && said.contains("another process has it open"), "{said}");
    everything(&store);
}

#[test]
fn the_wal_file_stays_bounded_under_steady_writing() {
    let (_folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    format(&store);
    let inos: Vec<_> = (0..1000).map(|count| file(&store, ROOT, &count.to_string())).collect();
    // 16 KiB and more of changed pages each.
    for counter in 0..15_000 {
        write(&store, inos[counter * 389 % inos.len()], 0, counter as u64, 10);
    }
    let bytes = std::fs::metadata(wal_of(&path)).unwrap().len();
    assert!(bytes < 120 << 20, "{bytes} bytes");
    audit(&store);
}

/// What a checkpoint hands out may wait for tasks that wait for the store: it does not keep it, however many read.
#[test]
fn a_dump_keeps_nobody_from_writing_though_all_readers_are_busy() {
    let (_folder, path) = folder();
    let store = SqliteStore::open(&path).unwrap();
    fill(&store);
    // Each reads for as long as it is listening to the one inside it.
    fn read_within(store: &SqliteStore, readers: u32, then: &mut dyn FnMut()) {
        if readers == 0 {
            return then();
        }
        let mut then = Some(then);
        store
            .dump(&mut |_| {
                if let Some(then) = then.take() {
                    read_within(store, readers - 1, then);
                }
                Ok(())
            })
            .unwrap();
    }
    let mut written = 0;
    read_within(&store, 8, &mut || {
        written += 1;
        std::thread::scope(|scope| scope.spawn(|| file(&store, ROOT, "meanwhile")).join().unwrap());
    });
    assert_eq!(written, 1);
    assert!(store.lookup(ROOT, b"meanwhile").is_ok());
}
