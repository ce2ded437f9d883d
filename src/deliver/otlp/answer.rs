//! What a receiver's answer means for the events that it was sent.
//!
//! An event is given up only if an answer says that the *content* is bad or too long. An answer is
//! a success only if an OTLP receiver would give it. By the specification, every 4xx but 429 drops
//! the data. Here, whatever may be a fault of the set-up or of something on the way is tried
//! again. This module sends nothing and knows no event.

use std::{borrow::Cow, collections::HashMap, fmt, io, io::Read as _, time::Duration};

use flate2::bufread::GzDecoder;
use http::{
    HeaderMap, HeaderName, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, LOCATION, RETRY_AFTER, TRANSFER_ENCODING},
};
use jiff::Timestamp;
use memchr::memmem;
use prost::Message as _;
use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{Error, PROTOBUF};
use crate::{
    excerpt::Secrets,
    http_client::{io_errors, is_gzip},
    http_date, redirect,
};

/// The most bytes that are read of an answer that is no success.
const MAX_BODY: usize = 64 << 10;

/// The most bytes that are read of a success, which may say something about every event. Without
/// reading it, events that were taken would be sent for ever. gRPC takes as much of any answer.
const MAX_SUCCESS: usize = 4 << 20;

/// How each member of a gzip stream begins.
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];

/// How answers with 400 begin if a server written in Go, or Tomcat, expects TLS. Such a server has
/// not seen the content.
const EXPECTS_TLS: [&[u8]; 2] = [
    b"Client sent an HTTP request to an HTTPS server",
    b"Bad Request\r\nThis combination of host and port requires TLS",
];

/// What the pages of nginx and of Apache's server with 400 say if they expect TLS.
const PAGES_EXPECT_TLS: [&[u8]; 2] = [
    b"plain HTTP request was sent to HTTPS port",
    b"speaking plain HTTP to an SSL-enabled server port",
];

/// Words of a `status` that tell of a failure, in small letters. Other words may be anything.
const FAILED: [&str; 11] = [
    "error",
    "fail",
    "failed",
    "failure",
    "rejected",
    "denied",
    "forbidden",
    "unauthorized",
    "unauthenticated",
    "unavailable",
    "timeout",
];

const CORRUPT: &str = "a body that cannot be decompressed";
const TOO_LARGE: &str = "a body that is too large";

/// An answer, as much of it as is worth reading.
#[derive(Debug)]
pub(super) struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
    /// Whether the body is longer than what was read.
    cut: bool,
    /// Whether the body could not be decompressed.
    corrupt: bool,
}

/// What became of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The receiver has taken all events but `rejected`; `message` is what it says about them.
    Taken { rejected: u64, message: String },
    /// The receiver does not want the events as they are.
    Refused { why: String },
    /// The receiver, or something on the way, does not let a request of this size through, even
    /// with only one event. A smaller one may get through.
    TooLarge(Error),
}

/// The body of a success: `ExportLogsServiceResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct Success {
    #[prost(message, optional, tag = "1")]
    partial: Option<Partial>,
}

/// What a success says about events that were not taken: `ExportLogsPartialSuccess`. The message
/// is for people, so bytes in it that are no text do not decide whether the other events were
/// taken.
#[derive(Clone, PartialEq, prost::Message)]
struct Partial {
    #[prost(int64, tag = "1")]
    rejected: i64,
    #[prost(bytes = "vec", tag = "2")]
    message: Vec<u8>,
}

/// The bytes of a text in JSON, whatever its characters are. An escape may stand for half a
/// character, which no `String` can hold.
struct Text(Vec<u8>);

/// Those members of a JSON object that tell something about an export, as they were written. All
/// other members are skipped, however many there are: as parsed values, they would take a hundred
/// times as much memory as they take on the wire.
struct Members<'a>(HashMap<&'static str, &'a RawValue>);

/// The body of an error in OTLP, as far as it is of use: `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(string, tag = "2")]
    message: String,
}

