//! The page, and answers that take long.

use super::*;

#[tokio::test]
async fn the_page_shows_everything_and_escapes_it() {
    let site = Site::open(Setup::default());
    site.board.set_search(up(key("client_1", "retail")));
    site.board.set_search(failing(
        key("client_2", "<b>wholesale</b>"),
        "\"no\" <route>",
    ));
    see_account(&site);
    site.board.update_sink(&"file".into(), |sink| {
        sink.kind = "file";
        sink.backlog = Some(4321);
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
async fn groups_show_their_values_in_order_and_the_others_show_once() {
    let site = Site::open(Setup::default());
    let group = |values: [&str; 2], count| (values.map(Arc::from).to_vec(), count);
    let mut search = up(key("client_1", "retail"));
    let result = search.result.as_mut().unwrap();
    result.group_by = [GroupLabel::State, GroupLabel::Priority].into();
    result.groups = [
        group(["Critical", "P0"], 3),
        group(["other", "P1"], 4),
        group(["other", "other"], 5),
    ]
    .into();
    site.board.set_search(search);
    let body = site.get("/").await.body;
    for shown in [">3 Critical · P0<", ">4 other · P1<", ">5 other<"] {
        assert!(body.contains(shown), "{shown} is missing in\n{body}");
    }
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
async fn of_a_token_that_was_lost_is_not_told_that_there_has_been_none_yet() {
    let site = Site::open(Setup::default());
    see_account(&site);
    site.metrics.register_account(&"acme".into()).token_lost();
    let page = site.get("/").await.body;
    assert!(page.contains("<dt>token</dt><dd>none</dd>"), "{page}");
}

#[tokio::test]
async fn a_token_that_is_not_renewed_is_shown_until_it_is() {
    let site = Site::open(Setup::default());
    site.board.set_search(up(key("client_1", "retail")));
    see_account(&site);
    let error = opsramp::Error::Auth {
        what: "cannot read /run/<secret>".to_owned(),
        forbidden: false,
    };
    let account = site.metrics.register_account(&"acme".into());
    account.token_failed("credentials", &error);
    let body = site.get("/").await.body;
    for shown in [
        "<title>(1) ",
        "1 of 1 accounts get no new token",
        "no new token: cannot read /run/&lt;secret&gt;",
        "expires <time",
    ] {
        assert!(body.contains(shown), "{shown} is missing in\n{body}");
    }
    assert!(!body.contains("all well"), "{body}");
    let status = site.get("/api/v1/status").await.json();
    assert_eq!(
        status["accounts"][0]["auth_error"],
        "cannot read /run/<secret>"
    );

    // Another replica polls the search by now, so nothing here would end the failure.
    let elsewhere = up(key("client_1", "retail")).elsewhere();
    site.board.set_search(elsewhere);
    let status = site.get("/api/v1/status").await.json();
    assert!(status["accounts"][0]["auth_error"].is_null(), "{status}");
    site.board.set_search(up(key("client_1", "retail")));

    see_account(&site);
    let body = site.get("/").await.body;
    assert!(body.contains("all well"), "{body}");
    assert!(!body.contains("new token"), "{body}");
    let status = site.get("/api/v1/status").await.json();
    assert!(status["accounts"][0]["auth_error"].is_null(), "{status}");
}

#[tokio::test]
async fn a_backlog_that_is_not_known_is_no_zero() {
    let site = Site::open(Setup::default());
    site.board
        .update_sink(&"file".into(), |sink| sink.backlog = None);
    let page = site.get("/").await.body;
    assert!(
        page.contains("<dt>waiting</dt><dd>not known</dd>"),
        "{page}"
    );
    let status = site.get("/api/v1/status").await.json();
    assert!(status["sinks"][0]["backlog"].is_null(), "{status}");
}

#[tokio::test]
async fn the_page_does_not_wait_for_a_store_that_hangs_nor_hides_one_that_fails() {
    for (alerts, message, status) in [
        (Alerts::NotYet, "the store is not open yet", 503),
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
    let site = Site::with_limits(Limits {
        turn_time: Duration::from_millis(200),
        ..Limits::default()
    });
    // The answers are larger than what sockets buffer.
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
