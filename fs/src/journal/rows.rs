//! What a volume's records make, row by row, without a store: a second opinion on replaying.
//!
//! Of each row a digest is kept, not the row: enough to say which ones differ. Times of access do not count, and neither
//! do epochs and the numbers that are set aside for what is made next.

use std::collections::BTreeMap;

use common::wire::ObjectId;

use crate::error::Result;
use crate::inode::{Ino, Inode, Time};
use crate::metadata::record::Record;
use crate::metadata::{Exception, ObjectRecord};

/// One row, by what it is found under.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Row {
    /// What the volume is.
    Volume,
    /// A list of nodes.
    Configuration(u32),
    /// What belongs to an inode.
    Of(Ino, Part),
    /// An object.
    Object(ObjectId),
    /// Where its fragments are that are not at home.
    Exceptions(ObjectId),
    /// Which snapshot keeps it.
    Kept(ObjectId),
    /// A snapshot.
    Snapshot(u32),
}

/// What belongs to an inode.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// Its attributes.
    Inode,
    /// The directory it lies in, if it is one.
    Parent,
    /// Its target.
    Target,
    /// An extended attribute.
    Xattr(Vec<u8>),
    /// The extent at an offset.
    Extent(u64),
    /// What is carried from an offset on.
    Intent(u64),
    /// A name in it.
    Entry(Vec<u8>),
}

impl Row {
    /// The inode it is about.
    pub fn ino(&self) -> Option<Ino> {
        match self {
            Row::Of(ino, _) => Some(*ino),
            _ => None,
        }
    }

    /// The object it is about.
    pub fn object(&self) -> Option<ObjectId> {
        match self {
            Row::Object(id) | Row::Exceptions(id) | Row::Kept(id) => Some(*id),
            _ => None,
        }
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use crate::metadata::check::shown;
        match self {
            Row::Volume => write!(f, "what the volume is"),
            Row::Configuration(number) => write!(f, "the list of nodes {number}"),
            Row::Of(_, Part::Inode) => write!(f, "its attributes"),
            Row::Of(_, Part::Parent) => write!(f, "the directory it lies in"),
            Row::Of(_, Part::Target) => write!(f, "its target"),
            Row::Of(_, Part::Xattr(name)) => write!(f, "its attribute {}", shown(name)),
            Row::Of(_, Part::Extent(offset)) => write!(f, "where its bytes from {offset} on are"),
            Row::Of(_, Part::Intent(offset)) => write!(f, "what is carried of it from {offset} on"),
            Row::Of(_, Part::Entry(name)) => write!(f, "the name {}", shown(name)),
            Row::Object(_) => write!(f, "what it is"),
            Row::Exceptions(_) => write!(f, "where its fragments are"),
            Row::Kept(_) => write!(f, "which snapshot keeps it"),
            Row::Snapshot(number) => write!(f, "snapshot {number}"),
        }
    }
}

type Digest = [u8; 16];

/// The rows that records make.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rows {
    rows: BTreeMap<Row, Digest>,
    /// Snapshots, and the first object that is not part of each.
    snapshots: BTreeMap<u32, ObjectId>,
    /// Objects that only snapshots keep, and the newest of these.
    kept: BTreeMap<ObjectId, u32>,
}

impl Rows {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Apply encoded records, in order.
    ///
    /// # Errors
    /// `Store` for what is no record.
    pub fn apply(&mut self, mut bytes: &[u8]) -> Result<()> {
        while let Some(record) = Record::decode(&mut bytes)? {
            self.apply_one(record);
        }
        Ok(())
    }

    fn apply_one(&mut self, record: Record) {
        match record {
            Record::Volume(_) => self.put(Row::Volume, &record),
            Record::Configuration(ref configuration) => {
                self.put(Row::Configuration(configuration.number), &record);
            }
            // Each store sets numbers aside for itself, and begins epochs of which the journal need not hear.
            Record::Numbers { .. } | Record::Epoch(_) | Record::Accessed(..) => {}
            Record::Inode(inode) => {
                let unread = Record::Inode(Inode { atime: Time::default(), ..inode.clone() });
                self.put(Row::Of(inode.ino, Part::Inode), &unread);
            }
            Record::Parent(ino, _) => self.put(Row::Of(ino, Part::Parent), &record),
            Record::NoInode(ino) => self.remove_inode(ino),
            Record::Entry { parent, ref name, .. } => {
                self.put(Row::Of(parent, Part::Entry(name.clone())), &record);
            }
            Record::NoEntry(parent, name) => self.remove(&Row::Of(parent, Part::Entry(name))),
            Record::Target(ino, _) => self.put(Row::Of(ino, Part::Target), &record),
            Record::Xattr(ino, ref name, _) => self.put(Row::Of(ino, Part::Xattr(name.clone())), &record),
            Record::NoXattr(ino, name) => self.remove(&Row::Of(ino, Part::Xattr(name))),
            Record::Extent(ino, extent) => self.put(Row::Of(ino, Part::Extent(extent.offset)), &record),
            Record::NoExtent(ino, offset) => self.remove(&Row::Of(ino, Part::Extent(offset))),
            Record::Intent(ino, ref intent) => self.put(Row::Of(ino, Part::Intent(intent.offset)), &record),
            Record::NoIntent(ino, offset) => self.remove(&Row::Of(ino, Part::Intent(offset))),
            Record::Object(object) => {
                let ObjectRecord { id, exceptions, .. } = object.clone();
                self.put(Row::Object(id), &Record::Object(ObjectRecord { exceptions: Vec::new(), ..object }));
                self.put_exceptions(id, exceptions);
                self.put_kept(id, 0);
            }
            Record::Exceptions(id, exceptions) => {
                if self.rows.contains_key(&Row::Object(id)) {
                    self.put_exceptions(id, exceptions);
                }
            }
            Record::NoObject(id) => {
                self.remove(&Row::Object(id));
                self.remove(&Row::Exceptions(id));
                self.put_kept(id, 0);
            }
            Record::Snapshot(ref snapshot) => {
                self.snapshots.insert(snapshot.number, snapshot.next);
                self.put(Row::Snapshot(snapshot.number), &record);
            }
            Record::NoSnapshot(number) => self.remove_snapshot(number),
            Record::Kept(id, keeper) => self.put_kept(id, keeper),
        }
    }

