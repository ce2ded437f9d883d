//! Tests of the configuration as a whole: files, environments and flags in, configurations and
//! messages out.

mod files;
mod mistakes;
mod overrides;
mod properties;
mod shipped;

use std::{collections::BTreeMap, ffi::OsString, os::unix::fs::symlink, sync::Arc};

use insta::assert_snapshot;

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
        is_exposed: true,
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
