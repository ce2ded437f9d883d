//! The endpoint under load: hundreds of scrapers, among clients that are slow, silent or gone.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on stops"
)]

use std::{io, net::SocketAddr, os::unix::fs::chown, time::Duration};

use opsramp_exporter::simulator::{DEMO_TENANT, Endpoint, Fault, FaultRule};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
    task::JoinSet,
    time::Instant,
};

use exporter::{Exporter, Members, Metrics, Place, binary, command, eventually, needed, opsramp};

#[path = "support/exporter.rs"]
mod exporter;

const SCRAPERS: usize = 200;
const SCRAPES: usize = 10;

/// Number of bad clients of each kind.
const BAD: usize = 100;

/// Number of files that the daemon may have open. Half of them may be connections, which is fewer
/// than there are clients.
const DESCRIPTORS: u32 = 512;

/// Far longer than a scrape takes on a busy machine, and far shorter than the API hangs here.
const SOON: Duration = Duration::from_secs(20);
const HANGS: Duration = Duration::from_secs(120);

const INTERVAL: Duration = Duration::from_millis(500);

const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept-Encoding: gzip\r\n\r\n";

/// Sends one request on a kept connection, and returns the length of the body.
async fn scrape(stream: &mut TcpStream) -> io::Result<usize> {
    stream.write_all(REQUEST).await?;
    read_answer(stream).await
}

async fn read_answer(stream: &mut TcpStream) -> io::Result<usize> {
    let mut bytes = Vec::with_capacity(64 * 1024);
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert!(head.contains("content-encoding: gzip"), "{head}");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.unwrap().parse().unwrap();
        while bytes.len() < end + 4 + length {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        return Ok(length);
    }
}

