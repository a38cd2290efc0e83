//! Snapshots: which there are, and which objects they keep.
//!
//! An object to which nothing refers any more is kept by the snapshots it is part of. These are those that were begun
//! before it was condemned (numbers up to `kept`), and of which it is old enough to be a part (identity below `next`).
//! `kept` is the greatest number of them, 0 if there is none; so who goes away is found by number.

use common::wire::ObjectId;

use super::rows;
use super::transaction::{Change, View};
use crate::error::{Error, Result};
use crate::inode::Time;
use crate::metadata::record::Record;
use crate::metadata::{Snapshot, SnapshotUsage};

/// Of object o, the greatest snapshot of those up to `o.kept` that it is part of.
const KEEPER: &str = "coalesce((SELECT max(s.number) FROM snapshot s WHERE s.number <= object.kept AND \
                      s.next > object.id), 0)";

pub(super) fn begin(change: &mut Change, name: &str, now: Time) -> Result<u32> {
    if change.row("SELECT 1 FROM snapshot WHERE name = ?", [name], |_| Ok(()))?.is_some() {
        return Err(Error::Exists);
    }
    // `kept` never exceeds the greatest number there is, so a number that comes back keeps nothing of the past.
    let sql = "SELECT coalesce(max(number), 0) + 1 FROM snapshot";
    let number = change.row(sql, [], |row| row.get(0))?.unwrap_or(1);
    let all = rows::unpack(i64::MAX);
    put_noted(change, Snapshot { number, name: name.to_owned(), created: now, next: all, pin: Vec::new() })?;
    Ok(number)
}

pub(super) fn pin(change: &mut Change, number: u32, next: ObjectId, pin: &[u8]) -> Result<()> {
    let snapshot = one(change.view, number)?;
    put_noted(change, Snapshot { next, pin: pin.to_vec(), ..snapshot })
}

fn put_noted(change: &mut Change, snapshot: Snapshot) -> Result<()> {
    put(change, &snapshot)?;
    change.note(&Record::Snapshot(snapshot));
    Ok(())
}

pub(super) fn put(change: &mut Change, snapshot: &Snapshot) -> Result<()> {
    let next = rows::pack(snapshot.next).unwrap_or(i64::MAX);
    let created = snapshot.created;
    change.run(
        "INSERT OR REPLACE INTO snapshot (number, name, created_s, created_ns, next, pin) VALUES (?, ?, ?, ?, ?, ?)",
        (snapshot.number, &snapshot.name, created.seconds, created.nanos, next, &snapshot.pin),
    )?;
    Ok(())
}

pub(super) fn all(view: View) -> Result<Vec<Snapshot>> {
    let sql = "SELECT number, name, created_s, created_ns, next, pin FROM snapshot ORDER BY number";
    view.rows(sql, [], |row| {
        Ok(Snapshot {
            number: row.get(0)?,
            name: row.get(1)?,
            created: rows::time(row, 2)?,
            next: rows::unpack(row.get(4)?),
            pin: row.get(5)?,
        })
    })
}

fn one(view: View, number: u32) -> Result<Snapshot> {
    let found = all(view)?.into_iter().find(|snapshot| snapshot.number == number);
    found.ok_or(Error::NotFound)
}

/// Nothing refers to an object any more: let the snapshots that it is part of keep it.
pub(super) fn keep(change: &mut Change, object: i64) -> Result<()> {
    let sql = "SELECT coalesce(max(number), 0) FROM snapshot WHERE next > ?";
    let keeper = change.row(sql, [object], |row| row.get(0))?.unwrap_or_default();
    if keeper > 0 {
        set_kept(change, object, keeper)?;
        change.note(&Record::Kept(rows::unpack(object), keeper));
    }
    Ok(())
}

pub(super) fn set_kept(change: &mut Change, object: i64, number: u32) -> Result<()> {
    change.run("UPDATE object SET kept = ? WHERE id = ?", (number, object))?;
    Ok(())
}

/// All that are kept, and by which.
pub(super) fn kept(view: View) -> Result<Vec<(ObjectId, u32)>> {
    view.rows("SELECT id, kept FROM object INDEXED BY kept WHERE kept > 0", [], |row| {
        Ok((rows::unpack(row.get(0)?), row.get(1)?))
    })
}

pub(super) fn delete(change: &mut Change, number: u32) -> Result<()> {
    one(change.view, number)?;
    let_go(change, number)?;
    change.note(&Record::NoSnapshot(number));
    Ok(())
}

/// Take one away. Which older one keeps what it kept follows from what is stored, so no record says it.
pub(super) fn let_go(change: &mut Change, number: u32) -> Result<()> {
    change.run("DELETE FROM snapshot WHERE number = ?", [number])?;
    let sql = format!("UPDATE object INDEXED BY kept SET kept = {KEEPER} WHERE kept > 0 AND kept >= ?");
    change.run(&sql, [number])?;
    Ok(())
}

pub(super) fn usage(view: View, number: u32) -> Result<SnapshotUsage> {
    let snapshot = one(view, number)?;
    let next = rows::pack(snapshot.next).unwrap_or(i64::MAX);
    let sql = "SELECT coalesce(sum(o.length), 0), coalesce(sum(o.length) FILTER (WHERE NOT EXISTS ( \
               SELECT 1 FROM snapshot s WHERE s.number <> ?1 AND s.number <= o.kept AND s.next > o.id)), 0) \
               FROM object o INDEXED BY kept WHERE o.kept > 0 AND o.kept >= ?1 AND o.live = 0 AND o.id < ?2";
    let read = |row: &rusqlite::Row| {
        Ok(SnapshotUsage { kept_bytes: rows::unsigned(row, 0)?, alone_bytes: rows::unsigned(row, 1)? })
    };
    Ok(view.row(sql, (number, next), read)?.unwrap_or_default())
}
