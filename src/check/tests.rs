use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use jiff::{SignedDuration, tz::TimeZone};
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    config::{Account, Config, State, WebOverrides},
    deliver::{OtlpOptions, SinkOptions, Target},
    identity::Tenant,
    opsramp::{self, ProxyUrl},
    poll::SearchOptions,
    ports::keep_a_port,
    secret::{Secret, SecretSource},
    simulator::{
        Allowance, DEMO_KEY, DEMO_SECRET, DEMO_TENANT, Endpoint, Fault, FaultRule, Options,
        Oversized, Simulator, TenantOptions,
    },
};

/// Returns an account's options, with a change.
pub(super) fn options(url: &str, change: impl FnOnce(&mut opsramp::Options)) -> opsramp::Options {
    let mut options = opsramp::Options {
        timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(5),
        max_response_size: 1 << 20,
        ..opsramp::Options::new(
            "acme".into(),
            url.to_owned(),
            SecretSource::Value(Secret::new(DEMO_KEY)),
            SecretSource::Value(Secret::new(DEMO_SECRET)),
        )
    };
    change(&mut options);
    options
}

fn tenant(id: &str) -> Tenant {
    Tenant {
        id: id.into(),
        name: id.into(),
    }
}

/// A set-up with its state in a folder of its own.
struct Setup {
    config: Config,
    folder: tempfile::TempDir,
}

impl Setup {
    fn new(url: &str, change: impl FnOnce(&mut opsramp::Options)) -> Self {
        let account = Account {
            options: options(url, change),
            tenants: vec![tenant(DEMO_TENANT)],
            discover_clients: false,
        };
        let mut config = Config::for_account(account, &WebOverrides::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        config.state = State::File { path };
        Self { config, folder }
    }

    /// Returns whether every step passed, and the report without what differs between machines.
    async fn check(&self) -> (bool, String) {
        let loaded = Loaded {
            config: self.config.clone(),
            file: None,
            warnings: Vec::new(),
            overridden: None,
        };
        let mut out = Vec::new();
        let passed = run(&loaded, &mut out).await.unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(!text.contains(DEMO_SECRET), "{text}");
        let folder = self.folder.path().display().to_string();
        let lines = text.replace(&folder, "FOLDER");
        let lines = lines.lines().filter(|line| !line.contains("root may"));
        (passed, lines.map(|line| format!("{line}\n")).collect())
    }

    /// Returns the failed step with what to do next. Exactly one step must fail.
    async fn failure(&self) -> (String, String) {
        let (passed, text) = self.check().await;
        assert!(!passed, "{text}");
        let mut lines = text.lines().skip_while(|line| !line.starts_with("FAILED"));
        let failed = lines.next().unwrap().to_owned();
        let next = lines.next().unwrap().trim().to_owned();
        assert_eq!(text.matches("FAILED").count(), 1, "{text}");
        assert!(next.starts_with("next: "), "{text}");
        (failed, next)
    }
}

async fn simulator(change: impl FnOnce(&mut Options)) -> Simulator {
    let mut options = Options {
        life: None,
        tenants: vec![world(DEMO_TENANT, None, 12)],
        ..Options::default()
    };
    change(&mut options);
    Simulator::start(options, "127.0.0.1:0").await.unwrap()
}

fn world(id: &str, partner: Option<&str>, alerts: usize) -> TenantOptions {
    TenantOptions {
        id: id.to_owned(),
        name: None,
        partner: partner.map(str::to_owned),
        alerts,
    }
}

fn rule(fault: Fault, endpoint: Endpoint) -> FaultRule {
    FaultRule {
        endpoint: Some(endpoint),
        ..FaultRule::always(fault)
    }
}

/// Replaces every number, and the rest of a token's life, by an N.
fn without_numbers(text: &str) -> String {
    let mut plain = String::new();
    for character in text.chars() {
        if !character.is_ascii_digit() {
            plain.push(character);
        } else if !plain.ends_with('N') {
            plain.push('N');
        }
    }
    plain
        .replace("Nh Nm Ns", "Nh")
        .replace("N.N.N.N", "ADDRESS")
        .replace("GiB", "MiB")
}

#[tokio::test]
async fn a_set_up_that_works_passes_every_step() {
    let simulator = simulator(|_| {}).await;
    let setup = Setup::new(&simulator.url(), |_| {});
    let (passed, text) = setup.check().await;
    insta::assert_snapshot!(without_numbers(&text), @r"
    ok       configuration: from flags and the environment, N account, N tenant, N search, N sink
    ok       account acme, credentials: the key is set, the secret is set
    ok       account acme, DNS of ADDRESS: not needed, it is an address
    ok       account acme, TCP to ADDRESS:N: connected to ADDRESS:N in N ms
    ok       account acme, TLS with ADDRESS:N: none, the URL starts with http://
    ok       account acme, token: in N ms, valid for Nh, scope global:manage
    ok       account acme, clock: N s apart from the server's
    ok       account acme, tenant client_N: N alerts match actions:OPEN, N a page, N of N requests a minute left
    ok       state: FOLDER/state.db is new, its folder can be written to, N MiB free
    ok       sink stdout: standard output
    all N steps passed
    ");
    assert!(passed);
    assert_eq!(simulator.requests().count(Endpoint::Search), 1);
    assert_eq!(std::fs::read_dir(setup.folder.path()).unwrap().count(), 0);
}

/// A certificate authority of the tests.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        let names = &mut parameters.distinguished_name;
        names.push(rcgen::DnType::CommonName, name);
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(parameters, key),
            pem,
        }
    }

    fn file(&self, folder: &Path) -> Option<std::path::PathBuf> {
        let path = folder.join("ca.pem");
        std::fs::write(&path, &self.pem).unwrap();
        Some(path)
    }

    /// Starts a server that decrypts and passes on to `target`. Returns its URL.
    async fn before(
        &self,
        target: SocketAddr,
        change: impl FnOnce(&mut CertificateParams),
    ) -> String {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        change(&mut parameters);
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((plain, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    if let Ok(mut client) = acceptor.accept(plain).await {
                        let mut server = TcpStream::connect(target).await.unwrap();
                        tokio::io::copy_bidirectional(&mut client, &mut server)
                            .await
                            .ok();
                    }
                });
            }
        });
        url
    }
}

