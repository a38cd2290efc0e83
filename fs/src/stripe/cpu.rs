//! Coding and checking off the event loop, on no more threads than there are cores.

use std::sync::Arc;

use tokio::sync::Semaphore;

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
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let working = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        match working.await.map_err(|error| error.try_into_panic()) {
            Ok(done) => done,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The runtime is ending and takes this task with it.
            Err(Err(_)) => std::future::pending().await,
        }
    }
}
