//! The key `tls_server_config`.

use std::path::{Path, PathBuf};

use super::{
    Left, Reader, Resolver, exposed,
    file::{self, ClientAuthType},
};
use crate::{
    config::{is_exposed, misplaced, problem::shown_value, yaml},
    reading,
    secret::Secret,
    web::{CIPHER_SUITES, CURVES, ClientAuth, TlsOptions, TlsPart, TlsVersion},
};

const SECTION: &str = "tls_server_config";

/// Versions that the exporter-toolkit supports and the exporter does not.
const OLD_VERSIONS: [&str; 2] = ["TLS10", "TLS11"];

/// Cipher suites that cannot be chosen, because they are always enabled.
const TLS13_SUITES: [&str; 3] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
];

/// Returns the key that holds the content of a part itself.
fn key_of(part: TlsPart) -> &'static str {
    match part {
        TlsPart::Certificate => "cert",
        TlsPart::Key => "key",
        TlsPart::ClientCa => "client_ca",
        TlsPart::CipherSuites => "cipher_suites",
    }
}

/// Returns the path of that key.
pub(super) fn path_of(part: TlsPart) -> String {
    format!("{SECTION}.{}", key_of(part))
}

/// Returns the path of the key that names a file with the content of a part.
pub(super) fn file_path_of(part: TlsPart) -> String {
    format!("{}_file", path_of(part))
}

/// Returns the parts that the section holds itself, instead of the name of a file.
pub(super) fn inline_parts(tls: &file::Tls) -> Vec<TlsPart> {
    let parts = [
        (TlsPart::Certificate, tls.cert.is_some()),
        (TlsPart::Key, tls.key.is_some()),
        (TlsPart::ClientCa, tls.client_ca.is_some()),
        (TlsPart::CipherSuites, true),
    ];
    let inline = parts.into_iter().filter(|(_, is_inline)| *is_inline);
    inline.map(|(part, _)| part).collect()
}

