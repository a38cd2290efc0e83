//! Where the fragments of one object go while it is being stored: who acknowledged what, who is asked next, whether
//! the object is *stored* (volume.md section 1). Nodes' answers in, nodes to ask out; no network, no clock.

use std::collections::HashSet;

use common::code::Code;
use common::wire::NodeId;

use crate::metadata::Exception;

/// Whether for every choice of `margin` nodes the fragments on the others are enough, each index having one holder:
/// all of them less those of the fullest nodes.
pub(super) fn is_stored(code: Code, margin: usize, holders: &[Option<NodeId>]) -> bool {
    let mut counts: Vec<(NodeId, usize)> = Vec::new();
    for &holder in holders.iter().flatten() {
        match counts.iter_mut().find(|(node, _)| *node == holder) {
            Some((_, count)) => *count += 1,
            None => counts.push((holder, 1)),
        }
    }
    let mut counts: Vec<usize> = counts.into_iter().map(|(_, count)| count).collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    counts.iter().skip(margin).sum::<usize>() >= code.m()
}

/// How many nodes may be lost, whichever they are; none if it cannot be read as it is.
pub(super) fn survives(code: Code, holders: &[Option<NodeId>]) -> Option<usize> {
    (0..=code.p()).take_while(|&losses| is_stored(code, losses, holders)).last()
}

/// s for a code while so many nodes take data: with one parity fragment a write cannot survive a further loss once a
/// node is missing, and goes on all the same; `status` says so.
pub(super) fn margin(code: Code, live: usize) -> usize {
    if code.p() == 1 && live < code.n() { 0 } else { code.margin() }
}

/// The fewest nodes up that can make an object *stored*, with the fragments spread evenly.
pub fn fewest_nodes(code: Code) -> usize {
    let enough = |nodes: &usize| {
        let margin = margin(code, *nodes);
        let fullest = (0..margin.min(*nodes)).map(|rank| share(code.n(), *nodes, rank)).sum::<usize>();
        code.n() - fullest >= code.m()
    };
    (1..=code.n()).find(enough).expect("n nodes are enough for every code")
}

/// How many of `count` fragments lie on the node of this rank when they lie as evenly as possible.
fn share(count: usize, nodes: usize, rank: usize) -> usize {
    count / nodes + usize::from(rank < count % nodes)
}

/// See the module.
pub(super) struct Spread {
    code: Code,
    homes: Vec<NodeId>,
    /// In the order in which they are handed what others cannot take.
    nodes: Vec<Candidate>,
    /// By index.
    holders: Vec<Option<NodeId>>,
    in_flight: Vec<InFlight>,
}

struct Candidate {
    node: NodeId,
    standing: Standing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It may be asked.
    Usable,
    /// Known to be down or full; asked only where the others are not enough.
    LastResort,
    /// It did not take a fragment of this object.
    Out,
}

struct InFlight {
    index: usize,
    node: NodeId,
    /// Unanswered for so long that another node is asked too.
    late: bool,
}

impl Spread {
    /// Nothing sent yet. `order` names every node, homes included, in the order of handoff.
    pub(super) fn new(
        code: Code,
        homes: Vec<NodeId>,
        order: Vec<NodeId>,
        usable: &HashSet<NodeId>,
    ) -> Spread {
        let standing = |node| if usable.contains(&node) { Standing::Usable } else { Standing::LastResort };
        let nodes = order.into_iter().map(|node| Candidate { node, standing: standing(node) }).collect();
        let holders = vec![None; code.n()];
        let mut spread = Spread { code, homes, nodes, holders, in_flight: Vec::new() };
        spread.fall_back_if_needed();
        spread
    }

    /// Fragments that lie somewhere already. Where they lie so unevenly that the object cannot become *stored*, some of
    /// the fullest nodes' are sent elsewhere.
    pub(super) fn with_holders(mut self, holders: Vec<Option<NodeId>>) -> Spread {
        self.holders = holders;
        self.fall_back_if_needed();
        while self.is_hopeless() {
            let Some(index) = self.one_of_the_fullest() else { break };
            self.holders[index] = None;
        }
        self
    }

