//! The volume's key: who has it may write the journal. As text it is one line, `avidfs-key-1` and 64 hex digits; the
//! public half alone is `avidfs-public-1` and 64 hex digits.

use ed25519_dalek::{SigningKey, VerifyingKey};
use rand::TryRngCore;
use rand::rngs::OsRng;

use crate::error::{Error, Result};

const PRIVATE: &str = "avidfs-key-1";
const PUBLIC: &str = "avidfs-public-1";

/// The key of a volume, or only its public half, with which nothing can be written.
#[derive(Clone, Debug)]
pub enum VolumeKey {
    /// All of it.
    Private(SigningKey),
    /// What others may know.
    Public(VerifyingKey),
}

impl VolumeKey {
    /// A new one.
    pub fn random() -> VolumeKey {
        let mut seed = [0; 32];
        OsRng.try_fill_bytes(&mut seed).expect("the kernel gives random bytes");
        VolumeKey::Private(SigningKey::from_bytes(&seed))
    }

    /// Its public half.
    pub fn public(&self) -> VerifyingKey {
        match self {
            VolumeKey::Private(key) => key.verifying_key(),
            VolumeKey::Public(key) => *key,
        }
    }

    /// As the line it is kept and exported as.
    pub fn to_text(&self) -> String {
        match self {
            VolumeKey::Private(key) => format!("{PRIVATE} {}\n", hex(key.as_bytes())),
            VolumeKey::Public(key) => format!("{PUBLIC} {}\n", hex(key.as_bytes())),
        }
    }

    /// From such a line.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn from_text(text: &str) -> Result<VolumeKey> {
        const WRONG: Error =
            Error::Invalid("this is not a volume key: one line, avidfs-key-1 and 64 hex digits");
        let (kind, digits) = text.trim().split_once(' ').ok_or(WRONG)?;
        let bytes = unhex(digits).ok_or(WRONG)?;
        match kind {
            PRIVATE => Ok(VolumeKey::Private(SigningKey::from_bytes(&bytes))),
            PUBLIC => VerifyingKey::from_bytes(&bytes).map(VolumeKey::Public).map_err(|_| WRONG),
            _ => Err(WRONG),
        }
    }
}

/// The digits by which people compare public keys.
pub fn fingerprint(public: &VerifyingKey) -> String {
    hex(public.as_bytes())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(digits: &str) -> Option<[u8; 32]> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
        u8::from_str_radix(pair, 16).ok()
    });
    pairs.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_from_its_line_and_anything_else_is_refused() {
        let key = VolumeKey::random();
        let again = VolumeKey::from_text(&key.to_text()).unwrap();
        assert_eq!(again.to_text(), key.to_text());
        let public = VolumeKey::Public(key.public());
        assert_eq!(VolumeKey::from_text(&public.to_text()).unwrap().public(), key.public());
        let line = key.to_text();
        for wrong in ["", "avidfs-key-1", &line[..line.len() - 3], &line.replace("key-1", "key-2")] {
            assert!(VolumeKey::from_text(wrong).is_err(), "{wrong:?}");
        }
    }
}
