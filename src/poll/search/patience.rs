//! How long the background keeps trying a request before it does without the answer. A page of a
//! full read, or a question by id, may fail because of what it asks, or because the server answers
//! nobody.

use tokio::time::Instant;

use crate::opsramp;

// Numbers of failures in a row, while polls do not fail, after which the background does without
// the answer.

/// For a page that the server refuses, or at which the last read ended. This ends the full read.
const PAGE_REFUSALS: u32 = 3;
/// For a page at which the server fails: some half an hour. This ends the full read.
const PAGE_FAILURES: u32 = 13;
/// For a question by id.
const QUESTION_FAILURES: u32 = 3;
/// For a question by id if only its token is refused.
const QUESTION_TOKEN_REFUSALS: u32 = 12;

/// The failures of the background, compared with how polls went meanwhile.
#[derive(Clone, Debug, Default)]
pub(super) struct Patience {
    /// Whether the first page of the last poll came. If it did not, other failures prove nothing.
    is_poll_answered: bool,
    page: Failures,
    /// The number of the page that fails.
    page_no: u64,
    question: Failures,
}

/// Failures of the same page, or of the same question, in a row.
#[derive(Clone, Debug, Default)]
struct Failures {
    /// Failures before the last poll whose first page came.
    before_poll: u32,
    /// Failures since then. If the first page of the next poll does not come, they may have had
    /// the same cause.
    since_poll: u32,
    last_at: Option<Instant>,
}

// === impl Patience ===

impl Patience {
    /// Notes that the first page of a poll has come, which began at `began`. Returns whether the
    /// first page of the poll before had not come.
    pub(super) fn poll_answered(&mut self, began: Instant) -> bool {
        for failures in [&mut self.page, &mut self.question] {
            failures.poll_answered(began);
        }
        !std::mem::replace(&mut self.is_poll_answered, true)
    }

    /// Notes that the first page of a poll has not come. What has failed since the poll before may
    /// have failed for the same reason.
    pub(super) fn poll_unanswered(&mut self) {
        self.is_poll_answered = false;
        self.page.since_poll = 0;
        self.question.since_poll = 0;
    }

    /// Notes that a page of the full read has come. A page before the failing one proves nothing:
    /// the read may have begun anew.
    pub(super) fn page_came(&mut self, page: u64) {
        if page >= self.page_no {
            self.no_page_is_wanted();
        }
    }

    /// Notes that the full read has ended, or that none is wanted.
    pub(super) fn no_page_is_wanted(&mut self) {
        self.page = Failures::default();
    }

    /// Returns what the next task of the search is to know of failures of pages.
    pub(super) fn of_pages(&self) -> Self {
        Self {
            page: self.page.clone(),
            page_no: self.page_no,
            ..Self::default()
        }
    }

    /// Notes that the background has succeeded.
    pub(super) fn worked(&mut self) {
        self.question = Failures::default();
    }

    /// Notes that this further page of the full read has failed. Returns whether it will keep
    /// failing. `ended_before`: the last read ended at this page, so a few failures suffice.
    pub(super) fn ends_read(
        &mut self,
        error: &opsramp::Error,
        page: u64,
        ended_before: bool,
        now: Instant,
    ) -> bool {
        if !self.is_poll_answered || !is_evidence(error) {
            return false;
        }
        if page != self.page_no {
            self.no_page_is_wanted();
            self.page_no = page;
        }
        let failures = self.page.add(now);
        // A refusal most likely means that the server shows no more of the result, which will not
        // change.
        let is_certain = ended_before || error.is_refusal();
        let limit = if is_certain {
            PAGE_REFUSALS
        } else {
            PAGE_FAILURES
        };
        // At least one poll must have been answered between the failures: without it, the server
        // may have answered nobody.
        failures >= limit && (ended_before || self.page.before_poll > 0)
    }

    /// Notes that a question by id has failed. Returns whether this reading does without the
    /// answer.
    pub(super) fn ends_question(&mut self, error: &opsramp::Error, now: Instant) -> bool {
        if !self.is_poll_answered || !is_evidence(error) {
            return false;
        }
        if error.is_unsupported_request() {
            return true;
        }
        let limit = if error.may_concern_request() {
            QUESTION_FAILURES
        } else {
            QUESTION_TOKEN_REFUSALS
        };
        self.question.add(now) >= limit
    }
}

