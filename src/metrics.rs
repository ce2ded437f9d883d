//! Every metric in one place, as typed handles.
//!
//! Gauges of what the API said are not kept here. They are a pure function of the latest snapshots
//! on the [`Board`], computed when somebody asks, so that a failed poll leaves no half of a result
//! behind, and a removed search no ghost series.
//!
//! What this program does is counted here. The counters exist at 0 from the moment a search,
//! account or sink is registered, because `increase()` does not see a counter that begins at 1.
//! Metrics that exist once an instance are in a registry (`instance`); those of each search or
//! account are plain cells (`cells`). This module does not know its callers.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::{Mutex, RwLock};

use crate::{
    deliver,
    identity::{EventKind, SearchKey},
    opsramp::{self, Endpoint, Expiry, RateLimit},
    status::Board,
};

pub use catalog::reference;
use cells::{Counter, Histogram, Seconds};
use instance::{Instance, SinkCounters};
pub use rendering::Rendering;

mod catalog;
mod cells;
mod exposition;
mod instance;
mod process;
mod render;
mod rendering;

/// The reasons of `opsramp_poll_failures_total`.
pub const POLL_FAILURE_REASONS: [&str; 8] = [
    "auth",
    "throttled",
    "timeout",
    "connect",
    "http",
    "decode",
    "too_large",
    "store",
];

/// The reasons of `opsramp_auth_failures_total`.
pub const AUTH_FAILURE_REASONS: [&str; 7] = [
    "credentials",
    "rejected",
    "throttled",
    "timeout",
    "connect",
    "http",
    "decode",
];

/// HTTP statuses whose counters exist before such an answer is seen: those that the API documents
/// or that gateways give. A counter that begins at 1 has not increased.
const KNOWN_STATUSES: [u16; 13] = [
    200, 400, 401, 403, 404, 405, 407, 410, 429, 500, 502, 503, 504,
];

/// The levels of `opsramp_exporter_log_messages_total`.
const LEVELS: [(tracing::Level, &str); 5] = [
    (tracing::Level::ERROR, "error"),
    (tracing::Level::WARN, "warn"),
    (tracing::Level::INFO, "info"),
    (tracing::Level::DEBUG, "debug"),
    (tracing::Level::TRACE, "trace"),
];

// The bounds are chosen around what matters to an operator: a healthy API answers in under a
// second, and a request may take 30 s; a poll is one request, or a read that waits for the
// allowance; an alert is found within an interval.
static REQUEST_BOUNDS: [f64; 9] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
static POLL_BOUNDS: [f64; 10] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
static DELAY_BOUNDS: [f64; 12] = [
    1.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0, 900.0, 3600.0,
];

/// All metrics. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

/// What this program was built from, for `opsramp_exporter_build_info` and the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildInfo {
    /// The version, such as `0.1.0`.
    pub version: &'static str,
    /// The commit, or `unknown`.
    pub revision: &'static str,
    /// The compiler's version, or `unknown`.
    pub rustversion: &'static str,
}

/// Counts what happens to one search. Cheap to clone. Once the search is removed, its counts are
/// no longer shown.
#[derive(Clone)]
pub struct SearchMetrics {
    metrics: Metrics,
    cells: Arc<SearchCells>,
}

