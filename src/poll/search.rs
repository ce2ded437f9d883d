//! The task of one search: asks, stores what follows, reports, and sleeps until it is due again.
//!
//! A poll and the background each have at most one request under way, side by side, so that a
//! full read that hangs never makes a poll late. All state belongs to this task; answers are
//! worked off one after the other.

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    AtFirstStart, SearchOptions,
    bodies::Bodies,
    engine::{Ahead, Engine, Next, Options, Purpose, Question, Task},
    full_read::Facts,
    reading,
    schedule::Grid,
};
use crate::{
    clock,
    error_chain::chain,
    health::{Health, Heartbeat},
    identity::{EventKind, SearchKey},
    metrics::SearchMetrics,
    opsramp::{self, Answer, Client, SearchRequest, Urgency, alert::Alert},
    record::{self, AlertFields, Happening, Record},
    status::{Board, HISTORY, PollError, PollSummary, SearchResult, SearchStatus},
    store::{self, Commit, Held, JournalEvent, Store, StoredAlert},
    track::{Known, Sighting, Tracker},
};

/// How long the lines of new alerts may wait for details.
const DETAILS_DEADLINE: Duration = Duration::from_secs(2);
/// Details that are kept for the lines of one page, in bytes.
const DETAILS_BYTES: usize = 16 * 1024 * 1024;
/// How long departures may wait for their reasons.
const REASONS_DEADLINE: Duration = Duration::from_secs(10);
/// The first pause before such a question is asked again; it doubles.
const REASONS_PAUSE: Duration = Duration::from_millis(500);
/// Single alerts that are asked for at the same time.
const DETAILS_AT_ONCE: usize = 8;
/// The first pause of the background after a failure; it doubles up to five minutes.
const BACKGROUND_PAUSE: Duration = Duration::from_secs(2);

/// What all searches share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) board: Board,
    pub(super) health: Health,
    pub(super) record: Arc<record::Options>,
    pub(super) at_first_start: AtFirstStart,
    pub(super) fetch_details: bool,
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
}

/// Why a search is no longer polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// It was told to stop.
    Stopped,
    /// It is no longer this replica's.
    Relieved,
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
    },
    Reasons(Vec<(Box<str>, Reason)>),
    Verdicts(Vec<(Box<str>, Reason)>),
}

/// What an alert's own page said.
enum Reason {
    Found(Answer),
    NotFound,
    Unknown,
    /// There was no answer in time, be it for want of allowance.
    Late,
}

/// A page that the engine knows already, while its changes are being stored.
struct UnderWay {
    ahead: Ahead,
    committing: Pending<Result<(), Failure>>,
    told: Told,
}

/// What the metrics are told once changes are stored.
#[derive(Default)]
struct Told {
    opened: u64,
    changed: u64,
    /// How long after their creation alerts were found.
    delays: Vec<Duration>,
}

/// A search that has been taken up.
struct Running {
    search: Search,
    held: Held,
    primed: bool,
    first_seen: Timestamp,
    has_departed: bool,
    /// Departures waited in vain for their reasons: the others that are known already do not wait
    /// as long again.
    waited_in_vain: bool,
    engine: Engine,
    under_way: Option<UnderWay>,
    asking: Asking,
    grid: Grid,
    next_poll: Instant,
    poll: Option<Poll>,
    background_at: Instant,
    background_failures: u32,
    status: SearchStatus,
    failures: u32,
    /// Those among them that stretch the interval. Failures of the token do not: it has a back-off
    /// of its own.
    stretching: u32,
    failing_since: Option<Instant>,
}

/// A poll under way.
struct Poll {
    started: Timestamp,
    began: Instant,
    requests: u64,
    events: u64,
}

/// How to ask, as far as the server has taught us.
#[derive(Clone, Copy)]
struct Asking {
    page_size: u32,
    sorted: bool,
}

/// The page size that every documented example works with.
const SAFE_PAGE_SIZE: u32 = 100;

// === impl Search ===

impl Search {
    /// Runs until `stop`: polls whenever the search is this replica's. Brings what is still held.
    pub(super) async fn run(self, stop: CancellationToken) -> Option<Held> {
        let mut search = self;
        loop {
            let mut running = search.take_up(&stop).await?;
            let held = running.held;
            if running.run(&stop).await == Ended::Stopped {
                return Some(held);
            }
            search = running.search;
            search.stand_by();
            search.give_back(held).await;
        }
    }

    /// Says that others poll the search.
    fn stand_by(&self) {
        self.shared.board.set_search(SearchStatus {
            lease_held: false,
            tried: true,
            ..self.initial_status()
        });
    }

    async fn give_back(&self, held: Held) {
        if let Err(error) = self.shared.store.release(held).await {
            tracing::debug!(search = %self.key, error = %chain(&error), "could not release the search");
        }
    }

