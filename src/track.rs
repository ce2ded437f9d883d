//! Which alerts are known, and what an answer changes about them.
//!
//! Pure: no I/O, no clock. Another module sends the requests. Here the [`Sighting`]s of a page are
//! compared with the known alerts ([`Tracker::compare`]), and once the changes are stored, they
//! are taken over ([`Tracker::adopt`]). A *reading* is one pass over the whole result: alerts that
//! it does not show are missing ([`Tracker::missing`]). An alert takes about a hundred bytes.

use std::{
    borrow::Cow,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::Arc,
};

use hashbrown::{HashTable, hash_table};
use xxhash_rust::xxh3::xxh3_64_with_seed;

mod groups;

pub use groups::{GroupLabel, OTHER};

use groups::{GroupId, Groups, OVERFLOW};

/// An alert as a page shows it, reduced to what tells whether something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting<'a> {
    /// `uniqueId`.
    pub id: &'a str,
    /// A hash of everything whose change is worth storing.
    pub digest: u64,
    /// The state; empty if it is not known, because the page or the store lacks it.
    pub state: &'a str,
    /// The status; empty if it is not known.
    pub status: &'a str,
}

/// An alert to be known from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownAlert<'a> {
    /// The alert as it was seen.
    pub sighting: Sighting<'a>,
    /// Number of events in the alert's life so far.
    pub ordinal: u32,
    /// When it was created, in seconds since the epoch.
    pub created_at: Option<i64>,
    /// The alert's value for each of the tracker's labels.
    pub group: Vec<Cow<'a, str>>,
}

/// What a page changes, as places in the list of sightings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Alerts that were not known so far.
    pub opened: Vec<usize>,
    /// Known alerts with another state or status. A word that was not known, or that the page
    /// lacks, counts as the same.
    pub changed: Vec<(usize, KnownState)>,
    /// Known alerts with the same state and status, in which something else differs.
    pub refreshed: Vec<(usize, KnownState)>,
    /// Whether the last sighting is of a known alert that has not changed at all. Everything that
    /// the server sorts behind it is then older than the last look, in whatever order the server
    /// sorts.
    pub tail_unchanged: bool,
}

/// How a known alert stands, or stood before a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownState {
    /// Number of events in the alert's life so far.
    pub ordinal: u32,
    /// The state.
    pub state: Arc<str>,
    /// The status.
    pub status: Arc<str>,
}

/// The known alerts of one search.
#[derive(Debug)]
pub struct Tracker {
    alerts: HashTable<Entry>,
    /// Random, so that no server can choose ids whose hashes collide.
    seed: u64,
    words: Words,
    groups: Groups,
    /// The number of the present reading.
    reading: u32,
    seen: usize,
    leaving: usize,
    oldest: Oldest,
}

/// A known alert: 48 bytes, of which there can be a million.
#[derive(Debug)]
struct Entry {
    id: Id,
    digest: u64,
    created_at: i64,
    ordinal: u32,
    group: GroupId,
    /// The last reading that saw the alert, and [`LEAVING_BIT`] while the alert is on its way out.
    seen_in: u32,
    state: WordId,
    status: WordId,
}

/// An alert's id. In the API's examples, ids are digits.
#[derive(Debug, PartialEq, Eq)]
enum Id {
    Number(u64),
    Text(Box<str>),
}

/// The words of states and statuses, each kept once.
#[derive(Debug, Default)]
struct Words(Vec<Arc<str>>);

type WordId = u16;

/// Maximum number of distinct words that are kept. All further words are stored as [`OTHER`].
const MAX_WORDS: usize = 1024;
/// A word that is not known: it may be any word.
const UNKNOWN: WordId = WordId::MAX;
/// Marks an alert without a creation date.
const NO_DATE: i64 = i64::MIN;
/// The bit of [`Entry::seen_in`] that is set while the alert is on its way out.
const LEAVING_BIT: u32 = 1 << 31;

/// The oldest creation date. If stale, it is looked for when it is next asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Oldest {
    Known(Option<i64>),
    Stale,
}

// === impl Tracker ===

