//! The worker of a sink: it reads the journal, delivers and acknowledges, over and over.
//!
//! A worker does not know its sink's kind. A try that fails is repeated after a random delay that
//! grows. What the store or the sink cannot take at present waits in the journal.

use std::{
    convert::Infallible,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::{AbortHandle, JoinHandle},
    time::Instant,
};

use crate::{
    error_chain::chain,
    status::Board,
    store::{self, Backlog, Pending, Store},
};

use super::{
    FatalError, Observer, Target,
    sink::{Progress, Refusal, Running, Sink, SinkError},
};

/// Limits of one batch, which is read from the journal at once and, in a file, synced at once.
const MAX_EVENTS: usize = 1000;
const MAX_BYTES: usize = 1 << 20;

/// The delay after the first failure.
const FIRST_DELAY: Duration = Duration::from_millis(200);

/// The longest delay for a target on this machine, where a try costs next to nothing.
const LOCAL_MAX_DELAY: Duration = Duration::from_secs(5);

/// The longest delay for a receiver elsewhere.
const REMOTE_MAX_DELAY: Duration = Duration::from_secs(30);

/// The longest delay while the daemon stops, because little time is left for further tries.
const LAST_MAX_DELAY: Duration = Duration::from_secs(1);

/// The longest time between a reload that makes the store forget a sink and the order to the
/// sink's worker to stop.
const DISMISSAL: Duration = Duration::from_millis(500);

/// How long a worker waits for its predecessor before it reports the wait or tells the predecessor
/// to give up, and how long between two such reports. A delivery that takes twice as long hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// The warning while a predecessor does not leave.
const WAITS: &str = "waits for the delivery under way to the sink's former target; restart the \
                     exporter where that never ends";

/// The shortest time between two look-ups of the backlog.
const BACKLOG_INTERVAL: Duration = Duration::from_millis(500);

/// Time until the backlog is looked up again after a failure, if nothing changes meanwhile.
const BACKLOG_RETRY: Duration = Duration::from_secs(5);

/// One sink's worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) name: Arc<str>,
    pub(super) store: Store,
    pub(super) board: Board,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) orders: watch::Receiver<Order>,
    pub(super) reopen: Arc<Notify>,
    pub(super) failures: mpsc::UnboundedSender<FatalReport>,
    pub(super) limits: Limits,
    /// Where the journal ended when the process began to deliver.
    pub(super) journal_end: i64,
    /// Whether the worker no longer waits for a predecessor.
    pub(super) has_begun: Arc<AtomicBool>,
}

/// What a worker is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Deliver what comes.
    Work,
    /// Deliver what is journalled, then stop.
    Drain,
    /// Stop after the delivery under way.
    Stop,
    /// Stop at once, without waiting for the outcome of the delivery under way.
    GiveUp,
}

/// A worker that was told to stop, and has to leave before its successor begins.
#[derive(Debug)]
pub(super) struct Predecessor {
    pub(super) task: JoinHandle<Outcome>,
    pub(super) orders: watch::Sender<Order>,
    /// Earlier workers, perhaps including the predecessor, that have begun to deliver and whose
    /// deliveries may not be given up for the new target. The successor waits for them, however
    /// long they take.
    pub(super) must_end: Vec<AbortHandle>,
}

/// A sink that has failed for good, and the orders of its worker, which may have been stopped
/// since.
#[derive(Debug)]
pub(super) struct FatalReport {
    pub(super) error: FatalError,
    pub(super) orders: watch::Receiver<Order>,
}

/// How a worker ended.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The last mark that was acknowledged.
    pub(super) mark: Option<Vec<u8>>,
    /// Whether no event was left to deliver.
    pub(super) drained: bool,
}

/// The time limits of a worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    max_delay: Duration,
    /// How long to wait for a predecessor before that is reported or acted on.
    patience: Duration,
    /// How long a delivery may take before it is reported as one that hangs.
    pub(super) hang: Duration,
    /// Why a delivery to this kind of target may hang, for people.
    hang_cause: &'static str,
}

