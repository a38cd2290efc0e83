//! Random lives of a few instances, by seed: nodes that lie, crash, lose what they wrote and forget what they heard,
//! clients that cheat or give up, words that are lost, repeated and late. Then words flow, and everything must end.

use std::collections::{BTreeMap, BTreeSet};

use avidfs_tests::seed::{self, Dice};
use bytes::Bytes;
use common::hash::Hash;

use super::tests::{encode, groups, id, node as node_id};
use super::*;

/// Instances of one life.
const INSTANCES: u64 = 3;
/// Objects that a client may send as one instance; an honest one sends the first.
const OBJECTS: u8 = 2;
/// Instances that exist only in what liars say.
const FLOODED: u64 = 40;
/// Rounds within which everything ends once words flow.
const PATIENCE: usize = 30;

/// Whether the client of an instance sends one object to every node until it is stored.
enum Client {
    Honest,
    /// One that sends these objects to these nodes, and is heard of no more.
    Cheat(Vec<(usize, usize)>),
}

/// What an honest node has on disk of an instance.
#[derive(Clone, PartialEq, Default)]
struct Disk {
    said: Option<Vec<u8>>,
    held: Option<Hash>,
}

/// A step to be carried out.
struct Ahead {
    id: InstanceId,
    /// Who is answered.
    asker: usize,
    step: Step,
}

struct Node {
    index: usize,
    group: Arc<Group>,
    limits: Limits,
    dispersals: Dispersals,
    disk: BTreeMap<InstanceId, Disk>,
    ahead: Vec<Ahead>,
    /// Every echo and ready that ever left it.
    said: BTreeMap<InstanceId, BTreeSet<Word>>,
    /// What it told clients.
    stored: BTreeMap<InstanceId, Hash>,
}

/// A body on its way.
#[derive(Clone)]
struct Packet {
    from: usize,
    to: usize,
    body: Bytes,
}

/// What one life, or many, came to.
#[derive(Default, Debug)]
struct Outcome {
    stored: usize,
    cheats_verified: usize,
    cheats_left: usize,
}

struct World {
    dice: Dice,
    n: usize,
    digests: Vec<Hash>,
    shares: Vec<Vec<Dispersed>>,
    /// The honest nodes; those of higher indexes lie.
    nodes: Vec<Node>,
    clients: Vec<Client>,
    packets: Vec<Packet>,
}

impl World {
    fn new(groups: &[Arc<Group>], shares: &[(Hash, Vec<Dispersed>)], seed: u64) -> World {
        let mut dice = Dice::new(seed);
        let quorums = groups[0].quorums();
        let honest = groups.len() - dice.below(quorums.faults() as u64 + 1) as usize;
        let nodes = (0..honest).map(|index| Node::new(index, groups[index].clone(), &mut dice)).collect();
        let clients =
            (0..INSTANCES).map(|_| Client::new(quorums.echo(), groups.len(), honest, &mut dice)).collect();
        let (digests, shares) = shares.iter().cloned().unzip();
        World { dice, n: groups.len(), digests, shares, nodes, clients, packets: Vec::new() }
    }

    fn live(&mut self) -> Outcome {
        for _ in 0..100 + 30 * self.n {
            self.happen();
        }
        for _ in 0..PATIENCE {
            let before: Vec<_> = self.nodes.iter().map(|node| node.disk.clone()).collect();
            self.flow();
            if self.nodes.iter().map(|node| &node.disk).eq(&before) {
                return self.check_end();
            }
        }
        panic!("no end after {PATIENCE} rounds");
    }

    fn happen(&mut self) {
        let index = self.dice.below(self.nodes.len() as u64) as usize;
        match self.dice.below(100) {
            0..14 => self.send_fragment(),
            14..55 => self.deliver_some(),
            55..75 => self.carry_out_some(index),
            75..79 => self.nodes[index].crash(&mut self.dice),
            79..82 => self.nodes[index].fail_to_write(&mut self.dice),
            82..87 => self.nodes[index].remind(),
            _ => self.lie(),
        }
    }

