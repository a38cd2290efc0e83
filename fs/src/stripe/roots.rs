//! The journal's entries on the root nodes: whole copies, one on each, so that a single one is enough to read. Which
//! entry follows which the journal knows; here they are keys and bytes.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::code::Code;
use common::codec::Codec;
use common::fpcc::Fpcc;
use common::wire::{
    EVERY_INDEX, FragmentName, JOURNAL_PREFIX, MAX_BATCH, NodeId, ObjectId, ObjectStatus, Operation,
    RefusalCode,
};
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::broadcast;
use tokio::task::JoinError;
use tokio::time::{Instant, sleep_until};

use super::Stripe;
use super::inquiry::Contradiction;
use crate::error::{Error, Result};
use crate::pool::{Outcome, PoolEvent};
use crate::transport::{Answer, RawFragment, TransportError};

/// One for where it is, one for itself.
const REQUESTS_FOR_A_COPY: u32 = 2;

/// What a node gets for a copy at least: one that has not answered by then counts as down.
const LEAST_FOR_A_COPY: Duration = Duration::from_secs(1);

/// What nodes hold of the journal.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RootKeys {
    /// Keys, and who has each.
    pub keys: BTreeMap<String, Vec<NodeId>>,
    /// Nodes that answered.
    pub answered: Vec<NodeId>,
    /// Nodes that did not answer, as they are called.
    pub silent: Vec<String>,
}

/// How putting an entry on a node ended.
type Put = (NodeId, std::result::Result<std::result::Result<Answer<()>, TransportError>, JoinError>);

impl RootKeys {
    fn of(listings: Vec<(NodeId, Vec<ObjectStatus>)>, silent: Vec<String>) -> RootKeys {
        let mut found = RootKeys { silent, ..RootKeys::default() };
        for (node, objects) in listings {
            found.answered.push(node);
            for object in objects {
                let holders: &mut Vec<NodeId> = found.keys.entry(object.key).or_default();
                // Once, however many versions of it the node lists.
                if holders.last() != Some(&node) {
                    holders.push(node);
                }
            }
        }
        found
    }

    /// Who has a key.
    fn holders(&self, key: &str) -> &[NodeId] {
        self.keys.get(key).map_or(&[], Vec::as_slice)
    }
}

impl Stripe {
    /// The nodes that keep the journal: the first n of those over which new objects are placed.
    pub fn root_nodes(&self) -> Vec<NodeId> {
        let nodes = self.nodes_of(self.current);
        nodes[..self.options.code.n().min(nodes.len())].to_vec()
    }

    /// Keep an entry, flushed, on every root node that is up, a slow one waited for only so long, and in any case on
    /// enough of them. The same entry may be put again. Returns who has it; others may get it a little later.
    ///
    /// # Errors
    /// `TooFewNodes`; `ReadOnly` once another mount has taken the volume over.
    pub async fn put_root(self: &Arc<Self>, key: &str, entry: Bytes) -> Result<Vec<NodeId>> {
        self.patiently(|| self.try_put_root(key, &entry)).await
    }

    async fn try_put_root(self: &Arc<Self>, key: &str, entry: &Bytes) -> Result<Vec<NodeId>> {
        let deadline = Instant::now() + self.options.io_limit;
        let nodes = self.root_nodes();
        let fpcc: Bytes = copies(nodes.len(), self.options.hash, entry).into();
        let put = |index, node| {
            let name = FragmentName { key: key.to_owned(), version: ObjectId::VERSION, index: index as u8 };
            let (stripe, fpcc, entry) = (self.clone(), fpcc.clone(), entry.clone());
            // On a task of its own: who is slow gets it all the same.
            tokio::spawn(async move {
                let limit = deadline.max(Instant::now() + stripe.options.completion_limit) - Instant::now();
                stripe.put_bytes(node, &name, fpcc, entry, true, limit).await
            })
        };
        let quorum = self.options.code.quorum();
        let is_enough =
            |ended: &[Put]| ended.iter().filter(|(_, put)| matches!(put, Ok(Ok(_)))).count() >= quorum;
        let ended = self.answers_of(&nodes, put, deadline, is_enough).await;
        let (mut kept, mut refusals) = (Vec::new(), Vec::new());
        for (node, put) in ended {
            match put {
                Ok(Ok(_)) => kept.push(node),
                Ok(Err(error)) => refusals.push((node, error)),
                Err(error) => return Err(Error::Host(error.to_string())),
            }
        }
        if kept.len() >= quorum {
            return Ok(kept);
        }
        if self.is_fenced_by(fencing(&refusals)) {
            return Err(Error::ReadOnly);
        }
        let reasons: Vec<String> =
            refusals.iter().map(|(node, error)| format!("{} {error}", self.called(*node))).collect();
        let (all, reasons) = (nodes.len(), reasons.join(", "));
        Err(Error::TooFewNodes(format!(
            "{} of {all} nodes keep the journal, {quorum} are needed: {reasons}",
            kept.len()
        )))
    }

