//! The accept loop and the bounds on connections.
//!
//! Anybody who can reach the port can open connections and leave them. So every connection is in a
//! table, with what it does at present and since when. A connection that takes too long is
//! dropped. When the table is full, a newcomer replaces a connection of the client that has the
//! most: the one least likely to be missed. A scrape therefore always finds a place, also beside a
//! client that takes all the places it can. If all clients share one address, as behind a proxy, a
//! newcomer still has the time for a handshake. This module knows nothing of paths.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, header},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, ReadBuf},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinError, JoinSet},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::{
    protect::Client,
    security::{Guard, Peer, Standing, network},
};
use crate::clock;

/// The first byte of a connection that speaks TLS, which begins a handshake record (RFC 8446,
/// 5.1).
const TLS_HANDSHAKE: u8 = 22;
/// Most client hellos fit into this size; further bytes are passed on.
const PEEKED: usize = 1024;
/// The answer to a client that does not speak TLS on a port that does.
const SPEAK_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Connection: close\r\n\r\nthis port speaks TLS: ask with https://\n";

/// Pause after a failed accept, for instance for lack of file descriptors, if no connection made
/// room.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// File descriptors that the process needs besides while it works.
const OTHER_DESCRIPTORS: u64 = 24;
/// A connection younger than this does not count as silent yet: even from far away and with TLS,
/// an honest client has sent its request by then.
const NEWCOMER_GRACE: Duration = Duration::from_secs(1);

const FEWEST_CONNECTIONS: usize = 4;
const MOST_CONNECTIONS: usize = 1024;

/// Limits of connections, in number, size and time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of connections at a time.
    pub connections: usize,
    /// Maximum size of a request's head, in bytes.
    pub head_size: usize,
    /// Time for a request's head to arrive, including a TLS handshake.
    pub head_time: Duration,
    /// Time between two requests of a connection.
    pub idle_time: Duration,
    /// Time for a request to be worked on.
    pub work_time: Duration,
    /// Time for a reload to end before the client that asked for it is told that it goes on.
    /// Shorter than `work_time`, so that there is an answer.
    pub reload_time: Duration,
    /// Time for a request to wait for its turn, if its answer may be long.
    pub turn_time: Duration,
    /// Time for the client to take an answer.
    pub answer_time: Duration,
    /// Time for work under way to end after a shutdown was asked for.
    pub grace: Duration,
}

/// Serves the listeners' connections until a shutdown is asked for.
#[derive(Clone, Debug)]
pub(super) struct Connections {
    table: Arc<Table>,
    router: Router,
    guard: Guard,
    tracker: TaskTracker,
    shutdown: CancellationToken,
}

#[derive(Debug)]
struct Table {
    limits: Limits,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    open: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    task: AbortHandle,
    /// The client's network (see `network`).
    client: IpAddr,
    activity: Arc<Activity>,
}

/// What a connection does at present.
#[derive(Debug)]
struct Activity {
    phase: Mutex<(Phase, Instant)>,
    /// Whether a part of another request has already arrived behind the last one.
    has_more: AtomicBool,
}

/// What a connection does, in the order in which connections make room for others, except for new
/// ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// A request's head has not fully arrived: the connection is new, or the head is half-way.
    Receiving,
    /// A request was answered, and no other one has begun.
    Idle,
    /// The answer is on its way.
    Answering,
    /// A request is worked on.
    Working,
}

/// A stream that notes what its connection does.
#[derive(Debug)]
struct Watched<S> {
    stream: S,
    activity: Arc<Activity>,
    /// The last bytes that were read, if these are the bytes of requests; `None` below TLS.
    end: Option<[u8; 3]>,
}

/// The connection's client would not be let in now.
#[derive(Debug, thiserror::Error)]
#[error("the client would not be let in now")]
struct Outdated;

/// Removes a connection from the table when its task ends, however it ends.
#[derive(Debug)]
struct Place {
    table: Arc<Table>,
    id: u64,
}

