//! What an answer's headers say of the allowance.
//!
//! Points in time that the server tells are turned into durations by the server's own `Date`, so that clocks may
//! differ.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::{http_date, opsramp::RateLimit};

/// A reset below this is no time since 1970, but the seconds that are left.
const SECONDS_LEFT: i64 = 24 * 60 * 60;
/// By how much the server's clock may seem to differ from ours while an answer is under way, and where its
/// seconds are cut off.
const CLOCKS_DIFFER: Duration = Duration::from_secs(2);

/// What an answer says about the allowance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::opsramp) struct Hints {
    pub(in crate::opsramp) limit: Option<u32>,
    pub(in crate::opsramp) remaining: Option<u32>,
    /// Time to the reset, by the server's own clock.
    pub(in crate::opsramp) resets_in: Option<Duration>,
    /// The reset by our clock, for the metrics: whoever reads them compares it with a clock of ours.
    pub(in crate::opsramp) reset_at: Option<Timestamp>,
    /// `Retry-After`, in either form; at most five minutes.
    pub(in crate::opsramp) retry_after: Option<Duration>,
    pub(in crate::opsramp) throttled: bool,
}

impl Hints {
    pub(in crate::opsramp) fn read(status: u16, headers: &http::HeaderMap, now: Timestamp) -> Self {
        let text = |name: &str| {
            headers
                .get(name)?
                .to_str()
                .ok()
                .map(|value| value.trim().trim_matches('"').trim())
        };
        // What is in trouble itself, or a gateway before the API, may speak of an allowance of its own.
        let told = |name: &str| text(name).filter(|_| status < 500);
        let number = |name: &str| told(name)?.parse::<u32>().ok();
        let server_now = text("date").and_then(http_date::parse).unwrap_or(now);
        let reset_at = told("x-ratelimit-reset")
            .and_then(|value| value.parse::<i64>().ok())
            .and_then(|number| match number {
                // Some servers tell how many seconds are left.
                0..SECONDS_LEFT => server_now
                    .checked_add(SignedDuration::from_secs(number))
                    .ok(),
                _ => Timestamp::from_second(number).ok(),
            });
        // One that has passed tells nothing.
        let until = |at: Timestamp| Duration::try_from(at.duration_since(server_now)).ok();
        let retry_after =
            text("retry-after").and_then(|value| http_date::retry_after(value, server_now));
        Self {
            limit: number("x-ratelimit-limit"),
            remaining: number("x-ratelimit-remaining"),
            // `Date` and the reset are whole seconds, each cut off: one more is surely enough.
            resets_in: reset_at
                .and_then(until)
                .map(|wait| wait + Duration::from_secs(1)),
            reset_at: reset_at.and_then(|at| {
                let ahead = now.duration_since(server_now);
                let differs = ahead.unsigned_abs() > CLOCKS_DIFFER;
                if differs {
                    at.checked_add(ahead).ok()
                } else {
                    Some(at)
                }
            }),
            retry_after,
            throttled: status == 429,
        }
    }

    pub(in crate::opsramp) fn rate_limit(&self) -> Option<RateLimit> {
        Some(RateLimit {
            limit: self.limit?,
            remaining: self.remaining?,
            reset_at: self.reset_at?,
        })
    }
}
