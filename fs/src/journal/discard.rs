//! What the journal does not need any more: entries and blocks that are deleted on the nodes beside the writing of it.

use std::sync::Arc;
use std::time::Duration;

use common::wire::ObjectId;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::metadata::ObjectRecord;
use crate::stripe::Stripe;

/// Whoever wants to write the journal waits so long for a deletion, and then no more: a node may be slow.
const PATIENCE: Duration = Duration::from_millis(100);

/// See the module. What is left of it when a mount ends is found and deleted by the next one.
#[derive(Default)]
pub(super) struct Discard {
    /// Keys of entries whose deletion was not begun.
    keys: Vec<String>,
    /// Blocks that are still on some node.
    blocks: Vec<ObjectRecord>,
    /// Returns the blocks that are gone from every node.
    deletion: Option<JoinHandle<Vec<ObjectId>>>,
}

impl Discard {
    /// Nobody needs these entries and blocks.
    pub(super) fn add(
        &mut self,
        keys: impl IntoIterator<Item = String>,
        blocks: impl IntoIterator<Item = ObjectRecord>,
    ) {
        self.keys.extend(keys);
        self.blocks.extend(blocks);
    }

    /// The blocks that are still on some node.
    pub(super) fn blocks(&self) -> &[ObjectRecord] {
        &self.blocks
    }

    /// Delete what there is, once what was begun before has ended.
    pub(super) async fn delete(&mut self, stripe: &Arc<Stripe>) {
        self.end().await;
        if self.deletion.is_none() {
            let (stripe, keys) = (stripe.clone(), std::mem::take(&mut self.keys));
            let blocks = self.blocks.clone();
            self.deletion = Some(tokio::spawn(async move {
                stripe.delete_roots(&keys).await;
                stripe.delete(&blocks).await
            }));
            self.end().await;
        }
    }

    /// Wait a little for the deletion under way.
    async fn end(&mut self) {
        if let Some(deletion) = &mut self.deletion
            && let Ok(ended) = timeout(PATIENCE, deletion).await
        {
            self.deletion = None;
            let gone = ended.unwrap_or_default();
            self.blocks.retain(|block| !gone.contains(&block.id));
        }
    }
}

impl Drop for Discard {
    fn drop(&mut self) {
        if let Some(deletion) = self.deletion.take() {
            deletion.abort();
        }
    }
}
