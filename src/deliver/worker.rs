//! What each sink's worker does, over and over: read the journal, deliver, acknowledge.
//!
//! It knows no sink by its kind. A try that fails is repeated with a growing, random delay; what
//! the store and the sink cannot do at present waits in the journal.

use std::{
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
    Failed, Observer, Target,
    sink::{Progress, Refusal, Running, Sink, SinkError},
};

/// What is read from the journal at once, and synced at once in a file.
const MAX_EVENTS: usize = 1000;
const MAX_BYTES: usize = 1 << 20;

/// The delay after the first failure.
const FIRST_DELAY: Duration = Duration::from_millis(200);

/// The longest delay for what is on this machine, where a try costs next to nothing.
const LOCAL_MAX_DELAY: Duration = Duration::from_secs(5);

/// The longest delay for a receiver elsewhere.
const REMOTE_MAX_DELAY: Duration = Duration::from_secs(30);

/// The longest delay while everything ends: there is little time left to try again.
const LAST_MAX_DELAY: Duration = Duration::from_secs(1);

/// How long after the store has forgotten a sink its worker is told so, at most.
const DISMISSAL: Duration = Duration::from_millis(500);

/// How long a worker waits for its predecessor before it says so or has it give up, and before it says so
/// again.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What is said all the while a predecessor does not leave.
const WAITS: &str = "waits for the delivery under way to the sink's former target; restart the \
                     exporter where that never ends";

/// How often the backlog is looked up at most.
const BACKLOG_INTERVAL: Duration = Duration::from_millis(500);

/// How long until it is looked up again where that failed, and nothing changes.
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
    pub(super) failures: mpsc::UnboundedSender<Failure>,
    pub(super) limits: Limits,
    /// Where the journal ended when the process began to deliver.
    pub(super) journal_end: i64,
    /// Whether it waits for no predecessor any more.
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
    /// Stop at once: what the delivery under way comes to, nobody asks any more.
    GiveUp,
}

/// A worker that was told to stop, and has to leave before another takes its place.
#[derive(Debug)]
pub(super) struct Predecessor {
    pub(super) task: JoinHandle<Left>,
    pub(super) orders: watch::Sender<Order>,
    /// Workers before this one, the predecessor among them, that have begun to deliver and whose delivery may
    /// not be given up for this one's target: they are waited for, however long.
    pub(super) must_end: Vec<AbortHandle>,
}

/// A sink that has failed for good, with the orders of its worker, which may have been dismissed since.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) failed: Failed,
    pub(super) orders: watch::Receiver<Order>,
}

/// How a worker left.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// The last mark that was acknowledged.
    pub(super) mark: Option<Vec<u8>>,
    /// Whether nothing was left to deliver.
    pub(super) drained: bool,
}

