use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf, time::Duration};

use super::open::BUSY_TIMEOUT;
use crate::store::{
    AlertFilter, Commit, Error, Held, Options, Store,
    conformance::{self, alert, all_alerts, event, events, held, second, take_up},
    sqlite::writer::Command,
};

fn fresh() -> (Options, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    (options(folder.path().join("state.db")), folder)
}

fn options(path: PathBuf) -> Options {
    Options::Sqlite {
        path,
        journal_limit: 1000,
    }
}

conformance::suite!(fresh);

/// A new store with the sink `s`, and a search that it holds.
async fn begun() -> (Store, Held, Options, tempfile::TempDir) {
    let (options, folder) = fresh();
    let store = Store::open(&options).await.unwrap();
    let held = held(&store).await;
    store.set_sinks(vec!["s".to_owned()]).await.unwrap();
    (store, held, options, folder)
}

/// What a crash leaves of a store that was open: the file, and the first bytes of its log.
struct Crash {
    folder: tempfile::TempDir,
    log: Vec<u8>,
}

impl Crash {
    fn of(options: &Options) -> Self {
        let Options::Sqlite { path, .. } = options else {
            panic!("{options:?}");
        };
        let folder = tempfile::tempdir().unwrap();
        fs::copy(path, folder.path().join("state.db")).unwrap();
        let log = fs::read(path.with_extension("db-wal")).unwrap();
        Self { folder, log }
    }

    /// Opens what is left, and returns the numbers of the alerts and of the events that it holds.
    async fn recover(&self, log_bytes: usize) -> (Vec<u128>, Vec<u128>) {
        let path = self.folder.path().join("state.db");
        let once = tempfile::tempdir().unwrap();
        let copy = once.path().join("state.db");
        fs::copy(&path, &copy).unwrap();
        fs::write(copy.with_extension("db-wal"), &self.log[..log_bytes]).unwrap();
        let store = Store::open(&options(copy)).await.unwrap();
        let loaded = take_up(&store, 9).await;
        let ids = loaded.alerts.iter();
        let mut alerts: Vec<u128> = ids.map(|alert| alert.id.parse().unwrap()).collect();
        alerts.sort_unstable();
        store.set_sinks(vec!["s".to_owned()]).await.unwrap();
        let batch = store.pending("s", usize::MAX, usize::MAX).await.unwrap();
        let events = batch.events.into_iter();
        let events = events.map(|pending| pending.event.event_id.as_u128());
        (alerts, events.collect())
    }
}

fn opened(number: u128) -> Commit {
    Commit {
        upserts: vec![alert(&number.to_string(), 1, 1)],
        ..events(number..number + 1)
    }
}

#[tokio::test]
async fn every_commit_that_was_answered_survives_a_crash() {
    let (store, held, options, _folder) = begun().await;
    for number in 1..20 {
        store.commit(held, opened(number), second(2)).await.unwrap();
        let crash = Crash::of(&options);
        let all: Vec<_> = (1..=number).collect();
        let found = crash.recover(crash.log.len()).await;
        assert_eq!(found, (all.clone(), all));
    }
}

#[tokio::test]
async fn a_log_that_was_cut_anywhere_gives_whole_commits_from_the_first_on() {
    let (store, held, options, _folder) = begun().await;
    let start = Crash::of(&options).log.len();
    for number in 1..=6 {
        store.commit(held, opened(number), second(2)).await.unwrap();
    }
    let crash = Crash::of(&options);
    let mut longest = 0;
    for log_bytes in (start..=crash.log.len()).step_by(1021) {
        let (alerts, events) = crash.recover(log_bytes).await;
        assert_eq!(alerts, events);
        assert_eq!(alerts, (1..=alerts.len() as u128).collect::<Vec<_>>());
        assert!(alerts.len() >= longest);
        longest = alerts.len();
    }
    assert!(longest >= 5, "{longest}");
    assert_eq!(crash.recover(crash.log.len()).await.0.len(), 6);
}

