//! The daemon as a process of its own: starts it, asks it, and measures it.

use std::{
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::http::Connection;

/// A time longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(300);

/// A running daemon. It is killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) spawned: Instant,
}

/// The text of a scrape.
#[derive(Clone, Debug)]
pub(crate) struct Samples(String);

/// The binary to measure: the one that was built for the benchmarks, or the one that the variable
/// names.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("OPSRAMP_BENCH_BIN").map_or_else(
        || env!("CARGO_BIN_EXE_opsramp-exporter").into(),
        PathBuf::from,
    )
}

/// A configuration with everything in `folder`: one search for each tenant, lines to a file.
pub(crate) fn config(folder: &Path, url: &str, tenants: &[String]) -> Value {
    std::fs::write(folder.join("secret"), "demo-secret").unwrap();
    json!({
        "accounts": [{
            "url": url,
            "client_id": "demo-key",
            "client_secret_file": folder.join("secret"),
            "tenants": tenants,
            "requests_per_minute": 1_000_000,
        }],
        "searches": [{"name": "open", "interval": "30s", "page_size": 500}],
        "log": {
            "events": ["opened", "changed", "left"],
            "sinks": [{"name": "file", "type": "file", "path": folder.join("alerts.jsonl")}],
        },
        "state": {"path": folder.join("state.db")},
    })
}

// === impl Daemon ===

impl Daemon {
    /// Starts the daemon in `folder`. It listens within milliseconds. Its diagnostics go to the
    /// file `stderr` there.
    pub(crate) fn start(folder: &Path, config: &Value) -> Self {
        // The port is free at this moment, and on a machine that measures, nobody else takes it.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let path = folder.join("config.yml");
        // JSON is YAML.
        std::fs::write(&path, config.to_string()).unwrap();
        let stderr = std::fs::File::create(folder.join("stderr")).unwrap();
        let mut command = Command::new(binary());
        command
            .arg("--config.file")
            .arg(&path)
            .arg(format!("--web.listen-address={address}"))
            .env_clear()
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        let spawned = Instant::now();
        let child = command.spawn().unwrap();
        Self {
            child,
            address,
            spawned,
        }
    }

    /// Scrapes as soon as the daemon listens. Returns the time from the daemon's start to the
    /// answer.
    pub(crate) fn first_scrape(&mut self) -> Duration {
        loop {
            if let Ok(mut connection) = Connection::open(self.address) {
                connection.get("/metrics", "").unwrap();
                return self.spawned.elapsed();
            }
            assert!(
                self.child.try_wait().unwrap().is_none() && self.spawned.elapsed() < PATIENCE,
                "it does not listen"
            );
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    pub(crate) fn scrape(&self) -> Samples {
        let mut connection = Connection::open(self.address).unwrap_or_else(|error| {
            panic!("it does not listen any more: {error}");
        });
        let text = connection.get("/metrics", "").unwrap();
        Samples(String::from_utf8(text.to_vec()).unwrap())
    }

    /// Waits until `holds` is true of a scrape; scrapes every `pause`.
    pub(crate) fn wait_until(
        &mut self,
        pause: Duration,
        holds: impl Fn(&Samples) -> bool,
    ) -> Samples {
        self.first_scrape();
        let began = Instant::now();
        loop {
            let samples = self.scrape();
            if holds(&samples) {
                return samples;
            }
            assert!(began.elapsed() < PATIENCE, "still not so: {}", samples.0);
            std::thread::sleep(pause);
        }
    }

    /// The bytes in memory.
    pub(crate) fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most bytes that were in memory at any time.
    pub(crate) fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, key: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = BufReader::new(std::fs::File::open(path).unwrap());
        let line = status.lines().map(Result::unwrap);
        let line = line.into_iter().find(|line| line.starts_with(key)).unwrap();
        let kibibytes = line.split_ascii_whitespace().nth(1).unwrap();
        kibibytes.parse::<u64>().unwrap() * 1024
    }

    /// The processor time that the present threads have used, to the nanosecond.
    pub(crate) fn cpu(&self) -> Duration {
        let folder = format!("/proc/{}/task", self.child.id());
        let tasks = std::fs::read_dir(folder).unwrap();
        let times = tasks.filter_map(|task| {
            // A thread that has ended meanwhile has no entry any more.
            let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(times.sum())
    }

    /// Makes the daemon stop in an orderly way.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "it ended with {status}");
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        // Until somebody has waited for the child, no other process can get its number.
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The daemon may have ended already.
        if matches!(self.child.try_wait(), Ok(None)) {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

// === impl Samples ===

impl Samples {
    /// The sum of the samples whose lines begin with `prefix`.
    pub(crate) fn sum(&self, prefix: &str) -> f64 {
        self.values(prefix).sum()
    }

    /// The samples whose lines begin with `prefix`.
    pub(crate) fn values(&self, prefix: &str) -> impl Iterator<Item = f64> {
        let lines = self.0.lines().filter(move |line| line.starts_with(prefix));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// The number of series.
    pub(crate) fn series(&self) -> usize {
        let lines = self.0.lines();
        lines.filter(|line| !line.starts_with('#')).count()
    }
}
