//! Making durable what was acknowledged: one round of fdatasync for all who wait, and what follows when one fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::disk;
use super::segment::Segment;
use super::{BootId, Store};
use crate::blocking;
use crate::error::StoreError;

/// What a flush that is carried out in place covers at most.
const SMALL_BYTES: u64 = 64 << 10;
/// How long the one before it took at most: so long a thread of the event loop may be held up.
pub(super) const SHORT: Duration = Duration::from_millis(2);

/// Rounds asked for and done.
#[derive(Default)]
pub struct Flushing {
    pub(super) turn: Arc<Mutex<()>>,
    pub(super) asked: AtomicU64,
    done: AtomicU64,
    /// The last round was done, and done soon.
    pub(super) was_short: AtomicBool,
}

impl Store {
    /// Make everything acknowledged so far survive a power loss.
    ///
    /// Who comes while a round runs shares the next one. After an error it is not known what is safe, and the boot id
    /// is another one; a later success covers it again.
    pub async fn flush(self: &Arc<Self>) -> Result<(), StoreError> {
        let ticket = self.flushing.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let turn = self.flushing.turn.clone().lock_owned().await;
        if self.flushing.done.load(Ordering::SeqCst) >= ticket {
            return Ok(());
        }
        if self.is_quick()
            && let Some(_place) = Place::take()
        {
            return self.flush_round(turn);
        }
        let store = self.clone();
        // The round keeps its turn even if the one who asked goes away: the next must not overtake it.
        blocking::run(move || store.flush_round(turn)).await
    }

    /// The same for who was acknowledged something under `boot`.
    ///
    /// # Errors
    /// As `flush`, and if that is no longer the boot id: what was acknowledged may be lost, though the flush succeeded.
    pub async fn flush_since(self: &Arc<Self>, boot: BootId) -> Result<(), StoreError> {
        self.flush().await?;
        match self.boot() == boot {
            true => Ok(()),
            false => Err(StoreError::Flush("a flush failed meanwhile".into())),
        }
    }

    /// The same as `flush`, for threads that may block; it panics on one that runs asynchronous tasks if it has to wait.
    pub fn flush_blocking(&self) -> Result<(), StoreError> {
        let ticket = self.flushing.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let turn = self.flushing.turn.clone();
        let turn = turn.clone().try_lock_owned().unwrap_or_else(|_| turn.blocking_lock_owned());
        if self.flushing.done.load(Ordering::SeqCst) >= ticket {
            return Ok(());
        }
        self.flush_round(turn)
    }

    /// Whether the round to come is expected to be short: then handing it to another thread, and hearing of it, costs more.
    fn is_quick(&self) -> bool {
        self.flushing.was_short.load(Ordering::SeqCst) && self.log.unflushed() <= SMALL_BYTES
    }

    fn flush_round(&self, _turn: OwnedMutexGuard<()>) -> Result<(), StoreError> {
        let began = Instant::now();
        self.flushing.was_short.store(false, Ordering::SeqCst);
        let covers = self.flushing.asked.load(Ordering::SeqCst);
        self.counts.flushes.add(1);
        self.log.begin_flush();
        let broken = self.log.segments_where(|segment| segment.broken.load(Ordering::SeqCst));
        broken.iter().for_each(|segment| segment.begin_move());
        if let Err(error) = self.cover(&broken) {
            broken.iter().for_each(|segment| self.undo_move(segment));
            return Err(error);
        }
        self.flushing.done.store(covers, Ordering::SeqCst);
        for segment in broken {
            self.end_move(&segment)?;
        }
        self.flushing.was_short.store(began.elapsed() <= SHORT, Ordering::SeqCst);
        Ok(())
    }

    /// Have everything on the disk that was acknowledged before; of `broken` segments copies.
    fn cover(&self, broken: &[Arc<Segment>]) -> Result<(), StoreError> {
        self.evacuate(broken)?;
        self.log.write_ahead(|| self.available(self.used.load(Ordering::SeqCst)));
        let settled = self.sync_segments().and_then(|useless| {
            // Only now: what is gone here may have been copied to what was flushed just now.
            useless.iter().try_for_each(|segment| self.remove_if_useless(segment))?;
            self.sync_names()
        });
        if settled.is_err() {
            self.draw_boot();
        }
        settled
    }

    /// Copy away what broken segments hold: asking a disk again that lost pages would only be told that all is well.
    fn evacuate(&self, broken: &[Arc<Segment>]) -> Result<(), StoreError> {
        for segment in broken {
            let dropped = self.move_out(segment).map_err(|error| StoreError::Flush(error.to_string()))?;
            if dropped > 0 {
                self.draw_boot();
            }
        }
        Ok(())
    }

    /// Flush what was written, and the names of new segments. Returns the segments that nothing is left in.
    fn sync_segments(&self) -> Result<Vec<Arc<Segment>>, StoreError> {
        let mut failed = Ok(());
        let mut spent = Vec::new();
        for segment in self.log.segments_where(Segment::is_unsettled) {
            // Before the flag is taken down: what a writer wrote until now is then covered.
            let finished = segment.left.load(Ordering::SeqCst) && segment.writers.load(Ordering::SeqCst) == 0;
            if segment.broken.load(Ordering::SeqCst) {
                continue;
            }
            if segment.is_spent() {
                spent.push(segment);
                continue;
            }
            if finished && !segment.is_sealed() {
                trim(&segment);
            }
            if segment.dirty.swap(false, Ordering::SeqCst)
                && let Err(error) = segment.sync()
            {
                self.give_up(&segment);
                failed = Err(StoreError::Flush(error.to_string()));
            } else if finished && !segment.is_sealed() {
                seal(&segment);
            }
        }
        self.sync_names().and(failed).map(|()| spent)
    }

    fn sync_names(&self) -> Result<(), StoreError> {
        self.log.sync_names().map_err(|(error, unnamed)| {
            unnamed.iter().for_each(|segment| self.give_up(segment));
            StoreError::Flush(error.to_string())
        })
    }

    fn give_up(&self, segment: &Segment) {
        tracing::error!(segment = segment.number, "flush failed");
        segment.broken.store(true, Ordering::SeqCst);
        self.log.leave(Some(segment));
    }

    fn draw_boot(&self) {
        *self.boot.lock() = BootId(disk::random_bytes());
    }
}

/// The one thread of this process's event loop that may wait for a disk. Where there is no other, nothing is answered
/// meanwhile; a read of a fragment that is not in memory costs as much.
pub(super) struct Place;

static PLACE_TAKEN: AtomicBool = AtomicBool::new(false);

impl Place {
    /// `None` while another has it.
    pub(super) fn take() -> Option<Place> {
        (!PLACE_TAKEN.swap(true, Ordering::SeqCst)).then_some(Place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        PLACE_TAKEN.store(false, Ordering::SeqCst);
    }
}

fn trim(segment: &Segment) {
    // It keeps some zeros then, which the next start finds.
    if let Err(error) = segment.trim() {
        tracing::debug!(segment = segment.number, %error, "trim");
    }
}

fn seal(segment: &Segment) {
    // It stays open then, and costs the next start a verification.
    if let Err(error) = segment.seal() {
        tracing::warn!(segment = segment.number, %error, "seal");
    }
}
