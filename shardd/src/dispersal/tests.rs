//! A node with many instances: what it forgets, what it must not, and whom that costs something.

use bytes::Bytes;
use common::codec::{Codec, split};
use common::fpcc::Fpcc;
use common::hash::{Hash, HashId};
use common::wire::OwnerId;

use super::*;

/// One group of nodes 0, 1, .. as each of them sees it.
pub fn groups(code: &str) -> Vec<Arc<Group>> {
    let code = code.parse::<common::code::Code>().unwrap();
    let members: Vec<NodeId> = (0..code.n()).map(|index| node(index as u8)).collect();
    let group = |own: &NodeId| Group::new([0xc0; 32].into(), code, members.clone(), *own).unwrap();
    members.iter().map(|own| Arc::new(group(own))).collect()
}

/// The digest of an object, and each node's fragment of it.
pub fn encode(groups: &[Arc<Group>], object: u8) -> (Hash, Vec<Dispersed>) {
    let code = groups[0].quorums().code();
    let codec = Codec::of(code);
    let mut fragments = split(code, &Bytes::from(vec![object; 100]));
    let parity = codec.parity_of(&fragments);
    fragments.extend(parity.into_iter().map(Bytes::from));
    let slices: Vec<&[u8]> = fragments.iter().map(AsRef::as_ref).collect();
    let fpcc = Fpcc::compute(&codec, HashId::Blake3, 100, &slices);
    let share = |(group, fragment): (&Arc<Group>, &Bytes)| {
        Dispersed::check(group, fpcc.clone(), fragment.clone()).unwrap()
    };
    (fpcc.digest(), groups.iter().zip(&fragments).map(share).collect())
}

pub fn node(index: u8) -> NodeId {
    NodeId([index; 16])
}

pub fn id(number: u64) -> InstanceId {
    InstanceId::new(OwnerId([1; 32]), &format!("key-{number}"), 1).unwrap()
}

/// Node 0 of four, which may keep little in memory.
struct Small {
    dispersals: Dispersals,
    group: Arc<Group>,
    digest: Hash,
    other: Hash,
    shares: [Dispersed; 2],
}

const NEW: fn() -> Option<Recalled> = || Some(Recalled::default());

impl Small {
    fn new(votes_per_peer: usize, pending: usize) -> Small {
        let groups = groups("2+2");
        let [(digest, one), (other, two)] = [1, 2].map(|object| encode(&groups, object));
        Small {
            dispersals: Dispersals::new(Limits { votes_per_peer, pending }),
            group: groups[0].clone(),
            digest,
            other,
            shares: [one[0].clone(), two[0].clone()],
        }
    }

    fn hear(&mut self, from: u8, number: u64, word: Word) -> Result<Step, Refused> {
        self.dispersals.hear(node(from), &id(number), &self.group, word, NEW)
    }

    /// A client brings the first object; it is on disk when this returns.
    fn disperse(&mut self, number: u64) -> Step {
        let share = self.shares[0].clone();
        let step = self.dispersals.disperse(&id(number), &self.group, share, NEW).unwrap();
        let next = self.dispersals.persisted(&id(number), &step);
        assert_eq!(next, Step::default());
        step
    }
}

fn never() -> Option<Recalled> {
    panic!("it is in memory")
}

#[test]
fn a_flood_of_votes_costs_only_who_sends_it() {
    let mut small = Small::new(3, 10);
    let (digest, other) = (small.digest, small.other);
    for number in 0..3 {
        let _ = small.hear(1, number, Word::Ready(digest)).unwrap();
    }
    for number in 0..1000 {
        let _ = small.hear(3, number, Word::Ready(other)).unwrap();
        assert!(small.dispersals.len() <= 6, "{}", small.dispersals.len());
    }
    for number in 0..3 {
        let step = small.hear(2, number, Word::Ready(digest)).unwrap();
        assert_eq!(step.say, [Word::Ready(digest)], "two nodes said ready");
    }
}

#[test]
fn a_peer_over_its_share_loses_its_oldest_vote_and_may_cast_it_again() {
    let mut small = Small::new(2, 10);
    let digest = small.digest;
    for number in 0..3 {
        let _ = small.hear(1, number, Word::Ready(digest)).unwrap();
    }
    assert_eq!(small.hear(2, 0, Word::Ready(digest)).unwrap().say, [], "the first vote is gone");
    assert_eq!(small.hear(1, 0, Word::Ready(digest)).unwrap().say, [Word::Ready(digest)]);
}

#[test]
fn what_is_on_its_way_to_the_disk_is_not_forgotten() {
    let mut small = Small::new(10, 1);
    let share = small.shares[0].clone();
    let first = small.dispersals.disperse(&id(1), &small.group, share, NEW).unwrap();
    let _ = small.disperse(2);
    let _ = small.disperse(3);
    assert_eq!(small.dispersals.len(), 2, "the first is under way, the last is pending");
    let other = small.shares[1].clone();
    let refused = small.dispersals.disperse(&id(1), &small.group, other, never);
    assert_eq!(refused, Err(Refused::Conflict(small.digest)));
    let _ = small.dispersals.persisted(&id(1), &first);
    assert_eq!(small.dispersals.len(), 1);
}

