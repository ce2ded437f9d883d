//! Runs `opsramp_exporter::fuzzing::web_configuration` on the bytes that the fuzzer tries.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| opsramp_exporter::fuzzing::web_configuration(data));
