//! Sinks that have left the configuration: each is kept for a while with its part of the journal, for
//! one that was renamed by mistake is named again, and one that was taken out is gone for good.

use std::time::Duration;

/// How long a sink that nobody names is kept.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(600);

/// Why a sink is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Nobody has named it in time.
    Time,
    /// What waits for it leaves no room for what is new.
    Room,
}

/// How many events wait for a sink that has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    Exactly(u64),
    /// When it has left, or when they were journalled, is not known, so that some of them may have been
    /// journalled since, for others.
    AtMost(u64),
}

/// Says that events wait for a sink that has left the configuration, and what brings them to somebody.
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

/// Says that they are given up.
pub(super) fn tell_given_up(sink: &str, events: impl Into<Waiting>, reason: Reason) {
    let events = events.into();
    if events.is_nothing() {
        return;
    }
    match reason {
        Reason::Time => tracing::warn!(
            sink,
            events = events.exactly(),
            events_at_most = events.at_most(),
            "what waited for a sink that has left the configuration{} is given up: nobody has named a sink \
             so again in time",
            events.doubt(),
        ),
        Reason::Room => tracing::warn!(
            sink,
            events = events.exactly(),
            events_at_most = events.at_most(),
            "what waited for a sink that has left the configuration{} is given up at once: it left no room \
             for new events",
            events.doubt(),
        ),
    }
}

// === impl Waiting ===

impl Waiting {
    fn is_nothing(self) -> bool {
        matches!(self, Self::Exactly(0) | Self::AtMost(0))
    }

    /// This one, or what was told before, where that was more.
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

    /// What the message says of the number.
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

/// What is printed from here on. Where a thread that prints nothing came first, nothing would be.
#[cfg(test)]
pub(super) fn captured() -> (
    std::sync::Arc<parking_lot::Mutex<Vec<String>>>,
    tracing::subscriber::DefaultGuard,
) {
    tell_left("any", 1, Duration::ZERO);
    tell_given_up("any", 1, Reason::Time);
    tell_given_up("any", 1, Reason::Room);
    crate::logging::captured()
}