/// How patient a worker is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    max_delay: Duration,
    /// How long a predecessor is waited for in silence.
    patience: Duration,
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
    /// Works until it is told to stop, or the sink or the store is gone for good. A predecessor
    /// has to leave first.
    pub(super) async fn run(
        self,
        sink: Sink,
        mark: Option<Vec<u8>>,
        predecessor: Option<Predecessor>,
    ) -> Left {
        // Nobody else would notice.
        let _panics = PanicReport(&self);
        let mut left = Left {
            mark,
            drained: false,
        };
        let acknowledged = Notify::new();
        tokio::select! {
            () = self.take_over(sink, predecessor, &mut left, &acknowledged) => {}
            () = self.watch_backlog(&acknowledged) => {}
        }
        left
    }

    /// Works once the predecessor has left.
    async fn take_over(
        &self,
        sink: Sink,
        predecessor: Option<Predecessor>,
        left: &mut Left,
        acknowledged: &Notify,
    ) {
        if let Some(predecessor) = predecessor {
            self.wait_for(predecessor, left).await;
            // It may have delivered what waited when this worker looked.
            acknowledged.notify_one();
        }
        let Some(mut running) = self.start(sink, left).await else {
            return;
        };
        self.work(&mut running, left, acknowledged).await;
        tokio::select! {
            () = running.close() => {}
            () = self.given_up() => {}
        }
    }

    /// Has the sink begin, however long the system has no thread for it. `None`: it is told to leave before
    /// that, or everything ends and nothing waits for it.
    async fn start(&self, mut sink: Sink, left: &mut Left) -> Option<Running> {
        let mut trouble = Trouble::default();
        // Before the order is looked at: who gives another one and then finds that it has not begun knows that
        // it never will.
        self.has_begun.store(true, Ordering::SeqCst);
        loop {
            let order = self.order();
            if order.is_to_leave() {
                return None;
            }
            let journalled = self.store.journalled();
            let mark = left.mark.as_deref();
            match sink.start(&self.name, mark, self.journal_end, journalled) {
                Ok(running) => {
                    self.recovered(&mut trouble, "has begun to work");
                    return Some(running);
                }
                Err(failed) => {
                    left.drained = self.is_drained(order).await;
                    if left.drained {
                        return None;
                    }
                    let error;
                    (sink, error) = *failed;
                    let delay = self.report(&mut trouble, &error, None, order);
                    self.wait(delay, None, order).await;
                }
            }
        }
    }

    /// Whether everything ends and nothing is left to deliver.
    async fn is_drained(&self, order: Order) -> bool {
        order == Order::Drain
            && matches!(
                self.store.backlog(&self.name).await,
                Ok(Backlog { events: 0, .. })
            )
    }

    /// Waits until the predecessor has left, and takes over its mark. One that writes to another place
    /// does not hold this one up for ever: it gives up what does not end.
    async fn wait_for(&self, predecessor: Predecessor, left: &mut Left) {
        let Predecessor {
            mut task,
            orders,
            must_end,
        } = predecessor;
        let (mut was_told, mut is_left_behind, mut complained) = (false, false, false);
        loop {
            tokio::select! {
                ended = &mut task => {
                    if let Ok(Left { mark: Some(mark), .. }) = ended {
                        left.mark = Some(mark);
                    }
                    break;
                }
                // The successor waits for this task, which waits for its own predecessor: so that one gives up as
                // well.
                () = self.given_up(), if !was_told => {
                    orders.send_replace(Order::GiveUp);
                    was_told = true;
                }
                () = tokio::time::sleep(self.limits.patience) => {
                    // One that is replaced itself leaves that to its successor, which may have another target.
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
                        // Each time, as in `report`.
                        tracing::warn!(sink = &*self.name, "{WAITS}");
                        self.update(|status| status.error = Some(WAITS.to_owned()));
                    }
                }
            }
        }
        if is_left_behind {
            // Where the former target was settled says nothing of this one.
            left.mark = None;
        }
        if complained {
            tracing::info!(
                sink = &*self.name,
                "the delivery to the sink's former target has ended"
            );
            self.update(|status| status.error = None);
        }
    }

    async fn work(&self, sink: &mut Running, left: &mut Left, acknowledged: &Notify) {
        let mut journalled = self.store.journalled();
        let mut trouble = Trouble::default();
        loop {
            let order = self.order();
            if order.is_to_leave() {
                return;
            }
            journalled.mark_unchanged();
            let pending = self.store.pending(&self.name, MAX_EVENTS, MAX_BYTES).await;
            // Kept until what was delivered is acknowledged.
            let (events, claim): (Arc<[Pending]>, _) = match pending {
                Ok(batch) => (batch.events.into(), batch.claim),
                Err(store::Error::Closed) => return,
                // Neither that it works nor that it fails: whatever was said last stands.
                Err(store::Error::Unclear) => {
                    if self.rest(&mut journalled, sink, order).await.is_err() {
                        return;
                    }
                    continue;
                }
                Err(error) => {
                    if matches!(error, store::Error::UnknownSink { .. })
                        && self.is_dismissed().await
                    {
                        return;
                    }
                    let delay = self.report(&mut trouble, &error, None, order);
                    self.wait(delay, Some(sink), order).await;
                    continue;
                }
            };
            if events.is_empty() {
                self.recovered(&mut trouble, "nothing waits for delivery any more");
                if order == Order::Drain {
                    left.drained = true;
                    return;
                }
                if self.rest(&mut journalled, sink, order).await.is_err() {
                    return;
                }
                continue;
            }
            let progress = tokio::select! {
                biased;
                progress = sink.deliver(Arc::clone(&events), claim.clone()) => progress,
                () = self.given_up() => return,
            };
            let rejected = progress.rejected();
            let Progress {
                settled,
                refused,
                warnings,
                mark,
                error,
            } = progress;
            let delivered = (settled as u64).saturating_sub(rejected);
            if settled > 0 || mark.is_some() {
                left.mark.clone_from(&mark);
                // A sink may have something to remember before it delivers anything.
                let position = match settled.checked_sub(1) {
                    Some(last) => events[last].position,
                    None => events[0].position - 1,
                };
                match self.store.acknowledge(&self.name, position, mark).await {
                    // Whether a sink that is unknown is wanted, the next look at the journal tells.
                    Ok(()) | Err(store::Error::UnknownSink { .. }) => {}
                    Err(store::Error::Closed) => return,
                    // It counts all the same, and is stored with the next write.
                    Err(error) => tracing::warn!(
                        sink = &*self.name,
                        error = chain(&error),
                        "the state store cannot note at present what was delivered"
                    ),
                }
                self.count(delivered, rejected);
                self.tell_refused(&refused);
                self.pass_on(&warnings);
                acknowledged.notify_one();
            }
            drop(claim);
            if settled > 0 {
                // Whoever takes or refuses something is not left alone any longer than at first.
                trouble.tries = 0;
            }
            match error {
                None if delivered > 0 => self.recovered(&mut trouble, "delivers again"),
                // Everything was refused, or it has prepared something, or the events are no longer this replica's:
                // the next try tells.
                None => {}
                Some(error) if error.is_fatal() => return self.fail(error),
                Some(error) => {
                    let delay = self.report(&mut trouble, &error, error.retry_after(), order);
                    self.wait(delay, Some(sink), order).await;
                }
            }
        }
    }

    /// Whether it is not wanted any more, as a reload is about to tell it.
    async fn is_dismissed(&self) -> bool {
        let mut orders = self.orders.clone();
        let dismissed = orders.wait_for(|order| *order != Order::Work);
        tokio::time::timeout(DISMISSAL, dismissed).await.is_ok()
    }

    /// Waits to repeat a failed try, unless something happens that makes it worth while now. The
    /// try was made under `order`: another one may have come while it was under way.
    async fn wait(&self, delay: Duration, sink: Option<&Running>, order: Order) {
        let mut orders = self.orders.clone();
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            // An error, too: nobody is left to give orders.
            _ = orders.wait_for(|now| *now != order) => {}
            () = self.reopen.notified() => if let Some(sink) = sink { sink.reopen() },
        }
    }

    /// Waits until the journal or the order has changed.
    ///
    /// # Errors
    /// Where neither ever will.
    async fn rest(
        &self,
        journalled: &mut watch::Receiver<i64>,
        sink: &Running,
        order: Order,
    ) -> Result<(), watch::error::RecvError> {
        let mut orders = self.orders.clone();
        tokio::select! {
            changed = journalled.changed() => changed,
            changed = orders.wait_for(|now| *now != order) => changed.map(drop),
            () = self.reopen.notified() => {
                sink.reopen();
                Ok(())
            }
        }
    }

    fn count(&self, delivered: u64, rejected: u64) {
        self.observer.sink_delivered(&self.name, delivered);
        if rejected > 0 {
            self.observer.sink_rejected(&self.name, rejected);
        }
        // Also of a worker that leaves, which `update` would not let.
        self.board
            .change_sink(&self.name, |status| status.delivered += delivered);
    }

    /// Tells what will never be delivered.
    fn tell_refused(&self, refused: &[Refusal]) {
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

    /// Tells what the receiver said of events that it took.
    fn pass_on(&self, warnings: &[String]) {
        for warning in warnings {
            tracing::warn!(
                sink = &*self.name,
                warning,
                "the receiver has taken the events with a warning"
            );
        }
    }

    /// Takes note of a failed try; returns when to repeat it.
    fn report(
        &self,
        trouble: &mut Trouble,
        error: &dyn std::error::Error,
        retry_after: Option<Duration>,
        order: Order,
    ) -> Duration {
        let text = chain(error);
        if self.is_leaving() {
            // It does not try again, and what waits is its successor's, if it has one.
            tracing::info!(
                sink = &*self.name,
                error = text,
                "the last delivery to the former target of a sink that was removed or replaced has failed"
            );
            return Duration::ZERO;
        }
        trouble.since.get_or_insert_with(Instant::now);
        // Each time, however often it is the same: the diagnostics know when it has to be printed again,
        // also after they have said that it works.
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
            // Whether it is of any use to somebody else, its successor finds out for itself.
            tracing::info!(
                sink = &*self.name,
                error = text,
                "has failed for good after it was removed or replaced"
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
        // Without anybody to tell, delivery has ended anyway.
        drop(self.failures.send(Failure {
            failed: Failed {
                sink: Arc::clone(&self.name),
                source,
            },
            orders: self.orders.clone(),
        }));
    }

    /// Keeps the backlog up to date, also while a delivery does not come back, be it the
    /// predecessor's.
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
                // Nothing is better than what may not be so any more.
                Err(store::Error::Unclear) => {
                    self.update(|status| {
                        status.backlog = None;
                        status.oldest_pending = None;
                    });
                    false
                }
                // Where the store fails, the worker says so.
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

    /// What to do; without anybody to give orders, nothing.
    fn order(&self) -> Order {
        match self.orders.has_changed() {
            Ok(_) => *self.orders.borrow(),
            Err(_) => Order::Stop,
        }
    }

    /// Whether it was removed or replaced, or everything ends.
    fn is_leaving(&self) -> bool {
        self.order().is_to_leave()
    }

    /// Until nobody asks any more what the delivery under way comes to.
    async fn given_up(&self) {
        let mut orders = self.orders.clone();
        let given_up = orders.wait_for(|order| *order == Order::GiveUp);
        if given_up.await.is_err() {
            // Without anybody to give orders, the delivery may end.
            std::future::pending::<()>().await;
        }
    }

    /// Tells how the sink is; one that leaves has nothing to say about its successor.
    fn update(&self, change: impl FnOnce(&mut crate::status::SinkStatus)) {
        if !self.is_leaving() {
            self.board.change_sink(&self.name, change);
        }
    }
}

/// When to repeat a try that failed after so many failures before it: twice as late each time,
/// by up to half of it earlier at random.
fn delay(failures: u32, max: Duration, random: f64) -> Duration {
    let full = FIRST_DELAY
        .saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX))
        .min(max);
    full.mul_f64(1.0 - random / 2.0)
}

