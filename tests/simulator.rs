//! The simulator over HTTP, as any client of the API would see it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::{io, time::Duration};

use flate2::read::GzDecoder;
use opsramp_exporter::simulator::{
    Action, Allowance, ChangeKind, DEMO_KEY, DEMO_SECRET, DEMO_TENANT, Endpoint, Fault, FaultRule,
    Options, Pace, RetryAfter, Simulator, Spec, TenantOptions,
};
use reqwest::{Client, Response};
use serde_json::{Value, json};

/// Longer than anything here takes, but not too long to wait for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads a whole document.
async fn document(response: Response) -> Value {
    let bytes = response.bytes().await.unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

struct Api {
    simulator: Simulator,
    client: Client,
    token: String,
}

impl Api {
    async fn start(options: Options) -> Self {
        let simulator = Simulator::start(options, "127.0.0.1:0").await.unwrap();
        // The first test installs the provider; the others find it installed.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(PATIENCE)
            .build()
            .unwrap();
        let mut api = Self {
            simulator,
            client,
            token: String::new(),
        };
        let granted = document(api.ask_for_token(DEMO_SECRET).await).await;
        api.token = granted["access_token"].as_str().unwrap().to_owned();
        api
    }

    async fn ask_for_token(&self, secret: &str) -> Response {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", DEMO_KEY),
            ("client_secret", secret),
        ];
        let url = format!("{}/auth/oauth/token", self.simulator.url());
        self.client.post(url).form(&form).send().await.unwrap()
    }

    async fn try_get(&self, path: &str) -> reqwest::Result<Response> {
        let url = format!("{}/api/v2/tenants/{path}", self.simulator.url());
        self.client.get(url).bearer_auth(&self.token).send().await
    }

    async fn get(&self, path: &str) -> Response {
        self.try_get(path).await.unwrap()
    }

    async fn page(&self, number: usize, size: usize) -> Value {
        let path = format!(
            "{DEMO_TENANT}/alerts/search?queryString=actions%3AOPEN&pageNo={number}&pageSize={size}"
        );
        document(self.get(&path).await).await
    }

    /// Spoils the next search.
    fn spoil(&self, fault: Fault) {
        self.simulator
            .inject(FaultRule::next(1, Endpoint::Search, fault));
    }

    async fn control(&self, method: &str, path: &str, body: Value) -> Value {
        let url = format!("{}/simulator/{path}", self.simulator.url());
        let method = method.parse().unwrap();
        let request = self.client.request(method, url).body(body.to_string());
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        document(response).await
    }
}

fn with_alerts(alerts: usize) -> Options {
    Options {
        tenants: vec![TenantOptions {
            id: DEMO_TENANT.to_owned(),
            alerts,
            ..TenantOptions::default()
        }],
        ..Options::default()
    }
}

const SEARCH: &str = "client_1/alerts/search?queryString=actions:OPEN";

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

#[tokio::test]
async fn every_open_alert_is_on_exactly_one_page() {
    let api = Api::start(with_alerts(1234)).await;
    let mut ids = std::collections::BTreeSet::new();
    let mut number = 1;
    loop {
        let page = api.page(number, 500).await;
        assert_eq!(page["totalResults"], 1234);
        for alert in page["results"].as_array().unwrap() {
            assert!(ids.insert(alert["uniqueId"].as_str().unwrap().to_owned()));
        }
        if page["nextPage"] == false {
            break;
        }
        number = page["nextPageNo"].as_u64().unwrap() as usize;
    }
    assert_eq!((number, ids.len()), (3, 1234));
    assert_eq!(api.simulator.requests().searches(DEMO_TENANT), 3);
}

#[tokio::test]
async fn a_query_may_be_encoded_well_or_badly() {
    let api = Api::start(with_alerts(300)).await;
    let total = async |query: &str| {
        let path = format!("client_1/alerts/search?queryString={query}");
        let page = document(api.get(&path).await).await;
        page["totalResults"].as_u64().unwrap()
    };
    let encoded = total("actions%3AOPEN%2Bstates%3ACritical%2CWarning").await;
    assert!((1..300).contains(&encoded));
    assert_eq!(total("actions:OPEN+states:Critical,Warning").await, encoded);
    assert_eq!(total("actions:OPEN&queryString=actions:CLOSED").await, 0);
}

