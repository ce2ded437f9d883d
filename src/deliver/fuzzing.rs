//! What the fuzz targets need to see of lines.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use super::{Format, format::Lines};
use crate::{
    identity::{EventKind, SearchKey, Tenant},
    record::{self, AlertFields, Happening, Record},
    store::{JournalEvent, Pending},
};

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

/// The search whose alerts are recorded.
pub(crate) fn key() -> SearchKey {
    SearchKey {
        account: Arc::from("acme"),
        tenant: Tenant {
            id: Arc::from("client_1234"),
            name: Arc::from("retail"),
        },
        search: Arc::from("open"),
    }
}

/// Returns the record of a new alert, in the form of the journal.
pub(crate) fn record(alert_id: &str) -> Vec<u8> {
    let happening = Happening {
        kind: EventKind::Opened,
        ordinal: 1,
        alert_id,
        previous_state: None,
        previous_status: None,
        reason: None,
        fields: AlertFields::default(),
        raw: None,
    };
    let options = record::Options {
        events: Vec::new(),
        include_raw: false,
        max_description_length: 0,
    };
    Record::new(Timestamp::UNIX_EPOCH, &key(), happening, &options).to_json()
}

/// Returns the line of a record, with its line break.
pub(crate) fn line(format: Format, body: &[u8]) -> Vec<u8> {
    Lines::render(format, &[pending(1, body.to_vec())])
        .bytes()
        .to_vec()
}
