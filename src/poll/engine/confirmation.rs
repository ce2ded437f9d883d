//! Finds out whether the alerts that a reading has missed are gone. They are asked for by id,
//! beside a witness that is surely there. If this tells nothing about an alert, its own page is
//! looked at.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{Background, Engine};
use crate::{poll::full_read::Facts, track::Sighting};

/// Maximum number of ids that are asked for in one request.
pub(super) const CONFIRM: usize = 50;
/// Maximum number of witnesses to ask with, because a witness may just have left itself.
pub(super) const WITNESSES: u32 = 3;
/// Number of readings in a row whose questions by id fail, or whose answers lack every witness,
/// before the server counts as one that cannot be asked by id.
const UNANSWERED: u32 = 3;
/// Maximum number of own pages that are asked for after a reading, for the alerts that it leaves
/// in doubt: as many as the API answers in a minute.
pub(super) const DOUBTED: usize = 500;
/// Time after which a server that cannot be asked by id is tried again: the fault may have passed.
pub(super) const CONFIRM_AGAIN: Duration = Duration::from_secs(60 * 60);
/// Number of full reads in a row that must miss an alert before its own page is looked at, if
/// asking by id does not tell that it is gone.
pub(super) const DOUBT: u32 = 2;
/// Number of full reads in a row that must miss an alert before it counts as gone although its
/// page shows no change: the query may be about something that the page does not tell, such as its
/// age.
pub(super) const CERTAINTY: u32 = 8;

/// A question by id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The alerts that a full read missed; none if the question is about how the server counts.
    pub suspects: Vec<Box<str>>,
    /// An alert that was in the result a moment ago. An answer that lacks it tells nothing.
    pub witness: Box<str>,
}

/// An answer by id that counted more alerts than it showed.
#[derive(Debug)]
pub(super) struct Short {
    /// How many more alerts it counted.
    by: u64,
    /// The suspects that it did not show.
    lacking: Vec<Box<str>>,
}

// === impl Question ===

impl Question {
    /// Whether a page shows only alerts that were asked for. If it shows others, the server has
    /// not understood the question, and the answer tells nothing.
    pub(super) fn is_answered_by(&self, page: &[Sighting<'_>]) -> bool {
        let is_asked_for =
            |id: &str| *id == *self.witness || self.suspects.iter().any(|suspect| **suspect == *id);
        page.iter().all(|sighting| is_asked_for(sighting.id))
    }
}

// === impl Engine ===

impl Engine {
    /// Takes over what the own pages of alerts said that full reads missed. Of the `asked`, those
    /// in `gone` have left. About the others nothing is known; the next full read asks again.
    ///
    /// `in_vain`: no page was answered. Then no more pages are asked for, so that the next full
    /// read does not have to wait for them; it asks again about all alerts that it misses.
    pub fn adopt_verdicts(&mut self, asked: &[Box<str>], gone: &HashSet<Box<str>>, in_vain: bool) {
        let Background::Verifying { queue } = &mut self.background else {
            return;
        };
        queue.retain(|id| !asked.contains(id));
        if queue.is_empty() || in_vain {
            self.background = Background::Idle;
        }
        let (gone, there): (Vec<_>, Vec<_>) =
            asked.iter().cloned().partition(|id| gone.contains(id));
        self.set_departing_if_missing(gone);
        if !in_vain && !self.is_sound() {
            // There may be more unseen alerts than are asked for at once. Those asked for now
            // count as seen, so that others come first next time.
            for id in there {
                if self.tracker.is_missing(&id) {
                    self.tracker.mark_seen(&id);
                }
            }
        }
    }

    /// Whether the background is still asking which alerts have left.
    #[must_use]
    pub fn is_asking_who_left(&self) -> bool {
        matches!(
            self.background,
            Background::Confirming { .. } | Background::Verifying { .. }
        )
    }

    /// Notes that the server cannot be asked by id, as this question has shown. It is asked by id
    /// again after an hour.
    pub fn confirmation_refused(&mut self, question: &Question, now: Instant) {
        if !self.is_asking(question) {
            return;
        }
        self.limits.confirm_again = Some(now + CONFIRM_AGAIN);
        self.limits.unanswered_in_a_row = 0;
        self.do_without_answers();
    }

    /// Notes that a question by id was not answered. The fault may pass, so the next full read
    /// asks by id again, but not for ever.
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

    /// Whether this question is being asked now: another reading may have begun since it was sent.
    #[must_use]
    pub fn is_asking(&self, question: &Question) -> bool {
        matches!(&self.background, Background::Confirming { asked, .. } if **asked == *question)
    }

    fn do_without_answers(&mut self) {
        if let Background::Confirming {
            queue,
            asked,
            short,
            mut doubted,
            ..
        } = std::mem::replace(&mut self.background, Background::Idle)
        {
            let asked = asked.suspects.iter().cloned();
            let lacking = short.into_iter().flat_map(|short| short.lacking);
            self.doubt(asked.chain(lacking).chain(queue).collect(), &mut doubted);
            self.verify(doubted);
        }
    }

    /// Asks for the alerts that a reading has missed.
    pub(super) fn ask_for(&mut self, missing: Vec<Box<str>>, now: Instant) {
        let can_confirm = self.can_confirm(now);
        let (askable, others): (Vec<_>, Vec<_>) = missing
            .into_iter()
            .partition(|id| !can_confirm || can_be_asked_for(id));
        let mut doubted = Vec::new();
        self.doubt(others, &mut doubted);
        self.confirm(askable.into(), doubted, now);
    }

