//! All searches of all tenants of all accounts: which tasks run, and how that changes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    task::{self, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    AtFirstStart, SearchOptions,
    discovery::{AccountClient, Clients, clients_of, told_apart},
    search::{self, Learned, Left, Search, Shared},
};
use crate::{
    clock::Steadiness,
    health::{Health, Notice},
    identity::{SearchKey, Tenant},
    metrics::{AccountMetrics, Metrics},
    opsramp::{self, Allowances, BuildError, Client},
    record,
    status::{Board, SearchStatus, listed},
    store::{Held, Store},
};

/// What is to be polled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The accounts.
    pub accounts: Vec<Account>,
    /// Whether the accounts may have fewer tenants than the searches name, because some were
    /// picked.
    pub tenants_are_picked: bool,
    /// The searches; each runs for every tenant, or for those it names.
    pub searches: Vec<SearchOptions>,
    /// How events are recorded.
    pub record: record::Options,
    /// What becomes of alerts that are open when there is no state yet.
    pub at_first_start: AtFirstStart,
    /// Whether the details of each new alert are asked for.
    pub fetch_details: bool,
}

/// An account of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// How to reach the account.
    pub options: opsramp::Options,
    /// Its tenants.
    pub tenants: Vec<Tenant>,
    /// How often to look up the clients of these (partner) tenants; `None`: never. Each client
    /// becomes a tenant while it is activated.
    pub discovery: Option<Duration>,
}

/// The tasks of all searches, and the API clients that they use.
#[derive(Debug)]
pub struct Pollers {
    store: Store,
    board: Board,
    metrics: Metrics,
    health: Health,
    plan: Option<Plan>,
    clients: BTreeMap<Arc<str>, AccountClient>,
    /// They outlive the clients: the server's count does not begin anew because a client is
    /// replaced, or because another account asks for a tenant.
    allowances: Allowances,
    searches: HashMap<SearchKey, RunningSearch>,
    tasks: JoinSet<SearchKey>,
    look_ups: JoinSet<(Arc<str>, Clients)>,
    /// What is told of tenants that searches name although nobody has them.
    named_in_vain: BTreeMap<String, Notice>,
    steadiness: Arc<Steadiness>,
}

/// A plan that can be followed: everything that could fail has been done.
#[derive(Debug)]
pub struct Prepared {
    plan: Plan,
    /// The API clients of accounts that are new or changed.
    clients: Vec<(Client, AccountMetrics)>,
}

/// What the owner of [`Pollers`] must act on.
#[derive(Debug)]
pub enum PollerEvent {
    /// A task has ended that should not have ended: the process cannot go on.
    Failed(anyhow::Error),
    /// Clients were looked up; hand this to [`Pollers::adopt`].
    LookedUp(Box<LookUp>),
}

/// The outcome of looking up the clients of an account's partners.
#[derive(Debug)]
pub struct LookUp {
    /// Tells this look-up from one that another plan has made void.
    task: task::Id,
    account: Arc<str>,
    found: Clients,
}

#[derive(Debug)]
struct RunningSearch {
    spec: Spec,
    /// Tells this task from an earlier one that is still being joined.
    task: task::Id,
    stop: CancellationToken,
    stopped: tokio::sync::oneshot::Receiver<Left>,
}

/// The part of an ended task's [`Left`] and status that its successor may use. The successor has
/// other options, or its tenant another name.
#[derive(Debug, Default)]
struct Kept {
    held: Option<Held>,
    /// The last snapshot, if the successor has the same query.
    status: Option<Arc<SearchStatus>>,
    /// What was learned of how the server answers, if the successor asks in the same way.
    learned: Learned,
}

/// Everything that a search's task depends on. If any of it changes, a new task replaces the old
/// one.
#[derive(Clone, Debug, PartialEq)]
struct Spec {
    options: Arc<SearchOptions>,
    generation: u64,
    record: Arc<record::Options>,
    at_first_start: AtFirstStart,
    fetch_details: bool,
}

