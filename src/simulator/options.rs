//! How a simulated OpsRamp behaves where the documentation leaves that open, and what it contains.
//!
//! Every option can be changed while the server runs, in Rust or with `PATCH /simulator/options`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The tenant that exists by default.
pub const DEMO_TENANT: &str = "client_1";
/// The API key that exists by default.
pub const DEMO_KEY: &str = "demo-key";
/// The secret of that key.
pub const DEMO_SECRET: &str = "demo-secret";

/// All options of the simulator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The seed from which all invented data is derived.
    pub seed: u64,
    /// Tenants that exist at the start. Ids that begin with `msp_` are partners.
    pub tenants: Vec<TenantOptions>,
    /// API keys that exist at the start. Each key is valid for every tenant.
    pub credentials: Vec<Credential>,
    /// The life of a token.
    #[serde(with = "seconds")]
    pub token_lifetime: Duration,
    /// Whether a token request is answered with the current token of the key, rather than with a
    /// new one.
    pub shared_tokens: bool,
    /// Whether a revoked token is still handed out until it expires.
    pub stale_tokens: bool,
    /// Whether `expires_in` is a string, as in the specification, rather than a number, as in the
    /// guide.
    pub expires_in_as_string: bool,
    /// The status that answers an expired or revoked token: 407, or 401.
    pub expired_status: u16,
    /// The status that answers a request for an alert that does not exist: 404, or 500.
    pub not_found_status: u16,
    /// The largest page.
    pub max_page_size: usize,
    /// What happens to a request for a larger page.
    pub oversized: Oversized,
    /// What the sort key `ts` means.
    pub ts: Ts,
    /// Whether alerts of the same second come in another order at every request.
    pub unstable_ties: bool,
    /// What happens to a key in `queryString` that is not documented.
    pub unknown_key: UnknownKey,
    /// Whether the key `uniqueId` of `queryString` has an effect.
    pub search_by_id: bool,
    /// Whether an answer with `nextPage` true has `nextPageNo` as well.
    pub next_page_no: bool,
    /// Whether `nextPage` is always true, and a search shows its last page again behind the last
    /// page.
    pub repeats_last_page: bool,
    /// Whether `pageSize` is the number of results that the page shows, rather than its capacity.
    pub page_size_as_shown: bool,
    /// The number of results beyond which pages are refused, as search engines do.
    pub result_window: Option<usize>,
    /// How many requests a tenant may make.
    pub allowance: Allowance,
    /// Whether values of the `X-RateLimit-…` headers come in double quotes.
    pub quoted_headers: bool,
    /// What comes with a 429.
    pub retry_after: RetryAfter,
    /// How far the server's clock is ahead, in seconds. This shows in the `Date` header, in
    /// `X-RateLimit-Reset` and in a `Retry-After` that is a date.
    pub clock_skew: i64,
    /// The offset in which dates of alerts are written, in minutes.
    pub offset_minutes: i32,
    /// Bytes of a member `padding` in every alert, to make documents as large as those of a busy
    /// instance.
    pub padding: usize,
    /// Whether answers are compressed for clients that accept it.
    pub gzip: bool,
    /// The time that every answer of the API takes at least.
    #[serde(with = "seconds")]
    pub latency: Duration,
    /// The pace at which alerts open, change and leave by themselves. If none, they do so only on
    /// request.
    pub life: Option<Pace>,
}

/// One tenant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantOptions {
    /// The tenant's id: `client_1`, `msp_1`, or any other text.
    pub id: String,
    /// The tenant's name. Default: made up from the id.
    #[serde(default)]
    pub name: Option<String>,
    /// The partner whose client the tenant is.
    #[serde(default)]
    pub partner: Option<String>,
    /// The number of open alerts at the start, created over the weeks before.
    #[serde(default)]
    pub alerts: usize,
}

