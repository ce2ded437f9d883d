//! Searches, and which tenants they name.

use std::{collections::HashMap, sync::Arc};

use super::{Resolver, seconds};
use crate::{
    config::{Account, Config, file, problem::shown_value, units::HumanDuration, yaml::nearest},
    identity::Tenant,
    poll::{GroupLabel, SearchOptions},
};

const DEFAULT_NAME: &str = "open";
const DEFAULT_QUERY: &str = "actions:OPEN";
const LARGEST_PAGE: u32 = 1000;
/// Stands for clients that are yet to be discovered: only searches for every tenant apply to them.
const ANY_CLIENT: &str = "client";

/// More polls a minute than a tenant may make.
struct Excess {
    wanted: f64,
    allowed: u32,
    /// Number of accounts that ask for the tenant.
    accounts: usize,
}

/// What is wrong with a query, if anything is.
pub(crate) fn problem_of_query(query: &str) -> Option<String> {
    if query.trim().is_empty() {
        return Some(format!("is empty; write {DEFAULT_QUERY} or another"));
    }
    let is_one_line = !query.contains(char::is_control);
    (!is_one_line).then(|| "must be one line of text".to_owned())
}

impl Resolver<'_> {
    pub(super) fn searches(
        &self,
        searches: Option<Vec<file::Search>>,
        accounts: &[Account],
    ) -> Vec<SearchOptions> {
        let searches = searches.unwrap_or_else(|| vec![file::Search::open()]);
        let message = "is empty; leave it out for the default, or write a search";
        self.not_empty("searches", &searches, message);
        let resolved: Vec<SearchOptions> = searches
            .into_iter()
            .enumerate()
            .map(|(index, search)| self.search(&format!("searches[{index}]"), search, accounts))
            .collect();
        let names = resolved.iter().map(|search| &*search.name);
        self.no_duplicates(
            names,
            |index| format!("searches[{index}].name"),
            "the name of a search",
        );
        resolved
    }

    fn search(&self, path: &str, search: file::Search, accounts: &[Account]) -> SearchOptions {
        let at = |key: &str| format!("{path}.{key}");
        let query = search.query.unwrap_or_else(|| DEFAULT_QUERY.to_owned());
        if let Some(problem) = problem_of_query(&query) {
            self.problems.add(at("query"), problem);
        }
        let interval = self.duration(&at("interval"), search.interval, seconds(30));
        let default_stale_after = seconds(300).max(interval.saturating_mul(3));
        let stale_after =
            self.duration(&at("stale_after"), search.stale_after, default_stale_after);
        if stale_after < interval && !self.problems.covers(at("interval")) {
            self.problems.add(
                at("stale_after"),
                format!(
                    "{} is less than the interval, {}: gauges would vanish between two polls",
                    HumanDuration(stale_after),
                    HumanDuration(interval)
                ),
            );
        }
        let page_size = search.page_size.unwrap_or(100);
        if !(1..=LARGEST_PAGE).contains(&page_size) {
            self.problems
                .add(at("page_size"), format!("must be from 1 to {LARGEST_PAGE}"));
        }
        let max_groups = search.max_groups.unwrap_or(200);
        if max_groups == 0 {
            self.problems.add(at("max_groups"), "must be at least 1");
        }
        let group_by: Vec<GroupLabel> = search.group_by.map_or_else(
            || vec![GroupLabel::State],
            |words| words.into_iter().map(Into::into).collect(),
        );
        let words = group_by.iter().map(|label| label.as_str());
        self.no_repetitions(&at("group_by"), words);
        if let Some(tenants) = &search.tenants {
            self.known_tenants(&at("tenants"), tenants, accounts);
        }
        SearchOptions {
            name: self.name(&at("name"), search.name, None),
            query,
            interval,
            tenants: search.tenants,
            page_size,
            full_read_interval: self.duration(
                &at("full_read_interval"),
                search.full_read_interval,
                seconds(600).max(interval),
            ),
            stale_after,
            group_by,
            max_groups: usize::try_from(max_groups).unwrap_or(usize::MAX),
        }
    }

    /// Warns, once for each account, of searches that want more polls than a tenant may make. A
    /// tenant of several accounts of a server counts as one of the first's.
    pub(super) fn warn_of_too_many_polls(&mut self, config: &Config) {
        let asking = asking(&config.accounts);
        for (index, account) in config.accounts.iter().enumerate() {
            let path = format!("accounts[{index}]");
            let over: Vec<(String, Excess)> = if account.discover_clients {
                let excess = excess(&[account], &config.searches, ANY_CLIENT);
                let path = format!("{path}.discover_clients");
                excess.map(|excess| (path, excess)).into_iter().collect()
            } else {
                let server = account.options.server();
                let tenants = account.tenants.iter().enumerate();
                tenants
                    .filter_map(|(n, tenant)| {
                        let accounts = asking.get(&(Arc::clone(&server), &*tenant.id))?;
                        if !std::ptr::eq(*accounts.first()?, account) {
                            return None;
                        }
                        let excess = excess(accounts, &config.searches, &tenant.id)?;
                        Some((format!("{path}.tenants[{n}]"), excess))
                    })
                    .collect()
            };
            // Of several tenants with the same excess, the first is named.
            let share = |(_, excess): &&(String, Excess)| excess.wanted / f64::from(excess.allowed);
            let worst = over
                .iter()
                .rev()
                .max_by(|a, b| share(a).total_cmp(&share(b)));
            let Some((path, excess)) = worst else {
                continue;
            };
            let Excess {
                wanted,
                allowed,
                accounts,
            } = excess;
            let whose = match accounts {
                1 => String::new(),
                accounts => format!(" of {accounts} accounts"),
            };
            let others = match over.len() - 1 {
                0 => String::new(),
                1 => ", and of another one".to_owned(),
                others => format!(", and of {others} others"),
            };
            self.warnings.push(format!(
                "{path}: searches{whose} want {} polls a minute of a tenant that may make {allowed}{others}: \
                 they are polled less often than their intervals say; lengthen these, or have fewer searches",
                wanted.ceil()
            ));
        }
    }

    fn known_tenants(&self, path: &str, ids: &[String], accounts: &[Account]) {
        let message = "is empty; leave it out for every tenant, or name tenants";
        self.not_empty(path, ids, message);
        self.no_repetitions(path, ids.iter().map(String::as_str));
        // `--opsramp.tenant` may pick fewer tenants than the file has.
        let is_picked = self.inputs.get("accounts[0].tenants") == Some(&"--opsramp.tenant");
        if is_picked || self.problems.covers("accounts") {
            return;
        }
        let tenants_of = |discover_clients| {
            let accounts = accounts.iter();
            let accounts = accounts.filter(move |it| it.discover_clients == discover_clients);
            accounts.flat_map(|account| &account.tenants)
        };
        let tenants: Vec<&Tenant> = tenants_of(false).collect();
        let partners: Vec<&Tenant> = tenants_of(true).collect();
        let known: Vec<&str> = tenants.iter().map(|tenant| &*tenant.id).collect();
        for (index, id) in ids.iter().enumerate() {
            if known.contains(&id.as_str()) {
                continue;
            }
            let is_called = |tenant: &&&Tenant| *tenant.name == **id;
            let is_partner = |it: &&Tenant| *it.id == **id || *it.name == **id;
            let advice = match tenants.iter().find(is_called) {
                Some(tenant) => format!("is a tenant's name; write its id, {}", tenant.id),
                None if partners.iter().any(is_partner) => {
                    "is a partner, whose clients are searched in its place (discover_clients); \
                     name clients by their ids, or leave `tenants` out for all of them"
                        .to_owned()
                }
                // It may be a client that is yet to be discovered.
                None if !partners.is_empty() => continue,
                None => {
                    // The variable may have been left behind in a shell while the file is right,
                    // so the message names it.
                    let whence = match self.inputs.get("accounts[0].tenants") {
                        Some(input) => format!(", whose tenants come from {input}"),
                        None => String::new(),
                    };
                    let hint = match nearest(id, &known) {
                        Some(near) => format!("; did you mean \"{near}\"?"),
                        None => String::new(),
                    };
                    format!("is no tenant of any account{whence}{hint}")
                }
            };
            self.problems.add(
                format!("{path}[{index}]"),
                format!("\"{}\" {advice}", shown_value(id)),
            );
        }
    }
}