#[test]
fn an_instance_that_was_forgotten_does_not_echo_another_object() {
    let mut small = Small::new(10, 1);
    let said = small.disperse(1).persist;
    let _ = small.disperse(2);
    let recall = || Some(Recalled { said, held: Some(small.digest) });
    let refused = small.dispersals.disperse(&id(1), &small.group, small.shares[1].clone(), recall);
    assert_eq!(refused, Err(Refused::Conflict(small.digest)));
}

#[test]
fn a_node_that_cannot_read_what_it_said_says_nothing() {
    let mut small = Small::new(10, 10);
    let share = small.shares[0].clone();
    let refused = small.dispersals.disperse(&id(1), &small.group, share, || None);
    assert_eq!(refused, Err(Refused::Unreadable));
    let refused = small.dispersals.hear(node(1), &id(1), &small.group, Word::Ask, || None);
    assert_eq!(refused, Err(Refused::Unreadable));
    assert!(small.dispersals.is_empty());
}

/// A write that failed may have reached the disk all the same: only the disk knows.
#[test]
fn after_a_write_that_failed_what_counts_is_on_disk() {
    let mut small = Small::new(10, 10);
    let digest = small.digest;
    let _ = small.hear(1, 1, Word::Echo(digest)).unwrap();
    let step = small.dispersals.disperse(&id(1), &small.group, small.shares[0].clone(), never).unwrap();
    assert!(step.needs_disk());
    small.dispersals.forget(&id(1));
    assert!(small.dispersals.is_empty() && small.dispersals.ballots.is_empty());
    assert!(small.dispersals.remind(10).is_empty());
    let other = small.shares[1].clone();
    let step = small.dispersals.disperse(&id(1), &small.group, other, NEW).unwrap();
    assert_eq!(step.say, [Word::Echo(small.other)], "nothing was said of the first");
}

#[test]
fn a_verified_instance_leaves_memory_and_words_about_it_do_not_bring_it_back() {
    let mut small = Small::new(10, 10);
    let digest = small.digest;
    let _ = small.disperse(1);
    let mut steps = (1..4).map(|from| small.hear(from, 1, Word::Ready(digest)).unwrap());
    let steps = [steps.next().unwrap(), steps.next().unwrap()];
    assert_eq!(steps[1].say, [Word::Ready(digest)]);
    assert_eq!((steps[1].stored, steps[1].complete), (Some(digest), None));
    let said = steps[1].persist.clone();
    let _ = small.dispersals.persisted(&id(1), &steps[1]);
    assert!(small.dispersals.is_empty());
    for word in [Word::Echo(digest), Word::Ready(small.other), Word::Ask] {
        let recall = || Some(Recalled { said: said.clone(), held: Some(digest) });
        let step = small.dispersals.hear(node(3), &id(1), &small.group, word, recall).unwrap();
        assert_eq!(step.answer, if word == Word::Ask { vec![Word::Ready(digest)] } else { vec![] });
        assert!(small.dispersals.is_empty(), "{word:?}");
    }
    let recall = || Some(Recalled { said: said.clone(), held: Some(digest) });
    let share = small.shares[0].clone();
    let again = small.dispersals.disperse(&id(1), &small.group, share, recall).unwrap();
    assert_eq!(again, Step { stored: Some(digest), ..Step::default() });
}

#[test]
fn a_node_without_its_fragment_completes_it_once_verified_and_after_a_restart() {
    let mut small = Small::new(10, 10);
    let digest = small.digest;
    let _ = small.hear(1, 1, Word::Ready(digest)).unwrap();
    let step = small.hear(2, 1, Word::Ready(digest)).unwrap();
    assert_eq!((step.complete, step.stored), (Some(digest), Some(digest)));
    let recalled = Recalled { said: step.persist, held: None };
    small.dispersals.forget(&id(1));
    let step = small.dispersals.resume(&id(1), &small.group, recalled.clone()).unwrap();
    assert_eq!((step.say, step.complete), (vec![Word::Ready(digest)], Some(digest)));
    let recalled = Recalled { held: Some(digest), ..recalled };
    let step = small.dispersals.resume(&id(1), &small.group, recalled).unwrap();
    assert_eq!(step.complete, None);
}

#[test]
fn a_client_brings_a_fragment_that_the_node_still_lacks() {
    let mut small = Small::new(10, 10);
    let digest = small.digest;
    let _ = small.hear(1, 1, Word::Ready(digest)).unwrap();
    let said = small.hear(2, 1, Word::Ready(digest)).unwrap().persist;
    small.dispersals.forget(&id(1));
    let recall = |held| move || Some(Recalled { said: said.clone(), held });
    let other = small.shares[1].clone();
    let refused = small.dispersals.disperse(&id(1), &small.group, other, recall.clone()(None));
    assert_eq!(refused, Err(Refused::Conflict(digest)));
    let share = small.shares[0].clone();
    let step = small.dispersals.disperse(&id(1), &small.group, share.clone(), recall(None)).unwrap();
    assert_eq!(step, Step { keep: Some(share), stored: Some(digest), ..Step::default() });
}

