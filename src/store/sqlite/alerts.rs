//! The searches and what is known about their alerts, in SQL.

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Result, Row, params};

use super::Micros;
use crate::{
    identity::SearchKey,
    store::{Commit, DEPARTED_RETENTION, StoredAlert},
};

/// Maximum number of expired ordinals that one commit forgets.
const FORGET_STEP: u32 = 256;

/// A search as it is stored.
pub(super) struct Search {
    pub(super) row: i64,
    pub(super) primed: bool,
    pub(super) first_seen: Timestamp,
}

/// Finds a search, or creates it.
pub(super) fn search(connection: &Connection, key: &SearchKey, now: Timestamp) -> Result<Search> {
    let find = || {
        connection
            .prepare_cached(
                "SELECT id, primed, first_seen FROM search
                 WHERE account = ?1 AND tenant_id = ?2 AND name = ?3",
            )?
            .query_row(params![key.account, key.tenant.id, key.search], |row| {
                Ok(Search {
                    row: row.get(0)?,
                    primed: row.get(1)?,
                    first_seen: row.get::<_, Micros>(2)?.0,
                })
            })
    };
    if let Some(found) = find().optional()? {
        return Ok(found);
    }
    connection
        .prepare_cached(
            "INSERT INTO search (account, tenant_id, name, first_seen) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![key.account, key.tenant.id, key.search, Micros(now)])?;
    find()
}

/// Returns up to `limit` open alerts of a search, in the order of their ids, behind the id
/// `after`.
pub(super) fn load(
    connection: &Connection,
    search: i64,
    after: &str,
    limit: usize,
) -> Result<Vec<StoredAlert>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    connection
        .prepare_cached(
            "SELECT alert_id, ordinal, digest, created_at, state, body FROM alert
             WHERE search_id = ?1 AND alert_id > ?2 ORDER BY alert_id LIMIT ?3",
        )?
        .query_map(params![search, after, limit], |row| stored_alert(row, 0))?
        .collect()
}

/// Reads the columns `alert_id, ordinal, digest, created_at, state, body`, from `first` on.
pub(super) fn stored_alert(row: &Row<'_>, first: usize) -> Result<StoredAlert> {
    Ok(StoredAlert {
        id: row.get_ref(first)?.as_str()?.into(),
        ordinal: row.get(first + 1)?,
        digest: row.get::<_, i64>(first + 2)?.cast_unsigned(),
        created_at: row
            .get::<_, Option<Micros>>(first + 3)?
            .map(|Micros(at)| at),
        state: row.get_ref(first + 4)?.as_str()?.into(),
        body: Bytes::copy_from_slice(row.get_ref(first + 5)?.as_blob()?),
    })
}

/// Writes a commit without its events.
pub(super) fn write(
    connection: &Connection,
    search: i64,
    commit: &Commit,
    now: Timestamp,
) -> Result<()> {
    if !commit.upserts.is_empty() {
        let mut upsert = connection.prepare_cached(
            "INSERT INTO alert (search_id, alert_id, ordinal, digest, created_at, state, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (search_id, alert_id) DO UPDATE SET
                ordinal = excluded.ordinal, digest = excluded.digest,
                created_at = excluded.created_at, state = excluded.state, body = excluded.body",
        )?;
        for alert in &commit.upserts {
            upsert.execute(params![
                search,
                alert.id,
                alert.ordinal,
                alert.digest.cast_signed(),
                alert.created_at.map(Micros),
                alert.state,
                &alert.body[..],
            ])?;
        }
    }
    if !commit.departures.is_empty() {
        let mut remove = connection
            .prepare_cached("DELETE FROM alert WHERE search_id = ?1 AND alert_id = ?2")?;
        let mut remember = connection.prepare_cached(
            "INSERT INTO departed (search_id, alert_id, ordinal, left_at) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (search_id, alert_id) DO UPDATE SET
                ordinal = excluded.ordinal, left_at = excluded.left_at",
        )?;
        for (id, ordinal) in &commit.departures {
            remove.execute(params![search, id])?;
            remember.execute(params![search, id, ordinal, Micros(now)])?;
        }
    }
    if commit.primed {
        connection
            .prepare_cached("UPDATE search SET primed = 1 WHERE id = ?1 AND primed = 0")?
            .execute([search])?;
    }
    if commit.may_forget {
        forget_departed(connection, now)?;
    }
    Ok(())
}

/// Whether ordinals of alerts that left are kept for the search.
pub(super) fn has_departed(connection: &Connection, search: i64) -> Result<bool> {
    connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM departed WHERE search_id = ?1)")?
        .query_row([search], |row| row.get(0))
}

/// Returns the ordinals of the alerts among `ids` that left and are remembered.
pub(super) fn departed(
    connection: &Connection,
    search: i64,
    ids: Vec<Box<str>>,
) -> Result<Vec<(Box<str>, u32)>> {
    let mut find = connection
        .prepare_cached("SELECT ordinal FROM departed WHERE search_id = ?1 AND alert_id = ?2")?;
    let mut found = Vec::new();
    for id in ids {
        let ordinal = find
            .query_row(params![search, id], |row| row.get(0))
            .optional()?;
        if let Some(ordinal) = ordinal {
            found.push((id, ordinal));
        }
    }
    Ok(found)
}

/// Returns the alerts among `ids` that are open.
pub(super) fn stored(
    connection: &Connection,
    search: i64,
    ids: &[Box<str>],
) -> Result<Vec<StoredAlert>> {
    let mut find = connection.prepare_cached(
        "SELECT alert_id, ordinal, digest, created_at, state, body FROM alert
         WHERE search_id = ?1 AND alert_id = ?2",
    )?;
    let rows = ids.iter().map(|id| {
        find.query_row(params![search, id], |row| stored_alert(row, 0))
            .optional()
    });
    rows.filter_map(Result::transpose).collect()
}

/// Forgets expired ordinals, a few at a time: every commit does its share.
fn forget_departed(connection: &Connection, now: Timestamp) -> Result<()> {
    let Ok(due) = now.checked_sub(DEPARTED_RETENTION) else {
        return Ok(());
    };
    connection
        .prepare_cached(
            "DELETE FROM departed WHERE (search_id, alert_id) IN
                (SELECT search_id, alert_id FROM departed
                 WHERE left_at < ?1 ORDER BY left_at LIMIT ?2)",
        )?
        .execute(params![Micros(due), FORGET_STEP])?;
    Ok(())
}
