//! The values of counters and histograms, as plain atomics.
//!
//! A counter of the usual client library carries its own copy of its name, help text and labels,
//! some 700 bytes. A search needs a dozen counters and two histograms, and there may be thousands
//! of searches. So a cell here is a number alone, and its labels are written when it is shown.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

/// A sum of durations, which only grows.
#[derive(Debug, Default)]
pub(super) struct Seconds(Counter);

/// Counts of durations by size.
#[derive(Debug)]
pub(super) struct Histogram<const N: usize> {
    bounds: &'static [f64; N],
    counts: [Counter; N],
    beyond: Counter,
    sum: Seconds,
}

/// The values of a histogram at one moment.
#[derive(Debug)]
pub(super) struct HistogramValue<const N: usize> {
    /// Upper bounds in seconds, with the number of observations at or below each.
    pub(super) buckets: [(f64, u64); N],
    /// The number of all observations.
    pub(super) count: u64,
    /// The sum of all observations, in seconds.
    pub(super) sum: f64,
}

// === impl Counter ===

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

// === impl Seconds ===

impl Seconds {
    pub(super) fn add(&self, time: Duration) {
        self.0
            .add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    pub(super) fn get(&self) -> f64 {
        Duration::from_micros(self.0.get()).as_secs_f64()
    }
}

// === impl Histogram ===

impl<const N: usize> Histogram<N> {
    pub(super) fn new(bounds: &'static [f64; N]) -> Self {
        Self {
            bounds,
            counts: std::array::from_fn(|_| Counter::default()),
            beyond: Counter::default(),
            sum: Seconds::default(),
        }
    }

    pub(super) fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let place = self.bounds.partition_point(|bound| *bound < seconds);
        self.counts.get(place).unwrap_or(&self.beyond).add(1);
        self.sum.add(time);
    }

    /// Returns the present values. The count is calculated from the buckets, so that the two agree
    /// even while other threads observe.
    pub(super) fn get(&self) -> HistogramValue<N> {
        let mut below = 0;
        let buckets = std::array::from_fn(|i| {
            below += self.counts[i].get();
            (self.bounds[i], below)
        });
        HistogramValue {
            buckets,
            count: below + self.beyond.get(),
            sum: self.sum.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static BOUNDS: [f64; 2] = [0.5, 1.0];

    #[test]
    fn an_observation_counts_in_every_bucket_that_is_not_below_it() {
        let histogram = Histogram::new(&BOUNDS);
        for milliseconds in [0, 500, 501, 1_000, 1_001, 60_000] {
            histogram.observe(Duration::from_millis(milliseconds));
        }
        let value = histogram.get();
        assert_eq!(value.buckets, [(0.5, 2), (1.0, 4)]);
        assert_eq!(value.count, 6);
        assert!((value.sum - 63.002).abs() < 1e-9, "{}", value.sum);
    }
}
