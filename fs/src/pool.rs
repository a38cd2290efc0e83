//! The nodes a volume may use and how each is doing, as learnt from the requests everyone sends.
//! It decides nothing about objects.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use common::wire::{BootId, MAX_BODY, NodeId, NodeInfo, RefusalCode};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::transport::{Answer, FragmentTransport, NodeAddress, TransportError};

/// Hellos under way at once.
const HELLOS: usize = 64;
/// Events a receiver may be behind before it misses some.
const EVENTS: usize = 256;
/// Earlier runs remembered, so that an answer that was long under way is not taken for a reboot.
const RUNS: usize = 4;
/// How long a node that was too slow is asked last.
const LAG: Duration = Duration::from_secs(5);
/// How long a node that lied once is asked last; doubled with every further lie, up to `SUSPICION_MOST`.
const SUSPICION: Duration = Duration::from_secs(30);
/// After this long without a lie the first counts as the first again.
const SUSPICION_MOST: Duration = Duration::from_secs(600);
/// Before a node's latency is known.
const HEDGE_AT_FIRST: Duration = Duration::from_millis(200);
/// Shorter waits than this are the scheduler's, not the node's.
const HEDGE_LEAST: Duration = Duration::from_millis(20);

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
    /// A change, answered well; its time says nothing about reads.
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

/// See the module.
pub struct Pool {
    transport: Arc<dyn FragmentTransport>,
    options: PoolOptions,
    members: Mutex<Members>,
    events: broadcast::Sender<PoolEvent>,
    /// The prober has something to look at, or the pool is gone.
    wake: Arc<Notify>,
}

impl Pool {
    /// Say hello to every address at once. Nodes that do not answer are down; it is an error when a peer is not a
    /// shardd, speaks another wire version, or when two addresses lead to one node.
    pub async fn connect(
        transport: Arc<dyn FragmentTransport>,
        addresses: Vec<NodeAddress>,
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
        };
        let hellos = addresses.iter().enumerate().map(|(place, address)| pool.hello(place, address));
        let mut hellos = stream::iter(hellos).buffer_unordered(HELLOS);
        while let Some(hello) = hellos.next().await {
            hello?;
        }
        drop(hellos);
        Ok(Arc::new(pool))
    }

    /// What is no node at all, or the same one twice, is the operator's mistake; what is silent may come.
    async fn hello(&self, place: usize, address: &NodeAddress) -> Result<()> {
        let began = Instant::now();
        let answer = self.transport.info(address, self.options.probe_limit).await;
        let mut members = self.members.lock();
        match &answer {
            Err(TransportError::Garbage(what)) => {
                return Err(Error::Pool(format!("{address} is not a shardd that can be used: {what}")));
            }
            Ok(answer) => {
                if let Some(other) = members.place_of(answer.node) {
                    let other = &members.slots[other].address;
                    return Err(Error::Pool(format!("{other} and {address} are one node, {}", answer.node)));
                }
            }
            Err(_) => {}
        }
        members.probed(place, began, answer);
        Ok(())
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
        self.members.lock().slots.iter().map(Slot::view).collect()
    }

    /// Identities known from earlier, so that a node that is down has its name; those that said hello are kept.
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

    /// How a node is doing; one the pool does not know is down.
    pub fn state(&self, node: NodeId) -> NodeState {
        self.members.lock().state(node)
    }

    /// The run of a node that answered last.
    pub fn boot(&self, node: NodeId) -> Option<BootId> {
        self.members.lock().slot(node)?.boot()
    }

    /// Nodes worth sending data to: neither down nor full.
    /// Those doing well first, then the lagging, then the suspect, which check what they keep like the others:
    /// one rotten fragment must not cost a small pool its writes.
    pub fn usable_for_writing(&self) -> Vec<NodeId> {
        let members = self.members.lock();
        let usable = members.slots.iter().filter(|slot| !slot.is_down() && slot.full_since.is_none());
        let mut ranked: Vec<(u8, NodeId)> =
            usable.filter_map(|slot| Some((slot.rank(), slot.identity?))).collect();
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
                members.slots[place].latency.add(latency);
                members.answered(place, Instant::now() - latency, boot);
            }
            Outcome::Wrote { latency, boot } => members.answered(place, Instant::now() - latency, boot),
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
    /// would have come.
    pub fn hedge_after(&self, node: NodeId) -> Duration {
        let usual = self.members.lock().slot(node).and_then(|slot| slot.latency.nearly_all());
        usual.unwrap_or(HEDGE_AT_FIRST).max(HEDGE_LEAST).min(self.options.io_limit / 4)
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
            () = tokio::time::sleep_until(next) => {}
            () = wake.notified() => {}
            Some(_) = probes.join_next() => {}
        }
    }
}

