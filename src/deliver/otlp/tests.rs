mod pages;
mod refusals;
mod secrets;
mod sizes;

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, Read as _},
    sync::Arc,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    response::{IntoResponse as _, Response},
};
use http::{
    HeaderMap, StatusCode,
    header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, LOCATION, RETRY_AFTER},
};
use opentelemetry_proto::tonic::{
    collector::logs::v1::{
        ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
    },
    common::v1::{KeyValue, any_value},
    logs::v1::LogRecord,
};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};

use super::*;
use crate::{
    deliver::{
        SinkError,
        tests::{otlp, pending},
    },
    record::tests::{bare, full},
    secret::{Secret, SecretSource},
};

/// A receiver that gives the answers that it was told. Without any, it takes every request.
#[derive(Clone, Default)]
struct Peer(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    requests: Vec<(HeaderMap, ExportLogsServiceRequest)>,
    answers: VecDeque<Response>,
    /// Requests with an alert of this id are refused.
    bad: Option<(&'static str, StatusCode)>,
    /// Requests with more records than this are answered with a page and the status 413.
    most: Option<usize>,
    /// Requests with more records than this are never answered, or with the status of a gateway.
    in_time: Option<(usize, Option<StatusCode>)>,
}

impl Peer {
    async fn start() -> (Self, OtlpOptions) {
        // Another test may have installed the provider already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let receiver = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .fallback(answer)
            .layer(DefaultBodyLimit::disable())
            .with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let options = otlp(
            format!("http://{address}/otlp/v1/logs"),
            Duration::from_secs(5),
        );
        (receiver, options)
    }

    fn answer(&self, answer: impl axum::response::IntoResponse) {
        self.0.lock().answers.push_back(answer.into_response());
    }

    fn requests(&self) -> usize {
        self.0.lock().requests.len()
    }

    /// How many records each request held.
    fn counts(&self) -> Vec<usize> {
        let inner = self.0.lock();
        let requests = inner.requests.iter();
        requests
            .map(|(_, request)| records(request).len())
            .collect()
    }

    fn request(&self, index: usize) -> ExportLogsServiceRequest {
        self.0.lock().requests[index].1.clone()
    }
}

async fn answer(State(receiver): State<Peer>, headers: HeaderMap, body: Bytes) -> Response {
    let mut bytes = Vec::new();
    if headers.get(CONTENT_ENCODING).is_some_and(|it| it == "gzip") {
        flate2::read::GzDecoder::new(&body[..])
            .read_to_end(&mut bytes)
            .unwrap();
    } else {
        bytes.extend_from_slice(&body);
    }
    let request = ExportLogsServiceRequest::decode(&bytes[..]).unwrap();
    let count = records(&request).len();
    let late = receiver.0.lock().in_time;
    if let Some((_, status)) = late.filter(|(most, _)| count > *most) {
        receiver.0.lock().requests.push((headers, request));
        return match status {
            Some(status) => status.into_response(),
            None => std::future::pending().await,
        };
    }
    let mut inner = receiver.0.lock();
    let refused = inner.bad.filter(|(bad, _)| {
        let mut records = records(&request).into_iter();
        records.any(|record| attribute(&record.attributes, "opsramp.alert_id") == *bad)
    });
    let page = inner.most.filter(|most| count > *most);
    inner.requests.push((headers, request));
    if page.is_some() {
        return page_of(StatusCode::PAYLOAD_TOO_LARGE);
    }
    match (inner.answers.pop_front(), refused) {
        (Some(answer), _) => answer,
        (None, Some((_, status))) => (status, "\x00\x12\x09bad event").into_response(),
        (None, None) => StatusCode::NO_CONTENT.into_response(),
    }
}

/// Says that nobody else delivers the events.
fn ours() -> bool {
    true
}

fn page_of(status: StatusCode) -> Response {
    let headers = [(CONTENT_TYPE, "text/html; charset=utf-8")];
    (status, headers, "<html><h1>no</h1></html>").into_response()
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

fn alerts(ids: impl IntoIterator<Item = u32>) -> Vec<Pending> {
    ids.into_iter()
        .map(|id| {
            let mut record = bare();
            record.alert_id = id.to_string().into();
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
async fn a_single_line_that_is_too_large_for_now_waits() {
    let (receiver, options) = Peer::start().await;
    let for_now = (StatusCode::PAYLOAD_TOO_LARGE, [(RETRY_AFTER, "17")]);
    receiver.0.lock().answers = (0..2).map(|_| for_now.clone().into_response()).collect();
    let mut sink = Otlp::new(&options).unwrap();
    let progress = sink.deliver(&alerts(1..=2), ours).await;
    assert_eq!(progress.settled, 0);
    assert!(progress.refused.is_empty());
    assert_eq!(error(progress).retry_after(), Some(Duration::from_secs(17)));
    let progress = sink.deliver(&alerts(1..=2), ours).await;
    assert_eq!(progress.settled, 2);
    // A wait of zero seconds counts as no wait.
    let now = (StatusCode::PAYLOAD_TOO_LARGE, [(RETRY_AFTER, "0")]);
    receiver.answer(now);
    assert_eq!(sink.deliver(&alerts([3]), ours).await.refused.len(), 1);
}

#[tokio::test]
async fn a_record_arrives_with_everything_in_its_place() {
    let (receiver, options) = Peer::start().await;
    let mut elsewhere = bare();
    elsewhere.tenant = "other".into();
    let mut otlp = Otlp::new(&options).unwrap();
    let events = [pending(&full()), pending(&elsewhere), pending(&bare())];
    let progress = otlp.deliver(&events, ours).await;
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
    insta::assert_snapshot!(keys.join(" "), @"severity opsramp.severity opsramp.event log.record.uid opsramp.search opsramp.alert_id opsramp.state opsramp.status opsramp.previous_state opsramp.previous_status opsramp.reason opsramp.description opsramp.metric opsramp.component opsramp.problem_area opsramp.alert_type opsramp.event_type opsramp.source opsramp.priority opsramp.resource_id opsramp.resource_name opsramp.resource_type opsramp.resource_ip opsramp.client_id opsramp.client_name opsramp.incident_id opsramp.inference_id opsramp.repeat_count opsramp.created_at opsramp.updated_at opsramp.alert");
    assert_eq!(
        attribute(&record.attributes, "log.record.uid"),
        full().event_id.to_string()
    );
    for key in ["severity", "opsramp.severity"] {
        assert_eq!(attribute(&record.attributes, key), "critical");
    }
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
        record.fields.state = Some(state.into());
        let request = message::request([&record]);
        assert_eq!(records(&request)[0].severity_number, number);
        assert_eq!(records(&request)[0].severity_text, state);
    }
}

#[tokio::test]
async fn headers_are_read_again_for_each_request() {
    let (receiver, mut options) = Peer::start().await;
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
    let missing = error(otlp.deliver(&alerts([1]), ours).await);
    assert!(matches!(missing, Error::HeaderSource { .. }), "{missing}");
    for token in ["Bearer one", "Bearer two"] {
        std::fs::write(&path, token).unwrap();
        assert_eq!(otlp.deliver(&alerts([1]), ours).await.settled, 1);
    }
    let inner = receiver.0.lock();
    for ((headers, _), token) in inner.requests.iter().zip(["Bearer one", "Bearer two"]) {
        assert_eq!(headers["authorization"], token);
        assert_eq!(headers["x-scope-orgid"], "acme");
        assert_eq!(headers[CONTENT_TYPE], PROTOBUF);
        assert!(!headers.contains_key(CONTENT_ENCODING));
    }
}

#[tokio::test]
async fn a_headers_file_that_does_not_answer_is_an_error_until_it_does() {
    let (receiver, mut options) = Peer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
    let source = SecretSource::File(path.clone());
    options.headers = BTreeMap::from([("authorization".to_owned(), source)]);
    let mut otlp = Otlp::new(&options).unwrap();
    let events = alerts([1]);
    tokio::time::timeout(Duration::ZERO, otlp.deliver(&events, ours))
        .await
        .unwrap_err();
    tokio::time::pause();
    tokio::time::advance(crate::reading::LIMIT).await;
    tokio::time::resume();
    let silent = error(otlp.deliver(&events, ours).await).to_string();
    assert!(silent.contains(path.to_str().unwrap()), "{silent}");

    // The reading that hangs gets its content at last.
    let pipe = path.clone();
    tokio::task::spawn_blocking(move || std::fs::write(pipe, "Bearer late"))
        .await
        .unwrap()
        .unwrap();
    while otlp.deliver(&events, ours).await.settled == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(receiver.requests(), 1);
}

#[tokio::test]
async fn a_header_that_cannot_be_sent_never_shows_its_value() {
    let (_, mut options) = Peer::start().await;
    let secret = SecretSource::Value(Secret::new("hunter2\nX-Forged: yes"));
    options.headers = BTreeMap::from([("authorization".to_owned(), secret.clone())]);
    let refused = error(
        Otlp::new(&options)
            .unwrap()
            .deliver(&alerts([1]), ours)
            .await,
    );
    assert!(matches!(refused, Error::HeaderValue(_)));
    assert!(!format!("{refused:?} {refused}").contains("hunter2"));
    for name in ["content-type", "Content-Encoding", "no name"] {
        options.headers = BTreeMap::from([(name.to_owned(), secret.clone())]);
        assert!(matches!(Otlp::new(&options), Err(Error::HeaderName(_))));
    }
}

#[tokio::test]
async fn a_redirect_is_never_followed() {
    for status in [301, 302, 303, 307, 308] {
        let (receiver, options) = Peer::start().await;
        let (elsewhere, elsewhere_options) = Peer::start().await;
        let status = StatusCode::from_u16(status).unwrap();
        let location = format!("{}?token=hunter2", elsewhere_options.endpoint);
        receiver.answer((status, [(LOCATION, location)]));
        let redirect = error(
            Otlp::new(&options)
                .unwrap()
                .deliver(&alerts([1]), ours)
                .await,
        );
        let origin = elsewhere_options.endpoint.strip_suffix("/otlp/v1/logs");
        let expected = format!(
            "the receiver answered {status}, a redirect to {}, which is not followed; \
             set the endpoint to where it leads",
            origin.unwrap()
        );
        assert_eq!(redirect.to_string(), expected);
        assert_eq!(elsewhere.requests(), 0);
    }
}

#[tokio::test]
async fn a_receiver_is_left_alone_as_long_as_it_asks() {
    let (receiver, options) = Peer::start().await;
    receiver.answer((StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "17")]));
    let error = error(
        Otlp::new(&options)
            .unwrap()
            .deliver(&alerts([1]), ours)
            .await,
    );
    assert_eq!(error.retry_after(), Some(Duration::from_secs(17)));
}

#[tokio::test]
async fn an_endless_answer_is_not_read_to_its_end() {
    let (receiver, options) = Peer::start().await;
    let endless = futures_util::stream::repeat_with(|| Ok::<_, io::Error>(vec![b'x'; 4096]));
    receiver.answer((
        StatusCode::INTERNAL_SERVER_ERROR,
        Body::from_stream(endless),
    ));
    let begun = Instant::now();
    let error = error(
        Otlp::new(&options)
            .unwrap()
            .deliver(&alerts([1]), ours)
            .await,
    );
    assert!(error.to_string().len() < 300, "{error}");
    assert!(begun.elapsed() < options.timeout);
}

#[tokio::test]
async fn a_receiver_that_does_not_answer_is_a_passing_error_without_the_url() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = otlp(
        format!("http://user:hunter2@{address}/v1/logs?token=hunter2"),
        Duration::from_secs(1),
    );
    let mut otlp = Otlp::new(&options).unwrap();
    // The server first accepts the connection without an answer; then it is gone.
    for _ in 0..2 {
        let progress = otlp.deliver(&alerts([1]), ours).await;
        assert_eq!(progress.settled, 0);
        let error = progress.error.unwrap();
        assert!(!error.is_fatal());
        let text = crate::error_chain::chain(&error);
        assert_eq!(text, "the receiver did not answer within 1s");
    }
    drop(listener);
    let mut otlp = Otlp::new(&options).unwrap();
    let error = otlp.deliver(&alerts([1]), ours).await.error.unwrap();
    let text = crate::error_chain::chain(&error);
    assert!(text.starts_with("cannot reach the receiver: "), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    // No request came that far, so none was too much.
    assert_eq!(otlp.limit.events, MAX_EVENTS);
    assert!(!otlp.limit.has_broken);
}

#[test]
fn what_is_no_url_is_an_error_at_once() {
    for endpoint in ["", "loki:3100", "ftp://loki/", "/otlp/v1/logs", "http://"] {
        let options = otlp(endpoint, Duration::from_secs(1));
        assert!(
            matches!(Otlp::new(&options), Err(Error::Endpoint)),
            "{endpoint}"
        );
    }
}

#[tokio::test]
async fn an_event_that_cannot_be_read_is_refused_and_the_others_are_sent() {
    let (receiver, options) = Peer::start().await;
    let mut events = alerts(0..3);
    events[1].event.body = Bytes::from_static(b"{}");
    let progress = Otlp::new(&options).unwrap().deliver(&events, ours).await;
    assert_eq!(progress.settled, 3);
    assert_eq!(progress.refused.len(), 1);
    assert_eq!(records(&receiver.request(0)).len(), 2);
    // Where nothing else waits, there is nothing to send.
    let progress = Otlp::new(&options)
        .unwrap()
        .deliver(&events[1..2], ours)
        .await;
    assert_eq!((progress.settled, progress.refused.len()), (1, 1));
    assert_eq!(receiver.requests(), 1);
    // In parts as well.
    receiver.0.lock().most = Some(1);
    let progress = Otlp::new(&options).unwrap().deliver(&events, ours).await;
    assert_eq!((progress.settled, progress.refused.len()), (3, 1));
    assert_eq!(receiver.counts(), [2, 2, 1, 1]);
}

#[tokio::test]
async fn the_receivers_own_words_are_taken_from_its_status() {
    // google.rpc.Status: code 14, and a message of 41 bytes.
    let mut body = b"\x08\x0e\x12\x29".to_vec();
    body.extend(b"the queue is full, as it was an hour ago!");
    let (receiver, options) = Peer::start().await;
    let headers = [(CONTENT_TYPE, PROTOBUF)];
    receiver.answer((StatusCode::SERVICE_UNAVAILABLE, headers, body));
    let error = error(
        Otlp::new(&options)
            .unwrap()
            .deliver(&alerts([1]), ours)
            .await,
    );
    assert_eq!(
        error.to_string(),
        "the receiver answered 503 Service Unavailable: \
         the queue is full, as it was an hour ago!"
    );
}

#[tokio::test]
async fn a_host_that_takes_no_connection_is_given_up_before_the_whole_time_is_over() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    // Once the queue is full, further connections have to wait.
    let mut queue = Vec::new();
    let limit = Duration::from_millis(200);
    while let Ok(stream) = tokio::time::timeout(limit, TcpStream::connect(address)).await {
        queue.push(stream.unwrap());
        assert!(queue.len() < 100, "it takes every connection");
    }
    let minute = Duration::from_secs(60);
    // A quarter of the whole time is left then. A busy machine must notice that in time.
    let four = Duration::from_secs(4);
    for (limit, timeout) in [(limit, minute), (minute, four)] {
        let options = otlp(format!("http://{address}/v1/logs"), timeout);
        let mut otlp = Otlp::new(&options).unwrap();
        otlp.receiver = Receiver::connecting_within(limit, &options).unwrap();
        let events = alerts([1]);
        let delivery = otlp.deliver(&events, ours);
        let delivery = tokio::time::timeout(Duration::from_secs(20), delivery).await;
        let progress = delivery.expect("only the connection is waited for");
        assert!(matches!(error(progress), Error::Transport(source) if source.is_connect()));
    }
}
