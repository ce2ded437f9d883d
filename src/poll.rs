//! Polling: when to ask the API, how far to read, and which alerts have left.
//!
//! [`engine`] and `full_read` decide and do no I/O. `search` is the task of one search of one
//! tenant. `pollers` runs all of these tasks. `discovery` looks up the clients of partners.

use std::{collections::HashSet, sync::Arc, time::Duration};

pub use crate::track::GroupLabel;

mod bodies;
mod discovery;
pub mod engine;
mod full_read;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod pollers;
mod reading;
mod schedule;
mod search;
#[cfg(test)]
mod testing;

pub(crate) use discovery::{LookedUp, look_up, look_up_partner};
pub(crate) use full_read::{Facts, WITHOUT_NEWS};
pub use pollers::{Account, LookUp, Plan, PollerEvent, Pollers, Prepared};
pub use reading::sightings;

/// One search; it runs for each of its tenants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchOptions {
    /// Name of the search, label `search`.
    pub name: Arc<str>,
    /// The `queryString`, such as `actions:OPEN`, not encoded.
    pub query: String,
    /// Time between two polls.
    pub interval: Duration,
    /// Ids of the tenants that the search runs for; `None`: every tenant.
    pub tenants: Option<Vec<String>>,
    /// Number of alerts to ask for on a page; the server may give fewer.
    pub page_size: u32,
    /// How often a result that is too large to be read at every poll is read whole.
    pub full_read_interval: Duration,
    /// Time without a successful poll after which the gauges of the search are withheld.
    pub stale_after: Duration,
    /// Labels of `opsramp_open_alerts`.
    pub group_by: Vec<GroupLabel>,
    /// Maximum number of groups; alerts of further groups are counted under `other`.
    pub max_groups: usize,
}

/// What becomes of alerts that are open when there is no state yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtFirstStart {
    /// These alerts are logged as opened.
    Emit,
    /// These alerts are recorded without a line.
    Skip,
}

// === impl SearchOptions ===

impl SearchOptions {
    /// Whether the search runs for this tenant.
    #[must_use]
    pub fn is_for(&self, tenant: &str) -> bool {
        let named = |ids: &Vec<String>| ids.iter().any(|id| id == tenant);
        self.tenants.as_ref().is_none_or(named)
    }

    /// Returns those of its `tenants` that are not among the known ones, so that they are named in
    /// vain.
    pub(crate) fn in_vain(&self, known: &HashSet<&str>) -> Vec<&str> {
        let named = self.tenants.iter().flatten().map(String::as_str);
        named.filter(|id| !known.contains(id)).collect()
    }
}
