use std::{
    cell::{Cell, RefCell},
    pin::pin,
};

use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::*;

fn headers(pairs: &[(&'static str, &str)]) -> http::HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
        .collect()
}

/// The hints of a server that has `remaining` requests left and starts anew in `seconds`.
fn told(remaining: u32, seconds: u64) -> Hints {
    Hints {
        remaining: Some(remaining),
        resets_in: Some(Duration::from_secs(seconds)),
        ..Hints::default()
    }
}

/// The hints of a refusal after which nothing is to be asked for so many seconds.
fn quiet(seconds: u64) -> Hints {
    Hints {
        throttled: true,
        retry_after: Some(Duration::from_secs(seconds)),
        ..Hints::default()
    }
}

#[test]
fn headers_are_read_by_the_servers_own_clock() {
    // Our clock is an hour ahead of the server's.
    let ours: Timestamp = "2026-03-01T11:00:00Z".parse().unwrap();
    let headers = headers(&[
        ("date", "Sun, 01 Mar 2026 10:00:00 GMT"),
        ("x-ratelimit-limit", "\"50\""),
        ("x-ratelimit-remaining", " 7 "),
        ("x-ratelimit-reset", "1772359220"),
        ("retry-after", "Sun, 01 Mar 2026 10:00:30 GMT"),
    ]);
    let hints = Hints::read(429, &headers, ours);
    assert_eq!(hints.limit, Some(50));
    assert_eq!(hints.remaining, Some(7));
    assert_eq!(hints.resets_in, Some(Duration::from_secs(21)));
    assert_eq!(hints.retry_after, Some(Duration::from_secs(30)));
    assert!(hints.throttled);
}

#[test]
fn a_reset_that_has_passed_tells_no_wait() {
    let resets_in = |reset: &str| {
        let headers = headers(&[
            ("date", "Sun, 01 Mar 2026 10:00:00 GMT"),
            ("x-ratelimit-reset", reset),
        ]);
        Hints::read(429, &headers, Timestamp::UNIX_EPOCH).resets_in
    };
    let second = Duration::from_secs(1);
    assert_eq!(resets_in("1772359201"), Some(2 * second));
    assert_eq!(resets_in("1772359200"), Some(second));
    assert_eq!(resets_in("1772359199"), None);
    // Small numbers are the seconds that are left.
    assert_eq!(resets_in("20"), Some(21 * second));
    assert_eq!(resets_in("86399"), Some(86_400 * second));
    assert_eq!(resets_in("86400"), None);
}

#[test]
fn the_reset_is_shown_by_our_own_clock() {
    let server: Timestamp = "2026-03-01T10:00:00Z".parse().unwrap();
    let reset_at = |reset: &str, ahead: i64| {
        let headers = headers(&[
            ("date", "Sun, 01 Mar 2026 10:00:00 GMT"),
            ("x-ratelimit-reset", reset),
        ]);
        let hints = Hints::read(200, &headers, server + SignedDuration::from_secs(ahead));
        (hints.reset_at.unwrap() - server).as_secs()
    };
    assert_eq!(reset_at("1772359220", 0), 20);
    assert_eq!(reset_at("20", 0), 20);
    // The server's time is kept if the clocks may seem to differ only because the answer was under
    // way.
    assert_eq!(reset_at("1772359220", 2), 20);
    assert_eq!(reset_at("1772359220", 3600), 3620);
    assert_eq!(reset_at("20", 3600), 3620);
    assert_eq!(reset_at("1772359220", -120), -100);
}

#[test]
fn senseless_headers_are_no_hints() {
    let headers = headers(&[
        ("date", "yesterday"),
        ("x-ratelimit-limit", "many"),
        ("x-ratelimit-remaining", "-1"),
        ("x-ratelimit-reset", "99999999999999999"),
        ("retry-after", "soon"),
    ]);
    assert_eq!(
        Hints::read(200, &headers, Timestamp::UNIX_EPOCH),
        Hints::default()
    );
}

#[test]
fn whatever_the_server_asks_for_nobody_waits_longer_than_five_minutes() {
    for asked in ["301", "86400", "18446744073709551615"] {
        let hints = Hints::read(429, &headers(&[("retry-after", asked)]), Timestamp::MIN);
        assert_eq!(hints.retry_after, Some(MAX_PAUSE), "{asked}");
    }
}

#[test]
fn a_server_in_trouble_tells_nothing_of_the_allowance() {
    let headers = headers(&[
        ("x-ratelimit-limit", "1"),
        ("x-ratelimit-remaining", "0"),
        ("x-ratelimit-reset", "1772359220"),
    ]);
    let now = "2026-03-01T10:00:00Z".parse().unwrap();
    assert_eq!(Hints::read(503, &headers, now), Hints::default());
    assert_eq!(Hints::read(404, &headers, now).limit, Some(1));
}

#[test]
fn a_limit_that_is_not_told_again_lapses() {
    let start = Instant::now();
    let mut window = Window::new(50);
    let hints = Hints {
        limit: Some(1),
        ..Hints::default()
    };
    window.learn(&hints, start);
    assert_eq!(at_once(&mut window, start, Urgency::Poll, 0), 1);
    window.learn(&hints, start + MINUTE);
    let last = start + Duration::from_secs(6 * 60);
    let just_before = last - Duration::from_millis(1);
    assert_eq!(at_once(&mut window, just_before, Urgency::Poll, 0), 0);
    assert_eq!(at_once(&mut window, last, Urgency::Poll, 0), 49);
}

#[test]
fn nothing_is_asked_while_the_server_wants_quiet() {
    let start = Instant::now();
    let mut window = Window::new(50);
    window.take(start, Urgency::Poll, 0).unwrap();
    window.give_back(start, Urgency::Poll);
    window.learn(&quiet(7), start);
    assert_eq!(
        window.take(start, Urgency::Poll, 0),
        Err(start + Duration::from_secs(7))
    );
    // A shorter wait that another answer asks for does not end the longer one.
    window.learn(&quiet(3), start);
    assert_eq!(
        window.take(start, Urgency::Poll, 0),
        Err(start + Duration::from_secs(7))
    );
    assert_eq!(
        window.take(start + Duration::from_secs(7), Urgency::Poll, 0),
        Ok(())
    );
}

#[test]
fn what_others_used_is_respected() {
    let start = Instant::now();
    let mut window = Window::new(50);
    let hints = Hints {
        limit: Some(50),
        ..told(2, 30)
    };
    window.take(start, Urgency::Poll, 0).unwrap();
    window.give_back(start, Urgency::Poll);
    window.learn(&hints, start);
    assert_eq!(window.take(start, Urgency::Poll, 0), Ok(()));
    assert_eq!(window.take(start, Urgency::Poll, 0), Ok(()));
    assert_eq!(
        window.take(start, Urgency::Poll, 0),
        Err(start + Duration::from_secs(30))
    );
    assert_eq!(
        window.take(start + Duration::from_secs(30), Urgency::Poll, 0),
        Ok(())
    );
}

#[test]
fn a_reset_that_never_comes_does_not_stop_us_for_long() {
    let start = Instant::now();
    let mut window = Window::new(50);
    window.learn(&told(0, 1_000_000), start);
    assert_eq!(
        window.take(start, Urgency::Poll, 0),
        Err(start + Duration::from_secs(5 * 60))
    );
}

#[test]
fn a_wait_ends_when_the_request_that_is_in_the_way_is_a_minute_old() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut window = Window::new(3);
    window.take(start, Urgency::Background, 2).unwrap();
    assert_eq!(
        window.take(start, Urgency::Background, 2),
        Err(at(0) + Duration::from_millis(100))
    );
    window.give_back(start, Urgency::Background);
    for seconds in [10, 20] {
        window.take(at(seconds), Urgency::Poll, 0).unwrap();
        window.give_back(at(seconds), Urgency::Poll);
    }
    assert_eq!(window.take(at(30), Urgency::Poll, 0), Err(at(60)));
    assert_eq!(window.take(at(60), Urgency::Poll, 0), Ok(()));
    assert_eq!(
        window.take(at(61), Urgency::Poll, 0),
        Err(at(70)),
        "one is in flight"
    );
}

#[test]
fn within_a_window_of_the_server_the_lowest_count_is_true() {
    let start = Instant::now();
    let mut window = Window::new(50);
    let mut left = |hints: &Hints, now| {
        window.learn(hints, now);
        let left = window.server_balance.unwrap();
        (left.remaining, left.resets_at - start)
    };
    let seconds = Duration::from_secs;
    assert_eq!(left(&told(9, 20), start), (9, seconds(20)));
    assert_eq!(left(&told(12, 21), start), (9, seconds(21)), "overtaken");
    assert_eq!(left(&told(7, 20), start), (7, seconds(21)));
    assert_eq!(
        left(&told(40, 0), start),
        (7, seconds(21)),
        "long overtaken"
    );
    assert_eq!(left(&told(30, 23), start), (30, seconds(23)), "it slides");
    assert_eq!(
        left(&told(40, 80), start),
        (40, seconds(80)),
        "a new window"
    );
    assert_eq!(
        left(&told(45, 20), start),
        (45, seconds(20)),
        "the reset before was an odd one"
    );
}

#[test]
fn of_what_the_server_has_left_the_requests_under_way_may_have_a_part() {
    let start = Instant::now();
    let mut window = Window::new(50);
    for _ in 0..3 {
        window.take(start, Urgency::Poll, 0).unwrap();
    }
    // The answer is about one of the three.
    window.learn(&told(10, 30), start);
    assert_eq!(window.server_balance.unwrap().remaining, 8);
    window.give_back(start, Urgency::Poll);
    assert_eq!(window.all_in_flight(), 2);
}

#[test]
fn a_window_that_slides_does_not_run_out() {
    let start = Instant::now();
    let mut window = Window::new(50);
    for seconds in (0..600).step_by(5) {
        let now = start + Duration::from_secs(seconds);
        assert_eq!(window.take(now, Urgency::Poll, 12), Ok(()), "{seconds}");
        window.give_back(now, Urgency::Poll);
        window.learn(&told(49, 60), now);
    }
}

/// What a server counts, and which reset it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counts {
    /// The requests of the last minute. The reset is always a minute away.
    TheLastMinute,
    /// The requests in a leaky bucket. The reset is the time at which the bucket will be empty.
    ABucket,
}