    /// A client sends a fragment, which may come more than once.
    fn send_fragment(&mut self) {
        let number = self.dice.below(INSTANCES);
        let (index, object) = match &mut self.clients[number as usize] {
            Client::Honest => (self.dice.below(self.nodes.len() as u64) as usize, 0),
            Client::Cheat(sends) => {
                let Some(send) = sends.pop() else { return };
                if self.dice.chance(20) {
                    sends.insert(0, send);
                }
                send
            }
        };
        self.nodes[index].take(&id(number), self.shares[object][index].clone());
    }

    /// Any body under way arrives; it may be lost instead, or stay and arrive again.
    fn deliver_some(&mut self) {
        if self.packets.is_empty() {
            return;
        }
        let at = self.dice.below(self.packets.len() as u64) as usize;
        let packet = self.packets[at].clone();
        let is_lost = self.dice.chance(15);
        if is_lost || !self.dice.chance(15) {
            self.packets.swap_remove(at);
        }
        if !is_lost {
            self.deliver(packet);
        }
    }

    fn deliver(&mut self, packet: Packet) {
        let is_honest = packet.from < self.nodes.len();
        if let Some(node) = self.nodes.get_mut(packet.to) {
            node.hear_all(packet.from, packet.body, is_honest);
            node.check_memory();
        }
    }

    fn carry_out_some(&mut self, index: usize) {
        let count = self.nodes[index].ahead.len() as u64;
        if count > 0 {
            let most = 1 + self.dice.below(count) as usize;
            self.carry_out(index, most);
        }
    }

    /// Carry out up to `most` steps with one flush, then say all their words in one body for each peer.
    fn carry_out(&mut self, index: usize, most: usize) {
        let carried = self.nodes[index].flush(most);
        let configuration = self.nodes[index].group.configuration();
        for to in (0..self.n).filter(|to| *to != index) {
            let mut messages = Messages::new(configuration);
            for Ahead { id, asker, step } in &carried {
                let answers = step.answer.iter().filter(|_| *asker == to);
                for word in step.say.iter().chain(answers) {
                    messages.push(Message { id: id.clone(), word: *word }).unwrap();
                }
            }
            if !messages.list().is_empty() {
                self.packets.push(Packet { from: index, to, body: messages.encode() });
            }
        }
        for Ahead { id, step, .. } in carried {
            if let Some(digest) = step.complete {
                self.complete(index, &id, digest);
            }
        }
    }

    /// Honest nodes alone have enough fragments to rebuild one.
    fn complete(&mut self, index: usize, id: &InstanceId, digest: Hash) {
        let m = self.nodes[index].group.quorums().code().m();
        let holders = self.nodes.iter().filter(|node| node.held(id) == Some(digest)).count();
        assert!(holders >= m, "{holders} honest nodes hold what was verified, {m} are needed");
        self.nodes[index].disk.entry(id.clone()).or_default().held = Some(digest);
    }

    /// A liar says something to somebody about something.
    fn lie(&mut self) {
        let liars = (self.n - self.nodes.len()) as u64;
        if liars == 0 {
            return;
        }
        let from = self.nodes.len() + self.dice.below(liars) as usize;
        let to = self.dice.below(self.nodes.len() as u64) as usize;
        let mut messages = Messages::new(self.nodes[to].group.configuration());
        for _ in 0..1 + self.dice.below(4) {
            let number = match self.dice.chance(70) {
                true => self.dice.below(INSTANCES),
                false => INSTANCES + self.dice.below(FLOODED),
            };
            let digest = match self.dice.below(10) {
                0 => [self.dice.below(256) as u8; 32].into(),
                _ => *self.dice.pick(&self.digests),
            };
            let word = *self.dice.pick(&[Word::Echo(digest), Word::Ready(digest), Word::Ask]);
            messages.push(Message { id: id(number), word }).unwrap();
        }
        self.packets.push(Packet { from, to, body: messages.encode() });
    }