impl Tracker {
    /// Creates a tracker that knows no alert.
    #[must_use]
    pub fn new(group_by: Arc<[GroupLabel]>, max_groups: usize) -> Self {
        Self {
            alerts: HashTable::new(),
            seed: RandomState::new().build_hasher().finish(),
            words: Words::default(),
            groups: Groups::new(group_by, max_groups),
            reading: 1,
            seen: 0,
            leaving: 0,
            oldest: Oldest::Known(None),
        }
    }

    /// Whether no alert is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.alerts.is_empty()
    }

    /// Number of alerts that count as open: all known alerts but those on their way out.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.alerts.len() - self.leaving
    }

    /// How a known alert stands.
    #[must_use]
    pub fn known_state(&self, id: &str) -> Option<KnownState> {
        self.find(id).map(|entry| self.state_of(entry))
    }

    /// Returns what a page changes. If a page shows an alert twice, the first form counts, which
    /// is the newer one. Alerts that are `overtaken` by other answers change nothing.
    #[must_use]
    pub fn compare(&self, page: &[Sighting<'_>], overtaken: impl Fn(&str) -> bool) -> Delta {
        let mut delta = Delta::default();
        // Made only if something differs.
        let mut firsts: Option<hashbrown::HashMap<&str, usize>> = None;
        let mut is_first = |place: usize| {
            let firsts = firsts.get_or_insert_with(|| {
                let places = page.iter().enumerate().rev();
                places.map(|(place, first)| (first.id, place)).collect()
            });
            firsts.get(page[place].id) == Some(&place)
        };
        for (place, sighting) in page.iter().enumerate() {
            let known = self.find(sighting.id);
            if known.is_some_and(|entry| entry.digest == sighting.digest) {
                delta.tail_unchanged = place + 1 == page.len();
                continue;
            }
            if !is_first(place) || overtaken(sighting.id) {
                continue;
            }
            let Some(entry) = known else {
                delta.opened.push(place);
                continue;
            };
            let same = self.words.matches(entry.state, sighting.state)
                && self.words.matches(entry.status, sighting.status);
            let list = if same {
                &mut delta.refreshed
            } else {
                &mut delta.changed
            };
            list.push((place, self.state_of(entry)));
        }
        delta
    }

    /// Takes over the stored changes of a page, and notes all alerts of the page as seen.
    pub fn adopt(&mut self, known: Vec<KnownAlert<'_>>, page: &[Sighting<'_>]) {
        for alert in known {
            self.insert(alert);
        }
        for sighting in page {
            self.mark_seen(sighting.id);
        }
    }

    /// Moves alerts of a page that are counted under [`OTHER`] into their own groups, if there is
    /// room by now. `group_of` returns an alert's values by its place on the page; `None` if the
    /// page does not tell them all.
    pub fn regroup<'a>(
        &mut self,
        page: &[Sighting<'_>],
        group_of: impl Fn(usize, &KnownState) -> Option<Vec<Cow<'a, str>>>,
    ) {
        if !self.groups.has_overflow() {
            return;
        }
        for (place, sighting) in page.iter().enumerate() {
            // Another digest is that of an older form.
            let is_movable =
                |entry: &&Entry| entry.group == OVERFLOW && entry.digest == sighting.digest;
            let known = self.find(sighting.id).filter(is_movable);
            let known = known.map(|entry| self.state_of(entry));
            let Some(values) = known.and_then(|known| group_of(place, &known)) else {
                continue;
            };
            let id = Id::new(sighting.id);
            let hash = id.hash(self.seed);
            if let Some(entry) = self.alerts.find_mut(hash, |entry| entry.id == id) {
                let is_hidden = entry.is_leaving();
                entry.group = self.groups.change(OVERFLOW, &values, is_hidden);
            }
        }
    }

    /// Notes that an alert has been seen in the present reading.
    pub fn mark_seen(&mut self, id: &str) {
        let (id, reading) = (Id::new(id), self.reading);
        let hash = id.hash(self.seed);
        let Some(entry) = self.alerts.find_mut(hash, |entry| entry.id == id) else {
            return;
        };
        if entry.is_leaving() {
            self.leaving -= 1;
            self.groups.show(entry.group);
        }
        if entry.seen_in != reading {
            self.seen += 1;
            entry.seen_in = reading;
        }
    }

    /// Takes over alerts that a store knew.
    pub fn load(&mut self, known: KnownAlert<'_>) {
        self.insert(known);
    }

    /// Forgets an alert that has left.
    pub fn forget(&mut self, id: &str) {
        let id = Id::new(id);
        let hash = id.hash(self.seed);
        let Ok(found) = self.alerts.find_entry(hash, |entry| entry.id == id) else {
            return;
        };
        let (entry, _) = found.remove();
        if entry.is_leaving() {
            self.leaving -= 1;
            self.groups.show(entry.group);
        }
        self.groups.remove(entry.group);
        if entry.seen_in == self.reading {
            self.seen -= 1;
        }
        if self.oldest == Oldest::Known(Some(entry.created_at)) {
            self.oldest = Oldest::Stale;
        }
    }

    /// Begins a new reading: nothing has been seen in it.
    pub fn begin_reading(&mut self) {
        // Thirty-one bits of readings last for longer than any process.
        self.reading = (self.reading + 1) & !LEAVING_BIT;
        self.seen = 0;
    }

    /// Number of alerts that the present reading has seen.
    #[must_use]
    pub fn seen_count(&self) -> usize {
        self.seen
    }

    /// Returns the alerts that the present reading has not seen and that are not on their way out
    /// yet. Those that have not been seen for longest come first.
    #[must_use]
    pub fn missing(&self) -> Vec<Box<str>> {
        if self.seen + self.leaving == self.alerts.len() {
            return Vec::new();
        }
        let alerts = self.alerts.iter();
        let mut missing: Vec<_> = alerts
            .filter(|entry| self.is_entry_missing(entry))
            .collect();
        missing.sort_unstable_by_key(|entry| entry.seen_in);
        missing.iter().map(|entry| entry.id.to_text()).collect()
    }

    /// Whether an alert is among the [missing](Tracker::missing).
    #[must_use]
    pub fn is_missing(&self, id: &str) -> bool {
        self.find(id)
            .is_some_and(|entry| self.is_entry_missing(entry))
    }

    /// Notes that an alert is on its way out, so that it no longer counts as open. If it is seen
    /// again, it is open again.
    pub fn mark_leaving(&mut self, id: &str) {
        let id = Id::new(id);
        let hash = id.hash(self.seed);
        if let Some(entry) = self.alerts.find_mut(hash, |entry| entry.id == id)
            && !entry.is_leaving()
        {
            if entry.seen_in == self.reading {
                self.seen -= 1;
            }
            entry.seen_in |= LEAVING_BIT;
            self.leaving += 1;
            self.groups.hide(entry.group);
        }
    }

    /// How an alert that is on its way out stood; `None` if it is not on its way out.
    #[must_use]
    pub fn leaving(&self, id: &str) -> Option<KnownState> {
        self.find(id)
            .filter(|entry| entry.is_leaving())
            .map(|entry| self.state_of(entry))
    }

    /// Whether an alert is on its way out and was created at another time than `created_at`. An
    /// alert that a page shows with another time has left and opened anew. An unknown time counts
    /// as the same.
    #[must_use]
    pub fn has_opened_anew(&self, id: &str, created_at: Option<i64>) -> bool {
        let entry = self.find(id).filter(|entry| entry.is_leaving());
        entry.zip(created_at).is_some_and(|(entry, created_at)| {
            entry.created_at != NO_DATE && entry.created_at != created_at
        })
    }

    /// The open alerts by group, in the order of the groups' values.
    #[must_use]
    pub fn groups(&self) -> Vec<(Vec<Arc<str>>, u64)> {
        self.groups.counts()
    }

    /// The labels of the groups.
    #[must_use]
    pub fn group_by(&self) -> &Arc<[GroupLabel]> {
        self.groups.labels()
    }

    /// When the oldest known alert was created, in seconds since the epoch.
    pub fn oldest_created_at(&mut self) -> Option<i64> {
        if self.oldest == Oldest::Stale {
            let dates = self.alerts.iter().map(|entry| entry.created_at);
            self.oldest = Oldest::Known(dates.filter(|date| *date != NO_DATE).min());
        }
        match self.oldest {
            Oldest::Known(oldest) => oldest,
            Oldest::Stale => None,
        }
    }

    fn insert(&mut self, known: KnownAlert<'_>) {
        let KnownAlert {
            sighting,
            ordinal,
            created_at,
            group,
        } = known;
        let mut entry = Entry {
            id: Id::new(sighting.id),
            digest: sighting.digest,
            created_at: created_at.unwrap_or(NO_DATE),
            ordinal,
            group: OVERFLOW,
            seen_in: 0,
            state: self.words.intern(sighting.state),
            status: self.words.intern(sighting.status),
        };
        let created_at = entry.created_at;
        let seed = self.seed;
        let is_same = |other: &Entry| other.id == entry.id;
        let hash_of = |other: &Entry| other.id.hash(seed);
        match self.alerts.entry(hash_of(&entry), is_same, hash_of) {
            hash_table::Entry::Vacant(place) => {
                entry.group = self.groups.add(&group);
                place.insert(entry);
            }
            hash_table::Entry::Occupied(mut place) => {
                let old = place.get_mut();
                entry.group = self.groups.change(old.group, &group, old.is_leaving());
                entry.seen_in = old.seen_in;
                if entry.state == UNKNOWN {
                    entry.state = old.state;
                }
                if entry.status == UNKNOWN {
                    entry.status = old.status;
                }
                if self.oldest == Oldest::Known(Some(old.created_at)) {
                    self.oldest = Oldest::Stale;
                }
                *old = entry;
            }
        }
        if let Oldest::Known(oldest) = self.oldest
            && created_at != NO_DATE
        {
            self.oldest = Oldest::Known(Some(oldest.map_or(created_at, |at| at.min(created_at))));
        }
    }

    fn find(&self, id: &str) -> Option<&Entry> {
        let id = Id::new(id);
        self.alerts.find(id.hash(self.seed), |entry| entry.id == id)
    }

    fn is_entry_missing(&self, entry: &Entry) -> bool {
        entry.seen_in != self.reading && !entry.is_leaving()
    }

    fn state_of(&self, entry: &Entry) -> KnownState {
        KnownState {
            ordinal: entry.ordinal,
            state: self.words.get(entry.state),
            status: self.words.get(entry.status),
        }
    }
}

