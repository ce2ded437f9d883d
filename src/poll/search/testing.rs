//! What unit tests of a search have in common.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Failure, Learned, Running, Search, Shared, unknown};
use crate::{
    clock,
    health::Health,
    identity::{EventKind, SearchKey, Tenant},
    opsramp::{Allowances, Answer, Client, SearchRequest},
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
    let result = states.iter().enumerate().map(|(id, state)| {
        serde_json::json!({"uniqueId": id.to_string(), "currentState": state, "status": "New"})
    });
    let answer = serde_json::json!({
        "results": result.collect::<Vec<_>>(), "totalResults": states.len(),
        "pageNo": 1, "pageSize": 100, "nextPage": false,
    });
    let answer = Answer::of_search(answer.to_string().into_bytes());
    let request = SearchRequest {
        query: running.search.options.query.clone(),
        page: 1,
        page_size: 100,
        sorted: true,
    };
    running.engine.request_sent(&Purpose::Poll);
    let learned = running.learn(&Purpose::Poll, &request, &answer).await;
    Ok(learned?.1)
}
