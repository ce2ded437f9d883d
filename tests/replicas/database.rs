//! The database is not there, goes away, comes back.

use std::{collections::BTreeSet, time::Duration};

use opsramp_exporter::simulator::{Endpoint, Fault, FaultRule, TenantOptions};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    exporter::{Exporter, Members, Metrics, Place, Signal, eventually, opsramp_with},
    holds,
    lock::Lock,
    opsramp,
    postgres::{self, Cluster},
    proxy::{Proxy, Weather},
    replica, schema_of, tenant, wait_until_ready,
};

fn all_is_well(metrics: &Metrics) -> bool {
    metrics.sum("opsramp_up{") == 1.0
}

async fn wait_for_lines(place: &Place, count: usize) {
    eventually("the lines are there", async || {
        place.lines_of("alerts.jsonl").len() == count
    })
    .await;
}

/// Returns how many different events are in the files of all replicas.
fn told(places: &[Place]) -> usize {
    let lines = places
        .iter()
        .flat_map(|place| place.lines_of("alerts.jsonl"));
    let ids = lines.map(|line| Members::parse(&line).text("event_id").to_owned());
    ids.collect::<BTreeSet<String>>().len()
}

/// Starts a database server for one test alone.
async fn own_cluster() -> Cluster {
    tokio::task::spawn_blocking(|| Cluster::start(&["fsync=off"]))
        .await
        .unwrap()
}

/// Starts a network before a server. Returns it, and this URL of the server by way of it.
async fn behind_proxy(cluster: &Cluster, url: &str) -> (Proxy, String) {
    let server = format!("127.0.0.1:{}", cluster.port());
    let proxy = Proxy::start(server.parse().unwrap()).await;
    let by_proxy = url.replace(&server, &proxy.address.to_string());
    (proxy, by_proxy)
}

/// The weather in which everything passes with this delay in each direction.
fn slow(delay: Duration) -> Weather {
    Weather::Slow {
        delay,
        bytes_per_second: f64::INFINITY,
    }
}

