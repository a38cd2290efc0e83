//! Names: which inode is called what, and where.

use super::attributes;
use super::rows::{self, InodeKey};
use super::transaction::{Change, View};
use crate::error::{Error, Result};
use crate::inode::{Ino, Inode, MAX_LINKS, MAX_NAME, MAX_TARGET, ROOT, Time};
use crate::metadata::record::Record;
use crate::metadata::{Entry, Name, NewInode, Removed, RenameMode};

/// What each entry adds to the size of its directory, in bytes.
const ENTRY_BYTES: u64 = 32;

/// A name, what it names and its position.
struct Named {
    inode: Inode,
    cookie: i64,
}

pub(super) fn lookup(view: View, parent: Ino, name: &[u8]) -> Result<Inode> {
    find(view, parent, name)?.map(|named| named.inode).ok_or(Error::NotFound)
}

/// The entry of that name. `NotFound` and `NotDirectory` are about the parent.
fn find(view: View, parent: Ino, name: &[u8]) -> Result<Option<Named>> {
    if name.len() > MAX_NAME {
        return Err(Error::NameTooLong);
    }
    let sql = concat!(
        "SELECT e.cookie, e.ino, ",
        rows::inode_columns!(),
        " FROM entry e LEFT JOIN inode i ON i.ino = e.ino WHERE e.parent = ? AND e.name = ?"
    );
    let found = view
        .row(sql, (parent.key(), name), |row| Ok((row.get(0)?, rows::ino(row, 1)?, joined_inode(row, 2)?)))?;
    match found {
        Some((cookie, ino, inode)) => Ok(Some(Named { inode: inode.ok_or_else(|| dangling(ino))?, cookie })),
        // Only a miss pays for finding out why.
        None => view.directory(parent).map(|_| None),
    }
}

fn joined_inode(row: &rusqlite::Row, first: usize) -> rusqlite::Result<Option<Inode>> {
    match row.get_ref(first)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => rows::inode(row, first).map(Some),
    }
}

fn dangling(ino: Ino) -> Error {
    Error::Store(format!("damaged: a name stands for inode {}, which does not exist", ino.0))
}

pub(super) fn parent(view: View, directory: Ino) -> Result<Ino> {
    view.directory(directory)?;
    let parent =
        view.row("SELECT parent FROM inode WHERE ino = ?", [directory.key()], |row| rows::ino(row, 0))?;
    parent.ok_or(Error::NotFound)
}

pub(super) fn target(view: View, ino: Ino) -> Result<Vec<u8>> {
    let target = view.row("SELECT target FROM target WHERE ino = ?", [ino.key()], |row| row.get(0))?;
    match target {
        Some(target) => Ok(target),
        None => view.inode(ino).and(Err(Error::Invalid("only a symbolic link has a target"))),
    }
}

pub(super) fn list(view: View, directory: Ino, after: u64, limit: usize) -> Result<Vec<Entry>> {
    let sql = concat!(
        "SELECT e.cookie, e.name, e.ino, ",
        rows::inode_columns!(),
        " FROM entry e INDEXED BY entry_by_cookie LEFT JOIN inode i ON i.ino = e.ino ",
        "WHERE e.parent = ? AND e.cookie > ? ORDER BY e.cookie LIMIT ?"
    );
    let parameters = (directory.key(), rows::offset(after), rows::limit(limit));
    let listed = view.rows(sql, parameters, |row| {
        Ok((rows::unsigned(row, 0)?, row.get(1)?, rows::ino(row, 2)?, joined_inode(row, 3)?))
    })?;
    if listed.is_empty() {
        view.directory(directory)?;
    }
    listed
        .into_iter()
        .map(|(cookie, name, ino, inode)| {
            Ok(Entry { cookie, name, inode: inode.ok_or_else(|| dangling(ino))? })
        })
        .collect()
}

pub(super) fn names(view: View, directory: Ino, after: u64, limit: usize) -> Result<Vec<Name>> {
    let sql = "SELECT e.cookie, e.name, e.ino, i.mode \
               FROM entry e INDEXED BY entry_by_cookie LEFT JOIN inode i ON i.ino = e.ino \
               WHERE e.parent = ? AND e.cookie > ? ORDER BY e.cookie LIMIT ?";
    let parameters = (directory.key(), rows::offset(after), rows::limit(limit));
    let listed = view.rows(sql, parameters, |row| {
        Ok((rows::unsigned(row, 0)?, row.get(1)?, rows::ino(row, 2)?, row.get::<_, Option<u32>>(3)?))
    })?;
    if listed.is_empty() {
        view.directory(directory)?;
    }
    listed
        .into_iter()
        .map(|(cookie, name, ino, mode)| {
            Ok(Name { cookie, name, ino, mode: mode.ok_or_else(|| dangling(ino))? })
        })
        .collect()
}

