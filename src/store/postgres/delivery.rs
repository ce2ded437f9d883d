//! The sinks and the journals, in SQL.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use super::{
    Shared,
    connection::{Failure, Session, Tries},
    journal::{Position, Range},
    leases::{State, done_and_locked, rows_and_epochs},
    time::Time,
};
use crate::{
    clock,
    store::{
        Held, JournalEvent, Pending,
        left_sinks::{KEPT_FOR, Reason, Waiting, tell_given_up, tell_left},
    },
};

/// Number of events that one statement removes from journals.
pub(super) const PRUNE_STEP: i64 = 2000;

/// How long the entering of a sink waits for locked rows of searches.
const LOCKED_PATIENCE: Duration = Duration::from_secs(20);

/// Maximum time of a statement that waits for locked rows of searches, however many they are. This
/// is less than an answer may take, because a connection that is given up does not say that a lock
/// was the cause.
const LOCKED_STATEMENT: Duration = Duration::from_secs(5);

/// While a replica has announced a sink that is not entered yet, nothing is pruned. If the replica
/// was not heard of for a lease and this time, it is taken for dead and no longer prevents
/// pruning.
const ENTERING: Duration = Duration::from_secs(60);

/// How long after a warning that events wait for another replica's sink the next one comes.
const TOLD_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Tells the server which sinks this replica has, and takes note of all sinks there are. A failure
/// changes nothing here. If the server has stored a part all the same, the keeper takes it back.
/// Sinks that the replica had before stay until they are [forgotten](forget_sinks), because a
/// forgotten sink cannot be had back. Returns whether there are such sinks.
pub(super) async fn add_sinks(
    shared: &Shared,
    session: &mut Session,
    names: &[String],
) -> Result<bool, Failure> {
    let rows = session
        .query(
            "SELECT sink, mark FROM mark WHERE node = $1 AND sink = ANY($2)",
            &[&shared.node, &names],
        )
        .await?;
    let mut marks = HashMap::new();
    for row in &rows {
        marks.insert(row.try_get::<_, String>(0)?, row.try_get(1)?);
    }
    let (before, known) = shared.look(|state| {
        let before = state.sinks.clone().unwrap_or_default();
        (before, state.journal.own_sinks())
    });
    let mut all = names.to_owned();
    all.extend(before.into_iter().filter(|name| !names.contains(name)));
    name_sinks(shared, session, &all, LOCKED_PATIENCE).await?;
    learn_sinks(shared, session, &all).await?;
    shared.change_leases(|state| {
        state.sinks = Some(names.to_owned());
        state.left_sinks.retain(|name, _| !names.contains(name));
        // For a sink that this process has already, what it remembers is newer.
        let new = marks
            .into_iter()
            .filter(|(name, _)| !known.iter().any(|known| **known == **name));
        for (name, mark) in new {
            state.journal.set_mark(&name, mark);
        }
    });
    Ok(all.len() > names.len())
}

/// Makes the server forget the other sinks of this replica after a while.
pub(super) async fn forget_sinks(
    shared: &Shared,
    session: &mut Session,
    names: &[String],
) -> Result<(), Failure> {
    // No sink has to be entered, unless somebody has removed it. In that case the keeper tries
    // again later, because it has leases to renew meanwhile.
    name_sinks(shared, session, names, Duration::ZERO).await
}

/// Tells the server which sinks this replica has, because the server says otherwise.
pub(super) async fn set_sinks_again(shared: &Shared, session: &mut Session) -> Result<(), Failure> {
    // The task that has the turn is naming the sinks, and its names count.
    let Ok(_turn) = shared.naming.try_lock() else {
        return Ok(());
    };
    match shared.look(|state| state.sinks.clone()) {
        Some(names) => {
            forget_sinks(shared, session, &names).await?;
            learn_sinks(shared, session, &names).await
        }
        None => Ok(()),
    }
}

