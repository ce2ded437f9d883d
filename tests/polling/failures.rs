//! Failures: each has its reason, delays no other search, and heals.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_has_its_reason_and_heals() {
    let status = Fault::status;
    let body = |text: &str| Fault::Body {
        text: text.to_owned(),
    };
    let too_large = MAX_RESPONSE_SIZE + (1 << 20);
    let faults: Vec<(Fault, &str)> = vec![
        (status(500), "http"),
        (status(503), "http"),
        (status(404), "http"),
        (status(410), "http"),
        (status(403), "auth"),
        (status(401), "auth"),
        (Fault::Html, "decode"),
        (Fault::Empty, "decode"),
        (Fault::Truncated, "decode"),
        (Fault::NullResult, "decode"),
        (Fault::NoResults, "decode"),
        (body("null"), "decode"),
        (
            body(r#"{"results":["x",7,{"id":"1"}],"totalResults":3}"#),
            "decode",
        ),
        (Fault::Huge { bytes: too_large }, "too_large"),
        (Fault::GzipBomb { bytes: too_large }, "too_large"),
        (Fault::Reset, "connect"),
        (Fault::ResetMidBody, "connect"),
        (Fault::Stall { bytes: 100 }, "timeout"),
        (
            Fault::SlowHeaders {
                seconds: Duration::from_secs(30),
            },
            "timeout",
        ),
        (
            Fault::Redirect {
                code: 307,
                location: "http://127.0.0.1:9/".to_owned(),
            },
            "http",
        ),
    ];
    for (fault, reason) in faults {
        let name = format!("{fault:?}");
        let simulator = start(world(3)).await;
        let mut plan = plan(&simulator.url());
        if reason == "timeout" {
            plan.accounts[0].options.timeout = SHORT;
        }
        let exporter = Exporter::start(plan).await;
        exporter.wait_until_complete().await;
        simulator.inject(FaultRule::always(fault).at(Endpoint::Search));
        let series = format!(
            "opsramp_poll_failures_total{{account=\"default\",tenant=\"name of client_1\",search=\"open\",reason=\"{reason}\"}}"
        );
        eventually(&name, || async { exporter.sample(&series) >= 1.0 }).await;
        let scrape = exporter.scrape();
        assert_eq!(sum(&scrape, "opsramp_up{"), 0.0, "{name}");
        assert_eq!(
            sum(&scrape, "opsramp_search_total_results{"),
            3.0,
            "{name}: kept until stale"
        );
        assert_eq!(
            sum(&scrape, "opsramp_poll_failures_total{"),
            sum(&scrape, &series),
            "{name}: of no other reason\n{scrape}"
        );
        simulator.clear_faults();
        simulator.open_many(DEMO_TENANT, 1).unwrap();
        eventually(&name, || async { exporter.count("opened").await == 4 }).await;
        eventually(&name, || async { exporter.sample("opsramp_up{") == 1.0 }).await;
        assert_eq!(exporter.count("left").await, 0, "{name}");
        exporter.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_that_fails_at_a_further_page_shows_nothing_of_the_first() {
    let simulator = start(world(250)).await;
    let mut plan = plan(&simulator.url());
    // The next poll knows the first page and succeeds, so the failure has to be seen before.
    plan.searches[0].interval = Duration::from_secs(6);
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    let failed = Fault::status(500);
    simulator.inject(at_page(2, failed));
    simulator.open_many(DEMO_TENANT, 150).unwrap();
    let mut status = exporter.status();
    eventually("a poll fails", || {
        status = exporter.status();
        std::future::ready(status.up == Some(false))
    })
    .await;
    let result = status.result.as_ref().unwrap();
    assert_eq!((result.total_results, result.tracked), (250, 250));
}

/// New alerts are on the first page, whatever happens to further pages.
#[tokio::test(flavor = "multi_thread")]
async fn a_further_page_that_fails_for_good_delays_no_new_alert() {
    let simulator = start(world(250)).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    simulator.inject(at_page(2, Fault::Html));
    let failures = || exporter.sample("opsramp_poll_failures_total{");
    let began = Instant::now();
    for round in 1..=12 {
        // A round needs more than one try if the background, at the start of a full read, sees the
        // new alerts before the poll does, so that the poll has no news.
        eventually("a poll fails", || async {
            simulator.open_many(DEMO_TENANT, 150).unwrap();
            exporter.wait_for_poll().await;
            failures() >= f64::from(round)
        })
        .await;
        assert!(exporter.count("opened").await >= 250 + 100 * round as usize);
    }
    // With pauses that double, this would take more than a minute and a half.
    assert!(began.elapsed() < Duration::from_secs(60));
}

/// Lets alerts leave and open for ever, so that each poll has more news than are on a page.
async fn alerts_come_and_go(simulator: &Simulator, exporter: &Exporter) {
    let old = open_alerts(simulator);
    for id in old.into_iter().cycle() {
        // An alert that has already left stays so.
        simulator.act(id, Action::Ticket).ok();
        simulator.open_many(DEMO_TENANT, 120).unwrap();
        exporter.wait_for_poll().await;
    }
}

/// That an answer cannot be read is noticed later than any other failure.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_cannot_be_read_is_found_out_by_the_background_while_alerts_keep_opening() {
    let simulator = start(world(250)).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    simulator.reset_requests();
    simulator.inject(at_page(2, Fault::NullResult));
    let of_page = |page| pages_asked(&simulator, page);
    // A poll asks for the page at most once, a full read again and again.
    let is_read = eventually("the page is read", || async { of_page(2) > of_page(1) });
    tokio::select! {
        () = alerts_come_and_go(&simulator, &exporter) => {}
        () = is_read => {}
    }
}

/// If every poll has news, none gets as far as comparing the count.
#[tokio::test(flavor = "multi_thread")]
async fn departures_are_noticed_where_a_further_page_fails_for_good_and_alerts_keep_opening() {
    let simulator = start(world(250)).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    let not_found = Fault::status(404);
    simulator.inject(at_page(2, not_found));
    let goes_on = alerts_come_and_go(&simulator, &exporter);
    let began = Instant::now();
    let noticed = eventually("some have left", || async {
        exporter.count("left").await > 0
    });
    tokio::select! {
        () = goes_on => {}
        () = noticed => {}
    }
    // It takes three failures, two and four seconds apart. On a busy machine some poll has no news
    // in the end.
    assert!(began.elapsed() < Duration::from_secs(50));
    eventually("polls succeed", || async {
        exporter.sample("opsramp_up{") == 1.0
    })
    .await;
}

/// Polls now and then try whether the page can be read again.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_was_given_up_fails_no_poll_and_delays_no_news_once_it_comes() {
    let simulator = start(world(250)).await;
    let mut plan = plan(&simulator.url());
    // After a failure, a full read rests for longer than the test takes.
    plan.searches[0].interval = Duration::from_secs(2);
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    let of_page_2 = |fault, times| FaultRule {
        times,
        ..at_page(2, fault)
    };
    // The page is refused as often as a full read asks for it. After that it fails in a way that
    // would fail a poll.
    simulator.inject(of_page_2(Fault::status(404), Some(3)));
    simulator.inject(of_page_2(Fault::status(500), None));
    simulator.reset_requests();
    let oldest = open_alerts(&simulator)[0];
    simulator.act(oldest, Action::Ticket).unwrap();
    exporter.wait_for("left", 1).await;
    let asked = || pages_asked(&simulator, 2);
    assert_eq!(asked(), 3);
    exporter.wait_for_poll().await;
    simulator.open_many(DEMO_TENANT, 150).unwrap();
    eventually("a poll asks for the page", || async { asked() > 3 }).await;
    exporter.wait_for_poll().await;
    assert_eq!(exporter.sample("opsramp_poll_failures_total{"), 0.0);
    assert_eq!(exporter.count("opened").await, 250 + 100);
    simulator.clear_faults();
    simulator.open_many(DEMO_TENANT, 150).unwrap();
    exporter.wait_for("opened", 250 + 300).await;
}

