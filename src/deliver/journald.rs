//! systemd's journal, by its native protocol: one datagram an event, so that every key is a field
//! that `journalctl` can select by.
//!
//! A datagram counts as delivered once the kernel has taken it: journald gives no receipt, and
//! syncs to the disk at its own pace. An event that is too large for a datagram goes as a sealed
//! memory file. journald drops what a service sends beyond 10,000 messages in 30 s
//! (`RateLimitBurst=` in journald.conf), without telling the sender; so a long backlog is sent
//! more slowly than that.

use std::{
    fs::File,
    io::{self, IoSlice, Write as _},
    mem::MaybeUninit,
    os::{fd::AsFd as _, unix::net::UnixDatagram},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    io::Errno,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix},
};
use tokio::{sync::watch, time::Instant};

use crate::{
    record::{Level, Record, Value},
    store::Pending,
};

use super::{
    sink::{Progress, Refusal, Writer},
    worker::Order,
};

pub(crate) const SOCKET: &str = "/run/systemd/journal/socket";

/// The identifier that `journalctl -t` selects by.
const IDENTIFIER: &str = "opsramp-alert";

/// How long journald may keep its queue full before the try counts as failed. That is less than
/// [`LAST_DELIVERY`](super::LAST_DELIVERY), so that a stop hears of the messages before.
const SEND_TIMEOUT: Duration = Duration::from_secs(4);

/// The size of the send buffer that libsystemd asks for, too; the kernel grants what it allows.
const SEND_BUFFER: usize = 8 << 20;

/// Number of messages that may go out at once after a quiet time.
const BURST: f64 = 4500.0;

/// Number of messages a second after that: together 9,000 in any 30 s, which leaves a tenth of
/// journald's limit to the diagnostics of the same service.
const PER_SECOND: f64 = 150.0;

/// The largest message that journald takes from a sender that is not root: 32 MiB in recent
/// versions. journald drops a larger message without telling the sender.
const MAX_MESSAGE: usize = 32 << 20;

/// systemd's journal as a sink.
#[derive(Debug)]
pub(super) struct Journald {
    path: PathBuf,
    socket: Option<UnixDatagram>,
    pace: Pace,
    /// The message under way; kept for its allocation.
    message: Vec<u8>,
    /// The orders of the sink's worker.
    orders: watch::Receiver<Order>,
}

/// The limit on how many messages may go out.
#[derive(Debug)]
struct Pace {
    allowed: f64,
    at: Instant,
}

/// journald could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket to write to.
    #[error("cannot create a socket")]
    Socket(#[source] io::Error),
    /// Nobody listens there.
    #[error("cannot reach journald at {}; is systemd-journald running?", path.display())]
    Absent {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// journald did not take the message.
    #[error("cannot send to journald at {}", path.display())]
    Send {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

// === impl Journald ===

impl Journald {
    pub(super) fn new() -> Self {
        Self::at(Path::new(SOCKET))
    }

    fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            socket: None,
            pace: Pace::new(Instant::now()),
            message: Vec::new(),
            orders: watch::channel(Order::Work).1,
        }
    }

    /// Sets where to read whether a delivery has to end early.
    pub(super) fn with_orders(mut self, orders: watch::Receiver<Order>) -> Self {
        self.orders = orders;
        self
    }

    /// Sends the message under way.
    fn send(&mut self) -> Result<(), Error> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => self.socket.insert(open_socket().map_err(Error::Socket)?),
        };
        send(socket, &self.path, &self.message).map_err(|source| {
            let path = self.path.clone();
            match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    Error::Absent { path, source }
                }
                _ => Error::Send { path, source },
            }
        })
    }
}

impl Writer for Journald {
    fn wait(&mut self, events: usize) {
        self.pace.wait(events);
    }

