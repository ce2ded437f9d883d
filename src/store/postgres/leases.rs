//! The leases of this replica: which searches it holds, until when it may rely on that, and which
//! searches it may take up.
//!
//! A lease is relied on for a little less time than the server counts, starting at the moment when
//! it was asked for. The clock goes on while the process is stopped and while the machine sleeps.
//! So a replica that wakes up late finds its lease over before the server would say so.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio_postgres::Row;

use super::{
    connection::Failure,
    journal::{Journal, Position, Unsaved},
    shares::{Holder, Search},
};
use crate::{
    clock,
    identity::SearchKey,
    store::{Held, left_sinks::Waiting},
};

/// What this replica knows of itself, of its searches and of their journals.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The replica's number, once it is registered.
    pub(super) replica: Option<i64>,
    /// How many searches the replica wants.
    pub(super) share: usize,
    /// How many replicas there were when their number was last logged.
    pub(super) replicas: usize,
    /// The sinks that the replica shall have, once it was told.
    pub(super) sinks: Option<Vec<String>>,
    /// The sinks that no replica had at the last look, each with the number of events that waited
    /// when this was noticed. The number was logged, unless it was zero.
    pub(super) left_sinks: BTreeMap<String, Waiting>,
    /// Whether no other replica ran at the last look for such sinks. If so, these sinks are given
    /// up when the journal has no room.
    pub(super) is_alone: bool,
    /// The sinks that only other replicas have and for which events wait here, each with the time,
    /// since the machine's start, at which that is to be told next.
    waits_for_others: BTreeMap<String, Duration>,
    /// The searches that the replica would poll, once it was told.
    keys: Option<Arc<[SearchKey]>>,
    /// Grows with each wish to have the rows of `keys` looked up.
    wish: u64,
    /// The wish that was last fulfilled.
    fulfilled: u64,
    /// The rows of the searches, as found when the last wish was fulfilled.
    pub(super) wanted: HashMap<SearchKey, i64>,
    /// When the last wish was fulfilled, since the machine's start.
    pub(super) wanted_since: Option<Duration>,
    /// The searches that the replica may take up now.
    pub(super) granted: HashSet<SearchKey>,
    /// The searches that another replica holds.
    pub(super) elsewhere: HashSet<SearchKey>,
    /// The searches that the replica is taking up.
    pub(super) taking: HashSet<SearchKey>,
    /// The searches whose rows were locked at the last attempt to take them up, and that no other
    /// replica has been seen to hold since.
    locked: HashSet<SearchKey>,
    /// When the first lease of another replica ends unless it is renewed, since the machine's
    /// start.
    pub(super) look_at: Option<Duration>,
    /// Searches that the replica gave back and no other replica has taken since. `others` are the
    /// other replicas and their shares at that time.
    unclaimed: HashSet<i64>,
    others: Vec<(i64, usize)>,
    holds: HashMap<i64, Hold>,
    /// Number of leases that were not renewed in time and have not been reported yet.
    unreported_late: usize,
    pub(super) journal: Journal,
}

/// A lease on a search.
#[derive(Clone, Copy, Debug)]
struct Hold {
    epoch: i64,
    /// Until when the lease can be relied on, since the machine's start.
    until: Duration,
    /// Whether the search is to be given back, so that other replicas get it.
    to_give_back: bool,
    /// Whether no replica polls the search, and it is held only to deliver the rest of its events.
    left_over: bool,
}

// === impl State ===

impl State {
    pub(super) fn new(journal: Journal) -> Self {
        Self {
            journal,
            ..Self::default()
        }
    }

    /// Takes note of which searches the replica would poll.
    pub(super) fn want(&mut self, keys: Vec<SearchKey>) {
        self.keys = Some(keys.into());
        self.want_again();
    }

    /// Asks for the rows of the searches to be looked up once more.
    pub(super) fn want_again(&mut self) {
        self.wish += 1;
    }

    /// Returns the searches whose rows are to be looked up, and the number of this wish. The wish
    /// stays until it [is fulfilled](Self::fulfil), because a look-up may fail or be given up.
    pub(super) fn wish(&self) -> Option<(u64, Arc<[SearchKey]>)> {
        let keys = self.keys.as_ref().filter(|_| self.wish != self.fulfilled)?;
        Some((self.wish, Arc::clone(keys)))
    }

    /// Takes note of the rows that were found for a wish. A later wish may have come since, and
    /// stays.
    pub(super) fn fulfil(&mut self, wish: u64, wanted: HashMap<SearchKey, i64>) {
        self.fulfilled = wish;
        self.locked.retain(|key| wanted.contains_key(key));
        self.wanted = wanted;
        self.wanted_since = Some(clock::since_boot());
    }

