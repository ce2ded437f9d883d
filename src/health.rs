//! Whether the process works: its loops report when they make progress and when to expect the
//! next.
//!
//! Decides what `/-/healthy` answers, and whether systemd's watchdog is fed.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// The loops of the process. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<State>>);

/// One loop's promise to make progress. Once it is dropped, no progress is expected any more.
#[derive(Debug)]
pub struct Heartbeat {
    health: Health,
    id: u64,
    patience: Duration,
}

/// Something that an operator should know although the process works, such as a journal that is
/// full. It is shown until this is dropped.
#[derive(Debug)]
pub struct Notice {
    health: Health,
    id: u64,
}

/// A loop that has not made progress in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// The loop.
    pub name: Arc<str>,
    /// For how long it has been overdue.
    pub by: Duration,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    loops: BTreeMap<u64, Loop>,
    notices: BTreeMap<u64, String>,
    obstacles: BTreeMap<&'static str, String>,
}

#[derive(Debug)]
struct Loop {
    name: Arc<str>,
    deadline: Instant,
}

// === impl Health ===

impl Health {
    /// Registers a loop that makes progress at least every `patience`.
    #[must_use]
    pub fn register(&self, name: impl Into<Arc<str>>, patience: Duration) -> Heartbeat {
        let mut state = self.0.lock();
        let id = state.next_id();
        let entry = Loop {
            name: name.into(),
            deadline: Instant::now() + patience,
        };
        state.loops.insert(id, entry);
        Heartbeat {
            health: self.clone(),
            id,
            patience,
        }
    }

    /// Returns the loops that hang, longest first. If there are none, the process works.
    #[must_use]
    pub fn overdue(&self) -> Vec<Overdue> {
        let now = Instant::now();
        let mut overdue: Vec<Overdue> = self
            .0
            .lock()
            .loops
            .values()
            .filter(|entry| entry.deadline < now)
            .map(|entry| Overdue {
                name: Arc::clone(&entry.name),
                by: now.duration_since(entry.deadline),
            })
            .collect();
        overdue.sort_by_key(|entry| std::cmp::Reverse(entry.by));
        overdue
    }

    /// Shows `text` to operators until the returned `Notice` is dropped.
    #[must_use]
    pub fn notice(&self, text: impl Into<String>) -> Notice {
        let mut state = self.0.lock();
        let id = state.next_id();
        state.notices.insert(id, text.into());
        Notice {
            health: self.clone(),
            id,
        }
    }

    /// Returns what operators should know. Equal notices are returned once.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        let state = self.0.lock();
        let mut notices: Vec<String> = Vec::new();
        for text in state.notices.values() {
            if !notices.contains(text) {
                notices.push(text.clone());
            }
        }
        notices
    }

    /// Sets why the process cannot do its work at present although nothing hangs, such as a
    /// database that is down. Replaces the former reason of the same topic; `None` removes it.
    pub fn hold_up(&self, topic: &'static str, why: Option<String>) {
        let obstacles = &mut self.0.lock().obstacles;
        match why {
            Some(why) => obstacles.insert(topic, why),
            None => obstacles.remove(topic),
        };
    }

    /// Returns why the process cannot do its work at present.
    #[must_use]
    pub fn obstacles(&self) -> Vec<String> {
        self.0.lock().obstacles.values().cloned().collect()
    }
}

// === impl State ===

impl State {
    fn next_id(&mut self) -> u64 {
        let id = self.next;
        self.next += 1;
        id
    }
}

// === impl Heartbeat ===

impl Heartbeat {
    /// Reports progress. More is expected within the loop's patience.
    pub fn beat(&self) {
        self.beat_for(self.patience);
    }

    /// The maximum time that a waiting loop should let pass before it beats again.
    #[must_use]
    pub fn pulse(&self) -> Duration {
        self.patience / 4
    }

    /// Waits for a step that has a time limit of its own, such as a call of the store. The end of
    /// each step is progress, however many steps follow one another.
    pub async fn beat_after<T>(&self, step: impl Future<Output = T>) -> T {
        let done = step.await;
        self.beat();
        done
    }

    /// Reports progress. The loop now waits on purpose, for no longer than `patience`.
    pub fn beat_for(&self, patience: Duration) {
        if let Some(entry) = self.health.0.lock().loops.get_mut(&self.id) {
            entry.deadline = Instant::now() + patience;
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.health.0.lock().loops.remove(&self.id);
    }
}

// === impl Notice ===

impl Drop for Notice {
    fn drop(&mut self) {
        self.health.0.lock().notices.remove(&self.id);
    }
}

// === impl Overdue ===

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} should have made progress {} s ago",
            self.name,
            self.by.as_secs()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_stops_beating_is_overdue_until_it_beats_or_ends() {
        let health = Health::default();
        let slow = health.register("poll acme/retail/open", Duration::from_secs(60));
        let fast = health.register("deliver file", Duration::from_secs(10));
        assert_eq!(health.overdue(), []);

        tokio::time::advance(Duration::from_secs(61)).await;
        let names: Vec<_> = health.overdue().into_iter().map(|one| one.name).collect();
        assert_eq!(
            names,
            ["deliver file".into(), "poll acme/retail/open".into()]
        );
        assert_eq!(
            health.overdue()[0].to_string(),
            "deliver file should have made progress 51 s ago"
        );

        slow.beat();
        drop(fast);
        assert_eq!(health.overdue(), []);
        slow.beat_for(Duration::from_secs(300));
        tokio::time::advance(Duration::from_secs(299)).await;
        assert_eq!(health.overdue(), []);
    }

    #[test]
    fn a_notice_stays_until_the_last_who_gave_it_takes_it_back() {
        let health = Health::default();
        let one = health.notice("the journal is full");
        let other = health.notice("the journal is full");
        let _third = health.notice("the configuration is rejected");
        let all = ["the journal is full", "the configuration is rejected"];
        assert_eq!(health.notices(), all);
        drop(one);
        assert_eq!(health.notices().len(), 2);
        drop(other);
        assert_eq!(health.notices(), all[1..]);
    }

    #[test]
    fn an_obstacle_stays_until_it_is_taken_back() {
        let health = Health::default();
        health.hold_up("store", Some("the database is down".to_owned()));
        health.hold_up("store", Some("the database is read-only".to_owned()));
        assert_eq!(health.obstacles(), ["the database is read-only"]);
        assert!(health.notices().is_empty());
        health.hold_up("store", None);
        assert!(health.obstacles().is_empty());
    }
}