#[tokio::test]
async fn the_token_endpoints_speak_as_documented() {
    let api = Api::start(Options::default()).await;
    let refused = api.ask_for_token("wrong").await;
    assert_eq!(refused.status(), 401);
    let body = document(refused).await;
    let expected = json!({"error": "unauthorized", "error_description": "Bad API credentials"});
    assert_eq!(body, expected);
    let url = format!("{}/tenancy/auth/oauth/token", api.simulator.url());
    let no_form = api.client.post(url).body("{}").send().await.unwrap();
    assert_eq!(no_form.status(), 400);
    let body = document(no_form).await;
    assert_eq!(body["error"], "unsupported_grant_type");
}

#[tokio::test]
async fn tokens_die_and_secrets_rotate() {
    let mut api = Api::start(Options::default()).await;
    assert_eq!(api.get(SEARCH).await.status(), 200);
    api.simulator.world(|world, _| {
        world.set_secret(DEMO_KEY, "rotated");
        world.revoke_tokens(None);
    });
    let dead = api.get(SEARCH).await;
    assert_eq!(dead.status(), 407);
    let body = document(dead).await;
    assert_eq!(body["error"], "invalid_token");
    assert_eq!(api.ask_for_token(DEMO_SECRET).await.status(), 401);
    let granted = document(api.ask_for_token("rotated").await).await;
    api.token = granted["access_token"].as_str().unwrap().to_owned();
    assert_eq!(api.get(SEARCH).await.status(), 200);
    api.token = "invented".to_owned();
    assert_eq!(api.get(SEARCH).await.status(), 401);
    assert_eq!(api.simulator.requests().count(Endpoint::Token), 3);
}

#[tokio::test]
async fn the_fifty_first_page_of_a_minute_is_refused() {
    let api = Api::start(Options {
        retry_after: RetryAfter::Seconds,
        quoted_headers: true,
        ..with_alerts(1)
    })
    .await;
    for left in (0..50).rev() {
        let answer = api.get(SEARCH).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(header(&answer, "x-ratelimit-limit"), Some("\"50\""));
        let remaining = format!("\"{left}\"");
        assert_eq!(header(&answer, "x-ratelimit-remaining"), Some(&*remaining));
    }
    let refused = api.get(SEARCH).await;
    assert_eq!(refused.status(), 429);
    let wait: i64 = header(&refused, "retry-after").unwrap().parse().unwrap();
    assert!((1..=61).contains(&wait), "{wait}");
    let body = document(refused).await;
    assert_eq!(body["error"], "throttled");
    let detail = api.get("client_1/alerts/5000001").await;
    assert_eq!(detail.status(), 200, "another allowance");
    assert_eq!(header(&detail, "x-ratelimit-limit"), Some("\"500\""));
}

#[tokio::test]
async fn a_window_ends_and_the_allowance_is_back() {
    // Two requests must come within this time, also on a busy machine.
    let window = Duration::from_secs(3);
    let api = Api::start(Options {
        allowance: Allowance {
            client_paginated: 1,
            window,
            ..Allowance::default()
        },
        retry_after: RetryAfter::Date,
        ..with_alerts(1)
    })
    .await;
    assert_eq!(api.get(SEARCH).await.status(), 200);
    let refused = api.get(SEARCH).await;
    assert_eq!(refused.status(), 429);
    assert!(header(&refused, "retry-after").unwrap().ends_with(" GMT"));
    tokio::time::sleep(window).await;
    assert_eq!(api.get(SEARCH).await.status(), 200);
}

#[tokio::test]
async fn tenants_are_missing_deactivated_or_not_partners() {
    let api = Api::start(Options::default()).await;
    assert_eq!(api.get("client_99/alerts/search").await.status(), 404);
    assert_eq!(api.get("client_1/clients").await.status(), 405);
    assert_eq!(api.get("client_1/clients/search").await.status(), 404);
    assert_eq!(api.get("client_1/alerts/77").await.status(), 404);
    api.simulator
        .set_options(|options| options.not_found_status = 500);
    let missing = api.get("client_1/alerts/77").await;
    assert_eq!(missing.status(), 500);
    let body = document(missing).await;
    assert_eq!(body["code"], "0003");
    let deactivated = api.control("POST", "tenants/client_1/deactivate", json!({}));
    deactivated.await;
    assert_eq!(api.get(SEARCH).await.status(), 410);
}

#[tokio::test]
async fn a_partner_lists_its_clients() {
    let client = |id: &str| TenantOptions {
        id: id.to_owned(),
        partner: Some("msp_9".to_owned()),
        ..TenantOptions::default()
    };
    let api = Api::start(Options {
        tenants: vec![client("client_3"), client("client_4")],
        ..Options::default()
    })
    .await;
    let listed = document(api.get("msp_9/clients/search").await).await;
    assert_eq!(listed["totalResults"], 2);
    assert_eq!(listed["orderBy"], "client.id");
    assert_eq!(listed["results"][0]["uniqueId"], "client_4");
    let minimal = document(api.get("msp_9/clients/minimal").await).await;
    assert_eq!(
        minimal[0],
        json!({"uniqueId": "client_3", "name": "Example client_3"})
    );
}

