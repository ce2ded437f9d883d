//! The daemon: wires the parts together, follows signals, reloads, drains and stops.
//!
//! It knows every part by its handle and none from within. What can fail at the start fails before
//! anything is polled. What fails later is retried where it happens.

use std::{
    io,
    net::TcpListener,
    path::Path,
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context as _;
use futures_util::FutureExt as _;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::AbortOnDropHandle,
};

use crate::{
    clock,
    config::{self, CheckedWebFile, Config, WebFile},
    deliver::{self, Delivery, SinkOptions},
    error_chain::chain,
    health::{Health, Heartbeat, Notice},
    logging,
    metrics::Metrics,
    poll::{self, Plan, PollerEvent, Pollers},
    reading,
    runtime::{block_on_with_few_threads, check_threads},
    service_manager::ServiceManager,
    signals::{Command, Signals},
    status::Board,
    store::{self, Store},
    web::{self, AlertSource},
};

pub use self::loading::{Attempt, LoadConfig, PipeInUse};

mod loading;

/// Time limit, when the daemon stops, for polls to end and journalled events to be delivered.
const DRAIN: Duration = Duration::from_secs(10);
/// Time limit for the store to close once deliveries have ended.
const STORE_CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// How often the clients of a partner are looked up.
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Maximum time between two rounds of the daemon's own loop, except during a reload or while it
/// adopts a look-up.
const PULSE: Duration = Duration::from_secs(10);
/// Time for which the daemon's loop may go without a heartbeat during a reload or while it adopts
/// a look-up. Everything that these wait for has a limit of its own (files, the database, searches
/// that end), and together they take no longer.
const LONGEST_CHANGE: Duration = Duration::from_secs(5 * 60);

/// The pause after the first failure to use the store. It doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Time after which a store that has not answered is reported, and the web server begins.
const STORE_SILENT_AFTER: Duration = Duration::from_secs(1);
/// The topic under which `health` is told of trouble with the store.
const STORE: &str = "store";
const STORE_SILENT: &str = "the state store has not answered yet; nothing is polled until it does";
const QUIT: &str = "POST /-/quit";
const REJECTED: &str =
    "the configuration cannot be loaded again, the log says why; the one before stays in force";

/// The parts of a running daemon.
#[derive(Debug)]
pub struct Daemon {
    config: Config,
    metrics: Metrics,
    health: Health,
    store: Store,
    pollers: Pollers,
    delivery: Delivery,
    server: JoinHandle<io::Result<()>>,
    server_stop: DropGuard,
    quit: CancellationToken,
    reloads: mpsc::Receiver<web::Reload>,
    manager: ServiceManager,
    /// The task that tells the service manager the daemon's state.
    attendant: AbortOnDropHandle<()>,
    /// The notice that the configuration could not be loaded again.
    rejected: Option<Notice>,
}

/// The part of the start that needs the store. While it waits, the web server must be able to say
/// so.
struct Opening<'a> {
    config: &'a Config,
    board: &'a Board,
    metrics: &'a Metrics,
    health: &'a Health,
    manager: &'a ServiceManager,
    /// Makes the web server begin.
    serve: Option<oneshot::Sender<()>>,
}

/// The daemon has ended because it could not go on. It has logged the reason.
#[derive(Debug)]
pub struct CannotGoOn;

