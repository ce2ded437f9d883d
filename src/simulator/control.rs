//! The control API under `/simulator`: what a test can do in Rust, for curl and scripts.
//!
//! It reads and writes JSON, and has no password: it listens where the simulator listens, which is
//! a loopback address unless somebody chooses another.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query as UrlQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::alert::{Action, AlertId, Priority, Spec, State as AlertState};
use super::api::{Shared, refuse};
use super::fault::FaultRule;
use super::options::{Credential, Options, TenantOptions};
use super::refusal::Refusal;

/// The text that is shown at `/simulator`.
const HELP: &str = r#"An OpsRamp simulator. The API is at /auth/oauth/token and /api/v2/tenants/…, the control API here:

GET    /simulator/options                        how it behaves
PATCH  /simulator/options                        {"max_page_size": 100, "allowance": {"enforced": false}, …}
GET    /simulator/tenants                        tenants and their open alerts
POST   /simulator/tenants                        {"id": "client_2", "partner": "msp_1", "alerts": 10}
POST   /simulator/tenants/ID/activate, …/deactivate
GET    /simulator/tenants/ID/alerts              ids of the open alerts, oldest first
POST   /simulator/tenants/ID/alerts              {"count": 3, "state": "Critical", "subject": "…"}: opens alerts
POST   /simulator/alerts/ID/ACTION               acknowledge, unacknowledge, ticket, suppress, unsuppress, close, ignore,
                                                 correlate, purge, reopen, heal, bump, remove
POST   /simulator/alerts/ID/state, …/priority    {"state": "Warning"}, {"priority": "P1"}
POST   /simulator/alerts/ID/members              members of the alert that are replaced, of whatever type
GET    /simulator/faults
POST   /simulator/faults                         {"kind": "status", "code": 503, "endpoint": "search", "tenant": "client_1", "times": 2}
                                                 kinds: status html body empty truncated null-result no-results wrong-types
                                                 wrong-items huge gzip-bomb deep slow-headers slow-body stall
                                                 reset-mid-body reset redirect
DELETE /simulator/faults, /simulator/faults/N
POST   /simulator/tokens/revoke                  {"key": "…"}, or {} for all
POST   /simulator/credentials                    {"key": "…", "secret": "…"}: adds a key or rotates its secret
GET    /simulator/record?since=N&tenant=ID       what happened to the alerts
GET    /simulator/requests                       how often it was asked; …/requests/log one by one
DELETE /simulator/requests                       back to zero
"#;

#[derive(Deserialize)]
struct Opening {
    #[serde(default = "one")]
    count: usize,
    #[serde(flatten)]
    spec: Map<String, Value>,
}

#[derive(Deserialize)]
struct Revocation {
    #[serde(default)]
    key: Option<String>,
}

#[derive(Deserialize)]
struct Since {
    #[serde(default)]
    since: usize,
    tenant: Option<String>,
}

type World = State<Arc<Shared>>;

const fn one() -> usize {
    1
}

/// Returns the routes, relative to `/simulator`.
pub(super) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route(
            "/",
            get(async || ([(CONTENT_TYPE, "text/plain; charset=utf-8")], HELP)),
        )
        .route("/options", get(options).patch(set_options))
        .route("/tenants", get(tenants).post(add_tenant))
        .route("/tenants/{tenant}/alerts", get(open_alerts).post(open))
        .route("/tenants/{tenant}/activate", post(activate))
        .route("/tenants/{tenant}/deactivate", post(deactivate))
        .route("/alerts/{id}/{action}", post(act))
        .route("/faults", get(faults).post(add_fault).delete(clear_faults))
        .route("/faults/{number}", delete(remove_fault))
        .route("/tokens/revoke", post(revoke))
        .route("/credentials", post(set_credential))
        .route("/record", get(record))
        .route("/requests", get(requests).delete(reset_requests))
        .route("/requests/log", get(request_log))
}

fn answer(outcome: Result<Value, Refusal>) -> Response {
    match outcome {
        Ok(value) => {
            let json = [(CONTENT_TYPE, "application/json")];
            (StatusCode::OK, json, value.to_string()).into_response()
        }
        Err(refusal) => refuse(&refusal),
    }
}

/// Reads a body. An empty body counts as `{}`.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let body = if body.is_empty() { b"{}" } else { body };
    Ok(serde_json::from_slice(body)?)
}

fn write<T: serde::Serialize>(value: &T) -> Result<Value, Refusal> {
    Ok(serde_json::to_value(value)?)
}

async fn options(State(shared): World) -> Response {
    answer(write(shared.world.lock().options()))
}

async fn set_options(State(shared): World, body: Bytes) -> Response {
    let now = (shared.clock)();
    let mut world = shared.world.lock();
    let outcome = read::<Value>(&body).and_then(|patch| {
        let mut current = write(world.options())?;
        merge(&mut current, patch);
        let options: Options = serde_json::from_value(current)?;
        world.set_options(options, now);
        write(world.options())
    });
    answer(outcome)
}

/// Merges as JSON Merge Patch does, except that null is a value.
fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (name, value) in patch {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch,
    }
}

async fn tenants(State(shared): World) -> Response {
    let world = shared.world.lock();
    let tenants = world
        .tenants()
        .map(|id| json!({ "id": id, "open": world.open_count(id).unwrap_or(0) }));
    answer(Ok(tenants.collect()))
}

