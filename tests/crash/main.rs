//! The real binary is killed, or its disk fails, while alerts open, change and leave. After each
//! restart the lines of its log file are compared with what happened to the alerts: no line is
//! lost, doubled or torn.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that cannot go on stops"
)]

mod burst;
#[path = "../support/exporter.rs"]
mod exporter;
mod inject;
mod kills;
#[path = "../support/life.rs"]
mod life;
#[path = "../support/lines.rs"]
mod lines;
mod power;
mod trace;