#[tokio::test]
async fn a_closed_store_leaves_no_log_though_its_page_was_read() {
    let (store, held, _options, folder) = begun().await;
    store.commit(held, opened(1), second(2)).await.unwrap();
    assert_eq!(store.open_alerts(all_alerts(9)).await.unwrap().len(), 1);
    store.close().await;
    let log = folder.path().join("state.db-wal");
    assert!(!log.exists());
}

#[tokio::test]
async fn a_first_start_after_one_that_was_broken_off_keeps_its_log() {
    let (options, folder) = fresh();
    let path = folder.path().join("state.db");
    let broken_off = rusqlite::Connection::open(&path).unwrap();
    let to_wal = broken_off.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()));
    to_wal.unwrap();
    drop(broken_off);
    let log = fs::File::create(path.with_extension("db-wal")).unwrap();
    log.set_len(5000).unwrap();
    let store = Store::open(&options).await.unwrap();
    assert_eq!(log.metadata().unwrap().nlink(), 1, "it was removed");
    store.close().await;
}

#[tokio::test]
async fn a_closed_store_is_in_one_file_though_others_have_it_open() {
    let (options, folder) = fresh();
    let store = Store::open(&options).await.unwrap();
    let path = folder.path().join("state.db");
    let shell = rusqlite::Connection::open(&path).unwrap();
    let count = |shell: &rusqlite::Connection| {
        shell.query_row("SELECT count(*) FROM alert", [], |row| row.get::<_, i64>(0))
    };
    assert_eq!(count(&shell), Ok(0));
    let held = held(&store).await;
    store.commit(held, opened(1), second(2)).await.unwrap();
    store.close().await;
    let log = fs::metadata(path.with_extension("db-wal")).unwrap();
    assert_eq!(log.len(), 0);
    assert_eq!(count(&shell), Ok(1));
}

#[tokio::test]
async fn a_program_that_reads_does_not_hold_up_the_end() {
    let (store, held, options, folder) = begun().await;
    store.commit(held, opened(1), second(2)).await.unwrap();
    let mut shell = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    let reading = shell.transaction().unwrap();
    let count = |reading: &rusqlite::Transaction<'_>| {
        reading.query_row("SELECT count(*) FROM alert", [], |row| row.get::<_, i64>(0))
    };
    assert_eq!(count(&reading), Ok(1));
    store.commit(held, opened(2), second(2)).await.unwrap();
    let closed = tokio::time::timeout(BUSY_TIMEOUT / 2, store.close()).await;
    assert!(closed.is_ok(), "it waits for the reader");
    assert_eq!(count(&reading), Ok(1));
    drop(reading);
    let store = Store::open(&options).await.unwrap();
    let loaded = take_up(&store, 3).await;
    assert_eq!(loaded.alerts.len(), 2);
}

