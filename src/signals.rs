//! The signals that a process follows.

use std::{io, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};

/// Some programs send the same signal twice, to a process and to its group. A second one within
/// this time counts as the same signal.
const ECHO: Duration = Duration::from_secs(1);
/// A write would exceed the limit of a file's size (SIGXFSZ).
const FILE_SIZE: SignalKind = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());

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

#[cfg(test)]
mod tests {
    use rustix::process::{Signal as Number, getpid, kill_process};

    use super::*;

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