/// Lets a certificate be valid until so many days from now.
fn valid_until(days: i64) -> impl Fn(&mut CertificateParams) {
    let (year, month, day) = days_from_now(days);
    move |parameters| parameters.not_after = rcgen::date_time_ymd(year, month, day)
}

/// Returns the date so many days from now, in the form for making certificates.
fn days_from_now(days: i64) -> (i32, u8, u8) {
    let at = crate::clock::now() + SignedDuration::from_hours(24 * days);
    let date = TimeZone::UTC.to_datetime(at);
    let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
    (i32::from(date.year()), month, day)
}

#[tokio::test]
async fn tls_with_an_authority_of_the_company_passes() {
    let simulator = simulator(|_| {}).await;
    let authority = Authority::new("ours");
    let url = authority.before(simulator.addr(), |_| {}).await;
    let mut setup = Setup::new(&url, |_| {});
    setup.config.accounts[0].options.tls.ca_file = authority.file(setup.folder.path());
    let (passed, text) = setup.check().await;
    assert!(passed, "{text}");
    assert!(
        text.contains(": TLS 1.3, the certificate is valid for 7"),
        "{text}"
    );

    let url = authority.before(simulator.addr(), valid_until(5)).await;
    let mut setup = Setup::new(&url, |_| {});
    setup.config.accounts[0].options.tls.ca_file = authority.file(setup.folder.path());
    let (passed, text) = setup.check().await;
    assert!(passed && text.contains("valid for 4 days\n"), "{text}");
    assert!(
        text.contains("warning: the certificate ends soon"),
        "{text}"
    );
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_named() {
    let simulator = simulator(|_| {}).await;
    let (authority, stranger) = (Authority::new("ours"), Authority::new("theirs"));
    let early = |parameters: &mut CertificateParams| {
        let (year, month, day) = days_from_now(10);
        parameters.not_before = rcgen::date_time_ymd(year, month, day);
    };
    let misnamed = |parameters: &mut CertificateParams| {
        let other = CertificateParams::new(["other.example".to_owned()]).unwrap();
        parameters.subject_alt_names = other.subject_alt_names;
    };
    let addr = simulator.addr();
    let self_signed = |parameters: &mut CertificateParams| {
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    };
    let cases = [
        (
            authority.before(addr, self_signed).await,
            "is that of an authority, most likely self-signed",
            "tls.ca_file",
        ),
        (
            authority.before(addr, valid_until(-10)).await,
            "has expired 10 days ago",
            "the clock here says",
        ),
        (
            authority.before(addr, early).await,
            "is not valid yet for another 9 days",
            "the clock",
        ),
        (
            authority.before(addr, misnamed).await,
            "is not for 127.0.0.1, but for other.example",
            "write the host in the URL as the certificate has it",
        ),
        (
            stranger.before(addr, |_| {}).await,
            "is from an issuer that is not trusted here",
            "tls.ca_file",
        ),
    ];
    for (url, told, advice) in cases {
        let mut setup = Setup::new(&url, |_| {});
        setup.config.accounts[0].options.tls.ca_file = authority.file(setup.folder.path());
        let (failed, next) = setup.failure().await;
        assert!(failed.contains(told), "{failed}");
        assert!(next.contains(advice), "{next}");

        setup.config.accounts[0].options.tls.insecure_skip_verify = true;
        let (passed, text) = setup.check().await;
        assert!(
            passed && text.contains("the certificate is not checked"),
            "{text}"
        );
        assert!(
            text.contains("without insecure_skip_verify: ") && text.contains(told),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_mistake_in_the_files_of_tls_is_told_once() {
    let simulator = simulator(|_| {}).await;
    let authority = Authority::new("ours");
    let url = authority.before(simulator.addr(), |_| {}).await;
    let mut setup = Setup::new(&url, |_| {});
    let file = |name: &str| Some(setup.folder.path().join(name));
    let (missing, certificate, key) = (file("no.pem"), file("our.crt"), file("our.key"));
    let pair = || KeyPair::generate().unwrap();
    let parameters = CertificateParams::new(["us.example".to_owned()]).unwrap();
    let ours = parameters.self_signed(&pair()).unwrap().pem();
    std::fs::write(certificate.as_ref().unwrap(), ours).unwrap();
    std::fs::write(key.as_ref().unwrap(), pair().serialize_pem()).unwrap();

    setup.config.accounts[0].options.tls.ca_file = missing.clone();
    let (failed, next) = setup.failure().await;
    assert!(failed.contains(", TLS with 127.0.0.1:"), "{failed}");
    assert!(failed.contains("cannot read FOLDER/no.pem"), "{failed}");
    assert!(next.contains("look at ca_file"), "{next}");

    let tls = &mut setup.config.accounts[0].options.tls;
    tls.ca_file = authority.file(setup.folder.path());
    (tls.cert_file, tls.key_file) = (certificate, key);
    let (failed, _) = setup.failure().await;
    let told = ": FOLDER/our.key is not the key of FOLDER/our.crt";
    assert!(failed.ends_with(told), "{failed}");

    // Without TLS, the daemon needs the files all the same.
    let mut setup = Setup::new(&simulator.url(), |_| {});
    setup.config.accounts[0].options.tls.ca_file = missing;
    let (failed, _) = setup.failure().await;
    let told = "account acme, token: cannot read tls.ca_file of account acme: ";
    assert!(failed.contains(told), "{failed}");
}

#[tokio::test]
async fn plain_http_where_https_is_expected_is_named() {
    let simulator = simulator(|_| {}).await;
    let url = simulator.url().replace("http://", "https://");
    let setup = Setup::new(&url, |_| {});
    let (failed, next) = setup.failure().await;
    assert!(failed.ends_with("does not speak TLS at all"), "{failed}");
    assert!(next.contains("http://"), "{next}");
}

#[tokio::test]
async fn a_closed_port_is_named_and_the_rest_is_skipped() {
    let (address, _kept) = keep_a_port();
    let setup = Setup::new(&format!("http://{address}"), |_| {});
    let (passed, text) = setup.check().await;
    assert!(!passed);
    assert!(
        text.contains(&format!("FAILED   account acme, TCP to {address}: ")),
        "{text}"
    );
    for step in ["TLS", "token", "clock", "tenant"] {
        let skipped = format!("skipped  account acme, {step}");
        assert!(text.contains(&skipped), "{step}: {text}");
    }
    assert!(text.contains("ok       state: "), "{text}");
    assert!(
        text.ends_with("1 of 10 steps failed, 4 skipped\n"),
        "{text}"
    );
}

#[tokio::test]
async fn a_name_without_an_address_is_named() {
    let setup = Setup::new("https://no-such-host.invalid", |_| {});
    let (failed, next) = setup.failure().await;
    assert!(
        failed.starts_with("FAILED   account acme, DNS of no-such-host.invalid: "),
        "{failed}"
    );
    assert!(next.contains("getent hosts no-such-host.invalid"), "{next}");
}

#[tokio::test]
async fn a_proxy_that_cannot_be_reached_is_what_the_advice_is_about() {
    let (closed, _kept) = keep_a_port();
    for proxy in ["no-such-proxy.invalid:1", &closed.to_string()] {
        let setup = Setup::new("https://api.example", |options| {
            let url = Secret::new(format!("http://{proxy}"));
            options.proxy_url = Some(ProxyUrl(url));
        });
        let (failed, next) = setup.failure().await;
        assert!(
            failed.contains(proxy.split(':').next().unwrap()),
            "{failed}"
        );
        assert!(
            next.contains(" in proxy_url ") && !next.contains("set "),
            "{next}"
        );
    }
}

#[tokio::test]
async fn why_there_is_no_token_is_told_apart() {
    let other = simulator(|_| {}).await;
    let simulator = simulator(|_| {}).await;
    let wrong = Setup::new(&simulator.url(), |options| {
        options.client_secret = SecretSource::Value(Secret::new("hush-hush"));
    });
    let (failed, next) = wrong.failure().await;
    assert!(failed.contains("rejects the credentials (401)"), "{failed}");
    assert!(!failed.contains("hush") && !next.contains("hush"));
    assert!(next.contains("compare key and secret"), "{next}");
    assert!(failed.contains("the token endpoint rejects"), "{failed}");

    let elsewhere = Setup::new(&simulator.url(), |options| {
        let url = other.url().replace("http://", "http://ann:hunter2@");
        options.token_url = format!("{url}/auth/oauth/token?key=hunter2");
        options.client_secret = SecretSource::Value(Secret::new("hush-hush"));
    });
    let (failed, _) = elsewhere.failure().await;
    let host = other.url().replace("http://", "");
    let named = format!("the token endpoint of {host} rejects the credentials (401)");
    assert!(
        failed.contains(&named) && !failed.contains("hunter2"),
        "{failed}"
    );

    for (padded, doubt) in [
        ("hush-hush ", "begins or ends with white space"),
        ("\thush-hush", "begins or ends with white space"),
        ("hush-hush\n", "begins or ends with white space"),
        ("hush\nhush", "has several lines"),
        ("'hush-hush'", "begins or ends with a quotation mark"),
        ("${HUSH}", "is a variable"),
    ] {
        let wrong = Setup::new(&simulator.url(), |options| {
            options.client_secret = SecretSource::Value(Secret::new(padded));
        });
        let (failed, next) = wrong.failure().await;
        assert!(failed.contains("rejects the credentials (401)"), "{failed}");
        let advice = format!("next: the secret {doubt}");
        assert!(next.starts_with(&advice), "{next}");
        assert!(!failed.contains("hush") && !next.contains("hush"));
    }

    let missing = Setup::new(&simulator.url(), |options| {
        options.client_secret = SecretSource::File("/no/such/secret".into());
    });
    let (failed, _) = missing.failure().await;
    assert!(
        failed.starts_with(
            "FAILED   account acme, credentials: cannot read the secret file /no/such/secret: "
        ),
        "{failed}"
    );

    let unit = Setup::new(&simulator.url(), |options| {
        let path = "/run/credentials/no-such.service/client-secret";
        options.client_secret = SecretSource::File(path.into());
    });
    let (_, next) = unit.failure().await;
    assert!(next.contains("while the service runs"), "{next}");
    assert!(next.contains("OPSRAMP_CLIENT_SECRET_FILE"), "{next}");

    let elsewhere = Setup::new(&simulator.url(), |options| {
        options.token_url.push_str("/nowhere");
    });
    let (failed, next) = elsewhere.failure().await;
    assert!(failed.contains("token answered 404"), "{failed}");
    assert!(next.contains("/tenancy/auth/oauth/token"), "{next}");

    simulator.inject(rule(Fault::Html, Endpoint::Token));
    let (failed, next) = Setup::new(&simulator.url(), |_| {}).failure().await;
    assert!(failed.contains("no token answer"), "{failed}");
    assert!(next.contains("a login page"), "{next}");
}

#[tokio::test]
async fn a_tenant_that_is_unknown_deactivated_or_forbidden_is_told_apart() {
    let simulator = simulator(|_| {}).await;
    let mut setup = Setup::new(&simulator.url(), |_| {});
    setup.config.accounts[0].tenants = vec![tenant("client_404"), tenant(DEMO_TENANT)];
    let (failed, next) = setup.failure().await;
    assert!(failed.starts_with("FAILED   account acme, tenant client_404: search answered 404"));
    assert!(
        next.contains("look whether there is a tenant client_404"),
        "{next}"
    );

    setup.config.accounts[0].tenants = vec![tenant(DEMO_TENANT)];
    for (code, advice) in [
        (403, "give the integration a role that may view alerts"),
        (410, "is deactivated"),
        (302, "set url to where the redirect leads"),
        (
            400,
            "look at the query (actions:OPEN) of the search open: key:value",
        ),
        (407, "of the same OpsRamp instance"),
        (429, "wait a minute"),
        (503, "try again in some minutes"),
    ] {
        let fault = Fault::status(code);
        let number = simulator.inject(rule(fault, Endpoint::Search));
        let (failed, next) = setup.failure().await;
        assert!(failed.contains(&code.to_string()), "{failed}");
        assert!(next.contains(advice), "{code}: {next}");
        simulator.remove_fault(number);
    }
}

#[tokio::test]
async fn every_query_is_asked_once_though_each_tenant_is_asked_for_its_first_search_alone() {
    let simulator = simulator(|options| {
        options.tenants = vec![world("client_a", None, 12), world("client_b", None, 3)];
    })
    .await;
    let mut setup = Setup::new(&simulator.url(), |_| {});
    let config = &mut setup.config;
    config.accounts[0].tenants = vec![
        tenant("client_none"),
        tenant("client_a"),
        tenant("client_b"),
    ];
    let ids = |ids: &[&str]| Some(ids.iter().map(ToString::to_string).collect());
    config.searches[0].tenants = ids(&["client_a", "client_b"]);
    let mut search = |name: &str, query: &str, tenants| {
        config.searches.push(SearchOptions {
            name: name.into(),
            query: query.to_owned(),
            tenants,
            ..config.searches[0].clone()
        });
    };
    // The first one of `client_none`, which cannot answer for it.
    search("info", "states:Info", ids(&["client_none", "client_b"]));
    search("again", "actions:OPEN", None);
    search("bad", "bogus", None);
    search("bad-too", "bogus", ids(&["client_b"]));
    search("critical", "states:Critical", ids(&["client_b"]));
    search("out-of-reach", "states:Warning", ids(&["client_none"]));
    search("of-nobody", "states:Ok", ids(&["client_c"]));
    let (passed, text) = setup.check().await;
    assert!(!passed);
    let lines = text
        .lines()
        .skip_while(|line| !line.contains("client_none"));
    let lines = lines.filter(|line| !line.contains("next: look whether there is"));
    let lines = lines.take_while(|line| !line.contains("state:"));
    let lines: String = lines.map(|line| format!("{line}\n")).collect();
    insta::assert_snapshot!(without_numbers(&lines), @r#"
    FAILED   account acme, tenant client_none: search answered N: {"code":"N","message":"no tenant \"client_none\""}
    ok       account acme, tenant client_a: N alerts match actions:OPEN, N a page, N of N requests a minute left
    ok       account acme, tenant client_b: N alerts match actions:OPEN, N a page, N of N requests a minute left
    ok       account acme, tenant client_b, search info: N alerts match states:Info, N a page, N of N requests a minute left
    FAILED   account acme, tenant client_a, search bad: search answered N: {"code":"N","message":"invalid value \"bogus\" of queryString"}
             next: look at the query (bogus) of the search bad: key:value pairs that OpsRamp knows, joined by +
    ok       account acme, tenant client_b, search critical: N alert matches states:Critical, N a page, N of N requests a minute left
    skipped  account acme, tenant client_none, search out-of-reach: needs tenant client_none
    ok       search of-nobody: nothing is asked
             warning: neither a tenant of an account nor an activated client: client_c; correct the ids of its tenants
    "#);
    // The refused query is asked three times: as the daemon does, the refusal may pass, or be about
    // the paging.
    assert_eq!(simulator.requests().count(Endpoint::Search), 3 + 1 + 3 + 1);
}

#[tokio::test]
async fn an_answer_that_is_cut_short_is_told_from_one_of_something_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let is_token_cut = Arc::new(AtomicBool::new(false));
    let cuts_token = Arc::clone(&is_token_cut);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            let is_token = request[..length].starts_with(b"POST ");
            let cut = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"results\": [";
            let token = r#"{"access_token": "a", "expires_in": 7200}"#;
            let whole = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{token}");
            let is_cut = !is_token || cuts_token.load(Ordering::Relaxed);
            let answer = if is_cut { cut } else { &whole };
            stream.write_all(answer.as_bytes()).await.ok();
        }
    });
    for (cuts_token, what) in [(false, "search"), (true, "token")] {
        is_token_cut.store(cuts_token, Ordering::Relaxed);
        let (failed, next) = Setup::new(&url, |_| {}).failure().await;
        let told = format!("{what} answered with a body that ends too early");
        assert!(failed.ends_with(&told), "{failed}");
        assert!(next.contains("the connection was cut"), "{next}");
    }
}

#[tokio::test]
async fn a_clock_that_is_off_is_a_warning() {
    for (ahead, told) in [
        (90, "s behind the server's"),
        (-90, "s ahead of the server's"),
    ] {
        let simulator = simulator(|options| options.clock_skew = ahead).await;
        let (passed, text) = Setup::new(&simulator.url(), |_| {}).check().await;
        assert!(passed && text.contains(told), "{text}");
        assert!(text.contains("warning: set the clock"), "{text}");
    }
}

#[tokio::test]
async fn the_clients_of_a_partner_are_counted_and_searched() {
    let simulator = simulator(|options| {
        options.tenants = vec![
            world("msp_1", None, 0),
            world("client_5", Some("msp_1"), 3),
            world("client_6", Some("msp_1"), 4),
        ];
        options.allowance = Allowance::unlimited();
    })
    .await;
    let mut setup = Setup::new(&simulator.url(), |_| {});
    setup.config.accounts[0].tenants = vec![tenant("msp_1")];
    setup.config.accounts[0].discover_clients = true;
    let (passed, text) = setup.check().await;
    assert!(passed, "{text}");
    assert!(
        text.contains("clients of msp_1: 2, 2 of them activated"),
        "{text}"
    );
    assert!(
        text.contains("(client_5): 3 alerts match actions:OPEN"),
        "{text}"
    );
    assert!(
        text.contains("(client_6): 4 alerts match actions:OPEN"),
        "{text}"
    );
    assert!(!text.contains("tenant msp_1"), "{text}");

    let config = &mut setup.config;
    let search = |name: &str, id: &str| SearchOptions {
        name: name.into(),
        tenants: Some(vec![id.to_owned()]),
        ..config.searches[0].clone()
    };
    let mut searches = ["client_6", "client_7", "client_6"].map(|id| search(id, id));
    searches[2].name = "both".into();
    searches[2]
        .tenants
        .as_mut()
        .unwrap()
        .push("client_8".to_owned());
    config.searches.extend(searches);
    let (passed, text) = setup.check().await;
    assert!(passed, "{text}");
    let lines = text
        .lines()
        .skip_while(|line| !line.contains("search client_7"));
    let lines: Vec<_> = lines.take(4).collect();
    insta::assert_snapshot!(lines.join("\n"), @"
    ok       search client_7: nothing is asked
             warning: neither a tenant of an account nor an activated client: client_7; correct the ids of its tenants
    ok       search both: is asked of 1 of its 2 tenants
             warning: neither a tenant of an account nor an activated client: client_8; correct the ids of its tenants
    ");
    assert!(!text.contains("search client_6"), "{text}");

    // Of tenants that were picked, a search may be for some only.
    setup.config.tenants_are_picked = true;
    let (_, text) = setup.check().await;
    let told = "nor an activated client: client_7; pick others";
    assert!(
        text.contains(told) && !text.contains("search both"),
        "{text}"
    );
}

/// Sets up a partner whose lists of clients are these, with a search of a client that it does not
/// have.
async fn partner(clients: impl Fn() -> serde_json::Value + Clone + Send + Sync + 'static) -> Setup {
    let answer = async move |uri: http::Uri| {
        let answer = match uri.path() {
            path if path.ends_with("/token") => serde_json::json!({"access_token": "t"}),
            path if path.ends_with("/clients/search") => clients(),
            _ => serde_json::json!({"results": [], "totalResults": 0}),
        };
        answer.to_string()
    };
    let mut setup = Setup::new(&serve(answer).await, |_| {});
    let config = &mut setup.config;
    config.accounts[0].discover_clients = true;
    config.searches.push(SearchOptions {
        name: "typo".into(),
        tenants: Some(vec!["client_7".to_owned()]),
        ..config.searches[0].clone()
    });
    setup
}

#[tokio::test]
async fn ids_are_called_wrong_only_where_all_clients_are_known() {
    // The server shows one of its clients, and counts as many.
    for (counts, active, told) in [
        (1, true, "search typo: nothing is asked"),
        (3, true, "the server counts 2 more clients than it shows"),
        (1, false, "no client is activated"),
    ] {
        let client = serde_json::json!({"uniqueId": "client_1", "activated": active});
        let clients = serde_json::json!({"results": [client], "totalResults": counts});
        let setup = partner(move || clients.clone()).await;
        let (passed, text) = setup.check().await;
        assert!(passed && text.contains(told), "{text}");
        // A search for all clients names no id that could be wrong.
        let is_asked = !text.contains("search open: nothing");
        assert!(is_asked, "{text}");
        let is_called_wrong = text.contains("search typo: nothing is asked");
        assert_eq!(is_called_wrong, counts == 1, "{text}");
    }
}

#[tokio::test]
async fn clients_are_looked_up_as_the_daemon_does() {
    let client = |id: String| serde_json::json!({"uniqueId": id});
    let one = || client("client_1".to_owned());
    let many = move |page: usize| (0..6_000).map(move |n| client(format!("client_{page}_{n}")));
    for (shown, counts, requests, found, warning, is_typo_told) in [
        // The page comes again and again, as if there were always a next one.
        (
            vec![one(), client("client_2".to_owned())],
            2,
            2,
            "2, 2 of them activated",
            None,
            true,
        ),
        (
            vec![one(), serde_json::json!({"name": "Without an id"})],
            2,
            2,
            "1, 1 of them activated",
            Some("the server lists 1 items that cannot be read as clients; they are not searched"),
            true,
        ),
        // One page, which shows a client twice in the place of another one.
        (
            vec![one(), one()],
            2,
            1,
            "1, 1 of them activated",
            Some("the server counts 1 more clients than it shows; give the integration a role"),
            false,
        ),
        // An exporter searches no more, and does not look for more.
        (
            Vec::new(),
            13_000,
            2,
            "at least 12000, 12000 of them activated; the first 5 are searched here",
            None,
            false,
        ),
    ] {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let clients = move || {
            // A server that repeats its page for ever shall not hold the test up.
            let before = count.fetch_add(1, Ordering::Relaxed);
            let results = if shown.is_empty() {
                many(before).collect()
            } else {
                shown.clone()
            };
            let (total, next) = (counts, requests > 1 && before < 9);
            serde_json::json!({"results": results, "totalResults": total, "nextPage": next})
        };
        let setup = partner(clients).await;
        let (passed, text) = setup.check().await;
        assert!(passed, "{text}");
        let line = format!("clients of {DEMO_TENANT}: {found}\n");
        let (_, after) = text.split_once(&line).expect(&text);
        let after = after.trim_start();
        match warning {
            Some(warning) => assert!(after.starts_with(&format!("warning: {warning}")), "{text}"),
            None => assert!(!after.starts_with("warning"), "{text}"),
        }
        let is_told = text.contains("search typo: nothing is asked");
        assert_eq!(is_told, is_typo_told, "{text}");
        assert_eq!(asked.load(Ordering::Relaxed), requests, "{text}");
    }
}

#[tokio::test]
async fn a_proxy_is_gone_through_as_the_daemon_does() {
    let simulator = simulator(|_| {}).await;
    let authority = Authority::new("ours");
    let url = authority.before(simulator.addr(), |_| {}).await;
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = proxy.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = proxy.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.split(' ').nth(1).unwrap();
                let mut server = TcpStream::connect(target).await.unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                tokio::io::copy_bidirectional(&mut client, &mut server)
                    .await
                    .ok();
            });
        }
    });
    let mut setup = Setup::new(&url, |options| {
        let proxy = Secret::new(format!("http://me:pass-word@{address}"));
        options.proxy_url = Some(ProxyUrl(proxy));
    });
    setup.config.accounts[0].options.tls.ca_file = authority.file(setup.folder.path());
    let (passed, text) = setup.check().await;
    assert!(passed && !text.contains("pass-word"), "{text}");
    assert!(
        text.contains(&format!("proxy: {address} (from proxy_url)")),
        "{text}"
    );
    assert!(
        text.contains("tunnel: the proxy opens one to 127.0.0.1:"),
        "{text}"
    );
}