#[tokio::test]
async fn a_store_that_is_dropped_finishes_what_it_was_given() {
    let (store, held, options, _folder) = begun().await;
    // The caller goes away at once, while the commit is on its way.
    let commit = store.commit(held, opened(1), second(2));
    tokio::time::timeout(Duration::ZERO, commit).await.ok();
    drop(store);
    let reopened = async {
        loop {
            match Store::open(&options).await {
                Ok(store) => break store,
                Err(Error::Open { problem, .. }) => {
                    assert!(problem.starts_with("another exporter"), "{problem}");
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    };
    let store = tokio::time::timeout(Duration::from_secs(10), reopened)
        .await
        .unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(batch.events[0].event, event(1));
    let loaded = take_up(&store, 1).await;
    assert_eq!(loaded.alerts, [alert("1", 1, 1)]);
}

/// The case of an operator who restores a copy without stopping the exporter.
#[tokio::test]
async fn another_file_in_the_place_of_the_state_is_not_touched_and_the_open_one_works_on() {
    let (store, held, _options, folder) = begun().await;
    let path = folder.path().join("state.db");
    let copy = folder.path().join("copy.db");
    let shell = rusqlite::Connection::open(&path).unwrap();
    let into = format!("VACUUM INTO '{}'", copy.display());
    shell.execute_batch(&into).unwrap();
    drop(shell);
    store.commit(held, opened(1), second(2)).await.unwrap();
    fs::rename(&copy, &path).unwrap();
    let before = fs::read(&path).unwrap();

    let error = store.open_alerts(AlertFilter::default()).await.unwrap_err();
    assert!(matches!(error, Error::Backend(_)), "{error:?}");
    // So much data that the log must be copied into the file.
    for number in 1..=4 {
        let mut commit = events(number * 1000..(number + 1) * 1000);
        for event in &mut commit.events {
            event.body = vec![b'x'; 16 * 1024].into();
        }
        store.acknowledge("s", i64::MAX, None).await.unwrap();
        store.commit(held, commit, second(2)).await.unwrap();
    }
    store.close().await;
    assert!(fs::read(&path).unwrap() == before, "it was written to");
}

/// A store whose journal has four events, each in a row of its own. `sql` then damages the journal
/// while the store is closed, as a broken disk or a person might.
async fn damaged(sql: &str) -> (Store, Options, tempfile::TempDir) {
    let (store, held, options, folder) = begun().await;
    store.commit(held, events(1..5), second(2)).await.unwrap();
    store.close().await;
    let shell = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    assert!(shell.execute(sql, []).unwrap() > 0, "{sql}");
    drop(shell);
    let store = Store::open(&options).await.unwrap();
    store.set_sinks(vec!["s".to_owned()]).await.unwrap();
    (store, options, folder)
}

#[tokio::test]
async fn a_damaged_row_holds_up_only_what_is_behind_it_and_waits_all_the_same() {
    let (store, _options, _folder) =
        damaged("UPDATE journal SET heads = x'00' WHERE last > 2").await;
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    let found: Vec<_> = batch.events.iter().map(|it| it.event.clone()).collect();
    assert_eq!(found, [event(1), event(2)]);
    store.acknowledge("s", 2, None).await.unwrap();
    let error = store.pending("s", 9, usize::MAX).await.unwrap_err();
    assert!(matches!(error, Error::Backend(_)), "{error:?}");
    assert_eq!(store.backlog("s").await.unwrap().events, 2);
}

#[tokio::test]
async fn a_row_that_is_not_what_was_stored_is_not_delivered() {
    for damage in [
        "bodies = zeroblob(length(bodies))",
        "bodies = cast(substr(bodies, 2) || 'x' AS BLOB)",
        "heads = cast(zeroblob(16) || substr(heads, 17) AS BLOB)",
        "checksum = checksum + 1",
    ] {
        let sql = format!("UPDATE journal SET {damage} WHERE last = 3");
        let (store, _options, _folder) = damaged(&sql).await;
        let batch = store.pending("s", 9, usize::MAX).await.unwrap();
        assert_eq!(batch.events.len(), 2, "{damage}");
        store.acknowledge("s", 2, None).await.unwrap();
        let error = store.pending("s", 9, usize::MAX).await.unwrap_err();
        let said = crate::error_chain::chain(&error);
        assert!(
            said.contains("the row of the journal with the last position 3 is damaged"),
            "{damage}: {said}"
        );
    }
}

#[tokio::test]
async fn a_damaged_row_is_not_passed_over_at_a_start_whatever_it_says_of_its_length() {
    for damage in ["x''", "zeroblob(20 * 7)"] {
        let sql = format!("UPDATE journal SET heads = {damage} WHERE last = 1");
        let (store, options, _folder) = damaged(&sql).await;
        store.close().await;
        // Nothing was removed at the first start, so the next start finds the same.
        let store = Store::open(&options).await.unwrap();
        store.set_sinks(vec!["s".to_owned()]).await.unwrap();
        assert_eq!(store.backlog("s").await.unwrap().events, 4, "{damage}");
        let error = store.pending("s", 9, usize::MAX).await.unwrap_err();
        assert!(matches!(error, Error::Backend(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_damaged_row_that_is_delivered_to_one_sink_waits_for_the_other_as_a_whole() {
    let (options, folder) = fresh();
    let store = Store::open(&options).await.unwrap();
    let held = held(&store).await;
    let sinks = || vec!["behind".to_owned(), "ahead".to_owned()];
    store.set_sinks(sinks()).await.unwrap();
    let mut commit = events(1..5);
    for event in &mut commit.events {
        event.at = second(7);
    }
    store.commit(held, commit, second(2)).await.unwrap();
    store.acknowledge("ahead", 2, None).await.unwrap();
    store.close().await;
    let shell = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    assert_eq!(shell.execute("UPDATE journal SET heads = x'00'", []), Ok(1));
    drop(shell);
    let store = Store::open(&options).await.unwrap();
    store.set_sinks(sinks()).await.unwrap();
    for (sink, waiting) in [("behind", 4), ("ahead", 2)] {
        assert_eq!(store.backlog(sink).await.unwrap().events, waiting);
        assert!(store.pending(sink, 9, usize::MAX).await.is_err());
    }
}

#[tokio::test]
async fn rows_of_an_earlier_version_are_delivered_as_they_are() {
    let (store, _options, _folder) = damaged("UPDATE journal SET checksum = NULL").await;
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    let found: Vec<_> = batch.events.iter().map(|it| it.event.clone()).collect();
    assert_eq!(found, [event(1), event(2), event(3), event(4)]);
}

#[tokio::test]
async fn rows_that_somebody_removed_wait_no_longer() {
    let (store, options, _folder) = damaged("DELETE FROM journal WHERE last > 2").await;
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(batch.events.len(), 2);
    store
        .acknowledge("s", 2, Some(b"mark".to_vec()))
        .await
        .unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(batch.events.len(), 0);
    assert_eq!(store.backlog("s").await.unwrap().events, 0);
    store.close().await;

    let store = Store::open(&options).await.unwrap();
    let states = store.set_sinks(vec!["s".to_owned()]).await.unwrap();
    assert_eq!(states[0].mark.as_deref(), Some(&b"mark"[..]));
    let held = held(&store).await;
    store.commit(held, events(5..6), second(5)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(batch.events[0].event, event(5));
}

#[tokio::test]
async fn a_sink_goes_on_behind_the_rows_that_somebody_removed_and_finds_its_place_again() {
    let (store, options, folder) = damaged("UPDATE sink SET mark = x'01'").await;
    store.close().await;
    let shell = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    shell
        .execute("DELETE FROM journal WHERE last < 3", [])
        .unwrap();
    drop(shell);
    let store = Store::open(&options).await.unwrap();
    let states = store.set_sinks(vec!["s".to_owned()]).await.unwrap();
    assert_eq!(states[0].mark.as_deref(), Some(&[1][..]));
    assert_eq!(store.backlog("s").await.unwrap().events, 2);
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    let found: Vec<_> = batch.events.iter().map(|it| it.event.clone()).collect();
    assert_eq!(found, [event(3), event(4)]);
}

#[tokio::test]
async fn a_thread_that_panics_is_told_and_one_that_was_asked_to_end_is_not() {
    for panics in [true, false] {
        let (options, _folder) = fresh();
        let store = Store::open(&options).await.unwrap();
        let Store::Sqlite(sqlite) = &store else {
            panic!("{store:?}");
        };
        if panics {
            sqlite.commands.send(Command::Panic).await.unwrap();
            let lost = tokio::time::timeout(Duration::from_secs(60), store.lost()).await;
            assert!(matches!(lost, Ok(Error::Ended(_))), "{lost:?}");
            let lost = lost.unwrap().to_string();
            assert!(lost.contains("ended unexpectedly"), "{lost}");
        } else {
            store.close().await;
            let lost = tokio::time::timeout(Duration::from_millis(200), store.lost()).await;
            assert!(lost.is_err(), "{lost:?}");
        }
    }
}
