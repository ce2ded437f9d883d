//! One pass over a result that is longer than a page, while it changes.
//!
//! Pages are numbered, so every alert that leaves shifts all later ones up by one, and one of them
//! slips over the border between the page that was read and the page that is read next. The total
//! shows this: if it fell between two answers, the page before is read once more. An alert can
//! slip through all the same (if another one entered behind when one left in front), so no alert
//! is declared gone by a reading alone.

use std::collections::{BTreeMap, BTreeSet};

use crate::opsramp::{Page, SearchRequest};

/// What an answer tells about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The page that was asked for, from 1.
    pub page: u64,
    /// Number of alerts on the page, including those that could not be read.
    pub shown: usize,
    /// Number of alerts on the page that could not be read.
    pub unreadable: usize,
    /// `totalResults`.
    pub total: u64,
    /// The size of a page, as the server has it.
    pub page_size: u64,
    /// The next page, if there is one.
    pub next: Option<u64>,
}

/// A full read under way.
#[derive(Clone, Debug, Default)]
pub(super) struct FullRead {
    next: u64,
    /// Where to go on after the pages that are read again: at a page, or nowhere.
    resume: Option<Option<u64>>,
    again: BTreeSet<u64>,
    last_total: Option<u64>,
    /// The size of pages, as the last answer that tells it has it.
    page_size: Option<u64>,
    /// How often the full read was begun again.
    restarts: u32,
    /// How many more pages may be read again.
    rereads_left: u64,
    /// Number of items that could not be read, for each page that has some.
    unreadable: BTreeMap<u64, usize>,
    /// Whether alerts may lie between two pages, because one has another size than the one before.
    has_gap: bool,
    /// Number of places on all pages together.
    places: u64,
    /// Whether more alerts left than pages may be read again.
    has_given_up: bool,
    /// Whether answers have told different totals.
    has_moved: bool,
    /// The total of the last answer that was not hollow.
    counted: u64,
    hollow: Option<Hollow>,
    /// Number of alerts that had been seen by the previous answer.
    seen: usize,
    /// Number of pages in a row that brought no news.
    without_news: u32,
}

/// A page that shows nothing although the result has so many alerts that some must be on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hollow {
    pub(crate) page: u64,
    /// Number of alerts in the result, as told by the last page that shows some, or by the first
    /// page.
    pub(crate) total: u64,
}

/// A full read that has shown fewer alerts than all its answers have counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shortfall {
    pub(crate) total: u64,
    /// Number of alerts that were seen, and of items that could not be read.
    pub(crate) shown: u64,
}

/// Number of times that a full read begins again before it makes do with pages whose size keeps
/// changing.
const RESTARTS: u32 = 3;

/// Number of pages in a row without news after which a full read ends. It is twice the number of
/// pages that a poll reads, because these bring no news when the full read comes to them.
pub(crate) const WITHOUT_NEWS: u32 = 50;

/// Upper bound of the pages that are read again: those of a million alerts, at a hundred a page. A
/// server may name any total.
const MAX_REREADS: u64 = 10_000;

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// Another page.
    Continue,
    /// Begin again: pages are larger now, so the following ones would begin behind what was read;
    /// or a page that is read again is smaller now, so it ends before what slipped by.
    Restart,
    /// The end of the result. `sound`: as far as the totals tell, no alert slipped through.
    End { sound: bool },
}

// === impl Facts ===

impl Facts {
    /// Returns what the answer to a request tells.
    pub(crate) fn of(request: &SearchRequest, page: &Page<'_>) -> Self {
        Self {
            page: request.page,
            shown: page.alerts.len() + page.unreadable,
            unreadable: page.unreadable,
            total: page.total_results,
            page_size: page.page_size.unwrap_or(request.page_size.into()),
            next: page.next_page,
        }
    }

    /// Whether this one answer is the whole result.
    pub(super) fn is_whole(&self) -> bool {
        self.page == 1 && self.next.is_none() && self.shown as u64 >= self.total
    }

