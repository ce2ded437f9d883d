//! What reading costs: quiet polls, bursts, departures, totals that never add up.

use super::*;

#[test]
fn a_quiet_poll_costs_one_request() {
    let mut run = run_with(1000, 100);
    for _ in 0..10 {
        run.poll(false);
        assert!(!run.background(false));
    }
    assert_eq!(run.requests, 10);
    assert!(run.engine.is_complete());
}

#[test]
fn a_reload_costs_no_full_read_before_it_is_due() {
    let mut run = run_with(300, 100);
    let due = due(&run.engine);
    run.poll(false);
    run.reload();
    assert!(run.engine.is_complete(), "another one may follow at once");
    run.now = due - Duration::from_secs(1);
    run.poll(false);
    assert!(run.engine.is_complete());
    assert!(!run.background(false));
    assert_eq!(run.requests, 2);
    run.now = due;
    run.poll(false);
    while run.background(false) {}
    assert_eq!(run.requests, 2 + 3);
}

/// The count tells nothing of changes.
#[test]
fn a_start_that_does_not_go_on_with_a_complete_result_has_all_read_though_the_count_adds_up() {
    let mut run = run_with(250, 100);
    run.engine.page_missed(2);
    run.reload();
    run.poll(false);
    assert_eq!(run.engine.task(), Some(Task::Page(2)));
}

#[test]
fn a_reload_while_something_is_on_its_way_out_has_all_read_again() {
    let mut run = run_with(1000, 100);
    run.server.act(&Act::Close(5));
    run.poll(false);
    while !run.engine.has_departures() {
        assert!(run.background(false));
    }
    run.reload();
    assert!(!run.engine.is_complete());
    run.poll(false);
    while run.background(false) {}
    run.assert_agreement();
}

#[test]
fn a_burst_costs_a_request_a_page() {
    let mut run = run_with(1000, 100);
    for _ in 0..19 {
        run.server.act(&Act::Open(50));
    }
    poll_to_the_end(&mut run);
    assert!(!run.background(false));
    assert_eq!(run.requests, 10);
    run.assert_agreement();
}

#[test]
fn a_burst_into_an_empty_result_costs_a_request_a_page() {
    let mut run = run_with(0, 100);
    for _ in 0..19 {
        run.server.act(&Act::Open(50));
    }
    poll_to_the_end(&mut run);
    run.assert_agreement();
    while run.background(false) {}
    assert_eq!(run.requests, 10);
}

#[test]
fn a_poll_that_finds_new_alerts_and_departed_ones_costs_one_request() {
    let mut run = run_with(400, 100);
    run.server.act(&Act::CloseMany(100, 10));
    run.server.clock += 3;
    run.server.act(&Act::Open(5));
    poll_to_the_end(&mut run);
    assert_eq!(run.requests, 1);
    // The full read finds out who has left.
    while run.background(false) {}
    run.assert_agreement();
}

/// Reads the first page of a burst of 250 alerts, lets 100 more open and `others` happen, and ends
/// the poll. Returns how many alerts its further pages have opened.
fn opened_behind_a_push(run: &mut Run, others: &[Act]) -> usize {
    run.server.clock += 3;
    run.server.act(&Act::Open(250));
    run.poll(false);
    run.server.clock += 3;
    run.server.act(&Act::Open(100));
    for act in others {
        run.server.act(act);
    }
    let first = run.logged_open.clone();
    assert!(run.poll_page.is_some());
    poll_to_the_end(run);
    run.logged_open.difference(&first).count()
}

/// The first page of a burst is read, and another burst pushes it on by a page.
#[test]
fn a_poll_that_sees_again_what_it_has_read_reads_on() {
    let mut run = run_with(200, 100);
    assert_eq!(opened_behind_a_push(&mut run, &[]), 150);
    run.now += Duration::from_secs(30);
    poll_to_the_end(&mut run);
    run.assert_agreement();
}

/// As many as a page of alerts open while one of those behind them leaves.
#[test]
fn a_poll_reads_on_though_a_departure_hides_that_it_was_pushed_on_by_a_page() {
    let mut run = run_with(200, 100);
    assert_eq!(opened_behind_a_push(&mut run, &[Act::Close(5)]), 150);
}