/// Failures since the last success.
#[derive(Debug, Default)]
struct Trouble {
    tries: u32,
    since: Option<Instant>,
}

/// Reports a worker that panics.
struct PanicReport<'a>(&'a Worker);

// === impl Worker ===

impl Worker {
    /// Delivers until the worker is told to stop, the sink fails for good or the store is closed.
    /// A predecessor has to leave first.
    pub(super) async fn run(
        self,
        sink: Sink,
        mark: Option<Vec<u8>>,
        predecessor: Option<Predecessor>,
    ) -> Outcome {
        // Nothing else would report a panic of this task.
        let _panics = PanicReport(&self);
        let mut outcome = Outcome {
            mark,
            drained: false,
        };
        let acknowledged = Notify::new();
        tokio::select! {
            () = self.take_over(sink, predecessor, &mut outcome, &acknowledged) => {}
            () = self.watch_backlog(&acknowledged) => {}
        }
        outcome
    }

    /// Waits for the predecessor, starts the sink, delivers, and closes the sink in the end.
    async fn take_over(
        &self,
        sink: Sink,
        predecessor: Option<Predecessor>,
        outcome: &mut Outcome,
        acknowledged: &Notify,
    ) {
        if let Some(predecessor) = predecessor {
            self.wait_for(predecessor, outcome).await;
            // The predecessor may have delivered events that the backlog still counts.
            acknowledged.notify_one();
        }
        let Some(mut running) = self.start(sink, outcome).await else {
            return;
        };
        self.work(&mut running, outcome, acknowledged).await;
        tokio::select! {
            () = running.close() => {}
            () = self.given_up() => {}
        }
    }

    /// Starts the sink, and tries again for as long as the system has no thread for it. Returns
    /// `None` if the worker is told to leave before that, or if the daemon stops and no event
    /// waits for the sink.
    async fn start(&self, mut sink: Sink, outcome: &mut Outcome) -> Option<Running> {
        let mut trouble = Trouble::default();
        // Set before the order is read. So if somebody first orders this worker to leave and then
        // finds `has_begun` unset, the worker will never begin.
        self.has_begun.store(true, Ordering::SeqCst);
        loop {
            let order = self.order();
            if order.is_to_leave() {
                return None;
            }
            let journalled = self.store.journalled();
            let mark = outcome.mark.as_deref();
            let orders = self.orders.clone();
            match sink.start(&self.name, mark, self.journal_end, journalled, orders) {
                Ok(running) => {
                    self.recovered(&mut trouble, "has begun to work");
                    return Some(running);
                }
                Err(failed) => {
                    outcome.drained = self.is_drained(order).await;
                    if outcome.drained {
                        return None;
                    }
                    let error;
                    (sink, error) = *failed;
                    let delay = self.report(&mut trouble, &error, None, order);
                    self.wait_to_retry(delay, None, order).await;
                }
            }
        }
    }

    /// Whether the daemon stops and no event is left to deliver.
    async fn is_drained(&self, order: Order) -> bool {
        order == Order::Drain
            && matches!(
                self.store.backlog(&self.name).await,
                Ok(Backlog { events: 0, .. })
            )
    }

    /// Waits until the predecessor has left, and takes over its mark. If its delivery does not end
    /// and may be given up for the new target, the predecessor is told to give up.
    async fn wait_for(&self, predecessor: Predecessor, outcome: &mut Outcome) {
        let Predecessor {
            mut task,
            orders,
            must_end,
        } = predecessor;
        let (mut was_told, mut is_left_behind, mut complained) = (false, false, false);
        loop {
            tokio::select! {
                ended = &mut task => {
                    if let Ok(Outcome { mark: Some(mark), .. }) = ended {
                        outcome.mark = Some(mark);
                    }
                    break;
                }
                // This worker is told to give up, but its successor has to wait for it, and it has
                // to wait for its own predecessor: so the predecessor has to give up as well.
                () = self.given_up(), if !was_told => {
                    orders.send_replace(Order::GiveUp);
                    was_told = true;
                }
                () = tokio::time::sleep(self.limits.patience) => {
                    // A worker that is itself being replaced leaves this to its successor, whose
                    // target may be another one.
                    if !was_told && !self.is_leaving() && must_end.iter().all(AbortHandle::is_finished) {
                        orders.send_replace(Order::GiveUp);
                        (was_told, is_left_behind) = (true, true);
                        tracing::warn!(
                            sink = &*self.name,
                            "the delivery under way to the sink's former target does not end; it is given \
                             up, and its events are delivered to the new target: they may stand in both"
                        );
                    } else if !self.is_leaving() {
                        complained = true;
                        // Said each time, for the same reason as in `report`.
                        tracing::warn!(sink = &*self.name, "{WAITS}");
                        self.update(|status| status.error = Some(WAITS.to_owned()));
                    }
                }
            }
        }
        if is_left_behind {
            // The mark of the former target says nothing about the new target.
            outcome.mark = None;
        }
        if complained {
            tracing::info!(
                sink = &*self.name,
                "the delivery to the sink's former target has ended"
            );
            self.update(|status| status.error = None);
        }
    }