#[tokio::test]
async fn a_daemon_that_runs_beside_is_no_failure() {
    let simulator = simulator(|_| {}).await;
    let setup = Setup::new(&simulator.url(), |_| {});
    let options = crate::store::Options::Sqlite {
        path: setup.folder.path().join("state.db"),
        journal_limit: crate::store::JOURNAL_LIMIT,
    };
    let store = crate::store::Store::open(&options).await.unwrap();
    let (passed, text) = setup.check().await;
    let told = format!("state.db is in use by process {}, ", std::process::id());
    let line = text.lines().find(|line| line.contains(&told)).unwrap();
    assert!(passed && line.ends_with(" free"), "{text}");
    store.close().await;
}

#[tokio::test]
async fn a_state_that_cannot_be_opened_comes_with_advice() {
    let simulator = simulator(|_| {}).await;
    let mut setup = Setup::new(&simulator.url(), |_| {});
    let path = setup.folder.path().join("no/state.db");
    setup.config.state = State::File { path };
    let (failed, next) = setup.failure().await;
    assert!(
        failed.ends_with("no/state.db: its folder FOLDER/no does not exist"),
        "{failed}"
    );
    assert!(next.starts_with("next: create it"), "{next}");
}

/// Returns a sink with a receiver at a URL.
fn sink_to(url: &str) -> SinkOptions {
    SinkOptions {
        name: "one".into(),
        target: Target::Otlp(OtlpOptions {
            endpoint: format!("{url}/v1/logs"),
            headers: [(
                "authorization".to_owned(),
                SecretSource::Value(Secret::new("hush-hush")),
            )]
            .into(),
            gzip: true,
            timeout: Duration::from_secs(5),
        }),
    }
}

