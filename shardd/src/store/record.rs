//! One record of a segment: what docs/node-store.md draws, bytes in, values out. It knows no file.

use common::slice::GROUP_LENGTH;
use common::wire::{FragmentName, MAX_BODY, MAX_KEY, VolumeId};

/// Records begin at multiples of this.
pub const ALIGNMENT: u64 = 64;
/// Bytes before the key.
pub const HEADER: usize = 64;
/// Longest encoded FPCC a record holds: 255 hashes, 254 fingerprints and room for what describes them.
pub const MAX_FPCC: usize = 16 << 10;

const MAGIC: &[u8; 4] = b"AVR1";
const STATE: usize = 4;
const CHECK: usize = 48;
const LIVE: u8 = 0x5a;
const DEAD: u8 = 0xa5;

/// The byte that marks a record dead, and where in the record it stands.
pub const DEATH: (u64, [u8; 1]) = (STATE as u64, [DEAD]);

/// Which names a key lives among.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Space {
    /// Clients that need not trust each other.
    ObjectStore,
    /// One volume's trusted writer.
    Volume(VolumeId),
}

impl Space {
    fn to_bytes(self) -> [u8; 16] {
        match self {
            Space::ObjectStore => [0; 16],
            Space::Volume(volume) => volume.0,
        }
    }

    fn from_bytes(bytes: [u8; 16]) -> Space {
        if bytes == [0; 16] { Space::ObjectStore } else { Space::Volume(VolumeId(bytes)) }
    }
}

/// The secret of a data folder that keys every record's check.
#[derive(Clone)]
pub struct Seal(pub [u8; 32]);

/// Where a record stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Position {
    /// Number of the segment.
    pub segment: u32,
    /// First byte of the record in it.
    pub offset: u64,
}

/// What stands before a fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head<'a> {
    /// Counts the puts of a node.
    pub sequence: u64,
    /// Which names `key` lives among.
    pub space: Space,
    /// The object's key.
    pub key: &'a str,
    /// The object's version.
    pub version: u64,
    /// Which fragment.
    pub index: u8,
    /// Its encoded FPCC.
    pub fpcc: &'a [u8],
    /// Bytes in the fragment.
    pub fragment_length: u32,
    /// Groups in the tree that makes slices of it; 0 if it has none.
    pub tree_groups: u16,
}

/// Bytes that a tree has for each group.
pub const TREE_GROUP: usize = 32;

/// The lengths a header announces. Believed only as far as reading what the check then covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lengths {
    /// Of the key.
    pub key: usize,
    /// Of the FPCC.
    pub fpcc: usize,
    /// Of the fragment.
    pub fragment: usize,
    /// Of the tree.
    pub tree: usize,
}

impl Lengths {
    /// Bytes before the fragment.
    pub fn head(&self) -> usize {
        HEADER + self.key + self.fpcc
    }

    /// Bytes up to the end of the fragment.
    pub fn content(&self) -> usize {
        self.head() + self.fragment
    }

    /// Bytes up to the end of the tree.
    pub fn whole(&self) -> usize {
        self.content() + self.tree
    }

    /// Bytes up to where the next record begins.
    pub fn record(&self) -> u64 {
        (self.whole() as u64).next_multiple_of(ALIGNMENT)
    }

    /// What `header` announces, if it begins as a record and its lengths are possible.
    pub fn of_header(header: &[u8; HEADER]) -> Option<Lengths> {
        let lengths = Lengths {
            key: usize::from(u16::from_le_bytes([header[6], header[7]])),
            fpcc: usize::from(u16::from_le_bytes([header[40], header[41]])),
            fragment: u32_at(header, 44) as usize,
            tree: TREE_GROUP * usize::from(u16::from_le_bytes([header[42], header[43]])),
        };
        let groups = lengths.fragment.div_ceil(GROUP_LENGTH as usize);
        let possible = (1..=MAX_KEY).contains(&lengths.key)
            && lengths.fpcc <= MAX_FPCC
            && lengths.fragment <= MAX_BODY
            && lengths.tree <= TREE_GROUP * groups;
        (header[..4] == *MAGIC && possible).then_some(lengths)
    }
}

impl<'a> Head<'a> {
    /// Which fragment it is of its space.
    pub fn name(&self) -> FragmentName {
        FragmentName { key: self.key.to_owned(), version: self.version, index: self.index }
    }

    /// Lengths of the record.
    pub fn lengths(&self) -> Lengths {
        Lengths {
            key: self.key.len(),
            fpcc: self.fpcc.len(),
            fragment: self.fragment_length as usize,
            tree: TREE_GROUP * usize::from(self.tree_groups),
        }
    }

