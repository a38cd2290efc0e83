//! What verbs are made of: transactions, and the rows they read and write.

use std::ops::{Deref, Range};

use rusqlite::{Connection, OptionalExtension, Params, Row, params};

use super::rows::{self, InodeKey};
use crate::error::{Error, Result};
use crate::inode::{Ino, Inode};
use crate::metadata::Usage;
use crate::metadata::record::Record;

/// A transaction that is undone unless it is committed, also when its verb panics.
pub(super) struct Transaction<'c> {
    db: &'c Connection,
}

impl<'c> Transaction<'c> {
    /// Begin to write.
    pub(super) fn begin(db: &'c Connection) -> Result<Transaction<'c>> {
        db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(Transaction { db })
    }

    /// Begin to read one state of the store.
    pub(super) fn snapshot(db: &'c Connection) -> Result<Transaction<'c>> {
        db.prepare_cached("BEGIN")?.execute([])?;
        Ok(Transaction { db })
    }

    /// Let it stay open when the value ends.
    pub(super) fn leave_open(self) {
        std::mem::forget(self);
    }

    /// The one that was left open.
    pub(super) fn resume(db: &'c Connection) -> Transaction<'c> {
        Transaction { db }
    }

    /// Let it be.
    pub(super) fn commit(self) -> Result<()> {
        self.db.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        // SQLite undoes some by itself, such as after a full disk. What cannot be undone now is undone by the next
        // open, and until then BEGIN fails loudly.
        if !self.db.is_autocommit() {
            let _ = self.db.prepare_cached("ROLLBACK").and_then(|mut rollback| rollback.execute([]));
        }
    }
}

/// A part of a transaction that is undone by itself unless it is kept, also when its verb panics.
pub(super) struct Savepoint<'c> {
    db: &'c Connection,
    kept: bool,
}

impl<'c> Savepoint<'c> {
    /// Begin inside the transaction that is open.
    pub(super) fn begin(db: &'c Connection) -> Result<Savepoint<'c>> {
        db.prepare_cached("SAVEPOINT verb")?.execute([])?;
        Ok(Savepoint { db, kept: false })
    }

    /// Make it part of the transaction.
    pub(super) fn keep(mut self) -> Result<()> {
        self.db.prepare_cached("RELEASE verb")?.execute([])?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Savepoint<'_> {
    fn drop(&mut self) {
        if self.kept || self.db.is_autocommit() {
            return;
        }
        let undo = |sql| self.db.prepare_cached(sql).and_then(|mut statement| statement.execute([]));
        if undo("ROLLBACK TO verb").and_then(|_| undo("RELEASE verb")).is_err() {
            // Then all of the transaction, which whoever began it notices.
            drop(Transaction::resume(self.db));
        }
    }
}

/// One state of the store, to read.
#[derive(Clone, Copy)]
pub(super) struct View<'c>(pub(super) &'c Connection);

impl View<'_> {
    /// The first row of a query.
    pub(super) fn row<T>(
        &self,
        sql: &str,
        parameters: impl Params,
        read: impl FnOnce(&Row) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        Ok(self.0.prepare_cached(sql)?.query_row(parameters, read).optional()?)
    }

    /// All rows of a query.
    pub(super) fn rows<T>(
        &self,
        sql: &str,
        parameters: impl Params,
        read: impl FnMut(&Row) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        let mut statement = self.0.prepare_cached(sql)?;
        let rows = statement.query_map(parameters, read)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Row after row of a query, until `read` says that it is enough.
    pub(super) fn each(
        &self,
        sql: &str,
        parameters: impl Params,
        mut read: impl FnMut(&Row) -> rusqlite::Result<bool>,
    ) -> Result<()> {
        let mut statement = self.0.prepare_cached(sql)?;
        let mut rows = statement.query(parameters)?;
        while let Some(row) = rows.next()? {
            if !read(row)? {
                break;
            }
        }
        Ok(())
    }

    /// An inode, orphans included.
    pub(super) fn inode(&self, ino: Ino) -> Result<Inode> {
        let sql = concat!("SELECT ", rows::inode_columns!(), " FROM inode i WHERE i.ino = ?");
        self.row(sql, [ino.key()], |row| rows::inode(row, 0))?.ok_or(Error::NotFound)
    }

    /// A directory, removed ones included. `NotFound`, `NotDirectory`.
    pub(super) fn directory(&self, ino: Ino) -> Result<Inode> {
        let inode = self.inode(ino)?;
        if inode.is_directory() { Ok(inode) } else { Err(Error::NotDirectory) }
    }
}

/// One state of the store, to change: everything a verb writes passes here.
pub(super) struct Change<'c> {
    pub(super) view: View<'c>,
    pub(super) numbers: &'c mut Numbers,
    /// How many were written.
    pub(super) rows: u64,
    /// What was changed, as encoded records, for the outbox.
    pub(super) log: Vec<u8>,
    pub(super) usage: UsageChange,
}

impl<'c> Deref for Change<'c> {
    type Target = View<'c>;
    fn deref(&self) -> &View<'c> {
        &self.view
    }
}

impl Change<'_> {
    /// Run a statement; how many rows it touched.
    pub(super) fn run(&mut self, sql: &str, parameters: impl Params) -> Result<usize> {
        let touched = self.view.0.prepare_cached(sql)?.execute(parameters)?;
        self.rows += touched as u64;
        Ok(touched)
    }