pub(super) fn create(
    change: &mut Change,
    parent: Ino,
    name: &[u8],
    new: &NewInode,
    now: Time,
) -> Result<Inode> {
    check_name(name)?;
    check_new(new)?;
    let mut directory = living(change.view, parent)?;
    let inode = new_inode(Ino(change.numbers.inode() as u64), new, now);
    add_entry(change, parent, name, inode.ino)?;
    count_link(&mut directory, &inode);
    grow(&mut directory, now);
    change.insert_inode(&inode, parent)?;
    if let Some(target) = &new.target {
        change.run("INSERT INTO target VALUES (?, ?)", (inode.ino.key(), target))?;
        change.note(&Record::Target(inode.ino, target.clone()));
    }
    for (name, value) in &new.xattrs {
        attributes::put_xattr(change, inode.ino, name, value)?;
    }
    change.save(&directory)?;
    Ok(inode)
}

fn new_inode(ino: Ino, new: &NewInode, now: Time) -> Inode {
    let directory = new.mode & libc::S_IFMT == libc::S_IFDIR;
    Inode {
        ino,
        mode: new.mode,
        uid: new.uid,
        gid: new.gid,
        links: if directory { 2 } else { 1 },
        size: new.target.as_ref().map_or(0, |target| target.len() as u64),
        allocated: 0,
        rdev: new.rdev,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
    }
}

pub(super) fn link(change: &mut Change, ino: Ino, parent: Ino, name: &[u8], now: Time) -> Result<Inode> {
    check_name(name)?;
    let mut inode = change.inode(ino)?;
    let mut directory = living(change.view, parent)?;
    add_entry(change, parent, name, ino)?;
    if inode.is_directory() {
        return Err(Error::NotPermitted);
    }
    if inode.links == 0 {
        return Err(Error::NotFound);
    }
    if inode.links >= MAX_LINKS {
        return Err(Error::TooManyLinks);
    }
    inode.links += 1;
    inode.ctime = now;
    grow(&mut directory, now);
    change.save(&inode)?;
    change.save(&directory)?;
    Ok(inode)
}

pub(super) fn unlink(change: &mut Change, parent: Ino, name: &[u8], now: Time) -> Result<Removed> {
    let named = find(change.view, parent, name)?.ok_or(Error::NotFound)?;
    if named.inode.is_directory() {
        return Err(Error::IsDirectory);
    }
    remove(change, parent, name, named.inode, now)
}

pub(super) fn rmdir(change: &mut Change, parent: Ino, name: &[u8], now: Time) -> Result<Removed> {
    let named = find(change.view, parent, name)?.ok_or(Error::NotFound)?;
    if !named.inode.is_directory() {
        return Err(Error::NotDirectory);
    }
    check_empty(change.view, &named.inode)?;
    remove(change, parent, name, named.inode, now)
}

fn remove(change: &mut Change, parent: Ino, name: &[u8], inode: Inode, now: Time) -> Result<Removed> {
    let mut directory = change.inode(parent)?;
    delete_entry(change, parent, name)?;
    discount_link(&mut directory, &inode);
    shrink(&mut directory, now);
    change.save(&directory)?;
    drop_name(change, inode, now)
}

/// One name fewer for an inode: a directory has only one, so it is an orphan then.
fn drop_name(change: &mut Change, mut inode: Inode, now: Time) -> Result<Removed> {
    inode.links = if inode.is_directory() { 0 } else { inode.links.saturating_sub(1) };
    inode.ctime = now;
    change.save(&inode)?;
    Ok(Removed { orphaned: inode.links == 0, inode })
}

pub(super) fn rename(
    change: &mut Change,
    from: (Ino, &[u8]),
    to: (Ino, &[u8]),
    mode: RenameMode,
    now: Time,
) -> Result<Option<Removed>> {
    check_name(from.1)?;
    check_name(to.1)?;
    let source = find(change.view, from.0, from.1)?;
    living(change.view, to.0)?;
    let source = source.ok_or(Error::NotFound)?;
    let target = find(change.view, to.0, to.1)?;
    match (mode, target) {
        (RenameMode::NoReplace, Some(_)) => Err(Error::Exists),
        (RenameMode::Exchange, None) => Err(Error::NotFound),
        (_, Some(target)) if target.inode.ino == source.inode.ino => Ok(None),
        (RenameMode::Exchange, Some(target)) => {
            exchange(change, (from, source), (to, target), now).map(|()| None)
        }
        (RenameMode::Replace, Some(target)) => replace(change, (from, source), (to, target), now).map(Some),
        (RenameMode::Replace | RenameMode::NoReplace, None) => {
            move_to(change, (from, source), to, now).map(|()| None)
        }
    }
}

