//! What answers bring while others are under way: an answer counts as of when its request was sent.

use std::collections::HashSet;

use xxhash_rust::xxh3::xxh3_64;

use super::Purpose;

/// The requests under way, of a poll and of the background: what has overtaken each.
#[derive(Debug, Default)]
pub(super) struct Requests {
    poll: Option<Overtaken>,
    background: Option<Overtaken>,
}

/// What was learned from others' answers since a request was sent: of these alerts its own answer may
/// tell what is over.
#[derive(Debug, Default)]
pub(super) struct Overtaken {
    /// Hashes of the ids of alerts that opened, changed or left.
    ids: HashSet<u64>,
    /// Whether there was another answer.
    pub(super) answered: bool,
}

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

    /// Ends a request. Brings what has overtaken it, and what will have overtaken the other one.
    pub(super) fn end(&mut self, purpose: &Purpose) -> (Overtaken, Option<&mut Overtaken>) {
        let (ended, other) = match purpose {
            Purpose::Poll => (&mut self.poll, &mut self.background),
            Purpose::FullRead | Purpose::Confirm(_) => (&mut self.background, &mut self.poll),
        };
        (ended.take().unwrap_or_default(), other.as_mut())
    }

    /// Notes that something was learned of an alert.
    pub(super) fn note(&mut self, id: &str) {
        for overtaken in [&mut self.poll, &mut self.background].into_iter().flatten() {
            overtaken.note(id);
        }
    }
}

// === impl Overtaken ===

impl Overtaken {
    pub(super) fn note(&mut self, id: &str) {
        self.ids.insert(xxh3_64(id.as_bytes()));
    }

    pub(super) fn has(&self, id: &str) -> bool {
        !self.ids.is_empty() && self.ids.contains(&xxh3_64(id.as_bytes()))
    }
}