    /// Takes note that there is no search that the replica would poll.
    pub(super) fn want_none(&mut self) {
        self.share = 0;
        self.granted.clear();
        self.elsewhere.clear();
    }

    /// Takes note that rows are gone, or stand for other searches than before. The same may be
    /// true of rows of which only a memory is left, so these are forgotten, too. Other searches
    /// that are held are not affected.
    pub(super) fn forget_rows(&mut self, rows: &[i64]) {
        for row in rows {
            if let Some(epoch) = self.epoch(*row) {
                self.lose_late(Held { row: *row, epoch });
            }
        }
        let holds = &self.holds;
        self.journal.forget_unless(|row| holds.contains_key(&row));
        self.want_again();
    }

    /// Takes note of a lease that was taken.
    pub(super) fn hold(&mut self, held: Held, until: Duration) {
        let hold = Hold {
            epoch: held.epoch,
            until,
            to_give_back: false,
            left_over: false,
        };
        self.holds.insert(held.row, hold);
    }

    /// Takes note of a lease on a search that is only delivered. Returns whether the lease counts:
    /// it does not if the search was taken up to be polled since.
    pub(super) fn hold_left_over(&mut self, held: Held, until: Duration) -> bool {
        if self.epoch(held.row) >= Some(held.epoch) {
            return false;
        }
        self.hold(held, until);
        if let Some(hold) = self.holds.get_mut(&held.row) {
            hold.left_over = true;
        }
        true
    }

    /// Returns the leases on searches that are only delivered.
    pub(super) fn left_over(&self) -> Vec<Held> {
        let mut leases = self.leases();
        leases.retain(|held| self.is_left_over(held.row));
        leases
    }

    fn is_left_over(&self, row: i64) -> bool {
        self.holds.get(&row).is_some_and(|hold| hold.left_over)
    }

    /// Takes note that a search is no longer held, so that its events are for the next holder to
    /// deliver. Returns whether it was held.
    pub(super) fn lose(&mut self, held: Held) -> bool {
        let was_held = self.epoch(held.row) == Some(held.epoch);
        if was_held {
            self.holds.remove(&held.row);
            self.journal.lose_search(held.row);
        }
        was_held
    }

    /// Like `lose`, if events at positions up to and with `end` may have been committed
    /// without this replica knowing: they may wait for every sink. Nothing is in doubt if the
    /// search was taken up again since: that found whatever was committed, and nothing can be
    /// committed afterwards.
    pub(super) fn lose_in_doubt(&mut self, held: Held, end: i64) {
        self.lose(held);
        if self.epoch(held.row).is_none() {
            self.journal.doubt(held.row, end);
        }
    }

    /// Like `lose`, for a lease that was not given back, but not renewed in time.
    pub(super) fn lose_late(&mut self, held: Held) {
        self.unreported_late += usize::from(self.lose(held));
    }

    /// Returns how many leases were lost in this way since the last call.
    pub(super) fn take_late(&mut self) -> usize {
        std::mem::take(&mut self.unreported_late)
    }

    /// Takes note that the replica holds nothing.
    pub(super) fn lose_all(&mut self) {
        for held in self.leases() {
            self.lose(held);
        }
    }

    /// Takes note of events that were committed, at positions up to and with `end`. As long as no
    /// other replica is known to hold the search, they wait to be delivered here, even if the
    /// lease cannot be relied on at this moment: it may be renewed yet. If the lease was lost
    /// meanwhile, the events are in doubt, because perhaps no replica holds the search. Returns
    /// whether the events follow what is known of the search's journal. If they do not, the search
    /// is lost.
    pub(super) fn committed(&mut self, held: Held, end: i64, count: i64) -> bool {
        if self.epoch(held.row) != Some(held.epoch) {
            self.lose_in_doubt(held, end);
            return true;
        }
        let follows = self.journal.append(held.row, end - count + 1, count);
        if !follows {
            self.lose_in_doubt(held, end);
        }
        follows
    }

    /// Takes note of all sinks that the server knows, and of the replica's `own`. For sinks that
    /// are [new](Journal::is_new), `positions` were read under these `leases`. Returns whether that
    /// was possible. It is not if a search was taken up since, because its positions are missing.
    pub(super) fn learn_sinks(
        &mut self,
        own: &[String],
        mut all: Vec<String>,
        leases: &[Held],
        positions: &[Position],
    ) -> bool {
        let forgotten = own.iter().filter(|name| !all.contains(name)).cloned();
        all.extend(forgotten.collect::<Vec<_>>());
        let read: HashSet<&Held> = leases.iter().collect();
        let is_complete = !all.iter().any(|name| self.journal.is_new(name, own))
            || self.leases().iter().all(|held| read.contains(held));
        if is_complete {
            let held = |it: &&Position| self.holds.contains_key(&it.row);
            let positions: Vec<_> = positions.iter().filter(held).cloned().collect();
            self.journal.set_sinks(own, &all, &positions);
        }
        is_complete
    }

