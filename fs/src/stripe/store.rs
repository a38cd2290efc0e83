//! Storing one object: its fragments are sent all at once, and the caller is answered when it is *stored*.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use common::wire::{NodeId, ObjectId, RefusalCode};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::encoded::Encoded;
use super::ledger::Unsafe;
use super::roots::fencing;
use super::spread::{Spread, fewest_nodes};
use super::{Stripe, pad};
use crate::cache::Reuse;
use crate::error::{Error, Result};
use crate::metadata::{Exception, ObjectRecord};
use crate::placement;
use crate::pool::{NodeState, Outcome};
use crate::stages::{self, Stage};
use crate::transport::{Answer, TransportError};

/// Between two requests for a flush by one who waits for room.
const ASK_AGAIN: Duration = Duration::from_millis(20);

impl Stripe {
    /// Store an object: `padded` holds its `length` bytes (at least one) and zeros up to m times the fragment length.
    ///
    /// Returns when it is *stored*; with `flush` when it is flushed on every node that is up, a slow one waited for
    /// only so long, and in any case on enough nodes to make it *stored*. The rest of its fragments completes in
    /// the background. After an error nothing refers to it, and the same id may be tried again with the same bytes.
    ///
    /// Its time begins when its turn has come: over a slow line few objects are sent at once.
    /// `TooFewNodes`, `NoSpace`, `TimedOut`; `ReadOnly` once another mount has taken the volume over.
    pub async fn store(
        self: &Arc<Self>,
        id: ObjectId,
        padded: Bytes,
        length: u32,
        flush: bool,
    ) -> Result<ObjectRecord> {
        let code = self.options.code;
        let Some(admission) = self.window.admit(padded.len() / code.m() * code.n()).await else {
            return Err(Error::TimedOut("nothing of what was sent before could be stored".into()));
        };
        let sent = Instant::now();
        let outcome = self.store_at_once(id, padded, length, flush).await;
        match &outcome {
            Ok(_) => admission.stored(sent),
            Err(_) if sent.elapsed() >= self.options.io_limit => admission.missed(sent),
            Err(_) => {}
        }
        outcome
    }

    /// As `store`, whatever else is on its way: what an fsync waits for that the nodes have all else of.
    pub async fn store_at_once(
        self: &Arc<Self>,
        id: ObjectId,
        padded: Bytes,
        length: u32,
        flush: bool,
    ) -> Result<ObjectRecord> {
        let deadline = Instant::now() + self.options.io_limit;
        let code = self.options.code;
        if length == 0 || padded.len() != code.padded_length(u64::from(length)) {
            return Err(Error::Invalid("an object is not empty and padded to whole fragments"));
        }
        let encoded = self.encode(id, padded, length, deadline).await?;
        self.cache_stored(&encoded);
        let homes = self.homes(self.current, id, code);
        let _lasting = stages::begin(Stage::Store);
        let exceptions = self.patiently(|| self.disperse(&encoded, &homes, flush, deadline)).await?;
        Ok(ObjectRecord { id, length, fpcc: encoded.digest, code, configuration: self.current, exceptions })
    }

    /// Store again, flushed, what was stored before and may have been forgotten since, from what is left of it. Returns
    /// what is not at home now.
    ///
    /// # Errors
    /// As `store`, and `Unreadable`.
    pub async fn store_again(self: &Arc<Self>, object: &ObjectRecord) -> Result<Vec<Exception>> {
        let bytes = self.read(object, 0..object.length, Reuse::Likely).await?.concat();
        let deadline = Instant::now() + self.options.io_limit;
        let encoded = self.encode(object.id, pad(object.code, &bytes), object.length, deadline).await?;
        if encoded.digest != object.fpcc {
            let reason = "its bytes have another cross-checksum than it was stored with".into();
            return Err(Error::Unreadable { object: object.id, reason });
        }
        let homes = self.homes_of(object);
        self.patiently(|| self.disperse(&encoded, &homes, true, deadline)).await
    }

    async fn encode(
        &self,
        id: ObjectId,
        padded: Bytes,
        length: u32,
        deadline: Instant,
    ) -> Result<Arc<Encoded>> {
        let (code, hash) = (self.options.code, self.options.hash);
        let permit = self.wait_for_room(padded.len() / code.m() * code.n(), deadline).await?;
        let encoding = move || {
            let _lasting = stages::begin(Stage::Encode);
            Encoded::new(id, code, hash, padded, length).holding(permit)
        };
        Ok(Arc::new(self.cpu.run(length as usize, encoding).await))
    }

