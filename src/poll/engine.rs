//! How far to read, and who has left: decided from answers alone, without I/O and without a clock.
//!
//! Two activities share the known alerts. A *poll* reads the head of the result, newest first, as
//! far as there is news. The *background* reads the whole result now and then, and asks whether
//! the alerts that it missed have really left, and why. The caller sends the requests, stores the
//! changes, and then has the engine adopt them.
//!
//! A *reading* is one pass over the whole result: a full read, or a poll whose only page is the
//! whole result. It is *sound* if, as far as the totals tell, it missed no alert. A page is
//! *hollow* if it shows nothing although the result counts alerts that must be on it. A *witness*
//! is an alert that is surely in the result: a question by id that does not show it proves
//! nothing. An alert's *own page* is the API's document of that one alert.

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

use self::{
    confirmation::Short,
    out_of_sight::OutOfSight,
    overtaken::{Ids, Overtaken, Requests},
};
pub use self::{
    confirmation::{Question, can_be_asked_for},
    out_of_sight::FailedPage,
};
use super::full_read::{Facts, Flow, FullRead, Hollow, Shortfall};
use crate::track::{Delta, KnownAlert, KnownState, Sighting, Tracker};

/// Maximum number of alerts asked for by id after a reading that did not show everything.
const UNSEEN: usize = 5_000;
/// Maximum number of alerts whose own pages are asked for in one task, not counting the witness.
const REASONS: usize = 20;
/// Number of polls in a row that must count more alerts than are known, while alerts are opening,
/// before the whole result is read.
const SURPLUS_POLLS: u32 = 3;
/// Minimum time between the first and the last of several readings in a row that end at a hollow
/// page, before the result counts as gone through. Together with the rest between readings, this
/// is about half an hour: as long as a failing page is retried before a reading ends there.
const HOLLOW: Duration = Duration::from_secs(25 * 60);
/// Minimum number of these readings, because an outage may lie between two of them.
const HOLLOW_IN_A_ROW: u32 = 4;
/// Number of readings in a row that show less than they count before that is told. Once or twice,
/// alerts may have left and others entered in just that moment.
const SHORTFALLS: u32 = 3;
/// If an answer lacks more known alerts than this, and more than it shows, a second answer must
/// agree: a mass closing is rarer than a server that shows nothing for a moment.
const SUDDEN: usize = 20;

/// Settings of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How often a result that is longer than a page is read whole.
    pub full_read_interval: Duration,
    /// Time between two polls.
    pub interval: Duration,
    /// Maximum number of pages that one poll reads; the rest is left to the background.
    pub max_poll_pages: u64,
    /// Whether the query is for one status, so that an alert with another status is not in the
    /// result.
    pub has_one_status: bool,
}

/// Why a page was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A poll.
    Poll,
    /// A full read.
    FullRead,
    /// A question by id: which of these alerts are still in the result, beside a witness that
    /// surely is.
    Confirm(Arc<Question>),
}

/// What the background wants to ask next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// A page of the search.
    Page(u64),
    /// A page of the search, restricted to some ids.
    Confirm(Arc<Question>),
    /// Own pages of alerts that full reads missed, to see whether their status has changed.
    Verify(Vec<Box<str>>),
    /// Own pages of alerts that left, for the reasons.
    Reasons(Vec<Box<str>>),
}

/// Whether a poll goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Yes, with this page.
    Page(u64),
    /// No, the poll is done.
    Done,
}

/// What the readings of the result have told so far.
#[derive(Debug, Default)]
struct ReadingHistory {
    last: Option<Ending>,
    /// When the result is due to be read again.
    next_due: Option<Instant>,
    /// Number of readings that were sound.
    sound: u64,
    /// Number of readings that did not end at a hollow page.
    not_hollow: u64,
    /// When the first of the latest readings in a row that ended at a hollow page ended, and the
    /// number of these readings.
    hollow_in_a_row: Option<(Instant, u32)>,
    /// The hollow page of the last warning; `None` once a reading has ended otherwise.
    hollow_warned: Option<u64>,
    /// Number of the latest readings in a row that had a shortfall.
    shortfalls_in_a_row: u32,
    has_gone_through: bool,
}

/// How a reading has ended.
#[derive(Clone, Copy, Debug, Default)]
struct Ending {
    /// Whether the alerts that the reading did not show are not in the result, as far as the
    /// totals tell.
    sound: bool,
    /// Number of items that could not be read as alerts. The total counts them.
    unreadable: usize,
    /// The page at which the reading ended, if that page was hollow.
    hollow: Option<Hollow>,
    /// What it has not shown, until that is told.
    shortfall: Option<Shortfall>,
}

