//! What shows nodes that a mount writes for the owner of a volume: its key's word, to each node another one.

use std::collections::HashMap;

use common::wire::{NodeId, OwnerId, Signature, VolumeId, volume_of, writer_statement};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use parking_lot::Mutex;

use crate::transport::Writer;

/// May write a volume, if it has the key.
pub struct Authority {
    volume: VolumeId,
    key: Option<SigningKey>,
    /// What was signed already: for which node, under which epoch.
    signed: Mutex<HashMap<(NodeId, u32), Signature>>,
}

impl Authority {
    /// Of a volume, whose key it is. None for one that is only read, or that was made before volumes had owners.
    pub fn new(volume: VolumeId, key: Option<SigningKey>) -> Authority {
        let key = key.filter(|key| owner_of(volume, &key.verifying_key()).is_some());
        Authority { volume, key, signed: Mutex::default() }
    }

    /// As whom to write to a node.
    pub fn writer(&self, node: NodeId, epoch: u32) -> Writer {
        let sign = |key: &SigningKey| {
            let text = || writer_statement(self.volume, epoch, node);
            *self
                .signed
                .lock()
                .entry((node, epoch))
                .or_insert_with(|| Signature(key.sign(&text()).to_bytes()))
        };
        Writer { volume: self.volume, epoch, shown: self.key.as_ref().map(sign) }
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Authority({}, {})",
            self.volume,
            if self.key.is_some() { "with its key" } else { "no key" }
        )
    }
}

/// The owner of a volume if this is its key: the identity of one that was made before volumes had owners is another one.
pub fn owner_of(volume: VolumeId, public: &VerifyingKey) -> Option<OwnerId> {
    let owner = OwnerId(public.to_bytes());
    (volume_of(&owner) == volume).then_some(owner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_and_epoch_is_shown_another_word_of_the_key_and_without_the_key_none() {
        let key = SigningKey::from_bytes(&[5; 32]);
        let public = key.verifying_key();
        let volume = volume_of(&OwnerId(public.to_bytes()));
        let authority = Authority::new(volume, Some(key.clone()));
        let shown = |node: u8, epoch: u32| authority.writer(NodeId([node; 16]), epoch).shown.unwrap();
        let text = writer_statement(volume, 3, NodeId([1; 16]));
        let signature = ed25519_dalek::Signature::from_bytes(&shown(1, 3).0);
        assert!(public.verify_strict(&text, &signature).is_ok());
        assert!(shown(1, 3) == shown(1, 3) && shown(1, 3) != shown(2, 3) && shown(1, 3) != shown(1, 4));
        assert_eq!(Authority::new(volume, None).writer(NodeId([1; 16]), 3).shown, None);
        let older = Authority::new(VolumeId([9; 16]), Some(key));
        assert_eq!(older.writer(NodeId([1; 16]), 3).shown, None);
    }
}
