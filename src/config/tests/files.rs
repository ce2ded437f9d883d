//! What is read from a file, and written to one.

use super::*;

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
    let text = MINIMAL.replace("KEY", "0755").replace(
        "[client_1]",
        "[1e3, 0x1F, 12_3, yes, 340282366920938463463374607431768211455]",
    );
    let config = config(&text);
    assert_eq!(
        config.accounts[0].options.client_id,
        SecretSource::Value(Secret::new("0755"))
    );
    let ids: Vec<&str> = config.accounts[0].tenants.iter().map(|t| &*t.id).collect();
    let large = u128::MAX.to_string();
    assert_eq!(ids, ["1e3", "0x1F", "12_3", "yes", &large]);
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

#[test]
fn the_effective_configuration_is_read_again_as_the_same() {
    for text in [MINIMAL, FULL] {
        // Secrets in the file itself are not printed, so they cannot be read again.
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