/// Starts a receiver that gives every request this answer. Returns its URL.
async fn receiver(
    answer: impl axum::response::IntoResponse + Clone + Send + Sync + 'static,
) -> String {
    serve(async move || answer).await
}

/// Starts a server with this handler of every request. Returns its URL.
async fn serve<T: 'static>(handler: impl axum::handler::Handler<T, ()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = axum::Router::new().fallback(handler);
    tokio::spawn(async { axum::serve(listener, router).await });
    format!("http://{address}")
}

#[tokio::test]
async fn sinks_that_cannot_work_are_named() {
    let simulator = simulator(|_| {}).await;
    let mut setup = Setup::new(&simulator.url(), |_| {});
    let file = SinkOptions {
        name: "one".into(),
        target: Target::File {
            path: setup.folder.path().join("no/alerts.jsonl"),
            format: crate::deliver::Format::Json,
        },
    };
    let (closed, _kept) = keep_a_port();
    for (sink, told, advice) in [
        (file, "cannot be written to", "create the folder"),
        (
            sink_to(&format!("http://{closed}")),
            "refused",
            "look whether the receiver runs",
        ),
        (
            sink_to(&simulator.url()),
            "answered 404",
            "the endpoint's path",
        ),
    ] {
        setup.config.sinks = vec![sink];
        let (failed, next) = setup.failure().await;
        assert!(
            failed.starts_with("FAILED   sink one: ") && failed.contains(told),
            "{failed}"
        );
        assert!(next.contains(advice) && !failed.contains("hush"), "{next}");
    }
}

