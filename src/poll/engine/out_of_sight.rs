//! Further pages whose content is unknown: those that the server does not show to full reads, and
//! those that polls missed. Polls do without these pages, and try them now and then at their
//! end.

use std::time::Duration;

use tokio::time::Instant;

use crate::poll::full_read::Facts;

/// Time after a refused page failed until a poll without news asks for it again, if the count does
/// not add up.
pub(super) const TRY_AGAIN: Duration = Duration::from_secs(5 * 60);
/// A refused page is left alone for this many times as long as it took to fail, so that a page
/// that hangs does not make each poll late.
const PAUSE_FACTOR: u32 = 10;
/// Number of failed retries in a row after which the rest of the missed places is given up.
const MAX_FAILED_RETRIES: u32 = 3;
/// Upper bound of the time counted for one trial, because the measured time includes waiting for
/// the allowance.
const MAX_TOOK: Duration = Duration::from_secs(60);

/// The pages that are out of sight. They are kept as places in the result, counted from 0, because
/// pages are numbered by their size, and polls and full reads may read pages of different sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OutOfSight {
    /// The page at which the last full read ended because the server does not show it.
    refused: Option<Refused>,
    /// The places that polls wanted and did not get, so that new alerts there may be unknown.
    missed: Option<Missed>,
    /// Whether there are places that polls do not try, although new alerts there may be unknown:
    /// such places that were given up, or to which alerts have slipped between two pages.
    has_given_up: bool,
    /// Whether there are missed places that the full read under way may have read before they
    /// were missed.
    missed_while_reading: bool,
    /// The size of the pages that the last poll has read.
    size: u64,
}

/// A further page that the server does not show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refused {
    /// The place at which the page begins.
    from: u64,
    /// When it was last asked for.
    at: Instant,
    /// How long it took to fail when a poll asked for it.
    took: Duration,
}

/// Places that polls wanted and did not get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Missed {
    /// The first place that is unknown and has not been tried. It moves on as pages come or fail.
    from: u64,
    /// The place behind the last one that is unknown.
    to: u64,
    /// The last retry by the poll under way, or by the last poll.
    retry: Option<Retry>,
    /// The number of retries in a row that have failed.
    failures: u32,
    /// When the next retry may begin. Without it, a page that hangs would make each poll late.
    not_before: Option<Instant>,
}

/// A retry of missed places, by a poll at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Retry {
    /// The page asked for.
    page: u64,
    /// The first of the missed places when the page was asked for.
    from: u64,
}

/// What a further page of a poll was that did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedPage {
    /// A page that the poll asked for only to see whether it comes by now.
    Trial,
    /// A page that the poll wanted. It is [missed](super::Engine::page_missed).
    Missed,
}

// === impl OutOfSight ===

impl OutOfSight {
    /// Returns what another engine that asks the same server takes over.
    pub(super) fn for_other_engine(self) -> Self {
        Self {
            refused: self.refused,
            size: self.size,
            ..Self::default()
        }
    }

    /// The page at which the last full read ended because the server does not show it, among pages
    /// of this size.
    pub(super) fn refused(&self, size: u64) -> Option<u64> {
        self.refused.map(|refused| page_near(refused.from, size))
    }

    /// Whether this page of polls is the refused one, or behind it.
    pub(super) fn is_refused(&self, page: u64) -> bool {
        self.refused(self.size).is_some_and(|first| page >= first)
    }

    /// Notes that a full read has ended before this page, whose size is `size`.
    pub(super) fn note_refused(&mut self, page: u64, size: u64, now: Instant) {
        let from = place(page, size);
        let before = self.refused.filter(|before| before.from == from);
        self.refused = Some(Refused {
            from,
            at: now,
            took: before.map_or(Duration::ZERO, |before| before.took),
        });
    }

    /// Forgets the refused page, because the server shows it again.
    pub(super) fn forget_refused(&mut self) {
        self.refused = None;
    }

    /// Forgets all pages, because one answer was the whole result.
    pub(super) fn forget(&mut self) {
        *self = Self {
            size: self.size,
            ..Self::default()
        };
    }

