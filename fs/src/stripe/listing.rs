//! What nodes say they hold, page by page.

use std::collections::BTreeMap;

use common::wire::{JOURNAL_PREFIX, MAX_PAGE, NodeId, ObjectId, ObjectStatus};
use futures_util::future::join_all;
use tokio::time::Instant;

use super::Stripe;
use crate::transport::{Answer, TransportError};

/// What nodes hold of one object.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Listed {
    /// Which of them.
    pub nodes: Vec<NodeId>,
    /// How many fragments.
    pub fragments: u64,
    /// Bytes in these.
    pub bytes: u64,
}

impl Stripe {
    /// Every object of files that the nodes of the pool hold something of; those that cannot be asked are added to
    /// `silent`.
    pub async fn listed_objects(&self, silent: &mut Vec<String>) -> BTreeMap<ObjectId, Listed> {
        let mut found: BTreeMap<ObjectId, Listed> = BTreeMap::new();
        for (node, objects) in self.listings("", silent).await {
            for object in objects {
                let Ok(id) = object.key.parse::<ObjectId>() else { continue };
                let listed = found.entry(id).or_default();
                listed.nodes.push(node);
                listed.fragments += object.indexes.len() as u64;
                listed.bytes += object.indexes.len() as u64 * object.fragment_length;
            }
        }
        found
    }

    /// What each node holds after a key, all asked at once; those that cannot be asked are added to `silent`.
    pub(super) async fn listings(
        &self,
        after: &str,
        silent: &mut Vec<String>,
    ) -> Vec<(NodeId, Vec<ObjectStatus>)> {
        let nodes = self.pool.nodes();
        let asked = nodes.iter().map(|node| async move {
            let never = || TransportError::Unreachable("has never answered".into());
            let identity = node.identity.ok_or_else(never)?;
            self.list_node(identity, after).await.map(|objects| (identity, objects))
        });
        let mut listed = Vec::new();
        for (node, answer) in nodes.iter().zip(join_all(asked).await) {
            match answer {
                Ok(listing) => listed.push(listing),
                Err(error) => silent.push(format!("{} ({error})", node.address)),
            }
        }
        listed
    }

    /// What one node holds of the volume after a key. Without a key the journal's entries, which come last, are left out.
    async fn list_node(&self, node: NodeId, after: &str) -> Result<Vec<ObjectStatus>, TransportError> {
        let address = self.address(node)?;
        let mut objects = Vec::new();
        let deadline = Instant::now() + self.options.io_limit;
        let mut after = Some(after.to_owned());
        while let Some(from) = after {
            let (began, volume) = (Instant::now(), self.options.volume);
            let first = (!from.is_empty()).then_some(from.as_str());
            let listing =
                self.pool.transport().list(&address, volume, first, MAX_PAGE, self.left(deadline)).await;
            let Answer { value: page, .. } = self.pool.read_ended(node, began, listing)?;
            objects.extend(page.objects);
            let stays = |next: &str| from.starts_with(JOURNAL_PREFIX) || next < JOURNAL_PREFIX;
            after = page.next.filter(|next| *next > from && stays(next));
        }
        Ok(objects)
    }
}
