//! All searches of all tenants of all accounts: which tasks run, and how that changes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use tokio::{
    task::{self, AbortHandle, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    AtFirstStart, SearchOptions,
    search::{self, Search, Shared},
};
use crate::{
    clock::Steadiness,
    health::Health,
    identity::{SearchKey, Tenant},
    metrics::Metrics,
    opsramp::{self, BuildError, Client, ClientInfo},
    record,
    status::{Board, SearchStatus},
    store::{Held, Store},
};

/// What shall be polled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The accounts.
    pub accounts: Vec<Account>,
    /// The searches; each runs for every tenant, or for those it names.
    pub searches: Vec<SearchOptions>,
    /// What becomes of events.
    pub record: record::Options,
    /// What becomes of alerts that are open when there is no state yet.
    pub at_first_start: AtFirstStart,
    /// Whether each new alert is asked for by id.
    pub fetch_details: bool,
}

/// An account of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// How to reach it.
    pub options: opsramp::Options,
    /// Its tenants.
    pub tenants: Vec<Tenant>,
    /// How often to look up the clients of these (partner) tenants, each of which becomes a tenant
    /// while it is activated; `None`: never.
    pub discovery: Option<Duration>,
}

/// The tasks that run.
#[derive(Debug)]
pub struct Pollers {
    store: Store,
    board: Board,
    metrics: Metrics,
    health: Health,
    plan: Option<Plan>,
    clients: BTreeMap<Arc<str>, AccountClient>,
    searches: HashMap<SearchKey, RunningSearch>,
    tasks: JoinSet<SearchKey>,
    look_ups: JoinSet<(Arc<str>, Result<Clients, opsramp::Error>)>,
    steadiness: Arc<Steadiness>,
}

/// A plan that can be followed: everything that could fail has been done.
#[derive(Debug)]
pub struct Prepared {
    plan: Plan,
    /// Of the accounts that are new or changed.
    clients: Vec<Client>,
}

/// What the owner of [`Pollers`] must act on.
#[derive(Debug)]
pub enum Happening {
    /// A task has ended that should not have: the process cannot go on.
    Failed(anyhow::Error),
    /// Clients were looked up; hand this to [`Pollers::adopt`].
    LookedUp(LookUp),
}

/// The outcome of looking up the clients of an account's partners.
#[derive(Debug)]
pub struct LookUp {
    /// Tells it from one that another plan has made void.
    task: task::Id,
    account: Arc<str>,
    found: Result<Clients, opsramp::Error>,
}

#[derive(Debug)]
struct AccountClient {
    options: opsramp::Options,
    client: Client,
    /// Changes when the client does, so that searches notice.
    generation: u64,
    /// Whose clients are looked up; none without discovery.
    partners: Vec<Arc<str>>,
    /// The clients that were found, with the partner of each.
    discovered: BTreeMap<Tenant, Arc<str>>,
    look_up: Option<UnderWay>,
    /// When clients are to be looked up next, unless they are being looked up.
    look_up_at: Instant,
    failures: u32,
    /// Whether the last look-up lacked most of the clients that are known.
    is_doubted: bool,
}

/// A look-up under way. Dropping it ends it, and makes its outcome void.
#[derive(Debug)]
struct UnderWay(AbortHandle);

#[derive(Debug)]
struct RunningSearch {
    spec: Spec,
    /// Tells it from a predecessor that is still being joined.
    task: task::Id,
    stop: CancellationToken,
    stopped: tokio::sync::oneshot::Receiver<Option<Held>>,
}

/// What a search's task leaves to the one that goes on with other options.
#[derive(Debug, Default)]
struct Kept {
    held: Option<Held>,
    /// What was known, where the same is asked.
    status: Option<Arc<SearchStatus>>,
}

/// Everything a search's task depends on: where it differs, the task begins anew.
#[derive(Clone, Debug, PartialEq)]
struct Spec {
    options: Arc<SearchOptions>,
    generation: u64,
    record: Arc<record::Options>,
    at_first_start: AtFirstStart,
    fetch_details: bool,
}

