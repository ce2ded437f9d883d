//! What becomes of answers that are late, short, refused, or do not add up.

use super::*;
use crate::poll::engine::confirmation::{CERTAINTY, CONFIRM_AGAIN, DOUBT, DOUBTED, WITNESSES};

#[test]
fn an_answer_that_was_overtaken_brings_nobody_back() {
    for is_told in [true, false] {
        let mut run = run_with(300, 100);
        run.engine.begin_full_read(run.now);
        run.send(true);
        run.server.act(&Act::Close(290));
        // The background goes on while the poll's answer is waited for.
        while (is_told || !run.engine.has_departures()) && run.background(false) {}
        assert_eq!(run.logged_open.len(), if is_told { 299 } else { 300 });
        run.poll(false);
        assert_eq!(run.engine.tracker().open_count(), 299);
        while run.background(false) {}
        run.assert_agreement();
    }
}

/// One alert has left before the poll's request was sent, and one has opened since.
#[test]
fn of_those_whom_an_overtaken_answer_lacks_only_one_has_left_of_whom_no_other_has_told() {
    let mut run = run_with(50, 100);
    run.engine.begin_full_read(run.now);
    run.server.act(&Act::Close(3));
    run.send(true);
    run.server.act(&Act::Open(1));
    run.background(false);
    assert_eq!(run.logged_open.len(), 51);
    run.poll(false);
    let left = vec!["4".into()];
    assert_eq!(run.engine.task(), Some(Task::Reasons(left)));
}

#[test]
fn the_total_is_that_of_the_latest_answer_that_shows_something() {
    let mut run = run_with(250, 100);
    run.engine.begin_full_read(run.now);
    run.server.act(&Act::Open(1));
    run.background(false);
    assert_eq!(run.engine.total(), Some(251));
    run.lie = Some(Lie::of_nothing(100));
    run.background(false);
    assert_eq!(
        run.engine.total(),
        Some(251),
        "a further page shows nothing"
    );
    run.engine.begin_full_read(run.now);
    run.send(false);
    run.server.clock += 3;
    run.server.act(&Act::Open(1));
    run.poll(false);
    run.background(false);
    assert_eq!(run.engine.total(), Some(252), "the poll asked later");
}

#[test]
fn an_answer_that_lacks_most_of_what_there_was_stands_alone_until_the_next() {
    let mut run = run_with(100, 200);
    run.lie = Some(Lie::of_nothing(200));
    run.poll(false);
    assert_eq!((run.engine.task(), run.engine.total()), (None, Some(0)));
    assert!(!run.engine.is_complete());
    run.poll(false);
    assert_eq!(run.engine.task(), None);
    assert!(run.engine.is_complete());

    run.server.act(&Act::CloseMany(0, 90));
    run.poll(false);
    assert_eq!(run.engine.task(), None);
    run.poll(false);
    while run.background(false) {}
    run.assert_agreement();
}

/// A server that counts alerts and shows none is out of order, so the answer before is not believed
/// either. Nor is it if the next one shows a part of a longer result.
#[test]
fn answers_that_lack_most_of_what_there_was_agree_only_if_they_are_in_a_row() {
    for shows_a_part in [false, true] {
        let mut run = run_with(100, 200);
        for total in [0, 100, 0] {
            if total > 0 && shows_a_part {
                run.server.page_size = 60;
            } else {
                run.lie = Some(Lie {
                    total,
                    ..Lie::of_nothing(200)
                });
            }
            run.poll(false);
            assert_eq!(run.engine.task(), None);
        }
        run.server.page_size = 200;
        run.poll(false);
        run.assert_agreement();
        assert!(run.engine.is_complete());
    }
}

#[test]
fn more_than_twenty_and_than_are_shown_have_left_only_if_the_next_answer_lacks_them_too() {
    for (open, closed, at_once) in [
        (21, 20, true),
        (21, 21, false),
        (60, 30, true),
        (60, 31, false),
    ] {
        let mut run = Run::new(false, 100, true);
        run.server.act(&Act::Open(open));
        run.settle();
        run.server.act(&Act::CloseMany(0, closed));
        run.poll(false);
        assert_eq!(run.engine.task().is_some(), at_once, "{closed} of {open}");
        run.poll(false);
        while run.background(false) {}
        run.assert_agreement();
    }
}

#[test]
fn what_one_of_two_bad_answers_in_a_row_shows_has_not_left() {
    let mut run = run_with(100, 200);
    run.lied = true;
    let show = |run: &mut Run, shown: std::ops::Range<u32>| {
        for (id, alert) in &mut run.server.alerts {
            alert.open = shown.contains(id);
        }
        run.poll(false);
        while run.background(false) {}
    };
    show(&mut run, 1..11);
    assert_eq!(run.logged_open.len(), 100);
    show(&mut run, 51..61);
    assert_eq!(run.logged_open, (1..11).chain(51..61).collect());
    show(&mut run, 1..101);
    run.assert_agreement();
}

#[test]
fn items_that_cannot_be_read_make_nobody_leave() {
    let mut run = run_with(50, 100);
    for _ in 0..20 {
        run.lie = Some(Lie {
            shown: Vec::new(),
            total: 50,
            page_size: 100,
            next: None,
            unreadable: 50,
        });
        run.poll(false);
        while run.background(false) {}
    }
    run.assert_agreement();
    // Alerts whose own pages say so have left.
    run.server.act(&Act::CloseMany(7, 3));
    run.settle();
    run.assert_agreement();
}

#[test]
fn a_total_that_is_too_high_keeps_nobody_who_left() {
    for size in [100, 2_000] {
        let mut run = run_with(1_000, size);
        run.server.surplus = 1;
        let sound = run.engine.sound_readings();
        run.server.act(&Act::CloseMany(7, 80));
        run.poll(false);
        while run.background(false) {}
        run.assert_agreement();
        assert!(!run.engine.is_complete());
        assert_eq!(run.engine.sound_readings(), sound);
    }
}

/// Makes a poll whose further page fails. Returns whether the poll wanted one.
fn poll_cut_short(run: &mut Run) -> bool {
    run.poll(false);
    let cut_at = run.poll_page.take();
    if let Some(page) = cut_at {
        run.engine.page_missed(page);
        run.engine.poll_cut_short(run.now);
        run.now += Duration::from_secs(30);
    }
    cut_at.is_some()
}

/// A further page fails for good, and every poll has news, so that no poll compares the count.
#[test]
fn a_page_that_fails_is_found_out_by_the_background_however_much_opens() {
    let mut run = run_with(250, 100);
    for poll in 1..=SURPLUS_POLLS {
        assert_eq!(run.engine.task(), None, "before poll {poll}");
        run.server.act(&Act::Open(100));
        assert!(poll_cut_short(&mut run));
    }
    assert_eq!(run.engine.task(), Some(Task::Page(1)));
    // The full read ends at the page, and the next one has to wait for the rest after it.
    run.background(false);
    assert_eq!(run.engine.task(), Some(Task::Page(2)));
    // A refusal of a page that another reading wanted does not concern this reading.
    run.engine.page_refused(3, run.now);
    assert_eq!(run.engine.task(), Some(Task::Page(2)));
    run.engine.page_refused(2, run.now);
    assert_eq!(run.engine.refused(), Some(2));
    while run.background(false) {}
    for _ in 0..SURPLUS_POLLS {
        run.engine.poll_cut_short(run.now);
    }
    assert_eq!(run.engine.task(), None);
}

#[test]
fn a_further_page_that_shows_nothing_to_several_polls_has_all_read() {
    let mut run = run_with(250, 100);
    for poll in 1..=SURPLUS_POLLS {
        assert_eq!(run.engine.task(), None, "before poll {poll}");
        run.server.act(&Act::Open(100));
        run.poll(false);
        assert_eq!(run.poll_page, Some(2));
        run.lie = Some(Lie::of_nothing(100));
        run.poll(false);
    }
    assert_eq!(run.engine.task(), Some(Task::Page(1)));
}

