//! The client of one account: requests, their errors, and what is learned from the headers.
//!
//! The interface to reqwest is localized here. Redirects are never followed: one of the token
//! endpoint would hand the secret to whoever it names.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Chain;
use jiff::SignedDuration;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, StatusCode, header};
use secrecy::zeroize::Zeroizing;
use serde::Deserialize;
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::Instant,
};
use xxhash_rust::xxh3::Xxh3;

use super::{
    Endpoint, Observer, Options, TlsOptions,
    allowance::{Allowance, Hints, Reservation, Urgency},
    body::{Body, Unusable},
    error::Error,
    page::Answer,
    room::Room,
    token::{Credentials, Grant, Issuer, Token, Tokens},
};
use crate::{clock, error_chain::chain, excerpt::Secrets, http_date, proxy, secret::Secret};

/// Everything but the characters that RFC 3986 leaves unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// Requests that an account has in flight at most. A tenant has two at a time (a poll and its
/// full read), so that many tenants must hang before others wait.
const MAX_IN_FLIGHT: usize = 128;
/// How often a request is sent whose connection ends before an answer. There can be more than one
/// that was closed meanwhile.
const MAX_SENDS: usize = 3;
/// How long the files of the credentials, or of TLS, may take to be read.
const READING: Duration = Duration::from_secs(5);
/// The files of TLS are not looked at more often by themselves.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// The largest answer of the token endpoint.
const MAX_TOKEN_ANSWER: u64 = 64 * 1024;
/// The largest page of one alert. Many of them may be kept at the same time.
const MAX_ALERT_ANSWER: u64 = 1024 * 1024;
/// The documented ceilings, requests a minute, of a client and of a partner.
const PAGINATED: (u32, u32) = (50, 150);
const NON_PAGINATED: (u32, u32) = (500, 1500);

/// The client of one account. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    http: Http,
    tokens: Tokens<TokenEndpoint>,
    observer: Arc<dyn Observer>,
    /// The observer was told that there is none.
    token_lost: AtomicBool,
    in_flight: tokio::sync::Semaphore,
    requests_per_minute: Option<u32>,
    tenants: Mutex<HashMap<Arc<str>, Arc<Allowances>>>,
}

/// How requests are made, shared with the token endpoint.
#[derive(Clone, Debug)]
struct Http {
    options: Arc<Options>,
    /// What proxies on the way are sent to prove who asks.
    proxies: Arc<[Secret]>,
    current: Arc<Mutex<Current>>,
    /// Of the files of TLS.
    reading: Arc<Reading<Result<Option<Current>, BuildError>>>,
}

/// The HTTP client in use.
#[derive(Clone, Debug)]
struct Current {
    client: reqwest::Client,
    /// Of the files that it was made of.
    fingerprint: u64,
    looked_at: Instant,
}

/// The files that an HTTP client is made of.
#[derive(Default)]
struct TlsFiles {
    /// Whom to trust.
    authorities: Option<Vec<u8>>,
    /// Our own certificate and its key.
    identity: Option<Zeroizing<Vec<u8>>>,
}

/// Files can be pipes, or lie on a server that hangs: they are read off the thread, and those that
/// are not read in time are not asked for again before they are.
#[derive(Debug)]
struct Reading<T>(tokio::sync::Mutex<Option<JoinHandle<T>>>);

/// A tenant's allowances, one a category.
#[derive(Debug)]
struct Allowances {
    search: Arc<Allowance>,
    alert: Arc<Allowance>,
    clients: Arc<Allowance>,
}

#[derive(Debug)]
struct TokenEndpoint {
    http: Http,
    observer: Arc<dyn Observer>,
    reading: Reading<Result<Credentials, Error>>,
}

/// A page of a search, to be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchRequest {
    /// The readable `queryString`, such as `actions:OPEN`.
    pub query: String,
    /// From 1.
    pub page: u64,
    /// Alerts a page.
    pub page_size: u32,
    /// Whether to ask for the newest first by `sortName=ts`; else the server's own order.
    pub sorted: bool,
}

/// The token in use, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    /// How long its request took.
    pub took: Duration,
    /// How long it still lives.
    pub remaining: Duration,
    /// Its scope, where the endpoint told.
    pub scope: Option<String>,
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

// === impl Client ===