/// The first pause after a look-up that failed.
const DISCOVERY_PAUSE: Duration = Duration::from_secs(5);
/// A partner's clients are read no further than so many pages of a hundred.
const MAX_CLIENT_PAGES: u64 = 500;
/// Clients of an account that are polled at most. One takes some 40 kB of memory.
const MAX_CLIENTS: usize = 10_000;
/// First polls of many searches are this far apart, but no further than their interval.
const START_PACE: Duration = Duration::from_millis(20);
/// A search's loop promises to come round so often.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(120);

// === impl Pollers ===

impl Pollers {
    /// None runs yet.
    #[must_use]
    pub fn new(store: Store, board: Board, metrics: Metrics, health: Health) -> Self {
        Self {
            store,
            board,
            metrics,
            health,
            plan: None,
            clients: BTreeMap::new(),
            searches: HashMap::new(),
            tasks: JoinSet::new(),
            look_ups: JoinSet::new(),
            steadiness: Arc::default(),
        }
    }

    /// Sets up what a plan needs and changes nothing yet, but that files are read again.
    ///
    /// # Errors
    /// Where an account's client cannot be set up.
    pub async fn prepare(&self, plan: Plan) -> Result<Prepared, BuildError> {
        let mut clients = Vec::new();
        for account in &plan.accounts {
            let name = &account.options.name;
            let made = match self.clients.get(name) {
                Some(known) if known.options == account.options => {
                    known.client.read_files_again().await.map(|()| None)
                }
                _ => {
                    let metrics = self.metrics.register_account(name);
                    let made = Client::new(account.options.clone(), Arc::new(metrics));
                    made.await.map(Some)
                }
            };
            match made {
                Ok(client) => clients.extend(client),
                Err(error) => {
                    self.forget(clients.iter().map(Client::account).chain([name]));
                    return Err(error);
                }
            }
        }
        Ok(Prepared { plan, clients })
    }

    /// Undoes what [`Pollers::prepare`] has done for a plan that is not followed after all.
    pub fn discard(&self, Prepared { clients, .. }: &Prepared) {
        self.forget(clients.iter().map(Client::account));
    }