/// A page that fails only once does not have the whole result read, which may be many pages.
#[test]
fn a_poll_that_is_cut_short_once_costs_no_full_read() {
    let mut run = run_with(1_000, 100);
    for _ in 0..2 * SURPLUS_POLLS {
        run.server.act(&Act::Open(150));
        assert!(poll_cut_short(&mut run));
        assert_eq!(run.engine.task(), None);
        // The next poll with news reads the alerts that this one could not read.
        run.server.clock += 3;
        run.server.act(&Act::Open(1));
        poll_to_the_end(&mut run);
        run.assert_agreement();
    }
    // If alerts have left, the whole result is read anyway.
    run.server.act(&Act::CloseMany(7, 60));
    run.server.clock += 3;
    run.server.act(&Act::Open(101));
    assert!(poll_cut_short(&mut run));
    assert_eq!(run.engine.task(), Some(Task::Page(1)));
}

/// The total is too high for ever, so that a full read is put off for longer and longer.
#[test]
fn a_page_at_which_a_poll_was_cut_short_is_asked_for_once_by_the_next_whose_count_does_not_add_up()
{
    for fails_again in [false, true] {
        let mut run = run_with(250, 100);
        run.server.surplus = 1;
        run.settle();
        run.engine.rest_until = Some(run.now + Duration::from_secs(6_000));
        run.server.act(&Act::Open(150));
        assert!(poll_cut_short(&mut run));
        run.requests = 0;
        run.poll(false);
        assert_eq!(run.poll_page, Some(2), "there is no news on the first page");
        if fails_again {
            assert_eq!(
                run.engine.page_failed(2, Duration::ZERO, run.now),
                FailedPage::Trial
            );
            run.poll_page = None;
        } else {
            while run.poll_page.is_some() {
                run.poll(false);
            }
            run.assert_agreement();
        }
        assert_eq!(run.engine.misses_a_page(), fails_again);
        let before = run.requests;
        for _ in 0..5 {
            run.poll(false);
            assert_eq!(run.poll_page, None, "not once more");
        }
        assert_eq!(run.requests, before + 5);
    }
}

#[test]
fn a_further_page_that_shows_nothing_once_counts_nothing_and_is_asked_for_by_the_next_poll() {
    for total in [0, 401] {
        let mut run = run_with(250, 100);
        run.server.surplus = 1;
        run.settle();
        run.engine.rest_until = Some(run.now + Duration::from_secs(6_000));
        run.server.act(&Act::Open(150));
        run.poll(false);
        assert_eq!(run.poll_page, Some(2));
        run.lie = Some(Lie {
            total,
            ..Lie::of_nothing(100)
        });
        run.poll(false);
        assert_eq!((run.poll_page, run.engine.total()), (None, Some(401)));
        run.poll(false);
        assert_eq!(run.poll_page, Some(2));
        while run.poll_page.is_some() {
            run.poll(false);
        }
        run.assert_agreement();
    }
}

/// The missed page holds only changes, so the count does not tell that anything is missing.
#[test]
fn a_missed_page_is_tried_once_and_then_all_is_read_though_the_count_adds_up() {
    for fails_again in [false, true] {
        let mut run = run_with(250, 100);
        run.server.by_updated = true;
        run.settle();
        let told = run.told_at.clone();
        run.server.clock += 3;
        // The last alert of the second page is unchanged.
        for id in run.server.alerts.keys().copied().collect::<Vec<_>>() {
            if id <= 180 {
                let alert = run.server.alerts.get_mut(&id).unwrap();
                (alert.state, alert.updated) = (1, run.server.clock / 3);
            }
        }
        let changed = |run: &Run| {
            let is_told = |id: &&u32| run.told_at[*id] > told[*id];
            run.told_at.keys().filter(is_told).count()
        };
        assert!(poll_cut_short(&mut run));
        assert_eq!((changed(&run), run.engine.misses_a_page()), (100, true));
        run.requests = 0;
        run.poll(false);
        assert_eq!(run.poll_page, Some(2));
        if fails_again {
            assert_eq!(
                run.engine.page_failed(2, Duration::ZERO, run.now),
                FailedPage::Trial
            );
            run.poll_page = None;
        } else {
            run.poll(false);
            assert_eq!(changed(&run), 180);
        }
        assert_eq!(run.engine.is_complete(), !fails_again);
        if fails_again {
            run.poll(false);
            assert_eq!(run.engine.task(), Some(Task::Page(1)));
            run.settle();
            assert_eq!(changed(&run), 180);
            assert!(run.engine.is_complete());
        }
        for _ in 0..5 {
            run.poll(false);
            assert_eq!((run.poll_page, run.engine.task()), (None, None));
        }
    }
}

/// Knows 1000 alerts, and then changes those whose ids lie in one of the ranges. The server sorts
/// by updated time if `by_updated` says so. Else the newest alerts, whose ids are the highest, come
/// first.
fn run_with_changes(by_updated: bool, page_size: usize, changed: &[(u32, u32)]) -> Run {
    let mut run = Run::new(by_updated, page_size, true);
    for _ in 0..1_000 {
        run.server.act(&Act::Open(1));
        run.server.clock += 3;
    }
    run.settle();
    run.server.clock += 3;
    let now = run.server.clock / 3;
    for (id, alert) in &mut run.server.alerts {
        if changed.iter().any(|(from, to)| (*from..*to).contains(id)) {
            (alert.state, alert.updated) = (1, now);
        }
    }
    run.now += Duration::from_secs(120);
    run.requests = 0;
    run
}

/// Returns the number of alerts whose change was told.
fn told_changes(run: &Run) -> usize {
    let now = run.server.clock;
    run.told_at.values().filter(|at| **at == now).count()
}

/// Pages are numbered by their size, so that a page of the same number is another one.
#[test]
fn what_was_on_a_missed_page_is_read_though_pages_have_another_size_now() {
    // All that has changed comes first.
    let mut run = run_with_changes(true, 500, &[(1, 701)]);
    assert!(poll_cut_short(&mut run));
    assert_eq!(told_changes(&run), 500);
    run.server.page_size = 100;
    run.requests = 0;
    poll_to_the_end(&mut run);
    assert_eq!((told_changes(&run), run.requests), (700, 1 + 5));
    assert!(!run.engine.misses_a_page());
    assert_eq!(run.engine.task(), None, "all that was missed is read");

    // One alert that has changed is at the end of the missed page.
    let mut run = run_with_changes(false, 500, &[(501, 1_001), (1, 11)]);
    assert!(poll_cut_short(&mut run));
    run.server.page_size = 100;
    run.requests = 0;
    poll_to_the_end(&mut run);
    assert_eq!((told_changes(&run), run.requests), (510, 1 + 5));
    assert!(!run.engine.misses_a_page());

    // A larger page shows it at once.
    let mut run = run_with_changes(true, 100, &[(1, 401)]);
    run.poll(false);
    run.poll(false);
    assert!(poll_cut_short(&mut run));
    assert_eq!((told_changes(&run), run.requests), (300, 3));
    run.server.page_size = 500;
    run.requests = 0;
    poll_to_the_end(&mut run);
    assert_eq!((told_changes(&run), run.requests), (400, 1));
    assert!(!run.engine.misses_a_page());
}

/// Makes a poll that tries this page at its end. The page fails.
fn try_in_vain(run: &mut Run, page: u64) {
    run.poll(false);
    assert_eq!(run.poll_page.take(), Some(page));
    assert_eq!(
        run.engine.page_failed(page, Duration::ZERO, run.now),
        FailedPage::Trial
    );
}

/// A page that fails once more is not tried for ever, whatever its number is by now.
#[test]
fn each_part_of_a_missed_page_of_another_size_is_tried_once_unless_several_in_a_row_fail() {
    let missed = || {
        let mut run = run_with_changes(true, 500, &[(1, 701)]);
        assert!(poll_cut_short(&mut run));
        run.server.page_size = 100;
        run
    };
    let mut run = missed();
    for page in 6..=8 {
        try_in_vain(&mut run, page);
    }
    run.poll(false);
    assert_eq!(run.poll_page, None);
    assert_eq!(run.engine.task(), Some(Task::Page(1)));

    let mut run = missed();
    try_in_vain(&mut run, 6);
    assert!(run.engine.misses_a_page());
    run.requests = 0;
    poll_to_the_end(&mut run);
    assert_eq!((told_changes(&run), run.requests), (600, 1 + 4));
    assert_eq!(
        run.engine.task(),
        Some(Task::Page(1)),
        "a part was given up"
    );
}

/// Makes a poll to which the server shows a first page of this size, and further pages of the
/// other one. Returns the number of requests.
fn poll_with_sizes(run: &mut Run, first: usize, further: usize) -> usize {
    run.requests = 0;
    run.server.page_size = first;
    run.poll(false);
    run.server.page_size = further;
    while run.poll_page.is_some() {
        run.poll(false);
    }
    run.requests
}

