//! The journals and how far the sinks have come in them, in SQL.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    Shared,
    connection::{Failure, Session, Tries},
    journal::Range,
    leases::{State, done_and_locked, rows_and_epochs},
    time::Time,
};
use crate::store::{Held, JournalEvent, Pending};

/// Number of events that one statement removes from journals.
pub(super) const PRUNE_STEP: i64 = 2000;

/// While a replica has announced a sink that is not entered yet, nothing is pruned. If the replica
/// was not heard of for a lease and this time, it is taken for dead and no longer prevents
/// pruning.
const ENTERING: Duration = Duration::from_secs(60);

/// The searches that are held under some leases. `$1` are their rows, and `$2` the epochs in the
/// same order.
macro_rules! held_by {
    () => {
        "search JOIN unnest($1::bigint[], $2::bigint[]) AS held (id, epoch)
            ON search.id = held.id AND search.epoch = held.epoch"
    };
}

pub(super) use held_by;

/// Returns how far each sink has come in the journal of a search that was just taken. A position
/// beyond the journal's end is damaged. The sink is set to the journal's start before new events
/// go beyond such a position.
pub(super) async fn progress(
    session: &mut Session,
    search: i64,
) -> Result<Vec<(String, i64)>, Failure> {
    let rows = session
        .query(
            "WITH mended AS (
                UPDATE progress SET position = coalesce(
                    (SELECT min(position) - 1 FROM journal WHERE search_id = $1), journal_end)
                FROM search
                WHERE search.id = $1 AND progress.search_id = $1
                    AND progress.position > search.journal_end
                RETURNING progress.sink, progress.position)
             SELECT sink.name, coalesce(mended.position, progress.position, 0),
                mended.sink IS NOT NULL
             FROM sink LEFT JOIN mended ON mended.sink = sink.name
             LEFT JOIN progress ON progress.sink = sink.name AND progress.search_id = $1",
            &[&search],
        )
        .await?;
    let mut progress = Vec::with_capacity(rows.len());
    for row in &rows {
        let (sink, position): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        if row.try_get(2)? {
            tracing::error!(
                sink,
                row = search,
                "the sink's place in the journal of a search is damaged; what is in the journal is \
                 delivered, of which it may have some already"
            );
        }
        progress.push((sink, position));
    }
    Ok(progress)
}

/// Reads events, in a statement with this end, which may lock rows.
macro_rules! read_with {
    ($lock:literal) => {
        concat!(
            "SELECT place, event_id, at, body FROM (
                SELECT wanted.search_id, wanted.place + event.position - wanted.first AS place,
                    event.event_id, event.at, event.body,
                    sum(octet_length(event.body)) OVER line AS bytes,
                    row_number() OVER line AS number
                FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[])
                    AS wanted (search_id, first, last, place)
                CROSS JOIN LATERAL (
                    SELECT position, event_id, at, body FROM journal
                    WHERE journal.search_id = wanted.search_id
                        AND journal.position BETWEEN wanted.first AND wanted.last) AS event
                WINDOW line AS (ORDER BY wanted.place + event.position - wanted.first)) AS lined_up ",
            $lock
        )
    };
}

/// A statement that any server answers, also a standby that lags behind.
const READ: &str = read_with!("WHERE bytes <= $5 OR number = 1 ORDER BY place");

/// A statement that only a server answers that may write, because locking rows is writing.
const READ_FOR_SURE: &str = read_with!(
    "JOIN search ON search.id = lined_up.search_id
     WHERE bytes <= $5 OR number = 1 ORDER BY place FOR KEY SHARE OF search"
);

/// Returns the events of `ranges`, with no more than `max_bytes` of bodies, but at least one event
/// if there is one. An event that is not returned may be there all the same: see
/// [`read_for_sure`].
pub(super) async fn read(
    session: &mut Session,
    ranges: &[Range],
    max_bytes: usize,
) -> Result<Vec<Pending>, Failure> {
    read_by(READ, session, ranges, max_bytes).await
}

/// Like `read`, from a server that has all that was committed, as long as the searches are held
/// under these `leases`: an event that is not returned is gone. Returns `None` if some leases are
/// lost.
pub(super) async fn read_for_sure(
    shared: &Shared,
    session: &mut Session,
    leases: &[Held],
    ranges: &[Range],
    max_bytes: usize,
) -> Result<Option<Vec<Pending>>, Failure> {
    let mut tries = Tries::default();
    loop {
        match try_read_for_sure(shared, session, leases, ranges, max_bytes).await {
            Err(failure) if tries.again(&failure).await => session.roll_back().await?,
            done => return done,
        }
    }
}

