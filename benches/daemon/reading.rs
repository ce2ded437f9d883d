//! A full read with everything switched on, against the smallest loop that does the reading.

use std::{
    borrow::Cow,
    fs::File,
    io::{BufRead as _, BufWriter, Write as _},
    path::Path,
    thread::sleep,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::{runtime::Runtime, time::Instant};

use crate::{
    daemon::{Daemon, config},
    others,
    report::{Goal, Report, folder, mebibytes, quick},
    server::{PAGE_SIZE, Server},
};

const ALERTS: usize = 100_000;
const MANY: usize = 1_000_000;
/// The memory of a tracked alert as `cargo bench --bench tracking` finds it, rounded up.
const BYTES_PER_ALERT: u64 = 110;

/// The fields that the bare loop reads and writes, borrowed.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Page<'a> {
    #[serde(borrow)]
    results: Vec<Alert<'a>>,
    next_page: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Alert<'a> {
    #[serde(borrow)]
    unique_id: Cow<'a, str>,
    #[serde(borrow, default)]
    subject: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    description: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    current_state: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    status: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    service_name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    component: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    priority: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    created_date: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    updated_time: Option<Cow<'a, str>>,
}

/// The same ten fields owned, as such a loop is mostly written.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct OwnedPage {
    results: Vec<OwnedAlert>,
    next_page: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct OwnedAlert {
    unique_id: String,
    subject: Option<String>,
    description: Option<String>,
    current_state: Option<String>,
    status: Option<String>,
    service_name: Option<String>,
    component: Option<String>,
    priority: Option<String>,
    created_date: Option<String>,
    updated_time: Option<String>,
}

/// The alerts as they came, without parsing them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPage<'a> {
    #[serde(borrow)]
    results: Vec<&'a RawValue>,
    next_page: bool,
}

/// What a full read took.
#[derive(Debug)]
struct Taken {
    wall: Duration,
    cpu: Duration,
    resident: u64,
    peak: u64,
}

pub(crate) fn measure(runtime: &Runtime, report: &mut Report) {
    let rounds = if quick() { 2 } else { 5 };
    let server = runtime.block_on(Server::start(ALERTS));
    let empty = read(&server, 0);

    let (mut bare_best, mut ours_best) = (Duration::MAX, Duration::MAX);
    let (mut ratios, mut peak) = (Vec::new(), 0);
    for _ in 0..rounds {
        let folder = folder();
        let bare = bare(&server, ALERTS, folder.path(), write_borrowed);
        let ours = read(&server, ALERTS);
        ratios.push(ours.wall.as_secs_f64() / bare.as_secs_f64());
        bare_best = bare_best.min(bare);
        ours_best = ours_best.min(ours.wall);
        peak = peak.max(ours.peak);
    }
    ratios.sort_unstable_by(f64::total_cmp);
    let megabytes = bytes(&server) as f64 / 1e6;
    let what = format!(
        "full read of 100,000 alerts ({megabytes:.0} MB, 500 a page) until every line is synced, \
         against a bare reqwest + serde_json loop that writes a file ({:.2} s): median of {rounds}",
        bare_best.as_secs_f64()
    );
    let median = ratios[ratios.len() / 2];
    report.row(&what, median, " ×", Goal::AtMost(2.0));
    let rate = ALERTS as f64 / ours_best.as_secs_f64();
    report.row(
        "the same: alerts decoded, tracked, journalled and delivered",
        rate,
        " a second",
        None,
    );
    let tracked = ALERTS as u64 * BYTES_PER_ALERT;
    let beyond = peak.saturating_sub(empty.peak).saturating_sub(tracked);
    let what = "its peak memory beyond an idle daemon's and the tracked alerts";
    report.row(what, mebibytes(beyond), " MiB", Goal::AtMost(16.0));
    let loops: [(&str, Write); 3] = [
        ("the same loop with owned fields", write_owned),
        (
            "the same loop, alerts written whole as they came (`RawValue`)",
            write_raw,
        ),
        (
            "the same loop with `serde_json::Value`, alerts written whole",
            write_values,
        ),
    ];
    for (name, write) in loops {
        let rounds = (0..rounds).map(|_| bare(&server, ALERTS, folder().path(), write));
        let best = rounds.min().unwrap_or_default();
        let ratio = best.as_secs_f64() / bare_best.as_secs_f64();
        report.row(name, ratio, " ×", None);
    }
    for (name, took) in others::read(&server, ALERTS) {
        match took {
            Some(took) => {
                let ratio = took.as_secs_f64() / bare_best.as_secs_f64();
                report.row(&format!("the same by {name}"), ratio, " ×", None);
            }
            None => report.text(
                &format!("the same by {name}"),
                "not installed, or it failed",
            ),
        }
    }
    if !quick() {
        let many = read(&server, MANY);
        let what = "1,000,000 alerts decoded, tracked, journalled and delivered";
        report.row(what, many.wall.as_secs_f64(), " s", None);
        report.row("its CPU time", many.cpu.as_secs_f64(), " s", None);
        let what = "the whole daemon with 1,000,000 tracked alerts, resident";
        report.row(what, mebibytes(many.resident), " MiB", Goal::AtMost(220.0));
        report.row(
            "its peak while it read them",
            mebibytes(many.peak),
            " MiB",
            None,
        );
    }
}

