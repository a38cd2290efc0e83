//! The nodes a volume may use and how each is doing, as learnt from the requests everyone sends.
//! It decides nothing about objects.

mod members;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use common::wire::{BootId, FragmentName, NodeId, NodeInfo, NodeKey};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::evidence::{Case, Evidence};
use crate::transport::{Answer, FragmentTransport, NodeAddress, TransportError};
use members::{LAG, Members, SLOW_FACTOR, Slot};

/// Hellos under way at once.
const HELLOS: usize = 64;
/// Nodes asked at once about what they were caught at.
const INQUIRIES: usize = 4;
/// Events a receiver may be behind before it misses some.
const EVENTS: usize = 256;
/// Before a node's latency is known.
const HEDGE_AT_FIRST: Duration = Duration::from_millis(200);
/// Shorter waits than this are the scheduler's, not the node's.
const HEDGE_LEAST: Duration = Duration::from_millis(20);
/// Bytes a second that come from all nodes together at least: what was asked before an answer delays it so much.
const HEDGE_RATE: u64 = 200 << 20;

/// Time limits.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Until a connection stands.
    pub connect_limit: Duration,
    /// Until any request is answered.
    pub io_limit: Duration,
    /// Until a hello or a probe is answered.
    pub probe_limit: Duration,
    /// Between probes of a node that is down.
    pub down_interval: Duration,
    /// Between probes of a node that is up.
    pub up_interval: Duration,
}

impl Default for PoolOptions {
    fn default() -> Self {
        PoolOptions {
            connect_limit: Duration::from_secs(1),
            io_limit: Duration::from_secs(30),
            probe_limit: Duration::from_secs(3),
            down_interval: Duration::from_secs(1),
            up_interval: Duration::from_secs(5),
        }
    }
}

/// How a node is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NodeState {
    /// It answers.
    Up,
    /// It does not answer, or is not at any address of the pool.
    Down {
        /// Since when.
        since: Instant,
    },
    /// It answers, and had no room for data lately.
    Full,
    /// It answers, and was too slow lately.
    Lagging,
    /// It answers, and gave bytes lately that did not check.
    Suspect,
}

/// A node is being asked about a fragment, as long as this lives.
pub struct Inquiry {
    pool: Arc<Pool>,
    about: (NodeId, FragmentName),
    _place: OwnedSemaphorePermit,
}

impl Inquiry {
    /// Whether the fragment was changed there meanwhile, or the node absolved.
    pub fn is_moot(&self) -> bool {
        self.pool.asked_about.lock().get(&self.about).copied().unwrap_or(true)
    }
}

impl Drop for Inquiry {
    fn drop(&mut self) {
        self.pool.asked_about.lock().remove(&self.about);
    }
}

/// One line of `Pool::nodes`.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// Where.
    pub address: NodeAddress,
    /// Who, if it ever said so or was remembered.
    pub identity: Option<NodeId>,
    /// How it is doing.
    pub state: NodeState,
    /// What may fail together with it.
    pub zone: Option<String>,
    /// The run of it that answered last.
    pub boot: Option<BootId>,
    /// What it said last.
    pub info: Option<NodeInfo>,
    /// Whether it gets nothing new while others can take it.
    pub quarantined: bool,
}

/// How a request ended, as told by whoever sent it.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// A read, answered well; its time counts for `Pool::hedge_after`.
    Ok {
        /// From sending to the whole answer.
        latency: Duration,
        /// The run that answered.
        boot: BootId,
    },
    /// A change, answered well; its time says nothing about reads. A node that takes much longer than the others lags.
    Wrote {
        /// From sending to the whole answer.
        latency: Duration,
        /// The run that answered.
        boot: BootId,
    },
    /// It ended in an error.
    Failed(&'a TransportError),
    /// The answer was well-formed and its content did not check.
    Lied {
        /// What was wrong, for the log.
        what: &'a str,
    },
    /// It was overtaken by a hedged request.
    Slow,
}

