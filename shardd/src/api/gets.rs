//! A volume's fragments, read over a connection that is upgraded for it.

use std::sync::Arc;

use axum::extract::{Request, State};
use bytes::Bytes;
use common::wire::{BootId, GETS_PROTOCOL, GetFrame, Refusal};

use super::{Answer, Names, Node, Refused, Wanted, upgrade};
use crate::gets::{Reader, serve};
use crate::metrics::Operation;
use crate::store::Space;

/// One reader's connection.
struct Reading {
    node: Arc<Node>,
    space: Space,
}

pub async fn gets(State(node): State<Arc<Node>>, names: Names, request: Request) -> Answer {
    let reading = Reading { space: names.space(), node };
    upgrade(request, GETS_PROTOCOL, |stream| async move {
        let idle = reading.node.intake.idle();
        if let Err(error) = serve(stream, &reading, idle).await {
            tracing::debug!(%error, "a connection for gets");
        }
    })
}

impl Reader for Reading {
    async fn read(&self, frame: GetFrame) -> Result<Bytes, Refusal> {
        let timed = self.node.metrics.begin(Operation::Get, 0);
        let read =
            self.node.read_here(Wanted { space: self.space, name: frame.name, range: frame.range }).await;
        let read = read.map_err(|Refused(refusal)| refusal);
        let sent = read.as_ref().map_or(0, Bytes::len) as u64;
        self.node.metrics.end(timed, sent, read.as_ref().err().map(|refusal| refusal.error));
        read
    }

    fn boot(&self) -> BootId {
        self.node.store.boot()
    }
}
