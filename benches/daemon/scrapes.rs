//! Eight scrapers that ask as fast as they can, while the searches are polled.

use std::{thread::sleep, time::Duration};

use tokio::{runtime::Runtime, time::Instant};

use crate::{
    daemon::{Daemon, config},
    http::Connection,
    report::{Goal, Report, folder, milliseconds, quantile, quick},
    server::Server,
};

const SERIES: usize = 10_000;
const SCRAPERS: usize = 8;

pub(crate) fn measure(runtime: &Runtime, report: &mut Report) {
    let server = runtime.block_on(Server::start(36));
    let tenants = tenants_for_series(&server);
    let (daemon, _folder) = start(&server, tenants);
    let series = daemon.scrape().series();
    let length = Duration::from_secs(if quick() { 3 } else { 10 });
    let began = Instant::now();
    let scrapers: Vec<_> = (0..SCRAPERS)
        .map(|_| {
            let mut connection = Connection::open(daemon.address).unwrap();
            std::thread::spawn(move || {
                let mut times = Vec::new();
                while began.elapsed() < length {
                    let asked = Instant::now();
                    connection
                        .get("/metrics", "Accept-Encoding: gzip\r\n")
                        .map(drop)
                        .unwrap();
                    times.push(asked.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times: Vec<Duration> = scrapers
        .into_iter()
        .flat_map(|scraper| scraper.join().unwrap())
        .collect();
    let rate = times.len() as f64 / began.elapsed().as_secs_f64();
    let what =
        format!("`/metrics` with {series} series, gzip, {SCRAPERS} scrapers on the same cores");
    report.row(&what, rate, " a second", Goal::AtLeast(2_000.0));
    let p99 = milliseconds(quantile(&mut times, 0.99));
    report.row("the same: p99", p99, " ms", Goal::AtMost(10.0));
    daemon.stop();
}

/// The number of tenants that have at least `SERIES` series.
fn tenants_for_series(server: &Server) -> usize {
    let [few, more] = [10, 20].map(|tenants| {
        let (daemon, _folder) = start(server, tenants);
        daemon.scrape().series()
    });
    (SERIES - few).div_ceil((more - few) / 10) + 10
}

fn start(server: &Server, tenants: usize) -> (Daemon, tempfile::TempDir) {
    let folder = folder();
    let tenants: Vec<String> = (1..=tenants).map(|n| format!("client_{n}")).collect();
    let config = config(folder.path(), &server.url(), &tenants);
    let mut daemon = Daemon::start(folder.path(), &config);
    daemon.wait_until(Duration::from_millis(100), |samples| {
        samples.sum("opsramp_search_complete{") == tenants.len() as f64
            && samples.sum("opsramp_sink_backlog_events{") == 0.0
    });
    // The first polls may have left something to do.
    sleep(Duration::from_secs(1));
    (daemon, folder)
}
