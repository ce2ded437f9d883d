//! Commands and flags as the parser sees them. The comments are the help texts, so they are
//! written for a terminal, and name the variables of the environment by hand.

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use clap::{
    Args, Parser, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};

use super::Output;
use crate::{
    config::{HumanDuration, ListenAddress},
    logging,
};

/// Watches OpsRamp: open alerts as Prometheus metrics, and every new alert as one structured log
/// line, in a file exactly once.
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
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Option<CommandArguments>,
    /// Print version, revision and compiler
    #[arg(long, short = 'V', global = true)]
    pub(super) version: bool,
    #[command(flatten)]
    pub(super) config: ConfigArguments,
    #[command(flatten)]
    pub(super) account: AccountArguments,
    #[command(flatten)]
    pub(super) search: SearchArguments,
    #[command(flatten)]
    pub(super) state: StateArguments,
    #[command(flatten)]
    pub(super) web: WebArguments,
    #[command(flatten)]
    pub(super) log: LogArguments,
}

const AFTER_HELP: &str = "\
Flags win over the environment, and the environment over the file. No flag takes a secret: the
command line is public. Use a file or OPSRAMP_CLIENT_SECRET.

Exit status: 0 done, 1 failed at run time, 2 wrong usage or configuration.

Try it:  opsramp-exporter demo";

#[derive(Debug, Subcommand)]
pub(super) enum CommandArguments {
    /// Run the daemon (the default)
    Run,
    /// Go through the set-up step by step; say what works, and what to do about what does not
    Check,
    /// Search once; print every alert found
    Search {
        /// How to print alerts [default: table on a terminal, else jsonl]
        #[arg(long, value_name = "FORMAT", value_enum, conflicts_with = "count")]
        output: Option<Output>,
        /// Print the number of alerts only, of all tenants together, at the cost of one request a
        /// tenant
        #[arg(long)]
        count: bool,
    },
    /// Run the daemon against a built-in OpsRamp simulator; nothing to configure
    Demo {
        /// Where the simulator listens, so that other clients can be pointed at it
        #[arg(
            long = "simulator.listen-address",
            value_name = "ADDRESS",
            value_parser = simulator_address,
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
    /// Ask the running exporter whether it works; status 0 if it does
    Healthcheck {
        /// Its address, such as http://127.0.0.1:10836 [default: as the configuration says]
        // Not the id "url": that is the one of the global flag --opsramp.url, whose value this command
        // would take for its own.
        #[arg(id = "healthcheck_url", long = "url", value_name = "URL")]
        url: Option<String>,
        /// Accept any certificate of that address
        #[arg(long, requires = "healthcheck_url")]
        insecure: bool,
    },
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Configuration")]
pub(super) struct ConfigArguments {
    /// The configuration file [env: OPSRAMP_EXPORTER_CONFIG_FILE]
    #[arg(long = "config.file", value_name = "FILE", global = true)]
    pub(super) config_file: Option<PathBuf>,
    /// Validate the configuration and exit
    #[arg(long = "config.check", global = true)]
    pub(super) config_check: bool,
}

#[derive(Debug, Args)]
#[command(
    next_help_heading = "OpsRamp: one account without a file, or over the file's only account"
)]
pub(super) struct AccountArguments {
    /// The base URL, such as https://acme.api.opsramp.com [env: OPSRAMP_URL]
    #[arg(long = "opsramp.url", value_name = "URL", global = true)]
    pub(super) url: Option<String>,
    /// The token endpoint [env: OPSRAMP_TOKEN_URL] [default: {url}/auth/oauth/token]
    #[arg(long = "opsramp.token-url", value_name = "URL", global = true)]
    pub(super) token_url: Option<String>,
    /// A tenant's id, or several with commas; may be repeated [env: OPSRAMP_TENANT_ID]
    #[arg(
        long = "opsramp.tenant",
        value_name = "ID",
        value_delimiter = ',',
        global = true
    )]
    pub(super) tenants: Vec<String>,
    /// The OAuth2 key [env: OPSRAMP_CLIENT_ID]
    #[arg(long = "opsramp.client-id", value_name = "KEY", global = true)]
    pub(super) client_id: Option<String>,
    /// A file with the OAuth2 secret [env: OPSRAMP_CLIENT_SECRET_FILE, or OPSRAMP_CLIENT_SECRET
    /// with the secret itself]
    #[arg(
        long = "opsramp.client-secret-file",
        value_name = "FILE",
        global = true
    )]
    pub(super) client_secret_file: Option<PathBuf>,
    /// Accept any certificate: whoever sits in between can then read the secret
    #[arg(long = "opsramp.insecure-skip-verify", global = true)]
    pub(super) insecure_skip_verify: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Search: over the file's only search")]
