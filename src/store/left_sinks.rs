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

/// Says that events wait for a sink that has left the configuration, and what brings them to somebody.
pub(super) fn tell_left(sink: &str, events: u64, kept_for: Duration) {
    if events > 0 {
        tracing::warn!(
            sink,
            events,
            kept_for_seconds = kept_for.as_secs(),
            "a sink with events that wait for it has left the configuration; a sink is known by its name, \
             and without one by its type: a sink that is named so again within ten minutes gets them, \
             whatever its type is then, and after that they are given up"
        );
    }
}

/// Says that they are given up.
pub(super) fn tell_given_up(sink: &str, events: u64, reason: Reason) {
    if events == 0 {
        return;
    }
    match reason {
        Reason::Time => tracing::warn!(
            sink,
            events,
            "what waited for a sink that has left the configuration is given up: nobody has named a sink \
             so again in time"
        ),
        Reason::Room => tracing::warn!(
            sink,
            events,
            "what waited for a sink that has left the configuration is given up at once: it left no room \
             for new events"
        ),
    }
}
