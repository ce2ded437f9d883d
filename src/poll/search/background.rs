//! Requests beside the polls: pages of full reads, questions by id, alerts' own pages.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Activity, Failure, Reply, Request, Running,
    asking::{Paging, can_be_asked_by_id},
    departures::OwnPage,
};
use crate::{
    opsramp::{self, Answer, SearchRequest},
    poll::{
        engine::{Purpose, Question, Task},
        schedule,
    },
};

/// The first pause after a failure; it doubles up to five minutes.
const PAUSE: Duration = Duration::from_secs(2);

/// When the background goes on.
pub(super) struct Pace {
    pub(super) at: Instant,
    /// Number of failures in a row.
    failures: u32,
    /// The time of the first failure since the background was last answered.
    failed_at: Option<Instant>,
}

// === impl Running ===

impl Running {
    pub(super) fn background(&mut self) -> Option<Request> {
        let task = self.engine.task()?;
        if !matches!(task, Task::Reasons(_)) {
            // No departure is left to be told, so the alerts of these pages have come back.
            self.judged.clear();
        }
        match task {
            Task::Page(page) => Some(self.page_of_read(page)),
            Task::Confirm(question) => {
                if !can_be_asked_by_id(&self.search.options.query) {
                    self.engine.confirmation_refused(&question, Instant::now());
                    return None;
                }
                Some(self.page(Purpose::Confirm(question), 1))
            }
            Task::Verify(ids) => {
                let pages = self.fetch_own_pages(ids);
                Some(Box::pin(async move { Reply::Verdicts(pages.await) }))
            }
            Task::Reasons(ids) => Some(self.fetch_reasons(ids)),
        }
    }

    pub(super) async fn background_answered(&mut self, reply: Reply) {
        if let Some(since) = self.pace.failed_at.take() {
            self.engine.held_up(since, Instant::now());
        }
        let goes_on = matches!(
            reply,
            Reply::Page {
                purpose: Purpose::FullRead,
                answer: Ok(_),
                ..
            }
        );
        if !goes_on {
            self.await_commit_quietly().await;
        }
        let readings_before = self.engine.sound_readings();
        let worked = match reply {
            Reply::Page {
                purpose,
                request,
                answer,
                ..
            } => self.page_answered(&purpose, &request, answer).await,
            Reply::Reasons(reasons) => {
                let late = |(_, page): &(_, OwnPage)| matches!(page, OwnPage::Late);
                self.waited_in_vain |= reasons.iter().any(late);
                self.store_departures(reasons).await
            }
            Reply::Verdicts(verdicts) => {
                self.judge(verdicts);
                Ok(())
            }
        };
        match worked {
            Ok(()) => {
                self.patience.worked();
                self.go_on_in_background();
                if self.engine.sound_readings() != readings_before || !self.engine.has_task() {
                    self.publish(None);
                }
            }
            Err(failure) => {
                self.await_commit_quietly().await;
                self.background_failed(&failure);
            }
        }
    }

    /// Processes the answer to a page of a full read, or to a question by id. If a request keeps
    /// failing, the background does without it.
    async fn page_answered(
        &mut self,
        purpose: &Purpose,
        request: &SearchRequest,
        answer: Result<Answer, opsramp::Error>,
    ) -> Result<(), Failure> {
        let learned = match answer {
            Ok(answer) => self.learn(purpose, request, &answer).await.map(|_| ()),
            Err(error) => Err(error.into()),
        };
        let Err(failure) = learned else {
            if *purpose == Purpose::FullRead {
                self.patience.page_came(request.page);
            }
            return Ok(());
        };
        self.engine.request_failed(purpose);
        match (&failure, purpose) {
            (Failure::Api(error), Purpose::Confirm(question))
                if self.is_asked_in_vain(error, question) =>
            {
                self.engine.confirmation_failed(question, Instant::now());
                Ok(())
            }
            // The polls have been answered with another paging since the read began, so it begins
            // anew with that one. It does so no more often than polls change their paging. A read
            // that has no page yet takes the other paging anyway, after the pause.
            (Failure::Api(error), Purpose::FullRead)
                if error.is_refusal()
                    && self.engine.wants(request.page)
                    && !self.engine.begins_reading()
                    && Paging::of(request) != self.paging.last_answered() =>
            {
                self.engine.read_anew(Instant::now());
                Ok(())
            }
            (Failure::Api(error), Purpose::FullRead) if self.cannot_go_on(error, request.page) => {
                tracing::warn!(
                    search = %self.search.key,
                    page = request.page,
                    error = %error.chain(),
                    "the server does not show a further page of the result; what lies behind it is not seen"
                );
                self.patience.no_page_is_wanted();
                self.engine.page_refused(request.page, Instant::now());
                self.prime().await
            }
            _ => Err(failure),
        }
    }

    /// Lets the background go on at once, because it works, or because the cause of its failures
    /// may be over.
    pub(super) fn go_on_in_background(&mut self) {
        self.pace.go_on(Instant::now());
    }

    pub(super) fn background_failed(&mut self, failure: &Failure) {
        self.pace.failed(Instant::now());
        self.store_failed |= matches!(failure, Failure::Store(_));
        self.search.failed(Activity::Background, failure);
        self.search.report();
    }

    /// Whether the page that the full read wants has failed so often that it will keep failing.
    /// The first page is left to the polls.
    fn cannot_go_on(&mut self, error: &opsramp::Error, page: u64) -> bool {
        let ended_before = self.engine.refused() == Some(page);
        page > 1
            && self.engine.wants(page)
            && self
                .patience
                .ends_read(error, page, ended_before, Instant::now())
    }

    /// Whether a question has failed so often that the full read does without its answer.
    fn is_asked_in_vain(&mut self, error: &opsramp::Error, question: &Question) -> bool {
        self.engine.is_asking(question) && self.patience.ends_question(error, Instant::now())
    }
}

// === impl Pace ===

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            at: now,
            failures: 0,
            failed_at: None,
        }
    }

    fn go_on(&mut self, now: Instant) {
        self.failures = 0;
        self.at = now;
    }

    fn failed(&mut self, now: Instant) {
        let doublings = self.failures.min(10);
        self.failures += 1;
        let pause = (PAUSE * (1 << doublings)).min(schedule::MAX_BACK_OFF);
        self.at = now + pause.mul_f64(0.8 + 0.2 * fastrand::f64());
        self.failed_at.get_or_insert(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_five_minutes_until_the_background_works_again() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!(pace.at, now);
        for _ in 0..2 {
            for seconds in [2, 4, 8, 16, 32, 64, 128, 256].into_iter().chain([300; 99]) {
                pace.failed(now);
                let longest = Duration::from_secs(seconds);
                assert!((longest.mul_f64(0.79)..=longest).contains(&(pace.at - now)));
            }
            pace.go_on(now);
            assert_eq!(pace.at, now);
        }
        let since = pace.failed_at;
        pace.failed(now + PAUSE);
        assert_eq!((since, pace.failed_at), (Some(now), Some(now)));
    }
}
