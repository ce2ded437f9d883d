//! The configuration: a YAML file, the environment and flags, checked and with defaults.
//!
//! Each module owns its options; this module reads them from the file, the environment and flags,
//! and composes them. Each mistake is reported with its place (file, line, column, key), what is
//! wrong, and what to write instead. All mistakes are reported at once. Messages never contain
//! secrets.
//!
//! The file's keys are in `file`, how YAML is read in `yaml`, what is checked in `resolve`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    deliver::SinkOptions,
    identity::Tenant,
    opsramp,
    poll::{AtFirstStart, SearchOptions},
    reading, record,
    secret::SecretSource,
};

mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod listen;
mod misplaced;
mod overrides;
mod problem;
mod proxies;
#[cfg(test)]
mod reference;
mod render;
mod resolve;
mod secret_files;
mod units;
mod url;
mod web_file;
mod words;
mod yaml;

use self::{
    file::File,
    overrides::Variables,
    problem::{Inputs, Problems},
    resolve::Resolver,
    secret_files::is_exposed,
};
pub use self::{
    file::json_schema,
    listen::{ListenAddress, ListenAddressError},
    overrides::{Env, Overrides, WebOverrides},
    problem::{ConfigError, Origin, Place, Problem},
    secret_files::SecretFiles,
    units::{ByteSize, HumanDuration, UnitError},
    web_file::WebFile,
};
pub(crate) use self::{
    resolve::problem_of_query, url::is_plain_http_to_elsewhere, web_file::CheckedWebFile,
};

/// A valid configuration. If two configurations are equal, a reload has nothing to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The accounts, at least one; their names are unique.
    pub accounts: Vec<Account>,
    /// Whether a flag or a variable names the tenants, which may be fewer than the file has.
    pub tenants_are_picked: bool,
    /// The searches, at least one; their names are unique.
    pub searches: Vec<SearchOptions>,
    /// Which events the alert log has lines for, and what the lines contain.
    pub record: record::Options,
    /// What becomes of alerts that are open when there is no state yet.
    pub at_first_start: AtFirstStart,
    /// Whether the exporter asks for each new alert by its id.
    pub fetch_details: bool,
    /// Where lines go, at least one sink; their names are unique.
    pub sinks: Vec<SinkOptions>,
    /// Where the state is kept.
    pub state: State,
    /// The web server.
    pub web: Web,
}

/// An account and its tenants.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    /// How to reach the account.
    pub options: opsramp::Options,
    /// Its tenants, at least one; their ids and names are unique within the account.
    pub tenants: Vec<Tenant>,
    /// Whether every activated client of a partner's tenant becomes a tenant.
    pub discover_clients: bool,
}

/// Where the state is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// In a file of the embedded store.
    File {
        /// The file.
        path: PathBuf,
    },
    /// In a PostgreSQL server.
    Postgres {
        /// The connection URL.
        url: SecretSource,
        /// How long a search stays with a replica that has gone silent.
        lease: Duration,
    },
}

/// The web server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Web {
    /// The addresses to listen on, at least one.
    pub listen_addresses: Vec<ListenAddress>,
    /// The path of the metrics, with its leading slash.
    pub telemetry_path: String,
    /// A file in the format of the Prometheus exporter-toolkit.
    pub config_file: Option<PathBuf>,
    /// Whether `POST /-/reload` and `POST /-/quit` are accepted.
    pub enable_lifecycle: bool,
    /// Whether the listening socket is taken from systemd.
    pub systemd_socket: bool,
}

/// A configuration, with the warnings about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The file that it was read from, if any.
    pub file: Option<PathBuf>,
    /// Settings that work but should be changed, a sentence each.
    pub warnings: Vec<String>,
    /// Which flags and variables win over keys of the file, and which variables win over defaults;
    /// one sentence.
    pub overridden: Option<String>,
}

/// What messages call the file if it cannot be read.
const CONFIGURATION: &str = "configuration file";

/// The variable that names the configuration file.
const CONFIG_FILE: &str = "OPSRAMP_EXPORTER_CONFIG_FILE";

/// The state file if systemd gives no folder (`STATE_DIRECTORY`).
const STATE_FILE: &str = "opsramp-exporter.db";

// === impl Config ===

