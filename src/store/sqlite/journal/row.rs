//! A row of the journal: neighbouring events that were journalled at the same time.

use jiff::Timestamp;
use rusqlite::{Error, Result, Row as SqlRow, types::Type};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::store::JournalEvent;

/// Maximum size in bytes of the bodies in a row, unless a single body is longer.
const BODIES: usize = 64 * 1024;

const ID: usize = 16;
const LENGTH: usize = 4;
const HEAD: usize = ID + LENGTH;

/// A row to be inserted.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) at: Timestamp,
    pub(super) heads: Vec<u8>,
    pub(super) bodies: Vec<u8>,
}

/// Events, put together into rows.
#[derive(Debug)]
pub(super) struct Rows<'a>(&'a [JournalEvent]);

/// An event in a row.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) position: i64,
    pub(super) event_id: Uuid,
    pub(super) body: &'a [u8],
}

/// The events of a row, in their order.
#[derive(Debug)]
pub(super) struct Entries<'a> {
    /// The position of the next one.
    position: i64,
    heads: &'a [[u8; HEAD]],
    bodies: &'a [u8],
}

/// How many events a row with these heads has.
pub(super) fn count(heads: &[u8]) -> i64 {
    // No row is long enough for this to overflow.
    i64::try_from(heads.len() / HEAD).unwrap_or(i64::MAX)
}

/// Tells whether a row still is what was stored. SQLite does not check a page's content, so
/// without it the garbage of a sector that the disk lost would go out as lines.
fn checksum(last: i64, heads: &[u8], bodies: &[u8]) -> i64 {
    let parts = [last.cast_unsigned(), xxh3_64(heads), xxh3_64(bodies)];
    xxh3_64(parts.map(u64::to_be_bytes).as_flattened()).cast_signed()
}

// === impl Row ===

impl Row {
    pub(super) fn count(&self) -> i64 {
        count(&self.heads)
    }

    /// The checksum of the row if its last position is `last`.
    pub(super) fn checksum(&self, last: i64) -> i64 {
        checksum(last, &self.heads, &self.bodies)
    }
}

// === impl Rows ===

impl<'a> Rows<'a> {
    pub(super) fn of(events: &'a [JournalEvent]) -> Self {
        Self(events)
    }
}

impl Iterator for Rows<'_> {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        let at = self.0.first()?.at;
        let mut length = 0;
        let fits = |event: &&JournalEvent| {
            length += event.body.len();
            event.at == at && length <= BODIES
        };
        let count = self.0.iter().take_while(fits).count().max(1);
        let (events, rest) = self.0.split_at(count);
        self.0 = rest;
        let mut row = Row {
            at,
            heads: Vec::with_capacity(HEAD * count),
            bodies: Vec::with_capacity(events.iter().map(|event| event.body.len()).sum()),
        };
        for event in events {
            row.heads.extend_from_slice(event.event_id.as_bytes());
            // No body comes near four gigabytes: SQLite would not take it.
            let length = u32::try_from(event.body.len()).unwrap_or(u32::MAX);
            row.heads.extend_from_slice(&length.to_be_bytes());
            row.bodies.extend_from_slice(&event.body);
        }
        Some(row)
    }
}

// === impl Entries ===

impl<'a> Entries<'a> {
    /// Reads the columns `last, at, heads, bodies, checksum`.
    ///
    /// # Errors
    /// If the row is not what was stored, because the disk or another program has changed it.
    pub(super) fn of(row: &'a SqlRow<'_>) -> Result<Self> {
        let last: i64 = row.get(0)?;
        let heads = row.get_ref(2)?.as_blob()?;
        let bodies = row.get_ref(3)?.as_blob()?;
        // Earlier versions stored no checksum.
        let stored: Option<i64> = row.get(4)?;
        let whole = stored.is_none_or(|stored| stored == checksum(last, heads, bodies));
        let entries = Self::new(last, heads, bodies).filter(|_| whole);
        entries.ok_or_else(|| {
            let problem =
                format!("the row of the journal with the last position {last} is damaged");
            Error::FromSqlConversionFailure(2, Type::Blob, problem.into())
        })
    }

    fn new(last: i64, heads: &'a [u8], bodies: &'a [u8]) -> Option<Self> {
        let (heads, []) = heads.as_chunks() else {
            return None;
        };
        let length: usize = heads.iter().map(length).sum();
        (length == bodies.len()).then_some(Self {
            position: last - count(heads.as_flattened()) + 1,
            heads,
            bodies,
        })
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Entry<'a>;

    fn next(&mut self) -> Option<Entry<'a>> {
        let (head, heads) = self.heads.split_first()?;
        let (body, bodies) = self.bodies.split_at_checked(length(head))?;
        let (id, _) = head.split_first_chunk()?;
        let position = self.position;
        (self.position, self.heads, self.bodies) = (position + 1, heads, bodies);
        Some(Entry {
            position,
            event_id: Uuid::from_bytes(*id),
            body,
        })
    }
}

fn length(head: &[u8; HEAD]) -> usize {
    let [.., a, b, c, d] = *head;
    u32::from_be_bytes([a, b, c, d]) as usize
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn event(number: usize, at: i64, length: usize) -> JournalEvent {
        JournalEvent {
            event_id: Uuid::from_u128(number as u128),
            at: Timestamp::from_second(at).unwrap(),
            body: Bytes::from(vec![number as u8; length]),
        }
    }

    proptest! {
        #[test]
        fn rows_hold_all_events_in_their_order_and_no_more_than_their_share(
            shapes in prop::collection::vec((0i64..2, prop_oneof![0usize..2000, 0usize..200_000]), 0..80),
        ) {
            let events: Vec<JournalEvent> = shapes
                .iter()
                .enumerate()
                .map(|(number, (at, length))| event(number, *at, *length))
                .collect();
            let mut last = 0;
            let mut read = Vec::new();
            for row in Rows::of(&events) {
                last += row.count();
                prop_assert!(row.bodies.len() <= BODIES || row.count() == 1);
                for entry in Entries::new(last, &row.heads, &row.bodies).unwrap() {
                    prop_assert_eq!(entry.position, read.len() as i64 + 1);
                    read.push(JournalEvent {
                        event_id: entry.event_id,
                        at: row.at,
                        body: Bytes::copy_from_slice(entry.body),
                    });
                }
            }
            prop_assert_eq!(read, events);
        }
    }

    #[test]
    fn small_events_of_one_time_share_a_row() {
        let events: Vec<JournalEvent> = (0..100).map(|number| event(number, 7, 500)).collect();
        assert_eq!(Rows::of(&events).count(), 1);
    }

    #[test]
    fn a_row_that_does_not_add_up_is_not_read() {
        let row = Rows::of(&[event(1, 0, 10), event(2, 0, 20)])
            .next()
            .unwrap();
        let read = |heads: &[u8], bodies: &[u8]| Entries::new(2, heads, bodies).is_some();
        assert!(read(&row.heads, &row.bodies));
        assert!(!read(&row.heads[1..], &row.bodies));
        assert!(!read(&row.heads[..HEAD], &row.bodies));
        assert!(!read(&row.heads, &row.bodies[1..]));
        assert!(!read(&row.heads, b""));
    }
}
