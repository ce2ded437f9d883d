//! The results of criterion, from which ratios are made.

use std::{path::PathBuf, time::Duration};

use criterion::Criterion;
use serde_json::Value;

/// Criterion as the command line asks for it, with its files where [`median`] looks for them.
pub(crate) fn criterion() -> Criterion {
    Criterion::default()
        .without_plots()
        .output_directory(&folder())
        .configure_from_args()
}

/// The median of a benchmark that has just been run.
pub(crate) fn median(group: &str, name: &str) -> Duration {
    let path = folder().join(group).join(name).join("new/estimates.json");
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let estimates: Value = serde_json::from_str(&text).unwrap();
    let nanoseconds = estimates["median"]["point_estimate"].as_f64().unwrap();
    Duration::from_secs_f64(nanoseconds / 1e9)
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("criterion")
}