    async fn work(&self, sink: &mut Running, outcome: &mut Outcome, acknowledged: &Notify) {
        let mut journalled = self.store.journalled();
        let mut trouble = Trouble::default();
        loop {
            let order = self.order();
            if order.is_to_leave() {
                return;
            }
            journalled.mark_unchanged();
            let pending = self.store.pending(&self.name, MAX_EVENTS, MAX_BYTES).await;
            // The claim is kept until the delivered events are acknowledged.
            let (events, claim): (Arc<[Pending]>, _) = match pending {
                Ok(batch) => (batch.events.into(), batch.claim),
                Err(store::Error::Closed) => return,
                // This says neither that the sink works nor that it fails, so the last report
                // stands.
                Err(store::Error::Unclear) => {
                    self.wait_for_change(&mut journalled, sink, order).await;
                    continue;
                }
                Err(error) => {
                    if matches!(error, store::Error::UnknownSink { .. })
                        && self.is_dismissed().await
                    {
                        return;
                    }
                    let delay = self.report(&mut trouble, &error, None, order);
                    self.wait_to_retry(delay, Some(sink), order).await;
                    continue;
                }
            };
            if self.is_leaving() {
                return;
            }
            if events.is_empty() {
                self.recovered(&mut trouble, "nothing waits for delivery any more");
                if order == Order::Drain {
                    outcome.drained = true;
                    return;
                }
                self.wait_for_change(&mut journalled, sink, order).await;
                continue;
            }
            let began = Instant::now();
            let mut has_hung = false;
            let progress = tokio::select! {
                biased;
                progress = sink.deliver(Arc::clone(&events), claim.clone(), || self.is_leaving()) => progress,
                () = self.given_up() => return,
                never = self.report_hang(&mut trouble, began, &mut has_hung) => match never {},
            };
            if progress.settled > 0 || progress.mark.is_some() {
                outcome.mark.clone_from(&progress.mark);
                if !self.acknowledge(&events, &progress).await {
                    return;
                }
                acknowledged.notify_one();
            }
            drop(claim);
            if progress.settled > 0 {
                // A sink that settles events is at work, so the delay starts from the shortest
                // again.
                trouble.tries = 0;
            }
            let delivered = progress.delivered();
            match progress.error {
                // A slow reader would otherwise make the sink look well for a moment after each
                // batch. The next delivery, if one is due, shows whether the hang is over.
                None if has_hung => {
                    let took = began.elapsed().as_secs();
                    self.show_hang(format_args!("the last delivery took {took} s"));
                }
                None if delivered > 0 => self.recovered(&mut trouble, "delivers again"),
                // Everything was refused, the sink has only prepared something, or the events are
                // no longer this replica's. The next try shows whether the sink works.
                None => {}
                Some(error) if error.is_fatal() => return self.fail(error),
                Some(error) => {
                    let delay = self.report(&mut trouble, &error, error.retry_after(), order);
                    self.wait_to_retry(delay, Some(sink), order).await;
                }
            }
        }
    }