    /// Nothing is lost and nobody crashes for a round: clients try again, nodes remind, and read what others verified.
    fn flow(&mut self) {
        for number in 0..INSTANCES {
            if let Client::Honest = self.clients[number as usize] {
                for (node, share) in self.nodes.iter_mut().zip(&self.shares[0]) {
                    node.take(&id(number), share.clone());
                }
            }
        }
        self.nodes.iter_mut().for_each(Node::remind);
        self.nodes.iter_mut().for_each(Node::resume_all);
        (0..self.n).for_each(|_| self.lie());
        self.settle();
        let verified: Vec<_> = self.nodes.iter().map(Node::all_verified).collect();
        for (from, verified) in verified.into_iter().enumerate() {
            for node in self.nodes.iter_mut().filter(|node| node.index != from) {
                verified.iter().for_each(|(id, digest)| node.hear(from, id, Word::Ready(*digest), true));
            }
        }
        self.settle();
    }

    /// Carry out and deliver, in any order, until there is nothing more.
    fn settle(&mut self) {
        let mut turns = 0;
        while !self.packets.is_empty() || self.nodes.iter().any(|node| !node.ahead.is_empty()) {
            turns += 1;
            assert!(turns < 1000, "words lead to words for ever");
            for index in 0..self.nodes.len() {
                self.carry_out_some(index);
            }
            for _ in 0..self.packets.len() {
                let at = self.dice.below(self.packets.len() as u64) as usize;
                let packet = self.packets.swap_remove(at);
                self.deliver(packet);
            }
        }
    }

    fn check_end(&self) -> Outcome {
        let mut outcome = Outcome::default();
        for (number, client) in self.clients.iter().enumerate() {
            let id = id(number as u64);
            let verified: BTreeSet<_> = self.nodes.iter().map(|node| node.verified(&id)).collect();
            assert_eq!(verified.len(), 1, "{id}: honest nodes end with {verified:?}");
            let digest = *verified.first().unwrap();
            assert!(digest.is_none() || self.nodes.iter().all(|node| node.held(&id) == digest), "{id}");
            let told =
                self.nodes.iter().filter(|node| node.stored.get(&id) == Some(&self.digests[0])).count();
            match client {
                Client::Honest => {
                    assert!(
                        told >= self.nodes[0].group.quorums().client(),
                        "{id}: {told} nodes told the client"
                    );
                    outcome.stored += 1;
                }
                Client::Cheat(_) if digest.is_some() => outcome.cheats_verified += 1,
                Client::Cheat(_) => outcome.cheats_left += 1,
            }
        }
        outcome
    }
}

impl Client {
    /// A cheat sends one object to about as many as liars need to make it an echo quorum, and something else to the rest.
    fn new(echo: usize, n: usize, honest: usize, dice: &mut Dice) -> Client {
        if dice.chance(40) {
            return Client::Honest;
        }
        let mut indexes: Vec<usize> = (0..honest).collect();
        (1..honest).for_each(|at| indexes.swap(at, dice.below(at as u64 + 1) as usize));
        let count = echo + 1 - dice.below((n - honest) as u64 + 3) as usize;
        let (rest, twice) = (dice.below(101), *dice.pick(&[0, 10]));
        let mut sends = Vec::new();
        for (at, index) in indexes.into_iter().enumerate() {
            let object = usize::from(at >= count);
            if at < count || dice.chance(rest) {
                sends.push((index, object));
            }
            if dice.chance(twice) {
                sends.push((index, 1 - object));
            }
        }
        Client::Cheat(sends)
    }
}

