use std::{
    io::{self, Read as _},
    os::fd::OwnedFd,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use jiff::Timestamp;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{fuzzing::key, *};
use crate::{
    identity::EventKind,
    logging::captured,
    record::{self, AlertFields, Happening, Record},
    store::{Commit, Held, JournalEvent, Pending},
};

/// More time than anything takes, also on a busy machine.
const TIME: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Counts {
    delivered: AtomicU64,
    errors: AtomicU64,
    rejected: AtomicU64,
}

impl Observer for Counts {
    fn sink_delivered(&self, _: &str, events: u64) {
        self.delivered.fetch_add(events, Ordering::Relaxed);
    }
    fn sink_error(&self, _: &str) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }
    fn sink_rejected(&self, _: &str, events: u64) {
        self.rejected.fetch_add(events, Ordering::Relaxed);
    }
}

/// A store with a search that journals events.
struct Journal {
    folder: TempDir,
    store: Store,
    held: Held,
    board: Board,
    counts: Arc<Counts>,
    events: u32,
}

impl Journal {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).await;
        let loaded = store.take_up(&key(), now()).await.unwrap();
        Self {
            folder,
            store,
            held: loaded.held,
            board: Board::default(),
            counts: Arc::default(),
            events: 0,
        }
    }

    async fn start(&self, sinks: Vec<SinkOptions>) -> Delivery {
        self.start_observed(sinks, Arc::clone(&self.counts) as _)
            .await
    }

    async fn start_observed(
        &self,
        sinks: Vec<SinkOptions>,
        observer: Arc<dyn Observer>,
    ) -> Delivery {
        Delivery::start(self.store.clone(), sinks, self.board.clone(), observer)
            .await
            .unwrap()
    }

    /// What the board says is wrong with a sink.
    fn error(&self, sink: &str) -> Option<String> {
        self.board.sinks()[sink].error.clone()
    }

    async fn journal(&mut self, count: u32) {
        let events = (self.events..self.events + count).map(event).collect();
        self.events += count;
        let commit = Commit {
            events,
            ..Commit::default()
        };
        self.store.commit(self.held, commit, now()).await.unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str) -> SinkOptions {
        file_sink(name, self.path(name))
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let content = std::fs::read_to_string(self.path(name)).unwrap_or_default();
        content.lines().map(str::to_owned).collect()
    }

    /// The JSON lines of the events from number `from` up to, but without, `to`.
    fn expected(from: u32, to: u32) -> Vec<String> {
        (from..to)
            .map(|number| String::from_utf8(event(number).body.to_vec()).unwrap())
            .collect()
    }

    async fn until(&self, what: &str, done: impl Fn() -> bool) {
        let waiting = async {
            while !done() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(TIME, waiting).await.is_err() {
            panic!("not in time: {what}; {:?}", self.board.sinks());
        }
    }

    /// Waits until `backlog` events wait for a sink, and the board says so.
    async fn until_backlog(&self, sink: &str, backlog: u64) {
        let waiting = async {
            while self.store.backlog(sink).await.unwrap().events != backlog {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(TIME, waiting).await;
        assert!(waited.is_ok(), "{sink} has no backlog of {backlog}");
        self.until(&format!("a backlog of {backlog}"), || {
            self.board.sinks()[sink].backlog == Some(backlog)
        })
        .await;
    }
}

async fn open(folder: &Path) -> Store {
    let options = store::Options::Sqlite {
        path: folder.join("state.db"),
        journal_limit: store::JOURNAL_LIMIT,
    };
    Store::open(&options).await.unwrap()
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn event(number: u32) -> JournalEvent {
    let options = record::Options {
        events: EventKind::ALL.into(),
        include_raw: false,
        max_description_length: 4096,
    };
    let happening = Happening {
        kind: EventKind::Opened,
        ordinal: 1,
        alert_id: &number.to_string(),
        previous_state: None,
        previous_status: None,
        reason: None,
        fields: AlertFields {
            state: Some("Critical".into()),
            message: Some(format!("alert {number}").into()),
            ..AlertFields::default()
        },
        raw: None,
    };
    let key = key();
    journalled(&Record::new(now(), &key, happening, &options))
}

fn file_sink(name: &str, path: PathBuf) -> SinkOptions {
    SinkOptions {
        name: name.into(),
        target: Target::File {
            path,
            format: Format::Json,
        },
    }
}

/// An event with this record, as it waits in the journal.
pub(super) fn pending(record: &Record<'_>) -> Pending {
    Pending {
        position: 1,
        event: journalled(record),
    }
}

fn journalled(record: &Record<'_>) -> JournalEvent {
    JournalEvent {
        event_id: record.event_id,
        at: record.timestamp,
        body: Bytes::from(record.to_json()),
    }
}

/// The options of a sink that sends to `endpoint`.
pub(super) fn otlp(endpoint: impl Into<String>, timeout: Duration) -> OtlpOptions {
    OtlpOptions {
        endpoint: endpoint.into(),
        headers: BTreeMap::new(),
        gzip: true,
        timeout,
    }
}

/// Adds a sink for standard output that writes to `fd` instead, as in a process that has not
/// written to it yet.
fn employ_pipe(delivery: &mut Delivery, name: &str, fd: impl Into<OwnedFd>) {
    let output = Arc::new(Mutex::new(stdout::Output::new(fd.into())));
    employ_output(delivery, name, output);
}

fn employ_output(delivery: &mut Delivery, name: &str, output: Arc<Mutex<stdout::Output>>) {
    let options = SinkOptions {
        name: name.into(),
        target: Target::Stdout {
            format: Format::Json,
        },
    };
    let sink = Sink::Stdout(stdout::Stdout::new(output, Format::Json));
    delivery.stop_worker(&options.name);
    delivery.start_worker(options, sink, None);
}

#[tokio::test]
async fn each_sink_gets_every_event_once_and_in_order() {
    let mut journal = Journal::new().await;
    let logfmt = SinkOptions {
        name: "logfmt".into(),
        target: Target::File {
            path: journal.path("logfmt"),
            format: Format::Logfmt,
        },
    };
    let delivery = journal.start(vec![journal.file("json"), logfmt]).await;
    assert_eq!(journal.board.sinks()["json"].kind, "file");
    journal.journal(1).await;
    journal.journal(2500).await;
    assert!(delivery.drain(TIME).await);

    assert_eq!(journal.lines("json"), Journal::expected(0, 2501));
    let logfmt = journal.lines("logfmt");
    assert_eq!(logfmt.len(), 2501);
    let id = format!("event_id={}", event(2500).event_id);
    assert!(logfmt[2500].contains(&id), "{}", logfmt[2500]);
    assert_eq!(journal.counts.delivered.load(Ordering::Relaxed), 5002);
    assert_eq!(journal.board.sinks()["json"].delivered, 2501);
    let backlog = journal.store.backlog("json").await.unwrap();
    assert_eq!(backlog.events, 0);
}

#[tokio::test]
async fn a_sink_that_is_down_delays_no_other_and_catches_up() {
    let mut journal = Journal::new().await;
    let down = file_sink("down", journal.path("missing").join("alerts.jsonl"));
    let delivery = journal.start(vec![down, journal.file("up")]).await;
    journal.journal(30).await;
    journal
        .until("thirty lines", || journal.lines("up").len() == 30)
        .await;
    journal.until_backlog("down", 30).await;
    let status = journal.board.sinks()["down"].clone();
    assert_eq!(status.oldest_pending, Some(now()));
    let error = status.error.unwrap();
    assert!(error.contains("its folder does not exist"), "{error}");
    assert!(journal.counts.errors.load(Ordering::Relaxed) > 0);
    journal.until_backlog("up", 0).await;

    std::fs::create_dir(journal.path("missing")).unwrap();
    delivery.reopen();
    journal.until_backlog("down", 0).await;
    assert_eq!(journal.error("down"), None);
    assert_eq!(
        journal.lines("missing/alerts.jsonl"),
        Journal::expected(0, 30)
    );
    assert!(delivery.drain(TIME).await);
}

#[tokio::test]
async fn the_pauses_between_tries_that_fail_grow() {
    let mut journal = Journal::new().await;
    let down = file_sink("down", journal.path("missing").join("alerts.jsonl"));
    let _delivery = journal.start(vec![down]).await;
    // The first failure may come before the next statement.
    let began = Instant::now();
    journal.journal(1).await;
    let errors = || journal.counts.errors.load(Ordering::Relaxed);
    journal.until("five failures", || errors() >= 5).await;
    // Half of 200, 400, 800 and 1600 ms, with something to spare for the first of them.
    assert!(began.elapsed() > Duration::from_millis(1400));
}

#[tokio::test]
async fn a_receiver_is_not_asked_again_before_the_time_it_asked_for() {
    let (listener, sink) = receiver("remote", Duration::from_secs(5)).await;
    let mut journal = Journal::new().await;
    let _delivery = journal.start(vec![sink]).await;
    journal.journal(1).await;
    let (mut first, _) = listener.accept().await.unwrap();
    let asked = Instant::now();
    let busy = "503 Busy\r\nRetry-After: 1\r\nConnection: close";
    answer(&mut first, busy).await;
    let (_second, _) = listener.accept().await.unwrap();
    assert!(asked.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_file_that_was_moved_away_is_begun_anew_as_soon_as_sinks_are_reopened() {
    let mut journal = Journal::new().await;
    let delivery = journal.start(vec![journal.file("file")]).await;
    journal.journal(1).await;
    journal.until_backlog("file", 0).await;
    std::fs::rename(journal.path("file"), journal.path("file.1")).unwrap();
    delivery.reopen();
    let path = journal.path("file");
    journal.until("it is there", || path.exists()).await;
}

/// Records the size of a file each time when a progress is acknowledged.
#[derive(Debug)]
struct Sizes {
    path: PathBuf,
    sizes: Mutex<Vec<u64>>,
}

impl Observer for Sizes {
    fn sink_delivered(&self, _: &str, _: u64) {
        let size = std::fs::metadata(&self.path).unwrap().len();
        self.sizes.lock().push(size);
    }
    fn sink_error(&self, _: &str) {}
    fn sink_rejected(&self, _: &str, _: u64) {}
}

#[tokio::test]
async fn the_store_knows_a_file_before_its_first_line_and_after_a_try_that_failed() {
    let mut journal = Journal::new().await;
    let path = journal.path("file");
    let sizes = Arc::new(Sizes {
        path: path.clone(),
        sizes: Mutex::default(),
    });
    let observer = Arc::clone(&sizes) as _;
    let sinks = vec![journal.file("file")];
    let mut delivery = journal.start_observed(sinks, observer).await;
    journal.journal(1).await;
    journal.until_backlog("file", 0).await;
    let line = Journal::expected(0, 1)[0].len() as u64 + 1;
    let are_told = || *sizes.sizes.lock() == [0, line];
    journal.until("both are told", are_told).await;

    std::fs::rename(&path, journal.path("file.1")).unwrap();
    std::fs::create_dir(&path).unwrap();
    journal.journal(1).await;
    let fails = || journal.error("file").is_some();
    journal.until("it fails", fails).await;
    delivery.stop_worker(&"file".into());
    let left = delivery.leaving.remove("file").unwrap().task;
    assert!(left.await.unwrap().mark.is_some());
}

#[tokio::test]
async fn a_pipe_that_nobody_reads_delays_nobody_not_even_the_end() {
    let mut journal = Journal::new().await;
    let (reader, writer) = io::pipe().unwrap();
    let mut delivery = journal
        .start(vec![journal.file("up"), journal.file("stalled")])
        .await;
    employ_pipe(&mut delivery, "stalled", writer);
    journal.journal(2000).await;
    journal
        .until("all lines", || journal.lines("up").len() == 2000)
        .await;
    journal.until_backlog("stalled", 2000).await;
    let moment = Duration::from_millis(50);
    delivery.last_delivery = moment;
    let begun = Instant::now();
    assert!(!delivery.drain(moment).await);
    assert!(begun.elapsed() < Duration::from_secs(5));
    let left = journal.store.backlog("stalled").await.unwrap();
    assert_eq!(left.events, 2000);
    drop(reader);
}

/// A receiver that answers nothing by itself, and a sink that sends to it.
async fn receiver(name: &str, timeout: Duration) -> (TcpListener, SinkOptions) {
    // Another test may have installed the provider already.
    drop(rustls::crypto::ring::default_provider().install_default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = SinkOptions {
        name: name.into(),
        target: Target::Otlp(otlp(
            format!("http://{}/v1/logs", listener.local_addr().unwrap()),
            timeout,
        )),
    };
    (listener, options)
}

/// The first request comes as the daemon stops, and the receiver asks for a long wait. It takes
/// the second request.
#[tokio::test]
async fn what_fails_as_the_end_begins_is_tried_again_before_it() {
    let (listener, sink) = receiver("remote", Duration::from_secs(5)).await;
    let mut journal = Journal::new().await;
    let delivery = journal.start(vec![sink]).await;
    journal.journal(3).await;
    let (mut first, _) = listener.accept().await.unwrap();
    let draining = delivery.drain(TIME);
    let receiver = async {
        // `draining` is polled first, so its orders were given before.
        let busy = "503 Busy\r\nRetry-After: 60\r\nConnection: close";
        answer(&mut first, busy).await;
        let (mut second, _) = listener.accept().await.unwrap();
        answer(&mut second, "200 OK").await;
        // A connection is reset if it is closed before its client has read everything.
        (first, second)
    };
    let both = async { tokio::join!(biased; draining, receiver) };
    let (drained, _) = tokio::time::timeout(TIME, both)
        .await
        .expect("the receiver hears of it again");
    assert!(drained);
    assert_eq!(journal.counts.errors.load(Ordering::Relaxed), 1);
    assert_eq!(journal.counts.delivered.load(Ordering::Relaxed), 3);
}

/// Otherwise the next start, or another replica, would deliver it again.
#[tokio::test]
async fn the_end_waits_for_the_outcome_of_deliveries_under_way() {
    for is_removed in [false, true] {
        let (listener, sink) = receiver("remote", TIME).await;
        let mut journal = Journal::new().await;
        let mut delivery = journal.start(vec![sink]).await;
        journal.journal(3).await;
        let (mut connection, _) = listener.accept().await.unwrap();
        if is_removed {
            delivery.reload(Vec::new()).await.unwrap();
        }
        let draining = delivery.drain(Duration::ZERO);
        // `draining` is polled first, so its time is up before the answer comes.
        let receiver = answer(&mut connection, "200 OK");
        let (drained, ()) = tokio::join!(biased; draining, receiver);
        // Nobody has looked whether there is more.
        assert_eq!(drained, is_removed);
        assert_eq!(journal.counts.delivered.load(Ordering::Relaxed), 3);
        if !is_removed {
            let backlog = journal.store.backlog("remote").await.unwrap();
            assert_eq!(backlog.events, 0);
        }
    }
}

/// For instance, a receiver comes back and does not know its tenant any more.
#[tokio::test]
async fn a_sink_that_was_down_and_refuses_everything_does_not_deliver_again() {
    let (lines, _logging) = captured();
    let (listener, sink) = receiver("remote", Duration::from_secs(5)).await;
    let mut journal = Journal::new().await;
    let _delivery = journal.start(vec![sink]).await;
    journal.journal(3).await;
    let error = || journal.error("remote");
    let receiver = async {
        let mut status = "503 Busy";
        let mut kept = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            answer(&mut stream, &format!("{status}\r\nConnection: close")).await;
            kept.push(stream);
            if kept.len() == 1 {
                journal.until("it fails", || error().is_some()).await;
                status = "400 Bad Request";
            }
        }
    };
    let counts = &journal.counts;
    let refused = journal.until("all is refused", || {
        counts.rejected.load(Ordering::Relaxed) == 3 && error().is_none()
    });
    tokio::select! {
        () = refused => {}
        () = receiver => {}
    }
    assert_eq!(counts.delivered.load(Ordering::Relaxed), 0);
    let lines = lines.lock();
    let said = |text| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!(said("refused for good"), 3, "{lines:#?}");
    assert_eq!(said("delivers again"), 0, "{lines:#?}");
    let last = lines.last().unwrap();
    assert!(
        last.contains("nothing waits for delivery any more"),
        "{lines:#?}"
    );
}

/// Reads one request, which is small, and answers it.
async fn answer(stream: &mut TcpStream, answer: &str) {
    let mut request = vec![0; 64 << 10];
    assert!(stream.read(&mut request).await.unwrap() > 0);
    let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(answer.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn standard_output_that_is_closed_is_reported_as_the_end() {
    let mut journal = Journal::new().await;
    let (reader, writer) = io::pipe().unwrap();
    let mut delivery = journal.start(vec![journal.file("out")]).await;
    employ_pipe(&mut delivery, "out", writer);
    drop(reader);
    journal.journal(3).await;
    let failed = tokio::time::timeout(TIME, delivery.fatal_error())
        .await
        .unwrap();
    assert_eq!(&*failed.sink, "out");
    assert!(failed.source.is_fatal());
    assert_eq!(journal.counts.errors.load(Ordering::Relaxed), 1);
    let error = journal.error("out").unwrap();
    assert!(error.starts_with("standard output is closed"), "{error}");
    // After a restart, the sink would go on where it was.
    assert_eq!(journal.store.backlog("out").await.unwrap().events, 3);
}

#[tokio::test]
async fn after_a_crash_it_goes_on_where_it_was() {
    let mut journal = Journal::new().await;
    let delivery = journal.start(vec![journal.file("file")]).await;
    journal.journal(10).await;
    journal.until_backlog("file", 0).await;
    // An abort stands for a crash: no worker finishes or reports anything.
    for worker in delivery.workers.values() {
        worker.task.abort();
    }
    drop(delivery);
    journal.journal(10).await;
    journal.store.close().await;

    journal.store = open(journal.folder.path()).await;
    let delivery = journal.start(vec![journal.file("file")]).await;
    assert!(delivery.drain(TIME).await);
    assert_eq!(journal.lines("file"), Journal::expected(0, 20));
}

#[tokio::test]
async fn a_reload_keeps_what_is_the_same_and_forgets_what_is_gone() {
    let mut journal = Journal::new().await;
    let (kept, gone) = (journal.file("kept"), journal.file("gone"));
    let mut delivery = journal.start(vec![kept.clone(), gone]).await;
    journal.journal(5).await;
    journal.until_backlog("gone", 0).await;
    journal.until_backlog("kept", 0).await;

    let added = journal.file("added");
    delivery.reload(vec![added, kept.clone()]).await.unwrap();
    assert!(!journal.board.sinks().contains_key("gone"));
    journal.journal(5).await;
    journal.until_backlog("added", 0).await;

    let moved = file_sink("kept", journal.path("elsewhere"));
    delivery.reload(vec![moved]).await.unwrap();
    journal.journal(5).await;
    assert!(delivery.drain(TIME).await);

    assert_eq!(journal.lines("gone"), Journal::expected(0, 5));
    assert_eq!(journal.lines("added"), Journal::expected(5, 10));
    assert_eq!(journal.lines("kept"), Journal::expected(0, 10));
    assert_eq!(journal.lines("elsewhere"), Journal::expected(10, 15));
}

#[tokio::test]
async fn a_changed_sink_waits_until_its_predecessor_has_written_the_last_byte() {
    let mut journal = Journal::new().await;
    let (reader, writer) = io::pipe().unwrap();
    let output = Arc::new(Mutex::new(stdout::Output::new(writer.into())));
    let mut delivery = journal.start(vec![journal.file("out")]).await;
    employ_output(&mut delivery, "out", Arc::clone(&output));
    journal.journal(2000).await;
    journal.until_backlog("out", 2000).await;
    employ_output(&mut delivery, "out", output);
    // The backlog is shown all the while.
    journal.until_backlog("out", 2000).await;
    assert_eq!(journal.board.sinks()["out"].oldest_pending, Some(now()));
    let reading = read_all(reader);
    assert!(delivery.drain(TIME).await);
    let text = reading.join().unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), Journal::expected(0, 2000));
}

/// A delivery whose sink `out` hangs: it writes to a pipe that nobody reads.
async fn hung(journal: &mut Journal, events: u32) -> (Delivery, io::PipeReader) {
    let (delivery, reader, _) = hung_output(journal, events).await;
    (delivery, reader)
}

async fn hung_output(
    journal: &mut Journal,
    events: u32,
) -> (Delivery, io::PipeReader, Arc<Mutex<stdout::Output>>) {
    let (reader, writer) = io::pipe().unwrap();
    let output = Arc::new(Mutex::new(stdout::Output::new(writer.into())));
    let mut delivery = journal.start(vec![journal.file("out")]).await;
    employ_output(&mut delivery, "out", Arc::clone(&output));
    journal.journal(events).await;
    journal.until_backlog("out", u64::from(events)).await;
    // From then on, the delivery of what does not fit into the pipe is under way.
    let is_under_way = || rustix::io::ioctl_fionread(&reader).unwrap() > 0;
    journal.until("it is under way", is_under_way).await;
    (delivery, reader, output)
}

fn read_all(mut reader: io::PipeReader) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    })
}

/// Whether the rest of the events went into the file. What stood in the pipe when its reader died
/// counts as delivered.
fn has_the_rest(journal: &Journal) -> bool {
    let lines = journal.lines("out");
    let expected = Journal::expected(0, 1000);
    lines.len() > 1 && expected.ends_with(&lines)
}

fn has_failed(delivery: &mut Delivery) -> bool {
    futures_util::FutureExt::now_or_never(delivery.fatal_error()).is_some()
}

#[tokio::test]
async fn a_sink_that_was_removed_or_replaced_does_not_end_the_daemon_any_more() {
    for name in ["other", "out"] {
        let mut journal = Journal::new().await;
        let (mut delivery, reader) = hung(&mut journal, 1000).await;
        delivery.reload(vec![journal.file(name)]).await.unwrap();
        drop(reader);
        if name == "out" {
            journal.until_backlog("out", 0).await;
            assert!(has_the_rest(&journal));
        } else {
            let left = delivery.leaving.remove("out").unwrap().task;
            left.await.unwrap();
            assert!(!journal.board.sinks().contains_key("out"));
        }
        assert!(!has_failed(&mut delivery));
        assert_eq!(journal.counts.errors.load(Ordering::Relaxed), 0);
        assert!(delivery.drain(TIME).await);
    }
}

#[tokio::test]
async fn a_sink_that_fails_while_a_reload_replaces_it_does_not_end_the_daemon() {
    let mut journal = Journal::new().await;
    let (mut delivery, reader) = hung(&mut journal, 1000).await;
    drop(reader);
    let failed = || journal.error("out").is_some();
    journal.until("it has failed", failed).await;
    // The daemon has not noticed the failure yet.
    delivery.reload(vec![journal.file("out")]).await.unwrap();
    assert!(!has_failed(&mut delivery));
    assert!(delivery.drain(TIME).await);
    assert!(has_the_rest(&journal));
}

#[tokio::test]
async fn what_a_worker_delivers_while_it_leaves_is_told_where_its_sink_is_left() {
    let mut journal = Journal::new().await;
    let (mut delivery, reader, output) = hung_output(&mut journal, 1000).await;
    employ_output(&mut delivery, "out", output);
    journal.until_backlog("out", 1000).await;
    let reading = read_all(reader);
    journal
        .until("all is told", || {
            let status = &journal.board.sinks()["out"];
            (status.backlog, status.delivered, status.oldest_pending) == (Some(0), 1000, None)
        })
        .await;
    assert!(delivery.drain(TIME).await);
    assert_eq!(reading.join().unwrap().lines().count(), 1000);

    let mut journal = Journal::new().await;
    let (mut delivery, reader) = hung(&mut journal, 1000).await;
    delivery.reload(vec![journal.file("other")]).await.unwrap();
    let reading = read_all(reader);
    let left = delivery.leaving.remove("out").unwrap().task;
    left.await.unwrap();
    // It has left amid its batch.
    let delivered = journal.counts.delivered.load(Ordering::Relaxed);
    assert!((1..1000).contains(&delivered), "{delivered}");
    assert!(!journal.board.sinks().contains_key("out"));
    assert_eq!(reading.join().unwrap().lines().count() as u64, delivered);
}

#[tokio::test]
async fn a_sink_that_waits_for_its_predecessor_says_so_all_the_while() {
    let mut journal = Journal::new().await;
    let (lines, _logging) = captured();
    let (mut delivery, reader, output) = hung_output(&mut journal, 1000).await;
    delivery.patience = Duration::from_millis(50);
    employ_output(&mut delivery, "out", output);
    let error = || journal.error("out");
    journal.until("it says so", || error().is_some()).await;
    let said = "waits for the delivery under way to the sink's former target; restart the exporter \
                where that never ends";
    assert_eq!(error().as_deref(), Some(said));
    let logged = |text: &str| lines.lock().iter().any(|line| line.contains(text));
    assert!(logged(said), "{lines:#?}");
    let reading = read_all(reader);
    journal.until("it is over", || error().is_none()).await;
    assert!(logged("has ended"), "{lines:#?}");
    journal.until_backlog("out", 0).await;
    assert!(delivery.drain(TIME).await);
    assert_eq!(reading.join().unwrap().lines().count(), 1000);
}

#[tokio::test]
async fn a_sink_that_hangs_says_so_until_a_delivery_ends_in_time() {
    let mut journal = Journal::new().await;
    let (lines, _logging) = captured();
    let (mut reader, writer) = io::pipe().unwrap();
    let mut delivery = journal.start(vec![journal.file("out")]).await;
    delivery.patience = Duration::from_millis(50);
    employ_pipe(&mut delivery, "out", writer);
    journal.journal(2000).await;
    let status = || journal.board.sinks()["out"].clone();
    let says = |text: &str| {
        let error = status().error;
        error.is_some_and(|error| error.starts_with(text) && error.contains("nobody reads"))
    };
    let hangs = "the delivery has not ended for ";
    journal.until("it says so", || says(hangs)).await;

    // The second batch hangs like the first, and the sink does not look well in between.
    while status().delivered == 0 {
        reader.read_exact(&mut [0; 4096]).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(status().error.is_some());
    }
    journal
        .until("the first batch is told", || {
            says("the last delivery took ")
        })
        .await;
    journal.until("the second hangs", || says(hangs)).await;
    let logged = |text: &str| {
        lines
            .lock()
            .iter()
            .filter(|line| line.contains(text))
            .count()
    };
    assert_eq!(logged("does not end"), 1, "{lines:#?}");
    assert_eq!(logged("delivers again"), 0, "{lines:#?}");
    assert_eq!(journal.counts.errors.load(Ordering::Relaxed), 0);

    let reading = read_all(reader);
    let is_over = || status().error.is_none() && status().backlog == Some(0);
    journal.until("it is over", is_over).await;
    assert_eq!(
        logged("nothing waits for delivery any more"),
        1,
        "{lines:#?}"
    );
    assert!(delivery.drain(TIME).await);
    reading.join().unwrap();
}

#[tokio::test]
async fn a_sink_that_hangs_is_replaced_by_one_that_writes_elsewhere() {
    // With `waiting`, the sink that is replaced is one that waits for the sink that hangs.
    for waiting in [false, true] {
        let mut journal = Journal::new().await;
        let (mut delivery, reader) = hung(&mut journal, 1500).await;
        delivery.patience = Duration::from_millis(50);
        if waiting {
            employ_pipe(&mut delivery, "out", io::pipe().unwrap().1);
        }
        delivery.reload(vec![journal.file("out")]).await.unwrap();
        journal.until_backlog("out", 0).await;
        assert_eq!(journal.lines("out"), Journal::expected(0, 1500));
        // What the former worker still writes in the end no longer counts.
        let text = read_all(reader).join().unwrap();
        let lines: Vec<_> = text.lines().collect();
        let written = lines.len() as u32;
        assert!((1..1000).contains(&written), "{written}");
        assert_eq!(lines, Journal::expected(0, written));
        journal.journal(5).await;
        let is_told = || journal.board.sinks()["out"].delivered == 1505;
        journal.until("each is counted once", is_told).await;
        assert_eq!(journal.counts.delivered.load(Ordering::Relaxed), 1505);
        assert_eq!(journal.lines("out"), Journal::expected(0, 1505));
        assert!(!has_failed(&mut delivery));
        assert!(delivery.drain(TIME).await);
    }
}

#[tokio::test]
async fn one_that_only_waits_for_a_sink_that_hangs_is_not_waited_for() {
    let (_listener, remote) = receiver("out", Duration::from_secs(30)).await;
    for remote_between in [false, true] {
        let mut journal = Journal::new().await;
        let (mut delivery, _reader) = hung(&mut journal, 1000).await;
        delivery.patience = Duration::from_millis(50);
        let mut between = journal.file("out");
        if remote_between {
            between = remote.clone();
        } else if let Target::File { format, .. } = &mut between.target {
            *format = Format::Logfmt;
        }
        for sink in [between, journal.file("out")] {
            delivery.reload(vec![sink]).await.unwrap();
        }
        journal.until_backlog("out", 0).await;
        assert_eq!(journal.lines("out"), Journal::expected(0, 1000));
        assert!(delivery.drain(TIME).await);
    }
}

#[tokio::test]
async fn a_delivery_is_not_given_up_by_way_of_another_place_for_the_same_one() {
    let mut journal = Journal::new().await;
    let (mut delivery, reader, output) = hung_output(&mut journal, 1000).await;
    delivery.patience = Duration::from_millis(50);
    delivery.reload(vec![journal.file("out")]).await.unwrap();
    employ_output(&mut delivery, "out", output);
    let error = || journal.error("out");
    journal.until("it waits", || error().is_some()).await;
    tokio::time::sleep(4 * delivery.patience).await;
    let reading = read_all(reader);
    journal.until_backlog("out", 0).await;
    assert!(delivery.drain(TIME).await);
    let text = reading.join().unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), Journal::expected(0, 1000));
    assert_eq!(journal.counts.delivered.load(Ordering::Relaxed), 1000);
    assert_eq!(journal.lines("out"), [""; 0]);
}