/// Simulates a server where other programs make `others` requests a minute. We try as many polls
/// as possible, up to `wanted` a minute. Returns when each of them was made.
fn beside_others(counts: Counts, others: u32, wanted: f64) -> Vec<Duration> {
    let (start, latency) = (Instant::now(), Duration::from_millis(200));
    let mut window = Window::new(50);
    let mut arrived = Vec::new();
    let mut due = start;
    let mut level = 0.0_f64;
    for tenth in 0..6000 {
        level = (level - 50.0 / 600.0).max(0.0) + f64::from(others) / 600.0;
        let now = start + Duration::from_millis(100) * tenth;
        let may = now >= due && window.pace(now, Urgency::Poll, wanted, false).is_ok();
        if !may || window.take(now, Urgency::Poll, wanted as u32).is_err() {
            continue;
        }
        due += MINUTE.div_f64(wanted);
        arrived.push(now);
        level += 1.0;
        let counted = arrived.iter().rev().take_while(|at| now - **at < MINUTE);
        let (used, full_again) = match counts {
            Counts::TheLastMinute => (count(counted.count()) + others, 60),
            Counts::ABucket => (level.ceil() as u32, (level * 60.0 / 50.0) as u64),
        };
        assert!(used <= 50, "{used} at {:?}", now - start);
        let answered = now + latency;
        window.learn(&told(50 - used, full_again + 1), answered);
        window.give_back(answered, Urgency::Poll);
    }
    arrived.iter().map(|at| *at - start).collect()
}

