//! The paths for x86-64: one text for all of them, written over [`Register`].
//!
//! The generic functions are `inline(always)`, so each becomes part of an entry point that enables the CPU features;
//! only there do the intrinsics turn into single instructions.

use std::arch::x86_64::*;

use super::{Block, multiply, portable};

/// A vector register: some 16-byte lanes, and how to multiply all its bytes by one constant.
///
/// # Safety
/// Every method may be called only where the CPU has the features of the implementation.
trait Register: Copy {
    /// Its size; a multiple of 16.
    const BYTES: usize;
    /// A constant in the form that multiplication takes.
    type Constant: 'static;
    /// Bytes in the form that multiplication takes, made once for many constants.
    type Factor: Copy;

    /// Every constant there is.
    fn constants() -> &'static [Self::Constant; 256];
    unsafe fn zero() -> Self;
    /// Reads BYTES bytes, which must be valid; no alignment.
    unsafe fn load(from: *const u8) -> Self;
    /// Writes BYTES bytes, which must be valid; no alignment.
    unsafe fn store(self, to: *mut u8);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn factor(self) -> Self::Factor;
    unsafe fn times(factor: Self::Factor, constant: &Self::Constant) -> Self;
    /// Each lane times y^K, without what leaves it.
    unsafe fn shifted_up<const K: i32>(self) -> Self;
    /// Each lane divided by y^K, without the remainder.
    unsafe fn shifted_down<const K: i32>(self) -> Self;
}

/// For each constant, the 8x8 bit matrix that multiplies by it, as `vgf2p8affineqb` reads it: byte 7-i makes bit i.
///
/// `vgf2p8mulb` multiplies in another field (0x11B).
static MATRICES: [u64; 256] = {
    let mut table = [0; 256];
    let mut constant = 0;
    while constant < 256 {
        table[constant] = matrix(constant as u8);
        constant += 1;
    }
    table
};

const fn matrix(constant: u8) -> u64 {
    let mut rows = [0; 8];
    let mut column = 0;
    while column < 8 {
        let product = multiply(constant, 1 << column);
        let mut bit = 0;
        while bit < 8 {
            rows[7 - bit] |= (product >> bit & 1) << column;
            bit += 1;
        }
        column += 1;
    }
    u64::from_le_bytes(rows)
}

/// For each constant, its products with the 16 low and the 16 high nibbles, as PSHUFB looks them up.
static NIBBLES: [[[u8; 16]; 2]; 256] = {
    let mut table = [[[0; 16]; 2]; 256];
    let mut constant = 0;
    while constant < 256 {
        let mut nibble = 0;
        while nibble < 16 {
            table[constant][0][nibble] = multiply(constant as u8, nibble as u8);
            table[constant][1][nibble] = multiply(constant as u8, (nibble as u8) << 4);
            nibble += 1;
        }
        constant += 1;
    }
    table
};

/// 64 bytes, with AVX-512F, AVX-512BW and GFNI.
#[derive(Clone, Copy)]
struct Avx512Gfni(__m512i);

impl Register for Avx512Gfni {
    const BYTES: usize = 64;
    type Constant = u64;
    type Factor = __m512i;

    #[inline(always)]
    fn constants() -> &'static [u64; 256] {
        &MATRICES
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's, as for all methods of the trait.
        Self(unsafe { _mm512_setzero_si512() })
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_loadu_si512(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller's.
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_xor_si512(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn factor(self) -> __m512i {
        self.0
    }

    #[inline(always)]
    unsafe fn times(factor: __m512i, constant: &u64) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_gf2p8affine_epi64_epi8::<0>(factor, _mm512_set1_epi64(*constant as i64)) })
    }

    #[inline(always)]
    unsafe fn shifted_up<const K: i32>(self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_bslli_epi128::<K>(self.0) })
    }

    #[inline(always)]
    unsafe fn shifted_down<const K: i32>(self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_bsrli_epi128::<K>(self.0) })
    }
}

