//! A minimal server, which knows some documents only and hands them out word for word: the samples
//! of this repository, and the documented ones, if they lie beside the checkout.

use std::{collections::HashMap, net::Ipv4Addr, path::PathBuf, sync::Arc};

use axum::{
    Form, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use opsramp_exporter::simulator::{DEMO_KEY, DEMO_TENANT};
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    events::{KEYS, check_record},
    exporter::{Exporter, Members, Place, SECRET, eventually},
};

/// The documents that are handed out at present.
#[derive(Debug, Default)]
struct Documents {
    token: String,
    search: String,
    /// For each alert: the status and the document.
    alerts: HashMap<String, (u16, String)>,
    clients: String,
    /// The answer to the next API requests instead: how often, the status, the document.
    instead: Option<(u32, u16, String)>,
    /// The paths that were asked for, with their queries.
    asked: Vec<String>,
    tokens: u32,
}

type Shared = Arc<Mutex<Documents>>;

struct Server {
    url: String,
    documents: Shared,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(documents: Documents) -> Self {
        let documents = Arc::new(Mutex::new(documents));
        let router = Router::new()
            .route("/auth/oauth/token", post(token))
            .route("/api/v2/tenants/{tenant}/alerts/search", get(search))
            .route("/api/v2/tenants/{tenant}/alerts/{id}", get(alert))
            .route("/api/v2/tenants/{tenant}/clients/search", get(clients))
            .with_state(Arc::clone(&documents));
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            documents,
            task,
        }
    }

    fn documents(&self) -> MutexGuard<'_, Documents> {
        self.documents.lock()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(status: u16, document: &str) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    let status = StatusCode::from_u16(status).unwrap();
    (status, json, document.to_owned()).into_response()
}

async fn token(
    State(documents): State<Shared>,
    headers: HeaderMap,
    Form(form): Form<HashMap<String, String>>,
) -> Response {
    let mut documents = documents.lock();
    documents.tokens += 1;
    let expected = [
        ("grant_type", "client_credentials"),
        ("client_id", DEMO_KEY),
        ("client_secret", SECRET),
    ];
    let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(form, HashMap::from(expected));
    assert!(!headers.contains_key(header::AUTHORIZATION));
    answer(200, &documents.token)
}

/// Checks what every API request must have, and returns the answer that is given instead, if any.
fn admit(documents: &mut Documents, uri: &Uri, headers: &HeaderMap) -> Option<Response> {
    documents.asked.push(uri.to_string());
    let granted: Value = serde_json::from_str(&documents.token).unwrap();
    let bearer = format!("Bearer {}", granted["access_token"].as_str().unwrap());
    assert_eq!(headers[header::AUTHORIZATION], bearer);
    assert_eq!(headers[header::ACCEPT], "application/json");
    let (times, status, document) = documents.instead.take()?;
    let instead = answer(status, &document);
    documents.instead = (times > 1).then_some((times - 1, status, document));
    Some(instead)
}

async fn search(
    State(documents): State<Shared>,
    Query(query): Query<HashMap<String, String>>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    assert_eq!(query["queryString"], "actions:OPEN");
    assert_eq!(query["pageNo"], "1");
    let mut documents = documents.lock();
    let instead = admit(&mut documents, &uri, &headers);
    instead.unwrap_or_else(|| answer(200, &documents.search))
}

async fn alert(
    State(documents): State<Shared>,
    Path((_, id)): Path<(String, String)>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let mut documents = documents.lock();
    if let Some(instead) = admit(&mut documents, &uri, &headers) {
        return instead;
    }
    let (status, document) = &documents.alerts[&id];
    answer(*status, document)
}

async fn clients(State(documents): State<Shared>, uri: Uri, headers: HeaderMap) -> Response {
    let mut documents = documents.lock();
    let instead = admit(&mut documents, &uri, &headers);
    instead.unwrap_or_else(|| answer(200, &documents.clients))
}

