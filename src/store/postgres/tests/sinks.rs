//! Sinks: their parts of the journal and their marks.

use super::*;
use crate::store::left_sinks::captured;

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_another_replica_names_keeps_its_part_of_the_journal() {
    let url = server::shared().fresh();
    let old = open(&url, "old", LEASE).await;
    let new = open(&url, "new", LEASE).await;
    old.set_sinks(names(&["s"])).await.unwrap();
    new.set_sinks(names(&["s", "t"])).await.unwrap();
    let held = old.take_up(&a_search(), second(1)).await.unwrap().held;
    old.commit(held, events(1..3), second(2)).await.unwrap();
    deliver(&old, "s", 2).await;
    old.close().await;
    take_over(&new).await;
    assert_eq!(waiting(&new, "t").await, [1, 2]);
    assert_eq!(waiting(&new, "s").await, [0; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_another_replica_named_first_misses_nothing() {
    let url = server::shared().fresh();
    let old = open(&url, "old", LEASE).await;
    let new = open(&url, "new", LEASE).await;
    let held = hold(&old, &["s"]).await;
    old.commit(held, events(1..2), second(2)).await.unwrap();
    new.set_sinks(names(&["s", "t"])).await.unwrap();
    old.commit(held, events(2..4), second(2)).await.unwrap();
    // This search is newer than the sink.
    let later = key("acme", "client_1", "later");
    let later = old.take_up(&later, second(2)).await.unwrap().held;
    old.commit(later, events(4..5), second(2)).await.unwrap();
    old.set_sinks(names(&["s", "t"])).await.unwrap();
    old.commit(held, events(5..6), second(2)).await.unwrap();
    for (sink, expected) in [("t", &[2, 3, 4, 5][..]), ("s", &[1, 2, 3, 4, 5])] {
        let batch = old.pending(sink, 9, usize::MAX).await.unwrap();
        // The searches may come in any order.
        let mut told = told(&batch);
        told.sort_unstable();
        assert_eq!(told, expected);
        let last = batch.events.last().unwrap().position;
        old.acknowledge(sink, last, None).await.unwrap();
    }
    wait_for_journal(&old, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_sink_has_is_removed_from_the_server() {
    let store = open(&server::shared().fresh(), "node", LEASE).await;
    let held = hold(&store, &["s", "t"]).await;
    store.commit(held, events(1..4), second(2)).await.unwrap();
    for (sink, delivered, left) in [("s", 3, 3), ("t", 2, 1), ("t", 1, 0)] {
        deliver(&store, sink, delivered).await;
        delivery::prune(shared(&store)).await.unwrap();
        wait_for_journal(&store, left).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_sink_has_is_removed_however_much_it_is() {
    let (url, store) = stalled_with_sink().await;
    store.take_up(&a_search(), second(1)).await.unwrap();
    let count = 2 * delivery::PRUNE_STEP + 1;
    // This is how an outage leaves the journal of a sink that is removed then.
    sql(
        &url,
        &format!(
            "INSERT INTO journal (search_id, position, event_id, at, body)
             SELECT id, number, gen_random_uuid(), now(), '' FROM search, generate_series(1, {count}) number;
             UPDATE search SET journal_end = {count};
             INSERT INTO progress (sink, search_id, position) SELECT 's', id, {count} FROM search"
        ),
    );
    delivery::prune(shared(&store)).await.unwrap();
    assert_eq!(sql(&url, "SELECT count(*) FROM journal"), "0");
}

/// Lets a sink that has left be gone for an hour longer.
fn let_an_hour_pass(url: &str, sink: &str) {
    let since = "unnamed_since = unnamed_since - interval '1 hour'";
    sql(
        url,
        &format!("UPDATE sink SET {since} WHERE name = '{sink}'"),
    );
}

/// Waits until the server keeps so many events, and no fewer.
async fn wait_for_journal(store: &Store, events: i64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut session = shared(store).pool.session().await.unwrap();
        let sql = "SELECT count(*) FROM journal";
        let rows = session.query(sql, &[]).await.unwrap();
        let kept: i64 = rows[0].get(0);
        if kept == events {
            return;
        }
        assert!(kept > events && Instant::now() < deadline, "{kept} events");
        drop(session);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_is_stored_only_with_every_place_that_it_stands_for() {
    let (url, store) = stalled_with_sink().await;
    let other = key("acme", "client_1", "other");
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    let lost = store.take_up(&other, second(1)).await.unwrap().held;
    store.commit(held, events(1..3), second(2)).await.unwrap();
    store.commit(lost, events(3..5), second(2)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&batch), [1, 2, 3, 4]);
    // Another replica takes the search up.
    sql(
        &url,
        "UPDATE search SET epoch = epoch + 1 WHERE name = 'other'",
    );
    let acknowledged = async || {
        let last = batch.events[3].position;
        let mark = Some(b"four".to_vec());
        store.acknowledge("s", last, mark).await.unwrap();
    };
    let told_of = async || {
        let told = timeout(LEASE / 2, store.relieved(lost)).await;
        told.expect("whoever polls the search is told at once");
    };
    tokio::join!(told_of(), acknowledged());
    let stored = "SELECT position FROM progress JOIN search ON id = search_id WHERE name = 'open'";
    assert_eq!(sql(&url, stored), "2");
    let mark = "SELECT encode(mark, 'escape') FROM mark";
    assert_eq!(sql(&url, mark), "");
    acknowledged().await;
    assert_eq!(sql(&url, mark), "four");
    let unsaved = || shared(&store).change_journals(|state| state.unsaved("s").0);
    assert_eq!(unsaved(), journal::Unsaved::default());
    // Everything that was told in one statement counts as told.
    store.commit(held, events(5..6), second(3)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    let last = batch.events[0].position;
    let mark = Some(b"five".to_vec());
    store.acknowledge("s", last, mark).await.unwrap();
    assert_eq!(unsaved(), journal::Unsaved::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_sink_that_is_there_already_the_mark_in_memory_counts() {
    let url = server::shared().fresh();
    // This replica keeps the sinks from being forgotten.
    let other = open(&url, "other", LEASE).await;
    let first = open(&url, "node", LEASE).await;
    first.set_sinks(names(&["s", "t"])).await.unwrap();
    for (sink, mark) in [("s", "s 1"), ("t", "t 1")] {
        let end = shared(&first).look(|state| state.journal.end());
        let mark = Some(mark.as_bytes().to_vec());
        first.acknowledge(sink, end, mark).await.unwrap();
    }
    first.close().await;

    let next = open(&url, "node", LEASE).await;
    let marks = async |sinks: &[&str]| {
        let states = next.set_sinks(names(sinks)).await.unwrap();
        let marks = states.into_iter().map(|state| state.mark.unwrap());
        marks
            .map(|mark| String::from_utf8(mark).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(marks(&["s"]).await, ["s 1"]);
    // The server could not be told at that moment.
    shared(&next).change_journals(|state| {
        let end = state.journal.end();
        state.journal.acknowledge("s", end, Some(b"s 2".to_vec()));
    });
    assert_eq!(marks(&["s", "t"]).await, ["s 2", "t 1"]);
    other.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_others_have_removed_is_named_again() {
    let url = server::shared().fresh();
    let store = open(&url, "node", Duration::from_secs(3)).await;
    let held = hold(&store, &["s"]).await;
    sql(&url, "DELETE FROM sink");
    // Others may tell the replica of all sinks before it names its own again.
    let mut session = shared(&store).pool.session().await.unwrap();
    naming::hear_of_sinks(shared(&store), &mut session)
        .await
        .unwrap();
    drop(session);
    let own = shared(&store).look(|state| state.journal.own_sinks());
    assert_eq!(own, ["s".into()]);
    let is_named = || sql(&url, "SELECT name FROM sink") == "s";
    wait_until("it is never named again", is_named).await;
    store.commit(held, events(1..3), second(2)).await.unwrap();
    deliver(&store, "s", 2).await;
    wait_for_journal(&store, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_wakes_up_takes_nobodys_sinks_for_gone() {
    let (url, store) = stalled_with_sink().await;
    sql(
        &url,
        "INSERT INTO sink (name) VALUES ('t');
         UPDATE replica SET alive_until = now() - interval '2 hours';
         UPDATE sink SET unnamed_since = now() - interval '1 hour' WHERE name = 's'",
    );
    keeper::forget(shared(&store)).await.unwrap();
    let known = "SELECT name, unnamed_since IS NULL FROM sink ORDER BY name";
    assert_eq!(sql(&url, known), "s|f\nt|t");
    // As soon as the replica is known to be alive, its own sink counts as named, and the other one
    // does not.
    sql(
        &url,
        "UPDATE replica SET alive_until = now() + interval '2 hours'",
    );
    keeper::forget(shared(&store)).await.unwrap();
    assert_eq!(sql(&url, known), "s|t\nt|f");
    // Whoever names its sinks before that keeps others from giving them up.
    sql(
        &url,
        "UPDATE replica SET alive_until = now() - interval '2 hours';
         UPDATE sink SET unnamed_since = now() - interval '1 hour'",
    );
    store.set_sinks(names(&["s"])).await.unwrap();
    assert_eq!(sql(&url, known), "s|t\nt|f");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_died_is_forgotten_after_an_hour() {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    sql(
        &url,
        "INSERT INTO replica (id, node, alive_until) VALUES
            (1, 'long ago', now() - interval '61 minutes'),
            (2, 'lately', now() - interval '50 minutes')",
    );
    keeper::forget(shared(&store)).await.unwrap();
    let known = "SELECT node FROM replica ORDER BY node";
    assert_eq!(sql(&url, known), "lately\nstalled");
}

#[tokio::test(flavor = "multi_thread")]
async fn sinks_hear_of_it_when_what_waits_is_lost() {
    let store = open(&server::shared().fresh(), "node", LEASE).await;
    let held = hold(&store, &["s"]).await;
    store.commit(held, events(1..3), second(2)).await.unwrap();
    let mut journalled = store.journalled();
    journalled.mark_unchanged();
    shared(&store).change_leases(|state| state.lose(held));
    assert!(journalled.has_changed().unwrap());
    let backlog = store.backlog("s").await;
    assert!(matches!(backlog, Err(Error::Unclear)), "{backlog:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sinks_whose_change_was_not_answered_are_those_that_were() {
    let url = server::shared().fresh();
    let (proxy, by_proxy) = behind_proxy(&url).await;
    let store = open(&by_proxy, "node", Duration::from_secs(4)).await;
    let held = hold(&store, &["s", "t"]).await;
    store.commit(held, events(1..3), second(2)).await.unwrap();
    for (changed, kept) in [(&["s"][..], "{s,t}"), (&["s", "t", "u"], "{s,t,u}")] {
        proxy.set(proxy::Weather::Unanswered {
            question: "COMMIT\0",
        });
        store.set_sinks(names(changed)).await.unwrap_err();
        proxy.set(proxy::Weather::Fair);
        let known = "SELECT replica.sinks, array_agg(sink.name ORDER BY sink.name)
             FROM replica, sink GROUP BY replica.sinks";
        let expected = format!("{{s,t}}|{kept}");
        wait_until(&expected, || sql(&url, known) == expected).await;
    }
    // Nothing is kept for long for a sink that no replica has.
    let_an_hour_pass(&url, "u");
    keeper::forget(shared(&store)).await.unwrap();
    assert_eq!(
        sql(&url, "SELECT string_agg(name, ',' ORDER BY name) FROM sink"),
        "s,t"
    );
    // Nothing was lost.
    take_over(&store).await;
    for sink in ["s", "t"] {
        deliver(&store, sink, 2).await;
    }
    wait_for_journal(&store, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_not_answered_costs_no_other_replicas_sink_what_waits_for_it() {
    let url = server::shared().fresh();
    let other = open(&url, "other", LEASE).await;
    let held = hold(&other, &["s", "extra"]).await;
    other.commit(held, events(1..3), second(2)).await.unwrap();
    let (proxy, by_proxy) = behind_proxy(&url).await;
    let store = open(&by_proxy, "node", Duration::from_secs(4)).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    other.close().await;
    proxy.set(proxy::Weather::Unanswered {
        question: "COMMIT\0",
    });
    store.set_sinks(names(&["s", "extra"])).await.unwrap_err();
    proxy.set(proxy::Weather::Fair);
    let is_said = || sql(&url, "SELECT sinks FROM replica") == "{s}";
    wait_until("what is in force is never said again", is_said).await;
    // The next try comes before the sink is given up.
    store.set_sinks(names(&["s", "extra"])).await.unwrap();
    take_over(&store).await;
    assert_eq!(waiting(&store, "extra").await, [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_delivered_is_told_before_a_search_is_given_back() {
    let url = server::shared().fresh();
    let (first, other) = two_replicas(&url).await;
    for store in [&first, &other] {
        store.set_sinks(names(&["s", "t"])).await.unwrap();
    }
    let held = first.take_up(&a_search(), second(1)).await.unwrap().held;
    first.commit(held, events(1..3), second(2)).await.unwrap();
    for sink in ["s", "t"] {
        let batch = first.pending(sink, 9, usize::MAX).await.unwrap();
        // The server could not be told at that moment.
        let last = batch.events[1].position;
        shared(&first).change_journals(|state| state.journal.acknowledge(sink, last, None));
    }
    first.release(held).await.unwrap();
    take_over(&other).await;
    for sink in ["s", "t"] {
        assert_eq!(waiting(&other, sink).await, [0; 0], "{sink}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_standby_that_lags_behind_does_not_show_is_not_skipped() {
    let url = server::shared().fresh_for("lagging");
    let store = open(&url, "node", LEASE).await;
    let held = hold(&store, &["s"]).await;
    store.commit(held, events(1..6), second(2)).await.unwrap();
    // This is what a pooler does that sends all reads to a standby: a transaction that has locked
    // nothing sees only what the standby has by then.
    let lag = |shown: &str| {
        sql(
            &url,
            &format!(
                "ALTER TABLE journal ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
                 DROP POLICY IF EXISTS lag ON journal;
                 CREATE POLICY lag ON journal
                    USING (position IN ({shown}) OR txid_current_if_assigned() IS NOT NULL)"
            ),
        )
    };
    let pending = async || store.pending("s", 9, usize::MAX).await.unwrap();
    // Nothing is skipped, neither at the end nor in the midst.
    lag("1, 3, 5");
    assert_eq!(waiting(&store, "s").await, [1]);
    lag("3, 5");
    assert_eq!(waiting(&store, "s").await, [1, 2, 3, 4, 5]);
    lag("0");
    assert_eq!(waiting(&store, "s").await, [1, 2, 3, 4, 5]);

    // Events that are gone from the primary as well are skipped.
    lag("1, 3, 4, 5");
    sql(&url, "DELETE FROM journal WHERE position IN (2, 3)");
    let batch = pending().await;
    assert_eq!(told(&batch), [1]);
    store
        .acknowledge("s", batch.events[0].position, None)
        .await
        .unwrap();
    drop(batch);
    let batch = pending().await;
    assert_eq!(told(&batch), [4, 5]);
    sql(&url, "DELETE FROM journal");
    drop(batch);
    assert_eq!(waiting(&store, "s").await, [0; 0]);
    assert_eq!(store.backlog("s").await.unwrap().events, 0);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_skipped_where_nobody_can_tell_that_it_is_gone() {
    let url = server::shared().fresh_for("reading");
    let store = stalled(&url, LEASE).await;
    let held = hold(&store, &["s"]).await;
    store.commit(held, events(1..3), second(2)).await.unwrap();
    sql(
        &url,
        "ALTER TABLE journal RENAME TO primary_journal;
         CREATE VIEW journal AS SELECT * FROM primary_journal WHERE FALSE;
         ALTER VIEW journal OWNER TO reading;
         ALTER TABLE search OWNER TO CURRENT_USER; GRANT SELECT ON search TO reading",
    );
    // The user may not lock rows, as nobody may on a standby.
    store.pending("s", 9, usize::MAX).await.unwrap_err();
    sql(
        &url,
        "GRANT ALL ON search TO reading;
         DROP VIEW journal; ALTER TABLE primary_journal RENAME TO journal",
    );
    assert_eq!(waiting(&store, "s").await, [1, 2]);

    // Nothing is skipped either if another replica has the lease.
    sql(
        &url,
        "UPDATE search SET epoch = epoch + 1; CREATE TABLE kept AS TABLE journal;
         DELETE FROM journal",
    );
    let nothing = store.pending("s", 9, usize::MAX).await;
    assert!(matches!(nothing, Err(Error::Unclear)), "{nothing:?}");
    assert!(!shared(&store).look(|state| state.is_held(held)));
    assert_eq!(
        sql(&url, "SELECT count(*) FROM progress WHERE position > 0"),
        "0"
    );
}

#[tokio::test]
async fn a_sink_that_has_left_is_told_and_given_up_when_its_time_is_over_with_what_it_left() {
    let (lines, _logging) = captured();
    let url = server::shared().fresh();
    let store = open(&url, "node", LEASE).await;
    let held = hold(&store, &["stays", "leaves"]).await;
    store.commit(held, events(1..4), second(2)).await.unwrap();
    deliver(&store, "stays", 3).await;
    deliver(&store, "leaves", 1).await;
    let said = || {
        let mut lines = lines.lock();
        let of = |line: &String| line.contains("has left the configuration");
        lines.drain(..).filter(of).collect::<Vec<_>>()
    };
    store.set_sinks(names(&["stays"])).await.unwrap();
    let told = said();
    assert_eq!(told.len(), 1, "{told:?}");
    let kept = ["sink=leaves ", "events=2 ", "within ten minutes"];
    assert!(kept.iter().all(|it| told[0].contains(it)), "{told:?}");
    // Later events are not meant for the sink.
    let mut later = events(4..5);
    later.events[0].at = clock::now();
    store.commit(held, later, second(2)).await.unwrap();
    keeper::forget(shared(&store)).await.unwrap();
    assert_eq!(said(), [""; 0]);

    let_an_hour_pass(&url, "leaves");
    keeper::forget(shared(&store)).await.unwrap();
    let told = said();
    assert_eq!(told.len(), 1, "{told:?}");
    let given_up = ["sink=leaves ", "events=2 ", "is given up"];
    assert!(given_up.iter().all(|it| told[0].contains(it)), "{told:?}");
    assert_eq!(sql(&url, "SELECT name FROM sink"), "stays");
    // Events that only this sink lacked are removed.
    delivery::prune(shared(&store)).await.unwrap();
    wait_for_journal(&store, 1).await;
}

#[tokio::test]
async fn a_sink_that_was_given_up_and_named_again_lacks_nothing_where_nobody_heard_of_that() {
    let (lines, _logging) = captured();
    let url = server::shared().fresh();
    let first = open(&url, "first", LEASE).await;
    let store = stalled(&url, LEASE).await;
    for store in [&first, &store] {
        store.set_sinks(names(&["s", "extra"])).await.unwrap();
    }
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    store.commit(held, events(1..3), second(2)).await.unwrap();
    deliver(&store, "s", 2).await;
    for store in [&first, &store] {
        store.set_sinks(names(&["s"])).await.unwrap();
    }
    let_an_hour_pass(&url, "extra");
    keeper::forget(shared(&first)).await.unwrap();
    assert_eq!(sql(&url, "SELECT name FROM sink"), "s");
    delivery::prune(shared(&store)).await.unwrap();
    wait_for_journal(&store, 0).await;

    for store in [&first, &store] {
        store.set_sinks(names(&["s", "extra"])).await.unwrap();
    }
    assert_eq!(store.backlog("extra").await.unwrap(), Backlog::default());
    assert_eq!(waiting(&store, "extra").await, [0; 0]);
    store.commit(held, events(3..4), second(3)).await.unwrap();
    assert_eq!(waiting(&store, "extra").await, [3]);
    let lines = lines.lock().clone();
    let missing = lines.iter().filter(|line| line.contains("are missing"));
    assert_eq!(missing.count(), 0, "{lines:#?}");
    first.close().await;
}

#[tokio::test]
async fn a_sink_that_leaves_is_told_whatever_the_databases_clock_says() {
    let (lines, _logging) = captured();
    let url = server::shared().fresh();
    open(&url, "node", LEASE).await.close().await;
    // The schema's own function comes before the server's, and is two minutes behind.
    sql(
        &url,
        "CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql
            AS $$ SELECT pg_catalog.clock_timestamp() - interval '2 minutes' $$",
    );
    let store = open(&format!("{url}%2Cpg_catalog"), "node", LEASE).await;
    let held = hold(&store, &["stays", "leaves"]).await;
    let mut recent = events(1..4);
    for event in &mut recent.events {
        event.at = clock::now();
    }
    store.commit(held, recent, second(2)).await.unwrap();
    let said = |what: &str| {
        let mut lines = lines.lock();
        let of = |line: &String| line.contains(what) && line.contains("sink=leaves events=3 ");
        lines.drain(..).filter(of).count()
    };
    store.set_sinks(names(&["stays"])).await.unwrap();
    let behind =
        "SELECT unnamed_since < now() - interval '1 minute' FROM sink WHERE name = 'leaves'";
    assert_eq!(sql(&url, behind), "t");
    assert_eq!(said("within ten minutes"), 1);
    // Later events are not meant for the sink. Its own are old by then.
    let_an_hour_pass(&url, "leaves");
    sql(&url, "UPDATE journal SET at = at - interval '1 hour'");
    let mut later = events(4..5);
    later.events[0].at = clock::now();
    store.commit(held, later, second(2)).await.unwrap();
    keeper::forget(shared(&store)).await.unwrap();
    assert_eq!(said("is given up"), 1);
    store.close().await;
}

#[tokio::test]
async fn a_sink_of_a_replica_that_died_is_told_and_makes_room_for_new_events() {
    let (lines, _logging) = captured();
    let url = server::shared().fresh();
    let dead = stalled(&url, LEASE).await;
    dead.set_sinks(names(&["s", "extra"])).await.unwrap();
    let store = open(&url, "node", LEASE).await;
    let held = hold(&store, &["s"]).await;
    let all = events(1..1001);
    store.commit(held, all, second(2)).await.unwrap();
    deliver(&store, "s", 1000).await;
    let more = async || store.commit(held, events(1001..1002), second(3)).await;
    let full = more().await;
    assert!(matches!(full, Err(Error::JournalFull { .. })), "{full:?}");
    let said = || {
        let mut lines = lines.lock();
        let of = |line: &String| line.contains("sink=extra events=1000 ");
        lines.drain(..).filter(of).count()
    };
    sql(
        &url,
        "UPDATE replica SET alive_until = now() - interval '1 minute' WHERE node = 'stalled'",
    );
    for expected in [1, 0] {
        keeper::forget(shared(&store)).await.unwrap();
        assert_eq!(said(), expected);
    }
    more().await.unwrap();
    assert_eq!(said(), 1);
    assert_eq!(sql(&url, "SELECT name FROM sink"), "s");
    store.close().await;
}

#[tokio::test]
async fn what_waits_for_a_sink_that_only_another_replica_has_is_told() {
    let (lines, _logging) = captured();
    let url = server::shared().fresh();
    let lease = Duration::from_secs(2);
    let other = open(&url, "other", lease).await;
    other.set_sinks(names(&["s", "extra"])).await.unwrap();
    let store = open(&url, "node", lease).await;
    let held = hold(&store, &["s"]).await;
    store.commit(held, events(1..4), second(2)).await.unwrap();
    deliver(&store, "s", 3).await;
    let is_told = || {
        let lines = lines.lock();
        let of = |line: &String| line.contains("sink=extra events=3 ");
        lines.iter().filter(|line| of(line)).count()
    };
    wait_until("it is not told", || is_told() > 0).await;
    assert_eq!(is_told(), 1, "{lines:?}");
    store.close().await;
    other.close().await;
}

#[tokio::test]
async fn no_more_than_one_batch_is_given_while_its_acknowledgement_cannot_be_stored() {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    let held = hold(&store, &["s", "other"]).await;
    store.commit(held, events(1..5), second(2)).await.unwrap();
    let next = async |sink| {
        let batch = store.pending(sink, 2, usize::MAX).await;
        batch.map(|batch| (told(&batch), batch.events.last().unwrap().position))
    };
    let (_, last) = next("s").await.unwrap();
    get_in_the_way(&url, "progress", u32::MAX);
    store.acknowledge("s", last, None).await.unwrap_err();
    for _ in 0..2 {
        next("s").await.unwrap_err();
    }
    assert_eq!(next("other").await.unwrap().0, [1, 2]);
    get_in_the_way(&url, "progress", 0);
    assert_eq!(next("s").await.unwrap().0, [3, 4]);
    let stored = "SELECT position FROM progress WHERE sink = 's'";
    assert_eq!(sql(&url, stored), "2");
}

#[tokio::test]
async fn a_stop_tells_what_was_delivered_once_the_database_is_well_again() {
    let (url, store) = stalled_with_sink().await;
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    store.commit(held, events(1..3), second(2)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    let last = batch.events.last().unwrap().position;
    get_in_the_way(&url, "progress", u32::MAX);
    store.acknowledge("s", last, None).await.unwrap_err();
    drop(batch);
    let well_again = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        get_in_the_way(&url, "progress", 0);
    };
    tokio::join!(store.close(), well_again);
    let stored = "SELECT position, owner IS NULL FROM progress JOIN search ON id = search_id";
    assert_eq!(sql(&url, stored), "2|t");
}

#[tokio::test]
async fn a_sink_that_has_left_makes_no_room_as_long_as_another_replica_runs() {
    let url = server::shared().fresh();
    let (store, _other) = two_replicas(&url).await;
    let held = hold(&store, &["s", "extra"]).await;
    store
        .commit(held, events(1..1001), second(2))
        .await
        .unwrap();
    deliver(&store, "s", 1000).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    let more = async || store.commit(held, events(1001..1002), second(3)).await;
    let full = more().await;
    assert!(matches!(full, Err(Error::JournalFull { .. })), "{full:?}");
    assert!(!store.has_room(1).await.unwrap());
    sql(
        &url,
        "UPDATE replica SET alive_until = now() - interval '1 minute' WHERE node = 'other'",
    );
    keeper::forget(shared(&store)).await.unwrap();
    assert!(store.has_room(1).await.unwrap());
    more().await.unwrap();
    store.close().await;
}

#[tokio::test]
async fn whoever_watches_what_waits_hears_of_what_somebody_has_removed() {
    let (url, store) = stalled_with_sink().await;
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    store.commit(held, events(1..3), second(2)).await.unwrap();
    sql(&url, "DELETE FROM journal");
    let mut journalled = store.journalled();
    journalled.mark_unchanged();
    assert_eq!(waiting(&store, "s").await, [0; 0]);
    assert!(journalled.has_changed().unwrap());
    assert_eq!(store.backlog("s").await.unwrap(), Backlog::default());
}

/// A task that names the sinks needs a connection for that.
#[tokio::test]
async fn nobody_waits_with_a_connection_for_whoever_names_sinks() {
    let (_, store) = stalled_with_sink().await;
    let shared = shared(&store);
    let naming = shared.naming.lock().await;
    let forgotten = timeout(PATIENCE, keeper::forget(shared)).await;
    forgotten.unwrap().unwrap();

    let mut others = Vec::new();
    while let Ok(session) = timeout(Duration::from_secs(1), shared.pool.session()).await {
        others.push(session.unwrap());
    }
    others.pop();
    let joining = keeper::join(shared);
    let setting = async {
        // By then, `join` waits for the lock.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let session = timeout(Duration::from_secs(5), shared.pool.session()).await;
        drop((naming, session.unwrap().unwrap()));
    };
    let (joined, ()) = tokio::join!(joining, setting);
    joined.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_removed_before_a_sink_that_is_being_added_is_seen_to_lack_it() {
    let url = server::shared().fresh();
    let (first, other) = two_replicas(&url).await;
    let held = first.take_up(&a_search(), second(1)).await.unwrap().held;
    // As over a slow connection, others go on between any two answers.
    let journal = async |numbers: std::ops::Range<u128>| {
        let journalled = first.commit(held, events(numbers), second(2));
        let journalled = timeout(Duration::from_secs(3), journalled).await;
        journalled.expect("nobody waits for it").unwrap();
        let batch = first.pending("s", 9, usize::MAX).await.unwrap();
        let last = batch.events.last().unwrap().position;
        first.acknowledge("s", last, None).await.unwrap();
        delivery::prune(shared(&first)).await.unwrap();
    };
    journal(1..2).await;
    wait_for_journal(&first, 0).await;
    let mut session = shared(&other).pool.session().await.unwrap();
    let number = shared(&other).number().unwrap();
    let sinks = names(&["s", "new"]);
    naming::announce(&mut session, number, &sinks)
        .await
        .unwrap();
    journal(2..3).await;
    session.begin().await.unwrap();
    naming::enter_sinks(&mut session, number, &sinks)
        .await
        .unwrap();
    journal(3..5).await;
    keeper::renew(shared(&first), LEASE).await.unwrap();
    session.commit().await.unwrap();
    delivery::prune(shared(&first)).await.unwrap();
    let new = "SELECT position,
            (SELECT string_agg(position::text, ',' ORDER BY position) FROM journal)
         FROM progress WHERE sink = 'new'";
    assert_eq!(sql(&url, new), "2|3,4");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_replica_that_died_would_have_entered_keeps_nothing_for_long() {
    let url = server::shared().fresh();
    let (first, other) = two_replicas(&url).await;
    let dead = shared(&other).number().unwrap();
    let mut session = shared(&other).pool.session().await.unwrap();
    let sinks = names(&["s", "new"]);
    naming::announce(&mut session, dead, &sinks).await.unwrap();
    for it in shared(&other).loops.lock().iter().flatten() {
        it.abort();
    }
    let held = first.take_up(&a_search(), second(1)).await.unwrap().held;
    first.commit(held, events(1..3), second(2)).await.unwrap();
    deliver(&first, "s", 2).await;
    for (since, left) in [("1 minute", 2), ("2 minutes", 0)] {
        let died = format!("SET alive_until = now() - interval '{since}' WHERE id = {dead}");
        sql(&url, &format!("UPDATE replica {died}"));
        delivery::prune(shared(&first)).await.unwrap();
        wait_for_journal(&first, left).await;
    }
}

/// The commit that enters the sink may still be on its way.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_leaves_while_it_enters_a_sink_is_as_one_that_died() {
    for (announced, rows) in [("s", "0"), ("new", "1")] {
        let url = server::shared().fresh();
        let (_first, other) = two_replicas(&url).await;
        let leaving = shared(&other).number().unwrap();
        let mut session = shared(&other).pool.session().await.unwrap();
        let sinks = names(&["s", announced]);
        naming::announce(&mut session, leaving, &sinks)
            .await
            .unwrap();
        keeper::leave(shared(&other)).await.unwrap();
        let left = format!(
            "SELECT count(*) FROM replica WHERE id = {leaving} AND alive_until <= clock_timestamp()"
        );
        assert_eq!(sql(&url, &left), rows, "{announced}");
        let there = format!("SELECT count(*) FROM replica WHERE id = {leaving}");
        assert_eq!(sql(&url, &there), rows, "{announced}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_is_entered_while_commits_are_under_way() {
    let url = server::shared().fresh();
    let store = open(&url, "node", LEASE).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    let (_, _, mut commit) = one_of_two_locked(&store).await;
    commit.batch("ROLLBACK").await.unwrap();
    // As over a slow network.
    commit
        .batch("BEGIN; UPDATE search SET journal_end = journal_end")
        .await
        .unwrap();
    let entered = timeout(LEASE / 3, store.set_sinks(names(&["s", "new"]))).await;
    entered.expect("it does not wait for commits").unwrap();
    commit.batch("COMMIT").await.unwrap();
    let new = "SELECT count(*), sum(position) FROM progress WHERE sink = 'new'";
    assert_eq!(sql(&url, new), "2|0");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_locked_one_after_the_other_are_waited_for_no_longer_than_an_answer_may_take()
{
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE * 4).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    let (_, _, mut last) = one_of_two_locked(&store).await;
    let mut first = shared(&store).pool.session().await.unwrap();
    first
        .batch("BEGIN; SELECT FROM search WHERE name = 'other' FOR UPDATE")
        .await
        .unwrap();
    let unlock = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        first.batch("ROLLBACK").await.unwrap();
    };
    let mut session = shared(&store).pool.session().await.unwrap();
    let wait = Duration::from_secs(4);
    let both = names(&["s", "new"]);
    let began = Instant::now();
    let me = shared(&store).number().unwrap();
    let entering = naming::try_name_sinks(&mut session, me, &both, wait);
    let (refused, ()) = tokio::join!(entering, unlock);
    let refused = refused.unwrap_err();
    assert!(refused.is_cancelled(), "{refused:?}");
    assert!(
        began.elapsed() < connection::PATIENCE,
        "{:?}",
        began.elapsed()
    );
    session.roll_back().await.unwrap();
    let why = naming::why_locked(&mut session, refused).await.unwrap();
    assert!(chain(&why).contains("acme/client_1/open)"), "{why}");
    last.batch("ROLLBACK").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_event_is_found_in_whichever_search_it_is() {
    let url = server::shared().fresh();
    let keys = ["young", "old", "none"].map(|name| key("acme", "client_1", name));
    let store = open(&url, "node", LEASE).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    for (key, numbers) in keys.iter().zip([5..7, 1..4, 0..0]) {
        let held = store.take_up(key, second(1)).await.unwrap().held;
        store
            .commit(held, events(numbers), second(2))
            .await
            .unwrap();
    }
    store.close().await;

    let store = open(&url, "node", LEASE).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    let mut held = Vec::new();
    for key in &keys {
        held.push(store.take_up(key, second(3)).await.unwrap().held);
    }
    let oldest = async || store.backlog("s").await.unwrap().oldest;
    let at = |number| Some(event(number).at);
    assert_eq!(oldest().await, at(1));
    // The time is known, so the server is not asked again.
    sql(&url, "UPDATE journal SET at = now() WHERE position = 1");
    assert_eq!(oldest().await, at(1));
    store
        .commit(held[2], events(9..10), second(4))
        .await
        .unwrap();
    for (delivered, then) in [(1, at(1)), (1, at(1)), (1, at(2)), (1, at(3)), (1, at(9))] {
        deliver(&store, "s", delivered).await;
        assert_eq!(oldest().await, then);
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_entered_while_a_row_is_locked_costs_no_lease() {
    let url = server::shared().fresh();
    let lease = Duration::from_secs(5);
    let store = open(&url, "node", lease).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    let (other, locked, mut lock) = one_of_two_locked(&store).await;
    let all = names(&["s", "new"]);
    let entering = store.set_sinks(all.clone());
    tokio::pin!(entering);
    tokio::select! {
        entered = &mut entering => panic!("{entered:?}"),
        () = store.relieved(other) => panic!("the lease on a row that nobody has locked is lost"),
        () = tokio::time::sleep(lease * 3 / 2) => {}
    }
    assert!(!shared(&store).look(|state| state.is_held(locked)));
    store.commit(other, events(1..3), second(2)).await.unwrap();
    lock.batch("ROLLBACK").await.unwrap();
    entering.await.unwrap();
    // Nothing is missing, whether or not the sink begins before the events that were journalled
    // meanwhile.
    let new = "SELECT count(*), bool_and(journal_end - position = (
            SELECT count(*) FROM journal
            WHERE search_id = id AND journal.position > progress.position))
        FROM progress JOIN search ON id = search_id WHERE sink = 'new'";
    assert_eq!(sql(&url, new), "2|t");

    // A caller that waits in vain is told which row was locked.
    lock.batch(LOCK).await.unwrap();
    let mut session = shared(&store).pool.session().await.unwrap();
    let newer = names(&["s", "new", "newer"]);
    let refused = naming::forget_sinks(shared(&store), &mut session, &newer).await;
    let why = chain(&refused.unwrap_err());
    assert!(
        why.contains("of the table search, acme/client_1/open)"),
        "{why}"
    );
    lock.batch("ROLLBACK").await.unwrap();
    assert_eq!(
        sql(&url, "SELECT string_agg(name, ',' ORDER BY name) FROM sink"),
        "new,s"
    );
    let is_said = || sql(&url, "SELECT sinks FROM replica") == "{s,new}";
    wait_until("what is in force is never said again", is_said).await;
}

#[tokio::test]
async fn what_a_replica_whose_clock_was_ahead_has_left_to_a_sink_is_told() {
    let (lines, _logging) = captured();
    let url = server::shared().fresh();
    let store = open(&url, "node", LEASE).await;
    let held = hold(&store, &["stays", "leaves"]).await;
    let mut ahead = events(1..4);
    for event in &mut ahead.events {
        event.at = clock::now() + Duration::from_secs(300);
    }
    store.commit(held, ahead, second(2)).await.unwrap();
    let said = |what: &str| {
        let mut lines = lines.lock();
        let of = |line: &String| line.contains(what) && line.contains("=leaves events_at_most=3 ");
        lines.drain(..).filter(of).count()
    };
    store.set_sinks(names(&["stays"])).await.unwrap();
    assert_eq!(said("within ten minutes"), 1);
    // By now, the time of these events has come, and others have been journalled.
    let mut later = events(4..5);
    later.events[0].at = clock::now();
    store.commit(held, later, second(2)).await.unwrap();
    let_an_hour_pass(&url, "leaves");
    sql(&url, "UPDATE journal SET at = now() - interval '1 minute'");
    keeper::forget(shared(&store)).await.unwrap();
    assert_eq!(said("is given up"), 1);
    store.close().await;
}
