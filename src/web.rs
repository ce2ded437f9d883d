//! The web server: `/metrics`, health, the page for people, and the JSON API.
//!
//! It reads the board, the metrics and the health of the loops. Nothing here waits for the API or
//! the store, except for the open alerts, and those are waited for only briefly. This module does
//! not know how polling or delivery work. The listening sockets are bound early and served late
//! (see [`bind`]).

use std::{io, net::TcpListener, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{Query as UrlQuery, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    middleware::from_fn_with_state,
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    health::{Health, Overdue},
    metrics::{Metrics, Rendering},
    status::{Board, DiscoveryStatus, PartnerStatus, SearchStatus, group_by_value, listed},
};

use alerts::{AlertsError, OpenAlert};
use long::Turns;
use query::{Query, QueryError};
use view::{SearchFilter, StatusView};

pub(crate) use security::certificate_warning;

pub use alerts::AlertSource;
pub use connections::Limits;
pub use listen::{BindError, bind, take_from_systemd};
pub use security::{
    CIPHER_SUITES, CURVES, ClientAuth, Guard, HashError, LoadSecurity, PasswordHash,
    PasswordMemory, RateLimit, Security, SecurityOptions, TlsError, TlsOptions, TlsPart,
    TlsVersion,
};

mod alerts;
mod connections;
mod listen;
mod long;
mod negotiate;
mod page;
mod protect;
mod query;
mod security;
mod view;

/// The content type of the metrics. Prometheus 3 refuses a scrape whose type it does not know.
const EXPOSITION_TYPE: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

const TEXT_TYPE: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Paths that the metrics cannot have, nor any path below them.
const FIXED_PATHS: [&str; 2] = ["/-", "/api"];

/// Maximum number of reasons that `/-/ready` and the page list; further ones are only counted.
const REASONS_SHOWN: usize = 20;

/// What the server shows and allows.
#[derive(Clone, Debug)]
pub struct Options {
    /// The path of the metrics, such as `/metrics`.
    pub telemetry_path: String,
    /// Limits of connections and requests.
    pub limits: Limits,
    /// TLS and passwords.
    pub guard: Guard,
    /// What `POST /-/reload` and `POST /-/quit` do; `None` if they are not enabled.
    pub lifecycle: Option<Lifecycle>,
}

/// Reload and quit by request.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    /// Asks the daemon to load its configuration again.
    pub reload: mpsc::Sender<Reload>,
    /// Asks the daemon to drain and stop.
    pub quit: CancellationToken,
}

/// A request to load the configuration again. The answer says why it could not be loaded.
pub type Reload = oneshot::Sender<Result<(), String>>;

/// Why the metrics cannot be at a path.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The path is not absolute.
    #[error("must start with a slash")]
    NoSlash,
    /// The path has other characters than those allowed, or nothing between two slashes.
    #[error("may hold letters, digits, single slashes and -._~ only")]
    Characters,
    /// The path has a segment `.` or `..`, which clients resolve before they ask.
    #[error(
        "may not have \".\" or \"..\" between its slashes: clients take them out before they ask"
    )]
    Dots,
    /// The status page is there.
    #[error("\"/\" is the status page; choose another path")]
    Page,
    /// The path belongs to something else, or is reserved.
    #[error("paths below {0}/ are taken; choose another")]
    Taken(&'static str),
}

/// The server, ready to serve.
#[derive(Clone, Debug)]
pub struct Server {
    router: Router,
    limits: Limits,
    guard: Guard,
}

#[derive(Debug)]
struct Site {
    metrics: Metrics,
    board: Board,
    health: Health,
    alerts: AlertSource,
    guard: Guard,
    telemetry_path: String,
    lifecycle: Option<Lifecycle>,
    /// How long a client that asked for a reload waits for its end.
    reload_time: Duration,
    /// Held by the request that encodes the exposition.
    encoding: tokio::sync::Mutex<()>,
    /// Turns for all other answers that may be long.
    turns: Turns,
}