    /// Returns what the server is to be told of a sink, and the epochs under which to tell it.
    pub(super) fn unsaved(&mut self, sink: &str) -> (Unsaved, Vec<i64>) {
        let holds = &self.holds;
        let mut unsaved = self.journal.unsaved(sink, |row| holds.contains_key(&row));
        unsaved.positions.sort_unstable();
        let rows = unsaved.positions.iter().map(|(row, _)| *row);
        let epochs = rows.filter_map(|row| self.epoch(row)).collect();
        (unsaved, epochs)
    }

    /// Returns the sinks for which events wait here although only other replicas have them, each
    /// with the number of events, where that is to be told: once it has lasted for `patience`, and
    /// `again` after that.
    pub(super) fn due_for_others(
        &mut self,
        now: Duration,
        patience: Duration,
        again: Duration,
    ) -> Vec<(String, u64)> {
        let waiting = self.journal.waiting_for_others();
        // Those that no replica has are told when they leave.
        let waiting = waiting.filter(|(sink, _)| !self.left_sinks.contains_key(*sink));
        let waiting: BTreeMap<_, _> = waiting.map(|(sink, it)| (sink.to_owned(), it)).collect();
        self.waits_for_others
            .retain(|sink, _| waiting.contains_key(sink));
        let mut due = Vec::new();
        for (sink, events) in waiting {
            let tell_at = self.waits_for_others.entry(sink.clone());
            let tell_at = tell_at.or_insert(now + patience);
            if *tell_at <= now {
                *tell_at = now + again;
                due.push((sink, events));
            }
        }
        due
    }

    /// Whether the server has not heard yet how far a sink has come in some search that is held,
    /// those with `locked` rows aside, or of the sink's mark. A mark that waits for the position of
    /// a locked row is no reason either.
    pub(super) fn is_untold(&self, sink: &str, locked: &HashSet<i64>) -> bool {
        let untold = self.journal.untold(sink);
        let mut held = untold.filter(|row| self.holds.contains_key(row)).peekable();
        match held.peek() {
            Some(_) => held.any(|row| !locked.contains(&row)),
            None => self.journal.is_mark_untold(sink),
        }
    }

    /// Whether a lease can be relied on.
    pub(super) fn is_held(&self, held: Held) -> bool {
        self.until(held) > Some(clock::since_boot())
    }

    /// Returns until when a lease can be relied on, or `None` if it is lost.
    pub(super) fn until(&self, held: Held) -> Option<Duration> {
        let hold = self.holds.get(&held.row)?;
        (hold.epoch == held.epoch).then_some(hold.until)
    }

    /// Whether a search is to be given back, so that other replicas get it.
    pub(super) fn is_to_give_back(&self, held: Held) -> bool {
        let hold = self.holds.get(&held.row);
        hold.is_some_and(|hold| hold.to_give_back)
    }

    /// Returns the epoch under which a search is held.
    pub(super) fn epoch(&self, row: i64) -> Option<i64> {
        self.holds.get(&row).map(|hold| hold.epoch)
    }

    /// Returns all leases, also those whose time is over and that have not been renewed yet.
    pub(super) fn leases(&self) -> Vec<Held> {
        let holds = self.holds.iter();
        holds
            .map(|(row, hold)| Held {
                row: *row,
                epoch: hold.epoch,
            })
            .collect()
    }

    /// Returns the searches whose leases can be relied on.
    pub(super) fn held_rows(&self) -> Vec<i64> {
        let now = clock::since_boot();
        let holds = self.holds.iter().filter(|(_, hold)| hold.until > now);
        holds.map(|(row, _)| *row).collect()
    }

    /// Returns the searches whose leases can be relied on and that are polled.
    pub(super) fn polled_rows(&self) -> Vec<i64> {
        let mut rows = self.held_rows();
        rows.retain(|row| !self.is_left_over(*row));
        rows
    }

    /// Whether the time of any lease is over.
    pub(super) fn is_any_over(&self) -> bool {
        let now = clock::since_boot();
        self.holds.values().any(|hold| hold.until <= now)
    }

    /// Forgets the leases whose time is over, and the events that wait in their searches.
    pub(super) fn expire(&mut self) {
        let now = clock::since_boot();
        let mut over = self.leases();
        over.retain(|held| self.until(*held).is_some_and(|until| until <= now));
        for held in over {
            self.lose_late(held);
        }
    }

