//! Why a request failed: one variant for each way to handle a failure, each with a stable
//! [`Error::reason`].

use std::{sync::Arc, time::Duration};

use super::Endpoint;
use crate::error_chain::chain;

/// Why a request failed. Cheap to clone, so that all callers that waited for one token request get
/// its failure. Messages never hold a secret or a token.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The credentials, or the token they brought, are not accepted.
    #[error("{what}")]
    Auth {
        /// What was refused and how, as a sentence.
        what: String,
        /// Whether the API accepts the token but forbids the request (403).
        forbidden: bool,
    },
    /// The rate limit is exceeded.
    #[error("the rate limit is exceeded (429)")]
    Throttled {
        /// How long the server asked us to wait.
        retry_after: Option<Duration>,
    },
    /// No answer in time.
    #[error("no complete answer from {host} within {}", humantime::format_duration(*.limit))]
    Timeout {
        /// The host that was asked.
        host: String,
        /// The time limit that was exceeded.
        limit: Duration,
    },
    /// The server could not be reached, or the connection broke.
    #[error("cannot reach {host}")]
    Connect {
        /// The host that was asked.
        host: String,
        /// Why: DNS, TCP, TLS, proxy or a reset.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The server answered with a status other than success.
    #[error("{endpoint} answered {status}{}", show_excerpt(.excerpt))]
    Http {
        /// The endpoint that was asked.
        endpoint: &'static str,
        /// The status code.
        status: u16,
        /// The beginning of the body, made harmless.
        excerpt: String,
    },
    /// The answer is not what the API documents.
    #[error("{endpoint} answered {what}{}", show_excerpt(.excerpt))]
    Decode {
        /// The endpoint that was asked.
        endpoint: &'static str,
        /// What came instead, as the end of a sentence.
        what: String,
        /// The beginning of the body, made harmless.
        excerpt: String,
    },
    /// The connection ended before the whole answer had come.
    #[error("{endpoint} answered with a body that ends too early")]
    CutOff {
        /// The endpoint that was asked.
        endpoint: &'static str,
    },
    /// A token request failed a moment ago, and it is too early for another.
    #[error(transparent)]
    Echo(Arc<Self>),
    /// The answer is larger than allowed.
    #[error(
        "{endpoint} answered more than {limit} bytes{}",
        if *.configured { "; raise max_response_size if that is right" } else { "" }
    )]
    TooLarge {
        /// The endpoint that was asked.
        endpoint: &'static str,
        /// The limit, in bytes, both on the wire and after decompression.
        limit: u64,
        /// Whether the limit is the configured one.
        configured: bool,
    },
}

// === impl Error ===

impl Error {
    /// Every reason, as the metrics' label names it.
    pub const REASONS: [&'static str; 7] = [
        "auth",
        "throttled",
        "timeout",
        "connect",
        "http",
        "decode",
        "too_large",
    ];

    /// Returns the error that says that the credentials or the token are not accepted.
    pub(crate) fn auth(what: String) -> Self {
        let forbidden = false;
        Self::Auth { what, forbidden }
    }

    /// Returns the stable word for this kind of failure.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Auth { .. } => "auth",
            Self::Throttled { .. } => "throttled",
            Self::Timeout { .. } => "timeout",
            Self::Connect { .. } => "connect",
            Self::Http { .. } => "http",
            Self::Decode { .. } | Self::CutOff { .. } => "decode",
            Self::TooLarge { .. } => "too_large",
            Self::Echo(error) => error.reason(),
        }
    }

    /// Whether this repeats the failure of an earlier request: the caller's own was not made.
    #[must_use]
    pub fn is_echo(&self) -> bool {
        matches!(self, Self::Echo(_))
    }

    /// Whether the server may be refusing the request's paging (400). A single 400 is no proof,
    /// because the API documents it as a passing fault as well.
    #[must_use]
    pub fn may_concern_paging(&self) -> bool {
        self.status() == Some(400)
    }

    /// Whether the server refuses to answer (4xx), rather than being unable to.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self.status(), Some(400..=499))
    }

    /// Whether the server says that it does not know such a request, so that there is no point in
    /// repeating it.
    #[must_use]
    pub fn is_unsupported_request(&self) -> bool {
        matches!(self.status(), Some(400 | 404 | 405 | 413 | 414 | 422 | 501))
    }

    /// Returns the status code, if the failure is an answer with a status.
    fn status(&self) -> Option<u16> {
        match self {
            Self::Http { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the same request may succeed a moment later without anybody having mended anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Auth { .. } | Self::TooLarge { .. } => false,
            Self::Http { status, .. } => *status >= 500 || *status == 408,
            Self::Throttled { .. }
            | Self::Timeout { .. }
            | Self::Connect { .. }
            | Self::Decode { .. }
            | Self::CutOff { .. } => true,
            Self::Echo(error) => error.is_transient(),
        }
    }

    /// Whether the failure may concern this request alone, so that other requests may succeed.
    #[must_use]
    pub fn may_concern_request(&self) -> bool {
        match self {
            Self::Auth { forbidden, .. } => *forbidden,
            Self::Throttled { .. } | Self::Echo(_) => false,
            Self::Timeout { .. } | Self::Connect { .. } => true,
            Self::Http { endpoint, .. }
            | Self::Decode { endpoint, .. }
            | Self::CutOff { endpoint }
            | Self::TooLarge { endpoint, .. } => *endpoint != Endpoint::Token.as_str(),
        }
    }

    /// Returns the whole chain of causes on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        chain(self)
    }
}

fn show_excerpt(excerpt: &str) -> String {
    if excerpt.is_empty() {
        String::new()
    } else {
        format!(": {excerpt}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_every_cause_once() {
        let source = std::io::Error::other("connection refused");
        let error = Error::Connect {
            host: "api.example".into(),
            source: Arc::new(source),
        };
        assert_eq!(
            error.chain(),
            "cannot reach api.example: connection refused"
        );
        assert_eq!(error.reason(), "connect");
    }
}
