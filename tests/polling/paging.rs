//! Pages: how many requests they cost, and servers that page in their own ways.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_poll_costs_one_request() {
    let simulator = start(world(20_000)).await;
    let mut plan = plan(&simulator.url());
    plan.searches[0].page_size = 500;
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    exporter.wait_for_poll().await;
    let requests = || simulator.requests().searches(DEMO_TENANT) as f64;
    let (polls, before) = (exporter.polls_now(), requests());
    eventually("twenty polls", || async {
        exporter.polls() >= polls + 20.0
    })
    .await;
    let (polls, requests) = (exporter.polls_now() - polls, requests() - before);
    // A few polls may begin between two numbers that are read.
    assert!(
        (requests - polls).abs() <= 4.0,
        "{requests} requests in {polls} polls"
    );
    assert_eq!(exporter.sample("opsramp_poll_requests{"), 1.0);
    eventually("every poll is timed", || async {
        let scrape = exporter.scrape();
        let timed = sum(&scrape, "opsramp_poll_duration_seconds_count{");
        let under_way = sum(&scrape, "opsramp_polls_total{") - timed;
        (0.0..=1.0).contains(&under_way)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_costs_a_request_a_page() {
    let simulator = start(world(3_000)).await;
    let mut plan = plan(&simulator.url());
    plan.searches[0].interval = Duration::from_secs(1);
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    exporter.wait_for_poll().await;
    simulator.reset_requests();
    let polls = exporter.polls_now();
    simulator.open_many(DEMO_TENANT, 950).unwrap();
    exporter.wait_for("opened", 3_950).await;
    // Polls before and after the burst cost one request each, and one may be under way.
    let requests = simulator.requests().searches(DEMO_TENANT);
    let quiet = exporter.polls_now() - polls - 1.0;
    assert!(
        requests as f64 - quiet <= 11.0,
        "{requests} requests, {quiet} of quiet polls"
    );
}

/// The server cannot be asked by id. After two full reads have missed the alert, its own page says
/// that it left, beside the page of an alert that is there. If the server finds no page at all,
/// being missed must be more than bad luck. A portal's page is no alert's.
#[tokio::test(flavor = "multi_thread")]
async fn a_departure_is_noticed_where_the_search_cannot_be_asked_by_id() {
    let departure = async |faults: Vec<FaultRule>| {
        let options = simulator::Options {
            search_by_id: false,
            ..world(1_000)
        };
        let simulator = start(options).await;
        for rule in faults {
            simulator.inject(rule.at(Endpoint::Alert));
        }
        let mut plan = plan(&simulator.url());
        plan.searches[0].full_read_interval = Duration::from_millis(100);
        let exporter = Exporter::start(plan).await;
        exporter.wait_until_complete().await;
        let ids = open_alerts(&simulator);
        simulator.act(ids[500], Action::Ticket).unwrap();
        exporter.wait_for("left", 1).await;
        let events = exporter.events().await;
        let reason = events[1_000]["reason"].as_str().unwrap().to_owned();
        let own_pages = simulator.requests().by_endpoint[&Endpoint::Alert];
        exporter.wait_until_complete().await;
        (reason, own_pages)
    };
    let not_found = || FaultRule::always(Fault::status(404));
    // One of each two pages that are asked for, the second at first, and then the first.
    let portal = [10, 8, 6, 5, 3, 1].map(|after| FaultRule {
        after,
        times: Some(1),
        ..FaultRule::always(Fault::Html)
    });
    let (found, not_found, portal) = tokio::join!(
        departure(vec![]),
        departure(vec![not_found()]),
        departure(portal.into_iter().chain([not_found()]).collect()),
    );
    // The page that says that the alert has left says why, too.
    assert_eq!(found, ("ticketed".to_owned(), 2));
    // Two pages after each full read from the second to the seventh, and one for the reason.
    for unproven in [not_found, portal] {
        assert_eq!(unproven, ("not_found".to_owned(), 13));
    }
}

/// In whatever way questions by id fail, and nothing else: full reads go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_departure_is_noticed_where_questions_by_id_fail_for_good() {
    let status = Fault::status;
    let faults = [
        status(500),
        status(403),
        Fault::Html,
        Fault::Reset,
        Fault::GzipBomb {
            bytes: MAX_RESPONSE_SIZE + (1 << 20),
        },
        Fault::SlowHeaders { seconds: PATIENCE },
    ];
    let noticed = faults.map(async |fault| {
        let name = format!("{fault:?}");
        let simulator = start(world(250)).await;
        let mut plan = plan(&simulator.url());
        if matches!(fault, Fault::SlowHeaders { .. }) {
            plan.accounts[0].options.timeout = SHORT;
        }
        plan.searches[0].full_read_interval = Duration::from_millis(500);
        let exporter = Exporter::start(plan).await;
        exporter.wait_until_complete().await;
        simulator.inject(FaultRule {
            by_id: true,
            ..FaultRule::always(fault).at(Endpoint::Search)
        });
        let ids = open_alerts(&simulator);
        simulator.act(ids[50], Action::Ticket).unwrap();
        eventually(&name, || async { exporter.count("left").await == 1 }).await;
        exporter.wait_until_complete().await;
        assert_eq!(
            exporter.sample("opsramp_poll_failures_total{"),
            0.0,
            "{name}"
        );
    });
    futures_util::future::join_all(noticed).await;
}

/// Ends the outage once the third page was refused several times. The full read goes on there.
async fn goes_on_at_the_refused_page(simulator: &Simulator, exporter: &Exporter) {
    eventually("a page is refused four times", || async {
        pages_asked(simulator, 3) >= 4
    })
    .await;
    simulator.clear_faults();
    exporter.wait_until_complete().await;
    assert_eq!(pages_asked(simulator, 2), 1);
}

/// An outage during a full read says nothing about a page: the read goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_not_taken_for_the_end_of_what_the_server_shows() {
    let simulator = start(world(450)).await;
    let not_found = Fault::status(404);
    simulator.inject(at_page(3, not_found.clone()));
    // It begins after the first poll, whether the second one or the full read comes next.
    simulator.inject(FaultRule {
        after: 1,
        ..at_page(1, not_found)
    });
    let exporter = Exporter::start(plan(&simulator.url())).await;
    goes_on_at_the_refused_page(&simulator, &exporter).await;
}