/// An error as the JSON API shows it.
#[derive(Debug, Serialize)]
struct ApiError {
    error: String,
}

// === impl Server ===

impl Server {
    /// Returns a server that shows these parts.
    ///
    /// # Errors
    /// If the path for the metrics cannot be used.
    pub fn new(
        metrics: Metrics,
        board: Board,
        health: Health,
        alerts: AlertSource,
        options: Options,
    ) -> Result<Self, PathError> {
        check_telemetry_path(&options.telemetry_path)?;
        let site = Arc::new(Site {
            metrics,
            board,
            health,
            alerts,
            guard: options.guard.clone(),
            telemetry_path: options.telemetry_path,
            lifecycle: options.lifecycle,
            reload_time: options.limits.reload_time,
            encoding: tokio::sync::Mutex::default(),
            turns: Turns::new(options.limits.turn_time),
        });
        Ok(Self {
            router: router(&site),
            limits: options.limits,
            guard: options.guard,
        })
    }

    /// Serves until `shutdown` is cancelled. Returns when work under way has ended, after
    /// [`Limits::grace`] at the latest. Must be called inside a runtime.
    ///
    /// # Errors
    /// If the runtime cannot wait for the sockets, or if a task that accepts connections has
    /// panicked.
    pub async fn serve(
        self,
        listeners: Vec<TcpListener>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let listeners = listeners
            .into_iter()
            .map(tokio::net::TcpListener::from_std)
            .collect::<io::Result<Vec<_>>>()?;
        let scheme = self.guard.current().await.scheme();
        for listener in &listeners {
            if let Ok(address) = listener.local_addr() {
                // Tests that listen on port 0 read the address from this line.
                tracing::info!("listening on {scheme}://{address}");
            }
        }
        connections::Connections::new(self.limits, self.router, self.guard, shutdown)
            .serve(listeners)
            .await
            .map_err(io::Error::other)
    }
}

/// Builds the router. Paths that need no password stand apart from those that do.
fn router(site: &Arc<Site>) -> Router {
    let open = Router::new()
        .route("/-/healthy", get(healthy))
        .route("/-/ready", get(ready))
        .method_not_allowed_fallback(method_not_allowed);
    let guarded = Router::new()
        .route("/", get(page))
        .route("/api/v1/status", get(api_status))
        .route("/api/v1/alerts", get(api_alerts))
        .route("/-/reload", post(reload))
        .route("/-/quit", post(quit))
        .route(&site.telemetry_path, get(metrics));
    guarded
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(from_fn_with_state(Arc::clone(site), protect::authorize))
        .merge(open)
        .layer(from_fn_with_state(Arc::clone(site), protect::secure))
        .with_state(Arc::clone(site))
}

/// Checks whether the metrics can be at a path.
///
/// # Errors
/// If the path is malformed or taken.
pub(crate) fn check_telemetry_path(path: &str) -> Result<(), PathError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    if !path.starts_with('/') {
        return Err(PathError::NoSlash);
    }
    if !path.bytes().all(is_plain) || path.contains("//") {
        return Err(PathError::Characters);
    }
    if path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err(PathError::Dots);
    }
    if path == "/" {
        return Err(PathError::Page);
    }
    let is_below = |fixed: &&str| {
        let rest = path.strip_prefix(*fixed);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let taken = FIXED_PATHS.into_iter().find(is_below);
    taken.map_or(Ok(()), |fixed| Err(PathError::Taken(fixed)))
}

async fn metrics(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    let rendering = match site.exposition().await {
        Ok(rendering) => rendering,
        Err(error) => return long::broken(&error),
    };
    let mut response = if negotiate::accepts_gzip(&headers) {
        let mut response = Body::from(rendering.gzip.clone()).into_response();
        let gzip = HeaderValue::from_static("gzip");
        response
            .headers_mut()
            .insert(header::CONTENT_ENCODING, gzip);
        response
    } else {
        Body::from(rendering.text.clone()).into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, EXPOSITION_TYPE);
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    response
}

