//! Threads that run futures: one for the daemon and one for its web server.
//!
//! Work that takes long has threads of its own (the store, sinks, files, resolvers). So a
//! scheduler that moves futures between threads would gain nothing, and would cost each process
//! half a MiB.

use std::{io, thread, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};

/// Maximum number of threads for blocking tasks where a crowd of clients must not take the threads
/// and the memory that others need. More tasks wait for their turn.
const FEW_THREADS: usize = 8;
/// Number of file descriptors without which a small set-up cannot start and poll.
const DESCRIPTORS_AT_LEAST: u64 = 24;
/// How long the end of a runtime waits for threads that are still busy.
const LAST_THREADS: Duration = Duration::from_secs(1);

/// Checks whether the system gives another thread. Where it gives none, tokio panics.
///
/// # Errors
/// If it gives none. The message says what to do.
pub(crate) fn check_threads() -> io::Result<()> {
    let thread = thread::Builder::new().spawn(|| ()).map_err(|error| {
        let problem = format!(
            "no thread can be started: {error}; raise TasksMax, the pids limit or ulimit -u; an old Docker \
             refuses clone3: update it"
        );
        io::Error::new(error.kind(), problem)
    })?;
    thread.join().ok();
    Ok(())
}

/// Raises the soft limit of file descriptors to the hard limit, and checks whether it suffices.
/// With an API that accepts connections and does not answer, many accounts and tenants hold more
/// than the usual soft limit, which is as low as 1024 only for the sake of `select(2)`. Where a
/// runtime gets none, tokio panics.
///
/// # Errors
/// If it does not suffice. The message says what to do.
pub(crate) fn claim_descriptors() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if raised != limit {
        // If this is refused, the soft limit has to do.
        setrlimit(Resource::Nofile, raised).ok();
    }
    match getrlimit(Resource::Nofile).current {
        Some(most) if most < DESCRIPTORS_AT_LEAST => Err(io::Error::other(format!(
            "the limit of open files is {most}, and at least {DESCRIPTORS_AT_LEAST} are needed; raise \
             LimitNOFILE, the container's ulimit or ulimit -n"
        ))),
        _ => Ok(()),
    }
}

/// Runs a future to its end on the calling thread.
///
/// # Errors
/// If the system has no resources left for a runtime.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> io::Result<T> {
    Ok(run(builder().build()?, work))
}

/// Like [`block_on`], but a thread for blocking tasks exists from the start to the end. A thread
/// that was to be started only when needed might not be available then: tokio panics, and the task
/// that the thread was meant for never releases what it holds.
///
/// # Errors
/// As [`block_on`] and [`check_threads`].
pub(crate) fn block_on_with_thread<T>(work: impl Future<Output = T>) -> io::Result<T> {
    run_with_thread(&mut builder(), work)
}

/// Like [`block_on_with_thread`], with no more than eight threads for blocking tasks.
///
/// # Errors
/// As [`block_on_with_thread`].
pub(crate) fn block_on_with_few_threads<T>(work: impl Future<Output = T>) -> io::Result<T> {
    run_with_thread(builder().max_blocking_threads(FEW_THREADS), work)
}

fn builder() -> Builder {
    let mut builder = Builder::new_current_thread();
    builder.enable_all().thread_name("blocking");
    builder
}

fn run_with_thread<T>(builder: &mut Builder, work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = builder.thread_keep_alive(Duration::MAX).build()?;
    check_threads()?;
    drop(runtime.spawn_blocking(|| ()));
    Ok(run(runtime, work))
}

fn run<T>(runtime: Runtime, work: impl Future<Output = T>) -> T {
    let outcome = runtime.block_on(work);
    // The wait is limited, because a thread may be waiting for a resolver that does not answer.
    runtime.shutdown_timeout(LAST_THREADS);
    outcome
}
