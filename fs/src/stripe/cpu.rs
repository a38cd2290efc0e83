//! Coding and checking: on no more threads than there are cores, and off the event loop where it takes long.

use std::sync::Arc;

use common::hash::HashId;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Up to here the work is done before another thread would have begun it.
const INLINE_BYTES: usize = 64 << 10;

/// Up to here a check is done at once where the hash is BLAKE3: 2 MiB take 0.4 ms. Handing a fragment of the usual length
/// to another thread and back took a tenth of all the time a stream of reads has.
const CHECKED_INLINE_BYTES: usize = 2 << 20;

/// The bound.
pub(super) struct Cpu {
    permits: Arc<Semaphore>,
}

impl Cpu {
    pub(super) fn new() -> Cpu {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Cpu { permits: Arc::new(Semaphore::new(cores)) }
    }

    /// Check so many bytes.
    pub(super) async fn check<T: Send + 'static>(
        &self,
        hash: HashId,
        bytes: usize,
        check: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        if hash == HashId::Blake3 && bytes <= CHECKED_INLINE_BYTES {
            return check();
        }
        self.run(bytes, check).await
    }

    /// Do `work` over so many bytes: here when they are few, otherwise on a thread of its own when one is free.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        if bytes <= INLINE_BYTES {
            return work();
        }
        let permits = self.permits.clone();
        // On a task of its own: a permit given to a future that its owner does not poll, because it awaits another of
        // these, would be held for ever. Nobody awaits the set any more: the task ends.
        let mut working = JoinSet::new();
        working.spawn(async move {
            let permit = permits.acquire_owned().await.expect("the semaphore is never closed");
            let working = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                work()
            });
            working.await
        });
        let ended = working.join_next().await.expect("one task was spawned");
        match ended.and_then(|done| done).map_err(|error| error.try_into_panic()) {
            Ok(done) => done,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The runtime is ending and takes this task with it.
            Err(Err(_)) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regression: a read decoded while checks of its other requests waited for the same permits; it hung.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn work_goes_on_that_nobody_polls() {
        let cpu = Cpu::new();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let started: Vec<_> = (0..4 * cores)
            .map(|_| {
                let mut work =
                    Box::pin(cpu.run(1 << 20, || std::thread::sleep(std::time::Duration::from_millis(2))));
                assert!(futures_util::FutureExt::now_or_never(&mut work).is_none());
                work
            })
            .collect();
        let further = tokio::time::timeout(std::time::Duration::from_secs(20), cpu.run(1 << 20, || ()));
        further.await.expect("the permits come back");
        drop(started);
    }
}