#[tokio::test]
async fn why_a_receiver_is_not_reached_is_told_apart() {
    let simulator = simulator(|_| {}).await;
    let mut setup = Setup::new(&simulator.url(), |_| {});
    let authority = Authority::new("unknown");
    let unknown = authority.before(simulator.addr(), |_| {});
    let unknown = unknown.await;
    let without_tls = unknown.replace("https://", "http://");
    let hangs_up = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hung_up = format!("http://{}", hangs_up.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = hangs_up.accept().await.unwrap();
            // The connection is reset because it is closed with unread bytes.
            _ = stream.read(&mut [0; 8]).await;
        }
    });
    let plain = simulator.url().replace("http://", "https://");
    for (url, told, advice) in [
        (
            unknown,
            "UnknownIssuer",
            "it then counts for OpsRamp and the database, too",
        ),
        (
            without_tls,
            "cannot reach",
            "the endpoint starts with https://",
        ),
        (hung_up, "cannot reach", "the endpoint starts with https://"),
        (plain, "cannot reach", "the endpoint starts with http://"),
        (
            "http://no-such-host.invalid".to_owned(),
            "cannot reach",
            "getent hosts",
        ),
    ] {
        setup.config.sinks = vec![sink_to(&url)];
        let (failed, next) = setup.failure().await;
        assert!(failed.contains(told), "{failed}");
        assert!(next.contains(advice), "{next}");
        assert!(!next.contains("firewall"), "{next}");
    }
}

