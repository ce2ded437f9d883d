//! The journal of events and the sinks' cursors.
//!
//! Events that are appended together share rows, because one row for each event would cost more
//! than the events themselves. A row is removed once every sink has all of its events.
//!
//! The journal's start, its end and each sink's cursor are kept in memory, so that a backlog need
//! not be counted: positions have no gaps. An acknowledgement counts at once and is stored with
//! the next transaction, so that after a fault of the disk no sink reads again what it has
//! delivered.

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

/// Maximum number of events that one transaction removes from the journal, so that none takes
/// long.
const PRUNE_STEP: i64 = 8192;

/// What is known of the journal without reading it.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    /// Maximum number of events that may wait for a sink.
    limit: u64,
    /// Events up to this position are removed, or will be removed together with the rest of their
    /// row.
    start: i64,
    /// The position of the newest event.
    end: i64,
    cursors: BTreeMap<Box<str>, Cursor>,
    /// How long a sink that has left is kept.
    pub(super) kept_for: Duration,
    /// Messages to log once the transaction is committed.
    notices: Vec<SinkNotice>,
}

/// How far a sink has come.
#[derive(Clone, Debug)]
struct Cursor {
    /// The last position that was acknowledged.
    position: i64,
    mark: Option<Vec<u8>>,
    stored: bool,
    /// Whether the configuration has named the sink since the process began.
    was_named: bool,
    /// Set if the sink is no longer named.
    left: Option<Left>,
}

/// When and where a sink left the configuration.
#[derive(Clone, Copy, Debug)]
struct Left {
    /// When the sink left, on the clock since boot. The time is not stored and begins anew at a
    /// start, so that neither a change of the wall clock nor a downtime of the exporter shortens
    /// it.
    at: Duration,
    /// The position of the newest event at that time.
    end: i64,
}

/// A message about a sink that has left the configuration.
#[derive(Clone, Debug)]
struct SinkNotice {
    sink: Box<str>,
    events: Waiting,
    fate: Fate,
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Kept { for_another: Duration },
    GivenUp(Reason),
}

// === impl Cursor ===

impl Cursor {
    fn skip_to(&mut self, position: i64) {
        self.position = position;
        self.stored = false;
    }

    /// Skips rows that somebody has removed, and warns of it. The mark stays, because the sink's
    /// earlier lines are still where they were.
    fn skip_removed(&mut self, sink: &str, position: i64) {
        tracing::warn!(
            sink,
            events = position - self.position,
            // Without the position, a second gap of the same length would count as a repeated
            // warning and not be printed.
            first = self.position + 1,
            "rows of the journal that were not delivered were removed; delivery goes on behind them"
        );
        self.skip_to(position);
    }

    /// How many events wait for a sink that has left. Only events from before it left count,
    /// because later ones were not meant for it.
    fn left_waiting(&self) -> Waiting {
        let waiting = self.left.map_or(0, |left| left.end - self.position);
        let waiting = u64::try_from(waiting).unwrap_or_default();
        if self.was_named {
            Waiting::Exactly(waiting)
        } else {
            // The sink may have left long before the start.
            Waiting::AtMost(waiting)
        }
    }
}

// === impl SinkNotice ===

impl SinkNotice {
    fn log(&self) {
        match self.fate {
            Fate::Kept { for_another } => tell_left(&self.sink, self.events, for_another),
            Fate::GivenUp(reason) => tell_given_up(&self.sink, self.events, reason),
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
                // Somebody has removed all rows that were left for this sink, such as a damaged
                // row.
                cursor.skip_removed(name, end);
            } else if (0..start).contains(&cursor.position) {
                // Somebody has removed the next rows for this sink.
                cursor.skip_removed(name, start);
            } else if !(start..=end).contains(&cursor.position) {
                tracing::error!(
                    sink = &**name,
                    position = cursor.position,
                    "the sink's place in the journal is damaged; what is in the journal is delivered, \
                     of which it may have some already"
                );
                // Without a mark, the sink searches its file for events that it has delivered
                // already.
                cursor.mark = None;
                cursor.skip_to(start);
            }
        }
        Ok(Self {
            limit,
            start,
            end,
            cursors,
            kept_for: KEPT_FOR,
            notices: Vec::new(),
        })
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// The position of the newest event.
    pub(super) fn end(&self) -> i64 {
        self.end
    }