    /// How many nodes that keep the journal answer.
    pub fn roots_up(&self) -> usize {
        self.root_nodes().into_iter().filter(|&node| !self.is_down(node)).count()
    }

    /// What becomes of nodes, from now on.
    pub fn node_events(&self) -> broadcast::Receiver<PoolEvent> {
        self.pool.events()
    }

    /// Which keys after `after` every node of the pool has; one that is down and does not answer is not waited for.
    pub async fn root_keys(&self, after: &str) -> RootKeys {
        let mut silent = Vec::new();
        let listings = self.listings(after, &mut silent).await;
        RootKeys::of(listings, silent)
    }

    /// The same; once so many root nodes have answered, the others are not waited for much longer.
    pub async fn root_keys_of(&self, after: &str, enough: usize) -> RootKeys {
        let roots = self.root_nodes();
        let are_enough =
            |answered: &[NodeId]| roots.iter().filter(|root| answered.contains(root)).count() >= enough;
        let mut silent = Vec::new();
        let listings = self.listings_of_enough(after, &mut silent, are_enough).await;
        RootKeys::of(listings, silent)
    }

    /// An entry as one of these nodes has it; what does not check, also by `check`, is taken for a lie. They are asked in
    /// turn, the next one as soon as one fails or is slow.
    ///
    /// # Errors
    /// `Pool`: none of them gives a good copy.
    pub async fn get_root<T>(
        self: &Arc<Self>,
        key: &str,
        nodes: &[NodeId],
        check: impl Fn(&Bytes) -> Result<T>,
    ) -> Result<T> {
        let (mut reasons, mut bad) = (Vec::new(), Vec::new());
        let mut nodes = nodes.to_vec();
        nodes.sort_by_key(|&node| self.is_lagging(node));
        let (mut left, mut asked) = (nodes.into_iter(), FuturesUnordered::new());
        let (mut newest, mut late) = (None, Vec::new());
        let mut patience = Instant::now();
        loop {
            if (asked.is_empty() || patience <= Instant::now())
                && let Some(node) = left.next()
            {
                patience = Instant::now() + REQUESTS_FOR_A_COPY * self.pool.hedge_after(node, 0);
                newest = Some(node);
                asked.push(async move { (node, self.copy_of(key, node).await) });
            }
            let answer = tokio::select! {
                biased;
                answer = asked.next() => answer,
                () = sleep_until(patience), if left.len() > 0 => {
                    late.extend(newest.take());
                    continue;
                }
            };
            let Some((node, copy)) = answer else { break };
            late.retain(|late| *late != node);
            patience = Instant::now();
            match copy.map(|(index, copy)| (index, check(&copy.fragment), copy)) {
                Ok((_, Ok(entry), copy)) => {
                    late.into_iter().for_each(|node| self.pool.report(node, Outcome::Slow));
                    self.blame_for_copies(key, &copy.fpcc, bad);
                    return Ok(entry);
                }
                Ok((index, Err(error), copy)) => {
                    bad.push(BadCopy { node, index, found: copy.fragment, what: error.to_string() });
                    self.pool.report(node, Outcome::Lied { what: "an entry of the journal" });
                    self.count_lie(node);
                    reasons.push(format!("{}: {error}", self.called(node)));
                }
                Err(error) => reasons.push(format!("{} {error}", self.called(node))),
            }
        }
        Err(Error::Pool(format!("no good copy of {key} is to be had: {}", reasons.join(", "))))
    }

