//! One search with a few alerts that polls every 30 seconds, and a Prometheus that scrapes every
//! 15 seconds.

use std::{thread::sleep, time::Duration};

use tokio::{runtime::Runtime, time::Instant};

use crate::{
    daemon::{Daemon, config},
    http::Connection,
    report::{Goal, Report, folder, mebibytes, quick},
    server::Server,
};

const SCRAPE_INTERVAL: Duration = Duration::from_secs(15);

pub(crate) fn measure(runtime: &Runtime, report: &mut Report) {
    let server = runtime.block_on(Server::start(36));
    let folder = folder();
    let config = config(folder.path(), &server.url(), &["client_1".to_owned()]);
    let mut daemon = Daemon::start(folder.path(), &config);
    daemon.wait_until(Duration::from_millis(100), |samples| {
        samples.sum("opsramp_search_complete{") == 1.0
            && samples.sum("opsramp_sink_backlog_events{") == 0.0
    });
    let mut prometheus = Connection::open(daemon.address).unwrap();
    let mut scrape = || {
        prometheus
            .get("/metrics", "Accept-Encoding: gzip\r\n")
            .map(drop)
            .unwrap();
    };
    scrape();
    let (began, before) = (Instant::now(), daemon.cpu());
    for _ in 0..if quick() { 2 } else { 6 } {
        sleep(SCRAPE_INTERVAL);
        scrape();
    }
    let share = (daemon.cpu() - before).as_secs_f64() / began.elapsed().as_secs_f64();
    let resident = mebibytes(daemon.resident());
    report.row(
        "idle memory, resident",
        resident,
        " MiB",
        Goal::AtMost(12.0),
    );
    let what = "idle CPU, polled every 30 s and scraped every 15 s, of a core";
    report.row(what, share * 100.0, "%", Goal::AtMost(0.05));
    daemon.stop();
}