/// Counts what happens on the wire of one account, and tells the board. Cheap to clone.
#[derive(Clone)]
pub struct AccountMetrics {
    metrics: Metrics,
    name: Arc<str>,
    cells: Arc<AccountCells>,
    /// Whether another client of the account has replaced this one.
    is_replaced: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Inner {
    board: Board,
    build: BuildInfo,
    /// Grows with every count, as the board's version does with every snapshot.
    changes: AtomicU64,
    searches: RwLock<BTreeMap<SearchKey, Arc<SearchCells>>>,
    accounts: RwLock<BTreeMap<Arc<str>, Arc<AccountCells>>>,
    sinks: RwLock<BTreeMap<Arc<str>, SinkCounters>>,
    instance: Instance,
    cache: rendering::Cache,
}

#[derive(Debug)]
struct SearchCells {
    polls: Counter,
    failures: Reasons<{ POLL_FAILURE_REASONS.len() }>,
    duration: Histogram<{ POLL_BOUNDS.len() }>,
    events: [Counter; EventKind::ALL.len()],
    detection_delay: Histogram<{ DELAY_BOUNDS.len() }>,
}

#[derive(Debug)]
struct AccountCells {
    auth_requests: Counter,
    auth_failures: Reasons<{ AUTH_FAILURE_REASONS.len() }>,
    /// Counts by the endpoint's place in [`Endpoint::ALL`] and the status. The size is bounded,
    /// because a status has three digits.
    requests: Mutex<BTreeMap<(usize, Option<u16>), u64>>,
    durations: [Histogram<{ REQUEST_BOUNDS.len() }>; Endpoint::ALL.len()],
    /// By the tenant's id.
    throttled: Mutex<BTreeMap<Box<str>, Arc<Seconds>>>,
}

/// Failures by reason.
#[derive(Debug)]
struct Reasons<const N: usize> {
    names: &'static [&'static str; N],
    counts: [Counter; N],
    /// Counts reasons that are not among `names`. Such a reason is a bug, which must not hide a
    /// failure.
    unlisted: Counter,
}

// === impl Metrics ===

impl Metrics {
    /// Returns metrics that show what is on `board`.
    #[must_use]
    pub fn new(board: Board, build: BuildInfo) -> Self {
        Self(Arc::new(Inner {
            board,
            build,
            changes: AtomicU64::default(),
            searches: RwLock::default(),
            accounts: RwLock::default(),
            sinks: RwLock::default(),
            instance: Instance::new(build),
            cache: rendering::Cache::default(),
        }))
    }

    /// Creates a search's series, unless they exist.
    pub fn register_search(&self, key: &SearchKey) -> SearchMetrics {
        let cells = Arc::clone(
            self.0
                .searches
                .write()
                .entry(key.clone())
                .or_insert_with(|| Arc::new(SearchCells::new())),
        );
        self.touch();
        SearchMetrics {
            metrics: self.clone(),
            cells,
        }
    }

    /// Removes a search's series, and those of its tenant if this was its last search. The board's
    /// owner removes the snapshot.
    pub fn remove_search(&self, key: &SearchKey) {
        let mut searches = self.0.searches.write();
        searches.remove(key);
        let tenant_remains = searches
            .keys()
            .any(|other| other.account == key.account && other.tenant.id == key.tenant.id);
        drop(searches);
        if !tenant_remains {
            let accounts = self.0.accounts.read();
            if let Some(cells) = accounts.get(&key.account) {
                cells.throttled.lock().remove(&*key.tenant.id);
                self.0.board.update_account(&key.account, |account| {
                    account.rate_limits.remove(&*key.tenant.id);
                });
            }
        }
        self.touch();
    }

    /// Creates an account's series, unless they exist.
    pub fn register_account(&self, name: &Arc<str>) -> AccountMetrics {
        let cells = Arc::clone(
            self.0
                .accounts
                .write()
                .entry(Arc::clone(name))
                .or_insert_with(|| Arc::new(AccountCells::new())),
        );
        self.touch();
        AccountMetrics {
            metrics: self.clone(),
            name: Arc::clone(name),
            cells,
            is_replaced: Arc::default(),
        }
    }

    /// Removes an account's series, and what the board knows of it.
    pub fn remove_account(&self, name: &str) {
        // Under the lock, so that a request that ends only now cannot bring the account back.
        let mut accounts = self.0.accounts.write();
        accounts.remove(name);
        self.0.board.remove_account(name);
        drop(accounts);
        self.touch();
    }

    /// Creates a sink's series, unless they exist.
    pub fn register_sink(&self, name: &Arc<str>) {
        self.0
            .sinks
            .write()
            .entry(Arc::clone(name))
            .or_insert_with(|| self.0.instance.sink(name));
        self.touch();
    }

    /// Counts something for a sink, unless the sink was removed.
    fn count_for_sink(&self, name: &str, count: impl FnOnce(&SinkCounters)) {
        if let Some(counters) = self.0.sinks.read().get(name) {
            count(counters);
            self.touch();
        }
    }

