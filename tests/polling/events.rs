//! Which events there are: opened, changed, left and why; across restarts, and at the first start.

use super::*;

/// Answers every search with these results from now on, instead of the answer `before`.
fn answer(
    simulator: &Simulator,
    before: Option<u64>,
    results: &[serde_json::Value],
    total: usize,
) -> u64 {
    let text = serde_json::json!({
        "results": results, "totalResults": total, "pageNo": 1, "pageSize": 100, "nextPage": false,
    });
    let text = text.to_string();
    let rule = FaultRule::always(Fault::Body { text }).at(Endpoint::Search);
    let number = simulator.inject(rule);
    if let Some(before) = before {
        simulator.remove_fault(before);
    }
    number
}

/// Delivers all waiting events, and returns their records.
async fn deliver_all(store: &Store) -> Vec<serde_json::Value> {
    let batch = store.pending(SINK, 1_000_000, usize::MAX).await.unwrap();
    let last = batch.events.last().expect("something waits").position;
    store.acknowledge(SINK, last, None).await.unwrap();
    let records = batch.events.iter();
    records
        .map(|pending| serde_json::from_slice(&pending.event.body).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_opens_changes_and_leaves() {
    let simulator = start(world(0)).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    // At one stroke: a poll in between would see a change.
    let id = simulator.world(|world, now| {
        let id = world.open(DEMO_TENANT, &Spec::default(), now).unwrap();
        world.set_state(id, State::Warning, now).unwrap();
        id
    });
    exporter.wait_for("opened", 1).await;
    simulator.set_state(id, State::Critical).unwrap();
    exporter.wait_for("changed", 1).await;
    simulator.act(id, Action::Acknowledge).unwrap();
    exporter.wait_for("left", 1).await;
    let events = exporter.events().await;
    let event = |kind: &str| {
        events
            .iter()
            .find(|event| event["event"] == kind)
            .unwrap()
            .clone()
    };
    let changed = event("changed");
    assert_eq!(
        (&changed["state"], &changed["previous_state"]),
        (&"Critical".into(), &"Warning".into())
    );
    assert_eq!(changed["tenant"], "name of client_1");
    let left = event("left");
    assert_eq!(left["reason"], "acknowledged");
    assert_eq!(
        (&left["status"], &left["previous_status"]),
        (&"Acknowledged".into(), &"New".into())
    );
    assert_eq!(left["alert_id"], changed["alert_id"]);
    assert!(exporter.is_complete());
    assert_eq!(exporter.sample("opsramp_search_total_results"), 0.0);
    let before = exporter.sample("opsramp_alert_detection_delay_seconds_count");
    // The alert comes back: that is a new opening, with an event id of its own.
    simulator.act(id, Action::Reopen).unwrap();
    exporter.wait_for("opened", 2).await;
    let events = exporter.events().await;
    let ids: std::collections::BTreeSet<_> = events
        .iter()
        .map(|event| event["event_id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), events.len());
    // The alert was first found long ago, so its age counts as no detection delay; that of the
    // next alert does.
    simulator.open_many(DEMO_TENANT, 1).unwrap();
    let delays = || exporter.sample("opsramp_alert_detection_delay_seconds_count");
    eventually("another one is opened", || async {
        exporter.count("opened").await == 3 && delays() > before
    })
    .await;
    exporter.wait_for_poll().await;
    assert_eq!(delays() - before, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_repeats_nothing_and_misses_nothing() {
    let simulator = start(world(250)).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    assert_eq!(exporter.count("opened").await, 250);
    let folder = exporter.stop().await;
    let new = simulator.open_many(DEMO_TENANT, 120).unwrap();
    simulator.act(new[0], Action::Close).unwrap();
    let exporter = Exporter::start_in(folder, plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    exporter.wait_for_poll().await;
    assert_eq!(exporter.count("opened").await, 250 + 119);
    assert_eq!(exporter.count("changed").await, 0);
}

/// An alert known from the store is compared like one known from an answer.
#[tokio::test(flavor = "multi_thread")]
async fn blanks_around_a_state_are_no_change_after_a_restart() {
    let alert = |repeats: u32| {
        serde_json::json!({
            "uniqueId": "1", "currentState": "Critical ", "status": " New", "repeatCount": repeats,
        })
    };
    let simulator = start(world(0)).await;
    let before = answer(&simulator, None, &[alert(1)], 1);
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    let folder = exporter.stop().await;
    let exporter = Exporter::start_in(folder, plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    answer(&simulator, Some(before), &[alert(2)], 1);
    exporter.wait_for_poll().await;
    assert_eq!(exporter.count("changed").await, 0);
}

/// A later version may have written the alert, or a disk may have lost a part of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_alert_that_cannot_be_read_is_no_change_and_is_stored_anew() {
    let simulator = start(world(50)).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    let folder = exporter.stop().await;
    let state = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    let damaged = state.execute("UPDATE alert SET body = x'00'", []).unwrap();
    assert_eq!(damaged, 50);
    drop(state);
    let exporter = Exporter::start_in(folder, plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    exporter.wait_for_poll().await;
    assert_eq!(exporter.count("opened").await, 50);
    assert_eq!(exporter.count("changed").await, 0);
    let folder = exporter.stop().await;
    let state = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    let left: u32 = state
        .query_row("SELECT count(*) FROM alert WHERE body = x'00'", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_read_that_cannot_be_stored_goes_on_where_it_stopped() {
    let simulator = start(world(1_500)).await;
    let mut plan = plan(&simulator.url());
    plan.searches[0].interval = Duration::from_secs(30);
    let folder = Arc::new(tempfile::tempdir().unwrap());
    // Four pages fill the journal; the test makes room only after storing has failed.
    let exporter = Exporter::start_with(folder, plan, 450).await;
    let mut ids = Vec::new();
    let mut failures = 0;
    while ids.len() < 1_500 {
        let last_failure = || exporter.status().last_error.as_ref().map(|error| error.at);
        let before = last_failure();
        let is_complete = || exporter.is_complete();
        eventually("the journal is full, or all is read", || async {
            last_failure() != before || is_complete()
        })
        .await;
        failures += u32::from(last_failure() != before);
        let delivered = deliver_all(&exporter.store).await;
        let read = delivered.iter().map(|event| event["alert_id"].as_str());
        ids.extend(read.map(|id| id.unwrap().to_owned()));
    }
    exporter.wait_until_complete().await;
    let lines = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((ids.len(), lines), (1_500, 1_500));
    assert_eq!(failures, 3);
    assert_eq!(
        exporter.status().last_error.as_ref().unwrap().reason,
        "store"
    );
    assert_eq!(exporter.sample("opsramp_alert_events_total{"), 1_500.0);
    let requests = simulator.requests().searches(DEMO_TENANT);
    assert!(requests <= 15 + 2 * 3, "{requests} requests");
}

/// There may never again be a commit that there is room for.
#[tokio::test(flavor = "multi_thread")]
async fn that_the_journal_is_full_is_said_until_there_is_room() {
    the_journal_is_full_until_there_is_room(|simulator| {
        // Polls succeed, and store nothing.
        act_on_all(simulator, &open_alerts(simulator), Action::Close);
    })
    .await;
}

/// Polls that fail do not ask for room in the journal.
#[tokio::test(flavor = "multi_thread")]
async fn that_the_journal_is_full_is_not_said_because_the_server_is_down() {
    the_journal_is_full_until_there_is_room(|simulator| {
        simulator.inject(FaultRule::always(Fault::status(503)).at(Endpoint::Search));
    })
    .await;
}

async fn the_journal_is_full_until_there_is_room(then: impl FnOnce(&Simulator)) {
    let simulator = start(world(1)).await;
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let exporter = Exporter::start_with(folder, plan(&simulator.url()), 2).await;
    exporter.wait_until_complete().await;
    simulator.open_many(DEMO_TENANT, 2).unwrap();
    let is_full = || !exporter.health.notices().is_empty();
    eventually("the journal is full", || async { is_full() }).await;
    then(&simulator);
    simulator.reset_requests();
    eventually("it is polled", || async {
        simulator.requests().searches(DEMO_TENANT) > 2
    })
    .await;
    assert!(is_full());
    deliver_all(&exporter.store).await;
    eventually("it is not full any more", || async { !is_full() }).await;
}

/// If the events of one search are too many for the journal, they stay so, whatever room other
/// searches find.
#[tokio::test(flavor = "multi_thread")]
async fn that_the_journal_is_full_is_said_as_long_as_anybody_is_refused() {
    const SMALL: &str = "client_2";
    let mut options = world(0);
    options.tenants.push(tenant(SMALL, 0));
    let simulator = start(options).await;
    let mut plan = plan(&simulator.url());
    plan.accounts = vec![account(&simulator.url(), &[DEMO_TENANT, SMALL])];
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let exporter = Exporter::start_with(folder, plan, 10).await;
    eventually("all is read", || async {
        exporter.sample("opsramp_search_complete{") == 2.0
    })
    .await;
    simulator.open_many(DEMO_TENANT, 11).unwrap();
    let health = exporter.health.clone();
    let full = health.clone();
    let is_full = move || full.notices().len() == 1;
    eventually("the journal is full", || async { is_full() }).await;
    for number in 1..=5 {
        simulator.open_many(SMALL, 1).unwrap();
        let mut said = true;
        eventually("the other's is stored", || {
            said &= is_full();
            async { exporter.count("opened").await == number }
        })
        .await;
        assert!(said && is_full());
    }
    exporter.stop().await;
    assert!(health.notices().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_departure_from_a_long_result_is_noticed_and_explained() {
    let simulator = start(world(1_000)).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    let ids = open_alerts(&simulator);
    simulator.act(ids[500], Action::Ticket).unwrap();
    simulator.act(ids[700], Action::Close).unwrap();
    exporter.wait_for("left", 2).await;
    let reasons: std::collections::BTreeSet<String> = exporter
        .events()
        .await
        .iter()
        .filter(|event| event["event"] == "left")
        .map(|event| event["reason"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        reasons.into_iter().collect::<Vec<_>>(),
        ["closed", "ticketed"]
    );
    exporter.wait_until_complete().await;
}

/// A passing failure of the API does not cost a departure its reason.
#[tokio::test(flavor = "multi_thread")]
async fn why_an_alert_left_is_asked_again_where_that_may_help() {
    let status = Fault::status;
    let too_large = MAX_RESPONSE_SIZE + (1 << 20);
    for (fault, times, reason) in [
        (status(503), 2, "acknowledged"),
        (Fault::Reset, 1, "acknowledged"),
        (status(400), 1, "acknowledged"),
        (status(400), 2, "unknown"),
        // The server gives no other token.
        (status(401), 1, "acknowledged"),
        (status(401), 2, "unknown"),
        // What is forbidden or too large stays so.
        (status(403), 1, "unknown"),
        (Fault::Huge { bytes: too_large }, 1, "unknown"),
    ] {
        let simulator = start(world(1)).await;
        let exporter = Exporter::start(plan(&simulator.url())).await;
        exporter.wait_until_complete().await;
        let name = format!("{fault:?}");
        simulator.inject(FaultRule::next(times, Endpoint::Alert, fault));
        let ids = open_alerts(&simulator);
        simulator.act(ids[0], Action::Acknowledge).unwrap();
        exporter.wait_for("left", 1).await;
        let events = exporter.events().await;
        let left = events
            .iter()
            .find(|event| event["event"] == "left")
            .unwrap();
        assert_eq!(left["reason"], reason, "{name}");
    }
}

/// Makes alerts' own pages hang, so that the reason of a departure does not arrive during the
/// test.
fn let_own_pages_hang(simulator: &Simulator) {
    simulator.inject(
        FaultRule::always(Fault::SlowHeaders {
            seconds: Duration::from_secs(30),
        })
        .at(Endpoint::Alert),
    );
}

/// If an alert leaves and another one opens with the same id while the exporter asks for the
/// reason, neither is lost.
#[tokio::test(flavor = "multi_thread")]
async fn an_alert_that_opens_anew_while_its_reason_is_waited_for_has_left_and_opened() {
    let simulator = start(world(1)).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    let_own_pages_hang(&simulator);
    let id = open_alerts(&simulator)[0];
    simulator.act(id, Action::Close).unwrap();
    eventually("it is on its way out", || async {
        exporter.sample("opsramp_open_alerts{") == 0.0
    })
    .await;
    simulator.world(|world, now| {
        let members = serde_json::json!({
            "createdDate": "2026-03-01T10:40:47+0000",
            "subject": "second",
        });
        let members = members.as_object().unwrap().clone();
        world.set_members(id, members, now).unwrap();
        world.act(id, Action::Reopen, now).unwrap();
    });
    eventually("left and opened", || async {
        exporter.events().await.len() == 3
    })
    .await;
    // The next process goes on where this one stopped.
    let exporter = Exporter::start_in(exporter.stop().await, plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    simulator.clear_faults();
    simulator.act(id, Action::Close).unwrap();
    exporter.wait_for("left", 2).await;
    let events = exporter.events().await;
    let told: Vec<_> = events.iter().map(|event| &event["event"]).collect();
    assert_eq!(told, ["opened", "left", "opened", "left"]);
    let reasons = [&events[1]["reason"], &events[3]["reason"]];
    assert_eq!(reasons, ["unknown", "closed"]);
    assert_eq!(events[1]["message"], events[0]["message"]);
    assert_eq!(events[2]["message"], "second");
    let ids: std::collections::BTreeSet<_> = events
        .iter()
        .map(|event| event["event_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), events.len());
}

/// However many alerts leave at once, their lines wait only once for reasons that do not arrive.
#[tokio::test(flavor = "multi_thread")]
async fn many_departures_wait_for_their_reasons_no_longer_than_one() {
    let simulator = start(world(500)).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    let_own_pages_hang(&simulator);
    // The alerts are far down in a long result, so that they are asked for by id, fifty at a time.
    let ids = open_alerts(&simulator)[..200].to_vec();
    act_on_all(&simulator, &ids, Action::Close);
    let began = Instant::now();
    exporter.wait_for("left", ids.len()).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(25), "{took:?}");
    simulator.clear_faults();
    let id = simulator.open_many(DEMO_TENANT, 1).unwrap()[0];
    exporter.wait_for("opened", 501).await;
    simulator.act(id, Action::Close).unwrap();
    exporter.wait_for("left", ids.len() + 1).await;
    let events = exporter.events().await;
    let mut reasons = events
        .iter()
        .filter(|event| event["event"] == "left")
        .map(|event| event["reason"].as_str().unwrap());
    assert_eq!(reasons.next_back(), Some("closed"), "the next is asked for");
    assert!(reasons.all(|reason| reason == "unknown"));
}

/// How many own pages are asked for at once.
const AT_ONCE: u64 = 8;

/// How many own pages have been asked for. The simulator counts a request that hangs only when it
/// notices that nobody waits for it any more, so this waits until it has counted as many as the
/// exporter.
async fn own_pages_asked(simulator: &Simulator, exporter: &Exporter) -> u64 {
    let asked = || simulator.requests().count(Endpoint::Alert);
    let told =
        || exporter.sample("opsramp_api_requests_total{account=\"default\",endpoint=\"alert\"");
    eventually("all is counted", || async { told() == asked() as f64 }).await;
    asked()
}

/// A request for an alert's own page is counted in the metrics, also if nobody waits for it any
/// more. A page that would come too late is not asked for.
#[tokio::test(flavor = "multi_thread")]
async fn own_pages_that_would_come_too_late_are_not_asked_for() {
    let simulator = start(world(0)).await;
    let mut plan = plan(&simulator.url());
    plan.fetch_details = true;
    plan.accounts[0].options.timeout = PATIENCE;
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    simulator
        .inject(FaultRule::always(Fault::SlowHeaders { seconds: PATIENCE }).at(Endpoint::Alert));
    let ids = simulator.open_many(DEMO_TENANT, 40).unwrap();
    exporter.wait_for("opened", 40).await;
    // Fewer, if a busy machine does not get to all of them before they would come too late.
    let first = own_pages_asked(&simulator, &exporter).await;
    assert!((1..=AT_ONCE).contains(&first), "{first}");
    act_on_all(&simulator, &ids[..20], Action::Close);
    exporter.wait_for("left", 20).await;
    let then = own_pages_asked(&simulator, &exporter).await - first;
    assert!((1..=AT_ONCE).contains(&then), "{then}");
}

/// A burst uses up what the background may of the allowance by id.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_burst_a_new_alert_still_gets_its_description() {
    let simulator = start(world(0)).await;
    let mut plan = plan(&simulator.url());
    plan.fetch_details = true;
    plan.searches[0].page_size = 500;
    plan.accounts[0].options.timeout = PATIENCE;
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    for (alerts, opened) in [(450, 450), (1, 451)] {
        simulator.open_many(DEMO_TENANT, alerts).unwrap();
        exporter.wait_for("opened", opened).await;
    }
    let events = exporter.events().await;
    assert!(events[450]["description"].is_string(), "{}", events[450]);
}

/// A line waits for the details of all pages before its own. So once a page of a poll or of a full
/// read has waited in vain, its further pages do not wait.
#[tokio::test(flavor = "multi_thread")]
async fn many_pages_wait_no_longer_for_details_than_one() {
    // A search without known alerts leaves all further pages to a full read.
    for known in [50, 0] {
        let simulator = start(world(known)).await;
        let mut plan = plan(&simulator.url());
        plan.at_first_start = AtFirstStart::Skip;
        plan.fetch_details = true;
        plan.searches[0].page_size = 10;
        plan.accounts[0].options.timeout = PATIENCE;
        let exporter = Exporter::start(plan).await;
        exporter.wait_until_complete().await;
        let before = own_pages_asked(&simulator, &exporter).await;
        simulator.inject(
            FaultRule::always(Fault::SlowHeaders { seconds: PATIENCE }).at(Endpoint::Alert),
        );
        simulator.open_many(DEMO_TENANT, 100).unwrap();
        exporter.wait_for("opened", 100).await;
        let asked = own_pages_asked(&simulator, &exporter).await - before;
        assert!((1..=AT_ONCE).contains(&asked), "{known} known: {asked}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_bounded_and_items_that_are_no_alerts_are_skipped() {
    let simulator = start(world(300)).await;
    let mut plan = plan(&simulator.url());
    plan.searches[0].group_by = vec![GroupLabel::Source, GroupLabel::Priority];
    plan.searches[0].max_groups = 5;
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    let groups = Arc::clone(&exporter.status().result.as_ref().unwrap().groups);
    assert_eq!(groups.len(), 6, "five and the others");
    assert_eq!(groups.iter().map(|(_, count)| count).sum::<u64>(), 300);
    assert_eq!(exporter.sample("opsramp_open_alerts{"), 300.0);
    simulator.inject(FaultRule::always(Fault::WrongItems).at(Endpoint::Search));
    exporter.wait_for_poll().await;
    exporter.wait_for_poll().await;
    assert_eq!(exporter.sample("opsramp_up{"), 1.0);
    assert_eq!(exporter.count("left").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_that_were_there_before_can_be_skipped() {
    let simulator = start(world(250)).await;
    let mut plan = plan(&simulator.url());
    plan.at_first_start = AtFirstStart::Skip;
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    assert_eq!(exporter.events().await.len(), 0);
    simulator.open_many(DEMO_TENANT, 2).unwrap();
    exporter.wait_for("opened", 2).await;
    let old = open_alerts(&simulator)[200];
    simulator.set_state(old, State::Info).unwrap();
    simulator.act(old, Action::Close).unwrap();
    exporter.wait_for("left", 1).await;
}

/// Others that are asked for would lack the requests.
#[tokio::test(flavor = "multi_thread")]
async fn details_of_skipped_alerts_are_asked_for_if_later_lines_or_labels_need_them() {
    for (events, group_by, is_needed) in [
        (vec![EventKind::Opened], GroupLabel::State, false),
        (vec![EventKind::Opened], GroupLabel::Source, true),
        (
            vec![EventKind::Opened, EventKind::Left],
            GroupLabel::State,
            true,
        ),
        (
            vec![EventKind::Opened, EventKind::Changed],
            GroupLabel::State,
            true,
        ),
    ] {
        let simulator = start(world(20)).await;
        let mut plan = plan(&simulator.url());
        plan.at_first_start = AtFirstStart::Skip;
        plan.fetch_details = true;
        plan.record.events = events;
        plan.searches[0].group_by = vec![group_by];
        let exporter = Exporter::start(plan).await;
        exporter.wait_until_complete().await;
        let asked = simulator.requests().count(Endpoint::Alert);
        assert_eq!(asked > 0, is_needed, "{group_by:?}");
        exporter.stop().await;
    }
}

/// An old alert that enters after the first look at the result is news, however little the result
/// adds up. An alert that is new by the server's clock is news in any case.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_skipped_for_ever() {
    let alert = |id: u32, created: &str| {
        serde_json::json!({
            "uniqueId": id.to_string(), "currentState": "Critical", "status": "New",
            "createdDate": created,
        })
    };
    let old = |id| alert(id, "2016-01-01T00:00:00+0000");
    let mut options = world(0);
    options.clock_skew = -3_600;
    let simulator = start(options).await;
    let mut plan = plan(&simulator.url());
    plan.at_first_start = AtFirstStart::Skip;
    // The first answer shows no alerts; later ones count one more alert than they show.
    let nothing = Fault::Body {
        text: r#"{"results": [], "totalResults": 0}"#.to_owned(),
    };
    simulator.inject(FaultRule::next(1, Endpoint::Search, nothing));
    let now = opsramp_exporter::clock::now().as_millisecond();
    let new = alert(9, &(now + 60_000 - 3_600_000).to_string());
    let results = [new.clone(), old(1), old(2)];
    let before = answer(&simulator, None, &results, 4);
    let exporter = Exporter::start(plan).await;
    eventually("it is polled again and again", || async {
        exporter.polls() >= 10.0
    })
    .await;
    let ids = || async {
        let events = exporter.events().await;
        let ids = events.iter().map(|event| event["alert_id"].to_string());
        ids.collect::<String>()
    };
    assert_eq!(ids().await, "\"9\"");
    let results = [old(3), new, old(1), old(2)];
    answer(&simulator, Some(before), &results, 5);
    eventually("it is logged", || async { ids().await == "\"9\"\"3\"" }).await;
}

/// Details that only an alert's own page has are kept as long as the alert is known.
#[tokio::test(flavor = "multi_thread")]
async fn details_outlast_the_next_change() {
    let simulator = start(world(1)).await;
    let id = open_alerts(&simulator)[0];
    let alert = |state: &str| serde_json::json!({"uniqueId": id.to_string(), "currentState": state, "status": "New"});
    let before = answer(&simulator, None, &[alert("Warning")], 1);
    let mut plan = plan(&simulator.url());
    plan.fetch_details = true;
    plan.searches[0].group_by = vec![GroupLabel::Source];
    plan.accounts[0].options.timeout = PATIENCE;
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    answer(&simulator, Some(before), &[alert("Critical")], 1);
    exporter.wait_for("changed", 1).await;
    let events = exporter.events().await;
    assert!(events[0]["source"].is_string(), "{}", events[0]);
    assert_eq!(events[1]["source"], events[0]["source"]);
    exporter.wait_for_poll().await;
    let groups = Arc::clone(&exporter.status().result.as_ref().unwrap().groups);
    assert_eq!(*groups[0].0[0], *events[0]["source"].as_str().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn details_bring_the_description() {
    let simulator = start(world(0)).await;
    let mut plan = plan(&simulator.url());
    plan.fetch_details = true;
    plan.accounts[0].options.timeout = PATIENCE;
    // The last ten polls are told. That of the new alerts must still be one of them.
    plan.searches[0].interval = Duration::from_millis(500);
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    simulator.open_many(DEMO_TENANT, 3).unwrap();
    exporter.wait_for("opened", 3).await;
    assert!(
        exporter
            .events()
            .await
            .iter()
            .all(|event| event["description"].is_string())
    );
    eventually("the requests for details count as the poll's", || async {
        let polls = &exporter.status().polls;
        polls.iter().any(|poll| poll.requests == 1 + 3)
    })
    .await;
    // A page that hangs delays a line by two seconds at most.
    simulator
        .inject(FaultRule::always(Fault::SlowHeaders { seconds: PATIENCE }).at(Endpoint::Alert));
    simulator.open_many(DEMO_TENANT, 1).unwrap();
    let began = Instant::now();
    exporter.wait_for("opened", 4).await;
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
}
