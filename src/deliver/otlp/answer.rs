//! What a receiver's answer means for the events that it was sent.
//!
//! Only an answer that says that the *content* is bad lets go of an event, and only one that an
//! OTLP receiver gives counts as a success. The specification has every 4xx but 429 drop the
//! data; here whatever may be a fault of the set-up or of something on the way is worth another
//! try. This module sends nothing and knows no event.

use std::{borrow::Cow, io::Read as _, time::Duration};

use flate2::read::MultiGzDecoder;
use http::{
    HeaderMap, HeaderName, StatusCode,
    header::{CONTENT_TYPE, DATE, LOCATION, RETRY_AFTER},
};
use jiff::Timestamp;
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceResponse,
};
use prost::Message as _;
use serde_json::Value;

use super::{Error, PROTOBUF};
use crate::{excerpt::Secrets, http_client::is_gzip, http_date, redirect};

/// How much of an answer is read.
const MAX_BODY: usize = 64 << 10;

/// How much of a success, which may say something of every event: events that were taken would be sent for
/// ever where it was not read. So much gRPC takes of any answer.
const MAX_SUCCESS: usize = 4 << 20;

/// How many values JSON may be of. An answer is of a handful, whatever length they have; each takes a
/// hundredfold of what it is on the wire.
const MAX_VALUES: usize = 4096;

/// How a server written in Go answers 400 where it expects TLS; it has not seen the content.
const EXPECTS_TLS: &[u8] = b"Client sent an HTTP request to an HTTPS server";

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
    /// Whether it could not be decompressed.
    corrupt: bool,
}

