//! Extents: which bytes of a file lie in which object.
//!
//! Every verb here replaces the extents of one range by others. What that means for the file's allocated bytes and
//! the objects' live bytes follows from the two lists alone, so the counts cannot drift from the extents.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use common::wire::ObjectId;

use super::intents;
use super::objects;
use super::rows::{self, InodeKey};
use super::snapshots;
use super::transaction::{Change, View};
use crate::error::{Error, Result};
use crate::inode::{Ino, Inode, MAX_SIZE, Time};
use crate::metadata::record::Record;
use crate::metadata::{Commit, Extent, FileCommit, ObjectRecord};

pub(super) fn extents(view: View, ino: Ino, range: Range<u64>) -> Result<Vec<Extent>> {
    let mut found = near(view, ino, &range)?;
    found.retain(|extent| overlaps(extent, &range));
    if found.is_empty() {
        view.inode(ino)?;
    }
    Ok(found)
}

fn overlaps(extent: &Extent, range: &Range<u64>) -> bool {
    !range.is_empty() && extent.offset < range.end && range.start < extent.range().end
}

/// The extents that overlap a range, the one before it and one that begins at its end, if there are any.
fn near(view: View, ino: Ino, range: &Range<u64>) -> Result<Vec<Extent>> {
    let sql = concat!(
        "SELECT ",
        rows::extent_columns!(),
        " FROM extent e WHERE e.ino = ?1 AND e.offset <= ?3 AND e.offset >= ",
        "coalesce((SELECT max(b.offset) FROM extent b WHERE b.ino = ?1 AND b.offset < ?2), ?2) ",
        "ORDER BY e.offset"
    );
    let parameters = (ino.key(), rows::offset(range.start), rows::offset(range.end));
    view.rows(sql, parameters, |row| rows::extent(row, 0))
}

pub(super) fn truncate(change: &mut Change, ino: Ino, size: u64, now: Time) -> Result<Inode> {
    let mut inode = file(change.view, ino)?;
    if size > MAX_SIZE {
        return Err(Error::TooLarge);
    }
    if size < inode.size {
        erase(change, &mut inode, size..u64::MAX)?;
    }
    inode.size = size;
    (inode.mtime, inode.ctime) = (now, now);
    change.save(&inode)?;
    Ok(inode)
}

pub(super) fn punch(change: &mut Change, ino: Ino, range: Range<u64>, now: Time) -> Result<Inode> {
    let mut inode = file(change.view, ino)?;
    if range.start > range.end {
        return Err(Error::Invalid("a range that ends before it begins"));
    }
    erase(change, &mut inode, range)?;
    (inode.mtime, inode.ctime) = (now, now);
    change.save(&inode)?;
    Ok(inode)
}

pub(super) fn copy_extents(
    change: &mut Change,
    from: (Ino, u64),
    to: (Ino, u64),
    length: u64,
    now: Time,
) -> Result<()> {
    file(change.view, from.0)?;
    let mut inode = file(change.view, to.0)?;
    let source = range_at(from.1, length)?;
    let target = range_at(to.1, length)?;
    if from.0 == to.0 && source.start < target.end && target.start < source.end {
        return Err(Error::Invalid("the ranges overlap"));
    }
    let copied: Vec<Extent> = extents(change.view, from.0, source.clone())?
        .iter()
        .map(|extent| cut(extent, &source))
        .map(|extent| Extent { offset: extent.offset - source.start + target.start, ..extent })
        .collect();
    let mut live = Live::default();
    intents::clip(change, to.0, target.clone(), u64::MAX)?;
    lay(change, &mut inode, target.clone(), &copied, &mut live)?;
    live.settle(change)?;
    if length > 0 {
        inode.size = inode.size.max(target.end);
    }
    (inode.mtime, inode.ctime) = (now, now);
    change.save(&inode)
}

pub(super) fn range_at(start: u64, length: u64) -> Result<Range<u64>> {
    let end = start.checked_add(length).filter(|end| *end <= MAX_SIZE).ok_or(Error::TooLarge)?;
    Ok(start..end)
}

/// Give up orphans, with at most so many extents. How many are gone, from the first on; the next may have fewer extents.
pub(super) fn reclaim(change: &mut Change, orphans: &[Ino], most: usize) -> Result<usize> {
    let mut left = most;
    for (gone, ino) in orphans.iter().enumerate() {
        if !give_up(change, *ino, &mut left)? {
            return Ok(gone);
        }
    }
    Ok(orphans.len())
}

