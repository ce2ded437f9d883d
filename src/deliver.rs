//! Delivery: reads the journal and hands records to the sinks, each at its own pace.
//!
//! Every sink has a worker with its own cursor, batches and retries, so a sink that is down delays
//! neither the other sinks nor the poll. An event is acknowledged after its sink has it. After a
//! crash, an event that was not acknowledged is therefore delivered again; the file sink then
//! writes no second line. This module knows nothing of polling. Alert lines never pass through
//! tracing, whose writers swallow errors.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::{AbortHandle, JoinHandle},
    time::{Instant, timeout_at},
};

use crate::{
    status::{Board, SinkStatus},
    store::{self, Store},
};

#[cfg(any(test, fuzzing))]
pub use self::file::fuzzing::torn_file;
pub use self::sink::SinkError;
use self::{
    sink::Sink,
    worker::{FatalReport, Order, Predecessor, Worker},
};

mod file;
mod format;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub(crate) mod journald;
pub(crate) mod otlp;
mod sink;
mod stdout;
mod worker;

/// Time limit, when delivery ends, for the deliveries that are under way then.
pub const LAST_DELIVERY: Duration = Duration::from_secs(5);

/// One sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkOptions {
    /// The sink's name, also the label `sink`; unique.
    pub name: Arc<str>,
    /// Where lines go.
    pub target: Target,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    Stdout {
        /// The line's format.
        format: Format,
    },
    /// A file, appended to.
    File {
        /// The file; its folder must exist.
        path: PathBuf,
        /// The line's format.
        format: Format,
    },
    /// systemd's journal.
    Journald,
    /// An OpenTelemetry receiver, OTLP over HTTP with protobuf.
    Otlp(OtlpOptions),
}

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// `key=value` pairs.
    Logfmt,
}

/// An OTLP receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpOptions {
    /// The whole URL, such as `http://loki:3100/otlp/v1/logs`.
    pub endpoint: String,
    /// Headers to send, such as `Authorization`; the values are secrets.
    pub headers: BTreeMap<String, crate::secret::SecretSource>,
    /// Whether bodies are compressed with gzip.
    pub gzip: bool,
    /// Time limit of one request.
    pub timeout: Duration,
}

/// Receives notice of what happens at the sinks. Calls come from many tasks and must not block.
pub trait Observer: Send + Sync + fmt::Debug {
    /// Events were delivered.
    fn sink_delivered(&self, sink: &str, events: u64);
    /// A try failed and will be repeated.
    fn sink_error(&self, sink: &str);
    /// Events were refused for good.
    fn sink_rejected(&self, sink: &str, events: u64);
}

/// The sinks at work. When this is dropped, each sink stops after its delivery under way.
#[derive(Debug)]
pub struct Delivery {
    store: Store,
    board: Board,
    observer: Arc<dyn Observer>,
    workers: BTreeMap<Arc<str>, WorkerHandle>,
    /// Workers that were told to stop and may still have a delivery under way.
    leaving: HashMap<Arc<str>, WorkerHandle>,
    failures: (
        mpsc::UnboundedSender<FatalReport>,
        mpsc::UnboundedReceiver<FatalReport>,
    ),
    /// Where the journal ended when delivery began.
    journal_end: i64,
    /// How long a worker waits for its predecessor before it reports the wait or acts on it.
    patience: Duration,
    /// How long a delivery under way is waited for in the end.
    last_delivery: Duration,
}

#[derive(Debug)]
struct WorkerHandle {
    options: SinkOptions,
    orders: watch::Sender<Order>,
    reopen: Arc<Notify>,
    task: JoinHandle<worker::Outcome>,
    has_begun: Arc<AtomicBool>,
    /// Earlier workers of this sink that may still be writing, the oldest first, each with its
    /// target. There can be several, because each reload during one delivery that hangs adds a
    /// worker.
    predecessors: Vec<(Target, AbortHandle)>,
}

/// Delivery could not be set up. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A sink's options cannot work.
    #[error("the sink {sink} cannot be set up")]
    Sink {
        /// The sink's name.
        sink: Arc<str>,
        /// Why.
        #[source]
        source: SinkError,
    },
    /// Two sinks have the same name.
    #[error("two sinks are named {0}")]
    SameName(Arc<str>),
    /// The store did not take the list of sinks.
    #[error("cannot tell the state store which sinks there are")]
    Store(#[source] store::Error),
}