/// However many alerts open between two pages, only those that were read come again.
#[test]
fn a_burst_between_two_pages_of_a_poll_costs_a_request_a_page() {
    let mut run = run_with(200, 100);
    run.server.clock += 3;
    run.server.act(&Act::Open(100));
    run.poll(false);
    run.poll_page = Some(2);
    run.server.clock += 3;
    for _ in 0..8 {
        run.server.act(&Act::Open(100));
    }
    poll_to_the_end(&mut run);
    // Eight pages of the burst, of which the first moved on unseen; the page that was read before;
    // and one behind it.
    assert_eq!(run.requests, 10);
    poll_to_the_end(&mut run);
    run.assert_agreement();
    assert!(!run.background(false));
}

#[test]
fn a_poll_ends_though_alerts_open_between_all_of_its_pages() {
    let mut run = run_with(1000, 100);
    run.server.clock += 3;
    run.server.act(&Act::Open(150));
    run.poll(false);
    while run.poll_page.is_some() {
        run.server.clock += 3;
        run.server.act(&Act::Open(1));
        run.poll(false);
    }
    assert_eq!(run.requests, 4);
}

/// A server may count whatever it likes.
#[test]
fn totals_that_rise_without_bound_between_pages_are_no_overflow() {
    let mut run = run_with(200, 100);
    for (page, total) in (1..).zip([0, u64::MAX, 0, u64::MAX]) {
        let facts = Facts {
            page,
            shown: 100,
            unreadable: 0,
            total,
            page_size: 100,
            next: Some(page + 1),
        };
        run.engine.compare_with_page_before(&facts);
        assert_eq!(run.engine.is_pushed_on(&facts), total > 0);
    }
}

#[test]
fn departures_end_no_poll_where_alerts_may_have_slipped_or_the_background_has_found_some() {
    let mut run = run_with(400, 100);
    run.engine.limits.pages.note_slipped();
    run.server.act(&Act::CloseMany(100, 10));
    run.server.clock += 3;
    run.server.act(&Act::Open(5));
    poll_to_the_end(&mut run);
    assert_eq!(run.requests, 2);
}

#[test]
fn a_first_start_costs_a_request_a_page() {
    let mut run = Run::new(false, 100, true);
    for _ in 0..19 {
        run.server.act(&Act::Open(50));
    }
    run.poll(false);
    while run.background(false) {}
    assert_eq!(run.requests, 10);
    run.assert_agreement();
}

#[test]
fn a_poll_reads_on_behind_new_alerts_that_the_background_has_found_before_it() {
    let mut run = run_with(200, 100);
    // A full read is under way when the burst comes, and reads its first page.
    run.now += Duration::from_secs(600);
    run.poll(false);
    run.server.act(&Act::Close(150));
    run.background(false);
    run.server.clock += 3;
    run.server.act(&Act::Open(250));
    assert!(run.engine.wants(1), "the total fell");
    run.background(false);
    assert_eq!(run.logged_open.len(), 300);
    run.now += Duration::from_secs(30);
    run.requests = 0;
    poll_to_the_end(&mut run);
    let open = run.open_on_server();
    assert!(open.is_subset(&run.logged_open));
    assert_eq!(run.requests, 4);
    // They are news only once.
    run.requests = 0;
    poll_to_the_end(&mut run);
    assert_eq!(run.requests, 1);
}

#[test]
fn an_alert_that_slips_onto_a_page_that_a_poll_has_read_is_found_by_a_full_read() {
    let mut run = run_with(200, 100);
    run.server.clock += 3;
    run.server.act(&Act::Open(150));
    run.poll(false);
    // One of the new alerts on the first page leaves, so that one of those on the second page
    // slips onto the first one. Known is the one that left, unknown the one that slipped.
    let newest = run.server.result()[7].0;
    run.server.alerts.get_mut(&newest).unwrap().open = false;
    run.poll(false);
    assert_eq!(run.poll_page, None);
    assert_eq!(
        run.engine.total(),
        Some(run.engine.tracker().open_count() as u64)
    );
    assert_eq!(run.open_on_server().difference(&run.logged_open).count(), 1);
    assert!(!run.engine.is_complete());
    while run.background(false) {}
    run.assert_agreement();
    assert!(run.engine.is_complete());
}

