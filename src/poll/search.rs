//! The task of one search: sends requests, stores what follows from the answers, reports, and
//! sleeps until the next poll is due.
//!
//! A poll and the background each have at most one request under way, side by side, so that a full
//! read that hangs never makes a poll late. All state belongs to this task, which processes
//! answers one after the other.

pub(super) mod asking;
mod background;
mod departures;
mod learning;
mod patience;
mod polls;
mod taking_up;
#[cfg(test)]
mod testing;

use std::{collections::HashMap, pin::Pin, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(super) use self::taking_up::{give_back, unknown};
use self::{
    asking::{Negotiation, Paging},
    background::Pace,
    departures::OwnPage,
    learning::{DetailsTime, PendingCommit, Refused, commit_of},
    patience::Patience,
    polls::{FailedPolls, Poll},
};
use super::{
    AtFirstStart, SearchOptions,
    engine::{Engine, Limits, Purpose},
    full_read::{Hollow, Shortfall},
    schedule::Grid,
};
use crate::{
    clock::{self, Steadiness},
    error_chain::chain,
    health::{Health, Heartbeat},
    identity::{EventKind, SearchKey},
    metrics::SearchMetrics,
    opsramp::{self, Answer, Client, SearchRequest},
    record,
    status::{Board, PollError, SearchResult, SearchStatus},
    store::{self, Held, Loaded, Store},
};

/// Maximum number of alerts' own pages that are asked for at the same time.
const PAGES_AT_ONCE: usize = 8;

/// What all searches share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) board: Board,
    pub(super) health: Health,
    pub(super) record: Arc<record::Options>,
    pub(super) at_first_start: AtFirstStart,
    pub(super) fetch_details: bool,
    pub(super) steadiness: Arc<Steadiness>,
}

/// The task of one search.
#[derive(Debug)]
pub(super) struct Search {
    pub(super) key: SearchKey,
    pub(super) options: Arc<SearchOptions>,
    pub(super) client: Client,
    pub(super) shared: Shared,
    pub(super) metrics: SearchMetrics,
    pub(super) heartbeat: Heartbeat,
    /// When the first poll is due.
    pub(super) first_poll: Instant,
    /// The snapshot of the search. If an earlier task polled the search, it is the one that this
    /// task left.
    pub(super) status: SearchStatus,
    /// What the earlier task has learned, until the search is taken up.
    pub(super) learned: Learned,
}

/// What a search's task returns when it ends.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// The lease that is still held.
    pub(super) held: Option<Held>,
    pub(super) learned: Learned,
}

/// What a search's task has learned of how the server answers.
#[derive(Clone, Debug, Default)]
pub(super) struct Learned {
    limits: Limits,
    patience: Patience,
    /// `None` if nothing has been asked yet.
    paging: Option<Negotiation>,
}

/// Why a search is no longer polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The task was told to stop.
    Stopped,
    /// The search is no longer this replica's.
    Relieved,
}

/// What can fail in a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    /// Loading what the store knows of the search.
    Loading,
    Poll,
    Background,
}

/// Why a poll failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Api(#[from] opsramp::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Request = Pending<Reply>;

/// What a request brought.
enum Reply {
    Page {
        purpose: Purpose,
        request: SearchRequest,
        answer: Result<Answer, opsramp::Error>,
        took: Duration,
    },
    Reasons(Vec<(Box<str>, OwnPage)>),
    Verdicts(Vec<(Box<str>, OwnPage)>),
}

/// A search that has been taken up.
struct Running {
    search: Box<Search>,
    held: Held,
    primed: bool,
    first_seen: Timestamp,
    has_departed: bool,
    /// What alerts' own pages said, if an alert was found gone by its page. These pages need not
    /// be asked for again.
    judged: HashMap<Box<str>, OwnPage>,
    /// Whether departures have waited in vain for their reasons. Alerts that left together with
    /// them do not wait as long again.
    waited_in_vain: bool,
    details_time: DetailsTime,
    engine: Engine,
    under_way: Option<PendingCommit>,
    /// Set while the journal has no room for the events that were to be stored.
    refused: Option<Refused>,
    paging: Negotiation,
    /// How the first page of the full read under way was asked for.
    read_paging: Paging,
    patience: Patience,
    grid: Grid,
    next_poll: Instant,
    poll: Option<Poll>,
    failures: FailedPolls,
    pace: Pace,
    /// Whether the store has failed, in a poll or in the background, since the last poll that
    /// succeeded.
    store_failed: bool,
}

/// The reason of failures of the store.
const STORE: &str = "store";

// === impl Search ===

impl Search {
    /// Whether a line is written for each event of this kind.
    fn logs(&self, kind: EventKind) -> bool {
        self.shared.record.events.contains(&kind)
    }