/// What is needed to take back a page that was adopted before its changes were stored.
#[derive(Debug)]
pub struct Ahead {
    /// The full read, as it was before the page.
    read: FullRead,
    opened: Vec<Box<str>>,
}

/// The requests that a server was found not to answer, whatever alerts there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pages: OutOfSight,
    /// When the server may be asked by id again; `None` if it can be asked by id now.
    confirm_again: Option<Instant>,
    /// Number of readings in a row whose questions by id were not answered.
    unanswered_in_a_row: u32,
}

/// The engine of one search.
#[derive(Debug)]
pub struct Engine {
    options: Options,
    tracker: Tracker,
    background: Background,
    /// Alerts that have left and whose departures have not been stored yet.
    departed: VecDeque<Box<str>>,
    /// The same ids, for look-ups.
    in_departed: HashSet<Box<str>>,
    /// Number of sound full reads in a row that have missed an alert, if the server cannot be
    /// asked by id, or shows the alert when it is asked.
    suspects: BTreeMap<Box<str>, u32>,
    limits: Limits,
    requests: Requests,
    /// Alerts that the last poll lacked, if it lacked most of them. Each of them has left only if
    /// the next poll lacks it, too.
    sudden: HashSet<Box<str>>,
    witness: Option<Box<str>>,
    /// Since when all answers about the first page show nothing, although they count alerts.
    first_page_hollow_since: Option<Instant>,
    /// Whether a full read was given up because its first page showed nothing. The next poll then
    /// begins it anew.
    postponed: bool,
    /// The size of a page, as the server has it.
    page_size: u64,
    total: Option<u64>,
    /// `totalResults` of the last page of a poll.
    poll_total: u64,
    /// How many alerts of a poll's earlier pages may be on later ones again, in front of those that
    /// it has not seen, because the total has risen meanwhile. Less than zero after a page of which
    /// they were only a part.
    poll_risen: i64,
    /// Whether a page of the last poll had items that could not be read.
    poll_has_unreadable: bool,
    /// Alerts that the background has found before any poll. To the first poll that sees them they
    /// are news, because more new alerts may lie behind them.
    ahead_of_polls: Ids,
    history: ReadingHistory,
    /// Time until which a full read has to wait if only the count, or an incomplete reading, asks
    /// for it.
    rest_until: Option<Instant>,
    /// Number of full reads in a row that did not show everything, or after which the totals did
    /// not add up.
    vain_in_a_row: u32,
    surplus_in_a_row: u32,
}

/// What the background is doing.
#[derive(Debug)]
enum Background {
    Idle,
    Reading {
        read: FullRead,
        begun: Instant,
    },
    Confirming {
        queue: VecDeque<Box<str>>,
        asked: Arc<Question>,
        witnesses: u32,
        /// The previous answer, if it counted more alerts than it showed. The current question
        /// then asks for the witness alone.
        short: Option<Short>,
        /// Alerts that answers by id leave open: they were kept back, shown with another status,
        /// or have ids that cannot be asked for. Their own pages are looked at in the end.
        doubted: Vec<Box<str>>,
    },
    Verifying {
        queue: VecDeque<Box<str>>,
    },
}

// === impl Engine ===

impl Engine {
    /// Creates an engine whose known alerts are those in `tracker`.
    #[must_use]
    pub fn new(options: Options, tracker: Tracker) -> Self {
        Self {
            options,
            tracker,
            background: Background::Idle,
            departed: VecDeque::new(),
            in_departed: HashSet::new(),
            suspects: BTreeMap::new(),
            limits: Limits::default(),
            requests: Requests::default(),
            sudden: HashSet::new(),
            witness: None,
            first_page_hollow_since: None,
            postponed: false,
            page_size: 0,
            total: None,
            poll_total: 0,
            poll_risen: 0,
            poll_has_unreadable: false,
            ahead_of_polls: Ids::default(),
            history: ReadingHistory::default(),
            rest_until: None,
            vain_in_a_row: 0,
            surplus_in_a_row: 0,
        }
    }

    /// Takes over from an earlier engine that knew the whole result. That engine read the result
    /// so long `ago`, and its polls have counted as many alerts since as the store knew.
    pub fn resume(&mut self, total: u64, ago: Duration, now: Instant) {
        self.total = Some(total);
        // An engine with unreadable items was not complete, so it would not be resumed.
        let last = Ending {
            sound: true,
            ..Ending::default()
        };
        let next_due = now + self.options.full_read_interval.saturating_sub(ago);
        let shown = self.tracker.open_count();
        self.history.add(last, shown, now, next_due);
    }