    /// Whether this is a further page that shows nothing. Its total may then count only what it
    /// shows, and it tells nothing about what was there when the page before named this one.
    pub(super) fn is_hollow_further_page(&self) -> bool {
        self.page > 1 && self.shown == 0
    }

    /// Whether this is the first page and shows nothing although it counts alerts.
    pub(super) fn is_hollow_first_page(&self) -> bool {
        self.page == 1 && self.shown == 0 && self.total > 0
    }

    /// Whether the page lies behind the whole result, going by its size and the total.
    pub(crate) fn is_behind(&self) -> bool {
        self.page > self.pages()
    }

    /// Whether the size that the answer tells is the size of pages. Some servers give the number
    /// of alerts on the page instead, which is another number for a short last page and for pages
    /// behind it. `size`: the size of the page before. `reached`: whether as many alerts as the
    /// total have come with this page.
    pub(super) fn tells_size(&self, size: Option<u64>, reached: bool) -> bool {
        let is_short = size.is_some_and(|size| (self.shown as u64) < size);
        self.next.is_some() && self.shown > 0 && !(is_short && reached)
    }

    /// Whether pages of this size end with this page, going by the total, which may be a little too
    /// high. When a page is read again, the number of seen alerts does not tell, because some of
    /// them have left.
    fn is_last(&self, size: u64) -> bool {
        let before = (self.page - 1).saturating_mul(size);
        let end = before.saturating_add(self.shown as u64);
        end.saturating_add(size / 8) >= self.total
    }

    /// Number of pages of the result.
    pub(super) fn pages(&self) -> u64 {
        self.total.div_ceil(self.page_size.max(1))
    }
}

// === impl FullRead ===

impl FullRead {
    /// Creates a full read that begins at the first page.
    pub(super) fn new() -> Self {
        Self {
            next: 1,
            ..Self::default()
        }
    }

    /// The same full read, begun again after [`Flow::Restart`].
    pub(super) fn restarted(&self) -> Self {
        Self {
            restarts: self.restarts + 1,
            ..Self::new()
        }
    }

    /// The page to ask for.
    pub(super) fn page(&self) -> u64 {
        self.next
    }

    /// The size of the pages, as far as an answer has told.
    pub(super) fn page_size(&self) -> Option<u64> {
        self.page_size
    }

    /// Whether a page has been read.
    pub(super) fn has_begun(&self) -> bool {
        self.last_total.is_some()
    }

    /// Takes note of an answer to [`FullRead::page`]. `seen`: the number of alerts seen so far.
    pub(super) fn read(&mut self, facts: &Facts, seen: usize) -> Flow {
        if self.page_size.is_none() {
            // As many pages again as the result has, and a few more for short results.
            self.rereads_left = facts.pages().min(MAX_REREADS) + 8;
        }
        // The page may have been read before.
        self.unreadable.remove(&facts.page);
        if facts.unreadable > 0 {
            self.unreadable.insert(facts.page, facts.unreadable);
        }
        let known = (seen + self.unreadable()) as u64;
        let enough = known >= facts.total;
        let tells_size = facts.tells_size(self.page_size, enough);
        let is_again = self.resume.is_some();
        if self.leaves_a_gap(facts, is_again) {
            if self.restarts < RESTARTS {
                return Flow::Restart;
            }
            self.has_gap = true;
        }
        if tells_size {
            self.page_size = Some(facts.page_size);
        }
        self.note_hollow(facts);
        let last_total = self.last_total.unwrap_or(facts.total);
        let fell = last_total.saturating_sub(facts.total);
        self.has_moved |= facts.total != last_total;
        self.last_total = Some(facts.total);
        self.places = self.places.saturating_add(facts.shown as u64);
        let has_news = seen > self.seen;
        self.seen = seen;
        if has_news {
            self.without_news = 0;
        }
        self.again.remove(&facts.page);
        // Pages behind the last one are not read again, because they show nothing any more. The
        // first one is read again in any case: a hollow page behind it may count nothing although
        // the result has alerts.
        let last = facts.pages().max(1);
        self.again.retain(|page| *page <= last);
        self.read_pages_before_again(facts, fell, last);
        let onwards = self.resume.take().unwrap_or(facts.next);
        if let Some(page) = self.again.first().copied() {
            self.resume = Some(onwards);
            self.next = page;
            return Flow::Continue;
        }
        if !has_news && !is_again {
            self.without_news += 1;
        }
        // Without news, the full read ends even if the answer names a next page: a server may
        // repeat its last page for ever, or ignore the page number.
        let is_repeated =
            self.without_news > 0 && facts.is_behind() || self.without_news > WITHOUT_NEWS;
        match onwards.filter(|_| !is_repeated) {
            Some(page) => {
                self.next = page;
                Flow::Continue
            }
            None => Flow::End {
                sound: enough && !self.has_given_up && !self.may_have_missed(facts.total, known),
            },
        }
    }

