//! One request and its answer.
//!
//! Redirects are never followed, because a redirect of the token endpoint would hand the secret to
//! any server that it names.

use std::{io, sync::Arc, time::Duration};

use anyhow::Chain;
use jiff::SignedDuration;
use parking_lot::{Mutex, MutexGuard};
use reqwest::{Method, StatusCode, header};
use tokio::{sync::Semaphore, time::Instant};

use super::{
    Endpoint, Observer, Options,
    body::{Body, BodyError},
    error::Error,
    room::{Room, Share},
    tls::{self, BuildError, CurrentClient, TlsFiles},
};
use crate::{
    clock,
    error_chain::chain,
    excerpt::Secrets,
    http_client::io_errors,
    http_date, proxy,
    reading::{self, Reading},
    redirect,
    secret::Secret,
};

/// The shortest time between two reloads of the TLS files that the client makes by itself.
const MIN_RELOAD_INTERVAL: Duration = Duration::from_secs(1);
/// Limits how many threads read the TLS files of new accounts. If the files do not answer, each
/// try of a reload keeps a thread until they do, and other tasks need threads, too.
static TLS_READERS: Semaphore = Semaphore::const_new(16);

/// The number of secrets, sent last, that are looked for in answers: the ids, secrets and tokens of
/// a few rotations. A secret that was replaced is often valid for some time.
const MAX_SENT: usize = 12;
/// The longest body of a refusal that is read, in bytes.
const MAX_REFUSAL: u64 = 256 * 1024;
/// The longest time that the body of a refusal may take.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(5);
/// Replaces a refusal's body that cannot be read. If a body is cut off, the part that came is not
/// shown, because its end could be a part of a secret.
const UNREADABLE: &[u8] = b"(its body cannot be read)";

/// How requests are made, shared with the token endpoint.
#[derive(Clone, Debug)]
pub(super) struct Http {
    pub(super) options: Arc<Options>,
    /// The credentials that are sent to proxies on the way.
    proxies: Arc<[Secret]>,
    /// The credentials for proxies, and after them the last ids, secrets and tokens that were sent
    /// to the server.
    sent: Arc<Mutex<Arc<[Secret]>>>,
    current: Arc<Mutex<CurrentClient>>,
    reading: Arc<Reading<TlsRead>>,
    share: Share,
}

/// The result of reading the TLS files: `None` if they are the same as those in use.
type TlsRead = Result<Option<CurrentClient>, BuildError>;

/// A complete answer, and the room that its body takes up.
pub(super) type Exchanged = (StatusCode, header::HeaderMap, Vec<u8>, Room);

/// Why a request brought nothing that could be used.
#[derive(Debug)]
pub(super) struct Failed {
    /// The status of the answer, if there was one.
    pub(super) status: Option<u16>,
    /// Whether the connection ended before any part of an answer had come.
    pub(super) hung_up: bool,
    pub(super) error: Error,
}

/// A request under way, which is reported to the observer at its end. If its caller stops waiting,
/// it is reported as a request without an answer, because the server may have counted it.
#[derive(Debug)]
pub(super) struct OnTheWire<'a> {
    endpoint: Endpoint,
    observer: &'a dyn Observer,
    began: Instant,
    status: Option<u16>,
}

// === impl Http ===

impl Http {
    /// Reads the TLS files; nothing is sent yet.
    ///
    /// # Errors
    /// If a certificate, a key or the proxy is not usable, or a file does not answer.
    pub(super) async fn new(options: Options) -> Result<Self, BuildError> {
        let current = if options.tls.files().next().is_none() {
            CurrentClient::new(&options, TlsFiles::default())?
        } else {
            let unread = || unread(&options);
            let place = TLS_READERS.try_acquire().map_err(|_| unread())?;
            let options = options.clone();
            let read = reading::once(move || {
                let read = TlsFiles::read(&options.name, &options.tls);
                drop(place);
                CurrentClient::new(&options, read?)
            });
            read.await.unwrap_or_else(|| Err(unread()))?
        };
        let proxies = proxy::authorizations(
            options.proxy_url.as_ref().map(|url| &url.0),
            [options.url.as_str(), &options.token_url],
        );
        let proxies: Arc<[Secret]> = proxies.into();
        Ok(Self {
            options: Arc::new(options),
            sent: Arc::new(Mutex::new(Arc::clone(&proxies))),
            proxies,
            current: Arc::new(Mutex::new(current)),
            reading: Arc::default(),
            share: Share::default(),
        })
    }