/// What lies between them is never shown, so that trying for ever would cost each poll a request.
#[test]
fn a_gap_behind_a_first_page_that_is_always_smaller_than_the_next_is_tried_once() {
    for (first, further) in [(100, 500), (80, 100)] {
        let mut run = run_with_changes(true, 100, &[(1, 151)]);
        assert_eq!(poll_with_sizes(&mut run, first, further), 2);
        assert!(run.engine.misses_a_page());
        assert_eq!(poll_with_sizes(&mut run, first, further), 2);
        assert_eq!(poll_with_sizes(&mut run, first, further), 1);
        assert!(run.engine.misses_a_page(), "nothing has read the gap");
    }
}

#[test]
fn what_was_missed_is_read_though_a_first_page_is_always_larger_than_the_next() {
    let mut run = run_with_changes(true, 500, &[(1, 701)]);
    assert!(poll_cut_short(&mut run));
    assert_eq!(poll_with_sizes(&mut run, 500, 100), 2 + 5);
    assert_eq!(told_changes(&run), 700);
    assert!(!run.engine.misses_a_page());
    assert_eq!(poll_with_sizes(&mut run, 500, 100), 1);
}

#[test]
fn a_page_that_is_missed_before_another_one_is_tried_does_not_make_that_forgotten() {
    let mut run = run_with_changes(true, 100, &[(1, 401)]);
    run.poll(false);
    run.poll(false);
    run.poll(false);
    assert!(poll_cut_short(&mut run));
    run.server.clock += 3;
    run.server.act(&Act::Open(100));
    assert!(poll_cut_short(&mut run));
    run.server.clock += 3;
    run.requests = 0;
    poll_to_the_end(&mut run);
    assert_eq!(run.requests, 5, "those missed, and those between them");
    assert!(!run.engine.misses_a_page());
}

/// Fifty alerts are unknown. As many leave the first page, so that the count adds up, or fewer, or
/// more, and what was missed is on the page before.
#[test]
fn a_missed_page_is_tried_where_its_alerts_have_moved_since() {
    for (left, requests) in [(20, 4), (50, 3), (120, 3)] {
        let mut run = run_with(400, 100);
        run.server.clock += 3;
        run.server.act(&Act::Open(250));
        run.poll(false);
        assert!(poll_cut_short(&mut run));
        for (id, _) in &run.server.result()[..left] {
            run.server.alerts.get_mut(id).unwrap().open = false;
        }
        run.requests = 0;
        poll_to_the_end(&mut run);
        let told = |(id, _): &(u32, _)| run.logged_open.contains(id);
        assert!(run.server.result().iter().all(told), "{left} left");
        assert!(!run.engine.misses_a_page(), "{left} left");
        assert_eq!(run.requests, requests, "{left} left");
    }
}

/// The pages that a poll reads after its first one are of another size.
#[test]
fn what_a_poll_passes_over_because_its_pages_change_their_size_is_missed() {
    let mut run = run_with_changes(true, 500, &[(1, 701)]);
    run.poll(false);
    assert_eq!(run.poll_page, Some(2));
    run.server.page_size = 100;
    poll_to_the_end(&mut run);
    assert_eq!((told_changes(&run), run.requests), (700, 2 + 5));
    assert!(!run.engine.misses_a_page());

    let mut run = run_with_changes(true, 100, &[(1, 401)]);
    run.poll(false);
    assert_eq!(run.poll_page, Some(2));
    run.server.page_size = 500;
    poll_to_the_end(&mut run);
    assert_eq!((told_changes(&run), run.requests), (100, 2));
    assert!(run.engine.misses_a_page());
    poll_to_the_end(&mut run);
    assert_eq!((told_changes(&run), run.requests), (400, 3));
    assert!(!run.engine.misses_a_page());
}

/// Makes all requests of the background. The server answers to these tasks with `lie`.
fn background_with(run: &mut Run, lie: &Lie, to: impl Fn(&Task) -> bool) {
    while let Some(task) = run.engine.task() {
        run.lie = to(&task).then(|| lie.clone());
        run.background(false);
        run.lie = None;
    }
}

/// Makes a full read, one page of which is answered with `lie`, and all tasks that follow from it.
fn read_with(run: &mut Run, page: u64, lie: &Lie) {
    run.now += Duration::from_secs(600);
    run.poll(false);
    background_with(run, lie, |task| *task == Task::Page(page));
}

fn is_further_page(task: &Task) -> bool {
    matches!(task, Task::Page(2..))
}

#[test]
fn a_reading_that_has_not_shown_all_is_followed_by_another_though_the_count_adds_up() {
    for total in [0, 250] {
        let mut run = run_with(250, 100);
        let nothing = Lie {
            total,
            ..Lie::of_nothing(100)
        };
        read_with(&mut run, 2, &nothing);
        assert!(!run.engine.is_complete());
        let hollow = run.engine.hollow_to_tell();
        assert_eq!(
            hollow.map(|hollow| (hollow.page, hollow.total)),
            Some((2, 250))
        );
        read_with(&mut run, 2, &nothing);
        assert_eq!(run.engine.hollow_to_tell(), None, "once");
        run.requests = 0;
        run.now += Duration::from_secs(120);
        run.poll(false);
        while run.background(false) {}
        assert!(run.engine.is_complete());
        assert_eq!(run.engine.hollow_to_tell(), None);
        assert_eq!(run.requests, 1 + 3);
        // If the page never shows anything, the result is not read all the time.
        let reads = (0..120).filter(|_| {
            run.poll(false);
            let is_read = run.engine.task().is_some();
            background_with(&mut run, &nothing, |task| *task == Task::Page(2));
            is_read
        });
        assert!((4..=11).contains(&reads.count()), "in an hour");
    }
}

#[test]
fn that_readings_show_less_than_they_count_is_told_once_after_three_in_a_row() {
    let mut run = run_with(250, 100);
    let mut read = |surplus, opens: &[Act]| {
        run.server.surplus = surplus;
        run.now += Duration::from_secs(600);
        run.poll(false);
        for act in opens {
            run.server.act(act);
        }
        while run.background(false) {}
        let told = run.engine.shortfall_to_tell();
        told.map(|told| told.total - told.shown)
    };
    let [opens, quiet] = [&[Act::Open(1)][..], &[]];
    assert_eq!(
        [5; 4].map(|by| read(by, quiet)),
        [None, None, Some(5), None]
    );
    assert_eq!([5, 5, 0].map(|by| read(by, quiet)), [None; 3]);
    assert_eq!([5, 5].map(|by| read(by, quiet)), [None; 2]);
    assert_eq!(read(5, opens), None, "the total moved");
}

#[test]
fn known_alerts_that_repeat_while_full_reads_pass_them_are_no_shortfall() {
    let mut run = Run::new(true, 100, true);
    run.server.act(&Act::Open(250));
    run.settle();
    for _ in 0..4 {
        run.now += Duration::from_secs(600);
        run.poll(false);
        assert!(run.background(false));
        let oldest = run.server.result().last().unwrap().0;
        run.server.clock += 3;
        run.server
            .act(&Act::Bump(u16::try_from(oldest - 1).unwrap()));
        while run.background(false) {}
        assert_eq!(run.engine.shortfall_to_tell(), None);
    }
}

#[test]
fn a_result_that_shows_nothing_of_a_further_page_is_gone_through_after_some_half_an_hour() {
    let mut run = Run::new(false, 100, true);
    run.server.act(&Act::Open(250));
    let begun = run.now;
    while !run.engine.has_gone_through() {
        run.poll(false);
        background_with(&mut run, &Lie::of_nothing(100), is_further_page);
    }
    let minutes = (run.now - begun).as_secs() / 60;
    assert!((25..35).contains(&minutes), "{minutes}");
}

#[test]
fn an_outage_between_two_readings_that_end_at_a_page_that_shows_nothing_is_no_half_an_hour_of_them()
{
    let mut run = Run::new(false, 100, true);
    run.server.act(&Act::Open(250));
    for _ in 0..2 {
        run.poll(false);
        background_with(&mut run, &Lie::of_nothing(100), is_further_page);
        run.now += 2 * HOLLOW;
    }
    assert!(!run.engine.has_gone_through());
}

