//! The real binary behind a network that fails in every way: connections, names, TLS, and the
//! clock. After each failure it goes on by itself and logs every line once. It shows nothing that
//! it could not know.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on stops"
)]

mod clock;
mod connections;
#[path = "../support/exporter.rs"]
mod exporter;
#[path = "../support/life.rs"]
mod life;
#[path = "../support/lines.rs"]
mod lines;
mod names;
#[path = "../support/proxy.rs"]
mod proxy;
mod tls;

use opsramp_exporter::simulator::{DEMO_TENANT, Simulator};

use crate::{
    exporter::{Exporter, Metrics, Place},
    lines::{FILE, files, wait_for_story},
};

/// More than a page.
const ALERTS: usize = 150;

/// Metrics that are withheld when they may no longer be true.
const OF_RESULTS: [&str; 3] = [
    "opsramp_search_total_results{",
    "opsramp_open_alerts{",
    "opsramp_search_complete{",
];

fn failures(metrics: &Metrics, reason: &str) -> f64 {
    let of_reason = format!(
        "opsramp_poll_failures_total{{account=\"default\",tenant=\"{DEMO_TENANT}\",\
         search=\"open\",reason=\"{reason}\"}}"
    );
    metrics.one(&of_reason).unwrap()
}

fn shows_results(metrics: &Metrics) -> bool {
    OF_RESULTS.iter().any(|series| metrics.mentions(series) > 0)
}

/// Waits until polls have failed for this reason, and checks that since `before` they failed for
/// no other one.
async fn wait_until_it_fails(exporter: &Exporter, reason: &str, before: &Metrics) -> Metrics {
    let all = "opsramp_poll_failures_total{";
    let metrics = exporter
        .wait_for(&format!("polls fail: {reason}"), |metrics| {
            failures(metrics, reason) >= failures(before, reason) + 2.0
        })
        .await;
    let others = |metrics: &Metrics| metrics.sum(all) - failures(metrics, reason);
    assert_eq!(others(&metrics), others(before), "nothing but {reason}");
    assert_eq!(metrics.one("opsramp_up{"), Some(0.0));
    metrics
}

/// Waits until polls work by themselves, and checks that the file has every line once, including
/// the line of an alert that opens now.
async fn check_recovery(exporter: &Exporter, place: &Place, opsramp: &Simulator) -> Metrics {
    opsramp.open_many(DEMO_TENANT, 1).unwrap();
    let metrics = exporter
        .wait_for("it works again", |metrics| {
            metrics.one("opsramp_up{") == Some(1.0)
                && metrics.one("opsramp_search_complete{") == Some(1.0)
        })
        .await;
    wait_for_story(place, &files(0), opsramp).await;
    assert!(!place.text_of(FILE).is_empty());
    metrics
}
