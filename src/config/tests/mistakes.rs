//! What is wrong, and what is warned of: where it is, and what to write instead.

use super::*;

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
        "accounts:\n  - url: x\n   client_id: y",
        "a: 1\n  b: 2",
        "a:\n  b: 1\n c: 2",
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
    config.yml:1:5: is not valid YAML: mapping values are not allowed in this context; look at the indentation of this line and of the one before it (spaces only), or put a value with a colon into quotes
    config.yml:3:4: is not valid YAML: while parsing a block collection, did not find expected '-' indicator; look at the indentation of this line and of the one before it (spaces only)
    config.yml:2:4: is not valid YAML: mapping values are not allowed in this context; look at the indentation of this line and of the one before it (spaces only), or put a value with a colon into quotes
    config.yml:3:2: is not valid YAML: while parsing a block mapping, did not find expected key; look at the indentation of this line and of the one before it (spaces only)
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
fn keys_that_are_indented_with_no_break_spaces_are_explained() {
    let text =
        "accounts:\n\u{a0}\u{a0}- url: http://127.0.0.1:1\n\u{a0}\u{3000}client_secret: hunter2\n";
    assert_snapshot!(errors(text), @r"
    the configuration has 2 problems:
      config.yml:2:1: …: begins with white space that is no indent in YAML (U+00A0); indent with plain spaces
      config.yml:3:1: …: begins with white space that is no indent in YAML (U+00A0); indent with plain spaces
    ");
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
    let with = |keys: &str| wrong(&format!("{account}'https://acme', {keys}}}"));
    let all = [
        wrong("  - {}"),
        wrong("  - 7"),
        wrong(&format!("{account}'https://user:hunter2@acme'}}")),
        wrong(&format!("{account}'https://acme/?x=1'}}")),
        wrong(&format!("{account}'https://acme/auth/oauth/token'}}")),
        wrong(&format!(
            "{account}'https://acme/tenancy/auth/oauth/token'}}"
        )),
        with("token_url: acme"),
        with("client_id_file: x"),
        with("client_secret: hunter2"),
        with("timeout: 0s, connect_timeout: 800days"),
        with("requests_per_minute: 0"),
        with("requests_per_minute: -1"),
        with("max_response_size: 10"),
        with("max_response_size: 64M"),
        with("proxy_url: 'user:hunter2@proxy'"),
        with("proxy_url: 'proxy:3128'"),
        wrong(&format!("{account}'${{OPSRAMP_URL}}'}}")),
        wrong(&format!("{account}$OPSRAMP_URL}}")),
        with("token_url: $TOKEN_URL, proxy_url: $HTTP_PROXY"),
        wrong(&format!("{account}'https://$HOST'}}")),
        wrong(&format!("{account}'acme/api?key=hunter2'}}")),
        with("discover_clients: maybe"),
        with("discover_clients: 'yes'"),
        with("tls: {key_file: x}"),
        with("name: \"a\\nb\""),
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
    config.yml:2:64: accounts[0].url: ends in /tenancy/auth/oauth/token; write the base only: https://acme, and set token_url to https://acme/tenancy/auth/oauth/token
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
    config.yml:2:91: accounts[0].proxy_url: is not a URL; write one like http://proxy:3128 or http://user:password@proxy:3128
    config.yml:2:91: accounts[0].proxy_url: must start with http:// (or https://); write "http://proxy:3128"
    config.yml:2:64: accounts[0].url: is a variable, and variables are not expanded; write the URL itself, or set OPSRAMP_URL, which wins over the key
    config.yml:2:64: accounts[0].url: is a variable, and variables are not expanded; write the URL itself, or set OPSRAMP_URL, which wins over the key
    the configuration has 2 problems:
      config.yml:2:91: accounts[0].token_url: is a variable, and variables are not expanded; write the URL itself, or set OPSRAMP_TOKEN_URL, which wins over the key
      config.yml:2:114: accounts[0].proxy_url: is a variable, and variables are not expanded; write the URL itself, or leave the key out: HTTPS_PROXY and HTTP_PROXY count without it
    config.yml:2:64: accounts[0].url: has a $ in its host or port, and variables are not expanded; write the host and the port themselves
    config.yml:2:64: accounts[0].url: must not have a query or a fragment (? or #)
    config.yml:2:98: accounts[0].discover_clients: must be true or false, not "maybe"
    config.yml:2:98: accounts[0].discover_clients: must be true or false without quotes
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
        wrong(&format!("{{name: {}}}", "a".repeat(257))),
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
    config.yml:6:19: searches[0].name: is longer than 256 bytes
    "#);
}

#[test]
fn a_search_names_tenants_by_their_ids_and_may_name_those_yet_to_be_discovered() {
    let named = MINIMAL.replace("[client_1]", "[{id: client_1, name: retail}]");
    let search = "searches: [{name: a, tenants: [retail]}]";
    assert_snapshot!(errors(&format!("{named}{search}")), @r#"config.yml:6:32: searches[0].tenants[0]: "retail" is a tenant's name; write its id, client_1"#);
    let clients = "searches: [{name: a, tenants: [client_5, client_1, retail]}]";
    assert_snapshot!(errors(&format!("{named}    discover_clients: true\n{clients}")), @r#"
    the configuration has 2 problems:
      config.yml:7:42: searches[0].tenants[1]: "client_1" is a partner, whose clients are searched in its place (discover_clients); name clients by their ids, or leave `tenants` out for all of them
      config.yml:7:52: searches[0].tenants[2]: "retail" is a partner, whose clients are searched in its place (discover_clients); name clients by their ids, or leave `tenants` out for all of them
    "#);
    config(&format!(
        "{named}    discover_clients: true\n{}",
        clients.replace(", client_1, retail", "")
    ));
}

#[test]
fn wrong_log_settings_are_explained() {
    let wrong = |log: &str| errors(&minimal_and(&format!("log: {{{log}}}")));
    let otlp = |keys: &str| {
        wrong(&format!(
            "sinks: [{{type: otlp, endpoint: 'http://loki', {keys}}}]"
        ))
    };
    let all = [
        wrong("level: debug"),
        wrong("events: [opened, opened]"),
        wrong("events: [open]"),
        wrong("at_first_start: never"),
        wrong("max_description_length: long"),
        wrong("sinks: []"),
        wrong("sinks: [{}]"),
        wrong("sinks: [stdout]"),
        wrong("sinks: stdout"),
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
        wrong("sinks: [{type: otlp, endpoint: 'loki/v1/logs?token=hunter2'}]"),
        wrong("sinks: [{type: otlp, endpoint: $LOKI}]"),
        wrong("sinks: [{type: otlp, endpoint: 'http://loki/v1/logs?token=hunter2'}]"),
        otlp("headers: {a b: hunter2}"),
        otlp("headers: {A: \"hunter2\\n\"}"),
        otlp("headers: {Content-Type: x}"),
        otlp("headers: {A: x}, headers_files: {a: x}"),
        otlp("compression: zstd, timeout: 1ms"),
    ];
    assert_snapshot!(all.join("\n"), @r#"
    config.yml:6:7: log.level: unknown key; the keys here are events, at_first_start, fetch_details, include_raw, max_description_length, sinks
    config.yml:6:15: log.events: names "opened" twice
    config.yml:6:16: log.events[0]: "open" is not one of opened, changed, left; did you mean "opened"?
    config.yml:6:23: log.at_first_start: "never" is not one of emit, skip
    config.yml:6:31: log.max_description_length: "long" is not a size; write one like 64MiB, 64KB or a number of bytes
    config.yml:6:14: log.sinks: is empty; leave it out for standard output, write a sink, or log nothing with log.events: []
    config.yml:6:15: log.sinks[0].type: is missing; write stdout, file, journald or otlp
    config.yml:6:15: log.sinks[0]: must be a mapping (key: value), not a single value
    config.yml:6:14: log.sinks: must be a list, not a single value
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
    config.yml:6:38: log.sinks[0].endpoint: must not have a query or a fragment (? or #); what the receiver wants besides goes into headers or headers_files
    config.yml:6:38: log.sinks[0].endpoint: is a variable, and variables are not expanded; write the URL itself
    config.yml:6:38: log.sinks[0].endpoint: must not have a query or a fragment (? or #); what the receiver wants besides goes into headers or headers_files
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
    // The state file does not exist yet.
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
    link("new", "to-new");
    link("circle", "circle");
    for path in ["folder/alerts", "to-new", "circle", "missing/alerts"] {
        assert_eq!(what(path), None, "{path}");
    }
    symlink("../state.db", at("folder/to-state")).unwrap();
    link("folder/database-wal", "to-log");
    link("folder/ca.pem", "alerts");
    let state = "is the state file, state.path";
    let beside = "is a file that stands beside the state file, state.path";
    let ca = "is the file of accounts[0].tls.ca_file";
    for exist in [false, true] {
        if exist {
            std::fs::write(at("real/database"), "").unwrap();
            std::fs::write(at("real/ca.pem"), "").unwrap();
        }
        for path in [
            "folder/database",
            "real/database",
            "state.db",
            "folder/to-state",
        ] {
            assert_eq!(what(path).as_deref(), Some(state), "{path}");
        }
        for path in [
            "folder/database-wal",
            "real/database.lock",
            "state.db-shm",
            "to-log",
        ] {
            assert_eq!(what(path).as_deref(), Some(beside), "{path}");
        }
        for path in ["folder/ca.pem", "alerts"] {
            assert_eq!(what(path).as_deref(), Some(ca), "{path}");
        }
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
        wrong("web: {telemetry_path: ''}"),
        wrong("web: {telemetry_path: api}"),
        wrong("web: {telemetry_path: /a/..}"),
        wrong("web: {telemetry_path: /}"),
        wrong("web: {telemetry_path: /-/healthy}"),
        wrong("web: {telemetry_path: /api/v1/status}"),
        wrong("web: {telemetry_path: '/{x}'}"),
        wrong("web: {listen_addresses: []}"),
        wrong("web: {listen_addresses: [':1', ':1']}"),
        wrong("web: {listen_addresses: ['0.0.0.0:1', '[::]:1']}"),
        wrong("web: {listen_addresses: [':1', '127.0.0.1:1', '[::1]:2']}"),
        wrong("web: {listen_addresses: ['127.0.0.1:1', '[::ffff:127.0.0.1]:1']}"),
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
    config.yml:6:25: state.postgres.url: the URL has a parameter that is not known: bogus
    config.yml:6:23: web.telemetry_path: must start with a slash; write "/metrics"
    config.yml:6:23: web.telemetry_path: must start with a slash; write "/metrics"
    config.yml:6:23: web.telemetry_path: must start with a slash; write "/metrics"
    config.yml:6:23: web.telemetry_path: may not have "." or ".." between its slashes: clients take them out before they ask
    config.yml:6:23: web.telemetry_path: "/" is the status page; choose another path
    config.yml:6:23: web.telemetry_path: paths below /-/ are taken; choose another
    config.yml:6:23: web.telemetry_path: paths below /api/ are taken; choose another
    config.yml:6:23: web.telemetry_path: may hold letters, digits, single slashes and -._~ only
    config.yml:6:25: web.listen_addresses: is empty; leave it out for the default, or write an address
    config.yml:6:25: web.listen_addresses: names ":1" twice
    config.yml:6:25: web.listen_addresses: 0.0.0.0:1 takes the port on every address, so that [::]:1 cannot be had; leave out one
    config.yml:6:25: web.listen_addresses: :1 takes the port on every address, so that 127.0.0.1:1 cannot be had; leave out one
    config.yml:6:25: web.listen_addresses: 127.0.0.1:1 and [::ffff:127.0.0.1]:1 are the same address; leave out one
    config.yml:6:26: web.listen_addresses[0]: "localhost" is not an address; write one like :10836, 127.0.0.1:10836 or [::1]:10836
    config.yml:6:20: web.config_file: is empty; leave it out, or name the file
    "#);
}

#[test]
fn a_secret_where_the_name_of_its_file_belongs_is_refused_and_not_shown() {
    let account = |key: &str, value: &str| {
        let account = MINIMAL.replace("    client_secret_file: /run/secret\n", "");
        errors(&account.replace("    tenants", &format!("    {key}: '{value}'\n    tenants")))
    };
    let wrong = |text: &str| errors(&minimal_and(text));
    let headers =
        "{type: otlp, endpoint: 'http://loki', headers_files: {Authorization: 'Bearer hunter2'}}";
    let all = [
        account("client_secret_file", "-----BEGIN KEY----- hunter2"),
        errors(&MINIMAL.replace("client_id: KEY", "client_id_file: 'https://hunter2'")),
        wrong("    tls: {ca_file: 'https://hunter2'}"),
        wrong("    tls: {cert_file: x, key_file: '-----BEGIN PRIVATE KEY----- hunter2'}"),
        wrong("    tls: {cert_file: \"hunter2\\n\", key_file: x}"),
        wrong("state: {postgres: {url_file: 'postgres://u:hunter2@h/db'}}"),
        wrong("state: {postgres: {url_file: 'host=h password=hunter2'}}"),
        wrong("state: {path: 'postgres://u:hunter2@h/db'}"),
        wrong("web: {config_file: \"basic_auth_users:\\n  u: hunter2\"}"),
        wrong(&format!("log: {{sinks: [{headers}]}}")),
        wrong("log: {sinks: [{type: file, path: 'https://u:hunter2@loki'}]}"),
    ];
    assert!(!all.iter().any(|error| error.contains("hunter2")));
    assert_snapshot!(all.join("\n"), @r#"
    config.yml:4:25: accounts[0].client_secret_file: is a certificate or key itself, not the name of a file; put it into a file, and name that file here
    config.yml:3:21: accounts[0].client_id_file: is a URL, not the name of a file; put it into a file, and name that file here
    config.yml:6:20: accounts[0].tls.ca_file: is a URL, not the name of a file; put it into a file, and name that file here
    config.yml:6:35: accounts[0].tls.key_file: is a certificate or key itself, not the name of a file; put it into a file, and name that file here
    config.yml:6:22: accounts[0].tls.cert_file: is a text with a line break, not the name of a file; put it into a file, and name that file here
    config.yml:6:30: state.postgres.url_file: is a URL, not the name of a file; put it into a file, and name that file here
    config.yml:6:30: state.postgres.url_file: is a connection string, not the name of a file; put it into a file, and name that file here
    config.yml:6:15: state.path: is a URL, not the name of a file; name the state's own; the URL of a database goes into a file that state.postgres.url_file names
    config.yml:6:20: web.config_file: is a text with a line break, not the name of a file; put it into a file, and name that file here
    config.yml:6:84: log.sinks[0].headers_files.Authorization: is the value of a header, not the name of a file; put it into a file, and name that file here
    config.yml:6:34: log.sinks[0].path: is a URL, not the name of a file; name a file, or send the lines with a sink of type otlp
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

#[test]
fn a_mistake_about_the_web_server_alone_is_told_once_and_others_are_not() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "searches: 7\nweb: {listen_addresses: [10836]}\n";
    std::fs::write(file.path(), text).unwrap();
    let web = Config::load_web(Some(file.path()), &WebOverrides::default(), &|_| None);
    let error = web.unwrap_err().to_string();
    let told = error.replace(&file.path().display().to_string(), "config.yml");
    assert_snapshot!(told, @r#"config.yml:2:26: web.listen_addresses[0]: "10836" is not an address; write one like :10836, 127.0.0.1:10836 or [::1]:10836"#);
}

#[test]
fn addresses_that_are_not_listened_on_may_cover_each_other() {
    let addresses = "listen_addresses: [':1', '127.0.0.1:1']";
    let text = minimal_and(&format!("web: {{{addresses}, systemd_socket: true}}"));
    assert_eq!(load(&text).unwrap().config.web.listen_addresses.len(), 2);
}

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
fn what_is_hardly_meant_is_warned_of_and_what_looks_odd_is_not() {
    let warnings = |id: &str, secret: &str| {
        let secret = format!("client_secret: '{secret}'");
        let text = MINIMAL
            .replace("client_id: KEY", &format!("client_id: {id}"))
            .replace("client_secret_file: /run/secret", &secret);
        let mut warnings = load(&text).unwrap().warnings;
        // The last warning is about the mode of the configuration file.
        warnings.pop();
        warnings.join("\n")
    };
    assert_snapshot!(warnings("${OPSRAMP_KEY}", "$X"), @r"
    accounts[0].client_id: is a variable, and variables are not expanded; write its value, or use the …_file key or the OPSRAMP_… variable
    accounts[0].client_secret: is a variable, and variables are not expanded; write its value, or use the …_file key or the OPSRAMP_… variable
    ");
    assert_snapshot!(warnings("YOUR-KEY", "hunter2 "), @r"
    accounts[0].client_id: is what the examples have in its place; write your own
    accounts[0].client_secret: begins or ends with white space: it is sent as it stands, so take out what is not part of it
    ");
    assert_eq!(warnings("KEY", "hun$ter2$"), "");
    let env = [
        ("OPSRAMP_URL", "https://acme"),
        ("OPSRAMP_TENANT_ID", "client_1"),
        ("OPSRAMP_CLIENT_ID", "a"),
        ("OPSRAMP_CLIENT_SECRET", "\"hunter2\""),
    ];
    let loaded = load_with(None, &env, &Overrides::default()).unwrap();
    assert_snapshot!(loaded.warnings.join("\n"), @"OPSRAMP_CLIENT_SECRET: begins or ends with a quotation mark: it is sent as it stands, so take out what is not part of it");
}

#[test]
fn an_endpoint_without_a_path_is_warned_of() {
    let endpoint = |url: &str| {
        let sink = format!("{{type: otlp, endpoint: '{url}'}}");
        load(&minimal_and(&format!(
            "log: {{sinks: [{{type: stdout}}, {sink}]}}"
        )))
    };
    let warnings = |url: &str| endpoint(url).unwrap().warnings.join("\n");
    let bare = warnings("http://loki:3100");
    assert_snapshot!(bare, @"log.sinks[1].endpoint: has no path, and none is added: receivers take logs at /v1/logs, Grafana Loki at /otlp/v1/logs");
    assert_eq!(warnings("http://loki:3100/"), bare);
    assert_eq!(warnings("http://loki:3100/otlp/v1/logs"), "");
    let error = endpoint("loki:3100").unwrap_err().to_string();
    assert_snapshot!(error, @r#"config.yml:6:54: log.sinks[1].endpoint: must have its scheme and its path; write "http://loki:3100/v1/logs", or /otlp/v1/logs behind the host if it is Grafana Loki"#);
}

#[test]
fn a_header_that_holds_a_placeholder_is_warned_of() {
    let warnings = |value: &str| {
        let sink = format!(
            "{{type: otlp, endpoint: 'http://loki/otlp/v1/logs', headers: {{A: '{value}'}}}}"
        );
        let loaded = load(&minimal_and(&format!("log: {{sinks: [{sink}]}}"))).unwrap();
        // The file holds a secret now, so there is a warning about its mode as well.
        let of_headers = |told: &String| told.starts_with("log.");
        loaded.warnings.into_iter().find(of_headers)
    };
    assert_snapshot!(warnings("Bearer ${TOKEN}").unwrap(), @"log.sinks[0].headers.A: holds a variable, and variables are not expanded; write its value");
    assert_snapshot!(warnings("YOUR-TOKEN").unwrap(), @"log.sinks[0].headers.A: holds what the examples have in its place; write your own");
    assert_eq!(warnings("Bearer hunter2"), None);
}

#[test]
fn a_client_among_partners_whose_clients_are_looked_up_is_warned_of() {
    let warnings = |tenants: &str, key: &str| {
        let text = MINIMAL.replace(
            "tenants: [client_1]",
            &format!("tenants: [{tenants}]\n    {key}"),
        );
        load(&text).unwrap().warnings.join("\n")
    };
    assert_snapshot!(warnings("msp_1, client_11, client_12", "discover_clients: true"), @"accounts[0].tenants: with discover_clients, every id here is a partner's, whose clients are searched, not itself; name a client in an account of its own: client_11, client_12");
    assert_eq!(warnings("msp_1, client_11", "discover_clients: false"), "");
    let uuid = "123e4567-e89b-12d3-a456-426614174000";
    assert_eq!(
        warnings(&format!("msp_1, {uuid}"), "discover_clients: true"),
        ""
    );
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
    // Every tenant of it is a partner then, see the test above.
    let discovering = |text: &str| {
        let partners = (1..=3).fold(text.to_owned(), |text, number| {
            text.replace(&format!("client_{number}"), &format!("msp_1{number}"))
        });
        let clients = partners.replace("tenants: [msp_12]", "tenants: [client_5]");
        account("discover_clients: true", &clients)
    };
    let clients = discovering(&faster);
    let alike = faster.replace("client_2]", "msp_1]");
    let warnings = |text: &str| load(text).unwrap().warnings.join("\n");
    assert_eq!(warnings(&just_enough), "");
    assert_eq!(warnings(&enough_for_it), "");
    assert_eq!(warnings(&discovering(&one_more)), "");
    assert_snapshot!([one_more, faster, alike, clients].map(|text| warnings(&text)).join("\n"), @"
    accounts[0].tenants[2]: searches want 56 polls a minute of a tenant that may make 50: they are polled less often than their intervals say; lengthen these, or have fewer searches
    accounts[0].tenants[2]: searches want 58 polls a minute of a tenant that may make 50, and of 2 others: they are polled less often than their intervals say; lengthen these, or have fewer searches
    accounts[0].tenants[0]: searches want 52 polls a minute of a tenant that may make 50, and of 2 others: they are polled less often than their intervals say; lengthen these, or have fewer searches
    accounts[0].discover_clients: searches want 52 polls a minute of a tenant that may make 50: they are polled less often than their intervals say; lengthen these, or have fewer searches
    ");
}

#[test]
fn polls_of_a_tenant_that_several_accounts_of_a_server_ask_for_are_counted_together() {
    let account = |name: &str, url: &str, more: &str| {
        format!(
            "  - {{name: {name}, url: 'https://{url}', client_id: k, client_secret_file: /s, \
             tenants: [client_0, client_1]{more}}}\n"
        )
    };
    let warnings = |accounts: [String; 2]| {
        let accounts = accounts.concat();
        let searches = "searches: [{name: open, interval: 2s, tenants: [client_1]}]";
        let loaded = load(&format!("accounts:\n{accounts}{searches}\n")).unwrap();
        loaded.warnings.join("\n")
    };
    let one = || account("one", "a.example", "");
    let same = account("other", "A.example:443/", "");
    let lower = account("other", "a.example", ", requests_per_minute: 31");
    assert_snapshot!([same, lower].map(|other| warnings([one(), other])).join("\n"), @"
    accounts[0].tenants[1]: searches of 2 accounts want 60 polls a minute of a tenant that may make 50: they are polled less often than their intervals say; lengthen these, or have fewer searches
    accounts[0].tenants[1]: searches of 2 accounts want 60 polls a minute of a tenant that may make 31: they are polled less often than their intervals say; lengthen these, or have fewer searches
    ");
    assert_eq!(warnings([one(), account("other", "b.example", "")]), "");
    let enough = |name: &str| account(name, "a.example", ", requests_per_minute: 60");
    assert_eq!(warnings([enough("one"), enough("other")]), "");
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
