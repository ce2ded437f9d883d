//! The command line: commands and flags, typed.
//!
//! Only this module knows the crate that parses it. What flags mean together with the file and the
//! environment is [`crate::config`]'s to say; variables of the environment are named in the help
//! and read there, so that `--help` cannot show a secret.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, FromArgMatches as _, ValueEnum, error::ErrorKind};

use self::arguments::{Arguments, CommandArguments};
use crate::{
    build_info,
    config::{Overrides, WebOverrides},
    logging,
};

#[expect(
    clippy::doc_markdown,
    reason = "these comments are help texts, which are shown without Markdown"
)]
mod arguments;

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