    /// Notes whether the full read would end at a hollow page, going by this page and by what the
    /// result counts now.
    fn note_hollow(&mut self, facts: &Facts) {
        if !facts.is_hollow_further_page() {
            self.counted = facts.total;
        }
        let size = self.page_size.unwrap_or(facts.page_size);
        let counted = self.counted;
        let must_show_some = |page: u64| (page - 1).saturating_mul(size) < counted;
        let is_empty = facts.shown == 0;
        // The result may have shrunk since, so that nothing is on the page any more.
        self.hollow = self
            .hollow
            .filter(|hollow| must_show_some(hollow.page) && (is_empty || hollow.page > facts.page));
        if is_empty && must_show_some(facts.page) {
            self.hollow = Some(Hollow {
                page: facts.page,
                total: counted,
            });
        }
    }

    /// Whether alerts lie between what was read and what is read next, because this page has
    /// another size than the pages before. A larger page begins behind what was read. If a page
    /// that is read again is smaller now, it ends before what slipped by.
    fn leaves_a_gap(&self, facts: &Facts, is_again: bool) -> bool {
        let Some(size) = self.page_size else {
            return false;
        };
        let is_larger = facts.page_size > size && facts.shown > 0;
        let is_smaller =
            facts.page_size < size && facts.tells_size(Some(size), facts.is_last(size));
        is_larger || is_smaller && is_again
    }

    /// Whether alerts may lie in a gap between two pages. They do not if every answer has counted
    /// as many alerts as there are places on the pages, and as are known: then only the numbers of
    /// the pages have a gap. Known alerts alone would not tell, because polls see some that leave
    /// before their page is read. `known`: the number of alerts that were seen, and of items that
    /// could not be read.
    fn may_have_missed(&self, total: u64, known: u64) -> bool {
        let adds_up = !self.has_moved && known == total && self.places == total;
        self.has_gap && !adds_up
    }

    /// Has the pages before this one read again that alerts may have slipped onto, if the total
    /// fell by `fell`. `last`: the last page of the result.
    fn read_pages_before_again(&mut self, facts: &Facts, fell: u64, last: u64) {
        let pages = fell.div_ceil(facts.page_size.max(1));
        let first = facts.page.saturating_sub(pages).max(1);
        let before = facts.page - 1;
        for page in first..=before.min(last) {
            if self.rereads_left == 0 {
                self.has_given_up = true;
                break;
            }
            self.rereads_left -= 1;
            self.again.insert(page);
        }
    }

    /// Whether the full read goes on after this answer, provided that the answer brings news.
    pub(super) fn goes_on(&self, facts: &Facts) -> bool {
        facts.page == self.next && self.clone().read(facts, self.seen + 1) == Flow::Continue
    }

    /// The hollow page at which the full read has ended, if it has ended at one.
    pub(super) fn hollow(&self) -> Option<Hollow> {
        self.hollow
    }

    /// What the full read has not shown, unless a hollow page or alerts that came or left meanwhile
    /// may be the reason.
    pub(super) fn shortfall(&self) -> Option<Shortfall> {
        let shown = (self.seen + self.unreadable()) as u64;
        let is_short = shown < self.counted && !self.has_moved && self.hollow.is_none();
        is_short.then_some(Shortfall {
            total: self.counted,
            shown,
        })
    }

