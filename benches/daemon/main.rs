//! Measures the whole daemon as a process of its own: `cargo bench --bench daemon`, or with the
//! names of parts: `cargo bench --bench daemon -- start idle`.
//!
//! The harness is our own. A loop around a function could measure neither the start of a process
//! nor its memory nor its effect on other programs.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on stops, and prints its figures"
)]

#[path = "../support/daemon.rs"]
mod daemon;
mod delay;
#[path = "../support/http.rs"]
mod http;
mod idle;
mod others;
mod quiet;
mod reading;
#[path = "../support/report.rs"]
mod report;
mod scrapes;
#[path = "../support/server.rs"]
mod server;
mod start;
mod tenants;
#[path = "../support/tls.rs"]
mod tls;

use report::{Goal, Report, wanted};

type Measure = fn(&tokio::runtime::Runtime, &mut Report);

fn main() {
    // The daemon's library installs the provider as well; whoever is first succeeds.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let mut report = Report::new();
    let binary = daemon::binary();
    println!("of {}", binary.display());
    let size = std::fs::metadata(&binary).unwrap().len();
    let size = size as f64 / 1e6;
    report.row("the binary, stripped", size, " MB", Goal::AtMost(12.0));
    let parts: [(&str, Measure); 7] = [
        ("start", start::measure),
        ("idle", idle::measure),
        ("reading", reading::measure),
        ("quiet", quiet::measure),
        ("scrapes", scrapes::measure),
        ("tenants", tenants::measure),
        ("delay", delay::measure),
    ];
    for (name, measure) in parts {
        if wanted(name) {
            measure(&runtime, &mut report);
        }
    }
}
