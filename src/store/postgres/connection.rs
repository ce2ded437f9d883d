//! Connections to the server: a pool of them, their prepared statements, and what went wrong.
//!
//! A connection whose state is not known, because its user gave up waiting or something on the way
//! failed, is never used again. Everything is bounded in time, on both sides, because a client
//! that is cut off in the middle of a transaction must not keep its locks.

use std::{
    collections::HashMap,
    error::Error as _,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use deadpool::managed::{
    self, Metrics, Object, PoolError, RecycleError, RecycleResult, TimeoutType, Timeouts,
};
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Semaphore, task::JoinHandle, time::timeout};
use tokio_postgres::{
    Client, Config, Row, Statement,
    config::Host,
    error::SqlState,
    types::{FromSql, ToSql},
};

use super::{
    address::{Address, AddressError, Trust},
    tls::Connector,
};
use crate::{
    error_chain::chain,
    excerpt::Secrets,
    names,
    reading::{self, Reading},
    secret::{Secret, SecretError, SecretSource},
    store,
};

/// Maximum number of connections of one replica, including that of the [keeper](Pool::of_one).
pub(super) const CONNECTIONS: usize = 8;

/// Time limit for a connection, and for an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Time limit for a whole task, from asking for a connection to the last of many answers. Giving
/// up loses the connection with all that is prepared on it, so the next try takes longer.
pub(super) const ALTOGETHER: Duration = Duration::from_secs(30);

/// Maximum number of characters that are shown of what the server says, details and hints
/// included.
const MAX_TOLD: usize = 400;

/// Time limit for telling the server that nobody waits for an answer any more.
const CANCELLING: Duration = Duration::from_secs(5);

/// Maximum number of tries of something that another transaction got in the way of.
const TRIES: u32 = 5;

/// Connections to the server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pool: managed::Pool<Manager>,
    begin: Arc<str>,
    cancels: Arc<Semaphore>,
}

/// Opens connections.
#[derive(Debug)]
struct Manager {
    source: Arc<Source>,
    /// The connector, with the trust that it was made for: roots that come late can be those of an
    /// earlier URL.
    of_roots: Reading<(Trust, Result<Connector, String>)>,
    /// Index of the server that is tried first.
    first: AtomicUsize,
}

/// Where the server is, for all pools of a store.
#[derive(Debug)]
struct Source {
    /// Read again for each connection, because a password may have been rotated.
    url: SecretSource,
    of_url: Reading<Result<Secret, SecretError>>,
    /// The database in use; `None` before the URL was read for the first time.
    used: Mutex<Option<Used>>,
}

/// The database that a store works with.
#[derive(Debug)]
struct Used {
    address: Address,
    /// Whether a warning has said that the URL leads to another database by now.
    is_warned: bool,
}

/// How often a warning says that the URL leads to another database by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Warn {
    Once,
    /// Even if a warning has said so before.
    Again,
}

/// An open connection.
#[derive(Debug)]
struct Connection {
    client: Client,
    /// The prepared statements, by their text.
    statements: HashMap<&'static str, Statement>,
    tls: Connector,
    driver: JoinHandle<()>,
    /// The secrets that were sent, which must not be shown if the server repeats them.
    secrets: Secrets,
}

/// A connection in use. It goes back to the pool unless an answer or a transaction is under way on
/// it.
#[derive(Debug)]
pub(crate) struct Session {
    connection: Option<Object<Manager>>,
    begin: Arc<str>,
    cancels: Arc<Semaphore>,
    /// Time limit for an answer.
    patience: Duration,
    under_way: bool,
    in_transaction: bool,
}

/// The tries of one piece of work.
#[derive(Debug, Default)]
pub(super) struct Tries(u32);