#[test]
fn a_burst_that_is_too_long_for_a_poll_is_left_to_the_background() {
    let mut run = run_with(200, 4);
    for _ in 0..4 {
        run.server.act(&Act::Open(50));
    }
    poll_to_the_end(&mut run);
    assert_eq!(run.requests, 25);
    run.background(false);
    // Another burst does not make the background begin anew.
    run.server.clock += 3;
    run.server.act(&Act::Open(110));
    poll_to_the_end(&mut run);
    assert_eq!(run.requests, 25 + 1 + 25);
    assert!(run.engine.wants(2));
    while run.background(false) {}
    run.assert_agreement();
}

#[test]
fn a_result_of_one_page_shows_departures_at_once() {
    let mut run = run_with(50, 100);
    run.server.act(&Act::CloseMany(7, 3));
    run.poll(false);
    assert_eq!(run.engine.tracker().open_count(), 47);
    assert!(run.engine.is_complete());
    assert!(matches!(run.engine.task(), Some(Task::Reasons(ids)) if ids.len() == 3));
    run.background(false);
    run.assert_agreement();
    assert_eq!(run.requests, 1);
}

#[test]
fn one_that_opens_anew_while_its_departure_waits_has_left_and_one_that_comes_back_has_not() {
    for act in [Act::OpenAnew(1), Act::Reopen(1)] {
        let mut run = run_with(50, 100);
        let told = run.told_at.clone();
        run.server.act(&Act::CloseMany(7, 3));
        run.poll(false);
        let Some(Task::Reasons(waiting)) = run.engine.task() else {
            panic!("three have left");
        };
        run.server.act(&act);
        run.poll(false);
        let returned = run.open_on_server();
        let returned = waiting
            .iter()
            .find(|id| returned.contains(&id.parse().unwrap()));
        assert_eq!(run.engine.departing(returned.unwrap()), None);
        let id: u32 = returned.unwrap().parse().unwrap();
        let is_told = run.told_at[&id] > told[&id];
        assert_eq!(is_told, matches!(act, Act::OpenAnew(_)));
        assert!(run.logged_open.contains(&id));
        // The alert may leave once more before anything is known of the other alerts.
        run.server.alerts.get_mut(&id).unwrap().open = false;
        run.poll(false);
        let Some(Task::Reasons(mut left)) = run.engine.task() else {
            panic!("three have left");
        };
        left.sort();
        let mut all = waiting.clone();
        all.sort();
        assert_eq!(left, all, "each once");
        run.lied = true;
        while run.background(false) {}
        run.assert_agreement();
    }
}

#[test]
fn a_departure_from_a_long_result_is_noticed_by_the_count() {
    let mut run = run_with(1000, 100);
    run.server.act(&Act::Close(500));
    run.poll(false);
    assert!(!run.engine.is_complete());
    while run.background(false) {}
    run.assert_agreement();
    assert_eq!(
        run.requests,
        1 + 10 + 1,
        "a poll, ten pages, and the question whether it is gone"
    );
    assert!(run.engine.is_complete());
}

#[test]
fn a_count_that_is_ahead_has_all_read_at_once_where_nothing_opens() {
    let mut run = run_with(250, 100);
    run.server.surplus = 1;
    run.poll(false);
    assert_eq!(run.engine.task(), Some(Task::Page(1)));
}

/// One poll alone proves nothing: the count runs ahead of what it has read.
#[test]
fn a_count_that_stays_ahead_has_all_read_after_a_few_polls_though_each_has_news() {
    for open in [50, 250] {
        let mut run = run_with(open, 100);
        run.server.surplus = 1;
        for _ in 0..2 {
            for poll in 1..=SURPLUS_POLLS {
                assert_eq!(run.engine.task(), None, "before poll {poll}");
                run.server.clock += 3;
                run.server.act(&Act::Open(1));
                poll_to_the_end(&mut run);
            }
            assert_eq!(run.engine.task(), Some(Task::Page(1)));
            while run.background(false) {}
            run.now += Duration::from_secs(120);
        }
    }
}

