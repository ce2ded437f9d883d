//! From the command line to an exit status: 0 for success, 1 for a failure at run time, 2 for
//! wrong usage or configuration.

use std::{
    io::{self, Write as _},
    net::TcpListener,
    path::PathBuf,
    process::ExitCode,
    slice,
};

use anyhow::Context as _;

use crate::{
    build_info, check,
    cli::{self, Cli, Command},
    clock,
    config::{self, CheckedWebFile, Config, ConfigError, Loaded, SecretFiles, Web, WebFile},
    daemon::{self, CannotGoOn, Daemon, LoadConfig},
    demo::Demo,
    error_chain::chain,
    healthcheck, logging,
    metrics::{BuildInfo, Metrics},
    opsramp::{self, BuildError},
    reading,
    runtime::{block_on, block_on_with_thread, check_threads, claim_descriptors},
    search_command,
    secret::SecretSource,
    signals::Signals,
    status::Board,
    store::postgres::{self, UrlError},
    web,
};

const USAGE: u8 = 2;
const FAILURE: u8 = 1;

/// Why the program ends with another status than 0.
enum Failure {
    /// The configuration is wrong.
    Config(ConfigError),
    /// A file or URL that the configuration names cannot be used.
    Named(String),
    /// Something failed.
    Run(anyhow::Error),
    /// Something failed and has been reported; only the exit status is left to give.
    Told(u8),
}

type Outcome = Result<(), Failure>;

/// Runs the program.
#[must_use]
pub fn run() -> ExitCode {
    let cli = match Cli::parse() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    let status = run_command(&cli);
    logging::flush();
    status
}

fn run_command(cli: &Cli) -> ExitCode {
    match dispatch(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let is_daemon = matches!(cli.command, Command::Run | Command::Demo { .. });
            let has_logging = is_daemon && logging::is_set_up();
            failure.tell(|text| {
                // Readers of a daemon's log expect all lines in one format.
                if has_logging {
                    tracing::error!("{text}");
                } else {
                    logging::print_message(text);
                }
            })
        }
    }
}

fn dispatch(cli: &Cli) -> Outcome {
    check_threads()?;
    claim_descriptors()?;
    match &cli.command {
        Command::Version => print(&format!("{}\n", cli::version())),
        Command::Config { schema: true } => {
            let schema = serde_json::to_string_pretty(&config::json_schema())?;
            print(&format!("{schema}\n"))
        }
        Command::Config { schema: false } => print(&load(cli)?.config.to_yaml()),
        Command::CheckConfig => run_check_config(cli),
        Command::Search(search) => {
            let loaded = load(cli)?;
            warn(&loaded.warnings);
            set_up_logging(cli, None)?;
            let work = search_command::run(&loaded.config, search);
            block_on_with_thread(work)?.map_err(Failure::Run)
        }
        Command::Healthcheck(healthcheck) => {
            let of_flags = Config::web_of_flags(&cli.overrides.web).map_err(Failure::Config)?;
            let of_file = cli.clone();
            let load = move || load_web(&of_file);
            let said = block_on_with_thread(healthcheck::run(of_flags, load, healthcheck))?;
            print(&said.map_err(Failure::Run)?)
        }
        Command::Run => run_daemon(cli),
        Command::Demo { simulator } => run_demo(cli, *simulator),
        Command::Check => run_check(cli),
    }
}

fn run_check_config(cli: &Cli) -> Outcome {
    let mut loaded = load_to_poll(cli).inspect_err(|_| tell_of_web_file(cli))?;
    let web = check_web_file(&loaded.config.web)?;
    let ending = web::certificate_warning(web.certificate_end, clock::now());
    let told = web.warnings.into_iter().chain(ending);
    loaded.warnings.extend(told.chain(web.left));
    loaded.warnings.extend(check_tls_files(&loaded.config)?);
    check_database_url(&loaded.config.state)?;
    let secrets = block_on_with_thread(secret_files(&loaded.config))?;
    loaded.warnings.extend(secrets.warnings);
    loaded.warnings.extend(secrets.unusable);
    if !secrets.problems.is_empty() {
        return Err(Failure::Named(secrets.problems.join("\n")));
    }
    warn(&loaded.warnings);
    let name = loaded.file.map_or("configuration".to_owned(), |file| {
        file.display().to_string()
    });
    print(&format!("{name}: ok\n"))
}

