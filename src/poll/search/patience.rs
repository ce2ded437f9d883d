//! How long the background tries in vain before it does without: whether a page of a full read, or a
//! question by id, fails for what it is, or because the server answers nobody.

use tokio::time::Instant;

use super::is_refusal;
use crate::opsramp;

/// How often in a row a page fails, though polls do not, before one that the server refuses ends the full
/// read, …
const REFUSED: u32 = 2;
/// … and before one at which the server fails does: some half an hour.
const FAILED: u32 = 12;
/// How often in a row a question by id fails, though polls do not, before the reading does without its answer.
const QUESTION: u32 = 3;

/// What failed in the background, beside how polls went meanwhile.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// When the last poll began whose first page came, unless one has failed there since: then whatever else
    /// fails says nothing of itself.
    heard_at: Option<Instant>,
    page: Option<Failing>,
    question: u32,
}

/// A page of a full read that fails.
#[derive(Debug)]
struct Failing {
    since: Instant,
    failures: u32,
}

// === impl Patience ===

impl Patience {
    /// The first page of a poll that began then has come. Whether that of the one before had not.
    pub(super) fn heard(&mut self, began: Instant) -> bool {
        self.heard_at.replace(began).is_none()
    }

    /// The first page of a poll has not come. What failed until now may have failed for the same reason.
    pub(super) fn unheard(&mut self) {
        *self = Self::default();
    }

    /// A page of the full read has come, or none is wanted.
    pub(super) fn page_came(&mut self) {
        self.page = None;
    }

    /// The background has got on.
    pub(super) fn worked(&mut self) {
        self.question = 0;
    }

    /// Notes that a further page of the full read has failed. Whether it will go on failing; `ended_before`:
    /// the last read ended there, so that this is soon believed again.
    pub(super) fn ends_read(
        &mut self,
        error: &opsramp::Error,
        ended_before: bool,
        now: Instant,
    ) -> bool {
        let Some(heard_at) = self.heard_at else {
            return false;
        };
        if !error.may_be_about_the_request() {
            return false;
        }
        let failing = self.page.get_or_insert(Failing {
            since: now,
            failures: 0,
        });
        failing.failures += 1;
        // Too many results, most likely: servers that search do not show all of them.
        let patience = if ended_before || is_refusal(error) {
            REFUSED
        } else {
            FAILED
        };
        // Polls may be too rare to have told of an outage.
        failing.failures > patience && (ended_before || heard_at > failing.since)
    }

    /// Notes that a question by id has failed. Whether the server will not be asked so, as far as this reading
    /// goes.
    pub(super) fn ends_question(&mut self, error: &opsramp::Error) -> bool {
        if self.heard_at.is_none() || !error.may_be_about_the_request() {
            return false;
        }
        if let Some(400 | 404 | 405 | 413 | 414 | 422 | 501) = error.status() {
            return true;
        }
        self.question += 1;
        self.question >= QUESTION
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::opsramp::Error;

    const INTERVAL: Duration = Duration::from_secs(30);

    fn status(status: u16) -> Error {
        Error::Http {
            endpoint: "search",
            status,
            excerpt: String::new(),
        }
    }

    fn auth(forbidden: bool) -> Error {
        let what = String::new();
        Error::Auth { what, forbidden }
    }

    /// What a single page, or a single question, may be met with for good.
    fn lasting() -> Vec<Error> {
        vec![
            status(504),
            Error::Timeout {
                host: "a".to_owned(),
                limit: INTERVAL,
            },
            Error::Connect {
                host: "a".to_owned(),
                source: Arc::new(std::io::Error::other("reset")),
            },
            Error::Decode {
                endpoint: "search",
                what: "no JSON".to_owned(),
                excerpt: String::new(),
            },
            Error::TooLarge {
                endpoint: "search",
                limit: 1,
                configured: true,
            },
            auth(true),
        ]
    }

    /// What tells nothing of what was asked.
    fn elsewhere() -> Vec<Error> {
        vec![
            Error::Throttled { retry_after: None },
            Error::Echo(Arc::new(status(500))),
            auth(false),
            Error::Http {
                endpoint: "token",
                status: 404,
                excerpt: String::new(),
            },
        ]
    }

    /// A page of a full read fails every ten seconds, beside polls whose first pages come. How often, before
    /// the read ends there.
    fn failures(patience: &mut Patience, error: &Error, ended_before: bool) -> Option<u32> {
        let begun = Instant::now();
        (1..100).find(|number| {
            let now = begun + Duration::from_secs(10) * *number;
            if number % 3 == 0 {
                patience.heard(now);
            }
            patience.ends_read(error, ended_before, now)
        })
    }

    fn heard() -> Patience {
        let mut patience = Patience::default();
        patience.heard(Instant::now());
        patience
    }

    #[test]
    fn a_page_that_fails_for_good_ends_the_read_however_it_fails() {
        for error in lasting() {
            assert_eq!(failures(&mut heard(), &error, false), Some(13), "{error}");
            // It is known by then.
            assert_eq!(failures(&mut heard(), &error, true), Some(3), "{error}");
        }
        assert_eq!(failures(&mut heard(), &status(400), false), Some(3));
        for error in elsewhere() {
            assert_eq!(failures(&mut heard(), &error, false), None, "{error}");
        }
    }

    #[test]
    fn a_question_that_fails_for_good_is_done_without_however_it_fails() {
        for error in lasting() {
            let mut patience = heard();
            let ends: Vec<bool> = (0..3).map(|_| patience.ends_question(&error)).collect();
            assert_eq!(ends, [false, false, true], "{error}");
        }
        assert!(heard().ends_question(&status(400)));
        for error in elsewhere() {
            let mut patience = heard();
            assert!((0..10).all(|_| !patience.ends_question(&error)), "{error}");
        }
    }

    /// The server answers nobody for a while: that is about no page.
    #[test]
    fn an_outage_ends_no_read_and_no_question() {
        for error in [status(400), status(503)] {
            let mut patience = heard();
            let now = Instant::now();
            // No poll is due yet.
            for _ in 0..20 {
                assert!(!patience.ends_read(&error, false, now));
            }
            assert!(!patience.heard(now - INTERVAL));
            patience.unheard();
            for _ in 0..20 {
                assert!(!patience.ends_read(&error, false, now));
                assert!(!patience.ends_read(&error, true, now));
                assert!(!patience.ends_question(&error));
            }
            // Polls work again: what failed before does not count.
            assert!(patience.heard(now + INTERVAL));
            assert!(!patience.ends_read(&error, false, now + INTERVAL));
            assert!(!patience.ends_read(&error, false, now + 2 * INTERVAL));
        }
    }
}
