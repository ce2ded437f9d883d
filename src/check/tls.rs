//! The TLS handshake, and what is wrong with a certificate, in words.
//!
//! It trusts the same authorities as the HTTP client. The verifier notes the certificate's end
//! when it sees the certificate, so that the end can be reported even if certificates are not
//! checked.

use std::{io, path::Path, sync::Arc, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, InconsistentKeys, InvalidMessage,
    RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio_rustls::TlsConnector;

use super::{
    SILENT_FILE,
    network::{Connection, Endpoint},
    report::{Outcome, Passed, Trouble},
};
use crate::{
    opsramp::TlsOptions,
    pem, reading,
    validity::{Ending, days, not_after},
};

/// Maximum number of a certificate's names that are shown.
const SHOWN: usize = 4;

/// Verifies like another verifier, and keeps what it saw.
#[derive(Debug)]
struct Watching {
    verifier: Arc<dyn ServerCertVerifier>,
    accept_anything: bool,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    not_after: Option<Timestamp>,
    refusal: Option<Error>,
}

/// Shakes hands with `endpoint` over `connection`.
pub(super) async fn shake_hands(
    endpoint: &Endpoint,
    connection: Connection,
    options: &TlsOptions,
    limit: Duration,
    now: Timestamp,
) -> Outcome<Connection> {
    let set_up =
        |cause: String| Trouble::new(cause, "look at ca_file, cert_file and key_file under tls");
    let read = {
        let options = options.clone();
        reading::once(move || {
            let watching = watching(&options)?;
            let config = config(&options, Arc::clone(&watching))?;
            Ok((watching, config))
        })
    };
    let unread = || {
        let files: Vec<_> = options.files().cloned().collect();
        let cause = format!("the files of tls {}", reading::unread(&files));
        Err(Trouble::new(cause, SILENT_FILE))
    };
    let read = read.await.map(|read| read.map_err(set_up));
    let (watching, config) = read.unwrap_or_else(unread)?;
    let name = ServerName::try_from(endpoint.host.clone()).map_err(|_| {
        Trouble::new(
            format!(
                "{} is not a name that a certificate can have",
                endpoint.host
            ),
            "correct the host in the URL",
        )
    })?;
    let shaking = TlsConnector::from(Arc::new(config)).connect(name, connection);
    let stream = match tokio::time::timeout(limit, shaking).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(trouble(endpoint, &error, now)),
        Err(_) => {
            return Err(Trouble::new(
                format!("no answer within {}", humantime::format_duration(limit)),
                "look whether a firewall or a proxy holds TLS up, and whether the port is right",
            ));
        }
    };
    let session = stream.get_ref().1;
    let version = match session.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLS 1.3",
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLS 1.2",
        _ => "TLS",
    };
    let mut seen = watching.seen.lock();
    let (refusal, not_after) = (seen.refusal.take(), seen.not_after);
    drop(seen);
    let left = not_after.map(|end| end.duration_since(now));
    let validity = match left {
        Some(left) => format!("the certificate is valid for {}", days(left)),
        None => "the certificate does not tell its end".to_owned(),
    };
    let connection: Connection = Box::new(stream);
    if options.insecure_skip_verify {
        let found = format!("{version}, the certificate is not checked");
        return Ok(Passed::new(connection, found).with_concern(match refusal {
            Some(refusal) => format!(
                "anybody could answer in the server's place; without insecure_skip_verify: {}",
                trouble(endpoint, &io::Error::other(refusal), now).cause
            ),
            None => "the certificate is good: take insecure_skip_verify away".to_owned(),
        }));
    }
    let passed = Passed::new(connection, format!("{version}, {validity}"));
    Ok(match not_after.and_then(|end| Ending::of(end, now)) {
        Some(_) => passed.with_concern("the certificate ends soon; its owner has to renew it"),
        None => passed,
    })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn watching(options: &TlsOptions) -> Result<Arc<Watching>, String> {
    let verifier: Arc<dyn ServerCertVerifier> = match &options.ca_file {
        None => Arc::new(
            rustls_platform_verifier::Verifier::new(provider())
                .map_err(|error| format!("the system's certificates cannot be used: {error}"))?,
        ),
        Some(path) => {
            let unusable = |why: String| format!("{}: {why}", path.display());
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots
                    .add(certificate)
                    .map_err(|error| unusable(error.to_string()))?;
            }
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
                .build()
                .map_err(|error| unusable(error.to_string()))?
        }
    };
    Ok(Arc::new(Watching {
        verifier,
        accept_anything: options.insecure_skip_verify,
        seen: Mutex::default(),
    }))
}

