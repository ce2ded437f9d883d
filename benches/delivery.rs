//! Events a second through the journal and a file sink, against what the same disk and the same
//! engine do bare, in one run: `cargo bench --bench delivery`.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on stops, and prints its figures"
)]

use std::{fs::File, io::Write as _, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use opsramp_exporter::{
    clock,
    deliver::{Delivery, Format, Observer, SinkOptions, Target},
    identity::{SearchKey, Tenant},
    status::Board,
    store::{Commit, Held, JOURNAL_LIMIT, JournalEvent, Options, Store},
};
use tokio::time::Instant;
use uuid::Uuid;

const EVENTS: usize = 100_000;
const BATCH: usize = 2_000;
const LINE: usize = 700;
const ROUNDS: usize = 5;

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
    let padding = LINE - body.len() - 2;
    body.extend(std::iter::repeat_n('x', padding));
    body.push_str("\"}");
    JournalEvent {
        event_id: id,
        at: clock::now(),
        body: Bytes::from(body),
    }
}

fn rate(took: Duration) -> f64 {
    EVENTS as f64 / took.as_secs_f64()
}

/// Journalled and delivered, from the first commit to the last line in the file.
async fn whole(folder: &Path) -> f64 {
    let path = folder.join("state.db");
    let store = Store::open(&Options::Sqlite {
        path,
        journal_limit: JOURNAL_LIMIT,
    })
    .await
    .unwrap();
    let key = SearchKey {
        account: "a".into(),
        tenant: Tenant {
            id: "t".into(),
            name: "t".into(),
        },
        search: "s".into(),
    };
    let held: Held = store.take_up(&key, clock::now()).await.unwrap().held;
    let lines = folder.join("alerts.jsonl");
    let sink = SinkOptions {
        name: "file".into(),
        target: Target::File {
            path: lines.clone(),
            format: Format::Json,
        },
    };
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
    let written = std::fs::read(&lines).unwrap();
    assert_eq!(
        written.iter().filter(|byte| **byte == b'\n').count(),
        EVENTS
    );
    rate(took)
}

/// The same lines written to a file, one fdatasync a batch, and nothing else.
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

/// The same events inserted into a bare table, one commit a batch, and nothing else.
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

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    println!("{EVENTS} events of {LINE} bytes, {BATCH} a commit; events a second");
    println!(
        "{:>12} {:>12} {:>12} {:>8} {:>8}",
        "whole", "bare file", "bare SQLite", "/file", "/SQLite"
    );
    let mut best = 0.0f64;
    for _ in 0..ROUNDS {
        let folder =
            tempfile::tempdir_in(std::env::var_os("BENCH_DIR").unwrap_or(".".into())).unwrap();
        let (file, sqlite) = (bare_file(folder.path()), bare_sqlite(folder.path()));
        let whole = runtime.block_on(whole(folder.path()));
        best = best.max(whole);
        println!(
            "{whole:12.0} {file:12.0} {sqlite:12.0} {:8.2} {:8.2}",
            whole / file,
            whole / sqlite
        );
    }
    println!("best: {best:.0} events a second, journalled, written and synced");
}