// === impl Failures ===

impl Failures {
    /// Adds a failure and returns their number.
    fn add(&mut self, now: Instant) -> u32 {
        self.since_poll += 1;
        self.last_at = Some(now);
        self.before_poll + self.since_poll
    }

    /// Notes that a poll was answered, which began at `began`.
    fn poll_answered(&mut self, began: Instant) {
        if self.last_at.is_some_and(|at| at < began) {
            self.before_poll += std::mem::take(&mut self.since_poll);
        }
    }
}

/// Whether the failure of a request is evidence about that request, if polls do not fail. The
/// refusal of a token is, if it lasts: polls use the same token.
pub(super) fn is_evidence(error: &opsramp::Error) -> bool {
    error.may_concern_request() || matches!(error, opsramp::Error::Auth { .. })
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{
        opsramp::Error,
        poll::search::testing::{auth, status},
    };

    const INTERVAL: Duration = Duration::from_secs(30);

    /// The errors that a single page, or a single question, may get for good.
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

    /// Errors that are no evidence about the request.
    fn elsewhere() -> Vec<Error> {
        vec![
            Error::Throttled { retry_after: None },
            Error::Echo(Arc::new(status(500))),
            Error::Http {
                endpoint: "token",
                status: 404,
                excerpt: String::new(),
            },
        ]
    }

    /// The second page of a full read fails every ten seconds, while the first pages of polls
    /// come. Returns the number of failures after which the read ends there.
    fn failures(patience: &mut Patience, error: &Error, ended_before: bool) -> Option<u32> {
        let begun = Instant::now();
        (1..100).find(|number| {
            let now = begun + Duration::from_secs(10) * *number;
            if number % 3 == 0 {
                patience.poll_answered(now);
            }
            patience.ends_read(error, 2, ended_before, now)
        })
    }

    /// A question by id fails again and again. Returns the number of failures after which the
    /// reading does without the answer.
    fn questions(patience: &mut Patience, error: &Error) -> Option<u32> {
        let now = Instant::now();
        (1..100).find(|_| patience.ends_question(error, now))
    }

    fn answered() -> Patience {
        let mut patience = Patience::default();
        patience.poll_answered(Instant::now());
        patience
    }

    #[test]
    fn a_page_that_fails_for_good_ends_the_read_however_it_fails() {
        for error in lasting().into_iter().chain([auth(false)]) {
            assert_eq!(
                failures(&mut answered(), &error, false),
                Some(13),
                "{error}"
            );
            // The failure is known by then.
            assert_eq!(failures(&mut answered(), &error, true), Some(3), "{error}");
        }
        assert_eq!(failures(&mut answered(), &status(400), false), Some(3));
        for error in elsewhere() {
            assert_eq!(failures(&mut answered(), &error, false), None, "{error}");
        }
    }

    /// The page fails a few times in each of several tasks. Each task begins the read anew.
    #[test]
    fn a_page_that_fails_for_good_ends_the_read_also_where_that_begins_anew_each_time() {
        let mut patience = answered();
        let begun = Instant::now();
        let ended = (1..100u32).find(|number| {
            let now = begun + INTERVAL * *number;
            if number % 3 == 0 {
                patience = patience.of_pages();
                assert!(patience.poll_answered(now), "no poll has been answered yet");
                patience.page_came(2);
                // Each task asks its own questions.
                assert!(!patience.ends_question(&status(504), now));
            }
            patience.ends_read(&status(504), 3, false, now)
        });
        assert_eq!(ended, Some(13));
        // Another page than the failing one, or a page that came in between, begins the count
        // anew.
        let now = begun + INTERVAL * 100;
        patience.poll_answered(now);
        assert!(!patience.ends_read(&status(504), 4, false, now));
        for _ in 0..50 {
            patience.page_came(4);
            patience.poll_answered(now + INTERVAL);
            assert!(!patience.ends_read(&status(504), 4, false, now));
        }
    }

    #[test]
    fn a_question_that_fails_for_good_is_done_without_however_it_fails() {
        for error in lasting() {
            let mut patience = answered();
            assert_eq!(questions(&mut patience, &error), Some(3), "{error}");
        }
        assert_eq!(questions(&mut answered(), &status(400)), Some(1));
        // Polls succeed with the same token.
        assert_eq!(questions(&mut answered(), &auth(false)), Some(12));
        for error in elsewhere() {
            assert_eq!(questions(&mut answered(), &error), None, "{error}");
        }
        // An answer in between begins the count anew.
        let mut patience = answered();
        let now = Instant::now();
        for _ in 0..10 {
            assert!(!patience.ends_question(&status(504), now));
            assert!(!patience.ends_question(&status(504), now));
            patience.worked();
        }
    }

    /// What failed shortly before a poll that was not answered may have failed for the same
    /// reason.
    #[test]
    fn polls_that_fail_do_not_keep_a_question_that_failed_before_the_last_one_that_did_not() {
        let fails_between = |is_answered: bool| {
            let mut patience = answered();
            let now = Instant::now();
            for _ in 0..2 {
                assert!(!patience.ends_question(&status(504), now));
            }
            if is_answered {
                patience.poll_answered(now + INTERVAL);
            }
            patience.poll_unanswered();
            patience.poll_answered(now + 2 * INTERVAL);
            patience.ends_question(&status(504), now + 2 * INTERVAL)
        };
        assert_eq!([true, false].map(fails_between), [true, false]);
    }

    #[test]
    fn a_poll_counts_as_answered_after_a_failure_only_if_it_began_later() {
        let mut patience = answered();
        let now = Instant::now();
        for _ in 0..20 {
            assert!(!patience.ends_read(&status(400), 2, false, now));
            patience.poll_answered(now - INTERVAL);
            patience.poll_answered(now);
        }
        patience.poll_answered(now + INTERVAL);
        assert!(patience.ends_read(&status(400), 2, false, now + INTERVAL));
        // The poll began before the last of the failures.
        let mut patience = answered();
        for second in 0..20u32 {
            let now = now + Duration::from_secs(2) * second;
            assert!(!patience.ends_read(&status(400), 2, false, now));
            patience.poll_answered(now - Duration::from_secs(1));
        }
        // If the last read ended at the page, no poll has to be.
        let mut patience = answered();
        let ended = (1..10).find(|_| patience.ends_read(&status(400), 2, true, now));
        assert_eq!(ended, Some(3));
    }

    /// The server sometimes fails to answer a poll. That is no evidence about a page that it never
    /// shows.
    #[test]
    fn polls_that_fail_now_and_then_do_not_keep_a_page_that_fails_for_good() {
        let mut patience = answered();
        let begun = Instant::now();
        let ended = (1..100u32).find(|minute| {
            let now = begun + INTERVAL * 2 * *minute;
            // Of at most two failures, the later one may have had the same cause as the poll's.
            let ends = patience.ends_read(&status(504), 2, false, now);
            patience.poll_answered(now + INTERVAL);
            if minute % 2 == 0 {
                patience.poll_unanswered();
                patience.poll_answered(now + INTERVAL + INTERVAL / 2);
            }
            ends
        });
        assert_eq!(ended, Some(13));
        let mut patience = answered();
        let ended = (1..100u32).find(|minute| {
            let now = begun + INTERVAL * 2 * *minute;
            let ends = patience.ends_read(&status(504), 2, false, now);
            // The poll after each failure fails as well, and the one after that does not.
            patience.poll_unanswered();
            patience.poll_answered(now + INTERVAL);
            ends
        });
        assert_eq!(ended, None);
    }

    /// The server answers nobody for a while. That is no evidence about any page.
    #[test]
    fn an_outage_ends_no_read_and_no_question() {
        for error in [status(400), status(503)] {
            let mut patience = answered();
            let now = Instant::now();
            // No poll is due yet.
            for _ in 0..20 {
                assert!(!patience.ends_read(&error, 2, false, now));
            }
            assert!(!patience.poll_answered(now - INTERVAL));
            patience.poll_unanswered();
            for _ in 0..20 {
                assert!(!patience.ends_read(&error, 2, false, now));
                assert!(!patience.ends_read(&error, 2, true, now));
                assert!(!patience.ends_question(&error, now));
            }
            // Polls work again. Earlier failures do not count.
            assert!(patience.poll_answered(now + INTERVAL));
            assert!(!patience.ends_read(&error, 2, false, now + INTERVAL));
            assert!(!patience.ends_read(&error, 2, false, now + 2 * INTERVAL));
        }
    }
}