    /// Copies that did not check, once a good one is known, with the FPCC it came under: all copies have the same.
    fn blame_for_copies(self: &Arc<Self>, key: &str, fpcc: &Bytes, bad: Vec<BadCopy>) {
        let Ok(fpcc) = Fpcc::parse(fpcc).map(Arc::new) else { return };
        for BadCopy { node, index, found, what } in bad {
            let name = FragmentName { key: key.to_owned(), version: ObjectId::VERSION, index };
            let known = Some(fpcc.clone());
            self.inquire(node, Contradiction { name, fpcc: fpcc.digest(), known, found, what });
        }
    }

    /// The copy a node keeps, under whatever index.
    async fn copy_of(
        &self,
        key: &str,
        node: NodeId,
    ) -> std::result::Result<(u8, RawFragment), TransportError> {
        let (address, limit) = (self.address(node)?, self.options.io_limit);
        let (transport, volume) = (self.pool.transport(), self.options.volume);
        let began = Instant::now();
        let status = transport.status(&address, volume, key, ObjectId::VERSION, limit).await;
        let status = self.pool.read_ended(node, began, status)?.value;
        let index = status.indexes.first().copied();
        let index = index.ok_or_else(|| TransportError::Garbage("an object without fragments".into()))?;
        let name = FragmentName { key: key.to_owned(), version: ObjectId::VERSION, index };
        let began = Instant::now();
        let got = transport.get(&address, volume, &name, limit).await;
        Ok((index, self.pool.read_ended(node, began, got)?.value))
    }

    /// Copy entries to the root nodes that are up and lack them: those that were down when an entry was put. What does
    /// not pass `check` is not copied; `found` is what nodes have. Returns how many copies were made, and whether every
    /// root node that is up has every entry now: it stops after a while, but for entries that do not count without.
    ///
    /// # Errors
    /// `TooFewNodes`: fewer have an entry than it takes for it to count.
    pub async fn spread_roots(
        self: &Arc<Self>,
        found: &RootKeys,
        keys: &[String],
        check: impl Fn(&str, &Bytes) -> Result<()>,
    ) -> Result<(usize, bool)> {
        let (nodes, quorum) = (self.root_nodes(), self.options.code.quorum());
        let (mut copied, mut complete) = (0, true);
        let begun = Instant::now();
        for key in keys {
            let holders = found.holders(key);
            let having = nodes.iter().filter(|node| holders.contains(node)).count();
            let lacking: Vec<(usize, NodeId)> = (nodes.iter().copied().enumerate())
                .filter(|(_, node)| found.answered.contains(node) && !holders.contains(node))
                .collect();
            let refusals = match lacking.is_empty() {
                true => Vec::new(),
                false => {
                    // Whoever wants to write the journal waits meanwhile. Where they count already, a silent or slow node is
                    // not waited for long, over all of them; and not asked at all with so little time that a node which
                    // is well would be taken for one that is down.
                    let left = self.options.flush_patience.saturating_sub(begun.elapsed());
                    if having >= quorum && left < LEAST_FOR_A_COPY {
                        complete = false;
                        continue;
                    }
                    let limit = if having >= quorum { left } else { self.options.completion_limit };
                    self.copy_root(key, holders, &lacking, limit, &check).await
                }
            };
            let made = lacking.len() - refusals.len();
            (copied, complete) = (copied + made, complete && refusals.is_empty());
            if having + made < quorum {
                let why: Vec<String> = refusals.into_iter().chain(found.silent.iter().cloned()).collect();
                return Err(Error::TooFewNodes(format!(
                    "{} of {} nodes keep {key}, {quorum} are needed: {}",
                    having + made,
                    nodes.len(),
                    why.join(", ")
                )));
            }
        }
        Ok((copied, complete))
    }

    /// Returns why some did not take it; nobody does where no good copy is to be had.
    async fn copy_root(
        self: &Arc<Self>,
        key: &str,
        holders: &[NodeId],
        lacking: &[(usize, NodeId)],
        limit: Duration,
        check: &impl Fn(&str, &Bytes) -> Result<()>,
    ) -> Vec<String> {
        let got = self.get_root(key, holders, |bytes| check(key, bytes).map(|()| bytes.clone())).await;
        let entry = match got {
            Ok(entry) => entry,
            Err(error) => return vec![error.to_string(); lacking.len()],
        };
        let fpcc: Bytes = copies(self.root_nodes().len(), self.options.hash, &entry).into();
        let puts = lacking.iter().map(|&(index, node)| {
            let name = FragmentName { key: key.to_owned(), version: ObjectId::VERSION, index: index as u8 };
            let (fpcc, entry) = (fpcc.clone(), entry.clone());
            async move {
                let put = self.put_bytes(node, &name, fpcc, entry, true, limit).await;
                put.err().map(|error| format!("{} {error}", self.called(node)))
            }
        });
        join_all(puts).await.into_iter().flatten().collect()
    }

