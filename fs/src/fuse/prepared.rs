//! Names read ahead for who lists a directory: the next answer's, while the kernel hands out those of this one.
//! It knows neither the kernel nor the store.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::inode::Ino;
use crate::metadata::Name;

/// A stretch of a directory's names in the order of their cookies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Page {
    pub(super) names: Vec<Name>,
    /// Whether the directory may have further ones.
    pub(super) goes_on: bool,
}

/// See the module: of each directory that is being listed, what follows the last name handed out.
#[derive(Default)]
pub(super) struct Prepared(Mutex<HashMap<Ino, Arc<Slot>>>);

#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

/// Each names the cookie before the page.
#[derive(Default)]
enum State {
    #[default]
    Nothing,
    /// Somebody reads it.
    Coming(u64),
    Here(u64, Page),
}

/// The promise of a page; without `here` it is broken.
pub(super) struct Promise(Arc<Slot>);

impl Prepared {
    /// The names after a cookie, if they are prepared; waits for them if they are promised.
    pub(super) fn take(&self, directory: Ino, after: u64) -> Option<Page> {
        let slot = self.0.lock().get(&directory)?.clone();
        let mut state = slot.state.lock();
        while matches!(&*state, State::Coming(coming) if *coming == after) {
            slot.changed.wait(&mut state);
        }
        match std::mem::take(&mut *state) {
            State::Here(prepared, page) if prepared == after => Some(page),
            other => {
                *state = other;
                None
            }
        }
    }

    /// Say that the names after a cookie are being read; none if others of the directory are at this moment.
    pub(super) fn promise(&self, directory: Ino, after: u64) -> Option<Promise> {
        let slot = self.0.lock().entry(directory).or_default().clone();
        let mut state = slot.state.lock();
        if let State::Coming(_) = *state {
            return None;
        }
        *state = State::Coming(after);
        drop(state);
        Some(Promise(slot))
    }

    /// Nobody goes on listing it.
    pub(super) fn forget(&self, directory: Ino) {
        self.0.lock().remove(&directory);
    }
}

impl Promise {
    /// Here they are.
    pub(super) fn here(self, page: Page) {
        let mut state = self.0.state.lock();
        if let State::Coming(after) = *state {
            *state = State::Here(after, page);
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        if let State::Coming(_) = *state {
            *state = State::Nothing;
        }
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: Ino = Ino(7);

    fn page(first: u64) -> Page {
        let name = |cookie: u64| Name { cookie, name: vec![b'a'], ino: Ino(cookie), mode: 0 };
        Page { names: (first..first + 3).map(name).collect(), goes_on: true }
    }

    #[test]
    fn what_was_prepared_is_for_one_who_goes_on_from_there() {
        let prepared = Prepared::default();
        assert_eq!(prepared.take(DIRECTORY, 10), None);
        let promise = prepared.promise(DIRECTORY, 10).unwrap();
        assert!(prepared.promise(DIRECTORY, 20).is_none(), "one at a time");
        promise.here(page(11));
        assert_eq!((prepared.take(DIRECTORY, 9), prepared.take(Ino(8), 10)), (None, None));
        assert_eq!(prepared.take(DIRECTORY, 10), Some(page(11)));
        assert_eq!(prepared.take(DIRECTORY, 10), None, "names are not handed out twice");
        prepared.promise(DIRECTORY, 13).unwrap().here(page(14));
        prepared.promise(DIRECTORY, 16).unwrap().here(page(17));
        assert_eq!(prepared.take(DIRECTORY, 13), None, "another lister's are in its place");
        prepared.forget(DIRECTORY);
        assert!(prepared.take(DIRECTORY, 16).is_none() && prepared.0.lock().is_empty());
    }

    #[test]
    fn who_asks_for_what_is_promised_waits_until_it_is_here_or_the_promise_is_broken() {
        let prepared = Prepared::default();
        for kept in [true, false] {
            let promise = prepared.promise(DIRECTORY, 10).unwrap();
            assert_eq!(prepared.take(DIRECTORY, 9), None, "others do not wait");
            std::thread::scope(|threads| {
                let asking = threads.spawn(|| prepared.take(DIRECTORY, 10));
                std::thread::sleep(std::time::Duration::from_millis(50));
                assert!(!asking.is_finished());
                match kept {
                    true => promise.here(page(11)),
                    false => drop(promise),
                }
                assert_eq!(asking.join().unwrap(), kept.then(|| page(11)));
            });
        }
    }
}