    /// Notes that a full read begins. It reads all that polls have missed until now.
    pub(super) fn full_read_begins(&mut self) {
        self.missed_while_reading = false;
    }

    /// Forgets the pages that a full read has read, because it has shown the whole result.
    pub(super) fn forget_read(&mut self) {
        if self.missed_while_reading {
            self.refused = None;
        } else {
            self.forget();
        }
    }

    /// Notes that a poll wanted this page and did not learn what is on it.
    pub(super) fn note_missed(&mut self, page: u64) {
        let from = place(page, self.size);
        self.note_missed_places(from, from.saturating_add(self.size.max(1)));
    }

    /// Notes that a poll did not learn what is at these places. What an earlier poll missed is not
    /// forgotten.
    fn note_missed_places(&mut self, from: u64, to: u64) {
        let earlier = self.missed.as_ref();
        self.missed_while_reading = true;
        self.missed = Some(Missed {
            from: earlier.map_or(from, |missed| from.min(missed.from)),
            to: earlier.map_or(to, |missed| to.max(missed.to)),
            retry: None,
            failures: earlier.map_or(0, |missed| missed.failures),
            not_before: earlier.and_then(|missed| missed.not_before),
        });
    }

    /// Notes that alerts may have slipped onto the pages that a poll had read before.
    pub(super) fn note_slipped(&mut self) {
        self.has_given_up = true;
        self.missed_while_reading = true;
    }

    /// Whether a poll missed a page and nothing has read all that was on it since.
    pub(super) fn has_missed(&self) -> bool {
        self.missed.is_some() || self.has_given_up
    }

    /// Whether there are places that polls do not try, so that only a full read can tell what is
    /// there.
    pub(super) fn has_given_up(&self) -> bool {
        self.has_given_up
    }

    /// Notes that a poll has begun, which counts so many alerts fewer than the poll before. That one
    /// is over, and so is its retry. If those alerts have left in front of the missed places, what
    /// was there has moved forward by as many.
    pub(super) fn begin_poll(&mut self, fewer: u64) {
        self.end_retry();
        if let Some(missed) = &mut self.missed {
            missed.from = missed.from.saturating_sub(fewer);
        }
    }

    /// Notes that a page of a poll has come. If it shows the first of the missed places, its
    /// content is known.
    pub(super) fn note_page(&mut self, facts: &Facts) {
        let page = facts.page;
        let is_retry = self.is_retry(page);
        let before = self.size;
        let reached = place(page, before).saturating_add(facts.shown as u64) >= facts.total;
        let is_larger = facts.page_size > before;
        if page == 1 {
            self.size = facts.page_size;
        } else if is_larger || facts.tells_size(Some(before), reached) {
            self.size = facts.page_size;
            if !is_retry {
                self.note_new_size(page, before);
            }
        }
        let size = self.size;
        // If a retried page is larger than before, it may lie behind the missed places. Most likely
        // it would do so the next time, too, so these places are given up.
        let first = self.missed.map(|missed| page_at(missed.from, size));
        if let Some(missed) = self.missed.as_mut().filter(|_| is_retry) {
            missed.failures = 0;
            self.has_given_up |= first.is_some_and(|first| first < page);
        }
        if is_retry || first == Some(page) {
            self.pass_missed(page);
        }
    }

    /// Whether a poll asks for this page only because it was missed.
    pub(super) fn is_retry(&self, page: u64) -> bool {
        let retry = self.missed.and_then(|missed| missed.retry);
        retry.is_some_and(|retry| retry.page == page)
    }

    /// Ends the retry of the poll before. If it has not brought the missed places forward, the next
    /// one hardly would, so they are given up.
    fn end_retry(&mut self) {
        if let Some(missed) = &mut self.missed
            && let Some(retry) = missed.retry.take()
            && retry.from == missed.from
        {
            self.give_up();
        }
    }

    /// Gives up the missed places: polls do not try them any more.
    fn give_up(&mut self) {
        self.missed = None;
        self.has_given_up = true;
    }

