//! What the machine wants done, done in the order in which it wanted it: disk first, then words, then clients.

use std::collections::HashSet;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Weak};
use std::time::Duration;

use common::hash::Hash;
use common::wire::{FragmentName, NodeId};
use tokio::sync::mpsc;

use super::complete::Lacking;
use super::notes::fragment_key;
use super::{Inner, NotAgreed, State};
use crate::blocking;
use crate::dispersal::{Dispersed, Group, InstanceId, Message, Refused, Said, Step};
use crate::error::StoreError;
use crate::store::{Author, Claim};

/// Steps that one flush covers.
const TOGETHER: usize = 1024;
/// To write a note takes as long as so many bytes of a fragment.
const NOTE_BYTES: usize = 4 << 10;
/// Until a flush that failed is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// A step that waits to be carried out.
#[derive(Clone)]
pub struct Queued {
    /// Counts the steps of this node.
    pub number: u64,
    /// What it is about.
    pub id: InstanceId,
    /// Its nodes.
    pub group: Arc<Group>,
    /// Who gets its answer.
    pub asked_by: Option<NodeId>,
    /// What to do.
    pub step: Step,
    /// If a client's fragment of this digest was put into the log before, and no step wanted it there: delete it.
    pub settles: Option<Hash>,
}

/// The name of a node's fragment of an instance in its store.
pub fn fragment_name(id: &InstanceId, index: usize) -> FragmentName {
    FragmentName { key: fragment_key(id), version: id.version(), index: index as u8 }
}

/// Carry out steps as long as the node lives.
pub async fn carry_out_all(inner: Weak<Inner>, mut queue: mpsc::UnboundedReceiver<Queued>) {
    let mut steps = Vec::new();
    while queue.recv_many(&mut steps, TOGETHER).await > 0 {
        let Some(inner) = inner.upgrade() else { return };
        inner.carry_out(std::mem::take(&mut steps)).await;
    }
}

impl State {
    /// A step that followed from a peer's word waits no more.
    fn carried_out_for(&mut self, peer: NodeId) {
        if let Entry::Occupied(mut asked) = self.asked.entry(peer) {
            *asked.get_mut() -= 1;
            if *asked.get() == 0 {
                asked.remove();
            }
        }
    }
}

impl Inner {
    async fn carry_out(self: &Arc<Self>, steps: Vec<Queued>) {
        let steps = self.without_void(steps);
        let steps = Arc::new(steps);
        let failed = self.put_on_disk(&steps).await;
        let mut superseding = Vec::new();
        for queued in steps.iter().filter(|queued| !failed.contains(&queued.id)) {
            superseding.extend(self.conclude(queued));
        }
        for id in superseding {
            self.collect(&id).await;
        }
    }

    /// Steps of instances that were not forgotten after they were queued.
    fn without_void(&self, steps: Vec<Queued>) -> Vec<Queued> {
        let mut state = self.state.lock();
        let is_void = |state: &State, queued: &Queued| {
            queued.settles.is_none() && state.void.get(&queued.id).is_some_and(|last| queued.number <= *last)
        };
        for peer in steps.iter().filter_map(|queued| queued.asked_by) {
            state.carried_out_for(peer);
        }
        let last = steps.last().map_or(0, |queued| queued.number);
        let left = steps.into_iter().filter(|queued| !is_void(&state, queued)).collect();
        state.void.retain(|_, void| *void > last);
        left
    }

    /// Keep and note what the steps want kept and noted, and flush it once. Returns the instances for which that failed;
    /// they are forgotten.
    async fn put_on_disk(self: &Arc<Self>, steps: &Arc<Vec<Queued>>) -> HashSet<InstanceId> {
        let (inner, wanted) = (self.clone(), steps.clone());
        let boot = self.store.boot();
        let mut failed = blocking::run_if_much(self.bytes_of(steps), move || inner.append(&wanted)).await;
        if steps.iter().any(|queued| queued.step.needs_flush()) {
            self.flush().await;
            if self.store.boot() != boot {
                let lost = steps.iter().filter(|queued| !self.is_there(queued));
                failed.extend(lost.map(|queued| (queued.id.clone(), None)));
            }
        }
        let mut forgotten = HashSet::new();
        for (id, why) in failed {
            if forgotten.insert(id.clone()) {
                let error = why.unwrap_or_else(|| StoreError::Flush("it is lost".into()));
                self.give_up(&id, || NotAgreed::from(&error));
            }
        }
        forgotten
    }

