//! What happened to the alerts, in order: the truth that an exporter's lines are compared with.
//!
//! Append-only. A storm of a million alerts is one entry, so that the record of a large world
//! stays small.

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::alert::{State, Status};

/// Something that happened to one alert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Happening {
    /// When.
    #[serde(serialize_with = "as_text")]
    pub at: Timestamp,
    /// The client that the alert belongs to.
    pub tenant: String,
    /// `uniqueId`.
    pub alert_id: String,
    /// What.
    pub what: What,
    /// `currentState` afterwards.
    pub state: State,
    /// `status` afterwards.
    pub status: Status,
}

/// What can happen to an alert, seen by somebody who asks for the open ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// It is open, and was not before: new, or open again.
    Opened,
    /// Something about it is different; it is open, or not, as before.
    Changed,
    /// It was open and is not any more.
    Left,
}

/// An entry as it is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) at: Timestamp,
    /// The first slot of a run of alerts that it happened to.
    pub(super) first: u32,
    pub(super) count: u32,
    pub(super) what: What,
    /// None where each alert of the run has the state that it is born with.
    pub(super) state: Option<State>,
    pub(super) status: Status,
}

/// All entries.
#[derive(Debug, Default)]
pub(super) struct Record {
    entries: Vec<Entry>,
}

/// RFC 3339.
pub(super) fn as_text<S: Serializer>(time: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(time)
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
