//! API clients by other authors read the simulator. If the simulator serves them as well as the
//! exporter, it simulates the API and not the exporter's own client.
//!
//! The clients come from `PyPI` into a virtual environment: the one that `OPSRAMP_TEST_VENV`
//! names, or one in the target folder, which is made if it is missing.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on stops"
)]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use opsramp_exporter::simulator::{
    Action, Allowance, DEMO_KEY, DEMO_SECRET, DEMO_TENANT, Options, Simulator, TenantOptions,
};
use serde_json::Value;
use tokio::{process::Command, sync::OnceCell};

const CLIENTS: [&str; 2] = ["opsrampcli==0.31", "python-opsramp==3.5"];

/// Number of alerts: several pages, the last one not full.
const ALERTS: usize = 1203;

/// Starts a simulator whose world does not change, and whose pages have at most this many alerts.
async fn opsramp(max_page_size: usize) -> Simulator {
    let options = Options {
        max_page_size,
        allowance: Allowance::unlimited(),
        life: None,
        tenants: vec![TenantOptions {
            id: DEMO_TENANT.to_owned(),
            alerts: ALERTS + 1,
            ..TenantOptions::default()
        }],
        ..Options::default()
    };
    let simulator = Simulator::start(options, "127.0.0.1:0").await.unwrap();
    // An alert that must not be read.
    let oldest = simulator.world(|world, _| world.open_alerts(DEMO_TENANT).unwrap()[0]);
    simulator.act(oldest, Action::Acknowledge).unwrap();
    simulator
}

fn open_ids(simulator: &Simulator) -> BTreeSet<String> {
    let open = simulator.world(|world, _| world.open_alerts(DEMO_TENANT).unwrap());
    open.iter().map(|id| id.number().to_string()).collect()
}

/// Runs a program to its end, which must be a success.
async fn run(program: impl AsRef<Path>, arguments: &[&str]) -> Output {
    let program = program.as_ref();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    // The simulator is on this machine, whatever proxy the packages came through.
    command.env("NO_PROXY", "127.0.0.1");
    let output = command
        .output()
        .await
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    assert!(
        output.status.success(),
        "{} {arguments:?}: {}\n{}\n{}",
        program.display(),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Returns the virtual environment with the clients.
async fn environment() -> &'static Path {
    static ENVIRONMENT: OnceCell<PathBuf> = OnceCell::const_new();
    let made = ENVIRONMENT.get_or_init(async || {
        if let Some(path) = std::env::var_os("OPSRAMP_TEST_VENV") {
            return path.into();
        }
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-venv");
        // This file is written last, so that an environment that was left half made is made again.
        let complete = path.join(CLIENTS.join(" "));
        if !complete.exists() {
            let folder = path.to_str().unwrap();
            run("python3", &["-m", "venv", "--clear", folder]).await;
            let pip = ["-m", "pip", "install", "--quiet"];
            let pip = [&pip[..], &CLIENTS[..]].concat();
            run(path.join("bin/python"), &pip).await;
            std::fs::write(complete, "").unwrap();
        }
        path
    });
    made.await
}

async fn opcli(simulator: &Simulator, arguments: &[&str]) -> String {
    let url = simulator.url();
    let account = [
        "getalerts",
        "--url",
        &url,
        "--client_id",
        DEMO_KEY,
        "--client_secret",
        DEMO_SECRET,
        "--tenant",
        DEMO_TENANT,
        "--query",
        "actions:OPEN",
    ];
    let arguments = [&account[..], arguments].concat();
    let output = run(environment().await.join("bin/opcli"), &arguments).await;
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the ids in a list of alerts, each of which must occur once.
fn ids(alerts: &Value) -> BTreeSet<String> {
    let alerts = alerts.as_array().unwrap();
    let ids = alerts.iter().map(|alert| {
        let id = alert["uniqueId"].as_str().unwrap();
        assert_eq!(alert["status"], "New", "{alert}");
        id.to_owned()
    });
    let ids: BTreeSet<String> = ids.collect();
    assert_eq!(ids.len(), alerts.len(), "each once");
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn opcli_reads_all_open_alerts_over_several_pages_and_counts_them() {
    for max_page_size in [500, 100] {
        let simulator = opsramp(max_page_size).await;
        let alerts = opcli(&simulator, &[]).await;
        let alerts: Value = serde_json::from_str(&alerts).unwrap();
        assert_eq!(ids(&alerts), open_ids(&simulator));
        let pages = ALERTS.div_ceil(max_page_size) as u64;
        assert_eq!(simulator.requests().searches(DEMO_TENANT), pages);
        let count = opcli(&simulator, &["--count"]).await;
        assert_eq!(count, format!("Matched {ALERTS} alerts.\n"));
        assert_eq!(simulator.requests().searches(DEMO_TENANT), pages + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn python_opsramp_reads_all_open_alerts_over_several_pages() {
    const SCRIPT: &str = r#"
import json, sys
import opsramp.binding

url, key, secret, tenant = sys.argv[1:]
tenant = opsramp.binding.connect(url, key, secret).tenant(tenant)
found = tenant.search("queryString=actions:OPEN", suffix="alerts/search")
json.dump(found, sys.stdout)
"#;
    for max_page_size in [500, 100] {
        let simulator = opsramp(max_page_size).await;
        let url = simulator.url();
        let arguments = ["-c", SCRIPT, &url, DEMO_KEY, DEMO_SECRET, DEMO_TENANT];
        let output = run(environment().await.join("bin/python"), &arguments).await;
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(found["totalResults"], ALERTS);
        assert_eq!(ids(&found["results"]), open_ids(&simulator));
        assert!(simulator.requests().searches(DEMO_TENANT) > 1);
    }
}
