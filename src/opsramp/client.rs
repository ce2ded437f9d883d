//! The client of one account: requests, their errors, and what is learned from the headers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, header};

use super::{
    Endpoint, Expiry, Observer, Options,
    allowance::{Allowance, Allowances, Hints, Reservation, Share, Urgency},
    error::Error,
    http::{Exchanged, Failed, Http, OnTheWire, bearer, redirect_or_excerpt},
    page::Answer,
    tls::BuildError,
    token::{Token, Tokens},
    token_endpoint::TokenEndpoint,
};
use crate::{clock, excerpt::Secrets};

/// The characters that are percent-encoded: all but those that RFC 3986 leaves unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// The maximum number of requests that an account has in flight. A search has only two at a time
/// (one of its poll and one of its full read), or a few for alerts' own pages. So other tenants
/// wait only if many tenants hang.
const MAX_IN_FLIGHT: usize = 128;
/// How many times a request is sent at most if its connection ends before an answer. More than one
/// idle connection may have been closed meanwhile.
const MAX_SENDS: usize = 3;
/// The largest page of one alert, in bytes. Many such pages may be in memory at the same time.
const MAX_ALERT_ANSWER: u64 = 1024 * 1024;
/// The page size that every documented example works with.
const SAFE_PAGE_SIZE: u32 = 100;

/// The client of one account. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>, Option<SentRequests>);

/// The number of requests that have been sent. Cheap to clone; all clones count together.
#[derive(Clone, Debug, Default)]
pub struct SentRequests(Arc<AtomicU64>);

#[derive(Debug)]
struct Inner {
    http: Http,
    tokens: Tokens<TokenEndpoint>,
    observer: Arc<dyn Observer>,
    /// Whether the observer was last told that the token is lost.
    token_lost: AtomicBool,
    in_flight: tokio::sync::Semaphore,
    /// The URL as all its spellings are written.
    server: Arc<str>,
    allowances: Allowances,
}

/// A page of a search, to be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchRequest {
    /// The readable `queryString`, such as `actions:OPEN`.
    pub query: String,
    /// The number of the page, from 1.
    pub page: u64,
    /// Alerts a page.
    pub page_size: u32,
    /// Whether to ask for the newest alerts first (`sortName=ts`); otherwise the server's own
    /// order.
    pub sorted: bool,
}

/// The token in use, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    /// How long the token request took.
    pub took: Duration,
    /// How long the token still lives.
    pub remaining: Duration,
    /// The token's scope, if the endpoint stated it.
    pub scope: Option<String>,
}

/// A request to the API, without its token.
struct Call<'a> {
    endpoint: Endpoint,
    tenant: &'a str,
    url: String,
    allowance: &'a Allowance,
    urgency: Urgency,
}

/// Why a single request brought nothing.
enum SendError {
    /// The token was not accepted.
    TokenRefused {
        status: u16,
        excerpt: String,
        token: Token,
    },
    /// The connection ended before there was an answer.
    HungUp {
        error: Error,
        took: Duration,
    },
    Other(Error),
}

// === impl SearchRequest ===

impl SearchRequest {
    /// Returns the request to try next if the server refuses the paging of this one: with a
    /// smaller page, then without sorting. (Neither the largest page size nor the sort key is
    /// documented.) `None` if nothing is left to try.
    #[must_use]
    pub fn with_simpler_paging(&self) -> Option<Self> {
        let request = self.clone();
        if self.page_size > SAFE_PAGE_SIZE {
            Some(Self {
                page_size: SAFE_PAGE_SIZE,
                ..request
            })
        } else {
            self.sorted.then_some(Self {
                sorted: false,
                ..request
            })
        }
    }
}

// === impl SentRequests ===

