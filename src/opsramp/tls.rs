//! The HTTP client of an account, and the TLS files that it is made of.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use memchr::memmem;
use rustls::{
    InconsistentKeys,
    pki_types::{PrivateKeyDer, pem::PemObject as _},
};
use secrecy::zeroize::Zeroizing;
use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

use super::{Options, TlsOptions};
use crate::{error_chain::tls_error, pem, reading};

/// The options that name the files, for messages.
const CA_FILE: &str = "tls.ca_file";
const CERT_FILE: &str = "tls.cert_file";
const KEY_FILE: &str = "tls.key_file";
/// What the files of `ca_file` and `cert_file` hold.
const CERTIFICATE: &str = "certificate";

/// What may be wrong if no client can be made.
const SET_UP: &str = "the TLS set-up (are CA certificates installed, and can as many files be opened? \
    else name some with tls.ca_file)";
/// The same, if the account has a key of its own.
const SET_UP_WITH_KEY: &str = "the TLS set-up (tls.key_file has to be RSA of at least 2048 bits, ECDSA on \
    P-256 or P-384, or Ed25519)";

/// The HTTP client in use.
#[derive(Clone, Debug)]
pub(super) struct CurrentClient {
    pub(super) client: reqwest::Client,
    /// The fingerprint of the files that the client was made of.
    pub(super) fingerprint: u64,
    pub(super) checked_at: Instant,
}

/// The contents of the files that an HTTP client is made of.
#[derive(Default)]
pub(super) struct TlsFiles {
    /// The certificates to trust.
    authorities: Option<Vec<u8>>,
    /// Our own certificate and its key.
    identity: Option<Zeroizing<Vec<u8>>>,
}

/// Why a client could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A certificate or key cannot be read.
    #[error("cannot read {what} of account {account}: {}", path.display())]
    Read {
        /// The option that names the file.
        what: &'static str,
        /// The account's name.
        account: Arc<str>,
        /// The file.
        path: PathBuf,
        /// Why the file cannot be read.
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
    /// A file does not hold what it should.
    #[error("{what} of account {account} holds no {part} in PEM: {}", path.display())]
    NoPem {
        /// The option that names the file.
        what: &'static str,
        /// What the file should hold.
        part: &'static str,
        /// The file.
        path: PathBuf,
        /// The account's name.
        account: Arc<str>,
    },
    /// The key is not that of the certificate.
    #[error(
        "{KEY_FILE} of account {account} is not the key of {CERT_FILE}: {}, {}",
        key.display(),
        certificate.display()
    )]
    OtherKey {
        /// The account's name.
        account: Arc<str>,
        /// The file of the key.
        key: PathBuf,
        /// The file of the certificate.
        certificate: PathBuf,
    },
    /// A certificate, key or proxy is not usable.
    #[error("{what} of account {account} is not usable")]
    Unusable {
        /// What is not usable.
        what: &'static str,
        /// The account's name.
        account: Arc<str>,
        /// Why it is not usable.
        #[source]
        source: reqwest::Error,
    },
}

// === impl BuildError ===

impl BuildError {
    /// Whether the exporter may be able to read the file, although it cannot be read here.
    fn may_be_readable_by_exporter(&self) -> bool {
        match self {
            Self::Read { path, source, .. } => reading::is_for_exporter_alone(path, source),
            _ => false,
        }
    }
}

// === impl CurrentClient ===

