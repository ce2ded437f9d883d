//! Threads that run futures: one each for the daemon and its web server.
//!
//! What takes long has threads of its own (the store, sinks, files, resolvers). So the scheduler
//! that moves futures between threads would gain nothing, and costs each process half a MiB.

use std::{io, time::Duration};

use tokio::runtime::{Builder, Runtime};

/// Threads for what blocks, of a runtime that keeps them. More tasks wait for their turn: a crowd
/// of clients shall not take the threads, and their memory, that others need.
const KEPT_THREADS: usize = 8;
/// How long the end waits for threads that are still busy.
const LAST_THREADS: Duration = Duration::from_secs(1);

/// Runs something to its end on the calling thread.
///
/// # Errors
/// Where the system has nothing left to wait with.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> io::Result<T> {
    Ok(run(builder().build()?, work))
}

/// As [`block_on`]; and there is a thread for what blocks from the start to the end. One that was to
/// be started when it is needed might not be had then: tokio panics, and what the thread was to do
/// keeps what it holds.
///
/// # Errors
/// As [`block_on`].
///
/// # Panics
/// Where the system gives no thread.
pub(crate) fn block_on_with_thread<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = builder()
        .max_blocking_threads(KEPT_THREADS)
        .thread_keep_alive(Duration::MAX)
        .build()?;
    drop(runtime.spawn_blocking(|| ()));
    Ok(run(runtime, work))
}

fn builder() -> Builder {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().thread_name("blocking");
    builder
}

fn run<T>(runtime: Runtime, work: impl Future<Output = T>) -> T {
    let outcome = runtime.block_on(work);
    // Not for ever: a thread may be waiting for a resolver that does not answer.
    runtime.shutdown_timeout(LAST_THREADS);
    outcome
}
