//! Tells the binary what it was built from.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-env-changed=OPSRAMP_EXPORTER_REVISION");
    println!("cargo::rerun-if-changed=build.rs");
    let revision = env::var("OPSRAMP_EXPORTER_REVISION")
        .ok()
        .filter(|revision| !revision.is_empty())
        .or_else(git_revision)
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=OPSRAMP_EXPORTER_BUILD_REVISION={revision}");

    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let rust_version = output(&rustc, &["--version"])
        .and_then(|version| version.split_whitespace().nth(1).map(str::to_owned))
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=OPSRAMP_EXPORTER_BUILD_RUST_VERSION={rust_version}");
}

/// The revision of a checkout; none in a source archive, even one that is unpacked inside of
/// somebody else's repository.
fn git_revision() -> Option<String> {
    if !Path::new(".git").exists() {
        return None;
    }
    // What changes whenever another revision is checked out or committed.
    if let Some(log) = output("git", &["rev-parse", "--git-path", "logs/HEAD"])
        && Path::new(&log).exists()
    {
        println!("cargo::rerun-if-changed={log}");
    }
    output("git", &["rev-parse", "--short", "HEAD"])
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
