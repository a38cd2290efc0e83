//! Counters, and how Prometheus reads them.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use common::wire::RefusalCode;
use parking_lot::Mutex;

use crate::store::Store;

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

/// What requests ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Keep a fragment.
    Put,
    /// Read a fragment.
    Get,
    /// Delete.
    Delete,
    /// Many at once.
    Batch,
    /// Make durable.
    Flush,
    /// A page of keys.
    List,
    /// Everything else.
    Other,
}

const OPERATIONS: [(Operation, &str); 7] = [
    (Operation::Put, "put"),
    (Operation::Get, "get"),
    (Operation::Delete, "delete"),
    (Operation::Batch, "batch"),
    (Operation::Flush, "flush"),
    (Operation::List, "list"),
    (Operation::Other, "other"),
];

/// Upper bounds of the histogram's buckets, in microseconds.
const BUCKETS_US: [u64; 10] = [100, 250, 500, 1000, 2500, 5000, 10_000, 50_000, 250_000, 1_000_000];

/// What requests came, and what became of them.
#[derive(Default)]
pub struct Metrics {
    requests: [Requests; OPERATIONS.len()],
    refused: Mutex<std::collections::BTreeMap<&'static str, u64>>,
}

#[derive(Default)]
struct Requests {
    buckets: [Counter; BUCKETS_US.len() + 1],
    microseconds: Counter,
    received_bytes: Counter,
    sent_bytes: Counter,
}

/// One request under way.
pub struct Timed {
    operation: usize,
    began: Instant,
}

impl Metrics {
    /// A request with a body of `received_bytes` came in.
    pub fn begin(&self, operation: Operation, received_bytes: u64) -> Timed {
        let operation = operation as usize;
        self.requests[operation].received_bytes.add(received_bytes);
        Timed { operation, began: Instant::now() }
    }

    /// It was answered.
    pub fn end(&self, timed: Timed, sent_bytes: u64, refused: Option<RefusalCode>) {
        let requests = &self.requests[timed.operation];
        let took_us = timed.began.elapsed().as_micros() as u64;
        requests.buckets[BUCKETS_US.partition_point(|&bound| bound < took_us)].add(1);
        requests.microseconds.add(took_us);
        requests.sent_bytes.add(sent_bytes);
        if let Some(code) = refused {
            *self.refused.lock().entry(refusal_name(code)).or_default() += 1;
        }
    }

    /// In Prometheus' text format.
    pub fn text(&self, store: &Store) -> String {
        let mut text = String::new();
        self.write_requests(&mut text);
        self.write_refused(&mut text);
        write_store(&mut text, store);
        text
    }

    fn write_requests(&self, text: &mut String) {
        head(text, "shardd_request_seconds", "histogram", "How long requests took, by operation.");
        for (operation, name) in OPERATIONS {
            let requests = &self.requests[operation as usize];
            let mut count = 0;
            for (bucket, bound) in requests.buckets.iter().zip(BUCKETS_US) {
                count += bucket.get();
                let le = bound as f64 / 1e6;
                line(
                    text,
                    "shardd_request_seconds_bucket",
                    &format!("operation=\"{name}\",le=\"{le}\""),
                    count,
                );
            }
            count += requests.buckets[BUCKETS_US.len()].get();
            let labels = format!("operation=\"{name}\"");
            line(text, "shardd_request_seconds_bucket", &format!("{labels},le=\"+Inf\""), count);
            line(text, "shardd_request_seconds_count", &labels, count);
            line(text, "shardd_request_seconds_sum", &labels, requests.microseconds.get() as f64 / 1e6);
        }
        head(text, "shardd_received_bytes_total", "counter", "Bytes of request bodies, by operation.");
        for (operation, name) in OPERATIONS {
            let bytes = self.requests[operation as usize].received_bytes.get();
            line(text, "shardd_received_bytes_total", &format!("operation=\"{name}\""), bytes);
        }
        head(text, "shardd_sent_bytes_total", "counter", "Bytes of answers, by operation.");
        for (operation, name) in OPERATIONS {
            let bytes = self.requests[operation as usize].sent_bytes.get();
            line(text, "shardd_sent_bytes_total", &format!("operation=\"{name}\""), bytes);
        }
    }

    fn write_refused(&self, text: &mut String) {
        head(text, "shardd_refused_total", "counter", "Requests refused, by code.");
        for (code, count) in self.refused.lock().iter() {
            line(text, "shardd_refused_total", &format!("code=\"{code}\""), count);
        }
    }
}

fn write_store(text: &mut String, store: &Store) {
    let usage = store.usage();
    let gauges = [
        ("shardd_fragments", "Fragments kept.", usage.fragments),
        ("shardd_used_bytes", "Bytes filled.", usage.used_bytes),
        ("shardd_available_bytes", "Bytes that data may still take.", usage.available_bytes),
        ("shardd_capacity_bytes", "Bytes that may be filled.", usage.capacity_bytes),
    ];
    for (name, help, value) in gauges {
        head(text, name, "gauge", help);
        line(text, name, "", value);
    }
    let counts = &store.counts;
    let counters = [
        ("shardd_stored_total", "Fragments stored.", &counts.stored),
        ("shardd_deleted_total", "Fragments deleted.", &counts.deleted),
        ("shardd_flushes_total", "Rounds of fdatasync.", &counts.flushes),
        ("shardd_compactions_total", "Segments rewritten.", &counts.compactions),
        ("shardd_damaged_total", "Records found damaged.", &counts.damaged),
    ];
    for (name, help, counter) in counters {
        head(text, name, "counter", help);
        line(text, name, "", counter.get());
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(text: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = match labels {
        "" => writeln!(text, "{name} {value}"),
        labels => writeln!(text, "{name}{{{labels}}} {value}"),
    };
}

fn refusal_name(code: RefusalCode) -> &'static str {
    match code {
        RefusalCode::BadRequest => "bad_request",
        RefusalCode::Unauthorized => "unauthorized",
        RefusalCode::Forbidden => "forbidden",
        RefusalCode::NotFound => "not_found",
        RefusalCode::TooSlow => "too_slow",
        RefusalCode::Conflict => "conflict",
        RefusalCode::StaleEpoch => "stale_epoch",
        RefusalCode::Leased => "leased",
        RefusalCode::TooLarge => "too_large",
        RefusalCode::Inconsistent => "inconsistent",
        RefusalCode::Io => "io",
        RefusalCode::Busy => "busy",
        RefusalCode::NoSpace => "no_space",
    }
}
