//! Hours of alerts in a short time: alerts open, change and leave while the network and the server
//! fail, tokens run out, the configuration is reloaded and log files are rotated. In the end the
//! lines agree with the simulator's record, and the process has not grown.
//!
//! `OPSRAMP_TEST_SOAK` sets the duration in seconds; `OPSRAMP_TEST_SEED` repeats a run.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that cannot go on stops"
)]

#[path = "support/exporter.rs"]
mod exporter;
#[path = "support/life.rs"]
mod life;
#[path = "support/lines.rs"]
mod lines;
#[path = "support/proxy.rs"]
mod proxy;

use std::time::Duration;

use fastrand::Rng;
use opsramp_exporter::simulator::{
    DEMO_TENANT, Endpoint, Fault, FaultRule, Simulator, State, World,
};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    exporter::{Exporter, Place, Signal, number, opsramp_with, seed},
    life::live,
    lines::{Reader, Story, wait_for_story},
    proxy::{End, Proxy, Weather},
};

/// Duration in seconds if `OPSRAMP_TEST_SOAK` is not set.
const SHORT: u64 = 20;

/// Duration of one step.
const STEP: Duration = Duration::from_millis(50);

/// Steps between two turns of life. With this number, fewer alerts leave in a minute than the
/// allowance of 500 requests for their reasons, so no requests pile up.
const LIFE: usize = 16;

/// Steps between two measurements of what the process uses.
const LOOK: usize = 20;

/// Lifetime of a token. With it, the exporter needs a new token about every two seconds.
const TOKEN: Duration = Duration::from_secs(2);

/// Growth of memory that is allowed: allocators round up, and a burst may come later than the
/// first ones.
const SLACK: f64 = 4.0 * MIB;

const MIB: f64 = 1024.0 * 1024.0;

/// Time until everything must have been logged: it covers the back-off of the last failure, and
/// the reasons of departures, if the allowance for them is used up.
const SETTLING: Duration = Duration::from_secs(90);

/// Kept connections that are allowed, beyond those of the first third.
const IDLE: f64 = 16.0;

/// Idle threads for blocking work that are allowed.
const BLOCKING: f64 = 4.0;

/// Bytes of the state file that are allowed whatever happened: free pages and the WAL.
const STATE: u64 = 8 << 20;

/// Bytes of the state that are allowed for an alert that has left.
const DEPARTED: u64 = 200;

/// What the process uses.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    memory: f64,
    files: f64,
    threads: f64,
}

/// An exporter under test, with everything that disturbs it.
struct Soak {
    rng: Rng,
    opsramp: Simulator,
    proxy: Proxy,
    place: Place,
    exporter: Exporter,
    reader: Reader,
    reloads: usize,
    faults: usize,
}

// === impl Use ===

impl Use {
    async fn of(exporter: &Exporter) -> Self {
        let metrics = exporter.metrics().await;
        let one = |name| metrics.one(name).unwrap();
        Self {
            memory: one("process_resident_memory_bytes"),
            files: one("process_open_fds"),
            threads: one("process_threads"),
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            memory: self.memory.max(other.memory),
            files: self.files.max(other.files),
            threads: self.threads.max(other.threads),
        }
    }
}

impl std::fmt::Display for Use {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let memory = self.memory / MIB;
        let Self { files, threads, .. } = self;
        write!(f, "{memory:.1} MiB, {files} files, {threads} threads")
    }
}

// === impl Soak ===

impl Soak {
    async fn start(rng: Rng) -> Self {
        let opsramp = opsramp_with(150, |options| options.token_lifetime = TOKEN).await;
        let proxy = Proxy::start(opsramp.addr()).await;
        let mut place = Place::new(&proxy.url()).with_file_sink();
        place.config["searches"][0]["full_read_interval"] = "500ms".into();
        place.config["accounts"][0]["timeout"] = "1s".into();
        place.config["accounts"][0]["max_response_size"] = "2MiB".into();
        let exporter = place.start().await;
        exporter.wait_until_complete().await;
        Self {
            rng,
            opsramp,
            proxy,
            place,
            exporter,
            reader: Reader::default(),
            reloads: 0,
            faults: 0,
        }
    }

