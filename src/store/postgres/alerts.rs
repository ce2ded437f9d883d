//! The searches and what is known about their alerts, in SQL.

use std::{borrow::Cow, collections::BTreeMap};

use bytes::Bytes;
use jiff::Timestamp;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    connection::{Failure, Session},
    time::Time,
};
use crate::{
    identity::SearchKey,
    store::{
        AlertFilter, Commit, DEPARTED_RETENTION, Held, JournalEvent, LOAD_PAGE, OpenAlert,
        StoredAlert,
    },
};

/// Maximum number of due ordinals that one commit forgets.
const FORGET_STEP: i64 = 256;

/// A search that was taken.
pub(super) struct Taken {
    pub(super) held: Held,
    /// The epoch before, under which the last holder held the search.
    pub(super) before: i64,
    pub(super) primed: bool,
    pub(super) first_seen: Timestamp,
    /// The last position of the search's journal.
    pub(super) journal_end: i64,
    /// Whether any of the search's alerts is remembered after it left.
    pub(super) has_departed: bool,
}

/// Takes the lease on a search for the replica `me`, unless another replica has it. The upper half
/// of the epoch grows. The lower half is drawn, so that no epoch is given twice, although a
/// database that was restored counts on from an earlier one.
pub(super) async fn take(
    session: &mut Session,
    key: &SearchKey,
    me: i64,
    lease: f64,
) -> Result<Option<Taken>, Failure> {
    let rows = session
        .query(
            // The journal's end is never before the last event that is there, even if it was
            // damaged. The replica's row must be there: a server that has forgotten the replica,
            // because it was restored or made anew, may not know the replica's sinks either, so
            // nothing could be journalled for them until the replica has joined again. The row is
            // locked, so that a replica that takes leave waits for leases that it has asked for
            // and given up.
            "WITH free AS (
                SELECT id, epoch FROM search
                WHERE account = $1 AND tenant_id = $2 AND name = $3
                    AND (owner IS NULL OR owner = $4 OR lease_until <= clock_timestamp())
                    AND EXISTS (SELECT 1 FROM replica WHERE id = $4 FOR KEY SHARE)
                FOR UPDATE)
             UPDATE search SET owner = $4,
                epoch = (((free.epoch >> 32) + 1) << 32) | trunc(random() * 4294967296)::bigint,
                lease_until = clock_timestamp() + $5 * interval '1 second',
                journal_end = greatest(journal_end,
                    (SELECT max(position) FROM journal WHERE search_id = free.id))
             FROM free WHERE search.id = free.id
             RETURNING search.id, search.epoch, free.epoch, primed, first_seen, journal_end,
                EXISTS (SELECT 1 FROM departed WHERE search_id = free.id)",
            &[&&*key.account, &&*key.tenant.id, &&*key.search, &me, &lease],
        )
        .await?;
    let taken = rows.first().map(|row| -> Result<_, Failure> {
        Ok(Taken {
            held: Held {
                row: row.try_get(0)?,
                epoch: row.try_get(1)?,
            },
            before: row.try_get(2)?,
            primed: row.try_get(3)?,
            first_seen: row.try_get::<_, Time>(4)?.0,
            journal_end: row.try_get(5)?,
            has_departed: row.try_get(6)?,
        })
    });
    taken.transpose()
}

/// Returns the process that keeps the row of a search locked, and its user, if the server can
/// tell. It cannot if several processes do.
pub(super) async fn locker(
    session: &mut Session,
    search: i64,
) -> Result<Option<(i32, String)>, Failure> {
    let rows = session
        .query(
            "SELECT pg_locks.pid, coalesce(pg_stat_activity.usename::text, 'nobody')
             FROM search
             JOIN pg_locks ON pg_locks.transactionid = search.xmax AND pg_locks.granted
             LEFT JOIN pg_stat_activity USING (pid)
             WHERE search.id = $1 AND pg_locks.locktype = 'transactionid' AND pg_locks.mode = 'ExclusiveLock'
                AND pg_locks.pid <> pg_backend_pid()",
            &[&search],
        )
        .await?;
    let locker = rows.first().map(|row| -> Result<_, Failure> {
        Ok((row.try_get(0)?, session.excerpt(row.try_get(1)?)))
    });
    locker.transpose()
}

