//! An object's bytes as fragments, ready to be sent.

use std::sync::Arc;

use bytes::Bytes;
use common::code::Code;
use common::codec::Codec;
use common::fpcc::Fpcc;
use common::hash::{Hash, HashId};
use common::wire::{FragmentName, ObjectId};
use tokio::sync::OwnedSemaphorePermit;

use crate::buffers::Buffers;

/// An encoded object. Data fragments are slices of what the writer gave, parity is in a buffer of its own.
pub(super) struct Encoded {
    pub(super) id: ObjectId,
    pub(super) code: Code,
    /// The FPCC as nodes keep it.
    pub(super) fpcc: Bytes,
    /// What it is called by.
    pub(super) digest: Hash,
    /// All n.
    pub(super) fragments: Vec<Bytes>,
    /// Its share of the memory that unflushed objects may take, until it is dropped.
    _room: Option<OwnedSemaphorePermit>,
}

/// What bytes become on nodes: all n fragments and what names them.
pub struct Coded {
    /// The FPCC as nodes keep it.
    pub fpcc: Bytes,
    /// Its digest.
    pub digest: Hash,
    /// All n; data fragments are slices of what was encoded, parity is in a buffer of its own.
    pub fragments: Vec<Bytes>,
}

/// Encode `padded`, m * L bytes of which the first `length` are the object's. Costs CPU, waits for nothing.
pub fn encode(code: Code, hash: HashId, padded: &Bytes, length: u64) -> Coded {
    let codec = Codec::of(code);
    let fragment_length = code.fragment_length(length);
    let mut fragments = cut(padded, fragment_length);
    fragments.extend(parity(&codec, &fragments, fragment_length));
    let slices: Vec<&[u8]> = fragments.iter().map(|fragment| &fragment[..]).collect();
    let fpcc = Fpcc::compute(&codec, hash, length, &slices);
    Coded { fpcc: fpcc.to_bytes().into(), digest: fpcc.digest(), fragments }
}

impl Encoded {
    /// Encode `padded`, m * L bytes of which the first `length` are the object's. Costs CPU, waits for nothing.
    pub(super) fn new(id: ObjectId, code: Code, hash: HashId, padded: Bytes, length: u32) -> Encoded {
        let Coded { fpcc, digest, fragments } = encode(code, hash, &padded, u64::from(length));
        Encoded { id, code, fpcc, digest, fragments, _room: None }
    }

    /// It gives this back when it is dropped.
    pub(super) fn holding(self, room: OwnedSemaphorePermit) -> Encoded {
        Encoded { _room: Some(room), ..self }
    }

    /// Bytes of memory it holds.
    pub(super) fn size(&self) -> u64 {
        self.fragments.iter().map(|fragment| fragment.len() as u64).sum()
    }

    /// How nodes call one of its fragments.
    pub(super) fn name(&self, index: usize) -> FragmentName {
        fragment_name(self.id, index)
    }
}

/// How nodes call a fragment of a volume's object.
pub(super) fn fragment_name(id: ObjectId, index: usize) -> FragmentName {
    FragmentName { key: id.key(), version: ObjectId::VERSION, index: index as u8 }
}

fn cut(padded: &Bytes, length: usize) -> Vec<Bytes> {
    (0..padded.len() / length).map(|i| padded.slice(i * length..(i + 1) * length)).collect()
}

/// One buffer for all parity fragments, so that its memory is used again as a whole.
fn parity(codec: &Arc<Codec>, data: &[Bytes], length: usize) -> Vec<Bytes> {
    let mut buffer = Buffers::shared().take_dirty(codec.code().p() * length);
    let data: Vec<&[u8]> = data.iter().map(|fragment| &fragment[..]).collect();
    let mut slices: Vec<&mut [u8]> = buffer.as_mut_slice().chunks_exact_mut(length).collect();
    codec.encode(&data, &mut slices);
    cut(&buffer.freeze(), length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fragment_agrees_with_the_fpcc_and_data_fragments_are_the_bytes_themselves() {
        let code = Code::new(3, 2).unwrap();
        let padded: Bytes = (0..3 * 34_000).map(|i| (i % 251) as u8).collect::<Vec<u8>>().into();
        let id = ObjectId { epoch: 1, counter: 1 };
        let encoded = Encoded::new(id, code, HashId::Blake3, padded.clone(), 101_999);
        let fpcc = Fpcc::parse(&encoded.fpcc).unwrap();
        assert_eq!((fpcc.digest(), fpcc.object_length()), (encoded.digest, 101_999));
        for (index, fragment) in encoded.fragments.iter().enumerate() {
            fpcc.check(index, fragment.clone()).unwrap();
        }
        assert_eq!(encoded.fragments[1].as_ptr(), padded[34_000..].as_ptr());
        assert_eq!(encoded.size(), 5 * 34_000);
    }
}
