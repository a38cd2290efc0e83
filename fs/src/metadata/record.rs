//! What a verb changed, as bytes of our own: one record for each row that is another now, with all that it says. To
//! apply records, twice or onto a state that has some of them already, gives the state after the last of them.
//! docs/journal.md draws them. Produced by a store in the transaction itself, and replayable into any store.

use bytes::{Buf, BufMut};
use common::code::Code;
use common::hash::Hash;
use common::wire::{NodeId, ObjectId, VolumeId};

use super::{Configuration, Exception, Extent, Intent, ObjectRecord, Snapshot, VolumeSettings};
use crate::error::{Error, Result};
use crate::inode::{Ino, Inode, Time};

/// One change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    /// The volume was formatted.
    Volume(VolumeSettings),
    /// Inode numbers and positions below these may have been handed out.
    Numbers {
        /// The smallest inode number never handed out.
        inode: u64,
        /// The same for positions in directories.
        cookie: u64,
    },
    /// The greatest epoch ever begun.
    Epoch(u32),
    /// A list of nodes.
    Configuration(Configuration),
    /// An inode, all of it.
    Inode(Inode),
    /// The directory that holds a directory.
    Parent(Ino, Ino),
    /// When an inode was last accessed.
    Accessed(Ino, Time),
    /// An inode is gone, with its attributes and its target.
    NoInode(Ino),
    /// A name.
    Entry {
        /// Its directory.
        parent: Ino,
        /// The name.
        name: Vec<u8>,
        /// What it stands for.
        ino: Ino,
        /// Its position.
        cookie: u64,
    },
    /// A name is gone.
    NoEntry(Ino, Vec<u8>),
    /// A symbolic link's target.
    Target(Ino, Vec<u8>),
    /// An extended attribute: inode, name, value.
    Xattr(Ino, Vec<u8>, Vec<u8>),
    /// An extended attribute is gone.
    NoXattr(Ino, Vec<u8>),
    /// An extent; one at the same offset is replaced.
    Extent(Ino, Extent),
    /// The extent at an offset is gone.
    NoExtent(Ino, u64),
    /// Bytes carried; what was carried from the same offset on is replaced.
    Intent(Ino, Intent),
    /// What was carried from an offset on is carried no more.
    NoIntent(Ino, u64),
    /// An object, with its exceptions; one of this identity is replaced.
    Object(ObjectRecord),
    /// Its exceptions are others.
    Exceptions(ObjectId, Vec<Exception>),
    /// An object is gone.
    NoObject(ObjectId),
    /// A snapshot; one of this number is replaced.
    Snapshot(Snapshot),
    /// A snapshot is gone, and what it kept is kept by the next older one that it is part of.
    NoSnapshot(u32),
    /// Nothing refers to an object any more, and this is the newest snapshot that keeps it.
    Kept(ObjectId, u32),
}

/// The tag each kind of record begins with.
mod tag {
    pub const VOLUME: u8 = 1;
    pub const NUMBERS: u8 = 2;
    pub const EPOCH: u8 = 3;
    pub const CONFIGURATION: u8 = 4;
    pub const INODE: u8 = 5;
    pub const PARENT: u8 = 6;
    pub const ACCESSED: u8 = 7;
    pub const NO_INODE: u8 = 8;
    pub const ENTRY: u8 = 9;
    pub const NO_ENTRY: u8 = 10;
    pub const TARGET: u8 = 11;
    pub const XATTR: u8 = 12;
    pub const NO_XATTR: u8 = 13;
    pub const EXTENT: u8 = 14;
    pub const NO_EXTENT: u8 = 15;
    pub const OBJECT: u8 = 16;
    pub const EXCEPTIONS: u8 = 17;
    pub const NO_OBJECT: u8 = 18;
    pub const SNAPSHOT: u8 = 19;
    pub const NO_SNAPSHOT: u8 = 20;
    pub const KEPT: u8 = 21;
    pub const INTENT: u8 = 22;
    pub const NO_INTENT: u8 = 23;
}

