//! Fragments from one node over connections of their own: a frame there, and the fragment back, straight into the memory
//! where it is to stay. An answer of HTTP passes through a buffer of the client's first.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use common::wire::{FragmentName, GetFrame, GetHead, NodeId, Refusal, VolumeId};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::{Answer, TransportError};
use crate::buffers::Buffers;

/// A connection that was idle for longer is not used again: the node's own patience may end.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// A node that does not take gets this way is asked again after so long: it may have been replaced.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// A fragment to be read, or a slice of it.
pub struct Get<'a> {
    pub(super) volume: VolumeId,
    pub(super) name: &'a FragmentName,
    /// Of which of its bytes.
    pub(super) range: Option<Range<u64>>,
}

/// Bytes from and to a node.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// The connections to one node that nobody uses now.
#[derive(Default)]
pub(super) struct Lines(Mutex<State>);

#[derive(Default)]
struct State {
    idle: Vec<(Instant, Line)>,
    /// Since when it is known that the node has no such thing.
    without: Option<Instant>,
}

/// What to do with a get.
pub(super) enum Turn {
    Ask(Line),
    Open,
    /// Make a request of it.
    Request,
}

impl Lines {
    /// For a get of `volume`.
    pub(super) fn turn(&self, volume: VolumeId) -> Turn {
        let mut state = self.0.lock();
        state.idle.retain(|(since, _)| since.elapsed() < IDLE_LIMIT);
        if let Some(place) = state.idle.iter().rposition(|(_, line)| line.volume == volume) {
            return Turn::Ask(state.idle.remove(place).1);
        }
        match state.without {
            Some(since) if since.elapsed() < ASK_AGAIN => Turn::Request,
            _ => Turn::Open,
        }
    }

    /// The node takes none.
    pub(super) fn refused(&self) {
        self.0.lock().without = Some(Instant::now());
    }

    /// It was answered whole, and may be used again.
    pub(super) fn give_back(&self, line: Line) {
        self.0.lock().idle.push((Instant::now(), line));
    }
}

/// One connection, with one get under way at most.
pub(super) struct Line {
    volume: VolumeId,
    node: NodeId,
    stream: Box<dyn Duplex>,
}

impl Line {
    /// To the node that answered.
    pub(super) fn over(stream: Box<dyn Duplex>, node: NodeId, volume: VolumeId) -> Line {
        Line { volume, node, stream }
    }

    /// A fragment body or slice body. After another error than a refusal, and when this is given up, nothing may follow.
    pub(super) async fn get(&mut self, get: &Get<'_>) -> Result<Answer<Bytes>, TransportError> {
        debug_assert_eq!(self.volume, get.volume);
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
        let mut body = Buffers::shared().take_dirty(head.length);
        self.stream.read_exact(body.as_mut_slice()).await?;
        Ok(Ok((head, body.freeze())))
    }
}

fn refusal(status: u16, body: &[u8]) -> TransportError {
    match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) if refusal.error.status() == status => {
            TransportError::Refused { code: refusal.error, message: refusal.message }
        }
        _ => TransportError::Garbage(format!("an answer of status {status} that is no refusal")),
    }
}

fn broken(error: std::io::Error) -> TransportError {
    TransportError::Unreachable(format!("the connection for gets ended: {error}"))
}

#[cfg(test)]
mod tests {
    use common::wire::{BootId, RefusalCode, next_frame};
    use tokio::io::DuplexStream;

    use super::*;

    const VOLUME: VolumeId = VolumeId([7; 16]);
    const NODE: NodeId = NodeId([1; 16]);
    const BOOT: BootId = BootId([5; 8]);

    fn line() -> (Line, DuplexStream) {
        let (near, far) = tokio::io::duplex(100);
        (Line::over(Box::new(near), NODE, VOLUME), far)
    }

    /// What comes of a get for which the node takes one frame and says `answer`.
    async fn get(
        line: &mut Line,
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

    #[tokio::test(start_paused = true)]
    async fn what_was_idle_for_long_or_is_another_volumes_is_not_used() {
        let lines = Lines::default();
        assert!(matches!(lines.turn(VOLUME), Turn::Open));
        lines.give_back(line().0);
        assert!(matches!(lines.turn(VolumeId([8; 16])), Turn::Open));
        assert!(matches!(lines.turn(VOLUME), Turn::Ask(_)) && matches!(lines.turn(VOLUME), Turn::Open));
        lines.give_back(line().0);
        tokio::time::advance(IDLE_LIMIT).await;
        assert!(matches!(lines.turn(VOLUME), Turn::Open) && lines.0.lock().idle.is_empty());
        lines.refused();
        assert!(matches!(lines.turn(VOLUME), Turn::Request));
        tokio::time::advance(ASK_AGAIN).await;
        assert!(matches!(lines.turn(VOLUME), Turn::Open));
    }
}
