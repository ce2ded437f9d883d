//! What an answer tells: which alerts are new or have changed, and the lines about them. Both are
//! stored before anything is reported.

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::{
    Failure, PAGES_AT_ONCE, Pending, Running, Search, Shared, departures::OwnPage, in_time,
};
use crate::{
    clock,
    health::Notice,
    identity::EventKind,
    opsramp::{Answer, Client, Page, SearchRequest, Urgency, alert::Alert},
    poll::{
        AtFirstStart,
        bodies::Bodies,
        engine::{Ahead, Next, Purpose},
        full_read::Facts,
        reading,
    },
    record::{AlertFields, Happening, Record},
    store::{self, Commit, Held, JournalEvent, StoredAlert},
    track::{Delta, GroupLabel, KnownAlert, KnownState, Sighting},
};

/// Time for which the lines of new alerts may wait for details: those of their own page, and those
/// of the pages that were read before it.
const DETAILS_DEADLINE: Duration = Duration::from_secs(2);
/// Maximum size of the details that are kept for the lines of one page, in bytes.
const DETAILS_BYTES: usize = 16 * 1024 * 1024;

/// For how much longer lines may wait for details. A line waits for the details of all pages before
/// its own, so the pages of a poll share their time, and so do those of a full read.
#[derive(Clone, Copy, Debug)]
pub(super) struct DetailsTime {
    /// Of the poll under way, or else of the next one.
    of_poll: Duration,
    of_read: Duration,
}

/// A page that was adopted before its changes were stored; they are being stored now.
pub(super) struct PendingCommit {
    ahead: Ahead,
    committing: Pending<Result<(), store::Error>>,
    events: u64,
    tally: Tally,
}

/// A commit that the journal had no room for.
pub(super) struct Refused {
    /// The largest number of events of a refused commit, but at most the journal's limit. Once
    /// this many fit, the journal is no longer full.
    events: u64,
    _notice: Notice,
}

/// What the metrics are told once changes are stored.
#[derive(Default)]
struct Tally {
    opened: u64,
    changed: u64,
    /// The time between an alert's creation and its detection, for each alert.
    delays: Vec<Duration>,
}

/// A page, and what else is known of its alerts.
struct Found<'a> {
    page: &'a Page<'a>,
    /// One sighting for each alert.
    sightings: &'a [Sighting<'a>],
    beyond: &'a Beyond,
    /// The own pages of new alerts, by the alerts' places.
    details: &'a HashMap<usize, Alert<'a>>,
    clock_ahead: SignedDuration,
}

/// What is known of a page's alerts beyond the page itself.
struct Beyond {
    /// The ordinals that alerts had reached when they left earlier.
    ordinals: HashMap<Box<str>, u32>,
    /// The own pages of new alerts, with their places.
    details: Vec<(usize, Answer)>,
    /// The stored fields of alerts that have changed, which include what the alerts' own pages
    /// said. By the alerts' places.
    stored: HashMap<usize, AlertFields<'static>>,
}

/// A change that a page shows.
struct Change<'a> {
    /// The alert's place on the page.
    place: usize,
    /// `None`: the change is stored, but is no event.
    kind: Option<EventKind>,
    before: Option<&'a KnownState>,
}

/// What follows from the changes of a page.
struct News<'a> {
    commit: Commit,
    adopted: Vec<KnownAlert<'a>>,
    tally: Tally,
}

// === impl DetailsTime ===

impl DetailsTime {
    pub(super) fn new() -> Self {
        Self {
            of_poll: DETAILS_DEADLINE,
            of_read: DETAILS_DEADLINE,
        }
    }

    /// Notes that a poll has ended.
    pub(super) fn poll_ended(&mut self) {
        self.of_poll = DETAILS_DEADLINE;
    }

    /// Notes that a full read may have begun with an answer of a poll. The lines of that answer
    /// come before those of the read.
    pub(super) fn read_begins(&mut self) {
        self.of_read = self.of_poll;
    }

    /// Returns for how long a page may wait. The answer of a poll waits while a page of a full read
    /// is processed, so such a page takes no more than is left for the poll.
    fn left(self, purpose: &Purpose) -> Duration {
        match purpose {
            Purpose::Poll => self.of_poll,
            Purpose::FullRead | Purpose::Confirm(_) => self.of_poll.min(self.of_read),
        }
    }

