//! TLS: makes an acceptor from certificates, keys and options.

use std::sync::Arc;

use jiff::Timestamp;
use rustls::{
    CipherSuite, ConfigBuilder, NamedGroup, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{
        NoServerSessionStorage, ParsedCertificate, WantsServerCert, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
    version::{TLS12, TLS13},
};
use tokio_rustls::TlsAcceptor;

use super::clients::{AllowedNames, AnyIssuer};
use crate::{pem, secret::Secret, validity::not_after};

macro_rules! by_name {
    ($($suite:ident),*) => { [$((stringify!($suite), CipherSuite::$suite)),*] };
}

/// The cipher suites that can be chosen for TLS 1.2, by their names. Those of TLS 1.3 are always
/// enabled.
pub const CIPHER_SUITES: [(&str, CipherSuite); 6] = by_name![
    TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
];

/// The curves that can be chosen, by their names in the exporter-toolkit.
pub const CURVES: [(&str, NamedGroup); 3] = [
    ("X25519", NamedGroup::X25519),
    ("CurveP256", NamedGroup::secp256r1),
    ("CurveP384", NamedGroup::secp384r1),
];

/// TLS of the web server.
#[derive(Clone, Debug, PartialEq)]
pub struct TlsOptions {
    /// The certificate and its intermediates, PEM.
    pub certificate: String,
    /// The certificate's key, PEM.
    pub key: Secret,
    /// Whether clients must show certificates.
    pub client_auth: ClientAuth,
    /// The issuers of client certificates, PEM.
    pub client_ca: Option<String>,
    /// Alternative names, one of which a client's certificate must have; `None`: any certificate.
    pub client_allowed_sans: Option<Vec<String>>,
    /// The oldest version.
    pub min_version: TlsVersion,
    /// The newest version.
    pub max_version: TlsVersion,
    /// Cipher suites for TLS 1.2 in the order of preference; none: all of [`CIPHER_SUITES`].
    pub cipher_suites: Vec<CipherSuite>,
    /// Curves in the order of preference; none: all of [`CURVES`].
    pub curves: Vec<NamedGroup>,
    /// Whether the server's order of cipher suites counts rather than the client's.
    pub prefer_server_cipher_suites: bool,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2
    Tls12,
    /// 1.3
    Tls13,
}

/// Whether clients must show certificates, and whether these are verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// No certificate is asked for.
    #[default]
    None,
    /// A certificate is asked for, and any certificate is taken.
    Request,
    /// A certificate is required, from any issuer.
    RequireAny,
    /// If a certificate is shown, its issuer must be known.
    VerifyIfGiven,
    /// A certificate of a known issuer is required.
    RequireAndVerify,
}

/// A part of [`TlsOptions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsPart {
    /// The certificate.
    Certificate,
    /// The key.
    Key,
    /// The issuers of client certificates.
    ClientCa,
    /// Versions, cipher suites and curves taken together.
    CipherSuites,
}

/// TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct TlsError {
    /// The part that is wrong.
    pub part: TlsPart,
    /// What is wrong with it, as the end of a sentence.
    pub message: String,
}

// === impl ClientAuth ===

impl ClientAuth {
    /// Whether a client without a certificate is turned away.
    #[must_use]
    pub fn is_mandatory(self) -> bool {
        matches!(self, Self::RequireAny | Self::RequireAndVerify)
    }

    /// Whether the issuer is verified.
    #[must_use]
    pub fn is_verified(self) -> bool {
        matches!(self, Self::VerifyIfGiven | Self::RequireAndVerify)
    }
}

// === impl TlsOptions ===