/// Pause between the first polls of two searches. All first polls come within their interval.
const START_PACE: Duration = Duration::from_millis(20);
/// Maximum time between two heartbeats of a search's loop.
const HEARTBEAT: Duration = Duration::from_secs(120);

// === impl Pollers ===

impl Pollers {
    /// Creates the pollers; no task runs yet.
    #[must_use]
    pub fn new(store: Store, board: Board, metrics: Metrics, health: Health) -> Self {
        Self {
            store,
            board,
            metrics,
            health,
            plan: None,
            clients: BTreeMap::new(),
            allowances: Allowances::default(),
            searches: HashMap::new(),
            tasks: JoinSet::new(),
            look_ups: JoinSet::new(),
            named_in_vain: BTreeMap::new(),
            steadiness: Arc::default(),
        }
    }

    /// Sets up what a plan needs. It changes nothing yet, but reads files again.
    ///
    /// # Errors
    /// If an account's client cannot be set up.
    pub async fn prepare(&self, plan: Plan) -> Result<Prepared, BuildError> {
        let mut clients = Vec::new();
        for account in &plan.accounts {
            let name = &account.options.name;
            let made = match self.clients.get(name) {
                Some(known) if *known.client.options() == account.options => {
                    known.client.reload_tls_files().await.map(|()| None)
                }
                _ => {
                    let metrics = self.metrics.register_account(name);
                    let observer = Arc::new(metrics.clone());
                    let options = account.options.clone();
                    let made = Client::new(options, &self.allowances, observer).await;
                    made.map(|client| Some((client, metrics)))
                }
            };
            match made {
                Ok(client) => clients.extend(client),
                Err(error) => {
                    self.forget(accounts_of(&clients).chain([name]));
                    return Err(error);
                }
            }
        }
        Ok(Prepared { plan, clients })
    }

    /// Undoes what [`Pollers::prepare`] has done for a plan that is not followed after all.
    pub fn discard(&self, Prepared { clients, .. }: &Prepared) {
        self.forget(accounts_of(clients));
    }

