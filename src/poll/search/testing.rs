//! What unit tests of a search have in common.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Failure, Learned, Reply, Running, Search, Shared, unknown};
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
    running_of(search(store, health).await, store).await
}

/// A search once it has been taken up.
pub(super) async fn running_of(search: Box<Search>, store: &Store) -> Running {
    let loaded = store.take_up(&search.key, clock::now()).await.unwrap();
    let engine_options = Options {
        full_read_interval: search.options.full_read_interval,
        interval: search.options.interval,
        max_poll_pages: 25,
        has_one_status: true,
    };
    let engine = Engine::new(
        engine_options,
        Tracker::new([GroupLabel::State].into(), search.options.max_groups),
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
    let shown = states.iter().enumerate();
    let shown = shown.map(|(id, state)| alert(&id.to_string(), state));
    learn_items(running, shown.collect(), states.len()).await
}

/// The same if the server shows these items as the whole result, and counts so many.
pub(super) async fn learn_items(
    running: &mut Running,
    items: Vec<Value>,
    total: usize,
) -> Result<u64, Failure> {
    let answer = answer_of(1, items, total as u64, false);
    let request = request(running, 1);
    running.engine.request_sent(&Purpose::Poll);
    let learned = running.learn(&Purpose::Poll, &request, &answer).await;
    Ok(learned?.1)
}

/// An alert as a page shows it.
pub(super) fn alert(id: &str, state: &str) -> Value {
    json!({"uniqueId": id, "currentState": state, "status": "New"})
}

/// A page with these items.
pub(super) fn answer_of(page: u64, items: Vec<Value>, total: u64, goes_on: bool) -> Answer {
    let answer = json!({
        "results": items, "totalResults": total,
        "pageNo": page, "pageSize": SIZE, "nextPage": goes_on,
    });
    Answer::of_search(answer.to_string().into_bytes())
}

/// A page with the alerts from `first` on, of a result that is shown page by page.
pub(super) fn page_of(page: u64, first: u64, total: u64) -> Answer {
    let shown = SIZE.min(total.saturating_sub((page - 1) * SIZE));
    let items = (first..first + shown).map(|id| alert(&id.to_string(), "Critical"));
    answer_of(page, items.collect(), total, page * SIZE < total)
}

/// What comes of a request for a page.
pub(super) fn reply(
    running: &Running,
    purpose: Purpose,
    page: u64,
    answer: Result<Answer, Error>,
) -> Reply {
    Reply::Page {
        purpose,
        request: request(running, page),
        answer,
        took: Duration::ZERO,
    }
}

fn request(running: &Running, page: u64) -> SearchRequest {
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

/// Lets time pass.
pub(super) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

pub(super) fn auth(forbidden: bool) -> Error {
    let what = String::new();
    Error::Auth { what, forbidden }
}
