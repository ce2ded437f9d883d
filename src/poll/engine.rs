//! How far to read, and who has left: decided from answers alone, without I/O and without a clock.
//!
//! Two activities share the known alerts. A *poll* reads the head of the result, newest first, as
//! far as there is news. The *background* reads the whole result now and then, asks whether those
//! it missed are really gone, and why. The caller asks, stores, and then has the engine adopt.

mod confirmation;
mod out_of_sight;
mod overtaken;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

pub use self::confirmation::{Question, can_be_asked_for};
use self::{
    confirmation::Short,
    out_of_sight::OutOfSight,
    overtaken::{Overtaken, Requests},
};
use super::full_read::{Facts, Flow, FullRead, Hollow};
use crate::track::{Before, Delta, Known, Sighting, Tracker};

/// Alerts that are asked for by id at most after a reading that did not show everything.
const UNSEEN: usize = 5_000;
/// Departures whose reasons are asked for together.
const REASONS: usize = 20;
/// Polls in a row that see more alerts than are known before the whole result is read.
const PATIENCE: u32 = 3;
/// For how long readings end at a hollow page before the result counts as gone through: with the rest before the last
/// of them some half an hour, as long as a page fails before a reading ends there. …
const HOLLOW: Duration = Duration::from_secs(25 * 60);
/// … And how many of them: an outage may lie between two.
const HOLLOW_IN_A_ROW: u32 = 4;
/// Alerts of which an answer may lack most before a second one must agree: a mass closing is rarer than
/// a server that shows nothing for a moment.
const SUDDEN: usize = 20;

/// What an engine needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How often a result that is longer than a page is read whole.
    pub full_read_interval: Duration,
    /// Time between two polls.
    pub interval: Duration,
    /// Pages that one poll reads at most; the rest is left to the background.
    pub max_poll_pages: u64,
    /// Whether the query is for one status, so that an alert of another one is not in the result.
    pub has_one_status: bool,
}

/// Why a page was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A poll.
    Poll,
    /// A full read.
    FullRead,
    /// To see which of these ids are still in the result, beside a witness that surely is.
    Confirm(Arc<Question>),
}

/// What the background wants to ask next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// A page of the search.
    Page(u64),
    /// A page of the search, restricted to some ids.
    Confirm(Arc<Question>),
    /// The pages of alerts that full reads missed: has their status changed?
    Verify(Vec<Box<str>>),
    /// The pages of alerts that left, for the reasons.
    Reasons(Vec<Box<str>>),
}

/// Whether a poll goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// With this page.
    Page(u64),
    /// No: it is done.
    Done,
}

/// What the readings of the result have told so far.
#[derive(Debug, Default)]
struct Readings {
    last: Option<LastReading>,
    /// How many of them were sound.
    whole: u64,
    /// How many did not end at a hollow page.
    count: u64,
    /// When the first of those in a row ended that did, and how many there are.
    hollow_in_a_row: Option<(Instant, u32)>,
    /// The hollow page that was warned of last; `None` once a reading has ended otherwise.
    hollow_told: Option<u64>,
    has_gone_through: bool,
}

/// How the last reading ended.
#[derive(Debug)]
struct LastReading {
    /// Whether what it has not shown is not in the result, as far as the totals tell.
    sound: bool,
    /// Items that were no alerts: they count in the total.
    unreadable: u64,
    /// The page at which it ended, where that shows nothing of what there is.
    hollow: Option<Hollow>,
    /// When the result is to be read anew.
    next_due: Instant,
}

/// How a reading ends.
#[derive(Clone, Copy, Debug)]
struct Ending {
    /// Whether what it has not shown is not in the result, as far as the totals tell.
    sound: bool,
    unreadable: usize,
    hollow: Option<Hollow>,
}

/// A page that was taken over before its changes were stored, to be given back if that fails.
#[derive(Debug)]
pub struct Ahead {
    /// The full read, as it was before the page.
    read: FullRead,
    opened: Vec<Box<str>>,
}

