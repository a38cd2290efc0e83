//! Fragments to one node as frames. Small ones share a connection, each sent by who puts it, and answered in any order: a
//! request for each costs mount and node most of the time that a small fragment takes. Large ones go over lines.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use common::wire::{FragmentName, NodeId, PutAnswer, PutFrame, next_frame};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::lines::{ASK_AGAIN, Line, broken as ended};
use super::{Answer, TransportError, Writer};

/// A connection that nobody uses is ended before the node's own patience ends.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// What is received at once, in bytes.
const RECEIVED: usize = 16 << 10;

/// Bytes from a node, and bytes to it. The two are to wait for nothing of each other: an answer often comes before the
/// call that sent the frame has returned.
pub(super) type Halves = (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);

/// A fragment to be kept.
pub struct Put<'a> {
    pub(super) writer: Writer,
    pub(super) name: &'a FragmentName,
    pub(super) fpcc: &'a Bytes,
    pub(super) fragment: &'a Bytes,
    pub(super) flush: bool,
}

impl Put<'_> {
    fn frame(&self, number: u32) -> PutFrame {
        let (name, fpcc, fragment) = (self.name.clone(), self.fpcc.clone(), self.fragment.clone());
        PutFrame { number, flush: self.flush, name, fpcc, fragment }
    }
}

impl Line<Writer> {
    /// Have a large fragment kept. Whether it was, is unknown when this is given up.
    pub(super) async fn put(&mut self, put: &Put<'_>) -> Result<Answer<()>, TransportError> {
        let answer = self.exchange(put).await.map_err(ended)?;
        let answer = PutAnswer::decode(answer).map_err(|error| TransportError::Garbage(error.to_string()))?;
        outcome(self.node, answer)
    }

    /// The answer without its length.
    async fn exchange(&mut self, put: &Put<'_>) -> io::Result<Bytes> {
        let frame = put.frame(0);
        let head = frame.head(0).freeze();
        self.stream.write_all_buf(&mut Buf::chain(head, frame.fragment)).await?;
        self.stream.flush().await?;
        let mut received = BytesMut::new();
        loop {
            if let Some(answer) = next_frame(&mut received).map_err(io::Error::other)? {
                return Ok(answer);
            }
            if self.stream.read_buf(&mut received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn outcome(node: NodeId, answer: PutAnswer) -> Result<Answer<()>, TransportError> {
    match answer.refusal {
        None => Ok(Answer { node, boot: answer.boot, value: () }),
        Some(refusal) => Err(TransportError::Refused { code: refusal.error, message: refusal.message }),
    }
}

/// The way to one node, if there is one.
#[derive(Default)]
pub(super) struct Way(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Closed,
    /// Somebody asks for it; others do without.
    Opening,
    Open(Arc<Connection>),
    /// The node has none.
    Without(Instant),
}

/// What to do with a put.
pub(super) enum Turn<'a> {
    Send(Arc<Connection>),
    Open(Opening<'a>),
    /// Make a request of it.
    Request,
}

/// The right to open the connection; without an end it counts as not tried.
pub(super) struct Opening<'a>(&'a Way);

impl Way {
    /// For a put of `writer`.
    pub(super) fn turn(&self, writer: Writer) -> Turn<'_> {
        let mut state = self.0.lock();
        match &*state {
            State::Open(connection) if connection.is_over() => {}
            State::Open(connection) if connection.writer == writer => return Turn::Send(connection.clone()),
            State::Open(_) | State::Opening => return Turn::Request,
            State::Without(since) if since.elapsed() < ASK_AGAIN => return Turn::Request,
            State::Without(_) | State::Closed => {}
        }
        *state = State::Opening;
        Turn::Open(Opening(self))
    }
}

impl Opening<'_> {
    /// The node has no such way.
    pub(super) fn refused(self) {
        *self.0.0.lock() = State::Without(Instant::now());
    }

    /// Here it is; `node` is who answered.
    pub(super) fn opened(self, halves: Halves, node: NodeId, writer: Writer) -> Arc<Connection> {
        let connection = Connection::over(halves, node, writer);
        *self.0.0.lock() = State::Open(connection.clone());
        connection
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        if let State::Opening = *state {
            *state = State::Closed;
        }
    }
}

/// One connection; it ends with the first error, and another takes its place.
pub(super) struct Connection {
    node: NodeId,
    writer: Writer,
    sending: tokio::sync::Mutex<Sending>,
    waiting: Arc<Mutex<Waiting>>,
    receiving: AbortHandle,
}

struct Sending {
    stream: Box<dyn AsyncWrite + Send + Unpin>,
    /// Who sent a frame stopped in the middle of it.
    torn: bool,
}

#[derive(Default)]
struct Waiting {
    next: u32,
    answers: HashMap<u32, oneshot::Sender<Result<PutAnswer, TransportError>>>,
    ended: Option<TransportError>,
    /// Somebody got no answer in time: the node may never see this connection again. What waits may still be answered,
    /// and what comes goes over another one.
    retired: bool,
}

impl Connection {
    fn over((reader, stream): Halves, node: NodeId, writer: Writer) -> Arc<Connection> {
        let waiting = Arc::<Mutex<Waiting>>::default();
        let receiving = tokio::spawn(receive(reader, waiting.clone())).abort_handle();
        let sending = tokio::sync::Mutex::new(Sending { stream, torn: false });
        Arc::new(Connection { node, writer, sending, waiting, receiving })
    }