async fn healthy(State(site): State<Arc<Site>>) -> Response {
    let overdue = site.health.overdue();
    let (status, mut lines) = if overdue.is_empty() {
        (StatusCode::OK, vec!["healthy".to_owned()])
    } else {
        let lines = overdue.iter().take(REASONS_SHOWN).map(Overdue::to_string);
        (StatusCode::SERVICE_UNAVAILABLE, lines.collect())
    };
    lines.extend(site.health.notices());
    text(status, lines.join("\n") + "\n")
}

async fn ready(State(site): State<Arc<Site>>) -> Response {
    let waiting = site.unready_reasons(&site.board.searches());
    if waiting.is_empty() {
        return text(StatusCode::OK, "ready\n");
    }
    text(StatusCode::SERVICE_UNAVAILABLE, waiting.join("\n") + "\n")
}

async fn page(State(site): State<Arc<Site>>, uri: Uri) -> Response {
    let query = match parse(&uri) {
        Ok(query) => query,
        Err(error) => return text(StatusCode::BAD_REQUEST, format!("{error}\n")),
    };
    let turn = match site.turns.next().await {
        Ok(turn) => turn,
        Err(error) => {
            return busy(text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")));
        }
    };
    let found = site.alerts.find(&site.board, &query).await;
    turn.make(move || {
        let alerts = found.as_ref().map(|found| found.read(&site.board));
        let page = page::Page {
            status: &site.status(&query.page_filter(), clock::now()),
            alerts: &alerts,
            query: &query,
            telemetry_path: &site.telemetry_path,
        };
        Html(page.to_string()).into_response()
    })
    .await
}

async fn api_status(State(site): State<Arc<Site>>, uri: Uri) -> Response {
    let filter = match parse(&uri).and_then(|query| query.status_filter()) {
        Ok(filter) => filter,
        Err(error) => return api_error(StatusCode::BAD_REQUEST, &error),
    };
    match site.turns.next().await {
        Ok(turn) => {
            turn.make(move || Json(site.status(&filter, clock::now())).into_response())
                .await
        }
        Err(error) => busy(api_error(StatusCode::SERVICE_UNAVAILABLE, &error)),
    }
}

async fn api_alerts(State(site): State<Arc<Site>>, uri: Uri) -> Response {
    #[derive(Serialize)]
    struct Alerts<'a> {
        now: Timestamp,
        alerts: Vec<OpenAlert<'a>>,
    }

    let query = match parse(&uri) {
        Ok(query) => query,
        Err(error) => return api_error(StatusCode::BAD_REQUEST, &error),
    };
    let turn = match site.turns.next().await {
        Ok(turn) => turn,
        Err(error) => return busy(api_error(StatusCode::SERVICE_UNAVAILABLE, &error)),
    };
    match site.alerts.find(&site.board, &query).await {
        Ok(found) => {
            turn.make(move || {
                let now = clock::now();
                let alerts = found.read(&site.board);
                Json(Alerts { now, alerts }).into_response()
            })
            .await
        }
        Err(error @ (AlertsError::NotYet | AlertsError::Late)) => {
            api_error(StatusCode::SERVICE_UNAVAILABLE, &error)
        }
        Err(error @ AlertsError::Store(_)) => api_error(StatusCode::INTERNAL_SERVER_ERROR, &error),
    }
}

