//! What protects the server now, and the changes of it.
//!
//! Whoever renews a certificate or changes a password only writes the file. So files are read again
//! when somebody connects or asks, once a second at most, and compared by what they hold: that
//! needs no notice from the file system, works with whatever replaces files, and costs an idle
//! server nothing. What cannot be used changes nothing.

use std::{fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Security;

/// What was read is good for so long.
const FRESH: Duration = Duration::from_secs(1);

/// A disk that does not answer holds nobody up for longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Reads what protects the server; the same one again while nothing has changed. The error is for
/// people.
pub type LoadSecurity = Box<dyn FnMut() -> Result<Arc<Security>, String> + Send>;

/// Holds the [`Security`] in force. Cheap to clone.
#[derive(Clone)]
pub struct Guard {
    state: Arc<Mutex<State>>,
    load: Option<Arc<Mutex<LoadSecurity>>>,
}

struct State {
    security: Arc<Security>,
    /// When it was last looked for changes.
    looked: Instant,
    /// Why the files cannot be used at present.
    problem: Option<String>,
}

// === impl Guard ===

impl Guard {
    /// No TLS, no passwords, for good.
    #[must_use]
    pub fn open() -> Self {
        Self::new(Arc::new(Security::none()), None)
    }

    /// Begins with `security`, and has it loaded again.
    #[must_use]
    pub fn watching(security: Arc<Security>, load: LoadSecurity) -> Self {
        Self::new(security, Some(Arc::new(Mutex::new(load))))
    }

    fn new(security: Arc<Security>, load: Option<Arc<Mutex<LoadSecurity>>>) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                security,
                looked: Instant::now(),
                problem: None,
            })),
            load,
        }
    }

    /// The one in force, from files that were read a second ago at most.
    pub(in crate::web) async fn current(&self) -> Arc<Security> {
        if let Some(load) = self.load.as_ref().filter(|_| self.is_due()) {
            let (guard, load) = (self.clone(), Arc::clone(load));
            let look = tokio::task::spawn_blocking(move || guard.look(&load));
            // A panic in it has been reported; a disk that hangs may answer later.
            if tokio::time::timeout(PATIENCE, look).await.is_err() {
                self.state
                    .lock()
                    .report(format!("not read within {} s", PATIENCE.as_secs()));
            }
        }
        Arc::clone(&self.state.lock().security)
    }

    /// Whether it is time to look, which the one who asks is then to do.
    fn is_due(&self) -> bool {
        let mut state = self.state.lock();
        let due = state.looked.elapsed() >= FRESH;
        if due {
            state.looked = Instant::now();
        }
        due
    }

    fn look(&self, load: &Mutex<LoadSecurity>) {
        // While one still waits for a disk, others need not.
        let Some(mut load) = load.try_lock() else {
            return;
        };
        let loaded = load();
        let mut state = self.state.lock();
        match loaded.and_then(|new| no_weaker(new, &state.security)) {
            Ok(new) => {
                let changed = !Arc::ptr_eq(&new, &state.security);
                if changed || state.problem.take().is_some() {
                    tracing::info!("the web configuration and its certificates were read again");
                }
                state.security = new;
                state.problem = None;
            }
            Err(problem) => state.report(problem),
        }
    }
}

// === impl State ===

impl State {
    /// Tells what is wrong with the files, each time that it is found: the diagnostics know when it has
    /// to be printed again, also after they have said that the files were read.
    fn report(&mut self, problem: String) {
        tracing::error!(
            error = %problem,
            "the web configuration cannot be used; the one before stays in force"
        );
        self.problem = Some(problem);
    }
}

fn no_weaker(new: Arc<Security>, before: &Security) -> Result<Arc<Security>, String> {
    match new.lacks(before) {
        None => Ok(new),
        Some(lost) => Err(format!(
            "it no longer has {lost}; to do without takes a restart"
        )),
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::logging::captured;

    #[tokio::test(start_paused = true)]
    async fn that_files_were_read_is_not_the_last_word_while_they_cannot_be_used() {
        let wrong = |problem: &str| Err(problem.to_owned());
        let mut files = [wrong("no key"), Ok(Arc::new(Security::none()))].into_iter();
        let load = move || files.next().unwrap_or_else(|| wrong("no key"));
        let guard = Guard::watching(Arc::new(Security::none()), Box::new(load));
        let load = Arc::clone(guard.load.as_ref().unwrap());
        let (lines, _logging) = captured();
        for _ in 0..80 {
            guard.look(&load);
            tokio::time::advance(FRESH).await;
        }
        let lines = lines.lock();
        let told: Vec<_> = lines
            .iter()
            .map(|line| (line.contains("no key"), line.contains(" repeated=")))
            .collect();
        assert_eq!(told, [(true, false), (false, false), (true, true)]);
    }

    #[tokio::test(start_paused = true)]
    async fn files_are_read_again_after_a_reading_that_panicked() {
        let new = Arc::new(Security::none());
        let (read, mut panics) = (Arc::clone(&new), true);
        let load = move || {
            assert!(!std::mem::take(&mut panics), "on purpose");
            Ok(Arc::clone(&read))
        };
        let guard = Guard::watching(Arc::new(Security::none()), Box::new(load));
        for is_new in [false, true] {
            tokio::time::advance(FRESH).await;
            assert_eq!(Arc::ptr_eq(&guard.current().await, &new), is_new);
        }
    }

    #[tokio::test]
    async fn files_that_do_not_answer_are_told_and_read_when_they_do() {
        let new = Arc::new(Security::none());
        let (come, comes) = mpsc::channel::<()>();
        let read = Arc::clone(&new);
        let load = move || {
            comes.recv().ok();
            Ok(Arc::clone(&read))
        };
        let guard = Guard::watching(Arc::new(Security::none()), Box::new(load));
        let look = async || {
            guard.state.lock().looked -= FRESH;
            guard.current().await
        };
        assert!(!Arc::ptr_eq(&look().await, &new));
        let problem = guard.state.lock().problem.clone();
        assert_eq!(problem.as_deref(), Some("not read within 2 s"));
        drop(come);
        while !Arc::ptr_eq(&look().await, &new) {
            tokio::task::yield_now().await;
        }
        assert_eq!(guard.state.lock().problem, None);
    }
}
