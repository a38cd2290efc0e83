//! How two nodes know each other's words: by a key that they alone can compute, each from its own secret key and the
//! other's public one.

use common::hash::Hash;
use common::wire::{Mac, NodeId, NodeKey, words_statement};
use ed25519_dalek::{SigningKey, VerifyingKey};

/// What the key of a pair is derived for.
const CONTEXT: &str = "avidfs 2026 words between two nodes of a pool";

/// The key of two nodes under one list of members.
pub struct Pair([u8; 32]);

impl Pair {
    /// Diffie and Hellman's secret of the two nodes' keys (RFC 7748, of Ed25519 keys as points of Curve25519), derived for
    /// these members. None if the other's key is no point, or one that gives everyone the same secret.
    pub fn of(own: &SigningKey, peer: &NodeKey, members: Hash) -> Option<Pair> {
        let peer = VerifyingKey::from_bytes(&peer.0).ok().filter(|peer| !peer.is_weak())?;
        let secret = peer.to_montgomery() * own.to_scalar();
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(secret.as_bytes());
        hasher.update(members.as_bytes());
        Some(Pair(*hasher.finalize().as_bytes()))
    }

    /// The code of words from one of the two to the other: BLAKE3, keyed.
    pub fn mac(&self, from: NodeId, to: NodeId, body: &[u8]) -> Mac {
        Mac(*blake3::keyed_hash(&self.0, &words_statement(from, to, body)).as_bytes())
    }

    /// Whether that is their code. How long it takes says nothing about it.
    pub fn fits(&self, from: NodeId, to: NodeId, body: &[u8], mac: Mac) -> bool {
        blake3::keyed_hash(&self.0, &words_statement(from, to, body)) == blake3::Hash::from_bytes(mac.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_and_nobody_else_have_the_key_of_their_pair() {
        let [a, b, c] = [1, 2, 3].map(|byte| SigningKey::from_bytes(&[byte; 32]));
        let public = |key: &SigningKey| NodeKey(key.verifying_key().to_bytes());
        let (from, to) = (NodeId([1; 16]), NodeId([2; 16]));
        let members = Hash::from([9; 32]);
        let pair = |own: &SigningKey, peer: &SigningKey| Pair::of(own, &public(peer), members).unwrap();
        let mac = pair(&a, &b).mac(from, to, b"words");
        assert!(pair(&b, &a).fits(from, to, b"words", mac));
        assert!(!pair(&b, &a).fits(to, from, b"words", mac), "as an answer");
        assert!(!pair(&b, &a).fits(from, to, b"other words", mac));
        assert!(!pair(&b, &c).fits(from, to, b"words", mac) && !pair(&c, &a).fits(from, to, b"words", mac));
        let elsewhere = Pair::of(&b, &public(&a), Hash::from([8; 32])).unwrap();
        assert!(!elsewhere.fits(from, to, b"words", mac), "of another pool");
        let neutral = VerifyingKey::from_bytes(&std::array::from_fn(|i| u8::from(i == 0))).unwrap();
        assert!(Pair::of(&a, &NodeKey(neutral.to_bytes()), members).is_none());
    }
}
