//! The task of one search: asks, stores what follows, reports, and sleeps until it is due again.
//!
//! A poll and the background each have at most one request under way, side by side, so that a
//! full read that hangs never makes a poll late. All state belongs to this task; answers are
//! worked off one after the other.

mod departures;
mod learning;
mod patience;
mod taking_up;

use std::{collections::HashMap, pin::Pin, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(super) use self::taking_up::{give_back, unknown};
use self::{
    departures::Reason,
    learning::{PendingCommit, Refused, committing},
    patience::Patience,
};
use super::{
    AtFirstStart, SearchOptions,
    engine::{Engine, Limits, Next, Purpose, Question, Task},
    full_read::Hollow,
    schedule::{self, Grid},
};
use crate::{
    clock::{self, Steadiness},
    error_chain::chain,
    health::{Health, Heartbeat},
    identity::{EventKind, SearchKey},
    metrics::SearchMetrics,
    opsramp::{self, Answer, Client, SearchRequest, Urgency},
    record,
    status::{Board, HISTORY, PollError, PollSummary, SearchResult, SearchStatus},
    store::{self, Held, Loaded, Store},
};

/// The first pause of the background after a failure; it doubles up to five minutes.
const BACKGROUND_PAUSE: Duration = Duration::from_secs(2);
/// Alerts' own pages that are asked for at the same time.
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
    /// Its snapshot: as it was left, where the search is gone on with.
    pub(super) status: SearchStatus,
    /// What the task before has learned, until the search is taken up.
    pub(super) learned: Learned,
}

/// What a search's task leaves.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// What is still held.
    pub(super) held: Option<Held>,
    pub(super) learned: Learned,
}

/// What a search's task has learned of how the server answers.
#[derive(Clone, Debug, Default)]
pub(super) struct Learned {
    limits: Limits,
    patience: Patience,
}

/// Why a search is no longer polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// It was told to stop.
    Stopped,
    /// It is no longer this replica's.
    Relieved,
}

/// What of a search can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    /// Loading what the store knows of it.
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
    Reasons(Vec<(Box<str>, Reason)>),
    Verdicts(Vec<(Box<str>, Reason)>),
}

/// A search that has been taken up.
struct Running {
    search: Box<Search>,
    held: Held,
    primed: bool,
    first_seen: Timestamp,
    has_departed: bool,
    /// What own pages said of alerts that were found gone by it: that need not be asked again.
    judged: HashMap<Box<str>, Reason>,
    /// Departures waited in vain for their reasons: the others that left with them do not wait as long
    /// again.
    waited_in_vain: bool,
    engine: Engine,
    under_way: Option<PendingCommit>,
    /// While the journal has no room for what was to be stored.
    refused: Option<Refused>,
    asking: Asking,
    /// Where less is asked for than is wanted: when a poll tries that again.
    ask_fully_at: Option<Instant>,
    patience: Patience,
    grid: Grid,
    next_poll: Instant,
    poll: Option<Poll>,
    background_at: Instant,
    background_failures: u32,
    /// When the background failed last, unless it has been answered since.
    background_failed_at: Option<Instant>,
    /// Whether the store has failed, in a poll or in the background, since a poll succeeded.
    store_failed: bool,
    failures: u32,
    /// Those among them that stretch the interval. Failures of the token do not: it has a back-off
    /// of its own. Nor do those of a further page: what is new may be on the first.
    stretching: u32,
    failing_since: Option<Instant>,
}

/// A poll under way.
struct Poll {
    started: Timestamp,
    began: Instant,
    requests: u64,
    events: u64,
    /// Whether a refused request was repeated as it was.
    repeated: bool,
    /// Whether what its first page tells was learned.
    heard: bool,
}

/// How to ask, as far as the server has taught us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asking {
    page_size: u32,
    sorted: bool,
}

/// The reason of failures that are not the API's.
const STORE: &str = "store";

// === impl Search ===

impl Search {
    /// Whether lines are written of such events.
    fn logs(&self, kind: EventKind) -> bool {
        self.shared.record.events.contains(&kind)
    }