impl Record {
    /// Append it to `bytes`.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        match self {
            Record::Volume(settings) => {
                bytes.put_u8(tag::VOLUME);
                bytes.put_slice(&settings.volume.0);
                put_bytes(bytes, settings.name.as_bytes());
                put_bytes(bytes, settings.code.to_string().as_bytes());
                put_bytes(bytes, settings.hash.to_string().as_bytes());
                bytes.put_u32_le(settings.object_size);
                bytes.put_u32_le(settings.root.0);
                bytes.put_u32_le(settings.root.1);
                put_time(bytes, settings.created);
            }
            Record::Numbers { inode, cookie } => {
                bytes.put_u8(tag::NUMBERS);
                bytes.put_u64_le(*inode);
                bytes.put_u64_le(*cookie);
            }
            Record::Epoch(epoch) => {
                bytes.put_u8(tag::EPOCH);
                bytes.put_u32_le(*epoch);
            }
            Record::Configuration(configuration) => {
                bytes.put_u8(tag::CONFIGURATION);
                bytes.put_u32_le(configuration.number);
                bytes.put_u16_le(configuration.nodes.len() as u16);
                configuration.nodes.iter().for_each(|node| bytes.put_slice(&node.0));
            }
            Record::Inode(inode) => put_inode(bytes, inode),
            Record::Parent(ino, parent) => {
                bytes.put_u8(tag::PARENT);
                bytes.put_u64_le(ino.0);
                bytes.put_u64_le(parent.0);
            }
            Record::Accessed(ino, time) => {
                bytes.put_u8(tag::ACCESSED);
                bytes.put_u64_le(ino.0);
                put_time(bytes, *time);
            }
            Record::NoInode(ino) => {
                bytes.put_u8(tag::NO_INODE);
                bytes.put_u64_le(ino.0);
            }
            Record::Entry { parent, name, ino, cookie } => {
                bytes.put_u8(tag::ENTRY);
                bytes.put_u64_le(parent.0);
                put_bytes(bytes, name);
                bytes.put_u64_le(ino.0);
                bytes.put_u64_le(*cookie);
            }
            Record::NoEntry(parent, name) => put_named(bytes, tag::NO_ENTRY, *parent, name),
            Record::Target(ino, target) => put_named(bytes, tag::TARGET, *ino, target),
            Record::Xattr(ino, name, value) => {
                put_named(bytes, tag::XATTR, *ino, name);
                bytes.put_u32_le(value.len() as u32);
                bytes.put_slice(value);
            }
            Record::NoXattr(ino, name) => put_named(bytes, tag::NO_XATTR, *ino, name),
            Record::Extent(ino, extent) => {
                bytes.put_u8(tag::EXTENT);
                bytes.put_u64_le(ino.0);
                bytes.put_u64_le(extent.offset);
                bytes.put_u32_le(extent.length);
                put_id(bytes, extent.object);
                bytes.put_u32_le(extent.object_offset);
            }
            Record::NoExtent(ino, offset) => {
                bytes.put_u8(tag::NO_EXTENT);
                bytes.put_u64_le(ino.0);
                bytes.put_u64_le(*offset);
            }
            Record::Intent(ino, intent) => {
                bytes.put_u8(tag::INTENT);
                bytes.put_u64_le(ino.0);
                bytes.put_u64_le(intent.offset);
                bytes.put_u64_le(intent.number);
                bytes.put_u32_le(intent.bytes.len() as u32);
                bytes.put_slice(&intent.bytes);
            }
            Record::NoIntent(ino, offset) => {
                bytes.put_u8(tag::NO_INTENT);
                bytes.put_u64_le(ino.0);
                bytes.put_u64_le(*offset);
            }
            Record::Object(object) => {
                bytes.put_u8(tag::OBJECT);
                put_object(bytes, object);
            }
            Record::Exceptions(id, exceptions) => {
                bytes.put_u8(tag::EXCEPTIONS);
                put_id(bytes, *id);
                put_exceptions(bytes, exceptions);
            }
            Record::NoObject(id) => {
                bytes.put_u8(tag::NO_OBJECT);
                put_id(bytes, *id);
            }
            Record::Snapshot(snapshot) => {
                bytes.put_u8(tag::SNAPSHOT);
                bytes.put_u32_le(snapshot.number);
                put_bytes(bytes, snapshot.name.as_bytes());
                put_time(bytes, snapshot.created);
                put_id(bytes, snapshot.next);
                bytes.put_u32_le(snapshot.pin.len() as u32);
                bytes.put_slice(&snapshot.pin);
            }
            Record::NoSnapshot(number) => {
                bytes.put_u8(tag::NO_SNAPSHOT);
                bytes.put_u32_le(*number);
            }
            Record::Kept(id, keeper) => {
                bytes.put_u8(tag::KEPT);
                put_id(bytes, *id);
                bytes.put_u32_le(*keeper);
            }
        }
    }

    /// Take the first record off `bytes`; none when they are at their end.
    ///
    /// # Errors
    /// `Store` for what is no record.
    pub fn decode(bytes: &mut &[u8]) -> Result<Option<Record>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let mut fields = Fields(bytes);
        let record =
            fields.record().ok_or_else(|| Error::Store("damaged: this is no journal record".into()))?;
        *bytes = fields.0;
        Ok(Some(record))
    }
}

