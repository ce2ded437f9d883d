//! The API over HTTP: reads requests, asks the world, writes answers, and spoils them on demand.
//!
//! Checks come in the order of the real API, as far as it is known: a gateway's faults first, then
//! the token, the tenant, the allowance, the parameters. The world is locked only while it is
//! asked. Documents are written, compressed and sent outside the lock.

mod reply;

use std::sync::{Arc, atomic::AtomicBool};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Form, Path, Query as UrlQuery, State, rejection::FormRejection};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, DATE, RETRY_AFTER};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::alert::{Action, Spec};
use super::allowance::{Meter, RateLimit};
use super::control;
use super::fault::{self, Effect, Faults};
use super::options::{Options, RetryAfter};
use super::query::{SearchParams, last_of};
use super::refusal::Refusal;
use super::render::{ClientPage, Detail, Page};
use super::requests::{Endpoint, Request, Requests};
use super::token::TokenRequest;
use super::world::World;
use reply::{Reply, fault_response};

/// A request as a hook sees it, before it is answered.
#[derive(Clone, Debug)]
pub struct RequestInfo {
    /// When it came.
    pub now: Timestamp,
    /// The part of the API that is asked.
    pub endpoint: Endpoint,
    /// The tenant in the request's path.
    pub tenant: Option<String>,
    /// `pageNo` of a search.
    pub page: Option<usize>,
}

/// A function of a test that changes the world before each request.
pub type Hook = Box<dyn FnMut(&mut World, &RequestInfo) + Send>;

/// What all connections share.
pub(super) struct Shared {
    pub(super) world: Mutex<World>,
    pub(super) faults: Mutex<Faults>,
    pub(super) requests: Mutex<Requests>,
    pub(super) hook: Mutex<Option<Hook>>,
    pub(super) clock: Box<dyn Fn() -> Timestamp + Send + Sync>,
}

/// A switch that a handler sets to have the connection reset when it is closed.
#[derive(Clone, Debug, Default)]
pub(super) struct ResetSwitch(pub(super) Arc<AtomicBool>);

/// An extension of a response that must not be sent: the connection is closed instead.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoAnswer;

/// A request to the API.
struct Call {
    endpoint: Endpoint,
    meter: Meter,
    tenant: Option<String>,
    page: Option<usize>,
    by_id: bool,
    token: Option<String>,
    accepts_gzip: bool,
    reset: ResetSwitch,
}

/// What the world answered.
enum Answer {
    Page(Page),
    Detail(Detail),
    Clients(ClientPage),
    Value(Value),
}

/// Counts a request when it is over, even if the client does not wait for the answer.
struct InFlight<'a> {
    shared: &'a Shared,
    request: Request,
}

type Parameters = UrlQuery<Vec<(String, String)>>;
type Common = (State<Arc<Shared>>, HeaderMap, Extensions);

/// Returns the routes of the API and of the control API.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    let tenant = "/api/v2/tenants/{tenant}";
    let at = |path: &str| format!("{tenant}{path}");
    let only = |method: MethodRouter<Arc<Shared>>| method.fallback(method_not_allowed);
    Router::new()
        .route("/auth/oauth/token", only(post(token)))
        .route("/tenancy/auth/oauth/token", only(post(token)))
        .route(&at("/alerts/search"), only(get(search)))
        .route(&at("/alerts/{id}"), only(get(alert)))
        .route(&at("/alerts/{id}/actions/{action}"), only(post(act)))
        .route(&at("/alert"), only(post(create)))
        .route(&at("/clients/search"), only(get(clients)))
        .route(&at("/clients/minimal"), only(get(clients_minimal)))
        .route(
            &at("/clients"),
            MethodRouter::new().fallback(method_not_allowed),
        )
        .nest("/simulator", control::router())
        .fallback(no_such_path)
        .with_state(shared)
}

async fn no_such_path() -> Response {
    refuse(&Refusal::NoSuchPath)
}

async fn method_not_allowed() -> Response {
    refuse(&Refusal::MethodNotAllowed)
}

async fn token(
    (State(shared), headers, extensions): Common,
    form: Result<Form<Vec<(String, String)>>, FormRejection>,
) -> Response {
    let call = Call::new(Endpoint::Token, None, &headers, &extensions);
    // A body that is not a form has no grant type.
    let pairs = form.map(|Form(pairs)| pairs).unwrap_or_default();
    exchange(&shared, call, |world, now| {
        let request = TokenRequest {
            grant_type: last_of(&pairs, "grant_type"),
            client_id: last_of(&pairs, "client_id"),
            client_secret: last_of(&pairs, "client_secret"),
        };
        let grant = world.grant(request, now)?;
        Ok(Answer::Value(grant.to_json(world.options(), now)))
    })
    .await
}

