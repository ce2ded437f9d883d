//! TLS, passwords and headers of the web server, as clients see them.

use std::{path::Path, process::Stdio};

use opsramp_exporter::simulator::Simulator;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType,
};
use reqwest::{Certificate, Identity};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    time::{Duration, Instant},
};

use crate::{
    exporter::{Ended, Exporter, PATIENCE, Place, binary, command, eventually, needed, opsramp},
    ports::keep_a_port,
};

const PASSWORD: &str = "correct horse";

/// An authority that signs certificates for servers and clients alike.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = parameters.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(parameters, key);
        Self { issuer, pem }
    }

    /// Returns a certificate and its key, PEM.
    fn sign(&self, name: &str) -> (String, String) {
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let loopback = SanType::IpAddress([127, 0, 0, 1].into());
        parameters.subject_alt_names.push(loopback);
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// Returns a client that trusts this authority and nobody else.
    fn client(&self, own: Option<(String, String)>) -> reqwest::Client {
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let trusted = Certificate::from_pem(self.pem.as_bytes()).unwrap();
        let mut builder = reqwest::Client::builder()
            .no_proxy()
            .timeout(PATIENCE)
            .tls_certs_only([trusted]);
        if let Some((certificate, key)) = own {
            let identity = Identity::from_pem((certificate + &key).as_bytes()).unwrap();
            builder = builder.identity(identity);
        }
        builder.build().unwrap()
    }
}

fn write(place: &Place, name: &str, text: &str) {
    std::fs::write(place.path(name), text).unwrap();
}

/// Returns a place with a certificate, and with a web configuration file that ends with `more`.
fn secure_place(opsramp: &Simulator, authority: &Authority, more: &str) -> Place {
    let mut place = Place::new(&opsramp.url());
    place.config["web"]["config_file"] = place.path("web.yml").to_str().unwrap().into();
    let (certificate, key) = authority.sign("localhost");
    write(&place, "server.crt", &certificate);
    write(&place, "server.key", &key);
    write(&place, "ca.crt", &authority.pem);
    let tls = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n";
    write(&place, "web.yml", &format!("{tls}{more}"));
    place.secrets.push(PASSWORD.to_owned());
    place
}

fn users() -> String {
    let hash = bcrypt::hash(PASSWORD, 4).unwrap();
    format!("basic_auth_users:\n  prometheus: {hash}\n")
}

