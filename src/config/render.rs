//! The effective configuration as a file: every key that has a value, defaults included.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    Account, Config, State, Web,
    file::{self, File, ProxyText, SecretText},
    units::{ByteSize, HumanDuration},
};
use crate::{
    deliver::{OtlpOptions, SinkOptions, Target},
    identity::Tenant,
    poll::SearchOptions,
    secret::{Secret, SecretSource},
};

pub(super) fn to_yaml(config: &Config) -> String {
    serde_saphyr::to_string(&File::from(config))
        .expect("plain structs, with paths that `shown` has made text, can be written as YAML")
}

impl From<&Config> for File {
    fn from(config: &Config) -> Self {
        Self {
            accounts: Some(config.accounts.iter().map(Into::into).collect()),
            searches: Some(config.searches.iter().map(Into::into).collect()),
            log: Some(file::Log {
                events: Some(
                    config
                        .record
                        .events
                        .iter()
                        .map(|event| (*event).into())
                        .collect(),
                ),
                at_first_start: Some(config.at_first_start.into()),
                fetch_details: Some(config.fetch_details),
                include_raw: Some(config.record.include_raw),
                max_description_length: Some(ByteSize(
                    u64::try_from(config.record.max_description_length).unwrap_or(u64::MAX),
                )),
                sinks: Some(config.sinks.iter().map(Into::into).collect()),
            }),
            state: Some((&config.state).into()),
            web: Some((&config.web).into()),
        }
    }
}

impl From<&Account> for file::Account {
    fn from(account: &Account) -> Self {
        let options = &account.options;
        let (client_id, client_id_file) = split(&options.client_id);
        let (client_secret, client_secret_file) = split(&options.client_secret);
        Self {
            name: Some(options.name.to_string()),
            url: Some(options.url.clone()),
            token_url: Some(options.token_url.clone()),
            // The key is a name, not a secret, and users want to see it in the effective
            // configuration.
            client_id: client_id.map(|id| id.expose().to_owned()),
            client_id_file,
            client_secret: client_secret.map(SecretText),
            client_secret_file,
            tenants: Some(account.tenants.iter().map(Into::into).collect()),
            discover_clients: Some(account.discover_clients),
            timeout: Some(HumanDuration(options.timeout)),
            connect_timeout: Some(HumanDuration(options.connect_timeout)),
            requests_per_minute: options.requests_per_minute,
            max_response_size: Some(ByteSize(options.max_response_size)),
            proxy_url: options.proxy_url.clone().map(|proxy| ProxyText(proxy.0)),
            tls: Some(file::Tls {
                ca_file: options.tls.ca_file.as_deref().map(shown),
                cert_file: options.tls.cert_file.as_deref().map(shown),
                key_file: options.tls.key_file.as_deref().map(shown),
                insecure_skip_verify: Some(options.tls.insecure_skip_verify),
            }),
        }
    }
}

impl From<&Tenant> for file::Tenant {
    fn from(tenant: &Tenant) -> Self {
        Self {
            id: Some(tenant.id.to_string()),
            name: Some(tenant.name.to_string()),
        }
    }
}

impl From<&SearchOptions> for file::Search {
    fn from(search: &SearchOptions) -> Self {
        Self {
            name: Some(search.name.to_string()),
            query: Some(search.query.clone()),
            interval: Some(HumanDuration(search.interval)),
            tenants: search.tenants.clone(),
            page_size: Some(search.page_size),
            full_read_interval: Some(HumanDuration(search.full_read_interval)),
            stale_after: Some(HumanDuration(search.stale_after)),
            group_by: Some(
                search
                    .group_by
                    .iter()
                    .map(|label| (*label).into())
                    .collect(),
            ),
            max_groups: Some(u32::try_from(search.max_groups).unwrap_or(u32::MAX)),
        }
    }
}

impl From<&SinkOptions> for file::Sink {
    fn from(sink: &SinkOptions) -> Self {
        let name = Some(sink.name.to_string());
        match &sink.target {
            Target::Stdout { format } => Self {
                name,
                kind: Some(file::SinkType::Stdout),
                format: Some((*format).into()),
                ..Self::default()
            },
            Target::File { path, format } => Self {
                name,
                kind: Some(file::SinkType::File),
                format: Some((*format).into()),
                path: Some(shown(path)),
                ..Self::default()
            },
            Target::Journald => Self {
                name,
                kind: Some(file::SinkType::Journald),
                ..Self::default()
            },
            Target::Otlp(options) => Self {
                name,
                ..options.into()
            },
        }
    }
}

impl From<&OtlpOptions> for file::Sink {
    fn from(options: &OtlpOptions) -> Self {
        let mut headers = BTreeMap::new();
        let mut headers_files = BTreeMap::new();
        for (header, source) in &options.headers {
            match source {
                SecretSource::Value(value) => {
                    headers.insert(header.clone(), SecretText(value.clone()));
                }
                SecretSource::File(path) => {
                    headers_files.insert(header.clone(), shown(path));
                }
            }
        }
        Self {
            kind: Some(file::SinkType::Otlp),
            endpoint: Some(options.endpoint.clone()),
            headers: (!headers.is_empty()).then_some(headers),
            headers_files: (!headers_files.is_empty()).then_some(headers_files),
            compression: Some(if options.gzip {
                file::Compression::Gzip
            } else {
                file::Compression::None
            }),
            timeout: Some(HumanDuration(options.timeout)),
            ..Self::default()
        }
    }
}

impl From<&State> for file::State {
    fn from(state: &State) -> Self {
        match state {
            State::File { path } => Self {
                path: Some(shown(path)),
                postgres: None,
            },
            State::Postgres { url, lease } => {
                let (url, url_file) = split(url);
                Self {
                    path: None,
                    postgres: Some(file::Postgres {
                        url: url.map(SecretText),
                        url_file,
                        lease: Some(HumanDuration(*lease)),
                    }),
                }
            }
        }
    }
}

impl From<&Web> for file::Web {
    fn from(web: &Web) -> Self {
        Self {
            listen_addresses: Some(web.listen_addresses.clone()),
            telemetry_path: Some(web.telemetry_path.clone()),
            config_file: web.config_file.as_deref().map(shown),
            enable_lifecycle: Some(web.enable_lifecycle),
            systemd_socket: Some(web.systemd_socket),
        }
    }
}

/// Returns a path as text. A path that is not UTF-8 is shown as closely as possible.
fn shown(path: &Path) -> PathBuf {
    path.to_string_lossy().into_owned().into()
}

fn split(source: &SecretSource) -> (Option<Secret>, Option<PathBuf>) {
    match source {
        SecretSource::Value(value) => (Some(value.clone()), None),
        SecretSource::File(path) => (None, Some(shown(path))),
    }
}
