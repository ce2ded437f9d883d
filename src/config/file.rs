//! The configuration file as it is written: every key is optional, and only types are checked.
//!
//! Editors show the doc comments of these types, and the reference is generated from them (see
//! [`json_schema()`]), so they address the reader of the file. Types of single values have an empty
//! description there, because their keys have one. [`super::resolve`] checks what keys mean together.

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

/// The configuration of opsramp-exporter. Flags win over variables of the environment, and those
/// over this file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "opsramp-exporter configuration")]
pub(super) struct File {
    /// The OpsRamp accounts to ask. Without this key, the account is what the `--opsramp.*` flags
    /// and the `OPSRAMP_*` variables say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) accounts: Option<Vec<Account>>,
    /// The searches. Each runs for every tenant, or for those that it names. Default: one, named
    /// `open`, for `actions:OPEN`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) searches: Option<Vec<Search>>,
    /// The alert log: what is written about alerts, and where to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) log: Option<Log>,
    /// Where the exporter remembers which alerts it knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<State>,
    /// The web server: metrics, health, the status page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) web: Option<Web>,
}

/// One OpsRamp account: an API key, and the tenants it is used for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Account {
    /// Its name, label `account` of the metrics. Unique. Under another one all its open alerts are
    /// logged again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "default"))]
    pub(super) name: Option<String>,
    /// The base URL of the API, such as `https://acme.api.opsramp.com`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(required, extend("format" = "uri"))]
    pub(super) url: Option<String>,
    /// The token endpoint. Default: the base URL with `/auth/oauth/token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "uri"))]
    pub(super) token_url: Option<String>,
    /// The OAuth2 key. This or `client_id_file` is needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client_id: Option<String>,
    /// A file with the OAuth2 key, read again at every token request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client_id_file: Option<PathBuf>,
    /// The OAuth2 secret. Better: `client_secret_file`, or the variable `OPSRAMP_CLIENT_SECRET`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client_secret: Option<SecretText>,
    /// A file with the OAuth2 secret, read again at every token request, so that a rotated secret
    /// is picked up without a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client_secret_file: Option<PathBuf>,
    /// The tenants: their ids, or `id` and `name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(required)]
    pub(super) tenants: Option<Vec<Tenant>>,
    /// With a partner's tenant: every activated client becomes a tenant, looked up again every
    /// hour. Every id under `tenants` is then a partner's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub(super) discover_clients: Option<bool>,
    /// The time for one request, its body included.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "30s"))]
    pub(super) timeout: Option<HumanDuration>,
    /// The time for connecting, TLS included.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "10s"))]
    pub(super) connect_timeout: Option<HumanDuration>,
    /// Our own ceiling a tenant for paginated requests. Default: 50, and 150 for tenants named
    /// `msp_…`. The rate limit that the server tells applies below it. Accounts of one server that
    /// ask for the same tenant share its requests, and the lowest of their ceilings holds for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(super) requests_per_minute: Option<u32>,
    /// The largest answer that is read, after decompression and on the wire.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "64MiB"))]
    pub(super) max_response_size: Option<ByteSize>,
    /// The proxy. Default: what the variables `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) proxy_url: Option<ProxyText>,
    /// TLS towards the API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tls: Option<Tls>,
}

/// TLS towards the API.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    /// PEM certificates to trust instead of the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ca_file: Option<PathBuf>,
    /// Our own certificate, PEM; with `key_file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cert_file: Option<PathBuf>,
    /// Its key, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key_file: Option<PathBuf>,
    /// Accept any certificate. Whoever sits in between can then read the secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub(super) insecure_skip_verify: Option<bool>,
}

/// A tenant: its id alone, or with a name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Tenant {
    pub(super) id: Option<String>,
    pub(super) name: Option<String>,
}

