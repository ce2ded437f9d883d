//! Flags and environment variables, laid over the file: flags win over variables, and variables
//! win over the file.
//!
//! The values are written into the file's own structure before anything is checked, so that a
//! value is checked in one place, whatever its source. The source of each value is kept for the
//! messages.

use std::{ffi::OsString, path::PathBuf};

use super::{
    ListenAddress,
    file::{Account, File, Postgres, Search, SecretText, State, Tenant, Tls, Web},
    problem::{Inputs, Problem, shown_value},
    units::HumanDuration,
};
use crate::secret::Secret;

/// Reads an environment variable. It is passed in, so that this module does not depend on the
/// process.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The values of the flags; a flag that was not given is `None`, empty or `false`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--opsramp.url`
    pub url: Option<String>,
    /// `--opsramp.token-url`
    pub token_url: Option<String>,
    /// `--opsramp.tenant`, each an id or several with commas between them.
    pub tenants: Vec<String>,
    /// `--opsramp.client-id`
    pub client_id: Option<String>,
    /// `--opsramp.client-secret-file`
    pub client_secret_file: Option<PathBuf>,
    /// `--opsramp.insecure-skip-verify`
    pub insecure_skip_verify: bool,
    /// `--search.query`
    pub query: Option<String>,
    /// `--search.interval`
    pub interval: Option<HumanDuration>,
    /// `--state.path`
    pub state_path: Option<PathBuf>,
    /// `--state.postgres-url-file`
    pub postgres_url_file: Option<PathBuf>,
    /// The flags of the web server.
    pub web: WebOverrides,
}

/// What the flags say about the web server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebOverrides {
    /// `--web.listen-address`
    pub listen_addresses: Vec<ListenAddress>,
    /// `--web.telemetry-path`
    pub telemetry_path: Option<String>,
    /// `--web.config.file`
    pub config_file: Option<PathBuf>,
    /// `--web.enable-lifecycle`
    pub enable_lifecycle: bool,
    /// `--web.systemd-socket`
    pub systemd_socket: bool,
}

/// A value with the flag or variable that set it.
struct Given<T> {
    value: T,
    input: &'static str,
}

/// What flags and variables say about the account.
struct GivenAccount {
    url: Option<Given<String>>,
    token_url: Option<Given<String>>,
    tenants: Option<Given<String>>,
    client_id: Option<Given<String>>,
    secret_file: Option<Given<PathBuf>>,
    secret: Option<Given<String>>,
}

/// The environment, with the problems found in it.
pub(super) struct Variables<'a> {
    env: Env<'a>,
    problems: Vec<Problem>,
}

/// The flags and variables that can define an account, as messages name them if they are missing.
const ACCOUNT_INPUTS: [(&str, &str); 4] = [
    ("accounts[0].url", "--opsramp.url or OPSRAMP_URL"),
    (
        "accounts[0].tenants",
        "--opsramp.tenant or OPSRAMP_TENANT_ID",
    ),
    (
        "accounts[0].client_id",
        "--opsramp.client-id or OPSRAMP_CLIENT_ID",
    ),
    (
        "accounts[0].client_secret",
        "--opsramp.client-secret-file, OPSRAMP_CLIENT_SECRET_FILE or OPSRAMP_CLIENT_SECRET",
    ),
];

/// Whether an account needs this key.
pub(super) fn is_needed(path: &str) -> bool {
    ACCOUNT_INPUTS.iter().any(|(needed, _)| *needed == path)
}

// === impl Variables ===

impl<'a> Variables<'a> {
    pub(super) fn new(env: Env<'a>) -> Self {
        Self {
            env,
            problems: Vec::new(),
        }
    }

    /// Returns a variable that names a file. An empty variable counts as not set, because compose
    /// files leave unused variables empty.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        (self.env)(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    }

    fn text(&mut self, name: &'static str) -> Option<Given<String>> {
        let value = (self.env)(name).filter(|value| !value.is_empty())?;
        match value.into_string() {
            Ok(value) => Some(Given { value, input: name }),
            Err(_) => {
                self.problems
                    .push(Problem::of_input(name, "is not UTF-8 text"));
                None
            }
        }
    }

    fn one_of(&mut self, first: &'static str, second: &'static str) {
        let is_set = |name| (self.env)(name).is_some_and(|value| !value.is_empty());
        if is_set(first) && is_set(second) {
            let message = format!("cannot be set together with {second}");
            self.problems.push(Problem::of_input(first, message));
        }
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }
}

// === impl GivenAccount ===