    /// Publishes the snapshot.
    fn report(&self) {
        self.shared.board.set_search(self.status.clone());
    }

    /// Logs a failure; at debug level if it is reported elsewhere. Returns the error to show.
    fn failed(&mut self, activity: Activity, failure: &Failure) -> PollError {
        let (search, error) = (&self.key, failure.told());
        let PollError {
            reason, message, ..
        } = &error;
        if self.is_known(failure) {
            let what = activity.as_others();
            tracing::debug!(%search, reason, error = %message, "{what}");
        } else if activity == Activity::Background {
            let what = activity.alone();
            tracing::warn!(%search, reason, error = %message, "{what}");
        } else {
            let what = activity.alone();
            tracing::error!(%search, reason, error = %message, "{what}");
        }
        self.status.last_error = Some(error.clone());
        error
    }

    /// Whether the failure is reported elsewhere. The failure of a token request is reported by
    /// the search that made it. A failure of the store is reported by the store itself while it is
    /// in trouble.
    fn is_known(&self, failure: &Failure) -> bool {
        let of_the_store = matches!(failure, Failure::Store(_));
        failure.is_echo() || of_the_store && self.shared.store.is_in_trouble()
    }
}

// === impl Running ===

impl Running {
    /// Creates the state of a search for which this task has asked nothing yet.
    fn new(mut search: Box<Search>, loaded: &Loaded, mut engine: Engine, grid: Grid) -> Self {
        let now = Instant::now();
        let Learned {
            limits,
            patience,
            paging,
        } = std::mem::take(&mut search.learned);
        engine.set_limits(limits);
        let wanted = Paging {
            page_size: search.options.page_size,
            sorted: true,
        };
        Self {
            held: loaded.held,
            primed: loaded.primed,
            first_seen: loaded.first_seen,
            has_departed: loaded.has_departed,
            judged: HashMap::new(),
            waited_in_vain: false,
            details_time: DetailsTime::new(),
            engine,
            under_way: None,
            refused: None,
            paging: paging.unwrap_or_else(|| Negotiation::new(wanted)),
            read_paging: wanted,
            patience,
            grid,
            next_poll: search.first_poll.max(now),
            poll: None,
            failures: FailedPolls::default(),
            pace: Pace::new(now),
            store_failed: false,
            search,
        }
    }

    /// What the task that takes over needs to know.
    fn learned(&self) -> Learned {
        Learned {
            limits: self.engine.limits(),
            patience: self.patience.of_pages(),
            paging: Some(self.paging.clone()),
        }
    }

    async fn run(&mut self, stop: &CancellationToken) -> Ended {
        let store = self.search.shared.store.clone();
        let relieved = store.relieved(self.held);
        tokio::pin!(relieved);
        let reservation = self
            .search
            .client
            .reserve(&self.search.key.tenant.id, self.search.options.interval);
        let mut poll_request: Option<Request> = None;
        let mut background_request: Option<Request> = None;
        self.announce_next_poll();
        let ended = loop {
            self.search.heartbeat.beat();
            let background_due = background_request.is_none() && self.engine.has_task();
            // No wait is longer than this, so that the heartbeat is seen.
            let pulse = Instant::now() + self.search.heartbeat.pulse();
            tokio::select! {
                () = stop.cancelled() => break Ended::Stopped,
                () = &mut relieved => break Ended::Relieved,
                () = tokio::time::sleep_until(self.next_poll), if poll_request.is_none() => {
                    poll_request = Some(self.begin_poll());
                }
                reply = ready(poll_request.as_mut()) => {
                    // Boxed because this future is large and rare, while each search has its task
                    // all the time.
                    poll_request = Box::pin(self.poll_answered(reply)).await;
                }
                () = until(self.pace.at), if background_due => {
                    background_request = self.background();
                }
                reply = ready(background_request.as_mut()) => {
                    background_request = None;
                    Box::pin(self.background_answered(reply)).await;
                }
                stored = ready(commit_of(&mut self.under_way)) => {
                    if let Err(failure) = self.commit_ended(stored) {
                        self.background_failed(&failure);
                    }
                }
                () = tokio::time::sleep_until(pulse) => self.look_for_room().await,
            }
        };
        drop(reservation);
        self.await_commit_quietly().await;
        self.note_what_is_missed();
        ended
    }

    /// Marks the snapshot as incomplete if a poll is between two pages or has missed one. The
    /// snapshot of the previous poll may say that all counted alerts are known, although there are
    /// changes to come. The task that takes over shall not rely on it.
    fn note_what_is_missed(&mut self) {
        let is_amid_news = self.poll.as_ref().is_some_and(|poll| poll.has_first_page);
        if (is_amid_news || self.engine.misses_a_page())
            && let Some(result) = &mut self.search.status.result
        {
            result.complete = false;
            self.search.report();
        }
    }