    async fn disperse(
        self: &Arc<Self>,
        encoded: &Arc<Encoded>,
        homes: &[NodeId],
        flush: bool,
        deadline: Instant,
    ) -> Result<Vec<Exception>> {
        Sending::of(Dispersal::new(self, encoded.clone(), homes.to_vec(), flush, deadline)).outcome().await
    }

    /// Send again what of an object nobody is known to hold, flushed. Its other fragments stay where they are.
    pub(super) async fn send_again(self: &Arc<Self>, missing: Unsafe, deadline: Instant) -> Result<()> {
        let Unsafe { encoded, homes, holders } = missing;
        let dispersal = Dispersal::new(self, encoded, homes, true, deadline).again_but_for(holders);
        Sending::of(dispersal).outcome().await.map(drop)
    }

    /// Every node that may get a fragment; those that do well first, and among them those that suit the object.
    fn handoff_order(&self, id: ObjectId, homes: &[NodeId]) -> Vec<NodeId> {
        let mut order = placement::by_preference(self.nodes_of(self.current), id);
        let elsewhere: Vec<NodeId> = homes.iter().copied().filter(|home| !order.contains(home)).collect();
        order.extend(elsewhere);
        order.sort_by_key(|&node| self.pool.state(node) != NodeState::Up);
        order
    }

    pub(super) fn is_lagging(&self, node: NodeId) -> bool {
        matches!(self.pool.state(node), NodeState::Lagging | NodeState::Down { .. })
    }

    async fn wait_for_room(&self, bytes: usize, deadline: Instant) -> Result<OwnedSemaphorePermit> {
        let all = (2 * self.options.unflushed_bytes).div_ceil(1 << 10) as u32;
        let needed = (bytes.div_ceil(1 << 10) as u32).clamp(1, all.max(1));
        let permit = self.room.clone().acquire_many_owned(needed);
        tokio::pin!(permit);
        loop {
            let available = self.room.available_permits();
            if available < (all / 2 + needed) as usize {
                self.flush_soon();
            }
            if available < needed as usize {
                self.pressure.notify_waiters();
            }
            // Asked for again and again: a flush that began before an object was *stored* does not free its room, and
            // when all who could ask are waiting here, nobody else would.
            match timeout_at(deadline.min(Instant::now() + ASK_AGAIN), &mut permit).await {
                Ok(permit) => return Ok(permit.expect("the semaphore is never closed")),
                Err(_) if Instant::now() < deadline => {}
                Err(_) => {
                    let kept = self.ledger.lock().held_bytes() >> 20;
                    let why = format!("{kept} MiB wait to be flushed on enough nodes, and no more are taken");
                    return Err(Error::TooFewNodes(why));
                }
            }
        }
    }

    /// Small ones only: the cache copies what is a slice of a larger buffer.
    fn cache_stored(&self, encoded: &Encoded) {
        for (index, fragment) in encoded.fragments[..encoded.code.m()].iter().enumerate() {
            if fragment.len() <= self.options.cached_on_store {
                self.cache.insert(encoded.id, index as u8, fragment.clone(), Reuse::Likely);
            }
        }
    }

    /// Whoever was sending an object does so no longer.
    pub(super) fn finished(&self, id: ObjectId) {
        self.book(|ledger| ledger.finished(id));
        self.finished.notify_waiters();
    }

    /// Waits until no object is being sent any more; bounded, as every sending is.
    pub async fn settle(&self) {
        loop {
            let finished = self.finished.notified();
            if self.ledger.lock().sending() == 0 {
                return;
            }
            finished.await;
        }
    }
}

/// One object on its way to its nodes.
struct Dispersal {
    stripe: Arc<Stripe>,
    encoded: Arc<Encoded>,
    spread: Spread,
    flush: bool,
    /// Whether the object was *stored* before, and is only sent again.
    again: bool,
    began: Instant,
    deadline: Instant,
    /// When each fragment in flight was sent.
    sent: HashMap<(usize, NodeId), Instant>,
    /// How long it was until the first was taken.
    first_taken: Option<Duration>,
    /// Who did not take a fragment, and why.
    refusals: Vec<(NodeId, TransportError)>,
    stored_since: Option<Instant>,
    hopeless_since: Option<Instant>,
}

