//! What must hold for any bytes that come from outside: one function for each kind of input,
//! which panics where something does not hold.
//!
//! The fuzzers (`fuzz/`) search for bytes that make one panic; the tests below replay their
//! corpora, and whatever they found, through the same functions. Only the two of them see this
//! module: it is no part of the library.

pub use crate::{
    config::fuzzing::{configuration, web_configuration},
    deliver::torn_file,
    opsramp::fuzzing::token_answer,
    poll::fuzzing::{query_string, search_answer},
};

use tempfile::TempDir;

/// Bytes as a supply of choices. When they run out, every choice is the first one.
#[derive(Debug)]
pub(crate) struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A number below `end`, which is at most 256.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        match self.0.split_off_first() {
            Some(&byte) => usize::from(byte) % end,
            None => 0,
        }
    }

    /// The next bytes, as many as there are.
    pub(crate) fn take(&mut self, length: usize) -> &'a [u8] {
        let length = length.min(self.0.len());
        self.0.split_off(..length).unwrap_or_default()
    }
}

/// A folder that is gone afterwards; in memory where there is such a disk, so that a sync costs
/// nothing.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("there is room for a folder")
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Replays every input of a target; they are in the folder that has its name.
    fn replay(target: &str, run: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(target);
        let mut inputs = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let data = fs::read(&path).unwrap();
            let outcome = std::panic::catch_unwind(|| run(&data));
            assert!(outcome.is_ok(), "{} does what it must not", path.display());
            inputs += 1;
        }
        assert!(inputs > 0, "{} is empty", folder.display());
    }

    #[test]
    fn search_answers_that_fuzzing_found_do_no_harm() {
        replay("search_answer", search_answer);
    }

    #[test]
    fn token_answers_that_fuzzing_found_do_no_harm() {
        replay("token_answer", token_answer);
    }

    #[test]
    fn query_strings_that_fuzzing_found_do_no_harm() {
        replay("query_string", query_string);
    }

    #[test]
    fn configurations_that_fuzzing_found_do_no_harm() {
        replay("configuration", configuration);
    }

    #[test]
    fn web_configurations_that_fuzzing_found_do_no_harm() {
        replay("web_configuration", web_configuration);
    }

    #[test]
    fn torn_files_that_fuzzing_found_do_no_harm() {
        replay("torn_file", torn_file);
    }
}