// === impl Order ===

impl Order {
    /// Whether nothing shall be begun any more.
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
        Self {
            patience,
            max_delay: match target {
                Target::Stdout { .. } | Target::File { .. } | Target::Journald => LOCAL_MAX_DELAY,
                Target::Otlp(_) => REMOTE_MAX_DELAY,
            },
        }
    }

    /// The longest delay while it has this order.
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
        identity::{SearchKey, Tenant},
        logging::captured,
    };

    #[derive(Debug)]
    struct Nobody;

    impl Observer for Nobody {
        fn sink_delivered(&self, _: &str, _: u64) {}
        fn sink_error(&self, _: &str) {}
        fn sink_rejected(&self, _: &str, _: u64) {}
    }

    async fn worker(folder: &std::path::Path) -> Worker {
        let options = store::Options::Sqlite {
            path: folder.join("state.db"),
            journal_limit: store::JOURNAL_LIMIT,
        };
        Worker {
            name: "loki".into(),
            store: Store::open(&options).await.unwrap(),
            board: Board::default(),
            observer: Arc::new(Nobody),
            orders: watch::channel(Order::Work).1,
            reopen: Arc::default(),
            failures: mpsc::unbounded_channel().0,
            limits: Limits {
                max_delay: REMOTE_MAX_DELAY,
                patience: PATIENCE,
            },
            journal_end: 0,
            has_begun: Arc::default(),
        }
    }

    #[tokio::test]
    async fn that_it_delivers_again_is_not_the_last_word_on_a_sink_that_is_down() {
        let folder = tempfile::tempdir().unwrap();
        let mut worker = worker(folder.path()).await;
        let (_orders, seen) = watch::channel(Order::Work);
        worker.orders = seen;
        let error = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let (lines, _logging) = captured();
        tokio::time::pause();
        let mut trouble = Trouble::default();
        worker.report(&mut trouble, &error, None, Order::Work);
        worker.recovered(&mut trouble, "delivers again");
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
    async fn the_last_delivery_of_a_sink_that_leaves_fails_without_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut worker = worker(folder.path()).await;
        let (orders, seen) = watch::channel(Order::Work);
        worker.orders = seen;
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
        let worker = worker(folder.path()).await;
        let store = &worker.store;
        store.set_sinks(vec!["loki".to_owned()]).await.unwrap();
        assert!(worker.is_drained(Order::Drain).await);
        assert!(!worker.is_drained(Order::Work).await);
        let key = SearchKey {
            account: "acme".into(),
            tenant: Tenant {
                id: "client_1".into(),
                name: "retail".into(),
            },
            search: "open".into(),
        };
        let at = jiff::Timestamp::UNIX_EPOCH;
        let held = store.take_up(&key, at).await.unwrap().held;
        let event = store::JournalEvent {
            event_id: uuid::Uuid::nil(),
            at,
            body: "{}".into(),
        };
        let commit = store::Commit {
            events: vec![event],
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
        for max_delay in [LOCAL_MAX_DELAY, REMOTE_MAX_DELAY] {
            let limits = Limits {
                max_delay,
                patience: PATIENCE,
            };
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
