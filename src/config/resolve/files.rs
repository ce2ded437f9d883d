//! Files that are already something else: no sink may append its lines to them.
//!
//! Files are recognized by their paths, however these are written; a link is recognized by where
//! it leads, too. Links of secret files are not followed, because a file system that does not
//! answer must not hold up a reload.

use std::path::{Component, Path, PathBuf};

use super::Resolver;
use crate::{
    config::{Config, State},
    deliver::Target,
    paths::{folder, follow_links},
    secret::SecretSource,
    store::sqlite::with_suffix,
};

/// Ends of the names of the files that SQLite and the exporter keep beside the state file.
const BESIDE_STATE: [&str; 4] = ["-wal", "-shm", "-journal", ".lock"];

/// The files of a configuration, each with what it is used for.
struct Taken(Vec<(PathBuf, String)>);

impl Resolver<'_> {
    /// Notes sinks whose file the exporter reads, or keeps its state in. `file` is the file that
    /// the configuration was read from.
    pub(in crate::config) fn no_sink_on_other_files(&self, config: &Config, file: Option<&Path>) {
        // A wrong sink is not in the list, so the indices of the sinks after it would be wrong.
        if self.problems.touches("log.sinks") {
            return;
        }
        let taken = Taken::by(config, file);
        for (index, sink) in config.sinks.iter().enumerate() {
            if let Target::File { path, .. } = &sink.target
                && let Some(what) = taken.what(path)
            {
                let message = format!("is {what}; name a file of its own");
                self.problems
                    .add(format!("log.sinks[{index}].path"), message);
            }
        }
    }
}

impl Taken {
    fn by(config: &Config, file: Option<&Path>) -> Self {
        let mut taken = Self(Vec::new());
        let own = [
            (file, "the configuration file"),
            (
                config.web.config_file.as_deref(),
                "the web configuration file",
            ),
        ];
        for (path, what) in own {
            taken.add(path, what);
            taken.add(path.map(real).as_deref(), what);
        }
        match &config.state {
            State::File { path } => {
                // SQLite follows links before it names the files beside the state file.
                for path in [path.clone(), real(path)] {
                    taken.add(Some(&path), "the state file, state.path");
                    for end in BESIDE_STATE {
                        taken.add(
                            Some(&with_suffix(&path, end)),
                            "a file that stands beside the state file, state.path",
                        );
                    }
                }
            }
            State::Postgres { url, .. } => {
                taken.add_secret(url, "the file of state.postgres.url_file");
            }
        }
        for (index, account) in config.accounts.iter().enumerate() {
            let of = |key: &str| format!("the file of accounts[{index}].{key}");
            let options = &account.options;
            taken.add_secret(&options.client_id, &of("client_id_file"));
            taken.add_secret(&options.client_secret, &of("client_secret_file"));
            let tls = &options.tls;
            taken.add(tls.ca_file.as_deref(), &of("tls.ca_file"));
            taken.add(tls.cert_file.as_deref(), &of("tls.cert_file"));
            taken.add(tls.key_file.as_deref(), &of("tls.key_file"));
        }
        for (index, sink) in config.sinks.iter().enumerate() {
            if let Target::Otlp(options) = &sink.target {
                for source in options.headers.values() {
                    let what = format!("a file of log.sinks[{index}].headers_files");
                    taken.add_secret(source, &what);
                }
            }
        }
        taken
    }

    fn add(&mut self, path: Option<&Path>, what: &str) {
        if let Some(path) = path {
            self.0.push((normalized(path), what.to_owned()));
        }
    }

    fn add_secret(&mut self, source: &SecretSource, what: &str) {
        if let SecretSource::File(path) = source {
            self.add(Some(path), what);
        }
    }

    fn what(&self, path: &Path) -> Option<&str> {
        let names = [normalized(path), real(path)];
        let found = self.0.iter().find(|(taken, _)| names.contains(taken));
        found.map(|(_, what)| what.as_str())
    }
}

/// Returns the normal form of a path: from the root on, without `.` and `..`.
pub(super) fn normalized(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let mut plain = PathBuf::new();
    for component in absolute.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            component => plain.push(component),
        }
    }
    plain
}

/// Returns where the file is, or would be, once all links are followed.
fn real(path: &Path) -> PathBuf {
    let path = follow_links(path).unwrap_or_else(|| path.to_owned());
    path.canonicalize()
        .unwrap_or_else(|_| match (folder(&path).canonicalize(), path.file_name()) {
            (Ok(folder), Some(name)) => folder.join(name),
            _ => normalized(&path),
        })
}
