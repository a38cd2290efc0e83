//! Bounded memory: what bodies may take at once, and how they are read into it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::{Buf, Bytes, BytesMut};
use common::wire::{MAX_BODY, RefusalCode};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::api::Refused;
use crate::buffers::{Buffer, Buffers};

/// What one node lets its clients take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest body of a request.
    pub body_bytes: usize,
    /// Bytes of all bodies, of requests and answers, in memory at once.
    pub inflight_bytes: usize,
    /// How long a request waits for its share of these before it is told to come later.
    pub busy_wait: Duration,
    /// How long a body may make no progress, either way; beside it, it moves at 256 KiB a second at least.
    pub stall: Duration,
    /// Connections at once; more wait to be accepted.
    pub connections: usize,
    /// Connections of one peer at once; more are closed.
    pub connections_per_peer: usize,
    /// How long the handshake of TLS may take.
    pub handshake: Duration,
    /// How long a connection may be idle, or take for the head of a request.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            body_bytes: MAX_BODY,
            inflight_bytes: 2 * MAX_BODY,
            busy_wait: Duration::from_secs(5),
            stall: Duration::from_secs(30),
            connections: 1024,
            connections_per_peer: 256,
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(30),
        }
    }
}

/// A body must come and be taken at least this fast, beside one `stall`: it holds memory that others wait for.
pub const SLOWEST_BYTES_PER_SECOND: usize = 256 << 10;

/// Lets bodies in.
pub struct Intake {
    limits: Limits,
    room: Arc<Semaphore>,
    buffers: Arc<Buffers>,
}

/// Bytes and their share of the memory for bodies, given back with the last of them.
pub struct Held {
    bytes: Bytes,
    _share: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Held {
    /// As shared bytes.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

/// Room for a body on its way, and its share of the memory for bodies.
pub struct Reserved {
    /// To be filled.
    pub buffer: Buffer,
    share: OwnedSemaphorePermit,
}

impl Reserved {
    /// As shared bytes.
    pub fn into_bytes(self) -> Bytes {
        Intake::hold(self.buffer.into_bytes(), self.share)
    }
}

impl Intake {
    /// Within `limits`, into `buffers`.
    pub fn new(limits: Limits, buffers: Arc<Buffers>) -> Intake {
        let room = Arc::new(Semaphore::new(limits.inflight_bytes));
        Intake { limits, room, buffers }
    }

    /// How long a connection may be idle.
    pub fn idle(&self) -> Duration {
        self.limits.idle
    }

    /// Read a whole body.
    ///
    /// One that announces too much is refused without being read; one that announces nothing may take the longest.
    pub async fn receive(&self, mut body: Body) -> Result<Bytes, Refused> {
        let announced = body.size_hint().exact();
        let length = announced.map_or(self.limits.body_bytes, |length| length as usize);
        if length > self.limits.body_bytes {
            return Err(self.too_large());
        }
        let share = self.share(length).await?;
        let deadline = Instant::now() + self.patience(length);
        let mut arriving = Arriving { body: &mut body, deadline, stall: self.limits.stall };
        let bytes = match announced {
            Some(_) => self.read_announced(&mut arriving, length).await?,
            None => self.read_unannounced(&mut arriving).await?,
        };
        Ok(Held { bytes, _share: share }.into_bytes())
    }

    /// Room for a body of so many bytes, which come behind `position` others.
    pub async fn reserve(&self, position: usize, bytes: usize) -> Result<Reserved, Refused> {
        if bytes > self.limits.body_bytes {
            return Err(self.too_large());
        }
        let share = self.share(bytes).await?;
        Ok(Reserved { buffer: self.buffers.take_at(position, bytes), share })
    }

    /// How long a body of so many bytes may take to come.
    pub fn patience(&self, bytes: usize) -> Duration {
        self.limits.stall + Duration::from_secs((bytes / SLOWEST_BYTES_PER_SECOND) as u64)
    }

    /// Wait for a share of the memory for bodies.
    pub async fn share(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Refused> {
        let bytes = bytes.min(self.limits.inflight_bytes) as u32;
        if let Ok(share) = self.room.clone().try_acquire_many_owned(bytes) {
            return Ok(share);
        }
        let waiting = self.room.clone().acquire_many_owned(bytes);
        let share = tokio::time::timeout(self.limits.busy_wait, waiting).await;
        let share = share.map_err(|_| Refused::new(RefusalCode::Busy, "too many requests at once"))?;
        Ok(share.expect("the semaphore is never closed"))
    }

    /// Hold `bytes` against `share`.
    pub fn hold(bytes: Bytes, share: OwnedSemaphorePermit) -> Bytes {
        Held { bytes, _share: share }.into_bytes()
    }

    async fn read_announced(&self, body: &mut Arriving<'_>, length: usize) -> Result<Bytes, Refused> {
        let short = || Refused::new(RefusalCode::BadRequest, "the body is shorter than it announced");
        if length == 0 {
            return Ok(Bytes::new());
        }
        let first = body.next().await?.ok_or_else(short)?;
        if first.len() == length {
            return Ok(first);
        }
        let mut buffer = self.buffers.take(length);
        let mut rest = &mut buffer[..];
        let mut piece = first;
        loop {
            if piece.len() > rest.len() {
                return Err(Refused::new(RefusalCode::BadRequest, "the body is longer than it announced"));
            }
            let (filled, left) = rest.split_at_mut(piece.len());
            piece.copy_to_slice(filled);
            rest = left;
            if rest.is_empty() {
                return Ok(buffer.into_bytes());
            }
            piece = body.next().await?.ok_or_else(short)?;
        }
    }

    async fn read_unannounced(&self, body: &mut Arriving<'_>) -> Result<Bytes, Refused> {
        let mut bytes = BytesMut::new();
        while let Some(piece) = body.next().await? {
            if bytes.len() + piece.len() > self.limits.body_bytes {
                return Err(self.too_large());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.freeze())
    }

    fn too_large(&self) -> Refused {
        let limit = self.limits.body_bytes;
        Refused::new(RefusalCode::TooLarge, format!("a body has at most {limit} bytes"))
    }
}

/// A body on its way, and how long it may take.
struct Arriving<'a> {
    body: &'a mut Body,
    deadline: Instant,
    stall: Duration,
}

impl Arriving<'_> {
    /// The next piece; none at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Refused> {
        loop {
            let until = self.deadline.min(Instant::now() + self.stall);
            let frame = timeout_at(until, self.body.frame()).await;
            let frame = frame.map_err(|_| Refused::new(RefusalCode::TooSlow, "the body came too slowly"))?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| {
                Refused::new(RefusalCode::BadRequest, format!("the body broke off: {error}"))
            })?;
            // What is no data is trailers, which nobody asked for.
            if let Ok(piece) = frame.into_data() {
                return Ok(Some(piece));
            }
        }
    }
}
