//! One entry of the journal: what docs/journal.md draws. Values in, bytes out; no network and no store.

use bytes::{BufMut, Bytes};
use common::wire::{JOURNAL_PREFIX, MountId, NodeId, VolumeId};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::error::{Error, Result};
use crate::metadata::record::{Fields, put_object};
use crate::metadata::{Configuration, ObjectRecord};

const MAGIC: &[u8; 8] = b"AVIDJNL1";
const SIGNATURE: usize = 64;
/// A payload's block of at most so many bytes lies in the entry itself.
pub const INLINE: usize = 64 << 10;

/// The digest by which an entry is known: BLAKE3 of all its bytes.
pub type Digest = [u8; 32];

/// Where an entry stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place {
    /// Counts the entries of a volume from 1.
    pub sequence: u64,
    /// The epoch of the mount that wrote it.
    pub epoch: u32,
}

impl Place {
    /// The key nodes keep it under; keys in order are places in order.
    pub fn key(self) -> String {
        format!("{JOURNAL_PREFIX}{:016x}-{:08x}", self.sequence, self.epoch)
    }

    /// The place a key stands for.
    pub fn of_key(key: &str) -> Option<Place> {
        let (sequence, epoch) = key.strip_prefix(JOURNAL_PREFIX)?.split_once('-')?;
        let place = Place {
            sequence: u64::from_str_radix(sequence, 16).ok()?,
            epoch: u32::from_str_radix(epoch, 16).ok()?,
        };
        (place.key() == key).then_some(place)
    }
}

/// One entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Whose.
    pub volume: VolumeId,
    /// Where it stands.
    pub place: Place,
    /// The mount that wrote it.
    pub mount: MountId,
    /// The entry before it; zeros for none.
    pub previous: Digest,
    /// Number of the last change it holds.
    pub upto: u64,
    /// Sequence of the entry where reading begins.
    pub checkpoint: u64,
    /// When it was written, in seconds since 1970.
    pub written: u64,
    /// The lists of nodes over which its parts are placed, and the current one.
    pub configurations: Vec<Configuration>,
    /// Blocks that are objects.
    pub parts: Vec<ObjectRecord>,
    /// The block that is here; empty for none.
    pub inline: Bytes,
}

/// An entry as it came from a node, its signature checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signed {
    /// What it says.
    pub entry: Entry,
    /// By whom it is signed.
    pub public: VerifyingKey,
    /// By what it is known.
    pub digest: Digest,
}

impl Entry {
    /// Whether it holds everything there is.
    pub fn is_checkpoint(&self) -> bool {
        self.checkpoint == self.place.sequence
    }

    /// Its bytes, signed.
    pub fn sign(&self, key: &SigningKey) -> Bytes {
        let mut bytes = Vec::with_capacity(512 + self.inline.len());
        bytes.put_slice(MAGIC);
        bytes.put_slice(&self.volume.0);
        bytes.put_u32_le(self.place.epoch);
        bytes.put_u64_le(self.place.sequence);
        bytes.put_slice(&self.mount.0);
        bytes.put_slice(&self.previous);
        bytes.put_u64_le(self.upto);
        bytes.put_u64_le(self.checkpoint);
        bytes.put_u64_le(self.written);
        bytes.put_slice(key.verifying_key().as_bytes());
        bytes.put_u16_le(self.configurations.len() as u16);
        bytes.put_u16_le(self.parts.len() as u16);
        bytes.put_u32_le(self.inline.len() as u32);
        for configuration in &self.configurations {
            bytes.put_u32_le(configuration.number);
            bytes.put_u16_le(configuration.nodes.len() as u16);
            configuration.nodes.iter().for_each(|node: &NodeId| bytes.put_slice(&node.0));
        }
        self.parts.iter().for_each(|part| put_object(&mut bytes, part));
        bytes.put_slice(&self.inline);
        let signature = key.sign(&bytes);
        bytes.put_slice(&signature.to_bytes());
        bytes.into()
    }

    /// Take bytes apart, and check who signed them; by `public`, if it is given.
    ///
    /// # Errors
    /// `Store`: they are no entry, of another volume, or signed by somebody else.
    pub fn check(bytes: &Bytes, volume: VolumeId, public: Option<&VerifyingKey>) -> Result<Signed> {
        let wrong = |why: &str| Error::Store(format!("not an entry of this journal: {why}"));
        let body = bytes.len().checked_sub(SIGNATURE).ok_or_else(|| wrong("too short"))?;
        let (entry, key) = parse(&bytes[..body]).ok_or_else(|| wrong("its bytes make no sense"))?;
        if entry.volume != volume {
            return Err(wrong("of another volume"));
        }
        let signer = VerifyingKey::from_bytes(&key).map_err(|_| wrong("its public key is none"))?;
        if public.is_some_and(|public| *public != signer) {
            return Err(wrong("signed with another key"));
        }
        let signature = bytes[body..].try_into().map(|bytes| Signature::from_bytes(&bytes));
        let signature = signature.map_err(|_| wrong("too short"))?;
        signer.verify_strict(&bytes[..body], &signature).map_err(|_| wrong("its signature does not hold"))?;
        Ok(Signed { entry, public: signer, digest: digest(bytes) })
    }
}