#[test]
fn a_full_read_whose_first_page_shows_nothing_for_a_moment_is_begun_by_the_next_poll() {
    let mut run = run_with(150, 4);
    // There are more changes than a poll reads, and the count adds up, so that only the poll
    // itself asks for the full read.
    run.server.clock += 3;
    for alert in 0..150 {
        run.server.act(&Act::Change(alert));
    }
    poll_to_the_end(&mut run);
    assert_eq!(run.engine.task(), Some(Task::Page(1)));
    run.lie = Some(Lie {
        total: 150,
        ..Lie::of_nothing(4)
    });
    run.background(false);
    run.lie = None;
    assert_eq!(run.engine.task(), None);
    run.poll(false);
    assert_eq!(
        run.engine.task(),
        Some(Task::Page(2)),
        "it began with the poll's"
    );
    while run.background(false) {}
    run.assert_agreement();
}

#[test]
fn a_first_page_that_shows_nothing_of_what_it_counts_is_nothing_the_first_time() {
    let nothing = Lie {
        total: 250,
        ..Lie::of_nothing(100)
    };
    let mut run = run_with(250, 100);
    let witness = run.engine.witness.clone();
    // Once when a full read is due, and once during a full read.
    run.now += Duration::from_secs(600);
    run.lie = Some(nothing.clone());
    run.poll(false);
    assert_eq!((run.engine.task(), &run.engine.witness), (None, &witness));
    assert!(run.engine.is_complete());
    run.server.act(&Act::Close(0));
    run.now += Duration::from_secs(60);
    run.poll(false);
    assert_eq!(run.engine.task(), Some(Task::Page(2)));
    while run.background(false) {}
    run.now += Duration::from_secs(60);
    run.server.act(&Act::Close(0));
    run.poll(false);
    assert_eq!(run.engine.task(), Some(Task::Page(1)));
    run.lie = Some(nothing);
    run.background(false);
    run.lie = None;
    assert_eq!(
        run.engine.task(),
        None,
        "a moment later it is hardly otherwise"
    );
    run.poll(false);
    assert_eq!(run.engine.task(), Some(Task::Page(2)));
    while run.background(false) {}
    assert!(run.engine.is_complete());
    run.assert_agreement();
}

#[test]
fn a_further_page_does_not_make_up_for_a_first_one_that_shows_nothing_of_what_it_counts() {
    let mut run = run_with(250, 100);
    let further = Facts {
        page: 2,
        shown: 100,
        unreadable: 0,
        total: 250,
        page_size: 100,
        next: Some(3),
    };
    let hollow = Facts {
        page: 1,
        shown: 0,
        next: None,
        ..further
    };
    assert!(run.engine.note_first_page(&hollow, run.now));
    assert!(!run.engine.note_first_page(&further, run.now));
    run.now += run.engine.options.interval / 2;
    assert!(!run.engine.note_first_page(&hollow, run.now), "once");
}

#[test]
fn departures_are_noticed_where_the_server_counts_for_ever_what_it_does_not_show() {
    for answers_by_id in [true, false] {
        let mut run = Run::new(false, 100, answers_by_id);
        run.server.act(&Act::Open(80));
        run.settle();
        run.server.surplus = 3;
        run.server.act(&Act::CloseMany(0, 80));
        run.requests = 0;
        for _ in 0..120 {
            run.poll(false);
            while run.background(false) {}
        }
        run.assert_agreement();
        assert!(run.requests < 140, "{} in an hour", run.requests);
        assert!(!run.engine.is_complete());
    }
}

#[test]
fn a_refused_page_that_shows_nothing_is_still_refused() {
    let mut run = run_with(250, 100);
    read_up_to_a_refusal(&mut run, 2);
    run.now += run.engine.options.interval;
    run.server.act(&Act::Open(150));
    run.poll(false);
    assert_eq!(run.poll_page, Some(2));
    run.lie = Some(Lie::of_nothing(100));
    run.poll(false);
    assert_eq!(run.engine.refused(), Some(2));
    assert_eq!(run.engine.total(), Some(400));
    read_with(&mut run, 2, &Lie::of_nothing(100));
    assert_eq!(run.engine.refused(), Some(2), "nor does a full read see it");
}

#[test]
fn a_missed_page_that_the_result_no_longer_has_is_not_tried() {
    for closed in [50, 200] {
        let mut run = run_with(250, 100);
        run.engine.page_missed(3);
        run.server.act(&Act::CloseMany(0, closed));
        run.poll(false);
        // What was on it may be on the page before. A first page that is the whole result leaves
        // nothing to be read.
        assert_eq!(run.poll_page, (closed == 50).then_some(2));
        if run.poll_page.is_some() {
            run.poll(false);
        }
        assert_eq!(run.poll_page, None);
        assert_eq!(run.engine.misses_a_page(), closed == 50);
        run.settle();
        assert!(run.engine.is_complete());
    }
}

#[test]
fn a_missed_page_that_no_poll_reads_is_not_tried() {
    let mut run = run_with(250, 100);
    run.engine.options.max_poll_pages = 1;
    run.engine.page_missed(2);
    run.poll(false);
    assert_eq!(run.poll_page, None);
}

/// New alerts are on the missed page, which comes first and may be shown by now.
#[test]
fn a_missed_page_is_tried_before_a_refused_one_behind_it() {
    let mut run = run_with(600, 100);
    read_up_to_a_refusal(&mut run, 5);
    run.now += Duration::from_secs(30);
    run.server.act(&Act::Open(150));
    assert!(poll_cut_short(&mut run));
    run.now += 2 * out_of_sight::TRY_AGAIN;
    run.poll(false);
    assert_eq!(run.poll_page, Some(2));
    run.poll(false);
    assert_eq!(
        (run.poll_page, run.engine.misses_a_page()),
        (Some(3), false)
    );
}

/// Such a reading has not read the page, or may have done so before there was anything new on it.
#[test]
fn a_missed_page_outlasts_a_reading_that_is_not_sound_and_one_that_was_under_way() {
    let mut run = Run::new(false, 100, true);
    run.engine.limits.pages.note_refused(3, 100, run.now);
    run.engine.begin_full_read(run.now);
    run.engine.page_missed(2);
    let ending = |sound| Ending {
        sound,
        ..Ending::default()
    };
    run.engine.finish_reading(ending(true), None, run.now);
    assert!(run.engine.misses_a_page());
    assert_eq!(run.engine.refused(), None, "the result ends before it");
    run.engine.begin_full_read(run.now);
    run.engine.finish_reading(ending(false), None, run.now);
    assert!(run.engine.misses_a_page());
    run.engine.begin_full_read(run.now);
    run.engine.finish_reading(ending(true), None, run.now);
    assert!(!run.engine.misses_a_page());
}

#[test]
fn a_refused_page_that_fails_once_more_leaves_a_missed_one_in_front_to_be_tried() {
    let mut run = run_with(600, 100);
    read_up_to_a_refusal(&mut run, 5);
    run.engine.page_missed(2);
    assert_eq!(
        run.engine.page_failed(5, Duration::ZERO, run.now),
        FailedPage::Trial
    );
    assert!(run.engine.misses_a_page());
    assert_eq!(run.engine.limits.pages.begin_retry(2, run.now), Some(2));
    assert_eq!(
        run.engine.page_failed(2, Duration::ZERO, run.now),
        FailedPage::Trial
    );
    assert_eq!(run.engine.limits.pages.begin_retry(2, run.now), None);
}

/// Reads the pages that the server shows up to the `refused` one, then asks all questions by id.
/// Returns the ids that were asked for.
fn read_up_to_a_refusal(run: &mut Run, refused: u64) -> BTreeSet<Box<str>> {
    run.now += Duration::from_secs(600);
    run.poll(false);
    let mut asked = BTreeSet::new();
    while let Some(task) = run.engine.task() {
        if task == Task::Page(refused) {
            run.engine.page_refused(refused, run.now);
            continue;
        }
        if let Task::Confirm(question) = &task {
            asked.extend(question.suspects.iter().cloned());
        }
        run.background(false);
    }
    asked
}

