//! The parts of the journal, of what is current and of what snapshots need: they come home as the objects of files do.
//!
//! The entries that name them are signed, and say for good where fragments were when they were written; whoever reads them
//! looks at home as well. Where fragments are now is asked of the nodes, when a mount begins and whenever one comes back.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use common::wire::ObjectId;
use futures_util::future::join_all;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::time::Instant;

use super::Volume;
use super::upkeep::PATIENCE;
use crate::error::Result;
use crate::journal::Journal;
use crate::metadata::{Exception, ObjectRecord};
use crate::pool::{NodeState, NodeView, PoolEvent};
use crate::stripe::{Flushed, Unverified};

/// Parts asked for at once.
const PAGE: usize = 1000;
/// Parts moved at once.
const MOVES: usize = 4;
/// The longest between two tries of what cannot be brought home.
const PATIENCE_MOST: Duration = Duration::from_secs(5 * 60);

impl Volume {
    /// Bring parts home for as long as this mount may write. Apart from files' objects, of which there may be hours of work:
    /// without its metadata nothing of a volume can be read.
    pub(super) async fn keep_parts_home(self: &Arc<Self>) {
        let Some(journal) = &self.journal else { return };
        let mut events = self.pool.events();
        // At first, too: nothing that was written down says where parts are now.
        let mut is_back = true;
        let (mut put_off, mut unheard) = (HashMap::new(), None::<Later>);
        loop {
            let all = is_back || unheard.is_some_and(|later| later.is_over());
            // What another mount has taken over is that one's to bring home.
            if !journal.is_fenced() {
                let all_heard = self.bring_parts_home(journal, all, &mut put_off).await;
                // Who is up and was not heard may be the one that came back.
                if all {
                    unheard = (!all_heard).then(|| Later::than(unheard));
                }
                is_back = false;
            }
            // Also where a node is said to be back again and again: each time all nodes flush.
            tokio::time::sleep(PATIENCE).await;
            is_back |= is_one_back(&mut events);
        }
    }

    /// Bring home what can come home. `all` parts are asked for if a node is back, which may have missed or lost whatever it
    /// had, otherwise those that are known to be away and not `put_off`. Returns whether every node that is up was heard.
    async fn bring_parts_home(
        self: &Arc<Self>,
        journal: &Journal,
        all: bool,
        put_off: &mut HashMap<ObjectId, Later>,
    ) -> bool {
        let is_due = |part: &ObjectRecord| {
            let may_move = || {
                self.stripe.can_move_home(part) && put_off.get(&part.id).is_none_or(|later| later.is_over())
            };
            self.stripe.has_homes(part) && (all || may_move())
        };
        let due: Vec<ObjectRecord> = journal.parts().into_iter().filter(is_due).collect();
        let mut all_heard = true;
        for some in due.chunks(PAGE).take_while(|_| !journal.is_fenced()) {
            let Brought { failed, unheard } = self.bring_these_home(journal, some).await;
            all_heard &= !unheard;
            for part in some {
                let before = put_off.remove(&part.id);
                if failed.contains(&part.id) {
                    put_off.insert(part.id, Later::than(before));
                }
            }
        }
        put_off.retain(|part, _| journal.part(*part).is_some());
        all_heard
    }

    /// The same with these parts, each of which has homes.
    pub(super) async fn bring_these_home(
        self: &Arc<Self>,
        journal: &Journal,
        parts: &[ObjectRecord],
    ) -> Brought {
        let found: Vec<Flushed> = self.stripe.find_flushed(parts).await;
        let unheard = self.is_up_and_silent(&found);
        let all: Vec<(&ObjectRecord, Flushed)> = parts.iter().zip(found).collect();
        let mut failed = HashSet::new();
        for some in all.chunks(MOVES) {
            let moves =
                some.iter().map(|(part, found)| self.bring_part_home(journal, part, &found.exceptions));
            let moved = join_all(moves).await;
            for ((part, _), error) in
                some.iter().zip(moved).filter_map(|(part, moved)| Some((part, moved.err()?)))
            {
                tracing::warn!(part = %part.id, %error, "a part of the journal waits to go home");
                failed.insert(part.id);
            }
        }
        Brought { failed, unheard }
    }

