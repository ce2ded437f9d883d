use std::{
    collections::{BTreeMap, VecDeque},
    io::Read as _,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    response::{IntoResponse as _, Response},
};
use opentelemetry_proto::tonic::{
    collector::logs::v1::{ExportLogsPartialSuccess, ExportLogsServiceRequest},
    common::v1::{KeyValue, any_value},
    logs::v1::LogRecord,
};
use tokio::net::TcpListener;

use super::*;
use crate::{
    deliver::SinkError,
    record::tests::{bare, full},
    secret::Secret,
    store::JournalEvent,
};

/// A receiver that answers as it is told, and takes what comes when it was told nothing.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    requests: Vec<(HeaderMap, ExportLogsServiceRequest)>,
    answers: VecDeque<Response>,
    /// Requests with an alert of this id are refused.
    bad: Option<(&'static str, StatusCode)>,
}

impl Receiver {
    async fn start() -> (Self, OtlpOptions) {
        // Whoever else did it first is welcome.
        drop(rustls::crypto::ring::default_provider().install_default());
        let receiver = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let options = OtlpOptions {
            endpoint: format!("http://{address}/otlp/v1/logs"),
            headers: BTreeMap::new(),
            gzip: true,
            timeout: Duration::from_secs(5),
        };
        (receiver, options)
    }

    fn answer(&self, answer: impl axum::response::IntoResponse) {
        self.0
            .lock()
            .unwrap()
            .answers
            .push_back(answer.into_response());
    }

    fn requests(&self) -> usize {
        self.0.lock().unwrap().requests.len()
    }

    fn request(&self, index: usize) -> ExportLogsServiceRequest {
        self.0.lock().unwrap().requests[index].1.clone()
    }
}

async fn answer(State(receiver): State<Receiver>, headers: HeaderMap, body: Bytes) -> Response {
    let mut bytes = Vec::new();
    if headers.get(CONTENT_ENCODING).is_some_and(|it| it == "gzip") {
        flate2::read::GzDecoder::new(&body[..])
            .read_to_end(&mut bytes)
            .unwrap();
    } else {
        bytes.extend_from_slice(&body);
    }
    let request = ExportLogsServiceRequest::decode(&bytes[..]).unwrap();
    let mut inner = receiver.0.lock().unwrap();
    let refused = inner.bad.filter(|(bad, _)| {
        let mut records = records(&request).into_iter();
        records.any(|record| attribute(&record.attributes, "opsramp.alert_id") == *bad)
    });
    inner.requests.push((headers, request));
    match (inner.answers.pop_front(), refused) {
        (Some(answer), _) => answer,
        (None, Some((_, status))) => (status, "\x00\x12\x09bad event").into_response(),
        (None, None) => StatusCode::NO_CONTENT.into_response(),
    }
}

fn records(request: &ExportLogsServiceRequest) -> Vec<&LogRecord> {
    let resources = request.resource_logs.iter();
    resources
        .flat_map(|resource| &resource.scope_logs)
        .flat_map(|scope| &scope.log_records)
        .collect()
}

