//! The status, ready to be shown: the board at one moment, filtered, in the words of the API. The
//! page renders it and `/api/v1/status` serializes it, so the two cannot disagree. The keys are a
//! contract (docs/http-api.md).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    metrics::BuildInfo,
    opsramp::Expiry,
    status::{Board, PollError, PollSummary, SearchStatus},
};

/// Everything that is shown, except the alerts.
#[derive(Debug, Serialize)]
pub(super) struct StatusView {
    pub(super) now: Timestamp,
    pub(super) version: &'static str,
    pub(super) revision: &'static str,
    /// Why the process is not healthy or not ready, and what else an operator should know.
    pub(super) problems: Vec<String>,
    pub(super) searches: Vec<SearchView>,
    /// How many searches match; `searches` may hold fewer.
    pub(super) searches_total: usize,
    /// How many of the matching searches are in trouble, shown or not.
    #[serde(skip)]
    pub(super) troubled: usize,
    pub(super) accounts: Vec<AccountView>,
    pub(super) sinks: Vec<SinkView>,
}

/// The state of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SearchState {
    /// The result of the last successful poll is too old to be shown.
    Stale,
    /// The last poll failed; the last result is still shown.
    Failing,
    /// No poll has ended yet.
    Pending,
    /// The last poll succeeded.
    Up,
    /// Another replica polls the search.
    Elsewhere,
}

#[derive(Debug, Serialize)]
pub(super) struct SearchView {
    pub(super) account: Arc<str>,
    pub(super) tenant: Arc<str>,
    pub(super) tenant_id: Arc<str>,
    pub(super) search: Arc<str>,
    pub(super) state: SearchState,
    pub(super) interval_seconds: f64,
    pub(super) stale_after_seconds: f64,
    pub(super) total_results: Option<u64>,
    pub(super) tracked: Option<u64>,
    pub(super) complete: Option<bool>,
    pub(super) open_alerts: Vec<GroupView>,
    pub(super) oldest_open_alert_at: Option<Timestamp>,
    pub(super) last_success_at: Option<Timestamp>,
    pub(super) last_full_read_at: Option<Timestamp>,
    pub(super) next_poll_at: Option<Timestamp>,
    pub(super) last_error: Option<ErrorView>,
    pub(super) lease_held: bool,
    pub(super) polls: Vec<PollView>,
}

#[derive(Debug, Serialize)]
pub(super) struct GroupView {
    pub(super) labels: BTreeMap<&'static str, Arc<str>>,
    /// The labels' values in the order of `group_by`.
    #[serde(skip)]
    pub(super) values: Vec<Arc<str>>,
    pub(super) count: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct PollView {
    pub(super) started_at: Timestamp,
    pub(super) took_seconds: f64,
    pub(super) requests: u64,
    pub(super) events: Option<u64>,
    pub(super) error: Option<ErrorView>,
}

#[derive(Debug, Serialize)]
pub(super) struct ErrorView {
    pub(super) at: Timestamp,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

#[derive(Debug, Serialize)]
pub(super) struct AccountView {
    pub(super) account: Arc<str>,
    pub(super) auth_latency_seconds: Option<f64>,
    pub(super) token_expires_at: Option<Timestamp>,
    pub(super) auth_error: Option<String>,
    pub(super) rate_limits: Vec<RateLimitView>,
}

#[derive(Debug, Serialize)]
pub(super) struct RateLimitView {
    pub(super) tenant: Arc<str>,
    pub(super) tenant_id: String,
    pub(super) limit: u32,
    pub(super) remaining: u32,
    pub(super) reset_at: Timestamp,
}

#[derive(Debug, Serialize)]
pub(super) struct SinkView {
    pub(super) sink: Arc<str>,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) delivered: u64,
    pub(super) backlog: Option<u64>,
    pub(super) oldest_pending_at: Option<Timestamp>,
    pub(super) error: Option<String>,
}

/// Which searches are shown. `None`: all.
#[derive(Clone, Debug, Default)]
pub(super) struct SearchFilter {
    pub(super) account: Option<String>,
    /// The tenant's id or name.
    pub(super) tenant: Option<String>,
    pub(super) search: Option<String>,
    pub(super) state: Option<SearchState>,
    pub(super) limit: Option<usize>,
}

// === impl StatusView ===

impl StatusView {
    pub(super) fn new(
        board: &Board,
        build: BuildInfo,
        problems: Vec<String>,
        filter: &SearchFilter,
        now: Timestamp,
    ) -> Self {
        let all = board.searches();
        let mut matching: Vec<_> = all
            .iter()
            .map(|status| (SearchState::of(status, now), status))
            .filter(|(state, status)| filter.admits(*state, status))
            .collect();
        let searches_total = matching.len();
        let troubled = |(state, _): &&(SearchState, _)| {
            matches!(state, SearchState::Stale | SearchState::Failing)
        };
        let troubled = matching.iter().filter(troubled).count();
        // Searches in trouble come first; the sort is stable, so each state stays in the order of
        // the keys.
        matching.sort_by_key(|(state, _)| *state);
        matching.truncate(filter.limit.unwrap_or(usize::MAX));
        Self {
            now,
            version: build.version,
            revision: build.revision,
            problems,
            searches: matching
                .into_iter()
                .map(|(state, status)| SearchView::new(status, state, now))
                .collect(),
            searches_total,
            troubled,
            accounts: accounts(board, &all, filter, now),
            sinks: sinks(board),
        }
    }
}

fn accounts(
    board: &Board,
    searches: &[Arc<SearchStatus>],
    filter: &SearchFilter,
    now: Timestamp,
) -> Vec<AccountView> {
    let name_of = tenant_names(searches);
    // If this replica asks nothing of an account any more, nothing would end an earlier failure.
    let asking: HashSet<_> = searches
        .iter()
        .filter(|status| status.lease_held)
        .map(|status| &status.key.account)
        .collect();
    board
        .accounts(now)
        .into_iter()
        .filter(|(name, _)| equal(filter.account.as_deref(), name))
        .map(|(name, status)| AccountView {
            auth_latency_seconds: status.auth_latency.map(|latency| latency.as_secs_f64()),
            token_expires_at: status.token_expiry.map(Expiry::at),
            auth_error: status
                .auth_error
                .filter(|_| status.discovery.is_some() || asking.contains(&name)),
            rate_limits: status
                .rate_limits
                .into_iter()
                .map(|(id, seen)| RateLimitView {
                    tenant: name_of(&name, &id),
                    tenant_id: id,
                    limit: seen.limit,
                    remaining: seen.remaining,
                    reset_at: seen.reset_at,
                })
                .filter(|view| filter.admits_tenant(&view.tenant_id, &view.tenant))
                .collect(),
            account: name,
        })
        .collect()
}

/// Returns what tells the name of a tenant by its account and id; the id if no search is for it.
pub(super) fn tenant_names(searches: &[Arc<SearchStatus>]) -> impl Fn(&str, &str) -> Arc<str> {
    let names: HashMap<(&str, &str), &Arc<str>> = searches
        .iter()
        .map(|status| &status.key)
        .map(|key| ((&*key.account, &*key.tenant.id), &key.tenant.name))
        .collect();
    move |account, id| match names.get(&(account, id)) {
        Some(name) => Arc::clone(name),
        None => id.into(),
    }
}

fn sinks(board: &Board) -> Vec<SinkView> {
    board
        .sinks()
        .into_iter()
        .map(|(name, status)| SinkView {
            sink: name,
            kind: status.kind,
            delivered: status.delivered,
            backlog: status.backlog,
            oldest_pending_at: status.oldest_pending,
            error: status.error,
        })
        .collect()
}

// === impl SearchState ===

impl SearchState {
    pub(super) const ALL: [Self; 5] = [
        Self::Stale,
        Self::Failing,
        Self::Pending,
        Self::Up,
        Self::Elsewhere,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Failing => "failing",
            Self::Pending => "pending",
            Self::Up => "up",
            Self::Elsewhere => "elsewhere",
        }
    }

