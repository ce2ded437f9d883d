//! The web configuration file, in the format of the Prometheus exporter-toolkit.
//!
//! The file is read together with the certificates that it names, at the start and again when
//! clients connect or ask, at most once a second. Mistakes are reported like those of the main
//! configuration.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::http::{HeaderName, HeaderValue, header};
use jiff::Timestamp;
use parking_lot::Mutex;

use super::{
    ConfigError, Origin, Problem, is_exposed,
    problem::{Inputs, Problems, shown_value},
    read, yaml, yaml_of,
};
use crate::{
    error_chain::chain,
    web::{
        LoadSecurity, PasswordHash, PasswordMemory, RateLimit, Security, SecurityOptions, TlsError,
        TlsPart,
    },
};

use self::file::File;

mod file;
mod tls;

/// What messages call the file if it cannot be read, with where it was named.
const WHAT: &str = "web configuration file (web.config_file, --web.config.file)";

/// Allowed values of `X-Frame-Options`; with an empty value the header is not set.
const FRAME_OPTIONS: [&str; 3] = ["deny", "sameorigin", ""];

/// A web configuration file, with what it said when it was last read.
#[derive(Clone, Debug)]
pub struct WebFile {
    path: PathBuf,
    last: Option<(Arc<SecurityOptions>, Arc<Security>)>,
    /// Passwords that were right. They outlive a change of a header or a certificate, so that such
    /// a change makes no client unknown.
    memory: PasswordMemory,
}

/// The result of checking a web configuration file outside of the exporter.
#[derive(Debug, Default)]
pub(crate) struct CheckedWebFile {
    /// Warnings about the file, a sentence each.
    pub(crate) warnings: Vec<String>,
    /// Why the file, or a file that it names, cannot be read here although the exporter may be
    /// able to read it.
    pub(crate) left: Vec<String>,
    /// Whether there is a certificate of the server that could be read.
    pub(crate) has_certificate: bool,
    /// When the certificate ends; `None` if it does not say.
    pub(crate) certificate_end: Option<Timestamp>,
}

/// Who reads the files that the web configuration file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// The exporter, which needs all of them.
    Exporter,
    /// Another process. It may find files that only the exporter can read.
    Other,
}

/// Reads what the file says and the files that it names.
struct Resolver<'a> {
    problems: Problems,
    /// The folder that relative paths begin in.
    folder: &'a Path,
    warnings: Vec<String>,
    reader: Reader,
    /// Parts of TLS whose files are left to the exporter.
    left: Vec<Left>,
}

/// A part of TLS that cannot be read here.
#[derive(Debug)]
struct Left {
    part: TlsPart,
    why: String,
}