// === impl Limits ===

impl Default for Limits {
    /// Allows as many connections as half of the process's file descriptors, and fewer if there
    /// are few descriptors, because the store, the sinks and the requests to the API need some.
    /// The times suit Prometheus, which asks every 15 or 60 seconds on a connection that it keeps.
    fn default() -> Self {
        let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        Self {
            connections: descriptors.map_or(MOST_CONNECTIONS, max_connections),
            head_size: 16 * 1024,
            head_time: Duration::from_secs(10),
            idle_time: Duration::from_secs(150),
            work_time: Duration::from_secs(60),
            reload_time: Duration::from_secs(50),
            turn_time: Duration::from_secs(5),
            answer_time: Duration::from_secs(30),
            grace: Duration::from_secs(3),
        }
    }
}

/// Returns how many connections there may be at a time with so many file descriptors.
fn max_connections(descriptors: u64) -> usize {
    let spare = descriptors.saturating_sub(OTHER_DESCRIPTORS);
    let connections = usize::try_from(spare.min(descriptors / 2)).unwrap_or(usize::MAX);
    connections.clamp(FEWEST_CONNECTIONS, MOST_CONNECTIONS)
}

// === impl Connections ===

impl Connections {
    pub(super) fn new(
        limits: Limits,
        router: Router,
        guard: Guard,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            table: Arc::new(Table {
                limits,
                entries: Mutex::default(),
            }),
            router,
            guard,
            tracker: TaskTracker::new(),
            shutdown,
        }
    }

    /// Serves until the shutdown is asked for and work under way has ended.
    ///
    /// # Errors
    /// If a listener's loop has panicked, because then nobody would be let in there any more.
    pub(super) async fn serve(self, listeners: Vec<TcpListener>) -> Result<(), JoinError> {
        let mut loops = JoinSet::new();
        for listener in listeners {
            loops.spawn(self.clone().accept(listener));
        }
        let mut sweep = tokio::time::interval(self.table.limits.sweep_interval());
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => break,
                Some(Err(panicked)) = loops.join_next() => return Err(panicked),
                _ = sweep.tick() => self.table.drop_overdue(),
            }
        }
        // The loops end by themselves.
        while loops.join_next().await.is_some() {}
        self.table.drop_unbusy();
        self.tracker.close();
        let grace = self.table.limits.grace;
        if tokio::time::timeout(grace, self.tracker.wait())
            .await
            .is_err()
        {
            self.table.drop_all();
        }
        Ok(())
    }

    async fn accept(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                () = self.shutdown.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, client)) => {
                    if self.admit(stream, client.ip()) {
                        // The dropped connection closes its socket before the next one opens.
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    if self.table.drop_least_missed() {
                        // The dropped connection closes its socket before the next one opens.
                        tokio::task::yield_now().await;
                    } else {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    }

    /// Takes a connection in, and returns whether another one had to make room.
    fn admit(&self, stream: TcpStream, client: IpAddr) -> bool {
        // Answers are written in one piece, so that waiting to fill a packet only delays them.
        stream.set_nodelay(true).ok();
        let activity = Arc::new(Activity::new());
        let mut entries = self.table.entries.lock();
        let full = entries.open.len() >= self.table.limits.connections;
        if full {
            entries.drop_least_missed();
        }
        let id = entries.next;
        entries.next += 1;
        let place = Place {
            table: Arc::clone(&self.table),
            id,
        };
        let stream = Watched {
            stream,
            activity: Arc::clone(&activity),
            end: None,
        };
        let connection = self
            .clone()
            .run(stream, client, Arc::clone(&activity), place);
        // The table is locked, so the task cannot leave the table before it is entered.
        let task = self.tracker.spawn(connection).abort_handle();
        let entry = Entry {
            task,
            client: network(client),
            activity,
        };
        entries.open.insert(id, entry);
        full
    }

    /// Serves one connection. With TLS it begins with a handshake, which counts towards the time
    /// for a head.
    async fn run<S>(self, stream: S, client: IpAddr, activity: Arc<Activity>, _place: Place)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let security = self.guard.current().await;
        let Some(tls) = security.tls() else {
            let peer = Peer::in_clear();
            return self.answer(stream, client, peer, activity).await;
        };
        // The reader keeps the bytes that were looked at, and passes them on.
        let mut stream = BufReader::with_capacity(PEEKED, stream);
        match stream.fill_buf().await {
            Ok([TLS_HANDSHAKE, ..]) => {}
            Ok([_, ..]) => {
                // A failed write means that the client has gone already.
                stream.write_all(SPEAK_TLS).await.ok();
                return;
            }
            Ok([]) | Err(_) => return,
        }
        match tls.acceptor().accept(stream).await {
            Ok(stream) => {
                let certificates = stream.get_ref().1.peer_certificates();
                let peer = Peer::over(Arc::clone(tls), certificates);
                drop(security);
                self.answer(stream, client, peer, activity).await;
            }
            // Only at debug level, because port scanners and probes would fill the log.
            Err(error) => tracing::debug!(%client, %error, "a TLS handshake failed"),
        }
    }

    async fn answer<S>(self, stream: S, client: IpAddr, peer: Peer, activity: Arc<Activity>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = Watched {
            stream,
            activity: Arc::clone(&activity),
            end: Some([0; 3]),
        };
        let (router, guard, peer) = (self.router, self.guard, &peer);
        let service = service_fn(|mut request: Request<Incoming>| {
            activity.enter(Phase::Working);
            request.extensions_mut().insert(Client(client));
            let answer = router.clone().oneshot(request.map(Body::new));
            let (activity, guard) = (Arc::clone(&activity), &guard);
            async move {
                let standing = guard.current().await.standing(peer, clock::now());
                if standing == Standing::Refused {
                    tracing::debug!(%client, "a connection was closed whose client would not be let in now");
                    // There is no answer, so the client asks again on a new connection and learns
                    // there what is wrong.
                    return Err(Outdated);
                }
                let mut answer = answer
                    .await
                    .unwrap_or_else(|never: Infallible| match never {});
                if standing == Standing::Last {
                    let close = HeaderValue::from_static("close");
                    answer.headers_mut().insert(header::CONNECTION, close);
                }
                activity.enter(Phase::Answering);
                Ok(answer)
            }
        });
        let connection = http1::Builder::new()
            // The table has its own time limits, which need no timer per connection.
            .header_read_timeout(None)
            .max_buf_size(self.table.limits.head_size)
            // A client may close its sending half once it has asked, as `nc -N` does.
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        // The result is ignored: how a connection ends is up to its client, and nothing can be
        // done about it.
        tokio::select! {
            result = connection.as_mut() => result.ok(),
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await.ok()
            }
        };
    }
}