    /// Waits until it is this replica's turn. `None`: it was told to stop.
    async fn turn(&self, stop: &CancellationToken) -> Option<()> {
        let store = &self.shared.store;
        let mut told = false;
        loop {
            self.heartbeat.beat();
            tokio::select! {
                () = store.turn(&self.key) => return Some(()),
                () = store.elsewhere(&self.key), if !told => {
                    told = true;
                    self.stand_by();
                }
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(super::pollers::HEARTBEAT / 4) => {}
            }
        }
    }

    /// Loads what the store knows, once it is this replica's turn; tries again while the store
    /// fails.
    async fn take_up(self, stop: &CancellationToken) -> Option<Running> {
        let mut status = self.initial_status();
        let grid = Grid::new(&self.key, self.options.interval, Instant::now());
        let mut failures = 0;
        let mut loaded = loop {
            self.turn(stop).await?;
            self.heartbeat.beat();
            match self.shared.store.take_up(&self.key, clock::now()).await {
                Ok(loaded) => break loaded,
                Err(store::Error::HeldElsewhere) => self.stand_by(),
                Err(error) => {
                    self.cannot_load(&mut status, &error);
                    failures += 1;
                    self.pause(stop, &grid, failures).await?;
                }
            }
        };
        status.lease_held = true;
        let group_by: Arc<[_]> = self.options.group_by.clone().into();
        let mut tracker = Tracker::new(Arc::clone(&group_by), self.options.max_groups);
        let mut page = std::mem::take(&mut loaded.alerts);
        loop {
            for alert in &mut page {
                let fields = self.stored_fields(alert).unwrap_or_else(|| {
                    // Not what will be seen next: so it is stored anew.
                    alert.digest = !alert.digest;
                    AlertFields::default()
                });
                tracker.load(known(alert, &fields, &group_by));
            }
            let last = page.last().filter(|_| page.len() == store::LOAD_PAGE);
            let Some(last) = last.map(|alert| alert.id.clone()) else {
                break;
            };
            page = loop {
                self.heartbeat.beat();
                match self.shared.store.load(loaded.held, last.clone()).await {
                    Ok(page) => break page,
                    Err(error) => {
                        self.cannot_load(&mut status, &error);
                        failures += 1;
                        if self.pause(stop, &grid, failures).await.is_none() {
                            self.give_back(loaded.held).await;
                            return None;
                        }
                    }
                }
            };
        }
        let engine = Engine::new(
            Options {
                full_read_interval: self.options.full_read_interval,
                interval: self.options.interval,
                max_poll_pages: MAX_POLL_PAGES,
            },
            tracker,
        );
        Some(Running {
            held: loaded.held,
            primed: loaded.primed,
            first_seen: loaded.first_seen,
            has_departed: loaded.has_departed,
            waited_in_vain: false,
            engine,
            under_way: None,
            asking: Asking {
                page_size: self.options.page_size,
                sorted: true,
            },
            grid,
            next_poll: self.first_poll.max(Instant::now()),
            poll: None,
            background_at: Instant::now(),
            background_failures: 0,
            status,
            failures: 0,
            stretching: 0,
            failing_since: None,
            search: self,
        })
    }

    fn cannot_load(&self, status: &mut SearchStatus, error: &store::Error) {
        let message = chain(error);
        if self.shared.store.is_in_trouble() {
            tracing::debug!(search = %self.key, error = %message, "cannot load the search's state, as it is for others");
        } else {
            tracing::error!(
                search = %self.key,
                error = %message,
                "cannot load the search's state; it is not polled until that works"
            );
        }
        self.metrics.poll_failed(STORE);
        status.last_error = Some(PollError {
            at: clock::now(),
            reason: STORE,
            message,
        });
        status.up = Some(false);
        status.tried = true;
        self.shared.board.set_search(status.clone());
    }

    /// Waits for the next try. `None`: it was told to stop.
    async fn pause(&self, stop: &CancellationToken, grid: &Grid, failures: u32) -> Option<()> {
        let again = grid.retry(Instant::now(), failures, fastrand::f64(), None);
        while Instant::now() < again {
            self.heartbeat.beat();
            let pulse = Instant::now() + super::pollers::HEARTBEAT / 4;
            tokio::select! {
                () = tokio::time::sleep_until(again.min(pulse)) => {}
                () = stop.cancelled() => return None,
            }
        }
        Some(())
    }