/// What the file says, with the content of the files that it names.
struct Resolved<'a> {
    path: &'a Path,
    node: yaml::Node,
    /// The parts of TLS that the file holds itself, instead of the name of a file.
    inline: Vec<TlsPart>,
    options: SecurityOptions,
    warnings: Vec<String>,
    left: Vec<Left>,
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

    /// Reads the file and the certificates that it names. Returns the same [`Security`] again if
    /// none of them has changed.
    ///
    /// # Errors
    /// If the file cannot be read, or if something in it or in the certificates is wrong.
    pub fn read(&mut self) -> Result<Arc<Security>, ConfigError> {
        self.read_with_warnings().map(|(security, _)| security)
    }

    /// Like [`Self::read`], and also returns warnings about the file, a sentence each.
    ///
    /// # Errors
    /// As with [`Self::read`].
    pub fn read_with_warnings(&mut self) -> Result<(Arc<Security>, Vec<String>), ConfigError> {
        let resolved = Resolved::read(&self.path, Reader::Exporter)?;
        let security = match &self.last {
            Some((last, security)) if **last == resolved.options => Arc::clone(security),
            _ => {
                let made = Security::new(&resolved.options, &self.memory);
                Arc::new(made.map_err(|error| resolved.unusable(error))?)
            }
        };
        self.last = Some((Arc::new(resolved.options), Arc::clone(&security)));
        Ok((security, resolved.warnings))
    }

    /// Checks the file and the files that it names, as [`Self::read`] does. Files that only the
    /// exporter can read are left to the exporter; the rest is checked all the same.
    pub(crate) fn check(&self) -> Result<CheckedWebFile, ConfigError> {
        let resolved = match Resolved::read(&self.path, Reader::Other) {
            Err(error) if error.is_of_exporters_file() => {
                return Ok(CheckedWebFile {
                    left: vec![chain(&error)],
                    ..CheckedWebFile::default()
                });
            }
            resolved => resolved?,
        };
        let parts: Vec<TlsPart> = resolved.left.iter().map(|left| left.part).collect();
        let tls = resolved.options.tls.as_ref();
        if let Some(tls) = tls {
            tls.check(&parts)
                .map_err(|error| resolved.unusable(error))?;
        }
        let tls = tls.filter(|_| !parts.contains(&TlsPart::Certificate));
        let left = resolved.left.iter().map(|left| {
            let problem = resolved.problem(&tls::file_path_of(left.part), left.why.clone());
            problem.to_string()
        });
        Ok(CheckedWebFile {
            left: left.collect(),
            has_certificate: tls.is_some(),
            certificate_end: tls.and_then(|tls| tls.not_after()),
            warnings: resolved.warnings,
        })
    }

    /// Returns the URL scheme of a server that has this file. The files that it names are not
    /// read.
    ///
    /// # Errors
    /// If the file cannot be read, or if a key or value in it is wrong.
    pub fn scheme(path: &Path) -> Result<&'static str, ConfigError> {
        let node = yaml_of(path, &read(WHAT, path)?)?;
        let problems = Problems::default();
        let file: File = node.read(&problems);
        ConfigError::of(problems.into_list(Some((path, &node)), &Inputs::new()))?;
        let tls = file.tls_server_config.unwrap_or_default();
        Ok(if tls == file::Tls::default() {
            "http"
        } else {
            "https"
        })
    }

    /// Turns the file into a function that reads it again and again.
    #[must_use]
    pub fn into_load(self) -> LoadSecurity {
        let known = Mutex::new(self);
        Box::new(move || {
            // The lock is not held during the read, so that a read that hangs does not keep others
            // from reading.
            let mut file = known.lock().clone();
            let read = file.read();
            known.lock().last = file.last;
            read.map_err(|error| format!("{:#}", anyhow::Error::new(error)))
        })
    }
}

// === impl Resolved ===

impl<'a> Resolved<'a> {
    fn read(path: &'a Path, reader: Reader) -> Result<Self, ConfigError> {
        let node = yaml_of(path, &read(WHAT, path)?)?;
        let problems = Problems::default();
        let file: File = node.read(&problems);
        let inline = file.tls_server_config.as_ref().map(tls::inline_parts);
        let inline = inline.unwrap_or_default();
        let mut resolver = Resolver {
            problems,
            folder: path.parent().unwrap_or(Path::new("")),
            warnings: Vec::new(),
            reader,
            left: Vec::new(),
        };
        let options = resolver.options(file);
        let list = resolver
            .problems
            .into_list(Some((path, &node)), &Inputs::new());
        ConfigError::of(list)?;
        let mut warnings = resolver.warnings;
        if (!options.users.is_empty() || inline.contains(&TlsPart::Key)) && is_exposed(path) {
            warnings.push(exposed(path, "holds password hashes or a key"));
        }
        Ok(Self {
            path,
            inline,
            options,
            warnings,
            left: resolver.left,
            node,
        })
    }

    fn problem(&self, key: &str, message: String) -> Problem {
        Problem {
            origin: Origin::File {
                file: self.path.to_owned(),
                place: self.node.locate(key),
            },
            path: key.to_owned(),
            message,
        }
    }

    fn unusable(&self, error: TlsError) -> ConfigError {
        let key = if self.inline.contains(&error.part) {
            tls::path_of(error.part)
        } else {
            tls::file_path_of(error.part)
        };
        ConfigError::Invalid(vec![self.problem(&key, error.message)])
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
        // The exporter does not speak HTTP/2, so there is nothing to switch off.
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

/// Returns the warning about a file that every user of the machine can read.
fn exposed(path: &Path, what: &str) -> String {
    format!(
        "{}: {what}, and every user of this machine can read it; take the right away (chmod o-r), and hand it to a systemd service with LoadCredential= (docs/security.md)",
        path.display()
    )
}

#[cfg(test)]
mod tests;