/// Others may echo while the node's own fragment is on its way to the disk.
#[test]
fn the_echo_that_makes_a_quorum_may_be_the_nodes_own() {
    let mut small = Small::new(10, 10);
    let digest = small.digest;
    let step = small.dispersals.disperse(&id(1), &small.group, small.shares[0].clone(), NEW).unwrap();
    assert_eq!(small.hear(1, 1, Word::Echo(digest)).unwrap(), Step::default());
    assert_eq!(small.hear(2, 1, Word::Echo(digest)).unwrap(), Step::default(), "it is not on disk yet");
    let next = small.dispersals.persisted(&id(1), &step);
    assert_eq!(next.say, [Word::Ready(digest)]);
    assert_eq!(next.persist.unwrap().readied(), Some(digest));
}

#[test]
fn a_fragment_of_another_object_is_not_taken_once_ready_was_said() {
    let mut small = Small::new(10, 10);
    let other = small.other;
    for from in 1..4 {
        let _ = small.hear(from, 1, Word::Echo(other)).unwrap();
    }
    let refused = small.dispersals.disperse(&id(1), &small.group, small.shares[0].clone(), never);
    assert_eq!(refused, Err(Refused::Conflict(other)));
}

#[test]
fn who_has_no_vote_is_refused_and_leaves_nothing() {
    let mut small = Small::new(10, 10);
    let digest = small.digest;
    assert_eq!(small.hear(9, 1, Word::Echo(digest)), Err(Refused::Stranger));
    assert_eq!(small.hear(9, 1, Word::Ask), Err(Refused::Stranger));
    assert_eq!(
        small.hear(0, 1, Word::Echo(digest)),
        Err(Refused::Stranger),
        "nobody speaks for the node itself"
    );
    assert!(small.dispersals.is_empty());
}

#[test]
fn the_first_word_of_a_node_counts_and_another_is_told() {
    let mut small = Small::new(10, 10);
    let (first, second) = (small.digest, small.other);
    let _ = small.hear(1, 1, Word::Ready(first)).unwrap();
    assert_eq!(small.hear(1, 1, Word::Ready(second)), Err(Refused::Contradiction { first, second }));
    assert_eq!(small.hear(2, 1, Word::Ready(second)).unwrap(), Step::default());
    assert_eq!(small.hear(1, 1, Word::Ready(first)).unwrap(), Step::default(), "twice is once");
    assert_eq!(small.hear(3, 1, Word::Ready(second)).unwrap().say, [Word::Ready(second)]);
}

#[test]
fn quorums_of_two_configurations_are_not_mixed() {
    let mut small = Small::new(10, 10);
    let digest = small.digest;
    let said = small.disperse(1).persist;
    let members = small.group.members().to_vec();
    let code = small.group.quorums().code();
    let later = Arc::new(Group::new([0xc1; 32].into(), code, members, node(0)).unwrap());
    let refused = small.dispersals.hear(node(1), &id(1), &later, Word::Ready(digest), never);
    assert_eq!(refused, Err(Refused::OtherConfiguration));
    small.dispersals.forget(&id(1));
    let recall = || Some(Recalled { said, held: Some(digest) });
    let refused = small.dispersals.hear(node(1), &id(1), &later, Word::Ready(digest), recall);
    assert_eq!(refused, Err(Refused::OtherConfiguration));
}

#[test]
fn reminders_take_turns_and_ask() {
    let mut small = Small::new(10, 3);
    (0..4).for_each(|number| _ = small.disperse(number));
    let reminded = |small: &mut Small, most| -> Vec<InstanceId> {
        let reminders = small.dispersals.remind(most);
        for reminder in &reminders {
            assert_eq!(reminder.step.say, [Word::Echo(small.digest), Word::Ask]);
        }
        reminders.into_iter().map(|reminder| (*reminder.id).clone()).collect()
    };
    assert_eq!(reminded(&mut small, 2), [id(1), id(2)], "the oldest left the list");
    assert_eq!(reminded(&mut small, 2), [id(3), id(1)]);
    assert_eq!(reminded(&mut small, 9), [id(2), id(3), id(1)]);
}

/// Where one liar is allowed for, the second ready makes a node say ready and verify in one step.
#[test]
fn a_ready_is_flushed_before_it_is_said_even_if_it_verifies_at_once() {
    let groups = groups("3+2");
    let (digest, _) = encode(&groups, 1);
    let mut instance = Instance::recall(&groups[0], Recalled::default()).unwrap();
    assert_eq!(instance.hear(&groups[0], 1, Word::Ready(digest)).unwrap(), Step::default());
    let step = instance.hear(&groups[0], 2, Word::Ready(digest)).unwrap();
    assert_eq!((&step.say[..], step.stored), (&[Word::Ready(digest)][..], Some(digest)));
    assert!(step.needs_flush());
    // Where the ready was said before, all that is new follows from what others have flushed.
    let said = instance.said().clone();
    let alone = Step { persist: Some(said), stored: Some(digest), ..Step::default() };
    assert!(alone.needs_disk() && !alone.needs_flush());
}
