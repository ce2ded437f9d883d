//! The command line: commands and flags, typed.
//!
//! Only this module knows the crate that parses it. What flags mean together with the file and the
//! environment is [`crate::config`]'s to say; variables of the environment are named in the help
//! and read there, so that `--help` cannot show a secret.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, process::ExitCode, str::FromStr};

use clap::{
    Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser as _},
    error::ErrorKind,
};

use crate::{
    build_info,
    config::{HumanDuration, ListenAddress, Overrides, WebOverrides},
    logging,
};

/// What the user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cli {
    /// What to do.
    pub command: Command,
    /// `--config.file`
    pub config_file: Option<PathBuf>,
    /// The flags that win over the environment and the file.
    pub overrides: Overrides,
    /// How verbose the daemon's own diagnostics are.
    pub log_level: logging::Level,
    /// How they look.
    pub log_format: logging::Format,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The daemon.
    Run,
    /// Validate the configuration and exit.
    CheckConfig,
    /// Go through the set-up step by step.
    Check,
    /// One search, its results on standard output.
    Search(Search),
    /// The daemon against a built-in simulator.
    Demo {
        /// Where the simulator listens.
        simulator: SocketAddr,
    },
    /// Print the effective configuration.
    Config {
        /// Print the file's JSON Schema instead.
        schema: bool,
    },
    /// Print [`version`].
    Version,
}

/// A search from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// The query; the configured one where none is given.
    pub query: Option<String>,
    /// How results are shown; by default a table on a terminal, else `jsonl`.
    pub output: Option<Output>,
    /// Print `totalResults` only.
    pub count: bool,
}

/// How results are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table for people.
    Table,
    /// One JSON array.
    Json,
    /// One JSON object a line.
    Jsonl,
}

/// Watches OpsRamp: open alerts as Prometheus metrics, and every new alert as one structured log
/// line, exactly once.
#[derive(Debug, Parser)]
#[command(
    name = "opsramp-exporter",
    bin_name = "opsramp-exporter",
    disable_version_flag = true,
    disable_help_subcommand = true,
    subcommand_value_name = "COMMAND",
    after_help = AFTER_HELP,
    max_term_width = 100
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<CommandArguments>,
    /// Print version, revision and compiler
    #[arg(long, short = 'V', global = true)]
    version: bool,
    #[command(flatten)]
    config: ConfigArguments,
    #[command(flatten)]
    account: AccountArguments,
    #[command(flatten)]
    search: SearchArguments,
    #[command(flatten)]
    state: StateArguments,
    #[command(flatten)]
    web: WebArguments,
    #[command(flatten)]
    log: LogArguments,
}

const AFTER_HELP: &str = "\
Flags win over the environment, and the environment over the file. No flag takes a secret: the
command line is public. Use a file or OPSRAMP_CLIENT_SECRET.

Exit status: 0 done, 1 failed at run time, 2 wrong usage or configuration.

Try it:  opsramp-exporter demo";

#[derive(Debug, Subcommand)]
enum CommandArguments {
    /// Run the daemon (the default)
    Run,
    /// Go through the set-up step by step; say what works, and what to do about what does not
    Check,
    /// Search once; print every alert found
    Search {
        /// How to print alerts [default: table on a terminal, else jsonl]
        #[arg(long, value_name = "FORMAT", value_enum, conflicts_with = "count")]
        output: Option<Output>,
        /// Print the number of alerts only, at the cost of one request
        #[arg(long)]
        count: bool,
    },
    /// Run the daemon against a built-in OpsRamp simulator; nothing to configure
    Demo {
        /// Where the simulator listens, so that other clients can be pointed at it
        #[arg(
            long = "simulator.listen-address",
            value_name = "ADDRESS",
            default_value = "127.0.0.1:10837"
        )]
        simulator: SocketAddr,
    },
    /// Print the effective configuration, without secrets
    Config {
        /// Print the JSON Schema of the configuration file
        #[arg(long)]
        schema: bool,
    },
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration")]
struct ConfigArguments {
    /// The configuration file [env: OPSRAMP_EXPORTER_CONFIG_FILE]
    #[arg(long = "config.file", value_name = "FILE", global = true)]
    config_file: Option<PathBuf>,
    /// Validate the configuration and exit
    #[arg(long = "config.check", global = true)]
    config_check: bool,
}

