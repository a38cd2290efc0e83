//! The systematic Reed-Solomon code: fragments out of fragments.
//!
//! Fragment i is the value at point i of the polynomial of degree below m that has the data fragments as its values at
//! the points 0 to m-1, byte by byte in GF(2^8)/0x11D.
//! That is what the Vandermonde matrix of the crate reed-solomon-erasure computes, byte for byte, and it makes every
//! set of m fragments enough: interpolation has no singular case.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::code::Code;
use crate::gf256::{CpuPath, interpolation_weights};

/// Encoder and decoder of one code. Cheap to share, made once per code with [`Codec::of`].
#[derive(Debug)]
pub struct Codec {
    code: Code,
    path: CpuPath,
    /// p rows of m coefficients.
    parity_rows: Vec<u8>,
}

/// Why fragments cannot be rebuilt from those given.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CodecError {
    /// Fewer than m different fragments.
    #[error("{present} of {needed} fragments are there; code {code} needs {needed}")]
    TooFew {
        /// How many were given.
        present: usize,
        /// m.
        needed: usize,
        /// The code.
        code: Code,
    },
    /// An index that the code does not have.
    #[error("there is no fragment {index} in code {code}")]
    NoSuchFragment {
        /// The index asked for.
        index: usize,
        /// The code.
        code: Code,
    },
    /// The same index twice.
    #[error("fragment {index} is given twice")]
    Twice {
        /// The index.
        index: usize,
    },
    /// Slices of different lengths.
    #[error("fragment {index} has {found} bytes where the others have {expected}")]
    Length {
        /// The index of the odd one.
        index: usize,
        /// The length of the first.
        expected: usize,
        /// Its length.
        found: usize,
    },
    /// Fragments that were checked against different FPCCs, or those of another code.
    #[error("fragment {index} belongs to another object")]
    OtherObject {
        /// The index of the odd one.
        index: usize,
    },
}

/// Codecs kept for reuse. Bounded, as a code may come from outside.
const KEPT_CODECS: usize = 16;

impl Codec {
    /// The codec of `code`, on this CPU's fastest path. The last few codes used are kept.
    pub fn of(code: Code) -> Arc<Codec> {
        static KEPT: Mutex<Vec<Arc<Codec>>> = Mutex::new(Vec::new());
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(codec) = kept.iter().find(|codec| codec.code == code) {
            return codec.clone();
        }
        if kept.len() == KEPT_CODECS {
            kept.remove(0);
        }
        let codec = Arc::new(Codec::on(CpuPath::best(), code));
        kept.push(codec.clone());
        codec
    }

    /// A codec on a path of one's own choice; for tests and benchmarks.
    pub fn on(path: CpuPath, code: Code) -> Codec {
        let parity_rows = (code.m()..code.n()).flat_map(|index| row(code, index)).collect();
        Codec { code, path, parity_rows }
    }

    /// Its code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Computes the p parity fragments of the m data fragments.
    ///
    /// Panics unless there are m and p slices, all of one length.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) {
        assert_eq!(data.len(), self.code.m(), "data fragments of code {}", self.code);
        assert_eq!(parity.len(), self.code.p(), "parity fragments of code {}", self.code);
        self.path.linear(&self.parity_rows, data, parity);
    }

    /// Computes the wanted fragments, data or parity, from any m different ones.
    ///
    /// Of more than m the first m are used. Nothing is written when an error is returned.
    /// Wrong bytes in give wrong bytes out: check before, with [`crate::fpcc::decode`].
    pub fn rebuild(
        &self,
        present: &[(usize, &[u8])],
        wanted: &mut [(usize, &mut [u8])],
    ) -> Result<(), CodecError> {
        self.check_shape(present, wanted)?;
        let present = &present[..self.code.m()];
        let points: Vec<u8> = present.iter().map(|(index, _)| *index as u8).collect();
        let inputs: Vec<&[u8]> = present.iter().map(|(_, bytes)| *bytes).collect();
        let rows: Vec<u8> =
            wanted.iter().flat_map(|(index, _)| interpolation_weights(&points, *index as u8)).collect();
        let mut outputs: Vec<&mut [u8]> = wanted.iter_mut().map(|(_, bytes)| &mut **bytes).collect();
        self.path.linear(&rows, &inputs, &mut outputs);
        Ok(())
    }

    /// The parity fragments of `data`, in memory of their own.
    ///
    /// Panics unless there are m fragments of one length.
    pub fn parity_of<D: AsRef<[u8]>>(&self, data: &[D]) -> Vec<Vec<u8>> {
        let data: Vec<&[u8]> = data.iter().map(AsRef::as_ref).collect();
        let mut parity = vec![vec![0; data[0].len()]; self.code.p()];
        let mut slices: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
        self.encode(&data, &mut slices);
        parity
    }

    fn check_shape(
        &self,
        present: &[(usize, &[u8])],
        wanted: &[(usize, &mut [u8])],
    ) -> Result<(), CodecError> {
        let code = self.code;
        if present.len() < code.m() {
            return Err(CodecError::TooFew { present: present.len(), needed: code.m(), code });
        }
        let expected = present[0].1.len();
        let mut seen = [false; 256];
        let lengths = present.iter().map(|(index, bytes)| (*index, bytes.len()));
        for (index, found) in lengths.clone().chain(wanted.iter().map(|(index, bytes)| (*index, bytes.len())))
        {
            if index >= code.n() {
                return Err(CodecError::NoSuchFragment { index, code });
            }
            if found != expected {
                return Err(CodecError::Length { index, expected, found });
            }
        }
        for (index, _) in lengths {
            if std::mem::replace(&mut seen[index], true) {
                return Err(CodecError::Twice { index });
            }
        }
        Ok(())
    }
}

