//! Connections: TLS, passwords, hosts and servers that hang, transactions that get in each other's
//! way.

use std::{fs, os::unix::fs::PermissionsExt as _};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_the_database_says_of_a_statement_is_shown_without_the_password() {
    let mut session = pool_of(&server::shared().fresh()).session().await.unwrap();
    let no_number = format!("SELECT '{}'::int", server::PASSWORD);
    let told = chain(&session.batch(&no_number).await.unwrap_err());
    assert!(told.contains("invalid input syntax"), "{told}");
    assert!(told.contains("\"<secret>\""), "{told}");
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
    let schema = schema_of(&url);
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
    // Clients without TLS are turned away.
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

#[tokio::test]
async fn a_url_that_leads_to_another_database_is_told_and_not_followed() {
    // If a thread that prints nothing came first, nothing would be printed.
    connection::tell_another(std::path::Path::new("any"));
    let (lines, logging) = crate::logging::captured();
    let said = |lines: &parking_lot::Mutex<Vec<String>>| {
        let mut lines = lines.lock();
        let of = |line: &String| line.contains("leads to another host, port or database");
        lines.drain(..).filter(of).count()
    };
    let (url, other) = (server::shared().fresh(), server::shared().fresh());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("url");
    fs::write(&file, &url).unwrap();
    let mut options = options(&url, "node", LEASE);
    let Options::Postgres { url: source, .. } = &mut options else {
        panic!("{options:?}");
    };
    *source = SecretSource::File(file.clone());
    let store = Store::open(&options).await.unwrap();
    store.set_sinks(names(&["s"])).await.unwrap();
    // Connections that are open already are kept, so those below are new ones.
    let taken = async |count: usize| {
        let mut taken = Vec::new();
        for _ in 0..count {
            taken.push(shared(&store).pool.session().await.unwrap());
        }
        taken
    };
    let schema = async |session: &mut Session| {
        let rows = session.query("SELECT current_schema()::text", &[]).await;
        rows.unwrap()[0].get::<_, String>(0)
    };
    assert_eq!(said(&lines), 0);
    fs::write(&file, &other).unwrap();
    for session in &mut taken(5).await {
        assert_eq!(schema(session).await, schema_of(&url));
    }
    assert_eq!(said(&lines), 1);
    // A reload says so once more. The capture is new, because a message that repeats itself is
    // printed once a minute.
    drop(logging);
    let (lines, _logging) = crate::logging::captured();
    store.set_sinks(names(&["s"])).await.unwrap();
    assert_eq!(said(&lines), 1);
    // A password that was rotated is used, here a wrong one.
    fs::write(&file, url.replace(server::PASSWORD, "hunter2")).unwrap();
    let mut held = Vec::new();
    let refused = loop {
        match shared(&store).pool.session().await {
            Ok(session) => held.push(session),
            Err(failure) => break failure,
        }
    };
    assert!(refused.is_refusal(), "{refused:?}");
    assert_eq!(said(&lines), 0);
    fs::write(&file, &url).unwrap();
    drop(held);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_statements_are_gone_is_given_up() {
    let url = server::shared().fresh();
    let pool = pool_of(&url);
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
    let name = schema_of(&url);
    let url = format!("{url}&application_name={name}");
    let pool = pool_of(&url);
    let mut other = pool.session().await.unwrap();
    other.batch("BEGIN; LOCK TABLE search").await.unwrap();
    let connected = || {
        server::shared().sql(&format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'"
        ))
    };
    for _ in 0..3 {
        let mut session = pool.session().await.unwrap();
        let count = session.query("SELECT count(*) FROM search", &[]);
        timeout(Duration::from_millis(300), count)
            .await
            .unwrap_err();
    }
    wait_until("more are left", || connected() == "1").await;
    other.batch("ROLLBACK").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_hangs_is_passed_over() {
    // The system accepts the connections, and nobody ever reads from them.
    let hangs = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let hosts = format!(
        "127.0.0.1:{},127.0.0.1:{}",
        hangs.local_addr().unwrap().port(),
        server::shared().port()
    );
    let one = format!("127.0.0.1:{}", server::shared().port());
    let url = server::shared().fresh().replace(&one, &hosts);
    // More time than any caller has.
    let patient = format!("{url}&connect_timeout=60");
    let pool = pool_of(&patient);
    // A caller that gives up before the host's time is over does not meet that host again.
    timeout(Duration::from_millis(300), pool.session())
        .await
        .unwrap_err();
    let sessions = [pool.session().await, pool.session().await];
    assert!(sessions.iter().all(Result::is_ok), "{sessions:?}");

    let url = format!("{url}&connect_timeout=3");
    let pool = pool_of(&url);
    pool.session().await.unwrap();
    let alone = url.replace(&format!(",{one}"), "");
    let pool = pool_of(&alone);
    let failure = pool.session().await.unwrap_err();
    assert!(matches!(failure, Failure::NoAnswer), "{failure:?}");
    assert!(failure.is_without_effect());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_server_certainly_has_not_done_counts_as_not_done() {
    let url = server::shared().fresh();
    let pool = pool_of(&url);
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
    let pool = pool_of(&nobody);
    assert!(pool.session().await.unwrap_err().is_without_effect());
}

#[tokio::test]
async fn the_server_ends_a_statement_before_its_answer_is_given_up() {
    let store = stalled(&server::shared().fresh(), LEASE).await;
    let pool = &shared(&store).pool;
    let limit = async |session: &mut Session| {
        let sql = "SELECT setting::bigint FROM pg_settings WHERE name = 'statement_timeout'";
        let limit: i64 = session.query(sql, &[]).await.unwrap()[0].get(0);
        session.roll_back().await.unwrap();
        Duration::from_millis(limit.unsigned_abs())
    };
    let seconds = Duration::from_secs;
    let mut session = pool.session().await.unwrap();
    session.begin().await.unwrap();
    assert_eq!(limit(&mut session).await, connection::PATIENCE * 4 / 5);
    session.begin_last(seconds(2)).await.unwrap();
    assert_eq!(limit(&mut session).await, seconds(2));
    drop(session);
    // The same is true for a caller in a hurry.
    let mut session = pool.session_within(seconds(5)).await.unwrap();
    for all in [seconds(4), seconds(9)] {
        let begun = session.begin_waiting_for_all(seconds(1), all).await;
        begun.unwrap();
        assert_eq!(limit(&mut session).await, seconds(4));
    }
    for (of_a_commit, limited) in [(seconds(9), seconds(4)), (seconds(3), seconds(3))] {
        let begun = session.begin_with_row(1, seconds(1), of_a_commit).await;
        begun.unwrap();
        assert_eq!(limit(&mut session).await, limited);
    }
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
    store.close().await;

    let store = stalled(&url, LEASE).await;
    get_in_the_way(&url, "replica", 2);
    keeper::renew(shared(&store), LEASE).await.unwrap();
    store.share_out(vec![a_search()]);
    get_in_the_way(&url, "replica", 2);
    keeper::share_out(shared(&store), LEASE).await.unwrap();
    timeout(PATIENCE, store.turn(&a_search())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_silent_cost_no_lease_while_new_ones_answer() {
    let (proxy, url) = behind_proxy(&server::shared().fresh()).await;
    let lease = Duration::from_secs(10);
    let store = open(&url, "node", lease).await;
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    // A firewall has forgotten the connections, including that of the renewals.
    drop(shared(&store).keeper_pool.session().await.unwrap());
    proxy.forget();
    timeout(lease * 2, store.relieved(held)).await.unwrap_err();
    assert_eq!(*store.trouble().borrow(), None);
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
    // Nothing was done, and the lease is not lost.
    store.commit(held, events(1..3), second(2)).await.unwrap();
    let batch = store.pending("s", 9, usize::MAX).await.unwrap();
    assert_eq!(told(&batch), [1, 2]);
    get_in_the_way(&url, "progress", always);
    let last = batch.events[1].position;
    store.acknowledge("s", last, None).await.unwrap_err();
    drop(batch);
    assert_eq!(waiting(&store, "s").await, [0; 0]);
    // The position is told with the next acknowledgement.
    get_in_the_way(&url, "progress", 0);
    store.acknowledge("s", last, None).await.unwrap();
    assert_eq!(sql(&url, "SELECT position FROM progress"), "2");
    get_in_the_way(&url, "search", always);
    store.release(held).await.unwrap_err();
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
    // A caller in a hurry gets no other answer either.
    timeout(Duration::from_millis(1), pool.session())
        .await
        .unwrap_err();
    let failure = pool.session().await.unwrap_err();
    let told = format!("could not be read within 5 s: {}", path.display());
    assert!(failure.to_string().ends_with(&told), "{failure}");
    // The runtime waits for its threads, so the read has to end.
    drop(
        fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap(),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_are_as_isolated_as_they_are_meant_to_be_whatever_the_default_is() {
    let url = server::shared().fresh();
    for level in ["serializable", "repeatable\\%20read"] {
        let url = format!("{url}%20-cdefault_transaction_isolation%3D{level}");
        let pool = pool_of(&url);
        let mut session = pool.session().await.unwrap();
        let isolation = async |session: &mut Session| {
            let sql = "SELECT current_setting('transaction_isolation')";
            let rows = session.query(sql, &[]).await.unwrap();
            rows[0].get::<_, String>(0)
        };
        assert_ne!(isolation(&mut session).await, "read committed");
        session.begin().await.unwrap();
        assert_eq!(isolation(&mut session).await, "read committed");
        session.commit().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_that_is_there_and_being_written_is_no_conflict_where_isolation_is_strict() {
    let url = server::shared().fresh();
    let store = stalled(&url, LEASE).await;
    let held = store.take_up(&a_search(), second(1)).await.unwrap().held;
    let mut session = shared(&store).pool.session().await.unwrap();
    let begin = "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM search";
    session.batch(begin).await.unwrap();
    store.commit(held, events(1..3), second(2)).await.unwrap();
    alerts::create(&mut session, &[a_search()], second(3))
        .await
        .unwrap();
    session.batch("ROLLBACK").await.unwrap();
}