    /// Note a change for the journal.
    pub(super) fn note(&mut self, record: &Record) {
        record.encode(&mut self.log);
    }

    /// Write a new inode; `parent` is the directory that holds it.
    pub(super) fn insert_inode(&mut self, inode: &Inode, parent: Ino) -> Result<()> {
        let parent = if inode.is_directory() { parent.key() } else { 0 };
        self.run(
            "INSERT INTO inode VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            params![
                inode.ino.key(),
                inode.mode,
                inode.uid,
                inode.gid,
                inode.links,
                rows::offset(inode.size),
                rows::offset(inode.allocated),
                inode.rdev,
                parent,
                inode.atime.seconds,
                inode.atime.nanos,
                inode.mtime.seconds,
                inode.mtime.nanos,
                inode.ctime.seconds,
                inode.ctime.nanos,
                inode.btime.seconds,
                inode.btime.nanos,
            ],
        )?;
        self.usage.inodes += 1;
        self.note(&Record::Inode(inode.clone()));
        if inode.is_directory() {
            self.note(&Record::Parent(inode.ino, Ino(parent as u64)));
        }
        Ok(())
    }

    /// Write back an inode that was read in this transaction and changed; birth and device number never change.
    pub(super) fn save(&mut self, inode: &Inode) -> Result<()> {
        let touched = self.run(
            "UPDATE inode SET mode = ?2, uid = ?3, gid = ?4, links = ?5, size = ?6, allocated = ?7, \
             atime_s = ?8, atime_ns = ?9, mtime_s = ?10, mtime_ns = ?11, ctime_s = ?12, ctime_ns = ?13 \
             WHERE ino = ?1",
            params![
                inode.ino.key(),
                inode.mode,
                inode.uid,
                inode.gid,
                inode.links,
                rows::offset(inode.size),
                rows::offset(inode.allocated),
                inode.atime.seconds,
                inode.atime.nanos,
                inode.mtime.seconds,
                inode.mtime.nanos,
                inode.ctime.seconds,
                inode.ctime.nanos,
            ],
        )?;
        debug_assert_eq!(touched, 1, "an inode is saved in the transaction that read it");
        self.note(&Record::Inode(inode.clone()));
        Ok(())
    }

    /// Take an inode away.
    pub(super) fn delete_inode(&mut self, ino: Ino) -> Result<()> {
        self.usage.inodes -= self.run("DELETE FROM inode WHERE ino = ?", [ino.key()])? as i64;
        self.note(&Record::NoInode(ino));
        Ok(())
    }
}

/// Inode numbers and cookies that are reserved in the database but not handed out.
///
/// A verb that fails after it took one loses it; they are many.
#[derive(Default)]
pub(super) struct Numbers {
    pub(super) inodes: Range<i64>,
    pub(super) cookies: Range<i64>,
    /// Whether the journal was told how far they are reserved.
    noted: bool,
}

impl Numbers {
    /// How many are reserved at a time: rarely enough to cost nothing, few enough to lose by a crash.
    const BLOCK: i64 = 1024;

    /// Have at least one of each, which is all that a verb needs. Outside of its savepoint, so that what is reserved
    /// stays reserved when it fails; what then is reserved is noted with the next change.
    pub(super) fn refill(&mut self, db: &Connection) -> Result<()> {
        for (name, numbers) in [("inode", &mut self.inodes), ("cookie", &mut self.cookies)] {
            if numbers.is_empty() {
                let sql = "UPDATE counter SET value = value + ?2 WHERE name = ?1 RETURNING value";
                let end: i64 = db.prepare_cached(sql)?.query_row((name, Numbers::BLOCK), |row| row.get(0))?;
                *numbers = end - Numbers::BLOCK..end;
                self.noted = false;
            }
        }
        Ok(())
    }

    /// What the journal has not been told yet of what is reserved.
    pub(super) fn news(&self) -> Option<Record> {
        let reserved = Record::Numbers { inode: self.inodes.end as u64, cookie: self.cookies.end as u64 };
        (!self.noted).then_some(reserved)
    }

    /// The journal was told.
    pub(super) fn were_noted(&mut self) {
        self.noted = true;
    }

    /// A number no inode ever had.
    pub(super) fn inode(&mut self) -> i64 {
        self.inodes.next().expect("refilled before each verb, which makes at most one inode")
    }

    /// A position no entry ever had.
    pub(super) fn cookie(&mut self) -> i64 {
        self.cookies.next().expect("refilled before each verb, which makes at most one entry")
    }
}

/// What a verb changes in the totals.
#[derive(Clone, Copy, Default)]
pub(super) struct UsageChange {
    pub(super) inodes: i64,
    pub(super) objects: i64,
    pub(super) object_bytes: i64,
    pub(super) live_bytes: i64,
    pub(super) objects_with_exceptions: i64,
}

impl UsageChange {
    /// Take it into the totals.
    pub(super) fn apply(self, usage: &mut Usage) {
        let totals = [
            (&mut usage.inodes, self.inodes),
            (&mut usage.objects, self.objects),
            (&mut usage.object_bytes, self.object_bytes),
            (&mut usage.live_bytes, self.live_bytes),
            (&mut usage.objects_with_exceptions, self.objects_with_exceptions),
        ];
        for (total, change) in totals {
            *total = total.saturating_add_signed(change);
        }
    }
}