type Place<'n> = (Ino, &'n [u8]);

/// Rename to a name that was free.
fn move_to(change: &mut Change, (from, source): (Place, Named), to: Place, now: Time) -> Result<()> {
    check_loop(change.view, &source.inode, from.0, to.0)?;
    // Within its directory it keeps its position: a listing under way meets it once, by either name.
    let cookie = if from.0 == to.0 { source.cookie } else { change.numbers.cookie() };
    delete_entry(change, from.0, from.1)?;
    change.run(
        "INSERT INTO entry (parent, name, ino, cookie) VALUES (?, ?, ?, ?)",
        (to.0.key(), to.1, source.inode.ino.key(), cookie),
    )?;
    note_entry(change, to, source.inode.ino, cookie);
    with_parents(change, from.0, to.0, now, |old, new| {
        let Some(new) = new else { return Ok(()) };
        discount_link(old, &source.inode);
        old.size = old.size.saturating_sub(ENTRY_BYTES);
        new.size += ENTRY_BYTES;
        count_link(new, &source.inode);
        Ok(())
    })?;
    moved(change, source.inode, to.0, now)
}

/// Rename over what has the name now, and return that.
fn replace(
    change: &mut Change,
    (from, source): (Place, Named),
    (to, target): (Place, Named),
    now: Time,
) -> Result<Removed> {
    check_loop(change.view, &source.inode, from.0, to.0)?;
    match (source.inode.is_directory(), target.inode.is_directory()) {
        (true, false) => return Err(Error::NotDirectory),
        (false, true) => return Err(Error::IsDirectory),
        (true, true) => check_empty(change.view, &target.inode)?,
        (false, false) => {}
    }
    delete_entry(change, from.0, from.1)?;
    point(change, to, source.inode.ino, target.cookie)?;
    // Where it arrives a directory takes a directory's place, so the links there stay.
    with_parents(change, from.0, to.0, now, |old, _| {
        discount_link(old, &source.inode);
        old.size = old.size.saturating_sub(ENTRY_BYTES);
        Ok(())
    })?;
    moved(change, source.inode, to.0, now)?;
    drop_name(change, target.inode, now)
}

/// Let two names swap what they stand for.
fn exchange(
    change: &mut Change,
    (from, source): (Place, Named),
    (to, target): (Place, Named),
    now: Time,
) -> Result<()> {
    check_loop(change.view, &source.inode, from.0, to.0)?;
    check_loop(change.view, &target.inode, to.0, from.0)?;
    point(change, from, target.inode.ino, source.cookie)?;
    point(change, to, source.inode.ino, target.cookie)?;
    with_parents(change, from.0, to.0, now, |old, new| {
        let Some(new) = new else { return Ok(()) };
        discount_link(old, &source.inode);
        discount_link(new, &target.inode);
        count_link(old, &target.inode);
        count_link(new, &source.inode);
        Ok(())
    })?;
    moved(change, source.inode, to.0, now)?;
    moved(change, target.inode, from.0, now)
}

/// Change the two directories of a rename, or the one if they are the same, and stamp them.
fn with_parents(
    change: &mut Change,
    from: Ino,
    to: Ino,
    now: Time,
    count: impl FnOnce(&mut Inode, Option<&mut Inode>) -> Result<()>,
) -> Result<()> {
    let mut old = change.inode(from)?;
    let mut new = if from == to { None } else { Some(change.inode(to)?) };
    count(&mut old, new.as_mut())?;
    for directory in [Some(old), new].into_iter().flatten() {
        change.save(&Inode { mtime: now, ctime: now, ..directory })?;
    }
    Ok(())
}

/// An inode lies in another place now.
fn moved(change: &mut Change, mut inode: Inode, parent: Ino, now: Time) -> Result<()> {
    inode.ctime = now;
    change.save(&inode)?;
    if inode.is_directory() {
        change.run("UPDATE inode SET parent = ? WHERE ino = ?", (parent.key(), inode.ino.key()))?;
        change.note(&Record::Parent(inode.ino, parent));
    }
    Ok(())
}

