//! A limit to the number of requests, as a token bucket.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How many requests are answered: one an interval, and a burst at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The time for one request; more than zero.
    pub interval: Duration,
    /// How many requests may come at once; 0: no request is ever answered.
    pub burst: u32,
}

/// The rest of a [`RateLimit`].
#[derive(Debug)]
pub(super) struct Bucket {
    limit: RateLimit,
    /// When the bucket will be full again, if nobody takes from it.
    full_at: Mutex<Instant>,
}

impl Bucket {
    pub(super) fn new(limit: RateLimit) -> Self {
        Self {
            limit,
            full_at: Mutex::new(Instant::now()),
        }
    }

    /// Takes one request out of the bucket, and returns whether there was one.
    pub(super) fn take(&self) -> bool {
        let now = Instant::now();
        let RateLimit { interval, burst } = self.limit;
        let mut full_at = self.full_at.lock();
        let next = (*full_at).max(now) + interval;
        let fits = next.duration_since(now) <= interval.saturating_mul(burst);
        if fits {
            *full_at = next;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_and_then_one_an_interval() {
        let bucket = Bucket::new(RateLimit {
            interval: Duration::from_secs(2),
            burst: 3,
        });
        let taken = || (0..10).filter(|_| bucket.take()).count();
        assert_eq!(taken(), 3);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(taken(), 1);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(taken(), 3);
    }
}
