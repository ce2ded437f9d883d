//! Files that are read beside everything else.

use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};

/// How long the files of the credentials, or of TLS, may take to be read.
pub(super) const LIMIT: Duration = Duration::from_secs(5);

/// Files can be pipes, or lie on a server that hangs: they are read off the thread, and those that
/// are not read in time are not asked for again before they are.
#[derive(Debug)]
pub(super) struct Reading<T>(tokio::sync::Mutex<Option<JoinHandle<T>>>);

// === impl Reading ===

impl<T> Default for Reading<T> {
    fn default() -> Self {
        Self(tokio::sync::Mutex::new(None))
    }
}

impl<T: Send + 'static> Reading<T> {
    /// What `read` brings, or what it brought that was not read in time before; `None` where that takes
    /// too long.
    pub(super) async fn of(&self, read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let mut reading = self.0.lock().await;
        let under_way = reading.get_or_insert_with(|| spawn_blocking(read));
        let read = tokio::time::timeout(LIMIT, under_way).await.ok()?;
        *reading = None;
        Some(read.unwrap_or_else(|panicked| std::panic::resume_unwind(panicked.into_panic())))
    }
}
