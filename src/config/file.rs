//! The configuration file as it is written: every key is optional, and only types are checked.
//!
//! Editors show the doc comments of these types, and the reference is generated from them (see
//! [`json_schema()`]), so they address the reader of the file. Types of single values have an empty
//! description there, because their keys have one. [`super::resolve`] checks what keys mean
//! together.

use std::{borrow::Cow, collections::BTreeMap, fmt, path::PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::{
    listen::ListenAddress,
    units::{ByteSize, HumanDuration},
};
use crate::secret::{REDACTED, Secret};

/// Declares sections of the file, with the types of their values. Every key is optional, an unknown
/// one is refused, and one without a value is not written.
macro_rules! sections {
    ($(
        $(#[$about:meta])*
        section $section:ident { $($(#[$about_key:meta])* $key:ident: $value:ty,)* }
    )*) => {$(
        #[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        $(#[$about])*
        pub(super) struct $section {
            $(
                #[serde(skip_serializing_if = "Option::is_none")]
                $(#[$about_key])*
                pub(super) $key: Option<$value>,
            )*
        }
    )*};
}

sections! {
/// The configuration of opsramp-exporter. Flags win over variables of the environment, and those
/// over this file.
#[schemars(title = "opsramp-exporter configuration")]
section File {
    /// The OpsRamp accounts to ask. Without this key, the account is what the `--opsramp.*` flags
    /// and the `OPSRAMP_*` variables say.
    accounts: Vec<Account>,
    /// The searches. Each runs for every tenant, or for those that it names. Default: one, named
    /// `open`, for `actions:OPEN`.
    searches: Vec<Search>,
    /// The alert log: what is written about alerts, and where to.
    log: Log,
    /// Where the exporter remembers which alerts it knows.
    state: State,
    /// The web server: metrics, health, the status page.
    web: Web,
}

/// One OpsRamp account: an API key, and the tenants it is used for.
section Account {
    /// Its name, label `account` of the metrics. Unique. Under another one all its open alerts are
    /// logged again.
    #[schemars(extend("default" = "default"))]
    name: String,
    /// The base URL of the API, such as `https://acme.api.opsramp.com`.
    #[schemars(required, extend("format" = "uri"))]
    url: String,
    /// The token endpoint. Default: the base URL with `/auth/oauth/token`.
    #[schemars(extend("format" = "uri"))]
    token_url: String,
    /// The OAuth2 key. This or `client_id_file` is needed.
    client_id: String,
    /// A file with the OAuth2 key, read again at every token request.
    client_id_file: PathBuf,
    /// The OAuth2 secret. Better: `client_secret_file`, or the variable `OPSRAMP_CLIENT_SECRET`.
    client_secret: SecretText,
    /// A file with the OAuth2 secret, read again at every token request, so that a rotated secret
    /// is picked up without a restart.
    client_secret_file: PathBuf,
    /// The tenants: their ids, or `id` and `name`.
    #[schemars(required)]
    tenants: Vec<Tenant>,
    /// With a partner's tenant: every activated client becomes a tenant, looked up again every
    /// hour. Every id under `tenants` is then a partner's.
    #[schemars(extend("default" = false))]
    discover_clients: bool,
    /// The time for one request, its body included.
    #[schemars(extend("default" = "30s"))]
    timeout: HumanDuration,
    /// The time for connecting, TLS included.
    #[schemars(extend("default" = "10s"))]
    connect_timeout: HumanDuration,
    /// Our own ceiling a tenant for paginated requests. Default: 50, and 150 for tenants named
    /// `msp_…`. The rate limit that the server tells applies below it. Accounts of one server that
    /// ask for the same tenant share its requests, and the lowest of their ceilings holds for all.
    #[schemars(range(min = 1))]
    requests_per_minute: u32,
    /// The largest answer that is read, after decompression and on the wire.
    #[schemars(extend("default" = "64MiB"))]
    max_response_size: ByteSize,
    /// The proxy. Default: what the variables `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` say.
    proxy_url: ProxyText,
    /// TLS towards the API.
    tls: Tls,
}

/// TLS towards the API.
section Tls {
    /// PEM certificates to trust instead of the system's.
    ca_file: PathBuf,
    /// Our own certificate, PEM; with `key_file`.
    cert_file: PathBuf,
    /// Its key, PEM.
    key_file: PathBuf,
    /// Accept any certificate. Whoever sits in between can then read the secret.
    #[schemars(extend("default" = false))]
    insecure_skip_verify: bool,
}

/// A search, and what becomes of its alerts in the metrics.
section Search {
    /// Its name, label `search` of the metrics. Unique. Under another one all its open alerts are
    /// logged again.
    #[schemars(required)]
    name: String,
    /// OpsRamp's query string, such as `actions:OPEN+priority:P0`.
    #[schemars(extend("default" = "actions:OPEN"))]
    query: String,
    /// Time between two polls; at least 100ms.
    #[schemars(extend("default" = "30s"))]
    interval: HumanDuration,
    /// The ids of the tenants it runs for; of clients, not of their partner, if these are
    /// discovered. Default: every tenant.
    #[schemars(extend("items" = id_kind()))]
    tenants: Vec<String>,
    /// Alerts to ask for on one page; the server may give fewer.
    #[schemars(range(min = 1, max = 1000), extend("default" = 100))]
    page_size: u32,
    /// How often a result too large to read at every poll is read whole. Default: 10m, or the
    /// interval where that is longer.
    #[schemars(extend("default" = "10m"))]
    full_read_interval: HumanDuration,
    /// Gauges of a search that has not answered for so long are withheld; not less than
    /// `interval`. Default: 5m, or three intervals where that is longer.
    #[schemars(extend("default" = "5m"))]
    stale_after: HumanDuration,
    /// Labels of `opsramp_open_alerts`.
    #[schemars(extend("default" = ["state"], "uniqueItems" = true))]
    group_by: Vec<GroupLabel>,
    /// Beyond so many groups, alerts are counted under `other`.
    #[schemars(range(min = 1), extend("default" = 200))]
    max_groups: u32,
}

/// The alert log: what is written about alerts, and where to.
section Log {
    /// Which events are logged; `[]` for none: gauges alone.
    #[schemars(extend("default" = ["opened"], "uniqueItems" = true))]
    events: Vec<Event>,
    /// What becomes of alerts that are open when there is no state yet: `emit` logs them as
    /// opened, `skip` takes note of them without a line.
    #[schemars(extend("default" = "emit"))]
    at_first_start: AtFirstStart,
    /// Ask for each new alert by its id, so that the line has its description. Nothing is asked for
    /// if `opened` is not logged. Never delays a line by more than two seconds.
    #[schemars(extend("default" = false))]
    fetch_details: bool,
    /// Add the alert as the API gave it, under `alert`, unless it is longer than 1 MiB.
    #[schemars(extend("default" = false))]
    include_raw: bool,
    /// The longest description, in bytes. Container runtimes split lines at 8 to 16 KiB.
    #[schemars(extend("default" = 4096))]
    max_description_length: ByteSize,
    /// Where lines go. Default: standard output, as JSON.
    #[schemars(length(min = 1))]
    sinks: Vec<Sink>,
}

/// Where lines of the alert log go.
section Sink {
    /// Its name, label `sink` of the metrics; what waits for it belongs to the name. Unique. Default: the type.
    name: String,
    /// What it is: `stdout`, `file`, `journald`, or `otlp` (OTLP over HTTP, as Loki and the
    /// OpenTelemetry collector take it).
    #[serde(rename = "type")]
    #[schemars(required)]
    kind: SinkType,
    /// Of `stdout` and `file`: the format of a line.
    #[schemars(extend("default" = "json"))]
    format: Format,
    /// Of `file`: the file. It is appended to, and reopened at SIGHUP; its folder must exist.
    path: PathBuf,
    /// Of `otlp`: the whole URL, such as `http://loki:3100/otlp/v1/logs`. Without a query: what the
    /// receiver wants besides goes into headers.
    #[schemars(extend("format" = "uri"))]
    endpoint: String,
    /// Of `otlp`: headers to send. Their values are treated as secrets.
    headers: BTreeMap<String, SecretText>,
    /// Of `otlp`: headers to send, each with its value in a file that is read again at every
    /// request.
    headers_files: BTreeMap<String, PathBuf>,
    /// Of `otlp`: how bodies are compressed.
    #[schemars(extend("default" = "gzip"))]
    compression: Compression,
    /// Of `otlp`: the time for one request.
    #[schemars(extend("default" = "10s"))]
    timeout: HumanDuration,
}

/// Where the exporter remembers which alerts it knows: `path` or `postgres`.
section State {
    /// The file of the embedded store, for one replica. Default: `$STATE_DIRECTORY/state.db`,
    /// else `./opsramp-exporter.db`.
    path: PathBuf,
    /// A PostgreSQL server, for several replicas.
    postgres: Postgres,
}

/// A PostgreSQL server, which replicas share the searches out over.
section Postgres {
    /// The connection URL. Better: `url_file`, as it holds a password.
    url: SecretText,
    /// A file with the connection URL, read again for each connection, so that a rotated password is
    /// picked up; another database takes a restart of all replicas.
    url_file: PathBuf,
    /// How long a search stays with a replica that has gone silent.
    #[schemars(extend("default" = "15s"))]
    lease: HumanDuration,
}

/// The web server.
section Web {
    /// The addresses to listen on.
    #[schemars(length(min = 1), extend("default" = [":10836"], "uniqueItems" = true))]
    listen_addresses: Vec<ListenAddress>,
    /// The path of the metrics.
    #[schemars(extend("default" = "/metrics"))]
    telemetry_path: String,
    /// A file in the format of the Prometheus exporter-toolkit: TLS and passwords.
    config_file: PathBuf,
    /// Accept `POST /-/reload` and `POST /-/quit`.
    #[schemars(extend("default" = false))]
    enable_lifecycle: bool,
    /// Take the listening socket from systemd instead of `listen_addresses`.
    #[schemars(extend("default" = false))]
    systemd_socket: bool,
}
}

/// A tenant: its id alone, or with a name.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Tenant {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
}

/// A tenant with a name.
#[derive(Deserialize, JsonSchema)]
#[serde(rename = "Tenant", deny_unknown_fields)]
struct TenantFields {
    /// `client_1234`, `msp_1234` or a UUID.
    #[schemars(required, extend("type" = id_kind()["type"]))]
    id: Option<String>,
    /// Label `tenant` of the metrics. Default: the id.
    name: Option<String>,
}

/// What alerts can be grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum GroupLabel {
    State,
    Status,
    Priority,
    Source,
    AlertType,
    EventType,
    ResourceType,
    Client,
}

/// What happened to an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Event {
    Opened,
    Changed,
    Left,
}

/// What becomes of alerts that are open when there is no state yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum AtFirstStart {
    Emit,
    Skip,
}

/// The types of sinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum SinkType {
    Stdout,
    File,
    Journald,
    Otlp,
}

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Format {
    Json,
    Logfmt,
}

/// How bodies are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Compression {
    Gzip,
    None,
}

