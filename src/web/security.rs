//! TLS, passwords and headers of the web server.
//!
//! [`SecurityOptions`] are what a web configuration file says, files read in; [`Security`] is made
//! of them and serves; a [`Guard`] holds the one in force and looks after changes. This room knows
//! neither the file's format nor the paths of the site.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use tokio_rustls::TlsAcceptor;

use self::passwords::Passwords;

pub use self::{
    guard::{Guard, LoadSecurity},
    passwords::{HashError, PasswordHash, PasswordMemory},
    rate::RateLimit,
    tls::{CIPHER_SUITES, CURVES, ClientAuth, TlsError, TlsOptions, TlsPart, TlsVersion},
};

pub(super) use self::passwords::{Verdict, network};

mod clients;
mod guard;
mod passwords;
mod rate;
mod tls;

/// What a web configuration file says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SecurityOptions {
    /// `None`: no TLS.
    pub tls: Option<TlsOptions>,
    /// Headers of every answer; an empty value takes away one that the answer would have.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Who may see the site; nobody: everybody may.
    pub users: BTreeMap<String, PasswordHash>,
    /// How many requests are answered; `None`: all.
    pub rate_limit: Option<RateLimit>,
}

/// What protects the web server at one time.
pub struct Security {
    tls: Option<Tls>,
    headers: Vec<(HeaderName, HeaderValue)>,
    passwords: Option<Passwords>,
    bucket: Option<rate::Bucket>,
}

struct Tls {
    acceptor: TlsAcceptor,
    demands_certificate: bool,
}

// === impl Security ===

impl Security {
    /// Makes ready what the options ask for. The memory is that of the one before, if any.
    ///
    /// # Errors
    /// Where certificates and keys cannot be used.
    pub fn new(options: &SecurityOptions, memory: &PasswordMemory) -> Result<Self, TlsError> {
        let tls = options.tls.as_ref().map(|tls| {
            Ok(Tls {
                acceptor: tls.acceptor()?,
                demands_certificate: tls.client_auth.is_mandatory(),
            })
        });
        Ok(Self {
            tls: tls.transpose()?,
            headers: options.headers.clone(),
            passwords: (!options.users.is_empty())
                .then(|| Passwords::new(options.users.clone(), memory.clone())),
            bucket: options.rate_limit.map(rate::Bucket::new),
        })
    }

    /// No TLS, no passwords.
    #[must_use]
    pub fn none() -> Self {
        Self {
            tls: None,
            headers: Vec::new(),
            passwords: None,
            bucket: None,
        }
    }

    /// The scheme of the server's URLs.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        match self.tls {
            Some(_) => "https",
            None => "http",
        }
    }

    pub(super) fn tls(&self) -> Option<&TlsAcceptor> {
        self.tls.as_ref().map(|tls| &tls.acceptor)
    }

    /// Whether there is another request to be answered now.
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

    /// Adds to an answer's headers those that were asked for.
    pub(super) fn decorate(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.headers {
            if value.is_empty() {
                headers.remove(name);
            } else {
                headers.insert(name, value.clone());
            }
        }
    }

    /// The protection that `self` lacks and `before` has: what an editor that has written half of
    /// the file must not take away from a server that runs.
    fn lacks(&self, before: &Self) -> Option<&'static str> {
        let demands = |security: &Self| {
            let tls = security.tls.as_ref();
            tls.is_some_and(|tls| tls.demands_certificate)
        };
        if self.tls.is_none() && before.tls.is_some() {
            Some("tls_server_config")
        } else if self.passwords.is_none() && before.passwords.is_some() {
            Some("basic_auth_users")
        } else if !demands(self) && demands(before) {
            Some("a client_auth_type that demands a certificate")
        } else {
            None
        }
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
