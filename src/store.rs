//! The store: which alerts are known, the journal of events that wait for delivery, how far each
//! sink has come, and, where several replicas share one store, which replica holds which search.
//!
//! The central decision: the new state of the known alerts *and* the events that follow from it
//! are written in one commit. After a crash before the commit, the next poll finds the events
//! again; after a later crash, the journal has them. The store knows nothing of OpsRamp, nor
//! what a sink is: bodies are opaque bytes.

use std::{fmt, path::PathBuf, sync::Arc, thread, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;
use uuid::Uuid;

use crate::identity::SearchKey;
use crate::reading;
use crate::secret::SecretSource;

mod left_sinks;
pub mod postgres;
pub mod sqlite;

/// Where the state is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Options {
    /// The embedded store: one SQLite file, for one replica.
    Sqlite {
        /// The file; its folder must exist.
        path: PathBuf,
        /// Events the journal may hold before new ones are refused.
        journal_limit: u64,
    },
    /// A PostgreSQL server, for several replicas.
    Postgres {
        /// The connection URL, which may hold a password.
        url: SecretSource,
        /// How long a search stays with a replica that does not renew its lease.
        lease: Duration,
        /// This replica's name. It stays the same across restarts, and no other replica has it: by
        /// this name the replica's sinks find their place again.
        node: String,
        /// Events the journal may hold before new ones are refused.
        journal_limit: u64,
    },
}

/// Events the journal may hold by default.
pub const JOURNAL_LIMIT: u64 = 1_000_000;

/// A store that is open. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Store {
    /// The embedded store.
    Sqlite(sqlite::Sqlite),
    /// A PostgreSQL server.
    Postgres(postgres::Postgres),
}

/// The right to write to a search: the search's row, and the fencing epoch of the lease on it. A
/// commit under an epoch that has passed is refused. In the embedded store an epoch passes when
/// the search is taken up again or given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    /// The search's row.
    pub row: i64,
    /// The fencing epoch, which grows with each lease.
    pub epoch: i64,
}

/// What the store knows about a search when it is taken up.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The right to write to it.
    pub held: Held,
    /// Whether the whole result has once been in sight, as far as the server shows it.
    pub primed: bool,
    /// When the search was stored for the first time.
    pub first_seen: Timestamp,
    /// Whether ordinals of alerts that left are kept. If not, [`Store::departed`] returns nothing.
    pub has_departed: bool,
    /// The alerts that were open when the search was last written, in the order of their ids. At
    /// most [`LOAD_PAGE`] of them; [`Store::load`] returns the others.
    pub alerts: Vec<StoredAlert>,
}

/// How many alerts are loaded at once: a search may have a million.
pub const LOAD_PAGE: usize = 4096;

/// An alert as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAlert {
    /// The alert's id, unique within the search.
    pub id: Box<str>,
    /// Number of events that the alert has had so far.
    pub ordinal: u32,
    /// A hash of all that must be stored anew when it changes.
    pub digest: u64,
    /// When the alert was created, if known; the page of open alerts is sorted by it.
    pub created_at: Option<Timestamp>,
    /// The word by which the page of open alerts is filtered.
    pub state: Box<str>,
    /// The alert, in a form that only its writer reads.
    pub body: Bytes,
}

/// What a poll learned, written as a whole or not at all.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// Alerts that are new or whose stored form changed.
    pub upserts: Vec<StoredAlert>,
    /// Alerts that left, each with the ordinal that it reached. The ordinal is kept for
    /// [`DEPARTED_RETENTION`], so that an alert that comes back goes on counting.
    pub departures: Vec<(Box<str>, u32)>,
    /// Events, in the order in which they shall be delivered.
    pub events: Vec<JournalEvent>,
    /// Whether the whole result has now been in sight once, as far as the server shows it.
    pub primed: bool,
    /// Whether the clock can be trusted over long times, so that ordinals older than
    /// [`DEPARTED_RETENTION`] may be forgotten.
    pub may_forget: bool,
}

/// How long the ordinal of an alert that left is remembered.
pub const DEPARTED_RETENTION: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// An event that waits for its sinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalEvent {
    /// Unique and reproducible; see [`crate::record`].
    pub event_id: Uuid,
    /// When it was journalled.
    pub at: Timestamp,
    /// The record as one line of JSON, without a line break.
    pub body: Bytes,
}

/// An event as a sink reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The event's place in the journal: later events have higher positions.
    pub position: i64,
    /// The event.
    pub event: JournalEvent,
}

/// A sink's state in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkState {
    /// What the sink gave with its last acknowledgement, to find its place again.
    pub mark: Option<Vec<u8>>,
}

