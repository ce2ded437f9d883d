//! The embedded store without free space: on a disk that its own journal fills, and where only its
//! log has reached a limit.
//!
//! The tests run themselves again: in a user namespace, where a small disk may be mounted, and
//! under a limit of the length of files.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{ops::Range, path::Path, process::Command};

use bytes::Bytes;
use jiff::Timestamp;
use opsramp_exporter::{
    identity::{SearchKey, Tenant},
    store::{Commit, Error, Held, JournalEvent, Options, Store, StoredAlert},
};
use uuid::Uuid;

const DISK: &str = "OPSRAMP_EXPORTER_TEST_SMALL_DISK";

#[tokio::test]
async fn a_disk_that_the_journal_has_filled_is_got_over_by_delivering() {
    if let Ok(disk) = std::env::var(DISK) {
        for round in 0..3 {
            fill_and_deliver(Path::new(&disk), round).await;
        }
        return;
    }
    on_a_small_disk("a_disk_that_the_journal_has_filled_is_got_over_by_delivering");
}

#[tokio::test]
async fn a_sink_that_has_left_gives_its_room_on_a_disk_that_is_nearly_full_but_only_if_that_helps()
{
    if let Ok(disk) = std::env::var(DISK) {
        return fill_and_leave(Path::new(&disk)).await;
    }
    on_a_small_disk(
        "a_sink_that_has_left_gives_its_room_on_a_disk_that_is_nearly_full_but_only_if_that_helps",
    );
}

/// Runs a test of this program again, on a small disk.
fn on_a_small_disk(test: &str) {
    let disk = tempfile::tempdir().unwrap();
    let inside = "mount -t tmpfs -o size=3m none \"$1\" || exit 99; exec \"$2\" --exact \"$3\"";
    let status = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            inside,
            "sh",
        ])
        .arg(disk.path())
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(DISK, disk.path())
        .status()
        .unwrap();
    assert!(
        ![Some(1), Some(99)].contains(&status.code()),
        "no disk can be mounted here, which needs root or user namespaces: {status}"
    );
    assert!(status.success(), "{status}");
}

const SHORT: &str = "OPSRAMP_EXPORTER_TEST_SHORT_FILES";
const SHORT_NAME: &str = "a_limit_that_is_no_full_disk_but_ends_the_log_is_got_over";

/// As with a quota, writes fail with another error than on a full disk.
#[tokio::test]
async fn a_limit_that_is_no_full_disk_but_ends_the_log_is_got_over() {
    if let Ok(folder) = std::env::var(SHORT) {
        return deliver_at_once(Path::new(&folder)).await;
    }
    let folder = tempfile::tempdir().unwrap();
    // The limit is two MiB a file, in blocks of 512 bytes.
    let inside = "trap '' XFSZ; ulimit -f 4096; exec \"$1\" --exact \"$2\"";
    let status = Command::new("sh")
        .args(["-c", inside, "sh"])
        .arg(std::env::current_exe().unwrap())
        .arg(SHORT_NAME)
        .env(SHORT, folder.path())
        .status();
    assert!(status.unwrap().success());
}

/// Delivers events at once, so that the state file stays small while the log would become long.
async fn deliver_at_once(folder: &Path) {
    let options = Options::Sqlite {
        path: folder.join("state.db"),
        journal_limit: 1_000_000,
    };
    let store = Store::open(&options).await.unwrap();
    store.set_sinks(vec!["s".to_owned()]).await.unwrap();
    let held = store.take_up(&key(), second(1)).await.unwrap().held;
    for round in 0..200 {
        commit(&store, held, round * 20).await.unwrap();
        let batch = store.pending("s", 30, usize::MAX).await.unwrap();
        assert_eq!(batch.events.len(), 20, "{round}");
        let last = batch.events[19].position;
        store.acknowledge("s", last, None).await.unwrap();
    }
    store.close().await;
}

