//! How nodes agree on one object for each name: messages in, messages out. No socket, no disk, no clock.
//!
//! docs/dispersal.md has the rules, the bytes, and why memory is bounded whatever peers and clients do.

mod group;
mod instance;
mod queue;
mod said;
mod word;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use common::wire::NodeId;

pub use group::{Dispersed, Group, NoGroup, Unfit};
pub use instance::{Recalled, Refused, Step};
pub use said::{NotSaid, Said};
pub use word::{InstanceId, Message, Messages, Word};

use instance::Instance;
use queue::Queue;

/// How much is kept in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Instances that one peer's votes may lie in at once.
    pub votes_per_peer: usize,
    /// Open instances that the node is reminded of.
    pub pending: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { votes_per_peer: 4096, pending: 4096 }
    }
}

/// Every instance that a node has in memory.
///
/// What it has said of others is on disk: each verb that may need it is given `recall`, which reads that, and is called
/// only for an instance that is not in memory. A `recall` that cannot tell returns nothing, and the verb is refused:
/// a node that does not know what it said says nothing.
#[derive(Debug, Default)]
pub struct Dispersals {
    limits: Limits,
    known: HashMap<Arc<InstanceId>, Known>,
    /// For each peer the instances that its votes lie in.
    ballots: HashMap<NodeId, Queue>,
    /// Instances to be reminded of.
    pending: Queue,
    /// Where the next reminder begins.
    reminded: u64,
}

#[derive(Debug)]
struct Known {
    group: Arc<Group>,
    instance: Instance,
    /// Steps whose fragment or words are on their way to the disk.
    under_way: usize,
}

/// What to do about one instance, among these nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reminder {
    /// The instance.
    pub id: Arc<InstanceId>,
    /// Its nodes.
    pub group: Arc<Group>,
    /// What to say to them again.
    pub step: Step,
}

impl Dispersals {
    /// None yet.
    pub fn new(limits: Limits) -> Dispersals {
        Dispersals { limits, ..Dispersals::default() }
    }

    /// A client brings this node's own fragment of an instance.
    pub fn disperse(
        &mut self,
        id: &InstanceId,
        group: &Arc<Group>,
        dispersed: Dispersed,
        recall: impl FnOnce() -> Option<Recalled>,
    ) -> Result<Step, Refused> {
        self.change(id, group, recall, |instance| instance.disperse(group, dispersed))
    }

    /// An authenticated node says something about an instance.
    pub fn hear(
        &mut self,
        from: NodeId,
        id: &InstanceId,
        group: &Arc<Group>,
        word: Word,
        recall: impl FnOnce() -> Option<Recalled>,
    ) -> Result<Step, Refused> {
        let index = group.index_of(from).ok_or(Refused::Stranger)?;
        let step = self.change(id, group, recall, |instance| instance.hear(group, index, word));
        self.hold_to_share(from);
        step
    }

    /// After a restart, for an instance of which the node has said something: what to say again and to complete.
    ///
    /// Of one that is in memory, what is in memory counts.
    pub fn resume(
        &mut self,
        id: &InstanceId,
        group: &Arc<Group>,
        recalled: Recalled,
    ) -> Result<Step, Refused> {
        self.change(id, group, || Some(recalled), |instance| Ok(instance.remind()))
    }

    /// Up to `most` open instances, each in its turn.
    pub fn remind(&mut self, most: usize) -> Vec<Reminder> {
        let (ids, place) = self.pending.turn(self.reminded, most);
        self.reminded = place;
        let reminder = |id: Arc<InstanceId>| {
            let known = self.known.get(&id)?;
            Some(Reminder { group: known.group.clone(), step: known.instance.remind(), id })
        };
        ids.into_iter().filter_map(reminder).collect()
    }

    /// What a step wanted on stable storage is there: called for every step that `needs_disk`, before its words are said.
    ///
    /// What is returned follows from it, and is carried out after that step.
    pub fn persisted(&mut self, id: &InstanceId, step: &Step) -> Step {
        let Some((id, mut known)) = self.known.remove_entry(id) else { return Step::default() };
        known.under_way = known.under_way.saturating_sub(1);
        let group = known.group.clone();
        let next = self.act(id, known, |instance| Ok(instance.persisted(&group, step)));
        next.unwrap_or_default()
    }