/// What happened to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PoolEvent {
    /// It answers again, or for the first time.
    Returned(NodeId),
    /// It answers no more.
    WentDown(NodeId),
    /// It was started again: what it acknowledged without a flush may be gone.
    Rebooted {
        /// Which.
        node: NodeId,
        /// The run before.
        old: BootId,
        /// The run now.
        new: BootId,
    },
}

/// Room on the nodes that ever answered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Space {
    /// One each.
    pub nodes: Vec<NodeSpace>,
}

/// Room on one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeSpace {
    /// Which.
    pub node: NodeId,
    /// Bytes it may fill.
    pub capacity_bytes: u64,
    /// Bytes data may still take.
    pub available_bytes: u64,
}

/// What an address answered first.
struct Hello {
    place: usize,
    address: NodeAddress,
    began: Instant,
    answer: std::result::Result<Answer<NodeInfo>, TransportError>,
}

impl Hello {
    fn is_of_one(&self, known: &[(NodeAddress, NodeId)]) -> bool {
        let said = self.answer.as_ref().ok().map(|answer| answer.node);
        said.is_some_and(|said| known.iter().any(|(address, node)| *address == self.address && *node == said))
    }
}

/// See the module.
pub struct Pool {
    transport: Arc<dyn FragmentTransport>,
    options: PoolOptions,
    members: Mutex<Members>,
    events: broadcast::Sender<PoolEvent>,
    /// The prober has something to look at, or the pool is gone.
    wake: Arc<Notify>,
    /// Where it is noted what nodes were caught at, if it is.
    evidence: OnceLock<Arc<Evidence>>,
    /// Permits to ask nodes about it.
    inquiries: Arc<Semaphore>,
    /// What nodes are being asked about, and whether that is moot by now.
    asked_about: Mutex<HashMap<(NodeId, FragmentName), bool>>,
}

impl Pool {
    /// Say hello to every address at once. Nodes that do not answer are down, and so is, with a warning, who does not answer
    /// as a shardd of this wire version does, or as a node that answers elsewhere: what one node says is not to keep a volume
    /// from being used. Where two say that they are one node, the one `known` to be there is; otherwise the first one.
    ///
    /// # Errors
    /// `Pool`: there is no address, or one is given twice.
    pub async fn connect(
        transport: Arc<dyn FragmentTransport>,
        addresses: Vec<NodeAddress>,
        known: &[(NodeAddress, NodeId)],
        options: PoolOptions,
    ) -> Result<Arc<Pool>> {
        check_addresses(&addresses)?;
        let members = Members::new(addresses.clone(), broadcast::channel(EVENTS).0);
        let pool = Pool {
            transport,
            options,
            events: members.events.clone(),
            members: Mutex::new(members),
            wake: Arc::default(),
            evidence: OnceLock::new(),
            inquiries: Arc::new(Semaphore::new(INQUIRIES)),
            asked_about: Mutex::default(),
        };
        let hellos = addresses.into_iter().enumerate().map(|(place, address)| pool.hello(place, address));
        let mut hellos: Vec<Hello> = stream::iter(hellos).buffer_unordered(HELLOS).collect().await;
        hellos.sort_by_key(|hello| (!hello.is_of_one(known), hello.place));
        hellos.into_iter().for_each(|hello| pool.greet(hello));
        pool.remember(known);
        Ok(Arc::new(pool))
    }

    async fn hello(&self, place: usize, address: NodeAddress) -> Hello {
        let began = Instant::now();
        let answer = self.transport.info(&address, self.options.probe_limit).await;
        Hello { place, address, began, answer }
    }

    fn greet(&self, Hello { place, address, began, answer }: Hello) {
        let mut members = self.members.lock();
        match &answer {
            Err(TransportError::Garbage(what)) => {
                tracing::warn!(%address, what, "what answers there is not a shardd that can be used");
            }
            Ok(answer) => {
                if let Some(other) = members.place_of(answer.node) {
                    let other = &members.slots[other].address;
                    tracing::warn!(%address, %other, node = %answer.node, "two addresses lead to one node");
                }
            }
            Err(_) => {}
        }
        members.probed(place, began, answer);
    }

