//! When the next poll is due: a fixed grid with an offset, and back-off after failures. Pure.

use std::time::Duration;

use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use crate::identity::SearchKey;

/// The longest pause between two tries.
pub(super) const MAX_BACK_OFF: Duration = Duration::from_secs(5 * 60);
/// Number of failures in a row after which the search is tried again at the plain interval.
const PLAIN_RETRIES: u32 = 2;

/// The points in time at which a search is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    origin: Instant,
    interval: Duration,
}

// === impl Grid ===

impl Grid {
    /// Creates a grid for a search. Each search has its own, so that many searches spread over
    /// their interval, and each keeps its place whatever searches join or leave.
    #[must_use]
    pub(super) fn new(key: &SearchKey, interval: Duration, now: Instant) -> Self {
        let name = format!("{}\0{}\0{}", key.account, key.tenant.id, key.search);
        let part = xxh3_64(name.as_bytes()) as f64 / u64::MAX as f64;
        Self {
            origin: now + interval.mul_f64(part),
            interval,
        }
    }

    /// Returns the first point after `now`. Points that have passed are skipped, not made up for.
    #[must_use]
    pub(super) fn next(&self, now: Instant) -> Instant {
        if now < self.origin {
            return self.origin;
        }
        let passed = (now - self.origin).as_nanos() / self.interval.as_nanos().max(1);
        let passed = u32::try_from(passed + 1).unwrap_or(u32::MAX);
        // An interval that is too long to be multiplied will not pass anyway.
        let offset = self.interval.checked_mul(passed).unwrap_or(Duration::MAX);
        self.origin
            .checked_add(offset)
            .unwrap_or(now + self.interval)
    }

    /// Returns when to try again after `failures` in a row (from 1). After the second failure, that
    /// is after two intervals at most, so that alerts are found within two intervals once the
    /// fault has ended; and after [`MAX_BACK_OFF`] at most, be the interval longer or not.
    /// What the failed try `took` is a part of that. `random`, from 0 to 1, spreads searches that
    /// failed together. The result is never before `not_before`.
    #[must_use]
    pub(super) fn retry(
        &self,
        now: Instant,
        took: Duration,
        failures: u32,
        random: f64,
        not_before: Option<Instant>,
    ) -> Instant {
        let pause = self.interval.saturating_mul(2).min(MAX_BACK_OFF);
        let jittered = pause.mul_f64(0.8 + 0.2 * random.clamp(0.0, 1.0));
        let jittered = now + jittered.saturating_sub(took);
        let at = if self.interval > MAX_BACK_OFF {
            jittered.min(self.next(now))
        } else if failures > PLAIN_RETRIES {
            jittered
        } else {
            self.next(now)
        };
        not_before.map_or(at, |bound| at.max(bound))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn searches_spread_over_their_interval() {
        let now = Instant::now();
        let interval = Duration::from_secs(30);
        let mut buckets = [0; 10];
        for number in 0..1000 {
            let key = SearchKey {
                account: "a".into(),
                tenant: crate::identity::Tenant {
                    id: format!("client_{number}").into(),
                    name: "t".into(),
                },
                search: "open".into(),
            };
            let offset = Grid::new(&key, interval, now).next(now) - now;
            buckets[(offset.as_secs_f64() / 3.0).min(9.0) as usize] += 1;
        }
        assert!(
            buckets.iter().all(|count| (60..140).contains(count)),
            "{buckets:?}"
        );
    }

    proptest! {
        #[test]
        fn the_next_point_is_on_the_grid_and_no_further_than_an_interval(
            interval in 1u64..100_000, elapsed in 0u64..10_000_000,
        ) {
            let origin = Instant::now();
            let interval = Duration::from_millis(interval);
            let now = origin + Duration::from_millis(elapsed);
            let next = Grid { origin, interval }.next(now);
            prop_assert!(next > now && next - now <= interval);
            prop_assert_eq!((next - origin).as_nanos() % interval.as_nanos(), 0);
        }

        #[test]
        fn back_off_grows_to_two_intervals_and_is_never_shorter_than_asked(
            failures in 1u32..100, random in 0.0f64..1.0, asked in 0u64..1000,
            interval in 1u64..150, took in 0u64..400,
        ) {
            let now = Instant::now();
            let took = Duration::from_secs(took);
            let interval = Duration::from_secs(interval);
            let grid = Grid { origin: now, interval };
            let bound = now + Duration::from_secs(asked);
            let at = grid.retry(now, took, failures, random, Some(bound));
            prop_assert!(at >= bound);
            let whole = (2 * interval).saturating_sub(took);
            prop_assert!(at <= bound.max(now + interval.max(whole)));
            if failures <= 2 {
                prop_assert!(at == grid.next(now).max(bound));
            } else {
                prop_assert!(at <= bound.max(now + whole));
                prop_assert!(at >= now + interval.mul_f64(1.6).saturating_sub(took));
            }
        }

        #[test]
        fn no_failure_is_waited_out_for_longer_than_the_longest_pause(
            interval in 1u64..100_000, elapsed in 0u64..1_000_000, failures in 1u32..100,
            random in 0.0f64..1.0,
        ) {
            let origin = Instant::now();
            let grid = Grid { origin, interval: Duration::from_secs(interval) };
            let now = origin + Duration::from_secs(elapsed);
            let at = grid.retry(now, Duration::ZERO, failures, random, None);
            prop_assert!(at > now && at <= now + MAX_BACK_OFF);
            // Nor is the next try sooner than the plain interval and four minutes.
            prop_assert!(at >= grid.next(now).min(now + Duration::from_secs(240)));
        }
    }
}