#[derive(Debug, Args)]
#[command(
    next_help_heading = "OpsRamp: one account without a file, or over the file's only account"
)]
struct AccountArguments {
    /// The base URL, such as https://acme.api.opsramp.com [env: OPSRAMP_URL]
    #[arg(long = "opsramp.url", value_name = "URL", global = true)]
    url: Option<String>,
    /// The token endpoint [env: OPSRAMP_TOKEN_URL] [default: {url}/auth/oauth/token]
    #[arg(long = "opsramp.token-url", value_name = "URL", global = true)]
    token_url: Option<String>,
    /// A tenant's id; may be repeated [env: OPSRAMP_TENANT_ID]
    #[arg(
        long = "opsramp.tenant",
        value_name = "ID",
        value_delimiter = ',',
        global = true
    )]
    tenants: Vec<String>,
    /// The OAuth2 key [env: OPSRAMP_CLIENT_ID]
    #[arg(long = "opsramp.client-id", value_name = "KEY", global = true)]
    client_id: Option<String>,
    /// A file with the OAuth2 secret [env: OPSRAMP_CLIENT_SECRET_FILE, or OPSRAMP_CLIENT_SECRET
    /// with the secret itself]
    #[arg(
        long = "opsramp.client-secret-file",
        value_name = "FILE",
        global = true
    )]
    client_secret_file: Option<PathBuf>,
    /// Accept any certificate: whoever sits in between can then read the secret
    #[arg(long = "opsramp.insecure-skip-verify", global = true)]
    insecure_skip_verify: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Search: over the file's only search")]
struct SearchArguments {
    /// OpsRamp's query string [default: actions:OPEN]
    #[arg(long = "search.query", value_name = "QUERY", global = true)]
    query: Option<String>,
    /// Time between two polls [default: 30s]
    #[arg(long = "search.interval", value_name = "DURATION", global = true)]
    interval: Option<HumanDuration>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "State: which alerts are known")]
struct StateArguments {
    /// The file of the embedded store [env: OPSRAMP_EXPORTER_STATE_PATH] [default:
    /// $STATE_DIRECTORY/state.db, else ./opsramp-exporter.db]
    #[arg(
        long = "state.path",
        value_name = "FILE",
        global = true,
        conflicts_with = "postgres_url_file"
    )]
    state_path: Option<PathBuf>,
    /// A file with the URL of a PostgreSQL server, for several replicas [env:
    /// OPSRAMP_EXPORTER_POSTGRES_URL with the URL itself]
    #[arg(long = "state.postgres-url-file", value_name = "FILE", global = true)]
    postgres_url_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Web")]
struct WebArguments {
    /// Where to listen; may be repeated [default: :10836]
    #[arg(long = "web.listen-address", value_name = "ADDRESS", global = true)]
    listen_addresses: Vec<ListenAddress>,
    /// The path of the metrics [default: /metrics]
    #[arg(long = "web.telemetry-path", value_name = "PATH", global = true)]
    telemetry_path: Option<String>,
    /// TLS and passwords, in the format of the Prometheus exporter-toolkit
    #[arg(long = "web.config.file", value_name = "FILE", global = true)]
    web_config_file: Option<PathBuf>,
    /// Accept POST /-/reload and POST /-/quit
    #[arg(long = "web.enable-lifecycle", global = true)]
    enable_lifecycle: bool,
    /// Take the listening socket from systemd
    #[arg(long = "web.systemd-socket", global = true)]
    systemd_socket: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Diagnostics: on standard error")]
struct LogArguments {
    /// How verbose they are
    #[arg(
        long = "log.level",
        value_name = "LEVEL",
        global = true,
        default_value = "info",
        value_parser = one_of::<logging::Level>(&["debug", "info", "warn", "error"])
    )]
    log_level: logging::Level,
    /// How they look
    #[arg(
        long = "log.format",
        value_name = "FORMAT",
        global = true,
        default_value = "logfmt",
        value_parser = one_of::<logging::Format>(&["logfmt", "json"])
    )]
    log_format: logging::Format,
}

/// Parses one of a few words.
fn one_of<T>(words: &'static [&'static str]) -> impl clap::builder::TypedValueParser<Value = T>
where
    T: FromStr + Clone + Send + Sync + 'static,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|word| word.parse())
}

// === impl Cli ===

impl Cli {
    /// Parses the process's arguments. Help is printed, as is what is wrong.
    ///
    /// # Errors
    /// The status to exit with where there is nothing more to do: 0 after help, 2
    /// after wrong usage.
    pub fn parse() -> Result<Self, ExitCode> {
        Self::try_parse_from(std::env::args_os()).map_err(|error| {
            // Where neither stream can be written to, nobody can be told.
            let _printed = error.print();
            u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
        })
    }