    fn spend(&mut self, purpose: &Purpose, spent: Duration) {
        self.of_poll = self.of_poll.saturating_sub(spent);
        if *purpose != Purpose::Poll {
            self.of_read = self.of_read.saturating_sub(spent);
        }
    }
}

// === impl Tally ===

impl Tally {
    /// Counts an event. `age`: that of an alert that has been found for the first time.
    fn add(&mut self, kind: EventKind, age: Option<SignedDuration>) {
        if kind == EventKind::Changed {
            self.changed += 1;
        } else {
            self.opened += 1;
            let delay = age.map(|age| Duration::try_from(age).unwrap_or_default());
            self.delays.extend(delay);
        }
    }
}

// === impl Running ===

impl Running {
    /// Stores and adopts what an answer tells. Returns whether a poll goes on, and the number of
    /// events.
    pub(super) async fn learn(
        &mut self,
        purpose: &Purpose,
        request: &SearchRequest,
        answer: &Answer,
    ) -> Result<(Next, u64), Failure> {
        let include_raw = self.search.shared.record.include_raw;
        let page = match purpose {
            Purpose::Poll | Purpose::FullRead if request.page == 1 => {
                answer.first_page(include_raw)?
            }
            _ => answer.page(request.page, include_raw)?,
        };
        self.search.tell_unreadable(request, &page);
        let sightings = reading::sightings(&page.alerts);
        let facts = Facts::of(request, &page);
        let delta = self.compare(purpose, &page, &sightings).await?;
        let clock_ahead = answer.clock_ahead().filter(is_credible).unwrap_or_default();
        let beyond = self
            .beyond(purpose, &page, &sightings, &delta, clock_ahead)
            .await?;
        let details = beyond.parse_details(&page.alerts);
        let found = Found {
            page: &page,
            sightings: &sightings,
            beyond: &beyond,
            details: &details,
            clock_ahead,
        };
        let now = clock::now();
        let News {
            commit,
            adopted,
            tally,
        } = self.news(&found, changes(&delta), now);
        let events = tally.opened + tally.changed;
        // Only this step has to wait until the page before is stored.
        self.await_commit().await?;
        let ahead = self.engine.ahead(purpose, &facts, &sightings, &delta);
        self.store(commit, tally, ahead, now).await?;
        let readings_before = self.engine.sound_readings();
        let next = self
            .engine
            .adopt(purpose, &facts, &sightings, &delta, adopted, Instant::now());
        self.regroup(&found);
        if self.engine.sound_readings() != readings_before {
            self.search.status.last_full_read = Some(clock::now());
        }
        self.tell_of_what_is_not_shown();
        self.prime().await?;
        Ok((next, events))
    }

