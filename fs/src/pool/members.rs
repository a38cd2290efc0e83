//! Who is at which address and how each node is doing: what the pool's lock guards. Answers and errors in, events out;
//! it sends nothing.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use common::wire::{BootId, MAX_BODY, NodeId, NodeInfo, RefusalCode};
use tokio::sync::broadcast;
use tokio::time::Instant;

use super::{NodeSpace, NodeState, NodeView, PoolEvent, PoolOptions};
use crate::transport::{Answer, NodeAddress, TransportError};

/// Earlier runs remembered, so that an answer that was long under way is not taken for a reboot.
const RUNS: usize = 4;
/// How long a node that was too slow is asked last.
pub(super) const LAG: Duration = Duration::from_secs(5);
/// A node that usually takes so many times as long as the others usually do is slow, however steadily.
pub(super) const SLOW_FACTOR: u32 = 4;
/// And for changes at least so long: less is not worth a fragment that is not waited for.
const SLOW_LEAST: Duration = Duration::from_millis(100);
/// How long a node that lied once is asked last; doubled with every further lie, up to `SUSPICION_MOST`.
pub(super) const SUSPICION: Duration = Duration::from_secs(30);
/// After this long without a lie the first counts as the first again.
pub(super) const SUSPICION_MOST: Duration = Duration::from_secs(600);

/// Who is where, and how they are doing.
pub(super) struct Members {
    /// In the order given.
    pub(super) slots: Vec<Slot>,
    pub(super) places: HashMap<NodeId, usize>,
    /// Nodes whose address another one has taken: down until they turn up elsewhere. Since when, and where they were.
    pub(super) displaced: HashMap<NodeId, (Instant, NodeAddress)>,
    /// The places of nodes that turned up elsewhere while they were down.
    before: HashMap<NodeId, usize>,
    /// Nodes that get nothing new while others can take it.
    pub(super) quarantined: HashSet<NodeId>,
    pub(super) born: Instant,
    pub(super) events: broadcast::Sender<PoolEvent>,
}

impl Members {
    pub(super) fn new(addresses: Vec<NodeAddress>, events: broadcast::Sender<PoolEvent>) -> Members {
        let slots = addresses.into_iter().map(Slot::new).collect();
        Members {
            slots,
            places: HashMap::new(),
            displaced: HashMap::new(),
            before: HashMap::new(),
            quarantined: HashSet::new(),
            born: Instant::now(),
            events,
        }
    }

    pub(super) fn place_of(&self, node: NodeId) -> Option<usize> {
        self.places.get(&node).copied()
    }

    pub(super) fn slot(&self, node: NodeId) -> Option<&Slot> {
        self.place_of(node).map(|place| &self.slots[place])
    }

    pub(super) fn state(&self, node: NodeId) -> NodeState {
        let since = self.displaced.get(&node).map_or(self.born, |(since, _)| *since);
        self.slot(node).map_or(NodeState::Down { since }, Slot::state)
    }

    /// What is usual of the other nodes that are up: the median of what `usual` says, the lower one of two.
    pub(super) fn middle_of_others(
        &self,
        node: NodeId,
        usual: impl Fn(&Slot) -> Option<Duration>,
    ) -> Option<Duration> {
        let others = self.slots.iter().filter(|slot| slot.identity != Some(node) && !slot.is_down());
        let mut usual: Vec<Duration> = others.filter_map(usual).collect();
        let middle = usual.len().checked_sub(1)? / 2;
        Some(*usual.select_nth_unstable(middle).1)
    }

    /// A change took so long. Who takes long most times is not waited for once others have what they need; once in a
    /// while does not count.
    pub(super) fn wrote(&mut self, place: usize, latency: Duration) {
        let slot = &mut self.slots[place];
        slot.writes.add(latency);
        let (Some(mean), Some(node)) = (slot.writes.mean, slot.identity) else { return };
        if mean >= SLOW_LEAST
            && self
                .middle_of_others(node, |slot| slot.writes.mean)
                .is_some_and(|usual| mean > usual * SLOW_FACTOR)
        {
            self.slots[place].lag(LAG);
        }
    }

    pub(super) fn remember(&mut self, address: &NodeAddress, node: NodeId) {
        let place = self.slots.iter().position(|slot| slot.address == *address);
        if let Some(place) = place
            && self.slots[place].identity.is_none()
            && !self.places.contains_key(&node)
        {
            self.name(place, node);
        }
        if !self.places.contains_key(&node) {
            self.displaced.entry(node).or_insert_with(|| (Instant::now(), address.clone()));
        }
    }