/// Refuse to move a directory below itself.
fn check_loop(view: View, moving: &Inode, from: Ino, to: Ino) -> Result<()> {
    if !moving.is_directory() || from == to {
        return Ok(());
    }
    let mut above = to;
    // Deeper than any tree: the parents of a damaged one may go in a circle.
    for _ in 0..1 << 20 {
        if above == moving.ino {
            return Err(Error::Invalid("a directory cannot be moved below itself"));
        }
        if above == ROOT {
            return Ok(());
        }
        above = parent(view, above)?;
    }
    Err(Error::Store(format!("damaged: inode {} does not lie below the root", to.0)))
}

fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > MAX_NAME {
        return Err(Error::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(Error::Invalid("this cannot be the name of an entry"));
    }
    Ok(())
}

fn check_new(new: &NewInode) -> Result<()> {
    let kind = new.mode & libc::S_IFMT;
    let known = [
        libc::S_IFREG,
        libc::S_IFDIR,
        libc::S_IFLNK,
        libc::S_IFIFO,
        libc::S_IFSOCK,
        libc::S_IFCHR,
        libc::S_IFBLK,
    ];
    if !known.contains(&kind) {
        return Err(Error::Invalid("the mode names no type of file"));
    }
    if (kind == libc::S_IFLNK) != new.target.is_some() {
        return Err(Error::Invalid("symbolic links and only they have a target"));
    }
    match new.target.as_ref().map(Vec::len) {
        Some(0) => Err(Error::Invalid("an empty target")),
        Some(length) if length > MAX_TARGET => Err(Error::NameTooLong),
        _ => Ok(()),
    }
}

fn check_empty(view: View, directory: &Inode) -> Result<()> {
    let sql = "SELECT 1 FROM entry WHERE parent = ? LIMIT 1";
    match view.row(sql, [directory.ino.key()], |_| Ok(()))? {
        Some(()) => Err(Error::NotEmpty),
        None => Ok(()),
    }
}

/// A directory that still has its name: in a removed one nothing can be made.
fn living(view: View, ino: Ino) -> Result<Inode> {
    let directory = view.directory(ino)?;
    if directory.links == 0 { Err(Error::NotFound) } else { Ok(directory) }
}

fn add_entry(change: &mut Change, parent: Ino, name: &[u8], ino: Ino) -> Result<()> {
    let cookie = change.numbers.cookie();
    let added = change.run(
        "INSERT OR IGNORE INTO entry (parent, name, ino, cookie) VALUES (?, ?, ?, ?)",
        (parent.key(), name, ino.key(), cookie),
    )?;
    if added == 0 {
        return Err(Error::Exists);
    }
    note_entry(change, (parent, name), ino, cookie);
    Ok(())
}

fn note_entry(change: &mut Change, (parent, name): Place, ino: Ino, cookie: i64) {
    change.note(&Record::Entry { parent, name: name.to_vec(), ino, cookie: cookie as u64 });
}

fn delete_entry(change: &mut Change, parent: Ino, name: &[u8]) -> Result<()> {
    change.run("DELETE FROM entry WHERE parent = ? AND name = ?", (parent.key(), name))?;
    change.note(&Record::NoEntry(parent, name.to_vec()));
    Ok(())
}

/// Let a name stand for another inode; it keeps its position, which is `cookie`.
fn point(change: &mut Change, (parent, name): Place, ino: Ino, cookie: i64) -> Result<()> {
    let sql = "UPDATE entry SET ino = ? WHERE parent = ? AND name = ?";
    change.run(sql, (ino.key(), parent.key(), name))?;
    note_entry(change, (parent, name), ino, cookie);
    Ok(())
}

/// A subdirectory's `..` is a link to its parent.
/// A directory may have any number of others in it.
fn count_link(parent: &mut Inode, child: &Inode) {
    if child.is_directory() {
        parent.links = parent.links.saturating_add(1);
    }
}

fn discount_link(parent: &mut Inode, child: &Inode) {
    if child.is_directory() {
        parent.links = parent.links.saturating_sub(1);
    }
}

fn grow(directory: &mut Inode, now: Time) {
    directory.size += ENTRY_BYTES;
    (directory.mtime, directory.ctime) = (now, now);
}

fn shrink(directory: &mut Inode, now: Time) {
    directory.size = directory.size.saturating_sub(ENTRY_BYTES);
    (directory.mtime, directory.ctime) = (now, now);
}
