//! Runs the real binary in a temporary folder: starts it, reads its output, asks it over HTTP,
//! sends it signals. No process that was started here outlives its test. No output may hold the
//! secret: every line, file and answer is checked for it.

#![allow(dead_code, reason = "each test crate uses its own part")]

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::Permissions,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use opsramp_exporter::simulator::{
    self, Allowance, Credential, DEMO_KEY, DEMO_TENANT, Simulator, TenantOptions,
};
pub(crate) use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
    time::Instant,
};

/// The time limit of each wait: longer than anything here takes, shorter than anybody's patience.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The secret. It occurs nowhere else, so a search for it finds nothing by chance.
pub(crate) const SECRET: &str = "Xq7-not-to-be-seen-anywhere-K2m";

/// What stays the same over restarts: the folder, the configuration and the secrets.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    folder: Arc<tempfile::TempDir>,
    /// Written to the file before each start, and by [`Place::write`].
    pub(crate) config: Value,
    /// All texts that must not occur in any output.
    pub(crate) secrets: Vec<String>,
}

/// A process that runs the binary.
#[derive(Debug)]
pub(crate) struct Exporter {
    child: Child,
    pid: Pid,
    /// `http://127.0.0.1:…`, or `https://`
    pub(crate) url: String,
    pub(crate) stdout: Stream,
    pub(crate) stderr: Stream,
    /// The tasks that read standard output and standard error; `None` once a task was waited for.
    readers: [Option<JoinHandle<()>>; 2],
    secrets: Vec<String>,
    client: reqwest::Client,
    _folder: Arc<tempfile::TempDir>,
}

/// The lines that a stream has brought so far.
#[derive(Clone, Debug)]
pub(crate) struct Stream(watch::Receiver<Vec<String>>);

/// The outcome of a process that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<String>,
    pub(crate) stderr: Vec<String>,
}

/// A scrape: each sample by its name and labels, as they are written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics(BTreeMap<String, f64>);

/// The members of a JSON object, in their order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Members(pub(crate) Vec<(String, Value)>);

/// The path of the binary under test: the one that was built for the tests, or the one that the
/// variable names.
pub(crate) fn binary() -> PathBuf {
    match std::env::var_os("OPSRAMP_TEST_BIN") {
        Some(path) => std::fs::canonicalize(path).unwrap(),
        None => env!("CARGO_BIN_EXE_opsramp-exporter").into(),
    }
}

