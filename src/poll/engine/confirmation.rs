//! Whether those that a reading has missed are gone: asked by id, beside a witness that is surely there; of
//! those that this says nothing of, their own pages are looked at.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{Engine, Reading};
use crate::{poll::full_read::Facts, track::Sighting};

/// Ids that are asked for in one request.
pub(super) const CONFIRM: usize = 50;
/// Tries to ask with a witness that may itself have just left.
const WITNESSES: u32 = 3;
/// Readings in a row whose questions by id fail, or whose answers lack every witness, before the search is
/// held to be one that cannot be asked so.
const UNANSWERED: u32 = 3;
/// Own pages that are asked for at most after a reading, of those that it leaves in doubt: as many as the
/// API answers in a minute.
pub(super) const DOUBTED: usize = 500;
/// A server that cannot be asked by id is tried again after so long: perhaps it was a passing fault.
pub(super) const CONFIRM_AGAIN: Duration = Duration::from_secs(60 * 60);
/// Full reads in a row that must miss an alert before its own page is looked at, where asking by id
/// does not tell that it is gone.
pub(super) const DOUBT: u32 = 2;
/// Full reads in a row that must miss it where its page shows no change either: the query may be
/// about something that the page does not tell, such as its age.
const CERTAINTY: u32 = 8;

/// Which alerts are asked for by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Those that a full read missed; none, where it is about how the server counts.
    pub suspects: Vec<Box<str>>,
    /// One that was in the result a moment ago: where the answer lacks it, it says nothing.
    pub witness: Box<str>,
}

/// An answer by id that counted more alerts than it showed.
#[derive(Debug)]
pub(super) struct Short {
    /// How many more.
    by: u64,
    /// Those that it was asked for and did not show.
    lacking: Vec<Box<str>>,
}

// === impl Question ===

impl Question {
    /// Whether a page shows nobody else than was asked for. Where it does, the server has not understood the
    /// question, and the answer says nothing.
    pub(super) fn is_answered_by(&self, page: &[Sighting<'_>]) -> bool {
        let is_asked_for =
            |id: &str| *id == *self.witness || self.suspects.iter().any(|suspect| **suspect == *id);
        page.iter().all(|sighting| is_asked_for(sighting.id))
    }
}

// === impl Engine ===

impl Engine {
    /// Takes over what the pages of alerts said that full reads missed: of the `asked`, those that
    /// are `gone`. About the others nothing is known; the next full read asks again.
    ///
    /// `in_vain`: there was no answer about any. Then the next full read asks again about all of them,
    /// so that it does not have to wait for them.
    pub fn adopt_verdicts(&mut self, asked: &[Box<str>], gone: &HashSet<Box<str>>, in_vain: bool) {
        let Reading::Verifying { queue } = &mut self.reading else {
            return;
        };
        queue.retain(|id| !asked.contains(id));
        if queue.is_empty() || in_vain {
            self.reading = Reading::Idle;
        }
        let (gone, there): (Vec<_>, Vec<_>) =
            asked.iter().cloned().partition(|id| gone.contains(id));
        self.set_departing_if_missing(gone);
        if !in_vain && !self.is_sound() {
            // There may be more of them than are asked for at once: next come others.
            for id in there {
                if self.tracker.is_missing(&id) {
                    self.tracker.see(&id);
                }
            }
        }
    }

    /// Whether it is still being asked who has left.
    #[must_use]
    pub fn is_asking_who_left(&self) -> bool {
        matches!(
            self.reading,
            Reading::Confirming { .. } | Reading::Verifying { .. }
        )
    }

    /// The server cannot be asked by id, as this question has shown. It is asked so again after an hour.
    pub fn confirmation_refused(&mut self, question: &Question, now: Instant) {
        if !self.is_asking(question) {
            return;
        }
        self.limits.confirm_again = Some(now + CONFIRM_AGAIN);
        self.limits.unanswered_in_a_row = 0;
        self.do_without_answers();
    }

    /// A question by id was not answered. It may be a passing fault, so the next full read tries again, but not
    /// for ever.
    pub fn confirmation_failed(&mut self, question: &Question, now: Instant) {
        if !self.is_asking(question) {
            return;
        }
        self.limits.unanswered_in_a_row += 1;
        if self.limits.unanswered_in_a_row >= UNANSWERED {
            self.confirmation_refused(question, now);
        } else {
            self.do_without_answers();
        }
    }

