//! Delivery: reads the journal and hands records to the sinks, each at its own pace.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

/// One sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkOptions {
    /// Its name, label `sink`; unique.
    pub name: Arc<str>,
    /// Where lines go.
    pub target: Target,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    Stdout {
        /// The line's format.
        format: Format,
    },
    /// A file, appended to.
    File {
        /// The file; its folder must exist.
        path: PathBuf,
        /// The line's format.
        format: Format,
    },
    /// systemd's journal.
    Journald,
    /// An OpenTelemetry receiver, OTLP over HTTP with protobuf.
    Otlp(OtlpOptions),
}

/// The format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// `key=value` pairs.
    Logfmt,
}

/// An OTLP receiver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpOptions {
    /// The whole URL, such as `http://loki:3100/otlp/v1/logs`.
    pub endpoint: String,
    /// Headers to send, such as `Authorization`; the values are secrets.
    pub headers: BTreeMap<String, crate::secret::SecretSource>,
    /// Whether bodies are compressed with gzip.
    pub gzip: bool,
    /// For one request.
    pub timeout: std::time::Duration,
}