impl GivenAccount {
    /// Returns the flag or variable that messages name.
    fn first_input(&self) -> Option<&'static str> {
        input_of(self.url.as_ref())
            .or(input_of(self.token_url.as_ref()))
            .or(input_of(self.tenants.as_ref()))
            .or(input_of(self.client_id.as_ref()))
            .or(input_of(self.secret_file.as_ref()))
            .or(input_of(self.secret.as_ref()))
    }

    /// Replaces what the file says, and notes in `inputs` where each value came from.
    fn write_into(self, account: &mut Account, inputs: &mut Inputs, problems: &mut Vec<Problem>) {
        let mut came_by = |path: &str, input| inputs.insert(format!("accounts[0].{path}"), input);
        if let Some(Given { value, input }) = self.url {
            account.url = Some(value);
            came_by("url", input);
        }
        if let Some(Given { value, input }) = self.token_url {
            account.token_url = Some(value);
            came_by("token_url", input);
        }
        if let Some(Given { value, input }) = self.tenants {
            let known = account.tenants.take().unwrap_or_default();
            let given = value.split(',').map(str::trim).filter(|id| !id.is_empty());
            let tenant = |given| {
                let tenant = tenant(given, &known);
                if let Some(id) = tenant.id.as_deref().filter(|id| *id != given) {
                    let given = shown_value(given);
                    let message = format!("\"{given}\" is a tenant's name; write its id, {id}");
                    problems.push(Problem::of_input(input, message));
                }
                tenant
            };
            account.tenants = Some(given.map(tenant).collect());
            came_by("tenants", input);
        }
        if let Some(Given { value, input }) = self.client_id {
            account.client_id = Some(value);
            account.client_id_file = None;
            came_by("client_id", input);
        }
        if let Some(Given { value, input }) = self.secret_file {
            account.client_secret_file = Some(value);
            account.client_secret = None;
            came_by("client_secret_file", input);
        } else if let Some(Given { value, input }) = self.secret {
            account.client_secret = Some(SecretText(Secret::trimmed(&value)));
            account.client_secret_file = None;
            came_by("client_secret", input);
        }
    }
}

// === impl Overrides ===

impl Overrides {
    /// Writes what was given into `file`, and notes in `inputs` where it came from.
    pub(super) fn apply(
        &self,
        file: &mut File,
        variables: &mut Variables<'_>,
        inputs: &mut Inputs,
    ) {
        self.apply_account(file, variables, inputs);
        self.apply_search(file, variables, inputs);
        self.apply_state(file, variables, inputs);
        self.web.apply(file, inputs);
    }

    fn apply_account(&self, file: &mut File, variables: &mut Variables<'_>, inputs: &mut Inputs) {
        let given = self.given_account(variables);
        let insecure = self
            .insecure_skip_verify
            .then_some("--opsramp.insecure-skip-verify");
        let Some(first) = given.first_input().or(insecure) else {
            return;
        };
        let accounts = file.accounts.get_or_insert_default();
        // `--opsramp.insecure-skip-verify` alone does not define an account.
        if accounts.is_empty() && given.first_input().is_some() {
            accounts.push(Account::default());
            inputs.extend(ACCOUNT_INPUTS.map(|(path, input)| (path.to_owned(), input)));
        }
        match accounts.as_mut_slice() {
            [] => {}
            [account] => {
                given.write_into(account, inputs, &mut variables.problems);
                if self.insecure_skip_verify {
                    let tls = account.tls.get_or_insert_with(Tls::default);
                    tls.insecure_skip_verify = Some(true);
                }
            }
            [_, _, ..] => {
                let message = format!(
                    "is meant for one account, and the configuration file has {}; change it there",
                    accounts.len()
                );
                variables.problems.push(Problem::of_input(first, message));
            }
        }
    }

    /// Returns what flags say about the account, and what variables say where no flag was given.
    fn given_account(&self, variables: &mut Variables<'_>) -> GivenAccount {
        let tenants = (!self.tenants.is_empty()).then(|| Given {
            value: self.tenants.join(","),
            input: "--opsramp.tenant",
        });
        let secret_file = flag(
            self.client_secret_file.as_ref(),
            "--opsramp.client-secret-file",
        );
        let (secret_file, secret) = if secret_file.is_some() {
            (secret_file, None)
        } else {
            variables.one_of("OPSRAMP_CLIENT_SECRET", "OPSRAMP_CLIENT_SECRET_FILE");
            let secret_file = variables
                .path("OPSRAMP_CLIENT_SECRET_FILE")
                .map(|value| Given {
                    value,
                    input: "OPSRAMP_CLIENT_SECRET_FILE",
                });
            (secret_file, variables.text("OPSRAMP_CLIENT_SECRET"))
        };
        GivenAccount {
            url: flag(self.url.as_ref(), "--opsramp.url").or_else(|| variables.text("OPSRAMP_URL")),
            token_url: flag(self.token_url.as_ref(), "--opsramp.token-url")
                .or_else(|| variables.text("OPSRAMP_TOKEN_URL")),
            tenants: tenants.or_else(|| variables.text("OPSRAMP_TENANT_ID")),
            client_id: flag(self.client_id.as_ref(), "--opsramp.client-id")
                .or_else(|| variables.text("OPSRAMP_CLIENT_ID")),
            secret_file,
            secret,
        }
    }

