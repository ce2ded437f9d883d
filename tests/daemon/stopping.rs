//! TERM, INT and the end of standard output: events in the journal are delivered, now or after the
//! next start.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, PipeReader, Write as _},
    process::Stdio,
};

use opsramp_exporter::simulator::{Action, DEMO_TENANT, Simulator};
use rustix::process::{Pid, kill_process};
use tokio::{
    io::AsyncBufReadExt as _,
    time::{Duration, Instant},
};

use crate::exporter::{Exporter, Members, PATIENCE, Place, Signal, opsramp};

/// More lines than a pipe holds.
const MANY: usize = 600;

/// How long the delivery of the journal may take at the end.
const DRAIN: Duration = Duration::from_secs(10);

/// Starts the daemon with a standard output that nobody reads yet, and waits until more is
/// journalled than the pipe holds.
async fn start_unread(place: &Place) -> (Exporter, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    place.write();
    let mut command = place.command();
    command.stdout(writer).stderr(Stdio::piped());
    let mut exporter = place.spawn_with_own_stdout(command);
    exporter.wait_until_it_listens().await;
    exporter
        .wait_for("all alerts are journalled", |metrics| {
            metrics.sum("opsramp_alert_events_total{") == MANY as f64
        })
        .await;
    (exporter, reader)
}

/// Tells the daemon to stop, and waits until it says that it is stopping.
async fn begin_to_stop(exporter: &Exporter, signal: Signal) {
    exporter.signal(signal);
    exporter
        .stderr
        .line(|line| line.contains("stopping: polling ends"))
        .await;
}

async fn read_to_end(reader: PipeReader) -> Vec<String> {
    tokio::task::spawn_blocking(|| BufReader::new(reader).lines().map(Result::unwrap).collect())
        .await
        .unwrap()
}

fn alert_ids(lines: &[String]) -> BTreeSet<String> {
    let ids = lines
        .iter()
        .map(|line| Members::parse(line).text("alert_id").to_owned());
    ids.collect()
}

