//! Arithmetic in GF(2^8) with the polynomial 0x11D, on whole slices and as fast as the CPU at hand allows.
//!
//! Two verbs cover all that codec and fingerprint need: [`CpuPath::linear`] (several outputs, each a weighted sum of
//! the inputs) and [`CpuPath::evaluate`] (a polynomial with 16-byte coefficients at one 16-byte point).
//! The code to run is chosen at run time, so one binary runs everywhere.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::OnceLock;

/// A way to compute that this CPU can run; every one gives the same results.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuPath(Kind);

/// Private, so that only detection makes a path that needs CPU features.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx2Gfni,
    #[cfg(target_arch = "x86_64")]
    Avx512Gfni,
}

/// The name of the path in use: `portable`, `avx2`, `avx2+gfni` or `avx512+gfni`.
pub fn cpu_path() -> &'static str {
    CpuPath::best().name()
}

impl CpuPath {
    /// The path that runs on every CPU.
    pub const PORTABLE: CpuPath = CpuPath(Kind::Portable);

    /// The fastest path of this CPU, detected once.
    pub fn best() -> CpuPath {
        static BEST: OnceLock<CpuPath> = OnceLock::new();
        *BEST.get_or_init(|| CpuPath::available().pop().expect("the portable path is always there"))
    }

    /// Every path this CPU can run, the fastest last.
    pub fn available() -> Vec<CpuPath> {
        detected().into_iter().map(CpuPath).collect()
    }

    /// Its name, as [`cpu_path`] gives it.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2Gfni => "avx2+gfni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Gfni => "avx512+gfni",
        }
    }

    /// `outputs[r] = sum over c of coefficients[r * inputs + c] * inputs[c]`, byte by byte.
    ///
    /// Panics unless all slices have one length and there is a coefficient for every pair.
    pub fn linear(self, coefficients: &[u8], inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
        assert_shape(coefficients, inputs, outputs);
        if inputs.is_empty() {
            outputs.iter_mut().for_each(|output| output.fill(0));
            return;
        }
        match self.0 {
            Kind::Portable => portable::linear(coefficients, inputs, outputs),
            // SAFETY: the path exists, so the CPU has its features; the shape was checked above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { x86::linear_avx2(coefficients, inputs, outputs) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2Gfni => unsafe { x86::linear_avx2_gfni(coefficients, inputs, outputs) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Gfni => unsafe { x86::linear_avx512_gfni(coefficients, inputs, outputs) },
        }
    }

    /// The polynomial whose coefficients are the 16-byte blocks of `data`, highest power first and the last block
    /// zero-padded, at `point`, in `GF(2^8)[y]` modulo `y^16 + y^3 + y + 0x06`.
    ///
    /// Byte k of a block and of the point is the coefficient of y^k.
    pub fn evaluate(self, point: &Block, data: &[u8]) -> Block {
        match self.0 {
            Kind::Portable => portable::evaluate(point, data),
            // SAFETY: the path exists, so the CPU has its features.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { x86::evaluate_avx2(point, data) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2Gfni => unsafe { x86::evaluate_avx2_gfni(point, data) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512Gfni => unsafe { x86::evaluate_avx512_gfni(point, data) },
        }
    }
}

/// An element of the 128-bit field: byte k is the coefficient of y^k.
pub type Block = [u8; 16];

fn assert_shape(coefficients: &[u8], inputs: &[&[u8]], outputs: &[&mut [u8]]) {
    assert_eq!(coefficients.len(), inputs.len() * outputs.len(), "one coefficient for each pair");
    let length =
        inputs.first().map_or_else(|| outputs.first().map_or(0, |output| output.len()), |input| input.len());
    assert!(inputs.iter().all(|input| input.len() == length), "inputs of one length");
    assert!(outputs.iter().all(|output| output.len() == length), "outputs of the inputs' length");
}

#[cfg(not(target_arch = "x86_64"))]
fn detected() -> Vec<Kind> {
    vec![Kind::Portable]
}

#[cfg(target_arch = "x86_64")]
fn detected() -> Vec<Kind> {
    let avx2 = is_x86_feature_detected!("avx2");
    let gfni = is_x86_feature_detected!("gfni");
    let avx512 = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
    let paths = [
        (true, Kind::Portable),
        (avx2, Kind::Avx2),
        (avx2 && gfni, Kind::Avx2Gfni),
        (avx2 && gfni && avx512, Kind::Avx512Gfni),
    ];
    paths.into_iter().filter(|(runs, _)| *runs).map(|(_, kind)| kind).collect()
}

/// The product of two bytes.
pub const fn multiply(a: u8, b: u8) -> u8 {
    let mut sum = 0;
    let mut term = a;
    let mut rest = b;
    while rest != 0 {
        if rest & 1 != 0 {
            sum ^= term;
        }
        term = double(term);
        rest >>= 1;
    }
    sum
}

const fn double(a: u8) -> u8 {
    let carry = if a & 0x80 != 0 { 0x1D } else { 0 };
    a << 1 ^ carry
}

/// `EXP[i]` = 2^i, twice over so that a sum of two logarithms needs no reduction.
const EXP: [u8; 510] = {
    let mut table = [0; 510];
    let mut power = 1;
    let mut i = 0;
    while i < 510 {
        table[i] = power;
        power = double(power);
        i += 1;
    }
    table
};

