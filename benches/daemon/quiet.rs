//! Polls that find nothing new, whatever the number of open alerts.

use std::time::Duration;

use serde_json::json;
use tokio::runtime::Runtime;

use crate::{
    daemon::{Daemon, Samples, config},
    report::{Goal, Report, folder, quick},
    server::Server,
};

pub(crate) fn measure(runtime: &Runtime, report: &mut Report) {
    let server = runtime.block_on(Server::start(0));
    let sizes: &[(usize, &str)] = &[
        (10, "10"),
        (1_000, "1,000"),
        (100_000, "100,000"),
        (1_000_000, "1,000,000"),
    ];
    let sizes = if quick() { &sizes[..3] } else { sizes };
    for &(alerts, shown) in sizes {
        server.reset(alerts);
        let folder = folder();
        let mut config = config(folder.path(), &server.url(), &["client_1".to_owned()]);
        config["searches"][0]["interval"] = json!("100ms");
        config["log"]["at_first_start"] = json!("skip");
        let mut daemon = Daemon::start(folder.path(), &config);
        daemon.wait_until(Duration::from_millis(100), |samples| {
            samples.sum("opsramp_search_complete{") == 1.0
        });
        // The last poll of the full read must not count.
        let settled = polls(&daemon.scrape()) + 2.0;
        let pause = Duration::from_millis(20);
        let before = daemon.wait_until(pause, |samples| polls(samples) >= settled);
        let searched = server.searches();
        let cpu = daemon.cpu();
        let enough = polls(&before) + if quick() { 20.0 } else { 60.0 };
        let after = daemon.wait_until(pause, |samples| polls(samples) >= enough);
        let made = polls(&after) - polls(&before);
        let requests = (server.searches() - searched) as f64 / made;
        let spent = (daemon.cpu() - cpu).as_secs_f64() / made * 1e3;
        let took = |samples: &Samples| samples.sum("opsramp_poll_duration_seconds_sum{");
        let mean = (took(&after) - took(&before)) / made * 1e3;
        // A poll that is under way when the counters are read counts only in part.
        let requests = requests.round();
        report.row(
            &format!("quiet poll at {shown} open alerts: requests"),
            requests,
            "",
            Goal::AtMost(1.0),
        );
        report.row(
            &format!("quiet poll at {shown} open alerts: duration, with the request (and {spent:.1} ms of CPU, scrapes included)"),
            mean,
            " ms",
            None,
        );
        daemon.stop();
    }
}

fn polls(samples: &Samples) -> f64 {
    samples.sum("opsramp_poll_duration_seconds_count{")
}