async fn reload(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    let lifecycle = match site.lifecycle(&headers) {
        Ok(lifecycle) => lifecycle,
        Err(refusal) => return text(StatusCode::FORBIDDEN, refusal),
    };
    let (reply, answer) = oneshot::channel();
    let until = Instant::now() + site.reload_time;
    // If the daemon does not take the request, the reply is dropped, and there is no answer.
    if timeout_at(until, lifecycle.reload.send(reply))
        .await
        .is_err()
    {
        return busy(text(
            StatusCode::SERVICE_UNAVAILABLE,
            "other reloads have not ended yet; nothing was reloaded for this request\n",
        ));
    }
    let Ok(answer) = timeout_at(until, answer).await else {
        return text(
            StatusCode::GATEWAY_TIMEOUT,
            format!(
                "the reload has not ended within {} and goes on; the log and the metric \
                 opsramp_exporter_config_last_reload_successful tell how it ends\n",
                humantime::format_duration(site.reload_time)
            ),
        );
    };
    match answer {
        Ok(Ok(())) => text(StatusCode::OK, "configuration reloaded\n"),
        Ok(Err(problem)) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the configuration was not reloaded: {problem}\n"),
        ),
        Err(_) => text(
            StatusCode::SERVICE_UNAVAILABLE,
            "starting or stopping; nothing was reloaded\n",
        ),
    }
}

async fn quit(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    match site.lifecycle(&headers) {
        Ok(lifecycle) => {
            lifecycle.quit.cancel();
            text(StatusCode::OK, "stopping\n")
        }
        Err(refusal) => text(StatusCode::FORBIDDEN, refusal),
    }
}

async fn not_found() -> Response {
    text(
        StatusCode::NOT_FOUND,
        "there is nothing here; the page is at /\n",
    )
}

async fn method_not_allowed(method: Method) -> Response {
    let message = format!("{method} is not possible here\n");
    text(StatusCode::METHOD_NOT_ALLOWED, message)
}

fn text(status: StatusCode, body: impl Into<Body>) -> Response {
    (status, [(header::CONTENT_TYPE, TEXT_TYPE)], body.into()).into_response()
}

/// Tells the client to ask again later.
fn busy(refusal: Response) -> Response {
    let later = HeaderValue::from_static("5");
    ([(header::RETRY_AFTER, later)], refusal).into_response()
}

fn api_error(status: StatusCode, error: &dyn std::error::Error) -> Response {
    let error = error.to_string();
    (status, Json(ApiError { error })).into_response()
}

fn parse(uri: &Uri) -> Result<Query, QueryError> {
    // Text that is not UTF-8 would be taken for another value than the one asked for.
    percent_decode_str(uri.query().unwrap_or_default())
        .decode_utf8()
        .map_err(|_| QueryError::Malformed)?;
    let UrlQuery(pairs) = UrlQuery::try_from_uri(uri).map_err(|_| QueryError::Malformed)?;
    Query::parse(pairs)
}

// === impl Site ===

impl Site {
    /// Returns the exposition. Encoding thousands of series takes some milliseconds, so it is done
    /// off the threads that serve other clients. One request encodes at a time, and the others get
    /// the last exposition meanwhile.
    async fn exposition(&self) -> Result<Arc<Rendering>, tokio::task::JoinError> {
        if let Some(fresh) = self.metrics.fresh_rendering() {
            return Ok(fresh);
        }
        let _encoding = match self.encoding.try_lock() {
            Ok(turn) => turn,
            Err(_) => match self.metrics.recent_rendering() {
                Some(recent) => return Ok(recent),
                None => self.encoding.lock().await,
            },
        };
        let metrics = self.metrics.clone();
        tokio::task::spawn_blocking(move || metrics.rendering(clock::now())).await
    }

    /// Says why the process is not ready yet, one reason a line; empty if it is ready.
    fn unready_reasons(&self, searches: &[Arc<SearchStatus>]) -> Vec<String> {
        let mut reasons = self.health.obstacles();
        let mut of_accounts = self.without_clients();
        if searches.is_empty() {
            of_accounts.extend(self.unsearched(searches));
            if of_accounts.is_empty() {
                of_accounts.push("no search is known yet".to_owned());
            }
        }
        reasons.extend(of_accounts);
        let mut waiting = searches
            .iter()
            .filter(|status| !status.first_attempt_over || status.could_not_be_taken_up());
        let reason = |status: &Arc<SearchStatus>| match &status.last_error {
            Some(error) => format!("{}: {}", status.key, error.message),
            None => format!("{}: the first poll has not ended", status.key),
        };
        reasons.extend(waiting.by_ref().take(REASONS_SHOWN).map(reason));
        let others = waiting.count();
        if others > 0 {
            reasons.push(format!("and {others} more searches"));
        }
        reasons
    }

