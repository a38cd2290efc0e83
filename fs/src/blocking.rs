//! Work that waits for a disk or computes for long, off the event loop where there is something else to do.
//!
//! On a runtime of one thread it is done in place: what then happens in which order depends on nothing but the program,
//! which is what makes a simulation repeatable.

use std::pin::pin;

use futures_util::stream::{self, Stream, StreamExt};
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

/// Carry out blocking work on pieces that come while it goes on: at most one waits. Where nobody waits for the work any
/// more, the pieces end with an error, so that it takes no part of them for the whole.
pub async fn run_on<P: Send + 'static, T: Send + 'static>(
    pieces: impl Stream<Item = Result<P>>,
    work: impl FnOnce(&mut dyn Iterator<Item = Result<P>>) -> Result<T> + Send + 'static,
) -> Result<T> {
    if in_place() {
        return work(&mut pieces.collect::<Vec<_>>().await.into_iter());
    }
    let (sender, mut received) = mpsc::channel(1);
    let mut next = move || received.blocking_recv().unwrap_or_else(|| Some(Err(given_up())));
    let working = tokio::task::spawn_blocking(move || work(&mut std::iter::from_fn(&mut next)));
    let mut pieces = pin!(pieces.map(Some).chain(stream::once(async { None })));
    while let Some(piece) = pieces.next().await {
        if sender.send(piece).await.is_err() {
            break;
        }
    }
    working.await.map_err(|error| Error::Host(error.to_string()))?
}

fn given_up() -> Error {
    Error::Host("nobody wants the rest".into())
}

/// Carry out blocking work that hands out pieces, which are to be received while it goes on: at most one waits. When
/// nobody receives them any more, the work is told so by an error.
pub fn pieces<P: Send + 'static, T: Send + 'static>(
    work: impl FnOnce(&mut dyn FnMut(P) -> Result<()>) -> Result<T> + Send + 'static,
) -> (mpsc::Receiver<P>, impl Future<Output = Result<T>>) {
    let in_place = in_place();
    let (sender, pieces) = mpsc::channel(if in_place { Semaphore::MAX_PERMITS } else { 1 });
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::sync::oneshot;

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
        let sum = run_on(stream::iter((0..1000).map(Ok)), |pieces| pieces.sum::<Result<i32>>());
        assert_eq!(sum.await.unwrap(), 499_500);
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
    async fn work_is_given_the_next_piece_when_it_asks_for_it() {
        let (made, taken) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (count, ahead) = (made.clone(), taken.clone());
        let pieces = stream::iter(0..100).map(move |_| {
            // One is being taken, one waits, and one wants to.
            assert!(count.fetch_add(1, Ordering::SeqCst) <= ahead.load(Ordering::SeqCst) + 2);
            Ok(())
        });
        let work = move |pieces: &mut dyn Iterator<Item = Result<()>>| {
            for piece in pieces {
                taken.fetch_add(1, Ordering::SeqCst);
                piece?;
            }
            Ok(())
        };
        run_on(pieces, work).await.unwrap();
        assert_eq!(made.load(Ordering::SeqCst), 100);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_part_of_the_pieces_is_never_taken_for_the_whole() {
        let (told, outcome) = oneshot::channel();
        let work = move |pieces: &mut dyn Iterator<Item = Result<i32>>| {
            let sum = pieces.sum::<Result<i32>>();
            told.send(sum.clone()).unwrap();
            sum
        };
        let pieces = stream::iter([Ok(1), Ok(2)]).chain(stream::pending());
        let given_up = tokio::time::timeout(Duration::from_millis(10), run_on(pieces, work)).await;
        assert!(given_up.is_err());
        assert!(matches!(outcome.await.unwrap(), Err(Error::Host(_))));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn work_ends_when_nobody_wants_its_pieces() {
        let (pieces, done) = pieces(|hand_out| (0..).try_for_each(hand_out));
        drop(pieces);
        assert!(matches!(done.await, Err(Error::Host(_))));
    }
}
