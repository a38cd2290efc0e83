//! A volume's small fragments, over a connection that is upgraded for them.

use std::sync::Arc;

use axum::extract::{Request, State};
use common::wire::{BootId, PUTS_PROTOCOL, PutFrame, Refusal, RefusalCode, Signature};
use http::header::HeaderMap;

use super::{Answer, Names, Node, Refused, proof, upgrade};
use crate::metrics::{Operation, Timed};
use crate::puts::{Keeper, Kept, serve};
use crate::store::Author;

/// One writer's connection.
struct Writing {
    node: Arc<Node>,
    author: Author,
    shown: Option<Signature>,
}

pub async fn puts(
    State(node): State<Arc<Node>>,
    names: Names,
    headers: HeaderMap,
    request: Request,
) -> Answer {
    let author = names.author(&node.store, &headers)?;
    let writing = Writing { author, shown: proof(&headers)?, node };
    upgrade(request, PUTS_PROTOCOL, |stream| async move {
        let idle = writing.node.intake.idle();
        if let Err(error) = serve(stream, &writing, idle).await {
            tracing::debug!(%error, "a connection for puts");
        }
    })
}

impl Keeper for Writing {
    fn keep(&self, frame: &PutFrame) -> Kept {
        let bytes = 4 + frame.fpcc.len() + frame.fragment.len();
        let timed = self.node.metrics.begin(Operation::Put, bytes as u64);
        let kept = self.put(frame);
        if kept.is_ok() && frame.flush {
            let node = self.node.clone();
            return Kept::Flushed(Box::pin(async move {
                let flushed = node.store.flush().await.map_err(Refused::from);
                node.answered(timed, flushed)
            }));
        }
        Kept::Now(self.node.answered(timed, kept))
    }

    fn boot(&self) -> BootId {
        self.node.store.boot()
    }
}

impl Writing {
    fn put(&self, frame: &PutFrame) -> Result<(), Refused> {
        if let Author::Writer { volume, epoch } = self.author {
            self.node.store.authorize(volume, epoch, self.shown)?;
        }
        Ok(self.node.store.put(&self.author, &frame.name, &frame.fpcc, &frame.fragment)?)
    }
}

impl Node {
    fn answered(&self, timed: Timed, done: Result<(), Refused>) -> Option<Refusal> {
        let refusal = done.err().map(|Refused(refusal)| refusal);
        let code: Option<RefusalCode> = refusal.as_ref().map(|refusal| refusal.error);
        self.metrics.end(timed, 0, code);
        refusal
    }
}
