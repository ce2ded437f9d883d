//! Tells the service manager (`sd_notify(3)`) that the daemon is ready, loads its configuration
//! again or stops. It also sends the daemon's state as a sentence, and the sign that the daemon is
//! alive.
//!
//! No caller waits for a service manager that does not read. What it must not miss is sent when it
//! reads again.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fmt::Write as _,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use sd_notify::NotifyState;
use tokio::sync::Notify;

use crate::{health::Health, plain::plain, status::Board};

/// Time between two checks whether the sentence has changed.
const ROUND: Duration = Duration::from_secs(5);
/// The watchdog is not fed more often than this.
const SHORTEST_ROUND: Duration = Duration::from_millis(10);
/// The most messages that wait for a service manager that does not read. The oldest message is
/// dropped first: if a start or a reload was not heard of, the newest message tells of it as well.
const MOST_UNTOLD: usize = 16;

/// The service manager that started the process, if it wants to be told. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServiceManager(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    /// The name of the service manager's socket.
    name: OsString,
    /// The service manager ends the process if it hears nothing for so long.
    watchdog: Option<Duration>,
    /// Whether the last message could not be sent. Only the first such failure in a row is logged.
    has_failed: AtomicBool,
    /// Wakes [`ServiceManager::attend`] when the daemon is ready.
    ready: Notify,
    /// Messages that wait, the oldest first: the service manager did not read when they came.
    untold: Mutex<VecDeque<String>>,
}

// === impl ServiceManager ===

impl ServiceManager {
    /// Returns the service manager that the environment names (`NOTIFY_SOCKET`, `WATCHDOG_USEC`).
    /// If the environment names none, nothing is sent to anybody.
    #[must_use]
    pub fn of_environment() -> Self {
        Self(std::env::var_os("NOTIFY_SOCKET").map(|name| {
            Arc::new(Inner {
                name,
                // As in sd_watchdog_enabled(3), a time of zero means that there is no watchdog.
                watchdog: sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero()),
                has_failed: AtomicBool::new(false),
                ready: Notify::new(),
                untold: Mutex::default(),
            })
        }))
    }

    /// Says that the daemon serves, or has loaded its configuration again.
    pub fn ready(&self) {
        self.tell(&[NotifyState::Ready]);
        if let Some(inner) = &self.0 {
            inner.ready.notify_one();
        }
    }

    /// Says that the daemon loads its configuration again; [`Self::ready`] follows.
    pub fn reloading(&self) {
        // Type=notify-reload requires the time.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "cannot read the monotonic clock"),
        }
    }

    /// Says that the daemon stops.
    pub fn stopping(&self) {
        let status = NotifyState::Status("stopping: delivering what is journalled");
        self.tell(&[NotifyState::Stopping, status]);
    }

    /// Sends the daemon's state when it changes, and feeds the watchdog for as long as every loop
    /// makes progress. It begins when the daemon is ready, because before that no search is known.
    /// Never returns; to be dropped when the daemon stops.
    pub async fn attend(self, health: Health, board: Board) {
        let Some(inner) = &self.0 else {
            return std::future::pending().await;
        };
        let round = round(inner.watchdog);
        let mut told = String::new();
        let mut was_alive = true;
        inner.ready.notified().await;
        loop {
            let status = summary(&board, &health);
            let hangs = health.overdue();
            let is_alive = hangs.is_empty();
            if let Some(first) = hangs
                .first()
                .filter(|_| was_alive && inner.watchdog.is_some())
            {
                tracing::error!(hangs = %first, "the watchdog is not fed any more");
            }
            was_alive = is_alive;
            if inner.tell_the_untold() {
                let news = (status != told).then_some(NotifyState::Status(&status));
                let alive = is_alive.then_some(NotifyState::Watchdog);
                let states: Vec<_> = news.into_iter().chain(alive).collect();
                if states.is_empty() || inner.send(&message(&states)).is_ok() {
                    told = status;
                }
            }
            // What a reload has changed is told at once.
            tokio::time::timeout(round, inner.ready.notified())
                .await
                .ok();
        }
    }

    /// Sends a message now, or as soon as the service manager reads.
    fn tell(&self, states: &[NotifyState<'_>]) {
        let Some(inner) = &self.0 else {
            return;
        };
        let mut untold = inner.untold.lock();
        if untold.len() == MOST_UNTOLD {
            untold.pop_front();
        }
        untold.push_back(message(states));
        drop(untold);
        inner.tell_the_untold();
    }
}

