//! An OpsRamp that answers wrongly, is away or is broken: what the gauges, standard error and the
//! page say, and that the exporter recovers without help.

use std::net::Ipv4Addr;

use opsramp_exporter::simulator::{
    DEMO_KEY, DEMO_TENANT, Endpoint, Fault, FaultRule, Simulator, TenantOptions,
};
use serde_json::json;

use crate::{
    exporter::{
        Exporter, Metrics, Place, SECRET, binary, command, eventually, http_client, needed,
        opsramp, opsramp_at, opsramp_with,
    },
    ports::keep_a_port,
};

/// More than a page, so that other requests than the first page can fail, too.
const ALERTS: usize = 250;

/// Polls that fail before the lines are counted.
const POLLS: f64 = 4.0;

/// Returns the token that every client with the key gets, so that outputs can be searched for it.
async fn token(opsramp: &Simulator) -> String {
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", DEMO_KEY),
        ("client_secret", SECRET),
    ];
    let url = format!("{}/auth/oauth/token", opsramp.url());
    let request = http_client().post(url).form(&form);
    let answer = request.send().await.unwrap().bytes().await.unwrap();
    let granted: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    granted["access_token"].as_str().unwrap().to_owned()
}

/// Returns the lines that report trouble.
fn complaints(lines: &[String]) -> Vec<&String> {
    let is_trouble = |line: &&String| !line.contains(" level=info ");
    lines.iter().filter(is_trouble).collect()
}

/// Waits until some polls have failed, and checks what is reported: this reason only, in one line.
async fn check_failing(name: &str, exporter: &Exporter, reason: &str) -> Metrics {
    let failures = |metrics: &Metrics| metrics.sum("opsramp_poll_failures_total{");
    let before = failures(&exporter.metrics().await);
    let metrics = exporter
        .wait_for(name, |metrics| failures(metrics) >= before + POLLS)
        .await;
    let of_reason = format!(
        "opsramp_poll_failures_total{{account=\"default\",tenant=\"{DEMO_TENANT}\",\
         search=\"open\",reason=\"{reason}\"}}"
    );
    assert_eq!(
        metrics.one(&of_reason),
        Some(failures(&metrics)),
        "{name}: nothing but {reason}"
    );
    assert_eq!(metrics.one("opsramp_up{"), Some(0.0), "{name}");
    let is_told = |lines: &[String]| !complaints(lines).is_empty();
    let lines = exporter.stderr.wait_for(name, is_told).await;
    let complaints = complaints(&lines);
    let [complaint] = &complaints[..] else {
        panic!("{name}: one line, not {complaints:#?}");
    };
    for part in [
        " level=error ",
        "default/client_1/open",
        &format!("reason={reason}"),
        " error=",
        "poll failed; gauges keep their last values until stale_after",
    ] {
        assert!(complaint.contains(part), "{name}: no {part} in {complaint}");
    }
    // `get` searches each answer for secrets.
    let (_, page) = exporter.get("/").await;
    assert!(page.contains(reason), "{name}: {page}");
    for path in ["/api/v1/status", "/api/v1/alerts", "/-/ready", "/-/healthy"] {
        assert_eq!(exporter.get(path).await.0, 200, "{name}: {path}");
    }
    metrics
}

