//! Long answers, made off the thread that serves, and only a few at a time.
//!
//! The status of thousands of searches takes megabytes, and a client that asks for it need not
//! read it. So an answer keeps its turn until it is written or no client wants it any more.
//! Scrapes and health must never wait, so they take no turn.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes, to_bytes},
    http::StatusCode,
    response::Response,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};

use super::text;

/// How many answers are made or read at a time.
const AT_A_TIME: usize = 4;

/// Hands out the turns.
#[derive(Debug)]
pub(super) struct Turns {
    free: Arc<Semaphore>,
    patience: Duration,
}

/// The right to make a long answer.
#[derive(Debug)]
pub(super) struct Turn {
    _permit: OwnedSemaphorePermit,
}

/// Other answers have kept their turns for too long.
#[derive(Debug, thiserror::Error)]
#[error("too many others are reading long answers; try again in a moment")]
pub(super) struct Busy;

/// The text of an answer. Its turn ends when the text is dropped.
struct LongText {
    text: Bytes,
    _turn: Turn,
}

// === impl Turns ===

impl Turns {
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            free: Arc::new(Semaphore::new(AT_A_TIME)),
            patience,
        }
    }

    /// Waits for a turn, at most for the patience.
    pub(super) async fn next(&self) -> Result<Turn, Busy> {
        let turn = Arc::clone(&self.free).acquire_owned();
        match tokio::time::timeout(self.patience, turn).await {
            Ok(Ok(_permit)) => Ok(Turn { _permit }),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(Busy),
        }
    }
}

// === impl Turn ===

impl Turn {
    /// Makes an answer. Other clients are served meanwhile.
    pub(super) async fn make(self, answer: impl FnOnce() -> Response + Send + 'static) -> Response {
        // The client may leave before the answer is made, so the turn stays with the work.
        let (answer, turn) = match spawn_blocking(move || (answer(), self)).await {
            Ok(made) => made,
            Err(error) => return broken(&error),
        };
        let (head, body) = answer.into_parts();
        match to_bytes(body, usize::MAX).await {
            Ok(text) => {
                let text = LongText { text, _turn: turn };
                Response::from_parts(head, Body::from(Bytes::from_owner(text)))
            }
            Err(error) => broken(&error),
        }
    }
}

// === impl LongText ===

impl AsRef<[u8]> for LongText {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

/// Reports an answer that could not be made.
pub(super) fn broken(error: &dyn std::error::Error) -> Response {
    tracing::error!(%error, "cannot make an answer");
    text(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the answer could not be made\n",
    )
}