#[test]
fn a_refused_page_is_at_the_same_place_though_pages_have_another_size_now() {
    let news = |run: &mut Run| {
        run.server.clock += 3;
        run.server.act(&Act::Open(150));
        run.poll(false);
    };
    let mut run = run_with(1_000, 500);
    read_up_to_a_refusal(&mut run, 2);
    run.server.page_size = 100;
    news(&mut run);
    assert_eq!(run.poll_page, Some(2), "the server shows this page");
    poll_to_the_end(&mut run);
    assert_eq!(run.engine.refused(), Some(6));
    for page in [5, 6] {
        assert_eq!(run.engine.is_refused(page), page == 6);
    }

    let mut run = run_with(1_000, 100);
    read_up_to_a_refusal(&mut run, 7);
    run.now += run.engine.options.interval;
    run.server.page_size = 500;
    for _ in 0..9 {
        run.server.act(&Act::Open(50));
    }
    news(&mut run);
    assert_eq!((run.poll_page, run.engine.refused()), (Some(2), Some(2)));
    assert_eq!(
        run.engine.page_failed(2, Duration::ZERO, run.now),
        FailedPage::Trial
    );
    // A server may give as the size what it shows of a page.
    for size in [499, 501] {
        assert_eq!(run.engine.limits.pages.refused(size), Some(2));
    }
    run.poll_page = None;
    run.now += run.engine.options.interval;
    news(&mut run);
    poll_to_the_end(&mut run);
    assert_eq!(run.engine.refused(), None, "the page comes");
}

#[test]
fn a_refused_page_is_refused_no_longer_once_a_full_read_has_come_by_it() {
    let mut run = run_with(450, 100);
    read_up_to_a_refusal(&mut run, 3);
    run.now += Duration::from_secs(600);
    run.poll(false);
    run.background(false);
    assert!(run.engine.wants(3) && run.engine.is_refused(3));
    run.background(false);
    assert!(run.engine.wants(4) && !run.engine.is_refused(3));
}

#[test]
fn a_page_is_refused_at_its_place_in_the_full_read_though_polls_read_pages_of_another_size() {
    let mut run = run_with(600, 100);
    run.now += Duration::from_secs(600);
    run.poll(false);
    run.background(false);
    assert!(run.engine.wants(3));
    run.server.page_size = 50;
    run.poll(false);
    assert!(run.engine.wants(3));
    run.engine.page_refused(3, run.now);
    assert_eq!(run.engine.refused(), Some(5));
    for page in [4, 5] {
        assert_eq!(run.engine.is_refused(page), page == 5);
    }
    // The next full read numbers its own pages.
    run.engine.begin_full_read(run.now);
    run.server.page_size = 100;
    run.background(false);
    run.server.page_size = 50;
    run.poll(false);
    assert_eq!(run.engine.refused(), Some(3));
}

#[test]
fn a_full_read_whose_pages_are_of_another_size_from_now_on_begins_anew() {
    let mut run = run_with(600, 100);
    run.engine.read_anew(run.now);
    assert!(!run.engine.is_reading(), "none was under way");
    run.now += Duration::from_secs(600);
    run.poll(false);
    run.background(false);
    assert!(run.engine.wants(3));
    assert!(!run.engine.begins_reading());
    run.engine.read_anew(run.now);
    assert!(run.engine.wants(1));
    assert!(run.engine.begins_reading());
    run.server.page_size = 50;
    while run.background(false) {}
    assert!(run.engine.is_complete());
}

#[test]
fn a_full_read_is_over_once_the_first_page_of_a_poll_is_the_whole_result() {
    let mut run = run_with(250, 100);
    run.engine.begin_full_read(run.now);
    run.background(false);
    assert!(run.engine.wants(2));
    run.server.act(&Act::CloseMany(0, 200));
    run.poll(false);
    assert!(!run.engine.is_reading());
}

#[test]
fn a_page_that_comes_when_its_full_read_has_begun_anew_is_not_taken_for_the_first() {
    let mut run = run_with(600, 100);
    run.now += Duration::from_secs(600);
    run.poll(false);
    assert!(run.engine.wants(2));
    run.send(false);
    run.engine.read_anew(run.now);
    run.background(false);
    assert!(run.engine.wants(1));
    while run.background(false) {}
    assert!(run.engine.is_complete());
}

#[test]
fn behind_what_the_server_shows_everybody_is_asked_for_in_turn() {
    let mut run = run_with(6_000, 500);
    let first = read_up_to_a_refusal(&mut run, 2);
    assert_eq!(first.len(), UNSEEN);
    let left_out = (1..=6_000).find(|id: &u32| !first.contains(&*id.to_string()));
    let alert = left_out.and_then(|id| run.server.alerts.get_mut(&id));
    alert.expect("some are left for later").open = false;
    let second = read_up_to_a_refusal(&mut run, 2);
    assert_eq!(first.union(&second).count(), 5_500);
    run.assert_agreement();
}

#[test]
fn polls_ask_for_no_page_that_full_reads_are_refused() {
    let mut run = run_with(1_000, 100);
    let poll_with_news = |run: &mut Run| {
        (0..1_000).for_each(|choice| run.server.act(&Act::Bump(choice)));
        run.requests = 0;
        poll_to_the_end(run);
        run.requests
    };
    read_up_to_a_refusal(&mut run, 4);
    assert_eq!(poll_with_news(&mut run), 3);
    read_up_to_a_refusal(&mut run, u64::MAX);
    assert_eq!(poll_with_news(&mut run), 10);
}

/// Makes a poll and returns whether it asks for this page at its end. If so, the page fails after
/// the time `took`; the next poll is on the grid.
fn poll_tries(run: &mut Run, page: u64, took: Duration) -> bool {
    run.poll(false);
    while run.poll_page.is_some_and(|wanted| wanted < page) {
        run.poll(false);
    }
    let tries = run.poll_page.take();
    if tries.is_some() {
        assert_eq!(tries, Some(page));
        let interval = run.engine.options.interval;
        let late = took.min(interval / 3);
        assert_eq!(
            run.engine.page_failed(page, took, run.now + late),
            FailedPage::Trial
        );
        run.now += interval;
    }
    tries.is_some()
}

#[test]
fn a_refused_page_is_read_by_the_next_poll_that_has_news_up_to_there_once_it_comes() {
    let mut run = run_with(250, 100);
    read_up_to_a_refusal(&mut run, 2);
    run.now += run.engine.options.interval;
    for _ in 0..10 {
        run.server.clock += 3;
        run.server.act(&Act::Open(150));
        assert!(poll_tries(&mut run, 2, Duration::from_millis(10)));
    }
    run.server.clock += 3;
    run.server.act(&Act::Open(150));
    poll_to_the_end(&mut run);
    assert_eq!(run.engine.refused(), None);
    let told = run.logged_open.iter().rev().take(150).count();
    assert_eq!((told, run.logged_open.last()), (150, Some(&1_900)));
    // A full read for the alerts that were not read yet does not wait any longer either.
    assert_eq!(run.engine.rest_until, None);
    while run.background(false) {}
    run.assert_agreement();
}

#[test]
fn a_refused_page_that_hangs_is_left_alone_for_ten_times_as_long_and_no_more_than_ten_minutes() {
    for (took, apart) in [(43, 15), (3_600, 21)] {
        let mut run = run_with(250, 100);
        read_up_to_a_refusal(&mut run, 2);
        let tried: Vec<u32> = (0..46)
            .filter(|_| {
                run.server.clock += 3;
                run.server.act(&Act::Open(150));
                poll_tries(&mut run, 2, Duration::from_secs(took))
            })
            .collect();
        assert_eq!(tried, [1, 1 + apart, 1 + 2 * apart], "{took} seconds");
    }
}

/// When the page comes, it may hold alerts that polls could not read, although nothing new
/// happens.
#[test]
fn a_quiet_poll_asks_for_a_refused_page_every_five_minutes_and_only_where_the_count_does_not_add_up()
 {
    let mut run = run_with(950, 100);
    read_up_to_a_refusal(&mut run, 4);
    let took = Duration::from_millis(10);
    let polls = |run: &mut Run| (0..40).filter(|_| poll_tries(run, 4, took)).count();
    assert_eq!(polls(&mut run), 0);
    run.server.surplus = 1;
    assert_eq!(polls(&mut run), 4);
    // The result no longer has such a page.
    run.server.act(&Act::CloseMany(0, 250));
    run.server.act(&Act::CloseMany(0, 250));
    run.server.act(&Act::CloseMany(0, 200));
    assert_eq!(polls(&mut run), 0);
}

