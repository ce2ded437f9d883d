//! Taking a search up: waits for its turn, loads what the store knows of the search, and gives the
//! search back.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Activity, Ended, Left, Running, Search, has_one_status};
use crate::{
    clock,
    error_chain::chain,
    identity::SearchKey,
    poll::{
        SearchOptions,
        engine::{Engine, Options},
        reading,
        schedule::Grid,
    },
    record::AlertFields,
    status::{HISTORY, PollError, SearchStatus},
    store::{self, Held, Loaded, Store, StoredAlert},
    track::{GroupLabel, KnownAlert, Sighting, Tracker},
};

/// Maximum number of pages that a poll reads: half of a client's allowance of a minute.
const MAX_POLL_PAGES: u64 = 25;

/// The tries to take a search up.
struct Tries<'a> {
    stop: &'a CancellationToken,
    grid: Grid,
    /// Number of tries in vain so far.
    failures: u32,
}

/// The search was told to stop.
struct Stopped;

// === impl Search ===

impl Search {
    /// Runs until `stop`: polls whenever the search is this replica's. Returns what the task
    /// leaves.
    pub(in crate::poll) async fn run(self: Box<Self>, stop: CancellationToken) -> Left {
        let mut search = self;
        loop {
            let mut running = match Box::pin(search.take_up(&stop)).await {
                Ok(running) => running,
                Err(left) => return left,
            };
            let held = running.held;
            if running.run(&stop).await == Ended::Stopped {
                return Left {
                    held: Some(held),
                    learned: running.learned(),
                };
            }
            search = running.search;
            search.stand_by();
            search.give_back(held).await;
        }
    }

    /// Reports that another replica polls the search.
    fn stand_by(&mut self) {
        self.status = self.status.elsewhere();
        self.report();
    }

    async fn give_back(&self, held: Held) {
        give_back(&self.shared.store, self.key.clone(), held).await;
    }

    /// What the task leaves if it stops before the search runs.
    fn left(&self, held: Option<Held>) -> Left {
        Left {
            held,
            learned: self.learned.clone(),
        }
    }

    /// Waits until it is this replica's turn.
    async fn turn(&mut self, stop: &CancellationToken) -> Result<(), Stopped> {
        let store = self.shared.store.clone();
        let mut told = false;
        loop {
            self.heartbeat.beat();
            tokio::select! {
                () = store.turn(&self.key) => return Ok(()),
                () = store.elsewhere(&self.key), if !told => {
                    told = true;
                    self.stand_by();
                }
                () = stop.cancelled() => return Err(Stopped),
                () = tokio::time::sleep(self.heartbeat.pulse()) => {}
            }
        }
    }

    /// Loads what the store knows, once it is this replica's turn, and tries again while the store
    /// fails. If the task is told to stop, returns what it leaves.
    async fn take_up(mut self: Box<Self>, stop: &CancellationToken) -> Result<Running, Left> {
        let grid = Grid::new(&self.key, self.options.interval, Instant::now());
        let mut tries = Tries {
            stop,
            grid,
            failures: 0,
        };
        let loaded = self.take_lease(&mut tries).await;
        let mut loaded = loaded.map_err(|Stopped| self.left(None))?;
        let held = loaded.held;
        self.status.lease_held = true;
        self.status.lease = Some(self.shared.store.lease(held));
        // A snapshot from before a reload names a lease that has ended, and loading may take long.
        self.report();
        let first = std::mem::take(&mut loaded.alerts);
        let tracker = self.load(held, first, &mut tries).await;
        let tracker = tracker.map_err(|Stopped| self.left(Some(held)))?;
        let options = Options {
            full_read_interval: self.options.full_read_interval,
            interval: self.options.interval,
            max_poll_pages: MAX_POLL_PAGES,
            has_one_status: has_one_status(&self.options.query),
        };
        let mut engine = Engine::new(options, tracker);
        self.resume(&mut engine);
        Ok(Running::new(self, &loaded, engine, grid))
    }

