//! Events a second through the journal and a file sink, on PostgreSQL and on SQLite, in one run on
//! the same disk. Each event is of a new alert, which is stored as well.
//! Run it by `cargo bench --bench postgres`.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on stops, and prints its figures"
)]

use std::{path::Path, sync::Arc, time::Duration};

use opsramp_exporter::{
    clock,
    deliver::Delivery,
    secret::{Secret, SecretSource},
    status::Board,
    store::{Commit, JOURNAL_LIMIT, JournalEvent, Options, Store, StoredAlert},
};
use tokio::time::{Instant, sleep};

#[path = "support/events.rs"]
mod events;
#[path = "../tests/support/ports.rs"]
mod ports;
#[path = "../tests/support/postgres.rs"]
mod postgres;
#[path = "support/report.rs"]
mod report;

use events::{LINE, Unobserved, event, file_sink, lines, search};
use report::{Goal, Report, quick};

const EVENTS: usize = 40_000;
/// The size of a commit: a page of alerts.
const BATCH: usize = 500;
/// How many searches commit at the same time.
const SEARCHES: [usize; 2] = [1, 8];

/// The alert of an event.
fn alert(event: &JournalEvent) -> StoredAlert {
    StoredAlert {
        id: event.event_id.to_string().into(),
        ordinal: 1,
        digest: 1,
        created_at: Some(event.at),
        state: "Critical".into(),
        body: event.body.clone(),
    }
}

/// Events a second that are journalled and delivered, from the first commit to the last line.
async fn rate(options: &Options, searches: usize, folder: &Path) -> f64 {
    let store = Store::open(options).await.unwrap();
    let path = folder.join("alerts.jsonl");
    let sinks = vec![file_sink(&path)];
    let delivery = Delivery::start(store.clone(), sinks, Board::default(), Arc::new(Unobserved))
        .await
        .unwrap();
    let mut work = Vec::new();
    for number in 0..searches {
        let key = search(&number.to_string());
        let held = store.take_up(&key, clock::now()).await.unwrap().held;
        let each = EVENTS / searches;
        let events: Vec<JournalEvent> = (number * each..(number + 1) * each).map(event).collect();
        work.push((held, events));
    }
    let began = Instant::now();
    let mut committing = tokio::task::JoinSet::new();
    for (held, events) in work {
        let store = store.clone();
        committing.spawn(async move {
            for events in events.chunks(BATCH) {
                let commit = Commit {
                    upserts: events.iter().map(alert).collect(),
                    events: events.to_vec(),
                    ..Commit::default()
                };
                store.commit(held, commit, clock::now()).await.unwrap();
            }
        });
    }
    committing.join_all().await;
    while store.backlog("file").await.unwrap().events > 0 {
        sleep(Duration::from_millis(1)).await;
    }
    let took = began.elapsed();
    assert!(delivery.drain(Duration::from_secs(60)).await);
    store.close().await;
    assert_eq!(lines(&path), EVENTS);
    EVENTS as f64 / took.as_secs_f64()
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut report = Report::new();
    let rounds = if quick() { 2 } else { 5 };
    // The server syncs, as a server in production does.
    let cluster = postgres::Cluster::start(&[]);
    for searches in SEARCHES {
        let mut best = [0.0_f64; 2];
        for _ in 0..rounds {
            let folder = || tempfile::tempdir_in(cluster.folder().parent().unwrap()).unwrap();
            let (own, shared) = (folder(), folder());
            let sqlite = Options::Sqlite {
                path: own.path().join("state.db"),
                journal_limit: JOURNAL_LIMIT,
            };
            let postgres = Options::Postgres {
                url: SecretSource::Value(Secret::new(cluster.fresh())),
                lease: Duration::from_secs(15),
                node: "bench".to_owned(),
                journal_limit: JOURNAL_LIMIT,
            };
            let rates = [
                runtime.block_on(rate(&sqlite, searches, own.path())),
                runtime.block_on(rate(&postgres, searches, shared.path())),
            ];
            for (best, rate) in best.iter_mut().zip(rates) {
                *best = best.max(rate);
            }
        }
        let [sqlite, postgres] = best;
        let what = format!(
            "journal and file sink on PostgreSQL, {searches} committing at a time: {EVENTS} events of \
             {LINE} bytes, {BATCH} a commit; best of {rounds}"
        );
        report.row(&what, postgres, " a second", None);
        report.row("the same on SQLite", sqlite, " a second", None);
        let ratio = postgres / sqlite;
        report.row("PostgreSQL, of SQLite", ratio, "", Goal::AtLeast(0.25));
    }
}