/// Some events for a sink, oldest first, and the right to deliver them.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The events.
    pub events: Vec<Pending>,
    /// The right to deliver the events. Keep it until they are acknowledged or given up.
    pub claim: Claim,
}

/// The right to deliver some events. While it is kept, no other replica is given the searches of
/// these events, unless their leases end.
#[derive(Clone, Debug, Default)]
pub struct Claim(Option<Arc<dyn Right>>);

/// What a [`Claim`] rests on where replicas share the searches.
pub(crate) trait Right: fmt::Debug + Send + Sync + 'static {
    /// Whether the events may still be delivered.
    fn holds(&self) -> bool;
    /// What is known of earlier deliveries.
    fn past(&self) -> Past;
}

/// What is known of a sink's earlier deliveries, where replicas share the searches. Lines of
/// events that the sink is given again may stand anywhere in its file, not only at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// Whether a former holder of a search (also an earlier process of this same replica) may have
    /// delivered some of the events already, although this sink's mark does not say so.
    pub is_inherited: bool,
    /// Whether the server had stored all earlier acknowledgements.
    pub acks_stored: bool,
    /// Number of losses: a search was lost before the server had stored what was delivered of it,
    /// so that its next holder is given these events again.
    pub losses: u64,
}

/// Tells at any moment whether a search is still held. Needed because the lease may end while a
/// poll of the search waits for the store.
#[derive(Clone, Debug)]
pub struct Lease {
    store: Store,
    held: Held,
}

/// The events that wait for a sink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Number of events journalled and not yet acknowledged.
    pub events: u64,
    /// When the oldest of them was journalled.
    pub oldest: Option<Timestamp>,
}

/// Which open alerts the page shows.
#[derive(Clone, Debug, Default)]
pub struct AlertFilter {
    /// The account's name.
    pub account: Option<String>,
    /// The tenant's id. The store does not know its name.
    pub tenant: Option<String>,
    /// The search's name.
    pub search: Option<String>,
    /// The alert's state, in any case of ASCII letters.
    pub state: Option<String>,
    /// The maximum number of alerts; the newest are shown.
    pub limit: usize,
}

/// An open alert, for the page.
#[derive(Clone, Debug)]
pub struct OpenAlert {
    /// The account's name.
    pub account: String,
    /// The tenant's id.
    pub tenant_id: String,
    /// The search's name.
    pub search: String,
    /// The alert.
    pub alert: StoredAlert,
}

