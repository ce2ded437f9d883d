//! Tests of the configuration as a whole: files, environments and flags in, configurations and
//! messages out.

use std::{collections::BTreeMap, ffi::OsString, os::unix::fs::symlink, sync::Arc};

use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;
use crate::{
    deliver::{Format, Target},
    identity::EventKind,
    poll::GroupLabel,
    secret::Secret,
};

const MINIMAL: &str = "\
accounts:
  - url: https://acme.api.opsramp.com
    client_id: KEY
    client_secret_file: /run/secret
    tenants: [client_1]
";

/// A file with every key.
const FULL: &str = include_str!("testdata/full.yml");

/// The configuration in `text`, with an environment and flags.
fn load_with(
    text: Option<&str>,
    env: &[(&str, &str)],
    overrides: &Overrides,
) -> Result<Loaded, ConfigError> {
    let env: BTreeMap<&str, OsString> = env.iter().map(|(k, v)| (*k, OsString::from(v))).collect();
    let source = text.map(|text| Source {
        name: Path::new("config.yml"),
        text,
        is_public: true,
    });
    Config::parse(source, overrides, &|name| env.get(name).cloned())
}

fn load(text: &str) -> Result<Loaded, ConfigError> {
    load_with(Some(text), &[], &Overrides::default())
}

fn config(text: &str) -> Config {
    load(text).unwrap_or_else(|error| panic!("{error}")).config
}

fn errors(text: &str) -> String {
    load(text).unwrap_err().to_string()
}

/// [`MINIMAL`] with more keys below the account, and others after it.
fn minimal_and(text: &str) -> String {
    format!("{MINIMAL}{text}")
}

fn set(text: &str) -> Option<String> {
    Some(text.to_owned())
}

// --- what is read ---

