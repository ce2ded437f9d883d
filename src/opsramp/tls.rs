//! The HTTP client of an account, and the files of TLS that it is made of.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use memchr::memmem;
use secrecy::zeroize::Zeroizing;
use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

use super::{Options, TlsOptions};
use crate::reading;

/// What may be wrong where no client can be made.
const SET_UP: &str = "the TLS set-up (are CA certificates installed, and can as many files be opened? \
    else name some with tls.ca_file)";
/// The same with a key of one's own.
const SET_UP_WITH_KEY: &str = "the TLS set-up (tls.key_file has to be RSA of at least 2048 bits, ECDSA on \
    P-256 or P-384, or Ed25519)";

/// Where systemd puts the credentials of a service.
const CREDENTIALS: &str = "/run/credentials";

/// The HTTP client in use.
#[derive(Clone, Debug)]
pub(super) struct Current {
    pub(super) client: reqwest::Client,
    /// Of the files that it was made of.
    pub(super) fingerprint: u64,
    pub(super) looked_at: Instant,
}

/// The files that an HTTP client is made of.
#[derive(Default)]
pub(super) struct TlsFiles {
    /// Whom to trust.
    authorities: Option<Vec<u8>>,
    /// Our own certificate and its key.
    identity: Option<Zeroizing<Vec<u8>>>,
}

/// The client could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A certificate or key cannot be read.
    #[error("cannot read {what} of account {account}: {}", path.display())]
    Read {
        /// What.
        what: &'static str,
        /// The account's name.
        account: Arc<str>,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Certificates and keys cannot be read for now: one of the files does not answer.
    #[error("the files of tls of account {account} {}", reading::unread(paths))]
    Unread {
        /// The account's name.
        account: Arc<str>,
        /// The files.
        paths: Vec<PathBuf>,
    },
    /// A file that should say whom to trust names nobody.
    #[error("tls.ca_file of account {account} holds no certificate in PEM: {}", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
        /// The account's name.
        account: Arc<str>,
    },
    /// A certificate, key or proxy is not usable.
    #[error("{what} of account {account} is not usable")]
    Unusable {
        /// What.
        what: &'static str,
        /// The account's name.
        account: Arc<str>,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
}

// === impl BuildError ===

impl BuildError {
    /// The file that another user can read all the same, or that is not there yet: systemd hands
    /// credentials to the service alone, while it runs.
    pub(crate) fn unreadable_here(&self) -> Option<&Path> {
        match self {
            Self::Read { path, source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => Some(path),
                io::ErrorKind::NotFound if path.starts_with(CREDENTIALS) => Some(path),
                _ => None,
            },
            _ => None,
        }
    }
}

// === impl Current ===

impl Current {
    pub(super) fn new(options: &Options, files: TlsFiles) -> Result<Self, BuildError> {
        Ok(Self {
            fingerprint: files.fingerprint(),
            client: http_client(options, files)?,
            looked_at: Instant::now(),
        })
    }
}

fn http_client(options: &Options, files: TlsFiles) -> Result<reqwest::Client, BuildError> {
    let unusable = |what| {
        let account = Arc::clone(&options.name);
        move |source: reqwest::Error| BuildError::Unusable {
            what,
            account,
            source: source.without_url(),
        }
    };
    let proxy = options.proxy_url.as_ref().map(|proxy| proxy.0.expose());
    let urls = [options.url.as_str(), &options.token_url];
    let urls: Vec<&str> = urls.into_iter().chain(proxy).collect();
    // What fails is repeated by polling again.
    let mut builder = crate::http_client::builder(&urls)
        .connect_timeout(options.connect_timeout)
        .pool_idle_timeout(Duration::from_secs(90))
        .pool_max_idle_per_host(16)
        .tls_danger_accept_invalid_certs(options.tls.insecure_skip_verify);
    if !options.environment_proxies {
        builder = builder.no_proxy();
    }
    if let (Some(path), Some(pem)) = (&options.tls.ca_file, files.authorities) {
        let nothing = || BuildError::NoCertificate {
            path: path.clone(),
            account: Arc::clone(&options.name),
        };
        // Of another form, the client only says that it is no text.
        if memmem::find(&pem, b"-----BEGIN ").is_none() {
            return Err(nothing());
        }
        let certificates =
            reqwest::Certificate::from_pem_bundle(&pem).map_err(unusable("tls.ca_file"))?;
        if certificates.is_empty() {
            return Err(nothing());
        }
        builder = builder.tls_certs_only(certificates);
    }
    let mut set_up = SET_UP;
    if let Some(pem) = files.identity {
        let identity = reqwest::Identity::from_pem(&pem).map_err(unusable(
            "tls.cert_file or tls.key_file (both have to be in PEM)",
        ))?;
        set_up = SET_UP_WITH_KEY;
        builder = builder.identity(identity);
    }
    if let Some(proxy) = proxy {
        let proxy = reqwest::Proxy::all(proxy).map_err(unusable("proxy_url"))?;
        builder = builder.proxy(proxy);
    }
    builder.build().map_err(unusable(set_up))
}