    /// How to speak to them.
    pub fn transport(&self) -> &Arc<dyn FragmentTransport> {
        &self.transport
    }

    /// The limits.
    pub fn options(&self) -> &PoolOptions {
        &self.options
    }

    /// Every address, in the order given.
    pub fn nodes(&self) -> Vec<NodeView> {
        let members = self.members.lock();
        let is_quarantined = |slot: &Slot| slot.identity.is_some_and(|id| members.quarantined.contains(&id));
        members
            .slots
            .iter()
            .map(|slot| NodeView { quarantined: is_quarantined(slot), ..slot.view() })
            .collect()
    }

    /// Identities known from earlier, so that a node that is down has its name; those that said hello are kept, and of who
    /// was at their address it is known that it was.
    pub fn remember(&self, known: &[(NodeAddress, NodeId)]) {
        let mut members = self.members.lock();
        for (address, node) in known {
            members.remember(address, *node);
        }
    }

    /// Where a node is; none if another one, or none, is at its address now.
    pub fn address_of(&self, node: NodeId) -> Option<NodeAddress> {
        self.members.lock().slot(node).map(|slot| slot.address.clone())
    }

    /// Whether a node is nowhere: it is at no address, and whoever is at one has said who it is.
    pub fn is_gone(&self, node: NodeId) -> bool {
        let members = self.members.lock();
        members.slot(node).is_none() && members.slots.iter().all(|slot| slot.identity.is_some())
    }

    /// Where a node was that is nowhere now: another one is at its address.
    pub fn last_address_of(&self, node: NodeId) -> Option<NodeAddress> {
        self.members.lock().displaced.get(&node).map(|(_, address)| address.clone())
    }

    /// How a node is doing; one the pool does not know is down.
    pub fn state(&self, node: NodeId) -> NodeState {
        self.members.lock().state(node)
    }

    /// The run of a node that answered last.
    pub fn boot(&self, node: NodeId) -> Option<BootId> {
        self.members.lock().slot(node)?.boot()
    }

    /// Note from now on what nodes are caught at; those that were caught before get nothing new.
    pub fn collect_evidence(&self, evidence: Arc<Evidence>) {
        let _ = self.evidence.set(evidence);
        self.quarantine();
    }

    /// What nodes were caught at, if it is noted.
    pub fn evidence(&self) -> Option<&Arc<Evidence>> {
        self.evidence.get()
    }

    /// The right to ask a node what it has to say about a fragment; none while enough are being asked, or it is already.
    pub fn inquiry(self: &Arc<Self>, node: NodeId, name: &FragmentName) -> Option<Inquiry> {
        let place = self.inquiries.clone().try_acquire_owned().ok()?;
        let about = (node, name.clone());
        match self.asked_about.lock().entry(about.clone()) {
            Entry::Occupied(_) => None,
            Entry::Vacant(free) => {
                free.insert(false);
                Some(Inquiry { pool: self.clone(), about, _place: place })
            }
        }
    }

    /// A fragment is stored or deleted on a node: what the node says of it from now on is not about what it gave before.
    pub fn note_change(&self, node: NodeId, name: &FragmentName) {
        if self.inquiries.available_permits() < INQUIRIES
            && let Some(is_moot) = self.asked_about.lock().get_mut(&(node, name.clone()))
        {
            *is_moot = true;
        }
    }

    /// Note a case against a node, which then gets nothing new while others can take it, unless its disk rots.
    pub fn accuse(&self, case: Case) {
        let Some(evidence) = self.evidence.get() else { return };
        let (address, verdict) = (case.address.clone(), case.verdict);
        let noted = evidence.note(case);
        self.quarantine();
        match noted {
            Ok(true) => tracing::error!(address, ?verdict, "evidence against a node: avidfs blame"),
            Ok(false) => (),
            Err(error) => tracing::warn!(%error, "evidence could not be kept"),
        }
    }