/// A sink that will not work again in this process, so the daemon has to end. What the sink did
/// not deliver is in the journal.
#[derive(Debug, thiserror::Error)]
#[error("the sink {sink} has failed for good")]
pub struct FatalError {
    /// The sink's name.
    pub sink: Arc<str>,
    /// Why.
    #[source]
    pub source: SinkError,
}

// === impl Target ===

impl Target {
    /// The type of the target, as the configuration and the status page name it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Stdout { .. } => "stdout",
            Self::File { .. } => "file",
            Self::Journald => "journald",
            Self::Otlp(_) => "otlp",
        }
    }

    /// Whether a delivery to this target that does not end may be given up for a delivery to
    /// `other`. It may not if both could then write to the same place.
    fn may_be_left_for(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Stdout { .. }, Self::Stdout { .. })
            | (Self::Journald, Self::Journald)
            // OTLP requests end by themselves, and their outcome is worth knowing.
            | (Self::Otlp(_), _) => false,
            // Two paths may name one file: then the file's lock keeps the second writer out.
            (Self::File { path, .. }, Self::File { path: other, .. }) => path != other,
            _ => true,
        }
    }
}

// === impl Delivery ===

impl Delivery {
    /// Starts a worker for each sink. A sink that is new starts with the next event.
    ///
    /// # Errors
    /// If the store fails, or if a sink can never work as it is configured. A sink that is merely
    /// down is not an error: it is tried again.
    pub async fn start(
        store: Store,
        sinks: Vec<SinkOptions>,
        board: Board,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, Error> {
        // Polling has not begun, so this process has journalled nothing yet.
        let journal_end = *store.journalled().borrow();
        let mut delivery = Self {
            store,
            board,
            observer,
            workers: BTreeMap::new(),
            leaving: HashMap::new(),
            failures: mpsc::unbounded_channel(),
            journal_end,
            patience: worker::PATIENCE,
            last_delivery: LAST_DELIVERY,
        };
        delivery.reload(sinks).await?;
        Ok(delivery)
    }

    /// Opens log files again, for instance after logrotate has moved them, and makes every sink
    /// that waits to repeat a failed try repeat it now.
    pub fn reopen(&self) {
        for worker in self.workers.values() {
            worker.reopen.notify_one();
        }
    }

    /// Replaces the sinks by `sinks`. A sink that stays the same goes on undisturbed. A changed
    /// sink goes on from its cursor once its present delivery has ended, or once that is given up
    /// because the new target is another place. The store keeps a removed sink for a while, see
    /// [`Store::set_sinks`], and then forgets it with its part of the journal.
    ///
    /// # Errors
    /// As [`Delivery::start`]. The sinks then stay as they were.
    pub async fn reload(&mut self, sinks: Vec<SinkOptions>) -> Result<(), Error> {
        let mut names: Vec<Arc<str>> = Vec::with_capacity(sinks.len());
        let mut prepared = Vec::with_capacity(sinks.len());
        for options in &sinks {
            let name = &options.name;
            if names.contains(name) {
                return Err(Error::SameName(Arc::clone(name)));
            }
            names.push(Arc::clone(name));
            let employed = self.workers.get(name);
            prepared.push(if employed.is_some_and(|it| it.options == *options) {
                None
            } else {
                Some(Sink::new(options, &sinks).map_err(|source| Error::Sink {
                    sink: Arc::clone(name),
                    source,
                })?)
            });
        }
        let states = self
            .store
            .set_sinks(names.iter().map(ToString::to_string).collect())
            .await
            .map_err(Error::Store)?;

        self.leaving.retain(|_, worker| !worker.task.is_finished());
        let gone: Vec<_> = self.workers.keys().cloned().collect();
        for name in gone.into_iter().filter(|name| !names.contains(name)) {
            self.stop_worker(&name);
            self.board.remove_sink(&name);
        }
        for ((options, sink), state) in sinks.into_iter().zip(prepared).zip(states) {
            if let Some(sink) = sink {
                self.stop_worker(&options.name);
                self.start_worker(options, sink, state.mark);
            }
        }
        Ok(())
    }

    /// Returns the next sink that fails for good; pending until then.
    pub async fn fatal_error(&mut self) -> FatalError {
        loop {
            match self.failures.1.recv().await {
                // The sink was removed or replaced by a reload after it had failed.
                Some(FatalReport { orders, .. }) if orders.borrow().is_to_leave() => {}
                Some(FatalReport { error, .. }) => return error,
                // Cannot happen: `self.failures` holds a sender, too.
                None => std::future::pending().await,
            }
        }
    }

    /// Delivers all journalled events, then stops. After `within`, no further delivery begins, and
    /// those under way, also of sinks that have left, have [`LAST_DELIVERY`] to end. Events that
    /// are not delivered by then stay in the journal. Returns whether all were delivered.
    pub async fn drain(self, within: Duration) -> bool {
        for worker in self.workers.values() {
            worker.orders.send_replace(Order::Drain);
        }
        let deadline = Instant::now() + within;
        let mut complete = true;
        let mut busy: Vec<_> = self.leaving.into_values().collect();
        for (name, mut worker) in self.workers {
            match timeout_at(deadline, &mut worker.task).await {
                Ok(Ok(outcome)) => complete &= outcome.drained,
                Ok(Err(_)) => complete = false,
                Err(_) => {
                    worker.orders.send_replace(Order::Stop);
                    busy.push(worker);
                    complete = false;
                    tracing::warn!(
                        sink = &*name,
                        "not everything could be delivered in time; \
                         what is left is delivered after the next start"
                    );
                }
            }
        }
        // What is delivered and not acknowledged would be delivered again.
        let end = Instant::now() + self.last_delivery;
        for mut worker in busy {
            if timeout_at(end, &mut worker.task).await.is_err() {
                worker.task.abort();
            }
        }
        complete
    }

    fn stop_worker(&mut self, name: &Arc<str>) {
        if let Some(worker) = self.workers.remove(name) {
            worker.orders.send_replace(Order::Stop);
            self.leaving.insert(Arc::clone(name), worker);
        }
    }

    fn start_worker(&mut self, options: SinkOptions, sink: Sink, mark: Option<Vec<u8>>) {
        let name = Arc::clone(&options.name);
        let kind = options.target.kind();
        self.board.update_sink(&name, |status| {
            *status = SinkStatus {
                kind,
                delivered: status.delivered,
                ..SinkStatus::default()
            };
        });
        let (orders, orders_seen) = watch::channel(Order::Work);
        let reopen = Arc::new(Notify::new());
        let has_begun = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            name: Arc::clone(&name),
            store: self.store.clone(),
            board: self.board.clone(),
            observer: Arc::clone(&self.observer),
            orders: orders_seen,
            reopen: Arc::clone(&reopen),
            failures: self.failures.0.clone(),
            limits: worker::Limits::of(&options.target, self.patience),
            journal_end: self.journal_end,
            has_begun: Arc::clone(&has_begun),
        };
        // Two workers must neither write to the same place nor acknowledge for the same sink.
        let (predecessors, predecessor) = match self.leaving.remove(&name) {
            Some(former) => {
                let predecessors = former.still_writing();
                let must_end = predecessors
                    .iter()
                    .filter(|(target, _)| !target.may_be_left_for(&options.target));
                let predecessor = Predecessor {
                    must_end: must_end.map(|(_, task)| task.clone()).collect(),
                    task: former.task,
                    orders: former.orders,
                };
                (predecessors, Some(predecessor))
            }
            None => (Vec::new(), None),
        };
        let task = tokio::spawn(worker.run(sink, mark, predecessor));
        self.workers.insert(
            name,
            WorkerHandle {
                options,
                orders,
                reopen,
                task,
                has_begun,
                predecessors,
            },
        );
    }
}

// === impl WorkerHandle ===

impl WorkerHandle {
    /// Returns the workers that may still be writing, oldest first: the predecessors of this
    /// worker, and this worker itself, which was told to stop.
    fn still_writing(&self) -> Vec<(Target, AbortHandle)> {
        let mut writing = self.predecessors.clone();
        // A worker that has not begun only waits for its predecessors, and never will begin.
        if self.has_begun.load(Ordering::SeqCst) {
            writing.push((self.options.target.clone(), self.task.abort_handle()));
        }
        writing.retain(|(_, task)| !task.is_finished());
        writing
    }
}

#[cfg(test)]
mod tests;