#[test]
fn a_sound_reading_that_ends_before_a_refused_page_lifts_the_refusal() {
    for left in [50, 150] {
        let mut run = run_with(450, 100);
        read_up_to_a_refusal(&mut run, 3);
        assert_eq!(run.engine.refused(), Some(3));
        for _ in 0..4 {
            run.server.act(&Act::CloseMany(0, 75));
        }
        if left < 100 {
            run.server.act(&Act::CloseMany(0, 100));
        }
        run.settle();
        assert_eq!(run.engine.refused(), None, "{left} are left");
        run.assert_agreement();
    }
}

#[test]
fn an_empty_or_doubtful_result_is_gone_through_twice() {
    let gone_through = |open: u8, surplus: i64| {
        let mut run = Run::new(false, 100, true);
        run.server.surplus = surplus;
        run.server.act(&Act::Open(open));
        let mut polls = 0;
        while !run.engine.has_gone_through() {
            run.poll(false);
            while run.background(false) {}
            run.now += Duration::from_secs(30);
            polls += 1;
        }
        polls
    };
    assert_eq!(gone_through(30, 0), 1);
    assert_eq!(gone_through(0, 0), 2);
    assert!((2..9).contains(&gone_through(30, 1)));
    let mut run = Run::new(false, 10, true);
    run.server.act(&Act::Open(30));
    read_up_to_a_refusal(&mut run, 2);
    assert!(!run.engine.has_gone_through());
    read_up_to_a_refusal(&mut run, 2);
    assert!(run.engine.has_gone_through());
}

#[test]
fn what_is_shown_by_id_though_it_has_left_is_told_by_its_page() {
    let mut run = run_with(1_000, 100);
    run.server.ids_override = true;
    let told = run.told_at.clone();
    run.server.act(&Act::CloseMany(300, 80));
    for _ in 0..DOUBT {
        assert_eq!(run.logged_open.len(), 1_000, "one read is not enough");
        run.now += Duration::from_secs(600);
        run.poll(false);
        while run.background(false) {}
    }
    run.assert_agreement();
    assert_eq!(
        run.told_at, told,
        "what has left is not told to have changed"
    );
    run.poll(false);
    assert!(!run.background(false));
}

#[test]
fn what_is_shown_by_id_though_it_has_left_is_no_change_where_the_total_does_not_add_up_either() {
    let mut run = run_with(1_000, 100);
    run.server.ids_override = true;
    run.server.surplus = 1;
    let told = run.told_at.clone();
    run.server.act(&Act::CloseMany(300, 80));
    run.poll(false);
    while run.background(false) {}
    run.assert_agreement();
    assert_eq!(run.told_at, told);
}

#[test]
fn another_status_is_a_change_where_the_query_is_for_several() {
    let mut run = run_with(100, 10);
    run.engine.options.has_one_status = false;
    run.server.ids_override = true;
    run.server.surplus = 1;
    let told = run.told_at.len();
    run.server.act(&Act::CloseMany(50, 3));
    let now = run.server.clock;
    run.poll(false);
    while run.background(false) {}
    assert_eq!(run.logged_open.len(), 100);
    let is_new = |at: &&u64| **at == now;
    assert_eq!(
        (
            run.told_at.len(),
            run.told_at.values().filter(is_new).count()
        ),
        (told, 3)
    );
}

#[test]
fn whom_an_answer_by_id_counts_and_does_not_show_has_not_left_unless_its_page_says_so() {
    // Once after a sound reading, and once with a total so high that being unseen is no evidence.
    for surplus in [0, 1] {
        let mut run = run_with(1_000, 100);
        run.server.shows_twice = true;
        run.server.surplus = surplus;
        run.server.act(&Act::CloseMany(500, 9));
        let closed: Vec<u32> = run
            .logged_open
            .difference(&run.open_on_server())
            .copied()
            .collect();
        run.poll(false);
        while !matches!(run.engine.task(), Some(Task::Confirm(_))) {
            assert!(run.background(false));
        }
        // All but one of these alerts are open after all: the reading missed them because pages
        // shift.
        for id in &closed[1..] {
            run.server.alerts.get_mut(id).unwrap().open = true;
        }
        run.requests = 0;
        let told = run.told_at.clone();
        while run.background(false) {}
        assert_eq!(run.requests, 2, "one question, and what the witness counts");
        run.assert_agreement();
        run.settle();
        assert_eq!(run.told_at, told, "nobody is told anew");
    }
}

/// The server fails when it is asked for the witness alone.
#[test]
fn whom_an_answer_by_id_lacks_is_looked_up_if_what_the_server_counts_cannot_be_told() {
    let mut run = run_with(300, 100);
    run.server.shows_twice = true;
    run.server.surplus = 1;
    run.server.act(&Act::CloseMany(100, 2));
    let question = asks_by_id(&mut run).unwrap();
    assert_eq!(question.suspects.len(), 2);
    // One of them is open after all.
    let id = question.suspects[0].parse().unwrap();
    run.server.alerts.get_mut(&id).unwrap().open = true;
    run.background(false);
    let Some(Task::Confirm(alone)) = run.engine.task() else {
        panic!("{:?}", run.engine.task());
    };
    assert!(alone.suspects.is_empty());
    run.engine.confirmation_failed(&alone, run.now);
    while run.background(false) {}
    run.assert_agreement();
}

#[test]
fn all_that_is_shown_by_id_is_in_the_result_though_a_full_read_could_not_show_it() {
    let mut run = run_with(50, 10);
    run.now += Duration::from_secs(600);
    run.poll(false);
    run.engine.page_refused(2, run.now);
    // The total is too high, but nobody is missing from an answer.
    run.server.surplus = 1;
    let mut asked = 0;
    while let Some(Task::Confirm(question)) = run.engine.task() {
        let suspects = question.suspects.len();
        assert!((1..10).contains(&suspects), "there is room for the witness");
        asked += suspects;
        run.background(false);
    }
    assert_eq!((asked, run.engine.task()), (40, None));
    assert!(run.engine.tracker().missing().is_empty());
}

/// Answers a question by id with these alerts.
fn answer_by_id(run: &mut Run, question: &Arc<Question>, shown: &[&str], facts: &Facts) {
    let ids: Vec<String> = shown.iter().map(|id| (*id).to_owned()).collect();
    let page = plain(&ids);
    let purpose = Purpose::Confirm(Arc::clone(question));
    let delta = Delta::default();
    run.engine
        .adopt(&purpose, facts, &page, &delta, Vec::new(), run.now);
}

#[test]
fn an_answer_by_id_that_may_not_show_all_it_was_asked_for_proves_no_departure() {
    let facts = Facts {
        page: 1,
        shown: 1,
        unreadable: 0,
        total: 1,
        page_size: 100,
        next: None,
    };
    let goes_on = Facts {
        total: 2,
        next: Some(2),
        ..facts
    };
    let (shown, total) = (2, 2);
    let others = Facts {
        shown,
        total,
        ..facts
    };
    let unreadable = Facts {
        unreadable: 1,
        ..others
    };
    let names_next = Facts {
        next: Some(2),
        ..facts
    };
    for (facts, other, proves) in [
        (facts, None, true),
        (names_next, None, true),
        (goes_on, None, false),
        (unreadable, None, false),
        (others, Some("1000"), false),
    ] {
        let mut run = run_with(300, 100);
        run.server.act(&Act::Close(5));
        let question = asks_by_id(&mut run).unwrap();
        let shown: Vec<&str> = [&*question.witness].into_iter().chain(other).collect();
        answer_by_id(&mut run, &question, &shown, &facts);
        assert_eq!(run.engine.has_departures(), proves, "{facts:?}");
        let failures = u32::from(!proves);
        assert_eq!(run.engine.limits.unanswered_in_a_row, failures, "{facts:?}");
    }
}

/// The witness may have left by itself, so the question is asked again with the one of the last
/// poll.
#[test]
fn an_answer_by_id_without_its_witness_has_others_tried_but_not_for_ever() {
    let mut run = run_with(300, 100);
    run.server.act(&Act::Close(5));
    let mut question = asks_by_id(&mut run).unwrap();
    for number in 1..=WITNESSES {
        run.lie = Some(Lie::of_nothing(100));
        run.send(false);
        run.server.clock += 3;
        run.server.act(&Act::Open(1));
        poll_to_the_end(&mut run);
        run.background(false);
        let Some(Task::Confirm(next)) = run.engine.task() else {
            assert_eq!((number, run.engine.task()), (WITNESSES, None));
            return;
        };
        assert_ne!(next.witness, question.witness);
        assert_eq!(next.suspects, question.suspects);
        question = next;
    }
    panic!("{:?}", run.engine.task());
}