/// Tells the server which sinks this replica has. If rows of searches are locked, this is tried
/// for no longer than about `patience`. Between the tries, other transactions can use the rows
/// that this one would have locked. Each try waits longer than the one before, because a search
/// that is taken up over a slow network keeps its row locked for the time of some answers.
async fn name_sinks(
    shared: &Shared,
    session: &mut Session,
    names: &[String],
    patience: Duration,
) -> Result<(), Failure> {
    let me = shared.number()?;
    let until = Instant::now() + patience;
    announce(session, me, names).await?;
    let mut wait = shared.lock_wait();
    let mut tries = Tries::default();
    loop {
        match try_name_sinks(session, me, names, wait).await {
            Err(failure) if failure.is_lock_timeout() || failure.is_cancelled() => {
                session.roll_back().await?;
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(why_locked(session, failure).await?);
                }
                // The pause is long enough for transactions that waited for the rows that this one
                // had locked.
                let pause = wait.mul_f64(1.0 + fastrand::f64());
                tokio::time::sleep(pause.min(left)).await;
                wait = (wait * 2)
                    .min(shared.longest_lock_wait())
                    .min(left)
                    .max(shared.lock_wait());
            }
            Err(failure) if tries.again(&failure).await => session.roll_back().await?,
            done => return done,
        }
    }
}

/// Tells the server which sinks a replica has, before the replica enters those that are not there
/// yet. From then on nobody [removes](prune) events that these sinks may lack.
pub(super) async fn announce(
    session: &mut Session,
    me: i64,
    names: &[String],
) -> Result<(), Failure> {
    let announced = session
        .query_again(
            "UPDATE replica SET sinks = $2, alive_until = greatest(alive_until, clock_timestamp())
             WHERE id = $1 RETURNING id",
            &[&me, &names],
        )
        .await?;
    if announced.is_empty() {
        return Err(Failure::NotJoined);
    }
    Ok(())
}

pub(super) async fn try_name_sinks(
    session: &mut Session,
    me: i64,
    names: &[String],
    wait: Duration,
) -> Result<(), Failure> {
    session
        .begin_waiting_for_all(wait, LOCKED_STATEMENT)
        .await?;
    enter_sinks(session, me, names).await?;
    session.commit().await
}

/// Returns a failure that names the locked rows that a transaction that refers to all searches has
/// to wait for. If none is locked any more, returns `failure` itself.
pub(super) async fn why_locked(
    session: &mut Session,
    failure: Failure,
) -> Result<Failure, Failure> {
    let rows = session
        .query_again(
            "WITH free AS (SELECT id FROM search FOR KEY SHARE SKIP LOCKED)
             SELECT id, account, tenant_id, name FROM search
             WHERE id NOT IN (SELECT id FROM free) ORDER BY id",
            &[],
        )
        .await?;
    let Some(row) = rows.first() else {
        return Ok(failure);
    };
    let (id, account, tenant, name): (i64, &str, &str, &str) = (
        row.try_get(0)?,
        row.try_get(1)?,
        row.try_get(2)?,
        row.try_get(3)?,
    );
    let more = match rows.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let what = format!("row {id} of the table search, {account}/{tenant}/{name}{more}");
    Ok(Failure::Locked(what))
}

/// Whether the server takes the replica `$1` for alive. A replica that has slept would take its
/// own sinks, and those of others, for gone.
macro_rules! is_alive {
    () => {
        "EXISTS (SELECT 1 FROM replica WHERE id = $1 AND alive_until > clock_timestamp())"
    };
}

/// The searches that are held under some leases. `$1` are their rows, and `$2` the epochs in the
/// same order.
macro_rules! held_by {
    () => {
        "search JOIN unnest($1::bigint[], $2::bigint[]) AS held (id, epoch)
            ON search.id = held.id AND search.epoch = held.epoch"
    };
}

pub(super) use held_by;

/// Whether a replica that runs names a sink.
macro_rules! is_named {
    () => {
        "EXISTS (
            SELECT 1 FROM replica
            WHERE alive_until > clock_timestamp() AND sink.name = ANY(replica.sinks))"
    };
}

