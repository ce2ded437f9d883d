//! A PostgreSQL server for tests: in a temporary folder, on a free port of the loopback, as a user
//! without rights if the tests run as root. The server ends with the process that started it,
//! however that process ends.

#![allow(dead_code, reason = "each test crate uses its own part")]

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    io::Write as _,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock},
    time::Duration,
};

use tokio::{net::TcpSocket, time::Instant};

use super::ports::keep_a_port;

/// The user that owns the databases.
const USER: &str = "exporter";

/// The user's password, which must not occur in any output.
pub(crate) const PASSWORD: &str = "pw-9Jd-not-to-be-seen-4Qe";

/// The time limit for a start, which takes a second or two on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Number of schemas that are made at once, because each run of `psql` takes a while.
const AT_ONCE: usize = 50;

/// Runs the server until the other end of standard input is closed. The word `keep` there keeps
/// the data.
const WATCH: &str = r#"
    postgres=$1 folder=$2; shift 2
    "$postgres" "$@" >>"$folder/log" 2>&1 &
    read -r word
    kill -QUIT $! && wait $!
    [ "$word" = keep ] || rm -rf "$folder"
"#;

/// A server.
#[derive(Debug)]
pub(crate) struct Cluster {
    folder: PathBuf,
    port: u16,
    /// Keeps the port from being given to others, also while the server does not run. Nobody listens
    /// on this socket, so connections are refused then.
    kept: Option<TcpSocket>,
    settings: Vec<&'static str>,
    watcher: Option<Child>,
    /// Names of empty schemas, and the number of schemas made so far.
    schemas: Mutex<(Vec<String>, usize)>,
}

/// The server that all tests of this process share. Each test has tables of its own.
pub(crate) fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| Cluster::start(&["fsync=off"]))
}

