//! The parts of the journal, of what is current and of what snapshots need: they come home as the objects of files do.
//!
//! The entries that name them are signed, and say for good where fragments were when they were written; whoever reads them
//! looks at home as well. Where fragments are now is asked of the nodes, when a mount begins and whenever one comes back.

use std::sync::Arc;

use futures_util::future::join_all;

use super::Volume;
use crate::error::Result;
use crate::journal::Journal;
use crate::metadata::{Exception, ObjectRecord};
use crate::stripe::Flushed;

/// Parts asked for at once.
const PAGE: usize = 1000;
/// Parts moved at once.
const MOVES: usize = 4;

impl Volume {
    /// Bring home what can come home. If a node `is_back`, which may have missed or lost whatever it had, all parts are asked
    /// for, otherwise those that are known to be away.
    pub(super) async fn bring_parts_home(self: &Arc<Self>, is_back: bool) {
        let Some(journal) = &self.journal else { return };
        let is_due =
            |part: &ObjectRecord| self.stripe.has_homes(part) && (is_back || self.stripe.can_move_home(part));
        let due: Vec<ObjectRecord> = journal.parts().into_iter().filter(is_due).collect();
        for some in due.chunks(PAGE) {
            self.bring_these_home(journal, some).await;
        }
    }

    /// The same with these parts, each of which has homes.
    pub(super) async fn bring_these_home(self: &Arc<Self>, journal: &Journal, parts: &[ObjectRecord]) {
        let found: Vec<Flushed> = self.stripe.find_flushed(parts).await;
        let all: Vec<(&ObjectRecord, Flushed)> = parts.iter().zip(found).collect();
        for some in all.chunks(MOVES) {
            let moves =
                some.iter().map(|(part, found)| self.bring_part_home(journal, part, &found.exceptions));
            let moved = join_all(moves).await;
            for ((part, _), error) in
                some.iter().zip(moved).filter_map(|(part, moved)| Some((part, moved.err()?)))
            {
                tracing::warn!(part = %part.id, %error, "a part of the journal waits to go home");
            }
        }
    }

    /// Store what was found not to be at home there and flush, then delete the guests' copies, those known before, too: a
    /// crash may have left one.
    async fn bring_part_home(
        self: &Arc<Self>,
        journal: &Journal,
        known: &ObjectRecord,
        found: &[Exception],
    ) -> Result<()> {
        let part = ObjectRecord { exceptions: found.to_vec(), ..known.clone() };
        let moved = self.stripe.move_home(&part).await;
        if !journal.revise_part(part.id, moved.as_deref().unwrap_or(found)) {
            if !found.is_empty() {
                // It was deleted meanwhile, with its snapshot or by a checkpoint, perhaps before the last of it was stored.
                self.stripe.delete(&[part]).await;
            }
            return Ok(());
        }
        let now = ObjectRecord { exceptions: moved?, ..known.clone() };
        let others = known.exceptions.iter().filter(|exception| !found.contains(exception));
        let guests: Vec<Exception> = found.iter().chain(others).copied().collect();
        if !self.stripe.drop_guests(&now, &guests).await {
            tracing::info!(part = %known.id, "a guest keeps a copy that is not needed");
        }
        Ok(())
    }
}
