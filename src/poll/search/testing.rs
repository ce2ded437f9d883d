//! What unit tests of a search have in common.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Failure, Learned, Running, Search, Shared, unknown};
use crate::{
    clock,
    health::Health,
    identity::{EventKind, SearchKey, Tenant},
    opsramp::{Allowances, Answer, Client, Error, SearchRequest},
    poll::{
        AtFirstStart,
        engine::{Engine, Options, Purpose},
        schedule::Grid,
        testing::{NOBODY, account_options, metrics, open_store, search_options},
    },
    record,
    status::Board,
    store::{JOURNAL_LIMIT, Store},
    track::{GroupLabel, Tracker},
};

pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// The size of pages.
pub(super) const SIZE: u64 = 100;

/// A search whose server does not exist.
pub(super) async fn search(store: &Store, health: &Health) -> Box<Search> {
    let board = Board::default();
    let metrics = metrics(&board);
    let options = account_options(NOBODY, "any", "any");
    let account = metrics.register_account(&options.name);
    let client = Client::new(options, &Allowances::default(), Arc::new(account))
        .await
        .unwrap();
    let key = SearchKey {
        account: "default".into(),
        tenant: Tenant {
            id: "client_1".into(),
            name: "retail".into(),
        },
        search: "open".into(),
    };
    let options = Arc::new(search_options("open"));
    let record = record::Options {
        events: EventKind::ALL.to_vec(),
        include_raw: false,
        max_description_length: 4096,
    };
    Box::new(Search {
        status: unknown(&key, &options, store),
        metrics: metrics.register_search(&key),
        heartbeat: health.register("search", PATIENCE),
        client,
        shared: Shared {
            store: store.clone(),
            board,
            health: health.clone(),
            record: Arc::new(record),
            at_first_start: AtFirstStart::Emit,
            fetch_details: false,
            steadiness: Arc::default(),
        },
        first_poll: Instant::now(),
        learned: Learned::default(),
        key,
        options,
    })
}

/// The same once it has been taken up.
pub(super) async fn running(store: &Store, health: &Health) -> Running {
    let search = search(store, health).await;
    let loaded = store.take_up(&search.key, clock::now()).await.unwrap();
    let engine_options = Options {
        full_read_interval: search.options.full_read_interval,
        interval: search.options.interval,
        max_poll_pages: 25,
        has_one_status: true,
    };
    let engine = Engine::new(
        engine_options,
        Tracker::new([GroupLabel::State].into(), 200),
    );
    let grid = Grid::new(&search.key, search.options.interval, Instant::now());
    Running::new(search, &loaded, engine, grid)
}

/// A search that has been taken up from a store that nobody else has.
pub(super) async fn alone() -> (Running, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(folder.path(), JOURNAL_LIMIT).await;
    (running(&store, &Health::default()).await, folder)
}

/// Returns the number of events if the server shows the alerts 0, 1, … in these states.
pub(super) async fn learn(running: &mut Running, states: &[&str]) -> Result<u64, Failure> {
    let answer = answer_of(1, states.len() as u64, (0..).zip(states.iter().copied()));
    let request = request(running, 1);
    running.engine.request_sent(&Purpose::Poll);
    let learned = running.learn(&Purpose::Poll, &request, &answer).await;
    Ok(learned?.1)
}

/// A page of a result of `total` alerts, with these ids and states.
pub(super) fn answer_of<'a>(
    page: u64,
    total: u64,
    shown: impl Iterator<Item = (u64, &'a str)>,
) -> Answer {
    let results = shown.map(|(id, state)| {
        serde_json::json!({"uniqueId": id.to_string(), "currentState": state, "status": "New"})
    });
    let answer = serde_json::json!({
        "results": results.collect::<Vec<_>>(), "totalResults": total,
        "pageNo": page, "pageSize": SIZE, "nextPage": page * SIZE < total,
    });
    Answer::of_search(answer.to_string().into_bytes())
}

/// The request that such a page answers.
pub(super) fn request(running: &Running, page: u64) -> SearchRequest {
    SearchRequest {
        query: running.search.options.query.clone(),
        page,
        page_size: SIZE as u32,
        sorted: true,
    }
}

pub(super) fn status(status: u16) -> Error {
    Error::Http {
        endpoint: "search",
        status,
        excerpt: String::new(),
    }
}

pub(super) fn auth(forbidden: bool) -> Error {
    let what = String::new();
    Error::Auth { what, forbidden }
}
