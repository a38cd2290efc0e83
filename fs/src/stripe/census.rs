//! What nodes hold of each object, beside what they should: the question of a check, which reads nothing and moves
//! nothing, and its deep form, which reads every fragment. Facts come from nodes; what they mean is a pure function.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use common::fpcc::Fpcc;
use common::hash::Hash;
use common::wire::{NodeId, ObjectId, Operation, RefusalCode};
use futures_util::future::join_all;
use tokio::time::Instant;

use super::Stripe;
use super::encoded::fragment_name;
use super::inquiry::Contradiction;
use crate::metadata::ObjectRecord;
use crate::transport::TransportError;

/// What every node that answers holds of the volume's objects.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// By object, what each node has of it.
    pub held: BTreeMap<ObjectId, Vec<Held>>,
    /// The nodes that answered.
    pub answered: HashSet<NodeId>,
    /// Those that did not, and why.
    pub silent: Vec<String>,
}

/// What one node has of one object under one digest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Held {
    /// Which node.
    pub node: NodeId,
    /// The digest of the FPCC it keeps with it; none if it said nonsense.
    pub digest: Option<Hash>,
    /// Which fragments.
    pub indexes: Box<[u8]>,
    /// Bytes in each.
    pub fragment_bytes: u64,
}

/// Where a fragment stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// A node that should have it has it.
    There,
    /// The node that should have it does not answer.
    Silent(NodeId),
    /// Nobody should have it yet: it was never stored, or its loss is known, and it is made anew at home.
    Awaited,
    /// The node that should have it has not, and another one has.
    Elsewhere {
        /// Who should.
        should: NodeId,
        /// Who has.
        has: NodeId,
    },
    /// The node that should have it has not, and nobody who answers has.
    Missing {
        /// Who should.
        should: NodeId,
    },
}

/// How an object stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Each fragment, by index.
    pub fragments: Vec<Standing>,
    /// How many different ones are on nodes that answer.
    pub there: usize,
    /// Copies beyond one of each.
    pub spare: u64,
    /// Fragments of something else under its name: node and index.
    pub foreign: Vec<(NodeId, u8)>,
}

impl Verdict {
    /// Whether anything is not as it should be, apart from nodes that do not answer and what is known to be missing.
    pub fn is_troubled(&self) -> bool {
        let is_fine = |standing: &Standing| {
            matches!(standing, Standing::There | Standing::Silent(_) | Standing::Awaited)
        };
        !self.foreign.is_empty() || !self.fragments.iter().all(is_fine)
    }
}

impl Stripe {
    /// Ask every node of the pool what it holds of the volume's objects.
    pub async fn census(&self) -> Census {
        let mut census = Census::default();
        for (node, objects) in self.listings("", &mut census.silent).await {
            census.answered.insert(node);
            for object in objects {
                let Ok(id) = object.key.parse::<ObjectId>() else { continue };
                census.held.entry(id).or_default().push(Held {
                    node,
                    digest: object.fpcc.parse().ok(),
                    indexes: object.indexes.into(),
                    fragment_bytes: object.fragment_length,
                });
            }
        }
        census
    }

    /// The same of one object.
    pub async fn held_of(&self, object: &ObjectRecord) -> (Vec<Held>, HashSet<NodeId>) {
        let deadline = Instant::now() + self.options.io_limit;
        let nodes: Vec<NodeId> = self.pool.nodes().into_iter().filter_map(|view| view.identity).collect();
        let operations: Vec<Operation> =
            (0..object.code.n()).map(|index| Operation::Has(fragment_name(object.id, index))).collect();
        let asked = nodes.iter().map(|&node| self.ask_batch(node, &operations, false, deadline));
        let (mut held, mut answered) = (Vec::new(), HashSet::new());
        for (node, answer) in nodes.iter().zip(join_all(asked).await) {
            let Ok(answer) = answer else { continue };
            answered.insert(*node);
            for (index, said) in answer.value.iter().enumerate().filter(|(_, said)| said.status == 200) {
                let digest = <[u8; Hash::LENGTH]>::try_from(&said.payload[..]).ok().map(Hash::from);
                held.push(Held { node: *node, digest, indexes: [index as u8].into(), fragment_bytes: 0 });
            }
        }
        (held, answered)
    }

