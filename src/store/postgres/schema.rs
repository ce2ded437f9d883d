//! The tables: created and migrated by whichever replica comes first, while the others wait.

use super::connection::{Failure, Pool, Session, Tries};

/// Each brings the tables from its place in the list to the next.
pub(super) const MIGRATIONS: &[&str] = &[
    include_str!("../../../migrations/postgres/0001_initial.sql"),
    include_str!("../../../migrations/postgres/0002_wants.sql"),
];

/// What they make, besides the indexes whose names the server finds.
pub(super) const TABLES: &[&str] = &[
    "replica", "search", "alert", "departed", "journal", "sink", "progress", "mark",
];
pub(super) const INDEXES: &[&str] = &["alert_by_age", "departed_by_age", "progress_by_search"];

/// Where the schema's number is kept.
pub(super) const NUMBER_TABLE: &str = "opsramp_exporter_schema";

/// Makes that table. Its only row is the lock: one of a transaction, since those
/// of a session do not survive a pooler.
const NUMBER: &str = "
    CREATE TABLE IF NOT EXISTS opsramp_exporter_schema (
        only_row BOOLEAN PRIMARY KEY CHECK (only_row),
        version  INTEGER NOT NULL
    );
    INSERT INTO opsramp_exporter_schema VALUES (TRUE, 0) ON CONFLICT (only_row) DO NOTHING";

/// Creates or migrates the tables, where that has not been done. Brings whether it was.
pub(super) async fn migrate(pool: &Pool) -> Result<bool, Failure> {
    let mut tries = Tries::default();
    loop {
        match try_migrate(pool).await {
            // Two that create the same table at once get in each other's way.
            Err(failure) if failure.is_refusal() && tries.again_in_any_case().await => {}
            done => return done,
        }
    }
}

/// Whether the tables are an earlier version's, as after a backup from before an upgrade was restored.
/// Where they are gone, or being restored, there is no such number.
///
/// # Errors
/// Where they are this version's, and some of them are gone.
pub(super) async fn is_earlier(pool: &Pool) -> Result<bool, Failure> {
    let mut session = pool.session().await?;
    let version = "SELECT version FROM opsramp_exporter_schema";
    let rows = match session.query(version, &[]).await {
        Err(failure) if failure.is_of_missing_tables() => return Ok(false),
        rows => rows?,
    };
    let found = rows.first().map_or(Ok(0), |row| row.try_get::<_, i32>(0))?;
    let known = i32::try_from(MIGRATIONS.len()).unwrap_or(i32::MAX);
    if found == known {
        look_for_all(&mut session).await?;
    }
    Ok(found > 0 && found < known)
}

/// Looks whether all tables are there. None of them is made by itself: what the others hold refers to
/// what was in it.
async fn look_for_all(session: &mut Session) -> Result<(), Failure> {
    let rows = session
        .query(
            "SELECT relname::text FROM pg_class
             WHERE relname = ANY($1) AND pg_table_is_visible(oid)",
            &[&TABLES],
        )
        .await?;
    let found: Vec<&str> = rows
        .iter()
        .map(|row| row.try_get(0))
        .collect::<Result<_, _>>()?;
    let missing = TABLES.iter().filter(|name| !found.contains(name));
    let missing: Vec<&str> = missing.copied().collect();
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
    session.batch(NUMBER).await?;
    session.begin().await?;
    let locked = "SELECT version FROM opsramp_exporter_schema FOR UPDATE";
    let rows = session.query(locked, &[]).await?;
    let found: i32 = match rows.first() {
        Some(row) => row.try_get(0)?,
        None => 0,
    };
    let known = i32::try_from(MIGRATIONS.len()).unwrap_or(i32::MAX);
    if found > known {
        return Err(Failure::Newer { found, known });
    }
    let done = usize::try_from(found).unwrap_or(0);
    for migration in &MIGRATIONS[done..] {
        session.batch(migration).await?;
    }
    if found == known {
        look_for_all(&mut session).await?;
    } else {
        let update = "UPDATE opsramp_exporter_schema SET version = $1";
        session.execute(update, &[&known]).await?;
    }
    session.commit().await?;
    Ok(found < known)
}