    /// Returns what the server was found not to answer, for the engine that takes over.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            pages: self.limits.pages.for_other_engine(),
            ..self.limits
        }
    }

    /// Takes over what another engine has found the same server not to answer.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The known alerts.
    #[must_use]
    pub fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    /// Moves alerts of a page into their own groups, as by [`Tracker::regroup`].
    pub fn regroup<'a>(
        &mut self,
        page: &[Sighting<'_>],
        group_of: impl Fn(usize, &KnownState) -> Option<Vec<Cow<'a, str>>>,
    ) {
        self.tracker.regroup(page, group_of);
    }

    /// When the oldest known alert was created, in seconds since the epoch.
    pub fn oldest(&mut self) -> Option<i64> {
        self.tracker.oldest_created_at()
    }

    /// `totalResults` of the last answer.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// Whether the known alerts are the whole result, as far as the answers tell.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_sound()
            && self.history.unreadable() == 0
            && !self.poll_has_unreadable
            && !self.misses_a_page()
            && self.total == Some(self.tracker.open_count() as u64)
    }

    /// Whether the alerts that the last reading did not show are not in the result, as far as the
    /// totals tell.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.history.is_sound()
    }

    /// Returns the hollow page at which the last reading ended: only once, as long as readings end
    /// at this page.
    pub(crate) fn hollow_to_tell(&mut self) -> Option<Hollow> {
        let hollow = self.history.last.as_ref()?.hollow;
        let page = hollow.map(|hollow| hollow.page);
        let warned = std::mem::replace(&mut self.history.hollow_warned, page);
        hollow.filter(|_| warned != page)
    }

    /// Returns what readings have not shown, though they count it: only once, after several of them
    /// in a row.
    pub(crate) fn shortfall_to_tell(&mut self) -> Option<Shortfall> {
        let is_due = self.history.shortfalls_in_a_row == SHORTFALLS;
        let shortfall = self.history.last.as_mut()?.shortfall.take();
        shortfall.filter(|_| is_due)
    }

    /// Whether there is a witness, whose own page is asked for beside those of others.
    #[must_use]
    pub fn has_witness(&self) -> bool {
        self.witness.is_some()
    }

    /// Returns the number of sound readings so far.
    #[must_use]
    pub fn sound_readings(&self) -> u64 {
        self.history.sound
    }

    /// Whether every alert that the server shows at all has been in sight. True after a sound
    /// reading that showed alerts, after two readings that did not end at a hollow page, or after
    /// `HOLLOW_IN_A_ROW` readings in a row over `HOLLOW` that did.
    #[must_use]
    pub fn has_gone_through(&self) -> bool {
        self.history.has_gone_through
    }

    /// Notes that a request is sent. Until its answer comes, whatever other answers tell counts as
    /// newer than that answer.
    pub fn request_sent(&mut self, purpose: &Purpose) {
        self.requests.begin(purpose);
    }

    /// Notes that a request has failed, or that its answer could not be [adopted](Engine::adopt).
    pub fn request_failed(&mut self, purpose: &Purpose) {
        self.requests.end(purpose);
    }

    /// Returns what a page changes. The caller stores what follows from it, then calls
    /// [`Engine::adopt`]; or the other way round, where [`Engine::ahead`] allows it.
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
            // All suspects are known, or have left meanwhile.
            delta.opened.clear();
            // A server may ignore the query and look at nothing but the ids. Then an alert that
            // has left looks like one that has changed.
            if self.is_sound() {
                delta.changed.clear();
            } else {
                let changed = &mut delta.changed;
                changed.retain(|(place, _)| !self.may_have_left(&page[*place]));
            }
        }
        delta
    }

    /// Returns the alerts of a page that left and opened anew before their departures were stored.
    /// The caller stores these departures first ([`Engine::adopt_departures`]), and then compares
    /// the page again. `created_at` tells when the alert at a place on the page was created, in
    /// seconds since the epoch.
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
            .filter(|(id, place)| self.tracker.has_opened_anew(id, created_at(*place)))
            .map(|(id, _)| id.into())
            .collect()
    }

    /// Adopts a page whose changes have been stored.
    pub fn adopt(
        &mut self,
        purpose: &Purpose,
        facts: &Facts,
        page: &[Sighting<'_>],
        delta: &Delta,
        known: Vec<KnownAlert<'_>>,
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
        if *purpose != Purpose::Poll {
            self.note_ahead_of_polls(page, delta);
        }
        // An alert that was found gone since the request was sent is not brought back by its
        // answer.
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
                if !overtaken.answered && !facts.is_hollow_further_page() {
                    self.total = Some(facts.total);
                }
                self.tracker.adopt(known, &current);
                let is_hollow_for_once = self.note_first_page(facts, now);
                if is_hollow_for_once {
                    // The page is not asked for again at once, because a moment later it would
                    // hardly show more.
                    if self.wants(facts.page) {
                        self.background = Background::Idle;
                        self.postponed = true;
                    }
                } else {
                    self.adopt_full(facts, now);
                }
                Next::Done
            }
            Purpose::Confirm(question) => {
                // If a sound reading has missed an alert, only a reading can bring it back into
                // sight.
                let tells = !self.is_sound() && question.is_answered_by(page);
                let counts = |sighting: &Sighting<'_>| tells && !self.may_have_left(sighting);
                let seen: Vec<_> = current.iter().copied().filter(counts).collect();
                self.tracker.adopt(known, &seen);
                self.adopt_confirmation(question, facts, page, now);
                Next::Done
            }
        }
    }

    /// Whether a page can be [adopted](Engine::adopt) before its changes are stored, so that the
    /// next page can be asked for and processed meanwhile. If so, returns what is needed to [take
    /// the page back](Engine::take_back). Only one page may be ahead at a time.
    #[must_use]
    pub fn ahead(
        &self,
        purpose: &Purpose,
        facts: &Facts,
        page: &[Sighting<'_>],
        delta: &Delta,
    ) -> Option<Ahead> {
        let Background::Reading { read, .. } = &self.background else {
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

    /// Takes back a page whose changes could not be stored. Its alerts are unknown again, and the
    /// page is read once more. Nothing may have been adopted since.
    pub fn take_back(&mut self, ahead: Ahead) {
        for id in &ahead.opened {
            self.tracker.forget(id);
        }
        if let Background::Reading { read, .. } = &mut self.background {
            *read = ahead.read;
        }
    }

    /// Returns what the background wants to ask next.
    #[must_use]
    pub fn task(&self) -> Option<Task> {
        if self.has_departures() {
            return Some(Task::Reasons(
                self.departed.iter().take(REASONS).cloned().collect(),
            ));
        }
        match &self.background {
            Background::Idle => None,
            Background::Reading { read, .. } => Some(Task::Page(read.page())),
            Background::Confirming { asked, .. } => Some(Task::Confirm(Arc::clone(asked))),
            Background::Verifying { queue } => {
                let ids = queue.iter().take(REASONS);
                // The witness is surely there, so its page shows whether alerts' own pages are
                // found at all.
                Some(Task::Verify(ids.chain(&self.witness).cloned().collect()))
            }
        }
    }

    /// Whether there is a [task](Engine::task). Does not make the task, since most tasks hold ids.
    #[must_use]
    pub fn has_task(&self) -> bool {
        self.has_departures() || !matches!(self.background, Background::Idle)
    }

    /// Returns how a departed alert stood before it left. `None` if the alert has come back in the
    /// meantime, so that it has not left after all, or if its departure was stored because the
    /// alert [opened anew](Engine::opened_anew).
    #[must_use]
    pub fn departing(&self, id: &str) -> Option<KnownState> {
        self.tracker.leaving(id)
    }

    /// Whether there are departures that have not been adopted.
    #[must_use]
    pub fn has_departures(&self) -> bool {
        !self.departed.is_empty()
    }

    /// Adopts departures that have been stored, or that came to nothing: those of
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
            // Some of the ids were not at the front of the queue.
            self.departed.retain(|id| self.in_departed.contains(id));
        }
    }

    /// Whether this is the page that a full read wants next.
    #[must_use]
    pub fn wants(&self, page: u64) -> bool {
        matches!(&self.background, Background::Reading { read, .. } if read.page() == page)
    }

    /// Whether a full read is under way.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        matches!(self.background, Background::Reading { .. })
    }

    /// Whether a full read is under way that has not read any page yet.
    #[must_use]
    pub fn begins_reading(&self) -> bool {
        matches!(&self.background, Background::Reading { read, .. } if !read.has_begun())
    }

    /// Begins the full read under way anew, because the size of the pages changes from now on.
    pub fn read_anew(&mut self, now: Instant) {
        if self.is_reading() {
            self.begin_full_read(now);
        }
    }

    /// Notes that the server does not show the page that a full read [wants](Engine::wants),
    /// however often it is asked, and ends the read there. The server shows only the first part of
    /// a result, or fails at this page. Polls ask for the page now and then until it comes.
    pub fn page_refused(&mut self, page: u64, now: Instant) {
        let Background::Reading { read, begun } = &self.background else {
            return;
        };
        if read.page() != page {
            // The page was asked for by an earlier reading, or before a page was taken back.
            return;
        }
        let size = read.page_size().unwrap_or(self.page_size);
        self.limits.pages.note_refused(page, size, now);
        let took = now - *begun;
        let ending = Ending {
            unreadable: read.unreadable(),
            ..Ending::default()
        };
        self.background = Background::Idle;
        self.rest_until = Some(now + self.rest(true, took));
        self.finish_reading(ending, None, now);
    }

    /// The page at which the last full read ended because the server does not show it. It is
    /// numbered as the full read under way numbers its pages.
    #[must_use]
    pub fn refused(&self) -> Option<u64> {
        let size = match &self.background {
            Background::Reading { read, .. } => read.page_size(),
            _ => None,
        };
        self.limits.pages.refused(size.unwrap_or(self.page_size))
    }

    /// Whether polls do not ask for this page, because the server refused it, or a page before it,
    /// to the last full read.
    #[must_use]
    pub fn is_refused(&self, page: u64) -> bool {
        self.limits.pages.is_refused(page)
    }

    /// Notes that a poll wanted this further page and did not learn what is on it. The next poll
    /// that does not go as far tries the page once at its end, even if the count adds up, because
    /// the page may hold nothing but changes.
    pub fn page_missed(&mut self, page: u64) {
        self.limits.pages.note_missed(page);
    }

    /// Whether a poll missed a further page and nothing has read all that was on it since.
    #[must_use]
    pub fn misses_a_page(&self) -> bool {
        self.limits.pages.has_missed()
    }

    /// Whether a poll asks for this page only because an earlier poll missed it.
    #[must_use]
    pub fn is_retry(&self, page: u64) -> bool {
        self.limits.pages.is_retry(page)
    }

    /// Notes that a [retry](Engine::is_retry) was throttled, so that the page was not tried.
    pub fn retry_throttled(&mut self) {
        self.limits.pages.note_throttled_retry();
    }

    /// Notes that a further page of a poll did not come, after the time `took`.
    pub fn page_failed(&mut self, page: u64, took: Duration, now: Instant) -> FailedPage {
        self.limits.pages.note_failed(page, took, now)
    }

    /// Notes that failures have held up the full read from `since` until `now`. That time is not
    /// work, so it does not lengthen the rest after the read.
    pub fn held_up(&mut self, since: Instant, now: Instant) {
        if let Background::Reading { begun, .. } = &mut self.background {
            *begun += now.saturating_duration_since(since.max(*begun));
        }
    }

    fn adopt_poll(
        &mut self,
        facts: &Facts,
        page: &[Sighting<'_>],
        delta: &Delta,
        known: Vec<KnownAlert<'_>>,
        overtaken: &Overtaken,
        now: Instant,
    ) -> Next {
        if facts.is_hollow_further_page() {
            return self.poll_found_nothing(facts, now);
        }
        self.total = Some(facts.total);
        let is_hollow_for_once = self.note_first_page(facts, now);
        if is_hollow_for_once {
            self.sudden.clear();
            return Next::Done;
        }
        self.compare_with_page_before(facts);
        self.limits.pages.note_page(facts);
        let had_unreadable = facts.page > 1 && self.poll_has_unreadable;
        self.poll_has_unreadable = had_unreadable || facts.unreadable > 0;
        if self.is_refused(facts.page) {
            // The server shows the page again, so a full read that was resting may begin.
            self.limits.pages.forget_refused();
            self.rest_until = None;
        }
        if facts.is_whole() {
            self.adopt_whole(facts, page, known, overtaken, now);
            return Next::Done;
        }
        self.sudden.clear();
        if facts.page == 1 && facts.shown > 0 {
            self.remember_witness(page);
        }
        // One empty answer may be a server's mistake.
        let is_known_empty = self.is_sound() && self.has_gone_through();
        let knew_nothing = self.tracker.is_empty() && !is_known_empty;
        let idle = matches!(self.background, Background::Idle);
        if facts.page == 1 && idle && (knew_nothing || self.postponed || self.is_due(now)) {
            // The poll's first page is also the first page of the full read.
            self.begin_full_read(now);
            self.tracker.adopt(known, page);
            self.adopt_full(facts, now);
        } else {
            self.tracker.adopt(known, page);
        }
        let is_news_to_polls = self.meet_ahead_of_polls(page);
        let is_new = !delta.opened.is_empty() || !delta.tail_unchanged || is_news_to_polls;
        let news = is_new || self.is_pushed_on(facts);
        let accounted = self.expected_total() == facts.total && delta.tail_unchanged;
        let enough = accounted || !is_news_to_polls && self.only_lacks_departed(facts, delta);
        if let Some(next) = facts.next.filter(|page| !self.is_refused(*page))
            && news
            && !enough
            && !knew_nothing
        {
            if facts.page < self.options.max_poll_pages {
                return Next::Page(next);
            }
            // There is more news than a poll can read, so the background reads the whole result.
            if matches!(self.background, Background::Idle) {
                self.begin_full_read(now);
            }
            return Next::Done;
        }
        self.compare_count(facts, delta, now);
        if knew_nothing {
            return Next::Done;
        }
        let wanted = self.begin_trial(facts, news, accounted, now);
        wanted.map_or(Next::Done, Next::Page)
    }

    /// Adopts an answer of a poll that is the whole result.
    fn adopt_whole(
        &mut self,
        facts: &Facts,
        page: &[Sighting<'_>],
        known: Vec<KnownAlert<'_>>,
        overtaken: &Overtaken,
        now: Instant,
    ) {
        self.tracker.begin_reading();
        self.tracker.adopt(known, page);
        self.remember_witness(page);
        self.background = Background::Idle;
        self.ahead_of_polls.clear();
        // Seen alerts are counted once each: if a page shows an alert twice, another one is
        // missing.
        let sound = (self.tracker.seen_count() + facts.unreadable) as u64 >= facts.total;
        let ending = Ending {
            sound,
            unreadable: facts.unreadable,
            ..Ending::default()
        };
        self.finish_reading(ending, Some(overtaken), now);
    }

    /// Returns the page out of sight that a poll asks for at its end. Each missed place is retried
    /// once. If the poll would end before the first of them, this call uses up its retry.
    fn begin_trial(
        &mut self,
        facts: &Facts,
        news: bool,
        accounted: bool,
        now: Instant,
    ) -> Option<u64> {
        let (next, interval) = (facts.next?, self.options.interval);
        if facts.page >= self.options.max_poll_pages {
            return None;
        }
        let pages = &mut self.limits.pages;
        let (again, trial) = (
            pages.begin_retry(next, now),
            pages.due_trial(next, news, interval, now),
        );
        let exists = |page: &u64| *page <= facts.pages();
        let trial = trial.filter(|_| !accounted).filter(exists);
        again.filter(exists).or(trial)
    }

    /// Takes note of what the totals of two pages of a poll tell, or those of two polls.
    fn compare_with_page_before(&mut self, facts: &Facts) {
        let before = std::mem::replace(&mut self.poll_total, facts.total);
        if facts.page == 1 {
            let fewer = before.saturating_sub(facts.total);
            self.limits.pages.begin_poll(fewer);
            self.poll_risen = 0;
            return;
        }
        if facts.total < before {
            // A new alert that has slipped onto the page before and the alert that has left cancel
            // each other in the count.
            self.limits.pages.note_slipped();
        }
        let rise = signed(facts.total.saturating_sub(before));
        // However many alerts have opened, only what was read can come again.
        let read = signed((facts.page - 1).saturating_mul(facts.page_size));
        self.poll_risen = self.poll_risen.saturating_add(rise).min(read);
    }

    /// Whether a page without news may show nothing but what the poll has seen on earlier pages,
    /// because alerts have opened since. Less than a page of them counts as one: as many more may
    /// have opened as have left. Only the next page of them counts again, or a poll would never
    /// end where alerts open all the time.
    fn is_pushed_on(&mut self, facts: &Facts) -> bool {
        let is_pushed_on = self.poll_risen > 0;
        if is_pushed_on {
            self.poll_risen -= signed(facts.page_size.max(1));
        }
        is_pushed_on
    }

    /// Whether a poll can end at its first page although the count does not add up: alerts have
    /// left, and a full read follows in any case. If something is in doubt, the full read may have
    /// to rest first.
    fn only_lacks_departed(&self, facts: &Facts, delta: &Delta) -> bool {
        facts.page == 1
            && delta.tail_unchanged
            && self.expected_total() > facts.total
            && !self.limits.pages.has_given_up()
    }

    /// Notes which alerts an answer to the background has opened. The first reading opens all of
    /// them; polls leave them to it.
    fn note_ahead_of_polls(&mut self, page: &[Sighting<'_>], delta: &Delta) {
        let most = self.options.max_poll_pages.saturating_mul(self.page_size);
        if self.history.last.is_some() && (self.ahead_of_polls.len() as u64) < most {
            for place in &delta.opened {
                self.ahead_of_polls.insert(page[*place].id);
            }
        }
    }

    /// Whether a page of a poll shows alerts that the background has found before any poll. From now
    /// on, a poll has seen these.
    fn meet_ahead_of_polls(&mut self, page: &[Sighting<'_>]) -> bool {
        let mut shows_some = false;
        for sighting in page {
            shows_some |= self.ahead_of_polls.remove(sighting.id);
        }
        shows_some
    }

    /// Notes whether a first page is hollow: it shows nothing although it counts alerts. Returns
    /// true if it is, unless first pages have been hollow for half an interval already. The first
    /// such page may be empty only for a moment, so it neither begins nor ends a reading.
    /// Otherwise all known alerts would be asked for by id. Later ones do, because some servers
    /// always count alerts that they do not show.
    fn note_first_page(&mut self, facts: &Facts, now: Instant) -> bool {
        if facts.page > 1 {
            return false;
        }
        if !facts.is_hollow_first_page() {
            self.first_page_hollow_since = None;
            return false;
        }
        let since = *self.first_page_hollow_since.get_or_insert(now);
        now.saturating_duration_since(since) < self.options.interval / 2
    }

    /// Handles a further page of a poll that shows nothing. Neither its total nor its emptiness is
    /// believed. The page counts as failed; the poll does not.
    fn poll_found_nothing(&mut self, facts: &Facts, now: Instant) -> Next {
        if self.page_failed(facts.page, Duration::ZERO, now) == FailedPage::Missed {
            self.poll_cut_short(now);
        }
        Next::Done
    }

    /// Notes that a poll ended before a further page that it wanted, because the server did not
    /// show it. The background finds out whether the page keeps failing: at once if the count
    /// makes a full read begin anyway, else after several polls in a row, because the next poll
    /// makes up for a failure that passes.
    pub fn poll_cut_short(&mut self, now: Instant) {
        let Some(total) = self.total else { return };
        self.surplus_in_a_row += 1;
        let wanted = total < self.expected_total() || self.surplus_in_a_row >= SURPLUS_POLLS;
        self.begin_full_read_if(wanted, now);
    }

    /// Compares the total with the known alerts at the end of a poll: has an alert left, or is one
    /// unknown?
    fn compare_count(&mut self, facts: &Facts, delta: &Delta, now: Instant) {
        let quiet = facts.page == 1 && delta.opened.is_empty();
        let wanted = match facts.total.cmp(&self.expected_total()) {
            std::cmp::Ordering::Equal => {
                self.surplus_in_a_row = 0;
                self.ahead_of_polls.clear();
                self.is_in_doubt()
            }
            std::cmp::Ordering::Less => true,
            // While alerts are opening, the total runs ahead of what was read. There is something
            // further down only if the total stays ahead.
            std::cmp::Ordering::Greater => {
                self.surplus_in_a_row += if quiet { SURPLUS_POLLS } else { 1 };
                self.surplus_in_a_row >= SURPLUS_POLLS
            }
        };
        self.begin_full_read_if(wanted, now);
    }

    /// Whether there may be something that only another reading shows, however the count adds up:
    /// the last reading did not show everything, polls have given up a page, or items have become
    /// unreadable since. If the server refuses a page, no reading shows what is behind it.
    fn is_in_doubt(&self) -> bool {
        let has_become_unreadable = self.poll_has_unreadable && self.history.unreadable() == 0;
        let lacks = !self.is_sound() || self.limits.pages.has_given_up() || has_become_unreadable;
        lacks && self.refused().is_none()
    }

    /// The total to be expected: the open alerts that are known, and the items that the last
    /// reading could not read.
    fn expected_total(&self) -> u64 {
        self.tracker.open_count() as u64 + self.history.unreadable()
    }

    /// Begins a full read if a poll has shown that it is `wanted`, unless one is under way or it
    /// is too early for another.
    fn begin_full_read_if(&mut self, wanted: bool, now: Instant) {
        let rested = self.rest_until.is_none_or(|until| now >= until);
        if matches!(self.background, Background::Idle) && wanted && rested {
            self.begin_full_read(now);
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.history.next_due.is_none_or(|due| now >= due)
    }

    fn begin_full_read(&mut self, now: Instant) {
        self.begin(FullRead::new(), now);
    }

    fn begin(&mut self, read: FullRead, now: Instant) {
        self.tracker.begin_reading();
        self.limits.pages.full_read_begins();
        self.surplus_in_a_row = 0;
        self.background = Background::Reading { read, begun: now };
    }

    fn adopt_full(&mut self, facts: &Facts, now: Instant) {
        let seen = self.tracker.seen_count();
        let Background::Reading { read, begun } = &mut self.background else {
            return;
        };
        if facts.page != read.page() {
            // The reading no longer waits for this page.
            return;
        }
        let flow = read.read(facts, seen);
        let size = read.page_size().unwrap_or(facts.page_size);
        let pages = &mut self.limits.pages;
        let refused = pages.refused(size).filter(|_| flow != Flow::Restart);
        if refused.is_some_and(|refused| facts.page >= refused) && !facts.is_hollow_further_page() {
            pages.forget_refused();
        }
        match flow {
            Flow::Continue => {}
            Flow::Restart => {
                let read = read.restarted();
                self.begin(read, now);
            }
            Flow::End { sound } => {
                let took = now - *begun;
                let unreadable = read.unreadable();
                let hollow = read.hollow().filter(|_| !sound);
                let known = (self.tracker.open_count() + unreadable) as u64;
                // A known alert that repeats may move to a page that was read before.
                let shortfall = read.shortfall().filter(|_| known < facts.total);
                self.background = Background::Idle;
                let nothing_is_missing = self.tracker.seen_count() == self.tracker.open_count();
                let adds_up = known == facts.total;
                let in_vain = !sound || nothing_is_missing && !adds_up;
                self.rest_until = Some(now + self.rest(in_vain, took));
                let ending = Ending {
                    sound,
                    unreadable,
                    hollow,
                    shortfall,
                };
                self.finish_reading(ending, None, now);
            }
        }
    }

    /// Returns how long the background leaves the allowance alone after a full read: as long as
    /// the read took, and longer each time that the totals did not add up.
    fn rest(&mut self, in_vain: bool, took: Duration) -> Duration {
        self.vain_in_a_row = if in_vain { self.vain_in_a_row + 1 } else { 0 };
        let factor = 1u32 << self.vain_in_a_row.min(10);
        (took.max(self.options.interval) * factor).min(self.options.full_read_interval)
    }

    /// Ends a reading of the result. `poll`: what has overtaken the poll's answer, if one answer
    /// of a poll was the whole result; such an answer cannot have missed an alert.
    fn finish_reading(&mut self, ending: Ending, poll: Option<&Overtaken>, now: Instant) {
        let next_due = now + self.options.full_read_interval;
        let shown = self.tracker.seen_count();
        self.history.add(ending, shown, now, next_due);
        self.postponed = false;
        let tracker = &self.tracker;
        self.suspects.retain(|id, _| tracker.is_missing(id));
        let mut missing = tracker.missing();
        if !ending.sound {
            missing.truncate(UNSEEN);
            self.ask_for(missing, now);
            return;
        }
        // The reading has read the page that was refused or missed, or the result ended before it.
        match poll {
            Some(_) => self.limits.pages.forget(),
            None => self.limits.pages.forget_read(),
        }
        let sudden = std::mem::take(&mut self.sudden);
        match poll {
            Some(overtaken) if ending.unreadable == 0 => {
                if missing.len() > SUDDEN.max(self.tracker.seen_count()) {
                    self.sudden = missing.iter().cloned().collect();
                    missing.retain(|id| sudden.contains(id));
                }
                missing.retain(|id| !overtaken.has(id));
                self.set_departing(missing);
            }
            _ => self.ask_for(missing, now),
        }
    }

    /// Queues alerts that have left. Then their reasons are asked for and their departures stored.
    fn set_departing(&mut self, ids: Vec<Box<str>>) {
        for id in ids {
            self.requests.note(&id);
            self.tracker.mark_leaving(&id);
            // An alert that came back and left again may still be queued for its first departure.
            if self.in_departed.insert(id.clone()) {
                self.departed.push_back(id);
            }
        }
    }

    /// Remembers a witness: the last alert of the first page that can be asked for by id. It is in
    /// the result, and not likely to be the next to leave it.
    fn remember_witness(&mut self, page: &[Sighting<'_>]) {
        let mut ids = page.iter().rev().map(|sighting| sighting.id);
        self.witness = ids.find(|id| can_be_asked_for(id)).map(Into::into);
    }
}

// === impl ReadingHistory ===

impl ReadingHistory {
    /// Adds a reading that has ended now. `shown`: the number of alerts that it has shown.
    /// `next_due`: when the result is due to be read again.
    fn add(&mut self, last: Ending, shown: usize, now: Instant, next_due: Instant) {
        if last.hollow.is_some() {
            self.hollow_in_a_row.get_or_insert((now, 0)).1 += 1;
        } else {
            self.hollow_in_a_row = None;
            self.not_hollow += 1;
        }
        self.shortfalls_in_a_row = match last.shortfall {
            Some(_) => self.shortfalls_in_a_row + 1,
            None => 0,
        };
        self.sound += u64::from(last.sound);
        let is_seen = last.sound && shown > 0;
        let is_hollow = self.hollow_in_a_row.is_some_and(|(since, count)| {
            count >= HOLLOW_IN_A_ROW && now.saturating_duration_since(since) >= HOLLOW
        });
        self.has_gone_through |= is_seen || self.not_hollow > 1 || is_hollow;
        self.last = Some(last);
        self.next_due = Some(next_due);
    }

    /// Whether there was a reading, and the last one was sound.
    fn is_sound(&self) -> bool {
        self.last.as_ref().is_some_and(|last| last.sound)
    }

    fn unreadable(&self) -> u64 {
        self.last.as_ref().map_or(0, |last| last.unreadable as u64)
    }
}

/// A number of alerts, however many a server counts.
fn signed(alerts: u64) -> i64 {
    i64::try_from(alerts).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