    /// Acknowledges what was settled of `events`, counts it, and logs what was said about it.
    /// Returns whether the store is still open.
    async fn acknowledge(&self, events: &[Pending], progress: &Progress) -> bool {
        // A sink may have a mark to store before it delivers anything.
        let position = match progress.settled.checked_sub(1) {
            Some(last) => events[last].position,
            None => events[0].position - 1,
        };
        let mark = progress.mark.clone();
        match self.store.acknowledge(&self.name, position, mark).await {
            // The next look at the journal finds out whether an unknown sink is still wanted.
            Ok(()) | Err(store::Error::UnknownSink { .. }) => {}
            Err(store::Error::Closed) => return false,
            // The acknowledgement counts all the same, and is stored with the next write.
            Err(error) => tracing::warn!(
                sink = &*self.name,
                error = chain(&error),
                "the state store cannot note at present what was delivered"
            ),
        }
        self.count(progress.delivered(), progress.rejected());
        self.log_refused(&progress.refused);
        self.log_warnings(&progress.warnings);
        true
    }

    /// Whether the worker is told to stop within `DISMISSAL`: then a reload has removed the
    /// sink.
    async fn is_dismissed(&self) -> bool {
        let mut orders = self.orders.clone();
        let dismissed = orders.wait_for(|order| *order != Order::Work);
        tokio::time::timeout(DISMISSAL, dismissed).await.is_ok()
    }

