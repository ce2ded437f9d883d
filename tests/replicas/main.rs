//! Several replicas of the real binary on a real PostgreSQL server: they share the searches out,
//! die, sleep, lose the database, and no alert's line is lost.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that cannot go on stops"
)]

mod database;
#[path = "../support/exporter.rs"]
mod exporter;
mod lock;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../support/proxy.rs"]
mod proxy;
mod reload;
mod shares;
mod survive;

use std::time::Duration;

use opsramp_exporter::simulator::{Simulator, TenantOptions};
use serde_json::json;

use crate::exporter::{Exporter, Metrics, Place, eventually, opsramp_with};

/// Long enough for a busy machine, short enough for a test.
const LEASE: Duration = Duration::from_secs(5);

/// Starts an OpsRamp with so many tenants, each with a few open alerts.
async fn opsramp(tenants: usize) -> Simulator {
    let tenants = (0..tenants).map(|number| TenantOptions {
        id: tenant(number),
        alerts: 2,
        ..TenantOptions::default()
    });
    let tenants: Vec<_> = tenants.collect();
    opsramp_with(0, |options| options.tenants = tenants).await
}

fn tenant(number: usize) -> String {
    format!("client_{number}")
}

/// Returns the place of a replica. It differs from that of another replica by its folder, with its
/// log file.
fn replica(opsramp: &Simulator, tenants: usize, searches: usize, database: &str) -> Place {
    let mut place = Place::new(&opsramp.url()).with_file_sink();
    place.secrets.push(postgres::PASSWORD.to_owned());
    let tenants: Vec<String> = (0..tenants).map(tenant).collect();
    place.config["accounts"][0]["tenants"] = json!(tenants);
    let searches =
        (0..searches).map(|number| json!({"name": number.to_string(), "interval": "500ms"}));
    place.config["searches"] = searches.collect();
    place.config["log"]["events"] = json!(["opened"]);
    place.config["state"] =
        json!({"postgres": {"url": database, "lease": format!("{}s", LEASE.as_secs())}});
    place
}

/// Returns the schema in which the tables behind a URL are.
fn schema_of(url: &str) -> &str {
    url.rsplit_once("%3D").unwrap().1
}

/// Whether a replica shows that it holds so many searches.
fn holds(count: usize) -> impl Fn(&Metrics) -> bool {
    move |metrics| metrics.sum("opsramp_lease_held{") == count as f64
}

async fn wait_until_ready(replica: &Exporter) {
    eventually("it is ready", async || {
        replica.get("/-/ready").await.0 == 200
    })
    .await;
}
