//! What the store and its loops share: the connections, what is known of leases and journals, and
//! channels that tell of changes.

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
    connection::{ALTOGETHER, CONNECTIONS, Failure, PATIENCE, Pool, longest_statement},
    journal::Journal,
    leases::State,
};
use crate::{
    clock,
    error_chain::chain,
    identity::SearchKey,
    secret::SecretSource,
    store::{Error, Held, PanicReport, Past, Right},
};

/// Maximum number of searches that are taken up at the same time. After another replica has died,
/// all of its searches at once would be a burden for the server.
const TAKES_AT_ONCE: usize = 4;

/// Maximum number of commits that wait at the same time for rows that another transaction has
/// locked. Together with `TAKES_AT_ONCE`, this leaves a connection to other work.
const PATIENT_COMMITS: usize = 2;

/// Maximum number of commits that have a connection at the same time. If all of them wait for a
/// table that somebody has locked, two connections are left to the look at the leases, to take-ups
/// and to sinks.
const COMMITS_AT_ONCE: usize = CONNECTIONS - 3;

// How long locks are waited for: a part of a lease, within limits. In each round, renewals are
// tried for longer than the first of these waits.

/// Divides a lease into the longest wait for one lock while locks are held that renewals pass
/// over. Most locks that are waited for are held for as long as a commit takes.
const LOCK_WAIT_DIVISOR: u32 = 32;
pub(super) const SHORTEST_LOCK_WAIT: Duration = Duration::from_millis(50);
const LONGEST_LOCK_WAIT: Duration = Duration::from_millis(500);
/// Divides a lease into the longest wait of that kind, after shorter ones were in vain. Leases
/// outlast it.
const LONGER_LOCK_WAIT_DIVISOR: u32 = 4;
/// Divides a lease into the wait for a lock while nothing is locked that others need. Only few
/// such waits go on at a time.
const LOCK_WAIT_OF_ONE_DIVISOR: u32 = 8;
const LONGEST_LOCK_WAIT_OF_ONE: Duration = Duration::from_secs(1);
/// Divides a lease into a commit's wait for its row. A stop and a reload wait for the commit.
const COMMIT_WAIT_DIVISOR: u32 = 4;
/// Divides a lease into the longest statement of a commit, which has the row locked while it waits
/// for a table. The lease outlasts this limit plus the time between two renewals.
const COMMIT_LIMIT_DIVISOR: u32 = 2;
const SHORTEST_COMMIT_LIMIT: Duration = Duration::from_millis(500);
const LONGEST_COMMIT_WAIT: Duration = Duration::from_secs(2);

/// What the store and its loops share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) pool: Pool,
    /// The connection on which leases are renewed. It is separate, because slow commits may take
    /// all others.
    pub(super) keeper_pool: Pool,
    pub(super) lease: Duration,
    /// This replica's name, which distinguishes the marks of its sinks from those of other
    /// replicas.
    pub(super) node: String,
    pub(super) state: Mutex<State>,
    /// Tells of every change of the leases.
    pub(super) changed: watch::Sender<()>,
    /// Tells of everything that happens to the journals.
    pub(super) worked: watch::Sender<()>,
    pub(super) journalled: watch::Sender<i64>,
    pub(super) trouble: watch::Sender<Option<String>>,
    /// Whether somebody has met a missing table. The keeper's own questions touch few of the
    /// tables.
    pub(super) table_missing: AtomicBool,
    /// Makes the keeper look at the leases soon.
    pub(super) wake: Notify,
    /// Tells that something was delivered.
    pub(super) delivered: Notify,
    pub(super) takes: Semaphore,
    /// Turns of commits that wait for a row that somebody has locked.
    pub(super) patient: Semaphore,
    /// Turns of commits to have a connection.
    pub(super) commits: Semaphore,
    /// Held while this replica names its sinks, so that this happens once at a time.
    pub(super) naming: tokio::sync::Mutex<()>,
    /// Held, sink by sink, while the server is told how far the sink has come.
    pub(super) saving: Mutex<HashMap<Box<str>, Arc<tokio::sync::Mutex<()>>>>,
    /// Why a loop of the store has ended, after it panicked.
    pub(super) panicked: watch::Sender<Option<Error>>,
    /// The loops; `None` once the store was closed.
    pub(super) loops: Mutex<Option<[JoinHandle<()>; 3]>>,
}

/// The events that a sink is delivering, and the right to deliver them.
#[derive(Debug)]
pub(in crate::store) struct Loan {
    pub(super) shared: Arc<Shared>,
    pub(super) sink: Box<str>,
    pub(super) number: u64,
    pub(super) leases: Vec<Held>,
    pub(super) past: Past,
}

/// A commit whose outcome is not known yet, with the room in the journal that is reserved for its
/// events.
pub(super) struct Committing<'a> {
    pub(super) shared: &'a Shared,
    pub(super) held: Held,
    /// Number of events to be journalled.
    pub(super) events: u64,
    /// Whether a COMMIT was sent that may have been done. As long as none was, the commit has
    /// certainly done nothing.
    pub(super) is_sent: AtomicBool,
    pub(super) is_finished: bool,
}

/// A search that is being taken up.
pub(super) struct Taking<'a> {
    pub(super) shared: &'a Shared,
    pub(super) key: &'a SearchKey,
}

// === impl Shared ===