#[tokio::test]
async fn a_request_that_ends_by_itself_is_not_given_up_by_way_of_another_place() {
    let (listener, remote) = receiver("out", Duration::from_secs(30)).await;
    let mut journal = Journal::new().await;
    let mut delivery = journal.start(vec![remote]).await;
    delivery.patience = Duration::from_millis(50);
    journal.journal(3).await;
    let (mut request, _) = listener.accept().await.unwrap();
    for path in ["first", "second"] {
        let file = file_sink("out", journal.path(path));
        delivery.reload(vec![file]).await.unwrap();
    }
    let error = || journal.error("out");
    journal.until("it waits", || error().is_some()).await;
    tokio::time::sleep(4 * delivery.patience).await;
    answer(&mut request, "200 OK").await;
    journal.until_backlog("out", 0).await;
    journal.journal(1).await;
    assert!(delivery.drain(TIME).await);
    assert_eq!(journal.lines("first"), [""; 0]);
    assert_eq!(journal.lines("second"), Journal::expected(3, 4));
}

#[test]
fn a_delivery_is_given_up_only_for_another_place_and_only_where_it_may_hang() {
    let stdout = |format| Target::Stdout { format };
    let file = |path: &str, format| Target::File {
        path: path.into(),
        format,
    };
    let otlp = Target::Otlp(otlp("http://127.0.0.1/v1/logs", Duration::from_secs(5)));
    let (json, logfmt) = (Format::Json, Format::Logfmt);
    let (a, b) = (file("/a", json), file("/b", json));
    for (former, new, may) in [
        (&stdout(json), &stdout(logfmt), false),
        (&stdout(json), &a, true),
        (&a, &file("/a", logfmt), false),
        (&a, &b, true),
        (&a, &otlp, true),
        (&Target::Journald, &Target::Journald, false),
        (&Target::Journald, &a, true),
        (&otlp, &otlp, false),
        (&otlp, &a, false),
    ] {
        assert_eq!(former.may_be_left_for(new), may, "{former:?} -> {new:?}");
    }
}

