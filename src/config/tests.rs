//! Tests of the configuration as a whole: files, environments and flags in, configurations and
//! messages out.

use std::{collections::BTreeMap, ffi::OsString};

use super::*;

const MINIMAL: &str = "\
accounts:
  - url: https://acme.api.opsramp.com
    client_id: KEY
    client_secret_file: /run/secret
    tenants: [client_1]
";

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

fn errors(text: &str) -> String {
    load(text).unwrap_err().to_string()
}

#[test]
fn a_minimal_file_gets_the_defaults() {
    let loaded = load(MINIMAL).unwrap();
    assert!(loaded.warnings.is_empty());
    assert_eq!(loaded.config.accounts.len(), 1);
}

#[test]
fn mistakes_are_told_together() {
    assert!(errors("accounts: [{url: x}]\nsearchs: []").contains("problems"));
}