    /// Names the partners whose clients are not known yet, and says why.
    fn without_clients(&self) -> Vec<String> {
        let why = |partner: &PartnerStatus| match &partner.last {
            _ if partner.is_known => None,
            Some(Err(error)) => Some(error.clone()),
            Some(Ok(())) | None => Some("the first look-up has not ended".to_owned()),
        };
        self.partner_lines("are not known yet", why)
    }

    /// Names the partners whose clients are known, but could not be looked up the last time, and
    /// says why.
    fn outdated(&self) -> Vec<String> {
        let why = |partner: &PartnerStatus| match &partner.last {
            Some(Err(error)) if partner.is_known => Some(error.clone()),
            _ => None,
        };
        self.partner_lines("could not be looked up the last time", why)
    }

    /// Returns lines about the clients of those partners for which there is a reason. Partners
    /// with the same reason share a line.
    fn partner_lines(
        &self,
        said: &str,
        why: impl Fn(&PartnerStatus) -> Option<String>,
    ) -> Vec<String> {
        let mut told = Vec::new();
        for (account, discovery) in self.board.discoveries() {
            let reasons = discovery.partners.iter();
            let reasons = reasons.filter_map(|partner| Some((&partner.id, why(partner)?)));
            for (partners, why) in group_by_value(reasons) {
                let partners = match &partners[..] {
                    [partner] => format!("partner {partner}"),
                    several => format!("partners {}", listed(several)),
                };
                told.push(format!(
                    "account {account}: the clients of the {partners} {said}: {why}"
                ));
            }
        }
        told
    }

    /// Names the accounts that have no search although the clients of their partners are known,
    /// and says why.
    fn unsearched(&self, searches: &[Arc<SearchStatus>]) -> Vec<String> {
        let is_searched = |account: &Arc<str>| searches.iter().any(|it| it.key.account == *account);
        let why = |(account, discovery): (Arc<str>, DiscoveryStatus)| {
            let clients = discovery.clients.filter(|_| !is_searched(&account))?;
            Some(match clients {
                0 => format!(
                    "account {account}: the server shows no activated client of the partner, so that nothing is searched"
                ),
                _ => format!(
                    "account {account}: no search is for a client of the partner ({clients} are activated)"
                ),
            })
        };
        self.board
            .discoveries()
            .into_iter()
            .filter_map(why)
            .collect()
    }

    fn status(&self, filter: &SearchFilter, now: Timestamp) -> StatusView {
        let overdue = self.health.overdue();
        let hangs = overdue.iter().take(REASONS_SHOWN).map(Overdue::to_string);
        let mut problems: Vec<String> = hangs.chain(self.health.notices()).collect();
        let searches = self.board.searches();
        let waiting = self.unready_reasons(&searches);
        let told = |problem: &String| !waiting.contains(problem);
        problems.extend(self.unsearched(&searches).into_iter().filter(told));
        problems.extend(self.outdated());
        if !waiting.is_empty() {
            problems.push(format!("not ready: {}", waiting.join("; ")));
        }
        StatusView::new(&self.board, self.metrics.build(), problems, filter, now)
    }

    /// Returns the lifecycle if it is enabled and the request does not come from a page of another
    /// site.
    fn lifecycle(&self, headers: &HeaderMap) -> Result<&Lifecycle, &'static str> {
        let Some(lifecycle) = &self.lifecycle else {
            return Err("not enabled; start with --web.enable-lifecycle\n");
        };
        if negotiate::comes_from_another_site(headers) {
            return Err("refused: the request was made by a page of another site\n");
        }
        Ok(lifecycle)
    }
}

#[cfg(test)]
mod tests;
