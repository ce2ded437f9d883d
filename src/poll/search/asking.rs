//! How the server is asked: the request of each purpose, and how much at once, as far as the server has taught us.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Reply, Request, Running};
use crate::{
    opsramp::{self, SearchRequest, Urgency},
    poll::engine::{Purpose, Question},
};

/// How a page is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asking {
    pub(super) page_size: u32,
    pub(super) sorted: bool,
}

/// How pages are asked for. Neither the largest page nor the names of sort keys are documented, so less is asked
/// for where the server refuses that, before giving up.
#[derive(Debug)]
pub(super) struct Paging {
    wanted: Asking,
    usual: Asking,
    /// Where less is asked for than is wanted: when a poll tries that again. A trial costs its poll some requests,
    /// but not the poll, unless the server has no time for it.
    trial_at: Option<Instant>,
    /// Whether a request that this poll has made was repeated as it was.
    repeated: bool,
}

// === impl Running ===

impl Running {
    /// Asks for a page as is usual.
    pub(super) fn page(&mut self, purpose: Purpose, page: u64) -> Request {
        self.ask(purpose, page, self.paging.usual)
    }

    /// Asks for a page of a full read: as for its first one, since pages are numbered by their size.
    pub(super) fn page_of_read(&mut self, page: u64) -> Request {
        if page == 1 {
            self.reading_by = self.paging.usual;
        }
        self.ask(Purpose::FullRead, page, self.reading_by)
    }

    pub(super) fn ask(&mut self, purpose: Purpose, page: u64, asking: Asking) -> Request {
        self.engine.asked(&purpose);
        let query = match &purpose {
            Purpose::Poll | Purpose::FullRead => self.search.options.query.clone(),
            Purpose::Confirm(question) => query_by_id(&self.search.options.query, question),
        };
        let urgency = match &purpose {
            Purpose::Poll if page == 1 => Urgency::Poll,
            Purpose::Poll => Urgency::News,
            Purpose::FullRead | Purpose::Confirm(_) => Urgency::Background,
        };
        let Asking { page_size, sorted } = asking;
        let request = SearchRequest {
            query,
            page,
            page_size,
            sorted,
        };
        let client = self.search.client.clone();
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

    /// After a poll's request has failed: how to ask instead, if that may help.
    pub(super) fn ask_otherwise(
        &mut self,
        error: &opsramp::Error,
        request: &SearchRequest,
    ) -> Option<Asking> {
        // What is refused of a further page is its number.
        if request.page != 1 {
            return None;
        }
        let usual = self.paging.usual;
        let trial_at = Instant::now() + self.search.options.full_read_interval;
        let asking = self.paging.otherwise(error, request, trial_at)?;
        if self.paging.usual != usual {
            tracing::warn!(
                search = %self.search.key,
                error = %error,
                page_size = asking.page_size,
                sorted = asking.sorted,
                "the server refuses the search's paging; asking for less"
            );
        }
        Some(asking)
    }
}

// === impl Paging ===

impl Paging {
    pub(super) fn usual(&self) -> Asking {
        self.usual
    }

    /// Nothing has been refused yet.
    pub(super) fn new(wanted: Asking) -> Self {
        Self {
            wanted,
            usual: wanted,
            trial_at: None,
            repeated: false,
        }
    }

    /// How a poll that begins now asks for its first page. Where that is a trial, the next one comes after `pause`.
    pub(super) fn begin(&mut self, now: Instant, pause: Duration) -> Asking {
        self.repeated = false;
        match self.trial_at {
            Some(at) if now >= at => {
                self.trial_at = Some(now + pause);
                self.wanted
            }
            _ => self.usual,
        }
    }

    /// A poll has learned from an answer what it asked for so.
    pub(super) fn answered(&mut self, asking: Asking) {
        self.usual = asking;
        if asking == self.wanted {
            self.trial_at = None;
        }
    }

    /// How to ask instead of a request for a first page that has failed. A refusal may have been a passing fault, as
    /// the documentation of 400 has it, so the same is asked once more, then for less, and for what is wanted again
    /// at `trial_at`. `None` where that is no way out, or all has been tried.
    fn otherwise(
        &mut self,
        error: &opsramp::Error,
        failed: &SearchRequest,
        trial_at: Instant,
    ) -> Option<Asking> {
        let asked = Asking::of(failed);
        let is_refused = error.may_be_about_the_paging();
        if asked != self.usual {
            // Step by step, as some of what was once too much may not be any more.
            let less = failed.less().map(|less| Asking::of(&less));
            let tells = error.may_be_about_the_request();
            return Some(less.unwrap_or(self.usual)).filter(|_| tells);
        }
        if !is_refused {
            return None;
        }
        if !std::mem::replace(&mut self.repeated, true) {
            return Some(asked);
        }
        let less = failed.less().as_ref().map(Asking::of);
        self.usual = less.unwrap_or(self.wanted);
        self.trial_at = less.map(|_| trial_at);
        less
    }
}

// === impl Asking ===

impl Asking {
    pub(super) fn of(request: &SearchRequest) -> Self {
        Self {
            page_size: request.page_size,
            sorted: request.sorted,
        }
    }
}

/// Whether ids can be added to a query: unless it is about ids itself.
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
    use crate::opsramp::Error;