/// How one fragment's sending ended.
struct Put {
    index: usize,
    node: NodeId,
    /// What of this node a flush covers that came with it.
    mark: u64,
    ended: std::result::Result<Answer<()>, TransportError>,
}

type Puts = FuturesUnordered<BoxFuture<'static, Put>>;

/// An object that is being sent. What is left once its outcome is known, or once nobody waits for that any more, goes on
/// in a task of its own; a caller that went away leaves an object nothing refers to, as a crash would.
struct Sending(Option<(Dispersal, Puts)>);

impl Sending {
    fn of(dispersal: Dispersal) -> Sending {
        Sending(Some((dispersal, Puts::new())))
    }

    async fn outcome(mut self) -> Result<Vec<Exception>> {
        let (dispersal, puts) = self.0.as_mut().expect("it is taken at its end");
        let outcome = dispersal.outcome(puts).await;
        if outcome.is_err() || dispersal.is_complete() {
            let finished = self.0.take();
            finished.into_iter().for_each(|(dispersal, _)| dispersal.finish());
        }
        outcome
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let (Some((dispersal, puts)), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(dispersal.complete(puts));
        }
    }
}

impl Dispersal {
    fn new(
        stripe: &Arc<Stripe>,
        encoded: Arc<Encoded>,
        homes: Vec<NodeId>,
        flush: bool,
        deadline: Instant,
    ) -> Dispersal {
        let order = stripe.handoff_order(encoded.id, &homes);
        let usable: HashSet<NodeId> = stripe.pool.usable_for_writing().into_iter().collect();
        stripe.book(|ledger| ledger.begin(&encoded, &homes));
        Dispersal {
            spread: Spread::new(encoded.code, homes, order, &usable),
            stripe: stripe.clone(),
            encoded,
            flush,
            again: false,
            began: Instant::now(),
            deadline,
            sent: HashMap::new(),
            first_taken: None,
            refusals: Vec::new(),
            stored_since: None,
            hopeless_since: None,
        }
    }

    /// For an object that was *stored* before: these fragments need not be sent.
    fn again_but_for(self, holders: Vec<Option<NodeId>>) -> Dispersal {
        Dispersal { spread: self.spread.with_holders(holders), again: true, ..self }
    }

    /// Send until it is known what to tell who waits: what is not at home, or why it is not *stored*.
    async fn outcome(&mut self, puts: &mut Puts) -> Result<Vec<Exception>> {
        loop {
            self.send(puts);
            if let Some(outcome) = self.verdict() {
                self.note(&outcome);
                return outcome;
            }
            self.wait(puts, true).await;
        }
    }

    /// Bring what is *stored* to the nodes that have not answered yet.
    async fn complete(mut self, mut puts: Puts) {
        if self.stored_since.is_none() && self.outcome(&mut puts).await.is_err() {
            return self.finish();
        }
        loop {
            self.send(&mut puts);
            if self.is_complete() {
                return self.finish();
            }
            self.wait(&mut puts, false).await;
        }
    }

    fn send(&mut self, puts: &mut Puts) {
        // Here, not at the alarm alone: a node that is found to lag meanwhile is late from one moment to the next.
        self.overdue(1);
        if self.hopeless_since.is_none() {
            for (index, node) in self.spread.next_sends() {
                puts.push(self.put(index, node));
            }
        }
    }

    /// For the next answer, or for what is overdue.
    async fn wait(&mut self, puts: &mut Puts, somebody_waits: bool) {
        let alarm = self.next_alarm(somebody_waits);
        let stripe = self.stripe.clone();
        tokio::select! {
            biased;
            Some(put) = puts.next() => self.ended(put),
            () = sleep_until(alarm) => self.overdue(1),
            () = stripe.pressure.notified(), if !somebody_waits => self.overdue(4),
        }
    }

    /// Nothing more can come of it.
    fn is_complete(&self) -> bool {
        self.spread.is_settled() || self.is_over()
    }

    fn finish(self) {
        self.stripe.finished(self.encoded.id);
    }

