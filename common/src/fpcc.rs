//! The fingerprinted cross-checksum: tells of one fragment, alone, whether it belongs to an object.
//!
//! The format is docs/fpcc.md. Nothing may be decoded, cached, stored or repaired before it passed [`Fpcc::check`];
//! [`decode`] therefore takes only [`Checked`] fragments.

use bytes::Bytes;

use crate::code::{Code, CodeError};
use crate::codec::{self, Codec, CodecError};
use crate::fingerprint::{Fingerprint, Point};
use crate::gf256::CpuPath;
use crate::hash::{Hash, HashId};
use crate::slice::{self, Tree};

const MAGIC: &[u8; 8] = b"AVIDFPCC";
const VERSION: u8 = 1;
/// Evaluation in the 128-bit field.
const FINGERPRINT_ID: u8 = 1;
/// Systematic Vandermonde over GF(2^8)/0x11D.
const MATRIX_ID: u8 = 1;
const HEADER_LENGTH: usize = 32;
const ORACLE_DOMAIN: &[u8] = b"avidfs fpcc oracle v1";
const DIGEST_DOMAIN: &[u8] = b"avidfs fpcc digest v1";

/// The hashes of an object's n fragments and the fingerprints of its m data fragments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fpcc {
    code: Code,
    hash: HashId,
    fragment_length: u64,
    object_length: u64,
    /// `cc[0..n]`.
    hashes: Box<[Hash]>,
    /// `fp[0..m]`.
    fingerprints: Box<[Fingerprint]>,
    /// r, recomputed from everything above but the fingerprints.
    point: Point,
}

/// Why bytes are not an FPCC.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FpccError {
    /// Shorter than its header, or not as long as its header says.
    #[error("an FPCC of {expected} bytes was expected, {found} are there")]
    Length {
        /// What the header asks for.
        expected: usize,
        /// What is there.
        found: usize,
    },
    /// Something else than an FPCC.
    #[error("these bytes are not an FPCC")]
    Magic,
    /// A newer format.
    #[error("FPCC format {0}; this program reads format 1")]
    Version(u8),
    /// A hash, fingerprint or matrix that is not known.
    #[error("unknown {field} {id} in an FPCC")]
    UnknownId {
        /// Which one: hash, fingerprint or matrix.
        field: &'static str,
        /// Its id.
        id: u8,
    },
    /// m and n are not a code.
    #[error("m = {m} and n = {n} in an FPCC are not a code")]
    Code {
        /// Data fragments.
        m: u16,
        /// All fragments.
        n: u16,
    },
    /// The lengths contradict each other, or are 0.
    #[error("fragments of {fragment} bytes do not make an object of {object} bytes")]
    ObjectLength {
        /// The fragment length found.
        fragment: u64,
        /// The object length found.
        object: u64,
    },
}

/// How a fragment, or a slice of one, differs from what the FPCC asks for.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Inconsistent {
    /// There is no fragment of that index.
    #[error("there is no fragment {index} among {count}")]
    Index {
        /// The index claimed.
        index: usize,
        /// n.
        count: usize,
    },
    /// Too short or too long.
    #[error("the fragment has {found} bytes instead of {expected}")]
    Length {
        /// L.
        expected: u64,
        /// Its length.
        found: u64,
    },
    /// A byte range that is empty or does not lie within the fragment.
    #[error("there are no bytes {start}..{end} in a fragment of {length} bytes")]
    Range {
        /// First byte asked for.
        start: u64,
        /// One past the last.
        end: u64,
        /// L.
        length: u64,
    },
    /// Other bytes than those the object was stored with: a lying node, a broken disk.
    #[error("the fragment hashes to {found} instead of {expected}")]
    Hash {
        /// `cc[index]`.
        expected: Hash,
        /// Its hash.
        found: Hash,
    },
    /// The right bytes of a wrongly encoded object: a lying or broken encoder.
    #[error(
        "the fragment's fingerprint is {found:?} instead of {expected:?}: its object was not encoded rightly"
    )]
    Fingerprint {
        /// The encoding of the fingerprints at this index.
        expected: Fingerprint,
        /// Its fingerprint.
        found: Fingerprint,
    },
}