/// Why the daemon stops.
enum Stop {
    /// The daemon was asked to stop, by this signal or request.
    Asked(&'static str),
    /// The daemon cannot go on.
    Failed(anyhow::Error),
}

// === impl Daemon ===

impl Daemon {
    /// Sets everything up and begins to poll. `listeners` are bound already, so that nothing else
    /// has happened if the port is taken. Returns `None` if the daemon is told to stop before
    /// that.
    ///
    /// # Errors
    /// If the store, a sink or an account's client cannot be set up. A database that is down is no
    /// error: the daemon waits for it, and the web server says so.
    pub async fn start(
        config: Config,
        listeners: Vec<TcpListener>,
        board: Board,
        metrics: Metrics,
        signals: &mut Signals,
    ) -> anyhow::Result<Option<Self>> {
        let quit = CancellationToken::new();
        let opened = Arc::new(OnceLock::new());
        let started = unless_stopped(
            Self::set_up(config, listeners, board, metrics, &quit, &opened),
            signals,
            &quit,
        );
        let error = match started.await {
            Ok(Ok(daemon)) => return Ok(Some(daemon)),
            Ok(Err(error)) => Some(error),
            Err(by) => {
                tracing::info!(by, "stopping before everything was set up");
                None
            }
        };
        // Other replicas would go on counting on a replica that does not take leave.
        if let Some(store) = opened.get() {
            tokio::time::timeout(STORE_CLOSE_LIMIT, store.close())
                .await
                .ok();
        }
        error.map_or(Ok(None), Err)
    }

    async fn set_up(
        config: Config,
        listeners: Vec<TcpListener>,
        board: Board,
        metrics: Metrics,
        quit: &CancellationToken,
        opened: &Arc<OnceLock<Store>>,
    ) -> anyhow::Result<Self> {
        let guard = guard(&config.web).await?;
        let health = Health::default();
        let options = store_options(&config.state, &listeners);
        // Checked before anything else is done.
        options.check().await?;
        let server_stop = CancellationToken::new();
        let (reload, mut reloads) = mpsc::channel(1);
        let lifecycle = web::Lifecycle {
            reload,
            quit: quit.clone(),
        };
        let web_options = web::Options {
            telemetry_path: config.web.telemetry_path.clone(),
            limits: web::Limits::default(),
            guard,
            lifecycle: config.web.enable_lifecycle.then_some(lifecycle),
        };
        let server = web::Server::new(
            metrics.clone(),
            board.clone(),
            health.clone(),
            alert_source(opened, &config.state),
            web_options,
        )
        .context("web.telemetry_path")?;
        for sink in &config.sinks {
            metrics.register_sink(&sink.name);
        }
        let (serve, told) = oneshot::channel();
        let stop = server_stop.clone();
        let serving = async move {
            match told.await {
                Ok(()) => server.serve(listeners, stop).await,
                Err(_) => Ok(()),
            }
        };
        let server = start_web_thread(serving).await?;
        let server_stop = server_stop.drop_guard();
        let manager = ServiceManager::of_environment();
        let attending = manager.clone().attend(health.clone(), board.clone());
        let attendant = AbortOnDropHandle::new(tokio::spawn(attending));
        let opening = Opening {
            config: &config,
            board: &board,
            metrics: &metrics,
            health: &health,
            manager: &manager,
            serve: Some(serve),
        };
        let (store, delivery, pollers) = {
            let mut open = pin!(opening.open(options, opened));
            loop {
                tokio::select! {
                    opened = open.as_mut() => break opened?,
                    // A dropped reply tells the caller that nothing was loaded.
                    Some(reply) = reloads.recv() => drop(reply),
                }
            }
        };
        Ok(Self {
            config,
            metrics,
            health,
            store,
            pollers,
            delivery,
            server,
            server_stop,
            quit: quit.clone(),
            reloads,
            manager,
            attendant,
            rejected: None,
        })
    }

    /// Runs until the daemon is told to stop, or cannot go on. Then it delivers what is
    /// journalled.
    ///
    /// # Errors
    /// If the daemon could not go on.
    pub async fn run(
        mut self,
        mut signals: Signals,
        mut load: LoadConfig,
    ) -> Result<(), CannotGoOn> {
        let stop = self.work(&mut signals, &mut load).await;
        self.finish(stop, &mut signals).await
    }