/// Why the server could not be asked, or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The secret that holds the URL cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// A file was not read in time.
    #[error("{what} {}", reading::unread(std::slice::from_ref(path)))]
    Unread {
        /// What the file holds.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The URL is invalid.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// TLS cannot be set up.
    #[error("TLS to the database cannot be set up: {0}")]
    Tls(String),
    /// No connection could be opened.
    #[error("cannot connect to the database")]
    Connect(#[source] Told),
    /// A host has not answered in time.
    #[error("cannot connect to the database: the host has not answered in time")]
    NoAnswer,
    /// No connection became free in time.
    #[error(
        "no connection to the database has become free in time: statements that wait for a lock or take \
         long, or a database that does not answer, have all of them"
    )]
    Busy,
    /// An answer or a whole task took too long.
    #[error("the database has not answered in time")]
    Timeout,
    /// The server refused, or the connection broke.
    #[error("the database failed")]
    Sql(#[source] Told),
    /// The tables are a later version's.
    #[error(
        "the tables were written by a newer version of opsramp-exporter (schema {found}, \
         this version knows {known}); use that version, or a database of its own"
    )]
    Newer {
        /// The schema's number in the database.
        found: i32,
        /// The last number that this version knows.
        known: i32,
    },
    /// Some of the tables are not there.
    #[error(
        "tables of the state database are gone while others are there: {0}; restore them, or drop all \
         (opsramp_exporter_schema as well), so that they are made anew"
    )]
    Missing(String),
    /// The database cannot hold every text.
    #[error(
        "the database's encoding is {0}, in which not every text can be written; use one that \
         was made with ENCODING 'UTF8'"
    )]
    Encoding(String),
    /// The replica is not registered with the server, or no longer.
    #[error("the database cannot be reached yet")]
    NotJoined,
    /// A row that was written cannot be changed.
    #[error(
        "the database lets this user write rows of the table {0} and not change them, as row-level \
         security without a policy for that does"
    )]
    Hidden(&'static str),
    /// Other transactions have locked rows of searches.
    #[error(
        "other transactions keep what is needed of the state database locked ({0}), and were waited for in \
         vain: a session that somebody has left open, or searches that are taken up over a slow network; \
         pg_stat_activity shows them, and pg_blocking_pids() whom they hold up"
    )]
    Locked(String),
    /// The server has ended a statement of a commit that took longer than its limit.
    #[error(
        "the database has not finished a statement of a commit within {}; somebody may have locked a table, \
         which pg_stat_activity shows",
        humantime::format_duration(*.limit)
    )]
    Ended {
        /// The limit.
        limit: Duration,
        /// What the server says.
        #[source]
        told: Told,
    },
    /// The store was closed.
    #[error("the state store is closed")]
    Closed,
}

/// Returns the time limit of a statement in a transaction whose answers may take so long.
pub(super) fn longest_statement(patience: Duration) -> Duration {
    patience * 4 / 5
}

/// What the driver says went wrong, fit to be shown. A server may say anything, even the password.
#[derive(Debug, thiserror::Error)]
#[error("{shown}")]
pub struct Told {
    error: tokio_postgres::Error,
    shown: String,
}

// === impl Pool ===

