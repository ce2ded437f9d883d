//! Threads that run futures: one each for the daemon and its web server.
//!
//! What takes long has threads of its own (the store, sinks, files, resolvers). So the scheduler
//! that moves futures between threads would gain nothing, and costs each process half a MiB.

use std::{io, time::Duration};

/// How long the end waits for threads that are still busy.
const LAST_THREADS: Duration = Duration::from_secs(1);

/// Runs something to its end on the calling thread.
///
/// # Errors
/// Where the system has nothing left to wait with.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(work);
    // Not for ever: a thread may be waiting for a resolver that does not answer.
    runtime.shutdown_timeout(LAST_THREADS);
    Ok(outcome)
}