    /// Has its snapshot seen.
    fn report(&self) {
        self.shared.board.set_search(self.status.clone());
    }

    /// Says that something has failed, unless others have told of it. Brings what is shown of it.
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

    /// Whether others have told of it: the token's, and the store's where it tells of its trouble itself.
    fn is_known(&self, failure: &Failure) -> bool {
        let of_the_store = matches!(failure, Failure::Store(_));
        failure.is_echo() || of_the_store && self.shared.store.is_in_trouble()
    }

    /// How it is asked, where the server does not refuse that.
    fn wanted(&self) -> Asking {
        Asking {
            page_size: self.options.page_size,
            sorted: true,
        }
    }
}

// === impl Running ===

impl Running {
    /// Nothing has been asked yet.
    fn new(mut search: Box<Search>, loaded: &Loaded, mut engine: Engine, grid: Grid) -> Self {
        let now = Instant::now();
        let Learned { limits, patience } = std::mem::take(&mut search.learned);
        engine.respect(limits);
        Self {
            held: loaded.held,
            primed: loaded.primed,
            first_seen: loaded.first_seen,
            has_departed: loaded.has_departed,
            judged: HashMap::new(),
            waited_in_vain: false,
            engine,
            under_way: None,
            refused: None,
            asking: search.wanted(),
            ask_fully_at: None,
            patience,
            grid,
            next_poll: search.first_poll.max(now),
            poll: None,
            background_at: now,
            background_failures: 0,
            background_failed_at: None,
            store_failed: false,
            failures: 0,
            stretching: 0,
            failing_since: None,
            search,
        }
    }

    /// For the task that goes on.
    fn learned(&self) -> Learned {
        Learned {
            limits: self.engine.limits(),
            patience: self.patience.of_pages(),
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
            // Nothing waits longer than this, so that the heartbeat is seen.
            let pulse = Instant::now() + self.search.heartbeat.pulse();
            tokio::select! {
                () = stop.cancelled() => break Ended::Stopped,
                () = &mut relieved => break Ended::Relieved,
                () = tokio::time::sleep_until(self.next_poll), if poll_request.is_none() => {
                    poll_request = Some(self.begin_poll());
                }
                reply = ready(poll_request.as_mut()) => {
                    // In a box: it is large and rare, and the task is there all the time for each search.
                    poll_request = Box::pin(self.poll_answered(reply)).await;
                }
                () = until(self.background_at), if background_due => {
                    background_request = self.background();
                }
                reply = ready(background_request.as_mut()) => {
                    background_request = None;
                    Box::pin(self.background_answered(reply)).await;
                }
                stored = ready(committing(&mut self.under_way)) => {
                    if let Err(failure) = self.has_stored(stored) {
                        self.background_failed(&failure);
                    }
                }
                () = tokio::time::sleep_until(pulse) => self.look_for_room().await,
            }
        };
        drop(reservation);
        self.finish_storing().await;
        self.note_what_is_missed();
        ended
    }

    // --- polls

    fn begin_poll(&mut self) -> Request {
        self.search.metrics.poll_begun();
        // Who is found gone by what comes now did not leave with those before.
        self.waited_in_vain &= self.engine.has_departures() || self.engine.is_asking_who_left();
        let now = Instant::now();
        self.poll = Some(Poll {
            started: clock::now(),
            began: now,
            requests: 0,
            events: 0,
            repeated: false,
            heard: false,
        });
        let asking = match self.ask_fully_at {
            Some(at) if now >= at => self.search.wanted(),
            _ => self.asking,
        };
        self.ask(Purpose::Poll, 1, asking)
    }

