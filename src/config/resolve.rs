//! From the file as it is written to a configuration that is known to make sense: defaults are
//! filled in, values are checked, alone and against each other.
//!
//! Pure: what it needs of the outside (the environment) is handed in. Every problem is noted and
//! gone past, so that one run tells all of them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    Account, Config, ListenAddress, State, Web,
    file::{self, File},
    overrides::Variables,
    problem::{Inputs, Problems, shown_key, shown_value},
    units::HumanDuration,
    url,
    yaml::nearest,
};
use crate::{
    deliver::{Format, OtlpOptions, SinkOptions, Target},
    identity::{EventKind, Tenant},
    opsramp::{self, ProxyUrl, TlsOptions},
    poll::{AtFirstStart, GroupLabel, SearchOptions},
    record,
    secret::{REDACTED, Secret, SecretSource},
};

/// What checking needs besides the file.
#[derive(Debug)]
pub(super) struct Resolver<'a> {
    problems: &'a Problems,
    inputs: &'a Inputs,
    warnings: Vec<String>,
}

const DEFAULT_NAME: &str = "default";
const DEFAULT_SEARCH: &str = "open";
const DEFAULT_QUERY: &str = "actions:OPEN";
const DEFAULT_TELEMETRY_PATH: &str = "/metrics";
const TOKEN_PATH: &str = "/auth/oauth/token";
const SHORTEST: Duration = Duration::from_millis(100);
const SMALLEST_RESPONSE: u64 = 1024;
const LARGEST_PAGE: u32 = 1000;
/// Paths of the web server that the metrics cannot take.
const FIXED_PATHS: [&str; 2] = ["/-", "/api"];
/// Headers that the OTLP sink sets itself.
const OWN_HEADERS: [&str; 5] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
];

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

// === impl Resolver ===

impl<'a> Resolver<'a> {
    pub(super) fn new(problems: &'a Problems, inputs: &'a Inputs) -> Self {
        Self {
            problems,
            inputs,
            warnings: Vec::new(),
        }
    }

    /// The configuration; of use only where no problem was noted.
    pub(super) fn config(&mut self, mut file: File, variables: &Variables<'_>) -> Config {
        let accounts = self.accounts(file.accounts.take());
        self.config_of(accounts, file, variables)
    }

    /// The configuration around accounts that are known to make sense.
    pub(super) fn config_of(
        &self,
        accounts: Vec<Account>,
        file: File,
        variables: &Variables<'_>,
    ) -> Config {
        let searches = self.searches(file.searches, &accounts);
        let log = file.log.unwrap_or_default();
        let sinks = self.sinks(log.sinks);
        Config {
            record: record::Options {
                events: self.events(log.events),
                include_raw: log.include_raw.unwrap_or(false),
                max_description_length: self.description_length(log.max_description_length),
            },
            at_first_start: match log.at_first_start {
                None | Some(file::AtFirstStart::Emit) => AtFirstStart::Emit,
                Some(file::AtFirstStart::Skip) => AtFirstStart::Skip,
            },
            fetch_details: log.fetch_details.unwrap_or(false),
            state: self.state(file.state, variables),
            web: self.web(file.web),
            accounts,
            searches,
            sinks,
        }
    }

    pub(super) fn into_warnings(self) -> Vec<String> {
        self.warnings
    }

    // --- accounts ---

    fn accounts(&mut self, accounts: Option<Vec<file::Account>>) -> Vec<Account> {
        let accounts = accounts.unwrap_or_default();
        let resolved: Vec<Account> = accounts
            .into_iter()
            .enumerate()
            .map(|(index, account)| self.account(&format!("accounts[{index}]"), account))
            .collect();
        let names = resolved.iter().map(|account| &*account.options.name);
        self.no_duplicates(
            names,
            |index| format!("accounts[{index}].name"),
            "the name of an account",
        );
        resolved
    }