/// A command with an environment of its own. It keeps only the search path, and the variable for
/// the coverage data.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().kill_on_drop(true).stdin(Stdio::null());
    for name in ["PATH", "LLVM_PROFILE_FILE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// Starts an OpsRamp with `alerts` open alerts, in which nothing happens by itself, and without an
/// allowance.
pub(crate) async fn opsramp(alerts: usize) -> Simulator {
    opsramp_with(alerts, |_| {}).await
}

/// Like `opsramp`, with options that `change` has changed.
pub(crate) async fn opsramp_with(
    alerts: usize,
    change: impl FnOnce(&mut simulator::Options),
) -> Simulator {
    opsramp_at((Ipv4Addr::LOCALHOST, 0).into(), alerts, change).await
}

/// Like `opsramp_with`, at a certain address.
pub(crate) async fn opsramp_at(
    address: SocketAddr,
    alerts: usize,
    change: impl FnOnce(&mut simulator::Options),
) -> Simulator {
    let mut options = simulator::Options {
        allowance: Allowance::unlimited(),
        credentials: vec![Credential {
            key: DEMO_KEY.to_owned(),
            secret: SECRET.to_owned(),
        }],
        tenants: vec![TenantOptions {
            id: DEMO_TENANT.to_owned(),
            alerts,
            ..TenantOptions::default()
        }],
        ..simulator::Options::default()
    };
    change(&mut options);
    Simulator::start(options, address).await.unwrap()
}

/// Waits until `holds` returns true.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "still not so: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An HTTP client without proxies and redirects.
pub(crate) fn http_client() -> reqwest::Client {
    // Only the first call installs the provider; it is there for the others.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
        .build()
        .unwrap()
}

// === impl Place ===

impl Place {
    /// A place to run the exporter in, against an OpsRamp at `url`: polls ten times a second and
    /// writes every event to standard output. Its timeouts are the usual ones, because a busy
    /// machine may take seconds to answer; a test that waits for a timeout sets a shorter one.
    pub(crate) fn new(url: &str) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let secret = folder.path().join("secret");
        std::fs::write(&secret, SECRET).unwrap();
        // The exporter warns of a secret that everybody can read.
        std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
        let config = json!({
            "accounts": [{
                "url": url,
                "client_id": DEMO_KEY,
                "client_secret_file": folder.path().join("secret"),
                "tenants": [DEMO_TENANT],
                "requests_per_minute": 1_000_000,
            }],
            "searches": [{"name": "open", "interval": "100ms"}],
            "log": {"events": ["opened", "changed", "left"]},
            "state": {"path": folder.path().join("state.db")},
            "web": {"listen_addresses": ["127.0.0.1:0"]},
        });
        Self {
            folder,
            config,
            secrets: vec![SECRET.to_owned()],
        }
    }

    /// Has events written to `alerts.jsonl` in the folder instead of standard output.
    #[must_use]
    pub(crate) fn with_file_sink(mut self) -> Self {
        let path = self.path("alerts.jsonl");
        self.config["log"]["sinks"] = json!([{"name": "file", "type": "file", "path": path}]);
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Creates a file that does not answer, like a file on a server that hangs: a pipe without a
    /// writer.
    pub(crate) fn silent(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let pipe = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &path, pipe, mode, 0).unwrap();
        path
    }

    /// Writes the configuration file at one stroke. JSON is YAML, too.
    pub(crate) fn write(&self) {
        let (new, path) = (self.path("config.yml.new"), self.path("config.yml"));
        std::fs::write(&new, serde_json::to_vec_pretty(&self.config).unwrap()).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    /// The binary, told to use the configuration file.
    pub(crate) fn command(&self) -> Command {
        let mut command = command(binary());
        command.arg("--config.file").arg(self.path("config.yml"));
        self.settle(command)
    }

    /// Has a command run in the folder.
    pub(crate) fn settle(&self, mut command: Command) -> Command {
        command.current_dir(self.folder.path());
        command
    }

    /// Starts the daemon and waits until it listens.
    pub(crate) async fn start(&self) -> Exporter {
        self.write();
        self.start_as(self.command()).await
    }

    /// Starts the daemon with this command, and waits until it listens.
    pub(crate) async fn start_as(&self, command: Command) -> Exporter {
        let mut exporter = self.spawn(command);
        exporter.wait_until_it_listens().await;
        exporter
    }

    /// Starts the daemon with a limit of file descriptors, and waits until it listens.
    pub(crate) async fn start_with_descriptors(&self, descriptors: u32) -> Exporter {
        self.write();
        self.start_as(self.with_descriptors(descriptors)).await
    }

    /// The daemon with a limit of file descriptors.
    pub(crate) fn with_descriptors(&self, descriptors: u32) -> Command {
        self.by_shell(&format!("ulimit -n {descriptors} && exec \"$0\" \"$@\""))
    }

    /// A shell command whose script starts the daemon as `"$0" "$@"`.
    pub(crate) fn by_shell(&self, script: &str) -> Command {
        let mut shell = command("/bin/sh");
        shell
            .arg("-c")
            .arg(script)
            .arg(binary())
            .arg("--config.file")
            .arg(self.path("config.yml"));
        self.settle(shell)
    }

    /// Starts the daemon without waiting until it listens.
    pub(crate) fn spawn(&self, mut command: Command) -> Exporter {
        command.stdout(Stdio::piped());
        self.spawn_with_own_stdout(command)
    }

    /// Like `Place::spawn`, with the standard output that the command has already.
    pub(crate) fn spawn_with_own_stdout(&self, mut command: Command) -> Exporter {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let pid = child.id().unwrap().cast_signed();
        let (stdout, stdout_reader) = match child.stdout.take() {
            Some(stdout) => Stream::read(stdout),
            None => Stream::read(tokio::io::empty()),
        };
        let (stderr, stderr_reader) = Stream::read(child.stderr.take().unwrap());
        Exporter {
            child,
            pid: Pid::from_raw(pid).unwrap(),
            url: String::new(),
            stdout,
            stderr,
            readers: [Some(stdout_reader), Some(stderr_reader)],
            secrets: self.secrets.clone(),
            client: http_client(),
            _folder: Arc::clone(&self.folder),
        }
    }

    /// Runs the binary until it ends by itself.
    pub(crate) async fn run(&self, command: Command) -> Ended {
        self.spawn(command).end().await
    }

    /// Returns the text of a file in the folder; empty if there is no such file. A file that is
    /// being written may end anywhere.
    pub(crate) fn text_of(&self, name: &str) -> String {
        let mut bytes = match std::fs::read(self.path(name)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => panic!("{error}"),
        };
        if let Err(error) = std::str::from_utf8(&bytes)
            && error.error_len().is_none()
        {
            bytes.truncate(error.valid_up_to());
        }
        let text = String::from_utf8(bytes).unwrap();
        no_secret("the file", &text, &self.secrets);
        text
    }

    /// Returns the lines of such a file. A last line without an end is left out: it is still being
    /// written, or its writer is dead.
    pub(crate) fn lines_of(&self, name: &str) -> Vec<String> {
        let text = self.text_of(name);
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(str::to_owned).collect()
    }
}

// === impl Exporter ===

impl Exporter {
    pub(crate) fn signal(&self, signal: Signal) {
        // The child has not been waited for, so no other process can have its number.
        kill_process(self.pid, signal).unwrap();
    }

    /// Has the exporter load its configuration again, as the place has it now. The reload must
    /// succeed.
    pub(crate) async fn reload(&self, place: &Place) {
        const RELOADED: &str = "the configuration was loaded again";
        let count = |lines: &[String]| lines.iter().filter(|line| line.contains(RELOADED)).count();
        let before = count(&self.stderr.lines());
        place.write();
        self.signal(Signal::HUP);
        self.stderr
            .wait_for("the reload", |lines| count(lines) > before)
            .await;
    }

    /// Waits for the line that says where the exporter listens.
    pub(crate) async fn wait_until_it_listens(&mut self) {
        const LISTENING: &str = "listening on http";
        let line = tokio::select! {
            line = self.stderr.line(|line| line.contains(LISTENING)) => line,
            status = self.child.wait() => {
                let status = status.unwrap();
                for reader in self.readers.iter_mut().filter_map(Option::take) {
                    reader.await.unwrap();
                }
                panic!("ended with {status}: {:#?}", self.stderr.lines());
            }
        };
        let (_, address) = line.split_once(LISTENING).unwrap();
        // The address includes the rest of its scheme.
        let address = address.split('"').next().unwrap();
        self.url = format!("http{address}");
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until the exporter has ended.
    pub(crate) async fn end(mut self) -> Ended {
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = status
            .unwrap_or_else(|_| panic!("does not end: {:#?}", self.stderr.lines()))
            .unwrap();
        for reader in self.readers.iter_mut().filter_map(Option::take) {
            reader.await.unwrap();
        }
        let (stdout, stderr) = (self.stdout.lines(), self.stderr.lines());
        for line in stdout.iter().chain(&stderr) {
            no_secret("output", line, &self.secrets);
        }
        Ended {
            status,
            stdout,
            stderr,
        }
    }

    /// Stops the exporter with TERM.
    pub(crate) async fn stop(self) -> Ended {
        self.signal(Signal::TERM);
        let ended = self.end().await;
        assert_eq!(ended.status.code(), Some(0), "{:#?}", ended.stderr);
        ended
    }

    /// Kills the exporter, and waits until it has ended.
    pub(crate) async fn kill(self) -> Ended {
        self.signal(Signal::KILL);
        self.end().await
    }

    /// Closes the reading end of the exporter's standard output.
    pub(crate) async fn close_stdout(&mut self) {
        close(&mut self.readers[0]).await;
    }

    /// Closes the reading end of the exporter's standard error.
    pub(crate) async fn close_stderr(&mut self) {
        close(&mut self.readers[1]).await;
    }

    /// Returns the status and the text of an answer.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        self.answer(self.client.get(format!("{}{path}", self.url)))
            .await
    }

    pub(crate) async fn post(&self, path: &str) -> (u16, String) {
        self.answer(self.client.post(format!("{}{path}", self.url)))
            .await
    }

    async fn answer(&self, request: reqwest::RequestBuilder) -> (u16, String) {
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let text = String::from_utf8(response.bytes().await.unwrap().to_vec()).unwrap();
        no_secret("an answer", &text, &self.secrets);
        (status, text)
    }

    pub(crate) async fn metrics(&self) -> Metrics {
        let (status, text) = self.get("/metrics").await;
        assert_eq!(status, 200);
        Metrics::parse(&text)
    }

    /// Waits until there are exactly so many lines on standard output, and returns them.
    pub(crate) async fn logs(&self, count: usize, what: &str) -> Vec<String> {
        let enough = |lines: &[String]| lines.len() == count;
        self.stdout.wait_for(what, enough).await
    }

    /// Waits until `holds` accepts the metrics.
    pub(crate) async fn wait_for(&self, what: &str, holds: impl Fn(&Metrics) -> bool) -> Metrics {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let metrics = self.metrics().await;
            if holds(&metrics) {
                return metrics;
            }
            assert!(
                Instant::now() < deadline,
                "still not so: {what}; it said {:#?}",
                self.stderr.lines()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a search knows its whole result.
    pub(crate) async fn wait_until_complete(&self) {
        self.wait_for("the result is known whole", |metrics| {
            metrics.sum("opsramp_search_complete{") == 1.0
        })
        .await;
    }

    /// Waits until a poll that begins after this call has ended.
    pub(crate) async fn wait_for_poll(&self) {
        let polls = |metrics: &Metrics| metrics.sum("opsramp_polls_total{");
        // An exposition that took long to make is shown for up to a second. The next one that
        // differs was made after this call.
        let shown = polls(&self.metrics().await);
        let now = self.wait_for("a poll begins", |metrics| polls(metrics) > shown);
        let before = polls(&now.await);
        self.wait_for("two more polls begin", |metrics| {
            polls(metrics) >= before + 2.0
        })
        .await;
    }

    /// The process's number.
    pub(crate) fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().cast_unsigned()
    }
}

// === impl Stream ===

impl Stream {
    fn read(stream: impl AsyncRead + Unpin + Send + 'static) -> (Self, JoinHandle<()>) {
        let (sender, receiver) = watch::channel(Vec::new());
        let reader = tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).await.unwrap() > 0 {
                let whole = line.strip_suffix(b"\n").unwrap_or(&line);
                let text = String::from_utf8(whole.to_vec()).unwrap();
                sender.send_modify(|lines| lines.push(text));
                line.clear();
            }
        });
        (Self(receiver), reader)
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.borrow().clone()
    }

    /// Waits for a line that `is_it` accepts.
    pub(crate) async fn line(&self, is_it: impl Fn(&str) -> bool) -> String {
        let mut lines = self.0.clone();
        let found = lines.wait_for(|lines| lines.iter().any(|line| is_it(line)));
        let found = match tokio::time::timeout(PATIENCE, found).await {
            Ok(Ok(found)) => found.iter().find(|line| is_it(line)).cloned(),
            // The stream has ended. Callers that wait for the exit as well learn it from there.
            Ok(Err(_)) => None,
            Err(_) => panic!("no such line: {:#?}", self.lines()),
        };
        match found {
            Some(line) => line,
            None => std::future::pending().await,
        }
    }

    /// Waits until `enough` accepts the lines.
    pub(crate) async fn wait_for(
        &self,
        what: &str,
        enough: impl Fn(&[String]) -> bool,
    ) -> Vec<String> {
        let mut lines = self.0.clone();
        let waited = tokio::time::timeout(PATIENCE, lines.wait_for(|lines| enough(lines))).await;
        match waited {
            Ok(Ok(lines)) => lines.clone(),
            Ok(Err(_)) => panic!("the stream has ended before {what}: {:#?}", self.lines()),
            Err(_) => panic!("still not so: {what}: {:#?}", self.lines()),
        }
    }
}

