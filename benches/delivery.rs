//! Events a second through the journal and a file sink, against the bare speed of the same disk
//! and the same engine in one run; and the time from an answer to a line that is synced. Run it by
//! `cargo bench --bench delivery`.
//!
//! The harness is our own: a run is thousands of syncs of a disk that others use, too. What counts
//! is its ratio to the bare run beside it, not the mean of many runs.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on stops, and prints its figures"
)]

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use opsramp_exporter::{
    clock,
    deliver::{Delivery, Observer},
    health::Health,
    identity::{EventKind, Tenant},
    metrics::{BuildInfo, Metrics},
    opsramp,
    poll::{Account, AtFirstStart, GroupLabel, Plan, Pollers, SearchOptions},
    record,
    secret::{Secret, SecretSource},
    simulator::{
        self, Allowance, DEMO_KEY, DEMO_SECRET, DEMO_TENANT, Simulator, Spec, TenantOptions,
    },
    status::Board,
    store::{Commit, Held, JOURNAL_LIMIT, JournalEvent, Options, Store},
};
use tokio::time::Instant;

#[path = "support/events.rs"]
mod events;
#[path = "support/report.rs"]
mod report;

use events::{LINE, Unobserved, event, file_sink, lines, search};
use report::{Goal, Report, folder, milliseconds, quantile, quick, wanted};

const EVENTS: usize = 100_000;
const BATCH: usize = 2_000;

/// Measures the delays of deliveries.
#[derive(Debug, Default)]
struct Watch(Mutex<Moments>);

#[derive(Debug, Default)]
struct Moments {
    /// When the request came whose answer has a new alert.
    asked: Option<Instant>,
    delays: Vec<Duration>,
}

impl Observer for Watch {
    fn sink_delivered(&self, _: &str, _: u64) {
        let mut moments = self.0.lock().unwrap();
        if let Some(asked) = moments.asked.take() {
            moments.delays.push(asked.elapsed());
        }
    }

    fn sink_error(&self, _: &str) {}
    fn sink_rejected(&self, _: &str, _: u64) {}
}

fn rate(took: Duration) -> f64 {
    EVENTS as f64 / took.as_secs_f64()
}

async fn open(folder: &Path) -> Store {
    let options = Options::Sqlite {
        path: folder.join("state.db"),
        journal_limit: JOURNAL_LIMIT,
    };
    Store::open(&options).await.unwrap()
}

/// Events a second that are journalled and delivered, from the first commit to the last line.
async fn whole(folder: &Path) -> f64 {
    let store = open(folder).await;
    let key = search("s");
    let held: Held = store.take_up(&key, clock::now()).await.unwrap().held;
    let path = folder.join("alerts.jsonl");
    let sink = file_sink(&path);
    let board = Board::default();
    let observer = Arc::new(Unobserved);
    let delivery = Delivery::start(store.clone(), vec![sink], board, observer)
        .await
        .unwrap();
    let batches: Vec<Vec<JournalEvent>> = (0..EVENTS)
        .step_by(BATCH)
        .map(|first| (first..first + BATCH).map(event).collect())
        .collect();
    let began = Instant::now();
    for events in batches {
        let commit = Commit {
            events,
            ..Commit::default()
        };
        store.commit(held, commit, clock::now()).await.unwrap();
    }
    assert!(delivery.drain(Duration::from_secs(60)).await);
    let took = began.elapsed();
    store.close().await;
    assert_eq!(lines(&path), EVENTS);
    rate(took)
}

/// Events a second when the same lines are only written to a file, with one fdatasync a batch.
fn bare_file(folder: &Path) -> f64 {
    let lines: Vec<Vec<u8>> = (0..EVENTS)
        .step_by(BATCH)
        .map(|first| {
            (first..first + BATCH)
                .flat_map(|number| [&event(number).body[..], b"\n"].concat())
                .collect()
        })
        .collect();
    let mut file = File::create(folder.join("bare.jsonl")).unwrap();
    let began = Instant::now();
    for batch in lines {
        file.write_all(&batch).unwrap();
        file.sync_data().unwrap();
    }
    rate(began.elapsed())
}

/// Events a second when the same events are only inserted into a table, with one commit a batch.
fn bare_sqlite(folder: &Path) -> f64 {
    let mut connection = rusqlite::Connection::open(folder.join("bare.db")).unwrap();
    connection.execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
        CREATE TABLE journal (position INTEGER PRIMARY KEY, event_id BLOB, at INTEGER, body BLOB) STRICT;").unwrap();
    let events: Vec<JournalEvent> = (0..EVENTS).map(event).collect();
    let began = Instant::now();
    for batch in events.chunks(BATCH) {
        let transaction = connection.transaction().unwrap();
        {
            let mut insert = transaction
                .prepare_cached("INSERT INTO journal (event_id, at, body) VALUES (?1, ?2, ?3)")
                .unwrap();
            for event in batch {
                let at = event.at.as_microsecond();
                insert
                    .execute((event.event_id.as_bytes(), at, &event.body[..]))
                    .unwrap();
            }
        }
        transaction.commit().unwrap();
    }
    rate(began.elapsed())
}