/// A fragment that passed [`Fpcc::check`]; nothing else can be decoded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checked {
    index: usize,
    bytes: Bytes,
    code: Code,
    /// r of the FPCC, which binds the header and every hash: fragments with equal ones belong together.
    point: Point,
}

impl Checked {
    /// Which of the n fragments it is.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its L bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Its L bytes, for good.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

impl Fpcc {
    /// The FPCC of an object of `object_length` bytes and its n fragments.
    ///
    /// Panics unless these are n fragments of the length that the object's length asks for.
    /// Costs one hash of every fragment and one fingerprint of every data fragment.
    pub fn compute(codec: &Codec, hash: HashId, object_length: u64, fragments: &[&[u8]]) -> Fpcc {
        let code = codec.code();
        let length = code.fragment_length(object_length);
        assert_eq!(fragments.len(), code.n(), "fragments of code {code}");
        assert!(fragments.iter().all(|fragment| fragment.len() == length), "fragments of {length} bytes");
        let hashes = if code.m() == 1 {
            // The others are copies of it.
            debug_assert!(fragments.iter().all(|copy| copy == &fragments[0]), "copies that differ");
            vec![hash.hash(fragments[0]); code.n()].into()
        } else {
            fragments.iter().map(|fragment| hash.hash(fragment)).collect()
        };
        let mut fpcc = Fpcc::with_hashes(code, hash, length as u64, object_length, hashes);
        fpcc.fingerprints = fragments[..code.m()].iter().map(|data| fpcc.point.fingerprint(data)).collect();
        fpcc
    }

    /// All but the fingerprints.
    fn with_hashes(
        code: Code,
        hash: HashId,
        fragment_length: u64,
        object_length: u64,
        hashes: Box<[Hash]>,
    ) -> Fpcc {
        let point = Point([0; 16]);
        let fingerprints = Box::default();
        let fpcc = Fpcc { code, hash, fragment_length, object_length, hashes, fingerprints, point };
        let point = fpcc.oracle();
        Fpcc { point, ..fpcc }
    }

    /// Reads an FPCC; exactly what [`Fpcc::to_bytes`] writes is accepted.
    pub fn parse(bytes: &[u8]) -> Result<Fpcc, FpccError> {
        let (header, body) = bytes
            .split_first_chunk::<HEADER_LENGTH>()
            .ok_or(FpccError::Length { expected: HEADER_LENGTH, found: bytes.len() })?;
        let Header { code, hash, fragment_length, object_length } = Header::parse(header)?;
        let expected = Fpcc::encoded_length(code.m(), code.n());
        if bytes.len() != expected {
            return Err(FpccError::Length { expected, found: bytes.len() });
        }
        let (hashes, fingerprints) = body.split_at(Hash::LENGTH * code.n());
        let hashes = hashes.as_chunks().0.iter().map(|&bytes| Hash::from(bytes)).collect();
        let fingerprints = fingerprints.as_chunks().0.iter().map(|&bytes| Fingerprint(bytes)).collect();
        let fpcc = Fpcc::with_hashes(code, hash, fragment_length, object_length, hashes);
        Ok(Fpcc { fingerprints, ..fpcc })
    }

    /// Its encoding, drawn in docs/fpcc.md.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.oracle_input();
        self.fingerprints.iter().for_each(|fingerprint| bytes.extend_from_slice(&fingerprint.0));
        bytes
    }

    /// Bytes of the encoding for m data fragments of n.
    pub const fn encoded_length(m: usize, n: usize) -> usize {
        HEADER_LENGTH + Hash::LENGTH * n + Fingerprint::LENGTH * m
    }

    /// What names this FPCC, and through it the object's bytes. Hashes the encoding anew at every call.
    pub fn digest(&self) -> Hash {
        self.hash.hash_parts(&[DIGEST_DOMAIN, &self.to_bytes()])
    }

    /// The object's code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The hash used throughout.
    pub fn hash_id(&self) -> HashId {
        self.hash
    }

    /// L, the bytes of each fragment.
    pub fn fragment_length(&self) -> u64 {
        self.fragment_length
    }

    /// The object's bytes, without the zeros that fill up the last data fragments.
    pub fn object_length(&self) -> u64 {
        self.object_length
    }

    /// `cc[index]`, the hash of a fragment. Panics when there is no such fragment.
    pub fn fragment_hash(&self, index: usize) -> &Hash {
        &self.hashes[index]
    }