// === impl Ended ===

impl Ended {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Everything on standard error.
    pub(crate) fn error(&self) -> String {
        self.stderr.join("\n")
    }
}

// === impl Metrics ===

impl Metrics {
    fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        Self(
            samples
                .map(|line| {
                    let (name, value) = line.rsplit_once(' ').unwrap();
                    (name.to_owned(), value.parse().unwrap())
                })
                .collect(),
        )
    }

    /// The sum of the samples whose line begins with `prefix`.
    pub(crate) fn sum(&self, prefix: &str) -> f64 {
        self.with(prefix).map(|(_, value)| value).sum()
    }

    /// The samples whose line begins with `prefix`.
    pub(crate) fn with(&self, prefix: &str) -> impl Iterator<Item = (&str, f64)> {
        self.0
            .iter()
            .filter(move |(name, _)| name.starts_with(prefix))
            .map(|(name, value)| (name.as_str(), *value))
    }

    /// The value of the one sample whose line begins with `prefix`.
    pub(crate) fn one(&self, prefix: &str) -> Option<f64> {
        let found: Vec<f64> = self.with(prefix).map(|(_, value)| value).collect();
        assert!(found.len() <= 1, "{prefix}: {found:?}");
        found.first().copied()
    }

    /// Number of samples whose names or labels contain `text`.
    pub(crate) fn mentions(&self, text: &str) -> usize {
        self.0.keys().filter(|name| name.contains(text)).count()
    }
}

