//! opsramp-exporter: open alerts of OpsRamp as Prometheus gauges, and every new alert as one
//! structured log line.
//!
//! # Layout
//!
//! Data flows one way: [`config`] → [`poll`] → [`opsramp`] → [`track`] → [`store`] → [`deliver`];
//! [`web`] and [`metrics`] show what the others report to [`status`]. `docs/architecture.md` has
//! the picture.

pub mod clock;
pub mod deliver;
pub mod identity;
pub mod opsramp;
pub mod poll;
pub mod record;
pub mod secret;
pub mod status;
pub mod store;
pub mod track;
