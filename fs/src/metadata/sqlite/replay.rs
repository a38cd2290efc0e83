//! Records in and out: the whole state as records, and records applied to a state.

use std::collections::BTreeMap;

use rusqlite::{Row, params};

use super::intents;
use super::objects;
use super::outbox;
use super::redo::Frame;
use super::rows::{self, InodeKey};
use super::snapshots;
use super::transaction::{Change, View};
use super::volume;
use crate::error::{Error, Result};
use crate::inode::{Ino, Inode};
use crate::metadata::record::{self, Record};
use crate::metadata::{Exception, ObjectRecord};

/// About so many bytes of records are handed on at once.
const CHUNK: usize = 4 << 20;

/// Everything a volume is, for `apply` to begin from nothing.
const TABLES: [&str; 11] = [
    "volume",
    "configuration",
    "inode",
    "entry",
    "target",
    "xattr",
    "extent",
    "intent",
    "object",
    "exception",
    "snapshot",
];

/// Hand on every row as a record; returns the number of the last change among them.
pub(super) fn dump(view: View, sink: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<u64> {
    let mut out = Out { bytes: Vec::new(), sink };
    let last = outbox::last(view)?;
    if let Some(settings) = volume::settings(view)? {
        out.put(&Record::Volume(settings))?;
    }
    let counter = |name: &str| {
        let found =
            view.row("SELECT value FROM counter WHERE name = ?", [name], |row| rows::unsigned(row, 0))?;
        found.ok_or_else(|| Error::Store(format!("the counter {name} is missing")))
    };
    out.put(&Record::Numbers { inode: counter("inode")?, cookie: counter("cookie")? })?;
    out.put(&Record::Epoch(counter("epoch")? as u32))?;
    for configuration in volume::configurations(view)? {
        out.put(&Record::Configuration(configuration))?;
    }
    let inodes = concat!("SELECT i.parent, ", rows::inode_columns!(), " FROM inode i");
    out.rows(view, inodes, |row| {
        let inode = rows::inode(row, 1)?;
        let parent = inode.is_directory().then_some(Record::Parent(inode.ino, rows::ino(row, 0)?));
        Ok([Some(Record::Inode(inode)), parent])
    })?;
    out.rows(view, "SELECT parent, name, ino, cookie FROM entry", |row| {
        let (parent, name) = (rows::ino(row, 0)?, row.get(1)?);
        Ok([
            Some(Record::Entry { parent, name, ino: rows::ino(row, 2)?, cookie: rows::unsigned(row, 3)? }),
            None,
        ])
    })?;
    out.rows(view, "SELECT ino, target FROM target", |row| {
        Ok([Some(Record::Target(rows::ino(row, 0)?, row.get(1)?)), None])
    })?;
    out.rows(view, "SELECT ino, name, value FROM xattr", |row| {
        Ok([Some(Record::Xattr(rows::ino(row, 0)?, row.get(1)?, row.get(2)?)), None])
    })?;
    let listed = concat!("SELECT ", rows::object_columns!(), " FROM object o");
    out.rows(view, listed, |row| Ok([Some(Record::Object(rows::object(row, 0)?.0)), None]))?;
    let exceptional = "SELECT DISTINCT object FROM exception";
    for id in view.rows(exceptional, [], |row| Ok(rows::unpack(row.get(0)?)))? {
        out.put(&Record::Exceptions(id, objects::exceptions_of(view, id)?))?;
    }
    for (id, keeper) in snapshots::kept(view)? {
        out.put(&Record::Kept(id, keeper))?;
    }
    for snapshot in snapshots::all(view)? {
        out.put(&Record::Snapshot(snapshot))?;
    }
    let extents = concat!("SELECT e.ino, ", rows::extent_columns!(), " FROM extent e");
    out.rows(view, extents, |row| {
        Ok([Some(Record::Extent(rows::ino(row, 0)?, rows::extent(row, 1)?)), None])
    })?;
    let intents = "SELECT ino, offset, number, bytes FROM intent";
    out.rows(view, intents, |row| {
        Ok([Some(Record::Intent(rows::ino(row, 0)?, intents::intent(row, 1)?)), None])
    })?;
    out.flush()?;
    Ok(last)
}

struct Out<'s> {
    bytes: Vec<u8>,
    sink: &'s mut dyn FnMut(&[u8]) -> Result<()>,
}