    /// Whether `fragment` is fragment `index` of this object.
    ///
    /// On success it is what was encoded, and any m such fragments decode to the same object.
    pub fn check(&self, index: usize, fragment: Bytes) -> Result<Checked, Inconsistent> {
        self.check_bytes(index, &fragment)?;
        Ok(Checked { index, bytes: fragment, code: self.code, point: self.point })
    }

    /// The same, and the tree that makes slices of it, as `check_with_tree`.
    pub fn check_for_good(
        &self,
        index: usize,
        fragment: Bytes,
    ) -> Result<(Checked, Option<Tree>), Inconsistent> {
        let tree = self.check_with_tree(index, &fragment)?;
        Ok((Checked { index, bytes: fragment, code: self.code, point: self.point }, tree))
    }

    /// The same for bytes that stay where they are.
    pub fn check_bytes(&self, index: usize, fragment: &[u8]) -> Result<(), Inconsistent> {
        self.check_length(index, fragment.len() as u64)?;
        self.check_hash(index, fragment)?;
        self.check_fingerprint(index, fragment)
    }

    /// The same, and the tree that makes slices of the fragment; the hash is computed once for both.
    ///
    /// No tree where slices need none: for another hash than BLAKE3, and for a fragment of one group.
    pub fn check_with_tree(&self, index: usize, fragment: &[u8]) -> Result<Option<Tree>, Inconsistent> {
        self.check_length(index, fragment.len() as u64)?;
        let tree = (self.hash == HashId::Blake3).then(|| slice::tree(fragment));
        let root = tree.as_ref().and_then(Tree::root);
        match root {
            Some(found) if found != self.hashes[index] => {
                return Err(Inconsistent::Hash { expected: self.hashes[index], found });
            }
            Some(_) => (),
            None => self.check_hash(index, fragment)?,
        }
        self.check_fingerprint(index, fragment)?;
        Ok(tree.filter(|_| root.is_some()))
    }

    fn check_length(&self, index: usize, found: u64) -> Result<(), Inconsistent> {
        let (count, expected) = (self.code.n(), self.fragment_length);
        if index >= count {
            return Err(Inconsistent::Index { index, count });
        }
        if found != expected {
            return Err(Inconsistent::Length { expected, found });
        }
        Ok(())
    }

    fn check_hash(&self, index: usize, fragment: &[u8]) -> Result<(), Inconsistent> {
        let expected = self.hashes[index];
        let found = self.hash.hash(fragment);
        if found != expected {
            return Err(Inconsistent::Hash { expected, found });
        }
        Ok(())
    }

    fn check_fingerprint(&self, index: usize, fragment: &[u8]) -> Result<(), Inconsistent> {
        let expected = self.expected_fingerprint(index);
        let found = self.point.fingerprint(fragment);
        if found != expected {
            return Err(Inconsistent::Fingerprint { expected, found });
        }
        Ok(())
    }

    /// The fingerprints encoded like fragments, at `index`.
    fn expected_fingerprint(&self, index: usize) -> Fingerprint {
        if let Some(fingerprint) = self.fingerprints.get(index) {
            return *fingerprint;
        }
        let mut expected = [0; Fingerprint::LENGTH];
        let data: Vec<&[u8]> = self.fingerprints.iter().map(|fingerprint| fingerprint.0.as_slice()).collect();
        CpuPath::best().linear(&codec::row(self.code, index), &data, &mut [&mut expected]);
        Fingerprint(expected)
    }

    fn oracle(&self) -> Point {
        let hash = self.hash.hash_parts(&[ORACLE_DOMAIN, &self.oracle_input()]);
        let (point, _) = hash.as_bytes().split_first_chunk().expect("a hash has more than 16 bytes");
        Point(*point)
    }

    /// Header and hashes; room for the fingerprints behind.
    fn oracle_input(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Fpcc::encoded_length(self.code.m(), self.code.n()));
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[VERSION, self.hash.id(), FINGERPRINT_ID, MATRIX_ID]);
        bytes.extend_from_slice(&(self.code.m() as u16).to_le_bytes());
        bytes.extend_from_slice(&(self.code.n() as u16).to_le_bytes());
        bytes.extend_from_slice(&self.fragment_length.to_le_bytes());
        bytes.extend_from_slice(&self.object_length.to_le_bytes());
        self.hashes.iter().for_each(|hash| bytes.extend_from_slice(hash.as_bytes()));
        bytes
    }
}

