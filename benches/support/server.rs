//! A server that costs next to nothing: its pages of alerts were made before, and only get other
//! ids.
//!
//! The simulator makes every page anew, which takes longer than reading one, so two programs that
//! wait for it look equally fast. This server copies a page and puts the ids in.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Router,
    extract::{Query, State},
    http::header,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use opsramp_exporter::{
    clock,
    simulator::{self, SearchParams, World},
};
use serde::Deserialize;
use tokio::{runtime::Handle, time::Instant};

/// The largest page size of the API.
pub(crate) const PAGE_SIZE: usize = 500;
/// The size of an alert as a busy instance sends it, in bytes: 100,000 alerts are 205 MB.
const ALERT_SIZE: usize = 2050;
/// Number of different pages; they come round again with other ids.
const TEMPLATES: usize = 20;
const FIRST_ID: u64 = 5_000_000;
const ID: &str = "\"uniqueId\":\"";

/// A server of one result, on a port of its own.
#[derive(Clone, Debug)]
pub(crate) struct Server(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    templates: Vec<Template>,
    alerts: AtomicU64,
    searches: AtomicU64,
    first_search: Mutex<Option<Instant>>,
    address: SocketAddr,
}

/// The `results` of a page, and the offsets of the ids in it.
#[derive(Debug)]
struct Template {
    results: Vec<u8>,
    ids: Vec<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    page_no: u64,
    page_size: u64,
}

// === impl Server ===

impl Server {
    pub(crate) async fn start(alerts: usize) -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap();
        let server = Self(Arc::new(Shared {
            templates: tokio::task::spawn_blocking(templates).await.unwrap(),
            alerts: AtomicU64::new(alerts as u64),
            searches: AtomicU64::default(),
            first_search: Mutex::default(),
            address: listener.local_addr().unwrap(),
        }));
        let router = Router::new()
            .route("/auth/oauth/token", post(token))
            .route("/api/v2/tenants/{tenant}/alerts/search", get(search))
            .with_state(server.clone());
        Handle::current().spawn(async { axum::serve(listener, router).await });
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.0.address)
    }

    /// Sets the number of alerts of the result, and begins to count searches anew.
    pub(crate) fn reset(&self, alerts: usize) {
        self.0.alerts.store(alerts as u64, Ordering::Relaxed);
        self.0.searches.store(0, Ordering::Relaxed);
        *self.0.first_search.lock().unwrap() = None;
    }

    /// Number of searches since the last reset.
    pub(crate) fn searches(&self) -> u64 {
        self.0.searches.load(Ordering::Relaxed)
    }

    /// When the first search since the last reset came.
    pub(crate) fn first_search(&self) -> Option<Instant> {
        *self.0.first_search.lock().unwrap()
    }

    /// A page as it is sent.
    pub(crate) fn page(&self, number: u64, size: u64) -> Vec<u8> {
        let alerts = self.0.alerts.load(Ordering::Relaxed);
        let first = (number - 1) * size;
        let here = alerts.saturating_sub(first).min(size) as usize;
        let template = &self.0.templates[(number - 1) as usize % TEMPLATES];
        let mut page = Vec::with_capacity(template.results.len() + 256);
        page.extend_from_slice(b"{\"results\":[");
        let begin = page.len();
        let end = match template.ids.get(here) {
            _ if here == 0 => 0,
            // The page ends before the comma, which stands before the brace of the next alert.
            Some(next) => template.start_of(*next) - 1,
            None => template.results.len(),
        };
        page.extend_from_slice(&template.results[..end]);
        for (place, id) in template.ids.iter().take(here).enumerate() {
            // The newest alerts come first, and have the highest ids.
            let number = FIRST_ID + alerts - first - place as u64;
            let at = begin + id;
            page[at..at + 7].copy_from_slice(number.to_string().as_bytes());
        }
        let more = first + (here as u64) < alerts;
        let pages = alerts.div_ceil(size);
        let next = if more { number + 1 } else { 0 };
        page.extend_from_slice(
            format!(
                "],\"totalResults\":{alerts},\"pageNo\":{number},\"pageSize\":{size},\
                 \"totalPages\":{pages},\"nextPage\":{more},\"nextPageNo\":{next}}}"
            )
            .as_bytes(),
        );
        page
    }
}

async fn token() -> Response {
    let body = r#"{"access_token":"benchmark","token_type":"bearer","expires_in":7200}"#;
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn search(State(server): State<Server>, Query(asked): Query<Asked>) -> Response {
    server.0.searches.fetch_add(1, Ordering::Relaxed);
    server
        .0
        .first_search
        .lock()
        .unwrap()
        .get_or_insert_with(Instant::now);
    let page = server.page(asked.page_no, asked.page_size.min(PAGE_SIZE as u64));
    ([(header::CONTENT_TYPE, "application/json")], page).into_response()
}

// === impl Template ===

impl Template {
    fn new(page: &str) -> Self {
        let begin = page.find('[').unwrap() + 1;
        let end = page.rfind(']').unwrap();
        let results = &page[begin..end];
        let ids = results.match_indices(ID).map(|(at, _)| at + ID.len());
        Self {
            ids: ids.collect(),
            results: results.as_bytes().to_vec(),
        }
    }

    /// The offset of the alert whose id is at the offset `id`: `uniqueId` is its first member.
    fn start_of(&self, id: usize) -> usize {
        let start = id - ID.len() - 1;
        assert_eq!(self.results[start], b'{');
        start
    }
}

/// Pages of the simulator, with alerts of `ALERT_SIZE` bytes.
fn templates() -> Vec<Template> {
    let plain = pages(0);
    let size = plain.iter().map(String::len).sum::<usize>() / (TEMPLATES * PAGE_SIZE);
    pages(ALERT_SIZE.saturating_sub(size + ",\"padding\":\"\"".len()))
        .iter()
        .map(|page| Template::new(page))
        .collect()
}

fn pages(padding: usize) -> Vec<String> {
    let now = clock::now();
    let options = simulator::Options {
        tenants: vec![simulator::TenantOptions {
            id: "client_1".to_owned(),
            alerts: TEMPLATES * PAGE_SIZE,
            ..simulator::TenantOptions::default()
        }],
        padding,
        life: None,
        ..simulator::Options::default()
    };
    let mut world = World::new(options, now);
    (1..=TEMPLATES)
        .map(|page| {
            let params = [
                ("pageNo".to_owned(), page.to_string()),
                ("pageSize".to_owned(), PAGE_SIZE.to_string()),
                ("queryString".to_owned(), "actions:OPEN".to_owned()),
            ];
            let params = SearchParams::parse(&params, world.options()).unwrap();
            let page = world.search("client_1", &params, now).unwrap();
            String::from_utf8(page.to_json(now)).unwrap()
        })
        .collect()
}
