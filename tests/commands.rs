//! The program as a process: what `check` and `search` print, and with which status they end.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on stops"
)]

#[path = "support/ports.rs"]
mod ports;
#[path = "support/postgres.rs"]
mod postgres;

use std::{
    fs::Permissions,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::{
        fs::{PermissionsExt as _, chown, symlink},
        process::CommandExt as _,
    },
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use opsramp_exporter::simulator::{
    Allowance, DEMO_KEY, DEMO_SECRET, DEMO_TENANT, Endpoint, Options, Oversized, Simulator,
    TenantOptions,
};
use rustix::process::{Pid, Signal};
use serde_json::Value;

/// Number of alerts of the world: several pages of a hundred.
const ALERTS: usize = 345;

async fn simulator() -> Simulator {
    simulator_of(&[(DEMO_TENANT, None, ALERTS)]).await
}

/// Starts a simulator in which nothing changes, with these tenants: id, partner, number of alerts.
async fn simulator_of(tenants: &[(&str, Option<&str>, usize)]) -> Simulator {
    let tenant = |(id, partner, alerts): &(&str, Option<&str>, usize)| TenantOptions {
        id: (*id).to_owned(),
        partner: partner.map(str::to_owned),
        alerts: *alerts,
        ..TenantOptions::default()
    };
    let options = Options {
        life: None,
        allowance: Allowance::unlimited(),
        tenants: tenants.iter().map(tenant).collect(),
        ..Options::default()
    };
    Simulator::start(options, "127.0.0.1:0").await.unwrap()
}

fn program(simulator: &Simulator, folder: &tempfile::TempDir, arguments: &[&str]) -> Command {
    program_for(&simulator.url(), folder, arguments)
}

fn program_for(url: &str, folder: &tempfile::TempDir, arguments: &[&str]) -> Command {
    let mut command = without_account(folder, arguments);
    command
        .env("OPSRAMP_URL", url)
        .env("OPSRAMP_TENANT_ID", DEMO_TENANT)
        .env("OPSRAMP_CLIENT_ID", DEMO_KEY)
        .env("OPSRAMP_CLIENT_SECRET", DEMO_SECRET);
    command
}

/// The program without variables that name an account.
fn without_account(folder: &tempfile::TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_opsramp-exporter"));
    command.env_clear().current_dir(folder).args(arguments);
    // The file that coverage is written to, if coverage is measured.
    if let Some(file) = std::env::var_os("LLVM_PROFILE_FILE") {
        command.env("LLVM_PROFILE_FILE", file);
    }
    command
}

/// Writes a file that nobody else can read.
fn write_private(folder: &tempfile::TempDir, name: &str, text: &str) {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

/// Runs the program to its end, away from the simulator's threads.
async fn output(mut command: Command) -> (Output, String, String) {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    (output, stdout, stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn check_ends_with_what_came_of_it() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let (done, stdout, stderr) = output(program(&simulator, &folder, &["check"])).await;
    assert_eq!(done.status.code(), Some(0), "{stdout}{stderr}");
    assert!(stdout.ends_with("all 10 steps passed\n"), "{stdout}");

    let mut wrong = program(&simulator, &folder, &["check"]);
    wrong.env("OPSRAMP_CLIENT_SECRET", "hush-hush");
    let (done, stdout, stderr) = output(wrong).await;
    assert_eq!(done.status.code(), Some(1), "{stdout}{stderr}");
    assert!(
        stdout.contains("FAILED   account default, token: "),
        "{stdout}"
    );
    assert!(
        !stdout.contains("hush") && !stderr.contains("hush"),
        "{stdout}{stderr}"
    );

    let wrong = program(&simulator, &folder, &["check", "--opsramp.url", "ftp://x"]);
    let (done, stdout, _) = output(wrong).await;
    assert_eq!(done.status.code(), Some(2), "{stdout}");
    assert!(
        stdout.contains("--opsramp.url: must start with https://"),
        "{stdout}"
    );
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn search_reads_every_page_in_every_form() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let search = |form: &'static str| program(&simulator, &folder, &["search", "--output", form]);

    let (done, json, stderr) = output(search("json")).await;
    assert!(done.status.success() && stderr.is_empty(), "{stderr}");
    let alerts: Vec<Value> = serde_json::from_str(&json).unwrap();
    assert_eq!(alerts.len(), ALERTS);
    assert_eq!(simulator.requests().count(Endpoint::Search), 4);

    let (done, jsonl, stderr) = output(search("jsonl")).await;
    assert!(done.status.success() && stderr.is_empty(), "{stderr}");
    let lines: Vec<Value> = jsonl
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines, alerts);

    let (done, table, stderr) = output(search("table")).await;
    assert!(done.status.success() && stderr.is_empty(), "{stderr}");
    assert_eq!(table.lines().count(), 1 + ALERTS);
    assert!(table.starts_with("ID "), "{table}");
    for (row, alert) in table.lines().skip(1).zip(&alerts) {
        assert!(
            row.starts_with(alert["uniqueId"].as_str().unwrap()),
            "{row}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn search_ends_where_the_server_repeats_its_last_page_for_ever() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    simulator.set_options(|options| options.repeats_last_page = true);
    let search = program(&simulator, &folder, &["search", "--output=jsonl"]);
    let (done, lines, stderr) = output(search).await;
    assert!(done.status.success(), "{stderr}");
    assert_eq!(lines.lines().count(), ALERTS);
    assert_eq!(simulator.requests().count(Endpoint::Search), 5);
}

/// Starts an OpsRamp that gives every search the same answer, whatever is asked for. Returns its
/// URL, and how often it was searched.
async fn stubborn(answer: Value) -> (String, Arc<AtomicUsize>) {
    let searches = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&searches);
    let answer = move |_: &str| {
        counter.fetch_add(1, Ordering::Relaxed);
        answer.clone()
    };
    (opsramp(answer).await, searches)
}

/// Starts an OpsRamp that grants tokens, and answers with what `answer` returns for a path. Returns
/// its URL.
async fn opsramp(answer: impl Fn(&str) -> Value + Clone + Send + Sync + 'static) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let reply = async move |uri: http::Uri| {
        let answer = if uri.path().ends_with("/token") {
            serde_json::json!({"access_token": "t", "expires_in": 7200})
        } else {
            answer(uri.path())
        };
        answer.to_string()
    };
    let router = axum::Router::new().fallback(reply);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn search_ends_where_the_server_looks_at_no_page_number_and_counts_too_many() {
    let folder = tempfile::tempdir().unwrap();
    let (url, searches) = stubborn(serde_json::json!({
        "results": [{"uniqueId": "1"}, {"uniqueId": "2"}],
        "totalResults": 1_000_000_000_000_u64, "nextPage": true,
    }))
    .await;
    let config = "accounts: [{requests_per_minute: 1000000}]";
    std::fs::write(folder.path().join("c.yml"), config).unwrap();
    let arguments = ["search", "--output=jsonl", "--config.file=c.yml"];
    let search = program_for(&url, &folder, &arguments);
    let (done, lines, stderr) = output(search).await;
    assert!(done.status.success(), "{stderr}");
    assert_eq!(lines.lines().count(), 2, "each alert once");
    assert_eq!(searches.load(Ordering::Relaxed), 52);
}

#[tokio::test(flavor = "multi_thread")]
async fn search_shows_each_alert_once_and_tells_how_many_it_could_not_show() {
    let folder = tempfile::tempdir().unwrap();
    for (total, told) in [
        (
            9,
            "opsramp-exporter: account default, tenant client_1: 2 of 9 shown, 2 could not be read\n",
        ),
        (2, ""),
    ] {
        let (url, _) = stubborn(serde_json::json!({
            "results": [{"uniqueId": "1"}, {"uniqueId": "2"}, {"uniqueId": "1"}, 5, {}],
            "totalResults": total,
        }))
        .await;
        for form in ["--output=jsonl", "--output=table"] {
            let mut search = program_for(&url, &folder, &["search", form]);
            search.env("OPSRAMP_TENANT_ID", "client_1");
            let (done, lines, stderr) = output(search).await;
            assert!(done.status.success(), "{stderr}");
            let head = usize::from(form == "--output=table");
            assert_eq!(lines.lines().count(), head + 2, "{lines}");
            assert_eq!(stderr, told);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn totals_that_no_result_can_have_are_no_count() {
    let folder = tempfile::tempdir().unwrap();
    let (url, _) = stubborn(serde_json::json!({"results": [], "totalResults": u64::MAX})).await;
    let mut count = program_for(&url, &folder, &["search", "--count"]);
    count.env("OPSRAMP_TENANT_ID", "client_1,client_2");
    let (done, stdout, stderr) = output(count).await;
    assert_eq!(done.status.code(), Some(1), "{stdout}");
    assert!(
        stderr.contains("the tenants' totals add up to more"),
        "{stderr}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn search_without_results_is_an_empty_array() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let nothing = ["search", "--search.query=actions:CLOSED", "--output=json"];
    let (done, json, stderr) = output(program(&simulator, &folder, &nothing)).await;
    assert!(done.status.success(), "{stderr}");
    assert_eq!(json, "[]\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn search_asks_for_less_where_the_server_refuses_its_paging() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    simulator.set_options(|options| {
        options.max_page_size = 200;
        options.oversized = Oversized::Reject;
    });
    let config = "searches: [{ name: open, page_size: 500 }]\n";
    std::fs::write(folder.path().join("c.yml"), config).unwrap();
    let all = ["--config.file=c.yml", "search", "--output=jsonl"];
    let (done, stdout, stderr) = output(program(&simulator, &folder, &all)).await;
    assert!(done.status.success(), "{stderr}");
    assert_eq!(stdout.lines().count(), ALERTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_count_costs_one_request() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let count = program(&simulator, &folder, &["search", "--count"]);
    let (done, stdout, stderr) = output(count).await;
    assert!(done.status.success(), "{stderr}");
    assert_eq!(stdout, format!("{ALERTS}\n"));
    assert_eq!(simulator.requests().count(Endpoint::Search), 1);
    assert_eq!(simulator.requests().total, 2, "and one for the token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_of_the_environment_is_named_where_it_fails_and_a_star_switches_it_off() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let (gone, _kept) = ports::keep_a_port();
    let count = || {
        let mut count = program(&simulator, &folder, &["search", "--count"]);
        count.env("HTTP_PROXY", format!("http://me:hunter2@{gone}"));
        count
    };
    let (done, _, stderr) = output(count()).await;
    assert_eq!(done.status.code(), Some(1));
    let told = format!("through the proxy {gone}: ");
    assert!(stderr.contains(&told), "{stderr}");
    assert!(!stderr.contains("hunter2"), "{stderr}");
    for (name, exceptions) in [("NO_PROXY", "*"), ("no_proxy", "other.example, *")] {
        let mut count = count();
        // `*` exempts IP addresses as well, and the simulator's URL has one.
        count.env(name, exceptions);
        let (_, stdout, stderr) = output(count).await;
        assert_eq!(stdout, format!("{ALERTS}\n"), "{name}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn search_asks_the_tenants_that_a_search_names_and_counts_them_together() {
    let simulator = simulator_of(&[
        ("client_1", None, 5),
        ("client_2", None, 7),
        ("client_3", None, 11),
    ])
    .await;
    let folder = tempfile::tempdir().unwrap();
    let config = "searches:
  - { name: first, tenants: [client_1] }
  - { name: two, tenants: [client_1, client_2] }
  - { name: all, query: actions:OPEN }
";
    std::fs::write(folder.path().join("c.yml"), config).unwrap();
    for (arguments, count, requests, told) in [
        (&[][..], "5\n", 1, "the first of 3 searches, first;"),
        (&["--search.query=two"], "12\n", 2, ""),
        (&["--search.query=all"], "23\n", 3, ""),
        (&["--search.query=actions:OPEN"], "23\n", 3, ""),
        // A typing error. A server that refuses a query is asked again, and then for less.
        (
            &["--search.query=tow"],
            "",
            9,
            "no search is called tow, so that it is sent as a query",
        ),
        (
            &["--search.query=two", "--opsramp.tenant=client_2"],
            "7\n",
            1,
            "",
        ),
        (
            &["--search.query=two", "--opsramp.tenant=client_3"],
            "",
            0,
            "the search two is for none of the tenants that are asked: client_3",
        ),
    ] {
        let before = simulator.requests().count(Endpoint::Search);
        let all = [&["--config.file=c.yml", "search", "--count"][..], arguments].concat();
        let mut command = program(&simulator, &folder, &all);
        command.env("OPSRAMP_TENANT_ID", "client_1,client_2,client_3");
        let (done, stdout, stderr) = output(command).await;
        assert_eq!(done.status.success(), !count.is_empty(), "{stderr}");
        assert_eq!(stdout, count, "{arguments:?}");
        assert!(stderr.contains(told), "{arguments:?}: {stderr}");
        assert_eq!(
            stderr.is_empty(),
            told.is_empty(),
            "{arguments:?}: {stderr}"
        );
        let asked = simulator.requests().count(Endpoint::Search) - before;
        assert_eq!(asked, requests, "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn search_asks_the_clients_of_a_partner_and_names_a_partner_whose_look_up_fails() {
    let simulator = simulator_of(&[
        ("msp_1", None, 0),
        ("client_1", Some("msp_1"), 5),
        ("client_2", Some("msp_1"), 7),
        ("msp_2", None, 0),
    ])
    .await;
    let folder = tempfile::tempdir().unwrap();
    let config = "accounts: [{ discover_clients: true }]
searches: [{ name: all }, { name: one, tenants: [client_2] }, { name: none, tenants: [client_3] }]
";
    std::fs::write(folder.path().join("c.yml"), config).unwrap();
    for (query, partners, count, requests, told) in [
        ("all", "msp_1", "12\n", 2, ""),
        ("one", "msp_1", "7\n", 1, ""),
        ("actions:OPEN", "msp_1", "12\n", 2, ""),
        (
            "none",
            "msp_1",
            "",
            0,
            "no activated client that the search is for",
        ),
        (
            "all",
            "msp_2",
            "",
            0,
            "no activated client that the search is for",
        ),
        (
            "all",
            "msp_1,msp_9",
            "",
            2,
            "account default, clients of msp_9 cannot be looked up: clients answered 404",
        ),
    ] {
        let before = simulator.requests().count(Endpoint::Search);
        let query = format!("--search.query={query}");
        let all = ["--config.file=c.yml", "search", "--count", &query];
        let mut command = program(&simulator, &folder, &all);
        command.env("OPSRAMP_TENANT_ID", partners);
        let (done, stdout, stderr) = output(command).await;
        assert_eq!(done.status.success(), !count.is_empty(), "{stderr}");
        assert_eq!(stdout, count, "{query}: {stderr}");
        assert!(stderr.contains(told), "{query}: {stderr}");
        let asked = simulator.requests().count(Endpoint::Search) - before;
        assert_eq!(asked, requests, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn search_misses_hidden_clients_only_where_it_may_be_for_them() {
    let url = opsramp(|path| {
        if path.ends_with("/clients/search") {
            let client = serde_json::json!({"uniqueId": "client_1", "name": "One"});
            let unreadable = serde_json::json!({"name": "Without an id"});
            serde_json::json!({"results": [client, unreadable], "totalResults": 4})
        } else {
            serde_json::json!({"results": [], "totalResults": 4})
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let config = "accounts: [{ discover_clients: true }]
searches: [{ name: all }, { name: one, tenants: [client_1] }, { name: both, tenants: [client_1, client_2] }]
";
    std::fs::write(folder.path().join("c.yml"), config).unwrap();
    for (name, count) in [("all", ""), ("one", "4\n"), ("both", "")] {
        let query = format!("--search.query={name}");
        let arguments = ["--config.file=c.yml", "search", "--count", &query];
        let mut command = program_for(&url, &folder, &arguments);
        command.env("OPSRAMP_TENANT_ID", "msp_1");
        let (done, stdout, stderr) = output(command).await;
        assert_eq!(done.status.success(), !count.is_empty(), "{name}: {stderr}");
        assert_eq!(stdout, count, "{name}: {stderr}");
        for told in [
            "the server counts 2 more clients of msp_1 than it shows",
            "1 items of the lists cannot be read as clients",
        ] {
            assert!(stderr.contains(told), "{name}: {stderr}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn search_misses_nothing_of_a_partner_where_the_accounts_together_have_all_that_it_names() {
    // The server does not show all clients of msp_1, and does not know msp_2.
    let url = opsramp(|path| {
        if path.ends_with("/msp_2/clients/search") {
            serde_json::json!("no results")
        } else if path.ends_with("/clients/search") {
            let shown = serde_json::json!([{"uniqueId": "client_1"}]);
            serde_json::json!({"results": shown, "totalResults": 3})
        } else {
            serde_json::json!({"results": [], "totalResults": 4})
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    write_private(&folder, "secret", DEMO_SECRET);
    let account = |more: &str| {
        format!("{{ url: '{url}', client_id: '{DEMO_KEY}', client_secret_file: secret, {more} }}")
    };
    let fixed = &account("name: b, tenants: [client_9]");
    // What becomes of a search for client_1 and client_9 depends on the partner.
    for (partner, told, count_of_both) in [
        (
            "tenants: [msp_1]",
            "the server counts 2 more clients of msp_1 than it shows",
            "8\n",
        ),
        (
            "tenants: [msp_2]",
            "clients of msp_2 cannot be looked up: ",
            "",
        ),
        (
            "tenants: [msp_1], tls: { ca_file: nowhere }",
            "cannot read tls.ca_file of account a: ",
            "",
        ),
    ] {
        let partner = &account(&format!("name: a, discover_clients: true, {partner}"));
        for (accounts, ids, count) in [
            ([partner, fixed], "client_9", "4\n"),
            ([fixed, partner], "client_9", "4\n"),
            ([partner, fixed], "client_1, client_9", count_of_both),
            ([partner, fixed], "client_2, client_9", ""),
        ] {
            let accounts = accounts.map(String::as_str).join(", ");
            let config =
                format!("accounts: [{accounts}]\nsearches: [{{ name: s, tenants: [{ids}] }}]");
            std::fs::write(folder.path().join("c.yml"), &config).unwrap();
            let arguments = ["--config.file=c.yml", "search", "--count"];
            let (done, stdout, stderr) = output(without_account(&folder, &arguments)).await;
            assert_eq!(stdout, count, "{config}: {stderr}");
            assert!(stderr.contains(told), "{config}: {stderr}");
            let has_failed = stderr.ends_with("1 of 2 tenants could not be read\n");
            assert_eq!(has_failed, count.is_empty(), "{config}: {stderr}");
            assert_eq!(done.status.success(), !has_failed, "{config}: {stderr}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn search_names_the_tenant_that_fails_shows_what_the_others_have_and_sums_up_nothing() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let tenants = format!("--opsramp.tenant=client_9,{DEMO_TENANT}");
    let jsonl = ["search", "--output=jsonl", &tenants];
    let (done, stdout, stderr) = output(program(&simulator, &folder, &jsonl)).await;
    assert!(!done.status.success());
    assert_eq!(stdout.lines().count(), ALERTS);
    let told = "opsramp-exporter: account default, tenant client_9: search answered 404";
    let verdict = "\nopsramp-exporter: 1 of 2 tenants could not be read\n";
    assert!(
        stderr.starts_with(told) && stderr.ends_with(verdict),
        "{stderr}"
    );

    let count = ["search", "--count", &tenants];
    let (done, stdout, stderr) = output(program(&simulator, &folder, &count)).await;
    assert!(!done.status.success());
    assert_eq!(stdout, "");
    assert!(
        stderr.starts_with(told) && stderr.ends_with(verdict),
        "{stderr}"
    );
}

/// A single error is cut at a kibibyte, but each tenant has an error of its own.
#[tokio::test(flavor = "multi_thread")]
async fn search_names_every_tenant_that_fails() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let tenants: Vec<String> = (100..150).map(|n| format!("client_{n}")).collect();
    let asked = format!("--opsramp.tenant={}", tenants.join(","));
    let count = program(&simulator, &folder, &["search", "--count", &asked]);
    let (done, _, stderr) = output(count).await;
    assert_eq!(done.status.code(), Some(1), "{stderr}");
    let lines: Vec<&str> = stderr.lines().collect();
    let (last, each) = lines.split_last().unwrap();
    assert_eq!(each.len(), tenants.len(), "{stderr}");
    for (line, tenant) in each.iter().zip(&tenants) {
        let told = format!("opsramp-exporter: account default, tenant {tenant}: ");
        assert!(line.starts_with(&told), "{line}");
    }
    let verdict = "opsramp-exporter: 50 of 50 tenants could not be read";
    assert_eq!(*last, verdict);
}

#[tokio::test(flavor = "multi_thread")]
async fn search_shows_what_one_account_has_where_the_files_of_another_cannot_be_read() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let url = simulator.url();
    write_private(&folder, "secret", DEMO_SECRET);
    let account = |name: &str, tenants: &str, more: &str| {
        format!(
            "- {{name: {name}, url: '{url}', client_id: '{DEMO_KEY}', client_secret_file: secret, \
             tenants: [{tenants}]{more}}}\n"
        )
    };
    let config = format!(
        "accounts:\n{}{}searches:\n- {{name: good, tenants: ['{DEMO_TENANT}']}}\n- {{name: all}}\n",
        account(
            "broken",
            "client_8, client_9",
            ", tls: {ca_file: nowhere.pem}"
        ),
        account("good", DEMO_TENANT, ""),
    );
    std::fs::write(folder.path().join("c.yml"), config).unwrap();
    let search = async |query: &str, form: &str| {
        let arguments = ["--config.file=c.yml", "search", query, form];
        let (done, stdout, stderr) = output(without_account(&folder, &arguments)).await;
        (done.status.code(), stdout, stderr)
    };
    let lines = |form: &str, stdout: &str| match form {
        "--output=json" => serde_json::from_str::<Vec<Value>>(stdout).unwrap().len(),
        "--output=table" => stdout.lines().count() - 1,
        _ => stdout.trim().parse().unwrap(),
    };
    for form in ["--output=json", "--output=table", "--count"] {
        // An account without a tenant that is asked is left alone.
        let (status, stdout, told) = search("--search.query=good", form).await;
        assert_eq!((status, told.as_str()), (Some(0), ""), "{form}");
        assert_eq!(lines(form, &stdout), ALERTS, "{form}");
        let (status, stdout, told) = search("--search.query=all", form).await;
        assert_eq!(status, Some(1), "{form}: {told}");
        assert!(
            told.starts_with(
                "opsramp-exporter: cannot read tls.ca_file of account broken: nowhere.pem: "
            ) && told.ends_with("\nopsramp-exporter: 2 of 3 tenants could not be read\n"),
            "{form}: {told}"
        );
        match form {
            "--count" => assert_eq!(stdout, ""),
            _ => assert_eq!(lines(form, &stdout), ALERTS, "{form}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_of_the_database_with_which_no_daemon_starts_is_a_mistake_of_the_configuration() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("url");
    for (url, told) in [
        ("http://u:hush-hush@h", "cannot be read; write it as"),
        (
            "postgres://u:hush-hush@h/d?sslmode=verify-ca",
            "sslmode must be",
        ),
        (
            "postgres://u:hush-hush@h/d?bogus=1",
            "a parameter that is not known: bogus",
        ),
        (
            "postgres://u:hush-hush@h/d?channel_binding=require",
            "parameter channel_binding=require is not supported",
        ),
        ("postgres://u:hush@hush@h/d", "write those"),
    ] {
        std::fs::write(&file, url).unwrap();
        let arguments = ["--config.check", "--state.postgres-url-file=url"];
        let (done, _, stderr) = output(program(&simulator, &folder, &arguments)).await;
        assert_eq!(done.status.code(), Some(2), "{stderr}");
        assert!(
            stderr.starts_with("opsramp-exporter: url: the URL"),
            "{stderr}"
        );
        assert!(
            stderr.contains(told) && !stderr.contains("hush"),
            "{stderr}"
        );

        let mut command = program(&simulator, &folder, &["--config.check"]);
        command.env("OPSRAMP_EXPORTER_POSTGRES_URL", url);
        let (done, _, stderr) = output(command).await;
        assert_eq!(done.status.code(), Some(2), "{stderr}");
        let input = "opsramp-exporter: OPSRAMP_EXPORTER_POSTGRES_URL: the URL";
        assert!(stderr.starts_with(input), "{stderr}");
        assert!(
            stderr.contains(told) && !stderr.contains("hush"),
            "{stderr}"
        );
    }
    std::fs::write(&file, "\n").unwrap();
    for arguments in [
        &["--config.check", "--state.postgres-url-file=url"][..],
        &["--state.postgres-url-file=url"],
    ] {
        let (done, _, stderr) = output(program(&simulator, &folder, arguments)).await;
        assert_eq!(done.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("the secret file url is empty"), "{stderr}");
    }
    // The file may be there when the daemon starts, which waits for it.
    for (file, next) in [
        ("no", "the exporter needs the URL of the database in it"),
        (
            "/run/credentials/no-such.service/url",
            "whether it can be used shows when the exporter starts",
        ),
    ] {
        let file_flag = format!("--state.postgres-url-file={file}");
        let arguments = ["--config.check", &file_flag];
        let (done, _, stderr) = output(program(&simulator, &folder, &arguments)).await;
        assert_eq!(done.status.code(), Some(0), "{stderr}");
        let told = format!("warning: cannot read the secret file {file}: No such file");
        assert!(stderr.contains(&told), "{stderr}");
        assert!(stderr.ends_with(&format!("; {next}\n")), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_whether_a_daemon_can_use_the_database() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let database = postgres::shared();
    let url = database.fresh();
    let other_password = url.replace(postgres::PASSWORD, "wrong");
    let (server, _) = url.rsplit_once('?').unwrap();
    let taken = database.fresh();
    let (_, schema) = taken.rsplit_once("%3D").unwrap();
    database.sql(&format!("CREATE TABLE {schema}.search ()"));
    let newer = database.fresh();
    let (_, schema) = newer.rsplit_once("%3D").unwrap();
    database.sql(&format!(
        "CREATE TABLE {schema}.opsramp_exporter_schema AS SELECT TRUE AS only_row, 99 AS version"
    ));
    let with_tls = format!("{url}&sslmode=verify-full");
    let of_somebody = database.fresh_for("somebody");
    let (before, _) = of_somebody.rsplit_once("%3D").unwrap();
    let of_others = format!("{before}%3Dpublic");
    let nowhere = of_somebody.replace("fresh_", "no_");
    for (url, status, told) in [
        (
            url.as_str(),
            0,
            "ok       state: logged in to the database postgres as exporter, the tables are made at",
        ),
        (&other_password, 1, "next: look at user and password"),
        (
            &server.replace("/postgres", "/nowhere"),
            1,
            "next: create the database",
        ),
        (
            &of_others,
            1,
            "the user somebody may not create tables in the database postgres",
        ),
        (
            &nowhere,
            1,
            "no schema that search_path names is there in the database postgres",
        ),
        (&taken, 1, "else bears the names of tables: search\n"),
        (&newer, 1, "(schema 99, this version knows"),
        (
            &newer,
            1,
            "next: use that version, or a database of its own",
        ),
        (&with_tls, 1, "next: let the server speak TLS"),
        (
            "postgres://u:p@127.0.0.1:1,127.0.0.1:2/d",
            1,
            "next: look whether host and port are right",
        ),
    ] {
        let mut command = program(&simulator, &folder, &["check"]);
        command.env("OPSRAMP_EXPORTER_POSTGRES_URL", url);
        let (done, stdout, stderr) = output(command).await;
        assert_eq!(done.status.code(), Some(status), "{stdout}{stderr}");
        assert!(stdout.contains(told), "{told}: {stdout}");
        assert!(!stdout.contains(postgres::PASSWORD), "{stdout}");
    }
    let tables = "SELECT count(*) FROM pg_tables WHERE tablename LIKE 'opsramp%'";
    assert_eq!(database.sql(tables), "1", "it has created something");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_everybody_can_read_and_what_wins_over_the_file_is_told() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let (config, secret) = (folder.path().join("c.yml"), folder.path().join("secret"));
    let text = "accounts: [{url: 'https://elsewhere', client_id: a, client_secret_file: secret, tenants: [b]}]";
    std::fs::write(config, text).unwrap();
    std::fs::write(&secret, DEMO_SECRET).unwrap();
    for (mode, is_told) in [(0o644, true), (0o640, false)] {
        std::fs::set_permissions(&secret, Permissions::from_mode(mode)).unwrap();
        for arguments in [
            ["--config.file=c.yml", "--config.check"],
            ["--config.file=c.yml", "check"],
        ] {
            let mut command = program(&simulator, &folder, &arguments);
            command.env_remove("OPSRAMP_CLIENT_SECRET");
            let (done, stdout, stderr) = output(command).await;
            assert_eq!(done.status.code(), Some(0), "{stdout}{stderr}");
            let told = format!("{stdout}{stderr}");
            let warning = "secret: holds a secret and every user of this machine can read it";
            assert_eq!(told.contains(warning), is_told, "{mode:o} {told}");
            let wins = "OPSRAMP_URL over accounts[0].url";
            assert_eq!(told.contains(wins), arguments[1] == "check", "{told}");
        }
    }
}

/// These mistakes end a start, and make a reload fail.
#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_tls_are_looked_at_by_config_check_where_they_can_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(["api.example".to_owned()]).unwrap();
    let certificate = parameters.self_signed(&key).unwrap().pem();
    std::fs::write(at("good.pem"), &certificate).unwrap();
    write_private(&folder, "key.pem", &key.serialize_pem());
    std::fs::write(at("text.pem"), "no certificate").unwrap();
    write_private(&folder, "secret", "hush");
    let check = async |tls: &str| {
        let account =
            "url: 'https://127.0.0.1:9', client_id: a, client_secret_file: secret, tenants: [b]";
        let text = format!("accounts: [{{{account}, tls: {{{tls}}}}}]\n");
        std::fs::write(at("c.yml"), text).unwrap();
        let arguments = ["--config.file=c.yml", "--config.check"];
        let (done, stdout, stderr) = output(without_account(&folder, &arguments)).await;
        (done.status.code(), stdout, stderr)
    };
    for (tls, told) in [
        (
            "ca_file: nowhere.pem",
            "cannot read tls.ca_file of account default: nowhere.pem: No such file",
        ),
        (
            "ca_file: text.pem",
            "tls.ca_file of account default holds no certificate in PEM: text.pem",
        ),
        (
            "ca_file: good.pem, cert_file: good.pem, key_file: text.pem",
            "tls.cert_file or tls.key_file (both have to be in PEM) of account default is not usable",
        ),
    ] {
        let (status, stdout, stderr) = check(tls).await;
        assert_eq!(status, Some(2), "{tls}: {stdout}{stderr}");
        let told = format!("opsramp-exporter: {told}");
        assert!(stderr.starts_with(&told) && stdout.is_empty(), "{stderr}");
    }
    let pair = "ca_file: good.pem, cert_file: good.pem, key_file: key.pem";
    let (status, stdout, stderr) = check(pair).await;
    assert_eq!((status, stdout.as_str()), (Some(0), "c.yml: ok\n"));
    assert_eq!(stderr, "");
    // Files that systemd hands over are there only while the service runs.
    let handed = "/run/credentials/no-such.service/key.pem";
    let (status, _, stderr) = check(&pair.replace("key.pem", handed)).await;
    assert_eq!(status, Some(0), "{stderr}");
    let told = "warning: cannot read tls.key_file of account default: ";
    assert!(stderr.contains(told), "{stderr}");
    // The other files are checked all the same.
    let wrong = pair
        .replace("key.pem", handed)
        .replace("good.pem", "text.pem");
    let (status, _, stderr) = check(&wrong).await;
    assert_eq!(status, Some(2), "{stderr}");
    for (cert_file, key_file, told) in [
        (
            "nowhere.pem",
            handed,
            "cannot read tls.cert_file of account default: nowhere.pem: No such file",
        ),
        (
            "text.pem",
            handed,
            "tls.cert_file of account default holds no certificate in PEM: text.pem",
        ),
        (
            handed,
            "text.pem",
            "tls.key_file of account default holds no private key in PEM: text.pem",
        ),
    ] {
        let (status, _, stderr) =
            check(&format!("cert_file: {cert_file}, key_file: {key_file}")).await;
        assert_eq!(status, Some(2), "{stderr}");
        let told = format!("opsramp-exporter: {told}");
        assert!(stderr.starts_with(&told), "{stderr}");
    }
    let (status, _, stderr) = check(&format!("cert_file: {handed}, key_file: {handed}")).await;
    assert_eq!(status, Some(0), "{stderr}");
    assert_eq!(stderr.matches("warning: cannot read tls.").count(), 2);
}

/// Like the files of TLS: systemd hands them over to the service alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_web_file_that_systemd_hands_over_is_left_to_the_exporter() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let run = async |arguments: &[&str]| {
        let (done, stdout, stderr) = output(program(&simulator, &folder, arguments)).await;
        (done.status.code(), format!("{stdout}{stderr}"))
    };
    let handed = "--web.config.file=/run/credentials/no-such.service/web.yml";
    let warning = "warning: cannot read the web configuration file (";
    let left = "; whether it can be used shows when the exporter starts\n";
    let (status, told) = run(&["--config.check", handed]).await;
    assert_eq!(status, Some(0), "{told}");
    assert!(told.contains(warning) && told.ends_with(left), "{told}");
    // The other steps are taken.
    let (status, told) = run(&["check", handed]).await;
    assert_eq!(status, Some(0), "{told}");
    assert!(told.contains(warning) && told.contains(left), "{told}");
    assert!(told.contains("steps passed"), "{told}");
    // Beside a real mistake, the unreadable file is not a mistake either.
    let (status, told) = run(&["--config.check", handed, "--opsramp.url=ftp://x"]).await;
    assert_eq!(status, Some(2), "{told}");
    assert!(told.contains(warning) && told.contains(left), "{told}");
    let nowhere = "--web.config.file=nowhere/web.yml";
    for command in ["--config.check", "check"] {
        let (status, told) = run(&[command, nowhere]).await;
        assert_eq!(status, Some(2), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_the_web_server_is_left_to_the_exporter_as_that_of_an_account_is() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = parameters.self_signed(&key).unwrap().pem();
    std::fs::write(folder.path().join("good.pem"), certificate).unwrap();
    std::fs::write(
        folder.path().join("web.yml"),
        "tls_server_config:\n  cert_file: good.pem\n  key_file: /run/credentials/no-such.service/key\n",
    )
    .unwrap();
    for (command, ending) in [
        ("--config.check", "configuration: ok\n"),
        ("check", "steps passed\n"),
    ] {
        let arguments = [command, "--web.config.file=web.yml"];
        let (done, stdout, stderr) = output(program(&simulator, &folder, &arguments)).await;
        let told = format!("{stdout}{stderr}");
        assert_eq!(done.status.code(), Some(0), "{told}");
        assert!(stdout.ends_with(ending), "{told}");
        let left = "warning: web.yml:3:13: tls_server_config.key_file: cannot read \
            /run/credentials/no-such.service/key: No such file or directory (os error 2); whether it can be used \
            shows when the exporter starts\n";
        assert!(told.contains(left), "{told}");
        // The other file can be read.
        let step = "web server: TLS, the certificate is valid for ";
        assert_eq!(told.contains(step), command == "check", "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_in_the_place_of_a_secret_file_is_told() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let told = "the secret file . is a folder; name a file in it";
    for (command, status) in [("--config.check", 2), ("check", 1)] {
        let mut command = program(&simulator, &folder, &[command]);
        command
            .env_remove("OPSRAMP_CLIENT_SECRET")
            .env("OPSRAMP_CLIENT_SECRET_FILE", ".");
        let (done, stdout, stderr) = output(command).await;
        assert_eq!(done.status.code(), Some(status), "{stdout}{stderr}");
        let all = format!("{stdout}{stderr}");
        assert!(all.contains(told) && !all.contains("chmod"), "{all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_web_file_is_looked_at_whatever_else_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("web.yml"), "basic_auth_users: {a: b}").unwrap();
    let arguments = ["--web.config.file=web.yml", "--config.check"];
    let (done, _, stderr) = output(without_account(&folder, &arguments)).await;
    assert_eq!(done.status.code(), Some(2), "{stderr}");
    let (first, rest) = stderr.split_once('\n').unwrap();
    assert!(
        first.starts_with("opsramp-exporter: web.yml:1:23: basic_auth_users.a: "),
        "{stderr}"
    );
    assert!(
        rest.starts_with("opsramp-exporter: no OpsRamp account is configured"),
        "{stderr}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_would_poll_nothing_is_not_started() {
    let folder = tempfile::tempdir().unwrap();
    let config = "searches: [{name: a, tenants: [client_1]}]\n";
    std::fs::write(folder.path().join("c.yml"), config).unwrap();
    for arguments in [&["--config.check"][..], &["check"], &[]] {
        let all = [
            &["--config.file=c.yml", "--opsramp.tenant=client_2"],
            arguments,
        ]
        .concat();
        let mut command = program_for("http://127.0.0.1:1", &folder, &all);
        command.env_remove("OPSRAMP_TENANT_ID");
        let (done, stdout, stderr) = output(command).await;
        let told = format!("{stdout}{stderr}");
        assert_eq!(done.status.code(), Some(2), "{told}");
        assert!(
            told.contains("--opsramp.tenant: no search is for"),
            "{told}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_does_not_answer_holds_no_command_up() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let (path, pipe) = (folder.path().join("pipe"), rustix::fs::FileType::Fifo);
    rustix::fs::mknodat(rustix::fs::CWD, path, pipe, mode, 0).unwrap();
    let ask = |arguments: &'static [&str]| output(program(&simulator, &folder, arguments));
    let mut secret = program(&simulator, &folder, &["check"]);
    secret
        .env_remove("OPSRAMP_CLIENT_SECRET")
        .env("OPSRAMP_CLIENT_SECRET_FILE", "pipe");
    let (url, config) = (simulator.url(), folder.path().join("config.yml"));
    let url = url.replace("http:", "https:");
    let text = format!(
        "accounts: [{{url: '{url}', client_id: a, client_secret: b, tenants: [c], \
         tls: {{ca_file: pipe}}}}]"
    );
    std::fs::write(&config, text).unwrap();
    let authority = without_account(&folder, &["--config.file=config.yml", "check"]);
    let (secret, authority, by_web, url, web, health) = tokio::join!(
        output(secret),
        output(authority),
        ask(&["check", "--web.config.file=pipe"]),
        ask(&["--config.check", "--state.postgres-url-file=pipe"]),
        ask(&["--config.check", "--web.config.file=pipe"]),
        ask(&[
            "healthcheck",
            "--web.config.file=pipe",
            "--web.listen-address=127.0.0.1:1"
        ]),
    );
    let commands = [secret, authority, by_web, url, web];
    // `healthcheck` has to ask the exporter within the rest of five seconds, so it waits less
    // long.
    let limits = commands
        .map(|done| (done, 5))
        .into_iter()
        .chain([(health, 2)]);
    for ((done, stdout, stderr), limit) in limits {
        assert_eq!(done.status.code(), Some(1), "{stdout}{stderr}");
        let told = format!("{stdout}{stderr}");
        let unread = format!("could not be read within {limit} s: pipe");
        assert!(told.contains(&unread), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_seen_enough_ends_the_search_quietly() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let mut command = program(&simulator, &folder, &["search", "--output", "jsonl"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let work = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let mut reader = BufReader::new(child.stdout.take().unwrap());
        reader.read_line(&mut line).unwrap();
        drop(reader);
        let status = child.wait().unwrap();
        let mut stderr = String::new();
        child.stderr.unwrap().read_to_string(&mut stderr).unwrap();
        (status, line, stderr)
    });
    let (status, line, stderr) = work.await.unwrap();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
    serde_json::from_str::<Value>(&line).unwrap();
    assert!(
        simulator.requests().count(Endpoint::Search) < 4,
        "it was read to its end"
    );
}

/// Returns a user who may not write everywhere, if the test runs as root, who may.
fn somebody() -> Option<u32> {
    rustix::process::geteuid().is_root().then_some(65534)
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_of_the_state_and_of_log_files_what_their_user_may_do() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("others")).unwrap();
    let config = "state: {path: others/state.db}\n\
                  log: {sinks: [{type: file, name: own, path: others/alerts.jsonl}, \
                   {type: file, name: linked, path: others/linked.jsonl}, \
                   {type: file, name: unread, path: unread.jsonl}]}";
    for (file, text) in [
        ("c.yml", config),
        ("others/alerts.jsonl", ""),
        ("unread.jsonl", ""),
        ("state.db", ""),
        ("linked.jsonl", ""),
    ] {
        std::fs::write(at(file), text).unwrap();
        chown(at(file), somebody(), None).unwrap();
    }
    for linked in ["state.db", "linked.jsonl"] {
        symlink(format!("../{linked}"), at("others").join(linked)).unwrap();
    }
    // The folder of the build may be closed to other users.
    let copied = Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_opsramp-exporter"))
        .arg(at("program"))
        .status();
    assert!(copied.unwrap().success());
    chown(&folder, somebody(), None).unwrap();
    let allow = |name: &str, mode| {
        std::fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
    };
    allow("unread.jsonl", 0o200);
    allow("others", 0o555);
    let mut command = Command::new(at("program"));
    let arguments = ["--config.file=c.yml", "check"];
    let same = program(&simulator, &folder, &arguments);
    command.env_clear().current_dir(&folder).args(arguments);
    for (name, value) in same.get_envs() {
        command.env(name, value.unwrap());
    }
    if let Some(user) = somebody() {
        command.uid(user).gid(user);
    }
    let (_, told, stderr) = output(command).await;
    allow("others", 0o755);
    let of = |sink: &str| {
        let mut lines = told.lines().skip_while(|line| !line.contains(sink));
        [lines.next(), lines.next()].map(|line| line.unwrap_or(&stderr).to_owned())
    };
    let [own, concern] = of("sink own: ");
    assert!(
        own.starts_with("ok ") && own.contains("alerts.jsonl can be written"),
        "{told}"
    );
    assert!(concern.contains("has to create the next one"), "{told}");
    // Files are created where the links lead.
    for (step, found) in [
        ("state: ", "state.db can be opened, "),
        ("sink linked: ", "linked.jsonl can be written, "),
    ] {
        let [line, after] = of(step);
        assert!(line.starts_with("ok ") && line.contains(found), "{told}");
        assert!(!after.contains("cannot be written to"), "{told}");
    }
    let [unread, next] = of("sink unread: ");
    assert!(
        unread.starts_with("FAILED ") && unread.contains("cannot be read and appended to"),
        "{told}"
    );
    assert!(next.contains("both writes and reads it"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_with_an_otlp_sink_starts() {
    let (simulator, folder) = (simulator().await, tempfile::tempdir().unwrap());
    let config = "log: {sinks: [{name: loki, type: otlp, endpoint: 'http://127.0.0.1:9/v1/logs'}]}";
    std::fs::write(folder.path().join("c.yml"), config).unwrap();
    let arguments = ["--config.file=c.yml", "--web.listen-address=127.0.0.1:0"];
    let mut command = program(&simulator, &folder, &arguments);
    command.stderr(Stdio::piped());
    let work = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let lines = lines.map(Result::unwrap);
        let told: Vec<String> = lines
            .take(20)
            .take_while(|line| !line.contains("listening on"))
            .collect();
        let running = child.try_wait().unwrap().is_none();
        child.kill().ok();
        child.wait().unwrap();
        (running, told)
    });
    let (running, told) = tokio::time::timeout(Duration::from_secs(30), work)
        .await
        .unwrap()
        .unwrap();
    assert!(
        running && told.iter().all(|line| !line.contains("panicked")),
        "{told:?}"
    );
}

#[test]
fn a_demo_that_cannot_begin_says_what_to_do() {
    for (argument, folder, told) in [
        (
            ":0",
            "/tmp",
            "write an IP address and a port, like 127.0.0.1:10837",
        ),
        (
            "127.0.0.1:0",
            "/does/not/exist",
            "in /does/not/exist (choose another with TMPDIR)",
        ),
    ] {
        let done = Command::new(env!("CARGO_BIN_EXE_opsramp-exporter"))
            .env("TMPDIR", folder)
            .args(["demo", "--web.listen-address=127.0.0.1:0"])
            .arg(format!("--simulator.listen-address={argument}"))
            .output()
            .unwrap();
        let stderr = String::from_utf8(done.stderr).unwrap();
        assert!(!done.status.success(), "{stderr}");
        assert!(stderr.contains(told), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_finds_its_simulator_whatever_proxies_the_environment_names() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_opsramp-exporter"));
    command
        .env("HTTP_PROXY", "http://127.0.0.1:9")
        .args(["demo", "--web.listen-address=127.0.0.1:0"])
        .arg("--simulator.listen-address=127.0.0.1:0")
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let work = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let read = BufReader::new(child.stdout.take().unwrap()).read_line(&mut line);
        // The demo ends in good order, so that it removes its folder.
        rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        child.wait().unwrap();
        read.unwrap();
        line
    });
    let line = tokio::time::timeout(Duration::from_secs(60), work).await;
    let event: Value = serde_json::from_str(&line.unwrap().unwrap()).unwrap();
    assert_eq!(event["event"], "opened");
}
