//! The latest snapshot of each search, account and sink.
//!
//! Pollers, clients and sinks report here; scrapes and the page read here. A search's snapshot is
//! replaced as a whole, so that no reader sees half of what a poll learned. Reading never waits
//! for the API or the store. This module knows neither metrics' names nor HTML.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::RwLock;

use crate::{
    clock,
    identity::SearchKey,
    opsramp::{Expiry, RateLimit},
    store::Lease,
    track::GroupLabel,
};

/// How many polls a search's history keeps.
pub const HISTORY: usize = 10;

/// Maximum number of partners that one sentence names.
const PARTNERS_NAMED: usize = 10;

/// The latest snapshots. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    searches: RwLock<BTreeMap<SearchKey, Arc<SearchStatus>>>,
    accounts: RwLock<BTreeMap<Arc<str>, AccountStatus>>,
    sinks: RwLock<BTreeMap<Arc<str>, SinkStatus>>,
    version: std::sync::atomic::AtomicU64,
}

/// What is known of one search: one immutable snapshot.
#[derive(Clone, Debug)]
pub struct SearchStatus {
    /// The search.
    pub key: SearchKey,
    /// Time between two polls.
    pub interval: Duration,
    /// Time without a successful poll after which the search's gauges are withheld.
    pub stale_after: Duration,
    /// Whether the last poll succeeded; `None` before the first has ended.
    pub up: Option<bool>,
    /// What the last successful poll learned.
    pub result: Option<SearchResult>,
    /// When the result was last read as a whole.
    pub last_full_read: Option<Timestamp>,
    /// When the next poll is due.
    pub next_poll: Option<Timestamp>,
    /// The last polls, newest first.
    pub polls: VecDeque<PollSummary>,
    /// The last error, even after a recovery.
    pub last_error: Option<PollError>,
    /// Whether this replica polls the search.
    pub lease_held: bool,
    /// The lease under which this replica polls the search. `None` if it does not, or if the lease
    /// cannot end.
    pub lease: Option<Lease>,
    /// Whether the first attempt is over: a poll has ended, the search could not be taken up, or
    /// another replica polls it.
    pub first_attempt_over: bool,
}

/// What a successful poll learned.
#[derive(Clone, Debug)]
pub struct SearchResult {
    /// When the poll ended.
    pub at: Timestamp,
    /// When the poll ended, on [`clock::since_boot`], which nobody sets back.
    pub at_since_boot: Duration,
    /// `totalResults`.
    pub total_results: u64,
    /// How many alerts are tracked.
    pub tracked: u64,
    /// Whether the tracked alerts are the whole result.
    pub complete: bool,
    /// The names of the labels that `groups` has values for.
    pub group_by: Arc<[GroupLabel]>,
    /// Number of tracked alerts by group. A group has one value for each label.
    pub groups: Arc<[(Vec<Arc<str>>, u64)]>,
    /// `createdDate` of the oldest tracked alert.
    pub oldest: Option<Timestamp>,
}

/// One poll of the history.
#[derive(Clone, Debug)]
pub struct PollSummary {
    /// When the poll began.
    pub started: Timestamp,
    /// How long the poll took.
    pub took: Duration,
    /// API requests that the poll took.
    pub requests: u64,
    /// Number of new events, or why the poll failed.
    pub outcome: Result<u64, PollError>,
}

/// Why a poll failed.
#[derive(Clone, Debug)]
pub struct PollError {
    /// When the poll failed.
    pub at: Timestamp,
    /// The label `reason` of `opsramp_poll_failures_total`.
    pub reason: &'static str,
    /// The message for people: the whole chain of causes, without secrets.
    pub message: String,
}

/// What is known of an account.
#[derive(Clone, Debug, Default)]
pub struct AccountStatus {
    /// How long the last successful token request took.
    pub auth_latency: Option<Duration>,
    /// When the current token expires.
    pub token_expiry: Option<Expiry>,
    /// Why no token was obtained when it was last tried; `None` once one is, or once the API accepts
    /// the one before again. The current token may still live.
    pub auth_error: Option<String>,
    /// The last rate limit seen, by tenant id.
    pub rate_limits: BTreeMap<String, RateLimit>,
    /// What is known of the clients of the account's partners; `None` if they are not looked up.
    pub discovery: Option<DiscoveryStatus>,
}