#[test]
fn a_minimal_file_gets_the_defaults() {
    let loaded = load(MINIMAL).unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
    assert_eq!(loaded.file.as_deref(), Some(Path::new("config.yml")));
    assert_snapshot!(loaded.config.to_yaml(), @r#"
    accounts:
    - name: default
      url: https://acme.api.opsramp.com
      token_url: https://acme.api.opsramp.com/auth/oauth/token
      client_id: KEY
      client_secret_file: /run/secret
      tenants:
      - id: client_1
        name: client_1
      discover_clients: false
      timeout: 30s
      connect_timeout: 10s
      max_response_size: 64MiB
      tls:
        insecure_skip_verify: false
    searches:
    - name: open
      query: actions:OPEN
      interval: 30s
      page_size: 100
      full_read_interval: 10m
      stale_after: 5m
      group_by:
      - state
      max_groups: 200
    log:
      events:
      - opened
      at_first_start: emit
      fetch_details: false
      include_raw: false
      max_description_length: 4KiB
      sinks:
      - name: stdout
        type: stdout
        format: json
    state:
      path: opsramp-exporter.db
    web:
      listen_addresses:
      - ":10836"
      telemetry_path: /metrics
      enable_lifecycle: false
      systemd_socket: false
    "#);
}

#[test]
fn every_key_is_read() {
    let config = config(FULL);
    let [acme, other] = config.accounts.as_slice() else {
        panic!("{:?}", config.accounts)
    };
    assert_eq!(&*acme.options.name, "acme");
    assert_eq!(acme.options.url, "https://acme.api.opsramp.com");
    assert_eq!(acme.options.token_url, "https://login.example.com/token");
    assert_eq!(
        acme.options.client_secret,
        SecretSource::File("/run/credentials/secret".into())
    );
    assert_eq!(acme.options.timeout, Duration::from_secs(20));
    assert_eq!(acme.options.connect_timeout, Duration::from_secs(5));
    assert_eq!(acme.options.requests_per_minute, Some(20));
    assert_eq!(acme.options.max_response_size, 1_000_000);
    assert!(acme.options.proxy_url.is_some());
    assert!(acme.options.tls.insecure_skip_verify);
    assert_eq!(
        acme.options.tls.key_file.as_deref(),
        Some(Path::new("key.pem"))
    );
    let tenants: Vec<(&str, &str)> = acme
        .tenants
        .iter()
        .map(|tenant| (&*tenant.id, &*tenant.name))
        .collect();
    assert_eq!(
        tenants,
        [("client_1234", "retail"), ("client_2", "client_2")]
    );
    assert!(other.discover_clients);
    assert_eq!(
        other.options.client_secret,
        SecretSource::Value(Secret::new("0755"))
    );

    let search = &config.searches[0];
    assert_eq!(search.query, "actions:OPEN+priority:P0");
    assert_eq!(search.interval, Duration::from_secs(10));
    assert_eq!(
        search.tenants.as_deref(),
        Some(&["client_1234".to_owned()][..])
    );
    assert_eq!(search.page_size, 500);
    assert_eq!(search.full_read_interval, Duration::from_secs(5400));
    assert_eq!(search.stale_after, Duration::from_secs(60));
    assert_eq!(search.group_by, [GroupLabel::State, GroupLabel::AlertType]);
    assert_eq!(search.max_groups, 50);

    assert_eq!(config.record.events, EventKind::ALL);
    assert!(config.record.include_raw);
    assert_eq!(config.record.max_description_length, 8192);
    assert_eq!(config.at_first_start, AtFirstStart::Skip);
    assert!(config.fetch_details);
    let [stdout, file, journal, loki] = config.sinks.as_slice() else {
        panic!("{:?}", config.sinks)
    };
    assert_eq!(
        stdout.target,
        Target::Stdout {
            format: Format::Logfmt
        }
    );
    assert_eq!(
        file.target,
        Target::File {
            path: "/var/log/alerts.jsonl".into(),
            format: Format::Json
        }
    );
    assert_eq!(journal.target, Target::Journald);
    let Target::Otlp(otlp) = &loki.target else {
        panic!("{loki:?}")
    };
    assert!(!otlp.gzip);
    assert_eq!(otlp.timeout, Duration::from_secs(3));
    assert_eq!(
        otlp.headers["Authorization"],
        SecretSource::File("/run/credentials/loki".into())
    );
    assert_eq!(
        otlp.headers["X-Scope-OrgID"],
        SecretSource::Value(Secret::new("acme"))
    );
    assert_eq!(
        config.state,
        State::Postgres {
            url: SecretSource::File("/run/credentials/postgres".into()),
            lease: Duration::from_secs(20)
        }
    );
    assert_eq!(config.web.listen_addresses.len(), 2);
    assert_eq!(config.web.telemetry_path, "/opsramp/metrics");
    assert!(config.web.enable_lifecycle && config.web.systemd_socket);
    assert_eq!(
        config.web.config_file.as_deref(),
        Some(Path::new("web.yml"))
    );
}

#[test]
fn anchors_merges_empty_sections_and_a_byte_order_mark_are_fine() {
    let text = minimal_and(
        "searches:
  - &base {name: a, interval: 10s}
  - {<<: *base, name: b}
log:
state:
",
    );
    let config = config(&text);
    assert_eq!(config.searches[1].interval, Duration::from_secs(10));
    assert_eq!(&*config.searches[1].name, "b");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yml");
    std::fs::write(&path, format!("\u{feff}{text}")).unwrap();
    let loaded = Config::load(Some(&path), &Overrides::default(), &|_| None).unwrap();
    assert_eq!(loaded.config, config);
}

#[test]
fn text_that_looks_like_a_number_stays_as_it_was_written() {
    let text = MINIMAL
        .replace("KEY", "0755")
        .replace("[client_1]", "[1e3, 0x1F, 12_3, yes]");
    let config = config(&text);
    assert_eq!(
        config.accounts[0].options.client_id,
        SecretSource::Value(Secret::new("0755"))
    );
    let ids: Vec<&str> = config.accounts[0].tenants.iter().map(|t| &*t.id).collect();
    assert_eq!(ids, ["1e3", "0x1F", "12_3", "yes"]);
}

#[test]
fn a_long_interval_stretches_the_defaults_that_depend_on_it() {
    let config = config(&minimal_and("searches: [{name: slow, interval: 1h}]"));
    assert_eq!(
        config.searches[0].stale_after,
        Duration::from_secs(3 * 3600)
    );
    assert_eq!(
        config.searches[0].full_read_interval,
        Duration::from_secs(3600)
    );
}

// --- what is written ---

#[test]
fn the_effective_configuration_is_read_again_as_the_same() {
    for text in [MINIMAL, FULL] {
        // Secrets in the file itself cannot come back.
        let text = text.replace("client_secret: 0755", "client_secret_file: x");
        let text = text.replace("headers: {X-Scope-OrgID: acme}", "headers: {}");
        let text = text.replace("user:hunter2@", "");
        let first = config(&text);
        let second = config(&first.to_yaml());
        assert_eq!(first, second);
    }
}

#[test]
fn the_effective_configuration_shows_no_secret_and_says_so_when_it_is_read_again() {
    let yaml = config(FULL).to_yaml();
    for secret in ["0755", "hunter2", "X-Scope-OrgID: acme"] {
        assert!(!yaml.contains(secret), "{secret} in {yaml}");
    }
    assert!(yaml.contains("X-Scope-OrgID: <secret>"), "{yaml}");
    assert!(
        yaml.contains("proxy_url: http://<secret>@proxy:3128"),
        "{yaml}"
    );
    let warnings = load(&yaml).unwrap().warnings;
    assert!(
        warnings
            .iter()
            .any(|warning| warning.starts_with("accounts[1].client_secret: \"<secret>\"")),
        "{warnings:?}"
    );
}

#[test]
fn a_configuration_for_an_account_takes_the_flags_of_the_web_server() {
    let account = config(MINIMAL).accounts.remove(0);
    let mut web = WebOverrides {
        listen_addresses: vec!["127.0.0.1:0".parse().unwrap()],
        ..WebOverrides::default()
    };
    let built = Config::for_account(account.clone(), &web).unwrap();
    assert_eq!(built.web.listen_addresses, web.listen_addresses);
    let expected = Config {
        web: built.web.clone(),
        ..config(MINIMAL)
    };
    assert_eq!(built, expected);

    web.telemetry_path = set("metrics");
    let error = Config::for_account(account, &web).unwrap_err();
    assert_snapshot!(error, @r#"--web.telemetry-path: must start with a slash; write "/metrics""#);
}

// --- what is wrong ---

#[test]
fn mistakes_are_told_together_in_the_order_of_the_file() {
    assert_snapshot!(errors("
accounts:
  - url: acme.api.opsramp.com
    client_idd: 0755
    client_secret: 1234567
    tenants: client_1
    tls: {cert_file: x, inseucre: true}
searches:
  - name: a
    interval: 5
    group_by: [stat, state]
    group_by: [x]
  - {name: a, query: '', page_size: lots, stale_after: 1s}
log:
  events: opened
  sinks:
   - {type: stdot}
   - {type: file, format: [json]}
   - type: otlp
     endpoint: http://loki
     headers: {a b: x, Foo: [bar]}
web: {telemetry_path: metrics, listen_addresses: [10836]}
"), @r#"
    the configuration has 21 problems:
      config.yml:3:5: accounts[0].client_id: is missing; write client_id or client_id_file
      config.yml:3:10: accounts[0].url: must start with https:// (or http://); write "https://acme.api.opsramp.com"
      config.yml:4:5: accounts[0].client_idd: unknown key; did you mean "client_id"?
      config.yml:6:14: accounts[0].tenants: must be a list; write [client_1]
      config.yml:7:22: accounts[0].tls.cert_file: needs key_file too
      config.yml:7:25: accounts[0].tls.inseucre: unknown key; did you mean "insecure_skip_verify"?
      config.yml:10:15: searches[0].interval: "5" has no unit; write "5s"
      config.yml:11:16: searches[0].group_by[0]: "stat" is not one of state, status, priority, source, alert_type, event_type, resource_type, client; did you mean "state"?
      config.yml:12:5: searches[0].group_by: is given twice, first in line 11
      config.yml:13:12: searches[1].name: "a" is the name of a search already
      config.yml:13:22: searches[1].query: is empty; write actions:OPEN or another
      config.yml:13:37: searches[1].page_size: must be a whole number, not "lots"
      config.yml:13:56: searches[1].stale_after: 1s is less than the interval, 30s: gauges would vanish between two polls
      config.yml:15:11: log.events: must be a list; write [opened]
      config.yml:17:13: log.sinks[0].type: "stdot" is not one of stdout, file, journald, otlp; did you mean "stdout"?
      config.yml:18:6: log.sinks[1].path: is missing; name the file
      config.yml:18:27: log.sinks[1].format: must be one of json, logfmt, not a list
      config.yml:21:21: log.sinks[2].headers.a…: is not the name of a header
      config.yml:21:29: log.sinks[2].headers.Foo: must be text, not a list
      config.yml:22:23: web.telemetry_path: must start with a slash; write "/metrics"
      config.yml:22:51: web.listen_addresses[0]: "10836" is not an address; write one like :10836, 127.0.0.1:10836 or [::1]:10836
    "#);
}

#[test]
fn what_is_no_yaml_is_told_with_its_place() {
    let all = [
        "a: [\n b: c",
        "a: b: c",
        "a:\n\tb: c",
        "a: *x",
        "a: \"b",
        "- a",
        "a",
        "? [a]\n: b",
        "a: 1\n---\nb: 1",
        "{a:1}",
    ]
    .map(errors);
    assert_snapshot!(all.join("\n"), @r#"
    config.yml:1:4: is not valid YAML: unclosed bracket '['
    config.yml:1:5: is not valid YAML: mapping values are not allowed in this context
    config.yml:2:2: is not valid YAML: tabs disallowed within this context (block indentation)
    config.yml:1:4: is not valid YAML: alias references unknown anchor
    config.yml:1:4: is not valid YAML: unclosed quote
    config.yml:1:1: must be a mapping (key: value), not a list
    config.yml:1:1: must be a mapping (key: value), not a single value
    config.yml:1:3: a key must be a word
    config.yml:3:1: holds several YAML documents; keep one
    config.yml:1:2: …: unknown key; the keys here are accounts, searches, log, state, web
    "#);
}

#[test]
fn deep_and_explosive_files_are_refused() {
    let deep = errors(&"[".repeat(100_000));
    assert!(deep.contains("is not valid YAML"), "{deep}");
    let deep = errors(
        &(0..1000)
            .map(|n| " ".repeat(n) + "a:\n")
            .collect::<String>(),
    );
    assert!(deep.contains("is not valid YAML"), "{deep}");
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..10 {
        let aliases = vec![format!("*a{}", n - 1); 10].join(", ");
        bomb.push_str(&format!("a{n}: &a{n} [{aliases}]\n"));
    }
    let bomb = errors(&bomb);
    assert!(bomb.contains("is not valid YAML"), "{bomb}");
}

#[test]
fn wrong_accounts_are_explained() {
    let wrong = |text: &str| errors(&format!("accounts:\n{text}"));
    let account = "  - {client_id: KEY, client_secret_file: x, tenants: [c], url: ";
    let all = [
        wrong("  - {}"),
        wrong("  - 7"),
        wrong(&format!("{account}'https://user:hunter2@acme'}}")),
        wrong(&format!("{account}'https://acme/?x=1'}}")),
        wrong(&format!("{account}'https://acme/auth/oauth/token'}}")),
        wrong(&format!("{account}'https://acme', token_url: acme}}")),
        wrong(&format!("{account}'https://acme', client_id_file: x}}")),
        wrong(&format!(
            "{account}'https://acme', client_secret: hunter2}}"
        )),
        wrong(&format!(
            "{account}'https://acme', timeout: 0s, connect_timeout: 800days}}"
        )),
        wrong(&format!(
            "{account}'https://acme', requests_per_minute: 0}}"
        )),
        wrong(&format!(
            "{account}'https://acme', requests_per_minute: -1}}"
        )),
        wrong(&format!("{account}'https://acme', max_response_size: 10}}")),
        wrong(&format!(
            "{account}'https://acme', max_response_size: 64M}}"
        )),
        wrong(&format!(
            "{account}'https://acme', proxy_url: 'user:hunter2@proxy'}}"
        )),
        wrong(&format!(
            "{account}'https://acme', discover_clients: maybe}}"
        )),
        wrong(&format!("{account}'https://acme', tls: {{key_file: x}}}}")),
        wrong(&format!("{account}'https://acme', name: \"a\\nb\"}}")),
        wrong(&format!("{account}'https://a'}}\n{account}'https://b'}}")),
    ];
    assert_snapshot!(all.join("\n"), @r#"
    the configuration has 4 problems:
      config.yml:2:5: accounts[0].url: is missing
      config.yml:2:5: accounts[0].client_id: is missing; write client_id or client_id_file
      config.yml:2:5: accounts[0].client_secret: is missing; write client_secret or client_secret_file
      config.yml:2:5: accounts[0].tenants: is missing; name at least one tenant
    config.yml:2:5: accounts[0]: must be a mapping (key: value), not a single value
    config.yml:2:64: accounts[0].url: must not hold a user or a password
    config.yml:2:64: accounts[0].url: must not have a query or a fragment (? or #)
    config.yml:2:64: accounts[0].url: ends in /auth/oauth/token; write the base only: https://acme
    config.yml:2:91: accounts[0].token_url: must start with https:// (or http://); write "https://acme"
    config.yml:2:17: accounts[0].client_id: cannot be given together with client_id_file
    config.yml:2:95: accounts[0].client_secret: cannot be given together with client_secret_file
    the configuration has 2 problems:
      config.yml:2:89: accounts[0].timeout: must be at least 100ms
      config.yml:2:110: accounts[0].connect_timeout: "800days" is longer than a year
    config.yml:2:101: accounts[0].requests_per_minute: must be at least 1
    config.yml:2:101: accounts[0].requests_per_minute: must be a whole number, not "-1"
    config.yml:2:99: accounts[0].max_response_size: must be at least 1KiB
    config.yml:2:99: accounts[0].max_response_size: "64M" is not a size; write one like 64MiB, 64KB or a number of bytes
    config.yml:2:91: accounts[0].proxy_url: is not a URL; write one like https://host or https://host:8443/path
    config.yml:2:98: accounts[0].discover_clients: must be true or false, not "maybe"
    config.yml:2:96: accounts[0].tls.key_file: needs cert_file too
    config.yml:2:86: accounts[0].name: must be one line of text
    config.yml:3:5: accounts[1].name: "default" is the name of an account already
    "#);
}

#[test]
fn wrong_tenants_are_explained() {
    let wrong = |tenants: &str| errors(&MINIMAL.replace("[client_1]", tenants));
    let all = [
        wrong("[]"),
        wrong("[a, a]"),
        wrong("[{id: a}, {id: b, name: a}]"),
        wrong("[{name: a}]"),
        wrong("[../x]"),
        wrong("['a b']"),
        wrong("[[a]]"),
        wrong("[{id: a, nam: b}]"),
        wrong("{id: a}"),
    ];
    assert_snapshot!(all.join("\n"), @r#"
    config.yml:5:14: accounts[0].tenants: is missing; name at least one tenant
    config.yml:5:18: accounts[0].tenants[1].id: "a" is the id of a tenant already
    config.yml:5:38: accounts[0].tenants[1].name: "a" is the name of a tenant already
    config.yml:5:15: accounts[0].tenants[0].id: is missing
    config.yml:5:15: accounts[0].tenants[0].id: "../x" is not a tenant's id; they look like client_1234, msp_1234 or a UUID
    config.yml:5:15: accounts[0].tenants[0].id: "a b" is not a tenant's id; they look like client_1234, msp_1234 or a UUID
    config.yml:5:15: accounts[0].tenants[0]: must be a mapping (key: value), not a list
    config.yml:5:23: accounts[0].tenants[0].nam: unknown key; did you mean "name"?
    config.yml:5:14: accounts[0].tenants: must be a list, not a mapping
    "#);
}

#[test]
fn wrong_searches_are_explained() {
    let wrong = |search: &str| errors(&minimal_and(&format!("searches: [{search}]")));
    let all = [
        wrong(""),
        wrong("{}"),
        wrong("{name: a, interval: 0s}"),
        wrong("{name: a, interval: soon}"),
        wrong("{name: a, interval: 10m, stale_after: 5m}"),
        wrong("{name: a, page_size: 1001}"),
        wrong("{name: a, page_size: 0}"),
        wrong("{name: a, max_groups: 0}"),
        wrong("{name: a, query: ' '}"),
        wrong("{name: a, query: \"a\\nb\"}"),
        wrong("{name: a, group_by: [state, state]}"),
        wrong("{name: a, group_by: [resourcetype]}"),
        wrong("{name: a, tenants: []}"),
        wrong("{name: a, tenants: [client_1, client_1]}"),
        wrong("{name: a, tenants: [client_l]}"),
        wrong("{name: a}, {name: a}"),
    ];
    assert_snapshot!(all.join("\n"), @r#"
    config.yml:6:11: searches: is empty; leave it out for the default, or write a search
    config.yml:6:12: searches[0].name: is missing
    config.yml:6:32: searches[0].interval: must be at least 100ms
    config.yml:6:32: searches[0].interval: "soon" is not a duration; write one like 30s, 5m or 1h 30m
    config.yml:6:50: searches[0].stale_after: 5m is less than the interval, 10m: gauges would vanish between two polls
    config.yml:6:33: searches[0].page_size: must be from 1 to 1000
    config.yml:6:33: searches[0].page_size: must be from 1 to 1000
    config.yml:6:34: searches[0].max_groups: must be at least 1
    config.yml:6:29: searches[0].query: is empty; write actions:OPEN or another
    config.yml:6:29: searches[0].query: must be one line of text
    config.yml:6:32: searches[0].group_by: names "state" twice
    config.yml:6:33: searches[0].group_by[0]: "resourcetype" is not one of state, status, priority, source, alert_type, event_type, resource_type, client; did you mean "resource_type"?
    config.yml:6:31: searches[0].tenants: is empty; leave it out for every tenant, or name tenants
    config.yml:6:31: searches[0].tenants: names "client_1" twice
    config.yml:6:32: searches[0].tenants[0]: "client_l" is no tenant of any account; did you mean "client_1"?
    config.yml:6:30: searches[1].name: "a" is the name of a search already
    "#);
}

#[test]
fn a_search_names_tenants_by_their_ids_and_may_name_those_yet_to_be_discovered() {
    let named = MINIMAL.replace("[client_1]", "[{id: client_1, name: retail}]");
    let search = "searches: [{name: a, tenants: [retail]}]";
    assert_snapshot!(errors(&format!("{named}{search}")), @r#"config.yml:6:32: searches[0].tenants[0]: "retail" is a tenant's name; write its id, client_1"#);
    config(&format!("{named}    discover_clients: true\n{search}"));
}

#[test]
fn a_flag_that_picks_tenants_may_leave_out_those_that_a_search_names() {
    let text = minimal_and("searches: [{name: a, tenants: [client_1]}]");
    let flags = Overrides {
        tenants: vec!["client_2".to_owned()],
        ..Overrides::default()
    };
    let loaded = load_with(Some(&text), &[], &flags).unwrap();
    assert!(!loaded.config.searches[0].is_for("client_2"));
    // The environment is the daemon's, which would poll nothing.
    let variables = [("OPSRAMP_TENANT_ID", "client_2")];
    let error = load_with(Some(&text), &variables, &Overrides::default()).unwrap_err();
    assert!(error.to_string().contains("is no tenant of any account"));
}

#[test]
fn wrong_log_settings_are_explained() {
    let wrong = |log: &str| errors(&minimal_and(&format!("log: {{{log}}}")));
    let otlp = "type: otlp, endpoint: 'http://loki'";
    let all = [
        wrong("level: debug"),
        wrong("events: []"),
        wrong("events: [opened, opened]"),
        wrong("events: [open]"),
        wrong("at_first_start: never"),
        wrong("max_description_length: long"),
        wrong("sinks: []"),
        wrong("sinks: [{}]"),
        wrong("sinks: [stdout]"),
        wrong("sinks: [{type: stdout}, {type: stdout, name: b}]"),
        wrong("sinks: [{type: stdout}, {type: journald, name: stdout}]"),
        wrong("sinks: [{type: journald, format: json}]"),
        wrong("sinks: [{type: stdout, path: x}]"),
        wrong("sinks: [{type: file}]"),
        wrong("sinks: [{type: file, path: a, name: x}, {type: file, path: b/.././a, name: y}]"),
        wrong("sinks: [{type: file, path: \"a\\0b\"}]"),
        wrong("sinks: [{type: file, path: log/}, {type: file, path: log/.., name: y}]"),
        wrong("sinks: [{type: otlp}]"),
        wrong("sinks: [{type: otlp, endpoint: 'http://user:hunter2@loki'}]"),
        wrong(&format!("sinks: [{{{otlp}, headers: {{a b: hunter2}}}}]")),
        wrong(&format!(
            "sinks: [{{{otlp}, headers: {{A: \"hunter2\\n\"}}}}]"
        )),
        wrong(&format!(
            "sinks: [{{{otlp}, headers: {{Content-Type: x}}}}]"
        )),
        wrong(&format!(
            "sinks: [{{{otlp}, headers: {{A: x}}, headers_files: {{a: x}}}}]"
        )),
        wrong(&format!(
            "sinks: [{{{otlp}, compression: zstd, timeout: 1ms}}]"
        )),
    ];
    assert_snapshot!(all.join("\n"), @r#"
    config.yml:6:7: log.level: unknown key; the keys here are events, at_first_start, fetch_details, include_raw, max_description_length, sinks
    config.yml:6:15: log.events: is empty; write some of opened, changed, left
    config.yml:6:15: log.events: names "opened" twice
    config.yml:6:16: log.events[0]: "open" is not one of opened, changed, left; did you mean "opened"?
    config.yml:6:23: log.at_first_start: "never" is not one of emit, skip
    config.yml:6:31: log.max_description_length: "long" is not a size; write one like 64MiB, 64KB or a number of bytes
    config.yml:6:14: log.sinks: is empty; leave it out for standard output, or write a sink
    config.yml:6:15: log.sinks[0].type: is missing; write stdout, file, journald or otlp
    config.yml:6:15: log.sinks[0]: must be a mapping (key: value), not a single value
    config.yml:6:31: log.sinks[1]: a second sink on standard output
    config.yml:6:54: log.sinks[1].name: "stdout" is the name of a sink already
    config.yml:6:40: log.sinks[0].format: a sink of type journald has no such key
    config.yml:6:36: log.sinks[0].path: a sink of type stdout has no such key
    config.yml:6:15: log.sinks[0].path: is missing; name the file
    config.yml:6:66: log.sinks[1].path: is the file of the sink "x" as well
    config.yml:6:34: log.sinks[0].path: holds a NUL, which no path can
    the configuration has 2 problems:
      config.yml:6:34: log.sinks[0].path: is the path of a folder; name a file in it
      config.yml:6:60: log.sinks[1].path: is the path of a folder; name a file in it
    config.yml:6:15: log.sinks[0].endpoint: is missing
    config.yml:6:38: log.sinks[0].endpoint: must not hold a user or a password
    config.yml:6:68: log.sinks[0].headers.a…: is not the name of a header
    config.yml:6:66: log.sinks[0].headers.A: holds characters that a header cannot
    config.yml:6:77: log.sinks[0].headers.Content-Type: is set by the exporter itself
    config.yml:6:89: log.sinks[0].headers_files.a: is given twice
    the configuration has 2 problems:
      config.yml:6:66: log.sinks[0].compression: "zstd" is not one of gzip, none
      config.yml:6:81: log.sinks[0].timeout: must be at least 100ms
    "#);
}

#[test]
fn no_sink_writes_to_a_file_that_is_something_else_already() {
    let otlp = "{type: otlp, endpoint: 'http://a', headers_files: {a: header}}";
    let wrong = |path: &str| {
        let sinks = format!("[{otlp}, {{type: file, path: {path}}}]");
        let text = minimal_and(&format!(
            "    tls: {{ca_file: ca.pem}}\nstate: {{path: ./state.db}}\nweb: {{config_file: web.yml}}\n\
             log: {{sinks: {sinks}}}"
        ));
        let told = errors(&text);
        told.split_once("log.sinks[1].path: ").unwrap().1.to_owned()
    };
    let absolute = std::path::absolute("state.db-shm").unwrap();
    let all = [
        "config.yml",
        "./config.yml",
        "web.yml",
        "state.db",
        "state.db-wal",
        "state.db-shm",
        "state.db.lock",
        "/run/secret",
        "ca.pem",
        "header",
        "log/../state.db",
        "/run/../run/./secret",
        absolute.to_str().unwrap(),
    ]
    .map(wrong);
    assert_snapshot!(all.join("\n"), @"
    is the configuration file; name a file of its own
    is the configuration file; name a file of its own
    is the web configuration file; name a file of its own
    is the state file, state.path; name a file of its own
    is a file that stands beside the state file, state.path; name a file of its own
    is a file that stands beside the state file, state.path; name a file of its own
    is a file that stands beside the state file, state.path; name a file of its own
    is the file of accounts[0].client_secret_file; name a file of its own
    is the file of accounts[0].tls.ca_file; name a file of its own
    is a file of log.sinks[0].headers_files; name a file of its own
    is the state file, state.path; name a file of its own
    is the file of accounts[0].client_secret_file; name a file of its own
    is a file that stands beside the state file, state.path; name a file of its own
    ");
    let postgres = "state: {postgres: {url_file: /run/url}}";
    let sink = "log: {sinks: [{type: file, path: /run/url}]}";
    let told = errors(&minimal_and(&format!("{postgres}\n{sink}")));
    assert!(
        told.contains("is the file of state.postgres.url_file; name"),
        "{told}"
    );
    config(&minimal_and(
        "state: {path: a}\nlog: {sinks: [{type: file, path: b/a}]}",
    ));
}

#[test]
fn no_sink_writes_through_a_link_to_a_file_that_is_something_else_already() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let at = |name: &str| root.join(name).display().to_string();
    let link = |target: &str, name: &str| symlink(at(target), at(name)).unwrap();
    std::fs::create_dir(at("real")).unwrap();
    link("real", "folder");
    // The state is to be created yet.
    link("real/database", "state.db");
    let what = |path: &str| {
        let text = format!(
            "    tls: {{ca_file: {}}}\nstate: {{path: {}}}\nlog: {{sinks: [{{type: file, path: {}}}]}}",
            at("real/ca.pem"),
            at("state.db"),
            at(path),
        );
        load(&minimal_and(&text)).err().map(|error| {
            let told = error.to_string();
            let (_, told) = told.split_once("log.sinks[0].path: ").unwrap();
            told.split_once(';').unwrap().0.to_owned()
        })
    };
    assert_eq!(what("folder/alerts"), None);
    let state = "is the state file, state.path";
    std::fs::write(at("real/database"), "").unwrap();
    for path in ["folder/database", "real/database", "state.db"] {
        assert_eq!(what(path).as_deref(), Some(state), "{path}");
    }
    let beside = "is a file that stands beside the state file, state.path";
    for path in ["folder/database-wal", "real/database.lock", "state.db-shm"] {
        assert_eq!(what(path).as_deref(), Some(beside), "{path}");
    }
    link("folder/ca.pem", "alerts");
    std::fs::write(at("real/ca.pem"), "").unwrap();
    let ca = "is the file of accounts[0].tls.ca_file";
    for path in ["folder/ca.pem", "alerts"] {
        assert_eq!(what(path).as_deref(), Some(ca), "{path}");
    }
}

#[test]
fn wrong_state_and_web_settings_are_explained() {
    let wrong = |text: &str| errors(&minimal_and(text));
    let all = [
        wrong("state: {path: a, postgres: {url_file: b}}"),
        wrong("state: {path: ''}"),
        wrong("state: {postgres: {}}"),
        wrong("state: {postgres: {url: 'postgres://user:hunter2@db', url_file: x}}"),
        wrong("state: {postgres: {url_file: x, lease: 1ms}}"),
        wrong("state: {postgres: {url: 'http://user:hunter2@db'}}"),
        wrong("state: {postgres: {url: 'postgres://user:hunter2@db?sslmode=allow'}}"),
        wrong("state: {postgres: {url: 'postgres://user:hunter2@db?bogus=1'}}"),
        wrong("web: {telemetry_path: metrics}"),
        wrong("web: {telemetry_path: /}"),
        wrong("web: {telemetry_path: /-/healthy}"),
        wrong("web: {telemetry_path: /api/v1/status}"),
        wrong("web: {telemetry_path: '/{x}'}"),
        wrong("web: {listen_addresses: []}"),
        wrong("web: {listen_addresses: [':1', ':1']}"),
        wrong("web: {listen_addresses: ['localhost']}"),
        wrong("web: {config_file: ''}"),
    ];
    assert_snapshot!(all.join("\n"), @r#"
    config.yml:6:8: state: has both path and postgres; keep one
    config.yml:6:15: state.path: is empty; name the file
    config.yml:6:19: state.postgres.url: is missing; write url or url_file
    config.yml:6:25: state.postgres.url: cannot be given together with url_file
    config.yml:6:40: state.postgres.lease: must be at least 100ms
    config.yml:6:25: state.postgres.url: the URL of the database cannot be read; write it as postgres://user:password@host:5432/database
    config.yml:6:25: state.postgres.url: the URL's sslmode must be disable, prefer, require or verify-full
    config.yml:6:25: state.postgres.url: the URL of the database cannot be read; write it as postgres://user:password@host:5432/database
    config.yml:6:23: web.telemetry_path: must start with a slash; write "/metrics"
    config.yml:6:23: web.telemetry_path: "/" is the status page; choose another path
    config.yml:6:23: web.telemetry_path: paths below /-/ are taken; choose another
    config.yml:6:23: web.telemetry_path: paths below /api/ are taken; choose another
    config.yml:6:23: web.telemetry_path: may hold letters, digits, single slashes and -._~ only
    config.yml:6:25: web.listen_addresses: is empty; leave it out for the default, or write an address
    config.yml:6:25: web.listen_addresses: names ":1" twice
    config.yml:6:26: web.listen_addresses[0]: "localhost" is not an address; write one like :10836, 127.0.0.1:10836 or [::1]:10836
    config.yml:6:20: web.config_file: is empty; leave it out, or name the file
    "#);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing.yml");
    let load = |path: &Path| Config::load(Some(path), &Overrides::default(), &|_| None);
    let error = load(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot read the configuration file {}", path.display())
    );
    assert!(std::error::Error::source(&error).is_some());
    std::fs::write(&path, b"a: \xff").unwrap();
    assert!(matches!(load(&path), Err(ConfigError::Read { .. })));
    for endless_or_none in ["/dev/zero", "/"] {
        let error = load(Path::new(endless_or_none)).unwrap_err();
        assert!(matches!(error, ConfigError::Read { .. }), "{error}");
    }
}

// --- what is warned of ---

#[test]
fn what_should_not_stay_so_is_warned_of() {
    let text = MINIMAL
        .replace("https:", "http:")
        .replace("client_secret_file: /run/secret", "client_secret: hunter2")
        + "    tls: {insecure_skip_verify: true}\n";
    assert_snapshot!(load(&text).unwrap().warnings.join("\n"), @r#"
    accounts[0].url: http:// sends the secret and the token unencrypted; use https://
    accounts[0].token_url: http:// sends the secret and the token unencrypted; use https://
    accounts[0].tls.insecure_skip_verify: any certificate is accepted; whoever sits in between can read the secret
    config.yml: holds a secret and every user of this machine can read it; take the right away (chmod o-r), or keep the secret in a file of its own
    "#);
}

#[test]
fn searches_that_want_more_polls_than_there_are_are_warned_of() {
    let just_enough = MINIMAL.replace("[client_1]", "[client_1, msp_1, client_2, client_3]")
        + "\
searches:
  - {name: fast, interval: 1500ms}
  - {name: slow, interval: 6s}
";
    let one_more = format!("{just_enough}  - {{name: more, interval: 10s, tenants: [client_2]}}\n");
    let faster = one_more.replace("6s", "5s");
    let account =
        |key: &str, text: &str| text.replace("    tenants:", &format!("    {key}\n    tenants:"));
    let enough_for_it = account("requests_per_minute: 56", &one_more);
    let clients = account("discover_clients: true", &faster);
    let alike = faster.replace("client_2]", "msp_1]");
    let warnings = |text: &str| load(text).unwrap().warnings.join("\n");
    assert_eq!(warnings(&just_enough), "");
    assert_eq!(warnings(&enough_for_it), "");
    assert_eq!(warnings(&account("discover_clients: true", &one_more)), "");
    assert_snapshot!([one_more, faster, alike, clients].map(|text| warnings(&text)).join("\n"), @"
    accounts[0].tenants[2]: searches want 56 polls a minute of a tenant that may make 50: they are polled less often than their intervals say; lengthen these, or have fewer searches
    accounts[0].tenants[2]: searches want 58 polls a minute of a tenant that may make 50, and of 2 others: they are polled less often than their intervals say; lengthen these, or have fewer searches
    accounts[0].tenants[0]: searches want 52 polls a minute of a tenant that may make 50, and of 2 others: they are polled less often than their intervals say; lengthen these, or have fewer searches
    accounts[0].discover_clients: searches want 52 polls a minute of a tenant that may make 50: they are polled less often than their intervals say; lengthen these, or have fewer searches
    ");
}

#[test]
fn a_file_with_a_secret_is_for_its_owner_and_group_only() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yml");
    std::fs::write(
        &path,
        MINIMAL.replace("client_secret_file:", "client_secret:"),
    )
    .unwrap();
    for (mode, warnings) in [(0o644, 1), (0o640, 0), (0o600, 0)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let loaded = Config::load(Some(&path), &Overrides::default(), &|_| None).unwrap();
        assert_eq!(
            loaded.warnings.len(),
            warnings,
            "{mode:o}: {:?}",
            loaded.warnings
        );
    }
    std::fs::write(&path, MINIMAL).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let loaded = Config::load(Some(&path), &Overrides::default(), &|_| None).unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
}

// --- flags and the environment ---

const ACCOUNT_ENV: [(&str, &str); 4] = [
    ("OPSRAMP_URL", "https://env.example.com/"),
    ("OPSRAMP_TENANT_ID", "client_1, client_2"),
    ("OPSRAMP_CLIENT_ID", "ENV"),
    ("OPSRAMP_CLIENT_SECRET", "hunter2\n"),
];

fn env_and(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    ACCOUNT_ENV.iter().chain(more).copied().collect()
}

#[test]
fn the_environment_alone_makes_an_account() {
    let loaded = load_with(None, &ACCOUNT_ENV, &Overrides::default()).unwrap();
    let [account] = loaded.config.accounts.as_slice() else {
        panic!("{loaded:?}")
    };
    assert_eq!(&*account.options.name, "default");
    assert_eq!(account.options.url, "https://env.example.com");
    assert_eq!(
        account.options.token_url,
        "https://env.example.com/auth/oauth/token"
    );
    assert_eq!(
        account.options.client_secret,
        SecretSource::Value(Secret::new("hunter2"))
    );
    let ids: Vec<&str> = account.tenants.iter().map(|t| &*t.id).collect();
    assert_eq!(ids, ["client_1", "client_2"]);
    assert_eq!(loaded.file, None);
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let flags = Overrides {
        client_id: set("FLAG"),
        tenants: vec!["client_9".to_owned()],
        client_secret_file: Some("/flag".into()),
        insecure_skip_verify: true,
        query: set("actions:OPEN+priority:P0"),
        interval: Some("5s".parse().unwrap()),
        state_path: Some("flag.db".into()),
        ..Overrides::default()
    };
    let env = env_and(&[("OPSRAMP_EXPORTER_STATE_PATH", "env.db")]);
    let text = minimal_and("state: {postgres: {url_file: x}}");
    let config = load_with(Some(&text), &env, &flags).unwrap().config;
    let account = &config.accounts[0];
    assert_eq!(account.options.url, "https://env.example.com");
    assert_eq!(
        account.options.client_id,
        SecretSource::Value(Secret::new("FLAG"))
    );
    assert_eq!(
        account.options.client_secret,
        SecretSource::File("/flag".into())
    );
    assert!(account.options.tls.insecure_skip_verify);
    assert_eq!(&*account.tenants[0].id, "client_9");
    assert_eq!(config.searches[0].query, "actions:OPEN+priority:P0");
    assert_eq!(config.searches[0].interval, Duration::from_secs(5));
    assert_eq!(&*config.searches[0].name, "open");
    assert_eq!(
        config.state,
        State::File {
            path: "flag.db".into()
        }
    );
}

#[test]
fn a_tenant_that_the_file_knows_keeps_its_name() {
    let text = MINIMAL.replace("[client_1]", "[{id: client_1, name: retail}, client_2]");
    let env = [("OPSRAMP_TENANT_ID", "client_1")];
    let loaded = load_with(Some(&text), &env, &Overrides::default()).unwrap();
    let [tenant] = loaded.config.accounts[0].tenants.as_slice() else {
        panic!("{loaded:?}")
    };
    assert_eq!(tenant.name, Arc::from("retail"));
}

#[test]
fn the_state_is_where_the_flag_the_environment_the_file_or_systemd_says() {
    let path = |state: &State| match state {
        State::File { path } => path.display().to_string(),
        State::Postgres { url, lease } => format!("{url:?} {lease:?}"),
    };
    let state = |text: &str, env: &[(&str, &str)], flags: &Overrides| {
        path(&load_with(Some(text), env, flags).unwrap().config.state)
    };
    let none = Overrides::default();
    let file = minimal_and("state: {path: file.db}");
    let postgres = minimal_and("state: {postgres: {url_file: x, lease: 1m}}");
    let systemd = ("STATE_DIRECTORY", "/var/lib/a:/var/lib/b");
    assert_eq!(state(MINIMAL, &[], &none), "opsramp-exporter.db");
    assert_eq!(state(MINIMAL, &[systemd], &none), "/var/lib/a/state.db");
    assert_eq!(state(&file, &[systemd], &none), "file.db");
    let env = [systemd, ("OPSRAMP_EXPORTER_STATE_PATH", "env.db")];
    assert_eq!(state(&file, &env, &none), "env.db");
    let env = [(
        "OPSRAMP_EXPORTER_POSTGRES_URL",
        "postgres://user:hunter2@db",
    )];
    assert_eq!(state(&file, &env, &none), "<secret> 15s");
    assert_eq!(state(&postgres, &env, &none), "<secret> 60s");
    let flags = Overrides {
        postgres_url_file: Some("flag".into()),
        ..Overrides::default()
    };
    assert_eq!(state(&postgres, &env, &flags), "File(\"flag\") 60s");
}

#[test]
fn the_environment_names_the_file_where_the_flag_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yml");
    std::fs::write(&path, MINIMAL).unwrap();
    let by_env = path.clone().into_os_string();
    let env = move |name: &str| (name == CONFIG_FILE).then(|| by_env.clone());
    let loaded = Config::load(None, &Overrides::default(), &env).unwrap();
    assert_eq!(loaded.file, Some(path));
    let missing = Path::new("missing.yml");
    let error = Config::load(Some(missing), &Overrides::default(), &env).unwrap_err();
    assert!(error.to_string().ends_with("missing.yml"), "{error}");
}

#[test]
fn a_proxy_of_the_environment_that_would_be_left_out_ends_the_start_and_is_not_shown() {
    let none = Overrides::default();
    let load = |text: &str, variable| {
        let env = [(variable, "htpp://me:hunter2@proxy:3128")];
        load_with(Some(text), &env, &none).map_err(|error| error.to_string())
    };
    assert_snapshot!(load(MINIMAL, "HTTPS_PROXY").unwrap_err(), @"HTTPS_PROXY: is not the URL of an HTTP proxy; write it as http://host:port, name the hosts that are reached without one in NO_PROXY, or unset it");
    // What is meant for others.
    load(MINIMAL, "HTTP_PROXY").unwrap();
    let of_its_own = MINIMAL.replace(
        "    client_id:",
        "    proxy_url: http://proxy\n    client_id:",
    );
    load(&of_its_own, "HTTPS_PROXY").unwrap();
    let sink = "log:\n  sinks:\n    - { type: otlp, endpoint: 'http://loki/v1/logs' }\n";
    let told = load(&minimal_and(sink), "HTTP_PROXY").unwrap_err();
    assert!(told.starts_with("HTTP_PROXY: is not"), "{told}");
}

#[test]
fn nothing_at_all_is_answered_with_every_way_to_go_on() {
    let nothing = load_with(None, &[], &Overrides::default()).unwrap_err();
    assert_snapshot!(nothing, @r#"
    no OpsRamp account is configured; give one of these:
      a file:       --config.file=opsramp-exporter.yml (config.example.yml shows every key)
      environment:  OPSRAMP_URL, OPSRAMP_TENANT_ID, OPSRAMP_CLIENT_ID and OPSRAMP_CLIENT_SECRET_FILE
      flags:        --opsramp.url, --opsramp.tenant, --opsramp.client-id and --opsramp.client-secret-file
    or try `opsramp-exporter demo`, which needs none
    "#);
    assert!(matches!(load("log: {}"), Err(ConfigError::NoAccount)));
    let empty = [("OPSRAMP_URL", "")];
    let empty = load_with(None, &empty, &Overrides::default());
    assert!(matches!(empty, Err(ConfigError::NoAccount)));
}

#[test]
fn wrong_flags_and_variables_are_named_as_the_user_wrote_them() {
    let wrong = |text: Option<&str>, env: &[(&str, &str)], flags: &Overrides| {
        load_with(text, env, flags).unwrap_err().to_string()
    };
    let none = Overrides::default();
    let flags = Overrides {
        url: set("acme"),
        tenants: vec!["a b".to_owned()],
        query: set(""),
        web: WebOverrides {
            telemetry_path: set("/-/ready"),
            ..WebOverrides::default()
        },
        ..Overrides::default()
    };
    let two_accounts = MINIMAL.replace("tenants", "name: a\n    tenants")
        + "  - {name: b, url: 'https://b', client_id: b, client_secret_file: b, tenants: [b]}\n";
    let two_searches = minimal_and("searches: [{name: a}, {name: b}]");
    let interval = Overrides {
        interval: Some("5s".parse().unwrap()),
        ..Overrides::default()
    };
    let both = Overrides {
        state_path: Some("a".into()),
        postgres_url_file: Some("b".into()),
        ..Overrides::default()
    };
    let all = [
        wrong(None, &[("OPSRAMP_URL", "https://acme")], &none),
        wrong(None, &ACCOUNT_ENV, &flags),
        wrong(
            None,
            &env_and(&[("OPSRAMP_CLIENT_SECRET_FILE", "x")]),
            &none,
        ),
        wrong(
            Some(MINIMAL),
            &[
                ("OPSRAMP_EXPORTER_STATE_PATH", "x"),
                (
                    "OPSRAMP_EXPORTER_POSTGRES_URL",
                    "postgres://user:hunter2@db",
                ),
            ],
            &none,
        ),
        wrong(Some(&two_accounts), &[("OPSRAMP_TENANT_ID", "c")], &none),
        wrong(Some(&two_searches), &[], &interval),
        wrong(Some(MINIMAL), &[], &both),
    ];
    assert_snapshot!(all.join("\n"), @r#"
    the configuration has 3 problems:
      --opsramp.client-id or OPSRAMP_CLIENT_ID: is missing
      --opsramp.client-secret-file, OPSRAMP_CLIENT_SECRET_FILE or OPSRAMP_CLIENT_SECRET: is missing
      --opsramp.tenant or OPSRAMP_TENANT_ID: is missing; name at least one tenant
    the configuration has 4 problems:
      --opsramp.url: must start with https:// (or http://); write "https://acme"
      --opsramp.tenant: "a b" is not a tenant's id; they look like client_1234, msp_1234 or a UUID
      --search.query: is empty; write actions:OPEN or another
      --web.telemetry-path: paths below /-/ are taken; choose another
    OPSRAMP_CLIENT_SECRET: cannot be set together with OPSRAMP_CLIENT_SECRET_FILE
    OPSRAMP_EXPORTER_STATE_PATH: cannot be set together with OPSRAMP_EXPORTER_POSTGRES_URL
    OPSRAMP_TENANT_ID: is meant for one account, and the configuration file has 2; change it there
    --search.interval: is meant for one search, and the configuration file has 2; change it there
    --state.path: cannot be given together with --state.postgres-url-file
    "#);
}

#[test]
fn a_variable_that_is_not_text_is_named() {
    use std::os::unix::ffi::OsStringExt as _;

    let env = |name: &str| (name == "OPSRAMP_URL").then(|| OsString::from_vec(vec![0xff]));
    let error = Config::parse(None, &Overrides::default(), &env).unwrap_err();
    assert_eq!(error.to_string(), "OPSRAMP_URL: is not UTF-8 text");
}

// --- what holds for every input ---

/// Text that is more often YAML than not.
fn yaml_like() -> impl Strategy<Value = String> {
    let word = prop::sample::select(vec![
        "accounts",
        "url",
        "tenants",
        "searches",
        "interval",
        "log",
        "sinks",
        "type",
        "headers",
        "state",
        "postgres",
        "web",
        "otlp",
        "file",
        "5s",
        "5",
        "~",
        "true",
        "https://a",
        "&a",
        "*a",
        "<<",
        "!!str",
        "\"",
        "'",
        "|",
        ">",
        "{",
        "}",
        "[",
        "]",
        ",",
        "- ",
        ": ",
        ":",
        "\n",
        "\n  ",
        "\n    ",
        "#",
        "\t",
        "---",
        "...",
        "%",
        "\u{0}",
        "\u{feff}",
        "ä",
    ]);
    prop::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

#[test]
fn a_forgotten_colon_shows_no_secret() {
    let all = [
        "{client_secret:hunter2}",
        "{client_secret hunter2}",
        "{client_secret=hunter2: }",
        "{hunter2}",
        "{hunter2, hunter2}",
        "{url: x, hunter2 }",
    ]
    .map(|account| errors(&format!("accounts: [{account}]")));
    let otlp = "type: otlp, endpoint: 'http://loki'";
    let headers = ["{Authorization hunter2}", "{hunter2}", "{A:hunter2}"].map(|headers| {
        errors(&minimal_and(&format!(
            "log: {{sinks: [{{{otlp}, headers: {headers}}}]}}"
        )))
    });
    let all = format!("{}\n{}", all.join("\n"), headers.join("\n"));
    assert!(!all.contains("hunter2"), "{all}");
    let is_told = |line: &&str| !line.contains("is missing") && !line.starts_with("the ");
    let told: Vec<&str> = all.lines().filter(is_told).collect();
    assert_snapshot!(told.join("\n"), @r#"
      config.yml:1:13: accounts[0].client_secret…: needs a colon and a space before its value
      config.yml:1:13: accounts[0].client_secret…: needs a colon and a space before its value
      config.yml:1:13: accounts[0].client_secret…: needs a colon and a space before its value
      config.yml:1:13: accounts[0].…: unknown key; the keys here are name, url, token_url, client_id, client_id_file, client_secret, client_secret_file, tenants, discover_clients, timeout, connect_timeout, requests_per_minute, max_response_size, proxy_url, tls
      config.yml:1:13: accounts[0].…: unknown key; the keys here are name, url, token_url, client_id, client_id_file, client_secret, client_secret_file, tenants, discover_clients, timeout, connect_timeout, requests_per_minute, max_response_size, proxy_url, tls
      config.yml:1:22: accounts[0].…: unknown key; the keys here are name, url, token_url, client_id, client_id_file, client_secret, client_secret_file, tenants, discover_clients, timeout, connect_timeout, requests_per_minute, max_response_size, proxy_url, tls
      config.yml:1:18: accounts[0].url: must start with https:// (or http://); write "https://x"
      config.yml:1:21: accounts[0].…: unknown key; the keys here are name, url, token_url, client_id, client_id_file, client_secret, client_secret_file, tenants, discover_clients, timeout, connect_timeout, requests_per_minute, max_response_size, proxy_url, tls
    config.yml:6:63: log.sinks[0].headers.…: has no value
    config.yml:6:63: log.sinks[0].headers.…: has no value
    config.yml:6:63: log.sinks[0].headers.…: has no value
    "#);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_without_a_panic(text in prop_oneof![any::<String>(), yaml_like()]) {
        if let Err(error) = load(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn any_bytes_in_a_file_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        prop_assert!(Config::load(Some(file.path()), &Overrides::default(), &|_| None).is_err());
    }

    /// Whatever a slip of the keyboard does to a file, its secrets are in no message.
    #[test]
    fn no_message_shows_a_secret(at in 0..FULL.len(), cut in 0..24_usize, insert in yaml_like()) {
        let secret = "hunter2";
        let full = FULL.replace("0755", secret).replace("OrgID: acme", "OrgID: hunter2");
        let mut text: Vec<char> = full.chars().collect();
        let end = (at + cut).min(text.len());
        text.splice(at.min(end)..end, insert.chars());
        let text: String = text.into_iter().collect();
        let told = match load(&text) {
            Ok(loaded) => loaded.warnings.join("\n") + &format!("{:?}", loaded.config),
            Err(error) => format!("{error} {error:?}"),
        };
        prop_assert!(!told.contains(secret), "{}", told);
    }
}

// --- what is shipped ---

/// A file of the repository.
fn shipped(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_schema_that_is_shipped_is_current() {
    let mut current = serde_json::to_string_pretty(&json_schema()).unwrap();
    current.push('\n');
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/config.schema.json");
    if std::env::var_os("UPDATE_SHIPPED").is_some() {
        std::fs::write(&path, &current).unwrap();
    }
    assert!(
        shipped("docs/config.schema.json") == current,
        "docs/config.schema.json is not current; run this test with UPDATE_SHIPPED=1"
    );
}

/// Every key of the schema: the name of its section, its own name, and its description.
fn keys() -> Vec<(String, String, serde_json::Value)> {
    let schema = json_schema();
    let sections = schema["$defs"].as_object().unwrap().iter();
    let sections = sections.map(|(name, section)| (name.as_str(), section));
    sections
        .chain([("File", &schema)])
        .flat_map(|(name, section)| {
            let properties = section["properties"].as_object().into_iter().flatten();
            properties.map(move |(key, value)| (name.to_owned(), key.clone(), value.clone()))
        })
        .collect()
}

#[test]
fn every_key_is_described_and_unknown_ones_are_refused_by_the_schema_too() {
    let keys = keys();
    assert!(keys.len() > 50, "{}", keys.len());
    for (section, key, value) in keys {
        let description = value["description"].as_str().unwrap_or_default();
        assert!(
            description.ends_with('.'),
            "{section}.{key}: {description:?}"
        );
    }
    let schema = json_schema();
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
    for (name, section) in schema["$defs"].as_object().unwrap() {
        if section.get("properties").is_some() {
            assert_eq!(section["additionalProperties"], false, "{name}");
        }
    }
}

#[test]
fn the_defaults_in_the_schema_are_the_defaults() {
    let mut section = BTreeMap::<String, serde_json::Map<String, serde_json::Value>>::new();
    for (name, key, value) in keys() {
        if let Some(default) = value.get("default").filter(|default| !default.is_null()) {
            section
                .entry(name)
                .or_default()
                .insert(key, default.clone());
        }
    }
    let mut take = |name: &str| section.remove(name).unwrap_or_default();
    let mut account = take("Account");
    account.insert("url".into(), "https://acme.api.opsramp.com".into());
    account.insert("client_id".into(), "KEY".into());
    account.insert("client_secret_file".into(), "/run/secret".into());
    account.insert("tenants".into(), serde_json::json!(["client_1"]));
    account.insert("tls".into(), take("Tls").into());
    let mut search = take("Search");
    search.insert("name".into(), "open".into());
    let mut explicit = serde_json::json!({
        "accounts": [account],
        "searches": [search],
        "log": take("Log"),
        "web": take("Web"),
    });
    // A sink and a server have to be there for their defaults to show.
    let mut otlp = take("Sink");
    otlp.insert("type".into(), "otlp".into());
    otlp.insert("endpoint".into(), "http://loki".into());
    let format = otlp.remove("format").unwrap();
    explicit["log"]["sinks"] = serde_json::json!([{"type": "stdout", "format": format}, otlp]);
    let mut postgres = take("Postgres");
    postgres.insert("url_file".into(), "x".into());
    explicit["state"] = serde_json::json!({ "postgres": postgres });
    assert!(section.is_empty(), "{section:?}");

    let implicit = minimal_and(
        "log: {sinks: [{type: stdout}, {type: otlp, endpoint: 'http://loki'}]}
state: {postgres: {url_file: x}}
",
    );
    // JSON is YAML.
    assert_eq!(config(&explicit.to_string()), config(&implicit));
}

/// The lines of the example that are commented out with `#` and no space are keys with their
/// defaults; those with a space are prose.
fn with_defaults_written_out(example: &str) -> String {
    let lines = example.lines().map(|line| {
        let indent = line.len() - line.trim_start().len();
        match line.trim_start().strip_prefix('#') {
            Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => {
                format!("{}{rest}\n", &line[..indent])
            }
            _ => format!("{line}\n"),
        }
    });
    lines.collect()
}

#[test]
fn the_example_is_a_configuration_and_its_defaults_are_the_defaults() {
    let example = shipped("config.example.yml");
    let loaded = load(&example).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(loaded.warnings, Vec::<String>::new());
    let written_out = with_defaults_written_out(&example);
    assert_ne!(written_out, example);
    assert_eq!(config(&written_out), loaded.config);
}

#[test]
fn the_example_shows_every_key() {
    let example = shipped("config.example.yml");
    for (section, key, _) in keys() {
        let shows = |line: &str| {
            line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')
                .any(|word| word.strip_suffix(':') == Some(&key))
        };
        assert!(example.lines().any(shows), "{section}.{key}");
    }
}
