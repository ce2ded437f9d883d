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
    clock, opsramp,
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
    requests: u64,
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
            requests: 0,
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
        if let Some(poll) = &mut self.poll {
            poll.requests += 1;
        }
        let answered = answer.as_ref().ok();
        let empty_trial = answered.and_then(|answer| self.empty_trial(&request, answer));
        if let Some(EmptyTrial::Failed { less }) = empty_trial {
            self.engine.request_failed(&purpose);
            return Some(self.ask(purpose, request.page, less));
        }
        let was_reading = self.engine.is_reading();
        let mut learned = match answer {
            Ok(answer) => self.learn(&purpose, &request, &answer).await,
            Err(error) => Err(error.into()),
        };
        match &learned {
            Ok(_) => {
                if empty_trial.is_none() {
                    self.page_came(&request);
                }
                if !was_reading {
                    // This may be the first page of a full read as well.
                    self.read_paging = Paging::of(&request);
                }
            }
            Err(failure) => {
                self.engine.request_failed(&purpose);
                if let Failure::Api(error) = failure
                    && let Some(paging) = self.lower_paging(error, &request)
                {
                    return Some(self.ask(purpose, request.page, paging));
                }
            }
        }
        if request.page > 1
            && let Err(failure) = &learned
            && self.can_do_without(request.page, failure, took)
        {
            learned = Ok((Next::Done, 0));
        }
        if learned.is_ok()
            && let Some(poll) = &mut self.poll
            && !std::mem::replace(&mut poll.has_first_page, true)
            && self.patience.poll_answered(poll.began)
        {
            self.go_on_in_background();
        }
        match learned {
            Ok((Next::Page(page), events)) => {
                if let Some(poll) = &mut self.poll {
                    poll.events += events;
                }
                return Some(self.page(Purpose::Poll, page));
            }
            Ok((Next::Done, events)) => {
                self.look_for_room().await;
                self.poll_succeeded(events);
            }
            Err(failure) => {
                if matches!(failure, Failure::Api(_)) {
                    self.look_for_room().await;
                }
                self.poll_failed(&failure);
            }
        }
        None
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

    fn poll_succeeded(&mut self, events: u64) {
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
        self.end_poll(Ok(events));
    }

    fn poll_failed(&mut self, failure: &Failure) {
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
                self.grid.retry(now, 1, fastrand::f64(), None)
            }
            // The first page of the next poll may bring news, so that poll is not delayed.
            Failure::Api(error) if has_first_page && error.may_concern_request() => {
                self.failures.stretching = 0;
                self.grid.retry(now, 1, fastrand::f64(), None)
            }
            _ => {
                self.failures.stretching += 1;
                let wait = match failure {
                    Failure::Api(opsramp::Error::Throttled { retry_after }) => *retry_after,
                    _ => None,
                };
                let not_before = wait.map(|wait| now + wait.min(schedule::MAX_BACK_OFF));
                self.grid
                    .retry(now, self.failures.stretching, fastrand::f64(), not_before)
            }
        };
        self.search.status.up = Some(false);
        let reason = error.reason;
        self.end_poll(Err(error));
        // The counter grows last, so that whoever sees it also sees the new `up`.
        self.search.metrics.poll_failed(reason);
    }

    /// Ends a poll. If it failed, no result is published, however many of its pages came.
    fn end_poll(&mut self, outcome: Result<u64, PollError>) {
        let Some(poll) = self.poll.take() else { return };
        let took = poll.began.elapsed();
        self.search.metrics.poll_ended(took);
        let succeeded = outcome.is_ok();
        self.search.status.last_requests = poll.requests;
        self.search.status.polls.truncate(HISTORY - 1);
        self.search.status.polls.push_front(PollSummary {
            started: poll.started,
            took,
            requests: poll.requests,
            outcome: outcome.map(|events| events + poll.events),
        });
        self.search.status.first_attempt_over = true;
        self.announce_next_poll();
        if succeeded {
            self.publish(Some(clock::now()));
        }
    }
}
