//! Memory for the bodies of answers, of all accounts together.
//!
//! Nearly all are small. Those that are not take turns, so that hundreds of tenants behind a server or
//! a proxy that sends too much cannot use up the memory at the same time. A slow network holds a turn
//! for long, so that an account has half of them at most.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// Bodies that are longer than `above` bytes wait for one of its turns.
struct Step {
    above: usize,
    turns: Semaphore,
}

/// How many turns each step has.
const TURNS: [usize; 2] = [16, 2];

/// Who waits for a turn holds turns of the steps before only, so that those who have one of the last
/// step wait for nobody.
static STEPS: [Step; 2] = [
    Step {
        above: 1024 * 1024,
        turns: Semaphore::const_new(TURNS[0]),
    },
    Step {
        above: 8 * 1024 * 1024,
        turns: Semaphore::const_new(TURNS[1]),
    },
];

/// What an account may have of the turns of each step.
#[derive(Clone, Debug)]
pub(super) struct Share([Arc<Semaphore>; 2]);

/// The room that a body takes, until it is dropped: of each step a turn, and one of the account's share
/// of them.
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
    /// Waits until there is room for a body of so many bytes.
    pub(super) async fn grow_to(&mut self, bytes: usize, share: &Share) {
        while let Some((step, of_share)) = STEPS.iter().zip(&share.0).nth(self.0.len())
            && bytes > step.above
            // They are never closed.
            && let Ok(own) = Arc::clone(of_share).acquire_owned().await
            && let Ok(turn) = step.turns.acquire().await
        {
            self.0.push((own, turn));
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

    use tokio::task::JoinHandle;

    use super::*;

    const PLENTY: Duration = Duration::from_secs(30);

    async fn of(bytes: usize, share: Share) -> Room {
        let mut room = Room::default();
        room.grow_to(bytes, &share).await;
        room
    }

    /// Lets what was spawned begin: nothing else polls it while a test does not wait.
    async fn begun<T>(task: JoinHandle<T>) -> JoinHandle<T> {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        task
    }

    #[tokio::test]
    async fn large_bodies_take_turns_and_small_ones_never_wait() {
        let large = STEPS[1].above + 1;
        let (first, _second) = (
            of(large, Share::default()).await,
            of(large, Share::default()).await,
        );
        let third = begun(tokio::spawn(of(large, Share::default()))).await;
        for _ in 0..100 {
            for bytes in [STEPS[0].above, STEPS[1].above] {
                let small = of(bytes, Share::default());
                drop(tokio::time::timeout(PLENTY, small).await.unwrap());
            }
        }
        assert!(!third.is_finished());
        drop(first);
        let third = tokio::time::timeout(PLENTY, third).await;
        assert_eq!(third.unwrap().unwrap().0.len(), 2);
    }

    #[tokio::test]
    async fn an_account_whose_bodies_come_slowly_leaves_others_half_of_the_turns() {
        let slow = Share::default();
        let long = STEPS[0].above + 1;
        let mut rooms = Vec::new();
        for _ in 0..TURNS[0] / 2 {
            rooms.push(of(long, slow.clone()).await);
        }
        let more = begun(tokio::spawn(of(long, slow))).await;
        let others = tokio::time::timeout(PLENTY, of(long, Share::default())).await;
        assert_eq!(others.unwrap().0.len(), 1);
        assert!(!more.is_finished());
        drop(rooms);
        assert!(tokio::time::timeout(PLENTY, more).await.is_ok());
    }
}
