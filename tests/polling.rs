//! Polling the simulator into a real store: what becomes an event, and what it costs.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on stops"
)]

use std::{collections::BTreeMap, future::IntoFuture as _, sync::Arc, time::Duration};

use opsramp_exporter::{
    health::Health,
    identity::{EventKind, Tenant},
    metrics::{BuildInfo, Metrics},
    opsramp,
    poll::{Account, AtFirstStart, GroupLabel, Happening, LookUp, Plan, Pollers, SearchOptions},
    record,
    secret::{Secret, SecretSource},
    simulator::{
        self, Action, Allowance, DEMO_KEY, DEMO_SECRET, DEMO_TENANT, Endpoint, Fault, FaultRule,
        Oversized, RetryAfter, Simulator, State, TenantOptions, Ts,
    },
    status::{Board, SearchStatus},
    store::{self, Store},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(120);
/// Well above any page here, and so little that a debug build on a busy machine has read past it
/// before a request's time is up.
const MAX_RESPONSE_SIZE: u64 = 4 << 20;
const SINK: &str = "test";

/// A world without allowance or life, with so many open alerts.
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

fn account(url: &str, tenants: &[&str]) -> Account {
    Account {
        options: opsramp::Options {
            timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(1),
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

/// Pollers, and what they report to.
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

/// The exporter's polling half.
struct Exporter {
    store: Store,
    board: Board,
    metrics: Metrics,
    health: Health,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    folder: Arc<tempfile::TempDir>,
}

impl Exporter {
    async fn start(plan: Plan) -> Self {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), plan).await
    }

    async fn start_in(folder: Arc<tempfile::TempDir>, plan: Plan) -> Self {
        Self::start_with(folder, plan, store::JOURNAL_LIMIT).await
    }

    async fn start_with(folder: Arc<tempfile::TempDir>, plan: Plan, journal_limit: u64) -> Self {
        let path = folder.path().join("state.db");
        let options = store::Options::Sqlite {
            path,
            journal_limit,
        };
        let store = Store::open(&options).await.unwrap();
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
                    happening = pollers.next() => match happening {
                        Happening::LookedUp(look_up) => pollers.adopt(look_up).await,
                        Happening::Failed(error) => panic!("{error:#}"),
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

    /// All events so far, as their records.
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

    fn status(&self) -> Arc<SearchStatus> {
        self.board.searches()[0].clone()
    }

    fn is_complete(&self) -> bool {
        let status = self.status();
        status.up == Some(true) && status.result.as_ref().is_some_and(|result| result.complete)
    }

    fn polls(&self) -> f64 {
        self.sample("opsramp_polls_total{")
    }

    /// The sum of the samples whose line begins so.
    fn sample(&self, prefix: &str) -> f64 {
        sum(&self.scrape(), prefix)
    }

    fn scrape(&self) -> String {
        let rendering = self.metrics.rendering(opsramp_exporter::clock::now());
        String::from_utf8(rendering.text.to_vec()).unwrap()
    }

    async fn wait_until_complete(&self) {
        eventually("the result is known whole", || async { self.is_complete() }).await;
    }

    /// Waits for a poll that begins after now and has ended.
    async fn wait_for_poll(&self) {
        let before = self.polls();
        eventually("two more polls begin", || async {
            self.polls() >= before + 2.0
        })
        .await;
    }
}

/// Of the samples whose line begins so.
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

/// From now on every search is answered with these results, instead of what it was `before`.
fn answer(
    simulator: &Simulator,
    before: Option<u64>,
    results: &[serde_json::Value],
    total: usize,
) -> u64 {
    let text = serde_json::json!({
        "results": results, "totalResults": total, "pageNo": 1, "pageSize": 100, "nextPage": false,
    });
    let text = text.to_string();
    let rule = FaultRule::always(Fault::Body { text }).at(Endpoint::Search);
    let number = simulator.inject(rule);
    if let Some(before) = before {
        simulator.remove_fault(before);
    }
    number
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_opens_changes_and_leaves() {
    let simulator = start(world(0)).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    let id = simulator.open_many(DEMO_TENANT, 1).unwrap()[0];
    simulator.set_state(id, State::Warning).unwrap();
    eventually("opened", || async { exporter.count("opened").await == 1 }).await;
    simulator.set_state(id, State::Critical).unwrap();
    eventually("changed", || async { exporter.count("changed").await == 1 }).await;
    simulator.act(id, Action::Acknowledge).unwrap();
    eventually("left", || async { exporter.count("left").await == 1 }).await;
    let events = exporter.events().await;
    let event = |kind: &str| {
        events
            .iter()
            .find(|event| event["event"] == kind)
            .unwrap()
            .clone()
    };
    let changed = event("changed");
    assert_eq!(
        (&changed["state"], &changed["previous_state"]),
        (&"Critical".into(), &"Warning".into())
    );
    assert_eq!(changed["tenant"], "name of client_1");
    let left = event("left");
    assert_eq!(left["reason"], "acknowledged");
    assert_eq!(
        (&left["status"], &left["previous_status"]),
        (&"Acknowledged".into(), &"New".into())
    );
    assert_eq!(left["alert_id"], changed["alert_id"]);
    assert!(exporter.is_complete());
    assert_eq!(exporter.sample("opsramp_search_total_results"), 0.0);
    // It comes back: a new opening, with an id of its own.
    simulator.act(id, Action::Reopen).unwrap();
    eventually("opened again", || async {
        exporter.count("opened").await == 2
    })
    .await;
    let events = exporter.events().await;
    let ids: std::collections::BTreeSet<_> = events
        .iter()
        .map(|event| event["event_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), events.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_repeats_nothing_and_misses_nothing() {
    let simulator = start(world(250)).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    assert_eq!(exporter.count("opened").await, 250);
    let folder = exporter.stop().await;
    let new = simulator.open_many(DEMO_TENANT, 120).unwrap();
    simulator.act(new[0], Action::Close).unwrap();
    let exporter = Exporter::start_in(folder, plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    exporter.wait_for_poll().await;
    assert_eq!(exporter.count("opened").await, 250 + 119);
    assert_eq!(exporter.count("changed").await, 0);
}

/// What is known from the store is compared as what is known from an answer.
#[tokio::test(flavor = "multi_thread")]
async fn blanks_around_a_state_are_no_change_after_a_restart() {
    let alert = |repeats: u32| {
        serde_json::json!({
            "uniqueId": "1", "currentState": "Critical ", "status": " New", "repeatCount": repeats,
        })
    };
    let simulator = start(world(0)).await;
    let before = answer(&simulator, None, &[alert(1)], 1);
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    let folder = exporter.stop().await;
    let exporter = Exporter::start_in(folder, plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    answer(&simulator, Some(before), &[alert(2)], 1);
    exporter.wait_for_poll().await;
    assert_eq!(exporter.count("changed").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_read_that_cannot_be_stored_goes_on_where_it_stopped() {
    let simulator = start(world(1_500)).await;
    let mut plan = plan(&simulator.url());
    plan.searches[0].interval = Duration::from_secs(30);
    let folder = Arc::new(tempfile::tempdir().unwrap());
    // Four pages fill the journal; nobody makes room before that has failed.
    let exporter = Exporter::start_with(folder, plan, 450).await;
    let mut ids = Vec::new();
    let mut failures = 0;
    while ids.len() < 1_500 {
        let last_failure = || exporter.status().last_error.as_ref().map(|error| error.at);
        let before = last_failure();
        let is_complete = || exporter.is_complete();
        eventually("the journal is full, or all is read", || async {
            last_failure() != before || is_complete()
        })
        .await;
        failures += u32::from(last_failure() != before);
        let batch = exporter
            .store
            .pending(SINK, 1_000, usize::MAX)
            .await
            .unwrap();
        let last = batch.events.last().expect("what filled it").position;
        ids.extend(batch.events.iter().map(|pending| {
            let record: serde_json::Value = serde_json::from_slice(&pending.event.body).unwrap();
            record["alert_id"].as_str().unwrap().to_owned()
        }));
        exporter.store.acknowledge(SINK, last, None).await.unwrap();
    }
    exporter.wait_until_complete().await;
    let lines = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((ids.len(), lines), (1_500, 1_500));
    assert_eq!(failures, 3);
    assert_eq!(
        exporter.status().last_error.as_ref().unwrap().reason,
        "store"
    );
    assert_eq!(exporter.sample("opsramp_alert_events_total{"), 1_500.0);
    let requests = simulator.requests().searches(DEMO_TENANT);
    assert!(requests <= 15 + 2 * 3, "{requests} requests");
}

/// Nobody may ever again commit anything that there is room for.
#[tokio::test(flavor = "multi_thread")]
async fn that_the_journal_is_full_is_said_until_nothing_waits_any_more() {
    let simulator = start(world(0)).await;
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let exporter = Exporter::start_with(folder, plan(&simulator.url()), 1).await;
    let waiting = |events| {
        exporter
            .board
            .update_sink(&SINK.into(), |sink| sink.backlog = events)
    };
    exporter.wait_until_complete().await;
    waiting(1);
    let new = simulator.open_many(DEMO_TENANT, 2).unwrap();
    let is_full = || !exporter.health.notices().is_empty();
    eventually("the journal is full", || async { is_full() }).await;
    for id in new {
        simulator.act(id, Action::Close).unwrap();
    }
    eventually("a poll succeeds", || async { exporter.is_complete() }).await;
    exporter.wait_for_poll().await;
    assert!(is_full());
    waiting(0);
    eventually("it is not full any more", || async { !is_full() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_poll_costs_one_request() {
    let simulator = start(world(20_000)).await;
    let mut plan = plan(&simulator.url());
    plan.searches[0].page_size = 500;
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    exporter.wait_for_poll().await;
    let (polls, requests) = (exporter.polls(), simulator.requests().searches(DEMO_TENANT));
    eventually("twenty polls", || async {
        exporter.polls() >= polls + 20.0
    })
    .await;
    let requests = simulator.requests().searches(DEMO_TENANT) - requests;
    let polls = exporter.polls() - polls;
    assert!(
        (requests as f64 - polls).abs() <= 1.0,
        "{requests} requests in {polls} polls"
    );
    assert_eq!(exporter.sample("opsramp_poll_requests{"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_costs_a_request_a_page() {
    let simulator = start(world(3_000)).await;
    let mut plan = plan(&simulator.url());
    plan.searches[0].interval = Duration::from_secs(1);
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    exporter.wait_for_poll().await;
    simulator.reset_requests();
    let polls = exporter.polls();
    simulator.open_many(DEMO_TENANT, 950).unwrap();
    eventually("all are logged", || async {
        exporter.count("opened").await == 3_950
    })
    .await;
    // Polls before and after it cost one each, and one may be under way.
    let requests = simulator.requests().searches(DEMO_TENANT);
    let quiet = exporter.polls() - polls - 1.0;
    assert!(
        requests as f64 - quiet <= 11.0,
        "{requests} requests, {quiet} of quiet polls"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_departure_from_a_long_result_is_noticed_and_explained() {
    let simulator = start(world(1_000)).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    let ids = simulator.world(|world, _| world.open_alerts(DEMO_TENANT).unwrap());
    simulator.act(ids[500], Action::Ticket).unwrap();
    simulator.act(ids[700], Action::Close).unwrap();
    eventually("both have left", || async {
        exporter.count("left").await == 2
    })
    .await;
    let reasons: std::collections::BTreeSet<String> = exporter
        .events()
        .await
        .iter()
        .filter(|event| event["event"] == "left")
        .map(|event| event["reason"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        reasons.into_iter().collect::<Vec<_>>(),
        ["closed", "ticketed"]
    );
    exporter.wait_until_complete().await;
}

/// A stumble of the API does not cost a departure its reason.
#[tokio::test(flavor = "multi_thread")]
async fn why_an_alert_left_is_asked_again_where_that_may_help() {
    let status = |code| Fault::Status {
        code,
        body: None,
        headers: Vec::new(),
    };
    for (fault, times, reason) in [
        (status(503), 2, "acknowledged"),
        (Fault::Reset, 1, "acknowledged"),
        // Who may not ask once may not ask twice.
        (status(403), 1, "unknown"),
    ] {
        let simulator = start(world(1)).await;
        let exporter = Exporter::start(plan(&simulator.url())).await;
        exporter.wait_until_complete().await;
        let name = format!("{fault:?}");
        simulator.inject(FaultRule::next(times, Endpoint::Alert, fault));
        let ids = simulator.world(|world, _| world.open_alerts(DEMO_TENANT).unwrap());
        simulator.act(ids[0], Action::Acknowledge).unwrap();
        eventually("it has left", || async {
            exporter.count("left").await == 1
        })
        .await;
        let events = exporter.events().await;
        let left = events
            .iter()
            .find(|event| event["event"] == "left")
            .unwrap();
        assert_eq!(left["reason"], reason, "{name}");
    }
}

/// Why an alert has left is not told while the test runs.
fn let_own_pages_hang(simulator: &Simulator) {
    simulator.inject(
        FaultRule::always(Fault::SlowHeaders {
            seconds: Duration::from_secs(30),
        })
        .at(Endpoint::Alert),
    );
}

/// Nobody is lost where one alert of an id goes and the next one comes while it is asked why.
#[tokio::test(flavor = "multi_thread")]
async fn an_alert_that_opens_anew_while_its_reason_is_waited_for_has_left_and_opened() {
    let simulator = start(world(1)).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    let_own_pages_hang(&simulator);
    let id = simulator.world(|world, _| world.open_alerts(DEMO_TENANT).unwrap())[0];
    simulator.act(id, Action::Close).unwrap();
    eventually("it is on its way out", || async {
        exporter.sample("opsramp_open_alerts{") == 0.0
    })
    .await;
    simulator.world(|world, now| {
        let members = serde_json::json!({
            "createdDate": "2026-03-01T10:40:47+0000",
            "subject": "second",
        });
        let members = members.as_object().unwrap().clone();
        world.set_members(id, members, now).unwrap();
        world.act(id, Action::Reopen, now).unwrap();
    });
    eventually("left and opened", || async {
        exporter.events().await.len() == 3
    })
    .await;
    // A start goes on where this one stopped.
    let exporter = Exporter::start_in(exporter.stop().await, plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    simulator.clear_faults();
    simulator.act(id, Action::Close).unwrap();
    eventually("it has left", || async {
        exporter.count("left").await == 2
    })
    .await;
    let events = exporter.events().await;
    let told: Vec<_> = events.iter().map(|event| &event["event"]).collect();
    assert_eq!(told, ["opened", "left", "opened", "left"]);
    let reasons = [&events[1]["reason"], &events[3]["reason"]];
    assert_eq!(reasons, ["unknown", "closed"]);
    assert_eq!(events[1]["message"], events[0]["message"]);
    assert_eq!(events[2]["message"], "second");
    let ids: std::collections::BTreeSet<_> = events
        .iter()
        .map(|event| event["event_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), events.len());
}

/// However many leave at once, their lines wait for reasons that do not come only once.
#[tokio::test(flavor = "multi_thread")]
async fn many_departures_wait_for_their_reasons_no_longer_than_one() {
    let simulator = start(world(500)).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    let_own_pages_hang(&simulator);
    // Far down in a long result, so that they are asked for by id, fifty at a time.
    let ids = simulator.world(|world, _| world.open_alerts(DEMO_TENANT).unwrap())[..200].to_vec();
    for id in &ids {
        simulator.act(*id, Action::Close).unwrap();
    }
    let began = Instant::now();
    eventually("all have left", || async {
        exporter.count("left").await == ids.len()
    })
    .await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(25), "{took:?}");
    simulator.clear_faults();
    let id = simulator.open_many(DEMO_TENANT, 1).unwrap()[0];
    eventually("opened", || async { exporter.count("opened").await == 501 }).await;
    simulator.act(id, Action::Close).unwrap();
    eventually("it has left, too", || async {
        exporter.count("left").await == ids.len() + 1
    })
    .await;
    let events = exporter.events().await;
    let mut reasons = events
        .iter()
        .filter(|event| event["event"] == "left")
        .map(|event| event["reason"].as_str().unwrap());
    assert_eq!(reasons.next_back(), Some("closed"), "the next is asked for");
    assert!(reasons.all(|reason| reason == "unknown"));
}

/// A server that cannot be asked by id: two full reads miss the alert, and then its page tells.
#[tokio::test(flavor = "multi_thread")]
async fn a_departure_is_noticed_where_the_search_cannot_be_asked_by_id() {
    let options = simulator::Options {
        search_by_id: false,
        ..world(1_000)
    };
    let simulator = start(options).await;
    let mut plan = plan(&simulator.url());
    plan.searches[0].full_read_interval = Duration::from_millis(100);
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    let ids = simulator.world(|world, _| world.open_alerts(DEMO_TENANT).unwrap());
    simulator.act(ids[500], Action::Ticket).unwrap();
    eventually("it has left", || async {
        exporter.count("left").await == 1
    })
    .await;
    exporter.wait_until_complete().await;
}

/// However the server sorts, clamps and numbers, and whatever it shares seconds between.
#[tokio::test(flavor = "multi_thread")]
async fn every_manner_of_paging_is_read_completely() {
    type Manner = (&'static str, fn(&mut simulator::Options));
    let manners: [Manner; 9] = [
        ("sorted by updated time", |options| options.ts = Ts::Updated),
        ("pages clamped", |options| options.max_page_size = 30),
        ("large pages refused", |options| {
            options.max_page_size = 100;
            options.oversized = Oversized::Reject;
        }),
        ("no nextPageNo", |options| options.next_page_no = false),
        ("a last page without end", |options| {
            options.repeats_last_page = true
        }),
        ("page sizes as shown", |options| {
            options.max_page_size = 100;
            options.page_size_as_shown = true;
        }),
        ("ties in any order", |options| options.unstable_ties = true),
        ("another offset", |options| options.offset_minutes = 330),
        ("expires_in as text", |options| {
            options.expires_in_as_string = true
        }),
    ];
    for (manner, change) in manners {
        let mut options = world(450);
        change(&mut options);
        let simulator = start(options).await;
        let mut plan = plan(&simulator.url());
        plan.searches[0].page_size = 500;
        plan.searches[0].full_read_interval = Duration::from_secs(1);
        let exporter = Exporter::start(plan).await;
        exporter.wait_until_complete().await;
        let ids = simulator.open_many(DEMO_TENANT, 205).unwrap();
        for id in &ids[..5] {
            simulator.act(*id, Action::Suppress).unwrap();
        }
        eventually(manner, || async {
            exporter.is_complete() && exporter.status().result.as_ref().unwrap().tracked == 650
        })
        .await;
        let mut opened = BTreeMap::new();
        for event in exporter.events().await {
            if event["event"] == "opened" {
                *opened.entry(event["alert_id"].to_string()).or_insert(0) += 1;
            }
        }
        assert!(
            (650..=655).contains(&opened.len()),
            "{manner}: {}",
            opened.len()
        );
        assert!(opened.values().all(|count| *count == 1), "{manner}");
    }
}

/// The documentation of 400 has it that it may be a passing fault.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_was_refused_is_asked_for_again_as_it_was() {
    let simulator = start(world(450)).await;
    let mut plan = plan(&simulator.url());
    plan.searches[0].page_size = 500;
    plan.searches[0].full_read_interval = Duration::from_secs(1);
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    // One page shows them all, as long as it may be as large as it is asked for.
    let further_pages = || async {
        let polls = exporter.polls();
        simulator.reset_requests();
        eventually("five polls", || async { exporter.polls() >= polls + 5.0 }).await;
        let requests = simulator.requests();
        requests.log.iter().any(|request| request.page > Some(1))
    };
    let refuse = |times| {
        let refused = Fault::Status {
            code: 400,
            body: None,
            headers: Vec::new(),
        };
        simulator.inject(FaultRule::next(times, Endpoint::Search, refused));
    };
    refuse(1);
    assert!(!further_pages().await);
    refuse(2);
    let ids = simulator.world(|world, _| world.open_alerts(DEMO_TENANT).unwrap());
    simulator.act(ids[300], Action::Suppress).unwrap();
    eventually("less is asked for", &further_pages).await;
    eventually("as much as ever", || async { !further_pages().await }).await;
    assert_eq!(exporter.sample("opsramp_poll_failures_total{"), 0.0);
}

/// Servers that search show no more than the first so many results. What came in sight is followed.
#[tokio::test(flavor = "multi_thread")]
async fn a_departure_is_noticed_where_the_server_does_not_show_the_whole_result() {
    let mut options = world(250);
    options.result_window = Some(300);
    let simulator = start(options).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    let oldest = simulator.world(|world, _| world.open_alerts(DEMO_TENANT).unwrap()[0]);
    simulator.open_many(DEMO_TENANT, 200).unwrap();
    eventually("all are known", || async {
        exporter.count("opened").await == 450
    })
    .await;
    simulator.act(oldest, Action::Ticket).unwrap();
    eventually("it has left", || async {
        exporter.count("left").await == 1
    })
    .await;
    assert_eq!(exporter.sample("opsramp_search_complete{"), 0.0);
    assert_eq!(exporter.sample("opsramp_up{"), 1.0);
}

/// That a server does not show more is no failure of the poll that would read on.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_beyond_what_the_server_shows_is_no_failure() {
    let mut options = world(250);
    options.result_window = Some(300);
    let simulator = start(options).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    simulator.open_many(DEMO_TENANT, 350).unwrap();
    eventually("what is shown is logged", || async {
        exporter.count("opened").await == 550
    })
    .await;
    exporter.wait_for_poll().await;
    assert_eq!(exporter.sample("opsramp_poll_failures_total{"), 0.0);
    assert_eq!(exporter.sample("opsramp_up{"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_has_its_reason_and_heals() {
    let status = |code| Fault::Status {
        code,
        body: None,
        headers: Vec::new(),
    };
    let too_large = MAX_RESPONSE_SIZE + (1 << 20);
    let faults: Vec<(Fault, &str)> = vec![
        (status(500), "http"),
        (status(503), "http"),
        (status(404), "http"),
        (status(410), "http"),
        (status(403), "auth"),
        (status(401), "auth"),
        (Fault::Html, "decode"),
        (Fault::Empty, "decode"),
        (Fault::Truncated, "decode"),
        (Fault::NullResult, "decode"),
        (Fault::NoResults, "decode"),
        (
            Fault::Body {
                text: "null".to_owned(),
            },
            "decode",
        ),
        (Fault::Huge { bytes: too_large }, "too_large"),
        (Fault::GzipBomb { bytes: too_large }, "too_large"),
        (Fault::Reset, "connect"),
        (Fault::ResetMidBody, "connect"),
        (Fault::Stall { bytes: 100 }, "timeout"),
        (
            Fault::SlowHeaders {
                seconds: Duration::from_secs(30),
            },
            "timeout",
        ),
        (
            Fault::Redirect {
                code: 307,
                location: "http://127.0.0.1:9/".to_owned(),
            },
            "http",
        ),
    ];
    for (fault, reason) in faults {
        let name = format!("{fault:?}");
        let simulator = start(world(3)).await;
        let exporter = Exporter::start(plan(&simulator.url())).await;
        exporter.wait_until_complete().await;
        simulator.inject(FaultRule::always(fault).at(Endpoint::Search));
        let series = format!(
            "opsramp_poll_failures_total{{account=\"default\",tenant=\"name of client_1\",search=\"open\",reason=\"{reason}\"}}"
        );
        eventually(&name, || async { exporter.sample(&series) >= 1.0 }).await;
        let scrape = exporter.scrape();
        assert_eq!(sum(&scrape, "opsramp_up{"), 0.0, "{name}");
        assert_eq!(
            sum(&scrape, "opsramp_search_total_results{"),
            3.0,
            "{name}: kept until stale"
        );
        assert_eq!(
            sum(&scrape, "opsramp_poll_failures_total{"),
            sum(&scrape, &series),
            "{name}: of no other reason\n{scrape}"
        );
        simulator.clear_faults();
        simulator.open_many(DEMO_TENANT, 1).unwrap();
        eventually(&name, || async { exporter.count("opened").await == 4 }).await;
        eventually(&name, || async { exporter.sample("opsramp_up{") == 1.0 }).await;
        assert_eq!(exporter.count("left").await, 0, "{name}");
        exporter.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_that_fails_at_a_further_page_shows_nothing_of_the_first() {
    let simulator = start(world(250)).await;
    let mut plan = plan(&simulator.url());
    // The next one knows the first page and succeeds.
    plan.searches[0].interval = Duration::from_secs(2);
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    let failed = Fault::Status {
        code: 500,
        body: None,
        headers: Vec::new(),
    };
    simulator.inject(FaultRule {
        page: Some(2),
        ..FaultRule::always(failed).at(Endpoint::Search)
    });
    simulator.open_many(DEMO_TENANT, 150).unwrap();
    let mut status = exporter.status();
    eventually("a poll fails", || {
        status = exporter.status();
        std::future::ready(status.up == Some(false))
    })
    .await;
    let result = status.result.as_ref().unwrap();
    assert_eq!((result.total_results, result.tracked), (250, 250));
}

/// Failures of the credentials are tried at every interval, and do not count for the back-off of
/// the failure that comes after them.
#[tokio::test(flavor = "multi_thread")]
async fn failures_of_the_credentials_do_not_stretch_the_interval() {
    let simulator = start(world(3)).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    let failures = |reason| {
        exporter.sample(&format!(
            "opsramp_poll_failures_total{{account=\"default\",tenant=\"name of client_1\",search=\"open\",reason=\"{reason}\"}}"
        ))
    };
    let status = |code| Fault::Status {
        code,
        body: None,
        headers: Vec::new(),
    };
    simulator.inject(FaultRule::always(status(403)).at(Endpoint::Search));
    eventually("many failures", || async { failures("auth") >= 15.0 }).await;
    simulator.clear_faults();
    simulator.inject(FaultRule::next(1, Endpoint::Search, status(500)));
    eventually("another failure", || async { failures("http") >= 1.0 }).await;
    eventually("recovery", || async {
        exporter.sample("opsramp_up{") == 1.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_result_under_the_allowance_never_delays_a_new_alert() {
    let simulator = start(simulator::Options {
        allowance: Allowance::default(),
        ..world(12_000)
    })
    .await;
    let mut plan = plan(&simulator.url());
    plan.accounts[0].options.requests_per_minute = None;
    plan.searches[0].interval = Duration::from_secs(3);
    let exporter = Exporter::start(plan).await;
    eventually("the full read waits for the allowance", || async {
        exporter.sample("opsramp_api_requests_total{") >= 20.0
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!exporter.is_complete());
    let before = exporter.sample("opsramp_alert_events_total{");
    simulator.open_many(DEMO_TENANT, 1).unwrap();
    let began = Instant::now();
    eventually("the new alert is logged", || async {
        exporter.sample("opsramp_alert_events_total{") > before
    })
    .await;
    // The allowance would have to be waited for until a minute is over.
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(simulator.requests().with_status(429), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_replaced_at_once_and_one_that_comes_back_is_not_asked_for_again_soon() {
    let simulator = start(world(3)).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    simulator.world(|world, _| world.revoke_tokens(None));
    exporter.wait_for_poll().await;
    assert_eq!(exporter.sample("opsramp_poll_failures_total{"), 0.0);
    assert_eq!(simulator.requests().of(Endpoint::Token), 2);

    simulator.set_options(|options| options.stale_tokens = true);
    simulator.world(|world, _| world.revoke_tokens(None));
    eventually("polls fail", || async {
        exporter.sample("opsramp_up{") == 0.0
    })
    .await;
    exporter.wait_for_poll().await;
    exporter.wait_for_poll().await;
    assert_eq!(simulator.requests().of(Endpoint::Token), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_runs_out_while_a_request_waits_for_its_turn_costs_no_request() {
    let mut options = world(3);
    options.token_lifetime = Duration::from_secs(1);
    let simulator = start(options).await;
    let options = account(&simulator.url(), &[DEMO_TENANT]).options;
    let metrics = metrics(&Board::default()).register_account(&options.name);
    let client = opsramp::Client::new(options, Arc::new(metrics))
        .await
        .unwrap();
    let request = opsramp::SearchRequest {
        query: "actions:OPEN".to_owned(),
        page: 1,
        page_size: 100,
        sorted: true,
    };
    let ask = || client.search(DEMO_TENANT, &request, opsramp::Urgency::Background);
    let wait = Fault::Status {
        code: 429,
        body: None,
        headers: vec![("Retry-After".to_owned(), "2".to_owned())],
    };
    simulator.inject(FaultRule::next(1, Endpoint::Search, wait));
    ask().await.unwrap_err();
    ask().await.unwrap();
    assert_eq!(simulator.requests().with_status(407), 0);
    assert_eq!(simulator.requests().of(Endpoint::Token), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_never_followed_with_a_secret_or_a_token() {
    for (endpoint, reason) in [
        (
            Endpoint::Token,
            "opsramp_auth_failures_total{account=\"default\",reason=\"http\"}",
        ),
        (Endpoint::Search, "opsramp_poll_failures_total{"),
    ] {
        let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        elsewhere.set_nonblocking(true).unwrap();
        let simulator = start(world(3)).await;
        let location = format!("http://{}/auth?secret=1", elsewhere.local_addr().unwrap());
        simulator.inject(
            FaultRule::always(Fault::Redirect {
                code: 307,
                location,
            })
            .at(endpoint),
        );
        let exporter = Exporter::start(plan(&simulator.url())).await;
        eventually("it is an error", || async {
            exporter.sample(reason) >= 1.0
        })
        .await;
        exporter.wait_for_poll().await;
        let asked = elsewhere.accept();
        assert!(asked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
        let message = exporter
            .status()
            .last_error
            .as_ref()
            .unwrap()
            .message
            .clone();
        assert!(
            message.contains("a redirect to http://127.0.0.1:"),
            "{message}"
        );
        assert!(!message.contains("secret=1"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_shown_that_a_server_or_a_proxy_repeats() {
    const TOKEN: &str = r#"{"access_token":"token-0123456789","expires_in":7200}"#;
    for grants in [false, true] {
        // A proxy that answers in the server's name, with what it was sent.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("me:hunter2~proxy@{}", listener.local_addr().unwrap());
        let answer = async move |uri: http::Uri, headers: http::HeaderMap, body: String| {
            let echo = serde_json::json!(format!("{headers:?} {body}")).to_string();
            match (grants, uri.path()) {
                (true, "/auth/oauth/token") => (http::StatusCode::OK, TOKEN.to_owned()),
                (true, _) => (http::StatusCode::OK, echo),
                (false, _) => (http::StatusCode::BAD_REQUEST, echo),
            }
        };
        let proxying = axum::serve(listener, axum::Router::new().fallback(answer)).into_future();
        let proxying = tokio::spawn(proxying);
        let mut plan = plan("http://api.example");
        let options = &mut plan.accounts[0].options;
        options.client_secret = SecretSource::Value(Secret::new("form~se*cret"));
        options.proxy_url = Some(opsramp::ProxyUrl(Secret::new(format!("http://{proxy}"))));
        let exporter = Exporter::start(plan).await;
        eventually("a poll fails", || async {
            exporter.status().last_error.is_some()
        })
        .await;
        let message = exporter.status().last_error.clone().unwrap().message;
        let told = if grants { "no search result" } else { "(400)" };
        assert!(message.contains(told), "{message}");
        // "me:hunter2~proxy" by itself, and as it was sent.
        for secret in ["hunter2", "bWU6aHVudGVyMn5wcm94eQ", "form", "0123456789"] {
            assert!(!message.contains(secret), "{message}");
        }
        proxying.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_secret_is_picked_up_from_its_file() {
    let simulator = start(world(3)).await;
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "wrong\n").unwrap();
    let mut plan = plan(&simulator.url());
    plan.accounts[0].options.client_secret = SecretSource::File(secret.clone());
    let exporter = Exporter::start(plan).await;
    eventually("the credentials are rejected", || async {
        exporter.sample("opsramp_auth_failures_total{account=\"default\",reason=\"rejected\"")
            >= 1.0
    })
    .await;
    assert_eq!(exporter.sample("opsramp_up{"), 0.0);
    let message = exporter
        .status()
        .last_error
        .as_ref()
        .unwrap()
        .message
        .clone();
    assert!(
        message.contains("rejects the credentials (401)") && !message.contains("wrong"),
        "{message}"
    );
    std::fs::write(&secret, format!("{DEMO_SECRET}\n")).unwrap();
    let began = Instant::now();
    exporter.wait_until_complete().await;
    // The same secret would not be sent again before.
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_in_trouble_delay_nobody_else() {
    const INTERVAL: Duration = Duration::from_secs(3);
    let ids: Vec<String> = (0..300).map(|number| format!("client_{number}")).collect();
    let mut options = world(0);
    options.tenants = ids.iter().map(|id| tenant(id, 1)).collect();
    let simulator = start(options).await;
    for hanging in &ids[..3] {
        simulator.inject(FaultRule::always(Fault::SlowHeaders { seconds: PATIENCE }).of(hanging));
    }
    let mut plan = plan(&simulator.url());
    let names: Vec<&str> = ids.iter().map(String::as_str).collect();
    plan.accounts = vec![account(&simulator.url(), &names)];
    plan.searches[0].interval = INTERVAL;
    let exporter = Exporter::start(plan).await;
    let polled_twice = |exporter: &Exporter| {
        let searches = exporter.board.searches();
        searches
            .iter()
            .filter(|status| status.up == Some(true) && status.polls.len() >= 3)
            .count()
    };
    eventually("the others are polled", || async {
        polled_twice(&exporter) == 297
    })
    .await;
    // After the first poll each keeps to its grid.
    for status in exporter
        .board
        .searches()
        .iter()
        .filter(|status| status.up == Some(true))
    {
        let (last, before) = (&status.polls[0], &status.polls[1]);
        let apart = last.started.duration_since(before.started).as_secs_f64();
        let interval = INTERVAL.as_secs_f64();
        assert!(apart < 2.0 * interval, "{}: {apart} s apart", status.key);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_a_partner_appear_leave_and_come_back() {
    let mut options = world(0);
    let client = |id: &str| TenantOptions {
        partner: Some("msp_1".to_owned()),
        ..tenant(id, 2)
    };
    options.tenants = vec![
        tenant("msp_1", 0),
        client("client_1"),
        client("client_2"),
        client("client_3"),
    ];
    let simulator = start(options).await;
    let activate = |id: &str, activated| {
        simulator
            .world(|world, now| world.set_activated(id, activated, now))
            .unwrap();
    };
    activate("client_3", false);
    let mut plan = plan(&simulator.url());
    plan.accounts = vec![account(&simulator.url(), &["msp_1"])];
    plan.accounts[0].discovery = Some(Duration::from_millis(200));
    let exporter = Exporter::start(plan).await;
    let polled = |exporter: &Exporter| -> Vec<String> {
        let searches = exporter.board.searches();
        let up = searches.iter().filter(|status| status.up == Some(true));
        up.map(|status| status.key.tenant.id.to_string()).collect()
    };
    eventually("both are polled", || async {
        polled(&exporter) == ["client_1", "client_2"]
    })
    .await;
    activate("client_3", true);
    activate("client_2", false);
    eventually("one comes, one goes", || async {
        polled(&exporter) == ["client_1", "client_3"]
    })
    .await;
    assert_eq!(
        exporter.sample("opsramp_up{"),
        2.0,
        "the series of the one that is gone disappear"
    );
    activate("client_2", true);
    eventually("it is back", || async { polled(&exporter).len() == 3 }).await;
    exporter.wait_for_poll().await;
    assert_eq!(exporter.count("opened").await, 6, "nothing is logged again");
}

/// Two partners, of two clients and of one.
async fn partners() -> Simulator {
    let client = |id: &str, partner: &str| TenantOptions {
        partner: Some(partner.to_owned()),
        ..tenant(id, 1)
    };
    let mut options = world(0);
    options.tenants = vec![
        tenant("msp_1", 0),
        tenant("msp_2", 0),
        client("client_1", "msp_1"),
        client("client_2", "msp_1"),
        client("client_3", "msp_2"),
    ];
    start(options).await
}

/// Pollers that are told to follow one plan after the other.
struct Reloading {
    pollers: Pollers,
    board: Board,
    plan: Plan,
    _folder: tempfile::TempDir,
}

impl Reloading {
    /// None is followed yet.
    async fn new(plan: Plan) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = store::Options::Sqlite {
            path: folder.path().join("state.db"),
            journal_limit: store::JOURNAL_LIMIT,
        };
        let (pollers, board, _) =
            pollers(&Store::open(&options).await.unwrap(), &Health::default());
        Self {
            pollers,
            board,
            plan,
            _folder: folder,
        }
    }

    async fn reload(&mut self, change: impl FnOnce(&mut Account)) {
        change(&mut self.plan.accounts[0]);
        self.pollers.apply(self.plan.clone()).await.unwrap();
    }

    /// A look-up that is due.
    async fn look_up(&mut self) -> LookUp {
        let next = tokio::time::timeout(PATIENCE, self.pollers.next());
        match next.await.expect("a look-up is due") {
            Happening::LookedUp(look_up) => look_up,
            Happening::Failed(error) => panic!("{error:#}"),
        }
    }

    /// The tenants that are polled.
    fn polled(&self) -> Vec<String> {
        let searches = self.board.searches();
        let tenants = searches.iter().map(|status| &status.key.tenant.id);
        tenants.map(ToString::to_string).collect()
    }
}

/// Of an account whose clients are looked up once.
fn discovering(url: &str, partners: &[&str]) -> Account {
    Account {
        discovery: Some(PATIENCE * 10),
        ..account(url, partners)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_up_of_clients_that_outlives_a_reload_changes_nothing() {
    let simulator = partners().await;
    let url = simulator.url();
    let mut exporter = Reloading::new(plan(&url)).await;
    exporter
        .reload(|account| *account = discovering(&url, &["msp_1"]))
        .await;
    let late = exporter.look_up().await;
    exporter.reload(|account| account.discovery = None).await;
    exporter.pollers.adopt(late).await;
    assert_eq!(exporter.polled(), ["msp_1"], "else alerts come twice");

    exporter
        .reload(|account| *account = discovering(&url, &["msp_1"]))
        .await;
    let late = exporter.look_up().await;
    exporter
        .reload(|account| *account = discovering(&url, &["msp_2"]))
        .await;
    exporter.pollers.adopt(late).await;
    assert_eq!(exporter.polled(), [""; 0], "of another partner");
    let late = exporter.look_up().await;

    let other = partners().await;
    exporter
        .reload(|account| *account = discovering(&other.url(), &["msp_2"]))
        .await;
    exporter.pollers.adopt(late).await;
    assert_eq!(exporter.polled(), [""; 0], "of another server");
    let look_up = exporter.look_up().await;
    exporter.pollers.adopt(look_up).await;
    assert_eq!(exporter.polled(), ["client_3"]);
    exporter.pollers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_other_partners_are_looked_up_at_once_and_those_that_stay_are_polled_on() {
    let simulator = partners().await;
    let url = simulator.url();
    let mut exporter = Reloading::new(plan(&url)).await;
    let stages: [(&[&str], &[&str], &[&str]); 3] = [
        (&["msp_1"], &[], &["client_1", "client_2"]),
        (
            &["msp_1", "msp_2"],
            &["client_1", "client_2"],
            &["client_1", "client_2", "client_3"],
        ),
        (&["msp_2"], &["client_3"], &["client_3"]),
    ];
    for (partners, meanwhile, then) in stages {
        exporter
            .reload(|account| *account = discovering(&url, partners))
            .await;
        assert_eq!(exporter.polled(), meanwhile);
        let look_up = exporter.look_up().await;
        exporter.pollers.adopt(look_up).await;
        assert_eq!(exporter.polled(), then);
    }
    exporter.pollers.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_list_that_is_short_a_client_that_is_deactivated_goes_and_one_that_is_not_shown_stays()
{
    let simulator = partners().await;
    let url = simulator.url();
    let mut exporter = Reloading::new(plan(&url)).await;
    exporter
        .reload(|account| {
            *account = Account {
                discovery: Some(Duration::from_millis(1)),
                ..discovering(&url, &["msp_1", "msp_2"])
            };
        })
        .await;
    let look_up = exporter.look_up().await;
    exporter.pollers.adopt(look_up).await;
    assert_eq!(exporter.polled(), ["client_1", "client_2", "client_3"]);

    let short = serde_json::json!({
        "results": [{ "uniqueId": "client_1", "name": "one", "activated": false }],
        "totalResults": 2,
    });
    let text = short.to_string();
    simulator.inject(FaultRule::always(Fault::Body { text }).at(Endpoint::Clients));
    let look_up = exporter.look_up().await;
    exporter.pollers.adopt(look_up).await;
    assert_eq!(exporter.polled(), ["client_2", "client_3"]);
    exporter.pollers.stop().await;
}

/// With no ceiling of our own, and clocks an hour apart either way.
#[tokio::test(flavor = "multi_thread")]
async fn the_servers_word_on_its_allowance_is_obeyed_whatever_its_clock() {
    for (skew, retry_after, quoted) in [
        (3600, RetryAfter::Seconds, false),
        (-3600, RetryAfter::Date, true),
        (0, RetryAfter::None, false),
    ] {
        let mut options = world(600);
        options.allowance = Allowance {
            client_paginated: 30,
            window: Duration::from_secs(3),
            ..Allowance::default()
        };
        options.clock_skew = skew;
        options.retry_after = retry_after;
        options.quoted_headers = quoted;
        let simulator = start(options).await;
        let mut plan = plan(&simulator.url());
        plan.searches[0].page_size = 10;
        plan.searches[0].interval = Duration::from_secs(5);
        let exporter = Exporter::start(plan).await;
        // The window is a minute by the documentation, and so we pace, though it is shorter here.
        eventually("requests wait", || async {
            exporter.sample("opsramp_api_throttled_seconds_total{") > 2.0
        })
        .await;
        let requests = simulator.requests();
        assert_eq!(requests.with_status(429), 0, "{skew}");
        assert!(
            (10..=30).contains(&requests.searches(DEMO_TENANT)),
            "{skew}: {requests:?}"
        );
        assert_eq!(exporter.sample("opsramp_up{"), 1.0, "{skew}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_of_a_tenant_share_its_allowance_fairly() {
    let mut world = world(2_000);
    // As long as nobody has to wait for their turn, the network decides who reads how fast.
    world.latency = Duration::from_millis(150);
    let simulator = start(world).await;
    let mut plan = plan(&simulator.url());
    plan.accounts[0].options.requests_per_minute = Some(40);
    plan.searches[0].interval = Duration::from_secs(5);
    let other = SearchOptions {
        name: "other".into(),
        query: "actions:OPEN+states:Critical,Warning,Info,Ok".to_owned(),
        ..plan.searches[0].clone()
    };
    plan.searches.push(other);
    let exporter = Exporter::start(plan).await;
    eventually("the allowance is used up", || async {
        exporter.sample("opsramp_api_throttled_seconds_total{") > 1.0
    })
    .await;
    let opened = |search: &str| {
        let labels = "account=\"default\",tenant=\"name of client_1\"";
        let series = "opsramp_alert_events_total";
        exporter.sample(&format!(
            "{series}{{{labels},search=\"{search}\",event=\"opened\"}}"
        ))
    };
    let (one, other) = (opened("open"), opened("other"));
    assert!(
        (one - other).abs() <= 200.0 && one > 0.0,
        "{one} and {other}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_bounded_and_items_that_are_no_alerts_are_skipped() {
    let simulator = start(world(300)).await;
    let mut plan = plan(&simulator.url());
    plan.searches[0].group_by = vec![GroupLabel::Source, GroupLabel::Priority];
    plan.searches[0].max_groups = 5;
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    let groups = Arc::clone(&exporter.status().result.as_ref().unwrap().groups);
    assert_eq!(groups.len(), 6, "five and the others");
    assert_eq!(groups.iter().map(|(_, count)| count).sum::<u64>(), 300);
    assert_eq!(exporter.sample("opsramp_open_alerts{"), 300.0);
    simulator.inject(FaultRule::always(Fault::WrongItems).at(Endpoint::Search));
    exporter.wait_for_poll().await;
    exporter.wait_for_poll().await;
    assert_eq!(exporter.sample("opsramp_up{"), 1.0);
    assert_eq!(exporter.count("left").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_that_were_there_before_can_be_skipped() {
    let simulator = start(world(250)).await;
    let mut plan = plan(&simulator.url());
    plan.at_first_start = AtFirstStart::Skip;
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    assert_eq!(exporter.events().await.len(), 0);
    simulator.open_many(DEMO_TENANT, 2).unwrap();
    eventually("new ones are logged", || async {
        exporter.count("opened").await == 2
    })
    .await;
    let old = simulator.world(|world, _| world.open_alerts(DEMO_TENANT).unwrap())[200];
    simulator.set_state(old, State::Info).unwrap();
    simulator.act(old, Action::Close).unwrap();
    eventually("old ones, too, when they leave", || async {
        exporter.count("left").await == 1
    })
    .await;
}

/// An old alert that enters after the first look at the result is news, however little the result adds up;
/// what is new by the server's clock is in any case.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_skipped_for_ever() {
    let alert = |id: u32, created: &str| {
        serde_json::json!({
            "uniqueId": id.to_string(), "currentState": "Critical", "status": "New",
            "createdDate": created,
        })
    };
    let old = |id| alert(id, "2016-01-01T00:00:00+0000");
    let mut options = world(0);
    options.clock_skew = -3_600;
    let simulator = start(options).await;
    let mut plan = plan(&simulator.url());
    plan.at_first_start = AtFirstStart::Skip;
    // For a moment nothing is found; then there is one more than is shown.
    let nothing = Fault::Body {
        text: r#"{"results": [], "totalResults": 0}"#.to_owned(),
    };
    simulator.inject(FaultRule::next(1, Endpoint::Search, nothing));
    let now = opsramp_exporter::clock::now().as_millisecond();
    let new = alert(9, &(now + 60_000 - 3_600_000).to_string());
    let results = [new.clone(), old(1), old(2)];
    let before = answer(&simulator, None, &results, 4);
    let exporter = Exporter::start(plan).await;
    eventually("it is polled again and again", || async {
        exporter.polls() >= 10.0
    })
    .await;
    let ids = || async {
        let events = exporter.events().await;
        let ids = events.iter().map(|event| event["alert_id"].to_string());
        ids.collect::<String>()
    };
    assert_eq!(ids().await, "\"9\"");
    let results = [old(3), new, old(1), old(2)];
    answer(&simulator, Some(before), &results, 5);
    eventually("it is logged", || async { ids().await == "\"9\"\"3\"" }).await;
}

/// What only an alert's own page tells is known as long as the alert.
#[tokio::test(flavor = "multi_thread")]
async fn details_outlast_the_next_change() {
    let simulator = start(world(1)).await;
    let id = simulator.world(|world, _| world.open_alerts(DEMO_TENANT).unwrap())[0];
    let alert = |state: &str| serde_json::json!({"uniqueId": id.to_string(), "currentState": state, "status": "New"});
    let before = answer(&simulator, None, &[alert("Warning")], 1);
    let mut plan = plan(&simulator.url());
    plan.fetch_details = true;
    plan.searches[0].group_by = vec![GroupLabel::Source];
    plan.accounts[0].options.timeout = PATIENCE;
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    answer(&simulator, Some(before), &[alert("Critical")], 1);
    eventually("it changes", || async {
        exporter.count("changed").await == 1
    })
    .await;
    let events = exporter.events().await;
    assert!(events[0]["source"].is_string(), "{}", events[0]);
    assert_eq!(events[1]["source"], events[0]["source"]);
    exporter.wait_for_poll().await;
    let groups = Arc::clone(&exporter.status().result.as_ref().unwrap().groups);
    assert_eq!(*groups[0].0[0], *events[0]["source"].as_str().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn details_bring_the_description() {
    let simulator = start(world(0)).await;
    let mut plan = plan(&simulator.url());
    plan.fetch_details = true;
    plan.accounts[0].options.timeout = PATIENCE;
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    simulator.open_many(DEMO_TENANT, 3).unwrap();
    eventually("opened", || async { exporter.count("opened").await == 3 }).await;
    assert!(
        exporter
            .events()
            .await
            .iter()
            .all(|event| event["description"].is_string())
    );
    // One that hangs delays a line by two seconds, no more.
    simulator
        .inject(FaultRule::always(Fault::SlowHeaders { seconds: PATIENCE }).at(Endpoint::Alert));
    simulator.open_many(DEMO_TENANT, 1).unwrap();
    let began = Instant::now();
    eventually("opened", || async { exporter.count("opened").await == 4 }).await;
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_clients_that_is_empty_for_a_moment_or_never_ends_stops_nobody() {
    let simulator = partners().await;
    let url = simulator.url();
    let mut exporter = Reloading::new(plan(&url)).await;
    let clients = |shown: serde_json::Value, next_page: bool| Fault::Body {
        text: serde_json::json!({ "results": shown, "nextPage": next_page }).to_string(),
    };
    let two = serde_json::json!([
        { "uniqueId": "client_1", "name": "one", "activated": true },
        { "uniqueId": "client_2", "name": "two", "activated": true },
    ]);
    let endless = FaultRule::always(clients(two, true)).at(Endpoint::Clients);
    let endless = simulator.inject(endless);
    exporter
        .reload(|account| {
            *account = Account {
                discovery: Some(Duration::from_millis(1)),
                ..discovering(&url, &["msp_1"])
            };
        })
        .await;
    let look_up = exporter.look_up().await;
    exporter.pollers.adopt(look_up).await;
    assert_eq!(exporter.polled(), ["client_1", "client_2"]);

    let empty = clients(serde_json::json!([]), false);
    simulator.inject(FaultRule::always(empty).at(Endpoint::Clients));
    simulator.remove_fault(endless);
    let look_up = exporter.look_up().await;
    exporter.pollers.adopt(look_up).await;
    assert_eq!(exporter.polled(), ["client_1", "client_2"]);
    let look_up = exporter.look_up().await;
    exporter.pollers.adopt(look_up).await;
    assert_eq!(exporter.polled(), [""; 0], "the next one agreed");
    exporter.pollers.stop().await;
}
