//! The memory of 300 tenants over TLS; memory and CPU time of 1,000.

use std::{path::Path, thread::sleep, time::Duration};

use serde_json::json;
use tempfile::TempDir;
use tokio::{runtime::Runtime, time::Instant};

use crate::{
    daemon::{Daemon, Samples, config},
    report::{Goal, Report, folder, mebibytes, quick},
    server::Server,
    tls,
};

const SOME: usize = 300;
const MANY: usize = 1_000;
const INTERVAL: Duration = Duration::from_secs(30);
/// Open alerts of each tenant.
const ALERTS: usize = 10;

pub(crate) fn measure(runtime: &Runtime, report: &mut Report) {
    let server = runtime.block_on(Server::start(ALERTS));
    let folder = folder();
    let authority = folder.path().join("ca.pem");
    let url = runtime.block_on(tls::in_front_of(&server.url(), &authority));

    let (daemon, _folder) = start(&url, &authority, SOME);
    let what = "300 tenants × 1 search every 30 s over TLS: memory, resident";
    memory(report, what, &daemon, 30.0);
    daemon.stop();

    let (daemon, _folder) = start(&url, &authority, MANY);
    let intervals = if quick() { 1 } else { 20 };
    let before = polls(&daemon.scrape());
    let (began, cpu) = (Instant::now(), daemon.cpu());
    sleep(INTERVAL * intervals);
    let share = (daemon.cpu() - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
    let after = polls(&daemon.scrape());
    let late = before
        .iter()
        .zip(&after)
        .filter(|(before, after)| **after - **before < f64::from(intervals))
        .count();
    let what = "1,000 tenants × 1 search every 30 s over TLS: CPU, of a core";
    report.row(what, share * 100.0, "%", Goal::AtMost(4.0));
    memory(report, "the same: memory, resident", &daemon, 60.0);
    let what = format!("the same: searches that missed a poll within {intervals} × 30 s");
    report.row(&what, late as f64, "", Goal::AtMost(0.0));
    daemon.stop();
}

/// Starts a daemon, and waits until it has read the alerts of `tenants` tenants and delivered
/// them.
fn start(url: &str, authority: &Path, tenants: usize) -> (Daemon, TempDir) {
    let folder = folder();
    let names: Vec<String> = (1..=tenants).map(|n| format!("client_{n}")).collect();
    let mut config = config(folder.path(), url, &names);
    config["accounts"][0]["tls"] = json!({"ca_file": authority});
    let mut daemon = Daemon::start(folder.path(), &config);
    daemon.wait_until(Duration::from_millis(500), |samples| {
        samples.sum("opsramp_search_complete{") == tenants as f64
            && samples.sum("opsramp_sink_backlog_events{") == 0.0
    });
    (daemon, folder)
}

fn memory(report: &mut Report, what: &str, daemon: &Daemon, goal: f64) {
    let resident = mebibytes(daemon.resident());
    report.row(what, resident, " MiB", Goal::AtMost(goal));
}

/// The number of polls of each search, in the order of their labels.
fn polls(samples: &Samples) -> Vec<f64> {
    samples.values("opsramp_polls_total{").collect()
}
