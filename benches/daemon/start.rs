//! The time from the start of the process to the first answer of `/metrics`, and to the first poll.

use std::time::Duration;

use tokio::runtime::Runtime;

use crate::{
    daemon::{Daemon, config},
    report::{Goal, Report, folder, milliseconds, quantile, quick},
    server::Server,
};

const ALERTS: usize = 100_000;

pub(crate) fn measure(runtime: &Runtime, report: &mut Report) {
    let rounds = if quick() { 5 } else { 21 };
    let server = runtime.block_on(Server::start(0));
    let tenants = ["client_1".to_owned()];

    let new = || {
        let folder = folder();
        let mut daemon = Daemon::start(
            folder.path(),
            &config(folder.path(), &server.url(), &tenants),
        );
        daemon.first_scrape()
    };
    let times = (0..rounds).map(|_| new()).collect();
    row(
        report,
        "start to the first `/metrics`, no state file yet",
        times,
        10.0,
    );

    let folder = folder();
    let config = config(folder.path(), &server.url(), &tenants);
    let again = || {
        let mut daemon = Daemon::start(folder.path(), &config);
        let took = daemon.first_scrape();
        daemon.stop();
        took
    };
    again();
    let times = (0..rounds).map(|_| again()).collect();
    row(report, "the same with a state file, empty", times, 10.0);

    server.reset(ALERTS);
    let mut daemon = Daemon::start(folder.path(), &config);
    daemon.wait_until(Duration::from_millis(50), |samples| {
        samples.sum("opsramp_search_complete{") == 1.0
            && samples.sum("opsramp_sink_backlog_events{") == 0.0
    });
    daemon.stop();
    let times = (0..rounds).map(|_| again()).collect();
    row(report, "the same with 100,000 alerts in it", times, 150.0);

    let folder = crate::report::folder();
    let config = crate::daemon::config(folder.path(), &server.url(), &tenants);
    let mut daemon = Daemon::start(folder.path(), &config);
    daemon.wait_until(Duration::from_millis(5), |samples| {
        samples.sum("opsramp_sink_events_total{") > ALERTS as f64 / 2.0
    });
    // Dropping the daemon sends SIGKILL, in the midst of the full read.
    drop(daemon);
    let again = || Daemon::start(folder.path(), &config).first_scrape();
    let times = (0..rounds).map(|_| again()).collect();
    let what = "the same after a SIGKILL amidst the reading of 100,000";
    row(report, what, times, 1000.0);
    let recovered = || {
        let mut daemon = Daemon::start(folder.path(), &config);
        daemon.wait_until(Duration::from_millis(2), |samples| {
            samples.sum("opsramp_up{") == 1.0
        });
        daemon.spawned.elapsed()
    };
    let times = (0..rounds).map(|_| recovered()).collect();
    let what = "start to the end of the first poll, killed amidst the reading of 100,000";
    row(report, what, times, 1000.0);
}

fn row(report: &mut Report, what: &str, mut times: Vec<Duration>, goal: f64) {
    let worst = milliseconds(quantile(&mut times, 1.0));
    let what = format!("{what}, median of {} (worst {worst:.0} ms)", times.len());
    let median = milliseconds(quantile(&mut times, 0.5));
    report.row(&what, median, " ms", Goal::AtMost(goal));
}