/// The first 32 bytes of an FPCC, found to agree with themselves.
struct Header {
    code: Code,
    hash: HashId,
    fragment_length: u64,
    object_length: u64,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_LENGTH]) -> Result<Header, FpccError> {
        if !bytes.starts_with(MAGIC) {
            return Err(FpccError::Magic);
        }
        let [version, hash, fingerprint, matrix] = field(bytes, 8);
        if version != VERSION {
            return Err(FpccError::Version(version));
        }
        let hash = HashId::from_id(hash).ok_or(FpccError::UnknownId { field: "hash", id: hash })?;
        require_id("fingerprint", fingerprint, FINGERPRINT_ID)?;
        require_id("matrix", matrix, MATRIX_ID)?;
        let (m, n) = (u16::from_le_bytes(field(bytes, 12)), u16::from_le_bytes(field(bytes, 14)));
        let code = code_of(m, n).map_err(|_| FpccError::Code { m, n })?;
        let (fragment, object) = (u64::from_le_bytes(field(bytes, 16)), u64::from_le_bytes(field(bytes, 24)));
        if object == 0 || fragment != object.div_ceil(u64::from(m)) {
            return Err(FpccError::ObjectLength { fragment, object });
        }
        Ok(Header { code, hash, fragment_length: fragment, object_length: object })
    }
}

fn field<const N: usize>(header: &[u8; HEADER_LENGTH], offset: usize) -> [u8; N] {
    *header[offset..].first_chunk().expect("fields lie within the header")
}

fn require_id(field: &'static str, id: u8, known: u8) -> Result<(), FpccError> {
    if id == known { Ok(()) } else { Err(FpccError::UnknownId { field, id }) }
}

fn code_of(m: u16, n: u16) -> Result<Code, CodeError> {
    Code::new(usize::from(m), usize::from(n.saturating_sub(m)))
}

/// The wanted data fragments of an object, out of m checked ones of it.
///
/// In the order of `wanted`; what is among the checked is not computed again.
pub fn decode(codec: &Codec, checked: &[Checked], wanted: &[usize]) -> Result<Vec<Bytes>, CodecError> {
    let known = |index: usize| checked.iter().find(|fragment| fragment.index == index);
    let missing = wanted.iter().filter(|&&index| known(index).is_none());
    let length = checked.first().map_or(0, |fragment| fragment.bytes.len());
    let mut rebuilt: Vec<(usize, Vec<u8>)> = missing.map(|&index| (index, vec![0; length])).collect();
    let mut slices: Vec<(usize, &mut [u8])> =
        rebuilt.iter_mut().map(|(index, bytes)| (*index, bytes.as_mut_slice())).collect();
    decode_into(codec, checked, &mut slices)?;
    let mut rebuilt = rebuilt.into_iter().map(|(_, bytes)| Bytes::from(bytes));
    let bytes_of = |&index: &usize| match known(index) {
        Some(fragment) => fragment.bytes.clone(),
        None => rebuilt.next().expect("every missing fragment was rebuilt"),
    };
    Ok(wanted.iter().map(bytes_of).collect())
}

/// The same into memory of the caller's, for fragments that are not among the checked. Nothing is written when an error is
/// returned.
pub fn decode_into(
    codec: &Codec,
    checked: &[Checked],
    missing: &mut [(usize, &mut [u8])],
) -> Result<(), CodecError> {
    require_one_object(codec, checked)?;
    let present: Vec<(usize, &[u8])> =
        checked.iter().map(|fragment| (fragment.index, fragment.bytes.as_ref())).collect();
    codec.rebuild(&present, missing)
}

fn require_one_object(codec: &Codec, checked: &[Checked]) -> Result<(), CodecError> {
    let Some(first) = checked.first() else { return Ok(()) };
    let odd = checked.iter().find(|fragment| fragment.code != codec.code() || fragment.point != first.point);
    odd.map_or(Ok(()), |fragment| Err(CodecError::OtherObject { index: fragment.index }))
}

#[cfg(test)]
mod tests {
    use avidfs_tests::fuzz::fuzz;

    use super::*;

