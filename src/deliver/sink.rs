//! The sinks as their worker sees them: each takes events in order and says how far it came.
//!
//! Standard output, files and journald block while they write, so each has a thread of its own. A
//! stalled pipe or disk stops that thread and nothing else, and does not keep the process from
//! ending.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
};

use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use crate::store::{Claim, Past, Pending};

use super::{
    SinkOptions, Target, file::LogFile, journald::Journald, otlp::Otlp, stdout::Stdout,
    worker::Order,
};

/// A sink that is set up and has not begun to work.
#[derive(Debug)]
pub(super) enum Sink {
    Stdout(Stdout),
    File(Box<LogFile>),
    Journald(Journald),
    Otlp(Box<Otlp>),
}

/// A sink at work.
#[derive(Debug)]
pub(super) enum Running {
    Thread(Thread),
    Otlp(Box<Otlp>),
}

/// A sink that blocks while it writes.
pub(super) trait Writer: Send + 'static {
    /// Waits until the writer may deliver `events` events, or some of them. The wait is kept so
    /// short that the delivery does not look like one that hangs. The delivery may be given up
    /// meanwhile.
    fn wait(&mut self, _events: usize) {}

    /// Delivers events in order, as many as it can.
    fn deliver(&mut self, events: &[Pending]) -> Progress;

    /// Receives what is known of earlier deliveries, right before `deliver`. Called only where
    /// replicas share the searches.
    fn note_past(&mut self, _past: Past) {}

    /// Checks anew where the writer writes to.
    fn reopen(&mut self) {}
}

/// A thread that serves the requests to a [`Writer`], one after the other.
#[derive(Debug)]
pub(super) struct Thread {
    requests: mpsc::Sender<Request>,
    /// Closed once the writer has been dropped.
    ended: oneshot::Receiver<()>,
}

enum Request {
    Deliver(Arc<[Pending]>, Claim, oneshot::Sender<Progress>),
    Reopen,
}

/// How far a delivery came.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// How many events, from the first on, were delivered or refused for good.
    pub(super) settled: usize,
    /// The settled events that were refused.
    pub(super) refused: Vec<Refusal>,
    /// Warnings of the receiver about events that it took.
    pub(super) warnings: Vec<String>,
    /// What the sink needs to find its place again after a crash.
    pub(super) mark: Option<Vec<u8>>,
    /// Why the delivery came no further. Without an error, the rest is delivered with the next
    /// request.
    pub(super) error: Option<SinkError>,
}

/// Events that will never be delivered.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// How many.
    pub(super) events: u64,
    /// The event's id, if exactly one event was refused and is known.
    pub(super) event_id: Option<Uuid>,
    /// The reason, for people.
    pub(super) reason: String,
}

