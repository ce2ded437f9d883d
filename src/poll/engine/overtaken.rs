//! Which answers have been overtaken by others: an answer counts as of the time its request was
//! sent.

use std::collections::HashSet;

use xxhash_rust::xxh3::xxh3_64;

use super::Purpose;

/// The requests under way, of a poll and of the background, with what has overtaken each of them.
#[derive(Debug, Default)]
pub(super) struct Requests {
    poll: Option<Overtaken>,
    background: Option<Overtaken>,
}

/// What other answers have told since a request was sent. About these alerts, the request's own
/// answer may be out of date.
#[derive(Debug, Default)]
pub(super) struct Overtaken {
    /// The alerts that opened, changed or left.
    ids: Ids,
    /// Whether another request was answered.
    pub(super) answered: bool,
}

/// Ids of alerts, by their hashes.
#[derive(Debug, Default)]
pub(super) struct Ids(HashSet<u64>);

// === impl Requests ===

impl Requests {
    pub(super) fn begin(&mut self, purpose: &Purpose) {
        let begun = Some(Overtaken::default());
        match purpose {
            Purpose::Poll => self.poll = begun,
            Purpose::FullRead | Purpose::Confirm(_) => self.background = begun,
        }
    }

    pub(super) fn overtaken(&self, purpose: &Purpose) -> Option<&Overtaken> {
        match purpose {
            Purpose::Poll => self.poll.as_ref(),
            Purpose::FullRead | Purpose::Confirm(_) => self.background.as_ref(),
        }
    }

    /// Ends a request. Returns what has overtaken it, and the record of the other request under
    /// way, so that this answer can be added to it.
    pub(super) fn end(&mut self, purpose: &Purpose) -> (Overtaken, Option<&mut Overtaken>) {
        let (ended, other) = match purpose {
            Purpose::Poll => (&mut self.poll, &mut self.background),
            Purpose::FullRead | Purpose::Confirm(_) => (&mut self.background, &mut self.poll),
        };
        (ended.take().unwrap_or_default(), other.as_mut())
    }

    /// Notes that an answer told something new about an alert.
    pub(super) fn note(&mut self, id: &str) {
        for overtaken in [&mut self.poll, &mut self.background].into_iter().flatten() {
            overtaken.note(id);
        }
    }
}

// === impl Overtaken ===

impl Overtaken {
    pub(super) fn note(&mut self, id: &str) {
        self.ids.insert(id);
    }

    pub(super) fn has(&self, id: &str) -> bool {
        self.ids.has(id)
    }
}

// === impl Ids ===

impl Ids {
    pub(super) fn insert(&mut self, id: &str) {
        self.0.insert(xxh3_64(id.as_bytes()));
    }

    pub(super) fn has(&self, id: &str) -> bool {
        !self.0.is_empty() && self.0.contains(&xxh3_64(id.as_bytes()))
    }

    /// Removes an id. Returns whether it was there.
    pub(super) fn remove(&mut self, id: &str) -> bool {
        !self.0.is_empty() && self.0.remove(&xxh3_64(id.as_bytes()))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