/// 32 bytes, with AVX2 and GFNI.
#[derive(Clone, Copy)]
struct Avx2Gfni(__m256i);

impl Register for Avx2Gfni {
    const BYTES: usize = 32;
    type Constant = u64;
    type Factor = __m256i;

    #[inline(always)]
    fn constants() -> &'static [u64; 256] {
        &MATRICES
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's, as for all methods of the trait.
        Self(unsafe { _mm256_setzero_si256() })
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller's.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm256_xor_si256(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn factor(self) -> __m256i {
        self.0
    }

    #[inline(always)]
    unsafe fn times(factor: __m256i, constant: &u64) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm256_gf2p8affine_epi64_epi8::<0>(factor, _mm256_set1_epi64x(*constant as i64)) })
    }

    #[inline(always)]
    unsafe fn shifted_up<const K: i32>(self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm256_bslli_epi128::<K>(self.0) })
    }

    #[inline(always)]
    unsafe fn shifted_down<const K: i32>(self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm256_bsrli_epi128::<K>(self.0) })
    }
}

/// 32 bytes, with AVX2 alone: a product is the sum of two look-ups.
#[derive(Clone, Copy)]
struct Avx2(__m256i);

/// The low and the high nibble of each byte.
#[derive(Clone, Copy)]
struct Nibbles {
    low: __m256i,
    high: __m256i,
}

impl Register for Avx2 {
    const BYTES: usize = 32;
    type Constant = [[u8; 16]; 2];
    type Factor = Nibbles;

    #[inline(always)]
    fn constants() -> &'static [[[u8; 16]; 2]; 256] {
        &NIBBLES
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's, as for all methods of the trait.
        Self(unsafe { _mm256_setzero_si256() })
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller's.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm256_xor_si256(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn factor(self) -> Nibbles {
        // SAFETY: the caller's.
        unsafe {
            let nibble = _mm256_set1_epi8(15);
            let low = _mm256_and_si256(self.0, nibble);
            let high = _mm256_and_si256(_mm256_srli_epi64::<4>(self.0), nibble);
            Nibbles { low, high }
        }
    }

    #[inline(always)]
    unsafe fn times(factor: Nibbles, constant: &[[u8; 16]; 2]) -> Self {
        let [low, high] = constant;
        // SAFETY: the caller's; each table has the 16 bytes that are read.
        unsafe {
            let low = _mm256_broadcastsi128_si256(_mm_loadu_si128(low.as_ptr().cast()));
            let high = _mm256_broadcastsi128_si256(_mm_loadu_si128(high.as_ptr().cast()));
            let (low, high) = (_mm256_shuffle_epi8(low, factor.low), _mm256_shuffle_epi8(high, factor.high));
            Self(_mm256_xor_si256(low, high))
        }
    }

    #[inline(always)]
    unsafe fn shifted_up<const K: i32>(self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm256_bslli_epi128::<K>(self.0) })
    }

    #[inline(always)]
    unsafe fn shifted_down<const K: i32>(self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm256_bsrli_epi128::<K>(self.0) })
    }
}

/// See [`super::CpuPath::linear`].
///
/// # Safety
/// The CPU has the features, and the shape was checked: at least one input, all slices of one length.
#[target_feature(enable = "avx512f,avx512bw,gfni")]
pub unsafe fn linear_avx512_gfni(coefficients: &[u8], inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
    // SAFETY: the caller's.
    unsafe { linear::<Avx512Gfni, 4>(coefficients, inputs, outputs) }
}

/// See [`super::CpuPath::linear`].
///
/// # Safety
/// As for [`linear_avx512_gfni`].
#[target_feature(enable = "avx2,gfni")]
pub unsafe fn linear_avx2_gfni(coefficients: &[u8], inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
    // SAFETY: the caller's.
    unsafe { linear::<Avx2Gfni, 2>(coefficients, inputs, outputs) }
}

