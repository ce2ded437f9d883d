use std::{collections::VecDeque, time::Duration};

use futures_util::FutureExt as _;
use jiff::ToSpan as _;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::*;
use crate::{
    identity::{SearchKey, Tenant},
    metrics::BuildInfo,
    opsramp::{Observer as _, RateLimit},
    poll::GroupLabel,
    record::AlertFields,
    status::{PollError, PollSummary, SearchResult, SearchStatus},
    store::{AlertFilter, OpenAlert, StoredAlert},
};

mod schema;

/// Nothing here takes longer than this unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server on a free port, with everything it shows.
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
            match alerts {
                Alerts::Hang => std::future::pending().await,
                Alerts::Fail => Err(crate::store::Error::Closed),
                Alerts::Complete => Ok(vec![schema::complete_alert()]),
                Alerts::Some => Ok(some_alerts().into_iter().take(filter.limit).collect()),
            }
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

/// An alert of `client_1` as the store keeps it.
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
        tried: true,
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
        tried: true,
        last_error: Some(error),
        ..pending(key)
    }
}

/// Reads until the other side closes.
async fn drain(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset is an end like any other.
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes))
        .await
        .unwrap()
        .ok();
    bytes
}

#[tokio::test]
async fn a_scrape_has_exactly_the_type_that_prometheus_asks_for() {
    let site = Site::open(Setup::default());
    site.metrics.register_search(&key("client_1", "retail"));
    let answer = site.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert!(
        answer
            .body
            .contains("opsramp_up{account=\"acme\",tenant=\"retail\",search=\"open\"} 0\n")
    );

    let raw = reqwest::Client::builder()
        .no_proxy()
        .no_gzip()
        .build()
        .unwrap();
    let compressed = raw
        .get(format!("{}/metrics", site.base))
        .header("accept-encoding", "gzip;q=0.5, identity;q=0.1")
        .send()
        .await
        .unwrap();
    assert_eq!(compressed.headers()["content-encoding"], "gzip");
    assert_eq!(
        compressed.headers()["content-type"],
        answer.header("content-type")
    );
    let mut text = String::new();
    let bytes = compressed.bytes().await.unwrap();
    io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&*bytes), &mut text).unwrap();
    assert!(text.contains("# TYPE opsramp_up gauge\n"));

    let head = site
        .request(client().head(format!("{}/metrics", site.base)))
        .await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    assert_eq!(head.header("content-type"), answer.header("content-type"));
}

#[tokio::test]
async fn the_path_of_the_metrics_can_be_chosen_but_not_wrongly() {
    let site = Site::open(Setup {
        telemetry_path: "/",
        ..Setup::default()
    });
    assert!(site.get("/").await.body.starts_with("# HELP"));
    assert_eq!(site.get("/metrics").await.status, 404);

    for (path, message) in [
        ("metrics", "must begin with `/`"),
        ("/{metrics}", "must begin with `/`"),
        ("/me trics", "must begin with `/`"),
        ("/-/ready", "is taken"),
    ] {
        let error = check_telemetry_path(path).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[tokio::test]
async fn it_is_ready_when_every_search_was_tried() {
    let site = Site::open(Setup::default());
    let answer = site.get("/-/ready").await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (503, "no search is known yet\n")
    );
    let clients = |clients| {
        site.board
            .update_account(&"acme".into(), |account| account.clients = clients);
    };
    clients(Some(0));
    let nobody = "account acme: the server shows no activated client of the partner, so that nothing is searched";
    let answer = site.get("/-/ready").await;
    assert_eq!((answer.status, answer.body), (503, format!("{nobody}\n")));
    clients(Some(2));
    let answer = site.get("/-/ready").await;
    let unnamed = "account acme: no search is for a client of the partner (2 are activated)\n";
    assert_eq!((answer.status, answer.body.as_str()), (503, unnamed));

    site.board.set_search(up(key("client_1", "retail")));
    site.board.set_search(pending(key("client_2", "wholesale")));
    let answer = site.get("/-/ready").await;
    let reason = "acme/wholesale/open: the first poll has not ended\n";
    assert_eq!((answer.status, answer.body.as_str()), (503, reason));

    // A search that fails was tried all the same: one tenant's trouble is no reason to restart.
    site.board
        .set_search(failing(key("client_2", "wholesale"), "no route"));
    let answer = site.get("/-/ready").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "ready\n"));

    // One that should be polled here and that the database does not give out is another matter.
    let mut not_taken_up = failing(key("client_2", "wholesale"), "no answer");
    not_taken_up.lease_held = false;
    site.board.set_search(not_taken_up);
    let answer = site.get("/-/ready").await;
    let reason = "acme/wholesale/open: no answer\n";
    assert_eq!((answer.status, answer.body.as_str()), (503, reason));
}