    /// Waits before a failed try is repeated. A new order or a reopen ends the wait at once.
    /// `order` is the order under which the try was made: another one may have come during the
    /// try.
    async fn wait_to_retry(&self, delay: Duration, sink: Option<&Running>, order: Order) {
        let mut orders = self.orders.clone();
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            // An error ends the wait, too: the sender of the orders is gone.
            _ = orders.wait_for(|now| *now != order) => {}
            () = self.reopen.notified() => if let Some(sink) = sink { sink.reopen() },
        }
    }

    /// Waits until the journal or the order has changed, or the sink was reopened.
    async fn wait_for_change(
        &self,
        journalled: &mut watch::Receiver<i64>,
        sink: &Running,
        order: Order,
    ) {
        let mut orders = self.orders.clone();
        // An error ends the wait, too: a sender is gone, so the store is closed or the order is
        // to stop.
        tokio::select! {
            _ = journalled.changed() => {}
            _ = orders.wait_for(|now| *now != order) => {}
            () = self.reopen.notified() => sink.reopen(),
        }
    }

    fn count(&self, delivered: u64, rejected: u64) {
        self.observer.sink_delivered(&self.name, delivered);
        if rejected > 0 {
            self.observer.sink_rejected(&self.name, rejected);
        }
        // Not by `update`, which ignores a worker that leaves: its deliveries count as well.
        self.board
            .update_sink_if_present(&self.name, |status| status.delivered += delivered);
    }

    /// Logs the events that will never be delivered.
    fn log_refused(&self, refused: &[Refusal]) {
        for Refusal {
            events,
            event_id,
            reason,
        } in refused
        {
            tracing::error!(
                sink = &*self.name,
                events,
                event_id = event_id.map(tracing::field::display),
                reason,
                "refused for good; this sink will never get it"
            );
        }
    }

    /// Logs what the receiver said about events that it took.
    fn log_warnings(&self, warnings: &[String]) {
        for warning in warnings {
            tracing::warn!(
                sink = &*self.name,
                warning,
                "the receiver has taken the events with a warning"
            );
        }
    }

    /// Records a failed try. Returns the delay until the next one.
    fn report(
        &self,
        trouble: &mut Trouble,
        error: &dyn std::error::Error,
        retry_after: Option<Duration>,
        order: Order,
    ) -> Duration {
        let text = chain(error);
        if self.is_leaving() {
            // This worker does not try again. Its successor, or the next start, delivers the
            // waiting events.
            tracing::info!(
                sink = &*self.name,
                error = text,
                "the sink's last delivery before it was stopped, removed or replaced has failed"
            );
            return Duration::ZERO;
        }
        trouble.since.get_or_insert_with(Instant::now);
        // Logged after every failure: `logging` suppresses repeats, and knows when to print one
        // again, also after a line that says that the sink works.
        tracing::error!(
            sink = &*self.name,
            error = text,
            "cannot deliver; events wait in the journal until it works again"
        );
        self.observer.sink_error(&self.name);
        self.update(|status| status.error = Some(text));
        let delay = delay(trouble.tries, self.limits.under(order), fastrand::f64());
        trouble.tries = trouble.tries.saturating_add(1);
        delay.max(retry_after.unwrap_or_default())
    }

    /// Reports the delivery under way once it takes so long that it seems to hang, and then keeps
    /// the report up to date. This is no failed try: the delivery may still succeed.
    async fn report_hang(
        &self,
        trouble: &mut Trouble,
        began: Instant,
        has_hung: &mut bool,
    ) -> Infallible {
        tokio::time::sleep_until(began + self.limits.hang).await;
        // A worker that is being replaced leaves this to its successor, which waits for it.
        if !self.is_leaving() {
            trouble.since.get_or_insert(began);
            *has_hung = true;
            tracing::warn!(
                sink = &*self.name,
                reason = self.limits.hang_cause,
                "the delivery under way does not end; events wait in the journal until it does"
            );
        }
        loop {
            let hangs_for = began.elapsed().as_secs();
            self.show_hang(format_args!("the delivery has not ended for {hangs_for} s"));
            tokio::time::sleep(self.limits.patience).await;
        }
    }

    fn show_hang(&self, what: fmt::Arguments<'_>) {
        let text = format!("{what}: {}", self.limits.hang_cause);
        self.update(|status| status.error = Some(text));
    }

    fn recovered(&self, trouble: &mut Trouble, how: &str) {
        if let Some(since) = trouble.since {
            tracing::info!(
                sink = &*self.name,
                after_seconds = since.elapsed().as_secs(),
                "{how}"
            );
            *trouble = Trouble::default();
            self.update(|status| status.error = None);
        }
    }

    fn fail(&self, source: SinkError) {
        let text = chain(&source);
        if self.is_leaving() {
            // The successor finds out for itself whether the failure concerns it.
            tracing::info!(
                sink = &*self.name,
                error = text,
                "has failed for good after it was stopped, removed or replaced"
            );
            return;
        }
        tracing::error!(
            sink = &*self.name,
            error = text,
            "has failed for good; events wait in the journal for the next start"
        );
        self.observer.sink_error(&self.name);
        self.update(|status| status.error = Some(text));
        // Sending fails only if `Delivery` is gone, which has ended delivery anyway.
        drop(self.failures.send(FatalReport {
            error: FatalError {
                sink: Arc::clone(&self.name),
                source,
            },
            orders: self.orders.clone(),
        }));
    }

    /// Keeps the backlog in the status up to date, also while a delivery hangs, be it this
    /// worker's or its predecessor's.
    async fn watch_backlog(&self, acknowledged: &Notify) {
        let mut journalled = self.store.journalled();
        loop {
            journalled.mark_unchanged();
            let backlog = self.store.backlog(&self.name).await;
            let has_failed = match backlog {
                Ok(backlog) => {
                    self.update(|status| {
                        status.backlog = Some(backlog.events);
                        status.oldest_pending = backlog.oldest;
                    });
                    false
                }
                // No number is better than one that may be wrong by now.
                Err(store::Error::Unclear) => {
                    self.update(|status| {
                        status.backlog = None;
                        status.oldest_pending = None;
                    });
                    false
                }
                // If the store fails, the worker's own requests report it.
                Err(_) => true,
            };
            tokio::select! {
                changed = journalled.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                () = acknowledged.notified() => {}
                () = tokio::time::sleep(BACKLOG_RETRY), if has_failed => {}
            }
            tokio::time::sleep(BACKLOG_INTERVAL).await;
        }
    }

    /// The current order; `Stop` if the sender of the orders is gone.
    fn order(&self) -> Order {
        match self.orders.has_changed() {
            Ok(_) => *self.orders.borrow(),
            Err(_) => Order::Stop,
        }
    }

    /// Whether the sink was removed or replaced, or delivery as a whole has ended.
    fn is_leaving(&self) -> bool {
        self.order().is_to_leave()
    }

    /// Waits for the order to give up the delivery under way.
    async fn given_up(&self) {
        let mut orders = self.orders.clone();
        let given_up = orders.wait_for(|order| *order == Order::GiveUp);
        if given_up.await.is_err() {
            // No order can come any more, so the delivery may end by itself.
            std::future::pending::<()>().await;
        }
    }

    /// Changes the sink's status, unless this worker leaves: the status is then its successor's.
    fn update(&self, change: impl FnOnce(&mut crate::status::SinkStatus)) {
        if !self.is_leaving() {
            self.board.update_sink_if_present(&self.name, change);
        }
    }
}