/// Whether a failed accept concerns a single connection rather than the server.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

// === impl Table ===

impl Table {
    fn drop_least_missed(&self) -> bool {
        self.entries.lock().drop_least_missed()
    }

    fn drop_overdue(&self) {
        let now = Instant::now();
        self.drop_where(|(phase, since)| now.duration_since(since) > self.limits.time_for(phase));
    }

    fn drop_unbusy(&self) {
        self.drop_where(|(phase, _)| matches!(phase, Phase::Receiving | Phase::Idle));
    }

    fn drop_all(&self) {
        self.drop_where(|_| true);
    }

    fn drop_where(&self, unwanted: impl Fn((Phase, Instant)) -> bool) {
        for entry in self.entries.lock().open.values() {
            if unwanted(entry.activity.get()) {
                entry.task.abort();
            }
        }
    }
}

// === impl Entries ===

impl Entries {
    /// Drops the connection that is least likely to be missed, and returns whether there was one.
    fn drop_least_missed(&mut self) -> bool {
        let id = self.least_missed(Instant::now());
        // The place in the table is free at once, though the socket is closed a moment later.
        let entry = id.and_then(|id| self.open.remove(&id));
        if let Some(entry) = &entry {
            entry.task.abort();
        }
        entry.is_some()
    }

    /// Returns the connection that is least likely to be missed, among those of the clients that
    /// have the most.
    fn least_missed(&self, now: Instant) -> Option<u64> {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for entry in self.open.values() {
            *counts.entry(entry.client).or_default() += 1;
        }
        let most = counts.values().max()?;
        let candidates: Vec<((Phase, Instant), u64)> = self
            .open
            .iter()
            .filter(|(_, entry)| counts.get(&entry.client) == Some(most))
            .map(|(id, entry)| (entry.activity.get(), *id))
            .collect();
        let is_receiving = |phase| phase == Phase::Receiving;
        let receiving = candidates
            .iter()
            .filter(|((phase, _), _)| is_receiving(*phase));
        // If more than half are receiving, protecting the new ones would soon leave only these.
        let too_many = receiving.count() > candidates.len() / 2;
        let first = candidates.iter().min_by_key(|((phase, since), id)| {
            let is_new = is_receiving(*phase) && now.duration_since(*since) < NEWCOMER_GRACE;
            let rank = if is_new && !too_many {
                Phase::Idle
            } else {
                *phase
            };
            (rank, is_new, *since, *id)
        });
        first.map(|(_, id)| *id)
    }
}

