use std::{
    fs::File,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::*;
use crate::store::{
    JournalEvent, StoredAlert,
    conformance::{alert, event, events, key, second},
    left_sinks::captured,
    sqlite::with_suffix,
};

/// A writer without its thread, so that tests can provoke faults on its connection.
struct Bench {
    writer: Writer,
    held: Held,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let mut writer = open(&path).unwrap();
        let (take_up, loaded) = take_up("s");
        let (sinks, _) = set_sinks(&["s"]);
        writer.write(Group {
            writes: vec![take_up, sinks],
            ..Group::default()
        });
        let held = answer(loaded).unwrap().held;
        Self {
            writer,
            held,
            path,
            _folder: folder,
        }
    }

    /// Opens the file anew, as the next process would.
    fn reopen(mut self) -> Self {
        drop(self.writer);
        self.writer = open(&self.path).unwrap();
        self
    }

    fn page(&self) -> Page {
        Page::new(self.writer.files().clone(), Holds::default())
    }

    /// Locks the file, as another program would.
    fn lock(&mut self) -> Connection {
        self.sql("PRAGMA busy_timeout = 10");
        let operator = Connection::open(&self.path).unwrap();
        operator.execute_batch("BEGIN IMMEDIATE").unwrap();
        operator
    }

    /// Lets the file grow by `more` pages.
    fn leave_room_for(&mut self, more: i64) {
        let connection = self.writer.file.connection();
        let pages: i64 = connection
            .pragma_query_value(None, "page_count", |row| row.get(0))
            .unwrap();
        self.sql(&format!("PRAGMA max_page_count = {}", pages + more));
    }

    fn sql(&mut self, sql: &str) {
        let connection = self.writer.file.connection();
        connection.execute_batch(sql).unwrap();
    }

    fn commit(&self, commit: Commit) -> (Write, oneshot::Receiver<Answer<()>>) {
        job(Write::Commit, (self.held, commit, second(2)))
    }

    fn write(&mut self, commit: Commit) -> Answer<()> {
        let (write, reply) = self.commit(commit);
        self.write_all(vec![write]);
        answer(reply)
    }

    fn write_all(&mut self, writes: Vec<Write>) {
        self.writer.write(Group {
            writes,
            ..Group::default()
        });
    }

    /// Does these writes as if they had come through the queue together.
    fn send(&mut self, writes: impl IntoIterator<Item = Write>) {
        let mut group = Group::default();
        for write in writes {
            self.writer.take(Command::Write(write), &mut group);
        }
        self.writer.write(group);
    }

    fn acknowledge(&mut self, position: i64) -> Answer<()> {
        let mut group = Group::default();
        let acknowledged = self.take_acknowledgement(position, &mut group);
        self.writer.write(group);
        answer(acknowledged)
    }

    fn take_acknowledgement(
        &mut self,
        position: i64,
        group: &mut Group,
    ) -> oneshot::Receiver<Answer<()>> {
        let (reply, acknowledged) = oneshot::channel();
        let command = Command::Acknowledge {
            sink: "s".into(),
            position,
            mark: None,
            reply,
        };
        self.writer.take(command, group);
        acknowledged
    }

    fn count(&mut self, table: &str) -> i64 {
        self.writer
            .file
            .connection()
            .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
                row.get(0)
            })
            .unwrap()
    }

    fn pending(&mut self) -> Answer<Batch> {
        self.writer.pending("s", usize::MAX, usize::MAX)
    }

    /// The numbers of the events that wait.
    fn waiting(&mut self) -> Vec<u128> {
        let events = self.pending().unwrap().events;
        events
            .iter()
            .map(|pending| pending.event.event_id.as_u128())
            .collect()
    }
}

fn job<Q, A>(kind: fn(Job<Q, A>) -> Write, request: Q) -> (Write, oneshot::Receiver<Answer<A>>) {
    let (reply, answer) = oneshot::channel();
    (kind(Job::new(request, reply)), answer)
}

fn take_up(search: &str) -> (Write, oneshot::Receiver<Answer<Loaded>>) {
    job(Write::TakeUp, (key("a", "t", search), second(1)))
}

fn set_sinks(names: &[&str]) -> (Write, oneshot::Receiver<Answer<Vec<SinkState>>>) {
    let names = names.iter().map(ToString::to_string).collect();
    job(Write::SetSinks, names)
}

fn open(path: &Path) -> Answer<Writer> {
    Writer::open(path, 1_000_000, Holds::default())
}

fn answer<A>(mut reply: oneshot::Receiver<Answer<A>>) -> Answer<A> {
    reply.try_recv().unwrap()
}

/// A commit of one alert and one event.
fn opened(number: u128) -> Commit {
    Commit {
        upserts: vec![alert(&number.to_string(), 1, 1)],
        ..events(number..number + 1)
    }
}

/// A commit of one event with a body of so many bytes.
fn large(number: u128, length: usize) -> Commit {
    let mut commit = events(number..number + 1);
    commit.events[0].body = vec![b'x'; length].into();
    commit
}

