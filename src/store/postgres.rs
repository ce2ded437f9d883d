//! The store for several replicas: a PostgreSQL server, or one that speaks its protocol and has
//! ordinary transactions.
//!
//! Each search has a row, which is a lease with a fencing epoch that only grows. The holder polls
//! the search and delivers its journal. Every statement that writes is conditional on the epoch,
//! so a replica that slept through its lease can change nothing. Only facts that a holder may rely
//! on are kept in memory: its leases, and how far its sinks have come.
//!
//! If the answer to a commit is lost, the commit may have been done or not. The search then counts
//! as lost, and the replica that takes it up next, most likely this one, reads what is there.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use super::{
    AlertFilter, Backlog, Batch, Claim, Commit, Error, Held, Loaded, OpenAlert, Pending, Right,
    SinkState, StoredAlert,
};
use crate::{
    clock,
    error_chain::chain,
    identity::SearchKey,
    secret::{SecretError, SecretSource},
};

use self::{
    connection::{PATIENCE, Session, Tries},
    journal::{Journal, Range, Waiting, places},
    leases::State,
    shared::{Committing, SHORTEST_LOCK_WAIT, Shared, Taking},
};

mod address;
mod alerts;
mod connection;
mod delivery;
mod inspect;
mod journal;
mod keeper;
mod leases;
mod left_over;
mod naming;
mod schema;
mod shared;
mod shares;
mod time;
mod tls;

pub use address::AddressError;
pub use connection::Failure;
pub(crate) use inspect::{Tables, Unfit, inspect};
pub(super) use shared::Loan;

/// Maximum time that a take-up waits for the take-ups before it. After that, the search waits for
/// another turn. No longer than the search's task may go without a heartbeat.
const TAKE_PATIENCE: Duration = Duration::from_secs(60);

/// Time limit, when a search is given back, for its events to be delivered; and again for
/// deliveries under way to end.
const HAND_OVER: Duration = Duration::from_secs(5);

/// The pause before a replica that stops tries again to take leave.
const LEAVE_PAUSE: Duration = Duration::from_millis(200);

/// The warning that the server knows less of a search than it did before.
const SET_BACK: &str = "the state database knows less of the search than before: it was restored from \
    a copy, or a failover has lost its last transactions; what is missing is logged again, with the \
    same event ids";

/// The store, open. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Postgres {
    shared: Arc<Shared>,
}

/// What became of a commit.
enum Outcome {
    /// The commit is done. The value is the new last position of the search's journal.
    Done(i64),
    /// The commit was refused, because the lease is lost.
    LeaseLost,
    /// The commit was not done.
    NotDone(Error),
    /// The commit may have been done or not.
    Unknown(Error),
}

/// What is wrong with the URL of the database, and in which file.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    /// The text is not a URL of a database.
    #[error("{}{problem}", file.iter().map(|path| format!("{}: ", path.display())).collect::<String>())]
    Address {
        /// The file that holds the URL, unless the URL stands in the configuration itself.
        file: Option<PathBuf>,
        /// What is wrong with the URL.
        problem: AddressError,
    },
    /// The URL's file cannot hold a URL: it is empty, for instance.
    #[error("the URL of the database cannot be used: {0}")]
    Secret(SecretError),
}

/// Checks whether a URL is valid. A file that cannot be read is no error: it may be readable
/// later.
pub(crate) fn check(url: &SecretSource) -> Result<(), UrlError> {
    let text = match url.read() {
        Ok(text) => text,
        Err(SecretError::Read { .. }) => return Ok(()),
        Err(unusable @ SecretError::Unusable { .. }) => return Err(UrlError::Secret(unusable)),
    };
    let parsed = address::Address::parse(text.expose());
    parsed.map(drop).map_err(|problem| {
        let file = match url {
            SecretSource::File(path) => Some(path.clone()),
            SecretSource::Value(_) => None,
        };
        UrlError::Address { file, problem }
    })
}

// === impl Postgres ===