    fn account(&mut self, path: &str, account: file::Account) -> Account {
        let at = |key: &str| format!("{path}.{key}");
        let url = self.required(&at("url"), account.url);
        let url = self.url(&at("url"), &url);
        self.base_url(&at("url"), &url);
        let token_url = match account.token_url {
            Some(token_url) => self.url(&at("token_url"), &token_url),
            None => format!("{url}{TOKEN_PATH}"),
        };
        for (key, url) in [("url", &url), ("token_url", &token_url)] {
            if url::is_plain_http_to_elsewhere(url) {
                self.warnings.push(format!(
                    "{}: http:// sends the secret and the token unencrypted; use https://",
                    at(key)
                ));
            }
        }
        let name = self.name(&at("name"), account.name, Some(DEFAULT_NAME));
        let client_id = self.either(
            path,
            "client_id",
            account.client_id.map(Secret::new),
            account.client_id_file,
        );
        let client_secret = account.client_secret.map(|secret| secret.0);
        if client_secret
            .as_ref()
            .is_some_and(|secret| secret.expose() == REDACTED)
        {
            self.warnings.push(format!(
                "{}: \"{REDACTED}\" is what the effective configuration shows instead of a secret; write the secret itself",
                at("client_secret")
            ));
        }
        let client_secret = self.either(
            path,
            "client_secret",
            client_secret,
            account.client_secret_file,
        );
        let tls = self.tls(&at("tls"), account.tls.unwrap_or_default());
        if tls.insecure_skip_verify {
            self.warnings.push(format!(
                "{}: any certificate is accepted; whoever sits in between can read the secret",
                at("tls.insecure_skip_verify")
            ));
        }
        Account {
            tenants: self.tenants(&at("tenants"), account.tenants),
            discover_clients: account.discover_clients.unwrap_or(false),
            options: opsramp::Options {
                name,
                url,
                token_url,
                client_id,
                client_secret,
                timeout: self.duration(&at("timeout"), account.timeout, seconds(30)),
                connect_timeout: self.duration(
                    &at("connect_timeout"),
                    account.connect_timeout,
                    seconds(10),
                ),
                requests_per_minute: account.requests_per_minute.inspect(|limit| {
                    if *limit == 0 {
                        self.problems
                            .add(at("requests_per_minute"), "must be at least 1");
                    }
                }),
                max_response_size: self
                    .response_size(&at("max_response_size"), account.max_response_size),
                proxy_url: account
                    .proxy_url
                    .map(|proxy| self.proxy(&at("proxy_url"), proxy.0)),
                tls,
            },
        }
    }

    /// People paste the URL of an endpoint where the base is meant.
    fn base_url(&self, path: &str, url: &str) {
        for ending in [TOKEN_PATH, "/api/v2"] {
            if let Some(base) = url.strip_suffix(ending) {
                self.problems.add(
                    path,
                    format!("ends in {ending}; write the base only: {base}"),
                );
            }
        }
    }

    fn url(&self, path: &str, text: &str) -> String {
        if text.is_empty() {
            return String::new();
        }
        url::base(text).unwrap_or_else(|problem| {
            self.problems.add(path, problem.to_string());
            String::new()
        })
    }

    fn proxy(&self, path: &str, proxy: Secret) -> ProxyUrl {
        if let Err(problem) = url::proxy(proxy.expose()) {
            self.problems.add(path, problem.to_string());
        }
        ProxyUrl(proxy)
    }

    fn response_size(&self, path: &str, size: Option<super::ByteSize>) -> u64 {
        let size = size.map_or(64 << 20, |size| size.0);
        if size < SMALLEST_RESPONSE {
            self.problems.add(path, "must be at least 1KiB");
        }
        size
    }

    fn tls(&self, path: &str, tls: file::Tls) -> TlsOptions {
        for (given, other, key, missing) in [
            (&tls.cert_file, &tls.key_file, "cert_file", "key_file"),
            (&tls.key_file, &tls.cert_file, "key_file", "cert_file"),
        ] {
            if given.is_some() && other.is_none() {
                self.problems
                    .add(format!("{path}.{key}"), format!("needs {missing} too"));
            }
        }
        TlsOptions {
            ca_file: tls.ca_file,
            cert_file: tls.cert_file,
            key_file: tls.key_file,
            insecure_skip_verify: tls.insecure_skip_verify.unwrap_or(false),
        }
    }

