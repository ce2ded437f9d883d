//! The web configuration file, in the format of the Prometheus exporter-toolkit.
//!
//! It is read together with the certificates that it names, at the start and again whenever
//! somebody connects. Mistakes are told as those of the main configuration are.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::http::{HeaderName, HeaderValue, header};
use parking_lot::Mutex;

use super::{
    ConfigError, Origin, Problem, is_exposed,
    problem::{Inputs, Problems, shown_value},
    read, yaml_of,
};
use crate::web::{
    LoadSecurity, PasswordHash, PasswordMemory, RateLimit, Security, SecurityOptions, TlsError,
    TlsPart,
};

use self::file::File;

mod file;
mod tls;

/// Where a file that cannot be read was named.
const WHAT: &str = "web configuration file (web.config_file, --web.config.file)";

/// Values of `X-Frame-Options`; none: the header is not set.
const FRAME_OPTIONS: [&str; 3] = ["deny", "sameorigin", ""];

/// A web configuration file, and what it said last.
#[derive(Clone, Debug)]
pub struct WebFile {
    path: PathBuf,
    last: Option<(Arc<SecurityOptions>, Arc<Security>)>,
    /// Whoever changes a header or a certificate makes no client unknown.
    memory: PasswordMemory,
}

/// Reads what the file says and what it names.
struct Resolver<'a> {
    problems: Problems,
    /// Relative paths begin here.
    folder: &'a Path,
    warnings: Vec<String>,
}

// === impl WebFile ===

impl WebFile {
    /// The file at `path`; it is not read yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            last: None,
            memory: PasswordMemory::default(),
        }
    }

    /// Reads the file and the certificates that it names; the same [`Security`] again where both
    /// say what they said last.
    ///
    /// # Errors
    /// Where the file cannot be read, and where something in it or in the certificates is wrong.
    pub fn read(&mut self) -> Result<Arc<Security>, ConfigError> {
        self.read_with_warnings().map(|(security, _)| security)
    }

    /// The same, with what should be said about it, a sentence each.
    ///
    /// # Errors
    /// As with [`Self::read`].
    pub fn read_with_warnings(&mut self) -> Result<(Arc<Security>, Vec<String>), ConfigError> {
        let path = self.path.as_path();
        let node = yaml_of(path, &read(WHAT, path)?)?;
        let problem = |place, path: &str, message| Problem {
            origin: Origin::File {
                file: self.path.clone(),
                place,
            },
            path: path.to_owned(),
            message,
        };
        let problems = Problems::default();
        let file: File = node.read(&problems);
        let keys = TlsKeys::of(&file);
        let mut resolver = Resolver {
            problems,
            folder: path.parent().unwrap_or(Path::new("")),
            warnings: Vec::new(),
        };
        let options = resolver.options(file);
        let locate = |path: &str| node.locate(path);
        let list = resolver
            .problems
            .into_list(Some(path), locate, &Inputs::new());
        if !list.is_empty() {
            return Err(ConfigError::Invalid(list));
        }
        let security = match &self.last {
            Some((last, security)) if **last == options => Arc::clone(security),
            _ => Arc::new(Security::new(&options, &self.memory).map_err(|error| {
                let key = keys.name(&error);
                ConfigError::Invalid(vec![problem(locate(key), key, error.message)])
            })?),
        };
        let mut warnings = resolver.warnings;
        if (!options.users.is_empty() || keys.has_inline_key) && is_exposed(path) {
            warnings.push(exposed(path, "holds password hashes or a key"));
        }
        self.last = Some((Arc::new(options), Arc::clone(&security)));
        Ok((security, warnings))
    }

    /// How to speak to a server that has this file. What the file names is not read.
    ///
    /// # Errors
    /// Where the file cannot be read, and where a key or value in it is wrong.
    pub fn scheme(path: &Path) -> Result<&'static str, ConfigError> {
        let node = yaml_of(path, &read(WHAT, path)?)?;
        let problems = Problems::default();
        let file: File = node.read(&problems);
        let list = problems.into_list(Some(path), |key| node.locate(key), &Inputs::new());
        if !list.is_empty() {
            return Err(ConfigError::Invalid(list));
        }
        let tls = file.tls_server_config.unwrap_or_default();
        Ok(if tls == file::Tls::default() {
            "http"
        } else {
            "https"
        })
    }

    /// Turns it into what reads it again and again.
    #[must_use]
    pub fn into_load(self) -> LoadSecurity {
        let known = Mutex::new(self);
        Box::new(move || {
            // What hangs while it reads must not keep others from reading.
            let mut file = known.lock().clone();
            let read = file.read();
            known.lock().last = file.last;
            read.map_err(|error| format!("{:#}", anyhow::Error::new(error)))
        })
    }
}

/// Which keys of the file say what TLS is made of.
#[derive(Clone, Copy, Debug)]
struct TlsKeys {
    has_inline_certificate: bool,
    has_inline_key: bool,
    has_inline_client_ca: bool,
}

