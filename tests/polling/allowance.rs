//! The allowance is shared and obeyed, and serves new alerts first.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_long_result_under_the_allowance_never_delays_new_alerts() {
    let simulator = start(simulator::Options {
        allowance: Allowance::default(),
        ..world(12_000)
    })
    .await;
    let mut plan = plan(&simulator.url());
    plan.accounts[0].options.requests_per_minute = None;
    plan.searches[0].interval = Duration::from_secs(3);
    let exporter = Exporter::start(plan).await;
    eventually("the full read waits for the allowance", || async {
        exporter.sample("opsramp_api_throttled_seconds_total{") > 1.0
    })
    .await;
    assert!(!exporter.is_complete());
    let before = exporter.sample("opsramp_alert_events_total{");
    // They are on two pages.
    simulator.open_many(DEMO_TENANT, 150).unwrap();
    let began = Instant::now();
    eventually("the new alerts are logged", || async {
        exporter.sample("opsramp_alert_events_total{") >= before + 150.0
    })
    .await;
    // Waiting for the allowance would last until the end of the minute.
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(simulator.requests().with_status(429), 0);
}

/// The account has no ceiling of its own, and the clocks are an hour apart either way.
#[tokio::test(flavor = "multi_thread")]
async fn the_servers_word_on_its_allowance_is_obeyed_whatever_its_clock() {
    for (skew, retry_after, quoted) in [
        (3600, RetryAfter::Seconds, false),
        (-3600, RetryAfter::Date, true),
        (0, RetryAfter::None, false),
    ] {
        let mut options = world(600);
        options.allowance = Allowance {
            client_paginated: 30,
            window: Duration::from_secs(3),
            ..Allowance::default()
        };
        options.clock_skew = skew;
        options.retry_after = retry_after;
        options.quoted_headers = quoted;
        let simulator = start(options).await;
        let mut plan = plan(&simulator.url());
        plan.searches[0].page_size = 10;
        plan.searches[0].interval = Duration::from_secs(5);
        let exporter = Exporter::start(plan).await;
        // The exporter paces its requests by a window of a minute, as documented, though the
        // window is shorter here.
        eventually("requests wait", || async {
            exporter.sample("opsramp_api_throttled_seconds_total{") > 2.0
        })
        .await;
        let requests = simulator.requests();
        assert_eq!(requests.with_status(429), 0, "{skew}");
        assert!(
            (10..=30).contains(&requests.searches(DEMO_TENANT)),
            "{skew}: {requests:?}"
        );
        assert_eq!(exporter.sample("opsramp_up{"), 1.0, "{skew}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_of_a_tenant_share_its_allowance_fairly() {
    let mut world = world(2_000);
    // While nobody has to wait for a turn, the network decides how fast each search is read.
    world.latency = Duration::from_millis(150);
    let simulator = start(world).await;
    let mut plan = plan(&simulator.url());
    plan.accounts[0].options.requests_per_minute = Some(40);
    plan.searches[0].interval = Duration::from_secs(5);
    let other = SearchOptions {
        name: "other".into(),
        query: "actions:OPEN+states:Critical,Warning,Info,Ok".to_owned(),
        ..plan.searches[0].clone()
    };
    plan.searches.push(other);
    let exporter = Exporter::start(plan).await;
    eventually("the allowance is used up", || async {
        exporter.sample("opsramp_api_throttled_seconds_total{") > 1.0
    })
    .await;
    let opened = |search: &str| {
        let labels = "account=\"default\",tenant=\"name of client_1\"";
        let series = "opsramp_alert_events_total";
        exporter.sample(&format!(
            "{series}{{{labels},search=\"{search}\",event=\"opened\"}}"
        ))
    };
    let (one, other) = (opened("open"), opened("other"));
    assert!(
        (one - other).abs() <= 200.0 && one > 0.0,
        "{one} and {other}"
    );
}

/// How many polls are due since then with five requests a minute, twelve seconds apart.
fn due_since(began: Instant) -> u64 {
    1 + began.elapsed().as_secs() / 12
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_changes_an_account_does_not_begin_its_allowance_anew() {
    let simulator = start(world(50)).await;
    let mut plan = plan(&simulator.url());
    // With this limit, polls are twelve seconds apart.
    plan.accounts[0].options.requests_per_minute = Some(5);
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(&folder, store::JOURNAL_LIMIT).await;
    let (mut pollers, _, metrics) = pollers(&store, &Health::default());
    let throttled = || sum(&scrape(&metrics), "opsramp_api_throttled_seconds_total{");
    let began = Instant::now();
    for seconds in 10..16 {
        plan.accounts[0].options.timeout = Duration::from_secs(seconds);
        pollers.apply(plan.clone()).await.unwrap();
        let before = throttled();
        eventually("a poll waits", || async { throttled() > before }).await;
    }
    pollers.stop().await;
    store.close().await;
    let searches = simulator.requests().searches(DEMO_TENANT);
    let most = 2 + due_since(began);
    assert!((1..=most).contains(&searches), "{searches}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_goes_to_another_account_of_its_server_does_not_begin_its_allowance_anew() {
    let simulator = start(world(50)).await;
    let mut plan = plan(&simulator.url());
    let of = |name: &str, tenants: &[&str]| {
        let mut account = account(&simulator.url(), tenants);
        account.options.name = name.into();
        // With this limit, polls are twelve seconds apart.
        account.options.requests_per_minute = Some(5);
        account
    };
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(&folder, store::JOURNAL_LIMIT).await;
    let (mut pollers, _, _) = pollers(&store, &Health::default());
    let searches = || simulator.requests().searches(DEMO_TENANT);
    let began = Instant::now();
    for accounts in [
        vec![of("a", &[DEMO_TENANT]), of("b", &[])],
        // The tenant moves, and comes back.
        vec![of("a", &[]), of("b", &[DEMO_TENANT])],
        vec![of("a", &[DEMO_TENANT]), of("b", &[])],
        // Its account gets another name, and is removed.
        vec![of("c", &[DEMO_TENANT]), of("b", &[])],
        vec![of("b", &[DEMO_TENANT])],
        // The next account is removed before another one has the tenant, and comes back.
        vec![of("c", &[])],
        vec![of("d", &[DEMO_TENANT])],
        vec![of("c", &[])],
        vec![of("d", &[DEMO_TENANT])],
    ] {
        plan.accounts = accounts;
        pollers.apply(plan.clone()).await.unwrap();
        eventually("it is polled", || async { searches() > 0 }).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    pollers.stop().await;
    store.close().await;
    let due = due_since(began);
    assert!((1..=due).contains(&searches()), "{}", searches());
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_of_a_server_share_the_allowance_of_a_tenant() {
    let simulator = start(world(50)).await;
    let mut plan = plan(&simulator.url());
    let of = |name: &str, requests_per_minute| {
        let mut account = account(&simulator.url(), &[DEMO_TENANT]);
        account.options.name = name.into();
        account.options.requests_per_minute = requests_per_minute;
        account
    };
    // With the lower limit, polls are twelve seconds apart.
    plan.accounts = vec![of("a", Some(5)), of("b", None)];
    let began = Instant::now();
    let exporter = Exporter::start(plan).await;
    let throttled = |account: &str| {
        let series = "opsramp_api_throttled_seconds_total";
        exporter.sample(&format!("{series}{{account=\"{account}\""))
    };
    eventually("both wait", || async {
        throttled("a") > 3.0 && throttled("b") > 3.0
    })
    .await;
    let searches = || simulator.requests().searches(DEMO_TENANT);
    assert!(
        (1..=due_since(began)).contains(&searches()),
        "{}",
        searches()
    );
    // Each has its turn.
    let polls =
        |account: &str| exporter.sample(&format!("opsramp_polls_total{{account=\"{account}\""));
    eventually("both poll", || async {
        polls("a") > 0.0 && polls("b") > 0.0
    })
    .await;
    assert!(searches() <= 2 + due_since(began), "{}", searches());
}
