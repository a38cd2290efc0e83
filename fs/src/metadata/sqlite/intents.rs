//! Intents: written bytes that the metadata itself carries until they lie in an object.
//!
//! Those of a file never overlap: a newer one takes away what it covers.

use std::ops::Range;

use rusqlite::Row;

use super::rows::{self, InodeKey};
use super::transaction::{Change, View};
use crate::error::{Error, Result};
use crate::inode::{Ino, Time};
use crate::metadata::record::Record;
use crate::metadata::{Intent, MAX_INTENT};

pub(super) fn put(change: &mut Change, ino: Ino, intents: &[Intent], mtime: Option<Time>) -> Result<()> {
    let mut inode = super::data::file(change.view, ino)?;
    for intent in intents {
        let range = super::data::range_at(intent.offset, intent.bytes.len() as u64)?;
        if range.is_empty() || intent.bytes.len() > MAX_INTENT {
            return Err(Error::Invalid("an intent is empty or too long"));
        }
        clip(change, ino, range.clone(), u64::MAX)?;
        insert(change, ino, intent)?;
        inode.size = inode.size.max(range.end);
    }
    if let Some(mtime) = mtime {
        inode.written_at(mtime);
    }
    change.save(&inode)
}

fn insert(change: &mut Change, ino: Ino, intent: &Intent) -> Result<()> {
    write(change, ino, intent)?;
    change.note(&Record::Intent(ino, intent.clone()));
    Ok(())
}

/// The row alone, as a record says it.
pub(super) fn write(change: &mut Change, ino: Ino, intent: &Intent) -> Result<()> {
    let sql = "INSERT OR REPLACE INTO intent (ino, offset, length, number, bytes) VALUES (?, ?, ?, ?, ?)";
    let (offset, number) = (rows::offset(intent.offset), rows::offset(intent.number));
    change.run(sql, (ino.key(), offset, intent.bytes.len() as i64, number, &intent.bytes))?;
    Ok(())
}

/// Take away what lies in a range and is numbered `upto` or less.
pub(super) fn clip(change: &mut Change, ino: Ino, range: Range<u64>, upto: u64) -> Result<()> {
    // None is longer than MAX_INTENT, so none that begins before this reaches into the range.
    let sql =
        "SELECT offset, length FROM intent WHERE ino = ?1 AND offset > ?2 AND offset < ?3 AND number <= ?4";
    let from = rows::offset(range.start) - MAX_INTENT as i64;
    let near = change.rows(sql, (ino.key(), from, rows::offset(range.end), rows::offset(upto)), |row| {
        Ok((rows::unsigned(row, 0)?, rows::unsigned(row, 1)?))
    })?;
    for (offset, length) in near {
        if !range.is_empty() && offset + length > range.start {
            cut(change, ino, offset, &range)?;
        }
    }
    Ok(())
}

/// Keep of one what lies before and after a range that it overlaps.
fn cut(change: &mut Change, ino: Ino, offset: u64, range: &Range<u64>) -> Result<()> {
    let sql = "DELETE FROM intent WHERE ino = ? AND offset = ? RETURNING offset, number, bytes";
    let key = (ino.key(), rows::offset(offset));
    let Some(gone) = change.row(sql, key, |row| intent(row, 0))? else { return Ok(()) };
    change.rows += 1;
    change.note(&Record::NoIntent(ino, offset));
    let (before, after) = gone.without(range);
    [before, after].iter().flatten().try_for_each(|left| insert(change, ino, left))
}

/// The intent in the columns from `first` on.
pub(super) fn intent(row: &Row, first: usize) -> rusqlite::Result<Intent> {
    let (offset, number) = (rows::unsigned(row, first)?, rows::unsigned(row, first + 1)?);
    Ok(Intent { offset, number, bytes: row.get(first + 2)? })
}

pub(super) fn of_file(view: View, ino: Ino) -> Result<Vec<Intent>> {
    view.rows("SELECT offset, number, bytes FROM intent WHERE ino = ? ORDER BY offset", [ino.key()], |row| {
        intent(row, 0)
    })
}

pub(super) fn files(view: View) -> Result<Vec<Ino>> {
    view.rows("SELECT DISTINCT ino FROM intent", [], |row| rows::ino(row, 0))
}
