//! The journal of events and the sinks' cursors.
//!
//! Events that are appended together share rows, for a row each would cost more than the events
//! themselves. A row goes once every sink has all of it.
//!
//! Where it begins, where it ends and how far each sink has come is kept in memory, so that a
//! backlog costs no counting: positions have no gaps. An acknowledgement counts at once and is
//! stored with the next transaction, so that a fault of the disk never has a sink read again what
//! it has delivered.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Result, params};

use super::Micros;
use crate::store::{Backlog, Batch, Claim, JournalEvent, Pending, SinkState};
use row::{Entries, Rows};

mod row;

/// Events that one transaction removes from the journal at most, so that none takes long.
const PRUNE_STEP: i64 = 8192;

/// What is known of the journal without reading it.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    /// Events that may wait.
    limit: u64,
    /// Events up to here are gone, or go with the row that they are in.
    start: i64,
    /// The last position that was given.
    end: i64,
    cursors: BTreeMap<Box<str>, Cursor>,
}

/// How far a sink has come.
#[derive(Clone, Debug)]
struct Cursor {
    /// The last position that was acknowledged.
    position: i64,
    mark: Option<Vec<u8>>,
    stored: bool,
}

// === impl Cursor ===

impl Cursor {
    fn skip_to(&mut self, position: i64) {
        self.position = position;
        self.stored = false;
    }
}

// === impl Journal ===