impl Resolver<'_> {
    /// Returns the TLS options; `None` if the section is empty or wrong.
    pub(super) fn tls(&mut self, tls: file::Tls) -> Option<TlsOptions> {
        if tls == file::Tls::default() {
            return None;
        }
        let inline_key = tls.key.map(|key| key.expose().to_owned());
        if let Some(path) = tls.key_file.as_ref().filter(|path| is_named(path)) {
            let path = self.folder.join(path);
            if is_exposed(&path) {
                self.warnings
                    .push(exposed(&path, "is the key of the web server"));
            }
        }
        let certificate = self.needed(TlsPart::Certificate, tls.cert, tls.cert_file);
        let key = self.needed(TlsPart::Key, inline_key, tls.key_file);
        let client_ca = self.text(TlsPart::ClientCa, tls.client_ca, tls.client_ca_file);
        let client_auth = tls.client_auth_type.map(client_auth).unwrap_or_default();
        self.check_clients(
            client_auth,
            client_ca.is_some(),
            tls.client_allowed_sans.is_some(),
        );
        let (min_version, max_version) = self.versions(tls.min_version, tls.max_version);
        let suites = tls.cipher_suites.unwrap_or_default();
        let curves = tls.curve_preferences.unwrap_or_default();
        let options = TlsOptions {
            certificate: String::new(),
            key: Secret::new(""),
            client_auth,
            client_ca: client_ca.filter(|_| client_auth.is_verified()),
            client_allowed_sans: tls.client_allowed_sans,
            min_version,
            max_version,
            cipher_suites: self.named("cipher_suites", &suites, &CIPHER_SUITES),
            curves: self.named("curve_preferences", &curves, &CURVES),
            prefer_server_cipher_suites: tls.prefer_server_cipher_suites.unwrap_or(true),
        };
        Some(TlsOptions {
            certificate: certificate?,
            key: Secret::new(key?),
            ..options
        })
    }

    /// Returns a required text that is given directly (`key`) or by the name of a file
    /// (`key_file`).
    fn needed(
        &mut self,
        part: TlsPart,
        text: Option<String>,
        file: Option<PathBuf>,
    ) -> Option<String> {
        let text = self.text(part, text, file);
        let (path, file_path) = (path_of(part), file_path_of(part));
        if text.is_none() && !self.problems.touches(&path) && !self.problems.touches(&file_path) {
            let message = "is missing; TLS needs cert_file and key_file";
            self.problems.add(file_path, message);
        }
        text
    }

    /// Returns an optional text that is given in the same way. If the file is left to the
    /// exporter, the text is empty.
    fn text(
        &mut self,
        part: TlsPart,
        text: Option<String>,
        file: Option<PathBuf>,
    ) -> Option<String> {
        let (key, path, file_path) = (key_of(part), path_of(part), file_path_of(part));
        match (
            text.filter(|text| !text.is_empty()),
            file.filter(|path| is_named(path)),
        ) {
            (Some(_), Some(_)) => {
                let message = format!("cannot be given together with {key}_file");
                self.problems.add(path, message);
                None
            }
            (Some(text), None) => Some(text),
            (None, Some(file)) => {
                let advice =
                    format!("write it as {key}, or put it into a file, and name that file here");
                if let Some(message) = misplaced::problem(&file, &advice) {
                    self.problems.add(file_path, message);
                    return None;
                }
                let file = self.folder.join(file);
                let error = match reading::text(&file) {
                    Ok(text) => return Some(text),
                    Err(error) => error,
                };
                let why = format!("cannot read {}: {error}", file.display());
                if self.reader == Reader::Other && reading::is_for_exporter_alone(&file, &error) {
                    self.left.push(Left { part, why });
                    return Some(String::new());
                }
                self.problems.add(file_path, why);
                None
            }
            (None, None) => None,
        }
    }

    fn check_clients(&self, client_auth: ClientAuth, has_ca: bool, has_names: bool) {
        let path = |key: &str| format!("{SECTION}.{key}");
        let ca_is_wrong = ["client_ca", "client_ca_file"]
            .into_iter()
            .any(|key| self.problems.touches(&path(key)));
        let type_is_wrong = self.problems.touches(&path("client_auth_type"));
        if client_auth.is_verified() && !has_ca && !ca_is_wrong {
            self.problems.add(
                path("client_auth_type"),
                "needs client_ca_file, the issuers whose certificates are taken",
            );
        }
        if has_ca && client_auth == ClientAuth::None && !type_is_wrong {
            self.problems.add(
                path("client_ca_file"),
                "has no effect without client_auth_type: RequireAndVerifyClientCert",
            );
        }
        if has_names && !client_auth.is_mandatory() && !type_is_wrong {
            self.problems.add(
                path("client_allowed_sans"),
                "needs client_auth_type RequireAndVerifyClientCert or RequireAnyClientCert",
            );
        }
    }

    fn versions(&self, min: Option<String>, max: Option<String>) -> (TlsVersion, TlsVersion) {
        let version = |key: &str, word: Option<String>, default| match word.as_deref() {
            None => default,
            Some("TLS12") => TlsVersion::Tls12,
            Some("TLS13") => TlsVersion::Tls13,
            Some(word) => {
                let message = if OLD_VERSIONS.contains(&word) {
                    format!("{word} is not supported, it can be broken; use TLS12 or TLS13")
                } else {
                    format!("\"{}\" is not one of TLS12, TLS13", shown_value(word))
                };
                self.problems.add(format!("{SECTION}.{key}"), message);
                default
            }
        };
        let min = version("min_version", min, TlsVersion::Tls12);
        let max = version("max_version", max, TlsVersion::Tls13);
        if min > max {
            self.problems.add(
                format!("{SECTION}.max_version"),
                "is older than min_version",
            );
        }
        (min, max)
    }

    /// Returns what the words of a list stand for.
    fn named<T: Copy>(&self, key: &str, words: &[String], known: &[(&str, T)]) -> Vec<T> {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        let mut values = Vec::new();
        for (index, word) in words.iter().enumerate() {
            if let Some((_, value)) = known.iter().find(|(name, _)| name == word) {
                values.push(*value);
                continue;
            }
            // The suites of TLS 1.3 are always enabled, so a list may name them without effect.
            if key == "cipher_suites" && TLS13_SUITES.contains(&word.as_str()) {
                continue;
            }
            let hint = match yaml::nearest(word, &names) {
                Some(near) => format!("did you mean \"{near}\"? There are {}", names.join(", ")),
                None => format!("there are {}", names.join(", ")),
            };
            self.problems.add(
                format!("{SECTION}.{key}[{index}]"),
                format!("\"{}\" is not supported; {hint}", shown_value(word)),
            );
        }
        values
    }
}

/// Whether a path names a file. To the exporter-toolkit, an empty one is none.
fn is_named(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

fn client_auth(word: ClientAuthType) -> ClientAuth {
    match word {
        ClientAuthType::NoClientCert => ClientAuth::None,
        ClientAuthType::RequestClientCert => ClientAuth::Request,
        ClientAuthType::RequireClientCert | ClientAuthType::RequireAnyClientCert => {
            ClientAuth::RequireAny
        }
        ClientAuthType::VerifyClientCertIfGiven => ClientAuth::VerifyIfGiven,
        ClientAuthType::RequireAndVerifyClientCert => ClientAuth::RequireAndVerify,
    }
}
