//! The store: which alerts are known, the journal of events that wait to be delivered, how far
//! each sink has come, and, where several replicas share one, who holds which search.
//!
//! The decision worth knowing: what is now known about the alerts *and* the events that follow
//! from it are one commit. A crash before it is healed by the next poll, a crash after it by the
//! journal. The store knows nothing of OpsRamp, nor of what a sink is: bodies are opaque bytes.

use std::{path::PathBuf, sync::Arc, thread, time::Duration};

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
        /// This replica's name, which it keeps when it is started again and shares with no other:
        /// its sinks find their place again by it.
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

/// The right to write to a search: its row, and the fencing epoch of the lease on it. A commit
/// under an epoch that has passed is refused. In the embedded store an epoch passes when the
/// search is taken up again or given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    /// The search's row.
    pub row: i64,
    /// Grows with each lease.
    pub epoch: i64,
}

/// What the store knows about a search when it is taken up.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The right to write to it.
    pub held: Held,
    /// Whether its result has been read whole once, ever.
    pub primed: bool,
    /// When the search was stored for the first time.
    pub first_seen: Timestamp,
    /// Whether any alert has ever left, so that [`Store::departed`] is worth a call.
    pub has_departed: bool,
    /// The alerts that were open when it was last written, in the order of their ids: the first
    /// [`LOAD_PAGE`] of them; [`Store::load`] brings the others.
    pub alerts: Vec<StoredAlert>,
}

/// How many alerts are loaded at once: there may be a million.
pub const LOAD_PAGE: usize = 4096;

/// An alert as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAlert {
    /// What tells it from the search's other alerts.
    pub id: Box<str>,
    /// How many events its life has had so far.
    pub ordinal: u32,
    /// A hash of everything whose change is worth storing.
    pub digest: u64,
    /// When it was created, where that is known; orders the page of open alerts.
    pub created_at: Option<Timestamp>,
    /// A word to filter the page of open alerts by.
    pub state: Box<str>,
    /// The alert, in a form that only its writer reads.
    pub body: Bytes,
}

/// What a poll learned, to be written as a whole or not at all.
#[derive(Clone, Debug, Default)]
pub struct Commit {
    /// Alerts that are new or whose stored form changed.
    pub upserts: Vec<StoredAlert>,
    /// Alerts that left, with the ordinal that they reached. It is kept for
    /// [`DEPARTED_RETENTION`], so that one that comes back goes on counting.
    pub departures: Vec<(Box<str>, u32)>,
    /// Events, in the order in which they shall be delivered.
    pub events: Vec<JournalEvent>,
    /// Set once the result has been read whole for the first time.
    pub primed: bool,
    /// Whether the clock can be believed about long times, so that ordinals may be forgotten whose
    /// time is over.
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
    /// Its place in the journal: later events have higher ones.
    pub position: i64,
    /// The event.
    pub event: JournalEvent,
}

/// A sink's state in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkState {
    /// What the sink left with its last acknowledgement, to find its place again.
    pub mark: Option<Vec<u8>>,
}

/// Some events for a sink, oldest first, and what to acknowledge once they are delivered.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The events.
    pub events: Vec<Pending>,
    /// The right to deliver them. Keep it until they are acknowledged or given up.
    pub claim: Claim,
}

/// The right to deliver some events. While it is kept, nobody else is given the searches that they
/// are of, unless their leases end.
#[derive(Clone, Debug, Default)]
pub struct Claim(Option<Arc<postgres::Loan>>);

/// What is known of a sink's earlier deliveries, where replicas share the searches. Lines of events that
/// are given again may stand anywhere in its file, not only at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// Whether a former holder of a search, an earlier process in this one's place for instance, may
    /// have delivered some of the events already, without this sink's mark telling so.
    pub is_inherited: bool,
    /// Whether the server had been told of all that was acknowledged before.
    pub is_stored: bool,
    /// Grows when searches were lost before the server was told what was delivered of them: whoever
    /// has them next is given that again.
    pub losses: u64,
}