    /// Handles signals, requests and failures until the daemon has to stop.
    async fn work(&mut self, signals: &mut Signals, load: &mut LoadConfig) -> Stop {
        let heartbeat = self.health.register("daemon", PULSE * 3);
        let mut trouble = self.store.trouble();
        loop {
            heartbeat.beat();
            tokio::select! {
                told = signals.next() => match told {
                    Command::Stop(name) => return Stop::Asked(name),
                    Command::Reload => {
                        self.delivery.reopen();
                        // The outcome is logged; nobody waits for it.
                        let reloaded = self.reload_or_stop(load, signals, &heartbeat);
                        if let Err(by) = reloaded.await {
                            return Stop::Asked(by);
                        }
                    }
                },
                Some(reply) = self.reloads.recv() => {
                    match self.reload_or_stop(load, signals, &heartbeat).await {
                        // The caller may have gone away.
                        Ok(outcome) => reply.send(outcome).ok(),
                        Err(by) => return Stop::Asked(by),
                    };
                }
                // SQLite's trouble has no sender, so this branch is then disabled.
                Ok(()) = trouble.changed() => {
                    self.health.hold_up(STORE, trouble.borrow_and_update().clone());
                }
                () = self.quit.cancelled() => return Stop::Asked(QUIT),
                error = self.store.lost() => return Stop::Failed(error.into()),
                failed = self.delivery.fatal_error() => return Stop::Failed(failed.into()),
                event = self.pollers.next() => match event {
                    // A store that hangs holds this up.
                    PollerEvent::LookedUp(look_up) => {
                        let adopted = self.pollers.adopt(*look_up);
                        heartbeat.beat_for(LONGEST_CHANGE);
                        if let Err(by) = unless_stopped(adopted, signals, &self.quit).await {
                            return Stop::Asked(by);
                        }
                    }
                    PollerEvent::Failed(error) => return Stop::Failed(error),
                },
                ended = &mut self.server => return Stop::Failed(match ended {
                    Ok(Ok(())) => anyhow::anyhow!("the web server has ended"),
                    Ok(Err(error)) => anyhow::Error::new(error).context("the web server cannot serve"),
                    Err(error) => anyhow::Error::new(error).context("the web server has failed"),
                }),
                () = tokio::time::sleep(PULSE) => {}
            }
        }
    }

    /// Ends everything. The web server ends last, because it shows how the rest ends.
    async fn finish(self, stop: Stop, signals: &mut Signals) -> Result<(), CannotGoOn> {
        // There are no more reloads. Dropping the channel tells callers so at once, including
        // those that have asked before. Otherwise the web server would wait for their answers at
        // its own end.
        drop(self.reloads);
        drop(self.attendant);
        self.manager.stopping();
        let (first, outcome) = match stop {
            Stop::Asked(by) => {
                tracing::info!(
                    by,
                    "stopping: polling ends, journalled events are delivered"
                );
                (by, Ok(()))
            }
            Stop::Failed(error) => {
                tracing::error!(
                    error = %chain(error.as_ref()),
                    "the daemon cannot go on: polling ends, journalled events are delivered as far as that is \
                     possible; the rest after the next start"
                );
                ("", Err(CannotGoOn))
            }
        };
        // A second signal means that the daemon stops at once.
        tokio::select! {
            () = Self::end(self.pollers, self.delivery, self.store) => {}
            name = signals.stop_at_once(first) => tracing::warn!(by = name, "stopping at once; what is journalled is delivered after the next start"),
        }
        drop(self.server_stop);
        if !self.server.is_finished() {
            // The web server limits the time for its own end, and the outcome no longer matters.
            self.server.await.ok();
        }
        outcome
    }

    /// Ends polls and delivery, then closes the store. A store that hangs holds up polls and
    /// delivery alike, so they share one time limit; only a delivery under way has longer.
    async fn end(mut pollers: Pollers, delivery: Delivery, store: Store) {
        let until = Instant::now() + DRAIN;
        // Polls that do not end in time are cut off, as by a crash.
        tokio::time::timeout_at(until, pollers.stop()).await.ok();
        drop(pollers);
        delivery
            .drain(until.saturating_duration_since(Instant::now()))
            .await;
        if tokio::time::timeout(STORE_CLOSE_LIMIT, store.close())
            .await
            .is_err()
        {
            tracing::warn!("the state database does not answer; it is not waited for");
        }
    }