    /// Removes the series of those of the accounts that would have been new.
    fn forget<'a>(&self, accounts: impl Iterator<Item = &'a Arc<str>>) {
        for name in accounts.filter(|name| !self.clients.contains_key(*name)) {
            self.metrics.remove_account(name);
        }
    }

    /// Makes the tasks follow a plan: [`Pollers::prepare`] and [`Pollers::follow`] in one.
    ///
    /// # Errors
    /// If an account's client cannot be set up. Then nothing has changed.
    pub async fn apply(&mut self, plan: Plan) -> Result<(), BuildError> {
        let prepared = self.prepare(plan).await?;
        self.follow(prepared).await;
        Ok(())
    }

    /// Makes the tasks follow a plan. Tasks that it does not change go on undisturbed, and no
    /// state is lost, whatever changes.
    pub async fn follow(&mut self, Prepared { plan, clients }: Prepared) {
        self.drop_accounts_not_in(&plan);
        self.replace_clients(clients);
        self.look_up_as_planned(&plan);
        self.plan = Some(plan);
        self.follow_plan().await;
        self.tell_of_tenants_named_in_vain();
    }

    fn drop_accounts_not_in(&mut self, plan: &Plan) {
        let accounts = plan.accounts.iter();
        let names: BTreeSet<_> = accounts.map(|account| &account.options.name).collect();
        let dropped = self.clients.extract_if(.., |name, _| !names.contains(name));
        for (name, client) in dropped {
            drop(client);
            self.metrics.remove_account(&name);
            self.board.remove_account(&name);
        }
    }

    /// Replaces the clients of accounts by new ones.
    fn replace_clients(&mut self, clients: Vec<(Client, AccountMetrics)>) {
        for (client, metrics) in clients {
            let old = self.clients.remove(client.account());
            if let Some(old) = &old {
                client.remember_secrets_of(&old.client);
                // The searches of the old client, and its request for a token, may take a while to
                // end.
                old.metrics.mark_replaced();
            }
            let name = Arc::clone(client.account());
            let client = AccountClient::new(client, metrics, old);
            self.clients.insert(name, client);
        }
    }

    /// Looks up the clients of each account's partners, and shows this on the board.
    fn look_up_as_planned(&mut self, plan: &Plan) {
        for account in &plan.accounts {
            if let Some(client) = self.clients.get_mut(&account.options.name) {
                let was_discovering = client.discovery().is_some();
                client.look_up_clients_of(account.partners());
                let discovery = client.discovery();
                if was_discovering || discovery.is_some() {
                    self.board
                        .update_account(&account.options.name, |it| it.discovery = discovery);
                }
            }
        }
    }

    /// Waits for something that must be acted on, looking up clients as they are due. Cancel safe.
    pub async fn next(&mut self) -> PollerEvent {
        loop {
            let due = self.begin_look_ups();
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => match ended {
                    Ok((task, key)) if self.searches.get(&key).is_some_and(|it| it.task == task) => {
                        return PollerEvent::Failed(anyhow::anyhow!("the task of search {key} has ended"));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        let error = anyhow::Error::new(error).context("a search's task failed");
                        return PollerEvent::Failed(error);
                    }
                },
                Some(ended) = self.look_ups.join_next_with_id() => match ended {
                    Ok((task, (account, found))) => {
                        let look_up = LookUp { task, account, found };
                        return PollerEvent::LookedUp(Box::new(look_up));
                    }
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => {
                        let error = anyhow::Error::new(error).context("a look-up of clients failed");
                        return PollerEvent::Failed(error);
                    }
                },
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                else => std::future::pending().await,
            }
        }
    }

    /// Stops all tasks. The leases that they hold are given back when the store is closed.
    pub async fn stop(&mut self) {
        for search in self.searches.values() {
            search.stop.cancel();
        }
        self.searches.clear();
        self.look_ups.abort_all();
        while self.tasks.join_next().await.is_some() {}
    }

    /// The searches that shall run.
    fn wanted(&self) -> BTreeMap<SearchKey, (Client, Spec)> {
        let mut wanted = BTreeMap::new();
        let Some(plan) = &self.plan else {
            return wanted;
        };
        let record = Arc::new(plan.record.clone());
        let searches: Vec<Arc<SearchOptions>> =
            plan.searches.iter().cloned().map(Arc::new).collect();
        for account in &plan.accounts {
            let Some(client) = self.clients.get(&account.options.name) else {
                continue;
            };
            for tenant in told_apart(&account.polled(client)) {
                for options in &searches {
                    if !options.is_for(&tenant.id) {
                        continue;
                    }
                    let key = SearchKey {
                        account: Arc::clone(&account.options.name),
                        tenant: tenant.clone(),
                        search: Arc::clone(&options.name),
                    };
                    let spec = Spec {
                        options: Arc::clone(options),
                        generation: client.generation,
                        record: Arc::clone(&record),
                        at_first_start: plan.at_first_start,
                        fetch_details: plan.fetch_details,
                    };
                    wanted.insert(key, (client.client.clone(), spec));
                }
            }
        }
        wanted
    }

    async fn follow_plan(&mut self) {
        let mut wanted = self.wanted();
        let outdated: Vec<SearchKey> = self
            .searches
            .iter()
            .filter(|(key, running)| {
                wanted
                    .get(*key)
                    .is_none_or(|(_, spec)| *spec != running.spec)
            })
            .map(|(key, _)| key.clone())
            .collect();
        // The store learns this before any task has ended. A task may take long to end, because it
        // waits for the database, and this shall hold up no other search.
        self.store.share_out(wanted.keys().cloned().collect());
        let mut ending = FuturesUnordered::new();
        let mut successors = HashMap::new();
        for key in &outdated {
            successors.extend(wanted.remove_entry(key));
            if let Some(RunningSearch {
                spec,
                stop,
                stopped,
                ..
            }) = self.searches.remove(key)
            {
                let key = key.clone();
                stop.cancel();
                // If the sender was dropped, the task has ended as well.
                ending.push(async move { (key, spec, stopped.await.unwrap_or_default()) });
            }
        }
        let mut started = 0;
        let mut first_poll = |spec: &Spec| {
            let pace = (START_PACE * started).min(spec.options.interval);
            started += 1;
            Instant::now() + pace
        };
        wanted.retain(|key, _| !self.searches.contains_key(key));
        // A tenant with a new name has the same row of the store as before, and its new name may
        // have been another tenant's. Its searches start once the earlier tasks have ended.
        let rows: HashSet<_> = outdated.iter().map(SearchKey::stored_as).collect();
        let labels: HashSet<_> = outdated.iter().map(SearchKey::labels).collect();
        let (renamed, new): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(key, _)| {
            rows.contains(&key.stored_as()) || labels.contains(&key.labels())
        });
        for (key, (client, spec)) in new {
            let first_poll = first_poll(&spec);
            self.start(key, client, spec, Kept::default(), first_poll);
        }
        let heirs: HashMap<_, _> = renamed
            .iter()
            .map(|(key, (_, spec))| (key.stored_as(), (key, spec)))
            .collect();
        let mut inherited = HashMap::new();
        let mut given_back = FuturesUnordered::new();
        loop {
            let (key, before, left) = tokio::select! {
                Some(ended) = ending.next() => ended,
                Some(()) = given_back.next() => continue,
                else => break,
            };
            if let Some((client, spec)) = successors.remove(&key) {
                let kept = self.keep(&key, &before, left, &spec);
                let first_poll = first_poll(&spec);
                self.start(key, client, spec, kept, first_poll);
                continue;
            }
            if let Some((heir, spec)) = heirs.get(&key.stored_as()) {
                inherited.insert((*heir).clone(), self.keep(&key, &before, left, spec));
            } else if let Some(held) = left.held {
                let (store, key) = (self.store.clone(), key.clone());
                given_back.push(async move { search::give_back(&store, key, held).await });
            }
            self.metrics.remove_search(&key);
            self.board.remove_search(&key);
        }
        for (key, (client, spec)) in renamed {
            let kept = inherited.remove(&key).unwrap_or_default();
            let first_poll = first_poll(&spec);
            self.start(key, client, spec, kept, first_poll);
        }
    }

    /// What the successor, whose options are `spec`, takes over from a search that has ended.
    fn keep(&self, key: &SearchKey, before: &Spec, left: Left, spec: &Spec) -> Kept {
        let is_same = spec.options.query == before.options.query;
        Kept {
            // This replica keeps the lease in between.
            held: left.held,
            status: self.board.search(key).filter(|_| is_same),
            learned: if spec.asks_as(before) {
                left.learned
            } else {
                Learned::default()
            },
        }
    }

    fn start(
        &mut self,
        key: SearchKey,
        client: Client,
        spec: Spec,
        kept: Kept,
        first_poll: Instant,
    ) {
        let unknown = search::unknown(&key, &spec.options, &self.store);
        let status = match kept.status {
            Some(status) => SearchStatus {
                key: unknown.key,
                interval: unknown.interval,
                stale_after: unknown.stale_after,
                next_poll: None,
                lease_held: unknown.lease_held || kept.held.is_some(),
                ..(*status).clone()
            },
            None => unknown,
        };
        // The search must be on the board before the first scrape, and before readiness is asked
        // for.
        self.board.set_search(status.clone());
        let stop = CancellationToken::new();
        let (ended, stopped) = tokio::sync::oneshot::channel();
        let search = Box::new(Search {
            key: key.clone(),
            options: Arc::clone(&spec.options),
            client,
            shared: Shared {
                store: self.store.clone(),
                board: self.board.clone(),
                health: self.health.clone(),
                record: Arc::clone(&spec.record),
                at_first_start: spec.at_first_start,
                fetch_details: spec.fetch_details,
                steadiness: Arc::clone(&self.steadiness),
            },
            metrics: self.metrics.register_search(&key),
            heartbeat: self.health.register(format!("search {key}"), HEARTBEAT),
            first_poll,
            status,
            learned: kept.learned,
        });
        let token = stop.clone();
        let name = key.clone();
        let task = self.tasks.spawn(async move {
            // A task that is stopped before it has taken the search up passes on what it was
            // given.
            let mut left = search.run(token).await;
            left.held = left.held.or(kept.held);
            // When all tasks are stopped, nobody receives this.
            ended.send(left).ok();
            name
        });
        self.searches.insert(
            key,
            RunningSearch {
                spec,
                task: task.id(),
                stop,
                stopped,
            },
        );
    }

    // --- clients of partners

    /// The accounts whose clients are looked up, and how often. Accounts with a look-up under way
    /// are left out.
    fn discovering(&self) -> impl Iterator<Item = (&Arc<str>, Duration, &AccountClient)> {
        let accounts = self.plan.iter().flat_map(|plan| &plan.accounts);
        accounts.filter_map(|account| {
            let name = &account.options.name;
            let client = self.clients.get(name)?;
            Some((name, account.discovery?, client)).filter(|_| !client.is_looking_up())
        })
    }

    /// Begins the look-ups that are due. Returns when the next one is due.
    fn begin_look_ups(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let due: Vec<_> = self
            .discovering()
            .filter(|(_, _, client)| client.look_up_at <= now)
            .map(|(name, interval, _)| (Arc::clone(name), interval))
            .collect();
        for (account, interval) in due {
            let Some(known) = self.clients.get_mut(&account) else {
                continue;
            };
            let (client, partners) = (known.client.clone(), known.partners());
            let ids = known
                .discovered
                .keys()
                .map(|it| Arc::clone(&it.id))
                .collect();
            let look_up = self.look_ups.spawn(async move {
                let found = clients_of(&client, partners, ids).await;
                (account, found)
            });
            known.look_up_begun(look_up, now + interval);
        }
        self.discovering()
            .map(|(_, _, client)| client.look_up_at)
            .min()
    }

    /// Makes the tenants of an account follow a look-up of its clients, unless another plan has
    /// made the look-up void.
    pub async fn adopt(&mut self, look_up: LookUp) {
        let LookUp {
            task,
            account,
            found,
        } = look_up;
        let Some(client) = self.clients.get_mut(&account) else {
            return;
        };
        if !client.awaits(task) {
            return;
        }
        if client.take_over(found) {
            self.follow_plan().await;
        }
        // The account's status comes last: until the searches of the new clients are on the board,
        // they would seem to be missing.
        let client = self.clients.get(&account);
        let discovery = client.and_then(AccountClient::discovery);
        self.board
            .update_account(&account, |status| status.discovery = discovery);
        self.tell_of_tenants_named_in_vain();
    }

    /// Tells of tenants that searches name although no account has them. Nothing else shows that
    /// such a search does not run.
    fn tell_of_tenants_named_in_vain(&mut self) {
        let told = self.tenants_named_in_vain();
        self.named_in_vain.retain(|text, _| told.contains(text));
        let accounts = self.plan.iter().flat_map(|plan| &plan.accounts);
        let mut discovering = accounts.filter(|account| account.discovery.is_some());
        let is_certain = discovering.all(|account| {
            let client = self.clients.get(&account.options.name);
            client.is_some_and(AccountClient::are_all_known)
        });
        if !is_certain {
            return;
        }
        for text in told {
            self.named_in_vain.entry(text).or_insert_with_key(|text| {
                tracing::warn!("{text}");
                self.health.notice(text)
            });
        }
    }

    /// Returns sentences about the tenants that searches name although no account has them now.
    fn tenants_named_in_vain(&self) -> BTreeSet<String> {
        let Some(plan) = &self.plan else {
            return BTreeSet::new();
        };
        // Without discovery, the configuration has been checked for this.
        let is_any_discovering = plan.accounts.iter().any(|it| it.discovery.is_some());
        if plan.tenants_are_picked || !is_any_discovering {
            return BTreeSet::new();
        }
        let mut known = HashSet::new();
        for account in &plan.accounts {
            if let Some(client) = self.clients.get(&account.options.name) {
                known.extend(account.polled(client).iter().map(|it| &*it.id));
            }
        }
        let named_in_vain = plan.searches.iter().filter_map(|search| {
            let ids = Some(search.in_vain(&known)).filter(|ids| !ids.is_empty())?;
            let (name, ids) = (&search.name, listed(&ids));
            Some(format!(
                "search {name}: neither a tenant of an account nor an activated client that the server shows: {ids}"
            ))
        });
        named_in_vain.collect()
    }
}