    fn is_over(&self) -> bool {
        let waiting = self.waiting.lock();
        waiting.ended.is_some() || waiting.retired
    }

    /// Have a fragment kept. Whether it was, is unknown when this is given up.
    pub(super) async fn put(&self, put: &Put<'_>) -> Result<Answer<()>, TransportError> {
        let (answer, answered) = oneshot::channel();
        let number = self.waiting.lock().expect_answer(answer)?;
        let _forgotten = Forgotten { number, waiting: &self.waiting };
        self.send(&put.frame(number).encode()).await?;
        let gone = || broken("the connection for puts ended");
        outcome(self.node, answered.await.map_err(|_| gone())??)
    }

    async fn send(&self, frame: &[u8]) -> Result<(), TransportError> {
        let mut sending = self.sending.lock().await;
        let sent = match std::mem::replace(&mut sending.torn, true) {
            true => Err("a frame was not sent whole".to_owned()),
            false => sending.all(frame).await.map_err(|error| error.to_string()),
        };
        match sent {
            Ok(()) => sending.torn = false,
            Err(why) => self.waiting.lock().end(&broken(&why)),
        }
        // What waits was told, this one too.
        Ok(())
    }
}

impl Sending {
    async fn all(&mut self, frame: &[u8]) -> io::Result<()> {
        self.stream.write_all(frame).await?;
        self.stream.flush().await
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.receiving.abort();
    }
}

impl Waiting {
    fn expect_answer(
        &mut self,
        answer: oneshot::Sender<Result<PutAnswer, TransportError>>,
    ) -> Result<u32, TransportError> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        self.next = self.next.wrapping_add(1);
        self.answers.insert(self.next, answer);
        Ok(self.next)
    }

    fn answered(&mut self, answer: PutAnswer) {
        // Who asked may have given up.
        if let Some(waiting) = self.answers.remove(&answer.number) {
            let _gone = waiting.send(Ok(answer));
        }
    }

    /// Nothing more comes.
    fn end(&mut self, error: &TransportError) {
        self.ended.get_or_insert_with(|| error.clone());
        for (_, waiting) in self.answers.drain() {
            let _gone = waiting.send(Err(error.clone()));
        }
    }
}

/// Nobody waits for this answer any more.
struct Forgotten<'a> {
    number: u32,
    waiting: &'a Mutex<Waiting>,
}

impl Drop for Forgotten<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock();
        if waiting.answers.remove(&self.number).is_some() {
            waiting.retired = true;
        }
    }
}

async fn receive(mut reader: impl AsyncRead + Unpin, waiting: Arc<Mutex<Waiting>>) {
    let mut received = BytesMut::with_capacity(RECEIVED);
    let error = loop {
        let read = match timeout(IDLE_LIMIT, reader.read_buf(&mut received)).await {
            Ok(read) => read,
            Err(_) => {
                let mut waiting = waiting.lock();
                if waiting.answers.is_empty() {
                    return waiting.end(&broken("the connection for puts was idle"));
                }
                continue;
            }
        };
        match read {
            Ok(0) => break broken("it closed the connection before it had answered"),
            Ok(_) => {}
            Err(error) => break broken(&error.to_string()),
        }
        if let Err(error) = take_answers(&mut received, &waiting) {
            break TransportError::Garbage(error.to_string());
        }
        received.reserve(RECEIVED);
    };
    waiting.lock().end(&error);
}