#[tokio::test]
async fn many_reasons_are_summed_up() {
    let site = Site::open(Setup::default());
    for n in 0..25 {
        site.board
            .set_search(pending(key(&format!("client_{n:02}"), "same")));
    }
    let answer = site.get("/-/ready").await;
    assert_eq!(answer.body.lines().count(), REASONS_SHOWN + 1);
    assert!(
        answer.body.ends_with("and 5 more searches\n"),
        "{}",
        answer.body
    );
}

#[tokio::test]
async fn it_is_healthy_while_its_loops_make_progress() {
    let site = Site::open(Setup::default());
    let heart = site
        .health
        .register("poll acme/retail/open", Duration::ZERO);
    let answer = site.get("/-/healthy").await;
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.body,
        "poll acme/retail/open should have made progress 0 s ago\n"
    );

    heart.beat_for(Duration::from_secs(60));
    site.health.notice("journal", "the journal is full");
    let answer = site.get("/-/healthy").await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, "healthy\nthe journal is full\n")
    );
}

#[tokio::test]
async fn the_page_shows_everything_and_escapes_it() {
    let site = Site::open(Setup::default());
    site.board.set_search(up(key("client_1", "retail")));
    site.board.set_search(failing(
        key("client_2", "<b>wholesale</b>"),
        "\"no\" <route>",
    ));
    let account = site.metrics.register_account(&"acme".into());
    account.token_obtained(Duration::from_millis(143), now() + 2.hours());
    let seen = RateLimit {
        limit: 50,
        remaining: 17,
        reset_at: now() + 30.seconds(),
    };
    account.rate_limit("client_1", seen);
    site.board.update_sink(&"file".into(), |sink| {
        sink.kind = "file";
        sink.backlog = 4321;
        sink.error = Some("disk full".to_owned());
    });

    let answer = site.get("/").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");
    for shown in [
        "1 of 2 searches in trouble",
        "<strong>1,234</strong>",
        "retail / open",
        "&lt;b&gt;wholesale&lt;/b&gt; / open",
        "<strong>timeout</strong>, &quot;no&quot; &lt;route&gt;",
        "250 ms",
        "3 events",
        "17 of 50",
        "expires <time",
        "143 ms",
        "4,321",
        "disk full",
        "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;",
        "undated",
        "version 1.2.3, revision abc",
        "href=\"/metrics\"",
    ] {
        assert!(
            answer.body.contains(shown),
            "{shown} is missing in\n{}",
            answer.body
        );
    }
    assert!(!answer.body.contains("<script") && !answer.body.contains("<b>"));
    let order: Vec<usize> = ["&lt;b&gt;wholesale", "retail / open"]
        .iter()
        .map(|text| answer.body.find(text).unwrap())
        .collect();
    assert!(order.is_sorted(), "trouble comes first");
}

#[tokio::test]
async fn all_is_well_only_where_sinks_work_and_no_search_is_in_trouble_shown_or_not() {
    let site = Site::open(Setup::default());
    site.board.set_search(up(key("client_1", "retail")));
    assert!(site.get("/").await.body.contains("all well"));
    site.board.update_sink(&"file".into(), |sink| {
        sink.error = Some("disk full".to_owned());
    });
    site.board.update_sink(&"out".into(), |_| {});
    let body = site.get("/").await.body;
    assert!(body.contains("1 of 2 sinks failing"), "{body}");
    assert!(body.contains("<title>(1) ") && !body.contains("all well"));
    for id in ["client_2", "client_3", "client_4"] {
        site.board.set_search(failing(key(id, id), "no route"));
    }
    let body = site.get("/?limit=1").await.body;
    assert!(body.contains("3 of 4 searches in trouble"), "{body}");
}

