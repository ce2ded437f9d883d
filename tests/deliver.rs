//! Delivery under hard conditions: a full disk, a dead receiver, a real journald.
//!
//! The tests run themselves again in a mount namespace of their own, where they may mount.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::panic, reason = "so does one that waits in vain")]

use std::{
    collections::BTreeMap,
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, http::StatusCode};
use jiff::Timestamp;
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest, common::v1::any_value,
};
use opsramp_exporter::{
    deliver::{Delivery, Format, Observer, OtlpOptions, SinkOptions, Target},
    identity::{EventKind, SearchKey, Tenant},
    record::{self, AlertFields, Happening, Record},
    status::Board,
    store::{self, Commit, JournalEvent, Store},
};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::net::TcpListener;

/// The variable with the folder in which a test that was started again works.
const INSIDE: &str = "OPSRAMP_EXPORTER_TEST_INSIDE";

const EVENTS: u32 = 4000;

/// The time limit of each wait, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug)]
struct Nobody;

impl Observer for Nobody {
    fn sink_delivered(&self, _: &str, _: u64) {}
    fn sink_error(&self, _: &str) {}
    fn sink_rejected(&self, _: &str, _: u64) {}
}

/// Runs the test `name` again in a namespace of its own, in which `prepare` is run first, with the
/// folder as `$1`. Returns the folder if this process is that second run.
fn inside(name: &str, unshare: &[&str], prepare: &str) -> Option<PathBuf> {
    if let Ok(folder) = std::env::var(INSIDE) {
        return Some(folder.into());
    }
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new("unshare")
        .args(unshare)
        .args([
            "sh",
            "-c",
            &format!("{{ {prepare}; }} || exit 99; exec \"$2\" --exact \"$3\""),
            "sh",
        ])
        .arg(folder.path())
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env(INSIDE, folder.path())
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) if status.code() != Some(99) && status.code() != Some(1) => panic!("{status}"),
        other => {
            panic!("nothing can be mounted here, which needs root or user namespaces: {other:?}")
        }
    }
    None
}

fn event(number: u32) -> JournalEvent {
    let key = key();
    let happening = Happening {
        kind: EventKind::Opened,
        ordinal: 1,
        alert_id: &number.to_string(),
        previous_state: None,
        previous_status: None,
        reason: None,
        fields: AlertFields {
            state: Some("Critical".into()),
            message: Some(format!("alert {number}\nPRIORITY=0").into()),
            description: Some(
                "too large for a datagram "
                    .repeat(if number == 7 { 400_000 } else { 1 })
                    .into(),
            ),
            ..AlertFields::default()
        },
        raw: None,
    };
    let options = record::Options {
        events: EventKind::ALL.into(),
        include_raw: false,
        max_description_length: usize::MAX,
    };
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    let record = Record::new(now, &key, happening, &options);
    JournalEvent {
        event_id: record.event_id,
        at: record.timestamp,
        body: Bytes::from(record.to_json()),
    }
}

fn key() -> SearchKey {
    SearchKey {
        account: "acme".into(),
        tenant: Tenant {
            id: "client_1".into(),
            name: "client_1".into(),
        },
        search: "open".into(),
    }
}

async fn journal(store: &Store, numbers: impl IntoIterator<Item = u32>) {
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    let held = store.take_up(&key(), now).await.unwrap().held;
    let commit = Commit {
        events: numbers.into_iter().map(event).collect(),
        ..Commit::default()
    };
    store.commit(held, commit, now).await.unwrap();
}

async fn open(folder: &Path) -> Store {
    let options = store::Options::Sqlite {
        path: folder.join("state.db"),
        journal_limit: store::JOURNAL_LIMIT,
    };
    Store::open(&options).await.unwrap()
}

async fn until(board: &Board, what: &str, done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(waited.is_ok(), "not in time: {what}; {:#?}", board.sinks());
}

fn file(name: &str, path: PathBuf) -> SinkOptions {
    let format = Format::Json;
    SinkOptions {
        name: name.into(),
        target: Target::File { path, format },
    }
}

#[tokio::test]
async fn a_full_disk_and_a_dead_receiver_lose_nothing_and_delay_nobody() {
    let name = "a_full_disk_and_a_dead_receiver_lose_nothing_and_delay_nobody";
    let unshare = ["--user", "--map-root-user", "--mount"];
    let prepare = "mount -t tmpfs -o size=2m none \"$1\"";
    if let Some(disk) = inside(name, &unshare, prepare) {
        full_disk(&disk).await;
    }
}

