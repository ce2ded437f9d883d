//! Tables: made, migrated, restored, lost; the replicas and leases that were in them.

use super::*;
use crate::store::postgres::schema::Standing;

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_at_once_make_the_tables_once() {
    let url = server::shared().fresh();
    let stores = (0..8).map(|number| {
        let url = url.clone();
        async move { open(&url, &number.to_string(), LEASE).await }
    });
    for store in futures_util::future::join_all(stores).await {
        store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_while_another_makes_the_tables_waits_for_them() {
    let url = server::shared().fresh();
    let other = std::thread::spawn({
        let url = url.clone();
        // The statements run in one transaction.
        let statements = "CREATE TABLE opsramp_exporter_schema
                (only_row BOOLEAN PRIMARY KEY, version INTEGER NOT NULL);
             SELECT pg_sleep(0.5)";
        move || sql(&url, statements)
    });
    let sleeps = "SELECT count(*) FROM pg_stat_activity
         WHERE wait_event = 'PgSleep' AND query LIKE '%' || current_schema || '%'";
    let deadline = Instant::now() + PATIENCE;
    while sql(&url, sleeps) != "1" && !other.is_finished() {
        assert!(Instant::now() < deadline, "nobody makes them");
    }
    let store = open(&url, "node", LEASE).await;
    other.join().unwrap();
    store.set_sinks(names(&["s"])).await.unwrap();
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_the_server_has_forgotten_registers_anew_and_goes_on() {
    let url = server::shared().fresh();
    let store = open(&url, "node", Duration::from_secs(3)).await;
    let forgotten = hold(&store, &["s"]).await;
    store
        .commit(forgotten, events(1..3), second(2))
        .await
        .unwrap();
    let number = || shared(&store).look(|state| state.replica);
    let before = number();
    sql(&url, "DELETE FROM replica");
    wait_until("it does not register anew", || number() != before).await;
    // What is delivered now could not be told under the new number.
    assert_eq!(shared(&store).look(State::leases), []);
    assert_eq!(sql(&url, "SELECT sinks FROM replica"), "{s}");
    let held = take_over(&store).await.held;
    assert!(held.epoch > forgotten.epoch);
    let refused = store.commit(forgotten, events(3..4), second(3)).await;
    assert!(matches!(refused, Err(Error::LeaseLost)), "{refused:?}");
    store.commit(held, events(3..4), second(3)).await.unwrap();
    assert_eq!(waiting(&store, "s").await, [1, 2, 3]);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_the_server_has_forgotten_takes_nothing_up() {
    let (url, store) = stalled_with_sink().await;
    store.share_out(vec![a_search()]);
    keeper::share_out(shared(&store), PATIENCE).await.unwrap();
    // Nothing would be journalled for its sink before it has registered anew.
    sql(&url, "DELETE FROM replica; DELETE FROM sink");
    store.set_sinks(names(&["s"])).await.unwrap_err();
    let refused = store.take_up(&a_search(), second(1)).await;
    assert!(matches!(refused, Err(Error::HeldElsewhere)), "{refused:?}");
    keeper::renew(shared(&store), PATIENCE).await.unwrap();
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    store.commit(held, events(1..3), second(2)).await.unwrap();
    deliver(&store, "s", 2).await;
    // Others leave the search to it.
    keeper::share_out(shared(&store), PATIENCE).await.unwrap();
    let wants = "SELECT wants = ARRAY(SELECT id FROM search) FROM replica";
    assert_eq!(sql(&url, wants), "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replicas_number_is_never_anothers_even_where_the_database_was_set_back() {
    let url = server::shared().fresh();
    let lease = Duration::from_secs(4);
    let slept = stalled(&url, lease).await;
    let other = open(&url, "other", lease).await;
    let number = |store: &Store| shared(store).look(|state| state.replica);
    let before = number(&other);
    sql(&url, "TRUNCATE replica RESTART IDENTITY");
    wait_until("it does not register anew", || number(&other) != before).await;
    assert_ne!(number(&other), number(&slept));
    other.take_up(&a_search(), second(1)).await.unwrap();
    let refused = slept.take_up(&a_search(), second(1)).await;
    assert!(matches!(refused, Err(Error::HeldElsewhere)), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_that_the_server_has_forgotten_are_looked_up_again() {
    let url = server::shared().fresh();
    let store = open(&url, "node", Duration::from_secs(3)).await;
    let keys = ["a", "b"].map(|name| key("acme", "client_1", name));
    store.share_out(keys.to_vec());
    for statements in [
        "SELECT 1",
        "DELETE FROM search",
        // The number of one search is another's now.
        "DELETE FROM search WHERE name = 'a';
         INSERT INTO search (account, tenant_id, name, first_seen) VALUES
            ('acme', 'client_1', 'a', now());
         UPDATE search SET name = 'c' WHERE name = 'b'",
    ] {
        sql(&url, statements);
        let rows = || shared(&store).look(|state| state.wanted.clone());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rows = rows();
            let numbers = keys.iter().filter_map(|key| {
                let name = &key.search;
                let number = sql(
                    &url,
                    &format!("SELECT id FROM search WHERE name = '{name}'"),
                );
                Some(rows.get(key)?.to_string() == number)
            });
            if numbers.filter(|is_right| *is_right).count() == keys.len() {
                break;
            }
            assert!(Instant::now() < deadline, "{rows:?} after {statements}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for key in &keys {
            timeout(PATIENCE, store.turn(key)).await.unwrap();
            store.take_up(key, second(1)).await.unwrap();
        }
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_that_a_standby_does_not_show_yet_are_looked_up_again() {
    let url = server::shared().fresh_for("waiting");
    let store = stalled(&url, LEASE).await;
    store.share_out(vec![a_search()]);
    sql(
        &url,
        "ALTER TABLE search ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
         CREATE POLICY written ON search FOR INSERT WITH CHECK (txid_current() > 0);
         CREATE POLICY lag ON search FOR SELECT USING (txid_current_if_assigned() IS NOT NULL)",
    );
    keeper::share_out(shared(&store), LEASE).await.unwrap();
    assert!(shared(&store).look(|state| state.wanted.is_empty()));
    sql(&url, "ALTER TABLE search DISABLE ROW LEVEL SECURITY");
    keeper::share_out(shared(&store), LEASE).await.unwrap();
    timeout(PATIENCE, store.turn(&a_search())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_gone_and_not_restored_are_made_anew() {
    let url = server::shared().fresh();
    let lease = Duration::from_secs(1);
    let store = open(&url, "node", lease).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    let before = store.take_up(&a_search(), second(1)).await.unwrap();
    sql(
        &url,
        "DROP TABLE progress, mark, sink, journal, departed, alert, search, replica,
            opsramp_exporter_schema",
    );
    let gone = Instant::now();
    let take_up_and_commit = async || {
        let loaded = store.take_up(&a_search(), second(3)).await?;
        store.commit(loaded.held, events(1..3), second(4)).await?;
        Ok::<_, Error>(loaded.held)
    };
    let held = loop {
        match take_up_and_commit().await {
            Ok(held) => break held,
            Err(error) => assert!(gone.elapsed() < PATIENCE, "{}", text(&error)),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(gone.elapsed() >= lease * 4, "nobody can restore them");
    assert_ne!(held, before.held);
    // It is more, if a commit was done whose answer came too late.
    assert_eq!(sql(&url, "SELECT journal_end >= 2 FROM search"), "t");
    assert_eq!(sql(&url, "SELECT name FROM sink"), "s");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_gone_have_their_time_however_long_one_of_them_was_gone_before() {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    let mut gone = keeper::Gone::default();
    let lease = Duration::from_millis(100);
    let mut look = async || {
        let looked = keeper::look_at_tables(&shared(&store).pool, &mut gone, lease).await;
        (looked, gone.time)
    };
    let none = Duration::ZERO;
    assert!(matches!(look().await, (Ok(Standing::There), time) if time == none));
    let drop_all = |tables: &[&str]| sql(&url, &format!("DROP TABLE {}", tables.join(", ")));
    drop_all(&["journal"]);
    for _ in 0..3 {
        tokio::time::sleep(lease).await;
        let looked = look().await;
        assert!(matches!(looked, (Err(Failure::Missing(_)), time) if time == none));
    }
    let others = schema::TABLES.iter().filter(|name| **name != "journal");
    let others: Vec<&str> = [schema::NUMBER_TABLE]
        .iter()
        .chain(others)
        .copied()
        .collect();
    drop_all(&others);
    assert!(matches!(look().await, (Ok(Standing::Gone), time) if time == none));
    tokio::time::sleep(lease / 2).await;
    let (standing, time) = look().await;
    assert_eq!(standing.unwrap(), Standing::Gone);
    assert!(time >= lease / 2 && time <= lease, "{time:?}");
    // Somebody restores them.
    sql(
        &url,
        "CREATE TABLE sink (name TEXT, unnamed_since TIMESTAMPTZ)",
    );
    assert!(matches!(look().await, (Err(Failure::Missing(_)), time) if time == none));
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_without_their_number_are_not_taken_for_anothers_and_nothing_is_made_beside_them() {
    let url = server::shared().fresh();
    open(&url, "node", LEASE).await.close().await;
    let look = async || {
        let url = SecretSource::Value(Secret::new(&url));
        inspect(&url, LEASE).await.unwrap().tables
    };
    let start = async || {
        let refused = Store::open(&options(&url, "node", LEASE)).await;
        text(&refused.unwrap_err())
    };
    let number = "SELECT count(*) FROM pg_class
         WHERE relname = 'opsramp_exporter_schema' AND pg_table_is_visible(oid)";
    for (so, left) in [
        // A start of an earlier version has left it like this.
        ("UPDATE opsramp_exporter_schema SET version = 0", "1"),
        ("DELETE FROM opsramp_exporter_schema", "1"),
        ("DROP TABLE opsramp_exporter_schema", "0"),
    ] {
        sql(&url, so);
        let missing = Unfit::Missing(names(&[schema::NUMBER_TABLE]));
        assert_eq!(look().await, Err(missing), "{so}");
        let why = start().await;
        assert!(why.contains("are there: opsramp_exporter_schema;"), "{why}");
        assert_eq!(sql(&url, number), left, "{so}");
    }
    // A table that was restored alone has neither its key nor its constraints.
    let version = schema::MIGRATIONS.len();
    sql(
        &url,
        &format!(
            "CREATE TABLE opsramp_exporter_schema (only_row BOOLEAN NOT NULL, version INTEGER NOT NULL);
             INSERT INTO opsramp_exporter_schema VALUES (TRUE, {version})"
        ),
    );
    open(&url, "node", LEASE).await.close().await;
    assert_eq!(look().await, Ok(Tables::Ready));

    sql(&url, "DROP TABLE opsramp_exporter_schema, journal");
    let missing = names(&[schema::NUMBER_TABLE, "journal"]);
    assert_eq!(look().await, Err(Unfit::Missing(missing)));
    let why = start().await;
    assert!(why.contains("opsramp_exporter_schema, journal;"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_an_earlier_version_that_were_restored_are_migrated_at_once() {
    let url = server::shared().fresh();
    let lease = Duration::from_secs(15);
    let store = open(&url, "node", lease).await;
    store.share_out(vec![a_search()]);
    timeout(PATIENCE, store.turn(&a_search())).await.unwrap();
    let restored = Instant::now();
    sql(
        &url,
        "ALTER TABLE replica DROP COLUMN wants; DELETE FROM replica; DELETE FROM search;
         UPDATE opsramp_exporter_schema SET version = 1",
    );
    let wants = "SELECT count(*) FROM replica WHERE wants IS NOT NULL";
    let is_migrated = || {
        sql(&url, "SELECT version FROM opsramp_exporter_schema") == "2" && sql(&url, wants) == "1"
    };
    wait_until("they are not migrated", is_migrated).await;
    assert!(restored.elapsed() < lease * 3, "{:?}", restored.elapsed());
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_set_back_loses_no_event_that_follows() {
    let url = server::shared().fresh();
    let store = open(&url, "node", LEASE).await;
    let held = hold(&store, &["s"]).await;
    store.commit(held, events(1..5), second(2)).await.unwrap();
    deliver(&store, "s", 4).await;
    // A standby takes over that lacks the last two events.
    sql(
        &url,
        "UPDATE search SET journal_end = 2; UPDATE progress SET position = 2;
         DELETE FROM journal WHERE position > 2",
    );
    store.commit(held, events(3..6), second(3)).await.unwrap();
    let refused = store.commit(held, events(6..7), second(4)).await;
    assert!(matches!(refused, Err(Error::LeaseLost)), "{refused:?}");
    let held = store.take_up(&a_search(), second(5)).await.unwrap().held;
    store.commit(held, events(6..7), second(6)).await.unwrap();
    assert_eq!(waiting(&store, "s").await, [3, 4, 5, 6]);
    deliver(&store, "s", 4).await;
    store.close().await;
    assert_eq!(sql(&url, "SELECT position FROM progress"), "6");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_no_lease_is_taken_for_one_that_was_undone() {
    let url = server::shared().fresh();
    let (store, other) = two_replicas(&url).await;
    let undone = store.take_up(&a_search(), second(1)).await.unwrap().held;
    store.commit(undone, events(1..3), second(2)).await.unwrap();
    deliver(&store, "s", 2).await;
    sql(
        &url,
        "UPDATE search SET owner = NULL, epoch = 0, journal_end = 0; DELETE FROM journal;
         UPDATE progress SET position = 0",
    );
    // Another replica is the first to take the search up, and delivers nothing.
    let held = other.take_up(&a_search(), second(3)).await.unwrap().held;
    other.commit(held, events(3..5), second(4)).await.unwrap();
    other.close().await;
    assert_ne!(held, undone);
    take_over(&store).await;
    assert_eq!(waiting(&store, "s").await, [3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journals_end_that_is_damaged_keeps_nothing_from_being_journalled() {
    let url = server::shared().fresh();
    let store = open(&url, "node", LEASE).await;
    let held = hold(&store, &["s"]).await;
    store.commit(held, events(1..4), second(2)).await.unwrap();
    sql(&url, "UPDATE search SET journal_end = 1");
    store.commit(held, events(4..5), second(3)).await.unwrap();
    sql(&url, "UPDATE search SET journal_end = 0");
    store.close().await;

    let store = open(&url, "node", LEASE).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    let held = take_over(&store).await.held;
    store.commit(held, events(5..6), second(4)).await.unwrap();
    assert_eq!(waiting(&store, "s").await, [1, 2, 3, 4, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_whose_place_is_damaged_gets_what_is_in_the_journal() {
    let (url, store) = stalled_with_sink().await;
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    store.commit(held, events(1..4), second(2)).await.unwrap();
    deliver(&store, "s", 1).await;
    delivery::prune(shared(&store)).await.unwrap();
    let damage = |position: i64| {
        sql(&url, &format!("UPDATE progress SET position = {position}"));
    };
    let kept = || sql(&url, "SELECT count(*) FROM journal");
    damage(i64::MAX);
    delivery::prune(shared(&store)).await.unwrap();
    assert_eq!(kept(), "2", "what waits was removed");
    deliver(&store, "s", 1).await;
    assert_eq!(sql(&url, "SELECT position FROM progress"), "2");
    delivery::prune(shared(&store)).await.unwrap();
    assert_eq!(kept(), "1");

    // A damaged position may also be so low that there will soon be events behind it.
    damage(4);
    shared(&store).change_leases(State::lose_all);
    let other = stalled(&url, LEASE).await;
    other.set_sinks(names(&["s"])).await.unwrap();
    sql(&url, "UPDATE search SET lease_until = now()");
    let held = take_over(&other).await.held;
    other.commit(held, events(4..7), second(3)).await.unwrap();
    delivery::prune(shared(&other)).await.unwrap();
    assert_eq!(waiting(&other, "s").await, [3, 4, 5, 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_a_start_will_find_its_tables_is_seen_before_it() {
    let url = server::shared().fresh_for("careful");
    let look = async || {
        let url = SecretSource::Value(Secret::new(&url));
        inspect(&url, LEASE).await.map(|found| found.tables)
    };
    let all = |names: &[&[&str]]| names.concat().iter().map(ToString::to_string).collect();
    assert_eq!(look().await.unwrap(), Ok(Tables::New));
    let in_the_way = "CREATE TABLE search (); CREATE TYPE mark AS ENUM ()";
    sql(&url, in_the_way);
    let taken = names(&["search", "mark"]);
    assert_eq!(look().await.unwrap(), Err(Unfit::Taken(taken)));
    sql(&url, "DROP TABLE search; DROP TYPE mark");

    open(&url, "node", LEASE).await.close().await;
    assert_eq!(look().await.unwrap(), Ok(Tables::Ready));
    let made = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class
         WHERE relnamespace = current_schema()::regnamespace AND relname !~ '_(pkey|key|seq)$'";
    let mut known: Vec<String> = all(&[&[schema::NUMBER_TABLE], schema::TABLES, schema::INDEXES]);
    known.sort_unstable();
    assert_eq!(sql(&url, made), known.join(" "));

    let version = |version: usize| {
        sql(
            &url,
            &format!("UPDATE opsramp_exporter_schema SET version = {version}"),
        );
    };
    version(schema::MIGRATIONS.len() - 1);
    assert_eq!(look().await.unwrap(), Ok(Tables::Earlier));
    sql(
        &url,
        "ALTER TABLE alert OWNER TO CURRENT_USER; GRANT ALL ON alert TO careful",
    );
    let of_others = Unfit::NotOwned(names(&["alert"]));
    assert_eq!(look().await.unwrap(), Err(of_others));
    version(schema::MIGRATIONS.len());
    assert_eq!(look().await.unwrap(), Ok(Tables::Ready));
    version(999);
    let newer = look().await;
    assert!(
        matches!(newer, Err(Failure::Newer { found: 999, .. })),
        "{newer:?}"
    );
    version(schema::MIGRATIONS.len());

    // Rights are not everything: what a daemon does is tried, and nothing of it is left.
    for (so, otherwise) in [
        (
            "ALTER TABLE search OWNER TO CURRENT_USER, ENABLE ROW LEVEL SECURITY;
             GRANT ALL ON search TO careful",
            "ALTER TABLE search DISABLE ROW LEVEL SECURITY",
        ),
        (
            "ALTER TABLE journal OWNER TO CURRENT_USER, ENABLE ROW LEVEL SECURITY;
             GRANT ALL ON journal TO careful;
             CREATE POLICY reads ON journal FOR SELECT USING (TRUE);
             CREATE POLICY writes ON journal FOR INSERT WITH CHECK (TRUE)",
            "ALTER TABLE journal DISABLE ROW LEVEL SECURITY",
        ),
        (
            "ALTER TABLE replica RENAME wants TO wishes",
            "ALTER TABLE replica RENAME wishes TO wants",
        ),
        (
            "ALTER TABLE progress RENAME position TO place",
            "ALTER TABLE progress RENAME place TO position",
        ),
    ] {
        sql(&url, so);
        let refused = look().await.unwrap();
        assert!(matches!(refused, Err(Unfit::Refused(_))), "{refused:?}");
        sql(&url, otherwise);
        assert_eq!(look().await.unwrap(), Ok(Tables::Ready));
    }
    let rows = "SELECT (SELECT count(*) FROM replica), (SELECT count(*) FROM search)";
    assert_eq!(sql(&url, rows), "0|0");

    for table in ["alert", "opsramp_exporter_schema"] {
        sql(&url, &format!("REVOKE DELETE ON {table} FROM careful"));
        let forbidden = Unfit::Forbidden(names(&[table]));
        assert_eq!(look().await.unwrap(), Err(forbidden));
    }
    sql(
        &url,
        "GRANT ALL ON opsramp_exporter_schema TO careful; DROP TABLE alert",
    );
    assert_eq!(
        look().await.unwrap(),
        Err(Unfit::Missing(names(&["alert"])))
    );
    let schema = schema_of(&url);
    sql(
        &url,
        &format!(
            "ALTER SCHEMA {schema} OWNER TO CURRENT_USER; GRANT USAGE ON SCHEMA {schema} TO careful"
        ),
    );
    assert_eq!(look().await.unwrap(), Err(Unfit::MayNotCreate));
    sql(&url, &format!("DROP SCHEMA {schema} CASCADE"));
    assert_eq!(look().await.unwrap(), Err(Unfit::NoSchema));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_gone_while_others_are_there_is_named_until_it_is_back() {
    let url = server::shared().fresh();
    let store = open(&url, "node", Duration::from_secs(1)).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    take_over(&store).await;
    for table in ["alert", "departed", "journal", schema::NUMBER_TABLE] {
        sql(&url, &format!("ALTER TABLE {table} RENAME TO elsewhere"));
        let names_it = format!("are gone while others are there: {table};");
        let deadline = Instant::now() + PATIENCE;
        loop {
            store.take_up(&a_search(), second(1)).await.ok();
            let told = store.trouble().borrow().clone();
            if told.as_ref().is_some_and(|told| told.contains(&names_it)) {
                break;
            }
            assert!(Instant::now() < deadline, "{table}: {told:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let error = Store::open(&options(&url, "other", LEASE))
            .await
            .unwrap_err();
        assert!(
            text(&error).contains(&names_it) && error.is_passing(),
            "{error:?}"
        );
        sql(&url, &format!("ALTER TABLE elsewhere RENAME TO {table}"));
        let mut trouble = store.trouble();
        let over = timeout(PATIENCE, trouble.wait_for(Option::is_none)).await;
        assert!(over.is_ok(), "{table}");
    }
    store.close().await;
}
