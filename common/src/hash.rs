//! The two hashes a volume may use, and their 32-byte values.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest;

/// Which hash a volume uses; the number is its id in every format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum HashId {
    /// BLAKE3, the default: fast, and its tree lets a range of a fragment be verified.
    #[default]
    Blake3 = 1,
    /// SHA-256, where a rule asks for it.
    Sha256 = 2,
}

/// A 32-byte hash. Written as 64 lower-case hexadecimal digits, also in serde.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash([u8; 32]);

/// A hash under way, for input that comes in pieces.
#[derive(Clone)]
pub enum Hasher {
    /// BLAKE3; boxed, as its state is near 2 KiB.
    Blake3(Box<blake3::Hasher>),
    /// SHA-256.
    Sha256(sha2::Sha256),
}

/// A hash's name that is not known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("hash {0:?}: expected blake3 or sha256")]
pub struct UnknownHash(String);

/// A text that is not a hash.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a hash of 64 hexadecimal digits")]
pub struct NotAHash(String);

impl HashId {
    /// The hash with this id in a format.
    pub fn from_id(id: u8) -> Option<HashId> {
        [HashId::Blake3, HashId::Sha256].into_iter().find(|hash| hash.id() == id)
    }

    /// Its id in every format.
    pub fn id(self) -> u8 {
        self as u8
    }

    /// Its name: `blake3` or `sha256`.
    pub fn name(self) -> &'static str {
        match self {
            HashId::Blake3 => "blake3",
            HashId::Sha256 => "sha256",
        }
    }

    /// The hash of `bytes`.
    pub fn hash(self, bytes: &[u8]) -> Hash {
        match self {
            HashId::Blake3 => Hash(*blake3::hash(bytes).as_bytes()),
            HashId::Sha256 => Hash(sha2::Sha256::digest(bytes).into()),
        }
    }

    /// The hash of `parts` one after the other; their borders do not count.
    pub fn hash_parts(self, parts: &[&[u8]]) -> Hash {
        let mut hasher = self.hasher();
        for part in parts {
            hasher.update(part);
        }
        hasher.finish()
    }

    /// Begins a hash of input that comes in pieces.
    pub fn hasher(self) -> Hasher {
        match self {
            HashId::Blake3 => Hasher::Blake3(Box::default()),
            HashId::Sha256 => Hasher::Sha256(sha2::Sha256::new()),
        }
    }
}

impl Hasher {
    /// Takes in the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Blake3(hasher) => {
                hasher.update(bytes);
            }
            Hasher::Sha256(hasher) => hasher.update(bytes),
        }
    }

    /// The hash of everything taken in.
    pub fn finish(self) -> Hash {
        match self {
            Hasher::Blake3(hasher) => Hash(*hasher.finalize().as_bytes()),
            Hasher::Sha256(hasher) => Hash(hasher.finalize().into()),
        }
    }
}

impl fmt::Display for HashId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HashId {
    type Err = UnknownHash;

    fn from_str(name: &str) -> Result<HashId, UnknownHash> {
        let known = [HashId::Blake3, HashId::Sha256].into_iter().find(|hash| hash.name() == name);
        known.ok_or_else(|| UnknownHash(name.to_owned()))
    }
}

impl Serialize for HashId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for HashId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<HashId, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

impl Hash {
    /// Length in bytes.
    pub const LENGTH: usize = 32;

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Hash {
    fn from(bytes: [u8; 32]) -> Hash {
        Hash(bytes)
    }
}

impl AsRef<[u8]> for Hash {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = NotAHash;

    fn from_str(text: &str) -> Result<Hash, NotAHash> {
        hex(text).map(Hash).ok_or_else(|| NotAHash(text.to_owned()))
    }
}

/// Lower-case digits only, so that a hash has one spelling.
fn hex(text: &str) -> Option<[u8; 32]> {
    let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Hash, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash of nothing, as published with each algorithm.
    #[test]
    fn both_hashes_are_the_published_ones() {
        let empty = [
            (HashId::Blake3, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
            (HashId::Sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ];
        for (id, hash) in empty {
            assert_eq!(id.hash(b"").to_string(), hash);
            assert_eq!(hash.parse(), Ok(id.hash(b"")));
        }
    }

    #[test]
    fn parts_hash_like_the_whole() {
        for id in [HashId::Blake3, HashId::Sha256] {
            assert_eq!(id.hash_parts(&[b"ab", b"", b"c"]), id.hash(b"abc"));
        }
    }

    #[test]
    fn a_hash_name_and_id_lead_back_to_it() {
        for id in [HashId::Blake3, HashId::Sha256] {
            assert_eq!(id.name().parse(), Ok(id));
            assert_eq!(HashId::from_id(id.id()), Some(id));
        }
        assert!("md5".parse::<HashId>().is_err());
        assert_eq!(HashId::from_id(0), None);
    }

    #[test]
    fn a_hash_has_one_spelling() {
        let spelling = HashId::Blake3.hash(b"x").to_string();
        assert!(spelling.to_uppercase().parse::<Hash>().is_err());
        assert!(spelling[1..].parse::<Hash>().is_err());
        assert!(format!("{}g", &spelling[1..]).parse::<Hash>().is_err());
    }
}
