//! Work that waits for a disk, off the event loop where there is something else to do.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Carry out blocking work, which does not panic, on a thread for it. On a runtime of one thread it is done in place:
/// what then happens in which order depends on nothing but the program, which is what makes a simulation repeatable.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return work();
    }
    tokio::task::spawn_blocking(work).await.expect("the store does not panic")
}