    /// Returns what a page changes. If alerts on it have left and opened anew, their departures
    /// are stored first.
    async fn compare(
        &mut self,
        purpose: &Purpose,
        page: &Page<'_>,
        sightings: &[Sighting<'_>],
    ) -> Result<Delta, Failure> {
        let delta = self.engine.compare(purpose, sightings);
        let opened_anew = self.engine.opened_anew(sightings, &delta, |place| {
            let created_at = reading::time(&page.alerts[place].created_date)?;
            Some(created_at.as_second())
        });
        if opened_anew.is_empty() {
            return Ok(delta);
        }
        // A page that was adopted ahead could not be taken back after that.
        self.await_commit().await?;
        // The reason is unknown, because the alerts' own pages now describe the new alerts.
        let left = opened_anew.into_iter().map(|id| (id, OwnPage::Unknown));
        self.store_departures(left.collect()).await?;
        Ok(self.engine.compare(purpose, sightings))
    }

    /// Asks the store and the server what else is known of the alerts that a page changes.
    async fn beyond(
        &mut self,
        purpose: &Purpose,
        page: &Page<'_>,
        sightings: &[Sighting<'_>],
        delta: &Delta,
        clock_ahead: SignedDuration,
    ) -> Result<Beyond, Failure> {
        let (search, held) = (&self.search, self.held);
        let ordinals = if self.has_departed && !delta.opened.is_empty() {
            search.ordinals(held, &delta.opened, sightings).await?
        } else {
            HashMap::new()
        };
        let began = Instant::now();
        let deadline = began + self.details_time.left(purpose);
        let wanted = self.details_wanted(page, delta, clock_ahead);
        let client = self.client(purpose);
        let details = search.details(&client, purpose, &wanted, &page.alerts, deadline);
        let details = search.heartbeat.beat_after(details).await;
        self.details_time.spend(purpose, began.elapsed());
        let stored = search.stored_details(held, delta, sightings).await?;
        Ok(Beyond {
            ordinals,
            details,
            stored,
        })
    }

    /// Returns the places of the new alerts whose details are of use.
    fn details_wanted(
        &self,
        page: &Page<'_>,
        delta: &Delta,
        clock_ahead: SignedDuration,
    ) -> Vec<usize> {
        let search = &self.search;
        if !search.shared.fetch_details || !search.logs(EventKind::Opened) {
            return Vec::new();
        }
        // An alert from before the first start gets no line about its opening, but perhaps others.
        let group_by = self.engine.tracker().group_by();
        let of_use_later = search.logs(EventKind::Changed)
            || search.logs(EventKind::Left)
            || group_by.contains(&GroupLabel::Source);
        let is_of_use = |place: &usize| {
            let created_at = reading::time(&page.alerts[*place].created_date);
            of_use_later || !self.is_before_our_time(created_at, clock_ahead)
        };
        delta.opened.iter().copied().filter(is_of_use).collect()
    }

    /// Stores the changes of a page, if there are any. If the page can be adopted ahead, they are
    /// stored while the next page is asked for.
    async fn store(
        &mut self,
        commit: Commit,
        tally: Tally,
        ahead: Option<Ahead>,
        now: Timestamp,
    ) -> Result<(), Failure> {
        let has_changes = !commit.upserts.is_empty();
        match ahead.filter(|_| has_changes) {
            Some(ahead) => {
                self.under_way = Some(PendingCommit {
                    ahead,
                    events: commit.events.len() as u64,
                    committing: Box::pin(self.commit_later(commit, now)),
                    tally,
                });
            }
            None => {
                if has_changes {
                    self.commit(commit, now).await?;
                }
                self.tell(tally);
            }
        }
        Ok(())
    }

    /// Returns what is to be stored, reported and adopted for each change.
    fn news<'a>(&self, found: &Found<'a>, changes: Vec<Change<'_>>, now: Timestamp) -> News<'a> {
        let group_by = self.engine.tracker().group_by();
        let mut bodies = Bodies::default();
        let mut commit = Commit::default();
        let mut adopted = Vec::with_capacity(changes.len());
        let mut tally = Tally::default();
        for Change {
            place,
            kind,
            before,
        } in changes
        {
            let sighting = found.sightings[place];
            let fields = found.fields(place, before);
            let reached = match before {
                Some(before) => before.ordinal,
                None => found.beyond.ordinals.get(sighting.id).copied().unwrap_or(0),
            };
            let ordinal = reached + u32::from(kind.is_some());
            adopted.push(KnownAlert {
                sighting,
                ordinal,
                created_at: fields.created_at.map(Timestamp::as_second),
                group: reading::group(&fields, group_by),
            });
            commit.upserts.push(StoredAlert {
                id: sighting.id.into(),
                ordinal,
                digest: sighting.digest,
                created_at: fields.created_at,
                state: reading::compared(&fields.state).into(),
                body: bodies.body(|out| fields.write_stored(out)),
            });
            let silent = kind == Some(EventKind::Opened)
                && self.is_before_our_time(fields.created_at, found.clock_ahead);
            let Some(kind) = kind.filter(|_| !silent) else {
                continue;
            };
            // An alert that has come back was found long ago: its age is not the delay.
            let created_at = fields.created_at.filter(|_| self.primed && ordinal == 1);
            tally.add(kind, created_at.map(|at| now.duration_since(at)));
            if self.search.logs(kind) {
                let raw = found.page.raw.get(place);
                let happening = Happening {
                    kind,
                    ordinal,
                    alert_id: sighting.id,
                    previous_state: before.and_then(|before| word(&before.state)),
                    previous_status: before.and_then(|before| word(&before.status)),
                    reason: None,
                    fields,
                    raw: raw.and_then(|raw| serde_json::from_str(raw).ok()),
                };
                commit
                    .events
                    .push(self.journal_event(&mut bodies, now, happening));
            }
        }
        News {
            commit,
            adopted,
            tally,
        }
    }

    /// Moves alerts of a page into groups of their own, if there was no room for these before.
    fn regroup(&mut self, found: &Found<'_>) {
        let group_by = Arc::clone(self.engine.tracker().group_by());
        // Only the own page may have told the source, and what it said is in the store.
        let needs_source =
            self.search.shared.fetch_details && group_by.contains(&GroupLabel::Source);
        self.engine.regroup(found.sightings, |place, known| {
            let fields = found.fields(place, Some(known));
            let tells_all = !needs_source || fields.source.is_some();
            tells_all.then(|| reading::group(&fields, &group_by))
        });
    }

    /// Waits until the commit under way has ended.
    async fn await_commit(&mut self) -> Result<(), Failure> {
        match commit_of(&mut self.under_way) {
            Some(committing) => {
                let stored = self.search.heartbeat.beat_after(committing).await;
                self.commit_ended(stored)
            }
            None => Ok(()),
        }
    }

    /// Like [`Self::await_commit`], for callers to whom a failure makes no difference. The page
    /// under way is one of the background, so the background reports the failure.
    pub(super) async fn await_commit_quietly(&mut self) {
        if let Err(failure) = self.await_commit().await {
            self.background_failed(&failure);
        }
    }

    /// Handles the end of the commit under way.
    pub(super) fn commit_ended(&mut self, stored: Result<(), store::Error>) -> Result<(), Failure> {
        if let Some(PendingCommit {
            ahead,
            events,
            tally,
            ..
        }) = self.under_way.take()
        {
            self.note_room(events, &stored);
            match &stored {
                Ok(()) => self.tell(tally),
                Err(_) => self.engine.take_back(ahead),
            }
        }
        Ok(stored?)
    }

    fn tell(&self, tally: Tally) {
        let metrics = &self.search.metrics;
        metrics.events(EventKind::Opened, tally.opened);
        metrics.events(EventKind::Changed, tally.changed);
        for delay in tally.delays {
            metrics.detection_delay(delay);
        }
    }

    /// Stores a commit.
    pub(super) async fn commit(&mut self, commit: Commit, now: Timestamp) -> Result<(), Failure> {
        let events = commit.events.len() as u64;
        let committing = self.commit_later(commit, now);
        let committed = self.search.heartbeat.beat_after(committing).await;
        self.note_room(events, &committed);
        Ok(committed?)
    }

    /// Returns a future that stores a commit. The caller waits for it and takes note of its
    /// outcome later.
    fn commit_later(
        &self,
        mut commit: Commit,
        now: Timestamp,
    ) -> impl Future<Output = Result<(), store::Error>> + Send + use<> {
        let Shared {
            store, steadiness, ..
        } = self.search.shared.clone();
        commit.may_forget = steadiness.is_steady(now);
        let held = self.held;
        async move { store.commit(held, commit, now).await }
    }

    /// Adds a notice for health checks that the journal is full. The notice stays until a commit
    /// with as many events as the refused one gets through, because smaller ones may fit earlier.
    fn note_room(&mut self, events: u64, committed: &Result<(), store::Error>) {
        let refused = self.refused.as_ref().map_or(0, |refused| refused.events);
        match committed {
            Err(store::Error::JournalFull { limit, sink }) => {
                let notice = self.search.shared.health.notice(format!(
                    "the journal is full: {limit} events wait for the sink {sink:?}; \
                     new alerts are taken in when there is room again"
                ));
                self.refused = Some(Refused {
                    events: events.min(*limit).max(refused),
                    _notice: notice,
                });
            }
            Ok(()) if events >= refused => self.refused = None,
            _ => {}
        }
    }

    /// Checks whether the journal has room again. The alerts that found no room may be gone, so
    /// that no later commit would tell.
    pub(super) async fn look_for_room(&mut self) {
        let Search {
            heartbeat, shared, ..
        } = &*self.search;
        if let Some(Refused { events, .. }) = self.refused
            && let Ok(true) = heartbeat.beat_after(shared.store.has_room(events)).await
        {
            self.refused = None;
        }
    }

    /// Stores, once, that all alerts from before the search's first start have been in sight.
    pub(super) async fn prime(&mut self) -> Result<(), Failure> {
        if !self.primed && self.engine.has_gone_through() {
            let commit = Commit {
                primed: true,
                ..Commit::default()
            };
            self.commit(commit, clock::now()).await?;
            self.primed = true;
        }
        Ok(())
    }

    /// Whether an alert is to be recorded without a line: with `at_first_start: skip`, if it is
    /// from before the search's first start.
    fn is_before_our_time(
        &self,
        created_at: Option<Timestamp>,
        clock_ahead: SignedDuration,
    ) -> bool {
        // The API dates alerts by its own clock, and to the second.
        let first_seen = self.first_seen.as_second() + clock_ahead.as_secs();
        !self.primed
            && self.search.shared.at_first_start == AtFirstStart::Skip
            && created_at.is_none_or(|at| at.as_second() < first_seen)
    }

    pub(super) fn journal_event(
        &self,
        bodies: &mut Bodies,
        now: Timestamp,
        happening: Happening<'_>,
    ) -> JournalEvent {
        let record = Record::new(now, &self.search.key, happening, &self.search.shared.record);
        JournalEvent {
            event_id: record.event_id,
            at: record.timestamp,
            body: bodies.body(|out| record.write_json(out)),
        }
    }
}

// === impl Found ===

impl<'a> Found<'a> {
    /// Returns the fields of an alert, completed from its own page.
    fn fields(&self, place: usize, before: Option<&KnownState>) -> AlertFields<'a> {
        let mut fields = reading::fields(&self.page.alerts[place]);
        // What the alert's own page says, or said when the alert was new.
        let new = self.details.get(&place).map(reading::fields);
        if let Some(further) = new.or_else(|| self.beyond.stored.get(&place).cloned()) {
            fields.description = further.description.or(fields.description);
            fields.source = fields.source.or(further.source);
            fields.incident_id = fields.incident_id.or(further.incident_id);
            fields.component = fields.component.or(further.component);
            fields.problem_area = fields.problem_area.or(further.problem_area);
        }
        if let Some(before) = before {
            keep_words(&mut fields, before);
        }
        fields
    }
}

// === impl Beyond ===

impl Beyond {
    /// Returns what the own pages of new alerts show, by the alerts' places.
    fn parse_details<'a>(&'a self, alerts: &'a [Alert<'_>]) -> HashMap<usize, Alert<'a>> {
        let own_page = |(place, answer): &'a (usize, Answer)| {
            Some((*place, answer.alert_with(&alerts[*place].id)?))
        };
        self.details.iter().filter_map(own_page).collect()
    }
}

