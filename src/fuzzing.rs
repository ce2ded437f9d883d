//! What must hold for any bytes that come from outside. There is a function for each kind of
//! input, which panics if something does not hold.
//!
//! The fuzzers (`fuzz/`) search for bytes that make a function panic. The tests below replay their
//! corpora and findings through the same functions. Only fuzzers and tests see this module: it is
//! no part of the library.

pub use crate::{
    config::fuzzing::{configuration, web_configuration},
    deliver::torn_file,
    opsramp::fuzzing::token_answer,
    poll::fuzzing::{query_string, search_answer},
};

use tempfile::TempDir;

/// A supply of choices, made from bytes. When the bytes run out, every choice is the first one.
#[derive(Debug)]
pub(crate) struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns a number below `end`, which is at most 256.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        match self.0.split_off_first() {
            Some(&byte) => usize::from(byte) % end,
            None => 0,
        }
    }

    /// Returns the next `length` bytes, or as many as there are.
    pub(crate) fn take(&mut self, length: usize) -> &'a [u8] {
        let length = length.min(self.0.len());
        self.0.split_off(..length).unwrap_or_default()
    }
}

/// Creates a folder that is removed when it is dropped. It is in memory if there is such a disk,
/// so that a sync costs nothing.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("there is room for a folder")
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Replays every input of a target. The inputs are in the folder with the target's name.
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