/// Whether no other replica than `$1` runs.
macro_rules! is_alone {
    () => {
        "NOT EXISTS (SELECT 1 FROM replica WHERE id <> $1 AND alive_until > clock_timestamp())"
    };
}

/// Enters those of the sinks that are not there yet. The transaction must not wait for long,
/// because no search can be taken up until it ends. Commits and renewals go on. The server must
/// know by then that the replica `me` has these sinks.
///
/// Sinks that the replica has no longer are kept for a while, also sinks that were added in vain:
/// such a sink may have been there before, with events that wait for it.
pub(super) async fn enter_sinks(
    session: &mut Session,
    me: i64,
    names: &[String],
) -> Result<(), Failure> {
    let mut sorted = names.to_owned();
    sorted.sort_unstable();
    let new: Vec<String> = session
        .column(
            // With `unnamed_since` cleared, nobody forgets sinks that are there already.
            "WITH named AS (
                UPDATE sink SET unnamed_since = NULL
                WHERE name = ANY($1) AND unnamed_since IS NOT NULL)
             INSERT INTO sink (name) SELECT name FROM unnest($1::text[]) AS new (name)
             ON CONFLICT (name) DO NOTHING RETURNING name",
            &[&sorted],
        )
        .await?;
    if !new.is_empty() {
        // The new sinks begin with the next event. Commits under way are not waited for. Events
        // behind these places are not removed before the sinks have them: a replica that cannot
        // see the new sinks yet either sees that they are being entered, or has not seen the later
        // events.
        session
            .execute(
                "INSERT INTO progress (sink, search_id, position)
                 SELECT sink.name, search.id, search.journal_end
                 FROM sink CROSS JOIN search WHERE sink.name = ANY($1)
                 ORDER BY search.id, sink.name",
                &[&new],
            )
            .await?;
    }
    note_unnamed(session, me).await
}

/// Returns how many of the events that were there when a sink left, `left_for` ago, wait for it.
/// Later events were not meant for it. They are at the end of a journal, so no others have to be
/// read.
///
/// The times of events are the exporters' own, so this exporter's clock tells when the sink left:
/// the server's clock may be ahead or behind. If another exporter's clock was ahead, its events
/// seem to be of a time that is yet to come, and it is unknown which of them were meant for the
/// sink.
///
/// The statement is for one sink alone. For all sinks together, the planner would expect so much
/// work that it compiles the statement first, which takes half a second.
async fn left_waiting(
    session: &mut Session,
    sink: &str,
    left_for: Duration,
) -> Result<Waiting, Failure> {
    let now = clock::now();
    let left_at = now.checked_sub(left_for);
    let left_at = Time(left_at.unwrap_or(Timestamp::MIN));
    let sql = "SELECT coalesce(sum(coalesce(meant.position, place) - place), 0)::bigint,
            coalesce(sum(coalesce(ahead.position, meant.position, place) - place), 0)::bigint
        FROM (
            SELECT search.id, coalesce(progress.position, 0) AS place FROM search
            LEFT JOIN progress ON progress.sink = $1 AND progress.search_id = search.id) AS places
        LEFT JOIN LATERAL (
            SELECT position FROM journal
            WHERE journal.search_id = places.id AND at <= $2 AND position > place
            ORDER BY position DESC LIMIT 1) AS meant ON TRUE
        LEFT JOIN LATERAL (
            SELECT position FROM journal
            WHERE journal.search_id = places.id AND at > $3
                AND position > coalesce(meant.position, place)
            ORDER BY position DESC LIMIT 1) AS ahead ON TRUE";
    let rows = session.query(sql, &[&sink, &left_at, &Time(now)]).await?;
    let Some(row) = rows.first() else {
        return Ok(Waiting::Exactly(0));
    };
    let (meant, at_most): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    Ok(if at_most > meant {
        Waiting::AtMost(at_most.unsigned_abs())
    } else {
        Waiting::Exactly(meant.unsigned_abs())
    })
}

/// The columns of a sink: its name, and for how long no replica has named it, or NULL if one does.
macro_rules! name_and_left_for {
    () => {
        "name, extract(epoch FROM clock_timestamp() - unnamed_since)::float8"
    };
}