    /// Whether this is the question that is being asked: another reading may have begun since it was sent.
    #[must_use]
    pub fn is_asking(&self, question: &Question) -> bool {
        matches!(&self.reading, Reading::Confirming { asked, .. } if **asked == *question)
    }

    fn do_without_answers(&mut self) {
        if let Reading::Confirming {
            queue,
            asked,
            short,
            mut doubted,
            ..
        } = std::mem::replace(&mut self.reading, Reading::Idle)
        {
            let asked = asked.suspects.iter().cloned();
            let lacking = short.into_iter().flat_map(|short| short.lacking);
            self.doubt(asked.chain(lacking).chain(queue).collect(), &mut doubted);
            self.verify(doubted);
        }
    }

    /// Asks for those that a reading has missed.
    pub(super) fn ask_for(&mut self, missing: Vec<Box<str>>, now: Instant) {
        let can_confirm = self.can_confirm(now);
        let (askable, others): (Vec<_>, Vec<_>) = missing
            .into_iter()
            .partition(|id| !can_confirm || can_be_asked_for(id));
        let mut doubted = Vec::new();
        self.doubt(others, &mut doubted);
        self.confirm(askable.into(), doubted, now);
    }

    /// Asks for those in the `queue` by id, and at the end for the pages of the `doubted`.
    pub(super) fn confirm(
        &mut self,
        mut queue: VecDeque<Box<str>>,
        mut doubted: Vec<Box<str>>,
        now: Instant,
    ) {
        // The answer must fit on one page, with the witness.
        let room = usize::try_from(self.page_size.saturating_sub(1))
            .unwrap_or(CONFIRM)
            .min(CONFIRM);
        match &self.witness {
            Some(witness) if !queue.is_empty() && self.can_confirm(now) && room > 0 => {
                let suspects: Vec<_> = queue.drain(..queue.len().min(room)).collect();
                let asked = Arc::new(Question {
                    suspects,
                    witness: witness.clone(),
                });
                self.reading = Reading::Confirming {
                    queue,
                    asked,
                    witnesses: 0,
                    short: None,
                    doubted,
                };
            }
            _ => {
                self.doubt(queue.into(), &mut doubted);
                self.verify(doubted);
            }
        }
    }

    fn can_confirm(&self, now: Instant) -> bool {
        self.witness.is_some() && self.limits.confirm_again.is_none_or(|at| now >= at)
    }

    /// Has those that cannot be asked for by id decided by their own pages: at once where nothing is to be
    /// concluded from how often they are missed.
    fn doubt(&mut self, missing: Vec<Box<str>>, doubted: &mut Vec<Box<str>>) {
        if self.is_sound() {
            self.suspect(missing);
        } else {
            doubted.extend(missing);
        }
    }

    /// Notes that a full read has missed these alerts, and that asking by id did not tell that they are
    /// gone. One that has been missed too often for luck is.
    pub(super) fn suspect(&mut self, missing: Vec<Box<str>>) {
        if !self.is_sound() {
            // It may be where the reading did not come.
            return;
        }
        let mut gone = Vec::new();
        for id in missing {
            if !self.tracker.is_missing(&id) {
                // A poll has seen it since.
                continue;
            }
            let missed = self.suspects.get(&id).map_or(1, |missed| missed + 1);
            // What could not be read may be any of them.
            if missed >= CERTAINTY && self.readings.unreadable() == 0 {
                gone.push(id);
            } else {
                self.suspects.insert(id, missed.min(CERTAINTY));
            }
        }
        self.set_departing(gone);
    }

    /// A full read may miss an alert for the second time by the same bad luck: its own page decides. So
    /// it does about the `doubted`.
    pub(super) fn verify(&mut self, doubted: Vec<Box<str>>) {
        let suspects = self.suspects.iter();
        let missed_again = suspects.filter(|(_, missed)| (DOUBT..CERTAINTY).contains(*missed));
        let mut asked: BTreeSet<Box<str>> = missed_again.map(|(id, _)| id.clone()).collect();
        asked.extend(doubted.into_iter().take(DOUBTED));
        asked.retain(|id| self.tracker.is_missing(id));
        if !asked.is_empty() {
            let queue = asked.into_iter().collect();
            self.reading = Reading::Verifying { queue };
        }
    }