    const WHILE: Duration = Duration::from_secs(600);
    const WANTED: Asking = Asking {
        page_size: 500,
        sorted: true,
    };
    const SMALLER: Asking = Asking {
        page_size: 100,
        sorted: true,
    };
    const LEAST: Asking = Asking {
        page_size: 100,
        sorted: false,
    };

    fn status(status: u16) -> Error {
        Error::Http {
            endpoint: "search",
            status,
            excerpt: String::new(),
        }
    }

    /// What a poll asks for where its first requests fail in these ways.
    fn asked(paging: &mut Paging, now: Instant, errors: &[Error]) -> Vec<Asking> {
        let mut asked = vec![paging.begin(now, WHILE)];
        for error in errors {
            let last = asked[asked.len() - 1];
            let request = SearchRequest {
                query: String::new(),
                page: 1,
                page_size: last.page_size,
                sorted: last.sorted,
            };
            match paging.otherwise(error, &request, now + WHILE) {
                Some(instead) => asked.push(instead),
                None => break,
            }
        }
        asked
    }

    /// The same, where the server refuses the first requests, so many of them.
    fn refused(paging: &mut Paging, now: Instant, times: usize) -> Vec<Asking> {
        asked(paging, now, &vec![status(400); times])
    }

    #[test]
    fn the_same_is_asked_once_more_then_less_and_all_anew_by_the_next_poll() {
        let mut paging = Paging::new(WANTED);
        let now = Instant::now();
        for _ in 0..2 {
            let all = [WANTED, WANTED, SMALLER, LEAST];
            assert_eq!(refused(&mut paging, now, 9), all);
        }
    }

    #[test]
    fn what_works_is_gone_on_with_and_what_is_wanted_tried_again_after_a_while() {
        let mut paging = Paging::new(WANTED);
        let now = Instant::now();
        assert_eq!(refused(&mut paging, now, 2), [WANTED, WANTED, SMALLER]);
        paging.answered(SMALLER);
        assert_eq!(refused(&mut paging, now + WHILE / 2, 0), [SMALLER]);
        // Refused again: what works is asked for at once, and once more after another while.
        let later = now + WHILE;
        assert_eq!(refused(&mut paging, later, 1), [WANTED, SMALLER]);
        paging.answered(SMALLER);
        assert_eq!(refused(&mut paging, later + WHILE / 2, 0), [SMALLER]);
        assert_eq!(refused(&mut paging, later + WHILE, 0), [WANTED]);
        paging.answered(WANTED);
        assert_eq!(refused(&mut paging, later + WHILE * 2, 0), [WANTED]);
    }

    /// One of two refusals has passed, and the other one is for good.
    #[test]
    fn a_trial_finds_how_much_is_not_refused_any_more() {
        let mut paging = Paging::new(WANTED);
        let now = Instant::now();
        assert_eq!(refused(&mut paging, now, 3)[2..], [SMALLER, LEAST]);
        paging.answered(LEAST);
        let later = now + WHILE;
        assert_eq!(refused(&mut paging, later, 2), [WANTED, SMALLER, LEAST]);
        paging.answered(LEAST);
        let later = later + WHILE;
        assert_eq!(refused(&mut paging, later, 1), [WANTED, SMALLER]);
        paging.answered(SMALLER);
        assert_eq!(refused(&mut paging, later + WHILE / 2, 0), [SMALLER]);
    }

    #[test]
    fn a_trial_that_fails_in_any_way_costs_no_poll_that_the_usual_request_would_save() {
        let mut paging = Paging::new(WANTED);
        let mut now = Instant::now();
        assert_eq!(refused(&mut paging, now, 3)[2..], [SMALLER, LEAST]);
        paging.answered(LEAST);
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
        // This says nothing of the request: the next poll asks as usual.
        now += WHILE;
        let throttled = [Error::Throttled { retry_after: None }];
        assert_eq!(asked(&mut paging, now, &throttled), [WANTED]);
        assert_eq!(asked(&mut paging, now, &throttled), [LEAST]);
    }
}
