//! What befalls a run, and the trace of it: the one source of chance, the faults in force, and who is cut off.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use avidfs::transport::faulty::{Fault, Verb};
use avidfs_tests::seed::Dice;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Lines of the trace that are shown when a run fails.
const SHOWN: usize = 200;

/// Of a thousand requests, how many meet what.
#[derive(Clone, Copy, Default, Debug)]
pub struct Weather {
    pub lose: u64,
    pub lose_answer: u64,
    pub delay: u64,
}

/// See the module.
#[derive(Clone)]
pub struct Fate(Arc<Mutex<State>>);

struct State {
    dice: Dice,
    weather: Weather,
    trace: Trace,
    began: Instant,
    /// The request that fails, and how; counted from 0 when set.
    failing: Option<(u64, Fault)>,
    requests: u64,
}

struct Trace {
    hash: blake3::Hasher,
    last: Vec<String>,
    lines: u64,
}

impl Fate {
    pub fn new(seed: u64) -> Fate {
        let trace = Trace { hash: blake3::Hasher::new(), last: Vec::new(), lines: 0 };
        let (dice, weather) = (Dice::new(seed), Weather::default());
        let began = Instant::now();
        Fate(Arc::new(Mutex::new(State { dice, weather, trace, began, failing: None, requests: 0 })))
    }

    pub fn below(&self, bound: u64) -> u64 {
        self.0.lock().dice.below(bound)
    }

    pub fn chance(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    pub fn bytes(&self, length: usize) -> Vec<u8> {
        let mut state = self.0.lock();
        (0..length).map(|_| state.dice.roll() as u8).collect()
    }

    pub fn set_weather(&self, weather: Weather) {
        self.0.lock().weather = weather;
    }

    /// The nth request from now on meets this fault.
    pub fn fail_request(&self, nth: u64, fault: Fault) {
        let mut state = self.0.lock();
        (state.requests, state.failing) = (0, Some((nth, fault)));
    }

    pub fn requests(&self) -> u64 {
        self.0.lock().requests
    }

    pub fn note(&self, what: &str) {
        let mut state = self.0.lock();
        let at = state.began.elapsed().as_millis();
        state.trace.note(format!("{at:>7} {what}"));
    }

    /// Digest of everything that happened.
    pub fn digest(&self) -> blake3::Hash {
        self.0.lock().trace.hash.finalize()
    }

    pub fn last_lines(&self) -> String {
        let state = self.0.lock();
        state.trace.last.iter().fold(String::new(), |mut all, line| {
            let _ = writeln!(all, "{line}");
            all
        })
    }

    /// What befalls a request of a mount.
    pub fn of_request(&self, line: &Line, node: &str, verb: Verb) -> Option<Fault> {
        if line.is_cut() {
            return Some(Fault::Hang);
        }
        let fault = {
            let mut state = self.0.lock();
            let count = state.requests;
            state.requests += 1;
            let Weather { lose, lose_answer, delay } = state.weather;
            match state.failing {
                Some((nth, fault)) if nth == count => fault,
                _ => match state.dice.below(1000) {
                    lot if lot < lose => Fault::Lose,
                    lot if lot < lose + lose_answer => Fault::LoseAnswer,
                    lot if lot < lose + lose_answer + delay => {
                        Fault::Delay(Duration::from_millis(5 + state.dice.below(400)))
                    }
                    // Every request takes a while, and so one overtakes another.
                    _ => Fault::Delay(Duration::from_millis(1 + state.dice.below(3))),
                },
            }
        };
        self.note(&format!("{}: {verb:?} to {node}: {fault:?}", line.of));
        line.count();
        Some(fault)
    }
}

impl Trace {
    fn note(&mut self, line: String) {
        self.hash.update(line.as_bytes());
        self.lines += 1;
        self.last.push(line);
        if self.last.len() > 2 * SHOWN {
            self.last.drain(..SHOWN);
        }
    }
}

/// What connects a mount with the nodes. Once it is cut nothing of the mount reaches them: it crashed.
#[derive(Default)]
pub struct Line {
    /// Whose.
    of: String,
    cut: AtomicBool,
    /// Requests until it crashes by itself.
    left: Mutex<Option<u64>>,
    crashed: Notify,
}

impl Line {
    pub fn of(of: String) -> Line {
        Line { of, ..Line::default() }
    }

    pub fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        self.crashed.notify_waiters();
        self.crashed.notify_one();
    }

    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    /// Crash after so many more requests.
    pub fn cut_after(&self, requests: u64) {
        *self.left.lock() = Some(requests);
    }

    pub async fn crashed(&self) {
        while !self.is_cut() {
            self.crashed.notified().await;
        }
    }

    fn count(&self) {
        let mut left = self.left.lock();
        if let Some(requests) = &mut *left {
            if *requests == 0 {
                self.cut();
            } else {
                *requests -= 1;
            }
        }
    }
}
