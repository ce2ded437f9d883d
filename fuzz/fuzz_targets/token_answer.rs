//! Runs `opsramp_exporter::fuzzing::token_answer` on the bytes that the fuzzer tries.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| opsramp_exporter::fuzzing::token_answer(data));