    /// Removes the series of those accounts that would have been new.
    fn forget<'a>(&self, accounts: impl Iterator<Item = &'a Arc<str>>) {
        for name in accounts.filter(|name| !self.clients.contains_key(*name)) {
            self.metrics.remove_account(name);
        }
    }

    /// Makes the tasks follow a plan, as [`Pollers::prepare`] and [`Pollers::follow`] do.
    ///
    /// # Errors
    /// Where an account's client cannot be set up. Then nothing has changed.
    pub async fn apply(&mut self, plan: Plan) -> Result<(), BuildError> {
        let prepared = self.prepare(plan).await?;
        self.follow(prepared).await;
        Ok(())
    }

    /// Makes the tasks follow a plan. Those that it does not change go on undisturbed; no state
    /// is lost, whatever changes.
    pub async fn follow(&mut self, Prepared { plan, clients }: Prepared) {
        let names: BTreeSet<_> = plan
            .accounts
            .iter()
            .map(|account| &account.options.name)
            .collect();
        let gone: Vec<_> = self
            .clients
            .keys()
            .filter(|name| !names.contains(name))
            .cloned()
            .collect();
        for name in gone {
            self.clients.remove(&name);
            self.metrics.remove_account(&name);
            self.board.remove_account(&name);
        }
        for client in clients {
            let options = plan
                .accounts
                .iter()
                .map(|account| &account.options)
                .find(|options| options.name == *client.account());
            let Some(options) = options.cloned() else {
                continue;
            };
            let old = self.clients.remove(client.account());
            if old.is_some() {
                // Its token and allowances were another client's.
                self.board.remove_account(client.account());
            }
            let generation = old.as_ref().map_or(0, |old| old.generation + 1);
            let (partners, discovered) = old
                .map(|old| (old.partners, old.discovered))
                .unwrap_or_default();
            let account = AccountClient {
                options,
                client: client.clone(),
                generation,
                partners,
                discovered,
                look_up: None,
                look_up_at: Instant::now(),
                failures: 0,
                is_doubted: false,
            };
            self.clients.insert(Arc::clone(client.account()), account);
        }
        for account in &plan.accounts {
            if let Some(client) = self.clients.get_mut(&account.options.name) {
                client.look_up_clients_of(account.partners());
            }
        }
        self.plan = Some(plan);
        self.follow_plan().await;
    }

    /// Waits for something that must be acted on, looking up clients as they are due. Cancel safe.
    pub async fn next(&mut self) -> Happening {
        loop {
            let due = self.begin_look_ups();
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id() => match ended {
                    Ok((task, key)) if self.searches.get(&key).is_some_and(|it| it.task == task) => {
                        return Happening::Failed(anyhow::anyhow!("the task of search {key} has ended"));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        let error = anyhow::Error::new(error).context("a search's task failed");
                        return Happening::Failed(error);
                    }
                },
                Some(ended) = self.look_ups.join_next_with_id() => match ended {
                    Ok((task, (account, found))) => {
                        return Happening::LookedUp(LookUp { task, account, found });
                    }
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => {
                        let error = anyhow::Error::new(error).context("a look-up of clients failed");
                        return Happening::Failed(error);
                    }
                },
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                else => std::future::pending().await,
            }
        }
    }

    /// Stops all tasks. What they hold is given back when the store is closed.
    pub async fn stop(&mut self) {
        for search in self.searches.values() {
            search.stop.cancel();
        }
        self.searches.clear();
        self.look_ups.abort_all();
        while self.tasks.join_next().await.is_some() {}
    }

    /// Which searches shall run.
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
            let configured: BTreeSet<&Arc<str>> =
                account.tenants.iter().map(|tenant| &tenant.id).collect();
            // A partner whose clients are tenants of their own is none itself, or each alert
            // would be logged twice.
            let own = account
                .tenants
                .iter()
                .filter(|_| account.discovery.is_none());
            let discovered = client
                .discovered
                .keys()
                .filter(|tenant| !configured.contains(&tenant.id));
            for tenant in told_apart(&own.chain(discovered).collect::<Vec<_>>()) {
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
        let wanted = self.wanted();
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
        let mut stopping = Vec::new();
        for key in outdated {
            if let Some(running) = self.searches.remove(&key) {
                running.stop.cancel();
                stopping.push((key, running));
            }
        }
        let mut given_back = Vec::new();
        // What goes on with other options stays ours in between.
        let mut kept = HashMap::new();
        for (key, running) in stopping {
            // A sender that was dropped says the same: the task has ended.
            let held = running.stopped.await.ok().flatten();
            if let Some((_, spec)) = wanted.get(&key) {
                let is_same = spec.options.query == running.spec.options.query;
                let status = self.board.search(&key).filter(|_| is_same);
                kept.insert(key, Kept { held, status });
            } else {
                self.metrics.remove_search(&key);
                self.board.remove_search(&key);
                given_back.extend(held.map(|held| self.give_back(key, held)));
            }
        }
        futures_util::future::join_all(given_back).await;
        self.store.share_out(wanted.keys().cloned().collect());
        let mut started = 0;
        for (key, (client, spec)) in wanted {
            if self.searches.contains_key(&key) {
                continue;
            }
            let pace = (START_PACE * started).min(spec.options.interval);
            started += 1;
            let kept = kept.remove(&key).unwrap_or_default();
            self.start(key, client, spec, kept, Instant::now() + pace);
        }
    }

    async fn give_back(&self, search: SearchKey, held: Held) {
        if let Err(error) = self.store.release(held).await {
            tracing::debug!(%search, %error, "could not release the search");
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
                interval: unknown.interval,
                stale_after: unknown.stale_after,
                next_poll: None,
                lease_held: unknown.lease_held || kept.held.is_some(),
                ..(*status).clone()
            },
            None => unknown,
        };
        // From the first scrape on, and before anybody asks whether all are ready.
        self.board.set_search(status.clone());
        let stop = CancellationToken::new();
        let (ended, stopped) = tokio::sync::oneshot::channel();
        let search = Search {
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
        };
        let token = stop.clone();
        let name = key.clone();
        let task = self.tasks.spawn(async move {
            // One that is stopped before it has taken the search up leaves it as it found it.
            let held = search.run(token).await.or(kept.held);
            // Nobody asks when all are stopped.
            ended.send(held).ok();
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

    /// The accounts whose clients are looked up, with how often; those that are waited for left out.
    fn discovering(&self) -> impl Iterator<Item = (&Arc<str>, Duration, &AccountClient)> {
        let accounts = self.plan.iter().flat_map(|plan| &plan.accounts);
        accounts.filter_map(|account| {
            let name = &account.options.name;
            let client = self.clients.get(name)?;
            Some((name, account.discovery?, client)).filter(|_| client.look_up.is_none())
        })
    }

    /// Begins the look-ups that are due. Brings when the next one is.
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
            let (client, partners) = (known.client.clone(), known.partners.clone());
            let look_up = self.look_ups.spawn(async move {
                let found = clients_of(&client, &partners).await;
                (account, found)
            });
            known.look_up = Some(UnderWay(look_up));
            known.look_up_at = now + interval;
        }
        self.discovering()
            .map(|(_, _, client)| client.look_up_at)
            .min()
    }

    /// Makes the tenants of an account follow a look-up of its clients, unless another plan has
    /// changed what was asked.
    pub async fn adopt(&mut self, look_up: LookUp) {
        let LookUp {
            task,
            account,
            found,
        } = look_up;
        let is_awaited = |client: &&mut AccountClient| {
            let under_way = client.look_up.as_ref();
            under_way.is_some_and(|UnderWay(it)| it.id() == task)
        };
        let Some(client) = self.clients.get_mut(&account).filter(is_awaited) else {
            return;
        };
        client.look_up = None;
        match found {
            Ok(found) => {
                let is_short = found.is_short;
                let mut tenants = found.into_tenants();
                let known = &client.discovered;
                let missing = known.keys().filter(|it| !tenants.contains_key(it)).count();
                // An empty list for a moment would stop all of them until the next look-up.
                let is_doubted = 2 * missing > known.len() && !client.is_doubted;
                client.is_doubted = is_doubted;
                if is_short || is_doubted {
                    // Whoever is not shown need not have gone.
                    let ids: BTreeSet<_> = tenants.keys().map(|tenant| &tenant.id).collect();
                    let unseen = client.discovered.iter();
                    let unseen = unseen.filter(|(tenant, _)| !ids.contains(&tenant.id));
                    let unseen: Vec<_> = unseen
                        .map(|(tenant, partner)| (tenant.clone(), Arc::clone(partner)))
                        .collect();
                    tenants.extend(unseen);
                    client.look_up_again();
                    let why = if is_short {
                        "the server counts more clients of the partner than it shows"
                    } else {
                        "the server shows few of the clients of the partner that are known"
                    };
                    tracing::warn!(%account, missing, "{why}; they are looked up again soon");
                } else {
                    client.failures = 0;
                }
                if client.discovered != tenants {
                    let not_in = |one: &BTreeMap<Tenant, _>, other: &BTreeMap<Tenant, _>| {
                        one.keys().filter(|it| !other.contains_key(*it)).count()
                    };
                    let new = not_in(&tenants, &client.discovered);
                    let gone = not_in(&client.discovered, &tenants);
                    tracing::info!(%account, clients = tenants.len(), new, gone, "looked up the clients of the partner");
                    client.discovered = tenants;
                    self.follow_plan().await;
                }
            }
            Err(error) => {
                client.look_up_again();
                tracing::error!(
                    %account,
                    reason = error.reason(),
                    error = %error.chain(),
                    "cannot look up the clients of the partner; those known are polled on"
                );
            }
        }
    }
}

