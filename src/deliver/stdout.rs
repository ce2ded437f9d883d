//! Standard output: whole lines, written with `write(2)` until the last byte is out.
//!
//! Rust's own `stdout` has a buffer, in which a line could be lost or written twice. Here, an
//! error says exactly which bytes are out. Delivery is at least once: a reader that goes away may
//! not have seen the last lines. If a former process may have left a torn line in the pipe, a line
//! break is written first, because the next line would otherwise be joined to the torn one and
//! lost. Several sinks may share standard output, one batch at a time.

use std::{
    fs::File,
    io::{self, IsTerminal as _},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    os::unix::fs::FileExt as _,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use rustix::{
    event::{PollFd, PollFlags},
    fs::{FileType, major, minor},
    io::Errno,
};
use tokio::sync::watch;

use crate::store::{Past, Pending};

use super::{
    Format,
    format::Lines,
    sink::{Progress, Writer},
    worker::Order,
};

/// How a mark of standard output begins; the mark of a file begins otherwise.
const MARK: &[u8] = b"stdout ";

/// Number of bytes that are written at once, unless a single line is longer. A stop waits for no
/// more than that.
const PIECE: usize = 4 << 10;

/// Standard output as a sink.
#[derive(Debug)]
pub(super) struct Stdout {
    output: Arc<Mutex<Output>>,
    format: Format,
    /// Tells sinks that share an output apart.
    sink_id: u64,
    /// Events up to this position were journalled before the process began.
    journal_end: i64,
    /// Whether replicas share the searches. The waiting events then come search by search, perhaps
    /// behind newer events.
    is_shared: bool,
    /// The mark of the output that the store has for this sink.
    mark: Option<Vec<u8>>,
    former_output: FormerOutput,
    /// The orders of the sink's worker.
    orders: watch::Receiver<Order>,
}

/// Where this sink wrote to in the former process, according to its mark. Readers skip an empty
/// line, but none is written without need: the mark shows that a pipe is new, as it is in most
/// places after every start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FormerOutput {
    /// To the present output.
    Here,
    /// To another pipe or nowhere, so the present one is new.
    Elsewhere,
    /// Unknown: the sink has had another name or another target since, so its mark is lost. The
    /// pipe may be the same.
    Unknown,
}

/// A file descriptor that lines are written to, and how its last line ended.
#[derive(Debug)]
pub(super) struct Output {
    fd: OwnedFd,
    /// What distinguishes this output from the one that the next process is given.
    mark: Vec<u8>,
    /// Whether this is a pipe that held something before this process wrote to it. It is not new
    /// then, whatever the marks say.
    is_used: bool,
    end: End,
}

#[derive(Debug)]
enum End {
    /// This process has written nothing yet.
    Unknown,
    /// The last line ended with a line break.
    Whole,
    /// The last line broke off after `written` bytes of the line of the event at `position`.
    Torn {
        sink_id: u64,
        position: i64,
        written: usize,
    },
}

