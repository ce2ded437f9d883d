//! The one place that reads the wall clock and the clock that goes on while the machine sleeps.
//!
//! All other code takes `now` as an argument, so that pure code stays pure and tests choose their
//! own time. Durations are measured with [`tokio::time::Instant`], which never jumps.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use rustix::time::ClockId;

/// A wall clock that has not been set for this long is trusted.
const STEADY: Duration = Duration::from_secs(60 * 60);
/// The maximum correction in the meantime that does not count as setting the clock.
const CORRECTION: Duration = Duration::from_secs(60);

/// Whether the wall clock can be trusted over long times. A machine may start with a time years
/// ago until it is told the right one, and a clock may be set wrong by mistake.
#[derive(Debug, Default)]
pub struct Steadiness(Mutex<Option<Moment>>);

/// The same moment on both clocks.
#[derive(Clone, Copy, Debug)]
struct Moment {
    wall: Timestamp,
    boot: Duration,
}

/// The current wall-clock time.
#[must_use]
pub fn now() -> Timestamp {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the place the lint points to"
    )]
    Timestamp::now()
}

/// Time since the machine was booted, including the time that it slept. Use it for limits that
/// must be over when the machine wakes, such as a lease whose end other replicas see.
#[must_use]
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    Duration::try_from(now).unwrap_or_default()
}

// === impl Steadiness ===

impl Steadiness {
    /// Whether the wall clock, which says `now`, has kept pace with the clock since boot for an
    /// hour. The clocks are compared only when this is called.
    #[must_use]
    pub fn is_steady(&self, now: Timestamp) -> bool {
        self.is_steady_at(Moment {
            wall: now,
            boot: since_boot(),
        })
    }

    fn is_steady_at(&self, now: Moment) -> bool {
        let mut since = self.0.lock();
        let since = since.get_or_insert(now);
        let passed = now.boot.saturating_sub(since.boot);
        let told = now.wall.duration_since(since.wall);
        let passed_by_wall = SignedDuration::try_from(passed).unwrap_or(SignedDuration::MAX);
        if told.saturating_sub(passed_by_wall).unsigned_abs() > CORRECTION {
            *since = now;
        }
        now.boot.saturating_sub(since.boot) >= STEADY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_believed_an_hour_after_it_was_set() {
        let steadiness = Steadiness::default();
        let hour = |hours: f64| Duration::from_secs_f64(hours * 3600.0);
        let ask = |boot: f64, wall: f64| {
            steadiness.is_steady_at(Moment {
                wall: Timestamp::UNIX_EPOCH + hour(wall),
                boot: hour(boot),
            })
        };
        let told = [
            ask(0.0, 100.0),
            ask(0.9, 100.9),
            // Corrected by half a minute.
            ask(1.1, 101.1 + 1.0 / 120.0),
            // Set forward by 100 days, set back an hour later, and then set back by years.
            ask(1.2, 2501.2),
            ask(2.1, 2502.1),
            ask(2.2, 102.2),
            ask(3.1, 103.1),
            ask(3.2, 103.2),
            ask(3.3, 3.3),
            ask(4.3, 4.3),
        ];
        assert_eq!(
            told,
            [
                false, false, true, false, false, false, false, true, false, true
            ]
        );
    }
}