    /// Notes that the missed places up to the end of this page are not to be tried any more.
    fn pass_missed(&mut self, page: u64) {
        let end = place(page.saturating_add(1), self.size);
        if let Some(missed) = &mut self.missed {
            missed.from = missed.from.max(end);
        }
        self.missed = self.missed.filter(|missed| missed.from < missed.to);
    }

    /// Notes what a poll has missed if its pages change their size: the page that comes now lies
    /// elsewhere than the page that the poll wanted, whose size was `before`.
    fn note_new_size(&mut self, page: u64, before: u64) {
        let wanted = place(page, before);
        if page_near(wanted, self.size) != page {
            let end = wanted.saturating_add(before);
            self.note_missed_places(wanted, end.max(place(page, self.size)));
        }
    }

    /// Notes that a page of a poll did not come, after the time `took`.
    pub(super) fn note_failed(&mut self, page: u64, took: Duration, now: Instant) -> FailedPage {
        if self.is_trial(page) {
            self.trial_failed(page, took, now);
            FailedPage::Trial
        } else {
            self.note_missed(page);
            FailedPage::Missed
        }
    }

    /// Whether a poll asks for this page only to see whether it comes by now.
    fn is_trial(&self, page: u64) -> bool {
        self.is_retry(page) || self.is_refused(page)
    }

    /// Notes that a page that a poll has [tried](OutOfSight::is_trial) has failed once more. If
    /// other pages lie where the missed one was, the next poll tries those behind this one.
    fn trial_failed(&mut self, page: u64, took: Duration, now: Instant) {
        if self.is_retry(page) {
            self.pass_missed(page);
            self.has_given_up = true;
            self.retry_failed();
            if let Some(missed) = &mut self.missed {
                missed.not_before = Some(now + took.min(MAX_TOOK) * PAUSE_FACTOR);
            }
        }
        let is_refused = self.is_refused(page);
        if let Some(refused) = self.refused.as_mut().filter(|_| is_refused) {
            (refused.at, refused.took) = (now, took);
        }
    }

    /// Notes that a retry was throttled. That says nothing about the page, so the next poll tries it
    /// again, unless too many retries in a row have failed.
    pub(super) fn note_throttled_retry(&mut self) {
        if let Some(missed) = &mut self.missed {
            missed.retry = None;
        }
        self.retry_failed();
    }

    /// Counts a failed retry. After too many in a row, the missed places are given up.
    fn retry_failed(&mut self) {
        if let Some(missed) = &mut self.missed {
            missed.failures += 1;
            if missed.failures >= MAX_FAILED_RETRIES {
                self.give_up();
            }
        }
    }

    /// Begins the one retry of the first missed places, by a poll that would end before `next`.
    /// Returns the page to ask for. If pages are smaller now, those behind it follow, as far as the
    /// missed page reached.
    pub(super) fn begin_retry(&mut self, next: u64, now: Instant) -> Option<u64> {
        let size = self.size;
        let missed = self.missed.as_mut()?;
        if missed.not_before.is_some_and(|time| now < time) {
            return None;
        }
        let from = missed.from;
        let page = page_at(from, size);
        if page < next {
            // The poll is further on, so the next poll comes by these places.
            return None;
        }
        missed.retry = Some(Retry { page, from });
        Some(page)
    }

    /// Returns the refused page that a poll that would end before `next` is to try, if it is time.
    /// With news, each poll tries it, once half an interval has passed since the page failed.
    /// Without news the pause is longer, so that a quiet poll costs one request even if the total
    /// never adds up.
    pub(super) fn due_trial(
        &self,
        next: u64,
        news: bool,
        interval: Duration,
        now: Instant,
    ) -> Option<u64> {
        let refused = self.refused?;
        let first = self.refused(self.size)?;
        let least = if news { interval / 2 } else { TRY_AGAIN };
        let pause = (refused.took.min(MAX_TOOK) * PAUSE_FACTOR).max(least);
        let is_time = now.saturating_duration_since(refused.at) >= pause;
        is_time.then(|| next.max(first))
    }
}

