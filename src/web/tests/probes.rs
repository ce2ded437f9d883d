//! What Prometheus and probes ask for.

use super::*;

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
        telemetry_path: "/opsramp/metrics",
        ..Setup::default()
    });
    let metrics = site.get("/opsramp/metrics").await.body;
    assert!(metrics.starts_with("# HELP"), "{metrics}");
    assert_eq!(site.get("/metrics").await.status, 404);

    for (path, message) in [
        ("metrics", "must start with a slash"),
        ("/{metrics}", "may hold letters, digits, single slashes"),
        ("/me trics", "may hold letters, digits, single slashes"),
        ("//metrics", "may hold letters, digits, single slashes"),
        ("/..", "may not have \".\" or \"..\""),
        ("/.", "may not have \".\" or \"..\""),
        ("/a/../b", "may not have \".\" or \"..\""),
        ("/a/./", "may not have \".\" or \"..\""),
        ("/", "is the status page"),
        ("/-/ready", "paths below /-/ are taken"),
        ("/api", "paths below /api/ are taken"),
    ] {
        let error = check_telemetry_path(path).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    for path in ["/apis", "/.well-known/metrics", "/a..b/c."] {
        assert_eq!(check_telemetry_path(path), Ok(()), "{path}");
    }
}

fn partner(id: &str, is_known: bool, last: Option<Result<(), String>>) -> PartnerStatus {
    PartnerStatus {
        id: id.into(),
        is_known,
        last,
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
        let discovery = DiscoveryStatus {
            clients,
            partners: vec![partner("msp_1", true, Some(Ok(())))],
        };
        site.board.update_account(&"acme".into(), |account| {
            account.discovery = Some(discovery)
        });
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

    // A search that fails was tried all the same: the trouble of one tenant is no reason for a
    // restart.
    site.board
        .set_search(failing(key("client_2", "wholesale"), "no route"));
    let answer = site.get("/-/ready").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "ready\n"));

    // A search is another matter if it should be polled here and the database does not give it
    // out.
    let mut not_taken_up = failing(key("client_2", "wholesale"), "no answer");
    not_taken_up.lease_held = false;
    site.board.set_search(not_taken_up);
    let answer = site.get("/-/ready").await;
    let reason = "acme/wholesale/open: no answer\n";
    assert_eq!((answer.status, answer.body.as_str()), (503, reason));
}

#[tokio::test]
async fn it_is_not_ready_while_nobody_knows_who_is_to_be_searched_whatever_else_is() {
    let site = Site::open(Setup::default());
    site.board.set_search(up(key("client_1", "retail")));
    let partners = |partners| {
        let discovery = DiscoveryStatus {
            clients: None,
            partners,
        };
        site.board
            .update_account(&"msp".into(), |account| account.discovery = Some(discovery));
    };
    let failed = || Some(Err("status 500: a <fault>".to_owned()));
    let not_known = "account msp: the clients of the partner msp_1 are not known yet: ";
    for (last, why) in [
        (None, "the first look-up has not ended"),
        (failed(), "status 500: a <fault>"),
    ] {
        partners(vec![partner("msp_1", false, last)]);
        let answer = site.get("/-/ready").await;
        let reason = format!("{not_known}{why}\n");
        assert_eq!((answer.status, answer.body), (503, reason));
    }
    // Of several partners, only those in trouble are named, together if the reason is the same.
    partners(vec![
        partner("msp_1", true, Some(Ok(()))),
        partner("msp_2", false, failed()),
        partner("msp_3", false, None),
        partner("msp_4", false, failed()),
        partner("msp_5", true, failed()),
    ]);
    let answer = site.get("/-/ready").await;
    let of_msp = "account msp: the clients of the partner";
    let reasons = format!(
        "{of_msp}s msp_2, msp_4 are not known yet: status 500: a <fault>\n\
         {of_msp} msp_3 are not known yet: the first look-up has not ended\n"
    );
    assert_eq!((answer.status, answer.body), (503, reasons));
    let status = site.get("/api/v1/status").await.json();
    let known =
        format!("{of_msp} msp_5 could not be looked up the last time: status 500: a <fault>");
    assert_eq!(status["problems"][0], known);

    // Clients that are known are still searched.
    partners(vec![partner("msp_1", true, failed())]);
    let answer = site.get("/-/ready").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "ready\n"));
    let failing = format!("{of_msp} msp_1 could not be looked up the last time: status 500: a ");
    let status = site.get("/api/v1/status").await.json();
    assert_eq!(
        status["problems"],
        serde_json::json!([format!("{failing}<fault>")])
    );
    let page = site.get("/").await.body;
    assert!(page.contains(&format!("<li>{failing}")), "{page}");

    partners(vec![partner("msp_1", true, Some(Ok(())))]);
    let status = site.get("/api/v1/status").await.json();
    assert_eq!(status["problems"], serde_json::json!([]));
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
    let _notice = site.health.notice("the journal is full");
    let answer = site.get("/-/healthy").await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, "healthy\nthe journal is full\n")
    );
}
