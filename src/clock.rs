//! The one place that reads the wall clock.
//!
//! Everything else takes the time as an argument, so that a test can say what time it is.
//! For measuring how long something took, use `tokio::time::Instant` instead: this clock jumps.

use jiff::Timestamp;

/// The current time of the wall clock.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the place that all others get the time from"
)]
pub fn now() -> Timestamp {
    Timestamp::now()
}
