//! Polls: from the request for the first page to the report of the outcome.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    Activity, Failure, Reply, Request, Running,
    asking::{EmptyTrial, Paging},
    patience,
};
use crate::{
    clock,
    opsramp::{self, SentRequests},
    poll::{
        engine::{FailedPage, Next, Purpose},
        schedule,
    },
    status::{HISTORY, PollError, PollSummary},
};

/// A poll under way.
pub(super) struct Poll {
    started: Timestamp,
    began: Instant,
    /// What it has sent, also for details and if a request was repeated.
    pub(super) sent: SentRequests,
    events: u64,
    /// Whether the engine has learned from the first page.
    pub(super) has_first_page: bool,
}

/// The polls that failed since the last one that succeeded.
#[derive(Default)]
pub(super) struct FailedPolls {
    count: u32,
    /// Number of those failures that stretch the interval. Failures of the token do not, because
    /// the token has a back-off of its own. Failures of a further page do not, because new alerts
    /// may be on the first page.
    stretching: u32,
    since: Option<Instant>,
}

// === impl Running ===

impl Running {
    pub(super) fn begin_poll(&mut self) -> Request {
        self.search.metrics.poll_begun();
        // Alerts that are found gone by later answers did not leave together with the earlier
        // ones.
        self.waited_in_vain &= self.engine.has_departures() || self.engine.is_asking_who_left();
        let now = Instant::now();
        self.poll = Some(Poll {
            started: clock::now(),
            began: now,
            sent: SentRequests::default(),
            events: 0,
            has_first_page: false,
        });
        let pause = self.search.options.full_read_interval;
        let paging = self.paging.begin(now, pause);
        self.ask(Purpose::Poll, 1, paging)
    }

    /// Processes an answer of a poll. Returns the next request if the poll goes on.
    pub(super) async fn poll_answered(&mut self, reply: Reply) -> Option<Request> {
        let Reply::Page {
            purpose,
            request,
            answer,
            took,
        } = reply
        else {
            return None;
        };
        self.await_commit_quietly().await;
        let answered = answer.as_ref().ok();
        let empty_trial = answered.and_then(|answer| self.empty_trial(&request, answer));
        if let Some(EmptyTrial::Failed { less }) = empty_trial {
            return Some(self.ask(purpose, request.page, less));
        }
        let was_reading = self.engine.is_reading();
        let learned = match answer {
            Ok(answer) => self.learn(&purpose, &request, &answer).await,
            Err(error) => Err(error.into()),
        };
        let next = match learned {
            Ok((next, events)) => {
                if let Some(poll) = &mut self.poll {
                    poll.events += events;
                }
                if empty_trial.is_none() {
                    self.page_came(&request);
                }
                if !was_reading {
                    // This may be the first page of a full read as well.
                    self.read_paging = Paging::of(&request);
                    self.details_time.read_begins();
                }
                next
            }
            Err(failure) => {
                self.engine.request_failed(&purpose);
                if let Failure::Api(error) = &failure
                    && let Some(paging) = self.lower_paging(error, &request)
                {
                    return Some(self.ask(purpose, request.page, paging));
                }
                if request.page == 1 || !self.can_do_without(request.page, &failure, took) {
                    if matches!(failure, Failure::Api(_)) {
                        self.look_for_room().await;
                    }
                    self.poll_failed(&failure, took);
                    return None;
                }
                Next::Done
            }
        };
        if let Some(poll) = &mut self.poll {
            poll.has_first_page = true;
            // Further pages tell nothing more.
            if self.patience.poll_answered(poll.began) {
                self.go_on_in_background();
            }
        }
        match next {
            Next::Page(page) => Some(self.page(Purpose::Poll, page)),
            Next::Done => {
                self.look_for_room().await;
                self.poll_succeeded();
                None
            }
        }
    }

