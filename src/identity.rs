//! The names that metrics, records, the store and the page share.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// One search of one tenant of one account: the unit that is polled, stored and leased.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SearchKey {
    /// The account's name, label `account`.
    pub account: Arc<str>,
    /// The tenant, with its id and its name.
    pub tenant: Tenant,
    /// The search's name, label `search`.
    pub search: Arc<str>,
}

/// A tenant of OpsRamp.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant {
    /// `client_1234`, `msp_1234` or a UUID: opaque, a path segment of the API. The store knows the
    /// tenant by this id, so that after a renaming its alerts are not logged again.
    pub id: Arc<str>,
    /// The name that people use, label `tenant`; the id if no name was given.
    pub name: Arc<str>,
}

/// What happened to an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// The alert appeared in the search's result.
    Opened,
    /// The alert's state or status changed while it stayed in the result.
    Changed,
    /// The alert is no longer in the result.
    Left,
}

// === impl SearchKey ===

impl SearchKey {
    /// The account, the tenant's id and the search, by which the store knows the search. The
    /// tenant's name is not part of it.
    #[must_use]
    pub fn stored_as(&self) -> (&str, &str, &str) {
        (&self.account, &self.tenant.id, &self.search)
    }

    /// The labels `account`, `tenant` and `search`, which identify the search's series.
    #[must_use]
    pub fn labels(&self) -> (&str, &str, &str) {
        (&self.account, &self.tenant.name, &self.search)
    }
}

impl fmt::Display for SearchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.account, self.tenant.name, self.search)
    }
}

// === impl EventKind ===

impl EventKind {
    /// Every kind, in the order of an alert's life.
    pub const ALL: [Self; 3] = [Self::Opened, Self::Changed, Self::Left];

    /// The kind's name in records, labels and the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Changed => "changed",
            Self::Left => "left",
        }
    }
}