#[tokio::test]
async fn the_page_and_the_errors_cannot_be_used_against_their_reader() {
    let site = Site::open(Setup::default());
    for path in ["/", "/nowhere", "/?limit=x", "/api/v1/alerts"] {
        let answer = site.get(path).await;
        assert!(
            answer
                .header("content-security-policy")
                .starts_with("default-src 'none';"),
            "{path}"
        );
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
    }
    let filtered = site.get("/?state=%22%3E%3Cscript%3E").await;
    assert!(
        filtered.body.contains("value=\"&quot;&gt;&lt;script&gt;\""),
        "{}",
        filtered.body
    );
}

#[tokio::test]
async fn the_page_does_not_wait_for_a_store_that_hangs_nor_hides_one_that_fails() {
    for (alerts, message, status) in [
        (Alerts::Hang, "the store did not answer within 1500 ms", 503),
        (Alerts::Fail, "the state store is closed", 500),
    ] {
        let site = Site::open(Setup {
            alerts,
            ..Setup::default()
        });
        site.board.set_search(up(key("client_1", "retail")));
        let (page, json) = tokio::join!(site.get("/"), site.get("/api/v1/alerts"));
        assert_eq!(page.status, 200);
        assert!(
            page.body.contains(message) && page.body.contains("1,234"),
            "{}",
            page.body
        );
        assert_eq!(json.status, status);
        assert_eq!(json.json()["error"], message);
    }
}

#[tokio::test]
async fn an_answer_that_takes_long_to_make_holds_nobody_up() {
    let (go_on, wait) = std::sync::mpsc::channel();
    let turn = Turns::new(PATIENCE).next().await.unwrap();
    let long = turn.make(move || {
        wait.recv_timeout(PATIENCE).unwrap();
        text(StatusCode::OK, "made")
    });
    let (long, _) = tokio::join!(long, async { go_on.send(()).unwrap() });
    assert_eq!(long.status(), 200);
}

#[tokio::test]
async fn an_answer_that_cannot_be_made_is_told() {
    let turn = Turns::new(PATIENCE).next().await.unwrap();
    let answer = turn.make(|| panic!("on purpose")).await;
    assert_eq!(answer.status(), 500);
}