#[tokio::test]
async fn a_receiver_that_expects_tls_and_says_so_is_told_from_a_wrong_path() {
    let simulator = simulator(|_| {}).await;
    let mut setup = Setup::new(&simulator.url(), |_| {});
    for words in [
        "Client sent an HTTP request to an HTTPS server.\n",
        "<html><title>400 The plain HTTP request was sent to HTTPS port</title></html>",
    ] {
        let url = receiver((http::StatusCode::BAD_REQUEST, words)).await;
        setup.config.sinks = vec![sink_to(&url)];
        let (failed, next) = setup.failure().await;
        assert!(failed.contains("for it expects TLS: "), "{failed}");
        assert_eq!(next, "next: let the endpoint start with https://");
    }
}

/// The answers are successes by their status, but the sink would not accept them.
#[tokio::test]
async fn a_receiver_that_answers_what_no_receiver_says_fails_as_its_sink_would() {
    let simulator = simulator(|_| {}).await;
    let mut setup = Setup::new(&simulator.url(), |_| {});
    for (content_type, body, told) in [
        (
            "text/html",
            "<html>Please log in</html>",
            "with a page of HTML",
        ),
        (
            "application/json",
            r#"{"status":"error","message":"unauthorised"}"#,
            "with JSON that is no answer to an export",
        ),
    ] {
        let url = receiver(([(http::header::CONTENT_TYPE, content_type)], body)).await;
        setup.config.sinks = vec![sink_to(&url)];
        let (failed, next) = setup.failure().await;
        assert!(
            failed.contains("200 OK") && failed.contains(told),
            "{failed}"
        );
        assert!(next.contains("the endpoint's path"), "{next}");
    }
}