fn take_answers(received: &mut BytesMut, waiting: &Mutex<Waiting>) -> Result<(), common::wire::WireError> {
    while let Some(body) = next_frame(received)? {
        let answer = PutAnswer::decode(body)?;
        waiting.lock().answered(answer);
    }
    Ok(())
}

fn broken(why: &str) -> TransportError {
    TransportError::Unreachable(why.to_owned())
}

#[cfg(test)]
mod tests {
    use common::wire::{BootId, Refusal, RefusalCode, VolumeId};
    use tokio::io::DuplexStream;

    use super::*;

    const WRITER: Writer = Writer { volume: VolumeId([7; 16]), epoch: 2, shown: None };
    const NODE: NodeId = NodeId([1; 16]);
    const BOOT: BootId = BootId([5; 8]);

    /// A connection and its far end, which has room for so many bytes.
    fn connection(room: usize) -> (Arc<Connection>, DuplexStream) {
        let (near, far) = tokio::io::duplex(room);
        (Connection::over(halves(near), NODE, WRITER), far)
    }

    fn halves(stream: DuplexStream) -> Halves {
        let (reader, writer) = tokio::io::split(stream);
        (Box::new(reader), Box::new(writer))
    }

    async fn put(connection: &Connection, index: u8) -> Result<Answer<()>, TransportError> {
        let name = FragmentName { key: "a".into(), version: 1, index };
        let (fpcc, fragment) = (Bytes::from("fpcc"), Bytes::from(vec![index; 1000]));
        let put = Put { writer: WRITER, name: &name, fpcc: &fpcc, fragment: &fragment, flush: false };
        connection.put(&put).await
    }

    /// As `put`, until somebody looks what became of it.
    fn begin(
        connection: &Arc<Connection>,
        index: u8,
    ) -> tokio::task::JoinHandle<Result<Answer<()>, TransportError>> {
        let connection = connection.clone();
        tokio::spawn(async move { put(&connection, index).await })
    }

    async fn frame(far: &mut DuplexStream) -> PutFrame {
        let length = far.read_u32_le().await.unwrap();
        let mut body = vec![0; length as usize];
        far.read_exact(&mut body).await.unwrap();
        PutFrame::decode(body.into()).unwrap()
    }

    async fn answer(far: &mut DuplexStream, number: u32, refusal: Option<Refusal>) {
        let mut bytes = BytesMut::new();
        PutAnswer { number, boot: BOOT, refusal }.encode(&mut bytes);
        far.write_all(&bytes).await.unwrap();
    }

    fn is_broken(answer: Result<Answer<()>, TransportError>) -> bool {
        matches!(answer, Err(TransportError::Unreachable(_)))
    }

    #[tokio::test]
    async fn large_fragments_go_one_after_the_other() {
        let (near, mut far) = tokio::io::duplex(1000);
        let mut line = Line::over(Box::new(near), NODE, WRITER);
        let name = FragmentName { key: "a".into(), version: 1, index: 3 };
        let (fpcc, fragment) = (Bytes::from("fpcc"), Bytes::from(vec![7; 300_000]));
        let put = Put { writer: WRITER, name: &name, fpcc: &fpcc, fragment: &fragment, flush: true };
        let full = Refusal { error: RefusalCode::NoSpace, message: "full".into() };
        for refusal in [None, Some(full), None] {
            let node = async {
                let frame = frame(&mut far).await;
                assert_eq!((&frame.name, &frame.fpcc, &frame.fragment), (&name, &fpcc, &fragment));
                assert!(frame.flush);
                answer(&mut far, frame.number, refusal.clone()).await;
            };
            match tokio::join!(line.put(&put), node).0 {
                Ok(answer) => assert!(refusal.is_none() && (answer.node, answer.boot) == (NODE, BOOT)),
                Err(error) => assert_eq!(error.to_string(), refusal.unwrap().message),
            }
        }
        let garbage = async {
            frame(&mut far).await;
            far.write_all(&[3, 0, 0, 0, 1, 2, 3]).await.unwrap();
        };
        assert!(matches!(tokio::join!(line.put(&put), garbage).0, Err(TransportError::Garbage(_))));
        drop(far);
        assert!(is_broken(line.put(&put).await));
    }

