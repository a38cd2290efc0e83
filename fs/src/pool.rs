//! The nodes a volume may use and how each is doing, as learnt from the requests everyone sends.
//! It decides nothing about objects.

use std::sync::Arc;
use std::time::Duration;

use common::wire::{BootId, NodeId, NodeInfo};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::error::Result;
use crate::transport::{Answer, FragmentTransport, NodeAddress, TransportError};

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
pub struct Pool {}

impl Pool {
    /// Say hello to every address at once. Nodes that do not answer are down; it is an error when a peer is not a
    /// shardd, speaks another wire version, or when two addresses lead to one node.
    pub async fn connect(
        _transport: Arc<dyn FragmentTransport>,
        _addresses: Vec<NodeAddress>,
        _options: PoolOptions,
    ) -> Result<Arc<Pool>> {
        unimplemented!()
    }

    /// How to speak to them.
    pub fn transport(&self) -> &Arc<dyn FragmentTransport> {
        unimplemented!()
    }

    /// The limits.
    pub fn options(&self) -> &PoolOptions {
        unimplemented!()
    }

    /// Every address, in the order given.
    pub fn nodes(&self) -> Vec<NodeView> {
        unimplemented!()
    }

    /// Identities known from earlier, so that a node that is down has its name; those that said hello are kept.
    pub fn remember(&self, _known: &[(NodeAddress, NodeId)]) {
        unimplemented!()
    }

    /// Where a node is; none if another one, or none, is at its address now.
    pub fn address_of(&self, _node: NodeId) -> Option<NodeAddress> {
        unimplemented!()
    }

    /// How a node is doing; one the pool does not know is down.
    pub fn state(&self, _node: NodeId) -> NodeState {
        unimplemented!()
    }

    /// The run of a node that answered last.
    pub fn boot(&self, _node: NodeId) -> Option<BootId> {
        unimplemented!()
    }

    /// Nodes worth sending data to: neither down nor full. Those doing well first, then the lagging, then the suspect.
    pub fn usable_for_writing(&self) -> Vec<NodeId> {
        unimplemented!()
    }

    /// Whether to ask it before others: it is neither down nor suspect. Another one may still be asked as a last resort.
    pub fn usable_for_reading(&self, _node: NodeId) -> bool {
        unimplemented!()
    }

    /// Every request's outcome is told here by whoever sent it, so that a dead node is noticed once.
    pub fn report(&self, _node: NodeId, _outcome: Outcome<'_>) {
        unimplemented!()
    }

    /// Report how a read sent to `node` at `began` ended, and take its value. An answer by another node is an error.
    pub fn read_ended<T>(
        &self,
        _node: NodeId,
        _began: Instant,
        _ended: std::result::Result<Answer<T>, TransportError>,
    ) -> std::result::Result<Answer<T>, TransportError> {
        unimplemented!()
    }

    /// The same for a change.
    pub fn write_ended<T>(
        &self,
        _node: NodeId,
        _began: Instant,
        _ended: std::result::Result<Answer<T>, TransportError>,
    ) -> std::result::Result<Answer<T>, TransportError> {
        unimplemented!()
    }

    /// What happens from now on. A receiver that falls behind is told how many it missed.
    pub fn events(&self) -> broadcast::Receiver<PoolEvent> {
        unimplemented!()
    }

    /// Room, as of the last probes.
    pub fn space(&self) -> Space {
        unimplemented!()
    }

    /// After how long an unanswered read of this node is worth sending elsewhere too.
    pub fn hedge_after(&self, _node: NodeId) -> Duration {
        unimplemented!()
    }

    /// Probe the nodes from now on; ends with the pool.
    pub fn start(self: &Arc<Self>) -> JoinHandle<()> {
        unimplemented!()
    }
}
