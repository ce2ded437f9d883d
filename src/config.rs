//! The configuration: a YAML file, the environment and flags, checked and with defaults.
//!
//! Each module owns its options; this one reads them from what people write and composes them.
//! Whoever writes something wrong learns where (file, line, column, key), what, and what to write
//! instead, about every mistake at once. Secrets never get into a message.
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
mod yaml;

pub(crate) use self::resolve::problem_of_query;
pub(crate) use self::web_file::CheckedWebFile;
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

/// A configuration that makes sense. Two are equal where a reload has nothing to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The accounts, at least one; their names are unique.
    pub accounts: Vec<Account>,
    /// The searches, at least one; their names are unique.
    pub searches: Vec<SearchOptions>,
    /// What the lines of the alert log hold.
    pub record: record::Options,
    /// What becomes of alerts that are open when there is no state yet.
    pub at_first_start: AtFirstStart,
    /// Whether each new alert is asked for by its id.
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
    /// How to reach it.
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

/// A configuration, and what should be said about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The file that it was read from, if any.
    pub file: Option<PathBuf>,
    /// What works but should not stay so, a sentence each.
    pub warnings: Vec<String>,
    /// Which flags and variables win over keys that the file has, and which variables over its defaults;
    /// a sentence.
    pub overridden: Option<String>,
}

/// What a file is that cannot be read.
const CONFIGURATION: &str = "configuration file";

/// The variable that names the configuration file.
const CONFIG_FILE: &str = "OPSRAMP_EXPORTER_CONFIG_FILE";

/// The state's file where systemd gives no folder.
const STATE_FILE: &str = "opsramp-exporter.db";

// === impl Config ===

impl Config {
    /// Reads the configuration: the file (`path`, else the one that the environment names, else
    /// none), the environment, and flags, each winning over those before.
    ///
    /// # Errors
    /// Where the file cannot be read, where something in it or in the other sources is wrong, and
    /// where nothing says which account to ask.
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

    /// What the same sources say about the web server, whatever is wrong or missing elsewhere:
    /// who asks a running exporter has neither its secrets nor all of its flags.
    ///
    /// # Errors
    /// Where the file cannot be read, and where it or a flag says something wrong about the web
    /// server.
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
        // Of the file's other mistakes, `check` and the exporter itself tell.
        let elsewhere = Problems::default();
        let file = node.as_ref().map(|node| node.read::<File>(&elsewhere));
        let mut file = file.unwrap_or_default();
        let mut inputs = Inputs::new();
        overrides.apply(&mut file, &mut inputs);
        let problems = Problems::default();
        let web = Resolver::new(&problems, &inputs).web(file.web);
        let locate = |path: &str| node.as_ref().and_then(|node| node.locate(path));
        let mut list = elsewhere.into_list(name, locate, &inputs);
        list.retain(|problem| problem.path == "web" || problem.path.starts_with("web."));
        list.extend(problems.into_list(name, locate, &inputs));
        if list.is_empty() {
            Ok(web)
        } else {
            Err(ConfigError::Invalid(list))
        }
    }

    /// What the flags alone say about the web server, where no file can tell.
    ///
    /// # Errors
    /// Where one of them is wrong.
    pub fn web_of_flags(overrides: &WebOverrides) -> Result<Web, ConfigError> {
        Self::load_web(None, overrides, &|_| None)
    }

    /// A configuration for one account with defaults for all else, but what the flags say about
    /// the web server. Its state is `./opsramp-exporter.db`; change fields as needed.
    ///
    /// # Errors
    /// Where a flag's value is wrong.
    pub fn for_account(account: Account, web: &WebOverrides) -> Result<Self, ConfigError> {
        let mut file = File::default();
        let mut inputs = Inputs::new();
        web.apply(&mut file, &mut inputs);
        let problems = Problems::default();
        let resolver = Resolver::new(&problems, &inputs);
        let config = resolver.config_of(vec![account], file, &Variables::new(&|_| None));
        let problems = problems.into_list(None, |_| None, &inputs);
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError::Invalid(problems))
        }
    }

    /// The effective configuration as YAML, every key written out, secrets as `<secret>`. Apart
    /// from those it can be read again.
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
        let locate = |path: &str| node.as_ref().and_then(|node| node.locate(path));
        let mut list = problems.into_list(name, locate, &inputs);
        list.extend(variables.into_problems());
        list.extend(proxies::problems(&config, env));
        if list.is_empty() && !has_account {
            let file = name.map(Path::to_path_buf);
            return Err(ConfigError::NoAccount { file });
        }
        if !list.is_empty() {
            return Err(ConfigError::Invalid(list));
        }
        if let Some(source) = source.filter(|source| has_secret && source.is_exposed) {
            warnings.push(format!(
                "{}: holds a secret and every user of this machine can read it; take the right away (chmod o-r), or keep the secret in a file of its own",
                source.name.display()
            ));
        }
        Ok(Loaded {
            config,
            file: name.map(Path::to_path_buf),
            warnings,
            overridden,
        })
    }
}

// === impl Loaded ===

impl Loaded {
    /// The same where anything is to be polled. Nothing is where a flag picks tenants that no search is
    /// for: whoever asks once may do that, a daemon would be silent for ever.
    ///
    /// # Errors
    /// Where nothing is.
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
    /// Whether every user of the machine can read it.
    is_exposed: bool,
}

/// The file that is meant: `path`, else the one that the environment names, if any. What is plainly
/// no file's name is refused before an error could show it.
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

/// Which flags and variables win over which keys of the file, and which variables over its defaults. A
/// variable that was left behind in a shell has a file ask another account than it says, send its secret
/// elsewhere or keep another state, and nothing else tells. A flag is given together with the file; where
/// the file lacks what it cannot do without, as a secret, a variable is how it is given.
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
        // An account that the file does not have is the variables' own.
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