    /// What to send now; it counts as in flight from here on.
    pub(super) fn next_sends(&mut self) -> Vec<(usize, NodeId)> {
        let homeless = (0..self.code.n()).filter(|&index| !self.is_under_way(index)).collect::<Vec<_>>();
        // Homes first, so that the least loaded node is chosen with every home's load counted.
        let (at_home, away): (Vec<usize>, Vec<usize>) =
            homeless.into_iter().partition(|&index| self.may_take(index, self.homes[index]));
        let mut sends = Vec::new();
        for index in at_home {
            sends.push(self.send(index, self.homes[index]));
        }
        for index in away {
            if let Some(node) = self.least_loaded(index) {
                sends.push(self.send(index, node));
            }
        }
        sends
    }

    /// A node keeps a fragment. Where two do, the home counts, otherwise the first, unless the second makes it lie more
    /// evenly and it needs that to be *stored*. Returns whether this one does.
    pub(super) fn acknowledged(&mut self, index: usize, node: NodeId) -> bool {
        self.in_flight.retain(|sent| (sent.index, sent.node) != (index, node));
        let counts = self.improves(&self.holders, index, node);
        if counts {
            self.holders[index] = Some(node);
        }
        self.holders[index] == Some(node)
    }

    /// A node did not take a fragment; it gets no more of this object.
    pub(super) fn failed(&mut self, index: usize, node: NodeId) {
        self.in_flight.retain(|sent| (sent.index, sent.node) != (index, node));
        self.candidate(node).standing = Standing::Out;
        self.fall_back_if_needed();
    }

    /// A node has not answered for long; what it was sent is sent elsewhere too, if there is somewhere.
    /// False if that was known.
    pub(super) fn is_late(&mut self, index: usize, node: NodeId) -> bool {
        let sent = self.in_flight.iter_mut().find(|sent| (sent.index, sent.node) == (index, node));
        sent.is_some_and(|sent| !std::mem::replace(&mut sent.late, true))
    }

    /// Whether the object is *stored*.
    pub(super) fn is_stored(&self) -> bool {
        is_stored(self.code, self.margin(), &self.holders)
    }

    /// Whether it cannot become stored even if every node still in question takes what it would be sent.
    pub(super) fn is_hopeless(&self) -> bool {
        !self.is_stored() && !self.could_be_stored(|standing| standing != Standing::Out)
    }

    /// Whether it would have become stored with these nodes' help.
    pub(super) fn would_be_stored_with(&mut self, nodes: &HashSet<NodeId>) -> bool {
        for candidate in self.nodes.iter_mut().filter(|candidate| nodes.contains(&candidate.node)) {
            candidate.standing = Standing::Usable;
        }
        !self.is_hopeless()
    }

    /// Whether every fragment lies somewhere, or no node is left that could take it.
    pub(super) fn is_settled(&self) -> bool {
        let open = |index: usize| self.holders[index].is_none();
        !(0..self.code.n()).any(open) || self.in_flight.iter().all(|sent| !open(sent.index))
    }

    /// Whether every node that was asked has answered: one that is late may still be what an object lacks to be *stored*.
    pub(super) fn is_answered(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// The fragments in flight that nobody holds yet.
    pub(super) fn awaited(&self) -> impl Iterator<Item = (usize, NodeId)> + '_ {
        let open = self.in_flight.iter().filter(|sent| self.holders[sent.index].is_none());
        open.map(|sent| (sent.index, sent.node))
    }