/// Tenants as they are called: two series must not share their labels. Of those with one name, each
/// is called by its id, and none by that of another one.
fn told_apart(tenants: &[&Tenant]) -> Vec<Tenant> {
    let ids: HashSet<&str> = tenants.iter().map(|tenant| &*tenant.id).collect();
    let mut bearers: HashMap<&str, usize> = HashMap::new();
    for tenant in tenants {
        *bearers.entry(&tenant.name).or_default() += 1;
    }
    let called = |tenant: &&Tenant| {
        let Tenant { id, name } = tenant;
        let name = if bearers.get(&**name).is_some_and(|bearers| *bearers > 1) {
            Arc::clone(id)
        } else if name != id && ids.contains(&**name) {
            format!("{name} ({id})").into()
        } else {
            Arc::clone(name)
        };
        let id = Arc::clone(id);
        Tenant { id, name }
    };
    tenants.iter().map(called).collect()
}

/// The activated clients of some partners.
async fn clients_of(client: &Client, partners: &[Arc<str>]) -> Result<Clients, opsramp::Error> {
    let mut found = Clients::default();
    for partner in partners {
        let (mut next, mut shown, mut total) = (Some(1), 0, 0);
        let mut ids = HashSet::new();
        while let Some(page_no) = next.filter(|page| *page <= MAX_CLIENT_PAGES) {
            let page = client.clients(partner, page_no).await?.clients(page_no)?;
            // Paging over a living list can show a client twice, and some servers never end.
            let of_page = page.clients.len();
            let new = page.clients.iter().filter(|it| ids.insert(it.id.clone()));
            let repeated = of_page - new.count();
            shown += (page.shown - repeated) as u64;
            total = page.total.unwrap_or(total);
            if !found.take_in(page.clients, partner) {
                tracing::warn!(
                    account = %client.account(),
                    "the account has more than {MAX_CLIENTS} clients; the others are not polled"
                );
                return Ok(found);
            }
            let is_behind = repeated == of_page && shown >= total;
            next = page.next_page.filter(|_| !is_behind);
        }
        found.is_short |= shown < total;
    }
    Ok(found)
}

