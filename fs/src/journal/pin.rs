//! Where a snapshot's metadata lies: an entry of the journal, and all that must stay so that it can be read.

use bytes::BufMut;

use super::entry::{Digest, Place};
use crate::error::{Error, Result};
use crate::metadata::record::{Fields, put_object};
use crate::metadata::{ObjectRecord, Snapshot};

const VERSION: u8 = 1;

/// Entries from a checkpoint to the one whose state is kept, and their parts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pin {
    /// By what the last of them is known.
    pub digest: Digest,
    /// Where they stand, the checkpoint first.
    pub places: Vec<Place>,
    /// Their blocks that are objects.
    pub parts: Vec<ObjectRecord>,
}

impl Pin {
    /// The entry whose state is kept.
    pub fn head(&self) -> Option<Place> {
        self.places.last().copied()
    }

    /// As docs/journal.md draws it.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.put_slice(&self.digest);
        bytes.put_u32_le(self.places.len() as u32);
        bytes.put_u32_le(self.parts.len() as u32);
        for place in &self.places {
            bytes.put_u64_le(place.sequence);
            bytes.put_u32_le(place.epoch);
        }
        self.parts.iter().for_each(|part| put_object(&mut bytes, part));
        bytes
    }

    /// The pin of a snapshot; none while it is being taken.
    ///
    /// # Errors
    /// `Store` for bytes that are no pin.
    pub fn of(snapshot: &Snapshot) -> Result<Option<Pin>> {
        if snapshot.pin.is_empty() {
            return Ok(None);
        }
        let damaged = || Error::Store(format!("damaged: the pin of snapshot {}", snapshot.name));
        parse(&snapshot.pin).map(Some).ok_or_else(damaged)
    }
}

fn parse(bytes: &[u8]) -> Option<Pin> {
    let mut fields = Fields(bytes);
    if fields.array()? != [VERSION] {
        return None;
    }
    let (digest, places, parts) = (fields.array()?, fields.u32()?, fields.u32()?);
    let place = |_| Some(Place { sequence: fields.u64()?, epoch: fields.u32()? });
    let places = (0..places).map(place).collect::<Option<Vec<_>>>()?;
    let parts = (0..parts).map(|_| fields.object()).collect::<Option<Vec<_>>>()?;
    (fields.0.is_empty() && !places.is_empty()).then_some(Pin { digest, places, parts })
}

#[cfg(test)]
mod tests {
    use avidfs_tests::fuzz::fuzz;
    use common::hash::Hash;
    use common::wire::ObjectId;

    use super::*;
    use crate::inode::Time;

    fn snapshot(pin: Vec<u8>) -> Snapshot {
        let id = ObjectId { epoch: 1, counter: 1 };
        Snapshot { number: 1, name: "a".into(), created: Time::default(), next: id, pin }
    }

    fn pin() -> Pin {
        let part = ObjectRecord {
            id: ObjectId { epoch: 2, counter: 9 },
            length: 100,
            fpcc: Hash::from([8; 32]),
            code: "3+2".parse().unwrap(),
            configuration: 1,
            exceptions: Vec::new(),
        };
        let places = [(3, 1), (4, 2)].map(|(sequence, epoch)| Place { sequence, epoch });
        Pin { digest: [7; 32], places: places.to_vec(), parts: vec![part] }
    }

    #[test]
    fn a_pin_comes_back_and_a_shortened_one_is_refused() {
        let bytes = pin().encode();
        assert_eq!(Pin::of(&snapshot(bytes.clone())).unwrap(), Some(pin()));
        for length in 1..bytes.len() {
            assert!(Pin::of(&snapshot(bytes[..length].to_vec())).is_err(), "{length}");
        }
        assert_eq!(Pin::of(&snapshot(Vec::new())).unwrap(), None);
    }

    #[test]
    fn whatever_the_bytes_a_pin_is_refused_or_comes_back() {
        let bare = Pin { parts: Vec::new(), ..pin() };
        let valid = [pin().encode(), bare.encode()];
        fuzz(
            "pin",
            &valid,
            |length| 8 * length + 1024,
            parse,
            |pin, _| {
                assert!(pin.head().is_some());
                assert_eq!(parse(&pin.encode()), Some(pin));
            },
        );
    }
}