/// Who is where, and how they are doing.
struct Members {
    /// In the order given.
    slots: Vec<Slot>,
    places: HashMap<NodeId, usize>,
    /// Nodes whose address another one has taken: down until they turn up elsewhere.
    displaced: HashMap<NodeId, Instant>,
    born: Instant,
    events: broadcast::Sender<PoolEvent>,
}

impl Members {
    fn new(addresses: Vec<NodeAddress>, events: broadcast::Sender<PoolEvent>) -> Members {
        let slots = addresses.into_iter().map(Slot::new).collect();
        Members { slots, places: HashMap::new(), displaced: HashMap::new(), born: Instant::now(), events }
    }

    fn place_of(&self, node: NodeId) -> Option<usize> {
        self.places.get(&node).copied()
    }

    fn slot(&self, node: NodeId) -> Option<&Slot> {
        self.place_of(node).map(|place| &self.slots[place])
    }

    fn state(&self, node: NodeId) -> NodeState {
        let since = self.displaced.get(&node).copied().unwrap_or(self.born);
        self.slot(node).map_or(NodeState::Down { since }, Slot::state)
    }

    fn remember(&mut self, address: &NodeAddress, node: NodeId) {
        let place = self.slots.iter().position(|slot| slot.address == *address);
        if let Some(place) = place
            && self.slots[place].identity.is_none()
            && !self.places.contains_key(&node)
        {
            self.name(place, node);
        }
    }

    fn probed(
        &mut self,
        place: usize,
        began: Instant,
        answer: std::result::Result<Answer<NodeInfo>, TransportError>,
    ) {
        match answer {
            Ok(answer) if self.settle(place, answer.node, began) => {
                self.slots[place].learn(began, answer.value);
                self.answered(place, began, answer.boot);
            }
            Ok(answer) => {
                self.went_down(place, &format!("it is node {}, which answers elsewhere too", answer.node));
            }
            Err(error @ TransportError::Garbage(_)) => self.went_down(place, &error.to_string()),
            Err(error) => self.failed(place, &error),
        }
    }

    /// Note who answered at an address what was sent at `began`; false if that node is already known, and up, at
    /// another one.
    fn settle(&mut self, place: usize, node: NodeId, began: Instant) -> bool {
        if self.slots[place].identity == Some(node) {
            return true;
        }
        if let Some(other) = self.place_of(node) {
            if !self.slots[other].is_down() {
                return false;
            }
            self.vacate(other);
        }
        if let Some(old) = self.slots[place].identity {
            let address = &self.slots[place].address;
            tracing::warn!(%address, %old, new = %node, "another node answers at this address; the old one is down");
            self.vacate(place);
            self.slots[place].down_since = Some(began);
        }
        self.name(place, node);
        true
    }

    fn name(&mut self, place: usize, node: NodeId) {
        self.displaced.remove(&node);
        self.places.insert(node, place);
        self.slots[place].identity = Some(node);
    }

    /// Forget who is at an address, and all that was known of it.
    fn vacate(&mut self, place: usize) {
        let fresh =
            Slot { probing: self.slots[place].probing, ..Slot::new(self.slots[place].address.clone()) };
        let old = std::mem::replace(&mut self.slots[place], fresh);
        let Some(node) = old.identity else { return };
        self.places.remove(&node);
        self.displaced.insert(node, old.down_since.unwrap_or_else(Instant::now));
        if !old.is_down() {
            self.tell(PoolEvent::WentDown(node));
        }
    }