/// False if it has more than `left` extents, of which the last are gone.
fn give_up(change: &mut Change, ino: Ino, left: &mut usize) -> Result<bool> {
    let mut inode = match change.inode(ino) {
        Ok(inode) if inode.links == 0 => inode,
        Ok(_) | Err(Error::NotFound) => return Ok(true),
        Err(error) => return Err(error),
    };
    let sql = "SELECT count(*) FROM (SELECT 1 FROM extent WHERE ino = ? LIMIT ?)";
    let extents = change.row(sql, (ino.key(), rows::limit(*left + 1)), |row| row.get::<_, u32>(0))?;
    let extents = extents.map_or(0, |extents| extents as usize);
    if extents > *left {
        if let Some(end) = nearer_end(change.view, ino, 0, *left)? {
            erase(change, &mut inode, end..u64::MAX)?;
            change.save(&inode)?;
        }
        return Ok(false);
    }
    *left -= extents;
    erase(change, &mut inode, 0..u64::MAX)?;
    change.run("DELETE FROM xattr WHERE ino = ?", [ino.key()])?;
    if inode.kind() == libc::S_IFLNK {
        change.run("DELETE FROM target WHERE ino = ?", [ino.key()])?;
    }
    change.delete_inode(ino)?;
    Ok(true)
}

/// Where the last `most` extents of a file begin, if more than so many begin at `from` or later.
pub(super) fn nearer_end(view: View, ino: Ino, from: u64, most: usize) -> Result<Option<u64>> {
    let (Some(skipped), Ok(from)) = (most.checked_sub(1), i64::try_from(from)) else { return Ok(None) };
    let sql = "SELECT offset FROM extent WHERE ino = ? AND offset >= ? ORDER BY offset DESC LIMIT 2 OFFSET ?";
    let found = view.rows(sql, (ino.key(), from, rows::limit(skipped)), |row| rows::unsigned(row, 0))?;
    Ok(found.first().filter(|_| found.len() == 2).copied())
}

/// Where the extents begin that follow the first `most` of those in a range, if there are more.
pub(super) fn nearer_begin(view: View, ino: Ino, range: &Range<u64>, most: usize) -> Result<Option<u64>> {
    let Ok(from) = i64::try_from(range.start) else { return Ok(None) };
    let sql = "SELECT offset FROM extent WHERE ino = ? AND offset >= ? ORDER BY offset LIMIT 1 OFFSET ?";
    let found = view.row(sql, (ino.key(), from, rows::limit(most)), |row| rows::unsigned(row, 0))?;
    Ok(found.filter(|begin| *begin < range.end))
}

/// How many bytes from these places on have at most so many extents each, if that is not all of `length`.
pub(super) fn first_piece(
    view: View,
    places: [(Ino, u64); 2],
    length: u64,
    most: usize,
) -> Result<Option<u64>> {
    let mut piece = None;
    for (ino, begin) in places {
        let end = nearer_begin(view, ino, &(begin..begin.saturating_add(length)), most)?;
        piece = [piece, end.map(|end| end - begin)].into_iter().flatten().min();
    }
    Ok(piece)
}

pub(super) fn commit(change: &mut Change, commit: &Commit) -> Result<()> {
    let mut live = Live::default();
    let mut known = Known::new(commit);
    for part in &commit.files {
        commit_file(change, part, &mut known, &mut live)?;
    }
    for record in &commit.objects {
        let key = key_of(record.id)?;
        // Without a living extent it is condemned at once.
        if objects::insert(change, key, record, live.of(key))? {
            live.0.remove(&key);
        } else {
            objects::check_known(change.view, record, live.of(key) > 0)?;
        }
    }
    live.settle(change)
}

pub(super) fn revive(change: &mut Change, ino: Ino, extents: &[Extent], size: u64) -> Result<()> {
    let mut known = Known { lengths: HashMap::new(), kept: true };
    let mut live = Live::default();
    let part = FileCommit { ino, extents: extents.to_vec(), size, mtime: None, intents: 0 };
    commit_file(change, &part, &mut known, &mut live)?;
    live.settle(change)
}