    /// The position up to which nothing waits for a sink any more, because it was acknowledged or
    /// skipped; `None` if there is no such sink.
    pub(super) fn place(&self, sink: &str) -> Option<i64> {
        let named = self.cursors.get(sink);
        named.filter(|it| it.left.is_none()).map(|it| it.position)
    }

    /// Makes room for this many more events: gives up sinks that have left if they alone are in
    /// the way. Returns whether there is room.
    pub(super) fn make_room(&mut self, connection: &Connection, events: u64) -> Result<bool> {
        if !self.has_room(events) {
            return Ok(false);
        }
        let in_the_way = self.left_sinks(|cursor, _| !self.leaves_room(cursor, events));
        self.give_up(connection, &in_the_way, Reason::Room)?;
        Ok(true)
    }

    /// Whether this many more events may wait once sinks that have left are given up.
    pub(super) fn has_room(&self, events: u64) -> bool {
        let mut named = self.cursors.values().filter(|cursor| cursor.left.is_none());
        named.all(|cursor| self.leaves_room(cursor, events))
    }

    /// The sink for which the most events wait, those aside that have left.
    pub(super) fn fullest_sink(&self) -> Box<str> {
        let named = self.cursors.iter().filter(|(_, it)| it.left.is_none());
        let fullest = named.min_by_key(|(_, cursor)| cursor.position);
        fullest.map(|(name, _)| name.clone()).unwrap_or_default()
    }

    fn leaves_room(&self, cursor: &Cursor, events: u64) -> bool {
        let waiting = self.end.abs_diff(cursor.position);
        waiting.saturating_add(events) <= self.limit
    }

    /// Whether sinks that have left keep events that every other sink has delivered.
    pub(super) fn is_held_by_left(&self) -> bool {
        self.delivered() < self.delivered_to_named()
    }

    /// How many bytes of the file such events take, at least.
    pub(super) fn bytes_held_by_left(&self, connection: &Connection) -> Result<u64> {
        let bytes: i64 = connection
            .prepare_cached(
                "SELECT coalesce(sum(length(heads) + length(bodies)), 0) FROM journal
                 WHERE last <= ?1",
            )?
            .query_row([self.delivered_to_named()], |row| row.get(0))?;
        Ok(u64::try_from(bytes).unwrap_or_default())
    }

    /// Gives up the sinks that have left and keep events that every other sink has delivered.
    pub(super) fn give_up_left(&mut self, connection: &Connection) -> Result<()> {
        let named = self.delivered_to_named();
        let names = self.left_sinks(|cursor, _| cursor.position < named);
        self.give_up(connection, &names, Reason::Room)
    }

    /// Whether the time for which a sink is kept after it left is over for any sink.
    pub(super) fn has_expired_sink(&self, now: Duration) -> bool {
        let mut left = self.cursors.values().filter_map(|cursor| cursor.left);
        left.any(|left| left.rest(now, self.kept_for).is_zero())
    }

    /// Gives up the sinks that left so long ago that they are not kept any longer.
    pub(super) fn give_up_expired(&mut self, connection: &Connection, now: Duration) -> Result<()> {
        let names = self.left_sinks(|_, left| left.rest(now, self.kept_for).is_zero());
        self.give_up(connection, &names, Reason::Time)
    }