/// Polls ask for less meanwhile, but are not answered. So nobody knows whether less would do.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_read_does_not_begin_anew_because_polls_ask_for_less_in_vain() {
    let simulator = start(world(450)).await;
    let refused = Fault::status(400);
    simulator.inject(at_page(3, refused.clone()));
    simulator.inject(FaultRule {
        after: 1,
        times: Some(2),
        ..at_page(1, refused)
    });
    simulator.inject(FaultRule {
        after: 1,
        ..at_page(1, Fault::status(503))
    });
    let mut plan = plan(&simulator.url());
    plan.searches[0].page_size = 200;
    let exporter = Exporter::start(plan).await;
    goes_on_at_the_refused_page(&simulator, &exporter).await;
}

/// A poll asks for less in vain and then fails otherwise, so that polls go on asking for less. The
/// full read must not take each refusal of its first page for a reason to begin anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_read_that_begins_during_an_outage_pauses_between_its_requests() {
    let simulator = start(world(450)).await;
    let mut plan = plan(&simulator.url());
    plan.searches[0].page_size = 200;
    plan.searches[0].interval = Duration::from_secs(1);
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    exporter.wait_for_poll().await;
    let faults = [(400, Some(3)), (503, Some(1)), (400, None)];
    let faults = faults.map(|(status, times)| FaultRule {
        // The next poll finds that an alert has left.
        after: 1,
        times,
        ..FaultRule::always(Fault::status(status)).at(Endpoint::Search)
    });
    let ids = open_alerts(&simulator);
    simulator.act(ids[0], Action::Ticket).unwrap();
    for fault in faults {
        simulator.inject(fault);
    }
    eventually("a poll asks for less in vain", || async {
        simulator.requests().with_status(503) == 1
    })
    .await;
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let refused = || simulator.requests().with_status(400);
    eventually("it is refused again", || async { refused() >= 5 }).await;
    let (refused, most) = (refused(), 10 * began.elapsed().as_secs());
    assert!(refused < most, "{refused} requests");
    simulator.clear_faults();
    exporter.wait_until_complete().await;
    assert_eq!(exporter.count("left").await, 1);
}

