//! Counters, and how Prometheus reads them.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Count `more`.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What happened inside a store.
#[derive(Default)]
pub struct StoreCounts {
    /// Fragments stored, without those that were there already.
    pub stored: Counter,
    /// Fragments deleted.
    pub deleted: Counter,
    /// Rounds of fdatasync.
    pub flushes: Counter,
    /// Segments rewritten.
    pub compactions: Counter,
    /// Records found damaged.
    pub damaged: Counter,
}
