//! The leases of this replica: which searches it holds and until when, as far as it may rely on
//! it, and which ones it may take up.
//!
//! A lease is relied on for a little less than the server counts, and from the moment on at which
//! it was asked for, by a clock that goes on while the process is stopped and while the machine
//! sleeps. So whoever wakes up late finds that its time is over before the server would say so.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio_postgres::Row;

use super::{
    connection::Failure,
    journal::{Journal, Position, Unsaved},
    shares::{Holder, Search, Survey},
};
use crate::{
    clock,
    identity::SearchKey,
    store::{Held, left_sinks::Waiting},
};

/// What this replica knows of itself.
#[derive(Debug)]
pub(super) struct State {
    /// Its number, once it is registered.
    pub(super) replica: Option<i64>,
    /// How many searches it wants.
    pub(super) share: usize,
    /// How many replicas there were when that was last told.
    pub(super) replicas: usize,
    /// The sinks that it shall have, once it was told.
    pub(super) sinks: Option<Vec<String>>,
    /// Those that no replica had when it last looked, and what it has told of them.
    pub(super) left: BTreeMap<String, Waiting>,
    /// Whether no other replica ran when it last looked for these: then they make room where there is none.
    pub(super) is_alone: bool,
    /// The searches that it would poll, once it was told.
    keys: Option<Arc<[SearchKey]>>,
    /// Grows with each wish to have their rows looked up.
    wish: u64,
    /// The wish that was last fulfilled.
    fulfilled: u64,
    /// Their rows, as they were found then.
    pub(super) wanted: HashMap<SearchKey, i64>,
    /// When that was, since the machine's start.
    pub(super) wanted_since: Option<Duration>,
    /// Those that it may take up now.
    pub(super) granted: HashSet<SearchKey>,
    /// Those that another replica holds.
    pub(super) elsewhere: HashSet<SearchKey>,
    /// Those that it is taking up.
    pub(super) taking: HashSet<SearchKey>,
    /// Those whose rows were locked when they were last to be taken up, and that no other replica has been seen
    /// to hold since.
    locked: HashSet<SearchKey>,
    /// When the first lease of another replica ends that has not been renewed, since the machine's
    /// start.
    pub(super) look_at: Option<Duration>,
    /// Searches that it gave back and nobody else has taken, and who the others with their shares
    /// were at that time.
    unclaimed: HashSet<i64>,
    others: Vec<(i64, usize)>,
    holds: HashMap<i64, Hold>,
    /// Leases that were not renewed in time, and of which nothing has been said yet.
    lost: usize,
    pub(super) journal: Journal,
}

/// A lease.
#[derive(Clone, Copy, Debug)]
struct Hold {
    epoch: i64,
    /// Until when it can be relied on, since the machine's start.
    until: Duration,
    /// Whether others shall have it.
    unwanted: bool,
    /// Whether nobody polls the search, and it is held to deliver what is left of it.
    left_over: bool,
}

// === impl State ===

impl State {
    pub(super) fn new(journal: Journal) -> Self {
        Self {
            replica: None,
            share: 0,
            replicas: 0,
            sinks: None,
            left: BTreeMap::new(),
            is_alone: false,
            keys: None,
            wish: 0,
            fulfilled: 0,
            wanted: HashMap::new(),
            wanted_since: None,
            granted: HashSet::new(),
            elsewhere: HashSet::new(),
            taking: HashSet::new(),
            locked: HashSet::new(),
            look_at: None,
            unclaimed: HashSet::new(),
            others: Vec::new(),
            holds: HashMap::new(),
            lost: 0,
            journal,
        }
    }

    /// Takes note of which searches it would poll.
    pub(super) fn want(&mut self, keys: Vec<SearchKey>) {
        self.keys = Some(keys.into());
        self.want_again();
    }

    /// Has their rows looked up once more.
    pub(super) fn want_again(&mut self) {
        self.wish += 1;
    }

    /// The searches whose rows are to be looked up, and which wish that is. It stays one until it
    /// [is fulfilled](Self::fulfil), whatever becomes of the look-up: one may fail, or be given up.
    pub(super) fn wish(&self) -> Option<(u64, Arc<[SearchKey]>)> {
        let keys = self.keys.as_ref().filter(|_| self.wish != self.fulfilled)?;
        Some((self.wish, Arc::clone(keys)))
    }