/// See [`super::CpuPath::linear`].
///
/// # Safety
/// As for [`linear_avx512_gfni`].
#[target_feature(enable = "avx2")]
pub unsafe fn linear_avx2(coefficients: &[u8], inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
    // SAFETY: the caller's.
    unsafe { linear::<Avx2, 2>(coefficients, inputs, outputs) }
}

/// Bytes of input worked on for all outputs before the next ones, so that they are read from memory once.
const STRIPE: usize = 32 << 10;
/// Outputs computed in one pass over the inputs; their sums stay in registers.
const ROWS: usize = 4;

/// `U` registers of each slice at a time, as many as there is room for.
///
/// # Safety
/// As for [`linear_avx512_gfni`], with the features of `V`.
#[inline(always)]
unsafe fn linear<V: Register, const U: usize>(
    coefficients: &[u8],
    inputs: &[&[u8]],
    outputs: &mut [&mut [u8]],
) {
    let length = inputs[0].len();
    let whole = length - length % V::BYTES;
    let stripe = (STRIPE / inputs.len()).max(1024).next_multiple_of(U * V::BYTES);
    for start in (0..whole).step_by(stripe) {
        let end = whole.min(start + stripe);
        for (rows, outputs) in coefficients.chunks(ROWS * inputs.len()).zip(outputs.chunks_mut(ROWS)) {
            // SAFETY: the caller's; start..end lies within every slice and is a multiple of BYTES.
            unsafe { rows_of_stripe::<V, U>(rows, inputs, outputs, start, end) };
        }
    }
    portable::linear_between(coefficients, inputs, outputs, whole, length);
}

/// # Safety
/// As for [`linear`]; `start..end` lies within every slice and is a multiple of BYTES long; 1 to ROWS outputs.
#[inline(always)]
unsafe fn rows_of_stripe<V: Register, const U: usize>(
    rows: &[u8],
    inputs: &[&[u8]],
    outputs: &mut [&mut [u8]],
    start: usize,
    end: usize,
) {
    let unrolled = end - (end - start) % (U * V::BYTES);
    // SAFETY: the caller's; the two parts are start..unrolled and unrolled..end.
    unsafe {
        match outputs {
            [a] => {
                fused::<V, 1, U>(rows, inputs, [a], start, unrolled);
                fused::<V, 1, 1>(rows, inputs, [a], unrolled, end);
            }
            [a, b] => {
                fused::<V, 2, U>(rows, inputs, [a, b], start, unrolled);
                fused::<V, 2, 1>(rows, inputs, [a, b], unrolled, end);
            }
            [a, b, c] => {
                fused::<V, 3, U>(rows, inputs, [a, b, c], start, unrolled);
                fused::<V, 3, 1>(rows, inputs, [a, b, c], unrolled, end);
            }
            [a, b, c, d] => {
                fused::<V, 4, U>(rows, inputs, [a, b, c, d], start, unrolled);
                fused::<V, 4, 1>(rows, inputs, [a, b, c, d], unrolled, end);
            }
            _ => unreachable!("outputs come in groups of 1 to {ROWS}"),
        }
    }
}

