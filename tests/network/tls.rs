//! A server whose certificate is wrong, or which does not get as far as showing one. No byte of
//! the secret is sent there.

use std::{net::SocketAddr, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    ALERTS, check_recovery,
    exporter::{Place, Signal, opsramp},
    failures,
    proxy::{End, Proxy, Weather},
    wait_until_it_fails,
};

/// An authority that signs certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A server that decrypts and passes on; without a certificate, it passes on without decrypting.
struct Terminator {
    address: SocketAddr,
    shown: watch::Sender<Option<Arc<ServerConfig>>>,
}

// === impl Authority ===

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(parameters, key),
            pem,
        }
    }

    fn certificate(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new([name.to_owned()]).unwrap();
        change(&mut parameters);
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap()
    }

    fn good(&self) -> ServerConfig {
        self.certificate("127.0.0.1", |_| {})
    }
}

// === impl Terminator ===

impl Terminator {
    async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shown, receiver) = watch::channel(None);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, server, receiver.clone()));
            }
        });
        Self { address, shown }
    }

    /// Shows another certificate from now on. Connections that saw the last one are closed.
    fn show(&self, config: Option<ServerConfig>) {
        self.shown.send_replace(config.map(Arc::new));
    }
}

async fn serve(
    mut client: TcpStream,
    server: SocketAddr,
    mut shown: watch::Receiver<Option<Arc<ServerConfig>>>,
) {
    let config = shown.borrow_and_update().clone();
    let passing = async {
        let mut server = TcpStream::connect(server).await?;
        match config {
            Some(config) => {
                let mut client = TlsAcceptor::from(config).accept(client).await?;
                copy_bidirectional(&mut client, &mut server).await
            }
            None => copy_bidirectional(&mut client, &mut server).await,
        }
    };
    // The result is ignored: the tests are about clients that refuse the certificate.
    tokio::select! {
        _ = passing => {}
        _ = shown.changed() => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_tls_is_told_and_got_over_and_nothing_secret_goes_there() {
    let opsramp = opsramp(ALERTS).await;
    let terminator = Terminator::start(opsramp.addr()).await;
    let proxy = Proxy::start(terminator.address).await;
    let authority = Authority::new();
    terminator.show(Some(authority.good()));
    let mut place = Place::new(&format!("https://{}", proxy.address)).with_file_sink();
    std::fs::write(place.path("ca.pem"), &authority.pem).unwrap();
    place.config["accounts"][0]["tls"]["ca_file"] = "ca.pem".into();
    // It covers the handshake.
    place.config["accounts"][0]["connect_timeout"] = "3s".into();
    let exporter = place.start().await;
    exporter.wait_until_complete().await;

    let expired = |parameters: &mut CertificateParams| {
        parameters.not_before = date_time_ymd(2020, 1, 1);
        parameters.not_after = date_time_ymd(2020, 2, 1);
    };
    let early = |parameters: &mut CertificateParams| {
        parameters.not_before = date_time_ymd(2900, 1, 1);
    };
    let stranger = Authority::new();
    let cut = Weather::Cut {
        within: 500,
        end: End::Reset,
    };
    let good = || Some(authority.good());
    let cases = [
        (
            "no authority that it trusts",
            Some(stranger.good()),
            Weather::Fair,
            "connect",
        ),
        (
            "a name of somebody else",
            Some(authority.certificate("10.9.8.7", |_| {})),
            Weather::Fair,
            "connect",
        ),
        (
            "a certificate that has expired",
            Some(authority.certificate("127.0.0.1", expired)),
            Weather::Fair,
            "connect",
        ),
        (
            "a certificate that is not valid yet",
            Some(authority.certificate("127.0.0.1", early)),
            Weather::Fair,
            "connect",
        ),
        ("no TLS at all", None, Weather::Fair, "connect"),
        ("a handshake that is cut", good(), cut, "connect"),
        (
            "a handshake that nobody answers",
            good(),
            Weather::Silent,
            "timeout",
        ),
    ];
    for (name, shown, weather, reason) in cases {
        proxy.set(weather);
        terminator.show(shown);
        // Polls under way may still succeed.
        exporter
            .wait_for(name, |metrics| metrics.one("opsramp_up{") == Some(0.0))
            .await;
        let before = exporter.metrics().await;
        let before = wait_until_it_fails(&exporter, reason, &before).await;
        // By now the server has received the requests that were on their way.
        let asked = opsramp.requests().total;
        exporter
            .wait_for("the next poll fails", |metrics| {
                failures(metrics, reason) > failures(&before, reason)
            })
            .await;
        assert_eq!(
            opsramp.requests().total,
            asked,
            "{name}: something went through"
        );
        proxy.set(Weather::Fair);
        terminator.show(Some(authority.good()));
        check_recovery(&exporter, &place, &opsramp).await;
    }
    exporter.stop().await;
}

/// An authority is replaced, and its certificate with it.
#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_was_replaced_on_disk_is_trusted_without_a_restart() {
    let opsramp = opsramp(ALERTS).await;
    let terminator = Terminator::start(opsramp.addr()).await;
    let (first, second) = (Authority::new(), Authority::new());
    terminator.show(Some(first.good()));
    let mut place = Place::new(&format!("https://{}", terminator.address)).with_file_sink();
    std::fs::write(place.path("ca.pem"), &first.pem).unwrap();
    place.config["accounts"][0]["tls"]["ca_file"] = "ca.pem".into();
    let exporter = place.start().await;
    exporter.wait_until_complete().await;

    let before = exporter.metrics().await;
    terminator.show(Some(second.good()));
    wait_until_it_fails(&exporter, "connect", &before).await;
    std::fs::write(place.path("ca.pem"), &second.pem).unwrap();
    check_recovery(&exporter, &place, &opsramp).await;

    // A reload reports whether the file is usable.
    std::fs::write(place.path("ca.pem"), "").unwrap();
    exporter.signal(Signal::HUP);
    let refused = "tls.ca_file of account default holds no certificate";
    exporter.stderr.line(|line| line.contains(refused)).await;
    check_recovery(&exporter, &place, &opsramp).await;
    std::fs::write(place.path("ca.pem"), &second.pem).unwrap();
    exporter.reload(&place).await;
    exporter.stop().await;
}
