//! From an alert on the server to a line and a gauge.

use opsramp_exporter::simulator::{Action, DEMO_TENANT, State};

use crate::exporter::{Members, Place, opsramp};

/// The keys of a record in their order.
pub(crate) const KEYS: [&str; 35] = [
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
];

/// Keys up to and including this one are never left out.
const LAST_OF_ALL: &str = "message";

/// Fails unless a line is a record as documented.
pub(crate) fn check_record(line: &str) -> Members {
    let record = Members::parse(line);
    let position = |key: &str| {
        KEYS.iter()
            .position(|known| *known == key)
            .unwrap_or_else(|| panic!("{key} is not documented: {line}"))
    };
    let positions: Vec<usize> = record.keys().into_iter().map(position).collect();
    assert!(positions.is_sorted_by(|one, next| one < next), "{line}");
    let always = position(LAST_OF_ALL);
    assert!(positions.starts_with(&(0..=always).collect::<Vec<_>>()));
    for key in ["timestamp", "created_at", "updated_at"] {
        let Some(time) = record.get(key) else {
            continue;
        };
        let time = time.as_str().unwrap();
        time.parse::<jiff::Timestamp>().unwrap();
        // RFC 3339 in UTC; with milliseconds if the time comes from the exporter's own clock.
        let length = if key == "timestamp" { 24 } else { 20 };
        assert!(
            time.len() == length && time.ends_with('Z') && time.as_bytes()[10] == b'T',
            "{key}: {time}"
        );
    }
    let level = match record.text("state") {
        "Critical" => "critical",
        "Warning" => "warning",
        "Info" | "Ok" => "info",
        _ => "unknown",
    };
    assert_eq!(
        (record.text("level"), record.text("severity")),
        (level, level)
    );
    record
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_open_change_and_leave_in_lines_and_gauges() {
    let opsramp = opsramp(0).await;
    let ids = opsramp.open_many(DEMO_TENANT, 3).unwrap();
    for id in &ids {
        opsramp.set_state(*id, State::Warning).unwrap();
    }
    let place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    exporter.logs(3, "three opened").await;
    let total = "opsramp_search_total_results{";
    exporter
        .wait_for("a total of 3", |metrics| metrics.one(total) == Some(3.0))
        .await;

    opsramp.act(ids[1], Action::Acknowledge).unwrap();
    exporter
        .wait_for("a total of 2", |metrics| metrics.one(total) == Some(2.0))
        .await;
    let lines = exporter.logs(4, "one left").await;
    let left = check_record(&lines[3]);
    assert_eq!(left.text("event"), "left");
    assert_eq!(left.text("alert_id"), ids[1].number().to_string());
    assert_eq!(left.text("reason"), "acknowledged");
    assert_eq!(left.text("status"), "Acknowledged");
    assert_eq!(left.text("previous_status"), "New");

    opsramp.set_state(ids[2], State::Critical).unwrap();
    let lines = exporter.logs(5, "one changed").await;
    let changed = check_record(&lines[4]);
    assert_eq!(changed.text("event"), "changed");
    assert_eq!(changed.text("alert_id"), ids[2].number().to_string());
    assert_eq!(changed.text("level"), "critical");
    assert_eq!(
        (changed.text("previous_state"), changed.text("state")),
        ("Warning", "Critical")
    );

    let labels = format!(r#"account="default",tenant="{DEMO_TENANT}",search="open""#);
    let critical = format!(r#"opsramp_open_alerts{{{labels},state="Critical"}}"#);
    // An event is counted a moment before its poll ends.
    let metrics = exporter
        .wait_for("all is counted", |metrics| {
            metrics.sum("opsramp_alert_events_total{") == 5.0 && metrics.one(&critical) == Some(1.0)
        })
        .await;
    for (sample, value) in [
        ("opsramp_up{LABELS}", 1.0),
        ("opsramp_search_complete{LABELS}", 1.0),
        (r#"opsramp_open_alerts{LABELS,state="Critical"}"#, 1.0),
        (r#"opsramp_open_alerts{LABELS,state="Warning"}"#, 1.0),
        (r#"opsramp_alert_events_total{LABELS,event="opened"}"#, 3.0),
        (r#"opsramp_alert_events_total{LABELS,event="changed"}"#, 1.0),
        (r#"opsramp_alert_events_total{LABELS,event="left"}"#, 1.0),
        ("opsramp_poll_requests{LABELS}", 1.0),
    ] {
        let sample = sample.replace("LABELS", &labels);
        assert_eq!(metrics.one(&sample), Some(value), "{sample}");
    }
    let auth = r#"opsramp_auth_latency_seconds{account="default"}"#;
    assert!(metrics.one(auth).is_some_and(|seconds| seconds > 0.0));
    exporter
        .wait_for("all is delivered", |metrics| {
            metrics.one(r#"opsramp_sink_events_total{sink="stdout"}"#) == Some(5.0)
                && metrics.one(r#"opsramp_sink_backlog_events{sink="stdout"}"#) == Some(0.0)
        })
        .await;

    let ended = exporter.stop().await;
    let ids: std::collections::BTreeSet<String> = ended
        .stdout
        .iter()
        .map(|line| check_record(line).text("event_id").to_owned())
        .collect();
    assert_eq!(ids.len(), 5, "every event has an id of its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_repeats_nothing_and_finds_what_happened_meanwhile() {
    let opsramp = opsramp(150).await;
    let place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    exporter.logs(150, "150 lines").await;
    exporter.stop().await;
    let ids = opsramp.open_many(DEMO_TENANT, 2).unwrap();
    let oldest = opsramp.world(|world, _| world.open_alerts(DEMO_TENANT).unwrap()[0]);
    opsramp.act(oldest, Action::Close).unwrap();
    let exporter = place.start().await;
    exporter.wait_until_complete().await;
    exporter.logs(3, "three lines").await;
    exporter.wait_for_poll().await;
    let ended = exporter.stop().await;
    let mut told: Vec<(String, String)> = ended
        .stdout
        .iter()
        .map(|line| {
            let record = check_record(line);
            let text = |key| record.text(key).to_owned();
            (text("event"), text("alert_id"))
        })
        .collect();
    told.sort();
    let event = |kind: &str, id: opsramp_exporter::simulator::AlertId| {
        (kind.to_owned(), id.number().to_string())
    };
    assert_eq!(
        told,
        [
            event("left", oldest),
            event("opened", ids[0]),
            event("opened", ids[1])
        ]
    );
}