    fn tenants(&self, path: &str, tenants: Option<Vec<file::Tenant>>) -> Vec<Tenant> {
        let tenants = tenants.unwrap_or_default();
        if tenants.is_empty() && !self.problems.touches(path) {
            self.problems
                .add(path, "is missing; name at least one tenant");
        }
        let resolved: Vec<Tenant> = tenants
            .into_iter()
            .enumerate()
            .map(|(index, tenant)| {
                let at = |key: &str| format!("{path}[{index}].{key}");
                let id: Arc<str> = self.required(&at("id"), tenant.id).into();
                let is_segment = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
                if !id.chars().all(is_segment) || id.starts_with('.') {
                    self.problems.add(
                        at("id"),
                        format!(
                            "\"{}\" is not a tenant's id; they look like client_1234, msp_1234 or a UUID",
                            shown_value(&id)
                        ),
                    );
                }
                let name = self.name(&at("name"), tenant.name, Some(&id));
                Tenant { id, name }
            })
            .collect();
        let ids = resolved.iter().map(|tenant| &*tenant.id);
        self.no_duplicates(
            ids,
            |index| format!("{path}[{index}].id"),
            "the id of a tenant",
        );
        // A tenant that is there twice has been told of.
        let mut ids = HashSet::new();
        let names = resolved.iter().map(|tenant| {
            let is_first = ids.insert(&*tenant.id);
            if is_first { &*tenant.name } else { "" }
        });
        self.no_duplicates(
            names,
            |index| format!("{path}[{index}].name"),
            "the name of a tenant",
        );
        resolved
    }

    // --- searches ---

    fn searches(
        &self,
        searches: Option<Vec<file::Search>>,
        accounts: &[Account],
    ) -> Vec<SearchOptions> {
        let searches = searches.unwrap_or_else(|| vec![file::Search::open()]);
        if searches.is_empty() && !self.problems.touches("searches") {
            self.problems.add(
                "searches",
                "is empty; leave it out for the default, or write a search",
            );
        }
        let resolved: Vec<SearchOptions> = searches
            .into_iter()
            .enumerate()
            .map(|(index, search)| self.search(&format!("searches[{index}]"), search, accounts))
            .collect();
        let names = resolved.iter().map(|search| &*search.name);
        self.no_duplicates(
            names,
            |index| format!("searches[{index}].name"),
            "the name of a search",
        );
        resolved
    }

    fn search(&self, path: &str, search: file::Search, accounts: &[Account]) -> SearchOptions {
        let at = |key: &str| format!("{path}.{key}");
        let query = search.query.unwrap_or_else(|| DEFAULT_QUERY.to_owned());
        if query.trim().is_empty() {
            self.problems.add(
                at("query"),
                format!("is empty; write {DEFAULT_QUERY} or another"),
            );
        } else if query.contains(char::is_control) {
            self.problems.add(at("query"), "must be one line of text");
        }
        let interval = self.duration(&at("interval"), search.interval, seconds(30));
        let default_stale_after = seconds(300).max(interval.saturating_mul(3));
        let stale_after =
            self.duration(&at("stale_after"), search.stale_after, default_stale_after);
        if stale_after < interval && !self.problems.covers(at("interval")) {
            self.problems.add(
                at("stale_after"),
                format!(
                    "{} is less than the interval, {}: gauges would vanish between two polls",
                    HumanDuration(stale_after),
                    HumanDuration(interval)
                ),
            );
        }
        let page_size = search.page_size.unwrap_or(100);
        if !(1..=LARGEST_PAGE).contains(&page_size) {
            self.problems
                .add(at("page_size"), format!("must be from 1 to {LARGEST_PAGE}"));
        }
        let max_groups = search.max_groups.unwrap_or(200);
        if max_groups == 0 {
            self.problems.add(at("max_groups"), "must be at least 1");
        }
        let group_by: Vec<GroupLabel> = search.group_by.map_or_else(
            || vec![GroupLabel::State],
            |words| words.into_iter().map(Into::into).collect(),
        );
        let words = group_by.iter().map(|label| label.as_str());
        self.no_repetitions(&at("group_by"), words);
        if let Some(tenants) = &search.tenants {
            self.known_tenants(&at("tenants"), tenants, accounts);
        }
        SearchOptions {
            name: self.name(&at("name"), search.name, None),
            query,
            interval,
            tenants: search.tenants,
            page_size,
            full_read_interval: self.duration(
                &at("full_read_interval"),
                search.full_read_interval,
                seconds(600).max(interval),
            ),
            stale_after,
            group_by,
            max_groups: usize::try_from(max_groups).unwrap_or(usize::MAX),
        }
    }

