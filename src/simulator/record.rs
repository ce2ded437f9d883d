//! What happened to the alerts, in order: the truth that an exporter's lines are compared with.
//!
//! The record is append-only. A storm of a million alerts is one entry, so that the record of a
//! large world stays small.

use jiff::Timestamp;
use serde::Serialize;

use super::alert::{State, Status};

/// Something that happened to one alert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AlertChange {
    /// When it happened.
    pub at: Timestamp,
    /// The client that the alert belongs to.
    pub tenant: String,
    /// `uniqueId`.
    pub alert_id: String,
    /// What happened.
    pub what: ChangeKind,
    /// `currentState` afterwards.
    pub state: State,
    /// `status` afterwards.
    pub status: Status,
}

/// What can happen to an alert, as seen by a client that asks for the open alerts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// The alert is open and was not before: it is new, or open again.
    Opened,
    /// Something about the alert has changed, but not whether it is open.
    Changed,
    /// The alert was open and no longer is.
    Left,
}

/// An entry of the record: the same thing happened to a run of alerts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) at: Timestamp,
    /// The slot of the first alert of the run.
    pub(super) first: u32,
    pub(super) count: u32,
    pub(super) what: ChangeKind,
    /// The state afterwards. `None` if each alert of the run has the state that it was born with.
    pub(super) state: Option<State>,
    pub(super) status: Status,
}

/// All entries.
#[derive(Debug, Default)]
pub(super) struct Record {
    entries: Vec<Entry>,
}

// === impl Record ===

impl Record {
    pub(super) fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    pub(super) const fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn since(&self, position: usize) -> &[Entry] {
        self.entries.get(position..).unwrap_or_default()
    }
}
