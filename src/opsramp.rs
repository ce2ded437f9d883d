//! The OpsRamp REST API: tokens, the allowance, searches, the alert, its errors.
//!
//! A library in itself: it knows the vendor's JSON and nothing of metrics' names, the store or the
//! configuration file. It reports what happens on the wire to an [`Observer`].

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};

use crate::{
    clock,
    secret::{Secret, SecretSource},
};

pub mod alert;
mod allowance;
mod body;
mod client;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod http;
mod page;
mod room;
mod tls;
mod token;
mod token_endpoint;

pub use allowance::{Allowances, Reservation, Urgency};
pub use client::{Client, SearchRequest, SentRequests, TokenInfo};
pub use error::Error;
pub(crate) use http::check_tls_files;
pub use page::{Answer, ClientInfo, ClientsPage, Page};
pub use tls::BuildError;

/// The path of the token endpoint, behind the base URL.
pub(crate) const TOKEN_PATH: &str = "/auth/oauth/token";

/// How to reach one account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The account's name, for messages.
    pub name: Arc<str>,
    /// The base URL, such as `https://acme.api.opsramp.com`; no trailing slash.
    pub url: String,
    /// The token endpoint.
    pub token_url: String,
    /// The OAuth2 key.
    pub client_id: SecretSource,
    /// The OAuth2 secret, read again at every token request.
    pub client_secret: SecretSource,
    /// The time limit of one request, including its body.
    pub timeout: Duration,
    /// The time limit for connecting, including TLS.
    pub connect_timeout: Duration,
    /// Our own ceiling of paginated GETs a minute for each tenant. Default: 50, and 150 for
    /// `msp_…` tenants.
    pub requests_per_minute: Option<u32>,
    /// The largest answer that is read, in bytes, both on the wire and after decompression.
    pub max_response_size: u64,
    /// The proxy.
    pub proxy_url: Option<ProxyUrl>,
    /// Whether `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` determine the proxy if there is no
    /// `proxy_url`.
    pub environment_proxies: bool,
    /// TLS settings.
    pub tls: TlsOptions,
}

/// A proxy's URL, which may hold a password: `Debug` does not show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyUrl(pub Secret);

/// The TLS settings of an account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// PEM certificates to trust instead of the system's.
    pub ca_file: Option<std::path::PathBuf>,
    /// Our own certificate, PEM.
    pub cert_file: Option<std::path::PathBuf>,
    /// The key of our certificate, PEM.
    pub key_file: Option<std::path::PathBuf>,
    /// Whether to accept any certificate.
    pub insecure_skip_verify: bool,
}

/// The endpoints, as the metrics' label `endpoint` names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// The token endpoint.
    Token,
    /// The alert search.
    Search,
    /// One alert by id.
    Alert,
    /// The clients of a partner.
    Clients,
}

/// Is told what happens on the wire. The methods are called from many tasks and must not block.
pub trait Observer: Send + Sync + std::fmt::Debug {
    /// A request was answered with `status`, or failed without one.
    fn request(&self, endpoint: Endpoint, status: Option<u16>, took: Duration);
    /// A token request begins.
    fn token_requested(&self);
    /// A token was obtained.
    fn token_obtained(&self, took: Duration, expiry: Expiry);
    /// The API refuses the token, and no other token could be obtained.
    fn token_lost(&self) {}
    /// The API accepts the token again that was [lost](Observer::token_lost). `is_renewal_due`:
    /// whether another one is needed all the same.
    fn token_regained(&self, _expiry: Expiry, _is_renewal_due: bool) {}
    /// No token was obtained, because of `error`. `reason` is one of `rejected`, `throttled`,
    /// `timeout`, `connect`, `http` and `decode`, or `credentials` if nothing was requested because
    /// the credentials cannot be read.
    fn token_failed(&self, reason: &'static str, error: &Error);
    /// An answer stated the rate limit of a tenant.
    fn rate_limit(&self, tenant: &str, seen: RateLimit);
    /// A request waited for the allowance of a tenant.
    fn throttled(&self, tenant: &str, waited: Duration);
    /// An answer that came at `now` on our clock gave `server` as the time of the server's clock.
    fn server_time(&self, _server: Timestamp, _now: Timestamp) {}
}

/// When a token expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    at: Timestamp,
    /// The same on [`clock::since_boot`], which nobody sets.
    since_boot: SignedDuration,
}

