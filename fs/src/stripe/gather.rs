//! Which fragments of an object to ask for next, and of whom. What is wanted, what is there and how nodes answered
//! in; requests out. No network, no clock.
//!
//! Data fragments first: when none is missing there is nothing to decode. One that cannot be had directly is made from
//! m others, and a request that failed or is late is replaced by one other.

use std::collections::BTreeSet;

use common::code::Code;
use common::wire::NodeId;

/// Where a fragment may be had.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Source {
    /// The mount's own cache; no good as an answer of its own, as whoever wants a fragment has looked there.
    Cache,
    /// A node that should have it.
    Node(NodeId),
    /// A node that may have it though the metadata says otherwise.
    Perhaps(NodeId),
}

/// How readily a source is asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Rank {
    /// At once.
    First,
    /// When those are not enough.
    Second,
    /// When nothing else is left.
    Last,
}

/// How a request ended without a good fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Miss {
    /// It may be there next time.
    Passing,
    /// It is not there, or is not what it should be.
    Final,
}

/// See the module.
pub(super) struct Gather {
    code: Code,
    wanted: BTreeSet<usize>,
    have: BTreeSet<usize>,
    candidates: Vec<Candidate>,
}

struct Candidate {
    index: usize,
    source: Source,
    misses: u8,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Asked,
    Late,
    Dead,
}

impl Gather {
    pub(super) fn new(code: Code) -> Gather {
        Gather { code, wanted: BTreeSet::new(), have: BTreeSet::new(), candidates: Vec::new() }
    }

    /// A place where a fragment may be; one already known is not asked twice.
    pub(super) fn add(&mut self, index: usize, source: Source) {
        let is_known = |candidate: &Candidate| candidate.index == index && candidate.source == source;
        if index < self.code.n() && !self.candidates.iter().any(is_known) {
            self.candidates.push(Candidate { index, source, misses: 0, state: State::Idle });
        }
    }

    /// Someone wants a fragment.
    pub(super) fn want(&mut self, index: usize) {
        self.wanted.insert(index);
    }

    /// A checked fragment is there.
    pub(super) fn got(&mut self, index: usize, source: Source) {
        self.have.insert(index);
        self.set(index, source, State::Dead);
    }

    /// A request did not bring one.
    pub(super) fn missed(&mut self, index: usize, source: Source, miss: Miss) {
        let candidate = self.candidate(index, source);
        candidate.misses += 1;
        let again = miss == Miss::Passing && candidate.misses < 2;
        candidate.state = if again { State::Idle } else { State::Dead };
    }

    /// A request is unanswered for so long that another one is worth sending.
    pub(super) fn is_late(&mut self, index: usize, source: Source) {
        self.set(index, source, State::Late);
    }

    /// The wanted fragments that are not there.
    pub(super) fn missing(&self) -> Vec<usize> {
        self.wanted.difference(&self.have).copied().collect()
    }

    /// Whether everything wanted is there or can be decoded.
    pub(super) fn is_enough(&self) -> bool {
        self.have.len() >= self.code.m() || self.missing().is_empty()
    }

    /// Data fragments worth decoding along with the wanted ones: nobody who has them is asked readily.
    pub(super) fn worth_decoding(&self, rank: &impl Fn(Source) -> Rank) -> Vec<usize> {
        let absent = (0..self.code.m()).filter(|index| !self.have.contains(index));
        absent
            .filter(|&index| self.wanted.contains(&index) || self.best(index, Rank::First, rank).is_none())
            .collect()
    }

    /// Whether requests are out.
    pub(super) fn is_waiting(&self) -> bool {
        self.candidates.iter().any(|candidate| matches!(candidate.state, State::Asked | State::Late))
    }

    /// What to ask now, and whether the places known and readily asked are too few; those requests count as sent.
    pub(super) fn next_asks(&mut self, rank: impl Fn(Source) -> Rank) -> (Vec<(usize, Source)>, bool) {
        let mut asks = Vec::new();
        if self.is_enough() {
            return (asks, false);
        }
        for worst in [Rank::First, Rank::Second, Rank::Last] {
            for index in self.missing() {
                self.ask_for(index, worst, &rank, &mut asks);
            }
            if self.missing().iter().all(|&index| self.is_coming(index)) {
                return (asks, worst == Rank::Last);
            }
            for index in 0..self.code.n() {
                if self.expected() >= self.code.m() {
                    return (asks, worst == Rank::Last);
                }
                self.ask_for(index, worst, &rank, &mut asks);
            }
            if self.expected() >= self.code.m() {
                return (asks, worst == Rank::Last);
            }
        }
        (asks, true)
    }

    /// Different fragments that are there or on their way in time.
    fn expected(&self) -> usize {
        (0..self.code.n()).filter(|&index| self.have.contains(&index) || self.is_coming(index)).count()
    }

    fn is_coming(&self, index: usize) -> bool {
        self.candidates.iter().any(|candidate| candidate.index == index && candidate.state == State::Asked)
    }

    fn ask_for(
        &mut self,
        index: usize,
        worst: Rank,
        rank: &impl Fn(Source) -> Rank,
        asks: &mut Vec<(usize, Source)>,
    ) {
        if self.have.contains(&index) || self.is_coming(index) {
            return;
        }
        if let Some(source) = self.best(index, worst, rank) {
            self.set(index, source, State::Asked);
            asks.push((index, source));
        }
    }