#[test]
fn a_wrong_configuration_is_told_whole() {
    let overrides = crate::config::Overrides {
        url: Some("ftp://x".to_owned()),
        ..crate::config::Overrides::default()
    };
    let error = Config::load(None, &overrides, &|_| None).unwrap_err();
    let mut out = Vec::new();
    refuse(error, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.starts_with("FAILED   configuration: "), "{text}");
    assert!(text.contains("must start with https://"), "{text}");
    assert!(text.ends_with("1 of 1 step failed, 0 skipped\n"), "{text}");
}

/// The daemon does the same.
#[tokio::test]
async fn less_is_asked_for_where_the_server_refuses_the_paging_and_a_passing_400_is_none() {
    let simulator = simulator(|options| {
        options.max_page_size = 200;
        options.oversized = Oversized::Reject;
    })
    .await;
    let mut setup = Setup::new(&simulator.url(), |_| {});
    let bad_request = Fault::status(400);
    simulator.inject(FaultRule::next(1, Endpoint::Search, bad_request));
    let (passed, text) = setup.check().await;
    assert!(passed && !text.contains("refuses"), "{text}");
    setup.config.searches[0].page_size = 500;
    let (passed, text) = setup.check().await;
    let told = "the server refuses page_size 500, so that 100 are asked for";
    assert!(passed && text.contains(told), "{text}");
}

