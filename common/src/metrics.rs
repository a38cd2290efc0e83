//! Counters and histograms, and how Prometheus reads them (text format 0.0.4).

use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// From 0.
    pub const fn new() -> Counter {
        Counter(AtomicU64::new(0))
    }

    /// Count `more`.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of a histogram's buckets, in microseconds.
pub const BUCKETS_US: [u64; 13] =
    [25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 50_000, 250_000, 1_000_000, 10_000_000];

/// How long things took.
#[derive(Default)]
pub struct Histogram {
    /// One more for what took longer than the last bound.
    buckets: [Counter; BUCKETS_US.len() + 1],
    nanoseconds: Counter,
}

impl Histogram {
    /// Of nothing yet.
    pub const fn new() -> Histogram {
        Histogram { buckets: [const { Counter::new() }; BUCKETS_US.len() + 1], nanoseconds: Counter::new() }
    }

    /// Something took so long.
    pub fn observe(&self, took: Duration) {
        let microseconds = took.as_micros() as u64;
        self.buckets[BUCKETS_US.partition_point(|&bound| bound < microseconds)].add(1);
        self.nanoseconds.add(took.as_nanos() as u64);
    }

    /// How often.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(Counter::get).sum()
    }
}

/// What is served as `text/plain; version=0.0.4`.
#[derive(Default)]
pub struct Page(String);

impl Page {
    /// Begin a metric; its lines follow. `kind` is counter, gauge or histogram.
    pub fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One value. `labels` as they stand between the braces, or nothing.
    pub fn line(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }

    /// A metric of one value.
    pub fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.head(name, kind, help);
        self.line(name, "", value);
    }

    /// The lines of a histogram with these labels, at least one.
    pub fn histogram(&mut self, name: &str, labels: &str, histogram: &Histogram) {
        let mut count = 0;
        let bounds = BUCKETS_US.iter().map(|bound| (*bound as f64 / 1e6).to_string());
        for (bucket, bound) in histogram.buckets.iter().zip(bounds.chain(["+Inf".to_owned()])) {
            count += bucket.get();
            self.line(&format!("{name}_bucket"), &format!("{labels},le=\"{bound}\""), count);
        }
        self.line(&format!("{name}_count"), labels, count);
        self.line(&format!("{name}_sum"), labels, histogram.nanoseconds.get() as f64 / 1e9);
    }

    /// The text.
    pub fn text(self) -> String {
        self.0
    }
}

/// As a label's value: what would end it is escaped.
pub fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        let histogram = Histogram::new();
        for microseconds in [10, 25, 26, 400, 20_000_000] {
            histogram.observe(Duration::from_micros(microseconds));
        }
        let mut page = Page::default();
        page.histogram("x_seconds", "stage=\"a\"", &histogram);
        let text = page.text();
        for line in [
            "x_seconds_bucket{stage=\"a\",le=\"0.000025\"} 2",
            "x_seconds_bucket{stage=\"a\",le=\"0.00005\"} 3",
            "x_seconds_bucket{stage=\"a\",le=\"0.0005\"} 4",
            "x_seconds_bucket{stage=\"a\",le=\"10\"} 4",
            "x_seconds_bucket{stage=\"a\",le=\"+Inf\"} 5",
            "x_seconds_count{stage=\"a\"} 5",
            "x_seconds_sum{stage=\"a\"} 20.000461",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_label_cannot_end_itself() {
        assert_eq!(label("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