/// What a server has been found not to answer, whatever alerts there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pages: OutOfSight,
    /// When the server may be asked by id again; `None` where it can be.
    confirm_again: Option<Instant>,
    /// Questions by id in a row that were not answered.
    unanswered_in_a_row: u32,
}

/// The engine of one search.
#[derive(Debug)]
pub struct Engine {
    options: Options,
    tracker: Tracker,
    reading: Reading,
    /// Alerts that have left and whose reason has not been asked for yet.
    departed: VecDeque<Box<str>>,
    /// The same ids, to look them up.
    in_departed: HashSet<Box<str>>,
    /// How many sound full reads in a row have missed an alert, where the server cannot be asked
    /// by id, or shows it when it is.
    suspects: BTreeMap<Box<str>, u32>,
    limits: Limits,
    requests: Requests,
    /// What the last poll lacked, if that was most of what there was: about each of them the next one
    /// must agree.
    sudden: HashSet<Box<str>>,
    witness: Option<Box<str>>,
    /// Since when answers about the first page show nothing of what they count.
    hollow_in_front: Option<Instant>,
    /// Whether a full read was given up because of that, for the next poll to begin it anew.
    postponed: bool,
    /// The size of a page, as the server has it.
    page_size: u64,
    total: Option<u64>,
    readings: Readings,
    /// A full read that only the count asks for waits until then.
    rest_until: Option<Instant>,
    /// Full reads in a row after which the totals did not add up.
    vain_in_a_row: u32,
    surplus_in_a_row: u32,
}

/// Where the background is.
#[derive(Debug)]
enum Reading {
    Idle,
    Pages {
        read: FullRead,
        begun: Instant,
    },
    Confirming {
        queue: VecDeque<Box<str>>,
        asked: Arc<Question>,
        witnesses: u32,
        /// The answer before, if it counted more than it showed: it is now asked for the witness alone.
        short: Option<Short>,
        /// Those that answers by id leave open: kept back, shown with another status, or with ids that cannot be
        /// asked for. Their own pages are looked at in the end.
        doubted: Vec<Box<str>>,
    },
    Verifying {
        queue: VecDeque<Box<str>>,
    },
}

// === impl Engine ===

impl Engine {
    /// Begins with what a store knew.
    #[must_use]
    pub fn new(options: Options, tracker: Tracker) -> Self {
        Self {
            options,
            tracker,
            reading: Reading::Idle,
            departed: VecDeque::new(),
            in_departed: HashSet::new(),
            suspects: BTreeMap::new(),
            limits: Limits::default(),
            requests: Requests::default(),
            sudden: HashSet::new(),
            witness: None,
            hollow_in_front: None,
            postponed: false,
            page_size: 0,
            total: None,
            readings: Readings::default(),
            rest_until: None,
            vain_in_a_row: 0,
            surplus_in_a_row: 0,
        }
    }

    /// Takes over that another engine read the whole result so long `ago`, and that what the store knew
    /// is what its polls have counted since.
    pub fn resume(&mut self, total: u64, ago: Duration, now: Instant) {
        self.total = Some(total);
        let last = LastReading {
            sound: true,
            // One that counted some has not been complete.
            unreadable: 0,
            hollow: None,
            next_due: now + self.options.full_read_interval.saturating_sub(ago),
        };
        self.readings.add(last, self.tracker.open(), now);
    }