/// What is known of the clients of an account's partners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryStatus {
    /// Number of activated clients, by the last successful look-ups. `None` while the clients of a
    /// partner have not been looked up successfully since the account or its partners were last
    /// changed.
    pub clients: Option<usize>,
    /// The partners, at least one.
    pub partners: Vec<PartnerStatus>,
}

/// What is known of the clients of a partner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartnerStatus {
    /// The partner's id.
    pub id: Arc<str>,
    /// Whether the partner's clients have been found, also if that was before the account was
    /// changed. If so, it is known which clients are to be searched.
    pub is_known: bool,
    /// The outcome of the last look-up; `None` before the first one has ended.
    pub last: Option<Result<(), String>>,
}

/// What is known of a sink.
#[derive(Clone, Debug, Default)]
pub struct SinkStatus {
    /// `stdout`, `file`, `journald` or `otlp`.
    pub kind: &'static str,
    /// Events delivered since the start.
    pub delivered: u64,
    /// Events journalled and not yet delivered; `None` while their number is unknown.
    pub backlog: Option<u64>,
    /// When the oldest of these events was journalled.
    pub oldest_pending: Option<Timestamp>,
    /// Why delivery fails now, or that a delivery hangs; `None` while it works.
    pub error: Option<String>,
}

/// Groups the partners about which the same is told. Groups are in the order of their first
/// partners.
pub fn group_by_value<'a, T: PartialEq>(
    told: impl IntoIterator<Item = (&'a Arc<str>, T)>,
) -> Vec<(Vec<&'a str>, T)> {
    let mut groups: Vec<(Vec<&str>, T)> = Vec::new();
    for (partner, what) in told {
        match groups.iter_mut().find(|(_, same)| *same == what) {
            Some((partners, _)) => partners.push(partner),
            None => groups.push((vec![partner], what)),
        }
    }
    groups
}

/// Lists partners by their ids, for a sentence.
#[must_use]
pub fn listed(partners: &[&str]) -> String {
    let named = partners.len().min(PARTNERS_NAMED);
    let list = partners[..named].join(", ");
    match partners.len() - named {
        0 => list,
        others => format!("{list} and {others} more"),
    }
}

// === impl Board ===

impl Board {
    /// Replaces a search's snapshot.
    pub fn set_search(&self, status: SearchStatus) {
        let key = status.key.clone();
        self.0.searches.write().insert(key, Arc::new(status));
        self.touch();
    }

    /// Returns a search's snapshot.
    #[must_use]
    pub fn search(&self, key: &SearchKey) -> Option<Arc<SearchStatus>> {
        self.0.searches.read().get(key).cloned()
    }

    /// Forgets a search, with all its series.
    pub fn remove_search(&self, key: &SearchKey) {
        self.0.searches.write().remove(key);
        self.touch();
    }

    /// Returns every search's snapshot, in the order of their keys. A search whose lease has ended
    /// is shown as polled elsewhere, even before its poller notices, because another replica may
    /// show it by now.
    #[must_use]
    pub fn searches(&self) -> Vec<Arc<SearchStatus>> {
        let mut searches: Vec<_> = self.0.searches.read().values().cloned().collect();
        for status in &mut searches {
            if status.lease.as_ref().is_some_and(|lease| !lease.holds()) {
                *status = Arc::new(status.elsewhere());
            }
        }
        searches
    }

    /// Changes what is known of an account.
    pub fn update_account(&self, name: &Arc<str>, change: impl FnOnce(&mut AccountStatus)) {
        change(self.0.accounts.write().entry(Arc::clone(name)).or_default());
        self.touch();
    }

    /// Forgets an account.
    pub fn remove_account(&self, name: &str) {
        self.0.accounts.write().remove(name);
        self.touch();
    }

