//! Looks at a database before the daemon uses it. Nothing is made, and what is tried is rolled
//! back.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    alerts,
    connection::{Failure, Pool, Session},
    delivery,
    schema::{self, INDEXES, NUMBER_TABLE, TABLES, VERSION},
};
use crate::{
    clock,
    error_chain::chain,
    identity::{SearchKey, Tenant},
    secret::SecretSource,
    store::{Commit, JournalEvent, StoredAlert},
};

/// What a database offers to the user who logs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inspection {
    /// The user's name.
    pub(crate) user: String,
    /// The database's name.
    pub(crate) database: String,
    /// The state of the tables, or why the database is unfit.
    pub(crate) tables: Result<Tables, Unfit>,
}

/// The state of the tables, if a daemon can start with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tables {
    /// There are none, and they can be made.
    New,
    /// They can be used.
    Ready,
    /// They are an earlier version's, and can be migrated.
    Earlier,
}

/// Why no daemon can start with a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// There is no schema in which tables would be made.
    NoSchema,
    /// The user may not make tables, which every start tries to do.
    MayNotCreate,
    /// These names are taken by something else.
    Taken(Vec<String>),
    /// These tables are missing, while others are there.
    Missing(Vec<String>),
    /// These tables may not be read and written.
    Forbidden(Vec<String>),
    /// The tables are an earlier version's, and these belong to somebody else, who alone may
    /// change them.
    NotOwned(Vec<String>),
    /// The tables refuse what a daemon does. The text says why.
    Refused(String),
}

/// How a daemon changes and removes rows of each table, here for the rows of one name, `$1`.
const CHANGES: [(&str, &str); 13] = [
    ("replica", "UPDATE replica SET share = 1 WHERE node = $1"),
    ("replica", "DELETE FROM replica WHERE node = $1"),
    (
        "alert",
        "UPDATE alert SET digest = 1 WHERE search_id IN (SELECT id FROM search WHERE account = $1)",
    ),
    (
        "alert",
        "DELETE FROM alert WHERE search_id IN (SELECT id FROM search WHERE account = $1)",
    ),
    (
        "departed",
        "UPDATE departed SET ordinal = 2 WHERE search_id IN (SELECT id FROM search WHERE account = $1)",
    ),
    (
        "departed",
        "DELETE FROM departed WHERE search_id IN (SELECT id FROM search WHERE account = $1)",
    ),
    (
        "journal",
        "DELETE FROM journal WHERE search_id IN (SELECT id FROM search WHERE account = $1)",
    ),
    (
        "progress",
        "UPDATE progress SET position = 1 WHERE sink = $1",
    ),
    ("progress", "DELETE FROM progress WHERE sink = $1"),
    ("mark", "UPDATE mark SET mark = NULL WHERE sink = $1"),
    (
        "sink",
        "UPDATE sink SET unnamed_since = now() WHERE name = $1",
    ),
    ("sink", "DELETE FROM sink WHERE name = $1"),
    ("search", "DELETE FROM search WHERE account = $1"),
];

/// A table that was found.
struct Found {
    may_be_used: bool,
    is_owned: bool,
}

/// Logs in as the daemon does, and looks at the database.
///
/// # Errors
/// If the server cannot be asked, or the daemon could not use the database whatever its rights.
pub(crate) async fn inspect(url: &SecretSource, lease: Duration) -> Result<Inspection, Failure> {
    let pool = Pool::new(url.clone(), lease);
    let mut session = pool.session().await?;
    let rows = session
        .query(
            "SELECT current_user::text, current_database()::text,
                current_setting('server_encoding'),
                has_schema_privilege(current_schema(), 'CREATE')",
            &[],
        )
        .await?;
    let row = rows.first().ok_or(Failure::Closed)?;
    let (user, database): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let (encoding, may_create): (String, Option<bool>) = (row.try_get(2)?, row.try_get(3)?);
    if encoding != "UTF8" {
        return Err(Failure::Encoding(session.excerpt(&encoding)));
    }
    let tables = look(&mut session, may_create).await?;
    Ok(Inspection {
        user: session.excerpt(&user),
        database: session.excerpt(&database),
        tables,
    })
}

/// Looks at the tables. `may_create` says whether the user may make tables; `None` if there is no
/// schema for them.
async fn look(
    session: &mut Session,
    may_create: Option<bool>,
) -> Result<Result<Tables, Unfit>, Failure> {
    match may_create {
        Some(true) => {}
        Some(false) => return Ok(Err(Unfit::MayNotCreate)),
        None => return Ok(Err(Unfit::NoSchema)),
    }
    let names: Vec<&str> = [NUMBER_TABLE]
        .iter()
        .chain(TABLES)
        .chain(INDEXES)
        .copied()
        .collect();
    let found = find(session, &names).await?;
    let those = |names: &[&str], is_it: &dyn Fn(Option<&Found>) -> bool| {
        let those = names.iter().filter(|name| is_it(found.get(**name)));
        those.map(|name| (*name).to_owned()).collect::<Vec<_>>()
    };
    let version = match found.get(NUMBER_TABLE) {
        None => 0,
        Some(number) if !number.may_be_used => {
            return Ok(Err(Unfit::Forbidden(vec![NUMBER_TABLE.to_owned()])));
        }
        Some(_) => schema::number(session).await?,
    };
    if version > VERSION {
        return Err(Failure::Newer {
            found: version,
            known: VERSION,
        });
    }
    if version <= 0 {
        let taken = those(&names[1..], &|it| it.is_some());
        let ours = schema::ours(session).await?;
        return Ok(if !ours.is_empty() {
            let missing = schema::missing_with_number(&ours);
            Err(Unfit::Missing(
                missing.iter().map(ToString::to_string).collect(),
            ))
        } else if taken.is_empty() {
            Ok(Tables::New)
        } else {
            Err(Unfit::Taken(taken))
        });
    }
    let missing = those(TABLES, &|it| it.is_none());
    let forbidden = those(TABLES, &|it| it.is_some_and(|it| !it.may_be_used));
    let not_owned = those(TABLES, &|it| it.is_some_and(|it| !it.is_owned));
    Ok(if !missing.is_empty() {
        Err(Unfit::Missing(missing))
    } else if !forbidden.is_empty() {
        Err(Unfit::Forbidden(forbidden))
    } else if version == VERSION {
        match try_out(session).await {
            Ok(None) => Ok(Tables::Ready),
            Ok(Some(refused)) => Err(Unfit::Refused(refused)),
            Err(failure) if failure.is_refusal() => Err(Unfit::Refused(chain(&failure))),
            Err(failure) => return Err(failure),
        }
    } else if not_owned.is_empty() {
        Ok(Tables::Earlier)
    } else {
        Err(Unfit::NotOwned(not_owned))
    })
}

