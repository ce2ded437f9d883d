//! The ways to start the exporter, and what keeps it from starting.

use std::net::{Ipv4Addr, TcpListener};

use opsramp_exporter::simulator::{DEMO_KEY, DEMO_TENANT};
use serde_json::json;
use tokio::process::Command;

use crate::exporter::{
    Metrics, Place, SECRET, Signal, binary, command, eventually, needed, opsramp,
};

/// Starts the exporter and waits for the lines of two alerts.
async fn logs_two_alerts(place: &Place, command: Command) {
    let exporter = place.start_as(command).await;
    let lines = exporter.logs(2, "two lines").await;
    assert!(lines.iter().all(|line| line.contains(r#""opened""#)));
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flags_are_enough() {
    let opsramp = opsramp(2).await;
    let place = Place::new(&opsramp.url());
    let mut command = place.settle(command(binary()));
    command
        .args(["--opsramp.url", &opsramp.url()])
        .args(["--opsramp.tenant", DEMO_TENANT])
        .args(["--opsramp.client-id", DEMO_KEY])
        .args(["--opsramp.client-secret-file", "secret"])
        .args(["--search.interval", "1s"])
        .args(["--state.path", "flags.db"])
        .args(["--web.listen-address", "127.0.0.1:0"]);
    logs_two_alerts(&place, command).await;
    assert!(place.path("flags.db").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_is_enough() {
    let opsramp = opsramp(2).await;
    let place = Place::new(&opsramp.url());
    let mut command = place.settle(command(binary()));
    command
        .env("OPSRAMP_URL", opsramp.url())
        .env("OPSRAMP_TENANT_ID", DEMO_TENANT)
        .env("OPSRAMP_CLIENT_ID", DEMO_KEY)
        .env("OPSRAMP_CLIENT_SECRET", SECRET)
        .env("STATE_DIRECTORY", place.path(""))
        // There is no variable for the addresses, and no test takes a fixed port.
        .args(["--web.listen-address=127.0.0.1:0", "--search.interval=1s"]);
    logs_two_alerts(&place, command).await;
    assert!(place.path("state.db").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_may_be_named_by_the_environment() {
    let opsramp = opsramp(2).await;
    let place = Place::new(&opsramp.url());
    place.write();
    let mut command = place.settle(command(binary()));
    command.env("OPSRAMP_EXPORTER_CONFIG_FILE", place.path("config.yml"));
    logs_two_alerts(&place, command).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_on_one_state_file_the_second_ends_with_status_1() {
    let opsramp = opsramp(1).await;
    let place = Place::new(&opsramp.url());
    let first = place.start().await;
    first.wait_until_complete().await;
    let second = place.run(place.command()).await;
    assert_eq!(second.code(), Some(1));
    let told = second.error();
    let holder = format!("another exporter (process {}) uses it", first.id());
    assert!(
        told.contains("state.db") && told.contains(&holder),
        "{told}"
    );
    assert_eq!(second.stdout.len(), 0);
    opsramp.open_many(DEMO_TENANT, 1).unwrap();
    first.logs(2, "the first goes on").await;
    first.stop().await;
}

/// A start script may remove the lock file because it takes the lock for one that was left behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_another_one_has_since_its_lock_was_removed_ends_the_first_with_status_1() {
    let opsramp = opsramp(1).await;
    let place = Place::new(&opsramp.url());
    let first = place.start().await;
    // Stopped amid a write, the first process would keep SQLite's lock.
    let is_recorded = |metrics: &Metrics| metrics.sum("opsramp_sink_events_total{") == 1.0;
    first.wait_for("its line is delivered", is_recorded).await;
    first.wait_for_poll().await;
    // If the first process went on, it would take the lock again.
    first.signal(Signal::STOP);
    std::fs::remove_file(place.path("state.db.lock")).unwrap();
    let second = place.start().await;
    first.signal(Signal::CONT);
    let ended = first.end().await;
    assert_eq!(ended.code(), Some(1));
    let told = ended.error();
    assert!(
        told.contains("state.db.lock, was removed while in use, and another exporter"),
        "{told}"
    );
    let ids = opsramp.open_many(DEMO_TENANT, 1).unwrap();
    let new = format!("\"alert_id\":\"{}\"", ids[0]);
    second
        .stdout
        .wait_for("the second goes on", |lines| {
            lines.iter().any(|line| line.contains(&new))
        })
        .await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_path_that_cannot_be_used_is_explained() {
    let opsramp = opsramp(1).await;
    for (path, told) in [
        ("missing/state.db", "missing does not exist; create it"),
        ("secret/state.db", "secret is not a folder"),
        (".", "it is a folder; name a file in it"),
        // Nobody may create files in this folder, not even root.
        ("/sys/state.db", "cannot be written by user"),
        ("config.yml", "config.yml"),
    ] {
        let mut place = Place::new(&opsramp.url());
        place.config["state"]["path"] = json!(path);
        place.write();
        let ended = place.run(place.command()).await;
        assert_eq!(ended.code(), Some(1), "{path}: {}", ended.error());
        let error = ended.stderr.last().unwrap();
        assert!(
            error.contains("level=error msg=\"cannot open the state file ") && error.contains(told),
            "{path}: {error}"
        );
        assert!(!error.contains("panic"), "{path}: {error}");
    }
    assert_eq!(opsramp.requests().total, 0, "nothing was asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_told_before_anything_else_happens() {
    let opsramp = opsramp(1).await;
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut place = Place::new(&opsramp.url());
    place.config["web"]["listen_addresses"] = json!([address]);
    place.write();
    let ended = place.run(place.command()).await;
    assert_eq!(ended.code(), Some(1));
    let error = ended.stderr.last().unwrap();
    assert!(
        error.contains(&address) && error.contains("in use"),
        "{error}"
    );
    assert!(!place.path("state.db").exists());
    assert_eq!(opsramp.requests().total, 0);

    // Whatever reads the lines of the daemon reads this line as well.
    let mut command = place.command();
    command.args(["--log.format", "json"]);
    let ended = place.run(command).await;
    assert_eq!(ended.code(), Some(1));
    let line: serde_json::Value = serde_json::from_str(ended.stderr.last().unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("in use"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_should_say_whom_to_trust_and_does_not_is_told() {
    let mut place = Place::new("https://127.0.0.1:9");
    for (name, told) in [
        ("missing.pem", "cannot read "),
        ("secret", "holds no certificate"),
    ] {
        place.config["accounts"][0]["tls"] = json!({"ca_file": place.path(name)});
        place.write();
        let ended = place.run(place.command()).await;
        assert_eq!(ended.code(), Some(1), "{name}");
        let error = ended.stderr.last().unwrap();
        assert!(error.contains(told) && error.contains(name), "{error}");
    }
}

/// When the configuration is corrected, the waiting lines are delivered.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_forgets_no_sink() {
    let opsramp = opsramp(2).await;
    let mut place = Place::new(&opsramp.url()).with_file_sink();
    let (file, folder) = (place.config["log"]["sinks"][0].clone(), place.path("later"));
    let other = json!({"name": "other", "type": "file", "path": folder.join("other.jsonl")});
    place.config["log"]["sinks"] = json!([file, other]);
    let good = place.config.clone();
    let exporter = place.start().await;
    let waits =
        |metrics: &Metrics| metrics.one("opsramp_sink_backlog_events{sink=\"other\"}") == Some(2.0);
    exporter.wait_for("lines wait", waits).await;
    exporter.kill().await;

    place.config["log"]["sinks"] = json!([file]);
    place.config["accounts"][0]["tls"] = json!({"ca_file": "/nowhere/ca.pem"});
    place.write();
    assert_eq!(place.run(place.command()).await.code(), Some(1));

    place.config = good;
    std::fs::create_dir(&folder).unwrap();
    let exporter = place.start().await;
    eventually("they are delivered", async || {
        place.lines_of("later/other.jsonl").len() == 2
    })
    .await;
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_does_not_answer_at_the_start_is_named_and_ends_it() {
    let place = || Place::new("https://127.0.0.1:9");
    let (mut by_web, mut by_account) = (place(), place());
    by_web.config["web"]["config_file"] = json!(by_web.silent("silent"));
    by_account.config["accounts"][0]["tls"] = json!({"ca_file": by_account.silent("silent")});
    for place in [&by_web, &by_account] {
        place.write();
    }
    let run = |place: &Place| {
        let (place, command) = (place.clone(), place.command());
        async move { (place.run(command).await, place.path("silent")) }
    };
    let ended = tokio::join!(run(&by_web), run(&by_account));
    for (ended, path) in <[_; 2]>::from(ended) {
        // This is no mistake of the configuration (status 2): the file may answer at the next
        // start.
        assert_eq!(ended.code(), Some(1));
        let error = ended.stderr.last().unwrap();
        let told = format!("could not be read within 5 s: {}", path.display());
        assert!(error.contains(&told), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_limit_of_open_files_the_hard_one_counts() {
    let opsramp = opsramp(1).await;
    let place = Place::new(&opsramp.url());
    place.write();
    let shell = place.by_shell("ulimit -n 512 && ulimit -S -n 256 && exec \"$0\" \"$@\"");
    let exporter = place.start_as(shell).await;
    let (_, text) = exporter.get("/metrics").await;
    assert!(text.contains("\nprocess_max_fds 512\n"), "{text}");
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_few_open_files_are_told_with_what_to_do() {
    let place = Place::new("http://127.0.0.1:1");
    place.write();
    for limit in [6, 12, 23] {
        let ended = place.run(place.with_descriptors(limit)).await;
        assert_eq!(ended.code(), Some(1), "{limit}");
        let told = format!("the limit of open files is {limit}, and at least 24 are needed");
        assert!(ended.error().contains(&told), "{}", ended.error());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_that_the_parent_blocks_are_told() {
    needed("env", "coreutils");
    let opsramp = opsramp(1).await;
    let place = Place::new(&opsramp.url());
    place.write();
    let blocking = place.by_shell("exec env --block-signal=TERM,HUP \"$0\" \"$@\"");
    let exporter = place.start_as(blocking).await;
    let told = "SIGTERM, SIGHUP will not be noticed";
    exporter.stderr.line(|line| line.contains(told)).await;
    exporter.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standard_output_that_leads_nowhere_is_told_once_at_the_start() {
    const TOLD: &str = "standard output is closed or leads to /dev/null";
    let opsramp = opsramp(1).await;
    for (redirection, warnings) in [(">&-", 1), (">/dev/null", 1), (">lines", 0)] {
        let place = Place::new(&opsramp.url());
        place.write();
        let shell = place.by_shell(&format!("exec \"$0\" \"$@\" {redirection}"));
        let exporter = place.start_as(shell).await;
        exporter.wait_until_complete().await;
        exporter.reload(&place).await;
        let ended = exporter.stop().await;
        let told = ended.stderr.iter().filter(|line| line.contains(TOLD));
        assert_eq!(told.count(), warnings, "{redirection}: {:#?}", ended.stderr);
    }
}

#[tokio::test]
async fn a_system_that_gives_no_thread_ends_the_start_with_what_to_do() {
    needed("strace", "strace");
    let place = Place::new("http://127.0.0.1:1");
    place.write();
    // The first thread only shows that there are threads, and the second one writes the
    // diagnostics.
    for (first, arguments) in [(1, &[][..]), (1, &["check"][..]), (2, &[]), (3, &[])] {
        let daemon = place.command();
        let mut refused = command("strace");
        refused
            .args(["-q", "-f", "-o"])
            .arg(place.path("trace"))
            .args(["-e", "trace=clone,clone3"])
            .arg("-e")
            .arg(format!("inject=clone,clone3:error=EAGAIN:when={first}+"))
            .arg(binary())
            .args(daemon.as_std().get_args())
            .args(arguments);
        let ended = place.run(place.settle(refused)).await;
        let error = ended.error();
        assert_eq!(ended.code(), Some(1), "{first}: {error}");
        assert!(!error.contains("panicked"), "{first}: {error}");
        if first != 2 {
            assert!(
                error.contains("no thread can be started: "),
                "{first}: {error}"
            );
            assert!(error.contains("raise TasksMax"), "{first}: {error}");
        }
    }
}
