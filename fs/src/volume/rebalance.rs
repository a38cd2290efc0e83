//! Rebalancing: what earlier lists of nodes placed is placed by the current one, so that nodes that are gone are missed no
//! more, nodes that were left out are free, and nodes that were added have their share.
//!
//! Placement is metadata alone: the object's configuration changes, and whatever does not lie where the current one wants it
//! is an exception from then on, which the upkeep brings home or makes anew as any other (volume.md section 1). So it may
//! stop at any time, and is gone on with by whoever mounts the volume next.

use std::sync::Arc;

use common::wire::NodeId;
use serde::{Deserialize, Serialize};

use super::Volume;
use crate::error::{Error, Result};
use crate::metadata::{Exception, ObjectRecord};

/// Objects looked at in one step.
const PAGE: usize = 1000;
/// An object's placement may change between two looks at it; not so often.
const TRIES: usize = 8;

/// What rebalancing did, or would do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RebalanceReport {
    /// Objects that earlier lists of nodes placed.
    pub objects: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Fragments of them that go to another node.
    pub moved: u64,
    /// Fragments of them that no node has that is there: they are made anew.
    pub made: u64,
}

impl Volume {
    /// Place everything by the current list of nodes, unless `dry_run`. When it returns that is in the pool; fragments are on
    /// their way, and counted by the objects that are not at home.
    ///
    /// # Errors
    /// `Pool` where a node of the current list is gone; `ReadOnly`; the store's and the journal's.
    pub async fn rebalance(self: &Arc<Self>, dry_run: bool) -> Result<RebalanceReport> {
        self.writable()?;
        self.check_current()?;
        let mut report = RebalanceReport::default();
        let mut after = None;
        loop {
            let page = self.metadata.objects(after, PAGE)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.id);
            for (object, _) in page.iter().filter(|(_, needed)| *needed) {
                self.place_object(object, dry_run, &mut report)?;
            }
            tokio::task::yield_now().await;
        }
        if !dry_run {
            self.forget_extents();
            self.away.notify_one();
            self.place_journal().await?;
        }
        Ok(report)
    }

    /// Nothing can be brought to a node that is gone.
    fn check_current(&self) -> Result<()> {
        let current = self.stripe.configurations().get(&self.stripe.current()).into_iter().flatten();
        match current.copied().find(|node| self.pool.is_gone(*node)) {
            None => Ok(()),
            Some(node) => Err(Error::Pool(format!(
                "node {node} is at no known address, and new objects are placed on it: unmount, and name the nodes to use \
                 with --peers at the next mount"
            ))),
        }
    }

    fn place_object(&self, object: &ObjectRecord, dry_run: bool, report: &mut RebalanceReport) -> Result<()> {
        let mut object = object.clone();
        for _ in 0..TRIES {
            let Some(away) = self.stripe.away_if_placed_anew(&object) else { return Ok(()) };
            if dry_run || self.metadata.place_anew(&object, self.stripe.current(), &away)? {
                report.count(&object, &away, |node| self.pool.is_gone(node));
                return Ok(());
            }
            object = match self.metadata.object(object.id) {
                Err(Error::NotFound) => return Ok(()),
                found => found?,
            };
        }
        Err(Error::Pool(format!("where fragments of {} lie changes all the time: try again", object.id)))
    }

    /// Parts of the journal say for good where they were placed, and are needed until everything is written anew.
    async fn place_journal(self: &Arc<Self>) -> Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        if journal.parts().iter().any(|part| part.configuration != self.stripe.current()) {
            journal.checkpoint().await
        } else {
            self.sync().await
        }
    }
}

impl RebalanceReport {
    fn count(&mut self, object: &ObjectRecord, away: &[Exception], is_gone: impl Fn(NodeId) -> bool) {
        self.objects += 1;
        self.bytes += u64::from(object.length);
        let made = away.iter().filter(|exception| exception.node.is_none_or(&is_gone)).count() as u64;
        self.made += made;
        self.moved += away.len() as u64 - made;
    }
}
