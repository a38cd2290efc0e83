//! Every interleaving of one instance of code 2+2: three honest nodes, which may crash anywhere, one that says anything,
//! and a client that sends what it likes.
//!
//! A state is what the three have on disk and in memory, and what they ever said. A word once said may be heard by
//! anyone, at any time, any number of times, or never: so loss, repetition and reordering are all in here. What an
//! input does to a node depends on that node alone, and is computed once; the states of all three are then numbers, of
//! which none is visited twice. Nothing is bounded: the states that can be reached are finitely many.

use std::collections::{HashMap, HashSet};
use std::hash::Hasher;
use std::rc::Rc;
use std::sync::Arc;

use super::*;
use crate::dispersal::tests::{encode, groups};

/// The nodes that follow the protocol; the fourth does not.
const HONEST: usize = 3;
const LIAR: usize = 3;
/// The objects that the client may send, by number.
const OBJECTS: usize = 2;

/// An honest node: what survives a crash, what does not, and what left it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Node {
    index: usize,
    disk: Recalled,
    memory: Instance,
    /// Steps that are to be carried out.
    ahead: Vec<Step>,
    said: Vec<Word>,
}

/// What may happen to a node; objects by number.
#[derive(Clone, Copy, Debug)]
enum Input {
    Fragment(usize),
    Echo {
        from: usize,
        object: usize,
    },
    Ready {
        from: usize,
        object: usize,
    },
    Reminder,
    /// The first step ahead is carried out.
    Turn,
    Crash,
}

impl Input {
    /// How many there are.
    const COUNT: usize = OBJECTS + 2 * OBJECTS * (HONEST + 1) + 3;

    /// Each has a place of its own.
    fn place(self) -> usize {
        let (echoes, readies) = (OBJECTS, OBJECTS + OBJECTS * (HONEST + 1));
        match self {
            Input::Fragment(object) => object,
            Input::Echo { from, object } => echoes + OBJECTS * from + object,
            Input::Ready { from, object } => readies + OBJECTS * from + object,
            Input::Reminder => Input::COUNT - 3,
            Input::Turn => Input::COUNT - 2,
            Input::Crash => Input::COUNT - 1,
        }
    }
}

/// What an input may make of a node, by numbers.
#[derive(Clone)]
struct Outcomes {
    /// If it does not crash; `None` if the input is refused.
    whole: Option<u32>,
    /// Each once, that one among them.
    all: Rc<[u32]>,
}

/// Three nodes by their numbers.
type World = [u32; HONEST];