impl Out<'_> {
    fn put(&mut self, record: &Record) -> Result<()> {
        record.encode(&mut self.bytes);
        if self.bytes.len() >= CHUNK { self.flush() } else { Ok(()) }
    }

    fn rows(
        &mut self,
        view: View,
        sql: &str,
        mut read: impl FnMut(&Row) -> rusqlite::Result<[Option<Record>; 2]>,
    ) -> Result<()> {
        let mut failed = Ok(());
        view.each(sql, [], |row| {
            for record in read(row)?.iter().flatten() {
                failed = failed.clone().and_then(|()| self.put(record));
            }
            Ok(failed.is_ok())
        })?;
        failed
    }

    fn flush(&mut self) -> Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let done = (self.sink)(&self.bytes);
        self.bytes.clear();
        done
    }
}

/// Forget everything but what the outbox holds.
pub(super) fn clear(change: &mut Change) -> Result<()> {
    for table in TABLES {
        change.run(&format!("DELETE FROM {table}"), [])?;
    }
    Ok(())
}

/// Apply what the outbox still holds, after the records of the pool that came before it.
pub(super) fn apply_outbox(change: &mut Change) -> Result<()> {
    let left = outbox::read(change.view, 0, usize::MAX)?;
    let theirs = volume::configurations(change.view)?;
    let mut bytes = &left.records[..];
    while let Some(record) = Record::decode(&mut bytes)? {
        // Objects lie where their configuration says: it must not become another one.
        if let Record::Configuration(ours) = &record
            && theirs.iter().any(|other| (other.number == ours.number) != (other.nodes == ours.nodes))
        {
            return Err(Error::Pool(format!(
                "the nodes that this store went on with never reached the pool, where configuration {} is of others by now: \
                 move this state folder away, and recover into a new one",
                ours.number
            )));
        }
        apply(change, &record)?;
    }
    Ok(())
}

/// Make the changes of the redo log that were not committed, up to the one numbered `upto`: rows and outbox.
pub(super) fn redo(change: &mut Change, frames: &[Frame], upto: u64) -> Result<()> {
    let last = outbox::last(change.view)?;
    let missing: Vec<&Frame> =
        frames.iter().filter(|frame| frame.number > last && frame.number <= upto).collect();
    // After a power loss the database may lack what came before the log: then this is not what follows.
    if missing.first().is_none_or(|first| first.number > last + 1) {
        return Ok(());
    }
    let mut live = Live::default();
    for Frame { number, records } in missing {
        for record in record::decode_all(records)? {
            live.count(change.view, &record)?;
            apply(change, &record)?;
        }
        outbox::insert(change, *number, records)?;
    }
    live.settle(change)
}

/// How many bytes more or fewer of each object are in use. For a few changes of a store that was right before them;
/// `settle` reads every extent.
#[derive(Default)]
struct Live(BTreeMap<i64, i64>);

impl Live {
    /// Count what a record is about to do to the extents. Verbs note each that goes, also where its inode does.
    fn count(&mut self, view: View, record: &Record) -> Result<()> {
        match record {
            Record::Extent(ino, extent) => {
                self.discount(view, *ino, extent.offset)?;
                if let Some(key) = rows::pack(extent.object) {
                    *self.0.entry(key).or_default() += i64::from(extent.length);
                }
                Ok(())
            }
            Record::NoExtent(ino, offset) => self.discount(view, *ino, *offset),
            _ => Ok(()),
        }
    }