/// Clients that look-ups have found.
#[derive(Debug, Default)]
struct Clients {
    /// Their names and partners, by their ids.
    known: BTreeMap<String, (String, Arc<str>)>,
    /// Whether the server showed fewer than it counts.
    is_short: bool,
}

// === impl Account ===

impl Account {
    /// The ids of the partners whose clients are looked up.
    fn partners(&self) -> Vec<Arc<str>> {
        let tenants = self.tenants.iter().filter(|_| self.discovery.is_some());
        tenants.map(|tenant| Arc::clone(&tenant.id)).collect()
    }
}

// === impl UnderWay ===

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.abort();
    }
}

// === impl AccountClient ===

impl AccountClient {
    /// Has the clients of these partners looked up from now on, at once where they are others than
    /// before. Known clients of a partner that is still among them are polled on meanwhile.
    fn look_up_clients_of(&mut self, partners: Vec<Arc<str>>) {
        if self.partners == partners {
            return;
        }
        self.discovered
            .retain(|_, partner| partners.contains(partner));
        self.partners = partners;
        self.look_up = None;
        self.look_up_at = Instant::now();
        self.failures = 0;
        self.is_doubted = false;
    }

    /// Has the clients looked up sooner than usual, and less soon each time in a row.
    fn look_up_again(&mut self) {
        let pause = DISCOVERY_PAUSE * (1 << self.failures.min(6));
        self.failures += 1;
        self.look_up_at = Instant::now() + pause.mul_f64(0.8 + 0.2 * fastrand::f64());
    }
}

