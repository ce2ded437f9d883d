//! TLS for the database driver, by the TLS library that the rest of the exporter uses.

use std::{
    io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_rustls::client;

use super::address::Trust;
use crate::{pem, reading};

/// Makes TLS handshakes with the server.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    config: Arc<ClientConfig>,
    name: Option<ServerName<'static>>,
}

/// A connection within TLS.
pub(super) struct Stream<S>(client::TlsStream<S>);

/// Accepts any certificate, as `sslmode=require` is defined: the connection is encrypted, but the
/// server's identity is unknown. So it does not matter either who signs the handshake, and the
/// certificate need not even be readable: it may be of version 1, for instance.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

// === impl Connector ===

impl Connector {
    /// Sets TLS up. The error is a text for people.
    pub(super) fn new(trust: &Trust) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = match trust {
            Trust::Anybody => Arc::new(Anybody(Arc::clone(&provider))),
            Trust::Verified { roots: None } => Arc::new(
                rustls_platform_verifier::Verifier::new(Arc::clone(&provider)).map_err(
                    |error| format!("the system's certificates cannot be used: {error}"),
                )?,
            ),
            Trust::Verified { roots: Some(path) } => {
                let roots = Arc::new(roots(path)?);
                WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
                    .build()
                    .map_err(|error| format!("{}: {error}", path.display()))?
            }
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(Self {
            config: Arc::new(config),
            name: None,
        })
    }
}

fn roots(path: &Path) -> Result<RootCertStore, String> {
    let unusable = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let pem = reading::bytes(path).map_err(|error| unusable(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in pem::certificates(&pem).map_err(|why| unusable(&why))? {
        roots.add(certificate).map_err(|error| unusable(&error))?;
    }
    Ok(roots)
}

impl<S> MakeTlsConnect<S> for Connector
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type TlsConnect = Self;
    type Error = std::convert::Infallible;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Self, Self::Error> {
        Ok(Self {
            config: Arc::clone(&self.config),
            // A socket in the file system has no such name, and no TLS.
            name: ServerName::try_from(domain.to_owned()).ok(),
        })
    }
}

impl<S> TlsConnect<S> for Connector
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let name = self.name.ok_or(io::ErrorKind::InvalidInput)?;
            let connector = tokio_rustls::TlsConnector::from(self.config);
            connector.connect(name, stream).await.map(Stream)
        })
    }
}

// === impl Stream ===

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Stream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

// === impl Anybody ===

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::KeyPair;
    use rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::PrivateKeyDer,
        sign::{CertifiedKey, SingleCertAndKey},
        version::{TLS12, TLS13},
    };
    use tokio::io::DuplexStream;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    #[tokio::test]
    async fn where_nothing_is_verified_a_certificate_need_not_even_be_readable() {
        let key = KeyPair::generate().unwrap().serialize_der();
        let key = PrivateKeyDer::try_from(key).unwrap();
        let key = ring::sign::any_supported_type(&key).unwrap();
        for version in [&TLS12, &TLS13] {
            let certificate = CertificateDer::from(b"of another version".to_vec());
            let certified = CertifiedKey::new(vec![certificate], Arc::clone(&key));
            let provider = Arc::new(ring::default_provider());
            let config = ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(&[version])
                .unwrap()
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
            let (client, server) = tokio::io::duplex(1 << 14);
            let mut connector = Connector::new(&Trust::Anybody).unwrap();
            let connector = MakeTlsConnect::<DuplexStream>::make_tls_connect(&mut connector, "db");
            let (client, server) = tokio::join!(
                connector.unwrap().connect(client),
                TlsAcceptor::from(Arc::new(config)).accept(server)
            );
            client.map(drop).unwrap();
            server.map(drop).unwrap();
        }
    }
}
