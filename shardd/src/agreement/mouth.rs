//! What the node has to say to others: for each a queue, emptied into frames of a stream, each sent until it was heard.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::hash::Hash;
use common::members::{Member, Members};
use common::wire::{FROM_HEADER, MAC_HEADER, Mac, NodeId};
use ed25519_dalek::SigningKey;
use http::Request;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, WriteHalf};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::link::{Link, Stream};
use super::pair::Pair;
use super::stream::{MOST_WORDS, WINDOW, confirmed, frame};
use crate::dispersal::{Message, Messages};

/// Words that wait for one peer; the oldest beyond these are dropped, and said again when they are asked for.
const MOST_WAITING: usize = 16 << 10;
/// Between two attempts, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));
/// Until what was said is confirmed; after that the connection is taken for dead.
const PATIENCE: Duration = Duration::from_secs(10);
/// A connection over which nothing is to be said is ended.
const IDLE: Duration = Duration::from_secs(10);

/// Says words, in this node's name.
pub struct Mouth {
    own: NodeId,
    configuration: Hash,
    link: Arc<dyn Link>,
    queues: HashMap<NodeId, Queue>,
}

struct Queue {
    peer: Member,
    pair: Pair,
    waiting: Mutex<Waiting>,
    news: Notify,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<Message>,
    known: HashSet<Message>,
}

impl Mouth {
    /// To every other member with a key.
    pub fn new(members: &Members, own: NodeId, key: &SigningKey, link: Arc<dyn Link>) -> Mouth {
        let others = members.nodes().iter().filter(|member| member.node != own);
        let queue = |peer: &Member| {
            let pair = Pair::of(key, &peer.key, members.digest())?;
            let queue = Queue { peer: peer.clone(), pair, waiting: Mutex::default(), news: Notify::new() };
            Some((peer.node, queue))
        };
        Mouth { own, configuration: members.digest(), link, queues: others.filter_map(queue).collect() }
    }

    /// Every peer.
    pub fn peers(&self) -> impl Iterator<Item = NodeId> {
        self.queues.keys().copied()
    }

    /// Say something to a peer, as soon as what was said before is taken. What waits already is not added.
    pub fn say(&self, to: NodeId, message: Message) {
        let Some(queue) = self.queues.get(&to) else { return };
        let mut waiting = queue.waiting.lock();
        if !waiting.known.insert(message.clone()) {
            return;
        }
        waiting.messages.push_back(message);
        if waiting.messages.len() > MOST_WAITING
            && let Some(oldest) = waiting.messages.pop_front()
        {
            waiting.known.remove(&oldest);
        }
        drop(waiting);
        queue.news.notify_one();
    }