    /// Works off an answer of a poll. Brings the next request, where the poll goes on.
    async fn poll_answered(&mut self, reply: Reply) -> Option<Request> {
        let Reply::Page {
            purpose,
            request,
            answer,
            took,
        } = reply
        else {
            return None;
        };
        self.finish_storing().await;
        if let Some(poll) = &mut self.poll {
            poll.requests += 1;
        }
        if let Err(error) = &answer
            && let Some(asking) = self.ask_otherwise(error, &request)
        {
            return Some(self.ask(purpose, request.page, asking));
        }
        if answer.is_ok() {
            self.asking = Asking::of(&request);
            if self.asking == self.search.wanted() {
                self.ask_fully_at = None;
            }
        }
        let mut learned = match answer {
            Ok(answer) => self.learn(&purpose, &request, &answer).await,
            Err(error) => Err(error.into()),
        };
        if request.page > 1
            && let Err(failure) = &learned
            && self.can_do_without(request.page, failure, took)
        {
            learned = Ok((Next::Done, 0));
        }
        if learned.is_ok()
            && let Some(poll) = &mut self.poll
            && !std::mem::replace(&mut poll.heard, true)
            && self.patience.heard(poll.began)
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

    /// Takes note that a poll has not learned what is on a further page. Brings whether it succeeds all the same.
    fn can_do_without(&mut self, page: u64, failure: &Failure, took: Duration) -> bool {
        let Failure::Api(error) = failure else {
            self.engine.page_missed(page);
            return false;
        };
        if self.engine.page_failed(page, took, Instant::now()) {
            return true;
        }
        // Also where it came and cannot be read.
        if patience::tells(error) {
            self.engine.poll_cut_short(Instant::now());
        }
        // How far the server shows the result is the background's to find out.
        error.is_refusal()
    }

    fn poll_succeeded(&mut self, events: u64) {
        if let Some(since) = self.failing_since.take() {
            let after = humantime::format_duration(Duration::from_secs(since.elapsed().as_secs()));
            tracing::info!(search = %self.search.key, failures = self.failures, %after, "polling works again");
        }
        if std::mem::take(&mut self.store_failed) {
            self.go_on_in_background();
        }
        self.failures = 0;
        self.stretching = 0;
        if !self.engine.has_task() {
            self.patience.no_page_is_wanted();
        }
        self.next_poll = self.grid.next(Instant::now());
        self.search.status.up = Some(true);
        self.end_poll(Ok(events));
    }

    fn poll_failed(&mut self, failure: &Failure) {
        self.failures += 1;
        self.failing_since.get_or_insert_with(Instant::now);
        let now = Instant::now();
        let heard = self.poll.as_ref().is_some_and(|poll| poll.heard);
        if !heard && matches!(failure, Failure::Api(_)) {
            self.patience.unheard();
        }
        self.store_failed |= matches!(failure, Failure::Store(_));
        let error = self.search.failed(Activity::Poll, failure);
        self.next_poll = match failure {
            // A secret that was rotated on disk shall be picked up at the next poll.
            Failure::Api(error) if error.reason() == "auth" || error.is_echo() => {
                self.grid.retry(now, 1, fastrand::f64(), None)
            }
            // The next one's first page may bring news as soon as ever.
            Failure::Api(error) if heard && error.may_be_about_the_request() => {
                self.stretching = 0;
                self.grid.retry(now, 1, fastrand::f64(), None)
            }
            _ => {
                self.stretching += 1;
                let wait = match failure {
                    Failure::Api(opsramp::Error::Throttled { retry_after }) => *retry_after,
                    _ => None,
                };
                let not_before = wait.map(|wait| now + wait.min(schedule::MAX_BACK_OFF));
                self.grid
                    .retry(now, self.stretching, fastrand::f64(), not_before)
            }
        };
        self.search.status.up = Some(false);
        let reason = error.reason;
        self.end_poll(Err(error));
        // Whoever sees the count shall see what it says of `up`, too.
        self.search.metrics.poll_failed(reason);
    }

    /// One that failed has learned nothing to be shown, however many of its pages came.
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
        self.search.status.tried = true;
        self.announce_next_poll();
        if succeeded {
            self.publish(Some(clock::now()));
        }
    }

