//! Garbage: fragments of objects that nobody refers to, left by a crash between storing and committing, or by a node that
//! was down while an object was deleted.
//!
//! Candidates are the ids that nodes list, of earlier epochs alone: nothing of those is on its way any more. Of them the
//! store's objects live, and so do the journal's, after everything made before has reached the pool. The sweep names
//! each id; it is never "all others" (volume.md section 8).

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use common::wire::{NodeId, ObjectId};
use serde::{Deserialize, Serialize};

use super::{CompactionReport, Volume};
use crate::error::{Error, Result};

/// Objects deleted at once.
const ROUND: usize = 512;

/// What `avidfs gc` found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct GarbageReport {
    /// Objects nobody refers to.
    pub objects: u64,
    /// Their fragments.
    pub fragments: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Objects whose fragments are deleted; 0 when nothing was to be deleted.
    pub deleted: u64,
    /// Nodes that could not be asked; what they hold stays.
    pub silent: Vec<String>,
    /// What became of objects that are mostly overwritten, and of many small ones.
    pub compaction: CompactionReport,
}

impl Volume {
    /// Find what nobody refers to on the nodes that answer, and what lies scattered; delete the one and store the other
    /// anew unless `dry_run`.
    ///
    /// # Errors
    /// The journal cannot be written, or the store's.
    pub async fn collect_garbage(self: &Arc<Self>, dry_run: bool) -> Result<GarbageReport> {
        self.writable()?;
        self.sync().await?;
        let compaction = self.compact(dry_run).await?;
        let mut report = GarbageReport { compaction, ..GarbageReport::default() };
        let listed = self.stripe.listed_objects(&mut report.silent).await;
        let journals: HashSet<ObjectId> =
            self.journal.as_ref().map(|journal| journal.objects()).unwrap_or_default();
        let mut garbage: Vec<(ObjectId, Vec<NodeId>)> = Vec::new();
        for (id, found) in listed {
            if id.epoch >= self.epoch || journals.contains(&id) || self.is_known(id)? {
                continue;
            }
            report.objects += 1;
            report.fragments += found.fragments;
            report.bytes += found.bytes;
            garbage.push((id, found.nodes));
        }
        if dry_run {
            return Ok(report);
        }
        for some in garbage.chunks(ROUND) {
            let mut of_node: BTreeMap<NodeId, Vec<ObjectId>> = BTreeMap::new();
            for (id, nodes) in some {
                nodes.iter().for_each(|node| of_node.entry(*node).or_default().push(*id));
            }
            let left = self.stripe.delete_listed(&of_node).await;
            report.deleted += (some.len() - left.len()) as u64;
        }
        Ok(report)
    }

    fn is_known(&self, id: ObjectId) -> Result<bool> {
        match self.metadata.object(id) {
            Ok(_) => Ok(true),
            Err(Error::NotFound) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