    /// Of one that is down it is told when it is back.
    fn is_up_and_silent(&self, found: &[Flushed]) -> bool {
        let silent: HashSet<&String> = found.iter().flat_map(|flushed| &flushed.silent).collect();
        let is_down = |node: &NodeView| matches!(node.state, NodeState::Down { .. });
        let nodes = self.pool.nodes();
        nodes.iter().any(|node| !is_down(node) && silent.contains(&node.address.to_string()))
    }

    /// Store what was found not to be at home there and flush, then delete the guests' copies, those known before, too: a
    /// crash may have left one.
    async fn bring_part_home(
        self: &Arc<Self>,
        journal: &Journal,
        known: &ObjectRecord,
        found: &[Exception],
    ) -> Result<()> {
        let away = self.really_away(known, found).await;
        let part = ObjectRecord { exceptions: away.clone(), ..known.clone() };
        let moved = self.stripe.move_home(&part).await;
        if !journal.revise_part(part.id, moved.as_deref().unwrap_or(&away)) {
            if !away.is_empty() {
                // It was deleted meanwhile, with its snapshot or by a checkpoint, perhaps before the last of it was stored.
                self.stripe.delete(&[part]).await;
            }
            return Ok(());
        }
        let now = ObjectRecord { exceptions: moved?, ..known.clone() };
        let others = known.exceptions.iter().filter(|exception| !away.contains(exception));
        let guests: Vec<Exception> = away.iter().chain(others).copied().collect();
        if !self.stripe.drop_guests(&now, &guests).await {
            tracing::info!(part = %known.id, "a guest keeps a copy that is not needed");
        }
        Ok(())
    }

    /// What is not at home, by what nodes said and by what was read: where a guest is known to have a fragment, its home's word
    /// that it has it as well is not enough to delete the guest's, nor is a fragment on a node that was caught lying.
    async fn really_away(self: &Arc<Self>, known: &ObjectRecord, found: &[Exception]) -> Vec<Exception> {
        let mut away = found.to_vec();
        let is_claimed = |exception: &&Exception| found.iter().all(|other| other.index != exception.index);
        for exception in known.exceptions.iter().filter(is_claimed) {
            let (guest, home) = (exception.node, self.stripe.home_of(known, exception.index));
            let Some((guest, home)) = guest.zip(home).filter(|(guest, home)| guest != home) else { continue };
            let is_good = match self.stripe.verify(known, exception.index, home).await {
                Ok(()) => !self.pool.is_quarantined(home),
                Err(Unverified::Silent(_)) => false,
                Err(Unverified::Wrong(_)) => {
                    // What is put there anew would be taken for what is there already.
                    if self.stripe.verify(known, exception.index, guest).await.is_ok() {
                        self.stripe.drop_wrong(known, exception.index, home).await;
                    }
                    false
                }
            };
            if !is_good {
                away.push(*exception);
            }
        }
        away.sort_unstable_by_key(|exception| exception.index);
        away
    }
}

/// What became of parts.
pub(super) struct Brought {
    /// Those of which something can neither be had nor made.
    failed: HashSet<ObjectId>,
    /// Whether a node that is up did not say what it has.
    unheard: bool,
}

/// When something is tried again: later each time.
#[derive(Clone, Copy)]
struct Later {
    at: Instant,
    wait: Duration,
}

impl Later {
    fn than(before: Option<Later>) -> Later {
        let wait = before.map_or(PATIENCE, |before| (2 * before.wait).min(PATIENCE_MOST));
        Later { at: Instant::now() + wait, wait }
    }

    fn is_over(&self) -> bool {
        self.at <= Instant::now()
    }
}

/// Whether any node came back by what has been told until now.
pub(super) fn is_one_back(events: &mut Receiver<PoolEvent>) -> bool {
    let mut is_back = false;
    loop {
        match events.try_recv() {
            Ok(PoolEvent::Returned(_) | PoolEvent::Rebooted { .. }) | Err(TryRecvError::Lagged(_)) => {
                is_back = true;
            }
            Ok(PoolEvent::WentDown(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => return is_back,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_fails_again_and_again_is_tried_ever_more_rarely() {
        let (mut later, mut waited) = (None, Vec::new());
        for _ in 0..9 {
            let next = Later::than(later);
            assert!(!next.is_over());
            tokio::time::advance(next.wait).await;
            assert!(next.is_over());
            waited.push(next.wait.as_secs());
            later = Some(next);
        }
        assert_eq!(waited, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
    }
}