    /// Whether the object's homes can be computed: its nodes are known, and enough.
    pub fn has_homes(&self, object: &ObjectRecord) -> bool {
        self.configurations.get(&object.configuration).is_some_and(|nodes| nodes.len() >= object.code.n())
    }

    /// What follows from who holds what. The object has homes.
    pub fn judge(&self, object: &ObjectRecord, held: &[Held], answered: &HashSet<NodeId>) -> Verdict {
        judge(object, &self.homes_of(object), &self.keepers(object), held, answered)
    }

    /// Whether a node keeps a fragment by the metadata.
    pub fn should_have(&self, object: &ObjectRecord, index: u8, node: NodeId) -> bool {
        self.keepers(object).get(usize::from(index)).copied().flatten() == Some(node)
    }

    /// Where a fragment belongs; none of an object that has no such fragment. The object has homes.
    pub fn home_of(&self, object: &ObjectRecord, index: u8) -> Option<NodeId> {
        self.homes_of(object).get(usize::from(index)).copied()
    }

    /// How a node is called: its address, or its identity where it has none.
    pub fn name_of(&self, node: NodeId) -> String {
        self.called(node)
    }

    /// Read a fragment from a node and check it, its FPCC too; the cache has no part in it.
    pub async fn verify(
        self: &Arc<Self>,
        object: &ObjectRecord,
        index: u8,
        node: NodeId,
    ) -> Result<(), Unverified> {
        let deadline = Instant::now() + self.options.io_limit;
        let raw = match self.get_fragment(object.id, usize::from(index), node, deadline).await {
            Ok(raw) => raw,
            Err(TransportError::Refused { code: RefusalCode::NotFound, .. }) => {
                return Err(Unverified::Wrong("the node cannot read it, or has it no more".to_owned()));
            }
            Err(error @ (TransportError::Garbage(_) | TransportError::Refused { .. })) => {
                return Err(Unverified::Wrong(error.to_string()));
            }
            Err(error) => return Err(Unverified::Silent(error.to_string())),
        };
        let (expected, bytes, found) = (object.fpcc, raw.fragment.len(), raw.fragment.clone());
        let checking = move || {
            let fpcc = Fpcc::parse(&raw.fpcc).map_err(|error| error.to_string())?;
            if fpcc.digest() != expected {
                return Err("it came with the FPCC of another object".to_owned());
            }
            fpcc.check(usize::from(index), raw.fragment).map(drop).map_err(|error| error.to_string())
        };
        let Err(what) = self.cpu.check(self.options.hash, bytes, checking).await else { return Ok(()) };
        let name = fragment_name(object.id, usize::from(index));
        let about = Contradiction { name, fpcc: expected, known: None, found, what: what.clone() };
        self.inquire_at_once(node, about).await;
        Err(Unverified::Wrong(what))
    }
}

/// Why a fragment was not verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unverified {
    /// The node did not answer.
    Silent(String),
    /// What it gave is not the fragment, or it gave nothing.
    Wrong(String),
}