/// All records of `bytes`.
///
/// # Errors
/// `Store` for what is no record.
pub fn decode_all(mut bytes: &[u8]) -> Result<Vec<Record>> {
    std::iter::from_fn(|| Record::decode(&mut bytes).transpose()).collect()
}

fn put_bytes(bytes: &mut Vec<u8>, field: &[u8]) {
    bytes.put_u16_le(u16::try_from(field.len()).expect("names and targets are short"));
    bytes.put_slice(field);
}

fn put_named(bytes: &mut Vec<u8>, tag: u8, ino: Ino, name: &[u8]) {
    bytes.put_u8(tag);
    bytes.put_u64_le(ino.0);
    put_bytes(bytes, name);
}

fn put_time(bytes: &mut Vec<u8>, time: Time) {
    bytes.put_i64_le(time.seconds);
    bytes.put_u32_le(time.nanos);
}

fn put_id(bytes: &mut Vec<u8>, id: ObjectId) {
    bytes.put_u32_le(id.epoch);
    bytes.put_u64_le(id.counter);
}

fn put_inode(bytes: &mut Vec<u8>, inode: &Inode) {
    bytes.put_u8(tag::INODE);
    bytes.put_u64_le(inode.ino.0);
    for number in [inode.mode, inode.uid, inode.gid, inode.links, inode.rdev] {
        bytes.put_u32_le(number);
    }
    bytes.put_u64_le(inode.size);
    bytes.put_u64_le(inode.allocated);
    for time in [inode.atime, inode.mtime, inode.ctime, inode.btime] {
        put_time(bytes, time);
    }
}

/// Append an object's record.
pub fn put_object(bytes: &mut Vec<u8>, object: &ObjectRecord) {
    put_id(bytes, object.id);
    bytes.put_u32_le(object.length);
    bytes.put_slice(object.fpcc.as_bytes());
    bytes.put_u8(object.code.m() as u8);
    bytes.put_u8(object.code.p() as u8);
    bytes.put_u32_le(object.configuration);
    put_exceptions(bytes, &object.exceptions);
}

fn put_exceptions(bytes: &mut Vec<u8>, exceptions: &[Exception]) {
    bytes.put_u8(exceptions.len() as u8);
    for exception in exceptions {
        bytes.put_u8(exception.index);
        bytes.put_u8(u8::from(exception.node.is_some()));
        bytes.put_slice(&exception.node.unwrap_or(NodeId([0; 16])).0);
    }
}