pub(super) fn relocate(
    change: &mut Change,
    ino: Ino,
    object: &ObjectRecord,
    moves: &[(Extent, Extent)],
) -> Result<usize> {
    let mut extents = Vec::new();
    for (from, to) in moves {
        let sql =
            concat!("SELECT ", rows::extent_columns!(), " FROM extent e WHERE e.ino = ? AND e.offset = ?");
        let now = change.row(sql, (ino.key(), rows::offset(from.offset)), |row| rows::extent(row, 0))?;
        if now.as_ref() == Some(from) {
            extents.push(*to);
        }
    }
    let replaced = extents.len();
    let file = FileCommit { ino, extents, size: 0, mtime: None, intents: 0 };
    commit(change, &Commit { objects: vec![object.clone()], files: vec![file] })?;
    Ok(replaced)
}

fn commit_file(change: &mut Change, part: &FileCommit, known: &mut Known, live: &mut Live) -> Result<()> {
    let mut inode = match file(change.view, part.ino) {
        Err(Error::NotFound) => return Ok(()),
        found => found?,
    };
    if part.size > MAX_SIZE {
        return Err(Error::TooLarge);
    }
    for extent in &part.extents {
        known.check(change.view, extent)?;
        lay(change, &mut inode, extent.range(), std::slice::from_ref(extent), live)?;
        if part.intents > 0 {
            intents::clip(change, part.ino, extent.range(), part.intents)?;
        }
        inode.size = inode.size.max(extent.range().end);
    }
    inode.size = inode.size.max(part.size);
    if let Some(mtime) = part.mtime {
        inode.written_at(mtime);
    }
    change.save(&inode)
}

/// A regular file. `NotFound`, `IsDirectory`, `Invalid`.
pub(super) fn file(view: View, ino: Ino) -> Result<Inode> {
    let inode = view.inode(ino)?;
    match inode.kind() {
        libc::S_IFREG => Ok(inode),
        libc::S_IFDIR => Err(Error::IsDirectory),
        _ => Err(Error::Invalid("only a regular file has bytes")),
    }
}

fn erase(change: &mut Change, inode: &mut Inode, range: Range<u64>) -> Result<()> {
    let mut live = Live::default();
    intents::clip(change, inode.ino, range.clone(), u64::MAX)?;
    lay(change, inode, range, &[], &mut live)?;
    live.settle(change)
}

/// Replace what lies in a range of a file by `new` (by offset, inside the range, apart from each other).
/// Counts the inode's allocated bytes, which the caller saves, and the objects' live bytes, which it settles.
fn lay(
    change: &mut Change,
    inode: &mut Inode,
    range: Range<u64>,
    new: &[Extent],
    live: &mut Live,
) -> Result<()> {
    // No extent lies beyond the size, and what begins the file or its object continues no other extent: so most
    // appends need not look.
    let continues_none = range.start == 0 || new.first().is_none_or(|first| first.object_offset == 0);
    let appends = range.start >= inode.size && continues_none;
    let old = if appends { Vec::new() } else { near(change.view, inode.ino, &range)? };
    let then = overlay(&old, &range, new);
    let bytes = |extents: &[Extent]| extents.iter().map(|extent| u64::from(extent.length)).sum::<u64>();
    inode.allocated = (inode.allocated + bytes(&then))
        .checked_sub(bytes(&old))
        .ok_or_else(|| Error::Store(format!("damaged: inode {} holds more than it counts", inode.ino.0)))?;
    live.count(&old, -1)?;
    live.count(&then, 1)?;
    write_difference(change, inode.ino, &old, &then)
}

/// What lies there after `new` replaced what was in `range`; `old` may reach out of the range.
fn overlay(old: &[Extent], range: &Range<u64>, new: &[Extent]) -> Vec<Extent> {
    let before =
        old.iter().filter(|extent| extent.offset < range.start).map(|extent| cut(extent, &(0..range.start)));
    let after = old
        .iter()
        .filter(|extent| extent.range().end > range.end)
        .map(|extent| cut(extent, &(range.end..u64::MAX)));
    let mut then: Vec<Extent> = Vec::with_capacity(old.len() + new.len() + 1);
    for extent in before.chain(new.iter().copied()).chain(after) {
        match then.last_mut() {
            Some(last) if continues(last, &extent) => last.length += extent.length,
            _ => then.push(extent),
        }
    }
    then
}

/// The part of an extent inside a range that it overlaps.
pub(super) fn cut(extent: &Extent, range: &Range<u64>) -> Extent {
    let start = extent.offset.max(range.start);
    let end = extent.range().end.min(range.end);
    // Both differences are at most the extent's length.
    Extent {
        offset: start,
        length: (end - start) as u32,
        object: extent.object,
        object_offset: extent.object_offset + (start - extent.offset) as u32,
    }
}