    /// Everything before the fragment, live, as it stands at `position`.
    pub fn encode(&self, seal: &Seal, position: Position) -> Vec<u8> {
        let mut head = Vec::with_capacity(self.lengths().head());
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&[LIVE, self.index]);
        head.extend_from_slice(&(self.key.len() as u16).to_le_bytes());
        head.extend_from_slice(&self.sequence.to_le_bytes());
        head.extend_from_slice(&self.space.to_bytes());
        head.extend_from_slice(&self.version.to_le_bytes());
        head.extend_from_slice(&(self.fpcc.len() as u16).to_le_bytes());
        head.extend_from_slice(&self.tree_groups.to_le_bytes());
        head.extend_from_slice(&self.fragment_length.to_le_bytes());
        head.extend_from_slice(&[0; HEADER - CHECK]);
        head.extend_from_slice(self.key.as_bytes());
        head.extend_from_slice(self.fpcc);
        let check = check(seal, position, &head);
        head[CHECK..HEADER].copy_from_slice(&check);
        head
    }

    /// Take apart what stands before a fragment at `position`; `None` unless it is long enough and its check holds.
    pub fn decode(seal: &Seal, position: Position, bytes: &'a [u8]) -> Option<(Head<'a>, Life)> {
        let lengths = Lengths::of_header(bytes.first_chunk()?)?;
        let bytes = bytes.get(..lengths.head())?;
        if check(seal, position, bytes) != bytes[CHECK..HEADER] {
            return None;
        }
        let (key, fpcc) = bytes[HEADER..].split_at(lengths.key);
        let head = Head {
            sequence: u64_at(bytes, 8),
            space: Space::from_bytes(*bytes[16..].first_chunk()?),
            key: std::str::from_utf8(key).ok()?,
            version: u64_at(bytes, 32),
            index: bytes[5],
            fpcc,
            fragment_length: lengths.fragment as u32,
            tree_groups: (lengths.tree / TREE_GROUP) as u16,
        };
        let life = if bytes[STATE] == DEAD { Life::Dead } else { Life::Live };
        Some((head, life))
    }
}

/// Whether a record was deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// It counts.
    Live,
    /// Deleted, replaced or torn.
    Dead,
}

/// `head` without its state and without the check itself, bound to where it stands.
fn check(seal: &Seal, position: Position, head: &[u8]) -> [u8; HEADER - CHECK] {
    let mut hasher = blake3::Hasher::new_keyed(&seal.0);
    hasher.update(&u64::from(position.segment).to_le_bytes());
    hasher.update(&position.offset.to_le_bytes());
    hasher.update(&head[..STATE]);
    hasher.update(&head[STATE + 1..CHECK]);
    hasher.update(&head[HEADER..]);
    *hasher.finalize().as_bytes().first_chunk().expect("a check is shorter than a hash")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("within the header"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("within the header"))
}

/// Give a head that was changed the check that goes with it, as only who has the seal can.
#[cfg(test)]
pub fn reseal(seal: &Seal, position: Position, bytes: &mut [u8]) {
    let lengths = bytes.first_chunk().and_then(Lengths::of_header);
    if let Some(head) = lengths.and_then(|lengths| bytes.get_mut(..lengths.head())) {
        let check = check(seal, position, head);
        head[CHECK..HEADER].copy_from_slice(&check);
    }
}

#[cfg(test)]
mod tests {
    use avidfs_tests::fuzz::fuzz;

    use super::*;

    const SEAL: Seal = Seal([7; 32]);
    const HERE: Position = Position { segment: 3, offset: 640 };

    fn head() -> Head<'static> {
        Head {
            sequence: 5,
            space: Space::Volume(VolumeId([9; 16])),
            key: "00000001-0000000000000002",
            version: 1,
            index: 4,
            fpcc: b"an fpcc of some length",
            fragment_length: 40_000,
            tree_groups: 3,
        }
    }

    #[test]
    fn a_head_comes_back_as_it_was() {
        let bytes = head().encode(&SEAL, HERE);
        assert_eq!(bytes.len(), head().lengths().head());
        assert_eq!(Head::decode(&SEAL, HERE, &bytes), Some((head(), Life::Live)));
    }

    #[test]
    fn the_state_alone_may_change() {
        let mut bytes = head().encode(&SEAL, HERE);
        let (at, dead) = DEATH;
        bytes[at as usize] = dead[0];
        assert_eq!(Head::decode(&SEAL, HERE, &bytes), Some((head(), Life::Dead)));
        bytes[at as usize] = 0x5b;
        assert_eq!(Head::decode(&SEAL, HERE, &bytes), Some((head(), Life::Live)));
    }

    #[test]
    fn a_changed_bit_anywhere_else_is_noticed() {
        let whole = head().encode(&SEAL, HERE);
        for bit in (0..whole.len() * 8).filter(|bit| bit / 8 != STATE) {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Head::decode(&SEAL, HERE, &bytes), None, "bit {bit}");
        }
    }

    #[test]
    fn a_record_is_valid_only_where_it_was_written_and_only_under_its_seal() {
        let bytes = head().encode(&SEAL, HERE);
        assert_eq!(Head::decode(&SEAL, Position { offset: 704, ..HERE }, &bytes), None);
        assert_eq!(Head::decode(&SEAL, Position { segment: 4, ..HERE }, &bytes), None);
        assert_eq!(Head::decode(&Seal([8; 32]), HERE, &bytes), None);
    }

    fn sealed(bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        reseal(&SEAL, HERE, &mut bytes);
        bytes
    }

    #[test]
    fn whatever_the_bytes_a_head_is_refused_or_written_the_same() {
        let shortest = Head {
            space: Space::ObjectStore,
            key: "k",
            fpcc: b"",
            fragment_length: 0,
            tree_groups: 0,
            ..head()
        };
        let valid = [head().encode(&SEAL, HERE), shortest.encode(&SEAL, HERE)];
        let parse = |bytes: &[u8]| {
            let bytes = sealed(bytes);
            let (head, _) = Head::decode(&SEAL, HERE, &bytes)?;
            Some((head.encode(&SEAL, HERE), head.lengths()))
        };
        fuzz(
            "record",
            &valid,
            |length| 2 * length + 1024,
            parse,
            |(written, lengths), bytes| {
                let bytes = &sealed(bytes)[..lengths.head()];
                assert_eq!(
                    (&written[..STATE], &written[STATE + 1..]),
                    (&bytes[..STATE], &bytes[STATE + 1..])
                );
                assert!(lengths.whole() < 2 * MAX_BODY && lengths.record().is_multiple_of(ALIGNMENT));
            },
        );
    }
}
