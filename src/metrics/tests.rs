use std::{collections::BTreeMap, io::Read as _};

use jiff::ToSpan as _;
use proptest::prelude::*;

use super::*;
use crate::{
    clock,
    deliver::Observer as _,
    identity::Tenant,
    opsramp::Observer as _,
    status::{DiscoveryStatus, PartnerStatus, SearchResult, SearchStatus},
    track::GroupLabel,
};

const BUILD: BuildInfo = BuildInfo {
    version: "1.2.3",
    revision: "abc",
    rustversion: "1.95.0",
};

fn now() -> Timestamp {
    "2026-11-23T21:00:00Z".parse().unwrap()
}

/// Of a token that lives for so many hours from [`now`] on.
fn expiry(hours: u64) -> Expiry {
    Expiry::after(Duration::from_secs(hours * 60 * 60), now())
}

fn seen() -> RateLimit {
    RateLimit {
        limit: 50,
        remaining: 48,
        reset_at: now() + 30.seconds(),
    }
}

fn key(account: &str, id: &str, tenant: &str, search: &str) -> SearchKey {
    SearchKey {
        account: account.into(),
        tenant: Tenant {
            id: id.into(),
            name: tenant.into(),
        },
        search: search.into(),
    }
}

fn retail() -> SearchKey {
    key("acme", "client_1", "retail", "open")
}

fn status(key: &SearchKey) -> SearchStatus {
    let (interval, stale_after) = (Duration::from_secs(30), Duration::from_secs(300));
    SearchStatus {
        lease_held: true,
        ..SearchStatus::unknown(key.clone(), interval, stale_after)
    }
}

fn result() -> SearchResult {
    SearchResult {
        at: now(),
        at_since_boot: clock::since_boot(),
        total_results: 7,
        tracked: 7,
        complete: true,
        group_by: [GroupLabel::State].into(),
        groups: [
            (vec!["Critical".into()], 4),
            (vec!["Fancy".into()], 1),
            (vec!["Warning".into()], 2),
        ]
        .into(),
        oldest: Some(now() - 90.minutes()),
    }
}

fn up(key: &SearchKey) -> SearchStatus {
    SearchStatus {
        up: Some(true),
        result: Some(result()),
        last_full_read: Some(now()),
        ..status(key)
    }
}

fn render(metrics: &Metrics, now: Timestamp) -> String {
    render::render(metrics, now, 0)
}

/// Returns the samples of an exposition by name and labels. Fails if the text breaks the format's
/// rules: a sample outside its family, a family twice, or a sample twice.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut families = BTreeMap::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            family = rest.split(' ').next().unwrap().to_owned();
            assert!(
                families.insert(family.clone(), ()).is_none(),
                "{family} twice"
            );
        } else if !line.starts_with("# TYPE ") {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            assert!(sample.starts_with(&family), "{line} is not of {family}");
            let value: f64 = value.parse().unwrap();
            let twice = samples.insert(sample.to_owned(), value);
            assert!(twice.is_none(), "{sample} twice");
        }
    }
    assert!(text.ends_with('\n'));
    samples
}