// === impl Search ===

impl Search {
    fn tell_unreadable(&self, request: &SearchRequest, page: &Page<'_>) {
        if page.unreadable > 0 {
            tracing::warn!(
                search = %self.key,
                page = request.page,
                unreadable = page.unreadable,
                "some items of the result are no alerts (no usable uniqueId); they are skipped"
            );
        }
    }

    /// Returns the ordinals that alerts had reached when they left earlier.
    async fn ordinals(
        &self,
        held: Held,
        opened: &[usize],
        sightings: &[Sighting<'_>],
    ) -> Result<HashMap<Box<str>, u32>, Failure> {
        let ids = opened
            .iter()
            .map(|place| sightings[*place].id.into())
            .collect();
        let departed = self.shared.store.departed(held, ids);
        let departed = self.heartbeat.beat_after(departed).await?;
        Ok(departed.into_iter().collect())
    }

    /// Returns what is stored of alerts that have changed, including the details from when they
    /// were new.
    async fn stored_details(
        &self,
        held: Held,
        delta: &Delta,
        sightings: &[Sighting<'_>],
    ) -> Result<HashMap<usize, AlertFields<'static>>, Failure> {
        let changed = delta.changed.iter().chain(&delta.refreshed);
        let places: HashMap<&str, usize> = changed
            .map(|(place, _)| (sightings[*place].id, *place))
            .collect();
        if !self.shared.fetch_details || places.is_empty() {
            return Ok(HashMap::new());
        }
        let ids = places.keys().map(|id| Box::from(*id)).collect();
        let stored = self.shared.store.stored(held, ids);
        let stored = self.heartbeat.beat_after(stored).await?;
        let fields = stored.iter().filter_map(|alert| {
            let fields = AlertFields::from_stored(&alert.body).ok()?;
            Some((*places.get(&*alert.id)?, fields))
        });
        Ok(fields.collect())
    }

    /// Asks for the own pages of the alerts at these places. Returns those that come in time.
    async fn details(
        &self,
        client: &Client,
        purpose: &Purpose,
        wanted: &[usize],
        alerts: &[Alert<'_>],
        deadline: Instant,
    ) -> Vec<(usize, Answer)> {
        let asked: Vec<(usize, String, Urgency)> = wanted
            .iter()
            .enumerate()
            .map(|(n, place)| {
                // After a burst has used up what the background may, a new alert still gets its
                // details.
                let urgency = match purpose {
                    Purpose::Poll if n < PAGES_AT_ONCE => Urgency::Poll,
                    _ => Urgency::Background,
                };
                (*place, alerts[*place].id.clone().into_owned(), urgency)
            })
            .collect();
        let tenant = &self.key.tenant.id;
        stream::iter(asked)
            .map(|(place, id, urgency)| async move {
                let answer = in_time(deadline, client.alert(tenant, &id, urgency)).await?;
                Some((place, answer.ok()??))
            })
            .buffer_unordered(PAGES_AT_ONCE)
            .filter_map(std::future::ready)
            .scan(0, |bytes, (place, answer)| {
                *bytes += answer.text().len();
                std::future::ready((*bytes <= DETAILS_BYTES).then_some((place, answer)))
            })
            .collect()
            .await
    }
}

/// Returns the commit under way, if there is one.
pub(super) fn commit_of(
    under_way: &mut Option<PendingCommit>,
) -> Option<&mut Pending<Result<(), store::Error>>> {
    Some(&mut under_way.as_mut()?.committing)
}

/// Returns the changes of a page, oldest first. The API gives the newest first, and lines shall be
/// in order.
fn changes(delta: &Delta) -> Vec<Change<'_>> {
    let opened = delta.opened.iter().map(|place| Change {
        place: *place,
        kind: Some(EventKind::Opened),
        before: None,
    });
    let changed = delta.changed.iter().map(|(place, before)| Change {
        place: *place,
        kind: Some(EventKind::Changed),
        before: Some(before),
    });
    let refreshed = delta.refreshed.iter().map(|(place, before)| Change {
        place: *place,
        kind: None,
        before: Some(before),
    });
    let mut changes: Vec<_> = opened.chain(changed).chain(refreshed).collect();
    changes.sort_unstable_by_key(|change| std::cmp::Reverse(change.place));
    changes
}

/// Keeps the state and the status from before a change if the answer lacks them.
fn keep_words(fields: &mut AlertFields<'_>, before: &KnownState) {
    let words = [
        (&mut fields.state, &before.state),
        (&mut fields.status, &before.status),
    ];
    for (now, before) in words {
        if reading::compared(now).is_empty() {
            *now = word(before).map(|before| before.into_owned().into());
        }
    }
}

/// Returns an earlier state or status, if there was one and it is known.
pub(super) fn word(before: &str) -> Option<Cow<'_, str>> {
    (!before.is_empty()).then_some(Cow::Borrowed(before))
}

