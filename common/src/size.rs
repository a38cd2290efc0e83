//! Byte sizes as people write them: `100GiB`, `64MiB`, `1GB`, `4096`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes.
///
/// Read from digits with an optional unit: `B`, `KiB` .. `EiB` (powers of 1024) or `kB` .. `EB` (powers of 1000).
/// Written in the largest unit of 1024 that divides it, so that it reads back as it was.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ByteSize(pub u64);

/// A text that is not a byte size.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a size: expected a number of bytes such as 64MiB, 100GiB, 1GB or 4096")]
pub struct NotASize(String);

const BINARY: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
const DECIMAL: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];

impl ByteSize {
    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = NotASize;

    fn from_str(text: &str) -> Result<ByteSize, NotASize> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let bytes = number.parse::<u64>().ok().zip(unit_bytes(unit.trim_start()));
        let bytes = bytes.and_then(|(number, unit)| number.checked_mul(unit));
        bytes.map(ByteSize).ok_or_else(|| NotASize(text.to_owned()))
    }
}

fn unit_bytes(unit: &str) -> Option<u64> {
    let power = |units: [&str; 7]| units.iter().position(|known| known.eq_ignore_ascii_case(unit));
    if unit.is_empty() {
        return Some(1);
    }
    let binary = power(BINARY).map(|power| 1024u64.pow(power as u32));
    binary.or_else(|| power(DECIMAL).map(|power| 1000u64.pow(power as u32)))
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let power = (self.0.trailing_zeros() / 10).min(6);
        match self.0 {
            0 => f.write_str("0B"),
            bytes => write!(f, "{}{}", bytes >> (10 * power), BINARY[power as usize]),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// From a text with a unit, or from a plain number.
impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a number of bytes such as 64MiB")]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(bytes) => Ok(ByteSize(bytes)),
            Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        let sizes = [
            ("4096", 4096),
            ("0", 0),
            ("7B", 7),
            ("64MiB", 64 << 20),
            ("64 MiB", 64 << 20),
            ("100GiB", 100 << 30),
            ("1GB", 1_000_000_000),
            ("1gib", 1 << 30),
            ("2kB", 2000),
            ("15EiB", 15 << 60),
        ];
        for (text, bytes) in sizes {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in
            ["", "GiB", "-1", "+1", "1.5GiB", "1 G iB", "64M iB", "1x", "16EiB", "99999999999999999999"]
        {
            assert!(text.parse::<ByteSize>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_size_reads_back_as_it_was_written() {
        for bytes in [0, 1, 1023, 1024, 1025, 3 << 20, 1_000_000_000, u64::MAX, 1 << 63] {
            assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
        assert_eq!(ByteSize(128 << 20).to_string(), "128MiB");
    }
}