    pub(super) fn request(&self, method: Method, url: &str) -> reqwest::RequestBuilder {
        let client = self.current().client.clone();
        client
            .request(method, url)
            .header(header::ACCEPT, "application/json")
            .header(header::ACCEPT_ENCODING, "gzip")
            .timeout(self.options.timeout)
    }

    /// Records a secret that is about to be sent to the server.
    pub(super) fn note_sent(&self, secret: &Secret) {
        let mut sent = self.sent.lock();
        let recent = &sent[self.proxies.len()..];
        if recent.last() == Some(secret) {
            return;
        }
        let mut recent: Vec<_> = recent.iter().filter(|it| *it != secret).collect();
        recent.push(secret);
        let forgotten = recent.len().saturating_sub(MAX_SENT);
        let secrets = self.proxies.iter().chain(recent.drain(forgotten..));
        *sent = secrets.cloned().collect();
    }

    /// Returns the secrets that the server or a proxy on the way has been sent lately. No message
    /// may show them, though an answer may repeat them.
    pub(super) fn sent_secrets(&self) -> Arc<[Secret]> {
        Arc::clone(&self.sent.lock())
    }

    fn current(&self) -> MutexGuard<'_, CurrentClient> {
        self.current.lock()
    }

    /// Like [`Self::reload_tls_files`], but once a second at most, and a failure is logged.
    pub(super) async fn reload_tls_files_if_due(&self) {
        if self.current().checked_at.elapsed() < MIN_RELOAD_INTERVAL {
            return;
        }
        if let Err(error) = self.reload_tls_files().await {
            tracing::warn!(
                account = %self.options.name,
                error = %chain(&error),
                "the files of tls cannot be used; connections are made with those before"
            );
        }
    }

    pub(super) async fn reload_tls_files(&self) -> Result<(), BuildError> {
        if self.options.tls.files().next().is_none() {
            return Ok(());
        }
        let fingerprint = {
            let mut current = self.current();
            current.checked_at = Instant::now();
            current.fingerprint
        };
        let options = Arc::clone(&self.options);
        let read = move || {
            let files = TlsFiles::read(&options.name, &options.tls)?;
            if files.fingerprint() == fingerprint {
                return Ok(None);
            }
            CurrentClient::new(&options, files).map(Some)
        };
        let read = self.reading.read(read).await;
        if let Some(new) = read.unwrap_or_else(|| Err(unread(&self.options)))? {
            *self.current() = new;
            tracing::info!(account = %self.options.name, "the files of tls were read again");
        }
        Ok(())
    }

    /// Sends a request and reads the answer's body, up to `limit` bytes. The body of a refusal is
    /// only for people. If it cannot be read, status and headers still count, because they say
    /// what is refused, and for how long.
    pub(super) async fn exchange(
        &self,
        endpoint: Endpoint,
        request: reqwest::RequestBuilder,
        limit: u64,
    ) -> Result<Exchanged, Failed> {
        let mut response = request.send().await.map_err(|error| Failed {
            status: None,
            hung_up: is_hang_up(&error),
            error: self.transport_error(endpoint, error),
        })?;
        let status = response.status();
        let body = if status.is_success() {
            self.read_body(endpoint, &mut response, limit, self.options.timeout)
                .await
                .map_err(|error| Failed {
                    status: Some(status.as_u16()),
                    hung_up: false,
                    error,
                })?
        } else {
            let limit = limit.min(MAX_REFUSAL);
            let patience = self.options.timeout.min(REFUSAL_PATIENCE);
            self.read_body(endpoint, &mut response, limit, patience)
                .await
                .unwrap_or_else(|_| (UNREADABLE.to_vec(), Room::default()))
        };
        let headers = std::mem::take(response.headers_mut());
        Ok((status, headers, body.0, body.1))
    }

    async fn read_body(
        &self,
        endpoint: Endpoint,
        response: &mut reqwest::Response,
        limit: u64,
        patience: Duration,
    ) -> Result<(Vec<u8>, Room), Error> {
        let unusable = |why| match why {
            BodyError::TooLarge => Error::TooLarge {
                endpoint: endpoint.as_str(),
                limit,
                configured: limit == self.options.max_response_size,
            },
            BodyError::Corrupt(error) => undecodable(endpoint, &error),
        };
        let url = response.url().clone();
        let length = response.content_length();
        let mut body = Body::new(response.headers(), length, limit, &self.share);
        let read = async {
            while let Some(chunk) = response
                .chunk()
                .await
                .map_err(|error| self.transport_error(endpoint, error))?
            {
                body.push(&chunk).await.map_err(unusable)?;
            }
            body.finish().map_err(unusable)
        };
        let timed_out = |_| Error::Timeout {
            host: self.host(Some(&url)),
            limit: patience,
        };
        tokio::time::timeout(patience, read)
            .await
            .map_err(timed_out)?
    }

    /// Reports the server's time to the observer. Returns how far the server's clock is ahead of
    /// ours.
    pub(super) fn report_server_time(
        headers: &header::HeaderMap,
        observer: &dyn Observer,
    ) -> Option<SignedDuration> {
        let date = headers.get(header::DATE)?.to_str().ok()?;
        let (server, now) = (http_date::parse(date)?, clock::now());
        observer.server_time(server, now);
        Some(server.duration_since(now))
    }

    /// Returns the host and port of a URL, or of the API if there is no URL. Messages do not need
    /// the other parts of a URL.
    pub(super) fn host(&self, url: Option<&reqwest::Url>) -> String {
        // The error of a body that breaks off has no URL.
        let base = reqwest::Url::parse(&self.options.url).ok();
        url.or(base.as_ref())
            .and_then(|url| {
                let port = url.port().map(|port| format!(":{port}"));
                Some(format!("{}{}", url.host_str()?, port.unwrap_or_default()))
            })
            .unwrap_or_else(|| self.options.url.clone())
    }

    fn transport_error(&self, endpoint: Endpoint, error: reqwest::Error) -> Error {
        let mut host = self.host(error.url());
        if error.is_connect()
            && let Some(url) = error.url()
        {
            // The server that cannot be reached may be the proxy.
            let proxy_url = self.options.proxy_url.as_ref().map(|url| &url.0);
            let any = proxy_url.is_some() || self.options.environment_proxies;
            if let Some(proxy) = proxy::before(proxy_url, url.as_str()).filter(|_| any) {
                host = format!("{host} through the proxy {proxy}");
            }
        }
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
            Error::CutOff {
                endpoint: endpoint.as_str(),
            }
        } else if error.is_decode() && !is_broken_connection(&error) {
            undecodable(endpoint, &error)
        } else if !error.is_connect() && is_no_http(&error) {
            // A server was reached, but one that does not speak HTTP.
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

// === impl OnTheWire ===

impl<'a> OnTheWire<'a> {
    pub(super) fn begin(endpoint: Endpoint, observer: &'a dyn Observer) -> Self {
        Self {
            endpoint,
            observer,
            began: Instant::now(),
            status: None,
        }
    }

    /// Ends the request: it was answered with `status`, or failed without one. Returns how long it
    /// took.
    pub(super) fn end(mut self, status: Option<u16>) -> Duration {
        self.status = status;
        self.began.elapsed()
    }
}

impl Drop for OnTheWire<'_> {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        self.observer.request(self.endpoint, self.status, took);
    }
}