fn open_ids(opsramp: &Simulator) -> BTreeSet<String> {
    opsramp.world(|world, _| {
        let open = world.open_alerts(DEMO_TENANT).unwrap();
        open.iter().map(|id| id.number().to_string()).collect()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn term_and_int_deliver_what_is_journalled_and_end_with_status_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let opsramp = opsramp(MANY).await;
        let place = Place::new(&opsramp.url());
        let (exporter, reader) = start_unread(&place).await;
        begin_to_stop(&exporter, signal).await;
        opsramp.reset_requests();
        let lines = read_to_end(reader).await;
        let ended = exporter.end().await;
        assert_eq!(ended.code(), Some(0), "{signal:?}: {}", ended.error());
        assert_eq!(lines.len(), MANY, "{signal:?}");
        assert_eq!(alert_ids(&lines), open_ids(&opsramp));
        let requests = opsramp.requests().total;
        assert!(requests <= 1, "{signal:?}: {requests} requests after it");
        // Nothing is left for the next process.
        let exporter = place.start().await;
        exporter.wait_for_poll().await;
        assert_eq!(exporter.stop().await.stdout.len(), 0, "{signal:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once_and_the_rest_is_delivered_after_the_next_start() {
    let opsramp = opsramp(MANY).await;
    let place = Place::new(&opsramp.url());
    let (exporter, reader) = start_unread(&place).await;
    begin_to_stop(&exporter, Signal::TERM).await;
    let second = Instant::now();
    exporter.signal(Signal::INT);
    let ended = exporter.end().await;
    assert!(second.elapsed() < DRAIN / 2, "{:?}", second.elapsed());
    assert!(ended.error().contains("stopping at once"));
    // Lines that were in the pipe count as delivered, except for an incomplete one.
    let mut lines = read_to_end(reader).await;
    lines.retain(|line| line.ends_with('}'));
    assert!((1..MANY).contains(&lines.len()), "{}", lines.len());
    let exporter = place.start().await;
    let all = open_ids(&opsramp);
    exporter
        .stdout
        .wait_for("the rest", |rest| {
            let mut seen = alert_ids(&lines);
            seen.extend(alert_ids(rest));
            seen == all
        })
        .await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_never_comes_back_cannot_keep_it_from_ending() {
    let opsramp = opsramp(MANY).await;
    let place = Place::new(&opsramp.url());
    let (exporter, reader) = start_unread(&place).await;
    let told = Instant::now();
    exporter.signal(Signal::TERM);
    let ended = exporter.end().await;
    assert_eq!(ended.code(), Some(0));
    let took = told.elapsed();
    assert!(took >= DRAIN && took < DRAIN * 2, "{took:?}");
    assert!(ended.error().contains("delivered after the next start"));
    drop(reader);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_for_a_reload_while_it_stops_is_told_so_at_once() {
    let opsramp = opsramp(MANY).await;
    let mut place = Place::new(&opsramp.url());
    place.config["web"]["enable_lifecycle"] = true.into();
    let (exporter, reader) = start_unread(&place).await;
    begin_to_stop(&exporter, Signal::TERM).await;
    let asked = Instant::now();
    // One request would wait in the queue, the others in front of it.
    let answers = tokio::join!(
        exporter.post("/-/reload"),
        exporter.post("/-/reload"),
        exporter.post("/-/reload"),
    );
    assert!(asked.elapsed() < DRAIN / 2, "{:?}", asked.elapsed());
    for (status, told) in [answers.0, answers.1, answers.2] {
        let expected = "starting or stopping; nothing was reloaded\n";
        assert_eq!((status, told.as_str()), (503, expected));
    }
    drop(reader);
    exporter.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standard_output_that_is_closed_ends_it_with_status_1_and_loses_nothing() {
    let opsramp = opsramp(5).await;
    let place = Place::new(&opsramp.url());
    let mut exporter = place.start().await;
    let before = exporter.logs(5, "five lines").await;
    exporter.close_stdout().await;
    let ids = opsramp.open_many(DEMO_TENANT, 20).unwrap();
    let ended = exporter.end().await;
    assert_eq!(ended.code(), Some(1));
    let told = ended.error();
    assert!(told.contains("standard output is closed"), "{told}");
    let what_follows =
        "journalled events are delivered as far as that is possible; the rest after the next start";
    assert!(told.contains(what_follows), "{told}");
    let why = "the sink stdout has failed for good";
    assert_eq!(told.matches(why).count(), 1, "{told}");
    opsramp.act(ids[0], Action::Close).unwrap();

    let exporter = place.start().await;
    let after = exporter.logs(21, "twenty opened and one left").await;
    exporter.wait_for_poll().await;
    let ended = exporter.stop().await;
    assert_eq!(ended.stdout.len(), 21);
    let expected: BTreeSet<String> = ids.iter().map(|id| id.number().to_string()).collect();
    assert_eq!(alert_ids(&after), expected);
    assert!(alert_ids(&before).is_disjoint(&expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opsramp_that_hangs_cannot_keep_it_from_ending() {
    let opsramp = opsramp(1).await;
    let mut place = Place::new(&opsramp.url());
    place.config["accounts"][0]["timeout"] = "1m".into();
    let exporter = place.start().await;
    exporter.wait_until_complete().await;
    opsramp.set_options(|options| options.latency = PATIENCE);
    // A request that came before that is still answered.
    crate::exporter::eventually("a request hangs", || async {
        let before = opsramp.requests();
        tokio::time::sleep(Duration::from_millis(200)).await;
        before.in_flight > 0 && opsramp.requests().total == before.total
    })
    .await;
    let told = Instant::now();
    exporter.stop().await;
    assert!(
        told.elapsed() < Duration::from_secs(20),
        "{:?}",
        told.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standard_error_that_is_closed_disturbs_nobody() {
    let opsramp = opsramp(2).await;
    let place = Place::new(&opsramp.url());
    let mut exporter = place.start().await;
    exporter.logs(2, "two lines").await;
    exporter.close_stderr().await;
    exporter.signal(Signal::HUP);
    opsramp.open_many(DEMO_TENANT, 1).unwrap();
    exporter.logs(3, "one more").await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standard_error_that_nobody_reads_holds_nothing_up() {
    let opsramp = opsramp(2).await;
    let place = Place::new(&opsramp.url());
    place.write();
    // The pipe is full from the start.
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[b' '; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    let mut daemon = place.command();
    daemon.stdout(Stdio::piped()).stderr(writer);
    let mut daemon = daemon.spawn().unwrap();
    let mut lines = tokio::io::BufReader::new(daemon.stdout.take().unwrap()).lines();
    let mut next = async || {
        let next = tokio::time::timeout(PATIENCE, lines.next_line());
        next.await.unwrap().unwrap().unwrap()
    };
    next().await;
    next().await;
    opsramp.open_many(DEMO_TENANT, 1).unwrap();
    next().await;
    let pid = Pid::from_raw(daemon.id().unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let status = tokio::time::timeout(DRAIN, daemon.wait()).await;
    assert_eq!(status.unwrap().unwrap().code(), Some(0));
    drop(reader);
}
