//! One instance from its n nodes: any m fragments that fit its digest, from whoever gives them first.

use std::time::Duration;

use bytes::Bytes;
use common::codec::Codec;
use common::fpcc::{Checked, Fpcc, decode};
use common::hash::Hash;
use common::members::split_name;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::disperse::describe;
use super::newest::Newest;
use super::{Instance, ObjectError, ObjectStore, Seat, of_node, reasons};
use crate::blocking;
use crate::transport::{NodeAddress, TransportError};

/// After so long without m fragments one more node is asked.
const HEDGE: Duration = Duration::from_millis(300);
/// Before nodes that could not give enough are asked again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What is to be read.
pub(super) struct Wanted {
    pub(super) instance: Instance,
    pub(super) digest: Hash,
    /// Bytes it must have, or at most.
    pub(super) length: Length,
}

/// How long something may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Length {
    Exactly(u64),
    AtMost(u64),
}

/// Why an instance could not be read.
pub(super) enum Interrupted {
    /// Another version is the newest now, so the nodes may have deleted this one.
    Superseded,
    Failed(ObjectError),
}

/// What the nodes gave if it is too little: who said what.
#[derive(Default)]
struct Shortage {
    good: usize,
    said: Vec<(NodeAddress, String)>,
}

/// A checked fragment, and how long what it is of is.
type Found = (Checked, u64);

impl Length {
    fn allows(self, found: u64) -> bool {
        match self {
            Length::Exactly(length) => found == length,
            Length::AtMost(length) => found <= length,
        }
    }
}

impl ObjectStore {
    /// The bytes of an instance, in m pieces; asked for again until the limit, as nodes may be about to complete it.
    pub(super) async fn fetch(
        &self,
        key: &str,
        of: &Newest,
        wanted: &Wanted,
    ) -> Result<Vec<Bytes>, Interrupted> {
        let end = Instant::now() + self.options.io_limit;
        let mut pause = FIRST_PAUSE;
        loop {
            let mut shortage = Shortage::default();
            if let Ok(Some(pieces)) = timeout_at(end, self.gather(wanted, &mut shortage)).await {
                return of_length(wanted, pieces);
            }
            if let Ok(Ok(newest)) = timeout_at(end, self.newest(key)).await
                && newest.is_none_or(|newest| (newest.version, newest.digest) != (of.version, of.digest))
            {
                return Err(Interrupted::Superseded);
            }
            if Instant::now() + pause >= end {
                return Err(Interrupted::Failed(self.too_few(wanted, &shortage)));
            }
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(2 * pause);
        }
    }

    fn too_few(&self, wanted: &Wanted, shortage: &Shortage) -> ObjectError {
        let (good, m) = (shortage.good, self.members.code().m());
        let said = reasons(shortage.said.iter().map(|(address, why)| (address, why)));
        let what = describe(&wanted.instance);
        ObjectError::TooFewNodes(format!("{good} good fragments of {what}, {m} are needed: {said}"))
    }

    /// Ask m nodes, and one more for each that fails or is slow.
    async fn gather(&self, wanted: &Wanted, shortage: &mut Shortage) -> Option<Vec<Bytes>> {
        let m = self.members.code().m();
        let group = self.in_order_of_trust(&wanted.instance.name);
        let mut waiting = group.iter();
        let mut asked: FuturesUnordered<_> =
            waiting.by_ref().take(m).map(|seat| self.ask_checked(seat, wanted)).collect();
        let mut found = Vec::<Found>::new();
        let (mut hedge, mut overdue) = (Instant::now() + HEDGE, 0);
        while found.len() < m {
            tokio::select! {
                biased;
                answer = asked.next() => match answer {
                    Some((_, Ok(fragment))) => {
                        shortage.good += 1;
                        found.push(fragment);
                    }
                    Some((seat, Err(error))) => {
                        shortage.said.push((seat.address.clone(), error.to_string()));
                        asked.extend(waiting.next().map(|seat| self.ask_checked(seat, wanted)));
                    }
                    None => return None,
                },
                () = sleep_until(hedge), if waiting.len() > 0 => {
                    overdue = group.len() - waiting.len();
                    asked.extend(waiting.next().map(|seat| self.ask_checked(seat, wanted)));
                    hedge = Instant::now() + HEDGE;
                }
            }
        }
        drop(asked);
        // Whoever was too slow for this one is asked last for the next.
        let has_answered = |seat: &&Seat| {
            found.iter().any(|(fragment, _)| fragment.index() == seat.index)
                || shortage.said.iter().any(|(address, _)| *address == seat.address)
        };
        group[..overdue]
            .iter()
            .filter(|seat| !has_answered(seat))
            .for_each(|seat| self.standing.failed(seat.node));
        let decoded = self.decode(found).await;
        decoded.map_err(|why| shortage.said.push((NodeAddress("here".to_owned()), why))).ok()
    }