    /// The extent at an offset goes, if there is one.
    fn discount(&mut self, view: View, ino: Ino, offset: u64) -> Result<()> {
        let sql = "SELECT object, length FROM extent WHERE ino = ? AND offset = ?";
        let read = |row: &Row| Ok((row.get(0)?, row.get::<_, i64>(1)?));
        if let Some((key, length)) = view.row(sql, (ino.key(), rows::offset(offset)), read)? {
            *self.0.entry(key).or_default() -= length;
        }
        Ok(())
    }

    fn settle(self, change: &mut Change) -> Result<()> {
        for (key, difference) in self.0 {
            change.run("UPDATE object SET live = live + ? WHERE id = ?", (difference, key))?;
        }
        Ok(())
    }
}

/// Apply encoded records in order.
pub(super) fn apply_all(change: &mut Change, mut bytes: &[u8]) -> Result<()> {
    while let Some(record) = Record::decode(&mut bytes)? {
        apply(change, &record)?;
    }
    Ok(())
}

fn apply(change: &mut Change, record: &Record) -> Result<()> {
    match record {
        Record::Volume(settings) => {
            change.run("DELETE FROM volume", [])?;
            volume::insert_settings(change, settings)?;
        }
        Record::Numbers { inode, cookie } => {
            raise(change, "inode", *inode)?;
            raise(change, "cookie", *cookie)?;
        }
        Record::Epoch(epoch) => raise(change, "epoch", u64::from(*epoch))?,
        Record::Configuration(configuration) => {
            let nodes: Vec<u8> = configuration.nodes.iter().flat_map(|node| node.0).collect();
            change
                .run("INSERT OR REPLACE INTO configuration VALUES (?, ?)", (configuration.number, nodes))?;
        }
        Record::Inode(inode) => put_inode(change, inode)?,
        Record::Parent(ino, parent) => {
            change.run("UPDATE inode SET parent = ? WHERE ino = ?", (parent.key(), ino.key()))?;
        }
        Record::Accessed(ino, time) => {
            let sql = "UPDATE inode SET atime_s = ?, atime_ns = ? WHERE ino = ?";
            change.run(sql, (time.seconds, time.nanos, ino.key()))?;
        }
        Record::NoInode(ino) => delete_inode(change, *ino)?,
        Record::Entry { parent, name, ino, cookie } => {
            let sql = "INSERT OR REPLACE INTO entry (parent, name, ino, cookie) VALUES (?, ?, ?, ?)";
            change.run(sql, (parent.key(), name, ino.key(), rows::offset(*cookie)))?;
        }
        Record::NoEntry(parent, name) => {
            change.run("DELETE FROM entry WHERE parent = ? AND name = ?", (parent.key(), name))?;
        }
        Record::Target(ino, target) => {
            change.run("INSERT OR REPLACE INTO target VALUES (?, ?)", (ino.key(), target))?;
        }
        Record::Xattr(ino, name, value) => {
            change.run("INSERT OR REPLACE INTO xattr VALUES (?, ?, ?)", (ino.key(), name, value))?;
        }
        Record::NoXattr(ino, name) => {
            change.run("DELETE FROM xattr WHERE ino = ? AND name = ?", (ino.key(), name))?;
        }
        Record::Extent(ino, extent) => {
            let sql = "INSERT OR REPLACE INTO extent (ino, offset, length, object, object_offset) \
                       VALUES (?, ?, ?, ?, ?)";
            let (offset, object) = (rows::offset(extent.offset), rows::pack(extent.object));
            change.run(sql, (ino.key(), offset, extent.length, object, extent.object_offset))?;
        }
        Record::NoExtent(ino, offset) => {
            let sql = "DELETE FROM extent WHERE ino = ? AND offset = ?";
            change.run(sql, (ino.key(), rows::offset(*offset)))?;
        }
        Record::Intent(ino, intent) => intents::write(change, *ino, intent)?,
        Record::NoIntent(ino, offset) => {
            change
                .run("DELETE FROM intent WHERE ino = ? AND offset = ?", (ino.key(), rows::offset(*offset)))?;
        }
        Record::Object(object) => put_object(change, object)?,
        Record::Exceptions(id, exceptions) => {
            let Some(key) = rows::pack(*id) else { return Ok(()) };
            put_exceptions(change, key, exceptions)?;
        }
        Record::NoObject(id) => {
            change.run("DELETE FROM object WHERE id = ?", [rows::pack(*id)])?;
            change.run("DELETE FROM exception WHERE object = ?", [rows::pack(*id)])?;
        }
        Record::Snapshot(snapshot) => snapshots::put(change, snapshot)?,
        Record::NoSnapshot(number) => snapshots::let_go(change, *number)?,
        Record::Kept(id, keeper) => {
            let Some(key) = rows::pack(*id) else { return Ok(()) };
            snapshots::set_kept(change, key, *keeper)?;
        }
    }
    Ok(())
}