/// Waits until the replica is not ready for this reason. Another one may come before it, such as that
/// a connection was closed.
async fn wait_until_not_ready(exporter: &Exporter, why: &str) {
    eventually(&format!("it is not ready: {why}"), async || {
        let (status, told) = exporter.get("/-/ready").await;
        status == 503 && told.contains(why)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_away_pauses_polling_and_loses_nothing() {
    let mut cluster = own_cluster().await;
    let opsramp = opsramp(1).await;
    let place = replica(&opsramp, 1, 1, &cluster.fresh());
    let exporter = place.start().await;
    exporter.wait_for("it polls", all_is_well).await;
    wait_for_lines(&place, 2).await;

    cluster.stop();
    opsramp.open_many(&tenant(0), 3).unwrap();
    exporter.wait_for("the lease has ended", holds(0)).await;
    wait_until_not_ready(&exporter, "cannot connect to the database").await;
    assert_eq!(exporter.get("/-/healthy").await.0, 200);
    assert_eq!(place.lines_of("alerts.jsonl").len(), 2);

    assert!(cluster.go_on());
    exporter.wait_for("it polls again", all_is_well).await;
    wait_for_lines(&place, 5).await;
    wait_until_ready(&exporter).await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_down_is_not_told_as_well_while_the_database_is_away() {
    const BACKLOG: &str = "opsramp_sink_backlog_events{";
    const OLDEST: &str = "opsramp_sink_oldest_pending_timestamp_seconds{";
    let mut cluster = own_cluster().await;
    let opsramp = opsramp(1).await;
    let place = replica(&opsramp, 1, 1, &cluster.fresh());
    let log = place.path("alerts.jsonl");
    std::fs::create_dir(&log).unwrap();
    let exporter = place.start().await;
    let waits = |metrics: &Metrics| metrics.sum(BACKLOG) == 2.0 && metrics.mentions(OLDEST) == 1;
    exporter.wait_for("two lines wait", waits).await;
    let error = async || {
        let (_, status) = exporter.get("/api/v1/status").await;
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        status["sinks"][0]["error"].clone()
    };
    eventually("the sink is down", async || error().await.is_string()).await;

    cluster.stop();
    exporter
        .wait_for("nobody knows what waits", |metrics| {
            assert_ne!(metrics.one(BACKLOG), Some(0.0));
            metrics.mentions(BACKLOG) == 0 && metrics.mentions(OLDEST) == 0
        })
        .await;
    assert!(error().await.is_string());
    assert!(cluster.go_on());
    exporter.wait_for("two lines wait", waits).await;
    std::fs::remove_dir(&log).unwrap();
    wait_for_lines(&place, 2).await;
    exporter
        .wait_for("none waits", |metrics| metrics.one(BACKLOG) == Some(0.0))
        .await;
    let told = exporter.stop().await.stderr;
    let nothing = "nothing waits for delivery";
    assert!(!told.iter().any(|line| line.contains(nothing)), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_starts_without_the_database_and_waits() {
    let mut cluster = own_cluster().await;
    let opsramp = opsramp(1).await;
    let place = replica(&opsramp, 1, 1, &cluster.fresh());
    cluster.stop();
    let exporter = place.start().await;
    assert_eq!(exporter.get("/-/healthy").await.0, 200);
    exporter.metrics().await;
    wait_until_not_ready(&exporter, "cannot connect to the database").await;
    assert!(cluster.go_on());
    exporter.wait_for("it polls", all_is_well).await;
    wait_for_lines(&place, 2).await;
    exporter.stop().await;

    // A replica that waits can be stopped.
    cluster.stop();
    let waiting = place.start().await;
    waiting.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_only_reads_is_named_and_recovered_from() {
    let cluster = own_cluster().await;
    let opsramp = opsramp(1).await;
    let place = replica(&opsramp, 1, 1, &cluster.fresh());
    let exporter = place.start().await;
    exporter.wait_for("it polls", all_is_well).await;
    // The server is like a standby, or like a database whose disk is full.
    cluster.sql("ALTER SYSTEM SET default_transaction_read_only = on");
    cluster.sql("SELECT pg_reload_conf()");
    opsramp.open_many(&tenant(0), 3).unwrap();
    exporter.wait_for("the lease has ended", holds(0)).await;
    wait_until_not_ready(&exporter, "does not allow writes").await;
    cluster.sql("ALTER SYSTEM RESET default_transaction_read_only");
    cluster.sql("SELECT pg_reload_conf()");
    exporter.wait_for("it polls again", all_is_well).await;
    wait_for_lines(&place, 5).await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_that_is_none_is_a_mistake_of_the_configuration() {
    let opsramp = opsramp(1).await;
    let url = format!("mysql://u:{}@h/d", postgres::PASSWORD);
    let place = replica(&opsramp, 1, 1, &url);
    place.write();
    let ended = place.run(place.command()).await;
    assert_eq!(ended.status.code(), Some(2));
    let told = ended.stderr.join("\n");
    assert!(
        told.contains("the URL of the database cannot be read"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_url_that_does_not_answer_is_named_and_waited_for() {
    let url = postgres::shared().fresh();
    let opsramp = opsramp(1).await;
    let mut place = replica(&opsramp, 1, 1, &url);
    let path = place.silent("url");
    place.config["state"]["postgres"] = json!({"url_file": path, "lease": "3s"});
    let exporter = place.start().await;
    let told = format!("could not be read within 5 s: {}", path.display());
    exporter.stderr.line(|line| line.contains(&told)).await;
    eventually("readiness names the file", || async {
        exporter.get("/-/ready").await.1.contains(&told)
    })
    .await;

    // The reader that waits for the pipe gets its end, and then reads the file that is there by
    // then.
    let pipe = std::fs::File::options().read(true).write(true).open(&path);
    std::fs::write(place.path("new"), url).unwrap();
    std::fs::rename(place.path("new"), &path).unwrap();
    drop(pipe.unwrap());
    exporter.wait_for("it polls", all_is_well).await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_connection_left_is_waited_for() {
    let cluster = own_cluster().await;
    let opsramp = opsramp(1).await;
    let limited = cluster.fresh_for("limited");
    let place = replica(&opsramp, 1, 1, &limited);
    let exporter = place.start().await;
    exporter.wait_for("it polls", all_is_well).await;
    cluster.sql("ALTER ROLE limited CONNECTION LIMIT 0");
    cluster.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'limited'");
    opsramp.open_many(&tenant(0), 3).unwrap();
    wait_until_not_ready(&exporter, "too many connections").await;
    cluster.sql("ALTER ROLE limited CONNECTION LIMIT -1");
    wait_for_lines(&place, 5).await;
    exporter.wait_for("it polls again", all_is_well).await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_cut_off_is_replaced_and_comes_back() {
    const SEARCHES: usize = 4;
    let cluster = postgres::shared();
    let opsramp = opsramp(1).await;
    let database = cluster.fresh();
    let (proxy, by_proxy) = behind_proxy(cluster, &database).await;
    let places = [
        replica(&opsramp, 1, SEARCHES, &by_proxy),
        replica(&opsramp, 1, SEARCHES, &database),
    ];
    let (cut_off, other) = (places[0].start().await, places[1].start().await);
    for replica in [&cut_off, &other] {
        replica.wait_for("shares are even", holds(2)).await;
    }
    proxy.set(Weather::Silent);
    opsramp.open_many(&tenant(0), 3).unwrap();
    other.wait_for("it has taken over", holds(SEARCHES)).await;
    // The replica may be waiting for the database at this moment, but shows none of the searches
    // all the same.
    let metrics = cut_off.metrics().await;
    assert!(holds(0)(&metrics) && metrics.mentions("opsramp_up{") == 0);
    wait_until_not_ready(&cut_off, "the database has not answered in time").await;
    assert_eq!(cut_off.get("/-/healthy").await.0, 200);
    proxy.set(Weather::Fair);
    for replica in [&cut_off, &other] {
        replica.wait_for("shares are even again", holds(2)).await;
    }
    eventually("all is told", async || told(&places) == 5 * SEARCHES).await;
    for replica in [cut_off, other] {
        replica.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_followed_while_a_client_that_has_gone_cannot_be_given_back() {
    let clients = [0, 1].map(tenant);
    let opsramp = opsramp_with(0, |options| {
        let client = |id: &String| TenantOptions {
            id: id.clone(),
            partner: Some("msp_1".to_owned()),
            ..TenantOptions::default()
        };
        options.tenants = clients.iter().map(client).collect();
    })
    .await;
    let cluster = postgres::shared();
    let (proxy, database) = behind_proxy(cluster, &cluster.fresh()).await;
    let mut place = replica(&opsramp, 1, 1, &database);
    // Far longer than the test takes: a replica that holds nothing has nothing to give back.
    place.config["state"]["postgres"]["lease"] = json!("60s");
    place.config["accounts"][0]["tenants"] = json!(["msp_1"]);
    place.config["accounts"][0]["discover_clients"] = json!(true);
    let exporter = place.start().await;
    exporter.wait_for("both are held", holds(2)).await;

    opsramp
        .world(|world, now| world.set_activated(&clients[1], false, now))
        .unwrap();
    let slow = Fault::SlowHeaders {
        seconds: Duration::from_secs(1),
    };
    opsramp.inject(FaultRule::always(slow).at(Endpoint::Clients));
    // The reload makes the exporter look up the clients again.
    place.config["accounts"][0]["timeout"] = json!("3s");
    exporter.reload(&place).await;
    proxy.set(Weather::Silent);
    exporter
        .stderr
        .line(|line| line.contains("looked up the clients") && line.contains("gone=1"))
        .await;
    exporter.signal(Signal::TERM);
    let asked = Instant::now();
    exporter
        .stderr
        .line(|line| line.contains("stopping: polling ends"))
        .await;
    assert!(
        asked.elapsed() < Duration::from_secs(5),
        "{:?}",
        asked.elapsed()
    );
    exporter.signal(Signal::INT);
    assert_eq!(exporter.end().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_database_is_put_up_with_and_one_that_is_too_slow_is_named() {
    let cluster = postgres::shared();
    let opsramp = opsramp(1).await;
    let (proxy, database) = behind_proxy(cluster, &cluster.fresh()).await;
    let place = replica(&opsramp, 1, 1, &database);
    let exporter = place.start().await;
    exporter.wait_for("it polls", all_is_well).await;
    wait_for_lines(&place, 2).await;
    proxy.set(slow(Duration::from_millis(50)));
    opsramp.open_many(&tenant(0), 3).unwrap();
    wait_for_lines(&place, 5).await;
    wait_until_ready(&exporter).await;

    proxy.set(slow(Duration::from_secs(5)));
    wait_until_not_ready(&exporter, "has not answered in time").await;
    assert_eq!(exporter.get("/-/healthy").await.0, 200);
    exporter.wait_for("the lease has ended", holds(0)).await;
    proxy.set(Weather::Fair);
    opsramp.open_many(&tenant(0), 3).unwrap();
    wait_for_lines(&place, 8).await;
    exporter.wait_for("it polls again", all_is_well).await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_slow_from_the_start_is_started_with() {
    let cluster = postgres::shared();
    let opsramp = opsramp(1).await;
    let (proxy, database) = behind_proxy(cluster, &cluster.fresh()).await;
    // The delay of a single answer is a twentieth of the lease, but many answers together take
    // longer than half a lease.
    proxy.set(slow(Duration::from_millis(100)));
    let mut place = replica(&opsramp, 1, 2, &database);
    place.config["state"]["postgres"]["lease"] = json!("4s");
    let exporter = place.start().await;
    exporter
        .wait_for("it polls", |metrics| metrics.sum("opsramp_up{") == 2.0)
        .await;
    wait_for_lines(&place, 4).await;
    opsramp.open_many(&tenant(0), 1).unwrap();
    wait_for_lines(&place, 6).await;
    wait_until_ready(&exporter).await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_stopped_during_its_start_takes_leave() {
    let cluster = postgres::shared();
    let opsramp = opsramp(1).await;
    let (proxy, database) = behind_proxy(cluster, &cluster.fresh()).await;
    let replicas = format!("SELECT count(*) FROM {}.replica", schema_of(&database));
    let place = replica(&opsramp, 1, 2, &database);
    place.start().await.stop().await;
    assert_eq!(cluster.sql(&replicas), "0");

    proxy.set(slow(Duration::from_millis(50)));
    let starting = place.spawn(place.command());
    // By then the replica has opened the store, but not yet learned what to do with it.
    let named = format!("{replicas} WHERE sinks <> '{{}}'");
    eventually("it is registered", async || cluster.sql(&named) == "1").await;
    starting.signal(Signal::TERM);
    assert_eq!(starting.end().await.code(), Some(0));
    assert_eq!(cluster.sql(&replicas), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_or_a_firewall_closes_is_opened_again() {
    let cluster = own_cluster().await;
    let opsramp = opsramp(1).await;
    let place = replica(&opsramp, 1, 1, &cluster.fresh());
    // Only from here on, since `psql` may wait as long between its connection and its statement.
    cluster.sql("ALTER SYSTEM SET idle_session_timeout = '150ms'");
    cluster.sql("SELECT pg_reload_conf()");
    let exporter = place.start().await;
    exporter.wait_for("it polls", all_is_well).await;
    let mut lines = 2;
    wait_for_lines(&place, lines).await;
    for _ in 0..5 {
        opsramp.open_many(&tenant(0), 1).unwrap();
        lines += 1;
        wait_for_lines(&place, lines).await;
    }
    assert!(cluster.log().contains("idle-session timeout"));
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_the_server_that_can_be_written_to_is_used() {
    const SEARCHES: usize = 2;
    let clusters = tokio::task::spawn_blocking(|| {
        let primary = Cluster::start(&["fsync=off"]);
        let standby = primary.standby();
        (primary, standby)
    });
    let (mut primary, standby) = clusters.await.unwrap();
    let opsramp = opsramp(1).await;
    let both = format!(":{},127.0.0.1:{}/", primary.port(), standby.port());
    let database = primary.fresh();
    let database = database.replace(&format!(":{}/", primary.port()), &both);
    let places = [(); 2].map(|()| replica(&opsramp, 1, SEARCHES, &database));
    let replicas = [places[0].start().await, places[1].start().await];
    eventually("all is told", async || told(&places) == 2 * SEARCHES).await;
    primary.wait_for_standby();
    primary.stop();
    opsramp.open_many(&tenant(0), 3).unwrap();
    for replica in &replicas {
        wait_until_not_ready(replica, "").await;
        assert_eq!(replica.get("/-/healthy").await.0, 200);
    }
    standby.promote();
    eventually("all is told", async || told(&places) == 5 * SEARCHES).await;
    for replica in replicas {
        replica.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_waits_for_the_database_tells_the_truth_and_does_what_it_is_told() {
    let mut cluster = own_cluster().await;
    let opsramp = opsramp(1).await;
    let mut place = replica(&opsramp, 1, 1, &cluster.fresh());
    place.config["web"]["enable_lifecycle"] = json!(true);
    cluster.stop();
    let exporter = place.start().await;
    let metrics = exporter.metrics().await;
    let reload = "opsramp_exporter_config_last_reload_success";
    assert_eq!(metrics.one(&format!("{reload}ful")), Some(1.0));
    let read_at = metrics.one(&format!("{reload}_timestamp_seconds"));
    assert!(read_at.is_some());
    // The backlog is not known yet.
    assert_eq!(metrics.mentions("opsramp_sink_backlog_events"), 0);
    let (status, text) = exporter.post("/-/reload").await;
    assert!(
        status == 503 && text.contains("starting"),
        "{status} {text}"
    );

    place.config["searches"] = json!([{"name": "another", "interval": "500ms"}]);
    place.write();
    exporter.signal(Signal::HUP);
    assert!(cluster.go_on());
    exporter
        .wait_for("it has loaded the file again", |metrics| {
            metrics.mentions("search=\"another\"") > 0
                && metrics.one(&format!("{reload}_timestamp_seconds")) > read_at
        })
        .await;
    exporter.stop().await;

    cluster.stop();
    let waiting = place.start().await;
    assert_eq!(waiting.post("/-/quit").await.0, 200);
    assert_eq!(waiting.end().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_whose_database_hangs_is_told_before_it_fails() {
    let cluster = postgres::shared();
    let opsramp = opsramp(1).await;
    let (proxy, database) = behind_proxy(cluster, &cluster.fresh()).await;
    proxy.set(Weather::Silent);
    // With this time, the start fails only after the ten seconds that an answer may take.
    let place = replica(&opsramp, 1, 1, &format!("{database}&connect_timeout=30"));
    let begun = Instant::now();
    let exporter = place.start().await;
    let (status, why) = exporter.get("/-/ready").await;
    assert!(
        begun.elapsed() < Duration::from_secs(9),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(status, 503);
    assert!(why.contains("state store has not answered yet"), "{why}");
    assert_eq!(exporter.get("/-/healthy").await.0, 200);
    proxy.set(Weather::Fair);
    exporter.wait_for("it polls", all_is_well).await;
    wait_until_ready(&exporter).await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_the_database_fails_leaves_nothing_behind_and_one_that_hangs_can_be_ended() {
    let mut cluster = own_cluster().await;
    let opsramp = opsramp(1).await;
    let (proxy, database) = behind_proxy(&cluster, &cluster.fresh()).await;
    let mut place = replica(&opsramp, 1, 1, &database);
    place.config["web"]["enable_lifecycle"] = json!(true);
    let exporter = place.start().await;
    exporter.wait_for("it polls", all_is_well).await;

    let mut account = place.config["accounts"][0].clone();
    account["name"] = json!("newcomer");
    place.config["accounts"]
        .as_array_mut()
        .unwrap()
        .push(account);
    let file = json!({"name": "second", "type": "file", "path": place.path("second")});
    place.config["log"]["sinks"]
        .as_array_mut()
        .unwrap()
        .push(file);
    place.write();
    cluster.stop();
    let (status, text) = exporter.post("/-/reload").await;
    assert_eq!(status, 500, "{text}");
    // Longer than a recent exposition is shown instead of a new one.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let metrics = exporter.metrics().await;
    assert_eq!(
        metrics.mentions("newcomer") + metrics.mentions("\"second\""),
        0
    );

    assert!(cluster.go_on());
    exporter.wait_for("it polls again", all_is_well).await;
    proxy.set(Weather::Silent);
    exporter.signal(Signal::HUP);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let told = Instant::now();
    exporter.stop().await;
    assert!(
        told.elapsed() < Duration::from_secs(22),
        "{:?}",
        told.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_database_that_hangs_while_it_is_asked_for_a_search() {
    let cluster = postgres::shared();
    let opsramp = opsramp(1).await;
    let url = cluster.fresh();
    replica(&opsramp, 1, 1, &url).start().await.stop().await;
    let lock = Lock::take(&url, "LOCK TABLE departed").await;
    let (proxy, database) = behind_proxy(cluster, &url).await;
    let exporter = replica(&opsramp, 1, 1, &database).start().await;
    lock.wait_until_somebody_waits().await;
    proxy.set(Weather::Silent);
    let told = Instant::now();
    exporter.stop().await;
    // The question itself would be given up after ten seconds.
    let took = told.elapsed();
    assert!(took < Duration::from_secs(9), "{took:?}");
    lock.let_go().await;
}

/// Nothing else would report that a table only grows.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_delivered_and_cannot_be_removed_is_told() {
    let cluster = postgres::shared();
    let opsramp = opsramp(1).await;
    let url = cluster.fresh();
    let schema = schema_of(&url);
    let place = replica(&opsramp, 1, 1, &url);
    let exporter = place.start().await;
    exporter.wait_for("it polls", all_is_well).await;
    wait_for_lines(&place, 2).await;
    cluster.sql(&format!(
        "SET search_path TO {schema};
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
             AS $$ BEGIN RAISE 'nothing is deleted here'; END $$;
         CREATE TRIGGER refuse BEFORE DELETE ON journal EXECUTE FUNCTION refuse()"
    ));
    opsramp.open_many(&tenant(0), 3).unwrap();
    wait_for_lines(&place, 5).await;
    let told = exporter
        .stderr
        .line(|line| line.contains("cannot tidy up"))
        .await;
    assert!(told.contains("nothing is deleted here"), "{told}");
    // The replica works all the same.
    let metrics = exporter.metrics().await;
    assert!(all_is_well(&metrics));
    exporter.stop().await;
}