#[test]
fn where_the_window_slides_or_a_bucket_leaks_what_others_leave_is_ours_and_comes_evenly() {
    let (window, bucket) = (Counts::TheLastMinute, Counts::ABucket);
    for (counts, others, wanted, expected) in [
        (window, 0, 40.0, 40),
        (window, 0, 50.0, 50),
        (window, 0, 80.0, 50),
        (window, 20, 25.0, 25),
        (window, 20, 60.0, 30),
        (bucket, 0, 40.0, 40),
        (bucket, 0, 80.0, 50),
        (bucket, 20, 25.0, 25),
        (bucket, 20, 60.0, 30),
        (bucket, 35, 60.0, 15),
    ] {
        let polls = beside_others(counts, others, wanted);
        let settled = polls.iter().filter(|at| **at >= 5 * MINUTE).count();
        let about = 5 * expected - expected / 4..=5 * expected + 1;
        assert!(
            about.contains(&settled),
            "{counts:?}, {others}, {wanted}: {settled}"
        );
        let longest = polls.windows(2).map(|pair| pair[1] - pair[0]).max();
        let apart = MINUTE / expected as u32;
        assert!(
            longest < Some(3 * apart + Duration::from_secs(1)),
            "{counts:?}, {others}, {wanted}: {longest:?}"
        );
    }
}

/// Returns a window that has learned from these answers, each given as the time when it comes and
/// the reset that it names.
fn after_answers(answers: &[(u64, u64)]) -> Window {
    let start = Instant::now();
    let mut window = Window::new(50);
    for (at, reset) in answers {
        let now = start + Duration::from_secs(*at);
        window.learn(&told(30, reset - at), now);
    }
    window
}

/// Returns `answers` answers from the time `from` on, `apart` seconds apart, each with a reset
/// `away` seconds away.
fn each(from: u64, apart: u64, answers: u64, away: u64) -> Vec<(u64, u64)> {
    let at = (0..answers).map(|number| from + number * apart);
    at.map(|at| (at, at + away)).collect()
}

#[test]
fn a_window_slides_where_its_reset_moves_on_with_the_time() {
    let slides = |answers: &[(u64, u64)]| {
        let window = after_answers(answers);
        (
            window.resets.is_sliding,
            window.server_balance.unwrap().sliding_limit,
        )
    };
    assert_eq!(slides(&each(0, 5, 4, 60)), (false, None));
    assert_eq!(slides(&each(0, 5, 5, 60)), (true, Some(31)));
    assert_eq!(slides(&each(0, 5, 5, 57)), (true, Some(31)));
    assert_eq!(slides(&each(0, 2, 8, 60)), (false, None));
    assert_eq!(slides(&each(0, 2, 9, 60)), (true, Some(31)));
    // One contrary answer is no proof, two are.
    let slid = each(0, 5, 5, 60);
    let and = |more: &[(u64, u64)]| slides(&[&slid, more].concat());
    assert_eq!(and(&[(25, 80)]), (true, Some(31)));
    assert_eq!(and(&[(25, 80), (30, 90), (35, 90)]), (true, Some(31)));
    assert_eq!(and(&[(25, 80), (30, 80)]), (false, None));
    assert_eq!(
        slides(&[(0, 60), (5, 61), (30, 60), (57, 60)]),
        (false, None)
    );
    // Fixed windows, one after the other.
    let still: Vec<_> = (0..60).map(|at| (at * 7, (at * 7 / 60 + 1) * 60)).collect();
    for answers in 1..still.len() {
        assert_eq!(slides(&still[..answers]), (false, None), "{answers}");
    }
    // Fixed windows that are asked once each, right after the reset.
    assert_eq!(slides(&each(1, 60, 9, 59)), (false, None));
    // A window of an hour: the reset counts as five minutes away at most.
    assert_eq!(slides(&each(0, 5, 9, 3600)), (false, None));
    // Two fixed windows that are counted separately.
    let two: Vec<_> = (0..12)
        .map(|at| (at * 5, [60, 65][at as usize % 2]))
        .collect();
    for answers in 1..two.len() {
        assert_eq!(slides(&two[..answers]), (false, None), "{answers}");
    }
}