async fn fill_and_deliver(disk: &Path, round: u128) {
    let options = Options::Sqlite {
        path: disk.join("state.db"),
        journal_limit: 1_000_000,
    };
    let store = Store::open(&options).await.unwrap();
    store.set_sinks(vec!["s".to_owned()]).await.unwrap();
    let held = store.take_up(&key(), second(1)).await.unwrap().held;

    let taken = fill(&store, held, round * 1_000_000).await;

    let mut delivered = 0;
    loop {
        let batch = store.pending("s", 30, usize::MAX).await.unwrap();
        let Some(last) = batch.events.last() else {
            break;
        };
        for pending in &batch.events {
            let number = pending.event.event_id.as_u128();
            assert_eq!(number, round * 1_000_000 + delivered);
            delivered += 1;
        }
        store.acknowledge("s", last.position, None).await.unwrap();
    }
    assert_eq!(delivered, taken);
    let again = round * 1_000_000 + taken;
    commit(&store, held, again).await.unwrap();
    store.close().await;

    let store = Store::open(&options).await.unwrap();
    let batch = store.pending("s", 30, usize::MAX).await.unwrap();
    assert_eq!(batch.events.len(), 20);
    let last = batch.events[19].position;
    store.acknowledge("s", last, None).await.unwrap();
    store.close().await;
}

async fn fill_and_leave(disk: &Path) {
    let options = Options::Sqlite {
        path: disk.join("state.db"),
        journal_limit: 1_000_000,
    };
    let store = Store::open(&options).await.unwrap();
    let set_sinks = async |names: &[&str]| {
        let names = names.iter().map(ToString::to_string).collect();
        store.set_sinks(names).await.unwrap();
    };
    let waiting = async |sink: &str| {
        let batch = store.pending(sink, usize::MAX, usize::MAX).await.unwrap();
        batch.events.len() as u128
    };
    set_sinks(&["stays", "leaves"]).await;
    let held = store.take_up(&key(), second(1)).await.unwrap().held;
    let taken = fill(&store, held, 0).await;

    // What the sink that left holds alone is far less than what is to be stored.
    store.acknowledge("stays", 20, None).await.unwrap();
    set_sinks(&["stays"]).await;
    let refused = commit_events(&store, held, taken..taken + 200).await;
    assert!(matches!(refused, Err(Error::Backend(_))), "{refused:?}");
    set_sinks(&["stays", "leaves"]).await;
    assert_eq!(waiting("leaves").await, taken);

    store.acknowledge("stays", i64::MAX, None).await.unwrap();
    let refused = commit(&store, held, taken).await;
    assert!(matches!(refused, Err(Error::Backend(_))), "{refused:?}");
    set_sinks(&["stays"]).await;
    commit(&store, held, taken).await.unwrap();
    assert_eq!(waiting("stays").await, 20);
    set_sinks(&["stays", "leaves"]).await;
    assert_eq!(waiting("leaves").await, 0, "it was given up");
    store.close().await;
}

/// Commits events from the number `first` on until the disk is full. Returns how many there were.
async fn fill(store: &Store, held: Held, first: u128) -> u128 {
    let mut taken = 0;
    let full = loop {
        match commit(store, held, first + taken).await {
            Ok(()) => taken += 20,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, Error::Backend(_)), "{full:?}");
    assert!(taken > 400, "{taken}");
    taken
}

async fn commit(store: &Store, held: Held, first: u128) -> Result<(), Error> {
    commit_events(store, held, first..first + 20).await
}

/// Commits an alert and these events.
async fn commit_events(store: &Store, held: Held, events: Range<u128>) -> Result<(), Error> {
    let commit = Commit {
        upserts: vec![StoredAlert {
            id: (events.start % 64).to_string().into(),
            ordinal: 1,
            digest: 1,
            created_at: Some(second(1)),
            state: "Critical".into(),
            body: Bytes::from_static(&[b'a'; 300]),
        }],
        events: events
            .map(|number| JournalEvent {
                event_id: Uuid::from_u128(number),
                at: second(2),
                body: Bytes::from_static(&[b'e'; 700]),
            })
            .collect(),
        ..Commit::default()
    };
    store.commit(held, commit, second(2)).await
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

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}