    /// The fragments in flight that are not late.
    pub(super) fn in_time(&self) -> impl Iterator<Item = (usize, NodeId)> + '_ {
        self.in_flight.iter().filter(|sent| !sent.late).map(|sent| (sent.index, sent.node))
    }

    /// What is not at home.
    pub(super) fn exceptions(&self) -> Vec<Exception> {
        exceptions(&self.homes, &self.holders)
    }

    /// Nodes that acknowledged something.
    pub(super) fn answered(&self) -> usize {
        self.holders.iter().flatten().collect::<HashSet<_>>().len()
    }

    /// s, as many nodes as take data now.
    pub(super) fn margin(&self) -> usize {
        margin(
            self.code,
            self.nodes.iter().filter(|candidate| candidate.standing == Standing::Usable).count(),
        )
    }

    fn is_under_way(&self, index: usize) -> bool {
        self.holders[index].is_some() || self.in_flight.iter().any(|sent| sent.index == index && !sent.late)
    }

    fn may_take(&self, index: usize, node: NodeId) -> bool {
        let standing = self.nodes.iter().find(|candidate| candidate.node == node).map(|c| c.standing);
        standing == Some(Standing::Usable)
            && !self.in_flight.iter().any(|sent| sent.node == node && (sent.late || sent.index == index))
    }

    fn least_loaded(&self, index: usize) -> Option<NodeId> {
        let able =
            self.nodes.iter().map(|candidate| candidate.node).filter(|&node| self.may_take(index, node));
        able.min_by_key(|&node| self.load(node))
    }

    fn load(&self, node: NodeId) -> usize {
        let held = self.holders.iter().filter(|&&holder| holder == Some(node)).count();
        let open = self.awaited().filter(|&(_, asked)| asked == node).count();
        held + open
    }

    /// Whether another holder of a fragment is better than the one it has.
    fn improves(&self, holders: &[Option<NodeId>], index: usize, node: NodeId) -> bool {
        let load = |node| holders.iter().filter(|&&holder| holder == Some(node)).count();
        match holders[index] {
            None => true,
            Some(_) if node == self.homes[index] => true,
            Some(first) => {
                first != self.homes[index]
                    && load(node) + 1 < load(first)
                    && !is_stored(self.code, self.margin(), holders)
            }
        }
    }

    /// A fragment on the node that holds most, while that is more than one; one that is not at home first.
    fn one_of_the_fullest(&self) -> Option<usize> {
        let held = self.holders.iter().enumerate().filter_map(|(index, holder)| Some((index, (*holder)?)));
        let crowded = held.map(|(index, node)| (self.load(node), node != self.homes[index], index));
        crowded.filter(|(load, _, _)| *load > 1).max().map(|(_, _, index)| index)
    }

    fn send(&mut self, index: usize, node: NodeId) -> (usize, NodeId) {
        self.in_flight.push(InFlight { index, node, late: false });
        (index, node)
    }

    fn candidate(&mut self, node: NodeId) -> &mut Candidate {
        self.nodes.iter_mut().find(|candidate| candidate.node == node).expect("only candidates are sent to")
    }

    /// Nodes said to be down or full are asked as well rather than failing without having asked.
    fn fall_back_if_needed(&mut self) {
        if self.could_be_stored(|standing| standing == Standing::Usable) {
            return;
        }
        for candidate in self.nodes.iter_mut().filter(|candidate| candidate.standing == Standing::LastResort)
        {
            candidate.standing = Standing::Usable;
        }
    }

    fn could_be_stored(&self, counts: impl Fn(Standing) -> bool) -> bool {
        let able: Vec<NodeId> =
            self.nodes.iter().filter(|candidate| counts(candidate.standing)).map(|c| c.node).collect();
        let mut holders = self.holders.clone();
        // Whoever is late may take it yet.
        for sent in self.in_flight.iter().filter(|sent| able.contains(&sent.node)) {
            if self.improves(&holders, sent.index, sent.node) {
                holders[sent.index] = Some(sent.node);
            }
        }
        for (holder, home) in holders.iter_mut().zip(&self.homes) {
            *holder = holder.or(able.contains(home).then_some(*home));
        }
        for index in 0..holders.len() {
            let load = |node: &NodeId| holders.iter().filter(|&&holder| holder == Some(*node)).count();
            holders[index] = holders[index].or_else(|| able.iter().copied().min_by_key(load));
        }
        is_stored(self.code, margin(self.code, able.len()), &holders)
    }
}