impl TlsOptions {
    /// Returns the acceptor of connections, with the verifier that [`Self::verifier`] has made.
    pub(super) fn acceptor(
        &self,
        verifier: Option<Arc<dyn ClientCertVerifier>>,
    ) -> Result<TlsAcceptor, TlsError> {
        let builder = self.builder(verifier)?;
        let certificates = certificates(&self.certificate, TlsPart::Certificate)?;
        let key = self.private_key()?;
        let mut config =
            builder
                .with_single_cert(certificates, key)
                .map_err(|error| match error {
                    rustls::Error::InconsistentKeys(_) => {
                        failed(TlsPart::Key, "does not belong to the certificate")
                    }
                    rustls::Error::InvalidCertificate(error) => failed(
                        TlsPart::Certificate,
                        format!("cannot be used: {}", rustls::Error::from(error)),
                    ),
                    other => failed(TlsPart::Key, format!("cannot be used: {other}")),
                })?;
        if self.client_auth.is_verified() {
            // A resumed session shows the certificate of its first handshake again, for ever. Once
            // that certificate has ended, the client would be refused although it has a new one.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        config.ignore_client_order = self.prefer_server_cipher_suites;
        // Clients that prefer HTTP/2 speak HTTP/1.1 as well.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Checks every part except those in `left_out`, which may be missing.
    pub(crate) fn check(&self, left_out: &[TlsPart]) -> Result<(), TlsError> {
        let has = |part| !left_out.contains(&part);
        let verifier = match has(TlsPart::ClientCa) {
            true => self.verifier()?,
            false => None,
        };
        if has(TlsPart::Certificate) && has(TlsPart::Key) {
            return self.acceptor(verifier).map(drop);
        }
        self.builder(verifier)?;
        let unusable = |part| move |error| failed(part, format!("cannot be used: {error}"));
        if has(TlsPart::Certificate) {
            let chain = certificates(&self.certificate, TlsPart::Certificate)?;
            let own = chain.first().map(ParsedCertificate::try_from);
            own.transpose().map_err(unusable(TlsPart::Certificate))?;
        }
        if has(TlsPart::Key) {
            let (key, provider) = (self.private_key()?, self.provider().key_provider);
            let loaded = provider.load_private_key(key);
            loaded.map_err(unusable(TlsPart::Key))?;
        }
        Ok(())
    }

    fn builder(
        &self,
        verifier: Option<Arc<dyn ClientCertVerifier>>,
    ) -> Result<ConfigBuilder<ServerConfig, WantsServerCert>, TlsError> {
        let builder = ServerConfig::builder_with_provider(Arc::new(self.provider()))
            .with_protocol_versions(&self.versions())
            .map_err(|error| failed(TlsPart::CipherSuites, error))?;
        Ok(match verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        })
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(self.key.expose().as_bytes()).map_err(|_| {
            let message = "holds no private key; one in PEM without a passphrase is needed";
            failed(TlsPart::Key, message)
        })
    }

    /// Returns when the server's certificate ends, the first one of the file; `None` if that
    /// cannot be read.
    pub(crate) fn not_after(&self) -> Option<Timestamp> {
        let mut certificates = CertificateDer::pem_slice_iter(self.certificate.as_bytes());
        not_after(&certificates.next()?.ok()?)
    }

    fn provider(&self) -> CryptoProvider {
        let mut provider = ring::default_provider();
        if !self.cipher_suites.is_empty() {
            let all = std::mem::take(&mut provider.cipher_suites);
            let of_tls13 = all.iter().filter(|suite| suite.tls13().is_some());
            let chosen = self
                .cipher_suites
                .iter()
                .filter_map(|wanted| all.iter().find(|suite| suite.suite() == *wanted));
            provider.cipher_suites = of_tls13.chain(chosen).copied().collect();
        }
        if !self.curves.is_empty() {
            let all = std::mem::take(&mut provider.kx_groups);
            let chosen = self
                .curves
                .iter()
                .filter_map(|wanted| all.iter().find(|group| group.name() == *wanted));
            provider.kx_groups = chosen.copied().collect();
        }
        provider
    }

    fn versions(&self) -> Vec<&'static SupportedProtocolVersion> {
        [(TlsVersion::Tls13, &TLS13), (TlsVersion::Tls12, &TLS12)]
            .into_iter()
            .filter(|(version, _)| (self.min_version..=self.max_version).contains(version))
            .map(|(_, version)| version)
            .collect()
    }

    /// Returns the verifier of client certificates; `None` if none are asked for.
    pub(super) fn verifier(&self) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
        let provider = Arc::new(self.provider());
        let mandatory = self.client_auth.is_mandatory();
        let verifier: Arc<dyn ClientCertVerifier> = match self.client_auth {
            ClientAuth::None => return Ok(None),
            ClientAuth::Request | ClientAuth::RequireAny => Arc::new(AnyIssuer {
                mandatory,
                provider,
            }),
            ClientAuth::VerifyIfGiven | ClientAuth::RequireAndVerify => {
                let pem = self.client_ca.as_deref().unwrap_or_default();
                let mut roots = RootCertStore::empty();
                for certificate in certificates(pem, TlsPart::ClientCa)? {
                    roots.add(certificate).map_err(|error| {
                        failed(TlsPart::ClientCa, format!("cannot be used: {error}"))
                    })?;
                }
                let builder =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let builder = if mandatory {
                    builder
                } else {
                    builder.allow_unauthenticated()
                };
                builder
                    .build()
                    .map_err(|error| failed(TlsPart::ClientCa, error))?
            }
        };
        Ok(Some(match &self.client_allowed_sans {
            None => verifier,
            Some(names) => Arc::new(AllowedNames {
                names: names.clone(),
                verifier,
            }),
        }))
    }
}

fn certificates(text: &str, part: TlsPart) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    pem::certificates(text.as_bytes()).map_err(|why| failed(part, why))
}

fn failed(part: TlsPart, message: impl ToString) -> TlsError {
    TlsError {
        part,
        message: message.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::security::tests::{until, with_issuer};

    #[test]
    fn who_verifies_certificates_sees_one_at_every_handshake() {
        let pem = until(3000).tls().unwrap().options.certificate.clone();
        for (client_auth, resumes) in [
            (ClientAuth::None, true),
            (ClientAuth::RequireAny, true),
            (ClientAuth::VerifyIfGiven, false),
            (ClientAuth::RequireAndVerify, false),
        ] {
            let security = with_issuer(client_auth, &pem);
            let config = security.tls().unwrap().acceptor().config();
            assert_eq!(config.send_tls13_tickets > 0, resumes, "{client_auth:?}");
            let remembers = config.session_storage.can_cache();
            assert_eq!(remembers, resumes, "{client_auth:?}");
        }
    }
}
