//! Runs `opsramp_exporter::fuzzing::web_configuration` on whatever comes to mind.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| opsramp_exporter::fuzzing::web_configuration(data));