    fn known_tenants(&self, path: &str, ids: &[String], accounts: &[Account]) {
        if ids.is_empty() && !self.problems.touches(path) {
            self.problems.add(
                path,
                "is empty; leave it out for every tenant, or name tenants",
            );
        }
        self.no_repetitions(path, ids.iter().map(String::as_str));
        // Clients that are yet to be discovered are not known here.
        let any_unknown = accounts.iter().any(|account| account.discover_clients);
        if any_unknown || self.problems.covers("accounts") {
            return;
        }
        let tenants: Vec<&Tenant> = accounts
            .iter()
            .flat_map(|account| &account.tenants)
            .collect();
        let known: Vec<&str> = tenants.iter().map(|tenant| &*tenant.id).collect();
        for (index, id) in ids.iter().enumerate() {
            if known.contains(&id.as_str()) {
                continue;
            }
            let advice = match tenants.iter().find(|tenant| *tenant.name == **id) {
                Some(tenant) => format!("is a tenant's name; write its id, {}", tenant.id),
                None => match nearest(id, &known) {
                    Some(near) => format!("is no tenant of any account; did you mean \"{near}\"?"),
                    None => "is no tenant of any account".to_owned(),
                },
            };
            self.problems.add(
                format!("{path}[{index}]"),
                format!("\"{}\" {advice}", shown_value(id)),
            );
        }
    }

    // --- the alert log ---

    fn events(&self, events: Option<Vec<file::Event>>) -> Vec<EventKind> {
        let Some(events) = events else {
            return vec![EventKind::Opened];
        };
        let path = "log.events";
        let events: Vec<EventKind> = events.into_iter().map(Into::into).collect();
        if events.is_empty() && !self.problems.touches(path) {
            self.problems
                .add(path, "is empty; write some of opened, changed, left");
        }
        self.no_repetitions(path, events.iter().map(|event| event.as_str()));
        events
    }

    fn description_length(&self, size: Option<super::ByteSize>) -> usize {
        let size = size.map_or(4096, |size| size.0);
        usize::try_from(size).unwrap_or(usize::MAX)
    }

    fn sinks(&self, sinks: Option<Vec<file::Sink>>) -> Vec<SinkOptions> {
        let sinks = sinks.unwrap_or_else(|| vec![file::Sink::stdout()]);
        if sinks.is_empty() && !self.problems.touches("log.sinks") {
            self.problems.add(
                "log.sinks",
                "is empty; leave it out for standard output, or write a sink",
            );
        }
        let resolved: Vec<(String, Option<SinkOptions>)> = sinks
            .into_iter()
            .enumerate()
            .map(|(index, sink)| {
                let path = format!("log.sinks[{index}]");
                let resolved = self.sink(&path, sink);
                (path, resolved)
            })
            .collect();
        self.no_shared_targets(&resolved);
        let names = resolved
            .iter()
            .map(|(_, sink)| sink.as_ref().map_or("", |sink| &*sink.name));
        self.no_duplicates(
            names,
            |index| format!("log.sinks[{index}].name"),
            "the name of a sink",
        );
        resolved.into_iter().filter_map(|(_, sink)| sink).collect()
    }

