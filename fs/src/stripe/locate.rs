//! Where an object's fragments are, asked from the nodes themselves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::wire::{NodeId, Operation};
use tokio::time::Instant;

use super::Stripe;
use super::encoded::fragment_name;
use super::flush::holds;
use super::spread::{is_stored, margin};
use crate::metadata::{Exception, ObjectRecord};
use crate::transport::NodeAddress;

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
    /// Ask every node that may have a fragment for all of them, and have it flush what it has.
    pub async fn find_flushed(self: &Arc<Self>, object: &ObjectRecord) -> Flushed {
        self.find_flushed_on(object, self.options.io_limit, |_| true).await
    }

    /// The same, of nodes that answer promptly; the others count as silent.
    pub async fn find_flushed_soon(self: &Arc<Self>, object: &ObjectRecord) -> Flushed {
        self.find_flushed_on(object, self.options.flush_patience, |node| !self.is_lagging(node)).await
    }

    async fn find_flushed_on(
        self: &Arc<Self>,
        object: &ObjectRecord,
        limit: Duration,
        is_asked: impl Fn(NodeId) -> bool,
    ) -> Flushed {
        let deadline = Instant::now() + limit;
        let (homes, keepers) = (self.homes_of(object), self.keepers(object));
        let mut nodes = [self.nodes_of(object.configuration), self.nodes_of(self.current)].concat();
        nodes.extend(keepers.iter().flatten());
        nodes.sort_unstable();
        nodes.dedup();
        let wanted: Vec<Operation> =
            (0..homes.len()).map(|index| Operation::Has(fragment_name(object.id, index))).collect();
        let ask = |node| {
            let (wanted, is_asked) = (&wanted, is_asked(node));
            async move {
                match is_asked {
                    true => (node, self.ask_batch(node, wanted, true, deadline).await.ok()),
                    false => (node, None),
                }
            }
        };
        let said: BTreeMap<NodeId, _> =
            futures_util::future::join_all(nodes.into_iter().map(ask)).await.into_iter().collect();
        let has = |node: NodeId, index: usize| {
            said[&node].as_ref().is_some_and(|answer| holds(&answer.value[index], &object.fpcc))
        };
        let (mut holders, mut exceptions) = (Vec::new(), Vec::new());
        for (index, (&home, &keeper)) in homes.iter().zip(&keepers).enumerate() {
            let holder = if has(home, index) {
                Some(home)
            } else {
                said.keys().copied().find(|&node| has(node, index))
            };
            holders.push(holder);
            let is_silent = |node: &NodeId| said[node].is_none();
            let now = holder.or(keeper.filter(is_silent));
            if now != Some(home) {
                exceptions.push(Exception { index: index as u8, node: now });
            }
        }
        let silent: Vec<String> =
            said.iter().filter(|(_, answer)| answer.is_none()).map(|(node, _)| self.called(*node)).collect();
        let margin = margin(object.code, said.len() - silent.len());
        let count = holders.iter().flatten().count();
        Flushed { count, is_stored: is_stored(object.code, margin, &holders), exceptions, silent }
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
