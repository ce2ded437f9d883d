//! Further pages whose content is unknown: those that the server does not show to full reads, and
//! the one that a poll missed. Polls do without these pages, and try them now and then at their
//! end.

use std::time::Duration;

use tokio::time::Instant;

/// Time after a refused page failed until a poll without news asks for it again, if the count does
/// not add up.
pub(super) const TRY_AGAIN: Duration = Duration::from_secs(5 * 60);
/// A refused page is left alone for this many times as long as it took to fail, so that a page
/// that hangs does not make each poll late.
const LEFT_ALONE: u32 = 10;
/// Upper bound of the time counted for one trial, because the measured time includes waiting for
/// the allowance.
const MAX_TOOK: Duration = Duration::from_secs(60);

/// The pages that are out of sight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OutOfSight {
    /// The page at which the last full read ended because the server does not show it.
    refused: Option<Refused>,
    /// The page at which a poll was cut short, so that new alerts on it may be unknown.
    missed: Option<Missed>,
}

/// A further page that the server does not show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refused {
    page: u64,
    /// When it was last asked for.
    at: Instant,
    /// How long it took to fail when a poll asked for it.
    took: Duration,
}

/// A further page that a poll wanted and could not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Missed {
    page: u64,
    /// Whether a later poll has asked for it at its end.
    tried: bool,
}

// === impl OutOfSight ===

impl OutOfSight {
    /// Returns what another engine that asks the same server takes over.
    pub(super) fn for_another(self) -> Self {
        Self {
            missed: None,
            ..self
        }
    }

    /// The page at which the last full read ended because the server does not show it.
    pub(super) fn refused(&self) -> Option<u64> {
        self.refused.map(|refused| refused.page)
    }

    /// Whether this page is the refused one, or behind it.
    pub(super) fn is_refused(&self, page: u64) -> bool {
        self.refused.is_some_and(|refused| page >= refused.page)
    }

    /// Notes that a full read has ended before this page.
    pub(super) fn refuse(&mut self, page: u64, now: Instant) {
        let before = self.refused.filter(|before| before.page == page);
        self.refused = Some(Refused {
            page,
            at: now,
            took: before.map_or(Duration::ZERO, |before| before.took),
        });
    }

    /// Notes that the server shows the refused page again.
    pub(super) fn is_shown(&mut self) {
        self.refused = None;
    }

    /// Notes that a poll wanted this page and did not learn what is on it.
    pub(super) fn miss(&mut self, page: u64) {
        self.missed = Some(Missed { page, tried: false });
    }

    /// Whether a poll missed a page and no later poll has tried to read it.
    pub(super) fn misses_one(&self) -> bool {
        self.missed.is_some()
    }

    /// Notes that a page of a poll has come. If it is the missed page, its content is known. If it
    /// is a first page, the poll that tried the missed page is over.
    pub(super) fn came(&mut self, page: u64) {
        let is_over = |missed: &Missed| page == missed.page || missed.tried && page == 1;
        self.missed = self.missed.filter(|missed| !is_over(missed));
    }

    /// Notes that a page of a poll did not come, after the time `took`. Returns whether the poll
    /// asked for the page only to see whether it comes by now; if not, the page is
    /// [missed](OutOfSight::miss).
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

    /// Notes that a page that a poll has [tried](OutOfSight::is_tried) has failed once more.
    fn tried_in_vain(&mut self, page: u64, took: Duration, now: Instant) {
        self.missed = self.missed.filter(|missed| missed.page != page);
        if let Some(refused) = &mut self.refused
            && page >= refused.page
        {
            (refused.at, refused.took) = (now, took);
        }
    }

    /// Returns the missed page for a poll that would end before `next`, to be tried once.
    pub(super) fn second_try(&mut self, next: u64) -> Option<u64> {
        let missed = self.missed.as_mut().filter(|missed| !missed.tried)?;
        missed.tried = true;
        missed.page = missed.page.max(next);
        Some(missed.page)
    }

    /// Returns the refused page that a poll that would end before `next` is to try, if it is time.
    /// With news, each poll tries it, once half an interval has passed since the page failed.
    /// Without news the pause is longer, so that a quiet poll costs one request even if the total
    /// never adds up.
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