    fn put(&mut self, row: Row, record: &Record) {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let digest = *blake3::hash(&bytes).as_bytes().first_chunk().expect("a hash is longer");
        self.rows.insert(row, digest);
    }

    fn put_exceptions(&mut self, id: ObjectId, mut exceptions: Vec<Exception>) {
        if exceptions.is_empty() {
            return self.remove(&Row::Exceptions(id));
        }
        exceptions.sort_by_key(|exception| exception.index);
        self.put(Row::Exceptions(id), &Record::Exceptions(id, exceptions));
    }

    fn put_kept(&mut self, id: ObjectId, keeper: u32) {
        if keeper == 0 {
            self.kept.remove(&id);
            return self.remove(&Row::Kept(id));
        }
        self.kept.insert(id, keeper);
        self.put(Row::Kept(id), &Record::Kept(id, keeper));
    }

    /// What it kept is kept by the next older one that it is part of.
    fn remove_snapshot(&mut self, number: u32) {
        self.snapshots.remove(&number);
        self.remove(&Row::Snapshot(number));
        let kept: Vec<(ObjectId, u32)> = self
            .kept
            .iter()
            .filter(|(_, keeper)| **keeper >= number)
            .map(|(id, keeper)| (*id, *keeper))
            .collect();
        for (id, keeper) in kept {
            let older = self.snapshots.range(..=keeper).rev().find(|(_, next)| id < **next);
            let older = older.map_or(0, |(number, _)| *number);
            self.put_kept(id, older);
        }
    }

    fn remove(&mut self, row: &Row) {
        self.rows.remove(row);
    }

    /// An inode goes with all that belongs to it but the names in it, which are removed one by one.
    fn remove_inode(&mut self, ino: Ino) {
        let parts = Row::Of(ino, Part::Inode)..Row::Of(ino, Part::Entry(Vec::new()));
        let gone: Vec<Row> = self.rows.range(parts).map(|(row, _)| row.clone()).collect();
        gone.iter().for_each(|row| self.remove(row));
    }

    /// Rows that only one side has, or that differ, in order: at most `limit`, and how many there are.
    pub fn differences(&self, other: &Rows, limit: usize) -> (Vec<Row>, u64) {
        let differs =
            self.rows.iter().filter(|(row, digest)| other.rows.get(row) != Some(digest)).map(|(row, _)| row);
        let only_there = other.rows.keys().filter(|row| !self.rows.contains_key(row));
        let mut found: Vec<Row> = Vec::new();
        let mut count = 0;
        for row in differs.chain(only_there) {
            count += 1;
            if found.len() < limit {
                found.push(row.clone());
            }
        }
        (found, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(records: &[Record]) -> Rows {
        let mut bytes = Vec::new();
        records.iter().for_each(|record| record.encode(&mut bytes));
        let mut rows = Rows::default();
        rows.apply(&bytes).unwrap();
        rows
    }

    fn name(text: &str, ino: u64) -> Record {
        Record::Entry { parent: Ino(1), name: text.into(), ino: Ino(ino), cookie: 3 }
    }

    #[test]
    fn the_last_record_of_a_row_counts_and_what_is_taken_away_is_gone() {
        let twice = rows(&[name("a", 2), name("b", 3), name("a", 4), Record::NoEntry(Ino(1), b"b".to_vec())]);
        assert_eq!(twice, rows(&[name("a", 4)]));
        let target = Record::Target(Ino(4), b"x".to_vec());
        let xattr = Record::Xattr(Ino(4), b"user.x".to_vec(), Vec::new());
        assert_eq!(rows(&[target, xattr, name("a", 4), Record::NoInode(Ino(4))]), rows(&[name("a", 4)]));
    }

    #[test]
    fn rows_that_differ_are_named() {
        let (here, there) = (rows(&[name("a", 2), name("b", 3)]), rows(&[name("b", 4), name("c", 5)]));
        let (found, count) = here.differences(&there, 2);
        let texts: Vec<String> = found.iter().map(Row::to_string).collect();
        assert_eq!((texts, count), (vec!["the name a".to_owned(), "the name b".to_owned()], 3));
        assert_eq!(here.differences(&here, 2), (vec![], 0));
    }
}