impl Client {
    /// Sets up the client; nothing is sent yet.
    ///
    /// # Errors
    /// Where a certificate, a key or the proxy is not usable.
    pub fn new(options: Options, observer: Arc<dyn Observer>) -> Result<Self, BuildError> {
        let current = Current::new(&options, TlsFiles::read(&options.name, &options.tls)?)?;
        let requests_per_minute = options.requests_per_minute;
        let proxies = proxy::authorizations(
            options.proxy_url.as_ref().map(|url| &url.0),
            [options.url.as_str(), &options.token_url],
        );
        let http = Http {
            options: Arc::new(options),
            proxies: proxies.into(),
            current: Arc::new(Mutex::new(current)),
            reading: Arc::default(),
        };
        let tokens = Tokens::new(TokenEndpoint {
            http: http.clone(),
            observer: observer.clone(),
            reading: Reading::default(),
        });
        Ok(Self(Arc::new(Inner {
            http,
            tokens,
            observer,
            token_lost: AtomicBool::new(false),
            in_flight: tokio::sync::Semaphore::new(MAX_IN_FLIGHT),
            requests_per_minute,
            tenants: Mutex::default(),
        })))
    }

    /// The account's name.
    #[must_use]
    pub fn account(&self) -> &Arc<str> {
        &self.0.http.options.name
    }

    /// Reads the files of TLS again, and connects as they say from now on. It does so by itself before
    /// it asks for a token, and where a connection failed.
    ///
    /// # Errors
    /// Where they are not usable; then those before stay in use.
    pub async fn read_files_again(&self) -> Result<(), BuildError> {
        self.0.http.read_files_again().await
    }

    /// Makes sure that there is a token.
    ///
    /// # Errors
    /// As the token endpoint has it.
    pub async fn token(&self) -> Result<TokenInfo, Error> {
        let token = self.0.tokens.get().await?;
        Ok(TokenInfo {
            took: token.took(),
            remaining: token.remaining(),
            scope: token.scope().map(str::to_owned),
        })
    }

    /// A page of a search.
    ///
    /// # Errors
    /// As the API has it; an answer that is no search result shows when it is read.
    pub async fn search(
        &self,
        tenant: &str,
        request: &SearchRequest,
        urgency: Urgency,
    ) -> Result<Answer, Error> {
        let url = search_url(&self.0.http.options.url, tenant, request);
        let allowance = &self.allowances(tenant).search;
        self.send(Endpoint::Search, tenant, url, allowance, urgency)
            .await
    }

