//! Why a request failed: one variant a way to handle it, each with a stable [`Error::reason`].

use std::{sync::Arc, time::Duration};

use super::Endpoint;
use crate::error_chain::chain;

/// Why a request failed. Cheap to clone, so that everyone who waited for one token request is
/// told of its failure. Messages never hold a secret or a token.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The credentials, or the token they brought, are not accepted.
    #[error("{what}")]
    Auth {
        /// What was refused and how, as a sentence.
        what: String,
        /// Whether the token is accepted, and what was asked with it is forbidden (403).
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
        /// Who was asked.
        host: String,
        /// The time that was given.
        limit: Duration,
    },
    /// The server could not be reached, or the connection broke.
    #[error("cannot reach {host}")]
    Connect {
        /// Who was asked.
        host: String,
        /// Why: DNS, TCP, TLS, proxy or a reset.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The server answered with a status that is no success.
    #[error("{endpoint} answered {status}{}", show_excerpt(.excerpt))]
    Http {
        /// What was asked.
        endpoint: &'static str,
        /// The status code.
        status: u16,
        /// The beginning of the body, made harmless.
        excerpt: String,
    },
    /// The answer is not what the API documents.
    #[error("{endpoint} answered {what}{}", show_excerpt(.excerpt))]
    Decode {
        /// What was asked.
        endpoint: &'static str,
        /// What came instead, as the end of a sentence.
        what: String,
        /// The beginning of the body, made harmless.
        excerpt: String,
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
        /// What was asked.
        endpoint: &'static str,
        /// The limit, in bytes after decompression.
        limit: u64,
        /// Whether it is the one of the configuration.
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

    /// The stable word for this kind of failure.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Auth { .. } => "auth",
            Self::Throttled { .. } => "throttled",
            Self::Timeout { .. } => "timeout",
            Self::Connect { .. } => "connect",
            Self::Http { .. } => "http",
            Self::Decode { .. } => "decode",
            Self::TooLarge { .. } => "too_large",
            Self::Echo(error) => error.reason(),
        }
    }

    /// Whether this is not the failure of a request of one's own.
    #[must_use]
    pub fn is_echo(&self) -> bool {
        matches!(self, Self::Echo(_))
    }

    /// Whether the paging may be what the server refuses: a 400 says so of no request alone, and is a passing
    /// fault by its documentation.
    #[must_use]
    pub fn may_be_about_the_paging(&self) -> bool {
        self.status() == Some(400)
    }

    /// Whether the server does not want to answer, rather than cannot.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(self.status(), Some(400..=499))
    }

    /// Whether the server says that it does not know such a request, so that asking it again is in vain.
    #[must_use]
    pub fn is_of_an_unknown_request(&self) -> bool {
        matches!(self.status(), Some(400 | 404 | 405 | 413 | 414 | 422 | 501))
    }

    /// The status code, where the failure is one.
    fn status(&self) -> Option<u16> {
        match self {
            Self::Http { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the same request may succeed a moment later, with nobody having mended anything.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Auth { .. } | Self::TooLarge { .. } => false,
            Self::Http { status, .. } => *status >= 500 || *status == 408,
            Self::Throttled { .. }
            | Self::Timeout { .. }
            | Self::Connect { .. }
            | Self::Decode { .. } => true,
            Self::Echo(error) => error.may_pass(),
        }
    }

    /// Whether it may be for what was asked that the request failed, so that others need not fail.
    #[must_use]
    pub fn may_be_about_the_request(&self) -> bool {
        match self {
            Self::Auth { forbidden, .. } => *forbidden,
            Self::Throttled { .. } | Self::Echo(_) => false,
            Self::Timeout { .. } | Self::Connect { .. } => true,
            Self::Http { endpoint, .. }
            | Self::Decode { endpoint, .. }
            | Self::TooLarge { endpoint, .. } => *endpoint != Endpoint::Token.as_str(),
        }
    }

    /// The whole chain of causes on one line.
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
