//! The schema and the example that are shipped.

use super::*;
use crate::cli::shipped::assert_current;

/// A file of the repository.
fn shipped(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_schema_that_is_shipped_is_current() {
    let mut current = serde_json::to_string_pretty(&json_schema()).unwrap();
    current.push('\n');
    assert_current("docs/config.schema.json", current.as_bytes());
}

#[test]
fn the_schema_takes_the_durations_and_tenants_that_the_program_takes() {
    let schema = jsonschema::validator_for(&json_schema()).unwrap();
    let file = |interval: &str, tenant: serde_json::Value| {
        serde_json::json!({
            "accounts": [{
                "url": "https://a", "client_id": "a", "client_secret": "b",
                "tenants": [tenant, {"id": tenant}],
            }],
            "searches": [{"name": "a", "interval": interval, "tenants": [tenant]}],
        })
    };
    for good in [
        "30s",
        "0.5s",
        "1h 30m",
        "1h30m",
        "5 m",
        "1.5 days",
        "2wks",
        "3weeks",
        "1hour",
        "2hrs",
        "9secs",
        "1second",
        "4mins",
        "1minute",
        "100ms",
        "100millis",
        "5msec",
        "7us",
        "7µs",
        "7usec",
        "8ns",
        "8nanos",
        "8nsec",
        "1d",
        "1w",
        "1h 2min 3sec",
        "0",
    ] {
        good.parse::<HumanDuration>().unwrap();
        assert!(schema.is_valid(&file(good, "client_1".into())), "{good}");
    }
    for bad in [
        "5M",
        "5",
        "0.5",
        "1y",
        "2months",
        "3years",
        "s",
        "5 parsecs",
        ".5s",
        "5.s",
        "-5s",
        "1h M",
    ] {
        bad.parse::<HumanDuration>().unwrap_err();
        assert!(!schema.is_valid(&file(bad, "client_1".into())), "{bad}");
    }
    assert!(schema.is_valid(&file("30s", 1.into())));
    let text =
        minimal_and("searches: [{name: a, tenants: [1]}]").replace("[client_1]", "[1, {id: 2}]");
    assert_eq!(&*config(&text).accounts[0].tenants[0].id, "1");
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
    // The defaults of a sink and of a server only show if there are a sink and a server.
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
    let [unchanged] = &loaded.warnings[..] else {
        panic!("{:?}", loaded.warnings)
    };
    let told = "accounts[0].client_id: is what the examples have in its place";
    assert!(unchanged.starts_with(told), "{unchanged}");
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
