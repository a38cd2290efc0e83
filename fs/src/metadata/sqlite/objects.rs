//! Objects: what is known of them, which are not whole at home, which nothing refers to any more.

use std::ops::RangeInclusive;

use common::wire::{NodeId, ObjectId};

use super::rows::{self, InodeKey};
use super::transaction::{Change, View};
use crate::error::{Error, Result};
use crate::inode::Ino;
use crate::metadata::record::Record;
use crate::metadata::{Exception, Extent, ObjectRecord, Scattered};

pub(super) fn object(view: View, id: ObjectId) -> Result<ObjectRecord> {
    let key = rows::pack(id).ok_or(Error::NotFound)?;
    let sql = concat!("SELECT ", rows::object_columns!(), " FROM object o WHERE o.id = ?");
    let found = view.row(sql, [key], |row| rows::object(row, 0))?.ok_or(Error::NotFound)?;
    complete(view, found)
}

/// Read an object's exceptions, which most have none of.
fn complete(view: View, (mut record, exceptions): (ObjectRecord, u32)) -> Result<ObjectRecord> {
    if exceptions > 0 {
        record.exceptions = exceptions_of(view, record.id)?;
    }
    Ok(record)
}

pub(super) fn exceptions_of(view: View, id: ObjectId) -> Result<Vec<Exception>> {
    let sql = "SELECT idx, node FROM exception WHERE object = ? ORDER BY idx";
    view.rows(sql, [rows::pack(id)], |row| {
        Ok(Exception { index: row.get(0)?, node: row.get::<_, Option<[u8; 16]>>(1)?.map(NodeId) })
    })
}

pub(super) fn objects_of(
    view: View,
    ino: Ino,
    from: u64,
    limit: usize,
) -> Result<Vec<(Extent, ObjectRecord)>> {
    let sql = concat!(
        "SELECT ",
        rows::extent_columns!(),
        ", ",
        rows::object_columns!(),
        " FROM extent e LEFT JOIN object o ON o.id = e.object WHERE e.ino = ?1 AND e.offset >= ",
        "coalesce((SELECT max(b.offset) FROM extent b WHERE b.ino = ?1 AND b.offset <= ?2), ?2) ",
        "AND e.offset + e.length > ?2 ORDER BY e.offset LIMIT ?3"
    );
    let found = view.rows(sql, (ino.key(), rows::offset(from), rows::limit(limit)), |row| {
        Ok((rows::extent(row, 0)?, rows::object(row, 4)?))
    })?;
    if found.is_empty() {
        view.inode(ino)?;
    }
    found.into_iter().map(|(extent, object)| Ok((extent, complete(view, object)?))).collect()
}

pub(super) fn small_files(
    view: View,
    inos: RangeInclusive<u64>,
    longest: u32,
    limit: usize,
) -> Result<Vec<ObjectRecord>> {
    let sql = concat!(
        "SELECT ",
        rows::object_columns!(),
        " FROM extent e JOIN object o ON o.id = e.object ",
        "WHERE e.ino BETWEEN ?1 AND ?2 AND e.offset = 0 AND o.length <= ?3 ORDER BY e.ino LIMIT ?4"
    );
    let (first, last) = inos.into_inner();
    let parameters = (Ino(first).key(), rows::offset(last), longest, rows::limit(limit));
    let found = view.rows(sql, parameters, |row| rows::object(row, 0))?;
    found.into_iter().map(|object| complete(view, object)).collect()
}

pub(super) fn scattered(view: View, after: (Ino, u64), small: u32, limit: usize) -> Result<Vec<Scattered>> {
    let sql = concat!(
        "SELECT ",
        rows::extent_columns!(),
        ", ",
        rows::object_columns!(),
        ", e.ino, o.live * 2 < o.length FROM extent e JOIN object o ON o.id = e.object ",
        "WHERE (e.ino, e.offset) > (?1, ?2) AND o.live <= o.length AND (o.live * 2 < o.length OR o.length <= ?3) ",
        "AND o.id >= (SELECT coalesce(max(next), 0) FROM snapshot) ORDER BY e.ino, e.offset LIMIT ?4"
    );
    let parameters = (after.0.key(), rows::offset(after.1), small, rows::limit(limit));
    let found = view.rows(sql, parameters, |row| {
        let (ino, extent, object) = (rows::ino(row, 10)?, rows::extent(row, 0)?, rows::object(row, 4)?);
        Ok((ino, extent, object, row.get(11)?))
    })?;
    let complete = |(ino, extent, object, sparse)| {
        Ok(Scattered { ino, extent, object: complete(view, object)?, sparse })
    };
    found.into_iter().map(complete).collect()
}