// === impl Limits ===

impl Limits {
    fn time_for(&self, phase: Phase) -> Duration {
        match phase {
            Phase::Receiving => self.head_time,
            Phase::Idle => self.idle_time,
            Phase::Answering => self.answer_time,
            Phase::Working => self.work_time,
        }
    }

    /// How often overdue connections are looked for. A tenth of the shortest time is precise
    /// enough.
    fn sweep_interval(&self) -> Duration {
        let shortest = self.head_time.min(self.idle_time);
        let shortest = shortest.min(self.work_time).min(self.answer_time);
        (shortest / 10).max(Duration::from_millis(1))
    }
}

// === impl Activity ===

impl Activity {
    fn new() -> Self {
        Self {
            phase: Mutex::new((Phase::Receiving, Instant::now())),
            has_more: AtomicBool::new(false),
        }
    }

    fn get(&self) -> (Phase, Instant) {
        *self.phase.lock()
    }

    fn enter(&self, phase: Phase) {
        *self.phase.lock() = (phase, Instant::now());
    }

    /// Notes that an answer has been sent.
    fn answered(&self) {
        let next = if self.has_more.load(Ordering::Relaxed) {
            Phase::Receiving
        } else {
            Phase::Idle
        };
        self.transition(Phase::Answering, next);
    }

    fn transition(&self, from: Phase, to: Phase) {
        if self.get().0 == from {
            self.enter(to);
        }
    }
}