    /// What steps want on disk: the fragments that are not there yet, and what a note costs as much as.
    fn bytes_of(&self, steps: &[Queued]) -> usize {
        let unclaimed = self.unclaimed.lock();
        let bytes = |Queued { id, step, .. }: &Queued| {
            let kept = step.keep.as_ref().filter(|_| !unclaimed.contains(id));
            let kept = kept.map_or(0, |dispersed| dispersed.fragment().bytes().len());
            kept + if step.persist.is_some() { NOTE_BYTES } else { 0 }
        };
        steps.iter().map(bytes).sum()
    }

    fn append(&self, steps: &[Queued]) -> Vec<(InstanceId, Option<StoreError>)> {
        let mut failed: Vec<(InstanceId, Option<StoreError>)> = Vec::new();
        for queued in steps {
            if !failed.iter().any(|(id, _)| *id == queued.id)
                && let Err(error) = self.append_one(queued)
            {
                tracing::error!(id = %queued.id, %error, "not kept");
                failed.push((queued.id.clone(), Some(error)));
            }
        }
        failed
    }

    fn append_one(&self, Queued { id, group, step, settles, .. }: &Queued) -> Result<(), StoreError> {
        if let Some(digest) = settles {
            if let Err(error) = self.settle(id, group, *digest) {
                tracing::error!(%id, %error, "a fragment that nobody wants stays");
            }
            return Ok(());
        }
        if let Some(dispersed) = &step.keep {
            self.unclaimed.lock().remove(id);
            match self.held(id, group) {
                Some(digest) if digest == dispersed.digest() => (),
                // One under another FPCC can never be verified.
                Some(_) => {
                    self.forget_fragment(id)?;
                    self.keep(id, dispersed)?;
                }
                None => self.keep(id, dispersed)?,
            }
        }
        let Some(said) = &step.persist else { return Ok(()) };
        // What supersedes others has them deleted in the end.
        let frees = self.state.lock().names.has_older(id);
        self.notes.write(if frees { Claim::Reserve } else { Claim::Data }, id, said)
    }

    fn settle(&self, id: &InstanceId, group: &Group, digest: Hash) -> Result<(), StoreError> {
        let is_unclaimed = self.unclaimed.lock().contains(id);
        // What is verified was never echoed if the readies of others came first.
        let is_settled_on = |said: Said| [said.echoed(), said.verified()].contains(&Some(digest));
        let is_wanted = || self.notes.read(id).map(|said| said.is_some_and(is_settled_on));
        if is_unclaimed && self.held(id, group) == Some(digest) && !is_wanted()? {
            self.forget_fragment(id)?;
        }
        self.unclaimed.lock().remove(id);
        Ok(())
    }

    /// Put a fragment into the log.
    pub fn keep(&self, id: &InstanceId, dispersed: &Dispersed) -> Result<(), StoreError> {
        let claim = if self.deletes(id, dispersed.fpcc()) { Claim::Reserve } else { Claim::Data };
        self.store.put_dispersed(claim, &fragment_key(id), id.version(), dispersed)
    }

    /// Until it succeeds: what is not known to be on disk must not be spoken of. Things may be missing if the boot id is
    /// another one then. Notes go that stood beside those after them until now.
    async fn flush(&self) {
        let outdated = std::mem::take(&mut *self.outdated.lock());
        while let Err(error) = self.store.flush().await {
            tracing::error!(%error, "flush");
            tokio::time::sleep(PAUSE).await;
        }
        let covered = outdated.iter().filter(|(id, said)| self.notes.has(id, said));
        covered.for_each(|(id, said)| self.drop_older(id, said));
    }