    /// Removes a sink's series, and what the board knows of it.
    pub fn remove_sink(&self, name: &str) {
        let mut sinks = self.0.sinks.write();
        sinks.remove(name);
        self.0.instance.remove_sink(name);
        drop(sinks);
        self.0.board.remove_sink(name);
        self.touch();
    }

    /// Counts a message of the exporter's own diagnostics.
    pub fn log_message(&self, level: tracing::Level) {
        self.0.instance.log_message(level);
        self.touch();
    }

    /// Notes that the configuration was loaded, at the start or by a reload.
    pub fn config_loaded(&self, at: Timestamp) {
        self.0.instance.config_loaded(at);
        self.0.cache.outdate();
        self.touch();
    }

    /// Notes that a reload was rejected and the old configuration stays.
    pub fn config_rejected(&self) {
        self.0.instance.config_rejected();
        self.0.cache.outdate();
        self.touch();
    }

    /// What this program was built from.
    #[must_use]
    pub fn build(&self) -> BuildInfo {
        self.0.build
    }

    fn touch(&self) {
        self.0.changes.fetch_add(1, Ordering::AcqRel);
    }
}

/// Sinks are found by name. Counts for a sink that is not registered are dropped.
impl deliver::Observer for Metrics {
    fn sink_delivered(&self, sink: &str, events: u64) {
        self.count_for_sink(sink, |counters| counters.delivered.inc_by(events));
    }

    fn sink_error(&self, sink: &str) {
        self.count_for_sink(sink, |counters| counters.errors.inc());
    }

    fn sink_rejected(&self, sink: &str, events: u64) {
        self.count_for_sink(sink, |counters| counters.rejected.inc_by(events));
    }
}

// === impl SearchMetrics ===

impl SearchMetrics {
    /// Counts a poll that begins.
    pub fn poll_begun(&self) {
        self.cells.polls.add(1);
        self.metrics.touch();
    }

    /// Counts a poll that failed; the reason is one of [`POLL_FAILURE_REASONS`].
    pub fn poll_failed(&self, reason: &'static str) {
        self.cells.failures.add(reason);
        self.metrics.touch();
    }

    /// Counts a poll that ended after `took`, whether it succeeded or not.
    pub fn poll_ended(&self, took: Duration) {
        self.cells.duration.observe(took);
        self.metrics.touch();
    }

    /// Counts `n` events that a poll found.
    pub fn events(&self, kind: EventKind, n: u64) {
        self.cells.events[event_kind_index(kind)].add(n);
        self.metrics.touch();
    }

    /// Counts the time between an alert's creation and its journalling as opened; zero if the
    /// clocks disagree.
    pub fn detection_delay(&self, delay: Duration) {
        self.cells.detection_delay.observe(delay);
        self.metrics.touch();
    }
}

impl fmt::Debug for SearchMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SearchMetrics").field(&self.cells).finish()
    }
}

// === impl AccountMetrics ===

impl AccountMetrics {
    /// Notes that another client of the account, with metrics of its own, has replaced this one.
    /// The board forgets the account. What this client still does is counted, but what it still
    /// learns, such as a token's end, is not shown.
    pub fn mark_replaced(&self) {
        // Under the lock, so that a request that ends only now cannot bring the account back.
        let accounts = self.metrics.0.accounts.write();
        self.is_replaced.store(true, Ordering::Relaxed);
        self.metrics.0.board.remove_account(&self.name);
        drop(accounts);
        self.metrics.touch();
    }

    /// Changes what the board knows of the account, unless the account was removed or this client
    /// replaced.
    fn report(&self, change: impl FnOnce(&mut crate::status::AccountStatus)) {
        let accounts = self.metrics.0.accounts.read();
        let present = accounts
            .get(&self.name)
            .is_some_and(|cells| Arc::ptr_eq(cells, &self.cells));
        if present && !self.is_replaced.load(Ordering::Relaxed) {
            self.metrics.0.board.update_account(&self.name, change);
        }
    }
}