#[tokio::test]
async fn the_world_can_be_changed_between_two_pages() {
    let api = Api::start(with_alerts(4)).await;
    api.simulator.before_request(|world, request| {
        if request.page == Some(2) {
            let newest = *world.open_alerts(DEMO_TENANT).unwrap().last().unwrap();
            world.act(newest, Action::Close, request.now).unwrap();
        }
    });
    let first = api.page(1, 2).await;
    let second = api.page(2, 2).await;
    assert_eq!(first["totalResults"], 4);
    assert_eq!(second["totalResults"], 3);
    assert_eq!(second["results"].as_array().unwrap().len(), 1);
    api.simulator.clear_hook();
    assert_eq!(api.page(2, 2).await["totalResults"], 3);
}

#[tokio::test]
async fn a_gateway_gets_in_between() {
    let api = Api::start(with_alerts(3)).await;
    api.spoil(Fault::Status {
        code: 503,
        body: None,
        headers: vec![("Retry-After".to_owned(), "7".to_owned())],
    });
    let answer = api.get(SEARCH).await;
    assert_eq!(answer.status(), 503);
    assert_eq!(header(&answer, "retry-after"), Some("7"));
    api.spoil(Fault::Html);
    let answer = api.get(SEARCH).await;
    assert_eq!(answer.status(), 200);
    assert!(
        header(&answer, "content-type")
            .unwrap()
            .starts_with("text/html")
    );
    let location = "http://127.0.0.1:9/elsewhere".to_owned();
    api.spoil(Fault::Redirect {
        code: 307,
        location: location.clone(),
    });
    let answer = api.get(SEARCH).await;
    assert_eq!(answer.status(), 307);
    assert_eq!(header(&answer, "location"), Some(&*location));
    api.spoil(Fault::NoResults);
    assert_eq!(api.get(SEARCH).await.text().await.unwrap(), "{}");
    api.spoil(Fault::Empty);
    assert_eq!(api.get(SEARCH).await.text().await.unwrap(), "");
    let answer = api.get(SEARCH).await;
    assert_eq!(answer.status(), 200, "all faults are used up");
    let requests = api.simulator.requests();
    assert_eq!(requests.with_status(503), 1);
    assert_eq!(requests.searches(DEMO_TENANT), 6);
}

#[tokio::test]
async fn documents_are_spoilt() {
    let api = Api::start(with_alerts(10)).await;
    let spoilt = async |fault| {
        api.spoil(fault);
        let text = api.get(SEARCH).await.text().await.unwrap();
        serde_json::from_str::<Value>(&text)
    };
    assert!(spoilt(Fault::Truncated).await.is_err());
    assert!(spoilt(Fault::Deep { depth: 100_000 }).await.is_err());
    assert_eq!(
        spoilt(Fault::NullResult).await.unwrap()["results"],
        Value::Null
    );
    assert!(spoilt(Fault::WrongTypes).await.unwrap()["results"].is_object());
    let items = spoilt(Fault::WrongItems).await.unwrap();
    assert_eq!(items["totalResults"], 10);
    assert_eq!(items["results"][0], Value::Null);
}

#[tokio::test]
async fn a_bomb_goes_off_and_a_huge_body_is_huge() {
    let api = Api::start(with_alerts(1)).await;
    let size = 8 << 20;
    for (fault, coding) in [
        (Fault::GzipBomb { bytes: size }, Some("gzip")),
        (Fault::Huge { bytes: size }, None),
    ] {
        api.spoil(fault);
        let answer = api.get(SEARCH).await;
        let told = answer.headers().get("content-encoding");
        assert_eq!(told.map(|it| it.to_str().unwrap()), coding);
        let body = answer.bytes().await.unwrap();
        let length = match coding {
            None => body.len() as u64,
            Some(_) => {
                assert!(body.len() < 1 << 20, "{} bytes", body.len());
                io::copy(&mut GzDecoder::new(&body[..]), &mut io::sink()).unwrap()
            }
        };
        assert!(length >= size, "{length} bytes");
    }
}