async fn try_read_for_sure(
    shared: &Shared,
    session: &mut Session,
    leases: &[Held],
    ranges: &[Range],
    max_bytes: usize,
) -> Result<Option<Vec<Pending>>, Failure> {
    let me = shared.number()?;
    let (rows, epochs) = rows_and_epochs(leases);
    session.begin().await?;
    // Until the transaction ends, no other replica can take the searches up and then remove what
    // it has delivered.
    let held: Vec<i64> = session
        .column(
            concat!(
                "SELECT search.id FROM ",
                held_by!(),
                " WHERE search.owner = $3 AND search.lease_until > clock_timestamp()
                 ORDER BY search.id FOR KEY SHARE OF search"
            ),
            &[&rows, &epochs, &me],
        )
        .await?;
    let lost: Vec<Held> = leases
        .iter()
        .filter(|it| !held.contains(&it.row))
        .copied()
        .collect();
    if !lost.is_empty() {
        session.roll_back().await?;
        shared.change_leases(|state| {
            for held in lost {
                state.lose_late(held);
            }
        });
        return Ok(None);
    }
    let found = read_by(READ_FOR_SURE, session, ranges, max_bytes).await?;
    session.commit().await?;
    Ok(Some(found))
}

async fn read_by(
    statement: &'static str,
    session: &mut Session,
    ranges: &[Range],
    max_bytes: usize,
) -> Result<Vec<Pending>, Failure> {
    let rows: Vec<i64> = ranges.iter().map(|range| range.row).collect();
    let firsts: Vec<i64> = ranges.iter().map(|range| range.first).collect();
    let lasts: Vec<i64> = ranges.iter().map(|it| it.first + it.count - 1).collect();
    let places: Vec<i64> = ranges.iter().map(|range| range.place).collect();
    let max_bytes = i64::try_from(max_bytes).unwrap_or(i64::MAX);
    let found = session
        .query(statement, &[&rows, &firsts, &lasts, &places, &max_bytes])
        .await?;
    let event = |row: &Row| {
        Ok(Pending {
            position: row.try_get(0)?,
            event: JournalEvent {
                event_id: row.try_get::<_, Uuid>(1)?,
                at: row.try_get::<_, Time>(2)?.0,
                body: Bytes::copy_from_slice(row.try_get(3)?),
            },
        })
    };
    found.iter().map(event).collect()
}

/// Returns when these events were journalled, by search and position. Events that are gone are
/// left out.
pub(super) async fn journalled_at(
    session: &mut Session,
    events: &[(i64, i64)],
) -> Result<HashMap<(i64, i64), Timestamp>, Failure> {
    let (searches, positions): (Vec<i64>, Vec<i64>) = events.iter().copied().unzip();
    let rows = session
        .query(
            "SELECT search_id, position, at
             FROM unnest($1::bigint[], $2::bigint[]) AS sought (search_id, position)
             JOIN journal USING (search_id, position)",
            &[&searches, &positions],
        )
        .await?;
    let dated = |row: &Row| {
        let event = (row.try_get(0)?, row.try_get(1)?);
        Ok((event, row.try_get::<_, Time>(2)?.0))
    };
    rows.iter().map(dated).collect()
}

/// The searches whose journals a sink is told to have come so far in. `$2` are their rows, `$3` the
/// epochs and `$4` the positions in the same order, and `$5` is this replica.
macro_rules! come_in {
    () => {
        "search JOIN unnest($2::bigint[], $3::bigint[], $4::bigint[]) AS come (id, epoch, position)
            ON search.id = come.id AND search.epoch = come.epoch
                AND search.journal_end >= come.position
         WHERE search.owner = $5 AND search.lease_until > clock_timestamp()"
    };
}