fn attribute(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|it| it.key == key);
    match found
        .and_then(|it| it.value.clone())
        .and_then(|it| it.value)
    {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn pending(record: &Record) -> Pending {
    Pending {
        position: 1,
        event: JournalEvent {
            event_id: record.event_id,
            at: record.timestamp,
            body: Bytes::from(record.to_json()),
        },
    }
}

fn alerts(ids: impl IntoIterator<Item = u32>) -> Vec<Pending> {
    ids.into_iter()
        .map(|id| {
            let mut record = bare();
            record.alert_id = id.to_string();
            pending(&record)
        })
        .collect()
}

fn error(progress: Progress) -> Error {
    match progress.error.unwrap() {
        SinkError::Otlp(error) => error,
        error => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_record_arrives_with_everything_in_its_place() {
    let (receiver, options) = Receiver::start().await;
    let mut elsewhere = bare();
    elsewhere.tenant = "other".to_owned();
    let mut otlp = Otlp::new(&options).unwrap();
    let events = [pending(&full()), pending(&elsewhere), pending(&bare())];
    let progress = otlp.deliver(&events).await;
    assert_eq!(progress.settled, 3, "{progress:?}");
    assert!(progress.refused.is_empty());

    let request = receiver.request(0);
    assert_eq!(request.resource_logs.len(), 2);
    let other = request.resource_logs[0].resource.clone().unwrap();
    assert_eq!(attribute(&other.attributes, "opsramp.tenant"), "other");
    let resource = request.resource_logs[1].resource.clone().unwrap();
    assert_eq!(
        attribute(&resource.attributes, "service.name"),
        "opsramp-exporter"
    );
    assert_eq!(
        attribute(&resource.attributes, "service.version"),
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(attribute(&resource.attributes, "opsramp.account"), "acme");
    assert_eq!(attribute(&resource.attributes, "opsramp.tenant"), "retail");

    let record = records(&request)[1];
    let Some(any_value::Value::StringValue(body)) = record.body.clone().unwrap().value else {
        panic!("{record:?}");
    };
    assert_eq!(body, "CPU \"load\" = 99%\nnext line");
    assert_eq!(record.event_name, "opsramp.alert.changed");
    assert_eq!(record.severity_number, 18);
    assert_eq!(record.severity_text, "Critical");
    assert_eq!(record.time_unix_nano, 1_772_360_430_123_000_000);
    assert_eq!(record.observed_time_unix_nano, record.time_unix_nano);
    let keys: Vec<_> = record.attributes.iter().map(|it| it.key.as_str()).collect();
    insta::assert_snapshot!(keys.join(" "), @"severity opsramp.event log.record.uid opsramp.search opsramp.alert_id opsramp.state opsramp.status opsramp.previous_state opsramp.previous_status opsramp.reason opsramp.description opsramp.metric opsramp.component opsramp.problem_area opsramp.alert_type opsramp.event_type opsramp.source opsramp.priority opsramp.resource_id opsramp.resource_name opsramp.resource_type opsramp.resource_ip opsramp.client_id opsramp.client_name opsramp.incident_id opsramp.inference_id opsramp.repeat_count opsramp.created_at opsramp.updated_at opsramp.alert");
    assert_eq!(
        attribute(&record.attributes, "log.record.uid"),
        full().event_id.to_string()
    );
    assert_eq!(attribute(&record.attributes, "opsramp.repeat_count"), "3");
    assert_eq!(
        attribute(&record.attributes, "opsramp.alert"),
        r#"{"uniqueId":"8005","n":1.10}"#
    );
}

#[test]
fn severities_follow_the_state() {
    for (state, number) in [
        ("Critical", 18),
        ("WARNING", 13),
        ("Info", 10),
        ("ok", 9),
        ("Observed", 0),
    ] {
        let mut record = bare();
        record.fields.state = Some(state.to_owned());
        let request = message::request([&record]);
        assert_eq!(records(&request)[0].severity_number, number);
        assert_eq!(records(&request)[0].severity_text, state);
    }
}

#[tokio::test]
async fn headers_are_read_again_for_each_request() {
    let (receiver, mut options) = Receiver::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    options.gzip = false;
    options.headers = BTreeMap::from([
        ("authorization".to_owned(), SecretSource::File(path.clone())),
        (
            "X-Scope-OrgID".to_owned(),
            SecretSource::Value(Secret::new("acme")),
        ),
    ]);
    let mut otlp = Otlp::new(&options).unwrap();
    let missing = error(otlp.deliver(&alerts([1])).await);
    assert!(matches!(missing, Error::HeaderSource { .. }), "{missing}");
    for token in ["Bearer one", "Bearer two"] {
        std::fs::write(&path, token).unwrap();
        assert_eq!(otlp.deliver(&alerts([1])).await.settled, 1);
    }
    let inner = receiver.0.lock().unwrap();
    for ((headers, _), token) in inner.requests.iter().zip(["Bearer one", "Bearer two"]) {
        assert_eq!(headers["authorization"], token);
        assert_eq!(headers["x-scope-orgid"], "acme");
        assert_eq!(headers[CONTENT_TYPE], PROTOBUF);
        assert!(!headers.contains_key(CONTENT_ENCODING));
    }
}

#[tokio::test]
async fn a_header_that_cannot_be_sent_never_shows_its_value() {
    let (_, mut options) = Receiver::start().await;
    let secret = SecretSource::Value(Secret::new("hunter2\nX-Forged: yes"));
    options.headers = BTreeMap::from([("authorization".to_owned(), secret.clone())]);
    let refused = error(Otlp::new(&options).unwrap().deliver(&alerts([1])).await);
    assert!(matches!(refused, Error::HeaderValue(_)));
    assert!(!format!("{refused:?} {refused}").contains("hunter2"));
    for name in ["content-type", "Content-Encoding", "no name"] {
        options.headers = BTreeMap::from([(name.to_owned(), secret.clone())]);
        assert!(matches!(Otlp::new(&options), Err(Error::HeaderName(_))));
    }
}

#[tokio::test]
async fn a_partial_success_is_counted_and_not_repeated() {
    let (receiver, options) = Receiver::start().await;
    let partial = ExportLogsServiceResponse {
        partial_success: Some(ExportLogsPartialSuccess {
            rejected_log_records: 2,
            error_message: "too old".to_owned(),
        }),
    };
    receiver.answer(([(CONTENT_TYPE, PROTOBUF)], partial.encode_to_vec()));
    let progress = Otlp::new(&options).unwrap().deliver(&alerts(0..5)).await;
    assert_eq!(progress.settled, 5);
    assert_eq!(progress.refused.len(), 1);
    assert_eq!(progress.refused[0].events, 2);
    assert!(progress.refused[0].reason.contains("too old"));
    assert_eq!(receiver.requests(), 1);
}

#[tokio::test]
async fn a_batch_that_is_refused_is_split_until_the_bad_event_is_found() {
    for status in [
        StatusCode::BAD_REQUEST,
        StatusCode::PAYLOAD_TOO_LARGE,
        StatusCode::UNPROCESSABLE_ENTITY,
    ] {
        let (receiver, options) = Receiver::start().await;
        receiver.0.lock().unwrap().bad = Some(("37", status));
        let events = alerts(0..100);
        let progress = Otlp::new(&options).unwrap().deliver(&events).await;
        assert_eq!(progress.settled, 100, "{progress:?}");
        assert_eq!(progress.refused.len(), 1);
        assert_eq!(progress.refused[0].events, 1);
        assert!(progress.refused[0].event_id.is_some());
        assert!(
            progress.refused[0].reason.ends_with(": bad event"),
            "{}",
            progress.refused[0].reason
        );
        assert!(receiver.requests() < 20, "{}", receiver.requests());

        // What was taken are all the others, once and in order.
        let inner = receiver.0.lock().unwrap();
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
    let (receiver, options) = Receiver::start().await;
    receiver.answer(StatusCode::BAD_REQUEST);
    receiver.answer(StatusCode::OK);
    receiver.answer(StatusCode::SERVICE_UNAVAILABLE);
    let mut otlp = Otlp::new(&options).unwrap();
    let events = alerts(0..10);
    let progress = otlp.deliver(&events).await;
    assert_eq!(progress.settled, 5);
    assert!(progress.error.is_some());
    let progress = otlp.deliver(&events[5..]).await;
    assert_eq!(progress.settled, 5);
    assert_eq!(records(&receiver.request(3)).len(), 5);
}

#[tokio::test]
async fn what_may_be_a_fault_of_the_setup_never_costs_an_event() {
    let (receiver, options) = Receiver::start().await;
    let mut otlp = Otlp::new(&options).unwrap();
    let statuses = [
        401, 403, 404, 405, 407, 408, 410, 415, 429, 500, 501, 502, 503, 504,
    ];
    for status in statuses {
        let status = StatusCode::from_u16(status).unwrap();
        receiver.answer((status, "no\r\nluck"));
        let progress = otlp.deliver(&alerts(0..3)).await;
        assert_eq!(progress.settled, 0);
        let error = error(progress).to_string();
        let expected = format!("the receiver answered {status}: no luck");
        assert_eq!(error, expected);
    }
    receiver.answer(([(CONTENT_TYPE, "text/html; charset=utf-8")], "<html>log in"));
    let progress = otlp.deliver(&alerts(0..3)).await;
    assert_eq!(progress.settled, 0);
    assert!(matches!(error(progress), Error::NotOtlp(_)));
    assert_eq!(receiver.requests(), statuses.len() + 1);
}

#[tokio::test]
async fn a_redirect_is_never_followed() {
    for status in [301, 302, 303, 307, 308] {
        let (receiver, options) = Receiver::start().await;
        let (elsewhere, elsewhere_options) = Receiver::start().await;
        let status = StatusCode::from_u16(status).unwrap();
        receiver.answer((status, [(LOCATION, elsewhere_options.endpoint.clone())]));
        let redirect = error(Otlp::new(&options).unwrap().deliver(&alerts([1])).await);
        assert!(
            redirect.to_string().contains(&elsewhere_options.endpoint),
            "{redirect}"
        );
        assert_eq!(elsewhere.requests(), 0);
    }
}

#[tokio::test]
async fn a_receiver_is_left_alone_as_long_as_it_asks() {
    let (receiver, options) = Receiver::start().await;
    receiver.answer((StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "17")]));
    let error = error(Otlp::new(&options).unwrap().deliver(&alerts([1])).await);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(17)));
}

#[test]
fn retry_after_is_read_in_both_forms() {
    let now = "2026-03-01T10:00:00Z".parse().unwrap();
    let read = |value| read_retry_after(value, now);
    assert_eq!(read("120"), Some(Duration::from_secs(120)));
    assert_eq!(
        read("Sun, 01 Mar 2026 10:00:30 GMT"),
        Some(Duration::from_secs(30))
    );
    assert_eq!(
        read("Sun, 01 Mar 2026 09:00:00 GMT"),
        Some(Duration::ZERO),
        "a time that has passed"
    );
    for nonsense in ["", "soon", "-5", "1.5"] {
        assert_eq!(read(nonsense), None, "{nonsense}");
    }
}

#[tokio::test]
async fn an_endless_answer_is_not_read_to_its_end() {
    let (receiver, options) = Receiver::start().await;
    let endless = futures_util::stream::repeat_with(|| Ok::<_, io::Error>(vec![b'x'; 4096]));
    receiver.answer((
        StatusCode::INTERNAL_SERVER_ERROR,
        Body::from_stream(endless),
    ));
    let begun = tokio::time::Instant::now();
    let error = error(Otlp::new(&options).unwrap().deliver(&alerts([1])).await);
    assert!(error.to_string().len() < 300, "{error}");
    assert!(begun.elapsed() < options.timeout);
}

#[tokio::test]
async fn a_receiver_that_does_not_answer_is_a_passing_error_without_the_url() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = OtlpOptions {
        endpoint: format!("http://user:hunter2@{address}/v1/logs"),
        headers: BTreeMap::new(),
        gzip: true,
        timeout: Duration::from_millis(100),
    };
    let mut otlp = Otlp::new(&options).unwrap();
    // It accepts and says nothing; then it is gone.
    for _ in 0..2 {
        let progress = otlp.deliver(&alerts([1])).await;
        assert_eq!(progress.settled, 0);
        let error = progress.error.unwrap();
        assert!(!error.is_fatal());
        let text = crate::deliver::chain(&error);
        assert!(text.starts_with("cannot reach the receiver: "), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    drop(listener);
    assert!(otlp.deliver(&alerts([1])).await.error.is_some());
}

#[test]
fn what_is_no_url_is_an_error_at_once() {
    for endpoint in ["", "loki:3100", "ftp://loki/", "/otlp/v1/logs", "http://"] {
        let options = OtlpOptions {
            endpoint: endpoint.to_owned(),
            headers: BTreeMap::new(),
            gzip: false,
            timeout: Duration::from_secs(1),
        };
        assert!(
            matches!(Otlp::new(&options), Err(Error::Endpoint)),
            "{endpoint}"
        );
    }
}

#[tokio::test]
async fn an_event_that_cannot_be_read_is_refused_and_the_others_are_sent() {
    let (receiver, options) = Receiver::start().await;
    let mut events = alerts(0..3);
    events[1].event.body = Bytes::from_static(b"{}");
    let progress = Otlp::new(&options).unwrap().deliver(&events).await;
    assert_eq!(progress.settled, 3);
    assert_eq!(progress.refused.len(), 1);
    assert_eq!(records(&receiver.request(0)).len(), 2);
}