#[tokio::test]
async fn the_end_of_the_web_servers_own_certificate_is_told() {
    let simulator = simulator(|_| {}).await;
    let mut setup = Setup::new(&simulator.url(), |_| {});
    let write = |name: &str, text: &str| {
        std::fs::write(setup.folder.path().join(name), text).unwrap();
    };
    let renew = |days: i64| {
        let mut parameters = CertificateParams::new(["localhost".to_owned()]).unwrap();
        valid_until(days)(&mut parameters);
        let key = KeyPair::generate().unwrap();
        write("server.crt", &parameters.self_signed(&key).unwrap().pem());
        write("server.key", &key.serialize_pem());
    };
    setup.config.web.config_file = Some(setup.folder.path().join("web.yml"));
    write("web.yml", "tls_server_config: {}\n");
    let (passed, text) = setup.check().await;
    assert!(passed && !text.contains("web server"), "{text}");

    let tls = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n";
    write("web.yml", tls);
    renew(100);
    let (passed, text) = setup.check().await;
    let line = "ok       web server: TLS, the certificate is valid for 99 days\n";
    assert!(passed && text.contains(line), "{text}");
    assert!(!text.contains("ends soon"), "{text}");
    renew(5);
    let (passed, text) = setup.check().await;
    let line =
        "certificate is valid for 4 days\n         warning: the certificate ends soon; renew it";
    assert!(passed && text.contains(line), "{text}");
    renew(-10);
    let (failed, next) = setup.failure().await;
    let line = "FAILED   web server: the certificate of the web server has expired 10 days ago";
    assert_eq!(failed, line);
    assert!(next.contains("the clock here says"), "{next}");
}
