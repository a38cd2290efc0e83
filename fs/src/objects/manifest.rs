//! What an object is, in the words its owner signs: docs/objects.md, "A manifest, version 1".
//! Bytes in, values out, and nothing believed that the owner did not sign.

use bytes::Bytes;
use common::hash::{Hash, HashId};
use common::wire::{OwnerId, Signature, TOMBSTONE_BYTES};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};

const MAGIC: &[u8; 4] = b"AVO1";
const DOMAIN: &[u8] = b"avidfs manifest 1\0";
const WHOLE: u8 = 1;
const IN_PARTS: u8 = 2;
const DELETED: u8 = 3;

/// Bytes that are signed as they stand.
const HEAD: usize = 32;
const HASH_AT: usize = HEAD + 64;
const BODY_AT: usize = HASH_AT + Hash::LENGTH;

// A tombstone ends before the hash; no other manifest does.
const _: () = assert!(TOMBSTONE_BYTES == HASH_AT as u64);

/// Most bytes in one part, and in what follows the hash: it is read as a whole.
pub const MAX_PART: u32 = 16 << 20;
/// Most parts of an object, so that their digests are no more than the longest part.
pub const MAX_PARTS: u32 = MAX_PART / Hash::LENGTH as u32;

/// What is agreed on under a key and a version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// When it was put, in milliseconds since 1970.
    pub put_ms: u64,
    /// What is there.
    pub content: Content,
}

/// What a manifest says is under its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// An object of at most one part, as it is.
    Whole(Bytes),
    /// An object that lies in parts of its own.
    Parts(Parts),
    /// Nothing any more.
    Deleted,
}

/// The parts of an object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parts {
    /// Bytes in all of them together; more than one part's.
    pub length: u64,
    /// Bytes in each but the last.
    pub part_bytes: u32,
    /// BLAKE3 of the object.
    pub hash: Hash,
    /// The digest of each part's FPCC.
    pub digests: Vec<Hash>,
}

/// Under what a manifest stands, and whose it is; signed with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place<'a> {
    /// Who signed it.
    pub owner: OwnerId,
    /// The key.
    pub key: &'a str,
    /// The version.
    pub version: u64,
}

/// Why bytes are no manifest.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotAManifest {
    /// It does not begin as one.
    #[error("it is not a manifest")]
    Magic,
    /// Shorter or longer than its head says.
    #[error("it is cut short or too long")]
    Length,
    /// A kind that is not known, or what this kind does not have.
    #[error("its head contradicts itself")]
    Head,
    /// The object in it is not the one its hash is of.
    #[error("the object in it is not the one that was put")]
    Hash,
    /// Somebody else's, or of another key or version.
    #[error("its owner did not sign it")]
    Signature,
}

impl Manifest {
    /// Bytes of the object.
    pub fn length(&self) -> u64 {
        match &self.content {
            Content::Whole(object) => object.len() as u64,
            Content::Parts(parts) => parts.length,
            Content::Deleted => 0,
        }
    }

    /// As nodes agree on it, signed. The secret key must be the owner's.
    pub fn sign(&self, place: &Place<'_>, secret: &SigningKey) -> Vec<u8> {
        let (head, hash, digests) = (self.head(), self.hash(), self.digests());
        let signature = secret.sign(&statement(place, &head, hash.as_ref(), digests));
        let mut bytes = Vec::with_capacity(BODY_AT + self.length().min(MAX_PART.into()) as usize);
        bytes.extend_from_slice(&head);
        bytes.extend_from_slice(&signature.to_bytes());
        bytes.extend(hash.iter().flat_map(|hash| hash.as_bytes()));
        if let Content::Whole(object) = &self.content {
            bytes.extend_from_slice(object);
        }
        bytes.extend(digests.iter().flat_map(|digest| digest.as_bytes()));
        bytes
    }

