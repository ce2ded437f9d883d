use super::*;

#[tokio::test]
async fn a_page_of_html_never_costs_an_event() {
    for status in [400, 422] {
        let status = StatusCode::from_u16(status).unwrap();
        let untyped = (status, " \r\n<!doctype html>no").into_response();
        let bare = (status, [(CONTENT_TYPE, "Text/HTML")], "no").into_response();
        for page in [page_of(status), untyped, bare] {
            let (receiver, options) = Peer::start().await;
            receiver.answer(page);
            let mut otlp = Otlp::new(&options).unwrap();
            let progress = otlp.deliver(&alerts([1]), ours).await;
            assert_eq!(progress.settled, 0);
            assert!(progress.refused.is_empty());
            let text = error(progress).to_string();
            let expected = format!("the receiver answered {status} with a page of HTML");
            assert!(text.starts_with(&expected), "{text}");
            assert_eq!(otlp.deliver(&alerts([1]), ours).await.settled, 1);
        }
    }
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut encoder, body).unwrap();
    encoder.finish().unwrap()
}

/// A compressed answer that claims to be JSON.
fn compressed(status: StatusCode, body: Vec<u8>) -> Response {
    let headers = [
        (CONTENT_TYPE, "application/json"),
        (CONTENT_ENCODING, "GZip"),
    ];
    (status, headers, body).into_response()
}

#[tokio::test]
async fn a_compressed_answer_means_what_it_says() {
    let (receiver, options) = Peer::start().await;
    let mut otlp = Otlp::new(&options).unwrap();
    let partial = br#"{"partialSuccess":{"rejectedLogRecords":"1","errorMessage":"too old"}}"#;
    receiver.answer(compressed(StatusCode::OK, gzip(partial)));
    let progress = otlp.deliver(&alerts(0..3), ours).await;
    assert_eq!(progress.settled, 3, "{progress:?}");
    assert_eq!(progress.refused[0].events, 1);

    receiver.answer(compressed(StatusCode::BAD_REQUEST, gzip(b"bad event")));
    let progress = otlp.deliver(&alerts([1]), ours).await;
    let reason = &progress.refused[0].reason;
    assert!(reason.ends_with(": bad event"), "{reason}");

    // The stream may have several members, and something may follow it.
    let [mut parts, end] = [&partial[..20], &partial[20..]].map(gzip);
    parts.extend(end);
    for tail in [&b""[..], b"\n", b"\0\0\0"] {
        receiver.answer(compressed(StatusCode::OK, [&parts, tail].concat()));
        let progress = otlp.deliver(&alerts(0..3), ours).await;
        assert_eq!(progress.refused[0].events, 1, "{progress:?}");
    }

    // A body that is declared compressed may be plain.
    receiver.answer(compressed(StatusCode::OK, b"{}".into()));
    assert_eq!(otlp.deliver(&alerts(0..3), ours).await.settled, 3);
    receiver.answer(compressed(StatusCode::BAD_REQUEST, b"bad event".into()));
    let progress = otlp.deliver(&alerts([1]), ours).await;
    let reason = &progress.refused[0].reason;
    assert!(reason.ends_with(": bad event"), "{reason}");

    // Neither a page nor half an answer costs an event.
    let corrupt = ([(CONTENT_ENCODING, "gzip")], &b"\x1f\x8b\x08"[..]);
    let bad = StatusCode::BAD_REQUEST;
    for answer in [
        compressed(bad, gzip(b"<html>no</html>")),
        (bad, corrupt).into_response(),
        compressed(StatusCode::BAD_GATEWAY, gzip(b"<html>no</html>")),
    ] {
        receiver.answer(answer);
        let progress = otlp.deliver(&alerts([1]), ours).await;
        assert_eq!(progress.settled, 0, "{progress:?}");
    }
}

#[tokio::test]
async fn what_a_proxy_calls_too_large_goes_through_in_parts_and_what_is_alone_is_let_go_of() {
    let (receiver, options) = Peer::start().await;
    receiver.0.lock().most = Some(3);
    let mut otlp = Otlp::new(&options).unwrap();
    let progress = otlp.deliver(&alerts(0..10), ours).await;
    assert_eq!(progress.settled, 10, "{progress:?}");
    assert!(progress.refused.is_empty());

    receiver.answer(page_of(StatusCode::PAYLOAD_TOO_LARGE));
    let events = alerts(0..3);
    let progress = otlp.deliver(&events[..1], ours).await;
    assert_eq!((progress.settled, progress.refused.len()), (1, 1));
    assert!(progress.error.is_none(), "{progress:?}");
    let refusal = &progress.refused[0];
    assert_eq!(refusal.events, 1);
    assert_eq!(refusal.event_id, Some(events[0].event.event_id));
    let bytes = receiver.request(receiver.requests() - 1).encoded_len();
    for said in [
        "the receiver answered 413 Payload Too Large",
        &format!("takes {bytes} bytes before"),
        "raise the limit",
    ] {
        assert!(refusal.reason.contains(said), "{}", refusal.reason);
    }
    // The events behind the refused one need not wait.
    assert_eq!(otlp.deliver(&events[1..], ours).await.settled, 2);
}