    /// Asks for the alerts in the `queue` by id, and at the end for the own pages of the
    /// `doubted`.
    pub(super) fn confirm(
        &mut self,
        mut queue: VecDeque<Box<str>>,
        mut doubted: Vec<Box<str>>,
        now: Instant,
    ) {
        // The answer must fit on one page, the witness included.
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
                self.background = Background::Confirming {
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

    pub(super) fn can_confirm(&self, now: Instant) -> bool {
        self.witness.is_some() && self.limits.confirm_again.is_none_or(|at| now >= at)
    }

    /// Leaves alerts that cannot be asked for by id to their own pages. After a reading that is
    /// not sound, these pages are looked at straight away, because being missed is no evidence
    /// then.
    fn doubt(&mut self, missing: Vec<Box<str>>, doubted: &mut Vec<Box<str>>) {
        if self.is_sound() {
            self.suspect(missing);
        } else {
            doubted.extend(missing);
        }
    }

    /// Notes that a full read has missed these alerts, and that asking by id did not tell that
    /// they are gone. An alert that has been missed too often for bad luck has left.
    pub(super) fn suspect(&mut self, missing: Vec<Box<str>>) {
        if !self.is_sound() {
            // The reading may not have reached the alert.
            return;
        }
        let mut gone = Vec::new();
        for id in missing {
            if !self.tracker.is_missing(&id) {
                // A poll has seen it since.
                continue;
            }
            let missed = self.suspects.get(&id).map_or(1, |missed| missed + 1);
            // Any of the unreadable items may be this alert.
            if missed >= CERTAINTY && self.history.unreadable() == 0 {
                gone.push(id);
            } else {
                self.suspects.insert(id, missed);
            }
        }
        self.set_departing(gone);
    }

    /// Looks at the own pages of alerts that full reads have missed repeatedly, since even a
    /// second miss may be bad luck, and at those of the `doubted`.
    pub(super) fn verify(&mut self, doubted: Vec<Box<str>>) {
        let suspects = self.suspects.iter();
        let missed_again = suspects.filter(|(_, missed)| **missed >= DOUBT);
        let mut asked: BTreeSet<Box<str>> = missed_again.map(|(id, _)| id.clone()).collect();
        asked.extend(doubted.into_iter().take(DOUBTED));
        asked.retain(|id| self.tracker.is_missing(id));
        if !asked.is_empty() {
            let queue = asked.into_iter().collect();
            self.background = Background::Verifying { queue };
        }
    }

    /// Whether an alert has left, given the status on its own page: it has if the status is
    /// another one. After a reading that is not sound, being unseen is no evidence, so another
    /// status counts only if the query is for one status.
    #[must_use]
    pub fn has_left(&self, id: &str, status: &str) -> bool {
        let Some(before) = self.tracker.known_state(id) else {
            return false;
        };
        let tells = self.options.has_one_status && !before.status.is_empty();
        (tells || self.is_sound()) && !status.eq_ignore_ascii_case(&before.status)
    }

    /// Whether an alert that an answer by id shows, after a reading that is not sound, looks like
    /// one that has left.
    pub(super) fn may_have_left(&self, sighting: &Sighting<'_>) -> bool {
        !self.is_sound()
            && !sighting.status.is_empty()
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
        let Background::Confirming {
            queue,
            asked,
            witnesses,
            short,
            doubted,
        } = &mut self.background
        else {
            return;
        };
        if asked != question {
            return;
        }
        let shown: HashSet<&str> = page.iter().map(|sighting| sighting.id).collect();
        // The next page alone is no evidence: some servers name one whatever they show.
        let goes_on = facts.next.is_some() && (facts.shown as u64) < facts.total;
        if goes_on || facts.unreadable > 0 || !question.is_answered_by(page) {
            self.confirmation_failed(question, now);
            return;
        }
        if !shown.contains(&*question.witness) {
            self.try_another_witness(question, now);
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
                // Either the server counts too many alerts whatever it is asked, or it keeps back
                // some of those that it was asked for. Only in the former case does it count too
                // many when asked for the witness alone.
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
        self.background = Background::Idle;
        self.set_departing_if_missing(gone);
        doubted.extend_from_slice(&kept_back);
        self.suspect(kept_back);
        // A server that ignores the query and looks at nothing but the ids also shows alerts that
        // have left.
        self.suspect(there);
        self.confirm(queue, doubted, now);
    }

    /// Asks the same beside the witness of the last poll, if that is another one: the one that an
    /// answer lacks may just have left itself.
    fn try_another_witness(&mut self, question: &Question, now: Instant) {
        if let Background::Confirming {
            asked, witnesses, ..
        } = &mut self.background
        {
            *witnesses += 1;
            if let Some(witness) = &self.witness
                && *witness != question.witness
                && *witnesses < WITNESSES
            {
                *asked = Arc::new(Question {
                    suspects: question.suspects.clone(),
                    witness: witness.clone(),
                });
                return;
            }
        }
        self.confirmation_failed(question, now);
    }

    /// Like [`Engine::set_departing`], but leaves out alerts that a poll has seen since the
    /// reading: these are back.
    pub(super) fn set_departing_if_missing(&mut self, mut gone: Vec<Box<str>>) {
        gone.retain(|id| self.tracker.is_missing(id));
        self.set_departing(gone);
    }
}

/// Whether an id cannot be mistaken for part of a query's grammar.
#[must_use]
pub fn can_be_asked_for(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !id.is_empty() && id.bytes().all(is_plain)
}