/// Write a new object, to which extents refer with `live` bytes; false if there is one of that identity.
pub(super) fn insert(change: &mut Change, key: i64, record: &ObjectRecord, live: i64) -> Result<bool> {
    let exceptions = distinct(&record.exceptions);
    let added = change.run(
        "INSERT OR IGNORE INTO object (id, length, fpcc, code, configuration, exceptions, live) \
         VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            key,
            record.length,
            record.fpcc.as_bytes(),
            record.code.to_string(),
            record.configuration,
            exceptions.len() as u32,
            live,
        ),
    )?;
    if added == 0 {
        return Ok(false);
    }
    insert_exceptions(change, key, &exceptions)?;
    change.note(&Record::Object(record.clone()));
    change.usage.objects += 1;
    change.usage.object_bytes += i64::from(record.length);
    change.usage.live_bytes += live;
    change.usage.objects_with_exceptions += i64::from(!exceptions.is_empty());
    Ok(true)
}

/// Check that an object the store knows is the one that is brought again, and still in use if it is to be.
pub(super) fn check_known(view: View, record: &ObjectRecord, used: bool) -> Result<()> {
    let known = object(view, record.id)?;
    if (known.length, known.fpcc, known.code) != (record.length, record.fpcc, record.code) {
        return Err(Error::Invalid("the store knows another object of this identity"));
    }
    if used && !is_live(view, record.id)? {
        return Err(Error::Invalid("an extent refers to a condemned object"));
    }
    Ok(())
}

fn is_live(view: View, id: ObjectId) -> Result<bool> {
    let sql = "SELECT 1 FROM object WHERE id = ? AND live > 0";
    Ok(view.row(sql, [rows::pack(id)], |_| Ok(()))?.is_some())
}

/// One exception for each index, by index; the last one counts.
fn distinct(exceptions: &[Exception]) -> Vec<Exception> {
    let mut distinct: Vec<Exception> = exceptions.iter().rev().copied().collect();
    distinct.sort_by_key(|exception| exception.index);
    distinct.dedup_by_key(|exception| exception.index);
    distinct
}

pub(super) fn insert_exceptions(change: &mut Change, key: i64, exceptions: &[Exception]) -> Result<()> {
    for exception in exceptions {
        let node = exception.node.map(|node| node.0);
        change.run("INSERT INTO exception VALUES (?, ?, ?)", (key, exception.index, node))?;
    }
    Ok(())
}

pub(super) fn set_exceptions(change: &mut Change, id: ObjectId, exceptions: &[Exception]) -> Result<()> {
    let Some(key) = rows::pack(id) else { return Ok(()) };
    let sql = "SELECT exceptions FROM object WHERE id = ?";
    let Some(before) = change.row(sql, [key], |row| row.get::<_, u32>(0))? else { return Ok(()) };
    let exceptions = distinct(exceptions);
    change.run("DELETE FROM exception WHERE object = ?", [key])?;
    insert_exceptions(change, key, &exceptions)?;
    change.run("UPDATE object SET exceptions = ? WHERE id = ?", (exceptions.len() as u32, key))?;
    change.note(&Record::Exceptions(id, exceptions.clone()));
    change.usage.objects_with_exceptions += i64::from(!exceptions.is_empty()) - i64::from(before > 0);
    Ok(())
}

pub(super) fn revise_exceptions(
    change: &mut Change,
    before: &ObjectRecord,
    after: &[Exception],
) -> Result<Option<Vec<Exception>>> {
    let now = match object(**change, before.id) {
        Ok(record) if record.configuration == before.configuration => record.exceptions,
        Ok(_) | Err(Error::NotFound) => return Ok(None),
        Err(error) => return Err(error),
    };
    let of = |list: &[Exception], index| list.iter().rfind(|exception| exception.index == index).copied();
    let mut revised: Vec<Exception> = Vec::new();
    for index in 0..=u8::MAX {
        let (then, wanted, now) = (of(&before.exceptions, index), of(after, index), of(&now, index));
        revised.extend(if then == now { wanted } else { now });
    }
    if revised != now {
        set_exceptions(change, before.id, &revised)?;
    }
    Ok(Some(revised))
}