    struct Object {
        fragments: Vec<Bytes>,
        fpcc: Fpcc,
    }

    fn object(code: &str, hash: HashId, length: usize) -> Object {
        let codec = Codec::of(code.parse().unwrap());
        let bytes: Vec<u8> = (0..length).map(|at| (at * at % 253) as u8).collect();
        let mut fragments = codec::split(codec.code(), &bytes.into());
        let parity = codec.parity_of(&fragments);
        fragments.extend(parity.into_iter().map(Bytes::from));
        let fpcc = compute(&codec, hash, length, &fragments);
        Object { fragments, fpcc }
    }

    fn compute(codec: &Codec, hash: HashId, length: usize, fragments: &[Bytes]) -> Fpcc {
        let slices: Vec<&[u8]> = fragments.iter().map(AsRef::as_ref).collect();
        Fpcc::compute(codec, hash, length as u64, &slices)
    }

    fn checked(object: &Object, indices: &[usize]) -> Vec<Checked> {
        indices.iter().map(|&i| object.fpcc.check(i, object.fragments[i].clone()).unwrap()).collect()
    }

    #[test]
    fn every_fragment_of_an_object_is_consistent_at_its_own_index_only() {
        for hash in [HashId::Blake3, HashId::Sha256] {
            for code in ["1+1", "3+2", "4+2", "6+3", "10+4", "16+8", "200+55"] {
                let object = object(code, hash, 5000);
                for (i, fragment) in object.fragments.iter().enumerate() {
                    assert_eq!(object.fpcc.check_bytes(i, fragment), Ok(()), "{code} {i}");
                    let elsewhere = object.fpcc.check_bytes((i + 1) % object.fragments.len(), fragment);
                    let same = object.fragments[(i + 1) % object.fragments.len()] == fragment;
                    assert_eq!(elsewhere.is_ok(), same, "{code} {i}");
                }
            }
        }
    }

    #[test]
    fn a_check_that_yields_a_tree_agrees_with_one_that_does_not() {
        for (hash, length) in [(HashId::Blake3, 5000), (HashId::Blake3, 200_000), (HashId::Sha256, 200_000)] {
            let object = object("3+2", hash, length);
            let fragment = &object.fragments[1];
            let expected = (hash == HashId::Blake3 && length > 100_000).then(|| slice::tree(fragment));
            assert_eq!(object.fpcc.check_with_tree(1, fragment), Ok(expected));
            let mut flipped = fragment.to_vec();
            flipped[17] ^= 1;
            let wrong = [(1, &flipped[..]), (0, &fragment[..]), (5, &fragment[..]), (1, &fragment[1..])];
            for (index, bytes) in wrong {
                let found = object.fpcc.check_with_tree(index, bytes).map(drop);
                assert!(found.is_err() && found == object.fpcc.check_bytes(index, bytes), "{index}");
            }
        }
    }

    #[test]
    fn any_m_checked_fragments_decode_to_the_object() {
        let object = object("3+2", HashId::Blake3, 10_000);
        let codec = Codec::of(object.fpcc.code());
        for indices in [[0, 1, 2], [2, 3, 4], [4, 0, 3], [1, 4, 2]] {
            let decoded = decode(&codec, &checked(&object, &indices), &[0, 1, 2]).unwrap();
            assert_eq!(decoded, object.fragments[..3]);
        }
        let decoded = decode(&codec, &checked(&object, &[2, 3, 4]), &[1]).unwrap();
        assert_eq!(decoded, [object.fragments[1].clone()]);
    }

    #[test]
    fn too_few_or_repeated_fragments_are_not_decoded() {
        let object = object("3+2", HashId::Blake3, 100);
        let codec = Codec::of(object.fpcc.code());
        let decode = |indices: &[usize]| decode(&codec, &checked(&object, indices), &[0]);
        assert!(matches!(decode(&[]), Err(CodecError::TooFew { present: 0, .. })));
        assert!(matches!(decode(&[0, 4]), Err(CodecError::TooFew { present: 2, .. })));
        assert!(matches!(decode(&[1, 4, 4]), Err(CodecError::Twice { index: 4 })));
    }