/// Returns what in the schema has one of these names.
async fn find(session: &mut Session, names: &[&str]) -> Result<HashMap<String, Found>, Failure> {
    let rows = session
        .query(
            // A type of the same name is in a table's way as well.
            "SELECT relname::text, relkind IN ('r', 'p') AND has_table_privilege(oid, 'SELECT')
                AND has_table_privilege(oid, 'INSERT') AND has_table_privilege(oid, 'UPDATE')
                AND has_table_privilege(oid, 'DELETE'), pg_has_role(relowner, 'USAGE')
             FROM pg_class WHERE relname = ANY($1) AND relnamespace =
                (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
             UNION ALL SELECT typname::text, FALSE, FALSE
             FROM pg_type WHERE typname = ANY($1) AND typrelid = 0 AND typnamespace =
                (SELECT oid FROM pg_namespace WHERE nspname = current_schema())",
            &[&names],
        )
        .await?;
    let found = |row: &Row| {
        let it = Found {
            may_be_used: row.try_get(1)?,
            is_owned: row.try_get(2)?,
        };
        Ok((row.try_get(0)?, it))
    };
    rows.iter().map(found).collect()
}

/// Does what a start and a poll do, with names that nobody else uses, and rolls it back. Nothing
/// else shows row-level security, triggers and columns that somebody has changed. Returns what
/// could not be done although there was no error.
async fn try_out(session: &mut Session) -> Result<Option<String>, Failure> {
    const ME: i64 = -1;
    const NAME: &str = "opsramp-exporter check";
    const LOST: &str = "a row that was written cannot be found";
    let now = clock::now();
    let key = SearchKey {
        account: NAME.into(),
        tenant: Tenant {
            id: NAME.into(),
            name: NAME.into(),
        },
        search: NAME.into(),
    };
    let commit = Commit {
        upserts: vec![StoredAlert {
            id: "open".into(),
            ordinal: 1,
            digest: 0,
            created_at: Some(now),
            state: "".into(),
            body: Bytes::new(),
        }],
        departures: vec![("departed".into(), 1)],
        events: vec![JournalEvent {
            event_id: Uuid::nil(),
            at: now,
            body: Bytes::new(),
        }],
        ..Commit::default()
    };
    session.begin().await?;
    session
        .query(
            "INSERT INTO replica (id, node, alive_until, wants)
             VALUES ($1, $2, clock_timestamp(), '{}') RETURNING id",
            &[&ME, &NAME],
        )
        .await?;
    alerts::create(session, std::slice::from_ref(&key), now).await?;
    let Some(taken) = alerts::take(session, &key, ME, 60.0).await? else {
        return Ok(Some(LOST.to_owned()));
    };
    let (held, row) = (taken.held, taken.held.row);
    let Some(end) = alerts::advance(session, held, ME, 1, true).await? else {
        return Ok(Some(LOST.to_owned()));
    };
    alerts::write(session, row, &commit, now).await?;
    alerts::append(session, row, end, &commit.events).await?;
    session
        .query(
            "INSERT INTO sink (name) VALUES ($1) RETURNING name",
            &[&NAME],
        )
        .await?;
    session
        .query(
            "INSERT INTO progress (sink, search_id, position) VALUES ($1, $2, 0) RETURNING sink",
            &[&NAME, &row],
        )
        .await?;
    session
        .query(
            "INSERT INTO mark (sink, node, mark) VALUES ($1, $1, '') RETURNING sink",
            &[&NAME],
        )
        .await?;
    delivery::progress(session, row).await?;
    let open = alerts::load(session, row, "").await?;
    let event = delivery::journalled_at(session, &[(row, end)]).await?;
    let mut refused = (open.len() != 1 || event.is_empty())
        .then(|| "a row that was written cannot be read".to_owned());
    for (table, statement) in CHANGES {
        // A change that a policy does not allow is no error, but changes nothing.
        if session.execute(statement, &[&NAME]).await? != 1 && refused.is_none() {
            let (change, _) = statement.split_once(' ').unwrap_or_default();
            refused = Some(format!("{change} changes no row of the table {table}"));
        }
    }
    session.roll_back().await?;
    Ok(refused)
}
