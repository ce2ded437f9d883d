//! Runs `opsramp_exporter::fuzzing::torn_file` on the bytes that the fuzzer tries.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| opsramp_exporter::fuzzing::torn_file(data));
