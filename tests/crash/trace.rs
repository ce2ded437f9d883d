//! The daemon under `strace`.

use std::ffi::OsStr;

use tokio::process::Command;

use crate::exporter::{Place, command};

/// Where the trace is written, in the folder.
pub(crate) const TRACE: &str = "trace";

/// The daemon under a tracer that is nobody's parent: the process is ours, as without it. Traced
/// are `calls` about files with these `names` in the folder, or all where none is named.
pub(crate) fn traced(
    place: &Place,
    names: &[&str],
    calls: &[&str],
    options: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Command {
    let mut command = command("strace");
    command
        .args(["-D", "-f", "-q", "-o"])
        .arg(place.path(TRACE));
    for name in names {
        command.arg("-P").arg(place.path(name));
    }
    command.args(["-e", &format!("trace={}", calls.join(","))]);
    command.args(options);
    let daemon = place.command();
    let daemon = daemon.as_std();
    command.arg(daemon.get_program()).args(daemon.get_args());
    place.settle(command)
}
