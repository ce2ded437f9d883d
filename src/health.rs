//! Which loops of the process make progress.
//!
//! Each loop registers a heartbeat and beats it whenever it comes round. A loop that has not come
//! round for longer than it promised hangs; that is about this process alone, never about whether
//! OpsRamp or a sink can be reached.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// All heartbeats of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Health(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    start: Instant,
    next: AtomicU64,
    beats: Mutex<BTreeMap<u64, Arc<Beat>>>,
}

#[derive(Debug)]
struct Beat {
    name: String,
    deadline: Duration,
    /// Milliseconds from the start of the process.
    last: AtomicU64,
}

/// The heartbeat of one loop; dropping it says that the loop has ended.
#[derive(Debug)]
pub struct Heartbeat {
    inner: Arc<Inner>,
    id: u64,
    beat: Arc<Beat>,
}

/// A loop that does not come round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The loop's name.
    pub name: String,
    /// How long ago it came round.
    pub silent_for: Duration,
}

// === impl Health ===

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(Inner {
            start: Instant::now(),
            next: AtomicU64::new(0),
            beats: Mutex::default(),
        }))
    }
}

impl Health {
    /// Registers a loop that promises to come round at least every `deadline`.
    #[must_use]
    pub fn register(&self, name: impl Into<String>, deadline: Duration) -> Heartbeat {
        let beat = Arc::new(Beat {
            name: name.into(),
            deadline,
            last: AtomicU64::new(0),
        });
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.0.beats().insert(id, Arc::clone(&beat));
        let heartbeat = Heartbeat {
            inner: Arc::clone(&self.0),
            id,
            beat,
        };
        heartbeat.beat();
        heartbeat
    }

    /// The loops that hang.
    #[must_use]
    pub fn stuck(&self) -> Vec<Stuck> {
        let now = self.0.now();
        let beats = self.0.beats();
        beats
            .values()
            .filter_map(|beat| {
                let silent = now.saturating_sub(beat.last.load(Ordering::Relaxed));
                let silent_for = Duration::from_millis(silent);
                (silent_for > beat.deadline).then(|| Stuck {
                    name: beat.name.clone(),
                    silent_for,
                })
            })
            .collect()
    }
}

// === impl Inner ===

impl Inner {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn beats(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Arc<Beat>>> {
        // The map is only added to and removed from, so a poisoned one is still whole.
        self.beats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Heartbeat ===

impl Heartbeat {
    /// Says that the loop has come round.
    pub fn beat(&self) {
        self.beat.last.store(self.inner.now(), Ordering::Relaxed);
    }

    /// How often to come round, to be well within the promise.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.beat.deadline / 4
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.inner.beats().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_does_not_come_round_is_named() {
        let health = Health::default();
        let quick = health.register("quick", Duration::from_secs(1));
        let slow = health.register("slow", Duration::from_secs(60));
        assert!(health.stuck().is_empty());
        tokio::time::advance(Duration::from_secs(2)).await;
        let silent_for = Duration::from_secs(2);
        assert_eq!(
            health.stuck(),
            [Stuck {
                name: "quick".into(),
                silent_for
            }]
        );
        quick.beat();
        assert!(health.stuck().is_empty());
        tokio::time::advance(Duration::from_secs(120)).await;
        drop((quick, slow));
        assert!(
            health.stuck().is_empty(),
            "loops that have ended do not hang"
        );
    }
}