/// Scrapes over one connection. If that is lost, it scrapes over a new one, as Prometheus does.
/// Returns the longest time that a scrape took, including its lost connections.
async fn scraper(address: SocketAddr) -> Duration {
    let mut longest = Duration::ZERO;
    let mut stream = None;
    for _ in 0..SCRAPES {
        let asked = Instant::now();
        let answered = async {
            loop {
                let mut open = match stream.take() {
                    Some(open) => open,
                    None => match TcpStream::connect(address).await {
                        Ok(open) => open,
                        Err(_) => continue,
                    },
                };
                if scrape(&mut open).await.is_ok_and(|length| length > 0) {
                    stream = Some(open);
                    return;
                }
            }
        };
        tokio::time::timeout(SOON, answered)
            .await
            .unwrap_or_else(|_| panic!("a scrape waits for longer than {SOON:?}"));
        longest = longest.max(asked.elapsed());
        // The pause lets other clients come in between.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    longest
}

/// What a bad client does with its connection until it is thrown out.
#[derive(Clone, Copy, Debug)]
enum Bad {
    /// Sends nothing, ever.
    Silent,
    /// Sends a request a byte at a time.
    Slow,
    /// Asks and does not take the answer.
    Deaf,
    /// Sends half a request and closes its sending half.
    HalfClosed,
}

/// Misbehaves for ever: connects again whenever it was thrown out.
async fn bad_client(address: SocketAddr, kind: Bad) {
    loop {
        // The error does not matter: the client begins anew in any case.
        misbehave(address, kind).await.ok();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn misbehave(address: SocketAddr, kind: Bad) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    match kind {
        Bad::Silent => {}
        Bad::Slow => {
            for byte in REQUEST {
                stream.write_all(&[*byte]).await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Bad::Deaf => {
            stream.write_all(REQUEST).await?;
            return std::future::pending().await;
        }
        Bad::HalfClosed => {
            stream.write_all(&REQUEST[..20]).await?;
            stream.shutdown().await?;
        }
    }
    stream.read(&mut [0; 1024]).await.map(drop)
}

fn peak(exporter: &Exporter) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", exporter.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.unwrap().trim().trim_end_matches(" kB");
    kibibytes.parse::<u64>().unwrap() * 1024
}

fn address(exporter: &Exporter) -> SocketAddr {
    let address = exporter.url.strip_prefix("http://").unwrap();
    address.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_clients_good_and_bad_keep_neither_a_scrape_nor_a_poll_waiting() {
    let (good, hanging) = (opsramp(50).await, opsramp(0).await);
    hanging.inject(FaultRule::always(Fault::SlowHeaders { seconds: HANGS }).at(Endpoint::Search));
    let mut place = Place::new(&good.url()).with_file_sink();
    let mut account = place.config["accounts"][0].clone();
    account["name"] = json!("hanging");
    account["url"] = json!(hanging.url());
    account["timeout"] = json!("120s");
    place.config["accounts"]
        .as_array_mut()
        .unwrap()
        .push(account);
    place.config["accounts"][0]["timeout"] = json!("20s");
    place.config["searches"][0]["interval"] = json!("500ms");
    let exporter = place.start_with_descriptors(DESCRIPTORS).await;
    exporter.wait_until_complete().await;
    let address = address(&exporter);

    let (before, peak_before) = (exporter.metrics().await, peak(&exporter));
    let began = Instant::now();
    let mut bad = JoinSet::new();
    for _ in 0..BAD {
        for kind in [Bad::Silent, Bad::Slow, Bad::Deaf, Bad::HalfClosed] {
            bad.spawn(bad_client(address, kind));
        }
    }
    let mut scrapers = JoinSet::new();
    for _ in 0..SCRAPERS {
        scrapers.spawn(scraper(address));
    }
    let longest = scrapers.join_all().await.into_iter().max().unwrap();
    // The time must be long enough to tell whether polling keeps its interval.
    tokio::time::sleep((INTERVAL * 30).saturating_sub(began.elapsed())).await;
    bad.abort_all();
    // Among so many clients, a scrape may be answered with an exposition of some seconds ago.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let after = exporter.metrics().await;
    let elapsed = began.elapsed();

    let polls = r#"opsramp_poll_duration_seconds_count{account="default""#;
    let made = after.sum(polls) - before.sum(polls);
    let due = elapsed.as_secs_f64() / INTERVAL.as_secs_f64();
    // On a busy machine, a poll may come so late that the next one is due.
    assert!(made >= 0.8 * due - 1.0, "{made} polls in {elapsed:?}");
    assert_eq!(after.sum(r#"opsramp_up{account="default""#), 1.0);
    assert_eq!(after.sum(r#"opsramp_up{account="hanging""#), 0.0);
    let grown = peak(&exporter) - peak_before;
    assert!(
        grown < 64 << 20,
        "{grown} bytes more; longest scrape {longest:?}"
    );

    // No client's file descriptor may stay open.
    eventually("the clients' descriptors are closed", async || {
        exporter.metrics().await.sum("process_open_fds") < 60.0
    })
    .await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_its_half_after_it_has_asked_is_answered() {
    let opsramp = opsramp(3).await;
    let place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    let mut stream = TcpStream::connect(address(&exporter)).await.unwrap();
    stream.write_all(REQUEST).await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(read_answer(&mut stream).await.unwrap() > 0);
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_does_not_wait_for_a_store_that_is_locked() {
    let opsramp = opsramp(3).await;
    let place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    exporter.wait_until_complete().await;
    let somebody_else = rusqlite::Connection::open(place.path("state.db")).unwrap();
    somebody_else.execute_batch("BEGIN IMMEDIATE").unwrap();
    let polls = |metrics: &Metrics| metrics.sum("opsramp_polls_total{");
    let before = polls(&exporter.metrics().await);
    opsramp.open_many("client_1", 5).unwrap();
    let address = address(&exporter);
    // Polls have found the new alerts and are waiting to store them.
    exporter
        .wait_for("a poll has begun", |metrics| polls(metrics) > before)
        .await;
    for _ in 0..3 {
        let longest = tokio::time::timeout(SOON, scraper(address)).await;
        // SQLite would wait for the lock for five seconds.
        assert!(longest.unwrap() < Duration::from_secs(4));
    }
    somebody_else.execute_batch("ROLLBACK").unwrap();
    exporter.logs(8, "all eight lines").await;
    exporter.stop().await;
}

/// Returns a user who has no other process, if the test runs as root: root may always have more
/// threads.
fn somebody() -> Option<u32> {
    rustix::process::geteuid().is_root().then_some(64_999)
}

fn as_somebody(mut command: Command) -> Command {
    if let Some(user) = somebody() {
        command.uid(user).gid(user);
    }
    command
}

/// Starts the daemon as a user whose threads can be limited.
async fn start_as_somebody(place: &Place) -> Exporter {
    place.write();
    // The folder of the build may be closed to other users, so the program is copied. The copy is
    // not written by this process: another test may just be forking a process, which would inherit
    // the open file, and a program that is open for writing cannot be run.
    let program = place.path("opsramp-exporter");
    let mut copy = command("cp");
    copy.arg(binary()).arg(&program);
    assert!(copy.status().await.unwrap().success());
    let mut daemon = command(program);
    daemon.args(place.command().as_std().get_args());
    for file in [".", "config.yml", "secret"] {
        chown(place.path(file), somebody(), None).unwrap();
    }
    place.start_as(as_somebody(place.settle(daemon))).await
}

/// Limits how many threads the daemon's user may have.
async fn limit_threads(exporter: &Exporter, limit: u32) {
    needed("prlimit", "util-linux");
    let pid = exporter.id().to_string();
    let mut command = as_somebody(command("prlimit"));
    // Only the soft limit is set, which may be raised again.
    command.args([&format!("--nproc={limit}:"), "--pid", &pid]);
    assert!(command.status().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_that_cannot_be_had_cost_neither_a_scrape_nor_the_end() {
    let opsramp = opsramp(3).await;
    let place = Place::new(&opsramp.url());
    let exporter = start_as_somebody(&place).await;
    exporter.logs(3, "its threads have worked").await;
    limit_threads(&exporter, 1).await;
    exporter.wait_until_complete().await;
    let (status, alerts) = exporter.get("/api/v1/alerts").await;
    assert_eq!(status, 200, "{alerts}");
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_whose_thread_cannot_be_had_waits_for_it() {
    let opsramp = opsramp(3).await;
    let mut place = Place::new(&opsramp.url());
    let exporter = start_as_somebody(&place).await;
    exporter.wait_until_complete().await;
    // The thread that reads the configuration exists from then on, so that no new one is needed.
    exporter.reload(&place).await;
    limit_threads(&exporter, 1).await;
    place.config["log"]["sinks"] = json!([
        {"name": "stdout", "type": "stdout"},
        {"name": "file", "type": "file", "path": place.path("alerts.jsonl")},
    ]);
    exporter.reload(&place).await;
    let told = exporter
        .stderr
        .line(|line| line.contains("cannot start the sink's thread"))
        .await;
    assert!(
        told.contains(" sink=file ") && told.contains("cannot deliver; events wait"),
        "{told}"
    );
    opsramp.open_many(DEMO_TENANT, 1).unwrap();
    exporter.logs(4, "the other one works").await;
    assert_eq!(place.text_of("alerts.jsonl"), "");

    limit_threads(&exporter, 4096).await;
    eventually("it has begun to work", async || {
        place.lines_of("alerts.jsonl").len() == 1
    })
    .await;
    exporter.stop().await;
}

/// Two answers within the size limit that could become a multiple of their size in memory: one
/// with nothing but results, and one with nothing but characters that have to be escaped.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_does_not_swell_in_memory() {
    const SIZE: usize = 24 << 20;
    let opsramp = opsramp(3).await;
    let place = Place::new(&opsramp.url());
    let exporter = place.start().await;
    exporter.wait_until_complete().await;
    let before = peak(&exporter);
    let page_of = |results: String| {
        let text = format!(r#"{{"totalResults":1,"nextPage":false,"results":[{results}]}}"#);
        FaultRule::always(Fault::Body { text }).at(Endpoint::Search)
    };

    let result = r#"{"uniqueId":"1"}"#;
    opsramp.inject(page_of(vec![result; SIZE / result.len()].join(",")));
    exporter
        .wait_for("a crowd is no page", |metrics| {
            let failures = metrics.with("opsramp_poll_failures_total{");
            let mut decode = failures.filter(|(series, _)| series.contains(r#"reason="decode""#));
            decode.any(|(_, count)| count >= 1.0)
        })
        .await;

    opsramp.clear_faults();
    let subject = "\u{7f}".repeat(SIZE);
    opsramp.inject(page_of(format!(
        r#"{{"uniqueId":"monster","subject":"{subject}"}}"#
    )));
    let line = exporter.stdout.line(|line| line.contains("monster")).await;
    let message = Members::parse(&line).text("message").to_owned();
    assert!(message.ends_with(" bytes]") && message.len() <= 16 * 1024);

    // Allows for the body, and for a second copy while the buffer grows to take it.
    let grown = peak(&exporter) - before;
    assert!(grown < 4 * SIZE as u64, "{grown} bytes more");
    exporter.stop().await;
}
