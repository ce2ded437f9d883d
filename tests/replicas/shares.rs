//! How many searches each replica polls, and how soon another one takes them over.
//!
//! `OPSRAMP_TEST_TAKE_OVERS` says how often a replica is killed (the acceptance run: 20). Only if
//! it is set is the measured time checked strictly, because the time depends on how busy the
//! machine is.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    LEASE,
    exporter::{Exporter, Metrics, PATIENCE, Place, eventually, number},
    holds, opsramp, postgres, replica, schema_of, wait_until_ready,
};

const TENANTS: usize = 20;
const SEARCHES: usize = 5;

/// Returns how many searches each replica says that it holds.
async fn held(replicas: &[Exporter]) -> Vec<usize> {
    let counts = replicas.iter().map(async |replica| {
        let metrics = replica.metrics().await;
        metrics
            .with("opsramp_lease_held{")
            .filter(|(_, held)| *held == 1.0)
            .count()
    });
    join_all(counts).await
}

/// Waits until every search is held once and the shares are within one of even.
async fn wait_until_even(replicas: &[Exporter]) {
    let began = Instant::now();
    let all = TENANTS * SEARCHES;
    let floor = all / replicas.len();
    loop {
        let held = held(replicas).await;
        let even = held.iter().all(|held| (floor..=floor + 1).contains(held));
        if even && held.iter().sum::<usize>() == all {
            eprintln!("{held:?} after {:?}", began.elapsed());
            return;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "still not even: {held:?}; the first said {:#?}",
            replicas[0].stderr.lines()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_are_even_whoever_comes_and_goes() {
    let opsramp = opsramp(TENANTS).await;
    let cluster = postgres::shared();
    let database = cluster.fresh();
    let places: Vec<Place> = (0..5)
        .map(|_| replica(&opsramp, TENANTS, SEARCHES, &database))
        .collect();
    let mut replicas = join_all(places[..2].iter().map(Place::start)).await;
    wait_until_even(&replicas).await;
    replicas.extend(join_all(places[2..].iter().map(Place::start)).await);
    wait_until_even(&replicas).await;

    // One replica stops in good order, and one dies.
    replicas.pop().unwrap().stop().await;
    wait_until_even(&replicas).await;
    replicas.pop().unwrap().kill().await;
    wait_until_even(&replicas).await;
    let hand_overs = || {
        let schema = schema_of(&database);
        cluster.sql(&format!("SELECT sum(epoch) FROM {schema}.search"))
    };

    // Only the holder shows the gauges of a search, so sums over all replicas are right, unless a
    // search moves while one replica is asked after the other.
    eventually("every search is polled by its holder alone", async || {
        let mut polled = 0.0;
        for replica in &replicas {
            let metrics = replica.metrics().await;
            let held = metrics.sum("opsramp_lease_held{");
            if held == 0.0 || metrics.sum("opsramp_up{") != held {
                return false;
            }
            polled += metrics.sum("opsramp_search_total_results{");
        }
        polled == (TENANTS * SEARCHES * 2) as f64
    })
    .await;
    for replica in &replicas {
        wait_until_ready(replica).await;
    }
    eventually("nothing moves any more", async || {
        let before = hand_overs();
        tokio::time::sleep(LEASE).await;
        hand_overs() == before
    })
    .await;
    for replica in replicas {
        replica.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_with_nothing_left_to_hold_is_ready_and_takes_over() {
    let opsramp = opsramp(1).await;
    let database = postgres::shared().fresh();
    let places = [(); 2].map(|()| {
        let mut place = replica(&opsramp, 1, 1, &database);
        // A busy machine must not cost the first one its lease while it lives.
        place.config["state"]["postgres"]["lease"] = json!("10s");
        place
    });
    let first = places[0].start().await;
    first.wait_for("the first holds it", holds(1)).await;
    let second = places[1].start().await;
    wait_until_ready(&second).await;
    let metrics = second.metrics().await;
    assert_eq!(metrics.with("opsramp_lease_held{").count(), 1);
    assert_eq!(metrics.sum("opsramp_lease_held{"), 0.0);
    assert_eq!(metrics.with("opsramp_up{").count(), 0);
    first.kill().await;
    second.wait_for("the second holds it", holds(1)).await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_searches_of_a_dead_replica_are_polled_within_a_lease_and_an_interval() {
    const INTERVAL: Duration = Duration::from_secs(2);
    const TIMES: &str = "OPSRAMP_TEST_TAKE_OVERS";
    const ALL: f64 = (TENANTS * SEARCHES) as f64;
    let times = number(TIMES);
    let late = Duration::from_secs(if times.is_some() { 0 } else { 10 });
    let opsramp = opsramp(TENANTS).await;
    let database = postgres::shared().fresh();
    let places = [(); 2].map(|()| {
        let mut place = replica(&opsramp, TENANTS, SEARCHES, &database);
        for search in place.config["searches"].as_array_mut().unwrap() {
            search["interval"] = json!(format!("{}s", INTERVAL.as_secs()));
        }
        place
    });
    let mut replicas = vec![places[0].start().await, places[1].start().await];
    let mut longest = Duration::ZERO;
    for round in 0..times.unwrap_or(1) {
        wait_until_even(&replicas).await;
        let victim = usize::from(round % 2 == 1);
        let began = Instant::now();
        replicas.remove(victim).kill().await;
        let polls_all = |metrics: &Metrics| metrics.sum("opsramp_up{") == ALL;
        replicas[0].wait_for("it polls all", polls_all).await;
        longest = longest.max(began.elapsed());
        eprintln!("taken over after {:?}", began.elapsed());
        replicas.insert(victim, places[victim].start().await);
    }
    assert!(longest <= LEASE + INTERVAL + late, "{longest:?}");
    for replica in replicas {
        replica.stop().await;
    }
}