fn raise(change: &mut Change, counter: &str, least: u64) -> Result<()> {
    let sql = "UPDATE counter SET value = max(value, ?) WHERE name = ?";
    change.run(sql, (rows::offset(least), counter))?;
    Ok(())
}

fn put_inode(change: &mut Change, inode: &Inode) -> Result<()> {
    change.run(
        "INSERT INTO inode VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 0, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16) \
         ON CONFLICT (ino) DO UPDATE SET mode = ?2, uid = ?3, gid = ?4, links = ?5, size = ?6, allocated = ?7, \
         rdev = ?8, atime_s = ?9, atime_ns = ?10, mtime_s = ?11, mtime_ns = ?12, ctime_s = ?13, ctime_ns = ?14, \
         btime_s = ?15, btime_ns = ?16",
        params![
            inode.ino.key(),
            inode.mode,
            inode.uid,
            inode.gid,
            inode.links,
            rows::offset(inode.size),
            rows::offset(inode.allocated),
            inode.rdev,
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
    Ok(())
}

fn delete_inode(change: &mut Change, ino: Ino) -> Result<()> {
    for sql in [
        "DELETE FROM inode WHERE ino = ?",
        "DELETE FROM xattr WHERE ino = ?",
        "DELETE FROM target WHERE ino = ?",
        "DELETE FROM extent WHERE ino = ?",
        "DELETE FROM intent WHERE ino = ?",
    ] {
        change.run(sql, [ino.key()])?;
    }
    Ok(())
}

/// One that is known already was placed anew; how much of it is in use, and what keeps it, stays.
fn put_object(change: &mut Change, object: &ObjectRecord) -> Result<()> {
    let key =
        rows::pack(object.id).ok_or(Error::Invalid("an object identity beyond what the store can hold"))?;
    change.run(
        "INSERT INTO object (id, length, fpcc, code, configuration, exceptions, live) \
         VALUES (?1, ?2, ?3, ?4, ?5, 0, 0) \
         ON CONFLICT (id) DO UPDATE SET length = ?2, fpcc = ?3, code = ?4, configuration = ?5",
        (key, object.length, object.fpcc.as_bytes(), object.code.to_string(), object.configuration),
    )?;
    put_exceptions(change, key, &object.exceptions)
}

fn put_exceptions(change: &mut Change, key: i64, exceptions: &[Exception]) -> Result<()> {
    change.run("DELETE FROM exception WHERE object = ?", [key])?;
    let sql = "UPDATE object SET exceptions = ? WHERE id = ?";
    if change.run(sql, (exceptions.len() as u32, key))? > 0 {
        objects::insert_exceptions(change, key, exceptions)?;
    }
    Ok(())
}

/// Count what follows from the extents, which no record says: how many bytes of each object are in use.
pub(super) fn settle(change: &mut Change) -> Result<()> {
    change.run("UPDATE object SET live = 0 WHERE live <> 0", [])?;
    let sql = "UPDATE object SET live = used.bytes \
               FROM (SELECT object, sum(length) AS bytes FROM extent GROUP BY object) AS used \
               WHERE used.object = object.id";
    change.run(sql, [])?;
    Ok(())
}
