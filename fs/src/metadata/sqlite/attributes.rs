//! Attributes of inodes, plain and extended.

use super::rows::InodeKey;
use super::transaction::{Change, View};
use crate::error::{Error, Result};
use crate::inode::{Ino, Inode, Time};
use crate::metadata::record::Record;
use crate::metadata::{AttributeChange, MAX_XATTR_NAME, MAX_XATTR_VALUE};

const PERMISSIONS: u32 = 0o7777;

pub(super) fn set(transaction: &mut Change, ino: Ino, change: &AttributeChange) -> Result<Inode> {
    let mut inode = transaction.inode(ino)?;
    if let Some(permissions) = change.permissions {
        inode.mode = inode.mode & !PERMISSIONS | permissions & PERMISSIONS;
    }
    let numbers = [(&mut inode.uid, change.uid), (&mut inode.gid, change.gid)];
    numbers.into_iter().for_each(|(old, new)| *old = new.unwrap_or(*old));
    let times = [
        (&mut inode.atime, change.atime),
        (&mut inode.mtime, change.mtime),
        (&mut inode.ctime, change.ctime),
    ];
    times.into_iter().for_each(|(old, new)| *old = new.unwrap_or(*old));
    for (name, value) in &change.xattrs {
        match value {
            Some(value) => put_xattr(transaction, ino, name, value)?,
            None => {
                transaction.run("DELETE FROM xattr WHERE ino = ? AND name = ?", (ino.key(), name))?;
                transaction.note(&Record::NoXattr(ino, name.clone()));
            }
        }
    }
    transaction.save(&inode)?;
    Ok(inode)
}

pub(super) fn set_accessed(change: &mut Change, accesses: &[(Ino, Time)]) -> Result<()> {
    for (ino, time) in accesses {
        let sql = "UPDATE inode SET atime_s = ?, atime_ns = ? WHERE ino = ?";
        if change.run(sql, (time.seconds, time.nanos, ino.key()))? > 0 {
            change.note(&Record::Accessed(*ino, *time));
        }
    }
    Ok(())
}

pub(super) fn xattr(view: View, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
    let sql = "SELECT value FROM xattr WHERE ino = ? AND name = ?";
    match view.row(sql, (ino.key(), name), |row| row.get(0))? {
        Some(value) => Ok(value),
        None => view.inode(ino).and(Err(Error::NoAttribute)),
    }
}

pub(super) fn xattrs(view: View, ino: Ino) -> Result<Vec<Vec<u8>>> {
    let names =
        view.rows("SELECT name FROM xattr WHERE ino = ? ORDER BY name", [ino.key()], |row| row.get(0))?;
    if names.is_empty() {
        view.inode(ino)?;
    }
    Ok(names)
}

pub(super) fn set_xattr(
    change: &mut Change,
    ino: Ino,
    name: &[u8],
    value: &[u8],
    create: bool,
    replace: bool,
    now: Time,
) -> Result<()> {
    let mut inode = change.inode(ino)?;
    let sql = "SELECT 1 FROM xattr WHERE ino = ? AND name = ?";
    let exists = change.row(sql, (ino.key(), name), |_| Ok(()))?.is_some();
    if create && exists {
        return Err(Error::Exists);
    }
    if replace && !exists {
        return Err(Error::NoAttribute);
    }
    put_xattr(change, ino, name, value)?;
    inode.ctime = now;
    change.save(&inode)
}

/// Whatever was there under that name before.
pub(super) fn put_xattr(change: &mut Change, ino: Ino, name: &[u8], value: &[u8]) -> Result<()> {
    if name.is_empty() || name.len() > MAX_XATTR_NAME || value.len() > MAX_XATTR_VALUE {
        return Err(Error::Range);
    }
    // The pages of a long one count for the next checkpoint.
    change.rows += value.len() as u64 / 4096;
    change.run("INSERT OR REPLACE INTO xattr VALUES (?, ?, ?)", (ino.key(), name, value))?;
    change.note(&Record::Xattr(ino, name.to_vec(), value.to_vec()));
    Ok(())
}

pub(super) fn remove_xattr(change: &mut Change, ino: Ino, name: &[u8], now: Time) -> Result<()> {
    let mut inode = change.inode(ino)?;
    if change.run("DELETE FROM xattr WHERE ino = ? AND name = ?", (ino.key(), name))? == 0 {
        return Err(Error::NoAttribute);
    }
    change.note(&Record::NoXattr(ino, name.to_vec()));
    inode.ctime = now;
    change.save(&inode)
}