    /// It could not be put there: from now on what counts is what the disk has.
    pub fn forget(&mut self, id: &InstanceId) {
        let Some(known) = self.known.remove(id) else { return };
        self.pending.remove(id);
        let voters = known.instance.voters();
        voters.into_iter().for_each(|voter| self.take_ballot(known.group.members()[voter], id));
    }

    /// How many instances are in memory.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    fn change(
        &mut self,
        id: &InstanceId,
        group: &Arc<Group>,
        recall: impl FnOnce() -> Option<Recalled>,
        change: impl FnOnce(&mut Instance) -> Result<Step, Refused>,
    ) -> Result<Step, Refused> {
        let (id, known) = match self.known.remove_entry(id) {
            Some(known) => known,
            None => {
                let instance = Instance::recall(group, recall().ok_or(Refused::Unreadable)?)?;
                (Arc::new(id.clone()), Known { group: group.clone(), instance, under_way: 0 })
            }
        };
        if known.group != *group {
            self.known.insert(id, known);
            return Err(Refused::OtherConfiguration);
        }
        self.act(id, known, change)
    }

    /// Change an instance that was taken out of memory, and put it back if anything keeps it there.
    fn act(
        &mut self,
        id: Arc<InstanceId>,
        mut known: Known,
        change: impl FnOnce(&mut Instance) -> Result<Step, Refused>,
    ) -> Result<Step, Refused> {
        let before = known.instance.voters();
        let step = change(&mut known.instance);
        known.under_way += usize::from(step.as_ref().is_ok_and(Step::needs_disk));
        self.move_ballots(&id, &known.group, &before, &known.instance.voters());
        self.note_pending(&id, &known.instance);
        self.put_back(id, known);
        self.drop_pending_beyond();
        step
    }

    fn move_ballots(&mut self, id: &Arc<InstanceId>, group: &Group, before: &[usize], after: &[usize]) {
        let members = group.members();
        for gone in before.iter().filter(|voter| !after.contains(voter)) {
            self.take_ballot(members[*gone], id);
        }
        for new in after.iter().filter(|voter| !before.contains(voter)) {
            self.ballots.entry(members[*new]).or_default().push(id);
        }
    }

    fn take_ballot(&mut self, node: NodeId, id: &InstanceId) {
        if let Entry::Occupied(mut ballots) = self.ballots.entry(node) {
            ballots.get_mut().remove(id);
            if ballots.get().len() == 0 {
                ballots.remove();
            }
        }
    }

    fn note_pending(&mut self, id: &Arc<InstanceId>, instance: &Instance) {
        match instance.said().is_open() {
            true => self.pending.push(id),
            false => self.pending.remove(id),
        }
    }

    /// Who has votes in more instances than it may loses its oldest.
    fn hold_to_share(&mut self, node: NodeId) {
        let most = self.limits.votes_per_peer;
        let oldest = self.ballots.get_mut(&node).and_then(|ballots| ballots.pop_beyond(most));
        let Some((id, mut known)) = oldest.and_then(|id| self.known.remove_entry(&id)) else { return };
        if let Some(index) = known.group.index_of(node) {
            known.instance.forget_votes(index);
        }
        self.put_back(id, known);
    }

    fn drop_pending_beyond(&mut self) {
        let oldest = self.pending.pop_beyond(self.limits.pending);
        if let Some((id, known)) = oldest.and_then(|id| self.known.remove_entry(&id)) {
            self.put_back(id, known);
        }
    }

    /// Keep an instance in memory, if anything keeps it there.
    fn put_back(&mut self, id: Arc<InstanceId>, known: Known) {
        let has_votes = !known.instance.voters().is_empty();
        if has_votes || known.under_way > 0 || self.pending.contains(&id) {
            self.known.insert(id, known);
        }
    }
}

#[cfg(test)]
mod schedules;
#[cfg(test)]
mod tests;
