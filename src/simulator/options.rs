//! How a simulated OpsRamp shall behave where the documentation leaves it open, and what is in it.
//!
//! Every option can be changed while the server runs, in Rust or with `PATCH /simulator/options`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The tenant that exists by default.
pub const DEMO_TENANT: &str = "client_1";
/// The API key that exists by default.
pub const DEMO_KEY: &str = "demo-key";
/// Its secret.
pub const DEMO_SECRET: &str = "demo-secret";

/// Everything that can be chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What all that is made up is derived from.
    pub seed: u64,
    /// Tenants that exist at the start. Ids that begin with `msp_` are partners.
    pub tenants: Vec<TenantOptions>,
    /// API keys that exist at the start; each is good for every tenant.
    pub credentials: Vec<Credential>,
    /// The life of a token.
    #[serde(with = "seconds")]
    pub token_lifetime: Duration,
    /// A token request is answered with the current token of the key, rather than with a new one.
    pub shared_tokens: bool,
    /// A revoked token is still handed out until its time is over.
    pub stale_tokens: bool,
    /// `expires_in` is a string, as in the specification, rather than a number, as in the guide.
    pub expires_in_as_string: bool,
    /// The status that answers an expired or revoked token: 407, or 401.
    pub expired_status: u16,
    /// The status that answers a request for an alert that does not exist: 404, or 500.
    pub not_found_status: u16,
    /// The largest page.
    pub max_page_size: usize,
    /// What becomes of a larger one.
    pub oversized: Oversized,
    /// What the sort key `ts` means.
    pub ts: Ts,
    /// Alerts of the same second come in another order at every request.
    pub unstable_ties: bool,
    /// What becomes of a key in `queryString` that is not documented.
    pub unknown_key: UnknownKey,
    /// Whether the key `uniqueId` of `queryString` has an effect.
    pub search_by_id: bool,
    /// Whether `nextPageNo` comes along where `nextPage` is true.
    pub next_page_no: bool,
    /// `nextPage` is always true, and behind its last page a search shows that one again.
    pub repeats_last_page: bool,
    /// `pageSize` tells how many results the page shows, rather than how many it could.
    pub page_size_as_shown: bool,
    /// Pages that end beyond this many results are refused, as search engines do.
    pub result_window: Option<usize>,
    /// How many requests a tenant may make.
    pub allowance: Allowance,
    /// Values of the `X-RateLimit-…` headers come in double quotes.
    pub quoted_headers: bool,
    /// What comes with a 429.
    pub retry_after: RetryAfter,
    /// How far the server's clock is ahead, in seconds. It shows in the `Date` header, in
    /// `X-RateLimit-Reset` and in a `Retry-After` that is a date.
    pub clock_skew: i64,
    /// The offset in which dates of alerts are written, in minutes.
    pub offset_minutes: i32,
    /// Bytes of a member `padding` in every alert, to make documents as large as those of a busy
    /// instance.
    pub padding: usize,
    /// Answers are compressed for clients that accept it.
    pub gzip: bool,
    /// Every answer of the API takes at least this long.
    #[serde(with = "seconds")]
    pub latency: Duration,
    /// Alerts open, change and leave by themselves; none: only when told.
    pub life: Option<Pace>,
}

/// One tenant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantOptions {
    /// `client_1`, `msp_1`, or any other text.
    pub id: String,
    /// What people call it; default: made up from the id.
    #[serde(default)]
    pub name: Option<String>,
    /// The partner that it is a client of.
    #[serde(default)]
    pub partner: Option<String>,
    /// Open alerts at the start, created over the weeks before.
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

/// What becomes of a page size above the maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Oversized {
    /// The page has the maximum size, and the answer says so.
    Clamp,
    /// 400 "Invalid page size".
    Reject,
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

/// What becomes of a key that is not documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownKey {
    /// As if it were not there.
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
    /// Whether it is enforced; where not, no headers come either.
    pub enforced: bool,
    /// Paginated GETs of a client.
    pub client_paginated: u32,
    /// Other requests of a client.
    pub client_other: u32,
    /// Paginated GETs of a partner.
    pub partner_paginated: u32,
    /// Other requests of a partner.
    pub partner_other: u32,
    /// It begins with the first request after the one before.
    #[serde(with = "seconds")]
    pub window: Duration,
}

/// How fast life goes on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pace {
    /// Something happens to every tenant about this often.
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
    /// What `demo` shows: one tenant with a few dozen open alerts, and something new every few
    /// seconds.
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
    /// As many requests as anybody likes.
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