    /// Takes note of the rows that were found. Another wish may have come since.
    pub(super) fn fulfil(&mut self, wish: u64, wanted: HashMap<SearchKey, i64>) {
        self.fulfilled = wish;
        self.locked.retain(|key| wanted.contains_key(key));
        self.wanted = wanted;
        self.wanted_since = Some(clock::since_boot());
    }

    /// Takes note that there is no search that it would poll.
    pub(super) fn want_none(&mut self) {
        self.share = 0;
        self.granted.clear();
        self.elsewhere.clear();
    }

    /// Takes note that rows are gone, or stand for other searches than before. So may those of which
    /// only a memory is left; what is held beside them is not concerned.
    pub(super) fn forget_rows(&mut self, rows: &[i64]) {
        for row in rows {
            if let Some(epoch) = self.epoch(*row) {
                self.come_too_late(Held { row: *row, epoch });
            }
        }
        let holds = &self.holds;
        self.journal.forget_unless(|row| holds.contains_key(&row));
        self.want_again();
    }

    /// Takes note of a lease.
    pub(super) fn hold(&mut self, held: Held, until: Duration) {
        let hold = Hold {
            epoch: held.epoch,
            until,
            unwanted: false,
            left_over: false,
        };
        self.holds.insert(held.row, hold);
    }

    /// Takes note of a lease on a search that is only delivered. Brings whether it counts: not where
    /// the search was taken up to be polled since.
    pub(super) fn hold_left_over(&mut self, held: Held, until: Duration) -> bool {
        let counts = self.epoch(held.row).is_none_or(|epoch| epoch < held.epoch);
        if counts {
            self.hold(held, until);
        }
        if counts && let Some(hold) = self.holds.get_mut(&held.row) {
            hold.left_over = true;
        }
        counts
    }

    /// The leases on searches that are only delivered.
    pub(super) fn left_over(&self) -> Vec<Held> {
        let mut leases = self.leases();
        leases.retain(|held| self.is_left_over(held.row));
        leases
    }

    fn is_left_over(&self, row: i64) -> bool {
        self.holds.get(&row).is_some_and(|hold| hold.left_over)
    }

    /// Takes note that a search is no longer held, and that its events are for whoever takes it up to
    /// deliver. Brings whether it was.
    pub(super) fn lose(&mut self, held: Held) -> bool {
        let was_held = self.epoch(held.row) == Some(held.epoch);
        if was_held {
            self.holds.remove(&held.row);
            self.journal.lose_search(held.row);
        }
        was_held
    }

    /// The same where events up to and with `end` may have been committed of which nothing is known here: they may
    /// wait for every sink. Not where the search was taken up again since: whatever was committed was found then,
    /// and nothing is afterwards.
    pub(super) fn lose_in_doubt(&mut self, held: Held, end: i64) {
        self.lose(held);
        if self.epoch(held.row).is_none() {
            self.journal.doubt(held.row, end);
        }
    }

    /// The same where it was not given back, but not renewed in time.
    pub(super) fn come_too_late(&mut self, held: Held) {
        self.lost += usize::from(self.lose(held));
    }

    /// How many searches were lost so since this was last asked.
    pub(super) fn take_lost(&mut self) -> usize {
        std::mem::take(&mut self.lost)
    }

    /// Takes note that nothing is held.
    pub(super) fn lose_all(&mut self) {
        for held in self.leases() {
            self.lose(held);
        }
    }

    /// Takes note of events that were committed, at positions up to and with `end`. They wait to
    /// be delivered here as long as nobody else is known to hold the search, even where the lease
    /// cannot be relied on at this moment: it may be renewed yet. Where it was lost meanwhile, they may be
    /// nobody's. Brings whether all is well with the search's journal; where it is not, the search is lost.
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

