//! The alert log: events and sinks.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
};

use super::{Resolver, files::normalized, seconds};
use crate::{
    config::{
        Config, file,
        problem::{shown_key, shown_value},
        units::ByteSize,
        url,
    },
    deliver::{Format, OtlpOptions, SinkOptions, Target},
    identity::EventKind,
    secret::SecretSource,
};

/// Headers that the OTLP sink sets itself.
const OWN_HEADERS: [&str; 5] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "host",
];

impl Resolver<'_> {
    pub(super) fn events(&self, events: Option<Vec<file::Event>>) -> Vec<EventKind> {
        let Some(events) = events else {
            return vec![EventKind::Opened];
        };
        let events: Vec<EventKind> = events.into_iter().map(Into::into).collect();
        self.no_repetitions("log.events", events.iter().map(|event| event.as_str()));
        events
    }

    pub(super) fn description_length(&self, size: Option<ByteSize>) -> usize {
        let size = size.map_or(4096, |size| size.0);
        usize::try_from(size).unwrap_or(usize::MAX)
    }

    pub(super) fn sinks(&self, sinks: Option<Vec<file::Sink>>) -> Vec<SinkOptions> {
        let sinks = sinks.unwrap_or_else(|| vec![file::Sink::stdout()]);
        let message = "is empty; leave it out for standard output, write a sink, or log nothing with log.events: []";
        self.not_empty("log.sinks", &sinks, message);
        let resolved: Vec<(String, Option<SinkOptions>)> = sinks
            .into_iter()
            .enumerate()
            .map(|(index, sink)| {
                let path = format!("log.sinks[{index}]");
                let resolved = self.sink(&path, sink);
                (path, resolved)
            })
            .collect();
        self.no_shared_targets(&resolved);
        let names = resolved
            .iter()
            .map(|(_, sink)| sink.as_ref().map_or("", |sink| &*sink.name));
        self.no_duplicates(
            names,
            |index| format!("log.sinks[{index}].name"),
            "the name of a sink",
        );
        resolved.into_iter().filter_map(|(_, sink)| sink).collect()
    }

    fn no_shared_targets(&self, sinks: &[(String, Option<SinkOptions>)]) {
        let mut taken: HashMap<PathBuf, &str> = HashMap::new();
        let (mut has_stdout, mut has_journald) = (false, false);
        for (path, sink) in sinks {
            let Some(sink) = sink else { continue };
            match &sink.target {
                Target::Stdout { .. } => {
                    if std::mem::replace(&mut has_stdout, true) {
                        self.problems.add(path, "a second sink on standard output");
                    }
                }
                Target::Journald => {
                    if std::mem::replace(&mut has_journald, true) {
                        self.problems.add(path, "a second sink to the journal");
                    }
                }
                Target::File { path: file, .. } => {
                    if let Some(other) = taken.insert(normalized(file), &sink.name) {
                        let message =
                            format!("is the file of the sink \"{}\" as well", shown_value(other));
                        self.problems.add(format!("{path}.path"), message);
                    }
                }
                Target::Otlp(_) => {}
            }
        }
    }

    fn sink(&self, path: &str, sink: file::Sink) -> Option<SinkOptions> {
        let at = |key: &str| format!("{path}.{key}");
        let Some(kind) = sink.kind else {
            if !self.problems.covers(at("type")) {
                self.problems.add(
                    at("type"),
                    "is missing; write stdout, file, journald or otlp",
                );
            }
            return None;
        };
        self.only_its_own_keys(path, kind, &sink);
        let format = sink.format.map_or(Format::Json, Into::into);
        let target = match kind {
            file::SinkType::Stdout => Target::Stdout { format },
            file::SinkType::Journald => Target::Journald,
            file::SinkType::File => {
                let file = sink.path.unwrap_or_default();
                if file.as_os_str().is_empty() {
                    if !self.problems.covers(at("path")) {
                        self.problems.add(at("path"), "is missing; name the file");
                    }
                } else if let Some(problem) = file_path_problem(&file) {
                    self.problems.add(at("path"), problem);
                } else {
                    let advice = "name a file, or send the lines with a sink of type otlp";
                    self.check_file_name(&at("path"), &file, advice);
                }
                Target::File { path: file, format }
            }
            file::SinkType::Otlp => {
                let endpoint = self.required(&at("endpoint"), sink.endpoint);
                if !endpoint.is_empty()
                    && !self.is_unexpanded(&at("endpoint"), &endpoint, "")
                    && let Err(problem) = url::endpoint(&endpoint)
                {
                    let advice = match problem {
                        url::UrlError::Query => {
                            "; what the receiver wants besides goes into headers or headers_files"
                        }
                        _ => "",
                    };
                    self.problems
                        .add(at("endpoint"), format!("{problem}{advice}"));
                }
                Target::Otlp(OtlpOptions {
                    endpoint,
                    headers: self.headers(path, sink.headers, sink.headers_files),
                    gzip: sink.compression != Some(file::Compression::None),
                    timeout: self.duration(&at("timeout"), sink.timeout, seconds(10)),
                })
            }
        };
        Some(SinkOptions {
            name: self.name(&at("name"), sink.name, Some(kind.as_str())),
            target,
        })
    }

    /// Warns of receivers without a path: they answer 404 to every request, so their lines wait
    /// for ever.
    pub(super) fn warn_of_endpoints_without_path(&mut self, config: &Config) {
        for (index, sink) in config.sinks.iter().enumerate() {
            if let Target::Otlp(options) = &sink.target
                && url::has_no_path(&options.endpoint)
            {
                self.warnings.push(format!(
                    "log.sinks[{index}].endpoint: has no path, and none is added: receivers take logs at {}, Grafana \
                     Loki at {}",
                    url::LOGS_PATH,
                    url::LOKI_PATH
                ));
            }
        }
    }

    /// Warns of doubtful header values. Values in files are checked with the other files of
    /// secrets.
    pub(super) fn warn_of_doubtful_headers(&mut self, config: &Config) {
        for (index, sink) in config.sinks.iter().enumerate() {
            let Target::Otlp(options) = &sink.target else {
                continue;
            };
            for (name, source) in &options.headers {
                if let SecretSource::Value(value) = source
                    && let Some(doubt) = value.doubt_as_header()
                {
                    let name = shown_key(name);
                    self.warnings
                        .push(format!("log.sinks[{index}].headers.{name}: {doubt}"));
                }
            }
        }
    }

    fn only_its_own_keys(&self, path: &str, kind: file::SinkType, sink: &file::Sink) {
        use file::SinkType::{File, Otlp, Stdout};
        let given: [(&str, bool, &[file::SinkType]); 7] = [
            ("format", sink.format.is_some(), &[Stdout, File]),
            ("path", sink.path.is_some(), &[File]),
            ("endpoint", sink.endpoint.is_some(), &[Otlp]),
            ("headers", sink.headers.is_some(), &[Otlp]),
            ("headers_files", sink.headers_files.is_some(), &[Otlp]),
            ("compression", sink.compression.is_some(), &[Otlp]),
            ("timeout", sink.timeout.is_some(), &[Otlp]),
        ];
        for (key, is_given, kinds) in given {
            if is_given && !kinds.contains(&kind) {
                let message = format!("a sink of type {} has no such key", kind.as_str());
                self.problems.add(format!("{path}.{key}"), message);
            }
        }
    }

    fn headers(
        &self,
        path: &str,
        values: Option<BTreeMap<String, file::SecretText>>,
        files: Option<BTreeMap<String, PathBuf>>,
    ) -> BTreeMap<String, SecretSource> {
        let values = values.unwrap_or_default().into_iter();
        let values = values.map(|(name, value)| ("headers", name, SecretSource::Value(value.0)));
        let files = files.unwrap_or_default().into_iter();
        let files = files.map(|(name, file)| ("headers_files", name, SecretSource::File(file)));
        let mut seen = HashSet::new();
        let mut headers = BTreeMap::new();
        for (key, name, source) in values.chain(files) {
            let at = format!("{path}.{key}.{}", shown_key(&name));
            let lower = name.to_ascii_lowercase();
            if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
                self.problems.add(&at, "is not the name of a header");
            } else if OWN_HEADERS.contains(&lower.as_str()) {
                self.problems.add(&at, "is set by the exporter itself");
            } else if !seen.insert(lower) {
                self.problems.add(&at, "is given twice");
            }
            if let SecretSource::Value(value) = &source
                && http::HeaderValue::from_str(value.expose()).is_err()
            {
                self.problems
                    .add(&at, "holds characters that a header cannot");
            }
            if let SecretSource::File(file) = &source {
                self.check_secret_file(&at, file);
            }
            headers.insert(name, source);
        }
        headers
    }
}

/// Says why a path cannot be that of a file, whatever is there.
fn file_path_problem(path: &Path) -> Option<&'static str> {
    let path = path.as_os_str().as_encoded_bytes();
    let name = path.rsplit(|&byte| byte == b'/').next();
    if path.contains(&0) {
        Some("holds a NUL, which no path can")
    } else if matches!(name, Some(b"" | b"." | b"..")) {
        Some("is the path of a folder; name a file in it")
    } else {
        None
    }
}

impl file::Sink {
    /// Returns the sink that is used if none is configured.
    fn stdout() -> Self {
        Self {
            kind: Some(file::SinkType::Stdout),
            ..Self::default()
        }
    }
}

impl file::SinkType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::File => "file",
            Self::Journald => "journald",
            Self::Otlp => "otlp",
        }
    }
}