    /// Flush if only that lets notes go.
    pub(super) async fn tidy(&self) {
        if !self.outdated.lock().is_empty() {
            self.flush().await;
        }
    }

    fn is_there(&self, Queued { id, group, step, .. }: &Queued) -> bool {
        let held = || self.held(id, group);
        step.keep.as_ref().is_none_or(|dispersed| held() == Some(dispersed.digest()))
            && step.persist.as_ref().is_none_or(|said| self.notes.has(id, said))
    }

    /// Forget an instance of which something could not be put on disk: what the disk has is what counts.
    fn give_up(&self, id: &InstanceId, why: impl Fn() -> NotAgreed) {
        let mut state = self.state.lock();
        state.dispersals.forget(id);
        let queued = state.queued;
        state.void.insert(id.clone(), queued);
        for waiting in state.waiting.remove(id).into_iter().flatten() {
            // Who no longer waits need not know.
            let _ = waiting.answer.send(Err(why()));
        }
    }

    /// Delete the notes before one that was flushed.
    fn drop_older(&self, id: &InstanceId, said: &Said) {
        if let Err(error) = self.notes.drop_older(id, said) {
            tracing::error!(%id, %error, "an old note stays");
        }
    }

    /// After a step's disk work: what follows, what is said, who is told. Returns the instance if it supersedes others, or
    /// others superseded it before it was noted.
    fn conclude(&self, queued: &Queued) -> Option<InstanceId> {
        let Queued { id, group, step, asked_by, .. } = queued;
        let mut state = self.state.lock();
        let mut is_superseded = false;
        if let Some(said) = &step.persist {
            state.names.note(id, said);
            is_superseded = state.names.is_superseded(id);
            match step.needs_flush() {
                true => self.drop_older(id, said),
                // The note before is all that a power loss would leave.
                false => self.outdated.lock().push((id.clone(), said.clone())),
            }
        }
        if step.needs_disk() {
            state.names.charge(id, self.cost(id));
            let next = state.dispersals.persisted(id, step);
            self.queue(&mut state, id, group, None, next);
        }
        for word in &step.say {
            for peer in group.others() {
                self.mouth.say(peer, Message { id: id.clone(), word: *word });
            }
        }
        for word in &step.answer {
            asked_by.iter().for_each(|peer| self.mouth.say(*peer, Message { id: id.clone(), word: *word }));
        }
        if let Some(digest) = step.complete {
            let _ = self.lacking.send(Lacking::new(id.clone(), group.clone(), digest));
        }
        if let Some(stored) = step.stored {
            for waiting in state.waiting.remove(id).into_iter().flatten() {
                let answer = match waiting.digest == stored {
                    true => Ok(()),
                    false => Err(Refused::Conflict(stored).into()),
                };
                let _ = waiting.answer.send(answer);
            }
        }
        let is_verified = step.persist.is_some() && step.stored.is_some();
        (is_verified || is_superseded).then(|| id.clone())
    }

    /// Delete what a verified version supersedes, once it is on stable storage that it is verified.
    async fn collect(self: &Arc<Self>, id: &InstanceId) {
        let gone = self.state.lock().names.take_superseded(id);
        if gone.is_empty() {
            return;
        }
        self.flush().await;
        let inner = self.clone();
        blocking::run(move || inner.delete_all(&gone)).await;
    }

    pub(super) fn delete_all(&self, gone: &[InstanceId]) {
        for id in gone {
            self.give_up(id, || NotAgreed::Superseded);
            let deleted = self.forget_fragment(id).and_then(|()| self.notes.drop_all(id));
            if let Err(error) = deleted {
                tracing::error!(%id, %error, "what is superseded stays");
            }
        }
        self.store.give_back();
    }

    /// Delete the fragment of an instance.
    pub fn forget_fragment(&self, id: &InstanceId) -> Result<(), StoreError> {
        self.store.delete(&Author::Client, &fragment_key(id), id.version(), None).map(|_| ())
    }
}