/// Stores how far the sink `$1` has come, and its mark `$7`, if `$8` says so, for the node `$6`.
/// Waiting for one locked row would hold up the positions of all searches.
const SAVE: &str = concat!(
    "WITH ours AS (SELECT search.id FROM ",
    come_in!(),
    "),
     mine AS (
        SELECT search.id, come.position, search.journal_end FROM ",
    come_in!(),
    "   ORDER BY search.id FOR KEY SHARE OF search SKIP LOCKED),
     marked AS (
        INSERT INTO mark (sink, node, mark)
        SELECT $1, $6, $7::bytea
        WHERE $8 AND (SELECT count(*) FROM mine) = cardinality($2::bigint[])
        ON CONFLICT (sink, node) DO UPDATE SET mark = excluded.mark),
     saved AS (
        INSERT INTO progress (sink, search_id, position)
        SELECT $1, id, position FROM mine
        ON CONFLICT (sink, search_id) DO UPDATE
            SET position = CASE WHEN progress.position
                    <= (SELECT journal_end FROM mine WHERE id = progress.search_id)
                THEN greatest(progress.position, excluded.position)
                ELSE excluded.position END
        RETURNING search_id)
     SELECT search_id, TRUE FROM saved
     UNION ALL
     SELECT id, FALSE FROM ours WHERE id NOT IN (SELECT id FROM mine)"
);

/// Tells the server how far a sink has come. For a search whose lease was lost, the position is
/// not stored, because the next holder tells it. A mark may cover that position all the same,
/// because a replica that takes a search up looks for its lines before the mark, too. Returns the
/// searches whose rows are locked. Their positions are told later.
pub(super) async fn save(shared: &Shared, sink: &str) -> Result<HashSet<i64>, Failure> {
    // A position must not overtake one that was told before. A replica that would take one of
    // these searches up waits until this is done. Renewals do not.
    let turn = shared.saving(sink);
    let _turn = turn.lock().await;
    let (me, (mut unsaved, epochs)) =
        shared.change_journals(|state| (state.replica, state.unsaved(sink)));
    if unsaved.positions.is_empty() && unsaved.mark.is_none() {
        return Ok(HashSet::new());
    }
    let me = me.ok_or(Failure::NotJoined)?;
    let rows: Vec<i64> = unsaved.positions.iter().map(|(row, _)| *row).collect();
    let positions: Vec<i64> = unsaved.positions.iter().map(|(_, to)| *to).collect();
    let mark = unsaved.mark.clone().flatten();
    let mut session = shared.pool.session().await?;
    let saved = session
        .query_again(
            SAVE,
            &[
                &sink,
                &rows,
                &epochs,
                &positions,
                &me,
                &shared.node,
                &mark,
                &unsaved.mark.is_some(),
            ],
        )
        .await?;
    drop(session);
    let (saved, locked) = done_and_locked(&saved)?;
    if saved.len() < rows.len() {
        unsaved.mark = None;
    }
    unsaved.positions.retain(|(row, _)| saved.contains(row));
    let all = saved.len() + locked.len() == rows.len();
    let note_saved = |state: &mut State| {
        // Other replicas may hold these searches now, or the server was set back.
        for (row, epoch) in rows.iter().zip(&epochs) {
            if !saved.contains(row) && !locked.contains(row) {
                state.lose_late(Held {
                    row: *row,
                    epoch: *epoch,
                });
            }
        }
        state.journal.saved(sink, &unsaved);
    };
    if all {
        shared.change_journals(note_saved);
    } else {
        shared.change_leases(note_saved);
    }
    Ok(locked)
}

/// Removes the events that every sink has from the journals of the searches that are held. This is
/// done in steps: if a sink that lacked the events of a day is removed, they are too many for the
/// time of one statement. A position beyond a journal's end is damaged, and does not say what a
/// sink has. While a replica names a sink that is not there, nothing is removed, because the
/// replica is about to [enter](super::naming::enter_sinks) the sink, and nobody knows yet what it lacks.
pub(super) async fn prune(shared: &Shared) -> Result<(), Failure> {
    let rows = shared.look(State::held_rows);
    if rows.is_empty() {
        return Ok(());
    }
    let entering = (shared.lease + ENTERING).as_secs_f64();
    let mut session = shared.pool.session().await?;
    loop {
        let removed = session
            .execute(
                "WITH delivered AS (
                    SELECT search_id, min(position) AS position FROM progress
                    JOIN search ON search.id = search_id AND journal_end >= position
                    WHERE search_id = ANY($1) AND NOT EXISTS (
                        SELECT FROM replica CROSS JOIN unnest(sinks) AS had (name)
                        WHERE alive_until > clock_timestamp() - $3 * interval '1 second'
                            AND had.name NOT IN (SELECT sink.name FROM sink))
                    GROUP BY search_id HAVING count(*) = (SELECT count(*) FROM sink)),
                 gone AS (
                    SELECT journal.search_id, journal.position FROM journal
                    JOIN delivered ON journal.search_id = delivered.search_id
                        AND journal.position <= delivered.position
                    LIMIT $2)
                 DELETE FROM journal USING gone
                 WHERE journal.search_id = gone.search_id AND journal.position = gone.position",
                &[&rows, &PRUNE_STEP, &entering],
            )
            .await?;
        if removed < PRUNE_STEP.unsigned_abs() {
            return Ok(());
        }
    }
}
