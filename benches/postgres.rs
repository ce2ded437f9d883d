//! Events a second through the journal and a file sink, on PostgreSQL and on SQLite, in one run
//! on the same disk: `cargo bench --bench postgres`.

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on stops, and prints its figures"
)]

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use opsramp_exporter::{
    clock,
    deliver::{Delivery, Format, Observer, SinkOptions, Target},
    identity::{SearchKey, Tenant},
    secret::{Secret, SecretSource},
    status::Board,
    store::{Commit, JOURNAL_LIMIT, JournalEvent, Options, Store},
};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

#[path = "../tests/support/postgres.rs"]
mod postgres;

const EVENTS: usize = 40_000;
/// A page of alerts.
const BATCH: usize = 500;
const LINE: usize = 700;
const ROUNDS: usize = 5;
/// How many searches commit at the same time.
const SEARCHES: [usize; 2] = [1, 8];

#[derive(Debug)]
struct Unobserved;

impl Observer for Unobserved {
    fn sink_delivered(&self, _: &str, _: u64) {}
    fn sink_error(&self, _: &str) {}
    fn sink_rejected(&self, _: &str, _: u64) {}
}

fn event(number: usize) -> JournalEvent {
    let id = Uuid::from_u128(number as u128);
    let mut body =
        format!(r#"{{"timestamp":"2026-03-01T10:20:30.123Z","event_id":"{id}","message":""#);
    body.extend(std::iter::repeat_n('x', LINE - body.len() - 2));
    body.push_str("\"}");
    JournalEvent {
        event_id: id,
        at: clock::now(),
        body: Bytes::from(body),
    }
}

/// Journalled and delivered, from the first commit to the last line in the file.
async fn rate(options: &Options, searches: usize, folder: &Path) -> f64 {
    let store = Store::open(options).await.unwrap();
    let path = folder.join("alerts.jsonl");
    let sink = SinkOptions {
        name: "file".into(),
        target: Target::File {
            path: path.clone(),
            format: Format::Json,
        },
    };
    let observer = Arc::new(Unobserved);
    let delivery = Delivery::start(store.clone(), vec![sink], Board::default(), observer)
        .await
        .unwrap();
    let mut work = Vec::new();
    for (search, numbers) in (0..EVENTS)
        .collect::<Vec<_>>()
        .chunks(EVENTS / searches)
        .enumerate()
    {
        let key = SearchKey {
            account: "a".into(),
            tenant: Tenant {
                id: "t".into(),
                name: "t".into(),
            },
            search: search.to_string().into(),
        };
        let held = store.take_up(&key, clock::now()).await.unwrap().held;
        let events: Vec<JournalEvent> = numbers.iter().copied().map(event).collect();
        work.push((held, events));
    }
    let began = Instant::now();
    let mut committing = tokio::task::JoinSet::new();
    for (held, events) in work {
        let store = store.clone();
        committing.spawn(async move {
            for events in events.chunks(BATCH) {
                let commit = Commit {
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
    let lines = std::fs::read(&path).unwrap();
    assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count(), EVENTS);
    EVENTS as f64 / took.as_secs_f64()
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let cluster = postgres::Cluster::start(&[]);
    println!("{EVENTS} events of {LINE} bytes, {BATCH} a commit; events a second");
    println!(
        "{:>8} {:>10} {:>12} {:>8}",
        "searches", "SQLite", "PostgreSQL", "ratio"
    );
    for searches in SEARCHES {
        let mut best = [0.0_f64; 2];
        for _ in 0..ROUNDS {
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
            let sqlite = runtime.block_on(rate(&sqlite, searches, own.path()));
            let postgres = runtime.block_on(rate(&postgres, searches, shared.path()));
            println!(
                "{searches:8} {sqlite:10.0} {postgres:12.0} {:8.2}",
                postgres / sqlite
            );
            best = [best[0].max(sqlite), best[1].max(postgres)];
        }
        let [sqlite, postgres] = best;
        println!(
            "{searches:8} {sqlite:10.0} {postgres:12.0} {:8.2} (best)",
            postgres / sqlite
        );
    }
}
