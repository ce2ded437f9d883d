//! Renders the counters and the snapshots of the board as one exposition.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;

use super::{
    AccountCells, Metrics, SearchCells, catalog,
    exposition::{Exposition, Labels},
    seconds,
};
use crate::{
    identity::{EventKind, SearchKey, Tenant},
    opsramp::Endpoint,
    status::{AccountStatus, SearchResult, SearchStatus, SinkStatus},
    track::{GroupLabel, OTHER},
};

/// The states whose gauges exist at 0 if alerts are grouped by state alone.
const STATES: [&str; 4] = ["Critical", "Warning", "Info", "Ok"];

/// One search, with its latest snapshot and its counters.
#[derive(Debug)]
struct Search {
    labels: Labels,
    status: Option<Arc<SearchStatus>>,
    cells: Option<Arc<SearchCells>>,
    /// The failed polls by their reasons, read before the status: a failure that is counted shows in
    /// `opsramp_up`, too.
    failures: Vec<(&'static str, u64)>,
}

#[derive(Debug)]
struct Account {
    name: Arc<str>,
    labels: Labels,
    status: AccountStatus,
    cells: Arc<AccountCells>,
}

/// The names of tenants by account and id, as labels show them. If two tenants had the same name,
/// they would make two series with the same labels, for which Prometheus refuses the whole scrape.
/// So a name that is taken is replaced by the tenant's id, or by a longer name if the id is taken
/// as well.
#[derive(Debug, Default)]
struct TenantNames {
    names: BTreeMap<(Arc<str>, Tenant), Arc<str>>,
    taken: BTreeSet<(Arc<str>, Arc<str>)>,
}

impl Search {
    /// Whether this replica polls the search.
    fn is_held(&self) -> bool {
        self.status.as_ref().is_none_or(|status| status.lease_held)
    }
}

pub(super) fn render(metrics: &Metrics, now: Timestamp, size_hint: usize) -> String {
    let mut exposition = Exposition::with_capacity(size_hint);
    let mut tenants = TenantNames::default();
    let searches = searches(metrics, &mut tenants);
    write_results(&mut exposition, &searches, now);
    write_polls(&mut exposition, &searches);
    drop(searches);
    let accounts = accounts(metrics, now);
    write_accounts(&mut exposition, &accounts);
    write_allowances(&mut exposition, &accounts, &mut tenants);
    drop(accounts);
    write_instance(&mut exposition, metrics);
    exposition.into_text()
}

fn searches(metrics: &Metrics, tenants: &mut TenantNames) -> Vec<Search> {
    type Counted = (Arc<SearchCells>, Vec<(&'static str, u64)>);
    let mut parts: BTreeMap<SearchKey, (Option<Arc<SearchStatus>>, Option<Counted>)> =
        BTreeMap::new();
    for (key, cells) in &*metrics.0.searches.read() {
        let failures = cells.failures.get().collect();
        parts.entry(key.clone()).or_default().1 = Some((Arc::clone(cells), failures));
    }
    for status in metrics.0.board.searches() {
        let entry = parts.entry(status.key.clone()).or_default();
        entry.0 = Some(status);
    }
    parts
        .into_iter()
        .map(|(key, (status, counted))| {
            let (cells, failures) = counted.unzip();
            let tenant = tenants.name(&key.account, &key.tenant);
            let labels = Labels::new([
                ("account", &*key.account),
                ("tenant", &*tenant),
                ("search", &*key.search),
            ]);
            Search {
                labels,
                status,
                cells,
                failures: failures.unwrap_or_default(),
            }
        })
        .collect()
}

fn accounts(metrics: &Metrics, now: Timestamp) -> Vec<Account> {
    let mut on_board = metrics.0.board.accounts(now);
    metrics
        .0
        .accounts
        .read()
        .iter()
        .map(|(name, cells)| Account {
            name: Arc::clone(name),
            labels: Labels::new([("account", &**name)]),
            status: on_board.remove(name).unwrap_or_default(),
            cells: Arc::clone(cells),
        })
        .collect()
}

/// Writes what the API said: a pure function of the snapshots and the time.
fn write_results(exposition: &mut Exposition, searches: &[Search], now: Timestamp) {
    let mut samples = exposition.family(&catalog::UP);
    for search in searches.iter().filter(|search| search.is_held()) {
        let up = search.status.as_ref().and_then(|status| status.up);
        samples.put(&search.labels, u8::from(up == Some(true)));
    }

    let fresh = || {
        searches.iter().filter_map(|search| {
            let result = search.status.as_ref()?.fresh_result(now)?;
            Some((&search.labels, result))
        })
    };
    let mut samples = exposition.family(&catalog::SEARCH_TOTAL_RESULTS);
    for (labels, result) in fresh() {
        samples.put(labels, result.total_results);
    }
    let mut samples = exposition.family(&catalog::OPEN_ALERTS);
    for (labels, result) in fresh() {
        for (labels, count) in groups(labels, result) {
            samples.put(&labels, count);
        }
    }
    let mut samples = exposition.family(&catalog::OLDEST_OPEN_ALERT);
    for (labels, result) in fresh() {
        if let Some(oldest) = result.oldest {
            samples.put(labels, seconds(oldest));
        }
    }
    let mut samples = exposition.family(&catalog::SEARCH_COMPLETE);
    for (labels, result) in fresh() {
        samples.put(labels, u8::from(result.complete));
    }
}

/// Returns the groups of a result with their labels.
fn groups(labels: &Labels, result: &SearchResult) -> Vec<(Labels, u64)> {
    let mut groups: Vec<(Labels, u64)> = Vec::with_capacity(result.groups.len() + STATES.len());
    let by_state = *result.group_by == [GroupLabel::State];
    if by_state {
        // The known states come first, in a fixed order.
        let count_of = |state: &str| -> u64 {
            let same = result
                .groups
                .iter()
                .filter(|(values, _)| values.first().is_some_and(|value| **value == *state));
            same.map(|(_, count)| count).sum()
        };
        let counts = STATES.map(|state| (labels.with("state", state), count_of(state)));
        // Alerts without a group of their own may be of any state, so no state is surely at 0.
        let has_overflow = count_of(OTHER) > 0;
        let shown = |(_, count): &(Labels, u64)| *count > 0 || !has_overflow;
        groups.extend(counts.into_iter().filter(shown));
    }
    let known = |values: &[Arc<str>]| {
        let first = values.first();
        by_state && first.is_some_and(|value| STATES.contains(&&**value))
    };
    for (values, count) in result.groups.iter().filter(|(values, _)| !known(values)) {
        let labels = result
            .group_by
            .iter()
            .zip(values)
            .fold(labels.clone(), |labels, (label, value)| {
                labels.with(label.as_str(), value)
            });
        groups.push((labels, *count));
    }
    if result.group_by.is_empty() && groups.is_empty() {
        groups.push((labels.clone(), 0));
    }
    groups
}

fn write_polls(exposition: &mut Exposition, searches: &[Search]) {
    let statuses = || {
        searches
            .iter()
            .filter_map(|search| Some((&search.labels, search.status.as_deref()?)))
    };
    let cells = || {
        searches
            .iter()
            .filter_map(|search| Some((&search.labels, search.cells.as_deref()?)))
    };

    let mut samples = exposition.family(&catalog::POLLS);
    for (labels, cells) in cells() {
        samples.put(labels, cells.polls.get());
    }
    let mut samples = exposition.family(&catalog::POLL_FAILURES);
    for search in searches {
        for (reason, count) in &search.failures {
            samples.put(&search.labels.with("reason", reason), count);
        }
    }
    let mut samples = exposition.family(&catalog::POLL_DURATION);
    for (labels, cells) in cells() {
        samples.put_histogram(labels, &cells.duration.get());
    }
    let held = || statuses().filter(|(_, status)| status.lease_held);
    let mut samples = exposition.family(&catalog::POLL_INTERVAL);
    for (labels, status) in held() {
        samples.put(labels, status.interval.as_secs_f64());
    }
    let mut samples = exposition.family(&catalog::POLL_REQUESTS);
    for (labels, status) in held() {
        samples.put(labels, status.last_requests());
    }
    let mut samples = exposition.family(&catalog::POLL_LAST_SUCCESS);
    for (labels, status) in statuses() {
        if let Some(result) = &status.result {
            samples.put(labels, seconds(result.at));
        }
    }
    let mut samples = exposition.family(&catalog::FULL_READ_LAST_SUCCESS);
    for (labels, status) in statuses() {
        if let Some(at) = status.last_full_read {
            samples.put(labels, seconds(at));
        }
    }
    let mut samples = exposition.family(&catalog::ALERT_EVENTS);
    for (labels, cells) in cells() {
        for (kind, counter) in EventKind::ALL.iter().zip(&cells.events) {
            samples.put(&labels.with("event", kind.as_str()), counter.get());
        }
    }
    let mut samples = exposition.family(&catalog::DETECTION_DELAY);
    for (labels, cells) in cells() {
        samples.put_histogram(labels, &cells.detection_delay.get());
    }
    let mut samples = exposition.family(&catalog::LEASE_HELD);
    for (labels, status) in statuses() {
        samples.put(labels, u8::from(status.lease_held));
    }
}

fn write_accounts(exposition: &mut Exposition, accounts: &[Account]) {
    let mut samples = exposition.family(&catalog::DISCOVERY_UP);
    for account in accounts {
        if let Some(discovery) = &account.status.discovery {
            samples.put(&account.labels, u8::from(discovery.is_up()));
        }
    }
    let mut samples = exposition.family(&catalog::DISCOVERY_KNOWN);
    for account in accounts {
        if let Some(discovery) = &account.status.discovery {
            samples.put(&account.labels, u8::from(discovery.is_known()));
        }
    }
    let mut samples = exposition.family(&catalog::AUTH_LATENCY);
    for account in accounts {
        if let Some(latency) = account.status.auth_latency {
            samples.put(&account.labels, latency.as_secs_f64());
        }
    }
    let mut samples = exposition.family(&catalog::AUTH_REQUESTS);
    for account in accounts {
        samples.put(&account.labels, account.cells.auth_requests.get());
    }
    let mut samples = exposition.family(&catalog::AUTH_FAILURES);
    for account in accounts {
        for (reason, count) in account.cells.auth_failures.get() {
            samples.put(&account.labels.with("reason", reason), count);
        }
    }
    let mut samples = exposition.family(&catalog::TOKEN_EXPIRY);
    for account in accounts {
        if let Some(expiry) = account.status.token_expiry {
            samples.put(&account.labels, seconds(expiry.at()));
        }
    }
    let mut samples = exposition.family(&catalog::API_REQUESTS);
    for account in accounts {
        for ((endpoint, status), count) in &*account.cells.requests.lock() {
            let code = status.map_or_else(|| "error".to_owned(), |status| status.to_string());
            let labels = account
                .labels
                .with("endpoint", Endpoint::ALL[*endpoint].as_str())
                .with("code", &code);
            samples.put(&labels, count);
        }
    }
    let mut samples = exposition.family(&catalog::API_REQUEST_DURATION);
    for account in accounts {
        for (endpoint, histogram) in Endpoint::ALL.iter().zip(&account.cells.durations) {
            let labels = account.labels.with("endpoint", endpoint.as_str());
            samples.put_histogram(&labels, &histogram.get());
        }
    }
}

fn write_allowances(exposition: &mut Exposition, accounts: &[Account], tenants: &mut TenantNames) {
    let mut limits = Vec::new();
    let mut throttled = Vec::new();
    for account in accounts {
        let seconds_of = account.cells.throttled.lock();
        let unnamed = account.status.rate_limits.keys().map(String::as_str);
        for id in unnamed.chain(seconds_of.keys().map(|id| &**id)) {
            tenants.name_unless_known(&account.name, id);
        }
        for (id, name) in tenants.of(&account.name) {
            let labels = account.labels.with("tenant", name);
            throttled.push((
                labels.clone(),
                seconds_of.get(&**id).map_or(0.0, |seconds| seconds.get()),
            ));
            if let Some(limit) = account.status.rate_limits.get(&**id) {
                limits.push((labels, *limit));
            }
        }
    }

    let mut samples = exposition.family(&catalog::API_RATE_LIMIT_LIMIT);
    for (labels, seen) in &limits {
        samples.put(labels, seen.limit);
    }
    let mut samples = exposition.family(&catalog::API_RATE_LIMIT_REMAINING);
    for (labels, seen) in &limits {
        samples.put(labels, seen.remaining);
    }
    let mut samples = exposition.family(&catalog::API_RATE_LIMIT_RESET);
    for (labels, seen) in &limits {
        samples.put(labels, seconds(seen.reset_at));
    }
    let mut samples = exposition.family(&catalog::API_THROTTLED);
    for (labels, waited) in &throttled {
        samples.put(labels, waited);
    }
}

fn write_instance(exposition: &mut Exposition, metrics: &Metrics) {
    let mut gathered = metrics.0.instance.gather();
    // Families are written in the catalogue's order, so those from the board come between the
    // others.
    for family in catalog::ALL {
        if let Some(gathered) = gathered.remove(family.name) {
            exposition.put_gathered(gathered);
        }
        if *family.name == *catalog::SINK_REJECTED.name {
            write_sinks(exposition, metrics);
        }
    }
    debug_assert!(gathered.is_empty(), "not in the catalogue: {gathered:?}");
}

fn write_sinks(exposition: &mut Exposition, metrics: &Metrics) {
    let mut on_board = metrics.0.board.sinks();
    // Before the store is open, a sink is not on the board, because its backlog is unknown.
    let sinks: Vec<(Labels, SinkStatus)> = metrics
        .0
        .sinks
        .read()
        .keys()
        .filter_map(|name| {
            let status = on_board.remove(name)?;
            Some((Labels::new([("sink", &**name)]), status))
        })
        .collect();
    let mut samples = exposition.family(&catalog::SINK_BACKLOG);
    for (labels, status) in &sinks {
        if let Some(backlog) = status.backlog {
            samples.put(labels, backlog);
        }
    }
    let mut samples = exposition.family(&catalog::SINK_OLDEST_PENDING);
    for (labels, status) in &sinks {
        if let Some(oldest) = status.oldest_pending {
            samples.put(labels, seconds(oldest));
        }
    }
}

// === impl TenantNames ===

impl TenantNames {
    fn name(&mut self, account: &Arc<str>, tenant: &Tenant) -> Arc<str> {
        let key = (Arc::clone(account), tenant.clone());
        if let Some(known) = self.names.get(&key) {
            return Arc::clone(known);
        }
        let Tenant { id, name } = tenant;
        // The API chooses the names, so that any name or id may be taken. Each further try is
        // longer.
        let (mut shown, mut next) = (Arc::clone(name), Arc::clone(id));
        while !self.taken.insert((Arc::clone(account), Arc::clone(&shown))) {
            let longer = format!("{name} ({next})").into();
            shown = std::mem::replace(&mut next, longer);
        }
        self.names.insert(key, Arc::clone(&shown));
        shown
    }

    /// Adds a tenant that the API was asked about although no search runs for it, such as a
    /// partner whose clients are looked up.
    fn name_unless_known(&mut self, account: &Arc<str>, id: &str) {
        let id: Arc<str> = id.into();
        let known = self.starting_at(account, Arc::clone(&id)).next();
        if known.is_none_or(|(known, _)| *known != id) {
            let name = Arc::clone(&id);
            self.name(account, &Tenant { id, name });
        }
    }

    /// The ids and names of an account's tenants.
    fn of(&self, account: &Arc<str>) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        self.starting_at(account, "".into())
    }

    fn starting_at(
        &self,
        account: &Arc<str>,
        id: Arc<str>,
    ) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        let first = Tenant {
            id,
            name: "".into(),
        };
        self.names
            .range((Arc::clone(account), first)..)
            .take_while(move |((owner, _), _)| owner == account)
            .map(|((_, tenant), name)| (&tenant.id, name))
    }
}