/// Reads the second of [`name_and_left_for`].
fn left_for(row: &Row) -> Result<Duration, Failure> {
    Ok(Duration::try_from_secs_f64(row.try_get(1)?).unwrap_or_default())
}

/// Gives up sinks, of which `left` has [`name_and_left_for`]. The statement `delete`, whose
/// parameters are this replica, a sink's name and `more`, checks once more whether the sink may be
/// given up. If so, reports how many events are lost: no fewer than were reported when the sink
/// left, because events of a time that was yet to come are no longer counted once it has come.
async fn give_up(
    shared: &Shared,
    session: &mut Session,
    left: &[Row],
    delete: &'static str,
    more: &[&(dyn ToSql + Sync)],
    reason: Reason,
) -> Result<(), Failure> {
    let me = shared.number()?;
    for row in left {
        let sink: String = row.try_get(0)?;
        let events = left_waiting(session, &sink, left_for(row)?).await?;
        let told = shared.look(|state| state.left_sinks.get(&sink).copied());
        let parameters = [&[&me as &(dyn ToSql + Sync), &sink], more].concat();
        if session.execute(delete, &parameters).await? > 0 {
            tell_given_up(&sink, events.or_more(told), reason);
        }
    }
    Ok(())
}

/// Takes note of which sinks no replica names, and since when.
pub(super) async fn note_unnamed(session: &mut Session, me: i64) -> Result<(), Failure> {
    let sql = concat!(
        "UPDATE sink SET unnamed_since = CASE WHEN unnamed_since IS NULL
            THEN clock_timestamp() END
         WHERE (unnamed_since IS NULL) <> ",
        is_named!(),
        " AND ",
        is_alive!()
    );
    session.execute(sql, &[&me]).await.map(drop)
}

/// Takes note of the sinks that no replica names any more. Warns if events wait for one that is
/// new among them.
pub(super) async fn tell_unnamed(shared: &Shared, session: &mut Session) -> Result<(), Failure> {
    let sql = concat!(
        "SELECT ",
        name_and_left_for!(),
        ", unnamed_since IS NOT NULL AND NOT ",
        is_named!(),
        ", ",
        is_alone!(),
        " FROM sink WHERE ",
        is_alive!()
    );
    let rows = session.query(sql, &[&shared.number()?]).await?;
    let is_alone = rows.first().map_or(Ok(false), |row| row.try_get(3))?;
    shared.change_journals(|state| state.is_alone = is_alone);
    for row in rows {
        let sink: String = row.try_get(0)?;
        let is_unnamed: bool = row.try_get(2)?;
        if !is_unnamed {
            shared.change_journals(|state| state.left_sinks.remove(&sink));
        } else if !shared.look(|state| state.left_sinks.contains_key(&sink)) {
            let left_for = left_for(&row)?;
            let events = left_waiting(session, &sink, left_for).await?;
            tell_left(&sink, events, KEPT_FOR.saturating_sub(left_for));
            shared.change_journals(|state| state.left_sinks.insert(sink, events));
        }
    }
    Ok(())
}

/// Warns of events that have waited here for longer than a lease, for sinks that only other
/// replicas have: nobody delivers them as long as this replica holds their searches.
pub(super) fn tell_of_others(shared: &Shared) {
    let now = clock::since_boot();
    let due =
        shared.change_journals(|state| state.due_for_others(now, shared.lease, TOLD_AGAIN_AFTER));
    for (sink, events) in due {
        tracing::warn!(
            sink,
            events,
            "events wait for a sink that another replica has and this one has not; they are delivered once \
             this one has the sink, too, or a replica that has it holds their searches: give all replicas \
             the same configuration"
        );
    }
}