    /// Whether so many of the nodes that keep the journal refuse this mount's epoch that too few others are left for it.
    /// One alone may have granted a newer one to a mount that was then denied the volume by the others.
    pub(super) fn is_fenced_by(&self, nodes: impl Iterator<Item = NodeId>) -> bool {
        let refusing: HashSet<NodeId> = nodes.collect();
        if refusing.is_empty() {
            return false;
        }
        let left = self.root_nodes().iter().filter(|node| !refusing.contains(node)).count();
        left < self.options.code.quorum()
    }

    /// Whether the nodes that keep the journal say that another mount has taken the volume over. Asked by a change that
    /// changes nothing.
    pub async fn is_taken_over(&self) -> bool {
        let key = format!("{JOURNAL_PREFIX}of-nobody");
        let nothing =
            [Operation::Delete(FragmentName { key, version: ObjectId::VERSION, index: EVERY_INDEX })];
        let deadline = Instant::now() + self.options.io_limit;
        let asked = self.root_nodes().into_iter().filter(|&node| !self.is_down(node));
        let asked = asked.map(|node| {
            let answer = self.ask_batch(node, &nothing, false, deadline);
            async move {
                let refuses = match answer.await {
                    Ok(answer) => answer.value[0].status == RefusalCode::StaleEpoch.status(),
                    Err(error) => error.is_fence(),
                };
                refuses.then_some(node)
            }
        });
        self.is_fenced_by(join_all(asked).await.into_iter().flatten())
    }

    /// Delete entries on every node that is up; one that is down keeps its copies until they are listed again.
    pub async fn delete_roots(&self, keys: &[String]) {
        let deadline = Instant::now() + self.options.io_limit;
        let name =
            |key: &String| FragmentName { key: key.clone(), version: ObjectId::VERSION, index: EVERY_INDEX };
        let operations: Vec<Operation> = keys.iter().map(|key| Operation::Delete(name(key))).collect();
        let nodes = self.pool.nodes().into_iter().filter_map(|node| node.identity);
        let up = nodes.filter(|&node| !self.is_down(node));
        let deletes = up.map(|node| {
            let operations = &operations;
            async move {
                for some in operations.chunks(MAX_BATCH) {
                    if let Err(error) = self.ask_batch(node, some, false, deadline).await {
                        tracing::debug!(%node, %error, "old entries of the journal stay");
                    }
                }
            }
        });
        join_all(deletes).await;
    }
}

/// The nodes that refuse the mount's epoch.
pub(super) fn fencing(refusals: &[(NodeId, TransportError)]) -> impl Iterator<Item = NodeId> {
    refusals.iter().filter(|(_, error)| error.is_fence()).map(|&(node, _)| node)
}

/// A copy of an entry that is none.
struct BadCopy {
    node: NodeId,
    index: u8,
    found: Bytes,
    what: String,
}

/// The FPCC of so many whole copies.
fn copies(count: usize, hash: common::hash::HashId, entry: &Bytes) -> Vec<u8> {
    let code = Code::new(1, count.max(2) - 1).expect("a volume has two nodes at least and 255 at most");
    let fragments = vec![&entry[..]; code.n()];
    Fpcc::compute(&Codec::of(code), hash, entry.len() as u64, &fragments).to_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stripe::listing::tests::status;

    #[test]
    fn a_node_that_lists_several_versions_of_a_key_counts_once() {
        let status = |version| status("journal-1", version);
        let (one, two) = (NodeId([1; 16]), NodeId([2; 16]));
        let listings = vec![(one, vec![status(1), status(2), status(3)]), (two, vec![status(1)])];
        assert_eq!(RootKeys::of(listings, Vec::new()).holders("journal-1"), [one, two]);
    }
}
