use std::time::Duration;

use super::*;
use crate::{
    secret::Secret,
    store::{Options, conformance},
};

#[path = "../../../tests/support/postgres.rs"]
mod server;

const LEASE: Duration = Duration::from_secs(15);

fn fresh() -> (Options, ()) {
    (options(&server::shared().fresh(), "node"), ())
}

fn options(url: &str, node: &str) -> Options {
    Options::Postgres {
        url: SecretSource::Value(Secret::new(url)),
        lease: LEASE,
        node: node.to_owned(),
        journal_limit: 1000,
    }
}

conformance::suite!(fresh);
