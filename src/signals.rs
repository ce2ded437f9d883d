//! The signals that a process follows.

use std::{fs, io, time::Duration};

use rustix::process::Signal as Number;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};

/// Some programs send the same signal twice, to a process and to its group. A second one within
/// this time counts as the same signal.
const ECHO: Duration = Duration::from_secs(1);
/// A write would exceed the limit of a file's size (SIGXFSZ).
const FILE_SIZE: SignalKind = SignalKind::from_raw(Number::XFSZ.as_raw());

/// What the kernel tells of this process.
const STATUS: &str = "/proc/self/status";

/// What a signal tells the daemon to do.
pub(crate) enum Command {
    Stop(&'static str),
    Reload,
}

/// The signals that the daemon follows: TERM and INT stop it, HUP reloads.
#[derive(Debug)]
pub struct Signals {
    term: Signal,
    int: Signal,
    hup: Signal,
}

// === impl Signals ===

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// If the process cannot listen for signals.
    pub fn listen() -> io::Result<Self> {
        // Listening once replaces the default action for good. So a write beyond the limit fails
        // with an error, as on a full disk, where by default the process would be killed.
        drop(signal(FILE_SIZE)?);
        warn_of_blocked();
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal. Cancel safe.
    pub(crate) async fn next(&mut self) -> Command {
        tokio::select! {
            _ = self.term.recv() => Command::Stop("SIGTERM"),
            _ = self.int.recv() => Command::Stop("SIGINT"),
            _ = self.hup.recv() => Command::Reload,
        }
    }

    /// Waits for the next signal that stops the daemon. A signal that reloads is kept for later.
    pub async fn stop(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }

    /// Waits for another signal that stops the daemon after `first` did, and is not its mere
    /// repetition.
    pub(crate) async fn stop_at_once(&mut self, first: &str) -> &'static str {
        let begun = Instant::now();
        loop {
            let name = self.stop().await;
            if name != first || begun.elapsed() >= ECHO {
                return name;
            }
        }
    }
}

/// Warns of signals that never arrive because whoever started this process blocks them; a process
/// inherits that.
fn warn_of_blocked() {
    // Where there is no such file, nobody can tell.
    let names = blocked(&fs::read_to_string(STATUS).unwrap_or_default());
    if !names.is_empty() {
        tracing::warn!(
            "{} will not be noticed: the program that started the exporter blocks signals; start it by one that does \
             not (a stop needs SIGKILL otherwise, or POST /-/quit where that is enabled)",
            names.join(", ")
        );
    }
}

/// Returns which of the signals that the daemon follows are blocked, according to the text of
/// `/proc/PID/status` (its mask is hexadecimal, the lowest bit is signal 1: proc(5)).
fn blocked(status: &str) -> Vec<&'static str> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let is_blocked = |signal: Number| mask.unwrap_or_default() >> (signal.as_raw() - 1) & 1 == 1;
    let followed = [
        (Number::TERM, "SIGTERM"),
        (Number::INT, "SIGINT"),
        (Number::HUP, "SIGHUP"),
    ];
    let blocked = followed
        .into_iter()
        .filter(|(signal, _)| is_blocked(*signal));
    blocked.map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use rustix::process::{getpid, kill_process};

    use super::*;

    #[test]
    fn what_is_blocked_is_read_from_the_mask() {
        let status = |mask| format!("Name:\tx\nSigPnd:\tffff\nSigBlk:\t{mask}\nSigIgn:\tffff\n");
        assert_eq!(blocked(&status("0000000000004002")), ["SIGTERM", "SIGINT"]);
        assert_eq!(blocked(&status("fffffffe7ffbbeff")), ["SIGINT", "SIGHUP"]);
        assert!(blocked(&status("0000000000000000")).is_empty());
        assert!(blocked(&status("?")).is_empty());
        assert!(blocked("").is_empty());
    }

    /// One test only, because signals go to the whole process.
    #[tokio::test]
    async fn a_reload_is_kept_while_stops_are_waited_for_and_an_echo_is_no_second_stop() {
        let moment = Duration::from_millis(100);
        let mut signals = Signals::listen().unwrap();
        let send = |signal| kill_process(getpid(), signal).unwrap();
        send(Number::HUP);
        tokio::time::timeout(moment, signals.stop())
            .await
            .unwrap_err();
        assert!(matches!(signals.next().await, Command::Reload));

        send(Number::TERM);
        let echo = signals.stop_at_once("SIGTERM");
        tokio::time::timeout(moment, echo).await.unwrap_err();
        send(Number::INT);
        assert_eq!(signals.stop_at_once("SIGTERM").await, "SIGINT");
    }
}