/// Creates the searches that are not there yet.
pub(super) async fn create(
    session: &mut Session,
    keys: &[SearchKey],
    now: Timestamp,
) -> Result<(), Failure> {
    let mut keys: Vec<_> = keys
        .iter()
        .map(|key| (&*key.account, &*key.tenant.id, &*key.search))
        .collect();
    // All replicas use the same order, so that two that create searches at the same time wait for
    // one another in turn.
    keys.sort_unstable();
    let accounts: Vec<_> = keys.iter().map(|key| key.0).collect();
    let tenants: Vec<_> = keys.iter().map(|key| key.1).collect();
    let names: Vec<_> = keys.iter().map(|key| key.2).collect();
    session
        .execute(
            // If the database's default isolation is strict, inserting a row that is there and
            // being written would be a conflict.
            "INSERT INTO search (account, tenant_id, name, first_seen)
             SELECT account, tenant_id, name, $4::timestamptz
             FROM unnest($1::text[], $2::text[], $3::text[]) AS new (account, tenant_id, name)
             WHERE NOT EXISTS (
                SELECT FROM search WHERE search.account = new.account
                    AND search.tenant_id = new.tenant_id AND search.name = new.name)
             ON CONFLICT (account, tenant_id, name) DO NOTHING",
            &[&accounts, &tenants, &names, &Time(now)],
        )
        .await?;
    Ok(())
}

/// Returns up to [`LOAD_PAGE`] open alerts of a search, in the order of their ids, from behind
/// `after`.
pub(super) async fn load(
    session: &mut Session,
    search: i64,
    after: &str,
) -> Result<Vec<StoredAlert>, Failure> {
    let limit = i64::try_from(LOAD_PAGE).unwrap_or(i64::MAX);
    let rows = session
        .query(
            "SELECT alert_id, ordinal, digest, created_at, state, body FROM alert
             WHERE search_id = $1 AND alert_id > $2 ORDER BY alert_id LIMIT $3",
            &[&search, &after, &limit],
        )
        .await?;
    rows.iter().map(|row| stored_alert(row, 0)).collect()
}

/// Returns those alerts among `ids` that are open.
pub(super) async fn stored(
    session: &mut Session,
    search: i64,
    ids: &[Box<str>],
) -> Result<Vec<StoredAlert>, Failure> {
    let ids: Vec<&str> = ids.iter().map(|id| &**id).collect();
    let rows = session
        .query(
            "SELECT alert_id, ordinal, digest, created_at, state, body FROM alert
             WHERE search_id = $1 AND alert_id = ANY($2)",
            &[&search, &ids],
        )
        .await?;
    rows.iter().map(|row| stored_alert(row, 0)).collect()
}

/// Returns the ordinals of those alerts among `ids` that left and are remembered.
pub(super) async fn departed(
    session: &mut Session,
    search: i64,
    ids: &[Box<str>],
) -> Result<Vec<(Box<str>, u32)>, Failure> {
    let ids: Vec<&str> = ids.iter().map(|id| &**id).collect();
    let sql = "SELECT alert_id, ordinal FROM departed WHERE search_id = $1 AND alert_id = ANY($2)";
    let rows = session.query(sql, &[&search, &ids]).await?;
    rows.iter()
        .map(|row| Ok((row.try_get::<_, &str>(0)?.into(), ordinal(row, 1)?)))
        .collect()
}