/// What became of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The receiver has the events, all but so many, of which it says this.
    Taken { rejected: u64, message: String },
    /// It does not want them as they are.
    Refused { why: String },
    /// Something on the way does not let so much through. Less may get through, but this says
    /// nothing against any event.
    TooLarge(Error),
}

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
                // What becomes of the events must not depend on half a body.
                Err(error) if answer.status.is_success() || answer.is_about_content() => {
                    return Err(error);
                }
                Err(_) => {
                    answer.body.clear();
                    break;
                }
            }
        }
        // Some compress without being asked to.
        if is_gzip(&answer.headers) && !answer.body.is_empty() {
            answer.decompress();
        }
        Ok(answer)
    }

    fn limit(&self) -> usize {
        if self.status.is_success() {
            MAX_SUCCESS
        } else {
            MAX_BODY
        }
    }

    /// No more than would be read of a plain one: a thousandfold may be in it.
    fn decompress(&mut self) {
        let limit = self.limit();
        let mut plain = Vec::new();
        let decoder = MultiGzDecoder::new(&self.body[..]);
        let read = decoder.take(limit as u64 + 1).read_to_end(&mut plain);
        self.corrupt = read.is_err() && !self.cut;
        self.cut |= plain.len() > limit;
        plain.truncate(limit);
        self.body = plain;
    }

    /// What the answer means. `now` is the time where the receiver does not tell its own.
    pub(super) fn judge(&self, secrets: &Secrets, now: Timestamp) -> Result<Outcome, Error> {
        let status = self.status;
        if status.is_success() {
            return match self.partial_success() {
                Ok(partial) => Ok(Outcome::Taken {
                    rejected: u64::try_from(partial.rejected_log_records).unwrap_or_default(),
                    message: secrets.excerpt(partial.error_message.as_bytes()),
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
            return Err(Error::Status {
                status,
                excerpt,
                retry_after: self.retry_after(now),
            });
        }
        if self.corrupt {
            return Err(self.not_otlp(CORRUPT, secrets));
        }
        if self.is_page() {
            let error = self.not_otlp("a page of HTML", secrets);
            return if status == StatusCode::PAYLOAD_TOO_LARGE {
                Ok(Outcome::TooLarge(error))
            } else {
                Err(error)
            };
        }
        if self.body.starts_with(EXPECTS_TLS) {
            return Err(Error::Status {
                status,
                excerpt,
                retry_after: None,
            });
        }
        Ok(Outcome::Refused {
            why: format!("the receiver answered {status}{}", super::said(&excerpt)),
        })
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok().map(str::trim)
    }

    /// Without parameters, such as the character set.
    fn content_type(&self) -> &str {
        let value = self.header(CONTENT_TYPE).unwrap_or_default();
        value.split(';').next().unwrap_or_default().trim()
    }

    fn is_of_type(&self, known: &str) -> bool {
        self.content_type().eq_ignore_ascii_case(known)
    }

    /// Whether the same request can never succeed, because of what it holds, if it is the receiver
    /// who says so. Every other status may be mended at the receiver, on the way, or in the
    /// configuration.
    fn is_about_content(&self) -> bool {
        matches!(
            self.status,
            StatusCode::BAD_REQUEST
                | StatusCode::PAYLOAD_TOO_LARGE
                | StatusCode::UNPROCESSABLE_ENTITY
        )
    }

    /// A page is for people: a proxy gives it, or another server, who know nothing of events.
    fn is_page(&self) -> bool {
        self.is_of_type("text/html") || self.body.trim_ascii_start().starts_with(b"<")
    }

    /// What a success says of events that were not taken, or what came instead.
    fn partial_success(&self) -> Result<ExportLogsPartialSuccess, &'static str> {
        if self.corrupt {
            return Err(CORRUPT);
        }
        if self.cut {
            return Err(TOO_LARGE);
        }
        if self.body.is_empty() {
            return Ok(ExportLogsPartialSuccess::default());
        }
        if self.is_of_type(PROTOBUF) {
            return match ExportLogsServiceResponse::decode(&self.body[..]) {
                Ok(answer) => Ok(answer.partial_success.unwrap_or_default()),
                Err(_) => Err("a body that is not the protobuf it claims to be"),
            };
        }
        if self.is_of_type("application/json") {
            if has_many_values(&self.body) {
                return Err(TOO_LARGE);
            }
            return read_json(&self.body).ok_or("JSON that is no answer to an export");
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

    /// How long it asks to be left alone.
    fn retry_after(&self, now: Timestamp) -> Option<Duration> {
        let server_now = self.header(DATE).and_then(http_date::parse).unwrap_or(now);
        http_date::retry_after(self.header(RETRY_AFTER)?, server_now)
    }
}

/// Whether JSON is of more values than an answer has: what stands between them, outside of texts, is counted.
fn has_many_values(body: &[u8]) -> bool {
    let (mut in_text, mut escaped) = (false, false);
    let separators = body.iter().filter(|&&byte| {
        let is_quote = byte == b'"' && !escaped;
        escaped = in_text && byte == b'\\' && !escaped;
        in_text ^= is_quote;
        !in_text && matches!(byte, b',' | b'[' | b'{')
    });
    separators.take(MAX_VALUES).count() == MAX_VALUES
}

/// Reads an answer in OTLP's JSON form, which some gateways give to protobuf, too. Members that
/// are not known are ignored, as protobuf's JSON has it, unless they say that something failed: such
/// an object, `{"error": …}`, is somebody else's.
fn read_json(body: &[u8]) -> Option<ExportLogsPartialSuccess> {
    let answer: serde_json::Map<String, Value> = serde_json::from_slice(body).ok()?;
    if says_failure(&answer) {
        return None;
    }
    let Some(partial) = member(&answer, "partialSuccess", "partial_success") else {
        return Some(ExportLogsPartialSuccess::default());
    };
    let partial = partial.as_object()?;
    Some(ExportLogsPartialSuccess {
        rejected_log_records: match member(partial, "rejectedLogRecords", "rejected_log_records") {
            None => 0,
            // Protobuf's JSON writes 64-bit integers as texts.
            Some(Value::String(text)) => text.parse().ok()?,
            Some(number) => number.as_i64()?,
        },
        error_message: match member(partial, "errorMessage", "error_message") {
            None => String::new(),
            Some(message) => message.as_str()?.to_owned(),
        },
    })
}

/// A member by its name in JSON or the one that it has in protobuf: either may be written.
fn member<'a>(
    object: &'a serde_json::Map<String, Value>,
    name: &str,
    in_protobuf: &str,
) -> Option<&'a Value> {
    let mut given = [name, in_protobuf]
        .into_iter()
        .filter_map(|name| object.get(name));
    given.find(|value| !value.is_null())
}

/// Whether an answer says that the request failed, in one of the ways that are usual: with an
/// error, with a code (`google.rpc.Status`, or one of HTTP), or with a word.
fn says_failure(answer: &serde_json::Map<String, Value>) -> bool {
    let is = |key, failed: fn(&Value) -> bool| answer.get(key).is_some_and(failed);
    is("error", says_something)
        || is("errors", says_something)
        || is("success", |value| value == &Value::Bool(false))
        || is("code", |value| {
            value
                .as_i64()
                .is_some_and(|code| code != 0 && !(200..300).contains(&code))
        })
        || is("status", |value| {
            let status = value.as_str().unwrap_or_default();
            ["error", "fail", "failed", "failure"]
                .iter()
                .any(|word| status.eq_ignore_ascii_case(word))
        })
}

fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
        Value::Number(code) => code.as_f64() != Some(0.0),
        Value::Bool(true) => true,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

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
        // It is a year behind ours.
        let date = Some("Sat, 01 Mar 2025 10:00:00 GMT");
        let wait = retry_after("Sat, 01 Mar 2025 10:00:42 GMT", date);
        assert_eq!(wait, Some(Duration::from_secs(42)));
        // What is no date is as good as none.
        let wait = retry_after("Sun, 01 Mar 2026 10:00:42 GMT", Some("today"));
        assert_eq!(wait, Some(Duration::from_secs(42)));
    }
}