/// `R` outputs in one pass over the inputs.
///
/// # Safety
/// As for [`linear`]; `start..end` lies within every slice and is a multiple of U * BYTES long.
#[inline(always)]
unsafe fn fused<V: Register, const R: usize, const U: usize>(
    rows: &[u8],
    inputs: &[&[u8]],
    outputs: [&mut &mut [u8]; R],
    start: usize,
    end: usize,
) {
    let rows: [&[u8]; R] = std::array::from_fn(|r| &rows[r * inputs.len()..][..inputs.len()]);
    let outputs = outputs.map(|output| output.as_mut_ptr());
    let mut at = start;
    while at < end {
        // SAFETY: the caller's; at + U * BYTES <= end, which lies within every slice.
        unsafe {
            let mut sums = [[V::zero(); U]; R];
            for (c, input) in inputs.iter().enumerate() {
                let input = input.as_ptr().add(at);
                let factors: [V::Factor; U] =
                    std::array::from_fn(|u| V::load(input.add(u * V::BYTES)).factor());
                for (sums, row) in sums.iter_mut().zip(rows) {
                    let constant = &V::constants()[usize::from(row[c])];
                    for (sum, factor) in sums.iter_mut().zip(factors) {
                        *sum = sum.add(V::times(factor, constant));
                    }
                }
            }
            for (sums, output) in sums.iter().zip(outputs) {
                for (u, sum) in sums.iter().enumerate() {
                    sum.store(output.add(at + u * V::BYTES));
                }
            }
        }
        at += U * V::BYTES;
    }
}

/// See [`super::CpuPath::evaluate`].
///
/// # Safety
/// The CPU has the features.
#[target_feature(enable = "avx512f,avx512bw,gfni")]
pub unsafe fn evaluate_avx512_gfni(point: &Block, data: &[u8]) -> Block {
    // SAFETY: the caller's.
    unsafe { evaluate::<Avx512Gfni, 16>(point, data) }
}

/// See [`super::CpuPath::evaluate`].
///
/// # Safety
/// The CPU has the features.
#[target_feature(enable = "avx2,gfni")]
pub unsafe fn evaluate_avx2_gfni(point: &Block, data: &[u8]) -> Block {
    // SAFETY: the caller's.
    unsafe { evaluate::<Avx2Gfni, 8>(point, data) }
}

/// See [`super::CpuPath::evaluate`].
///
/// # Safety
/// The CPU has the features.
#[target_feature(enable = "avx2")]
pub unsafe fn evaluate_avx2(point: &Block, data: &[u8]) -> Block {
    // SAFETY: the caller's.
    unsafe { evaluate::<Avx2, 8>(point, data) }
}

/// The most registers of data between two reductions. More cost more powers of the point, fewer cost more reductions;
/// short data takes fewer.
const GROUP: usize = 32;

/// Horner's rule with one polynomial per lane, in powers of S = point^lanes; the lanes are put together at the end.
///
/// A group of registers v_1 .. v_g becomes state * S^g + v_1 * S^(g-1) + .. + v_g. Every power of S is a sum of
/// c_k y^k with c_k in GF(2^8), so this is a sum over k of y^k times a weighted sum of the registers: sixteen sums
/// with byte constants, and one reduction for the whole group. `K` sums, all 16 or 8, are made in one pass.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn evaluate<V: Register, const K: usize>(point: &Block, data: &[u8]) -> Block {
    let lanes = V::BYTES / 16;
    let (whole, rest) = data.split_at(data.len() - data.len() % V::BYTES);
    // SAFETY: the caller's; `group` is a multiple of BYTES, with at most GROUP registers.
    unsafe {
        let mut powers = [*point; GROUP];
        powers[0] = (1..lanes).fold(*point, |power, _| product::<V, K>(&power, point));
        let group = (whole.len() / V::BYTES / 4).clamp(4, GROUP);
        for e in 1..group {
            powers[e] = product::<V, K>(&powers[e - 1], &powers[0]);
        }
        let mut state = V::zero();
        for group in whole.chunks(group * V::BYTES) {
            state = fold::<V, K>(state, group, &powers);
        }
        let mut blocks = [0; 64];
        state.store(blocks.as_mut_ptr());
        let lanes = blocks[..V::BYTES].as_chunks().0;
        horner::<V, K>(point, lanes, rest)
    }
}