/// Waits until polls work again by themselves, with every alert logged once.
async fn check_healed(name: &str, exporter: Exporter, alerts: usize) {
    exporter
        .wait_for(name, |metrics| {
            metrics.one("opsramp_up{") == Some(1.0)
                && metrics.one("opsramp_search_complete{") == Some(1.0)
        })
        .await;
    exporter
        .stdout
        .wait_for(name, |lines| lines.len() >= alerts)
        .await;
    exporter.wait_for_poll().await;
    let ended = exporter.stop().await;
    let lines = &ended.stderr;
    let healed = lines
        .iter()
        .filter(|line| line.contains(" level=info ") && line.contains("works again"));
    assert_eq!(healed.count(), 1, "{name}: {lines:#?}");
    assert_eq!(complaints(lines).len(), 1, "{name}");
    assert_eq!(ended.stdout.len(), alerts, "{name}");
    let opened = |line: &&String| line.contains(r#""event":"opened""#);
    assert_eq!(ended.stdout.iter().filter(opened).count(), alerts, "{name}");
}

fn faults() -> Vec<(&'static str, Fault, &'static str)> {
    let status = Fault::status;
    vec![
        ("a 500", status(500), "http"),
        ("a 403", status(403), "auth"),
        ("an HTML page with status 200", Fault::Html, "decode"),
        ("a truncated body", Fault::Truncated, "decode"),
        ("a result of null", Fault::NullResult, "decode"),
        ("nothing", Fault::Empty, "decode"),
        ("a connection that is reset", Fault::Reset, "connect"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_broken_answer_is_told_once_with_its_reason_and_got_over() {
    for (name, fault, reason) in faults() {
        let opsramp = opsramp(ALERTS).await;
        let mut place = Place::new(&opsramp.url());
        place.secrets.push(token(&opsramp).await);
        let exporter = place.start().await;
        exporter.wait_until_complete().await;
        opsramp.inject(FaultRule::always(fault).at(Endpoint::Search));
        let metrics = check_failing(name, &exporter, reason).await;
        assert_eq!(
            metrics.one("opsramp_search_total_results{"),
            Some(ALERTS as f64),
            "{name}: kept until stale"
        );
        opsramp.clear_faults();
        opsramp.open_many(DEMO_TENANT, 1).unwrap();
        check_healed(name, exporter, ALERTS + 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_broken_from_the_start_on_is_told_once_and_got_over() {
    for (name, fault, reason) in faults() {
        let opsramp = opsramp(ALERTS).await;
        opsramp.inject(FaultRule::always(fault).at(Endpoint::Search));
        let place = Place::new(&opsramp.url());
        let exporter = place.start().await;
        let metrics = check_failing(name, &exporter, reason).await;
        assert_eq!(
            metrics.one("opsramp_search_total_results{"),
            None,
            "{name}: never a made-up 0"
        );
        opsramp.clear_faults();
        check_healed(name, exporter, ALERTS).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_secret_is_told_and_a_right_one_is_picked_up_from_the_file() {
    let name = "a wrong secret";
    let wrong = "Wrong-but-still-nobodys-business-77";
    let opsramp = opsramp(ALERTS).await;
    let mut place = Place::new(&opsramp.url());
    place.secrets.push(wrong.to_owned());
    place.secrets.push(token(&opsramp).await);
    std::fs::write(place.path("secret"), wrong).unwrap();
    let exporter = place.start().await;
    let metrics = check_failing(name, &exporter, "auth").await;
    let rejected = r#"opsramp_auth_failures_total{account="default",reason="rejected"}"#;
    assert!(metrics.one(rejected).unwrap() >= 1.0);
    assert_eq!(
        metrics.sum("opsramp_auth_failures_total{"),
        metrics.one(rejected).unwrap()
    );
    std::fs::write(place.path("secret"), SECRET).unwrap();
    check_healed(name, exporter, ALERTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_cannot_be_read_counts_as_a_failure_to_get_a_token() {
    let name = "a missing secret";
    let opsramp = opsramp(ALERTS).await;
    let place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    exporter.wait_until_complete().await;
    // A rotation that went wrong, while the token is revoked.
    std::fs::remove_file(place.path("secret")).unwrap();
    opsramp.world(|world, _| world.revoke_tokens(None));
    let metrics = check_failing(name, &exporter, "auth").await;
    let unread = r#"opsramp_auth_failures_total{account="default",reason="credentials"}"#;
    assert!(metrics.one(unread).unwrap() >= 1.0);
    assert_eq!(metrics.one("opsramp_auth_requests_total{"), Some(1.0));
    // The message follows the current problem.
    std::fs::write(place.path("secret"), "").unwrap();
    eventually("it is empty", async || {
        exporter.get("/api/v1/status").await.1.contains("is empty")
    })
    .await;
    std::fs::write(place.path("secret"), SECRET).unwrap();
    check_healed(name, exporter, ALERTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_that_repeats_the_secret_does_not_make_us_repeat_it() {
    let opsramp = opsramp_with(3, |options| options.credentials.clear()).await;
    opsramp.inject(
        FaultRule::always(Fault::Status {
            code: 400,
            body: Some(format!(
                r#"{{"error":"bad secret {SECRET} for {DEMO_KEY}"}}"#
            )),
            headers: Vec::new(),
        })
        .at(Endpoint::Token),
    );
    let place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    let lines = exporter
        .stderr
        .wait_for("a complaint", |lines| !complaints(lines).is_empty())
        .await;
    assert!(complaints(&lines)[0].contains("<secret>"), "{lines:#?}");
    exporter.get("/").await;
    exporter.get("/api/v1/status").await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_nobody_answers_for_is_told_and_found_when_it_is_there() {
    let name = "an unreachable host";
    let (address, _kept) = keep_a_port();
    let place = Place::new(&format!("http://{address}"));
    let exporter = place.start().await;
    check_failing(name, &exporter, "connect").await;
    let _opsramp = opsramp_at(address, ALERTS, |_| {}).await;
    check_healed(name, exporter, ALERTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_answer_in_time_is_told_and_got_over() {
    let name = "a slow server";
    let opsramp = opsramp(ALERTS).await;
    let mut place = Place::new(&opsramp.url());
    place.config["accounts"][0]["timeout"] = "3s".into();
    let exporter = place.start().await;
    exporter.wait_until_complete().await;
    opsramp.inject(FaultRule::always(Fault::Stall { bytes: 100 }).at(Endpoint::Search));
    check_failing(name, &exporter, "timeout").await;
    opsramp.clear_faults();
    check_healed(name, exporter, ALERTS).await;
}

/// By default the system kills a process that would exceed the limit.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_the_length_of_files_is_told_and_got_over() {
    let name = "a limit of the length of files";
    needed("prlimit", "util-linux");
    let opsramp = opsramp(ALERTS).await;
    let place = Place::new(&opsramp.url());
    place.write();
    let daemon = place.command();
    let mut limited = command("prlimit");
    // Enough for an empty state, too little for a page of alerts.
    limited.arg("--fsize=80000:").arg(binary());
    limited.args(daemon.as_std().get_args());
    let exporter = place.start_as(place.settle(limited)).await;
    check_failing(name, &exporter, "store").await;
    let mut unlimited = command("prlimit");
    unlimited.args(["--fsize=unlimited:", "--pid", &exporter.id().to_string()]);
    assert!(unlimited.status().await.unwrap().success());
    check_healed(name, exporter, ALERTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_file_that_is_removed_while_it_is_in_use_is_told_once() {
    let opsramp = opsramp(3).await;
    let place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    exporter.wait_until_complete().await;
    assert!(complaints(&exporter.stderr.lines()).is_empty());
    std::fs::remove_file(place.path("state.db")).unwrap();
    for lines in 4..=6 {
        opsramp.open_many(DEMO_TENANT, 1).unwrap();
        exporter
            .stdout
            .wait_for("it works on", |all| all.len() == lines)
            .await;
    }
    let ended = exporter.stop().await;
    let [told] = &complaints(&ended.stderr)[..] else {
        panic!("one line, not {:#?}", ended.stderr);
    };
    assert!(told.contains("was removed or replaced"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_refused_and_cannot_be_replaced_has_no_expiry() {
    let opsramp = opsramp(1).await;
    let place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    exporter.wait_until_complete().await;
    let expiry = "opsramp_token_expiry_timestamp_seconds";
    assert!(exporter.metrics().await.one(expiry).is_some());
    std::fs::write(place.path("secret"), "wrong").unwrap();
    let revoke = format!("{}/simulator/tokens/revoke", opsramp.url());
    let answer = http_client().post(revoke).send().await.unwrap();
    assert!(answer.status().is_success());
    exporter
        .wait_for("there is none", |metrics| metrics.one(expiry).is_none())
        .await;
    std::fs::write(place.path("secret"), SECRET).unwrap();
    exporter
        .wait_for("there is one again", |metrics| {
            metrics.one(expiry).is_some() && metrics.one("opsramp_up{") == Some(1.0)
        })
        .await;
    exporter.stop().await;
}

/// The secret file is like a pipe that nobody writes to, or a file on a server that hangs.
#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_does_not_come_holds_up_nothing_but_its_account() {
    let opsramp = opsramp(1).await;
    let place = Place::new(&opsramp.url());
    std::fs::remove_file(place.path("secret")).unwrap();
    let secret = place.silent("secret");
    let exporter = place.start().await;
    exporter
        .stderr
        .line(|line| line.contains("could not be read within"))
        .await;
    exporter.metrics().await;
    // The secret is read once it arrives.
    tokio::task::spawn_blocking(move || std::fs::write(secret, SECRET))
        .await
        .unwrap()
        .unwrap();
    exporter.wait_until_complete().await;
    let told = tokio::time::Instant::now();
    exporter.stop().await;
    assert!(told.elapsed() < std::time::Duration::from_secs(10));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_receiver_says_of_lines_that_it_takes_is_told_as_its_words() {
    const WORDS: &str = "level=error the disk is on fire";
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let endpoint = format!("http://{}/v1/logs", listener.local_addr().unwrap());
    let answer = serde_json::json!({"partialSuccess": {"errorMessage": WORDS}});
    let router = axum::Router::new().fallback(async move || axum::Json(answer.clone()));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let opsramp = opsramp(1).await;
    let mut place = Place::new(&opsramp.url());
    place.config["log"]["sinks"] =
        serde_json::json!([{"name": "loki", "type": "otlp", "endpoint": endpoint}]);
    let exporter = place.start().await;
    let line = exporter.stderr.line(|line| line.contains(WORDS)).await;
    let expected = format!(
        "level=warn msg=\"the receiver has taken the events with a warning\" sink=loki \
         warning=\"{WORDS}\" "
    );
    assert!(line.contains(&expected), "{line}");
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partner_whose_clients_cannot_be_looked_up_is_told_beside_an_account_that_works() {
    let opsramp = opsramp_with(1, |options| {
        let tenant = |id: &str, partner: Option<&str>| TenantOptions {
            id: id.to_owned(),
            partner: partner.map(str::to_owned),
            ..TenantOptions::default()
        };
        options.tenants.push(tenant("msp_1", None));
        options.tenants.push(tenant("client_8", Some("msp_1")));
    })
    .await;
    let down = opsramp.inject(FaultRule::always(Fault::status(500)).at(Endpoint::Clients));
    let mut place = Place::new(&opsramp.url());
    let mut partner = place.config["accounts"][0].clone();
    place.config["accounts"][0]["name"] = json!("ordinary");
    partner["name"] = json!("partner");
    partner["tenants"] = json!(["msp_1"]);
    partner["discover_clients"] = json!(true);
    place.config["accounts"]
        .as_array_mut()
        .unwrap()
        .push(partner);
    let exporter = place.start().await;
    let line = exporter
        .stderr
        .line(|line| line.contains("cannot look up the clients of the partner"))
        .await;
    assert!(line.contains(" partner=msp_1 "), "{line}");
    assert!(
        line.contains("; nothing of the account is searched until that works"),
        "{line}"
    );
    exporter
        .wait_for("the other account is polled", |metrics| {
            metrics.one("opsramp_up{account=\"ordinary\"") == Some(1.0)
        })
        .await;
    let metrics = exporter.metrics().await;
    assert_eq!(
        metrics.one("opsramp_discovery_up{account=\"partner\"}"),
        Some(0.0)
    );
    let (status, reasons) = exporter.get("/-/ready").await;
    assert_eq!(status, 503, "{reasons}");
    let reason = "account partner: the clients of the partner msp_1 are not known yet: ";
    assert!(
        reasons.starts_with(reason) && reasons.contains("500"),
        "{reasons}"
    );
    let (_, page) = exporter.get("/").await;
    assert!(page.contains(reason), "{page}");

    opsramp.remove_fault(down);
    exporter
        .wait_for("its clients are found", |metrics| {
            metrics.one("opsramp_discovery_up{account=\"partner\"}") == Some(1.0)
                && metrics.sum("opsramp_up{") == 2.0
        })
        .await;
    let (status, reasons) = exporter.get("/-/ready").await;
    assert_eq!((status, reasons.as_str()), (200, "ready\n"));
    exporter.stop().await;
}