    /// The operator has looked into a node: it is trusted again, and what it is being asked about is put aside, too. How
    /// many cases were.
    ///
    /// # Errors
    /// `Host`: the evidence cannot be written.
    pub fn absolve(&self, node: NodeId) -> Result<usize> {
        let Some(evidence) = self.evidence.get() else { return Ok(0) };
        // It gave those bytes before; the answers may come many seconds after.
        self.asked_about
            .lock()
            .iter_mut()
            .filter(|((asked, _), _)| *asked == node)
            .for_each(|(_, is_moot)| *is_moot = true);
        let cleared = evidence.clear(node).map_err(|error| Error::Host(format!("the evidence: {error}")))?;
        self.quarantine();
        Ok(cleared)
    }

    /// Whether a node gets nothing new while others can take it.
    pub fn is_quarantined(&self, node: NodeId) -> bool {
        self.members.lock().quarantined.contains(&node)
    }

    fn quarantine(&self) {
        let quarantined = self.evidence.get().map(|evidence| evidence.quarantined());
        self.members.lock().quarantined = quarantined.unwrap_or_default();
    }

    /// What a node said that it signs with.
    pub fn key_of(&self, node: NodeId) -> Option<NodeKey> {
        self.members.lock().slot(node)?.info.as_ref()?.key
    }

    /// Nodes worth sending data to: neither down nor full, nor quarantined.
    /// Those doing well first, then the lagging, then the suspect, which check what they keep like the others:
    /// one rotten fragment must not cost a small pool its writes.
    pub fn usable_for_writing(&self) -> Vec<NodeId> {
        let members = self.members.lock();
        let usable = members.slots.iter().filter(|slot| !slot.is_down() && slot.full_since.is_none());
        let ranked = usable.filter_map(|slot| Some((slot.rank(), slot.identity?)));
        let mut ranked: Vec<(u8, NodeId)> =
            ranked.filter(|(_, node)| !members.quarantined.contains(node)).collect();
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.into_iter().map(|(_, node)| node).collect()
    }

    /// Whether to ask it before others: it is neither down nor suspect. Another one may still be asked as a last
    /// resort.
    pub fn usable_for_reading(&self, node: NodeId) -> bool {
        !matches!(self.state(node), NodeState::Down { .. } | NodeState::Suspect)
    }

    /// Every request's outcome is told here by whoever sent it, so that a dead node is noticed once.
    pub fn report(&self, node: NodeId, outcome: Outcome<'_>) {
        let mut members = self.members.lock();
        let Some(place) = members.place_of(node) else { return };
        match outcome {
            Outcome::Ok { latency, boot } => {
                members.slots[place].reads.add(latency);
                members.answered(place, Instant::now() - latency, boot);
            }
            Outcome::Wrote { latency, boot } => {
                members.wrote(place, latency);
                members.answered(place, Instant::now() - latency, boot);
            }
            Outcome::Failed(error) => members.failed(place, error),
            Outcome::Lied { what } => members.slots[place].lied(what),
            Outcome::Slow => members.slots[place].lag(LAG),
        }
        if members.slots[place].is_down() {
            drop(members);
            self.wake.notify_one();
        }
    }

    /// Report how a read sent to `node` at `began` ended, and take its value. An answer by another node is an error.
    pub fn read_ended<T>(
        &self,
        node: NodeId,
        began: Instant,
        ended: std::result::Result<Answer<T>, TransportError>,
    ) -> std::result::Result<Answer<T>, TransportError> {
        self.ended(node, ended, |boot| Outcome::Ok { latency: began.elapsed(), boot })
    }

    /// The same for a change.
    pub fn write_ended<T>(
        &self,
        node: NodeId,
        began: Instant,
        ended: std::result::Result<Answer<T>, TransportError>,
    ) -> std::result::Result<Answer<T>, TransportError> {
        self.ended(node, ended, |boot| Outcome::Wrote { latency: began.elapsed(), boot })
    }

