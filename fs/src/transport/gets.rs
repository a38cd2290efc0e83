//! Fragments from one node over connections of their own: a frame there, and the fragment back, straight into the memory
//! where it is to stay. An answer of HTTP passes through a buffer of the client's first.

use std::ops::Range;

use bytes::Bytes;
use common::wire::{FragmentName, GetFrame, GetHead, Refusal, VolumeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::lines::{Line, broken};
use super::{Answer, TransportError};
use crate::buffers::Buffers;

/// A fragment to be read, or a slice of it.
pub struct Get<'a> {
    pub(super) volume: VolumeId,
    pub(super) name: &'a FragmentName,
    /// Of which of its bytes.
    pub(super) range: Option<Range<u64>>,
}

impl Line<VolumeId> {
    /// A fragment body or slice body.
    pub(super) async fn get(&mut self, get: &Get<'_>) -> Result<Answer<Bytes>, TransportError> {
        let frame = GetFrame { name: get.name.clone(), range: get.range.clone() };
        let (head, body) = self.exchange(&frame).await.map_err(broken)??;
        match head.status {
            200 => Ok(Answer { node: self.node, boot: head.boot, value: body }),
            status => Err(refusal(status, &body)),
        }
    }

    async fn exchange(
        &mut self,
        frame: &GetFrame,
    ) -> std::io::Result<Result<(GetHead, Bytes), TransportError>> {
        self.stream.write_all(&frame.encode()).await?;
        self.stream.flush().await?;
        let mut head = [0; GetHead::LENGTH];
        self.stream.read_exact(&mut head).await?;
        let head = match GetHead::decode(&head) {
            Ok(head) => head,
            Err(error) => return Ok(Err(TransportError::Garbage(error.to_string()))),
        };
        let mut body = Buffers::shared().take_dirty_at(GetHead::LENGTH, head.length);
        self.stream.read_exact(body.as_mut_slice()).await?;
        Ok(Ok((head, body.freeze())))
    }
}

fn refusal(status: u16, body: &[u8]) -> TransportError {
    match Refusal::of_status(status, body) {
        Ok(refusal) => TransportError::Refused { code: refusal.error, message: refusal.message },
        Err(error) => TransportError::Garbage(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use common::wire::{BootId, NodeId, RefusalCode, next_frame};
    use tokio::io::DuplexStream;

    use super::*;

    const VOLUME: VolumeId = VolumeId([7; 16]);
    const NODE: NodeId = NodeId([1; 16]);
    const BOOT: BootId = BootId([5; 8]);

    fn line() -> (Line<VolumeId>, DuplexStream) {
        let (near, far) = tokio::io::duplex(100);
        (Line::over(Box::new(near), NODE, VOLUME), far)
    }

    /// What comes of a get for which the node takes one frame and says `answer`.
    async fn get(
        line: &mut Line<VolumeId>,
        far: &mut DuplexStream,
        answer: &[u8],
    ) -> Result<Answer<Bytes>, TransportError> {
        let name = FragmentName { key: "a".into(), version: 1, index: 2 };
        let get = Get { volume: VOLUME, name: &name, range: Some(3..5) };
        let answering = async {
            let mut received = bytes::BytesMut::new();
            let body = loop {
                far.read_buf(&mut received).await.unwrap();
                if let Some(body) = next_frame(&mut received).unwrap() {
                    break body;
                }
            };
            assert_eq!(GetFrame::decode(body), Ok(GetFrame { name: name.clone(), range: Some(3..5) }));
            far.write_all(answer).await.unwrap();
        };
        tokio::join!(line.get(&get), answering).0
    }

    fn answer(status: u16, body: &[u8]) -> Vec<u8> {
        let head = GetHead { length: body.len(), boot: BOOT, status };
        [&head.encode()[..], body].concat()
    }

    #[tokio::test]
    async fn bytes_and_refusals_come_one_after_the_other() {
        let (mut line, mut far) = line();
        let body = vec![7; 100_000];
        let got = get(&mut line, &mut far, &answer(200, &body)).await.unwrap();
        assert_eq!((got.node, got.boot, got.value), (NODE, BOOT, body.into()));
        let gone = Refusal { error: RefusalCode::NotFound, message: "gone".into() };
        let json = serde_json::to_vec(&gone).unwrap();
        let refused = get(&mut line, &mut far, &answer(404, &json)).await;
        assert!(matches!(refused, Err(TransportError::Refused { code: RefusalCode::NotFound, .. })));
        assert!(get(&mut line, &mut far, &answer(200, b"")).await.is_ok());
    }

    #[tokio::test]
    async fn what_is_no_answer_is_garbage_and_what_stops_is_unreachable() {
        let long = GetHead { length: u32::MAX as usize, boot: BOOT, status: 200 }.encode();
        for said in [&long[..], &answer(404, b"{}"), &answer(500, br#"{"error":"not_found","message":""}"#)] {
            let (mut line, mut far) = line();
            assert!(matches!(get(&mut line, &mut far, said).await, Err(TransportError::Garbage(_))));
        }
        let (mut line, mut far) = line();
        let name = FragmentName { key: "a".into(), version: 1, index: 2 };
        far.write_all(&answer(200, &[1; 60])[..70]).await.unwrap();
        drop(far);
        let stopped = line.get(&Get { volume: VOLUME, name: &name, range: None }).await;
        assert!(matches!(stopped, Err(TransportError::Unreachable(_))));
    }
}