/// The size of all pages.
fn bytes(server: &Server) -> usize {
    let pages = ALERTS.div_ceil(PAGE_SIZE) as u64;
    (1..=pages)
        .map(|page| server.page(page, PAGE_SIZE as u64).len())
        .sum()
}

/// Measures the daemon, from the first search to the last line in its file.
fn read(server: &Server, alerts: usize) -> Taken {
    server.reset(alerts);
    let folder = folder();
    let config = config(folder.path(), &server.url(), &["client_1".to_owned()]);
    let mut daemon = Daemon::start(folder.path(), &config);
    wait_for_lines(&folder.path().join("alerts.jsonl"), alerts);
    // A line counts as delivered once it is synced. The backlog would show this up to half a
    // second late.
    daemon.wait_until(Duration::from_millis(1), |samples| {
        samples.sum("opsramp_sink_events_total{") == alerts as f64
    });
    let wall = server.first_search().map(|began| began.elapsed());
    daemon.wait_until(Duration::from_millis(20), |samples| {
        samples.sum("opsramp_search_complete{") == 1.0
    });
    let cpu = daemon.cpu();
    sleep(Duration::from_secs(1));
    let taken = Taken {
        wall: wall.unwrap_or_default(),
        cpu,
        resident: daemon.resident(),
        peak: daemon.peak(),
    };
    daemon.stop();
    taken
}

/// Waits until a file has `wanted` lines. Because the daemon works on the same cores meanwhile,
/// only what is new is read, and the lines are counted fast.
fn wait_for_lines(path: &Path, wanted: usize) {
    let began = Instant::now();
    let mut file = None;
    let mut lines = 0;
    while lines < wanted {
        assert!(began.elapsed() < Duration::from_secs(300), "{lines} lines");
        match &mut file {
            None => {
                file = File::open(path)
                    .ok()
                    .map(|file| std::io::BufReader::with_capacity(1 << 20, file))
            }
            Some(file) => loop {
                let new = file.fill_buf().unwrap();
                if new.is_empty() {
                    break;
                }
                lines += memchr::memchr_iter(b'\n', new).count();
                let length = new.len();
                file.consume(length);
            },
        }
        sleep(Duration::from_millis(2));
    }
}

/// Decodes a page and writes its alerts to a file. Returns whether there is a next page.
type Write = fn(&str, &mut BufWriter<File>) -> bool;

fn write_borrowed(text: &str, file: &mut BufWriter<File>) -> bool {
    let page: Page<'_> = serde_json::from_str(text).unwrap();
    write_lines(&page.results, file);
    page.next_page
}

fn write_owned(text: &str, file: &mut BufWriter<File>) -> bool {
    let page: OwnedPage = serde_json::from_str(text).unwrap();
    write_lines(&page.results, file);
    page.next_page
}

fn write_raw(text: &str, file: &mut BufWriter<File>) -> bool {
    let page: RawPage<'_> = serde_json::from_str(text).unwrap();
    write_lines(&page.results, file);
    page.next_page
}

fn write_values(text: &str, file: &mut BufWriter<File>) -> bool {
    let page: serde_json::Value = serde_json::from_str(text).unwrap();
    write_lines(page["results"].as_array().unwrap(), file);
    page["nextPage"].as_bool().unwrap()
}

fn write_lines(alerts: &[impl Serialize], file: &mut BufWriter<File>) {
    for alert in alerts {
        serde_json::to_writer(&mut *file, alert).unwrap();
        file.write_all(b"\n").unwrap();
    }
}

/// Runs the bare loop on a thread of its own. Returns how long it took.
fn bare(server: &Server, alerts: usize, folder: &Path, write: Write) -> Duration {
    server.reset(alerts);
    let url = server.url();
    let path = folder.join("bare.jsonl");
    let loops = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            let mut file = BufWriter::new(File::create(path).unwrap());
            let began = Instant::now();
            for page in 1.. {
                let url = format!(
                    "{url}/api/v2/tenants/client_1/alerts/search?pageNo={page}&pageSize={PAGE_SIZE}\
                     &queryString=actions:OPEN"
                );
                let body = client.get(url).send().await.unwrap().bytes().await.unwrap();
                let text = std::str::from_utf8(&body).unwrap();
                if !write(text, &mut file) {
                    break;
                }
            }
            file.flush().unwrap();
            began.elapsed()
        })
    });
    loops.join().unwrap()
}