/// The m coefficients that make fragment `index` out of the data fragments.
pub(crate) fn row(code: Code, index: usize) -> Vec<u8> {
    let points: Vec<u8> = (0..code.m() as u8).collect();
    interpolation_weights(&points, index as u8)
}

/// Splits an object into its m data fragments, the last ones filled up with zeros.
///
/// Copies only what must be padded. Panics for an empty object, which has no fragments.
pub fn split(code: Code, object: &Bytes) -> Vec<Bytes> {
    let length = code.fragment_length(object.len() as u64);
    (0..code.m()).map(|i| data_fragment(object, i * length, length)).collect()
}

fn data_fragment(object: &Bytes, start: usize, length: usize) -> Bytes {
    let start = start.min(object.len());
    let end = object.len().min(start + length);
    if end - start == length {
        return object.slice(start..end);
    }
    let mut padded = vec![0; length];
    padded[..end - start].copy_from_slice(&object[start..end]);
    padded.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::seq::SliceRandom;
    use rand::{RngCore, SeedableRng};
    use reed_solomon_erasure::galois_8::ReedSolomon;

    use super::*;

    fn code(m: usize, p: usize) -> Code {
        Code::new(m, p).unwrap()
    }

    fn random_fragments(seed: u64, count: usize, length: usize) -> Vec<Vec<u8>> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut fragment = || {
            let mut bytes = vec![0; length];
            random.fill_bytes(&mut bytes);
            bytes
        };
        (0..count).map(|_| fragment()).collect()
    }

    /// Data and parity as the crate computes them.
    fn encoded_by_the_crate(code: Code, data: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut all = data.to_vec();
        all.resize(code.n(), vec![0; data[0].len()]);
        ReedSolomon::new(code.m(), code.p()).unwrap().encode(&mut all).unwrap();
        all
    }

    #[test]
    fn the_parity_rows_are_the_known_ones() {
        let row = |m, p, index| row(code(m, p), index);
        assert_eq!([row(2, 2, 2), row(2, 2, 3)], [[3, 2], [2, 3]]);
        assert_eq!([row(3, 2, 3), row(3, 2, 4)], [[1, 1, 1], [0x0f, 8, 6]]);
        assert_eq!([row(4, 2, 4), row(4, 2, 5)], [[0x1b, 0x1c, 0x12, 0x14], [0x1c, 0x1b, 0x14, 0x12]]);
    }

    /// Not every one of the 32 385 codes, as the crate needs m^3 steps for each: all small ones and the large extremes.
    #[test]
    fn parity_is_the_crates_byte_for_byte() {
        let small = (1..=20).flat_map(|m| (1..=12).map(move |p| (m, p)));
        let large = [(254, 1), (1, 254), (128, 127), (100, 155), (200, 55), (64, 64), (253, 2), (31, 200)];
        for (m, p) in small.chain(large) {
            let code = code(m, p);
            let data = random_fragments((m * 256 + p) as u64, m, 97);
            let expected = encoded_by_the_crate(code, &data);
            for path in CpuPath::available() {
                let parity = Codec::on(path, code).parity_of(&data);
                assert_eq!(parity, expected[m..], "{code} {}", path.name());
            }
        }
    }

    proptest! {
        #[test]
        fn any_m_fragments_rebuild_any_others(
            seed: u64, m in 1..20usize, p in 1..12usize, length in 0..2000usize,
        ) {
            let code = code(m, p);
            let data = random_fragments(seed, m, length);
            let all = if length == 0 { vec![vec![]; code.n()] } else { encoded_by_the_crate(code, &data) };
            let mut indices: Vec<usize> = (0..code.n()).collect();
            indices.shuffle(&mut StdRng::seed_from_u64(seed));
            let present: Vec<(usize, &[u8])> = indices[..m].iter().map(|&i| (i, all[i].as_slice())).collect();
            for path in CpuPath::available() {
                let mut rebuilt = vec![vec![0xEE; length]; code.n()];
                let mut wanted: Vec<(usize, &mut [u8])> =
                    rebuilt.iter_mut().map(Vec::as_mut_slice).enumerate().collect();
                Codec::on(path, code).rebuild(&present, &mut wanted).unwrap();
                prop_assert_eq!(&rebuilt, &all, "{} {}", code, path.name());
            }
        }
    }

    #[test]
    fn every_pattern_of_losses_of_3_2_is_rebuilt() {
        let code = code(3, 2);
        let all = encoded_by_the_crate(code, &random_fragments(7, 3, 1000));
        for (a, b) in (0..5).flat_map(|a| (0..5).map(move |b| (a, b))).filter(|(a, b)| a < b) {
            let present: Vec<(usize, &[u8])> =
                (0..5).filter(|i| ![a, b].contains(i)).map(|i| (i, all[i].as_slice())).collect();
            let (mut first, mut second) = (vec![0; 1000], vec![0; 1000]);
            Codec::of(code).rebuild(&present, &mut [(a, &mut first), (b, &mut second)]).unwrap();
            assert_eq!((&first, &second), (&all[a], &all[b]));
        }
    }

    #[test]
    fn what_cannot_be_rebuilt_is_an_error() {
        let codec = Codec::of(code(2, 2));
        let rebuild = |present: &[(usize, &[u8])], index, length| {
            codec.rebuild(present, &mut [(index, &mut vec![0; length])])
        };
        let (a, b, short) = ([1; 4].as_slice(), [2; 4].as_slice(), [3; 3].as_slice());
        assert_eq!(rebuild(&[(0, a), (1, b)], 3, 4), Ok(()));
        assert!(matches!(rebuild(&[(0, a)], 3, 4), Err(CodecError::TooFew { present: 1, needed: 2, .. })));
        assert!(matches!(rebuild(&[(0, a), (0, a)], 3, 4), Err(CodecError::Twice { index: 0 })));
        assert!(matches!(rebuild(&[(0, a), (4, b)], 3, 4), Err(CodecError::NoSuchFragment { index: 4, .. })));
        assert!(matches!(rebuild(&[(0, a), (1, b)], 4, 4), Err(CodecError::NoSuchFragment { index: 4, .. })));
        assert!(matches!(rebuild(&[(0, a), (1, short)], 3, 4), Err(CodecError::Length { index: 1, .. })));
        assert!(matches!(rebuild(&[(0, a), (1, b)], 3, 5), Err(CodecError::Length { index: 3, .. })));
    }

    #[test]
    fn a_codec_is_made_once_per_code() {
        assert!(Arc::ptr_eq(&Codec::of(code(3, 2)), &Codec::of(code(3, 2))));
    }

    #[test]
    fn an_object_is_split_in_order_and_filled_up_with_zeros() {
        let object = Bytes::from_static(b"abcdefg");
        assert_eq!(split(code(3, 2), &object), ["abc", "def", "g\0\0"]);
        assert_eq!(split(code(3, 2), &Bytes::from_static(b"a")), ["a", "\0", "\0"]);
        assert_eq!(split(code(5, 1), &Bytes::from_static(b"abcdef")), ["ab", "cd", "ef", "\0\0", "\0\0"]);
    }
}