    /// A good answer to what was sent at `began`. One sent before the node went down does not bring it back.
    fn answered(&mut self, place: usize, began: Instant, boot: BootId) {
        let slot = &mut self.slots[place];
        let Some(node) = slot.identity else { return };
        let rebooted = slot.ran_as(boot);
        let returned = slot.down_since.is_some_and(|since| since <= began);
        if returned {
            slot.down_since = None;
            tracing::info!(%node, address = %slot.address, "node is up");
        }
        if let Some(old) = rebooted {
            self.tell(PoolEvent::Rebooted { node, old, new: boot });
        }
        if returned {
            self.tell(PoolEvent::Returned(node));
        }
    }

    fn failed(&mut self, place: usize, error: &TransportError) {
        match error {
            TransportError::Unreachable(_) => self.went_down(place, &error.to_string()),
            TransportError::TimedOut(limit) => {
                self.went_down(place, &error.to_string());
                // It may answer probes all the same; then it is asked last for as long as it kept someone waiting.
                self.slots[place].lag(*limit);
            }
            TransportError::Garbage(what) => self.slots[place].lied(what),
            TransportError::Refused { code: RefusalCode::NoSpace, .. } => {
                self.slots[place].full_since.get_or_insert_with(Instant::now);
            }
            TransportError::Refused {
                code: RefusalCode::Busy | RefusalCode::TooSlow | RefusalCode::Io,
                ..
            } => self.slots[place].lag(LAG),
            // Any other refusal is about what was asked, not about the node.
            TransportError::Refused { .. } => {}
        }
    }

    /// Once, however many requests find it out.
    fn went_down(&mut self, place: usize, why: &str) {
        let slot = &mut self.slots[place];
        if slot.is_down() {
            return;
        }
        slot.down_since = Some(Instant::now());
        tracing::warn!(node = ?slot.identity, address = %slot.address, why, "node is down");
        if let Some(node) = slot.identity {
            self.tell(PoolEvent::WentDown(node));
        }
    }

    fn tell(&self, event: PoolEvent) {
        // An error means that nobody listens.
        let _ = self.events.send(event);
    }
}

/// An address, and what is known of the node there.
struct Slot {
    address: NodeAddress,
    identity: Option<NodeId>,
    info: Option<NodeInfo>,
    /// Runs that answered, the newest last.
    runs: Vec<BootId>,
    /// None: it answers.
    down_since: Option<Instant>,
    /// None: it takes data.
    full_since: Option<Instant>,
    lagging_until: Option<Instant>,
    suspect_until: Option<Instant>,
    /// Lies, until there were none for `SUSPICION_MOST`.
    lies: u32,
    latency: Latency,
    probing: bool,
    last_probe: Option<Instant>,
}

impl Slot {
    fn new(address: NodeAddress) -> Slot {
        Slot {
            address,
            identity: None,
            info: None,
            runs: Vec::new(),
            down_since: Some(Instant::now()),
            full_since: None,
            lagging_until: None,
            suspect_until: None,
            lies: 0,
            latency: Latency::default(),
            probing: false,
            last_probe: None,
        }
    }

    fn view(&self) -> NodeView {
        NodeView {
            address: self.address.clone(),
            identity: self.identity,
            state: self.state(),
            zone: self.info.as_ref().and_then(|info| info.zone.clone()),
            boot: self.boot(),
            info: self.info.clone(),
        }
    }

    fn space(&self) -> Option<NodeSpace> {
        let info = self.info.as_ref()?;
        Some(NodeSpace {
            node: self.identity?,
            capacity_bytes: info.capacity_bytes,
            available_bytes: info.available_bytes,
        })
    }

    /// The worst of what is true of it.
    fn state(&self) -> NodeState {
        match self.down_since {
            Some(since) => NodeState::Down { since },
            None if is_ahead(self.suspect_until) => NodeState::Suspect,
            None if self.full_since.is_some() => NodeState::Full,
            None if is_ahead(self.lagging_until) => NodeState::Lagging,
            None => NodeState::Up,
        }
    }

    fn is_down(&self) -> bool {
        self.down_since.is_some()
    }

    /// Lower is better.
    fn rank(&self) -> u8 {
        u8::from(is_ahead(self.lagging_until)) + 2 * u8::from(is_ahead(self.suspect_until))
    }

    fn boot(&self) -> Option<BootId> {
        self.runs.last().copied()
    }

    /// The run before, if this is one not heard of yet.
    fn ran_as(&mut self, boot: BootId) -> Option<BootId> {
        if self.runs.contains(&boot) {
            return None;
        }
        let old = self.boot();
        self.runs.push(boot);
        if self.runs.len() > RUNS {
            self.runs.remove(0);
        }
        old
    }