fn run_daemon(cli: &Cli) -> Outcome {
    let (board, metrics) = observability();
    let read_at = clock::now();
    let loaded = load_to_poll(cli)?;
    metrics.config_loaded(read_at);
    set_up_logging(cli, Some(metrics.clone()))?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(
        version = build_info::VERSION,
        revision = build_info::REVISION,
        "starting opsramp-exporter"
    );
    if let Some(overridden) = &loaded.overridden {
        tracing::info!("{overridden}");
    }
    tracing::debug!(config = %loaded.config.to_yaml(), "effective configuration");
    let reload = reloading(cli.clone(), loaded.file.clone());
    block_on(async {
        let signals = Signals::listen()?;
        let listeners = daemon::bind(&loaded.config.web)?;
        let secrets = secret_files(&loaded.config);
        // The start does not wait for this, because a file system may be slow.
        tokio::spawn(async {
            let told = secrets.await;
            for warning in told.problems.into_iter().chain(told.warnings) {
                tracing::warn!("{warning}");
            }
        });
        serve(loaded.config, listeners, board, metrics, signals, reload).await
    })?
}

/// Returns what reads everything again for a reload. `file` is the configuration file.
fn reloading(cli: Cli, file: Option<PathBuf>) -> LoadConfig {
    let load = move |attempt: &daemon::Attempt| -> anyhow::Result<Loaded> {
        if let Some(file) = &file {
            attempt.now_reads(file)?;
        }
        let loaded = Config::load(cli.config_file.as_deref(), &cli.overrides, &environment)?;
        let mut loaded = loaded.to_be_polled()?;
        if let Some(path) = loaded.config.web.config_file.clone() {
            attempt.now_reads(&path)?;
            let (_, warnings) = WebFile::new(path).read_with_warnings()?;
            loaded.warnings.extend(warnings);
        }
        // The URL is read anew for each connection, so without this check a wrong URL would
        // only be noticed when the next connection is made.
        if let Some((url, path)) = database_url_file(&loaded.config.state) {
            attempt.now_reads(path)?;
            postgres::check(url)?;
        }
        Ok(loaded)
    };
    LoadConfig::new(move |attempt| load(attempt).map_err(|error| chain(error.as_ref())))
}

/// Runs the daemon until it is told to stop, or cannot go on.
async fn serve(
    config: Config,
    listeners: Vec<TcpListener>,
    board: Board,
    metrics: Metrics,
    mut signals: Signals,
    load: LoadConfig,
) -> Outcome {
    let started = Daemon::start(config, listeners, board, metrics, &mut signals);
    match started.await? {
        Some(daemon) => {
            let ended = daemon.run(signals, load).await;
            ended.map_err(|CannotGoOn| Failure::Told(FAILURE))
        }
        None => Ok(()),
    }
}

fn run_check(cli: &Cli) -> Outcome {
    let mut out = io::stdout();
    let loaded = load_to_poll(cli).and_then(|mut loaded| {
        // The certificate's end is reported in a step of its own.
        let web = check_web_file(&loaded.config.web)?;
        loaded.warnings.extend(web.warnings);
        loaded.warnings.extend(web.left);
        // A secret that cannot be used fails in the step that needs it.
        let secrets = block_on_with_thread(secret_files(&loaded.config))?;
        loaded.warnings.extend(secrets.warnings);
        Ok(loaded)
    });
    let loaded = match loaded {
        Err(Failure::Config(error)) => {
            check::refuse(error, &mut out)?;
            return Err(Failure::Told(USAGE));
        }
        loaded => loaded?,
    };
    set_up_logging(cli, None)?;
    match block_on_with_thread(check::run(&loaded, &mut out))?? {
        true => Ok(()),
        false => Err(Failure::Told(FAILURE)),
    }
}

fn run_demo(cli: &Cli, simulator: std::net::SocketAddr) -> Outcome {
    let (board, metrics) = observability();
    set_up_logging(cli, Some(metrics.clone()))?;
    block_on(async {
        let signals = Signals::listen()?;
        let demo = Demo::start(simulator, &cli.overrides.web).await?;
        let config = demo.config.clone();
        let listeners = daemon::bind(&config.web)?;
        let scheme = match &config.web.config_file {
            Some(path) => daemon::read_web_file(path).await?.1.scheme(),
            None => "http",
        };
        demo.announce(&listeners, scheme);
        let loaded = Loaded {
            config: config.clone(),
            file: None,
            warnings: Vec::new(),
            overridden: None,
        };
        let reload = LoadConfig::new(move |_| Ok(loaded.clone()));
        metrics.config_loaded(clock::now());
        let outcome = serve(config, listeners, board, metrics, signals, reload).await;
        demo.stop().await;
        outcome
    })?
}

fn observability() -> (Board, Metrics) {
    let board = Board::default();
    let build = BuildInfo {
        version: build_info::VERSION,
        revision: build_info::REVISION,
        rustversion: build_info::RUST_VERSION,
    };
    let metrics = Metrics::new(board.clone(), build);
    (board, metrics)
}