#[test]
fn whom_full_reads_miss_again_and_again_has_left_in_the_end_whatever_its_own_page_says() {
    let mut run = run_with(150, 100);
    run.server.answers_by_id = false;
    run.server.act(&Act::Close(5));
    for read in 1..=CERTAINTY {
        run.now += Duration::from_secs(600);
        run.poll(false);
        let mut is_looked_up = false;
        while let Some(task) = run.engine.task().filter(|_| !run.engine.has_departures()) {
            if let Task::Verify(ids) = &task {
                is_looked_up = true;
                run.engine.adopt_verdicts(ids, &HashSet::new(), false);
            } else {
                run.background(false);
            }
        }
        assert_eq!(is_looked_up, (DOUBT..CERTAINTY).contains(&read), "{read}");
        assert_eq!(run.engine.has_departures(), read == CERTAINTY, "{read}");
    }
}

/// Being missed proves nothing, because any of the items that cannot be read may be the alert.
#[test]
fn own_pages_are_looked_at_however_long_items_cannot_be_read() {
    let mut run = run_with(50, 100);
    run.server.answers_by_id = false;
    for read in 0..CERTAINTY + DOUBT {
        if read == CERTAINTY {
            run.server.act(&Act::CloseMany(7, 3));
        }
        run.lie = Some(Lie {
            unreadable: 50,
            total: 50,
            ..Lie::of_nothing(100)
        });
        run.now += Duration::from_secs(600);
        run.poll(false);
        while run.background(false) {}
    }
    run.assert_agreement();
}

/// An answer by id keeps the same alert back each time. Its own page shows that it is open.
#[test]
fn whom_reads_that_do_not_add_up_cannot_show_has_not_left_however_often() {
    let mut run = run_with(150, 100);
    run.server.shows_twice = true;
    for _ in 0..CERTAINTY + DOUBT {
        read_up_to_a_refusal(&mut run, 2);
        assert_eq!(run.logged_open.len(), 150);
    }
}

#[test]
fn another_status_on_its_own_page_tells_that_an_alert_has_left() {
    let mut run = run_with(50, 100);
    let has_left = |run: &mut Run, status| {
        [true, false].map(|has_one_status| {
            run.engine.options.has_one_status = has_one_status;
            run.engine.has_left("1", status)
        })
    };
    assert!(!run.engine.has_left("1000", "Closed"), "it is not known");
    assert_eq!(has_left(&mut run, "NEW"), [false, false]);
    assert_eq!(has_left(&mut run, "Closed"), [true, true]);
    // After a reading that does not add up, being unseen is no evidence.
    run.server.surplus = 1;
    run.poll(false);
    while run.background(false) {}
    assert_eq!(has_left(&mut run, "Closed"), [true, false]);
    // Nor is the status of an alert that had none.
    let mut run = Run::new(false, 10, true);
    poll_shows(&mut run, &["1"], 0, 2);
    assert_eq!(has_left(&mut run, "Closed"), [false, false]);
}

/// A page of one alert has no room for a witness.
#[test]
fn a_departure_is_noticed_where_pages_show_one_alert() {
    let mut run = Run::new(false, 1, true);
    run.server.act(&Act::Open(3));
    run.settle();
    run.server.act(&Act::Close(1));
    run.settle();
    run.assert_agreement();
}

#[test]
fn as_many_are_asked_for_at_once_however_short_the_last_page_is() {
    let mut run = Run::new(false, 100, true);
    run.server.size_as_shown = true;
    (0..101).for_each(|_| run.server.act(&Act::Open(10)));
    run.settle();
    run.now += Duration::from_secs(120);
    run.requests = 0;
    run.server.act(&Act::CloseMany(300, 120));
    run.poll(false);
    while run.background(false) {}
    run.assert_agreement();
    assert_eq!(
        run.requests,
        1 + 9 + 3,
        "a poll, nine pages, three questions"
    );
}

#[test]
fn a_departure_is_noticed_where_every_page_names_a_next_one_and_tells_its_own_size() {
    let mut run = Run::new(false, 10, true);
    run.server.names_next = true;
    run.server.size_as_shown = true;
    run.server.act(&Act::Open(35));
    run.settle();
    run.now += Duration::from_secs(120);
    run.requests = 0;
    // The last page shows one alert, so pages of that size would have no room for a question.
    run.server.act(&Act::CloseMany(7, 4));
    run.poll(false);
    while run.background(false) {}
    run.assert_agreement();
    assert!(run.engine.is_complete());
    assert_eq!(
        run.requests,
        1 + 5 + 1,
        "a poll, four pages and an empty one, a question"
    );
}

#[test]
fn whom_a_further_page_does_not_show_that_counts_nothing_has_not_left() {
    let mut run = run_with(250, 100);
    for _ in 0..20 {
        run.now += Duration::from_secs(600);
        run.poll(false);
        background_with(&mut run, &Lie::of_nothing(100), is_further_page);
        assert!(!run.engine.is_sound());
        run.assert_agreement();
    }
    run.settle();
    assert!(run.engine.is_complete());
}

#[test]
fn the_witness_is_the_last_of_the_first_page_however_far_a_poll_reads() {
    let mut run = run_with(250, 100);
    run.server.act(&Act::Open(150));
    poll_to_the_end(&mut run);
    run.assert_agreement();
    let (id, _) = run.server.result()[99];
    let witness = Some(id.to_string().into());
    assert_eq!(run.engine.witness, witness);
    // First pages that show nothing of what they count leave it as it is.
    for _ in 0..2 {
        run.lie = Some(Lie {
            total: 400,
            ..Lie::of_nothing(100)
        });
        run.poll(false);
        assert_eq!(run.engine.witness, witness);
    }
}

/// Goes on until the background asks by id. Returns the question.
fn asks_by_id(run: &mut Run) -> Option<Arc<Question>> {
    run.now += Duration::from_secs(600);
    run.poll(false);
    loop {
        if let Some(Task::Confirm(question)) = run.engine.task() {
            return Some(question);
        }
        if !run.background(false) {
            return None;
        }
    }
}

/// An answer that says nothing is a failure as well: the server may be sane again by the next full
/// read.
#[test]
fn a_question_by_id_that_fails_is_asked_again_after_the_next_read_but_not_for_ever() {
    type Fail<'a> = dyn Fn(&mut Run, &Question) + 'a;
    let nothing = Lie::of_nothing(100);
    let not_readable = Lie {
        unreadable: 1,
        ..nothing.clone()
    };
    let goes_on = Lie {
        total: 3,
        next: Some(2),
        ..nothing
    };
    let says = |run: &mut Run, lie: &Lie| {
        run.lie = Some(lie.clone());
        run.background(false);
    };
    let failures: [&Fail<'_>; 4] = [
        &|run, question| run.engine.confirmation_failed(question, run.now),
        &|run, _| says(run, &not_readable),
        &|run, _| says(run, &goes_on),
        // Others are shown than were asked for.
        &|run, _| {
            run.server.query_is_dropped = true;
            run.background(false);
            run.server.query_is_dropped = false;
        },
    ];
    for (fail, surplus) in failures.iter().flat_map(|fail| [(fail, 0), (fail, 1)]) {
        let mut run = run_with(300, 100);
        run.server.surplus = surplus;
        for times in [2, 3] {
            for _ in 0..times {
                run.server.act(&Act::Close(5));
                let question = asks_by_id(&mut run).unwrap();
                let another = Question {
                    suspects: Vec::new(),
                    ..Question::clone(&question)
                };
                run.engine.confirmation_failed(&another, run.now);
                assert!(run.engine.is_asking(&question));
                fail(&mut run, &question);
                assert!(!run.engine.is_asking(&question));
                while run.background(false) {}
                if surplus > 0 {
                    // Being unseen is no evidence, so the own page is looked at straight away.
                    run.assert_agreement();
                }
            }
            run.server.act(&Act::Close(5));
            assert_eq!(asks_by_id(&mut run).is_some(), times < 3);
            while run.background(false) {}
        }
        run.settle();
        run.assert_agreement();
        run.now += CONFIRM_AGAIN;
        run.server.act(&Act::Close(5));
        assert!(asks_by_id(&mut run).is_some());
    }
}

