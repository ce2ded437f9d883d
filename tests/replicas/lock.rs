//! Locks in the database that replicas meet.

use crate::{exporter::eventually, postgres, schema_of};

/// A lock that another client holds in the database.
pub(crate) struct Lock {
    schema: String,
    /// The server process of the client.
    process: String,
    session: tokio::task::JoinHandle<String>,
}

impl Lock {
    /// Locks what the statement says, until it is [let go](Self::let_go).
    pub(crate) async fn take(url: &str, statement: &str) -> Self {
        let schema = schema_of(url);
        let sql = format!(
            "SET search_path = {schema}; BEGIN; {statement};
             DO $$ BEGIN WHILE NOT EXISTS (SELECT FROM pg_class
                WHERE relname = 'let_go' AND relnamespace = '{schema}'::regnamespace)
                LOOP PERFORM pg_sleep(0.05); END LOOP; END $$;
             DROP TABLE let_go; COMMIT"
        );
        let session = tokio::task::spawn_blocking(move || postgres::shared().sql(&sql));
        let find = format!(
            "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%{schema}%'"
        );
        let process = || postgres::shared().sql(&find);
        eventually("it is locked", async || !process().is_empty()).await;
        Self {
            schema: schema.to_owned(),
            process: process(),
            session,
        }
    }

    pub(crate) async fn wait_until_somebody_waits(&self) {
        let waiting = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE {} = ANY(pg_blocking_pids(pid))",
            self.process
        );
        let waiting = || postgres::shared().sql(&waiting);
        eventually("somebody waits", async || waiting() != "0").await;
    }

    pub(crate) async fn let_go(self) {
        postgres::shared().sql(&format!("CREATE TABLE {}.let_go ()", self.schema));
        self.session.await.unwrap();
    }
}