impl opsramp::Observer for AccountMetrics {
    fn request(&self, endpoint: Endpoint, status: Option<u16>, took: Duration) {
        let place = endpoint_index(endpoint);
        *self
            .cells
            .requests
            .lock()
            .entry((place, status))
            .or_default() += 1;
        self.cells.durations[place].observe(took);
        self.metrics.touch();
    }

    fn token_requested(&self) {
        self.cells.auth_requests.add(1);
        self.metrics.touch();
    }

    fn token_obtained(&self, took: Duration, expiry: Expiry) {
        self.report(|account| {
            account.auth_latency = Some(took);
            account.token_expiry = Some(expiry);
            account.auth_error = None;
        });
    }

    fn token_lost(&self) {
        self.report(|account| account.token_expiry = None);
    }

    fn token_regained(&self, expiry: Expiry, is_renewal_due: bool) {
        self.report(|account| {
            account.token_expiry = Some(expiry);
            if !is_renewal_due {
                account.auth_error = None;
            }
        });
    }

    fn token_failed(&self, reason: &'static str, error: &opsramp::Error) {
        self.report(|account| account.auth_error = Some(error.chain()));
        self.cells.auth_failures.add(reason);
        self.metrics.touch();
    }

    fn rate_limit(&self, tenant: &str, seen: RateLimit) {
        self.report(|account| {
            account.rate_limits.insert(tenant.to_owned(), seen);
        });
    }

    fn throttled(&self, tenant: &str, waited: Duration) {
        let mut throttled = self.cells.throttled.lock();
        match throttled.get(tenant) {
            Some(seconds) => seconds.add(waited),
            None => throttled.entry(tenant.into()).or_default().add(waited),
        }
        drop(throttled);
        self.metrics.touch();
    }
}

impl fmt::Debug for AccountMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccountMetrics")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

// === impl SearchCells ===

impl SearchCells {
    fn new() -> Self {
        Self {
            polls: Counter::default(),
            failures: Reasons::new(&POLL_FAILURE_REASONS),
            duration: Histogram::new(&POLL_BOUNDS),
            events: std::array::from_fn(|_| Counter::default()),
            detection_delay: Histogram::new(&DELAY_BOUNDS),
        }
    }
}

// === impl AccountCells ===

impl AccountCells {
    fn new() -> Self {
        let statuses = || KNOWN_STATUSES.into_iter().map(Some).chain([None]);
        let requests = (0..Endpoint::ALL.len())
            .flat_map(|endpoint| statuses().map(move |status| ((endpoint, status), 0)));
        Self {
            auth_requests: Counter::default(),
            auth_failures: Reasons::new(&AUTH_FAILURE_REASONS),
            requests: Mutex::new(requests.collect()),
            durations: std::array::from_fn(|_| Histogram::new(&REQUEST_BOUNDS)),
            throttled: Mutex::default(),
        }
    }
}

// === impl Reasons ===

impl<const N: usize> Reasons<N> {
    fn new(names: &'static [&'static str; N]) -> Self {
        Self {
            names,
            counts: std::array::from_fn(|_| Counter::default()),
            unlisted: Counter::default(),
        }
    }

    fn add(&self, reason: &str) {
        let place = self.names.iter().position(|name| *name == reason);
        debug_assert!(place.is_some(), "the reason {reason:?} is not announced");
        place
            .and_then(|place| self.counts.get(place))
            .unwrap_or(&self.unlisted)
            .add(1);
    }

    fn get(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let other = Some(("other", self.unlisted.get())).filter(|(_, count)| *count > 0);
        let counts = self.counts.iter().map(Counter::get);
        self.names.iter().copied().zip(counts).chain(other)
    }
}

fn event_kind_index(kind: EventKind) -> usize {
    match kind {
        EventKind::Opened => 0,
        EventKind::Changed => 1,
        EventKind::Left => 2,
    }
}

fn endpoint_index(endpoint: Endpoint) -> usize {
    match endpoint {
        Endpoint::Token => 0,
        Endpoint::Search => 1,
        Endpoint::Alert => 2,
        Endpoint::Clients => 3,
    }
}

/// Unix time in seconds, to the millisecond.
fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1e3
}

#[cfg(test)]
mod tests;
