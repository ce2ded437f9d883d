//! Sinks that have left the configuration. Each is kept for a while with its part of the journal,
//! because a sink that was renamed by mistake is soon named again. It is not kept longer, because
//! a sink that was taken out never comes back.

use std::time::Duration;

/// How long a sink that nobody names is kept.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(600);

/// Why a sink is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Nobody has named it in time.
    Time,
    /// The events that wait for it leave no room for new ones.
    Room,
}

/// How many events wait for a sink that has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    Exactly(u64),
    /// An upper bound, because it is unknown when the sink left or when the events were
    /// journalled. Some of them may have been journalled after it left, for other sinks.
    AtMost(u64),
}

/// Warns that events wait for a sink that has left the configuration, and says how to get them
/// delivered.
pub(super) fn tell_left(sink: &str, events: impl Into<Waiting>, kept_for: Duration) {
    let events = events.into();
    if events.is_nothing() {
        return;
    }
    tracing::warn!(
        sink,
        events = events.exactly(),
        events_at_most = events.at_most(),
        kept_for_seconds = kept_for.as_secs(),
        "a sink with events that wait for it{} has left the configuration; a sink is known by its name, \
         and without one by its type: a sink that is named so again within ten minutes gets them, \
         whatever its type is then, and after that they are given up",
        events.doubt(),
    );
}

/// Warns that these events are given up.
pub(super) fn tell_given_up(sink: &str, events: impl Into<Waiting>, reason: Reason) {
    let events = events.into();
    if events.is_nothing() {
        return;
    }
    let why = match reason {
        Reason::Time => ": nobody has named a sink so again in time",
        Reason::Room => " at once: it left no room for new events",
    };
    tracing::warn!(
        sink,
        events = events.exactly(),
        events_at_most = events.at_most(),
        "what waited for a sink that has left the configuration{} is given up{why}",
        events.doubt(),
    );
}

// === impl Waiting ===

impl Waiting {
    fn is_nothing(self) -> bool {
        matches!(self, Self::Exactly(0) | Self::AtMost(0))
    }

    /// Returns this number, or the one that was told before if it is larger.
    pub(super) fn or_more(self, told: Option<Self>) -> Self {
        let events = |waiting: &Self| match waiting {
            Self::Exactly(events) | Self::AtMost(events) => *events,
        };
        told.filter(|told| events(told) > events(&self))
            .unwrap_or(self)
    }

    fn exactly(self) -> Option<u64> {
        match self {
            Self::Exactly(events) => Some(events),
            Self::AtMost(_) => None,
        }
    }

    fn at_most(self) -> Option<u64> {
        match self {
            Self::Exactly(_) => None,
            Self::AtMost(events) => Some(events),
        }
    }

    /// The part of the message that says how exact the number is.
    fn doubt(self) -> &'static str {
        match self {
            Self::Exactly(_) => "",
            Self::AtMost(_) => {
                " (up to so many, those included that were journalled since it left)"
            }
        }
    }
}

impl From<u64> for Waiting {
    fn from(events: u64) -> Self {
        Self::Exactly(events)
    }
}

/// Captures the messages of this thread. Each kind of message is sent once first, because
/// otherwise none would be printed if a thread that prints nothing had sent it first.
#[cfg(test)]
pub(super) fn captured() -> (
    std::sync::Arc<parking_lot::Mutex<Vec<String>>>,
    tracing::subscriber::DefaultGuard,
) {
    tell_left("any", 1, Duration::ZERO);
    tell_given_up("any", 1, Reason::Time);
    crate::logging::captured()
}
