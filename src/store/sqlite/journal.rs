//! The journal of events and the sinks' cursors.
//!
//! Events that are appended together share rows, for a row each would cost more than the events
//! themselves. A row goes once every sink has all of it.
//!
//! Where it begins, where it ends and how far each sink has come is kept in memory, so that a
//! backlog costs no counting: positions have no gaps. An acknowledgement counts at once and is
//! stored with the next transaction, so that a fault of the disk never has a sink read again what
//! it has delivered.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Result, params};

use super::Micros;
use crate::store::{
    Backlog, Batch, Claim, JournalEvent, Pending, SinkState,
    left_sinks::{KEPT_FOR, Reason, Waiting, tell_given_up, tell_left},
};
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
    /// How often a sink has gone on behind what somebody has removed.
    skipped: u64,
    /// How long a sink that has left is kept.
    pub(super) kept_for: Duration,
    /// What is to be told once the transaction is committed.
    news: Vec<News>,
}

/// How far a sink has come.
#[derive(Clone, Debug)]
struct Cursor {
    /// The last position that was acknowledged.
    position: i64,
    mark: Option<Vec<u8>>,
    stored: bool,
    /// Whether it was named since the process began.
    was_named: bool,
    /// Of a sink that is no longer named.
    left: Option<Left>,
}

/// That a sink has left the configuration.
#[derive(Clone, Copy, Debug)]
struct Left {
    /// When, on the clock since boot. It is not stored: a start counts as the moment, so that no clock that
    /// was set, and no time that the exporter was down for, costs anything.
    at: Duration,
    /// The last position that was given by then.
    end: i64,
}

/// What has become of a sink that has left the configuration.
#[derive(Clone, Debug)]
struct News {
    sink: Box<str>,
    events: Waiting,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Kept { for_another: Duration },
    GivenUp(Reason),
}

// === impl Cursor ===

impl Cursor {
    fn skip_to(&mut self, position: i64) {
        self.position = position;
        self.stored = false;
    }

    /// Goes on behind rows that somebody has removed, and says so. What it delivered is where it was: the mark
    /// stays.
    fn skip_removed(&mut self, sink: &str, position: i64) {
        tracing::warn!(
            sink,
            events = position - self.position,
            // With it no gap is like another one, and each is printed.
            first = self.position + 1,
            "rows of the journal that were not delivered were removed; delivery goes on behind them"
        );
        self.skip_to(position);
    }

    /// How many events wait for it of those that were there when it left: the others nobody has meant
    /// for it.
    fn left_waiting(&self) -> Waiting {
        let waiting = self.left.map_or(0, |left| left.end - self.position);
        let waiting = u64::try_from(waiting).unwrap_or_default();
        if self.was_named {
            Waiting::Exactly(waiting)
        } else {
            // It may have left long before the start.
            Waiting::AtMost(waiting)
        }
    }
}

// === impl News ===