async fn get(client: &reqwest::Client, exporter: &Exporter, path: &str) -> reqwest::Response {
    let url = format!("{}{path}", exporter.url);
    client.get(url).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_but_health_takes_a_password() {
    let opsramp = opsramp(3).await;
    let authority = Authority::new();
    let headers = "http_server_config:\n  headers:\n    Strict-Transport-Security: max-age=1\n    X-Content-Type-Options: ''\n    X-Frame-Options: deny\n";
    let place = secure_place(&opsramp, &authority, &(users() + headers));
    let exporter = place.start().await;
    assert!(exporter.url.starts_with("https://"), "{}", exporter.url);
    let client = authority.client(None);
    for path in ["/-/healthy", "/-/ready"] {
        let answer = get(&client, &exporter, path).await;
        assert_ne!(answer.status(), 401, "{path}");
        assert_eq!(answer.headers()["strict-transport-security"], "max-age=1");
    }
    for path in ["/", "/metrics", "/api/v1/status", "/api/v1/alerts", "/else"] {
        let url = format!("{}{path}", exporter.url);
        let refused = get(&client, &exporter, path).await;
        assert_eq!(refused.status(), 401, "{path}");
        let challenge = refused.headers()["www-authenticate"].to_str().unwrap();
        assert!(challenge.starts_with("Basic realm="), "{challenge}");
        for (user, password) in [("prometheus", "wrong"), ("nobody", PASSWORD)] {
            let request = client.get(&url).basic_auth(user, Some(password));
            let status = request.send().await.unwrap().status();
            assert_eq!(status, 401, "{path} {user}");
        }
        let request = client.get(&url).basic_auth("prometheus", Some(PASSWORD));
        let answer = request.send().await.unwrap();
        let expected = if path == "/else" { 404 } else { 200 };
        assert_eq!(answer.status(), expected, "{path}");
        assert_eq!(answer.headers()["x-frame-options"], "deny");
        assert!(!answer.headers().contains_key("x-content-type-options"));
        assert!(answer.headers().contains_key("content-security-policy"));
    }
    let post = client.post(format!("{}/-/reload", exporter.url));
    assert_eq!(post.send().await.unwrap().status(), 401);
    let ended = exporter.stop().await;
    let told = ended.stderr.iter().any(|line| line.contains("is wrong"));
    assert!(told, "{:#?}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_and_passwords_are_read_again_and_bad_ones_change_nothing() {
    let opsramp = opsramp(1).await;
    let (old, new) = (Authority::new(), Authority::new());
    let place = secure_place(&opsramp, &old, &users());
    let exporter = place.start().await;
    let reaches = async |authority: &Authority| {
        // A new client has no connection yet.
        let request = authority
            .client(None)
            .get(format!("{}/-/healthy", exporter.url));
        request.send().await.is_ok()
    };
    assert!(reaches(&old).await && !reaches(&new).await);

    let (certificate, key) = new.sign("localhost");
    write(&place, "server.crt", &certificate);
    eventually("the mismatch is told", async || {
        assert!(reaches(&old).await);
        let told = |line: &String| line.contains("does not belong to the certificate");
        exporter.stderr.lines().iter().any(told)
    })
    .await;
    write(&place, "server.key", &key);
    eventually("the new certificate is in use", async || {
        reaches(&new).await
    })
    .await;
    assert!(!reaches(&old).await);

    // An editor that has emptied the file does not make the server open to everybody.
    let text = place.text_of("web.yml");
    write(&place, "web.yml", "");
    eventually("the loss is told", async || {
        assert!(reaches(&new).await);
        let told = |line: &String| line.contains("no longer has tls_server_config");
        exporter.stderr.lines().iter().any(told)
    })
    .await;
    let other = bcrypt::hash("another", 4).unwrap();
    let tls = text.split_once("basic_auth_users").unwrap().0;
    write(
        &place,
        "web.yml",
        &format!("{tls}basic_auth_users:\n  prometheus: {other}\n"),
    );
    let client = new.client(None);
    eventually("the new password is in use", async || {
        let request = client.get(format!("{}/metrics", exporter.url));
        let answer = request
            .basic_auth("prometheus", Some("another"))
            .send()
            .await;
        answer.unwrap().status() == 200
    })
    .await;
    let ended = exporter.stop().await;
    let complaints = ended
        .stderr
        .iter()
        .filter(|line| line.contains("does not belong"));
    assert_eq!(complaints.count(), 1, "{:#?}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_client_authentication_takes_whom_it_should() {
    let opsramp = opsramp(1).await;
    let (ours, theirs) = (Authority::new(), Authority::new());
    let sans = "client_allowed_sans: [prometheus.example]";
    // Whether these clients are accepted: without a certificate; with a certificate of another
    // authority; with one of this authority in another name; with one in the right name.
    for (kind, more, taken) in [
        ("NoClientCert", "", [true, true, true, true]),
        ("RequestClientCert", "", [true, true, true, true]),
        ("RequireAnyClientCert", "", [false, true, true, true]),
        (
            "VerifyClientCertIfGiven",
            "client_ca_file: ca.crt",
            [true, false, true, true],
        ),
        (
            "RequireAndVerifyClientCert",
            "client_ca_file: ca.crt",
            [false, false, true, true],
        ),
        ("RequireAnyClientCert", sans, [false, false, false, true]),
    ] {
        let place = secure_place(&opsramp, &ours, "");
        let text = place.text_of("web.yml");
        let more = if more.is_empty() {
            String::new()
        } else {
            format!("  {more}\n")
        };
        write(
            &place,
            "web.yml",
            &format!("{text}  client_auth_type: {kind}\n{more}"),
        );
        let exporter = place.start().await;
        let url = format!("{}/-/healthy", exporter.url);
        let clients = [
            None,
            Some(theirs.sign("stranger.example")),
            Some(ours.sign("other.example")),
            Some(ours.sign("prometheus.example")),
        ];
        for (own, taken) in clients.into_iter().zip(taken) {
            let answer = ours.client(own).get(&url).send().await;
            assert_eq!(answer.is_ok(), taken, "{kind} {more}: {answer:?}");
        }
        exporter.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_serves_nobody_who_would_not_be_let_in_now() {
    let opsramp = opsramp(1).await;
    let (ours, theirs) = (Authority::new(), Authority::new());
    let place = secure_place(&opsramp, &ours, "");
    write(&place, "both.crt", &(ours.pem.clone() + &theirs.pem));
    let tls = place.text_of("web.yml");
    let demand = |more: &str| write(&place, "web.yml", &format!("{tls}{more}"));
    let exporter = place.start().await;
    let client = |own| ours.client(own);
    let nobody = client(None);
    // `None`: the request is not answered; otherwise whether the answer ends the connection.
    let asked = async |client: &reqwest::Client| {
        let url = format!("{}/-/healthy", exporter.url);
        let answer = client.get(url).send().await.ok()?;
        Some(answer.headers().contains_key("connection"))
    };
    assert_eq!(asked(&nobody).await, Some(false));
    demand("  client_auth_type: RequireAnyClientCert\n");
    eventually("who has no certificate is out", async || {
        asked(&nobody).await.is_none()
    })
    .await;

    let scraper = client(Some(ours.sign("prometheus.example")));
    let stranger = client(Some(theirs.sign("prometheus.example")));
    for client in [&scraper, &stranger] {
        assert_eq!(asked(client).await, Some(false));
    }
    // A client that is accepted before and after the change misses no answer, and is on a new
    // connection soon.
    for (issuers, stays) in [("both.crt", true), ("ca.crt", false)] {
        demand(&format!(
            "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: {issuers}\n"
        ));
        eventually("the scraper shakes hands again", async || {
            asked(&scraper).await.unwrap()
        })
        .await;
        assert_eq!(asked(&stranger).await, stays.then_some(true), "{issuers}");
        // A client may have had a second connection from before the change.
        let mut closed = 0;
        for _ in 0..10 {
            closed += u32::from(asked(&scraper).await.unwrap());
            let answer = asked(&stranger).await;
            assert_eq!(answer.is_some(), stays, "{issuers}");
            closed += u32::from(answer.unwrap_or_default());
        }
        assert!(closed <= 2, "{closed} of 20 connections, {issuers}");
    }
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_speak_tls_is_told() {
    let opsramp = opsramp(1).await;
    let place = secure_place(&opsramp, &Authority::new(), "");
    let exporter = place.start().await;
    let url = exporter.url.replace("https://", "http://");
    let answer = reqwest::get(format!("{url}/metrics")).await.unwrap();
    assert_eq!(answer.status(), 400);
    assert!(answer.text().await.unwrap().contains("https://"));
    exporter.stop().await;
}

async fn connect(exporter: &Exporter) -> TcpStream {
    let address = exporter.url.strip_prefix("https://").unwrap();
    TcpStream::connect(address).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_never_end_do_not_silence_the_metrics() {
    let opsramp = opsramp(1).await;
    let authority = Authority::new();
    let place = secure_place(&opsramp, &authority, &users());
    let exporter = place.start_with_descriptors(512).await;
    let mut halves = Vec::new();
    for n in 0..600 {
        let mut stream = connect(&exporter).await;
        if n % 2 == 0 {
            // The first bytes of a handshake. The connection may already have had to make room.
            stream.write_all(b"\x16\x03\x01\x02\x00\x01").await.ok();
        }
        halves.push(stream);
        if n % 100 == 99 {
            let begun = Instant::now();
            let request = authority
                .client(None)
                .get(format!("{}/metrics", exporter.url));
            let request = request.basic_auth("prometheus", Some(PASSWORD));
            assert_eq!(request.send().await.unwrap().status(), 200);
            assert!(begun.elapsed() < Duration::from_secs(10));
        }
    }
    drop(halves);
    exporter.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prometheus_scrapes_it_over_tls_with_a_password() {
    needed("prometheus", "prometheus");
    let opsramp = opsramp(3).await;
    let authority = Authority::new();
    let place = secure_place(&opsramp, &authority, &users());
    let exporter = place.start().await;
    let target = exporter.url.strip_prefix("https://").unwrap();
    write(
        &place,
        "prometheus.yml",
        &format!(
            "scrape_configs:
  - job_name: opsramp
    scheme: https
    scrape_interval: 1s
    tls_config: {{ca_file: ca.crt}}
    basic_auth: {{username: prometheus, password: {PASSWORD}}}
    static_configs: [{{targets: ['{target}']}}]
"
        ),
    );
    let (address, _kept) = keep_a_port();
    let mut prometheus = place.settle(command("prometheus"));
    prometheus
        .arg("--config.file=prometheus.yml")
        .arg("--storage.tsdb.path=tsdb")
        .arg(format!("--web.listen-address={address}"))
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(place.path("prometheus.log")).unwrap());
    let mut prometheus = prometheus.spawn().unwrap();
    let client = crate::exporter::http_client();
    let url = format!("http://{address}/api/v1/query?query=opsramp_search_total_results");
    let deadline = Instant::now() + PATIENCE;
    let scraped = loop {
        let text = match client.get(&url).send().await {
            Ok(answer) => answer.text().await.unwrap(),
            Err(error) => error.to_string(),
        };
        if text.contains("\"tenant\":\"client_1\"") {
            break text;
        }
        let log = || log_of(&place.path("prometheus.log"));
        assert!(Instant::now() < deadline, "{text}\n{}", log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(scraped.contains("\"3\""), "{scraped}");
    prometheus.kill().await.unwrap();
    exporter.stop().await;
}

fn log_of(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_configuration_file_that_is_wrong_keeps_it_from_starting() {
    let opsramp = opsramp(1).await;
    let place = secure_place(&opsramp, &Authority::new(), "basic_auth_user: {}\n");
    place.write();
    for extra in [&[] as &[&str], &["--config.check"], &["check"]] {
        let mut command = place.command();
        command.args(extra);
        let ended = place.run(command).await;
        assert_eq!(ended.code(), Some(2), "{extra:?}");
        let told = ended.stderr.join("\n") + &ended.stdout.join("\n");
        let expected =
            "web.yml:4:1: basic_auth_user: unknown key; did you mean \"basic_auth_users\"?";
        // As a value in a log line of the daemon, the message is quoted itself.
        let told = told.replace("\\\"", "\"");
        assert!(told.contains(expected), "{told}");
    }
}

/// Runs the command `healthcheck` for the address of this exporter, with the web configuration
/// file.
async fn healthcheck(place: &Place, exporter: &Exporter) -> Ended {
    let (_, address) = exporter.url.split_once("://").unwrap();
    let mut healthcheck = place.settle(command(binary()));
    healthcheck
        .args(["healthcheck", "--web.config.file", "web.yml"])
        .arg(format!("--web.listen-address={address}"));
    place.run(healthcheck).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_healthcheck_finds_one_that_works_whatever_its_file_says_now() {
    let opsramp = opsramp(1).await;
    let authority = Authority::new();
    let more = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n";
    let place = secure_place(&opsramp, &authority, more);
    let exporter = place.start().await;
    for _ in 0..10 {
        let ended = healthcheck(&place, &exporter).await;
        assert_eq!(ended.code(), Some(0), "{ended:?}");
        assert!(ended.stdout[0].contains("certificate"), "{ended:?}");
    }
    exporter.stop().await;

    let mut place = secure_place(&opsramp, &authority, &users());
    let hash = place
        .text_of("web.yml")
        .split_once("prometheus: ")
        .unwrap()
        .1
        .trim()
        .to_owned();
    let secure = place.text_of("web.yml");
    // A slash would end the host in a URL.
    let password = hash.replace('/', ".");
    place.secrets.extend([hash.clone(), password.clone()]);
    for (right, wrong) in [
        (
            secure,
            format!("basic_auth_users:\n  prometheus: \"{hash}\n"),
        ),
        ("tls_server_config: {}\n".to_owned(), "[".to_owned()),
    ] {
        write(&place, "web.yml", &right);
        let exporter = place.start().await;
        for text in [&right, &wrong] {
            write(&place, "web.yml", text);
            let ended = healthcheck(&place, &exporter).await;
            assert_eq!(ended.stdout, ["healthy"], "{ended:?}");
        }
        std::fs::remove_file(place.path("web.yml")).unwrap();
        let ended = healthcheck(&place, &exporter).await;
        assert_eq!(ended.stdout, ["healthy"], "{ended:?}");
        write(&place, "web.yml", &wrong);
        let url = exporter.url.clone();
        exporter.stop().await;
        // The configuration file and the password in a URL stay secret if nobody answers, too.
        let url = url.replace("://", &format!("://user:{password}@"));
        let mut named = place.settle(command(binary()));
        named.args(["healthcheck", "--url", &url]);
        assert_eq!(place.run(named).await.code(), Some(1));
    }
    let mut named = place.settle(command(binary()));
    named.args([
        "healthcheck",
        "--url",
        &format!("user:{password}@localhost"),
    ]);
    assert_eq!(place.run(named).await.code(), Some(2));
}