/// Why the store could not do what it was asked. Nothing was written, with two exceptions: after
/// [`Error::Backend`] the task may have been done all the same, for instance if the server's
/// answer was lost; and what is [acknowledged](Store::acknowledge) counts in spite of any error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The journal holds as many events as it may, so no event was added. Delivery makes room.
    #[error("the journal is full ({limit} events wait for the sink {sink:?})")]
    JournalFull {
        /// The limit.
        limit: u64,
        /// The sink for which the most events wait.
        sink: Box<str>,
    },
    /// The epoch has passed: the lease has ended, or the search was given back or taken up again.
    #[error("the lease on the search is lost")]
    LeaseLost,
    /// Another replica holds the search.
    #[error("another replica holds the search")]
    HeldElsewhere,
    /// Another transaction has locked the search's row for a moment; most likely, another replica
    /// is taking the search up. Who holds it is looked up next.
    #[error("another transaction has locked the search's row in the state database for a moment")]
    Contested,
    /// Another transaction keeps the search's row or a table locked, so that meanwhile no replica
    /// can take the search up or write to it. Names what is locked and by whom, as far as that is
    /// known.
    #[error(
        "another transaction keeps {0} in the state database locked; pg_stat_activity shows it, \
         and pg_blocking_pids() whom it holds up"
    )]
    Locked(String),
    /// The state cannot be opened; the message says what to do.
    #[error("cannot open the state file {}: {problem}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The state file is another exporter's now; the message says why and what to do.
    #[error(
        "the state file {} is no longer this exporter's alone: its lock, {}.lock, was removed while in use, \
         and {problem}; let only one of them run, and leave the lock's file where it is: it is free \
         once its exporter has ended",
        path.display(), path.display()
    )]
    Lost {
        /// The file.
        path: PathBuf,
        /// Who has the state file now.
        problem: String,
    },
    /// Reading or writing failed; the operation may have been done all the same.
    #[error("the state store failed")]
    Backend(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// [`Store::set_sinks`] has not named this sink.
    #[error("no sink named {name:?} is known to the state store")]
    UnknownSink {
        /// The name.
        name: String,
    },
    /// It is unknown how many events wait for the sink: leases ended, or are being given back,
    /// while events of their searches waited or were being committed, and the server has not said
    /// since who holds these searches.
    #[error("leases have ended, and who delivers what waits is not known yet")]
    Unclear,
    /// The store was closed.
    #[error("the state store is closed")]
    Closed,
    /// A part of the store has panicked, and nothing does its work any more.
    #[error("{0} has ended unexpectedly, which is a bug")]
    Ended(&'static str),
}

/// Reports a panic of a thread or loop of the store, which nobody would notice otherwise.
#[derive(Debug)]
struct PanicReport {
    part: &'static str,
    lost: watch::Sender<Option<Error>>,
}

// === impl Options ===

impl Options {
    /// Checks whether a store can be opened with these options at all. Opens nothing.
    ///
    /// # Errors
    /// [`postgres::UrlError`] if the server's URL is invalid. A URL that cannot be read, or not in
    /// time, is no error, because it may be readable later.
    pub async fn check(&self) -> Result<(), postgres::UrlError> {
        match self {
            Self::Sqlite { .. } => Ok(()),
            Self::Postgres { url, .. } => {
                let url = url.clone();
                let checked = reading::once(move || postgres::check(&url));
                checked.await.unwrap_or(Ok(()))
            }
        }
    }
}

// === impl Store ===

// The futures that ask PostgreSQL are boxed. Otherwise every search's task would be 30 KiB larger
// all the time, with SQLite, too.

impl Store {
    /// Opens the store, and creates or migrates its tables.
    ///
    /// # Errors
    /// [`Error::Open`] if the file or its folder is missing, not writable, locked by another
    /// process, corrupt, or written by a newer version. [`Error::Backend`] if the server cannot be
    /// used.
    pub async fn open(options: &Options) -> Result<Self, Error> {
        match options {
            Options::Sqlite {
                path,
                journal_limit,
            } => Ok(Self::Sqlite(
                sqlite::Sqlite::open(path, *journal_limit).await?,
            )),
            Options::Postgres {
                url,
                lease,
                node,
                journal_limit,
            } => {
                let opened =
                    postgres::Postgres::open(url.clone(), *lease, node.clone(), *journal_limit);
                Ok(Self::Postgres(Box::pin(opened).await?))
            }
        }
    }

    /// Whether other replicas may hold searches of this store.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// Sets the searches that this replica would poll. They are shared out among the replicas.
    pub fn share_out(&self, keys: Vec<SearchKey>) {
        match self {
            Self::Sqlite(_) => {}
            Self::Postgres(store) => store.share_out(keys),
        }
    }

    /// Waits until it is this replica's turn to take a search up. Cancel safe.
    pub async fn turn(&self, key: &SearchKey) {
        match self {
            Self::Sqlite(_) => {}
            Self::Postgres(store) => Box::pin(store.turn(key)).await,
        }
    }

    /// Whether this process holds a search. While it does, [`Store::turn`] returns at once.
    #[must_use]
    pub fn holds(&self, key: &SearchKey) -> bool {
        match self {
            Self::Sqlite(_) => true,
            Self::Postgres(store) => store.holds(key),
        }
    }

    /// Waits until this replica sees that another one holds a search. Cancel safe.
    pub async fn elsewhere(&self, key: &SearchKey) {
        match self {
            Self::Sqlite(_) => std::future::pending().await,
            Self::Postgres(store) => Box::pin(store.elsewhere(key)).await,
        }
    }

    /// Waits until a search must not be polled any longer, because its lease is lost or another
    /// replica shall have it. The caller must then [give it back](Self::release). Cancel safe.
    pub async fn relieved(&self, held: Held) {
        match self {
            Self::Sqlite(_) => std::future::pending().await,
            Self::Postgres(store) => Box::pin(store.relieved(held)).await,
        }
    }

    /// Returns the lease under which a search is held.
    #[must_use]
    pub fn lease(&self, held: Held) -> Lease {
        Lease {
            store: self.clone(),
            held,
        }
    }

    /// The store's trouble, as text for people; `None` while the store works. The first value
    /// counts as a change, too.
    #[must_use]
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        let mut trouble = match self {
            // SQLite has no trouble beyond the errors that its calls return.
            Self::Sqlite(_) => watch::channel(None).1,
            Self::Postgres(store) => store.trouble(),
        };
        trouble.mark_changed();
        trouble
    }

    /// Waits until this process must not go on with the state. Either another exporter has had the
    /// state file, and the store has closed itself and writes nothing any more; or a part of the
    /// store has [panicked](Error::Ended), which its callers would not notice. Cancel safe.
    pub async fn lost(&self) -> Error {
        let mut lost = match self {
            Self::Sqlite(store) => store.lost(),
            Self::Postgres(store) => store.lost(),
        };
        if let Ok(error) = lost.wait_for(Option::is_some).await
            && let Some(error) = &*error
        {
            return error.clone();
        }
        // The store was closed before anything was lost.
        std::future::pending().await
    }

    /// Whether the store is in [trouble](Self::trouble), which has been logged. Failures that
    /// follow from it need not be logged as errors again.
    #[must_use]
    pub fn is_in_trouble(&self) -> bool {
        match self {
            Self::Sqlite(_) => false,
            Self::Postgres(store) => store.trouble().borrow().is_some(),
        }
    }

    /// Takes up a search and loads what is known about it; creates it if it is new. An earlier
    /// holder in this process loses the search.
    ///
    /// # Errors
    /// [`Error::HeldElsewhere`] if another replica holds the search; [`Error::Contested`] if
    /// another one may be taking it up; [`Error::Locked`] if its row is locked, and was locked at
    /// the last attempt, too, or this process holds the search; [`Error::Backend`] if the store
    /// fails. After an error nothing is held.
    pub async fn take_up(&self, key: &SearchKey, now: Timestamp) -> Result<Loaded, Error> {
        match self {
            Self::Sqlite(store) => store.take_up(key, now).await,
            Self::Postgres(store) => Box::pin(store.take_up(key, now)).await,
        }
    }

    /// Gives a search back. Later commits of its holder are refused, and its alerts are no longer
    /// on the page; they are kept for the next holder. If the next holder may be another replica,
    /// this first waits a while until the journalled events are delivered and acknowledged.
    pub async fn release(&self, held: Held) -> Result<(), Error> {
        match self {
            Self::Sqlite(store) => store.release(held).await,
            Self::Postgres(store) => Box::pin(store.release(held)).await,
        }
    }

    /// Returns the ordinals that alerts had reached when they left, for those among `ids` that are
    /// remembered.
    pub async fn departed(
        &self,
        held: Held,
        ids: Vec<Box<str>>,
    ) -> Result<Vec<(Box<str>, u32)>, Error> {
        match self {
            Self::Sqlite(store) => store.departed(held, ids).await,
            Self::Postgres(store) => Box::pin(store.departed(held, ids)).await,
        }
    }

    /// Returns the next open alerts of a search, behind the id `after`: at most [`LOAD_PAGE`], and
    /// fewer only at the end.
    pub async fn load(&self, held: Held, after: Box<str>) -> Result<Vec<StoredAlert>, Error> {
        match self {
            Self::Sqlite(store) => store.load(held, after).await,
            Self::Postgres(store) => Box::pin(store.load(held, after)).await,
        }
    }

    /// Returns the alerts among `ids` that are open, as they were last stored.
    pub async fn stored(&self, held: Held, ids: Vec<Box<str>>) -> Result<Vec<StoredAlert>, Error> {
        match self {
            Self::Sqlite(store) => store.stored(held, ids).await,
            Self::Postgres(store) => Box::pin(store.stored(held, ids)).await,
        }
    }

    /// Writes what a poll learned, durably, as a whole or not at all. If an error leaves open
    /// whether it was written, take the search up anew to find out. An alert that is both among
    /// the upserts and the departures has left. Without sinks, events are not kept.
    ///
    /// # Errors
    /// [`Error::JournalFull`] if the events do not fit (a commit with more events than the limit
    /// never succeeds); [`Error::LeaseLost`] if the epoch has passed; [`Error::Locked`] if another
    /// transaction has locked the search's row; [`Error::Backend`] also if the disk is so full
    /// that its rest is reserved for acknowledgements.
    pub async fn commit(&self, held: Held, commit: Commit, now: Timestamp) -> Result<(), Error> {
        match self {
            Self::Sqlite(store) => store.commit(held, commit, now).await,
            Self::Postgres(store) => Box::pin(store.commit(held, commit, now)).await,
        }
    }

    /// Whether the journal has room for this many events, of any search.
    pub async fn has_room(&self, events: u64) -> Result<bool, Error> {
        match self {
            Self::Sqlite(store) => store.has_room(events).await,
            Self::Postgres(store) => Ok(store.has_room(events)),
        }
    }

    /// Returns the open alerts for the page, newest first; those without a creation date come
    /// last. Only alerts of searches that are held are shown.
    pub async fn open_alerts(&self, filter: AlertFilter) -> Result<Vec<OpenAlert>, Error> {
        match self {
            Self::Sqlite(store) => store.open_alerts(filter).await,
            Self::Postgres(store) => Box::pin(store.open_alerts(filter)).await,
        }
    }

    /// Sets which sinks there are, and returns their states in the same order. A new sink starts
    /// with the next event. A sink that is no longer named is kept for ten minutes, and goes on
    /// where it was if it is named again by then. After that it is forgotten, with its part of the
    /// backlog. It is forgotten earlier if the events that wait for it leave no room for new
    /// events and no other replica runs.
    pub async fn set_sinks(&self, names: Vec<String>) -> Result<Vec<SinkState>, Error> {
        match self {
            Self::Sqlite(store) => store.set_sinks(names).await,
            Self::Postgres(store) => Box::pin(store.set_sinks(names)).await,
        }
    }

    /// Returns the next events that a sink has not acknowledged: at most `max_events`, and no more
    /// than `max_bytes` of bodies, but at least one event if there is any. Earlier acknowledgements
    /// that could not be stored are stored first, so that no more than one batch is delivered again
    /// after a crash.
    ///
    /// # Errors
    /// [`Error::Backend`] also if that fails; [`Error::Unclear`] if nothing is known to wait, and
    /// it is unknown whether something does.
    pub async fn pending(
        &self,
        sink: &str,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<Batch, Error> {
        match self {
            Self::Sqlite(store) => store.pending(sink, max_events, max_bytes).await,
            Self::Postgres(store) => Box::pin(store.pending(sink, max_events, max_bytes)).await,
        }
    }

    /// Records that a sink has delivered the events up to and including `position`, and what the
    /// sink needs to find its place again. A position before an acknowledged one changes nothing.
    /// Events that every sink has delivered are removed from the journal.
    ///
    /// # Errors
    /// [`Error::Backend`] if the acknowledgement could not be stored. It counts all the same while
    /// the store is open, and is stored with the next write: do not deliver the events again.
    pub async fn acknowledge(
        &self,
        sink: &str,
        position: i64,
        mark: Option<Vec<u8>>,
    ) -> Result<(), Error> {
        match self {
            Self::Sqlite(store) => store.acknowledge(sink, position, mark).await,
            Self::Postgres(store) => Box::pin(store.acknowledge(sink, position, mark)).await,
        }
    }

    /// Returns how much waits for a sink.
    pub async fn backlog(&self, sink: &str) -> Result<Backlog, Error> {
        match self {
            Self::Sqlite(store) => store.backlog(sink).await,
            Self::Postgres(store) => Box::pin(store.backlog(sink)).await,
        }
    }

    /// Receives the last position after each commit with events, which wakes the sinks.
    #[must_use]
    pub fn journalled(&self) -> watch::Receiver<i64> {
        match self {
            Self::Sqlite(store) => store.journalled(),
            Self::Postgres(store) => store.journalled(),
        }
    }

    /// Finishes the work under way and closes the store.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(store) => store.close().await,
            Self::Postgres(store) => Box::pin(store.close()).await,
        }
    }
}

