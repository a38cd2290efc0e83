//! Deleting objects' fragments, batched for each node.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use common::wire::{EVERY_INDEX, FragmentName, MAX_BATCH, NodeId, ObjectId, Operation};
use futures_util::future::join_all;
use tokio::time::Instant;

use super::Stripe;
use crate::metadata::ObjectRecord;

impl Stripe {
    /// Delete every fragment of these objects. Nothing durable may refer to them any more (volume.md section 3).
    ///
    /// Returns those that every node that may hold something of them has confirmed; the others are to be tried again
    /// later: a holder is down, or the object is still being sent.
    pub async fn delete(self: &Arc<Self>, objects: &[ObjectRecord]) -> Vec<ObjectId> {
        let deadline = Instant::now() + self.options.io_limit;
        let still_sent: HashSet<ObjectId> =
            objects.iter().map(|object| object.id).filter(|&id| !self.ledger.lock().forget(id)).collect();
        let objects: Vec<&ObjectRecord> = objects.iter().filter(|o| !still_sent.contains(&o.id)).collect();
        let mut of_node: BTreeMap<NodeId, Vec<ObjectId>> = BTreeMap::new();
        for object in &objects {
            self.cache.remove(object.id);
            self.fetches.forget(object.id);
            self.holders(object)
                .into_iter()
                .for_each(|node| of_node.entry(node).or_default().push(object.id));
        }
        let deletes = of_node.iter().map(|(&node, ids)| self.delete_on(node, ids, deadline));
        let unconfirmed: HashSet<ObjectId> = join_all(deletes).await.into_iter().flatten().collect();
        objects.into_iter().map(|object| object.id).filter(|id| !unconfirmed.contains(id)).collect()
    }

    /// Whether an object is still being sent, so that it cannot be deleted yet.
    pub fn is_sent(&self, id: ObjectId) -> bool {
        self.ledger.lock().is_sent(id)
    }

    /// Delete objects that nobody refers to on the nodes that listed them. Returns those not confirmed.
    pub async fn delete_listed(&self, of_node: &BTreeMap<NodeId, Vec<ObjectId>>) -> HashSet<ObjectId> {
        let deadline = Instant::now() + self.options.io_limit;
        let deletes = of_node.iter().map(|(&node, ids)| self.delete_on(node, ids, deadline));
        join_all(deletes).await.into_iter().flatten().collect()
    }

    /// Homes, even those that by the metadata have nothing (a late request may have reached them), and guests.
    fn holders(&self, object: &ObjectRecord) -> HashSet<NodeId> {
        let guests = object.exceptions.iter().filter_map(|exception| exception.node);
        self.homes_of(object).into_iter().chain(guests).collect()
    }

    /// Returns the objects whose deletion this node did not confirm. One that is gone never will: if it comes back after all,
    /// what it has is garbage.
    async fn delete_on(&self, node: NodeId, ids: &[ObjectId], deadline: Instant) -> Vec<ObjectId> {
        if self.pool.is_gone(node) {
            return Vec::new();
        }
        if self.is_down(node) {
            return ids.to_vec();
        }
        let mut unconfirmed = Vec::new();
        for some in ids.chunks(MAX_BATCH) {
            let operations: Vec<Operation> =
                some.iter().map(|&id| Operation::Delete(every_index(id))).collect();
            match self.ask_batch(node, &operations, false, deadline).await {
                Ok(answer) => {
                    let refused = some.iter().zip(&answer.value).filter(|(_, said)| !is_gone(said.status));
                    unconfirmed.extend(refused.map(|(&id, _)| id));
                }
                Err(_) => unconfirmed.extend_from_slice(some),
            }
        }
        unconfirmed
    }
}

fn every_index(id: ObjectId) -> FragmentName {
    FragmentName { key: id.key(), version: ObjectId::VERSION, index: EVERY_INDEX }
}

/// Deleted now, or absent before.
pub(super) fn is_gone(status: u16) -> bool {
    status == 200 || status == 404
}
