//! The latest snapshot of everything that others look at: each search, account and sink.
//!
//! Pollers, clients and sinks report here; a scrape and the page read here. A search's snapshot is
//! swapped in whole, so that nobody sees half of what a poll learned, and reading never waits for
//! the API or the store. This module knows neither metrics' names nor HTML.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::RwLock;

use crate::{clock, identity::SearchKey, opsramp::RateLimit, store::Lease, track::GroupLabel};

/// How many polls a search's history keeps.
pub const HISTORY: usize = 10;

/// Partners of which the same is said are named no further than this.
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
    /// After so long without a successful poll its gauges are withheld.
    pub stale_after: Duration,
    /// Whether the last poll succeeded; `None` before the first has ended.
    pub up: Option<bool>,
    /// What the last successful poll learned.
    pub result: Option<SearchResult>,
    /// API requests that the last poll took.
    pub last_requests: u64,
    /// When the last complete read ended.
    pub last_full_read: Option<Timestamp>,
    /// When the next poll is due.
    pub next_poll: Option<Timestamp>,
    /// The last polls, newest first.
    pub polls: VecDeque<PollSummary>,
    /// The last error, even after a recovery.
    pub last_error: Option<PollError>,
    /// Whether this replica polls the search.
    pub lease_held: bool,
    /// The lease under which it does. `None`: there is none, or none that could end.
    pub lease: Option<Lease>,
    /// The first poll has succeeded, or has failed after trying everything it could.
    pub tried: bool,
}

/// What a successful poll learned.
#[derive(Clone, Debug)]
pub struct SearchResult {
    /// When the poll ended.
    pub at: Timestamp,
    /// The same on [`clock::since_boot`], which nobody sets back.
    pub at_since_boot: Duration,
    /// `totalResults`.
    pub total_results: u64,
    /// How many alerts are tracked.
    pub tracked: u64,
    /// Whether the tracked alerts are the whole result.
    pub complete: bool,
    /// The labels of `groups`.
    pub group_by: Arc<[GroupLabel]>,
    /// Tracked alerts by group, each with one value a label.
    pub groups: Arc<[(Vec<Arc<str>>, u64)]>,
    /// `createdDate` of the oldest tracked alert.
    pub oldest: Option<Timestamp>,
}

/// One poll of the history.
#[derive(Clone, Debug)]
pub struct PollSummary {
    /// When it began.
    pub started: Timestamp,
    /// How long it took.
    pub took: Duration,
    /// API requests it took.
    pub requests: u64,
    /// New events, or why it failed.
    pub outcome: Result<u64, PollError>,
}

/// Why a poll failed.
#[derive(Clone, Debug)]
pub struct PollError {
    /// When.
    pub at: Timestamp,
    /// The label `reason` of `opsramp_poll_failures_total`.
    pub reason: &'static str,
    /// For people: the whole chain of causes, without secrets.
    pub message: String,
}

/// What is known of an account.
#[derive(Clone, Debug, Default)]
pub struct AccountStatus {
    /// How long the last successful token request took.
    pub auth_latency: Option<Duration>,
    /// When the present token expires.
    pub token_expires: Option<Timestamp>,
    /// The last rate limit seen, by tenant id.
    pub rate_limits: BTreeMap<String, RateLimit>,
    /// What is known of its partners' clients; `None`: they are not to be looked up.
    pub discovery: Option<DiscoveryStatus>,
}

/// What is known of the clients of an account's partners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryStatus {
    /// How many are activated, as the last look-ups that succeeded tell; `None`: of a partner none has,
    /// since the account and its partners are these.
    pub clients: Option<usize>,
    /// The partners, at least one.
    pub partners: Vec<PartnerStatus>,
}

/// What is known of the clients of a partner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartnerStatus {
    /// The partner's id.
    pub id: Arc<str>,
    /// Whether its clients have been found, be it before the account was changed: who is to be searched
    /// is known then.
    pub is_known: bool,
    /// Whether the last look-up succeeded, or why it failed; `None` before the first has ended.
    pub last: Option<Result<(), String>>,
}

