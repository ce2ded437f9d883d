use super::*;

#[tokio::test]
async fn what_a_receiver_cannot_take_in_time_goes_through_in_smaller_requests() {
    let gateway = |status| (100, Some(status), vec![512, 256, 128, 64, 64]);
    for (most, status, counts) in [
        (300, None, vec![512, 256, 256]),
        gateway(StatusCode::GATEWAY_TIMEOUT),
        gateway(StatusCode::REQUEST_TIMEOUT),
    ] {
        let (receiver, mut options) = Peer::start().await;
        receiver.0.lock().in_time = Some((most, status));
        options.timeout = Duration::from_secs(1);
        let mut otlp = Otlp::new(&options).unwrap();
        let events = alerts(0..512);
        let mut settled = 0;
        let mut tries = 0;
        while settled < events.len() {
            settled += otlp.deliver(&events[settled..], ours).await.settled;
            tries += 1;
            assert!(tries < 10, "{:?}", receiver.counts());
        }
        assert_eq!(receiver.counts()[..counts.len()], counts);
    }
}

/// A proxy's limit holds for the requests to come as well. A single event that is too large says
/// nothing about them.
#[tokio::test]
async fn after_a_request_that_is_too_large_requests_are_smaller() {
    let (receiver, options) = Peer::start().await;
    receiver.0.lock().most = Some(3);
    let mut otlp = Otlp::new(&options).unwrap();
    let mut counts = async || {
        let before = receiver.counts().len();
        assert_eq!(otlp.deliver(&alerts(0..10), ours).await.settled, 10);
        receiver.counts().split_off(before)
    };
    assert_eq!(counts().await, [10, 5, 2, 3, 5, 2, 3]);
    assert_eq!(counts().await, [5, 2, 3, 2, 2, 1]);
    assert_eq!(counts().await, [2, 2, 2, 2, 2]);
}

#[tokio::test]
async fn requests_hold_as_much_as_ever_once_a_receiver_answers_again() {
    let (receiver, options) = Peer::start().await;
    receiver.answer(StatusCode::GATEWAY_TIMEOUT);
    let mut otlp = Otlp::new(&options).unwrap();
    let events = alerts(0..6000);
    let mut settled = 0;
    while settled < events.len() {
        settled += otlp.deliver(&events[settled..], ours).await.settled;
    }
    let counts = receiver.counts();
    let small = ANSWERS_TO_RAISE as usize;
    assert_eq!(counts[0], 512);
    assert!(
        counts[1..=small].iter().all(|count| *count == 256),
        "{counts:?}"
    );
    assert_eq!(counts[small + 1..], [512, 512, 512, 368]);

    // A failure that has nothing to do with the size of requests leaves their limit as it is.
    receiver.answer(StatusCode::SERVICE_UNAVAILABLE);
    otlp.deliver(&events, ours).await;
    otlp.deliver(&events[..600], ours).await;
    assert_eq!(receiver.counts()[counts.len()..], [512, 512, 88]);
}

#[test]
fn the_limit_rises_only_after_many_answers_in_a_row_to_requests_as_large_as_that() {
    let mut limit = Limit::default();
    limit.halve(200);
    for _ in 0..ANSWERS_TO_RAISE {
        limit.raise(99);
    }
    for _ in 1..ANSWERS_TO_RAISE {
        limit.raise(100);
    }
    assert_eq!(limit.events, 100);
    limit.halve(100);
    for events in [50, 100, 200, 400, MAX_EVENTS, MAX_EVENTS] {
        assert_eq!(limit.events, events);
        for _ in 1..ANSWERS_TO_RAISE {
            limit.raise(events);
            assert_eq!(limit.events, events);
        }
        limit.raise(events);
    }
    limit.halve(1);
    assert_eq!(limit.events, 1);
}

#[tokio::test]
async fn requests_are_bounded_whatever_is_handed_in() {
    let (receiver, options) = Peer::start().await;
    let large = |id: u32, bytes: usize| {
        let mut record = bare();
        record.alert_id = id.to_string().into();
        record.fields.description = Some("x".repeat(bytes).into());
        pending(&record)
    };
    let mut events = alerts(0..1100);
    // Three of these events are more than a request may hold, and the last event exceeds that
    // alone.
    events.extend((1100..1103).map(|id| large(id, 400 << 10)));
    events.push(large(1103, MAX_BYTES + 1));
    events.extend(alerts(1104..1106));
    let progress = Otlp::new(&options).unwrap().deliver(&events, ours).await;
    assert_eq!(progress.settled, 1106, "{progress:?}");
    assert_eq!(receiver.counts(), [512, 512, 78, 1, 1, 2]);
    let inner = receiver.0.lock();
    let mut ids = Vec::new();
    for (_, request) in &inner.requests {
        let records = records(request);
        assert!(request.encoded_len() <= MAX_BYTES || records.len() == 1);
        ids.extend(
            records
                .iter()
                .map(|it| attribute(&it.attributes, "opsramp.alert_id")),
        );
    }
    let expected: Vec<_> = (0..1106).map(|id| id.to_string()).collect();
    assert_eq!(ids, expected);
}

