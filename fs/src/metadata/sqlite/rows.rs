//! How values lie in columns.

use common::hash::Hash;
use common::wire::{NodeId, ObjectId};
use rusqlite::types::Type;
use rusqlite::{ErrorCode, Row};

use crate::error::{Error, Result};
use crate::inode::{Ino, Inode, Time};
use crate::metadata::{Extent, ObjectRecord};

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Error {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => {
                Error::Host(format!("the disk of the metadata store is full: {error}"))
            }
            Some(ErrorCode::DatabaseBusy) => Error::Store(format!("another process has it open: {error}")),
            Some(ErrorCode::NotADatabase) => Error::Store("this file is not a SQLite database".into()),
            _ => Error::Store(error.to_string()),
        }
    }
}

/// Numbers as the database has them. What does not fit was never stored, so it becomes a key that nothing has.
pub(super) trait InodeKey {
    fn key(self) -> i64;
}

impl InodeKey for Ino {
    fn key(self) -> i64 {
        i64::try_from(self.0).unwrap_or(-1)
    }
}

/// An offset or a cookie; beyond all that is stored where it does not fit.
pub(super) fn offset(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A LIMIT.
pub(super) fn limit(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The columns `inode` reads, of `inode i`.
macro_rules! inode_columns {
    () => {
        "i.ino, i.mode, i.uid, i.gid, i.links, i.size, i.allocated, i.rdev, i.atime_s, i.atime_ns, \
         i.mtime_s, i.mtime_ns, i.ctime_s, i.ctime_ns, i.btime_s, i.btime_ns"
    };
}
pub(super) use inode_columns;

/// The inode in the columns from `first` on.
pub(super) fn inode(row: &Row, first: usize) -> rusqlite::Result<Inode> {
    Ok(Inode {
        ino: ino(row, first)?,
        mode: row.get(first + 1)?,
        uid: row.get(first + 2)?,
        gid: row.get(first + 3)?,
        links: row.get(first + 4)?,
        size: unsigned(row, first + 5)?,
        allocated: unsigned(row, first + 6)?,
        rdev: row.get(first + 7)?,
        atime: time(row, first + 8)?,
        mtime: time(row, first + 10)?,
        ctime: time(row, first + 12)?,
        btime: time(row, first + 14)?,
    })
}

pub(super) fn ino(row: &Row, column: usize) -> rusqlite::Result<Ino> {
    Ok(Ino(unsigned(row, column)?))
}

pub(super) fn unsigned(row: &Row, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

pub(super) fn time(row: &Row, column: usize) -> rusqlite::Result<Time> {
    Ok(Time { seconds: row.get(column)?, nanos: row.get(column + 1)? })
}

/// The columns `extent` reads, of `extent e`.
macro_rules! extent_columns {
    () => {
        "e.offset, e.length, e.object, e.object_offset"
    };
}
pub(super) use extent_columns;

/// The extent in the columns from `first` on.
pub(super) fn extent(row: &Row, first: usize) -> rusqlite::Result<Extent> {
    Ok(Extent {
        offset: unsigned(row, first)?,
        length: row.get(first + 1)?,
        object: unpack(row.get(first + 2)?),
        object_offset: row.get(first + 3)?,
    })
}

/// The columns `object` reads, of `object o`.
macro_rules! object_columns {
    () => {
        "o.id, o.length, o.fpcc, o.code, o.configuration, o.exceptions"
    };
}
pub(super) use object_columns;

/// The object in the columns from `first` on, still without its exceptions, and how many of them it has.
pub(super) fn object(row: &Row, first: usize) -> rusqlite::Result<(ObjectRecord, u32)> {
    let record = ObjectRecord {
        id: unpack(row.get(first)?),
        length: row.get(first + 1)?,
        fpcc: Hash::from(row.get::<_, [u8; Hash::LENGTH]>(first + 2)?),
        code: parsed(row, first + 3)?,
        configuration: row.get(first + 4)?,
        exceptions: Vec::new(),
    };
    Ok((record, row.get(first + 5)?))
}

/// A value in its textual form.
pub(super) fn parsed<T>(row: &Row, column: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text = row.get_ref(column)?.as_str()?;
    text.parse()
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error)))
}

/// A list of node identities, one after the other.
pub(super) fn nodes(bytes: &[u8]) -> Result<Vec<NodeId>> {
    let (nodes, rest) = bytes.as_chunks::<16>();
    if !rest.is_empty() {
        return Err(Error::Store("a configuration's nodes are not 16 bytes each".into()));
    }
    Ok(nodes.iter().copied().map(NodeId).collect())
}

const COUNTER_BITS: u32 = 40;
/// The greatest epoch whose objects have a key in the database.
pub(super) const MAX_EPOCH: u32 = (1 << (63 - COUNTER_BITS)) - 1;

/// An object's identity as one number in the same order; none if epoch or counter have no room in it.
pub(super) fn pack(id: ObjectId) -> Option<i64> {
    let fits = id.epoch <= MAX_EPOCH && id.counter < 1 << COUNTER_BITS;
    fits.then(|| i64::from(id.epoch) << COUNTER_BITS | id.counter as i64)
}

/// The identity a number stands for.
pub(super) fn unpack(packed: i64) -> ObjectId {
    ObjectId { epoch: (packed >> COUNTER_BITS) as u32, counter: (packed & ((1 << COUNTER_BITS) - 1)) as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_identities_come_back_and_keep_their_order() {
        let ids = [(0, 0), (0, (1 << 40) - 1), (1, 0), (7, 9), (MAX_EPOCH, (1 << 40) - 1)]
            .map(|(epoch, counter)| ObjectId { epoch, counter });
        let packed = ids.map(|id| pack(id).unwrap());
        assert!(packed.is_sorted() && packed[0] == 0);
        assert_eq!(packed.map(unpack), ids);
    }

    #[test]
    fn identities_without_room_are_refused() {
        assert_eq!(pack(ObjectId { epoch: MAX_EPOCH + 1, counter: 0 }), None);
        assert_eq!(pack(ObjectId { epoch: 1, counter: 1 << 40 }), None);
    }
}
