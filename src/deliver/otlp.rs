//! An OpenTelemetry receiver: OTLP over HTTP, protobuf.
//!
//! What a receiver's answer means decides whether an event is lost, so it is read with care. Only
//! an answer that says that the *content* is bad lets go of an event, and of that one alone: the
//! batch is split until it is found. Whatever may be a fault of the set-up (a wrong password, a
//! wrong URL, a redirect, a login page) is tried again for ever, and shows in the backlog.
//! Delivery is at least once; `log.record.uid` is the same each time.

use std::{io, io::Write as _, ops::Range, time::Duration};

use flate2::{Compression, write::GzEncoder};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE, LOCATION, RETRY_AFTER},
};
use jiff::{Timestamp, fmt::rfc2822};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceResponse;
use prost::Message as _;

use crate::{
    clock,
    record::Record,
    secret::{SecretError, SecretSource},
    store::Pending,
};

use super::{
    OtlpOptions,
    sink::{Progress, Refusal},
};

mod message;

/// How much of an answer is read.
const MAX_ANSWER: usize = 64 << 10;

/// How much of an answer is shown.
const MAX_EXCERPT: usize = 200;

const PROTOBUF: &str = "application/x-protobuf";

/// An OTLP receiver as a sink.
#[derive(Debug)]
pub(super) struct Otlp {
    client: reqwest::Client,
    endpoint: reqwest::Url,
    headers: Vec<(HeaderName, SecretSource)>,
    gzip: bool,
}

/// The receiver did not take the events.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint is no URL.
    #[error("the endpoint is not an http or https URL")]
    Endpoint,
    /// A header cannot be sent.
    #[error("{0:?} is not the name of a header that can be set")]
    HeaderName(String),
    /// The HTTP client could not be set up.
    #[error("cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// The value of a header could not be read.
    #[error("cannot read the header {name}")]
    HeaderSource {
        /// Its name.
        name: HeaderName,
        /// Why.
        #[source]
        source: SecretError,
    },
    /// The value of a header holds what no header may.
    #[error("the value of the header {0} holds characters that cannot be sent")]
    HeaderValue(HeaderName),
    /// The body could not be compressed.
    #[error("cannot compress the request")]
    Compress(#[source] io::Error),
    /// No answer came.
    #[error("cannot reach the receiver")]
    Transport(#[source] reqwest::Error),
    /// The answer was a redirect; it might lead the headers' secrets anywhere.
    #[error(
        "the receiver answered {status}, a redirect{}, which is not followed; set the endpoint to where it leads",
        to(location)
    )]
    Redirect {
        /// The status.
        status: StatusCode,
        /// Where to.
        location: Option<String>,
    },
    /// The answer was an error.
    #[error("the receiver answered {status}{}", said(excerpt))]
    Status {
        /// The status.
        status: StatusCode,
        /// What it said, shortened.
        excerpt: String,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// The answer was a page for people.
    #[error("the receiver answered {0} with a page of HTML; is the endpoint an OTLP receiver?")]
    NotOtlp(StatusCode),
}

/// What became of a request.
enum Outcome {
    /// The receiver has the events, all but so many, of which it says this.
    Taken { rejected: u64, message: String },
    /// It does not want them as they are.
    Refused { why: String },
}

// === impl Otlp ===