    /// Whether an alert whose own page tells this status has left. After a reading that is not sound, that it
    /// was not seen tells nothing: then another status does only where the result has no other.
    #[must_use]
    pub fn has_left(&self, id: &str, status: &str) -> bool {
        let Some(before) = self.tracker.standing(id) else {
            return false;
        };
        let tells = self.options.has_one_status && !before.status.is_empty();
        (tells || self.is_sound()) && !status.eq_ignore_ascii_case(&before.status)
    }

    /// Whether an answer by id, after a reading that is not sound, shows one as those look that have left.
    pub(super) fn may_have_left(&self, sighting: &Sighting<'_>) -> bool {
        !self.is_sound()
            && !sighting.status.is_empty()
            && self.options.has_one_status
            && self.has_left(sighting.id, sighting.status)
    }

    pub(super) fn adopt_confirmation(
        &mut self,
        question: &Arc<Question>,
        facts: &Facts,
        page: &[Sighting<'_>],
        now: Instant,
    ) {
        let left = page.iter().filter(|sighting| self.may_have_left(sighting));
        let otherwise: Vec<_> = left.map(|sighting| sighting.id.into()).collect();
        let Reading::Confirming {
            queue,
            asked,
            witnesses,
            short,
            doubted,
        } = &mut self.reading
        else {
            return;
        };
        if asked != question {
            return;
        }
        let shown: HashSet<&str> = page.iter().map(|sighting| sighting.id).collect();
        // Some servers name a next page whatever they show.
        let goes_on = facts.next.is_some() && (facts.shown as u64) < facts.total;
        if goes_on || facts.unreadable > 0 || !question.is_answered_by(page) {
            self.confirmation_refused(question, now);
            return;
        }
        if !shown.contains(&*question.witness) {
            // The witness may just have left itself: the next one to ask with is that of the last poll, if it is another.
            *witnesses += 1;
            let witness = self
                .witness
                .clone()
                .filter(|witness| *witness != question.witness);
            match witness {
                Some(witness) if *witnesses < WITNESSES => {
                    let suspects = question.suspects.clone();
                    *asked = Arc::new(Question { suspects, witness });
                }
                _ => self.confirmation_failed(question, now),
            }
            return;
        }
        self.limits.unanswered_in_a_row = 0;
        doubted.extend(otherwise);
        let suspects = question.suspects.iter().cloned();
        let (there, mut gone): (Vec<_>, Vec<_>) = suspects.partition(|id| shown.contains(&**id));
        let surplus = facts.total.saturating_sub(shown.len() as u64);
        let mut kept_back = Vec::new();
        match short.take() {
            None if surplus > 0 && !gone.is_empty() => {
                // Either it counts too many whatever it is asked, or it keeps back some of those that it
                // was asked for: about one that is surely there, only the former counts too many.
                *short = Some(Short {
                    by: surplus,
                    lacking: gone,
                });
                *witnesses = 0;
                *asked = Arc::new(Question {
                    suspects: Vec::new(),
                    witness: question.witness.clone(),
                });
                self.suspect(there);
                return;
            }
            None => {}
            Some(short) if surplus >= short.by => gone = short.lacking,
            Some(short) => kept_back = short.lacking,
        }
        let (queue, mut doubted) = (std::mem::take(queue), std::mem::take(doubted));
        self.reading = Reading::Idle;
        self.set_departing_if_missing(gone);
        doubted.extend_from_slice(&kept_back);
        self.suspect(kept_back);
        // A server that looks at nothing but the ids shows what has left as well.
        self.suspect(there);
        self.confirm(queue, doubted, now);
    }

    /// Like [`Engine::set_departing`], except for those that a poll has seen since the reading: they are back.
    pub(super) fn set_departing_if_missing(&mut self, mut gone: Vec<Box<str>>) {
        gone.retain(|id| self.tracker.is_missing(id));
        self.set_departing(gone);
    }
}

/// Whether an id cannot be mistaken for a part of a query's grammar.
#[must_use]
pub fn can_be_asked_for(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !id.is_empty() && id.bytes().all(is_plain)
}
