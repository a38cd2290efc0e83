//! The client of the object store: objects under keys, on nodes of which f may lie. docs/objects.md says what it does.
//! It prints nothing and knows no socket; how requests are carried is `transport`.

mod disperse;
#[cfg(test)]
mod fake;
mod fetch;
mod get;
mod list;
pub mod manifest;
pub mod membership;
mod newest;
pub mod owner;
mod put;
mod sink;
mod source;
mod standing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::members::{Member, Members, PART_MARK};
use common::wire::{NodeId, OwnerId};
use ed25519_dalek::SigningKey;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;

pub use self::get::Got;
pub use self::list::{KeyList, Listed};
pub use self::put::Stored;
pub use self::sink::{FileSink, Sink, StreamSink};
pub use self::source::{FileSource, Source, StreamSource};
use self::standing::Standing;
use crate::error::Error;
use crate::transport::objects::ObjectTransport;
use crate::transport::{Answer, NodeAddress, TransportError};

/// Longest key, in bytes.
pub const MAX_KEY: usize = 900;
/// The highest version that nodes take.
pub const MAX_VERSION: u64 = 1 << 62;
/// Bytes in a part, if nothing else is asked for.
pub const USUAL_PART: u32 = 4 << 20;

/// Objects of one owner in one pool. Cheap to clone; clones share what they learn of the nodes.
#[derive(Clone)]
pub struct ObjectStore {
    transport: Arc<dyn ObjectTransport>,
    members: Arc<Members>,
    owner: OwnerId,
    /// Only who has it can put and delete.
    secret: Option<SigningKey>,
    options: StoreOptions,
    standing: Arc<Standing>,
    /// For the parts in memory while putting.
    room: Arc<Semaphore>,
    /// Fragments that go on being sent after enough nodes have stored theirs.
    rest: Arc<Mutex<JoinSet<()>>>,
}

/// Whose objects.
#[derive(Clone)]
pub enum Ownership {
    /// One's own, to be written too.
    Own(SigningKey),
    /// Somebody's, to be read.
    Of(OwnerId),
}

/// How a store is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreOptions {
    /// Bytes in each part of an object but the last, at most `manifest::MAX_PART`.
    pub part_bytes: u32,
    /// Parts in memory at once while putting, at least 1.
    pub put_parts: usize,
    /// Parts in memory at once while getting, at least 1.
    pub get_parts: usize,
    /// The longest that one part, one manifest or one question may take.
    pub io_limit: Duration,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        let io_limit = Duration::from_secs(30);
        StoreOptions { part_bytes: USUAL_PART, put_parts: 2, get_parts: 2, io_limit }
    }
}

/// Why something could not be put, read, deleted or listed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ObjectError {
    /// Nothing is under this key, or it was deleted.
    #[error("there is no object {0}")]
    NoSuchKey(String),
    /// The version asked for is not the newest; others are not kept.
    #[error("there is no version {wanted} of {key}: the newest is {newest}")]
    NoSuchVersion {
        /// The key.
        key: String,
        /// What was asked for.
        wanted: u64,
        /// What there is.
        newest: u64,
    },
    /// A key that is none.
    #[error("a key has 1 to {MAX_KEY} bytes, and no zero byte")]
    Key,
    /// Nobody knows which nodes there are.
    #[error("{0}")]
    Members(String),
    /// The owner's key is missing or unusable.
    #[error("{0}")]
    Owner(String),
    /// Too few nodes took or gave what is needed; may be repeated.
    #[error("{0}")]
    TooFewNodes(String),
    /// This version was taken by another put, or a higher one is there.
    #[error("version {version} of {key} is taken, or a higher one is there")]
    Conflict {
        /// The key.
        key: String,
        /// The version.
        version: u64,
    },
    /// Another put was faster, and what was read once cannot be read again.
    #[error(
        "another put of {key} took version {version} meanwhile, and this input cannot be read again: put it anew"
    )]
    Overtaken {
        /// The key.
        key: String,
        /// The version that was tried.
        version: u64,
    },
    /// A newer version came while an old one was written where nothing can be taken back.
    #[error(
        "a newer version of {0} came while this one was read, and what was written cannot be taken back: get it anew"
    )]
    Superseded(String),
    /// What enough nodes agree on is not what an owner puts: one who breaks the rules.
    #[error("version {version} of {key} is not what its owner may put: {reason}")]
    Wrong {
        /// The key.
        key: String,
        /// The version.
        version: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// More bytes than the parts there may be.
    #[error(
        "an object has at most {} parts of one size: --object-size says how large they are",
        manifest::MAX_PARTS
    )]
    TooLarge,
    /// What was to be read or written here.
    #[error("{0}")]
    Host(String),
}

