//! Connections: their limits, and their end.

use super::*;

/// Short limits, for tests that wait for them. They are long enough for what a busy machine has to do
/// within them.
fn tight() -> Limits {
    Limits {
        connections: 8,
        head_time: Duration::from_secs(1),
        idle_time: Duration::from_secs(1),
        answer_time: Duration::from_secs(1),
        grace: Duration::from_millis(500),
        ..Limits::default()
    }
}

/// Sends a request on a kept connection, and reads the answer.
async fn ask(stream: &mut TcpStream) {
    stream
        .write_all(b"GET /-/healthy HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).await.unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 200 "));
}

#[tokio::test]
async fn connections_that_never_send_a_request_do_not_keep_others_out() {
    let site = Site::with_limits(Limits {
        head_time: PATIENCE * 10,
        ..tight()
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
    // The oldest connection had to go, and the newest is still there.
    assert_eq!(drain(&mut silent[0]).await, b"");
    let newest = &mut silent[49];
    newest
        .write_all(b"GET /-/ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    assert!(drain(newest).await.starts_with(b"HTTP/1.1 503 "));
}

#[tokio::test]
async fn a_client_that_takes_all_places_takes_none_of_another_one() {
    let site = Site::with_limits(Limits {
        idle_time: PATIENCE * 10,
        ..tight()
    });
    let mut scraper = site.connect().await;
    ask(&mut scraper).await;
    let mut others = Vec::new();
    for _ in 0..50 {
        let mut other = site.connect_from([127, 0, 0, 2]).await;
        ask(&mut other).await;
        others.push(other);
    }
    ask(&mut scraper).await;
}

#[tokio::test]
async fn a_head_must_arrive_in_time_and_in_size() {
    let site = Site::with_limits(tight());
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
    let site = Site::with_limits(tight());
    let mut kept = site.connect().await;
    for _ in 0..3 {
        ask(&mut kept).await;
    }
    assert_eq!(drain(&mut kept).await, b"");
}

#[tokio::test]
async fn half_a_head_behind_a_request_must_be_whole_in_time_as_well() {
    let site = Site::with_limits(Limits {
        idle_time: PATIENCE * 10,
        ..tight()
    });
    let mut slow = site.connect().await;
    slow.write_all(b"GET /-/healthy HTTP/1.1\r\nhost: a\r\n\r\nGET /-/hea")
        .await
        .unwrap();
    assert!(drain(&mut slow).await.starts_with(b"HTTP/1.1 200 "));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_dropped() {
    let site = Site::with_limits(tight());
    // The answer is larger than what the kernel buffers on both sides.
    for n in 0..3000 {
        site.metrics
            .register_search(&key(&format!("client_{n}"), &format!("tenant-{n}")));
    }
    let whole = site.get("/metrics").await.body.len();
    let mut stream = site.connect().await;
    let scrape = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n".repeat(4);
    stream.write_all(&scrape).await.unwrap();
    // The answer has begun.
    stream.readable().await.unwrap();
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
    // Gives the server time to see the end of what it reads.
    tokio::time::sleep(Duration::from_millis(50)).await;
    reload.send(Ok(())).unwrap();
    assert!(drain(&mut stream).await.starts_with(b"HTTP/1.0 200 OK"));
}

#[tokio::test]
async fn a_kept_connection_may_be_idle_for_longer_than_an_answer_may_take() {
    let site = Site::with_limits(Limits {
        answer_time: Duration::from_millis(20),
        idle_time: PATIENCE,
        ..tight()
    });
    let mut kept = site.connect().await;
    for _ in 0..2 {
        ask(&mut kept).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_shutdown_ends_what_is_under_way_and_waits_for_nobody_else() {
    let mut site = Site::with_limits(Limits {
        grace: PATIENCE * 2,
        ..Limits::default()
    });
    let mut silent = site.connect().await;
    let mut halfway = site.connect().await;
    halfway.write_all(b"GET /metrics HT").await.unwrap();
    let mut kept = site.connect().await;
    ask(&mut kept).await;
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
    let mut site = Site::with_limits(tight());
    let mut busy = site.connect().await;
    busy.write_all(b"POST /-/reload HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let _never_answered = site.reloads.recv().await.unwrap();
    let begun = Instant::now();
    site.stop().await;
    assert!(begun.elapsed() < PATIENCE / 2);
    assert_eq!(drain(&mut busy).await, b"");
}
