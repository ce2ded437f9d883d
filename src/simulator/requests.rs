//! How many requests the simulator got, for what, and how it answered.
//!
//! The API limits requests, so an exporter must be sparing with them, and tests and benchmarks
//! assert on these numbers. Requests to the control API do not count.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The number of requests that are remembered one by one.
const REMEMBERED: usize = 100_000;

/// The parts of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Endpoint {
    /// Both token endpoints.
    Token,
    /// The alert search.
    Search,
    /// One alert.
    Alert,
    /// The clients of a partner.
    Clients,
    /// All requests that write.
    Write,
}

/// One request, answered or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Request {
    /// When it came.
    pub at: Timestamp,
    /// The part of the API that was asked.
    pub endpoint: Endpoint,
    /// The tenant in the request's path.
    pub tenant: Option<String>,
    /// `pageNo` of a search.
    pub page: Option<usize>,
    /// The status of the answer; 0 if there was no answer.
    pub status: u16,
}

/// Counts since the start, or since they were reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// All requests.
    pub total: u64,
    /// Requests by endpoint.
    pub by_endpoint: BTreeMap<Endpoint, u64>,
    /// Requests by the status of the answer; 0 if there was no answer.
    pub by_status: BTreeMap<u16, u64>,
    /// Paginated searches for alerts by tenant, whatever the answer.
    pub searches_by_tenant: BTreeMap<String, u64>,
    /// All requests with a tenant in the path, by tenant.
    pub by_tenant: BTreeMap<String, u64>,
    /// The number of requests that are being answered at this moment.
    pub in_flight: u64,
    /// The largest number of requests that were being answered at the same time.
    pub max_in_flight: u64,
    /// The number of connections that were accepted.
    pub connections: u64,
    /// The last requests, oldest first.
    #[serde(skip)]
    pub log: VecDeque<Request>,
}

// === impl Requests ===

impl Requests {
    pub(super) fn begin(&mut self) {
        self.in_flight += 1;
        self.max_in_flight = self.max_in_flight.max(self.in_flight);
    }

    /// Records that a request is over. Its status is 0 if no answer was sent or nobody waited for
    /// one.
    pub(super) fn end(&mut self, request: Request) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.total += 1;
        *self.by_endpoint.entry(request.endpoint).or_default() += 1;
        *self.by_status.entry(request.status).or_default() += 1;
        if let Some(tenant) = &request.tenant {
            *self.by_tenant.entry(tenant.clone()).or_default() += 1;
            if request.endpoint == Endpoint::Search {
                *self.searches_by_tenant.entry(tenant.clone()).or_default() += 1;
            }
        }
        if self.log.len() == REMEMBERED {
            self.log.pop_front();
        }
        self.log.push_back(request);
    }

    /// Sets all counts to zero, except for requests that are being answered.
    pub(super) fn reset(&mut self) {
        *self = Self {
            in_flight: self.in_flight,
            max_in_flight: self.in_flight,
            ..Self::default()
        };
    }

    /// Returns how many requests an endpoint got.
    pub fn count(&self, endpoint: Endpoint) -> u64 {
        self.by_endpoint.get(&endpoint).copied().unwrap_or(0)
    }

    /// Returns how many pages of searches were requested for a tenant.
    pub fn searches(&self, tenant: &str) -> u64 {
        self.searches_by_tenant.get(tenant).copied().unwrap_or(0)
    }

    /// Returns how many answers had a status.
    pub fn with_status(&self, status: u16) -> u64 {
        self.by_status.get(&status).copied().unwrap_or(0)
    }
}
