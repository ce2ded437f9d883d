//! What the fuzz targets need to see of lines.

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

/// Returns the line of a record, with its line break.
pub(crate) fn line(format: Format, body: &[u8]) -> Vec<u8> {
    Lines::render(format, &[pending(1, body.to_vec())])
        .bytes()
        .to_vec()
}