    #[tokio::test]
    async fn each_put_gets_its_answer_in_whatever_order_they_come() {
        let (connection, mut far) = connection(1 << 20);
        let puts: Vec<_> = (0..3).map(|index| begin(&connection, index)).collect();
        let mut frames = [frame(&mut far).await, frame(&mut far).await, frame(&mut far).await];
        frames.sort_by_key(|frame| std::cmp::Reverse(frame.name.index));
        answer(&mut far, 999, None).await;
        for frame in &frames {
            assert_eq!(frame.fragment, vec![frame.name.index; 1000]);
            let refusal = Refusal { error: RefusalCode::StaleEpoch, message: "too old".into() };
            answer(&mut far, frame.number, (frame.name.index == 1).then_some(refusal)).await;
        }
        for (index, put) in puts.into_iter().enumerate() {
            match put.await.unwrap() {
                Ok(answer) => assert!(index != 1 && (answer.node, answer.boot) == (NODE, BOOT)),
                Err(error) => assert!(index == 1 && error.is_fence() && error.to_string() == "too old"),
            }
        }
        assert!(!connection.is_over());
    }

    #[tokio::test]
    async fn when_it_ends_everybody_who_waits_is_told() {
        let (connection, mut far) = connection(1 << 20);
        let puts = [begin(&connection, 0), begin(&connection, 1)];
        frame(&mut far).await;
        drop(far);
        for put in puts {
            assert!(is_broken(put.await.unwrap()));
        }
        assert!(connection.is_over() && is_broken(put(&connection, 2).await));
    }

    #[tokio::test]
    async fn an_answer_that_is_none_ends_it() {
        let (connection, mut far) = connection(1 << 20);
        let put = begin(&connection, 0);
        frame(&mut far).await;
        far.write_all(&[3, 0, 0, 0, 1, 2, 3]).await.unwrap();
        assert!(matches!(put.await.unwrap(), Err(TransportError::Garbage(_))));
        assert!(connection.is_over());
    }

    #[tokio::test]
    async fn nothing_follows_a_frame_that_was_not_sent_whole() {
        let (connection, mut far) = connection(100);
        let stuck = begin(&connection, 0);
        assert!(far.read_u8().await.is_ok(), "it has begun");
        stuck.abort();
        assert!(stuck.await.is_err());
        assert!(is_broken(put(&connection, 1).await));
        assert!(connection.is_over());
    }

    #[tokio::test(start_paused = true)]
    async fn after_one_that_was_not_answered_in_time_others_go_another_way() {
        let way = Way::default();
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let Turn::Open(opening) = way.turn(WRITER) else { panic!("nobody opens it yet") };
        let connection = opening.opened(halves(near), NODE, WRITER);
        assert!(matches!(way.turn(WRITER), Turn::Send(_)));
        let patient = begin(&connection, 0);
        let number = frame(&mut far).await.number;
        assert!(timeout(Duration::from_secs(1), put(&connection, 1)).await.is_err());
        assert!(matches!(way.turn(WRITER), Turn::Open(_)));
        answer(&mut far, number, None).await;
        assert!(patient.await.unwrap().is_ok(), "what waits on may still be answered");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_not_used_ends() {
        let (connection, mut far) = connection(1 << 20);
        let slow = begin(&connection, 0);
        let number = frame(&mut far).await.number;
        tokio::time::sleep(IDLE_LIMIT * 3).await;
        assert!(!connection.is_over(), "somebody waits");
        answer(&mut far, number, None).await;
        assert!(slow.await.unwrap().is_ok());
        tokio::time::sleep(IDLE_LIMIT * 2).await;
        assert!(connection.is_over());
    }

    #[tokio::test]
    async fn who_cannot_go_this_way_makes_requests() {
        let way = Way::default();
        let Turn::Open(opening) = way.turn(WRITER) else { panic!("nobody opens it yet") };
        assert!(matches!(way.turn(WRITER), Turn::Request), "somebody opens it");
        drop(opening);
        let Turn::Open(opening) = way.turn(WRITER) else { panic!("it came to nothing") };
        let (near, _far) = tokio::io::duplex(100);
        let _connection = opening.opened(halves(near), NODE, WRITER);
        assert!(matches!(way.turn(Writer { epoch: 3, ..WRITER }), Turn::Request), "it is another's");
        let without = Way::default();
        let Turn::Open(opening) = without.turn(WRITER) else { panic!("nobody opens it yet") };
        opening.refused();
        assert!(matches!(without.turn(WRITER), Turn::Request), "the node has none");
    }
}