async fn search(
    (State(shared), headers, extensions): Common,
    Path(tenant): Path<String>,
    UrlQuery(pairs): Parameters,
) -> Response {
    let mut call = Call::new(Endpoint::Search, Some(&tenant), &headers, &extensions);
    call.page = last_of(&pairs, "pageNo").map_or(Some(1), |text| text.parse().ok());
    call.by_id = last_of(&pairs, "queryString").is_some_and(|text| text.contains("uniqueId:"));
    exchange(&shared, call, |world, now| {
        let params = SearchParams::parse(&pairs, world.options())?;
        world.search(&tenant, &params, now).map(Answer::Page)
    })
    .await
}

async fn alert(
    (State(shared), headers, extensions): Common,
    Path((tenant, id)): Path<(String, String)>,
) -> Response {
    let call = Call::new(Endpoint::Alert, Some(&tenant), &headers, &extensions);
    exchange(&shared, call, |world, _| {
        world.alert(&tenant, &id).map(Answer::Detail)
    })
    .await
}

async fn clients(
    (State(shared), headers, extensions): Common,
    Path(tenant): Path<String>,
    UrlQuery(pairs): Parameters,
) -> Response {
    let call = Call::new(Endpoint::Clients, Some(&tenant), &headers, &extensions);
    exchange(&shared, call, |world, _| {
        world.clients(&tenant, &pairs).map(Answer::Clients)
    })
    .await
}

async fn clients_minimal(
    (State(shared), headers, extensions): Common,
    Path(tenant): Path<String>,
) -> Response {
    let mut call = Call::new(Endpoint::Clients, Some(&tenant), &headers, &extensions);
    call.meter = Meter::Others;
    exchange(&shared, call, |world, _| {
        let clients = world.clients_minimal(&tenant)?.into_iter();
        let views = clients.map(|(id, name)| json!({ "uniqueId": id, "name": name }));
        Ok(Answer::Value(views.collect()))
    })
    .await
}

/// Answers what `opcli getalerts --action` calls.
async fn act(
    (State(shared), headers, extensions): Common,
    Path((tenant, id, action)): Path<(String, String, String)>,
) -> Response {
    let call = Call::new(Endpoint::Write, Some(&tenant), &headers, &extensions);
    exchange(&shared, call, |world, now| {
        let action: Action = action
            .parse()
            .map_err(|_| Refusal::bad("action", &action))?;
        let id = world.visible(&tenant, &id)?;
        world.act(id, action, now)?;
        Ok(Answer::Value(json!({ "success": true })))
    })
    .await
}

/// Answers what `opcli postalerts` calls.
async fn create(
    (State(shared), headers, extensions): Common,
    Path(tenant): Path<String>,
    body: Bytes,
) -> Response {
    let call = Call::new(Endpoint::Write, Some(&tenant), &headers, &extensions);
    exchange(&shared, call, |world, now| {
        let posted: Value = serde_json::from_slice(&body).map_err(|error| {
            Refusal::BadRequest(format!("the alert is not valid JSON: {error}"))
        })?;
        let text = |path: &str| posted.pointer(path)?.as_str().map(str::to_owned);
        let state = text("/currentState").unwrap_or_default();
        let spec = Spec {
            state: Some(
                state
                    .parse()
                    .map_err(|_| Refusal::bad("currentState", &state))?,
            ),
            subject: text("/subject"),
            description: text("/description"),
            app: text("/app"),
            metric: text("/serviceName").or_else(|| text("/metric")),
            component: text("/component"),
            problem_area: text("/problemArea"),
            alert_type: text("/alertType"),
            resource_name: text("/device/hostName").or_else(|| text("/device/name")),
            event_type: Some(super::EventType::Alert),
            ..Spec::default()
        };
        let client = text("/clientUniqueId").unwrap_or_else(|| tenant.clone());
        let id = world.open(&client, &spec, now)?;
        Ok(Answer::Value(json!([id])))
    })
    .await
}

/// Answers one request to the API.
async fn exchange(
    shared: &Shared,
    call: Call,
    answer: impl FnOnce(&mut World, Timestamp) -> Result<Answer, Refusal>,
) -> Response {
    let now = (shared.clock)();
    let mut in_flight = InFlight::begin(shared, &call, now);
    let info = RequestInfo {
        now,
        endpoint: call.endpoint,
        tenant: call.tenant.clone(),
        page: call.page,
    };
    if let Some(hook) = shared.hook.lock().as_mut() {
        hook(&mut shared.world.lock(), &info);
    }
    let effect = shared.faults.lock().next_effect(
        call.endpoint,
        call.tenant.as_deref(),
        call.page,
        call.by_id,
    );
    let (latency, skew, gzip) = {
        let world = shared.world.lock();
        let options = world.options();
        (options.latency, options.clock_skew, options.gzip)
    };
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    let mut response = match effect {
        Some(Effect::Replace(fault)) => fault_response(fault, &call.reset).await,
        effect => {
            let (outcome, headers) = ask(&mut shared.world.lock(), &call, now, answer);
            let mut reply = Reply::of(outcome, headers, now);
            let fault = match effect {
                Some(Effect::Spoil(fault)) => Some(fault),
                _ => None,
            };
            if let Some(fault) = &fault {
                reply.body = fault::spoil(fault, reply.body);
            }
            if gzip && call.accepts_gzip {
                reply.compress();
            }
            reply.deliver(fault, &call.reset).await
        }
    };
    in_flight.request.status = match response.extensions().get::<NoAnswer>() {
        Some(_) => 0,
        None => response.status().as_u16(),
    };
    if let Some(date) = http_date(skewed((shared.clock)(), skew)) {
        response.headers_mut().insert(DATE, date);
    }
    response
}