/// Whatever way the server sorts, limits and numbers pages, and whatever alerts share a second.
#[tokio::test(flavor = "multi_thread")]
async fn every_manner_of_paging_is_read_completely() {
    type Manner = (&'static str, fn(&mut simulator::Options));
    let manners: [Manner; 9] = [
        ("sorted by updated time", |options| options.ts = Ts::Updated),
        ("pages clamped", |options| options.max_page_size = 30),
        ("large pages refused", |options| {
            options.max_page_size = 100;
            options.oversized = Oversized::Reject;
        }),
        ("no nextPageNo", |options| options.next_page_no = false),
        ("a last page without end", |options| {
            options.repeats_last_page = true
        }),
        ("page sizes as shown", |options| {
            options.max_page_size = 100;
            options.page_size_as_shown = true;
        }),
        ("ties in any order", |options| options.unstable_ties = true),
        ("another offset", |options| options.offset_minutes = 330),
        ("expires_in as text", |options| {
            options.expires_in_as_string = true
        }),
    ];
    for (manner, change) in manners {
        let mut options = world(450);
        change(&mut options);
        let simulator = start(options).await;
        let mut plan = plan(&simulator.url());
        plan.searches[0].page_size = 500;
        plan.searches[0].full_read_interval = Duration::from_secs(1);
        let exporter = Exporter::start(plan).await;
        exporter.wait_until_complete().await;
        let ids = simulator.open_many(DEMO_TENANT, 205).unwrap();
        for id in &ids[..5] {
            simulator.act(*id, Action::Suppress).unwrap();
        }
        eventually(manner, || async {
            exporter.is_complete() && exporter.status().result.as_ref().unwrap().tracked == 650
        })
        .await;
        let mut opened = BTreeMap::new();
        for event in exporter.events().await {
            if event["event"] == "opened" {
                *opened.entry(event["alert_id"].to_string()).or_insert(0) += 1;
            }
        }
        assert!(
            (650..=655).contains(&opened.len()),
            "{manner}: {}",
            opened.len()
        );
        assert!(opened.values().all(|count| *count == 1), "{manner}");
    }
}

/// The documentation says that a 400 may be a passing fault.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_was_refused_is_asked_for_again_as_it_was() {
    let simulator = start(world(450)).await;
    let mut plan = plan(&simulator.url());
    plan.searches[0].page_size = 500;
    plan.searches[0].full_read_interval = Duration::from_secs(1);
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    // One page shows all alerts, as long as it may be as large as requested.
    let further_pages = || async {
        let polls = exporter.polls_now();
        simulator.reset_requests();
        eventually("five polls", || async { exporter.polls() >= polls + 5.0 }).await;
        let requests = simulator.requests();
        requests.log.iter().any(|request| request.page > Some(1))
    };
    let refuse = |times| {
        let refused = Fault::status(400);
        simulator.inject(FaultRule::next(times, Endpoint::Search, refused));
    };
    refuse(1);
    assert!(!further_pages().await);
    refuse(2);
    let ids = open_alerts(&simulator);
    simulator.act(ids[300], Action::Suppress).unwrap();
    eventually("less is asked for", &further_pages).await;
    eventually("as much as ever", || async { !further_pages().await }).await;
    assert_eq!(exporter.sample("opsramp_poll_failures_total{"), 0.0);
}