/// Returns the open alerts of `searches` that `filter` asks for, newest first.
pub(super) async fn newest(
    session: &mut Session,
    searches: &[i64],
    filter: &AlertFilter,
) -> Result<Vec<OpenAlert>, Failure> {
    let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
    let word = |word| Option::as_deref(word).map(writable);
    let rows = session
        .query(
            "SELECT search.account, search.tenant_id, search.name, alert.alert_id, alert.ordinal,
                alert.digest, alert.created_at, alert.state, alert.body
             FROM alert JOIN search ON search.id = alert.search_id
             WHERE alert.search_id = ANY($1)
                AND ($2::text IS NULL OR search.account = $2)
                AND ($3::text IS NULL OR search.tenant_id = $3)
                AND ($4::text IS NULL OR search.name = $4)
                AND ($5::text IS NULL OR lower(alert.state) = lower($5))
             ORDER BY alert.created_at DESC NULLS LAST LIMIT $6",
            &[
                &searches,
                &word(&filter.account),
                &word(&filter.tenant),
                &word(&filter.search),
                &word(&filter.state),
                &limit,
            ],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(OpenAlert {
                account: row.try_get(0)?,
                tenant_id: row.try_get(1)?,
                search: row.try_get(2)?,
                alert: stored_alert(row, 3)?,
            })
        })
        .collect()
}

/// Moves the end of a search's journal on by `events`, as long as the lease on the search is held.
/// Returns the new end. The row stays locked until the transaction ends, so no other replica takes
/// the search up before that.
pub(super) async fn advance(
    session: &mut Session,
    held: Held,
    me: i64,
    events: i64,
    primed: bool,
) -> Result<Option<i64>, Failure> {
    let rows = session
        .query(
            // As in `take`, the end is never before the last event that is there. An event could
            // not be written at a position that is in use, and would count as delivered at one
            // before others.
            "UPDATE search SET journal_end = $4 + greatest(journal_end,
                    (SELECT max(position) FROM journal WHERE search_id = $1)),
                primed = primed OR $5
             WHERE id = $1 AND epoch = $2 AND owner = $3 AND lease_until > clock_timestamp()
             RETURNING journal_end",
            &[&held.row, &held.epoch, &me, &events, &primed],
        )
        .await?;
    Ok(rows.first().map(|row| row.try_get(0)).transpose()?)
}

/// Writes everything of a commit but its events.
pub(super) async fn write(
    session: &mut Session,
    search: i64,
    commit: &Commit,
    now: Timestamp,
) -> Result<(), Failure> {
    // Each id occurs once, with its last value, and all replicas write in the order of ids.
    let departures: BTreeMap<&str, u32> = commit
        .departures
        .iter()
        .map(|(id, ordinal)| (&**id, *ordinal))
        .collect();
    let upserts: BTreeMap<&str, &StoredAlert> = commit
        .upserts
        .iter()
        .filter(|alert| !departures.contains_key(&*alert.id))
        .map(|alert| (&*alert.id, alert))
        .collect();
    if !upserts.is_empty() {
        let alerts = || upserts.values();
        let ids: Vec<&str> = alerts().map(|alert| &*alert.id).collect();
        let ordinals: Vec<i64> = alerts().map(|alert| alert.ordinal.into()).collect();
        let digests: Vec<i64> = alerts().map(|alert| alert.digest.cast_signed()).collect();
        let created: Vec<Option<Time>> = alerts().map(|it| it.created_at.map(Time)).collect();
        let states: Vec<Cow<'_, str>> = alerts().map(|alert| writable(&alert.state)).collect();
        let bodies: Vec<&[u8]> = alerts().map(|alert| &*alert.body).collect();
        session
            .execute(
                "INSERT INTO alert (search_id, alert_id, ordinal, digest, created_at, state, body)
                 SELECT $1, alert_id, ordinal, digest, created_at, state, body
                 FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::timestamptz[],
                    $6::text[], $7::bytea[])
                    AS new (alert_id, ordinal, digest, created_at, state, body)
                 ON CONFLICT (search_id, alert_id) DO UPDATE SET
                    ordinal = excluded.ordinal, digest = excluded.digest,
                    created_at = excluded.created_at, state = excluded.state,
                    body = excluded.body",
                &[
                    &search, &ids, &ordinals, &digests, &created, &states, &bodies,
                ],
            )
            .await?;
    }
    if !departures.is_empty() {
        let ids: Vec<&str> = departures.keys().copied().collect();
        let ordinals: Vec<i64> = departures.values().copied().map(i64::from).collect();
        session
            .execute(
                "DELETE FROM alert WHERE search_id = $1 AND alert_id = ANY($2)",
                &[&search, &ids],
            )
            .await?;
        session
            .execute(
                "INSERT INTO departed (search_id, alert_id, ordinal, left_at)
                 SELECT $1, alert_id, ordinal, $4::timestamptz
                 FROM unnest($2::text[], $3::bigint[]) AS new (alert_id, ordinal)
                 ON CONFLICT (search_id, alert_id) DO UPDATE SET
                    ordinal = excluded.ordinal, left_at = excluded.left_at",
                &[&search, &ids, &ordinals, &Time(now)],
            )
            .await?;
    }
    if commit.may_forget {
        forget_departed(session, search, now).await?;
    }
    Ok(())
}