    /// Warns, once, that full reads end at a hollow page, or do not show all that they count.
    fn tell_of_what_is_not_shown(&mut self) {
        if let Some(Hollow { page, total }) = self.engine.hollow_to_tell() {
            tracing::warn!(
                search = %self.search.key,
                page,
                total,
                "the server shows nothing on a page of the result, though it counts more; what it does not show is not seen"
            );
        }
        if let Some(Shortfall { total, shown }) = self.engine.shortfall_to_tell() {
            tracing::warn!(
                search = %self.search.key,
                total,
                shown,
                "the server counts more alerts of the result than its pages show; what it does not show is not seen"
            );
        }
    }

    fn announce_next_poll(&mut self) {
        let wait = self.next_poll.saturating_duration_since(Instant::now());
        self.search.status.next_poll = Some(clock::now() + wait);
        self.search.report();
    }

    /// Publishes a new snapshot. `polled_at`: when a poll has just succeeded; if `None`, the
    /// result keeps its age.
    fn publish(&mut self, polled_at: Option<Timestamp>) {
        let at = match polled_at {
            Some(at) => Some((at, clock::since_boot())),
            None => {
                let last = self.search.status.result.as_ref();
                last.map(|result| (result.at, result.at_since_boot))
            }
        };
        if let (Some((at, at_since_boot)), Some(total_results)) = (at, self.engine.total()) {
            self.search.status.result = Some(SearchResult {
                at,
                at_since_boot,
                total_results,
                tracked: self.engine.tracker().open_count() as u64,
                complete: self.engine.is_complete(),
                group_by: Arc::clone(self.engine.tracker().group_by()),
                groups: self.engine.tracker().groups().into(),
                oldest: self
                    .engine
                    .oldest()
                    .and_then(|at| Timestamp::from_second(at).ok()),
            });
        }
        self.search.report();
    }
}

// === impl Activity ===

impl Activity {
    /// What a failure of the activity means.
    fn alone(self) -> &'static str {
        match self {
            Self::Loading => "cannot load the search's state; it is not polled until that works",
            Self::Poll => {
                "poll failed; gauges keep their last values until stale_after, new alerts are logged when it works again"
            }
            Self::Background => {
                "reading the whole result is held up; what has left is noticed when it works again"
            }
        }
    }

    /// The message for a failure whose cause is reported elsewhere.
    fn as_others(self) -> &'static str {
        match self {
            Self::Loading => "cannot load the search's state, as it is for others",
            Self::Poll => "poll failed, as others did",
            Self::Background => "reading the whole result is held up, as others' is",
        }
    }
}

// === impl Failure ===

impl Failure {
    /// The failure as it is shown, dated now.
    fn told(&self) -> PollError {
        PollError {
            at: clock::now(),
            reason: self.reason(),
            message: chain(self),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Api(error) => error.reason(),
            Self::Store(_) => STORE,
        }
    }

    /// Whether it is the failure of a token request that another search made.
    fn is_echo(&self) -> bool {
        matches!(self, Self::Api(error) if error.is_echo())
    }
}

/// Waits until `at`. If that has passed, no timer is set: a timer takes a millisecond, which is a
/// sixth of the time that a page of a full read takes.
async fn until(at: Instant) {
    if Instant::now() < at {
        tokio::time::sleep_until(at).await;
    }
}

/// Waits for a request until the deadline. After the deadline, the request is not sent at all. A
/// time limit alone would still send each of the remaining requests, although their answers are
/// discarded.
async fn in_time<T>(deadline: Instant, request: impl Future<Output = T>) -> Option<T> {
    if Instant::now() >= deadline {
        return None;
    }
    tokio::time::timeout_at(deadline, request).await.ok()
}

/// Waits for a request or a commit, if there is one.
async fn ready<T>(pending: Option<&mut Pending<T>>) -> T {
    match pending {
        Some(pending) => pending.await,
        None => std::future::pending().await,
    }
}

/// Whether a query asks for alerts of one status.
fn has_one_status(query: &str) -> bool {
    let pairs = query.split('+').filter_map(|pair| pair.split_once(':'));
    let mut actions = pairs.filter(|(key, _)| key.trim().eq_ignore_ascii_case("actions"));
    let only = actions.next();
    only.is_some_and(|(_, words)| !words.contains(',')) && actions.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_for_one_status_or_for_several() {
        for one in ["actions:OPEN", "states:Critical,Warning+Actions:OPEN"] {
            assert!(has_one_status(one), "{one}");
        }
        for several in [
            "",
            "states:Critical",
            "actions:OPEN,TICKETED",
            "actions:OPEN+actions:TICKETED",
        ] {
            assert!(!has_one_status(several), "{several}");
        }
    }
}
