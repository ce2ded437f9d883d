//! What unit tests of polling have in common.

use std::{path::Path, time::Duration};

use super::{Account, AtFirstStart, Plan, SearchOptions};
use crate::{
    metrics::{BuildInfo, Metrics},
    opsramp, record,
    secret::{Secret, SecretSource},
    status::Board,
    store::{self, Store},
};

/// The URL of a server that does not exist.
pub(super) const NOBODY: &str = "http://127.0.0.1:1";

/// Opens an SQLite store in that folder.
pub(super) async fn open_store(folder: &Path, journal_limit: u64) -> Store {
    let options = store::Options::Sqlite {
        path: folder.join("state.db"),
        journal_limit,
    };
    Store::open(&options).await.unwrap()
}

pub(super) fn metrics(board: &Board) -> Metrics {
    let build = BuildInfo {
        version: "0",
        revision: "0",
        rustversion: "0",
    };
    Metrics::new(board.clone(), build)
}

/// The account `default` on that server, with these credentials.
pub(super) fn account_options(url: &str, key: &str, secret: &str) -> opsramp::Options {
    let source = |secret| SecretSource::Value(Secret::new(secret));
    opsramp::Options::new(
        "default".into(),
        url.to_owned(),
        source(key),
        source(secret),
    )
}

pub(super) fn search_options(name: &str) -> SearchOptions {
    SearchOptions {
        name: name.into(),
        query: "actions:OPEN".to_owned(),
        interval: Duration::from_secs(30),
        tenants: None,
        page_size: 100,
        full_read_interval: Duration::from_secs(600),
        stale_after: Duration::from_secs(300),
        group_by: Vec::new(),
        max_groups: 200,
    }
}

/// A plan that writes no lines.
pub(super) fn plan(account: Account, searches: Vec<SearchOptions>) -> Plan {
    Plan {
        accounts: vec![account],
        tenants_are_picked: false,
        searches,
        record: record::Options {
            events: Vec::new(),
            include_raw: false,
            max_description_length: 4096,
        },
        at_first_start: AtFirstStart::Emit,
        fetch_details: false,
    }
}