/// Appends events to the journal of a search. The last of them gets the position `end`.
pub(super) async fn append(
    session: &mut Session,
    search: i64,
    end: i64,
    events: &[JournalEvent],
) -> Result<(), Failure> {
    let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
    let positions: Vec<i64> = (end - count + 1..=end).collect();
    let ids: Vec<Uuid> = events.iter().map(|event| event.event_id).collect();
    let times: Vec<Time> = events.iter().map(|event| Time(event.at)).collect();
    let bodies: Vec<&[u8]> = events.iter().map(|event| &*event.body).collect();
    session
        .execute(
            "INSERT INTO journal (search_id, position, event_id, at, body)
             SELECT $1, position, event_id, at, body
             FROM unnest($2::bigint[], $3::uuid[], $4::timestamptz[], $5::bytea[])
                AS new (position, event_id, at, body)",
            &[&search, &positions, &ids, &times, &bodies],
        )
        .await?;
    Ok(())
}

/// Forgets ordinals whose time is over, but only a few: every commit does its share.
async fn forget_departed(
    session: &mut Session,
    search: i64,
    now: Timestamp,
) -> Result<(), Failure> {
    let Ok(due) = now.checked_sub(DEPARTED_RETENTION) else {
        return Ok(());
    };
    session
        .execute(
            "DELETE FROM departed WHERE search_id = $1 AND alert_id IN
                (SELECT alert_id FROM departed WHERE search_id = $1 AND left_at < $2
                 ORDER BY left_at LIMIT $3)",
            &[&search, &Time(due), &FORGET_STEP],
        )
        .await?;
    Ok(())
}

/// Returns the text with a replacement for U+0000, the only character that the server cannot
/// write.
fn writable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// Reads the columns `alert_id, ordinal, digest, created_at, state, body`, from `first` on.
fn stored_alert(row: &Row, first: usize) -> Result<StoredAlert, Failure> {
    Ok(StoredAlert {
        id: row.try_get::<_, &str>(first)?.into(),
        ordinal: ordinal(row, first + 1)?,
        digest: row.try_get::<_, i64>(first + 2)?.cast_unsigned(),
        created_at: row.try_get::<_, Option<Time>>(first + 3)?.map(|it| it.0),
        state: row.try_get::<_, &str>(first + 4)?.into(),
        body: Bytes::copy_from_slice(row.try_get(first + 5)?),
    })
}

/// Reads an ordinal, which is stored as a wider number because the server has no unsigned ones.
fn ordinal(row: &Row, column: usize) -> Result<u32, Failure> {
    let stored: i64 = row.try_get(column)?;
    Ok(u32::try_from(stored).unwrap_or(u32::MAX))
}