fn judge(
    object: &ObjectRecord,
    homes: &[NodeId],
    keepers: &[Option<NodeId>],
    held: &[Held],
    answered: &HashSet<NodeId>,
) -> Verdict {
    let (own, other): (Vec<&Held>, Vec<&Held>) =
        held.iter().partition(|held| held.digest == Some(object.fpcc));
    let mut verdict = Verdict {
        fragments: Vec::with_capacity(homes.len()),
        there: 0,
        spare: 0,
        foreign: other.iter().flat_map(|held| held.indexes.iter().map(|index| (held.node, *index))).collect(),
    };
    for (index, (home, keeper)) in homes.iter().zip(keepers).enumerate() {
        let holders =
            || own.iter().filter(|held| held.indexes.contains(&(index as u8))).map(|held| held.node);
        verdict.there += usize::from(holders().next().is_some());
        verdict.spare += holders().count().saturating_sub(1) as u64;
        let is_there = holders().any(|node| node == *home || Some(node) == *keeper);
        verdict.fragments.push(match (*keeper, holders().next()) {
            _ if is_there => Standing::There,
            (None, _) => Standing::Awaited,
            (Some(should), _) if !answered.contains(&should) => Standing::Silent(should),
            (Some(should), Some(has)) => Standing::Elsewhere { should, has },
            (Some(should), None) => Standing::Missing { should },
        });
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId([number; 16])
    }

    fn object() -> ObjectRecord {
        ObjectRecord {
            id: ObjectId { epoch: 1, counter: 1 },
            length: 100,
            fpcc: Hash::from([7; 32]),
            code: "1+2".parse().unwrap(),
            configuration: 1,
            exceptions: Vec::new(),
        }
    }

    fn held(on: u8, index: u8) -> Held {
        Held { node: node(on), digest: Some(object().fpcc), indexes: [index].into(), fragment_bytes: 100 }
    }

    /// Fragment i is at home on node i; `keepers` says who keeps it, nodes 0 to 4 answer but for `silent`.
    fn standing(keepers: [Option<u8>; 3], all: &[Held], silent: &[u8]) -> Verdict {
        let answered = (0..5).filter(|number| !silent.contains(number)).map(node).collect();
        judge(&object(), &[0, 1, 2].map(node), &keepers.map(|keeper| keeper.map(node)), all, &answered)
    }

    #[test]
    fn a_fragment_is_there_at_home_and_with_its_guest() {
        let home = [Some(0), Some(1), Some(2)];
        let verdict = standing(home, &[held(0, 0), held(1, 1), held(2, 2)], &[]);
        assert_eq!(verdict.fragments, [Standing::There; 3]);
        assert!(!verdict.is_troubled() && verdict.there == 3 && verdict.spare == 0);
        let guest = [Some(3), Some(1), Some(2)];
        let verdict = standing(guest, &[held(3, 0), held(1, 1), held(2, 2), held(0, 0)], &[]);
        assert_eq!((&verdict.fragments[0], verdict.spare), (&Standing::There, 1));
    }

    #[test]
    fn silence_and_what_is_known_to_be_missing_are_no_trouble() {
        let verdict = standing([Some(0), Some(1), None], &[held(1, 1)], &[0]);
        assert_eq!(verdict.fragments, [Standing::Silent(node(0)), Standing::There, Standing::Awaited]);
        assert!(!verdict.is_troubled() && verdict.there == 1);
    }

    #[test]
    fn what_a_node_that_answers_should_have_and_has_not_is_trouble() {
        let verdict = standing([Some(0), Some(1), Some(2)], &[held(0, 0), held(4, 1)], &[]);
        let (elsewhere, missing) =
            (Standing::Elsewhere { should: node(1), has: node(4) }, Standing::Missing { should: node(2) });
        assert_eq!(verdict.fragments, [Standing::There, elsewhere, missing]);
        assert!(verdict.is_troubled() && verdict.there == 2);
    }

    #[test]
    fn something_else_under_its_name_counts_as_nothing() {
        let other = Held { digest: Some(Hash::from([8; 32])), ..held(1, 1) };
        let verdict = standing([Some(0), Some(1), Some(2)], &[held(0, 0), other, held(2, 2)], &[]);
        assert_eq!(verdict.fragments[1], Standing::Missing { should: node(1) });
        assert_eq!((verdict.foreign.as_slice(), verdict.there), (&[(node(1), 1)][..], 2));
    }
}