    /// Number of items on the pages that could not be read. Nobody knows which alerts they are.
    pub(super) fn unreadable(&self) -> usize {
        self.unreadable.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(page: u64, total: u64, last: u64) -> Facts {
        Facts {
            page,
            shown: 10,
            unreadable: 0,
            total,
            page_size: 10,
            next: (page < last).then_some(page + 1),
        }
    }

    /// Reads to the end, with one total for each request. Returns the pages read.
    fn pages(totals: &[u64], last: u64) -> (Vec<u64>, Flow) {
        let mut read = FullRead::new();
        let mut pages = Vec::new();
        for total in totals {
            pages.push(read.page());
            match read.read(&facts(read.page(), *total, last), 1000) {
                Flow::Continue => {}
                flow => return (pages, flow),
            }
        }
        panic!("still reading after {pages:?}");
    }

    #[test]
    fn a_quiet_result_is_read_page_by_page() {
        assert_eq!(
            pages(&[40; 4], 4),
            (vec![1, 2, 3, 4], Flow::End { sound: true })
        );
        assert_eq!(pages(&[0], 0), (vec![1], Flow::End { sound: true }));
    }

    #[test]
    fn where_the_total_falls_the_page_before_is_read_again() {
        let totals = [40, 40, 39, 39, 39];
        assert_eq!(pages(&totals, 4).0, [1, 2, 3, 2, 4]);
        // At the last page, too.
        assert_eq!(pages(&[40, 40, 40, 39, 39], 4).0, [1, 2, 3, 4, 3]);
        // If more than a page left at once, as many pages are read again, as far as they still
        // exist.
        assert_eq!(pages(&[40, 40, 40, 25, 25, 25], 4).0, [1, 2, 3, 4, 2, 3]);
        assert_eq!(pages(&[40, 40, 40, 5, 5], 4).0, [1, 2, 3, 4, 1]);
        assert_eq!(pages(&[40, 40, 40, 25, 5, 5], 4).0, [1, 2, 3, 4, 2, 1]);
    }

    #[test]
    fn what_cannot_be_read_on_a_page_that_is_read_again_counts_once() {
        for (before, again) in [(3, 2), (1, 1), (3, 0)] {
            let mut read = FullRead::new();
            let pages = [
                (1, 0, 40),
                (2, before, 40),
                (3, 0, 39),
                (2, again, 39),
                (4, 0, 39),
            ];
            for (page, unreadable, total) in pages {
                assert_eq!(read.page(), page);
                let facts = Facts {
                    unreadable,
                    ..facts(page, total, 4)
                };
                // One alert has slipped by, and some cannot be read.
                let flow = read.read(&facts, 38 - again);
                let is_end = flow == Flow::End { sound: false };
                assert_eq!(is_end, page == 4, "{flow:?} at page {page}");
            }
            assert_eq!(read.unreadable(), again);
        }
    }

    #[test]
    fn a_fall_while_a_page_is_read_again_is_mended_as_well() {
        assert_eq!(
            pages(&[50, 50, 49, 48, 48, 48, 48], 5).0,
            [1, 2, 3, 2, 1, 4, 5]
        );
    }

    /// Reads answers each of which names a next page, until the full read ends. `seen` alerts have
    /// been seen with each page.
    fn without_end(total: u64, seen: impl Fn(u64) -> usize) -> (u64, Flow) {
        let mut read = FullRead::new();
        let mut ended = (1..).map(|page| {
            let facts = facts(page, total, u64::MAX);
            (page, read.read(&facts, seen(page)))
        });
        ended
            .find(|(_, flow)| *flow != Flow::Continue)
            .expect("pages do not end")
    }

    #[test]
    fn a_last_page_that_is_repeated_for_ever_is_the_end() {
        let end = |sound| (5, Flow::End { sound });
        assert_eq!(
            without_end(35, |page| 35.min(page as usize * 10)),
            end(true)
        );
        assert_eq!(
            without_end(36, |page| 35.min(page as usize * 10)),
            end(false)
        );
        // The full read does not end earlier: a page may show only what others have brought.
        assert_eq!(
            without_end(35, |page| if page == 2 { 10 } else { 35 }),
            end(true)
        );
        // However many pages do so, if they are not in a row.
        assert_eq!(
            without_end(2_000, |page| page as usize / 2 * 20),
            (201, Flow::End { sound: true })
        );
        // Nor does it end where the result goes on behind what the total counts.
        assert_eq!(
            without_end(10, |page| 10 * page.min(3) as usize),
            (4, Flow::End { sound: true })
        );
        // A server that looks at no page number.
        assert_eq!(without_end(35, |_| 10), end(false));
        let (page, flow) = without_end(1_000_000, |_| 10);
        assert_eq!((page, flow), (52, Flow::End { sound: false }));
    }

    #[test]
    fn news_on_a_page_at_which_the_total_falls_are_news() {
        let mut read = FullRead::new();
        let mut answer = |total, seen| {
            let facts = facts(read.page(), total, u64::MAX);
            (facts.page, read.read(&facts, seen))
        };
        for page in 1..=WITHOUT_NEWS.into() {
            assert_eq!(answer(2_000, 10), (page, Flow::Continue));
        }
        assert_eq!(answer(1_999, 20), (51, Flow::Continue));
        assert_eq!(answer(1_999, 20), (50, Flow::Continue));
        for page in 52..=101 {
            assert_eq!(answer(1_999, 20), (page, Flow::Continue));
        }
        assert_eq!(answer(1_999, 20), (102, Flow::End { sound: false }));
    }

    #[test]
    fn a_further_page_that_says_that_there_is_nothing_is_not_believed_unless_the_first_one_agrees()
    {
        let nothing = |page| Facts {
            shown: 0,
            next: None,
            ..facts(page, 0, 0)
        };
        for (first, sound) in [(facts(1, 40, 4), false), (nothing(1), true)] {
            let mut read = FullRead::new();
            assert_eq!(read.read(&facts(1, 40, 4), 10), Flow::Continue);
            assert_eq!(read.read(&nothing(2), 10), Flow::Continue);
            assert_eq!(read.page(), 1);
            assert_eq!(read.read(&first, 10), Flow::End { sound });
        }
    }

    #[test]
    fn a_page_that_shows_nothing_is_hollow_unless_it_lies_behind_the_result_or_comes_in_the_end() {
        let nothing = |page, total| Facts {
            shown: 0,
            ..facts(page, total, 0)
        };
        let hollow = |answers: &[Facts]| {
            let mut read = FullRead::new();
            for answer in answers {
                read.read(answer, answer.page as usize * answer.shown);
            }
            read.hollow().map(|hollow| (hollow.page, hollow.total))
        };
        for total in [0, 10, 40] {
            assert_eq!(hollow(&[facts(1, 40, 4), nothing(2, total)]), Some((2, 40)));
        }
        let read_again = [facts(1, 40, 4), nothing(2, 0), facts(1, 39, 4)];
        assert_eq!(hollow(&read_again), Some((2, 40)));
        for (total, expected) in [(11, Some((2, 40))), (10, None)] {
            let shrunk = [facts(1, 40, 4), nothing(2, 0), facts(1, total, 4)];
            assert_eq!(hollow(&shrunk), expected, "{total}");
        }
        // The pages before are read again, and the result is empty by then.
        let emptied = [facts(1, 40, 4), nothing(2, 0), nothing(1, 0)];
        assert_eq!(hollow(&emptied), None);
        for shown in [1, 10] {
            let comes = Facts {
                shown,
                ..facts(2, 40, 4)
            };
            assert_eq!(hollow(&[facts(1, 40, 4), nothing(2, 40), comes]), None);
        }
        // The last page would show a single alert.
        assert_eq!(hollow(&[facts(1, 11, 2), nothing(2, 11)]), Some((2, 11)));
        assert_eq!(hollow(&[nothing(1, 40)]), Some((1, 40)));
        assert_eq!(hollow(&[nothing(1, 0)]), None);
        assert_eq!(
            hollow(&[facts(1, 20, 4), facts(2, 20, 4), nothing(3, 20)]),
            None
        );
    }

    #[test]
    fn a_rise_needs_no_mending() {
        assert_eq!(pages(&[40, 41, 42, 43], 4).0, [1, 2, 3, 4]);
    }

    #[test]
    fn a_result_that_never_rests_is_given_up_as_not_sound() {
        let totals: Vec<u64> = (0..400).map(|step| 1000 - step).collect();
        let (pages, flow) = pages(&totals, 100);
        assert_eq!(flow, Flow::End { sound: false }, "{pages:?}");
    }

    /// The pages that are read again bring no news.
    #[test]
    fn a_result_that_shrinks_at_every_page_is_read_to_its_end() {
        let mut read = FullRead::new();
        let (mut furthest, mut total) = (1, 1000);
        let flow = loop {
            let page = read.page();
            if page > furthest {
                (furthest, total) = (page, total - 1);
            }
            let facts = facts(page, total, total.div_ceil(10));
            match read.read(&facts, 10 * furthest as usize) {
                Flow::Continue => {}
                flow => break flow,
            }
        };
        assert_eq!((furthest, flow), (91, Flow::End { sound: true }));
    }

    #[test]
    fn fewer_alerts_than_the_total_are_not_sound() {
        let mut read = FullRead::new();
        assert_eq!(read.read(&facts(1, 40, 1), 39), Flow::End { sound: false });
    }

    /// Reads pages of these sizes, up to the last one, and returns what came of each.
    fn sizes<const N: usize>(read: &mut FullRead, sizes: [u64; N]) -> [Flow; N] {
        let mut page = 0;
        sizes.map(|page_size| {
            page += 1;
            let facts = Facts {
                page_size,
                ..facts(page, 40, N as u64)
            };
            read.read(&facts, 40)
        })
    }

    #[test]
    fn larger_pages_mean_to_begin_again_and_smaller_ones_do_not() {
        let (on, again, end) = (Flow::Continue, Flow::Restart, Flow::End { sound: true });
        let first = FullRead::new;
        assert_eq!(sizes(&mut first(), [10, 20]), [on, again]);
        assert_eq!(sizes(&mut first(), [10, 10, 5, 5]), [on, on, on, end]);
        assert_eq!(sizes(&mut first(), [10, 5, 10]), [on, on, again]);
        // The number of alerts on the short last page is not the page size, so the page that is
        // read again after it does not count as larger.
        let mut read = first();
        assert_eq!(sizes(&mut read, [10, 10, 3]), [on, on, end]);
        assert_eq!(read.page_size, Some(10));
    }

    /// The server may tell the size that was asked for, of which it shows less.
    #[test]
    fn a_page_that_shows_nothing_is_no_larger_one() {
        let mut read = FullRead::new();
        let first = Facts {
            shown: 8,
            page_size: 8,
            ..facts(1, 8, 2)
        };
        assert_eq!(read.read(&first, 8), Flow::Continue);
        let behind = Facts {
            shown: 0,
            ..facts(2, 8, 2)
        };
        assert_eq!(read.read(&behind, 8), Flow::End { sound: true });
    }

    /// A page is adopted before its changes are stored only if it is sure to be followed by another.
    #[test]
    fn a_full_read_goes_on_after_the_page_that_it_wants_unless_that_ends_it_or_begins_it_again() {
        let mut read = FullRead::new();
        assert!(read.goes_on(&facts(1, 40, 4)));
        assert!(!read.goes_on(&facts(1, 10, 1)), "the last page");
        assert_eq!(read.read(&facts(1, 20, 4), 10), Flow::Continue);
        assert!(read.goes_on(&facts(2, 20, 4)));
        assert!(!read.goes_on(&facts(1, 20, 4)), "not wanted any more");
        let larger = Facts {
            page_size: 20,
            ..facts(2, 20, 4)
        };
        assert!(!read.goes_on(&larger), "to begin again");
        // A page behind the result ends it only if it brings no news.
        assert_eq!(read.read(&facts(2, 20, 4), 10), Flow::Continue);
        assert!(read.goes_on(&facts(3, 20, 4)));
        assert_eq!(read.read(&facts(3, 20, 4), 10), Flow::End { sound: false });
    }

    /// What slipped by may be on the part of the page that does not come any more.
    #[test]
    fn a_page_that_is_read_again_and_is_smaller_means_to_begin_again() {
        let mut read = FullRead::new();
        let answer = |read: &mut FullRead, page_size, total| {
            let facts = Facts {
                shown: page_size as usize,
                page_size,
                ..facts(read.page(), total, 4)
            };
            read.read(&facts, 40)
        };
        for restarts in 0..=RESTARTS {
            assert!(!read.has_begun());
            assert_eq!(answer(&mut read, 10, 40), Flow::Continue);
            assert!(read.has_begun());
            assert_eq!(answer(&mut read, 10, 39), Flow::Continue);
            assert_eq!(read.page(), 1, "again");
            let flow = answer(&mut read, 5, 39);
            if restarts < RESTARTS {
                assert_eq!(flow, Flow::Restart);
                read = read.restarted();
            }
        }
        while read.page() < 4 {
            assert_eq!(answer(&mut read, 5, 39), Flow::Continue);
        }
        assert_eq!(answer(&mut read, 5, 39), Flow::End { sound: false });
    }

    /// It is as short as its size if the server gives the number of alerts as the size. The total
    /// may be a little too high.
    #[test]
    fn a_last_page_that_is_read_again_may_be_short() {
        let again = |total, shown| {
            let mut read = FullRead::new();
            let answer = |page, total, shown| Facts {
                shown,
                page_size: shown as u64,
                ..facts(page, total, 5)
            };
            for page in 1..=3 {
                let flow = read.read(&answer(page, 400, 100), 400);
                assert_eq!(flow, Flow::Continue);
            }
            assert_eq!(read.read(&answer(4, 380, 80), 400), Flow::Continue);
            assert_eq!(read.page(), 3, "again");
            read.read(&answer(3, total, shown), 400)
        };
        assert_eq!(again(270, 70), Flow::Continue);
        assert_eq!(again(270, 58), Flow::Continue);
        assert_eq!(again(270, 57), Flow::Restart);
        // A page behind it shows the rest.
        assert_eq!(again(350, 50), Flow::Restart);
    }

    #[test]
    fn the_whole_result_is_one_page_that_shows_all_it_counts_and_names_no_other() {
        let whole = facts(1, 10, 1);
        assert!(whole.is_whole());
        let more_counted = Facts { total: 11, ..whole };
        let further = Facts { page: 2, ..whole };
        let names_next = Facts {
            next: Some(2),
            ..whole
        };
        for facts in [more_counted, further, names_next] {
            assert!(!facts.is_whole(), "{facts:?}");
        }
    }

    #[test]
    fn a_first_page_that_shows_nothing_is_hollow_if_it_counts_a_single_alert() {
        let empty = |total| Facts {
            shown: 0,
            ..facts(1, total, 1)
        };
        assert!(empty(1).is_hollow_first_page());
        assert!(!empty(0).is_hollow_first_page());
    }

    #[test]
    fn what_could_not_be_read_is_shown_as_well() {
        let request = SearchRequest {
            query: String::new(),
            page: 2,
            page_size: 10,
            sorted: true,
        };
        let page = Page {
            alerts: Vec::new(),
            raw: Vec::new(),
            unreadable: 3,
            total_results: 13,
            page_size: None,
            next_page: None,
        };
        let facts = Facts::of(&request, &page);
        assert_eq!((facts.shown, facts.unreadable), (3, 3));
        assert_eq!((facts.page, facts.page_size), (2, 10));
    }

    #[test]
    fn a_page_tells_its_size_unless_it_is_a_short_last_one_or_shows_nothing() {
        let shows = |shown| Facts {
            shown,
            next: Some(4),
            ..facts(3, 35, 5)
        };
        let (size, reached) = (Some(10), true);
        assert!(shows(10).tells_size(size, reached));
        assert!(shows(15).tells_size(size, reached));
        assert!(!shows(5).tells_size(size, reached));
        assert!(shows(5).tells_size(size, false));
        assert!(shows(5).tells_size(None, reached));
        assert!(!shows(0).tells_size(None, reached));
        let last = Facts {
            next: None,
            ..shows(10)
        };
        assert!(!last.tells_size(size, reached));
    }

    #[test]
    fn a_short_last_page_that_names_a_next_one_has_no_size() {
        let shows = |page, shown| Facts {
            shown,
            page_size: if shown > 0 { shown as u64 } else { 10 },
            next: (shown > 0).then_some(page + 1),
            ..facts(page, 35, 5)
        };
        let mut read = FullRead::new();
        for (page, shown) in [(1, 10), (2, 10), (3, 10), (4, 5)] {
            let seen = 10 * (page as usize - 1) + shown;
            assert_eq!(read.read(&shows(page, shown), seen), Flow::Continue);
        }
        let fallen = Facts {
            total: 34,
            ..shows(5, 0)
        };
        assert_eq!(read.read(&fallen, 35), Flow::Continue);
        assert_eq!(read.page(), 4);
        assert_eq!(read.read(&shows(4, 4), 35), Flow::End { sound: true });
    }

    #[test]
    fn a_total_that_falls_from_the_sky_does_not_have_countless_pages_read_again() {
        let mut read = FullRead::new();
        let high = Facts {
            page_size: 1,
            next: Some(u64::MAX / 4),
            ..facts(1, u64::MAX, 1)
        };
        assert_eq!(read.read(&high, 1), Flow::Continue);
        let low = Facts {
            page_size: 1,
            ..facts(u64::MAX / 4, u64::MAX / 2, 1)
        };
        assert_eq!(read.read(&low, 2), Flow::Continue);
        assert_eq!(read.again.len() as u64, MAX_REREADS + 8);
        assert!(read.has_given_up);
    }

    #[test]
    fn sizes_that_go_up_and_down_are_borne_in_the_end() {
        let mut read = FullRead::new();
        let mut restarts = 0;
        loop {
            match sizes(&mut read, [8, 9, 8]) {
                [_, Flow::Restart, _] => read = read.restarted(),
                [.., end] => {
                    assert_eq!((restarts, end), (RESTARTS, Flow::End { sound: false }));
                    break;
                }
            }
            restarts += 1;
        }
    }

    /// Any other number tells of alerts that came or left meanwhile, which may make up for those
    /// that lie in a gap.
    #[test]
    fn nothing_lies_in_a_gap_if_totals_and_places_and_seen_alerts_are_as_many() {
        let cases = [
            ([40, 40, 40], 16, 40, true),
            ([40, 40, 40], 16, 41, false),
            ([40, 40, 40], 16, 39, false),
            ([40, 40, 40], 15, 40, false),
            ([40, 40, 40], 17, 40, false),
            ([39, 40, 40], 16, 40, false),
            ([40, 41, 40], 16, 40, false),
        ];
        for (totals, shown_last, seen, sound) in cases {
            let mut read = FullRead {
                restarts: RESTARTS,
                ..FullRead::new()
            };
            let mut requests = 0;
            let flow = loop {
                let place = requests.min(2);
                let facts = Facts {
                    page_size: [8, 16, 16][place],
                    shown: [8, 16, shown_last][place],
                    ..facts(read.page(), totals[place], 3)
                };
                requests += 1;
                match read.read(&facts, seen) {
                    Flow::Continue => {}
                    flow => break flow,
                }
            };
            let case = format!("{totals:?}, {shown_last} on the last page, {seen} seen");
            assert_eq!(flow, Flow::End { sound }, "{case}");
        }
    }
}