// === impl Entry ===

impl Entry {
    fn is_leaving(&self) -> bool {
        self.seen_in & LEAVING_BIT != 0
    }
}

// === impl Id ===

impl Id {
    fn new(text: &str) -> Self {
        let canonical = matches!(text.as_bytes(), [b'0'] | [b'1'..=b'9', ..]);
        match text.parse() {
            Ok(number) if canonical => Self::Number(number),
            _ => Self::Text(text.into()),
        }
    }

    fn hash(&self, seed: u64) -> u64 {
        match self {
            Self::Number(number) => xxh3_64_with_seed(&number.to_le_bytes(), seed),
            Self::Text(text) => xxh3_64_with_seed(text.as_bytes(), seed),
        }
    }

    fn to_text(&self) -> Box<str> {
        match self {
            Self::Number(number) => number.to_string().into(),
            Self::Text(text) => text.clone(),
        }
    }
}

// === impl Words ===

impl Words {
    fn intern(&mut self, word: &str) -> WordId {
        if word.is_empty() {
            return UNKNOWN;
        }
        let known = self.0.iter().position(|known| **known == *word);
        let place = known.unwrap_or_else(|| {
            if self.0.len() < MAX_WORDS {
                self.0.push(word.into());
            } else if self.0.len() == MAX_WORDS {
                self.0.push(OTHER.into());
            }
            self.0.len() - 1
        });
        WordId::try_from(place).unwrap_or(WordId::MAX)
    }

    /// Whether a `known` word is this `word`, in any case. For [`UNKNOWN`], for words for which
    /// there was no room, and for a `word` that is lacking, nobody can tell, so they count as the
    /// same.
    fn matches(&self, known: WordId, word: &str) -> bool {
        let known = usize::from(known);
        word.is_empty()
            || known >= MAX_WORDS
            || self
                .0
                .get(known)
                .is_some_and(|known| known.eq_ignore_ascii_case(word))
    }

    fn get(&self, word: WordId) -> Arc<str> {
        let unlisted = if word == UNKNOWN { "" } else { OTHER };
        let listed = self.0.get(usize::from(word)).cloned();
        listed.unwrap_or_else(|| unlisted.into())
    }
}

#[cfg(test)]
mod tests;