async fn full_disk(disk: &Path) {
    drop(rustls::crypto::ring::default_provider().install_default());
    let elsewhere = tempfile::tempdir().unwrap();
    let ballast = disk.join("ballast");
    std::fs::write(&ballast, vec![0; 1 << 20]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let otlp = SinkOptions {
        name: "otlp".into(),
        target: Target::Otlp(OtlpOptions {
            endpoint: format!("http://{}/v1/logs", listener.local_addr().unwrap()),
            headers: BTreeMap::new(),
            gzip: false,
            timeout: Duration::from_secs(2),
        }),
    };
    let sinks = || {
        vec![
            file("full", disk.join("alerts.jsonl")),
            file("other", elsewhere.path().join("alerts.jsonl")),
            otlp.clone(),
        ]
    };
    let board = Board::default();
    let store = open(elsewhere.path()).await;
    let mut delivery = Delivery::start(store.clone(), sinks(), board.clone(), Arc::new(Nobody))
        .await
        .unwrap();
    for first in (0..EVENTS).step_by(500) {
        journal(&store, (first..first + 500).filter(|&number| number != 7)).await;
    }
    let total = u64::from(EVENTS) - 1;
    until(&board, "the disk is full", || {
        let sinks = board.sinks();
        let full = sinks["full"].error.as_deref();
        full.is_some_and(|error| error.contains("No space left"))
            && sinks["otlp"].backlog == Some(total)
            && sinks["other"].backlog == Some(0)
            && sinks["other"].delivered == total
    })
    .await;
    let delivered = board.sinks()["full"].delivered;
    assert_eq!(
        store.backlog("full").await.unwrap().events,
        total - delivered
    );
    assert!(delivered < total);

    // A restart while the disk is full changes nothing.
    assert!(!delivery.drain(Duration::ZERO).await);
    store.close().await;
    let store = open(elsewhere.path()).await;
    delivery = Delivery::start(store, sinks(), board.clone(), Arc::new(Nobody))
        .await
        .unwrap();
    until(&board, "the disk is still full", || {
        let sinks = board.sinks();
        let full = sinks["full"].error.as_deref();
        full.is_some_and(|error| error.contains("No space left"))
    })
    .await;

    std::fs::remove_file(&ballast).unwrap();
    let received = Received::default();
    let router = Router::new()
        .fallback(receive)
        .with_state(Arc::clone(&received));
    tokio::spawn(async move { axum::serve(listener, router).await });
    delivery.reopen();
    until(&board, "both have mended", || {
        let sinks = board.sinks();
        sinks["full"].backlog == Some(0) && sinks["otlp"].backlog == Some(0)
    })
    .await;
    assert!(delivery.drain(PATIENCE).await);

    let expected: Vec<_> = (0..EVENTS)
        .filter(|&number| number != 7)
        .map(event)
        .collect();
    for path in [disk, elsewhere.path()] {
        let content = std::fs::read_to_string(path.join("alerts.jsonl")).unwrap();
        let lines: Vec<_> = content.lines().map(str::as_bytes).collect();
        let bodies: Vec<_> = expected.iter().map(|event| &event.body[..]).collect();
        assert!(lines == bodies, "lines were lost, doubled or reordered");
    }
    let ids: BTreeSet<_> = expected
        .iter()
        .map(|event| event.event_id.to_string())
        .collect();
    assert_eq!(*received.lock(), ids);
}

#[tokio::test]
async fn a_file_that_is_moved_off_a_full_disk_takes_no_line_along_twice() {
    let name = "a_file_that_is_moved_off_a_full_disk_takes_no_line_along_twice";
    let unshare = ["--user", "--map-root-user", "--mount"];
    let prepare = "mount -t tmpfs -o size=256k none \"$1\"";
    if let Some(disk) = inside(name, &unshare, prepare) {
        moved_off_a_full_disk(&disk.join("alerts.jsonl")).await;
    }
}

async fn moved_off_a_full_disk(path: &Path) {
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("alerts.jsonl");
    let board = Board::default();
    let store = open(elsewhere.path()).await;
    let sinks = vec![file("full", path.to_owned())];
    let delivery = Delivery::start(store.clone(), sinks, board.clone(), Arc::new(Nobody))
        .await
        .unwrap();
    let mut numbers = 10..;
    let mut journalled = 0;
    // Events are journalled until the disk is full, and a batch is torn.
    while board.sinks()["full"].error.is_none() {
        journal(&store, numbers.by_ref().take(100)).await;
        journalled += 100;
        until(&board, "it is tried", || {
            let sink = &board.sinks()["full"];
            sink.delivered == journalled || sink.error.is_some()
        })
        .await;
    }
    std::fs::copy(path, &moved).unwrap();
    std::fs::remove_file(path).unwrap();
    delivery.reopen();
    assert!(delivery.drain(PATIENCE).await);

    let [moved, new] = [&moved, path].map(|path| std::fs::read_to_string(path).unwrap());
    let whole = moved
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    let lines: Vec<_> = whole.chain(new.split_inclusive('\n')).collect();
    let expected = (10..).take(lines.len()).map(event);
    assert_eq!(lines.len() as u64, journalled);
    for (line, event) in lines.iter().zip(expected) {
        assert_eq!(line.trim_end().as_bytes(), &event.body[..]);
    }
}

type Received = Arc<Mutex<BTreeSet<String>>>;

async fn receive(State(received): State<Received>, body: Bytes) -> StatusCode {
    let request = ExportLogsServiceRequest::decode(body).unwrap();
    let records = request.resource_logs.into_iter();
    let attributes = records
        .flat_map(|resource| resource.scope_logs)
        .flat_map(|scope| scope.log_records)
        .flat_map(|record| record.attributes);
    for attribute in attributes.filter(|attribute| attribute.key == "log.record.uid") {
        if let Some(any_value::Value::StringValue(id)) = attribute.value.unwrap().value {
            received.lock().insert(id);
        }
    }
    StatusCode::OK
}

#[tokio::test]
async fn a_real_journald_gives_back_what_it_was_sent() {
    const JOURNALD: &str = "/lib/systemd/systemd-journald";
    assert!(
        Path::new(JOURNALD).exists(),
        "there is no {JOURNALD}: install systemd"
    );
    let name = "a_real_journald_gives_back_what_it_was_sent";
    let prepare = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal /run/log/journal \
                   && test -s /etc/machine-id";
    if inside(name, &["--mount"], prepare).is_none() {
        return;
    }
    let mut journald = Command::new(JOURNALD)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let result = std::panic::AssertUnwindSafe(real_journald(&mut journald));
    let result = futures_util::FutureExt::catch_unwind(result).await;
    journald.kill().unwrap();
    journald.wait().unwrap();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

async fn real_journald(journald: &mut Child) {
    let folder = tempfile::tempdir().unwrap();
    let board = Board::default();
    let store = open(folder.path()).await;
    let sink = SinkOptions {
        name: "journal".into(),
        target: Target::Journald,
    };
    let delivery = Delivery::start(store.clone(), vec![sink], board.clone(), Arc::new(Nobody))
        .await
        .unwrap();
    journal(&store, 0..20).await;
    assert!(delivery.drain(PATIENCE).await);
    assert!(journald.try_wait().unwrap().is_none());

    let mut entries = Vec::new();
    let begun = tokio::time::Instant::now();
    while entries.len() < 20 && begun.elapsed() < PATIENCE {
        let output = Command::new("journalctl")
            .args([
                "-D",
                "/run/log/journal",
                "-t",
                "opsramp-alert",
                "-o",
                "json",
                "--all",
            ])
            .output()
            .unwrap();
        entries = serde_json::Deserializer::from_slice(&output.stdout)
            .into_iter::<BTreeMap<String, serde_json::Value>>()
            .collect::<Result<_, _>>()
            .unwrap();
    }
    assert_eq!(entries.len(), 20);
    for (number, entry) in (0..).zip(&entries) {
        let event = event(number);
        assert_eq!(entry["OPSRAMP_EVENT_ID"], event.event_id.to_string());
        assert_eq!(entry["PRIORITY"], "2");
        assert_eq!(entry["MESSAGE"], format!("alert {number}\nPRIORITY=0"));
        assert_eq!(entry["OPSRAMP_TENANT"], "client_1");
    }
    let description = entries[7]["OPSRAMP_DESCRIPTION"].as_str().unwrap();
    assert_eq!(description.len(), 25 * 400_000);
}
