//! How the server is asked: the request of each purpose, and the paging that the server is known
//! to accept.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Reply, Request, Running};
use crate::{
    opsramp::{self, Answer, Client, SearchRequest, Urgency},
    poll::{
        engine::{Purpose, Question},
        full_read::Facts,
    },
};

/// How pages are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Paging {
    pub(super) page_size: u32,
    pub(super) sorted: bool,
}

/// A poll's trial of another paging than the usual one whose answer shows no alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EmptyTrial {
    /// The result counts alerts, or alerts are known to be open. Only another request, with the
    /// paging `less`, can tell whether the paging is why none is shown.
    Failed { less: Paging },
    /// The result counts no alerts, and none are known to be open. So the answer does not tell
    /// whether this paging works, and the usual paging stays.
    ProvesNothing,
}

/// Finds the paging to ask for. Neither the maximum page size nor the names of sort keys are
/// documented. So if the server refuses the paging, less is asked for before the poll fails.
#[derive(Clone, Debug)]
pub(super) struct Negotiation {
    wanted: Paging,
    /// What polls ask for. A poll whose requests are refused lowers it; if everything is refused,
    /// it is what a poll was last answered with.
    usual: Paging,
    /// What a poll was last answered with; at first, what is wanted. The paging that polls ask for
    /// may be less or more, because polls change it also while the server answers nobody.
    answered: Paging,
    /// If less than wanted is asked for: when a poll tries the wanted paging again. A trial costs
    /// its poll some requests, but does not make the poll fail, unless the server throttles it.
    /// If as much as wanted is asked for, it means nothing.
    trial_at: Option<Instant>,
    /// Whether this poll has repeated a request unchanged.
    repeated: bool,
}

// === impl Running ===

impl Running {
    /// Asks for a page with the usual paging.
    pub(super) fn page(&mut self, purpose: Purpose, page: u64) -> Request {
        self.ask(purpose, page, self.paging.usual)
    }

    /// Asks for a page of a full read with the paging of the read's first page, because the size
    /// of pages determines their numbers.
    pub(super) fn page_of_read(&mut self, page: u64) -> Request {
        // The first page may be read again later, and then it must reach as far as before. What
        // polls ask for may be what they have lowered in vain, so it does not count.
        if self.engine.begins_reading() {
            self.read_paging = self.paging.last_answered();
        }
        self.ask(Purpose::FullRead, page, self.read_paging)
    }

    pub(super) fn ask(&mut self, purpose: Purpose, page: u64, paging: Paging) -> Request {
        self.engine.request_sent(&purpose);
        let query = match &purpose {
            Purpose::Poll | Purpose::FullRead => self.search.options.query.clone(),
            Purpose::Confirm(question) => query_by_id(&self.search.options.query, question),
        };
        let urgency = match &purpose {
            Purpose::Poll if page == 1 => Urgency::Poll,
            Purpose::Poll => Urgency::FurtherPage,
            Purpose::FullRead | Purpose::Confirm(_) => Urgency::Background,
        };
        let Paging { page_size, sorted } = paging;
        let request = SearchRequest {
            query,
            page,
            page_size,
            sorted,
        };
        let client = self.client(&purpose);
        let tenant = Arc::clone(&self.search.key.tenant.id);
        Box::pin(async move {
            let asked = Instant::now();
            let answer = client.search(&tenant, &request, urgency).await;
            Reply::Page {
                purpose,
                request,
                answer,
                took: asked.elapsed(),
            }
        })
    }

    /// The client for requests of this purpose. Those of a poll are counted.
    pub(super) fn client(&self, purpose: &Purpose) -> Client {
        let client = &self.search.client;
        match &self.poll {
            Some(poll) if *purpose == Purpose::Poll => client.counting(poll.sent.clone()),
            _ => client.clone(),
        }
    }

    /// Returns the paging to ask with after a poll's request has failed, if another try may help.
    pub(super) fn lower_paging(
        &mut self,
        error: &opsramp::Error,
        request: &SearchRequest,
    ) -> Option<Paging> {
        // If a further page is refused, the reason is its number.
        if request.page != 1 {
            return None;
        }
        let usual = self.paging.usual;
        let trial_at = Instant::now() + self.search.options.full_read_interval;
        let paging = self.paging.lower(error, request, trial_at)?;
        if self.paging.usual != usual {
            tracing::warn!(
                search = %self.search.key,
                error = %error,
                page_size = paging.page_size,
                sorted = paging.sorted,
                "the server refuses the search's paging; asking for less"
            );
        }
        Some(paging)
    }