    /// Takes note of all sinks that the server knows, and of its `own`; of those that are new here,
    /// `positions` were read under these `leases`. Brings whether that could be: not where a search was taken up
    /// since, of which there is no position.
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
        let is_complete = all.iter().all(|name| self.journal.knows(name))
            || self.leases().iter().all(|held| read.contains(held));
        if is_complete {
            let held = |it: &&Position| self.holds.contains_key(&it.row);
            let positions: Vec<_> = positions.iter().filter(held).cloned().collect();
            self.journal.set_sinks(own, &all, &positions);
        }
        is_complete
    }

    /// What the server is to be told of a sink, and under which epochs.
    pub(super) fn unsaved(&mut self, sink: &str) -> (Unsaved, Vec<i64>) {
        let holds = &self.holds;
        let mut unsaved = self.journal.unsaved(sink, |row| holds.contains_key(&row));
        unsaved.positions.sort_unstable();
        let rows = unsaved.positions.iter().map(|(row, _)| *row);
        let epochs = rows.filter_map(|row| self.epoch(row)).collect();
        (unsaved, epochs)
    }

    /// Whether a lease can be relied on.
    pub(super) fn is_held(&self, held: Held) -> bool {
        self.until(held) > Some(clock::since_boot())
    }

    /// Until when a lease can be relied on. `None`: it is lost.
    pub(super) fn until(&self, held: Held) -> Option<Duration> {
        let hold = self.holds.get(&held.row)?;
        (hold.epoch == held.epoch).then_some(hold.until)
    }

    /// Whether others shall have it.
    pub(super) fn is_unwanted(&self, held: Held) -> bool {
        let hold = self.holds.get(&held.row);
        hold.is_some_and(|hold| hold.unwanted)
    }

    /// The epoch under which a search is held.
    pub(super) fn epoch(&self, row: i64) -> Option<i64> {
        self.holds.get(&row).map(|hold| hold.epoch)
    }

    /// All leases, also those whose time is over and that have not been renewed yet.
    pub(super) fn leases(&self) -> Vec<Held> {
        let holds = self.holds.iter();
        holds
            .map(|(row, hold)| Held {
                row: *row,
                epoch: hold.epoch,
            })
            .collect()
    }

    /// The searches whose leases can be relied on.
    pub(super) fn held_rows(&self) -> Vec<i64> {
        let now = clock::since_boot();
        let holds = self.holds.iter().filter(|(_, hold)| hold.until > now);
        holds.map(|(row, _)| *row).collect()
    }

    /// Those of them that are polled.
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

    /// Forgets the leases whose time is over, with what waits to be delivered.
    pub(super) fn expire(&mut self) {
        let now = clock::since_boot();
        let mut over = self.leases();
        over.retain(|held| self.until(*held).is_some_and(|until| until <= now));
        for held in over {
            self.come_too_late(held);
        }
    }

    /// Takes note of which of the leases that were `asked` for the server has renewed. One whose row
    /// was `locked` is ours still: it ends when its time is over, as if nobody had asked.
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
                self.come_too_late(*held);
            }
        }
    }

    /// Marks so many searches to be given back, those that are marked already among them. Not again
    /// one that nobody else has taken since, as long as the `others` are the same and want as many:
    /// they may be configured differently, and nobody polls it in between.
    pub(super) fn give_back(
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
        let marked = self.holds.values().filter(|hold| hold.unwanted).count();
        let unclaimed = &self.unclaimed;
        let wanted = |(row, hold): &(&i64, &mut Hold)| {
            !hold.unwanted && !hold.left_over && !unclaimed.contains(row)
        };
        let mut wanted: Vec<_> = self.holds.iter_mut().filter(wanted).collect();
        fastrand::shuffle(&mut wanted);
        let given = wanted.into_iter().take(count.saturating_sub(marked));
        let given: Vec<i64> = given
            .map(|(row, hold)| {
                hold.unwanted = true;
                *row
            })
            .collect();
        self.unclaimed.extend(given);
    }

    /// Adds the searches to a survey: those of `owners` by row, with who holds them. What is being taken up
    /// takes room, and may come to nothing. What the server takes for ours and we do not, since the answer
    /// to a commit was lost for instance, is free for us.
    pub(super) fn survey(&self, survey: &mut Survey, owners: &HashMap<i64, Holder>) {
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
        survey.searches.extend(searches);
    }

    /// Takes note of who holds the searches that were lost, of those that the server was asked about as
    /// `unclear` ones: nothing waits here of what another holds, nor of what is gone, nor of what is
    /// free, unless something is `left` in it for the sink or it shall be polled.
    pub(super) fn settle(
        &mut self,
        unclear: &HashSet<i64>,
        owners: &HashMap<i64, Holder>,
        left: &HashMap<i64, Vec<&str>>,
    ) {
        let wanted: HashSet<i64> = self.wanted.values().copied().collect();
        let is_left = |sink: &str, row| {
            let mut sinks = left.get(&row).into_iter().flatten();
            sinks.any(|left| *left == sink)
        };
        self.journal.settle(|sink, row| {
            unclear.contains(&row)
                && match owners.get(&row) {
                    None | Some(Holder::Another) => true,
                    Some(Holder::Me | Holder::Taking | Holder::Nobody(_)) => {
                        !wanted.contains(&row) && !is_left(sink, row)
                    }
                }
        });
    }

    /// Those among the searches whose rows are like that.
    pub(super) fn keys_of(&self, is_it: impl Fn(i64) -> bool) -> HashSet<SearchKey> {
        let those = self.wanted.iter().filter(|(_, row)| is_it(**row));
        those.map(|(key, _)| key.clone()).collect()
    }

    /// Whether it may take a search up: now is its turn, or it holds it already. Whoever polled it
    /// with other options leaves it to be polled on.
    pub(super) fn may_take_up(&self, key: &SearchKey) -> bool {
        self.granted.contains(key) || self.lease_on(key).is_some()
    }

    /// Takes note that a search was to be taken up whose row somebody has locked. Brings whether that may be another
    /// replica that takes it up: not where it is so for the second time, nor of what is held here.
    pub(super) fn meet_lock(&mut self, key: &SearchKey) -> bool {
        self.lease_on(key).is_none() && self.locked.insert(key.clone())
    }

    /// Takes note that a search's row could be locked.
    pub(super) fn meet_no_lock(&mut self, key: &SearchKey) {
        self.locked.remove(key);
    }

    /// Takes note of which searches other replicas hold.
    pub(super) fn see_elsewhere(&mut self, elsewhere: HashSet<SearchKey>) {
        self.locked.retain(|key| !elsewhere.contains(key));
        self.elsewhere = elsewhere;
    }

    /// The lease on a search.
    pub(super) fn lease_on(&self, key: &SearchKey) -> Option<Held> {
        let row = *self.wanted.get(key)?;
        let epoch = self.epoch(row)?;
        Some(Held { row, epoch })
    }
}

