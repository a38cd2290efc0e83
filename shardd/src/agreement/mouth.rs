//! What the node has to say to others: for each a queue, emptied by whole bodies, each sent until it was taken.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::hash::Hash;
use common::members::{Member, Members};
use common::wire::{FROM_HEADER, MAC_HEADER, Mac, NodeId};
use ed25519_dalek::SigningKey;
use http::{Request, Response, StatusCode};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::link::Link;
use super::pair::Pair;
use crate::dispersal::{Message, Messages};

/// Words that wait for one peer; the oldest beyond these are dropped, and said again when they are asked for.
const MOST_WAITING: usize = 16 << 10;
/// Between two attempts, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(5));

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

    /// Empty the queue for one peer, for ever. `came_back` is told when it takes words after it did not.
    pub async fn speak_to(&self, peer: NodeId, came_back: impl Fn()) {
        let Some(queue) = self.queues.get(&peer) else { return };
        loop {
            queue.news.notified().await;
            loop {
                let messages = queue.take(self.configuration);
                if messages.list().is_empty() {
                    break;
                }
                if self.deliver(queue, messages.encode()).await {
                    came_back();
                }
            }
        }
    }

    /// Until it was taken or refused for good; whether some attempt was in vain.
    async fn deliver(&self, queue: &Queue, body: Bytes) -> bool {
        let peer = &queue.peer;
        let mut pause = PAUSES.0;
        let mut in_vain = false;
        loop {
            let mac = queue.pair.mac(self.own, peer.node, &body).to_string();
            let request = Request::post("/words").header(FROM_HEADER, self.own.to_string());
            let request = request.header(MAC_HEADER, mac).body(body.clone());
            let request = request.expect("hex digits make a header");
            match self.link.carry(peer, request).await {
                Ok(answer) if answer.status() == StatusCode::OK => return in_vain,
                Ok(answer) if is_final(answer.status()) => {
                    tracing::warn!(node = %peer.node, url = peer.url, answer = %said(&answer), "words are refused");
                    return in_vain;
                }
                Ok(answer) => {
                    tracing::debug!(node = %peer.node, answer = %said(&answer), "words are not taken")
                }
                Err(error) => tracing::debug!(node = %peer.node, error, "words are not taken"),
            }
            in_vain = true;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
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
    fn take(&self, configuration: Hash) -> Messages {
        let mut waiting = self.waiting.lock();
        let mut messages = Messages::new(configuration);
        while let Some(message) = waiting.messages.pop_front() {
            waiting.known.remove(&message);
            if let Err(message) = messages.push(message) {
                waiting.known.insert(message.clone());
                waiting.messages.push_front(message);
                break;
            }
        }
        messages
    }
}

/// The same again would be refused again.
fn is_final(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 404 | 409 | 413 | 422)
}

fn said(answer: &Response<Bytes>) -> String {
    let body = String::from_utf8_lossy(&answer.body()[..answer.body().len().min(200)]).into_owned();
    format!("{}: {body}", answer.status())
}