    /// Where a poll is between two pages or has missed one, the snapshot of the one before says that all is known
    /// that is counted, but not that there are changes to come: whoever goes on shall not take it for that.
    fn note_what_is_missed(&mut self) {
        let is_amid_news = self.poll.as_ref().is_some_and(|poll| poll.heard);
        if (is_amid_news || self.engine.misses_a_page())
            && let Some(result) = &mut self.search.status.result
        {
            result.complete = false;
            self.search.report();
        }
    }

    /// Says it once where full reads end at a page that shows nothing of what there is.
    fn tell_of_hollow_page(&mut self) {
        if let Some(Hollow { page, total }) = self.engine.hollow_to_tell() {
            tracing::warn!(
                search = %self.search.key,
                page,
                total,
                "the server shows nothing on a page of the result, though it counts more; what it does not show is not seen"
            );
        }
    }

    fn announce_next_poll(&mut self) {
        let wait = self.next_poll.saturating_duration_since(Instant::now());
        self.search.status.next_poll = Some(clock::now() + wait);
        self.search.report();
    }

    /// Swaps in a new snapshot. `polled_at`: a poll has just succeeded; else the result keeps its
    /// age.
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
                tracked: self.engine.tracker().open() as u64,
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

    // --- the background

    fn background(&mut self) -> Option<Request> {
        let task = self.engine.task()?;
        if !matches!(task, Task::Reasons(_)) {
            // Whoever it was about has come back meanwhile.
            self.judged.clear();
        }
        match task {
            Task::Page(page) => Some(self.page(Purpose::FullRead, page)),
            Task::Confirm(question) => {
                if !can_be_asked_by_id(&self.search.options.query) {
                    self.engine.confirmation_refused(Instant::now());
                    return None;
                }
                Some(self.page(Purpose::Confirm(question), 1))
            }
            Task::Verify(ids) => {
                let pages = self.own_pages(ids);
                Some(Box::pin(async move { Reply::Verdicts(pages.await) }))
            }
            Task::Reasons(ids) => Some(self.reasons(ids)),
        }
    }

    async fn background_answered(&mut self, reply: Reply) {
        if let Some(since) = self.background_failed_at.take() {
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
            self.finish_storing().await;
        }
        let reads_before = self.engine.reads();
        let worked = match reply {
            Reply::Page {
                purpose,
                request,
                answer,
                ..
            } => {
                let learned = match answer {
                    Ok(answer) => self.learn(&purpose, &request, &answer).await.map(|_| ()),
                    Err(error) => Err(error.into()),
                };
                let confirms = matches!(purpose, Purpose::Confirm(_));
                match learned {
                    Err(Failure::Api(error))
                        if !confirms && self.cannot_go_on(&error, request.page) =>
                    {
                        tracing::warn!(
                            search = %self.search.key,
                            page = request.page,
                            error = %error.chain(),
                            "the server does not show a further page of the result; what lies behind it is not seen"
                        );
                        self.patience.no_page_is_wanted();
                        self.engine.page_refused(Instant::now());
                        self.prime().await
                    }
                    Err(Failure::Api(error))
                        if confirms && self.patience.ends_question(&error, Instant::now()) =>
                    {
                        self.engine.confirmation_failed(Instant::now());
                        Ok(())
                    }
                    Ok(()) if !confirms => {
                        self.patience.page_came(request.page);
                        Ok(())
                    }
                    learned => learned,
                }
            }
            Reply::Reasons(reasons) => {
                let late = |(_, reason): &(_, Reason)| matches!(reason, Reason::Late);
                self.waited_in_vain |= reasons.iter().any(late);
                self.depart(reasons).await
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
                if self.engine.reads() != reads_before || !self.engine.has_task() {
                    self.publish(None);
                }
            }
            Err(failure) => {
                self.finish_storing().await;
                self.background_failed(&failure);
            }
        }
    }

    /// Has the background go on at once: it works, or what held it up may be over.
    fn go_on_in_background(&mut self) {
        self.background_failures = 0;
        self.background_at = Instant::now();
    }