    /// Returns what is to be made of the answer if it is the answer to a poll's trial and shows
    /// nothing.
    pub(super) fn empty_trial(
        &self,
        request: &SearchRequest,
        answer: &Answer,
    ) -> Option<EmptyTrial> {
        let less = self.paging.below_trial(request)?;
        let page = answer.page(request.page, false).ok()?;
        let facts = Facts::of(request, &page);
        // If the result counts nothing and alerts are known to be open, the usual paging decides
        // whether they have left.
        let is_doubtful = facts.shown == 0 && self.engine.tracker().open_count() > 0;
        if facts.is_hollow_first_page() || is_doubtful {
            return Some(EmptyTrial::Failed { less });
        }
        (facts.shown == 0).then_some(EmptyTrial::ProvesNothing)
    }

    /// Notes that a poll has learned from the answer to this request.
    pub(super) fn page_came(&mut self, request: &SearchRequest) {
        let paging = Paging::of(request);
        if self.paging.note_answered(paging) {
            tracing::info!(
                search = %self.search.key,
                page_size = paging.page_size,
                sorted = paging.sorted,
                "the server accepts more of the search's paging again; asking for more"
            );
        }
    }
}

// === impl Negotiation ===

impl Negotiation {
    /// What a poll was last answered with.
    pub(super) fn last_answered(&self) -> Paging {
        self.answered
    }

    /// Creates the paging for a server that has refused nothing yet.
    pub(super) fn new(wanted: Paging) -> Self {
        Self {
            wanted,
            usual: wanted,
            answered: wanted,
            trial_at: None,
            repeated: false,
        }
    }

    /// Returns how a poll that begins now asks for its first page. If that is a trial, the next
    /// trial comes after `pause`.
    pub(super) fn begin(&mut self, now: Instant, pause: Duration) -> Paging {
        self.repeated = false;
        match self.trial_at {
            Some(at) if now >= at => {
                self.trial_at = Some(now + pause);
                self.wanted
            }
            _ => self.usual,
        }
    }

    /// Notes that a poll has learned from the answer to a request with this paging. Returns whether
    /// that was a trial, so that more is asked for from now on.
    fn note_answered(&mut self, paging: Paging) -> bool {
        self.answered = paging;
        std::mem::replace(&mut self.usual, paging) != paging
    }

    /// Returns the paging to try after a request for a first page has failed that was a trial. The
    /// demands are lowered step by step, because some that were once refused may be accepted now.
    fn below_trial(&self, failed: &SearchRequest) -> Option<Paging> {
        let less = failed.with_simpler_paging().map(|less| Paging::of(&less));
        (Paging::of(failed) != self.usual).then(|| less.unwrap_or(self.usual))
    }

    /// Returns the paging to try after a request for a first page has failed. The same is asked
    /// once more, because a refusal may be a passing fault, as the documentation of 400 says. Then
    /// less is asked for, and what is wanted again at `trial_at`. `None` if another paging does
    /// not help, or if all have been tried.
    fn lower(
        &mut self,
        error: &opsramp::Error,
        failed: &SearchRequest,
        trial_at: Instant,
    ) -> Option<Paging> {
        let asked = Paging::of(failed);
        let is_refused = error.may_concern_paging();
        if let Some(less) = self.below_trial(failed) {
            return Some(less).filter(|_| error.may_concern_request());
        }
        if !is_refused {
            return None;
        }
        if !std::mem::replace(&mut self.repeated, true) {
            return Some(asked);
        }
        let less = failed.with_simpler_paging().as_ref().map(Paging::of);
        self.usual = less.unwrap_or(self.answered);
        self.trial_at = Some(trial_at);
        less
    }
}

// === impl Paging ===

impl Paging {
    pub(super) fn of(request: &SearchRequest) -> Self {
        Self {
            page_size: request.page_size,
            sorted: request.sorted,
        }
    }
}

/// Whether ids can be added to a query: not if the query itself names ids.
pub(in crate::poll) fn can_be_asked_by_id(query: &str) -> bool {
    !query.to_ascii_lowercase().contains("uniqueid:")
}