/// Why a sink could not deliver. Nothing is lost: what is not delivered stays in the journal.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Standard output.
    #[error(transparent)]
    Stdout(#[from] super::stdout::Error),
    /// A file.
    #[error(transparent)]
    File(#[from] super::file::Error),
    /// systemd's journal.
    #[error(transparent)]
    Journald(#[from] super::journald::Error),
    /// An OTLP receiver.
    #[error(transparent)]
    Otlp(#[from] super::otlp::Error),
    /// The sink's thread could not be started: the system has too many threads, which passes.
    #[error("cannot start the sink's thread")]
    Start(#[source] io::Error),
    /// The sink's thread or worker ended, which it never should.
    #[error("it has ended unexpectedly, which is a bug")]
    Ended,
}

// === impl Sink ===

impl Sink {
    /// Sets up the sink of `options`, one of `sinks`. Nothing is opened yet.
    ///
    /// # Errors
    /// If the options can never work.
    pub(super) fn new(options: &SinkOptions, sinks: &[SinkOptions]) -> Result<Self, SinkError> {
        Ok(match &options.target {
            Target::Stdout { format } => Self::Stdout(Stdout::of_process(*format)?),
            Target::File { path, format } => {
                let others = sinks.iter().filter_map(|sink| match &sink.target {
                    Target::File { path, .. } if sink.name != options.name => Some(path.clone()),
                    _ => None,
                });
                let file = LogFile::new(path.clone(), *format).with_other_files(others.collect());
                Self::File(Box::new(file))
            }
            Target::Journald => Self::Journald(Journald::new()),
            Target::Otlp(options) => Self::Otlp(Box::new(Otlp::new(options)?)),
        })
    }

    /// Begins to work where the sink left off with `mark`. Events up to `journal_end` may have
    /// been given to a former process; `journalled` tells where the journal ends now. A delivery
    /// ends early if `orders` say so, wherever its rest would come again otherwise.
    ///
    /// # Errors
    /// If the sink cannot begin now. The error returns the sink, to be started again later.
    pub(super) fn start(
        self,
        name: &str,
        mark: Option<&[u8]>,
        journal_end: i64,
        journalled: watch::Receiver<i64>,
        orders: watch::Receiver<Order>,
    ) -> Result<Running, Box<(Self, SinkError)>> {
        match self {
            Self::Stdout(sink) => {
                let sink = sink.resume_at(mark, journal_end).with_orders(orders);
                Self::run(name, sink, Self::Stdout)
            }
            Self::File(sink) => {
                let back = |sink| Self::File(Box::new(sink));
                Self::run(name, sink.resume_at(mark).with_journalled(journalled), back)
            }
            Self::Journald(sink) => Self::run(name, sink.with_orders(orders), Self::Journald),
            Self::Otlp(sink) => Ok(Running::Otlp(sink)),
        }
    }

    fn run<W: Writer>(
        name: &str,
        writer: W,
        back: impl FnOnce(W) -> Self,
    ) -> Result<Running, Box<(Self, SinkError)>> {
        match Thread::start(name, writer) {
            Ok(thread) => Ok(Running::Thread(thread)),
            Err((writer, error)) => Err(Box::new((back(writer), SinkError::Start(error)))),
        }
    }
}

// === impl Running ===

impl Running {
    /// Delivers events as far as the sink can; none if they are no longer this replica's to
    /// deliver. A delivery of several requests ends before the next one once it is `to_stop`.
    pub(super) async fn deliver(
        &mut self,
        events: Arc<[Pending]>,
        claim: Claim,
        to_stop: impl Fn() -> bool,
    ) -> Progress {
        match self {
            Self::Thread(thread) => thread.deliver(events, claim).await,
            Self::Otlp(otlp) => otlp.deliver(&events, || claim.holds() && !to_stop()).await,
        }
    }

    pub(super) fn reopen(&self) {
        match self {
            Self::Thread(thread) => thread.reopen(),
            Self::Otlp(_) => {}
        }
    }

    /// Ends the sink's work, and waits until it has released everything that it holds.
    pub(super) async fn close(self) {
        if let Self::Thread(Thread { requests, ended }) = self {
            drop(requests);
            // Nothing is ever sent: an error says that the thread has dropped the sender.
            drop(ended.await);
        }
    }
}

// === impl Thread ===

impl Thread {
    /// Starts the thread. Returns the writer with the error if the system gives no thread.
    fn start<W: Writer>(name: &str, writer: W) -> Result<Self, (W, io::Error)> {
        let (sender, requests) = mpsc::channel();
        let (end, ended) = oneshot::channel();
        // If a thread cannot be started, its closure is dropped with all that it owns. So the
        // writer is handed over by a channel.
        let (hand_over, handed_over) = mpsc::channel::<W>();
        let started = thread::Builder::new()
            .name(format!("sink-{name}"))
            .spawn(move || {
                // Declared before the writer, so dropped after it: when the end is noticed, the
                // file is unlocked.
                let _end: oneshot::Sender<()> = end;
                let Ok(mut writer) = handed_over.recv() else {
                    return;
                };
                for request in requests {
                    match request {
                        Request::Deliver(events, claim, reply) => {
                            writer.wait(events.len());
                            if reply.is_closed() {
                                // Nobody would acknowledge what is delivered now.
                                continue;
                            }
                            // Checked right before the delivery: the process may have been stopped
                            // for a while.
                            let progress = if claim.holds() {
                                if let Some(past) = claim.past() {
                                    writer.note_past(past);
                                }
                                writer.deliver(&events)
                            } else {
                                Progress::default()
                            };
                            // Nobody receives the reply if the process is about to end.
                            drop(reply.send(progress));
                        }
                        Request::Reopen => writer.reopen(),
                    }
                }
            });
        if let Err(error) = started {
            return Err((writer, error));
        }
        // If the thread has ended, the first delivery notices.
        drop(hand_over.send(writer));
        Ok(Self {
            requests: sender,
            ended,
        })
    }

    async fn deliver(&self, events: Arc<[Pending]>, claim: Claim) -> Progress {
        let (reply, progress) = oneshot::channel();
        let request = Request::Deliver(events, claim, reply);
        if self.requests.send(request).is_err() {
            return Progress::failed(SinkError::Ended);
        }
        progress
            .await
            .unwrap_or_else(|_| Progress::failed(SinkError::Ended))
    }

    fn reopen(&self) {
        // If the thread has ended, the next delivery notices.
        drop(self.requests.send(Request::Reopen));
    }
}

// === impl Progress ===

impl Progress {
    /// The number of settled events that were refused.
    pub(super) fn rejected(&self) -> u64 {
        self.refused.iter().map(|refusal| refusal.events).sum()
    }

    /// The number of settled events that were delivered.
    pub(super) fn delivered(&self) -> u64 {
        (self.settled as u64).saturating_sub(self.rejected())
    }

    pub(super) fn failed(error: impl Into<SinkError>) -> Self {
        Self {
            error: Some(error.into()),
            ..Self::default()
        }
    }
}

// === impl Refusal ===

impl Refusal {
    /// The refusal of one event.
    pub(super) fn of(event_id: Uuid, reason: String) -> Self {
        Self {
            events: 1,
            event_id: Some(event_id),
            reason,
        }
    }

    /// The refusal of a journalled event that this version cannot read.
    pub(super) fn unreadable(event_id: Uuid, error: &serde_json::Error) -> Self {
        Self::of(
            event_id,
            format!("its journalled form cannot be read: {error}"),
        )
    }
}

// === impl SinkError ===

impl SinkError {
    /// Whether another try in this process would be useless.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Stdout(error) => error.is_closed(),
            Self::Ended => true,
            Self::File(_) | Self::Journald(_) | Self::Otlp(_) | Self::Start(_) => false,
        }
    }

    /// How long the receiver asked to wait before the next try.
    #[must_use]
    pub fn retry_after(&self) -> Option<std::time::Duration> {
        match self {
            Self::Otlp(error) => error.retry_after(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        time::Duration,
    };

    use super::*;
    use crate::store::Right;

    /// Delivers only after a permit has come through `may`, and reports each delivery.
    struct Patient {
        may: mpsc::Receiver<()>,
        delivers: mpsc::Sender<()>,
    }

    impl Writer for Patient {
        fn wait(&mut self, _events: usize) {
            self.may.recv().unwrap();
        }

        fn deliver(&mut self, _events: &[Pending]) -> Progress {
            self.delivers.send(()).unwrap();
            Progress::default()
        }
    }

    #[tokio::test]
    async fn a_delivery_that_is_given_up_before_its_turn_delivers_nothing() {
        let (allow, may) = mpsc::channel();
        let (delivers, delivered) = mpsc::channel();
        let thread = Thread::start("patient", Patient { may, delivers });
        let thread = thread.map_err(|(_, error)| error).unwrap();
        let given_up = thread.deliver(Arc::default(), Claim::default());
        tokio::time::timeout(Duration::ZERO, given_up)
            .await
            .unwrap_err();
        allow.send(()).unwrap();
        allow.send(()).unwrap();
        let progress = thread.deliver(Arc::default(), Claim::default()).await;
        assert!(progress.error.is_none(), "{progress:?}");
        assert_eq!(delivered.try_iter().count(), 1);
    }

    /// Ends its thread with the first delivery.
    struct Panics;

    impl Writer for Panics {
        fn deliver(&mut self, _events: &[Pending]) -> Progress {
            panic!("on purpose");
        }
    }

    #[tokio::test]
    async fn a_thread_that_has_ended_fails_what_it_is_given_and_what_comes_after() {
        let thread = Thread::start("panics", Panics);
        let mut thread = thread.map_err(|(_, error)| error).unwrap();
        let error = async |thread: &Thread| {
            let progress = thread.deliver(Arc::default(), Claim::default()).await;
            progress.error.unwrap()
        };
        assert!(matches!(error(&thread).await, SinkError::Ended));
        (&mut thread.ended).await.unwrap_err();
        assert!(matches!(error(&thread).await, SinkError::Ended));
    }

    #[test]
    fn only_an_output_that_nobody_will_read_and_a_bug_end_the_process() {
        use crate::deliver::{journald, stdout};

        let reason = || io::Error::from(io::ErrorKind::Other);
        for (error, is_fatal) in [
            (stdout::Error::Closed(reason()).into(), true),
            (stdout::Error::Write(reason()).into(), false),
            (journald::Error::Socket(reason()).into(), false),
            (SinkError::Start(reason()), false),
            (SinkError::Ended, true),
        ] {
            let error: SinkError = error;
            assert_eq!(error.is_fatal(), is_fatal, "{error:?}");
        }
    }

    /// The right to events that replicas share. It is lost if the wait for the sink takes long.
    #[derive(Clone, Debug, Default)]
    struct Lent {
        is_lost: Arc<AtomicBool>,
        past: Past,
    }

    impl Right for Lent {
        fn holds(&self) -> bool {
            !self.is_lost.load(Ordering::SeqCst)
        }

        fn past(&self) -> Past {
            self.past
        }
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Call {
        Waits(usize),
        Past(Past),
        Delivers(usize),
        Reopens,
    }

    /// Reports what it is called for.
    struct Reporter {
        calls: mpsc::Sender<Call>,
        /// What is lost while the writer waits.
        loses: Option<Arc<AtomicBool>>,
    }

    impl Writer for Reporter {
        fn wait(&mut self, events: usize) {
            self.calls.send(Call::Waits(events)).unwrap();
            if let Some(lost) = &self.loses {
                lost.store(true, Ordering::SeqCst);
            }
        }

        fn note_past(&mut self, past: Past) {
            self.calls.send(Call::Past(past)).unwrap();
        }

        fn deliver(&mut self, events: &[Pending]) -> Progress {
            self.calls.send(Call::Delivers(events.len())).unwrap();
            Progress {
                settled: events.len(),
                ..Progress::default()
            }
        }

        fn reopen(&mut self) {
            self.calls.send(Call::Reopens).unwrap();
        }
    }

    #[tokio::test]
    async fn what_another_replica_may_deliver_by_now_is_not_delivered_and_the_past_is_told_before()
    {
        use Call::{Delivers, Past as Told, Reopens, Waits};

        let event = Pending {
            position: 1,
            event: crate::store::JournalEvent {
                event_id: Uuid::nil(),
                at: jiff::Timestamp::UNIX_EPOCH,
                body: bytes::Bytes::new(),
            },
        };
        let events: Arc<[Pending]> = vec![event; 2].into();
        let past = Past {
            losses: 7,
            ..Past::default()
        };
        let lent = Lent {
            past,
            ..Lent::default()
        };
        for (claim, loses, settled, expected) in [
            (
                Claim::of(lent.clone()),
                None,
                2,
                vec![Waits(2), Told(past), Delivers(2), Reopens],
            ),
            // Without replicas there is no past.
            (
                Claim::default(),
                None,
                2,
                vec![Waits(2), Delivers(2), Reopens],
            ),
            (
                Claim::of(lent.clone()),
                Some(lent.is_lost),
                0,
                vec![Waits(2), Reopens],
            ),
        ] {
            let (sender, calls) = mpsc::channel();
            let thread = Thread::start(
                "reporter",
                Reporter {
                    calls: sender,
                    loses,
                },
            );
            let mut sink = Running::Thread(thread.map_err(|(_, error)| error).unwrap());
            let progress = sink.deliver(Arc::clone(&events), claim, || false).await;
            assert!(progress.error.is_none(), "{progress:?}");
            assert_eq!(progress.settled, settled);
            sink.reopen();
            // What was asked before is still done, and then the writer is gone.
            sink.close().await;
            assert_eq!(calls.try_iter().collect::<Vec<_>>(), expected);
        }
    }
}
