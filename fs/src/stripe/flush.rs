//! Making durable what nodes acknowledged: rounds that all who wait share, and what to do when a node was started
//! again in between (volume.md section 4).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::hash::Hash;
use common::wire::{BootId, MAX_BATCH, NodeId, ObjectId, Operation, OperationAnswer};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::Stripe;
use super::encoded::fragment_name;
use super::ledger::Doubtful;
use super::spread::fewest_nodes;
use crate::error::{Error, Result};
use crate::pool::{NodeState, Outcome, PoolEvent};
use crate::stages::{self, Stage};
use crate::transport::{Answer, TransportError};

/// Someone wants a flush; nobody may be waiting for it.
pub(super) struct FlushRequest(Option<oneshot::Sender<Result<()>>>);

/// Objects sent again at once.
const SENT_AGAIN_AT_ONCE: usize = 8;
/// How often a node may be started again during one flush of it.
const RESTARTS: usize = 3;

impl Stripe {
    /// Everything that was stored before is on stable storage: on every node that is up, a slow one waited for only
    /// so long, and in any case on enough nodes to make it *stored*. Callers share rounds.
    pub async fn flush(&self) -> Result<()> {
        if self.is_flushed() {
            self.ledger.lock().let_go();
            return Ok(());
        }
        let _lasting = stages::begin(Stage::FlushNodes);
        self.patiently(|| self.flush_with_others()).await
    }

    async fn flush_with_others(&self) -> Result<()> {
        let (answer, flushed) = oneshot::channel();
        self.flushes.send(FlushRequest(Some(answer))).expect("the receiver lives as long as the stripe");
        let limit = self.options.io_limit;
        let flushed =
            timeout(limit, flushed).await.map_err(|_| Error::TimedOut("flushing the nodes".into()))?;
        flushed.map_err(|_| Error::Host("flushing was cut short".into()))?
    }

    /// The same in the background.
    pub(super) fn flush_soon(&self) {
        if !self.flush_is_coming.swap(true, Ordering::Relaxed) {
            let _ending = self.flushes.send(FlushRequest(None));
        }
    }

    fn is_flushed(&self) -> bool {
        let ledger = self.ledger.lock();
        ledger.unflushed_objects().is_empty()
            && ledger.unflushed_nodes().iter().all(|&node| self.is_down(node))
    }

    pub(super) fn is_down(&self, node: NodeId) -> bool {
        matches!(self.pool.state(node), NodeState::Down { .. })
    }