pub(in crate::poll) fn query_by_id(query: &str, question: &Question) -> String {
    let ids: Vec<&str> = question
        .suspects
        .iter()
        .chain([&question.witness])
        .map(|id| &**id)
        .collect();
    let and = if query.is_empty() { "" } else { "+" };
    format!("{query}{and}uniqueId:{}", ids.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        logging::captured,
        opsramp::Error,
        poll::search::testing::{alone, learn, status},
    };

    const WHILE: Duration = Duration::from_secs(600);
    const WANTED: Paging = Paging {
        page_size: 500,
        sorted: true,
    };
    const SMALLER: Paging = Paging {
        page_size: 100,
        sorted: true,
    };
    const LEAST: Paging = Paging {
        page_size: 100,
        sorted: false,
    };

    /// Returns what a poll asks for if its first requests fail with these errors.
    fn asked(paging: &mut Negotiation, now: Instant, errors: &[Error]) -> Vec<Paging> {
        let mut asked = vec![paging.begin(now, WHILE)];
        for error in errors {
            let last = asked[asked.len() - 1];
            match paging.lower(error, &request(last), now + WHILE) {
                Some(instead) => asked.push(instead),
                None => break,
            }
        }
        asked
    }

    /// The same if the server refuses the first `times` requests.
    fn refused(paging: &mut Negotiation, now: Instant, times: usize) -> Vec<Paging> {
        asked(paging, now, &vec![status(400); times])
    }

    #[test]
    fn the_same_is_asked_once_more_then_less_and_all_anew_by_the_next_poll() {
        let mut paging = Negotiation::new(WANTED);
        let now = Instant::now();
        for _ in 0..2 {
            let all = [WANTED, WANTED, SMALLER, LEAST];
            assert_eq!(refused(&mut paging, now, 9), all);
        }
    }

    #[test]
    fn what_works_is_gone_on_with_and_what_is_wanted_tried_again_after_a_while() {
        let mut paging = Negotiation::new(WANTED);
        let now = Instant::now();
        assert_eq!(refused(&mut paging, now, 2), [WANTED, WANTED, SMALLER]);
        paging.note_answered(SMALLER);
        assert_eq!(refused(&mut paging, now + WHILE / 2, 0), [SMALLER]);
        // The trial is refused: the same poll asks at once for what works, and the next trial
        // comes later.
        let later = now + WHILE;
        assert_eq!(refused(&mut paging, later, 1), [WANTED, SMALLER]);
        paging.note_answered(SMALLER);
        assert_eq!(refused(&mut paging, later + WHILE / 2, 0), [SMALLER]);
        assert_eq!(refused(&mut paging, later + WHILE, 0), [WANTED]);
        paging.note_answered(WANTED);
        assert_eq!(refused(&mut paging, later + WHILE * 2, 0), [WANTED]);
    }

    fn request(paging: Paging) -> SearchRequest {
        SearchRequest {
            query: String::new(),
            page: 1,
            page_size: paging.page_size,
            sorted: paging.sorted,
        }
    }

    /// While the server answers nobody, polls lower their demands in vain.
    #[test]
    fn what_polls_were_last_answered_with_is_not_what_they_ask_for_in_vain() {
        let mut paging = Negotiation::new(WANTED);
        let now = Instant::now();
        assert!(!paging.note_answered(WANTED), "nothing was lowered");
        assert_eq!(refused(&mut paging, now, 3)[2..], [SMALLER, LEAST]);
        assert_eq!(paging.last_answered(), WANTED);
        assert!(!paging.note_answered(LEAST), "less is no more");
        assert_eq!(paging.last_answered(), LEAST);
        assert_eq!(refused(&mut paging, now + WHILE, 1), [WANTED, SMALLER]);
        assert!(paging.note_answered(SMALLER), "a trial that succeeds");
        assert!(!paging.note_answered(SMALLER));
    }

    /// Else a passing fault would have polls ask as wanted again, and nobody would take an empty
    /// answer to that for a failed trial.
    #[test]
    fn after_everything_was_refused_polls_ask_as_they_were_last_answered() {
        let mut paging = Negotiation::new(WANTED);
        let now = Instant::now();
        assert_eq!(refused(&mut paging, now, 2)[2..], [SMALLER]);
        paging.note_answered(SMALLER);
        for _ in 0..2 {
            assert_eq!(refused(&mut paging, now, 9), [SMALLER, SMALLER, LEAST]);
        }
        assert_eq!(refused(&mut paging, now + WHILE, 1), [WANTED, SMALLER]);
    }

    #[test]
    fn a_trial_is_followed_by_others_down_to_what_is_usual() {
        let mut paging = Negotiation::new(WANTED);
        assert_eq!(
            refused(&mut paging, Instant::now(), 3)[2..],
            [SMALLER, LEAST]
        );
        paging.note_answered(LEAST);
        let less = |failed| paging.below_trial(&request(failed));
        assert_eq!(less(WANTED), Some(SMALLER));
        assert_eq!(less(SMALLER), Some(LEAST));
        assert_eq!(less(LEAST), None);
    }

    /// One of the two refusals has passed, and the other one lasts.
    #[test]
    fn a_trial_finds_how_much_is_not_refused_any_more() {
        let mut paging = Negotiation::new(WANTED);
        let now = Instant::now();
        assert_eq!(refused(&mut paging, now, 3)[2..], [SMALLER, LEAST]);
        paging.note_answered(LEAST);
        let later = now + WHILE;
        assert_eq!(refused(&mut paging, later, 2), [WANTED, SMALLER, LEAST]);
        paging.note_answered(LEAST);
        let later = later + WHILE;
        assert_eq!(refused(&mut paging, later, 1), [WANTED, SMALLER]);
        paging.note_answered(SMALLER);
        assert_eq!(refused(&mut paging, later + WHILE / 2, 0), [SMALLER]);
    }

    #[test]
    fn a_trial_that_fails_in_any_way_costs_no_poll_that_the_usual_request_would_save() {
        let mut paging = Negotiation::new(WANTED);
        let mut now = Instant::now();
        assert_eq!(refused(&mut paging, now, 3)[2..], [SMALLER, LEAST]);
        paging.note_answered(LEAST);
        let decode = Error::Decode {
            endpoint: "search",
            what: String::new(),
            excerpt: String::new(),
        };
        for error in [status(503), decode] {
            now += WHILE;
            let failures = [error.clone(), error];
            assert_eq!(asked(&mut paging, now, &failures), [WANTED, SMALLER, LEAST]);
            assert_eq!(asked(&mut paging, now + WHILE / 2, &failures), [LEAST]);
        }
        // Throttling says nothing about the request, so the next poll asks as usual.
        now += WHILE;
        let throttled = [Error::Throttled { retry_after: None }];
        assert_eq!(asked(&mut paging, now, &throttled), [WANTED]);
        assert_eq!(asked(&mut paging, now, &throttled), [LEAST]);
    }

    #[tokio::test]
    async fn what_an_empty_answer_to_a_trial_means_depends_on_what_it_counts_and_what_is_known() {
        let (mut running, _folder) = alone().await;
        running.paging = Negotiation::new(WANTED);
        running.paging.usual = SMALLER;
        let is = |running: &Running, paging, shown: usize, total: usize| {
            let alert = serde_json::json!({"uniqueId": "0"});
            let answer = serde_json::json!({"results": vec![alert; shown], "totalResults": total});
            let answer = Answer::of_search(answer.to_string().into_bytes());
            running.empty_trial(&request(paging), &answer)
        };
        let failed = Some(EmptyTrial::Failed { less: SMALLER });
        assert_eq!(is(&running, WANTED, 0, 0), Some(EmptyTrial::ProvesNothing));
        assert_eq!(is(&running, WANTED, 0, 1), failed);
        learn(&mut running, &["Critical"]).await.unwrap();
        assert_eq!(is(&running, WANTED, 0, 0), failed);
        assert_eq!(is(&running, WANTED, 1, 1), None);
        assert_eq!(is(&running, SMALLER, 0, 0), None, "it is no trial");
    }

    #[tokio::test]
    async fn less_is_asked_for_if_a_first_page_is_refused_until_the_result_is_due_to_be_read() {
        let (mut running, _folder) = alone().await;
        running.paging = Negotiation::new(WANTED);
        let further = SearchRequest {
            page: 2,
            ..request(WANTED)
        };
        let began = Instant::now();
        let (lines, _guard) = captured();
        let lowered = [&further, &request(WANTED), &request(WANTED)]
            .map(|failed| running.lower_paging(&status(400), failed));
        assert_eq!(lowered, [None, Some(WANTED), Some(SMALLER)]);
        let is_said = |line: &&String| line.contains("asking for less");
        assert_eq!(lines.lock().iter().filter(is_said).count(), 1);
        let pause = running.search.options.full_read_interval;
        assert_eq!(running.paging.begin(began + pause / 2, pause), SMALLER);
        assert_eq!(running.paging.begin(began + pause * 2, pause), WANTED);
    }

    #[test]
    fn ids_are_added_to_any_query_that_names_none() {
        let question = Question {
            suspects: vec!["1".into(), "2".into()],
            witness: "3".into(),
        };
        for (query, asked) in [
            ("", Some("uniqueId:1,2,3")),
            ("actions:OPEN", Some("actions:OPEN+uniqueId:1,2,3")),
            ("subject:uniqueId", Some("subject:uniqueId+uniqueId:1,2,3")),
            ("actions:OPEN+uniqueId:1", None),
            ("UNIQUEID:1", None),
        ] {
            let by_id = can_be_asked_by_id(query).then(|| query_by_id(query, &question));
            assert_eq!(by_id.as_deref(), asked);
        }
    }
}
