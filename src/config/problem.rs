//! Problems of a configuration: what is wrong, where, and what to write instead.
//!
//! Problems are collected, not thrown, so that every mistake of a file is reported. A message
//! never holds a value that could be a secret.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use super::yaml::Node;
use crate::reading;

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the {what} {}", path.display())]
    Read {
        /// What the file is.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file, a flag or a variable of the environment holds something wrong.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
    /// Nothing says which account to ask.
    #[error("{}{OTHER_WAYS}", no_account(.file.as_deref()))]
    NoAccount {
        /// The configuration file, if there is one.
        file: Option<PathBuf>,
    },
}

const OTHER_WAYS: &str = "
  environment:  OPSRAMP_URL, OPSRAMP_TENANT_ID, OPSRAMP_CLIENT_ID and OPSRAMP_CLIENT_SECRET_FILE
  flags:        --opsramp.url, --opsramp.tenant, --opsramp.client-id and --opsramp.client-secret-file
or try `opsramp-exporter demo`, which needs none";

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it was written.
    pub origin: Origin,
    /// The key's path in the file, such as `searches[0].interval`; empty for the file as a whole.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In the configuration file.
    File {
        /// The file.
        file: PathBuf,
        /// Line and column, from 1; `None` where the file as a whole is meant.
        place: Option<Place>,
    },
    /// In a flag or a variable of the environment, as the user would write it.
    Input(&'static str),
    /// Nowhere: a default.
    Default,
}

/// A place in the configuration file, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: u64,
    /// The column, in characters.
    pub column: u64,
}

/// The path of a key while the file is walked: a list that lives on the stack.
#[derive(Clone, Copy, Debug)]
pub(super) enum KeyPath<'a> {
    Root,
    Key(&'a Self, &'a str),
    Index(&'a Self, usize),
}

/// Which flag or variable set a key, by the key's path.
pub(super) type Inputs = BTreeMap<String, &'static str>;

/// Collects problems while the file is walked and checked.
#[derive(Debug, Default)]
pub(super) struct Problems(RefCell<Vec<Found>>);

/// A problem whose origin is not looked up yet.
#[derive(Debug)]
struct Found {
    path: String,
    place: Option<Place>,
    message: String,
}

fn no_account(file: Option<&Path>) -> String {
    match file {
        Some(file) => format!(
            "{}: no OpsRamp account is configured; write it under accounts (config.example.yml shows every \
             key), or give one of these:",
            file.display()
        ),
        None => "no OpsRamp account is configured; give one of these:
  a file:       --config.file=opsramp-exporter.yml (config.example.yml shows every key)"
            .to_owned(),
    }
}

fn list(problems: &[Problem]) -> String {
    match problems {
        [problem] => problem.to_string(),
        problems => {
            let mut text = format!("the configuration has {} problems:", problems.len());
            for problem in problems {
                text.push_str("\n  ");
                text.push_str(&problem.to_string());
            }
            text
        }
    }
}

// === impl ConfigError ===

impl ConfigError {
    /// Whether the error is about a file that cannot be read here, but that the exporter may be
    /// able to read.
    pub(crate) fn is_of_exporters_file(&self) -> bool {
        match self {
            Self::Read { path, source, .. } => reading::is_for_exporter_alone(path, source),
            Self::Invalid(_) | Self::NoAccount { .. } => false,
        }
    }

    /// Returns an error if there are problems.
    pub(super) fn of(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Self::Invalid(problems))
        }
    }
}

// === impl Problem ===

