//! One instance at one node: a fragment or a word in, what to keep, note, say and answer out.
//!
//! The rules are those of docs/dispersal.md, by their numbers.

use common::hash::Hash;
use common::quorum::Quorums;

use super::group::{Dispersed, Group};
use super::said::Said;
use super::word::Word;

/// What a node knows of an instance: what it has said, what it holds, and what others told it.
///
/// Only the votes are lost when it is forgotten: the rest is what `Recalled` brings back.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Instance {
    said: Said,
    /// The digest of the FPCC under which the own fragment is on stable storage.
    held: Option<Hash>,
    /// The same of one that is on its way there.
    arriving: Option<Hash>,
    /// Of each node at most one of each kind, in order.
    votes: Vec<Vote>,
}

/// What the disk has of an instance.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Recalled {
    /// What the node has said, if anything.
    pub said: Option<Said>,
    /// The digest of the FPCC under which its own fragment is kept, if it is.
    pub held: Option<Hash>,
}

/// What follows from a fragment or a word. Its fields are carried out from the first to the last.
///
/// The steps of one instance are carried out in the order in which they came. `keep` and `persist` are on stable storage
/// before anything is said or answered, in any order: one flush may cover both. If that fails, neither this step nor a
/// later one of this instance is carried out, and the instance is forgotten.
#[must_use]
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Step {
    /// The node's own fragment, to be kept instead of one under another FPCC.
    pub keep: Option<Dispersed>,
    /// What the node says from now on.
    pub persist: Option<Said>,
    /// Words to every other node of the group.
    pub say: Vec<Word>,
    /// Words to who asked, alone.
    pub answer: Vec<Word>,
    /// To be completed: fetch the FPCC of this digest and m fragments that fit it, rebuild the own one, keep it.
    pub complete: Option<Hash>,
    /// The instance is verified: clients that brought this digest are told `stored`, others that there is another.
    pub stored: Option<Hash>,
}

