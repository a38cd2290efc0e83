//! Work that begins on the thread that asks for it, and becomes a task only once something it waits for has happened.
//!
//! A request of the kernel is read by a thread of its own. What follows from it could be left to a task, but waking a
//! thread for that takes longer than sending a small file's fragments; and the thread that receives the answers, which
//! goes on with it, is awake by then.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::Handle;

/// How often work is polled here that was woken meanwhile: a set of futures wakes itself once when all were polled.
const POLLS: u32 = 4;

/// Begin work: what it need not wait for is done when this returns. To be called inside the runtime, whose task does
/// the rest.
pub fn begin(work: impl Future<Output = ()> + Send + 'static) {
    let begun = Arc::new(Begun { runtime: Handle::current(), rest: Mutex::default() });
    begun.poll_here(Box::pin(work));
}

struct Begun {
    runtime: Handle,
    rest: Mutex<Rest>,
}

#[derive(Default)]
enum Rest {
    /// Nobody knows yet whether there is any.
    #[default]
    Unknown,
    /// Something happened meanwhile: what is left can go on at once.
    Woken,
    Waiting(BoxFuture<'static, ()>),
    /// A task's.
    Gone,
}

impl Begun {
    fn poll_here(self: Arc<Self>, mut work: BoxFuture<'static, ()>) {
        let waker = Waker::from(self.clone());
        for _ in 0..POLLS {
            if let Poll::Ready(()) = work.as_mut().poll(&mut Context::from_waker(&waker)) {
                return;
            }
            let mut rest = self.rest.lock();
            if let Rest::Unknown = *rest {
                *rest = Rest::Waiting(work);
                return;
            }
            *rest = Rest::Unknown;
        }
        *self.rest.lock() = Rest::Gone;
        self.runtime.spawn(work);
    }
}

impl Wake for Begun {
    fn wake(self: Arc<Self>) {
        let mut rest = self.rest.lock();
        match std::mem::replace(&mut *rest, Rest::Gone) {
            Rest::Waiting(work) => {
                drop(rest);
                self.runtime.spawn(work);
            }
            Rest::Unknown | Rest::Woken => *rest = Rest::Woken,
            Rest::Gone => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread::{self, ThreadId};

    use tokio::sync::oneshot;

    use super::*;

    /// Work that waits once, and tells on which threads its two halves ran.
    fn halves(
        wait: impl Future<Output = ()> + Send + 'static,
    ) -> (impl Future<Output = ()> + Send + 'static, oneshot::Receiver<[ThreadId; 2]>) {
        let (told, threads) = oneshot::channel();
        let work = async move {
            let first = thread::current().id();
            wait.await;
            told.send([first, thread::current().id()]).unwrap();
        };
        (work, threads)
    }

    #[tokio::test]
    async fn what_waits_for_nothing_is_done_at_once() {
        let (work, mut threads) = halves(async {});
        begin(work);
        let here = thread::current().id();
        assert_eq!(threads.try_recv().unwrap(), [here; 2]);
    }

    #[test]
    fn the_rest_goes_on_in_the_runtime() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (open, opened) = oneshot::channel::<()>();
        let (work, threads) = halves(async { opened.await.unwrap() });
        {
            let _inside = runtime.enter();
            begin(work);
        }
        open.send(()).unwrap();
        let [first, second] = threads.blocking_recv().unwrap();
        assert_eq!(first, thread::current().id());
        assert_ne!(second, first);
    }

    #[tokio::test]
    async fn what_is_woken_while_it_is_begun_goes_on() {
        let (work, threads) = halves(tokio::task::yield_now());
        begin(work);
        threads.await.unwrap();
        let (work, threads) = halves(async {
            let mut polls = 0;
            std::future::poll_fn(|context| {
                polls += 1;
                context.waker().wake_by_ref();
                context.waker().wake_by_ref();
                if polls < POLLS + 3 { Poll::Pending } else { Poll::Ready(()) }
            })
            .await;
        });
        begin(work);
        threads.await.unwrap();
    }

    #[test]
    fn it_goes_on_once_however_often_it_is_woken() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        for _ in 0..1000 {
            let polls = Arc::new(AtomicU32::new(0));
            let (send, woken) = std::sync::mpsc::channel();
            let (done, ended) = oneshot::channel();
            let mut done = Some(done);
            let counted = polls.clone();
            let work = std::future::poll_fn(move |context| {
                if counted.fetch_add(1, Ordering::SeqCst) == 0 {
                    send.send(context.waker().clone()).unwrap();
                    return Poll::Pending;
                }
                done.take().unwrap().send(()).unwrap();
                Poll::Ready(())
            });
            let other = thread::spawn(move || {
                let waker: Waker = woken.recv().unwrap();
                waker.wake_by_ref();
                waker.wake();
            });
            {
                let _inside = runtime.enter();
                begin(work);
            }
            ended.blocking_recv().unwrap();
            other.join().unwrap();
            assert_eq!(polls.load(Ordering::SeqCst), 2);
        }
    }

    #[tokio::test]
    async fn what_nobody_can_wake_any_more_is_dropped() {
        let (work, threads) = halves(std::future::pending());
        begin(work);
        assert!(threads.await.is_err());
    }
}
