//! Many operations in one request: carried out in order, answered in order.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::HttpBody;
use bytes::Bytes;
use common::wire::{
    EVERY_INDEX, FragmentName, MAX_BODY, Operation, OperationAnswer, RefusalCode, WireError, decode_batch,
    encode_answers,
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

    /// Bytes of the answer, as long as nobody else brings what is asked for; never more than an answer may have.
    pub fn answer_length(&self, store: &Store, space: Space) -> usize {
        let brought = self.brought();
        let length = |operation: &Operation| match operation {
            Operation::Get(name) => {
                let kept = store.body_length(space, name).unwrap_or(0);
                kept.max(brought.get(name).copied().unwrap_or(0))
            }
            _ => 32,
        };
        let lengths = self.0.iter().map(|operation| length(operation) + ANSWER_OVERHEAD);
        lengths.fold(4, usize::saturating_add).min(MAX_BODY)
    }

    /// The fragment bodies that are put here and may be asked for here, and their lengths.
    fn brought(&self) -> HashMap<&FragmentName, usize> {
        let mut brought = HashMap::new();
        if self.0.iter().all(|operation| !matches!(operation, Operation::Get(_))) {
            return brought;
        }
        for operation in &self.0 {
            if let Operation::Put { name, fpcc, fragment } = operation {
                let longest: &mut usize = brought.entry(name).or_default();
                *longest = (*longest).max(4 + fpcc.len() + fragment.len());
            }
        }
        brought
    }

    /// Do it, with an answer of at most `share` bytes. `author` is there if anything changes.
    pub fn carry_out(self, store: &Store, space: Space, author: Option<Author>, share: usize) -> Vec<Bytes> {
        let mut room = share.saturating_sub(4 + ANSWER_OVERHEAD * self.0.len());
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
    let check_room = |length: usize| match length > room {
        true => Err(StoreError::TooLarge("the answer is full".into())),
        false => Ok(()),
    };
    match operation {
        Operation::Put { name, fpcc, fragment } => {
            store.put(author(), &name, &fpcc, &fragment)?;
            Ok(done(Bytes::new(), Bytes::new()))
        }
        Operation::Get(name) => {
            check_room(store.body_length(space, &name).unwrap_or(0))?;
            let kept = store.get(space, &name)?;
            // A longer one may have taken its place meanwhile.
            check_room(kept.body.len())?;
            Ok(done(kept.fpcc(), kept.fragment()))
        }
        Operation::Has(name) => {
            check_room(32)?;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use common::codec::Codec;
    use common::fpcc::Fpcc;
    use common::hash::HashId;
    use common::wire::decode_answers;

    use super::*;
    use crate::StoreOptions;

    const SPACE: Space = Space::ObjectStore;

    fn store(folder: &std::path::Path) -> Arc<Store> {
        Store::open(StoreOptions { capacity: Some(256 << 20), ..StoreOptions::new(folder) }).unwrap()
    }

    fn name(key: &str) -> FragmentName {
        FragmentName { key: key.into(), version: 1, index: 0 }
    }

    fn put(key: &str, length: usize) -> Operation {
        let bytes = vec![7; length];
        let codec = Codec::of("1+1".parse().unwrap());
        let fpcc = Fpcc::compute(&codec, HashId::Blake3, length as u64, &[&bytes, &bytes]).to_bytes();
        Operation::Put { name: name(key), fpcc: fpcc.into(), fragment: bytes.into() }
    }

    /// The statuses, and how long the answer is.
    fn carried_out(batch: Batch, store: &Store, share: usize) -> (Vec<u16>, usize) {
        let count = batch.0.len();
        let answer = Bytes::from(batch.carry_out(store, SPACE, Some(Author::Client), share).concat());
        let length = answer.len();
        let answers = decode_answers(answer, count).unwrap();
        (answers.iter().map(|answer| answer.status).collect(), length)
    }

    /// One put and thirty gets of it held thirty times what was set aside for them: it was not there yet when that was
    /// counted.
    #[test]
    fn an_answer_is_no_longer_than_what_is_set_aside_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let mut operations = vec![put("a", 1 << 20)];
        operations.extend((0..30).map(|_| Operation::Get(name("a"))));
        operations.extend([Operation::Delete(name("a")), Operation::Get(name("a")), put("a", 9)]);
        let batch = Batch(operations);
        let share = batch.answer_length(&store, SPACE);
        assert!((30 << 20..MAX_BODY).contains(&share), "{share}");
        let (statuses, length) = carried_out(batch, &store, share);
        assert_eq!(statuses, [[200; 32].as_slice(), &[404, 200]].concat());
        assert!((30 << 20..=share).contains(&length), "{length} of {share}");
    }

    #[test]
    fn what_came_meanwhile_and_does_not_fit_is_to_be_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let batch =
            || Batch(vec![Operation::Get(name("a")), Operation::Get(name("b")), Operation::Has(name("a"))]);
        let share = batch().answer_length(&store, SPACE);
        carried_out(Batch(vec![put("a", 5000)]), &store, 100);
        let (statuses, length) = carried_out(batch(), &store, share);
        assert_eq!(statuses, [413, 404, 200]);
        assert!(length <= share, "{length} of {share}");
        let share = batch().answer_length(&store, SPACE);
        assert_eq!(carried_out(batch(), &store, share).0, [200, 404, 200]);
        assert_eq!(carried_out(batch(), &store, 0), (vec![413, 404, 413], 40));
    }
}