impl Journal {
    pub(super) fn load(connection: &Connection, limit: u64) -> Result<Self> {
        let end = connection
            .query_row(
                "SELECT seq FROM sqlite_sequence WHERE name = 'journal'",
                [],
                |row| row.get(0),
            )
            .optional()?
            .unwrap_or(0);
        let start = connection
            .query_row(
                "SELECT last, heads FROM journal ORDER BY last LIMIT 1",
                [],
                |row| Ok(row.get::<_, i64>(0)? - row::count(row.get_ref(1)?.as_blob()?)),
            )
            .optional()?
            .unwrap_or(end);
        let last: Option<i64> =
            connection.query_row("SELECT max(last) FROM journal", [], |row| row.get(0))?;
        let mut cursors: BTreeMap<Box<str>, Cursor> = connection
            .prepare("SELECT name, position, mark FROM sink")?
            .query_map([], |row| {
                let cursor = Cursor {
                    position: row.get(1)?,
                    mark: row.get(2)?,
                    stored: true,
                };
                Ok((row.get(0)?, cursor))
            })?
            .collect::<Result<_>>()?;
        let mut removed = false;
        for (name, cursor) in &mut cursors {
            if (0..end).contains(&cursor.position)
                && last.is_none_or(|last| last <= cursor.position)
            {
                // Somebody has removed what was left for it, such as a damaged row.
                cursor.skip_to(end);
            } else if (0..start).contains(&cursor.position) {
                // So has somebody what came next for it. What it delivered is where it was.
                removed = true;
                cursor.skip_to(start);
            } else if !(start..=end).contains(&cursor.position) {
                tracing::error!(
                    sink = &**name,
                    position = cursor.position,
                    "the sink's place in the journal is damaged; what is in the journal is delivered, \
                     of which it may have some already"
                );
                // Without a mark a file is searched for them.
                cursor.mark = None;
                cursor.skip_to(start);
            }
        }
        if removed {
            tracing::warn!(
                first = start + 1,
                "rows of the journal that were not delivered were removed; delivery goes on behind them"
            );
        }
        Ok(Self {
            limit,
            start,
            end,
            cursors,
        })
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// The last position that was given.
    pub(super) fn end(&self) -> i64 {
        self.end
    }

    /// Whether so many more events may wait.
    pub(super) fn has_room(&self, events: usize) -> bool {
        let waiting = self.end.abs_diff(self.delivered());
        self.cursors.is_empty() || waiting.saturating_add(events as u64) <= self.limit
    }

    /// Appends events. Without a sink nobody would ever read or remove them.
    pub(super) fn append(
        &mut self,
        connection: &Connection,
        events: &[JournalEvent],
    ) -> Result<()> {
        if self.cursors.is_empty() || events.is_empty() {
            return Ok(());
        }
        let mut insert = connection.prepare_cached(
            "INSERT INTO journal (last, at, heads, bodies, checksum) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?;
        for row in Rows::of(events) {
            self.end += row.count();
            let checksum = row.checksum(self.end);
            insert.execute(params![
                self.end,
                Micros(row.at),
                row.heads,
                row.bodies,
                checksum
            ])?;
        }
        Ok(())
    }

    /// The next events for a sink; `None` where there is no such sink.
    pub(super) fn pending(
        &mut self,
        connection: &Connection,
        sink: &str,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<Option<Batch>> {
        let Some(cursor) = self.cursors.get_mut(sink) else {
            return Ok(None);
        };
        let position = cursor.position;
        if position == self.end || max_events == 0 {
            return Ok(Some(Batch::default()));
        }
        let mut select = connection.prepare_cached(
            "SELECT last, at, heads, bodies, checksum FROM journal WHERE last > ?1 ORDER BY last",
        )?;
        let mut rows = select.query([position])?;
        // A batch comes and goes as a whole, so that its bodies can share one allocation.
        let mut bodies = Vec::new();
        let mut heads = Vec::new();
        let mut read = || -> Result<()> {
            while let Some(row) = rows.next()? {
                let Micros(at) = row.get(1)?;
                let entries = Entries::of(row)?;
                for entry in entries.skip_while(|entry| entry.position <= position) {
                    if heads.len() == max_events
                        || !heads.is_empty() && bodies.len() + entry.body.len() > max_bytes
                    {
                        return Ok(());
                    }
                    bodies.extend_from_slice(entry.body);
                    heads.push((entry.position, entry.event_id, at, bodies.len()));
                }
            }
            Ok(())
        };
        match read() {
            // What cannot be read holds up only what comes behind it.
            Err(error) if heads.is_empty() => return Err(error),
            // Somebody has removed what was left for it, such as a damaged row.
            Ok(()) if heads.is_empty() => cursor.skip_to(self.end),
            _ => {}
        }
        let bodies = Bytes::from(bodies);
        let mut from = 0;
        let events = heads
            .into_iter()
            .map(|(position, event_id, at, to)| {
                let body = bodies.slice(from..to);
                from = to;
                Pending {
                    position,
                    event: JournalEvent { event_id, at, body },
                }
            })
            .collect();
        Ok(Some(Batch {
            events,
            claim: Claim::default(),
        }))
    }

    /// Moves a sink's cursor on; returns whether there is such a sink. It is stored with
    /// [`Self::store_cursors`].
    pub(super) fn acknowledge(&mut self, sink: &str, position: i64, mark: Option<Vec<u8>>) -> bool {
        let Some(cursor) = self.cursors.get_mut(sink) else {
            return false;
        };
        // Beyond the end there is nothing that could have been delivered; what is journalled there
        // later must not be skipped.
        let position = position.min(self.end);
        if position >= cursor.position {
            *cursor = Cursor {
                position,
                mark,
                stored: false,
            };
        }
        true
    }

    /// Stores what was acknowledged since the last transaction that was committed.
    pub(super) fn store_cursors(&mut self, connection: &Connection) -> Result<()> {
        for (name, cursor) in &mut self.cursors {
            if !cursor.stored {
                connection
                    .prepare_cached("UPDATE sink SET position = ?2, mark = ?3 WHERE name = ?1")?
                    .execute(params![name, cursor.position, cursor.mark])?;
                cursor.stored = true;
            }
        }
        Ok(())
    }

    /// How much waits for a sink; `None` where there is no such sink.
    pub(super) fn backlog(&self, connection: &Connection, sink: &str) -> Option<Backlog> {
        let &Cursor { position, .. } = self.cursors.get(sink)?;
        // A row that cannot be read waits all the same.
        let oldest = if position < self.end {
            oldest(connection, position).unwrap_or_default()
        } else {
            None
        };
        Some(Backlog {
            events: self.end.abs_diff(position),
            oldest,
        })
    }

    /// Adds sinks that are new, forgets those that are not named, and returns all states.
    pub(super) fn set_sinks(
        &mut self,
        connection: &Connection,
        names: &[String],
    ) -> Result<Vec<SinkState>> {
        let mut forget = connection.prepare_cached("DELETE FROM sink WHERE name = ?1")?;
        let gone: Vec<_> = self
            .cursors
            .keys()
            .filter(|name| !names.iter().any(|wanted| **wanted == ***name))
            .cloned()
            .collect();
        for name in gone {
            forget.execute([&name])?;
            self.cursors.remove(&name);
        }
        let mut add =
            connection.prepare_cached("INSERT INTO sink (name, position) VALUES (?1, ?2)")?;
        names
            .iter()
            .map(|name| {
                let mark = if let Some(cursor) = self.cursors.get(name.as_str()) {
                    cursor.mark.clone()
                } else {
                    add.execute(params![name, self.end])?;
                    let cursor = Cursor {
                        position: self.end,
                        mark: None,
                        stored: true,
                    };
                    self.cursors.insert(name.as_str().into(), cursor);
                    None
                };
                Ok(SinkState { mark })
            })
            .collect()
    }

    /// Whether events that every sink has are still in the journal.
    pub(super) fn has_delivered(&self) -> bool {
        self.start < self.delivered()
    }

    /// Removes some events that every sink has.
    pub(super) fn prune(&mut self, connection: &Connection) -> Result<()> {
        let through = self.delivered().min(self.start.saturating_add(PRUNE_STEP));
        if self.start < through {
            connection
                .prepare_cached("DELETE FROM journal WHERE last <= ?1")?
                .execute([through])?;
            self.start = through;
        }
        Ok(())
    }

    /// Every sink has the events up to here.
    fn delivered(&self) -> i64 {
        let positions = self.cursors.values().map(|cursor| cursor.position);
        positions.min().unwrap_or(self.end)
    }
}

/// When the oldest event behind `position` was journalled.
fn oldest(connection: &Connection, position: i64) -> Result<Option<Timestamp>> {
    connection
        .prepare_cached("SELECT at FROM journal WHERE last > ?1 ORDER BY last LIMIT 1")?
        .query_row([position], |row| row.get(0).map(|Micros(at)| at))
        .optional()
}
