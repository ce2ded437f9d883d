//! What every store must do: one suite of tests, run against each store.
//!
//! A test is a function over [`Options`] that point to an empty store. It may open the store
//! several times. [`suite!`] declares the tests for one backend.

use std::sync::Arc;

use super::*;
use crate::identity::Tenant;

pub(super) mod model;

/// Declares a test for each function of the suite. `$fresh` is a function that returns the options
/// of a new, empty store, and something to keep alive while it is used.
macro_rules! suite {
    ($fresh:path) => {
        $crate::store::conformance::suite! { @tests $fresh;
            a_new_search_knows_nothing,
            what_was_committed_is_there_after_reopening,
            more_alerts_than_a_page_holds_are_loaded_page_by_page,
            open_alerts_are_found_by_their_ids,
            an_alert_that_left_keeps_its_ordinal,
            a_later_take_up_refuses_what_the_earlier_holder_commits,
            a_search_that_was_given_back_takes_no_commit,
            an_earlier_holder_gives_nothing_back_of_the_later_ones,
            a_new_sink_starts_with_the_next_event,
            events_come_in_order_and_again_until_they_are_acknowledged,
            each_sink_has_its_own_cursor,
            a_mark_survives_and_the_last_one_counts,
            an_old_acknowledgement_changes_nothing,
            an_acknowledgement_beyond_the_end_skips_nothing,
            a_batch_is_bounded_by_events_and_by_bytes,
            a_sink_that_is_removed_makes_room_where_it_alone_is_in_the_way,
            a_sink_that_is_named_again_goes_on_where_it_was,
            an_unknown_sink_is_an_error,
            without_a_sink_events_are_not_kept,
            a_full_journal_takes_alerts_but_no_events,
            a_backlog_counts_and_dates_what_waits,
            the_watch_tells_the_last_position,
            the_page_shows_the_newest_first_and_filters,
            the_page_shows_only_searches_that_are_held,
            a_state_of_whatever_characters_is_stored_and_sought,
            in_what_trouble_it_is_to_begin_with_is_told_once,
            callers_at_the_same_time_all_get_what_they_asked_for,
            a_closed_store_says_so,
        }
    };
    (@tests $fresh:path; $($name:ident,)+) => {
        #[test]
        fn a_random_history_leaves_what_the_model_says() {
            $crate::store::conformance::model::a_random_history_leaves_what_the_model_says($fresh);
        }

        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let (options, _keep) = $fresh();
                $crate::store::conformance::$name(options).await;
            }
        )+
    };
}
pub(super) use suite;

// === what the tests are made of ===

pub(super) fn key(account: &str, tenant: &str, search: &str) -> SearchKey {
    SearchKey {
        account: account.into(),
        tenant: Tenant {
            id: tenant.into(),
            name: format!("{tenant} by name").into(),
        },
        search: search.into(),
    }
}

pub(super) fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

pub(super) fn alert(id: &str, ordinal: u32, created: i64) -> StoredAlert {
    StoredAlert {
        id: id.into(),
        ordinal,
        digest: u64::MAX - u64::from(ordinal),
        created_at: Some(second(created)),
        state: "Critical".into(),
        body: Bytes::from(format!("body of {id} {ordinal}")),
    }
}

pub(super) fn event(number: u128) -> JournalEvent {
    JournalEvent {
        event_id: Uuid::from_u128(number),
        at: second(1000 + i64::try_from(number).unwrap()),
        body: Bytes::from(format!("event {number}")),
    }
}

pub(super) fn events(numbers: std::ops::Range<u128>) -> Commit {
    Commit {
        events: numbers.map(event).collect(),
        ..Commit::default()
    }
}

fn upserts(alerts: impl IntoIterator<Item = StoredAlert>) -> Commit {
    Commit {
        upserts: alerts.into_iter().collect(),
        ..Commit::default()
    }
}

pub(super) fn with_limit(options: &Options, limit: u64) -> Options {
    let mut options = options.clone();
    match &mut options {
        Options::Sqlite { journal_limit, .. } | Options::Postgres { journal_limit, .. } => {
            *journal_limit = limit;
        }
    }
    options
}