    /// Reloads, unless the daemon is told to stop meanwhile. The outer error names the signal or
    /// request that told it so.
    async fn reload_or_stop(
        &mut self,
        load: &mut LoadConfig,
        signals: &mut Signals,
        heartbeat: &Heartbeat,
    ) -> Result<Result<(), String>, &'static str> {
        let quit = self.quit.clone();
        heartbeat.beat_for(LONGEST_CHANGE);
        unless_stopped(self.reload(load), signals, &quit).await
    }

    /// Changes to the configuration as it is now. A bad configuration changes nothing.
    async fn reload(&mut self, load: &mut LoadConfig) -> Result<(), String> {
        self.manager.reloading();
        // A failure of this reload may look like an earlier one that was printed a moment ago.
        logging::print_repeats_again();
        let read_at = clock::now();
        let outcome = match load.read().await {
            Ok(loaded) => {
                for warning in &loaded.warnings {
                    tracing::warn!("{warning}");
                }
                self.change_to(loaded.config)
                    .await
                    .map_err(|error| chain(error.as_ref()))
            }
            Err(message) => Err(message),
        };
        match &outcome {
            Ok(()) => {
                self.metrics.config_loaded(read_at);
                self.rejected = None;
                tracing::info!("the configuration was loaded again");
            }
            Err(message) => {
                self.metrics.config_rejected();
                self.rejected = Some(self.health.notice(REJECTED));
                tracing::error!(error = %message, "the configuration cannot be loaded; the one before stays in force");
            }
        }
        self.manager.ready();
        outcome
    }

    async fn change_to(&mut self, config: Config) -> anyhow::Result<()> {
        if config.state != self.config.state || config.web != self.config.web {
            tracing::warn!("changes of `state` and `web` take effect with the next start");
        }
        // A sink that is no longer named may lose its part of the journal, so everything else that
        // can fail comes first.
        let prepared = self.pollers.prepare(plan(&config)).await?;
        for sink in &config.sinks {
            self.metrics.register_sink(&sink.name);
        }
        if let Err(error) = self.delivery.reload(config.sinks.clone()).await {
            self.remove_sinks(&config.sinks, &self.config.sinks);
            self.pollers.discard(&prepared);
            return Err(error.into());
        }
        self.remove_sinks(&self.config.sinks, &config.sinks);
        self.pollers.follow(prepared).await;
        // The next reload is compared with the values in force, so `state` and `web` keep theirs.
        let Config { state, web, .. } = self.config.clone();
        self.config = Config {
            state,
            web,
            ..config
        };
        Ok(())
    }

    /// Removes the series of those sinks that are not among `kept`.
    fn remove_sinks(&self, sinks: &[SinkOptions], kept: &[SinkOptions]) {
        for SinkOptions { name, .. } in sinks {
            if !kept.iter().any(|kept| kept.name == *name) {
                self.metrics.remove_sink(name);
            }
        }
    }
}

// === impl Opening ===