// === impl Claim ===

impl Claim {
    pub(crate) fn of(right: impl Right) -> Self {
        Self(Some(Arc::new(right)))
    }

    /// Whether the events may still be delivered. Ask right before delivering them.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.0.as_ref().is_none_or(|right| right.holds())
    }

    /// What is known of earlier deliveries. `None` if no other process ever holds a search: then
    /// all that is not acknowledged is given again, in order and before anything else.
    #[must_use]
    pub fn past(&self) -> Option<Past> {
        self.0.as_ref().map(|right| right.past())
    }
}

// === impl Lease ===

impl Lease {
    /// Whether the search is still held.
    #[must_use]
    pub fn holds(&self) -> bool {
        match &self.store {
            Store::Sqlite(_) => true,
            Store::Postgres(store) => store.is_held(self.held),
        }
    }
}

// === impl PanicReport ===

impl Drop for PanicReport {
    fn drop(&mut self) {
        if thread::panicking() {
            // An earlier reason for the loss takes precedence.
            self.lost.send_if_modified(|lost| {
                let is_first = lost.is_none();
                lost.get_or_insert(Error::Ended(self.part));
                is_first
            });
        }
    }
}

// === impl Error ===

impl Error {
    /// Whether opening the store may succeed later with the same options.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        let Self::Backend(error) = self else {
            return false;
        };
        let of_server = error.downcast_ref::<postgres::Failure>();
        of_server.is_some_and(postgres::Failure::is_passing)
    }

    fn unknown(sink: &str) -> Self {
        Self::UnknownSink {
            name: sink.to_owned(),
        }
    }

    /// Wraps a backend's error.
    pub fn backend(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Backend(Arc::new(error))
    }
}

#[cfg(test)]
mod conformance;
