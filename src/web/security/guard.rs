//! The protection in force, and its changes.
//!
//! To renew a certificate or change a password, an operator only writes the file. So files are
//! read again when a client connects or asks, at most once a second, and compared by their
//! content. That needs no notification from the file system, works with every way of replacing
//! files, and costs an idle server nothing. Files that cannot be used change nothing.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Security, certificate_warning};
use crate::{clock, validity::Ending};

/// How long the result of a reading is used.
const FRESH: Duration = Duration::from_secs(1);

/// The longest time that a disk without an answer holds up a request.
const PATIENCE: Duration = Duration::from_secs(2);

/// Maximum number of readings at a time. Each of them may hang for good, and keeps one of the few
/// threads for blocking work.
const MOST_READINGS: usize = 4;

/// When a reading hangs, another one begins after this time, because the path may no longer lead
/// to what the first one waits for. Each further one waits [`LONGER`] times as long, so that the
/// `MOST_READINGS` last.
const RETRY: Duration = Duration::from_secs(30);
const LONGER: u32 = 10;

/// Reads the protection of the server; returns the same one again if nothing has changed. The
/// error is for people. A call that hangs does not hold up another call.
pub type LoadSecurity = Box<dyn Fn() -> Result<Arc<Security>, String> + Send + Sync>;

/// Holds the [`Security`] in force. Cheap to clone.
#[derive(Clone)]
pub struct Guard {
    state: Arc<Mutex<State>>,
    load: Option<Arc<LoadSecurity>>,
}

struct State {
    security: Arc<Security>,
    /// When files were last looked at for changes.
    checked_at: Instant,
    /// Why the files cannot be used at present.
    problem: Option<String>,
    /// Whether the certificate had ended when its end was reported; `None` if it was not.
    reported_end: Option<bool>,
    /// When the readings that have not ended began, by their numbers.
    under_way: BTreeMap<u64, Instant>,
    /// The number of the last reading that began.
    begun: u64,
    /// The number of the last reading whose outcome was taken over.
    last_taken: u64,
}

/// A reading, which counts as under way until this is dropped.
struct Reading {
    state: Arc<Mutex<State>>,
    number: u64,
}

// === impl Guard ===

impl Guard {
    /// Returns a guard without TLS and passwords, for good.
    #[must_use]
    pub fn open() -> Self {
        Self::new(Arc::new(Security::none()), None)
    }

    /// Returns a guard that begins with `security`, and has it loaded again by `load`.
    #[must_use]
    pub fn watching(security: Arc<Security>, load: LoadSecurity) -> Self {
        Self::new(security, Some(Arc::new(load)))
    }

    fn new(security: Arc<Security>, load: Option<Arc<LoadSecurity>>) -> Self {
        let mut state = State {
            security,
            checked_at: Instant::now(),
            problem: None,
            reported_end: None,
            under_way: BTreeMap::new(),
            begun: 0,
            last_taken: 0,
        };
        state.report_end(clock::now());
        Self {
            state: Arc::new(Mutex::new(state)),
            load,
        }
    }

    /// Returns the [`Security`] in force, from files that were read at most a second ago.
    pub(in crate::web) async fn current(&self) -> Arc<Security> {
        if let Some(load) = &self.load
            && let Some(reading) = self.begin_reading()
        {
            let load = Arc::clone(load);
            let read = tokio::task::spawn_blocking(move || reading.run(&load));
            // A panic in the reading has been reported; a disk that hangs may answer later.
            if tokio::time::timeout(PATIENCE, read).await.is_err() {
                self.state
                    .lock()
                    .report(format!("not read within {} s", PATIENCE.as_secs()));
            }
        }
        Arc::clone(&self.state.lock().security)
    }

    /// Begins a reading of the files, if it is time to and no earlier one is waited for.
    fn begin_reading(&self) -> Option<Reading> {
        let mut state = self.state.lock();
        if state.checked_at.elapsed() < FRESH {
            return None;
        }
        state.checked_at = Instant::now();
        state.begin().map(|number| Reading {
            state: Arc::clone(&self.state),
            number,
        })
    }
}

