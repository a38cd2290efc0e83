//! Opening the database: its shape, its version, how its connections are set up.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::error::{Error, Result};

/// `avid`: what tells a metadata store from any other SQLite database.
const APPLICATION: i64 = 0x6176_6964;
/// The format docs/metadata.md draws.
const FORMAT: i64 = 5;
const PAGE_BYTES: u32 = 4096;
/// One process has the file, and its connections share the index of the -wal file in its memory. Without locks for
/// other processes at each transaction a lookup takes half of the time and a change two thirds. The price is that
/// other tools can read only a copy while the store is open. https://www.sqlite.org/vfs.html#standard_unix_vfses
const VFS: &str = "unix-excl";
/// Page cache of the writing connection, in KiB.
const WRITER_CACHE_KIB: u32 = 64 << 10;
/// Page cache of each reading connection, in KiB; small, because every commit empties it.
const READER_CACHE_KIB: u32 = 4 << 10;
/// How long connections wait for each other, which they hardly do; another process would not go away.
const BUSY: Duration = Duration::from_secs(1);
/// Distinct statements are fewer, so none is ever prepared twice.
const STATEMENTS: usize = 128;
/// To what the -wal file is cut when it is begun anew after a burst, in bytes.
const WAL_BYTES: u32 = 64 << 20;

/// The writing connection, to a database that is ours and of this version.
pub(super) fn open(path: &Path) -> Result<Connection> {
    let db = connect(path, OpenFlags::SQLITE_OPEN_CREATE)?;
    prepare(&db).map_err(|error| in_file(path, error))?;
    Ok(db)
}

/// The writing and only connection to a database in memory.
pub(super) fn open_in_memory() -> Result<Connection> {
    let db = Connection::open_in_memory()?;
    prepare(&db)?;
    Ok(db)
}

/// A connection that only reads; `open` has been there before.
pub(super) fn open_reader(path: &Path) -> Result<Connection> {
    let db = connect(path, OpenFlags::empty())?;
    configure(&db, READER_CACHE_KIB)?;
    db.pragma_update(None, "query_only", "ON")?;
    Ok(db)
}

/// A connection that only makes checkpoints; `open` has been there before.
pub(super) fn open_checkpoints(path: &Path) -> Result<Connection> {
    let db = connect(path, OpenFlags::empty())?;
    configure(&db, READER_CACHE_KIB)?;
    // As the writer: its checkpoints flush, as wal.rs needs it.
    db.pragma_update(None, "synchronous", "NORMAL")?;
    Ok(db)
}

fn connect(path: &Path, extra: OpenFlags) -> Result<Connection> {
    // Each connection is used under a lock or by one thread, so SQLite need not lock it again.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | extra;
    Connection::open_with_flags_and_vfs(path, flags, VFS).map_err(|error| in_file(path, error.into()))
}

fn in_file(path: &Path, error: Error) -> Error {
    match error {
        Error::Store(reason) => Error::Store(format!("{}: {reason}", path.display())),
        other => other,
    }
}

fn prepare(db: &Connection) -> Result<()> {
    // Before anything is written: an existing database keeps the size it has.
    db.pragma_update(None, "page_size", PAGE_BYTES)?;
    configure(db, WRITER_CACHE_KIB)?;
    let fresh = is_empty(db)?;
    if !fresh {
        bring_up(db)?;
    }
    // Answers with the mode that is now in force; a database in memory stays `memory`.
    db.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    // Frames reach the -wal file with each commit and the disk with each `sync`; wal.rs says why that is enough.
    db.pragma_update(None, "synchronous", "NORMAL")?;
    // checkpoint.rs makes them.
    db.pragma_update(None, "wal_autocheckpoint", 0)?;
    db.pragma_update(None, "journal_size_limit", WAL_BYTES)?;
    if fresh {
        create(db)?;
    }
    Ok(())
}

