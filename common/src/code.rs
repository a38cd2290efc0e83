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

    /// f, the most nodes that may be Byzantine: `min((n-m)/2, (n-1)/3)`.
    pub fn faults(self) -> usize {
        (self.p() / 2).min((self.n() - 1) / 3)
    }

    /// Echoes for one FPCC that let a node send ready: `max(m+f, (n+f)/2 + 1)`, so that two FPCCs cannot both get there.
    pub fn echo_quorum(self) -> usize {
        let f = self.faults();
        (self.m() + f).max((self.n() + f) / 2 + 1)
    }

    /// Readies that let a node send ready without the echoes: f + 1, one of which is honest.
    pub fn ready_amplification(self) -> usize {
        self.faults() + 1
    }

    /// Readies that commit a version, and `stored` answers that end a client's write: 2f + 1.
    pub fn commit_quorum(self) -> usize {
        2 * self.faults() + 1
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

/// Only digits: `usize::from_str` alone would also take a sign.
fn count(digits: &str) -> Option<usize> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| digits.parse().ok()).flatten()
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

    /// (code, f, echo quorum, ready amplification, commit quorum), the table in docs/fpcc.md.
    #[test]
    fn a_quorum_is_a_majority_that_can_read() {
        let quorum = |text: &str| text.parse::<Code>().unwrap().quorum();
        assert_eq!(["3+2", "2+2", "1+1", "6+3", "1+4", "10+4"].map(quorum), [3, 3, 2, 6, 3, 10]);
    }

    #[test]
    fn quorums_of_the_usual_codes() {
        let table = [
            ("3+2", 1, 4, 2, 3),
            ("4+2", 1, 5, 2, 3),
            ("2+2", 1, 3, 2, 3),
            ("6+3", 1, 7, 2, 3),
            ("10+4", 2, 12, 3, 5),
            ("16+8", 4, 20, 5, 9),
        ];
        for (text, f, echo, amplification, commit) in table {
            let code = code(text);
            assert_eq!(code.faults(), f, "{text}");
            assert_eq!(code.echo_quorum(), echo, "{text}");
            assert_eq!(code.ready_amplification(), amplification, "{text}");
            assert_eq!(code.commit_quorum(), commit, "{text}");
        }
    }

    #[test]
    fn every_code_keeps_its_quorums_reachable_with_f_nodes_silent() {
        for m in 1..=254 {
            for p in 1..=255 - m {
                let code = Code::new(m, p).unwrap();
                let honest = code.n() - code.faults();
                assert!(code.echo_quorum() <= honest, "{code}");
                assert!(code.commit_quorum() <= honest, "{code}");
                assert!(code.n() > 3 * code.faults(), "{code}");
            }
        }
    }

    #[test]
    fn two_echo_quorums_share_an_honest_node_in_every_code() {
        for m in 1..=254 {
            for p in 1..=255 - m {
                let code = Code::new(m, p).unwrap();
                assert!(2 * code.echo_quorum() > code.n() + code.faults(), "{code}");
            }
        }
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
