//! Figures: printed as they come, and as rows of a table for `docs/performance.md`.

#![allow(dead_code, reason = "each benchmark uses its own part")]

use std::{fmt::Write as _, fs::File, io::Write as _, path::PathBuf, time::Duration};

/// The variable that names the file to which the rows are appended.
const FILE: &str = "OPSRAMP_BENCH_REPORT";

/// Where a benchmark's rows go.
#[derive(Debug)]
pub(crate) struct Report(Option<File>);

/// The bound that a figure has to keep.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// At most so much.
    AtMost(f64),
    /// At least so much.
    AtLeast(f64),
}

/// Whether the short form was asked for: fewer and smaller rounds, for a first impression.
pub(crate) fn quick() -> bool {
    std::env::args().any(|argument| argument == "--quick")
}

/// Whether a part was asked for: it was named, or no part was.
pub(crate) fn wanted(part: &str) -> bool {
    let named: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .collect();
    named.is_empty() || named.iter().any(|name| name == part)
}

/// A new folder on the disk of the target folder, because `/tmp` may be in memory. The variable
/// names another place.
pub(crate) fn folder() -> tempfile::TempDir {
    let parent = std::env::var_os("OPSRAMP_BENCH_DIR")
        .map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
    tempfile::tempdir_in(parent).unwrap()
}

/// The quantile `part`, from 0 to 1. Sorts the values.
pub(crate) fn quantile(values: &mut [Duration], part: f64) -> Duration {
    values.sort_unstable();
    values[((values.len() - 1) as f64 * part).round() as usize]
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

// === impl Report ===

impl Report {
    pub(crate) fn new() -> Self {
        let file = std::env::var_os(FILE).map(|path| {
            let mut options = File::options();
            options.append(true).create(true).open(path).unwrap()
        });
        Self(file)
    }

    /// Adds a figure, and the bound that it has to keep.
    pub(crate) fn row(
        &mut self,
        what: &str,
        value: f64,
        unit: &str,
        goal: impl Into<Option<Goal>>,
    ) {
        let goal = goal.into();
        let shall = goal.map_or(String::new(), |goal| match goal {
            Goal::AtMost(bound) => format!("≤ {}{unit}", digits(bound)),
            Goal::AtLeast(bound) => format!("≥ {}{unit}", digits(bound)),
        });
        let holds = match goal {
            None => "",
            Some(Goal::AtMost(bound)) if value <= bound => "yes",
            Some(Goal::AtLeast(bound)) if value >= bound => "yes",
            Some(_) => "**no**",
        };
        self.line(what, &format!("{}{unit}", digits(value)), &shall, holds);
    }

    /// Adds a result that is no single figure.
    pub(crate) fn text(&mut self, what: &str, text: &str) {
        self.line(what, text, "", "");
    }

    fn line(&mut self, what: &str, figure: &str, shall: &str, holds: &str) {
        let mut line = format!("{what}: {figure}");
        if !shall.is_empty() {
            write!(line, " ({shall}: {holds})").unwrap();
        }
        println!("{line}");
        if let Some(file) = &mut self.0 {
            writeln!(file, "| {what} | {figure} | {shall} | {holds} |").unwrap();
        }
    }
}

/// Formats a number with its significant digits, in groups of three.
fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        value if value >= 100.0 || value == 0.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 => 2,
        _ => 3,
    };
    let plain = format!("{value:.decimals$}");
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    let fraction = fraction.trim_end_matches('0');
    let mut grouped = String::new();
    for (place, digit) in whole.chars().enumerate() {
        if place > 0 && (whole.len() - place) % 3 == 0 && digit.is_ascii_digit() {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if !fraction.is_empty() {
        grouped.push('.');
        grouped.push_str(fraction);
    }
    grouped
}
