//! An alert as the simulator keeps it: some fifty bytes, however long its texts are.
//!
//! What a person reads in an alert (its subject, host, metric, …) is a function of the simulator's
//! seed and the alert's slot, see `scenery`. Only what *happened* to the alert is stored, and what
//! a test chose. This module does not know how an alert is written as JSON.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

/// The number of the first alert. It is far from 0, as in an instance that is not new.
const FIRST_ID: u64 = 5_000_001;

/// Identifies an alert. The API shows its number as `uniqueId`, unless [`Spec::unique_id`] chose
/// another id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AlertId(pub(super) u32);

/// A text that is not one of the names of an enumeration.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is none of {1:?}")]
pub struct UnknownName(String, &'static [&'static str]);

/// Declares an enumeration together with the names that the API gives its members.
macro_rules! named {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $member:ident = $text:literal),+ $(,)? }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$inner])* $member),+ }

        impl $name {
            /// Every member, in the order of declaration.
            pub const ALL: &[Self] = &[$(Self::$member),+];

            /// The name that the API uses.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$member => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $name {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, UnknownName> {
                Self::ALL
                    .iter()
                    .copied()
                    .find(|member| member.name().eq_ignore_ascii_case(text))
                    .ok_or_else(|| UnknownName(text.to_owned(), &[$($text),+]))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

named! {
    /// How bad an alert is: `currentState`.
    State {
        /// An outage, or close to one.
        Critical = "Critical",
        /// Worth a look.
        Warning = "Warning",
        /// Worth knowing.
        Info = "Info",
        /// Healed.
        Ok = "Ok",
    }
}

named! {
    /// What was done about an alert: `status`. Only `New` alerts are open.
    Status {
        /// Nothing: the alert is open.
        New = "New",
        /// Somebody has taken notice.
        Acknowledged = "Acknowledged",
        /// There is an incident for it.
        Ticketed = "Ticketed",
        /// Nobody wants to see it for a while.
        Suppressed = "Suppressed",
        /// It is over.
        Closed = "Closed",
        /// It became part of an inference.
        Correlated = "Correlated",
        /// Nobody wants to see it at all.
        Ignored = "Ignored",
        /// It fell victim to the retention time.
        Purged = "Purged",
    }
}

named! {
    /// `priority`.
    Priority {
        /// Unset, which is what most alerts of a new instance are.
        NotSet = "N/A",
        /// The most urgent.
        P0 = "P0",
        /// Second.
        P1 = "P1",
        /// Third.
        P2 = "P2",
        /// Fourth.
        P3 = "P3",
        /// Fifth.
        P4 = "P4",
        /// The least urgent.
        P5 = "P5",
    }
}

named! {
    /// The kind of an alert: `eventType`.
    EventType {
        /// The alert of a monitor.
        Alert = "ALERT",
        /// The root cause of other alerts.
        Rca = "RCA",
        /// A group of alerts that belong together. Samples also spell it `INFERENCE`.
        Inference = "Inference",
    }
}

named! {
    /// What can be done to an alert. Names are those of the control API, in kebab-case.
    Action {
        /// New → Acknowledged.
        Acknowledge = "acknowledge",
        /// Acknowledged → New.
        Unacknowledge = "unacknowledge",
        /// → Ticketed, with an `incidentId`.
        Ticket = "ticket",
        /// → Suppressed.
        Suppress = "suppress",
        /// Suppressed → New.
        Unsuppress = "unsuppress",
        /// → Closed.
        Close = "close",
        /// → Ignored.
        Ignore = "ignore",
        /// → Correlated.
        Correlate = "correlate",
        /// → Purged.
        Purge = "purge",
        /// Any status → New.
        Reopen = "reopen",
        /// The state becomes Ok; the status stays.
        Heal = "heal",
        /// The alert was seen once more: `repeatCount` grows.
        Bump = "bump",
        /// The alert is gone: not even its own page is found any more.
        Remove = "remove",
    }
}

/// One alert. Its texts follow from its slot, see `Scene`.
#[derive(Clone, Debug)]
pub(super) struct Alert {
    pub(super) slot: u32,
    /// The tenant that it belongs to, by position in the world.
    pub(super) tenant: u32,
    /// Seconds since the epoch.
    pub(super) created: i64,
    /// Seconds since the epoch.
    pub(super) updated: i64,
    pub(super) repeats: u32,
    pub(super) state: State,
    pub(super) old_state: State,
    pub(super) status: Status,
    pub(super) priority: Priority,
    pub(super) event_type: EventType,
    pub(super) removed: bool,
    /// What only some alerts have. Most alerts of a large world have `None`.
    pub(super) extra: Option<Box<Extra>>,
}

/// What only some alerts have.
#[derive(Clone, Debug, Default)]
pub(super) struct Extra {
    pub(super) spec: Spec,
    pub(super) incident: Option<String>,
    /// The statuses that somebody gave the alert, with the time in seconds since the epoch.
    pub(super) history: Vec<(Status, i64)>,
}

/// What a new alert looks like. What is left out is made up.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spec {
    /// `uniqueId`, if it must be a certain one. It must be unique in the whole world.
    pub unique_id: Option<String>,
    /// `currentState`.
    pub state: Option<State>,
    /// `priority`.
    pub priority: Option<Priority>,
    /// `eventType`.
    pub event_type: Option<EventType>,
    /// When the alert was created. Default: now. Its last update is now in any case.
    pub created: Option<Timestamp>,
    /// `subject`.
    pub subject: Option<String>,
    /// `description`.
    pub description: Option<String>,
    /// `app`, the source.
    pub app: Option<String>,
    /// `metric` and `serviceName`.
    pub metric: Option<String>,
    /// `component`.
    pub component: Option<String>,
    /// `problemArea`.
    pub problem_area: Option<String>,
    /// `alertType`.
    pub alert_type: Option<String>,
    /// The resource's name.
    pub resource_name: Option<String>,
    /// The resource's type.
    pub resource_type: Option<String>,
    /// Members of any type that replace or join those of the rendered alert, for answers that no
    /// real server should give.
    pub members: serde_json::Map<String, serde_json::Value>,
}