impl Problem {
    /// A problem with a flag or a variable of the environment.
    pub(super) fn of_input(input: &'static str, message: impl Into<String>) -> Self {
        Self {
            origin: Origin::Input(input),
            path: String::new(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::File { file, place } => {
                write!(f, "{}:", file.display())?;
                if let Some(place) = place {
                    write!(f, "{}:{}:", place.line, place.column)?;
                }
                f.write_str(" ")?;
                if !self.path.is_empty() {
                    write!(f, "{}: ", self.path)?;
                }
            }
            Origin::Input(input) => write!(f, "{input}: ")?,
            Origin::Default if self.path.is_empty() => {}
            Origin::Default => write!(f, "{}: ", self.path)?,
        }
        f.write_str(&self.message)
    }
}

// === impl KeyPath ===

impl fmt::Display for KeyPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Key(Self::Root, key) => f.write_str(&shown_key(key)),
            Self::Key(parent, key) => write!(f, "{parent}.{}", shown_key(key)),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// Makes the user's text fit to be shown in a message: on one line and not too long.
pub(super) fn shown(text: &str) -> String {
    shown_within(64, text)
}

/// Like `shown`, with at most `longest` characters of the text.
pub(super) fn shown_within(longest: usize, text: &str) -> String {
    let mut short = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == longest {
            short.push('…');
            break;
        }
        match c {
            '"' | '\'' | '\\' => short.push(c),
            c => short.extend(c.escape_debug()),
        }
    }
    short
}

/// Makes a value fit to be shown, if it is not a secret by its key. Where a line break was lost,
/// the value may have run into the next line, so only a short value that is no URL with a password
/// is shown.
pub(super) fn shown_value(value: &str) -> String {
    const LONGEST: usize = 40;
    if value.contains('@') || value.len() > LONGEST {
        "…".to_owned()
    } else {
        shown(value)
    }
}

/// Makes a key fit to be shown. Where a colon or the space after it is missing, as in
/// `client_secret:hunter2`, the value is part of the key: only the first word may be shown.
pub(super) fn shown_key(key: &str) -> String {
    let word = first_word(key);
    let rest = if word.len() < key.len() { "…" } else { "" };
    shown(word) + rest
}

/// Returns the part of the text that can be a key.
pub(super) fn first_word(key: &str) -> &str {
    key.split(|c: char| c.is_whitespace() || matches!(c, ':' | '='))
        .next()
        .unwrap_or_default()
}

/// Whether `path` is `outer` or a part of it.
fn is_within(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

// === impl Problems ===

impl Problems {
    /// Notes a problem at a known place.
    pub(super) fn add_at(&self, path: impl fmt::Display, place: Place, message: impl Into<String>) {
        self.0.borrow_mut().push(Found {
            path: path.to_string(),
            place: Some(place),
            message: message.into(),
        });
    }

    /// Notes a problem; its place is looked up by its path.
    pub(super) fn add(&self, path: impl fmt::Display, message: impl Into<String>) {
        self.0.borrow_mut().push(Found {
            path: path.to_string(),
            place: None,
            message: message.into(),
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Whether there is a problem with the key or with a section that contains it. In that case,
    /// saying that the key is missing, or does not fit another key, would only confuse.
    pub(super) fn covers(&self, path: impl fmt::Display) -> bool {
        let path = path.to_string();
        self.0
            .borrow()
            .iter()
            .any(|found| found.path.is_empty() || is_within(&path, &found.path))
    }

    /// Whether there is a problem with the key, with a section that contains it, or with a part of
    /// it.
    pub(super) fn touches(&self, path: &str) -> bool {
        let found = self.0.borrow();
        found.iter().any(|found| is_within(&found.path, path)) || self.covers(path)
    }

    /// Returns the problems in the order of the file, each with its origin.
    pub(super) fn into_list(self, file: Option<(&Path, &Node)>, inputs: &Inputs) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self
            .0
            .into_inner()
            .into_iter()
            .map(|found| {
                let input = inputs.iter().find(|(path, _)| is_within(&found.path, path));
                let origin = match (input.map(|(_, input)| input), file) {
                    (Some(input), _) => Origin::Input(input),
                    (None, Some((name, node))) => Origin::File {
                        file: name.to_path_buf(),
                        place: found.place.or_else(|| node.locate(&found.path)),
                    },
                    (None, None) => Origin::Default,
                };
                Problem {
                    origin,
                    path: found.path,
                    message: found.message,
                }
            })
            .collect();
        problems.sort_by_key(|problem| match &problem.origin {
            Origin::File { place, .. } => (0, *place),
            Origin::Input(_) => (1, None),
            Origin::Default => (2, None),
        });
        problems
    }
}
