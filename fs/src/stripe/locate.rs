//! Where an object's fragments are, asked from the nodes themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::wire::{MAX_BATCH, NodeId, Operation, OperationAnswer};
use tokio::time::Instant;

use super::Stripe;
use super::encoded::fragment_name;
use super::flush::holds;
use super::spread::{is_stored, margin};
use crate::metadata::{Exception, ObjectRecord};
use crate::transport::{Answer, NodeAddress};

/// A node, and what it said of each fragment it was asked for; none if it did not answer.
type Said = (NodeId, Option<Answer<Vec<OperationAnswer>>>);

/// One fragment and where it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FragmentLocation {
    /// Its index; below m a data fragment.
    pub index: u8,
    /// The node that keeps it by the metadata; none if nobody does.
    pub node: Option<NodeId>,
    /// Where that node answers, if it is known.
    pub address: Option<NodeAddress>,
    /// Whether that is its home, and not a guest keeping it while its home is away.
    pub at_home: bool,
    /// What the node itself says.
    pub presence: Presence,
}

/// Whether a fragment is where it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Presence {
    /// The node says it has it.
    Present,
    /// The node says it has not, or nobody should.
    Absent,
    /// The node does not answer, and why.
    Unknown(String),
}

/// What of an object is on stable storage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flushed {
    /// So many different fragments.
    pub count: usize,
    /// Whether what is known to be there makes it *stored*.
    pub is_stored: bool,
    /// Those that are not at home; of a home that did not answer nothing is said but what the metadata says.
    pub exceptions: Vec<Exception>,
    /// Who did not answer.
    pub silent: Vec<String>,
}

impl Stripe {
    /// Ask every node that may have a fragment of these objects for all of them, and have it flush what it has. Each node
    /// gets one request for many objects; one that is silent or slow is waited for only so long once every object can be
    /// read without it. The answers are in the order of the objects.
    pub async fn find_flushed(&self, objects: &[ObjectRecord]) -> Vec<Flushed> {
        let mut found = Vec::with_capacity(objects.len());
        for some in objects.chunks(MAX_BATCH / self.options.code.n()) {
            found.extend(self.find_some_flushed(some).await);
        }
        found
    }

    async fn find_some_flushed(&self, objects: &[ObjectRecord]) -> Vec<Flushed> {
        let deadline = Instant::now() + self.options.io_limit;
        let nodes = self.nodes_with_any(objects);
        let names = objects
            .iter()
            .flat_map(|object| (0..object.code.n()).map(|index| fragment_name(object.id, index)));
        let wanted: Vec<Operation> = names.map(Operation::Has).collect();
        let ask = |_, node| {
            let wanted = &wanted;
            async move { self.ask_batch(node, wanted, true, deadline).await.ok() }
        };
        let is_enough = |said: &[Said]| {
            let flushed = self.as_said(objects, said);
            flushed.iter().zip(objects).all(|(flushed, object)| flushed.count >= object.code.m())
        };
        let mut said: BTreeMap<NodeId, _> = nodes.iter().map(|&node| (node, None)).collect();
        said.extend(self.answers_of(&nodes, ask, deadline, is_enough).await);
        self.as_said(objects, &said.into_iter().collect::<Vec<Said>>())
    }

    /// The nodes that may have a fragment of one of these objects.
    fn nodes_with_any(&self, objects: &[ObjectRecord]) -> Vec<NodeId> {
        let configurations: BTreeSet<u32> = objects.iter().map(|object| object.configuration).collect();
        let mut nodes = BTreeSet::from_iter(self.nodes_of(self.current).iter().copied());
        nodes.extend(
            configurations.into_iter().flat_map(|configuration| self.nodes_of(configuration).iter().copied()),
        );
        nodes.extend(
            objects.iter().flat_map(|object| &object.exceptions).filter_map(|exception| exception.node),
        );
        nodes.into_iter().collect()
    }

    /// What of objects is flushed, by what nodes said of all fragments of all of them.
    fn as_said(&self, objects: &[ObjectRecord], said: &[Said]) -> Vec<Flushed> {
        let is_silent = |(_, answer): &&Said| answer.is_none();
        let silent: Vec<String> = said.iter().filter(is_silent).map(|(node, _)| self.called(*node)).collect();
        let live = said.len() - silent.len();
        let mut first = 0;
        let flushed = |object: &ObjectRecord| {
            let (homes, keepers) = (self.homes_of(object), self.keepers(object));
            let (mut holders, mut exceptions) = (Vec::new(), Vec::new());
            for (index, (&home, &keeper)) in homes.iter().zip(&keepers).enumerate() {
                let has = |(_, answer): &&Said| {
                    answer.as_ref().is_some_and(|answer| holds(&answer.value[first + index], &object.fpcc))
                };
                let having: Vec<NodeId> = said.iter().filter(has).map(|(node, _)| *node).collect();
                let holder = if having.contains(&home) { Some(home) } else { having.first().copied() };
                holders.push(holder);
                let is_silent =
                    |node: &NodeId| said.iter().any(|(other, answer)| other == node && answer.is_none());
                let now = holder.or(keeper.filter(is_silent));
                if now != Some(home) {
                    exceptions.push(Exception { index: index as u8, node: now });
                }
            }
            first += object.code.n();
            let count = holders.iter().flatten().count();
            let is_stored = is_stored(object.code, margin(object.code, live), &holders);
            Flushed { count, is_stored, exceptions, silent: silent.clone() }
        };
        objects.iter().map(flushed).collect()
    }

    /// Where each fragment of an object is, by index. Asks each node once, and waits for the slowest as long as any
    /// request may take.
    pub async fn locate(self: &Arc<Self>, object: &ObjectRecord) -> Vec<FragmentLocation> {
        let deadline = Instant::now() + self.options.io_limit;
        let homes = self.homes_of(object);
        let keepers: Vec<Option<NodeId>> = self.keepers(object);
        let mut nodes: Vec<NodeId> = keepers.iter().flatten().copied().collect();
        nodes.sort_unstable();
        nodes.dedup();
        let ask = |node| async move { (node, self.indexes_on(node, object, deadline).await) };
        let said: BTreeMap<NodeId, _> =
            futures_util::future::join_all(nodes.into_iter().map(ask)).await.into_iter().collect();
        let location = |(index, keeper): (usize, Option<NodeId>)| FragmentLocation {
            index: index as u8,
            node: keeper,
            address: keeper.and_then(|node| self.pool.address_of(node)),
            at_home: keeper == Some(homes[index]),
            presence: match keeper.map(|node| &said[&node]) {
                Some(Ok(indexes)) if indexes.contains(&index) => Presence::Present,
                Some(Ok(_)) | None => Presence::Absent,
                Some(Err(error)) => Presence::Unknown(error.to_string()),
            },
        };
        keepers.into_iter().enumerate().map(location).collect()
    }

    /// Who keeps each fragment by the metadata.
    pub(super) fn keepers(&self, object: &ObjectRecord) -> Vec<Option<NodeId>> {
        let mut keepers: Vec<Option<NodeId>> = self.homes_of(object).into_iter().map(Some).collect();
        for exception in &object.exceptions {
            if let Some(keeper) = keepers.get_mut(usize::from(exception.index)) {
                *keeper = exception.node;
            }
        }
        keepers
    }
}