    /// Takes note of which of the leases that were `asked` for the server has renewed. A lease
    /// whose row was `locked` is still this replica's. It ends when its time is over, as if nobody
    /// had asked.
    pub(super) fn renewed(
        &mut self,
        asked: &[Held],
        renewed: &HashSet<i64>,
        locked: &HashSet<i64>,
        until: Duration,
    ) {
        for held in asked {
            if renewed.contains(&held.row) {
                if let Some(hold) = self.holds.get_mut(&held.row)
                    && hold.epoch == held.epoch
                {
                    hold.until = hold.until.max(until);
                }
            } else if !locked.contains(&held.row) {
                self.lose_late(*held);
            }
        }
    }

    /// Marks searches to be given back until `count` are marked, those marked before included. A
    /// search that no other replica has taken since it was given back is not marked again, as long
    /// as the `others` are the same and want as many. They may be configured differently, and
    /// nobody would poll the search in between.
    pub(super) fn mark_to_give_back(
        &mut self,
        count: usize,
        others: Vec<(i64, usize)>,
        owners: &HashMap<i64, Holder>,
    ) {
        if self.others != others {
            self.others = others;
            self.unclaimed.clear();
        }
        self.unclaimed
            .retain(|row| owners.get(row) != Some(&Holder::Another));
        let marked = self.holds.values().filter(|hold| hold.to_give_back).count();
        let unclaimed = &self.unclaimed;
        let is_candidate = |(row, hold): &(&i64, &mut Hold)| {
            !hold.to_give_back && !hold.left_over && !unclaimed.contains(row)
        };
        let mut candidates: Vec<_> = self.holds.iter_mut().filter(is_candidate).collect();
        fastrand::shuffle(&mut candidates);
        let given = candidates.into_iter().take(count.saturating_sub(marked));
        let given: Vec<i64> = given
            .map(|(row, hold)| {
                hold.to_give_back = true;
                *row
            })
            .collect();
        self.unclaimed.extend(given);
    }

    /// Returns the searches that the replica would poll, with the holders that the server names in
    /// `owners`, by row. A search that is being taken up takes room, although the attempt may fail.
    /// If the server says that this replica holds a search and the replica does not, for instance
    /// because the answer to a commit was lost, the search is free for it.
    pub(super) fn survey(&self, owners: &HashMap<i64, Holder>) -> Vec<Search> {
        let holder = |key: &SearchKey, row: i64| {
            let told = *owners.get(&row)?;
            Some(match told {
                _ if self.taking.contains(key) => Holder::Taking,
                Holder::Me if !self.holds.contains_key(&row) => Holder::Nobody(Duration::ZERO),
                told => told,
            })
        };
        let searches = self.wanted.iter().filter_map(|(key, &row)| {
            let holder = holder(key, row)?;
            Some(Search { row, holder })
        });
        searches.collect()
    }

    /// Takes note of who holds the lost searches that the server was asked about as `unclear`
    /// ones. Nothing waits here any more in a search that another replica holds, or whose row is
    /// gone. Returns the others, unless they are to be polled: of these, the server has to be asked
    /// which sinks lack something.
    pub(super) fn resolve_unclear(
        &mut self,
        unclear: &HashSet<i64>,
        owners: &HashMap<i64, Holder>,
    ) -> HashSet<i64> {
        let is_elsewhere = |row| matches!(owners.get(&row), None | Some(Holder::Another));
        self.journal
            .resolve_unclear(|_, row| unclear.contains(&row) && is_elsewhere(row));
        let wanted: HashSet<i64> = self.wanted.values().copied().collect();
        let unclear = unclear.difference(&wanted).copied();
        unclear.filter(|row| !is_elsewhere(*row)).collect()
    }

    /// Takes note of which sinks lack events of searches that nobody holds: for the other sinks,
    /// nothing waits there.
    pub(super) fn resolve_free(
        &mut self,
        free: &HashSet<i64>,
        lacking: &HashMap<i64, Vec<String>>,
    ) {
        let wanted: HashSet<i64> = self.wanted.values().copied().collect();
        let lacks = |sink: &str, row| {
            let mut sinks = lacking.get(&row).into_iter().flatten();
            sinks.any(|lacking| lacking == sink)
        };
        self.journal.resolve_unclear(|sink, row| {
            free.contains(&row) && !wanted.contains(&row) && !lacks(sink, row)
        });
    }

    /// Returns the searches whose rows fulfil a condition.
    pub(super) fn keys_of(&self, is_it: impl Fn(i64) -> bool) -> HashSet<SearchKey> {
        let those = self.wanted.iter().filter(|(_, row)| is_it(**row));
        those.map(|(key, _)| key.clone()).collect()
    }

    /// Whether the replica may take a search up: it is its turn, or it holds the search already.
    /// In that case, a task that polled it with other options has left it to be polled on.
    pub(super) fn may_take_up(&self, key: &SearchKey) -> bool {
        self.granted.contains(key) || self.lease_on(key).is_some()
    }

