//! What an answer's headers say about the allowance.
//!
//! Points in time are turned into durations by the answer's own `Date`, so that the server's clock
//! may differ from ours.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::{http_date, opsramp::RateLimit};

/// A reset below this number is not a time since 1970 but the number of seconds that are left.
const SECONDS_LEFT: i64 = 24 * 60 * 60;
/// By how much the server's clock may seem to differ from ours only because an answer is under way
/// for some time and its `Date` is cut off to whole seconds.
const CLOCKS_DIFFER: Duration = Duration::from_secs(2);

/// What an answer says about the allowance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::opsramp) struct Hints {
    pub(in crate::opsramp) limit: Option<u32>,
    pub(in crate::opsramp) remaining: Option<u32>,
    /// The time until the reset, by the server's own clock.
    pub(in crate::opsramp) resets_in: Option<Duration>,
    /// The reset by our clock. It is for the metrics, whose readers compare it with our clock.
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
        // A 5xx answer may come from a server in trouble, or from a gateway before the API. Its
        // headers may be about another allowance.
        let rate_limit_header = |name: &str| text(name).filter(|_| status < 500);
        let number = |name: &str| rate_limit_header(name)?.parse::<u32>().ok();
        let server_now = text("date").and_then(http_date::parse).unwrap_or(now);
        let reset_at = rate_limit_header("x-ratelimit-reset")
            .and_then(|value| value.parse::<i64>().ok())
            .and_then(|number| match number {
                // Some servers tell how many seconds are left.
                0..SECONDS_LEFT => server_now
                    .checked_add(SignedDuration::from_secs(number))
                    .ok(),
                _ => Timestamp::from_second(number).ok(),
            });
        // A reset in the past says nothing.
        let until = |at: Timestamp| Duration::try_from(at.duration_since(server_now)).ok();
        let retry_after =
            text("retry-after").and_then(|value| http_date::retry_after(value, server_now));
        Self {
            limit: number("x-ratelimit-limit"),
            remaining: number("x-ratelimit-remaining"),
            // `Date` and the reset are both cut off to whole seconds, so one more second is surely
            // enough.
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
