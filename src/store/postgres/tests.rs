use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::*;
use crate::{
    error_chain::chain,
    secret::Secret,
    store::{
        Options, Store,
        conformance::{self, alert, event, events, key, second},
    },
};

#[path = "../../../tests/support/postgres.rs"]
mod server;

#[path = "../../../tests/support/proxy.rs"]
mod proxy;

const LEASE: Duration = Duration::from_secs(15);

/// Long enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

fn fresh() -> (Options, ()) {
    (options(&server::shared().fresh(), "node", LEASE), ())
}

fn options(url: &str, node: &str, lease: Duration) -> Options {
    Options::Postgres {
        url: SecretSource::Value(Secret::new(url)),
        lease,
        node: node.to_owned(),
        journal_limit: 1000,
    }
}

conformance::suite!(fresh);

async fn open(url: &str, node: &str, lease: Duration) -> Store {
    Store::open(&options(url, node, lease)).await.unwrap()
}

fn shared(store: &Store) -> &Shared {
    match store {
        Store::Postgres(postgres) => &postgres.shared,
        Store::Sqlite(_) => panic!("{store:?}"),
    }
}

/// A store that behaves like one whose process is stopped: it renews nothing.
async fn stalled(url: &str, lease: Duration) -> Store {
    let store = open(url, "stalled", lease).await;
    for it in shared(&store).loops.lock().iter().flatten() {
        it.abort();
    }
    store
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn a_search() -> SearchKey {
    key("acme", "client_1", "open")
}

/// Takes a search up as soon as nobody else has it.
async fn take_over(store: &Store) -> Loaded {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match store.take_up(&a_search(), second(9)).await {
            Ok(loaded) => return loaded,
            Err(Error::HeldElsewhere) => {}
            Err(error) => panic!("{error:?}"),
        }
        assert!(Instant::now() < deadline, "it is never free");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn told(batch: &Batch) -> Vec<u128> {
    let events = batch.events.iter();
    events.map(|it| it.event.event_id.as_u128()).collect()
}

/// What went wrong, with its causes.
fn text(error: &Error) -> String {
    match error {
        Error::Backend(error) => chain(error.downcast_ref::<Failure>().unwrap()),
        error => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_database_says_of_a_statement_is_shown_without_the_password() {
    let url = SecretSource::Value(Secret::new(server::shared().fresh()));
    let mut session = Pool::new(url, LEASE).session().await.unwrap();
    let no_number = format!("SELECT '{}'::int", server::PASSWORD);
    let told = chain(&session.batch(&no_number).await.unwrap_err());
    assert!(told.contains("invalid input syntax"), "{told}");
    assert!(told.contains("\"<secret>\""), "{told}");
}

/// Two that deliver to a sink each, of one name.
async fn two_replicas(url: &str) -> (Store, Store) {
    let first = open(url, "first", LEASE).await;
    let other = open(url, "other", LEASE).await;
    for store in [&first, &other] {
        store.set_sinks(names(&["s"])).await.unwrap();
    }
    (first, other)
}

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
        // One transaction.
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
async fn whoever_slept_past_its_lease_commits_and_delivers_nothing() {
    let url = server::shared().fresh();
    let lease = Duration::from_secs(1);
    let first = stalled(&url, lease).await;
    first.set_sinks(names(&["s"])).await.unwrap();
    let slept = first.take_up(&a_search(), second(1)).await.unwrap().held;
    first.commit(slept, events(1..3), second(2)).await.unwrap();
    let batch = first.pending("s", 9, usize::MAX).await.unwrap();
    assert!(batch.claim.holds());

    let other = open(&url, "other", LEASE).await;
    other.set_sinks(names(&["s"])).await.unwrap();
    let loaded = take_over(&other).await;
    assert!(loaded.held.epoch > slept.epoch);
    other
        .commit(loaded.held, events(3..4), second(3))
        .await
        .unwrap();

    assert!(!batch.claim.holds());
    let refused = first.commit(slept, events(4..5), second(3)).await;
    assert!(matches!(refused, Err(Error::LeaseLost)), "{refused:?}");
    let changed = shared(&first).changed.subscribe();
    let nothing = first.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&nothing), [0; 0]);
    assert!(changed.has_changed().unwrap(), "all hear of a lease's end");
    // What it says now of its delivery comes too late.
    let last = batch.events.last().unwrap().position;
    first.acknowledge("s", last, None).await.unwrap();
    let taken_over = other.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&taken_over), [1, 2, 3]);
    first.release(slept).await.unwrap();
    other
        .commit(loaded.held, events(5..6), second(3))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_holder_goes_on_where_the_last_one_was() {
    let url = server::shared().fresh();
    let first = open(&url, "first", LEASE).await;
    let second_replica = open(&url, "second", LEASE).await;
    for store in [&first, &second_replica] {
        store.set_sinks(names(&["s"])).await.unwrap();
    }
    let held = first.take_up(&a_search(), second(1)).await.unwrap().held;
    let elsewhere = second_replica.take_up(&a_search(), second(1)).await;
    assert!(
        matches!(elsewhere, Err(Error::HeldElsewhere)),
        "{elsewhere:?}"
    );
    let mut commit = events(1..4);
    commit.upserts.push(alert("a", 1, 10));
    first.commit(held, commit, second(2)).await.unwrap();
    let batch = first.pending("s", 2, usize::MAX).await.unwrap();
    assert_eq!(told(&batch), [1, 2]);
    let last = batch.events[1].position;
    first.acknowledge("s", last, None).await.unwrap();
    drop(batch);
    // It leaves without ado: what it has not delivered is left to the other.
    first.close().await;
    let loaded = take_over(&second_replica).await;
    assert_eq!(loaded.alerts, [alert("a", 1, 10)]);
    let rest = second_replica.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&rest), [3]);
    assert!(rest.claim.past().unwrap().is_inherited);
    assert_eq!(rest.events[0].event, event(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_that_is_given_back_is_delivered_first() {
    let (options, ()) = fresh();
    let store = Store::open(&options).await.unwrap();
    store.set_sinks(names(&["s"])).await.unwrap();
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    store.commit(held, events(1..3), second(2)).await.unwrap();
    let giving = tokio::spawn({
        let store = store.clone();
        async move { store.release(held).await }
    });
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&batch), [1, 2]);
    assert!(!giving.is_finished());
    let last = batch.events[1].position;
    store.acknowledge("s", last, None).await.unwrap();
    drop(batch);
    giving.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_another_replica_names_keeps_its_part_of_the_journal() {
    let url = server::shared().fresh();
    let old = open(&url, "old", LEASE).await;
    let new = open(&url, "new", LEASE).await;
    old.set_sinks(names(&["s"])).await.unwrap();
    new.set_sinks(names(&["s", "t"])).await.unwrap();
    let held = old.take_up(&a_search(), second(1)).await.unwrap().held;
    old.commit(held, events(1..3), second(2)).await.unwrap();
    let batch = old.pending("s", 9, usize::MAX).await.unwrap();
    let last = batch.events[1].position;
    old.acknowledge("s", last, None).await.unwrap();
    drop(batch);
    old.close().await;
    take_over(&new).await;
    let waiting = new.pending("t", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&waiting), [1, 2]);
    let nothing = new.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&nothing), [0; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_another_replica_named_first_misses_nothing() {
    let url = server::shared().fresh();
    let old = open(&url, "old", LEASE).await;
    let new = open(&url, "new", LEASE).await;
    old.set_sinks(names(&["s"])).await.unwrap();
    let held = old.take_up(&a_search(), second(1)).await.unwrap().held;
    old.commit(held, events(1..2), second(2)).await.unwrap();
    new.set_sinks(names(&["s", "t"])).await.unwrap();
    old.commit(held, events(2..4), second(2)).await.unwrap();
    old.set_sinks(names(&["s", "t"])).await.unwrap();
    old.commit(held, events(4..5), second(2)).await.unwrap();
    for (sink, expected) in [("t", &[2, 3, 4][..]), ("s", &[1, 2, 3, 4])] {
        let batch = old.pending(sink, 9, usize::MAX).await.unwrap();
        assert_eq!(told(&batch), expected);
        let last = batch.events.last().unwrap().position;
        old.acknowledge(sink, last, None).await.unwrap();
    }
    wait_for_journal(&old, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_sink_has_is_removed_from_the_server() {
    let (options, ()) = fresh();
    let store = Store::open(&options).await.unwrap();
    store.set_sinks(names(&["s", "t"])).await.unwrap();
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    store.commit(held, events(1..4), second(2)).await.unwrap();
    for (sink, delivered, left) in [("s", 3, 3), ("t", 2, 1), ("t", 1, 0)] {
        let batch = store.pending(sink, delivered, usize::MAX).await.unwrap();
        let last = batch.events.last().unwrap().position;
        store.acknowledge(sink, last, None).await.unwrap();
        drop(batch);
        wait_for_journal(&store, left).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_the_server_has_forgotten_registers_anew_and_goes_on() {
    let url = server::shared().fresh();
    let store = open(&url, "node", Duration::from_secs(3)).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    let forgotten = store.take_up(&a_search(), second(1)).await.unwrap().held;
    store
        .commit(forgotten, events(1..3), second(2))
        .await
        .unwrap();
    let number = || shared(&store).look(|state| state.replica);
    let before = number();
    sql(&url, "DELETE FROM replica");
    let deadline = Instant::now() + PATIENCE;
    while number() == before {
        assert!(Instant::now() < deadline, "it does not register anew");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(sql(&url, "SELECT sinks FROM replica"), "{s}");
    let held = take_over(&store).await.held;
    assert!(held.epoch > forgotten.epoch);
    let refused = store.commit(forgotten, events(3..4), second(3)).await;
    assert!(matches!(refused, Err(Error::LeaseLost)), "{refused:?}");
    store.commit(held, events(3..4), second(3)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&batch), [1, 2, 3]);
    drop(batch);
    store.close().await;
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
    let deadline = Instant::now() + PATIENCE;
    while number(&other) == before {
        assert!(Instant::now() < deadline, "it does not register anew");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
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
        // The number of one is another's now.
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
    assert_eq!(sql(&url, "SELECT journal_end FROM search"), "2");
    assert_eq!(sql(&url, "SELECT name FROM sink"), "s");
    store.close().await;
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
    while restored.elapsed() < PATIENCE {
        if sql(&url, "SELECT version FROM opsramp_exporter_schema") == "2"
            && sql(&url, wants) == "1"
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(restored.elapsed() < lease * 3, "{:?}", restored.elapsed());
    store.close().await;
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
async fn what_the_server_refuses_is_told_without_the_password() {
    let url = server::shared().fresh();
    let wrong = url.replace(server::PASSWORD, "hunter2");
    let error = Store::open(&options(&wrong, "node", LEASE))
        .await
        .unwrap_err();
    let why = text(&error);
    assert!(why.contains("password authentication failed"), "{why}");
    assert!(!why.contains("hunter2") && error.is_passing(), "{why}");

    let store = open(&url, "node", LEASE).await;
    store.close().await;
    let schema = url.rsplit_once("%3D").unwrap().1;
    server::shared().sql(&format!(
        "UPDATE {schema}.opsramp_exporter_schema SET version = 999"
    ));
    let newer = Store::open(&options(&url, "node", LEASE))
        .await
        .unwrap_err();
    assert!(text(&newer).contains("schema 999"), "{newer:?}");
    assert!(!newer.is_passing());

    server::shared().sql(
        "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
    );
    let url = server::shared().url().replace("/postgres", "/latin");
    let latin = Store::open(&options(&url, "node", LEASE))
        .await
        .unwrap_err();
    assert!(text(&latin).contains("encoding is LATIN1"), "{latin:?}");
    assert!(!latin.is_passing());
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_as_strict_as_the_url_says() {
    let authority = || {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        (certificate, Issuer::new(parameters, key))
    };
    let ((root, issuer), (other_root, _)) = (authority(), authority());
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let cluster = tokio::task::spawn_blocking(move || {
        server::Cluster::start_with(&["fsync=off", "ssl=on"], |data| {
            for (name, pem) in [
                ("server.crt", certificate.pem()),
                ("server.key", key.serialize_pem()),
            ] {
                let path = data.join(name);
                fs::write(&path, pem).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            }
        })
    });
    let cluster = cluster.await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let roots = |name: &str, pem: String| {
        let path = folder.path().join(name);
        fs::write(&path, pem).unwrap();
        path.display().to_string()
    };
    let (root, other_root) = (roots("a.pem", root.pem()), roots("b.pem", other_root.pem()));
    // Whoever comes without TLS is turned away.
    cluster.require_tls();
    let url = cluster.url();
    let named = url.replace("127.0.0.1", "localhost");
    for (url, expected) in [
        (format!("{url}?sslmode=prefer"), Ok(())),
        (format!("{url}?sslmode=require"), Ok(())),
        (
            format!("{named}?sslmode=verify-full&sslrootcert={root}"),
            Ok(()),
        ),
        (format!("{url}?sslmode=disable"), Err("no encryption")),
        (
            format!("{url}?sslmode=verify-full&sslrootcert={root}"),
            Err("not valid for name"),
        ),
        (
            format!("{named}?sslmode=verify-full&sslrootcert={other_root}"),
            Err("invalid peer certificate"),
        ),
        (format!("{named}?sslmode=verify-full"), Err("certificate")),
    ] {
        let opened = Store::open(&options(&url, "node", LEASE)).await;
        if let Err(Error::Backend(error)) = &opened {
            let failure: &Failure = error.downcast_ref().unwrap();
            let disabled = url.contains("disable");
            assert_eq!(failure.of_tls().is_none(), disabled, "{failure:?}");
        }
        match (opened, expected) {
            (Ok(store), Ok(())) => store.close().await,
            (Err(error), Err(why)) => {
                assert!(text(&error).contains(why), "{url}: {}", text(&error));
            }
            (opened, expected) => panic!("{url}: {opened:?}, not {expected:?}"),
        }
    }
}

/// Runs statements on the tables behind a URL; brings what they print.
fn sql(url: &str, statements: &str) -> String {
    let schema = url.rsplit_once("%3D").unwrap().1;
    server::shared().sql(&format!("SET search_path = {schema}; {statements}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_set_back_loses_no_event_that_follows() {
    let url = server::shared().fresh();
    let store = open(&url, "node", LEASE).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    store.commit(held, events(1..5), second(2)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    let last = batch.events[3].position;
    store.acknowledge("s", last, None).await.unwrap();
    drop(batch);
    // A standby takes over that has not heard of the last two.
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
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&batch), [3, 4, 5, 6]);
    let last = batch.events[3].position;
    store.acknowledge("s", last, None).await.unwrap();
    drop(batch);
    store.close().await;
    assert_eq!(sql(&url, "SELECT position FROM progress"), "6");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_no_lease_is_taken_for_one_that_was_undone() {
    let url = server::shared().fresh();
    let (store, other) = two_replicas(&url).await;
    let undone = store.take_up(&a_search(), second(1)).await.unwrap().held;
    store.commit(undone, events(1..3), second(2)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    let last = batch.events[1].position;
    store.acknowledge("s", last, None).await.unwrap();
    drop(batch);
    sql(
        &url,
        "UPDATE search SET owner = NULL, epoch = 0, journal_end = 0; DELETE FROM journal;
         UPDATE progress SET position = 0",
    );
    // Somebody else is the first to take it up, and delivers nothing.
    let held = other.take_up(&a_search(), second(3)).await.unwrap().held;
    other.commit(held, events(3..5), second(4)).await.unwrap();
    other.close().await;
    assert_ne!(held, undone);
    take_over(&store).await;
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&batch), [3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_statements_are_gone_is_given_up() {
    let url = server::shared().fresh();
    let pool = Pool::new(SecretSource::Value(Secret::new(&url)), LEASE);
    let mut session = pool.session().await.unwrap();
    session.query("SELECT 1", &[]).await.unwrap();
    // A pooler may put another server behind a connection.
    session.batch("DEALLOCATE ALL").await.unwrap();
    drop(session);
    let mut session = pool.session().await.unwrap();
    session.query("SELECT 1", &[]).await.unwrap_err();
    drop(session);
    let mut session = pool.session().await.unwrap();
    session.query("SELECT 1", &[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_keeps_no_place_on_the_server() {
    let url = server::shared().fresh();
    open(&url, "node", LEASE).await.close().await;
    let name = url.rsplit_once("%3D").unwrap().1;
    let url = format!("{url}&application_name={name}");
    let pool = Pool::new(SecretSource::Value(Secret::new(&url)), LEASE);
    let mut other = pool.session().await.unwrap();
    other.batch("BEGIN; LOCK TABLE search").await.unwrap();
    let waiting = || {
        server::shared().sql(&format!(
            "SELECT count(*) FROM pg_stat_activity
             WHERE application_name = '{name}' AND wait_event_type = 'Lock'"
        ))
    };
    for _ in 0..3 {
        let mut session = pool.session().await.unwrap();
        let count = session.query("SELECT count(*) FROM search", &[]);
        timeout(Duration::from_millis(300), count)
            .await
            .unwrap_err();
    }
    let deadline = Instant::now() + PATIENCE;
    while waiting() != "0" {
        assert!(Instant::now() < deadline, "{} wait", waiting());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    other.batch("ROLLBACK").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_hangs_is_passed_over() {
    // The system takes the connections, and nobody ever reads from them.
    let hangs = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let hosts = format!(
        "127.0.0.1:{},127.0.0.1:{}",
        hangs.local_addr().unwrap().port(),
        server::shared().port()
    );
    let one = format!("127.0.0.1:{}", server::shared().port());
    let url = server::shared().fresh().replace(&one, &hosts);
    let pool = Pool::new(SecretSource::Value(Secret::new(&url)), LEASE);
    // Whoever gives up before its time is over does not meet it again.
    timeout(Duration::from_millis(300), pool.session())
        .await
        .unwrap_err();
    let sessions = [pool.session().await, pool.session().await];
    assert!(sessions.iter().all(Result::is_ok), "{sessions:?}");

    let url = format!("{url}&connect_timeout=1");
    let pool = Pool::new(SecretSource::Value(Secret::new(&url)), LEASE);
    pool.session().await.unwrap();
    let alone = url.replace(&format!(",{one}"), "");
    let pool = Pool::new(SecretSource::Value(Secret::new(&alone)), LEASE);
    let failure = pool.session().await.unwrap_err();
    assert!(matches!(failure, Failure::NoAnswer), "{failure:?}");
    assert!(failure.is_without_effect());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_server_certainly_has_not_done_counts_as_not_done() {
    let url = server::shared().fresh();
    let pool = Pool::new(SecretSource::Value(Secret::new(&url)), LEASE);
    for (state, undone) in [
        ("40001", true),
        ("53100", true),
        ("57014", true),
        // An ambiguous result, as distributed databases call it.
        ("40003", false),
        ("57P01", false),
    ] {
        let mut session = pool.session().await.unwrap();
        let raise = format!("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$");
        let failure = session.batch(&raise).await.unwrap_err();
        assert_eq!(failure.is_without_effect(), undone, "{state}");
    }
    assert!(!Failure::Timeout.is_without_effect());
    let nobody = url.replace(&format!(":{}/", server::shared().port()), ":1/");
    let pool = Pool::new(SecretSource::Value(Secret::new(&nobody)), LEASE);
    assert!(pool.session().await.unwrap_err().is_without_effect());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_many_answers_may_take_longer_than_one_answer() {
    let url = server::shared().fresh();
    let store = open(&url, "node", LEASE).await;
    let Store::Postgres(postgres) = &store else {
        panic!("{store:?}");
    };
    let answers = connection::PATIENCE.as_secs_f64() / 2.8;
    let sleep = format!("SELECT pg_sleep({answers})");
    let many = postgres.ask(async |session| {
        for _ in 0..3 {
            session.batch(&sleep).await?;
        }
        Ok(())
    });
    many.await.unwrap();
}

/// Has the next writes to a table fail, so many of them, as where another transaction gets in the
/// way.
fn get_in_the_way(url: &str, table: &str, writes: u32) {
    let statements = format!(
        "CREATE SEQUENCE IF NOT EXISTS writes_to_{table};
         CREATE OR REPLACE FUNCTION refuse_{table}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF nextval('writes_to_{table}') <= {writes} THEN
                 RAISE EXCEPTION USING ERRCODE = '40001';
             END IF;
             RETURN NULL;
         END $$;
         CREATE OR REPLACE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON {table}
             FOR EACH STATEMENT EXECUTE FUNCTION refuse_{table}();
         ALTER SEQUENCE writes_to_{table} RESTART"
    );
    sql(url, &statements);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_transaction_gets_in_the_way_of_is_done_again() {
    let url = server::shared().fresh();
    let store = open(&url, "node", LEASE).await;
    get_in_the_way(&url, "sink", 2);
    store.set_sinks(names(&["s"])).await.unwrap();
    get_in_the_way(&url, "search", 2);
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    get_in_the_way(&url, "journal", 2);
    store.commit(held, events(1..3), second(2)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&batch), [1, 2]);
    get_in_the_way(&url, "progress", 2);
    let last = batch.events[1].position;
    store.acknowledge("s", last, None).await.unwrap();
    drop(batch);
    assert_eq!(sql(&url, "SELECT position FROM progress"), "2");
    get_in_the_way(&url, "search", 2);
    store.release(held).await.unwrap();
    assert_eq!(sql(&url, "SELECT owner IS NULL FROM search"), "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_never_cease_to_get_in_the_way_of_fails() {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    let always = 10_000;
    get_in_the_way(&url, "sink", always);
    store.set_sinks(names(&["s"])).await.unwrap_err();
    get_in_the_way(&url, "sink", 0);
    store.set_sinks(names(&["s"])).await.unwrap();
    get_in_the_way(&url, "search", always);
    let refused = store.take_up(&a_search(), second(1)).await.unwrap_err();
    assert!(!matches!(refused, Error::HeldElsewhere), "{refused:?}");
    get_in_the_way(&url, "search", 0);
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    get_in_the_way(&url, "journal", always);
    let refused = store.commit(held, events(1..3), second(2)).await;
    assert!(!matches!(refused, Ok(()) | Err(Error::LeaseLost)));
    get_in_the_way(&url, "journal", 0);
    // Nothing of it was done, and the lease is not lost by it.
    store.commit(held, events(1..3), second(2)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&batch), [1, 2]);
    get_in_the_way(&url, "progress", always);
    let last = batch.events[1].position;
    store.acknowledge("s", last, None).await.unwrap_err();
    drop(batch);
    let nothing = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&nothing), [0; 0]);
    // It is told with the next one.
    get_in_the_way(&url, "progress", 0);
    store.acknowledge("s", last, None).await.unwrap();
    assert_eq!(sql(&url, "SELECT position FROM progress"), "2");
    get_in_the_way(&url, "search", always);
    store.release(held).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_that_others_get_in_the_way_of_is_done_in_time() {
    let url = server::shared().fresh();
    let store = open(&url, "node", Duration::from_secs(4)).await;
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    let mut trouble = store.trouble();
    let writes = async |wanted: u32| {
        let deadline = Instant::now() + PATIENCE;
        let last = || sql(&url, "SELECT last_value FROM writes_to_search");
        while last().parse::<u32>().unwrap() < wanted {
            assert!(Instant::now() < deadline, "the lease is not renewed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    get_in_the_way(&url, "search", 2);
    // The third has succeeded, and so has the round that it belongs to.
    writes(4).await;
    assert_eq!(*trouble.borrow_and_update(), None);
    assert!(!trouble.has_changed().unwrap());
    store.commit(held, events(1..3), second(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_somebody_has_locked_costs_its_own_lease_alone() {
    let url = server::shared().fresh();
    let lease = Duration::from_secs(3);
    let store = open(&url, "node", lease).await;
    let locked = store.take_up(&a_search(), second(1)).await.unwrap().held;
    let other = key("acme", "client_1", "other");
    let other = store.take_up(&other, second(1)).await.unwrap().held;
    let mut session = shared(&store).pool.session().await.unwrap();
    let lock = "BEGIN; SELECT FROM search WHERE name = 'open' FOR UPDATE";
    session.batch(lock).await.unwrap();
    timeout(PATIENCE, store.relieved(locked)).await.unwrap();
    // Unrenewed, the other one would end at the same time.
    timeout(lease / 2, store.relieved(other)).await.unwrap_err();
    assert_eq!(*store.trouble().borrow(), None);
    session.batch("ROLLBACK").await.unwrap();
    store.commit(other, events(1..3), second(2)).await.unwrap();
    store.take_up(&a_search(), second(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_renewed_though_all_other_connections_are_in_use() {
    let url = server::shared().fresh();
    let lease = Duration::from_secs(2);
    let store = open(&url, "node", lease).await;
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    let pool = &shared(&store).pool;
    let mut in_use = Vec::new();
    while let Ok(session) = timeout(lease / 2, pool.session()).await {
        in_use.push(session.unwrap());
    }
    timeout(lease, store.relieved(held)).await.unwrap_err();
    drop(in_use);
    store.commit(held, events(1..3), second(2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_is_stored_only_with_every_place_that_it_stands_for() {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    let other = key("acme", "client_1", "other");
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    let lost = store.take_up(&other, second(1)).await.unwrap().held;
    store.commit(held, events(1..3), second(2)).await.unwrap();
    store.commit(lost, events(3..5), second(2)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&batch), [1, 2, 3, 4]);
    // Somebody else takes it up.
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
    // All that was told at once counts as told.
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
    // It keeps the sinks from being forgotten.
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
    store.set_sinks(names(&["s"])).await.unwrap();
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    sql(&url, "DELETE FROM sink");
    // It may be told of that by others, before it comes to say so itself.
    let mut session = shared(&store).pool.session().await.unwrap();
    delivery::hear_of_sinks(shared(&store), &mut session)
        .await
        .unwrap();
    drop(session);
    let own = shared(&store).look(|state| state.journal.own_sinks());
    assert_eq!(own, ["s".into()]);
    let deadline = Instant::now() + PATIENCE;
    while sql(&url, "SELECT name FROM sink") != "s" {
        assert!(Instant::now() < deadline, "it is never named again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    store.commit(held, events(1..3), second(2)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&batch), [1, 2]);
    let last = batch.events[1].position;
    store.acknowledge("s", last, None).await.unwrap();
    drop(batch);
    wait_for_journal(&store, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_wakes_up_takes_nobodys_sinks_for_gone() {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    sql(
        &url,
        "INSERT INTO sink (name) VALUES ('t');
         UPDATE replica SET alive_until = now() - interval '2 hours';
         UPDATE sink SET unnamed_since = now() - interval '1 hour' WHERE name = 's'",
    );
    keeper::forget(shared(&store)).await.unwrap();
    let known = "SELECT name, unnamed_since IS NULL FROM sink ORDER BY name";
    assert_eq!(sql(&url, known), "s|f\nt|t");
    // As soon as it is known to be alive, its own is named and that of others is not.
    sql(
        &url,
        "UPDATE replica SET alive_until = now() + interval '2 hours'",
    );
    keeper::forget(shared(&store)).await.unwrap();
    assert_eq!(sql(&url, known), "s|t\nt|f");
}

#[tokio::test(flavor = "multi_thread")]
async fn sinks_hear_of_it_when_what_waits_is_lost() {
    let (options, ()) = fresh();
    let store = Store::open(&options).await.unwrap();
    store.set_sinks(names(&["s"])).await.unwrap();
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    store.commit(held, events(1..3), second(2)).await.unwrap();
    let mut journalled = store.journalled();
    journalled.mark_unchanged();
    shared(&store).change_leases(|state| state.lose(held));
    assert!(journalled.has_changed().unwrap());
    assert_eq!(store.backlog("s").await.unwrap(), Backlog::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn sinks_whose_change_was_not_answered_are_those_that_were() {
    let url = server::shared().fresh();
    let server = format!("127.0.0.1:{}", server::shared().port());
    let proxy = proxy::Proxy::start(server.parse().unwrap()).await;
    let by_proxy = url.replace(&server, &proxy.address.to_string());
    let store = open(&by_proxy, "node", Duration::from_secs(4)).await;
    store.set_sinks(names(&["s", "t"])).await.unwrap();
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    store.commit(held, events(1..3), second(2)).await.unwrap();
    for changed in [&["s"][..], &["s", "t", "u"]] {
        proxy.set(proxy::Weather::Unanswered { question: "COMMIT" });
        store.set_sinks(names(changed)).await.unwrap_err();
        proxy.set(proxy::Weather::Fair);
        let known = "SELECT replica.sinks, array_agg(sink.name ORDER BY sink.name)
             FROM replica, sink GROUP BY replica.sinks";
        let deadline = Instant::now() + PATIENCE;
        while sql(&url, known) != "{s,t}|{s,t}" {
            assert!(Instant::now() < deadline, "{}", sql(&url, known));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // Nothing was lost, and nothing is kept for one that is none.
    take_over(&store).await;
    for sink in ["s", "t"] {
        let batch = store.pending(sink, 9, usize::MAX).await.unwrap();
        assert_eq!(told(&batch), [1, 2], "{sink}");
        let last = batch.events[1].position;
        store.acknowledge(sink, last, None).await.unwrap();
    }
    wait_for_journal(&store, 0).await;
}

#[tokio::test]
async fn roots_that_do_not_answer_are_named_and_hold_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("roots.pem");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
    let url = format!(
        "postgres://u:p@127.0.0.1:9/d?sslmode=verify-full&sslrootcert={}",
        path.display()
    );
    let url = SecretSource::Value(Secret::new(url));
    let pool = Pool::new(url, Duration::from_secs(3));
    // Whoever is in a hurry hears of nothing else, either.
    timeout(Duration::from_millis(1), pool.session())
        .await
        .unwrap_err();
    let failure = pool.session().await.unwrap_err();
    let told = format!("could not be read within 5 s: {}", path.display());
    assert!(failure.to_string().ends_with(&told), "{failure}");
    // The runtime waits for its threads.
    drop(
        fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap(),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_others_to_be_taken_up_does_not_blame_the_server() {
    let (options, ()) = fresh();
    let store = Store::open(&options).await.unwrap();
    let others = shared(&store).takes.acquire_many(4).await.unwrap();
    let search = a_search();
    let taking = store.take_up(&search, second(1));
    tokio::pin!(taking);
    let waits = Duration::from_millis(500);
    timeout(connection::PATIENCE + waits, &mut taking)
        .await
        .unwrap_err();
    drop(others);
    taking.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_delivered_is_told_before_a_search_is_given_back() {
    let url = server::shared().fresh();
    let (first, other) = two_replicas(&url).await;
    let held = first.take_up(&a_search(), second(1)).await.unwrap().held;
    first.commit(held, events(1..3), second(2)).await.unwrap();
    let batch = first.pending("s", 9, usize::MAX).await.unwrap();
    // The server could not be told at that moment.
    let last = batch.events[1].position;
    shared(&first).change_journals(|state| state.journal.acknowledge("s", last, None));
    drop(batch);
    first.release(held).await.unwrap();
    take_over(&other).await;
    let nothing = other.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&nothing), [0; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journals_end_that_is_damaged_keeps_nothing_from_being_journalled() {
    let url = server::shared().fresh();
    let store = open(&url, "node", LEASE).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    store.commit(held, events(1..4), second(2)).await.unwrap();
    sql(&url, "UPDATE search SET journal_end = 1");
    store.commit(held, events(4..5), second(3)).await.unwrap();
    sql(&url, "UPDATE search SET journal_end = 0");
    store.close().await;

    let store = open(&url, "node", LEASE).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    let held = take_over(&store).await.held;
    store.commit(held, events(5..6), second(4)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&batch), [1, 2, 3, 4, 5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_whose_place_is_damaged_gets_what_is_in_the_journal() {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    store.commit(held, events(1..4), second(2)).await.unwrap();
    let acknowledge = async |events: usize| {
        let batch = store.pending("s", events, usize::MAX).await.unwrap();
        let last = batch.events[events - 1].position;
        store.acknowledge("s", last, None).await.unwrap();
    };
    acknowledge(1).await;
    delivery::prune(shared(&store)).await.unwrap();
    let damage = |position: i64| {
        sql(&url, &format!("UPDATE progress SET position = {position}"));
    };
    let kept = || sql(&url, "SELECT count(*) FROM journal");
    damage(i64::MAX);
    delivery::prune(shared(&store)).await.unwrap();
    assert_eq!(kept(), "2", "what waits was removed");
    acknowledge(1).await;
    assert_eq!(sql(&url, "SELECT position FROM progress"), "2");
    delivery::prune(shared(&store)).await.unwrap();
    assert_eq!(kept(), "1");

    // Soon there are events behind such a place, too.
    damage(4);
    shared(&store).change_leases(State::lose_all);
    let other = stalled(&url, LEASE).await;
    other.set_sinks(names(&["s"])).await.unwrap();
    sql(&url, "UPDATE search SET lease_until = now()");
    let held = take_over(&other).await.held;
    other.commit(held, events(4..7), second(3)).await.unwrap();
    delivery::prune(shared(&other)).await.unwrap();
    let batch = other.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&batch), [3, 4, 5, 6]);
}

/// A search that its holder has left with two events undelivered, an hour ago, and that no replica
/// wants: `name`.
async fn left(store: &Store, url: &str, name: &str) -> Held {
    let key = key("acme", "client_1", name);
    let held = store.take_up(&key, second(1)).await.unwrap().held;
    let mut commit = events(1..3);
    commit.upserts.push(alert("a", 1, 10));
    store.commit(held, commit, second(2)).await.unwrap();
    shared(store).change_leases(|state| state.lose(held));
    let hour_ago = "UPDATE search SET owner = NULL, lease_until = now() - interval '1 hour'";
    sql(
        url,
        &format!("{hour_ago}; UPDATE replica SET wants = '{{}}'"),
    );
    held
}

async fn take_left_over(store: &Store) -> Vec<Held> {
    left_over::take(shared(store), LEASE * 2).await.unwrap();
    shared(store).look(State::left_over)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_of_a_search_that_nobody_wants_is_delivered_and_removed() {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    let was = left(&store, &url, "open").await;
    let held = take_left_over(&store).await;
    assert!(held.len() == 1 && held[0].row == was.row && held[0].epoch > was.epoch);
    assert_eq!(store.backlog("s").await.unwrap().events, 2);
    // It is polled by nobody.
    let filter = AlertFilter {
        limit: 9,
        ..AlertFilter::default()
    };
    assert_eq!(store.open_alerts(filter).await.unwrap().len(), 0);

    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&batch), [1, 2]);
    left_over::give_back(shared(&store)).await.unwrap();
    assert!(batch.claim.holds());
    let last = batch.events[1].position;
    store.acknowledge("s", last, None).await.unwrap();
    drop(batch);
    left_over::give_back(shared(&store)).await.unwrap();
    let rest = "SELECT owner IS NULL, (SELECT count(*) FROM journal) FROM search";
    assert_eq!(sql(&url, rest), "t|0");
    assert_eq!(shared(&store).look(State::leases), []);

    // What every sink has and nobody has removed is no different.
    left(&store, &url, "open").await;
    sql(&url, "UPDATE progress SET position = 4");
    assert_eq!(take_left_over(&store).await.len(), 1);
    left_over::give_back(shared(&store)).await.unwrap();
    assert_eq!(sql(&url, rest), "t|0");
    assert_eq!(take_left_over(&store).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_want_or_deliver_is_left_to_them() {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    let row = left(&store, &url, "open").await.row;
    let other = |wants: &str| {
        let alive = "now() + interval '1 hour'";
        format!(
            "DELETE FROM replica WHERE id = 1;
             INSERT INTO replica (id, node, alive_until, wants) VALUES (1, 'other', {alive}, {wants})"
        )
    };
    let wanted = format!("'{{{row}}}'");
    for (why, so, otherwise) in [
        ("another wants it", other(&wanted), other("'{}'")),
        ("another has not said", other("NULL"), other("'{}'")),
        (
            "this one wants it",
            format!("UPDATE replica SET wants = {wanted}"),
            "UPDATE replica SET wants = '{}'".to_owned(),
        ),
        (
            "it was given back just now",
            "UPDATE search SET lease_until = now() - interval '20 s'".to_owned(),
            "UPDATE search SET lease_until = now() - interval '31 s'".to_owned(),
        ),
        (
            "another's sink lacks it",
            "INSERT INTO sink (name) VALUES ('t');
             INSERT INTO progress SELECT 's', id, 2 FROM search"
                .to_owned(),
            "UPDATE progress SET position = 1".to_owned(),
        ),
    ] {
        sql(&url, &so);
        assert_eq!(take_left_over(&store).await, [], "{why}");
        sql(&url, &otherwise);
        let held = take_left_over(&store).await;
        assert_eq!(held.len(), 1, "not for that: {why}");
        let hour_ago = "UPDATE search SET owner = NULL, lease_until = now() - interval '1 hour'";
        sql(&url, hour_ago);
        shared(&store).change_leases(|state| state.lose(held[0]));
    }
    // Whoever wants it later is given it.
    assert_eq!(take_left_over(&store).await.len(), 1);
    sql(&url, &other(&wanted));
    left_over::give_back(shared(&store)).await.unwrap();
    assert_eq!(sql(&url, "SELECT owner IS NULL FROM search"), "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_that_comes_back_is_polled_at_once_by_whoever_delivers_it() {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    store.set_sinks(names(&["s"])).await.unwrap();
    left(&store, &url, "open").await;
    let held = take_left_over(&store).await;
    let batch = store.pending("s", 1, usize::MAX).await.unwrap();
    store
        .acknowledge("s", batch.events[0].position, None)
        .await
        .unwrap();
    let polled = store.take_up(&a_search(), second(3)).await.unwrap().held;
    assert_eq!(shared(&store).look(State::left_over), []);
    // Who delivered it has begun to give it back.
    release(shared(&store), &held).await.unwrap();
    store.commit(polled, events(3..4), second(4)).await.unwrap();
    drop(batch);
    let rest = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&rest), [2, 3]);
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

    // Rights are not all: what a daemon does is tried, and nothing of it is left.
    for (so, otherwise) in [
        (
            "ALTER TABLE search OWNER TO CURRENT_USER, ENABLE ROW LEVEL SECURITY;
             GRANT ALL ON search TO careful",
            "ALTER TABLE search DISABLE ROW LEVEL SECURITY",
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
    let (_, schema) = url.rsplit_once("%3D").unwrap();
    sql(
        &url,
        &format!(
            "ALTER SCHEMA {schema} OWNER TO CURRENT_USER; GRANT USAGE ON SCHEMA {schema} TO careful"
        ),
    );
    assert_eq!(look().await.unwrap(), Err(Unfit::MayNotCreate));
}