fn config(options: &TlsOptions, watching: Arc<Watching>) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(watching);
    let mut config = match (&options.cert_file, &options.key_file) {
        (Some(certificate), Some(key)) => {
            let chain = certificates(certificate)?;
            let secret = PrivateKeyDer::from_pem_slice(&read(key)?)
                .map_err(|_| format!("{}: holds no private key in PEM form", key.display()))?;
            builder
                .with_client_auth_cert(chain, secret)
                .map_err(|error| match error {
                    Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => format!(
                        "{} is not the key of {}",
                        key.display(),
                        certificate.display()
                    ),
                    error => format!("{}: {error}", certificate.display()),
                })?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    pem::certificates(&read(path)?).map_err(|why| format!("{}: {why}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    reading::bytes(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// Says what a failed handshake means for a person who sets the exporter up.
fn trouble(endpoint: &Endpoint, error: &io::Error, now: Timestamp) -> Trouble {
    let Some(error) = error
        .get_ref()
        .and_then(|cause| cause.downcast_ref::<Error>())
    else {
        return Trouble::new(
            format!("the server ends the connection during the handshake ({error})"),
            "look whether the port is one for https, and whether a firewall or a proxy on the \
             way refuses the connection",
        );
    };
    match error {
        Error::InvalidCertificate(error) => certificate_trouble(endpoint, error, now),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => Trouble::new(
            format!("{endpoint} does not speak TLS at all"),
            "look whether the port is right; where the server speaks plain HTTP, the URL starts \
             with http://",
        ),
        Error::AlertReceived(alert) => Trouble::new(
            format!("the server refuses the handshake ({alert:?})"),
            "look whether the server knows this host's name, speaks TLS 1.2 or 1.3, and wants \
             a certificate of ours (tls.cert_file and tls.key_file)",
        ),
        Error::PeerIncompatible(_) => Trouble::new(
            format!("no way to encrypt that both sides know ({error})"),
            "the server has to offer TLS 1.2 or 1.3 with a present-day cipher",
        ),
        error => Trouble::new(
            error.to_string(),
            "look whether the port is one for https, and what stands between here and there",
        ),
    }
}

fn certificate_trouble(endpoint: &Endpoint, error: &CertificateError, now: Timestamp) -> Trouble {
    let clock = format!("the clock here says {now:.0}; where that is wrong, set it");
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            let since = match error {
                CertificateError::ExpiredContext { not_after, .. } => {
                    let ago = now.duration_since(time(*not_after, now));
                    format!(" {} ago", days(ago))
                }
                _ => String::new(),
            };
            Trouble::new(
                format!("the certificate of {} has expired{since}", endpoint.host),
                format!("{clock}; else its owner has to renew the certificate"),
            )
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            let until = match error {
                CertificateError::NotValidYetContext { not_before, .. } => {
                    format!(
                        " for another {}",
                        days(time(*not_before, now).duration_since(now))
                    )
                }
                _ => String::new(),
            };
            Trouble::new(
                format!(
                    "the certificate of {} is not valid yet{until}",
                    endpoint.host
                ),
                format!("{clock}; else its owner has to replace the certificate"),
            )
        }
        // The signature is bad if two authorities have the same name, such as an old and a renewed
        // one.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Trouble::new(
            format!(
                "the certificate of {} is from an issuer that is not trusted here",
                endpoint.host
            ),
            "where a company's own authority or a proxy that opens TLS signs it, name the \
             authority's certificate in tls.ca_file; else install the package ca-certificates",
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            let names = match error {
                CertificateError::NotValidForNameContext { presented, .. } => {
                    let mut names: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
                    if names.len() > SHOWN {
                        names.truncate(SHOWN);
                        names.push("others");
                    }
                    format!(", but for {}", names.join(", "))
                }
                _ => String::new(),
            };
            Trouble::new(
                format!("the certificate is not for {}{names}", endpoint.host),
                "write the host in the URL as the certificate has it, and look whether the name \
                 leads to the right server",
            )
        }
        CertificateError::Revoked => Trouble::new(
            format!("the certificate of {} was revoked", endpoint.host),
            "its owner has to replace it",
        ),
        // `openssl req -x509` makes such certificates by default. The verifier's own error is not
        // public, but its name is.
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            Trouble::new(
                format!(
                    "the certificate of {} is that of an authority, most likely self-signed",
                    endpoint.host
                ),
                "let the server have one that an authority has signed, or one that is self-signed \
                 but no authority (openssl req -x509 -addext basicConstraints=critical,CA:FALSE), \
                 and name that in tls.ca_file",
            )
        }
        error => Trouble::new(
            format!(
                "the certificate of {} is not usable: {error}",
                endpoint.host
            ),
            "its owner has to replace it",
        ),
    }
}

/// Returns a name without what surrounds it when the verifier shows it, as in
/// `DnsName("a.example")`.
fn bare(name: &str) -> &str {
    name.split('"').nth(1).unwrap_or(name)
}

fn time(at: UnixTime, now: Timestamp) -> Timestamp {
    let seconds = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(now)
}

// === impl Watching ===

impl ServerCertVerifier for Watching {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self
            .verifier
            .verify_server_cert(certificate, chain, name, ocsp, now);
        let mut seen = self.seen.lock();
        seen.not_after = not_after(certificate);
        if self.accept_anything {
            seen.refusal = verified.err();
            return Ok(ServerCertVerified::assertion());
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.accept_anything {
            return Ok(HandshakeSignatureValid::assertion());
        }
        self.verifier
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if self.accept_anything {
            return Ok(HandshakeSignatureValid::assertion());
        }
        self.verifier
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