impl SentRequests {
    /// Returns how many there have been.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

// === impl Client ===

impl Client {
    /// Sets up the client; nothing is sent yet. It shares these allowances.
    ///
    /// # Errors
    /// If a certificate, a key or the proxy is not usable, or a file does not answer.
    pub async fn new(
        options: Options,
        allowances: &Allowances,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, BuildError> {
        let server = options.server();
        let http = Http::new(options).await?;
        let issuer = TokenEndpoint::new(http.clone(), observer.clone());
        let tokens = Tokens::new(Arc::clone(&http.options.name), issuer);
        let inner = Inner {
            http,
            tokens,
            observer,
            token_lost: AtomicBool::new(false),
            in_flight: tokio::sync::Semaphore::new(MAX_IN_FLIGHT),
            server,
            allowances: allowances.clone(),
        };
        Ok(Self(Arc::new(inner), None))
    }

    /// The same client, whose requests are counted in `sent`: each time that one is sent, but not
    /// those for tokens.
    #[must_use]
    pub fn counting(&self, sent: SentRequests) -> Self {
        Self(Arc::clone(&self.0), Some(sent))
    }

    /// How the account is reached.
    pub(crate) fn options(&self) -> &Options {
        &self.0.http.options
    }

    /// The account's name.
    #[must_use]
    pub fn account(&self) -> &Arc<str> {
        &self.0.http.options.name
    }

    /// Reads the TLS files again, and uses them for new connections. The client also does this by
    /// itself before it requests a token and after a connection has failed.
    ///
    /// # Errors
    /// If the files are not usable. The previous ones then stay in use.
    pub async fn reload_tls_files(&self) -> Result<(), BuildError> {
        self.0.http.reload_tls_files().await
    }

    /// Makes sure that there is a token.
    ///
    /// # Errors
    /// If there is no token and none can be obtained.
    pub async fn token(&self) -> Result<TokenInfo, Error> {
        let token = self.0.tokens.get().await?;
        Ok(TokenInfo {
            took: token.took,
            remaining: token.remaining(),
            scope: token.scope.as_deref().map(str::to_owned),
        })
    }

    /// Requests a page of a search.
    ///
    /// # Errors
    /// If the request fails. An answer that is no search result is noticed only when it is read.
    pub async fn search(
        &self,
        tenant: &str,
        request: &SearchRequest,
        urgency: Urgency,
    ) -> Result<Answer, Error> {
        let url = search_url(&self.0.http.options.url, tenant, request);
        self.send(Call {
            endpoint: Endpoint::Search,
            tenant,
            url,
            allowance: self.share(tenant).search(),
            urgency,
        })
        .await
    }

    /// Requests the first page of a result. Returns the answer and the request that brought it. If
    /// the server answers 400, the same request is made once more, because a 400 may be a passing
    /// fault. Each further 400 leads to a request as by `SearchRequest::with_simpler_paging`.
    ///
    /// # Errors
    /// If the request fails in another way, or with 400 when nothing is left to try.
    pub async fn search_first(
        &self,
        tenant: &str,
        mut request: SearchRequest,
        urgency: Urgency,
    ) -> Result<(Answer, SearchRequest), Error> {
        let mut repeated = false;
        loop {
            let error = match self.search(tenant, &request, urgency).await {
                Ok(answer) => return Ok((answer, request)),
                Err(error) => error,
            };
            if !error.may_concern_paging() {
                return Err(error);
            }
            if std::mem::replace(&mut repeated, true) {
                match request.with_simpler_paging() {
                    Some(simpler) => request = simpler,
                    None => return Err(error),
                }
            }
        }
    }

    /// Requests one alert, whatever its status. `None` if there is no such alert.
    ///
    /// # Errors
    /// If the request fails.
    pub async fn alert(
        &self,
        tenant: &str,
        id: &str,
        urgency: Urgency,
    ) -> Result<Option<Answer>, Error> {
        if !is_path_segment(id) {
            return Ok(None);
        }
        let id = utf8_percent_encode(id, ENCODED);
        let url = format!("{}/alerts/{id}", self.tenant_url(tenant));
        let share = self.share(tenant);
        let answer = self.send(Call {
            endpoint: Endpoint::Alert,
            tenant,
            url,
            allowance: share.alert(),
            urgency,
        });
        match answer.await {
            Err(Error::Http { status: 404, .. }) => Ok(None),
            // The answer that a similar endpoint documents for an id that does not exist.
            Err(Error::Http {
                status: 500,
                excerpt,
                ..
            }) if excerpt.contains("\"0003\"") => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// Requests a page of the clients of a partner.
    ///
    /// # Errors
    /// If the request fails.
    pub async fn clients(&self, partner: &str, page: u64) -> Result<Answer, Error> {
        let url = format!(
            "{}/clients/search?pageNo={page}&pageSize=100",
            self.tenant_url(partner)
        );
        self.send(Call {
            endpoint: Endpoint::Clients,
            tenant: partner,
            url,
            allowance: self.share(partner).clients(),
            urgency: Urgency::Background,
        })
        .await
    }

    /// Keeps the part of a tenant's allowance free for polls that a poll every `interval` needs.
    #[must_use]
    pub fn reserve(&self, tenant: &str, interval: Duration) -> Reservation {
        self.share(tenant).reserve(interval)
    }

    /// Hides the secrets that the client before this one has sent, too, in answers that repeat
    /// them. One that was replaced is often valid for some time.
    pub fn remember_secrets_of(&self, old: &Self) {
        for secret in &*old.0.http.sent_secrets() {
            self.0.http.note_sent(secret);
        }
    }

    async fn send(&self, call: Call<'_>) -> Result<Answer, Error> {
        // A request that fails for lack of a token must not use up the allowance.
        self.0.tokens.get().await?;
        let first = self.send_with_retries(&call).await;
        let Err(SendError::TokenRefused { token, .. }) = &first else {
            return first.map_err(|error| error.into_error(false));
        };
        // 407 is the documented answer to a token that ran out or was revoked.
        let refuser = (call.endpoint.as_str(), call.tenant.into());
        match self.0.tokens.replace(token, refuser).await {
            Ok(Some(_)) => {
                tracing::debug!(account = %self.account(), "the API refused the token; trying a new one once");
                let second = self.send_with_retries(&call).await;
                second.map_err(|error| error.into_error(true))
            }
            Ok(None) => first.map_err(|error| error.into_error(false)),
            Err(error) => {
                self.0.token_lost.store(true, Ordering::Relaxed);
                self.0.observer.token_lost();
                Err(error)
            }
        }
    }

    /// Sends a request, and sends it again if the connection ends before there is an answer: a
    /// server may close an idle connection at any time, also at the moment when it is used again.
    /// Because each of these requests may have arrived and been counted, each takes its part of
    /// the allowance. Together they spend no more time on the wire than one request may.
    async fn send_with_retries(&self, call: &Call<'_>) -> Result<Answer, SendError> {
        let mut left = self.0.http.options.timeout;
        let mut sends = 1;
        loop {
            match self.send_once(call, left).await {
                Err(SendError::HungUp { took, .. }) if sends < MAX_SENDS && took < left => {
                    sends += 1;
                    left -= took;
                }
                outcome => return outcome,
            }
        }
    }

    async fn send_once(&self, call: &Call<'_>, timeout: Duration) -> Result<Answer, SendError> {
        let observer = &self.0.observer;
        let throttled = |waited| observer.throttled(call.tenant, waited);
        let _permit = call.allowance.acquire(call.urgency, throttled).await;
        // The semaphore is never closed.
        let _slot = self.0.in_flight.acquire().await;
        // Waiting can take minutes, and the token may have run out by now.
        let token = self.0.tokens.get().await.map_err(SendError::Other)?;
        let http = &self.0.http;
        http.note_sent(&token.secret);
        let request = http
            .request(Method::GET, &call.url)
            .timeout(timeout)
            .header(header::AUTHORIZATION, bearer(&token.secret));
        let on_the_wire = OnTheWire::begin(call.endpoint, &**observer);
        if let Some(sent) = &self.1 {
            sent.add();
        }
        let limit = match call.endpoint {
            Endpoint::Alert => http.options.max_response_size.min(MAX_ALERT_ANSWER),
            _ => http.options.max_response_size,
        };
        let answer = http.exchange(call.endpoint, request, limit).await;
        let status = match &answer {
            Ok((status, ..)) => Some(status.as_u16()),
            Err(failed) => failed.status,
        };
        let took = on_the_wire.end(status);
        match answer {
            Ok(answer) => self.interpret(call, token, answer),
            Err(Failed { hung_up, error, .. }) => {
                if matches!(error, Error::Connect { .. }) {
                    // The TLS files may be the cause. They are reloaded in the background, so that
                    // the next request does not wait for the disk.
                    let http = http.clone();
                    tokio::spawn(async move { http.reload_tls_files_if_due().await });
                }
                Err(if hung_up {
                    SendError::HungUp { error, took }
                } else {
                    SendError::Other(error)
                })
            }
        }
    }

    /// Learns from an answer's headers, and turns its status into a result.
    fn interpret(
        &self,
        call: &Call<'_>,
        token: Token,
        (status, headers, body, room): Exchanged,
    ) -> Result<Answer, SendError> {
        let &Call {
            endpoint,
            tenant,
            allowance,
            ..
        } = call;
        let clock_ahead = Http::report_server_time(&headers, &*self.0.observer);
        let hints = Hints::read(status.as_u16(), &headers, clock::now());
        allowance.learn(&hints);
        if endpoint == Endpoint::Search
            && let Some(seen) = hints.rate_limit()
        {
            self.0.observer.rate_limit(tenant, seen);
        }
        let sent_secrets = || self.0.http.sent_secrets();
        let secrets = || Secrets::of(&sent_secrets());
        let shown = || secrets().excerpt(&body);
        match status.as_u16() {
            200..=299 => {
                self.note_accepted(&token, endpoint, tenant);
                let sent_secrets = sent_secrets();
                let endpoint = endpoint.as_str();
                Ok(Answer::new(endpoint, body, room, sent_secrets, clock_ahead))
            }
            401 | 407 => Err(SendError::TokenRefused {
                status: status.as_u16(),
                excerpt: shown(),
                token,
            }),
            403 => {
                self.note_accepted(&token, endpoint, tenant);
                let what = format!(
                    "{} of tenant {tenant} is forbidden (403): the key lacks the permission: {}",
                    endpoint.as_str(),
                    shown()
                );
                Err(SendError::Other(Error::Auth {
                    what,
                    forbidden: true,
                }))
            }
            429 => Err(SendError::Other(Error::Throttled {
                retry_after: hints.retry_after,
            })),
            code => Err(SendError::Other(Error::Http {
                endpoint: endpoint.as_str(),
                status: code,
                excerpt: redirect_or_excerpt(status, &headers, &body, &secrets()),
            })),
        }
    }

    fn note_accepted(&self, token: &Token, endpoint: Endpoint, tenant: &str) {
        self.0
            .tokens
            .note_accepted(token, endpoint.as_str(), tenant);
        // The API may accept a token again that it refused before.
        if self.0.token_lost.swap(false, Ordering::Relaxed) {
            let expiry = Expiry::after(token.remaining(), clock::now());
            let is_renewal_due = token.is_renewal_due();
            self.0.observer.token_regained(expiry, is_renewal_due);
        }
    }

    fn tenant_url(&self, tenant: &str) -> String {
        tenant_url(&self.0.http.options.url, tenant)
    }

    fn share(&self, tenant: &str) -> Share {
        let Inner {
            http,
            server,
            allowances,
            ..
        } = &*self.0;
        allowances.share(server, tenant, http.options.requests_per_minute)
    }
}

/// Whether a URL can have an id in its path. However the other ids are encoded, the URL would lead
/// to another path.
pub(super) fn is_path_segment(id: &str) -> bool {
    !matches!(id, "" | "." | "..")
}

fn tenant_url(base: &str, tenant: &str) -> String {
    let tenant = utf8_percent_encode(tenant, ENCODED);
    format!("{base}/api/v2/tenants/{tenant}")
}

/// Returns the URL of a page of a search.
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

// === impl SendError ===

impl SendError {
    /// Turns this into the error for the caller. `replaced`: whether the refused token had
    /// replaced one that was refused as well.
    fn into_error(self, replaced: bool) -> Error {
        match self {
            Self::TokenRefused {
                status, excerpt, ..
            } => {
                let also = if replaced { ", also a new one" } else { "" };
                Error::auth(format!(
                    "the API refuses the token{also} ({status}): {excerpt}"
                ))
            }
            Self::HungUp { error, .. } | Self::Other(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, sync::atomic::AtomicUsize};

    use flate2::{Compression, write::GzEncoder};
    use futures_util::FutureExt as _;
    use parking_lot::Mutex;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::{
        opsramp::RateLimit,
        secret::{Secret, SecretSource},
    };

    /// Notes how requests were answered and what became of the token, and nothing else that happens
    /// on the wire.
    #[derive(Debug, Default)]
    struct Notes(
        Mutex<Vec<(Endpoint, Option<u16>)>>,
        /// What became of the token.
        Mutex<Vec<&'static str>>,
    );

    impl Notes {
        fn of(&self, endpoint: Endpoint) -> Vec<Option<u16>> {
            let notes = self.0.lock();
            let of_it = notes.iter().filter(|(noted, _)| *noted == endpoint);
            of_it.map(|(_, status)| *status).collect()
        }
    }

    impl Observer for Notes {
        fn request(&self, endpoint: Endpoint, status: Option<u16>, _: Duration) {
            self.0.lock().push((endpoint, status));
        }
        fn token_requested(&self) {}
        fn token_obtained(&self, _: Duration, _: Expiry) {
            self.1.lock().push("obtained");
        }
        fn token_lost(&self) {
            self.1.lock().push("lost");
        }
        fn token_regained(&self, _: Expiry, _: bool) {
            self.1.lock().push("regained");
        }
        fn token_failed(&self, reason: &'static str, _: &Error) {
            self.1.lock().push(reason);
        }
        fn rate_limit(&self, _: &str, _: RateLimit) {}
        fn throttled(&self, _: &str, _: Duration) {}
    }

    /// Starts a server that answers each request with what `answer` returns for its head and body,
    /// and then hangs up. Returns a client of this server.
    async fn client_of(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> Client {
        observed_client_of(answer, Arc::default()).await
    }

    async fn observed_client_of(
        answer: impl Fn(&str) -> Vec<u8> + Send + 'static,
        notes: Arc<Notes>,
    ) -> Client {
        client_at(serve(answer).await, notes).await
    }

    /// Serves answers to requests. Returns the URL.
    async fn serve(answer: impl Fn(&str) -> Vec<u8> + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = String::new();
                let mut buffer = [0; 4096];
                // The body of a token request is complete once its last field is there.
                while !request.ends_with("\r\n\r\n") && !request.contains("client_secret=") {
                    let read = stream.read(&mut buffer).await.unwrap();
                    assert!(read > 0, "{request}");
                    request.push_str(str::from_utf8(&buffer[..read]).unwrap());
                }
                // A client hangs up at an answer that is too long.
                stream.write_all(&answer(&request)).await.ok();
            }
        });
        url
    }

    /// Gives a token to whoever asks for one, and answers other requests so.
    fn with_token(
        answer: impl Fn(&str) -> Vec<u8> + Send + 'static,
    ) -> impl Fn(&str) -> Vec<u8> + Send + 'static {
        move |request| {
            if request.starts_with("POST") {
                token("a", 7200)
            } else {
                answer(request)
            }
        }
    }

    async fn client_at(url: String, notes: Arc<Notes>) -> Client {
        let options = Options {
            connect_timeout: Duration::from_secs(30),
            max_response_size: 2 << 20,
            ..Options::new(
                "acme".into(),
                url,
                SecretSource::Value(Secret::new("key")),
                SecretSource::Value(Secret::new("secret")),
            )
        };
        Client::new(options, &Allowances::default(), notes)
            .await
            .unwrap()
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
            let client = client_of(with_token(move |_| answer.to_vec()));
            let error = search(&client.await).await.unwrap_err();
            assert_eq!(error.reason(), "decode");
            let told = error.chain();
            let begin = "search answered with something that is no HTTP answer (";
            assert!(told.starts_with(begin), "{told}");
        }
    }

    #[tokio::test]
    async fn a_refusal_counts_whatever_becomes_of_its_body() {
        let cut_off = |head: &str| {
            let head = format!("HTTP/1.1 {head}\r\nContent-Length: 9\r\n\r\n");
            [head.as_bytes(), b"no"].concat()
        };
        let no_gzip =
            |head: &str| response(&format!("{head}\r\nContent-Encoding: gzip"), b"<html>");
        let too_long = |head: &str| response(head, &[b'x'; 2 << 20]);
        for (head, reason) in [
            ("429 Too Many Requests\r\nRetry-After: 60", "throttled"),
            ("503 Service Unavailable", "http"),
            ("401 Unauthorized", "auth"),
        ] {
            for answer in [cut_off(head), no_gzip(head), too_long(head)] {
                let client = client_of(with_token(move |_| answer.clone()));
                let error = search(&client.await).await.unwrap_err();
                let told = error.chain();
                assert_eq!(error.reason(), reason, "{told}");
                let tells_of_body = told.ends_with("(its body cannot be read)");
                assert_eq!(tells_of_body, reason != "throttled", "{told}");
            }
        }
    }

    #[tokio::test]
    async fn what_a_token_request_comes_to_is_told_as_what_it_is() {
        let huge = [b' '; 100_000];
        for (head, body, noted, told) in [
            (
                "400 No",
                &b"no"[..],
                "rejected",
                "the token endpoint rejects the credentials (400): no",
            ),
            (
                "401 No",
                b"no",
                "rejected",
                "the token endpoint rejects the credentials (401): no",
            ),
            (
                "403 No",
                b"no",
                "rejected",
                "the token endpoint rejects the credentials (403): no",
            ),
            ("500 No", b"no", "http", "token answered 500: no"),
            (
                "201 OK",
                b"no",
                "decode",
                "token answered 201 with something that is no token answer",
            ),
            (
                "200 OK",
                &huge,
                "decode",
                "token answered more than 65536 bytes",
            ),
            (
                "429 No\r\nRetry-After: 60",
                b"",
                "throttled",
                "the rate limit is exceeded (429)",
            ),
        ] {
            let notes = Arc::<Notes>::default();
            let answer = response(head, body);
            let client = observed_client_of(move |_| answer.clone(), Arc::clone(&notes)).await;
            let error = client.token().await.unwrap_err();
            assert_eq!(error.chain(), told);
            let forbidden = matches!(
                error,
                Error::Auth {
                    forbidden: true,
                    ..
                }
            );
            assert!(!forbidden, "there is no token that could be accepted");
            if let Error::Throttled { retry_after } = error {
                assert_eq!(retry_after, Some(Duration::from_secs(60)));
            }
            let status = head[..3].parse().ok();
            assert_eq!(notes.of(Endpoint::Token), [status], "{head}");
            assert_eq!(*notes.1.lock(), [noted], "{head}");
        }
    }

    #[tokio::test]
    async fn a_token_is_lost_when_no_other_can_be_had_and_regained_when_it_is_accepted_again() {
        let (tokens, searches) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let notes = Arc::<Notes>::default();
        let client = observed_client_of(
            move |request| {
                if request.starts_with("POST") {
                    return match tokens.fetch_add(1, Ordering::Relaxed) {
                        0 => token("a", 7200),
                        _ => response("500 No", b""),
                    };
                }
                match searches.fetch_add(1, Ordering::Relaxed) {
                    0 => response("407 No", b""),
                    // The right may be lacking, but the token is accepted.
                    1 => response("403 No", b"no"),
                    _ => response("200 OK", b"{}"),
                }
            },
            Arc::clone(&notes),
        )
        .await;
        assert_eq!(search(&client).await.unwrap_err().reason(), "http");
        assert_eq!(*notes.1.lock(), ["obtained", "http", "lost"]);
        let error = search(&client).await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Auth {
                    forbidden: true,
                    ..
                }
            ),
            "{error}"
        );
        search(&client).await.unwrap();
        assert_eq!(*notes.1.lock(), ["obtained", "http", "lost", "regained"]);
    }