    /// Lets alerts live for so long, with trouble now and then. Returns the most that the process
    /// used.
    async fn go_on(&mut self, time: Duration) -> Use {
        let began = Instant::now();
        let mut most = Use::default();
        for step in 0.. {
            if began.elapsed() >= time {
                break;
            }
            self.reader.read(&self.place);
            if step % LIFE == 0 {
                live(&self.opsramp, &mut self.reader.told, &mut self.rng);
            } else if self.rng.u8(..4) == 0 {
                self.change();
            }
            match self.rng.u8(..100) {
                0 => self.spoil(),
                1 => self.turn(),
                2..40 => self.proxy.set(Weather::Fair),
                40 => {
                    self.opsramp.world(|world, _| world.revoke_tokens(None));
                }
                41..43 => self.reload(),
                43..45 => self.rotate(),
                // Otherwise faults would pile up while the back-off of the token grows.
                45..50 => self.opsramp.clear_faults(),
                _ => {}
            }
            if step % LOOK == 0 {
                most = most.max(Use::of(&self.exporter).await);
                for path in ["/", "/api/v1/status", "/api/v1/alerts"] {
                    assert_eq!(self.exporter.get(path).await.0, 200, "{path}");
                }
            }
            tokio::time::sleep(STEP).await;
        }
        most
    }

    /// Changes the state of some open alert.
    fn change(&mut self) {
        let open = |world: &mut World, _| world.open_alerts(DEMO_TENANT).unwrap();
        if let Some(id) = self.rng.choice(self.opsramp.world(open)) {
            let state = *self.rng.choice(State::ALL).unwrap();
            self.opsramp.set_state(id, state).unwrap();
        }
    }