// === impl Answer ===

impl Answer {
    pub(super) async fn read(mut response: reqwest::Response) -> Result<Self, reqwest::Error> {
        let mut answer = Self {
            status: response.status(),
            headers: std::mem::take(response.headers_mut()),
            body: Vec::new(),
            cut: false,
            corrupt: false,
        };
        let limit = answer.limit();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    let room = limit - answer.body.len();
                    answer.cut = chunk.len() > room;
                    answer
                        .body
                        .extend_from_slice(&chunk[..chunk.len().min(room)]);
                    if answer.cut {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) if answer.ends_with_its_connection() && is_end(&error) => break,
                // Half a body must not decide what becomes of the events.
                Err(error) if answer.status.is_success() || answer.is_about_content() => {
                    return Err(error);
                }
                Err(_) => {
                    answer.body.clear();
                    break;
                }
            }
        }
        // Some servers compress without being asked to. Others declare a body compressed that is
        // plain, or was decompressed on the way.
        if is_gzip(&answer.headers) && answer.body.starts_with(GZIP_MAGIC) {
            answer.decompress();
        }
        Ok(answer)
    }

    /// Whether only the end of the connection tells where the body ends.
    fn ends_with_its_connection(&self) -> bool {
        !self.headers.contains_key(CONTENT_LENGTH) && !self.headers.contains_key(TRANSFER_ENCODING)
    }

    fn limit(&self) -> usize {
        if self.status.is_success() {
            MAX_SUCCESS
        } else {
            MAX_BODY
        }
    }

    /// Decompresses the body. No more is read than of a plain one, because it may be a thousand
    /// times as large as its compressed form. What follows the stream, such as a line break, is
    /// ignored.
    fn decompress(&mut self) {
        let limit = self.limit();
        let mut plain = Vec::new();
        let mut rest = &self.body[..];
        while rest.starts_with(GZIP_MAGIC) && plain.len() <= limit {
            let mut member = GzDecoder::new(rest);
            let room = limit + 1 - plain.len();
            let read = member.by_ref().take(room as u64).read_to_end(&mut plain);
            if read.is_err() {
                self.corrupt = !self.cut;
                break;
            }
            rest = member.into_inner();
        }
        self.cut |= plain.len() > limit;
        plain.truncate(limit);
        self.body = plain;
    }

    /// What the answer means. `now` counts as the receiver's time if the receiver does not tell
    /// it.
    pub(super) fn judge(&self, secrets: &Secrets, now: Timestamp) -> Result<Outcome, Error> {
        let status = self.status;
        if status.is_success() {
            return match self.partial_success() {
                Ok(partial) => Ok(Outcome::Taken {
                    rejected: u64::try_from(partial.rejected).unwrap_or_default(),
                    message: secrets.excerpt(&partial.message),
                }),
                Err(what) => Err(self.not_otlp(what, secrets)),
            };
        }
        if status.is_redirection() {
            let location = self.header(LOCATION);
            let location = location.map(|location| redirect::origin(location, secrets));
            return Err(Error::Redirect { status, location });
        }
        let excerpt = secrets.excerpt(&self.words());
        if !self.is_about_content() {
            let error = Error::Status {
                status,
                excerpt,
                retry_after: self.retry_after(now),
            };
            return match status {
                // Whoever answers so has measured the request, whatever the words are.
                StatusCode::PAYLOAD_TOO_LARGE => Ok(Outcome::TooLarge(error)),
                _ => Err(error),
            };
        }
        if self.corrupt {
            return Err(self.not_otlp(CORRUPT, secrets));
        }
        if self.expects_tls() {
            return Err(Error::ExpectsTls { status, excerpt });
        }
        if self.is_page() {
            return Err(self.not_otlp("a page of HTML", secrets));
        }
        Ok(Outcome::Refused {
            why: format!("the receiver answered {status}{}", super::said(&excerpt)),
        })
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok().map(str::trim)
    }

    /// The content type without parameters, such as the character set.
    fn content_type(&self) -> &str {
        let value = self.header(CONTENT_TYPE).unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim()
    }

    fn is_of_type(&self, known: &str) -> bool {
        self.content_type().eq_ignore_ascii_case(known)
    }

    /// Whether this status says that the same request can never succeed because of its content,
    /// provided that it is the receiver that answers. The cause of every other status may be
    /// mended at the receiver, on the way, or in the configuration.
    fn is_about_content(&self) -> bool {
        matches!(
            self.status,
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY
        )
    }

    /// Whether the body is a page for people. Pages come from a proxy or another server, which
    /// know nothing of events.
    fn is_page(&self) -> bool {
        self.is_of_type("text/html") || self.body.trim_ascii_start().starts_with(b"<")
    }

    /// Whether the server says that it expects TLS. A phrase in the middle counts only in a page:
    /// anywhere else, it may be an event's own words.
    fn expects_tls(&self) -> bool {
        let begins = |words: &&[u8]| self.body.starts_with(words);
        let says = |words: &&[u8]| memmem::find(&self.body, words).is_some();
        EXPECTS_TLS.iter().any(begins) || (self.is_page() && PAGES_EXPECT_TLS.iter().any(says))
    }

    /// What a success says about events that were not taken. The error names what came instead of
    /// a success.
    fn partial_success(&self) -> Result<Partial, &'static str> {
        if self.corrupt {
            return Err(CORRUPT);
        }
        if self.cut {
            return Err(TOO_LARGE);
        }
        if self.body.is_empty() {
            return Ok(Partial::default());
        }
        if self.is_of_type(PROTOBUF) {
            return match Success::decode(&self.body[..]) {
                Ok(answer) => Ok(answer.partial.unwrap_or_default()),
                Err(_) => Err("a body that is not the protobuf it claims to be"),
            };
        }
        if self.is_of_type("application/json") {
            return read_json(&String::from_utf8_lossy(&self.body))
                .ok_or("JSON that is no answer to an export");
        }
        Err(if self.is_page() {
            "a page of HTML"
        } else {
            "a body that is neither protobuf nor JSON"
        })
    }

    /// What the receiver says about an error.
    fn words(&self) -> Cow<'_, [u8]> {
        if self.is_of_type(PROTOBUF)
            && let Ok(status) = RpcStatus::decode(&self.body[..])
        {
            return Cow::Owned(status.message.into_bytes());
        }
        Cow::Borrowed(&self.body)
    }

    fn not_otlp(&self, what: &'static str, secrets: &Secrets) -> Error {
        Error::NotOtlp {
            status: self.status,
            what,
            content_type: secrets.excerpt(self.content_type().as_bytes()),
            excerpt: secrets.excerpt(&self.body),
        }
    }

    /// How long the receiver asks to wait.
    fn retry_after(&self, now: Timestamp) -> Option<Duration> {
        let server_now = self.header(DATE).and_then(http_date::parse).unwrap_or(now);
        http_date::retry_after(self.header(RETRY_AFTER)?, server_now)
    }
}

