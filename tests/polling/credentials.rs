//! Tokens and secrets are replaced, rotated, and shown to nobody.

use super::*;

/// After failures of the credentials, polls try again at every interval. These failures do not
/// count for the back-off of another failure after them.
#[tokio::test(flavor = "multi_thread")]
async fn failures_of_the_credentials_do_not_stretch_the_interval() {
    let simulator = start(world(3)).await;
    let exporter = Exporter::start(plan(&simulator.url())).await;
    exporter.wait_until_complete().await;
    let failures = |reason| {
        exporter.sample(&format!(
            "opsramp_poll_failures_total{{account=\"default\",tenant=\"name of client_1\",search=\"open\",reason=\"{reason}\"}}"
        ))
    };
    let status = Fault::status;
    simulator.inject(FaultRule::always(status(403)).at(Endpoint::Search));
    eventually("many failures", || async { failures("auth") >= 15.0 }).await;
    simulator.clear_faults();
    simulator.inject(FaultRule::next(1, Endpoint::Search, status(500)));
    eventually("another failure", || async { failures("http") >= 1.0 }).await;
    eventually("recovery", || async {
        exporter.sample("opsramp_up{") == 1.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_replaced_at_once_and_one_that_comes_back_is_not_asked_for_again_soon() {
    let simulator = start(world(3)).await;
    let mut plan = plan(&simulator.url());
    // The last ten polls are told. That with the revoked token must still be one of them.
    plan.searches[0].interval = Duration::from_millis(500);
    let exporter = Exporter::start(plan).await;
    exporter.wait_until_complete().await;
    simulator.world(|world, _| world.revoke_tokens(None));
    exporter.wait_for_poll().await;
    assert_eq!(exporter.sample("opsramp_poll_failures_total{"), 0.0);
    assert_eq!(simulator.requests().count(Endpoint::Token), 2);
    let status = exporter.status();
    let most = status.polls.iter().map(|poll| poll.requests).max();
    assert_eq!(most, Some(2), "the repeated request counts");

    simulator.set_options(|options| options.stale_tokens = true);
    simulator.world(|world, _| world.revoke_tokens(None));
    eventually("polls fail", || async {
        exporter.sample("opsramp_up{") == 0.0
    })
    .await;
    exporter.wait_for_poll().await;
    exporter.wait_for_poll().await;
    assert_eq!(simulator.requests().count(Endpoint::Token), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_runs_out_while_a_request_waits_for_its_turn_costs_no_request() {
    let mut options = world(3);
    // A busy machine must get from a token to its request within this time.
    options.token_lifetime = Duration::from_secs(4);
    let simulator = start(options).await;
    let options = account(&simulator.url(), &[DEMO_TENANT]).options;
    let metrics = metrics(&Board::default()).register_account(&options.name);
    let allowances = opsramp::Allowances::default();
    let client = opsramp::Client::new(options, &allowances, Arc::new(metrics))
        .await
        .unwrap();
    let request = opsramp::SearchRequest {
        query: "actions:OPEN".to_owned(),
        page: 1,
        page_size: 100,
        sorted: true,
    };
    let ask = || client.search(DEMO_TENANT, &request, opsramp::Urgency::Background);
    let wait = Fault::Status {
        code: 429,
        body: None,
        headers: vec![("Retry-After".to_owned(), "5".to_owned())],
    };
    simulator.inject(FaultRule::next(1, Endpoint::Search, wait));
    ask().await.unwrap_err();
    ask().await.unwrap();
    assert_eq!(simulator.requests().with_status(407), 0);
    assert_eq!(simulator.requests().count(Endpoint::Token), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_never_followed_with_a_secret_or_a_token() {
    for (endpoint, reason) in [
        (
            Endpoint::Token,
            "opsramp_auth_failures_total{account=\"default\",reason=\"http\"}",
        ),
        (Endpoint::Search, "opsramp_poll_failures_total{"),
    ] {
        let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        elsewhere.set_nonblocking(true).unwrap();
        let simulator = start(world(3)).await;
        let location = format!("http://{}/auth?secret=1", elsewhere.local_addr().unwrap());
        simulator.inject(
            FaultRule::always(Fault::Redirect {
                code: 307,
                location,
            })
            .at(endpoint),
        );
        let exporter = Exporter::start(plan(&simulator.url())).await;
        eventually("it is an error", || async {
            exporter.sample(reason) >= 1.0
        })
        .await;
        exporter.wait_for_poll().await;
        let asked = elsewhere.accept();
        assert!(asked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
        let message = exporter.last_message();
        assert!(
            message.contains("a redirect to http://127.0.0.1:"),
            "{message}"
        );
        assert!(!message.contains("secret=1"), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_shown_that_a_server_or_a_proxy_repeats() {
    const TOKEN: &str = r#"{"access_token":"token-0123456789","expires_in":7200}"#;
    for grants in [false, true] {
        // A proxy that answers in place of the server, and repeats what it was sent.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("me:hunter2~proxy@{}", listener.local_addr().unwrap());
        // An answer also repeats the requests before, the token's among them.
        let requests = Arc::<parking_lot::Mutex<String>>::default();
        let answer = async move |uri: http::Uri, headers: http::HeaderMap, body: String| {
            let mut requests = requests.lock();
            *requests = format!("{headers:?} {body} {requests}");
            let echo = serde_json::json!(*requests).to_string();
            match (grants, uri.path()) {
                (true, "/auth/oauth/token") => (http::StatusCode::OK, TOKEN.to_owned()),
                (true, _) => (http::StatusCode::OK, echo),
                (false, _) => (http::StatusCode::BAD_REQUEST, echo),
            }
        };
        let proxying = axum::serve(listener, axum::Router::new().fallback(answer)).into_future();
        let proxying = tokio::spawn(proxying);
        let mut plan = plan("http://api.example");
        let options = &mut plan.accounts[0].options;
        options.client_secret = SecretSource::Value(Secret::new("form~se*cret"));
        options.proxy_url = Some(opsramp::ProxyUrl(Secret::new(format!("http://{proxy}"))));
        let exporter = Exporter::start(plan).await;
        eventually("a poll fails", || async {
            exporter.status().last_error.is_some()
        })
        .await;
        let message = exporter.last_message();
        let told = if grants { "no search result" } else { "(400)" };
        assert!(message.contains(told), "{message}");
        // The password in clear, and `me:hunter2~proxy` in base64 as it was sent.
        for secret in ["hunter2", "bWU6aHVudGVyMn5wcm94eQ", "form", "0123456789"] {
            assert!(!message.contains(secret), "{message}");
        }
        proxying.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_secret_is_picked_up_from_its_file() {
    let simulator = start(world(3)).await;
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "wrong\n").unwrap();
    let mut plan = plan(&simulator.url());
    plan.accounts[0].options.client_secret = SecretSource::File(secret.clone());
    let exporter = Exporter::start(plan).await;
    eventually("the credentials are rejected", || async {
        exporter.sample("opsramp_auth_failures_total{account=\"default\",reason=\"rejected\"")
            >= 1.0
    })
    .await;
    assert_eq!(exporter.sample("opsramp_up{"), 0.0);
    let message = exporter.last_message();
    assert!(
        message.contains("rejects the credentials (401)") && !message.contains("wrong"),
        "{message}"
    );
    std::fs::write(&secret, format!("{DEMO_SECRET}\n")).unwrap();
    let began = Instant::now();
    exporter.wait_until_complete().await;
    // An unchanged secret would not be sent again before this time.
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
}

/// A reload has a new client ask with the new secret. The one that it replaces may still be valid.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_shown_that_a_reload_replaced() {
    let simulator = start(world(3)).await;
    let mut plan = plan(&simulator.url());
    let folder = tempfile::tempdir().unwrap();
    let store = open_store(&folder, store::JOURNAL_LIMIT).await;
    let (mut pollers, board, _) = pollers(&store, &Health::default());
    let last_error = || board.searches().first()?.last_error.clone();
    pollers.apply(plan.clone()).await.unwrap();
    eventually("the first secret is sent", || async {
        simulator.requests().searches(DEMO_TENANT) >= 1
    })
    .await;
    let repeats = Fault::Status {
        code: 500,
        body: Some(format!("the secret was {DEMO_SECRET}, and is another now")),
        headers: Vec::new(),
    };
    simulator.inject(FaultRule::always(repeats).at(Endpoint::Token));
    plan.accounts[0].options.client_secret = SecretSource::Value(Secret::new("its-successor"));
    pollers.apply(plan).await.unwrap();
    eventually("a poll fails", || async { last_error().is_some() }).await;
    let message = last_error().unwrap().message;
    assert!(
        message.contains("the secret was <secret>, and"),
        "{message}"
    );
    pollers.stop().await;
    store.close().await;
}
