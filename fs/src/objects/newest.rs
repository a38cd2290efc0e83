//! Which version of a key is the newest: what a quorum of its nodes says.

use std::collections::BTreeMap;
use std::time::Duration;

use common::hash::Hash;
use common::quorum::Quorums;
use common::wire::LatestVersion;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep, timeout_at};

use super::{MAX_VERSION, ObjectError, ObjectStore, Seat, of_node, reasons};
use crate::transport::{NodeAddress, TransportError};

/// The longest a node may take for this question; the others are enough then.
const QUESTION_LIMIT: Duration = Duration::from_secs(5);
/// How long the last nodes are waited for once n - f have answered.
const GRACE: Duration = Duration::from_millis(300);
/// How long nodes that say different things are asked again, as they may be about to agree.
const SETTLING: Duration = Duration::from_secs(2);
/// Between two times of asking.
const PAUSE: Duration = Duration::from_millis(100);

/// The newest version of a key that is verified, by the word of f + 1 nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Newest {
    pub(super) version: u64,
    /// The digest of its FPCC.
    pub(super) digest: Hash,
    /// Whether f + 1 nodes say it has as many bytes as a tombstone.
    pub(super) deleted: bool,
}

/// A version that a node says it has verified.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Claim {
    version: u64,
    digest: Hash,
}

/// What the nodes of a group said, one time of asking.
struct Tally {
    quorums: Quorums,
    answers: Vec<Said>,
    silent: Vec<(NodeAddress, String)>,
}

/// What one node said.
struct Said {
    highest: u64,
    claim: Option<Claim>,
    length: Option<u64>,
}

impl Said {
    fn read(latest: LatestVersion) -> Result<Said, TransportError> {
        let Some(verified) = latest.verified else {
            return Ok(Said { highest: latest.highest, claim: None, length: None });
        };
        let wrong = |_| TransportError::Garbage("a digest that is none".into());
        let digest = verified.fpcc.parse().map_err(wrong)?;
        let highest = latest.highest.max(verified.version);
        let claim = Some(Claim { version: verified.version, digest });
        Ok(Said { highest, claim, length: verified.object_length })
    }
}

impl Tally {
    fn new(quorums: Quorums) -> Tally {
        Tally { quorums, answers: Vec::new(), silent: Vec::new() }
    }

    fn take(&mut self, seat: &Seat, said: Result<Said, TransportError>) {
        match said {
            Ok(said) => self.answers.push(said),
            Err(error) => self.silent.push((seat.address.clone(), error.to_string())),
        }
    }

    fn honest(&self) -> usize {
        self.quorums.code().n() - self.quorums.faults()
    }

    fn is_whole(&self) -> bool {
        self.answers.len() == self.quorums.code().n()
    }

    /// The highest version that f + 1 nodes report with one digest.
    fn agreed(&self) -> Option<Newest> {
        let mut lengths: BTreeMap<Claim, Vec<Option<u64>>> = BTreeMap::new();
        for said in &self.answers {
            if let Some(claim) = said.claim {
                lengths.entry(claim).or_default().push(said.length);
            }
        }
        let enough = self.quorums.report();
        let (claim, lengths) = lengths.into_iter().rev().find(|(_, said)| said.len() >= enough)?;
        let short = lengths.iter().filter(|length| **length == Some(common::wire::TOMBSTONE_BYTES));
        let deleted = short.count() >= enough;
        Some(Newest { version: claim.version, digest: claim.digest, deleted })
    }

    /// Whether somebody claims what no f + 1 agree on, and it would be newer than what they do.
    fn is_disputed(&self) -> bool {
        let agreed = self.agreed().map_or(0, |newest| newest.version);
        self.answers.iter().filter_map(|said| said.claim).any(|claim| claim.version > agreed)
    }

    /// Whether no other answer could tell of a version that was stored before this was asked.
    ///
    /// Of what was stored f + 1 honest nodes know. All of those are among n answers, and one at least among n - f; if
    /// nobody there claims more than what is agreed on, there was no more.
    fn is_certain(&self) -> bool {
        let claims = self.answers.iter().filter(|said| said.claim.is_some()).count();
        let settled = self.agreed().is_some() || claims <= self.quorums.faults();
        (self.is_whole() && settled) || (self.answers.len() >= self.honest() && !self.is_disputed())
    }

    /// The (f + 1)-th greatest of the highest versions heard of: f liars cannot push it further than an honest node says.
    fn heard_of(&self) -> Option<u64> {
        let mut highest: Vec<u64> = self.answers.iter().map(|said| said.highest).collect();
        highest.sort_unstable_by(|one, other| other.cmp(one));
        highest.get(self.quorums.faults()).copied()
    }

    fn silent(&self) -> String {
        reasons(self.silent.iter().map(|(address, why)| (address, why)))
    }

    fn too_few(&self, needed: usize) -> ObjectError {
        let (n, answered) = (self.quorums.code().n(), self.answers.len());
        let sentence = format!("{answered} of {n} nodes answer, {needed} are needed: {}", self.silent());
        ObjectError::TooFewNodes(sentence)
    }
}

