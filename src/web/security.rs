//! TLS, passwords and headers of the web server.
//!
//! [`SecurityOptions`] are the content of a web configuration file and of the files that it names.
//! [`Security`] is made of them and serves. A [`Guard`] holds the [`Security`] in force and looks
//! for changes. This module knows neither the file's format nor the paths of the site.

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use jiff::Timestamp;
use rustls::server::danger::ClientCertVerifier;
use tokio_rustls::TlsAcceptor;

use self::passwords::Passwords;
use crate::validity::Ending;

pub use self::{
    guard::{Guard, LoadSecurity},
    passwords::{HashError, PasswordHash, PasswordMemory},
    rate::RateLimit,
    tls::{CIPHER_SUITES, CURVES, ClientAuth, TlsError, TlsOptions, TlsPart, TlsVersion},
};

pub(super) use self::passwords::{Verdict, network};
pub(in crate::web) use self::standing::{Peer, Standing};

mod clients;
mod guard;
mod passwords;
mod rate;
mod standing;
mod tls;

/// The content of a web configuration file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SecurityOptions {
    /// `None`: no TLS.
    pub tls: Option<TlsOptions>,
    /// Headers of every answer; an empty value removes a header that the answer would have.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The users who may see the site; empty: everybody may.
    pub users: BTreeMap<String, PasswordHash>,
    /// How many requests are answered; `None`: all.
    pub rate_limit: Option<RateLimit>,
}

/// The protection of the web server at one time.
#[derive(Default)]
pub struct Security {
    tls: Option<Arc<Tls>>,
    headers: Vec<(HeaderName, HeaderValue)>,
    passwords: Option<Passwords>,
    bucket: Option<rate::Bucket>,
}

/// TLS of the web server at one time.
pub(in crate::web) struct Tls {
    acceptor: TlsAcceptor,
    /// Verifies the certificates of clients, if any are asked for.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    /// When the server's own certificate ends.
    not_after: Option<Timestamp>,
    /// The options that it was made of.
    options: TlsOptions,
}

/// A demand on clients: its name for people, and whether options have it.
type Demand = (&'static str, fn(&TlsOptions) -> bool);

const DEMANDS: [Demand; 3] = [
    ("a client_auth_type that demands a certificate", |tls| {
        tls.client_auth.is_mandatory()
    }),
    ("a client_auth_type that verifies certificates", |tls| {
        tls.client_auth.is_verified()
    }),
    ("client_allowed_sans", |tls| {
        tls.client_allowed_sans.is_some()
    }),
];

// === impl Tls ===

impl Tls {
    pub(in crate::web) fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }
}

// === impl Security ===

impl Security {
    /// Sets up what the options ask for. `memory` is that of the [`Security`] before, if any.
    ///
    /// # Errors
    /// If a certificate or a key cannot be used.
    pub fn new(options: &SecurityOptions, memory: &PasswordMemory) -> Result<Self, TlsError> {
        let tls = options.tls.as_ref().map(|tls| {
            let verifier = tls.verifier()?;
            Ok(Arc::new(Tls {
                acceptor: tls.acceptor(verifier.clone())?,
                verifier,
                not_after: tls.not_after(),
                options: tls.clone(),
            }))
        });
        Ok(Self {
            tls: tls.transpose()?,
            headers: options.headers.clone(),
            passwords: (!options.users.is_empty())
                .then(|| Passwords::new(options.users.clone(), memory.clone())),
            bucket: options.rate_limit.map(rate::Bucket::new),
        })
    }