// === impl AlertId ===

impl AlertId {
    /// Returns the number that the API shows.
    pub fn number(self) -> u64 {
        FIRST_ID + u64::from(self.0)
    }

    pub(super) fn from_number(number: u64) -> Option<Self> {
        let slot = number.checked_sub(FIRST_ID)?;
        u32::try_from(slot).ok().map(Self)
    }
}

impl fmt::Display for AlertId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

impl Serialize for AlertId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

// === impl Alert ===

impl Alert {
    pub(super) const fn id(&self) -> AlertId {
        AlertId(self.slot)
    }

    pub(super) fn is_open(&self) -> bool {
        self.status == Status::New && !self.removed
    }

    pub(super) fn unique_id(&self) -> String {
        match self.spec().and_then(|spec| spec.unique_id.as_ref()) {
            Some(text) => text.clone(),
            None => self.id().to_string(),
        }
    }

    pub(super) fn spec(&self) -> Option<&Spec> {
        self.extra.as_deref().map(|extra| &extra.spec)
    }

    pub(super) fn incident(&self) -> Option<&str> {
        self.extra.as_deref()?.incident.as_deref()
    }

    /// Returns when the alert got the status last, in seconds since the epoch.
    pub(super) fn reached(&self, status: Status) -> Option<i64> {
        let history = &self.extra.as_deref()?.history;
        let (_, at) = history.iter().rev().find(|(which, _)| *which == status)?;
        Some(*at)
    }
}

// === impl Spec ===

impl Spec {
    /// Whether the spec chooses anything that an [`Alert`] has no field for.
    pub(super) fn is_special(&self) -> bool {
        let texts = [
            &self.unique_id,
            &self.subject,
            &self.description,
            &self.app,
            &self.metric,
            &self.component,
            &self.problem_area,
            &self.alert_type,
            &self.resource_name,
            &self.resource_type,
        ];
        texts.iter().any(|text| text.is_some()) || !self.members.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_stays_small() {
        assert!(size_of::<Alert>() <= 48, "{} bytes", size_of::<Alert>());
    }

    #[test]
    fn names_are_read_in_any_case() {
        assert_eq!("CRITICAL".parse::<State>().unwrap(), State::Critical);
        assert_eq!("n/a".parse::<Priority>().unwrap(), Priority::NotSet);
        let error = "broken".parse::<Status>().unwrap_err().to_string();
        assert!(error.contains("Acknowledged"), "{error}");
    }

    #[test]
    fn a_number_below_the_first_is_no_alert() {
        assert_eq!(AlertId::from_number(12), None);
        let id = AlertId(3);
        assert_eq!(AlertId::from_number(id.number()), Some(id));
    }
}
