//! The JSON API, and the requests for a reload or an end.

use super::*;

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
    see_account(&site);
    site.board
        .update_sink(&"file".into(), |sink| sink.kind = "file");
    let _notice = site.health.notice("the journal is full");

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

    let documentation = include_str!("../../../docs/http-api.md");
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
async fn whoever_asks_for_a_reload_that_takes_long_is_told_that_it_goes_on() {
    let mut site = Site::with_limits(Limits {
        reload_time: Duration::from_millis(50),
        ..Limits::default()
    });
    let answer = site.post("/-/reload").await;
    assert_eq!(answer.status, 504);
    assert!(
        answer.body.contains("within 50ms and goes on"),
        "{}",
        answer.body
    );
    // The first request is still waiting for the daemon to take it.
    let answer = site.post("/-/reload").await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "5"));
    assert!(
        answer
            .body
            .contains("nothing was reloaded for this request"),
        "{}",
        answer.body
    );
    site.reloads.try_recv().unwrap();
    assert!(site.reloads.try_recv().is_err());
}

#[test]
fn who_waits_for_a_reload_is_answered_before_the_connection_is_dropped() {
    let limits = Limits::default();
    assert!(limits.reload_time + Duration::from_secs(5) <= limits.work_time);
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