/// Meanwhile a poll finds that larger pages are no longer refused. With larger pages there are
/// fewer of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_read_goes_on_with_pages_of_the_size_of_its_first() {
    let options = simulator::Options {
        latency: Duration::from_millis(100),
        ..world(2_000)
    };
    let (simulator, exporter) = with_smaller_pages(options).await;
    eventually("its last page is read", || async {
        pages_asked(&simulator, 20) > 0
    })
    .await;
    exporter.wait_until_complete().await;
    assert_eq!(exporter.count("opened").await, 2_000);
}

/// The first page is read once more, because an alert has left in front of the others. Meanwhile
/// polls have found that the server refuses larger pages.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_page_of_a_full_read_is_as_large_when_it_is_read_again() {
    let options = simulator::Options {
        search_by_id: false,
        ..world(900)
    };
    let simulator = start(options).await;
    simulator.inject(at_page(2, Fault::status(503)));
    let mut plan = plan(&simulator.url());
    plan.searches[0].page_size = 500;
    let exporter = Exporter::start(plan).await;
    eventually("the second page fails", || async {
        simulator.requests().with_status(503) > 0
    })
    .await;
    assert_eq!(exporter.count("opened").await, 500);
    let newest = open_alerts(&simulator)[899];
    simulator.act(newest, Action::Ticket).unwrap();
    simulator.inject(FaultRule {
        times: Some(2),
        ..at_page(1, Fault::status(400))
    });
    eventually("polls ask for less", || async {
        simulator.requests().with_status(400) == 2
    })
    .await;
    exporter.wait_for_poll().await;
    simulator.clear_faults();
    exporter.wait_for("opened", 900).await;
}

/// Starts an exporter whose larger pages the server refuses at first.
async fn with_smaller_pages(options: simulator::Options) -> (Simulator, Exporter) {
    let simulator = start(options).await;
    let refused = Fault::status(400);
    simulator.inject(FaultRule::next(2, Endpoint::Search, refused));
    let mut plan = plan(&simulator.url());
    plan.searches[0].page_size = 500;
    plan.searches[0].full_read_interval = Duration::from_secs(1);
    let exporter = Exporter::start(plan).await;
    (simulator, exporter)
}

/// The same, until all is read. By now, the server shows larger pages as `oversized` says.
async fn complete_with_smaller_pages(alerts: usize, oversized: Oversized) -> (Simulator, Exporter) {
    let options = simulator::Options {
        max_page_size: 100,
        oversized,
        ..world(alerts)
    };
    let (simulator, exporter) = with_smaller_pages(options).await;
    exporter.wait_until_complete().await;
    (simulator, exporter)
}

async fn try_larger_pages(exporter: &Exporter) {
    let polls = exporter.polls_now();
    eventually("polls try larger pages", || async {
        exporter.polls() > polls + 12.0
    })
    .await;
}

/// Larger pages are first refused, and then empty.
#[tokio::test(flavor = "multi_thread")]
async fn larger_pages_that_show_nothing_are_not_asked_for() {
    for oversized in [Oversized::Blank, Oversized::Empty] {
        let (simulator, exporter) = complete_with_smaller_pages(300, oversized).await;
        for opened in 1..4 {
            try_larger_pages(&exporter).await;
            simulator.open_many(DEMO_TENANT, 1).unwrap();
            exporter.wait_for("opened", 300 + opened).await;
        }
        assert_eq!(exporter.count("left").await, 0);
    }
}

