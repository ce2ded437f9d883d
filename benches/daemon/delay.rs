//! How long it takes from an alert's opening until its line is there: at an interval of half a
//! minute, and if the searches of a tenant want more requests than the tenant may make.

use std::{
    collections::HashMap,
    fs::File,
    io::Read as _,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    thread::{scope, sleep},
    time::Duration,
};

use fastrand::Rng;
use opsramp_exporter::simulator::{self, Allowance, Simulator, TenantOptions};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, time::Instant};

use crate::{
    daemon::{Daemon, config},
    report::{Goal, Report, folder, quantile, quick},
};

const TENANTS: usize = 100;
const INTERVAL: Duration = Duration::from_secs(30);

/// Searches of the single tenant, and the interval at which each should be polled.
const SEARCHES: usize = 10;
const TOO_SHORT: Duration = Duration::from_secs(5);
/// Requests that the tenant may make in a minute.
const ALLOWANCE: usize = 50;

/// Mean time from one alert to the next.
const GAP: Duration = Duration::from_millis(250);

/// Alerts that are opened for a daemon to find.
struct Trial {
    simulator: Simulator,
    tenants: Vec<String>,
    config: Value,
    /// Time before the first alert, because a fresh allowance lets more requests through.
    warming: Duration,
    lasting: Duration,
    /// Number of lines of each alert.
    lines: usize,
}

pub(crate) fn measure(runtime: &Runtime, report: &mut Report) {
    let folders = [folder(), folder()];
    let lasting = Duration::from_secs(if quick() { 60 } else { 240 });
    let tenants: Vec<String> = (1..=TENANTS).map(|n| format!("client_{n}")).collect();
    let simulator = runtime.block_on(start(&tenants, Allowance::unlimited()));
    let plenty = Trial {
        config: config(folders[0].path(), &simulator.url(), &tenants),
        simulator,
        tenants,
        warming: INTERVAL,
        lasting,
        lines: 1,
    };

    let tenants = vec!["client_1".to_owned()];
    let simulator = runtime.block_on(start(&tenants, Allowance::default()));
    let mut config = config(folders[1].path(), &simulator.url(), &tenants);
    config["accounts"][0]["requests_per_minute"] = ALLOWANCE.into();
    config["searches"] = (1..=SEARCHES)
        .map(|n| json!({"name": format!("search {n}"), "interval": format!("{}s", TOO_SHORT.as_secs())}))
        .collect();
    let scarce = Trial {
        simulator,
        tenants,
        config,
        warming: Duration::from_mins(2),
        lasting,
        lines: SEARCHES,
    };

    let [plenty, scarce] = scope(|scope| {
        let trials = [plenty, scarce].into_iter().zip(&folders);
        let running: Vec<_> = trials
            .map(|(trial, folder)| scope.spawn(|| trial.run(folder.path())))
            .collect();
        let delays = running.into_iter().map(|thread| thread.join().unwrap());
        <[_; 2]>::try_from(delays.collect::<Vec<_>>()).unwrap()
    });
    tell(report, "an interval of 30 s", plenty, 16.0, 31.0);
    let permitted = 60.0 * SEARCHES as f64 / ALLOWANCE as f64;
    let what = format!(
        "{SEARCHES} searches every {} s, of a tenant that may ask {ALLOWANCE} times a minute",
        TOO_SHORT.as_secs()
    );
    tell(
        report,
        &what,
        scarce,
        permitted / 2.0 * 1.1,
        permitted * 1.1,
    );
}

fn tell(report: &mut Report, of: &str, mut delays: Vec<Duration>, mean: f64, most: f64) {
    let sum: Duration = delays.iter().sum();
    let what = format!(
        "from an alert's opening to its line, {} lines, {of}: mean",
        delays.len()
    );
    let figure = sum.as_secs_f64() / delays.len() as f64;
    report.row(&what, figure, " s", Goal::AtMost(mean));
    let figure = quantile(&mut delays, 0.99).as_secs_f64();
    report.row("the same: p99", figure, " s", Goal::AtMost(most));
}

async fn start(tenants: &[String], allowance: Allowance) -> Simulator {
    let options = simulator::Options {
        allowance,
        tenants: tenants
            .iter()
            .map(|id| TenantOptions {
                id: id.clone(),
                alerts: 0,
                ..TenantOptions::default()
            })
            .collect(),
        ..simulator::Options::default()
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Simulator::start(options, address).await.unwrap()
}

// === impl Trial ===

impl Trial {
    /// Returns the delay of each line.
    fn run(self, folder: &Path) -> Vec<Duration> {
        let searches = (self.tenants.len() * self.lines) as f64;
        let mut daemon = Daemon::start(folder, &self.config);
        daemon.wait_until(Duration::from_millis(100), |samples| {
            samples.sum("opsramp_search_complete{") == searches
        });
        sleep(self.warming);
        let mut rng = Rng::with_seed(7);
        let mut opened = HashMap::new();
        let mut delays = Vec::new();
        let mut log = Log::open(&folder.join("alerts.jsonl"));
        let end = Instant::now() + self.lasting;
        let mut next = Instant::now();
        loop {
            let now = Instant::now();
            if now >= next && now < end {
                let tenant = rng.choice(&self.tenants).unwrap();
                let id = self.simulator.open_many(tenant, 1).unwrap()[0];
                let alert = self.simulator.world(|world, _| world.snapshot(id).unwrap());
                opened.insert(alert.unique_id, now);
                next = now + GAP.mul_f64(2.0 * rng.f64());
            }
            let found = log.alerts();
            let now = Instant::now();
            delays.extend(found.iter().map(|alert| now - opened[alert]));
            if now >= end && delays.len() == opened.len() * self.lines {
                daemon.stop();
                return delays;
            }
            assert!(now < end + 4 * INTERVAL, "lines are missing");
            sleep(Duration::from_millis(2));
        }
    }
}

/// The log file, read as it grows.
struct Log {
    file: File,
    rest: Vec<u8>,
}

// === impl Log ===

impl Log {
    fn open(path: &Path) -> Self {
        // The file may not be there yet: the daemon creates it with its first line.
        let file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(path);
        Self {
            file: file.unwrap(),
            rest: Vec::new(),
        }
    }

    /// The alerts of the opened events that were written since the last call.
    fn alerts(&mut self) -> Vec<String> {
        self.file.read_to_end(&mut self.rest).unwrap();
        let whole = self.rest.iter().rposition(|byte| *byte == b'\n');
        let rest = self.rest.split_off(whole.map_or(0, |last| last + 1));
        let lines = std::mem::replace(&mut self.rest, rest);
        let records = serde_json::Deserializer::from_slice(&lines).into_iter::<Value>();
        records
            .map(Result::unwrap)
            .filter(|record| record["event"] == "opened")
            .map(|record| record["alert_id"].as_str().unwrap().to_owned())
            .collect()
    }
}
