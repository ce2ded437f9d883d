//! Replicas whose configurations change while they run, one after the other, as in operation.

use std::time::Duration;

use opsramp_exporter::simulator::TenantOptions;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    exporter::{Members, Metrics, Place, eventually, opsramp_with},
    holds,
    lock::Lock,
    opsramp, postgres, replica, schema_of, tenant,
};

/// Waits until the files of that name have so many lines in all, each of another event.
async fn wait_for_lines(places: &[Place], file: &str, count: usize) {
    let ids = || {
        let lines = places.iter().flat_map(|place| place.lines_of(file));
        let mut ids: Vec<_> = lines
            .map(|line| Members::parse(&line).text("event_id").to_owned())
            .collect();
        ids.sort_unstable();
        ids
    };
    eventually("all is told", async || ids().len() >= count).await;
    let mut ids = ids();
    assert_eq!(ids.len(), count);
    ids.dedup();
    assert_eq!(ids.len(), count, "lines are doubled");
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_whose_options_change_are_polled_on() {
    const SEARCHES: usize = 4;
    let opsramp = opsramp(1).await;
    let database = postgres::shared().fresh();
    let mut places = [(); 2].map(|()| replica(&opsramp, 1, SEARCHES, &database));
    let replicas = [places[0].start().await, places[1].start().await];
    for replica in &replicas {
        replica.wait_for("shares are even", holds(2)).await;
    }
    let mut lines = 2 * SEARCHES;
    for (interval, changed) in [("400ms", 0..1), ("300ms", 0..2), ("500ms", 0..2)] {
        for (place, replica) in places[changed.clone()].iter_mut().zip(&replicas[changed]) {
            for search in place.config["searches"].as_array_mut().unwrap() {
                search["interval"] = json!(interval);
            }
            replica.reload(place).await;
        }
        opsramp.open_many(&tenant(0), 3).unwrap();
        lines += 3 * SEARCHES;
        wait_for_lines(&places, "alerts.jsonl", lines).await;
    }
    for replica in &replicas {
        replica.wait_for("nothing has moved", holds(2)).await;
    }
    for replica in replicas {
        replica.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_two_reloads_right_after_each_other_counts() {
    let opsramp = opsramp(3).await;
    let mut place = replica(&opsramp, 1, 1, &postgres::shared().fresh());
    // Far longer than the two reloads take.
    place.config["state"]["postgres"]["lease"] = json!("60s");
    let exporter = place.start().await;
    exporter.wait_for("one is held", holds(1)).await;
    for tenants in [2, 3] {
        let tenants: Vec<String> = (0..tenants).map(tenant).collect();
        place.config["accounts"][0]["tenants"] = json!(tenants);
        exporter.reload(&place).await;
    }
    exporter.wait_for("all are held", holds(3)).await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_discovered_are_polled() {
    const CLIENTS: usize = 3;
    let opsramp = opsramp_with(0, |options| {
        let client = |number| TenantOptions {
            id: tenant(number),
            partner: Some("msp_1".to_owned()),
            alerts: 1,
            ..TenantOptions::default()
        };
        options.tenants = (0..CLIENTS).map(client).collect();
    })
    .await;
    let mut place = replica(&opsramp, 1, 1, &postgres::shared().fresh());
    place.config["accounts"][0]["tenants"] = json!(["msp_1"]);
    place.config["accounts"][0]["discover_clients"] = json!(true);
    let exporter = place.start().await;
    exporter.wait_for("all are held", holds(CLIENTS)).await;
    wait_for_lines(&[place], "alerts.jsonl", CLIENTS).await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_added_to_one_replica_after_the_other_misses_nothing() {
    const SEARCHES: usize = 4;
    let opsramp = opsramp(1).await;
    let database = postgres::shared().fresh();
    let mut places = [(); 2].map(|()| replica(&opsramp, 1, SEARCHES, &database));
    for place in &mut places {
        // With this lease, a replica does not hear of the other's sinks during the test.
        place.config["state"]["postgres"]["lease"] = json!("20s");
    }
    let first = places[0].start().await;
    first.wait_for("all are held", holds(SEARCHES)).await;
    let second = places[1].start().await;
    wait_for_lines(&places, "alerts.jsonl", 2 * SEARCHES).await;
    for place in &mut places {
        let path = place.path("new.jsonl");
        let sinks = place.config["log"]["sinks"].as_array_mut().unwrap();
        sinks.push(json!({"name": "new", "type": "file", "path": path}));
    }
    let mut lines = 2;
    for (place, replica) in [(&places[1], &second), (&places[0], &first)] {
        replica.reload(place).await;
        opsramp.open_many(&tenant(0), 3).unwrap();
        lines += 3;
        wait_for_lines(&places, "alerts.jsonl", lines * SEARCHES).await;
    }
    wait_for_lines(&places, "new.jsonl", 6 * SEARCHES).await;
    for replica in [first, second] {
        replica.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_search_has_journalled_is_delivered_when_it_has_left_the_configuration() {
    let opsramp = opsramp(1).await;
    let database = postgres::shared().fresh();
    let mut places = [(); 2].map(|()| replica(&opsramp, 1, 2, &database));
    for place in &mut places {
        let path = place.path("late/late.jsonl");
        let sinks = place.config["log"]["sinks"].as_array_mut().unwrap();
        sinks.push(json!({"name": "late", "type": "file", "path": path}));
    }
    let replicas = [places[0].start().await, places[1].start().await];
    for replica in &replicas {
        replica.wait_for("shares are even", holds(1)).await;
    }
    wait_for_lines(&places, "alerts.jsonl", 4).await;
    for (place, replica) in places.iter_mut().zip(&replicas) {
        place.config["searches"].as_array_mut().unwrap().pop();
        replica.reload(place).await;
    }
    let backlog = async || {
        let mut backlog = 0.0;
        for replica in &replicas {
            let metrics = replica.metrics().await;
            assert_eq!(metrics.with("opsramp_lease_held{").count(), 1);
            backlog += metrics.sum("opsramp_sink_backlog_events{sink=\"late\"");
        }
        backlog
    };
    eventually("it is part of the backlog again", async || {
        backlog().await == 4.0
    })
    .await;
    for place in &places {
        std::fs::create_dir(place.path("late")).unwrap();
    }
    wait_for_lines(&places, "late/late.jsonl", 4).await;
    let left = format!("SELECT count(*) FROM {}.journal", schema_of(&database));
    eventually("nothing is left of it", async || {
        postgres::shared().sql(&left) == "0"
    })
    .await;
    for replica in replicas {
        replica.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_does_not_wait_for_searches_that_the_database_keeps_from_being_taken_up() {
    const SEARCHES: usize = 6;
    let url = postgres::shared().fresh();
    let opsramp = opsramp(1).await;
    let mut place = replica(&opsramp, 1, SEARCHES, &url);
    place.config["web"]["enable_lifecycle"] = json!(true);
    let exporter = place.start().await;
    exporter.wait_for("all are held", holds(SEARCHES)).await;
    exporter.stop().await;

    let lock = Lock::take(&url, "LOCK TABLE departed").await;
    let exporter = place.start().await;
    lock.wait_until_somebody_waits().await;
    for search in place.config["searches"].as_array_mut().unwrap() {
        search["interval"] = json!("600ms");
    }
    place.write();
    let asked = Instant::now();
    let (status, text) = exporter.post("/-/reload").await;
    let took = asked.elapsed();
    assert_eq!(status, 200, "{text}");
    assert!(took < Duration::from_secs(5), "{took:?}");

    lock.let_go().await;
    exporter.wait_for("all are held", holds(SEARCHES)).await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_whose_row_is_locked_holds_up_neither_the_others_nor_a_stop() {
    let url = postgres::shared().fresh();
    let opsramp = opsramp(1).await;
    let mut place = replica(&opsramp, 1, 3, &url);
    place.config["state"]["postgres"]["lease"] = json!("40s");
    let exporter = place.start().await;
    exporter.wait_for("all are held", holds(3)).await;
    wait_for_lines(std::slice::from_ref(&place), "alerts.jsonl", 6).await;
    let lock = Lock::take(&url, "SELECT FROM search WHERE name = '1' FOR UPDATE").await;
    opsramp.open_many(&tenant(0), 2).unwrap();
    lock.wait_until_somebody_waits().await;
    let asked = Instant::now();
    for search in place.config["searches"].as_array_mut().unwrap() {
        search["interval"] = json!("600ms");
    }
    exporter.reload(&place).await;
    wait_for_lines(std::slice::from_ref(&place), "alerts.jsonl", 10).await;
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(7), "{took:?}");
    let failed = "opsramp_poll_failures_total{";
    let metrics = exporter.wait_for("it is told", |it| it.sum(failed) > 0.0);
    let metrics = metrics.await;
    assert!(metrics.with(failed).all(|(series, value)| {
        value == 0.0 || (series.contains("search=\"1\"") && series.contains("\"store\""))
    }));
    lock.let_go().await;
    wait_for_lines(std::slice::from_ref(&place), "alerts.jsonl", 12).await;

    let lock = Lock::take(&url, "SELECT FROM search WHERE name = '1' FOR UPDATE").await;
    opsramp.open_many(&tenant(0), 1).unwrap();
    lock.wait_until_somebody_waits().await;
    let asked = Instant::now();
    exporter.stop().await;
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    lock.let_go().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_and_locked_is_taken_up_anew_after_a_pause() {
    let url = postgres::shared().fresh();
    let opsramp = opsramp(1).await;
    let mut place = replica(&opsramp, 1, 1, &url);
    place.config["state"]["postgres"]["lease"] = json!("40s");
    let exporter = place.start().await;
    exporter.wait_for("it is held", holds(1)).await;
    exporter.wait_for_poll().await;
    let lock = Lock::take(&url, "SELECT FROM search FOR UPDATE").await;
    place.config["searches"][0]["interval"] = json!("10s");
    exporter.reload(&place).await;
    let failures = |metrics: &Metrics| metrics.sum("opsramp_poll_failures_total{");
    let locked = exporter
        .wait_for("it is locked", |metrics| failures(metrics) > 0.0)
        .await;
    assert_eq!(locked.one("opsramp_lease_held{"), Some(1.0));
    assert!(
        locked.one("opsramp_search_total_results{").is_some(),
        "what was known still is"
    );
    tokio::time::sleep(Duration::from_secs(5)).await;
    let failures = failures(&exporter.metrics().await);
    assert!(failures <= 2.0, "{failures}");
    lock.let_go().await;
    exporter.wait_for_poll().await;
    exporter.stop().await;
}