    fn stored_fields(&self, alert: &StoredAlert) -> Option<AlertFields<'static>> {
        AlertFields::from_stored(&alert.body)
            .inspect_err(|error| {
                tracing::warn!(
                    search = %self.key,
                    alert = %alert.id,
                    %error,
                    "the stored form of an alert cannot be read; it is stored anew when it is next seen"
                );
            })
            .ok()
    }

    /// The ordinals that alerts had reached when they left before.
    async fn ordinals(
        &self,
        held: Held,
        opened: &[usize],
        sightings: &[Sighting<'_>],
    ) -> Result<HashMap<Box<str>, u32>, Failure> {
        let ids = opened
            .iter()
            .map(|place| sightings[*place].id.into())
            .collect();
        Ok(self
            .shared
            .store
            .departed(held, ids)
            .await?
            .into_iter()
            .collect())
    }

    /// The pages of new alerts, as far as they come in time.
    async fn details(&self, opened: &[usize], alerts: &[Alert<'_>]) -> Vec<(usize, Answer)> {
        if !self.shared.fetch_details || !self.logs(EventKind::Opened) {
            return Vec::new();
        }
        let deadline = Instant::now() + DETAILS_DEADLINE;
        let asked: Vec<(usize, String)> = opened
            .iter()
            .map(|place| (*place, alerts[*place].id.clone().into_owned()))
            .collect();
        let client = &self.client;
        let tenant = &self.key.tenant.id;
        stream::iter(asked)
            .map(|(place, id)| async move {
                let answer = tokio::time::timeout_at(deadline, client.alert(tenant, &id)).await;
                Some((place, answer.ok()?.ok()??))
            })
            .buffer_unordered(DETAILS_AT_ONCE)
            .filter_map(std::future::ready)
            .scan(0, |bytes, (place, answer)| {
                *bytes += answer.text().len();
                std::future::ready((*bytes <= DETAILS_BYTES).then_some((place, answer)))
            })
            .collect()
            .await
    }

    fn logs(&self, kind: EventKind) -> bool {
        self.shared.record.events.contains(&kind)
    }

    /// The snapshot of a search that has not been polled yet.
    pub(super) fn initial_status(&self) -> SearchStatus {
        SearchStatus {
            key: self.key.clone(),
            interval: self.options.interval,
            stale_after: self.options.stale_after,
            up: None,
            result: None,
            last_requests: 0,
            last_full_read: None,
            next_poll: None,
            polls: VecDeque::with_capacity(HISTORY),
            last_error: None,
            lease_held: !self.shared.store.is_shared(),
            tried: false,
        }
    }
}

/// Pages that a poll reads at most: half of a client's allowance of a minute.
const MAX_POLL_PAGES: u64 = 25;

/// The topic of what is said about a full journal.
const JOURNAL: &str = "journal";

/// The reason of failures that are not the API's.
const STORE: &str = "store";

// === impl Running ===

impl Running {
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
            let background_due = background_request.is_none() && self.engine.task().is_some();
            // Nothing waits longer than this, so that the heartbeat is seen.
            let pulse = Instant::now() + super::pollers::HEARTBEAT / 4;
            tokio::select! {
                () = stop.cancelled() => break Ended::Stopped,
                () = &mut relieved => break Ended::Relieved,
                () = tokio::time::sleep_until(self.next_poll), if poll_request.is_none() => {
                    self.begin_poll();
                    poll_request = Some(self.page(Purpose::Poll, 1));
                }
                reply = ready(poll_request.as_mut()) => {
                    poll_request = self.poll_answered(reply).await;
                }
                () = until(self.background_at), if background_due => {
                    background_request = self.background();
                }
                reply = ready(background_request.as_mut()) => {
                    background_request = None;
                    self.background_answered(reply).await;
                }
                stored = ready(committing(&mut self.under_way)) => {
                    if let Err(failure) = self.has_stored(stored) {
                        self.background_failed(&failure);
                    }
                }
                () = tokio::time::sleep_until(pulse) => {}
            }
        };
        drop(reservation);
        self.finish_storing().await;
        ended
    }

    // --- polls

    fn begin_poll(&mut self) {
        self.search.metrics.poll_begun();
        self.poll = Some(Poll {
            started: clock::now(),
            began: Instant::now(),
            requests: 0,
            events: 0,
        });
    }

    /// Works off an answer of a poll. Brings the next request, where the poll goes on.
    async fn poll_answered(&mut self, reply: Reply) -> Option<Request> {
        let Reply::Page {
            purpose,
            request,
            answer,
        } = reply
        else {
            return None;
        };
        self.finish_storing().await;
        if let Some(poll) = &mut self.poll {
            poll.requests += 1;
        }
        if let Err(error) = &answer
            && self.ask_more_modestly(error, &request)
        {
            return Some(self.page(purpose, request.page));
        }
        let learned = match answer {
            Ok(answer) => self.learn(&purpose, &request, &answer).await,
            Err(error) => Err(error.into()),
        };
        match learned {
            Ok((Next::Page(page), events)) => {
                if let Some(poll) = &mut self.poll {
                    poll.events += events;
                }
                return Some(self.page(Purpose::Poll, page));
            }
            Ok((Next::Done, events)) => self.poll_succeeded(events),
            Err(failure) => self.poll_failed(&failure),
        }
        None
    }

    fn poll_succeeded(&mut self, events: u64) {
        if let Some(since) = self.failing_since.take() {
            let after = humantime::format_duration(Duration::from_secs(since.elapsed().as_secs()));
            tracing::info!(search = %self.search.key, failures = self.failures, %after, "polling works again");
        }
        self.failures = 0;
        self.stretching = 0;
        self.next_poll = self.grid.next(Instant::now());
        self.status.up = Some(true);
        self.end_poll(Ok(events));
    }

    fn poll_failed(&mut self, failure: &Failure) {
        self.failures += 1;
        self.failing_since.get_or_insert_with(Instant::now);
        let now = Instant::now();
        let error = PollError {
            at: clock::now(),
            reason: failure.reason(),
            message: failure.message(),
        };
        let of_the_store = matches!(failure, Failure::Store(_));
        if failure.is_echo() || of_the_store && self.search.shared.store.is_in_trouble() {
            tracing::debug!(search = %self.search.key, reason = error.reason, error = %error.message, "poll failed, as others did");
        } else {
            tracing::error!(
                search = %self.search.key,
                reason = error.reason,
                error = %error.message,
                "poll failed; gauges keep their last values until stale_after, new alerts are logged when it works again"
            );
        }
        self.next_poll = match failure {
            // A secret that was rotated on disk shall be picked up at the next poll.
            Failure::Api(error) if error.reason() == "auth" || error.is_echo() => {
                self.grid.next(now)
            }
            _ => {
                self.stretching += 1;
                let wait = match failure {
                    Failure::Api(opsramp::Error::Throttled { retry_after }) => *retry_after,
                    _ => None,
                };
                let not_before = wait.map(|wait| now + wait.min(super::schedule::MAX_BACK_OFF));
                self.grid
                    .retry(now, self.stretching, fastrand::f64(), not_before)
            }
        };
        self.status.up = Some(false);
        let reason = error.reason;
        self.status.last_error = Some(error.clone());
        self.end_poll(Err(error));
        // Whoever sees the count shall see what it says of `up`, too.
        self.search.metrics.poll_failed(reason);
    }

    fn end_poll(&mut self, outcome: Result<u64, PollError>) {
        let Some(poll) = self.poll.take() else { return };
        let took = poll.began.elapsed();
        self.search.metrics.poll_ended(took);
        let succeeded = outcome.is_ok();
        self.status.last_requests = poll.requests;
        self.status.polls.truncate(HISTORY - 1);
        self.status.polls.push_front(PollSummary {
            started: poll.started,
            took,
            requests: poll.requests,
            outcome: outcome.map(|events| events + poll.events),
        });
        self.status.tried = true;
        self.announce_next_poll();
        self.publish(succeeded.then(clock::now));
    }

    fn announce_next_poll(&mut self) {
        let wait = self.next_poll.saturating_duration_since(Instant::now());
        self.status.next_poll = Some(clock::now() + wait);
        self.search.shared.board.set_search(self.status.clone());
    }

    /// Swaps in a new snapshot. `polled_at`: a poll has just succeeded; else the result keeps its
    /// age.
    fn publish(&mut self, polled_at: Option<Timestamp>) {
        let at = match polled_at {
            Some(at) => Some((at, clock::since_boot())),
            None => {
                let last = self.status.result.as_ref();
                last.map(|result| (result.at, result.at_since_boot))
            }
        };
        if let (Some((at, at_since_boot)), Some(total_results)) = (at, self.engine.total()) {
            self.status.result = Some(SearchResult {
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
        self.search.shared.board.set_search(self.status.clone());
    }

    // --- the background

    fn background(&mut self) -> Option<Request> {
        match self.engine.task()? {
            Task::Page(page) => Some(self.page(Purpose::FullRead, page)),
            Task::Confirm(question) => {
                if !can_be_asked_by_id(&self.search.options.query, &question) {
                    self.engine.confirmation_refused();
                    return None;
                }
                Some(self.page(Purpose::Confirm(question), 1))
            }
            Task::Verify(ids) => Some(self.own_pages(ids, Reply::Verdicts)),
            Task::Reasons(ids) if self.search.logs(EventKind::Left) && !self.waited_in_vain => {
                Some(self.own_pages(ids, Reply::Reasons))
            }
            // Nobody would read them, or they would come too late.
            Task::Reasons(ids) => {
                let unasked = ids.into_iter().map(|id| (id, Reason::Unknown)).collect();
                Some(Box::pin(std::future::ready(Reply::Reasons(unasked))))
            }
        }
    }

    async fn background_answered(&mut self, reply: Reply) {
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
            } => {
                let refused = matches!(&answer, Err(opsramp::Error::Http { status: 400, .. }));
                match answer {
                    Err(error) if self.ask_more_modestly(&error, &request) => return,
                    Err(_) if refused && matches!(purpose, Purpose::Confirm(_)) => {
                        self.engine.confirmation_refused();
                        return;
                    }
                    Ok(answer) => self.learn(&purpose, &request, &answer).await.map(|_| ()),
                    Err(error) => Err(error.into()),
                }
            }
            Reply::Reasons(reasons) => {
                let late = |(_, reason): &(_, Reason)| matches!(reason, Reason::Late);
                self.waited_in_vain |= reasons.iter().any(late);
                let departed = self.depart(reasons).await;
                self.waited_in_vain &= self.engine.has_departures();
                departed
            }
            Reply::Verdicts(verdicts) => {
                self.judge(verdicts);
                Ok(())
            }
        };
        match worked {
            Ok(()) => {
                self.background_failures = 0;
                self.background_at = Instant::now();
                if self.engine.reads() != reads_before || self.engine.task().is_none() {
                    self.publish(None);
                }
            }
            Err(failure) => {
                self.finish_storing().await;
                self.background_failed(&failure);
            }
        }
    }

    fn background_failed(&mut self, failure: &Failure) {
        let doublings = self.background_failures.min(10);
        self.background_failures += 1;
        let pause = (BACKGROUND_PAUSE * (1 << doublings)).min(super::schedule::MAX_BACK_OFF);
        self.background_at = Instant::now() + pause.mul_f64(0.8 + 0.2 * fastrand::f64());
        let error = PollError {
            at: clock::now(),
            reason: failure.reason(),
            message: failure.message(),
        };
        tracing::warn!(
            search = %self.search.key,
            reason = error.reason,
            error = %error.message,
            "reading the whole result is held up; what has left is noticed when it works again"
        );
        self.status.last_error = Some(error);
        self.publish(None);
    }

    /// Asks for the pages of alerts that left, or may have.
    fn own_pages(
        &self,
        ids: Vec<Box<str>>,
        reply: fn(Vec<(Box<str>, Reason)>) -> Reply,
    ) -> Request {
        let client = self.search.client.clone();
        let tenant = Arc::clone(&self.search.key.tenant.id);
        Box::pin(async move {
            let deadline = Instant::now() + REASONS_DEADLINE;
            let reasons = stream::iter(ids)
                .map(|id| {
                    let (client, tenant) = (client.clone(), Arc::clone(&tenant));
                    async move {
                        let asked = reason(&client, &tenant, &id);
                        let reason = tokio::time::timeout_at(deadline, asked).await;
                        (id, reason.unwrap_or(Reason::Late))
                    }
                })
                .buffered(DETAILS_AT_ONCE)
                .collect()
                .await;
            reply(reasons)
        })
    }

    /// Tells the engine who is gone: whose page there is no more, or whose status is another one.
    fn judge(&mut self, verdicts: Vec<(Box<str>, Reason)>) {
        let has_left = |id: &str, page: &Reason| match page {
            Reason::NotFound => true,
            Reason::Unknown | Reason::Late => false,
            Reason::Found(answer) => {
                let alert = answer.alert().ok();
                let status = alert.as_ref().and_then(|alert| alert.status.as_deref());
                let before = self.engine.tracker().standing(id);
                status.zip(before).is_some_and(|(now, before)| {
                    !now.trim().eq_ignore_ascii_case(before.status.trim())
                })
            }
        };
        let gone = verdicts
            .iter()
            .filter(|(id, page)| has_left(id, page))
            .map(|(id, _)| id.clone())
            .collect();
        let asked: Vec<Box<str>> = verdicts.into_iter().map(|(id, _)| id).collect();
        self.engine.adopt_verdicts(&asked, &gone);
    }

    /// Stores and logs departures.
    async fn depart(&mut self, reasons: Vec<(Box<str>, Reason)>) -> Result<(), Failure> {
        let now = clock::now();
        let ids: Vec<Box<str>> = reasons.iter().map(|(id, _)| id.clone()).collect();
        let mut stored: HashMap<Box<str>, StoredAlert> = self
            .search
            .shared
            .store
            .stored(self.held, ids.clone())
            .await?
            .into_iter()
            .map(|alert| (alert.id.clone(), alert))
            .collect();
        let mut bodies = Bodies::default();
        let mut commit = Commit::default();
        let mut left = 0;
        for (id, reason) in &reasons {
            let Some(before) = self.engine.departing(id) else {
                continue;
            };
            let ordinal = before.ordinal + 1;
            commit.departures.push((id.clone(), ordinal));
            left += 1;
            if !self.search.logs(EventKind::Left) {
                continue;
            }
            let last_known = stored
                .remove(id)
                .and_then(|alert| AlertFields::from_stored(&alert.body).ok())
                .unwrap_or_default();
            let (page, raw) = match reason {
                Reason::Found(answer) => (answer.alert().ok(), Some(answer.text())),
                Reason::NotFound | Reason::Unknown | Reason::Late => (None, None),
            };
            let raw = raw.filter(|_| page.is_some());
            let (fields, reason) = match (&page, reason) {
                (Some(alert), _) => {
                    let moved = alert
                        .state
                        .as_deref()
                        .is_some_and(|state| !state.eq_ignore_ascii_case(&before.state));
                    let unchanged = if moved { "state_changed" } else { "unknown" };
                    let reason = alert.departure_reason();
                    let reason = reason.unwrap_or_else(|| unchanged.to_owned());
                    (reading::fields(alert), reason)
                }
                (None, Reason::NotFound) => (last_known, "not_found".to_owned()),
                (None, _) => (last_known, "unknown".to_owned()),
            };
            let happening = Happening {
                kind: EventKind::Left,
                ordinal,
                alert_id: id,
                previous_state: Some(Cow::Borrowed(&before.state)),
                previous_status: Some(Cow::Borrowed(&before.status)),
                reason: Some(reason.into()),
                fields,
                raw: raw.and_then(|raw| serde_json::from_str(raw).ok()),
            };
            commit
                .events
                .push(self.journal_event(&mut bodies, now, happening));
        }
        if left > 0 {
            self.commit(commit, now).await?;
            self.search.metrics.events(EventKind::Left, left);
            self.has_departed = true;
        }
        self.engine.adopt_departures(&ids);
        Ok(())
    }

    // --- asking

    fn page(&self, purpose: Purpose, page: u64) -> Request {
        let query = match &purpose {
            Purpose::Poll | Purpose::FullRead => self.search.options.query.clone(),
            Purpose::Confirm(question) => query_by_id(&self.search.options.query, question),
        };
        let urgency = match &purpose {
            Purpose::Poll => Urgency::Poll,
            Purpose::FullRead | Purpose::Confirm(_) => Urgency::Background,
        };
        let Asking { page_size, sorted } = self.asking;
        let request = SearchRequest {
            query,
            page,
            page_size,
            sorted,
        };
        let client = self.search.client.clone();
        let tenant = Arc::clone(&self.search.key.tenant.id);
        Box::pin(async move {
            let answer = client.search(&tenant, &request, urgency).await;
            Reply::Page {
                purpose,
                request,
                answer,
            }
        })
    }

    /// After a 400: neither the largest page nor the names of sort keys are documented, so ask
    /// for less before giving up. Brings whether there is less to ask for.
    fn ask_more_modestly(&mut self, error: &opsramp::Error, request: &SearchRequest) -> bool {
        if error.status() != Some(400) {
            return false;
        }
        let modest = if request.page_size > SAFE_PAGE_SIZE {
            Asking {
                page_size: SAFE_PAGE_SIZE,
                ..self.asking
            }
        } else if request.sorted {
            Asking {
                sorted: false,
                ..self.asking
            }
        } else {
            // Perhaps it was a passing fault, as the documentation of 400 has it.
            self.asking = Asking {
                page_size: self.search.options.page_size,
                sorted: true,
            };
            return false;
        };
        tracing::warn!(
            search = %self.search.key,
            error = %error,
            page_size = modest.page_size,
            sorted = modest.sorted,
            "the server refuses the search's paging; asking for less"
        );
        self.asking = modest;
        true
    }

    // --- learning

    /// Stores and adopts what an answer tells. Brings whether a poll goes on, and how many events
    /// there were.
    async fn learn(
        &mut self,
        purpose: &Purpose,
        request: &SearchRequest,
        answer: &Answer,
    ) -> Result<(Next, u64), Failure> {
        let include_raw = self.search.shared.record.include_raw;
        let page = answer.page(request.page, include_raw)?;
        if page.unreadable > 0 {
            tracing::warn!(
                search = %self.search.key,
                page = request.page,
                unreadable = page.unreadable,
                "some items of the result are no alerts (no usable uniqueId); they are skipped"
            );
        }
        let sightings = reading::sightings(&page.alerts);
        let facts = Facts {
            page: request.page,
            shown: page.alerts.len() + page.unreadable,
            unreadable: page.unreadable,
            total: page.total_results,
            page_size: page.page_size.unwrap_or(request.page_size.into()),
            next: page.next_page,
        };
        let delta = self.engine.compare(&sightings);
        let ordinals = if self.has_departed && !delta.opened.is_empty() {
            let search = &self.search;
            search
                .ordinals(self.held, &delta.opened, &sightings)
                .await?
        } else {
            HashMap::new()
        };
        let details = self.search.details(&delta.opened, &page.alerts).await;
        let details: HashMap<usize, Alert<'_>> = details
            .iter()
            .filter_map(|(place, answer)| Some((*place, answer.alert().ok()?)))
            .collect();

        // Oldest first: the API gives the newest first, and lines shall read in order.
        let mut changes: Vec<Change<'_>> = delta
            .opened
            .iter()
            .map(|place| Change {
                place: *place,
                kind: Some(EventKind::Opened),
                before: None,
            })
            .chain(delta.changed.iter().map(|(place, before)| Change {
                place: *place,
                kind: Some(EventKind::Changed),
                before: Some(before),
            }))
            .chain(delta.refreshed.iter().map(|(place, before)| Change {
                place: *place,
                kind: None,
                before: Some(before),
            }))
            .collect();
        changes.sort_unstable_by_key(|change| std::cmp::Reverse(change.place));

        let now = clock::now();
        let group_by = Arc::clone(self.engine.tracker().group_by());
        let mut bodies = Bodies::default();
        let mut commit = Commit::default();
        let mut adopted = Vec::with_capacity(changes.len());
        let mut told = Told::default();
        for Change {
            place,
            kind,
            before,
        } in changes
        {
            let alert = &page.alerts[place];
            let sighting = sightings[place];
            let fields = Self::fields(alert, details.get(&place));
            let silent = kind == Some(EventKind::Opened) && self.is_before_our_time(&fields);
            let happened = u32::from(kind.is_some());
            let ordinal = match before {
                Some(before) => before.ordinal + happened,
                None => ordinals.get(sighting.id).copied().unwrap_or(0) + happened,
            };
            adopted.push(Known {
                sighting,
                ordinal,
                created_at: fields.created_at.map(Timestamp::as_second),
                group: reading::group(&fields, &group_by),
            });
            commit.upserts.push(StoredAlert {
                id: sighting.id.into(),
                ordinal,
                digest: sighting.digest,
                created_at: fields.created_at,
                state: sighting.state.into(),
                body: bodies.body(|out| fields.write_stored(out)),
            });
            if let Some(kind) = kind.filter(|_| !silent) {
                if kind == EventKind::Changed {
                    told.changed += 1;
                } else {
                    told.opened += 1;
                    if self.primed
                        && let Some(created_at) = fields.created_at
                    {
                        let delay = now.duration_since(created_at);
                        let delay = Duration::try_from(delay).unwrap_or_default();
                        told.delays.push(delay);
                    }
                }
                if self.search.logs(kind) {
                    let raw = page.raw.get(place);
                    let happening = Happening {
                        kind,
                        ordinal,
                        alert_id: sighting.id,
                        previous_state: before.map(|before| Cow::Borrowed(&*before.state)),
                        previous_status: before.map(|before| Cow::Borrowed(&*before.status)),
                        reason: None,
                        fields,
                        raw: raw.and_then(|raw| serde_json::from_str(raw).ok()),
                    };
                    commit
                        .events
                        .push(self.journal_event(&mut bodies, now, happening));
                }
            }
        }
        let events = told.opened + told.changed;
        let has_changes = !commit.upserts.is_empty();
        // Only now: what has been done so far did not have to wait for the page before.
        self.stored().await?;
        let ahead = self.engine.ahead(purpose, &facts, &sightings, &delta);
        match ahead.filter(|_| has_changes) {
            Some(ahead) => {
                self.under_way = Some(UnderWay {
                    ahead,
                    committing: Box::pin(self.commit(commit, now)),
                    told,
                });
            }
            None => {
                if has_changes {
                    self.commit(commit, now).await?;
                }
                self.tell(told);
            }
        }
        let reads_before = self.engine.reads();
        let next = self
            .engine
            .adopt(purpose, &facts, &sightings, &delta, adopted, Instant::now());
        if self.engine.reads() != reads_before {
            self.status.last_full_read = Some(clock::now());
            self.prime().await?;
        }
        Ok((next, events))
    }

    /// Waits until what is under way is stored.
    async fn stored(&mut self) -> Result<(), Failure> {
        match committing(&mut self.under_way) {
            Some(committing) => {
                let stored = committing.await;
                self.has_stored(stored)
            }
            None => Ok(()),
        }
    }

    /// The same, for those who need not care whether that failed: the background has.
    async fn finish_storing(&mut self) {
        if let Err(failure) = self.stored().await {
            self.background_failed(&failure);
        }
    }

    /// The end of what was under way.
    fn has_stored(&mut self, stored: Result<(), Failure>) -> Result<(), Failure> {
        if let Some(UnderWay { ahead, told, .. }) = self.under_way.take() {
            match &stored {
                Ok(()) => self.tell(told),
                Err(_) => self.engine.take_back(ahead),
            }
        }
        stored
    }

    fn tell(&self, told: Told) {
        let metrics = &self.search.metrics;
        metrics.events(EventKind::Opened, told.opened);
        metrics.events(EventKind::Changed, told.changed);
        for delay in told.delays {
            metrics.detection_delay(delay);
        }
    }

    /// Stores what was learned. That the journal is full is said to everybody who asks for health.
    fn commit(
        &self,
        commit: Commit,
        now: Timestamp,
    ) -> impl Future<Output = Result<(), Failure>> + Send + use<> {
        let Shared { store, health, .. } = self.search.shared.clone();
        let held = self.held;
        async move {
            let has_events = !commit.events.is_empty();
            let committed = store.commit(held, commit, now).await;
            match &committed {
                Err(store::Error::JournalFull { limit }) => health.notice(
                    JOURNAL,
                    format!(
                        "the journal is full: {limit} events wait for their sinks; \
                         new alerts are taken in when there is room again"
                    ),
                ),
                Ok(()) if has_events => health.withdraw(JOURNAL),
                _ => {}
            }
            Ok(committed?)
        }
    }

    /// Notes that the result has been read whole for the first time.
    async fn prime(&mut self) -> Result<(), Failure> {
        if !self.primed {
            let commit = Commit {
                primed: true,
                ..Commit::default()
            };
            self.commit(commit, clock::now()).await?;
            self.primed = true;
        }
        Ok(())
    }

    /// The fields of an alert; what its own page has beyond them is added.
    fn fields<'a>(alert: &'a Alert<'_>, detail: Option<&'a Alert<'_>>) -> AlertFields<'a> {
        let mut fields = reading::fields(alert);
        if let Some(detail) = detail {
            let detail = reading::fields(detail);
            fields.description = detail.description.or(fields.description);
            fields.source = fields.source.or(detail.source);
            fields.incident_id = fields.incident_id.or(detail.incident_id);
            fields.component = fields.component.or(detail.component);
            fields.problem_area = fields.problem_area.or(detail.problem_area);
        }
        fields
    }

    /// With `at_first_start: skip`, alerts that were there before us are taken note of in silence.
    fn is_before_our_time(&self, fields: &AlertFields<'_>) -> bool {
        !self.primed
            && self.search.shared.at_first_start == AtFirstStart::Skip
            && fields.created_at.is_none_or(|at| at <= self.first_seen)
    }

    fn journal_event(
        &self,
        bodies: &mut Bodies,
        now: Timestamp,
        happening: Happening<'_>,
    ) -> JournalEvent {
        let record = Record::new(now, &self.search.key, happening, &self.search.shared.record);
        JournalEvent {
            event_id: record.event_id,
            at: record.timestamp,
            body: bodies.body(|out| record.write_json(out)),
        }
    }
}

