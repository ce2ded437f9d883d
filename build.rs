//! Tells the binary what it was built from, and the linker in which order functions are called.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

/// The functions that a daemon calls, made by the script beside it.
const FUNCTION_ORDER: &str = "packaging/function-order.txt";

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

    println!("cargo::rerun-if-changed={FUNCTION_ORDER}");
    println!("cargo::rerun-if-env-changed=OPSRAMP_EXPORTER_LINK_MAP");
    if let Ok(map) = env::var("OPSRAMP_EXPORTER_LINK_MAP") {
        println!("cargo::rustc-link-arg-bins=-Wl,--no-demangle,-Map={map}");
    }
    if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        order_functions(&rustc);
    }
}

/// Has the linker lay out side by side what a daemon calls, where it is one that can: that is a fifth of
/// its memory.
fn order_functions(rustc: &str) {
    let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let order = Path::new(&folder).join(FUNCTION_ORDER);
    if !order.exists() {
        return;
    }
    // Names of functions that are there no more are passed over in silence.
    let arguments = [
        format!("-Wl,--symbol-ordering-file={}", order.display()),
        "-Wl,--no-warn-symbol-ordering".to_owned(),
    ];
    if links(rustc, &arguments) {
        for argument in arguments {
            println!("cargo::rustc-link-arg-bins={argument}");
        }
    }
}

/// Whether a program can be linked with these arguments. Which linker it is, and what it knows, depends on the
/// target, on where the compiler comes from, and on the configuration. Cargo runs this script again when the
/// compiler, the linker or the flags change, wherever they are set.
fn links(rustc: &str, arguments: &[String]) -> bool {
    let variable = |name| env::var(name).unwrap_or_default();
    let mut command = Command::new(rustc);
    command.args(["--crate-name=probe", "--crate-type=bin"]);
    command.args(["--target", &variable("TARGET")]);
    command.args(["--out-dir", &variable("OUT_DIR")]);
    let flags = variable("CARGO_ENCODED_RUSTFLAGS");
    command.args(flags.split('\u{1f}').filter(|flag| !flag.is_empty()));
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        command.arg(format!("-Clinker={linker}"));
    }
    for argument in arguments {
        command.arg(format!("-Clink-arg={argument}"));
    }
    let source = Path::new(&variable("OUT_DIR")).join("probe.rs");
    let written = fs::write(&source, "fn main() {}\n");
    command
        .arg(source)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    written.is_ok() && command.status().is_ok_and(|status| status.success())
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
