//! The homomorphic fingerprint: 128 bits that commute with Reed-Solomon encoding.
//!
//! A fragment's 16-byte blocks are the coefficients of a polynomial, the fingerprint is its value at a point that
//! whoever made the fragments could not choose (Hendricks, Ganger, Reiter, PODC 2007, Theorem 2.4).
//! Two different fragments of L bytes agree with probability at most ceil(L/16) / 2^128.

use std::fmt;

use crate::gf256::{Block, CpuPath};

/// Where fingerprints are evaluated; drawn from the hashes of all fragments, never chosen.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Point(pub Block);

/// A fragment's fingerprint: byte k is the coefficient of y^k.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub Block);

impl Point {
    /// The fingerprint of `fragment` at this point.
    pub fn fingerprint(&self, fragment: &[u8]) -> Fingerprint {
        self.fingerprint_on(CpuPath::best(), fragment)
    }

    /// The same on a path of one's own choice; for tests and benchmarks.
    pub fn fingerprint_on(&self, path: CpuPath, fragment: &[u8]) -> Fingerprint {
        Fingerprint(path.evaluate(&self.0, fragment))
    }
}

impl Fingerprint {
    /// Length in bytes.
    pub const LENGTH: usize = 16;
}

impl fmt::Debug for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::code::Code;
    use crate::codec::Codec;
    use crate::gf256::multiply;

    fn block(hex: &str) -> Block {
        u128::from_str_radix(hex, 16).unwrap().to_be_bytes()
    }

    fn counting(first: u8) -> Vec<u8> {
        (first..first + 32).collect()
    }

    #[test]
    fn the_full_vectors_hold_on_every_path() {
        let point = Point(block("0102030405060708090a0b0c0d0e0f10"));
        let fingerprints = [
            "e9f4239a7cae0afdaaf4bc70a3f1257f",
            "1d34ff66faa8d6320b0660181fa4f945",
            "1c69867f6da2af7ef50d19a0c65b800b",
            "e8a95a83eba473b154ffc5c87a0e5c31",
            "1ed3744d5eb65de6141bebcd69b87297",
        ];
        for path in CpuPath::available() {
            for (i, expected) in fingerprints.iter().enumerate() {
                let fragment = counting(0x20 * i as u8);
                assert_eq!(point.fingerprint_on(path, &fragment).0, block(expected), "{} {i}", path.name());
            }
        }
    }

    /// a * b as the polynomial `a y^0, b` evaluated: the first block is multiplied by the point, the second added.
    fn product(path: CpuPath, a: Block, b: Block) -> Block {
        Point(b).fingerprint_on(path, &[a, [0; 16]].concat()).0
    }

    #[test]
    fn the_field_is_the_one_of_the_vectors_on_every_path() {
        let s = block("0102030405060708090a0b0c0d0e0f10");
        let y = block("00010000000000000000000000000000");
        let y15 = block("00000000000000000000000000000001");
        for path in CpuPath::available() {
            assert_eq!(product(path, s, s), block("9a0f9c059b01ed15ea01f105f6010e48"));
            assert_eq!(product(path, y, y15), block("06010001000000000000000000000000"));
        }
    }

    /// The tiny field of the vectors, GF(2^8)[y] / (y^2 + y + 0x20), by its definition.
    mod tiny {
        use crate::gf256::multiply;

        pub fn product(a: [u8; 2], b: [u8; 2]) -> [u8; 2] {
            let high = multiply(a[1], b[1]);
            let middle = multiply(a[0], b[1]) ^ multiply(a[1], b[0]);
            [multiply(a[0], b[0]) ^ multiply(high, 0x20), middle ^ high]
        }

        pub fn fingerprint(s: [u8; 2], fragment: &[u8]) -> [u8; 2] {
            let step = |sum, block: &[u8]| {
                let product = product(sum, s);
                [product[0] ^ block[0], product[1] ^ block[1]]
            };
            fragment.chunks_exact(2).fold([0; 2], step)
        }
    }

    #[test]
    fn the_tiny_vectors_hold() {
        let s = [0x05, 0x07];
        assert_eq!(tiny::product(s, s), [0x8b, 0x15]);
        assert_eq!(tiny::product([0, 1], s), [0xe0, 0x02]);
        let d = [[0x01, 0x02, 0x03, 0x04], [0x10, 0x20, 0x30, 0x40]];
        let codec = Codec::of(Code::new(2, 2).unwrap());
        let mut parity = [[0; 4]; 2];
        let [d2, d3] = &mut parity;
        codec.encode(&[&d[0], &d[1]], &mut [d2, d3]);
        assert_eq!(parity, [[0x23, 0x46, 0x65, 0x8c], [0x32, 0x64, 0x56, 0xc8]]);
        let all = [d[0], d[1], parity[0], parity[1]].map(|fragment| tiny::fingerprint(s, &fragment));
        assert_eq!(all, [[0xdb, 0x07], [0x31, 0x70], [0x12, 0xe9], [0xf8, 0x9e]]);
    }

    #[test]
    fn all_scalars_commute_with_the_fingerprint() {
        let point = Point(block("0102030405060708090a0b0c0d0e0f10"));
        let fragment: Vec<u8> = (0..1000).map(|i| (i * 7 % 251) as u8).collect();
        let plain = point.fingerprint(&fragment);
        for scalar in 0..=255 {
            let scaled: Vec<u8> = fragment.iter().map(|&byte| multiply(scalar, byte)).collect();
            let expected = plain.0.map(|byte| multiply(scalar, byte));
            assert_eq!(point.fingerprint(&scaled).0, expected, "{scalar}");
        }
    }

    proptest! {
        #[test]
        fn the_fingerprint_of_a_sum_is_the_sum_of_fingerprints(
            point: Block,
            (a, b) in (0..3000usize).prop_flat_map(|length| (vec(any::<u8>(), length), vec(any::<u8>(), length))),
        ) {
            let point = Point(point);
            let sum: Vec<u8> = a.iter().zip(&b).map(|(a, b)| a ^ b).collect();
            let (a, b, sum) = (point.fingerprint(&a), point.fingerprint(&b), point.fingerprint(&sum));
            prop_assert_eq!(u128::from_le_bytes(a.0) ^ u128::from_le_bytes(b.0), u128::from_le_bytes(sum.0));
        }

        #[test]
        fn the_fingerprints_of_parity_are_the_parity_of_fingerprints(
            point: Block, m in 1..24usize, p in 1..12usize, length in 1..300usize, seed: u8,
        ) {
            let codec = Codec::of(Code::new(m, p).unwrap());
            let point = Point(point);
            let data: Vec<Vec<u8>> =
                (0..m).map(|i| (0..length).map(|at| (i * 31 + at * at) as u8 ^ seed).collect()).collect();
            let parity = codec.parity_of(&data);
            let fingerprints: Vec<Vec<u8>> = data.iter().map(|d| point.fingerprint(d).0.to_vec()).collect();
            let expected = codec.parity_of(&fingerprints);
            for (parity, expected) in parity.iter().zip(expected) {
                prop_assert_eq!(point.fingerprint(parity).0.to_vec(), expected);
            }
        }
    }

    #[test]
    fn one_changed_byte_changes_the_fingerprint() {
        let point = Point(block("0102030405060708090a0b0c0d0e0f10"));
        let mut fragment = vec![0x5A; 1003];
        let before = point.fingerprint(&fragment);
        for at in 0..fragment.len() {
            fragment[at] ^= 1;
            assert_ne!(point.fingerprint(&fragment), before, "{at}");
            fragment[at] ^= 1;
        }
    }
}