    #[test]
    fn fragments_of_two_objects_are_not_decoded_together() {
        let (one, other) = (object("3+2", HashId::Blake3, 100), object("3+2", HashId::Blake3, 99));
        let codec = Codec::of(one.fpcc.code());
        let mut mixed = checked(&one, &[0, 1]);
        mixed.extend(checked(&other, &[3]));
        assert_eq!(decode(&codec, &mixed, &[2]), Err(CodecError::OtherObject { index: 3 }));
        let other_code = Codec::of("2+3".parse().unwrap());
        assert!(matches!(decode(&other_code, &mixed, &[2]), Err(CodecError::OtherObject { .. })));
    }

    /// A lying encoder puts garbage into a parity fragment and its true hash into the FPCC: the hash says nothing.
    #[test]
    fn misencoded_parity_with_a_correct_hash_is_refused() {
        let Object { mut fragments, fpcc } = object("3+2", HashId::Blake3, 1000);
        let mut garbage = fragments[4].to_vec();
        garbage[77] ^= 0x10;
        fragments[4] = garbage.into();
        let lie = compute(&Codec::of(fpcc.code()), HashId::Blake3, 1000, &fragments);
        assert!(matches!(lie.check_bytes(4, &fragments[4]), Err(Inconsistent::Fingerprint { .. })));
        assert_eq!(lie.check_bytes(3, &fragments[3]), Ok(()), "the others are still what was encoded");
    }

    #[test]
    fn every_hash_and_header_field_moves_the_point() {
        let fpcc = object("3+2", HashId::Blake3, 1000).fpcc;
        for i in 0..5 {
            let mut other = fpcc.clone();
            other.hashes[i] = HashId::Blake3.hash(b"something else");
            assert_ne!(other.oracle(), fpcc.point, "cc[{i}]");
        }
        let other_header = [
            Fpcc { object_length: 999, ..fpcc.clone() },
            Fpcc { fragment_length: 335, ..fpcc.clone() },
            Fpcc { code: "2+3".parse().unwrap(), ..fpcc.clone() },
            Fpcc { hash: HashId::Sha256, ..fpcc.clone() },
        ];
        for other in other_header {
            assert_ne!(other.oracle(), fpcc.point);
        }
    }

    #[test]
    fn a_fragment_with_one_flipped_bit_is_refused() {
        let object = object("3+2", HashId::Blake3, 300);
        for (i, fragment) in object.fragments.iter().enumerate() {
            for bit in 0..8 * fragment.len() {
                let mut other = fragment.to_vec();
                other[bit / 8] ^= 1 << (bit % 8);
                let refusal = object.fpcc.check_bytes(i, &other);
                assert!(matches!(refusal, Err(Inconsistent::Hash { .. })), "fragment {i} bit {bit}");
            }
        }
    }

    #[test]
    fn a_fragment_of_another_length_or_index_is_refused() {
        let object = object("3+2", HashId::Blake3, 300);
        let longer = [object.fragments[0].as_ref(), &[0]].concat();
        let shorter = &longer[..99];
        let expected = 100;
        let refusal = object.fpcc.check_bytes(0, &longer);
        assert_eq!(refusal, Err(Inconsistent::Length { expected, found: 101 }));
        assert_eq!(object.fpcc.check_bytes(0, shorter), Err(Inconsistent::Length { expected, found: 99 }));
        let refusal = object.fpcc.check_bytes(5, &object.fragments[0]);
        assert_eq!(refusal, Err(Inconsistent::Index { index: 5, count: 5 }));
    }

    /// A changed FPCC either does not parse, or no longer fits the fragments; its digest is another in any case.
    #[test]
    fn an_fpcc_with_one_flipped_bit_fits_no_longer() {
        let object = object("3+2", HashId::Blake3, 300);
        let bytes = object.fpcc.to_bytes();
        for bit in 0..8 * bytes.len() {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            let Ok(fpcc) = Fpcc::parse(&other) else { continue };
            assert_ne!(fpcc.digest(), object.fpcc.digest(), "bit {bit}");
            let refused = |(i, fragment): (usize, &Bytes)| fpcc.check_bytes(i, fragment).is_err();
            assert!(object.fragments.iter().enumerate().any(refused), "bit {bit}");
        }
    }

