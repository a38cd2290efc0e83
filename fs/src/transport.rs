//! How the mount speaks to nodes: few verbs, each naming a node and what it is about.
//! Nothing here decides anything: no retry, no choice of node, no belief in what is answered.

pub mod faulty;
mod gets;
pub mod http;
pub mod in_process;
mod lines;
pub mod objects;
mod puts;
#[cfg(test)]
pub(crate) mod scripted;
mod verbs;

use std::time::Duration;

use bytes::Bytes;
use common::wire::{
    BootId, FragmentName, LeaseRequest, Listing, NodeId, NodeInfo, Nonce, ObjectStatus, Operation,
    OperationAnswer, RefusalCode, Signature, Statement, VolumeDescriptor, VolumeEntry, VolumeId,
};
use futures_util::future::BoxFuture;

/// Where a node answers: a URL, or `embedded:K` for a node inside this process.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeAddress(pub String);

impl std::fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a request brought no good answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransportError {
    /// No connection: refused, unreachable, or broken off in the middle. Whether it was carried out is unknown.
    #[error("{0}")]
    Unreachable(String),
    /// No answer within the limit. Whether it was carried out is unknown.
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The node refused, and said why.
    #[error("{message}")]
    Refused {
        /// Which refusal.
        code: RefusalCode,
        /// The node's words.
        message: String,
    },
    /// The answer is not what docs/wire.md says; not a shardd, or a lying one.
    #[error("not an answer of shardd: {0}")]
    Garbage(String),
}

/// An answer and who gave it.
#[derive(Clone, Debug)]
pub struct Answer<T> {
    /// Identity the node stated.
    pub node: NodeId,
    /// Its boot id; what it acknowledged under another one may be gone unless it was flushed.
    pub boot: BootId,
    /// What it said.
    pub value: T,
}

impl TransportError {
    /// Whether another mount has taken the volume over.
    pub fn is_fence(&self) -> bool {
        matches!(self, TransportError::Refused { code: RefusalCode::StaleEpoch, .. })
    }
}

/// What every verb returns.
pub type Reply<'a, T> = BoxFuture<'a, Result<Answer<T>, TransportError>>;

/// Whose objects: a volume's, under its writer's epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Writer {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch of this mount.
    pub epoch: u32,
    /// What shows the node that the volume's key lets it be written.
    pub shown: Option<Signature>,
}

/// A fragment as it came from a node: bytes, nothing checked.
#[derive(Clone, Debug)]
pub struct RawFragment {
    /// Claims to be an encoded FPCC.
    pub fpcc: Bytes,
    /// Claims to be the fragment.
    pub fragment: Bytes,
}

/// The verbs. Every one ends within the `Duration` given. All may be retried: they are idempotent.
pub trait FragmentTransport: Send + Sync + 'static {
    /// `GET /info`.
    fn info<'a>(&'a self, node: &'a NodeAddress, limit: Duration) -> Reply<'a, NodeInfo>;
    /// `GET /volumes`.
    fn volumes<'a>(&'a self, node: &'a NodeAddress, limit: Duration) -> Reply<'a, Vec<VolumeEntry>>;
    /// `PUT /volumes/{volume}`.
    fn register<'a>(
        &'a self,
        node: &'a NodeAddress,
        descriptor: &'a VolumeDescriptor,
        limit: Duration,
    ) -> Reply<'a, ()>;
    /// `POST /volumes/{volume}/lease`.
    fn lease<'a>(
        &'a self,
        node: &'a NodeAddress,
        writer: Writer,
        request: &'a LeaseRequest,
        limit: Duration,
    ) -> Reply<'a, ()>;
    /// Keep one fragment; with `flush` it is on stable storage when this returns, and all acknowledged before it.
    #[expect(clippy::too_many_arguments, reason = "what a fragment is, and how it is to be kept")]
    fn put<'a>(
        &'a self,
        node: &'a NodeAddress,
        writer: Writer,
        name: &'a FragmentName,
        fpcc: Bytes,
        fragment: Bytes,
        flush: bool,
        limit: Duration,
    ) -> Reply<'a, ()>;
    /// Fetch one fragment.
    fn get<'a>(
        &'a self,
        node: &'a NodeAddress,
        volume: VolumeId,
        name: &'a FragmentName,
        limit: Duration,
    ) -> Reply<'a, RawFragment>;
    /// Fetch a range of one fragment with its proof, not checked: FPCC and slice as docs/fpcc.md draws it.
    fn get_slice<'a>(
        &'a self,
        node: &'a NodeAddress,
        volume: VolumeId,
        name: &'a FragmentName,
        range: std::ops::Range<u64>,
        limit: Duration,
    ) -> Reply<'a, RawFragment>;
    /// Have the node look at a fragment, and sign for it.
    fn statement<'a>(
        &'a self,
        _node: &'a NodeAddress,
        _volume: VolumeId,
        _name: &'a FragmentName,
        _nonce: Nonce,
        _limit: Duration,
    ) -> Reply<'a, Statement> {
        Box::pin(async { Err(TransportError::Garbage("it states nothing".into())) })
    }
    /// Several operations in one request, answered in order.
    fn batch<'a>(
        &'a self,
        node: &'a NodeAddress,
        writer: Writer,
        operations: &'a [Operation],
        flush: bool,
        limit: Duration,
    ) -> Reply<'a, Vec<OperationAnswer>>;
    /// All that was acknowledged before is on stable storage.
    fn flush<'a>(&'a self, node: &'a NodeAddress, writer: Writer, limit: Duration) -> Reply<'a, ()>;
    /// What the node holds of one object.
    fn status<'a>(
        &'a self,
        node: &'a NodeAddress,
        volume: VolumeId,
        key: &'a str,
        version: u64,
        limit: Duration,
    ) -> Reply<'a, ObjectStatus>;
    /// One page of what the node holds of the volume.
    fn list<'a>(
        &'a self,
        node: &'a NodeAddress,
        volume: VolumeId,
        after: Option<&'a str>,
        page: usize,
        limit: Duration,
    ) -> Reply<'a, Listing>;
}