    /// Data fragments first: when none is missing there is nothing to decode. Who lied or failed comes last.
    fn in_order_of_trust(&self, name: &str) -> Vec<Seat> {
        let mut group = self.group(name);
        group.sort_by_key(|seat| self.standing.doubt(seat.node));
        group
    }

    async fn ask_checked<'a>(
        &self,
        seat: &'a Seat,
        wanted: &Wanted,
    ) -> (&'a Seat, Result<Found, TransportError>) {
        let asked = self.ask(seat, wanted).await;
        match &asked {
            Ok(_) => self.standing.served(seat.node),
            Err(TransportError::Garbage(_)) => self.standing.lied(seat.node),
            Err(TransportError::Unreachable(_) | TransportError::TimedOut(_)) => {
                self.standing.failed(seat.node);
            }
            // It may have to complete it yet.
            Err(TransportError::Refused { .. }) => {}
        }
        (seat, asked)
    }

    async fn ask(&self, seat: &Seat, wanted: &Wanted) -> Result<Found, TransportError> {
        let name = self.fragment_name(&wanted.instance, seat.index);
        let answer = self.transport.fragment(&seat.address, &name, self.options.io_limit).await;
        let raw = of_node(seat, answer?)?;
        let (code, digest, index) = (self.members.code(), wanted.digest, seat.index);
        let checked = blocking::run(move || {
            let check = || {
                let fpcc = Fpcc::parse(&raw.fpcc).map_err(|error| error.to_string())?;
                if fpcc.digest() != digest || fpcc.code() != code {
                    return Err("it gave a fragment of something else".to_owned());
                }
                let fragment = fpcc.check(index, raw.fragment).map_err(|error| error.to_string())?;
                Ok((fragment, fpcc.object_length()))
            };
            Ok(check())
        });
        let checked = checked.await.map_err(|error| TransportError::Unreachable(error.to_string()))?;
        checked.map_err(TransportError::Garbage)
    }

    /// The object that checked fragments are of, without the zeros that fill up the last ones.
    async fn decode(&self, found: Vec<Found>) -> Result<Vec<Bytes>, String> {
        let code = self.members.code();
        let length = found.first().map_or(0, |(_, length)| *length);
        let checked: Vec<Checked> = found.into_iter().map(|(checked, _)| checked).collect();
        let every: Vec<usize> = (0..code.m()).collect();
        let decoded = blocking::run(move || Ok(decode(&Codec::of(code), &checked, &every)));
        let pieces = decoded.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        let mut left = length as usize;
        let trimmed = pieces.into_iter().map(|mut piece| {
            piece.truncate(left);
            left -= piece.len();
            piece
        });
        Ok(trimmed.collect())
    }
}

/// What nodes agreed on has the length its owner put it with, or it is the owner who broke the rules.
fn of_length(wanted: &Wanted, pieces: Vec<Bytes>) -> Result<Vec<Bytes>, Interrupted> {
    let found = pieces.iter().map(|piece| piece.len() as u64).sum();
    if wanted.length.allows(found) {
        return Ok(pieces);
    }
    let (key, _) = split_name(&wanted.instance.name);
    let reason = format!("{} has {found} bytes", describe(&wanted.instance));
    let (key, version) = (key.to_owned(), wanted.instance.version);
    Err(Interrupted::Failed(ObjectError::Wrong { key, version, reason }))
}
