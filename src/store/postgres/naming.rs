//! Which sinks there are, in SQL: replicas name theirs, new ones are entered, and those that no
//! replica names are kept for a while and then given up.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_postgres::{Row, types::ToSql};

use super::{
    Shared,
    connection::{Failure, Session, Tries},
    journal::Position,
    time::Time,
};
use crate::{
    clock,
    store::{
        Held,
        left_sinks::{KEPT_FOR, Reason, Waiting, tell_given_up, tell_left},
    },
};

/// How long the entering of a sink waits for locked rows of searches.
const LOCKED_PATIENCE: Duration = Duration::from_secs(20);

/// Maximum time of a statement that waits for locked rows of searches, however many they are. This
/// is less than an answer may take, because a connection that is given up does not say that a lock
/// was the cause.
const LOCKED_STATEMENT: Duration = Duration::from_secs(5);

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
/// yet. From then on nobody [removes](super::delivery::prune) events that these sinks may lack.
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