    /// Returns a protection without TLS and passwords.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The scheme of the server's URLs.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        match self.tls {
            Some(_) => "https",
            None => "http",
        }
    }

    /// Returns when the server's own certificate ends; `None` without TLS, or if it does not say.
    fn certificate_end(&self) -> Option<Timestamp> {
        self.tls.as_ref()?.not_after
    }

    pub(super) fn tls(&self) -> Option<&Arc<Tls>> {
        self.tls.as_ref()
    }

    /// Whether the rate limit lets another request be answered now; if so, counts it.
    pub(super) fn has_room(&self) -> bool {
        self.bucket.as_ref().is_none_or(rate::Bucket::take)
    }

    /// Whether a request with these headers may see the site.
    pub(super) async fn admit(&self, headers: &HeaderMap, client: IpAddr) -> Verdict {
        match &self.passwords {
            None => Verdict::Welcome,
            Some(passwords) => {
                let authorization = headers.get(header::AUTHORIZATION);
                passwords.admit(authorization, client).await
            }
        }
    }

    /// Applies the configured headers to an answer's headers.
    pub(super) fn decorate(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.headers {
            if value.is_empty() {
                headers.remove(name);
            } else {
                headers.insert(name, value.clone());
            }
        }
    }

    /// Returns what becomes of a request on a connection that may have been opened earlier, under
    /// other settings.
    pub(super) fn standing(&self, peer: &Peer, now: Timestamp) -> Standing {
        standing::of(peer, self.tls.as_ref(), now)
    }

    /// Returns a protection that `before` has and `self` lacks. An editor that has written half of
    /// the file must not take such a protection away from a running server.
    fn lacks(&self, before: &Self) -> Option<&'static str> {
        let of_tls = match (&self.tls, &before.tls) {
            (None, Some(_)) => Some("tls_server_config"),
            (Some(new), Some(before)) => DEMANDS
                .iter()
                .find(|(_, demands)| demands(&before.options) && !demands(&new.options))
                .map(|(name, _)| *name),
            (_, None) => None,
        };
        let passwords = self.passwords.is_none() && before.passwords.is_some();
        of_tls.or_else(|| passwords.then_some("basic_auth_users"))
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security")
            .field("tls", &self.tls.is_some())
            .field("passwords", &self.passwords.is_some())
            .finish_non_exhaustive()
    }
}

/// Returns a warning if the certificate of the web server ends soon, or has ended.
pub(crate) fn certificate_warning(not_after: Option<Timestamp>, now: Timestamp) -> Option<String> {
    Ending::of(not_after?, now).map(|ending| {
        format!("the certificate of the web server {ending}; renew it, which takes no restart")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    /// TLS that demands this of clients, whose issuer is the server's own certificate.
    fn with_clients(client_auth: ClientAuth, names: Option<&[&str]>) -> Security {
        security(client_auth, names, 3000, None)
    }

    /// TLS with clients of this issuer.
    pub(super) fn with_issuer(client_auth: ClientAuth, issuer: &str) -> Security {
        security(client_auth, None, 3000, Some(issuer))
    }

    /// TLS with a certificate that ends at the beginning of a year.
    pub(super) fn until(year: i32) -> Security {
        security(ClientAuth::None, None, year, None)
    }

    fn security(
        client_auth: ClientAuth,
        names: Option<&[&str]>,
        year: i32,
        issuer: Option<&str>,
    ) -> Security {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, 1, 1);
        let certificate = parameters.self_signed(&key).unwrap().pem();
        let tls = TlsOptions {
            certificate: certificate.clone(),
            key: Secret::new(key.serialize_pem()),
            client_auth,
            client_ca: Some(issuer.map_or(certificate, ToOwned::to_owned)),
            client_allowed_sans: names.map(|names| names.iter().map(ToString::to_string).collect()),
            min_version: TlsVersion::Tls12,
            max_version: TlsVersion::Tls13,
            cipher_suites: Vec::new(),
            curves: Vec::new(),
            prefer_server_cipher_suites: true,
        };
        let options = SecurityOptions {
            tls: Some(tls),
            ..SecurityOptions::default()
        };
        Security::new(&options, &PasswordMemory::default()).unwrap()
    }

    #[test]
    fn half_of_a_file_takes_no_demand_on_clients_away() {
        use ClientAuth::{None as Nobody, RequireAndVerify, RequireAny, VerifyIfGiven};

        let (names, others) = (Some(["a"].as_slice()), Some(["b"].as_slice()));
        let demands = "a client_auth_type that demands a certificate";
        let verifies = "a client_auth_type that verifies certificates";
        for (before, after, lost) in [
            ((RequireAny, None), (Nobody, None), Some(demands)),
            ((RequireAny, None), (RequireAndVerify, names), None),
            ((VerifyIfGiven, None), (Nobody, None), Some(verifies)),
            (
                (RequireAndVerify, None),
                (VerifyIfGiven, None),
                Some(demands),
            ),
            ((RequireAndVerify, None), (RequireAny, None), Some(verifies)),
            (
                (RequireAndVerify, names),
                (RequireAny, names),
                Some(verifies),
            ),
            (
                (RequireAndVerify, names),
                (RequireAndVerify, None),
                Some("client_allowed_sans"),
            ),
            ((RequireAndVerify, names), (RequireAndVerify, others), None),
        ] {
            let [old, new] = [before, after].map(|(auth, names)| with_clients(auth, names));
            assert_eq!(new.lacks(&old), lost, "{before:?} {after:?}");
        }
        let old = with_clients(Nobody, None);
        assert_eq!(Security::none().lacks(&old), Some("tls_server_config"));
        assert_eq!(old.lacks(&Security::none()), None);
    }
}