// === impl TlsFiles ===

impl TlsFiles {
    pub(super) fn read(account: &Arc<str>, options: &TlsOptions) -> Result<Self, BuildError> {
        let read = |what, path: &PathBuf| {
            reading::bytes(path).map_err(|source| BuildError::Read {
                what,
                account: Arc::clone(account),
                path: path.clone(),
                source,
            })
        };
        let mut files = Self::default();
        if let Some(path) = &options.ca_file {
            files.authorities = Some(read("tls.ca_file", path)?);
        }
        if let (Some(certificate), Some(key)) = (&options.cert_file, &options.key_file) {
            let mut pem = Zeroizing::new(read("tls.key_file", key)?);
            pem.push(b'\n');
            pem.extend(read("tls.cert_file", certificate)?);
            files.identity = Some(pem);
        }
        Ok(files)
    }

    pub(super) fn fingerprint(&self) -> u64 {
        let mut hash = Xxh3::new();
        for part in [
            self.authorities.as_deref(),
            self.identity.as_ref().map(|pem| &***pem),
        ] {
            hash.update(&[u8::from(part.is_some())]);
            hash.update(part.unwrap_or_default());
        }
        hash.digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{Secret, SecretSource};

    #[test]
    fn what_the_files_have_to_be_is_told_where_they_are_something_else() {
        let mut options = Options::new(
            "acme".into(),
            "https://api.example".to_owned(),
            SecretSource::Value(Secret::new("key")),
            SecretSource::Value(Secret::new("secret")),
        );
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(["api.example".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        options.tls.ca_file = Some("ca.pem".into());
        let told = |files| http_client(&options, files).unwrap_err().to_string();
        let as_der = TlsFiles {
            authorities: Some(certificate.der().to_vec()),
            identity: None,
        };
        let text = told(as_der);
        assert!(text.contains("no certificate in PEM: ca.pem"), "{text}");
        let pair_of = |key: &str| TlsFiles {
            authorities: Some(certificate.pem().into_bytes()),
            identity: Some(Zeroizing::new(format!("{key}{}", certificate.pem()).into())),
        };
        assert!(http_client(&options, pair_of(&key.serialize_pem())).is_ok());
        let text = told(pair_of(""));
        assert!(text.contains("both have to be in PEM"), "{text}");
        let other = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";
        let text = told(pair_of(other));
        assert!(
            text.contains("has to be RSA of at least 2048 bits"),
            "{text}"
        );
    }

    #[test]
    fn what_the_service_alone_can_read_is_told_from_what_is_missing() {
        let error = |kind: io::ErrorKind, path: &str| BuildError::Read {
            what: "tls.key_file",
            account: "acme".into(),
            path: path.into(),
            source: kind.into(),
        };
        let (denied, missing) = (io::ErrorKind::PermissionDenied, io::ErrorKind::NotFound);
        let handed_over = "/run/credentials/opsramp-exporter.service/tls.key";
        for (kind, path, is_elsewhere) in [
            (denied, "/etc/tls.key", true),
            (denied, handed_over, true),
            (missing, handed_over, true),
            (missing, "/etc/tls.key", false),
            (io::ErrorKind::IsADirectory, handed_over, false),
        ] {
            let error = error(kind, path);
            let expected = is_elsewhere.then_some(Path::new(path));
            assert_eq!(error.unreadable_here(), expected, "{error:?}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_with_its_key_and_account() {
        let options = TlsOptions {
            ca_file: Some("/nowhere/ca.pem".into()),
            ..TlsOptions::default()
        };
        let error = TlsFiles::read(&"acme".into(), &options).err().unwrap();
        assert_eq!(
            error.to_string(),
            "cannot read tls.ca_file of account acme: /nowhere/ca.pem"
        );
    }
}