    pub(super) fn probed(
        &mut self,
        place: usize,
        began: Instant,
        answer: Result<Answer<NodeInfo>, TransportError>,
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
    /// another one. Where it was before it counts all the same: whoever said its name while it was down may have lied.
    fn settle(&mut self, place: usize, node: NodeId, began: Instant) -> bool {
        if self.slots[place].identity == Some(node) {
            return true;
        }
        if let Some(other) = self.place_of(node) {
            let was_here = self.before.get(&node) == Some(&place);
            if !self.slots[other].is_down() && !was_here {
                return false;
            }
            self.vacate(other);
            if was_here {
                self.before.remove(&node);
            } else {
                self.before.insert(node, other);
            }
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
        let since = old.down_since.unwrap_or_else(Instant::now);
        self.displaced.insert(node, (since, old.address.clone()));
        if !old.is_down() {
            self.tell(PoolEvent::WentDown(node));
        }
    }

    /// A good answer to what was sent at `began`. One sent before the node went down does not bring it back.
    pub(super) fn answered(&mut self, place: usize, began: Instant, boot: BootId) {
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

    pub(super) fn failed(&mut self, place: usize, error: &TransportError) {
        match error {
            // Who does not let us in is as good as gone, until somebody gives us the token it wants.
            TransportError::Unreachable(_)
            | TransportError::Refused { code: RefusalCode::Unauthorized, .. } => {
                self.went_down(place, &error.to_string());
            }
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
pub(super) struct Slot {
    pub(super) address: NodeAddress,
    pub(super) identity: Option<NodeId>,
    pub(super) info: Option<NodeInfo>,
    /// Runs that answered, the newest last.
    pub(super) runs: Vec<BootId>,
    /// None: it answers.
    pub(super) down_since: Option<Instant>,
    /// None: it takes data.
    pub(super) full_since: Option<Instant>,
    pub(super) lagging_until: Option<Instant>,
    pub(super) suspect_until: Option<Instant>,
    /// Lies, until there were none for `SUSPICION_MOST`.
    pub(super) lies: u32,
    pub(super) reads: Latency,
    pub(super) writes: Latency,
    pub(super) probing: bool,
    pub(super) last_probe: Option<Instant>,
}

impl Slot {
    pub(super) fn new(address: NodeAddress) -> Slot {
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
            reads: Latency::default(),
            writes: Latency::default(),
            probing: false,
            last_probe: None,
        }
    }

    pub(super) fn view(&self) -> NodeView {
        NodeView {
            address: self.address.clone(),
            identity: self.identity,
            state: self.state(),
            zone: self.info.as_ref().and_then(|info| info.zone.clone()),
            boot: self.boot(),
            info: self.info.clone(),
            quarantined: false,
        }
    }

    pub(super) fn space(&self) -> Option<NodeSpace> {
        let info = self.info.as_ref()?;
        Some(NodeSpace {
            node: self.identity?,
            capacity_bytes: info.capacity_bytes,
            available_bytes: info.available_bytes,
        })
    }

    /// The worst of what is true of it.
    pub(super) fn state(&self) -> NodeState {
        match self.down_since {
            Some(since) => NodeState::Down { since },
            None if is_ahead(self.suspect_until) => NodeState::Suspect,
            None if self.full_since.is_some() => NodeState::Full,
            None if is_ahead(self.lagging_until) => NodeState::Lagging,
            None => NodeState::Up,
        }
    }

    pub(super) fn is_down(&self) -> bool {
        self.down_since.is_some()
    }

    /// Lower is better.
    pub(super) fn rank(&self) -> u8 {
        u8::from(is_ahead(self.lagging_until)) + 2 * u8::from(is_ahead(self.suspect_until))
    }

    pub(super) fn boot(&self) -> Option<BootId> {
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

    pub(super) fn lag(&mut self, time: Duration) {
        self.lagging_until = self.lagging_until.max(Some(Instant::now() + time.max(LAG)));
    }

    pub(super) fn lied(&mut self, what: &str) {
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

    pub(super) fn next_probe(&self, options: &PoolOptions, now: Instant) -> Instant {
        let interval = if self.is_down() { options.down_interval } else { options.up_interval };
        let last = self.last_probe.or(self.down_since);
        // Due now, not a moment later: a clock read again here would never let it be due.
        last.map_or(now, |last| last + interval)
    }
}

fn is_ahead(moment: Option<Instant>) -> bool {
    moment.is_some_and(|moment| moment > Instant::now())
}

/// Mean and mean deviation of a node's latency, the newest counting most, as TCP measures its round trip
/// (RFC 6298).
#[derive(Default)]
pub(super) struct Latency {
    mean: Option<Duration>,
    deviation: Duration,
}

impl Latency {
    pub(super) fn add(&mut self, sample: Duration) {
        let Some(mean) = self.mean else {
            (self.mean, self.deviation) = (Some(sample), sample / 2);
            return;
        };
        self.deviation = (self.deviation * 3 + mean.abs_diff(sample)) / 4;
        self.mean = Some((mean * 7 + sample) / 8);
    }

    /// Four deviations above the mean: some 99 of 100.
    pub(super) fn nearly_all(&self) -> Option<Duration> {
        self.mean.map(|mean| mean + self.deviation * 4)
    }
}