    /// Empty the queue for one peer, for ever. `came_back` is told when it hears again after it did not.
    pub async fn speak_to(&self, peer: NodeId, came_back: impl Fn()) {
        let Some(queue) = self.queues.get(&peer) else { return };
        let mut unheard = VecDeque::new();
        let mut pause = PAUSES.0;
        let mut in_vain = false;
        loop {
            if unheard.is_empty() {
                queue.something().await;
            }
            let heard = || {
                pause = PAUSES.0;
                if std::mem::take(&mut in_vain) {
                    came_back();
                }
            };
            let Err(error) = self.speak(queue, &mut unheard, heard).await else { continue };
            match in_vain {
                true => tracing::debug!(node = %peer, error, "words are not heard"),
                false => tracing::warn!(node = %peer, url = queue.peer.url, error, "words are not heard"),
            }
            in_vain = true;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Over one connection, until there is nothing to say; `heard` is called each time something was.
    async fn speak(
        &self,
        queue: &Queue,
        unheard: &mut VecDeque<Bytes>,
        mut heard: impl FnMut(),
    ) -> Result<(), String> {
        let peer = &queue.peer;
        let greeting = Request::post("/words")
            .header(FROM_HEADER, self.own.to_string())
            .header(MAC_HEADER, queue.pair.mac(self.own, peer.node, b"").to_string())
            .body(Bytes::new())
            .expect("hex digits make a header");
        let (mut reader, writer) = tokio::io::split(self.link.open(peer, greeting).await?);
        let mut writer = Writer(writer);
        for frame in unheard.iter() {
            writer.write(frame).await?;
        }
        let until = tokio::time::sleep(PATIENCE);
        tokio::pin!(until);
        let mut confirmations = [0; 64];
        loop {
            tokio::select! {
                read = reader.read(&mut confirmations) => {
                    let read = read.map_err(|error| error.to_string())?;
                    let count = confirmed(&confirmations[..read]);
                    match count {
                        0 if unheard.is_empty() => return Ok(()),
                        0 => return Err("the connection ended".into()),
                        count if count > unheard.len() => return Err("it confirms what was not said".into()),
                        _ => (),
                    }
                    unheard.drain(..count);
                    heard();
                    until.as_mut().reset(Instant::now() + if unheard.is_empty() { IDLE } else { PATIENCE });
                    if !queue.is_empty() {
                        queue.news.notify_one();
                    }
                }
                () = queue.news.notified(), if unheard.len() < WINDOW => {
                    while unheard.len() < WINDOW && let Some(messages) = queue.take(self.configuration) {
                        if unheard.is_empty() {
                            until.as_mut().reset(Instant::now() + PATIENCE);
                        }
                        let body = messages.encode();
                        let frame = frame(queue.pair.mac(self.own, peer.node, &body), &body);
                        unheard.push_back(frame.clone());
                        writer.write(&frame).await?;
                    }
                }
                () = &mut until => {
                    return if unheard.is_empty() { Ok(()) } else { Err("it confirms nothing".into()) };
                }
            }
        }
    }

    /// The code of words to a peer; none if there is no such peer.
    pub fn mac(&self, to: NodeId, body: &[u8]) -> Option<Mac> {
        Some(self.queues.get(&to)?.pair.mac(self.own, to, body))
    }

    /// Whether a peer says these words to this node.
    pub fn is_said_by(&self, from: NodeId, mac: Mac, body: &[u8]) -> bool {
        self.queues.get(&from).is_some_and(|queue| queue.pair.fits(from, self.own, body, mac))
    }
}

impl Queue {
    async fn something(&self) {
        while self.is_empty() {
            self.news.notified().await;
        }
        // For who speaks: it has not begun.
        self.news.notify_one();
    }

    fn is_empty(&self) -> bool {
        self.waiting.lock().messages.is_empty()
    }

    fn take(&self, configuration: Hash) -> Option<Messages> {
        let mut waiting = self.waiting.lock();
        let count = waiting.messages.len().min(MOST_WORDS);
        let mut messages = Messages::new(configuration);
        for message in waiting.messages.drain(..count).collect::<Vec<_>>() {
            waiting.known.remove(&message);
            messages.push(message).expect("a frame has fewer words than a body may");
        }
        (count > 0).then_some(messages)
    }
}

/// Writes whole frames, each in time.
struct Writer(WriteHalf<Box<dyn Stream>>);

impl Writer {
    async fn write(&mut self, frame: &[u8]) -> Result<(), String> {
        let write = async {
            self.0.write_all(frame).await?;
            self.0.flush().await
        };
        match timeout(PATIENCE, write).await {
            Ok(written) => written.map_err(|error| error.to_string()),
            Err(_) => Err("it takes nothing".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use common::wire::NodeKey;
    use tokio::io::DuplexStream;
    use tokio::sync::mpsc;

    use super::super::link::{Carried, Opened};
    use super::super::stream::read_frame;
    use super::*;
    use crate::dispersal::{InstanceId, Word};

    /// Gives the far ends of streams to the test.
    struct Far(mpsc::UnboundedSender<DuplexStream>);

    impl Link for Far {
        fn carry<'a>(&'a self, _: &'a Member, _: Request<Bytes>) -> Carried<'a> {
            Box::pin(async { Err("there are streams alone".into()) })
        }

        fn open<'a>(&'a self, _: &'a Member, _: Request<Bytes>) -> Opened<'a> {
            let (near, far) = tokio::io::duplex(1 << 20);
            self.0.send(far).unwrap();
            Box::pin(async { Ok(Box::new(near) as Box<dyn Stream>) })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_confirmed_is_said_again_and_what_was_is_not() {
        let keys: [SigningKey; 5] = std::array::from_fn(|k| SigningKey::from_bytes(&[k as u8 + 1; 32]));
        let nodes: [NodeId; 5] = std::array::from_fn(|k| NodeId([k as u8 + 1; 16]));
        let member = |k: usize| {
            let key = NodeKey(keys[k].verifying_key().to_bytes());
            Member { node: nodes[k], key, url: String::new() }
        };
        let members = Members::new("3+2".parse().unwrap(), (0..5).map(member).collect()).unwrap();
        let (streams, mut opened) = mpsc::unbounded_channel();
        let mouth = Arc::new(Mouth::new(&members, nodes[0], &keys[0], Arc::new(Far(streams))));
        let (back, speaker) = (Arc::new(AtomicUsize::new(0)), mouth.clone());
        let came_back = back.clone();
        let peer = nodes[1];
        let speaking = tokio::spawn(async move {
            speaker
                .speak_to(peer, || {
                    came_back.fetch_add(1, Ordering::SeqCst);
                })
                .await;
        });
        let say = |version: u64| {
            let id = InstanceId::new(common::wire::OwnerId([7; 32]), "a", version).unwrap();
            mouth.say(peer, Message { id, word: Word::Ask });
        };
        let hear = async |stream: &mut DuplexStream| {
            let (mac, body) = read_frame(stream).await.unwrap().unwrap();
            assert_eq!(Some(mac), mouth.mac(peer, &body));
            let messages = Messages::decode(body).unwrap();
            messages.list().iter().map(|message| message.id.version()).collect::<Vec<_>>()
        };
        say(1);
        let mut first = opened.recv().await.unwrap();
        assert_eq!(hear(&mut first).await, [1]);
        first.write_all(&[1]).await.unwrap();
        // Confirmed before the next is said, so that they are two frames.
        tokio::time::sleep(Duration::from_millis(1)).await;
        say(2);
        assert_eq!(hear(&mut first).await, [2]);
        drop(first);
        let mut second = opened.recv().await.unwrap();
        assert_eq!(hear(&mut second).await, [2], "not confirmed");
        second.write_all(&[1]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(back.load(Ordering::SeqCst), 1);
        // Silent when it should confirm: given up, said again. And who confirms too much lies.
        say(3);
        assert_eq!(hear(&mut second).await, [3]);
        let mut third = opened.recv().await.unwrap();
        assert_eq!(hear(&mut third).await, [3]);
        third.write_all(&[2]).await.unwrap();
        let mut fourth = opened.recv().await.unwrap();
        assert_eq!(hear(&mut fourth).await, [3]);
        fourth.write_all(&[1]).await.unwrap();
        let idle = timeout(IDLE * 2, read_frame(&mut fourth)).await;
        assert_eq!(idle.unwrap().unwrap(), None, "with nothing to say it ends");
        speaking.abort();
    }
}
