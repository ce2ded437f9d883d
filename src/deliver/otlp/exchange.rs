//! One export: the request, and the answer to it.
//!
//! The values of headers are secrets, which are read again for each request. This module knows
//! nothing of events, nor of what follows from an answer.

use std::{io, io::Write as _, path::PathBuf, time::Duration};

use flate2::{Compression, write::GzEncoder};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use prost::Message as _;

use crate::{
    clock,
    deliver::OtlpOptions,
    excerpt::Secrets,
    http_client, proxy,
    reading::{self, Reading},
    secret::{Secret, SecretError, SecretSource},
};

use super::{
    PROTOBUF,
    answer::{Answer, Outcome},
};

/// Time limit for connecting, TLS included, if the whole request may take longer. So a host that
/// is gone is noticed sooner than a receiver that is slow.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A receiver, and how to talk to it.
#[derive(Debug)]
pub(super) struct Receiver {
    client: reqwest::Client,
    endpoint: reqwest::Url,
    headers: Vec<(HeaderName, SecretSource)>,
    /// Reads the files that hold headers.
    reading: Reading<Result<Vec<(HeaderName, Secret)>, Error>>,
    /// Credentials for proxies on the way, which answers must not reveal.
    proxies: Vec<Secret>,
    timeout: Duration,
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
    /// The files that hold headers could not be read in time.
    #[error("the files of the headers {}", reading::unread(paths))]
    HeadersUnread {
        /// The files.
        paths: Vec<PathBuf>,
    },
    /// The value of a header holds characters that no header may.
    #[error("the value of the header {0} holds characters that cannot be sent")]
    HeaderValue(HeaderName),
    /// The body could not be compressed.
    #[error("cannot compress the request")]
    Compress(#[source] io::Error),
    /// The receiver was reached, but did not answer in time.
    #[error("the receiver did not answer within {}", humantime::format_duration(*.limit))]
    Timeout {
        /// The time limit.
        limit: Duration,
    },
    /// No whole answer came.
    #[error("cannot reach the receiver")]
    Transport(#[source] reqwest::Error),
    /// The answer was a redirect. It is not followed, because it might lead the headers' secrets
    /// anywhere.
    #[error(
        "the receiver answered {status}, a redirect{}, which is not followed; set the endpoint to where it leads",
        to(location)
    )]
    Redirect {
        /// The status.
        status: StatusCode,
        /// The origin that the redirect leads to.
        location: Option<String>,
    },
    /// The answer was an error.
    #[error("the receiver answered {status}{}", super::said(excerpt))]
    Status {
        /// The status.
        status: StatusCode,
        /// What the receiver said, shortened.
        excerpt: String,
        /// How long the receiver asks to wait; at most five minutes.
        retry_after: Option<Duration>,
    },
    /// The receiver expects TLS, was spoken to without it, and has not seen the content.
    #[error(
        "the receiver answered {status}, for it expects TLS{}",
        super::said(excerpt)
    )]
    ExpectsTls {
        /// The status.
        status: StatusCode,
        /// What the receiver said, shortened.
        excerpt: String,
    },
    /// The answer was none that an OTLP receiver gives.
    #[error(
        "the receiver answered {status} with {what}{}; is the endpoint an OTLP receiver?{}",
        of_type(content_type),
        super::said(excerpt)
    )]
    NotOtlp {
        /// The status.
        status: StatusCode,
        /// What came, as part of a sentence.
        what: &'static str,
        /// The content type that the answer claims; may be empty.
        content_type: String,
        /// What the server said, shortened.
        excerpt: String,
    },
}

// === impl Receiver ===

impl Receiver {
    pub(super) fn new(options: &OtlpOptions) -> Result<Self, Error> {
        Self::connecting_within(CONNECT_TIMEOUT, options)
    }