impl Entry {
    /// As `check`, and it stands where its key says.
    ///
    /// # Errors
    /// As `check`; `Store` for another entry.
    pub fn check_under(
        key: &str,
        bytes: &Bytes,
        volume: VolumeId,
        public: Option<&VerifyingKey>,
    ) -> Result<Signed> {
        let signed = Entry::check(bytes, volume, public)?;
        match signed.entry.place.key() == key {
            true => Ok(signed),
            false => Err(Error::Store("another entry than its key says".into())),
        }
    }
}

/// By what an entry of these bytes is known.
pub fn digest(bytes: &[u8]) -> Digest {
    *blake3::hash(bytes).as_bytes()
}

fn parse(bytes: &[u8]) -> Option<(Entry, [u8; 32])> {
    let mut fields = Fields(bytes);
    if fields.array::<8>()? != *MAGIC {
        return None;
    }
    let volume = VolumeId(fields.array()?);
    let epoch = fields.u32()?;
    let place = Place { sequence: fields.u64()?, epoch };
    let (mount, previous) = (MountId(fields.array()?), fields.array()?);
    let (upto, checkpoint, written) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let public = fields.array()?;
    let (configurations, parts, inline) = (fields.u16()?, fields.u16()?, fields.u32()? as usize);
    let configuration = |_| Some(Configuration { number: fields.u32()?, nodes: fields.nodes()? });
    let configurations = (0..configurations).map(configuration).collect::<Option<_>>()?;
    let parts = (0..parts).map(|_| fields.object()).collect::<Option<_>>()?;
    let inline = Bytes::copy_from_slice(fields.take(inline)?);
    let entry =
        Entry { volume, place, mount, previous, upto, checkpoint, written, configurations, parts, inline };
    (fields.0.is_empty() && checkpoint <= place.sequence).then_some((entry, public))
}

/// Records as a block of a payload.
pub fn block(records: &[u8]) -> Vec<u8> {
    lz4_flex::compress_prepend_size(records)
}

/// The most bytes of records in one block.
pub const BLOCK: usize = 4 << 20;

/// The records of a block.
///
/// # Errors
/// `Store` for what is no block.
pub fn records(block: &[u8]) -> Result<Vec<u8>> {
    let damaged = || Error::Store("damaged: this is no block of the journal".into());
    let length = block.first_chunk().map(|length| u32::from_le_bytes(*length)).ok_or_else(damaged)?;
    // One transaction's records are never cut, so a block may be somewhat longer than it should. And LZ4 makes less than
    // 255 bytes of one: what announces more is not given the memory for it.
    if length as usize > (64 * BLOCK).min(255 * block.len()) {
        return Err(damaged());
    }
    lz4_flex::decompress_size_prepended(block).map_err(|_| damaged())
}