#[test]
fn a_count_that_never_adds_up_is_not_chased_without_rest() {
    let mut run = run_with(1000, 100);
    // The server shows one alert less than it counts.
    let options = run.engine.options;
    let mut reads = 0;
    for _ in 0..100 {
        let page: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        let page = plain(&page);
        let delta = Delta {
            tail_unchanged: true,
            ..Delta::default()
        };
        let facts = Facts {
            page: 1,
            shown: 100,
            unreadable: 0,
            total: 2000,
            page_size: 100,
            next: Some(2),
        };
        run.engine
            .adopt(&Purpose::Poll, &facts, &page, &delta, Vec::new(), run.now);
        reads += usize::from(run.engine.task().is_some());
        while let Some(task) = run.engine.task() {
            let Task::Page(page) = task else {
                run.background(false);
                continue;
            };
            let facts = Facts {
                page,
                next: (page < 20).then_some(page + 1),
                ..facts
            };
            run.engine
                .adopt(&Purpose::FullRead, &facts, &[], &delta, Vec::new(), run.now);
        }
        run.now += options.interval;
    }
    assert!((2..12).contains(&reads), "{reads} full reads in 50 minutes");
}

#[test]
fn full_reads_that_a_page_is_refused_to_are_followed_by_longer_and_longer_rests() {
    let mut run = run_with(250, 100);
    for (took, rest) in [(0, 60), (45, 180), (0, 240), (0, 480), (0, 600), (0, 600)] {
        let [took, rest] = [took, rest].map(Duration::from_secs);
        run.engine.begin_full_read(run.now);
        run.background(false);
        run.now += took;
        run.engine.page_refused(2, run.now);
        assert_eq!(run.engine.rest_until, Some(run.now + rest));
    }
}

/// Makes a full read that takes so many seconds. Returns how many the background rests then.
fn rest_after(run: &mut Run, took: u64) -> u64 {
    run.engine.begin_full_read(run.now);
    run.now += Duration::from_secs(took);
    while run.engine.is_reading() {
        run.background(false);
    }
    let rest = run.engine.rest_until.unwrap() - run.now;
    while run.background(false) {}
    rest.as_secs()
}

#[test]
fn the_background_rests_as_long_as_it_has_read_and_longer_each_time_that_totals_do_not_add_up() {
    let mut run = run_with(250, 100);
    assert_eq!(rest_after(&mut run, 5), 30, "an interval at least");
    assert_eq!(rest_after(&mut run, 200), 200);
    assert_eq!(
        rest_after(&mut run, 6_000),
        600,
        "as long as until the next is due"
    );
    // Departures are what it looks for.
    run.server.act(&Act::CloseMany(0, 5));
    assert_eq!(rest_after(&mut run, 50), 50);
    for surplus in [1, -45] {
        run.server.surplus = surplus;
        for rest in [100, 200, 400, 600] {
            run.server.act(&Act::CloseMany(0, 2));
            let found = rest_after(&mut run, 50);
            // Where fewer are counted than are shown, what is missing may be what is too many.
            assert_eq!(found, if surplus < 0 { 50 } else { rest });
        }
    }
    for rest in [100, 200] {
        assert_eq!(rest_after(&mut run, 50), rest, "nobody is missing");
    }
    run.server.surplus = 0;
    assert_eq!(rest_after(&mut run, 50), 50);
}

#[test]
fn a_count_that_is_ahead_for_a_moment_now_and_then_has_nothing_read() {
    let mut run = run_with(250, 100);
    for surplus in [1, 1, 0, 1, 1, 0] {
        run.server.surplus = surplus;
        run.server.clock += 3;
        run.server.act(&Act::Open(1));
        poll_to_the_end(&mut run);
        assert_eq!(run.engine.task(), None);
    }
}