impl Clients {
    /// Takes in a page's clients that are activated. Returns whether there was room for all.
    fn take_in(&mut self, page: Vec<ClientInfo>, partner: &Arc<str>) -> bool {
        for found in page.into_iter().filter(|found| found.activated) {
            let full = self.known.len() == MAX_CLIENTS;
            match self.known.entry(found.id) {
                Entry::Occupied(_) => {}
                Entry::Vacant(_) if full => return false,
                Entry::Vacant(place) => {
                    place.insert((found.name, Arc::clone(partner)));
                }
            }
        }
        true
    }

    fn into_tenants(self) -> BTreeMap<Tenant, Arc<str>> {
        let tenant = |(id, (name, partner)): (String, (String, _))| {
            let (id, name) = (id.into(), name.into());
            (Tenant { id, name }, partner)
        };
        self.known.into_iter().map(tenant).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{metrics::BuildInfo, store};

    fn page(numbers: std::ops::Range<usize>) -> Vec<ClientInfo> {
        numbers
            .map(|number| ClientInfo {
                id: format!("client_{number}"),
                name: format!("Client {number}"),
                activated: true,
            })
            .collect()
    }

    #[test]
    fn a_client_that_two_pages_show_counts_once_and_one_that_is_not_activated_does_not() {
        let mut found = Clients::default();
        let mut renamed_and_off = page(1..3);
        renamed_and_off[0].name = "Another".to_owned();
        renamed_and_off[1].activated = false;
        let partner = "msp_1".into();
        assert!(found.take_in(page(0..2), &partner));
        assert!(found.take_in(renamed_and_off, &partner));
        let tenants = found.into_tenants();
        let names: Vec<_> = tenants.keys().map(|tenant| &*tenant.name).collect();
        assert_eq!(names, ["Client 0", "Client 1"]);
    }

    #[tokio::test]
    async fn a_look_up_that_panics_is_no_look_up_that_found_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let options = store::Options::Sqlite {
            path: folder.path().join("state.db"),
            journal_limit: store::JOURNAL_LIMIT,
        };
        let store = Store::open(&options).await.unwrap();
        let board = Board::default();
        let build = BuildInfo {
            version: "0",
            revision: "0",
            rustversion: "0",
        };
        let metrics = Metrics::new(board.clone(), build);
        let mut pollers = Pollers::new(store, board, metrics, Health::default());
        // One that nobody waits for any more is none either.
        pollers.look_ups.spawn(std::future::pending()).abort();
        pollers
            .look_ups
            .spawn(async { panic!("a mistake of ours") });
        let happening = tokio::time::timeout(Duration::from_secs(60), pollers.next()).await;
        assert!(
            matches!(happening, Ok(Happening::Failed(_))),
            "{happening:?}"
        );
    }

    #[test]
    fn tenants_are_told_apart_whatever_names_the_api_gives_them() {
        let tenant = |(id, name): (&str, &str)| Tenant {
            id: id.into(),
            name: name.into(),
        };
        let tenants = [
            ("client_1", "one"),
            ("client_2", "same"),
            ("client_3", "same"),
            ("client_4", "client_2"),
            ("client_5", "client_5"),
        ]
        .map(tenant);
        let called = told_apart(&tenants.iter().collect::<Vec<_>>());
        let names: Vec<_> = called.iter().map(|tenant| &*tenant.name).collect();
        assert_eq!(
            names,
            [
                "one",
                "client_2",
                "client_3",
                "client_2 (client_4)",
                "client_5"
            ]
        );
    }

    #[test]
    fn there_is_room_for_so_many_clients_and_for_seeing_them_again() {
        let mut found = Clients::default();
        let partner = "msp_1".into();
        assert!(found.take_in(page(0..MAX_CLIENTS), &partner));
        assert!(found.take_in(page(MAX_CLIENTS - 100..MAX_CLIENTS), &partner));
        assert!(!found.take_in(page(MAX_CLIENTS - 1..MAX_CLIENTS + 1), &partner));
        assert_eq!(found.into_tenants().len(), MAX_CLIENTS);
    }
}