    fn left_sinks(&self, is_sought: impl Fn(&Cursor, Left) -> bool) -> Vec<Box<str>> {
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
                self.notices.push(SinkNotice {
                    sink: name.clone(),
                    events: cursor.left_waiting(),
                    fate: Fate::GivenUp(reason),
                });
            }
        }
        Ok(())
    }

    /// Logs what became of sinks that have left. Called once the change is durable.
    pub(super) fn log_notices(&mut self) {
        for notice in self.notices.drain(..) {
            notice.log();
        }
    }

    /// Appends events. Without sinks it appends nothing, because nobody would ever read or remove
    /// the events.
    pub(super) fn append(
        &mut self,
        connection: &Connection,
        events: &[JournalEvent],
    ) -> Result<()> {
        if self.cursors.is_empty() {
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

    /// Returns the next events for a sink; `None` if there is no such sink.
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
        // A batch is made and dropped as a whole, so its bodies can share one allocation.
        let mut bodies = Vec::new();
        let mut heads = Vec::new();
        let mut last = position;
        let mut read = || -> Result<()> {
            while let Some(row) = rows.next()? {
                let Micros(at) = row.get(1)?;
                let entries = Entries::of(row)?;
                for entry in entries.skip_while(|entry| entry.position <= position) {
                    // Positions have no gaps, so somebody has removed the events in between.
                    if entry.position > last + 1 {
                        if !heads.is_empty() {
                            // The gap is skipped, and told, once the events before it are
                            // delivered.
                            return Ok(());
                        }
                        cursor.skip_removed(sink, entry.position - 1);
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
            // A row that cannot be read holds up only the events behind it.
            Err(error) if heads.is_empty() => return Err(error),
            // Somebody has removed all rows that were left for this sink, such as a damaged row.
            Ok(()) if heads.is_empty() => {
                cursor.skip_removed(sink, self.end);
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

    /// Moves a sink's cursor on. This includes a sink that has left, whose last delivery may end
    /// only now. Returns whether there is such a sink. [`Self::store_cursors`] stores the cursor.
    pub(super) fn acknowledge(&mut self, sink: &str, position: i64, mark: Option<Vec<u8>>) -> bool {
        let Some(cursor) = self.cursors.get_mut(sink) else {
            return false;
        };
        // Nothing beyond the end can have been delivered, and events that are journalled there
        // later must not be skipped.
        let position = position.min(self.end);
        if position >= cursor.position {
            cursor.mark = mark;
            cursor.skip_to(position);
        }
        true
    }

    /// Whether events wait for a sink whose cursor could not be stored so far.
    pub(super) fn lacks_cursor(&self, sink: &str) -> bool {
        let named = self.cursors.get(sink);
        named.is_some_and(|it| it.left.is_none() && !it.stored && it.position < self.end)
    }

    /// Stores the acknowledgements since the last committed transaction.
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

    /// Returns how much waits for a sink; `None` if there is no such sink.
    pub(super) fn backlog(&self, connection: &Connection, sink: &str) -> Option<Backlog> {
        let position = self.place(sink)?;
        // An event in a row that cannot be read waits all the same, but its time is unknown.
        Some(Backlog {
            events: self.end.abs_diff(position),
            oldest: oldest(connection, position).unwrap_or_default(),
        })
    }

    /// Adds new sinks, notes which sinks have left, and returns the states of the named sinks.
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
        Ok(self.set_named(names, now))
    }

    /// Like `Self::set_sinks` if no sink is new, so that nothing has to be stored; `None` if one
    /// is new.
    pub(super) fn set_known_sinks(
        &mut self,
        names: &[String],
        now: Duration,
    ) -> Option<Vec<SinkState>> {
        let is_known = |name: &String| self.cursors.contains_key(name.as_str());
        names
            .iter()
            .all(is_known)
            .then(|| self.set_named(names, now))
    }

    /// Notes which sinks are named and which have left.
    fn set_named(&mut self, names: &[String], now: Duration) -> Vec<SinkState> {
        for (name, cursor) in &mut self.cursors {
            if names.iter().any(|wanted| **wanted == **name) {
                cursor.left = None;
                cursor.was_named = true;
                continue;
            }
            let end = self.end;
            let left = *cursor.left.get_or_insert(Left { at: now, end });
            self.notices.push(SinkNotice {
                sink: name.clone(),
                events: cursor.left_waiting(),
                fate: Fate::Kept {
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

    /// Whether the journal still holds events that every sink has delivered.
    pub(super) fn has_delivered(&self) -> bool {
        self.start < self.delivered()
    }

    /// Removes some events that every sink has delivered.
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

    /// The position up to which every sink has delivered the events.
    fn delivered(&self) -> i64 {
        let positions = self.cursors.values().map(|cursor| cursor.position);
        positions.min().unwrap_or(self.end)
    }

    /// The same without the sinks that have left.
    fn delivered_to_named(&self) -> i64 {
        let named = self.cursors.values().filter(|it| it.left.is_none());
        named.map(|it| it.position).min().unwrap_or(self.end)
    }
}

// === impl Left ===

impl Left {
    /// How much longer the sink is kept, if `kept_for` is the whole time.
    fn rest(self, now: Duration, kept_for: Duration) -> Duration {
        kept_for.saturating_sub(now.saturating_sub(self.at))
    }
}

/// Returns the last position before the journal's first row; `None` if the journal is empty. The
/// length of a damaged row cannot be trusted: if the row seemed to begin behind events that a sink
/// lacks, these would be skipped and removed. So a damaged row is taken to hold all positions from
/// `first_sought` on.
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

/// Returns when the oldest event behind `position` was journalled.
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
        // The events have different times, so each is in a row of its own.
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
            // The second time stands for a delivery that failed and is tried again.
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
        connection
            .execute("UPDATE sink SET position = 9", [])
            .unwrap();
        load(connection).unwrap();
        let told = lines.lock();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains(" sink=loki events=1 first=9 "), "{told:?}");
    }

    #[test]
    fn of_the_sinks_that_have_left_only_those_in_the_way_or_out_of_time_are_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let load = |connection: &Connection| Journal::load(connection, 1000);
        let (mut file, mut journal) = StateFile::open(&path, load).unwrap();
        let connection = file.connection();
        let names = |names: &[&str]| -> Vec<_> { names.iter().map(ToString::to_string).collect() };
        let second = Duration::from_secs;
        let all = names(&["fast", "first", "level", "slow"]);
        journal.set_sinks(connection, &all, second(0)).unwrap();
        let events: Vec<_> = (1..=4).map(event).collect();
        journal.append(connection, &events).unwrap();
        for (sink, position) in [("fast", 4), ("level", 2)] {
            journal.acknowledge(sink, position, None);
        }
        for (left, at) in [
            (&["fast", "level", "slow"][..], 10),
            (&["fast", "slow"], 20),
        ] {
            journal.set_known_sinks(&names(left), second(at)).unwrap();
        }
        let known = |journal: &Journal| -> Vec<_> {
            journal.cursors.keys().map(ToString::to_string).collect()
        };
        // The slowest of the sinks that are named needs the events as well.
        assert!(!journal.is_held_by_left());
        journal.give_up_left(connection).unwrap();
        assert_eq!(known(&journal), all);

        let (mut early, kept_for) = (journal.clone(), journal.kept_for);
        assert!(!early.has_expired_sink(second(9) + kept_for));
        assert!(early.has_expired_sink(second(10) + kept_for));
        early
            .give_up_expired(connection, second(19) + kept_for)
            .unwrap();
        assert_eq!(known(&early), ["fast", "level", "slow"]);
        assert!(!early.has_expired_sink(second(19) + kept_for));

        journal.acknowledge("slow", 2, None);
        assert!(journal.is_held_by_left());
        journal.give_up_left(connection).unwrap();
        assert_eq!(known(&journal), ["fast", "level", "slow"]);
        assert!(!journal.is_held_by_left());
    }
}
