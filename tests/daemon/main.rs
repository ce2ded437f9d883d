//! The real binary, from its flags to its exit status, against a simulated OpsRamp.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on stops"
)]

mod command_line;
mod documents;
mod events;
#[path = "../support/exporter.rs"]
mod exporter;
mod failures;
#[path = "../support/ports.rs"]
mod ports;
mod reload;
mod secure;
mod service_manager;
mod starting;
mod stopping;
mod web;