impl file::Search {
    /// Returns the search that is run if none is configured.
    pub(in crate::config) fn open() -> Self {
        Self {
            name: Some(DEFAULT_NAME.to_owned()),
            ..Self::default()
        }
    }
}

/// Returns the accounts that ask a server for a tenant, by server and tenant. Clients that are yet
/// to be discovered are not known.
fn asking(accounts: &[Account]) -> HashMap<(Arc<str>, &str), Vec<&Account>> {
    let mut asking: HashMap<_, Vec<_>> = HashMap::new();
    for account in accounts.iter().filter(|it| !it.discover_clients) {
        let server = account.options.server();
        for tenant in &account.tenants {
            let key = (Arc::clone(&server), &*tenant.id);
            asking.entry(key).or_default().push(account);
        }
    }
    asking
}

fn excess(accounts: &[&Account], searches: &[SearchOptions], tenant: &str) -> Option<Excess> {
    let each: f64 = searches
        .iter()
        .filter(|search| search.is_for(tenant))
        .map(|search| 60.0 / search.interval.as_secs_f64())
        .sum();
    let wanted = each * accounts.len() as f64;
    let ceilings = accounts.iter();
    let allowed = ceilings
        .map(|account| account.options.searches_per_minute(tenant))
        .min()?;
    (wanted > f64::from(allowed)).then_some(Excess {
        wanted,
        allowed,
        accounts: accounts.len(),
    })
}