    /// Take a manifest apart, and believe it if it is the owner's of this key and version.
    ///
    /// # Errors
    /// It is something else, or was not signed for this place.
    pub fn check(bytes: &Bytes, place: &Place<'_>) -> Result<Manifest, NotAManifest> {
        let (manifest, signature) = Manifest::parse(bytes)?;
        let (head, hash) = (manifest.head(), manifest.hash());
        let statement = statement(place, &head, hash.as_ref(), manifest.digests());
        let public = VerifyingKey::from_bytes(&place.owner.0).map_err(|_| NotAManifest::Signature)?;
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        public.verify_strict(&statement, &signature).map_err(|_| NotAManifest::Signature)?;
        Ok(manifest)
    }

    /// What bytes say, whoever wrote them: there is one encoding of a value, and anything else is refused.
    fn parse(bytes: &Bytes) -> Result<(Manifest, Signature), NotAManifest> {
        let (head, rest) = bytes.split_first_chunk::<HEAD>().ok_or(NotAManifest::Length)?;
        let head = Head::parse(head)?;
        let (signature, rest) = rest.split_first_chunk::<64>().ok_or(NotAManifest::Length)?;
        let content = match (head.kind, rest.split_first_chunk::<{ Hash::LENGTH }>()) {
            (DELETED, None) if rest.is_empty() => head.deleted()?,
            (WHOLE, Some((hash, _))) => head.whole(Hash::from(*hash), bytes.slice(BODY_AT..))?,
            (IN_PARTS, Some((hash, digests))) => head.in_parts(Hash::from(*hash), digests)?,
            _ => return Err(NotAManifest::Length),
        };
        Ok((Manifest { put_ms: head.put_ms, content }, Signature(*signature)))
    }

    fn head(&self) -> [u8; HEAD] {
        let (kind, part_bytes, count) = match &self.content {
            Content::Whole(_) => (WHOLE, 0, 0),
            Content::Parts(parts) => (IN_PARTS, parts.part_bytes, parts.digests.len() as u32),
            Content::Deleted => (DELETED, 0, 0),
        };
        let mut head = [0; HEAD];
        head[..4].copy_from_slice(MAGIC);
        head[4] = kind;
        head[8..16].copy_from_slice(&self.length().to_le_bytes());
        head[16..24].copy_from_slice(&self.put_ms.to_le_bytes());
        head[24..28].copy_from_slice(&part_bytes.to_le_bytes());
        head[28..].copy_from_slice(&count.to_le_bytes());
        head
    }

    fn hash(&self) -> Option<Hash> {
        match &self.content {
            Content::Whole(object) => Some(HashId::Blake3.hash(object)),
            Content::Parts(parts) => Some(parts.hash),
            Content::Deleted => None,
        }
    }

    fn digests(&self) -> &[Hash] {
        match &self.content {
            Content::Parts(parts) => &parts.digests,
            Content::Whole(_) | Content::Deleted => &[],
        }
    }
}

impl Parts {
    /// Bytes of one of them, counted from 0.
    pub fn bytes_of(&self, part: u32) -> u64 {
        let before = u64::from(part) * u64::from(self.part_bytes);
        self.length.saturating_sub(before).min(self.part_bytes.into())
    }
}

/// The first 32 bytes.
struct Head {
    kind: u8,
    length: u64,
    put_ms: u64,
    part_bytes: u32,
    count: u32,
}

impl Head {
    fn parse(bytes: &[u8; HEAD]) -> Result<Head, NotAManifest> {
        if !bytes.starts_with(MAGIC) {
            return Err(NotAManifest::Magic);
        }
        if bytes[5..8] != [0; 3] {
            return Err(NotAManifest::Head);
        }
        Ok(Head {
            kind: bytes[4],
            length: u64::from_le_bytes(field(bytes, 8)),
            put_ms: u64::from_le_bytes(field(bytes, 16)),
            part_bytes: u32::from_le_bytes(field(bytes, 24)),
            count: u32::from_le_bytes(field(bytes, 28)),
        })
    }