/// Every way to exchange the three. What differs by one of these alone is the same.
const ORDERS: [[usize; HONEST]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

struct Model {
    groups: Vec<Arc<Group>>,
    /// The digest of each object, and each node's fragment of it.
    digests: Vec<Hash>,
    shares: Vec<Vec<Dispersed>>,
    /// What the client sends.
    sends: Vec<usize>,
    numbers: HashMap<Node, u32>,
    nodes: Vec<Node>,
    /// What may become of a node, by its number and an input's place.
    outcomes: Vec<[Option<Outcomes>; Input::COUNT]>,
    /// The number of a node in each of the `ORDERS`.
    elsewhere: Vec<[Option<u32>; ORDERS.len()]>,
}

/// What was seen.
#[derive(Default, Debug)]
struct Seen {
    worlds: usize,
    steps: usize,
    quiet: usize,
    verified: [usize; OBJECTS],
}

impl Model {
    fn new(sends: &[usize]) -> Model {
        let groups = groups("2+2");
        let (digests, shares) = (0..OBJECTS as u8).map(|object| encode(&groups, object)).unzip();
        let sends = sends.to_vec();
        let (numbers, nodes, outcomes, elsewhere) = Default::default();
        Model { groups, digests, shares, sends, numbers, nodes, outcomes, elsewhere }
    }

    /// A node's number, once what must hold of every single node was seen to hold.
    fn number(&mut self, node: Node) -> u32 {
        if let Some(number) = self.numbers.get(&node) {
            return *number;
        }
        self.check_node(&node);
        let number = self.nodes.len() as u32;
        self.nodes.push(node.clone());
        self.outcomes.push([const { None }; Input::COUNT]);
        self.elsewhere.push([None; ORDERS.len()]);
        self.numbers.insert(node, number);
        number
    }

    fn check_node(&self, node: &Node) {
        let said = |which: fn(&Word) -> Option<Hash>| node.said.iter().filter_map(which).collect::<Vec<_>>();
        let echoes = said(|word| if let Word::Echo(digest) = word { Some(*digest) } else { None });
        let readies = said(|word| if let Word::Ready(digest) = word { Some(*digest) } else { None });
        assert!(echoes.len() <= 1, "two echoes: {node:?}");
        assert!(readies.len() <= 1, "two readies: {node:?}");
        let verified = verified(node);
        for echo in echoes {
            let is_held = node.disk.held == Some(echo);
            assert!(is_held || verified.is_some_and(|other| other != echo), "an echo of nothing: {node:?}");
        }
        for ready in readies {
            let noted = node.disk.said.as_ref().and_then(Said::readied);
            assert_eq!(noted, Some(ready), "a ready that was not noted first: {node:?}");
        }
    }

    /// The numbers of all that an input may make of a node.
    fn outcomes(&mut self, number: u32, input: Input) -> Outcomes {
        let (row, place) = (number as usize, input.place());
        if let Some(known) = &self.outcomes[row][place] {
            return known.clone();
        }
        let (whole, cut) = self.happen(&self.nodes[row].clone(), input);
        let whole = whole.map(|node| self.number(node));
        let mut all: Vec<u32> = cut.into_iter().map(|node| self.number(node)).collect();
        all.extend(whole);
        all.sort_unstable();
        all.dedup();
        let outcomes = Outcomes { whole, all: all.into() };
        self.outcomes[row][place] = Some(outcomes.clone());
        outcomes
    }

    /// What an input makes of a node that does not crash meanwhile, if anything, and what it leaves of one that does.
    fn happen(&self, node: &Node, input: Input) -> (Option<Node>, Vec<Node>) {
        let mut cut = Vec::new();
        let mut now = node.clone();
        match input {
            Input::Crash => return (None, vec![self.crashed(node)]),
            Input::Turn if node.ahead.is_empty() => return (None, cut),
            Input::Turn => self.carry_out_first(&mut now, &mut cut),
            // Whoever is busy does not remind, or there would be no end of steps.
            Input::Reminder if !node.ahead.is_empty() => return (None, cut),
            input => match self.step(&mut now.memory, node.index, input) {
                Ok(step) => add(&mut now, step),
                Err(_) => return (None, cut),
            },
        }
        (Some(now), cut)
    }

    fn step(&self, memory: &mut Instance, index: usize, input: Input) -> Result<Step, Refused> {
        let group = &self.groups[index];
        match input {
            Input::Fragment(object) => memory.disperse(group, self.shares[object][index].clone()),
            Input::Echo { from, object } => memory.hear(group, from, Word::Echo(self.digests[object])),
            Input::Ready { from, object } => memory.hear(group, from, Word::Ready(self.digests[object])),
            Input::Reminder => Ok(memory.remind()),
            Input::Turn | Input::Crash => unreachable!("no input of the machine"),
        }
    }

    /// Carry out the first step, and what is left by a crash on the way.
    ///
    /// One flush covers fragment and words, so before it either may be there without the other; after it, words leave one
    /// by one.
    fn carry_out_first(&self, node: &mut Node, cut: &mut Vec<Node>) {
        let step = node.ahead.remove(0);
        for (keeps, persists) in [(true, false), (false, true), (true, true)] {
            let mut left = node.clone();
            write(&mut left.disk, &step, keeps, persists);
            cut.push(self.crashed(&left));
        }
        write(&mut node.disk, &step, true, true);
        if step.needs_disk() {
            let next = node.memory.persisted(&self.groups[node.index], &step);
            add(node, next);
        }
        for word in &step.say {
            say(node, *word);
            cut.push(self.crashed(node));
        }
        if let Some(stored) = step.stored {
            assert_eq!(verified(node), Some(stored), "a client is told before it is so: {node:?}");
        }
    }

    /// The one of the worlds that differ only by the order of the nodes that stands for all of them.
    fn ordered(&mut self, world: World) -> World {
        let mut least = world;
        for (order, from) in ORDERS.iter().enumerate().skip(1) {
            let first = self.elsewhere(world[from[0]], order);
            if first <= least[0] {
                let others = [from[1], from[2]].map(|index| self.elsewhere(world[index], order));
                least = least.min([first, others[0], others[1]]);
            }
        }
        least
    }

    fn elsewhere(&mut self, number: u32, order: usize) -> u32 {
        let known = self.elsewhere[number as usize][order];
        known.unwrap_or_else(|| self.move_node(number, order))
    }

    fn move_node(&mut self, number: u32, order: usize) -> u32 {
        let place = |index: usize| ORDERS[order].iter().position(|from| *from == index).unwrap_or(index);
        let mut node = self.nodes[number as usize].clone();
        node.index = place(node.index);
        node.memory.votes.iter_mut().for_each(|vote| vote.from = place(vote.from.into()) as u8);
        node.memory.votes.sort();
        for kept in node.ahead.iter_mut().filter_map(|step| step.keep.as_mut()) {
            let object = self.digests.iter().position(|digest| *digest == kept.digest()).unwrap();
            *kept = self.shares[object][node.index].clone();
        }
        let moved = self.number(node);
        self.elsewhere[number as usize][order] = Some(moved);
        moved
    }

    fn crashed(&self, node: &Node) -> Node {
        let memory = Instance::recall(&self.groups[node.index], node.disk.clone()).unwrap();
        Node { memory, ahead: Vec::new(), ..node.clone() }
    }

    fn beginning(&mut self) -> World {
        [0, 1, 2].map(|index| {
            let disk = Recalled::default();
            let memory = Instance::recall(&self.groups[index], disk.clone()).unwrap();
            self.number(Node { index, disk, memory, ahead: Vec::new(), said: Vec::new() })
        })
    }

    /// What may happen to node `index` of a world while everyone behaves.
    fn honest(&self, world: World, index: usize) -> Vec<Input> {
        let mut inputs = vec![Input::Reminder, Input::Turn];
        for from in (0..HONEST).filter(|from| *from != index) {
            let said = self.nodes[world[from] as usize].said.iter();
            inputs.extend(said.map(|word| self.heard(from, *word)));
        }
        if self.has_honest_client() {
            inputs.extend(self.sends.iter().map(|object| Input::Fragment(*object)));
        }
        inputs
    }

    /// What liars and crashes may do to any node.
    fn hostile(&self) -> Vec<Input> {
        let mut inputs = vec![Input::Crash];
        for object in 0..OBJECTS {
            inputs.extend([Input::Echo { from: LIAR, object }, Input::Ready { from: LIAR, object }]);
        }
        if !self.has_honest_client() {
            inputs.extend(self.sends.iter().map(|object| Input::Fragment(*object)));
        }
        inputs
    }

    /// One who sends one object, to everyone, and goes on until it is stored.
    fn has_honest_client(&self) -> bool {
        self.sends.len() == 1
    }

    fn heard(&self, from: usize, word: Word) -> Input {
        let number = |digest: Hash| self.digests.iter().position(|known| *known == digest).unwrap();
        match word {
            Word::Echo(digest) => Input::Echo { from, object: number(digest) },
            Word::Ready(digest) => Input::Ready { from, object: number(digest) },
            Word::Ask => unreachable!("an ask leaves no trace"),
        }
    }

    /// Visit every world that can be reached.
    fn explore(&mut self) -> Seen {
        let mut seen = Seen::default();
        let hostile = self.hostile();
        let begin = self.beginning();
        let begin = self.ordered(begin);
        let mut visited = HashSet::from([begin]);
        let mut waiting = vec![begin];
        while let Some(world) = waiting.pop() {
            seen.worlds += 1;
            self.check_agreement(world, &mut seen);
            let mut is_quiet = true;
            for index in 0..HONEST {
                let honest = self.honest(world, index);
                for (at, input) in honest.iter().chain(&hostile).enumerate() {
                    let outcomes = self.outcomes(world[index], *input);
                    let changes = outcomes.whole.is_some_and(|whole| whole != world[index]);
                    is_quiet &= !changes || at >= honest.len();
                    seen.steps += outcomes.all.len();
                    for outcome in outcomes.all.iter().filter(|outcome| **outcome != world[index]) {
                        let mut next = world;
                        next[index] = *outcome;
                        let next = self.ordered(next);
                        if visited.insert(next) {
                            waiting.push(next);
                        }
                    }
                }
            }
            if is_quiet {
                seen.quiet += 1;
                self.check_totality(world);
            }
        }
        seen
    }

    fn all<'a>(&'a self, world: &'a World) -> impl Iterator<Item = &'a Node> {
        world.iter().map(|number| &self.nodes[*number as usize])
    }

    fn check_agreement(&self, world: World, seen: &mut Seen) {
        let mut all = self.all(&world).filter_map(verified);
        let Some(first) = all.next() else { return };
        assert!(all.all(|other| other == first), "two objects verified: {}", self.show(world));
        let holders = self.all(&world).filter(|node| node.disk.held == Some(first)).count();
        assert!(holders >= 2, "verified, and too few fragments to read it: {}", self.show(world));
        seen.verified[self.digests.iter().position(|digest| *digest == first).unwrap()] += 1;
    }

    /// Every word said was heard by everyone honest, and still nothing follows.
    fn check_totality(&self, world: World) {
        let count = self.all(&world).filter_map(verified).count();
        assert!(count == 0 || count == HONEST, "verified by some for ever: {}", self.show(world));
        let ends = count == HONEST || !self.has_honest_client();
        assert!(ends, "an honest client waits for ever: {}", self.show(world));
    }

    fn show(&self, world: World) -> String {
        self.all(&world).map(|node| format!("\n{node:#?}")).collect()
    }
}

fn write(disk: &mut Recalled, step: &Step, keeps: bool, persists: bool) {
    if let Some(kept) = step.keep.as_ref().filter(|_| keeps) {
        disk.held = Some(kept.digest());
    }
    if let Some(said) = step.persist.as_ref().filter(|_| persists) {
        disk.said = Some(said.clone());
    }
}

/// A step that only asks, or says or tells again what was said or told, leaves no trace.
fn add(node: &mut Node, mut step: Step) {
    step.say.retain(|word| *word != Word::Ask && !node.said.contains(word));
    if step.needs_disk() || !step.say.is_empty() {
        node.ahead.push(step);
    }
}

fn say(node: &mut Node, word: Word) {
    if !node.said.contains(&word) {
        node.said.push(word);
        node.said.sort();
    }
}

impl std::hash::Hash for Step {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let kept = self.keep.as_ref().map(Dispersed::digest);
        (kept, &self.persist, &self.say, self.stored).hash(state);
    }
}

fn verified(node: &Node) -> Option<Hash> {
    node.disk.said.as_ref().and_then(Said::verified)
}

#[test]
fn whatever_a_client_a_liar_and_crashes_do_nobody_honest_disagrees() {
    let seen = Model::new(&[0, 1]).explore();
    eprintln!("{seen:?}");
    assert!(seen.verified.iter().all(|count| *count > 0) && seen.quiet > 0, "{seen:?}");
}

#[test]
fn whatever_a_liar_and_crashes_do_an_honest_client_ends() {
    let seen = Model::new(&[0]).explore();
    eprintln!("{seen:?}");
    assert!(seen.verified[0] > 0 && seen.quiet > 0, "{seen:?}");
}