#[tokio::test]
async fn long_answers_that_nobody_reads_are_few_and_hold_up_no_scrape() {
    let site = Site::open(Setup {
        limits: Limits {
            turn_time: Duration::from_millis(200),
            ..Limits::default()
        },
        ..Setup::default()
    });
    // More than sockets keep.
    for n in 0..400 {
        let message = "x".repeat(100_000);
        site.board
            .set_search(failing(key(&format!("client_{n}"), "same"), &message));
    }
    let mut unread = Vec::new();
    for _ in 0..20 {
        let mut stream = site.connect().await;
        let request = b"GET /api/v1/status HTTP/1.1\r\nhost: a\r\n\r\n";
        stream.write_all(request).await.unwrap();
        unread.push(stream);
    }
    let mut refused = None;
    while refused.is_none() {
        for path in ["/", "/api/v1/status", "/api/v1/alerts"] {
            refused = Some(site.get(path).await).filter(|answer| answer.status == 503);
        }
    }
    assert_eq!(refused.unwrap().header("retry-after"), "5");
    assert_eq!(site.get("/metrics").await.status, 200);
    assert_eq!(site.get("/-/healthy").await.status, 200);
    assert_eq!(site.get("/-/ready").await.status, 200);
    drop(unread);
    tokio::time::timeout(PATIENCE, async {
        while site.get("/api/v1/status").await.status != 200 {}
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn the_alerts_are_given_as_json_newest_first_with_their_tenants_names() {
    let site = Site::open(Setup::default());
    site.board.set_search(up(key("client_1", "retail")));
    let answer = site
        .get("/api/v1/alerts?tenant=retail&state=critical&limit=2")
        .await;
    assert_eq!(answer.header("content-type"), "application/json");
    let json = answer.json();
    let ids: Vec<_> = json["alerts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["alert_id"])
        .collect();
    assert_eq!(ids, ["2", "1"]);
    assert_eq!(json["alerts"][0]["tenant"], "retail");
    assert_eq!(json["alerts"][0]["state"], "Critical");
    let asked = site.asked.lock().pop().unwrap();
    assert_eq!(asked.tenant.as_deref(), Some("client_1"));
    assert_eq!(asked.account.as_deref(), Some("acme"));
    assert_eq!((asked.state.as_deref(), asked.limit), (Some("critical"), 2));

    let nobody = site.get("/api/v1/alerts?tenant=nobody").await.json();
    assert_eq!(nobody["alerts"], serde_json::json!([]));
}

#[tokio::test]
async fn a_bad_query_is_refused_with_a_reason() {
    let site = Site::open(Setup::default());
    for (path, message) in [
        (
            "/api/v1/alerts?limit=0",
            "limit is \"0\", but must be a number from 1 to 10000",
        ),
        (
            "/api/v1/status?state=critical",
            "state is \"critical\", but a search is",
        ),
        ("/api/v1/status?tenat=a", "unknown parameter \"tenat\""),
        ("/?limit=x", "limit is \"x\""),
        (
            "/api/v1/alerts?account=%ff",
            "the query is not a list of name=value pairs in UTF-8",
        ),
    ] {
        let answer = site.get(path).await;
        assert_eq!(answer.status, 400, "{path}");
        let told = if path.starts_with("/api") {
            answer.json()["error"].as_str().unwrap().to_owned()
        } else {
            answer.body
        };
        assert!(told.starts_with(message), "{told}");
    }
}

#[tokio::test]
async fn the_status_is_given_as_json_with_documented_keys() {
    let site = Site::open(Setup::default());
    site.board.set_search(up(key("client_1", "retail")));
    site.board
        .set_search(failing(key("client_2", "wholesale"), "no route"));
    let account = site.metrics.register_account(&"acme".into());
    account.token_obtained(Duration::from_millis(143), now() + 2.hours());
    let seen = RateLimit {
        limit: 50,
        remaining: 17,
        reset_at: now() + 30.seconds(),
    };
    account.rate_limit("client_1", seen);
    site.board
        .update_sink(&"file".into(), |sink| sink.kind = "file");
    site.health.notice("journal", "the journal is full");

    let json = site.get("/api/v1/status").await.json();
    assert_eq!(json["problems"], serde_json::json!(["the journal is full"]));
    assert_eq!(json["searches_total"], 2);
    assert_eq!(json["searches"][0]["state"], "failing");
    assert_eq!(json["searches"][0]["last_error"]["reason"], "timeout");
    assert_eq!(
        json["searches"][1]["open_alerts"][0]["labels"]["state"],
        "Critical"
    );
    assert_eq!(json["accounts"][0]["rate_limits"][0]["tenant"], "retail");

    let one = site
        .get("/api/v1/status?tenant=client_1&state=up&limit=5")
        .await
        .json();
    assert_eq!(one["searches_total"], 1);
    assert_eq!(one["searches"][0]["total_results"], 1234);

    let documentation = include_str!("../../docs/http-api.md");
    let mut keys = Vec::new();
    collect_keys(&json, &mut keys);
    collect_keys(&site.get("/api/v1/alerts").await.json(), &mut keys);
    for key in keys {
        assert!(
            documentation.contains(&format!("`{key}`")),
            "{key} is not documented"
        );
    }
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

#[tokio::test]
async fn reload_and_quit_do_what_the_daemon_answers() {
    let mut site = Site::open(Setup::default());
    let (_, replacement) = mpsc::channel(1);
    let mut reloads = std::mem::replace(&mut site.reloads, replacement);
    let daemon = tokio::spawn(async move {
        reloads.recv().await.unwrap().send(Ok(())).unwrap();
        let problem = "config.yml: line 3: unknown key".to_owned();
        reloads.recv().await.unwrap().send(Err(problem)).unwrap();
    });
    let answer = site.post("/-/reload").await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, "configuration reloaded\n")
    );
    let answer = site.post("/-/reload").await;
    assert_eq!(answer.status, 500);
    assert!(
        answer.body.ends_with("config.yml: line 3: unknown key\n"),
        "{}",
        answer.body
    );
    daemon.await.unwrap();
    assert_eq!(site.post("/-/reload").await.status, 503);

    let forged = client()
        .post(format!("{}/-/quit", site.base))
        .header("origin", "http://evil.example");
    assert_eq!(site.request(forged).await.status, 403);
    assert!(!site.quit.is_cancelled());
    assert_eq!(site.post("/-/quit").await.status, 200);
    assert!(site.quit.is_cancelled());
}

#[tokio::test]
async fn without_lifecycle_nothing_can_be_stopped() {
    let site = Site::open(Setup {
        lifecycle: false,
        ..Setup::default()
    });
    for path in ["/-/reload", "/-/quit"] {
        let answer = site.post(path).await;
        assert_eq!(answer.status, 403);
        assert!(
            answer.body.contains("--web.enable-lifecycle"),
            "{}",
            answer.body
        );
    }
    assert!(!site.quit.is_cancelled());
}

#[tokio::test]
async fn a_wrong_method_and_a_wrong_path_are_told() {
    let site = Site::open(Setup::default());
    let answer = site.post("/metrics").await;
    assert_eq!((answer.status, answer.header("allow")), (405, "GET,HEAD"));
    assert_eq!(site.get("/-/reload").await.status, 405);
    assert_eq!(site.get("/metrics/").await.status, 404);
}

/// Limits for tests that wait for them.
fn tight() -> Limits {
    Limits {
        connections: 8,
        head_time: Duration::from_millis(200),
        idle_time: Duration::from_millis(200),
        answer_time: Duration::from_millis(200),
        grace: Duration::from_millis(500),
        ..Limits::default()
    }
}

#[tokio::test]
async fn connections_that_never_send_a_request_do_not_keep_others_out() {
    let patient = Limits {
        head_time: PATIENCE * 10,
        ..tight()
    };
    let site = Site::open(Setup {
        limits: patient,
        ..Setup::default()
    });
    let mut silent = Vec::new();
    for n in 0..50 {
        let mut stream = site.connect().await;
        if n % 2 == 0 {
            stream.write_all(b"GET /metrics HT").await.unwrap();
        }
        silent.push(stream);
        if n % 10 == 9 {
            assert_eq!(site.get("/metrics").await.status, 200);
        }
    }
    // The oldest had to go, and the newest is still there.
    assert_eq!(drain(&mut silent[0]).await, b"");
    let newest = &mut silent[49];
    newest
        .write_all(b"GET /-/ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    assert!(drain(newest).await.starts_with(b"HTTP/1.1 503 "));
}

#[tokio::test]
async fn a_head_must_arrive_in_time_and_in_size() {
    let site = Site::open(Setup {
        limits: tight(),
        ..Setup::default()
    });
    let mut slow = site.connect().await;
    slow.write_all(b"GET /metrics HTTP/1.1\r\nhost:")
        .await
        .unwrap();
    assert_eq!(drain(&mut slow).await, b"");

    let mut large = site.connect().await;
    let head = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(64 * 1024));
    // The server may close while this is still being sent.
    large.write_all(head.as_bytes()).await.ok();
    let answer = String::from_utf8(drain(&mut large).await).unwrap();
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
        "{answer}"
    );

    let mut nonsense = site.connect().await;
    nonsense
        .write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        .await
        .unwrap();
    assert!(drain(&mut nonsense).await.starts_with(b"HTTP/1.1 400 "));
}

#[tokio::test]
async fn a_kept_connection_is_served_again_and_closed_when_idle_for_long() {
    let site = Site::open(Setup {
        limits: tight(),
        ..Setup::default()
    });
    let mut kept = site.connect().await;
    for _ in 0..3 {
        kept.write_all(b"GET /-/healthy HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        let mut answer = vec![0; 4096];
        let length = kept.read(&mut answer).await.unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200 "));
    }
    assert_eq!(drain(&mut kept).await, b"");
}

#[tokio::test]
async fn half_a_head_behind_a_request_must_be_whole_in_time_as_well() {
    let site = Site::open(Setup {
        limits: Limits {
            idle_time: PATIENCE * 10,
            ..tight()
        },
        ..Setup::default()
    });
    let mut slow = site.connect().await;
    slow.write_all(b"GET /-/healthy HTTP/1.1\r\nhost: a\r\n\r\nGET /-/hea")
        .await
        .unwrap();
    assert!(drain(&mut slow).await.starts_with(b"HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_dropped() {
    let site = Site::open(Setup {
        limits: tight(),
        ..Setup::default()
    });
    // More than the kernel buffers on both sides.
    for n in 0..3000 {
        site.metrics
            .register_search(&key(&format!("client_{n}"), &format!("tenant-{n}")));
    }
    let whole = site.get("/metrics").await.body.len();
    let mut stream = site.connect().await;
    let scrape = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n".repeat(4);
    stream.write_all(&scrape).await.unwrap();
    tokio::time::sleep(tight().answer_time * 3).await;
    let received = drain(&mut stream).await.len();
    assert!(
        received > 0 && received < 4 * whole,
        "{received} of {whole} * 4"
    );
}

#[tokio::test]
async fn a_client_may_close_its_half_once_it_has_asked() {
    let mut site = Site::open(Setup::default());
    let mut stream = site.connect().await;
    stream
        .write_all(b"POST /-/reload HTTP/1.0\r\n\r\n")
        .await
        .unwrap();
    let reload = site.reloads.recv().await.unwrap();
    stream.shutdown().await.unwrap();
    // Time for the server to see the end of what it reads.
    tokio::time::sleep(Duration::from_millis(50)).await;
    reload.send(Ok(())).unwrap();
    assert!(drain(&mut stream).await.starts_with(b"HTTP/1.0 200 OK"));
}

#[tokio::test]
async fn a_kept_connection_may_be_idle_for_longer_than_an_answer_may_take() {
    let site = Site::open(Setup {
        limits: Limits {
            answer_time: Duration::from_millis(20),
            idle_time: PATIENCE,
            ..tight()
        },
        ..Setup::default()
    });
    let mut kept = site.connect().await;
    for _ in 0..2 {
        kept.write_all(b"GET /-/healthy HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .unwrap();
        let mut answer = vec![0; 4096];
        let length = kept.read(&mut answer).await.unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200 "));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_shutdown_ends_what_is_under_way_and_waits_for_nobody_else() {
    let mut site = Site::open(Setup {
        limits: Limits {
            grace: PATIENCE * 2,
            ..Limits::default()
        },
        ..Setup::default()
    });
    let mut silent = site.connect().await;
    let mut halfway = site.connect().await;
    halfway.write_all(b"GET /metrics HT").await.unwrap();
    let mut kept = site.connect().await;
    kept.write_all(b"GET /-/healthy HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut answer = vec![0; 4096];
    assert!(kept.read(&mut answer).await.unwrap() > 0);
    let mut busy = site.connect().await;
    busy.write_all(b"POST /-/reload HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let reload = site.reloads.recv().await.unwrap();

    site.shutdown.cancel();
    assert_eq!(drain(&mut silent).await, b"");
    assert_eq!(drain(&mut halfway).await, b"");
    assert_eq!(drain(&mut kept).await, b"");
    reload.send(Ok(())).unwrap();
    let answer = String::from_utf8(drain(&mut busy).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    site.stop().await;
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_ever() {
    let mut site = Site::open(Setup {
        limits: tight(),
        ..Setup::default()
    });
    let mut busy = site.connect().await;
    busy.write_all(b"POST /-/reload HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let _never_answered = site.reloads.recv().await.unwrap();
    let begun = tokio::time::Instant::now();
    site.stop().await;
    assert!(begun.elapsed() < PATIENCE / 2);
    assert_eq!(drain(&mut busy).await, b"");
}
