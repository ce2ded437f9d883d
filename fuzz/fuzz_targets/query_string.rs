//! Runs `opsramp_exporter::fuzzing::query_string` on whatever comes to mind.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| opsramp_exporter::fuzzing::query_string(data));