    /// Makes the next one or two answers of the server wrong.
    fn spoil(&mut self) {
        let status = |code, headers: &[(&str, &str)]| Fault::Status {
            code,
            body: None,
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let faults = [
            status(500, &[]),
            status(401, &[]),
            status(429, &[("Retry-After", "1")]),
            Fault::Html,
            Fault::Empty,
            Fault::Truncated,
            Fault::NullResult,
            Fault::GzipBomb { bytes: 4 << 20 },
            Fault::Deep { depth: 100_000 },
            Fault::Stall { bytes: 100 },
            Fault::ResetMidBody,
        ];
        let fault = self.rng.choice(faults).unwrap();
        let endpoints = [Endpoint::Token, Endpoint::Search, Endpoint::Alert];
        let endpoint = self.rng.choice(endpoints).unwrap();
        let times = self.rng.u32(1..3);
        self.opsramp.inject(FaultRule::next(times, endpoint, fault));
        self.faults += 1;
    }

    /// Makes the network bad; it is good again a few steps later.
    fn turn(&mut self) {
        let weathers = [
            Weather::Slow {
                delay: Duration::from_millis(20),
                bytes_per_second: 200_000.0,
            },
            Weather::Cut {
                within: 20_000,
                end: End::Reset,
            },
            Weather::Cut {
                within: 20_000,
                end: End::Closed,
            },
            Weather::Reset,
            Weather::Silent,
        ];
        self.proxy.set(self.rng.choice(weathers).unwrap());
        self.faults += 1;
    }

    /// Loads another configuration, which does not change the lines.
    fn reload(&mut self) {
        let search = &mut self.place.config["searches"][0];
        search["interval"] = (*self.rng.choice(&["100ms", "150ms", "200ms"]).unwrap()).into();
        search["page_size"] = (*self.rng.choice(&[25, 100, 500]).unwrap()).into();
        let groups = [json!(["state"]), json!(["priority", "state"]), json!([])];
        search["group_by"] = self.rng.choice(groups).unwrap();
        self.place.write();
        self.exporter.signal(Signal::HUP);
        self.reloads += 1;
    }

    /// Rotates the log file, and tells the exporter only sometimes.
    fn rotate(&mut self) {
        self.reader.rotate(&self.place);
        if self.rng.bool() {
            self.exporter.signal(Signal::HUP);
        }
    }

    /// Removes all trouble, and waits until every line is there.
    async fn settle(&mut self) -> Story {
        self.proxy.set(Weather::Fair);
        self.opsramp.clear_faults();
        let deadline = Instant::now() + SETTLING;
        loop {
            let metrics = self.exporter.metrics().await;
            let works = metrics.one("opsramp_up{") == Some(1.0);
            let complete = metrics.one("opsramp_search_complete{") == Some(1.0);
            let backlog = metrics.sum("opsramp_sink_backlog_events{");
            if works && complete && backlog == 0.0 {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "works: {works}, complete: {complete}, backlog: {backlog}, {metrics:#?}"
            );
            tokio::time::sleep(STEP).await;
        }
        wait_for_story(&self.place, &self.reader.files(), &self.opsramp).await
    }
}

/// Checks that the state holds the open alerts, and of alerts that have left no more than their
/// names.
fn check_state(place: &Place, open: usize, story: &Story) {
    let path = place.path("state.db");
    let size = std::fs::metadata(&path).unwrap().len();
    let state = rusqlite::Connection::open(&path).unwrap();
    let count = |table| -> usize {
        let query = format!("SELECT count(*) FROM {table}");
        let rows: i64 = state.query_row(&query, (), |row| row.get(0)).unwrap();
        rows.try_into().unwrap()
    };
    let (alerts, departed, journal) = (count("alert"), count("departed"), count("journal"));
    eprintln!("state: {size} bytes, {alerts} alerts, {departed} departed, {journal} events");
    assert_eq!(alerts, open);
    assert_eq!(departed, story.count("left"));
    assert_eq!(journal, 0);
    assert!(size <= STATE + DEPARTED * departed as u64, "{size} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_hours_of_everything_nothing_has_grown_and_the_lines_are_right() {
    let seed = seed();
    let time = Duration::from_secs(number("OPSRAMP_TEST_SOAK").unwrap_or(SHORT));
    eprintln!("{time:?}, OPSRAMP_TEST_SEED={seed}");
    let mut soak = Soak::start(Rng::with_seed(seed)).await;
    let early = soak.go_on(time / 3).await;
    eprintln!("at most, in the first third: {early}");
    let late = soak.go_on(time - time / 3).await;
    eprintln!("after it: {late}");
    let story = soak.settle().await;
    soak.exporter.wait_for_poll().await;
    let last = Use::of(&soak.exporter).await;
    eprintln!("in the end: {last}");

    let Soak {
        opsramp,
        place,
        exporter,
        reader,
        reloads,
        faults,
        ..
    } = soak;
    let ended = exporter.stop().await;
    assert!(!ended.error().contains("panicked"), "{}", ended.error());
    let story_again = Story::judge(&place, &reader.files(), &opsramp).unwrap();
    let told = |story: &Story| ["opened", "changed", "left"].map(|event| story.count(event));
    let [opened, changed, left] = told(&story);
    assert_eq!(told(&story_again), [opened, changed, left]);
    eprintln!(
        "{opened} opened, {changed} changed, {left} left in {} files; {reloads} reloads, {faults} faults",
        reader.files().len()
    );
    let open = opsramp.world(|world, _| world.open_alerts(DEMO_TENANT).unwrap());
    check_state(&place, open.len(), &story);
    assert!(last.memory <= early.memory + SLACK, "{early} … {last}");
    assert!(last.files <= early.files + IDLE, "{early} … {last}");
    assert!(last.threads <= early.threads + BLOCKING, "{early} … {last}");
}
