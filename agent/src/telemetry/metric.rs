//! The three kinds of statistics, as cheap as they can be: one relaxed atomic each.
//!
//! The data path adds to them; [`super::prometheus`] and the admin interface read them.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The sum so far.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds one; the guard takes it away again when it is dropped.
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Adds one unless it is `limit` or more already; exact whoever else adds at the same time.
    pub fn try_inc(&self, limit: u32) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |value| (value < i64::from(limit)).then_some(value + 1)).is_ok()
    }

    /// Takes one away.
    pub fn dec(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// Replaces the value.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// The value now.
    pub fn value(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// Upper bounds of the histogram's buckets, in microseconds: Envoy's default bounds (0.5 ms to 1 h), and below them
/// three more, because a local answer takes microseconds.
pub const BUCKET_BOUNDS_US: [u64; 22] = [
    50,
    100,
    250,
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];

/// A distribution of durations.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKET_BOUNDS_US.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

/// What a [`Histogram`] held at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramValue {
    /// Observations at or below the bound of the same index, not cumulative.
    pub buckets: Vec<u64>,
    /// All observations, those above the last bound included.
    pub count: u64,
    /// The sum of all observations, in microseconds.
    pub sum_us: u64,
}

impl Histogram {
    /// Records one duration.
    pub fn observe(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.buckets.get(BUCKET_BOUNDS_US.partition_point(|bound| *bound < us)) {
            bucket.fetch_add(1, Relaxed);
        }
        self.count.fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// What it holds now.
    pub fn value(&self) -> HistogramValue {
        HistogramValue {
            buckets: self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect(),
            count: self.count.load(Relaxed),
            sum_us: self.sum_us.load(Relaxed),
        }
    }
}

/// One statistic, as a visitor of a group of statistics sees it.
#[derive(Clone, Copy, Debug)]
pub enum Metric<'a> {
    /// See [`Counter`].
    Counter(&'a Counter),
    /// See [`Gauge`].
    Gauge(&'a Gauge),
    /// See [`Histogram`].
    Histogram(&'a Histogram),
}

impl<'a> From<&'a Counter> for Metric<'a> {
    fn from(counter: &'a Counter) -> Self {
        Self::Counter(counter)
    }
}

impl<'a> From<&'a Gauge> for Metric<'a> {
    fn from(gauge: &'a Gauge) -> Self {
        Self::Gauge(gauge)
    }
}

impl<'a> From<&'a Histogram> for Metric<'a> {
    fn from(histogram: &'a Histogram) -> Self {
        Self::Histogram(histogram)
    }
}

/// Counts something for as long as it lives: a connection, a request.
#[derive(Debug)]
pub struct Active<'a>(&'a Gauge);

impl<'a> Active<'a> {
    /// Adds one to `gauge` until the guard is dropped.
    pub fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_lands_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(50));
        histogram.observe(Duration::from_micros(51));
        histogram.observe(Duration::from_secs(7200));
        let value = histogram.value();
        assert_eq!(value.buckets[..3], [1, 1, 0]);
        assert_eq!((value.count, value.sum_us), (3, 7_200_000_101));
    }

    #[test]
    fn a_guard_counts_for_as_long_as_it_lives() {
        let gauge = Gauge::default();
        {
            let _active = Active::new(&gauge);
            assert_eq!(gauge.value(), 1);
        }
        assert_eq!(gauge.value(), 0);
    }
}