#[cfg(test)]
mod tests {
    use avidfs_tests::fuzz::fuzz;
    use common::hash::Hash;
    use common::wire::ObjectId;

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[3; 32])
    }

    fn entry() -> Entry {
        let part = ObjectRecord {
            id: ObjectId { epoch: 2, counter: 9 },
            length: 100,
            fpcc: Hash::from([8; 32]),
            code: "3+2".parse().unwrap(),
            configuration: 1,
            exceptions: Vec::new(),
        };
        Entry {
            volume: VolumeId([1; 16]),
            place: Place { sequence: 7, epoch: 2 },
            mount: MountId([4; 16]),
            previous: [5; 32],
            upto: 99,
            checkpoint: 3,
            written: 1_700_000_000,
            configurations: vec![Configuration { number: 1, nodes: vec![NodeId([6; 16]), NodeId([7; 16])] }],
            parts: vec![part],
            inline: Bytes::from_static(b"inline"),
        }
    }

    #[test]
    fn an_entry_comes_back_as_it_was_signed() {
        let bytes = entry().sign(&key());
        assert_eq!(&bytes[..8], MAGIC);
        assert_eq!(bytes[28..36], 7u64.to_le_bytes());
        let signed = Entry::check(&bytes, VolumeId([1; 16]), Some(&key().verifying_key())).unwrap();
        assert_eq!((signed.entry, signed.digest), (entry(), digest(&bytes)));
    }

    #[test]
    fn another_volume_another_key_and_any_other_byte_are_refused() {
        let bytes = entry().sign(&key());
        let other = SigningKey::from_bytes(&[9; 32]).verifying_key();
        assert!(Entry::check(&bytes, VolumeId([2; 16]), None).is_err());
        assert!(Entry::check(&bytes, VolumeId([1; 16]), Some(&other)).is_err());
        for at in 0..bytes.len() {
            let mut changed = bytes.to_vec();
            changed[at] ^= 1;
            let public = key().verifying_key();
            assert!(Entry::check(&changed.into(), VolumeId([1; 16]), Some(&public)).is_err(), "byte {at}");
        }
        for length in 0..bytes.len() {
            assert!(Entry::check(&bytes.slice(..length), VolumeId([1; 16]), None).is_err());
        }
    }

    #[test]
    fn keys_are_places_in_order() {
        let places = [(1, 1), (1, 2), (2, 1), (255, 7), (u64::MAX, u32::MAX)];
        let places = places.map(|(sequence, epoch)| Place { sequence, epoch });
        let keys = places.map(Place::key);
        assert!(keys.is_sorted());
        assert_eq!(keys.each_ref().map(|key| Place::of_key(key).unwrap()), places);
        assert!(ObjectId { epoch: u32::MAX, counter: u64::MAX }.key() < keys[0]);
        assert_eq!(Place::of_key("journal-1-2"), None);
    }

    /// What a mount makes of an entry whose signature holds, whoever is behind it.
    fn signed(body: &[u8]) -> Option<(Entry, [u8; 32])> {
        let (entry, public) = parse(body)?;
        let bytes = [body, &key().sign(body).to_bytes()].concat().into();
        let believed = Entry::check(&bytes, entry.volume, None);
        assert_eq!(believed.is_ok(), public == *key().verifying_key().as_bytes());
        Some((entry, public))
    }

    fn body(entry: &Entry) -> Vec<u8> {
        let bytes = entry.sign(&key());
        bytes[..bytes.len() - SIGNATURE].to_vec()
    }

    #[test]
    fn whatever_the_bytes_an_entry_is_refused_or_comes_back() {
        let bare = Entry { configurations: Vec::new(), parts: Vec::new(), inline: Bytes::new(), ..entry() };
        let valid = [body(&entry()), body(&bare)];
        fuzz(
            "journal-entry",
            &valid,
            |length| 8 * length + 4096,
            signed,
            |(entry, public), _| {
                let again = body(&entry);
                let (same, _) = parse(&again).expect("what was parsed is written so that it is parsed");
                assert_eq!(same, entry);
                assert!(
                    Entry::check(&again.into(), entry.volume, None).is_err(),
                    "nobody signed it: {public:?}"
                );
            },
        );
    }

    /// A block of four bytes had 256 MiB set aside for it, because it announced as much.
    #[test]
    fn a_block_that_announces_more_than_it_could_hold_is_refused() {
        let zeros = vec![0; BLOCK];
        let whole = block(&zeros);
        assert!(whole.len() * 250 < BLOCK, "LZ4 at its best");
        assert_eq!(records(&whole).unwrap(), zeros);
        let length = (64 * BLOCK as u32).to_le_bytes();
        assert!(records(&length).is_err() && records(&[&length, &whole[4..]].concat()).is_err());
    }

    #[test]
    fn whatever_the_text_a_key_is_refused_or_is_its_places() {
        let valid = [Place { sequence: 7, epoch: 2 }, Place { sequence: u64::MAX, epoch: u32::MAX }];
        let valid = valid.map(|place| place.key().into_bytes());
        let parse = |bytes: &[u8]| Place::of_key(std::str::from_utf8(bytes).ok()?);
        fuzz(
            "journal-key",
            &valid,
            |length| length + 256,
            parse,
            |place, bytes| {
                assert_eq!(place.key().as_bytes(), bytes);
            },
        );
    }

    #[test]
    fn whatever_the_bytes_a_block_is_refused_or_its_records_come_back() {
        let long = [b"records".repeat(300), vec![0; 5000]].concat();
        let valid = [block(b"records"), block(&long), block(b"")];
        // LZ4 makes at most 255 bytes of one.
        let most = |length| 256 * length + 256;
        let parse = |bytes: &[u8]| records(bytes).ok();
        fuzz("journal-block", &valid, most, parse, |found, _| {
            assert_eq!(records(&block(&found)).unwrap(), found);
        });
    }
}