#[test]
fn a_request_hangs_only_after_its_own_time_limit() {
    let of = |target: &Target| worker::Limits::of(target, worker::PATIENCE).hang;
    assert_eq!(of(&Target::Journald), Duration::from_secs(10));
    let otlp = otlp("http://loki:3100/otlp/v1/logs", Duration::from_secs(60));
    assert_eq!(of(&Target::Otlp(otlp)), Duration::from_secs(70));
}

#[tokio::test]
async fn only_what_a_former_process_may_have_begun_is_parted_from_what_it_left_in_the_pipe() {
    let mut journal = Journal::new().await;
    let missing = file_sink("out", journal.path("missing").join("file"));
    let (reader, writer) = io::pipe().unwrap();
    let (new_reader, new_writer) = io::pipe().unwrap();
    let pipes = [writer.try_clone().unwrap(), writer, new_writer];
    for (pipe, waiting) in pipes.into_iter().zip([0, 2, 2]) {
        let delivery = journal.start(vec![missing.clone()]).await;
        journal.journal(waiting).await;
        drop(delivery);
        let mut delivery = journal.start(vec![missing.clone()]).await;
        employ_pipe(&mut delivery, "out", pipe);
        journal.until_backlog("out", 0).await;
        journal.journal(2).await;
        assert!(delivery.drain(TIME).await);
    }
    let lines = |from, to| Journal::expected(from, to).join("\n") + "\n";
    let text = read_all(reader).join().unwrap();
    assert_eq!(text, format!("{}\n{}", lines(0, 2), lines(2, 6)));
    // Nobody has written to the new pipe before, so no line break comes first.
    assert_eq!(read_all(new_reader).join().unwrap(), lines(6, 10));
}