impl Cluster {
    /// Starts a server with some settings, and waits until it answers.
    pub(crate) fn start(settings: &[&'static str]) -> Self {
        Self::start_with(settings, |_| {})
    }

    /// Like `Cluster::start`; `prepare` may put something into the data folder before the start.
    pub(crate) fn start_with(settings: &[&'static str], prepare: impl FnOnce(&Path)) -> Self {
        let mut cluster = Self::new(settings);
        let password = cluster.folder.join("password");
        fs::write(&password, PASSWORD).unwrap();
        let made = cluster
            .program("initdb")
            .arg("--pgdata")
            .arg(cluster.folder.join("data"))
            .args(["--no-sync", "--auth=scram-sha-256", "--encoding=UTF8"])
            .args(["--locale=C", "--username", USER, "--pwfile"])
            .arg(&password)
            .output()
            .unwrap();
        assert!(made.status.success(), "initdb: {made:?}");
        let data = cluster.folder.join("data");
        let found = names_in(&data);
        prepare(&data);
        if let Some((user, group)) = nobody() {
            for new in names_in(&data).difference(&found) {
                chown(data.join(new), Some(user), Some(group)).unwrap();
            }
        }
        cluster.find_a_port();
        cluster
    }

    /// Starts a standby that follows this server until it is [promoted](Self::promote).
    pub(crate) fn standby(&self) -> Self {
        let mut standby = Self::new(&self.settings);
        let copied = standby
            .program("pg_basebackup")
            .args(["--checkpoint=fast", "--no-sync", "--write-recovery-conf"])
            .arg("--pgdata")
            .arg(standby.folder.join("data"))
            .arg("--dbname")
            .arg(self.url())
            .output()
            .unwrap();
        assert!(copied.status.success(), "pg_basebackup: {copied:?}");
        standby.find_a_port();
        standby
    }

    /// Waits until the standby has replayed all that was written.
    pub(crate) fn wait_for_standby(&self) {
        let started = Instant::now();
        let behind = "SELECT count(*) FROM pg_stat_replication \
            WHERE replay_lsn = pg_current_wal_flush_lsn()";
        while self.sql(behind) != "1" {
            assert!(started.elapsed() < PATIENCE, "the standby lags behind");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Has this standby take over.
    pub(crate) fn promote(&self) {
        assert_eq!(self.sql("SELECT pg_promote()"), "t");
    }

    /// A server that does not run yet, in a folder of its own.
    fn new(settings: &[&'static str]) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("opsramp-postgres-")
            .tempdir()
            .unwrap()
            .keep();
        if let Some((user, group)) = nobody() {
            chown(&folder, Some(user), Some(group)).unwrap();
        }
        Self {
            folder,
            port: 0,
            kept: None,
            settings: settings.to_vec(),
            watcher: None,
            schemas: Mutex::default(),
        }
    }

    /// Chooses a free port and starts the server for the first time.
    fn find_a_port(&mut self) {
        // Another process may take the port before the server does.
        for _ in 0..5 {
            let (address, kept) = keep_a_port();
            (self.port, self.kept) = (address.port(), Some(kept));
            if self.go_on() {
                return;
            }
        }
        panic!("the server does not start:\n{}", self.log());
    }

    /// Starts the server again after [`Self::stop`]. Returns whether it answers.
    pub(crate) fn go_on(&mut self) -> bool {
        let mut server = self.as_nobody(Command::new("sh"));
        server
            .args(["-c", WATCH, "sh"])
            .arg(programs().join("postgres"))
            .arg(&self.folder)
            .arg("-D")
            .arg(self.folder.join("data"))
            .args(["-p", &self.port.to_string()])
            .args(["-c", "listen_addresses=127.0.0.1"])
            .args(["-c", "unix_socket_directories="])
            .args(["-c", "max_connections=300"]);
        for setting in &self.settings {
            server.args(["-c", setting]);
        }
        let pid_file = self.folder.join("data/postmaster.pid");
        self.watcher = Some(server.stdin(Stdio::piped()).spawn().unwrap());
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            // The server writes its state to this file, and removes the file when it ends.
            let state = fs::read_to_string(&pid_file).unwrap_or_default();
            if ["ready", "standby"]
                .iter()
                .any(|it| state.trim_end().ends_with(it))
            {
                return true;
            }
            if self.log().contains("could not create any TCP/IP sockets") {
                self.stop();
                fs::remove_file(self.folder.join("log")).unwrap();
                return false;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// Ends the server at once, like a power cut. The data stay.
    pub(crate) fn stop(&mut self) {
        if let Some(mut watcher) = self.watcher.take() {
            let mut input = watcher.stdin.take().unwrap();
            input.write_all(b"keep\n").unwrap();
            watcher.wait().unwrap();
        }
    }

    /// Returns the URL of a database that looks empty: a new schema is the whole search path.
    pub(crate) fn fresh(&self) -> String {
        let mut schemas = self.schemas.lock().unwrap();
        let (unused, made) = &mut *schemas;
        if unused.is_empty() {
            unused.extend((*made..*made + AT_ONCE).map(|number| format!("fresh_{number}")));
            *made += AT_ONCE;
            let create = unused.iter().map(|name| format!("CREATE SCHEMA {name};"));
            self.sql(&create.collect::<String>());
        }
        let schema = unused.pop().unwrap();
        format!("{}?options=-csearch_path%3D{schema}", self.url())
    }

    /// Like `Cluster::fresh`, for a new user who may do nothing else.
    pub(crate) fn fresh_for(&self, user: &str) -> String {
        let url = self.fresh();
        let (_, schema) = url.rsplit_once("%3D").unwrap();
        self.sql(&format!("CREATE ROLE {user} LOGIN PASSWORD '{PASSWORD}'"));
        self.sql(&format!("ALTER SCHEMA {schema} OWNER TO {user}"));
        url.replace(&format!("//{USER}:"), &format!("//{user}:"))
    }

    /// Returns the URL of the server.
    pub(crate) fn url(&self) -> String {
        let port = self.port;
        format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{port}/postgres")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Runs statements, and returns what they print, without headers.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let done = Command::new(programs().join("psql"))
            .args(["-XqtA", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .arg(self.url())
            .output()
            .unwrap();
        assert!(done.status.success(), "{sql}: {done:?}");
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }

    /// From now on refuses connections without TLS.
    pub(crate) fn require_tls(&self) {
        let rule = "hostssl all all 127.0.0.1/32 scram-sha-256\n";
        fs::write(self.folder.join("data/pg_hba.conf"), rule).unwrap();
        self.sql("SELECT pg_reload_conf()");
    }

    /// Returns what the server has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn program(&self, name: &str) -> Command {
        self.as_nobody(Command::new(programs().join(name)))
    }

    fn as_nobody(&self, mut command: Command) -> Command {
        if let Some((user, group)) = nobody() {
            command.uid(user).gid(group);
        }
        command.current_dir(&self.folder);
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut watcher) = self.watcher.take() {
            drop(watcher.stdin.take());
            watcher.wait().ok();
        } else {
            fs::remove_dir_all(&self.folder).ok();
        }
    }
}

fn names_in(folder: &Path) -> BTreeSet<OsString> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

/// The folder of the server's programs, where Debian puts them; it is not on the search path.
fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
            .expect("PostgreSQL is not installed: the package is called postgresql")
            .map(|entry| entry.unwrap())
            .filter_map(|entry| {
                let version = entry.file_name().to_str()?.parse().ok()?;
                let programs = entry.path().join("bin");
                programs
                    .join("initdb")
                    .exists()
                    .then_some((version, programs))
            })
            .collect();
        versions.sort();
        versions
            .pop()
            .expect("no version of PostgreSQL has initdb")
            .1
    })
}

/// The user to run the server as, if the tests run as root: the server refuses to run as root.
fn nobody() -> Option<(u32, u32)> {
    const NOBODY: (u32, u32) = (65534, 65534);
    rustix::process::geteuid().is_root().then_some(NOBODY)
}
