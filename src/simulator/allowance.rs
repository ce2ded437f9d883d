//! How many requests a tenant may still make.
//!
//! A window begins with the first request after the previous window. When it ends, the whole
//! allowance is there again. The code is pure: the time is an argument, and may stand still or run
//! backwards.

use std::time::Duration;

use jiff::Timestamp;

/// The kinds of requests that are counted separately for each tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meter {
    /// Pages of alerts.
    AlertPages,
    /// Everything else about alerts.
    Alerts,
    /// Pages of anything else.
    OtherPages,
    /// Everything else.
    Others,
}

/// The allowance of one tenant for one kind of request.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    opened: Option<Timestamp>,
    used: u32,
}

/// What the `X-RateLimit-…` headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests in a window.
    pub limit: u32,
    /// Requests left in this window.
    pub remaining: u32,
    /// When the next window can begin, in seconds since the epoch, rounded up.
    pub reset: i64,
    /// Whether this request was within the allowance.
    pub allowed: bool,
}

// === impl Meter ===

impl Meter {
    /// The number of kinds.
    pub(super) const COUNT: usize = 4;

    pub(super) const fn is_paginated(self) -> bool {
        matches!(self, Self::AlertPages | Self::OtherPages)
    }
}

// === impl Bucket ===

impl Bucket {
    /// Counts a request if it is within the limit.
    pub(super) fn take(&mut self, limit: u32, window: Duration, now: Timestamp) -> RateLimit {
        let begun = self.opened.filter(|opened| {
            let age = now.duration_since(*opened);
            !age.is_negative() && age.unsigned_abs() < window
        });
        let opened = match begun {
            Some(opened) => opened,
            None => {
                self.used = 0;
                now
            }
        };
        self.opened = Some(opened);
        let allowed = self.used < limit;
        self.used += u32::from(allowed);
        let end = opened.saturating_add(window).unwrap_or(opened);
        RateLimit {
            limit,
            remaining: limit.saturating_sub(self.used),
            reset: end.as_second() + i64::from(end.subsec_nanosecond() > 0),
            allowed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(1_700_000_000_000 + milliseconds).unwrap()
    }

    #[test]
    fn the_fifty_first_request_of_a_minute_is_refused() {
        let mut bucket = Bucket::default();
        for n in 0..50 {
            let rate_limit = bucket.take(50, MINUTE, at(n * 100));
            assert!(rate_limit.allowed);
            assert_eq!(i64::from(rate_limit.remaining), 49 - n);
        }
        let refused = bucket.take(50, MINUTE, at(59_999));
        assert!(!refused.allowed);
        assert_eq!(refused.remaining, 0);
        assert_eq!(refused.reset, 1_700_000_060);
    }

    #[test]
    fn who_waits_until_the_reset_is_let_in() {
        let mut bucket = Bucket::default();
        let first = bucket.take(1, MINUTE, at(700));
        assert_eq!(first.reset, 1_700_000_061);
        assert!(!bucket.take(1, MINUTE, at(60_699)).allowed);
        assert!(bucket.take(1, MINUTE, at(61_000)).allowed);
    }

    #[test]
    fn a_limit_that_is_raised_counts_at_once() {
        let mut bucket = Bucket::default();
        bucket.take(1, MINUTE, at(0));
        assert!(!bucket.take(1, MINUTE, at(1)).allowed);
        assert!(bucket.take(2, MINUTE, at(2)).allowed);
        assert!(!bucket.take(0, MINUTE, at(3)).allowed);
    }

    #[test]
    fn a_clock_that_is_set_back_opens_a_new_window() {
        let mut bucket = Bucket::default();
        bucket.take(1, MINUTE, at(10_000));
        assert!(bucket.take(1, MINUTE, at(0)).allowed);
    }
}
