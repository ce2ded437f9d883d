//! What a sink is to its worker: something that takes events in order and says how far it came.
//!
//! Standard output, files and journald block while they write, so each runs on a thread of its
//! own: a stalled pipe or disk stops that thread and nothing else, and does not keep the process
//! from ending.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
};

use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use crate::store::{Claim, Past, Pending};

use super::{SinkOptions, Target, file::LogFile, journald::Journald, otlp::Otlp, stdout::Stdout};

/// A sink that is set up and has not begun.
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
    /// Waits until it may deliver so many events, or some of them: for so long that a delivery that takes no
    /// longer hangs for nobody. Whoever has asked may give it up meanwhile.
    fn wait(&mut self, _events: usize) {}

    /// Delivers events in order, as many as it can.
    fn deliver(&mut self, events: &[Pending]) -> Progress;

    /// Is told, where replicas share the searches, what was before the events that it is given next.
    fn hear(&mut self, _past: Past) {}

    /// Looks again at where it writes to.
    fn reopen(&mut self) {}
}

/// A thread that does what a [`Writer`] is asked, one thing after the other.
#[derive(Debug)]
pub(super) struct Thread {
    requests: mpsc::Sender<Request>,
    /// Closed once the writer is gone.
    ended: oneshot::Receiver<()>,
}

enum Request {
    Deliver(Arc<[Pending]>, Claim, oneshot::Sender<Progress>),
    Reopen,
}

/// How far a delivery came.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// So many events, from the first on, are done with: delivered or refused for good.
    pub(super) settled: usize,
    /// What was refused among them.
    pub(super) refused: Vec<Refusal>,
    /// What the receiver had to say although it took them.
    pub(super) warnings: Vec<String>,
    /// What the sink needs to find its place again after a crash.
    pub(super) mark: Option<Vec<u8>>,
    /// Why it came no further; without an error, it goes on when it is asked again.
    pub(super) error: Option<SinkError>,
}

/// Events that will never be delivered.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    /// How many.
    pub(super) events: u64,
    /// Which one, where it is one and known.
    pub(super) event_id: Option<Uuid>,
    /// Why, for people.
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
    /// The sink's thread could not be started: there are too many, which passes.
    #[error("cannot start the sink's thread")]
    Start(#[source] io::Error),
    /// The sink's thread or worker ended, which it never should.
    #[error("it has ended unexpectedly, which is a bug")]
    Ended,
}

// === impl Sink ===

impl Sink {
    /// Sets one of these `sinks` up; nothing is opened yet.
    ///
    /// # Errors
    /// Where the options cannot work, whatever happens outside.
    pub(super) fn new(options: &SinkOptions, sinks: &[SinkOptions]) -> Result<Self, SinkError> {
        Ok(match &options.target {
            Target::Stdout { format } => Self::Stdout(Stdout::of_process(*format)?),
            Target::File { path, format } => {
                let others = sinks.iter().filter_map(|sink| match &sink.target {
                    Target::File { path, .. } if sink.name != options.name => Some(path.clone()),
                    _ => None,
                });
                let file = LogFile::new(path.clone(), *format).beside(others.collect());
                Self::File(Box::new(file))
            }
            Target::Journald => Self::Journald(Journald::new()),
            Target::Otlp(options) => Self::Otlp(Box::new(Otlp::new(options)?)),
        })
    }

    /// Begins to work, where the sink left off with `mark`. Events up to `journal_end` may have been
    /// given to a former process; `journalled` tells where the journal ends now.
    ///
    /// # Errors
    /// Where it cannot begin now; it comes back, to be started again later.
    pub(super) fn start(
        self,
        name: &str,
        mark: Option<&[u8]>,
        journal_end: i64,
        journalled: watch::Receiver<i64>,
    ) -> Result<Running, Box<(Self, SinkError)>> {
        match self {
            Self::Stdout(sink) => Self::run(name, sink.after(mark, journal_end), Self::Stdout),
            Self::File(sink) => {
                let back = |sink| Self::File(Box::new(sink));
                Self::run(name, sink.after(mark).reading(journalled), back)
            }
            Self::Journald(sink) => Self::run(name, sink, Self::Journald),
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
    /// Delivers events as far as it can. Nothing where they are no longer this replica's to deliver.
    pub(super) async fn deliver(&mut self, events: Arc<[Pending]>, claim: Claim) -> Progress {
        match self {
            Self::Thread(thread) => thread.deliver(events, claim).await,
            Self::Otlp(otlp) => otlp.deliver(&events, || claim.holds()).await,
        }
    }

    pub(super) fn reopen(&self) {
        match self {
            Self::Thread(thread) => thread.reopen(),
            Self::Otlp(_) => {}
        }
    }

    /// Ends the sink's work, and waits until it holds nothing any more.
    pub(super) async fn close(self) {
        if let Self::Thread(Thread { requests, ended }) = self {
            drop(requests);
            // It is never sent: an error is the end.
            drop(ended.await);
        }
    }
}

// === impl Thread ===

impl Thread {
    /// Where there can be no thread, the writer comes back.
    fn start<W: Writer>(name: &str, writer: W) -> Result<Self, (W, io::Error)> {
        let (sender, requests) = mpsc::channel();
        let (end, ended) = oneshot::channel();
        // A closure whose thread cannot be started is dropped with all it owns, so the writer follows by a channel.
        let (hand_over, handed_over) = mpsc::channel::<W>();
        let started = thread::Builder::new()
            .name(format!("sink-{name}"))
            .spawn(move || {
                // Declared before the writer, so that it is dropped after it: whoever waits for the end finds the
                // file unlocked.
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
                            // Right before: the process may have been stopped for a while.
                            let progress = if claim.holds() {
                                if let Some(past) = claim.past() {
                                    writer.hear(past);
                                }
                                writer.deliver(&events)
                            } else {
                                Progress::default()
                            };
                            // Nobody waits any longer when the process is about to end.
                            drop(reply.send(progress));
                        }
                        Request::Reopen => writer.reopen(),
                    }
                }
            });
        if let Err(error) = started {
            return Err((writer, error));
        }
        // A thread that has ended is noticed by the first delivery.
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
        // A thread that has ended is noticed by the next delivery.
        drop(self.requests.send(Request::Reopen));
    }
}

// === impl Progress ===

impl Progress {
    /// How many events were refused among those that are done with.
    pub(super) fn rejected(&self) -> u64 {
        self.refused.iter().map(|refusal| refusal.events).sum()
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
    /// An event of the journal that this version cannot read.
    pub(super) fn unreadable(event_id: Uuid, error: &serde_json::Error) -> Self {
        Self {
            events: 1,
            event_id: Some(event_id),
            reason: format!("its journalled form cannot be read: {error}"),
        }
    }
}

// === impl SinkError ===

impl SinkError {
    /// Whether trying again is of no use in this process.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Stdout(error) => error.is_closed(),
            Self::Ended => true,
            Self::File(_) | Self::Journald(_) | Self::Otlp(_) | Self::Start(_) => false,
        }
    }

    /// How long the receiver asked to be left alone.
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
    use std::time::Duration;

    use super::*;

    /// May deliver once it is told so, and tells when it does.
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
}
