//! Long answers: made off the thread that serves, and a few at a time.
//!
//! The status of thousands of searches is megabytes, and whoever asks for it need not read it. So
//! an answer keeps its turn until it is written or nobody wants it any more. What must never wait,
//! scrapes and health, does not come here.

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

/// How many are made or read at a time.
const AT_A_TIME: usize = 4;

/// Whose turn it is.
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

/// All others keep theirs for too long.
#[derive(Debug, thiserror::Error)]
#[error("too many others are reading long answers; try again in a moment")]
pub(super) struct Busy;

/// The text of an answer, whose turn ends with it.
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

    /// Waits for a turn, but not for ever.
    pub(super) async fn next(&self) -> Result<Turn, Busy> {
        let turn = Arc::clone(&self.free).acquire_owned();
        match tokio::time::timeout(self.patience, turn).await {
            Ok(Ok(_permit)) => Ok(Turn { _permit }),
            // It is never closed.
            Ok(Err(_)) | Err(_) => Err(Busy),
        }
    }
}

// === impl Turn ===

impl Turn {
    /// Makes an answer. Others are served meanwhile.
    pub(super) async fn make(self, answer: impl FnOnce() -> Response + Send + 'static) -> Response {
        // Whoever asked may leave before it is made: the turn stays with the work.
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

/// What was to be shown could not be made.
pub(super) fn broken(error: &dyn std::error::Error) -> Response {
    tracing::error!(%error, "cannot make an answer");
    text(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the answer could not be made\n",
    )
}
