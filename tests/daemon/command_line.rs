//! What the program prints and how it exits when nothing is to be polled.

use insta::assert_snapshot;
use serde_json::json;

use crate::exporter::{Ended, Place, SECRET, binary, command};

/// Nobody listens here, so a request fails.
const NOWHERE: &str = "http://127.0.0.1:9";

async fn run(place: &Place, arguments: &[&str]) -> Ended {
    let mut command = place.settle(command(binary()));
    command.args(arguments);
    place.run(command).await
}

#[tokio::test]
async fn a_key_that_nobody_knows_ends_with_status_2_and_is_named_with_its_place() {
    let place = Place::new(NOWHERE);
    let text = "accounts:\n  - url: http://127.0.0.1:9\n    client_id: key\n    \
                client_secret_file: secret\n    tenants: [client_1]\nserches:\n  - name: open\n";
    std::fs::write(place.path("typo.yml"), text).unwrap();
    for arguments in [
        &["--config.file", "typo.yml"][..],
        &["--config.file=typo.yml", "--config.check"],
        &["config", "--config.file", "typo.yml"],
        &["search", "--config.file", "typo.yml"],
    ] {
        let ended = run(&place, arguments).await;
        assert_eq!(ended.code(), Some(2), "{arguments:?}");
        assert_eq!(
            ended.error(),
            r#"opsramp-exporter: typo.yml:6:1: serches: unknown key; did you mean "searches"?"#
        );
        assert_eq!(ended.stdout.len(), 0, "{arguments:?}");
    }
}

#[tokio::test]
async fn wrong_values_and_missing_files_end_with_status_2() {
    let place = Place::new(NOWHERE);
    for (text, told) in [
        ("searches: [{name: open, interval: 30}]", "interval"),
        ("accounts: [", "config.yml:"),
        ("accounts: []", "no OpsRamp account is configured"),
    ] {
        std::fs::write(place.path("config.yml"), text).unwrap();
        let ended = place.run(place.command()).await;
        assert_eq!(ended.code(), Some(2), "{text}");
        assert!(ended.error().contains(told), "{text}: {}", ended.error());
    }
    let ended = run(&place, &["--config.file", "missing.yml"]).await;
    assert_eq!(ended.code(), Some(2));
    assert!(ended.error().contains("missing.yml"), "{}", ended.error());
    let ended = run(&place, &["--search.intervall", "1s"]).await;
    assert_eq!(ended.code(), Some(2));
    assert!(
        ended.error().contains("--search.interval"),
        "{}",
        ended.error()
    );
}

#[tokio::test]
async fn without_an_account_it_ends_with_status_2_and_says_how_to_give_one() {
    let place = Place::new(NOWHERE);
    let ended = run(&place, &[]).await;
    assert_eq!(ended.code(), Some(2));
    for way in ["--config.file", "OPSRAMP_URL", "--opsramp.url", "demo"] {
        assert!(ended.error().contains(way), "{way}: {}", ended.error());
    }
    assert_eq!(ended.stdout.len(), 0);
}

#[tokio::test]
async fn a_configuration_is_checked_without_anything_being_touched() {
    let place = Place::new(NOWHERE);
    place.write();
    let mut command = place.command();
    command.arg("--config.check");
    let ended = place.run(command).await;
    assert_eq!(ended.code(), Some(0), "{}", ended.error());
    let path = place.path("config.yml");
    assert_eq!(ended.stdout, [format!("{}: ok", path.display())]);
    assert!(!place.path("state.db").exists());
}

#[tokio::test]
async fn the_effective_configuration_shows_no_secret_and_can_be_used_again() {
    let mut place = Place::new(NOWHERE);
    let account = &mut place.config["accounts"][0];
    account
        .as_object_mut()
        .unwrap()
        .remove("client_secret_file");
    account["client_secret"] = json!(SECRET);
    account["proxy_url"] = json!(format!("http://user:{SECRET}@127.0.0.1:9"));
    place.config["log"]["sinks"] = json!([{
        "name": "loki", "type": "otlp", "endpoint": "http://127.0.0.1:9/v1/logs",
        "headers": {"Authorization": format!("Bearer {SECRET}")},
    }]);
    place.write();
    let mut command = place.command();
    // A secret from the environment is as secret as one from the file.
    command.arg("config").env("OPSRAMP_CLIENT_SECRET", SECRET);
    let ended = place.run(command).await;
    assert_eq!(ended.code(), Some(0), "{}", ended.error());
    let shown = ended.stdout.join("\n");
    assert!(shown.matches("<secret>").count() >= 3, "{shown}");
    std::fs::write(place.path("again.yml"), &shown).unwrap();
    let again = run(&place, &["config", "--config.file", "again.yml"]).await;
    assert_eq!(again.stdout.join("\n"), shown);
}

#[tokio::test]
async fn the_version_is_one_line() {
    let place = Place::new(NOWHERE);
    let ended = run(&place, &["--version"]).await;
    assert_eq!(ended.code(), Some(0));
    let [line] = &ended.stdout[..] else {
        panic!("{:?}", ended.stdout)
    };
    let version = concat!(
        "opsramp-exporter, version ",
        env!("CARGO_PKG_VERSION"),
        " (revision: "
    );
    assert!(
        line.starts_with(version) && line.contains(", rustc 1."),
        "{line}"
    );
}

#[tokio::test]
async fn what_cannot_be_written_is_a_failure() {
    let place = Place::new(NOWHERE);
    for argument in ["--help", "--version"] {
        let mut command = place.settle(command(binary()));
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
        command.arg(argument).stdout(full.unwrap());
        let ended = place.spawn_with_own_stdout(command).end().await;
        assert_eq!(ended.code(), Some(1), "{argument}: {}", ended.error());
        assert!(ended.error().contains("No space left"), "{}", ended.error());
    }
}

#[tokio::test]
async fn help_goes_to_standard_output() {
    let place = Place::new(NOWHERE);
    let ended = run(&place, &["--help"]).await;
    assert_eq!((ended.code(), ended.stderr.len()), (Some(0), 0));
    assert_snapshot!(ended.stdout.join("\n"));
}
