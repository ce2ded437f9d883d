//! How the server is asked: the request of each purpose, and how much at once, as far as the server has taught us.

use std::sync::Arc;

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
    /// Where less is asked for than is wanted: when a poll tries that again.
    fully_at: Option<Instant>,
    /// Whether a request that this poll has made was repeated as it was.
    repeated: bool,
}

// === impl Running ===

impl Running {
    pub(super) fn page(&mut self, purpose: Purpose, page: u64) -> Request {
        self.ask(purpose, page, self.paging.usual)
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

    /// After a poll's request was refused: how to ask instead, if that may help.
    pub(super) fn ask_otherwise(
        &mut self,
        error: &opsramp::Error,
        request: &SearchRequest,
    ) -> Option<Asking> {
        // What is refused of a further page is its number.
        if !error.may_be_about_the_paging() || request.page != 1 {
            return None;
        }
        let usual = self.paging.usual;
        let fully_at = Instant::now() + self.search.options.full_read_interval;
        let asking = self.paging.otherwise(request, fully_at)?;
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
    /// Nothing has been refused yet.
    pub(super) fn new(wanted: Asking) -> Self {
        Self {
            wanted,
            usual: wanted,
            fully_at: None,
            repeated: false,
        }
    }

    /// How a poll that begins now asks for its first page.
    pub(super) fn begin(&mut self, now: Instant) -> Asking {
        self.repeated = false;
        match self.fully_at {
            Some(at) if now >= at => self.wanted,
            _ => self.usual,
        }
    }

    /// A poll was answered that asked so.
    pub(super) fn answered(&mut self, asking: Asking) {
        self.usual = asking;
        if asking == self.wanted {
            self.fully_at = None;
        }
    }

    /// How to ask instead of a request for a first page that was refused: it may have been a passing fault, as the
    /// documentation of 400 has it, so the same is asked once more, then for less, and for what is wanted again
    /// after a while. `None` where all has been tried.
    fn otherwise(&mut self, refused: &SearchRequest, fully_at: Instant) -> Option<Asking> {
        let asked = Asking::of(refused);
        if asked != self.usual {
            self.fully_at = Some(fully_at);
            return Some(self.usual);
        }
        if !std::mem::replace(&mut self.repeated, true) {
            return Some(asked);
        }
        let less = refused.less().as_ref().map(Asking::of);
        self.usual = less.unwrap_or(self.wanted);
        self.fully_at = less.map(|_| fully_at);
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
    use std::time::Duration;

    use super::*;

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

    /// What a poll asks for where the server refuses the first requests, so many of them.
    fn refused(paging: &mut Paging, now: Instant, times: usize) -> Vec<Asking> {
        let first = paging.begin(now);
        let next = |asking: &Asking| {
            let request = SearchRequest {
                query: String::new(),
                page: 1,
                page_size: asking.page_size,
                sorted: asking.sorted,
            };
            paging.otherwise(&request, now + WHILE)
        };
        std::iter::successors(Some(first), next)
            .take(times + 1)
            .collect()
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
        assert_eq!(paging.begin(now + WHILE / 2), SMALLER);
        // Refused again: what works is asked for at once, and once more after another while.
        let later = now + WHILE;
        assert_eq!(refused(&mut paging, later, 1), [WANTED, SMALLER]);
        paging.answered(SMALLER);
        assert_eq!(paging.begin(later + WHILE / 2), SMALLER);
        assert_eq!(paging.begin(later + WHILE), WANTED);
        paging.answered(WANTED);
        assert_eq!(paging.begin(later + WHILE * 2), WANTED);
    }
}
