//! Nodes inside this process, at `embedded:K`: the embedded pool, and tests.

use std::collections::HashMap;

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use common::wire::MAX_BODY;
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use parking_lot::RwLock;
use tokio::task::JoinSet;
use tower::ServiceExt;

use super::verbs::{Carrier, Parts, Wire};
use super::{NodeAddress, TransportError};

/// Calls each node's router.
pub type InProcessTransport = Wire<InProcess>;

impl InProcessTransport {
    /// Node `K` of `nodes` is at `embedded:K`.
    pub fn new(nodes: impl IntoIterator<Item = Router>) -> InProcessTransport {
        let nodes = nodes.into_iter().enumerate().map(|(k, node)| (Self::address(k), node)).collect();
        Wire { carrier: InProcess { nodes: RwLock::new(nodes) } }
    }

    /// Where node `k` is.
    pub fn address(k: usize) -> NodeAddress {
        NodeAddress(format!("embedded:{k}"))
    }

    /// Put a node at an address, in place of the one there.
    pub fn start(&self, address: NodeAddress, node: Router) {
        self.carrier.nodes.write().insert(address, node);
    }

    /// From now on nothing answers at `address`; requests under way go on.
    pub fn stop(&self, address: &NodeAddress) {
        self.carrier.nodes.write().remove(address);
    }
}

/// See `InProcessTransport`.
pub struct InProcess {
    nodes: RwLock<HashMap<NodeAddress, Router>>,
}

impl Carrier for InProcess {
    /// On a task of its own: a caller that asks several nodes at once has them work on several cores.
    /// Like a connection, the task ends when nobody waits for the answer any more.
    async fn carry(
        &self,
        node: &NodeAddress,
        request: Request<Parts>,
    ) -> Result<Response<Bytes>, TransportError> {
        let router = self.nodes.read().get(node).cloned();
        let router = router.ok_or_else(|| TransportError::Unreachable("no node runs there".into()))?;
        let mut task = JoinSet::new();
        task.spawn(exchange(router, request));
        match task.join_next().await {
            Some(Ok(answer)) => answer,
            _ => Err(TransportError::Unreachable("the node ended in the middle of a request".into())),
        }
    }
}

async fn exchange(router: Router, request: Request<Parts>) -> Result<Response<Bytes>, TransportError> {
    let Ok(answer) = router.oneshot(request.map(Body::new)).await;
    let (head, body) = answer.into_parts();
    let whole = Limited::new(body, MAX_BODY).collect().await;
    let whole = whole.map_err(|error| TransportError::Garbage(format!("its answer: {error}")))?;
    Ok(Response::from_parts(head, whole.to_bytes()))
}
