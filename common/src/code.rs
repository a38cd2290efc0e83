//! How many fragments an object has, and how many of them may fail.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A code `m+p`: m data and p parity fragments, of which any m rebuild the object.
///
/// Written `3+2`, also in serde.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Code {
    m: u8,
    n: u8,
}

/// Why two numbers, or a text, are not a code.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CodeError {
    /// m or p is 0, or there are more fragments than the field has elements for.
    #[error("code {m}+{p}: both numbers must be at least 1 and their sum at most 255")]
    OutOfRange {
        /// Data fragments asked for.
        m: usize,
        /// Parity fragments asked for.
        p: usize,
    },
    /// Not of the form `m+p`.
    #[error("code {0:?}: expected two numbers such as 3+2")]
    NotACode(String),
}

impl Code {
    /// The code with `m` data and `p` parity fragments; `m >= 1`, `p >= 1`, `m + p <= 255`.
    pub fn new(m: usize, p: usize) -> Result<Code, CodeError> {
        let in_range = (1..=254).contains(&m) && (1..=254).contains(&p) && m + p <= 255;
        if !in_range {
            return Err(CodeError::OutOfRange { m, p });
        }
        Ok(Code { m: m as u8, n: (m + p) as u8 })
    }

    /// Data fragments: the fewest that rebuild an object.
    pub fn m(self) -> usize {
        usize::from(self.m)
    }

    /// Parity fragments: how many may be lost once all are stored.
    pub fn p(self) -> usize {
        self.n() - self.m()
    }

    /// All fragments.
    pub fn n(self) -> usize {
        usize::from(self.n)
    }

    /// f, the most nodes that may be Byzantine: `min((n-m)/2, (n-1)/3)`. `quorum::Quorums` is how the others agree.
    pub fn faults(self) -> usize {
        (self.p() / 2).min((self.n() - 1) / 3)
    }

    /// s = max(f, 1): the node losses that a write must survive from the moment it succeeds.
    pub fn margin(self) -> usize {
        self.faults().max(1)
    }

    /// How many of a volume's n root nodes must have its newest state for it to count: more than half, and enough to read.
    pub fn quorum(self) -> usize {
        self.m().max(self.n() / 2 + 1)
    }

    /// How many of the n root nodes must answer for the newest state to be among their answers: one of every `quorum`.
    pub fn reading_quorum(self) -> usize {
        self.n() - self.quorum() + 1
    }

    /// The same while f of those that answer may lie: `(n+f)/2 + 1`.
    pub fn fresh_quorum(self) -> usize {
        (self.n() + self.faults()) / 2 + 1
    }

    /// Bytes of each fragment of an object of `object_length` bytes: `ceil(object_length / m)`.
    ///
    /// Panics when the result does not fit the address space, or for an empty object, which has no fragments.
    pub fn fragment_length(self, object_length: u64) -> usize {
        assert!(object_length >= 1, "an empty object has no fragments");
        let length = object_length.div_ceil(self.m() as u64);
        usize::try_from(length).expect("a fragment fits the address space")
    }

    /// Bytes of all data fragments together: an object's and the zeros (m - 1 at most) that fill up its last one.
    ///
    /// Panics as `fragment_length`.
    pub fn padded_length(self, object_length: u64) -> usize {
        self.m() * self.fragment_length(object_length)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.m(), self.p())
    }
}

impl FromStr for Code {
    type Err = CodeError;

    fn from_str(text: &str) -> Result<Code, CodeError> {
        let not_a_code = || CodeError::NotACode(text.to_owned());
        let (m, p) = text.split_once('+').ok_or_else(not_a_code)?;
        let m = count(m).ok_or_else(not_a_code)?;
        let p = count(p).ok_or_else(not_a_code)?;
        Code::new(m, p)
    }
}

/// Only digits, and no leading zeros, so that a code has one spelling: `usize::from_str` alone would also take a sign.
fn count(digits: &str) -> Option<usize> {
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let is_canonical = digits == "0" || !digits.starts_with('0');
    (is_plain && is_canonical).then(|| digits.parse().ok()).flatten()
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Code, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, StrDeserializer};

    use super::*;

    fn code(text: &str) -> Code {
        text.parse().unwrap()
    }

    #[test]
    fn a_quorum_is_a_majority_that_can_read() {
        let quorum = |text: &str| text.parse::<Code>().unwrap().quorum();
        assert_eq!(["3+2", "2+2", "1+1", "6+3", "1+4", "10+4"].map(quorum), [3, 3, 2, 6, 3, 10]);
    }

    #[test]
    fn a_code_with_one_parity_fragment_has_no_faults_but_a_margin_of_one() {
        assert_eq!(code("3+1").faults(), 0);
        assert_eq!(code("3+1").margin(), 1);
        assert_eq!(code("16+8").margin(), 4);
    }

    #[test]
    fn a_code_is_written_as_it_is_read() {
        assert_eq!(code("10+4").to_string(), "10+4");
        assert_eq!(code("254+1").n(), 255);
        let from_serde: StrDeserializer<'_, Error> = "3+2".into_deserializer();
        assert_eq!(Code::deserialize(from_serde), Ok(code("3+2")));
    }

    #[test]
    fn what_is_not_a_code_is_refused() {
        for text in ["", "3", "3+", "+2", "0+2", "3+0", "200+56", "3+2+1", "++2", "3 + 2", "-3+2", "3++2"] {
            assert!(text.parse::<Code>().is_err(), "{text:?}");
        }
        let huge = format!("{}+{}", usize::MAX, usize::MAX);
        assert!(huge.parse::<Code>().is_err());
        for second_spelling in ["03+2", "3+02", "00+2", &format!("{}3+2", "0".repeat(1 << 20))] {
            assert!(matches!(second_spelling.parse::<Code>(), Err(CodeError::NotACode(_))));
        }
    }

    #[test]
    fn a_fragment_is_an_mth_of_the_object_rounded_up() {
        let code = code("3+2");
        let lengths = [(1, 1), (3, 1), (4, 2), (4 << 20, 1_398_102)];
        for (object, fragment) in lengths {
            assert_eq!(code.fragment_length(object), fragment);
        }
    }
}