    pub(super) fn follow_flushes(self: &Arc<Self>, mut requests: mpsc::UnboundedReceiver<FlushRequest>) {
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(first) = requests.recv().await {
                let mut waiting = vec![first];
                waiting.extend(std::iter::from_fn(|| requests.try_recv().ok()));
                let Some(stripe) = weak.upgrade() else { return };
                stripe.flush_is_coming.store(false, Ordering::Relaxed);
                let ended = stripe.flush_round().await;
                if let Err(error) = &ended {
                    tracing::debug!(%error, "a flush did not reach enough nodes");
                }
                for answer in waiting.into_iter().filter_map(|FlushRequest(answer)| answer) {
                    let _gone = answer.send(ended.clone());
                }
            }
        });
    }

    async fn flush_round(self: &Arc<Self>) -> Result<()> {
        let deadline = Instant::now() + self.options.io_limit;
        let objects = self.ledger.lock().unflushed_objects();
        self.flush_nodes(&objects, deadline).await;
        let open = self.still_unflushed(&objects);
        let sent = self.send_elsewhere(&open, deadline).await;
        self.ledger.lock().let_go();
        if self.still_unflushed(&open).is_empty() { Ok(()) } else { sent.and_then(|()| Err(not_enough())) }
    }

    fn still_unflushed(&self, objects: &[ObjectId]) -> Vec<ObjectId> {
        let ledger = self.ledger.lock();
        objects.iter().copied().filter(|&id| ledger.is_unflushed(id)).collect()
    }

    /// Flush every node that is up. Who is slow goes on without being waited for, if the others are enough.
    async fn flush_nodes(self: &Arc<Self>, objects: &[ObjectId], deadline: Instant) {
        let mut nodes = self.ledger.lock().unflushed_nodes();
        // One that still flushes for an earlier round is not asked by a second request.
        nodes.retain(|&node| !self.is_down(node) && self.flushing.lock().insert(node));
        let prompt = |node: &NodeId| self.pool.state(*node) != NodeState::Lagging;
        let mut awaited: HashSet<NodeId> = nodes.iter().copied().filter(prompt).collect();
        let mut flushes: FuturesUnordered<_> =
            nodes.into_iter().map(|n| self.start_flush(n, deadline)).collect();
        let patience = Instant::now() + self.options.flush_patience;
        let mut is_patient = true;
        while !awaited.is_empty() || !self.still_unflushed(objects).is_empty() {
            tokio::select! {
                biased;
                ended = flushes.next() => match ended {
                    Some(node) => drop(awaited.remove(&node)),
                    None => return,
                },
                () = sleep_until(patience), if is_patient => {
                    is_patient = false;
                    awaited.drain().for_each(|node| self.pool.report(node, Outcome::Slow));
                    if self.enough_are_prompt() {
                        return;
                    }
                }
            }
        }
    }

    /// Whether an object can be flushed on enough nodes without those that are slow. Otherwise sending it again would only
    /// give the same disks more to flush.
    fn enough_are_prompt(&self) -> bool {
        let usable = self.pool.usable_for_writing().into_iter();
        usable.filter(|&node| self.pool.state(node) == NodeState::Up).count()
            >= fewest_nodes(self.options.code)
    }

    /// On a task of its own, which goes on when nobody waits for it any more.
    fn start_flush(
        self: &Arc<Self>,
        node: NodeId,
        deadline: Instant,
    ) -> impl Future<Output = NodeId> + use<> {
        let stripe = self.clone();
        let flushing = tokio::spawn(async move {
            stripe.flush_node(node, deadline).await;
            stripe.flushing.lock().remove(&node);
        });
        async move {
            let _ended = flushing.await;
            node
        }
    }

    async fn flush_node(self: &Arc<Self>, node: NodeId, deadline: Instant) {
        for _ in 0..RESTARTS {
            let mark = self.ledger.lock().mark(node);
            let Ok(answer) = self.ask_to_flush(node, deadline).await else { return };
            let doubtful = self.book(|ledger| {
                ledger.heard(node, answer.boot);
                ledger.flushed(node, answer.boot, mark);
                !ledger.doubtful(node, answer.boot).is_empty()
            });
            if !doubtful {
                return;
            }
            self.recheck_now(node, answer.boot, deadline).await;
        }
    }

    async fn ask_to_flush(
        &self,
        node: NodeId,
        deadline: Instant,
    ) -> std::result::Result<Answer<()>, TransportError> {
        let address = self.address(node)?;
        let began = Instant::now();
        let ended = self.pool.transport().flush(&address, self.writer(node), self.left(deadline)).await;
        self.pool.write_ended(node, began, ended)
    }

    /// Send what is not flushed to nodes that flush it, so that every object is flushed on enough.
    async fn send_elsewhere(self: &Arc<Self>, objects: &[ObjectId], deadline: Instant) -> Result<()> {
        let send = |&id: &ObjectId| {
            let missing = self.ledger.lock().to_flush_elsewhere(id);
            async move {
                match missing {
                    Some(missing) => self.send_again(missing, deadline).await,
                    None => Ok(()),
                }
            }
        };
        let sends = futures_util::stream::iter(objects.iter().map(send)).buffer_unordered(SENT_AGAIN_AT_ONCE);
        sends.fold(Ok(()), |all, one| std::future::ready(all.and(one))).await
    }

    /// Follow what happens to nodes: one that was started again may have forgotten what it did not flush.
    pub(super) fn follow_events(self: &Arc<Self>) {
        let mut events = self.pool.events();
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                let event = events.recv().await;
                let Some(stripe) = weak.upgrade() else { return };
                match event {
                    Ok(PoolEvent::Rebooted { node, .. } | PoolEvent::Returned(node)) => stripe.recheck(node),
                    Ok(PoolEvent::WentDown(_)) => {}
                    Err(RecvError::Lagged(_)) => {
                        let nodes = stripe.ledger.lock().unflushed_nodes();
                        nodes.into_iter().for_each(|node| stripe.recheck(node));
                    }
                    Err(RecvError::Closed) => return,
                }
            }
        });
    }

    /// In the background, once at a time for each node: ask for what it acknowledged before it was started again.
    pub(super) fn recheck(self: &Arc<Self>, node: NodeId) {
        let Some(boot) = self.pool.boot(node) else { return };
        let in_doubt = !self.ledger.lock().doubtful(node, boot).is_empty();
        if !in_doubt || !self.rechecking.lock().insert(node) {
            return;
        }
        let stripe = self.clone();
        tokio::spawn(async move {
            stripe.recheck_now(node, boot, Instant::now() + stripe.options.io_limit).await;
            stripe.rechecking.lock().remove(&node);
        });
    }

    async fn recheck_now(self: &Arc<Self>, node: NodeId, boot: BootId, deadline: Instant) {
        let doubtful = self.ledger.lock().doubtful(node, boot);
        let mut forgotten = HashSet::new();
        for some in doubtful.chunks(MAX_BATCH) {
            let Ok(answer) = self.ask_for(node, some, deadline).await else { break };
            self.book(|ledger| {
                for (fragment, held) in some.iter().zip(&answer.value) {
                    let Doubtful { id, index, .. } = *fragment;
                    if is_held(held, fragment) {
                        ledger.acknowledged(id, index, node, answer.boot, false);
                    } else {
                        if !forgotten.contains(&id) && ledger.claim(id) {
                            forgotten.insert(id);
                        }
                        ledger.forgotten(node, fragment);
                    }
                }
            });
        }
        if !forgotten.is_empty() {
            tracing::warn!(%node, objects = forgotten.len(), "a restarted node had forgotten what it acknowledged");
        }
        self.send_forgotten(forgotten, deadline).await;
    }

    async fn ask_for(
        &self,
        node: NodeId,
        fragments: &[Doubtful],
        deadline: Instant,
    ) -> std::result::Result<Answer<Vec<OperationAnswer>>, TransportError> {
        let operations: Vec<Operation> = fragments
            .iter()
            .map(|fragment| Operation::Has(fragment_name(fragment.id, fragment.index)))
            .collect();
        self.ask_batch(node, &operations, false, deadline).await
    }

    /// One batch to one node, its outcome told to the pool; as many answers as operations.
    pub(super) async fn ask_batch(
        &self,
        node: NodeId,
        operations: &[Operation],
        flush: bool,
        deadline: Instant,
    ) -> std::result::Result<Answer<Vec<OperationAnswer>>, TransportError> {
        let address = self.address(node)?;
        let began = Instant::now();
        let ended = self
            .pool
            .transport()
            .batch(&address, self.writer(node), operations, flush, self.left(deadline))
            .await;
        let answer = self.pool.write_ended(node, began, ended)?;
        if answer.value.len() != operations.len() {
            return Err(TransportError::Garbage("another number of answers than operations".into()));
        }
        Ok(answer)
    }

    /// What is still kept is sent again; the rest shows as an exception and is rebuilt when it is moved home.
    async fn send_forgotten(self: &Arc<Self>, objects: HashSet<ObjectId>, deadline: Instant) {
        let send = |id| {
            let missing = self.ledger.lock().to_send_again(id);
            async move {
                if let Some(missing) = missing
                    && let Err(error) = self.send_again(missing, deadline).await
                {
                    tracing::warn!(object = %id, %error, "what a node had forgotten cannot be sent again now");
                }
                self.finished(id);
            }
        };
        futures_util::stream::iter(objects.into_iter().map(send))
            .buffer_unordered(SENT_AGAIN_AT_ONCE)
            .collect::<Vec<()>>()
            .await;
    }
}

fn is_held(answer: &OperationAnswer, fragment: &Doubtful) -> bool {
    holds(answer, &fragment.digest)
}

/// Whether a node says that it has a fragment of the object with this digest.
pub(super) fn holds(answer: &OperationAnswer, digest: &Hash) -> bool {
    answer.status == 200 && answer.payload[..] == digest.as_bytes()[..]
}

fn not_enough() -> Error {
    Error::TooFewNodes("too few nodes flushed what they keep".into())
}