/// What is not at home, by index.
pub(super) fn exceptions(homes: &[NodeId], holders: &[Option<NodeId>]) -> Vec<Exception> {
    let placed = homes.iter().zip(holders).enumerate();
    let away = placed.filter(|(_, (home, holder))| **holder != Some(**home));
    away.map(|(index, (_, holder))| Exception { index: index as u8, node: *holder }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId([number; 16])
    }

    fn nodes(count: usize) -> Vec<NodeId> {
        (0..count as u8).map(node).collect()
    }

    fn code(text: &str) -> Code {
        text.parse().unwrap()
    }

    /// A spread over `count` nodes, homes being the first n, of which `down` are known to be down.
    fn spread(text: &str, count: usize, down: &[u8]) -> Spread {
        let homes = nodes(code(text).n());
        let usable = nodes(count).into_iter().filter(|node| !down.contains(&node.0[0])).collect();
        Spread::new(code(text), homes, nodes(count), &usable)
    }

    /// Let every node but `dead` acknowledge what it is sent, until nothing is sent any more.
    fn play(spread: &mut Spread, dead: &[u8]) {
        loop {
            let sends = spread.next_sends();
            if sends.is_empty() {
                return;
            }
            for (index, node) in sends {
                if dead.contains(&node.0[0]) {
                    spread.failed(index, node);
                } else {
                    spread.acknowledged(index, node);
                }
            }
        }
    }

    fn loads(spread: &Spread) -> Vec<usize> {
        let mut loads: Vec<usize> =
            spread.nodes.iter().map(|c| spread.load(c.node)).filter(|&l| l > 0).collect();
        loads.sort_unstable_by(|a, b| b.cmp(a));
        loads
    }

    /// volume.md section 1 word for word.
    fn stored_by_definition(code: Code, margin: usize, holders: &[Option<NodeId>], pool: usize) -> bool {
        (0u32..1 << pool).filter(|lost| lost.count_ones() as usize == margin).all(|lost| {
            let left = holders.iter().flatten().filter(|node| lost & (1 << node.0[0]) == 0);
            left.count() >= code.m()
        })
    }

    proptest! {
        #[test]
        fn stored_is_what_the_definition_says(
            shape in prop::sample::select(vec!["3+2", "2+2", "2+1", "1+1", "4+2", "6+3", "5+4"]),
            holders in prop::collection::vec(prop::option::weighted(0.85, 0u8..8), 9),
            margin in 0usize..4,
        ) {
            let code = code(shape);
            let holders: Vec<Option<NodeId>> = holders[..code.n()].iter().map(|h| h.map(node)).collect();
            prop_assert_eq!(
                is_stored(code, margin, &holders),
                stored_by_definition(code, margin, &holders, 8),
            );
        }

        #[test]
        fn whoever_dies_in_between_the_verdict_comes_and_is_right(
            shape in prop::sample::select(vec!["3+2", "2+2", "2+1", "1+1", "4+2", "6+3", "10+4"]),
            spare in 0usize..3,
            dead in prop::collection::hash_set(0u8..16, 0..8),
            known in any::<bool>(),
        ) {
            let code = code(shape);
            let pool = code.n() + spare;
            let dead: Vec<u8> = dead.into_iter().filter(|&number| usize::from(number) < pool).collect();
            let mut spread = spread(shape, pool, if known { &dead } else { &[] });
            play(&mut spread, &dead);
            prop_assert!(spread.is_settled());
            prop_assert_eq!(spread.is_stored(), !spread.is_hopeless());
            prop_assert_eq!(spread.is_stored(), pool - dead.len() >= fewest_nodes(code));
            if spread.is_stored() {
                prop_assert!(spread.holders.iter().all(Option::is_some), "every fragment found a place");
            }
        }
    }

    #[test]
    fn in_a_healthy_pool_every_fragment_goes_home() {
        let mut spread = spread("3+2", 5, &[]);
        assert_eq!(spread.next_sends(), nodes(5).into_iter().enumerate().collect::<Vec<_>>());
        assert!(spread.next_sends().is_empty());
        for index in 0..4 {
            assert!(!spread.is_stored(), "{index} acknowledgements");
            spread.acknowledged(index, node(index as u8));
        }
        assert!(spread.is_stored() && !spread.is_settled());
        assert_eq!(spread.exceptions(), [Exception { index: 4, node: None }]);
        spread.acknowledged(4, node(4));
        assert!(spread.is_settled() && spread.exceptions().is_empty());
    }

    #[test]
    fn with_two_of_five_dead_fragments_lie_two_two_one() {
        for (a, b) in (0..5).flat_map(|a| (0..a).map(move |b| (a, b))) {
            for known in [&[a, b][..], &[]] {
                let mut spread = spread("3+2", 5, known);
                play(&mut spread, &[a, b]);
                assert!(spread.is_stored());
                assert_eq!(loads(&spread), [2, 2, 1], "{a} and {b} are dead");
                let away: Vec<u8> = spread.exceptions().iter().map(|exception| exception.index).collect();
                assert_eq!(away, [b, a]);
            }
        }
    }

    #[test]
    fn three_of_five_dead_is_hopeless_as_soon_as_the_third_is_known() {
        let mut spread = spread("3+2", 5, &[]);
        spread.next_sends();
        spread.failed(0, node(0));
        spread.failed(1, node(1));
        assert!(!spread.is_hopeless());
        spread.failed(2, node(2));
        assert!(spread.is_hopeless() && !spread.is_stored());
    }

    #[test]
    fn nodes_known_to_be_down_are_asked_only_where_the_others_are_not_enough() {
        let mut two_down = spread("3+2", 5, &[0, 1]);
        assert!(two_down.next_sends().iter().all(|(_, to)| to.0[0] >= 2));
        let mut three_down = spread("3+2", 5, &[0, 1, 2]);
        assert_eq!(three_down.next_sends().len(), 5);
        assert!(!three_down.is_hopeless(), "they may be back");
    }

    #[test]
    fn a_spare_node_takes_what_a_dead_one_cannot() {
        let mut spread = spread("3+2", 7, &[1]);
        play(&mut spread, &[]);
        assert_eq!(loads(&spread), [1; 5]);
        assert_eq!(spread.exceptions(), [Exception { index: 1, node: Some(node(5)) }]);
    }

    #[test]
    fn ten_of_fourteen_nodes_hold_all_of_ten_plus_four() {
        let mut spread = spread("10+4", 14, &[0, 3, 6, 9]);
        play(&mut spread, &[]);
        assert!(spread.is_stored());
        assert_eq!(loads(&spread), [2, 2, 2, 2, 1, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn what_a_late_node_was_sent_goes_elsewhere_and_home_wins_if_it_answers_after_all() {
        let mut spread = spread("2+2", 4, &[]);
        spread.next_sends();
        spread.acknowledged(0, node(0));
        spread.acknowledged(1, node(1));
        spread.is_late(3, node(3));
        let sends = spread.next_sends();
        assert_eq!(sends, [(3, node(0))], "not to itself");
        spread.acknowledged(3, node(0));
        assert_eq!(spread.exceptions().last(), Some(&Exception { index: 3, node: Some(node(0)) }));
        spread.acknowledged(3, node(3));
        assert_eq!(spread.exceptions(), [Exception { index: 2, node: None }]);
    }

    /// Regression: all fragments had been handed to two nodes before the third death was known, and lay there for good.
    #[test]
    fn fragments_that_lie_too_unevenly_are_spread_again() {
        for returned in 0..3 {
            let down: Vec<u8> = (0..3).filter(|&k| k != returned).collect();
            let crowded = [3, 4, 3, 3, 4].map(|k| Some(node(k))).to_vec();
            let mut spread = spread("3+2", 5, &down).with_holders(crowded);
            assert!(!spread.is_stored());
            play(&mut spread, &down);
            assert!(spread.is_stored(), "when {returned} is back");
        }
        let even = [3, 4, 2, 3, 4].map(|k| Some(node(k))).to_vec();
        let mut spread = spread("3+2", 5, &[0, 1]).with_holders(even);
        assert!(spread.is_stored() && spread.next_sends().is_empty());
    }

    #[test]
    fn with_one_parity_fragment_a_missing_node_leaves_no_margin() {
        let mut healthy = spread("2+1", 3, &[]);
        healthy.next_sends();
        healthy.acknowledged(0, node(0));
        healthy.acknowledged(1, node(1));
        assert!(!healthy.is_stored(), "all three are up");
        let mut degraded = spread("2+1", 3, &[2]);
        play(&mut degraded, &[]);
        assert!(degraded.is_stored());
    }

    #[test]
    fn the_fewest_nodes_of_the_usual_codes() {
        for (shape, nodes) in [("3+2", 3), ("4+2", 3), ("2+2", 2), ("2+1", 1), ("1+1", 1), ("10+4", 7)] {
            assert_eq!(fewest_nodes(code(shape)), nodes, "{shape}");
        }
    }
}