impl Postgres {
    /// Connects, creates or migrates the tables, and registers the replica.
    pub(super) async fn open(
        url: SecretSource,
        lease: Duration,
        node: String,
        journal_limit: u64,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared::new(url, lease, node, journal_limit));
        let join = async {
            schema::migrate(&shared.pool).await?;
            keeper::join(&shared).await
        };
        shared.bounded(join).await?;
        let (keeper, tidier, deliverer) = (
            Arc::clone(&shared),
            Arc::clone(&shared),
            Arc::clone(&shared),
        );
        let loops = [
            shared.begin("the loop that renews leases", async move {
                keeper::keep(&keeper).await;
            }),
            shared.begin("the loop that removes what was delivered", async move {
                keeper::tidy(&tidier).await
            }),
            shared.begin(
                "the loop that delivers what nobody polls any more",
                async move { left_over::deliver(&deliverer).await },
            ),
        ];
        *shared.loops.lock() = Some(loops);
        Ok(Self { shared })
    }

    /// Sets the searches that this replica would poll.
    pub(super) fn share_out(&self, keys: Vec<SearchKey>) {
        self.shared.change_journals(|state| state.want(keys));
        self.shared.wake.notify_one();
    }

    /// Waits until this replica may take a search up. Returns at once if it holds the search
    /// already.
    pub(super) async fn turn(&self, key: &SearchKey) {
        self.wait_until(|state| state.may_take_up(key)).await;
    }

    /// Whether this replica has a lease on a search.
    pub(super) fn holds(&self, key: &SearchKey) -> bool {
        self.shared.look(|state| state.lease_on(key).is_some())
    }

    /// Waits until another replica is seen to hold a search.
    pub(super) async fn elsewhere(&self, key: &SearchKey) {
        self.wait_until(|state| state.elsewhere.contains(key)).await;
    }

    async fn wait_until(&self, is_so: impl Fn(&State) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        // This fails only without the sender, which is in `shared`.
        changed.wait_for(|()| self.shared.look(&is_so)).await.ok();
    }

    pub(super) async fn take_up(&self, key: &SearchKey, now: Timestamp) -> Result<Loaded, Error> {
        self.check_open()?;
        let _taking = Taking::new(&self.shared, key);
        // Searches that are taken up before this one say nothing about the server, so the error is
        // not one of the server.
        let Ok(turn) = timeout(TAKE_PATIENCE, self.shared.takes.acquire()).await else {
            self.shared.wake.notify_one();
            return Err(Error::HeldElsewhere);
        };
        let _turn = turn.map_err(|_| Error::Closed)?;
        let taken = self.shared.bounded(async {
            let mut tries = Tries::default();
            loop {
                match self.try_take_up(key, now).await {
                    // The keeper grants this search another turn. Until then, other searches have
                    // theirs.
                    Err(failure) if failure.is_lock_timeout() => return Err(failure),
                    Err(failure) if tries.again(&failure).await => {}
                    done => return done,
                }
            }
        });
        let taken = taken.await;
        if taken.is_ok() {
            self.shared.change_journals(|state| state.meet_no_lock(key));
        }
        match taken {
            Ok(Some(loaded)) => Ok(loaded),
            Ok(None) => {
                // If this replica took the search for its own until now, the server says
                // otherwise.
                self.shared
                    .change_leases(|state| state.lease_on(key).map(|held| state.lose(held)));
                self.shared.wake.notify_one();
                Err(Error::HeldElsewhere)
            }
            Err(failure) if failure.is_lock_timeout() => {
                let (row, may_be_taken) = self.shared.change_journals(|state| {
                    (state.wanted.get(key).copied(), state.meet_lock(key))
                });
                if may_be_taken {
                    // Most likely, another replica is taking the search up. That keeps the row
                    // locked for the time of some answers.
                    self.shared.wake.notify_one();
                    return Err(Error::Contested);
                }
                Err(self.locked(row).await)
            }
            Err(failure) => Err(failure.into()),
        }
    }

    async fn try_take_up(
        &self,
        key: &SearchKey,
        now: Timestamp,
    ) -> Result<Option<Loaded>, Failure> {
        let mut session = self.shared.pool.session().await?;
        let done = self.take_up_by(&mut session, key, now).await;
        if done.as_ref().is_err_and(Failure::is_conflict) {
            // Without the rollback, the connection could not be used again, and each try would
            // cost one.
            session.roll_back().await?;
        }
        done
    }

    async fn take_up_by(
        &self,
        session: &mut Session,
        key: &SearchKey,
        now: Timestamp,
    ) -> Result<Option<Loaded>, Failure> {
        let me = self.shared.number()?;
        let lease = self.shared.lease_seconds();
        // In one transaction with the lease, the state is read as its last writer left it, and
        // from the server that gave the lease. The wait for the row is short, because a locked row
        // must not use up the turn of other searches.
        session
            .begin_waiting(self.shared.lock_wait_of_one())
            .await?;
        let mut asked = clock::since_boot();
        let mut taken = alerts::take(session, key, me, lease).await?;
        if taken.is_none() {
            alerts::create(session, std::slice::from_ref(key), now).await?;
            asked = clock::since_boot();
            taken = alerts::take(session, key, me, lease).await?;
        }
        let Some(taken) = taken else {
            session.roll_back().await?;
            return Ok(None);
        };
        let row = taken.held.row;
        let progress = delivery::progress(session, row).await?;
        let loaded = Loaded {
            held: taken.held,
            primed: taken.primed,
            first_seen: taken.first_seen,
            has_departed: taken.has_departed,
            alerts: alerts::load(session, row, "").await?,
        };
        session.commit().await?;
        let until = self.shared.relied_on_until(asked);
        let hold = |state: &mut State| {
            state.hold(taken.held, until);
            true
        };
        if !adopt(&self.shared, me, key, &taken, &progress, hold) {
            return Err(Failure::NotJoined);
        }
        Ok(Some(loaded))
    }

    /// Whether the lease on a search can be relied on.
    pub(super) fn is_held(&self, held: Held) -> bool {
        self.shared.look(|state| state.is_held(held))
    }

    /// Waits until a search must not be polled any longer, because its lease is lost or another
    /// replica shall have it.
    pub(super) async fn relieved(&self, held: Held) {
        let mut changed = self.shared.changed.subscribe();
        loop {
            let until = self.shared.look(|state| {
                let until = state.until(held);
                until.filter(|_| !state.is_to_give_back(held))
            });
            let left = until.and_then(|until| until.checked_sub(clock::since_boot()));
            let Some(left) = left.filter(|left| !left.is_zero()) else {
                return;
            };
            // The loop looks at the lease again in any case, so the outcome does not matter.
            timeout(left, changed.changed()).await.ok();
        }
    }

    pub(super) async fn release(&self, held: Held) -> Result<(), Error> {
        self.check_open()?;
        release(&self.shared, &[held]).await
    }

    pub(super) async fn departed(
        &self,
        held: Held,
        ids: Vec<Box<str>>,
    ) -> Result<Vec<(Box<str>, u32)>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.ask(async |session| alerts::departed(session, held.row, &ids).await)
            .await
    }

    pub(super) async fn load(
        &self,
        held: Held,
        after: Box<str>,
    ) -> Result<Vec<StoredAlert>, Error> {
        self.ask(async |session| alerts::load(session, held.row, &after).await)
            .await
    }

    pub(super) async fn stored(
        &self,
        held: Held,
        ids: Vec<Box<str>>,
    ) -> Result<Vec<StoredAlert>, Error> {
        self.ask(async |session| alerts::stored(session, held.row, &ids).await)
            .await
    }

    pub(super) async fn commit(
        &self,
        held: Held,
        commit: Commit,
        now: Timestamp,
    ) -> Result<(), Error> {
        self.check_open()?;
        let events = commit.events.len() as u64;
        let committing = match self.reserve(held, events) {
            Err(Error::JournalFull { .. }) if self.make_room(events).await => {
                self.reserve(held, events)
            }
            committing => committing,
        }?;
        let events = committing.events;
        let done = self
            .shared
            .bounded(self.commit_patiently(&committing, &commit, now));
        let outcome = match done.await {
            Ok(Some(end)) => Outcome::Done(end),
            Ok(None) => Outcome::LeaseLost,
            Err(failure) if failure.is_lock_timeout() => {
                Outcome::NotDone(self.locked(Some(held.row)).await)
            }
            Err(failure) if !committing.is_sent() || failure.is_without_effect() => {
                Outcome::NotDone(failure.into())
            }
            Err(failure) => Outcome::Unknown(failure.into()),
        };
        let (end, lost) = committing.finish(|state| {
            let lost = match &outcome {
                Outcome::Done(end) if events > 0 => {
                    let count = i64::try_from(events).unwrap_or(i64::MAX);
                    // If this loses the search, `change_leases` tells all searches below.
                    let follows = state.committed(held, *end, count);
                    if !follows {
                        tracing::warn!(row = held.row, "{SET_BACK}");
                    }
                    !follows
                }
                Outcome::Done(_) | Outcome::NotDone(_) => false,
                Outcome::LeaseLost => true,
                Outcome::Unknown(_) => {
                    if events > 0 {
                        state.lose_in_doubt(held, i64::MAX);
                    }
                    true
                }
            };
            (state.journal.end(), lost)
        });
        if lost {
            self.shared.change_leases(|state| state.lose(held));
        }
        match outcome {
            Outcome::Done(_) => {
                self.shared.tell_sinks(end);
                Ok(())
            }
            Outcome::LeaseLost => Err(Error::LeaseLost),
            Outcome::NotDone(error) | Outcome::Unknown(error) => Err(error),
        }
    }

    /// Reserves room in the journal for a commit's events, if events are kept at all.
    fn reserve(&self, held: Held, events: u64) -> Result<Committing<'_>, Error> {
        self.shared.change_journals(|state| {
            if !state.is_held(held) {
                return Err(Error::LeaseLost);
            }
            let events = if state.journal.keeps_events() {
                events
            } else {
                0
            };
            if events > 0 && !state.journal.reserve(events) {
                return Err(Error::JournalFull {
                    limit: state.journal.limit(),
                    sink: state.journal.fullest_sink(),
                });
            }
            Ok(Committing {
                shared: &self.shared,
                held,
                events,
                is_sent: AtomicBool::new(false),
                is_finished: false,
            })
        })
    }

    pub(super) fn has_room(&self, events: u64) -> bool {
        let (has_room, is_alone) = self
            .shared
            .look(|state| (state.journal.has_room(events), state.is_alone));
        // A replica that is alone gives these sinks up.
        has_room || is_alone && !self.left_in_the_way_of(events).is_empty()
    }

    /// Returns the sinks that leave no room for so many events, if no replica has any of them any
    /// more. Otherwise returns none.
    fn left_in_the_way_of(&self, events: u64) -> Vec<String> {
        self.shared.look(|state| {
            let mut sinks = state.journal.in_the_way_of(events);
            if !sinks.iter().all(|name| state.left_sinks.contains_key(name)) {
                sinks.clear();
            }
            sinks
        })
    }

    /// Gives up sinks that have left, if they alone are in the way of so many events. Returns
    /// whether it is worth looking for room again.
    async fn make_room(&self, events: u64) -> bool {
        let in_the_way = self.left_in_the_way_of(events);
        if in_the_way.is_empty() {
            return false;
        }
        let give_up = async |session: &mut Session| {
            naming::give_up_for_room(&self.shared, session, &in_the_way).await
        };
        let given_up = self.ask(give_up).await;
        note_failure(&given_up, "the state database does not forget a sink yet");
        given_up.is_ok()
    }

    /// Commits. Returns the last position of the search's journal, or `None` if the lease is lost.
    ///
    /// At first a commit waits only for a moment for its row, since each waiting commit has a
    /// connection. After that, only a few commits at a time ([`Shared::patient`]) wait on, up to
    /// [`Shared::commit_wait`]. A commit that gets no such turn tries once more when that time is
    /// over.
    async fn commit_patiently(
        &self,
        committing: &Committing<'_>,
        commit: &Commit,
        now: Timestamp,
    ) -> Result<Option<i64>, Failure> {
        let at_once = self.commit_within(SHORTEST_LOCK_WAIT, committing, commit, now);
        match at_once.await {
            Err(failure) if failure.is_lock_timeout() => {}
            done => return done,
        }
        let until = Instant::now() + self.shared.commit_wait();
        let _turn = timeout_at(until, self.shared.patient.acquire()).await;
        let wait = until.saturating_duration_since(Instant::now());
        let wait = wait.max(SHORTEST_LOCK_WAIT);
        self.commit_within(wait, committing, commit, now).await
    }

    async fn commit_within(
        &self,
        wait: Duration,
        committing: &Committing<'_>,
        commit: &Commit,
        now: Timestamp,
    ) -> Result<Option<i64>, Failure> {
        let mut tries = Tries::default();
        loop {
            let turn = timeout(PATIENCE, self.shared.commits.acquire()).await;
            let _turn = turn.map_err(|_| Failure::Busy)?;
            let mut session = self.shared.pool.session().await?;
            let began = Instant::now();
            let done = self.try_commit(&mut session, wait, committing, commit, now);
            let done = done.await;
            let limit = self.shared.commit_limit();
            let is_ended = done.as_ref().is_err_and(Failure::is_cancelled);
            // A statement that ended sooner was cancelled by somebody, not by the limit.
            let is_of_the_limit = is_ended && began.elapsed() >= limit;
            if is_ended || done.as_ref().is_err_and(Failure::is_conflict) {
                // Without the rollback, each try would cost a connection. Even if the rollback
                // fails, nothing was committed.
                session.roll_back().await.ok();
            }
            // Renewals have passed over the row while the commit had it locked.
            if is_of_the_limit {
                self.renew_at_once(&mut session, committing.held).await;
            } else if done.is_ok() && began.elapsed() >= self.shared.lease / keeper::RENEWALS {
                self.shared.wake.notify_one();
            }
            drop(session);
            match done {
                Err(failure) if failure.is_lock_timeout() => return Err(failure),
                Err(failure) if tries.again(&failure).await => {}
                Err(failure) if is_of_the_limit => return Err(failure.with_time_limit(limit)),
                done => return done,
            }
        }
    }

    /// Renews the lease on a search whose row a commit kept locked up to its time limit, without
    /// success. Otherwise the next commit might lock the row again before the next renewal.
    async fn renew_at_once(&self, session: &mut Session, held: Held) {
        // The renewal waits for no row: it passes over locked ones.
        let renewed = timeout(PATIENCE.min(self.shared.lease / 2), async {
            let me = self.shared.number()?;
            keeper::renew_leases(&self.shared, session, me, &[held]).await
        });
        if !matches!(renewed.await, Ok(Ok(_))) {
            tracing::debug!(
                row = held.row,
                "a lease is not renewed right after a commit"
            );
        }
    }

    async fn try_commit(
        &self,
        session: &mut Session,
        wait: Duration,
        committing: &Committing<'_>,
        commit: &Commit,
        now: Timestamp,
    ) -> Result<Option<i64>, Failure> {
        let me = self.shared.number()?;
        let held = committing.held;
        let count = i64::try_from(committing.events).unwrap_or(i64::MAX);
        let limit = self.shared.commit_limit();
        session.begin_with_row(held.row, wait, limit).await?;
        let end = alerts::advance(session, held, me, count, commit.primed).await?;
        let Some(end) = end else {
            session.roll_back().await?;
            return Ok(None);
        };
        alerts::write(session, held.row, commit, now).await?;
        if count > 0 {
            alerts::append(session, held.row, end, &commit.events).await?;
        }
        committing.set_sent(true);
        let done = session.commit().await;
        // The server says that it has done nothing, and the commit may be tried again.
        committing.set_sent(!done.as_ref().is_err_and(Failure::is_conflict));
        done?;
        Ok(Some(end))
    }

    /// Returns the error for a row that was waited for in vain. It names the process that keeps
    /// the row locked, if the server tells it soon.
    async fn locked(&self, row: Option<i64>) -> Error {
        let Some(row) = row else {
            return Error::Locked("the search's row, or a table,".to_owned());
        };
        let told = timeout(self.shared.lock_wait_of_one(), async {
            let mut session = self.shared.pool.session().await?;
            alerts::locker(&mut session, row).await
        });
        Error::Locked(match told.await {
            Ok(Ok(Some((process, user)))) => format!(
                "the search's row (row {row} of the table search, by its process {process} of the user {user})"
            ),
            // Not every server can tell, and the question does not cover a table that is locked.
            _ => format!("the search's row (row {row} of the table search), or a table,"),
        })
    }

    pub(super) async fn open_alerts(&self, filter: AlertFilter) -> Result<Vec<OpenAlert>, Error> {
        let rows = self.shared.look(State::polled_rows);
        self.ask(async |session| alerts::newest(session, &rows, &filter).await)
            .await
    }

    pub(super) async fn set_sinks(&self, names: Vec<String>) -> Result<Vec<SinkState>, Error> {
        self.check_open()?;
        // When the configuration is read again, a warning says if a changed URL is not used.
        let looked = self.shared.pool.look_at_url().await;
        note_failure(&looked, "cannot look at the URL of the database");
        let turn = timeout(PATIENCE, self.shared.naming.lock()).await;
        let _turn = turn.map_err(|_| Failure::Timeout)?;
        let others = self
            .ask(async |session| naming::add_sinks(&self.shared, session, &names).await)
            .await?;
        // The sinks are in force now. The keeper repeats whatever fails from here on.
        if others {
            let forget = async |session: &mut Session| {
                naming::forget_sinks(&self.shared, session, &names).await
            };
            let forgotten = self.ask(forget).await;
            note_failure(&forgotten, "the state database does not forget a sink yet");
        }
        let tell = async |session: &mut Session| naming::tell_unnamed(&self.shared, session).await;
        let told = self.ask(tell).await;
        note_failure(&told, "cannot look up what waits for sinks that have left");
        if others {
            // This comes last, because a worker whose sink is no longer known has to be dismissed
            // at once, and the questions above may take a slow database long.
            self.shared
                .change_leases(|state| state.journal.set_own_sinks(&names));
        }
        Ok(self.shared.look(|state| {
            let state_of = |name: &String| SinkState {
                mark: state.journal.mark(name),
            };
            names.iter().map(state_of).collect()
        }))
    }

    pub(super) async fn pending(
        &self,
        sink: &str,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<Batch, Error> {
        self.check_open()?;
        let mut locked = HashSet::new();
        loop {
            self.shared.expire();
            let Some((ranges, loan)) = self.lend_next(sink, max_events, &locked)? else {
                let save = delivery::save(&self.shared, sink);
                locked = self.shared.bounded(save).await?;
                continue;
            };
            if ranges.is_empty() {
                return Ok(Batch::default());
            }
            let mut events = self.read_in_order(&ranges, max_bytes).await?;
            if events.is_empty() {
                if !loan.holds() {
                    continue;
                }
                // The answer may come from a server that lags behind: a standby, to which a pooler
                // has sent the question.
                let found = self.read_for_sure(&loan, &ranges, max_bytes).await?;
                let Some(found) = found else {
                    continue;
                };
                self.skip_missing(sink, &ranges, &found);
                events = found;
            }
            if !events.is_empty() {
                let claim = Claim::of(loan);
                return Ok(Batch { events, claim });
            }
        }
    }

    /// Returns the next events for a sink, to be read, and the right to deliver them. Returns `None`
    /// if the server has to hear of earlier deliveries first. Otherwise more than one batch would
    /// come again after a crash. Searches whose rows are `locked` are no reason: they would hold up
    /// the events of all others.
    fn lend_next(
        &self,
        sink: &str,
        max_events: usize,
        locked: &HashSet<i64>,
    ) -> Result<Option<(Vec<Range>, Loan)>, Error> {
        self.shared.change_journals(|state| {
            if !state.journal.is_own(sink) {
                return Err(Error::unknown(sink));
            }
            let ranges = state.journal.next(sink, max_events);
            if ranges.is_empty() && state.journal.is_unclear(sink) {
                return Err(Error::Unclear);
            }
            if !ranges.is_empty() && state.is_untold(sink, locked) {
                return Ok(None);
            }
            let loan = Loan {
                shared: Arc::clone(&self.shared),
                sink: sink.into(),
                number: state.journal.lend(sink, ranges.clone()),
                leases: leases_of(state, &ranges),
                past: state.journal.past(sink, &ranges),
            };
            Ok(Some((ranges, loan)))
        })
    }

    /// Reads events up to the first that is missing. Events after a gap wait for the missing ones,
    /// because a place that a sink has reached stands for all events before it.
    async fn read_in_order(
        &self,
        ranges: &[Range],
        max_bytes: usize,
    ) -> Result<Vec<Pending>, Error> {
        let mut events = self
            .ask(async |session| delivery::read(session, ranges, max_bytes).await)
            .await?;
        let in_line = events.iter().zip(places(ranges));
        let whole = in_line.take_while(|(event, place)| event.position == *place);
        events.truncate(whole.count());
        Ok(events)
    }

    /// Reads all events that are there. Returns `None` if the right to deliver them is lost.
    async fn read_for_sure(
        &self,
        loan: &Loan,
        ranges: &[Range],
        max_bytes: usize,
    ) -> Result<Option<Vec<Pending>>, Error> {
        self.ask(async |session| {
            let leases = &loan.leases;
            delivery::read_for_sure(&self.shared, session, leases, ranges, max_bytes).await
        })
        .await
    }

    /// Reports how many of the sought events are missing, up to the last that was `found`:
    /// somebody has removed them from the table. If none was found, the sink goes on behind all of
    /// them.
    fn skip_missing(&self, sink: &str, ranges: &[Range], found: &[Pending]) {
        let last = places(ranges).next_back();
        let end = found.last().map(|event| event.position).or(last);
        let sought = places(ranges).take_while(|place| Some(*place) <= end);
        let missing = sought.count() - found.len();
        if missing > 0 {
            tracing::error!(
                sink,
                events = missing,
                "events are missing from the journal in the database; they are skipped"
            );
        }
        if let Some(end) = end.filter(|_| found.is_empty()) {
            self.shared
                .change_journals(|state| state.journal.skip(sink, end));
        }
    }

    pub(super) async fn acknowledge(
        &self,
        sink: &str,
        place: i64,
        mark: Option<Vec<u8>>,
    ) -> Result<(), Error> {
        self.check_open()?;
        self.shared.change_journals(|state| {
            // A sink that has left is accepted as well, because its last delivery ends after that.
            if !state.journal.knows(sink) {
                return Err(Error::unknown(sink));
            }
            state.journal.acknowledge(sink, place, mark);
            Ok(())
        })?;
        self.shared.delivered.notify_one();
        let save = delivery::save(&self.shared, sink);
        self.shared.bounded(save).await?;
        Ok(())
    }

    pub(super) async fn backlog(&self, sink: &str) -> Result<Backlog, Error> {
        self.check_open()?;
        let (backlog, is_unclear) = self.shared.look(|state| {
            let journal = &state.journal;
            (journal.backlog(sink), journal.is_unclear(sink))
        });
        let Waiting {
            events,
            mut oldest,
            undated,
        } = backlog.ok_or_else(|| Error::unknown(sink))?;
        if is_unclear {
            return Err(Error::Unclear);
        }
        if !undated.is_empty() {
            let times = self
                .ask(async |session| delivery::journalled_at(session, &undated).await)
                .await?;
            oldest = oldest.into_iter().chain(times.values().copied()).min();
            self.shared
                .change_journals(|state| state.journal.date(sink, &times));
        }
        Ok(Backlog { events, oldest })
    }

    pub(super) fn journalled(&self) -> watch::Receiver<i64> {
        self.shared.journalled.subscribe()
    }

    pub(super) fn lost(&self) -> watch::Receiver<Option<Error>> {
        self.shared.panicked.subscribe()
    }

    pub(super) fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.shared.trouble.subscribe()
    }

    /// Gives back all leases and closes the connections.
    pub(super) async fn close(&self) {
        let Some(loops) = self.shared.loops.lock().take() else {
            return;
        };
        for it in &loops {
            it.abort();
        }
        // The database may be away for a moment only, and what it does not hear of now is delivered
        // again.
        let leave = async {
            while keeper::leave(&self.shared).await.is_err() {
                tokio::time::sleep(LEAVE_PAUSE).await;
            }
        };
        if timeout(self.shared.lease.min(PATIENCE), leave)
            .await
            .is_err()
        {
            tracing::warn!(
                "cannot take leave of the state database; others take the searches up \
                 when the leases have ended"
            );
        }
        self.shared.change_leases(State::lose_all);
        self.shared.pool.close();
        self.shared.keeper_pool.close();
    }

    fn check_open(&self) -> Result<(), Error> {
        match *self.shared.loops.lock() {
            Some(_) => Ok(()),
            None => Err(Error::Closed),
        }
    }

    async fn ask<A>(
        &self,
        question: impl AsyncFnOnce(&mut Session) -> Result<A, Failure>,
    ) -> Result<A, Error> {
        self.check_open()?;
        let asked = self.shared.bounded(async {
            let mut session = self.shared.pool.session().await?;
            question(&mut session).await
        });
        Ok(asked.await?)
    }
}