impl From<Error> for ObjectError {
    fn from(error: Error) -> ObjectError {
        ObjectError::Host(error.to_string())
    }
}

/// How far a put or get is, for whoever wants to look.
#[derive(Debug, Default)]
pub struct Progress {
    done_bytes: AtomicU64,
    all_bytes: AtomicU64,
}

impl Progress {
    /// Of nothing yet; `all_bytes` is 0 while it is not known.
    pub fn new(all_bytes: u64) -> Arc<Progress> {
        Arc::new(Progress { done_bytes: AtomicU64::new(0), all_bytes: AtomicU64::new(all_bytes) })
    }

    /// Bytes of the object that are done, and all of them, 0 if that is not known.
    pub fn bytes(&self) -> (u64, u64) {
        (self.done_bytes.load(Ordering::Relaxed), self.all_bytes.load(Ordering::Relaxed))
    }

    fn add(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// From the beginning again.
    fn begin(&self) {
        self.done_bytes.store(0, Ordering::Relaxed);
    }

    fn expect(&self, all_bytes: u64) {
        self.all_bytes.store(all_bytes, Ordering::Relaxed);
    }
}

/// A node of a group, in the place of its fragment.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Seat {
    index: usize,
    node: NodeId,
    address: NodeAddress,
}

/// What is agreed on: a manifest under its key, or a part under a name of its own.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Instance {
    /// Without the owner.
    name: String,
    version: u64,
}

impl ObjectStore {
    /// Nothing is asked before it is needed.
    pub fn new(
        transport: Arc<dyn ObjectTransport>,
        members: Members,
        ownership: Ownership,
        options: StoreOptions,
    ) -> ObjectStore {
        let (owner, secret) = match ownership {
            Ownership::Own(secret) => (owner::owner_of(&secret), Some(secret)),
            Ownership::Of(owner) => (owner, None),
        };
        ObjectStore {
            transport,
            members: Arc::new(members),
            owner,
            secret,
            options,
            standing: Arc::default(),
            room: Arc::new(Semaphore::new(options.put_parts.max(1))),
            rest: Arc::default(),
        }
    }

    /// Whose objects these are.
    pub fn owner(&self) -> OwnerId {
        self.owner
    }

    /// The nodes of its pool.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// Wait until what a put still sends has arrived, or was given up: a few seconds at most.
    pub async fn settle(&self) {
        let mut rest = self.rest.lock().await;
        while rest.join_next().await.is_some() {}
    }

    /// The nodes of an instance, the one of fragment 0 first.
    fn group(&self, name: &str) -> Vec<Seat> {
        let seat = |(index, member): (usize, &Member)| Seat {
            index,
            node: member.node,
            address: NodeAddress(member.url.clone()),
        };
        self.members.group(self.owner, name).into_iter().enumerate().map(seat).collect()
    }

    /// How nodes call an instance.
    fn full_name(&self, name: &str) -> String {
        format!("{}/{name}", self.owner)
    }

    fn secret(&self) -> Result<&SigningKey, ObjectError> {
        let missing = || ObjectError::Owner("only the owner can write, by the owner's key".into());
        self.secret.as_ref().ok_or_else(missing)
    }
}

/// Whether it is one.
///
/// # Errors
/// `Key`.
pub fn check_key(key: &str) -> Result<(), ObjectError> {
    match (1..=MAX_KEY).contains(&key.len()) && !key.contains(PART_MARK) {
        true => Ok(()),
        false => Err(ObjectError::Key),
    }
}

/// An answer of the node that was meant, and of no other.
fn of_node<T>(seat: &Seat, answer: Answer<T>) -> Result<T, TransportError> {
    match answer.node == seat.node {
        true => Ok(answer.value),
        false => Err(TransportError::Garbage(format!("it is node {}, not {}", answer.node, seat.node))),
    }
}

/// Which node said what, for people.
fn reasons<'a>(said: impl IntoIterator<Item = (&'a NodeAddress, &'a String)>) -> String {
    let said: Vec<String> = said.into_iter().map(|(address, why)| format!("{address}: {why}")).collect();
    if said.is_empty() { "no node answered in time".to_owned() } else { said.join("; ") }
}
