//! The wall clock jumps, as when a machine wakes up or finds its time server.

use std::{path::PathBuf, time::Duration};

use opsramp_exporter::simulator::Simulator;
use tokio::{process::Command, time::Instant};

use crate::{
    ALERTS, check_recovery,
    exporter::{Exporter, Metrics, Place, opsramp},
    lines::{FILE, Story, files},
    proxy::{Proxy, Weather},
    shows_results, wait_until_it_fails,
};

const DAY: f64 = 86_400.0;

/// How long polls are counted.
const COUNTED: Duration = Duration::from_secs(2);

/// Finds Debian's faketime. Only its library is used, so that the process is the one that the test
/// started.
fn library() -> PathBuf {
    let found = std::fs::read_dir("/usr/lib").unwrap().find_map(|folder| {
        let path = folder.unwrap().path().join("faketime/libfaketimeMT.so.1");
        path.is_file().then_some(path)
    });
    found.expect("this test needs libfaketime; install the package faketime")
}

/// Returns the command for the daemon with a wall clock that is ahead by what the file says; other
/// clocks are unchanged.
fn daemon(place: &Place) -> Command {
    let mut command = place.command();
    command
        .env("LD_PRELOAD", library())
        .env("FAKETIME_TIMESTAMP_FILE", place.path("clock"))
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("FAKETIME_DISABLE_SHM", "1")
        .env("NO_FAKE_STAT", "1");
    command
}

/// Sets the clock so many days ahead of the true time. The file is replaced atomically.
fn set(place: &Place, days: f64) {
    let new = place.path("clock.new");
    std::fs::write(&new, format!("{:+.0}\n", days * DAY)).unwrap();
    std::fs::rename(new, place.path("clock")).unwrap();
}

fn polls(metrics: &Metrics) -> f64 {
    metrics.sum("opsramp_polls_total{")
}

/// Returns by how many days the exporter's clock is ahead of the test's.
fn ahead(metrics: &Metrics) -> f64 {
    let told = metrics
        .one("opsramp_poll_last_success_timestamp_seconds{")
        .unwrap();
    let now = opsramp_exporter::clock::now().as_second() as f64;
    (told - now) / DAY
}

/// Checks that polls go on as before, about ten a second, and that missed polls are not made up
/// for.
async fn check_pace(exporter: &Exporter) {
    let began = Instant::now();
    let before = polls(&exporter.metrics().await);
    tokio::time::sleep(COUNTED).await;
    let after = exporter
        .wait_for("polls go on", |metrics| polls(metrics) > before)
        .await;
    let (made, took) = (polls(&after) - before, began.elapsed());
    let most = 10.0 * took.as_secs_f64() + 20.0;
    assert!(made <= most, "{made} polls in {took:?}");
}

/// Lets the clock jump to so many days ahead, and checks that the exporter works on.
async fn check_jump(exporter: &Exporter, place: &Place, opsramp: &Simulator, days: f64) {
    set(place, days);
    exporter
        .wait_for("polls tell the new time", |metrics| {
            (ahead(metrics) - days).abs() < 0.5
        })
        .await;
    check_pace(exporter).await;
    let metrics = check_recovery(exporter, place, opsramp).await;
    assert!(shows_results(&metrics));
    assert!(metrics.sum("opsramp_alert_detection_delay_seconds_sum{") >= 0.0);
    assert_eq!(metrics.sum("opsramp_poll_failures_total{"), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_disturbs_neither_polls_nor_lines() {
    let opsramp = opsramp(ALERTS).await;
    let proxy = Proxy::start(opsramp.addr()).await;
    let mut place = Place::new(&proxy.url()).with_file_sink();
    place.config["searches"][0]["stale_after"] = "2s".into();
    place.write();
    set(&place, 0.0);
    let exporter = place.start_as(daemon(&place)).await;
    exporter.wait_until_complete().await;
    for days in [10.0, -20.0, 400.0, 0.0] {
        check_jump(&exporter, &place, &opsramp, days).await;
    }

    // No poll has failed. From now on, some shall fail soon.
    place.config["accounts"][0]["timeout"] = "1s".into();
    exporter.reload(&place).await;
    exporter.wait_for_poll().await;

    // The clock is set back in the middle of an outage: stale results do not become fresh for a
    // day.
    let before = exporter.metrics().await;
    proxy.set(Weather::Silent);
    wait_until_it_fails(&exporter, "timeout", &before).await;
    set(&place, -1.0);
    exporter
        .wait_for("stale results are withheld", |metrics| {
            !shows_results(metrics)
        })
        .await;
    proxy.set(Weather::Fair);
    check_recovery(&exporter, &place, &opsramp).await;
    exporter.stop().await;

    // The daemon is started at a time before its last end.
    set(&place, -30.0);
    let exporter = place.start_as(daemon(&place)).await;
    exporter.wait_until_complete().await;
    check_recovery(&exporter, &place, &opsramp).await;
    exporter.wait_for_poll().await;
    exporter.stop().await;
    let story = Story::judge(&place, &files(0), &opsramp).unwrap();
    assert_eq!(story.count("left"), 0);
    assert_eq!(story.count("opened"), place.lines_of(FILE).len());
}