    /// What the server has been found not to answer, for an engine that goes on.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            pages: self.limits.pages.for_another(),
            ..self.limits
        }
    }

    /// Goes on with what another engine has found the same server not to answer.
    pub fn respect(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The known alerts.
    #[must_use]
    pub fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    /// When the oldest known alert was created, in seconds since the epoch.
    pub fn oldest(&mut self) -> Option<i64> {
        self.tracker.oldest()
    }

    /// `totalResults` of the last answer.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// Whether the known alerts are the whole result, as far as anybody can tell.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_sound() && self.total == Some(self.tracker.open() as u64)
    }

    /// Whether what the last reading has not shown is not in the result, as far as the totals tell.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.readings.is_sound()
    }

    /// The page at which the last reading ended, where that showed nothing of what there was: once, as long as
    /// readings end there.
    pub(crate) fn hollow_to_tell(&mut self) -> Option<Hollow> {
        let hollow = self.readings.last.as_ref()?.hollow;
        let page = hollow.map(|hollow| hollow.page);
        let told = std::mem::replace(&mut self.readings.hollow_told, page);
        hollow.filter(|_| told != page)
    }

    /// How often the whole result has been read.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.readings.whole
    }

    /// Whether what there is now has been in sight, as far as it ever will be: the result was read
    /// whole, or gone through twice where it showed nothing, or less than it counts, and more often where
    /// a page showed nothing of what it counts.
    #[must_use]
    pub fn has_gone_through(&self) -> bool {
        self.readings.has_gone_through
    }

    /// Notes that a request is sent. What is learned from other answers before its own comes is newer.
    pub fn asked(&mut self, purpose: &Purpose) {
        self.requests.begin(purpose);
    }

    /// Notes that a request has failed, or that its answer could not be [adopted](Engine::adopt).
    pub fn unanswered(&mut self, purpose: &Purpose) {
        self.requests.end(purpose);
    }

    /// What a page changes. Store what follows, then [`Engine::adopt`] it; or the other way round,
    /// where [`Engine::ahead`] allows it.
    #[must_use]
    pub fn compare(&self, purpose: &Purpose, page: &[Sighting<'_>]) -> Delta {
        let overtaken = self.requests.overtaken(purpose);
        let mut delta = self.tracker.compare(page, |id| {
            overtaken.is_some_and(|overtaken| overtaken.has(id))
        });
        if let Purpose::Confirm(question) = purpose {
            if !question.is_answered_by(page) {
                return Delta::default();
            }
            // All that were asked for are known, or have left meanwhile.
            delta.opened.clear();
            // A server may look at nothing but the ids: then a change is how one looks that has left.
            if self.is_sound() {
                delta.changed.clear();
            } else {
                let changed = &mut delta.changed;
                changed.retain(|(place, _)| !self.may_have_left(&page[*place]));
            }
        }
        delta
    }

    /// The alerts of a page that left and have opened anew since, before their departures were stored:
    /// these come first ([`Engine::adopt_departures`]), and then the page is compared again. `created_at`
    /// tells of a place on the page when its alert was created.
    #[must_use]
    pub fn opened_anew(
        &self,
        page: &[Sighting<'_>],
        delta: &Delta,
        created_at: impl Fn(usize) -> Option<i64>,
    ) -> Vec<Box<str>> {
        let known = delta.changed.iter().chain(&delta.refreshed);
        known
            .map(|(place, _)| (page[*place].id, *place))
            .filter(|(id, place)| self.tracker.left_before(id, created_at(*place)))
            .map(|(id, _)| id.into())
            .collect()
    }

    /// Takes over a page whose changes have been stored.
    pub fn adopt(
        &mut self,
        purpose: &Purpose,
        facts: &Facts,
        page: &[Sighting<'_>],
        delta: &Delta,
        known: Vec<Known<'_>>,
        now: Instant,
    ) -> Next {
        let before = (facts.page - 1).saturating_mul(self.page_size);
        let reached = before.saturating_add(facts.shown as u64) >= facts.total;
        if facts.tells_size(Some(self.page_size), reached) {
            self.page_size = facts.page_size;
        } else if facts.shown > 0 {
            self.page_size = self.page_size.max(facts.page_size);
        }
        let (overtaken, other) = self.requests.end(purpose);
        if let Some(other) = other {
            other.answered = true;
            for alert in &known {
                other.note(alert.sighting.id);
            }
        }
        // One that has been found gone since is not brought back by an answer from before.
        let is_gone = |sighting: &Sighting<'_>| {
            overtaken.has(sighting.id) && self.tracker.leaving(sighting.id).is_some()
        };
        let mut current = Cow::Borrowed(page);
        if page.iter().any(is_gone) {
            current.to_mut().retain(|sighting| !is_gone(sighting));
        }
        match purpose {
            Purpose::Poll => self.adopt_poll(facts, &current, delta, known, &overtaken, now),
            Purpose::FullRead => {
                if !overtaken.answered && !facts.is_hollow() {
                    self.total = Some(facts.total);
                }
                self.tracker.adopt(known, &current);
                if self.is_hollow_for_once(facts, now) {
                    // It is not asked for again at once: a moment later it would hardly be otherwise.
                    if self.wants(facts.page) {
                        self.reading = Reading::Idle;
                        self.postponed = true;
                    }
                } else {
                    self.adopt_full(facts, now);
                }
                Next::Done
            }
            Purpose::Confirm(question) => {
                // What a sound reading missed, only a reading can bring back into sight.
                let tells = !self.is_sound() && question.is_answered_by(page);
                let counts = |sighting: &Sighting<'_>| tells && !self.may_have_left(sighting);
                let seen: Vec<_> = current.iter().copied().filter(counts).collect();
                self.tracker.adopt(known, &seen);
                self.adopt_confirmation(question, facts, page, now);
                Next::Done
            }
        }
    }

    /// Whether a page can be [adopted](Engine::adopt) before its changes are stored, so that the next
    /// one can be asked for and worked off meanwhile: what is needed to [take it
    /// back](Engine::take_back), where that is possible. Only one page may be ahead at a time.
    #[must_use]
    pub fn ahead(
        &self,
        purpose: &Purpose,
        facts: &Facts,
        page: &[Sighting<'_>],
        delta: &Delta,
    ) -> Option<Ahead> {
        let Reading::Pages { read, .. } = &self.reading else {
            return None;
        };
        let only_opens = delta.changed.is_empty() && delta.refreshed.is_empty();
        let possible = *purpose == Purpose::FullRead && only_opens && read.goes_on(facts);
        possible.then(|| Ahead {
            read: read.clone(),
            opened: delta
                .opened
                .iter()
                .map(|place| page[*place].id.into())
                .collect(),
        })
    }

    /// Takes back a page whose changes could not be stored: its alerts are not known after all, and
    /// it is read again. Nothing may have been adopted since.
    pub fn take_back(&mut self, ahead: Ahead) {
        for id in &ahead.opened {
            self.tracker.forget(id);
        }
        if let Reading::Pages { read, .. } = &mut self.reading {
            *read = ahead.read;
        }
    }

    /// What the background wants to ask next.
    #[must_use]
    pub fn task(&self) -> Option<Task> {
        if self.has_departures() {
            return Some(Task::Reasons(
                self.departed.iter().take(REASONS).cloned().collect(),
            ));
        }
        match &self.reading {
            Reading::Idle => None,
            Reading::Pages { read, .. } => Some(Task::Page(read.page())),
            Reading::Confirming { asked, .. } => Some(Task::Confirm(Arc::clone(asked))),
            Reading::Verifying { queue } => {
                let ids = queue.iter().take(REASONS);
                // Whether pages are found at all, that of one tells who is surely there.
                let witness = self.witness.iter().filter(|_| !self.is_sound());
                Some(Task::Verify(ids.chain(witness).cloned().collect()))
            }
        }
    }

    /// Whether there is a [task](Engine::task), without making it: most tasks hold ids.
    #[must_use]
    pub fn has_task(&self) -> bool {
        self.has_departures() || !matches!(self.reading, Reading::Idle)
    }

    /// How a departed alert stood; `None` where it has come back in the meantime, so that it has
    /// not left after all, or where its departure was stored because it [opened
    /// anew](Engine::opened_anew).
    #[must_use]
    pub fn departing(&self, id: &str) -> Option<Before> {
        self.tracker.leaving(id)
    }

    /// Whether there are departures that have not been taken over.
    #[must_use]
    pub fn has_departures(&self) -> bool {
        !self.departed.is_empty()
    }

    /// Takes over departures that have been stored, or that came to nothing: those of
    /// [`Task::Reasons`] or of [`Engine::opened_anew`].
    pub fn adopt_departures(&mut self, ids: &[Box<str>]) {
        for id in ids {
            if self.tracker.leaving(id).is_some() {
                self.tracker.forget(id);
            }
        }
        for id in ids {
            self.in_departed.remove(id);
        }
        while let Some(id) = self.departed.front()
            && !self.in_departed.contains(id)
        {
            self.departed.pop_front();
        }
        if self.departed.len() > self.in_departed.len() {
            // Some were not the next.
            self.departed.retain(|id| self.in_departed.contains(id));
        }
    }

    /// Whether this is the page that a full read wants next.
    #[must_use]
    pub fn wants(&self, page: u64) -> bool {
        matches!(&self.reading, Reading::Pages { read, .. } if read.page() == page)
    }

    /// Whether a full read is under way.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        matches!(self.reading, Reading::Pages { .. })
    }

    /// Has the full read under way begin anew: its pages are of another size from now on.
    pub fn read_anew(&mut self, now: Instant) {
        if self.is_reading() {
            self.begin_full_read(now);
        }
    }

    /// The server does not show the page that a full read [wants](Engine::wants), whenever it is asked for it: it
    /// shows no more of a result than so much, or fails there. Polls ask for it now and then until it comes.
    pub fn page_refused(&mut self, page: u64, now: Instant) {
        let Reading::Pages { read, begun } = &self.reading else {
            return;
        };
        if read.page() != page {
            // It was asked for by a reading before, or before a page was taken back.
            return;
        }
        self.limits.pages.refuse(page, now);
        let took = now - *begun;
        let ending = Ending {
            sound: false,
            unreadable: read.unreadable(),
            hollow: None,
        };
        self.reading = Reading::Idle;
        self.rest_until = Some(now + self.rest(true, took));
        self.finish_reading(ending, None, now);
    }

    /// The page at which the last full read ended, as the server does not show it.
    #[must_use]
    pub fn refused(&self) -> Option<u64> {
        self.limits.pages.refused()
    }

    /// Whether polls go without this page, as the last full read was refused it or one before.
    #[must_use]
    pub fn is_refused(&self, page: u64) -> bool {
        self.limits.pages.is_refused(page)
    }

    /// A poll wanted this further page and has not learned what is on it. The next one tries it once at its end,
    /// where it does not go as far anyway: also where the count adds up, as nothing but changes may be on it.
    pub fn page_missed(&mut self, page: u64) {
        self.limits.pages.miss(page);
    }

    /// Whether a poll has not learned what is on a further page, and none has tried it to the end since.
    #[must_use]
    pub fn misses_a_page(&self) -> bool {
        self.limits.pages.misses_one()
    }

    /// A further page that a poll has asked for did not come, after so long. Brings whether it was only to see
    /// whether it comes by now; else it is [missed](Engine::page_missed).
    pub fn page_failed(&mut self, page: u64, took: Duration, now: Instant) -> bool {
        self.limits.pages.failed(page, took, now)
    }

    /// Whether there is such a page, and a poll that has read so far may ask for another one.
    fn can_try(&self, page: u64, facts: &Facts) -> bool {
        page <= facts.pages() && facts.page < self.options.max_poll_pages
    }

    /// Failures have held up the full read since then: that is no work, which a rest would have to follow.
    pub fn held_up(&mut self, since: Instant, now: Instant) {
        if let Reading::Pages { begun, .. } = &mut self.reading {
            *begun += now.saturating_duration_since(since.max(*begun));
        }
    }

    fn adopt_poll(
        &mut self,
        facts: &Facts,
        page: &[Sighting<'_>],
        delta: &Delta,
        known: Vec<Known<'_>>,
        overtaken: &Overtaken,
        now: Instant,
    ) -> Next {
        if facts.is_hollow() {
            return self.poll_found_nothing(facts, now);
        }
        self.total = Some(facts.total);
        if self.is_hollow_for_once(facts, now) {
            self.sudden.clear();
            return Next::Done;
        }
        if self.is_refused(facts.page) {
            // It is shown again: what waited for that is read now.
            self.limits.pages.is_shown();
            self.rest_until = None;
        }
        self.limits.pages.came(facts.page);
        if facts.is_whole() {
            self.tracker.begin_reading();
            self.tracker.adopt(known, page);
            self.remember_witness(page);
            self.reading = Reading::Idle;
            // One that is shown twice stands in another one's place.
            let sound = (self.tracker.seen() + facts.unreadable) as u64 >= facts.total;
            let ending = Ending {
                sound,
                unreadable: facts.unreadable,
                hollow: None,
            };
            self.finish_reading(ending, Some(overtaken), now);
            return Next::Done;
        }
        self.sudden.clear();
        if facts.page == 1 && facts.shown > 0 {
            self.remember_witness(page);
        }
        let knew_nothing = self.tracker.is_empty();
        let idle = matches!(self.reading, Reading::Idle);
        if facts.page == 1 && idle && (knew_nothing || self.postponed || self.is_due(now)) {
            // The poll's first page is the full read's first page as well.
            self.begin_full_read(now);
            self.tracker.adopt(known, page);
            self.adopt_full(facts, now);
        } else {
            self.tracker.adopt(known, page);
        }
        let news = !delta.opened.is_empty() || !delta.tail_unchanged;
        let accounted = self.counted() == facts.total && delta.tail_unchanged;
        if let Some(next) = facts.next.filter(|page| !self.is_refused(*page))
            && news
            && !accounted
            && !knew_nothing
        {
            if facts.page < self.options.max_poll_pages {
                return Next::Page(next);
            }
            // More news than a poll can read: the background reads it all.
            if matches!(self.reading, Reading::Idle) {
                self.begin_full_read(now);
            }
            return Next::Done;
        }
        self.compare_count(facts, delta, now);
        if knew_nothing {
            return Next::Done;
        }
        let wanted = self.out_of_sight(facts, news, accounted, now);
        wanted.map_or(Next::Done, Next::Page)
    }

    /// The page out of sight that a poll is to ask for at its end.
    fn out_of_sight(
        &mut self,
        facts: &Facts,
        news: bool,
        accounted: bool,
        now: Instant,
    ) -> Option<u64> {
        let (next, interval) = (facts.next?, self.options.interval);
        let pages = &mut self.limits.pages;
        let (again, trial) = (
            pages.second_try(next),
            pages.trial(next, news, interval, now),
        );
        let can_try = |page: &u64| self.can_try(*page, facts);
        let trial = trial.filter(|_| !accounted).filter(can_try);
        again.filter(can_try).or(trial)
    }

    /// Whether a first page shows nothing of what it counts, and none was like that a while before. It may be for
    /// a moment: so it begins no reading and ends none, which would have everybody asked for. A later one does,
    /// as some count for ever what they do not show.
    fn is_hollow_for_once(&mut self, facts: &Facts, now: Instant) -> bool {
        if facts.page > 1 {
            return false;
        }
        if !facts.is_hollow_in_front() {
            self.hollow_in_front = None;
            return false;
        }
        let since = *self.hollow_in_front.get_or_insert(now);
        now.saturating_duration_since(since) < self.options.interval / 2
    }

    /// A poll's further page came and shows nothing. What it counts is not believed, nor that nothing is there: it
    /// is as one that failed, but for the poll.
    fn poll_found_nothing(&mut self, facts: &Facts, now: Instant) -> Next {
        if !self.page_failed(facts.page, Duration::ZERO, now) {
            self.poll_cut_short(now);
        }
        Next::Done
    }

    /// A poll ended before a further page that it wanted, as the server did not show it. Whether it goes on doing
    /// so is the background's to find out: at once where the count has a full read begin anyway, else after
    /// several polls in a row, for a failure that passes is made good by the next poll.
    pub fn poll_cut_short(&mut self, now: Instant) {
        let Some(total) = self.total else { return };
        self.surplus_in_a_row += 1;
        let wanted = total < self.counted() || self.surplus_in_a_row >= PATIENCE;
        self.read_if(wanted, now);
    }

    /// Looks at the count at the end of a poll: has anything left, or is anything not known?
    fn compare_count(&mut self, facts: &Facts, delta: &Delta, now: Instant) {
        let quiet = facts.page == 1 && delta.opened.is_empty();
        let wanted = match facts.total.cmp(&self.counted()) {
            std::cmp::Ordering::Equal => {
                self.surplus_in_a_row = 0;
                self.is_in_doubt()
            }
            std::cmp::Ordering::Less => true,
            // While alerts are opening, the total runs ahead of what was read; it is only if it
            // stays ahead that there is something further down.
            std::cmp::Ordering::Greater => {
                self.surplus_in_a_row += if quiet { PATIENCE } else { 1 };
                self.surplus_in_a_row >= PATIENCE
            }
        };
        self.read_if(wanted, now);
    }

    /// Whether the last reading did not show everything and another one may, however the count adds up: behind
    /// what the server refuses none does.
    fn is_in_doubt(&self) -> bool {
        self.readings.last.is_some() && !self.is_sound() && self.limits.pages.refused().is_none()
    }

    /// What the total is where nothing has changed since.
    fn counted(&self) -> u64 {
        self.tracker.open() as u64 + self.readings.unreadable()
    }

    /// Begins a full read for what a poll has told, unless one is under way or it is too early for another.
    fn read_if(&mut self, wanted: bool, now: Instant) {
        let rested = self.rest_until.is_none_or(|until| now >= until);
        if matches!(self.reading, Reading::Idle) && wanted && rested {
            self.begin_full_read(now);
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let last = self.readings.last.as_ref();
        last.is_none_or(|last| now >= last.next_due)
    }

    fn begin_full_read(&mut self, now: Instant) {
        self.begin(FullRead::new(), now);
    }

    fn begin(&mut self, read: FullRead, now: Instant) {
        self.tracker.begin_reading();
        self.surplus_in_a_row = 0;
        self.postponed = false;
        self.reading = Reading::Pages { read, begun: now };
    }

    fn adopt_full(&mut self, facts: &Facts, now: Instant) {
        let seen = self.tracker.seen();
        let Reading::Pages { read, begun } = &mut self.reading else {
            return;
        };
        if facts.page != read.page() {
            // The answer to a question that has been overtaken.
            return;
        }
        let pages = &mut self.limits.pages;
        if pages.is_refused(facts.page) && !facts.is_hollow() {
            pages.is_shown();
        }
        match read.read(facts, seen) {
            Flow::Continue => {}
            Flow::Restart => {
                let read = read.restarted();
                self.begin(read, now);
            }
            Flow::End { sound } => {
                let took = now - *begun;
                let unreadable = read.unreadable();
                let hollow = read.hollow().filter(|_| !sound);
                self.reading = Reading::Idle;
                let nothing_is_missing = self.tracker.seen() == self.tracker.open();
                let adds_up = (self.tracker.open() + unreadable) as u64 == facts.total;
                let in_vain = !sound || nothing_is_missing && !adds_up;
                self.rest_until = Some(now + self.rest(in_vain, took));
                let ending = Ending {
                    sound,
                    unreadable,
                    hollow,
                };
                self.finish_reading(ending, None, now);
            }
        }
    }

    /// How long to leave the allowance alone after a full read: as long as it took, and longer
    /// each time that the totals did not add up.
    fn rest(&mut self, in_vain: bool, took: Duration) -> Duration {
        self.vain_in_a_row = if in_vain { self.vain_in_a_row + 1 } else { 0 };
        let factor = 1u32 << self.vain_in_a_row.min(10);
        (took.max(self.options.interval) * factor).min(self.options.full_read_interval)
    }

    /// The result has been gone through. `poll`: by one answer, which cannot have missed anyone, and what has
    /// overtaken it.
    fn finish_reading(&mut self, ending: Ending, poll: Option<&Overtaken>, now: Instant) {
        let Ending {
            sound,
            unreadable,
            hollow,
        } = ending;
        let last = LastReading {
            sound,
            unreadable: unreadable as u64,
            hollow,
            next_due: now + self.options.full_read_interval,
        };
        self.readings.add(last, self.tracker.seen(), now);
        self.postponed = false;
        let mut missing = self.tracker.missing();
        if !sound {
            missing.truncate(UNSEEN);
            self.ask_for(missing, now);
            return;
        }
        let tracker = &self.tracker;
        self.suspects.retain(|id, _| tracker.is_missing(id));
        // It ended before the page that was refused or missed, or has read it.
        self.limits.pages = OutOfSight::default();
        let sudden = std::mem::take(&mut self.sudden);
        match poll {
            Some(overtaken) if unreadable == 0 => {
                if missing.len() > SUDDEN.max(self.tracker.seen()) {
                    self.sudden = missing.iter().cloned().collect();
                    missing.retain(|id| sudden.contains(id));
                }
                missing.retain(|id| !overtaken.has(id));
                self.set_departing(missing);
            }
            _ => self.ask_for(missing, now),
        }
    }

    /// Sets alerts that have left aside: what follows asks for their reasons and stores their departures.
    fn set_departing(&mut self, ids: Vec<Box<str>>) {
        for id in ids {
            self.requests.note(&id);
            self.tracker.set_leaving(&id);
            // One that came back and left again may still wait for its first departure.
            if self.in_departed.insert(id.clone()) {
                self.departed.push_back(id);
            }
        }
    }

    /// The last alert of the first page that can be asked for: in the result, and not likely to be the next to
    /// leave it.
    fn remember_witness(&mut self, page: &[Sighting<'_>]) {
        let mut ids = page.iter().rev().map(|sighting| sighting.id);
        self.witness = ids.find(|id| can_be_asked_for(id)).map(Into::into);
    }
}

// === impl Readings ===

impl Readings {
    /// Adds one that has ended now, and has shown so many alerts.
    fn add(&mut self, last: LastReading, shown: usize, now: Instant) {
        if last.hollow.is_some() {
            self.hollow_in_a_row.get_or_insert((now, 0)).1 += 1;
        } else {
            self.hollow_in_a_row = None;
            self.count += 1;
        }
        self.whole += u64::from(last.sound);
        let is_seen = last.sound && shown > 0;
        let is_hollow = self.hollow_in_a_row.is_some_and(|(since, count)| {
            count >= HOLLOW_IN_A_ROW && now.saturating_duration_since(since) >= HOLLOW
        });
        self.has_gone_through |= is_seen || self.count > 1 || is_hollow;
        self.last = Some(last);
    }

    /// Whether there was one, and the last one was sound.
    fn is_sound(&self) -> bool {
        self.last.as_ref().is_some_and(|last| last.sound)
    }

    fn unreadable(&self) -> u64 {
        self.last.as_ref().map_or(0, |last| last.unreadable)
    }
}

#[cfg(test)]
mod tests;
