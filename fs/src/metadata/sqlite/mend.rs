//! Mending what check.rs finds, as far as the store itself says what was meant. Every change is noted for the journal
//! like a verb's. Each step is a transaction of its own, and looks for itself: it does not depend on what was listed.
//!
//! Names first, for counts follow from them; then extents, for what objects hold follows from those; counts last.

use std::collections::{BTreeMap, HashSet};
use std::ops::{ControlFlow, Range};

use rusqlite::Row;

use super::check::{self, Laid};
use super::data;
use super::objects;
use super::rows;
use super::snapshots;
use super::transaction::{Change, Numbers};
use crate::error::Result;
use crate::inode::{Ino, Inode, ROOT, Time};
use crate::metadata::Extent;
use crate::metadata::record::Record;

/// Where inodes without a name are put.
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// A step.
pub(super) type Step = fn(&mut Change, Time) -> Result<()>;

/// All steps, in order.
pub(super) const STEPS: [Step; 10] = [
    indexes,
    numbers,
    remove_names,
    break_cycles,
    find_parents,
    name_the_lost,
    cut_extents,
    drop_intents,
    attributes,
    count,
];

/// First of all, for everything else is found by them. What is damaged otherwise stays: `check` names it again.
fn indexes(change: &mut Change, _: Time) -> Result<()> {
    if !check::damage(change.view)?.is_empty()
        && let Err(error) = change.run("REINDEX", [])
    {
        tracing::warn!(%error, "the indexes of the metadata store cannot be made anew");
    }
    Ok(())
}

/// Before the rest, for the lost get names with positions.
fn numbers(change: &mut Change, _: Time) -> Result<()> {
    let behind: Vec<(String, i64, i64)> =
        change.rows(check::COUNTERS, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    if behind.is_empty() {
        return Ok(());
    }
    for (name, _, used) in &behind {
        let least = used + i64::from(name != "epoch");
        change.run("UPDATE counter SET value = ? WHERE name = ?", (least, name))?;
        if name == "epoch" {
            change.note(&Record::Epoch(*used as u32));
        }
    }
    let counter = |change: &Change, name| {
        let sql = "SELECT value FROM counter WHERE name = ?";
        Ok::<_, crate::error::Error>(
            change.row(sql, [name], |row| rows::unsigned(row, 0))?.unwrap_or_default(),
        )
    };
    let numbers = Record::Numbers { inode: counter(change, "inode")?, cookie: counter(change, "cookie")? };
    change.note(&numbers);
    // What was reserved under the old counters may be in use.
    *change.numbers = Numbers::default();
    Ok(())
}

/// Names that are none, that stand for nothing or lie in nothing, and all but one of a directory.
fn remove_names(change: &mut Change, _: Time) -> Result<()> {
    for sql in [check::BAD_NAMES, check::DANGLING_NAMES, check::STRAY_NAMES, check::FURTHER_NAMES] {
        for (parent, name) in names(change, sql)? {
            remove_name(change, parent, &name)?;
        }
    }
    for (parent, name) in names(change, check::SHARED_POSITIONS)? {
        move_name(change, parent, &name)?;
    }
    Ok(())
}

fn names(change: &Change, sql: &str) -> Result<Vec<(i64, Vec<u8>)>> {
    change.rows(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))
}

fn remove_name(change: &mut Change, parent: i64, name: &[u8]) -> Result<()> {
    change.run("DELETE FROM entry WHERE parent = ? AND name = ?", (parent, name))?;
    change.note(&Record::NoEntry(Ino(parent as u64), name.to_vec()));
    Ok(())
}

/// Give a name a position of its own.
fn move_name(change: &mut Change, parent: i64, name: &[u8]) -> Result<()> {
    let cookie = fresh(change, |numbers| &mut numbers.cookies)?;
    let sql = "UPDATE entry SET cookie = ? WHERE parent = ? AND name = ? RETURNING ino";
    let ino: Option<i64> = change.row(sql, (cookie, parent, name), |row| row.get(0))?;
    if let Some(ino) = ino {
        note_name(change, parent, name, ino, cookie);
    }
    Ok(())
}

fn note_name(change: &mut Change, parent: i64, name: &[u8], ino: i64, cookie: i64) {
    let (parent, ino, cookie) = (Ino(parent as u64), Ino(ino as u64), cookie as u64);
    change.note(&Record::Entry { parent, name: name.to_vec(), ino, cookie });
}

/// A number never handed out. Verbs need one at most and have it reserved beforehand; here there may be many.
fn fresh(change: &mut Change, of: impl Fn(&mut Numbers) -> &mut Range<i64>) -> Result<i64> {
    loop {
        if let Some(number) = of(change.numbers).next() {
            return Ok(number);
        }
        change.numbers.refill(change.view.0)?;
    }
}

