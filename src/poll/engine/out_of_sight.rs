//! Further pages of which it is not known what is on them: those that the server does not show a full read, and one that a
//! poll wanted and has not learned. Polls go without them, and ask for them now and then at their end.

use std::time::Duration;

use tokio::time::Instant;

/// How long after a refused page has failed a poll without news asks for it again, where the count does not add
/// up.
pub(super) const TRY_AGAIN: Duration = Duration::from_secs(5 * 60);
/// So many times as long as it took to fail a refused page is left alone: one that hangs shall not make each poll
/// late.
const LEFT_ALONE: u32 = 10;
/// It counts no more of that: what a trial took holds the wait for the allowance as well.
const MAX_TOOK: Duration = Duration::from_secs(60);

/// The pages that are out of sight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OutOfSight {
    /// The page at which the last full read ended, as the server does not show it.
    refused: Option<Refused>,
    /// The page at which a poll was cut short, so that what is new on it may not be known.
    missed: Option<Missed>,
}

/// A further page that the server does not show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refused {
    page: u64,
    /// When it was asked for last.
    at: Instant,
    /// How long it took to fail when a poll asked for it.
    took: Duration,
}

/// A further page that a poll has not learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Missed {
    page: u64,
    /// Whether another poll has asked for it since, at its end.
    tried: bool,
}

// === impl OutOfSight ===

impl OutOfSight {
    /// What of it another engine that asks the same server goes on with.
    pub(super) fn for_another(self) -> Self {
        Self {
            missed: None,
            ..self
        }
    }

    /// The page at which the last full read ended, as the server does not show it.
    pub(super) fn refused(&self) -> Option<u64> {
        self.refused.map(|refused| refused.page)
    }

    /// Whether this page is that one, or behind it.
    pub(super) fn is_refused(&self, page: u64) -> bool {
        self.refused.is_some_and(|refused| page >= refused.page)
    }

    /// A full read has ended before this page.
    pub(super) fn refuse(&mut self, page: u64, now: Instant) {
        let before = self.refused.filter(|before| before.page == page);
        self.refused = Some(Refused {
            page,
            at: now,
            took: before.map_or(Duration::ZERO, |before| before.took),
        });
    }

    /// The server shows it again.
    pub(super) fn is_shown(&mut self) {
        self.refused = None;
    }

    /// A poll wanted this page and has not learned what is on it.
    pub(super) fn miss(&mut self, page: u64) {
        self.missed = Some(Missed { page, tried: false });
    }

    /// Whether a poll has not learned what is on a page, and none has tried it to the end since.
    pub(super) fn misses_one(&self) -> bool {
        self.missed.is_some()
    }

    /// A page of a poll has come: with it what was missed is known, or the poll after the one that tried it
    /// has begun.
    pub(super) fn came(&mut self, page: u64) {
        let is_over = |missed: &Missed| page == missed.page || missed.tried && page == 1;
        self.missed = self.missed.filter(|missed| !is_over(missed));
    }

    /// A page of a poll did not come, after so long. Brings whether it was only to see whether it comes by now;
    /// else it is [missed](OutOfSight::miss).
    pub(super) fn failed(&mut self, page: u64, took: Duration, now: Instant) -> bool {
        let is_tried = self.is_tried(page);
        if is_tried {
            self.tried_in_vain(page, took, now);
        } else {
            self.miss(page);
        }
        is_tried
    }

    /// Whether a poll has asked for this page only to see whether it comes by now.
    fn is_tried(&self, page: u64) -> bool {
        let is_missed = |missed: Missed| missed.tried && missed.page == page;
        self.missed.is_some_and(is_missed) || self.is_refused(page)
    }

    /// A poll has [tried](OutOfSight::is_tried) a page, and it has failed once more.
    fn tried_in_vain(&mut self, page: u64, took: Duration, now: Instant) {
        self.missed = self.missed.filter(|missed| missed.page != page);
        if let Some(refused) = &mut self.refused
            && page >= refused.page
        {
            (refused.at, refused.took) = (now, took);
        }
    }

    /// The page that a poll missed, for one that would end before `next` to try once.
    pub(super) fn second_try(&mut self, next: u64) -> Option<u64> {
        let missed = self.missed.as_mut().filter(|missed| !missed.tried)?;
        missed.tried = true;
        missed.page = missed.page.max(next);
        Some(missed.page)
    }

    /// The refused page that a poll that would end before `next` is to try, if it is time: with news each poll does,
    /// and the last one failed some time after it began. Without news it takes its time, so that a quiet poll costs
    /// one request even where the total never adds up.
    pub(super) fn trial(
        &self,
        next: u64,
        news: bool,
        interval: Duration,
        now: Instant,
    ) -> Option<u64> {
        let refused = self.refused?;
        let least = if news { interval / 2 } else { TRY_AGAIN };
        let pause = (refused.took.min(MAX_TOOK) * LEFT_ALONE).max(least);
        let is_time = now.saturating_duration_since(refused.at) >= pause;
        is_time.then(|| next.max(refused.page))
    }
}
