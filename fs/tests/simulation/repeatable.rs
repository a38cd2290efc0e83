//! What makes a run depend on its seed alone: one thread, a clock that stands still while anything can be done, and
//! randomness of the operating system that is none.
//!
//! The standard library seeds each thread's hash maps from getrandom(2), and so decides in which order they are gone
//! through. This program brings its own getrandom, which answers from the seed on the threads of a simulation.

use std::cell::Cell;
use std::future::Future;

use avidfs_tests::seed::mixed;

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Run a simulation on a thread of its own; a panic in it is the error.
pub fn run<T: Send + 'static, F: Future<Output = T>>(
    seed: u64,
    simulation: impl FnOnce() -> F + Send + 'static,
) -> std::thread::Result<T> {
    let name = format!("seed {seed}");
    let thread = std::thread::Builder::new().name(name).spawn(move || {
        STATE.set(Some(seed));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(simulation())
    });
    thread.unwrap().join()
}

/// As the C library's; glibc's own is not needed on Linux, where the system call always works.
///
/// # Safety
/// `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(
    buffer: *mut libc::c_void,
    length: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    // A thread that ends has no seed any more.
    let Some(state) = STATE.try_with(Cell::get).ok().flatten() else {
        // SAFETY: as the caller promises.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) } as libc::ssize_t;
    };
    let mut state = state;
    for at in 0..length {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        // SAFETY: within the caller's buffer.
        unsafe { buffer.cast::<u8>().add(at).write(mixed(state) as u8) };
    }
    STATE.set(Some(state));
    length as libc::ssize_t
}
