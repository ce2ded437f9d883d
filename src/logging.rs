//! The daemon's own diagnostics, on standard error. Alert lines never come through here.

/// How verbose the diagnostics are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// Everything.
    Debug,
    /// What the daemon does.
    #[default]
    Info,
    /// What should not stay so.
    Warn,
    /// What failed.
    Error,
}

/// How the diagnostics look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `key=value` pairs.
    #[default]
    Logfmt,
    /// One JSON object a line.
    Json,
}

/// A word that names neither a level nor a format.
#[derive(Debug, thiserror::Error)]
#[error("unknown word")]
pub struct UnknownWord;

// === impl Level ===

impl std::str::FromStr for Level {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "debug" => Ok(Self::Debug),
            "info" => Ok(Self::Info),
            "warn" => Ok(Self::Warn),
            "error" => Ok(Self::Error),
            _ => Err(UnknownWord),
        }
    }
}

// === impl Format ===

impl std::str::FromStr for Format {
    type Err = UnknownWord;

    fn from_str(word: &str) -> Result<Self, UnknownWord> {
        match word {
            "logfmt" => Ok(Self::Logfmt),
            "json" => Ok(Self::Json),
            _ => Err(UnknownWord),
        }
    }
}