/// Asks the world, with checks in the order of the real API.
fn ask(
    world: &mut World,
    call: &Call,
    now: Timestamp,
    answer: impl FnOnce(&mut World, Timestamp) -> Result<Answer, Refusal>,
) -> (Result<Answer, Refusal>, HeaderMap) {
    let mut headers = HeaderMap::new();
    let Some(tenant) = &call.tenant else {
        return (answer(world, now), headers);
    };
    let rate_limit = world
        .authorise(call.token.as_deref(), now)
        .and_then(|()| world.check_active(tenant))
        .and_then(|()| world.count_request(tenant, call.meter, now));
    let rate_limit = match rate_limit {
        Ok(rate_limit) => rate_limit,
        Err(refusal) => return (Err(refusal), headers),
    };
    if let Some(rate_limit) = rate_limit {
        write_rate_limit(&mut headers, rate_limit, world.options(), now);
        if !rate_limit.allowed {
            return (Err(Refusal::Throttled), headers);
        }
    }
    (answer(world, now), headers)
}

fn write_rate_limit(
    headers: &mut HeaderMap,
    rate_limit: RateLimit,
    options: &Options,
    now: Timestamp,
) {
    let mut write = |name: &'static str, value: i64| {
        let text = match options.quoted_headers {
            true => format!("\"{value}\""),
            false => value.to_string(),
        };
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    write("x-ratelimit-limit", i64::from(rate_limit.limit));
    write("x-ratelimit-remaining", i64::from(rate_limit.remaining));
    write("x-ratelimit-reset", rate_limit.reset + options.clock_skew);
    if rate_limit.allowed {
        return;
    }
    let value = match options.retry_after {
        RetryAfter::None => None,
        RetryAfter::Seconds => {
            let wait = (rate_limit.reset - now.as_second()).max(0);
            HeaderValue::try_from(wait.to_string()).ok()
        }
        RetryAfter::Date => {
            let reset = Timestamp::from_second(rate_limit.reset).unwrap_or(now);
            http_date(skewed(reset, options.clock_skew))
        }
    };
    if let Some(value) = value {
        headers.insert(RETRY_AFTER, value);
    }
}

pub(super) fn refuse(refusal: &Refusal) -> Response {
    let reply = Reply::of(Err(refusal.clone()), HeaderMap::new(), Timestamp::default());
    reply.into_response()
}

fn skewed(time: Timestamp, seconds: i64) -> Timestamp {
    let skew = SignedDuration::from_secs(seconds);
    time.saturating_add(skew).unwrap_or(time)
}

/// Writes a date as `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(time: Timestamp) -> Option<HeaderValue> {
    let text = time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    HeaderValue::try_from(text).ok()
}

// === impl Shared ===

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

// === impl Call ===

impl Call {
    fn new(
        endpoint: Endpoint,
        tenant: Option<&str>,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> Self {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let token = header(AUTHORIZATION).and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            let bearer = scheme.eq_ignore_ascii_case("bearer");
            bearer.then(|| token.trim().to_owned())
        });
        let accepted = header(ACCEPT_ENCODING).unwrap_or_default();
        let accepts_gzip = accepted.split(',').any(|coding| {
            let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
            name.trim().eq_ignore_ascii_case("gzip") && weight.replace(' ', "") != "q=0"
        });
        Self {
            endpoint,
            meter: match endpoint {
                Endpoint::Search => Meter::AlertPages,
                Endpoint::Clients => Meter::OtherPages,
                Endpoint::Token | Endpoint::Alert | Endpoint::Write => Meter::Alerts,
            },
            tenant: tenant.map(str::to_owned),
            page: None,
            by_id: false,
            token,
            accepts_gzip,
            reset: extensions.get().cloned().unwrap_or_default(),
        }
    }
}

// === impl InFlight ===

impl<'a> InFlight<'a> {
    fn begin(shared: &'a Shared, call: &Call, now: Timestamp) -> Self {
        shared.requests.lock().begin();
        Self {
            shared,
            request: Request {
                at: now,
                endpoint: call.endpoint,
                tenant: call.tenant.clone(),
                page: call.page,
                status: 0,
            },
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.shared.requests.lock().end(self.request.clone());
    }
}
