//! opsramp-exporter: shows the open alerts of OpsRamp as Prometheus gauges, and writes every new
//! alert as one structured log line.
//!
//! # Layout
//!
//! [`poll`] asks the API through [`opsramp`], compares the answers with the known alerts in
//! [`track`], and commits alerts and events to the [`store`]. [`deliver`] reads the events from
//! there and hands them to the sinks. [`web`] and [`metrics`] show what all of them report to
//! [`status`]. `docs/architecture.md` has the picture.

pub mod app;
pub mod build_info;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod deliver;
pub mod demo;
mod error_chain;
mod excerpt;
mod file_id;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod health;
pub mod healthcheck;
mod http_client;
mod http_date;
pub mod identity;
pub mod logging;
pub mod metrics;
mod names;
pub mod opsramp;
mod paths;
mod pem;
mod plain;
pub mod poll;
#[cfg(test)]
#[path = "../tests/support/ports.rs"]
mod ports;
mod proxy;
mod reading;
pub mod record;
mod redirect;
mod runtime;
pub mod search_command;
pub mod secret;
pub mod service_manager;
pub mod signals;
pub mod simulator;
pub mod status;
pub mod store;
pub mod track;
mod validity;
pub mod web;
