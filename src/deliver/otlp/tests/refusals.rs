use super::*;

#[tokio::test]
async fn a_partial_success_is_counted_and_not_repeated() {
    let (receiver, options) = Peer::start().await;
    let partial = ExportLogsServiceResponse {
        partial_success: Some(ExportLogsPartialSuccess {
            rejected_log_records: 2,
            error_message: "too old".to_owned(),
        }),
    };
    receiver.answer(([(CONTENT_TYPE, PROTOBUF)], partial.encode_to_vec()));
    let progress = Otlp::new(&options)
        .unwrap()
        .deliver(&alerts(0..5), ours)
        .await;
    assert_eq!(progress.settled, 5);
    assert_eq!(progress.refused.len(), 1);
    assert_eq!(progress.refused[0].events, 2);
    assert!(progress.refused[0].reason.contains("too old"));
    assert_eq!(receiver.requests(), 1);
}

#[tokio::test]
async fn so_is_one_that_says_something_of_every_event() {
    let (receiver, options) = Peer::start().await;
    let words = r#"\"too old\", [so], {so}, "#.repeat(10_000);
    let json =
        format!(r#"{{"partialSuccess":{{"rejectedLogRecords":"2","errorMessage":"{words}"}}}}"#);
    let partial = ExportLogsServiceResponse {
        partial_success: Some(ExportLogsPartialSuccess {
            rejected_log_records: 2,
            error_message: words,
        }),
    };
    receiver.answer(([(CONTENT_TYPE, PROTOBUF)], partial.encode_to_vec()));
    receiver.answer(([(CONTENT_TYPE, "application/json")], json));
    let mut otlp = Otlp::new(&options).unwrap();
    for _ in 0..2 {
        let progress = otlp.deliver(&alerts(0..5), ours).await;
        assert_eq!(progress.settled, 5, "{progress:?}");
        assert_eq!(progress.refused[0].events, 2);
        assert!(progress.refused[0].reason.len() < 1000);
    }
    assert_eq!(receiver.requests(), 2);
}

#[tokio::test]
async fn what_a_receiver_says_of_events_that_it_took_is_passed_on() {
    let (receiver, options) = Peer::start().await;
    let partial = ExportLogsServiceResponse {
        partial_success: Some(ExportLogsPartialSuccess {
            rejected_log_records: 0,
            error_message: "two attributes were cut".to_owned(),
        }),
    };
    receiver.answer(([(CONTENT_TYPE, PROTOBUF)], partial.encode_to_vec()));
    let progress = Otlp::new(&options)
        .unwrap()
        .deliver(&alerts([1]), ours)
        .await;
    assert_eq!(progress.settled, 1);
    assert!(progress.refused.is_empty());
    assert_eq!(progress.warnings, ["two attributes were cut"]);
}

#[tokio::test]
async fn a_batch_that_is_refused_is_split_until_the_bad_event_is_found() {
    for status in [
        StatusCode::BAD_REQUEST,
        StatusCode::PAYLOAD_TOO_LARGE,
        StatusCode::UNPROCESSABLE_ENTITY,
    ] {
        let (receiver, options) = Peer::start().await;
        receiver.0.lock().bad = Some(("37", status));
        let events = alerts(0..100);
        let progress = Otlp::new(&options).unwrap().deliver(&events, ours).await;
        assert_eq!(progress.settled, 100, "{progress:?}");
        assert_eq!(progress.refused.len(), 1);
        assert_eq!(progress.refused[0].events, 1);
        assert!(progress.refused[0].event_id.is_some());
        assert!(
            progress.refused[0].reason.contains(": bad event"),
            "{}",
            progress.refused[0].reason
        );
        assert!(receiver.requests() < 20, "{}", receiver.requests());

        // All other events were taken, once and in order.
        let inner = receiver.0.lock();
        let taken: Vec<_> = inner
            .requests
            .iter()
            .map(|(_, request)| {
                records(request)
                    .iter()
                    .map(|it| attribute(&it.attributes, "opsramp.alert_id"))
                    .collect::<Vec<_>>()
            })
            .filter(|ids| !ids.contains(&"37".to_owned()))
            .flatten()
            .collect();
        let expected: Vec<_> = (0..100)
            .filter(|&id| id != 37)
            .map(|id| id.to_string())
            .collect();
        assert_eq!(taken, expected);
    }
}

#[tokio::test]
async fn an_error_in_the_middle_of_a_split_keeps_what_was_delivered_before_it() {
    let (receiver, options) = Peer::start().await;
    receiver.answer(StatusCode::BAD_REQUEST);
    receiver.answer(StatusCode::OK);
    receiver.answer(StatusCode::SERVICE_UNAVAILABLE);
    let mut otlp = Otlp::new(&options).unwrap();
    let events = alerts(0..10);
    let progress = otlp.deliver(&events, ours).await;
    assert_eq!(progress.settled, 5);
    assert!(progress.error.is_some());
    let progress = otlp.deliver(&events[5..], ours).await;
    assert_eq!(progress.settled, 5);
    assert_eq!(records(&receiver.request(3)).len(), 5);
}

#[tokio::test]
async fn what_may_be_a_fault_of_the_setup_never_costs_an_event() {
    let (receiver, options) = Peer::start().await;
    let mut otlp = Otlp::new(&options).unwrap();
    let statuses = [
        401, 403, 404, 405, 407, 408, 410, 415, 429, 500, 501, 502, 503, 504,
    ];
    for status in statuses {
        let status = StatusCode::from_u16(status).unwrap();
        receiver.answer((status, "no\r\nluck"));
        let progress = otlp.deliver(&alerts(0..3), ours).await;
        assert_eq!(progress.settled, 0);
        let error = error(progress).to_string();
        let expected = format!("the receiver answered {status}: no luck");
        assert_eq!(error, expected);
    }
    assert_eq!(receiver.requests(), statuses.len());
}