/// A change of a page.
struct Change<'a> {
    place: usize,
    /// `None`: worth storing, but no event.
    kind: Option<EventKind>,
    before: Option<&'a crate::track::Before>,
}

// === impl Failure ===

impl Failure {
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

/// Asks for an alert's own page until there is an answer, or a failure that will not pass.
async fn reason(client: &Client, tenant: &str, id: &str) -> Reason {
    let mut pause = REASONS_PAUSE;
    loop {
        let error = match client.alert(tenant, id).await {
            Ok(Some(answer)) => return Reason::Found(answer),
            Ok(None) => return Reason::NotFound,
            Err(error) => error,
        };
        tracing::debug!(tenant, alert = id, error = %error.chain(), "cannot ask why an alert left");
        if !error.may_pass() {
            return Reason::Unknown;
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

/// Waits until then. A timer would take a millisecond for what is due already: with the next page
/// of a full read that is a sixth of the time that one takes.
async fn until(at: Instant) {
    if Instant::now() < at {
        tokio::time::sleep_until(at).await;
    }
}

/// Waits for a request or a commit, if there is one.
async fn ready<T>(pending: Option<&mut Pending<T>>) -> T {
    match pending {
        Some(pending) => pending.await,
        None => std::future::pending().await,
    }
}

fn committing(under_way: &mut Option<UnderWay>) -> Option<&mut Pending<Result<(), Failure>>> {
    Some(&mut under_way.as_mut()?.committing)
}

fn known<'a>(
    alert: &'a StoredAlert,
    fields: &'a AlertFields<'a>,
    group_by: &[crate::track::GroupLabel],
) -> Known<'a> {
    Known {
        sighting: Sighting {
            id: &alert.id,
            digest: alert.digest,
            state: fields.state.as_deref().unwrap_or_default(),
            status: fields.status.as_deref().unwrap_or_default(),
        },
        ordinal: alert.ordinal,
        created_at: alert.created_at.map(Timestamp::as_second),
        group: reading::group(fields, group_by),
    }
}

/// Ids that cannot be mistaken for a part of the query's grammar can be asked for, unless the
/// query is about ids itself.
pub(super) fn can_be_asked_by_id(query: &str, question: &Question) -> bool {
    let plain = |id: &str| {
        !id.is_empty()
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    !query.to_ascii_lowercase().contains("uniqueid:")
        && question
            .suspects
            .iter()
            .chain([&question.witness])
            .all(|id| plain(id))
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
