//! The tables: created and migrated by whichever replica comes first, while the others wait.

use super::connection::{Failure, Pool, Session, Tries};

/// The migrations. Each brings the schema from the number that is its index to the next number.
pub(super) const MIGRATIONS: &[&str] = &[
    include_str!("../../../migrations/postgres/0001_initial.sql"),
    include_str!("../../../migrations/postgres/0002_wants.sql"),
];

/// The number of the schema that the migrations make.
pub(super) const VERSION: i32 = MIGRATIONS.len() as i32;

/// The tables and indexes that the migrations make, without the indexes whose names the server
/// chooses.
pub(super) const TABLES: &[&str] = &[
    "replica", "search", "alert", "departed", "journal", "sink", "progress", "mark",
];
pub(super) const INDEXES: &[&str] = &["alert_by_age", "departed_by_age", "progress_by_search"];

/// A column of each table, in the order of `TABLES`, that somebody else's table of that name is
/// unlikely to have.
const COLUMNS: &[&str] = &[
    "alive_until",
    "lease_until",
    "search_id",
    "search_id",
    "search_id",
    "unnamed_since",
    "search_id",
    "node",
];

/// The table that holds the schema's number.
pub(super) const NUMBER_TABLE: &str = "opsramp_exporter_schema";

/// Makes that table. Its only row is the lock for migrations: a lock of a transaction, since locks
/// of a session do not survive a pooler. A table that was restored alone may lack its primary key,
/// so the statement does not rely on that.
const NUMBER: &str = "
    CREATE TABLE IF NOT EXISTS opsramp_exporter_schema (
        only_row BOOLEAN PRIMARY KEY CHECK (only_row),
        version  INTEGER NOT NULL
    );
    INSERT INTO opsramp_exporter_schema SELECT TRUE, 0
        WHERE NOT EXISTS (SELECT FROM opsramp_exporter_schema)";

/// Creates or migrates the tables, unless that has been done before. Returns whether it was done
/// now.
pub(super) async fn migrate(pool: &Pool) -> Result<bool, Failure> {
    let mut tries = Tries::default();
    loop {
        match try_migrate(pool).await {
            // Two replicas that create the same table at the same time get in each other's way.
            Err(failure) if failure.is_refusal() && tries.again_in_any_case().await => {}
            done => return done,
        }
    }
}

/// Which of the tables are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// All of them, or those of a later version.
    There,
    /// Those of an earlier version, as after a backup from before an upgrade was restored.
    Earlier,
    /// None of them.
    Gone,
}

/// Looks which of the tables are there.
///
/// # Errors
/// If some tables are gone, for instance that of the schema's number, while others are there.
pub(super) async fn look(pool: &Pool) -> Result<Standing, Failure> {
    let mut session = pool.session().await?;
    let found = number(&mut session).await?;
    if found <= 0 {
        return refuse_unnumbered(&mut session)
            .await
            .map(|()| Standing::Gone);
    }
    if found < VERSION {
        return Ok(Standing::Earlier);
    }
    if found == VERSION {
        look_for_all(&mut session).await?;
    }
    Ok(Standing::There)
}

/// Returns the schema's number, or 0 if there is none.
pub(super) async fn number(session: &mut Session) -> Result<i32, Failure> {
    let version = "SELECT version FROM opsramp_exporter_schema";
    let rows = match session.query(version, &[]).await {
        Err(failure) if failure.is_missing_table() => return Ok(0),
        rows => rows?,
    };
    rows.first().map_or(Ok(0), |row| Ok(row.try_get(0)?))
}

/// Returns the tables that are there. Somebody else's tables of the same names are left out.
pub(super) async fn ours(session: &mut Session) -> Result<Vec<String>, Failure> {
    session
        .column(
            "SELECT name FROM unnest($1::text[], $2::text[]) AS ours (name, col)
             WHERE EXISTS (
                SELECT FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
                WHERE relname = name AND relkind IN ('r', 'p') AND attname = col
                    AND NOT attisdropped AND pg_table_is_visible(pg_class.oid))",
            &[&TABLES, &COLUMNS],
        )
        .await
}

/// Returns the tables that are missing, that of the schema's number included, if these are there.
pub(super) fn missing_with_number(ours: &[String]) -> Vec<&'static str> {
    std::iter::once(NUMBER_TABLE).chain(missing(ours)).collect()
}

/// Returns the tables that are missing, if these are there.
fn missing(found: &[String]) -> impl Iterator<Item = &'static str> {
    let is_missing = |name: &&str| !found.iter().any(|it| it == name);
    TABLES.iter().copied().filter(is_missing)
}

/// Refuses tables without the schema's number, because nobody knows their version.
async fn refuse_unnumbered(session: &mut Session) -> Result<(), Failure> {
    let ours = ours(session).await?;
    if ours.is_empty() {
        return Ok(());
    }
    Err(Failure::Missing(missing_with_number(&ours).join(", ")))
}

/// Checks that all tables are there. A single missing table is not made anew, because the others
/// refer to rows that were in it.
async fn look_for_all(session: &mut Session) -> Result<(), Failure> {
    let found: Vec<String> = session
        .column(
            "SELECT relname::text FROM pg_class
             WHERE relname = ANY($1) AND pg_table_is_visible(oid)",
            &[&TABLES],
        )
        .await?;
    let missing: Vec<&str> = missing(&found).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::Missing(missing.join(", ")))
}

async fn try_migrate(pool: &Pool) -> Result<bool, Failure> {
    let mut session = pool.session().await?;
    let rows = session
        .query("SELECT current_setting('server_encoding')", &[])
        .await?;
    let encoding: Option<String> = rows.first().map(|row| row.try_get(0)).transpose()?;
    if let Some(other) = encoding.filter(|encoding| encoding != "UTF8") {
        return Err(Failure::Encoding(session.excerpt(&other)));
    }
    // All is done in one transaction, so that a start that fails leaves nothing behind that would
    // be in the way of a restore.
    session.begin().await?;
    session.batch(NUMBER).await?;
    let locked = "SELECT version FROM opsramp_exporter_schema FOR UPDATE";
    let rows = session.query(locked, &[]).await?;
    let found: i32 = match rows.first() {
        Some(row) => row.try_get(0)?,
        None => 0,
    };
    if found > VERSION {
        let known = VERSION;
        return Err(Failure::Newer { found, known });
    }
    if found <= 0 {
        refuse_unnumbered(&mut session).await?;
    }
    let done = usize::try_from(found).unwrap_or(0);
    for migration in &MIGRATIONS[done..] {
        session.batch(migration).await?;
    }
    if found == VERSION {
        look_for_all(&mut session).await?;
    } else {
        let update = "UPDATE opsramp_exporter_schema SET version = $1";
        session.execute(update, &[&VERSION]).await?;
    }
    session.commit().await?;
    Ok(found < VERSION)
}