    fn deleted(&self) -> Result<Content, NotAManifest> {
        match (self.length, self.part_bytes, self.count) {
            (0, 0, 0) => Ok(Content::Deleted),
            _ => Err(NotAManifest::Head),
        }
    }

    fn whole(&self, hash: Hash, object: Bytes) -> Result<Content, NotAManifest> {
        if (self.part_bytes, self.count) != (0, 0) || self.length > MAX_PART.into() {
            return Err(NotAManifest::Head);
        }
        if object.len() as u64 != self.length {
            return Err(NotAManifest::Length);
        }
        match HashId::Blake3.hash(&object) == hash {
            true => Ok(Content::Whole(object)),
            false => Err(NotAManifest::Hash),
        }
    }

    fn in_parts(&self, hash: Hash, digests: &[u8]) -> Result<Content, NotAManifest> {
        let (length, part_bytes) = (self.length, self.part_bytes);
        let fits = (1..=MAX_PART).contains(&part_bytes) && (2..=MAX_PARTS).contains(&self.count);
        if !fits || length.div_ceil(part_bytes.into()) != u64::from(self.count) {
            return Err(NotAManifest::Head);
        }
        let (digests, rest) = digests.as_chunks::<{ Hash::LENGTH }>();
        if !rest.is_empty() || digests.len() != self.count as usize {
            return Err(NotAManifest::Length);
        }
        let digests = digests.iter().map(|&digest| Hash::from(digest)).collect();
        Ok(Content::Parts(Parts { length, part_bytes, hash, digests }))
    }
}

fn field<const N: usize>(head: &[u8; HEAD], offset: usize) -> [u8; N] {
    *head[offset..].first_chunk().expect("fields lie within the head")
}

/// What the owner signs.
fn statement(place: &Place<'_>, head: &[u8; HEAD], hash: Option<&Hash>, digests: &[Hash]) -> Vec<u8> {
    let mut text = DOMAIN.to_vec();
    text.extend_from_slice(&place.owner.0);
    text.extend_from_slice(&place.version.to_le_bytes());
    text.extend_from_slice(&(place.key.len() as u16).to_le_bytes());
    text.extend_from_slice(place.key.as_bytes());
    text.extend_from_slice(head);
    text.extend(hash.into_iter().chain(digests).flat_map(|hash| hash.as_bytes()));
    text
}

#[cfg(test)]
mod tests {
    use avidfs_tests::fuzz::fuzz;

    use super::*;