impl Otlp {
    pub(super) fn new(options: &OtlpOptions) -> Result<Self, Error> {
        let endpoint = reqwest::Url::parse(&options.endpoint)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or(Error::Endpoint)?;
        let headers = options
            .headers
            .iter()
            .map(|(name, source)| match name.parse::<HeaderName>() {
                Ok(parsed) if parsed != CONTENT_TYPE && parsed != CONTENT_ENCODING => {
                    Ok((parsed, source.clone()))
                }
                _ => Err(Error::HeaderName(name.clone())),
            })
            .collect::<Result<_, _>>()?;
        // A process has one; it does not matter who was first.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!(
                env!("CARGO_PKG_NAME"),
                "/",
                env!("CARGO_PKG_VERSION")
            ))
            .redirect(reqwest::redirect::Policy::none())
            // The worker repeats what failed.
            .retry(reqwest::retry::never())
            .timeout(options.timeout);
        if options.endpoint.starts_with("http:") {
            // A machine without CA certificates can talk plain HTTP all the same.
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(Error::Client)?;
        Ok(Self {
            client,
            endpoint,
            headers,
            gzip: options.gzip,
        })
    }

    pub(super) async fn deliver(&mut self, events: &[Pending]) -> Progress {
        let mut progress = Progress::default();
        let mut records = Vec::with_capacity(events.len());
        for Pending { event, .. } in events {
            records.push(match Record::from_json(&event.body) {
                Ok(record) => Ok(record),
                Err(error) => Err(Refusal::unreadable(event.event_id, &error)),
            });
        }
        // Parts of the batch that are still to be sent, the first one last.
        let mut parts: Vec<_> = std::iter::once(0..records.len()).collect();
        while let Some(part) = parts.pop() {
            let readable = records[part.clone()].iter().flatten();
            if readable.clone().next().is_none() {
                progress.settle(&part, take_refusals(&mut records[part.clone()]));
                continue;
            }
            let result = self.send(message::request(readable.clone())).await;
            match result {
                Ok(Outcome::Taken { rejected, message }) => {
                    let mut refused = Vec::new();
                    let rejected = rejected.min(readable.count() as u64);
                    if rejected > 0 {
                        refused.push(Refusal {
                            events: rejected,
                            event_id: None,
                            reason: format!(
                                "the receiver took a batch without some of its events{}",
                                said(&message)
                            ),
                        });
                    } else if !message.is_empty() {
                        tracing::warn!(message, "the receiver has taken the events with a warning");
                    }
                    refused.extend(take_refusals(&mut records[part.clone()]));
                    progress.settle(&part, refused);
                }
                Ok(Outcome::Refused { why }) if part.len() == 1 => {
                    let refused = records[part.start].as_ref().ok().map(|record| Refusal {
                        events: 1,
                        event_id: Some(record.event_id),
                        reason: why,
                    });
                    progress.settle(&part, refused.into_iter().collect());
                }
                Ok(Outcome::Refused { .. }) => {
                    let middle = part.start + part.len() / 2;
                    parts.push(middle..part.end);
                    parts.push(part.start..middle);
                }
                Err(error) => {
                    progress.error = Some(error.into());
                    break;
                }
            }
        }
        progress
    }

    async fn send(
        &self,
        request: opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest,
    ) -> Result<Outcome, Error> {
        let mut headers = self.read_headers().await?;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
        let mut body = request.encode_to_vec();
        if self.gzip {
            body = compress(&body).map_err(Error::Compress)?;
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let response = self
            .client
            .post(self.endpoint.clone())
            .headers(headers)
            .body(body)
            .send()
            .await
            // The URL may hold a password.
            .map_err(|error| Error::Transport(error.without_url()))?;
        understand(response).await
    }

    async fn read_headers(&self) -> Result<HeaderMap, Error> {
        let mut headers = HeaderMap::new();
        for (name, source) in &self.headers {
            let read = match source {
                SecretSource::Value(_) => source.read(),
                SecretSource::File(_) => {
                    let source = source.clone();
                    // A file on a dead network disk must not hold up other sinks.
                    match tokio::task::spawn_blocking(move || source.read()).await {
                        Ok(read) => read,
                        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
                    }
                }
            };
            let secret = read.map_err(|source| Error::HeaderSource {
                name: name.clone(),
                source,
            })?;
            let mut value = HeaderValue::from_str(secret.expose())
                .map_err(|_| Error::HeaderValue(name.clone()))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(headers)
    }
}

impl Progress {
    /// A part is done with; it follows those that were before.
    fn settle(&mut self, part: &Range<usize>, refused: Vec<Refusal>) {
        self.settled = part.end;
        self.refused.extend(refused);
    }
}

fn take_refusals(records: &mut [Result<Record, Refusal>]) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for record in records {
        if let Err(refusal) = record {
            refusals.push(std::mem::take(refusal));
        }
    }
    refusals
}

/// Reads an answer, with the OTLP specification where it is clear, and for the events where it
/// is not.
async fn understand(response: reqwest::Response) -> Result<Outcome, Error> {
    let status = response.status();
    let header = |name| {
        let value = response.headers().get(name)?;
        value.to_str().ok().map(str::to_owned)
    };
    let content_type = header(CONTENT_TYPE).unwrap_or_default();
    let is_html = content_type.starts_with("text/html");
    if status.is_redirection() {
        let location = header(LOCATION).map(|to| excerpt(to.as_bytes()));
        return Err(Error::Redirect { status, location });
    }
    let retry_after = header(RETRY_AFTER).and_then(|value| read_retry_after(&value, clock::now()));
    let answer = read_answer(response).await;
    if status.is_success() {
        if is_html {
            return Err(Error::NotOtlp(status));
        }
        // An answer that cannot be read does not unsay its status.
        let answer = answer
            .ok()
            .filter(|_| content_type.starts_with(PROTOBUF))
            .and_then(|answer| ExportLogsServiceResponse::decode(&answer[..]).ok());
        let partial = answer.and_then(|answer| answer.partial_success);
        let partial = partial.unwrap_or_default();
        return Ok(Outcome::Taken {
            rejected: u64::try_from(partial.rejected_log_records).unwrap_or_default(),
            message: excerpt(partial.error_message.as_bytes()),
        });
    }
    let excerpt = excerpt(&answer.unwrap_or_default());
    if refuses_content(status) {
        return Ok(Outcome::Refused {
            why: format!("the receiver answered {status}{}", said(&excerpt)),
        });
    }
    Err(Error::Status {
        status,
        excerpt,
        retry_after,
    })
}

/// Whether the same request can never succeed, because of what it holds. Every other status may be
/// mended at the receiver, on the way, or in the configuration.
fn refuses_content(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY
    )
}

/// Reads so much of an answer as is worth it.
async fn read_answer(mut response: reqwest::Response) -> Result<Vec<u8>, reqwest::Error> {
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = MAX_ANSWER - answer.len();
        answer.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if answer.len() == MAX_ANSWER {
            break;
        }
    }
    Ok(answer)
}

/// The readable part of an answer, shortened. An OTLP error is a protobuf message that is mostly
/// its text.
fn excerpt(answer: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(answer)
        .chars()
        .map(|c| {
            if c.is_control() || c == '\u{fffd}' {
                ' '
            } else {
                c
            }
        })
        .take(4 * MAX_EXCERPT)
        .collect();
    let words: Vec<_> = text.split_whitespace().collect();
    crate::record::truncate(&words.join(" "), MAX_EXCERPT).into_owned()
}

fn said(excerpt: &str) -> String {
    if excerpt.is_empty() {
        String::new()
    } else {
        format!(": {excerpt}")
    }
}

fn to(location: &Option<String>) -> String {
    location
        .as_ref()
        .map_or_else(String::new, |location| format!(" to {location}"))
}

/// `Retry-After`: seconds, or a date.
fn read_retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = rfc2822::DateTimeParser::new()
        .parse_timestamp(value.trim())
        .ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

fn compress(body: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body)?;
    encoder.finish()
}

// === impl Error ===

impl Error {
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
