//! What a node does in the background, on a thread of its own: seals segments, and compacts them.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Store;
use super::segment::Segment;

/// How often every segment is looked at: a compaction that failed for want of space is tried again then.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// What is to be done, and who does it.
#[derive(Default)]
pub struct Upkeep {
    wanted: Mutex<Wanted>,
    woken: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Wanted {
    stop: bool,
    flush: bool,
    segments: BTreeSet<u32>,
}

impl Wanted {
    fn take(&mut self) -> Option<Task> {
        if std::mem::take(&mut self.flush) {
            return Some(Task::Flush);
        }
        self.segments.pop_first().map(Task::Look)
    }
}

enum Task {
    Flush,
    Look(u32),
    Sweep,
}

impl Upkeep {
    /// Begin to work for `store`, until it is gone or `stop` is called.
    pub fn start(self: &Arc<Self>, store: Weak<Store>) -> std::io::Result<()> {
        let upkeep = self.clone();
        let thread = std::thread::Builder::new().name("shardd-upkeep".into()).spawn(move || {
            while let Some(task) = upkeep.next()
                && let Some(store) = store.upgrade()
            {
                store.perform(task);
            }
        })?;
        *self.thread.lock() = Some(thread);
        Ok(())
    }

    /// Flush soon, which seals what was left.
    pub fn flush_soon(&self) {
        self.wanted.lock().flush = true;
        self.woken.notify_one();
    }

    /// Look at a segment soon if it may be worth compacting.
    pub fn after_burial(&self, segment: &Segment) {
        if segment.is_sparse() && self.wanted.lock().segments.insert(segment.number) {
            self.woken.notify_one();
        }
    }

    /// End what runs and do nothing more.
    pub fn stop(&self) {
        self.ask_to_stop();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }

    fn ask_to_stop(&self) {
        self.wanted.lock().stop = true;
        self.woken.notify_all();
    }

    fn next(&self) -> Option<Task> {
        let mut wanted = self.wanted.lock();
        loop {
            if wanted.stop {
                return None;
            }
            if let Some(task) = wanted.take() {
                return Some(task);
            }
            if self.woken.wait_for(&mut wanted, SWEEP_INTERVAL).timed_out() {
                return Some(Task::Sweep);
            }
        }
    }
}

impl Store {
    /// Stop the background work, flush and seal what is there. Changes after it are kept too, but not flushed.
    pub fn close(&self) -> Result<(), crate::StoreError> {
        self.upkeep.stop();
        self.log.leave(None);
        self.flush_blocking()
    }

    /// Do what there is to do in the background, here; for a store that was opened without upkeep.
    pub fn tend(&self) {
        loop {
            let task = self.upkeep.wanted.lock().take();
            let Some(task) = task else { return };
            self.perform(task);
        }
    }

    fn perform(&self, task: Task) {
        match task {
            // Who waits for a flush hears of its failure; here it is only tried early.
            Task::Flush => drop(self.flush_blocking()),
            Task::Look(segment) => self.log.segment(segment).iter().for_each(|segment| self.look(segment)),
            Task::Sweep => {
                let sparse = |segment: &Arc<Segment>| {
                    2 * segment.live_bytes() < segment.filled.load(std::sync::atomic::Ordering::SeqCst)
                };
                self.log.segments().iter().filter(|segment| sparse(segment)).for_each(|s| self.look(s));
            }
        }
    }

    /// Compact a sealed segment if that gives noticeable space back.
    fn look(&self, segment: &Arc<Segment>) {
        if !segment.is_sealed() {
            return;
        }
        segment.look();
        let _ = segment.punch_dead();
        if !segment.wastes_blocks().unwrap_or(false) {
            return;
        }
        if let Err(error) = self.compact(segment) {
            tracing::warn!(segment = segment.number, %error, "compaction");
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.upkeep.ask_to_stop();
    }
}