/// The lines that begin with `prefix`, without those of the process.
fn about(text: &str, prefix: &str) -> Vec<String> {
    text.lines()
        .filter(|line| line.starts_with(prefix))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_known_series_of_a_search_exists_before_its_first_poll() {
    let metrics = Metrics::new(Board::default(), BUILD);
    metrics.register_search(&retail());
    metrics.0.board.set_search(status(&retail()));
    let text = render(&metrics, now());
    let samples = parse(&text);
    let labels = "account=\"acme\",tenant=\"retail\",search=\"open\"";
    let value = |name: &str, more: &str| {
        let sample = format!("{name}{{{labels}{more}}}");
        *samples
            .get(&sample)
            .unwrap_or_else(|| panic!("no {sample} in\n{text}"))
    };
    assert_eq!(value("opsramp_up", ""), 0.0);
    assert_eq!(value("opsramp_polls_total", ""), 0.0);
    assert_eq!(value("opsramp_poll_requests", ""), 0.0);
    assert_eq!(value("opsramp_poll_interval_seconds", ""), 30.0);
    assert_eq!(value("opsramp_lease_held", ""), 1.0);
    assert_eq!(value("opsramp_poll_duration_seconds_count", ""), 0.0);
    assert_eq!(
        value(
            "opsramp_alert_detection_delay_seconds_bucket",
            ",le=\"+Inf\""
        ),
        0.0
    );
    for reason in POLL_FAILURE_REASONS {
        assert_eq!(
            value(
                "opsramp_poll_failures_total",
                &format!(",reason=\"{reason}\"")
            ),
            0.0
        );
    }
    for event in ["opened", "changed", "left"] {
        assert_eq!(
            value("opsramp_alert_events_total", &format!(",event=\"{event}\"")),
            0.0
        );
    }
    for unknown in [
        "opsramp_search_total_results",
        "opsramp_open_alerts",
        "opsramp_oldest_open_alert",
        "opsramp_search_complete",
        "opsramp_poll_last_success",
        "opsramp_full_read_last_success",
    ] {
        assert!(about(&text, unknown).is_empty(), "{unknown} is made up");
    }
}

#[test]
fn a_result_is_shown_whole_with_its_known_states_first() {
    let metrics = Metrics::new(Board::default(), BUILD);
    metrics.0.board.set_search(up(&retail()));
    let text = render(&metrics, now());
    parse(&text);
    let mut shown = about(&text, "opsramp_up");
    shown.extend(about(&text, "opsramp_search_"));
    shown.extend(about(&text, "opsramp_open_alerts"));
    shown.extend(about(&text, "opsramp_oldest_open_alert"));
    shown.extend(about(&text, "opsramp_poll_last_success"));
    insta::assert_snapshot!(shown.join("\n"), @r#"
    opsramp_up{account="acme",tenant="retail",search="open"} 1
    opsramp_search_total_results{account="acme",tenant="retail",search="open"} 7
    opsramp_search_complete{account="acme",tenant="retail",search="open"} 1
    opsramp_open_alerts{account="acme",tenant="retail",search="open",state="Critical"} 4
    opsramp_open_alerts{account="acme",tenant="retail",search="open",state="Warning"} 2
    opsramp_open_alerts{account="acme",tenant="retail",search="open",state="Info"} 0
    opsramp_open_alerts{account="acme",tenant="retail",search="open",state="Ok"} 0
    opsramp_open_alerts{account="acme",tenant="retail",search="open",state="Fancy"} 1
    opsramp_oldest_open_alert_timestamp_seconds{account="acme",tenant="retail",search="open"} 1795462200
    opsramp_poll_last_success_timestamp_seconds{account="acme",tenant="retail",search="open"} 1795467600
    "#);
}

#[test]
fn groups_carry_the_labels_of_their_search() {
    let metrics = Metrics::new(Board::default(), BUILD);
    let grouped = |search, group_by: &[GroupLabel], groups: &[(&[&str], u64)]| {
        let own = |(values, count): &(&[&str], u64)| {
            (values.iter().map(|value| (*value).into()).collect(), *count)
        };
        metrics.0.board.set_search(SearchStatus {
            result: Some(SearchResult {
                group_by: group_by.into(),
                groups: groups.iter().map(own).collect(),
                ..result()
            }),
            ..up(&key("acme", "client_1", "retail", search))
        });
    };
    let both = [GroupLabel::State, GroupLabel::Priority];
    grouped(
        "both",
        &both,
        &[(&["Critical", "P0"], 1), (&["Ok", "P3"], 2)],
    );
    grouped("none", &[], &[(&[], 3)]);
    grouped("nothing", &[], &[]);
    // Nobody knows the states of the others.
    let state = [GroupLabel::State];
    grouped("overflowing", &state, &[(&["Warning"], 2), (&["other"], 5)]);
    let text = render(&metrics, now());
    parse(&text);
    insta::assert_snapshot!(about(&text, "opsramp_open_alerts").join("\n"), @r#"
    opsramp_open_alerts{account="acme",tenant="retail",search="both",state="Critical",priority="P0"} 1
    opsramp_open_alerts{account="acme",tenant="retail",search="both",state="Ok",priority="P3"} 2
    opsramp_open_alerts{account="acme",tenant="retail",search="none"} 3
    opsramp_open_alerts{account="acme",tenant="retail",search="nothing"} 0
    opsramp_open_alerts{account="acme",tenant="retail",search="overflowing",state="Warning"} 2
    opsramp_open_alerts{account="acme",tenant="retail",search="overflowing",state="other"} 5
    "#);
}

#[test]
fn a_failed_poll_shows_at_once_and_its_last_result_is_withheld_when_it_is_stale() {
    let metrics = Metrics::new(Board::default(), BUILD);
    metrics.0.board.set_search(SearchStatus {
        up: Some(false),
        ..up(&retail())
    });
    let fresh = render(&metrics, now() + 300.seconds());
    assert_eq!(about(&fresh, "opsramp_up{")[0].chars().last(), Some('0'));
    assert_eq!(about(&fresh, "opsramp_search_total_results").len(), 1);

    let stale = render(&metrics, now() + 301.seconds());
    for withheld in [
        "opsramp_search_",
        "opsramp_open_alerts",
        "opsramp_oldest_open",
    ] {
        assert!(about(&stale, withheld).is_empty(), "{withheld} is stale");
    }
    assert_eq!(about(&stale, "opsramp_up{").len(), 1);
    assert_eq!(about(&stale, "opsramp_poll_last_success").len(), 1);
    parse(&stale);
}

#[test]
fn what_happens_to_a_search_is_counted() {
    let metrics = Metrics::new(Board::default(), BUILD);
    let search = metrics.register_search(&retail());
    search.poll_begun();
    search.poll_failed("too_large");
    search.poll_ended(Duration::from_millis(700));
    search.events(EventKind::Opened, 3);
    search.events(EventKind::Left, 1);
    search.detection_delay(Duration::from_secs(12));
    // Registering again, as a reload does, keeps the counts.
    metrics.register_search(&retail()).poll_begun();
    let text = render(&metrics, now());
    parse(&text);
    let counted: Vec<String> = [
        "opsramp_polls_total",
        "opsramp_poll_failures",
        "opsramp_poll_duration",
        "opsramp_alert_",
    ]
    .iter()
    .flat_map(|prefix| about(&text, prefix))
    .filter(|line| !line.ends_with(" 0") && !line.contains("_bucket"))
    .collect();
    insta::assert_snapshot!(counted.join("\n"), @r#"
    opsramp_polls_total{account="acme",tenant="retail",search="open"} 2
    opsramp_poll_failures_total{account="acme",tenant="retail",search="open",reason="too_large"} 1
    opsramp_poll_duration_seconds_sum{account="acme",tenant="retail",search="open"} 0.7
    opsramp_poll_duration_seconds_count{account="acme",tenant="retail",search="open"} 1
    opsramp_alert_events_total{account="acme",tenant="retail",search="open",event="opened"} 3
    opsramp_alert_events_total{account="acme",tenant="retail",search="open",event="left"} 1
    opsramp_alert_detection_delay_seconds_sum{account="acme",tenant="retail",search="open"} 12
    opsramp_alert_detection_delay_seconds_count{account="acme",tenant="retail",search="open"} 1
    "#);
    let delay = about(&text, "opsramp_alert_detection_delay_seconds_bucket");
    let first = delay.iter().find(|line| line.ends_with(" 1")).unwrap();
    assert!(first.contains("le=\"15\""), "{first}");
}

/// A token that is accepted again does not undo that another one is needed.
#[test]
fn why_there_is_no_token_stays_until_none_is_needed() {
    let board = Board::default();
    let metrics = Metrics::new(board.clone(), BUILD);
    let account = metrics.register_account(&"acme".into());
    let error = || board.accounts(now())["acme"].auth_error.clone();
    account.token_failed(
        "throttled",
        &opsramp::Error::Throttled { retry_after: None },
    );
    account.token_lost();
    account.token_regained(expiry(1), true);
    assert!(error().is_some());
    account.token_regained(expiry(1), false);
    assert_eq!(error(), None);
}

#[test]
fn what_happens_on_the_wire_is_counted_and_shown() {
    let metrics = Metrics::new(Board::default(), BUILD);
    metrics.register_search(&retail());
    let account = metrics.register_account(&"acme".into());
    account.token_requested();
    let error = opsramp::Error::Throttled { retry_after: None };
    account.token_failed("rejected", &error);
    account.token_requested();
    account.token_obtained(Duration::from_millis(120), expiry(2));
    account.request(Endpoint::Token, Some(200), Duration::from_millis(120));
    account.request(Endpoint::Search, Some(418), Duration::from_millis(20));
    account.request(Endpoint::Search, None, Duration::from_secs(30));
    account.rate_limit("client_1", seen());
    // A partner whose clients are looked up although no search runs for it.
    account.rate_limit("msp_9", seen());
    account.throttled("client_1", Duration::from_millis(1500));
    let text = render(&metrics, now());
    parse(&text);
    let shown: Vec<String> = ["opsramp_auth_", "opsramp_token", "opsramp_api_"]
        .iter()
        .flat_map(|prefix| about(&text, prefix))
        .filter(|line| !line.ends_with(" 0") && !line.contains("_bucket"))
        .collect();
    insta::assert_snapshot!(shown.join("\n"), @r#"
    opsramp_auth_latency_seconds{account="acme"} 0.12
    opsramp_auth_requests_total{account="acme"} 2
    opsramp_auth_failures_total{account="acme",reason="rejected"} 1
    opsramp_token_expiry_timestamp_seconds{account="acme"} 1795474800
    opsramp_api_requests_total{account="acme",endpoint="token",code="200"} 1
    opsramp_api_requests_total{account="acme",endpoint="search",code="error"} 1
    opsramp_api_requests_total{account="acme",endpoint="search",code="418"} 1
    opsramp_api_request_duration_seconds_sum{account="acme",endpoint="token"} 0.12
    opsramp_api_request_duration_seconds_count{account="acme",endpoint="token"} 1
    opsramp_api_request_duration_seconds_sum{account="acme",endpoint="search"} 30.02
    opsramp_api_request_duration_seconds_count{account="acme",endpoint="search"} 2
    opsramp_api_rate_limit_limit{account="acme",tenant="retail"} 50
    opsramp_api_rate_limit_limit{account="acme",tenant="msp_9"} 50
    opsramp_api_rate_limit_remaining{account="acme",tenant="retail"} 48
    opsramp_api_rate_limit_remaining{account="acme",tenant="msp_9"} 48
    opsramp_api_rate_limit_reset_timestamp_seconds{account="acme",tenant="retail"} 1795467630
    opsramp_api_rate_limit_reset_timestamp_seconds{account="acme",tenant="msp_9"} 1795467630
    opsramp_api_throttled_seconds_total{account="acme",tenant="retail"} 1.5
    "#);
    let throttled = about(&text, "opsramp_api_throttled");
    assert_eq!(throttled.len(), 2, "{throttled:?}");
}

#[test]
fn whether_clients_can_be_looked_up_is_shown_of_accounts_that_have_them_looked_up() {
    let metrics = Metrics::new(Board::default(), BUILD);
    let partner = |(id, last): (&str, Option<Result<(), String>>)| PartnerStatus {
        id: id.into(),
        is_known: last.is_some(),
        last,
    };
    let of = |partners: Vec<_>| DiscoveryStatus {
        clients: None,
        partners: partners.into_iter().map(partner).collect(),
    };
    let discovery = |last| of(vec![("msp_1", last)]);
    let works = ("msp_1", Some(Ok(())));
    let fails = ("msp_2", Some(Err("no route".to_owned())));
    for (name, discovery) in [
        ("begins", Some(discovery(None))),
        ("fails", Some(discovery(Some(Err("no route".to_owned()))))),
        ("ordinary", None),
        (
            "one of two begins",
            Some(of(vec![works.clone(), ("msp_2", None)])),
        ),
        ("one of two fails", Some(of(vec![works.clone(), fails]))),
        ("works", Some(of(vec![works.clone(), works]))),
    ] {
        metrics.register_account(&name.into());
        metrics
            .0
            .board
            .update_account(&name.into(), |account| account.discovery = discovery);
    }
    let text = render(&metrics, now());
    insta::assert_snapshot!(about(&text, "opsramp_discovery_up{").join("\n"), @r#"
    opsramp_discovery_up{account="begins"} 0
    opsramp_discovery_up{account="fails"} 0
    opsramp_discovery_up{account="one of two begins"} 0
    opsramp_discovery_up{account="one of two fails"} 0
    opsramp_discovery_up{account="works"} 1
    "#);
    insta::assert_snapshot!(about(&text, "opsramp_discovery_known{").join("\n"), @r#"
    opsramp_discovery_known{account="begins"} 0
    opsramp_discovery_known{account="fails"} 1
    opsramp_discovery_known{account="one of two begins"} 0
    opsramp_discovery_known{account="one of two fails"} 1
    opsramp_discovery_known{account="works"} 1
    "#);
}

#[test]
fn the_series_of_what_is_gone_disappear() {
    let metrics = Metrics::new(Board::default(), BUILD);
    let other = key("acme", "client_2", "wholesale", "open");
    for key in [&retail(), &other] {
        metrics.register_search(key);
        metrics.0.board.set_search(up(key));
    }
    let account = metrics.register_account(&"acme".into());
    metrics.register_sink(&"file".into());
    for id in ["client_1", "client_2"] {
        account.rate_limit(id, seen());
        account.throttled(id, Duration::from_secs(1));
    }
    metrics.sink_delivered("file", 1);

    metrics.0.board.remove_search(&retail());
    metrics.remove_search(&retail());
    let text = render(&metrics, now());
    assert!(
        !text.contains("retail") && !text.contains("client_1"),
        "{text}"
    );
    assert_eq!(about(&text, "opsramp_api_rate_limit_limit").len(), 1);

    metrics.remove_account("acme");
    metrics.remove_sink("file");
    // A request was under way when the account was removed, and ends now.
    account.token_obtained(Duration::from_secs(1), expiry(0));
    account.rate_limit("client_2", seen());
    metrics.sink_delivered("file", 1);
    let text = render(&metrics, now());
    for gone in [
        "opsramp_auth_",
        "opsramp_api_",
        "opsramp_token_",
        "opsramp_sink_",
    ] {
        assert!(about(&text, gone).is_empty(), "{gone}: {text}");
    }
    assert!(metrics.0.board.accounts(now()).is_empty());
}

#[test]
fn two_tenants_of_one_name_do_not_make_the_same_series() {
    let metrics = Metrics::new(Board::default(), BUILD);
    let keys = [
        key("acme", "client_1", "retail", "open"),
        key("acme", "client_2", "retail", "open"),
        key("acme", "client_3", "client_2", "open"),
        // The moment of a reload when the tenant has its old name and its new one.
        key("acme", "client_3", "renamed", "open"),
        key("other", "client_1", "retail", "open"),
    ];
    let account = metrics.register_account(&"acme".into());
    for key in &keys {
        metrics.register_search(key);
        metrics.0.board.set_search(up(key));
        account.rate_limit(&key.tenant.id, seen());
    }
    let text = render(&metrics, now());
    parse(&text);
    assert_eq!(about(&text, "opsramp_up{").len(), keys.len());
}

#[test]
fn sinks_the_log_and_the_configuration_are_shown() {
    let metrics = Metrics::new(Board::default(), BUILD);
    metrics.register_sink(&"loki".into());
    metrics.sink_delivered("loki", 5);
    metrics.sink_error("loki");
    metrics.sink_rejected("loki", 2);
    metrics.0.board.update_sink(&"loki".into(), |sink| {
        sink.backlog = Some(3);
        sink.oldest_pending = Some(now());
    });
    metrics.register_sink(&"stdout".into());
    // A sink whose backlog is unknown.
    metrics
        .0
        .board
        .update_sink(&"stdout".into(), |sink| sink.backlog = None);
    metrics.log_message(tracing::Level::WARN);
    metrics.config_loaded(now());
    metrics.config_rejected();
    let text = render(&metrics, now());
    parse(&text);
    let mut shown = about(&text, "opsramp_sink_");
    shown.extend(about(&text, "opsramp_exporter_"));
    insta::assert_snapshot!(shown.join("\n"), @r#"
    opsramp_sink_events_total{sink="loki"} 5
    opsramp_sink_events_total{sink="stdout"} 0
    opsramp_sink_errors_total{sink="loki"} 1
    opsramp_sink_errors_total{sink="stdout"} 0
    opsramp_sink_rejected_events_total{sink="loki"} 2
    opsramp_sink_rejected_events_total{sink="stdout"} 0
    opsramp_sink_backlog_events{sink="loki"} 3
    opsramp_sink_oldest_pending_timestamp_seconds{sink="loki"} 1795467600
    opsramp_exporter_log_messages_total{level="debug"} 0
    opsramp_exporter_log_messages_total{level="error"} 0
    opsramp_exporter_log_messages_total{level="info"} 0
    opsramp_exporter_log_messages_total{level="trace"} 0
    opsramp_exporter_log_messages_total{level="warn"} 1
    opsramp_exporter_build_info{revision="abc",rustversion="1.95.0",version="1.2.3"} 1
    opsramp_exporter_config_last_reload_successful 0
    opsramp_exporter_config_last_reload_success_timestamp_seconds 1795467600
    "#);
}

#[test]
fn the_expiry_of_a_token_is_shown_on_the_wall_clock_as_it_is_now() {
    let metrics = Metrics::new(Board::default(), BUILD);
    let account = metrics.register_account(&"acme".into());
    account.token_obtained(Duration::from_secs(1), expiry(2));
    let shown = |now| -> f64 {
        let text = render(&metrics, now);
        let sample = &about(&text, "opsramp_token_expiry")[0];
        sample.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let set = now() - 30.hours();
    let told = shown(set);
    assert!((told - seconds(set + 2.hours())).abs() < 5.0, "{told}");
    assert!((shown(set + 1.seconds()) - told).abs() < f64::EPSILON);
}

#[test]
fn every_family_is_in_the_catalogue_and_every_one_of_it_can_be_seen() {
    let metrics = Metrics::new(Board::default(), BUILD);
    metrics.register_search(&retail());
    metrics.0.board.set_search(up(&retail()));
    let account = metrics.register_account(&"acme".into());
    account.token_obtained(Duration::from_secs(1), expiry(0));
    account.rate_limit("client_1", seen());
    metrics.register_sink(&"file".into());
    metrics.0.board.update_sink(&"file".into(), |sink| {
        sink.backlog = Some(1);
        sink.oldest_pending = Some(now());
    });
    metrics.config_loaded(now());
    metrics.0.board.update_account(&"acme".into(), |account| {
        account.discovery = Some(DiscoveryStatus::default());
    });
    let text = render(&metrics, now());
    parse(&text);
    let shown: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let mut announced: Vec<&str> = catalog::ALL.iter().map(|family| family.name).collect();
    let mut sorted = shown.clone();
    sorted.sort_unstable();
    announced.sort_unstable();
    assert_eq!(sorted, announced);
    for family in catalog::ALL {
        assert!(
            !family.help.contains(['\\', '\n', '|']) && family.help.ends_with('.'),
            "{family:?}"
        );
        let prefix = format!("{}{{", family.name);
        for line in text.lines().filter(|line| line.starts_with(&prefix)) {
            for label in family.labels {
                assert!(
                    line.contains(&format!("{label}=\"")),
                    "{line} has no {label}"
                );
            }
        }
    }
    // The same state gives the same text, except for the process's own figures.
    let stable = |text: &str| {
        let lines = text.lines().filter(|line| !line.contains("process_"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(stable(&text), stable(&render(&metrics, now())));
}

#[test]
fn the_reference_in_the_documentation_is_current() {
    const BEGIN: &str = "<!-- begin generated -->\n";
    const END: &str = "<!-- end generated -->";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    let page = std::fs::read_to_string(path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (table, after) = rest.split_once(END).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let current = reference();
        std::fs::write(path, format!("{before}{BEGIN}{current}{END}{after}")).unwrap();
    } else {
        assert_eq!(table, reference(), "UPDATE_DOCS=1 brings {path} up to date");
    }
}

#[test]
fn a_rendering_is_used_again_until_something_changes() {
    let metrics = Metrics::new(Board::default(), BUILD);
    assert!(metrics.fresh_rendering().is_none());
    let search = metrics.register_search(&retail());
    let first = metrics.rendering(now());
    assert!(Arc::ptr_eq(&first, &metrics.rendering(now())));

    // The outcome of a reload is shown at once.
    let outcome = "opsramp_exporter_config_last_reload_successful";
    for (happens, told) in [
        (&(|| metrics.config_loaded(now())) as &dyn Fn(), 1),
        (&|| metrics.config_rejected(), 0),
    ] {
        happens();
        assert!(metrics.fresh_rendering().is_none() && metrics.recent_rendering().is_none());
        let text = String::from_utf8(metrics.rendering(now()).text.to_vec()).unwrap();
        assert!(text.contains(&format!("{outcome} {told}\n")), "{text}");
    }

    // A change waits no longer than the last rendering's cost demands.
    let changed = || {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        while metrics.fresh_rendering().is_some() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "the change is never shown"
            );
            std::thread::yield_now();
        }
        String::from_utf8(metrics.rendering(now()).text.to_vec()).unwrap()
    };
    search.poll_begun();
    assert!(
        changed().contains(
            "opsramp_polls_total{account=\"acme\",tenant=\"retail\",search=\"open\"} 1\n"
        )
    );
    metrics.0.board.set_search(up(&retail()));
    assert!(
        changed().contains("opsramp_up{account=\"acme\",tenant=\"retail\",search=\"open\"} 1\n")
    );
}

#[test]
fn while_clients_hold_many_renderings_one_is_used_for_longer() {
    let metrics = Metrics::new(Board::default(), BUILD);
    for search in 0..1000 {
        let name = format!("{search}-{}", "x".repeat(200));
        metrics.register_search(&key("acme", "client_1", "retail", &name));
    }
    let mut held = Vec::new();
    let mut length = 0;
    while length <= rendering::MAX_IN_USE {
        metrics.0.cache.outdate();
        let text = metrics.rendering(now()).text.clone();
        length += text.len();
        held.push(text);
    }
    metrics.0.cache.outdate();
    let last = metrics.rendering(now());
    metrics.0.board.set_search(up(&retail()));
    std::thread::sleep(rendering::MAX_AGE + Duration::from_millis(100));
    let shown = metrics.fresh_rendering();
    assert!(shown.is_some_and(|shown| Arc::ptr_eq(&shown, &last)));
    // The last one itself does not count.
    held.pop();
    assert!(metrics.fresh_rendering().is_none());
}

#[test]
fn both_encodings_say_the_same() {
    let metrics = Metrics::new(Board::default(), BUILD);
    metrics.register_search(&retail());
    let rendering = metrics.rendering(now());
    let mut text = String::new();
    flate2::read::GzDecoder::new(&*rendering.gzip)
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text.as_bytes(), rendering.text);
    parse(&text);
}

proptest! {
    #[test]
    fn no_name_can_break_the_exposition(
        names in proptest::collection::vec((".{0,6}", "[ab\"\\\\\n]{0,2}", "[ab\"\\\\\n]{0,2}", ".{0,4}"), 0..6),
    ) {
        let metrics = Metrics::new(Board::default(), BUILD);
        for (account, id, tenant, search) in &names {
            let key = key(account, id, tenant, search);
            metrics.register_search(&key);
            metrics.register_account(&key.account);
            metrics.0.board.set_search(up(&key));
        }
        let text = render(&metrics, now());
        let samples = parse(&text);
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        let shown = samples.keys().filter(|sample| sample.starts_with("opsramp_up{")).count();
        prop_assert_eq!(shown, distinct.len());
    }
}

#[test]
fn no_name_that_the_api_gives_makes_two_series_with_the_same_labels() {
    let metrics = Metrics::new(Board::default(), BUILD);
    for (id, name) in [
        ("a", "b"),
        ("b", "b"),
        ("c", "b"),
        ("d", "b (b)"),
        ("e", "c"),
        ("f", "b (b)"),
    ] {
        metrics.register_search(&key("acme", id, name, "open"));
    }
    let text = render(&metrics, now());
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let mut names: Vec<_> = samples.filter_map(|line| line.rsplit_once(' ')).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup_by_key(|(name, _)| *name);
    assert_eq!(names.len(), count);
}