    fn put(&mut self, index: usize, node: NodeId) -> BoxFuture<'static, Put> {
        self.sent.insert((index, node), Instant::now());
        let (stripe, encoded, flush) = (self.stripe.clone(), self.encoded.clone(), self.flush);
        let mark = stripe.ledger.lock().mark(node);
        let limit = self.deadline.max(Instant::now() + self.stripe.options.completion_limit);
        Box::pin(async move {
            let ended = stripe.put_fragment(&encoded, index, node, flush, limit - Instant::now()).await;
            Put { index, node, mark, ended }
        })
    }

    fn ended(&mut self, put: Put) {
        let Put { index, node, mark, ended } = put;
        self.sent.remove(&(index, node));
        match ended {
            Ok(answer) => {
                if self.first_taken.is_none() {
                    let after = self.began.elapsed();
                    self.first_taken = Some(after);
                    self.stripe.window.answered(self.bytes(), after);
                }
                let counts = self.spread.acknowledged(index, node);
                let (id, boot, flush) = (self.encoded.id, answer.boot, self.flush);
                let restarted = self.stripe.book(|ledger| {
                    if counts {
                        ledger.acknowledged(id, index, node, boot, flush);
                    }
                    if flush {
                        ledger.flushed(node, boot, mark);
                    }
                    ledger.heard(node, boot)
                });
                if restarted {
                    self.stripe.recheck(node);
                }
            }
            Err(error) => {
                tracing::debug!(object = %self.encoded.id, index, %node, %error, "a fragment was not taken");
                self.refusals.push((node, error));
                self.spread.failed(index, node);
            }
        }
    }

    /// What the caller is to be told now, if anything.
    fn verdict(&mut self) -> Option<Result<Vec<Exception>>> {
        let now = Instant::now();
        if self.spread.is_stored() {
            self.stored_since.get_or_insert(now);
            let enough = self.waits_until().is_none_or(|until| now >= until.min(self.deadline));
            return enough.then(|| Ok(self.spread.exceptions()));
        }
        if self.stripe.is_fenced_by(fencing(&self.refusals)) {
            return Some(Err(Error::ReadOnly));
        }
        if self.spread.is_hopeless() {
            self.hopeless_since.get_or_insert(now);
        }
        // The rest may still say what is wrong with it, for the sentence to be complete.
        let has_waited = self.hopeless_since.is_some_and(|since| now >= since + self.stripe.options.grace);
        let over = has_waited || self.spread.is_answered() || now >= self.deadline;
        over.then(|| Err(self.too_few()))
    }

    /// How long a *stored* object waits for the acknowledgements still out, if there are any: as long again as it took
    /// to become *stored*, so that a pool at its limits is not taken for one that lags; and for a node that does not
    /// lag at least the grace.
    fn waits_until(&self) -> Option<Instant> {
        let since = self.stored_since?;
        let took = since - self.began;
        let options = &self.stripe.options;
        let grace = if self.flush { options.flush_patience } else { options.grace };
        let wait = |(_, node)| {
            since + if self.stripe.is_lagging(node) { took } else { took.max(grace) }.min(self.patience())
        };
        self.spread.awaited().map(wait).max()
    }

    fn note(&self, outcome: &Result<Vec<Exception>>) {
        if let Ok(exceptions) = outcome {
            let (id, margin, again) = (self.encoded.id, self.spread.margin(), self.again);
            self.stripe.book(|ledger| match again {
                true => ledger.lower_margin(id, margin),
                false => ledger.stored(id, margin, exceptions.clone()),
            });
        }
    }

    fn patience(&self) -> Duration {
        let options = &self.stripe.options;
        if self.flush { options.flush_patience } else { options.patience }
    }

    /// Of a node known to lag not much is expected while the object is not *stored*; in a hurry so many times less of
    /// any. But no node is late while all of them are, as they are over a slow line: it has half as long again as the first.
    fn patience_with(&self, node: NodeId, hurry: u32) -> Duration {
        let is_urgent = self.stored_since.is_none() && self.stripe.is_lagging(node);
        let patience = if is_urgent { 2 * self.stripe.options.grace } else { self.patience() };
        let first = self.first_taken.unwrap_or_else(|| self.stripe.window.usual(self.bytes()));
        (patience / hurry).max((first * 3 / 2).min(self.stripe.options.io_limit * 3 / 4))
    }

    fn bytes(&self) -> usize {
        self.encoded.fragments.iter().map(Bytes::len).sum()
    }

    fn next_alarm(&self, waiting: bool) -> Instant {
        let late = |(index, node)| Some(*self.sent.get(&(index, node))? + self.patience_with(node, 1));
        let late = self.spread.in_time().filter_map(late).min();
        let end = if waiting { self.deadline } else { self.completion_end() };
        let grace = self.waits_until().filter(|_| waiting);
        // Hope that came back, or was given up, needs no alarm: one in the past would ring without end.
        let hopeless = self.hopeless_since.filter(|_| waiting && self.stored_since.is_none());
        let hopeless = hopeless.map(|since| since + self.stripe.options.grace);
        [late, grace, hopeless].into_iter().flatten().fold(end, Instant::min)
    }

    fn completion_end(&self) -> Instant {
        self.stored_since.map_or(self.deadline, |since| since + self.stripe.options.completion_limit)
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.completion_end()
    }

    /// Who has kept silent for too long gets company; in a hurry so many times sooner.
    fn overdue(&mut self, hurry: u32) {
        let now = Instant::now();
        let is_due = |node, sent: Instant| sent + self.patience_with(node, hurry) <= now;
        let due = self.sent.iter().filter(|&(&(_, node), &sent)| is_due(node, sent));
        let due: Vec<(usize, NodeId)> = due.map(|(&key, _)| key).collect();
        due.into_iter().for_each(|(index, node)| self.give_up_on(index, node));
    }

    fn give_up_on(&mut self, index: usize, node: NodeId) {
        if self.spread.is_late(index, node) {
            self.stripe.tally.hedges.fetch_add(1, Ordering::Relaxed);
            self.stripe.pool.report(node, Outcome::Slow);
        }
    }

    /// One sentence: how many answered, how many are needed, and what each of the others said.
    fn too_few(&mut self) -> Error {
        let full = |error: &TransportError| {
            matches!(error, TransportError::Refused { code: RefusalCode::NoSpace, .. })
        };
        let full: HashSet<NodeId> =
            self.refusals.iter().filter(|(_, error)| full(error)).map(|&(node, _)| node).collect();
        let (answered, needed) = (self.spread.answered(), fewest_nodes(self.encoded.code));
        let nodes = self.stripe.nodes_of(self.stripe.current).len();
        let reasons = self.reasons();
        let message =
            format!("{answered} of {nodes} nodes answered, {needed} are needed to write: {reasons}");
        if !full.is_empty() && self.spread.would_be_stored_with(&full) {
            Error::NoSpace(message)
        } else {
            Error::TooFewNodes(message)
        }
    }

    fn reasons(&self) -> String {
        let said = self.refusals.iter().map(|(node, error)| (*node, error.to_string()));
        let silent = self.sent.keys().map(|&(_, node)| (node, "has not answered yet".to_owned()));
        let mut seen = HashSet::new();
        let reasons = said.chain(silent).filter(|(node, _)| seen.insert(*node));
        let reasons = reasons.map(|(node, why)| format!("{} {why}", self.stripe.called(node)));
        reasons.collect::<Vec<_>>().join(", ")
    }
}