fn checkout() -> PathBuf {
    // The variable is read at run time, because a test binary may run elsewhere than it was built.
    std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

fn sample(name: &str) -> String {
    let path = checkout().join("tests/samples").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns a page without some of its alerts.
fn without(page: &str, ids: &[&str]) -> String {
    let mut page: Value = serde_json::from_str(page).unwrap();
    let results = page["results"].as_array_mut().unwrap();
    results.retain(|alert| !ids.contains(&alert["uniqueId"].as_str().unwrap()));
    let total = results.len();
    page["totalResults"] = json!(total);
    page.to_string()
}

/// Returns a place whose exporter polls the server; the server's token must not be seen.
fn place_for(server: &Server) -> Place {
    let mut place = Place::new(&server.url);
    let granted: Value = serde_json::from_str(&server.documents().token).unwrap();
    let token = granted["access_token"].as_str().unwrap().to_owned();
    place.secrets.push(token);
    place
}

async fn wait_for_total(exporter: &Exporter, total: f64) {
    exporter
        .wait_for("the total", |metrics| {
            metrics.one("opsramp_search_total_results{") == Some(total)
                && metrics.one("opsramp_up{") == Some(1.0)
        })
        .await;
}

/// Returns the records so far, by alert and event.
fn records(lines: &[String]) -> HashMap<(String, String), Members> {
    let all = lines.iter().map(|line| {
        let record = check_record(line);
        let key = |key| record.text(key).to_owned();
        ((key("alert_id"), key("event")), record)
    });
    let records: HashMap<_, _> = all.collect();
    assert_eq!(records.len(), lines.len(), "each event once: {lines:#?}");
    records
}

fn record<'a>(
    records: &'a HashMap<(String, String), Members>,
    id: &str,
    event: &str,
) -> &'a Members {
    &records[&(id.to_owned(), event.to_owned())]
}