impl TlsKeys {
    fn of(file: &File) -> Self {
        let tls = file.tls_server_config.as_ref();
        Self {
            has_inline_certificate: tls.is_some_and(|tls| tls.cert.is_some()),
            has_inline_key: tls.is_some_and(|tls| tls.key.is_some()),
            has_inline_client_ca: tls.is_some_and(|tls| tls.client_ca.is_some()),
        }
    }

    fn name(self, error: &TlsError) -> &'static str {
        match error.part {
            TlsPart::Certificate if self.has_inline_certificate => "tls_server_config.cert",
            TlsPart::Certificate => "tls_server_config.cert_file",
            TlsPart::Key if self.has_inline_key => "tls_server_config.key",
            TlsPart::Key => "tls_server_config.key_file",
            TlsPart::ClientCa if self.has_inline_client_ca => "tls_server_config.client_ca",
            TlsPart::ClientCa => "tls_server_config.client_ca_file",
            TlsPart::CipherSuites => "tls_server_config.cipher_suites",
        }
    }
}

// === impl Resolver ===

impl Resolver<'_> {
    fn options(&mut self, file: File) -> SecurityOptions {
        let users = self.users(file.basic_auth_users.unwrap_or_default());
        let tls = file.tls_server_config.and_then(|tls| self.tls(tls));
        if tls.is_none() && !users.is_empty() {
            self.warnings.push(
                "the web configuration has basic_auth_users and no tls_server_config: passwords cross the network in clear, unless a proxy in front has TLS".to_owned(),
            );
        }
        SecurityOptions {
            tls,
            headers: self.headers(file.http_server_config.unwrap_or_default()),
            users,
            rate_limit: self.rate_limit(file.rate_limit.unwrap_or_default()),
        }
    }

    fn users(
        &self,
        users: BTreeMap<String, crate::secret::Secret>,
    ) -> BTreeMap<String, PasswordHash> {
        let mut hashes = BTreeMap::new();
        for (user, hash) in users {
            let path = format!("basic_auth_users.{}", super::problem::shown_key(&user));
            if user.contains(':') {
                self.problems
                    .add(&path, "a user's name cannot have a colon in it");
            }
            match hash.expose().parse() {
                Ok(hash) => {
                    hashes.insert(user, hash);
                }
                Err(error) => self.problems.add(&path, format!("{error}")),
            }
        }
        hashes
    }

    fn headers(&self, http: file::Http) -> Vec<(HeaderName, HeaderValue)> {
        // Without HTTP/2 there is nothing to be switched off.
        let _http2 = http.http2;
        let headers = http.headers.unwrap_or_default();
        let of = |name: &str, value: Option<&String>, allowed: &[&str]| {
            let value = value?;
            let path = format!("http_server_config.headers.{name}");
            if !allowed.is_empty() && !allowed.contains(&value.as_str()) {
                let words = allowed.iter().filter(|word| !word.is_empty());
                let words: Vec<&str> = words.copied().collect();
                let message = format!(
                    "\"{}\" is not one of {}",
                    shown_value(value),
                    words.join(", ")
                );
                self.problems.add(path, message);
                return None;
            }
            HeaderValue::from_str(value)
                .map_err(|_| self.problems.add(path, "must be one line of text"))
                .ok()
        };
        [
            (
                header::CONTENT_SECURITY_POLICY,
                "Content-Security-Policy",
                &headers.content_security_policy,
                &[] as &[&str],
            ),
            (
                header::X_FRAME_OPTIONS,
                "X-Frame-Options",
                &headers.x_frame_options,
                &FRAME_OPTIONS,
            ),
            (
                header::X_CONTENT_TYPE_OPTIONS,
                "X-Content-Type-Options",
                &headers.x_content_type_options,
                &["nosniff", ""],
            ),
            (
                header::X_XSS_PROTECTION,
                "X-XSS-Protection",
                &headers.x_xss_protection,
                &[],
            ),
            (
                header::STRICT_TRANSPORT_SECURITY,
                "Strict-Transport-Security",
                &headers.strict_transport_security,
                &[],
            ),
        ]
        .into_iter()
        .filter_map(|(header, name, value, allowed)| {
            Some((header, of(name, value.as_ref(), allowed)?))
        })
        .collect()
    }

    fn rate_limit(&self, limit: file::RateLimit) -> Option<RateLimit> {
        let interval = limit.interval.map(|interval| interval.0)?;
        if interval.is_zero() {
            return None;
        }
        let burst = limit.burst.unwrap_or_default();
        if burst == 0 {
            self.problems.add(
                "rate_limit.burst",
                "must be at least 1, or no request is ever answered",
            );
        }
        Some(RateLimit { interval, burst })
    }
}

/// What is said of a file that others than its owner and group can read.
fn exposed(path: &Path, what: &str) -> String {
    format!(
        "{}: {what}, and every user of this machine can read it; take the right away (chmod o-r), and hand it to a systemd service with LoadCredential= (docs/security.md)",
        path.display()
    )
}

#[cfg(test)]
mod tests;
