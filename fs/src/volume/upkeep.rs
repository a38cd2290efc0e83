//! What goes on unasked: old dirty bytes are sealed, failed seals tried again, unreferenced objects deleted, and
//! fragments brought home.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use common::wire::ObjectId;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Volume;
use super::parts::is_one_back;
use crate::error::{Error, Result};
use crate::metadata::{Exception, ObjectRecord};
use crate::pool::PoolEvent;
use crate::stripe::PlacementChange;

/// Between looks at what is dirty or failed.
const TICK: Duration = Duration::from_secs(1);
/// For how long orphans are gathered before they are given up.
const GATHERING: Duration = Duration::from_millis(20);
/// Objects deleted or moved in one round.
const ROUND: usize = 512;
/// Between tries when a holder of something to delete does not answer, or a fragment cannot go home.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Before deletes that a node did not confirm are sent again, if none came back: at first, and at most.
const AGAIN: Duration = Duration::from_secs(60);
const AGAIN_MOST: Duration = Duration::from_secs(60 * 60);
/// So many are waited for: 16 bytes each.
const MOST_UNCONFIRMED: usize = 1 << 20;
/// Deletes wait for a moment without reads and writes of this length, and for none longer than `PATIENCE`: what they cost
/// the nodes is not taken from those who wait for bytes.
const QUIET: Duration = Duration::from_millis(100);
/// Between looks at whether anything is read or written.
const LOOK: Duration = Duration::from_millis(10);
/// Deletes wait for nothing while less than this part of the pool is free.
const SCARCE: u64 = 8;
/// Before a placement change of an object that is not committed yet is looked at again.
const COMMIT_TIME: Duration = Duration::from_millis(50);

impl Volume {
    pub(super) fn start_upkeep(self: &Arc<Self>) {
        self.spawn_until_stop(|volume| async move { volume.write_back().await });
        self.spawn_until_stop(|volume| async move { volume.reclaim_orphans().await });
        self.spawn_until_stop(|volume| async move { volume.delete_condemned().await });
        self.spawn_until_stop(|volume| async move { volume.bring_home().await });
        self.spawn_until_stop(|volume| async move { volume.keep_parts_home().await });
        self.spawn_until_stop(|volume| async move { volume.note_placements().await });
        self.spawn_until_stop(|volume| async move { volume.watch_disks().await });
    }

