//! What a node counts, and how Prometheus reads it.

use std::time::Instant;

use common::metrics::{Counter, Histogram, Page};
use common::wire::RefusalCode;
use parking_lot::Mutex;

use crate::store::Store;

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

/// What requests came, and what became of them.
#[derive(Default)]
pub struct Metrics {
    requests: [Requests; OPERATIONS.len()],
    refused: Mutex<std::collections::BTreeMap<&'static str, u64>>,
}

#[derive(Default)]
struct Requests {
    took: Histogram,
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
        requests.took.observe(timed.began.elapsed());
        requests.sent_bytes.add(sent_bytes);
        if let Some(code) = refused {
            *self.refused.lock().entry(refusal_name(code)).or_default() += 1;
        }
    }

    /// In Prometheus' text format.
    pub fn text(&self, store: &Store) -> String {
        let mut page = Page::default();
        self.write_requests(&mut page);
        self.write_refused(&mut page);
        write_store(&mut page, store);
        page.text()
    }

    fn write_requests(&self, page: &mut Page) {
        let each =
            || OPERATIONS.map(|(operation, name)| (format!("operation=\"{name}\""), operation as usize));
        page.head("shardd_request_seconds", "histogram", "How long requests took, by operation.");
        for (labels, operation) in each() {
            page.histogram("shardd_request_seconds", &labels, &self.requests[operation].took);
        }
        page.head("shardd_received_bytes_total", "counter", "Bytes of request bodies, by operation.");
        for (labels, operation) in each() {
            page.line("shardd_received_bytes_total", &labels, self.requests[operation].received_bytes.get());
        }
        page.head("shardd_sent_bytes_total", "counter", "Bytes of answers, by operation.");
        for (labels, operation) in each() {
            page.line("shardd_sent_bytes_total", &labels, self.requests[operation].sent_bytes.get());
        }
    }

    fn write_refused(&self, page: &mut Page) {
        page.head("shardd_refused_total", "counter", "Requests refused, by code.");
        for (code, count) in self.refused.lock().iter() {
            page.line("shardd_refused_total", &format!("code=\"{code}\""), count);
        }
    }
}

fn write_store(page: &mut Page, store: &Store) {
    let usage = store.usage();
    let gauges = [
        ("shardd_fragments", "Fragments kept.", usage.fragments),
        ("shardd_used_bytes", "Bytes filled.", usage.used_bytes),
        ("shardd_available_bytes", "Bytes that data may still take.", usage.available_bytes),
        ("shardd_capacity_bytes", "Bytes that may be filled.", usage.capacity_bytes),
    ];
    for (name, help, value) in gauges {
        page.single(name, "gauge", help, value);
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
        page.single(name, "counter", help, counter.get());
    }
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