/// A page with a change could not be taken back, and polls and last pages are waited for.
#[test]
fn only_a_page_of_new_alerts_that_others_follow_is_adopted_before_it_is_stored() {
    let mut run = Run::new(false, 10, true);
    let is_ahead = |run: &mut Run, store_fails| {
        run.background(store_fails);
        run.under_way.is_some()
    };
    run.server.act(&Act::Open(45));
    run.poll(false);
    assert!(run.under_way.is_none());
    assert!(is_ahead(&mut run, true));
    run.background(false);
    assert!(run.engine.wants(2), "it is read once more");
    assert!(is_ahead(&mut run, false));
    run.server.clock += 3;
    run.server.act(&Act::Open(25));
    run.poll(false);
    run.poll(false);
    assert_eq!(run.poll_page, Some(3));
    assert!(run.engine.wants(3));
    run.poll(false);
    assert!(run.under_way.is_none());
    assert!([3, 4, 5, 6].iter().all(|page| {
        assert!(run.engine.wants(*page));
        is_ahead(&mut run, false)
    }));
    assert!(!is_ahead(&mut run, false));
    poll_to_the_end(&mut run);
    for state in [1, 1] {
        let (id, _) = run.server.result()[35];
        let alert = run.server.alerts.get_mut(&id).unwrap();
        (alert.state, alert.updated) = (state, alert.updated + 1);
        run.now += run.engine.options.full_read_interval;
        run.poll(false);
        for page in 2..=4 {
            assert!(run.engine.wants(page));
            assert_eq!(is_ahead(&mut run, false), page < 4);
        }
        while run.background(false) {}
    }
}

#[test]
fn what_could_not_be_read_before_a_refused_page_is_not_looked_for_again() {
    let mut run = run_with(100, 100);
    let ids: Vec<String> = (1..=100).map(|id| id.to_string()).collect();
    let page = plain(&ids);
    let delta = Delta {
        tail_unchanged: true,
        ..Delta::default()
    };
    let facts = Facts {
        page: 1,
        shown: 103,
        unreadable: 3,
        total: 103,
        page_size: 103,
        next: Some(2),
    };
    run.now += run.engine.options.full_read_interval;
    let poll = |run: &mut Run| {
        run.engine
            .adopt(&Purpose::Poll, &facts, &page, &delta, Vec::new(), run.now);
        run.engine.task()
    };
    assert_eq!(poll(&mut run), Some(Task::Page(2)));
    run.engine.page_refused(2, run.now);
    for _ in 0..10 {
        run.now += run.engine.options.interval;
        assert_eq!(poll(&mut run), None, "all that is counted is known");
    }
}

/// While no requests are made, there is nothing to rest from.
#[test]
fn a_rest_does_not_last_as_long_as_an_outage_amid_the_read() {
    let mut run = run_with(1_000, 100);
    let options = run.engine.options;
    let leaves = |run: &mut Run| {
        run.server.act(&Act::Close(500));
        run.now += options.interval;
        run.poll(false);
        matches!(run.engine.task(), Some(Task::Page(_)))
    };
    assert!(leaves(&mut run));
    run.background(false);
    let failed_at = run.now;
    run.now += options.full_read_interval;
    run.engine.held_up(failed_at, run.now);
    while run.background(false) {}
    run.assert_agreement();
    assert!(leaves(&mut run), "the next departure is looked for at once");
    // No more time is taken off than the read has taken.
    run.engine.held_up(failed_at, run.now + options.interval);
    run.now += 10 * options.interval;
    while run.background(false) {}
    run.assert_agreement();
    let rest = 9 * options.interval;
    assert_eq!(run.engine.rest_until, Some(run.now + rest));
}

/// The request may be the last one for long, so alerts that open and leave meanwhile are not
/// collected for its answer.
#[test]
fn nothing_is_remembered_for_an_answer_that_will_not_come() {
    let mut run = run_with(50, 100);
    let full_read = Purpose::FullRead;
    let overtaken = |run: &Run| {
        let overtaken = run.engine.requests.overtaken(&Purpose::FullRead);
        overtaken.map(|overtaken| overtaken.has("51"))
    };
    run.engine.request_sent(&full_read);
    run.server.act(&Act::Open(1));
    run.poll(false);
    assert_eq!(overtaken(&run), Some(true));
    run.engine.request_failed(&full_read);
    assert_eq!(overtaken(&run), None);
}
