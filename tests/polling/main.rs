//! Polling the simulator into a real store: what becomes an event, and what it costs.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on stops"
)]

mod allowance;
mod clients;
mod credentials;
mod events;
mod failures;
mod paging;

use std::{collections::BTreeMap, future::IntoFuture as _, sync::Arc, time::Duration};

use opsramp_exporter::{
    health::Health,
    identity::{EventKind, Tenant},
    metrics::{BuildInfo, Metrics},
    opsramp,
    poll::{Account, AtFirstStart, GroupLabel, LookUp, Plan, PollerEvent, Pollers, SearchOptions},
    record,
    secret::{Secret, SecretSource},
    simulator::{
        self, Action, AlertId, Allowance, DEMO_KEY, DEMO_SECRET, DEMO_TENANT, Endpoint, Fault,
        FaultRule, Oversized, RetryAfter, Simulator, Spec, State, TenantOptions, Ts,
    },
    status::{Board, DiscoveryStatus, PartnerStatus, SearchStatus},
    store::{self, Store},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(120);

/// Well above any page here, and so small that a debug build on a busy machine reads this much
/// within a request's timeout.
const MAX_RESPONSE_SIZE: u64 = 4 << 20;

/// The timeout of requests where tests wait for it.
const SHORT: Duration = Duration::from_secs(3);

const SINK: &str = "test";

/// Returns a world without allowance or life, with so many open alerts.
fn world(alerts: usize) -> simulator::Options {
    simulator::Options {
        allowance: Allowance::unlimited(),
        life: None,
        tenants: vec![tenant(DEMO_TENANT, alerts)],
        ..simulator::Options::default()
    }
}

fn tenant(id: &str, alerts: usize) -> TenantOptions {
    TenantOptions {
        id: id.to_owned(),
        alerts,
        ..TenantOptions::default()
    }
}

/// An account with the usual timeouts, because a busy machine may take seconds to answer. A test
/// that waits for a timeout sets [`SHORT`].
fn account(url: &str, tenants: &[&str]) -> Account {
    Account {
        options: opsramp::Options {
            requests_per_minute: Some(1_000_000),
            max_response_size: MAX_RESPONSE_SIZE,
            ..opsramp::Options::new(
                "default".into(),
                url.to_owned(),
                SecretSource::Value(Secret::new(DEMO_KEY)),
                SecretSource::Value(Secret::new(DEMO_SECRET)),
            )
        },
        tenants: tenants
            .iter()
            .map(|id| Tenant {
                id: (*id).into(),
                name: format!("name of {id}").into(),
            })
            .collect(),
        discovery: None,
    }
}

fn plan(url: &str) -> Plan {
    Plan {
        accounts: vec![account(url, &[DEMO_TENANT])],
        searches: vec![SearchOptions {
            name: "open".into(),
            query: "actions:OPEN".to_owned(),
            interval: Duration::from_millis(100),
            tenants: None,
            page_size: 100,
            full_read_interval: Duration::from_secs(600),
            stale_after: Duration::from_secs(300),
            group_by: vec![GroupLabel::State],
            max_groups: 200,
        }],
        record: record::Options {
            events: EventKind::ALL.to_vec(),
            include_raw: false,
            max_description_length: 4096,
        },
        tenants_are_picked: false,
        at_first_start: AtFirstStart::Emit,
        fetch_details: false,
    }
}

fn metrics(board: &Board) -> Metrics {
    let build = BuildInfo {
        version: "0",
        revision: "0",
        rustversion: "0",
    };
    Metrics::new(board.clone(), build)
}

/// Returns pollers, and what they report to.
fn pollers(store: &Store, health: &Health) -> (Pollers, Board, Metrics) {
    let board = Board::default();
    let metrics = metrics(&board);
    let pollers = Pollers::new(
        store.clone(),
        board.clone(),
        metrics.clone(),
        health.clone(),
    );
    (pollers, board, metrics)
}

/// The polling half of the exporter.
struct Exporter {
    store: Store,
    board: Board,
    metrics: Metrics,
    health: Health,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    folder: Arc<tempfile::TempDir>,
}

/// Opens the SQLite store in that folder.
async fn open_store(folder: &tempfile::TempDir, journal_limit: u64) -> Store {
    let options = store::Options::Sqlite {
        path: folder.path().join("state.db"),
        journal_limit,
    };
    Store::open(&options).await.unwrap()
}

impl Exporter {
    async fn start(plan: Plan) -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), plan).await
    }

    async fn start_in(folder: Arc<tempfile::TempDir>, plan: Plan) -> Self {
        Self::start_with(folder, plan, store::JOURNAL_LIMIT).await
    }

    async fn start_with(folder: Arc<tempfile::TempDir>, plan: Plan, journal_limit: u64) -> Self {
        let store = open_store(&folder, journal_limit).await;
        store.set_sinks(vec![SINK.to_owned()]).await.unwrap();
        let health = Health::default();
        let (mut pollers, board, metrics) = pollers(&store, &health);
        pollers.apply(plan).await.unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = stopped.cancelled() => break,
                    event = pollers.next() => match event {
                        PollerEvent::LookedUp(look_up) => pollers.adopt(*look_up).await,
                        PollerEvent::Failed(error) => panic!("{error:#}"),
                    },
                }
            }
            pollers.stop().await;
        });
        Self {
            store,
            board,
            metrics,
            health,
            stop,
            task,
            folder,
        }
    }

    async fn stop(self) -> Arc<tempfile::TempDir> {
        self.stop.cancel();
        self.task.await.unwrap();
        self.store.close().await;
        self.folder
    }

    /// Returns the records of all events so far.
    async fn events(&self) -> Vec<serde_json::Value> {
        let batch = self
            .store
            .pending(SINK, 1_000_000, usize::MAX)
            .await
            .unwrap();
        batch
            .events
            .iter()
            .map(|pending| serde_json::from_slice(&pending.event.body).unwrap())
            .collect()
    }

    async fn count(&self, event: &str) -> usize {
        self.events()
            .await
            .iter()
            .filter(|record| record["event"] == event)
            .count()
    }

    /// Waits until there are so many events of this kind.
    async fn wait_for(&self, event: &str, count: usize) {
        let what = format!("{count} {event}");
        eventually(&what, || async { self.count(event).await == count }).await;
    }

    fn status(&self) -> Arc<SearchStatus> {
        self.board.searches()[0].clone()
    }

    /// Returns the message of the last error.
    fn last_message(&self) -> String {
        self.status().last_error.clone().unwrap().message
    }

    fn is_complete(&self) -> bool {
        let status = self.status();
        status.up == Some(true) && status.result.as_ref().is_some_and(|result| result.complete)
    }

    fn polls(&self) -> f64 {
        self.sample("opsramp_polls_total{")
    }

    /// Like [`Self::polls`], as of this moment: a rendering that took long is otherwise used for up
    /// to a second, unless the configuration is loaded meanwhile.
    fn polls_now(&self) -> f64 {
        self.metrics.config_loaded(opsramp_exporter::clock::now());
        self.polls()
    }

    /// Returns the sum of the samples whose line begins with the prefix.
    fn sample(&self, prefix: &str) -> f64 {
        sum(&self.scrape(), prefix)
    }

    fn scrape(&self) -> String {
        scrape(&self.metrics)
    }

    async fn wait_until_complete(&self) {
        eventually("the result is known whole", || async { self.is_complete() }).await;
    }

    /// Waits for a poll that begins after now and has ended.
    async fn wait_for_poll(&self) {
        let before = self.polls_now();
        eventually("two more polls begin", || async {
            self.polls() >= before + 2.0
        })
        .await;
    }
}