    fn background_failed(&mut self, failure: &Failure) {
        let doublings = self.background_failures.min(10);
        self.background_failures += 1;
        let pause = (BACKGROUND_PAUSE * (1 << doublings)).min(schedule::MAX_BACK_OFF);
        let now = Instant::now();
        self.background_at = now + pause.mul_f64(0.8 + 0.2 * fastrand::f64());
        self.background_failed_at.get_or_insert(now);
        self.store_failed |= matches!(failure, Failure::Store(_));
        self.search.failed(Activity::Background, failure);
        self.search.report();
    }

    // --- asking

    fn page(&mut self, purpose: Purpose, page: u64) -> Request {
        self.ask(purpose, page, self.asking)
    }

    fn ask(&mut self, purpose: Purpose, page: u64, asking: Asking) -> Request {
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

    /// After a 400 for the first page of a poll: neither the largest page nor the names of sort keys are
    /// documented, so ask for less before giving up. It may have been a passing fault, as the
    /// documentation of 400 has it: so the same is asked once more, and again after a while.
    /// Brings how to ask instead, if there is another way.
    fn ask_otherwise(&mut self, error: &opsramp::Error, request: &SearchRequest) -> Option<Asking> {
        // What is refused of a further page is its number.
        if !error.may_be_about_the_paging() || request.page != 1 {
            return None;
        }
        let (asked, wanted) = (Asking::of(request), self.search.wanted());
        let try_again = Some(Instant::now() + self.search.options.full_read_interval);
        if asked != self.asking {
            self.ask_fully_at = try_again;
            return Some(self.asking);
        }
        if let Some(poll) = &mut self.poll
            && !std::mem::replace(&mut poll.repeated, true)
        {
            return Some(asked);
        }
        let Some(modest) = request.less().as_ref().map(Asking::of) else {
            self.asking = wanted;
            self.ask_fully_at = None;
            return None;
        };
        tracing::warn!(
            search = %self.search.key,
            error = %error,
            page_size = modest.page_size,
            sorted = modest.sorted,
            "the server refuses the search's paging; asking for less"
        );
        self.asking = modest;
        self.ask_fully_at = try_again;
        Some(modest)
    }

    /// Whether a full read's page failed so often that it will go on failing. Of the first, polls tell.
    fn cannot_go_on(&mut self, error: &opsramp::Error, page: u64) -> bool {
        let ended_before = self.engine.refused() == Some(page);
        page > 1
            && self
                .patience
                .ends_read(error, page, ended_before, Instant::now())
    }
}

// === impl Asking ===

impl Asking {
    fn of(request: &SearchRequest) -> Self {
        Self {
            page_size: request.page_size,
            sorted: request.sorted,
        }
    }
}

// === impl Activity ===

impl Activity {
    /// What a failure of it means.
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

    /// The same where others have told of what is the matter.
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
    /// The failure of now, as it is shown.
    fn told(&self) -> PollError {
        PollError {
            at: clock::now(),
            reason: self.reason(),
            message: self.message(),
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

    fn message(&self) -> String {
        match self {
            Self::Api(error) => error.chain(),
            Self::Store(error) => chain(error),
        }
    }
}

/// Waits until then. A timer would take a millisecond for what is due already: with the next page
/// of a full read that is a sixth of the time that one takes.
async fn until(at: Instant) {
    if Instant::now() < at {
        tokio::time::sleep_until(at).await;
    }
}

/// Waits for a request until then. None is begun after that: a time limit alone would have each of those that
/// are left sent, for nobody.
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

/// Whether ids can be added to a query: unless it is about ids itself.
pub(super) fn can_be_asked_by_id(query: &str) -> bool {
    !query.to_ascii_lowercase().contains("uniqueid:")
}

/// Whether a query asks for alerts of one status.
fn has_one_status(query: &str) -> bool {
    let pairs = query.split('+').filter_map(|pair| pair.split_once(':'));
    let mut actions = pairs.filter(|(key, _)| key.trim().eq_ignore_ascii_case("actions"));
    let only = actions.next();
    only.is_some_and(|(_, words)| !words.contains(',')) && actions.next().is_none()
}

pub(super) fn query_by_id(query: &str, question: &Question) -> String {
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