#[tokio::test(flavor = "multi_thread")]
async fn our_samples_are_understood_word_for_word() {
    let page = sample("search-page.json");
    let server = Server::start(Documents {
        token: sample("token-string-expiry.json"),
        search: page.clone(),
        ..Documents::default()
    })
    .await;
    let mut place = place_for(&server);
    place.config["log"]["include_raw"] = json!(true);
    let exporter = place.start().await;
    wait_for_total(&exporter, 3.0).await;
    let metrics = exporter.metrics().await;
    let expiry = metrics
        .one("opsramp_token_expiry_timestamp_seconds{")
        .unwrap();
    let ahead = expiry - opsramp_exporter::clock::now().as_second() as f64;
    assert!((7100.0..=7200.0).contains(&ahead), "{ahead}");
    let oldest = "2026-02-27T23:59:59Z".parse::<jiff::Timestamp>().unwrap();
    assert_eq!(
        metrics.one("opsramp_oldest_open_alert_timestamp_seconds{"),
        Some(oldest.as_second() as f64)
    );

    let lines = exporter
        .stdout
        .wait_for("each alert's line", |lines| lines.len() >= 3)
        .await;
    let opened = records(&lines);
    let full = record(&opened, "5021", "opened");
    let without_the_absent: Vec<&str> = KEYS
        .into_iter()
        .filter(|key| {
            ![
                "previous_state",
                "previous_status",
                "reason",
                "incident_id",
                "inference_id",
            ]
            .contains(key)
        })
        .collect();
    assert_eq!(full.keys(), without_the_absent);
    for (key, value) in [
        ("level", json!("critical")),
        ("account", json!("default")),
        ("tenant", json!(DEMO_TENANT)),
        ("search", json!("open")),
        ("state", json!("Critical")),
        ("status", json!("New")),
        (
            "message",
            json!("Disk D:\\ is critical. Used 93.12%; Free 6.88%"),
        ),
        (
            "description",
            json!("Disk D:\\ crossed its threshold of 90%.\nTotal 102642 MB\nUsed 95580 MB"),
        ),
        ("metric", json!("disk.used.percent")),
        ("component", json!("D:\\")),
        ("problem_area", json!("Storage")),
        ("alert_type", json!("Monitoring")),
        ("event_type", json!("ALERT")),
        ("source", json!("OPSRAMP")),
        ("priority", json!("P1")),
        ("resource_id", json!("9f1c6a4e-5a0e-4c44-8a7b-2b1f4d1f0a11")),
        ("resource_name", json!("fileserver-3")),
        ("resource_type", json!("Windows")),
        ("resource_ip", json!("192.0.2.15")),
        ("client_id", json!("client_8")),
        ("client_name", json!("Example Retail")),
        ("repeat_count", json!(2)),
        ("created_at", json!("2026-03-01T10:40:47Z")),
        ("updated_at", json!("2026-03-01T12:01:13Z")),
    ] {
        assert_eq!(full.get(key), Some(&value), "{key}");
    }
    let answered: Value = serde_json::from_str(&page).unwrap();
    assert_eq!(full.get("alert"), Some(&answered["results"][0]));
    let sparse = record(&opened, "5020", "opened");
    assert_eq!(sparse.text("message"), "Ping lost to 東京-gw ⚠ \"core\"");
    assert_eq!(sparse.text("resource_name"), "tokyo-gw");
    assert_eq!(sparse.get("repeat_count"), Some(&json!(7)));
    assert_eq!(sparse.get("component"), None, "empty means not given");
    let inference = record(&opened, "4990", "opened");
    assert_eq!(inference.get("inference_id"), Some(&json!(771)));
    assert_eq!(inference.text("resource_name"), "payment");

    // One alert is ticketed, another one cannot be found any more.
    {
        let mut documents = server.documents();
        documents.search = without(&page, &["5021", "5020"]);
        let ticketed = (200, sample("alert-ticketed.json"));
        documents.alerts.insert("5021".to_owned(), ticketed);
        let not_found = r#"{"code": "0003", "message": "No alert found with id 5020"}"#;
        documents
            .alerts
            .insert("5020".to_owned(), (500, not_found.to_owned()));
    }
    wait_for_total(&exporter, 1.0).await;
    let lines = exporter.logs(5, "two have left").await;
    let left = records(&lines);
    let ticketed = record(&left, "5021", "left");
    for (key, value) in [
        ("reason", "ticketed"),
        ("status", "Ticketed"),
        ("previous_state", "Critical"),
        ("previous_status", "New"),
        ("incident_id", "INC0000000001"),
    ] {
        assert_eq!(ticketed.text(key), value, "{key}");
    }
    assert_eq!(record(&left, "5020", "left").text("reason"), "not_found");

    // The ticketed alert is open again, in another state, and then closed.
    server.documents().search = page.replace(
        "\"Critical\",\n      \"oldState\"",
        "\"Warning\",\n      \"oldState\"",
    );
    wait_for_total(&exporter, 3.0).await;
    let closed = (200, sample("alert-closed.json"));
    {
        let mut documents = server.documents();
        documents.search = sample("search-empty.json");
        for id in ["5021", "5020", "4990"] {
            documents.alerts.insert(id.to_owned(), closed.clone());
        }
    }
    wait_for_total(&exporter, 0.0).await;
    let lines = exporter.logs(10, "two came back, three have left").await;
    let last = records(&lines[7..]);
    assert_eq!(record(&last, "5021", "left").text("reason"), "closed");
    assert_eq!(
        record(&last, "5021", "left").text("previous_state"),
        "Warning"
    );
    let ended = exporter.stop().await;
    let ids: std::collections::HashSet<String> = ended
        .stdout
        .iter()
        .map(|line| check_record(line).text("event_id").to_owned())
        .collect();
    assert_eq!(ids.len(), 10, "an event of the second life is another one");
    assert_eq!(server.documents().tokens, 1);
    let asked = server.documents().asked.clone();
    assert!(asked.iter().all(|uri| !uri.contains(SECRET)), "{asked:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_in_the_words_of_the_api_are_understood() {
    let server = Server::start(Documents {
        token: sample("token.json"),
        search: sample("search-page.json"),
        ..Documents::default()
    })
    .await;
    let exporter = place_for(&server).start().await;
    wait_for_total(&exporter, 3.0).await;
    // Expired tokens are answered with a 407. The new token is the same one, so polls fail until
    // the server accepts it again. After a 429 without a time to come back, the exporter pauses
    // for a while.
    for (status, document, reason) in [
        (407, "error-401.json", "auth"),
        (401, "error-401.json", "auth"),
        (429, "error-429.json", "throttled"),
    ] {
        let failed = format!(
            "opsramp_poll_failures_total{{account=\"default\",tenant=\"{DEMO_TENANT}\",\
             search=\"open\",reason=\"{reason}\"}}"
        );
        let before = exporter.metrics().await.one(&failed).unwrap();
        server.documents().instead = Some((u32::MAX, status, sample(document)));
        exporter
            .wait_for(document, |metrics| {
                metrics.one(&failed) > Some(before) && metrics.one("opsramp_up{") == Some(0.0)
            })
            .await;
        server.documents().instead = None;
        if status != 429 {
            wait_for_total(&exporter, 3.0).await;
        }
    }
    let ended = exporter.stop().await;
    assert_eq!(ended.stdout.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_answers_are_understood_word_for_word() {
    let folder = checkout().join("../shared/samples/documented");
    if !folder.is_dir() {
        eprintln!("skipped: the documented answers are not beside this checkout");
        return;
    }
    let documented = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let page = documented("alerts_search_200.json");
    for token in ["token_200.json", "token_200_spec_string_expires.json"] {
        let server = Server::start(Documents {
            token: documented(token),
            search: page.clone(),
            ..Documents::default()
        })
        .await;
        let exporter = place_for(&server).start().await;
        wait_for_total(&exporter, 3.0).await;
        let lines = exporter.logs(3, "three lines").await;
        let opened = records(&lines);
        let alert = record(&opened, "389546", "opened");
        assert_eq!(
            alert.keys(),
            [
                "timestamp",
                "level",
                "severity",
                "event",
                "event_id",
                "account",
                "tenant",
                "search",
                "alert_id",
                "state",
                "status",
                "message",
                "metric",
                "alert_type",
                "event_type",
                "priority",
                "resource_id",
                "resource_name",
                "resource_type",
                "resource_ip",
                "client_id",
                "client_name",
                "repeat_count",
                "created_at",
                "updated_at",
            ]
        );
        assert_eq!(alert.text("resource_name"), "0800270B9A7A");
        assert_eq!(alert.text("resource_type"), "OpsRamp Gateway");
        assert_eq!(alert.text("created_at"), "2016-02-24T02:50:00Z");

        // One alert leaves; its own page is the documented page of another alert. The next alert
        // is not found.
        {
            let mut documents = server.documents();
            documents.search = without(&page, &["389547", "389548"]);
            let detail = documented("alert_detail_raw_200.json");
            let detail = detail.replace("\"93\"", "\"389547\"");
            documents.alerts.insert("389547".to_owned(), (200, detail));
            let missing = documented("error_500_not_found_uuid.json");
            documents.alerts.insert("389548".to_owned(), (500, missing));
        }
        wait_for_total(&exporter, 1.0).await;
        let lines = exporter.logs(5, "two have left").await;
        let left = records(&lines);
        let ticketed = record(&left, "389547", "left");
        assert_eq!(ticketed.text("reason"), "ticketed");
        assert_eq!(ticketed.text("incident_id"), "INC0000000093");
        assert_eq!(ticketed.text("previous_state"), "Info");
        assert_eq!(record(&left, "389548", "left").text("reason"), "not_found");

        {
            let mut documents = server.documents();
            documents.search = documented("alerts_search_empty_200.json");
            let inference = documented("alert_detail_inference_200.json");
            let inference = inference.replace("\"3511\"", "\"389546\"");
            // Created later, it would be another alert that has the id now.
            let inference = inference.replace("2018-05-07T12:55:19", "2016-02-24T02:50:00");
            documents
                .alerts
                .insert("389546".to_owned(), (200, inference));
        }
        wait_for_total(&exporter, 0.0).await;
        let lines = exporter.logs(6, "all have left").await;
        assert_eq!(
            record(&records(&lines), "389546", "left").text("reason"),
            "state_changed",
            "its page says that it is new, and Ok by now"
        );
        exporter.stop().await;
    }
}

/// Starts an exporter that polls the clients of a partner.
async fn start_for_partner(server: &Server) -> Exporter {
    let mut place = place_for(server);
    place.config["accounts"][0]["tenants"] = json!(["msp_1"]);
    place.config["accounts"][0]["discover_clients"] = json!(true);
    place.start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partners_clients_become_tenants_in_the_words_of_the_api() {
    let server = Server::start(Documents {
        token: sample("token.json"),
        search: sample("search-empty.json"),
        clients: sample("clients-search.json"),
        ..Documents::default()
    })
    .await;
    let exporter = start_for_partner(&server).await;
    let metrics = exporter
        .wait_for("the client that is activated is polled", |metrics| {
            metrics.sum("opsramp_up{") > 0.0
        })
        .await;
    assert_eq!(metrics.with("opsramp_up{").count(), 1);
    let label = "tenant=\"Example Services\"";
    assert_eq!(
        metrics
            .with("opsramp_up{")
            .filter(|(name, _)| name.contains(label))
            .count(),
        1
    );
    exporter.stop().await;
    let asked = server.documents().asked.clone();
    assert!(asked[0].starts_with("/api/v2/tenants/msp_1/clients/search"));
    let search = "/api/v2/tenants/client_14/alerts/search?";
    assert!(
        asked[1..].iter().all(|uri| uri.starts_with(search)),
        "{asked:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partner_without_an_activated_client_is_told() {
    let server = Server::start(Documents {
        token: sample("token.json"),
        clients: json!({
            "results": [{ "uniqueId": "client_1", "name": "one", "activated": false }],
            "totalResults": 1,
        })
        .to_string(),
        ..Documents::default()
    })
    .await;
    let exporter = start_for_partner(&server).await;
    let told = "the server shows no activated client of the partner";
    exporter.stderr.line(|line| line.contains(told)).await;
    eventually("it is the reason", async || {
        let (status, why) = exporter.get("/-/ready").await;
        status == 503 && why.contains(told)
    })
    .await;
    let status = exporter.get("/api/v1/status").await.1;
    assert_eq!(status.matches(told).count(), 1, "{status}");
    let ended = exporter.stop().await;
    let lines = ended.stderr.iter().filter(|line| line.contains(told));
    assert_eq!(lines.count(), 1, "{:#?}", ended.stderr);
}
