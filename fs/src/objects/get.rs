//! Getting: the manifest of the newest version, then its parts, a few ahead and in order.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use common::hash::Hash;
use common::members::part_name;
use tokio::task::JoinSet;

use super::fetch::{Interrupted, Length, Wanted};
use super::manifest::{Content, MAX_PART, Manifest, Parts, Place};
use super::newest::Newest;
use super::{Instance, ObjectError, ObjectStore, Progress, Sink, check_key};
use crate::blocking;
use crate::error::Error;
use crate::host::reason;

/// No manifest is longer: its head, signature and hash, and at most as much as a part.
const LONGEST_MANIFEST: u64 = 128 + MAX_PART as u64;
/// So many newer versions may come while one is read.
const ATTEMPTS: usize = 20;

/// What was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Got {
    /// Which version.
    pub version: u64,
    /// Bytes of the object.
    pub bytes: u64,
    /// Parts it lies in; 0 if all of it is in the manifest.
    pub parts: u32,
    /// When it was put, in milliseconds since 1970, as its owner says.
    pub put_ms: u64,
}

impl ObjectStore {
    /// Write the newest version of an object to `sink`, and give that back. With `version` that one is meant, and only
    /// the newest can be had.
    ///
    /// # Errors
    /// `NoSuchKey`, `NoSuchVersion`, or what the nodes gave is too little or was not put by its owner. What was written
    /// to the sink is then the beginning of the object, or nothing.
    pub async fn get<K: Sink>(
        &self,
        key: &str,
        version: Option<u64>,
        sink: K,
        progress: &Arc<Progress>,
    ) -> Result<(Got, K), ObjectError> {
        check_key(key)?;
        let mut sink = sink;
        for _ in 0..ATTEMPTS {
            progress.begin();
            let newest = self.readable(key, version).await?;
            let mut out = Some(Out::new(sink));
            match self.read(key, &newest, &mut out, progress).await {
                Ok(got) => return Ok((got, Out::into_sink(out))),
                Err(Interrupted::Failed(error)) => return Err(error),
                Err(Interrupted::Superseded) => sink = Out::into_sink(out),
            }
            if !sink.begin_again().map_err(|error| unwritable(&error))? {
                return Err(ObjectError::Superseded(key.to_owned()));
            }
        }
        Err(ObjectError::TooFewNodes(format!("{key} is put anew faster than it can be read")))
    }

    /// What a get would read, without its bytes: the manifest alone is fetched.
    ///
    /// # Errors
    /// As `get`.
    pub async fn look(&self, key: &str) -> Result<Got, ObjectError> {
        check_key(key)?;
        for _ in 0..ATTEMPTS {
            let newest = self.readable(key, None).await?;
            match self.manifest(key, &newest).await {
                Ok(manifest) if manifest.content == Content::Deleted => return Err(none(key)),
                Ok(manifest) => return Ok(got(&newest, &manifest)),
                Err(Interrupted::Failed(error)) => return Err(error),
                Err(Interrupted::Superseded) => {}
            }
        }
        Err(ObjectError::TooFewNodes(format!("{key} is put anew faster than it can be read")))
    }

    async fn readable(&self, key: &str, version: Option<u64>) -> Result<Newest, ObjectError> {
        let newest = self.newest(key).await?.ok_or_else(|| none(key))?;
        match version {
            Some(wanted) if wanted != newest.version => {
                Err(ObjectError::NoSuchVersion { key: key.to_owned(), wanted, newest: newest.version })
            }
            _ => Ok(newest),
        }
    }

    async fn read<K: Sink>(
        &self,
        key: &str,
        newest: &Newest,
        out: &mut Option<Out<K>>,
        progress: &Progress,
    ) -> Result<Got, Interrupted> {
        let manifest = self.manifest(key, newest).await?;
        progress.expect(manifest.length());
        let got = got(newest, &manifest);
        match manifest.content {
            Content::Whole(object) => write(out, vec![object], progress).await?,
            Content::Parts(parts) => self.read_parts(key, newest, &parts, out, progress).await?,
            Content::Deleted => return Err(none(key).into()),
        }
        Ok(got)
    }

    /// What the owner signed for this version.
    async fn manifest(&self, key: &str, newest: &Newest) -> Result<Manifest, Interrupted> {
        let instance = Instance { name: key.to_owned(), version: newest.version };
        let wanted = Wanted { instance, digest: newest.digest, length: Length::AtMost(LONGEST_MANIFEST) };
        let pieces = self.fetch(key, newest, &wanted).await?;
        let (owner, version, name) = (self.owner, newest.version, key.to_owned());
        let checked = blocking::run(move || {
            let bytes: Bytes = pieces.concat().into();
            Ok(Manifest::check(&bytes, &Place { owner, key: &name, version }))
        });
        checked.await?.map_err(|error| wrong(key, version, &error.to_string()))
    }

