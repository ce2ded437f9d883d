//! Reads files beside all other work: they can be pipes, or lie on a server that hangs.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Instant, timeout_at},
};

/// Time limit for reading files.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);

/// The most that a file may hold, in bytes.
const LARGEST_FILE: u64 = 4 << 20;

/// Where systemd puts the credentials of a service: only while the service runs, and only for it.
pub(crate) const CREDENTIALS: &str = "/run/credentials";

const BYTE_ORDER_MARK: char = '\u{feff}';

/// Reads files on another thread. A read that takes longer than [`LIMIT`] goes on in the
/// background, and callers are told `None` at once until it ends. After a pause, another read
/// begins beside it, because another file may be meant by then. The pause doubles each time, since
/// each read may keep a thread.
#[derive(Debug)]
pub(crate) struct Reading<T>(tokio::sync::Mutex<Option<UnderWay<T>>>);

#[derive(Debug)]
struct UnderWay<T> {
    until: Instant,
    /// How long after `until` another read begins.
    pause: Duration,
    read: JoinHandle<T>,
}

// === impl Reading ===

impl<T> Default for Reading<T> {
    fn default() -> Self {
        Self(tokio::sync::Mutex::new(None))
    }
}

impl<T: Send + 'static> Reading<T> {
    /// Returns the result of `read`, or that of an earlier read that took too long then; `None` if
    /// it is not there in time. Cancel safe.
    pub(crate) async fn read(&self, read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let mut reading = self.0.lock().await;
        if reading.is_some() {
            // tokio looks for a thread for waiting tasks only when another task is handed in. This
            // empty task makes it look again.
            drop(spawn_read(|| ()));
        }
        let pause = match &*reading {
            None => Some(LIMIT),
            Some(hangs) if Instant::now() >= hangs.until + hangs.pause => Some(hangs.pause * 2),
            Some(_) => None,
        };
        if let Some(pause) = pause {
            *reading = Some(UnderWay {
                until: Instant::now() + LIMIT,
                pause,
                read: spawn_read(read),
            });
        }
        let under_way = reading.as_mut()?;
        let read = timeout_at(under_way.until, &mut under_way.read)
            .await
            .ok()?;
        *reading = None;
        // A panic in the read has been reported.
        read.ok()
    }
}

/// The content of a file, at most 4 MiB: the path may be a link to a file that never ends.
pub(crate) fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is larger than 4 MiB",
        ));
    }
    Ok(bytes)
}

/// The text in a file, at most 4 MiB. A byte order mark is not part of it.
pub(crate) fn text(path: &Path) -> io::Result<String> {
    let mut text = String::from_utf8(bytes(path)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text"))?;
    if text.starts_with(BYTE_ORDER_MARK) {
        text.remove(0);
    }
    Ok(text)
}

/// Reads on another thread. If the system gives no thread, only the spawned task fails.
fn spawn_read<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(async {
        let done = spawn_blocking(read).await;
        done.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic()))
    })
}

/// The message about a file that cannot be read here because of `why`, but that [the exporter may
/// be able to read](is_for_exporter_alone).
pub(crate) fn left_to_exporter(why: &str) -> String {
    format!("{why}; whether it can be used shows when the exporter starts")
}

/// Whether the exporter may be able to read a file that cannot be read here: it may be another
/// user, or be handed the file only while it runs.
pub(crate) fn is_for_exporter_alone(path: &Path, error: &io::Error) -> bool {
    match error.kind() {
        io::ErrorKind::PermissionDenied => true,
        io::ErrorKind::NotFound => path.starts_with(CREDENTIALS),
        _ => false,
    }
}

/// The message about files that were not read in time.
pub(crate) fn unread(paths: &[PathBuf]) -> String {
    unread_within(LIMIT, paths)
}

/// Like `unread`, for files that had a time limit of their own.
pub(crate) fn unread_within(limit: Duration, paths: &[PathBuf]) -> String {
    let limit = limit.as_secs();
    format!("could not be read within {limit} s{}", named(paths))
}

/// Returns the names of files for the end of a message, with the colon before them.
pub(crate) fn named(paths: &[PathBuf]) -> String {
    if paths.is_empty() {
        return String::new();
    }
    let names: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    format!(": {}", names.join(", "))
}

/// Returns the result of `read`, which is called only once; `None` if it takes too long.
pub(crate) async fn once<T: Send + 'static>(
    read: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    Reading::default().read(read).await
}

/// Like `once`, but waits until `until` at the latest.
pub(crate) async fn once_until<T: Send + 'static>(
    until: Instant,
    read: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    timeout_at(until, once(read)).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Begins a read that ends only when the test sends its result.
    async fn begin(reading: &Reading<&'static str>) -> mpsc::Sender<&'static str> {
        let (come, comes) = mpsc::channel();
        let read = reading.read(move || comes.recv().unwrap());
        // The caller gives up at once and leaves the read to others.
        tokio::time::timeout(Duration::ZERO, read)
            .await
            .unwrap_err();
        come
    }

    async fn pass(time: Duration) {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }

    #[test]
    fn a_file_that_never_ends_is_not_read_to_its_end() {
        let error = bytes(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(error.to_string(), "it is larger than 4 MiB");
    }

    #[test]
    fn a_text_has_no_byte_order_mark_and_nothing_that_is_not_utf8() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        std::fs::write(&path, "\u{feff}a: 1\n").unwrap();
        assert_eq!(text(&path).unwrap(), "a: 1\n");
        std::fs::write(&path, b"a: \xff\n").unwrap();
        let error = text(&path).unwrap_err();
        assert_eq!(error.to_string(), "it is not UTF-8 text");
    }

    #[tokio::test]
    async fn what_is_not_read_in_time_is_told_at_once_from_then_on_and_not_asked_for_again() {
        let reading = Reading::default();
        let come = begin(&reading).await;
        pass(LIMIT).await;
        let began = Instant::now();
        assert_eq!(reading.read(|| "again").await, None);
        assert!(began.elapsed() < LIMIT / 2, "{:?}", began.elapsed());
        come.send("late").unwrap();
        while reading.read(|| "again").await.is_none() {
            tokio::task::yield_now().await;
        }
        assert_eq!(reading.read(|| "anew").await, Some("anew"));
    }

    #[tokio::test]
    async fn what_hangs_for_good_is_asked_for_again_at_growing_intervals() {
        let reading = Reading::default();
        let come = begin(&reading).await;
        pass(LIMIT * 2).await;
        let come_too = begin(&reading).await;
        pass(LIMIT * 2).await;
        assert_eq!(reading.read(|| "too soon").await, None);
        pass(LIMIT).await;
        assert_eq!(reading.read(|| "another file").await, Some("another file"));
        come.send("late").unwrap();
        come_too.send("late").unwrap();
    }

    #[tokio::test]
    async fn a_reading_that_panics_brings_nothing_and_the_next_begins_anew() {
        let reading = Reading::default();
        assert_eq!(reading.read(|| panic!("on purpose")).await, None);
        assert_eq!(reading.read(|| "read").await, Some("read"));
    }
}