impl Config {
    /// Reads the configuration from the file (`path`, else the file that the environment names,
    /// else none), the environment, and flags. Each source wins over those before it.
    ///
    /// # Errors
    /// If the file cannot be read, if the file or another source holds something wrong, or if no
    /// source says which account to ask.
    pub fn load(
        path: Option<&Path>,
        overrides: &Overrides,
        env: Env<'_>,
    ) -> Result<Loaded, ConfigError> {
        let Some(path) = path_of(path, env)? else {
            return Self::parse(None, overrides, env);
        };
        let text = read(CONFIGURATION, &path)?;
        let source = Source {
            name: &path,
            text: &text,
            is_exposed: is_exposed(&path),
        };
        Self::parse(Some(source), overrides, env)
    }

    /// Reads what the same sources say about the web server, and ignores mistakes and gaps
    /// elsewhere: a command that asks a running exporter has neither the exporter's secrets nor
    /// all of its flags.
    ///
    /// # Errors
    /// If the file cannot be read, or if it or a flag says something wrong about the web server.
    pub fn load_web(
        path: Option<&Path>,
        overrides: &WebOverrides,
        env: Env<'_>,
    ) -> Result<Web, ConfigError> {
        let path = path_of(path, env)?;
        let name = path.as_deref();
        let node = match name {
            Some(name) => Some(yaml_of(name, &read(CONFIGURATION, name)?)?),
            None => None,
        };
        let problems = Problems::default();
        let file = node.as_ref().map(|node| node.read::<File>(&problems));
        let mut file = file.unwrap_or_default();
        let mut inputs = Inputs::new();
        overrides.apply(&mut file, &mut inputs);
        let web = Resolver::new(&problems, &inputs).web(file.web);
        let mut list = problems.into_list(name.zip(node.as_ref()), &inputs);
        // The file's other mistakes are reported by `check` and by the exporter itself.
        list.retain(|problem| problem.path == "web" || problem.path.starts_with("web."));
        ConfigError::of(list)?;
        Ok(web)
    }

    /// Returns what the flags alone say about the web server, for use without the configuration
    /// file.
    ///
    /// # Errors
    /// If one of the flags is wrong.
    pub fn web_of_flags(overrides: &WebOverrides) -> Result<Web, ConfigError> {
        Self::load_web(None, overrides, &|_| None)
    }

    /// Returns a configuration for one account. The web server follows the flags, and everything
    /// else has its default. The state is in `./opsramp-exporter.db`; change fields as needed.
    ///
    /// # Errors
    /// If a flag's value is wrong.
    pub fn for_account(account: Account, web: &WebOverrides) -> Result<Self, ConfigError> {
        let mut file = File::default();
        let mut inputs = Inputs::new();
        web.apply(&mut file, &mut inputs);
        let problems = Problems::default();
        let resolver = Resolver::new(&problems, &inputs);
        let config = resolver.config_of(vec![account], file, &Variables::new(&|_| None));
        ConfigError::of(problems.into_list(None, &inputs))?;
        Ok(config)
    }

    /// Returns the effective configuration as YAML, with every key written out and secrets as
    /// `<secret>`. Apart from the secrets, the result can be read again.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        render::to_yaml(self)
    }

    fn parse(
        source: Option<Source<'_>>,
        overrides: &Overrides,
        env: Env<'_>,
    ) -> Result<Loaded, ConfigError> {
        let name = source.as_ref().map(|source| source.name);
        let node = match &source {
            Some(source) => Some(yaml_of(source.name, source.text)?),
            None => None,
        };
        let problems = Problems::default();
        let mut inputs = Inputs::new();
        let mut variables = Variables::new(env);
        let mut file: File = node
            .as_ref()
            .map(|node| node.read(&problems))
            .unwrap_or_default();
        let has_secret = file.has_secret();
        overrides.apply(&mut file, &mut variables, &mut inputs);
        let overridden = node.as_ref().and_then(|node| overridden(node, &inputs));
        let has_account = file.accounts.as_ref().is_some_and(|all| !all.is_empty());

        let mut resolver = Resolver::new(&problems, &inputs);
        let config = resolver.config(file, &variables);
        resolver.no_sink_on_other_files(&config, name);
        let mut warnings = resolver.into_warnings();
        let mut list = problems.into_list(name.zip(node.as_ref()), &inputs);
        list.extend(variables.into_problems());
        list.extend(proxies::problems(&config, env));
        ConfigError::of(list)?;
        let file = name.map(Path::to_path_buf);
        if !has_account {
            return Err(ConfigError::NoAccount { file });
        }
        if let Some(source) = source.filter(|source| has_secret && source.is_exposed) {
            warnings.push(format!(
                "{}: holds a secret and every user of this machine can read it; take the right away (chmod o-r), or keep the secret in a file of its own",
                source.name.display()
            ));
        }
        Ok(Loaded {
            config,
            file,
            warnings,
            overridden,
        })
    }
}