    /// Notes that a poll did not learn what is on a further page. Returns whether the poll
    /// succeeds all the same.
    fn can_do_without(&mut self, page: u64, failure: &Failure, took: Duration) -> bool {
        let Failure::Api(error) = failure else {
            self.engine.page_missed(page);
            return false;
        };
        if matches!(error, opsramp::Error::Throttled { .. }) && self.engine.is_retry(page) {
            self.engine.retry_throttled();
            return true;
        }
        if self.engine.page_failed(page, took, Instant::now()) == FailedPage::Trial {
            return true;
        }
        // This includes a page that came but cannot be read.
        if patience::is_evidence(error) {
            self.engine.poll_cut_short(Instant::now());
        }
        // If the page is refused, the background finds out how far the server shows the result.
        error.is_refusal()
    }

    fn poll_succeeded(&mut self) {
        let FailedPolls { count, since, .. } = std::mem::take(&mut self.failures);
        if let Some(since) = since {
            let after = humantime::format_duration(Duration::from_secs(since.elapsed().as_secs()));
            tracing::info!(search = %self.search.key, failures = count, %after, "polling works again");
        }
        if std::mem::take(&mut self.store_failed) {
            self.go_on_in_background();
        }
        if !self.engine.has_task() {
            self.patience.no_page_is_wanted();
        }
        self.next_poll = self.grid.next(Instant::now());
        self.search.status.up = Some(true);
        self.end_poll(Ok(()));
    }

    /// `took`: how long its last request took.
    fn poll_failed(&mut self, failure: &Failure, took: Duration) {
        let now = Instant::now();
        self.failures.count += 1;
        self.failures.since.get_or_insert(now);
        let has_first_page = self.poll.as_ref().is_some_and(|poll| poll.has_first_page);
        if !has_first_page && matches!(failure, Failure::Api(_)) {
            self.patience.poll_unanswered();
        }
        self.store_failed |= matches!(failure, Failure::Store(_));
        let error = self.search.failed(Activity::Poll, failure);
        self.next_poll = match failure {
            // If a secret was rotated on disk, the next poll shall pick it up.
            Failure::Api(error) if error.reason() == "auth" || error.is_echo() => {
                self.grid.retry(now, took, 1, fastrand::f64(), None)
            }
            // The first page of the next poll may bring news, so that poll is not delayed.
            Failure::Api(error) if has_first_page && error.may_concern_request() => {
                self.failures.stretching = 0;
                self.grid.retry(now, took, 1, fastrand::f64(), None)
            }
            _ => {
                self.failures.stretching += 1;
                let wait = match failure {
                    Failure::Api(opsramp::Error::Throttled { retry_after }) => *retry_after,
                    _ => None,
                };
                let not_before = wait.map(|wait| now + wait.min(schedule::MAX_BACK_OFF));
                let failures = self.failures.stretching;
                self.grid
                    .retry(now, took, failures, fastrand::f64(), not_before)
            }
        };
        self.search.status.up = Some(false);
        let reason = error.reason;
        self.end_poll(Err(error));
        // The counter grows last, so that whoever sees it also sees the new `up`.
        self.search.metrics.poll_failed(reason);
    }