    fn spawn_until_stop<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        task: impl FnOnce(Arc<Volume>) -> F,
    ) {
        let mut stop = self.stop.subscribe();
        let work = task(self.clone());
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = work => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        });
    }

    /// Seal what has been dirty too long, and try again what failed.
    async fn write_back(self: &Arc<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            self.look_at_space();
            if let Err(error) = self.write_accesses() {
                tracing::warn!(%error, "times of access wait to be written");
            }
            for file in self.open_files() {
                let due = {
                    let mut state = file.state();
                    let mut due = state.rearm();
                    if state.dirty_since.is_some_and(|since| since.elapsed() >= self.options.dirty_interval) {
                        due.extend(state.seal_all(|| self.stripe.next_id()));
                    }
                    due
                };
                for sequence in due {
                    self.send_off(&file, sequence, false);
                }
            }
        }
    }

    /// Give up orphans, those of a moment together.
    async fn reclaim_orphans(self: &Arc<Self>) {
        loop {
            self.orphans.more.notified().await;
            tokio::time::sleep(GATHERING).await;
            while let Err(error) = self.reclaim_given_up() {
                tracing::warn!(%error, "orphans wait to be given up");
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }

    /// Delete the fragments of objects to which nothing refers.
    async fn delete_condemned(self: &Arc<Self>) {
        let mut events = self.pool.events();
        let (mut unconfirmed, mut begun, mut wait) = (HashSet::new(), Instant::now(), AGAIN);
        loop {
            let is_back = is_one_back(&mut events) || unconfirmed.is_empty();
            if is_back || begun.elapsed() >= wait {
                unconfirmed.clear();
                begun = Instant::now();
                wait = if is_back { AGAIN } else { AGAIN_MOST.min(2 * wait) };
            }
            if let Err(error) = self.delete_all_but(&mut unconfirmed).await {
                tracing::warn!(%error, "unreferenced objects could not be deleted yet");
                tokio::time::sleep(PATIENCE).await;
            }
            if unconfirmed.is_empty() {
                // Looking each time that something was committed would cost a small file as much as committing it.
                tokio::time::sleep(GATHERING).await;
                let _ = tokio::time::timeout(PATIENCE, self.work.notified()).await;
            } else {
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }

    /// Delete what is condemned, at a quiet moment, but for objects that a node did not confirm when it was asked last; to
    /// which those are added that are not confirmed now.
    async fn delete_all_but(self: &Arc<Self>, unconfirmed: &mut HashSet<ObjectId>) -> Result<()> {
        let (mut after, mut is_quiet) = (None, false);
        loop {
            let mut condemned = self.metadata.condemned(after, ROUND)?;
            let Some(last) = condemned.last() else { return Ok(()) };
            after = Some(last.id);
            condemned.retain(|object| !unconfirmed.contains(&object.id) && !self.stripe.is_sent(object.id));
            if condemned.is_empty() {
                continue;
            }
            if !is_quiet {
                self.quiet_moment().await;
                is_quiet = true;
            }
            // Reads that began before may still fetch them; what begins from here on finds no extent of theirs.
            self.reads.all_before_have_passed().await;
            // Bytes go last: what no longer refers to them is durable first.
            self.sync().await?;
            let mut gone = self.stripe.delete(&condemned).await;
            let known: HashSet<ObjectId> = gone.iter().copied().collect();
            let left = condemned.iter().map(|object| object.id).filter(|id| !known.contains(id));
            for id in left {
                // What is too much to remember is garbage on the nodes that did not confirm.
                if unconfirmed.len() < MOST_UNCONFIRMED {
                    unconfirmed.insert(id);
                } else {
                    gone.push(id);
                }
            }
            self.metadata.forget(&gone)?;
        }
    }

    /// Wait until nothing was read or written for a moment, as long as there is room and patience.
    async fn quiet_moment(&self) {
        let end = Instant::now() + PATIENCE;
        let mut quiet_since = Instant::now();
        while quiet_since.elapsed() < QUIET && Instant::now() < end && !self.is_scarce() {
            tokio::time::sleep(LOOK).await;
            if self.budget.used() > 0 || self.reads.is_passing() {
                quiet_since = Instant::now();
            }
        }
    }

    fn is_scarce(&self) -> bool {
        let space = self.space();
        space.available_bytes < space.total_bytes / SCARCE
    }

    /// Make up for what nodes with an old disk do not have any more.
    async fn watch_disks(self: &Arc<Self>) {
        let mut old = BTreeSet::new();
        loop {
            tokio::time::sleep(TICK).await;
            old.extend(self.journal.iter().flat_map(|journal| journal.take_old_disks()));
            if old.is_empty() {
                continue;
            }
            match self.make_up_for(&old).await {
                Ok(fragments) => {
                    tracing::warn!(nodes = old.len(), fragments, "what old disks lack is rebuilt");
                    old.clear();
                }
                Err(error) => tracing::warn!(%error, "what old disks lack cannot be found yet"),
            }
        }
    }

    /// Bring fragments to their homes when nodes return.
    async fn bring_home(self: &Arc<Self>) {
        let mut events = self.pool.events();
        loop {
            if let Err(error) = self.home_round().await {
                tracing::warn!(%error, "fragments wait to go home");
            }
            let back = async {
                use PoolEvent::{Rebooted, Returned};
                while !matches!(events.recv().await, Ok(Returned(_) | Rebooted { .. }) | Err(_)) {}
            };
            tokio::select! {
                () = back => {}
                () = self.away.notified() => {}
                () = tokio::time::sleep(PATIENCE) => {}
            }
        }
    }

    async fn home_round(self: &Arc<Self>) -> Result<()> {
        if self.metadata.usage()?.objects_with_exceptions == 0 {
            return Ok(());
        }
        let mut after = None;
        loop {
            let page = self.metadata.with_exceptions(after, ROUND)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.id);
            for objects in page.chunks(4) {
                let moves = objects.iter().map(|object| self.move_home(object));
                let moved = futures_util::future::join_all(moves).await;
                for (object, error) in objects.iter().zip(moved).filter_map(|(o, m)| Some((o, m.err()?))) {
                    tracing::warn!(object = %object.id, %error, "fragments wait to go home");
                }
            }
        }
    }

    /// Store at home and flush, commit, durable, then delete the guest's copy: in this order nothing is ever on
    /// less than it was.
    pub(super) async fn move_home(self: &Arc<Self>, object: &ObjectRecord) -> Result<()> {
        let left = self.stripe.move_home(object).await?;
        if left == object.exceptions {
            return Ok(());
        }
        // What was found lost meanwhile stays so; who is guest or home by another placement is known to whoever chose that.
        let Some(exceptions) = self.metadata.revise_exceptions(object, &left)? else { return Ok(()) };
        self.sync().await?;
        self.forget_extents();
        self.reads.all_before_have_passed().await;
        let now = ObjectRecord { exceptions, ..object.clone() };
        if !self.stripe.drop_guests(&now, &object.exceptions).await {
            tracing::info!(object = %object.id, "a guest keeps a copy that is not needed");
        }
        Ok(())
    }

    /// Write down where fragments came to lie after their object was stored.
    async fn note_placements(self: &Arc<Self>) {
        loop {
            self.stripe.placement_changed().await;
            let losses = self.stripe.take_losses();
            let (early, due) = self.sort_out(self.stripe.take_placement_changes());
            let failed = self.write_placements(due);
            // Losses last: where an object came to lie was known before anything of it was missed.
            for (object, index) in losses {
                if let Err(error) = self.note_loss(object, index) {
                    tracing::error!(%object, index, %error, "a lost fragment could not be written down");
                }
            }
            self.forget_extents();
            // One that is not written down makes a fragment be looked for where it is not, and missed by nobody.
            let patience = if failed.is_empty() { COMMIT_TIME } else { TICK };
            if !early.is_empty() || !failed.is_empty() {
                self.stripe.keep_placement_changes(early);
                self.stripe.keep_placement_changes(failed);
                tokio::time::sleep(patience).await;
            }
        }
    }

    /// Returns those that could not be written down.
    fn write_placements(&self, changes: Vec<PlacementChange>) -> Vec<PlacementChange> {
        let write = |(object, exceptions): &PlacementChange| {
            let written = self.metadata.set_exceptions(*object, exceptions);
            if let Err(error) = &written {
                tracing::error!(%object, %error, "a placement could not be written down yet");
            }
            written.is_ok()
        };
        changes.into_iter().filter(|change| !write(change)).collect()
    }

    /// A fragment is not where it should be: it is nowhere, until it is rebuilt at home.
    pub(super) fn note_loss(&self, object: ObjectId, index: u8) -> Result<()> {
        let record = match self.metadata.object(object) {
            Ok(record) => record,
            Err(Error::NotFound) => return Ok(()),
            Err(error) => return Err(error),
        };
        tracing::info!(%object, index, "a fragment is lost and will be rebuilt");
        self.note_exception(&record, Exception { index, node: None })
    }

    /// A fragment is not where an object's exceptions say: unless these have changed since they were read.
    pub(super) fn note_exception(&self, object: &ObjectRecord, exception: Exception) -> Result<()> {
        let others = object.exceptions.iter().filter(|other| other.index != exception.index);
        let after: Vec<Exception> = others.copied().chain([exception]).collect();
        self.metadata.revise_exceptions(object, &after).map(drop)
    }

    /// Changes of objects that wait for their commit, and the others: the store takes no change of what it does not
    /// know yet.
    fn sort_out(&self, changes: Vec<PlacementChange>) -> (Vec<PlacementChange>, Vec<PlacementChange>) {
        let files = self.open_files();
        let pending: HashSet<ObjectId> = files
            .iter()
            .flat_map(|file| file.state().seals.iter().map(|seal| seal.id).collect::<Vec<_>>())
            .collect();
        changes.into_iter().partition(|(object, _)| pending.contains(object))
    }

    pub(super) fn forget_extents(&self) {
        self.open_files().iter().for_each(|file| file.state().forget_extents());
    }
}

/// Lets a deletion wait for the reads that began before it, and for no other.
#[derive(Default)]
pub struct ReadGate {
    inner: Mutex<Generations>,
    left: Notify,
}

#[derive(Default)]
struct Generations {
    current: u64,
    reading: BTreeMap<u64, usize>,
}

/// A read in flight.
pub struct Passing<'a> {
    gate: &'a ReadGate,
    generation: u64,
}

impl ReadGate {
    /// A read begins; it ends when the value is dropped.
    pub fn enter(&self) -> Passing<'_> {
        let mut inner = self.inner.lock();
        let generation = inner.current;
        *inner.reading.entry(generation).or_insert(0) += 1;
        Passing { gate: self, generation }
    }

    /// Whether a read is in flight.
    pub fn is_passing(&self) -> bool {
        !self.inner.lock().reading.is_empty()
    }

    /// Returns once every read that had begun has ended. Reads are bounded in time, so is this.
    pub async fn all_before_have_passed(&self) {
        let generation = {
            let mut inner = self.inner.lock();
            inner.current += 1;
            inner.current
        };
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if self.inner.lock().reading.first_key_value().is_none_or(|(oldest, _)| *oldest >= generation) {
                return;
            }
            left.await;
        }
    }
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        let mut inner = self.gate.inner.lock();
        let count = inner.reading.get_mut(&self.generation).expect("a read in flight is counted");
        *count -= 1;
        if *count == 0 {
            inner.reading.remove(&self.generation);
            drop(inner);
            self.gate.left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deletion_waits_for_earlier_reads_only() {
        let gate = ReadGate::default();
        let earlier = gate.enter();
        let wait = gate.all_before_have_passed();
        tokio::pin!(wait);
        assert!(tokio::time::timeout(Duration::from_secs(1), &mut wait).await.is_err());
        let later = gate.enter();
        drop(earlier);
        wait.await;
        drop(later);
    }
}