// === impl Members ===

impl Members<'_> {
    /// The known members of an answer and of its partial success.
    const NAMES: [&'static str; 15] = [
        "partialSuccess",
        "partial_success",
        "rejectedLogRecords",
        "rejected_log_records",
        "errorMessage",
        "error_message",
        "error",
        "errors",
        "errorType",
        "fault",
        "success",
        "ok",
        "code",
        "status",
        "statusCode",
    ];

    /// A member by its name in JSON or its name in protobuf: senders may use either.
    fn either(&self, name: &str, in_protobuf: &str) -> Option<&str> {
        let mut given = [name, in_protobuf]
            .into_iter()
            .filter_map(|name| self.get(name));
        given.find(|&value| value != "null")
    }

    /// The value of a member, as JSON.
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.get())
    }

    /// Whether an answer says that the request failed, in one of the usual ways: with an error,
    /// with a code (of `google.rpc.Status` or of HTTP), or with a word.
    fn say_failure(&self) -> bool {
        let any = |names: &[&str], failed: fn(&str) -> bool| {
            let mut values = names.iter().filter_map(|name| self.get(name));
            values.any(failed)
        };
        let errors = [
            "error",
            "errors",
            "errorMessage",
            "error_message",
            "errorType",
            "fault",
        ];
        any(&errors, says_something)
            || any(&["success", "ok"], denies)
            || any(&["code"], is_failed_code)
            || any(&["status", "statusCode"], is_failed_status)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfMembers;

        impl<'de> Visitor<'de> for OfMembers {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = HashMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    match Members::NAMES.into_iter().find(|&known| known == name) {
                        Some(known) => {
                            members.insert(known, map.next_value()?);
                        }
                        None => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(OfMembers)
    }
}

// === impl Text ===

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfText;

        impl Visitor<'_> for OfText {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_bytes<E: de::Error>(self, text: &[u8]) -> Result<Text, E> {
                Ok(Text(text.to_vec()))
            }
        }

        deserializer.deserialize_bytes(OfText)
    }
}