#[tokio::test]
async fn a_file_changes_its_format_without_a_failed_try() {
    let mut journal = Journal::new().await;
    let mut delivery = journal.start(vec![journal.file("file")]).await;
    for (round, format) in (1..).zip([Format::Logfmt, Format::Json].repeat(10)) {
        journal.journal(1).await;
        journal.until_backlog("file", 0).await;
        let path = journal.path("file");
        delivery
            .reload(vec![SinkOptions {
                name: "file".into(),
                target: Target::File { path, format },
            }])
            .await
            .unwrap();
        assert_eq!(journal.lines("file").len(), round);
    }
    assert_eq!(journal.counts.errors.load(Ordering::Relaxed), 0);
    assert!(delivery.drain(TIME).await);
}

#[derive(Debug)]
struct Panics;

impl Observer for Panics {
    fn sink_delivered(&self, _: &str, _: u64) {
        panic!("as a bug would");
    }
    fn sink_error(&self, _: &str) {}
    fn sink_rejected(&self, _: &str, _: u64) {}
}

#[tokio::test]
async fn a_worker_that_panics_ends_the_daemon() {
    let mut journal = Journal::new().await;
    let sinks = vec![journal.file("file")];
    let mut delivery = journal.start_observed(sinks, Arc::new(Panics)).await;
    journal.journal(1).await;
    let failed = tokio::time::timeout(TIME, delivery.fatal_error())
        .await
        .unwrap();
    assert!(matches!(failed.source, SinkError::Ended));
}