#[test]
fn where_the_window_slides_the_limit_is_what_is_left_and_what_we_had_in_the_last_minute() {
    let mut window = after_answers(&each(0, 5, 5, 60));
    let (last, _) = window.resets.anchor.unwrap();
    window.answered.push_back((last, Urgency::Poll));
    let just_before = last + MINUTE - Duration::from_millis(1);
    assert_eq!(window.sliding_limit(30, just_before), Some(32));
    assert_eq!(window.sliding_limit(30, last + MINUTE), Some(31));
    window.learn(&told(90, 60), last + Duration::from_secs(5));
    assert_eq!(window.limit(), 50, "the ceiling is lower");
}

#[test]
fn a_bucket_that_leaks_is_no_window_that_slides() {
    // While the bucket fills, its reset moves on with time, but is never more than a minute away.
    let fills: Vec<_> = (0..10).map(|at| (at * 5, at * 10 + 8)).collect();
    for answers in 1..fills.len() {
        assert!(
            !after_answers(&fills[..answers]).resets.is_sliding,
            "{answers}"
        );
    }
    // The reset of a bucket that stays at the same level moves on as well.
    assert!(!after_answers(&each(0, 5, 20, 30)).resets.is_sliding);
}

#[test]
fn the_lower_of_two_limits_counts_and_none_of_zero() {
    let mut window = Window::new(50);
    let mut limit = |told| {
        let hints = Hints {
            limit: Some(told),
            ..Hints::default()
        };
        window.learn(&hints, Instant::now());
        window.limit()
    };
    assert_eq!(limit(100), 50);
    assert_eq!(limit(20), 20);
    assert_eq!(limit(0), 20);
    assert_eq!(limit(1), 1);
}

#[test]
fn a_ceiling_that_changes_counts_at_once_with_what_was_asked_before() {
    let now = Instant::now();
    let allowance = Allowance::new(2);
    let at_once = || at_once(&mut allowance.window.lock(), now, Urgency::Poll, 0);
    assert_eq!(at_once(), 2);
    allowance.set_ceiling(5);
    assert_eq!(at_once(), 3);
    allowance.set_ceiling(3);
    assert_eq!(at_once(), 0);
    // Nothing works without any request.
    assert_eq!(Window::new(0).limit(), 1);
}

#[test]
fn a_refusal_without_a_wait_is_waited_out_until_the_reset() {
    let start = Instant::now();
    let waits = |resets_in| {
        let mut window = Window::new(50);
        let hints = Hints {
            resets_in,
            throttled: true,
            ..Hints::default()
        };
        window.learn(&hints, start);
        window.take(start, Urgency::Poll, 0).unwrap_err() - start
    };
    assert_eq!(
        waits(Some(Duration::from_secs(40))),
        Duration::from_secs(40)
    );
    assert_eq!(waits(None), DEFAULT_PAUSE);
}

#[test]
fn a_refusal_where_the_window_slides_is_waited_out_until_a_request_is_forgotten() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut window = Window::new(50);
    for seconds in (0..=55).step_by(5) {
        window.take(at(seconds), Urgency::Poll, 0).unwrap();
        window.learn(&told(30, 61), at(seconds));
        window.give_back(at(seconds), Urgency::Poll);
    }
    let waits = |window: &mut Window, retry_after| {
        let refused = Hints {
            throttled: true,
            retry_after,
            ..told(0, 61)
        };
        window.paused_until = None;
        window.in_flight[0] += 1;
        window.learn(&refused, at(57));
        window.give_back(at(57), Urgency::Poll);
        window.paused_until.unwrap() - at(57)
    };
    assert_eq!(waits(&mut window, None), MINUTE / 12);
    assert_eq!(window.answered.len(), 12, "it is none that counts");
    let told_to = Some(Duration::from_secs(20));
    assert_eq!(waits(&mut window, told_to), Duration::from_secs(20));
    window.answered.drain(..10);
    assert_eq!(waits(&mut window, None), Duration::from_secs(53));
    window.resets.is_sliding = false;
    assert_eq!(waits(&mut window, None), Duration::from_secs(61));
}

#[test]
fn a_refusal_that_tells_nothing_is_none_that_counts_where_the_window_slides() {
    let start = Instant::now();
    let mut window = after_answers(&each(0, 5, 5, 60));
    let refused = Hints {
        throttled: true,
        ..Hints::default()
    };
    for (slide, counted) in [(true, 0), (false, 1)] {
        window.resets.is_sliding = slide;
        let now = start + MINUTE * 2;
        window.paused_until = None;
        window.take(now, Urgency::Poll, 0).unwrap();
        window.learn(&refused, now);
        window.give_back(now, Urgency::Poll);
        assert_eq!((window.answered.len(), window.refused), (counted, 0));
    }
}

#[test]
fn a_rate_limit_is_shown_where_all_of_it_was_told() {
    let hints = Hints {
        limit: Some(50),
        remaining: Some(7),
        reset_at: Some(Timestamp::UNIX_EPOCH),
        ..Hints::default()
    };
    let shown = hints.rate_limit().unwrap();
    assert_eq!((shown.limit, shown.remaining), (50, 7));
    assert_eq!(shown.reset_at, Timestamp::UNIX_EPOCH);
    let part = Hints {
        remaining: None,
        ..hints
    };
    assert_eq!(part.rate_limit(), None);
}