/// Leases as a statement takes them: the rows of their searches, and the epochs beside them.
pub(super) fn rows_and_epochs(leases: &[Held]) -> (Vec<i64>, Vec<i64>) {
    leases.iter().map(|held| (held.row, held.epoch)).unzip()
}

/// What a statement tells that passes over rows that somebody has locked: the searches for which it did
/// what it was to do, and those for which it did not.
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
        assert_eq!((state.take_lost(), state.take_lost()), (1, 0));
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
        // What somebody else holds by now is theirs to deliver.
        assert!(state.committed(held(2, 5), 1, 1) && !state.journal.waits(2));
        // Positions that have been given before: it has to be taken up anew.
        state.journal.acknowledge("s", 2, None);
        state.journal.settle(|_, _| true);
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
        let mut survey = Survey::default();
        state.survey(&mut survey, &(1..=3).map(|row| (row, Holder::Me)).collect());
        survey.searches.sort_unstable_by_key(|search| search.row);
        let holders: Vec<_> = survey.searches.iter().map(|it| it.holder).collect();
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
        // One that was lost since is others' to deliver.
        let leases = state.leases();
        assert!(state.committed(held(2, 5), 1, 1) && state.lose(held(2, 5)));
        assert!(state.learn_sinks(&[], all(), &leases, &positions));
        let rows = state.journal.next("t", 9);
        let rows: Vec<_> = rows.iter().map(|it| (it.row, it.first, it.count)).collect();
        assert_eq!(rows, [(1, 2, 1)]);
    }

    #[test]
    fn what_is_left_over_is_neither_shown_nor_anothers_share_and_makes_way_for_polls() {
        let mut state = state();
        assert!(state.hold_left_over(held(1, 5), Duration::MAX));
        state.hold(held(2, 5), Duration::MAX);
        assert_eq!(state.left_over(), [held(1, 5)]);
        assert_eq!(state.polled_rows(), [2]);
        state.give_back(2, Vec::new(), &HashMap::new());
        assert!(!state.is_unwanted(held(1, 5)) && state.is_unwanted(held(2, 5)));
        state.hold(held(1, 6), Duration::MAX);
        assert!(!state.hold_left_over(held(1, 5), Duration::MAX));
        assert_eq!((state.epoch(1), state.left_over()), (Some(6), Vec::new()));
    }

    #[test]
    fn the_last_wish_counts_and_one_that_was_not_fulfilled_stays() {
        let mut state = state();
        let wished = |state: &State| state.wish().map(|(_, keys)| keys.to_vec());
        // Before it is told anything, it does not say that it wants nothing.
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
        // Another one had it, and gave it back.
        state.see_elsewhere(HashSet::from([key("2")]));
        assert!(!state.meet_lock(&key("1")));
        state.see_elsewhere(HashSet::from([key("1")]));
        assert!(state.meet_lock(&key("1")));
        state.meet_no_lock(&key("1"));
        assert!(state.meet_lock(&key("1")));
        // What is held here nobody else takes up.
        state.hold(held(2, 5), Duration::MAX);
        assert!(!state.meet_lock(&key("2")));
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
        // What could not be asked for is neither renewed nor lost.
        assert_eq!(state.until(held(4, 1)), Some(soon));
        // An answer that comes late does not shorten it.
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
        assert_eq!((state.leases(), state.take_lost()), (Vec::new(), 0));
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
        let (one, none) = (HashMap::from([(1, vec!["s"])]), HashMap::new());
        let others = HashMap::from([(1, vec!["t"])]);
        for (owner, is_wanted, left, is_clear) in [
            (Some(Holder::Another), true, &one, true),
            (None, true, &none, true),
            (Some(free), false, &none, true),
            (Some(free), false, &one, false),
            (Some(free), false, &others, true),
            (Some(free), true, &none, false),
            // So the server says where it has not heard that a lease was given up here.
            (Some(Holder::Me), true, &none, false),
        ] {
            let mut state = lost();
            if is_wanted {
                state.wanted = HashMap::from([(key("1"), 1)]);
            }
            let owners = owner.map(|owner| (1, owner)).into_iter().collect();
            state.settle(&HashSet::new(), &owners, left);
            assert!(state.journal.is_unclear("s"), "it was not asked about");
            state.settle(&unclear, &owners, left);
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
        assert!(state.committed(held(1, 5), 1, 1));
        assert!(state.journal.is_unclear("s"));
        // Whoever takes it up finds it.
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
        let unwanted = |state: &State| {
            let leases = state.leases();
            let unwanted = leases.iter().filter(|held| state.is_unwanted(**held));
            unwanted.count()
        };
        let give_back = |state: &mut State, count| {
            state.give_back(count, Vec::new(), &HashMap::new());
        };
        give_back(&mut state, 2);
        assert_eq!(unwanted(&state), 2);
        give_back(&mut state, 3);
        assert_eq!(unwanted(&state), 3);
        give_back(&mut state, 1);
        assert_eq!(unwanted(&state), 3);
    }

    #[test]
    fn what_is_given_back_and_nobody_takes_is_not_given_back_again() {
        let mut state = state();
        state.hold(held(1, 1), Duration::MAX);
        let (others, me) = (|share| vec![(7, share)], HashMap::from([(1, Holder::Me)]));
        let retaken = |state: &mut State, epoch| {
            assert!(state.is_unwanted(held(1, epoch - 1)));
            state.hold(held(1, epoch), Duration::MAX);
        };
        state.give_back(1, others(1), &me);
        retaken(&mut state, 2);
        state.give_back(1, others(1), &me);
        assert!(!state.is_unwanted(held(1, 2)));
        // The other has been changed.
        state.give_back(1, others(2), &me);
        retaken(&mut state, 3);
        // It took it, and has given it back itself.
        let other = HashMap::from([(1, Holder::Another)]);
        state.give_back(0, others(2), &other);
        state.give_back(1, others(2), &me);
        assert!(state.is_unwanted(held(1, 3)));
    }
}
