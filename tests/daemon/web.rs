//! What can be seen over HTTP while the daemon works.

use std::process::Stdio;

use opsramp_exporter::simulator::{DEMO_TENANT, Endpoint, Fault, FaultRule, TenantOptions};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, time::Duration};

use crate::exporter::{
    Place, binary, command, eventually, http_client, needed, opsramp, opsramp_with,
};

#[tokio::test(flavor = "multi_thread")]
async fn promtool_has_nothing_to_say_about_the_metrics() {
    needed("promtool", "prometheus");
    let opsramp = opsramp_with(250, |options| {
        options.tenants.push(TenantOptions {
            id: "client_2".to_owned(),
            alerts: 3,
            ..TenantOptions::default()
        });
    })
    .await;
    let mut place = Place::new(&opsramp.url()).with_file_sink();
    place.config["accounts"][0]["tenants"] =
        json!([DEMO_TENANT, {"id": "client_2", "name": "a \"quoted\" \\ näme"}]);
    place.config["searches"][0]["group_by"] = json!(["state", "source", "priority"]);
    let exporter = place.start().await;
    let mut texts = vec![exporter.get("/metrics").await.1];
    exporter
        .wait_for("both are known whole", |metrics| {
            metrics.sum("opsramp_search_complete{") == 2.0
        })
        .await;
    texts.push(exporter.get("/metrics").await.1);
    opsramp.inject(FaultRule::always(Fault::Html).at(Endpoint::Search));
    exporter
        .wait_for("polls fail", |metrics| metrics.sum("opsramp_up{") == 0.0)
        .await;
    texts.push(exporter.get("/metrics").await.1);
    exporter.stop().await;
    for text in texts {
        let mut command = command("promtool");
        command
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut promtool = command.spawn().unwrap();
        let mut input = promtool.stdin.take().unwrap();
        input.write_all(text.as_bytes()).await.unwrap();
        drop(input);
        let said = promtool.wait_with_output().await.unwrap();
        let said = (
            said.status.code(),
            String::from_utf8(said.stdout).unwrap(),
            String::from_utf8(said.stderr).unwrap(),
        );
        assert_eq!(said, (Some(0), String::new(), String::new()), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_healthy_from_the_start_and_ready_after_the_first_poll() {
    let opsramp = opsramp(3).await;
    let hangs = Fault::SlowHeaders {
        seconds: Duration::from_secs(60),
    };
    let number = opsramp.inject(FaultRule::always(hangs).at(Endpoint::Search));
    let mut place = Place::new(&opsramp.url());
    place.config["accounts"][0]["timeout"] = json!("60s");
    let exporter = place.start().await;
    assert_eq!(
        exporter.get("/-/healthy").await,
        (200, "healthy\n".to_owned())
    );
    assert_eq!(
        exporter.get("/-/ready").await,
        (
            503,
            "default/client_1/open: the first poll has not ended\n".to_owned()
        )
    );
    let metrics = exporter.metrics().await;
    assert_eq!(metrics.one("opsramp_up{"), Some(0.0));
    assert_eq!(metrics.one("opsramp_search_total_results{"), None);
    assert_eq!(metrics.sum("opsramp_poll_failures_total{"), 0.0);
    exporter.stop().await;

    opsramp.remove_fault(number);
    let exporter = place.start().await;
    eventually("it is ready", async || {
        exporter.get("/-/ready").await == (200, "ready\n".to_owned())
    })
    .await;
    assert_eq!(exporter.get("/-/healthy").await.0, 200);
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_ready_after_a_first_poll_that_failed_as_well() {
    let opsramp = opsramp(3).await;
    opsramp.inject(FaultRule::always(Fault::Html).at(Endpoint::Search));
    let place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    eventually("it is ready", async || {
        exporter.get("/-/ready").await.0 == 200
    })
    .await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_series_exists_before_anything_happens() {
    let opsramp = opsramp(0).await;
    let place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    let metrics = exporter.metrics().await;
    let labels = r#"account="default",tenant="client_1",search="open""#;
    for event in ["opened", "changed", "left"] {
        let series = format!("opsramp_alert_events_total{{{labels},event=\"{event}\"}}");
        assert_eq!(metrics.one(&series), Some(0.0), "{series}");
    }
    for reason in [
        "auth",
        "throttled",
        "timeout",
        "connect",
        "http",
        "decode",
        "too_large",
        "store",
    ] {
        let series = format!("opsramp_poll_failures_total{{{labels},reason=\"{reason}\"}}");
        assert_eq!(metrics.one(&series), Some(0.0), "{series}");
    }
    for reason in [
        "credentials",
        "rejected",
        "throttled",
        "timeout",
        "connect",
        "http",
        "decode",
    ] {
        let series =
            format!("opsramp_auth_failures_total{{account=\"default\",reason=\"{reason}\"}}");
        assert_eq!(metrics.one(&series), Some(0.0), "{series}");
    }
    for name in [
        "opsramp_sink_events_total",
        "opsramp_sink_errors_total",
        "opsramp_sink_rejected_events_total",
    ] {
        let series = format!("{name}{{sink=\"stdout\"}}");
        assert_eq!(metrics.one(&series), Some(0.0), "{series}");
    }
    // The store is asked for the backlog while the first scrape is answered.
    let backlog = r#"opsramp_sink_backlog_events{sink="stdout"}"#;
    exporter
        .wait_for(backlog, |metrics| metrics.one(backlog) == Some(0.0))
        .await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_the_json_show_what_is_going_on() {
    let opsramp = opsramp(3).await;
    let place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    exporter.wait_until_complete().await;
    let open = opsramp.world(|world, _| world.open_alerts(DEMO_TENANT).unwrap());
    let (status, page) = exporter.get("/").await;
    assert_eq!(status, 200);
    assert!(!page.contains("<script"), "no script is needed");
    let (status, alerts) = exporter.get("/api/v1/alerts").await;
    assert_eq!(status, 200);
    let alerts: Value = serde_json::from_str(&alerts).unwrap();
    assert_eq!(alerts["alerts"].as_array().unwrap().len(), 3);
    for id in open {
        let id = id.number().to_string();
        assert!(page.contains(&id), "{page}");
        assert!(alerts.to_string().contains(&id), "{alerts}");
    }
    let (status, text) = exporter.get("/api/v1/status").await;
    assert_eq!(status, 200);
    let _: Value = serde_json::from_str(&text).unwrap();
    for shown in ["open", DEMO_TENANT, "stdout"] {
        assert!(page.contains(shown) && text.contains(shown), "{shown}");
    }
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_to_quit_drains_and_ends_with_status_0() {
    let opsramp = opsramp(3).await;
    let place = Place::new(&opsramp.url());
    place.write();
    let mut command = place.command();
    command.arg("--web.enable-lifecycle");
    let exporter = place.start_as(command).await;
    exporter.wait_until_complete().await;
    assert_eq!(
        exporter.post("/-/quit").await,
        (200, "stopping\n".to_owned())
    );
    let ended = exporter.end().await;
    assert_eq!(ended.code(), Some(0));
    assert_eq!(ended.stdout.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_itself_can_ask_whether_it_is_healthy() {
    let opsramp = opsramp(3).await;
    let place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    let address = exporter.url.trim_start_matches("http://").to_owned();
    let asked = |arguments: Vec<String>| {
        let mut healthcheck = command(binary());
        healthcheck.current_dir(place.path("")).args(arguments);
        place.run(healthcheck)
    };
    let by_url = vec!["healthcheck".to_owned(), format!("--url={}", exporter.url)];
    let by_flag = vec![
        "healthcheck".to_owned(),
        format!("--web.listen-address={address}"),
    ];
    // The command needs neither an account nor a secret, and ignores mistakes in other sections of
    // the file.
    std::fs::write(
        place.path("part.yml"),
        format!("sarches: []\nweb: {{listen_addresses: ['{address}']}}\n"),
    )
    .unwrap();
    let by_file = vec![
        "healthcheck".to_owned(),
        "--config.file=part.yml".to_owned(),
    ];
    for arguments in [&by_url, &by_flag, &by_file] {
        let ended = asked(arguments.clone()).await;
        assert_eq!(ended.code(), Some(0), "{arguments:?} {ended:?}");
        assert_eq!(ended.stdout, ["healthy"]);
    }
    // A running exporter keeps its configuration when its file is broken or gone.
    std::fs::write(place.path("broken.yml"), "a: [").unwrap();
    for file in ["broken.yml", "gone.yml"] {
        for arguments in [&by_url, &by_flag] {
            let mut arguments = arguments.clone();
            arguments.push(format!("--config.file={file}"));
            let ended = asked(arguments).await;
            assert_eq!(ended.stdout, ["healthy"], "{file}: {ended:?}");
        }
        let arguments = ["healthcheck".to_owned(), format!("--config.file={file}")];
        let ended = asked(arguments.to_vec()).await;
        let told = "what answers on 127.0.0.1:10836 is asked";
        assert!(
            ended.stderr[0].contains(file) && ended.stderr[0].ends_with(told),
            "{ended:?}"
        );
        assert_ne!(ended.code(), Some(2), "{ended:?}");
    }
    // The command ignores flags that concern the daemon only, wherever they stand.
    let mut before = by_flag.clone();
    before.insert(0, "--opsramp.url=http://127.0.0.1:1".to_owned());
    let mut after = by_flag.clone();
    after.push("--opsramp.url=http://127.0.0.1:1".to_owned());
    for arguments in [before, after] {
        let ended = asked(arguments).await;
        assert_eq!(ended.stdout, ["healthy"], "{ended:?}");
    }
    let elsewhere = format!("{}/-/nowhere", exporter.url);
    let ended = asked(vec!["healthcheck".to_owned(), format!("--url={elsewhere}")]).await;
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert!(ended.error().contains("404"), "{ended:?}");

    exporter.stop().await;
    let ended = asked(by_url).await;
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert!(ended.error().contains("does not answer"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_descriptors_are_enough_for_scrapes_among_connections_that_say_nothing() {
    let opsramp = opsramp(1).await;
    let place = Place::new(&opsramp.url());
    let exporter = place.start_with_descriptors(28).await;
    exporter.wait_until_complete().await;
    let address = exporter.url.strip_prefix("http://").unwrap().to_owned();
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(tokio::net::TcpStream::connect(&address).await.unwrap());
    }
    for _ in 0..5 {
        // Each scrape has a connection of its own, which is newer than all the silent ones.
        let asked = tokio::time::Instant::now();
        let scrape = http_client().get(format!("{}/metrics", exporter.url));
        assert_eq!(scrape.send().await.unwrap().status(), 200);
        assert!(asked.elapsed() < Duration::from_secs(5));
    }
    exporter.wait_for_poll().await;
    exporter.stop().await;
}