/// Standard output could not be written to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody will ever read from it again.
    #[error("standard output is closed")]
    Closed(#[source] io::Error),
    /// It may work again later.
    #[error("cannot write to standard output")]
    Write(#[source] io::Error),
}

// === impl Stdout ===

impl Stdout {
    /// The process's own standard output.
    pub(super) fn of_process(format: Format) -> Result<Self, Error> {
        static OUTPUT: LazyLock<io::Result<Arc<Mutex<Output>>>> = LazyLock::new(|| {
            let fd = io::stdout().as_fd().try_clone_to_owned()?;
            if is_null_device(&fd) {
                tracing::warn!(
                    "standard output is closed or leads to /dev/null: nobody sees the alert lines \
                     of a sink of type stdout, and they count as delivered"
                );
            }
            Ok(Arc::new(Mutex::new(Output::new(fd))))
        });
        match &*OUTPUT {
            Ok(output) => Ok(Self::new(Arc::clone(output), format)),
            Err(error) => Err(Error::Closed(io::Error::new(
                error.kind(),
                error.to_string(),
            ))),
        }
    }

    pub(super) fn new(output: Arc<Mutex<Output>>, format: Format) -> Self {
        static NEXT_SINK_ID: AtomicU64 = AtomicU64::new(0);
        Self {
            output,
            format,
            sink_id: NEXT_SINK_ID.fetch_add(1, Ordering::Relaxed),
            journal_end: 0,
            is_shared: false,
            mark: None,
            former_output: FormerOutput::Here,
            orders: watch::channel(Order::Work).1,
        }
    }

    /// Sets the mark that a former process left, and the position up to which that process may
    /// have been given the events.
    pub(super) fn resume_at(mut self, mark: Option<&[u8]>, journal_end: i64) -> Self {
        self.mark = mark.map(Into::into);
        self.journal_end = journal_end;
        self
    }

    /// Sets where to read whether a delivery has to end early.
    pub(super) fn with_orders(mut self, orders: watch::Receiver<Order>) -> Self {
        self.orders = orders;
        self
    }
}

impl Writer for Stdout {
    fn deliver(&mut self, events: &[Pending]) -> Progress {
        let here = self.output.lock().mark.clone();
        if self.mark.as_ref() != Some(&here) {
            self.former_output = match &self.mark {
                Some(mark) if mark.starts_with(MARK) => FormerOutput::Elsewhere,
                // Nothing was ever journalled, or this replica is new, as is every replica whose
                // name changes with each start.
                None if self.journal_end == 0 || self.is_shared => FormerOutput::Elsewhere,
                _ => FormerOutput::Unknown,
            };
            // The store has to know this output before a line can be left torn in it.
            self.mark = Some(here.clone());
            return Progress {
                mark: Some(here),
                ..Progress::default()
            };
        }
        let waited = events
            .first()
            .is_some_and(|first| first.position <= self.journal_end);
        let may_be_torn = match self.former_output {
            // If the former process left a line torn, the event of that line is the first to be
            // written now.
            FormerOutput::Here => waited || self.is_shared,
            FormerOutput::Elsewhere => false,
            FormerOutput::Unknown => true,
        };
        let mut lines = Lines::render(self.format, events);
        let mut output = self.output.lock();
        let to_stop = || self.orders.borrow().is_to_leave();
        let (settled, result) = output.write(self.sink_id, events, &lines, may_be_torn, to_stop);
        Progress {
            settled,
            refused: lines.refused_among(settled),
            mark: Some(here),
            error: result.err().map(Into::into),
            ..Progress::default()
        }
    }

    fn note_past(&mut self, _past: Past) {
        self.is_shared = true;
    }
}

// === impl Output ===

impl Output {
    pub(super) fn new(fd: OwnedFd) -> Self {
        let mark = rustix::fs::fstat(&fd).map_or_else(
            |_| Vec::new(),
            |stat| [MARK, format!("{}:{}", stat.st_dev, stat.st_ino).as_bytes()].concat(),
        );
        let is_used = holds_something(&fd);
        Self {
            fd,
            mark,
            is_used,
            end: End::Unknown,
        }
    }

    /// Writes lines, until it is `to_stop`. Returns how many are out, and the error if that is why
    /// the rest is not. `may_be_torn` says that a former process may have left a torn line at the
    /// end of the output.
    fn write(
        &mut self,
        sink_id: u64,
        events: &[Pending],
        lines: &Lines,
        may_be_torn: bool,
        to_stop: impl Fn() -> bool,
    ) -> (usize, Result<(), Error>) {
        let first = events.first().map(|event| event.position);
        let mut written = 0;
        let break_line = match self.end {
            End::Whole => false,
            End::Unknown => ends_torn(&self.fd).unwrap_or(may_be_torn || self.is_used),
            End::Torn {
                sink_id: torn_by,
                position,
                written: already,
            } => {
                let goes_on = torn_by == sink_id && Some(position) == first;
                if goes_on {
                    written = already;
                }
                !goes_on
            }
        };
        if break_line && let Err(error) = write_all(&self.fd, b"\n", &mut 0) {
            return (0, Err(Error::of(error, &self.fd)));
        }
        let result = self.write_lines(lines, &mut written, to_stop);
        let whole = lines.whole_within(written);
        self.end = match events.get(whole) {
            Some(torn) if written > lines.start(whole) => End::Torn {
                sink_id,
                position: torn.position,
                written: written - lines.start(whole),
            },
            _ => End::Whole,
        };
        (whole, result.map_err(|error| Error::of(error, &self.fd)))
    }

    /// Writes lines from the offset `written` on, some whole lines at a time, until it is
    /// `to_stop`. Adds the bytes that are out to `written`.
    fn write_lines(
        &self,
        lines: &Lines,
        written: &mut usize,
        to_stop: impl Fn() -> bool,
    ) -> Result<(), Errno> {
        while *written < lines.bytes().len() && !to_stop() {
            let at_least = lines.whole_within(*written) + 1;
            let whole = lines.whole_within(*written + PIECE).max(at_least);
            write_all(&self.fd, &lines.bytes()[..lines.start(whole)], written)?;
        }
        Ok(())
    }
}

/// Writes `bytes` from the offset `written` on, and adds the bytes that are out to `written`.
fn write_all(fd: &OwnedFd, bytes: &[u8], written: &mut usize) -> Result<(), Errno> {
    while *written < bytes.len() {
        match rustix::io::write(fd, &bytes[*written..]) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => *written += count,
            Err(Errno::INTR) => {}
            // Another process may have made the pipe non-blocking.
            Err(Errno::AGAIN) => {
                match rustix::event::poll(&mut [PollFd::new(fd, PollFlags::OUT)], None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether the output is `/dev/null`, where everything vanishes. A standard output that was closed
/// at the start looks the same: Rust's runtime opens `/dev/null` in its place, lest a file that is
/// opened later get its number.
fn is_null_device(fd: &OwnedFd) -> bool {
    let Ok(stat) = rustix::fs::fstat(fd) else {
        return false;
    };
    // The device number is Linux's own, the same on every machine.
    FileType::from_raw_mode(stat.st_mode).is_char_device()
        && (major(stat.st_rdev), minor(stat.st_rdev)) == (1, 3)
}

/// Whether the output is a pipe with bytes that nobody has read yet.
fn holds_something(fd: &OwnedFd) -> bool {
    // On a terminal, the same call counts what somebody types.
    let is_pipe = rustix::fs::fstat(fd)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
    is_pipe && rustix::io::ioctl_fionread(fd).is_ok_and(|bytes| bytes > 0)
}

/// Whether a regular file ends in the middle of a line, left by a former process. Returns `None`
/// if the output is no regular file (the end of a pipe cannot be seen), or if it cannot be read.
fn ends_torn(fd: &OwnedFd) -> Option<bool> {
    let stat = rustix::fs::fstat(fd).ok()?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return None;
    }
    let Some(last_at) = stat.st_size.unsigned_abs().checked_sub(1) else {
        return Some(false);
    };
    // The descriptor itself is open for writing only.
    let file = File::open(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
    let mut last = [0];
    file.read_exact_at(&mut last, last_at).ok()?;
    Some(last != *b"\n")
}

// === impl Error ===

impl Error {
    fn of(error: Errno, fd: &OwnedFd) -> Self {
        match error {
            Errno::PIPE | Errno::BADF | Errno::CONNRESET => Self::Closed(error.into()),
            // A terminal that hung up does not come back; a disk may.
            Errno::IO if fd.is_terminal() => Self::Closed(error.into()),
            _ => Self::Write(error.into()),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self, Self::Closed(_))
    }
}

#[cfg(test)]
mod tests;