/// Why a fragment or a word changes nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// Another object has this name already, or is about to.
    #[error("this version is another object's, of FPCC {0}")]
    Conflict(Hash),
    /// The speaker has no vote.
    #[error("the node that says so is not one of the object's")]
    Stranger,
    /// It said another digest before, which no honest node does.
    #[error("a node contradicts itself: it said {first}, and now {second}")]
    Contradiction {
        /// What counts.
        first: Hash,
        /// What does not.
        second: Hash,
    },
    /// The instance began among the nodes of another configuration.
    #[error("the object belongs to another configuration of the pool")]
    OtherConfiguration,
    /// What the node has said cannot be read.
    #[error("what this node has said of the object cannot be read")]
    Unreadable,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum Kind {
    Echo,
    Ready,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
struct Vote {
    from: u8,
    kind: Kind,
    digest: Hash,
}

impl Step {
    /// Whether something must be on stable storage before anything is said.
    pub fn needs_disk(&self) -> bool {
        self.keep.is_some() || self.persist.is_some()
    }

    /// Whether that must also have been flushed. A step that verifies, and neither keeps nor says anything, needs not: what
    /// f + 1 honest nodes have flushed leads to it again.
    pub fn needs_flush(&self) -> bool {
        let only_verifies = self.keep.is_none()
            && self.say.is_empty()
            && self.answer.is_empty()
            && self.persist.as_ref().is_some_and(|said| said.verified().is_some());
        self.needs_disk() && !only_verifies
    }
}

impl Instance {
    /// An instance of the group as the disk has it, nobody's votes known.
    pub fn recall(group: &Group, recalled: Recalled) -> Result<Instance, Refused> {
        let said = recalled.said.unwrap_or_else(|| Said::nothing(group.configuration()));
        if said.configuration() != group.configuration() {
            return Err(Refused::OtherConfiguration);
        }
        Ok(Instance { said, held: recalled.held, arriving: None, votes: Vec::new() })
    }

    /// What the node has said.
    pub fn said(&self) -> &Said {
        &self.said
    }

    /// Rule 1: a client brings the node's own fragment.
    ///
    /// The same again is kept and echoed again if the fragment was lost, and changes nothing otherwise.
    pub fn disperse(&mut self, group: &Group, dispersed: Dispersed) -> Result<Step, Refused> {
        debug_assert_eq!(dispersed.fragment().index(), group.own(), "a node is given its own fragment");
        let digest = dispersed.digest();
        self.settled_on_another(digest).map_or(Ok(()), |other| Err(Refused::Conflict(other)))?;
        let mut step = Step::default();
        if self.held != Some(digest) && self.arriving != Some(digest) {
            self.arriving = Some(digest);
            step.keep = Some(dispersed);
        }
        if self.said.verified().is_some() {
            step.stored = Some(digest);
            return Ok(step);
        }
        if self.said.echoed().is_none() {
            self.said.echo(digest);
            step.persist = Some(self.said.clone());
        }
        if step.needs_disk() {
            step.say.push(Word::Echo(digest));
        }
        Ok(step)
    }

    /// What a step wanted kept and noted is on stable storage. What follows is a step of its own.
    ///
    /// Only now the own echo counts: a ready that rests on it must not outlive the fragment, and of what one flush covers
    /// a crash may leave either.
    pub fn persisted(&mut self, group: &Group, step: &Step) -> Step {
        let mut next = Step::default();
        if let Some(kept) = &step.keep {
            self.held = Some(kept.digest());
            self.arriving = self.arriving.filter(|arriving| *arriving != kept.digest());
        }
        if let Some(echoed) = self.said.echoed().filter(|echoed| self.held == Some(*echoed)) {
            self.count(group.quorums(), echoed, &mut next);
        }
        next
    }

    /// Another digest than this one that the node has said something about. Once verified only that one counts.
    fn settled_on_another(&self, digest: Hash) -> Option<Hash> {
        let settled = match self.said.verified() {
            Some(verified) => [Some(verified), None],
            None => [self.said.echoed(), self.said.readied()],
        };
        settled.into_iter().flatten().find(|settled| *settled != digest)
    }

    /// What node `from`, which is another one, says.
    pub fn hear(&mut self, group: &Group, from: usize, word: Word) -> Result<Step, Refused> {
        let mut step = Step::default();
        let (kind, digest) = match word {
            Word::Echo(digest) => (Kind::Echo, digest),
            Word::Ready(digest) => (Kind::Ready, digest),
            Word::Ask => {
                step.answer = self.said.words(self.held);
                return Ok(step);
            }
        };
        if from == group.own() {
            return Err(Refused::Stranger);
        }
        if !self.is_past_votes_of(kind) && self.note(Vote { from: from as u8, kind, digest })? {
            self.count(group.quorums(), digest, &mut step);
        }
        Ok(step)
    }

    /// Whether votes of this kind lead to nothing any more.
    fn is_past_votes_of(&self, kind: Kind) -> bool {
        self.said.verified().is_some() || (kind == Kind::Echo && self.said.readied().is_some())
    }

    /// Rule 6: whether the vote is new.
    fn note(&mut self, vote: Vote) -> Result<bool, Refused> {
        let place =
            self.votes.binary_search_by_key(&(vote.from, vote.kind), |noted| (noted.from, noted.kind));
        match place {
            Ok(at) if self.votes[at].digest == vote.digest => Ok(false),
            Ok(at) => Err(Refused::Contradiction { first: self.votes[at].digest, second: vote.digest }),
            Err(at) => {
                self.votes.insert(at, vote);
                Ok(true)
            }
        }
    }

    /// Rules 2 to 4, after one more said `digest`.
    fn count(&mut self, quorums: Quorums, digest: Hash, step: &mut Step) {
        let (echoes, readies) = (self.echoes(digest), self.readies(digest));
        if self.said.readied().is_none() && (echoes >= quorums.echo() || readies >= quorums.amplify()) {
            self.said.ready(digest);
            self.votes.retain(|vote| vote.kind == Kind::Ready);
            step.persist = Some(self.said.clone());
            step.say.push(Word::Ready(digest));
        }
        let is_ready = self.said.readied() == Some(digest) && self.said.verified().is_none();
        if is_ready && self.readies(digest) >= quorums.commit() {
            self.said.verify();
            self.votes = Vec::new();
            step.persist = Some(self.said.clone());
            step.complete = self.lacking();
            step.stored = Some(digest);
        }
    }

    /// How many nodes, this one among them, say that they hold fragments of `digest`.
    fn echoes(&self, digest: Hash) -> usize {
        let is_own = self.said.echoed() == Some(digest) && self.held == Some(digest);
        self.votes_for(Kind::Echo, digest) + usize::from(is_own)
    }

    fn readies(&self, digest: Hash) -> usize {
        self.votes_for(Kind::Ready, digest) + usize::from(self.said.readied() == Some(digest))
    }

    fn votes_for(&self, kind: Kind, digest: Hash) -> usize {
        self.votes.iter().filter(|vote| vote.kind == kind && vote.digest == digest).count()
    }

    /// What is verified while the node has no fragment of it.
    fn lacking(&self) -> Option<Hash> {
        let has = |digest: Hash| [self.held, self.arriving].contains(&Some(digest));
        self.said.verified().filter(|verified| !has(*verified))
    }

    /// What to do about it after a restart, and from time to time while it is open: words may have been lost.
    pub fn remind(&self) -> Step {
        let mut say = self.said.words(self.held);
        if self.said.is_open() {
            say.push(Word::Ask);
        }
        Step { say, complete: self.lacking(), ..Step::default() }
    }

    /// The nodes with votes here, each once.
    pub fn voters(&self) -> Vec<usize> {
        let mut voters: Vec<usize> = self.votes.iter().map(|vote| vote.from.into()).collect();
        voters.dedup();
        voters
    }

    /// Forget what one node said; it counts again when it says it again.
    pub fn forget_votes(&mut self, from: usize) {
        self.votes.retain(|vote| usize::from(vote.from) != from);
    }
}

#[cfg(test)]
mod model;