/// Takes requests until none is free. Returns how many there were.
fn at_once(window: &mut Window, now: Instant, urgency: Urgency, polls: u32) -> usize {
    std::iter::from_fn(|| window.take(now, urgency, polls).ok()).count()
}

#[test]
fn full_reads_leave_what_polls_need_and_a_fifth() {
    let now = Instant::now();
    for (polls, left) in [(0, 40), (7, 33), (20, 20), (34, 6), (36, 5), (60, 5)] {
        let mut window = Window::new(50);
        let background = Urgency::Background;
        assert_eq!(
            at_once(&mut window, now, background, polls),
            left,
            "{polls}"
        );
    }
}

#[test]
fn polls_beyond_those_that_were_expected_leave_full_reads_no_more_than_their_tenth() {
    let now = Instant::now();
    let mut window = Window::new(50);
    for _ in 0..40 {
        window.take(now, Urgency::Poll, 0).unwrap();
    }
    assert_eq!(at_once(&mut window, now, Urgency::Background, 0), 5);
}

#[test]
fn further_pages_do_not_wait_while_they_leave_polls_what_they_need_but_have_a_quarter() {
    let now = Instant::now();
    for (millis, pages) in [
        (1_000, 13),
        (1_600, 13),
        (2_000, 20),
        (10_000, 44),
        (60_000, 49),
    ] {
        let allowance = Allowance::new(50);
        allowance.reserve(Duration::from_millis(millis));
        let at_once = std::iter::from_fn(|| allowance.take(now, Urgency::FurtherPage).ok());
        assert_eq!(at_once.count(), pages, "{millis}");
    }
}

/// Polls use the whole allowance, in a queue of eight. Then a poll finds a burst.
#[tokio::test(start_paused = true)]
async fn further_pages_within_their_quarter_wait_for_one_poll_at_most() {
    let allowance = Allowance::new(40);
    let began = Instant::now();
    let poll = async || {
        allowance.reserve(Duration::from_secs(1));
        while began.elapsed() < 4 * MINUTE {
            drop(allowance.acquire(Urgency::Poll, |_| {}).await);
        }
    };
    let burst = async || {
        tokio::time::sleep(2 * MINUTE + Duration::from_millis(700)).await;
        let mut had = Vec::new();
        for _ in 0..12 {
            let asked = Instant::now();
            drop(allowance.acquire(Urgency::FurtherPage, |_| {}).await);
            had.push(asked.elapsed());
        }
        had
    };
    let (_, waited) = tokio::join!(join_all((0..8).map(|_| poll())), burst());
    let (within, beyond) = waited.split_at(10);
    let turn = MINUTE / 40;
    assert!(
        within.iter().all(|waited| *waited <= 2 * turn),
        "{waited:?}"
    );
    assert!(beyond.iter().all(|waited| *waited > 5 * turn), "{waited:?}");
}

#[test]
fn what_full_reads_had_is_no_longer_there_for_polls() {
    let now = Instant::now();
    let mut window = Window::new(50);
    assert_eq!(at_once(&mut window, now, Urgency::Background, 12), 28);
    assert_eq!(at_once(&mut window, now, Urgency::FurtherPage, 12), 22);
    assert_eq!(at_once(&mut window, now, Urgency::Poll, 12), 0);
}

#[test]
fn what_is_left_after_a_burst_lasts_until_requests_become_free() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut window = Window::new(50);
    for _ in 0..45 {
        window.take(start, Urgency::FurtherPage, 0).unwrap();
        window.give_back(start, Urgency::FurtherPage);
    }
    let mut next = |now| {
        window.pace(now, Urgency::Poll, 12.0, false)?;
        window.take(now, Urgency::Poll, 12)?;
        window.give_back(now, Urgency::Poll);
        Ok(())
    };
    for seconds in (10..60).step_by(10) {
        let just_before = at(seconds) - Duration::from_millis(1);
        assert_eq!(next(just_before), Err(at(seconds)));
        assert_eq!(next(at(seconds)), Ok(()));
    }
    assert_eq!(next(at(51)), Err(at(60)));
}

