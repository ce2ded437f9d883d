//! A thousand tenants over TLS.

use std::{thread::sleep, time::Duration};

use serde_json::json;
use tokio::{runtime::Runtime, time::Instant};

use crate::{
    daemon::{Daemon, Samples, config},
    report::{Goal, Report, folder, mebibytes, quick},
    server::Server,
    tls,
};

const TENANTS: usize = 1_000;
const INTERVAL: Duration = Duration::from_secs(30);
/// Open alerts of each.
const ALERTS: usize = 10;

pub(crate) fn measure(runtime: &Runtime, report: &mut Report) {
    let server = runtime.block_on(Server::start(ALERTS));
    let folder = folder();
    let authority = folder.path().join("ca.pem");
    let url = runtime.block_on(tls::in_front_of(&server.url(), &authority));
    let tenants: Vec<String> = (1..=TENANTS).map(|n| format!("client_{n}")).collect();
    let mut config = config(folder.path(), &url, &tenants);
    config["accounts"][0]["tls"] = json!({"ca_file": authority});
    let mut daemon = Daemon::start(folder.path(), &config);
    daemon.wait_until(Duration::from_millis(500), |samples| {
        samples.sum("opsramp_search_complete{") == TENANTS as f64
            && samples.sum("opsramp_sink_backlog_events{") == 0.0
    });
    let intervals = if quick() { 1 } else { 5 };
    let before: Vec<f64> = polls(&daemon.scrape());
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
    let resident = mebibytes(daemon.resident());
    report.row(
        "the same: memory, resident",
        resident,
        " MiB",
        Goal::AtMost(60.0),
    );
    let what = format!("the same: searches that missed a poll within {intervals} × 30 s");
    report.row(&what, late as f64, "", Goal::AtMost(0.0));
    daemon.stop();
}

/// The polls of each search, in the order of their labels.
fn polls(samples: &Samples) -> Vec<f64> {
    samples.values("opsramp_polls_total{").collect()
}