pub(super) fn place_anew(
    change: &mut Change,
    before: &ObjectRecord,
    configuration: u32,
    exceptions: &[Exception],
) -> Result<bool> {
    let Some(key) = rows::pack(before.id) else { return Ok(false) };
    let is_as_before = |now: &ObjectRecord| {
        (now.configuration, &now.exceptions) == (before.configuration, &before.exceptions)
    };
    let now = match object(**change, before.id) {
        Ok(now) if is_as_before(&now) => now,
        Ok(_) | Err(Error::NotFound) => return Ok(false),
        Err(error) => return Err(error),
    };
    let known = change.row("SELECT 1 FROM configuration WHERE number = ?", [configuration], |_| Ok(()))?;
    known.ok_or(Error::Invalid("there is no such configuration"))?;
    change.run("UPDATE object SET configuration = ? WHERE id = ?", (configuration, key))?;
    change.note(&Record::Object(ObjectRecord { configuration, ..now }));
    set_exceptions(change, before.id, exceptions)?;
    Ok(true)
}

pub(super) fn with_exceptions(
    view: View,
    after: Option<ObjectId>,
    limit: usize,
) -> Result<Vec<ObjectRecord>> {
    let sql = concat!(
        "SELECT ",
        rows::object_columns!(),
        " FROM object o INDEXED BY exceptional WHERE o.exceptions > 0 AND o.id > ? ORDER BY o.id LIMIT ?"
    );
    let found = view.rows(sql, (key_after(after)?, rows::limit(limit)), |row| rows::object(row, 0))?;
    found.into_iter().map(|object| complete(view, object)).collect()
}

pub(super) fn orphans(view: View) -> Result<Vec<Ino>> {
    let sql = "SELECT ino FROM inode INDEXED BY orphan WHERE links = 0 ORDER BY ino";
    view.rows(sql, [], |row| rows::ino(row, 0))
}

/// What keys of objects after one are greater than.
fn key_after(after: Option<ObjectId>) -> Result<i64> {
    after.map_or(Ok(-1), |id| rows::pack(id).ok_or(Error::Invalid("no object has this identity")))
}

pub(super) fn condemned(view: View, after: Option<ObjectId>, limit: usize) -> Result<Vec<ObjectRecord>> {
    let sql = concat!(
        "SELECT ",
        rows::object_columns!(),
        " FROM object o INDEXED BY condemned WHERE o.live = 0 AND o.kept = 0 AND o.id > ? ORDER BY o.id LIMIT ?"
    );
    let found = view.rows(sql, (key_after(after)?, rows::limit(limit)), |row| rows::object(row, 0))?;
    found.into_iter().map(|object| complete(view, object)).collect()
}

pub(super) fn forget(change: &mut Change, objects: &[ObjectId]) -> Result<()> {
    objects.iter().filter_map(|id| rows::pack(*id)).try_for_each(|key| forget_one(change, key))
}

fn forget_one(change: &mut Change, key: i64) -> Result<()> {
    let sql = "SELECT length, live > 0 OR kept > 0, exceptions FROM object WHERE id = ?";
    let read =
        |row: &rusqlite::Row| Ok((row.get::<_, u32>(0)?, row.get::<_, bool>(1)?, row.get::<_, u32>(2)?));
    let Some((length, used, exceptions)) = change.row(sql, [key], read)? else { return Ok(()) };
    if used {
        return Err(Error::Invalid("a file or a snapshot still refers to this object"));
    }
    change.run("DELETE FROM object WHERE id = ?", [key])?;
    change.note(&Record::NoObject(rows::unpack(key)));
    if exceptions > 0 {
        change.run("DELETE FROM exception WHERE object = ?", [key])?;
        change.usage.objects_with_exceptions -= 1;
    }
    change.usage.objects -= 1;
    change.usage.object_bytes -= i64::from(length);
    Ok(())
}