fn set_up_logging(cli: &Cli, metrics: Option<Metrics>) -> Outcome {
    logging::init(cli.log_level, cli.log_format, move |level| {
        if let Some(metrics) = &metrics {
            metrics.log_message(*level);
        }
    })
    .map_err(|error| Failure::Run(error.into()))
}

fn load(cli: &Cli) -> Result<Loaded, Failure> {
    Config::load(cli.config_file.as_deref(), &cli.overrides, &environment).map_err(Failure::Config)
}

/// Loads the configuration of a daemon, in which there must be something to poll.
fn load_to_poll(cli: &Cli) -> Result<Loaded, Failure> {
    load(cli)?.to_be_polled().map_err(Failure::Config)
}

fn load_web(cli: &Cli) -> Result<Web, ConfigError> {
    Config::load_web(cli.config_file.as_deref(), &cli.overrides.web, &environment)
}

/// Checks whether the web configuration file can be used, as far as this process can read it.
fn check_web_file(web: &Web) -> Result<CheckedWebFile, Failure> {
    let Some(path) = &web.config_file else {
        return Ok(CheckedWebFile::default());
    };
    let mut checked = block_on(daemon::check_web_file(path))??;
    for why in &mut checked.left {
        *why = reading::left_to_exporter(why);
    }
    Ok(checked)
}

/// Reports what is wrong with the web configuration file when the rest of the configuration cannot
/// be used either. It is a file of its own, so somebody may be writing only this file now.
fn tell_of_web_file(cli: &Cli) {
    let web = load_web(cli);
    // Errors of the keys that name the file are reported with the rest of the configuration.
    match web.map(|web| check_web_file(&web)) {
        Ok(Ok(checked)) => warn(&checked.left),
        Ok(Err(failure)) => {
            failure.tell(logging::print_message);
        }
        Err(_) => {}
    }
}

/// Checks the URL of the database if it is in a file that this process can read.
fn check_database_url(state: &config::State) -> Outcome {
    if let Some((url, path)) = database_url_file(state) {
        let url = url.clone();
        let checked = block_on(reading::once(move || postgres::check(&url)))?;
        checked.with_context(|| {
            let unread = reading::unread(slice::from_ref(path));
            format!("the URL of the database {unread}")
        })??;
    }
    Ok(())
}

/// Returns the URL of the database and its file. A URL in the configuration itself was checked
/// with it.
fn database_url_file(state: &config::State) -> Option<(&SecretSource, &PathBuf)> {
    match state {
        config::State::Postgres {
            url: url @ SecretSource::File(path),
            ..
        } => Some((url, path)),
        config::State::Postgres { .. } | config::State::File { .. } => None,
    }
}

/// Checks whether the TLS files of every account can be used, as a start and a reload do. Returns
/// a warning for each file that only the exporter's own user can read, or that exists only while
/// the exporter runs.
fn check_tls_files(config: &Config) -> Result<Vec<String>, Failure> {
    let mut warnings = Vec::new();
    for account in &config.accounts {
        let options = &account.options;
        if options.tls.files().next().is_none() {
            continue;
        }
        match block_on(opsramp::check_tls_files(options))? {
            Ok(left) => warnings.extend(
                left.iter()
                    .map(|error| reading::left_to_exporter(&chain(error))),
            ),
            Err(error @ BuildError::Unread { .. }) => return Err(Failure::Run(error.into())),
            Err(error) => return Err(Failure::Named(chain(&error))),
        }
    }
    Ok(warnings)
}

/// Looks at the files of secrets. Files that do not answer in time are left out, because the parts
/// that need them report them, too.
fn secret_files(config: &Config) -> impl Future<Output = SecretFiles> + Send + use<> {
    let look = config.look_at_secret_files();
    async { reading::once(look).await.unwrap_or_default() }
}

fn environment(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name)
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        logging::print_message(&format!("warning: {warning}"));
    }
}

/// Prints the output of a command. A reader that closes the pipe early is no failure.
fn print(text: &str) -> Outcome {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

// === impl Failure ===

impl Failure {
    /// Passes the message to `say`, and returns the exit status.
    fn tell(self, say: impl FnOnce(&str)) -> ExitCode {
        let (text, status) = match self {
            Self::Config(error) => (format!("{:#}", anyhow::Error::new(error)), USAGE),
            Self::Named(text) => (text, USAGE),
            Self::Run(error) => (chain(error.as_ref()), FAILURE),
            Self::Told(status) => return ExitCode::from(status),
        };
        say(&text);
        ExitCode::from(status)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        match error.downcast::<ConfigError>() {
            Ok(error) => Self::Config(error),
            Err(error) if error.is::<UrlError>() => Self::Named(format!("{error:#}")),
            Err(error) => Self::Run(error),
        }
    }
}