pub(super) struct SearchArguments {
    /// OpsRamp's query string; to `search` also the name of a configured search, without it the
    /// first one [default: actions:OPEN]
    #[arg(long = "search.query", value_name = "QUERY", global = true)]
    pub(super) query: Option<String>,
    /// Time between two polls [default: 30s]
    #[arg(long = "search.interval", value_name = "DURATION", global = true)]
    pub(super) interval: Option<HumanDuration>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "State: which alerts are known")]
pub(super) struct StateArguments {
    /// The file of the embedded store [env: OPSRAMP_EXPORTER_STATE_PATH] [default:
    /// $STATE_DIRECTORY/state.db, else ./opsramp-exporter.db]
    #[arg(
        long = "state.path",
        value_name = "FILE",
        global = true,
        conflicts_with = "postgres_url_file"
    )]
    pub(super) state_path: Option<PathBuf>,
    /// A file with the URL of a PostgreSQL server, for several replicas [env:
    /// OPSRAMP_EXPORTER_POSTGRES_URL with the URL itself]
    #[arg(long = "state.postgres-url-file", value_name = "FILE", global = true)]
    pub(super) postgres_url_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Web")]
pub(super) struct WebArguments {
    /// Where to listen; may be repeated [default: :10836]
    #[arg(long = "web.listen-address", value_name = "ADDRESS", global = true)]
    pub(super) listen_addresses: Vec<ListenAddress>,
    /// The path of the metrics [default: /metrics]
    #[arg(long = "web.telemetry-path", value_name = "PATH", global = true)]
    pub(super) telemetry_path: Option<String>,
    /// TLS and passwords, in the format of the Prometheus exporter-toolkit
    #[arg(long = "web.config.file", value_name = "FILE", global = true)]
    pub(super) web_config_file: Option<PathBuf>,
    /// Accept POST /-/reload and POST /-/quit
    #[arg(long = "web.enable-lifecycle", global = true)]
    pub(super) enable_lifecycle: bool,
    /// Take the listening socket from systemd
    #[arg(long = "web.systemd-socket", global = true)]
    pub(super) systemd_socket: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Diagnostics: on standard error")]
pub(super) struct LogArguments {
    /// How verbose the diagnostics are
    #[arg(
        long = "log.level",
        value_name = "LEVEL",
        global = true,
        default_value = "info",
        value_parser = one_of::<logging::Level>(&["debug", "info", "warn", "error"])
    )]
    pub(super) log_level: logging::Level,
    /// How the diagnostics look
    #[arg(
        long = "log.format",
        value_name = "FORMAT",
        global = true,
        default_value = "logfmt",
        value_parser = one_of::<logging::Format>(&["logfmt", "json"])
    )]
    pub(super) log_format: logging::Format,
}

/// Parses the simulator's address. It must be a literal address, because whoever reaches the
/// simulator can change what it shows.
fn simulator_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "write an IP address and a port, like 127.0.0.1:10837 or [::1]:0".to_owned())
}

/// Parses one of a few words.
fn one_of<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr + Clone + Send + Sync + 'static,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|word| word.parse())
}
