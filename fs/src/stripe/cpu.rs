//! Coding and checking off the event loop, on no more threads than there are cores.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Up to here the work is done before another thread would have begun it.
const INLINE_BYTES: usize = 64 << 10;

/// The bound.
pub(super) struct Cpu {
    permits: Arc<Semaphore>,
}

impl Cpu {
    pub(super) fn new() -> Cpu {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Cpu { permits: Arc::new(Semaphore::new(cores)) }
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
