//! The command line: commands and flags, typed.
//!
//! Only this module knows the crate that parses the command line. [`crate::config`] says what
//! flags mean together with the file and the environment. The help names environment variables,
//! but [`crate::config`] reads them, so that `--help` cannot show a secret.

use std::{ffi::OsString, io, net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, FromArgMatches as _, ValueEnum, error::ErrorKind};

use self::arguments::{Arguments, CommandArguments};
use crate::{
    build_info,
    config::{Overrides, WebOverrides, problem_of_query},
    healthcheck, logging,
};

#[expect(
    clippy::doc_markdown,
    reason = "these comments are help texts, which are shown without Markdown"
)]
mod arguments;
#[cfg(test)]
pub(crate) mod shipped;

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
    /// The format of the diagnostics.
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
    /// Ask the running exporter whether it works.
    Healthcheck(Healthcheck),
    /// Print [`version`].
    Version,
}

/// How to ask a running exporter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Healthcheck {
    /// The URL to ask; if none is given, the configuration says it.
    pub url: Option<reqwest::Url>,
    /// Whether any certificate is accepted.
    pub insecure: bool,
}

/// A search from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// The query, or the name of a configured search; `None`: the first configured search.
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
    /// Parses the process's arguments. Prints help, or what is wrong.
    ///
    /// # Errors
    /// The status to exit with if there is nothing more to do: 0 after help, 1 if the help cannot
    /// be written, 2 after wrong usage.
    pub fn parse() -> Result<Self, ExitCode> {
        Self::try_parse_from(std::env::args_os()).map_err(|answer| match answer.print() {
            // A reader that closed the pipe early is no failure. If the message about wrong usage
            // cannot be written, nobody can be told.
            Err(error) if !answer.use_stderr() && error.kind() != io::ErrorKind::BrokenPipe => {
                logging::print_message(&error.to_string());
                ExitCode::FAILURE
            }
            _ => u8::try_from(answer.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from),
        })
    }

    /// Parses arguments, the program's name first.
    ///
    /// # Errors
    /// If the arguments are wrong, or ask for help.
    pub fn try_parse_from<I>(arguments: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator,
        I::Item: Into<OsString> + Clone,
    {
        let matches = Self::definition().try_get_matches_from(arguments)?;
        let arguments = Arguments::from_arg_matches(&matches)?;
        arguments.into_cli()
    }

    /// Returns the definition of the command line, from which parsing, help, manual page and
    /// completions are made.
    #[must_use]
    pub fn definition() -> clap::Command {
        let mut command = Arguments::command();
        // Every flag is accepted before and after every command. A command's help shows only those
        // that the command uses.
        command.build();
        for (name, sections) in [
            ("check", &["Configuration", "OpsRamp", "Search"][..]),
            ("search", &["Configuration", "OpsRamp", "Search"]),
            ("demo", &["Web"]),
            ("healthcheck", &["Configuration", "Web"]),
            (
                "config",
                &["Configuration", "OpsRamp", "Search", "State", "Web"],
            ),
        ] {
            command = command.mut_subcommand(name, |command| {
                command.mut_args(|argument| {
                    let hidden = hides(&argument, name, sections);
                    argument.hide(hidden)
                })
            });
        }
        command
    }
}

/// Whether a command's help leaves out a flag. Flags without a section of their own, and those of
/// the diagnostics, are shown everywhere.
fn hides(argument: &clap::Arg, command: &str, sections: &[&str]) -> bool {
    let Some(heading) = argument.get_help_heading() else {
        return false;
    };
    let section = heading.split(':').next().unwrap_or(heading);
    let is_of_no_use = match argument.get_id().as_str() {
        "config_check" => true,
        "telemetry_path" | "enable_lifecycle" => command == "healthcheck",
        "interval" => command != "config",
        _ => false,
    };
    is_of_no_use || !(sections.contains(&section) || section == "Diagnostics")
}