fn backend_error(answer: Answer<()>) -> ErrorCode {
    match answer {
        Err(Error::Backend(error)) => error
            .downcast_ref::<Failed>()
            .unwrap()
            .0
            .sqlite_error_code()
            .unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_group_is_one_transaction() {
    let mut bench = Bench::new();
    let (writes, replies): (Vec<_>, Vec<_>) =
        (1..=50).map(|number| bench.commit(opened(number))).unzip();
    let before = log_bytes(&bench.path);
    bench.write_all(writes);
    let together = log_bytes(&bench.path) - before;
    for reply in replies {
        answer(reply).unwrap();
    }
    let before = log_bytes(&bench.path);
    for number in 51..=100 {
        bench.write(opened(number)).unwrap();
    }
    let alone = log_bytes(&bench.path) - before;
    assert!(together * 10 < alone, "{together} {alone}");
    assert_eq!(bench.waiting(), (1..=100).collect::<Vec<_>>());
}

#[test]
fn what_waits_in_the_queue_shares_a_transaction() {
    let bench = Bench::new();
    let page = bench.page();
    let (commands, queue) = mpsc::channel(50);
    let (writes, replies): (Vec<_>, Vec<_>) =
        (1..=50).map(|number| bench.commit(opened(number))).unzip();
    for write in writes {
        commands.try_send(Command::Write(write)).unwrap();
    }
    drop(commands);
    // Keeps the log from being copied and removed at the end.
    let operator = Connection::open(&bench.path).unwrap();
    operator
        .execute_batch("BEGIN; SELECT count(*) FROM alert")
        .unwrap();
    let before = log_bytes(&bench.path);
    bench.writer.run(queue, &page);
    for reply in replies {
        answer(reply).unwrap();
    }
    let together = log_bytes(&bench.path) - before;
    assert!(together < 50 * 4096, "{together}");
}

fn log_bytes(path: &Path) -> u64 {
    let log = path.with_extension("db-wal");
    std::fs::metadata(log).unwrap().len()
}

#[test]
fn a_group_takes_in_so_many_commands_or_events_and_nothing_behind_the_end() {
    let mut bench = Bench::new();
    let writes_of = |bench: &mut Bench, commits: Vec<Command>| {
        let (commands, mut queue) = mpsc::channel(commits.len());
        for command in commits {
            commands.try_send(command).unwrap();
        }
        let mut group = Group::default();
        bench.writer.fill(&mut group, &mut queue);
        group.writes.len()
    };
    let commit = |bench: &Bench, commit| Command::Write(bench.commit(commit).0);
    let of_events = |bench: &Bench, count, events: u128| -> Vec<_> {
        let some = || Commit {
            events: (0..events).map(event).collect(),
            ..Commit::default()
        };
        (0..count).map(|_| commit(bench, some())).collect()
    };
    let few = of_events(&bench, 100, 1);
    assert_eq!(writes_of(&mut bench, few), 100);
    let many = of_events(&bench, 200, 1);
    assert_eq!(writes_of(&mut bench, many), 128);
    let large = of_events(&bench, 6, 4096);
    assert_eq!(writes_of(&mut bench, large), 4);
    let mut ending = of_events(&bench, 3, 1);
    ending.insert(2, Command::Close(oneshot::channel().0));
    assert_eq!(writes_of(&mut bench, ending), 2);
}

#[test]
fn only_acknowledgements_wait_for_company() {
    let mut bench = Bench::new();
    bench.write(events(1..4)).unwrap();
    assert!(!Group::default().only_acknowledges());
    let mut group = Group::default();
    let _acknowledged = bench.take_acknowledgement(1, &mut group);
    assert!(group.only_acknowledges());
    group.closing = Some(oneshot::channel().0);
    assert!(!group.only_acknowledges());
    group.closing = None;
    group.writes.push(bench.commit(opened(4)).0);
    assert!(!group.only_acknowledges());
}

#[test]
fn what_a_commit_adds_to_the_log_is_not_underestimated() {
    let text = |length| bytes::Bytes::from(vec![b'x'; length]);
    let of_alerts = |numbers: std::ops::Range<u32>, length| Commit {
        upserts: numbers
            .map(|number| StoredAlert {
                body: text(length),
                ..alert(&number.to_string(), 1, 1)
            })
            .collect(),
        ..Commit::default()
    };
    let of_events = |count, length| Commit {
        events: (0..count)
            .map(|number| JournalEvent {
                body: text(length),
                ..event(number)
            })
            .collect(),
        ..Commit::default()
    };
    let departures = Commit {
        departures: (0..900)
            .step_by(30)
            .map(|n| (n.to_string().into(), 2))
            .collect(),
        ..Commit::default()
    };
    let mut bench = Bench::new();
    for commit in [
        of_alerts(0..500, 200),
        of_alerts(500..900, 3000),
        of_alerts(900..905, 50_000),
        departures,
        of_events(500, 700),
        of_events(3, 100_000),
        of_events(4000, 0),
    ] {
        let shape = [
            commit.upserts.len(),
            commit.departures.len(),
            commit.events.len(),
        ];
        // The estimate counts pages for each alert, but neighbouring alerts share pages.
        let at_most = if commit.upserts.is_empty() { 4 } else { 30 };
        let (write, reply) = bench.commit(commit);
        let estimate = write.bytes();
        let before = log_bytes(&bench.path);
        bench.write_all(vec![write]);
        answer(reply).unwrap();
        let added = log_bytes(&bench.path) - before;
        assert!(
            (added..at_most * added).contains(&estimate),
            "{shape:?}: {added} of {estimate}"
        );
    }
    let (release, _) = job(Write::Release, bench.held);
    assert_eq!(release.bytes(), 0);
}

#[test]
fn a_long_log_is_copied_while_commits_go_on() {
    let mut bench = Bench::new();
    let large = |number| large(number, 1024 * 1024);
    let length = |bench: &Bench| std::fs::metadata(&bench.path).unwrap().len();
    for number in 1..=10 {
        bench.write(large(number)).unwrap();
    }
    assert_eq!(length(&bench), 4096, "ten MiB are no reason yet");
    for number in 11..=20 {
        bench.write(large(number)).unwrap();
    }
    let copied = || {
        thread::sleep(Duration::from_millis(1));
        length(&bench) >= 15 * 1024 * 1024
    };
    assert!((0..10_000).any(|_| copied()), "{}", length(&bench));
    assert_eq!(bench.waiting(), (1..=20).collect::<Vec<_>>());
    // Once the whole log is copied, it begins anew and is cut back to its maximum length.
    assert!(log_bytes(&bench.path) > 20 * 1024 * 1024);
    assert!(bench.writer.file.reuse_log());
    bench.write(opened(21)).unwrap();
    assert_eq!(log_bytes(&bench.path), 16 * 1024 * 1024);
}

#[test]
fn one_write_that_fails_does_not_spoil_the_others_of_its_group() {
    let mut bench = Bench::new();
    bench.sql(
        "CREATE TEMP TRIGGER fault BEFORE INSERT ON main.journal WHEN NEW.at = 1003000000
         BEGIN SELECT RAISE(ABORT, 'a fault'); END",
    );
    assert_eq!(event(3).at, second(1003));
    bench.write(opened(0)).unwrap();
    let (writes, replies): (Vec<_>, Vec<_>) =
        (1..=5).map(|number| bench.commit(opened(number))).unzip();
    let mut group = Group {
        writes,
        ..Group::default()
    };
    let acknowledged = bench.take_acknowledgement(1, &mut group);
    bench.writer.write(group);
    answer(acknowledged).unwrap();
    let failed: Vec<_> = replies
        .into_iter()
        .map(|reply| answer(reply).is_err())
        .collect();
    assert_eq!(failed, [false, false, true, false, false]);
    assert_eq!(bench.waiting(), [1, 2, 4, 5]);
    assert_eq!(bench.count("alert"), 5);
    bench.sql("DROP TRIGGER fault");
    bench.write(opened(3)).unwrap();
    assert_eq!(bench.waiting(), [1, 2, 4, 5, 3]);
}

#[test]
fn a_full_disk_takes_nothing_in_and_loses_nothing() {
    let mut bench = Bench::new();
    bench.write(opened(1)).unwrap();
    bench.leave_room_for(4);
    let mut journalled = bench.writer.journalled();
    journalled.mark_unchanged();
    // The small commit finds room although it shares a group with one that does not.
    let (large, large_reply) = bench.commit(Commit {
        upserts: vec![alert("large", 1, 1)],
        ..events(100..3000)
    });
    let (small, small_reply) = bench.commit(opened(2));
    bench.write_all(vec![large, small]);
    assert_eq!(backend_error(answer(large_reply)), ErrorCode::DiskFull);
    answer(small_reply).unwrap();
    assert_eq!(bench.waiting(), [1, 2]);
    assert_eq!(bench.count("alert"), 2);
    assert_eq!(*journalled.borrow_and_update(), 2);

    let refused = bench.write(events(100..3000));
    assert_eq!(backend_error(refused), ErrorCode::DiskFull);
    assert!(!journalled.has_changed().unwrap());
    // Delivery goes on and makes room.
    bench.acknowledge(2).unwrap();
    assert_eq!(bench.count("journal"), 0);

    bench.sql("PRAGMA max_page_count = 1000000");
    bench.write(events(100..3000)).unwrap();
    assert_eq!(bench.waiting(), (100..3000).collect::<Vec<_>>());
}

#[test]
fn a_lock_of_another_program_fails_the_group_once_and_is_got_over() {
    let mut bench = Bench::new();
    let waits = Arc::new(AtomicUsize::new(0));
    let waited = Arc::clone(&waits);
    let give_up = move |_| {
        waited.fetch_add(1, Ordering::Relaxed);
        false
    };
    bench
        .writer
        .file
        .connection()
        .busy_handler(Some(give_up))
        .unwrap();
    let operator = Connection::open(&bench.path).unwrap();
    operator.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (writes, replies): (Vec<_>, Vec<_>) =
        (1..=3).map(|number| bench.commit(opened(number))).unzip();
    bench.write_all(writes);
    for reply in replies {
        assert_eq!(backend_error(answer(reply)), ErrorCode::DatabaseBusy);
    }
    assert_eq!(waits.load(Ordering::Relaxed), 1);
    // Without anything to write, the lock is not waited for.
    bench.write_all(Vec::new());
    assert_eq!(waits.load(Ordering::Relaxed), 1);
    operator.execute_batch("ROLLBACK").unwrap();
    bench.write(opened(1)).unwrap();
    assert_eq!(bench.waiting(), [1]);
}

#[test]
fn what_was_delivered_is_removed_step_by_step() {
    let mut bench = Bench::new();
    for number in 0..3 {
        bench
            .write(events(number * 10_000 + 1..(number + 1) * 10_000 + 1))
            .unwrap();
    }
    bench.acknowledge(25_000).unwrap();
    assert_eq!(bench.count("journal"), 30_000 - 8192);
    assert_eq!(bench.waiting(), (25_001..=30_000).collect::<Vec<_>>());

    // The rest is removed while there are no commands. If that fails, it is not tried again at once.
    bench.writer.check_interval = Duration::from_secs(3600);
    bench.writer.faults = 3;
    for faults in [2, 0] {
        let (commands, mut queue) = mpsc::channel(1);
        let closing = thread::spawn(move || {
            // Long enough for all steps on a busy machine.
            thread::sleep(Duration::from_secs(2));
            drop(commands);
        });
        assert!(bench.writer.next(&mut queue).is_none());
        closing.join().unwrap();
        assert_eq!(bench.writer.faults, faults);
        bench.writer.faults = 0;
    }
    assert_eq!(bench.count("journal"), 5_000);
    assert_eq!(bench.waiting(), (25_001..=30_000).collect::<Vec<_>>());
}

#[test]
fn without_a_sink_nothing_is_journalled() {
    let mut bench = Bench::new();
    bench.set_sinks(&[]);
    // The bench's sink has left, and is kept for a while.
    bench.writer.journal.kept_for = Duration::ZERO;
    bench.writer.transaction(&mut []).unwrap();
    let mut journalled = bench.writer.journalled();
    journalled.mark_unchanged();
    bench.write(opened(1)).unwrap();
    assert_eq!(bench.count("alert"), 1);
    assert!(!journalled.has_changed().unwrap());
}

#[test]
fn a_journal_that_holds_more_than_its_limit_of_today_takes_alerts_but_no_events() {
    let mut bench = Bench::new();
    bench.write(events(1..4)).unwrap();
    bench.writer.journal = Journal::load(bench.writer.file.reader(), 2).unwrap();
    let opened = opened(4);
    let alerts = Commit {
        events: Vec::new(),
        ..opened.clone()
    };
    bench.write(alerts).unwrap();
    bench.set_sinks(&["s"]);
    let refused = bench.write(opened);
    assert!(matches!(refused, Err(Error::JournalFull { limit: 2, .. })));
}

#[test]
fn what_is_delivered_after_a_restart_is_removed() {
    let mut bench = Bench::new();
    for number in 1..=4 {
        bench.write(events(number..number + 1)).unwrap();
    }
    bench.acknowledge(2).unwrap();
    let mut bench = bench.reopen();
    bench.acknowledge(3).unwrap();
    assert_eq!(bench.count("journal"), 1);
    assert_eq!(bench.waiting(), [4]);
}

#[test]
fn an_acknowledgement_that_could_not_be_stored_counts_and_is_stored_with_the_next_write() {
    let mut bench = Bench::new();
    bench.write(events(1..4)).unwrap();
    let operator = bench.lock();
    assert_eq!(backend_error(bench.acknowledge(3)), ErrorCode::DatabaseBusy);
    // The sink has delivered these events and is not given them again.
    assert_eq!(bench.waiting(), [0; 0]);
    operator.execute_batch("ROLLBACK").unwrap();
    bench.write(Commit::default()).unwrap();
    let stored = |sql| -> i64 { operator.query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(stored("SELECT position FROM sink"), 3);
    assert_eq!(stored("SELECT count(*) FROM journal"), 0);
}

#[test]
fn no_more_than_one_batch_is_given_while_its_acknowledgement_cannot_be_stored() {
    let mut bench = Bench::new();
    bench.write(events(1..4)).unwrap();
    let operator = bench.lock();
    assert_eq!(backend_error(bench.acknowledge(2)), ErrorCode::DatabaseBusy);
    for _ in 0..2 {
        let refused = bench.pending().map(drop);
        assert_eq!(backend_error(refused), ErrorCode::DatabaseBusy);
    }
    operator.execute_batch("ROLLBACK").unwrap();
    assert_eq!(bench.waiting(), [3]);
    assert_eq!(bench.reopen().waiting(), [3]);
}

#[test]
fn an_acknowledgement_that_could_not_be_stored_is_stored_at_the_end() {
    let mut bench = Bench::new();
    bench.write(events(1..4)).unwrap();
    bench.writer.faults = 2;
    assert!(bench.acknowledge(2).is_err());
    let page = bench.page();
    let (_, queue) = mpsc::channel(1);
    bench.writer.run(queue, &page);
    bench.writer = open(&bench.path).unwrap();
    assert_eq!(bench.waiting(), [3]);
}

#[test]
fn events_that_share_a_row_are_acknowledged_one_by_one() {
    let mut bench = Bench::new();
    let at = second(7);
    let events = (1..=4).map(|number| JournalEvent {
        at,
        ..event(number)
    });
    let commit = Commit {
        events: events.collect(),
        ..Commit::default()
    };
    bench.write(commit).unwrap();
    assert_eq!(bench.count("journal"), 1);
    for number in 1..=4 {
        assert_eq!(bench.waiting(), (number..=4).collect::<Vec<_>>());
        bench = bench.reopen();
        assert_eq!(bench.waiting(), (number..=4).collect::<Vec<_>>());
        bench.acknowledge(number as i64).unwrap();
    }
    assert_eq!(bench.waiting(), [0; 0]);
    assert_eq!(bench.count("journal"), 0);
}

#[test]
fn a_read_is_answered_before_the_writes_that_it_waited_with() {
    let mut bench = Bench::new();
    let (commit, _reply) = bench.commit(opened(1));
    let (reply, batch) = oneshot::channel();
    let read = Command::Read(Box::new(|writer| {
        reply.send(writer.pending("s", 9, 9)).ok();
    }));
    let mut group = Group::default();
    bench.writer.take(Command::Write(commit), &mut group);
    bench.writer.take(read, &mut group);
    assert_eq!(answer(batch).unwrap().events, []);
    bench.writer.write(group);
    assert_eq!(bench.waiting(), [1]);
}

#[test]
fn a_sink_whose_place_is_damaged_gets_all_that_is_in_the_journal() {
    for damaged in ["4098", "-4098"] {
        let mut bench = Bench::new();
        bench.write(events(1..4)).unwrap();
        bench.sql(&format!(
            "UPDATE sink SET position = {damaged}, mark = x'01'"
        ));
        let (lines, _logging) = crate::logging::captured();
        let mut bench = bench.reopen();
        let lines = lines.lock().clone();
        let told = format!(" sink=s position={damaged} ");
        assert!(lines.len() == 1 && lines[0].contains(&told), "{lines:?}");
        assert_eq!(bench.waiting(), [1, 2, 3]);
        let (sinks, states) = set_sinks(&["s"]);
        bench.write_all(vec![sinks]);
        assert_eq!(answer(states).unwrap(), [SinkState { mark: None }]);
        bench.acknowledge(3).unwrap();
        assert_eq!(bench.reopen().waiting(), [0; 0]);
    }
}

#[test]
fn a_lock_whose_file_is_removed_while_nothing_is_stored_is_taken_again() {
    let mut bench = Bench::new();
    bench.writer.check_interval = Duration::from_millis(10);
    let page = bench.page();
    let (commands, queue) = mpsc::channel(1);
    let writer = thread::spawn(move || bench.writer.run(queue, &page));
    let lock = with_suffix(&bench.path, ".lock");
    std::fs::remove_file(&lock).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::fs::read(&lock).unwrap_or_default().is_empty() {
        assert!(Instant::now() < deadline, "nobody looks");
        // Commands that only read do not delay the look at the files.
        let read = Command::Read(Box::new(|_| {}));
        commands.blocking_send(read).unwrap();
    }
    let second = open(&bench.path);
    let problem = second.unwrap_err().to_string();
    assert!(problem.contains("another exporter"), "{problem}");
    drop(commands);
    writer.join().unwrap();
}

#[test]
fn while_nothing_is_stored_it_is_told_that_a_file_was_removed_or_cut_short() {
    type Harm = fn(&Path);
    let cases: [(Harm, &str); 2] = [
        (
            |path| std::fs::remove_file(path).unwrap(),
            "removed or replaced",
        ),
        (
            |path| {
                let log = File::options().write(true).open(path).unwrap();
                log.set_len(log.metadata().unwrap().len() - 1).unwrap();
            },
            "cut short",
        ),
    ];
    for (harm, told) in cases {
        let mut bench = Bench::new();
        bench.write(opened(1)).unwrap();
        harm(&with_suffix(&bench.path, "-wal"));
        bench.writer.check_interval = Duration::ZERO;
        let (lines, _logging) = crate::logging::captured();
        let (_commands, mut queue) = mpsc::channel(1);
        assert!(bench.writer.wait(&mut queue).is_pending());
        let lines = lines.lock().clone();
        assert!(lines.len() == 1 && lines[0].contains(told), "{lines:?}");
    }
}

#[test]
fn nothing_is_written_to_a_state_that_was_lost_to_another_exporter() {
    let mut bench = Bench::new();
    bench.write(opened(1)).unwrap();
    let page = bench.page();
    std::fs::remove_file(with_suffix(&bench.path, ".lock")).unwrap();
    let mut second = open(&bench.path).unwrap();
    let lost = bench.writer.lost();
    let (commands, mut queue) = mpsc::channel(9);
    let (write, reply) = bench.commit(opened(2));
    commands.blocking_send(Command::Write(write)).unwrap();
    let (acknowledge, acknowledged) = oneshot::channel();
    let command = Command::Acknowledge {
        sink: "s".into(),
        position: 1,
        mark: None,
        reply: acknowledge,
    };
    commands.blocking_send(command).unwrap();
    let before =
        ["", "-wal"].map(|suffix| std::fs::read(with_suffix(&bench.path, suffix)).unwrap());
    // A sink whose time is over asks for no command.
    bench.writer.journal.set_known_sinks(&[], Duration::ZERO);
    bench.writer.journal.kept_for = Duration::ZERO;
    bench.writer.check_interval = Duration::ZERO;
    assert!(bench.writer.wait(&mut queue).is_pending());
    bench.writer.run(queue, &page);
    assert!(reply.blocking_recv().is_err(), "it was answered");
    assert!(acknowledged.blocking_recv().is_err(), "it was answered");
    assert!(commands.is_closed());
    assert!(matches!(&*lost.borrow(), Some(Error::Lost { .. })));
    let after = ["", "-wal"].map(|suffix| std::fs::read(with_suffix(&bench.path, suffix)).unwrap());
    assert!(before == after, "it was written to");
    second.transaction(&mut []).unwrap();
}

#[test]
fn a_log_that_was_cut_short_is_not_copied_over_what_is_whole() {
    for is_stored_to in [false, true] {
        let mut bench = Bench::new();
        bench.write(opened(1)).unwrap();
        assert!(bench.writer.file.reuse_log());
        bench.write(opened(2)).unwrap();
        let before = std::fs::read(&bench.path).unwrap();
        let log = File::create(with_suffix(&bench.path, "-wal")).unwrap();
        if is_stored_to {
            bench.write(events(3..9)).ok();
            assert!(log.metadata().unwrap().len() > 0);
            assert!(!bench.writer.file.reuse_log());
            bench.writer.file.save_room();
            let reader = bench.writer.file.reader();
            let copied_at = reader.pragma_query_value(None, "wal_autocheckpoint", |row| row.get(0));
            assert_eq!(copied_at, Ok(0), "SQLite would copy it by itself");
        }
        let Bench {
            writer,
            path,
            held,
            _folder,
        } = bench;
        writer.file.close();
        assert!(std::fs::read(&path).unwrap() == before, "it was written to");
        let writer = open(&path).unwrap();
        let mut bench = Bench {
            writer,
            path,
            held,
            _folder,
        };
        assert_eq!(bench.waiting(), [1]);
    }
}

#[test]
fn a_log_that_is_copied_and_emptied_by_another_program_is_not_taken_for_one_that_was_cut_short() {
    let mut bench = Bench::new();
    let operator = Connection::open(&bench.path).unwrap();
    for number in 1..4 {
        bench.write(opened(number)).unwrap();
        operator
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .unwrap();
        assert_eq!(
            with_suffix(&bench.path, "-wal").metadata().unwrap().len(),
            0
        );
        bench.writer.check_files();
        assert!(bench.writer.file.reuse_log());
    }
    assert_eq!(bench.reopen().waiting(), [1, 2, 3]);
}

impl Bench {
    fn set_sinks(&mut self, names: &[&str]) {
        let (sinks, states) = set_sinks(names);
        self.write_all(vec![sinks]);
        answer(states).unwrap();
    }
}

/// What was logged about sinks that have left: a phrase of each message, and its number of events.
fn said(lines: &parking_lot::Mutex<Vec<String>>) -> Vec<(&'static str, u64)> {
    let mut lines = lines.lock();
    let said = lines.drain(..).map(|line| {
        assert!(
            line.contains("level=warn") && line.contains("sink=s "),
            "{line}"
        );
        let what = ["has left the configuration;", "in time", "at once"];
        let what = what.into_iter().find(|what| line.contains(what)).unwrap();
        let (_, events) = line.split_once(" events=").unwrap();
        let events = events.split_whitespace().next().unwrap();
        (what, events.parse().unwrap())
    });
    said.collect()
}

#[test]
fn a_sink_that_has_left_is_kept_until_its_time_is_over_and_both_is_told() {
    let mut bench = Bench::new();
    let (lines, _logging) = captured();
    bench.write(events(1..4)).unwrap();
    bench.acknowledge(1).unwrap();
    bench.set_sinks(&["other"]);
    assert_eq!(said(&lines), [("has left the configuration;", 2)]);
    // Its last delivery ends only now.
    bench.acknowledge(2).unwrap();
    bench.write(events(4..5)).unwrap();
    let mut bench = bench.reopen();
    bench.set_sinks(&["other", "s"]);
    assert_eq!(said(&lines), []);
    assert_eq!(bench.waiting(), [3, 4]);

    bench.set_sinks(&["other"]);
    // The same message as a moment ago is not printed again.
    assert_eq!(said(&lines), []);
    bench.writer.journal.acknowledge("other", i64::MAX, None);
    // The sink is given up although no command comes.
    bench.writer.journal.kept_for = Duration::ZERO;
    bench.writer.check_interval = Duration::ZERO;
    let (_commands, mut queue) = mpsc::channel(1);
    assert!(bench.writer.wait(&mut queue).is_pending());
    assert_eq!(said(&lines), [("in time", 2)]);
    assert_eq!((bench.count("sink"), bench.count("journal")), (1, 0));
    bench.set_sinks(&["s"]);
    assert_eq!(bench.waiting(), [0; 0]);
}

#[test]
fn of_a_sink_that_leaves_without_anything_to_wait_for_nothing_is_said() {
    let mut bench = Bench::new();
    let (lines, _logging) = captured();
    bench.write(events(1..4)).unwrap();
    bench.acknowledge(3).unwrap();
    bench.set_sinks(&["other"]);
    bench.write(events(4..6)).unwrap();
    bench.writer.journal.kept_for = Duration::ZERO;
    bench.write(events(6..7)).unwrap();
    assert_eq!(bench.count("sink"), 1);
    assert_eq!(said(&lines), []);
}

#[test]
fn a_sink_that_has_left_gives_its_room_on_a_full_disk_to_what_is_new() {
    let mut bench = Bench::new();
    let (lines, _logging) = captured();
    bench.write(events(1..3000)).unwrap();
    bench.leave_room_for(2);
    assert!(bench.write(events(3000..3500)).is_err());
    bench.set_sinks(&["other"]);
    assert_eq!(said(&lines), [("has left the configuration;", 2999)]);
    bench.write(events(3000..3500)).unwrap();
    assert_eq!(said(&lines), [("at once", 2999)]);
}

#[test]
fn a_search_for_which_there_is_no_room_costs_a_sink_that_holds_hardly_anything_nothing() {
    let mut bench = Bench::new();
    bench.write(events(1..4)).unwrap();
    bench.set_sinks(&["other"]);
    bench.writer.faults = 3;
    let (take_up, loaded) = take_up("new");
    bench.write_all(vec![take_up]);
    assert!(answer(loaded).is_err());
    assert_eq!(bench.count("sink"), 2);
}

#[test]
fn a_fault_that_passes_costs_no_sink_that_has_left_anything_nor_does_one_that_it_can_hardly_mend() {
    // The sink that left holds many events in the first case, very few in the second.
    for (held, faults) in [(3000, 2), (10, 3)] {
        let mut bench = Bench::new();
        let (lines, _logging) = captured();
        bench.write(events(1..held)).unwrap();
        bench.set_sinks(&["other"]);
        said(&lines);
        // The faults hit the group's transaction, the write's own one, and the next try.
        bench.writer.faults = faults;
        let is_over = bench.write(opened(held)).is_ok();
        assert_eq!(is_over, faults == 2);
        bench.writer.faults = 0;
        assert_eq!(said(&lines), []);
        bench.set_sinks(&["other", "s"]);
        let last = if is_over { held + 1 } else { held };
        assert_eq!(bench.waiting(), (1..last).collect::<Vec<_>>());
    }
}

#[test]
fn an_acknowledgement_that_cannot_be_stored_costs_no_sink_that_has_left_anything() {
    let mut bench = Bench::new();
    let (lines, _logging) = captured();
    bench.set_sinks(&["s", "other"]);
    bench.write(events(1..3000)).unwrap();
    bench.writer.journal.acknowledge("other", 2000, None);
    bench.set_sinks(&["s"]);
    lines.lock().clear();
    bench.writer.journal.acknowledge("s", 2999, None);
    bench.writer.faults = 2;
    assert!(bench.acknowledge(2999).is_err());
    assert_eq!(*lines.lock(), [""; 0]);
    assert_eq!(bench.count("sink"), 2);
}

#[test]
fn one_that_left_before_the_start_is_told_with_what_came_since_and_only_as_the_most_there_may_be() {
    let mut bench = Bench::new();
    let (lines, _logging) = captured();
    bench.write(events(1..4)).unwrap();
    bench.acknowledge(3).unwrap();
    bench.set_sinks(&["other"]);
    bench.write(events(4..9)).unwrap();
    let mut bench = bench.reopen();
    bench.writer.journal.acknowledge("other", i64::MAX, None);
    for given_up in [false, true] {
        if given_up {
            bench.writer.journal.kept_for = Duration::ZERO;
            bench.writer.transaction(&mut []).unwrap();
        } else {
            bench.set_sinks(&["other"]);
        }
        let line = &lines.lock()[0];
        let said = |text| line.contains(text);
        assert!(
            said(" events_at_most=5") && said("up to so many") && !said(" events="),
            "{line}"
        );
    }
}

#[test]
fn a_sink_that_has_left_is_not_given_up_where_that_makes_no_room() {
    let mut bench = Bench::new();
    let (lines, _logging) = captured();
    bench.write(events(1..4)).unwrap();
    bench.set_sinks(&["other"]);
    assert_eq!(said(&lines), [("has left the configuration;", 3)]);
    bench.leave_room_for(4);
    let (large, large_reply) = bench.commit(events(100..3000));
    let (small, small_reply) = bench.commit(opened(4));
    bench.write_all(vec![large, small]);
    assert_eq!(backend_error(answer(large_reply)), ErrorCode::DiskFull);
    answer(small_reply).unwrap();
    assert_eq!(said(&lines), []);
    bench.set_sinks(&["other", "s"]);
    assert_eq!(bench.waiting(), [1, 2, 3, 4]);
}

#[test]
fn what_a_sink_that_has_left_holds_alone_is_counted_in_bytes() {
    let mut bench = Bench::new();
    let large = |number| large(number, 10_000);
    for number in 1..=3 {
        bench.write(large(number)).unwrap();
    }
    bench.set_sinks(&["other"]);
    bench.write(large(4)).unwrap();
    let held = |bench: &Bench| {
        let journal = &bench.writer.journal;
        journal
            .bytes_held_by_left(bench.writer.file.reader())
            .unwrap()
    };
    assert!((30_000..30_300).contains(&held(&bench)), "{}", held(&bench));
    bench.writer.journal.acknowledge("other", 4, None);
    assert!((40_000..40_400).contains(&held(&bench)), "{}", held(&bench));
}

#[test]
fn only_what_tells_of_no_room_costs_a_sink_that_has_left() {
    for (code, is_no_room) in [
        (ffi::SQLITE_FULL, true),
        (ffi::SQLITE_IOERR_WRITE, true),
        (ffi::SQLITE_IOERR_SHMSIZE, true),
        (ffi::SQLITE_IOERR_FSYNC, false),
        (ffi::SQLITE_IOERR_READ, false),
        (ffi::SQLITE_IOERR_LOCK, false),
        (ffi::SQLITE_BUSY, false),
    ] {
        let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
        assert_eq!(finds_no_room(&error), is_no_room, "{code}");
    }
    assert!(!finds_no_room(&rusqlite::Error::QueryReturnedNoRows));
}

#[test]
fn sinks_that_are_all_known_are_answered_though_nothing_can_be_stored() {
    let mut bench = Bench::new();
    bench.write(events(1..4)).unwrap();
    bench.set_sinks(&["s", "other"]);
    bench
        .writer
        .journal
        .acknowledge("s", 2, Some(b"mark".to_vec()));
    let operator = bench.lock();
    let set = |bench: &mut Bench, names: &[&str]| {
        let (sinks, states) = set_sinks(names);
        bench.send([sinks]);
        answer(states)
    };
    let mark = SinkState {
        mark: Some(b"mark".to_vec()),
    };
    let (lines, _logging) = captured();
    for names in [&["other", "s"][..], &["other"], &["s", "other"]] {
        let states = set(&mut bench, names).unwrap();
        assert_eq!(states.len(), names.len());
        let place = names.iter().position(|name| *name == "s");
        assert!(
            place.is_none_or(|place| states[place] == mark),
            "{states:?}"
        );
    }
    assert_eq!(said(&lines), [("has left the configuration;", 1)]);
    assert!(set(&mut bench, &["s", "new"]).is_err());
    operator.execute_batch("ROLLBACK").unwrap();
    assert_eq!(bench.waiting(), [3]);
}

#[test]
fn of_the_lists_of_sinks_in_a_group_the_last_one_counts() {
    let mut bench = Bench::new();
    bench.send([set_sinks(&["s", "new"]).0, set_sinks(&["s"]).0]);
    let journal = &bench.writer.journal;
    assert!(journal.backlog(bench.writer.file.reader(), "new").is_none());
}

#[test]
fn what_cannot_be_stored_keeps_no_search_held() {
    let mut bench = Bench::new();
    let row = bench.held.row;
    let holds = bench.writer.holds.clone();
    let operator = bench.lock();
    // A release is served at once, and also behind a commit that was sent before it.
    for commits in [0, 1] {
        let (taken_up, loaded) = take_up("s");
        operator.execute_batch("ROLLBACK").unwrap();
        bench.send([taken_up]);
        bench.held = answer(loaded).unwrap().held;
        assert!(holds.is_held(bench.held));
        operator.execute_batch("BEGIN IMMEDIATE").unwrap();
        let (first, replies): (Vec<_>, Vec<_>) =
            (0..commits).map(|_| bench.commit(opened(1))).unzip();
        let (released, mut reply) = job(Write::Release, bench.held);
        let mut group = Group::default();
        for write in first.into_iter().chain([released]) {
            bench.writer.take(Command::Write(write), &mut group);
        }
        let is_served = reply.try_recv().is_ok();
        assert_eq!(is_served, commits == 0);
        bench.writer.write(group);
        for reply in replies {
            assert_eq!(backend_error(answer(reply)), ErrorCode::DatabaseBusy);
        }
        assert!(is_served || answer(reply).is_ok());
        assert!(!holds.holds_row(row), "after {commits} commits");
    }
    operator.execute_batch("ROLLBACK").unwrap();

    // A search is not held either if the transaction fails at its end or the caller has gone away.
    bench.sql(
        "PRAGMA foreign_keys = ON;
         CREATE TABLE parent (id INTEGER PRIMARY KEY);
         CREATE TABLE child (id REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
         CREATE TRIGGER fail AFTER INSERT ON search BEGIN INSERT INTO child VALUES (1); END",
    );
    let (taken_up, loaded) = take_up("new");
    bench.send([taken_up]);
    assert!(answer(loaded).is_err());
    let (taken_up, loaded) = take_up("s");
    drop(loaded);
    bench.send([taken_up]);
    assert!((1..9).all(|row| !holds.holds_row(row)));
}

#[test]
fn what_is_sent_behind_a_search_that_is_given_back_is_refused() {
    let mut bench = Bench::new();
    let (first, done) = bench.commit(opened(1));
    let (released, given_back) = job(Write::Release, bench.held);
    let (late, refused) = bench.commit(opened(2));
    bench.send([first, released, late]);
    answer(done).unwrap();
    answer(given_back).unwrap();
    assert!(matches!(answer(refused), Err(Error::LeaseLost)));
    assert_eq!(bench.waiting(), [1]);
}

#[test]
fn whoever_watches_what_waits_hears_of_what_somebody_has_removed() {
    let mut bench = Bench::new();
    bench.write(events(1..4)).unwrap();
    let mut journalled = bench.writer.journalled();
    journalled.mark_unchanged();
    assert_eq!(bench.waiting(), [1, 2, 3]);
    assert!(!journalled.has_changed().unwrap());
    for (removed, left) in [("last = 1", &[2, 3][..]), ("true", &[])] {
        bench.sql(&format!("DELETE FROM journal WHERE {removed}"));
        assert_eq!(bench.waiting(), left);
        assert!(journalled.has_changed().unwrap());
        journalled.mark_unchanged();
        assert_eq!(bench.waiting(), left);
        assert!(!journalled.has_changed().unwrap());
    }
}