fn continues(first: &Extent, second: &Extent) -> bool {
    first.object == second.object
        && first.range().end == second.offset
        && first.object_offset.checked_add(first.length) == Some(second.object_offset)
}

/// Touch only the rows that differ. Both lists are by offset, which is the key.
pub(super) fn write_difference(change: &mut Change, ino: Ino, old: &[Extent], new: &[Extent]) -> Result<()> {
    let mut kept = new.iter().peekable();
    for extent in old {
        while let Some(added) = kept.next_if(|added| added.offset < extent.offset) {
            put(change, ino, added)?;
        }
        match kept.next_if(|same| same.offset == extent.offset) {
            Some(same) if same == extent => {}
            Some(changed) => put(change, ino, changed)?,
            None => {
                let sql = "DELETE FROM extent WHERE ino = ? AND offset = ?";
                change.run(sql, (ino.key(), rows::offset(extent.offset)))?;
                change.note(&Record::NoExtent(ino, extent.offset));
            }
        }
    }
    kept.try_for_each(|added| put(change, ino, added))
}

fn put(change: &mut Change, ino: Ino, extent: &Extent) -> Result<()> {
    change.run(
        "INSERT OR REPLACE INTO extent (ino, offset, length, object, object_offset) VALUES (?, ?, ?, ?, ?)",
        (ino.key(), rows::offset(extent.offset), extent.length, key_of(extent.object)?, extent.object_offset),
    )?;
    change.note(&Record::Extent(ino, *extent));
    Ok(())
}

fn key_of(object: ObjectId) -> Result<i64> {
    rows::pack(object).ok_or(Error::Invalid("an object identity beyond what the store can hold"))
}

/// What a verb changes in the live bytes of objects, gathered so that each object is written once.
#[derive(Default)]
struct Live(BTreeMap<i64, i64>);

impl Live {
    fn count(&mut self, extents: &[Extent], sign: i64) -> Result<()> {
        for extent in extents {
            *self.0.entry(key_of(extent.object)?).or_default() += sign * i64::from(extent.length);
        }
        Ok(())
    }

    /// What becomes of one object, or all live bytes of a new one.
    fn of(&self, key: i64) -> i64 {
        self.0.get(&key).copied().unwrap_or_default()
    }

    fn settle(self, change: &mut Change) -> Result<()> {
        for (key, difference) in self.0.into_iter().filter(|(_, difference)| *difference != 0) {
            let sql = "UPDATE object SET live = live + ? WHERE id = ? RETURNING live";
            let Some(live) = change.row(sql, (difference, key), |row| row.get::<_, i64>(0))? else {
                let id = rows::unpack(key);
                return Err(Error::Store(format!("damaged: an extent refers to {id}, which does not exist")));
            };
            change.rows += 1;
            change.usage.live_bytes += difference;
            if live == 0 {
                snapshots::keep(change, key)?;
            }
        }
        Ok(())
    }
}

/// The objects a commit may refer to, and their lengths.
struct Known {
    lengths: HashMap<ObjectId, u32>,
    /// Whether also to those that only snapshots keep.
    kept: bool,
}

impl Known {
    /// Those it brings along; those of the store are asked for one by one.
    fn new(commit: &Commit) -> Known {
        let lengths = commit.objects.iter().map(|record| (record.id, record.length)).collect();
        Known { lengths, kept: false }
    }

    /// Whether an extent may be: not empty, within what a file may have, within its object.
    fn check(&mut self, view: View, extent: &Extent) -> Result<()> {
        range_at(extent.offset, u64::from(extent.length))?;
        let end = extent.object_offset.checked_add(extent.length).filter(|_| extent.length > 0);
        let length = match self.lengths.get(&extent.object) {
            Some(length) => *length,
            None => self.ask(view, extent.object)?,
        };
        match end {
            Some(end) if end <= length => Ok(()),
            _ => Err(Error::Invalid("an extent is empty or reaches beyond its object")),
        }
    }

    fn ask(&mut self, view: View, id: ObjectId) -> Result<u32> {
        // Nothing may refer again to an object that was condemned: its fragments may be on their way out.
        let sql = match self.kept {
            true => "SELECT length FROM object WHERE id = ? AND (live > 0 OR kept > 0)",
            false => "SELECT length FROM object WHERE id = ? AND live > 0",
        };
        let length = view.row(sql, [key_of(id)?], |row| row.get(0))?;
        let length =
            length.ok_or(Error::Invalid("an extent refers to an object that is unknown or condemned"))?;
        self.lengths.insert(id, length);
        Ok(length)
    }
}