/// What tells whether a search is still held, at any moment: whoever polls it may be waiting for the
/// store when its lease ends.
#[derive(Clone, Debug)]
pub struct Lease {
    store: Store,
    held: Held,
}

/// How much waits for a sink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Events journalled and not yet acknowledged.
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
    /// The state's word, in any case of ASCII letters.
    pub state: Option<String>,
    /// At most so many, newest first.
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

/// The store could not do what it was asked. Nothing was written, with two exceptions: what ends in
/// [`Error::Backend`] may have been done all the same, as where a server's answer was lost; and what
/// is [acknowledged](Store::acknowledge) counts whatever becomes of it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The journal holds as many events as it may; no event was taken in. Delivery makes room.
    #[error("the journal is full ({limit} events wait for delivery)")]
    JournalFull {
        /// The limit.
        limit: u64,
    },
    /// Somebody else holds the search now.
    #[error("the lease on the search is lost")]
    LeaseLost,
    /// Another replica holds the search.
    #[error("another replica holds the search")]
    HeldElsewhere,
    /// Somebody has locked the search's row for a moment, most likely another replica that takes it up:
    /// who holds it is looked up.
    #[error("another transaction has locked the search's row in the state database for a moment")]
    Contested,
    /// Somebody has locked the search's row, or a table, so that no replica can take it up or write to it until that
    /// ends; what, and by whom, as far as that is known.
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
        /// Whose it is.
        problem: String,
    },
    /// Reading or writing failed.
    #[error("the state store failed")]
    Backend(#[source] Arc<dyn std::error::Error + Send + Sync>),
    /// A sink that [`Store::set_sinks`] did not name.
    #[error("no sink named {name:?} is known to the state store")]
    UnknownSink {
        /// The name.
        name: String,
    },
    /// Leases have ended while events of their searches waited or were being committed, or are being given back,
    /// and nobody has said since who holds these: what waits for the sink is not known.
    #[error("leases have ended, and who delivers what waits is not known yet")]
    Unclear,
    /// The store was closed.
    #[error("the state store is closed")]
    Closed,
    /// A part of the store has panicked: what it did, nobody does any more.
    #[error("{0} has ended unexpectedly, which is a bug")]
    Ended(&'static str),
}

/// Reports a thread or a loop of the store that panics: nobody else would notice.
#[derive(Debug)]
struct PanicReport {
    part: &'static str,
    lost: watch::Sender<Option<Error>>,
}

// === impl Options ===

impl Options {
    /// Looks whether a store can be opened with them at all. Nothing is opened.
    ///
    /// # Errors
    /// [`postgres::UrlError`] where the URL of the server is none. One that cannot be read, or not in
    /// time, may be there later.
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

// What asks PostgreSQL stands in a box of its own: else every search would hold the 30 KiB that such
// a question takes, all the time and with SQLite, too.

impl Store {
    /// Opens the store, creates or migrates its tables.
    ///
    /// # Errors
    /// [`Error::Open`] where the file or its folder is missing, not writable, locked by another
    /// process, corrupt, or written by a newer version. [`Error::Backend`] where the server cannot
    /// be used.
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

    /// Whether other replicas may hold searches.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// Says which searches this replica would poll, so that they are shared out among the replicas.
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

    /// Whether this process holds a search: then it is its [turn](Self::turn) all the time.
    #[must_use]
    pub fn holds(&self, key: &SearchKey) -> bool {
        match self {
            Self::Sqlite(_) => true,
            Self::Postgres(store) => store.holds(key),
        }
    }

    /// Waits until another replica is seen to hold a search. Cancel safe.
    pub async fn elsewhere(&self, key: &SearchKey) {
        match self {
            Self::Sqlite(_) => std::future::pending().await,
            Self::Postgres(store) => Box::pin(store.elsewhere(key)).await,
        }
    }

    /// Waits until a search must not be polled any longer, because the lease on it is lost or
    /// because another replica shall have it: then it is to be [given back](Self::release).
    /// Cancel safe.
    pub async fn relieved(&self, held: Held) {
        match self {
            Self::Sqlite(_) => std::future::pending().await,
            Self::Postgres(store) => Box::pin(store.relieved(held)).await,
        }
    }

    /// The lease under which a search is held.
    #[must_use]
    pub fn lease(&self, held: Held) -> Lease {
        Lease {
            store: self.clone(),
            held,
        }
    }

    /// In what trouble the store is, for people; `None` while it works. How it is to begin with is news, too.
    #[must_use]
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        let mut trouble = match self {
            // What its errors say is all there is.
            Self::Sqlite(_) => watch::channel(None).1,
            Self::Postgres(store) => store.trouble(),
        };
        trouble.mark_changed();
        trouble
    }

    /// Waits until this process must not go on with the state: another exporter has had the state file
    /// (the store has closed itself then, and writes nothing any more), or a part of the store has
    /// [panicked](Error::Ended), which its callers would not notice. Cancel safe.
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
        // It was closed while it was ours.
        std::future::pending().await
    }

    /// Whether [`Store::trouble`] has been told, and logged: then what fails of it is no news.
    #[must_use]
    pub fn is_in_trouble(&self) -> bool {
        match self {
            Self::Sqlite(_) => false,
            Self::Postgres(store) => store.trouble().borrow().is_some(),
        }
    }

    /// Takes up a search and loads what is known about it; creates it where it is new. Whoever
    /// held it before in this process does so no longer.
    ///
    /// # Errors
    /// [`Error::HeldElsewhere`] where another replica holds it; [`Error::Contested`] where it may be about
    /// to, and [`Error::Locked`] where that is still so at the next turn; [`Error::Backend`], as everywhere:
    /// then nothing is held.
    pub async fn take_up(&self, key: &SearchKey, now: Timestamp) -> Result<Loaded, Error> {
        match self {
            Self::Sqlite(store) => store.take_up(key, now).await,
            Self::Postgres(store) => Box::pin(store.take_up(key, now)).await,
        }
    }

    /// Gives a search back: what its holder still tries to commit is refused, and its alerts are
    /// no longer on the page. They are kept for the next who takes it up. Where that may be another
    /// replica, it waits a while until what is journalled is delivered, and what is being delivered
    /// is acknowledged.
    pub async fn release(&self, held: Held) -> Result<(), Error> {
        match self {
            Self::Sqlite(store) => store.release(held).await,
            Self::Postgres(store) => Box::pin(store.release(held)).await,
        }
    }

    /// The ordinals that alerts had reached when they left: of those among `ids` that are
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

    /// The next open alerts of a search, those behind the id `after`: at most [`LOAD_PAGE`], and
    /// fewer only at the end.
    pub async fn load(&self, held: Held, after: Box<str>) -> Result<Vec<StoredAlert>, Error> {
        match self {
            Self::Sqlite(store) => store.load(held, after).await,
            Self::Postgres(store) => Box::pin(store.load(held, after)).await,
        }
    }

    /// Those among `ids` that are open, as they were last stored.
    pub async fn stored(&self, held: Held, ids: Vec<Box<str>>) -> Result<Vec<StoredAlert>, Error> {
        match self {
            Self::Sqlite(store) => store.stored(held, ids).await,
            Self::Postgres(store) => Box::pin(store.stored(held, ids)).await,
        }
    }

    /// Writes what a poll learned, durably, as a whole or not at all. Where an error leaves open
    /// which, the search is to be taken up anew: so it is known. An alert that is both among
    /// the upserts and the departures has left. Where there are no sinks, events are not kept.
    ///
    /// # Errors
    /// [`Error::JournalFull`] where its events do not fit, so that a commit with more events than
    /// the limit never succeeds; [`Error::LeaseLost`] where the epoch has passed;
    /// [`Error::Locked`] where somebody has locked the search's row; [`Error::Backend`] also where the
    /// disk is so full that acknowledgements need the rest.
    pub async fn commit(&self, held: Held, commit: Commit, now: Timestamp) -> Result<(), Error> {
        match self {
            Self::Sqlite(store) => store.commit(held, commit, now).await,
            Self::Postgres(store) => Box::pin(store.commit(held, commit, now)).await,
        }
    }

    /// Whether there is room in the journal for so many events of any search.
    pub async fn has_room(&self, events: u64) -> Result<bool, Error> {
        match self {
            Self::Sqlite(store) => store.has_room(events).await,
            Self::Postgres(store) => Ok(store.has_room(events)),
        }
    }

    /// The open alerts for the page, newest first; those without a creation date come last. Only
    /// those of searches that are held are shown.
    pub async fn open_alerts(&self, filter: AlertFilter) -> Result<Vec<OpenAlert>, Error> {
        match self {
            Self::Sqlite(store) => store.open_alerts(filter).await,
            Self::Postgres(store) => Box::pin(store.open_alerts(filter)).await,
        }
    }

    /// Says which sinks there are, and returns their states in the same order. One that is new
    /// starts with the next event. One that is no longer named is kept for ten minutes, and goes on where
    /// it was if it is named again by then. It is forgotten after that, with its part of the backlog;
    /// earlier where what waits for it leaves no room for new events and no other replica runs.
    pub async fn set_sinks(&self, names: Vec<String>) -> Result<Vec<SinkState>, Error> {
        match self {
            Self::Sqlite(store) => store.set_sinks(names).await,
            Self::Postgres(store) => Box::pin(store.set_sinks(names)).await,
        }
    }

    /// The next events for a sink after those it has acknowledged: at most `max_events`, and no more than `max_bytes` of bodies,
    /// but at least one where there is one.
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

    /// Says that a sink has delivered events up to and with `position`, and what it needs to find
    /// its place again. A position before one that was acknowledged already changes nothing.
    /// Events that every sink has are removed from the journal.
    ///
    /// # Errors
    /// [`Error::Backend`] where it could not be stored. It counts all the same, as long as the
    /// store is open, and is stored with the next write: do not deliver the events again.
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

    /// How much waits for a sink.
    pub async fn backlog(&self, sink: &str) -> Result<Backlog, Error> {
        match self {
            Self::Sqlite(store) => store.backlog(sink).await,
            Self::Postgres(store) => Box::pin(store.backlog(sink)).await,
        }
    }

    /// The last position, after each commit with events: what wakes the sinks.
    #[must_use]
    pub fn journalled(&self) -> watch::Receiver<i64> {
        match self {
            Self::Sqlite(store) => store.journalled(),
            Self::Postgres(store) => store.journalled(),
        }
    }

    /// Finishes what is under way and closes the store.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(store) => store.close().await,
            Self::Postgres(store) => Box::pin(store.close()).await,
        }
    }
}

// === impl Claim ===

impl Claim {
    fn of(loan: postgres::Loan) -> Self {
        Self(Some(Arc::new(loan)))
    }

    /// Whether the events may still be delivered. Ask right before.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.0.as_ref().is_none_or(|loan| loan.holds())
    }

    /// What was before. `None` where nobody else ever holds a search: then all that is not
    /// acknowledged is given again, in order and before anything else.
    #[must_use]
    pub fn past(&self) -> Option<Past> {
        self.0.as_ref().map(|loan| loan.past())
    }
}

// === impl Lease ===

impl Lease {
    /// Whether it can still be relied on.
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
            // Where the state was lost before, that stands.
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
    /// Whether the store may be opened later without a change of its options.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        self.of_server().is_some_and(postgres::Failure::is_passing)
    }

    fn of_server(&self) -> Option<&postgres::Failure> {
        match self {
            Self::Backend(error) => error.downcast_ref(),
            _ => None,
        }
    }

    /// Wraps a backend's error.
    pub fn backend(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Backend(Arc::new(error))
    }
}

#[cfg(test)]
mod conformance;