/// Takes in the events that wait in the journal of a search that the replica `me` has taken, once
/// `hold` has noted the lease. `progress` says how far each sink has come. Returns whether the
/// search is held.
fn adopt(
    shared: &Shared,
    me: i64,
    search: &SearchKey,
    taken: &alerts::Taken,
    progress: &[(String, i64)],
    hold: impl FnOnce(&mut State) -> bool,
) -> bool {
    let adopted = shared.change_leases(|state| {
        // A replica that has had to register anew holds nothing.
        if state.replica != Some(me) || !hold(state) {
            return None;
        }
        let (held, end) = (taken.held, taken.journal_end);
        let knows_all = state.journal.adopt(held, taken.before, end, progress);
        Some((state.journal.end(), knows_all))
    });
    let Some((end, knows_all)) = adopted else {
        return false;
    };
    if !knows_all {
        tracing::warn!(%search, "{SET_BACK}");
    }
    shared.tell_sinks(end);
    true
}

/// Gives searches back.
async fn release(shared: &Shared, leases: &[Held]) -> Result<(), Error> {
    let still = |state: &State| {
        let held = leases.iter().filter(|held| state.is_held(**held));
        held.copied().collect::<Vec<_>>()
    };
    let any = |state: &State, is_it: fn(&Journal, i64) -> bool| {
        let mut held = still(state).into_iter();
        held.any(|held| is_it(&state.journal, held.row))
    };
    // The events that are journalled are delivered here, if that is possible soon. And no other
    // replica may write lines that are being written here, so these are waited for as well.
    wait_while(shared, |state| any(state, Journal::waits)).await;
    // A search that was taken up again since then keeps its events.
    shared.change_leases(|state| {
        for held in still(state) {
            state.journal.lose_search(held.row);
        }
    });
    wait_while(shared, |state| any(state, Journal::is_lent)).await;
    let held = shared.change_leases(|state| {
        let held = still(state);
        for late in leases.iter().filter(|it| !held.contains(it)) {
            state.lose_late(*late);
        }
        held
    });
    if held.is_empty() {
        return Ok(());
    }
    let given = shared.bounded(keeper::give_back(shared, &held)).await;
    shared.change_leases(|state| {
        for held in held {
            state.lose(held);
        }
    });
    // The keeper looks up whether other replicas hold these searches now. Once they do, events
    // that wait there are no longer this replica's.
    shared.wake.notify_one();
    Ok(given?)
}

async fn wait_while(shared: &Shared, condition: impl Fn(&State) -> bool) {
    let mut worked = shared.worked.subscribe();
    let over = worked.wait_for(|()| !shared.look(&condition));
    // The caller looks itself at what is left, so it does not matter whether time is over.
    timeout(HAND_OVER.min(shared.lease), over).await.ok();
}

/// Notes a failure of something that is not needed now, because it is tried again.
fn note_failure<E: std::error::Error>(done: &Result<(), E>, what: &str) {
    if let Err(error) = done {
        let error = chain(error);
        tracing::debug!(error, "{what}");
    }
}

/// Returns the leases under which the events of these ranges are delivered.
fn leases_of(state: &State, ranges: &[Range]) -> Vec<Held> {
    let rows: HashSet<i64> = ranges.iter().map(|range| range.row).collect();
    rows.into_iter()
        .filter_map(|row| {
            let epoch = state.epoch(row)?;
            Some(Held { row, epoch })
        })
        .collect()
}

#[cfg(test)]
mod tests;