    /// Parses arguments, the program's name first.
    ///
    /// # Errors
    /// Where they are wrong, and where help is asked for.
    pub fn try_parse_from<I>(arguments: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator,
        I::Item: Into<OsString> + Clone,
    {
        let matches = Self::definition().try_get_matches_from(arguments)?;
        let arguments = Arguments::from_arg_matches(&matches)?;
        arguments.into_cli()
    }

    /// The definition of the command line, for manual pages and completions.
    #[must_use]
    pub fn definition() -> clap::Command {
        let mut command = Arguments::command();
        // Flags are valid before and after the command. To show those in a command's help that it
        // has no use for would only hide the others.
        command.build();
        for (name, sections) in [
            ("check", &["Configuration", "OpsRamp", "Search"][..]),
            ("search", &["Configuration", "OpsRamp", "Search"]),
            ("demo", &["Web"]),
            (
                "config",
                &["Configuration", "OpsRamp", "Search", "State", "Web"],
            ),
        ] {
            command = command.mut_subcommand(name, |command| {
                command.mut_args(|argument| {
                    let hidden = hides(&argument, name, sections);
                    if hidden {
                        argument.hide(true)
                    } else {
                        argument
                    }
                })
            });
        }
        command
    }
}

/// Whether a command's help leaves out a flag. Those without a section of their own, and the
/// diagnostics', are shown everywhere.
fn hides(argument: &clap::Arg, command: &str, sections: &[&str]) -> bool {
    let Some(heading) = argument.get_help_heading() else {
        return false;
    };
    let section = heading.split(':').next().unwrap_or(heading);
    let useless = match command {
        "check" => argument.get_id() == "interval" || argument.get_id() == "config_check",
        "search" => argument.get_id() == "interval" || argument.get_id() == "config_check",
        "config" => argument.get_id() == "config_check",
        _ => false,
    };
    useless || !(sections.contains(&section) || section == "Diagnostics")
}

/// What `--version` prints.
#[must_use]
pub fn version() -> String {
    format!(
        "opsramp-exporter, version {} (revision: {}, rustc {})",
        build_info::VERSION,
        build_info::REVISION,
        build_info::RUST_VERSION
    )
}

// === impl Arguments ===

impl Arguments {
    fn into_cli(self) -> Result<Cli, clap::Error> {
        let config_check = self.config.config_check;
        let config_file = self.config.config_file;
        let mut overrides = Overrides {
            url: self.account.url,
            token_url: self.account.token_url,
            tenants: self.account.tenants,
            client_id: self.account.client_id,
            client_secret_file: self.account.client_secret_file,
            insecure_skip_verify: self.account.insecure_skip_verify,
            query: self.search.query,
            interval: self.search.interval,
            state_path: self.state.state_path,
            postgres_url_file: self.state.postgres_url_file,
            web: WebOverrides {
                listen_addresses: self.web.listen_addresses,
                telemetry_path: self.web.telemetry_path,
                config_file: self.web.web_config_file,
                enable_lifecycle: self.web.enable_lifecycle,
                systemd_socket: self.web.systemd_socket,
            },
        };
        let command = match self.command {
            _ if self.version => Command::Version,
            None | Some(CommandArguments::Run) if config_check => Command::CheckConfig,
            None | Some(CommandArguments::Run) => Command::Run,
            Some(_) if config_check => {
                return Err(conflict("--config.check goes with `run` only"));
            }
            Some(CommandArguments::Check) => Command::Check,
            Some(CommandArguments::Search { output, count }) => Command::Search(Search {
                query: overrides.query.take(),
                output,
                count,
            }),
            Some(CommandArguments::Demo { simulator }) => {
                let only_web = Overrides {
                    web: overrides.web.clone(),
                    ..Overrides::default()
                };
                if config_file.is_some() || overrides != only_web {
                    return Err(conflict(
                        "`demo` configures itself; it takes the --web.*, --log.* and --simulator.* flags only",
                    ));
                }
                Command::Demo { simulator }
            }
            Some(CommandArguments::Config { schema }) => Command::Config { schema },
        };
        Ok(Cli {
            command,
            config_file,
            overrides,
            log_level: self.log.log_level,
            log_format: self.log.log_format,
        })
    }
}

fn conflict(message: &str) -> clap::Error {
    Arguments::command().error(ErrorKind::ArgumentConflict, message)
}