/// The place at which a page of this size begins.
fn place(page: u64, size: u64) -> u64 {
    (page - 1).saturating_mul(size.max(1))
}

/// The page of this size on which a place is.
fn page_at(place: u64, size: u64) -> u64 {
    (place / size.max(1)).saturating_add(1)
}

/// The page of this size that holds a place. A place in the last eighth of a page counts as the
/// beginning of the next one, because a size may be slightly off: some servers give the number of
/// alerts that they show as the size.
fn page_near(place: u64, size: u64) -> u64 {
    page_at(place.saturating_add(size / 8), size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(page: u64, page_size: u64) -> Facts {
        Facts {
            page,
            shown: page_size as usize,
            unreadable: 0,
            total: 1_000,
            page_size,
            next: Some(page + 1),
        }
    }

    /// The first page of a poll comes, with pages of this size. The total is as before.
    fn begin_poll(pages: &mut OutOfSight, size: u64) {
        pages.begin_poll(0);
        pages.note_page(&facts(1, size));
    }

    /// What is out of sight after a poll has missed its second page, with pages of this size.
    fn missed(size: u64) -> OutOfSight {
        let mut pages = OutOfSight::default();
        begin_poll(&mut pages, size);
        pages.note_missed(2);
        pages
    }

    /// The retried page has become smaller, and the poll asks for none of the pages that lie where
    /// it was, for instance because they do not exist.
    #[test]
    fn a_retry_that_does_not_bring_the_missed_places_forward_is_the_last() {
        let mut pages = missed(500);
        begin_poll(&mut pages, 500);
        assert_eq!(pages.begin_retry(2, Instant::now()), Some(2));
        pages.note_page(&facts(2, 100));
        assert!(!pages.has_given_up());
        begin_poll(&mut pages, 500);
        assert!(pages.has_given_up());
        assert_eq!(pages.begin_retry(2, Instant::now()), None);
    }

    #[test]
    fn retries_that_fail_late_pause_and_are_given_up_after_a_few() {
        let took = Duration::from_secs(3);
        let mut now = Instant::now();
        let mut pages = missed(500);
        for number in 0..MAX_FAILED_RETRIES {
            // A page of 500 is ten of 50.
            begin_poll(&mut pages, 50);
            let page = 11 + u64::from(number);
            assert_eq!(pages.begin_retry(2, now), Some(page));
            assert_eq!(pages.note_failed(page, took, now), FailedPage::Trial);
            begin_poll(&mut pages, 50);
            assert_eq!(pages.begin_retry(2, now + took * 9), None);
            now += took * PAUSE_FACTOR;
        }
        assert_eq!((pages.missed, pages.has_given_up()), (None, true));
    }

    #[test]
    fn only_retries_that_fail_in_a_row_have_the_missed_places_given_up() {
        let now = Instant::now();
        let mut pages = missed(500);
        for (page, comes) in (11..).zip([false, false, true, false, false, true]) {
            begin_poll(&mut pages, 50);
            assert_eq!(pages.begin_retry(2, now), Some(page));
            if comes {
                pages.note_page(&facts(page, 50));
            } else {
                pages.note_failed(page, Duration::ZERO, now);
            }
        }
    }

    #[test]
    fn a_retry_that_hangs_puts_the_next_one_off_for_ten_minutes_at_most() {
        let now = Instant::now();
        let mut pages = missed(500);
        begin_poll(&mut pages, 50);
        assert_eq!(pages.begin_retry(2, now), Some(11));
        pages.note_failed(11, Duration::from_secs(3_600), now);
        begin_poll(&mut pages, 50);
        for (seconds, page) in [(599, None), (600, Some(12))] {
            let then = now + Duration::from_secs(seconds);
            assert_eq!(pages.begin_retry(2, then), page);
        }
    }

    #[test]
    fn a_retry_that_hangs_puts_off_no_page_that_is_refused() {
        let (now, interval) = (Instant::now(), Duration::from_secs(30));
        let mut pages = missed(100);
        pages.note_refused(5, 100, now);
        assert_eq!(pages.begin_retry(2, now), Some(2));
        pages.note_failed(2, interval, now);
        assert_eq!(
            pages.due_trial(2, true, interval, now + interval / 2),
            Some(5)
        );
    }

    #[test]
    fn a_page_that_one_poll_has_retried_is_like_any_other_to_the_next() {
        let mut pages = missed(100);
        pages.note_missed(3);
        assert_eq!(pages.begin_retry(2, Instant::now()), Some(2));
        pages.note_page(&facts(2, 100));
        begin_poll(&mut pages, 100);
        assert!(!pages.is_retry(2));
    }

    #[test]
    fn all_is_missed_up_to_where_a_larger_page_begins_unless_its_size_is_slightly_off() {
        let mut pages = OutOfSight::default();
        for size in [100, 101] {
            begin_poll(&mut pages, 100);
            pages.note_page(&facts(2, size));
            assert!(!pages.has_missed());
        }
        begin_poll(&mut pages, 100);
        pages.note_page(&facts(2, 500));
        begin_poll(&mut pages, 100);
        for page in 2..=5 {
            assert!(pages.has_missed(), "before page {page}");
            pages.note_page(&facts(page, 100));
        }
        assert!(!pages.has_missed());
    }

    #[test]
    fn a_retry_that_is_throttled_is_made_again_but_not_for_ever() {
        let now = Instant::now();
        let mut pages = missed(100);
        for _ in 0..MAX_FAILED_RETRIES {
            assert!(!pages.has_given_up());
            begin_poll(&mut pages, 100);
            assert_eq!(pages.begin_retry(2, now), Some(2));
            pages.note_throttled_retry();
        }
        begin_poll(&mut pages, 100);
        assert_eq!(pages.begin_retry(2, now), None);
        assert!(pages.has_given_up());
    }

    #[test]
    fn what_an_earlier_poll_missed_is_tried_first_whatever_is_missed_later() {
        let mut pages = missed(100);
        pages.note_missed(4);
        assert_eq!(pages.begin_retry(2, Instant::now()), Some(2));
    }

    /// The server gives the number of alerts on a page as the size, and names a next page always.
    #[test]
    fn a_short_last_page_is_no_page_of_another_size() {
        let mut pages = OutOfSight::default();
        begin_poll(&mut pages, 100);
        for (total, is_last) in [(150, true), (151, false)] {
            let short = Facts {
                total,
                ..facts(2, 50)
            };
            pages.note_page(&short);
            assert_eq!(pages.has_missed(), !is_last, "{total}");
        }
    }

    /// What this engine has missed concerns no other one.
    #[test]
    fn another_engine_takes_over_which_page_is_refused() {
        let mut pages = missed(100);
        pages.note_refused(3, 100, Instant::now());
        let mut other = pages.for_other_engine();
        begin_poll(&mut other, 100);
        assert!(!other.is_refused(2) && other.is_refused(3));
        assert!(pages.has_missed() && !other.has_missed());
    }

    #[test]
    fn a_page_that_hung_is_left_alone_as_long_if_it_is_refused_again_and_another_page_is_not() {
        let took = Duration::from_secs(43);
        let interval = Duration::from_secs(30);
        let now = Instant::now();
        let mut pages = OutOfSight::default();
        begin_poll(&mut pages, 100);
        pages.note_refused(2, 100, now);
        assert_eq!(pages.note_failed(2, took, now), FailedPage::Trial);
        for (page, pause) in [(2, took * PAUSE_FACTOR), (3, interval / 2)] {
            pages.note_refused(page, 100, now);
            let due = |after| pages.due_trial(2, true, interval, now + after);
            assert_eq!(due(pause - Duration::from_millis(1)), None);
            assert_eq!(due(pause), Some(page));
        }
    }

    #[test]
    fn a_size_that_is_slightly_off_makes_no_other_page() {
        for (place, page) in [(0, 1), (87, 1), (88, 2), (100, 2), (187, 2), (188, 3)] {
            assert_eq!(page_near(place, 100), page, "{place}");
        }
    }
}