#[tokio::test]
async fn connections_are_reset_before_and_within_an_answer() {
    let api = Api::start(with_alerts(100)).await;
    api.spoil(Fault::Reset);
    assert!(api.try_get(SEARCH).await.is_err());
    api.spoil(Fault::ResetMidBody);
    let answer = api.get(SEARCH).await;
    assert_eq!(answer.status(), 200);
    assert!(answer.bytes().await.is_err());
    assert_eq!(api.get(SEARCH).await.status(), 200);
    assert_eq!(api.simulator.requests().with_status(0), 1);
}

#[tokio::test]
async fn answers_are_slow_or_never_end() {
    let api = Api::start(Options {
        gzip: false,
        ..with_alerts(2)
    })
    .await;
    let pause = Duration::from_millis(60);
    api.spoil(Fault::SlowHeaders { seconds: pause });
    let asked = tokio::time::Instant::now();
    let answer = api.get(SEARCH).await;
    assert!(asked.elapsed() >= pause);
    let length = answer.bytes().await.unwrap().len();
    api.spoil(Fault::SlowBody {
        bytes: length / 3 + 1,
        seconds: pause,
    });
    let asked = tokio::time::Instant::now();
    let answer = api.get(SEARCH).await;
    assert_eq!(answer.bytes().await.unwrap().len(), length);
    assert!(asked.elapsed() >= 3 * pause);
    api.spoil(Fault::Stall { bytes: 10 });
    let answer = api.get(SEARCH).await;
    let body = tokio::time::timeout(Duration::from_millis(200), answer.bytes());
    assert!(body.await.is_err(), "a stalled body must not end");
}

#[tokio::test]
async fn answers_are_compressed_for_those_who_accept_it() {
    let api = Api::start(with_alerts(200)).await;
    let url = format!("{}/api/v2/tenants/{SEARCH}", api.simulator.url());
    let plain = Client::builder().no_proxy().build().unwrap();
    let encoding = async |accepted: &str| {
        let request = plain.get(&url).bearer_auth(&api.token);
        let answer = request
            .header("accept-encoding", accepted)
            .send()
            .await
            .unwrap();
        let coding = header(&answer, "content-encoding").map(str::to_owned);
        (coding, answer.bytes().await.unwrap().len())
    };
    let (none, large) = encoding("identity").await;
    let (gzip, small) = encoding("br, gzip;q=0.5").await;
    assert_eq!((none, gzip.as_deref()), (None, Some("gzip")));
    assert!(small * 5 < large, "{small} of {large}");
    assert_eq!(encoding("gzip;q=0").await.0, None);
    assert_eq!(api.page(1, 200).await["totalResults"], 200);
}

#[tokio::test]
async fn clocks_differ() {
    let api = Api::start(Options {
        clock_skew: 3600,
        ..with_alerts(1)
    })
    .await;
    let answer = api.get(SEARCH).await;
    let reset: i64 = header(&answer, "x-ratelimit-reset")
        .unwrap()
        .parse()
        .unwrap();
    let ahead = reset - opsramp_exporter::clock::now().as_second();
    assert!((3600..3665).contains(&ahead), "{ahead}");
    let date = header(&answer, "date").unwrap();
    let date = jiff::fmt::rfc2822::parse(date).unwrap().timestamp();
    let ahead = date.as_second() - opsramp_exporter::clock::now().as_second();
    assert!((3595..=3600).contains(&ahead), "{ahead}");
}

