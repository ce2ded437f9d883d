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
        match self.engine.task()? {
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
    use std::sync::Arc;

    use super::*;
    use crate::{
        opsramp::Error,
        poll::search::testing::{SIZE, alert, alone, answer_of, page_of, pass, reply, status},
        status::SearchStatus,
    };

    /// The last alert of the first page.
    const WITNESS: &str = "99";
    const INTERVAL: Duration = Duration::from_secs(30);
    /// Longer than any pause between two readings.
    const LONG: Duration = Duration::from_secs(700);

    /// A search whose result is read page by page: of 250 alerts, a poll has shown the first page.
    struct Read {
        running: Running,
        _folder: tempfile::TempDir,
    }

    impl Read {
        async fn new() -> Self {
            let (running, _folder) = alone().await;
            let mut read = Self { running, _folder };
            read.poll(250).await;
            assert!(read.running.engine.wants(2));
            read
        }

        /// Lets a poll see the first page of a result of so many alerts.
        async fn poll(&mut self, total: u64) {
            drop(self.running.begin_poll());
            let answer = page_of(1, 0, total);
            let reply = reply(&self.running, Purpose::Poll, 1, Ok(answer));
            if self.running.poll_answered(reply).await.is_some() {
                self.trial_fails().await;
            }
        }

        /// Refuses the page that a poll tries again.
        async fn trial_fails(&mut self) {
            let reply = reply(&self.running, Purpose::Poll, 2, Err(status(404)));
            assert!(self.running.poll_answered(reply).await.is_none());
        }

        /// Answers the request for the page that is wanted.
        async fn answer(&mut self, answer: Result<Answer, Error>) {
            let (purpose, page) = match self.running.engine.task() {
                Some(Task::Page(page)) => (Purpose::FullRead, page),
                Some(Task::Confirm(question)) => (Purpose::Confirm(question), 1),
                _ => panic!("no page is wanted"),
            };
            drop(self.running.background());
            let reply = reply(&self.running, purpose, page, answer);
            self.running.background_answered(reply).await;
        }

        /// Shows a page of a result of so many alerts.
        async fn page(&mut self, page: u64, total: u64) {
            assert!(self.running.engine.wants(page));
            let answer = page_of(page, (page - 1) * SIZE, total);
            self.answer(Ok(answer)).await;
        }

        /// Fails the request so often; polls are answered meanwhile.
        async fn fail(&mut self, code: u16, times: usize) {
            for _ in 0..times {
                self.answer(Err(status(code))).await;
                self.poll(250).await;
            }
        }

        /// Reads the whole result, of which sixty alerts have then left, once more.
        async fn with_sixty_missed() -> Self {
            let mut read = Self::new().await;
            read.page(2, 250).await;
            read.page(3, 250).await;
            pass(INTERVAL * 2).await;
            read.poll(190).await;
            read.page(1, 190).await;
            read.page(2, 190).await;
            read
        }

        /// The question by id that is asked.
        fn question(&self) -> Arc<Question> {
            match self.running.engine.task() {
                Some(Task::Confirm(question)) => question,
                task => panic!("{task:?}"),
            }
        }

        /// Says that of the alerts that a question is about, only the witness is there.
        async fn all_have_left(&mut self) {
            let shown = vec![alert(WITNESS, "Critical")];
            self.answer(Ok(answer_of(1, shown, 1, false))).await;
            while let Some(Task::Reasons(ids)) = self.running.engine.task() {
                let reasons = ids.into_iter().map(|id| (id, OwnPage::NotFound));
                let reply = Reply::Reasons(reasons.collect());
                self.running.background_answered(reply).await;
            }
        }

        /// What is published.
        fn shown(&self) -> Arc<SearchStatus> {
            let search = &self.running.search;
            search.shared.board.search(&search.key).unwrap()
        }
    }

    /// Else a server in trouble would be asked as fast as it answers.
    #[tokio::test]
    async fn a_failure_is_shown_and_delays_requests_until_one_is_answered() {
        let mut read = Read::new().await;
        for _ in 0..5 {
            read.answer(Err(status(500))).await;
        }
        assert!(read.running.pace.at > Instant::now() + PAUSE * 8);
        assert_eq!(read.shown().last_error.as_ref().unwrap().reason, "http");
        read.page(2, 250).await;
        assert!(read.running.pace.at <= Instant::now());
        read.answer(Err(status(500))).await;
        assert!(read.running.pace.at <= Instant::now() + PAUSE);
    }

    /// The background leaves the allowance alone for as long as a read took. Waiting for a server
    /// that answers nobody takes none of it.
    #[tokio::test]
    async fn the_time_of_failures_does_not_count_as_time_of_reading() {
        let mut read = Read::new().await;
        read.answer(Err(status(500))).await;
        pass(INTERVAL * 5).await;
        read.page(2, 250).await;
        pass(INTERVAL * 2).await;
        read.page(3, 250).await;
        read.poll(250).await;
        for (passed, is_reading) in [(INTERVAL * 3 / 2, false), (INTERVAL, true)] {
            pass(passed).await;
            read.poll(249).await;
            assert_eq!(read.running.engine.is_reading(), is_reading);
        }
    }

    #[tokio::test]
    async fn a_read_ends_at_a_further_page_that_is_refused_three_times_or_was_before() {
        let mut read = Read::new().await;
        read.fail(404, 2).await;
        assert!(read.running.engine.wants(2));
        read.answer(Err(status(404))).await;
        assert!(!read.running.engine.is_reading());
        assert_eq!(read.running.engine.refused(), Some(2));
        // The next read tries the page as often, even if it begins with the next poll.
        pass(LONG).await;
        read.poll(250).await;
        read.fail(500, 2).await;
        assert!(read.running.engine.wants(2));
        assert!(!read.running.primed);
        read.answer(Err(status(500))).await;
        assert!(!read.running.engine.is_reading());
        assert!(read.running.primed, "what opens now is new");
    }

    #[tokio::test]
    async fn a_read_does_not_end_at_a_page_that_may_still_come() {
        let mut read = Read::new().await;
        read.fail(500, 12).await;
        assert!(read.running.engine.wants(2), "the server is in trouble");
        let mut read = Read::new().await;
        read.fail(404, 2).await;
        read.page(2, 250).await;
        read.running.engine.read_anew(Instant::now());
        read.page(1, 250).await;
        read.fail(404, 1).await;
        assert!(read.running.engine.wants(2), "it came in between");
        read.running.engine.read_anew(Instant::now());
        read.fail(404, 9).await;
        assert!(read.running.engine.wants(1), "polls fail as well then");
    }

    /// Polls may ask for less in vain, and pages that no poll is answered with may be refused for
    /// good.
    #[tokio::test]
    async fn a_read_begins_as_polls_were_last_answered_and_goes_on_with_that() {
        let mut read = Read::new().await;
        let running = &mut read.running;
        let [sorted, unsorted] = [true, false].map(|sorted| SearchRequest {
            query: String::new(),
            page: 1,
            page_size: SIZE as u32,
            sorted,
        });
        running.engine.read_anew(Instant::now());
        for _ in 0..2 {
            running.lower_paging(&status(400), &sorted);
        }
        drop(running.background());
        assert_eq!(running.read_paging, Paging::of(&sorted));
        running.page_came(&unsorted);
        drop(running.background());
        assert_eq!(running.read_paging, Paging::of(&unsorted));
        read.page(1, 250).await;
        read.running.page_came(&sorted);
        drop(read.running.background());
        assert_eq!(read.running.read_paging, Paging::of(&unsorted));
        // The size of pages determines their numbers, so the read begins anew.
        read.running.page_came(&unsorted);
        read.answer(Err(status(500))).await;
        assert!(read.running.engine.wants(2), "it is no refusal");
        read.answer(Err(status(400))).await;
        assert!(read.running.engine.wants(1));
        assert!(read.running.pace.at <= Instant::now());
        read.answer(Err(status(400))).await;
        assert!(read.running.pace.at > Instant::now(), "it has no page yet");
    }

    #[tokio::test]
    async fn what_a_read_finds_is_shown_as_soon_as_it_is_known() {
        let mut read = Read::with_sixty_missed().await;
        let read_at = read.running.search.status.last_full_read;
        assert_eq!(read.shown().last_full_read, read_at);
        assert_eq!(read.question().suspects.len(), 50);
        read.all_have_left().await;
        assert_eq!(read.question().suspects.len(), 10);
        assert_eq!(read.shown().result.as_ref().unwrap().tracked, 250);
        read.all_have_left().await;
        let shown = read.shown();
        let result = shown.result.as_ref().unwrap();
        assert!(result.complete);
        assert_eq!(result.tracked, 190);
    }

    #[tokio::test]
    async fn a_question_that_fails_three_times_in_a_row_is_done_without_until_the_next_read() {
        let mut read = Read::with_sixty_missed().await;
        let fail = async |read: &mut Read, times| {
            for _ in 0..times {
                read.answer(Err(status(500))).await;
            }
        };
        fail(&mut read, 2).await;
        read.all_have_left().await;
        fail(&mut read, 2).await;
        assert_eq!(
            read.question().suspects.len(),
            10,
            "another one was answered"
        );
        fail(&mut read, 1).await;
        assert!(!read.running.engine.has_task());
        pass(LONG).await;
        read.poll(190).await;
        read.page(2, 190).await;
        assert_eq!(read.question().suspects.len(), 10);
    }

    /// Nobody knows what the server makes of ids that are named twice.
    #[tokio::test]
    async fn a_search_whose_query_names_ids_is_not_asked_by_id() {
        let mut read = Read::with_sixty_missed().await;
        let question = read.question();
        let options = Arc::make_mut(&mut read.running.search.options);
        options.query = "uniqueId:1".to_owned();
        assert!(read.running.background().is_none());
        assert!(!read.running.engine.is_asking(&question));
    }

    /// Each answer counts as of the time when it was asked for.
    #[tokio::test]
    async fn a_page_that_a_poll_has_overtaken_takes_nothing_back() {
        let mut read = Read::new().await;
        let asked = read.running.background();
        let mut shown: Vec<_> = (0..SIZE - 1)
            .map(|id| alert(&id.to_string(), "Critical"))
            .collect();
        shown.insert(0, alert("150", "Warning"));
        drop(read.running.begin_poll());
        let answer = answer_of(1, shown, 250, true);
        let reply_to_poll = reply(&read.running, Purpose::Poll, 1, Ok(answer));
        drop(read.running.poll_answered(reply_to_poll).await);
        drop(asked);
        let reply = reply(
            &read.running,
            Purpose::FullRead,
            2,
            Ok(page_of(2, 100, 250)),
        );
        read.running.background_answered(reply).await;
        let known = read.running.engine.tracker().known_state("150").unwrap();
        assert_eq!((&*known.state, known.ordinal), ("Warning", 1));
    }

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
