mod api;
mod connections;
mod pages;
mod probes;
mod schema;

use std::{collections::VecDeque, time::Duration};

use futures_util::FutureExt as _;
use jiff::ToSpan as _;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

use super::*;
use crate::{
    identity::{SearchKey, Tenant},
    metrics::BuildInfo,
    opsramp::{self, Expiry, Observer as _, RateLimit},
    record::AlertFields,
    status::{DiscoveryStatus, PartnerStatus, PollError, PollSummary, SearchResult, SearchStatus},
    store::{AlertFilter, OpenAlert, StoredAlert},
    track::GroupLabel,
};

/// Nothing here takes longer than this, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server on a free port, with everything that it shows.
struct Site {
    base: String,
    metrics: Metrics,
    board: Board,
    health: Health,
    asked: Arc<Mutex<Vec<AlertFilter>>>,
    reloads: mpsc::Receiver<Reload>,
    quit: CancellationToken,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<io::Result<()>>,
}

/// How a site differs from the usual one.
#[derive(Clone, Copy)]
struct Setup {
    limits: Limits,
    lifecycle: bool,
    alerts: Alerts,
    telemetry_path: &'static str,
}

#[derive(Clone, Copy, PartialEq)]
enum Alerts {
    Some,
    Complete,
    NotYet,
    Fail,
    Hang,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            lifecycle: true,
            alerts: Alerts::Some,
            telemetry_path: "/metrics",
        }
    }
}

impl Site {
    fn open(setup: Setup) -> Self {
        let board = Board::default();
        let build = BuildInfo {
            version: "1.2.3",
            revision: "abc",
            rustversion: "1.95.0",
        };
        let metrics = Metrics::new(board.clone(), build);
        let health = Health::default();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let source = source(setup.alerts, Arc::clone(&asked));
        let (reload, reloads) = mpsc::channel(1);
        let quit = CancellationToken::new();
        let lifecycle = Lifecycle {
            reload,
            quit: quit.clone(),
        };
        let options = Options {
            telemetry_path: setup.telemetry_path.to_owned(),
            limits: setup.limits,
            guard: Guard::open(),
            lifecycle: setup.lifecycle.then_some(lifecycle),
        };
        let listeners = bind(&["127.0.0.1:0"]).unwrap();
        let base = format!("http://{}", listeners[0].local_addr().unwrap());
        let shutdown = CancellationToken::new();
        let server = Server::new(
            metrics.clone(),
            board.clone(),
            health.clone(),
            source,
            options,
        );
        let serving = tokio::spawn(server.unwrap().serve(listeners, shutdown.clone()));
        Self {
            base,
            metrics,
            board,
            health,
            asked,
            reloads,
            quit,
            shutdown,
            serving,
        }
    }

    fn with_limits(limits: Limits) -> Self {
        Self::open(Setup {
            limits,
            ..Setup::default()
        })
    }

    async fn get(&self, path: &str) -> Answer {
        self.request(client().get(format!("{}{path}", self.base)))
            .await
    }

    async fn post(&self, path: &str) -> Answer {
        self.request(client().post(format!("{}{path}", self.base)))
            .await
    }

    async fn request(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = tokio::time::timeout(PATIENCE, request.send())
            .await
            .unwrap()
            .unwrap();
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.text().await.unwrap(),
        }
    }

    async fn connect(&self) -> TcpStream {
        let address = self.base.strip_prefix("http://").unwrap();
        TcpStream::connect(address).await.unwrap()
    }

    /// Connects as another client of this machine.
    async fn connect_from(&self, client: [u8; 4]) -> TcpStream {
        let address = self.base.strip_prefix("http://").unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((client, 0).into()).unwrap();
        socket.connect(address.parse().unwrap()).await.unwrap()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.serving)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