/// A tenant with a name.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(rename = "Tenant", deny_unknown_fields)]
struct TenantFields {
    /// `client_1234`, `msp_1234` or a UUID.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(required, extend("type" = id_kind()["type"]))]
    id: Option<String>,
    /// Label `tenant` of the metrics. Default: the id.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

/// A search, and what becomes of its alerts in the metrics.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Search {
    /// Its name, label `search` of the metrics. Unique. Under another one all its open alerts are
    /// logged again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(required)]
    pub(super) name: Option<String>,
    /// OpsRamp's query string, such as `actions:OPEN+priority:P0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "actions:OPEN"))]
    pub(super) query: Option<String>,
    /// Time between two polls; at least 100ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "30s"))]
    pub(super) interval: Option<HumanDuration>,
    /// The ids of the tenants it runs for; of clients, not of their partner, if these are
    /// discovered. Default: every tenant.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("items" = id_kind()))]
    pub(super) tenants: Option<Vec<String>>,
    /// Alerts to ask for on one page; the server may give fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000), extend("default" = 100))]
    pub(super) page_size: Option<u32>,
    /// How often a result too large to read at every poll is read whole. Default: 10m, or the
    /// interval where that is longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "10m"))]
    pub(super) full_read_interval: Option<HumanDuration>,
    /// Gauges of a search that has not answered for so long are withheld; not less than
    /// `interval`. Default: 5m, or three intervals where that is longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "5m"))]
    pub(super) stale_after: Option<HumanDuration>,
    /// Labels of `opsramp_open_alerts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = ["state"], "uniqueItems" = true))]
    pub(super) group_by: Option<Vec<GroupLabel>>,
    /// Beyond so many groups, alerts are counted under `other`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1), extend("default" = 200))]
    pub(super) max_groups: Option<u32>,
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

/// The alert log: what is written about alerts, and where to.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    /// Which events are logged; `[]` for none: gauges alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = ["opened"], "uniqueItems" = true))]
    pub(super) events: Option<Vec<Event>>,
    /// What becomes of alerts that are open when there is no state yet: `emit` logs them as
    /// opened, `skip` takes note of them without a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "emit"))]
    pub(super) at_first_start: Option<AtFirstStart>,
    /// Ask for each new alert by its id, so that the line has its description. Nothing is asked for
    /// if `opened` is not logged. Never delays a line by more than two seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub(super) fetch_details: Option<bool>,
    /// Add the alert as the API gave it, under `alert`, unless it is longer than 1 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub(super) include_raw: Option<bool>,
    /// The longest description, in bytes. Container runtimes split lines at 8 to 16 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 4096))]
    pub(super) max_description_length: Option<ByteSize>,
    /// Where lines go. Default: standard output, as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub(super) sinks: Option<Vec<Sink>>,
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

/// Where lines of the alert log go.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Sink {
    /// Its name, label `sink` of the metrics; what waits for it belongs to the name. Unique. Default: the type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<String>,
    /// What it is: `stdout`, `file`, `journald`, or `otlp` (OTLP over HTTP, as Loki and the
    /// OpenTelemetry collector take it).
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(required)]
    pub(super) kind: Option<SinkType>,
    /// Of `stdout` and `file`: the format of a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "json"))]
    pub(super) format: Option<Format>,
    /// Of `file`: the file. It is appended to, and reopened at SIGHUP; its folder must exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<PathBuf>,
    /// Of `otlp`: the whole URL, such as `http://loki:3100/otlp/v1/logs`. Without a query: what the
    /// receiver wants besides goes into headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "uri"))]
    pub(super) endpoint: Option<String>,
    /// Of `otlp`: headers to send. Their values are treated as secrets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) headers: Option<BTreeMap<String, SecretText>>,
    /// Of `otlp`: headers to send, each with its value in a file that is read again at every
    /// request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) headers_files: Option<BTreeMap<String, PathBuf>>,
    /// Of `otlp`: how bodies are compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "gzip"))]
    pub(super) compression: Option<Compression>,
    /// Of `otlp`: the time for one request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "10s"))]
    pub(super) timeout: Option<HumanDuration>,
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

/// Where the exporter remembers which alerts it knows: `path` or `postgres`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    /// The file of the embedded store, for one replica. Default: `$STATE_DIRECTORY/state.db`,
    /// else `./opsramp-exporter.db`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<PathBuf>,
    /// A PostgreSQL server, for several replicas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) postgres: Option<Postgres>,
}

/// A PostgreSQL server, which replicas share the searches out over.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Postgres {
    /// The connection URL. Better: `url_file`, as it holds a password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) url: Option<SecretText>,
    /// A file with the connection URL, read again for each connection, so that a rotated password is
    /// picked up; another database takes a restart of all replicas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) url_file: Option<PathBuf>,
    /// How long a search stays with a replica that has gone silent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "15s"))]
    pub(super) lease: Option<HumanDuration>,
}

/// The web server.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Web {
    /// The addresses to listen on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1), extend("default" = [":10836"], "uniqueItems" = true))]
    pub(super) listen_addresses: Option<Vec<ListenAddress>>,
    /// The path of the metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "/metrics"))]
    pub(super) telemetry_path: Option<String>,
    /// A file in the format of the Prometheus exporter-toolkit: TLS and passwords.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) config_file: Option<PathBuf>,
    /// Accept `POST /-/reload` and `POST /-/quit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub(super) enable_lifecycle: Option<bool>,
    /// Take the listening socket from systemd instead of `listen_addresses`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub(super) systemd_socket: Option<bool>,
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

impl Serialize for Tenant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        TenantFields {
            id: self.id.clone(),
            name: self.name.clone(),
        }
        .serialize(serializer)
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