    fn no_shared_targets(&self, sinks: &[(String, Option<SinkOptions>)]) {
        let mut taken: HashMap<&Path, &str> = HashMap::new();
        let (mut has_stdout, mut has_journald) = (false, false);
        for (path, sink) in sinks {
            let Some(sink) = sink else { continue };
            match &sink.target {
                Target::Stdout { .. } => {
                    if std::mem::replace(&mut has_stdout, true) {
                        self.problems.add(path, "a second sink on standard output");
                    }
                }
                Target::Journald => {
                    if std::mem::replace(&mut has_journald, true) {
                        self.problems.add(path, "a second sink to the journal");
                    }
                }
                Target::File { path: file, .. } => {
                    // `./a` and `a` are one file, and paths compare by their components.
                    let file = file.strip_prefix("./").unwrap_or(file);
                    if let Some(other) = taken.insert(file, &sink.name) {
                        let message =
                            format!("is the file of the sink \"{}\" as well", shown_value(other));
                        self.problems.add(format!("{path}.path"), message);
                    }
                }
                Target::Otlp(_) => {}
            }
        }
    }

    fn sink(&self, path: &str, sink: file::Sink) -> Option<SinkOptions> {
        let at = |key: &str| format!("{path}.{key}");
        let Some(kind) = sink.kind else {
            if !self.problems.covers(at("type")) {
                self.problems.add(
                    at("type"),
                    "is missing; write stdout, file, journald or otlp",
                );
            }
            return None;
        };
        self.only_its_own_keys(path, kind, &sink);
        let format = match sink.format {
            None | Some(file::Format::Json) => Format::Json,
            Some(file::Format::Logfmt) => Format::Logfmt,
        };
        let target = match kind {
            file::SinkType::Stdout => Target::Stdout { format },
            file::SinkType::Journald => Target::Journald,
            file::SinkType::File => {
                let file = sink.path.unwrap_or_default();
                if file.as_os_str().is_empty() && !self.problems.covers(at("path")) {
                    self.problems.add(at("path"), "is missing; name the file");
                }
                Target::File { path: file, format }
            }
            file::SinkType::Otlp => {
                let endpoint = self.required(&at("endpoint"), sink.endpoint);
                if !endpoint.is_empty()
                    && let Err(problem) = url::endpoint(&endpoint)
                {
                    self.problems.add(at("endpoint"), problem.to_string());
                }
                Target::Otlp(OtlpOptions {
                    endpoint,
                    headers: self.headers(path, sink.headers, sink.headers_files),
                    gzip: sink.compression != Some(file::Compression::None),
                    timeout: self.duration(&at("timeout"), sink.timeout, seconds(10)),
                })
            }
        };
        Some(SinkOptions {
            name: self.name(&at("name"), sink.name, Some(kind.as_str())),
            target,
        })
    }

    fn only_its_own_keys(&self, path: &str, kind: file::SinkType, sink: &file::Sink) {
        use file::SinkType::{File, Otlp, Stdout};
        let given: [(&str, bool, &[file::SinkType]); 7] = [
            ("format", sink.format.is_some(), &[Stdout, File]),
            ("path", sink.path.is_some(), &[File]),
            ("endpoint", sink.endpoint.is_some(), &[Otlp]),
            ("headers", sink.headers.is_some(), &[Otlp]),
            ("headers_files", sink.headers_files.is_some(), &[Otlp]),
            ("compression", sink.compression.is_some(), &[Otlp]),
            ("timeout", sink.timeout.is_some(), &[Otlp]),
        ];
        for (key, is_given, kinds) in given {
            if is_given && !kinds.contains(&kind) {
                let message = format!("a sink of type {} has no such key", kind.as_str());
                self.problems.add(format!("{path}.{key}"), message);
            }
        }
    }