fn client() -> reqwest::Client {
    // The provider is a process-wide choice; plain HTTP needs it only to build the client.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn source(alerts: Alerts, asked: Arc<Mutex<Vec<AlertFilter>>>) -> AlertSource {
    AlertSource::new(move |filter| {
        asked.lock().push(filter.clone());
        async move {
            Some(match alerts {
                Alerts::NotYet => return None,
                Alerts::Hang => std::future::pending().await,
                Alerts::Fail => Err(crate::store::Error::Closed),
                Alerts::Complete => Ok(vec![schema::complete_alert()]),
                Alerts::Some => Ok(some_alerts().into_iter().take(filter.limit).collect()),
            })
        }
        .boxed()
    })
}

fn some_alerts() -> Vec<OpenAlert> {
    let alert = |id: &str, message: &str, created_at| {
        let fields = AlertFields {
            state: Some("Critical".into()),
            message: Some(message.to_owned().into()),
            created_at,
            ..AlertFields::default()
        };
        kept(id, &fields)
    };
    vec![
        alert("2", "<script>alert('x')</script>", Some(now() - 1.minute())),
        alert("1", "plain", Some(now() - 1.hour())),
        alert("3", "undated", None),
    ]
}

/// Returns an alert of `client_1` as the store keeps it.
fn kept(id: &str, fields: &AlertFields<'_>) -> OpenAlert {
    let mut body = Vec::new();
    fields.write_stored(&mut body);
    OpenAlert {
        account: "acme".to_owned(),
        tenant_id: "client_1".to_owned(),
        search: "open".to_owned(),
        alert: StoredAlert {
            id: id.into(),
            ordinal: 1,
            digest: 0,
            created_at: fields.created_at,
            state: fields.state.as_deref().unwrap_or_default().into(),
            body: body.into(),
        },
    }
}

fn now() -> Timestamp {
    clock::now()
}

fn key(id: &str, tenant: &str) -> SearchKey {
    SearchKey {
        account: "acme".into(),
        tenant: Tenant {
            id: id.into(),
            name: tenant.into(),
        },
        search: "open".into(),
    }
}

/// Makes a working account known to the site.
fn see_account(site: &Site) {
    let account = site.metrics.register_account(&"acme".into());
    let expiry = Expiry::after(Duration::from_secs(7200), now());
    account.token_obtained(Duration::from_millis(143), expiry);
    let seen = RateLimit {
        limit: 50,
        remaining: 17,
        reset_at: now() + 30.seconds(),
    };
    account.rate_limit("client_1", seen);
}

fn pending(key: SearchKey) -> SearchStatus {
    let (interval, stale_after) = (Duration::from_secs(30), Duration::from_secs(300));
    SearchStatus {
        lease_held: true,
        ..SearchStatus::unknown(key, interval, stale_after)
    }
}

fn up(key: SearchKey) -> SearchStatus {
    SearchStatus {
        up: Some(true),
        first_attempt_over: true,
        result: Some(SearchResult {
            at: now(),
            at_since_boot: clock::since_boot(),
            total_results: 1234,
            tracked: 1234,
            complete: true,
            group_by: [GroupLabel::State].into(),
            groups: [(vec!["Critical".into()], 1234)].into(),
            oldest: Some(now() - 1.hour()),
        }),
        polls: VecDeque::from([PollSummary {
            started: now(),
            took: Duration::from_millis(250),
            requests: 1,
            outcome: Ok(3),
        }]),
        ..pending(key)
    }
}

fn failing(key: SearchKey, message: &str) -> SearchStatus {
    let error = PollError {
        at: now(),
        reason: "timeout",
        message: message.to_owned(),
    };
    SearchStatus {
        up: Some(false),
        lease_held: true,
        first_attempt_over: true,
        last_error: Some(error),
        ..pending(key)
    }
}

/// Reads until the server closes the connection.
async fn drain(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset counts as an end, too.
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes))
        .await
        .unwrap()
        .ok();
    bytes
}

fn collect_keys(value: &serde_json::Value, keys: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(object) => {
            for (key, value) in object {
                keys.push(key.clone());
                collect_keys(value, keys);
            }
        }
        serde_json::Value::Array(array) => array.iter().for_each(|one| collect_keys(one, keys)),
        _ => {}
    }
}