    #[test]
    fn an_encoding_is_read_back_as_it_was() {
        for (code, hash) in [("3+2", HashId::Blake3), ("1+1", HashId::Sha256), ("200+55", HashId::Blake3)] {
            let fpcc = object(code, hash, 777).fpcc;
            let bytes = fpcc.to_bytes();
            assert_eq!(bytes.len(), Fpcc::encoded_length(fpcc.code().m(), fpcc.code().n()));
            assert_eq!(Fpcc::parse(&bytes), Ok(fpcc));
        }
    }

    /// The bytes of docs/fpcc.md, so that no change of the code changes the format unseen.
    #[test]
    fn the_format_is_the_one_drawn() {
        let fpcc = object("3+2", HashId::Blake3, 300).fpcc;
        let bytes = fpcc.to_bytes();
        assert_eq!(bytes.len(), 240);
        assert_eq!(bytes[..16], *b"AVIDFPCC\x01\x01\x01\x01\x03\x00\x05\x00");
        assert_eq!(bytes[16..32], [[100, 0, 0, 0, 0, 0, 0, 0], [44, 1, 0, 0, 0, 0, 0, 0]].concat());
        assert_eq!(bytes[32..64], *fpcc.fragment_hash(0).as_bytes());
        assert_eq!(bytes[192..208], fpcc.fingerprints[0].0);
        let oracle = HashId::Blake3.hash_parts(&[b"avidfs fpcc oracle v1", &bytes[..192]]);
        assert_eq!(fpcc.point.0, oracle.as_bytes()[..16]);
        assert_eq!(fpcc.digest(), HashId::Blake3.hash_parts(&[b"avidfs fpcc digest v1", &bytes]));
    }

    #[test]
    fn each_wrong_header_field_is_named() {
        let bytes = object("3+2", HashId::Blake3, 300).fpcc.to_bytes();
        let parse_with = |offset: usize, value: u8| {
            let mut other = bytes.clone();
            other[offset] = value;
            Fpcc::parse(&other).unwrap_err()
        };
        assert_eq!(parse_with(0, b'B'), FpccError::Magic);
        assert_eq!(parse_with(8, 2), FpccError::Version(2));
        assert_eq!(parse_with(9, 3), FpccError::UnknownId { field: "hash", id: 3 });
        assert_eq!(parse_with(10, 0), FpccError::UnknownId { field: "fingerprint", id: 0 });
        assert_eq!(parse_with(11, 2), FpccError::UnknownId { field: "matrix", id: 2 });
        assert_eq!(parse_with(12, 5), FpccError::Code { m: 5, n: 5 });
        assert_eq!(parse_with(15, 1), FpccError::Code { m: 3, n: 261 });
        assert_eq!(parse_with(16, 101), FpccError::ObjectLength { fragment: 101, object: 300 });
        assert_eq!(parse_with(24, 45), FpccError::ObjectLength { fragment: 100, object: 301 });
        assert_eq!(parse_with(14, 6), FpccError::Length { expected: 272, found: 240 });
        assert_eq!(Fpcc::parse(&bytes[..239]), Err(FpccError::Length { expected: 240, found: 239 }));
        assert_eq!(Fpcc::parse(b""), Err(FpccError::Length { expected: 32, found: 0 }));
    }

    #[test]
    fn an_object_of_length_zero_is_refused() {
        let mut bytes = object("3+2", HashId::Blake3, 300).fpcc.to_bytes();
        bytes[16..32].fill(0);
        assert_eq!(Fpcc::parse(&bytes), Err(FpccError::ObjectLength { fragment: 0, object: 0 }));
    }

    #[test]
    fn whatever_the_bytes_an_fpcc_is_refused_or_written_back_the_same() {
        let valid = [("1+1", 300, HashId::Blake3), ("3+2", 300, HashId::Sha256), ("16+8", 1, HashId::Blake3)];
        let valid = valid.map(|(code, length, hash)| object(code, hash, length).fpcc.to_bytes());
        let parse = |bytes: &[u8]| Fpcc::parse(bytes).ok();
        // A hasher takes two thousand.
        fuzz(
            "fpcc",
            &valid,
            |length| 4 * length + 4096,
            parse,
            |fpcc, bytes| {
                assert_eq!(fpcc.to_bytes(), bytes);
                let last = fpcc.code().n() - 1;
                let _ = (fpcc.check_bytes(last, bytes), fpcc.check_with_tree(last, bytes), fpcc.digest());
            },
        );
    }
}
