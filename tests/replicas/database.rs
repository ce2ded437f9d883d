//! The database is not there, goes away, comes back.

use crate::{
    exporter::{Exporter, Metrics, Place, eventually},
    opsramp,
    postgres::{self, Cluster},
    replica,
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

/// Waits until it says why it is not ready.
async fn wait_until_not_ready(exporter: &Exporter) -> String {
    eventually("it is not ready", async || {
        exporter.get("/-/ready").await.0 == 503
    })
    .await;
    exporter.get("/-/ready").await.1
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_away_pauses_polling_and_loses_nothing() {
    let mut cluster = tokio::task::spawn_blocking(|| Cluster::start(&["fsync=off"]))
        .await
        .unwrap();
    let opsramp = opsramp(1).await;
    let place = replica(&opsramp, 1, 1, &cluster.fresh());
    let exporter = place.start().await;
    exporter.wait_for("it polls", all_is_well).await;
    wait_for_lines(&place, 2).await;

    cluster.stop();
    opsramp.open_many(&crate::tenant(0), 3).unwrap();
    exporter
        .wait_for("the lease has ended", |metrics| {
            metrics.sum("opsramp_lease_held{") == 0.0
        })
        .await;
    let why = wait_until_not_ready(&exporter).await;
    assert!(why.contains("cannot connect to the database"), "{why}");
    assert_eq!(exporter.get("/-/healthy").await.0, 200);
    assert_eq!(place.lines_of("alerts.jsonl").len(), 2);

    assert!(cluster.go_on());
    exporter.wait_for("it polls again", all_is_well).await;
    wait_for_lines(&place, 5).await;
    eventually("it is ready", async || {
        exporter.get("/-/ready").await.0 == 200
    })
    .await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_starts_without_the_database_and_waits() {
    let mut cluster = tokio::task::spawn_blocking(|| Cluster::start(&["fsync=off"]))
        .await
        .unwrap();
    let opsramp = opsramp(1).await;
    let place = replica(&opsramp, 1, 1, &cluster.fresh());
    cluster.stop();
    let exporter = place.start().await;
    assert_eq!(exporter.get("/-/healthy").await.0, 200);
    exporter.metrics().await;
    let (status, why) = exporter.get("/-/ready").await;
    assert_eq!(status, 503);
    assert!(why.contains("cannot connect to the database"), "{why}");
    assert!(cluster.go_on());
    exporter.wait_for("it polls", all_is_well).await;
    wait_for_lines(&place, 2).await;
    exporter.stop().await;

    // Whoever waits can be stopped.
    cluster.stop();
    let waiting = place.start().await;
    waiting.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_only_reads_is_named_and_recovered_from() {
    let cluster = tokio::task::spawn_blocking(|| Cluster::start(&["fsync=off"]))
        .await
        .unwrap();
    let opsramp = opsramp(1).await;
    let place = replica(&opsramp, 1, 1, &cluster.fresh());
    let exporter = place.start().await;
    exporter.wait_for("it polls", all_is_well).await;
    // As a standby, or a database whose disk is full.
    cluster.sql("ALTER SYSTEM SET default_transaction_read_only = on");
    cluster.sql("SELECT pg_reload_conf()");
    opsramp.open_many(&crate::tenant(0), 3).unwrap();
    exporter
        .wait_for("the lease has ended", |metrics| {
            metrics.sum("opsramp_lease_held{") == 0.0
        })
        .await;
    let why = wait_until_not_ready(&exporter).await;
    assert!(why.contains("does not allow writes"), "{why}");
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
