//! The embedded store without free space: on a disk that its own journal fills, and where only its
//! log has reached a limit.
//!
//! The tests run themselves again: in a user namespace, where a small disk may be mounted, and
//! under a limit of the length of files.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{path::Path, process::Command};

use bytes::Bytes;
use jiff::Timestamp;
use opsramp_exporter::{
    identity::{SearchKey, Tenant},
    store::{Commit, Error, Held, JournalEvent, Options, Store, StoredAlert},
};
use uuid::Uuid;

const DISK: &str = "OPSRAMP_EXPORTER_TEST_SMALL_DISK";
const NAME: &str = "a_disk_that_the_journal_has_filled_is_got_over_by_delivering";

#[tokio::test]
async fn a_disk_that_the_journal_has_filled_is_got_over_by_delivering() {
    if let Ok(disk) = std::env::var(DISK) {
        for round in 0..3 {
            fill_and_deliver(Path::new(&disk), round).await;
        }
        return;
    }
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
        .arg(NAME)
        .env(DISK, disk.path())
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) if status.code() != Some(99) && status.code() != Some(1) => panic!("{status}"),
        other => {
            panic!("no disk can be mounted here, which needs root or user namespaces: {other:?}")
        }
    }
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

    let mut taken = 0;
    let full = loop {
        match commit(&store, held, round * 1_000_000 + taken).await {
            Ok(()) => taken += 20,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, Error::Backend(_)), "{full:?}");
    assert!(taken > 400, "{taken}");

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

async fn commit(store: &Store, held: Held, first: u128) -> Result<(), Error> {
    let events = first..first + 20;
    let commit = Commit {
        upserts: vec![StoredAlert {
            id: (first % 64).to_string().into(),
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
