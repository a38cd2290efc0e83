//! Many operations in one request: carried out in order, answered in order.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::HttpBody;
use bytes::Bytes;
use common::wire::{
    EVERY_INDEX, MAX_BODY, Operation, OperationAnswer, RefusalCode, WireError, decode_batch, encode_answers,
};
use hyper::body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use crate::error::StoreError;
use crate::store::{Author, Space, Store};

/// Bytes of an answer beside FPCC and fragment, at most.
const ANSWER_OVERHEAD: usize = 12;

/// More operations than this take longer than handing them over.
const QUICK_OPERATIONS: usize = 16;

/// What one request asks for.
pub struct Batch(Vec<Operation>);

impl Batch {
    /// Take a body apart.
    pub fn decode(body: Bytes) -> Result<Batch, WireError> {
        decode_batch(body).map(Batch)
    }

    /// Whether it asks for a change.
    pub fn changes(&self) -> bool {
        self.0.iter().any(|operation| matches!(operation, Operation::Put { .. } | Operation::Delete(_)))
    }

    /// Whether it is few operations, none of which waits for the disk.
    pub fn is_quick(&self) -> bool {
        let waits = |operation: &Operation| matches!(operation, Operation::Delete(_));
        self.0.len() <= QUICK_OPERATIONS && !self.0.iter().any(waits)
    }

    /// Bytes of the answer, near enough to set memory aside; never more than an answer may have.
    pub fn answer_length(&self, store: &Store, space: Space) -> usize {
        let length = |operation: &Operation| match operation {
            Operation::Get(name) => store.body_length(space, name).unwrap_or(0),
            _ => 32,
        };
        let lengths = self.0.iter().map(|operation| length(operation) + ANSWER_OVERHEAD);
        lengths.fold(4, usize::saturating_add).min(MAX_BODY)
    }

    /// Do it. `author` is there if anything changes.
    pub fn carry_out(self, store: &Store, space: Space, author: Option<Author>) -> Vec<Bytes> {
        let mut room = MAX_BODY - 4 - ANSWER_OVERHEAD * self.0.len();
        let answers: Vec<_> = self
            .0
            .into_iter()
            .map(|operation| {
                let answer = carry_out(store, space, author, operation, room).unwrap_or_else(refusal);
                room -= answer.fpcc.len() + answer.payload.len();
                answer
            })
            .collect();
        store.give_back();
        encode_answers(&answers)
    }
}

fn carry_out(
    store: &Store,
    space: Space,
    author: Option<Author>,
    operation: Operation,
    room: usize,
) -> Result<OperationAnswer, StoreError> {
    let author = author.as_ref();
    let author = || author.expect("a batch that changes has an author");
    match operation {
        Operation::Put { name, fpcc, fragment } => {
            store.put(author(), &name, &fpcc, &fragment)?;
            Ok(done(Bytes::new(), Bytes::new()))
        }
        Operation::Get(name) => {
            if store.body_length(space, &name).is_some_and(|length| length > room) {
                return Err(StoreError::TooLarge("the answer is full".into()));
            }
            let kept = store.get(space, &name)?;
            Ok(done(kept.fpcc(), kept.fragment()))
        }
        Operation::Has(name) => {
            if room < 32 {
                return Err(StoreError::TooLarge("the answer is full".into()));
            }
            let digest = store.has(space, &name)?;
            Ok(done(Bytes::new(), Bytes::copy_from_slice(digest.as_bytes())))
        }
        Operation::Delete(name) => {
            let index = (name.index != EVERY_INDEX).then_some(name.index);
            store.delete(author(), &name.key, name.version, index)?;
            Ok(done(Bytes::new(), Bytes::new()))
        }
    }
}

fn done(fpcc: Bytes, payload: Bytes) -> OperationAnswer {
    OperationAnswer { status: 200, fpcc, payload }
}

fn refusal(error: StoreError) -> OperationAnswer {
    if error.code() == RefusalCode::Io {
        tracing::error!(%error, "disk");
    }
    OperationAnswer { status: error.code().status(), fpcc: Bytes::new(), payload: Bytes::new() }
}

/// A body of known parts, which are sent without being copied together.
pub struct PartsBody {
    parts: VecDeque<Bytes>,
    left: u64,
    _share: OwnedSemaphorePermit,
}

impl PartsBody {
    /// `share` is the memory set aside for them.
    pub fn new(parts: Vec<Bytes>, share: OwnedSemaphorePermit) -> PartsBody {
        let left = parts.iter().map(|part| part.len() as u64).sum();
        PartsBody { parts: parts.into(), left, _share: share }
    }
}

impl HttpBody for PartsBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = self.parts.pop_front();
        self.left -= part.as_ref().map_or(0, |part| part.len() as u64);
        Poll::Ready(part.map(|part| Ok(Frame::data(part))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
