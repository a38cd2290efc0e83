//! Putting and deleting: parts first, the manifest last, and the next version where another one was faster.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use common::hash::Hash;
use common::members::part_name;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;

use super::disperse::Encoded;
use super::manifest::{Content, MAX_PARTS, Manifest, Parts, Place};
use super::source::Cutter;
use super::{Instance, ObjectError, ObjectStore, Progress, Source, check_key};
use crate::blocking;
use crate::buffers::{Buffer, Buffers};

/// So many times another put may be faster.
const ATTEMPTS: u32 = 10;
/// Two puts that meet wait for different times up to this, doubled each time, before they try again.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// What was put.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stored {
    /// Under which version.
    pub version: u64,
    /// Bytes of the object.
    pub bytes: u64,
    /// Parts it lies in; 0 if all of it is in the manifest.
    pub parts: u32,
}

impl ObjectStore {
    /// Put an object under the next version of a key, or under a version of one's own choice. When this returns it is
    /// there for everyone; `settle` waits for the last fragments.
    ///
    /// # Errors
    /// Of too few nodes, it may be stored all the same, or be so later; a put that is repeated takes another version.
    pub async fn put<S: Source>(
        &self,
        source: S,
        key: &str,
        version: Option<u64>,
        progress: &Arc<Progress>,
    ) -> Result<Stored, ObjectError> {
        check_key(key)?;
        self.secret()?;
        let mut input = Input::of(Cutter::new(source, self.members.code(), self.options.part_bytes));
        let mut versions = Versions::new(version);
        loop {
            let version = versions.next(self, key).await?;
            progress.begin();
            match self.put_version(&mut input, key, version, progress).await {
                Err(ObjectError::Conflict { .. }) if versions.may_go_on() => {}
                done => return done,
            }
            if !input.begin_again().await? {
                return Err(ObjectError::Overtaken { key: key.to_owned(), version });
            }
        }
    }

    /// Put a tombstone as the next version of a key, and say which that is.
    ///
    /// # Errors
    /// `NoSuchKey`: there is nothing to delete. Of too few nodes, it may be deleted all the same.
    pub async fn delete(&self, key: &str) -> Result<u64, ObjectError> {
        check_key(key)?;
        self.secret()?;
        let mut versions = Versions::new(None);
        loop {
            let newest = self.newest(key).await?.filter(|newest| !newest.deleted);
            newest.ok_or_else(|| ObjectError::NoSuchKey(key.to_owned()))?;
            let version = versions.next(self, key).await?;
            match self.put_manifest(key, version, Content::Deleted).await {
                Err(ObjectError::Conflict { .. }) if versions.may_go_on() => {}
                done => return done.map(|()| version),
            }
        }
    }

    async fn put_version<S: Source>(
        &self,
        input: &mut Input<S>,
        key: &str,
        version: u64,
        progress: &Arc<Progress>,
    ) -> Result<Stored, ObjectError> {
        let content = match input.first().await? {
            First::Whole(object) => Content::Whole(object),
            First::OfSeveral(part) => {
                Content::Parts(self.put_parts(part, input, key, version, progress).await?)
            }
        };
        let (parts, inline) = match &content {
            Content::Parts(parts) => (parts.digests.len() as u32, 0),
            Content::Whole(object) => (0, object.len() as u64),
            Content::Deleted => (0, 0),
        };
        let bytes = input.so_far().0;
        self.put_manifest(key, version, content).await?;
        progress.add(inline);
        Ok(Stored { version, bytes, parts })
    }

    /// All parts of an object, of which `first` is read already; as many at a time as there is room for.
    async fn put_parts<S: Source>(
        &self,
        first: Buffer,
        input: &mut Input<S>,
        key: &str,
        version: u64,
        progress: &Arc<Progress>,
    ) -> Result<Parts, ObjectError> {
        let mut sent = SentParts::default();
        let (mut next, mut number) = (Some(first), 0);
        loop {
            let room = self.room(&mut sent).await?;
            let (part, is_last) = match next.take() {
                Some(first) => (first, false),
                None => input.next().await?,
            };
            let instance = Instance { name: part_name(key, number), version };
            let (store, progress) = (self.clone(), progress.clone());
            sent.tasks.spawn(async move {
                let length = part.len() as u64;
                let digest = store.put_part(&instance, part, room).await?;
                progress.add(length);
                Ok((number, digest))
            });
            number += 1;
            match (is_last, number == MAX_PARTS) {
                (true, _) => break,
                (false, true) => return Err(ObjectError::TooLarge),
                (false, false) => {}
            }
        }
        let (length, hash) = input.so_far();
        let digests = sent.all().await?;
        Ok(Parts { length, part_bytes: self.options.part_bytes, hash, digests })
    }

    /// Room for one more part; meanwhile a part that could not be sent ends everything.
    async fn room(&self, sent: &mut SentParts) -> Result<OwnedSemaphorePermit, ObjectError> {
        loop {
            tokio::select! {
                biased;
                Some(done) = sent.tasks.join_next() => sent.note(done)?,
                room = self.room.clone().acquire_owned() => {
                    return Ok(room.expect("nobody closes the store's semaphore"));
                }
            }
        }
    }

