//! Reads for the page of open alerts, on a read-only connection.
//!
//! The connection is opened with the first look at the page. Only one query runs at a time: many
//! requests for the page wait for their turn instead of taking memory.

use std::{io, sync::Arc};

use rusqlite::{Connection, OpenFlags, params};
use tokio::{sync::Mutex, task};

use super::{Holds, alerts::stored_alert, failed, open::Files};
use crate::store::{AlertFilter, Error, OpenAlert};

/// Memory for pages of the file, in KiB.
const CACHE_KIB: i64 = 512;

/// The newest alerts of some searches. The inner query needs nothing but the index; the `+` keeps
/// the planner from gathering and sorting whole searches instead.
const NEWEST: &str = "
    SELECT search.account, search.tenant_id, search.name, alert.alert_id, alert.ordinal,
           alert.digest, alert.created_at, alert.state, alert.body
    FROM (SELECT id, created_at FROM alert
          WHERE +search_id IN (SELECT value FROM json_each(?1)) AND (?2 IS NULL OR +state = ?2)
          ORDER BY created_at DESC LIMIT ?3) AS newest
    CROSS JOIN alert USING (id)
    CROSS JOIN search ON search.id = alert.search_id
    ORDER BY newest.created_at DESC";

/// Reads for the page of open alerts. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Page {
    files: Arc<Files>,
    holds: Holds,
    connection: Arc<Mutex<Option<Connection>>>,
}

// === impl Page ===

impl Page {
    pub(super) fn new(files: Files, holds: Holds) -> Self {
        Self {
            files: Arc::new(files),
            holds,
            connection: Arc::default(),
        }
    }

    /// Returns the open alerts that `filter` asks for, newest first.
    pub(super) async fn read(
        &self,
        filter: AlertFilter,
        is_closed: impl FnOnce() -> bool,
    ) -> Result<Vec<OpenAlert>, Error> {
        let mut connection = Arc::clone(&self.connection).lock_owned().await;
        // Asked under the lock, so that no connection is opened after the store has closed.
        if is_closed() {
            return Err(Error::Closed);
        }
        let page = self.clone();
        let read = move || {
            let connection = match &mut *connection {
                Some(connection) => connection,
                none => none.insert(open(&page.files)?),
            };
            newest(connection, &page.holds, &filter).map_err(failed)
        };
        task::spawn_blocking(read).await.map_err(Error::backend)?
    }

    /// Waits for a query that is under way, and closes the connection.
    pub(super) fn close(&self) {
        self.connection.blocking_lock().take();
    }
}

fn open(files: &Files) -> Result<Connection, Error> {
    if files.gone_suffix().map_err(Error::backend)?.is_some() {
        let problem = "the state file was removed or replaced while in use";
        return Err(Error::backend(io::Error::other(problem)));
    }
    let opened = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(files.path(), flags)?;
        connection.busy_timeout(super::open::BUSY_TIMEOUT)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        connection.pragma_update(None, "temp_store", "memory")?;
        Ok(connection)
    };
    opened().map_err(failed)
}

fn newest(
    connection: &Connection,
    holds: &Holds,
    filter: &AlertFilter,
) -> rusqlite::Result<Vec<OpenAlert>> {
    let searches: Vec<i64> = connection
        .prepare_cached(
            "SELECT id FROM search WHERE (?1 IS NULL OR account = ?1)
                AND (?2 IS NULL OR tenant_id = ?2) AND (?3 IS NULL OR name = ?3)",
        )?
        .query_map(
            params![filter.account, filter.tenant, filter.search],
            |row| row.get(0),
        )?
        .collect::<rusqlite::Result<_>>()?;
    let held: Vec<_> = searches
        .into_iter()
        .filter(|row| holds.holds_row(*row))
        .map(|row| row.to_string())
        .collect();
    if held.is_empty() {
        return Ok(Vec::new());
    }
    let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
    connection
        .prepare_cached(NEWEST)?
        .query_map(
            params![format!("[{}]", held.join(",")), filter.state, limit],
            |row| {
                Ok(OpenAlert {
                    account: row.get(0)?,
                    tenant_id: row.get(1)?,
                    search: row.get(2)?,
                    alert: stored_alert(row, 3)?,
                })
            },
        )?
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::open::StateFile;

    #[test]
    fn the_newest_alerts_are_found_in_the_index_without_sorting_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let (mut file, ()) = StateFile::open(&path, |_| Ok(())).unwrap();
        let plan: Vec<String> = file
            .connection()
            .prepare(&format!("EXPLAIN QUERY PLAN {NEWEST}"))
            .unwrap()
            .query_map(params!["[1,2]", "Ok", 9], |row| row.get("detail"))
            .unwrap()
            .collect::<rusqlite::Result<_>>()
            .unwrap();
        let scan = "SCAN alert USING COVERING INDEX alert_by_age";
        let found = plan.iter().position(|step| step == scan);
        let sorted = plan.iter().position(|step| step.contains("TEMP B-TREE"));
        // The final sort only concerns the rows that are shown, not all that are scanned.
        assert!(found.is_some(), "{plan:#?}");
        assert!(sorted.is_none() || sorted > found, "{plan:#?}");
    }
}
