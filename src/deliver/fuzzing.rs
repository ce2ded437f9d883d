//! What fuzzing must see of lines.

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use super::{Format, format::Lines};
use crate::store::{JournalEvent, Pending};

/// An event as it waits in the journal.
pub(crate) fn pending(position: i64, body: Vec<u8>) -> Pending {
    Pending {
        position,
        event: JournalEvent {
            event_id: Uuid::nil(),
            at: Timestamp::UNIX_EPOCH,
            body: Bytes::from(body),
        },
    }
}

/// The line of a record, its line break included.
pub(crate) fn line(format: Format, body: &[u8]) -> Vec<u8> {
    Lines::render(format, &[pending(1, body.to_vec())])
        .bytes()
        .to_vec()
}