    async fn read_parts<K: Sink>(
        &self,
        key: &str,
        newest: &Newest,
        parts: &Parts,
        out: &mut Option<Out<K>>,
        progress: &Progress,
    ) -> Result<(), Interrupted> {
        let mut numbered = (0..).zip(&parts.digests);
        let mut ahead = VecDeque::new();
        loop {
            let free = self.options.get_parts.max(1) - ahead.len();
            let more = numbered.by_ref().take(free);
            ahead.extend(more.map(|(part, digest)| self.fetch_part(key, newest, parts, part, *digest)));
            let Some(mut next) = ahead.pop_front() else { break };
            let fetched = next.join_next().await.expect("it has one task");
            let pieces = fetched.map_err(|error| ObjectError::Host(error.to_string()))??;
            write(out, pieces, progress).await?;
        }
        match out.as_ref().map(Out::hash) {
            Some(hash) if hash == parts.hash => Ok(()),
            _ => Err(wrong(key, newest.version, "its parts are not what its hash is of")),
        }
    }

    /// On a task of its own, so that it goes on while others are written; dropped, it ends.
    fn fetch_part(
        &self,
        key: &str,
        newest: &Newest,
        parts: &Parts,
        part: u32,
        digest: Hash,
    ) -> JoinSet<Result<Vec<Bytes>, Interrupted>> {
        let instance = Instance { name: part_name(key, part), version: newest.version };
        let wanted = Wanted { instance, digest, length: Length::Exactly(parts.bytes_of(part)) };
        let (store, key, newest) = (self.clone(), key.to_owned(), *newest);
        let mut task = JoinSet::new();
        task.spawn(async move { store.fetch(&key, &newest, &wanted).await });
        task
    }
}

fn none(key: &str) -> ObjectError {
    ObjectError::NoSuchKey(key.to_owned())
}

fn got(newest: &Newest, manifest: &Manifest) -> Got {
    let parts = match &manifest.content {
        Content::Parts(parts) => parts.digests.len() as u32,
        Content::Whole(_) | Content::Deleted => 0,
    };
    Got { version: newest.version, bytes: manifest.length(), parts, put_ms: manifest.put_ms }
}

fn wrong(key: &str, version: u64, reason: &str) -> Interrupted {
    let (key, reason) = (key.to_owned(), reason.to_owned());
    Interrupted::Failed(ObjectError::Wrong { key, version, reason })
}

fn unwritable(error: &io::Error) -> ObjectError {
    ObjectError::Host(format!("what was read cannot be written: {}", reason(error)))
}

impl From<ObjectError> for Interrupted {
    fn from(error: ObjectError) -> Interrupted {
        Interrupted::Failed(error)
    }
}

impl From<Error> for Interrupted {
    fn from(error: Error) -> Interrupted {
        Interrupted::Failed(error.into())
    }
}

/// Where the bytes go, and the hash of those that went.
struct Out<K> {
    sink: K,
    hasher: blake3::Hasher,
}

impl<K: Sink> Out<K> {
    fn new(sink: K) -> Out<K> {
        Out { sink, hasher: blake3::Hasher::new() }
    }

    fn into_sink(out: Option<Out<K>>) -> K {
        out.expect("it is away only while something is written").sink
    }

    fn hash(&self) -> Hash {
        (*self.hasher.finalize().as_bytes()).into()
    }

    fn take(&mut self, pieces: &[Bytes]) -> io::Result<()> {
        for piece in pieces {
            self.hasher.update(piece);
            self.sink.write_all(piece)?;
        }
        self.sink.flush()
    }
}

/// Write pieces off the event loop: a pipe may not be read for long.
async fn write<K: Sink>(
    out: &mut Option<Out<K>>,
    pieces: Vec<Bytes>,
    progress: &Progress,
) -> Result<(), Interrupted> {
    let bytes: usize = pieces.iter().map(Bytes::len).sum();
    let mut taken = out.take().expect("it is away only while something is written");
    let written = blocking::run(move || {
        let done = taken.take(&pieces);
        Ok((taken, done))
    });
    let (taken, done) = written.await?;
    *out = Some(taken);
    done.map_err(|error| unwritable(&error))?;
    progress.add(bytes as u64);
    Ok(())
}