    /// Takes note that a search could not be taken up, because its row is locked. Returns whether
    /// another replica may be taking it up. That is ruled out if the row was locked the last time
    /// as well, or if the search is held here.
    pub(super) fn meet_lock(&mut self, key: &SearchKey) -> bool {
        self.lease_on(key).is_none() && self.locked.insert(key.clone())
    }

    /// Takes note that a search's row was not locked.
    pub(super) fn meet_no_lock(&mut self, key: &SearchKey) {
        self.locked.remove(key);
    }

    /// Takes note of which searches other replicas hold.
    pub(super) fn see_elsewhere(&mut self, elsewhere: HashSet<SearchKey>) {
        self.locked.retain(|key| !elsewhere.contains(key));
        self.elsewhere = elsewhere;
    }

    /// Returns the lease on a search.
    pub(super) fn lease_on(&self, key: &SearchKey) -> Option<Held> {
        let row = *self.wanted.get(key)?;
        let epoch = self.epoch(row)?;
        Some(Held { row, epoch })
    }
}

/// Splits leases into parameters of a statement: the rows of the searches, and their epochs in the
/// same order.
pub(super) fn rows_and_epochs(leases: &[Held]) -> (Vec<i64>, Vec<i64>) {
    leases.iter().map(|held| (held.row, held.epoch)).unzip()
}

