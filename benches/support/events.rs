//! Events as they are journalled, and a sink that takes them.

use std::path::Path;

use bytes::Bytes;
use opsramp_exporter::{
    clock,
    deliver::{Format, Observer, SinkOptions, Target},
    identity::{SearchKey, Tenant},
    store::JournalEvent,
};
use uuid::Uuid;

/// The length of each event's line, in bytes.
pub(crate) const LINE: usize = 700;

/// An observer that ignores everything.
#[derive(Debug)]
pub(crate) struct Unobserved;

impl Observer for Unobserved {
    fn sink_delivered(&self, _: &str, _: u64) {}
    fn sink_error(&self, _: &str) {}
    fn sink_rejected(&self, _: &str, _: u64) {}
}

/// An event whose id is this number.
pub(crate) fn event(number: usize) -> JournalEvent {
    let id = Uuid::from_u128(number as u128);
    let mut body =
        format!(r#"{{"timestamp":"2026-03-01T10:20:30.123Z","event_id":"{id}","message":""#);
    let padding = LINE - body.len() - 2;
    body.extend(std::iter::repeat_n('x', padding));
    body.push_str("\"}");
    JournalEvent {
        event_id: id,
        at: clock::now(),
        body: Bytes::from(body),
    }
}

/// A search of this name.
pub(crate) fn search(name: &str) -> SearchKey {
    SearchKey {
        account: "a".into(),
        tenant: Tenant {
            id: "t".into(),
            name: "t".into(),
        },
        search: name.into(),
    }
}

/// A sink that writes to this file.
pub(crate) fn file_sink(path: &Path) -> SinkOptions {
    SinkOptions {
        name: "file".into(),
        target: Target::File {
            path: path.to_owned(),
            format: Format::Json,
        },
    }
}

/// How many lines a file has.
pub(crate) fn lines(path: &Path) -> usize {
    let text = std::fs::read(path).unwrap();
    text.iter().filter(|byte| **byte == b'\n').count()
}