fn configure(db: &Connection, cache_kib: u32) -> Result<()> {
    db.busy_timeout(BUSY)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    db.pragma_update(None, "cache_size", -i64::from(cache_kib))?;
    db.pragma_update(None, "temp_store", "MEMORY")?;
    // A damaged page is an error then, and not a row that looks well.
    db.pragma_update(None, "cell_size_check", "ON")?;
    db.pragma_update(None, "trusted_schema", "OFF")?;
    // Plans do not depend on bound values. Otherwise a statement is prepared anew, at ten times the cost of running
    // it, whenever the planner looked at a parameter.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

fn is_empty(db: &Connection) -> Result<bool> {
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(tables == 0 && pragma(db, "application_id")? == 0 && pragma(db, "user_version")? == 0)
}

/// Bring a database of an earlier version to this one.
fn bring_up(db: &Connection) -> Result<()> {
    if pragma(db, "application_id")? != APPLICATION {
        return Err(Error::Store("this database is not a metadata store of avidfs".into()));
    }
    let missing = match pragma(db, "user_version")? {
        FORMAT => return Ok(()),
        2 => format!("{FROM_2} {INTENT}"),
        3 => INTENT.to_owned(),
        // It has the same tables. A program that reads 4 knows no redo log, and would lose what only lies there.
        4 => String::new(),
        other => {
            return Err(Error::Store(format!("metadata format {other}, but this program reads {FORMAT}")));
        }
    };
    Ok(db.execute_batch(&format!("BEGIN IMMEDIATE; {missing} PRAGMA user_version = {FORMAT}; COMMIT;"))?)
}

fn pragma(db: &Connection, name: &str) -> Result<i64> {
    Ok(db.pragma_query_value(None, name, |row| row.get(0))?)
}

fn create(db: &Connection) -> Result<()> {
    // One transaction, so that a crash leaves either nothing or all, version included.
    db.execute_batch(&format!(
        "BEGIN IMMEDIATE; {TABLES} {INTENT} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORMAT}; COMMIT;"
    ))?;
    Ok(())
}

/// Before snapshots.
const FROM_2: &str = "
ALTER TABLE object ADD COLUMN kept INTEGER NOT NULL DEFAULT 0;
DROP INDEX condemned;
CREATE INDEX condemned ON object (id) WHERE live = 0 AND kept = 0;
CREATE INDEX kept ON object (kept) WHERE kept > 0;
CREATE TABLE snapshot (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created_s INTEGER NOT NULL,
    created_ns INTEGER NOT NULL,
    next INTEGER NOT NULL,
    pin BLOB NOT NULL
) STRICT;
";

/// Since format 4.
const INTENT: &str = "
CREATE TABLE intent (
    ino INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    length INTEGER NOT NULL,
    number INTEGER NOT NULL,
    bytes BLOB NOT NULL,
    PRIMARY KEY (ino, offset)
) STRICT, WITHOUT ROWID;
";

const TABLES: &str = "
CREATE TABLE volume (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    id BLOB NOT NULL,
    name TEXT NOT NULL,
    code TEXT NOT NULL,
    hash TEXT NOT NULL,
    object_size INTEGER NOT NULL,
    uid INTEGER NOT NULL,
    gid INTEGER NOT NULL,
    created_s INTEGER NOT NULL,
    created_ns INTEGER NOT NULL
) STRICT;

CREATE TABLE counter (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO counter VALUES ('epoch', 0), ('inode', 2), ('cookie', 3), ('shipped', 0);

CREATE TABLE outbox (
    number INTEGER PRIMARY KEY,
    records BLOB NOT NULL
) STRICT;

CREATE TABLE head (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    head BLOB NOT NULL
) STRICT;

CREATE TABLE configuration (
    number INTEGER PRIMARY KEY,
    nodes BLOB NOT NULL UNIQUE
) STRICT;

CREATE TABLE inode (
    ino INTEGER PRIMARY KEY,
    mode INTEGER NOT NULL,
    uid INTEGER NOT NULL,
    gid INTEGER NOT NULL,
    links INTEGER NOT NULL CHECK (links >= 0),
    size INTEGER NOT NULL CHECK (size >= 0),
    allocated INTEGER NOT NULL CHECK (allocated >= 0),
    rdev INTEGER NOT NULL,
    parent INTEGER NOT NULL,
    atime_s INTEGER NOT NULL,
    atime_ns INTEGER NOT NULL,
    mtime_s INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_s INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    btime_s INTEGER NOT NULL,
    btime_ns INTEGER NOT NULL
) STRICT;
CREATE INDEX orphan ON inode (links) WHERE links = 0;

CREATE TABLE entry (
    parent INTEGER NOT NULL,
    name BLOB NOT NULL,
    ino INTEGER NOT NULL,
    cookie INTEGER NOT NULL,
    PRIMARY KEY (parent, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX entry_by_cookie ON entry (parent, cookie, ino);

CREATE TABLE target (
    ino INTEGER PRIMARY KEY,
    target BLOB NOT NULL
) STRICT;

CREATE TABLE xattr (
    ino INTEGER NOT NULL,
    name BLOB NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (ino, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE extent (
    ino INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    length INTEGER NOT NULL CHECK (length > 0),
    object INTEGER NOT NULL,
    object_offset INTEGER NOT NULL,
    PRIMARY KEY (ino, offset)
) STRICT, WITHOUT ROWID;

CREATE TABLE object (
    id INTEGER PRIMARY KEY,
    length INTEGER NOT NULL,
    fpcc BLOB NOT NULL,
    code TEXT NOT NULL,
    configuration INTEGER NOT NULL,
    exceptions INTEGER NOT NULL,
    live INTEGER NOT NULL CHECK (live >= 0),
    kept INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX condemned ON object (id) WHERE live = 0 AND kept = 0;
CREATE INDEX kept ON object (kept) WHERE kept > 0;
CREATE INDEX exceptional ON object (id) WHERE exceptions > 0;

CREATE TABLE snapshot (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    created_s INTEGER NOT NULL,
    created_ns INTEGER NOT NULL,
    next INTEGER NOT NULL,
    pin BLOB NOT NULL
) STRICT;

CREATE TABLE exception (
    object INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    node BLOB,
    PRIMARY KEY (object, idx)
) STRICT, WITHOUT ROWID;
";