// === impl Loaded ===

impl Loaded {
    /// Returns the same configuration if it has anything to poll. It has nothing to poll if a flag
    /// picks only tenants that no search is for. The command `search` may do that, but a daemon
    /// would be silent for ever.
    ///
    /// # Errors
    /// If there is nothing to poll.
    pub fn to_be_polled(self) -> Result<Self, ConfigError> {
        let Config {
            accounts, searches, ..
        } = &self.config;
        let is_polled = |tenant: &Tenant| searches.iter().any(|search| search.is_for(&tenant.id));
        let mut accounts = accounts.iter();
        if accounts.any(|it| it.discover_clients || it.tenants.iter().any(is_polled)) {
            return Ok(self);
        }
        Err(ConfigError::Invalid(vec![Problem::of_input(
            "--opsramp.tenant",
            "no search is for any of these tenants, so that nothing would be polled; write others, or \
             name these in a search",
        )]))
    }
}

/// The text of a configuration file.
#[derive(Clone, Copy, Debug)]
struct Source<'a> {
    name: &'a Path,
    text: &'a str,
    /// Whether every user of the machine can read the file.
    is_exposed: bool,
}

/// Returns the path of the configuration file: `path`, else the one that the environment names, if
/// any. A text that is clearly not a file name may be a secret, so it is refused before an error
/// message can show it.
fn path_of(path: Option<&Path>, env: Env<'_>) -> Result<Option<PathBuf>, ConfigError> {
    let (path, input) = match path {
        Some(path) => (Some(path.to_path_buf()), "--config.file"),
        None => (Variables::new(env).path(CONFIG_FILE), CONFIG_FILE),
    };
    let advice = "name the configuration file";
    match path
        .as_deref()
        .and_then(|path| misplaced::problem(path, advice))
    {
        Some(message) => Err(ConfigError::Invalid(vec![Problem::of_input(
            input, message,
        )])),
        None => Ok(path),
    }
}

/// Says which flags and variables win over which keys of the file, and which variables win over
/// defaults. A variable that was left behind in a shell can make the exporter ask another account
/// than the file says, send its secret elsewhere, or keep another state, and nothing else reports
/// this. A flag is always given together with the file, so flags over defaults are not reported.
/// Variables that set required keys which the file lacks, such as a secret, are not reported
/// either: that is how such keys are meant to be given.
fn overridden(node: &yaml::Node, inputs: &Inputs) -> Option<String> {
    let mut list = Vec::new();
    for (path, input) in inputs {
        let plain = path.strip_suffix("_file").unwrap_or(path);
        let keys = if path.starts_with("state.") {
            ["state.path".to_owned(), "state.postgres".to_owned()]
        } else {
            [plain.to_owned(), format!("{plain}_file")]
        };
        let before = list.len();
        let in_file = keys.iter().filter(|key| node.has(key));
        list.extend(in_file.map(|key| format!("{input} over {key}")));
        // If the file has no account, the account comes from the variables alone.
        let has_default = !overrides::is_needed(plain)
            && (!plain.starts_with("accounts[0].") || node.has("accounts[0]"));
        if list.len() == before && has_default && !input.starts_with("--") {
            list.push(format!("{input} over the default of {}", keys[0]));
        }
    }
    let list = list.join(", ");
    (!list.is_empty())
        .then(|| format!("flags and variables win over the configuration file: {list}"))
}

fn yaml_of(name: &Path, text: &str) -> Result<yaml::Node, ConfigError> {
    yaml::parse(text).map_err(|error| {
        ConfigError::Invalid(vec![Problem {
            origin: Origin::File {
                file: name.to_path_buf(),
                place: error.place,
            },
            path: String::new(),
            message: error.message,
        }])
    })
}

fn read(what: &'static str, path: &Path) -> Result<String, ConfigError> {
    reading::text(path).map_err(|source| ConfigError::Read {
        what,
        path: path.to_path_buf(),
        source,
    })
}

// === impl State ===

impl Default for State {
    fn default() -> Self {
        Self::File {
            path: STATE_FILE.into(),
        }
    }
}

#[cfg(test)]
mod tests;