    /// Takes the search up in the store when it is this replica's turn. Tries until that succeeds.
    async fn take_lease(&mut self, tries: &mut Tries<'_>) -> Result<Loaded, Stopped> {
        loop {
            self.turn(tries.stop).await?;
            self.heartbeat.beat();
            let store = &self.shared.store;
            let taken = tokio::select! {
                taken = store.take_up(&self.key, clock::now()) => taken,
                // A database may not answer. A state file does, and its thread would take the
                // search up for nobody.
                () = tries.stop.cancelled(), if store.is_shared() => return Err(Stopped),
            };
            match taken {
                Ok(loaded) => return Ok(loaded),
                Err(store::Error::HeldElsewhere) => self.stand_by(),
                // Another replica gets the search soon, or this replica gets another turn.
                Err(store::Error::Contested) => {}
                Err(error) => {
                    // The lease may be held all the same, for instance if the task before a reload
                    // left it.
                    let is_held = store.holds(&self.key);
                    if store.is_shared() && !is_held {
                        // Another replica may poll the search by now.
                        self.status = unknown(&self.key, &self.options, store);
                    }
                    let is_of_a_lock = matches!(error, store::Error::Locked(_));
                    self.cannot_load(error);
                    // A search whose row is locked gets its next turn only after the other
                    // searches. One that is held gets it at once, so a pause is needed.
                    if !is_of_a_lock || is_held {
                        self.pause(tries).await?;
                    }
                }
            }
        }
    }

    /// Loads the stored alerts; `page` is the first page of them.
    async fn load(
        &mut self,
        held: Held,
        mut page: Vec<StoredAlert>,
        tries: &mut Tries<'_>,
    ) -> Result<Tracker, Stopped> {
        let group_by: Arc<[_]> = self.options.group_by.clone().into();
        let mut tracker = Tracker::new(Arc::clone(&group_by), self.options.max_groups);
        let mut unreadable: Option<(Box<str>, u64)> = None;
        loop {
            for alert in &mut page {
                if let Some(fields) = stored_fields(alert) {
                    tracker.load(known(alert, &fields, &group_by));
                    continue;
                }
                let (_, count) = unreadable.get_or_insert_with(|| (alert.id.clone(), 0));
                *count += 1;
                // The changed digest differs from that of the next sighting, so the alert is then
                // stored anew.
                alert.digest = !alert.digest;
                let fields = AlertFields {
                    state: Some((&*alert.state).into()),
                    ..AlertFields::default()
                };
                tracker.load(known(alert, &fields, &group_by));
            }
            let last = page.last().filter(|_| page.len() == store::LOAD_PAGE);
            let Some(last) = last.map(|alert| alert.id.clone()) else {
                self.tell_of_unreadable(unreadable);
                return Ok(tracker);
            };
            page = self.load_page(held, last, tries).await?;
        }
    }

    /// Loads the page of stored alerts after this id, as soon as the store answers.
    async fn load_page(
        &mut self,
        held: Held,
        after: Box<str>,
        tries: &mut Tries<'_>,
    ) -> Result<Vec<StoredAlert>, Stopped> {
        loop {
            self.heartbeat.beat();
            let loading = self.shared.store.load(held, after.clone());
            let read = tokio::select! {
                read = loading => read,
                () = tries.stop.cancelled() => return Err(Stopped),
            };
            match read {
                Ok(page) => return Ok(page),
                Err(error) => {
                    self.cannot_load(error);
                    self.pause(tries).await?;
                }
            }
        }
    }

    /// Resumes the engine from the snapshot of the earlier task, if there is one.
    fn resume(&mut self, engine: &mut Engine) {
        let status = &mut self.status;
        let Some(result) = &mut status.result else {
            return;
        };
        let tracker = engine.tracker();
        if result.group_by != *tracker.group_by() {
            result.group_by = Arc::clone(tracker.group_by());
            result.groups = tracker.groups().into();
        }
        // If the counts differ, the earlier task knew something that the store does not know, such
        // as departures under way. Then the whole result is read again.
        if result.complete
            && result.tracked == tracker.open_count() as u64
            && let Some(read_at) = status.last_full_read
        {
            let ago = Duration::try_from(clock::now().duration_since(read_at)).unwrap_or_default();
            engine.resume(result.total_results, ago, Instant::now());
        }
    }

    fn cannot_load(&mut self, error: store::Error) {
        let PollError { reason, .. } = self.failed(Activity::Loading, &error.into());
        self.metrics.poll_failed(reason);
        self.status.up = Some(false);
        self.status.first_attempt_over = true;
        self.report();
    }

