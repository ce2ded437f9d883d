//! Where the state is kept, and the web server.

use std::path::{Path, PathBuf};

use super::{Resolver, seconds};
use crate::{
    config::{ListenAddress, State, Web, file, overrides::Variables, problem::shown_value},
    secret::SecretSource,
    store::postgres,
    web::{PathError, check_telemetry_path},
};

const DEFAULT_TELEMETRY_PATH: &str = "/metrics";

impl Resolver<'_> {
    pub(super) fn state(&self, state: Option<file::State>, variables: &Variables<'_>) -> State {
        let state = state.unwrap_or_default();
        match (state.path, state.postgres) {
            (Some(_), Some(_)) => {
                self.problems
                    .add("state", "has both path and postgres; keep one");
                State::default()
            }
            (Some(path), None) => {
                if path.as_os_str().is_empty() {
                    self.problems.add("state.path", "is empty; name the file");
                }
                let advice = "name the state's own; the URL of a database goes into a file that state.postgres.url_file names";
                self.check_file_name("state.path", &path, advice);
                State::File { path }
            }
            (None, Some(postgres)) => State::Postgres {
                url: self.database_url(self.value_or_file(
                    "state.postgres",
                    "url",
                    postgres.url.map(|url| url.0),
                    postgres.url_file,
                )),
                lease: self.duration("state.postgres.lease", postgres.lease, seconds(15)),
            },
            (None, None) => match variables.path("STATE_DIRECTORY") {
                Some(folders) => State::File {
                    path: first_of(&folders).join("state.db"),
                },
                None => State::default(),
            },
        }
    }

    /// Checks a URL that is given directly. A URL in a file is not checked, because it may appear
    /// or change later.
    fn database_url(&self, source: SecretSource) -> SecretSource {
        let path = "state.postgres.url";
        if matches!(source, SecretSource::Value(_))
            && !self.problems.covers(path)
            && !self.problems.covers("state.postgres.url_file")
            && let Err(error) = postgres::check(&source)
        {
            self.problems.add(path, error.to_string());
        }
        source
    }

    pub(in crate::config) fn web(&self, web: Option<file::Web>) -> Web {
        let web = web.unwrap_or_default();
        let listen_addresses = web
            .listen_addresses
            .unwrap_or_else(|| vec![ListenAddress::default()]);
        let path = "web.listen_addresses";
        let message = "is empty; leave it out for the default, or write an address";
        self.not_empty(path, &listen_addresses, message);
        let shown_addresses: Vec<String> = listen_addresses
            .iter()
            .filter(|address| address.port != 0)
            .map(ToString::to_string)
            .collect();
        self.no_repetitions(path, shown_addresses.iter().map(String::as_str));
        let systemd_socket = web.systemd_socket.unwrap_or(false);
        // With `systemd_socket`, the exporter listens only on what systemd hands over.
        if !systemd_socket {
            self.no_covered_address(path, &listen_addresses);
        }
        if let Some(file) = &web.config_file {
            let path = "web.config_file";
            if file.as_os_str().is_empty() {
                let message = "is empty; leave it out, or name the file";
                self.problems.add(path, message);
            }
            self.check_secret_file(path, file);
        }
        Web {
            listen_addresses,
            telemetry_path: self.telemetry_path(web.telemetry_path),
            config_file: web.config_file,
            enable_lifecycle: web.enable_lifecycle.unwrap_or(false),
            systemd_socket,
        }
    }

    /// Notes addresses that cannot be listened on beside another address of the list.
    fn no_covered_address(&self, path: &str, addresses: &[ListenAddress]) {
        for (index, address) in addresses.iter().enumerate() {
            // Of two addresses that cover each other, only one is reported. An address that is
            // listed twice is reported as a repetition instead.
            let covers = |(other, wider): &(usize, &ListenAddress)| {
                wider.covers(address)
                    && wider.to_string() != address.to_string()
                    && (*other < index || !address.covers(wider))
            };
            if let Some((_, wider)) = addresses.iter().enumerate().find(covers) {
                let message = if wider.is_unspecified() {
                    format!(
                        "{wider} takes the port on every address, so that {address} cannot be had; leave out one"
                    )
                } else {
                    format!("{wider} and {address} are the same address; leave out one")
                };
                self.problems.add(path, message);
            }
        }
    }

    fn telemetry_path(&self, path: Option<String>) -> String {
        let path = path.unwrap_or_else(|| DEFAULT_TELEMETRY_PATH.to_owned());
        if let Err(error) = check_telemetry_path(&path) {
            let correction = match error {
                PathError::NoSlash => {
                    let with_slash = format!("/{path}");
                    // The proposed path must not be refused in its turn.
                    let proposed = match check_telemetry_path(&with_slash) {
                        Ok(()) => format!("/{}", shown_value(&path)),
                        Err(_) => DEFAULT_TELEMETRY_PATH.to_owned(),
                    };
                    format!("; write \"{proposed}\"")
                }
                _ => String::new(),
            };
            let message = format!("{error}{correction}");
            self.problems.add("web.telemetry_path", message);
        }
        path
    }
}

/// Returns the first of several folders, which systemd separates by colons.
fn first_of(folders: &Path) -> PathBuf {
    let first = std::env::split_paths(folders.as_os_str()).next();
    first.unwrap_or_else(|| folders.to_path_buf())
}