// === impl Watched ===

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let result = Pin::new(&mut this.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            this.activity.transition(Phase::Idle, Phase::Receiving);
            if let Some(end) = &mut this.end {
                let new = &buffer.filled()[before..];
                for byte in &new[new.len().saturating_sub(end.len())..] {
                    *end = [end[1], end[2], *byte];
                }
                // An empty line ends a head. If the bytes end within a body, they count as half of
                // a request as well, because no client needs to keep such a connection.
                let is_whole = end.ends_with(b"\n\n") || end == b"\n\r\n";
                this.activity.has_more.store(!is_whole, Ordering::Relaxed);
            }
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The HTTP layer flushes when it has nothing left to write, so the answer has been sent.
        let result = Pin::new(&mut self.stream).poll_flush(context);
        if matches!(result, Poll::Ready(Ok(()))) {
            self.activity.answered();
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

// === impl Place ===

impl Drop for Place {
    fn drop(&mut self) {
        self.table.entries.lock().open.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns which connection makes room in a table of connections, each given with its client,
    /// its phase, and how many milliseconds the phase has lasted.
    fn first(connections: &[(&str, Phase, u64)]) -> Option<u64> {
        let (now, mut entries) = (Instant::now() + NEWCOMER_GRACE * 100, Entries::default());
        for (id, (client, phase, age)) in (0..).zip(connections) {
            let activity = Activity {
                phase: Mutex::new((*phase, now - Duration::from_millis(*age))),
                has_more: AtomicBool::new(false),
            };
            let entry = Entry {
                task: tokio::spawn(std::future::pending::<()>()).abort_handle(),
                client: network(client.parse().unwrap()),
                activity: Arc::new(activity),
            };
            entries.open.insert(id, entry);
        }
        entries.least_missed(now)
    }

    #[tokio::test]
    async fn the_client_that_has_the_most_makes_room() {
        let (one, other) = ("192.0.2.1", "192.0.2.2");
        let scraper = (one, Phase::Idle, 60_000);
        let flood = [(other, Phase::Idle, 5), (other, Phase::Working, 9)];
        assert_eq!(first(&[scraper, flood[0], flood[1]]), Some(1));
        assert_eq!(first(&[scraper, flood[1], flood[1]]), Some(1));
        // If all clients have equally many, every client's connections are candidates.
        assert_eq!(first(&[scraper, flood[0]]), Some(0));
        let site = ["2001:db8::1", "2001:db8::2"].map(|client| (client, Phase::Idle, 5));
        assert_eq!(first(&[scraper, site[0], site[1]]), Some(1));
    }

    #[tokio::test]
    async fn of_one_client_a_newcomer_gives_way_when_it_has_had_its_time() {
        let of = |phase, age| ("192.0.2.1", phase, age);
        let (old, new) = (of(Phase::Receiving, 1_000), of(Phase::Receiving, 999));
        let (idle, busy) = (of(Phase::Idle, 60_000), of(Phase::Working, 60_000));
        assert_eq!(first(&[busy, idle, old]), Some(2));
        assert_eq!(first(&[busy, idle, new]), Some(1));
        assert_eq!(first(&[busy, busy, new]), Some(2));
        assert_eq!(first(&[]), None);
    }

    #[tokio::test]
    async fn newcomers_do_not_take_the_places_of_all_that_were_there() {
        let of = |phase, age| ("192.0.2.1", phase, age);
        let mut connections = vec![of(Phase::Idle, 5), of(Phase::Idle, 6)];
        for age in [7, 9] {
            connections.push(of(Phase::Receiving, age));
        }
        assert_eq!(first(&connections), Some(1));
        connections.push(of(Phase::Receiving, 8));
        assert_eq!(first(&connections), Some(3));
    }

    /// Needs the overflow checks of a debug build.
    #[cfg(debug_assertions)]
    #[tokio::test]
    async fn a_listener_whose_loop_panics_ends_the_server() {
        let ends = CancellationToken::new();
        let server = Connections::new(
            Limits::default(),
            Router::new(),
            Guard::open(),
            ends.clone(),
        );
        server.table.entries.lock().next = u64::MAX;
        let mut listeners = Vec::new();
        for _ in 0..2 {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let address = listeners[1].local_addr().unwrap();
        let mut serving = tokio::spawn(server.serve(listeners));
        let moment = Duration::from_millis(50);
        let ended = tokio::time::timeout(moment, &mut serving).await;
        assert!(ended.is_err(), "{ended:?}");
        let _client = TcpStream::connect(address).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(60), serving).await;
        let panicked = ended.unwrap().unwrap().unwrap_err();
        assert!(panicked.is_panic(), "{panicked:?}");
    }

    #[test]
    fn connections_leave_descriptors_for_all_else() {
        for (descriptors, expected) in [(10, 4), (32, 8), (256, 128), (1 << 20, 1024)] {
            assert_eq!(max_connections(descriptors), expected, "{descriptors}");
        }
    }
}
