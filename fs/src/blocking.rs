//! Work that waits for a disk or computes for long, off the event loop where there is something else to do.
//!
//! On a runtime of one thread it is done in place: what then happens in which order depends on nothing but the program,
//! which is what makes a simulation repeatable.

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Semaphore, mpsc};

use crate::error::{Error, Result};

/// Carry out blocking work; a panic in it is an error.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    if in_place() {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::Host(error.to_string()))?
}

/// Carry out blocking work that hands out pieces, which are to be received while it goes on: at most one waits. When
/// nobody receives them any more, the work is told so by an error.
pub fn pieces<P: Send + 'static, T: Send + 'static>(
    work: impl FnOnce(&mut dyn FnMut(P) -> Result<()>) -> Result<T> + Send + 'static,
) -> (mpsc::Receiver<P>, impl Future<Output = Result<T>>) {
    let in_place = in_place();
    let (sender, pieces) = mpsc::channel(if in_place { Semaphore::MAX_PERMITS } else { 1 });
    let given_up = || Error::Host("nobody wants the rest".into());
    let mut hand_out = move |piece| match in_place {
        true => sender.try_send(piece).map_err(|_| given_up()),
        false => sender.blocking_send(piece).map_err(|_| given_up()),
    };
    let work = move || work(&mut hand_out);
    let done = match in_place {
        true => Done::Already(work()),
        false => Done::Soon(tokio::task::spawn_blocking(work)),
    };
    let done = async {
        match done {
            Done::Already(done) => done,
            Done::Soon(done) => done.await.map_err(|error| Error::Host(error.to_string()))?,
        }
    };
    (pieces, done)
}

enum Done<T> {
    Already(Result<T>),
    Soon(tokio::task::JoinHandle<Result<T>>),
}

fn in_place() -> bool {
    Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn a_thousand_numbers() {
        let (mut pieces, done) = pieces(|hand_out| {
            (0..1000).try_for_each(hand_out)?;
            Ok("done")
        });
        let mut received = Vec::new();
        while let Some(piece) = pieces.recv().await {
            received.push(piece);
        }
        assert_eq!((received, done.await.unwrap()), ((0..1000).collect::<Vec<i32>>(), "done"));
        assert_eq!(run(|| Ok(1)).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn pieces_come_in_order_from_work_in_place() {
        a_thousand_numbers().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn pieces_come_in_order_from_work_on_a_thread() {
        a_thousand_numbers().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn work_ends_when_nobody_wants_its_pieces() {
        let (pieces, done) = pieces(|hand_out| (0..).try_for_each(hand_out));
        drop(pieces);
        assert!(matches!(done.await, Err(Error::Host(_))));
    }
}
