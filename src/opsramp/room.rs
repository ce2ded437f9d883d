//! Memory for the bodies of answers, of all accounts together.
//!
//! Most bodies are small. The others take turns, so that hundreds of tenants behind a server
//! or a proxy that sends too much cannot use up the memory at the same time. Because a body on a
//! slow network holds its turn for long, an account has half of the turns at most.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// A size class: bodies that are longer than `above` bytes wait for one of the step's turns.
struct Step {
    above: usize,
    turns: Semaphore,
}

/// How many turns each step has.
const TURNS: [usize; 3] = [128, 16, 2];

/// A body that waits for a turn holds turns of the steps before only. So a body with a turn of the
/// last step waits for no other body.
static STEPS: [Step; 3] = [
    Step {
        above: 128 * 1024,
        turns: Semaphore::const_new(TURNS[0]),
    },
    Step {
        above: 1024 * 1024,
        turns: Semaphore::const_new(TURNS[1]),
    },
    Step {
        above: 8 * 1024 * 1024,
        turns: Semaphore::const_new(TURNS[2]),
    },
];

/// The turns of each step that one account may have.
#[derive(Clone, Debug)]
pub(super) struct Share([Arc<Semaphore>; TURNS.len()]);

/// The room that a body takes, until this is dropped: for each step, a turn of the account's
/// share, and a turn of the step.
#[derive(Debug, Default)]
pub(super) struct Room(Vec<(OwnedSemaphorePermit, SemaphorePermit<'static>)>);

// === impl Share ===

impl Default for Share {
    fn default() -> Self {
        Self(TURNS.map(|turns| Arc::new(Semaphore::new(turns / 2))))
    }
}

// === impl Room ===

impl Room {
    /// Waits until there is room for a body of `bytes` bytes.
    pub(super) async fn grow_to(&mut self, bytes: usize, share: &Share) {
        while let Some((step, of_share)) = STEPS.iter().zip(&share.0).nth(self.0.len())
            && bytes > step.above
            // The semaphores are never closed.
            && let Ok(own) = Arc::clone(of_share).acquire_owned().await
            && let Ok(turn) = step.turns.acquire().await
        {
            self.0.push((own, turn));
        }
    }

    /// Returns how long a body may become before it waits for another turn, in bytes.
    pub(super) fn limit(&self) -> usize {
        STEPS
            .get(self.0.len())
            .map_or(usize::MAX, |step| step.above)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::JoinHandle;

    use super::*;

    const PLENTY: Duration = Duration::from_secs(30);

    async fn of(bytes: usize, share: Share) -> Room {
        let mut room = Room::default();
        room.grow_to(bytes, &share).await;
        room
    }

    /// Lets a spawned task begin, which does not run while the test does not wait.
    async fn begun<T>(task: JoinHandle<T>) -> JoinHandle<T> {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        task
    }

    #[tokio::test]
    async fn large_bodies_take_turns_and_small_ones_never_wait() {
        let large = STEPS[2].above + 1;
        let (first, _second) = (
            of(large, Share::default()).await,
            of(large, Share::default()).await,
        );
        let third = begun(tokio::spawn(of(large, Share::default()))).await;
        for _ in 0..100 {
            for bytes in STEPS.each_ref().map(|step| step.above) {
                let small = of(bytes, Share::default());
                drop(tokio::time::timeout(PLENTY, small).await.unwrap());
            }
        }
        assert!(!third.is_finished());
        drop(first);
        let third = tokio::time::timeout(PLENTY, third).await;
        assert_eq!(third.unwrap().unwrap().0.len(), 3);
    }

    #[tokio::test]
    async fn an_account_whose_bodies_come_slowly_leaves_others_half_of_the_turns() {
        let slow = Share::default();
        let long = STEPS[1].above + 1;
        let mut rooms = Vec::new();
        for _ in 0..TURNS[1] / 2 {
            rooms.push(of(long, slow.clone()).await);
        }
        let more = begun(tokio::spawn(of(long, slow))).await;
        let others = tokio::time::timeout(PLENTY, of(long, Share::default())).await;
        assert_eq!(others.unwrap().0.len(), 2);
        assert!(!more.is_finished());
        drop(rooms);
        assert!(tokio::time::timeout(PLENTY, more).await.is_ok());
    }
}