/// Gives up the sinks that no replica has named for too long.
pub(super) async fn give_up_over(shared: &Shared, session: &mut Session) -> Result<(), Failure> {
    let kept_for = KEPT_FOR.as_secs_f64();
    let due = concat!(
        "SELECT ",
        name_and_left_for!(),
        " FROM sink WHERE unnamed_since < clock_timestamp() - $1 * interval '1 second'"
    );
    let due = session.query(due, &[&kept_for]).await?;
    let delete = concat!(
        "DELETE FROM sink WHERE name = $2
            AND unnamed_since < clock_timestamp() - $3 * interval '1 second' AND NOT ",
        is_named!(),
        " AND ",
        is_alive!()
    );
    give_up(shared, session, &due, delete, &[&kept_for], Reason::Time).await
}

/// Gives up some sinks that no replica names, at once, if this replica is alone. If it is not,
/// others may be about to name theirs again.
pub(super) async fn give_up_for_room(
    shared: &Shared,
    session: &mut Session,
    sinks: &[String],
) -> Result<(), Failure> {
    let left = concat!(
        "SELECT ",
        name_and_left_for!(),
        " FROM sink WHERE name = ANY($1) AND unnamed_since IS NOT NULL"
    );
    let left = session.query(left, &[&sinks]).await?;
    let delete = concat!(
        "DELETE FROM sink WHERE name = $2 AND NOT ",
        is_named!(),
        " AND ",
        is_alive!(),
        " AND ",
        is_alone!()
    );
    give_up(shared, session, &left, delete, &[], Reason::Room).await?;
    // The commit of another search may have given the sinks up already, so the sinks are looked up
    // in any case.
    hear_of_sinks(shared, session).await
}

/// Takes note of all sinks there are, unless the replica's own sinks are being named.
pub(super) async fn hear_of_sinks(shared: &Shared, session: &mut Session) -> Result<(), Failure> {
    // The task that names them takes note of all sinks as well. This one must not wait for it,
    // because it needs a connection, and all connections may be waiting here.
    let Ok(_turn) = shared.naming.try_lock() else {
        return Ok(());
    };
    let own = shared.look(|state| state.sinks.clone());
    learn_sinks(shared, session, &own.unwrap_or_default()).await
}

/// Takes note of all sinks there are, and which of them this replica delivers to.
async fn learn_sinks(
    shared: &Shared,
    session: &mut Session,
    own: &[String],
) -> Result<(), Failure> {
    loop {
        let all: Vec<String> = session.column("SELECT name FROM sink", &[]).await?;
        let (new, leases) = shared.look(|state| {
            let new = all.iter().filter(|name| state.journal.is_new(name, own));
            (new.cloned().collect::<Vec<_>>(), state.leases())
        });
        let positions = if new.is_empty() {
            Vec::new()
        } else {
            positions(session, &new, &leases).await?
        };
        let (done, end) = shared.change_leases(|state| {
            let done = state.learn_sinks(own, all, &leases, &positions);
            (done, state.journal.end())
        });
        if done {
            shared.tell_sinks(end);
            return Ok(());
        }
    }
}

/// Returns how far some sinks have come in the journals of the searches that are held.
async fn positions(
    session: &mut Session,
    sinks: &[String],
    leases: &[Held],
) -> Result<Vec<Position>, Failure> {
    let rows: Vec<i64> = leases.iter().map(|held| held.row).collect();
    let rows = session
        .query(
            // A damaged position is mended when the sink's position is next saved.
            "SELECT sink.name, held.id,
                CASE WHEN progress.position > search.journal_end
                    THEN coalesce((SELECT min(position) - 1 FROM journal WHERE search_id = held.id),
                        search.journal_end)
                    ELSE coalesce(progress.position, 0) END
             FROM sink CROSS JOIN unnest($2::bigint[]) AS held (id)
             LEFT JOIN search ON search.id = held.id
             LEFT JOIN progress ON progress.sink = sink.name AND progress.search_id = held.id
             WHERE sink.name = ANY($1)",
            &[&sinks, &rows],
        )
        .await?;
    let position = |row: &Row| {
        Ok(Position {
            sink: row.try_get(0)?,
            row: row.try_get(1)?,
            position: row.try_get(2)?,
        })
    };
    rows.iter().map(position).collect()
}

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
/// replica is about to [enter](enter_sinks) the sink, and nobody knows yet what it lacks.
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
