//! The demo: the daemon and a simulated OpsRamp in one process. There is nothing to configure. The
//! state is in a temporary folder, which is removed at the end.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context as _;

use crate::{
    config::{Account, Config, State, WebOverrides},
    identity::Tenant,
    logging, opsramp,
    secret::{Secret, SecretSource},
    simulator::{DEMO_KEY, DEMO_SECRET, DEMO_TENANT, Options, Simulator},
};

/// The interval of polls. It is short, so that users see something within seconds.
const INTERVAL: Duration = Duration::from_secs(2);

/// A running demo, and the configuration of its daemon.
#[derive(Debug)]
pub struct Demo {
    /// The daemon's configuration.
    pub config: Config,
    simulator: Simulator,
    folder: Folder,
}

/// A temporary folder, which is removed when this is dropped.
#[derive(Debug)]
struct Folder(std::path::PathBuf);

// === impl Demo ===

impl Demo {
    /// Starts the simulator.
    ///
    /// # Errors
    /// If the simulator's address is taken, a flag is wrong, or no temporary folder can be
    /// created.
    pub async fn start(address: SocketAddr, web: &WebOverrides) -> anyhow::Result<Self> {
        let simulator = Simulator::start(Options::demo(), address)
            .await
            .with_context(|| {
                format!(
                    "the simulator cannot listen on {address} \
                 (choose another with --simulator.listen-address)"
                )
            })?;
        let folder = Folder::create()?;
        let url = simulator.url();
        let account = Account {
            options: opsramp::Options {
                // The simulator is a part of this process, and a proxy would not find it.
                environment_proxies: false,
                ..opsramp::Options::new(
                    "default".into(),
                    url,
                    SecretSource::Value(Secret::new(DEMO_KEY)),
                    SecretSource::Value(Secret::new(DEMO_SECRET)),
                )
            },
            tenants: vec![Tenant {
                id: DEMO_TENANT.into(),
                name: DEMO_TENANT.into(),
            }],
            discover_clients: false,
        };
        let mut config = Config::for_account(account, web)?;
        config.state = State::File {
            path: folder.0.join("state.db"),
        };
        config.record.events = crate::identity::EventKind::ALL.to_vec();
        for search in &mut config.searches {
            search.interval = INTERVAL;
        }
        Ok(Self {
            config,
            simulator,
            folder,
        })
    }

    /// Writes to standard error where to look, and how to talk to the simulator.
    pub fn announce(&self, listeners: &[std::net::TcpListener], scheme: &str) {
        let address = listeners
            .first()
            .and_then(|listener| listener.local_addr().ok());
        let web = address.map_or_else(|| "localhost".to_owned(), reached_at);
        let text = format!(
            "demo: alert lines go to standard output; stop with Ctrl-C\n\
             demo: metrics    {scheme}://{web}{}\n\
             demo: page       {scheme}://{web}/\n\
             demo: simulator  {}  tenant {DEMO_TENANT}, key {DEMO_KEY}, secret {DEMO_SECRET}\n",
            self.config.web.telemetry_path,
            self.simulator.url(),
        );
        // If this cannot be written, the demo runs all the same.
        logging::write(&text);
    }

    /// Ends the simulator and removes the state.
    pub async fn stop(self) {
        self.simulator.stop().await;
        drop(self.folder);
    }
}

/// Returns the address at which a browser on this machine reaches a listener.
fn reached_at(address: SocketAddr) -> String {
    let ip = address.ip();
    // `localhost` stands for no other loopback addresses than these.
    let is_localhost = ip == Ipv4Addr::LOCALHOST || ip == Ipv6Addr::LOCALHOST;
    if is_localhost || ip.is_unspecified() {
        format!("localhost:{}", address.port())
    } else {
        address.to_string()
    }
}

// === impl Folder ===

impl Folder {
    fn create() -> anyhow::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;

        let parent = std::env::temp_dir();
        loop {
            let path = parent.join(format!("opsramp-exporter-demo-{:016x}", fastrand::u64(..)));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                created => {
                    return created.map(|()| Self(path)).with_context(|| {
                        format!(
                            "cannot create a folder for the state in {} (choose another with TMPDIR)",
                            parent.display()
                        )
                    });
                }
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "cannot remove the demo's state");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_that_is_told_is_one_on_which_somebody_listens() {
        for (address, told) in [
            ("0.0.0.0:7", "localhost:7"),
            ("[::]:7", "localhost:7"),
            ("127.0.0.1:7", "localhost:7"),
            ("[::1]:7", "localhost:7"),
            ("127.0.0.2:7", "127.0.0.2:7"),
            ("192.0.2.9:7", "192.0.2.9:7"),
            ("[2001:db8::9]:7", "[2001:db8::9]:7"),
        ] {
            assert_eq!(reached_at(address.parse().unwrap()), told);
        }
    }
}
