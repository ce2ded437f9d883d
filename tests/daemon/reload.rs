//! SIGHUP and `POST /-/reload`: everything changes, nothing is lost, no line is repeated.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use opsramp_exporter::simulator::{
    Action, DEMO_TENANT, Endpoint, Fault, FaultRule, Simulator, TenantOptions,
};
use serde_json::json;

use crate::{
    events::check_record,
    exporter::{Exporter, Members, Place, Signal, opsramp, opsramp_with},
};

const SUCCESSFUL: &str = "opsramp_exporter_config_last_reload_successful";

async fn wait_for_lines(exporter: &Exporter, what: &str, count: usize) -> Vec<Members> {
    let lines = exporter
        .stdout
        .wait_for(what, |lines| lines.len() >= count)
        .await;
    // A superfluous line would come with the next poll.
    exporter.wait_for_poll().await;
    assert_eq!(exporter.stdout.lines().len(), count, "{what}");
    lines.iter().map(|line| check_record(line)).collect()
}

async fn two_tenants() -> Simulator {
    opsramp_with(3, |options| {
        options.tenants.push(TenantOptions {
            id: "client_2".to_owned(),
            alerts: 2,
            ..TenantOptions::default()
        });
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_and_searches_come_and_go_without_a_line_lost_or_repeated() {
    let opsramp = two_tenants().await;
    let mut place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    wait_for_lines(&exporter, "three of client_1", 3).await;

    place.config["accounts"][0]["tenants"] =
        json!([DEMO_TENANT, {"id": "client_2", "name": "other tenant"}]);
    exporter.reload(&place).await;
    let records = wait_for_lines(&exporter, "two of client_2", 5).await;
    assert!(
        records[3..]
            .iter()
            .all(|it| it.text("tenant") == "other tenant")
    );

    place.config["searches"] = json!([
        {"name": "open", "interval": "150ms", "group_by": ["priority"]},
        {"name": "first", "interval": "100ms", "tenants": [DEMO_TENANT]},
    ]);
    exporter.reload(&place).await;
    let records = wait_for_lines(&exporter, "three of the other search", 8).await;
    assert!(records[5..].iter().all(|it| it.text("search") == "first"));
    exporter
        .wait_for("grouped by priority", |metrics| {
            let of = |label| metrics.mentions(&format!("search=\"open\",{label}=\""));
            of("priority") > 0 && of("state") == 0
        })
        .await;

    // A tenant is removed: its series go with it, its state does not.
    place.config["accounts"][0]["tenants"] = json!([DEMO_TENANT]);
    exporter.reload(&place).await;
    exporter
        .wait_for("its series are gone", |metrics| {
            metrics.mentions("\"other") == 0
        })
        .await;
    let (_, status) = exporter.get("/api/v1/status").await;
    assert!(!status.contains("client_2"), "{status}");
    let (_, alerts) = exporter.get("/api/v1/alerts").await;
    assert!(!alerts.contains("client_2"), "{alerts}");
    opsramp.open_many("client_2", 1).unwrap();
    let gone = opsramp.world(|world, _| world.open_alerts("client_2").unwrap()[0]);
    opsramp.act(gone, Action::Close).unwrap();
    opsramp.reset_requests();
    wait_for_lines(&exporter, "nothing of client_2", 8).await;
    assert_eq!(opsramp.requests().searches("client_2"), 0);

    place.config["accounts"][0]["tenants"] = json!([DEMO_TENANT, "client_2"]);
    place.config["searches"] = json!([{"name": "open", "interval": "100ms"}]);
    exporter.reload(&place).await;
    let records = wait_for_lines(&exporter, "what happened meanwhile", 10).await;
    let mut told: Vec<&str> = records[8..].iter().map(|it| it.text("event")).collect();
    told.sort_unstable();
    assert_eq!(told, ["left", "opened"]);
    exporter
        .wait_for("its series are gone", |metrics| {
            metrics.mentions("\"first\"") == 0
        })
        .await;

    let ended = exporter.stop().await;
    let ids: BTreeSet<String> = ended
        .stdout
        .iter()
        .map(|line| check_record(line).text("event_id").to_owned())
        .collect();
    assert_eq!(ids.len(), 10);
}

/// Gauges alone: what opens meanwhile is known, and is not logged when events are named later.
#[tokio::test(flavor = "multi_thread")]
async fn where_no_event_is_logged_alerts_are_known_all_the_same() {
    let opsramp = opsramp(3).await;
    let mut place = Place::new(&opsramp.url());
    place.config["log"]["events"] = json!([]);
    place.config["log"]["fetch_details"] = json!(true);
    let exporter = place.start().await;
    exporter.wait_until_complete().await;
    let old = opsramp.open_many(DEMO_TENANT, 1).unwrap()[0];
    exporter
        .wait_for("four have opened", |metrics| {
            metrics.sum("opsramp_alert_events_total{") == 4.0
        })
        .await;
    opsramp.act(old, Action::Close).unwrap();
    exporter
        .wait_for("one has left", |metrics| {
            metrics.sum("opsramp_alert_events_total{") == 5.0
                && metrics.sum("opsramp_open_alerts{") == 3.0
        })
        .await;
    let asked = opsramp.requests().count(Endpoint::Alert);
    assert_eq!(asked, 0, "nobody reads details and reasons");

    place.config["log"]["events"] = json!(["opened"]);
    exporter.reload(&place).await;
    let new = opsramp.open_many(DEMO_TENANT, 1).unwrap()[0];
    wait_for_lines(&exporter, "one has opened", 1).await;
    let ended = exporter.stop().await;
    let ids = ended.stdout.iter().map(|line| {
        let record = check_record(line);
        record.text("alert_id").to_owned()
    });
    assert_eq!(ids.collect::<Vec<_>>(), [new.number().to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interval_that_changes_is_kept_from_then_on() {
    let opsramp = opsramp(1).await;
    let mut place = Place::new(&opsramp.url());
    place.config["searches"][0]["interval"] = json!("1h");
    let exporter = place.start().await;
    exporter.wait_until_complete().await;
    place.config["searches"][0]["interval"] = json!("100ms");
    exporter.reload(&place).await;
    exporter.wait_for_poll().await;
    exporter.wait_for_poll().await;
    wait_for_lines(&exporter, "one, once", 1).await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_of_a_search_outlives_a_reload_that_asks_the_same() {
    const TOTAL: &str = "opsramp_search_total_results{";
    const COMPLETE: &str = "opsramp_search_complete{";
    const POLLED: &str = "opsramp_poll_last_success_timestamp_seconds{";
    const READ: &str = "opsramp_full_read_last_success_timestamp_seconds{";
    let opsramp = opsramp(1_000).await;
    let mut place = Place::new(&opsramp.url());
    // With this interval, the only polls are those at the start and at reloads.
    place.config["searches"][0]["interval"] = json!("1h");
    let exporter = place.start().await;
    exporter.wait_until_complete().await;
    let started = exporter.metrics().await.one(POLLED);

    place.config["log"]["events"] = json!(["opened"]);
    opsramp.reset_requests();
    exporter.reload(&place).await;
    let known = exporter
        .wait_for("it is polled again", |metrics| {
            metrics.one(POLLED) > started
        })
        .await;
    assert_eq!(known.one(COMPLETE), Some(1.0));
    assert_eq!(opsramp.requests().searches(DEMO_TENANT), 1, "no full read");

    let refused = Fault::status(503);
    opsramp.inject(FaultRule::always(refused).at(Endpoint::Search));
    place.config["searches"][0]["group_by"] = json!(["priority"]);
    exporter.reload(&place).await;
    assert_eq!(exporter.get("/-/ready").await.0, 200);
    let down = exporter
        .wait_for("a poll fails", |metrics| {
            metrics.one("opsramp_up{") == Some(0.0)
        })
        .await;
    for name in [TOTAL, COMPLETE, POLLED, READ] {
        assert!(known.one(name).is_some(), "{name}");
        assert_eq!(down.one(name), known.one(name), "{name}");
    }
    let open = |label: &str| {
        let series = format!(
            r#"opsramp_open_alerts{{account="default",tenant="client_1",search="open",{label}="#
        );
        down.sum(&series)
    };
    assert_eq!((open("priority"), open("state")), (1_000.0, 0.0));

    // A tenant with a new name is still the same tenant.
    place.config["accounts"][0]["tenants"] = json!([{"id": DEMO_TENANT, "name": "renamed"}]);
    exporter.reload(&place).await;
    let renamed = exporter.metrics().await;
    for name in [TOTAL, COMPLETE, POLLED, READ] {
        let named = format!(r#"{name}account="default",tenant="renamed""#);
        assert_eq!(renamed.one(&named), known.one(name), "{name}");
    }
    assert_eq!(renamed.mentions(r#"tenant="client_1""#), 0);

    // A changed query has another result.
    place.config["searches"][0]["query"] = json!("actions:OPEN+states:Critical");
    exporter.reload(&place).await;
    exporter
        .wait_for("nothing is known", |metrics| {
            (metrics.one(TOTAL), metrics.one(POLLED)) == (None, None)
        })
        .await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sinks_come_and_go_and_each_keeps_its_place() {
    let opsramp = opsramp(3).await;
    let mut place = Place::new(&opsramp.url());
    let stdout = json!({"name": "out", "type": "stdout"});
    let file = |name: &str| json!({"name": name, "type": "file", "path": place.path(name)});
    let (first, second) = (file("first"), file("other"));
    place.config["log"]["sinks"] = json!([stdout, first]);
    let exporter = place.start().await;
    wait_for_lines(&exporter, "three", 3).await;

    // A new sink begins with the next event.
    place.config["log"]["sinks"] = json!([stdout, first, second]);
    exporter.reload(&place).await;
    opsramp.open_many(DEMO_TENANT, 2).unwrap();
    wait_for_lines(&exporter, "two more", 5).await;
    exporter
        .wait_for("all are delivered", |metrics| {
            metrics.one(r#"opsramp_sink_events_total{sink="first"}"#) == Some(5.0)
                && metrics.one(r#"opsramp_sink_events_total{sink="other"}"#) == Some(2.0)
        })
        .await;

    // A removed sink gets no more events; a changed sink goes on where it was.
    let moved = json!({"name": "first", "type": "file", "path": place.path("third")});
    place.config["log"]["sinks"] = json!([stdout, moved]);
    exporter.reload(&place).await;
    exporter
        .wait_for("its series are gone", |metrics| {
            metrics.mentions("\"other") == 0
        })
        .await;
    opsramp.open_many(DEMO_TENANT, 1).unwrap();
    wait_for_lines(&exporter, "one more", 6).await;
    exporter
        .wait_for("it is delivered", |metrics| {
            metrics.sum("opsramp_sink_backlog_events{") == 0.0
        })
        .await;
    exporter.stop().await;
    for (name, lines) in [("first", 5), ("other", 2), ("third", 1)] {
        assert_eq!(place.lines_of(name).len(), lines, "{name}");
    }
}

/// As in the runbook, for an operator who forgets that a sink without a name is called by its
/// type.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_sink_that_was_renamed_is_delivered_once_its_name_is_back() {
    let opsramp = opsramp(3).await;
    let mut place = Place::new(&opsramp.url());
    let down = place.path("missing").join("alerts.jsonl");
    place.config["log"]["sinks"] = json!([{"type": "file", "path": down}]);
    let exporter = place.start().await;
    let waits = |metrics: &crate::exporter::Metrics| {
        metrics.one("opsramp_sink_backlog_events{") == Some(3.0)
    };
    exporter.wait_for("lines wait", waits).await;
    let is_told = |line: &str, events| {
        let fields = ["level=warn", "sink=file", events, "kept_for_seconds="];
        line.contains("has left the configuration") && fields.iter().all(|it| line.contains(it))
    };

    place.config["log"]["sinks"] = json!([{"type": "stdout"}]);
    exporter.reload(&place).await;
    exporter
        .stderr
        .line(|line| is_told(line, " events=3"))
        .await;
    exporter
        .wait_for("it has no series", |metrics| {
            metrics.one("opsramp_sink_backlog_events{") == Some(0.0)
                && metrics.mentions("sink=\"file") == 0
        })
        .await;
    exporter.stop().await;

    // After the next start the sink is still known, but not the number of its events. It delivers
    // to another target.
    let exporter = place.start().await;
    exporter
        .stderr
        .line(|line| is_told(line, " events_at_most=3"))
        .await;
    place.config["log"]["sinks"] = json!([{"name": "file", "type": "stdout"}]);
    exporter.reload(&place).await;
    let delivered = |lines: &[String]| lines.iter().filter(|line| !line.is_empty()).count();
    // A line break comes first, because the last line in the pipe may be incomplete.
    let lines = exporter
        .stdout
        .wait_for("they are delivered", |lines| delivered(lines) >= 3)
        .await;
    assert_eq!((lines.len(), delivered(&lines)), (4, 3), "{lines:?}");
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_keeps_the_old_one_says_why_and_is_got_over() {
    let opsramp = opsramp(1).await;
    let mut place = Place::new(&opsramp.url());
    place.config["web"]["enable_lifecycle"] = json!(true);
    let exporter = place.start().await;
    wait_for_lines(&exporter, "one", 1).await;
    let success = "opsramp_exporter_config_last_reload_success_timestamp_seconds";
    let started = exporter.metrics().await.one(success).unwrap();

    std::fs::write(place.path("config.yml"), "searches:\n  - nmae: x\n").unwrap();
    exporter.signal(Signal::HUP);
    let told = exporter
        .stderr
        .line(|line| line.contains("the one before stays in force"))
        .await;
    let why = r#"config.yml:2:5: searches[0].nmae: unknown key; did you mean \"name\"?"#;
    assert!(told.contains("level=error") && told.contains(why), "{told}");
    exporter
        .wait_for("the gauge", |metrics| metrics.one(SUCCESSFUL) == Some(0.0))
        .await;
    let (status, text) = exporter.post("/-/reload").await;
    assert_eq!(status, 500);
    assert!(text.contains(&why.replace('\\', "")), "{text}");
    std::fs::remove_file(place.path("config.yml")).unwrap();
    let (status, text) = exporter.post("/-/reload").await;
    assert_eq!(status, 500);
    assert!(
        text.contains("config.yml: No such file or directory"),
        "{text}"
    );
    opsramp.open_many(DEMO_TENANT, 1).unwrap();
    wait_for_lines(&exporter, "the old one works on", 2).await;
    assert_eq!(exporter.metrics().await.one(success), Some(started));

    place.write();
    let (status, text) = exporter.post("/-/reload").await;
    assert_eq!((status, text.as_str()), (200, "configuration reloaded\n"));
    exporter
        .wait_for("the gauge, and when", |metrics| {
            metrics.one(SUCCESSFUL) == Some(1.0) && metrics.one(success) > Some(started)
        })
        .await;
    wait_for_lines(&exporter, "nothing is repeated", 2).await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_holds_no_url_of_a_database_is_refused_and_one_that_is_not_there_may_come() {
    let opsramp = opsramp(1).await;
    let mut place = Place::new(&opsramp.url());
    place.config["web"]["enable_lifecycle"] = json!(true);
    let exporter = place.start().await;
    let path = place.path("url");
    place.config["state"] = json!({"postgres": {"url_file": path}});
    place.write();
    let file = path.display();
    for (text, why) in [
        (
            "rubbish",
            format!("{file}: the URL of the database cannot be read"),
        ),
        ("", format!("the secret file {file} is empty")),
    ] {
        std::fs::write(&path, text).unwrap();
        let (status, told) = exporter.post("/-/reload").await;
        assert_eq!(status, 500, "{told}");
        assert!(told.contains(&why), "{told}");
    }
    assert_eq!(exporter.metrics().await.one(SUCCESSFUL), Some(0.0));
    std::fs::remove_file(&path).unwrap();
    let (status, told) = exporter.post("/-/reload").await;
    assert_eq!(status, 200, "{told}");
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_cannot_be_carried_out_whole_changes_nothing() {
    let opsramp = opsramp(3).await;
    let mut place = Place::new(&opsramp.url());
    place.config["web"]["enable_lifecycle"] = json!(true);
    // Three events wait for a file that cannot be written yet.
    let late = place.path("folder/late");
    let sinks = json!([
        {"name": "out", "type": "stdout"},
        {"name": "late", "type": "file", "path": late},
    ]);
    place.config["log"]["sinks"] = sinks.clone();
    let exporter = place.start().await;
    let backlog = r#"opsramp_sink_backlog_events{sink="late"}"#;
    exporter
        .wait_for("three wait", |metrics| metrics.one(backlog) == Some(3.0))
        .await;

    // The new configuration lacks a sink and names a missing certificate authority.
    let good = place.config.clone();
    place.config["log"]["sinks"] = json!([{"name": "out", "type": "stdout", "format": "logfmt"}]);
    place.config["accounts"][0]["url"] = json!("https://127.0.0.1:9");
    place.config["accounts"][0]["tls"] = json!({"ca_file": place.path("missing.pem")});
    place.write();
    let (status, text) = exporter.post("/-/reload").await;
    assert_eq!(status, 500, "{text}");
    opsramp.open_many(DEMO_TENANT, 1).unwrap();
    exporter
        .wait_for("four wait", |metrics| metrics.one(backlog) == Some(4.0))
        .await;
    std::fs::create_dir(place.path("folder")).unwrap();
    exporter
        .wait_for("all are delivered", |metrics| {
            metrics.one(backlog) == Some(0.0)
        })
        .await;
    assert_eq!(place.lines_of("folder/late").len(), 4);
    wait_for_lines(&exporter, "four, in JSON", 4).await;
    place.config = good;
    place.write();
    assert_eq!(exporter.post("/-/reload").await.0, 200);
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_whose_files_do_not_answer_holds_up_nothing_and_changes_nothing() {
    let opsramp = opsramp(1).await;
    let mut place = Place::new(&opsramp.url());
    place.config["web"]["enable_lifecycle"] = json!(true);
    let exporter = place.start().await;
    exporter.wait_until_complete().await;
    let mut account = place.config["accounts"][0].clone();
    account["name"] = json!("newcomer");
    account["tls"] = json!({"ca_file": place.silent("silent.pem")});
    let accounts = place.config["accounts"].as_array_mut().unwrap();
    accounts.push(account);
    place.write();
    let reload = exporter.post("/-/reload");
    let meanwhile = async {
        opsramp.open_many(DEMO_TENANT, 1).unwrap();
        wait_for_lines(&exporter, "one more", 2).await;
        tokio::time::Instant::now()
    };
    let (answered, seen_at) = tokio::join!(
        async { (reload.await, tokio::time::Instant::now()) },
        meanwhile
    );
    let ((status, _), answered_at) = answered;
    assert_eq!(status, 500);
    assert!(seen_at < answered_at, "polling goes on meanwhile");
    let told = format!(
        "could not be read within 5 s: {}",
        place.path("silent.pem").display()
    );
    exporter.stderr.line(|line| line.contains(&told)).await;
    assert_eq!(exporter.metrics().await.mentions("newcomer"), 0);

    exporter.signal(Signal::HUP);
    let told = tokio::time::Instant::now();
    exporter.stop().await;
    let took = told.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_once_hung_is_read_by_the_next_reload() {
    let opsramp = opsramp(1).await;
    let mut place = Place::new(&opsramp.url());
    place.config["web"]["enable_lifecycle"] = json!(true);
    let exporter = place.start().await;
    exporter.wait_until_complete().await;
    std::fs::remove_file(place.path("config.yml")).unwrap();
    let pipe = place.silent("config.yml");
    let (status, text) = exporter.post("/-/reload").await;
    let told = format!("could not be read within 10 s: {}", pipe.display());
    assert!(status == 500 && text.contains(&told), "{status}: {text}");
    // Two readers of a pipe would get a part each.
    let (status, text) = exporter.post("/-/reload").await;
    let told = format!("still waits for the pipe {}", pipe.display());
    assert!(status == 500 && text.contains(&told), "{status}: {text}");
    place.write();
    assert_eq!(exporter.post("/-/reload").await.0, 200);
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_flag_nobody_reloads_or_quits_over_http() {
    let opsramp = opsramp(1).await;
    let place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    for path in ["/-/reload", "/-/quit"] {
        let (status, text) = exporter.post(path).await;
        assert_eq!(status, 403, "{path}");
        assert!(text.contains("--web.enable-lifecycle"), "{text}");
    }
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hup_reopens_a_log_file_that_was_moved_away() {
    let opsramp = opsramp(2).await;
    let place = Place::new(&opsramp.url()).with_file_sink();
    let exporter = place.start().await;
    let delivered = |count: f64| {
        move |metrics: &crate::exporter::Metrics| metrics.sum("opsramp_sink_events_total{") == count
    };
    exporter.wait_for("two lines", delivered(2.0)).await;
    std::fs::rename(place.path("alerts.jsonl"), place.path("alerts.jsonl.1")).unwrap();
    exporter.reload(&place).await;
    opsramp.open_many(DEMO_TENANT, 3).unwrap();
    exporter.wait_for("three more", delivered(5.0)).await;
    assert_eq!(place.lines_of("alerts.jsonl.1").len(), 2);
    assert_eq!(place.lines_of("alerts.jsonl").len(), 3);
    exporter.stop().await;
}

/// Reloads that each change something, while alerts open, change and leave.
#[tokio::test(flavor = "multi_thread")]
async fn many_reloads_under_load_lose_and_repeat_nothing() {
    const ROUNDS: usize = 40;
    let opsramp = two_tenants().await;
    let mut place = Place::new(&opsramp.url()).with_file_sink();
    let exporter = place.start().await;
    let mut left = BTreeSet::new();
    for round in 0..ROUNDS {
        let interval = format!("{}ms", 100 + round % 7);
        place.config["searches"] = json!([{
            "name": "open", "interval": interval, "page_size": 10 + round,
            "group_by": if round % 2 == 0 { json!(["state"]) } else { json!(["priority"]) },
        }]);
        place.config["accounts"][0]["tenants"] = if round % 4 < 2 {
            json!([DEMO_TENANT, "client_2"])
        } else {
            json!([DEMO_TENANT])
        };
        opsramp.open_many(DEMO_TENANT, 3).unwrap();
        opsramp.open_many("client_2", 2).unwrap();
        // An alert is sure to have a line when it leaves only if its opening has been logged.
        let told = place.lines_of("alerts.jsonl");
        let told: Vec<Members> = told.iter().map(|line| Members::parse(line)).collect();
        if let Some(record) = told.iter().find(|it| !left.contains(it.text("alert_id"))) {
            let id = record.text("alert_id");
            let found = opsramp.world(|world, _| world.find(id).unwrap());
            opsramp.act(found, Action::Suppress).unwrap();
            left.insert(id.to_owned());
        }
        exporter.reload(&place).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    place.config["accounts"][0]["tenants"] = json!([DEMO_TENANT, "client_2"]);
    exporter.reload(&place).await;
    let opened = 5 + 5 * ROUNDS;
    let all = (opened + left.len()) as f64;
    exporter
        .wait_for("all is delivered", |metrics| {
            metrics.sum("opsramp_sink_events_total{") >= all
        })
        .await;
    exporter.wait_for_poll().await;
    exporter.stop().await;
    let text = place.text_of("alerts.jsonl");
    assert!(text.ends_with('\n'), "the last line is torn");
    let mut told: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in text.lines() {
        let record = check_record(line);
        let key = |key| record.text(key).to_owned();
        *told.entry((key("event"), key("alert_id"))).or_default() += 1;
    }
    let repeated: Vec<_> = told.iter().filter(|(_, count)| **count > 1).collect();
    assert_eq!(repeated, [], "told more than once");
    let of = |event: &str| -> BTreeSet<String> {
        let of_event = told.keys().filter(|(kind, _)| kind == event);
        of_event.map(|(_, id)| id.clone()).collect()
    };
    assert_eq!(of("opened").len(), opened);
    assert_eq!(of("left"), left);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_reload_cannot_change_and_what_should_not_stay_so_is_told_every_time() {
    let opsramp = opsramp(1).await;
    let mut place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    let warned = |metrics: &crate::exporter::Metrics| {
        metrics.one(r#"opsramp_exporter_log_messages_total{level="warn"}"#)
    };
    let before = warned(&exporter.metrics().await).unwrap();
    place.config["state"]["path"] = json!("elsewhere.db");
    place.config["accounts"][0]["tls"] = json!({"insecure_skip_verify": true});
    for count in [2.0, 4.0] {
        exporter.reload(&place).await;
        exporter
            .wait_for("both are told", |metrics| {
                warned(metrics) == Some(before + count)
            })
            .await;
    }
    for told in ["take effect with the next start", "insecure_skip_verify"] {
        exporter
            .stderr
            .wait_for("it is told twice", |lines| {
                lines.iter().filter(|line| line.contains(told)).count() == 2
            })
            .await;
    }
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_several_reloads_that_fail_says_why() {
    let opsramp = opsramp(1).await;
    let mut place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    for (count, [first, other]) in [["30", "30s"], ["30s", "45"], ["30s", "45"]]
        .into_iter()
        .enumerate()
    {
        place.config["searches"] = json!([
            {"name": "a", "interval": first},
            {"name": "b", "interval": other},
        ]);
        place.write();
        exporter.signal(Signal::HUP);
        let lines = exporter
            .stderr
            .wait_for("it is told", |lines| {
                let told = |line: &&String| line.contains("the one before stays in force");
                lines.iter().filter(told).count() == count + 1
            })
            .await;
        let wrong = if count == 0 {
            "searches[0]"
        } else {
            "searches[1]"
        };
        assert!(lines.iter().last().unwrap().contains(wrong), "{lines:#?}");
    }
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_replaced_takes_what_was_known_of_its_token_along() {
    let opsramp = opsramp(1).await;
    let mut place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    exporter.wait_until_complete().await;
    let expiry = "opsramp_token_expiry_timestamp_seconds";
    assert!(exporter.metrics().await.one(expiry).is_some());
    place.config["accounts"][0]["client_id"] = json!("another");
    exporter.reload(&place).await;
    exporter.wait_for_poll().await;
    assert_eq!(exporter.metrics().await.one(expiry), None);
    exporter.stop().await;
}