/// The delay until the next try, after `failures` failures before the present one. It doubles with
/// each failure up to `max`, and is shortened by up to half at random.
fn delay(failures: u32, max: Duration, random: f64) -> Duration {
    let full = FIRST_DELAY
        .saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX))
        .min(max);
    full.mul_f64(1.0 - random / 2.0)
}

// === impl Order ===

impl Order {
    /// Whether no further delivery may begin.
    pub(super) fn is_to_leave(self) -> bool {
        matches!(self, Self::Stop | Self::GiveUp)
    }
}

// === impl PanicReport ===

impl Drop for PanicReport<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(SinkError::Ended);
        }
    }
}

// === impl Limits ===

impl Limits {
    pub(super) fn of(target: &Target, patience: Duration) -> Self {
        let (max_delay, hang) = match target {
            Target::Stdout { .. } | Target::File { .. } | Target::Journald => {
                (LOCAL_MAX_DELAY, 2 * patience)
            }
            // A request ends by itself, with an error that says more.
            Target::Otlp(options) => (REMOTE_MAX_DELAY, 2 * patience + options.timeout),
        };
        let hang_cause = match target {
            Target::Stdout { .. } => "nobody reads standard output, or its reader is too slow",
            Target::File { .. } => "the disk of the file does not answer, or is too slow",
            Target::Journald => "systemd-journald does not take the events, or is too slow",
            Target::Otlp(_) => "the receiver does not answer, or is too slow",
        };
        Self {
            max_delay,
            patience,
            hang,
            hang_cause,
        }
    }

