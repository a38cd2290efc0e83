//! What the node lacks: fragments of what others verified, rebuilt from theirs, and news that it missed.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use common::codec::Codec;
use common::fpcc::{Checked, Fpcc, decode};
use common::hash::Hash;
use common::wire::{BOOT_HEADER, FROM_HEADER, MAC_HEADER, NEXT_HEADER, NodeId, split_fragment_body};
use http::{Request, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::{Notify, Semaphore, mpsc};

use super::notes::fragment_key;
use super::{CATCH_UP, COMPLETING, Inner};
use crate::blocking;
use crate::dispersal::{Dispersed, Group, InstanceId};

/// Before an attempt, at first and at most. Others may have agreed before the client's own fragment for this node is
/// here: to fetch m of theirs would be much work for nothing.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// A fragment that is to be rebuilt.
#[derive(Clone)]
pub struct Lacking {
    id: InstanceId,
    group: Arc<Group>,
    digest: Hash,
    pause: Duration,
}

impl Lacking {
    /// Of an object of this FPCC.
    pub fn new(id: InstanceId, group: Arc<Group>, digest: Hash) -> Lacking {
        Lacking { id, group, digest, pause: PAUSES.0 }
    }
}

/// Rebuild what is lacking, a few at a time, until each is here or not wanted any more.
pub async fn complete_all(inner: Weak<Inner>, mut queue: mpsc::UnboundedReceiver<Lacking>) {
    let places = Arc::new(Semaphore::new(COMPLETING));
    while let Some(lacking) = queue.recv().await {
        let (inner, places) = (inner.clone(), places.clone());
        tokio::spawn(async move {
            tokio::time::sleep(lacking.pause).await;
            let _place = places.acquire_owned().await.expect("the semaphore is never closed");
            let Some(inner) = inner.upgrade() else { return };
            if !inner.complete(&lacking).await {
                let later = Lacking { pause: (lacking.pause * 2).min(PAUSES.1), ..lacking };
                // Nobody takes it when the node ends.
                let _ = inner.lacking.send(later);
            }
        });
    }
}

impl Inner {
    /// Whether the fragment is here now, or not wanted any more.
    async fn complete(self: &Arc<Self>, lacking: &Lacking) -> bool {
        let Lacking { id, group, digest, .. } = lacking;
        if self.state.lock().names.is_superseded(id) || self.held(id, group) == Some(*digest) {
            return true;
        }
        let Some((fpcc, fragments)) = self.gather(lacking).await else {
            tracing::debug!(%id, "too few fragments to rebuild this node's own");
            return false;
        };
        let (own, for_check) = (group.own(), group.clone());
        let rebuilt = blocking::run(move || {
            let fragment = decode(&Codec::of(fpcc.code()), &fragments, &[own]).ok()?.pop()?;
            Dispersed::check(&for_check, fpcc, fragment).ok()
        });
        let Some(dispersed) = rebuilt.await else {
            // Whoever encoded it gave a hash of garbage for this index.
            tracing::warn!(%id, "this node's fragment can never be rebuilt: the object was encoded wrongly");
            return true;
        };
        let mut state = self.state.lock();
        let refused = self.change(&mut state, id, group, None, |dispersals| {
            dispersals.disperse(id, group, dispersed, || self.recall(id, group))
        });
        refused.is_none()
    }

    /// m fragments of others that fit the FPCC of the digest.
    async fn gather(&self, lacking: &Lacking) -> Option<(Fpcc, Vec<Checked>)> {
        let group = &lacking.group;
        let mut found: Option<Fpcc> = None;
        let mut fragments = Vec::new();
        for (index, node) in group.members().iter().enumerate().filter(|(index, _)| *index != group.own()) {
            let Some((fpcc, fragment)) = self.fetch(*node, &lacking.id, index).await else { continue };
            if fpcc.digest() != lacking.digest {
                continue;
            }
            let known = found.get_or_insert(fpcc);
            fragments.extend(known.check(index, fragment).ok());
            if fragments.len() == known.code().m() {
                return found.map(|fpcc| (fpcc, fragments));
            }
        }
        None
    }

    async fn fetch(&self, node: NodeId, id: &InstanceId, index: usize) -> Option<(Fpcc, Bytes)> {
        let key = fragment_key(id);
        let key = utf8_percent_encode(&key, NON_ALPHANUMERIC);
        let path = format!("/objects/{key}/{}/fragment/{index}", id.version());
        let request = Request::get(path).body(Bytes::new()).expect("an encoded path");
        let answer = self.link.carry(self.members.find(node)?, request).await.ok()?;
        if answer.status() != StatusCode::OK {
            return None;
        }
        let (fpcc, fragment) = split_fragment_body(answer.into_body()).ok()?;
        Some((Fpcc::parse(&fpcc).ok()?, fragment))
    }

    /// Hear what a peer verified after a place; the place up to which it told, and in which run of it.
    async fn news_of(&self, peer: NodeId, after: u64) -> Option<Place> {
        let request = Request::get(format!("/words/verified?after={after}"));
        let request = request.header(FROM_HEADER, self.own.to_string()).body(Bytes::new()).ok()?;
        let answer = self.link.carry(self.members.find(peer)?, request).await.ok()?;
        if answer.status() != StatusCode::OK {
            return None;
        }
        let header = |name: &str| answer.headers().get(name)?.to_str().ok().map(str::to_owned);
        let mac = header(MAC_HEADER)?.parse().ok()?;
        let place = Place { boot: header(BOOT_HEADER), number: header(NEXT_HEADER)?.parse().ok()? };
        self.hear(peer, mac, answer.into_body()).ok()?;
        Some(place)
    }
}

/// A place in the order in which a peer verified; it belongs to one run of the peer.
#[derive(Default)]
struct Place {
    boot: Option<String>,
    number: u64,
}

/// Hear what a peer has verified, at the beginning, after it was away, and from time to time.
pub async fn catch_up(inner: Arc<Inner>, peer: NodeId, came_back: Arc<Notify>) {
    let mut known = Place::default();
    loop {
        while let Some(place) = inner.news_of(peer, known.number).await {
            let is_all = place.number == known.number && place.boot == known.boot;
            // What it told after a place of another run is the rest of something else.
            let number = if known.boot.is_some() && place.boot != known.boot { 0 } else { place.number };
            known = Place { number, ..place };
            if is_all {
                break;
            }
        }
        let _ = tokio::time::timeout(CATCH_UP, came_back.notified()).await;
    }
}
