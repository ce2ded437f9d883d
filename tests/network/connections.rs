//! Connections that are cut, reset, slow, or dead without a word.

use std::time::Duration;

use fastrand::Rng;
use opsramp_exporter::simulator::Simulator;
use tokio::time::Instant;

use crate::{
    ALERTS, check_recovery,
    exporter::{Exporter, Place, opsramp, seed},
    failures,
    life::live,
    lines::{Reader, Story, files, wait_for_story},
    proxy::{End, Proxy, Weather},
    shows_results, wait_until_it_fails,
};

/// How long connections are cut, again and again.
const CUTTING: Duration = Duration::from_secs(4);

/// Size of a few answers, in bytes: so a connection ends in the answer with the token, in the
/// middle of a page, or between two answers.
const WITHIN: usize = 20_000;

/// Starts an exporter behind a proxy, and waits until it knows its whole result.
async fn start(change: impl FnOnce(&mut Place)) -> (Simulator, Proxy, Place, Exporter) {
    let opsramp = opsramp(ALERTS).await;
    let proxy = Proxy::start(opsramp.addr()).await;
    let mut place = Place::new(&proxy.url()).with_file_sink();
    change(&mut place);
    let exporter = place.start().await;
    exporter.wait_until_complete().await;
    (opsramp, proxy, place, exporter)
}

/// Sets short timeouts, so that a request without an answer is over soon.
fn timeouts(place: &mut Place) {
    place.config["accounts"][0]["timeout"] = "1s".into();
    place.config["searches"][0]["stale_after"] = "3s".into();
}

#[tokio::test(flavor = "multi_thread")]
async fn wherever_a_connection_ends_no_line_is_lost_or_doubled() {
    for end in [End::Closed, End::Reset] {
        let seed = seed();
        let mut rng = Rng::with_seed(seed);
        let (opsramp, proxy, place, exporter) = start(|place| {
            place.config["searches"][0]["full_read_interval"] = "500ms".into();
        })
        .await;
        let mut reader = Reader::default();
        proxy.set(Weather::Cut {
            within: WITHIN,
            end,
        });
        let began = Instant::now();
        while began.elapsed() < CUTTING {
            reader.read(&place);
            live(&opsramp, &mut reader.told, &mut rng);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let metrics = exporter.metrics().await;
        assert!(
            metrics.sum("opsramp_poll_failures_total{") >= 1.0,
            "{end:?}, seed {seed}: no poll was hit"
        );
        proxy.set(Weather::Fair);
        check_recovery(&exporter, &place, &opsramp).await;
        exporter.wait_for_poll().await;
        exporter.stop().await;
        Story::judge(&place, &files(0), &opsramp).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_swallows_everything_costs_a_timeout_a_poll_and_no_scrape() {
    let (opsramp, proxy, place, exporter) = start(timeouts).await;
    let before = exporter.metrics().await;
    proxy.set(Weather::Silent);
    // The known results are shown unchanged until they are stale, and then not at all.
    let metrics = exporter
        .wait_for("a poll fails", |metrics| {
            failures(metrics, "timeout") > failures(&before, "timeout")
        })
        .await;
    if shows_results(&metrics) {
        let total = metrics.one("opsramp_search_total_results{");
        assert_eq!(total, Some(ALERTS as f64));
    }
    wait_until_it_fails(&exporter, "timeout", &before).await;
    let stale = exporter
        .wait_for("stale results are withheld", |metrics| {
            !shows_results(metrics)
        })
        .await;
    assert_eq!(stale.one("opsramp_up{"), Some(0.0));
    for path in ["/", "/-/ready", "/-/healthy"] {
        assert_eq!(exporter.get(path).await.0, 200, "{path}");
    }
    proxy.set(Weather::Fair);
    check_recovery(&exporter, &place, &opsramp).await;
    // A poll between the end of the silence and the new alert has recovered without it.
    exporter
        .wait_for("the new alert is counted", |metrics| {
            metrics.one("opsramp_search_total_results{") == Some(ALERTS as f64 + 1.0)
        })
        .await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_reset_all_together_are_made_anew() {
    let (opsramp, proxy, place, exporter) = start(|_| {}).await;
    let before = exporter.metrics().await;
    proxy.set(Weather::Reset);
    wait_until_it_fails(&exporter, "connect", &before).await;
    proxy.set(Weather::Fair);
    check_recovery(&exporter, &place, &opsramp).await;
    exporter.stop().await;
}

/// Servers and load balancers close connections so after some time of idleness.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_closed_just_as_it_is_used_again_costs_no_poll() {
    for end in [End::Closed, End::Reset] {
        let (opsramp, proxy, place, exporter) = start(|_| {}).await;
        proxy.set(Weather::UsedOnce { end });
        for _ in 0..5 {
            exporter.wait_for_poll().await;
        }
        let metrics = check_recovery(&exporter, &place, &opsramp).await;
        assert_eq!(metrics.sum("opsramp_poll_failures_total{"), 0.0, "{end:?}");
        exporter.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_line_is_no_failure_and_one_that_is_too_slow_is_a_timeout() {
    let (opsramp, proxy, place, exporter) = start(|place| {
        place.config["accounts"][0]["timeout"] = "15s".into();
    })
    .await;
    proxy.set(Weather::Slow {
        delay: Duration::from_millis(50),
        bytes_per_second: 40_000.0,
    });
    let metrics = check_recovery(&exporter, &place, &opsramp).await;
    assert_eq!(metrics.sum("opsramp_poll_failures_total{"), 0.0);
    exporter.stop().await;

    let mut place = place;
    timeouts(&mut place);
    proxy.set(Weather::Fair);
    let exporter = place.start().await;
    exporter.wait_until_complete().await;
    let before = exporter.metrics().await;
    proxy.set(Weather::Slow {
        delay: Duration::from_millis(300),
        bytes_per_second: 1000.0,
    });
    wait_until_it_fails(&exporter, "timeout", &before).await;
    proxy.set(Weather::Fair);
    check_recovery(&exporter, &place, &opsramp).await;
    exporter.stop().await;
    wait_for_story(&place, &files(0), &opsramp).await;
}
