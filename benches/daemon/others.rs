//! Other programs for the same job on the same pages: what people write today.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    report::folder,
    server::{PAGE_SIZE, Server},
};

const PYTHON: &str = r#"
import json, sys, urllib.request
url, size = sys.argv[1], int(sys.argv[2])
page = 1
with open("alerts.jsonl", "w") as out:
    while page:
        query = f"{url}/api/v2/tenants/client_1/alerts/search?pageNo={page}&pageSize={size}&queryString=actions:OPEN"
        with urllib.request.urlopen(query) as answer:
            found = json.load(answer)
        for alert in found["results"]:
            out.write(json.dumps(alert) + "\n")
        page = page + 1 if found["nextPage"] else 0
"#;

const SHELL: &str = r#"
page=1
while [ -n "$page" ]; do
    curl -sf "$0/api/v2/tenants/client_1/alerts/search?pageNo=$page&pageSize=$1&queryString=actions:OPEN" > page.json || exit
    jq -c '.results[]' page.json >> alerts.jsonl || exit
    page=$(jq -r "if .nextPage then $page + 1 else empty end" page.json)
done
"#;

/// How long each program takes to read a result and write it to a file; `None` if the program is
/// not installed, or fails.
pub(crate) fn read(server: &Server, alerts: usize) -> Vec<(&'static str, Option<Duration>)> {
    let (url, size) = (server.url(), PAGE_SIZE.to_string());
    let opcli = std::env::var_os("OPSRAMP_TEST_VENV").map_or_else(
        || PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("test-venv"),
        PathBuf::from,
    );
    let mut commands = [
        ("a Python script (urllib, json)", Command::new("python3")),
        ("opcli 0.31", Command::new(opcli.join("bin/opcli"))),
        ("curl and jq in a loop", Command::new("bash")),
    ];
    commands[0].1.args(["-c", PYTHON, &url, &size]);
    commands[1].1.args([
        "getalerts",
        "--url",
        &url,
        "--client_id",
        "demo-key",
        "--client_secret",
        "demo-secret",
        "--tenant",
        "client_1",
        "--query",
        "actions:OPEN",
    ]);
    commands[2].1.args(["-c", SHELL, &url, &size]);
    commands
        .into_iter()
        .map(|(name, command)| (name, run(server, alerts, command)))
        .collect()
}

fn run(server: &Server, alerts: usize, mut command: Command) -> Option<Duration> {
    server.reset(alerts);
    let folder = folder();
    let output = std::fs::File::create(folder.path().join("output")).unwrap();
    command
        .current_dir(folder.path())
        .env("NO_PROXY", "127.0.0.1")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(Stdio::null());
    let began = Instant::now();
    let status = command.status().ok()?;
    let took = began.elapsed();
    // A missing `jq` shows in the status of the shell.
    (status.success() && server.searches() >= (alerts / PAGE_SIZE) as u64).then_some(took)
}
