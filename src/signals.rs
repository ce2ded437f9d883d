//! The signals that a process follows.

use std::{io, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::Instant,
};

/// Some send the same signal twice, to a process and its group. That means once.
const ECHO: Duration = Duration::from_secs(1);
/// A file would exceed the limit of files' sizes.
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
    /// Where the process cannot.
    pub fn listen() -> io::Result<Self> {
        // Listening once replaces the default for good: whoever writes is told, as of a full disk,
        // where the process would be killed.
        drop(signal(FILE_SIZE)?);
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal. Cancel safe.
    pub(crate) async fn next(&mut self) -> Command {
        tokio::select! {
            _ = self.term.recv() => Command::Stop("SIGTERM"),
            _ = self.int.recv() => Command::Stop("SIGINT"),
            _ = self.hup.recv() => Command::Reload,
        }
    }

    /// The next signal that stops the daemon. One that reloads is kept for later.
    pub async fn stop(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }

    /// The next one that stops it after `first` has, and does not merely repeat that.
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

    /// One test, for signals are for the whole process.
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