    fn apply_search(&self, file: &mut File, variables: &mut Variables<'_>, inputs: &mut Inputs) {
        let query = flag(self.query.as_ref(), "--search.query");
        let interval = flag(self.interval.as_ref(), "--search.interval");
        let Some(first) = input_of(query.as_ref()).or(input_of(interval.as_ref())) else {
            return;
        };
        let searches = file.searches.get_or_insert_with(|| vec![Search::open()]);
        let [search] = searches.as_mut_slice() else {
            let message = format!(
                "is meant for one search, and the configuration file has {}; change it there",
                searches.len()
            );
            variables.problems.push(Problem::of_input(first, message));
            return;
        };
        if let Some(Given { value, input }) = query {
            search.query = Some(value);
            inputs.insert("searches[0].query".to_owned(), input);
        }
        if let Some(Given { value, input }) = interval {
            search.interval = Some(value);
            inputs.insert("searches[0].interval".to_owned(), input);
        }
    }

    fn apply_state(&self, file: &mut File, variables: &mut Variables<'_>, inputs: &mut Inputs) {
        let lease = file
            .state
            .as_ref()
            .and_then(|state| state.postgres.as_ref()?.lease);
        let at_path = |path| State {
            path: Some(path),
            postgres: None,
        };
        let at_server = |url, url_file| State {
            path: None,
            postgres: Some(Postgres {
                url,
                url_file,
                lease,
            }),
        };
        let mut came_by = |path: &str, input| inputs.insert(path.to_owned(), input);
        match (&self.state_path, &self.postgres_url_file) {
            (Some(_), Some(_)) => variables.problems.push(Problem::of_input(
                "--state.path",
                "cannot be given together with --state.postgres-url-file",
            )),
            (Some(path), None) => {
                file.state = Some(at_path(path.clone()));
                came_by("state.path", "--state.path");
            }
            (None, Some(url_file)) => {
                file.state = Some(at_server(None, Some(url_file.clone())));
                came_by("state.postgres.url_file", "--state.postgres-url-file");
            }
            (None, None) => {
                variables.one_of(
                    "OPSRAMP_EXPORTER_STATE_PATH",
                    "OPSRAMP_EXPORTER_POSTGRES_URL",
                );
                if let Some(path) = variables.path("OPSRAMP_EXPORTER_STATE_PATH") {
                    file.state = Some(at_path(path));
                    came_by("state.path", "OPSRAMP_EXPORTER_STATE_PATH");
                } else if let Some(url) = variables.text("OPSRAMP_EXPORTER_POSTGRES_URL") {
                    let secret = SecretText(Secret::trimmed(&url.value));
                    file.state = Some(at_server(Some(secret), None));
                    came_by("state.postgres.url", "OPSRAMP_EXPORTER_POSTGRES_URL");
                }
            }
        }
    }
}

fn flag<T: Clone>(value: Option<&T>, input: &'static str) -> Option<Given<T>> {
    value.cloned().map(|value| Given { value, input })
}

fn input_of<T>(given: Option<&Given<T>>) -> Option<&'static str> {
    given.map(|given| given.input)
}

/// Returns the tenant that an id or a name means. A tenant that the file knows keeps its name.
fn tenant(id: &str, known: &[Tenant]) -> Tenant {
    let by_id = known.iter().find(|tenant| tenant.id.as_deref() == Some(id));
    let by_name = || {
        known
            .iter()
            .find(|it| it.id.is_some() && it.name.as_deref() == Some(id))
    };
    by_id.or_else(by_name).cloned().unwrap_or_else(|| Tenant {
        id: Some(id.to_owned()),
        name: None,
    })
}

// === impl WebOverrides ===

impl WebOverrides {
    /// Writes what was given into `file`, and notes in `inputs` where it came from.
    pub(super) fn apply(&self, file: &mut File, inputs: &mut Inputs) {
        let web = file.web.get_or_insert_with(Web::default);
        if !self.listen_addresses.is_empty() {
            web.listen_addresses = Some(self.listen_addresses.clone());
            inputs.insert("web.listen_addresses".to_owned(), "--web.listen-address");
        }
        if let Some(path) = &self.telemetry_path {
            web.telemetry_path = Some(path.clone());
            inputs.insert("web.telemetry_path".to_owned(), "--web.telemetry-path");
        }
        if let Some(path) = &self.config_file {
            web.config_file = Some(path.clone());
            inputs.insert("web.config_file".to_owned(), "--web.config.file");
        }
        if self.enable_lifecycle {
            web.enable_lifecycle = Some(true);
        }
        if self.systemd_socket {
            web.systemd_socket = Some(true);
        }
    }
}