/// One directory of each cycle loses its name, and is put among the lost with all below it.
fn break_cycles(change: &mut Change, _: Time) -> Result<()> {
    loop {
        let inside: Vec<i64> = change.rows(check::IN_CYCLES, [], |row| row.get(0))?;
        let Some(first) = inside.first() else { return Ok(()) };
        // Upwards one comes into the cycle itself, and then to a directory for the second time.
        let (mut at, mut seen) = (*first, HashSet::new());
        while seen.insert(at) {
            let above = change.row("SELECT parent FROM entry WHERE ino = ?", [at], |row| row.get(0))?;
            at = above.unwrap_or(at);
        }
        let of_it: Vec<(i64, Vec<u8>)> =
            change.rows("SELECT parent, name FROM entry WHERE ino = ?", [at], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        for (parent, name) in of_it {
            remove_name(change, parent, &name)?;
        }
    }
}

/// A directory lies where its name does.
fn find_parents(change: &mut Change, _: Time) -> Result<()> {
    let wrong: Vec<(i64, i64)> =
        change.rows(check::WRONG_PARENTS, [], |row| Ok((row.get(0)?, row.get(2)?)))?;
    for (ino, parent) in wrong {
        set_parent(change, ino, parent)?;
    }
    Ok(())
}

fn set_parent(change: &mut Change, ino: i64, parent: i64) -> Result<()> {
    change.run("UPDATE inode SET parent = ? WHERE ino = ?", (parent, ino))?;
    change.note(&Record::Parent(Ino(ino as u64), Ino(parent as u64)));
    Ok(())
}

/// Inodes that lost their name get one in `/lost+found`: their number, and something behind it where that is another's.
fn name_the_lost(change: &mut Change, now: Time) -> Result<()> {
    let lost: Vec<i64> = change.rows(check::UNNAMED, [], |row| row.get(0))?;
    if lost.is_empty() {
        return Ok(());
    }
    let Some(folder) = lost_and_found(change, now)? else { return Ok(()) };
    for ino in lost.into_iter().filter(|ino| *ino != folder) {
        let name = free_name(change, folder, ino)?;
        add_name(change, folder, &name, ino)?;
        let inode = change.inode(Ino(ino as u64))?;
        if inode.is_directory() {
            set_parent(change, ino, folder)?;
        }
    }
    Ok(())
}

fn free_name(change: &Change, folder: i64, ino: i64) -> Result<Vec<u8>> {
    let mut name = format!("#{ino}");
    let mut further = 0u64;
    let sql = "SELECT ino FROM entry WHERE parent = ? AND name = ?";
    while change.row(sql, (folder, name.as_bytes()), |row| row.get::<_, i64>(0))?.is_some() {
        further += 1;
        name = format!("#{ino}.{further}");
    }
    Ok(name.into_bytes())
}

/// The directory for the lost, made if there is none; none where its name is another's, or there is no root.
fn lost_and_found(change: &mut Change, now: Time) -> Result<Option<i64>> {
    let Ok(root) = change.directory(ROOT) else { return Ok(None) };
    let sql =
        "SELECT e.ino, i.mode FROM entry e JOIN inode i ON i.ino = e.ino WHERE e.parent = 1 AND e.name = ?";
    let there = change.row(sql, [LOST_AND_FOUND], |row| Ok((row.get(0)?, row.get::<_, u32>(1)?)))?;
    if let Some((ino, mode)) = there {
        return Ok((mode & libc::S_IFMT == libc::S_IFDIR).then_some(ino));
    }
    let ino = fresh(change, |numbers| &mut numbers.inodes)?;
    let inode = Inode {
        ino: Ino(ino as u64),
        mode: libc::S_IFDIR | 0o700,
        links: 2,
        size: 0,
        allocated: 0,
        rdev: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        ..root
    };
    change.insert_inode(&inode, ROOT)?;
    add_name(change, 1, LOST_AND_FOUND, ino)?;
    Ok(Some(ino))
}

fn add_name(change: &mut Change, parent: i64, name: &[u8], ino: i64) -> Result<()> {
    let cookie = fresh(change, |numbers| &mut numbers.cookies)?;
    let sql = "INSERT INTO entry (parent, name, ino, cookie) VALUES (?, ?, ?, ?)";
    change.run(sql, (parent, name, ino, cookie))?;
    note_name(change, parent, name, ino, cookie);
    Ok(())
}

/// Extents that belong to no file or refer to nothing go; others are cut to their object, their file, and each other.
fn cut_extents(change: &mut Change, _: Time) -> Result<()> {
    for (ino, (old, new)) in extents_to_cut(change)? {
        data::write_difference(change, Ino(ino as u64), &old, &new)?;
    }
    Ok(())
}

/// What cannot be laid over a file is carried no more.
fn drop_intents(change: &mut Change, _: Time) -> Result<()> {
    let bad: Vec<(i64, i64)> = change.rows(check::BAD_INTENTS, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    for (ino, offset) in bad {
        change.run("DELETE FROM intent WHERE ino = ? AND offset = ?", (ino, offset))?;
        change.note(&Record::NoIntent(Ino(ino as u64), offset as u64));
    }
    Ok(())
}

type Extents = (Vec<Extent>, Vec<Extent>);

/// Of each file with wrong extents those it has and those it keeps; one file after the other is held in memory.
fn extents_to_cut(change: &Change) -> Result<BTreeMap<i64, Extents>> {
    let mut wrong = BTreeMap::new();
    let (mut ino, mut old, mut new): (i64, Vec<Extent>, Vec<Extent>) = (0, Vec::new(), Vec::new());
    check::each_extent(change.view, |laid| {
        if laid.ino != ino {
            let (old, new) = (std::mem::take(&mut old), std::mem::take(&mut new));
            if old != new {
                wrong.insert(ino, (old, new));
            }
            ino = laid.ino;
        }
        old.push(laid.extent);
        if let Some(extent) = kept(&laid) {
            lay_over(&mut new, extent);
        }
        ControlFlow::Continue(())
    })?;
    if old != new {
        wrong.insert(ino, (old, new));
    }
    Ok(wrong)
}

/// Lay an extent over those of a file that begin no later, which are by offset and apart from each other: where two lie, the
/// later one counts, and what reaches beyond it stays.
fn lay_over(extents: &mut Vec<Extent>, extent: Extent) {
    let Range { start, end } = extent.range();
    let reaching = extents.partition_point(|before| before.range().end <= start);
    let reaching = extents.split_off(reaching);
    let before = reaching.iter().filter(|other| other.offset < start);
    let after = reaching.iter().filter(|other| other.range().end > end);
    extents.extend(before.map(|other| data::cut(other, &(0..start))));
    extents.push(extent);
    extents.extend(after.map(|other| data::cut(other, &(end..u64::MAX))));
}

fn kept(laid: &Laid) -> Option<Extent> {
    let (size, length) = (laid.size?, laid.object_length?);
    let mut extent = laid.extent;
    cut_to(&mut extent, size);
    let room = length.saturating_sub(u64::from(extent.object_offset));
    let end = extent.offset + room;
    cut_to(&mut extent, end);
    (extent.length > 0 && size > extent.offset && room > 0).then_some(extent)
}

/// Let an extent end at `end`, if it ends later and begins before.
fn cut_to(extent: &mut Extent, end: u64) {
    if extent.range().end > end && extent.offset < end {
        extent.length = (end - extent.offset) as u32;
    }
}

/// What belongs to nothing.
fn attributes(change: &mut Change, _: Time) -> Result<()> {
    let stray: Vec<(i64, Vec<u8>)> = names(change, check::STRAY_XATTRS)?;
    for (ino, name) in stray {
        change.run("DELETE FROM xattr WHERE ino = ? AND name = ?", (ino, &name))?;
        change.note(&Record::NoXattr(Ino(ino as u64), name));
    }
    // No record takes a target alone away, and none brought it: an inode's end takes it along.
    let stray: Vec<i64> = change.rows(check::STRAY_TARGETS, [], |row| row.get(0))?;
    for ino in stray {
        change.run("DELETE FROM target WHERE ino = ?", [ino])?;
        if change.inode(Ino(ino as u64)).is_err() {
            change.note(&Record::NoInode(Ino(ino as u64)));
        }
    }
    let bad: Vec<(i64, i64)> =
        change.rows(check::BAD_EXCEPTIONS, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    for (object, index) in bad {
        change.run("DELETE FROM exception WHERE object = ? AND idx = ?", (object, index))?;
        note_exceptions(change, object)?;
    }
    Ok(())
}

fn note_exceptions(change: &mut Change, object: i64) -> Result<()> {
    let id = rows::unpack(object);
    let left = objects::exceptions_of(change.view, id)?;
    change.note(&Record::Exceptions(id, left));
    Ok(())
}

/// Sets a count of an inode.
type Set = fn(&mut Inode, u64);

/// What follows from the rest.
fn count(change: &mut Change, _: Time) -> Result<()> {
    let counts: [(&str, Set); 3] = [
        (check::WRONG_LINKS, |inode, count| inode.links = count as u32),
        (check::WRONG_SIZES, |inode, count| inode.size = count),
        (check::WRONG_ALLOCATED, |inode, count| inode.allocated = count),
    ];
    for (sql, set) in counts {
        for (ino, count) in wrong(change, sql)? {
            let mut inode = change.inode(Ino(ino as u64))?;
            set(&mut inode, count);
            change.save(&inode)?;
        }
    }
    // Neither is in a record: what replays a journal counts them itself.
    for (object, live) in wrong(change, check::WRONG_LIVE)? {
        change.run("UPDATE object SET live = ? WHERE id = ?", (live as i64, object))?;
        if live == 0 {
            snapshots::keep(change, object)?;
        }
    }
    for (object, exceptions) in wrong(change, check::WRONG_EXCEPTIONS)? {
        change.run("UPDATE object SET exceptions = ? WHERE id = ?", (exceptions as i64, object))?;
    }
    Ok(())
}

/// Keys and what should be counted there.
fn wrong(change: &Change, sql: &str) -> Result<Vec<(i64, u64)>> {
    change.rows(sql, [], |row: &Row| Ok((row.get(0)?, rows::unsigned(row, 2)?)))
}