    fn headers(
        &self,
        path: &str,
        values: Option<BTreeMap<String, file::SecretText>>,
        files: Option<BTreeMap<String, PathBuf>>,
    ) -> BTreeMap<String, SecretSource> {
        let values = values.unwrap_or_default().into_iter();
        let values = values.map(|(name, value)| ("headers", name, SecretSource::Value(value.0)));
        let files = files.unwrap_or_default().into_iter();
        let files = files.map(|(name, file)| ("headers_files", name, SecretSource::File(file)));
        let mut seen = HashSet::new();
        let mut headers = BTreeMap::new();
        for (key, name, source) in values.chain(files) {
            let at = format!("{path}.{key}.{}", shown_key(&name));
            let lower = name.to_ascii_lowercase();
            if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
                self.problems.add(&at, "is not the name of a header");
            } else if OWN_HEADERS.contains(&lower.as_str()) {
                self.problems.add(&at, "is set by the exporter itself");
            } else if !seen.insert(lower) {
                self.problems.add(&at, "is given twice");
            }
            if let SecretSource::Value(value) = &source
                && http::HeaderValue::from_str(value.expose()).is_err()
            {
                self.problems
                    .add(&at, "holds characters that a header cannot");
            }
            headers.insert(name, source);
        }
        headers
    }

    // --- state and web ---

    fn state(&self, state: Option<file::State>, variables: &Variables<'_>) -> State {
        let state = state.unwrap_or_default();
        match (state.path, state.postgres) {
            (Some(_), Some(_)) => {
                self.problems
                    .add("state", "has both path and postgres; keep one");
                State::default()
            }
            (Some(path), None) => {
                if path.as_os_str().is_empty() {
                    self.problems.add("state.path", "is empty; name the file");
                }
                State::File { path }
            }
            (None, Some(postgres)) => State::Postgres {
                url: self.either(
                    "state.postgres",
                    "url",
                    postgres.url.map(|url| url.0),
                    postgres.url_file,
                ),
                lease: self.duration("state.postgres.lease", postgres.lease, seconds(15)),
            },
            (None, None) => match variables.path("STATE_DIRECTORY") {
                Some(folders) => State::File {
                    path: first_of(&folders).join("state.db"),
                },
                None => State::default(),
            },
        }
    }

    fn web(&self, web: Option<file::Web>) -> Web {
        let web = web.unwrap_or_default();
        let listen_addresses = web
            .listen_addresses
            .unwrap_or_else(|| vec![ListenAddress::default()]);
        let path = "web.listen_addresses";
        if listen_addresses.is_empty() && !self.problems.touches(path) {
            self.problems.add(
                path,
                "is empty; leave it out for the default, or write an address",
            );
        }
        let shown_addresses: Vec<String> = listen_addresses
            .iter()
            .filter(|address| address.port != 0)
            .map(ToString::to_string)
            .collect();
        self.no_repetitions(path, shown_addresses.iter().map(String::as_str));
        Web {
            listen_addresses,
            telemetry_path: self.telemetry_path(web.telemetry_path),
            config_file: web.config_file,
            enable_lifecycle: web.enable_lifecycle.unwrap_or(false),
            systemd_socket: web.systemd_socket.unwrap_or(false),
        }
    }

    fn telemetry_path(&self, path: Option<String>) -> String {
        let path = path.unwrap_or_else(|| DEFAULT_TELEMETRY_PATH.to_owned());
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "/-._~".contains(c);
        let problem = if !path.starts_with('/') {
            Some(format!(
                "must start with a slash; write \"/{}\"",
                shown_value(&path)
            ))
        } else if !path.chars().all(is_plain) || path.contains("//") {
            Some("may hold letters, digits, single slashes and -._~ only".to_owned())
        } else if path == "/" {
            Some("\"/\" is the status page; choose another path".to_owned())
        } else {
            FIXED_PATHS
                .into_iter()
                .find(|fixed| {
                    path.strip_prefix(fixed)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                })
                .map(|fixed| format!("paths below {fixed}/ are taken; choose another"))
        };
        if let Some(problem) = problem {
            self.problems.add("web.telemetry_path", problem);
        }
        path
    }

    // --- single values ---

    fn required(&self, path: &str, value: Option<String>) -> String {
        let value = value.unwrap_or_default();
        if value.trim().is_empty() && !self.problems.covers(path) {
            self.problems.add(path, "is missing");
        }
        value
    }

    /// A name, which becomes a label and a word in messages.
    fn name(&self, path: &str, value: Option<String>, default: Option<&str>) -> Arc<str> {
        let name: Arc<str> = match (value, default) {
            (None, Some(default)) => return default.into(),
            (value, _) => self.required(path, value).into(),
        };
        if name.contains(char::is_control) {
            self.problems.add(path, "must be one line of text");
        }
        name
    }

    /// A value that is given itself or by the name of a file (`key`, `key_file`).
    fn either(
        &self,
        path: &str,
        key: &str,
        value: Option<Secret>,
        file: Option<PathBuf>,
    ) -> SecretSource {
        let at = format!("{path}.{key}");
        let file_key = format!("{key}_file");
        match (value, file) {
            (Some(_), Some(_)) => {
                self.problems
                    .add(&at, format!("cannot be given together with {file_key}"));
            }
            (Some(value), None) if !value.expose().trim().is_empty() => {
                return SecretSource::Value(value);
            }
            (None, Some(file)) if !file.as_os_str().is_empty() => {
                return SecretSource::File(file);
            }
            (Some(_), None) => self.problems.add(&at, "is empty"),
            (None, Some(_)) => self.problems.add(format!("{at}_file"), "is empty"),
            (None, None) => {
                if !self.problems.covers(&at) && !self.problems.covers(format!("{at}_file")) {
                    // A flag or variable that is missing names itself.
                    let message = match self.inputs.get(&at) {
                        Some(_) => "is missing".to_owned(),
                        None => format!("is missing; write {key} or {file_key}"),
                    };
                    self.problems.add(&at, message);
                }
            }
        }
        SecretSource::Value(Secret::new(String::new()))
    }

    fn duration(&self, path: &str, value: Option<HumanDuration>, default: Duration) -> Duration {
        let Some(HumanDuration(value)) = value else {
            return default;
        };
        if value < SHORTEST {
            let shortest = HumanDuration(SHORTEST);
            self.problems
                .add(path, format!("must be at least {shortest}"));
        }
        value
    }

    fn no_duplicates<'n>(
        &self,
        names: impl Iterator<Item = &'n str>,
        path: impl Fn(usize) -> String,
        what: &str,
    ) {
        let mut seen = HashSet::new();
        for (index, name) in names.enumerate() {
            if !name.is_empty() && !seen.insert(name) {
                let message = format!("\"{}\" is {what} already", shown_value(name));
                self.problems.add(path(index), message);
            }
        }
    }

    fn no_repetitions<'n>(&self, path: &str, words: impl Iterator<Item = &'n str>) {
        let mut seen = HashSet::new();
        for word in words {
            if !seen.insert(word) {
                self.problems
                    .add(path, format!("names \"{}\" twice", shown_value(word)));
            }
        }
    }
}