/// A secret, which is written out as `<secret>`.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, with = "String", description = "", extend("writeOnly" = true))]
pub(super) struct SecretText(pub(super) Secret);

/// A proxy's URL, which is written out with `<secret>` for its user and password.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, with = "String", description = "", extend("format" = "uri"))]
pub(super) struct ProxyText(pub(super) Secret);

/// The JSON Schema (draft 2020-12) of the configuration file, for editors.
#[must_use]
pub fn json_schema() -> serde_json::Value {
    SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<File>()
        .to_value()
}

// === impl File ===

impl File {
    /// Whether a secret is written in the file itself.
    pub(super) fn has_secret(&self) -> bool {
        let accounts = self.accounts.iter().flatten();
        let sinks = self.log.iter().flat_map(|log| log.sinks.iter().flatten());
        let postgres = self
            .state
            .iter()
            .filter_map(|state| state.postgres.as_ref());
        accounts
            .clone()
            .any(|account| account.client_secret.is_some())
            || accounts
                .filter_map(|account| account.proxy_url.as_ref())
                .any(|proxy| proxy.0.expose().contains('@'))
            || sinks
                .filter_map(|sink| sink.headers.as_ref())
                .any(|headers| !headers.is_empty())
            || postgres.into_iter().any(|postgres| postgres.url.is_some())
    }
}