impl Opening<'_> {
    /// Opens the store, delivers from it and begins to poll. `opened` is set as soon as the store
    /// is open.
    async fn open(
        mut self,
        options: store::Options,
        opened: &OnceLock<Store>,
    ) -> anyhow::Result<(Store, Delivery, Pollers)> {
        let open = async || Store::open(&options).await;
        let store = self.wait_for(open, store::Error::is_passing).await?;
        // Nothing else sets it.
        opened.set(store.clone()).ok();
        let (sinks, board, metrics) = (&self.config.sinks, self.board, self.metrics);
        let mut pollers = Pollers::new(
            store.clone(),
            board.clone(),
            metrics.clone(),
            self.health.clone(),
        );
        // A sink that is no longer named may lose its part of the journal, so everything else that
        // can fail comes first.
        let prepared = pollers.prepare(plan(self.config)).await?;
        let deliver = async || {
            let observer = Arc::new(metrics.clone());
            Delivery::start(store.clone(), sinks.clone(), board.clone(), observer).await
        };
        let passing = |error: &deliver::Error| match error {
            deliver::Error::Store(error) => error.is_passing(),
            _ => false,
        };
        let delivery = self.wait_for(deliver, passing).await?;
        pollers.follow(prepared).await;
        // By now every series is there, so the first scrape shows all of them.
        self.serve();
        Ok((store, delivery, pollers))
    }

    /// Does what needs the store, and repeats it while it fails for a reason that may pass.
    /// Meanwhile the web server reports the trouble, also if `work` neither fails nor ends.
    async fn wait_for<A, E: std::error::Error>(
        &mut self,
        mut work: impl AsyncFnMut() -> Result<A, E>,
        is_passing: impl Fn(&E) -> bool,
    ) -> Result<A, E> {
        let mut pause = FIRST_PAUSE;
        let mut has_failed = false;
        loop {
            let done = {
                let mut working = pin!(work());
                match tokio::time::timeout(STORE_SILENT_AFTER, working.as_mut()).await {
                    Ok(done) => done,
                    Err(_) => {
                        if !has_failed {
                            self.health.hold_up(STORE, Some(STORE_SILENT.to_owned()));
                            self.serve();
                        }
                        working.await
                    }
                }
            };
            match done {
                Err(error) if is_passing(&error) => {
                    let error = chain(&error);
                    tracing::error!(%error, "waiting for the state database; nothing is polled until it can be used");
                    self.health.hold_up(STORE, Some(error));
                    self.serve();
                    has_failed = true;
                }
                done => {
                    self.health.hold_up(STORE, None);
                    return done;
                }
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Makes the web server begin, and tells the service manager that the daemon is ready.
    fn serve(&mut self) {
        if let Some(serve) = self.serve.take() {
            // The server's task waits for nothing else, so it receives this.
            serve.send(()).ok();
            self.manager.ready();
        }
    }
}

/// Starts a thread of its own for the web server: scrapes must not wait while a page of the API is
/// processed.
async fn start_web_thread(
    serving: impl Future<Output = io::Result<()>> + Send + 'static,
) -> anyhow::Result<JoinHandle<io::Result<()>>> {
    check_threads()?;
    let (has_threads, with_threads) = oneshot::channel();
    let server = tokio::task::spawn_blocking(|| {
        // The name is only for people who look at threads.
        rustix::thread::set_name(c"web").ok();
        block_on_with_few_threads(async {
            has_threads.send(()).ok();
            serving.await
        })?
    });
    // What is started next may take the last threads that the system gives.
    if with_threads.await.is_err() {
        server.await??;
        anyhow::bail!("the web server has ended before it began");
    }
    Ok(server)
}

/// Does what may take long, unless the daemon is told to stop meanwhile. The error names the
/// signal or request that told it so.
async fn unless_stopped<T>(
    work: impl Future<Output = T>,
    signals: &mut Signals,
    quit: &CancellationToken,
) -> Result<T, &'static str> {
    tokio::select! {
        done = work => Ok(done),
        name = signals.stop() => Err(name),
        () = quit.cancelled() => Err(QUIT),
    }
}

/// Returns the web server's protection, as its configuration file describes it.
async fn guard(web: &config::Web) -> anyhow::Result<web::Guard> {
    let Some(path) = &web.config_file else {
        return Ok(web::Guard::open());
    };
    let (file, security, warnings) = read_web_file(path).await?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(web::Guard::watching(security, file.into_load()))
}

/// Reads the web configuration file, off the thread that follows signals.
pub(crate) async fn read_web_file(
    path: &Path,
) -> anyhow::Result<(WebFile, Arc<web::Security>, Vec<String>)> {
    let read = with_web_file(path, |mut file| (file.read_with_warnings(), file));
    let (read, file) = read.await?;
    let (security, warnings) = read?;
    Ok((file, security, warnings))
}

/// Checks the web configuration file in a process other than the exporter, which may be able to
/// read more of it.
pub(crate) async fn check_web_file(path: &Path) -> anyhow::Result<CheckedWebFile> {
    let checked = with_web_file(path, |file| file.check());
    Ok(checked.await??)
}

async fn with_web_file<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce(WebFile) -> T + Send + 'static,
) -> anyhow::Result<T> {
    let file = WebFile::new(path.to_owned());
    // A file that was not read in time is not wrong: the next start may be able to read it.
    reading::once(move || work(file)).await.with_context(|| {
        format!(
            "the web configuration file, or one that it names, {}",
            reading::unread(&[path.to_owned()])
        )
    })
}