impl CurrentClient {
    pub(super) fn new(options: &Options, files: TlsFiles) -> Result<Self, BuildError> {
        Ok(Self {
            fingerprint: files.fingerprint(),
            client: http_client(options, files)?,
            checked_at: Instant::now(),
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
    // The client does not retry: what fails is repeated by polling again.
    let mut builder = crate::http_client::builder(&urls)
        .connect_timeout(options.connect_timeout)
        .pool_idle_timeout(Duration::from_secs(90))
        .pool_max_idle_per_host(16)
        .tls_danger_accept_invalid_certs(options.tls.insecure_skip_verify);
    if !options.environment_proxies {
        builder = builder.no_proxy();
    }
    if let (Some(path), Some(pem)) = (&options.tls.ca_file, files.authorities) {
        let nothing = || BuildError::NoPem {
            what: CA_FILE,
            part: CERTIFICATE,
            path: path.clone(),
            account: Arc::clone(&options.name),
        };
        // For a file in another format, the client would only say that it is no text.
        if memmem::find(&pem, b"-----BEGIN ").is_none() {
            return Err(nothing());
        }
        let certificates =
            reqwest::Certificate::from_pem_bundle(&pem).map_err(unusable(CA_FILE))?;
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
    builder.build().map_err(|error| {
        let TlsOptions {
            key_file,
            cert_file,
            ..
        } = &options.tls;
        match (key_file, cert_file) {
            (Some(key), Some(certificate)) if is_of_other_key(&error) => BuildError::OtherKey {
                account: Arc::clone(&options.name),
                key: key.clone(),
                certificate: certificate.clone(),
            },
            _ => unusable(set_up)(error),
        }
    })
}

/// Whether the key and the certificate do not belong together.
fn is_of_other_key(error: &reqwest::Error) -> bool {
    let mismatch = rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch);
    tls_error(error) == Some(&mismatch)
}

/// Checks whether a client can be made of the files that can be read here. A file that only the
/// exporter can read does not prevent the check of the others. Returns the errors of such files.
pub(super) fn check(options: &Options) -> Result<Vec<BuildError>, BuildError> {
    let account = &options.name;
    let mut left = Vec::new();
    let mut read_here = |what, path: &Option<PathBuf>| {
        let Some(path) = path else {
            return Ok(None);
        };
        match read(account, what, path) {
            Err(error) if error.may_be_readable_by_exporter() => {
                left.push(error);
                Ok(None)
            }
            read => read.map(Some),
        }
    };
    let tls = &options.tls;
    let authorities = read_here(CA_FILE, &tls.ca_file)?;
    let certificate = read_here(CERT_FILE, &tls.cert_file)?;
    let key = read_here(KEY_FILE, &tls.key_file)?.map(Zeroizing::new);
    let none_in = |what, part, path: &Option<PathBuf>| BuildError::NoPem {
        what,
        part,
        path: path.clone().unwrap_or_default(),
        account: Arc::clone(account),
    };
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(identity(key, &certificate)),
        (Some(certificate), None) => {
            if pem::certificates(&certificate).is_err() {
                return Err(none_in(CERT_FILE, CERTIFICATE, &tls.cert_file));
            }
            None
        }
        (None, Some(key)) => {
            if PrivateKeyDer::from_pem_slice(&key).is_err() {
                return Err(none_in(KEY_FILE, "private key", &tls.key_file));
            }
            None
        }
        (None, None) => None,
    };
    let files = TlsFiles {
        authorities,
        identity,
    };
    http_client(options, files)?;
    Ok(left)
}

fn read(account: &Arc<str>, what: &'static str, path: &Path) -> Result<Vec<u8>, BuildError> {
    reading::bytes(path).map_err(|source| BuildError::Read {
        what,
        account: Arc::clone(account),
        path: path.to_owned(),
        source,
    })
}

/// Joins a key and its certificate into one text.
fn identity(mut key: Zeroizing<Vec<u8>>, certificate: &[u8]) -> Zeroizing<Vec<u8>> {
    key.push(b'\n');
    key.extend(certificate);
    key
}

// === impl TlsFiles ===

impl TlsFiles {
    pub(super) fn read(account: &Arc<str>, options: &TlsOptions) -> Result<Self, BuildError> {
        let mut files = Self::default();
        if let Some(path) = &options.ca_file {
            files.authorities = Some(read(account, CA_FILE, path)?);
        }
        if let (Some(certificate), Some(key)) = (&options.cert_file, &options.key_file) {
            let key = Zeroizing::new(read(account, KEY_FILE, key)?);
            files.identity = Some(identity(key, &read(account, CERT_FILE, certificate)?));
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

    fn options() -> Options {
        Options::new(
            "acme".into(),
            "https://api.example".to_owned(),
            SecretSource::Value(Secret::new("key")),
            SecretSource::Value(Secret::new("secret")),
        )
    }

    #[test]
    fn what_the_files_have_to_be_is_told_where_they_are_something_else() {
        let mut options = options();
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
    fn a_key_of_another_certificate_is_told_as_that() {
        let mut options = options();
        options.tls.cert_file = Some("our.crt".into());
        options.tls.key_file = Some("our.key".into());
        let key = || rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(["us.example".to_owned()]).unwrap();
        let certificate = params.self_signed(&key()).unwrap().pem();
        let files = TlsFiles {
            authorities: None,
            identity: Some(identity(
                Zeroizing::new(key().serialize_pem().into()),
                certificate.as_bytes(),
            )),
        };
        assert_eq!(
            http_client(&options, files).unwrap_err().to_string(),
            "tls.key_file of account acme is not the key of tls.cert_file: our.key, our.crt"
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
            assert_eq!(
                error.may_be_readable_by_exporter(),
                is_elsewhere,
                "{error:?}"
            );
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
