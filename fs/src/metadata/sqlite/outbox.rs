//! Changes the pool does not have yet: written by the transaction that made them, taken away once they are there.

use super::rows;
use super::transaction::{Change, View};
use crate::error::{Error, Result};
use crate::metadata::Outbox;

/// Bytes of one change's records: what the journal never cuts, and each node takes as one fragment even of a code whose
/// fragments are as long as the whole.
const LONGEST_CHANGE: usize = 30 << 20;

/// Number of the last change ever made.
pub(super) fn last(view: View) -> Result<u64> {
    let sql = "SELECT max((SELECT coalesce(max(number), 0) FROM outbox), \
               (SELECT value FROM counter WHERE name = 'shipped'))";
    let last = view.row(sql, [], |row| rows::unsigned(row, 0))?;
    last.ok_or_else(|| Error::Store("the counter of shipped changes is missing".into()))
}

/// Write what a verb noted, under its number. Returns the records, none if it noted nothing.
pub(super) fn put(change: &mut Change, number: u64) -> Result<Vec<u8>> {
    let mut records = Vec::new();
    if change.log.is_empty() {
        return Ok(records);
    }
    if let Some(reserved) = change.numbers.news() {
        reserved.encode(&mut records);
    }
    records.append(&mut change.log);
    if records.len() > LONGEST_CHANGE {
        return Err(Error::Store(format!("a change has {} bytes of records", records.len())));
    }
    insert(change, number, &records)?;
    Ok(records)
}

/// The row alone.
pub(super) fn insert(change: &mut Change, number: u64, records: &[u8]) -> Result<()> {
    // The pages of a long one count for the next checkpoint.
    change.rows += records.len() as u64 / 4096;
    change.run("INSERT INTO outbox VALUES (?, ?)", (rows::offset(number), records))?;
    Ok(())
}

pub(super) fn read(view: View, after: u64, bytes: usize) -> Result<Outbox> {
    let sql = "SELECT number, records FROM outbox WHERE number > ? ORDER BY number";
    let mut found = Outbox { last: after, records: Vec::new() };
    view.each(sql, [rows::offset(after)], |row| {
        found.last = rows::unsigned(row, 0)?;
        found.records.extend_from_slice(row.get_ref(1)?.as_blob()?);
        Ok(found.records.len() < bytes)
    })?;
    Ok(found)
}

/// What the pool has leaves; what it has last is remembered.
pub(super) fn shipped(change: &mut Change, upto: u64, head: &[u8]) -> Result<()> {
    change.run("DELETE FROM outbox WHERE number <= ?", [rows::offset(upto)])?;
    let sql = "UPDATE counter SET value = max(value, ?) WHERE name = 'shipped'";
    change.run(sql, [rows::offset(upto)])?;
    change.run("INSERT OR REPLACE INTO head VALUES (1, ?)", [head])?;
    Ok(())
}

pub(super) fn head(view: View) -> Result<Option<Vec<u8>>> {
    view.row("SELECT head FROM head", [], |row| row.get(0))
}

/// Bytes that wait.
pub(super) fn waiting(view: View) -> Result<u64> {
    let sql = "SELECT coalesce(sum(length(records)), 0) FROM outbox";
    Ok(view.row(sql, [], |row| rows::unsigned(row, 0))?.unwrap_or_default())
}