/// Returns how many events of this kind the metrics tell of.
fn told(metrics: &Metrics, event: &str) -> f64 {
    let labels = "account=\"default\",tenant=\"name of client_1\",search=\"open\"";
    let series = format!("opsramp_alert_events_total{{{labels},event=\"{event}\"}}");
    sum(&scrape(metrics), &series)
}

/// A page that fails without being refused is given up only after half an hour, unless it is
/// already known that it cannot be read.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_back_nothing_of_what_was_learned_of_a_page() {
    let simulator = start(world(250)).await;
    let mut before = None;
    let mut fails = |fault| {
        // The page never comes in between.
        let number = simulator.inject(at_page(2, fault));
        if let Some(before) = before.replace(number) {
            simulator.remove_fault(before);
        }
    };
    let mut plan = plan(&simulator.url());
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(&folder, store::JOURNAL_LIMIT).await;
    let (mut pollers, board, metrics) = pollers(&store, &Health::default());
    pollers.apply(plan.clone()).await.unwrap();
    eventually("the result is known whole", || async {
        let result = board.searches()[0].result.clone();
        result.is_some_and(|result| result.complete)
    })
    .await;
    let ids = open_alerts(&simulator);
    let has_left = async |place: usize, count: f64| {
        simulator.act(ids[place], Action::Ticket).unwrap();
        eventually("it has left", || async { told(&metrics, "left") == count }).await;
    };
    fails(Fault::status(404));
    has_left(50, 1.0).await;
    fails(Fault::status(500));
    plan.record.max_description_length += 1;
    pollers.apply(plan).await.unwrap();
    has_left(51, 2.0).await;
    pollers.stop().await;
    store.close().await;
}