/// systemd separates several folders by colons.
fn first_of(folders: &Path) -> PathBuf {
    let first = std::env::split_paths(folders.as_os_str()).next();
    first.unwrap_or_else(|| folders.to_path_buf())
}

// === conversions from the file's words ===

impl file::Search {
    /// The search that is run where none is configured.
    pub(super) fn open() -> Self {
        Self {
            name: Some(DEFAULT_SEARCH.to_owned()),
            ..Self::default()
        }
    }
}

impl file::Sink {
    /// The sink that is written to where none is configured.
    fn stdout() -> Self {
        Self {
            kind: Some(file::SinkType::Stdout),
            ..Self::default()
        }
    }
}

impl file::SinkType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::File => "file",
            Self::Journald => "journald",
            Self::Otlp => "otlp",
        }
    }
}

impl From<file::GroupLabel> for GroupLabel {
    fn from(label: file::GroupLabel) -> Self {
        match label {
            file::GroupLabel::State => Self::State,
            file::GroupLabel::Status => Self::Status,
            file::GroupLabel::Priority => Self::Priority,
            file::GroupLabel::Source => Self::Source,
            file::GroupLabel::AlertType => Self::AlertType,
            file::GroupLabel::EventType => Self::EventType,
            file::GroupLabel::ResourceType => Self::ResourceType,
            file::GroupLabel::Client => Self::Client,
        }
    }
}

impl From<file::Event> for EventKind {
    fn from(event: file::Event) -> Self {
        match event {
            file::Event::Opened => Self::Opened,
            file::Event::Changed => Self::Changed,
            file::Event::Left => Self::Left,
        }
    }
}