    async fn put_part(
        &self,
        instance: &Instance,
        part: Buffer,
        room: OwnedSemaphorePermit,
    ) -> Result<Hash, ObjectError> {
        let quorums = self.members.quorums();
        let encoded = blocking::run(move || Ok(Encoded::new(quorums, part, Some(room)))).await?;
        self.disperse(instance, &encoded).await?;
        Ok(encoded.digest())
    }

    async fn put_manifest(&self, key: &str, version: u64, content: Content) -> Result<(), ObjectError> {
        let manifest = Manifest { put_ms: now_ms(), content };
        let (owner, secret, quorums) = (self.owner, self.secret()?.clone(), self.members.quorums());
        let instance = Instance { name: key.to_owned(), version };
        let name = instance.name.clone();
        let encoded = blocking::run(move || {
            let bytes = manifest.sign(&Place { owner, key: &name, version }, &secret);
            let mut buffer = Buffers::shared().take(quorums.code().padded_length(bytes.len() as u64));
            buffer.extend_from_slice(&bytes);
            Ok(Encoded::new(quorums, buffer, None))
        });
        self.disperse(&instance, &encoded.await?).await
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Parts on their way, and the digests of those that are stored.
#[derive(Default)]
struct SentParts {
    tasks: JoinSet<Result<(u32, Hash), ObjectError>>,
    digests: Vec<Option<Hash>>,
}

impl SentParts {
    fn note(&mut self, done: Result<Result<(u32, Hash), ObjectError>, JoinError>) -> Result<(), ObjectError> {
        let (number, digest) = done.map_err(|error| ObjectError::Host(error.to_string()))??;
        let number = number as usize;
        self.digests.resize(self.digests.len().max(number + 1), None);
        self.digests[number] = Some(digest);
        Ok(())
    }

    async fn all(mut self) -> Result<Vec<Hash>, ObjectError> {
        while let Some(done) = self.tasks.join_next().await {
            self.note(done)?;
        }
        Ok(self.digests.into_iter().map(|digest| digest.expect("every part was noted")).collect())
    }
}

/// Which version is tried next.
struct Versions {
    given: Option<u64>,
    last: u64,
    attempts: u32,
}

impl Versions {
    fn new(given: Option<u64>) -> Versions {
        Versions { given, last: 0, attempts: 0 }
    }

    async fn next(&mut self, store: &ObjectStore, key: &str) -> Result<u64, ObjectError> {
        if let Some(given) = self.given {
            return Ok(given);
        }
        if self.attempts > 0 {
            sleep(random_wait(self.attempts)).await;
        }
        self.attempts += 1;
        let next = store.next_version(key).await?;
        self.last = next.max(self.last.saturating_add(1));
        Ok(self.last)
    }

    /// After a conflict.
    fn may_go_on(&self) -> bool {
        self.given.is_none() && self.attempts < ATTEMPTS
    }
}

fn random_wait(attempt: u32) -> Duration {
    let longest = (FIRST_WAIT * (1 << attempt.min(16))).min(LONGEST_WAIT);
    StdRng::from_os_rng().random_range(Duration::ZERO..longest)
}

/// What is to be put: read once, or again where that can be done.
struct Input<S> {
    /// Away while it is being read from.
    cutter: Option<Cutter<S>>,
    /// The object, if it is of one part: there for another attempt.
    whole: Option<Bytes>,
}

/// How an object begins.
enum First {
    /// It is all.
    Whole(Bytes),
    OfSeveral(Buffer),
}

impl<S: Source> Input<S> {
    fn of(cutter: Cutter<S>) -> Input<S> {
        Input { cutter: Some(cutter), whole: None }
    }

    async fn first(&mut self) -> Result<First, ObjectError> {
        if let Some(object) = &self.whole {
            return Ok(First::Whole(object.clone()));
        }
        let (part, is_last) = self.next().await?;
        if !is_last {
            return Ok(First::OfSeveral(part));
        }
        let object = part.freeze();
        self.whole = Some(object.clone());
        Ok(First::Whole(object))
    }

    async fn next(&mut self) -> Result<(Buffer, bool), ObjectError> {
        let mut cutter = self.cutter.take().expect("after an error nothing more is read");
        let read = blocking::run(move || {
            let next = cutter.next();
            Ok((cutter, next))
        });
        let (cutter, next) = read.await?;
        self.cutter = Some(cutter);
        next
    }

    async fn begin_again(&mut self) -> Result<bool, ObjectError> {
        match (&self.whole, &mut self.cutter) {
            (Some(_), _) => Ok(true),
            (None, Some(cutter)) => cutter.rewind(),
            (None, None) => Ok(false),
        }
    }

    /// Bytes read so far, and their hash.
    fn so_far(&self) -> (u64, Hash) {
        self.cutter.as_ref().expect("nothing is being read").so_far()
    }
}
