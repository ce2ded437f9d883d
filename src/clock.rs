//! The one place that reads the wall clock, and the one that goes on while the machine sleeps.
//!
//! Everything else takes `now` as an argument, so that pure code stays pure and tests choose
//! their own time. Durations are measured with [`tokio::time::Instant`], which never jumps.

use std::time::Duration;

use jiff::Timestamp;
use rustix::time::ClockId;

/// The current wall-clock time.
#[must_use]
pub fn now() -> Timestamp {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the place the lint points to"
    )]
    Timestamp::now()
}

/// How long the machine has been up, the time that it slept included: for what must not go on when
/// it wakes, such as a lease that others see the end of.
#[must_use]
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    Duration::try_from(now).unwrap_or_default()
}