    /// Ends a poll. If it failed, no result is published, however many of its pages came.
    fn end_poll(&mut self, outcome: Result<(), PollError>) {
        let Some(poll) = self.poll.take() else { return };
        self.details_time.poll_ended();
        let took = poll.began.elapsed();
        self.search.metrics.poll_ended(took);
        let succeeded = outcome.is_ok();
        self.search.status.polls.truncate(HISTORY - 1);
        self.search.status.polls.push_front(PollSummary {
            started: poll.started,
            took,
            requests: poll.sent.count(),
            outcome: outcome.map(|()| poll.events),
        });
        self.search.status.first_attempt_over = true;
        self.announce_next_poll();
        if succeeded {
            self.publish(Some(clock::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        logging::captured,
        opsramp::{Answer, Error},
        poll::search::testing::{alone, auth, page_of, pass, reply, status},
        store,
    };

    /// The longest wait for a poll that nothing delays.
    const SOON: Duration = Duration::from_secs(30);
    /// Less than the shortest wait after six failures that stretch the interval.
    const LATE: Duration = Duration::from_secs(45);

    /// A search whose server shows its result page by page, and has shown it whole once.
    struct Polled {
        running: Running,
        _folder: tempfile::TempDir,
    }

    impl Polled {
        async fn new() -> Self {
            let (running, _folder) = alone().await;
            let mut polled = Self { running, _folder };
            assert_eq!(polled.poll(&[Ok((0, 1))]).await, 1);
            polled
        }

        /// Polls with these answers: either an error, or the alerts with ids from the first number
        /// on, and how many the server counts. Returns the number of requests.
        async fn poll(&mut self, answers: &[Result<(u64, u64), Error>]) -> u64 {
            let mut next = Some(self.running.begin_poll());
            for (page, answer) in (1..).zip(answers) {
                drop(next.take().expect("the poll goes on"));
                let answer = answer
                    .clone()
                    .map(|(first, total)| page_of(page, first, total));
                next = self.answer(page, answer).await;
            }
            self.running.search.status.last_requests()
        }

        async fn answer(&mut self, page: u64, answer: Result<Answer, Error>) -> Option<Request> {
            // The request itself is dropped unsent.
            self.running.poll.as_ref().unwrap().sent.add();
            let reply = reply(&self.running, Purpose::Poll, page, answer);
            self.running.poll_answered(reply).await
        }

        fn up(&self) -> Option<bool> {
            self.running.search.status.up
        }

        /// Fails a poll, before or after its first page.
        fn fail(&mut self, has_first_page: bool, failure: &Failure) {
            drop(self.running.begin_poll());
            let poll = self.running.poll.as_mut().unwrap();
            poll.has_first_page = has_first_page;
            self.running.poll_failed(failure, Duration::ZERO);
        }

        /// How long it is until the next poll.
        fn wait(&self) -> Duration {
            self.running.next_poll - Instant::now()
        }

        /// Whether a poll that succeeds lets a background go on that has failed.
        async fn goes_on(&mut self) -> bool {
            self.running.background_failed(&status(500).into());
            let pause = self.running.pace.at;
            self.poll(&[Ok((0, 1))]).await;
            self.running.pace.at != pause
        }
    }

    fn throttled(seconds: Option<u64>) -> Error {
        Error::Throttled {
            retry_after: seconds.map(Duration::from_secs),
        }
    }

    fn store_failure() -> Failure {
        store::Error::HeldElsewhere.into()
    }

    #[tokio::test]
    async fn polls_that_fail_are_tried_less_often_only_where_that_may_help() {
        let wait = async |has_first_page: bool, failure: Failure| {
            let mut polled = Polled::new().await;
            for _ in 0..6 {
                polled.fail(has_first_page, &failure);
            }
            polled.wait()
        };
        for has_first_page in [false, true] {
            // The token has a back-off of its own.
            for error in [auth(false), auth(true), Error::Echo(Arc::new(status(500)))] {
                assert!(wait(has_first_page, error.into()).await <= SOON);
            }
            for failure in [throttled(None).into(), store_failure()] {
                assert!(wait(has_first_page, failure).await > LATE);
            }
        }
        assert!(wait(false, status(500).into()).await > LATE);
        // The first page may bring news.
        assert!(wait(true, status(500).into()).await <= SOON);
    }

    #[tokio::test]
    async fn only_failures_in_a_row_that_stretch_the_interval_do_so() {
        let failures = |polled: &mut Polled, has_first_page, error: Error| {
            for _ in 0..6 {
                polled.fail(has_first_page, &error.clone().into());
            }
        };
        let mut polled = Polled::new().await;
        failures(&mut polled, false, auth(false));
        polled.fail(false, &status(500).into());
        assert!(polled.wait() <= SOON);
        failures(&mut polled, false, status(500));
        polled.poll(&[Ok((1_000, 201)), Err(status(500))]).await;
        assert_eq!(polled.up(), Some(false));
        polled.fail(false, &status(500).into());
        assert!(polled.wait() <= SOON, "a first page has come in between");
        failures(&mut polled, false, status(500));
        polled.poll(&[Ok((0, 1))]).await;
        assert!(polled.wait() <= SOON);
        polled.fail(false, &status(500).into());
        assert!(polled.wait() <= SOON, "a poll has succeeded in between");
    }

    #[tokio::test]
    async fn a_request_that_hung_is_followed_by_no_pause_of_the_same_length() {
        let mut polled = Polled::new().await;
        for _ in 0..6 {
            polled.fail(false, &status(500).into());
        }
        assert!(polled.wait() > LATE);
        drop(polled.running.begin_poll());
        polled.running.poll_failed(&status(500).into(), 2 * LATE);
        assert!(polled.wait() <= SOON);
    }

    #[tokio::test]
    async fn a_server_may_ask_for_a_pause_of_five_minutes_at_most() {
        let wait = async |seconds| {
            let mut polled = Polled::new().await;
            polled.fail(false, &throttled(Some(seconds)).into());
            polled.wait().as_secs_f64().round()
        };
        assert_eq!(wait(100).await, 100.0);
        assert_eq!(wait(100_000).await, 300.0);
    }

    /// Only polls without a first page say that the server may answer nobody.
    #[tokio::test]
    async fn the_background_goes_on_as_soon_as_the_cause_of_its_failures_may_be_over() {
        let mut polled = Polled::new().await;
        assert!(!polled.goes_on().await);
        polled.fail(true, &status(500).into());
        assert!(!polled.goes_on().await, "the first page came");
        polled.fail(false, &status(500).into());
        assert!(polled.goes_on().await);
        assert!(!polled.goes_on().await, "it has gone on already");
        // What another failure says does not undo that the store has failed.
        polled.fail(true, &store_failure());
        polled.fail(true, &auth(false).into());
        assert!(polled.goes_on().await);
        assert!(!polled.goes_on().await, "it has gone on already");
        polled.running.background_failed(&store_failure());
        assert!(
            polled.goes_on().await,
            "the store has failed the background"
        );
    }

    /// The store has failed before the first page was learned. The server did answer.
    #[tokio::test]
    async fn a_store_that_fails_is_no_server_that_answers_nobody() {
        let mut polled = Polled::new().await;
        let is_answered = |running: &mut Running| !running.patience.poll_answered(Instant::now());
        polled.fail(false, &store_failure());
        assert!(is_answered(&mut polled.running));
        polled.fail(false, &throttled(None).into());
        assert!(!is_answered(&mut polled.running));
    }

    #[tokio::test]
    async fn the_last_polls_are_told_with_their_events_and_requests() {
        let mut polled = Polled::new().await;
        let result = polled.running.search.status.result.clone().unwrap();
        for _ in 0..HISTORY {
            polled.fail(false, &status(500).into());
        }
        let status = &polled.running.search.status;
        assert_eq!(status.up, Some(false));
        let kept = status.result.as_ref().unwrap();
        assert_eq!((kept.at, kept.total_results), (result.at, 1));
        let grid = polled.running.grid;
        let earliest = grid.next(Instant::now());
        assert_eq!(polled.poll(&[Ok((1_000, 200)), Ok((2_000, 200))]).await, 2);
        let due = earliest..=grid.next(Instant::now());
        assert!(due.contains(&polled.running.next_poll));
        let status = &polled.running.search.status;
        assert_eq!(status.up, Some(true));
        assert!(status.first_attempt_over && status.next_poll.is_some());
        assert_eq!(status.result.as_ref().unwrap().total_results, 200);
        assert_eq!(status.polls.len(), HISTORY);
        assert_eq!(status.polls[0].requests, 2);
        assert!(matches!(status.polls[0].outcome, Ok(200)));
        let mut before = status.polls.iter().skip(1);
        assert!(before.all(|poll| poll.outcome.is_err()));
    }

    #[tokio::test]
    async fn that_polls_work_again_is_said_once() {
        let (lines, _guard) = captured();
        let mut polled = Polled::new().await;
        for _ in 0..3 {
            polled.fail(false, &status(500).into());
            pass(Duration::from_secs(60)).await;
        }
        for _ in 0..2 {
            polled.poll(&[Ok((0, 1))]).await;
        }
        let lines = lines.lock();
        let said = lines
            .iter()
            .filter(|line| line.contains("polling works again"));
        // On a busy machine, some seconds come on top.
        let after = ["failures=3 after=3m", "failures=3 after=\"3m "];
        let failures: Vec<_> = said
            .map(|line| after.iter().any(|told| line.contains(told)))
            .collect();
        assert_eq!(failures, [true], "{lines:?}");
    }

    /// The page may have failed while the server answered nobody, before it answered the poll.
    #[tokio::test]
    async fn only_a_poll_that_begins_after_failures_of_a_page_says_that_the_server_answers() {
        let mut polled = Polled::new().await;
        let ends_read = |running: &mut Running| {
            let refused = status(404);
            running
                .patience
                .ends_read(&refused, 2, false, Instant::now())
        };
        drop(polled.running.begin_poll());
        for _ in 0..3 {
            assert!(!ends_read(&mut polled.running));
        }
        polled.answer(1, Ok(page_of(1, 0, 201))).await;
        assert!(!ends_read(&mut polled.running));
        polled.poll(&[Ok((0, 201))]).await;
        assert!(ends_read(&mut polled.running));
        // As soon as no page is wanted, the failures are over.
        let mut polled = Polled::new().await;
        for _ in 0..9 {
            assert!(!ends_read(&mut polled.running));
            polled.poll(&[Ok((0, 1))]).await;
        }
    }

    /// New alerts are on the first page. The background finds out how far the server shows the
    /// rest.
    #[tokio::test]
    async fn a_poll_does_without_a_further_page_that_is_refused_or_was_only_tried_again() {
        let mut polled = Polled::new().await;
        polled.poll(&[Err(status(404))]).await;
        assert_eq!(polled.up(), Some(false), "it is the first page");
        polled.poll(&[Ok((1_000, 201)), Err(status(404))]).await;
        assert_eq!(polled.up(), Some(true));
        let mut polled = Polled::new().await;
        for up in [false, true] {
            polled.poll(&[Ok((1_000, 201)), Err(status(500))]).await;
            assert_eq!(polled.up(), Some(up));
        }
    }

    /// The next poll asks for the page again, and that is no reason to fail it.
    #[tokio::test]
    async fn a_retry_that_is_throttled_fails_no_poll_and_is_repeated() {
        let mut polled = Polled::new().await;
        polled.poll(&[Ok((1_000, 201)), Err(throttled(None))]).await;
        assert_eq!(polled.up(), Some(false), "the page was wanted");
        for _ in 0..2 {
            polled.poll(&[Ok((1_000, 201)), Err(throttled(None))]).await;
            assert_eq!(polled.up(), Some(true));
        }
    }

    #[tokio::test]
    async fn a_page_that_cannot_be_stored_is_missed() {
        let mut polled = Polled::new().await;
        let running = &mut polled.running;
        assert!(!running.can_do_without(2, &store_failure(), Duration::ZERO));
        assert!(running.engine.misses_a_page());
    }

    /// The background then finds out how far the server shows the result.
    #[tokio::test]
    async fn polls_that_a_further_page_cuts_short_begin_a_full_read_unless_they_are_throttled() {
        let begins = async |error: Error| {
            let mut polled = Polled::new().await;
            let failure = error.into();
            for _ in 0..3 {
                polled.running.can_do_without(2, &failure, Duration::ZERO);
            }
            polled.running.engine.is_reading()
        };
        assert!(begins(status(500)).await);
        assert!(begins(auth(false)).await);
        assert!(!begins(throttled(None)).await);
        assert!(!begins(Error::Echo(Arc::new(status(500)))).await);
    }
}
