//! Whether somebody signed something.

use common::wire::Signature;
use ed25519_dalek::VerifyingKey;

/// Whether an Ed25519 signature is that of a key, in the strict sense: there is one for each text and key.
pub fn is_signed(key: &[u8; 32], text: &[u8], signature: Signature) -> bool {
    let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
    VerifyingKey::from_bytes(key).is_ok_and(|key| key.verify_strict(text, &signature).is_ok())
}