impl ObjectStore {
    /// The newest version of a key; none if there was never one.
    pub(super) async fn newest(&self, key: &str) -> Result<Option<Newest>, ObjectError> {
        let settled = Instant::now() + SETTLING;
        loop {
            let tally = self.ask_group(key, Tally::is_certain).await;
            let agreed = tally.agreed();
            if tally.is_certain() {
                return Ok(agreed);
            }
            let is_over = Instant::now() >= settled;
            match agreed {
                // Nodes are down: what the others agree on is all that can be had.
                Some(newest) if is_over || !tally.is_disputed() => return Ok(Some(newest)),
                None if tally.answers.len() < tally.honest() => return Err(tally.too_few(tally.honest())),
                None if is_over => return Err(undecided(key, &tally)),
                _ => sleep(PAUSE).await,
            }
        }
    }

    /// The version that a put takes: one more than the group has heard of.
    pub(super) async fn next_version(&self, key: &str) -> Result<u64, ObjectError> {
        let tally = self.ask_group(key, |_| false).await;
        let needed = tally.quorums.echo();
        let heard_of = tally.heard_of().filter(|_| tally.answers.len() >= needed);
        let next = heard_of.ok_or_else(|| tally.too_few(needed))?.saturating_add(1);
        match next <= MAX_VERSION {
            true => Ok(next),
            false => Err(ObjectError::Conflict { key: key.to_owned(), version: next }),
        }
    }

    /// Ask every node of a key, until all have answered, `enough` is, or the last ones take longer than the others.
    async fn ask_group(&self, key: &str, enough: impl Fn(&Tally) -> bool) -> Tally {
        let (group, name) = (self.group(key), self.full_name(key));
        let limit = QUESTION_LIMIT.min(self.options.io_limit);
        let name = name.as_str();
        let ask = |seat| async move { (seat, self.latest(seat, name, limit).await) };
        let mut asked: FuturesUnordered<_> = group.iter().map(ask).collect();
        let mut tally = Tally::new(self.members.quorums());
        let mut end = Instant::now() + limit;
        while let Ok(Some((seat, said))) = timeout_at(end, asked.next()).await {
            tally.take(seat, said);
            if enough(&tally) {
                break;
            }
            if tally.answers.len() == tally.honest() {
                end = end.min(Instant::now() + GRACE);
            }
        }
        tally
    }

    async fn latest(&self, seat: &Seat, name: &str, limit: Duration) -> Result<Said, TransportError> {
        let answer = self.transport.latest(&seat.address, name, limit).await;
        let said = answer.and_then(|answer| of_node(seat, answer)).and_then(Said::read);
        if said.is_err() {
            self.standing.failed(seat.node);
        }
        said
    }
}

fn undecided(key: &str, tally: &Tally) -> ObjectError {
    let (enough, n) = (tally.quorums.report(), tally.quorums.code().n());
    ObjectError::TooFewNodes(format!("no {enough} of the {n} nodes of {key} agree on its newest version yet"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(claims: &[Option<(u64, u8)>]) -> Tally {
        let mut tally = Tally::new(Quorums::of("3+2".parse().unwrap()).unwrap());
        tally.answers = claims.iter().copied().map(said).collect();
        tally
    }

    fn said(claim: Option<(u64, u8)>) -> Said {
        let claim = claim.map(|(version, digest)| Claim { version, digest: Hash::from([digest; 32]) });
        Said { highest: claim.map_or(0, |claim| claim.version), claim, length: None }
    }

    fn version(tally: &Tally) -> Option<u64> {
        tally.agreed().map(|newest| newest.version)
    }

    const ONE: Option<(u64, u8)> = Some((1, 1));
    const TWO: Option<(u64, u8)> = Some((2, 2));
    const FAR: Option<(u64, u8)> = Some((9, 9));

    #[test]
    fn what_two_of_five_report_is_the_newest_and_what_one_does_is_not() {
        assert_eq!(version(&tally(&[ONE, ONE, TWO, TWO, FAR])), Some(2));
        assert_eq!(version(&tally(&[ONE, ONE, ONE, ONE, FAR])), Some(1));
        assert_eq!(version(&tally(&[None, None, None, None, FAR])), None);
        assert_eq!(version(&tally(&[Some((2, 1)), Some((2, 2)), ONE, ONE, None])), Some(1));
    }

    #[test]
    fn an_answer_is_certain_when_nothing_that_was_stored_can_be_missing_from_it() {
        // Three stored the second version, of which one lies and one does not answer.
        assert!(!tally(&[ONE, TWO, ONE, ONE]).is_certain());
        assert!(tally(&[ONE, ONE, ONE, ONE]).is_certain());
        assert!(tally(&[ONE, ONE, ONE, ONE, FAR]).is_certain());
        assert!(!tally(&[ONE, ONE, ONE]).is_certain());
        assert!(tally(&[None, None, None, None]).is_certain());
        assert!(tally(&[None, None, None, None, FAR]).is_certain());
        assert!(!tally(&[None, None, None, ONE, TWO]).is_certain());
    }

    #[test]
    fn one_liar_does_not_push_the_next_version() {
        assert_eq!(tally(&[FAR, TWO, TWO, TWO]).heard_of(), Some(2));
        assert_eq!(tally(&[TWO, ONE, ONE, ONE]).heard_of(), Some(1));
        assert_eq!(tally(&[TWO]).heard_of(), None);
    }
}
