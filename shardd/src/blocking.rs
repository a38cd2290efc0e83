//! Work that waits for a disk, off the event loop where there is something else to do.

use tokio::runtime::{Handle, RuntimeFlavor};

/// With less than so many bytes to hash and write, handing work to another thread costs more than doing it.
pub const INLINE_BYTES: usize = 64 << 10;

/// Carry out blocking work, which does not panic, on a thread for it. On a runtime of one thread it is done in place:
/// what then happens in which order depends on nothing but the program, which is what makes a simulation repeatable.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    if is_alone() {
        return work();
    }
    tokio::task::spawn_blocking(work).await.expect("the store does not panic")
}

/// The same for work on so many bytes that waits for the disk only if they are many: in place if there is little of it.
pub async fn run_if_much<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> T {
    if bytes < INLINE_BYTES { work() } else { run(work).await }
}

/// The same on this thread in any case: another one goes on with the event loop if there is much to do. For bytes that have
/// just come here, or are sent from here next, and lie in the cache of this processor. Whatever else the task at hand waits
/// for does not go on meanwhile.
pub fn run_here<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    if bytes <= INLINE_BYTES || is_alone() { work() } else { tokio::task::block_in_place(work) }
}

fn is_alone() -> bool {
    Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread
}