impl Node {
    fn new(index: usize, group: Arc<Group>, dice: &mut Dice) -> Node {
        let votes_per_peer = INSTANCES as usize + dice.below(3) as usize;
        let limits = Limits { votes_per_peer, pending: 1 + dice.below(3) as usize };
        let dispersals = Dispersals::new(limits);
        let (disk, ahead, said, stored) = Default::default();
        Node { index, group, limits, dispersals, disk, ahead, said, stored }
    }

    fn recall(&self, id: &InstanceId) -> Recalled {
        let disk = self.disk.get(id).cloned().unwrap_or_default();
        Recalled { said: disk.said.map(|bytes| Said::decode(&bytes).unwrap()), held: disk.held }
    }

    fn verified(&self, id: &InstanceId) -> Option<Hash> {
        self.recall(id).said.and_then(|said| said.verified())
    }

    fn held(&self, id: &InstanceId) -> Option<Hash> {
        self.disk.get(id).and_then(|disk| disk.held)
    }

    fn all_verified(&self) -> Vec<(InstanceId, Hash)> {
        self.disk.keys().filter_map(|id| Some((id.clone(), self.verified(id)?))).collect()
    }

    fn add(&mut self, id: &InstanceId, asker: usize, step: Step) {
        if step != Step::default() {
            self.ahead.push(Ahead { id: id.clone(), asker, step });
        }
    }

    fn take(&mut self, id: &InstanceId, share: Dispersed) {
        let recalled = self.recall(id);
        match self.dispersals.disperse(id, &self.group, share, || Some(recalled)) {
            Ok(step) => self.add(id, self.index, step),
            Err(Refused::Conflict(_)) => (),
            Err(other) => panic!("a client was refused: {other}"),
        }
    }

    fn hear_all(&mut self, from: usize, body: Bytes, is_honest: bool) {
        let messages = Messages::decode(body).unwrap();
        assert_eq!(messages.configuration(), self.group.configuration());
        messages.list().iter().for_each(|message| self.hear(from, &message.id, message.word, is_honest));
    }

    fn hear(&mut self, from: usize, id: &InstanceId, word: Word, is_honest: bool) {
        let recalled = self.recall(id);
        match self.dispersals.hear(node_id(from as u8), id, &self.group, word, || Some(recalled)) {
            Ok(step) => self.add(id, from, step),
            Err(Refused::Contradiction { .. }) => assert!(!is_honest, "an honest node contradicts itself"),
            Err(other) => panic!("a word was refused: {other}"),
        }
    }

    fn remind(&mut self) {
        for Reminder { id, step, .. } in self.dispersals.remind(INSTANCES as usize) {
            self.add(&id, self.index, step);
        }
    }

    /// As after a restart, and from time to time: the list of what is pending may be shorter than what is on disk.
    fn resume_all(&mut self) {
        for id in self.disk.keys().cloned().collect::<Vec<_>>() {
            let recalled = self.recall(&id);
            let step = self.dispersals.resume(&id, &self.group, recalled).unwrap();
            self.add(&id, self.index, step);
        }
    }

    /// Up to `most` steps reach the disk together, and what they say leaves the node.
    fn flush(&mut self, most: usize) -> Vec<Ahead> {
        let carried: Vec<Ahead> = self.ahead.drain(..most).collect();
        carried.iter().for_each(|ahead| self.write(ahead, true, true));
        for Ahead { id, step, .. } in carried.iter().filter(|ahead| ahead.step.needs_disk()) {
            let next = self.dispersals.persisted(id, step);
            self.add(id, self.index, next);
        }
        for Ahead { id, step, .. } in &carried {
            step.say.iter().chain(&step.answer).for_each(|word| self.check_word(id, *word));
            if let Some(stored) = step.stored {
                assert_eq!(self.verified(id), Some(stored), "a client is told before it is so");
                self.stored.insert(id.clone(), stored);
            }
        }
        carried
    }

