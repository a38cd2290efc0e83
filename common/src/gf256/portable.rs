//! The path that runs on every CPU, and the one the others are compared with.

use super::{Block, double};

/// Bytes of every slice worked on before the next ones, so that they stay in the first-level cache.
const STRIPE: usize = 4096;

/// See [`super::CpuPath::linear`]; the shape is the caller's to check.
pub fn linear(coefficients: &[u8], inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
    let length = inputs[0].len();
    for start in (0..length).step_by(STRIPE) {
        let end = length.min(start + STRIPE);
        linear_between(coefficients, inputs, outputs, start, end);
    }
}

/// The same for bytes `start..end` of every slice.
pub fn linear_between(
    coefficients: &[u8],
    inputs: &[&[u8]],
    outputs: &mut [&mut [u8]],
    start: usize,
    end: usize,
) {
    for (row, output) in coefficients.chunks_exact(inputs.len()).zip(outputs) {
        let output = &mut output[start..end];
        output.fill(0);
        for (&coefficient, input) in row.iter().zip(inputs) {
            add_product(coefficient, &input[start..end], output);
        }
    }
}

/// `output += coefficient * input`, as a sum over the bits of the input: the compiler makes vectors of it.
fn add_product(coefficient: u8, input: &[u8], output: &mut [u8]) {
    let multiples = doublings(coefficient);
    for (sum, byte) in output.iter_mut().zip(input) {
        for (bit, multiple) in multiples.iter().enumerate() {
            let mask = if byte & 1 << bit != 0 { 0xFF } else { 0 };
            *sum ^= multiple & mask;
        }
    }
}

/// `x`, `2x`, `4x`, .. `128x`.
fn doublings(x: u8) -> [u8; 8] {
    let mut multiples = [x; 8];
    for bit in 1..8 {
        multiples[bit] = double(multiples[bit - 1]);
    }
    multiples
}

/// See [`super::CpuPath::evaluate`].
pub fn evaluate(point: &Block, data: &[u8]) -> Block {
    let table = ProductTable::of(u128::from_le_bytes(*point));
    let (blocks, tail) = data.as_chunks::<16>();
    let whole = blocks.iter().fold(0, |sum, block| table.product(sum) ^ u128::from_le_bytes(*block));
    if tail.is_empty() {
        return whole.to_le_bytes();
    }
    (table.product(whole) ^ u128::from_le_bytes(padded(tail))).to_le_bytes()
}

/// A short block with zeros behind it.
pub fn padded(tail: &[u8]) -> Block {
    let mut block = [0; 16];
    block[..tail.len()].copy_from_slice(tail);
    block
}

/// All products of one element with a nibble at each of the 32 places: multiplication is 32 look-ups.
struct ProductTable([[u128; 16]; 32]);

impl ProductTable {
    fn of(element: u128) -> ProductTable {
        let mut tables = [[0; 16]; 32];
        let mut shifted = element;
        for pair in tables.chunks_exact_mut(2) {
            let middle = fill_nibble(&mut pair[0], shifted);
            fill_nibble(&mut pair[1], middle);
            shifted = times_y(shifted);
        }
        ProductTable(tables)
    }

    fn product(&self, x: u128) -> u128 {
        let low = x & 0x0F0F0F0F_0F0F0F0F_0F0F0F0F_0F0F0F0F;
        let high = (x ^ low) >> 4;
        let (low, high) = (low.to_le_bytes(), high.to_le_bytes());
        let mut product = 0;
        for (k, pair) in self.0.as_chunks::<2>().0.iter().enumerate() {
            product ^= pair[0][usize::from(low[k] & 15)] ^ pair[1][usize::from(high[k] & 15)];
        }
        product
    }
}

/// Fills in the multiples 0 to 15 of `element`; the answer is the sixteenth.
fn fill_nibble(table: &mut [u128; 16], element: u128) -> u128 {
    let mut power = element;
    for bit in 0..4 {
        let known = 1 << bit;
        for i in 0..known {
            table[known + i] = table[i] ^ power;
        }
        power = double_all(power);
    }
    power
}

/// Twice each of the 16 bytes.
fn double_all(x: u128) -> u128 {
    const TOP_BITS: u128 = 0x80808080_80808080_80808080_80808080;
    let carries = (x & TOP_BITS) >> 7;
    (x & !TOP_BITS) << 1 ^ carries ^ carries << 2 ^ carries << 3 ^ carries << 4
}

/// y * x, with y^16 = y^3 + y + 6.
fn times_y(x: u128) -> u128 {
    let carry = (x >> 120) as u8;
    let six = double(carry) ^ double(double(carry));
    let carry = u128::from(carry);
    x << 8 ^ carry << 24 ^ carry << 8 ^ u128::from(six)
}