impl News {
    fn tell(&self) {
        match self.what {
            What::Kept { for_another } => tell_left(&self.sink, self.events, for_another),
            What::GivenUp(reason) => tell_given_up(&self.sink, self.events, reason),
        }
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
        let mut cursors: BTreeMap<Box<str>, Cursor> = connection
            .prepare("SELECT name, position, mark FROM sink")?
            .query_map([], |row| {
                let cursor = Cursor {
                    position: row.get(1)?,
                    mark: row.get(2)?,
                    stored: true,
                    was_named: false,
                    left: None,
                };
                Ok((row.get(0)?, cursor))
            })?
            .collect::<Result<_>>()?;
        let places = cursors.values().map(|cursor| cursor.position);
        let first_sought = places.filter(|place| (0..=end).contains(place)).min();
        let start = start(connection, first_sought.unwrap_or(end))?.unwrap_or(end);
        let last: Option<i64> =
            connection.query_row("SELECT max(last) FROM journal", [], |row| row.get(0))?;
        for (name, cursor) in &mut cursors {
            if (0..end).contains(&cursor.position)
                && last.is_none_or(|last| last <= cursor.position)
            {
                // Somebody has removed what was left for it, such as a damaged row.
                cursor.skip_removed(name, end);
            } else if (0..start).contains(&cursor.position) {
                // So has somebody what came next for it.
                cursor.skip_removed(name, start);
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
        Ok(Self {
            limit,
            start,
            end,
            cursors,
            skipped: 0,
            kept_for: KEPT_FOR,
            news: Vec::new(),
        })
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// The last position that was given.
    pub(super) fn end(&self) -> i64 {
        self.end
    }

    /// Differs once less waits for a sink without having been acknowledged.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Sees to it that so many more events may wait: gives up sinks that have left, where they alone
    /// are in the way. Brings whether there is room.
    pub(super) fn make_room(&mut self, connection: &Connection, events: u64) -> Result<bool> {
        if !self.has_room(events) {
            return Ok(false);
        }
        let in_the_way = self.left(|cursor, _| !self.leaves_room(cursor, events));
        self.give_up(connection, &in_the_way, Reason::Room)?;
        Ok(true)
    }

    /// Whether so many more events may wait, once sinks that have left are given up.
    pub(super) fn has_room(&self, events: u64) -> bool {
        let mut named = self.cursors.values().filter(|cursor| cursor.left.is_none());
        named.all(|cursor| self.leaves_room(cursor, events))
    }

    fn leaves_room(&self, cursor: &Cursor, events: u64) -> bool {
        let waiting = self.end.abs_diff(cursor.position);
        waiting.saturating_add(events) <= self.limit
    }

    /// Whether sinks that have left keep something that every other one has.
    pub(super) fn is_held_by_left(&self) -> bool {
        self.delivered() < self.delivered_to_named()
    }

    /// How many bytes that is in the file, at least.
    pub(super) fn bytes_held_by_left(&self, connection: &Connection) -> Result<u64> {
        let bytes: i64 = connection
            .prepare_cached(
                "SELECT coalesce(sum(length(heads) + length(bodies)), 0) FROM journal
                 WHERE last <= ?1",
            )?
            .query_row([self.delivered_to_named()], |row| row.get(0))?;
        Ok(u64::try_from(bytes).unwrap_or_default())
    }

    /// Gives up the sinks that have left and keep something that every other one has.
    pub(super) fn give_up_left(&mut self, connection: &Connection) -> Result<()> {
        let named = self.delivered_to_named();
        let names = self.left(|cursor, _| cursor.position < named);
        self.give_up(connection, &names, Reason::Room)
    }

    /// Whether a sink has left that is not kept any longer.
    pub(super) fn is_any_over(&self, now: Duration) -> bool {
        let mut left = self.cursors.values().filter_map(|cursor| cursor.left);
        left.any(|left| left.rest(now, self.kept_for).is_zero())
    }

    /// Gives up the sinks that have left and are not kept any longer.
    pub(super) fn give_up_over(&mut self, connection: &Connection, now: Duration) -> Result<()> {
        let names = self.left(|_, left| left.rest(now, self.kept_for).is_zero());
        self.give_up(connection, &names, Reason::Time)
    }

    fn left(&self, is_sought: impl Fn(&Cursor, Left) -> bool) -> Vec<Box<str>> {
        let left = |cursor: &Cursor| cursor.left.is_some_and(|left| is_sought(cursor, left));
        let sought = self.cursors.iter().filter(|(_, cursor)| left(cursor));
        sought.map(|(name, _)| name.clone()).collect()
    }

    fn give_up(
        &mut self,
        connection: &Connection,
        names: &[Box<str>],
        reason: Reason,
    ) -> Result<()> {
        for name in names {
            connection
                .prepare_cached("DELETE FROM sink WHERE name = ?1")?
                .execute([name])?;
            if let Some(cursor) = self.cursors.remove(name) {
                self.news.push(News {
                    sink: name.clone(),
                    events: cursor.left_waiting(),
                    what: What::GivenUp(reason),
                });
            }
        }
        Ok(())
    }

    /// Tells what became of sinks that have left, once that is durable.
    pub(super) fn tell_news(&mut self) {
        for news in self.news.drain(..) {
            news.tell();
        }
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
        let named = self.cursors.get_mut(sink);
        let Some(cursor) = named.filter(|cursor| cursor.left.is_none()) else {
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
        let mut last = position;
        let mut read = || -> Result<()> {
            while let Some(row) = rows.next()? {
                let Micros(at) = row.get(1)?;
                let entries = Entries::of(row)?;
                for entry in entries.skip_while(|entry| entry.position <= position) {
                    // Positions have no gaps: somebody has removed what was there.
                    if entry.position > last + 1 {
                        if !heads.is_empty() {
                            // It is passed over, and told, once what comes before it is delivered.
                            return Ok(());
                        }
                        cursor.skip_removed(sink, entry.position - 1);
                        self.skipped += 1;
                    }
                    if heads.len() == max_events
                        || !heads.is_empty() && bodies.len() + entry.body.len() > max_bytes
                    {
                        return Ok(());
                    }
                    bodies.extend_from_slice(entry.body);
                    heads.push((entry.position, entry.event_id, at, bodies.len()));
                    last = entry.position;
                }
            }
            Ok(())
        };
        match read() {
            // What cannot be read holds up only what comes behind it.
            Err(error) if heads.is_empty() => return Err(error),
            // Somebody has removed what was left for it, such as a damaged row.
            Ok(()) if heads.is_empty() => {
                cursor.skip_removed(sink, self.end);
                self.skipped += 1;
            }
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

    /// Moves a sink's cursor on, also where it has left: then its last delivery has ended. Returns
    /// whether there is such a sink. It is stored with [`Self::store_cursors`].
    pub(super) fn acknowledge(&mut self, sink: &str, position: i64, mark: Option<Vec<u8>>) -> bool {
        let Some(cursor) = self.cursors.get_mut(sink) else {
            return false;
        };
        // Beyond the end there is nothing that could have been delivered; what is journalled there
        // later must not be skipped.
        let position = position.min(self.end);
        if position >= cursor.position {
            cursor.mark = mark;
            cursor.skip_to(position);
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
        let named = self.cursors.get(sink);
        let position = named.filter(|cursor| cursor.left.is_none())?.position;
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

    /// Adds sinks that are new, takes note of those that have left, and returns the states of those that
    /// are named.
    pub(super) fn set_sinks(
        &mut self,
        connection: &Connection,
        names: &[String],
        now: Duration,
    ) -> Result<Vec<SinkState>> {
        let mut add =
            connection.prepare_cached("INSERT INTO sink (name, position) VALUES (?1, ?2)")?;
        for name in names {
            if self.cursors.contains_key(name.as_str()) {
                continue;
            }
            add.execute(params![name, self.end])?;
            let cursor = Cursor {
                position: self.end,
                mark: None,
                stored: true,
                was_named: true,
                left: None,
            };
            self.cursors.insert(name.as_str().into(), cursor);
        }
        Ok(self.name(names, now))
    }

    /// The same where none of them is new: then nothing has to be stored. `None` where one is.
    pub(super) fn set_known_sinks(
        &mut self,
        names: &[String],
        now: Duration,
    ) -> Option<Vec<SinkState>> {
        let is_known = |name: &String| self.cursors.contains_key(name.as_str());
        names.iter().all(is_known).then(|| self.name(names, now))
    }

    /// Takes note of who is named and who has left.
    fn name(&mut self, names: &[String], now: Duration) -> Vec<SinkState> {
        for (name, cursor) in &mut self.cursors {
            if names.iter().any(|wanted| **wanted == **name) {
                cursor.left = None;
                cursor.was_named = true;
                continue;
            }
            let end = self.end;
            let left = *cursor.left.get_or_insert(Left { at: now, end });
            self.news.push(News {
                sink: name.clone(),
                events: cursor.left_waiting(),
                what: What::Kept {
                    for_another: left.rest(now, self.kept_for),
                },
            });
        }
        let named = names.iter().map(|name| self.cursors.get(name.as_str()));
        let states = named.map(|cursor| SinkState {
            mark: cursor.and_then(|cursor| cursor.mark.clone()),
        });
        states.collect()
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

    /// The same but for those that have left.
    fn delivered_to_named(&self) -> i64 {
        let named = self.cursors.values().filter(|it| it.left.is_none());
        named.map(|it| it.position).min().unwrap_or(self.end)
    }
}

// === impl Left ===

impl Left {
    /// How much longer it is kept, where that is so long altogether.
    fn rest(self, now: Duration, kept_for: Duration) -> Duration {
        kept_for.saturating_sub(now.saturating_sub(self.at))
    }
}

/// The last position before the journal's first row; `None` where it is empty. What a damaged row says of its
/// length says nothing: one that seemed to begin behind what a sink lacks would be passed over, and removed.
/// So it is taken to hold all from `first_sought` on.
fn start(connection: &Connection, first_sought: i64) -> Result<Option<i64>> {
    connection
        .query_row(
            "SELECT last, at, heads, bodies, checksum FROM journal ORDER BY last LIMIT 1",
            [],
            |row| {
                let last: i64 = row.get(0)?;
                Ok(match Entries::of(row) {
                    Ok(_) => last - row::count(row.get_ref(2)?.as_blob()?),
                    Err(_) => first_sought.min(last - 1),
                })
            },
        )
        .optional()
}

/// When the oldest event behind `position` was journalled.
fn oldest(connection: &Connection, position: i64) -> Result<Option<Timestamp>> {
    connection
        .prepare_cached("SELECT at FROM journal WHERE last > ?1 ORDER BY last LIMIT 1")?
        .query_row([position], |row| row.get(0).map(|Micros(at)| at))
        .optional()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        logging::captured,
        store::{conformance::event, sqlite::open::StateFile},
    };

    #[test]
    fn rows_that_somebody_removed_are_told_once_wherever_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let load = |connection: &Connection| Journal::load(connection, 1000);
        let path = folder.path().join("state.db");
        let (mut file, mut journal) = StateFile::open(&path, load).unwrap();
        let connection = file.connection();
        let sinks = ["loki".to_owned()];
        journal
            .set_sinks(connection, &sinks, Duration::ZERO)
            .unwrap();
        // They are of different times, and so in a row each.
        let events: Vec<_> = (1..=9).map(event).collect();
        journal.append(connection, &events).unwrap();
        connection
            .execute("DELETE FROM journal WHERE last IN (1, 4, 5, 9)", [])
            .unwrap();
        let (lines, _logging) = captured();
        for (found, removed) in [
            (&[2, 3][..], "events=1 first=1"),
            (&[6, 7, 8], "events=2 first=4"),
            (&[], "events=1 first=9"),
        ] {
            // Also where the delivery fails, and is tried again.
            for _ in 0..2 {
                let batch = journal.pending(connection, "loki", 100, usize::MAX);
                let events = batch.unwrap().unwrap().events;
                let positions: Vec<_> = events.iter().map(|event| event.position).collect();
                assert_eq!(positions, found);
            }
            let told: Vec<_> = lines.lock().drain(..).collect();
            let what = format!(" sink=loki {removed} ");
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(
                told[0].contains("level=warn")
                    && told[0].contains("delivery goes on behind them")
                    && told[0].contains(&what),
                "{told:?}"
            );
            if let Some(last) = found.last() {
                journal.acknowledge("loki", *last, None);
            }
        }
        assert_eq!(journal.backlog(connection, "loki").unwrap().events, 0);

        // The same at a start.
        let (lines, _logging) = captured();
        connection
            .execute("UPDATE sink SET position = 7", [])
            .unwrap();
        load(connection).unwrap();
        connection
            .execute("UPDATE sink SET position = 8", [])
            .unwrap();
        load(connection).unwrap();
        let told = lines.lock();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains(" sink=loki events=1 first=9 "), "{told:?}");
    }
}