impl Pool {
    /// Returns a pool without any connection yet.
    pub(crate) fn new(url: SecretSource, lease: Duration) -> Self {
        let source = Source {
            url,
            of_url: Reading::default(),
            used: Mutex::new(None),
        };
        // A client that is cut off in a transaction must not hold up the others for longer than
        // its lease. READ COMMITTED is set, because a database may have a stricter isolation for
        // its default. Then a statement that waits for a lock would fail once it has the lock.
        let idle = (lease / 2).clamp(Duration::from_millis(500), PATIENCE);
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = {}",
            idle.as_millis()
        );
        Self::of(CONNECTIONS - 1, Arc::new(source), begin.into())
    }

    /// Returns a pool of a single connection to the same database, beside those of this pool.
    pub(super) fn of_one(&self) -> Self {
        let source = &self.pool.manager().source;
        Self::of(1, Arc::clone(source), Arc::clone(&self.begin))
    }

    fn of(connections: usize, source: Arc<Source>, begin: Arc<str>) -> Self {
        let timeouts = Timeouts {
            wait: Some(PATIENCE),
            create: Some(PATIENCE),
            recycle: None,
        };
        let manager = Manager {
            source,
            of_roots: Reading::default(),
            first: AtomicUsize::new(0),
        };
        let pool = managed::Pool::builder(manager)
            .max_size(connections)
            .runtime(deadpool::Runtime::Tokio1)
            .timeouts(timeouts)
            .build();
        Self {
            // Building fails only if timeouts are given without a runtime.
            pool: pool.expect("a runtime is given"),
            begin,
            cancels: Arc::new(Semaphore::new(connections)),
        }
    }

    /// Returns a connection for a caller in a hurry: neither the connection nor an answer takes
    /// longer than `patience`.
    pub(super) async fn session_within(&self, patience: Duration) -> Result<Session, Failure> {
        // The wait for a free connection ends a little sooner, so that the failure says so.
        let timeouts = Timeouts {
            wait: Some(patience * 9 / 10),
            ..self.pool.timeouts()
        };
        let mut session = timeout(patience, self.session_by(&timeouts)).await??;
        session.patience = patience;
        Ok(session)
    }

    /// Returns a connection. Waits while all of them are in use.
    pub(crate) async fn session(&self) -> Result<Session, Failure> {
        self.session_by(&self.pool.timeouts()).await
    }

    async fn session_by(&self, timeouts: &Timeouts) -> Result<Session, Failure> {
        let connection = self.pool.timeout_get(timeouts).await;
        let connection = connection.map_err(|error| match error {
            PoolError::Backend(failure) => failure,
            PoolError::Closed => Failure::Closed,
            PoolError::Timeout(TimeoutType::Wait) => Failure::Busy,
            PoolError::Timeout(_)
            | PoolError::NoRuntimeSpecified
            | PoolError::PostCreateHook(_) => Failure::Timeout,
        })?;
        Ok(Session {
            connection: Some(connection),
            begin: Arc::clone(&self.begin),
            cancels: Arc::clone(&self.cancels),
            patience: PATIENCE,
            under_way: false,
            in_transaction: false,
        })
    }

    /// Looks whether the URL still leads to the database in use, and warns if it does not.
    pub(super) async fn look_at_url(&self) -> Result<(), Failure> {
        let source = &self.pool.manager().source;
        let read = source.read().await?;
        source.pin(read, Warn::Again);
        Ok(())
    }

    pub(super) fn close(&self) {
        self.pool.close();
    }
}

// === impl Source ===

impl Source {
    /// Returns the address of the database in use. The URL is read anew, so that the password is
    /// as new as can be.
    async fn address(&self) -> Result<Address, Failure> {
        let read = self.read().await?;
        Ok(self.pin(read, Warn::Once))
    }

    async fn read(&self) -> Result<Address, Failure> {
        Ok(Address::parse(self.url().await?.expose())?)
    }

    /// Returns the address to use after this one was `read`. The first database counts until the
    /// process ends: while some connections lead to one database and some to another, the events
    /// in both would be delivered twice. Nor does one server hear the password of the other. If
    /// the URL leads to another database, a warning says so, as often as `warn` tells.
    fn pin(&self, read: Address, warn: Warn) -> Address {
        let mut used = self.used.lock();
        let used = match &mut *used {
            Some(used) if !used.address.is_of_the_same_database(&read) => {
                if (warn == Warn::Again || !used.is_warned)
                    && let SecretSource::File(path) = &self.url
                {
                    tell_another(path);
                }
                used.is_warned = true;
                return used.address.clone();
            }
            used => used,
        };
        *used = Some(Used {
            address: read.clone(),
            is_warned: false,
        });
        read
    }

    async fn url(&self) -> Result<Secret, Failure> {
        let SecretSource::File(path) = &self.url else {
            return Ok(self.url.read()?);
        };
        let url = self.url.clone();
        let read = self.of_url.read(move || url.read()).await;
        Ok(read.ok_or_else(|| Failure::Unread {
            what: "the URL of the database",
            path: path.clone(),
        })??)
    }
}