#[tokio::test]
async fn everything_can_be_controlled_with_curl() {
    let api = Api::start(Options::default()).await;
    let spec = json!({"count": 2, "state": "Critical", "subject": "Pump 3 \"stuck\""});
    let opened = api.control("POST", "tenants/client_1/alerts", spec).await;
    let id = opened["ids"][0].as_str().unwrap().to_owned();
    let page = api.page(1, 10).await;
    assert_eq!(page["totalResults"], 2);
    assert_eq!(page["results"][0]["subject"], "Pump 3 \"stuck\"");
    let done = api
        .control("POST", &format!("alerts/{id}/acknowledge"), json!({}))
        .await;
    assert_eq!(done["status"], "Acknowledged");
    let state = json!({"state": "warning"});
    let done = api
        .control("POST", &format!("alerts/{id}/state"), state)
        .await;
    assert_eq!(done["state"], "Warning");
    assert_eq!(api.page(1, 10).await["totalResults"], 1);
    let record = api
        .control("GET", "record?since=0&tenant=client_1", json!({}))
        .await;
    let told: Vec<&str> = record["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["what"].as_str().unwrap())
        .collect();
    assert_eq!(told, ["opened", "opened", "left", "changed"]);
    let fault = json!({"kind": "status", "code": 502, "endpoint": "search", "times": 5});
    let number = api.control("POST", "faults", fault).await["number"].clone();
    assert_eq!(api.get(SEARCH).await.status(), 502);
    let listed = api.control("GET", "faults", json!({})).await;
    assert_eq!(
        (&listed[0]["number"], &listed[0]["times"]),
        (&number, &json!(4))
    );
    api.control("DELETE", &format!("faults/{number}"), json!({}))
        .await;
    assert_eq!(api.get(SEARCH).await.status(), 200);
    let patch = json!({"max_page_size": 1, "allowance": {"client_paginated": 7}});
    let options = api.control("PATCH", "options", patch).await;
    assert_eq!(options["allowance"]["window"], 60.0);
    assert_eq!(api.page(1, 10).await["pageSize"], 1);
    let requests = api.control("GET", "requests", json!({})).await;
    assert_eq!(requests["by_status"], json!({"200": 5, "502": 1}));
    api.control("DELETE", "requests", json!({})).await;
    assert_eq!(api.simulator.requests().total, 0);
}

#[tokio::test]
async fn other_clients_can_act_and_post() {
    let api = Api::start(Options::default()).await;
    let url = format!("{}/api/v2/tenants/client_1", api.simulator.url());
    let alert = json!({
        "currentState": "CRITICAL", "subject": "Fan", "serviceName": "fan.speed",
        "device": {"hostName": "rack-1"},
    });
    let post = api
        .client
        .post(format!("{url}/alert"))
        .bearer_auth(&api.token);
    let posted = document(post.body(alert.to_string()).send().await.unwrap()).await;
    let id = posted[0].as_str().unwrap();
    let detail = document(api.get(&format!("client_1/alerts/{id}")).await).await;
    assert_eq!(detail["device"]["hostName"], "rack-1");
    let act = format!("{url}/alerts/{id}/actions/unAcknowledge");
    let acted = api
        .client
        .post(act)
        .bearer_auth(&api.token)
        .send()
        .await
        .unwrap();
    assert_eq!(acted.status(), 200);
}

#[tokio::test]
async fn life_opens_alerts_by_itself() {
    let mut options = Options::demo();
    options.life = Some(Pace {
        every: Duration::from_millis(5),
        ..Pace::default()
    });
    let simulator = Simulator::start(options, "127.0.0.1:0").await.unwrap();
    let opened = async {
        loop {
            let happened = simulator.world(|world, _| world.changes_since(1));
            if happened
                .iter()
                .any(|change| change.what == ChangeKind::Opened)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, opened).await.unwrap();
}

#[tokio::test]
async fn another_pace_of_life_counts_at_once() {
    let paced = |every| {
        let pace = Pace {
            every,
            ..Pace::default()
        };
        move |options: &mut Options| options.life = Some(pace)
    };
    let mut options = Options::demo();
    paced(Duration::from_millis(400))(&mut options);
    let simulator = Simulator::start(options, "127.0.0.1:0").await.unwrap();
    let position = || simulator.world(|world, _| world.record_position());
    let goes_on = async || {
        let before = position();
        while position() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // The first steps are certain to open alerts.
    tokio::time::timeout(PATIENCE, goes_on()).await.unwrap();
    simulator.set_options(|options| options.life = None);
    let before = position();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(position(), before, "something happens without a life");

    simulator.set_options(paced(Duration::from_secs(86_400)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(position(), before, "it is too early");
    simulator.set_options(paced(Duration::from_millis(5)));
    tokio::time::timeout(PATIENCE, goes_on()).await.unwrap();
}

#[tokio::test]
async fn a_thousand_tenants_cost_little() {
    let tenants = (0..1000).map(|n| TenantOptions {
        id: format!("client_{n}"),
        alerts: 3,
        ..TenantOptions::default()
    });
    let api = Api::start(Options {
        tenants: tenants.collect(),
        ..Options::default()
    })
    .await;
    let page = document(api.get("client_999/alerts/search").await).await;
    assert_eq!(page["totalResults"], 3);
    api.simulator.open("client_500", Spec::default()).unwrap();
    let page = document(api.get("client_500/alerts/search").await).await;
    assert_eq!(page["totalResults"], 4);
}

#[tokio::test]
async fn a_simulator_that_is_stopped_gives_its_port_back() {
    let api = Api::start(Options::default()).await;
    let (addr, client) = (api.simulator.addr(), api.client.clone());
    api.simulator.stop().await;
    assert!(
        client
            .get(format!("http://{addr}/simulator"))
            .send()
            .await
            .is_err()
    );
    let again = Simulator::start(Options::default(), addr).await.unwrap();
    assert_eq!(again.addr(), addr);
}