/// The largest error of [`Expiry::at`] that is not corrected. A wall clock is adjusted all the
/// time, and each change of the time would look like another token.
const EXPIRY_TOLERANCE: SignedDuration = SignedDuration::from_secs(5);

/// What the `X-RateLimit-*` headers of the last answer said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests a minute.
    pub limit: u32,
    /// Requests left in the present window.
    pub remaining: u32,
    /// When the window ends, on our clock.
    pub reset_at: Timestamp,
}

// === impl Expiry ===

impl Expiry {
    /// Returns when a token expires that lives for `life` from `now` on.
    #[must_use]
    pub fn after(life: Duration, now: Timestamp) -> Self {
        let life = SignedDuration::try_from(life).unwrap_or(SignedDuration::MAX);
        Self {
            at: now.checked_add(life).unwrap_or(Timestamp::MAX),
            since_boot: since_boot().saturating_add(life),
        }
    }

    /// Returns the time on the wall clock.
    #[must_use]
    pub fn at(self) -> Timestamp {
        self.at
    }

    /// Corrects the time if the wall clock, which says `now`, has been set.
    pub fn correct(&mut self, now: Timestamp) {
        let left = self.since_boot.saturating_sub(since_boot());
        if let Ok(at) = now.checked_add(left)
            && at.duration_since(self.at).abs() > EXPIRY_TOLERANCE
        {
            self.at = at;
        }
    }
}

fn since_boot() -> SignedDuration {
    SignedDuration::try_from(clock::since_boot()).unwrap_or(SignedDuration::MAX)
}

// === impl Options ===

impl Options {
    /// Creates the options of an account with defaults for everything else. The token endpoint is
    /// on the host of `url`.
    #[must_use]
    pub fn new(
        name: Arc<str>,
        url: String,
        client_id: SecretSource,
        client_secret: SecretSource,
    ) -> Self {
        Self {
            name,
            token_url: format!("{url}{TOKEN_PATH}"),
            url,
            client_id,
            client_secret,
            timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            requests_per_minute: None,
            max_response_size: 64 << 20,
            proxy_url: None,
            environment_proxies: true,
            tls: TlsOptions::default(),
        }
    }

    /// Returns how many searches a tenant may make in a minute if the server sets no lower limit.
    #[must_use]
    pub fn searches_per_minute(&self, tenant: &str) -> u32 {
        allowance::paginated_ceiling(self.requests_per_minute, tenant)
    }

    /// Returns the URL as all its spellings are written. Accounts with the same one ask the same
    /// server.
    #[must_use]
    pub fn server(&self) -> Arc<str> {
        reqwest::Url::parse(&self.url)
            .map_or_else(|_| self.url.as_str().into(), |url| url.as_str().into())
    }
}

// === impl TlsOptions ===

impl TlsOptions {
    /// Returns the files that these settings name.
    pub(crate) fn files(&self) -> impl Iterator<Item = &std::path::PathBuf> {
        [&self.ca_file, &self.cert_file, &self.key_file]
            .into_iter()
            .flatten()
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// Every endpoint.
    pub const ALL: [Self; 4] = [Self::Token, Self::Search, Self::Alert, Self::Clients];

    /// The metrics' label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Search => "search",
            Self::Alert => "alert",
            Self::Clients => "clients",
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan as _;

    use super::*;

    /// A rule takes a change for a new token.
    #[test]
    fn the_expiry_of_a_token_follows_a_clock_that_is_set_and_no_other() {
        let now = clock::now();
        let mut expiry = Expiry::after(Duration::from_secs(7200), now);
        assert_eq!(expiry.at(), now + 2.hours());
        for set in [now + 1.hour(), now - 9600.hours(), now] {
            expiry.correct(set);
            let told = expiry.at();
            let off = told.duration_since(set + 2.hours());
            assert!(off.abs() < EXPIRY_TOLERANCE, "{off:?}");
            for slewed in [-1, 0, 1] {
                expiry.correct(set + slewed.seconds());
                assert_eq!(expiry.at(), told);
            }
        }
        expiry.correct(Timestamp::MAX);
        expiry.correct(Timestamp::MIN);
    }
}