// === impl Manager ===

impl managed::Manager for Manager {
    type Type = Connection;
    type Error = Failure;

    async fn create(&self) -> Result<Connection, Failure> {
        // The future is boxed. Otherwise every future that asks for a connection would have room
        // for it, whether or not one is opened.
        Box::pin(self.open()).await
    }

    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<Failure> {
        if connection.client.is_closed() {
            return Err(RecycleError::message("the server closed it"));
        }
        Ok(())
    }
}

impl Manager {
    async fn open(&self) -> Result<Connection, Failure> {
        let address = self.source.address().await?;
        let tls = self.connector(&address.trust).await?;
        let servers = join_all(address.hosts.iter().map(servers_of))
            .await
            .concat();
        let first = self.first.load(Ordering::Relaxed);
        let mut failure = Failure::NoAnswer;
        for index in first..first + servers.len() {
            // A caller in a hurry may give up before a server that hangs is passed over. The next
            // try must not begin with that server again.
            self.first.store(index + 1, Ordering::Relaxed);
            match connect(&servers[index % servers.len()], &tls).await {
                Ok(connection) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok(connection);
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn connector(&self, trust: &Trust) -> Result<Connector, Failure> {
        let Trust::Verified { roots: Some(path) } = trust else {
            return Connector::new(trust).map_err(Failure::Tls);
        };
        loop {
            let wanted = trust.clone();
            let read = self.of_roots.read(move || {
                let connector = Connector::new(&wanted);
                (wanted, connector)
            });
            let (of, connector) = read.await.ok_or_else(|| Failure::Unread {
                what: "the certificates of sslrootcert",
                path: path.clone(),
            })?;
            if of == *trust {
                return connector.map_err(Failure::Tls);
            }
        }
    }
}

/// Warns that the file with the URL leads to another database than the one in use.
pub(super) fn tell_another(file: &Path) {
    tracing::warn!(
        file = %file.display(),
        "the URL of the database in this file leads to another host, port or database now; this process \
         works on with the one that it was started with. To move the database, stop all replicas before \
         it is copied, and start them with the new URL"
    );
}

/// Returns the servers that bear a host's name, one for each of its addresses, since any of them
/// may hang.
async fn servers_of(host: &Config) -> Vec<Config> {
    let (Some(Host::Tcp(name)), []) = (host.get_hosts().first(), host.get_hostaddrs()) else {
        return vec![host.clone()];
    };
    let server = |address: &SocketAddr| host.clone().hostaddr(address.ip()).clone();
    match timeout(patience_of(host), names::look_up(name)).await {
        Ok(Ok(addresses)) => addresses.iter().map(server).collect(),
        // If the name has no address, the driver reports that.
        Ok(Err(_)) => vec![host.clone()],
        // The driver's own look-up would hang as well.
        Err(_) => Vec::new(),
    }
}

async fn connect(server: &Config, tls: &Connector) -> Result<Connection, Failure> {
    // The driver's own limit covers the network connection alone.
    let connected = timeout(patience_of(server), server.connect(tls.clone())).await;
    let connected = connected.map_err(|_| Failure::NoAnswer)?;
    let secrets = secrets_of(server);
    let (client, connection) =
        connected.map_err(|error| Failure::Connect(Told::of(error, &secrets)))?;
    let driver = tokio::spawn(async move {
        // The next request on the client returns why the connection ended.
        connection.await.ok();
    });
    Ok(Connection {
        client,
        statements: HashMap::new(),
        tls: tls.clone(),
        driver,
        secrets,
    })
}

fn secrets_of(server: &Config) -> Secrets {
    let password = String::from_utf8_lossy(server.get_password().unwrap_or_default());
    // If the password is also a name, hiding it in the place of the name would only reveal it.
    let is_name = [server.get_user(), server.get_dbname()].contains(&Some(&password));
    let password = (!is_name).then(|| Secret::new(password));
    Secrets::of(password.as_slice())
}

fn patience_of(server: &Config) -> Duration {
    server.get_connect_timeout().copied().unwrap_or(PATIENCE)
}

// === impl Connection ===

impl Connection {
    /// Makes the server abandon what nobody waits for any more, and closes the connection. A
    /// server that waits for a lock, or for a standby, does not notice that its client is gone. It
    /// would keep one of its places for as long as that takes.
    fn give_up(self, cancels: &Arc<Semaphore>) {
        let turn = Arc::clone(cancels).try_acquire_owned();
        if let (Ok(turn), Ok(runtime)) = (turn, Handle::try_current()) {
            runtime.spawn(async move {
                let cancel = self.client.cancel_token();
                let told = timeout(CANCELLING, cancel.cancel_query(self.tls.clone())).await;
                if !matches!(told, Ok(Ok(()))) {
                    tracing::debug!("cannot tell the database that nobody waits for an answer");
                }
                drop((self, turn));
            });
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Otherwise the task would wait for a server that may be gone.
        self.driver.abort();
    }
}

// === impl Session ===

impl Session {
    /// Begins a transaction. It ends with [`Self::commit`], or has no effect.
    pub(super) async fn begin(&mut self) -> Result<(), Failure> {
        self.begin_by(Duration::MAX, "").await
    }

    /// Begins a transaction that [fails](Failure::is_lock_timeout) if it has to wait for a lock for
    /// longer than `wait`.
    pub(super) async fn begin_waiting(&mut self, wait: Duration) -> Result<(), Failure> {
        self.begin_waiting_for_all(wait, Duration::MAX).await
    }

    /// Begins a transaction whose statements may wait for many locks. It
    /// [fails](Failure::is_lock_timeout) if one lock takes longer than `wait`, and it
    /// [fails](Failure::is_cancelled) as well if a statement takes longer than `limit`
    /// altogether.
    pub(super) async fn begin_waiting_for_all(
        &mut self,
        wait: Duration,
        limit: Duration,
    ) -> Result<(), Failure> {
        let wait = wait.as_millis();
        let more = format!("; SET LOCAL lock_timeout = {wait}");
        self.begin_by(limit, &more).await
    }

    /// Begins a transaction that locks a search's row, and [fails](Failure::is_lock_timeout) if it
    /// has to wait for the row for longer than `wait`. Later statements, which wait for other
    /// locks, have the time that any statement has, but no more than `limit`, since renewals pass
    /// over the row meanwhile.
    pub(super) async fn begin_with_row(
        &mut self,
        search: i64,
        wait: Duration,
        limit: Duration,
    ) -> Result<(), Failure> {
        let wait = wait.as_millis();
        let more = format!(
            "; SET LOCAL lock_timeout = {wait}; SELECT FROM search WHERE id = {search} FOR NO KEY UPDATE; \
             SET LOCAL lock_timeout = 0"
        );
        self.begin_by(limit, &more).await
    }

    /// Begins a transaction in which the server ends each statement after `limit`. This is for a
    /// process that may be gone by then, and could not have a statement cancelled.
    pub(super) async fn begin_last(&mut self, limit: Duration) -> Result<(), Failure> {
        self.begin_by(limit, "").await
    }

    /// Begins a transaction in which the server ends each statement after `limit`, with `more`
    /// statements. The server always ends a statement before the client gives up waiting, so that
    /// the client hears of it: a statement that the server has ended has certainly not been done,
    /// but one that nobody waits for any more may have been.
    async fn begin_by(&mut self, limit: Duration, more: &str) -> Result<(), Failure> {
        let limit = limit.min(longest_statement(self.patience)).as_millis();
        let begin = format!(
            "{}; SET LOCAL statement_timeout = {limit}{more}",
            self.begin
        );
        // Set even if a later one of the statements fails, because there is something to roll back
        // then.
        self.in_transaction = true;
        self.batch(&begin).await
    }

    /// Commits the transaction. After an error it is unknown whether that was done, unless the
    /// server said why.
    pub(super) async fn commit(&mut self) -> Result<(), Failure> {
        self.batch("COMMIT").await?;
        self.in_transaction = false;
        Ok(())
    }

    /// Rolls the transaction back.
    pub(super) async fn roll_back(&mut self) -> Result<(), Failure> {
        self.batch("ROLLBACK").await?;
        self.in_transaction = false;
        Ok(())
    }

    /// Runs statements without parameters.
    pub(super) async fn batch(&mut self, sql: &str) -> Result<(), Failure> {
        self.ask(async |client| client.batch_execute(sql).await)
            .await
    }

    /// Runs a statement outside a transaction, and repeats it while other transactions get in its
    /// way.
    pub(super) async fn query_again(
        &mut self,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failure> {
        let mut tries = Tries::default();
        loop {
            match self.query_alone(&tries, sql, parameters).await {
                Err(failure) if tries.again(&failure).await => {}
                done => return done,
            }
        }
    }

    /// Tries a statement outside a transaction once. If the database's default isolation is
    /// stricter than [ours](Self::begin), such statements get in each other's way all the time. So
    /// from the second try on, the statement has a transaction of its own, which takes two more
    /// answers.
    pub(super) async fn query_alone(
        &mut self,
        tries: &Tries,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failure> {
        if tries.0 == 0 {
            return self.query(sql, parameters).await;
        }
        self.begin().await?;
        let done = self.query(sql, parameters).await;
        match &done {
            Ok(_) => self.commit().await?,
            Err(failure) if failure.is_conflict() => self.roll_back().await?,
            // The connection is not used again.
            Err(_) => {}
        }
        done
    }

    pub(crate) async fn query(
        &mut self,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Failure> {
        let statement = self.prepare(sql).await?;
        self.ask(async |client| client.query(&statement, parameters).await)
            .await
    }

    /// Runs a statement. Returns the first column of its rows.
    pub(super) async fn column<A, C>(
        &mut self,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<C, Failure>
    where
        A: for<'a> FromSql<'a>,
        C: FromIterator<A>,
    {
        let rows = self.query(sql, parameters).await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// Runs a statement. Returns how many rows were changed.
    pub(super) async fn execute(
        &mut self,
        sql: &'static str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, Failure> {
        let statement = self.prepare(sql).await?;
        self.ask(async |client| client.execute(&statement, parameters).await)
            .await
    }

    async fn prepare(&mut self, sql: &'static str) -> Result<Statement, Failure> {
        let known = self.connection.as_ref().map(|it| &it.statements);
        if let Some(statement) = known.and_then(|known| known.get(sql)) {
            return Ok(statement.clone());
        }
        let statement = self.ask(async |client| client.prepare(sql).await).await?;
        if let Some(connection) = &mut self.connection {
            connection.statements.insert(sql, statement.clone());
        }
        Ok(statement)
    }

    /// Returns what the server says, fit to be shown.
    pub(super) fn excerpt(&self, said: &str) -> String {
        match &self.connection {
            Some(connection) => connection.secrets.excerpt(said.as_bytes()),
            None => String::new(),
        }
    }

    /// Asks the server, within the time limit for an answer, and takes note of whether the
    /// connection can be used again afterwards.
    async fn ask<A>(
        &mut self,
        question: impl AsyncFnOnce(&Client) -> Result<A, tokio_postgres::Error>,
    ) -> Result<A, Failure> {
        self.under_way = true;
        let connection = self.connection.as_ref().ok_or(Failure::Closed)?;
        let answer = timeout(self.patience, question(&connection.client)).await?;
        let answer = answer.map_err(|error| Failure::Sql(Told::of(error, &connection.secrets)));
        let failure = answer.as_ref().err();
        self.under_way = failure.is_some_and(|it| !it.leaves_connection_usable());
        answer
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take()
            && (self.under_way || self.in_transaction)
        {
            let connection = Object::take(connection);
            if self.under_way {
                connection.give_up(&self.cancels);
            }
        }
    }
}

// === impl Told ===

impl Told {
    fn of(error: tokio_postgres::Error, secrets: &Secrets) -> Self {
        let shown = secrets.line(chain(&error).as_bytes(), MAX_TOLD);
        Self { error, shown }
    }

    /// Returns the server's reason, if it refused.
    pub(crate) fn code(&self) -> Option<&SqlState> {
        self.error.code()
    }

    /// Whether TLS is wanted and the server has none. The driver says so by its text alone.
    pub(crate) fn is_without_tls(&self) -> bool {
        let why = self.error.source();
        why.is_some_and(|why| why.to_string() == "server does not support TLS")
    }
}

// === impl Tries ===

impl Tries {
    /// Whether to try again after a failure that is only due to other transactions. Pauses before
    /// a further try.
    pub(super) async fn again(&mut self, failure: &Failure) -> bool {
        failure.is_conflict() && self.again_in_any_case().await
    }

    /// Whether to try again after any failure. Pauses before a further try.
    pub(super) async fn again_in_any_case(&mut self) -> bool {
        self.0 += 1;
        if self.0 >= TRIES {
            return false;
        }
        let pause = Duration::from_millis(5 << self.0);
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        true
    }
}

// === impl Failure ===

impl Failure {
    /// Returns the objection of TLS, if it prevented the connection.
    pub(crate) fn of_tls(&self) -> Option<&rustls::Error> {
        let Self::Connect(error) = self else {
            return None;
        };
        // An I/O error does not name the error within it as its source.
        let within = error
            .error
            .source()?
            .downcast_ref::<io::Error>()?
            .get_ref()?;
        within.downcast_ref()
    }

    fn state(&self) -> Option<&SqlState> {
        match self {
            Self::Sql(error) | Self::Connect(error) => error.code(),
            _ => None,
        }
    }

    fn is_of(&self, states: &[SqlState]) -> bool {
        self.state().is_some_and(|state| states.contains(state))
    }

    /// Whether another transaction got in the way: nothing was done, and the next try may succeed.
    pub(super) fn is_conflict(&self) -> bool {
        self.is_of(&[
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::LOCK_NOT_AVAILABLE,
        ])
    }

    /// Whether another transaction kept a lock for longer than this one waited for it.
    pub(super) fn is_lock_timeout(&self) -> bool {
        self.is_of(&[SqlState::LOCK_NOT_AVAILABLE])
    }

    /// Whether the server ended a statement: the statement took longer than its limit, or somebody
    /// cancelled it.
    pub(super) fn is_cancelled(&self) -> bool {
        self.is_of(&[SqlState::QUERY_CANCELED])
    }

    /// Adds, for a [statement that has taken longer than it might](Self::is_cancelled), its
    /// limit and a possible cause.
    pub(super) fn with_time_limit(self, limit: Duration) -> Self {
        match self {
            Self::Sql(told) => Self::Ended { limit, told },
            other => other,
        }
    }

    /// Whether a table is not there, or lacks a column.
    pub(super) fn is_missing_table(&self) -> bool {
        self.is_of(&[SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN])
    }

    /// Whether the server refused, and said why.
    pub(super) fn is_refusal(&self) -> bool {
        self.state().is_some()
    }

    /// Whether it is certain that nothing was done. It is uncertain if the connection broke before
    /// the end of a transaction was known.
    pub(in crate::store) fn is_without_effect(&self) -> bool {
        // Connections may be lost, operators may intervene and servers may crash right after a
        // commit.
        let of_the_end = ["08", "57P", "58", "XX"];
        match self {
            Self::Sql(error) => error.code().is_some_and(|state| {
                *state != SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN
                    && !of_the_end.iter().any(|it| state.code().starts_with(it))
            }),
            Self::Timeout | Self::Closed => false,
            Self::Secret(_)
            | Self::Unread { .. }
            | Self::Address(_)
            | Self::Tls(_)
            | Self::Connect(_)
            | Self::NoAnswer
            | Self::Busy
            | Self::Newer { .. }
            | Self::Missing(_)
            | Self::Encoding(_)
            | Self::NotJoined
            | Self::Locked(_)
            | Self::Ended { .. }
            | Self::Hidden(_) => true,
        }
    }

    /// Whether the failure may pass by itself, or with another secret.
    pub(in crate::store) fn is_passing(&self) -> bool {
        !matches!(
            self,
            Self::Address(_) | Self::Newer { .. } | Self::Encoding(_) | Self::Closed
        )
    }

    /// Whether the server refused one statement, and takes others on the same connection.
    fn leaves_connection_usable(&self) -> bool {
        let Some(state) = self.state() else {
            return false;
        };
        // Broken connections; prepared statements that are missing (a pooler has put another
        // server behind the connection) or no longer fit (a later version has changed the tables);
        // lack of resources; an operator's intervention; and a server that has become a standby.
        let of_the_server = ["08", "0A", "26", "53", "57", "58", "XX"];
        !of_the_server
            .iter()
            .any(|class| state.code().starts_with(class))
            && *state != SqlState::READ_ONLY_SQL_TRANSACTION
    }
}

/// Converts the error of a row that does not hold what it should.
impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        // The error is shown without its cause, which names types as the server calls them.
        let shown = error.to_string();
        Self::Sql(Told { error, shown })
    }
}

impl From<Failure> for store::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Closed => Self::Closed,
            failure => Self::backend(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    const PASSWORD: &str = "Zq7w/Rt93kLmX@vB2";

    /// Returns the failure if a server asks for the password in clear, and then refuses it with
    /// these words.
    async fn refusal(said: String) -> Failure {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let length = stream.read_u32().await.unwrap() as usize;
            let mut message = vec![0; length - 4];
            stream.read_exact(&mut message).await.unwrap();
            stream.write_all(b"R\0\0\0\x08\0\0\0\x03").await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'p');
            let length = stream.read_u32().await.unwrap() as usize;
            let mut message = vec![0; length - 4];
            stream.read_exact(&mut message).await.unwrap();
            assert_eq!(message, format!("{PASSWORD}\0").as_bytes());
            let fields = format!("SFATAL\0VFATAL\0C28P01\0M{said}\0D{said}\0\0");
            let length = u32::try_from(fields.len() + 4).unwrap();
            stream.write_u8(b'E').await.unwrap();
            stream.write_u32(length).await.unwrap();
            // The client may have read enough by then.
            stream.write_all(fields.as_bytes()).await.ok();
        });
        let url = format!("postgres://u:Zq7w%2FRt93kLmX%40vB2@127.0.0.1:{port}/d?sslmode=disable");
        let url = SecretSource::Value(Secret::new(url));
        let pool = Pool::new(url, Duration::from_secs(10));
        pool.session().await.unwrap_err()
    }

    #[tokio::test]
    async fn what_a_server_says_is_shown_without_the_password_and_on_one_short_line() {
        for said in [
            format!("password \"{PASSWORD}\" is wrong"),
            "password \"Zq7w%2FRt93kLmX%40vB2\" is wrong".to_owned(),
            "password \"Zq7w/Rt93k\"... is wrong".to_owned(),
            "no\x1b[2J\r\nok  all is well\x07".to_owned(),
            "x".repeat(1 << 20),
        ] {
            let failure = refusal(said).await;
            assert!(failure.is_refusal());
            let text = chain(&failure);
            let begin = "cannot connect to the database: ";
            assert!(text.starts_with(begin), "{text}");
            assert!(text.len() < 500, "{}", text.len());
            assert!(!text.contains(char::is_control), "{text:?}");
            for secret in [&PASSWORD[..8], "LmX"] {
                assert!(!text.contains(secret), "{text}");
            }
        }
        let text = chain(&refusal("no entry for host".to_owned()).await);
        assert!(
            text.ends_with("db error: FATAL: no entry for host DETAIL: no entry for host"),
            "{text}"
        );
    }
}