    fn of(status: &SearchStatus, now: Timestamp) -> Self {
        let fresh = status.fresh_result(now).is_some();
        match status.up {
            _ if status.could_not_be_taken_up() => Self::Failing,
            _ if !status.lease_held && status.first_attempt_over => Self::Elsewhere,
            None => Self::Pending,
            Some(_) if status.result.is_some() && !fresh => Self::Stale,
            Some(true) => Self::Up,
            Some(false) => Self::Failing,
        }
    }
}

// === impl SearchView ===

impl SearchView {
    fn new(status: &SearchStatus, state: SearchState, now: Timestamp) -> Self {
        let result = status.fresh_result(now);
        let groups = result.map(|result| {
            let view = |(values, count): &(Vec<Arc<str>>, u64)| GroupView {
                labels: result
                    .group_by
                    .iter()
                    .map(|label| label.as_str())
                    .zip(values.iter().cloned())
                    .collect(),
                values: values.clone(),
                count: *count,
            };
            result.groups.iter().map(view).collect()
        });
        Self {
            account: Arc::clone(&status.key.account),
            tenant: Arc::clone(&status.key.tenant.name),
            tenant_id: Arc::clone(&status.key.tenant.id),
            search: Arc::clone(&status.key.search),
            state,
            interval_seconds: status.interval.as_secs_f64(),
            stale_after_seconds: status.stale_after.as_secs_f64(),
            total_results: result.map(|result| result.total_results),
            tracked: result.map(|result| result.tracked),
            complete: result.map(|result| result.complete),
            open_alerts: groups.unwrap_or_default(),
            oldest_open_alert_at: result.and_then(|result| result.oldest),
            last_success_at: status.result.as_ref().map(|result| result.at),
            last_full_read_at: status.last_full_read,
            next_poll_at: status.next_poll,
            last_error: status.last_error.as_ref().map(ErrorView::new),
            lease_held: status.lease_held,
            polls: status.polls.iter().map(PollView::new).collect(),
        }
    }
}

// === impl PollView ===

impl PollView {
    fn new(poll: &PollSummary) -> Self {
        Self {
            started_at: poll.started,
            took_seconds: poll.took.as_secs_f64(),
            requests: poll.requests,
            events: poll.outcome.as_ref().ok().copied(),
            error: poll.outcome.as_ref().err().map(ErrorView::new),
        }
    }
}

// === impl ErrorView ===

impl ErrorView {
    fn new(error: &PollError) -> Self {
        Self {
            at: error.at,
            reason: error.reason,
            message: error.message.clone(),
        }
    }
}

// === impl SearchFilter ===

impl SearchFilter {
    fn admits(&self, state: SearchState, status: &SearchStatus) -> bool {
        let key = &status.key;
        equal(self.account.as_deref(), &key.account)
            && self.admits_tenant(&key.tenant.id, &key.tenant.name)
            && equal(self.search.as_deref(), &key.search)
            && self.state.is_none_or(|wanted| wanted == state)
    }

    fn admits_tenant(&self, id: &str, name: &str) -> bool {
        let wanted = self.tenant.as_deref();
        equal(wanted, id) || equal(wanted, name)
    }
}

fn equal(wanted: Option<&str>, actual: &str) -> bool {
    wanted.is_none_or(|wanted| wanted == actual)
}