    /// Waits until the next try.
    async fn pause(&self, tries: &mut Tries<'_>) -> Result<(), Stopped> {
        tries.failures += 1;
        let (now, random) = (Instant::now(), fastrand::f64());
        let again = tries
            .grid
            .retry(now, Duration::ZERO, tries.failures, random, None);
        while Instant::now() < again {
            self.heartbeat.beat();
            let pulse = Instant::now() + self.heartbeat.pulse();
            tokio::select! {
                () = tokio::time::sleep_until(again.min(pulse)) => {}
                () = tries.stop.cancelled() => return Err(Stopped),
            }
        }
        Ok(())
    }

    /// Warns about stored alerts that cannot be read. `unreadable`: the first of them, and their
    /// number.
    fn tell_of_unreadable(&self, unreadable: Option<(Box<str>, u64)>) {
        if let Some((alert, alerts)) = unreadable {
            tracing::warn!(
                search = %self.key,
                %alert,
                alerts,
                "the stored form of some alerts cannot be read; each is stored anew when it is next seen"
            );
        }
    }
}

/// Gives a search back, so that other replicas need not wait until the lease on it ends.
pub(in crate::poll) async fn give_back(store: &Store, search: SearchKey, held: Held) {
    if let Err(error) = store.release(held).await {
        tracing::debug!(%search, error = %chain(&error), "could not release the search");
    }
}

/// Returns the snapshot of a search of which nothing is known yet.
pub(in crate::poll) fn unknown(
    key: &SearchKey,
    options: &SearchOptions,
    store: &Store,
) -> SearchStatus {
    SearchStatus {
        polls: VecDeque::with_capacity(HISTORY),
        lease_held: !store.is_shared(),
        ..SearchStatus::unknown(key.clone(), options.interval, options.stale_after)
    }
}

/// Returns the stored fields of an alert, if they can be read and belong to the alert.
fn stored_fields(alert: &StoredAlert) -> Option<AlertFields<'static>> {
    let fields = AlertFields::from_stored(&alert.body).ok()?;
    let is_its_own = reading::compared(&fields.state).eq_ignore_ascii_case(&alert.state);
    is_its_own.then_some(fields)
}