/// Checks whether a client can be made of the TLS files. Nothing is sent. Returns the errors of
/// files that cannot be read here but that the exporter may be able to read.
///
/// # Errors
/// If a certificate, a key or the proxy is not usable, or a file does not answer.
pub(crate) async fn check_tls_files(options: &Options) -> Result<Vec<BuildError>, BuildError> {
    let unread = unread(options);
    let options = options.clone();
    let check = reading::once(move || tls::check(&options));
    check.await.unwrap_or(Err(unread))
}

/// Returns the error of TLS files that do not answer.
fn unread(options: &Options) -> BuildError {
    BuildError::Unread {
        account: Arc::clone(&options.name),
        paths: options.tls.files().cloned().collect(),
    }
}

fn undecodable(endpoint: Endpoint, error: &(dyn std::error::Error + 'static)) -> Error {
    Error::Decode {
        endpoint: endpoint.as_str(),
        what: format!("with a body that cannot be decoded ({})", root(error)),
        excerpt: String::new(),
    }
}

/// Returns the last cause of an error.
fn root(error: &(dyn std::error::Error + 'static)) -> String {
    let last = Chain::new(error).last();
    last.map(ToString::to_string).unwrap_or_default()
}

/// Whether the connection ended, in good order or not, before any part of an answer had come.
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
    hyper_errors(error).any(hyper::Error::is_incomplete_message)
        || io_errors(error).any(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

/// Whether the bytes that came cannot be the beginning of an HTTP answer.
fn is_no_http(error: &reqwest::Error) -> bool {
    hyper_errors(error).any(hyper::Error::is_parse)
}

/// Whether the operating system reported an error of the connection.
fn is_broken_connection(error: &reqwest::Error) -> bool {
    io_errors(error).any(|error| error.raw_os_error().is_some())
}

fn hyper_errors(error: &reqwest::Error) -> impl Iterator<Item = &hyper::Error> {
    Chain::new(error).filter_map(|error| error.downcast_ref())
}

pub(super) fn bearer(token: &Secret) -> header::HeaderValue {
    let text = format!("Bearer {}", token.expose());
    let mut value = header::HeaderValue::try_from(text)
        .expect("a token is checked to fit a header when it is obtained");
    value.set_sensitive(true);
    value
}

/// Returns what a message shows of an answer: where a redirect leads, otherwise the beginning of
/// the body.
pub(super) fn redirect_or_excerpt(
    status: StatusCode,
    headers: &header::HeaderMap,
    body: &[u8],
    secrets: &Secrets,
) -> String {
    // Other answers may have a `Location` as well, but their bodies say what is wrong.
    let location = headers
        .get(header::LOCATION)
        .filter(|_| status.is_redirection())
        .and_then(|value| value.to_str().ok());
    match location {
        Some(location) => format!(
            "a redirect to {}, which is not followed",
            redirect::origin(location, secrets)
        ),
        None => secrets.excerpt(body),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{opsramp::ProxyUrl, secret::SecretSource};

    #[tokio::test]
    async fn the_secrets_that_were_sent_last_are_remembered_and_those_of_proxies_for_good() {
        let key = || SecretSource::Value(Secret::new("key"));
        let proxy_url = ProxyUrl(Secret::new("http://user:word@proxy.example:3128"));
        let options = Options {
            proxy_url: Some(proxy_url),
            ..Options::new("acme".into(), "https://a.example".into(), key(), key())
        };
        let http = Http::new(options).await.unwrap();
        let of_proxies = http.sent_secrets();
        assert!(!of_proxies.is_empty());
        let secret = |number: usize| Secret::new(format!("secret {number}"));
        // One that is sent once more is the last one again.
        for number in (0..20).chain([9, 9, 20]) {
            http.note_sent(&secret(number));
        }
        let last = (10..20).chain([9, 20]).map(secret);
        let expected: Vec<_> = of_proxies.iter().cloned().chain(last).collect();
        assert_eq!(*http.sent_secrets(), expected);
    }

    #[test]
    fn an_answer_that_names_a_place_is_a_redirect_only_where_its_status_says_so() {
        let mut headers = header::HeaderMap::new();
        let place = header::HeaderValue::from_static("https://sso.example/in?token=x");
        headers.insert(header::LOCATION, place);
        for (status, shown) in [
            (
                302,
                "a redirect to https://sso.example, which is not followed",
            ),
            (400, "no such query"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let secrets = Secrets::default();
            let told = redirect_or_excerpt(status, &headers, b"no such query", &secrets);
            assert_eq!(told, shown);
        }
    }
}
