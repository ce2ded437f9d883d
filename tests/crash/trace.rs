//! The daemon under `strace`.

use std::ffi::OsStr;

use tokio::process::Command;

use crate::exporter::{Place, command};

/// The name of the trace's file in the folder.
pub(crate) const TRACE: &str = "trace";

/// Returns the command for the daemon under a tracer. The tracer is not its parent, so the process
/// is the daemon's own. Traced are `calls` about files with these `names` in the folder, or about
/// all files if there are no names.
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
