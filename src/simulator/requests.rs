//! How often the simulator was asked, for what, and how it answered.
//!
//! Requests are what the API counts and what an exporter must be sparing with, so tests and
//! benchmarks assert on these numbers. The control API does not count itself.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::record::as_text;

/// Requests that are remembered one by one.
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
    /// Everything that writes.
    Write,
}

/// One request, answered or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Request {
    /// When it came.
    #[serde(serialize_with = "as_text")]
    pub at: Timestamp,
    /// What for.
    pub endpoint: Endpoint,
    /// The tenant in its path.
    pub tenant: Option<String>,
    /// `pageNo` of a search.
    pub page: Option<usize>,
    /// The status that it was answered with; 0 where it was left without an answer.
    pub status: u16,
}

/// Counts since the start, or since they were reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// All of them.
    pub total: u64,
    /// By endpoint.
    pub by_endpoint: BTreeMap<Endpoint, u64>,
    /// By status; 0 where there was no answer.
    pub by_status: BTreeMap<u16, u64>,
    /// By tenant: paginated searches for alerts, whatever the answer.
    pub searches_by_tenant: BTreeMap<String, u64>,
    /// By tenant: all requests with the tenant in the path.
    pub by_tenant: BTreeMap<String, u64>,
    /// Being answered at this moment.
    pub in_flight: u64,
    /// The most that were being answered at the same time.
    pub max_in_flight: u64,
    /// Connections that were accepted.
    pub connections: u64,
    /// The last ones, oldest first.
    #[serde(skip)]
    pub log: VecDeque<Request>,
}

// === impl Requests ===

impl Requests {
    pub(super) fn begin(&mut self) {
        self.in_flight += 1;
        self.max_in_flight = self.max_in_flight.max(self.in_flight);
    }

    /// A request that began is over. Its status is 0 where no answer was sent or nobody waited for one.
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

    /// Back to zero, except for what is going on.
    pub(super) fn reset(&mut self) {
        *self = Self {
            in_flight: self.in_flight,
            max_in_flight: self.in_flight,
            ..Self::default()
        };
    }

    /// How often an endpoint was asked.
    pub fn of(&self, endpoint: Endpoint) -> u64 {
        self.by_endpoint.get(&endpoint).copied().unwrap_or(0)
    }

    /// How many pages of searches a tenant was asked for.
    pub fn searches(&self, tenant: &str) -> u64 {
        self.searches_by_tenant.get(tenant).copied().unwrap_or(0)
    }

    /// How often the answer had a status.
    pub fn with_status(&self, status: u16) -> u64 {
        self.by_status.get(&status).copied().unwrap_or(0)
    }
}