    #[tokio::test]
    async fn an_alert_that_the_server_does_not_know_is_no_failure_and_other_refusals_are() {
        let answer = with_token(|request| {
            let path = request.split(' ').nth(1).unwrap();
            let id = path.strip_prefix("/api/v2/tenants/client%2F1/alerts/");
            match id.unwrap() {
                "gone" => response("404 Not Found", b""),
                "unknown" => response("500 No", br#"{"code": "0003"}"#),
                "a%3Fb%2Fc" => response("200 OK", b"{}"),
                _ => response("500 No", br#"{"code": "0004"}"#),
            }
        });
        let client = client_of(answer).await;
        let alert = |id| client.alert("client/1", id, Urgency::Poll);
        for id in ["gone", "unknown", "", ".", ".."] {
            assert!(alert(id).await.unwrap().is_none());
        }
        assert!(alert("a?b/c").await.unwrap().is_some());
        assert_eq!(alert("other").await.unwrap_err().reason(), "http");
    }

    #[tokio::test]
    async fn an_answer_that_is_too_long_tells_whether_its_limit_can_be_raised() {
        let answer = with_token(|_| response("200 OK", &[b' '; (2 << 20) + 1]));
        let client = client_of(answer).await;
        assert_eq!(
            search(&client).await.unwrap_err().chain(),
            "search answered more than 2097152 bytes; raise max_response_size if that is right"
        );
        let alert = client.alert("client_1", "1", Urgency::Poll).await;
        assert_eq!(
            alert.unwrap_err().chain(),
            "alert answered more than 1048576 bytes"
        );
    }

    #[tokio::test]
    async fn a_body_is_decompressed_whatever_case_its_coding_is_written_in() {
        let compressed = |text: &str| {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap()
        };
        let body = [compressed(r#"{"results":"#), compressed("[]}")].concat();
        let answer = with_token(move |request| {
            assert!(request.contains("accept-encoding: gzip\r\n"), "{request}");
            response("200 OK\r\nContent-Encoding: GZIP", &body)
        });
        let answer = search(&client_of(answer).await).await.unwrap();
        assert_eq!(answer.text(), r#"{"results":[]}"#);
    }

    #[tokio::test]
    async fn a_refusal_tells_of_a_new_token_only_where_one_was_tried() {
        for (is_shared, told) in [
            (true, "the API refuses the token (407): no"),
            (false, "the API refuses the token, also a new one (407): no"),
        ] {
            let tokens = AtomicUsize::new(0);
            let client = client_of(move |request| {
                if !request.starts_with("POST") {
                    return response("407 Proxy Authentication Required", b"no");
                }
                let number = tokens.fetch_add(1, Ordering::Relaxed);
                token(
                    &format!("token{}", if is_shared { 0 } else { number }),
                    7200,
                )
            });
            let error = search(&client.await).await.unwrap_err();
            assert_eq!(error.chain(), told);
        }
    }

    #[tokio::test]
    async fn no_secret_is_shown_that_was_sent_before_another_took_its_place() {
        const OLD: &str = "first-0123456789";
        const NEW: &str = "second-9876543210";
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        std::fs::write(&secret, OLD).unwrap();
        let tokens = AtomicUsize::new(0);
        let rotated = secret.clone();
        let url = serve(move |request| {
            if request.starts_with("POST") {
                let number = tokens.fetch_add(1, Ordering::Relaxed);
                if number == 2 {
                    return response("500 No", b"the token last given was token1-abcdefghijkl");
                }
                let token = format!("token{number}-abcdefghijkl");
                let answer = format!(r#"{{"access_token":"{token}","scope":"of {token}, {OLD}"}}"#);
                return response("200 OK", answer.as_bytes());
            }
            if request.contains("token0-") {
                std::fs::write(&rotated, NEW).unwrap();
                return response("401 No", b"");
            }
            let said = format!("it was {OLD}, is {NEW}; token0-abcdefghijkl is no more");
            response("500 No", said.as_bytes())
        });
        let options = Options::new(
            "acme".into(),
            url.await,
            SecretSource::Value(Secret::new("key")),
            SecretSource::File(secret),
        );
        let allowances = Allowances::default();
        let client = Client::new(options, &allowances, Arc::<Notes>::default());
        let client = client.await.unwrap();
        assert_eq!(
            client.token().await.unwrap().scope.unwrap(),
            "of <secret>, <secret>"
        );
        assert_eq!(
            search(&client).await.unwrap_err().chain(),
            "search answered 500: it was <secret>, is <secret>; <secret> is no more"
        );
        let secrets = client.0.http.sent_secrets();
        for text in [
            "key",
            OLD,
            NEW,
            "token0-abcdefghijkl",
            "token1-abcdefghijkl",
        ] {
            assert!(secrets.contains(&Secret::new(text)), "{text}");
        }
        for number in 0..100 {
            client
                .0
                .http
                .note_sent(&Secret::new(format!("token{number}")));
        }
        let secrets = client.0.http.sent_secrets();
        assert!(secrets.len() < 20 && secrets.contains(&Secret::new("token99")));
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

    /// Returns how many polls of the tenant could be made at once.
    fn free(client: &Client) -> usize {
        let share = client.share("client_1");
        let acquire = || share.search().acquire(Urgency::Poll, |_| {}).now_or_never();
        std::iter::from_fn(acquire).collect::<Vec<_>>().len()
    }

    #[tokio::test]
    async fn what_is_sent_again_after_a_hang_up_counts_as_often_as_it_was_sent() {
        for (hang_ups, answered) in [(2, Some(200)), (3, None)] {
            let searches = AtomicUsize::new(0);
            let notes = Arc::<Notes>::default();
            let answer = with_token(move |_| {
                if searches.fetch_add(1, Ordering::Relaxed) < hang_ups {
                    return Vec::new();
                }
                response("200 OK", b"{}")
            });
            let client = observed_client_of(answer, Arc::clone(&notes)).await;
            assert_eq!(search(&client).await.is_ok(), answered.is_some());
            assert_eq!(notes.of(Endpoint::Search), [None, None, answered]);
            assert_eq!(free(&client), 50 - 3);
        }
    }

    #[tokio::test]
    async fn a_token_request_that_is_given_up_counts_as_one_that_had_no_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let notes = Arc::<Notes>::default();
        let client = client_at(url, Arc::clone(&notes)).await;
        tokio::select! {
            answer = search(&client) => panic!("nobody answers: {answer:?}"),
            accepted = listener.accept() => drop(accepted.unwrap()),
        }
        assert_eq!(*notes.0.lock(), [(Endpoint::Token, None)]);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_of_a_server_share_a_tenants_allowance_and_the_lowest_of_their_ceilings() {
        let allowances = Allowances::default();
        let client = |url: &str, requests_per_minute| {
            let key = || SecretSource::Value(Secret::new("key"));
            let options = Options {
                requests_per_minute,
                ..Options::new("acme".into(), url.to_owned(), key(), key())
            };
            Client::new(options, &allowances, Arc::<Notes>::default())
        };
        let one = client("https://a.example", Some(20)).await.unwrap();
        let under_way = one.share("client_1");
        let poll = || under_way.search().acquire(Urgency::Poll, |_| {});
        let two = (poll().await, poll().await);
        let polled_slowly = one.reserve("client_1", Duration::from_secs(3600));
        for (url, ceiling, left) in [
            ("https://a.example", Some(20), 18),
            ("https://a.example", Some(5), 3),
            ("https://a.example", None, 18),
            ("HTTPS://A.example:443/", Some(20), 18),
            ("https://b.example", None, 50),
        ] {
            let other = client(url, ceiling).await.unwrap();
            assert_eq!(free(&other), left, "{url} {ceiling:?}");
            // After a minute the requests of `free` are forgotten, but not those under way.
            tokio::time::advance(Duration::from_secs(60)).await;
        }
        drop(two);
        drop(under_way);
        let other = client("https://a.example", None).await.unwrap();
        assert_eq!(free(&other), 18, "a search of the first client goes on");
        tokio::time::advance(Duration::from_secs(60)).await;
        drop(polled_slowly);
        assert_eq!(free(&other), 50, "the first client asks no more");
    }
}