#[tokio::test]
async fn a_slow_receivers_progress_is_told_before_everything_is_sent() {
    let (receiver, options) = Peer::start().await;
    receiver.0.lock().bad = Some(("700", StatusCode::BAD_REQUEST));
    let mut otlp = Otlp::new(&options).unwrap();
    // Every answer takes longer than this turn.
    otlp.time_slice = Duration::ZERO;
    let events = alerts(0..1000);
    let mut settled = Vec::new();
    let mut refused = 0;
    while settled.iter().sum::<usize>() < events.len() {
        let progress = otlp.deliver(&events[settled.iter().sum()..], ours).await;
        assert!(progress.error.is_none());
        settled.push(progress.settled);
        refused += progress.refused.len();
    }
    assert_eq!(settled[..2], [512, 122], "{settled:?}");
    assert_eq!(refused, 1);
    assert!(receiver.requests() < 60, "{}", receiver.requests());
}

#[tokio::test]
async fn what_others_deliver_in_the_meantime_is_not_sent() {
    let (receiver, options) = Peer::start().await;
    let mut otlp = Otlp::new(&options).unwrap();
    let events = alerts(0..600);
    // The process was stopped for a while during the first request.
    let seen = receiver.clone();
    let progress = otlp.deliver(&events, move || seen.requests() == 0).await;
    assert_eq!((progress.settled, receiver.counts()), (512, vec![512]));
    assert!(progress.error.is_none());
    let progress = otlp.deliver(&events, || false).await;
    assert_eq!((progress.settled, receiver.requests()), (0, 1));
}

/// An answer whose connection ends before its body has come.
fn broken() -> Response {
    let end = futures_util::stream::iter([Err::<Bytes, _>(io::Error::other("the end"))]);
    Body::from_stream(end).into_response()
}

#[tokio::test]
async fn connections_that_break_now_and_then_do_not_make_requests_smaller() {
    let (receiver, options) = Peer::start().await;
    let mut otlp = Otlp::new(&options).unwrap();
    // One delivery takes all events, also on a machine that has much else to do.
    otlp.time_slice = Duration::from_secs(60);
    // As where a receiver closes each connection after its first answer, without saying so.
    for _ in 0..10 {
        receiver.answer(broken());
        receiver.answer(StatusCode::OK);
    }
    let progress = otlp.deliver(&alerts(0..5000), ours).await;
    assert_eq!(progress.settled, 5000, "{progress:?}");
    assert!(progress.error.is_none(), "{progress:?}");
    let counts = receiver.counts();
    assert_eq!(counts[..18], [512; 18]);
    assert_eq!(counts[18..], [392; 2]);
}

#[tokio::test]
async fn connections_that_break_twice_in_a_row_do() {
    let (receiver, options) = Peer::start().await;
    let mut otlp = Otlp::new(&options).unwrap();
    let events = alerts(0..512);
    for answer in [broken(), broken(), broken(), StatusCode::OK.into_response()] {
        receiver.answer(answer);
    }
    // Only the first break is repeated at once.
    for requests in [2, 3] {
        let broke = error(otlp.deliver(&events, ours).await);
        assert!(matches!(broke, Error::Transport(_)), "{broke}");
        assert_eq!(receiver.requests(), requests);
    }
    assert_eq!(otlp.deliver(&events, ours).await.settled, 512);
    assert_eq!(receiver.counts(), [512, 512, 256, 128, 128, 128, 128]);

    // After the time of a turn, the events go on with the next one.
    receiver.answer(broken());
    otlp.time_slice = Duration::ZERO;
    let broke = error(otlp.deliver(&events, ours).await);
    assert!(matches!(broke, Error::Transport(_)), "{broke}");
    assert_eq!(otlp.deliver(&events, ours).await.settled, 128);
    assert_eq!(receiver.counts()[7..], [128, 128]);
}

#[tokio::test]
async fn what_is_no_longer_ours_when_its_connection_breaks_is_not_repeated() {
    let (receiver, options) = Peer::start().await;
    receiver.answer(broken());
    let seen = receiver.clone();
    let mut otlp = Otlp::new(&options).unwrap();
    let progress = otlp
        .deliver(&alerts([1]), move || seen.requests() == 0)
        .await;
    assert_eq!((progress.settled, receiver.requests()), (0, 1));
}

/// The request under way has its answer first.
#[tokio::test]
async fn no_further_request_is_sent_once_the_sink_has_to_stop() {
    let (receiver, options) = Peer::start().await;
    let mut otlp = Otlp::new(&options).unwrap();
    let progress = otlp
        .deliver(&alerts(0..600), || receiver.requests() == 0)
        .await;
    assert_eq!((progress.settled, receiver.counts()), (512, vec![512]));
    assert!(progress.error.is_none(), "{progress:?}");
    // In parts as well.
    receiver.0.lock().most = Some(100);
    let progress = otlp
        .deliver(&alerts(0..200), || receiver.requests() < 3)
        .await;
    assert_eq!((progress.settled, receiver.requests()), (100, 3));
}