    /// Returns every account, in the order of their names. `now`: what the wall clock says, by
    /// which the expiry of tokens is corrected.
    #[must_use]
    pub fn accounts(&self, now: Timestamp) -> BTreeMap<Arc<str>, AccountStatus> {
        let mut accounts = self.0.accounts.write();
        for status in accounts.values_mut() {
            if let Some(expiry) = &mut status.token_expiry {
                expiry.correct(now);
            }
        }
        accounts.clone()
    }

    /// Returns what is known of partners' clients, for each account that has them looked up.
    #[must_use]
    pub fn discoveries(&self) -> Vec<(Arc<str>, DiscoveryStatus)> {
        let accounts = self.0.accounts.read();
        let discovery = |(name, status): (&Arc<str>, &AccountStatus)| {
            Some((Arc::clone(name), status.discovery.clone()?))
        };
        accounts.iter().filter_map(discovery).collect()
    }

    /// Changes what is known of a sink.
    pub fn update_sink(&self, name: &Arc<str>, change: impl FnOnce(&mut SinkStatus)) {
        change(self.0.sinks.write().entry(Arc::clone(name)).or_default());
        self.touch();
    }

    /// Changes what is known of a sink, unless the sink was forgotten.
    pub fn update_sink_if_present(&self, name: &str, change: impl FnOnce(&mut SinkStatus)) {
        if let Some(status) = self.0.sinks.write().get_mut(name) {
            change(status);
        }
        self.touch();
    }

    /// Forgets a sink.
    pub fn remove_sink(&self, name: &str) {
        self.0.sinks.write().remove(name);
        self.touch();
    }

    /// Returns every sink, in the order of their names.
    #[must_use]
    pub fn sinks(&self) -> BTreeMap<Arc<str>, SinkStatus> {
        self.0.sinks.read().clone()
    }

    /// A number that grows with every change, so that a rendering can be reused until then.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.version.load(std::sync::atomic::Ordering::Acquire)
    }

    fn touch(&self) {
        self.0
            .version
            .fetch_add(1, std::sync::atomic::Ordering::AcqRel);
    }
}

// === impl DiscoveryStatus ===

impl DiscoveryStatus {
    /// Whether the last look-ups of all partners have succeeded.
    #[must_use]
    pub fn is_up(&self) -> bool {
        let mut partners = self.partners.iter();
        partners.all(|partner| partner.last == Some(Ok(())))
    }

    /// Whether the clients of all partners have been found, so that it is known which ones to
    /// search.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.partners.iter().all(|partner| partner.is_known)
    }
}

// === impl SearchStatus ===

impl SearchStatus {
    /// Returns the snapshot of a search of which nothing is known.
    #[must_use]
    pub fn unknown(key: SearchKey, interval: Duration, stale_after: Duration) -> Self {
        Self {
            key,
            interval,
            stale_after,
            up: None,
            result: None,
            last_full_read: None,
            next_poll: None,
            polls: VecDeque::new(),
            last_error: None,
            lease_held: false,
            lease: None,
            first_attempt_over: false,
        }
    }

    /// Returns the snapshot of the search if another replica polls it.
    #[must_use]
    pub fn elsewhere(&self) -> Self {
        Self {
            first_attempt_over: true,
            ..Self::unknown(self.key.clone(), self.interval, self.stale_after)
        }
    }

    /// API requests that the last poll took.
    #[must_use]
    pub fn last_requests(&self) -> u64 {
        self.polls.front().map_or(0, |poll| poll.requests)
    }

    /// Whether this replica should hold the search but could not take it up.
    #[must_use]
    pub fn could_not_be_taken_up(&self) -> bool {
        !self.lease_held && self.up == Some(false)
    }

    /// Returns what the last successful poll learned, if it is fresh enough to be shown at `now`.
    #[must_use]
    pub fn fresh_result(&self, now: Timestamp) -> Option<&SearchResult> {
        self.result.as_ref().filter(|result| {
            let age = Duration::try_from(now.duration_since(result.at)).unwrap_or_default();
            // If the wall clock was set back, this age stays too small, so the clock since boot
            // counts as well.
            let passed = clock::since_boot().saturating_sub(result.at_since_boot);
            age.max(passed) <= self.stale_after
        })
    }
}