// === impl Spec ===

impl Spec {
    /// Whether the same pages are asked for, and by the same client.
    fn asks_as(&self, other: &Self) -> bool {
        let asked = |it: &Self| (it.generation, it.options.page_size);
        asked(self) == asked(other) && self.options.query == other.options.query
    }
}

// === impl Account ===

impl Account {
    /// The ids of the partners whose clients are looked up.
    fn partners(&self) -> Vec<Arc<str>> {
        let tenants = self.tenants.iter().filter(|_| self.discovery.is_some());
        tenants.map(|tenant| Arc::clone(&tenant.id)).collect()
    }

    /// The tenants that are polled: its own, or the clients of these that its `client` has found.
    fn polled<'a>(&'a self, client: &'a AccountClient) -> Vec<&'a Tenant> {
        let configured: BTreeSet<_> = self.tenants.iter().map(|tenant| &tenant.id).collect();
        // If a partner's clients are tenants of their own, the partner itself is not polled:
        // otherwise each alert would be logged twice.
        let own = self.tenants.iter().filter(|_| self.discovery.is_none());
        let discovered = client.discovered.keys();
        let discovered = discovered.filter(|tenant| !configured.contains(&tenant.id));
        own.chain(discovered).collect()
    }
}

fn accounts_of(clients: &[(Client, AccountMetrics)]) -> impl Iterator<Item = &Arc<str>> {
    clients.iter().map(|(client, _)| client.account())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock,
        poll::testing::{NOBODY, account_options, metrics, open_store, plan, search_options},
        secret::SecretSource,
        simulator::{self, DEMO_KEY, DEMO_SECRET, Simulator},
        store,
    };

    /// Pollers that follow no plan yet.
    async fn pollers(folder: &std::path::Path) -> Pollers {
        let store = open_store(folder, store::JOURNAL_LIMIT).await;
        let board = Board::default();
        let metrics = metrics(&board);
        Pollers::new(store, board, metrics, Health::default())
    }

    #[tokio::test]
    async fn a_search_that_takes_long_to_end_holds_up_no_other_at_a_reload() {
        let search = |name: &&str, interval| SearchOptions {
            interval: Duration::from_secs(interval),
            ..search_options(name)
        };
        let tenant = |id: &str, name: &str| Tenant {
            id: id.into(),
            name: name.into(),
        };
        let plan = |names: &[&str], tenants: &[Tenant], interval: u64| {
            let account = Account {
                options: account_options(NOBODY, "any", "any"),
                tenants: tenants.to_vec(),
                discovery: None,
            };
            let searches = names.iter().map(|name| search(name, interval));
            plan(account, searches.collect())
        };
        let folder = tempfile::tempdir().unwrap();
        let mut pollers = pollers(folder.path()).await;
        let named = |name| [tenant("client_1", name)];
        for (tenants, running) in [
            (
                vec![tenant("client_1", "x")],
                ["x/a", "x/c", "x/d"].as_slice(),
            ),
            // A tenant with another name has the same row of the store.
            (vec![tenant("client_1", "y")], &["y/d"]),
            // Another tenant with this name has the same series.
            (vec![tenant("client_2", "x")], &["x/d"]),
            (vec![tenant("client_2", "z")], &["z/a", "z/b", "z/c", "z/d"]),
        ] {
            let first = plan(&["a", "b", "c"], &named("x"), 60);
            pollers.apply(first).await.unwrap();
            let (ended, slow) = tokio::sync::oneshot::channel();
            let mut searches = pollers.searches.iter_mut();
            let (_, b) = searches.find(|(key, _)| &*key.search == "b").unwrap();
            b.stopped = slow;
            let second = plan(&["a", "b", "c", "d"], &tenants, 90);
            // By then, a busy machine has done all that the slow search does not hold up.
            let applied = tokio::time::timeout(Duration::from_secs(3), pollers.apply(second));
            applied.await.unwrap_err();
            let running_now = pollers.searches.keys();
            let names = running_now.map(|key| format!("{}/{}", key.tenant.name, key.search));
            let names: BTreeSet<_> = names.collect();
            assert!(names.iter().eq(running), "{names:?}");
            ended.send(Left::default()).unwrap_err();
        }
    }

    /// The account's old client may ask for a token until its searches have ended.
    #[tokio::test]
    async fn what_a_client_learns_after_it_was_replaced_is_not_shown() {
        let simulator = Simulator::start(simulator::Options::default(), "127.0.0.1:0");
        let simulator = simulator.await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut pollers = pollers(folder.path()).await;
        let plan = |timeout| {
            let account = Account {
                options: opsramp::Options {
                    timeout: Duration::from_secs(timeout),
                    ..account_options(&simulator.url(), DEMO_KEY, DEMO_SECRET)
                },
                tenants: Vec::new(),
                discovery: None,
            };
            plan(account, Vec::new())
        };
        let client = |pollers: &Pollers| pollers.clients["default"].client.clone();
        pollers.apply(plan(60)).await.unwrap();
        let old = client(&pollers);
        // A plan that is prepared and not followed changes nothing.
        let prepared = pollers.prepare(plan(90)).await.unwrap();
        pollers.discard(&prepared);
        old.token().await.unwrap();
        let expires = |pollers: &Pollers| {
            let accounts = pollers.board.accounts(clock::now());
            accounts.get("default").and_then(|it| it.token_expiry)
        };
        assert!(expires(&pollers).is_some());
        pollers.apply(plan(90)).await.unwrap();
        assert!(expires(&pollers).is_none());
        let new = client(&pollers);
        pollers.apply(plan(60)).await.unwrap();
        new.token().await.unwrap();
        assert!(expires(&pollers).is_none());
        client(&pollers).token().await.unwrap();
        assert!(expires(&pollers).is_some());
    }

    #[tokio::test]
    async fn why_a_token_is_not_renewed_is_told_until_it_is() {
        let options = simulator::Options {
            token_lifetime: Duration::from_secs(3),
            ..simulator::Options::default()
        };
        let simulator = Simulator::start(options, "127.0.0.1:0").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        std::fs::write(&secret, DEMO_SECRET).unwrap();
        let mut pollers = pollers(folder.path()).await;
        let account = Account {
            options: opsramp::Options {
                client_secret: SecretSource::File(secret.clone()),
                ..account_options(&simulator.url(), DEMO_KEY, "")
            },
            tenants: Vec::new(),
            discovery: None,
        };
        pollers.apply(plan(account, Vec::new())).await.unwrap();
        let client = pollers.clients["default"].client.clone();
        client.token().await.unwrap();
        let error = || {
            pollers.board.accounts(clock::now())["default"]
                .auth_error
                .clone()
        };
        assert_eq!(error(), None);

        std::fs::remove_file(&secret).unwrap();
        let until = async |is_told: bool| {
            let asking = async {
                while error().is_some() != is_told {
                    client.token().await.ok();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), asking)
                .await
                .unwrap();
        };
        until(true).await;
        let said = error().unwrap();
        assert!(said.contains(&secret.display().to_string()), "{said}");
        std::fs::write(&secret, DEMO_SECRET).unwrap();
        until(false).await;
    }

    #[tokio::test]
    async fn a_look_up_that_panics_is_no_look_up_that_found_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let mut pollers = pollers(folder.path()).await;
        // A look-up that nobody waits for any more has found nobody either.
        pollers.look_ups.spawn(std::future::pending()).abort();
        pollers
            .look_ups
            .spawn(async { panic!("a mistake of ours") });
        let event = tokio::time::timeout(Duration::from_secs(60), pollers.next()).await;
        assert!(matches!(event, Ok(PollerEvent::Failed(_))), "{event:?}");
    }
}