    pub(super) fn connecting_within(limit: Duration, options: &OtlpOptions) -> Result<Self, Error> {
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
        // The client never repeats a request: its user decides about that.
        let client = http_client::builder(&[endpoint.as_str()])
            // The limit for connecting is the shorter one, so the kind of timeout tells whether
            // there was a connection.
            .connect_timeout(limit.min(options.timeout * 3 / 4))
            .timeout(options.timeout)
            .build()
            .map_err(Error::Client)?;
        Ok(Self {
            client,
            proxies: proxy::authorizations(None, [endpoint.as_str()]),
            endpoint,
            headers,
            reading: Reading::default(),
            timeout: options.timeout,
            gzip: options.gzip,
        })
    }

    pub(super) async fn export(&self, request: ExportLogsServiceRequest) -> Result<Outcome, Error> {
        let (mut headers, secrets) = self.read_headers().await?;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROTOBUF));
        let mut body = request.encode_to_vec();
        if self.gzip {
            body = compress(&body).map_err(Error::Compress)?;
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let failed = |error: reqwest::Error| {
            if error.is_timeout() && !error.is_connect() {
                return Error::Timeout {
                    limit: self.timeout,
                };
            }
            // The URL may hold a password.
            Error::Transport(error.without_url())
        };
        let request = self.client.post(self.endpoint.clone());
        let response = request.headers(headers).body(body).send().await;
        let answer = Answer::read(response.map_err(failed)?).await;
        answer.map_err(failed)?.judge(&secrets, clock::now())
    }

    /// Reads the headers as they are now. Returns them with the secrets that must not be shown.
    async fn read_headers(&self) -> Result<(HeaderMap, Secrets), Error> {
        let mut headers = HeaderMap::new();
        let mut secrets = self.proxies.clone();
        for (name, secret) in self.read_sources().await? {
            let mut value = HeaderValue::from_str(secret.expose())
                .map_err(|_| Error::HeaderValue(name.clone()))?;
            value.set_sensitive(true);
            headers.insert(name, value);
            secrets.push(secret);
        }
        Ok((headers, Secrets::of(&secrets)))
    }

    async fn read_sources(&self) -> Result<Vec<(HeaderName, Secret)>, Error> {
        let paths = self.headers.iter().filter_map(|(_, source)| match source {
            SecretSource::Value(_) => None,
            SecretSource::File(path) => Some(path.clone()),
        });
        let paths: Vec<_> = paths.collect();
        if paths.is_empty() {
            return read_all(&self.headers);
        }
        let headers = self.headers.clone();
        // A file on a dead network disk must hold up neither other sinks nor this one for good.
        let read = self.reading.read(move || read_all(&headers)).await;
        read.unwrap_or_else(|| Err(Error::HeadersUnread { paths }))
    }
}

fn read_all(headers: &[(HeaderName, SecretSource)]) -> Result<Vec<(HeaderName, Secret)>, Error> {
    let read = headers.iter().map(|(name, source)| match source.read() {
        Ok(secret) => Ok((name.clone(), secret)),
        Err(source) => Err(Error::HeaderSource {
            name: name.clone(),
            source,
        }),
    });
    read.collect()
}

fn compress(body: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body)?;
    encoder.finish()
}

// === impl Error ===

impl Error {
    pub(in crate::deliver) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the receiver, or a gateway that waited for it, might have answered a smaller
    /// request in time.
    pub(super) fn is_for_want_of_time(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            // Some receivers close a connection that takes them too long.
            Self::Transport(_) => self.is_broken_connection(),
            Self::Status { status, .. } => matches!(
                *status,
                StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT
            ),
            _ => false,
        }
    }

    /// Whether the receiver was reached, but the connection ended before a whole answer had come.
    pub(super) fn is_broken_connection(&self) -> bool {
        matches!(self, Self::Transport(error) if !error.is_connect())
    }
}

fn to(location: &Option<String>) -> String {
    location
        .as_ref()
        .map_or_else(String::new, |location| format!(" to {location}"))
}

fn of_type(content_type: &str) -> String {
    if content_type.is_empty() {
        String::new()
    } else {
        format!(" ({content_type})")
    }
}