/// Bytes being taken apart; whatever is missing makes the whole answer `None`.
pub struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    fn record(&mut self) -> Option<Record> {
        Some(match self.0.try_get_u8().ok()? {
            tag::VOLUME => Record::Volume(VolumeSettings {
                volume: VolumeId(self.array()?),
                name: String::from_utf8(self.bytes()?).ok()?,
                code: std::str::from_utf8(&self.bytes()?).ok()?.parse().ok()?,
                hash: std::str::from_utf8(&self.bytes()?).ok()?.parse().ok()?,
                object_size: self.u32()?,
                root: (self.u32()?, self.u32()?),
                created: self.time()?,
            }),
            tag::NUMBERS => Record::Numbers { inode: self.u64()?, cookie: self.u64()? },
            tag::EPOCH => Record::Epoch(self.u32()?),
            tag::CONFIGURATION => {
                Record::Configuration(Configuration { number: self.u32()?, nodes: self.nodes()? })
            }
            tag::INODE => Record::Inode(self.inode()?),
            tag::PARENT => Record::Parent(self.ino()?, self.ino()?),
            tag::ACCESSED => Record::Accessed(self.ino()?, self.time()?),
            tag::NO_INODE => Record::NoInode(self.ino()?),
            tag::ENTRY => Record::Entry {
                parent: self.ino()?,
                name: self.bytes()?,
                ino: self.ino()?,
                cookie: self.u64()?,
            },
            tag::NO_ENTRY => Record::NoEntry(self.ino()?, self.bytes()?),
            tag::TARGET => Record::Target(self.ino()?, self.bytes()?),
            tag::XATTR => {
                let (ino, name, length) = (self.ino()?, self.bytes()?, self.u32()?);
                Record::Xattr(ino, name, self.take(length as usize)?.to_vec())
            }
            tag::NO_XATTR => Record::NoXattr(self.ino()?, self.bytes()?),
            tag::EXTENT => {
                let (ino, offset, length) = (self.ino()?, self.u64()?, self.u32()?);
                let (object, object_offset) = (self.id()?, self.u32()?);
                Record::Extent(ino, Extent { offset, length, object, object_offset })
            }
            tag::NO_EXTENT => Record::NoExtent(self.ino()?, self.u64()?),
            tag::INTENT => {
                let (ino, offset, number) = (self.ino()?, self.u64()?, self.u64()?);
                let length = self.u32()?;
                let bytes = self.take(length as usize)?.to_vec();
                Record::Intent(ino, Intent { offset, number, bytes })
            }
            tag::NO_INTENT => Record::NoIntent(self.ino()?, self.u64()?),
            tag::OBJECT => Record::Object(self.object()?),
            tag::EXCEPTIONS => Record::Exceptions(self.id()?, self.exceptions()?),
            tag::NO_OBJECT => Record::NoObject(self.id()?),
            tag::SNAPSHOT => {
                let (number, name) = (self.u32()?, String::from_utf8(self.bytes()?).ok()?);
                let (created, next, length) = (self.time()?, self.id()?, self.u32()?);
                let pin = self.take(length as usize)?.to_vec();
                Record::Snapshot(Snapshot { number, name, created, next, pin })
            }
            tag::NO_SNAPSHOT => Record::NoSnapshot(self.u32()?),
            tag::KEPT => Record::Kept(self.id()?, self.u32()?),
            _ => return None,
        })
    }

    /// So many bytes.
    pub fn take(&mut self, length: usize) -> Option<&[u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// So many bytes.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    /// A number of two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.0.try_get_u16_le().ok()
    }

    /// A number of four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.0.try_get_u32_le().ok()
    }

    /// A number of eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.0.try_get_u64_le().ok()
    }

    fn ino(&mut self) -> Option<Ino> {
        self.u64().map(Ino)
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let length = usize::from(self.u16()?);
        self.take(length).map(<[u8]>::to_vec)
    }

    fn time(&mut self) -> Option<Time> {
        let time = Time { seconds: self.0.try_get_i64_le().ok()?, nanos: self.u32()? };
        (time.nanos < 1_000_000_000).then_some(time)
    }

    fn id(&mut self) -> Option<ObjectId> {
        Some(ObjectId { epoch: self.u32()?, counter: self.u64()? })
    }

    /// A list of nodes.
    pub fn nodes(&mut self) -> Option<Vec<NodeId>> {
        (0..self.u16()?).map(|_| self.array().map(NodeId)).collect()
    }

    fn inode(&mut self) -> Option<Inode> {
        Some(Inode {
            ino: self.ino()?,
            mode: self.u32()?,
            uid: self.u32()?,
            gid: self.u32()?,
            links: self.u32()?,
            rdev: self.u32()?,
            size: self.u64()?,
            allocated: self.u64()?,
            atime: self.time()?,
            mtime: self.time()?,
            ctime: self.time()?,
            btime: self.time()?,
        })
    }

    /// An object's record.
    pub fn object(&mut self) -> Option<ObjectRecord> {
        let (id, length, fpcc) = (self.id()?, self.u32()?, Hash::from(self.array::<{ Hash::LENGTH }>()?));
        let [m, p] = self.array()?;
        let code = Code::new(m.into(), p.into()).ok()?;
        let (configuration, exceptions) = (self.u32()?, self.exceptions()?);
        Some(ObjectRecord { id, length, fpcc, code, configuration, exceptions })
    }

    fn exceptions(&mut self) -> Option<Vec<Exception>> {
        let [count] = self.array()?;
        (0..count)
            .map(|_| {
                let [index, known] = self.array()?;
                let node = NodeId(self.array()?);
                Some(Exception { index, node: (known != 0).then_some(node) })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use avidfs_tests::fuzz::fuzz;
    use common::hash::HashId;
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    use super::*;

    fn time() -> impl Strategy<Value = Time> {
        (any::<i64>(), 0u32..1_000_000_000).prop_map(|(seconds, nanos)| Time { seconds, nanos })
    }

    fn ino() -> impl Strategy<Value = Ino> {
        any::<u64>().prop_map(Ino)
    }

    fn id() -> impl Strategy<Value = ObjectId> {
        (any::<u32>(), any::<u64>()).prop_map(|(epoch, counter)| ObjectId { epoch, counter })
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..300)
    }

    fn exceptions() -> impl Strategy<Value = Vec<Exception>> {
        let node = proptest::option::of(any::<[u8; 16]>().prop_map(NodeId));
        let exception = (any::<u8>(), node).prop_map(|(index, node)| Exception { index, node });
        proptest::collection::vec(exception, 0..6)
    }

    fn object() -> impl Strategy<Value = ObjectRecord> {
        let fpcc = any::<[u8; 32]>().prop_map(Hash::from);
        (id(), any::<u32>(), fpcc, 1usize..20, 1usize..20, any::<u32>(), exceptions()).prop_map(
            |(id, length, fpcc, m, p, configuration, exceptions)| ObjectRecord {
                id,
                length,
                fpcc,
                code: Code::new(m, p).unwrap(),
                configuration,
                exceptions,
            },
        )
    }

    fn inode() -> impl Strategy<Value = Inode> {
        let numbers = any::<[u32; 5]>();
        (ino(), numbers, any::<[u64; 2]>(), [time(), time(), time(), time()]).prop_map(
            |(ino, [mode, uid, gid, links, rdev], [size, allocated], [atime, mtime, ctime, btime])| Inode {
                ino,
                mode,
                uid,
                gid,
                links,
                size,
                allocated,
                rdev,
                atime,
                mtime,
                ctime,
                btime,
            },
        )
    }

    fn record() -> impl Strategy<Value = Record> {
        let nodes = proptest::collection::vec(any::<[u8; 16]>().prop_map(NodeId), 0..9);
        let extent = (any::<u64>(), any::<u32>(), id(), any::<u32>()).prop_map(
            |(offset, length, object, object_offset)| Extent { offset, length, object, object_offset },
        );
        prop_oneof![
            ("[a-zä ]{0,40}", any::<[u8; 16]>(), time()).prop_map(|(name, volume, created)| {
                Record::Volume(VolumeSettings {
                    volume: VolumeId(volume),
                    name,
                    code: Code::new(4, 2).unwrap(),
                    hash: HashId::Sha256,
                    object_size: 1 << 20,
                    root: (7, 8),
                    created,
                })
            }),
            any::<[u64; 2]>().prop_map(|[inode, cookie]| Record::Numbers { inode, cookie }),
            any::<u32>().prop_map(Record::Epoch),
            (any::<u32>(), nodes)
                .prop_map(|(number, nodes)| Record::Configuration(Configuration { number, nodes })),
            inode().prop_map(Record::Inode),
            (ino(), ino()).prop_map(|(ino, parent)| Record::Parent(ino, parent)),
            (ino(), time()).prop_map(|(ino, time)| Record::Accessed(ino, time)),
            ino().prop_map(Record::NoInode),
            (ino(), bytes(), ino(), any::<u64>()).prop_map(|(parent, name, ino, cookie)| Record::Entry {
                parent,
                name,
                ino,
                cookie
            }),
            (ino(), bytes()).prop_map(|(ino, name)| Record::NoEntry(ino, name)),
            (ino(), bytes()).prop_map(|(ino, target)| Record::Target(ino, target)),
            (ino(), bytes(), bytes()).prop_map(|(ino, name, value)| Record::Xattr(ino, name, value)),
            (ino(), bytes()).prop_map(|(ino, name)| Record::NoXattr(ino, name)),
            (ino(), extent).prop_map(|(ino, extent)| Record::Extent(ino, extent)),
            (ino(), any::<u64>()).prop_map(|(ino, offset)| Record::NoExtent(ino, offset)),
            (ino(), any::<[u64; 2]>(), bytes()).prop_map(|(ino, [offset, number], bytes)| {
                Record::Intent(ino, Intent { offset, number, bytes })
            }),
            (ino(), any::<u64>()).prop_map(|(ino, offset)| Record::NoIntent(ino, offset)),
            object().prop_map(Record::Object),
            (id(), exceptions()).prop_map(|(id, exceptions)| Record::Exceptions(id, exceptions)),
            id().prop_map(Record::NoObject),
            (any::<u32>(), "[a-z]{1,40}", time(), id(), bytes()).prop_map(
                |(number, name, created, next, pin)| {
                    Record::Snapshot(Snapshot { number, name, created, next, pin })
                }
            ),
            any::<u32>().prop_map(Record::NoSnapshot),
            (id(), any::<u32>()).prop_map(|(id, keeper)| Record::Kept(id, keeper)),
        ]
    }

    proptest! {
        #[test]
        fn records_come_back_as_they_were(records in proptest::collection::vec(record(), 0..20)) {
            let mut bytes = Vec::new();
            records.iter().for_each(|record| record.encode(&mut bytes));
            prop_assert_eq!(decode_all(&bytes).unwrap(), records);
        }

        #[test]
        fn a_cut_record_is_refused(record in record(), cut in any::<prop::sample::Index>()) {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            let cut = cut.index(bytes.len());
            prop_assert_eq!(decode_all(&bytes[..cut]).is_ok(), cut == 0);
        }
    }

    fn encode_all(records: &[Record]) -> Vec<u8> {
        let mut bytes = Vec::new();
        records.iter().for_each(|record| record.encode(&mut bytes));
        bytes
    }

    #[test]
    fn whatever_the_bytes_records_are_refused_or_come_back() {
        let mut runner = TestRunner::deterministic();
        let mut some = |_| record().new_tree(&mut runner).expect("nothing is filtered").current();
        let valid: Vec<Vec<u8>> =
            (0..60).map(|i| encode_all(&(0..i % 3).map(&mut some).collect::<Vec<_>>())).collect();
        // The shortest record has 5 bytes, and its value as much room as the longest.
        let most = |length| 128 * length + 1024;
        let parse = |bytes: &[u8]| decode_all(bytes).ok();
        fuzz("records", &valid, most, parse, |records, _| {
            assert_eq!(decode_all(&encode_all(&records)).unwrap(), records);
        });
    }

    #[test]
    fn bytes_are_those_drawn_in_the_docs() {
        let record = Record::Entry { parent: Ino(1), name: b"a".to_vec(), ino: Ino(2), cookie: 3 };
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        let drawn = b"\x09\x01\0\0\0\0\0\0\0\x01\0a\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0";
        assert_eq!(bytes, drawn);
    }
}
