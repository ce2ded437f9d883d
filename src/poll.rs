//! When to ask and how far to read.

use std::{sync::Arc, time::Duration};

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

pub(crate) use full_read::{Facts, WITHOUT_NEWS};
pub use pollers::{Account, Happening, LookUp, Plan, Pollers, Prepared};
pub use reading::sightings;

/// One search, as it is run for each of its tenants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchOptions {
    /// Its name, label `search`.
    pub name: Arc<str>,
    /// The `queryString`, such as `actions:OPEN`, not encoded.
    pub query: String,
    /// Time between two polls.
    pub interval: Duration,
    /// The tenants' ids it runs for; `None`: every tenant.
    pub tenants: Option<Vec<String>>,
    /// Alerts to ask for on a page; the server may give fewer.
    pub page_size: u32,
    /// How often a result too large to read at every poll is read whole.
    pub full_read_interval: Duration,
    /// Gauges of a search that has not answered for so long are withheld.
    pub stale_after: Duration,
    /// Labels of `opsramp_open_alerts`.
    pub group_by: Vec<GroupLabel>,
    /// Beyond so many groups, alerts are counted under `other`.
    pub max_groups: usize,
}

/// What becomes of alerts that are open when there is no state yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtFirstStart {
    /// They are logged as opened.
    Emit,
    /// They are taken note of, without a line.
    Skip,
}

// === impl SearchOptions ===

impl SearchOptions {
    /// Whether it runs for this tenant.
    #[must_use]
    pub fn is_for(&self, tenant: &str) -> bool {
        let named = |ids: &Vec<String>| ids.iter().any(|id| id == tenant);
        self.tenants.as_ref().is_none_or(named)
    }
}