/// The JSON types of a tenant's id: an id that is a number need not be in quotes.
fn id_kind() -> serde_json::Value {
    serde_json::json!({ "type": ["string", "integer"] })
}

// === impl Tenant ===

impl<'de> Deserialize<'de> for Tenant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdOrFields;

        impl<'de> Visitor<'de> for IdOrFields {
            type Value = Tenant;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a tenant's id, or its id and name")
            }

            fn visit_str<E>(self, id: &str) -> Result<Tenant, E> {
                Ok(Tenant {
                    id: Some(id.to_owned()),
                    name: None,
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Tenant, A::Error> {
                let TenantFields { id, name } =
                    TenantFields::deserialize(MapAccessDeserializer::new(fields))?;
                Ok(Tenant { id, name })
            }
        }

        deserializer.deserialize_struct("Tenant", &["id", "name"], IdOrFields)
    }
}

impl JsonSchema for Tenant {
    fn schema_name() -> Cow<'static, str> {
        "TenantOrId".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A tenant: its id alone, or with a name.",
            "anyOf": [id_kind(), generator.subschema_for::<TenantFields>()],
        })
    }
}

// === impl SecretText ===

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

// === impl ProxyText ===

impl Serialize for ProxyText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let url = self.0.expose();
        match url.split_once("://").zip(url.rsplit_once('@')) {
            Some(((scheme, _), (_, host))) => {
                serializer.collect_str(&format_args!("{scheme}://{REDACTED}@{host}"))
            }
            None => serializer.serialize_str(url),
        }
    }
}