    /// One alert, whatever its status. `None` where there is no such alert.
    ///
    /// # Errors
    /// As the API has it.
    pub async fn alert(&self, tenant: &str, id: &str) -> Result<Option<Answer>, Error> {
        if matches!(id, "" | "." | "..") {
            // A URL cannot name it, however it is written: these lead to another path.
            return Ok(None);
        }
        let id = utf8_percent_encode(id, ENCODED);
        let url = format!("{}/alerts/{id}", self.tenant_url(tenant));
        let allowance = &self.allowances(tenant).alert;
        match self
            .send(Endpoint::Alert, tenant, url, allowance, Urgency::Background)
            .await
        {
            Err(Error::Http { status: 404, .. }) => Ok(None),
            // The documented answer of a sister endpoint to an id that does not exist.
            Err(Error::Http {
                status: 500,
                excerpt,
                ..
            }) if excerpt.contains("\"0003\"") => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// A page of the clients of a partner.
    ///
    /// # Errors
    /// As the API has it.
    pub async fn clients(&self, partner: &str, page: u64) -> Result<Answer, Error> {
        let url = format!(
            "{}/clients/search?pageNo={page}&pageSize=100",
            self.tenant_url(partner)
        );
        let allowance = &self.allowances(partner).clients;
        self.send(
            Endpoint::Clients,
            partner,
            url,
            allowance,
            Urgency::Background,
        )
        .await
    }

    /// Keeps as much of a tenant's allowance free for polls as one every `interval` needs.
    #[must_use]
    pub fn reserve(&self, tenant: &str, interval: Duration) -> Reservation {
        self.allowances(tenant).search.reserve(interval)
    }

    async fn send(
        &self,
        endpoint: Endpoint,
        tenant: &str,
        url: String,
        allowance: &Allowance,
        urgency: Urgency,
    ) -> Result<Answer, Error> {
        // Without a token nothing of the allowance is taken.
        self.0.tokens.get().await?;
        let first = self
            .send_once(endpoint, tenant, &url, allowance, urgency)
            .await;
        let Err(Refused::Token { token, .. }) = &first else {
            return first.map_err(Refused::into_error);
        };
        // 407 is the documented answer to a token that ran out or was revoked.
        let refuser = (endpoint.as_str(), tenant.into());
        match self.0.tokens.replace(token, refuser).await {
            Ok(Some(_)) => {
                tracing::debug!(account = %self.account(), "the API refused the token; trying a new one once");
                self.send_once(endpoint, tenant, &url, allowance, urgency)
                    .await
                    .map_err(Refused::into_error)
            }
            Ok(None) => first.map_err(Refused::into_error),
            Err(error) => {
                self.0.token_lost.store(true, Ordering::Relaxed);
                self.0.observer.token_lost();
                Err(error)
            }
        }
    }

    async fn send_once(
        &self,
        endpoint: Endpoint,
        tenant: &str,
        url: &str,
        allowance: &Allowance,
        urgency: Urgency,
    ) -> Result<Answer, Refused> {
        let observer = &self.0.observer;
        let _permit = allowance
            .acquire(urgency, |waited| observer.throttled(tenant, waited))
            .await;
        // The semaphore is never closed.
        let _slot = self.0.in_flight.acquire().await;
        // Waiting can take minutes, and the token may have run out by now.
        let token = self.0.tokens.get().await.map_err(Refused::Other)?;
        let http = &self.0.http;
        let request = http
            .request(Method::GET, url)
            .header(header::AUTHORIZATION, bearer(&token.secret));
        let began = Instant::now();
        let limit = match endpoint {
            Endpoint::Alert => http.options.max_response_size.min(MAX_ALERT_ANSWER),
            _ => http.options.max_response_size,
        };
        let answer = http.exchange(endpoint, request, limit).await;
        let took = began.elapsed();
        let (status, headers, body, room) = match answer {
            Ok(answer) => answer,
            Err((status, error)) => {
                self.0.observer.request(endpoint, status, took);
                if matches!(error, Error::Connect { .. }) {
                    // They may be why. Whoever asks next need not wait for it.
                    let http = http.clone();
                    tokio::spawn(async move { http.look_at_files().await });
                }
                return Err(Refused::Other(error));
            }
        };
        self.0
            .observer
            .request(endpoint, Some(status.as_u16()), took);
        let clock_ahead = Http::tell_time(&headers, &*self.0.observer);
        let hints = Hints::read(status.as_u16(), &headers, clock::now());
        allowance.learn(&hints);
        if endpoint == Endpoint::Search
            && let Some(seen) = hints.rate_limit()
        {
            self.0.observer.rate_limit(tenant, seen);
        }
        let sent = || http.sent([&token.secret]);
        let shown = || Secrets::of(sent()).excerpt(&body);
        match status.as_u16() {
            200..=299 => {
                self.accepted(&token, endpoint, tenant);
                Ok(
                    Answer::new(endpoint.as_str(), body, room, sent())
                        .with_clock_ahead(clock_ahead),
                )
            }
            401 | 407 => Err(Refused::Token {
                status: status.as_u16(),
                excerpt: shown(),
                token,
            }),
            403 => {
                self.accepted(&token, endpoint, tenant);
                let what = format!(
                    "{} of tenant {tenant} is forbidden (403): the key lacks the permission: {}",
                    endpoint.as_str(),
                    shown()
                );
                Err(Refused::Other(Error::Auth { what }))
            }
            429 => Err(Refused::Other(Error::Throttled {
                retry_after: hints.retry_after,
            })),
            code => Err(Refused::Other(Error::Http {
                endpoint: endpoint.as_str(),
                status: code,
                excerpt: redirect_or(&headers, shown),
            })),
        }
    }

    fn accepted(&self, token: &Token, endpoint: Endpoint, tenant: &str) {
        self.0.tokens.accepted(token, endpoint.as_str(), tenant);
        // The API may take it again that it refused.
        if self.0.token_lost.swap(false, Ordering::Relaxed) {
            let expires_at = clock::now() + token.remaining();
            self.0.observer.token_obtained(token.took(), expires_at);
        }
    }

    fn tenant_url(&self, tenant: &str) -> String {
        tenant_url(&self.0.http.options.url, tenant)
    }

    fn allowances(&self, tenant: &str) -> Arc<Allowances> {
        // The map is only looked up and added to, so a poisoned one is still whole.
        let mut tenants = self
            .0
            .tenants
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = tenants.get(tenant) {
            return Arc::clone(known);
        }
        let paginated = paginated(self.0.requests_per_minute, tenant);
        let made = Arc::new(Allowances {
            search: Arc::new(Allowance::new(paginated)),
            alert: Arc::new(Allowance::new(ceiling(NON_PAGINATED, tenant))),
            clients: Arc::new(Allowance::new(paginated)),
        });
        tenants.insert(Arc::from(tenant), Arc::clone(&made));
        made
    }
}

/// Paginated requests that a tenant may make in a minute: our own ceiling, or the documented one.
pub(super) fn paginated(own: Option<u32>, tenant: &str) -> u32 {
    own.unwrap_or(ceiling(PAGINATED, tenant))
}

fn ceiling((client, partner): (u32, u32), tenant: &str) -> u32 {
    if tenant.starts_with("msp_") {
        partner
    } else {
        client
    }
}

fn tenant_url(base: &str, tenant: &str) -> String {
    let tenant = utf8_percent_encode(tenant, ENCODED);
    format!("{base}/api/v2/tenants/{tenant}")
}

/// Where to ask for a page of a search.
pub(super) fn search_url(base: &str, tenant: &str, request: &SearchRequest) -> String {
    let order = if request.sorted {
        "&isDescendingOrder=true&sortName=ts"
    } else {
        ""
    };
    format!(
        "{}/alerts/search?pageNo={}&pageSize={}{order}&queryString={}",
        tenant_url(base, tenant),
        request.page,
        request.page_size,
        utf8_percent_encode(&request.query, ENCODED),
    )
}

/// Why a single request brought nothing.
enum Refused {
    /// The token was not accepted.
    Token {
        status: u16,
        excerpt: String,
        token: Token,
    },
    Other(Error),
}

// === impl Refused ===

impl Refused {
    fn into_error(self) -> Error {
        match self {
            Self::Token {
                status, excerpt, ..
            } => {
                let what =
                    format!("the API refuses the token, also a new one ({status}): {excerpt}");
                Error::Auth { what }
            }
            Self::Other(error) => error,
        }
    }
}

// === impl TokenEndpoint ===

/// A token answer. `expires_in` is a number in the guide and a text in the OpenAPI file.
#[derive(Deserialize)]
struct TokenAnswer {
    access_token: Secret,
    #[serde(default)]
    expires_in: Option<serde_json::Value>,
    #[serde(default)]
    scope: Option<serde_json::Value>,
}

/// A token whose answer does not tell its life is used for so long.
const UNTOLD_LIFE: Duration = Duration::from_secs(300);
/// No token is asked for more often than this, however short its life.
const MIN_LIFE: Duration = Duration::from_secs(1);
/// No life is believed to be longer.
const MAX_LIFE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl Issuer for TokenEndpoint {
    async fn credentials(&self) -> Result<Credentials, Error> {
        let options = Arc::clone(&self.http.options);
        let read = self.reading.of(move || read_credentials(&options)).await;
        read.unwrap_or_else(|| {
            let what = format!(
                "the files of client_id and client_secret could not be read within {} s",
                READING.as_secs()
            );
            Err(Error::Auth { what })
        })
    }

    async fn request(&self, credentials: &Credentials) -> Result<Grant, Error> {
        self.http.look_at_files().await;
        self.observer.token_requested();
        let began = Instant::now();
        let asked = self.ask(credentials).await;
        let took = began.elapsed();
        self.observer.request(Endpoint::Token, asked.0, took);
        match asked.1 {
            Ok((token, life, scope)) => {
                self.observer.token_obtained(took, clock::now() + life);
                Ok(Grant {
                    token,
                    life,
                    scope,
                    took,
                })
            }
            Err(error) => {
                let reason = match error.reason() {
                    "auth" => "rejected",
                    "too_large" => "decode",
                    reason => reason,
                };
                self.observer.token_failed(reason);
                Err(error)
            }
        }
    }
}

fn read_credentials(options: &Options) -> Result<Credentials, Error> {
    let read = |source: &crate::secret::SecretSource| {
        source.read().map_err(|error| Error::Auth {
            what: chain(&error),
        })
    };
    Ok(Credentials {
        id: read(&options.client_id)?,
        secret: read(&options.client_secret)?,
    })
}

pub(super) type Told = (Secret, Duration, Option<String>);

impl TokenEndpoint {
    async fn ask(&self, credentials: &Credentials) -> (Option<u16>, Result<Told, Error>) {
        let Credentials { id, secret } = credentials;
        let request = self
            .http
            .request(Method::POST, &self.http.options.token_url)
            .form(&[
                ("grant_type", "client_credentials"),
                ("client_id", id.expose()),
                ("client_secret", secret.expose()),
            ]);
        let (status, headers, body, _room) = match self
            .http
            .exchange(Endpoint::Token, request, MAX_TOKEN_ANSWER)
            .await
        {
            Ok(answer) => answer,
            Err((status, error)) => return (status, Err(error)),
        };
        Http::tell_time(&headers, &*self.observer);
        let code = status.as_u16();
        let shown = || Secrets::of(self.http.sent([secret, id])).excerpt(&body);
        let result = match code {
            200..=299 => read_token(&body),
            400 | 401 | 403 => Err(Error::Auth {
                what: format!(
                    "the token endpoint rejects the credentials ({code}): {}",
                    shown()
                ),
            }),
            429 => {
                let retry_after = Hints::read(code, &headers, clock::now()).retry_after;
                Err(Error::Throttled { retry_after })
            }
            _ => {
                let excerpt = redirect_or(&headers, shown);
                Err(Error::Http {
                    endpoint: Endpoint::Token.as_str(),
                    status: code,
                    excerpt,
                })
            }
        };
        (Some(code), result)
    }
}

pub(super) fn read_token(body: &[u8]) -> Result<Told, Error> {
    // No excerpt: the body of a success holds the token, in whatever form.
    let problem = |what: &str| Error::Decode {
        endpoint: Endpoint::Token.as_str(),
        what: what.to_owned(),
        excerpt: String::new(),
    };
    let answer: TokenAnswer = serde_json::from_slice(body)
        .map_err(|_| problem("200 with something that is no token answer"))?;
    let text = answer.access_token.expose();
    if text.is_empty() || header::HeaderValue::from_str(text).is_err() {
        return Err(problem("200 with an access_token that no header can hold"));
    }
    let life = match answer.expires_in {
        Some(serde_json::Value::Number(number)) => number.as_f64(),
        Some(serde_json::Value::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    let life = life
        // `NaN` can be written as a text, and where -1 means for ever nobody can tell.
        .filter(|seconds: &f64| seconds.is_finite() && *seconds >= 0.0)
        .map_or(UNTOLD_LIFE, |seconds| {
            Duration::from_secs_f64(seconds.min(MAX_LIFE.as_secs_f64()))
        })
        .max(MIN_LIFE);
    let scope = answer
        .scope
        .and_then(|scope| scope.as_str().map(str::to_owned));
    Ok((answer.access_token, life, scope))
}

// === impl Http ===

type Exchanged = (StatusCode, header::HeaderMap, Vec<u8>, Room);

impl Http {
    fn request(&self, method: Method, url: &str) -> reqwest::RequestBuilder {
        let client = self.current().client.clone();
        client
            .request(method, url)
            .header(header::ACCEPT, "application/json")
            .header(header::ACCEPT_ENCODING, "gzip")
            .timeout(self.options.timeout)
    }

    /// What goes out with a request and must not be shown, though an answer may repeat it.
    fn sent<const N: usize>(&self, secrets: [&Secret; N]) -> Vec<Secret> {
        secrets
            .into_iter()
            .chain(self.proxies.iter())
            .cloned()
            .collect()
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        // The lock is held for plain assignments only, so what it guards is still whole.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Self::read_files_again`], once a second at most. What is wrong with them is logged.
    async fn look_at_files(&self) {
        if self.current().looked_at.elapsed() < LOOK_AGAIN {
            return;
        }
        if let Err(error) = self.read_files_again().await {
            tracing::warn!(
                account = %self.options.name,
                error = %chain(&error),
                "the files of tls cannot be used; connections are made with those before"
            );
        }
    }

    async fn read_files_again(&self) -> Result<(), BuildError> {
        let Some(path) = self.options.tls.files().next().cloned() else {
            return Ok(());
        };
        let fingerprint = {
            let mut current = self.current();
            current.looked_at = Instant::now();
            current.fingerprint
        };
        let options = Arc::clone(&self.options);
        let read = move || {
            let files = TlsFiles::read(&options.name, &options.tls)?;
            if files.fingerprint() == fingerprint {
                return Ok(None);
            }
            Current::new(&options, files).map(Some)
        };
        let read = self.reading.of(read).await.unwrap_or_else(|| {
            Err(BuildError::Read {
                what: "the files of tls",
                account: Arc::clone(&self.options.name),
                path,
                source: io::ErrorKind::TimedOut.into(),
            })
        });
        if let Some(new) = read? {
            *self.current() = new;
            tracing::info!(account = %self.options.name, "the files of tls were read again");
        }
        Ok(())
    }

    /// Sends a request and reads the answer's body, no further than `limit`. An error comes with
    /// the status, where there was one.
    async fn exchange(
        &self,
        endpoint: Endpoint,
        request: reqwest::RequestBuilder,
        limit: u64,
    ) -> Result<Exchanged, (Option<u16>, Error)> {
        let mut response = self
            .send(endpoint, request)
            .await
            .map_err(|error| (None, self.transport(endpoint, error)))?;
        let status = response.status();
        let failed = |error| (Some(status.as_u16()), error);
        let unusable = |why| match why {
            Unusable::TooLarge => Error::TooLarge {
                endpoint: endpoint.as_str(),
                limit,
                configured: limit == self.options.max_response_size,
            },
            Unusable::Corrupt(error) => undecodable(endpoint, &error),
        };
        let told = response.content_length();
        let mut body = Body::after(response.headers(), told, limit);
        let deadline = Instant::now() + self.options.timeout;
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| failed(self.transport(endpoint, error)))?
        {
            match tokio::time::timeout_at(deadline, body.take(&chunk)).await {
                Ok(taken) => taken.map_err(unusable).map_err(failed)?,
                Err(_) => {
                    return Err(failed(Error::Timeout {
                        host: self.host(Some(response.url())),
                        limit: self.options.timeout,
                    }));
                }
            }
        }
        let (body, room) = body.finish().map_err(unusable).map_err(failed)?;
        let headers = std::mem::take(response.headers_mut());
        Ok((status, headers, body, room))
    }

    /// Sends a request, and again where the connection ends before there is an answer: a server
    /// closes an idle connection whenever it likes, also at the moment when it is used again. Not
    /// that for a token, which changes something; all together take no longer than one may.
    async fn send(
        &self,
        endpoint: Endpoint,
        mut request: reqwest::RequestBuilder,
    ) -> reqwest::Result<reqwest::Response> {
        let began = Instant::now();
        for _ in 1..MAX_SENDS {
            let again = request.try_clone().filter(|_| endpoint != Endpoint::Token);
            match (request.send().await, again) {
                (Err(error), Some(again)) if is_hang_up(&error) => {
                    let left = self.options.timeout.saturating_sub(began.elapsed());
                    request = again.timeout(left);
                }
                (sent, _) => return sent,
            }
        }
        request.send().await
    }

    /// Tells the observer, and how far the server's clock is ahead of ours.
    fn tell_time(headers: &header::HeaderMap, observer: &dyn Observer) -> Option<SignedDuration> {
        let date = headers.get(header::DATE)?.to_str().ok()?;
        let (server, now) = (http_date::parse(date)?, clock::now());
        observer.server_time(server, now);
        Some(server.duration_since(now))
    }

    /// Who was asked: whatever a URL holds beyond that, a message need not.
    fn host(&self, url: Option<&reqwest::Url>) -> String {
        // Of a body that breaks off, the error does not tell.
        let base = reqwest::Url::parse(&self.options.url).ok();
        url.or(base.as_ref())
            .and_then(|url| {
                let port = url.port().map(|port| format!(":{port}"));
                Some(format!("{}{}", url.host_str()?, port.unwrap_or_default()))
            })
            .unwrap_or_else(|| self.options.url.clone())
    }

    fn transport(&self, endpoint: Endpoint, error: reqwest::Error) -> Error {
        let host = self.host(error.url());
        let error = error.without_url();
        let began = !error.is_request();
        if error.is_timeout() {
            let limit = if error.is_connect() {
                self.options.connect_timeout
            } else {
                self.options.timeout
            };
            Error::Timeout { host, limit }
        } else if began && ends_early(&error) {
            Error::Decode {
                endpoint: endpoint.as_str(),
                what: "with a body that ends too early".to_owned(),
                excerpt: String::new(),
            }
        } else if error.is_decode() && !is_broken_connection(&error) {
            undecodable(endpoint, &error)
        } else if !error.is_connect() && is_no_http(&error) {
            // Somebody was reached, and it is somebody else.
            let cause = root(&error);
            Error::Decode {
                endpoint: endpoint.as_str(),
                what: format!("with something that is no HTTP answer ({cause})"),
                excerpt: String::new(),
            }
        } else {
            Error::Connect {
                host,
                source: Arc::new(error),
            }
        }
    }
}

fn undecodable(endpoint: Endpoint, error: &(dyn std::error::Error + 'static)) -> Error {
    Error::Decode {
        endpoint: endpoint.as_str(),
        what: format!("with a body that cannot be decoded ({})", root(error)),
        excerpt: String::new(),
    }
}

/// The last cause.
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let last = Chain::new(error).last();
    last.map(ToString::to_string).unwrap_or_default()
}

/// Whether the connection ended, in good order or not, before anything of an answer had come.
fn is_hang_up(error: &reqwest::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};

    let reset = |error: &io::Error| {
        matches!(
            error.kind(),
            BrokenPipe | ConnectionAborted | ConnectionReset
        )
    };
    let unanswered = error.is_request() && !error.is_connect() && !error.is_timeout();
    unanswered && (ends_early(error) || io_errors(error).any(reset))
}

/// Whether the connection ended in good order before an answer was complete.
fn ends_early(error: &reqwest::Error) -> bool {
    of_hyper(error).any(hyper::Error::is_incomplete_message)
        || io_errors(error).any(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

/// Whether what came cannot be the beginning of an answer.
fn is_no_http(error: &reqwest::Error) -> bool {
    of_hyper(error).any(hyper::Error::is_parse)
}

/// Whether the system failed the connection.
fn is_broken_connection(error: &reqwest::Error) -> bool {
    io_errors(error).any(|error| error.raw_os_error().is_some())
}

fn of_hyper(error: &reqwest::Error) -> impl Iterator<Item = &hyper::Error> {
    Chain::new(error).filter_map(|error| error.downcast_ref())
}

fn io_errors(error: &reqwest::Error) -> impl Iterator<Item = &io::Error> {
    Chain::new(error).filter_map(|error| error.downcast_ref())
}

pub(super) fn bearer(token: &Secret) -> header::HeaderValue {
    let text = format!("Bearer {}", token.expose());
    let mut value = header::HeaderValue::try_from(text)
        .expect("a token is checked to fit a header when it is obtained");
    value.set_sensitive(true);
    value
}

/// What to show of an answer: where a redirect leads, else the beginning of the body.
fn redirect_or(headers: &header::HeaderMap, shown: impl FnOnce() -> String) -> String {
    let location = headers
        .get(header::LOCATION)
        .and_then(|value| value.to_str().ok());
    match location {
        Some(location) => {
            // The path and query of a redirect can repeat what was sent.
            let origin = reqwest::Url::parse(location)
                .map(|url| url.origin().ascii_serialization())
                .unwrap_or_else(|_| "another path".to_owned());
            format!("a redirect to {origin}, which is not followed")
        }
        None => shown(),
    }
}

// === impl Current ===

impl Current {
    fn new(options: &Options, files: TlsFiles) -> Result<Self, BuildError> {
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
    if let (Some(path), Some(pem)) = (&options.tls.ca_file, files.authorities) {
        let certificates =
            reqwest::Certificate::from_pem_bundle(&pem).map_err(unusable("tls.ca_file"))?;
        if certificates.is_empty() {
            return Err(BuildError::NoCertificate {
                path: path.clone(),
                account: Arc::clone(&options.name),
            });
        }
        builder = builder.tls_certs_only(certificates);
    }
    if let Some(pem) = files.identity {
        let identity = reqwest::Identity::from_pem(&pem).map_err(unusable("tls.cert_file"))?;
        builder = builder.identity(identity);
    }
    if let Some(proxy) = proxy {
        let proxy = reqwest::Proxy::all(proxy).map_err(unusable("proxy_url"))?;
        builder = builder.proxy(proxy);
    }
    builder.build().map_err(unusable(
        "the TLS set-up (are CA certificates installed? else name some with tls.ca_file)",
    ))
}

// === impl TlsFiles ===

impl TlsFiles {
    fn read(account: &Arc<str>, options: &TlsOptions) -> Result<Self, BuildError> {
        let read = |what, path: &PathBuf| {
            std::fs::read(path).map_err(|source| BuildError::Read {
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

    fn fingerprint(&self) -> u64 {
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

// === impl Reading ===

impl<T> Default for Reading<T> {
    fn default() -> Self {
        Self(tokio::sync::Mutex::new(None))
    }
}

impl<T: Send + 'static> Reading<T> {
    /// What `read` brings, or what it brought that was not read in time before; `None` where that takes
    /// too long.
    async fn of(&self, read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let mut reading = self.0.lock().await;
        let under_way = reading.get_or_insert_with(|| spawn_blocking(read));
        let read = tokio::time::timeout(READING, under_way).await.ok()?;
        *reading = None;
        Some(read.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic())))
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, sync::atomic::AtomicUsize};

    use flate2::{Compression, write::GzEncoder};
    use jiff::Timestamp;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::{opsramp::RateLimit, secret::SecretSource};

    /// Whoever does not care what happens on the wire.
    #[derive(Debug)]
    struct Nobody;

    impl Observer for Nobody {
        fn request(&self, _: Endpoint, _: Option<u16>, _: Duration) {}
        fn token_requested(&self) {}
        fn token_obtained(&self, _: Duration, _: Timestamp) {}
        fn token_failed(&self, _: &'static str) {}
        fn rate_limit(&self, _: &str, _: RateLimit) {}
        fn throttled(&self, _: &str, _: Duration) {}
    }

    /// A server that answers whatever it is asked with these bytes, for a request's head and body, and
    /// hangs up. A client of it.
    async fn client_of(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = String::new();
                let mut buffer = [0; 4096];
                // A form is known by its end.
                while !request.ends_with("\r\n\r\n") && !request.contains("client_secret=") {
                    let read = stream.read(&mut buffer).await.unwrap();
                    assert!(read > 0, "{request}");
                    request.push_str(str::from_utf8(&buffer[..read]).unwrap());
                }
                stream.write_all(&answer(&request)).await.unwrap();
            }
        });
        let options = Options {
            name: "acme".into(),
            token_url: format!("{url}/auth/oauth/token"),
            url,
            client_id: SecretSource::Value(Secret::new("key")),
            client_secret: SecretSource::Value(Secret::new("secret")),
            timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(30),
            requests_per_minute: None,
            max_response_size: 1 << 20,
            proxy_url: None,
            tls: TlsOptions::default(),
        };
        Client::new(options, Arc::new(Nobody)).unwrap()
    }

    fn response(head: &str, body: &[u8]) -> Vec<u8> {
        let length = body.len();
        let head =
            format!("HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        [head.as_bytes(), body].concat()
    }

    fn token(text: &str, seconds: u64) -> Vec<u8> {
        let answer = format!(r#"{{"access_token":"{text}","expires_in":{seconds}}}"#);
        response("200 OK", answer.as_bytes())
    }

    async fn search(client: &Client) -> Result<Answer, Error> {
        let request = SearchRequest {
            query: "actions:OPEN".to_owned(),
            page: 1,
            page_size: 100,
            sorted: false,
        };
        client.search("client_1", &request, Urgency::Poll).await
    }

    #[tokio::test]
    async fn an_answer_that_is_no_http_does_not_count_as_a_server_that_cannot_be_reached() {
        for answer in [
            &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
            b"\x15\x03\x01\x00\x02\x02\x16",
        ] {
            let client = client_of(move |request| {
                if request.starts_with("POST") {
                    token("a", 7200)
                } else {
                    answer.to_vec()
                }
            });
            let error = search(&client.await).await.unwrap_err();
            assert_eq!(error.reason(), "decode");
            let told = error.chain();
            let begin = "search answered with something that is no HTTP answer (";
            assert!(told.starts_with(begin), "{told}");
        }
    }

    #[tokio::test]
    async fn a_body_is_decompressed_whatever_case_its_coding_is_written_in() {
        let compressed = |text: &str| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap()
        };
        let body = [compressed(r#"{"results":"#), compressed("[]}")].concat();
        let client = client_of(move |request| {
            if request.starts_with("POST") {
                return token("a", 7200);
            }
            assert!(request.contains("accept-encoding: gzip\r\n"), "{request}");
            response("200 OK\r\nContent-Encoding: GZIP", &body)
        });
        let answer = search(&client.await).await.unwrap();
        assert_eq!(answer.text(), r#"{"results":[]}"#);
    }

    #[tokio::test]
    async fn a_request_that_waited_for_the_allowance_is_made_with_a_token_that_lives() {
        let (tokens, searches) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let client = client_of(move |request| {
            if request.starts_with("POST") {
                let number = tokens.fetch_add(1, Ordering::Relaxed);
                return token(&format!("token{number}"), 1);
            }
            match searches.fetch_add(1, Ordering::Relaxed) {
                0 => response("429 Too Many Requests\r\nRetry-After: 2", b""),
                _ if request.contains("authorization: Bearer token0\r\n") => {
                    response("400 Bad Request", b"it has run out")
                }
                _ => response("200 OK", b"{}"),
            }
        });
        let client = client.await;
        assert_eq!(search(&client).await.unwrap_err().reason(), "throttled");
        search(&client).await.unwrap();
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

    #[test]
    fn a_life_that_nobody_can_read_is_as_one_that_is_not_told() {
        let life = |told: &str| {
            let answer = format!(r#"{{"access_token":"a"{told}}}"#);
            read_token(answer.as_bytes()).unwrap().1
        };
        for told in [
            "",
            r#","expires_in":"NaN""#,
            r#","expires_in":"inf""#,
            r#","expires_in":"soon""#,
            r#","expires_in":-1"#,
            r#","expires_in":null"#,
        ] {
            assert_eq!(life(told), UNTOLD_LIFE, "{told}");
        }
        assert_eq!(life(r#","expires_in":0"#), MIN_LIFE);
        assert_eq!(life(r#","expires_in":" 7199 ""#).as_secs(), 7199);
        assert_eq!(life(r#","expires_in":1e300"#), MAX_LIFE);
    }
}