/// Records the sink's error on the board at the time when its first events have been delivered.
#[derive(Debug)]
struct Witness {
    board: Board,
    error: Mutex<Option<Option<String>>>,
}

impl Observer for Witness {
    fn sink_delivered(&self, sink: &str, events: u64) {
        if events > 0 {
            let error = self.board.sinks()[sink].error.clone();
            self.error.lock().get_or_insert(error);
        }
    }
    fn sink_error(&self, _: &str) {}
    fn sink_rejected(&self, _: &str, _: u64) {}
}

#[tokio::test]
async fn a_sink_that_was_down_works_again_once_events_are_delivered_and_not_before() {
    let (lines, _logging) = captured();
    let mut journal = Journal::new().await;
    let down = file_sink("down", journal.path("missing").join("alerts.jsonl"));
    let witness = Arc::new(Witness {
        board: journal.board.clone(),
        error: Mutex::default(),
    });
    let observer = Arc::clone(&witness) as _;
    let delivery = journal.start_observed(vec![down], observer).await;
    journal.journal(1).await;
    let error = || journal.error("down");
    journal.until("it fails", || error().is_some()).await;
    // The first try after this only stores the file's mark.
    std::fs::create_dir(journal.path("missing")).unwrap();
    journal.until("it works", || error().is_none()).await;
    let is_said = lines.lock().iter().any(|it| it.contains("delivers again"));
    assert!(is_said, "{lines:#?}");
    let before = witness.error.lock().clone().flatten();
    assert!(before.is_some_and(|error| error.contains("its folder does not exist")));
    assert!(delivery.drain(TIME).await);
}

