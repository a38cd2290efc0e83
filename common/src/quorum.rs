//! How many nodes must say the same for n of them to agree while f lie: docs/fpcc.md has the table.

use crate::code::Code;

/// The quorums by which the n nodes of an object agree on one FPCC, for a code that tolerates f >= 1 liars.
///
/// Hendricks, Ganger, Reiter, PODC 2007, Fig. 4.2, where n = m + 2f; with more nodes than that the echo quorum is the
/// larger of what readers need (m honest holders) and what agreement needs (two quorums share an honest node).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Quorums {
    code: Code,
    faults: usize,
}

/// Why the nodes of an object cannot agree.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoQuorum {
    /// One lying node is one too many: there is nothing to agree on that a single liar could not undo.
    #[error(
        "code {code} tolerates no lying node: to agree, nodes need two parity fragments at least, and four fragments \
         in all, as 2+2 or 3+2 have"
    )]
    NoFaults {
        /// The code asked for.
        code: Code,
    },
    /// So many silent nodes stop every write: the others are fewer than an echo quorum.
    #[error(
        "code {code} with {faults} silent nodes has {honest} that echo, and needs {echo}: it tolerates {most} at most",
        most = code.faults()
    )]
    OutOfReach {
        /// The code asked for.
        code: Code,
        /// The liars asked for.
        faults: usize,
        /// n - f.
        honest: usize,
        /// The echo quorum.
        echo: usize,
    },
}

impl Quorums {
    /// For as many liars as the code tolerates, which must be one at least.
    pub fn of(code: Code) -> Result<Quorums, NoQuorum> {
        Quorums::tolerating(code, code.faults())
    }

    /// For `faults` liars, refused unless there is one at least and an echo quorum without them.
    ///
    /// f = n - m is refused for every code: its echo quorum is n, which one silent node keeps from being reached.
    pub fn tolerating(code: Code, faults: usize) -> Result<Quorums, NoQuorum> {
        if faults == 0 {
            return Err(NoQuorum::NoFaults { code });
        }
        let quorums = Quorums { code, faults };
        let (honest, echo) = (code.n().saturating_sub(faults), quorums.echo());
        if echo > honest {
            return Err(NoQuorum::OutOfReach { code, faults, honest, echo });
        }
        Ok(quorums)
    }

    /// The code they are for.
    pub fn code(self) -> Code {
        self.code
    }

    /// f, the most nodes that may do anything.
    pub fn faults(self) -> usize {
        self.faults
    }

    /// E = `max(m + f, (n + f)/2 + 1)` echoes for one FPCC let a node send ready: two FPCCs cannot both get there, and m
    /// honest nodes hold fragments of the one that does.
    pub fn echo(self) -> usize {
        let (m, n, f) = (self.code.m(), self.code.n(), self.faults);
        (m + f).max((n + f) / 2 + 1)
    }

    /// f + 1 readies let a node send ready without the echoes: one of them is honest.
    pub fn amplify(self) -> usize {
        self.faults + 1
    }

    /// 2f + 1 readies make an FPCC verified: f + 1 of them are honest, and amplify it at every other node.
    pub fn commit(self) -> usize {
        2 * self.faults + 1
    }

    /// 2f + 1 nodes that answer `stored` end a client's write.
    pub fn client(self) -> usize {
        2 * self.faults + 1
    }

    /// f + 1 nodes that report an FPCC as verified let a reader believe it: one of them is honest.
    pub fn report(self) -> usize {
        self.faults + 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn code(text: &str) -> Code {
        text.parse().unwrap()
    }

    fn quorums(text: &str) -> Quorums {
        Quorums::of(code(text)).unwrap()
    }

    fn every_code() -> impl Iterator<Item = Code> {
        (1..=254).flat_map(|m| (1..=255 - m).map(move |p| Code::new(m, p).unwrap()))
    }

    /// (code, f, echo, amplify, commit), the table in docs/fpcc.md.
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
        for (text, f, echo, amplify, commit) in table {
            let of = quorums(text);
            assert_eq!(
                (of.faults(), of.echo(), of.amplify(), of.commit()),
                (f, echo, amplify, commit),
                "{text}"
            );
            assert_eq!((of.client(), of.report()), (commit, amplify), "{text}");
        }
    }

    #[test]
    fn a_code_has_quorums_exactly_if_it_tolerates_a_liar() {
        for code in every_code() {
            let tolerates = code.p() >= 2 && code.n() >= 4;
            assert_eq!(Quorums::of(code).is_ok(), tolerates, "{code}");
        }
        for text in ["1+1", "3+1", "1+2", "254+1"] {
            assert_eq!(Quorums::of(code(text)), Err(NoQuorum::NoFaults { code: code(text) }));
        }
    }

    #[test]
    fn two_echo_quorums_share_an_honest_node() {
        for of in every_code().filter_map(|code| Quorums::of(code).ok()) {
            assert!(2 * of.echo() - of.code().n() > of.faults(), "{}", of.code());
        }
    }

    #[test]
    fn m_honest_nodes_hold_what_an_echo_quorum_echoed() {
        for of in every_code().filter_map(|code| Quorums::of(code).ok()) {
            assert!(of.echo() - of.faults() >= of.code().m(), "{}", of.code());
        }
    }

    #[test]
    fn the_honest_nodes_alone_reach_every_quorum() {
        for of in every_code().filter_map(|code| Quorums::of(code).ok()) {
            let honest = of.code().n() - of.faults();
            assert!(of.echo() <= honest && of.client() <= honest, "{}", of.code());
        }
    }

    #[test]
    fn what_one_node_commits_every_other_amplifies() {
        for of in every_code().filter_map(|code| Quorums::of(code).ok()) {
            assert!(of.commit() - of.faults() >= of.amplify(), "{}", of.code());
        }
    }

    #[test]
    fn no_code_tolerates_one_liar_more_than_its_f() {
        for code in every_code() {
            let one_more = code.faults() + 1;
            assert!(
                matches!(Quorums::tolerating(code, one_more), Err(NoQuorum::OutOfReach { .. })),
                "{code}"
            );
        }
    }

    #[test]
    fn as_many_liars_as_may_be_lost_are_too_many() {
        let refused = Quorums::tolerating(code("3+2"), 2).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "code 3+2 with 2 silent nodes has 3 that echo, and needs 5: it tolerates 1 at most"
        );
    }

    proptest! {
        /// Also with fewer liars than the code would tolerate.
        #[test]
        fn whatever_is_not_refused_agrees_and_ends(
            (m, p) in (1usize..=254).prop_flat_map(|m| (Just(m), 1..=255 - m)),
            faults in 0usize..=300,
        ) {
            let Ok(of) = Quorums::tolerating(Code::new(m, p).unwrap(), faults) else { return Ok(()) };
            let (n, f) = (m + p, of.faults());
            prop_assert!(f >= 1 && f <= of.code().faults());
            prop_assert!(2 * of.echo() > n + f && of.echo() >= m + f && of.echo() <= n - f);
            prop_assert!(of.commit() <= n - f && n > 3 * f);
        }
    }
}