    /// It is full when it has nothing left, and after a refusal until it has room again for the largest request.
    fn learn(&mut self, began: Instant, info: NodeInfo) {
        let enough = (MAX_BODY as u64).min(info.capacity_bytes / 64);
        if info.available_bytes == 0 {
            self.full_since.get_or_insert(began);
        } else if info.available_bytes >= enough && self.full_since.is_some_and(|since| since <= began) {
            self.full_since = None;
        }
        self.info = Some(info);
    }

    fn lag(&mut self, time: Duration) {
        self.lagging_until = self.lagging_until.max(Some(Instant::now() + time.max(LAG)));
    }

    fn lied(&mut self, what: &str) {
        let now = Instant::now();
        if self.suspect_until.is_some_and(|until| until + SUSPICION_MOST < now) {
            self.lies = 0;
        }
        if !is_ahead(self.suspect_until) {
            tracing::warn!(node = ?self.identity, address = %self.address, what, "node lied and is asked last");
            self.suspect_until = Some(now + (SUSPICION * 2u32.pow(self.lies.min(10))).min(SUSPICION_MOST));
            self.lies += 1;
        }
    }

    fn next_probe(&self, options: &PoolOptions, now: Instant) -> Instant {
        let interval = if self.is_down() { options.down_interval } else { options.up_interval };
        let last = self.last_probe.or(self.down_since);
        // Due now, not a moment later: a clock read again here would never let it be due.
        last.map_or(now, |last| last + interval)
    }
}

fn is_ahead(moment: Option<Instant>) -> bool {
    moment.is_some_and(|moment| moment > Instant::now())
}

/// Mean and mean deviation of a node's read latency, the newest counting most, as TCP measures its round trip
/// (RFC 6298).
#[derive(Default)]
struct Latency {
    mean: Option<Duration>,
    deviation: Duration,
}

impl Latency {
    fn add(&mut self, sample: Duration) {
        let Some(mean) = self.mean else {
            (self.mean, self.deviation) = (Some(sample), sample / 2);
            return;
        };
        self.deviation = (self.deviation * 3 + mean.abs_diff(sample)) / 4;
        self.mean = Some((mean * 7 + sample) / 8);
    }