/// Takes the listening sockets. To be called before anything else is done.
///
/// # Errors
/// If an address is taken or is not this machine's, or if systemd has handed over no socket that
/// can be used.
pub fn bind(web: &config::Web) -> Result<Vec<TcpListener>, web::BindError> {
    if web.systemd_socket {
        return web::take_from_systemd();
    }
    let addresses: Vec<String> = web
        .listen_addresses
        .iter()
        .map(ToString::to_string)
        .collect();
    web::bind(&addresses)
}

fn store_options(state: &config::State, listeners: &[TcpListener]) -> store::Options {
    let journal_limit = store::JOURNAL_LIMIT;
    match state {
        config::State::File { path } => store::Options::Sqlite {
            path: path.clone(),
            journal_limit,
        },
        config::State::Postgres { url, lease } => store::Options::Postgres {
            url: url.clone(),
            lease: *lease,
            node: node(listeners),
            journal_limit,
        },
    }
}

/// A name that this replica keeps when it is started again, and that no other replica on the same
/// host has.
fn node(listeners: &[TcpListener]) -> String {
    let host = rustix::system::uname();
    let addresses = listeners.iter().filter_map(|it| it.local_addr().ok());
    let mut parts = vec![host.nodename().to_string_lossy().into_owned()];
    parts.extend(addresses.map(|address| address.to_string()));
    parts.join(" ")
}

fn plan(config: &Config) -> Plan {
    let accounts = config.accounts.iter().map(|account| poll::Account {
        options: account.options.clone(),
        tenants: account.tenants.clone(),
        discovery: account.discover_clients.then_some(DISCOVERY_INTERVAL),
    });
    Plan {
        accounts: accounts.collect(),
        tenants_are_picked: config.tenants_are_picked,
        searches: config.searches.clone(),
        record: config.record.clone(),
        at_first_start: config.at_first_start,
        fetch_details: config.fetch_details,
    }
}

/// The status page's view of the store, once the store is open.
fn alert_source(store: &Arc<OnceLock<Store>>, state: &config::State) -> AlertSource {
    let store = Arc::clone(store);
    // Connections to a database server belong to this runtime. Besides, threads that wait for a
    // resolver must not be taken from the web server, which has few.
    let runtime = match state {
        config::State::File { .. } => None,
        config::State::Postgres { .. } => Some(Handle::current()),
    };
    AlertSource::new(move |filter| {
        let (store, runtime) = (store.get().cloned(), runtime.clone());
        async move {
            let store = store?;
            let ask = async move { store.open_alerts(filter).await };
            Some(match runtime {
                Some(runtime) => AbortOnDropHandle::new(runtime.spawn(ask))
                    .await
                    // A panic in the task has been reported.
                    .unwrap_or(Err(store::Error::Closed)),
                None => ask.await,
            })
        }
        .boxed()
    })
}