impl Stripe {
    /// Send one fragment to one node and tell the pool how that went.
    pub(super) async fn put_fragment(
        &self,
        encoded: &Encoded,
        index: usize,
        node: NodeId,
        flush: bool,
        limit: Duration,
    ) -> std::result::Result<Answer<()>, TransportError> {
        let (name, fragment) = (encoded.name(index), encoded.fragments[index].clone());
        self.put_bytes(node, &name, encoded.fpcc.clone(), fragment, flush, limit).await
    }

    /// The same for a fragment that is not part of a whole encoded object.
    pub(super) async fn put_bytes(
        &self,
        node: NodeId,
        name: &common::wire::FragmentName,
        fpcc: Bytes,
        fragment: Bytes,
        flush: bool,
        limit: Duration,
    ) -> std::result::Result<Answer<()>, TransportError> {
        let address = self.address(node)?;
        self.pool.note_change(node, name);
        let began = Instant::now();
        let put = self.pool.transport().put(&address, self.writer(node), name, fpcc, fragment, flush, limit);
        self.pool.write_ended(node, began, put.await)
    }

    pub(super) fn address(
        &self,
        node: NodeId,
    ) -> std::result::Result<crate::transport::NodeAddress, TransportError> {
        let nowhere = || TransportError::Unreachable("is at no address of the pool".into());
        self.pool.address_of(node).ok_or_else(nowhere)
    }

    /// A node's address, or its identity where it has none.
    pub(super) fn called(&self, node: NodeId) -> String {
        self.pool.address_of(node).map_or_else(|| format!("node {node}"), |address| address.to_string())
    }
}
