//! Memory for the bodies of answers, of all accounts together.
//!
//! Nearly all are small. Those that are not take turns, so that hundreds of tenants behind a server or
//! a proxy that sends too much cannot use up the memory at the same time.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Bodies that are longer than `above` bytes wait for one of its turns.
struct Step {
    above: usize,
    turns: Semaphore,
}

/// Who waits for a turn holds turns of the steps before only, so that those who have one of the last
/// step wait for nobody.
static STEPS: [Step; 2] = [
    Step {
        above: 1024 * 1024,
        turns: Semaphore::const_new(16),
    },
    Step {
        above: 8 * 1024 * 1024,
        turns: Semaphore::const_new(2),
    },
];

/// The room that a body takes, until it is dropped.
#[derive(Debug, Default)]
pub(super) struct Room(Vec<SemaphorePermit<'static>>);

// === impl Room ===

impl Room {
    /// Waits until there is room for a body of so many bytes.
    pub(super) async fn grow_to(&mut self, bytes: usize) {
        while let Some(step) = STEPS.get(self.0.len()).filter(|step| bytes > step.above)
            // They are never closed.
            && let Ok(turn) = step.turns.acquire().await
        {
            self.0.push(turn);
        }
    }

    /// How long a body may become before it waits for another turn.
    pub(super) fn limit(&self) -> usize {
        STEPS
            .get(self.0.len())
            .map_or(usize::MAX, |step| step.above)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PLENTY: Duration = Duration::from_secs(30);

    async fn of(bytes: usize) -> Room {
        let mut room = Room::default();
        room.grow_to(bytes).await;
        room
    }

    #[tokio::test]
    async fn large_bodies_take_turns_and_small_ones_never_wait() {
        let large = STEPS[1].above + 1;
        let (first, _second) = (of(large).await, of(large).await);
        let third = tokio::spawn(of(large));
        for _ in 0..100 {
            drop(
                tokio::time::timeout(PLENTY, of(STEPS[0].above))
                    .await
                    .unwrap(),
            );
            drop(
                tokio::time::timeout(PLENTY, of(STEPS[1].above))
                    .await
                    .unwrap(),
            );
        }
        assert!(!third.is_finished());
        drop(first);
        let third = tokio::time::timeout(PLENTY, third).await;
        assert_eq!(third.unwrap().unwrap().0.len(), 2);
    }
}