/// The times from the request whose answer has a new alert to the acknowledgement of its synced
/// line.
async fn delays(folder: &Path, wanted: usize) -> Vec<Duration> {
    let options = simulator::Options {
        allowance: Allowance::unlimited(),
        tenants: vec![TenantOptions {
            id: DEMO_TENANT.to_owned(),
            alerts: 36,
            ..TenantOptions::default()
        }],
        ..simulator::Options::default()
    };
    let simulator = Simulator::start(options, "127.0.0.1:0").await.unwrap();
    let watch = Arc::new(Watch::default());
    let store = open(folder).await;
    let board = Board::default();
    let build = BuildInfo {
        version: "",
        revision: "",
        rustversion: "",
    };
    let metrics = Metrics::new(board.clone(), build);
    let sinks = vec![file_sink(&folder.join("alerts.jsonl"))];
    let delivery = Delivery::start(store.clone(), sinks, board.clone(), watch.clone())
        .await
        .unwrap();
    let mut pollers = Pollers::new(store.clone(), board, metrics, Health::default());
    pollers.apply(plan(&simulator.url())).await.unwrap();
    let watched = Arc::clone(&watch);
    simulator.before_request(move |world, _| {
        let mut moments = watched.0.lock().unwrap();
        if moments.asked.is_none() {
            world
                .open(DEMO_TENANT, &Spec::default(), clock::now())
                .unwrap();
            moments.asked = Some(Instant::now());
        }
    });
    let delays = loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut moments = watch.0.lock().unwrap();
        if moments.delays.len() > wanted {
            break std::mem::take(&mut moments.delays);
        }
    };
    simulator.clear_hook();
    pollers.stop().await;
    delivery.drain(Duration::from_secs(60)).await;
    store.close().await;
    // The first delay is of the first read, which brought many alerts at once.
    delays[1..].to_vec()
}

fn plan(url: &str) -> Plan {
    Plan {
        accounts: vec![Account {
            options: opsramp::Options {
                requests_per_minute: Some(1_000_000),
                ..opsramp::Options::new(
                    "default".into(),
                    url.to_owned(),
                    SecretSource::Value(Secret::new(DEMO_KEY)),
                    SecretSource::Value(Secret::new(DEMO_SECRET)),
                )
            },
            tenants: vec![Tenant {
                id: DEMO_TENANT.into(),
                name: DEMO_TENANT.into(),
            }],
            discovery: None,
        }],
        searches: vec![SearchOptions {
            name: "open".into(),
            query: "actions:OPEN".to_owned(),
            interval: Duration::from_millis(50),
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

fn throughput(runtime: &tokio::runtime::Runtime, report: &mut Report) {
    let rounds = if quick() { 2 } else { 5 };
    let mut best = [0.0f64; 3];
    for _ in 0..rounds {
        let folder = folder();
        let rates = [
            runtime.block_on(whole(folder.path())),
            bare_file(folder.path()),
            bare_sqlite(folder.path()),
        ];
        for (best, rate) in best.iter_mut().zip(rates) {
            *best = best.max(rate);
        }
    }
    let [whole, file, sqlite] = best;
    let what = format!(
        "journal and file sink: {EVENTS} events of {LINE} bytes, {BATCH} a commit, each batch synced \
         twice; best of {rounds}"
    );
    report.row(&what, whole, " a second", Goal::AtLeast(50_000.0));
    let what = "the same, of bare SQLite (one insert an event, one sync a batch)";
    report.row(what, whole / sqlite, "", None);
    let what = "the same, of a bare file (one sync a batch)";
    report.row(what, whole / file, "", None);
}

fn latency(runtime: &tokio::runtime::Runtime, report: &mut Report) {
    let (rounds, wanted) = if quick() { (1, 50) } else { (5, 300) };
    let (mut middle, mut worst) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let folder = folder();
        let mut delays = runtime.block_on(delays(folder.path(), wanted));
        middle.push(quantile(&mut delays, 0.5));
        worst.push(quantile(&mut delays, 0.99));
    }
    // The median of rounds excludes a disk that pauses once.
    let typical = |of_rounds: &mut Vec<Duration>| milliseconds(quantile(of_rounds, 0.5));
    let what = format!(
        "from the request whose answer shows an alert to its line, synced: p50, median of {rounds} \
         rounds of {wanted}"
    );
    report.row(&what, typical(&mut middle), " ms", Goal::AtMost(10.0));
    let (p99, most) = (typical(&mut worst), milliseconds(quantile(&mut worst, 1.0)));
    let what = format!("the same: p99, median (of the worst round: {most:.1} ms)");
    report.row(&what, p99, " ms", Goal::AtMost(25.0));
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut report = Report::new();
    if wanted("throughput") {
        throughput(&runtime, &mut report);
    }
    if wanted("latency") {
        latency(&runtime, &mut report);
    }
}