impl Shared {
    pub(super) fn new(
        url: SecretSource,
        lease: Duration,
        node: String,
        journal_limit: u64,
    ) -> Self {
        let pool = Pool::new(url, lease);
        let keeper_pool = pool.of_one();
        // Because places start at the current time, they grow from one process to the next.
        let journal = Journal::new(journal_limit, clock::now().as_microsecond());
        Self {
            pool,
            keeper_pool,
            lease,
            node,
            journalled: watch::Sender::new(journal.end()),
            state: Mutex::new(State::new(journal)),
            changed: watch::Sender::new(()),
            worked: watch::Sender::new(()),
            trouble: watch::Sender::new(None),
            table_missing: AtomicBool::new(false),
            wake: Notify::new(),
            delivered: Notify::new(),
            takes: Semaphore::new(TAKES_AT_ONCE),
            patient: Semaphore::new(PATIENT_COMMITS),
            commits: Semaphore::new(COMMITS_AT_ONCE),
            naming: tokio::sync::Mutex::default(),
            saving: Mutex::default(),
            panicked: watch::Sender::new(None),
            loops: Mutex::default(),
        }
    }

    /// Begins a loop that goes on until the store is closed.
    pub(super) fn begin(
        &self,
        part: &'static str,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let panics = PanicReport {
            part,
            lost: self.panicked.clone(),
        };
        tokio::spawn(async move {
            let _panics = panics;
            work.await;
        })
    }

    pub(super) fn look<A>(&self, at: impl FnOnce(&State) -> A) -> A {
        at(&self.state.lock())
    }

    /// Changes leases, and what belongs to them. All searches are told, and look again.
    pub(super) fn change_leases<A>(&self, change: impl FnOnce(&mut State) -> A) -> A {
        let answer = self.change_journals(change);
        self.changed.send_replace(());
        answer
    }

    /// Changes what no search waits for, above all the journals. No lease may begin, change or
    /// end.
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

    /// Forgets the leases whose time is over. Mostly there are none, and no search is told.
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

    /// How long to wait, at first, for a lock that may be held for ever.
    pub(super) fn lock_wait(&self) -> Duration {
        (self.lease / LOCK_WAIT_DIVISOR).clamp(SHORTEST_LOCK_WAIT, LONGEST_LOCK_WAIT)
    }

    /// How long to wait at most for such a lock, after shorter waits were in vain.
    pub(super) fn longest_lock_wait(&self) -> Duration {
        (self.lease / LONGER_LOCK_WAIT_DIVISOR).max(SHORTEST_LOCK_WAIT)
    }

    /// How long to wait for such a lock if nothing else is locked meanwhile.
    pub(super) fn lock_wait_of_one(&self) -> Duration {
        (self.lease / LOCK_WAIT_OF_ONE_DIVISOR).clamp(SHORTEST_LOCK_WAIT, LONGEST_LOCK_WAIT_OF_ONE)
    }

    /// How long a commit waits for its search's row.
    pub(super) fn commit_wait(&self) -> Duration {
        (self.lease / COMMIT_WAIT_DIVISOR).clamp(SHORTEST_LOCK_WAIT, LONGEST_COMMIT_WAIT)
    }

    /// How long a statement of a commit may take. Cut to the tenth of a second, because the limit
    /// is shown.
    pub(super) fn commit_limit(&self) -> Duration {
        let longest = longest_statement(PATIENCE);
        let limit = (self.lease / COMMIT_LIMIT_DIVISOR).clamp(SHORTEST_COMMIT_LIMIT, longest);
        limit - Duration::from_nanos(u64::from(limit.subsec_nanos() % 100_000_000))
    }

    /// Until when a lease can be relied on that was asked for at the time `asked`. This is a
    /// little less than the server counts, because clocks do not run at the same speed.
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

    /// Does what is asked of the server, within a time limit. Takes note if tables are missing,
    /// since that may concern all.
    pub(super) async fn bounded<A>(
        &self,
        work: impl Future<Output = Result<A, Failure>>,
    ) -> Result<A, Failure> {
        let done = timeout(ALTOGETHER, work).await;
        let done = done.unwrap_or(Err(Failure::Timeout));
        if done.as_ref().is_err_and(Failure::is_missing_table) {
            self.note_missing_table();
        }
        done
    }

    /// Takes note that a table is missing.
    pub(super) fn note_missing_table(&self) {
        self.table_missing.store(true, Ordering::Relaxed);
    }

    /// Whether a table was found missing since the last call.
    pub(super) fn take_table_missing(&self) -> bool {
        self.table_missing.swap(false, Ordering::Relaxed)
    }

    /// Reports the server's trouble, or its end, if that has changed.
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

impl Right for Loan {
    /// Whether all leases can be relied on.
    fn holds(&self) -> bool {
        self.shared.look(|state| {
            let mut leases = self.leases.iter();
            leases.all(|held| state.is_held(*held))
        })
    }

    fn past(&self) -> Past {
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
    pub(super) fn set_sent(&self, is_sent: bool) {
        self.is_sent.store(is_sent, Ordering::Relaxed);
    }

    pub(super) fn is_sent(&self) -> bool {
        self.is_sent.load(Ordering::Relaxed)
    }

    /// Takes note of the commit's outcome. Its room is given back at the same time, so that its
    /// events are never counted twice, or not at all.
    pub(super) fn finish<A>(mut self, change: impl FnOnce(&mut State) -> A) -> A {
        self.is_finished = true;
        self.shared.change_journals(|state| {
            state.journal.unreserve(self.events);
            change(state)
        })
    }
}

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            // Nobody waits for the answer any more. A commit that was sent may have been done, as
            // if its answer was lost. The transaction of one that was not sent may still have the
            // row locked, so the search is given up as well.
            self.shared.change_leases(|state| {
                state.journal.unreserve(self.events);
                if self.events > 0 && self.is_sent() {
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
