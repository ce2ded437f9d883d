//! Runs `opsramp_exporter::fuzzing::search_answer` on the bytes that the fuzzer tries.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| opsramp_exporter::fuzzing::search_answer(data));