// === impl Inner ===

impl Inner {
    /// Sends the messages that wait. Returns whether none is left.
    fn tell_the_untold(&self) -> bool {
        let mut untold = self.untold.lock();
        while let Some(message) = untold.front() {
            match self.send(message) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                // If there is nobody to receive it, a message is dropped.
                _ => untold.pop_front(),
            };
        }
        true
    }

    /// Sends a message, unless the socket is full.
    fn send(&self, message: &str) -> io::Result<()> {
        let send = || {
            let socket = UnixDatagram::unbound()?;
            // A service manager that does not read must not hold up polling, reloads and the end.
            socket.set_nonblocking(true)?;
            socket.send_to_addr(message.as_bytes(), &address(&self.name)?)
        };
        match send() {
            Ok(_) => {
                self.has_failed.store(false, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => {
                if !self.has_failed.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "cannot tell the service manager how it goes (NOTIFY_SOCKET)");
                }
                Err(error)
            }
        }
    }
}

/// The address of the socket. A name that begins with `@` is not a path but an abstract name.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(name),
    }
}

/// A message with each state on a line of its own.
fn message(states: &[NotifyState<'_>]) -> String {
    states.iter().fold(String::new(), |mut message, state| {
        // Writing to a `String` cannot fail.
        writeln!(message, "{state}").ok();
        message
    })
}

/// Time between two reports: half of the watchdog's time, as `sd_watchdog_enabled(3)` advises.
fn round(watchdog: Option<Duration>) -> Duration {
    watchdog.map_or(ROUND, |patience| {
        (patience / 2).clamp(SHORTEST_ROUND, ROUND)
    })
}

/// The daemon's state in a sentence, which `systemctl status` shows.
fn summary(board: &Board, health: &Health) -> String {
    if let Some(obstacle) = health.obstacles().first() {
        return plain(&format!("waiting: {obstacle}"));
    }
    let searches = board.searches();
    let held = searches.iter().filter(|search| search.lease_held);
    let failing: Vec<_> = held
        .clone()
        .filter(|search| search.up == Some(false))
        .collect();
    let mut text = match held.count() {
        1 => "polling 1 search".to_owned(),
        count => format!("polling {count} searches"),
    };
    if let Some(first) = failing.first() {
        let reason = first
            .last_error
            .as_ref()
            .map_or("unknown", |error| error.reason);
        text.push_str(&format!(
            ", {} failing ({}: {reason})",
            failing.len(),
            first.key
        ));
    }
    for notice in health.notices() {
        text.push_str("; ");
        text.push_str(&notice);
    }
    // A line break would end the sentence and begin another message.
    plain(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_the_process_up_comes_before_what_it_does() {
        let (board, health) = (Board::default(), Health::default());
        assert_eq!(summary(&board, &health), "polling 0 searches");
        let _notice = health.notice("the journal is full");
        assert_eq!(
            summary(&board, &health),
            "polling 0 searches; the journal is full"
        );
        health.hold_up(
            "store",
            Some("the database\u{202e} is down:\nREADY=1".to_owned()),
        );
        assert_eq!(
            summary(&board, &health),
            "waiting: the database  is down: READY=1"
        );
    }

    #[test]
    fn a_watchdog_is_fed_twice_as_often_as_it_wants_but_not_without_end() {
        for (watchdog, expected) in [
            (None, 5_000),
            (Some(60_000_000), 5_000),
            (Some(100_000), 50),
            (Some(1), 10),
        ] {
            let expected = Duration::from_millis(expected);
            assert_eq!(round(watchdog.map(Duration::from_micros)), expected);
        }
    }

    #[test]
    fn a_name_that_begins_with_an_at_sign_is_an_abstract_one() {
        let address = |name| address(OsStr::new(name)).unwrap();
        assert_eq!(address("@a/b").as_abstract_name(), Some(&b"a/b"[..]));
        assert_eq!(address("/a/b").as_pathname(), Some("/a/b".as_ref()));
    }
}
