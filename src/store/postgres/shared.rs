//! What the store and its loops share: the connections, what is known of leases and journals, and
//! who is told when that changes.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::JoinHandle,
    time::timeout,
};

use super::{
    connection::{ALTOGETHER, Failure, PATIENCE, Pool, longest_statement},
    leases::State,
};
use crate::{
    error_chain::chain,
    identity::SearchKey,
    store::{Error, Held, PanicReport, Past},
};

// How long locks are waited for: a part of a lease, within limits. Renewals are tried for longer than the first
// of these in each round.

/// Whoever holds locks that renewals pass over waits for others' locks for no longer than that at a time. Most
/// locks are held for as long as a commit takes.
const LOCK_WAIT_DIVISOR: u32 = 32;
pub(super) const SHORTEST_LOCK_WAIT: Duration = Duration::from_millis(50);
const LONGEST_LOCK_WAIT: Duration = Duration::from_millis(500);
/// Where that is in vain, it waits for longer, up to that: leases outlast it.
const LONGER_LOCK_WAIT_DIVISOR: u32 = 4;
/// Whoever has locked nothing yet that others need has one of few turns.
const LOCK_WAIT_OF_ONE_DIVISOR: u32 = 8;
const LONGEST_LOCK_WAIT_OF_ONE: Duration = Duration::from_secs(1);
/// A commit waits for its row: a stop and a reload wait for it.
const COMMIT_WAIT_DIVISOR: u32 = 4;
/// It has the row locked while it waits for a table: the lease outlasts that, with what is between two renewals.
const COMMIT_LIMIT_DIVISOR: u32 = 2;
const SHORTEST_COMMIT_LIMIT: Duration = Duration::from_millis(500);
const LONGEST_COMMIT_WAIT: Duration = Duration::from_secs(2);

/// What the store and its loops share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) pool: Pool,
    /// The connection on which leases are renewed: commits that are slow may take all others.
    pub(super) keeper_pool: Pool,
    pub(super) lease: Duration,
    /// Tells the marks of this replica's sinks from those of others.
    pub(super) node: String,
    pub(super) state: Mutex<State>,
    /// Tells of every change of the leases.
    pub(super) changed: watch::Sender<()>,
    /// Tells of everything that happens to the journals.
    pub(super) worked: watch::Sender<()>,
    pub(super) journalled: watch::Sender<i64>,
    pub(super) trouble: watch::Sender<Option<String>>,
    /// Whether somebody has met a table that is not there. The keeper itself asks for few of them.
    pub(super) missed: AtomicBool,
    /// Has the keeper look at the shares soon.
    pub(super) wake: Notify,
    /// Tells that something was delivered.
    pub(super) delivered: Notify,
    pub(super) takes: Semaphore,
    /// Turns of commits that wait for a row that somebody has locked.
    pub(super) patient: Semaphore,
    /// One at a time says which sinks this replica has.
    pub(super) naming: tokio::sync::Mutex<()>,
    /// One at a time tells the server how far a sink has come.
    pub(super) saving: Mutex<HashMap<Box<str>, Arc<tokio::sync::Mutex<()>>>>,
    /// Why nobody looks after the state any more.
    pub(super) lost: watch::Sender<Option<Error>>,
    /// The keeper panics with its next round.
    #[cfg(test)]
    pub(super) panics: AtomicBool,
    /// The loops; none once the store was closed.
    pub(super) loops: Mutex<Option<[JoinHandle<()>; 3]>>,
}

/// What a sink is delivering.
#[derive(Debug)]
pub(in crate::store) struct Loan {
    pub(super) shared: Arc<Shared>,
    pub(super) sink: Box<str>,
    pub(super) number: u64,
    pub(super) leases: Vec<Held>,
    pub(super) past: Past,
}

/// A commit, with room in the journal for its events, until it is known what became of it.
pub(super) struct Committing<'a> {
    pub(super) shared: &'a Shared,
    pub(super) held: Held,
    pub(super) events: u64,
    /// Whether events are kept.
    pub(super) kept: bool,
    pub(super) is_settled: bool,
}

/// A search that is being taken up.
pub(super) struct Taking<'a> {
    pub(super) shared: &'a Shared,
    pub(super) key: &'a SearchKey,
}

// === impl Shared ===

impl Shared {
    /// Begins something that goes on until the store is closed.
    pub(super) fn begin(
        &self,
        part: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let panics = PanicReport {
            part,
            lost: self.lost.clone(),
        };
        tokio::spawn(async move {
            let _panics = panics;
            work.await;
        })
    }

    pub(super) fn look<A>(&self, at: impl FnOnce(&State) -> A) -> A {
        at(&self.state.lock())
    }

    /// Changes leases, and whatever belongs to them: all searches look up.
    pub(super) fn change_leases<A>(&self, change: impl FnOnce(&mut State) -> A) -> A {
        let answer = self.change_journals(change);
        self.changed.send_replace(());
        answer
    }

    /// Changes what no search waits for, the journals above all: no lease begins, changes or ends.
    pub(super) fn change_journals<A>(&self, change: impl FnOnce(&mut State) -> A) -> A {
        let (answer, dropped) = {
            let mut state = self.state.lock();
            let before = state.journal.dropped();
            let answer = change(&mut state);
            (answer, state.journal.dropped() != before)
        };
        if dropped {
            // Sinks have a smaller backlog.
            self.journalled.send_modify(|_| {});
        }
        self.worked.send_replace(());
        answer
    }

    /// Forgets the leases whose time is over. Mostly there are none, and nobody is told.
    pub(super) fn expire(&self) {
        if self.look(State::is_any_over) {
            self.change_leases(State::expire);
        }
    }