#[tokio::test]
async fn a_sink_that_the_store_has_forgotten_says_so_and_goes_on_when_it_is_known_again() {
    let journal = Journal::new().await;
    let delivery = journal.start(vec![journal.file("file")]).await;
    let set_sinks = async |name: &str| {
        let sinks = vec![name.to_owned()];
        journal.store.set_sinks(sinks).await.unwrap();
    };
    let error = || journal.error("file");
    let commit = async |number| {
        let events = vec![event(number)];
        let commit = Commit {
            events,
            ..Commit::default()
        };
        journal
            .store
            .commit(journal.held, commit, now())
            .await
            .unwrap();
    };
    set_sinks("other").await;
    commit(0).await;
    let is_unknown = || error().is_some_and(|error| error.contains("no sink named"));
    journal.until("it says so", is_unknown).await;
    set_sinks("file").await;
    commit(1).await;
    // The sink was not gone for long, and misses nothing.
    let goes_on = || journal.lines("file") == Journal::expected(0, 2);
    journal.until("it goes on", goes_on).await;
    journal.until("it says so", || error().is_none()).await;
    assert!(delivery.drain(TIME).await);
}

#[tokio::test]
async fn without_a_delivery_no_worker_goes_on() {
    let mut journal = Journal::new().await;
    let down = file_sink("down", journal.path("missing").join("alerts.jsonl"));
    let mut delivery = journal.start(vec![down, journal.file("idle")]).await;
    journal.journal(1).await;
    journal.until_backlog("idle", 0).await;
    let workers = std::mem::take(&mut delivery.workers);
    let tasks: Vec<_> = workers.into_values().map(|worker| worker.task).collect();
    drop(delivery);
    for task in tasks {
        let ended = tokio::time::timeout(TIME, task).await;
        assert!(ended.is_ok(), "it works for nobody");
    }
}

#[tokio::test]
async fn two_sinks_of_one_name_are_an_error_that_changes_nothing() {
    let mut journal = Journal::new().await;
    let mut delivery = journal.start(vec![journal.file("a")]).await;
    let twice = vec![journal.file("b"), journal.file("b")];
    let error = delivery.reload(twice).await.unwrap_err();
    assert_eq!(error.to_string(), "two sinks are named b");
    journal.journal(1).await;
    assert!(delivery.drain(TIME).await);
    assert_eq!(journal.lines("a").len(), 1);
    assert!(!journal.path("b").exists());
}