    fn ended<T>(
        &self,
        node: NodeId,
        ended: std::result::Result<Answer<T>, TransportError>,
        good: impl FnOnce(BootId) -> Outcome<'static>,
    ) -> std::result::Result<Answer<T>, TransportError> {
        let ended = ended.and_then(|answer| match answer.node == node {
            true => Ok(answer),
            false => Err(TransportError::Unreachable(format!("node {} answers at its address", answer.node))),
        });
        match &ended {
            Ok(answer) => self.report(node, good(answer.boot)),
            Err(error) => self.report(node, Outcome::Failed(error)),
        }
        ended
    }

    /// What happens from now on. A receiver that falls behind is told how many it missed.
    pub fn events(&self) -> broadcast::Receiver<PoolEvent> {
        self.events.subscribe()
    }

    /// Room, as of the last probes.
    pub fn space(&self) -> Space {
        Space { nodes: self.members.lock().slots.iter().filter_map(Slot::space).collect() }
    }

    /// After how long an unanswered read of this node is worth sending elsewhere too: when nearly all of its answers
    /// would have come, or those of much slower ones than the others, behind so many bytes that were asked of any node and
    /// have not.
    pub fn hedge_after(&self, node: NodeId, bytes_before: u64) -> Duration {
        let usual = {
            let members = self.members.lock();
            let others = members.middle_of_others(node, |slot| slot.reads.nearly_all());
            let most = others.map_or(Duration::MAX, |usual| usual * SLOW_FACTOR);
            let own = members.slot(node).and_then(|slot| slot.reads.nearly_all());
            own.map(|own| own.min(most))
        };
        let queue = Duration::from_micros(bytes_before.saturating_mul(1_000_000) / HEDGE_RATE);
        usual.unwrap_or(HEDGE_AT_FIRST).max(HEDGE_LEAST + queue).min(self.options.io_limit / 4)
    }

    /// Probe the nodes from now on; ends with the pool.
    pub fn start(self: &Arc<Self>) -> JoinHandle<()> {
        tokio::spawn(probe_while_used(Arc::downgrade(self), self.wake.clone()))
    }

    async fn probe(self: Arc<Self>, place: usize, address: NodeAddress) {
        let began = Instant::now();
        let answer = self.transport.info(&address, self.options.probe_limit).await;
        let mut members = self.members.lock();
        members.probed(place, began, answer);
        members.slots[place].last_probe = Some(Instant::now());
        members.slots[place].probing = false;
    }

    /// Those to probe now, and when to look again.
    fn due(&self) -> (Vec<(usize, NodeAddress)>, Instant) {
        let now = Instant::now();
        let mut next = now + self.options.up_interval;
        let mut due = Vec::new();
        for (place, slot) in self.members.lock().slots.iter_mut().enumerate() {
            let at = slot.next_probe(&self.options, now);
            if slot.probing {
                continue;
            } else if at <= now {
                slot.probing = true;
                due.push((place, slot.address.clone()));
            } else {
                next = next.min(at);
            }
        }
        (due, next)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

fn check_addresses(addresses: &[NodeAddress]) -> Result<()> {
    if addresses.is_empty() {
        return Err(Error::Pool("a pool has at least one node".into()));
    }
    for (place, address) in addresses.iter().enumerate() {
        if addresses[..place].contains(address) {
            return Err(Error::Pool(format!("{address} is given twice")));
        }
    }
    Ok(())
}

/// Holds the pool only while it works, so that the pool can go.
async fn probe_while_used(pool: Weak<Pool>, wake: Arc<Notify>) {
    let mut probes = JoinSet::new();
    while let Some(pool) = pool.upgrade() {
        let (due, next) = pool.due();
        for (place, address) in due {
            probes.spawn(pool.clone().probe(place, address));
        }
        drop(pool);
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(next) => {}
            () = wake.notified() => {}
            Some(_) = probes.join_next() => {}
        }
    }
}