    pub(super) fn number(&self) -> Result<i64, Failure> {
        self.look(|state| state.replica).ok_or(Failure::NotJoined)
    }

    pub(super) fn lease_seconds(&self) -> f64 {
        self.lease.as_secs_f64()
    }

    /// How long to wait, at first, for a lock that somebody may hold for ever.
    pub(super) fn lock_wait(&self) -> Duration {
        (self.lease / LOCK_WAIT_DIVISOR).clamp(SHORTEST_LOCK_WAIT, LONGEST_LOCK_WAIT)
    }

    /// How long to wait for it at last.
    pub(super) fn longest_lock_wait(&self) -> Duration {
        (self.lease / LONGER_LOCK_WAIT_DIVISOR).max(SHORTEST_LOCK_WAIT)
    }

    /// How long to wait for it where nothing else is locked meanwhile.
    pub(super) fn lock_wait_of_one(&self) -> Duration {
        (self.lease / LOCK_WAIT_OF_ONE_DIVISOR).clamp(SHORTEST_LOCK_WAIT, LONGEST_LOCK_WAIT_OF_ONE)
    }

    /// How long a commit waits for its search's row.
    pub(super) fn commit_wait(&self) -> Duration {
        (self.lease / COMMIT_WAIT_DIVISOR).clamp(SHORTEST_LOCK_WAIT, LONGEST_COMMIT_WAIT)
    }

    /// How long a statement of a commit may take, to the tenth of a second, as it is told.
    pub(super) fn commit_limit(&self) -> Duration {
        let longest = longest_statement(PATIENCE);
        let limit = (self.lease / COMMIT_LIMIT_DIVISOR).clamp(SHORTEST_COMMIT_LIMIT, longest);
        limit - Duration::from_nanos(u64::from(limit.subsec_nanos() % 100_000_000))
    }

    /// Until when a lease can be relied on that was asked for then: a little less than the server
    /// counts, for clocks do not run at the same speed.
    pub(super) fn relied_on_until(&self, asked: Duration) -> Duration {
        asked + self.lease * 9 / 10
    }

    pub(super) fn tell_sinks(&self, end: i64) {
        self.journalled.send_if_modified(|told| {
            let news = *told < end;
            *told = end.max(*told);
            news
        });
    }

    /// Does what is asked of the server, which never takes for ever, and takes note of what may concern
    /// all: tables that are not there.
    pub(super) async fn bounded<A>(
        &self,
        work: impl Future<Output = Result<A, Failure>>,
    ) -> Result<A, Failure> {
        let done = timeout(ALTOGETHER, work).await;
        let done = done.unwrap_or(Err(Failure::Timeout));
        if done.as_ref().is_err_and(Failure::is_of_missing_tables) {
            self.miss_tables();
        }
        done
    }

    /// Takes note that a table is not there.
    pub(super) fn miss_tables(&self) {
        self.missed.store(true, Ordering::Relaxed);
    }

    /// Whether anybody has met a table that is not there since this was last asked.
    pub(super) fn takes_tables_for_missing(&self) -> bool {
        self.missed.swap(false, Ordering::Relaxed)
    }

    /// Says in what trouble the server is, where that has changed.
    pub(super) fn tell(&self, failure: Option<&Failure>) {
        let text = failure.map(|failure| chain(failure));
        let was = self.trouble.borrow().clone();
        match (&was, &text) {
            (None, Some(error)) => tracing::error!(
                error,
                "the state database cannot be used; polling pauses when the leases have ended, \
                 and goes on by itself"
            ),
            (Some(_), None) => tracing::info!("the state database can be used again"),
            _ => {}
        }
        if was != text {
            self.trouble.send_replace(text);
        }
    }

    pub(super) fn saving(&self, sink: &str) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.saving.lock().entry(sink.into()).or_default())
    }
}

impl From<tokio::time::error::Elapsed> for Failure {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        Self::Timeout
    }
}

// === impl Loan ===

impl Loan {
    /// Whether all leases can be relied on.
    pub(in crate::store) fn holds(&self) -> bool {
        self.shared.look(|state| {
            let mut leases = self.leases.iter();
            leases.all(|held| state.is_held(*held))
        })
    }

    pub(in crate::store) fn past(&self) -> Past {
        self.past
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.shared
            .change_journals(|state| state.journal.give_back(&self.sink, self.number));
    }
}

// === impl Committing ===

impl Committing<'_> {
    /// Whether it has events to be journalled.
    pub(super) fn is_to_journal(&self) -> bool {
        self.kept && self.events > 0
    }

    /// Takes note of what became of it. Its room is given back at the same time, so that nobody finds its
    /// events counted twice, or not at all.
    pub(super) fn settle<A>(mut self, change: impl FnOnce(&mut State) -> A) -> A {
        self.is_settled = true;
        self.shared.change_journals(|state| {
            state.journal.unreserve(self.events);
            change(state)
        })
    }
}

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            // Nobody waits for the answer: it may have been done, as where that is lost.
            self.shared.change_leases(|state| {
                state.journal.unreserve(self.events);
                if self.is_to_journal() {
                    state.lose_in_doubt(self.held, i64::MAX);
                } else {
                    state.lose(self.held);
                }
            });
        }
    }
}

// === impl Taking ===

impl<'a> Taking<'a> {
    pub(super) fn new(shared: &'a Shared, key: &'a SearchKey) -> Self {
        shared.change_leases(|state| {
            state.granted.remove(key);
            state.taking.insert(key.clone());
        });
        Self { shared, key }
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        self.shared.change_leases(|state| {
            state.taking.remove(self.key);
        });
    }
}