/// Horner's rule block by block, over the lanes and then what fills no register.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn horner<V: Register, const K: usize>(point: &Block, lanes: &[Block], rest: &[u8]) -> Block {
    let rest = rest.chunks(16).map(portable::padded);
    let mut sum = [0; 16];
    for block in lanes.iter().copied().chain(rest) {
        // SAFETY: the caller's.
        let product = unsafe { product::<V, K>(&sum, point) };
        sum = (u128::from_le_bytes(product) ^ u128::from_le_bytes(block)).to_le_bytes();
    }
    sum
}

/// a * b, in the first lane.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn product<V: Register, const K: usize>(a: &Block, b: &Block) -> Block {
    let mut register = [0; 64];
    register[..16].copy_from_slice(a);
    // SAFETY: the caller's; the buffer holds the largest register.
    unsafe {
        let factor = V::load(register.as_ptr());
        fold::<V, K>(factor, &[0; 64][..V::BYTES], std::slice::from_ref(b)).store(register.as_mut_ptr());
    }
    *register.first_chunk().expect("a register holds a block")
}

/// `state * S^g + v_1 * S^(g-1) + .. + v_g` in every lane, where `powers[e]` is S^(e+1) and v_i the registers of `group`.
///
/// # Safety
/// The CPU has the features of `V`; `group` is whole registers, at least one and at most as many as there are powers.
#[inline(always)]
unsafe fn fold<V: Register, const K: usize>(state: V, group: &[u8], powers: &[Block]) -> V {
    let count = group.len() / V::BYTES;
    let powers = &powers[..count];
    // SAFETY: the caller's; register i of `group` begins at i * BYTES.
    unsafe {
        let register = |i: usize| V::load(group.as_ptr().add(i * V::BYTES));
        let (mut low, mut high) = (V::zero(), V::zero());
        for first in (0..16).step_by(K).rev() {
            let mut sums = [V::zero(); K];
            for i in 0..count - 1 {
                add_products(&mut sums, register(i), &powers[count - 2 - i], first);
            }
            // The state comes last: it is the only one that has to wait for the group before.
            add_products(&mut sums, state, &powers[count - 1], first);
            (low, high) = times_y8(low, high);
            add_shifted(&sums, &mut low, &mut high);
        }
        reduced(low, high).add(register(count - 1))
    }
}

/// `sums[k] += power[first + k] * register`.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn add_products<V: Register, const K: usize>(
    sums: &mut [V; K],
    register: V,
    power: &Block,
    first: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let factor = register.factor();
        for (sum, coefficient) in sums.iter_mut().zip(&power[first..]) {
            *sum = sum.add(V::times(factor, &V::constants()[usize::from(*coefficient)]));
        }
    }
}

/// The 32 bytes `low`, `high` times y^8, without what leaves them.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn times_y8<V: Register>(low: V, high: V) -> (V, V) {
    // SAFETY: the caller's.
    unsafe { (low.shifted_up::<8>(), high.shifted_up::<8>().add(low.shifted_down::<8>())) }
}

/// Adds each sum times y^k to the 32 bytes `low`, `high`.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn add_shifted<V: Register, const K: usize>(sums: &[V; K], low: &mut V, high: &mut V) {
    // The shifts are part of the instruction, so they cannot come from a loop.
    macro_rules! add {
        ($($k:literal)*) => { $(
            if let Some(sum) = sums.get($k) {
                *low = low.add(sum.shifted_up::<$k>());
                *high = high.add(sum.shifted_down::<{ 16 - $k }>());
            }
        )* };
    }
    // SAFETY: the caller's.
    unsafe {
        add!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
    }
}

/// `low + y^16 * high` modulo y^16 + y^3 + y + 6, where high has no y^15.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn reduced<V: Register>(low: V, high: V) -> V {
    // SAFETY: the caller's.
    unsafe {
        // y^3 * high has two bytes too many, which are reduced along with high.
        let high = high.add(high.shifted_down::<13>());
        let six = V::times(high.factor(), &V::constants()[6]);
        low.add(six).add(high.shifted_up::<1>()).add(high.shifted_up::<3>())
    }
}