/// The page has only changes and no new alerts, so by the count all is known.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_amid_a_further_page_of_a_poll_loses_nothing_that_is_on_it() {
    let simulator = start(simulator::Options {
        ts: Ts::Updated,
        ..world(250)
    })
    .await;
    let ids = open_alerts(&simulator);
    let set = |count: usize, state| {
        simulator.world(|world, now| {
            for id in &ids[..count] {
                world.set_state(*id, state, now).unwrap();
            }
        });
    };
    set(250, State::Warning);
    let mut plan = plan(&simulator.url());
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(&folder, store::JOURNAL_LIMIT).await;
    let (mut pollers, board, metrics) = pollers(&store, &Health::default());
    pollers.apply(plan.clone()).await.unwrap();
    let complete = || {
        let result = board.searches()[0].result.clone();
        result.is_some_and(|result| result.complete)
    };
    eventually("the result is known whole", || async { complete() }).await;
    simulator.reset_requests();
    simulator.inject(FaultRule {
        times: Some(1),
        ..at_page(2, Fault::SlowHeaders { seconds: PATIENCE })
    });
    // Changes are sorted by the second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    set(180, State::Critical);
    eventually("a poll waits for its second page", || async {
        pages_asked(&simulator, 2) > 0
    })
    .await;
    plan.record.max_description_length += 1;
    pollers.apply(plan).await.unwrap();
    eventually("all changes are told", || async {
        told(&metrics, "changed") == 180.0
    })
    .await;
    eventually("the result is known whole", || async { complete() }).await;
    pollers.stop().await;
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_in_trouble_delay_nobody_else() {
    const INTERVAL: Duration = Duration::from_secs(3);
    /// How late a busy machine may poll. It is far less than the time for which the others hang.
    const LATE: Duration = Duration::from_secs(10);
    let ids: Vec<String> = (0..300).map(|number| format!("client_{number}")).collect();
    let mut options = world(0);
    options.tenants = ids.iter().map(|id| tenant(id, 1)).collect();
    let simulator = start(options).await;
    for hanging in &ids[..3] {
        simulator.inject(
            FaultRule::always(Fault::SlowHeaders { seconds: PATIENCE }).for_tenant(hanging),
        );
    }
    let mut plan = plan(&simulator.url());
    let names: Vec<&str> = ids.iter().map(String::as_str).collect();
    plan.accounts = vec![account(&simulator.url(), &names)];
    plan.searches[0].interval = INTERVAL;
    let exporter = Exporter::start(plan).await;
    let polled_twice = |exporter: &Exporter| {
        let searches = exporter.board.searches();
        searches
            .iter()
            .filter(|status| status.up == Some(true) && status.polls.len() >= 3)
            .count()
    };
    eventually("the others are polled", || async {
        polled_twice(&exporter) == 297
    })
    .await;
    // After the first poll, each search keeps to its grid of times, as far as the machine does.
    for status in exporter
        .board
        .searches()
        .iter()
        .filter(|status| status.up == Some(true))
    {
        let (last, before) = (&status.polls[0], &status.polls[1]);
        let apart = last.started.duration_since(before.started).as_secs_f64();
        let most = (2 * INTERVAL + LATE).as_secs_f64();
        assert!(apart < most, "{}: {apart} s apart", status.key);
    }
}
