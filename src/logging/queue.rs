//! The queue between callers that have something to say and standard error, whose reader may
//! sleep.
//!
//! No caller waits for this reader: a thread of its own does. Lines that come while the queue is
//! full are counted instead.

use std::{
    collections::VecDeque,
    io::{self, Write as _},
    mem,
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex, MutexGuard};

/// The most lines that wait at a time.
const LENGTH: usize = 1000;

/// Lines for standard error. Cheap to clone.
#[derive(Clone)]
pub(super) struct Queue(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Notified when a line has come, and when one was written.
    changed: Condvar,
    /// Returns the line that says how many lines were lost.
    loss: Box<dyn Fn(u64) -> String + Send + Sync>,
}

#[derive(Default)]
struct State {
    lines: VecDeque<String>,
    lost: u64,
    is_writing: bool,
}

// === impl Queue ===

impl Queue {
    /// Starts a queue whose lines a thread hands to `write`.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(super) fn start(
        loss: impl Fn(u64) -> String + Send + Sync + 'static,
        write: impl FnMut(&str) + Send + 'static,
    ) -> io::Result<Self> {
        let queue = Self(Arc::new(Inner {
            state: Mutex::default(),
            changed: Condvar::new(),
            loss: Box::new(loss),
        }));
        let inner = Arc::clone(&queue.0);
        thread::Builder::new()
            .name("diagnostics".to_owned())
            .spawn(move || inner.write_all(write))?;
        Ok(queue)
    }

    pub(super) fn push(&self, line: &str) {
        let mut state = self.0.state.lock();
        if state.lines.len() >= LENGTH {
            state.lost += 1;
            return;
        }
        self.0.tell_loss(&mut state);
        state.lines.push_back(line.to_owned());
        self.0.changed.notify_all();
    }

    /// Waits until everything is written, but no longer than `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        let is_busy = |state: &mut State| state.is_writing || !state.lines.is_empty();
        let mut state = self.0.state.lock();
        self.0.changed.wait_while_for(&mut state, is_busy, patience);
    }
}

// === impl Inner ===

impl Inner {
    fn tell_loss(&self, state: &mut State) {
        match mem::take(&mut state.lost) {
            0 => {}
            lost => state.lines.push_back((self.loss)(lost)),
        }
    }

    fn write_all(&self, mut write: impl FnMut(&str)) {
        let mut state = self.state.lock();
        loop {
            if state.lines.is_empty() {
                self.tell_loss(&mut state);
            }
            match state.lines.pop_front() {
                Some(line) => {
                    state.is_writing = true;
                    MutexGuard::unlocked(&mut state, || write(&line));
                    state.is_writing = false;
                    self.changed.notify_all();
                }
                None => self.changed.wait(&mut state),
            }
        }
    }
}

/// Writes to standard error. If standard error is closed, there is nowhere to report that.
pub(crate) fn write(line: &str) {
    io::stderr().lock().write_all(line.as_bytes()).ok();
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn loss(lost: u64) -> String {
        format!("{lost} lost")
    }

    #[test]
    fn nobody_waits_for_a_reader_that_sleeps_and_what_is_lost_is_told_in_its_place() {
        let (go_on, wait) = mpsc::channel::<()>();
        let (written, lines) = mpsc::channel();
        let queue = Queue::start(loss, move |line| {
            // Once the test drops the sender, all lines get through.
            wait.recv().ok();
            written.send(line.to_owned()).unwrap();
        })
        .unwrap();
        queue.push("first");
        while !queue.0.state.lock().is_writing {
            thread::yield_now();
        }
        for n in 0..LENGTH + 7 {
            queue.push(&n.to_string());
        }
        queue.flush(Duration::from_millis(1));
        drop(go_on);
        queue.flush(Duration::MAX);
        queue.push("last");
        queue.flush(Duration::MAX);
        let lines: Vec<String> = lines.try_iter().collect();
        assert_eq!(lines[0], "first");
        assert_eq!(lines[LENGTH], (LENGTH - 1).to_string());
        assert_eq!(lines[LENGTH + 1..], ["7 lost", "last"]);
    }
}