fn scrape(metrics: &Metrics) -> String {
    let rendering = metrics.rendering(opsramp_exporter::clock::now());
    String::from_utf8(rendering.text.to_vec()).unwrap()
}

/// Returns the sum of the samples whose line begins with the prefix.
fn sum(exposition: &str, prefix: &str) -> f64 {
    exposition
        .lines()
        .filter(|line| line.starts_with(prefix))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "still not so: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn start(options: simulator::Options) -> Simulator {
    Simulator::start(options, "127.0.0.1:0").await.unwrap()
}

/// Returns the open alerts of the tenant, oldest first.
fn open_alerts(simulator: &Simulator) -> Vec<AlertId> {
    simulator.world(|world, _| world.open_alerts(DEMO_TENANT).unwrap())
}

/// Does something to alerts at one stroke, so that no poll comes in between.
fn act_on_all(simulator: &Simulator, ids: &[AlertId], action: Action) {
    simulator.world(|world, now| {
        for id in ids {
            world.act(*id, action, now).unwrap();
        }
    });
}

/// A fault of one page of searches.
fn at_page(page: usize, fault: Fault) -> FaultRule {
    FaultRule {
        page: Some(page),
        ..FaultRule::always(fault).at(Endpoint::Search)
    }
}

/// How often a page of the result was asked for.
fn pages_asked(simulator: &Simulator, page: usize) -> usize {
    let requests = simulator.requests();
    let log = requests.log.iter();
    log.filter(|request| request.page == Some(page)).count()
}