/// Returns what `--version` prints.
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
            Some(CommandArguments::Search { output, count }) => {
                let query = overrides.query.take();
                if let Some(problem) = query.as_deref().and_then(problem_of_query) {
                    let told = format!("--search.query: {problem}");
                    return Err(Self::command().error(ErrorKind::ValueValidation, told));
                }
                Command::Search(Search {
                    query,
                    output,
                    count,
                })
            }
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
            Some(CommandArguments::Healthcheck { url, insecure }) => {
                // A parser of clap would repeat the value, which may hold a password.
                let url = url.map(|url| healthcheck::named(&url)).transpose();
                let url =
                    url.map_err(|error| Self::command().error(ErrorKind::ValueValidation, error))?;
                Command::Healthcheck(Healthcheck { url, insecure })
            }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use insta::assert_snapshot;
    use proptest::prelude::*;

    use super::*;

    fn parse(arguments: &str) -> Cli {
        try_parse(arguments).unwrap_or_else(|error| panic!("{arguments}: {error}"))
    }

    fn try_parse(arguments: &str) -> Result<Cli, clap::Error> {
        let program = std::iter::once("opsramp-exporter");
        Cli::try_parse_from(program.chain(arguments.split_whitespace()))
    }

    fn help(command: &str) -> String {
        let mut definition = Cli::definition().term_width(100);
        definition.build();
        let error = definition
            .try_get_matches_from(["opsramp-exporter", command, "-h"])
            .unwrap_err();
        error.to_string()
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::definition().debug_assert();
    }

    #[test]
    fn every_command_is_understood() {
        let search = |query: Option<&str>, output, count| {
            Command::Search(Search {
                query: query.map(str::to_owned),
                output,
                count,
            })
        };
        let demo = |address: &str| Command::Demo {
            simulator: address.parse().unwrap(),
        };
        for (arguments, command) in [
            ("", Command::Run),
            ("run", Command::Run),
            ("--config.check", Command::CheckConfig),
            ("run --config.check", Command::CheckConfig),
            ("check", Command::Check),
            ("search", search(None, None, false)),
            ("search --count", search(None, None, true)),
            (
                "search --search.query a:b --output jsonl",
                search(Some("a:b"), Some(Output::Jsonl), false),
            ),
            ("demo", demo("127.0.0.1:10837")),
            ("demo --simulator.listen-address [::1]:0", demo("[::1]:0")),
            ("config", Command::Config { schema: false }),
            ("config --schema", Command::Config { schema: true }),
            (
                "healthcheck --url https://a --insecure",
                Command::Healthcheck(Healthcheck {
                    url: Some("https://a/-/healthy".parse().unwrap()),
                    insecure: true,
                }),
            ),
            ("--version", Command::Version),
            ("demo -V", Command::Version),
        ] {
            assert_eq!(parse(arguments).command, command, "{arguments}");
        }
    }

    #[test]
    fn every_flag_is_taken_before_and_after_the_command() {
        let flags = "--config.file a.yml --web.listen-address :1 --web.listen-address [::1]:2 \
            --web.telemetry-path /m --web.config.file web.yml --web.enable-lifecycle \
            --web.systemd-socket --log.level debug --log.format json --opsramp.url https://a \
            --opsramp.token-url https://b --opsramp.tenant c --opsramp.tenant d,e \
            --opsramp.client-id KEY --opsramp.client-secret-file s --opsramp.insecure-skip-verify \
            --search.query q --search.interval 5s --state.path db";
        let expected = Cli {
            command: Command::Run,
            config_file: Some("a.yml".into()),
            overrides: Overrides {
                url: Some("https://a".into()),
                token_url: Some("https://b".into()),
                tenants: vec!["c".into(), "d".into(), "e".into()],
                client_id: Some("KEY".into()),
                client_secret_file: Some("s".into()),
                insecure_skip_verify: true,
                query: Some("q".into()),
                interval: Some(crate::config::HumanDuration(Duration::from_secs(5))),
                state_path: Some("db".into()),
                postgres_url_file: None,
                web: WebOverrides {
                    listen_addresses: vec![":1".parse().unwrap(), "[::1]:2".parse().unwrap()],
                    telemetry_path: Some("/m".into()),
                    config_file: Some("web.yml".into()),
                    enable_lifecycle: true,
                    systemd_socket: true,
                },
            },
            log_level: logging::Level::Debug,
            log_format: logging::Format::Json,
        };
        assert_eq!(parse(flags), expected);
        assert_eq!(parse(&format!("{flags} run")), expected);
        assert_eq!(parse(&format!("run {flags}")), expected);
        let postgres = parse("--state.postgres-url-file p").overrides;
        assert_eq!(postgres.postgres_url_file, Some("p".into()));
    }

    #[test]
    fn every_flag_for_all_commands_is_the_same_before_and_after_each() {
        let mut definition = Cli::definition();
        definition.build();
        let globals: Vec<clap::Arg> = definition
            .get_arguments()
            .filter(|argument| argument.is_global_set())
            .cloned()
            .collect();
        assert!(globals.len() > 15);
        for command in definition.get_subcommands() {
            let name = command.get_name();
            let mut ids: Vec<&str> = command
                .get_arguments()
                .map(|it| it.get_id().as_str())
                .collect();
            ids.sort_unstable();
            let all = ids.len();
            ids.dedup();
            assert_eq!(ids.len(), all, "{name} has two flags with one id: {ids:?}");
            for global in &globals {
                let long = global.get_long().unwrap();
                let flag = if global.get_action().takes_values() {
                    let value = match long {
                        "search.interval" => "5s",
                        "web.listen-address" => "127.0.0.1:1",
                        "log.level" => "debug",
                        "log.format" => "json",
                        _ => "http://127.0.0.1:1",
                    };
                    format!("--{long}={value}")
                } else {
                    format!("--{long}")
                };
                let matched = command
                    .get_arguments()
                    .find(|it| it.get_long() == Some(long));
                assert!(matched.is_some(), "{name} does not know --{long}");
                let [before, after] =
                    [format!("{flag} {name}"), format!("{name} {flag}")].map(|arguments| {
                        // `demo` refuses some flags, and --config.check goes with `run` alone.
                        // Both positions must be refused.
                        try_parse(&arguments).map_err(|error| {
                            assert_eq!(error.kind(), ErrorKind::ArgumentConflict, "{arguments}");
                            error.to_string()
                        })
                    });
                assert_eq!(before.is_ok(), after.is_ok(), "{name} {flag}");
                if let (Ok(before), Ok(after)) = (before, after) {
                    assert_eq!(before, after, "{name} {flag}");
                    if let Command::Healthcheck(asked) = before.command {
                        assert_eq!(asked.url, None, "{flag}");
                    }
                }
            }
        }
    }

    #[test]
    fn wrong_usage_is_explained_and_ends_with_status_2() {
        let told: Vec<String> = [
            "--search.interval 5",
            "--search.interval 5M",
            "--search.intervall 5s",
            "--web.listen-address 10836",
            "--log.level loud",
            "--state.path a --state.postgres-url-file b",
            "--opsramp.client-secret hunter2",
            "search --count --output json",
            "check --config.check",
            "healthcheck --insecure",
            "healthcheck --url=",
            "healthcheck --url user:hunter2@host",
            "--config.file a.yml demo",
            "demo --search.query x",
            "serch",
        ]
        .iter()
        .map(|arguments| {
            let error = try_parse(arguments).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{arguments}");
            let text = error.to_string();
            text.split("\n\n").next().unwrap_or_default().to_owned()
        })
        .collect();
        assert_snapshot!(told.join("\n"), @r#"
        error: invalid value '5' for '--search.interval <DURATION>': "5" has no unit; write "5s"
        error: invalid value '5M' for '--search.interval <DURATION>': "5M" is in months or years; write minutes as 5m, and long times in days, as 30d
        error: unexpected argument '--search.intervall' found
        error: invalid value '10836' for '--web.listen-address <ADDRESS>': "10836" is not an address; write one like :10836, 127.0.0.1:10836 or [::1]:10836
        error: invalid value 'loud' for '--log.level <LEVEL>'
          [possible values: debug, info, warn, error]
        error: the argument '--state.path <FILE>' cannot be used with '--state.postgres-url-file <FILE>'
        error: unexpected argument '--opsramp.client-secret' found
        error: the argument '--count' cannot be used with '--output <FORMAT>'
        error: --config.check goes with `run` only
        error: the following required arguments were not provided:
          --url <URL>
        error: --url: is not a URL; write one like http://127.0.0.1:10836
        error: --url: is not a URL; write one like http://127.0.0.1:10836
        error: `demo` configures itself; it takes the --web.*, --log.* and --simulator.* flags only
        error: `demo` configures itself; it takes the --web.*, --log.* and --simulator.* flags only
        error: unrecognized subcommand 'serch'
        "#);
    }

    #[test]
    fn search_takes_no_query_that_a_configuration_would_not() {
        for (query, told) in [
            (
                "",
                "--search.query: is empty; write actions:OPEN or another",
            ),
            (
                " ",
                "--search.query: is empty; write actions:OPEN or another",
            ),
            ("a:b\nc:d", "--search.query: must be one line of text"),
        ] {
            let arguments = ["opsramp-exporter", "search", "--search.query", query];
            let error = Cli::try_parse_from(arguments).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{query:?}");
            let error = error.to_string();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn a_secret_that_is_given_in_spite_of_all_is_not_repeated() {
        for arguments in [
            "--opsramp.client-secret hunter2",
            "--opsramp.client-secret=hunter2",
            "run --opsramp.client-secret=hunter2",
        ] {
            let error = try_parse(arguments).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
            assert!(error.contains("--opsramp.client-secret-file"), "{error}");
        }
    }

    #[test]
    fn help_shows_what_a_command_has_a_use_for_and_ends_with_status_0() {
        let error = try_parse("--help").unwrap_err();
        assert_eq!(error.exit_code(), 0);
        assert_snapshot!(help("demo"), @r#"
        Run the daemon against a built-in OpsRamp simulator; nothing to configure

        Usage: opsramp-exporter demo [OPTIONS]

        Options:
              --simulator.listen-address <ADDRESS>
                  Where the simulator listens, so that other clients can be pointed at it [default:
                  127.0.0.1:10837]
          -V, --version
                  Print version, revision and compiler
          -h, --help
                  Print help

        Web:
              --web.listen-address <ADDRESS>  Where to listen; may be repeated [default: :10836]
              --web.telemetry-path <PATH>     The path of the metrics [default: /metrics]
              --web.config.file <FILE>        TLS and passwords, in the format of the Prometheus
                                              exporter-toolkit
              --web.enable-lifecycle          Accept POST /-/reload and POST /-/quit
              --web.systemd-socket            Take the listening socket from systemd

        Diagnostics: on standard error:
              --log.level <LEVEL>    How verbose the diagnostics are [default: info] [possible values:
                                     debug, info, warn, error]
              --log.format <FORMAT>  How the diagnostics look [default: logfmt] [possible values: logfmt,
                                     json]
        "#);
        for (command, shown, hidden) in [
            ("run", "--state.path", "--simulator.listen-address"),
            ("check", "--opsramp.url", "--web.listen-address"),
            ("search", "--search.query", "--search.interval"),
            ("config", "--state.path", "--config.check"),
            (
                "healthcheck",
                "--web.listen-address",
                "--web.telemetry-path",
            ),
        ] {
            let help = help(command);
            assert!(help.contains(shown), "{help}");
            assert!(!help.contains(hidden), "{help}");
        }
    }

    #[test]
    fn no_flag_takes_a_secret_or_reads_the_environment() {
        let definition = Cli::definition();
        let commands = std::iter::once(&definition).chain(definition.get_subcommands());
        for argument in commands.flat_map(clap::Command::get_arguments) {
            let id = argument.get_id();
            assert!(!id.as_str().ends_with("client_secret"), "{id}");
            assert!(argument.get_env().is_none(), "{id}");
            assert!(argument.get_help().is_some(), "{id} has no help");
        }
    }

    #[test]
    fn the_version_names_revision_and_compiler() {
        let version = version();
        assert!(
            version.starts_with("opsramp-exporter, version 0.1.0 (revision: "),
            "{version}"
        );
        assert!(version.contains(", rustc 1."), "{version}");
    }

    proptest! {
        #[test]
        fn any_arguments_are_understood_or_refused(arguments in prop::collection::vec("\\PC{0,12}|--[a-z.-]{0,20}(=.{0,5})?", 0..5)) {
            let program = std::iter::once("opsramp-exporter".to_owned());
            if let Err(error) = Cli::try_parse_from(program.chain(arguments)) {
                prop_assert!([0, 2].contains(&error.exit_code()));
            }
        }
    }
}