/// An API key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// `client_id` of a token request.
    pub key: String,
    /// `client_secret` of a token request.
    pub secret: String,
}

/// What happens to a request for a page size above the maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Oversized {
    /// The page has the maximum size, and the answer says so.
    Clamp,
    /// 400 "Invalid page size".
    Reject,
    /// The page shows nothing, although the answer counts the results.
    Blank,
    /// The page shows nothing, and the answer counts nothing.
    Empty,
}

/// What `sortName=ts` sorts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ts {
    /// `createdDate`.
    Created,
    /// `updatedTime`: an alert that changes moves to the front.
    Updated,
}

/// What happens to a key that is not documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownKey {
    /// The key is ignored.
    Ignore,
    /// 400.
    Reject,
}

/// What comes with a 429.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetryAfter {
    /// No header: it is not documented.
    None,
    /// A number of seconds.
    Seconds,
    /// A date.
    Date,
}

/// How many requests a tenant may make in a window of time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Allowance {
    /// Whether the allowance is enforced. If not, answers have no headers about it either.
    pub enforced: bool,
    /// Paginated GETs of a client.
    pub client_paginated: u32,
    /// Other requests of a client.
    pub client_other: u32,
    /// Paginated GETs of a partner.
    pub partner_paginated: u32,
    /// Other requests of a partner.
    pub partner_other: u32,
    /// The length of a window. A window begins with the first request after the previous window.
    #[serde(with = "seconds")]
    pub window: Duration,
}

/// How fast life goes on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pace {
    /// The time between two steps of the life of each tenant.
    #[serde(with = "seconds")]
    pub every: Duration,
    /// How many alerts of a tenant are open on average.
    pub open_alerts: usize,
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            tenants: vec![TenantOptions {
                id: DEMO_TENANT.to_owned(),
                ..TenantOptions::default()
            }],
            credentials: vec![Credential {
                key: DEMO_KEY.to_owned(),
                secret: DEMO_SECRET.to_owned(),
            }],
            token_lifetime: Duration::from_secs(7200),
            shared_tokens: true,
            stale_tokens: false,
            expires_in_as_string: false,
            expired_status: 407,
            not_found_status: 404,
            max_page_size: 500,
            oversized: Oversized::Clamp,
            ts: Ts::Created,
            unstable_ties: false,
            unknown_key: UnknownKey::Ignore,
            search_by_id: true,
            next_page_no: true,
            repeats_last_page: false,
            page_size_as_shown: false,
            result_window: None,
            allowance: Allowance::default(),
            quoted_headers: false,
            retry_after: RetryAfter::None,
            clock_skew: 0,
            offset_minutes: 0,
            padding: 0,
            gzip: true,
            latency: Duration::ZERO,
            life: None,
        }
    }
}

impl Options {
    /// Returns the options of `demo`: one tenant with a few dozen open alerts, and something new
    /// every few seconds.
    pub fn demo() -> Self {
        Self {
            tenants: vec![TenantOptions {
                id: DEMO_TENANT.to_owned(),
                name: Some("Example Retail".to_owned()),
                partner: None,
                alerts: 36,
            }],
            life: Some(Pace::default()),
            ..Self::default()
        }
    }
}

// === impl Allowance ===

impl Default for Allowance {
    fn default() -> Self {
        Self {
            enforced: true,
            client_paginated: 50,
            client_other: 500,
            partner_paginated: 150,
            partner_other: 1500,
            window: Duration::from_secs(60),
        }
    }
}

impl Allowance {
    /// Returns an allowance that is not enforced.
    pub fn unlimited() -> Self {
        Self {
            enforced: false,
            ..Self::default()
        }
    }
}

// === impl Pace ===

impl Default for Pace {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(2),
            open_alerts: 40,
        }
    }
}

// === impl Credential ===

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// Durations as numbers of seconds.
pub(super) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(value.as_secs_f64())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(from)?).map_err(D::Error::custom)
    }
}