/// Opens a store. A store that was just closed may still be locked for a moment, because a process
/// that another test is just starting inherits the open files and keeps them until it runs.
async fn open(options: &Options) -> Store {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        match Store::open(options).await {
            Ok(store) => return store,
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(super) async fn held(store: &Store) -> Held {
    take_up(store, 1).await.held
}

/// Takes up the search that most tests use.
pub(super) async fn take_up(store: &Store, now: i64) -> Loaded {
    let key = key("acme", "client_1", "open");
    store.take_up(&key, second(now)).await.unwrap()
}

/// Asks for all open alerts, but no more than `limit`.
pub(super) fn all_alerts(limit: usize) -> AlertFilter {
    AlertFilter {
        limit,
        ..AlertFilter::default()
    }
}

async fn sinks(store: &Store, names: &[&str]) -> Vec<SinkState> {
    let names = names.iter().map(ToString::to_string).collect();
    store.set_sinks(names).await.unwrap()
}

/// The numbers of the events that wait for a sink.
async fn waiting(store: &Store, sink: &str) -> Vec<u128> {
    let batch = store.pending(sink, usize::MAX, usize::MAX).await.unwrap();
    numbers(&batch)
}

fn numbers(batch: &Batch) -> Vec<u128> {
    let positions: Vec<_> = batch
        .events
        .iter()
        .map(|pending| pending.position)
        .collect();
    assert!(positions.is_sorted_by(|a, b| a < b), "{positions:?}");
    batch
        .events
        .iter()
        .map(|pending| {
            let number = pending.event.event_id.as_u128();
            assert_eq!(pending.event, event(number));
            number
        })
        .collect()
}

async fn acknowledge_all(store: &Store, sink: &str) {
    let batch = store.pending(sink, usize::MAX, usize::MAX).await.unwrap();
    if let Some(last) = batch.events.last() {
        store.acknowledge(sink, last.position, None).await.unwrap();
    }
}

// === searches and alerts ===

pub(super) async fn a_new_search_knows_nothing(options: Options) {
    let store = open(&options).await;
    let loaded = take_up(&store, 5).await;
    assert!(!loaded.primed);
    assert!(!loaded.has_departed);
    assert_eq!(loaded.first_seen, second(5));
    assert_eq!(loaded.alerts, []);
    let other = store
        .take_up(&key("acme", "client_2", "open"), second(6))
        .await
        .unwrap();
    assert_ne!(loaded.held.row, other.held.row);
}

pub(super) async fn what_was_committed_is_there_after_reopening(options: Options) {
    let store = open(&options).await;
    let held = held(&store).await;
    let undated = StoredAlert {
        created_at: None,
        digest: 0,
        body: Bytes::new(),
        ..alert("undated", u32::MAX, 0)
    };
    let commit = Commit {
        primed: true,
        ..upserts([alert("a", 1, 10), alert("b", 1, -20), undated.clone()])
    };
    store.commit(held, commit, second(2)).await.unwrap();
    let changed = StoredAlert {
        state: "Ok".into(),
        ..alert("b", 2, 21)
    };
    store
        .commit(held, upserts([changed.clone()]), second(3))
        .await
        .unwrap();
    store.close().await;

    let store = open(&options).await;
    let renamed = SearchKey {
        tenant: Tenant {
            id: "client_1".into(),
            name: Arc::from("another name"),
        },
        ..key("acme", "client_1", "open")
    };
    let mut loaded = store.take_up(&renamed, second(9)).await.unwrap();
    assert!(loaded.primed);
    assert_eq!(loaded.first_seen, second(1));
    loaded.alerts.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(loaded.alerts, [alert("a", 1, 10), changed, undated]);
}

pub(super) async fn more_alerts_than_a_page_holds_are_loaded_page_by_page(options: Options) {
    let store = open(&options).await;
    let held = held(&store).await;
    let of = |numbers: std::ops::Range<usize>| -> Vec<StoredAlert> {
        numbers.map(|n| alert(&format!("{n:05}"), 1, 10)).collect()
    };
    let all = of(0..2 * LOAD_PAGE + 3);
    store
        .commit(held, upserts(all.clone()), second(2))
        .await
        .unwrap();
    let loaded = take_up(&store, 3).await;
    assert!(loaded.alerts == all[..LOAD_PAGE], "the first page");
    let mut after = loaded.alerts[LOAD_PAGE - 1].id.clone();
    for page in [&all[LOAD_PAGE..2 * LOAD_PAGE], &all[2 * LOAD_PAGE..]] {
        let next = store.load(loaded.held, after).await.unwrap();
        assert!(next == page, "{} alerts", next.len());
        after = next[next.len() - 1].id.clone();
    }
    assert_eq!(store.load(loaded.held, after).await.unwrap(), []);
}

pub(super) async fn open_alerts_are_found_by_their_ids(options: Options) {
    let store = open(&options).await;
    let held = held(&store).await;
    let alerts = ["a", "b", "c"].map(|id| alert(id, 1, 10));
    store
        .commit(held, upserts(alerts.clone()), second(2))
        .await
        .unwrap();
    let gone = Commit {
        departures: vec![("c".into(), 2)],
        ..Commit::default()
    };
    store.commit(held, gone, second(3)).await.unwrap();
    let ids = ["b", "c", "d", "a"].map(Box::from).to_vec();
    let mut found = store.stored(held, ids).await.unwrap();
    found.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(found, alerts[..2]);
    assert_eq!(store.stored(held, Vec::new()).await.unwrap(), []);
}

pub(super) async fn an_alert_that_left_keeps_its_ordinal(options: Options) {
    let store = open(&options).await;
    let held = held(&store).await;
    let other = store
        .take_up(&key("acme", "client_1", "other"), second(1))
        .await
        .unwrap()
        .held;
    let leave = |ordinal| Commit {
        departures: vec![("a".into(), ordinal)],
        ..Commit::default()
    };
    let day = 24 * 60 * 60;
    store
        .commit(
            held,
            upserts([alert("a", 1, 1), alert("b", 1, 1)]),
            second(2),
        )
        .await
        .unwrap();
    store.commit(held, leave(2), second(3)).await.unwrap();
    store.commit(held, leave(4), second(4)).await.unwrap();
    let ids = || vec!["b".into(), "a".into(), "c".into()];
    assert_eq!(
        store.departed(held, ids()).await.unwrap(),
        [("a".into(), 4)]
    );
    assert_eq!(store.departed(other, ids()).await.unwrap(), []);
    assert_eq!(store.departed(held, Vec::new()).await.unwrap(), []);

    let loaded = take_up(&store, 1).await;
    assert!(loaded.has_departed);
    assert_eq!(loaded.alerts, [alert("b", 1, 1)]);
    let held = loaded.held;

    for (may_forget, now, remembered) in [
        (true, second(4 + 90 * day), 1),
        (false, second(5 + 90 * day), 1),
        (true, second(5 + 90 * day), 0),
    ] {
        let commit = Commit {
            may_forget,
            ..Commit::default()
        };
        store.commit(held, commit, now).await.unwrap();
        assert_eq!(
            store.departed(held, ids()).await.unwrap().len(),
            remembered,
            "{may_forget}"
        );
    }
}

pub(super) async fn a_later_take_up_refuses_what_the_earlier_holder_commits(options: Options) {
    let store = open(&options).await;
    sinks(&store, &["s"]).await;
    let earlier = held(&store).await;
    let later = held(&store).await;
    assert_eq!(earlier.row, later.row);
    assert!(earlier.epoch < later.epoch);
    let refused = store.commit(earlier, events(1..2), second(2)).await;
    assert!(matches!(refused, Err(Error::LeaseLost)), "{refused:?}");
    store.commit(later, events(2..3), second(2)).await.unwrap();
    assert_eq!(waiting(&store, "s").await, [2]);
}

pub(super) async fn a_search_that_was_given_back_takes_no_commit(options: Options) {
    let store = open(&options).await;
    let first = held(&store).await;
    let second_hold = held(&store).await;
    // This release comes too late: somebody else holds the search.
    store.release(first).await.unwrap();
    store
        .commit(second_hold, Commit::default(), second(2))
        .await
        .unwrap();
    store.release(second_hold).await.unwrap();
    let refused = store
        .commit(second_hold, Commit::default(), second(2))
        .await;
    assert!(matches!(refused, Err(Error::LeaseLost)), "{refused:?}");
    let third = held(&store).await;
    assert!(third.epoch > second_hold.epoch);
    store
        .commit(third, Commit::default(), second(2))
        .await
        .unwrap();
}

// === journal and sinks ===

pub(super) async fn an_earlier_holder_gives_nothing_back_of_the_later_ones(options: Options) {
    let store = open(&options).await;
    sinks(&store, &["s"]).await;
    let (earlier, later) = (held(&store).await, held(&store).await);
    store.commit(later, events(1..3), second(1)).await.unwrap();
    store.release(earlier).await.unwrap();
    assert_eq!(waiting(&store, "s").await, [1, 2]);
    store.commit(later, events(3..4), second(1)).await.unwrap();
    store.close().await;
}

pub(super) async fn a_new_sink_starts_with_the_next_event(options: Options) {
    let store = open(&options).await;
    let held = held(&store).await;
    assert_eq!(sinks(&store, &["s"]).await, [SinkState::default()]);
    store.commit(held, events(1..4), second(2)).await.unwrap();
    assert_eq!(
        sinks(&store, &["new", "s"]).await,
        [SinkState::default(), SinkState::default()]
    );
    store.commit(held, events(4..6), second(2)).await.unwrap();
    assert_eq!(waiting(&store, "s").await, [1, 2, 3, 4, 5]);
    assert_eq!(waiting(&store, "new").await, [4, 5]);
}

pub(super) async fn events_come_in_order_and_again_until_they_are_acknowledged(options: Options) {
    let store = open(&options).await;
    let held = held(&store).await;
    sinks(&store, &["s"]).await;
    store.commit(held, events(1..4), second(2)).await.unwrap();
    assert_eq!(waiting(&store, "s").await, [1, 2, 3]);
    let first = store.pending("s", 1, usize::MAX).await.unwrap();
    assert_eq!(numbers(&first), [1]);
    store
        .acknowledge("s", first.events[0].position, None)
        .await
        .unwrap();
    assert_eq!(waiting(&store, "s").await, [2, 3]);
    store.close().await;

    let store = open(&options).await;
    assert_eq!(sinks(&store, &["s"]).await, [SinkState::default()]);
    self::held(&store).await;
    assert_eq!(waiting(&store, "s").await, [2, 3]);
    acknowledge_all(&store, "s").await;
    assert_eq!(waiting(&store, "s").await, []);
    store.close().await;

    // Positions go on growing although the journal is empty.
    let store = open(&options).await;
    sinks(&store, &["s"]).await;
    let held = self::held(&store).await;
    store.commit(held, events(4..5), second(2)).await.unwrap();
    let last = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(numbers(&last), [4]);
    assert!(last.events[0].position > first.events[0].position);
}

pub(super) async fn each_sink_has_its_own_cursor(options: Options) {
    let store = open(&options).await;
    let held = held(&store).await;
    sinks(&store, &["a", "b"]).await;
    store.commit(held, events(1..3), second(2)).await.unwrap();
    acknowledge_all(&store, "a").await;
    assert_eq!(waiting(&store, "a").await, []);
    assert_eq!(waiting(&store, "b").await, [1, 2]);
}

pub(super) async fn a_mark_survives_and_the_last_one_counts(options: Options) {
    let store = open(&options).await;
    let held = held(&store).await;
    sinks(&store, &["s"]).await;
    store.commit(held, events(1..3), second(2)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    for (pending, mark) in batch.events.iter().zip([b"one".to_vec(), b"two".to_vec()]) {
        store
            .acknowledge("s", pending.position, Some(mark))
            .await
            .unwrap();
    }
    store.close().await;
    let store = open(&options).await;
    let two = SinkState {
        mark: Some(b"two".to_vec()),
    };
    assert_eq!(sinks(&store, &["s"]).await, [two]);
    // The mark can change without an event, for instance when a file was rotated.
    let held = self::held(&store).await;
    store.commit(held, events(3..4), second(2)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    let before = batch.events[0].position - 1;
    store.acknowledge("s", before, None).await.unwrap();
    assert_eq!(sinks(&store, &["s"]).await, [SinkState::default()]);
    assert_eq!(waiting(&store, "s").await, [3]);
}

pub(super) async fn an_old_acknowledgement_changes_nothing(options: Options) {
    let store = open(&options).await;
    let held = held(&store).await;
    sinks(&store, &["s"]).await;
    store.commit(held, events(1..4), second(2)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    let (first, second) = (batch.events[0].position, batch.events[1].position);
    let mark = |mark: &str| Some(mark.as_bytes().to_vec());
    store.acknowledge("s", second, mark("new")).await.unwrap();
    store.acknowledge("s", first, mark("old")).await.unwrap();
    assert_eq!(waiting(&store, "s").await, [3]);
    assert_eq!(sinks(&store, &["s"]).await[0].mark, mark("new"));
}

pub(super) async fn an_acknowledgement_beyond_the_end_skips_nothing(options: Options) {
    let store = open(&options).await;
    let held = held(&store).await;
    sinks(&store, &["s"]).await;
    store.acknowledge("s", i64::MAX, None).await.unwrap();
    store.commit(held, events(1..3), second(2)).await.unwrap();
    assert_eq!(waiting(&store, "s").await, [1, 2]);
}

pub(super) async fn a_batch_is_bounded_by_events_and_by_bytes(options: Options) {
    let store = open(&options).await;
    let held = held(&store).await;
    sinks(&store, &["s"]).await;
    store.commit(held, events(1..6), second(2)).await.unwrap();
    let body = event(1).body.len();
    for (max_events, max_bytes, expected) in [
        (2, usize::MAX, 2),
        (9, 0, 1),
        (9, body, 1),
        (9, 2 * body - 1, 1),
        (9, 2 * body, 2),
        (9, usize::MAX, 5),
        (0, usize::MAX, 0),
    ] {
        let batch = store.pending("s", max_events, max_bytes).await.unwrap();
        assert_eq!(batch.events.len(), expected, "{max_events} {max_bytes}");
    }
}

pub(super) async fn a_sink_that_is_removed_makes_room_where_it_alone_is_in_the_way(
    options: Options,
) {
    let store = open(&with_limit(&options, 3)).await;
    let held = held(&store).await;
    sinks(&store, &["fast", "dead"]).await;
    store.commit(held, events(1..4), second(2)).await.unwrap();
    acknowledge_all(&store, "fast").await;
    assert!(!store.has_room(1).await.unwrap());
    let full = store.commit(held, events(4..5), second(2)).await;
    assert!(
        matches!(&full, Err(Error::JournalFull { limit: 3, sink }) if **sink == *"dead"),
        "{full:?}"
    );
    sinks(&store, &["fast"]).await;
    assert!(store.has_room(3).await.unwrap());
    assert!(!store.has_room(4).await.unwrap());
    store.commit(held, events(4..7), second(2)).await.unwrap();
    assert_eq!(waiting(&store, "fast").await, [4, 5, 6]);
    // The sink was given up, so it starts anew like any other.
    assert_eq!(
        sinks(&store, &["dead", "fast"]).await,
        [SinkState::default(), SinkState::default()]
    );
    assert_eq!(waiting(&store, "dead").await, []);
}

pub(super) async fn a_sink_that_is_named_again_goes_on_where_it_was(options: Options) {
    let store = open(&options).await;
    let held = held(&store).await;
    sinks(&store, &["stays", "leaves"]).await;
    store.commit(held, events(1..4), second(2)).await.unwrap();
    let batch = store.pending("leaves", 2, usize::MAX).await.unwrap();
    sinks(&store, &["stays"]).await;
    // The last delivery of the sink that left ends only now.
    let mark = Some(b"two".to_vec());
    let last = batch.events[1].position;
    store.acknowledge("leaves", last, mark).await.unwrap();
    drop(batch);
    let unknown = store.backlog("leaves").await;
    assert!(matches!(unknown, Err(Error::UnknownSink { .. })));
    acknowledge_all(&store, "stays").await;
    store.commit(held, events(4..5), second(2)).await.unwrap();
    store.close().await;

    let store = open(&options).await;
    sinks(&store, &["stays"]).await;
    self::held(&store).await;
    let mark = Some(b"two".to_vec());
    let states = sinks(&store, &["leaves", "stays"]).await;
    assert_eq!(states, [SinkState { mark }, SinkState::default()]);
    assert_eq!(waiting(&store, "leaves").await, [3, 4]);
    assert_eq!(waiting(&store, "stays").await, [4]);
    store.close().await;
}

pub(super) async fn an_unknown_sink_is_an_error(options: Options) {
    let store = open(&options).await;
    sinks(&store, &["s"]).await;
    let unknown = |error| matches!(error, Error::UnknownSink { name } if name == "x");
    assert!(unknown(store.pending("x", 1, 1).await.unwrap_err()));
    assert!(unknown(store.backlog("x").await.unwrap_err()));
    assert!(unknown(store.acknowledge("x", 1, None).await.unwrap_err()));
}

pub(super) async fn without_a_sink_events_are_not_kept(options: Options) {
    let store = open(&with_limit(&options, 2)).await;
    let held = held(&store).await;
    let commit = Commit {
        events: events(1..9).events,
        ..upserts([alert("a", 1, 1)])
    };
    store.commit(held, commit, second(2)).await.unwrap();
    sinks(&store, &["s"]).await;
    assert_eq!(waiting(&store, "s").await, []);
    assert_eq!(store.backlog("s").await.unwrap(), Backlog::default());
    store.commit(held, events(9..10), second(2)).await.unwrap();
    assert_eq!(waiting(&store, "s").await, [9]);
}

pub(super) async fn a_full_journal_takes_alerts_but_no_events(options: Options) {
    let store = open(&with_limit(&options, 4)).await;
    let held = held(&store).await;
    sinks(&store, &["a", "b"]).await;
    store.commit(held, events(1..4), second(2)).await.unwrap();
    let refused = Commit {
        events: events(4..6).events,
        primed: true,
        departures: vec![("gone".into(), 1)],
        ..upserts([alert("refused", 1, 1)])
    };
    let full = store.commit(held, refused, second(2)).await;
    assert!(
        matches!(full, Err(Error::JournalFull { limit: 4, .. })),
        "{full:?}"
    );
    assert!(!store.has_room(2).await.unwrap());
    assert!(store.has_room(1).await.unwrap());
    store.commit(held, events(6..7), second(2)).await.unwrap();
    store
        .commit(held, upserts([alert("taken", 1, 1)]), second(2))
        .await
        .unwrap();
    let gone = vec!["gone".into()];
    assert_eq!(store.departed(held, gone).await.unwrap(), []);
    // The slowest sink decides.
    acknowledge_all(&store, "a").await;
    assert!(store.commit(held, events(7..8), second(2)).await.is_err());
    acknowledge_all(&store, "b").await;
    store.commit(held, events(8..12), second(2)).await.unwrap();
    assert_eq!(waiting(&store, "b").await, [8, 9, 10, 11]);

    let loaded = take_up(&store, 3).await;
    assert!(!loaded.primed);
    assert_eq!(loaded.alerts, [alert("taken", 1, 1)]);
}

pub(super) async fn a_backlog_counts_and_dates_what_waits(options: Options) {
    let store = open(&options).await;
    let held = held(&store).await;
    sinks(&store, &["s"]).await;
    assert_eq!(store.backlog("s").await.unwrap(), Backlog::default());
    store.commit(held, events(1..4), second(2)).await.unwrap();
    let three = Backlog {
        events: 3,
        oldest: Some(event(1).at),
    };
    assert_eq!(store.backlog("s").await.unwrap(), three);
    let first = store.pending("s", 2, usize::MAX).await.unwrap();
    store
        .acknowledge("s", first.events[1].position, None)
        .await
        .unwrap();
    let one = Backlog {
        events: 1,
        oldest: Some(event(3).at),
    };
    assert_eq!(store.backlog("s").await.unwrap(), one);
    acknowledge_all(&store, "s").await;
    assert_eq!(store.backlog("s").await.unwrap(), Backlog::default());
}

pub(super) async fn the_watch_tells_the_last_position(options: Options) {
    let store = open(&options).await;
    let held = held(&store).await;
    sinks(&store, &["s"]).await;
    let mut journalled = store.journalled();
    let before = *journalled.borrow_and_update();
    store
        .commit(held, upserts([alert("a", 1, 1)]), second(2))
        .await
        .unwrap();
    assert!(!journalled.has_changed().unwrap());
    store.commit(held, events(1..3), second(2)).await.unwrap();
    assert!(journalled.has_changed().unwrap());
    let last = *journalled.borrow_and_update();
    assert!(last > before);
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(batch.events[1].position, last);
    // A receiver that subscribes later sees the last position, too.
    assert_eq!(*store.journalled().borrow(), last);
}

// === the page ===

pub(super) async fn the_page_shows_the_newest_first_and_filters(options: Options) {
    let store = open(&options).await;
    let mut holds = Vec::new();
    for (account, tenant, search) in [
        ("acme", "client_1", "open"),
        ("acme", "client_2", "open"),
        ("other", "client_1", "all"),
    ] {
        let key = key(account, tenant, search);
        holds.push(store.take_up(&key, second(1)).await.unwrap().held);
    }
    let warning = |alert: StoredAlert| StoredAlert {
        state: "Warning".into(),
        ..alert
    };
    let undated = StoredAlert {
        created_at: None,
        ..alert("undated", 1, 0)
    };
    for (held, alerts) in holds.into_iter().zip([
        vec![alert("a", 1, 10), warning(alert("d", 1, 40)), undated],
        vec![alert("c", 1, 30), alert("a", 1, 5)],
        vec![warning(alert("b", 1, 20))],
    ]) {
        store
            .commit(held, upserts(alerts), second(2))
            .await
            .unwrap();
    }
    let all = all_alerts(99);
    let word = |word: &str| Some(word.to_owned());
    for (filter, expected) in [
        (all.clone(), "d c b a a undated"),
        (
            AlertFilter {
                limit: 2,
                ..all.clone()
            },
            "d c",
        ),
        (
            AlertFilter {
                account: word("acme"),
                ..all.clone()
            },
            "d c a a undated",
        ),
        (
            AlertFilter {
                tenant: word("client_1"),
                ..all.clone()
            },
            "d b a undated",
        ),
        (
            AlertFilter {
                search: word("all"),
                ..all.clone()
            },
            "b",
        ),
        (
            AlertFilter {
                state: word("wARNING"),
                ..all.clone()
            },
            "d b",
        ),
        (
            AlertFilter {
                account: word("acme"),
                tenant: word("client_1"),
                search: word("open"),
                state: word("critical"),
                limit: 1,
            },
            "a",
        ),
        (
            AlertFilter {
                search: word("none"),
                ..all.clone()
            },
            "",
        ),
        (AlertFilter { limit: 0, ..all }, ""),
    ] {
        let shown = store.open_alerts(filter.clone()).await.unwrap();
        let ids: Vec<_> = shown.iter().map(|open| &*open.alert.id).collect();
        assert_eq!(ids.join(" "), expected, "{filter:?}");
    }
    let all = AlertFilter {
        limit: 1,
        account: word("other"),
        ..AlertFilter::default()
    };
    let shown = store.open_alerts(all).await.unwrap();
    assert_eq!(shown[0].account, "other");
    assert_eq!(shown[0].tenant_id, "client_1");
    assert_eq!(shown[0].search, "all");
    assert_eq!(shown[0].alert, warning(alert("b", 1, 20)));
}

pub(super) async fn a_state_of_whatever_characters_is_stored_and_sought(options: Options) {
    let store = open(&options).await;
    let held = held(&store).await;
    let state: String = (0..=0x2ff).filter_map(char::from_u32).collect();
    let odd = StoredAlert {
        state: state.as_str().into(),
        ..alert("odd", 1, 10)
    };
    store.commit(held, upserts([odd]), second(2)).await.unwrap();
    let found = store.stored(held, vec!["odd".into()]).await.unwrap();
    assert_eq!(found[0].body, "body of odd 1");
    let filter = AlertFilter {
        state: Some(state),
        limit: 9,
        ..AlertFilter::default()
    };
    assert_eq!(store.open_alerts(filter).await.unwrap().len(), 1);
}

pub(super) async fn the_page_shows_only_searches_that_are_held(options: Options) {
    let filter = all_alerts(9);
    let store = open(&options).await;
    let held = held(&store).await;
    store
        .commit(held, upserts([alert("a", 1, 1)]), second(2))
        .await
        .unwrap();
    assert_eq!(store.open_alerts(filter.clone()).await.unwrap().len(), 1);
    store.release(held).await.unwrap();
    assert_eq!(store.open_alerts(filter.clone()).await.unwrap().len(), 0);
    store.close().await;
    let store = open(&options).await;
    assert_eq!(store.open_alerts(filter.clone()).await.unwrap().len(), 0);
    self::held(&store).await;
    assert_eq!(store.open_alerts(filter).await.unwrap().len(), 1);
}

// === trouble ===

pub(super) async fn in_what_trouble_it_is_to_begin_with_is_told_once(options: Options) {
    let store = Store::open(&options).await.unwrap();
    let mut trouble = store.trouble();
    let told = tokio::time::timeout(Duration::from_secs(60), trouble.changed());
    told.await.unwrap().unwrap();
    assert_eq!(*trouble.borrow_and_update(), None);
    let later = tokio::time::timeout(Duration::from_millis(100), trouble.changed());
    // SQLite never reports any trouble.
    assert!(!matches!(later.await, Ok(Ok(()))));
}

// === all at once ===

pub(super) async fn callers_at_the_same_time_all_get_what_they_asked_for(options: Options) {
    const CALLERS: u128 = 40;
    const ROUNDS: u128 = 5;
    // Half of the events find room. Each refusal concerns one commit only.
    let limit = u64::try_from(CALLERS * ROUNDS / 2).unwrap();
    let store = open(&with_limit(&options, limit)).await;
    sinks(&store, &["s"]).await;
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let store = store.clone();
        callers.spawn(async move {
            let key = key("acme", &format!("client_{caller}"), "open");
            let held = store.take_up(&key, second(1)).await.unwrap().held;
            let mut taken = Vec::new();
            for round in 0..ROUNDS {
                let number = caller * ROUNDS + round;
                let commit = Commit {
                    events: vec![event(number)],
                    ..upserts([alert(&number.to_string(), 1, 1)])
                };
                match store.commit(held, commit, second(2)).await {
                    Ok(()) => taken.push(number),
                    Err(Error::JournalFull { .. }) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
            let loaded = store.take_up(&key, second(3)).await.unwrap();
            let mut stored: Vec<u128> = loaded
                .alerts
                .iter()
                .map(|alert| alert.id.parse().unwrap())
                .collect();
            stored.sort_unstable();
            assert_eq!(stored, taken);
            taken
        });
    }
    let mut taken = callers.join_all().await.concat();
    taken.sort_unstable();
    let mut waiting = waiting(&store, "s").await;
    waiting.sort_unstable();
    assert_eq!(waiting, taken);
    assert_eq!(taken.len() as u64, limit);
}

pub(super) async fn a_closed_store_says_so(options: Options) {
    let store = open(&options).await;
    let held = held(&store).await;
    sinks(&store, &["s"]).await;
    let clone = store.clone();
    store.close().await;
    store.close().await;
    assert!(matches!(
        clone.commit(held, Commit::default(), second(2)).await,
        Err(Error::Closed)
    ));
    assert!(matches!(clone.pending("s", 1, 1).await, Err(Error::Closed)));
    assert!(matches!(
        clone.open_alerts(AlertFilter::default()).await,
        Err(Error::Closed)
    ));
}