/// `LOG[x]` with 2^LOG[x] = x; the entry of 0 means nothing.
const LOG: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 255 {
        table[EXP[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// The weights of an interpolation: the value at `at` of the polynomial that has given values at `points`
/// (of degree below their number) is the sum of weight * value.
///
/// Points are distinct. Costs the square of their number in additions.
pub fn interpolation_weights(points: &[u8], at: u8) -> Vec<u8> {
    if let Some(known) = points.iter().position(|&point| point == at) {
        let mut weights = vec![0; points.len()];
        weights[known] = 1;
        return weights;
    }
    let numerator: u32 = points.iter().map(|&point| log(at ^ point)).sum();
    points
        .iter()
        .map(|&point| exp(numerator + 255 * 256 - log(at ^ point) - log_of_distances(points, point)))
        .collect()
}

/// The logarithm of the product of distances from `point` to all the others.
fn log_of_distances(points: &[u8], point: u8) -> u32 {
    points.iter().filter(|&&other| other != point).map(|&other| log(point ^ other)).sum()
}

fn log(x: u8) -> u32 {
    debug_assert!(x != 0, "0 has no logarithm");
    u32::from(LOG[usize::from(x)])
}

fn exp(logarithm: u32) -> u8 {
    EXP[(logarithm % 255) as usize]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{RngCore, SeedableRng};

    use super::*;

    fn bytes(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
        bytes
    }

    fn linear(
        path: CpuPath,
        coefficients: &[u8],
        inputs: &[&[u8]],
        rows: usize,
        length: usize,
    ) -> Vec<Vec<u8>> {
        let mut outputs = vec![vec![0xEE; length]; rows];
        let mut slices: Vec<&mut [u8]> = outputs.iter_mut().map(Vec::as_mut_slice).collect();
        path.linear(coefficients, inputs, &mut slices);
        outputs
    }

    /// The sum as it is written down, one product at a time.
    fn linear_by_definition(
        coefficients: &[u8],
        inputs: &[&[u8]],
        rows: usize,
        length: usize,
    ) -> Vec<Vec<u8>> {
        let columns = inputs.len();
        let byte = |r: usize, at: usize| {
            (0..columns).fold(0, |sum, c| sum ^ multiply(coefficients[r * columns + c], inputs[c][at]))
        };
        (0..rows).map(|r| (0..length).map(|at| byte(r, at)).collect()).collect()
    }

    #[test]
    fn multiplication_is_that_of_the_field() {
        assert_eq!(multiply(0x80, 2), 0x1D);
        for a in 1..=255u8 {
            assert_eq!(multiply(a, 1), a);
            let logarithms = log(a) + log(0x53);
            assert_eq!(multiply(a, 0x53), exp(logarithms));
        }
    }

    #[test]
    fn every_path_multiplies_every_pair_of_bytes_rightly() {
        let all: Vec<u8> = (0..=255).collect();
        for path in CpuPath::available() {
            for coefficient in 0..=255 {
                let product = linear(path, &[coefficient], &[&all], 1, 256);
                let expected: Vec<u8> = all.iter().map(|&byte| multiply(coefficient, byte)).collect();
                assert_eq!(product[0], expected, "{} {coefficient}", path.name());
            }
        }
    }

    #[test]
    fn the_portable_path_is_always_there_and_the_best_is_the_last() {
        let paths = CpuPath::available();
        assert_eq!(paths.first(), Some(&CpuPath::PORTABLE));
        assert_eq!(paths.last(), Some(&CpuPath::best()));
    }

    #[test]
    fn no_inputs_sum_to_zero() {
        for path in CpuPath::available() {
            assert_eq!(linear(path, &[], &[], 2, 70), vec![vec![0; 70]; 2]);
        }
    }

    proptest! {
        #[test]
        fn every_path_computes_the_same_sums(
            seed: u64,
            columns in 1..20usize,
            rows in 1..12usize,
            length in 0..1400usize,
        ) {
            let data: Vec<Vec<u8>> = (0..columns).map(|c| bytes(seed ^ c as u64, length)).collect();
            let inputs: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
            let coefficients = bytes(!seed, rows * columns);
            let expected = linear_by_definition(&coefficients, &inputs, rows, length);
            for path in CpuPath::available() {
                prop_assert_eq!(&linear(path, &coefficients, &inputs, rows, length), &expected, "{}", path.name());
            }
        }

        #[test]
        fn every_path_evaluates_alike(seed: u64, length in 0..=4096usize) {
            let data = bytes(seed, length);
            let point: Block = bytes(!seed, 16).try_into().unwrap();
            let expected = portable::evaluate(&point, &data);
            for path in CpuPath::available() {
                prop_assert_eq!(path.evaluate(&point, &data), expected, "{}", path.name());
            }
        }
    }

    #[test]
    fn every_path_evaluates_long_data_alike() {
        let point: Block = bytes(1, 16).try_into().unwrap();
        for length in [65_536, 262_144, 349_526, 1_398_102] {
            let data = bytes(2, length);
            let expected = portable::evaluate(&point, &data);
            for path in CpuPath::available() {
                assert_eq!(path.evaluate(&point, &data), expected, "{} {length}", path.name());
            }
        }
    }
}