    /// The longest delay under `order`.
    fn under(self, order: Order) -> Duration {
        match order {
            Order::Drain => self.max_delay.min(LAST_MAX_DELAY),
            Order::Work | Order::Stop | Order::GiveUp => self.max_delay,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        deliver::{fuzzing, tests::otlp},
        logging::captured,
    };

    #[derive(Debug)]
    struct Nobody;

    impl Observer for Nobody {
        fn sink_delivered(&self, _: &str, _: u64) {}
        fn sink_error(&self, _: &str) {}
        fn sink_rejected(&self, _: &str, _: u64) {}
    }

    async fn worker(folder: &std::path::Path) -> (Worker, watch::Sender<Order>) {
        let options = store::Options::Sqlite {
            path: folder.join("state.db"),
            journal_limit: store::JOURNAL_LIMIT,
        };
        let (orders, seen) = watch::channel(Order::Work);
        let worker = Worker {
            name: "loki".into(),
            store: Store::open(&options).await.unwrap(),
            board: Board::default(),
            observer: Arc::new(Nobody),
            orders: seen,
            reopen: Arc::default(),
            failures: mpsc::unbounded_channel().0,
            limits: Limits {
                max_delay: REMOTE_MAX_DELAY,
                patience: PATIENCE,
                hang: 2 * PATIENCE,
                hang_cause: "",
            },
            journal_end: 0,
            has_begun: Arc::default(),
        };
        (worker, orders)
    }

    #[tokio::test]
    async fn that_it_delivers_again_is_not_the_last_word_on_a_sink_that_is_down() {
        let folder = tempfile::tempdir().unwrap();
        let (worker, _orders) = worker(folder.path()).await;
        let error = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let (lines, _logging) = captured();
        tokio::time::pause();
        let mut trouble = Trouble::default();
        worker.report(&mut trouble, &error, None, Order::Work);
        worker.recovered(&mut trouble, "delivers again");
        assert!(trouble.since.is_none() && trouble.tries == 0);
        for _ in 0..=60 {
            worker.report(&mut trouble, &error, None, Order::Work);
            tokio::time::advance(Duration::from_secs(2)).await;
        }
        let lines = lines.lock();
        assert_eq!(lines.len(), 4, "{lines:#?}");
        assert!(lines[1].contains("delivers again"), "{lines:#?}");
        for repeated in &lines[2..] {
            assert!(
                repeated.contains("cannot deliver") && repeated.contains(" repeated="),
                "{lines:#?}"
            );
        }
    }

    #[tokio::test]
    async fn a_receiver_may_ask_for_a_longer_pause_but_not_for_a_shorter_one() {
        let folder = tempfile::tempdir().unwrap();
        let (worker, _orders) = worker(folder.path()).await;
        let error = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let pause =
            |asked| worker.report(&mut Trouble::default(), &error, Some(asked), Order::Work);
        let minute = Duration::from_secs(60);
        assert_eq!(pause(minute), minute);
        assert!(pause(Duration::ZERO) >= FIRST_DELAY / 2);
    }

    #[tokio::test]
    async fn the_last_delivery_of_a_sink_that_leaves_fails_without_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let (worker, orders) = worker(folder.path()).await;
        let error = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let (lines, _logging) = captured();
        orders.send_replace(Order::Stop);
        let mut trouble = Trouble::default();
        worker.report(&mut trouble, &error, None, Order::Work);
        let lines = lines.lock();
        assert_eq!(lines.len(), 1, "{lines:#?}");
        let said = |text| lines[0].contains(text);
        assert!(
            said("level=info") && said("removed or replaced"),
            "{lines:#?}"
        );
        assert!(!said("until it works again"), "{lines:#?}");
    }

    #[tokio::test]
    async fn a_sink_that_cannot_begin_as_everything_ends_leaves_where_nothing_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let (worker, _orders) = worker(folder.path()).await;
        let store = &worker.store;
        store.set_sinks(vec!["loki".to_owned()]).await.unwrap();
        assert!(worker.is_drained(Order::Drain).await);
        assert!(!worker.is_drained(Order::Work).await);
        let at = jiff::Timestamp::UNIX_EPOCH;
        let held = store.take_up(&fuzzing::key(), at).await.unwrap().held;
        let commit = store::Commit {
            events: vec![fuzzing::pending(1, b"{}".to_vec()).event],
            ..store::Commit::default()
        };
        store.commit(held, commit, at).await.unwrap();
        assert!(!worker.is_drained(Order::Drain).await);
    }

    #[test]
    fn delays_double_up_to_their_limit() {
        let delays: Vec<_> = [0, 1, 2, 7, 8, 31, 32, u32::MAX]
            .map(|failures| delay(failures, REMOTE_MAX_DELAY, 0.0).as_millis())
            .into();
        assert_eq!(
            delays,
            [200, 400, 800, 25_600, 30_000, 30_000, 30_000, 30_000]
        );
    }

    #[test]
    fn while_everything_ends_no_delay_takes_the_time_that_is_left() {
        let remote = Target::Otlp(otlp("http://127.0.0.1/v1/logs", Duration::from_secs(5)));
        for (target, max_delay) in [
            (Target::Journald, LOCAL_MAX_DELAY),
            (remote, REMOTE_MAX_DELAY),
        ] {
            let limits = Limits::of(&target, PATIENCE);
            assert_eq!(limits.under(Order::Work), max_delay);
            assert_eq!(limits.under(Order::Drain), Duration::from_secs(1));
        }
    }

    proptest! {
        #[test]
        fn a_random_delay_is_never_shorter_than_half_of_the_full_one(
            failures in 0..64_u32, random in 0.0..1.0_f64
        ) {
            let full = delay(failures, LOCAL_MAX_DELAY, 0.0);
            let delay = delay(failures, LOCAL_MAX_DELAY, random);
            prop_assert!(delay <= full && delay >= full / 2);
        }
    }
}
