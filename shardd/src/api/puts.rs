//! A volume's fragments, put over a connection that is upgraded for them.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use common::wire::{BootId, FRAME_LENGTH, PUTS_PROTOCOL, PutFrame, Refusal, RefusalCode, Signature};
use http::header::HeaderMap;

use super::{Answer, Names, Node, Refused, proof, upgrade};
use crate::blocking;
use crate::intake::Reserved;
use crate::metrics::{Operation, Timed};
use crate::puts::{Keeper, Kept, serve};
use crate::store::{Author, Store};

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
    async fn room(&self, bytes: usize) -> Option<(Reserved, Duration)> {
        let intake = &self.node.intake;
        Some((intake.reserve(FRAME_LENGTH, bytes).await.ok()?, intake.patience(bytes)))
    }

    fn keep(&self, frame: PutFrame, boot: BootId) -> Kept {
        let bytes = 4 + frame.fpcc.len() + frame.fragment.len();
        let timed = self.node.metrics.begin(Operation::Put, bytes as u64);
        let node = self.node.clone();
        let put = || put(&node.store, &self.author, self.shown, &frame);
        let kept = blocking::run_here(frame.fragment.len(), put);
        if kept.is_ok() && frame.flush {
            return Kept::Later(Box::pin(async move {
                let flushed = node.store.flush_since(boot).await.map_err(Refused::from);
                node.answered(timed, flushed)
            }));
        }
        Kept::Now(node.answered(timed, kept))
    }

    fn boot(&self) -> BootId {
        self.node.store.boot()
    }
}

fn put(store: &Store, author: &Author, shown: Option<Signature>, frame: &PutFrame) -> Result<(), Refused> {
    if let Author::Writer { volume, epoch } = *author {
        store.authorize(volume, epoch, shown)?;
    }
    Ok(store.put(author, &frame.name, &frame.fpcc, &frame.fragment)?)
}

impl Node {
    fn answered(&self, timed: Timed, done: Result<(), Refused>) -> Option<Refusal> {
        let refusal = done.err().map(|Refused(refusal)| refusal);
        let code: Option<RefusalCode> = refusal.as_ref().map(|refusal| refusal.error);
        self.metrics.end(timed, 0, code);
        refusal
    }
}