// === impl Reading ===

impl Reading {
    fn run(self, load: &LoadSecurity) {
        let loaded = load();
        self.state.lock().take_over(self.number, loaded);
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.state.lock().under_way.remove(&self.number);
    }
}

// === impl State ===

impl State {
    /// Begins a reading and returns its number; `None` while an earlier one is waited for, which
    /// is reported if it takes long.
    fn begin(&mut self) -> Option<u64> {
        if let Some((_, last)) = self.under_way.last_key_value() {
            let waited = last.elapsed();
            let earlier = self.under_way.len().saturating_sub(1);
            let retry = RETRY * LONGER.saturating_pow(u32::try_from(earlier).unwrap_or(u32::MAX));
            let is_last = self.under_way.len() >= MOST_READINGS;
            if is_last || waited < retry {
                // Before that, the request that began the reading waits for it, and reports.
                if waited >= PATIENCE {
                    self.report(if is_last {
                        format!(
                            "{MOST_READINGS} earlier readings still hang; unless one ends, it takes a \
                             restart to have it read again"
                        )
                    } else {
                        "an earlier reading still hangs; another one is tried in a while".to_owned()
                    });
                }
                return None;
            }
        }
        self.begun += 1;
        self.under_way.insert(self.begun, Instant::now());
        Some(self.begun)
    }

    /// Takes over the result of a reading, unless the result of a later one was taken over before.
    fn take_over(&mut self, number: u64, loaded: Result<Arc<Security>, String>) {
        // Under the same lock, because a request in between would report that the reading hangs.
        self.under_way.remove(&number);
        if number < self.last_taken {
            return;
        }
        self.last_taken = number;
        match loaded.and_then(|new| refuse_weaker(new, &self.security)) {
            Ok(new) => {
                let changed = !Arc::ptr_eq(&new, &self.security);
                if changed || self.problem.is_some() {
                    tracing::info!("the web configuration and its certificates were read again");
                }
                self.security = new;
                self.problem = None;
                if changed {
                    self.reported_end = None;
                }
            }
            Err(problem) => self.report(problem),
        }
        self.report_end(clock::now());
    }

    /// Reports that the certificate in force ends soon or has ended, once each.
    fn report_end(&mut self, now: Timestamp) {
        let not_after = self.security.certificate_end();
        let ending = not_after.and_then(|end| Ending::of(end, now));
        let has_ended = ending.map(Ending::has_expired);
        if has_ended != self.reported_end
            && let Some(warning) = certificate_warning(not_after, now)
        {
            tracing::warn!("{warning}");
        }
        self.reported_end = has_ended;
    }

    /// Reports what is wrong with the files, each time that it is found. The diagnostics decide
    /// when to print it again, also after they have said that the files were read.
    fn report(&mut self, problem: String) {
        tracing::error!(
            error = %problem,
            "the web configuration cannot be used; the one before stays in force"
        );
        self.problem = Some(problem);
    }
}