/// What is known of a sink.
#[derive(Clone, Debug, Default)]
pub struct SinkStatus {
    /// `stdout`, `file`, `journald` or `otlp`.
    pub kind: &'static str,
    /// Events delivered since the start.
    pub delivered: u64,
    /// Events journalled, not yet delivered; `None` while that is not known.
    pub backlog: Option<u64>,
    /// When the oldest of them was journalled.
    pub oldest_pending: Option<Timestamp>,
    /// Why delivery fails at present; `None` while it works.
    pub error: Option<String>,
}

/// The partners of which the same is to be said, together, in the order of the first of them.
pub fn alike<'a, T: PartialEq>(
    told: impl IntoIterator<Item = (&'a Arc<str>, T)>,
) -> Vec<(Vec<&'a str>, T)> {
    let mut alike: Vec<(Vec<&str>, T)> = Vec::new();
    for (partner, what) in told {
        match alike.iter_mut().find(|(_, same)| *same == what) {
            Some((partners, _)) => partners.push(partner),
            None => alike.push((vec![partner], what)),
        }
    }
    alike
}

/// Partners by their ids, in a sentence.
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
    /// Swaps in a search's snapshot.
    pub fn set_search(&self, status: SearchStatus) {
        let key = status.key.clone();
        self.0.searches.write().insert(key, Arc::new(status));
        self.touch();
    }

    /// A search's snapshot.
    #[must_use]
    pub fn search(&self, key: &SearchKey) -> Option<Arc<SearchStatus>> {
        self.0.searches.read().get(key).cloned()
    }

    /// Forgets a search, with all its series.
    pub fn remove_search(&self, key: &SearchKey) {
        self.0.searches.write().remove(key);
        self.touch();
    }

    /// Every search's snapshot, in the order of their keys. Of those whose lease is over it says
    /// nothing any more, even before whoever polled them does: others may show them by now.
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

    /// Every account, in the order of their names.
    #[must_use]
    pub fn accounts(&self) -> BTreeMap<Arc<str>, AccountStatus> {
        self.0.accounts.read().clone()
    }

    /// What is known of the clients of the accounts that have them looked up.
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

    /// Changes what is known of a sink; one that was forgotten stays so.
    pub fn change_sink(&self, name: &str, change: impl FnOnce(&mut SinkStatus)) {
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

    /// Every sink, in the order of their names.
    #[must_use]
    pub fn sinks(&self) -> BTreeMap<Arc<str>, SinkStatus> {
        self.0.sinks.read().clone()
    }

    /// Grows with every change, so that a rendering can be reused until then.
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

    /// Whether the clients of all partners have been found: who is to be searched is known then.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.partners.iter().all(|partner| partner.is_known)
    }
}

// === impl SearchStatus ===

impl SearchStatus {
    /// The snapshot of a search of which nothing is known.
    #[must_use]
    pub fn unknown(key: SearchKey, interval: Duration, stale_after: Duration) -> Self {
        Self {
            key,
            interval,
            stale_after,
            up: None,
            result: None,
            last_requests: 0,
            last_full_read: None,
            next_poll: None,
            polls: VecDeque::new(),
            last_error: None,
            lease_held: false,
            lease: None,
            tried: false,
        }
    }

    /// The snapshot of a search that others poll.
    #[must_use]
    pub fn elsewhere(&self) -> Self {
        Self {
            tried: true,
            ..Self::unknown(self.key.clone(), self.interval, self.stale_after)
        }
    }

    /// Whether it should be held here and could not be taken up.
    #[must_use]
    pub fn could_not_be_taken_up(&self) -> bool {
        !self.lease_held && self.up == Some(false)
    }

    /// What the last successful poll learned, while it is fresh enough to be shown at `now`.
    #[must_use]
    pub fn fresh_result(&self, now: Timestamp) -> Option<&SearchResult> {
        self.result.as_ref().filter(|result| {
            let age = Duration::try_from(now.duration_since(result.at)).unwrap_or_default();
            // Where the clock was set back, the age on it is nothing for as long.
            let passed = clock::since_boot().saturating_sub(result.at_since_boot);
            age.max(passed) <= self.stale_after
        })
    }
}