#[test]
fn a_reload_takes_back_nothing_of_what_was_learned_of_questions_by_id() {
    let mut run = run_with(300, 100);
    for failures in 1..=3 {
        run.server.act(&Act::Close(5));
        let question = asks_by_id(&mut run).unwrap();
        run.engine.confirmation_failed(&question, run.now);
        assert_eq!(run.engine.can_confirm(run.now), failures < 3);
        run.reload();
    }
    run.server.act(&Act::Close(5));
    assert_eq!(asks_by_id(&mut run), None);
    run.settle();
    run.assert_agreement();
}

/// Other alerts that the answer shows may have left long ago, or may never have matched the query.
#[test]
fn an_answer_by_id_that_shows_others_than_were_asked_for_says_nothing() {
    for has_one_status in [true, false] {
        let mut run = run_with(100, 200);
        run.engine.options.has_one_status = has_one_status;
        for _ in 0..20 {
            run.server.act(&Act::Close(5));
        }
        run.settle();
        run.assert_agreement();
        // The reading does not add up, so an alert that is shown by id could be one that it has
        // missed.
        run.server.surplus = 1;
        run.server.query_is_dropped = true;
        run.server.act(&Act::Close(5));
        let question = asks_by_id(&mut run).unwrap();
        let before = run.logged_open.clone();
        run.background(false);
        assert_eq!(run.logged_open, before);
        assert!(!run.engine.is_asking(&question));
        while run.background(false) {}
        run.assert_agreement();
    }
}

/// Makes a poll whose only page shows these alerts, and some items that cannot be read.
fn poll_shows(run: &mut Run, shown: &[&str], unreadable: usize, total: u64) {
    let ids: Vec<String> = shown.iter().map(|id| (*id).to_owned()).collect();
    let page = plain(&ids);
    let delta = run.engine.compare(&Purpose::Poll, &page);
    let opened = delta.opened.iter().map(|place| KnownAlert {
        sighting: page[*place],
        ordinal: 1,
        created_at: None,
        group: vec!["".into()],
    });
    let facts = Facts {
        page: 1,
        shown: shown.len() + unreadable,
        unreadable,
        total,
        page_size: 5,
        next: None,
    };
    let known = opened.collect();
    run.engine
        .adopt(&Purpose::Poll, &facts, &page, &delta, known, run.now);
}

#[test]
fn whom_a_page_lacks_that_shows_another_one_twice_has_not_left() {
    let mut run = Run::new(false, 10, true);
    poll_shows(&mut run, &["1", "2", "3"], 0, 3);
    assert!(run.engine.is_complete());
    poll_shows(&mut run, &["1", "2", "2"], 0, 3);
    assert!(!run.engine.is_sound());
    let question = Question {
        suspects: vec!["3".into()],
        witness: "2".into(),
    };
    assert_eq!(run.engine.task(), Some(Task::Confirm(Arc::new(question))));
    // An item that cannot be read counts as well.
    poll_shows(&mut run, &["1", "2", "3"], 1, 4);
    assert!(run.engine.is_sound());
}

#[test]
fn a_result_with_an_item_that_cannot_be_read_is_not_complete_though_the_count_adds_up() {
    let mut run = Run::new(false, 10, true);
    poll_shows(&mut run, &["1", "2", "3"], 0, 3);
    assert!(run.engine.is_complete());
    // Whether "3" is the item that cannot be read, nobody knows.
    poll_shows(&mut run, &["1", "2"], 1, 3);
    assert!(!run.engine.is_complete());
    poll_shows(&mut run, &["1", "2", "3"], 0, 3);
    assert!(run.engine.is_complete());
}

#[test]
fn items_that_have_become_unreadable_leave_a_long_result_incomplete_and_have_it_read_again() {
    let mut run = run_with(300, 100);
    run.poll(false);
    assert!(run.engine.is_complete());
    run.server.unreadable = 1;
    poll_to_the_end(&mut run);
    assert!(!run.engine.is_complete());
    assert_eq!(run.engine.task(), Some(Task::Page(1)));
    while run.background(false) {}
    assert!(!run.engine.is_complete());
    run.server.unreadable = 0;
    run.now = due(&run.engine);
    run.poll(false);
    while run.background(false) {}
    assert!(run.engine.is_complete());
}

#[test]
fn a_burst_after_one_empty_answer_begins_a_reading_as_a_first_start_does() {
    let mut run = Run::new(false, 100, true);
    run.poll(false);
    assert!(!run.engine.has_gone_through());
    run.server.act(&Act::Open(250));
    run.poll(false);
    while run.background(false) {}
    assert!(run.engine.has_gone_through());
    run.assert_agreement();
}

#[test]
fn an_id_can_be_asked_for_if_it_cannot_be_mistaken_for_grammar() {
    for id in ["1", "a1b2-c3_D4"] {
        assert!(can_be_asked_for(id), "{id}");
    }
    for id in ["", "a:2", "a b", "a\"", "ä", "a+b", "a*"] {
        assert!(!can_be_asked_for(id), "{id}");
    }
}

#[test]
fn an_id_that_cannot_be_asked_for_is_looked_up_on_its_own_page_and_the_others_are_asked_for() {
    let mut run = Run::new(false, 10, true);
    poll_shows(&mut run, &["1", "a:2", "3", "a:4", "5"], 0, 5);
    // Two of the alerts are shown, and as many are counted as before.
    run.now += Duration::from_secs(600);
    poll_shows(&mut run, &["3", "a:2"], 0, 5);
    let Some(Task::Confirm(question)) = run.engine.task() else {
        panic!("{:?}", run.engine.task());
    };
    assert_eq!(
        &*question.witness, "3",
        "the last one that can be asked for"
    );
    let mut suspects = question.suspects.clone();
    suspects.sort();
    assert_eq!(suspects, ["1".into(), "5".into()]);
    run.engine.confirmation_failed(&question, run.now);
    let own_pages = ["1", "5", "a:4", "3"].map(Into::into).into();
    assert_eq!(run.engine.task(), Some(Task::Verify(own_pages)));
}

#[test]
fn own_pages_of_those_that_the_server_does_not_show_are_looked_at_in_turn() {
    let mut run = run_with(1_300, 500);
    run.server.answers_by_id = false;
    let mut looked_at = BTreeSet::new();
    let mut read = |run: &mut Run| {
        run.now += Duration::from_secs(600);
        run.poll(false);
        let mut count = 0;
        while let Some(task) = run.engine.task() {
            if task == Task::Page(2) {
                run.engine.page_refused(2, run.now);
                continue;
            }
            if let Task::Verify(ids) = &task {
                count += ids.len() - 1;
                looked_at.extend(ids.iter().cloned());
            }
            run.background(false);
        }
        (count, looked_at.len())
    };
    run.server.act(&Act::Close(0));
    assert_eq!(read(&mut run), (DOUBTED, DOUBTED + 1));
    assert_eq!(read(&mut run).1, 800 + 1, "and the witness");
    run.assert_agreement();
}

#[test]
fn own_pages_of_which_none_is_answered_are_asked_for_again_after_the_next_read() {
    let mut run = run_with(100, 10);
    run.server.answers_by_id = false;
    run.server.surplus = 1;
    run.server.act(&Act::CloseMany(0, 30));
    run.poll(false);
    for _ in 0..2 {
        let ids = loop {
            match run.engine.task() {
                Some(Task::Verify(ids)) => break ids,
                task => assert!(run.background(false), "{task:?}"),
            }
        };
        assert_eq!(ids.len(), REASONS + 1);
        run.engine.adopt_verdicts(&ids, &HashSet::new(), true);
        assert_eq!(run.engine.task(), None);
        run.now += Duration::from_secs(600);
        run.poll(false);
    }
    while run.background(false) {}
    run.assert_agreement();
}

#[test]
fn a_search_whose_answers_by_id_show_no_witness_is_not_asked_so_for_ever() {
    let mut run = run_with(300, 100);
    run.server.act(&Act::Close(5));
    let mut questions = 0;
    for _ in 0..10 {
        run.now += Duration::from_secs(600);
        run.poll(false);
        while let Some(task) = run.engine.task() {
            if matches!(task, Task::Confirm(_)) {
                questions += 1;
                run.lie = Some(Lie::of_nothing(100));
            }
            run.background(false);
        }
    }
    run.assert_agreement();
    assert!((2..9).contains(&questions), "{questions}");
}