fn refuse_weaker(new: Arc<Security>, before: &Security) -> Result<Arc<Security>, String> {
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
    use std::sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    };

    use super::{super::tests::until, *};
    use crate::logging::captured;

    #[tokio::test(start_paused = true)]
    async fn that_files_were_read_is_not_the_last_word_while_they_cannot_be_used() {
        let wrong = |problem: &str| Err(problem.to_owned());
        let files = [wrong("no key"), Ok(Arc::new(Security::none()))];
        let files = Mutex::new(files.into_iter());
        let load = move || files.lock().next().unwrap_or_else(|| wrong("no key"));
        let guard = Guard::watching(Arc::new(Security::none()), Box::new(load));
        let load = Arc::clone(guard.load.as_ref().unwrap());
        let (lines, _logging) = captured();
        for _ in 0..80 {
            tokio::time::advance(FRESH).await;
            guard.begin_reading().unwrap().run(&load);
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
        let (read, panics) = (Arc::clone(&new), AtomicBool::new(true));
        let load = move || {
            assert!(!panics.swap(false, Ordering::Relaxed), "on purpose");
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
        let (read, comes) = (Arc::clone(&new), Mutex::new(comes));
        let load = move || {
            comes.lock().recv().ok();
            Ok(Arc::clone(&read))
        };
        let guard = Guard::watching(Arc::new(Security::none()), Box::new(load));
        let look = async || {
            guard.state.lock().checked_at -= FRESH;
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

    #[tokio::test(start_paused = true)]
    async fn after_a_reading_that_hangs_others_are_tried_but_not_without_end() {
        let guard = Guard::watching(
            Arc::new(Security::none()),
            Box::new(|| Err("not asked".to_owned())),
        );
        let good: LoadSecurity = {
            let new = Arc::new(Security::none());
            Box::new(move || Ok(Arc::clone(&new)))
        };
        let problem = || guard.state.lock().problem.clone();
        let (lines, _logging) = captured();
        let (mut hanging, mut begun) = (Vec::new(), Vec::new());
        for second in 1..=40_000 {
            tokio::time::advance(FRESH).await;
            if let Some(reading) = guard.begin_reading() {
                hanging.push(reading);
                begun.push(second);
            }
        }
        assert_eq!(begun, [1, 31, 331, 3_331]);
        let told = problem().unwrap();
        assert!(told.starts_with("4 earlier readings still hang"), "{told}");
        let lines = lines.lock().clone();
        let hangs = lines.iter().filter(|line| line.contains("still hang"));
        assert!((2..1_400).contains(&hangs.count()), "{}", lines.len());

        // A reading that ends makes room for one that counts; later results of the others are
        // outdated.
        drop(hanging.pop());
        tokio::time::advance(RETRY * LONGER.pow(2)).await;
        guard.begin_reading().unwrap().run(&good);
        assert_eq!(problem(), None);
        let now = Arc::clone(&guard.state.lock().security);
        for reading in hanging.drain(1..) {
            reading.run(&(Box::new(|| Err("late".to_owned())) as LoadSecurity));
        }
        assert_eq!(problem(), None);
        // Beside a reading that hangs for ever, files are read as usual.
        for _ in 0..3 {
            tokio::time::advance(FRESH).await;
            guard.begin_reading().unwrap().run(&good);
        }
        assert!(Arc::ptr_eq(&guard.state.lock().security, &now));
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_certificate_is_told_at_the_start_with_each_new_one_and_when_it_comes() {
        let [long, past] = [3000, 2020].map(|year| Arc::new(until(year)));
        let (lines, _logging) = captured();
        let guard = Guard::watching(Arc::clone(&past), Box::new(|| Err("none".to_owned())));
        let told = || {
            let lines = std::mem::take(&mut *lines.lock());
            let of_end = |line: &&String| line.contains("the certificate of the web server");
            lines.iter().filter(of_end).cloned().collect::<Vec<_>>()
        };
        let first = told();
        assert!(
            matches!(&first[..], [line] if line.contains("has expired")),
            "{first:?}"
        );
        let read = |new: &Arc<Security>| {
            let mut state = guard.state.lock();
            let number = state.begun;
            state.take_over(number, Ok(Arc::clone(new)));
        };
        for (new, times) in [(&past, 0), (&long, 0), (&past, 1), (&past, 0), (&long, 0)] {
            read(new);
            let said = told();
            assert_eq!(said.len(), times, "{said:?}");
            tokio::time::advance(FRESH * 3_600).await;
        }
        // The same certificate ends while the server runs.
        for (date, times) in [
            ("2999-12-01T00:00:00Z", 0),
            ("2999-12-20T00:00:00Z", 1),
            ("2999-12-21T00:00:00Z", 0),
            ("3000-01-02T00:00:00Z", 1),
            ("3000-01-03T00:00:00Z", 0),
        ] {
            guard.state.lock().report_end(date.parse().unwrap());
            assert_eq!(told().len(), times, "{date}");
            tokio::time::advance(FRESH * 3_600).await;
        }
    }
}