// === impl Members ===

impl Members {
    pub(crate) fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(key, _)| key.as_str()).collect()
    }

    pub(crate) fn parse(line: &str) -> Self {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// The text under a key; empty if there is none.
    pub(crate) fn text(&self, key: &str) -> &str {
        self.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        let found = self.0.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value)
    }
}

impl<'de> serde::Deserialize<'de> for Members {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Members;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        from.deserialize_map(Visitor)
    }
}

async fn close(reader: &mut Option<JoinHandle<()>>) {
    let reader = reader.take().unwrap();
    reader.abort();
    reader.await.ok();
}

/// The number in an environment variable, for tests that can run longer or be repeated.
pub(crate) fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap())
}

/// The seed of random choices. The variable repeats the choices of a run.
pub(crate) fn seed() -> u64 {
    number("OPSRAMP_TEST_SEED").unwrap_or_else(|| fastrand::u64(..))
}

/// Fails if a text holds a secret.
pub(crate) fn no_secret(what: &str, text: &str, secrets: &[String]) {
    for secret in secrets {
        assert!(!text.contains(secret), "{what} shows a secret: {text}");
    }
}

/// Fails if a program that the test needs is not on the search path, and names the package that
/// has it.
pub(crate) fn needed(program: &str, package: &str) {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).is_file())
    });
    assert!(
        found,
        "this test needs {program}; install the package {package}"
    );
}