    fn secret() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn place(key: &str, version: u64) -> Place<'_> {
        Place { owner: OwnerId(secret().verifying_key().to_bytes()), key, version }
    }

    fn of(content: Content) -> Manifest {
        Manifest { put_ms: 1_700_000_000_123, content }
    }

    fn parts(length: u64, part_bytes: u32) -> Content {
        let count = length.div_ceil(part_bytes.into()) as u8;
        let digests = (0..count).map(|part| Hash::from([part; 32])).collect();
        Content::Parts(Parts { length, part_bytes, hash: Hash::from([9; 32]), digests })
    }

    fn every_kind() -> [Manifest; 4] {
        let whole = |object: &'static [u8]| of(Content::Whole(Bytes::from_static(object)));
        [whole(b"an object"), whole(b""), of(parts(250, 100)), of(Content::Deleted)]
    }

    fn signed(manifest: &Manifest) -> Bytes {
        manifest.sign(&place("a/b", 3), &secret()).into()
    }

    #[test]
    fn every_kind_comes_back_as_it_was_signed() {
        for manifest in every_kind() {
            assert_eq!(Manifest::check(&signed(&manifest), &place("a/b", 3)).unwrap(), manifest);
        }
    }

    #[test]
    fn the_bytes_are_those_that_are_drawn() {
        let object = b"an object";
        let bytes = signed(&of(Content::Whole(Bytes::from_static(object))));
        assert_eq!(&bytes[..8], b"AVO1\x01\0\0\0");
        assert_eq!(bytes[8..16], 9u64.to_le_bytes());
        assert_eq!(bytes[16..24], 1_700_000_000_123u64.to_le_bytes());
        assert_eq!(bytes[24..32], [0; 8]);
        assert_eq!(bytes[96..128], *blake3::hash(object).as_bytes());
        assert_eq!(&bytes[128..], object);

        let bytes = signed(&of(parts(250, 100)));
        assert_eq!((bytes[4], bytes.len()), (2, 128 + 3 * 32));
        assert_eq!((&bytes[24..28], &bytes[28..32]), (&[100, 0, 0, 0][..], &[3, 0, 0, 0][..]));
        assert_eq!((&bytes[96..128], &bytes[192..]), (&[9; 32][..], &[2; 32][..]));

        let bytes = signed(&of(Content::Deleted));
        assert_eq!((bytes[4], bytes.len() as u64), (3, TOMBSTONE_BYTES));
    }

    #[test]
    fn what_is_signed_is_the_statement_that_is_drawn() {
        let bytes = signed(&of(parts(250, 100)));
        let mut text = b"avidfs manifest 1\0".to_vec();
        text.extend_from_slice(secret().verifying_key().as_bytes());
        text.extend_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0]);
        text.extend_from_slice(b"\x03\0a/b");
        text.extend_from_slice(&bytes[..32]);
        text.extend_from_slice(&bytes[96..]);
        assert_eq!(bytes[32..96], secret().sign(&text).to_bytes());
    }

    #[test]
    fn any_other_byte_key_version_or_owner_is_refused() {
        for manifest in every_kind() {
            let bytes = signed(&manifest);
            for at in 0..bytes.len() {
                let mut changed = bytes.to_vec();
                changed[at] ^= 1;
                assert!(Manifest::check(&changed.into(), &place("a/b", 3)).is_err(), "byte {at}");
                assert!(Manifest::check(&bytes.slice(..at), &place("a/b", 3)).is_err(), "{at} bytes");
            }
            let other = SigningKey::from_bytes(&[8; 32]);
            let theirs = manifest.sign(&place("a/b", 3), &other).into();
            for (bytes, place) in
                [(&bytes, place("a/c", 3)), (&bytes, place("a/b", 4)), (&theirs, place("a/b", 3))]
            {
                assert_eq!(Manifest::check(bytes, &place), Err(NotAManifest::Signature));
            }
        }
    }

    #[test]
    fn parts_that_do_not_make_the_object_are_refused() {
        for (length, part_bytes, count) in
            [(100, 100, 1), (250, 100, 2), (250, 100, 4), (250, 0, 3), (1 << 30, MAX_PART + 1, 64)]
        {
            let digests = vec![Hash::from([1; 32]); count];
            let parts = Parts { length, part_bytes, hash: Hash::from([9; 32]), digests };
            let bytes = signed(&of(Content::Parts(parts)));
            let checked = Manifest::check(&bytes, &place("a/b", 3));
            assert_eq!(checked, Err(NotAManifest::Head), "{length} {part_bytes} {count}");
        }
        let Content::Parts(parts) = parts(250, 100) else { panic!("parts") };
        assert_eq!([0, 1, 2, 3].map(|part| parts.bytes_of(part)), [100, 100, 50, 0]);
    }

    #[test]
    fn whatever_the_bytes_a_manifest_is_refused_or_comes_back() {
        let valid = every_kind().map(|manifest| signed(&manifest).to_vec());
        let parse = |bytes: &[u8]| Manifest::parse(&Bytes::copy_from_slice(bytes)).ok();
        fuzz(
            "manifest",
            &valid,
            |length| 4 * length + 4096,
            parse,
            |(manifest, signature), bytes| {
                let mut again = signed(&manifest).to_vec();
                again[32..96].copy_from_slice(&signature.0);
                assert_eq!(again, bytes);
            },
        );
    }
}