    fn write(&mut self, Ahead { id, step, .. }: &Ahead, keeps: bool, persists: bool) {
        if let Some(kept) = step.keep.as_ref().filter(|_| keeps) {
            self.disk.entry(id.clone()).or_default().held = Some(kept.digest());
        }
        if let Some(said) = step.persist.as_ref().filter(|_| persists) {
            self.disk.entry(id.clone()).or_default().said = Some(said.encode());
        }
    }

    /// A node says one echo and one ready in its life, both of what is on its disk.
    fn check_word(&mut self, id: &InstanceId, word: Word) {
        let Recalled { said: noted, held } = self.recall(id);
        let noted = noted.unwrap_or_else(|| Said::nothing(self.group.configuration()));
        match word {
            Word::Ask => return,
            Word::Echo(digest) => {
                assert_eq!(noted.echoed(), Some(digest), "an echo that was not noted first");
                assert!(held == Some(digest) || noted.verified().is_some(), "an echo of nothing");
            }
            Word::Ready(digest) => {
                assert_eq!(noted.readied(), Some(digest), "a ready that was not noted first");
            }
        }
        let said = self.said.entry(id.clone()).or_default();
        said.insert(word);
        let echoes = said.iter().filter(|word| matches!(word, Word::Echo(_))).count();
        assert!(echoes <= 1 && said.len() - echoes <= 1, "node {} said {said:?} of {id}", self.index);
    }

    /// The process or the machine ends: of what was to be flushed any write may have reached the disk.
    fn crash(&mut self, dice: &mut Dice) {
        for ahead in std::mem::take(&mut self.ahead) {
            self.write(&ahead, dice.chance(40), dice.chance(40));
        }
        self.dispersals = Dispersals::new(self.limits);
        self.resume_all();
    }

    /// The disk refuses a step: it and what follows of its instance is not carried out.
    fn fail_to_write(&mut self, dice: &mut Dice) {
        let Some(at) = self.ahead.iter().position(|ahead| ahead.step.needs_disk()) else { return };
        let failed = self.ahead.remove(at);
        self.write(&failed, dice.chance(50), dice.chance(50));
        self.ahead.retain(|ahead| ahead.id != failed.id);
        self.dispersals.forget(&failed.id);
    }

    fn check_memory(&self) {
        let Limits { votes_per_peer, pending } = self.limits;
        let most = (self.group.members().len() - 1) * votes_per_peer + pending + self.ahead.len();
        assert!(self.dispersals.len() <= most, "{} instances in memory", self.dispersals.len());
    }
}

/// Lives of so many seeds: 200, or 10,000 with AVIDFS_SOAK=1.
fn live(code: &str) {
    let groups = groups(code);
    let shares: Vec<_> = (0..OBJECTS).map(|object| encode(&groups, object)).collect();
    let first = seed::seed();
    let seeds = if seed::is_given() { 1 } else { seed::rounds(200, 10_000) };
    let mut all = Outcome::default();
    for seed in first..first + seeds {
        seed::announce(seed);
        let Outcome { stored, cheats_verified, cheats_left } = World::new(&groups, &shares, seed).live();
        all.stored += stored;
        all.cheats_verified += cheats_verified;
        all.cheats_left += cheats_left;
    }
    eprintln!("{code}: {seeds} seeds, {all:?}");
    let has_all = all.stored > 0 && all.cheats_verified > 0 && all.cheats_left > 0;
    assert!(has_all || seeds == 1, "{all:?}");
}

#[test]
fn five_nodes_agree_and_end_whatever_happens_before() {
    live("3+2");
}

#[test]
fn six_nodes_agree_and_end_whatever_happens_before() {
    live("4+2");
}

#[test]
fn nine_nodes_agree_and_end_whatever_happens_before() {
    live("6+3");
}

#[test]
fn fourteen_nodes_agree_and_end_whatever_happens_before() {
    live("10+4");
}

#[test]
fn twenty_four_nodes_agree_and_end_whatever_happens_before() {
    live("16+8");
}