    /// The best source of a fragment that can be asked; one that missed comes last.
    fn best(&self, index: usize, worst: Rank, rank: &impl Fn(Source) -> Rank) -> Option<Source> {
        let ranked = self.candidates.iter().filter(|c| c.index == index && c.state == State::Idle).map(|c| {
            let rank = if c.misses > 0 { Rank::Last } else { rank(c.source) };
            (rank, c.source)
        });
        let best = ranked.filter(|(rank, _)| *rank <= worst).min_by_key(|(rank, _)| *rank);
        best.map(|(_, source)| source)
    }

    fn set(&mut self, index: usize, source: Source, state: State) {
        self.candidate(index, source).state = state;
    }

    fn candidate(&mut self, index: usize, source: Source) -> &mut Candidate {
        let is_it = |candidate: &&mut Candidate| candidate.index == index && candidate.source == source;
        self.candidates.iter_mut().find(is_it).expect("only candidates are asked")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: usize) -> NodeId {
        NodeId([number as u8; 16])
    }

    /// Fragment i is on node i.
    fn gather(text: &str, wanted: &[usize]) -> Gather {
        let code: Code = text.parse().unwrap();
        let mut gather = Gather::new(code);
        (0..code.n()).for_each(|index| gather.add(index, Source::Node(node(index))));
        wanted.iter().for_each(|&index| gather.want(index));
        gather
    }

    fn asks(gather: &mut Gather, down: &[usize]) -> Vec<usize> {
        let rank = |source| match source {
            Source::Node(asked) if down.iter().any(|&number| node(number) == asked) => Rank::Last,
            _ => Rank::First,
        };
        gather.next_asks(rank).0.into_iter().map(|(index, _)| index).collect()
    }

    #[test]
    fn a_healthy_read_asks_only_for_what_is_wanted() {
        assert_eq!(asks(&mut gather("3+2", &[1]), &[]), [1]);
        let mut all = gather("3+2", &[0, 1, 2]);
        assert_eq!(asks(&mut all, &[]), [0, 1, 2]);
        assert!(asks(&mut all, &[]).is_empty());
        (0..3).for_each(|index| all.got(index, Source::Node(node(index))));
        assert!(all.is_enough() && all.missing().is_empty());
    }

    #[test]
    fn a_node_known_to_be_down_is_not_asked_and_costs_one_parity_fragment() {
        assert_eq!(asks(&mut gather("3+2", &[0, 1, 2]), &[0]), [1, 2, 3]);
        assert_eq!(asks(&mut gather("3+2", &[0, 1, 2]), &[0, 2]), [1, 3, 4]);
    }

    #[test]
    fn a_liar_or_a_laggard_costs_one_more_request() {
        let mut liar = gather("3+2", &[0, 1, 2]);
        asks(&mut liar, &[]);
        liar.missed(1, Source::Node(node(1)), Miss::Final);
        assert_eq!(asks(&mut liar, &[]), [3]);
        let mut laggard = gather("3+2", &[0, 1, 2]);
        asks(&mut laggard, &[]);
        laggard.is_late(1, Source::Node(node(1)));
        assert_eq!(asks(&mut laggard, &[]), [3]);
        assert!(asks(&mut laggard, &[]).is_empty());
    }

    #[test]
    fn one_fragment_that_cannot_be_had_directly_is_made_from_m_others() {
        let mut one = gather("3+2", &[0]);
        asks(&mut one, &[]);
        one.missed(0, Source::Node(node(0)), Miss::Final);
        assert_eq!(asks(&mut one, &[]), [1, 2, 3]);
        [1, 2, 3].into_iter().for_each(|index| one.got(index, Source::Node(node(index))));
        assert!(one.is_enough());
        assert_eq!(one.worth_decoding(&|_| Rank::First), [0]);
    }

    #[test]
    fn nodes_that_are_down_are_asked_when_nothing_else_is_left() {
        let mut few = gather("3+2", &[0, 1, 2]);
        assert_eq!(asks(&mut few, &[2, 3, 4]), [0, 1, 2]);
        few.missed(2, Source::Node(node(2)), Miss::Passing);
        assert_eq!(asks(&mut few, &[2, 3, 4]), [2], "it may be back");
        few.missed(2, Source::Node(node(2)), Miss::Passing);
        assert_eq!(asks(&mut few, &[2, 3, 4]), [3]);
        few.missed(3, Source::Node(node(3)), Miss::Final);
        few.got(0, Source::Node(node(0)));
        few.got(1, Source::Node(node(1)));
        assert_eq!(asks(&mut few, &[2, 3, 4]), [4]);
        few.missed(4, Source::Node(node(4)), Miss::Final);
        assert!(asks(&mut few, &[]).is_empty() && !few.is_waiting() && !few.is_enough());
    }

    #[test]
    fn every_pattern_of_dead_nodes_ends_with_the_bytes_or_without_hope() {
        for text in ["3+2", "2+2", "2+1", "1+1", "4+2"] {
            let code: Code = text.parse().unwrap();
            for dead in 0u32..1 << code.n() {
                let mut gather = gather(text, &(0..code.m()).collect::<Vec<_>>());
                loop {
                    let asks = asks(&mut gather, &[]);
                    if asks.is_empty() {
                        break;
                    }
                    for index in asks {
                        match dead & (1 << index) {
                            0 => gather.got(index, Source::Node(node(index))),
                            _ => gather.missed(index, Source::Node(node(index)), Miss::Passing),
                        }
                    }
                }
                let readable = code.n() - dead.count_ones() as usize >= code.m();
                assert_eq!(gather.is_enough(), readable, "{text} without {dead:b}");
            }
        }
    }
}