/// Larger pages are first refused. From the reload on they are empty, which nobody could tell from
/// a result without alerts.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_does_not_ask_for_larger_pages_again() {
    let options = simulator::Options {
        max_page_size: 100,
        oversized: Oversized::Reject,
        ..world(300)
    };
    let simulator = start(options).await;
    let mut plan = plan(&simulator.url());
    plan.searches[0].page_size = 500;
    plan.searches[0].full_read_interval = Duration::from_secs(600);
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(&folder, store::JOURNAL_LIMIT).await;
    let (mut pollers, board, _) = pollers(&store, &Health::default());
    let open = || {
        board.searches()[0]
            .result
            .as_ref()
            .map(|it| it.total_results)
    };
    pollers.apply(plan.clone()).await.unwrap();
    eventually("less is asked for", || async { open() == Some(300) }).await;
    simulator.set_options(|options| options.oversized = Oversized::Empty);
    plan.record.max_description_length += 1;
    pollers.apply(plan).await.unwrap();
    simulator.open_many(DEMO_TENANT, 1).unwrap();
    eventually("the new task polls", || async { open() != Some(300) }).await;
    assert_eq!(open(), Some(301));
    pollers.stop().await;
    store.close().await;
}

/// While there are no alerts, nobody knows whether larger pages would show some.
#[tokio::test(flavor = "multi_thread")]
async fn larger_pages_are_not_asked_for_because_they_show_an_empty_result() {
    let (simulator, exporter) = complete_with_smaller_pages(0, Oversized::Blank).await;
    try_larger_pages(&exporter).await;
    simulator.open_many(DEMO_TENANT, 3).unwrap();
    exporter.wait_for("opened", 3).await;
}

/// Lets the oldest of 250 alerts leave after 200 others have pushed it out of what the server
/// shows.
async fn leave_out_of_sight(simulator: &Simulator, exporter: &Exporter) {
    let oldest = open_alerts(simulator)[0];
    simulator.open_many(DEMO_TENANT, 200).unwrap();
    exporter.wait_for("opened", 450).await;
    simulator.act(oldest, Action::Ticket).unwrap();
}

/// Servers with a search engine show only the first so many results. The alerts that come in sight
/// are followed.
#[tokio::test(flavor = "multi_thread")]
async fn a_departure_is_noticed_where_the_server_does_not_show_the_whole_result() {
    let mut options = world(250);
    options.result_window = Some(300);
    let simulator = start(options).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    leave_out_of_sight(&simulator, &exporter).await;
    exporter.wait_for("left", 1).await;
    assert_eq!(exporter.sample("opsramp_search_complete{"), 0.0);
    assert_eq!(exporter.sample("opsramp_up{"), 1.0);
}

/// The same, but the server cannot be asked by id either. Then the alerts' own pages tell, unless
/// the server finds none of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_departure_is_noticed_where_the_server_neither_shows_it_all_nor_can_be_asked_by_id() {
    let finds_pages = async |finds_pages: bool| {
        let mut options = world(250);
        options.result_window = Some(300);
        options.search_by_id = false;
        let simulator = start(options).await;
        let exporter = Exporter::start(plan(&simulator.url())).await;
        exporter.wait_until_complete().await;
        if !finds_pages {
            let not_found = Fault::status(404);
            simulator.inject(FaultRule::always(not_found).at(Endpoint::Alert));
        }
        leave_out_of_sight(&simulator, &exporter).await;
        eventually("all that are not shown are looked up", || async {
            simulator.requests().by_endpoint.get(&Endpoint::Alert) >= Some(&150)
        })
        .await;
        if finds_pages {
            exporter.wait_for("left", 1).await;
        }
        exporter.wait_for_poll().await;
        exporter.wait_for_poll().await;
        exporter.count("left").await
    };
    assert_eq!(tokio::join!(finds_pages(true), finds_pages(false)), (1, 0));
}

/// If the server does not show more pages, a poll that would read on does not fail.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_beyond_what_the_server_shows_is_no_failure() {
    let mut options = world(250);
    options.result_window = Some(300);
    let simulator = start(options).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    simulator.open_many(DEMO_TENANT, 350).unwrap();
    exporter.wait_for("opened", 550).await;
    exporter.wait_for_poll().await;
    assert_eq!(exporter.sample("opsramp_poll_failures_total{"), 0.0);
    assert_eq!(exporter.sample("opsramp_up{"), 1.0);
}
