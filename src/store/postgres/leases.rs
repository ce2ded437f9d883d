//! The leases of this replica: which searches it holds and until when, as far as it may rely on
//! it, and which ones it may take up.
//!
//! A lease is relied on for a little less than the server counts, and from the moment on at which
//! it was asked for, by a clock that goes on while the process is stopped and while the machine
//! sleeps. So whoever wakes up late finds that its time is over before the server would say so.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use super::{
    journal::Journal,
    shares::{Holder, Search, Survey},
};
use crate::{clock, identity::SearchKey, store::Held};

/// What this replica knows of itself.
#[derive(Debug)]
pub(super) struct State {
    /// Its number, once it is registered.
    pub(super) replica: Option<i64>,
    /// How many searches it wants.
    pub(super) share: usize,
    /// Its sinks, once it was told.
    pub(super) sinks: Option<Vec<String>>,
    /// The searches that it would poll, by row.
    pub(super) wanted: HashMap<i64, SearchKey>,
    /// Those that it may take up now.
    pub(super) granted: HashSet<SearchKey>,
    /// Those that another replica holds.
    pub(super) elsewhere: HashSet<SearchKey>,
    /// Those that it is taking up.
    pub(super) taking: HashSet<SearchKey>,
    holds: HashMap<i64, Hold>,
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
}

// === impl State ===

impl State {
    pub(super) fn new(journal: Journal) -> Self {
        Self {
            replica: None,
            share: 0,
            sinks: None,
            wanted: HashMap::new(),
            granted: HashSet::new(),
            elsewhere: HashSet::new(),
            taking: HashSet::new(),
            holds: HashMap::new(),
            journal,
        }
    }

    /// Takes note of a lease.
    pub(super) fn hold(&mut self, held: Held, until: Duration) {
        let hold = Hold {
            epoch: held.epoch,
            until,
            unwanted: false,
        };
        self.holds.insert(held.row, hold);
    }

    /// Takes note that a search is no longer held, and that its events are others' to deliver.
    pub(super) fn lose(&mut self, held: Held) {
        if self
            .holds
            .get(&held.row)
            .is_some_and(|it| it.epoch == held.epoch)
        {
            self.holds.remove(&held.row);
            self.journal.drop_search(held.row);
        }
    }

    /// Takes note that nothing is held.
    pub(super) fn lose_all(&mut self) {
        for held in self.leases() {
            self.lose(held);
        }
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

    /// Forgets the leases whose time is over, with what waits to be delivered.
    pub(super) fn expire(&mut self) {
        let now = clock::since_boot();
        for held in self.leases() {
            if self.until(held).is_some_and(|until| until <= now) {
                self.lose(held);
            }
        }
    }

    /// Takes note of which of the leases that were `asked` for the server has renewed.
    pub(super) fn renewed(&mut self, asked: &[Held], renewed: &HashSet<i64>, until: Duration) {
        for held in asked {
            if !renewed.contains(&held.row) {
                self.lose(*held);
            } else if let Some(hold) = self.holds.get_mut(&held.row)
                && hold.epoch == held.epoch
            {
                hold.until = hold.until.max(until);
            }
        }
    }

    /// Marks so many searches to be given back, those that are marked already among them.
    pub(super) fn give_back(&mut self, count: usize) {
        let marked = self.holds.values().filter(|hold| hold.unwanted).count();
        let mut others: Vec<_> = self.holds.values_mut().filter(|it| !it.unwanted).collect();
        fastrand::shuffle(&mut others);
        for hold in others.into_iter().take(count.saturating_sub(marked)) {
            hold.unwanted = true;
        }
    }

    /// Adds the searches to a survey: those of `owners` by row, with who holds them. What is being
    /// taken up counts as held.
    pub(super) fn survey(&self, survey: &mut Survey, owners: Vec<(i64, Holder)>) {
        let holder = |row: i64, holder| match self.wanted.get(&row) {
            Some(key) if self.taking.contains(key) => Holder::Me,
            _ => holder,
        };
        let searches = owners.into_iter().map(|(row, told)| Search {
            row,
            holder: holder(row, told),
        });
        survey.searches.extend(searches);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let mut journal = Journal::new(9, 0);
        let sinks = ["s".to_owned()];
        journal.set_sinks(&sinks, &sinks);
        State::new(journal)
    }

    fn held(row: i64, epoch: i64) -> Held {
        Held { row, epoch }
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
        assert!(state.journal.waits(1) && !state.journal.waits(2));
    }

    #[test]
    fn what_is_not_renewed_is_lost_unless_it_was_taken_up_again_since() {
        let mut state = state();
        let soon = clock::since_boot() + Duration::from_secs(5);
        for row in 1..=3 {
            state.hold(held(row, 1), soon);
        }
        let asked = state.leases();
        state.hold(held(2, 2), soon);
        let later = soon + Duration::from_secs(5);
        state.renewed(&asked, &HashSet::from([3]), later);
        assert_eq!(state.epoch(1), None);
        assert_eq!(state.until(held(2, 2)), Some(soon));
        assert_eq!(state.until(held(3, 1)), Some(later));
        // An answer that comes late does not shorten it.
        state.renewed(&[held(3, 1)], &HashSet::from([3]), soon);
        assert_eq!(state.until(held(3, 1)), Some(later));
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
        state.give_back(2);
        assert_eq!(unwanted(&state), 2);
        state.give_back(3);
        assert_eq!(unwanted(&state), 3);
        state.give_back(1);
        assert_eq!(unwanted(&state), 3);
    }
}
