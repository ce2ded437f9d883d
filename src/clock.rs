//! The one place that reads the wall clock.
//!
//! Everything else takes `now` as an argument, so that pure code stays pure and tests choose
//! their own time. Durations are measured with [`tokio::time::Instant`], which never jumps.

use jiff::Timestamp;

/// The current wall-clock time.
#[must_use]
pub fn now() -> Timestamp {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the place the lint points to"
    )]
    Timestamp::now()
}