#[test]
fn polls_that_were_made_are_part_of_what_is_kept_for_them() {
    let start = Instant::now();
    for polls in [1, 10, 20, 30, 35, 45, 60] {
        let mut window = Window::new(50);
        let mut background = 0;
        for tenth in 0..3000 {
            let now = start + Duration::from_millis(100 * tenth);
            if tenth % (600 / polls) == 0 && window.take(now, Urgency::Poll, 0).is_ok() {
                window.give_back(now, Urgency::Poll);
            }
            if window.take(now, Urgency::Background, polls as u32).is_ok() {
                window.give_back(now, Urgency::Background);
                background += 1;
            }
        }
        let part = 40u64.saturating_sub(polls).max(5);
        assert!(
            (5 * part - 1..=6 * part).contains(&background),
            "{polls}: {background}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_search_is_reserved_as_long_as_it_is_polled() {
    let allowances = Allowances::default();
    let share = || allowances.share(&"https://a.example/".into(), "client_1", None);
    let reserved = || share().search().reserved.load(Ordering::Relaxed);
    let every_ten_seconds = share().reserve(Duration::from_secs(10));
    let every_two_minutes = share().reserve(Duration::from_secs(120));
    assert_eq!(reserved(), 6_500);
    drop(every_ten_seconds);
    assert_eq!(reserved(), 500);
    drop(every_two_minutes);
    assert_eq!(reserved(), 0);
    let _without_a_pause = share().reserve(Duration::ZERO);
    assert_eq!(reserved(), 1_000_000);
}

#[tokio::test(start_paused = true)]
async fn what_an_answer_says_counts_for_everyone_who_asks() {
    let allowance = Allowance::new(50);
    allowance.learn(&quiet(7));
    let began = Instant::now();
    drop(allowance.acquire(Urgency::Poll, |_| {}).await);
    assert_eq!(began.elapsed().as_secs(), 7);
}

#[test]
fn of_what_the_server_has_left_less_is_kept_as_the_reset_comes_near() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut window = Window::new(500);
    window.learn(&told(20, 30), start);
    assert_eq!(at_once(&mut window, start, Urgency::Background, 20), 10);
    assert_eq!(at_once(&mut window, at(15), Urgency::Background, 20), 5);
    assert_eq!(window.take(at(15), Urgency::Background, 20), Err(at(30)));
    // This also holds for the tenth that full reads always have.
    let mut window = Window::new(50);
    window.learn(&told(15, 60), start);
    assert_eq!(window.take(start, Urgency::Background, 20), Err(at(60)));
    // But not where polls leave no tenth, because full reads must come to an end.
    let mut window = Window::new(50);
    window.learn(&told(1, 60), start);
    assert_eq!(window.take(start, Urgency::Background, 45), Err(at(60)));
    assert_eq!(window.take(start, Urgency::Background, 46), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn full_reads_wait_while_polls_go_on() {
    let allowance = Allowance::new(10);
    allowance.reserve(Duration::from_secs(30));
    for _ in 0..6 {
        drop(
            allowance
                .acquire(Urgency::Background, |_| panic!("there is room"))
                .await,
        );
    }
    drop(
        allowance
            .acquire(Urgency::Poll, |_| panic!("there is room"))
            .await,
    );
    let mut naps = Vec::new();
    drop(
        allowance
            .acquire(Urgency::Background, |nap| naps.push(nap))
            .await,
    );
    let waited: Duration = naps.iter().sum();
    assert!(waited >= MINUTE - Duration::from_secs(1), "{waited:?}");
    assert!(naps.len() > 50, "the time shows while it goes by: {naps:?}");
}

#[test]
fn where_polls_need_everything_full_reads_have_a_tenth() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut window = Window::new(50);
    for _ in 0..40 {
        window.take(start, Urgency::Poll, 0).unwrap();
        window.give_back(start, Urgency::Poll);
    }
    let mut background = |now| window.take(now, Urgency::Background, 46);
    for _ in 0..5 {
        assert_eq!(background(at(10)), Ok(()));
    }
    assert_eq!(background(at(10)), Err(at(10) + Duration::from_millis(100)));
    for seconds in 11..=15 {
        window.give_back(at(seconds), Urgency::Background);
    }
    let mut background = |now| window.take(now, Urgency::Background, 46);
    assert_eq!(
        background(at(61)),
        Err(at(71)),
        "polls are forgotten, its own are not"
    );
    assert_eq!(background(at(71)), Ok(()));
    assert_eq!(background(at(71)), Err(at(72)));
    // Full reads may use everything that polls leave.
    assert_eq!(window.take(at(71), Urgency::Background, 34), Ok(()));
    assert_eq!(window.take(at(71), Urgency::Background, 34), Err(at(72)));
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_another_to_have_a_turn_tells_of_it_meanwhile_and_keeps_its_place() {
    let allowance = Allowance::new(50);
    allowance.learn(&quiet(20));
    let waited = [(); 3].map(|()| Cell::new(Duration::ZERO));
    let served = RefCell::new(Vec::new());
    let (allowance, waited, served) = (&allowance, &waited, &served);
    let wait = |number: usize| async move {
        let tell = |more| waited[number].set(waited[number].get() + more);
        let permit = allowance.acquire(Urgency::Poll, tell).await;
        served.borrow_mut().push(number);
        permit
    };
    let (mut first, mut second) = (pin!(wait(0)), pin!(wait(1)));
    let began = Instant::now();
    let both = async { tokio::join!(&mut first, &mut second) };
    assert!(
        tokio::time::timeout(Duration::from_secs(10), both)
            .await
            .is_err()
    );
    for waited in &waited[..2] {
        assert!(waited.get() >= Duration::from_secs(9), "{waited:?}");
    }
    // A caller that comes later does not overtake those that wait.
    let _permits = tokio::join!(wait(2), &mut first, &mut second);
    assert_eq!(began.elapsed().as_secs(), 20);
    assert_eq!(*served.borrow(), [0, 1, 2]);
    assert!(waited[1].get().abs_diff(Duration::from_secs(20)) < Duration::from_millis(10));
}

#[test]
fn polls_keep_apart_where_they_want_more_than_there_is() {
    let start = Instant::now();
    let mut window = Window::new(50);
    let millis = Duration::from_millis;
    let spacing = |window: &Window, now, wanted, full_reads_wait| {
        window.spacing(now, now, wanted, full_reads_wait)
    };
    assert_eq!(spacing(&window, start, 50.0, false), Duration::ZERO);
    assert_eq!(spacing(&window, start, 45.0, true), Duration::ZERO);
    assert_eq!(spacing(&window, start, 46.0, true), MINUTE / 45);
    assert_eq!(spacing(&window, start, 51.0, false), millis(1_200));
    assert_eq!(spacing(&window, start, 51.0, true), MINUTE / 45);
    assert_eq!(spacing(&Window::new(1), start, 5.0, true), MINUTE);
    // Other programs left ten requests, for half a minute.
    window.learn(&told(10, 30), start);
    assert_eq!(spacing(&window, start, 22.0, false), Duration::ZERO);
    assert_eq!(spacing(&window, start, 24.0, false), millis(3_000));
    assert_eq!(spacing(&window, start, 30.0, false), millis(3_000));
    assert_eq!(spacing(&window, start, 300.0, false), millis(3_000));
    let later = start + Duration::from_secs(21);
    assert_eq!(spacing(&window, later, 300.0, false), millis(1_200));
    assert_eq!(
        spacing(&window, start + MINUTE, 30.0, false),
        Duration::ZERO
    );
    window.learn(&told(0, 30), start);
    assert_eq!(spacing(&window, start, 30.0, false), millis(30_000));
}

#[test]
fn the_pace_of_polls_follows_from_what_is_reserved() {
    let now = Instant::now();
    let allowance = Allowance::new(50);
    allowance.reserve(Duration::from_secs(1));
    assert_eq!(allowance.take(now, Urgency::Poll), Ok(()));
    let next = now + Duration::from_millis(1_200);
    assert_eq!(allowance.take(now, Urgency::Poll), Err(next));
}

#[test]
fn whoever_had_the_only_request_leaves_the_next_one_to_the_other_side_if_that_waits() {
    let now = Instant::now();
    let (poll, page, full_read) = (Urgency::Poll, Urgency::FurtherPage, Urgency::Background);
    let mut window = Window::new(1);
    assert!(!window.leaves_turn(poll, true, true), "nobody had any");
    window.take(now, full_read, 0).unwrap();
    assert!(window.leaves_turn(full_read, true, false));
    assert!(!window.leaves_turn(full_read, false, true));
    assert!(!window.leaves_turn(poll, true, true));
    window.last_urgency = Some(page);
    assert!(window.leaves_turn(poll, false, true));
    assert!(!window.leaves_turn(poll, true, false));
    assert!(!window.leaves_turn(full_read, true, true));
    window.ceiling = 2;
    assert!(!window.leaves_turn(poll, false, true));

    let allowance = Allowance::new(1);
    allowance.window.lock().last_urgency = Some(full_read);
    let waits = allowance.next.try_lock().unwrap();
    assert_eq!(allowance.take(now, full_read), Err(now + RECHECK_INTERVAL));
    drop(waits);
    assert_eq!(allowance.take(now, full_read), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn polls_that_have_enough_do_not_wait() {
    let allowance = Allowance::new(50);
    allowance.reserve(Duration::from_secs(2));
    for _ in 0..50 {
        let none = |_| panic!("there is room");
        drop(allowance.acquire(Urgency::Poll, none).await);
    }
}

/// Lets `searches` searches be polled every `interval` for ten minutes. Returns when each search
/// had its turns, and when full reads had theirs.
async fn scarcity(
    limit: u32,
    searches: u32,
    interval: Duration,
    full_reads: bool,
) -> (Vec<Vec<Duration>>, Vec<Duration>) {
    let allowance = Allowance::new(limit);
    let began = Instant::now();
    let search = async |urgency| {
        allowance.reserve(interval);
        let mut turns = Vec::new();
        while began.elapsed() < 10 * MINUTE {
            let permit = allowance.acquire(urgency, |_| {}).await;
            turns.push(began.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(permit);
            if urgency == Urgency::Poll {
                tokio::time::sleep(interval).await;
            }
        }
        turns
    };
    let polls = join_all((0..searches).map(|_| search(Urgency::Poll)));
    if full_reads {
        tokio::join!(polls, search(Urgency::Background))
    } else {
        (polls.await, Vec::new())
    }
}

#[tokio::test(start_paused = true)]
async fn searches_that_want_more_than_there_is_are_polled_evenly_and_full_reads_go_on() {
    for full_reads in [false, true] {
        let interval = Duration::from_secs(5);
        let (polls, background) = scarcity(50, 10, interval, full_reads).await;
        let share = if full_reads { 45.0 } else { 50.0 };
        let expected = MINUTE.mul_f64(10.0 / share);
        for turns in &polls {
            // In the first minute, full reads use their tenth at once.
            let settled = turns
                .iter()
                .filter(|turn| (MINUTE..9 * MINUTE).contains(*turn));
            let settled: Vec<_> = settled.collect();
            let mut apart = settled.windows(2).map(|pair| *pair[1] - *pair[0]);
            assert!(
                apart.all(|apart| apart.abs_diff(expected) < expected / 20),
                "{turns:?}"
            );
        }
        assert!(!full_reads || (45..=51).contains(&background.len()));
    }
}

/// When a request of a poll was asked for, and when it had its turn.
#[derive(Debug)]
struct Turn {
    page: u32,
    asked: Duration,
    had: Duration,
}

/// Polls a search every ten seconds for ten minutes, `pages` pages each time.
async fn poll_pages(allowance: &Allowance, pages: u32) -> Vec<Turn> {
    let (began, interval) = (Instant::now(), Duration::from_secs(10));
    allowance.reserve(interval);
    let mut turns = Vec::new();
    let mut due = began;
    while began.elapsed() < 10 * MINUTE {
        tokio::time::sleep_until(due).await;
        for page in 1..=pages {
            let asked = began.elapsed();
            let urgency = if page == 1 {
                Urgency::Poll
            } else {
                Urgency::FurtherPage
            };
            let permit = allowance.acquire(urgency, |_| {}).await;
            let had = began.elapsed();
            turns.push(Turn { page, asked, had });
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(permit);
        }
        due = (due + interval).max(Instant::now());
    }
    turns
}

#[tokio::test(start_paused = true)]
async fn searches_that_need_further_pages_share_the_allowance_evenly() {
    for (pages, busy) in [(2, 6), (2, 20), (5, 3), (26, 6)] {
        let allowance = Allowance::new(50);
        let others = (0..busy).map(|_| poll_pages(&allowance, pages));
        let (quiet, others) = tokio::join!(poll_pages(&allowance, 1), join_all(others));
        let what = format!("{busy} searches of {pages} pages");
        let interval = Duration::from_secs(10);
        let round = MINUTE * (busy + 1) / 50;
        let is_settled = |turn: &&Turn| (MINUTE..9 * MINUTE).contains(&turn.had);

        let polls: Vec<_> = quiet.iter().filter(is_settled).collect();
        let apart = polls.windows(2).map(|pair| pair[1].had - pair[0].had).max();
        assert!(apart < Some(interval + round), "{what}: {apart:?}");
        let mean = 8 * MINUTE / count(polls.len());
        assert!(mean < interval.max(round).mul_f64(1.1), "{what}: {mean:?}");

        let further = others
            .iter()
            .flatten()
            .filter(is_settled)
            .filter(|turn| turn.page > 1);
        let waited = further.map(|turn| turn.had - turn.asked).max();
        assert!(waited < Some(interval + 2 * round), "{what}: {waited:?}");

        let settled = others.iter().flatten().chain(&quiet).filter(is_settled);
        let used = settled.count() / 8;
        assert!((49..=50).contains(&used), "{what}: {used} a minute");
    }
}

#[tokio::test(start_paused = true)]
async fn polls_and_full_reads_take_turns_where_there_are_hardly_any_requests() {
    for (limit, searches, seconds) in [
        (1, 1, 5),
        (1, 1, 30),
        (1, 1, 60),
        (1, 3, 30),
        (2, 1, 30),
        (2, 1, 5),
        (2, 3, 30),
    ] {
        let interval = Duration::from_secs(seconds);
        let (polls, background) = scarcity(limit, searches, interval, true).await;
        let within =
            |turns: &Vec<Duration>| turns.iter().filter(|turn| **turn < 10 * MINUTE).count();
        let turns = (polls.iter().map(within).sum::<usize>(), within(&background));
        let each = 5 * limit as usize;
        let about = each - 1..=each + 1;
        assert!(
            about.contains(&turns.0) && about.contains(&turns.1),
            "{limit}, {searches} every {seconds} s: {turns:?}"
        );
    }
}

proptest! {
    /// Whatever the pace, the server never counts more than the limit in any minute, even if
    /// requests arrive at any moment between being sent and being answered.
    #[test]
    fn no_minute_holds_more_than_the_limit(
        limit in 1u32..60,
        steps in proptest::collection::vec(
            (0u64..3_000, 0u64..2_000, 0.0..=1.0, 0usize..3, 0u32..60),
            1..400,
        ),
    ) {
        let mut now = Instant::now();
        let mut window = Window::new(limit);
        let mut arrivals = Vec::new();
        for (pause, latency, way, urgency, polls) in steps {
            now += Duration::from_millis(pause);
            let urgency = [Urgency::Poll, Urgency::FurtherPage, Urgency::Background][urgency];
            match window.take(now, urgency, polls) {
                Ok(()) => {
                    // The server counts a request when it arrives.
                    let latency = Duration::from_millis(latency);
                    arrivals.push(now + latency.mul_f64(way));
                    now += latency;
                    window.give_back(now, urgency);
                }
                Err(at) => prop_assert!(at > now, "a wait must be a wait"),
            }
        }
        for (index, first) in arrivals.iter().enumerate() {
            let within = arrivals[index..].iter().take_while(|at| **at - *first < MINUTE).count();
            prop_assert!(within <= limit as usize, "{within} requests in a minute of {limit}");
        }
    }

    #[test]
    fn full_reads_leave_polls_their_part_and_come_to_an_end(limit in 1u32..200, polls in 0u32..400) {
        let now = Instant::now();
        let mut window = Window::new(limit);
        let background = at_once(&mut window, now, Urgency::Background, polls);
        let left = limit.saturating_sub(polls + limit / 5).max(limit.div_ceil(10));
        prop_assert_eq!(background, left as usize);
    }
}