/// Whether a clock may be wrong by this much. If not, the header is wrong.
fn is_credible(clock_ahead: &SignedDuration) -> bool {
    clock_ahead.as_hours().abs() < 24
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::{
        health::Health,
        poll::{
            SearchOptions,
            search::testing::{PATIENCE, learn, running, running_of, search},
            testing::open_store,
        },
        store::Store,
    };

    /// A page may need several calls of the store, one after the other. A slow database is no
    /// failure.
    #[tokio::test(start_paused = true)]
    async fn a_slow_store_is_no_search_that_hangs() {
        let folder = tempfile::tempdir().unwrap();
        let Store::Sqlite(sqlite) = open_store(folder.path(), store::JOURNAL_LIMIT).await else {
            panic!("another store");
        };
        let health = Health::default();
        let calls = Arc::new(Mutex::new(0));
        let (counted, looked) = (Arc::clone(&calls), health.clone());
        let slow = sqlite.slowed(PATIENCE * 2 / 5, move || {
            *counted.lock() += 1;
            assert_eq!(looked.overdue(), []);
        });
        let mut running = running(&Store::Sqlite(slow), &health).await;
        running.has_departed = true;
        *calls.lock() = 0;
        // The calls are: earlier ordinals, the commit, and that the result has been read.
        assert_eq!(learn(&mut running, &["Critical"]).await.unwrap(), 1);
        assert_eq!(*calls.lock(), 3);
    }

    /// Else the state would be lost at the next start, and the gauges would count the alert under
    /// no state meanwhile.
    #[tokio::test]
    async fn a_state_that_an_answer_lacks_stays_known_and_stored() {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(folder.path(), store::JOURNAL_LIMIT).await;
        let mut running = running(&store, &Health::default()).await;
        assert_eq!(learn(&mut running, &["Critical"]).await.unwrap(), 1);
        for state in ["", "Critical", ""] {
            assert_eq!(learn(&mut running, &[state]).await.unwrap(), 0, "{state:?}");
            let stored = store.stored(running.held, vec!["0".into()]).await.unwrap();
            let fields = AlertFields::from_stored(&stored[0].body).unwrap();
            assert_eq!(fields.state.as_deref(), Some("Critical"), "{state:?}");
            assert_eq!(&*stored[0].state, "Critical", "{state:?}");
            let groups = running.engine.tracker().groups();
            assert_eq!(groups, [(vec!["Critical".into()], 1)], "{state:?}");
        }
        assert_eq!(learn(&mut running, &["Warning"]).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn alerts_without_room_get_a_group_of_their_own_as_soon_as_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(folder.path(), store::JOURNAL_LIMIT).await;
        let mut search = search(&store, &Health::default()).await;
        let options = SearchOptions {
            max_groups: 1,
            ..(*search.options).clone()
        };
        search.options = Arc::new(options);
        let mut running = running_of(search, &store).await;
        let groups = |running: &Running| running.engine.tracker().groups();
        // The state that an answer lacks is known.
        for answer in [
            ["Warning", "Warning", "Critical"],
            ["Warning", "", "Critical"],
        ] {
            learn(&mut running, &answer).await.unwrap();
            let own = (vec!["Critical".into()], 1);
            assert_eq!(groups(&running), [own, (vec!["other".into()], 2)]);
        }
        learn(&mut running, &["Warning", "", "Warning"])
            .await
            .unwrap();
        assert_eq!(groups(&running), [(vec!["Warning".into()], 3)]);
    }

    #[tokio::test]
    async fn the_journal_is_full_until_as_much_as_it_has_refused_gets_through() {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(folder.path(), 3).await;
        store.set_sinks(vec!["test".to_owned()]).await.unwrap();
        let health = Health::default();
        let mut running = running(&store, &health).await;
        let is_full = || !health.notices().is_empty();
        let all = ["Critical"; 4];
        learn(&mut running, &all).await.unwrap_err();
        assert!(is_full());
        assert_eq!(learn(&mut running, &all[..1]).await.unwrap(), 1);
        assert!(is_full(), "it was less");
        learn(&mut running, &all).await.unwrap_err();
        let end = *store.journalled().borrow();
        store.acknowledge("test", end, None).await.unwrap();
        assert!(is_full(), "nobody has looked");
        assert_eq!(learn(&mut running, &all).await.unwrap(), 3);
        assert!(!is_full());
        // Perhaps no commit comes any more that would tell.
        learn(&mut running, &["Critical"; 5]).await.unwrap_err();
        running.look_for_room().await;
        assert!(is_full());
        store.acknowledge("test", end + 3, None).await.unwrap();
        running.look_for_room().await;
        assert!(!is_full());
    }
}