/// Reads the answer of a statement that passes over locked rows: returns the searches for which
/// the statement did its work, and those that it passed over.
pub(super) fn done_and_locked(told: &[Row]) -> Result<(HashSet<i64>, HashSet<i64>), Failure> {
    let mut done = HashSet::new();
    let mut locked = HashSet::new();
    for row in told {
        let rows = if row.try_get(1)? {
            &mut done
        } else {
            &mut locked
        };
        rows.insert(row.try_get(0)?);
    }
    Ok((done, locked))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let mut journal = Journal::new(9, 0);
        let sinks = ["s".to_owned()];
        journal.set_sinks(&sinks, &sinks, &[]);
        for row in [1, 2] {
            journal.adopt(held(row, 5), 4, 0, &[]);
        }
        State::new(journal)
    }

    fn held(row: i64, epoch: i64) -> Held {
        Held { row, epoch }
    }

    fn key(name: &str) -> SearchKey {
        crate::store::conformance::key("a", "t", name)
    }

    #[test]
    fn a_lease_is_over_when_its_time_is() {
        let mut state = state();
        let now = clock::since_boot();
        state.hold(held(1, 5), now + Duration::from_secs(60));
        state.hold(held(2, 5), now);
        state.journal.append(1, 1, 1);
        state.journal.append(2, 1, 1);
        assert!(state.is_held(held(1, 5)));
        assert!(!state.is_held(held(1, 4)) && !state.is_held(held(2, 5)));
        assert_eq!(state.held_rows(), [1]);
        state.expire();
        assert_eq!(state.leases(), [held(1, 5)]);
        assert_eq!((state.take_late(), state.take_late()), (1, 0));
        assert!(state.journal.waits(1) && !state.journal.waits(2));
    }

    #[test]
    fn what_is_committed_while_a_lease_is_renewed_late_is_delivered() {
        let mut state = state();
        let now = clock::since_boot();
        state.hold(held(1, 5), now);
        assert!(!state.is_held(held(1, 5)) && state.committed(held(1, 5), 2, 2));
        let later = now + Duration::from_secs(60);
        state.renewed(&[held(1, 5)], &HashSet::from([1]), &HashSet::new(), later);
        assert!(state.is_held(held(1, 5)) && state.journal.waits(1));
        // Another replica holds the search by now, so the event is for that replica to deliver.
        assert!(state.committed(held(2, 5), 1, 1) && !state.journal.waits(2));
        // These positions have been given before, so the search has to be taken up anew.
        state.journal.acknowledge("s", 2, None);
        state.journal.resolve_unclear(|_, _| true);
        assert!(!state.committed(held(1, 5), 1, 1));
        assert_eq!(state.epoch(1), None);
        assert!(state.journal.is_unclear("s"));
    }

    #[test]
    fn what_only_the_server_takes_for_ours_is_free_for_us() {
        let mut state = state();
        state.wanted = HashMap::from([(key("1"), 1), (key("2"), 2), (key("3"), 3)]);
        state.hold(held(1, 5), Duration::MAX);
        state.taking.insert(key("2"));
        let mut searches = state.survey(&(1..=3).map(|row| (row, Holder::Me)).collect());
        searches.sort_unstable_by_key(|search| search.row);
        let holders: Vec<_> = searches.iter().map(|it| it.holder).collect();
        let free = Holder::Nobody(Duration::ZERO);
        assert_eq!(holders, [Holder::Me, Holder::Taking, free]);
    }

    #[test]
    fn a_sink_is_not_taken_note_of_without_its_place_in_every_search_that_is_held() {
        let mut state = state();
        state.hold(held(1, 5), Duration::MAX);
        assert!(state.committed(held(1, 5), 2, 2));
        let leases = state.leases();
        let all = || vec!["s".to_owned(), "t".to_owned()];
        let positions = [(1, 1), (2, 0)].map(|(row, position)| Position {
            sink: "t".to_owned(),
            row,
            position,
        });
        state.hold(held(2, 5), Duration::MAX);
        assert!(!state.learn_sinks(&[], all(), &leases, &positions));
        assert!(!state.journal.knows("t"));
        // The events of a search that was lost since are for others to deliver.
        let leases = state.leases();
        assert!(state.committed(held(2, 5), 1, 1) && state.lose(held(2, 5)));
        assert!(state.learn_sinks(&[], all(), &leases, &positions));
        let rows = state.journal.next("t", 9);
        let rows: Vec<_> = rows.iter().map(|it| (it.row, it.first, it.count)).collect();
        assert_eq!(rows, [(1, 2, 1)]);
    }

    #[test]
    fn what_waits_for_a_sink_of_others_is_told_when_it_lasts_and_again_later() {
        let mut state = state();
        let all = ["s", "t", "left"].map(str::to_owned);
        state.journal.set_sinks(&all[..1], &all, &[]);
        state.left_sinks.insert("left".to_owned(), 1.into());
        let (at, mut due) = (Duration::from_secs, Vec::new());
        let mut look = |state: &mut State, now| {
            due = state.due_for_others(at(now), at(15), at(60));
            due.pop().map(|(sink, events)| (sink, events, due.len()))
        };
        assert_eq!(look(&mut state, 0), None);
        state.hold(held(1, 5), Duration::MAX);
        assert!(state.committed(held(1, 5), 2, 2));
        assert_eq!(look(&mut state, 1), None);
        assert_eq!(look(&mut state, 15), None);
        let told = Some(("t".to_owned(), 2, 0));
        assert_eq!(look(&mut state, 16), told);
        assert_eq!(look(&mut state, 75), None);
        assert_eq!(look(&mut state, 76), told);
        // A replica that has the sink holds the search for a while.
        state.lose(held(1, 5));
        assert_eq!(look(&mut state, 77), None);
        state.hold(held(1, 6), Duration::MAX);
        state
            .journal
            .adopt(held(1, 6), 5, 2, &[("t".to_owned(), 0)]);
        assert_eq!(look(&mut state, 200), None);
        assert_eq!(look(&mut state, 215), told);
    }

    #[test]
    fn what_the_server_has_not_heard_of_counts_where_the_search_is_held_and_its_row_is_free() {
        let mut state = state();
        let (none, locked) = (HashSet::new(), HashSet::from([1]));
        state.hold(held(1, 5), Duration::MAX);
        assert!(state.committed(held(1, 5), 1, 1));
        assert!(!state.is_untold("s", &none));
        state.journal.acknowledge("s", 1, None);
        assert!(state.is_untold("s", &none) && !state.is_untold("s", &locked));
        assert!(!state.is_untold("other", &none));
        // The next holder has to tell it.
        state.lose(held(1, 5));
        assert!(!state.is_untold("s", &none));
    }

    #[test]
    fn a_mark_counts_as_well_unless_it_waits_for_a_locked_row() {
        let mut state = state();
        let (none, locked) = (HashSet::new(), HashSet::from([1]));
        state.hold(held(1, 5), Duration::MAX);
        // A sink may have a mark to store before it delivers anything.
        state
            .journal
            .acknowledge("s", 0, Some(b"new file".to_vec()));
        assert!(state.is_untold("s", &none) && state.is_untold("s", &locked));
        assert!(state.committed(held(1, 5), 1, 1));
        state
            .journal
            .acknowledge("s", 1, Some(b"one line".to_vec()));
        assert!(state.is_untold("s", &none) && !state.is_untold("s", &locked));
        state.lose(held(1, 5));
        assert!(state.is_untold("s", &none));
        let (unsaved, _) = state.unsaved("s");
        state.journal.saved("s", &unsaved);
        assert!(!state.is_untold("s", &none));
    }

    #[test]
    fn what_is_left_over_is_neither_shown_nor_anothers_share_and_makes_way_for_polls() {
        let mut state = state();
        assert!(state.hold_left_over(held(1, 5), Duration::MAX));
        state.hold(held(2, 5), Duration::MAX);
        assert_eq!(state.left_over(), [held(1, 5)]);
        assert_eq!(state.polled_rows(), [2]);
        state.mark_to_give_back(2, Vec::new(), &HashMap::new());
        assert!(!state.is_to_give_back(held(1, 5)) && state.is_to_give_back(held(2, 5)));
        state.hold(held(1, 6), Duration::MAX);
        assert!(!state.hold_left_over(held(1, 5), Duration::MAX));
        assert_eq!((state.epoch(1), state.left_over()), (Some(6), Vec::new()));
    }

    #[test]
    fn the_last_wish_counts_and_one_that_was_not_fulfilled_stays() {
        let mut state = state();
        let wished = |state: &State| state.wish().map(|(_, keys)| keys.to_vec());
        // As long as the replica has not been told its searches, it does not say that it wants
        // none.
        state.want_again();
        assert_eq!(wished(&state), None);
        state.want(vec![key("1")]);
        let (first, _) = state.wish().unwrap();
        state.want(vec![key("2")]);
        state.fulfil(first, HashMap::from([(key("1"), 1)]));
        assert_eq!(wished(&state), Some(vec![key("2")]));
        let (second, _) = state.wish().unwrap();
        state.fulfil(second, HashMap::from([(key("2"), 2)]));
        assert_eq!(wished(&state), None);
        assert_eq!(state.wanted, HashMap::from([(key("2"), 2)]));
    }

    #[test]
    fn rows_of_other_searches_are_forgotten_and_what_is_held_stays() {
        let mut state = state();
        for row in [1, 2] {
            state.hold(held(row, 5), Duration::MAX);
        }
        assert!(state.committed(held(2, 5), 1, 1));
        state.journal.acknowledge("s", 1, None);
        state.want(vec![key("2")]);
        let (wish, _) = state.wish().unwrap();
        state.fulfil(wish, HashMap::from([(key("2"), 2)]));
        state.forget_rows(&[2]);
        assert_eq!((state.leases(), state.take_late()), (vec![held(1, 5)], 1));
        assert!(state.wish().is_some());
        assert!(state.committed(held(1, 5), 1, 1));
        // The row's first event is another one now.
        state
            .journal
            .adopt(held(2, 6), 5, 1, &[("s".to_owned(), 0)]);
        let rows = state.journal.next("s", 9);
        let rows: Vec<_> = rows.iter().map(|it| (it.row, it.first)).collect();
        assert_eq!(rows, [(1, 1), (2, 1)]);
    }

    #[test]
    fn what_is_held_may_be_taken_up_again_without_waiting_for_a_turn() {
        let mut state = state();
        state.wanted = HashMap::from([(key("1"), 1), (key("2"), 2)]);
        state.granted.insert(key("2"));
        assert!(!state.may_take_up(&key("1")) && state.may_take_up(&key("2")));
        state.hold(held(1, 5), Duration::MAX);
        assert!(state.may_take_up(&key("1")));
        state.lose(held(1, 5));
        assert!(!state.may_take_up(&key("1")));
    }

    #[test]
    fn a_row_that_is_locked_is_a_replica_s_that_takes_it_up_until_the_next_look() {
        let mut state = state();
        state.wanted = HashMap::from([(key("1"), 1), (key("2"), 2)]);
        assert!(state.meet_lock(&key("1")) && !state.meet_lock(&key("1")));
        // Another replica had the search, and gave it back.
        state.see_elsewhere(HashSet::from([key("2")]));
        assert!(!state.meet_lock(&key("1")));
        state.see_elsewhere(HashSet::from([key("1")]));
        assert!(state.meet_lock(&key("1")));
        state.meet_no_lock(&key("1"));
        assert!(state.meet_lock(&key("1")));
        // No other replica takes up a search that is held here.
        state.hold(held(2, 5), Duration::MAX);
        assert!(!state.meet_lock(&key("2")));
        // A search that has left and comes back begins anew.
        let wanted = state.wanted.clone();
        state.fulfil(0, HashMap::new());
        state.fulfil(0, wanted);
        assert!(state.meet_lock(&key("1")));
    }

    #[test]
    fn what_is_not_renewed_is_lost_unless_it_was_taken_up_again_since() {
        let mut state = state();
        let soon = clock::since_boot() + Duration::from_secs(5);
        for row in 1..=4 {
            state.hold(held(row, 1), soon);
        }
        let asked = state.leases();
        state.hold(held(2, 2), soon);
        let later = soon + Duration::from_secs(5);
        let (renewed, locked) = (HashSet::from([3]), HashSet::from([4]));
        state.renewed(&asked, &renewed, &locked, later);
        assert_eq!(state.epoch(1), None);
        assert_eq!(state.until(held(2, 2)), Some(soon));
        assert_eq!(state.until(held(3, 1)), Some(later));
        // A lease whose row is locked is neither renewed nor lost.
        assert_eq!(state.until(held(4, 1)), Some(soon));
        // An answer that comes late does not shorten the lease.
        state.renewed(&[held(3, 1)], &renewed, &locked, soon);
        assert_eq!(state.until(held(3, 1)), Some(later));
    }

    #[test]
    fn where_nothing_is_held_any_more_nothing_waits_and_none_came_too_late() {
        let mut state = state();
        for row in [1, 2] {
            state.hold(held(row, 5), Duration::MAX);
            assert!(state.committed(held(row, 5), 1, 1));
        }
        state.lose_all();
        assert_eq!((state.leases(), state.take_late()), (Vec::new(), 0));
        assert!(!state.journal.waits(1) && !state.journal.waits(2));
    }

    #[test]
    fn what_waits_in_a_search_that_was_lost_is_clear_once_somebody_is_known_to_hold_it() {
        let lost = || {
            let mut state = state();
            state.hold(held(1, 5), Duration::ZERO);
            assert!(state.committed(held(1, 5), 1, 1));
            state.expire();
            assert!(state.journal.is_unclear("s"));
            state
        };
        let unclear = HashSet::from([1]);
        let free = Holder::Nobody(Duration::ZERO);
        let lacks = |sink: &str| HashMap::from([(1, vec![sink.to_owned()])]);
        let (one, others, none) = (lacks("s"), lacks("t"), HashMap::new());
        for (owner, is_wanted, left, is_clear) in [
            (Some(Holder::Another), true, &one, true),
            (None, true, &none, true),
            (Some(free), false, &none, true),
            (Some(free), false, &one, false),
            (Some(free), false, &others, true),
            (Some(free), true, &none, false),
            // The server says so if it has not heard that the lease was given up here.
            (Some(Holder::Me), true, &none, false),
        ] {
            let mut state = lost();
            if is_wanted {
                state.wanted = HashMap::from([(key("1"), 1)]);
            }
            let owners = owner.map(|owner| (1, owner)).into_iter().collect();
            let free = state.resolve_unclear(&HashSet::new(), &owners);
            state.resolve_free(&free, left);
            assert!(state.journal.is_unclear("s"), "it was not asked about");
            let free = state.resolve_unclear(&unclear, &owners);
            state.resolve_free(&free, left);
            assert_eq!(
                state.journal.is_unclear("s"),
                !is_clear,
                "{owner:?} {left:?}"
            );
        }
    }

    #[test]
    fn what_was_committed_while_the_lease_was_lost_may_wait() {
        let mut state = state();
        state.hold(held(1, 5), Duration::ZERO);
        state.expire();
        assert!(!state.journal.is_unclear("s"), "nothing has waited");
        let dropped = state.journal.dropped();
        assert!(state.committed(held(1, 5), 1, 1));
        assert!(state.journal.is_unclear("s"));
        assert_ne!(state.journal.dropped(), dropped, "nobody hears of it");
        // The next lease on the search finds the event.
        state.hold(held(1, 6), Duration::MAX);
        state.journal.adopt(held(1, 6), 5, 1, &[]);
        assert!(state.committed(held(1, 5), 1, 1));
        assert!(!state.journal.is_unclear("s"));
    }

    #[test]
    fn no_more_is_given_back_than_is_asked_for_in_all() {
        let mut state = state();
        let soon = clock::since_boot() + Duration::from_secs(5);
        for row in 1..=5 {
            state.hold(held(row, 1), soon);
        }
        let marked = |state: &State| {
            let leases = state.leases();
            let marked = leases.iter().filter(|held| state.is_to_give_back(**held));
            marked.count()
        };
        let give_back = |state: &mut State, count| {
            state.mark_to_give_back(count, Vec::new(), &HashMap::new());
        };
        give_back(&mut state, 2);
        assert_eq!(marked(&state), 2);
        give_back(&mut state, 3);
        assert_eq!(marked(&state), 3);
        give_back(&mut state, 1);
        assert_eq!(marked(&state), 3);
    }

    #[test]
    fn what_is_given_back_and_nobody_takes_is_not_given_back_again() {
        let mut state = state();
        state.hold(held(1, 1), Duration::MAX);
        let (others, me) = (|share| vec![(7, share)], HashMap::from([(1, Holder::Me)]));
        let retaken = |state: &mut State, epoch| {
            assert!(state.is_to_give_back(held(1, epoch - 1)));
            state.hold(held(1, epoch), Duration::MAX);
        };
        state.mark_to_give_back(1, others(1), &me);
        retaken(&mut state, 2);
        state.mark_to_give_back(1, others(1), &me);
        assert!(!state.is_to_give_back(held(1, 2)));
        // The other replica's share has changed.
        state.mark_to_give_back(1, others(2), &me);
        retaken(&mut state, 3);
        // The other replica took the search, and has given it back.
        let other = HashMap::from([(1, Holder::Another)]);
        state.mark_to_give_back(0, others(2), &other);
        state.mark_to_give_back(1, others(2), &me);
        assert!(state.is_to_give_back(held(1, 3)));
    }
}
