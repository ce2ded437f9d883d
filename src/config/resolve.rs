//! Turns the file as it is written into a valid configuration: fills in defaults, and checks
//! values, alone and against each other.
//!
//! This module is pure, except that it follows links: what it needs from outside (the environment)
//! is passed in. After a problem is noted, checking goes on, so that one run reports all problems.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{
    Account, Config,
    file::File,
    misplaced,
    overrides::Variables,
    problem::{Inputs, Problems, shown_value},
    units::HumanDuration,
};
use crate::{
    poll::AtFirstStart,
    record,
    secret::{Secret, SecretSource, is_variable},
};

pub(crate) use self::search::problem_of_query;

mod account;
mod files;
mod log;
mod search;
mod web;

/// What checking needs besides the file.
#[derive(Debug)]
pub(super) struct Resolver<'a> {
    problems: &'a Problems,
    inputs: &'a Inputs,
    warnings: Vec<String>,
}

const SHORTEST: Duration = Duration::from_millis(100);

/// Maximum length of a name or id, in bytes, so that all names and ids of a search together fit
/// into an index of PostgreSQL.
const LONGEST_NAME: usize = 256;

/// Advice about an unexpanded variable in the value of a flag or of an `OPSRAMP_…` variable.
/// Advice to use another flag or variable could name the very one that was used.
const NOT_EXPANDED_THERE: &str = " in its place, for whatever sets it did not expand it";

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

// === impl Resolver ===

impl<'a> Resolver<'a> {
    pub(super) fn new(problems: &'a Problems, inputs: &'a Inputs) -> Self {
        Self {
            problems,
            inputs,
            warnings: Vec::new(),
        }
    }

    /// Returns the configuration, which is of use only if no problem was noted.
    pub(super) fn config(&mut self, mut file: File, variables: &Variables<'_>) -> Config {
        let accounts = self.accounts(file.accounts.take());
        let config = self.config_of(accounts, file, variables);
        self.warn_of_too_many_polls(&config);
        self.warn_of_endpoints_without_path(&config);
        self.warn_of_doubtful_headers(&config);
        config
    }

    /// Returns the configuration around accounts that are known to be valid.
    pub(super) fn config_of(
        &self,
        accounts: Vec<Account>,
        file: File,
        variables: &Variables<'_>,
    ) -> Config {
        let searches = self.searches(file.searches, &accounts);
        let log = file.log.unwrap_or_default();
        let sinks = self.sinks(log.sinks);
        Config {
            record: record::Options {
                events: self.events(log.events),
                include_raw: log.include_raw.unwrap_or(false),
                max_description_length: self.description_length(log.max_description_length),
            },
            at_first_start: log.at_first_start.map_or(AtFirstStart::Emit, Into::into),
            fetch_details: log.fetch_details.unwrap_or(false),
            state: self.state(file.state, variables),
            web: self.web(file.web),
            accounts,
            tenants_are_picked: self.inputs.contains_key("accounts[0].tenants"),
            searches,
            sinks,
        }
    }

    pub(super) fn into_warnings(self) -> Vec<String> {
        self.warnings
    }

    // --- single values ---

    fn required(&self, path: &str, value: Option<String>) -> String {
        let value = value.unwrap_or_default();
        if value.trim().is_empty() && !self.problems.covers(path) {
            self.problems.add(path, "is missing");
        }
        value
    }

    /// Checks a name, which becomes a label and a word in messages.
    fn name(&self, path: &str, value: Option<String>, default: Option<&str>) -> Arc<str> {
        let name: Arc<str> = match (value, default) {
            (None, Some(default)) => return default.into(),
            (value, _) => self.required(path, value).into(),
        };
        if name.contains(char::is_control) {
            self.problems.add(path, "must be one line of text");
        }
        if name.len() > LONGEST_NAME {
            let message = format!("is longer than {LONGEST_NAME} bytes");
            self.problems.add(path, message);
        }
        name
    }

    /// Returns a value that is given directly (`key`) or by the name of a file (`key_file`).
    fn value_or_file(
        &self,
        path: &str,
        key: &str,
        value: Option<Secret>,
        file: Option<PathBuf>,
    ) -> SecretSource {
        let at = format!("{path}.{key}");
        let file_key = format!("{key}_file");
        match (value, file) {
            (Some(_), Some(_)) => {
                self.problems
                    .add(&at, format!("cannot be given together with {file_key}"));
            }
            (Some(value), None) if !value.expose().trim().is_empty() => {
                return SecretSource::Value(value);
            }
            (None, Some(file)) if !file.as_os_str().is_empty() => {
                self.check_secret_file(&format!("{at}_file"), &file);
                return SecretSource::File(file);
            }
            (Some(_), None) => self.problems.add(&at, "is empty"),
            (None, Some(_)) => self.problems.add(format!("{at}_file"), "is empty"),
            (None, None) => {
                if !self.problems.covers(&at) && !self.problems.covers(format!("{at}_file")) {
                    // A message about a missing flag or variable begins with its name, so it needs
                    // no advice.
                    let message = match self.inputs.get(&at) {
                        Some(_) => "is missing".to_owned(),
                        None => format!("is missing; write {key} or {file_key}"),
                    };
                    self.problems.add(&at, message);
                }
            }
        }
        SecretSource::Value(Secret::new(String::new()))
    }

    /// Whether the URL is a variable, which nobody expands; if so, notes a problem. `other_way` is
    /// what else can be done if the URL comes from the file.
    fn is_unexpanded(&self, path: &str, url: &str, other_way: &str) -> bool {
        if !is_variable(url) {
            return false;
        }
        let advice = match self.inputs.get(path) {
            Some(_) => NOT_EXPANDED_THERE,
            None => other_way,
        };
        let message =
            format!("is a variable, and variables are not expanded; write the URL itself{advice}");
        self.problems.add(path, message);
        true
    }

    /// Notes a problem if the text is clearly not the name of a file, but the content that belongs
    /// in the file.
    fn check_secret_file(&self, path: &str, file: &Path) {
        self.check_file_name(path, file, "put it into a file, and name that file here");
    }

    /// Notes a problem if the text is clearly not the name of a file.
    fn check_file_name(&self, path: &str, file: &Path, advice: &str) {
        if let Some(message) = misplaced::problem(file, advice) {
            self.problems.add(path, message);
        }
    }

    fn duration(&self, path: &str, value: Option<HumanDuration>, default: Duration) -> Duration {
        let Some(HumanDuration(value)) = value else {
            return default;
        };
        if value < SHORTEST {
            let shortest = HumanDuration(SHORTEST);
            self.problems
                .add(path, format!("must be at least {shortest}"));
        }
        value
    }

    /// Notes a list without items, unless something else is wrong with it.
    fn not_empty<T>(&self, path: &str, list: &[T], message: &str) {
        if list.is_empty() && !self.problems.touches(path) {
            self.problems.add(path, message);
        }
    }

    fn no_duplicates<'n>(
        &self,
        names: impl Iterator<Item = &'n str>,
        path: impl Fn(usize) -> String,
        what: &str,
    ) {
        let mut seen = HashSet::new();
        for (index, name) in names.enumerate() {
            if !name.is_empty() && !seen.insert(name) {
                let message = format!("\"{}\" is {what} already", shown_value(name));
                self.problems.add(path(index), message);
            }
        }
    }

    fn no_repetitions<'n>(&self, path: &str, words: impl Iterator<Item = &'n str>) {
        let mut seen = HashSet::new();
        for word in words {
            if !seen.insert(word) {
                self.problems
                    .add(path, format!("names \"{}\" twice", shown_value(word)));
            }
        }
    }
}