async fn add_tenant(State(shared): World, body: Bytes) -> Response {
    let now = (shared.clock)();
    answer(read::<TenantOptions>(&body).map(|tenant| {
        shared.world.lock().add_tenant(&tenant, now);
        json!({ "id": tenant.id })
    }))
}

async fn open_alerts(State(shared): World, Path(tenant): Path<String>) -> Response {
    let world = shared.world.lock();
    let ids = world.open_alerts(&tenant);
    answer(ids.map(|ids| shown(&world, ids)))
}

fn shown(world: &super::World, ids: Vec<AlertId>) -> Value {
    let alerts = ids.into_iter().filter_map(|id| world.snapshot(id));
    json!({ "ids": alerts.map(|alert| alert.unique_id).collect::<Vec<_>>() })
}

async fn open(State(shared): World, Path(tenant): Path<String>, body: Bytes) -> Response {
    let now = (shared.clock)();
    let outcome = read::<Opening>(&body).and_then(|opening| {
        let spec: Spec = serde_json::from_value(Value::Object(opening.spec))?;
        let mut world = shared.world.lock();
        let ids = world.open_many(&tenant, opening.count, &spec, now)?;
        Ok(shown(&world, ids))
    });
    answer(outcome)
}

async fn activate(State(shared): World, Path(tenant): Path<String>) -> Response {
    set_activated(&shared, &tenant, true)
}

async fn deactivate(State(shared): World, Path(tenant): Path<String>) -> Response {
    set_activated(&shared, &tenant, false)
}

fn set_activated(shared: &Shared, tenant: &str, activated: bool) -> Response {
    let now = (shared.clock)();
    let outcome = shared.world.lock().set_activated(tenant, activated, now);
    answer(outcome.map(|()| json!({ "id": tenant, "activated": activated })))
}

async fn act(
    State(shared): World,
    Path((id, action)): Path<(String, String)>,
    body: Bytes,
) -> Response {
    let now = (shared.clock)();
    let mut world = shared.world.lock();
    let outcome = read::<Map<String, Value>>(&body).and_then(|mut body| {
        let alert = world.find(&id).ok_or_else(|| Refusal::NoSuchAlert {
            id: id.clone(),
            status: 404,
        })?;
        let mut member = |name: &str| {
            let value = body.remove(name).unwrap_or_default();
            value.as_str().unwrap_or_default().to_owned()
        };
        match action.as_str() {
            "state" => {
                let text = member("state");
                let state: AlertState = text.parse().map_err(|_| Refusal::bad("state", &text))?;
                world.set_state(alert, state, now)?;
            }
            "priority" => {
                let text = member("priority");
                let priority: Priority =
                    text.parse().map_err(|_| Refusal::bad("priority", &text))?;
                world.set_priority(alert, priority, now)?;
            }
            "members" => world.set_members(alert, body, now)?,
            other => {
                let action: Action = other.parse().map_err(|_| Refusal::bad("action", other))?;
                world.act(alert, action, now)?;
            }
        }
        let snapshot = world.snapshot(alert);
        Ok(json!({
            "id": id,
            "state": snapshot.as_ref().map(|alert| alert.state),
            "status": snapshot.as_ref().map(|alert| alert.status),
        }))
    });
    answer(outcome)
}

async fn faults(State(shared): World) -> Response {
    let faults = shared.faults.lock();
    let list = faults.list().iter().map(|(number, rule)| {
        let mut value = write(rule)?;
        value["number"] = json!(number);
        Ok(value)
    });
    answer(list.collect())
}

async fn add_fault(State(shared): World, body: Bytes) -> Response {
    answer(read::<FaultRule>(&body).map(|rule| {
        let number = shared.faults.lock().add(rule);
        json!({ "number": number })
    }))
}

async fn clear_faults(State(shared): World) -> Response {
    shared.faults.lock().clear();
    answer(Ok(json!({})))
}

async fn remove_fault(State(shared): World, Path(number): Path<u64>) -> Response {
    match shared.faults.lock().remove(number) {
        true => answer(Ok(json!({}))),
        false => refuse(&Refusal::NoSuchPath),
    }
}

async fn revoke(State(shared): World, body: Bytes) -> Response {
    answer(read::<Revocation>(&body).map(|revocation| {
        let revoked = shared.world.lock().revoke_tokens(revocation.key.as_deref());
        json!({ "revoked": revoked })
    }))
}

async fn set_credential(State(shared): World, body: Bytes) -> Response {
    answer(read::<Credential>(&body).map(|credential| {
        shared
            .world
            .lock()
            .set_secret(&credential.key, &credential.secret);
        json!({ "key": credential.key })
    }))
}

async fn record(State(shared): World, UrlQuery(since): UrlQuery<Since>) -> Response {
    let world = shared.world.lock();
    let mut entries = world.changes_since(since.since);
    entries.retain(|entry| {
        since
            .tenant
            .as_ref()
            .is_none_or(|tenant| *tenant == entry.tenant)
    });
    answer(
        write(&entries)
            .map(|entries| json!({ "next": world.record_position(), "entries": entries })),
    )
}

async fn requests(State(shared): World) -> Response {
    answer(write(&*shared.requests.lock()))
}

async fn request_log(State(shared): World) -> Response {
    answer(write(&shared.requests.lock().log))
}

async fn reset_requests(State(shared): World) -> Response {
    shared.requests.lock().reset();
    answer(Ok(json!({})))
}
