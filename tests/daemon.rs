//! The real binary, from its flags to its exit status, against a simulated OpsRamp.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use opsramp_exporter::simulator::{Action, DEMO_KEY, DEMO_TENANT, Simulator, State};
use serde_json::json;

use exporter::{Ended, Exporter, Members, Place, SECRET, Signal, opsramp};

#[path = "support/exporter.rs"]
mod exporter;

/// What every record has, in this order.
const KEYS: [&str; 39] = [
    "timestamp",
    "level",
    "severity",
    "event",
    "event_id",
    "account",
    "tenant",
    "search",
    "alert_id",
    "state",
    "status",
    "message",
    "previous_state",
    "previous_status",
    "reason",
    "description",
    "metric",
    "component",
    "problem_area",
    "alert_type",
    "event_type",
    "source",
    "priority",
    "resource_id",
    "resource_name",
    "resource_type",
    "resource_ip",
    "client_id",
    "client_name",
    "incident_id",
    "inference_id",
    "repeat_count",
    "created_at",
    "updated_at",
    "alert",
    "",
    "",
    "",
    "",
];

#[tokio::test(flavor = "multi_thread")]
async fn it_starts_and_stops() {
    let opsramp = opsramp(3).await;
    let place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    exporter
        .stdout
        .wait_for("three lines", |lines| lines.len() == 3)
        .await;
    let ended = exporter.stop().await;
    eprintln!("{ended:#?}");
}