/// Whether a connection with TLS was closed without a word of TLS. Simple servers do that, and
/// without TLS, that would be the end of a body as well.
fn is_end(error: &reqwest::Error) -> bool {
    io_errors(error).any(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

/// Reads an answer in OTLP's JSON form, with which some gateways answer protobuf, too. Unknown
/// members are ignored, as in protobuf's JSON, unless they say that something failed: an object
/// such as `{"error": …}` does not come from an OTLP receiver.
fn read_json(body: &str) -> Option<Partial> {
    let answer: Members<'_> = serde_json::from_str(body).ok()?;
    if answer.say_failure() {
        return None;
    }
    let Some(partial) = answer.either("partialSuccess", "partial_success") else {
        return Some(Partial::default());
    };
    let partial: Members<'_> = serde_json::from_str(partial).ok()?;
    Some(Partial {
        rejected: match partial.either("rejectedLogRecords", "rejected_log_records") {
            None => 0,
            // Protobuf's JSON writes 64-bit integers as texts.
            Some(value) => whole(text(value).as_deref().unwrap_or(value))?,
        },
        message: match partial.either("errorMessage", "error_message") {
            None => Vec::new(),
            Some(message) => match serde_json::from_str(message) {
                Ok(Text(text)) => text,
                Err(_) => message.as_bytes().to_vec(),
            },
        },
    })
}

/// Reads a whole number, which some senders write as `1.0` or `1e0`.
fn whole(text: &str) -> Option<i64> {
    let shortest = || text.parse::<f64>().ok().map(|number| number.to_string());
    let number = text.parse().ok();
    number.or_else(|| shortest()?.parse().ok())
}

/// Whether a JSON value is other than null, false, zero and empty.
fn says_something(value: &str) -> bool {
    match value.as_bytes() {
        b"null" | b"false" | b"\"\"" => false,
        [b'[' | b'{', inner @ .., _] => !inner.trim_ascii().is_empty(),
        _ => value.parse() != Ok(0.0),
    }
}

/// Whether a JSON value is false or zero, or a text that says false.
fn denies(value: &str) -> bool {
    match text(value) {
        Some(text) => text.trim().eq_ignore_ascii_case("false"),
        None => value == "false" || value.parse() == Ok(0.0),
    }
}

/// Whether a code tells of a failure. It may be a name: those of failures are many.
fn is_failed_code(value: &str) -> bool {
    match number_or_word(value) {
        Ok(code) => code != 0 && !(200..300).contains(&code),
        Err(name) => !["", "ok", "success"].contains(&name.as_str()),
    }
}

/// Whether a status tells of a failure. It may be an object that holds a code. Some programs write
/// 1 for a success.
fn is_failed_status(value: &str) -> bool {
    if let Ok(status) = serde_json::from_str::<Members<'_>>(value) {
        return status.get("code").is_some_and(is_failed_code);
    }
    match number_or_word(value) {
        Ok(status) => !(0..300).contains(&status),
        Err(word) => FAILED.contains(&word.as_str()),
    }
}

/// The number that a JSON value is, perhaps as a text, or else its text in small letters.
fn number_or_word(value: &str) -> Result<i64, String> {
    let text = text(value);
    let word = text.as_deref().map(str::trim);
    whole(word.unwrap_or(value)).ok_or_else(|| word.unwrap_or_default().to_ascii_lowercase())
}

/// The text that a JSON value is.
fn text(value: &str) -> Option<String> {
    serde_json::from_str(value).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderValue;
    use rustls::{ServerConfig, pki_types::PrivateKeyDer};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::http_client;

    fn retry_after(value: &'static str, date: Option<&'static str>) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static(value));
        headers.extend(date.map(|date| (DATE, HeaderValue::from_static(date))));
        let answer = Answer {
            status: StatusCode::TOO_MANY_REQUESTS,
            headers,
            body: Vec::new(),
            cut: false,
            corrupt: false,
        };
        answer.retry_after("2026-03-01T10:00:00Z".parse().unwrap())
    }

    #[test]
    fn a_date_to_retry_after_is_by_the_servers_clock() {
        // The server's clock is a year behind ours.
        let date = Some("Sat, 01 Mar 2025 10:00:00 GMT");
        let wait = retry_after("Sat, 01 Mar 2025 10:00:42 GMT", date);
        assert_eq!(wait, Some(Duration::from_secs(42)));
        // A value that is no date is ignored.
        let wait = retry_after("Sun, 01 Mar 2026 10:00:42 GMT", Some("today"));
        assert_eq!(wait, Some(Duration::from_secs(42)));
    }

    #[tokio::test]
    async fn an_answer_without_a_length_does_not_end_where_its_connection_is_reset() {
        let client = http_client::bare().no_proxy().build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
            let answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{}";
            stream.write_all(answer).await.unwrap();
            stream
        };
        let request = client.post(format!("http://127.0.0.1:{port}")).send();
        let (response, stream) = tokio::join!(request, server);
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        drop(stream);
        let answer = Answer::read(response.unwrap()).await;
        assert!(answer.is_err(), "{answer:?}");
    }

    /// Answers of a server that closes its connections with TLS without a word of TLS.
    #[tokio::test]
    async fn an_answer_without_a_length_ends_with_its_connection() {
        let builder = http_client::bare();
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let root = reqwest::Certificate::from_der(certificate.der()).unwrap();
        let client = builder.no_proxy().tls_certs_only([root]).build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let json = "Content-Type: application/json\r\n";
        for (head, body, read, taken) in [
            ("", "", true, true),
            (json, "{}", true, true),
            (json, "{\"partialSuccess\"", true, false),
            ("Content-Length: 9\r\n", "{}", false, false),
            (
                "Transfer-Encoding: chunked\r\n",
                "2\r\n{}\r\n",
                false,
                false,
            ),
        ] {
            let server = async {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = acceptor.accept(stream).await.unwrap();
                assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
                let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n{body}");
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
                stream.get_mut().0.shutdown().await.unwrap();
            };
            let request = client.post(format!("https://127.0.0.1:{port}")).send();
            let (response, ()) = tokio::join!(request, server);
            let answer = Answer::read(response.unwrap()).await;
            assert_eq!(answer.is_ok(), read, "{head}{body}: {answer:?}");
            if let Ok(answer) = answer {
                let outcome = answer.judge(&Secrets::default(), Timestamp::UNIX_EPOCH);
                assert_eq!(outcome.is_ok(), taken, "{head}{body}: {outcome:?}");
            }
        }
    }
}