#[tokio::test]
async fn plain_http_to_a_server_that_expects_tls_never_costs_an_event() {
    let (receiver, options) = Peer::start().await;
    for words in [
        "Client sent an HTTP request to an HTTPS server.\n",
        "Bad Request\r\nThis combination of host and port requires TLS.\r\n",
        "<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>",
        "<p>You're speaking plain HTTP to an SSL-enabled server port.</p>",
    ] {
        receiver.answer((StatusCode::BAD_REQUEST, words));
        let progress = Otlp::new(&options)
            .unwrap()
            .deliver(&alerts([1]), ours)
            .await;
        assert_eq!(progress.settled, 0);
        let text = error(progress).to_string();
        let expected = "the receiver answered 400 Bad Request, for it expects TLS: ";
        assert!(text.starts_with(expected), "{text}");
    }
    // An event's own words may be about TLS.
    let words = "bad event: The plain HTTP request was sent to HTTPS port";
    receiver.answer((StatusCode::BAD_REQUEST, words));
    let mut otlp = Otlp::new(&options).unwrap();
    assert_eq!(otlp.deliver(&alerts([1]), ours).await.settled, 1);
}

#[tokio::test]
async fn a_success_that_no_receiver_gives_is_an_error_that_says_what_came() {
    let typed = |content_type: &'static str, body: Vec<u8>| {
        ([(CONTENT_TYPE, content_type)], body).into_response()
    };
    let json = |body: &str| typed("application/json", body.into());
    for (answer, what) in [
        (page_of(StatusCode::OK), "a page of HTML (text/html)"),
        (
            "ok".into_response(),
            "neither protobuf nor JSON (text/plain)",
        ),
        (
            Response::new(Body::from("{}")),
            "a body that is neither protobuf nor JSON; is",
        ),
        (typed("text/plain", b"{}".into()), "JSON (text/plain)"),
        (
            typed(PROTOBUF, b"\x01\x02\x03".into()),
            "not the protobuf it claims to be (application/x-protobuf)",
        ),
        (
            typed(PROTOBUF, vec![0; 5 << 20]),
            "a body that is too large",
        ),
        (
            compressed(StatusCode::OK, gzip(&vec![b' '; 50 << 20])),
            "a body that is too large",
        ),
        (
            ([(CONTENT_ENCODING, "gzip")], &b"\x1f\x8b\x08"[..]).into_response(),
            "a body that cannot be decompressed",
        ),
        (json("{"), "no answer to an export"),
        (json("[]"), "no answer to an export"),
        (json("null"), "no answer to an export"),
        (json(r#"{"error":"log in"}"#), r#"{"error":"log in"}"#),
        (
            json(r#"{"partialSuccess":{},"errors":[1]}"#),
            "no answer to an export",
        ),
        (
            json(r#"{"partialSuccess":{"rejectedLogRecords":"many"}}"#),
            "no answer to an export (application/json)",
        ),
        (
            json(r#"{"partialSuccess":{"rejectedLogRecords":0.5}}"#),
            "no answer to an export (application/json)",
        ),
        (
            json(r#"{"partialSuccess":{"rejectedLogRecords":"1e300"}}"#),
            "no answer to an export (application/json)",
        ),
        (
            json(r#"{"code":8,"message":"resource exhausted"}"#),
            "resource exhausted",
        ),
        (json(r#"{"code":401}"#), "no answer to an export"),
        (json(r#"{"error":1}"#), "no answer to an export"),
        (json(r#"{"error":{"a":1}}"#), "no answer to an export"),
        (json(r#"{"success":false}"#), "no answer to an export"),
        (
            json(r#"{"status":"Error","message":"log in"}"#),
            "no answer to an export",
        ),
    ] {
        let (receiver, options) = Peer::start().await;
        receiver.answer(answer);
        let mut otlp = Otlp::new(&options).unwrap();
        let progress = otlp.deliver(&alerts(0..3), ours).await;
        assert_eq!(progress.settled, 0, "{what}");
        let text = error(progress).to_string();
        assert!(
            text.starts_with("the receiver answered 200 OK with ") && text.contains(what),
            "{text}"
        );
        assert_eq!(otlp.deliver(&alerts(0..3), ours).await.settled, 3);
    }
}

#[tokio::test]
async fn the_forms_that_a_success_takes_are_known() {
    let of_each = format!(
        r#"{{"items":[{}0],"partialSuccess":{{"rejectedLogRecords":1}}}}"#,
        r#"{"status":201,"error":{"a":[1]},"code":5},"#.repeat(50_000)
    );
    let json = |body: &str| {
        let body = body.to_owned();
        let headers = [(CONTENT_TYPE, "Application/JSON ; charset=utf-8")];
        (headers, body).into_response()
    };
    let protobuf = ExportLogsServiceResponse::default().encode_to_vec();
    for (answer, rejected) in [
        (StatusCode::OK.into_response(), 0),
        (StatusCode::ACCEPTED.into_response(), 0),
        (StatusCode::NO_CONTENT.into_response(), 0),
        (([(CONTENT_TYPE, PROTOBUF)], protobuf).into_response(), 0),
        (json("{}"), 0),
        (json(r#"{"partialSuccess":null}"#), 0),
        (json(r#"{"partialSuccess":{}}"#), 0),
        (
            json(r#"{"partialSuccess":{"rejectedLogRecords":"2","errorMessage":"x"}}"#),
            2,
        ),
        (json(r#"{"partialSuccess":{"rejectedLogRecords":1}}"#), 1),
        (
            json(r#"{"status":"ok","took":3,"error":null,"errors":[ ]}"#),
            0,
        ),
        (json(&of_each), 1),
        (json(r#"{"error":0.0,"errors":{},"fault":""}"#), 0),
        (
            json(r#"{"partialSuccess":{"rejectedLogRecords":1,"hint":{}},"requestId":"x"}"#),
            1,
        ),
        (json(r#"{"partialSuccess":{"rejectedLogRecords":99}}"#), 3),
        (
            json(r#"{"partial_success":{"rejected_log_records":"2","error_message":"x"}}"#),
            2,
        ),
        (
            json(r#"{"code":0,"message":"ok","success":true,"status":"success"}"#),
            0,
        ),
        (json(r#"{"code":200,"status":200}"#), 0),
        (json(r#"{"partialSuccess":{"rejectedLogRecords":0.0}}"#), 0),
        (json(r#"{"partialSuccess":{"rejectedLogRecords":-0.0}}"#), 0),
        (json(r#"{"partialSuccess":{"rejectedLogRecords":1e0}}"#), 1),
        (
            json(r#"{"partialSuccess":{"rejectedLogRecords":"2.0"}}"#),
            2,
        ),
    ] {
        let (receiver, options) = Peer::start().await;
        receiver.answer(answer);
        let progress = Otlp::new(&options)
            .unwrap()
            .deliver(&alerts(0..3), ours)
            .await;
        assert_eq!(progress.settled, 3, "{progress:?}");
        let refused: u64 = progress.refused.iter().map(|refusal| refusal.events).sum();
        assert_eq!(refused, rejected);
    }
}

/// An answer that says, in JSON or in protobuf, that one event was not taken, with `text` as the
/// reason.
fn one_rejected(content_type: &'static str, text: &[u8]) -> Response {
    let body = if content_type == PROTOBUF {
        let partial = [&[8, 1, 0x12, u8::try_from(text.len()).unwrap()], text].concat();
        [&[0x0a, u8::try_from(partial.len()).unwrap()], &partial[..]].concat()
    } else {
        let begin = br#"{"partialSuccess":{"rejectedLogRecords":1,"errorMessage":"#;
        [&begin[..], text, b"}}"].concat()
    };
    ([(CONTENT_TYPE, content_type)], body).into_response()
}

#[tokio::test]
async fn a_text_for_people_does_not_decide_whether_events_were_taken() {
    let json = |text: &[u8]| one_rejected("application/json", text);
    let (receiver, mut options) = Peer::start().await;
    let secret = SecretSource::Value(Secret::new("s3cret-key"));
    options.headers = BTreeMap::from([("x-api-key".to_owned(), secret)]);
    let mut otlp = Otlp::new(&options).unwrap();
    for (answer, shown) in [
        // Texts that are cut in the middle of a character, in escapes and in bytes.
        (json(br#""disk \"full\" \ud83d""#), r#": disk "full""#),
        (json(b"\"disk full \xf0\x9f\""), ": disk full"),
        (one_rejected(PROTOBUF, b"disk full \xf0\x9f"), ": disk full"),
        (json(b"{\"a\":[1]}"), r#": {"a":[1]}"#),
        (json(b"17"), ": 17"),
        // Secrets stay hidden.
        (
            json(br#""who is s3cret-key? \ud83d""#),
            ": who is <secret>?",
        ),
        (
            json(br#""who is s3cret\u002dkey? \ud83d""#),
            ": who is <secret>?",
        ),
        (json(b"\"who is s3cret-key? \xff\""), ": who is <secret>?"),
        (
            json(b"\"who is s3cret-k\xffey?\""),
            ": (not shown, for it repeats a secret)",
        ),
        (json(br#"{"who":"s3cret-key"}"#), r#": {"who":"<secret>"}"#),
        (
            one_rejected(PROTOBUF, b"who is s3cret-key? \xff"),
            ": who is <secret>?",
        ),
    ] {
        receiver.answer(answer);
        let progress = otlp.deliver(&alerts(0..3), ours).await;
        assert_eq!(progress.settled, 3, "{progress:?}");
        let refusal = &progress.refused[0];
        assert_eq!(refusal.events, 1);
        assert!(refusal.reason.ends_with(shown), "{}", refusal.reason);
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_settles_nothing_but_where_its_status_says_all() {
    drop(rustls::crypto::ring::default_provider().install_default());
    for (status, settled) in [
        ("200 OK", 0),
        ("400 Bad Request", 0),
        ("413 Payload Too Large", 1),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = otlp(
            format!("http://{}/v1/logs", listener.local_addr().unwrap()),
            Duration::from_secs(5),
        );
        let server = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let received = stream.read(&mut [0; 4096]).await.unwrap();
                assert!(received > 0);
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: 9\r\n\r\nbad");
                stream.write_all(head.as_bytes()).await.unwrap();
            }
        };
        let mut otlp = Otlp::new(&options).unwrap();
        let events = alerts([1]);
        let progress = tokio::select! {
            progress = otlp.deliver(&events, ours) => progress,
            () = server => unreachable!(),
        };
        assert_eq!(progress.settled, settled, "{status}");
        if settled == 0 {
            assert!(matches!(error(progress), Error::Transport(_)), "{status}");
        }
    }
}

#[tokio::test]
async fn a_success_whose_words_tell_of_a_failure_is_none() {
    let (receiver, options) = Peer::start().await;
    let mut otlp = Otlp::new(&options).unwrap();
    let json = |body: &'static str| ([(CONTENT_TYPE, "application/json")], body);
    for body in [
        r#"{"status":500,"message":"Internal Server Error"}"#,
        r#"{"type":"about:blank","title":"Service Unavailable","status":503}"#,
        r#"{"status":" 500 ","message":"x"}"#,
        r#"{"status":-1}"#,
        r#"{"status":"FAILED"}"#,
        r#"{"status":"unauthorized"}"#,
        r#"{"status":"Forbidden"}"#,
        r#"{"status":"unavailable"}"#,
        r#"{"status":{"code":13}}"#,
        r#"{"status":{"code":"INTERNAL"}}"#,
        r#"{"statusCode":500,"body":"boom"}"#,
        r#"{"statusCode":"401"}"#,
        r#"{"code":"16","message":"unauthenticated"}"#,
        r#"{"code":"INTERNAL","message":"x"}"#,
        r#"{"success":" False "}"#,
        r#"{"success":0}"#,
        r#"{"ok":false}"#,
        r#"{"errorMessage":"Task timed out after 3.00 seconds"}"#,
        r#"{"error_message":"x"}"#,
        r#"{"errorType":"Sandbox.Timedout"}"#,
        r#"{"fault":{"faultstring":"Invalid ApiKey"}}"#,
    ] {
        receiver.answer(json(body));
        let progress = otlp.deliver(&alerts([1]), ours).await;
        assert_eq!(progress.settled, 0, "{body}");
        let text = error(progress).to_string();
        assert!(text.contains("JSON that is no answer"), "{text}");
    }
    for body in [
        r#"{"requestId":"500"}"#,
        r#"{"acknowledged":true}"#,
        r#"{"message":"error"}"#,
        r#"{"status":"accepted","statusCode":202}"#,
        r#"{"status":"200","statusCode":"Accepted"}"#,
        r#"{"status":1,"message":"done"}"#,
        r#"{"status":{"code":0,"error":1}}"#,
        r#"{"status":{},"code":{"a":1}}"#,
        r#"{"status":null,"statusCode":null,"code":null,"success":null,"ok":null}"#,
        r#"{"status":"","code":"","success":"","ok":""}"#,
        r#"{"status":true,"code":true,"success":1,"ok":"true"}"#,
        r#"{"code":"OK"}"#,
        r#"{"code":"Success"}"#,
        r#"{"code":"0","status":0.0}"#,
        r#"{"errorMessage":"","error_message":null,"errorType":null,"fault":false}"#,
    ] {
        receiver.answer(json(body));
        let progress = otlp.deliver(&alerts([1]), ours).await;
        assert_eq!(progress.settled, 1, "{body}: {progress:?}");
    }
}