    /// Four deviations above the mean: some 99 of 100.
    fn nearly_all(&self) -> Option<Duration> {
        self.mean.map(|mean| mean + self.deviation * 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::faulty::{Fault, FaultyTransport, Rule, Verb};
    use crate::transport::in_process::InProcessTransport;
    use crate::transport::scripted::{BOOT, ScriptedNode};
    use tokio::sync::broadcast::error::TryRecvError;

    const SECOND: Duration = Duration::from_secs(1);

    fn id(k: usize) -> NodeId {
        NodeId([k as u8; 16])
    }

    fn at(k: usize) -> NodeAddress {
        InProcessTransport::address(k)
    }

    fn refused() -> TransportError {
        TransportError::Unreachable("it refused the connection".into())
    }

    /// Nodes 0, 1, .. with identities of the same number.
    struct Bench {
        nodes: Vec<ScriptedNode>,
        faulty: Arc<FaultyTransport>,
    }

    impl Bench {
        fn new(count: usize) -> Bench {
            let nodes: Vec<ScriptedNode> = (0..count).map(|_| ScriptedNode::saying("{}")).collect();
            for (k, node) in nodes.iter().enumerate() {
                node.change(|info| info.node = id(k));
            }
            let transport = InProcessTransport::new(nodes.iter().map(ScriptedNode::router));
            Bench { nodes, faulty: FaultyTransport::new(Arc::new(transport), 1) }
        }

        async fn try_connect(&self) -> Result<Arc<Pool>> {
            let addresses = (0..self.nodes.len()).map(at).collect();
            Pool::connect(self.faulty.clone(), addresses, PoolOptions::default()).await
        }

        async fn connect(&self) -> Arc<Pool> {
            self.try_connect().await.unwrap()
        }

        fn kill(&self, k: usize) {
            self.faulty.add(Rule::always(Fault::Lose).at(&at(k)));
        }
    }

    async fn refusal(bench: &Bench) -> String {
        bench.try_connect().await.map(drop).unwrap_err().to_string()
    }

    fn is_down(pool: &Pool, k: usize) -> bool {
        matches!(pool.state(id(k)), NodeState::Down { .. })
    }

    fn good(latency: Duration) -> Outcome<'static> {
        Outcome::Ok { latency, boot: BOOT }
    }

    #[tokio::test]
    async fn connecting_knows_who_answers_and_goes_on_without_who_does_not() {
        let bench = Bench::new(3);
        bench.kill(1);
        let pool = bench.connect().await;
        let nodes = pool.nodes();
        assert_eq!(
            nodes.iter().map(|node| node.identity).collect::<Vec<_>>(),
            [Some(id(0)), None, Some(id(2))]
        );
        assert_eq!((nodes[0].state, nodes[0].boot), (NodeState::Up, Some(BOOT)));
        assert_eq!(nodes[0].zone.as_deref(), Some("here"));
        assert!(matches!(nodes[1].state, NodeState::Down { .. }));
        assert_eq!(pool.usable_for_writing(), [id(0), id(2)]);
        assert_eq!(pool.address_of(id(2)), Some(at(2)));
        assert_eq!(pool.space().nodes.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn hung_nodes_delay_connecting_once_not_each() {
        let bench = Bench::new(3);
        bench.faulty.add(Rule::always(Fault::Hang));
        let began = Instant::now();
        bench.connect().await;
        assert_eq!(began.elapsed(), PoolOptions::default().probe_limit);
    }

    #[tokio::test]
    async fn connecting_refuses_what_is_no_pool_in_one_sentence() {
        let twins = Bench::new(2);
        twins.nodes[1].change(|info| info.node = id(0));
        let sentence = refusal(&twins).await;
        assert!(sentence.contains("embedded:0") && sentence.contains("embedded:1"), "{sentence}");

        let newer = Bench::new(2);
        newer.nodes[1].change(|info| info.wire = 2);
        assert_eq!(
            refusal(&newer).await,
            "embedded:1 is not a shardd that can be used: it speaks wire version 2, this program 1"
        );

        let stranger = InProcessTransport::new([axum::Router::new()]);
        let connected = Pool::connect(Arc::new(stranger), vec![at(0)], PoolOptions::default()).await;
        assert_eq!(
            connected.map(drop).unwrap_err().to_string(),
            "embedded:0 is not a shardd that can be used: there is no avid-node header"
        );

        let bench = Bench::new(1);
        for (addresses, sentence) in
            [(vec![], "a pool has at least one node"), (vec![at(0), at(0)], "embedded:0 is given twice")]
        {
            let connected = Pool::connect(bench.faulty.clone(), addresses, PoolOptions::default()).await;
            assert_eq!(connected.map(drop).unwrap_err().to_string(), sentence);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_node_is_noticed_once_and_its_return_too() {
        let bench = Bench::new(2);
        let pool = bench.connect().await;
        let mut events = pool.events();
        bench.kill(1);
        for _ in 0..10 {
            pool.report(id(1), Outcome::Failed(&refused()));
        }
        assert_eq!(events.try_recv(), Ok(PoolEvent::WentDown(id(1))));
        assert_eq!(events.try_recv(), Err(TryRecvError::Empty));
        assert!(is_down(&pool, 1) && !pool.usable_for_reading(id(1)));
        assert_eq!(pool.usable_for_writing(), [id(0)]);

        pool.start();
        tokio::time::sleep(10 * SECOND).await;
        assert!(is_down(&pool, 1));
        bench.faulty.clear();
        let began = Instant::now();
        assert_eq!(events.recv().await, Ok(PoolEvent::Returned(id(1))));
        assert!(began.elapsed() <= SECOND);
        assert_eq!(pool.state(id(1)), NodeState::Up);
    }

    #[tokio::test(start_paused = true)]
    async fn one_timeout_is_enough_and_the_node_is_asked_last_when_only_probes_are_answered() {
        let bench = Bench::new(2);
        let pool = bench.connect().await;
        pool.report(id(0), Outcome::Failed(&TransportError::TimedOut(30 * SECOND)));
        assert!(is_down(&pool, 0));
        let mut events = pool.events();
        pool.start();
        assert_eq!(events.recv().await, Ok(PoolEvent::Returned(id(0))));
        assert_eq!(pool.state(id(0)), NodeState::Lagging);
        assert_eq!(pool.usable_for_writing(), [id(1), id(0)]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_sent_for_before_the_node_went_down_does_not_bring_it_back() {
        let pool = Bench::new(1).connect().await;
        tokio::time::advance(10 * SECOND).await;
        pool.report(id(0), Outcome::Failed(&refused()));
        pool.report(id(0), good(SECOND));
        assert!(is_down(&pool, 0));
        tokio::time::advance(2 * SECOND).await;
        pool.report(id(0), good(SECOND));
        assert_eq!(pool.state(id(0)), NodeState::Up);
    }

    #[tokio::test]
    async fn a_reboot_is_told_once_and_a_late_answer_of_the_run_before_is_none() {
        let pool = Bench::new(1).connect().await;
        let mut events = pool.events();
        let new = BootId([1; 8]);
        for boot in [BOOT, new, BOOT, new] {
            pool.report(id(0), Outcome::Wrote { latency: SECOND, boot });
        }
        assert_eq!(events.try_recv(), Ok(PoolEvent::Rebooted { node: id(0), old: BOOT, new }));
        assert_eq!(events.try_recv(), Err(TryRecvError::Empty));
        assert_eq!(pool.boot(id(0)), Some(new));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_node_is_read_and_not_written_until_a_probe_finds_room() {
        let bench = Bench::new(1);
        let pool = bench.connect().await;
        bench.nodes[0].change(|info| info.available_bytes = 1000);
        let full = TransportError::Refused { code: RefusalCode::NoSpace, message: "no room".into() };
        pool.report(id(0), Outcome::Failed(&full));
        assert_eq!(pool.state(id(0)), NodeState::Full);
        assert!(pool.usable_for_reading(id(0)) && pool.usable_for_writing().is_empty());
        pool.start();
        tokio::time::sleep(20 * SECOND).await;
        assert_eq!(pool.state(id(0)), NodeState::Full);
        assert_eq!(pool.space().nodes[0].available_bytes, 1000);
        bench.nodes[0].change(|info| info.available_bytes = 500 << 20);
        tokio::time::sleep(6 * SECOND).await;
        assert_eq!(pool.state(id(0)), NodeState::Up);
    }

    /// On a clock that moves, unlike the others: a node that was never probed was once due at a moment that is always
    /// yet to come.
    #[tokio::test]
    async fn a_node_that_is_up_is_probed_from_the_start() {
        let bench = Bench::new(1);
        let pool = bench.connect().await;
        bench.nodes[0].change(|info| info.used_bytes = 7);
        pool.start();
        let told = async {
            while pool.nodes()[0].info.as_ref().is_none_or(|info| info.used_bytes != 7) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(4 * SECOND, told).await.expect("the first probe is due at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_liar_is_asked_last_and_longer_each_time() {
        let pool = Bench::new(2).connect().await;
        for expected in [SUSPICION, 2 * SUSPICION, 4 * SUSPICION] {
            pool.report(id(0), Outcome::Lied { what: "the hash differs" });
            assert_eq!(pool.state(id(0)), NodeState::Suspect);
            assert!(!pool.usable_for_reading(id(0)));
            assert_eq!(pool.usable_for_writing(), [id(1), id(0)]);
            tokio::time::advance(expected - SECOND).await;
            assert_eq!(pool.state(id(0)), NodeState::Suspect);
            tokio::time::advance(2 * SECOND).await;
            assert_eq!(pool.state(id(0)), NodeState::Up);
        }
        tokio::time::advance(SUSPICION_MOST + SECOND).await;
        pool.report(id(0), Outcome::Lied { what: "the hash differs" });
        tokio::time::advance(SUSPICION + SECOND).await;
        assert_eq!(pool.state(id(0)), NodeState::Up, "long ago is forgiven");
    }

    #[tokio::test(start_paused = true)]
    async fn another_identity_at_a_known_address_is_a_new_node() {
        let bench = Bench::new(2);
        let pool = bench.connect().await;
        let mut events = pool.events();
        bench.nodes[1].change(|info| info.node = id(9));
        bench.faulty.add(Rule::always(Fault::Delay(SECOND)));
        pool.start();
        assert_eq!(events.recv().await, Ok(PoolEvent::WentDown(id(1))));
        assert_eq!(events.try_recv(), Ok(PoolEvent::Returned(id(9))), "the same answer told both");
        assert!(is_down(&pool, 1) && pool.address_of(id(1)).is_none());
        assert_eq!((pool.state(id(9)), pool.address_of(id(9))), (NodeState::Up, Some(at(1))));
    }

    #[tokio::test(start_paused = true)]
    async fn nodes_that_change_places_are_found_again() {
        let bench = Bench::new(2);
        let pool = bench.connect().await;
        pool.start();
        bench.nodes[0].change(|info| info.node = id(1));
        bench.nodes[1].change(|info| info.node = id(0));
        tokio::time::sleep(10 * SECOND).await;
        assert_eq!((pool.address_of(id(0)), pool.address_of(id(1))), (Some(at(1)), Some(at(0))));
        assert_eq!((pool.state(id(0)), pool.state(id(1))), (NodeState::Up, NodeState::Up));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_turns_up_twice_stays_where_it_was() {
        let bench = Bench::new(2);
        let pool = bench.connect().await;
        let mut events = pool.events();
        pool.start();
        bench.nodes[1].change(|info| info.node = id(0));
        tokio::time::sleep(20 * SECOND).await;
        assert_eq!(events.try_recv(), Ok(PoolEvent::WentDown(id(1))));
        assert_eq!(events.try_recv(), Err(TryRecvError::Empty));
        assert_eq!((pool.address_of(id(0)), pool.state(id(0))), (Some(at(0)), NodeState::Up));
        assert!(is_down(&pool, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_remembered_node_has_its_name_while_it_is_down() {
        let bench = Bench::new(2);
        bench.kill(1);
        let pool = bench.connect().await;
        let mut events = pool.events();
        pool.remember(&[(at(0), id(7)), (at(1), id(1)), (at(5), id(5))]);
        assert_eq!(
            (pool.address_of(id(0)), pool.address_of(id(7))),
            (Some(at(0)), None),
            "it said who it is"
        );
        assert_eq!(pool.nodes()[1].identity, Some(id(1)));
        assert!(is_down(&pool, 1) && is_down(&pool, 5));
        bench.faulty.clear();
        pool.start();
        assert_eq!(events.recv().await, Ok(PoolEvent::Returned(id(1))));
    }

    #[tokio::test]
    async fn an_answer_by_another_node_is_an_error() {
        let pool = Bench::new(2).connect().await;
        let answer = |node| Ok(Answer { node, boot: BOOT, value: () });
        assert!(pool.read_ended(id(0), Instant::now(), answer(id(0))).is_ok());
        let error = pool.write_ended(id(0), Instant::now(), answer(id(1))).unwrap_err();
        assert!(matches!(error, TransportError::Unreachable(_)));
        assert!(is_down(&pool, 0) && !is_down(&pool, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn hedging_waits_for_what_is_usual_of_the_node() {
        let pool = Bench::new(2).connect().await;
        assert_eq!(pool.hedge_after(id(0)), HEDGE_AT_FIRST);
        for k in 0..100 {
            pool.report(id(0), good(Duration::from_millis(40 + k % 3)));
            pool.report(id(1), good(Duration::from_micros(300)));
        }
        let usual = pool.hedge_after(id(0));
        assert!(usual > Duration::from_millis(41) && usual < Duration::from_millis(60), "{usual:?}");
        assert_eq!(pool.hedge_after(id(1)), HEDGE_LEAST);
        pool.report(id(1), Outcome::Slow);
        assert_eq!(pool.state(id(1)), NodeState::Lagging);
        assert_eq!(pool.usable_for_writing(), [id(0), id(1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_dead_are_probed_every_second_and_the_living_every_five() {
        let bench = Bench::new(2);
        bench.kill(1);
        let pool = bench.connect().await;
        bench.faulty.reset_counts();
        let prober = pool.start();
        tokio::time::sleep(20 * SECOND).await;
        let probes = [bench.faulty.count(&at(0), Verb::Info), bench.faulty.count(&at(1), Verb::Info)];
        assert!((4..=5).contains(&probes[0]) && (19..=21).contains(&probes[1]), "{probes:?}");
        drop(pool);
        prober.await.unwrap();
    }
}