fn known<'a>(
    alert: &'a StoredAlert,
    fields: &'a AlertFields<'a>,
    group_by: &[GroupLabel],
) -> KnownAlert<'a> {
    KnownAlert {
        sighting: Sighting {
            id: &alert.id,
            digest: alert.digest,
            state: reading::compared(&fields.state),
            status: reading::compared(&fields.status),
        },
        ordinal: alert.ordinal,
        created_at: alert.created_at.map(Timestamp::as_second),
        group: reading::group(fields, group_by),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::since_boot,
        health::Health,
        logging::captured,
        poll::{
            engine::Purpose,
            search::{
                asking::{Negotiation, Paging},
                testing::{alert, answer_of, reply, search},
            },
            testing::{open_store, search_options},
        },
        status::{Board, SearchResult},
        store::{Commit, JOURNAL_LIMIT, LOAD_PAGE},
    };

    const WANTED: Paging = Paging {
        page_size: 100,
        sorted: true,
    };

    /// An alert as it is stored, whose state is `told` in its body.
    fn stored(id: usize, state: &str, told: &'static str) -> StoredAlert {
        let fields = AlertFields {
            state: Some(told.into()),
            ..AlertFields::default()
        };
        let mut body = Vec::new();
        fields.write_stored(&mut body);
        StoredAlert {
            id: format!("{id:08}").into(),
            ordinal: 7,
            digest: 1,
            created_at: Some(Timestamp::UNIX_EPOCH),
            state: state.into(),
            body: body.into(),
        }
    }

    /// A search of which the store knows these alerts.
    async fn known(store: &Store, alerts: Vec<StoredAlert>) -> Box<Search> {
        let search = search(store, &Health::default()).await;
        let held = store.take_up(&search.key, clock::now()).await.unwrap().held;
        let commit = Commit {
            upserts: alerts,
            ..Commit::default()
        };
        store.commit(held, commit, clock::now()).await.unwrap();
        store.release(held).await.unwrap();
        search
    }

    /// Waits until the board shows the search as `wanted`, then stops it.
    async fn shown(
        board: &Board,
        key: &SearchKey,
        stop: &CancellationToken,
        wanted: impl Fn(&SearchStatus) -> bool,
    ) -> Arc<SearchStatus> {
        loop {
            if let Some(status) = board.search(key).filter(|status| wanted(status)) {
                stop.cancel();
                return status;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn taken_up(search: Box<Search>) -> Running {
        let running = search.take_up(&CancellationToken::new()).await;
        running.expect("nobody stops it")
    }

    #[tokio::test]
    async fn all_stored_alerts_are_known_however_many_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(folder.path(), JOURNAL_LIMIT).await;
        let all = LOAD_PAGE + 3;
        let alerts = (0..all).map(|id| stored(id, "Critical", "Critical"));
        let mut running = taken_up(known(&store, alerts.collect()).await).await;
        assert_eq!(running.engine.tracker().open_count(), all);
        assert_eq!(running.engine.oldest(), Some(0));
        let last = format!("{:08}", all - 1);
        let known = running.engine.tracker().known_state(&last).unwrap();
        assert_eq!((&*known.state, known.ordinal), ("Critical", 7));
    }

    #[tokio::test]
    async fn that_stored_alerts_cannot_be_read_is_said_with_their_number() {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(folder.path(), JOURNAL_LIMIT).await;
        let alerts = (0..5).map(|id| StoredAlert {
            body: if id % 2 == 1 {
                "?".into()
            } else {
                stored(id, "Ok", "Ok").body
            },
            ..stored(id, "Ok", "Ok")
        });
        let search = known(&store, alerts.collect()).await;
        let (lines, _guard) = captured();
        let running = taken_up(search).await;
        assert_eq!(running.engine.tracker().open_count(), 5);
        let known = running.engine.tracker().known_state("00000001").unwrap();
        assert_eq!(&*known.state, "Ok", "it is stored apart from the rest");
        let lines = lines.lock();
        let said = lines.iter().filter(|line| line.contains("cannot be read"));
        let said: Vec<_> = said.collect();
        assert!(
            matches!(&*said, [line] if line.contains("alert=00000001 alerts=2")),
            "{said:?}"
        );
    }

    /// The state file takes it up in any case, so that nobody else would give it back.
    #[tokio::test]
    async fn a_search_that_stops_while_it_is_taken_up_leaves_what_it_holds_and_has_learned() {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(folder.path(), JOURNAL_LIMIT).await;
        let alerts = (0..=LOAD_PAGE).map(|id| stored(id, "Ok", "Ok"));
        let mut search = known(&store, alerts.collect()).await;
        search.learned.paging = Some(Negotiation::new(WANTED));
        let Store::Sqlite(sqlite) = &store else {
            panic!("another store");
        };
        let stop = CancellationToken::new();
        let at_first_call = stop.clone();
        let slow = sqlite.slowed(Duration::from_millis(1), move || at_first_call.cancel());
        search.shared.store = Store::Sqlite(slow);
        let left = search.take_up(&stop).await.err().expect("it stops");
        assert!(left.held.is_some());
        assert!(left.learned.paging.is_some());
    }

    #[tokio::test]
    async fn a_search_that_stops_leaves_what_it_holds_and_has_learned() {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(folder.path(), JOURNAL_LIMIT).await;
        let search = known(&store, Vec::new()).await;
        let (board, key) = (search.shared.board.clone(), search.key.clone());
        let stop = CancellationToken::new();
        let runs = shown(&board, &key, &stop, |status| status.next_poll.is_some());
        let (left, _) = tokio::join!(search.run(stop.clone()), runs);
        assert!(left.held.is_some());
        assert!(left.learned.paging.is_some());
    }

    #[tokio::test]
    async fn a_search_that_cannot_be_taken_up_is_down_and_is_tried_until_it_is_told_to_stop() {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(folder.path(), JOURNAL_LIMIT).await;
        let mut search = known(&store, Vec::new()).await;
        search.learned.paging = Some(Negotiation::new(WANTED));
        store.close().await;
        let (board, key) = (search.shared.board.clone(), search.key.clone());
        let stop = CancellationToken::new();
        let is_down = shown(&board, &key, &stop, |_| true);
        let both = async { tokio::join!(search.take_up(&stop), is_down) };
        let (taken_up, status) = tokio::time::timeout(Duration::from_secs(10), both)
            .await
            .unwrap();
        let left = taken_up.err().expect("it stops");
        assert!(left.held.is_none());
        assert!(left.learned.paging.is_some());
        assert_eq!(status.up, Some(false));
        assert!(status.first_attempt_over);
        assert!(status.lease_held, "nobody else has the state file");
        assert_eq!(status.last_error.as_ref().unwrap().reason, "store");
    }

    #[tokio::test(start_paused = true)]
    async fn a_search_that_waits_for_its_store_asks_less_often_and_does_not_hang() {
        for is_taken in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let store = open_store(folder.path(), JOURNAL_LIMIT).await;
            let health = Health::default();
            let mut search = search(&store, &health).await;
            let held = store.take_up(&search.key, clock::now()).await.unwrap().held;
            store.close().await;
            let stop = CancellationToken::new();
            let an_hour = async {
                for _ in 0..3600 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    assert_eq!(health.overdue(), []);
                }
                stop.cancel();
            };
            let mut tries = Tries {
                stop: &stop,
                grid: Grid::new(&search.key, search.options.interval, Instant::now()),
                failures: 0,
            };
            let (lines, _guard) = captured();
            let is_stopped = async {
                if is_taken {
                    search
                        .load_page(held, "0".into(), &mut tries)
                        .await
                        .is_err()
                } else {
                    search.take_lease(&mut tries).await.is_err()
                }
            };
            assert!(tokio::join!(is_stopped, an_hour).0);
            // Sixty of them at the plain interval.
            let tried = lines.lock().len();
            assert!((30..40).contains(&tried), "{tried}");
        }
    }

    #[test]
    fn stored_fields_belong_to_an_alert_only_if_they_are_in_its_state() {
        assert!(stored_fields(&stored(1, "Critical", "critical ")).is_some());
        assert!(stored_fields(&stored(1, "Critical", "Warning")).is_none());
    }

    /// A snapshot that says that all alerts are known.
    fn whole() -> SearchResult {
        SearchResult {
            at: clock::now(),
            at_since_boot: since_boot(),
            total_results: 2,
            tracked: 2,
            complete: true,
            group_by: [GroupLabel::Source].into(),
            groups: [].into(),
            oldest: None,
        }
    }

    /// A search of two alerts that takes over this snapshot.
    async fn resumed(
        result: SearchResult,
        read_at: Option<Timestamp>,
    ) -> (Running, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(folder.path(), JOURNAL_LIMIT).await;
        let alerts = (0..2).map(|id| stored(id, "Critical", "Critical"));
        let mut search = known(&store, alerts.collect()).await;
        search.status.result = Some(result);
        search.status.last_full_read = read_at;
        (taken_up(search).await, folder)
    }

    #[tokio::test]
    async fn a_whole_result_is_taken_over_if_the_store_knows_as_many_alerts() {
        let is_taken_over = async |result: SearchResult, is_read: bool| {
            let (running, _folder) = resumed(result, is_read.then(clock::now)).await;
            let result = running.search.status.result.as_ref().unwrap();
            assert!(
                result.group_by.is_empty(),
                "it is grouped as the new task groups"
            );
            assert_eq!(*result.groups, *running.engine.tracker().groups());
            running.engine.is_complete()
        };
        assert!(is_taken_over(whole(), true).await);
        assert!(!is_taken_over(whole(), false).await, "no reading is known");
        let partly = SearchResult {
            complete: false,
            ..whole()
        };
        assert!(!is_taken_over(partly, true).await);
        let more = SearchResult {
            tracked: 3,
            ..whole()
        };
        assert!(!is_taken_over(more, true).await, "one was on its way out");
    }

    #[tokio::test]
    async fn a_result_that_is_taken_over_is_read_again_when_it_would_have_been() {
        for (share_of_interval, is_read) in [(9, false), (11, true)] {
            let ago = search_options("open").full_read_interval * share_of_interval / 10;
            let (mut running, _folder) = resumed(whole(), Some(clock::now() - ago)).await;
            let items = ["00000000", "00000001"].map(|id| alert(id, "Critical"));
            let answer = answer_of(1, items.into(), 2, true);
            drop(running.begin_poll());
            let reply = reply(&running, Purpose::Poll, 1, Ok(answer));
            drop(running.poll_answered(reply).await);
            assert_eq!(running.engine.is_reading(), is_read);
        }
    }
}