    fn deliver(&mut self, events: &[Pending]) -> Progress {
        let mut progress = Progress::default();
        let allowed = self.pace.allowed(Instant::now());
        for Pending { event, .. } in events.iter().take(allowed) {
            if self.orders.borrow().is_to_leave() {
                break;
            }
            match Record::from_json(&event.body) {
                Ok(record) => {
                    self.message.clear();
                    push_message(&mut self.message, &record);
                    if self.message.len() > MAX_MESSAGE {
                        let why = format!(
                            "it has {} bytes, and journald takes no more than {MAX_MESSAGE}",
                            self.message.len()
                        );
                        progress.refused.push(Refusal::of(event.event_id, why));
                        self.message = Vec::new();
                    } else if let Err(error) = self.send() {
                        progress.error = Some(error.into());
                        break;
                    } else {
                        self.pace.allowed -= 1.0;
                    }
                }
                Err(error) => progress
                    .refused
                    .push(Refusal::unreadable(event.event_id, &error)),
            }
            progress.settled += 1;
        }
        progress
    }
}

fn open_socket() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    // Without a larger buffer, more events go as memory files, which works as well.
    if rustix::net::sockopt::set_socket_send_buffer_size_force(&socket, SEND_BUFFER).is_err()
        && let Err(error) = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER)
    {
        tracing::debug!(%error, "journald's socket keeps its small buffer");
    }
    Ok(socket)
}

fn send(socket: &UnixDatagram, path: &Path, message: &[u8]) -> io::Result<()> {
    loop {
        match socket.send_to(message, path) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return match Errno::from_io_error(&error) {
                    Some(Errno::MSGSIZE | Errno::NOBUFS) => send_as_file(socket, path, message),
                    _ => Err(error),
                };
            }
        }
    }
}

/// Sends a message as a memory file, sealed so that journald can rely on its content.
fn send_as_file(socket: &UnixDatagram, path: &Path, message: &[u8]) -> io::Result<()> {
    let mut file = File::from(rustix::fs::memfd_create(
        IDENTIFIER,
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?);
    file.write_all(message)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;

    let address = SocketAddrUnix::new(path)?;
    let descriptors = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    loop {
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        match rustix::net::sendmsg_addr(
            socket,
            &address,
            &[IoSlice::new(&[])],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Appends a record in the native protocol's form.
fn push_message(out: &mut Vec<u8>, record: &Record<'_>) {
    let message = record.fields.message.as_deref().unwrap_or_default();
    push_field(out, "MESSAGE", message.as_bytes());
    let priority = match record.level() {
        Level::Critical => "2",
        Level::Warning => "4",
        Level::Unknown => "5",
        Level::Info => "6",
    };
    push_field(out, "PRIORITY", priority.as_bytes());
    push_field(out, "SYSLOG_IDENTIFIER", IDENTIFIER.as_bytes());
    record.visit(|key, value| {
        if key == "message" {
            return;
        }
        let name = format!("OPSRAMP_{}", key.to_ascii_uppercase());
        match value {
            Value::Text(text) => push_field(out, &name, text.as_bytes()),
            Value::Number(number) => push_field(out, &name, number.to_string().as_bytes()),
            Value::Json(raw) => push_field(out, &name, raw.get().as_bytes()),
        }
    });
}

fn push_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        // Because the length comes first, no text can pass for another field.
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value);
    out.push(b'\n');
}

// === impl Pace ===

impl Pace {
    /// Allows nothing at first: a new process does not know what the former one has sent.
    fn new(now: Instant) -> Self {
        Self {
            allowed: 0.0,
            at: now,
        }
    }

    /// How many messages may go out now.
    fn allowed(&mut self, now: Instant) -> usize {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.allowed = (self.allowed + passed * PER_SECOND).min(BURST);
        self.at = now;
        self.allowed as usize
    }

    /// Waits until `messages` messages may go out, but no longer than a second. The wait makes
    /// deliveries larger, because each costs a look at the journal and an acknowledgement, however
    /// little it brings.
    fn wait(&mut self, messages: usize) {
        let wanted = messages.min(PER_SECOND as usize);
        while self.allowed(Instant::now()) < wanted {
            let missing = wanted as f64 - self.allowed;
            std::thread::sleep(Duration::from_secs_f64(missing / PER_SECOND));
        }
    }
}

#[cfg(test)]
mod tests;
