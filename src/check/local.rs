//! What is on this side: the state, and the sinks. Nothing is delivered, and a daemon that runs
//! beside notices nothing.

use std::{
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio_postgres::error::SqlState;

use super::{
    network::Endpoint,
    report::{Outcome, Passed, Report, Trouble},
};
use crate::{
    config::State,
    deliver::{OtlpOptions, SinkOptions, Target},
    http_client,
    secret::SecretSource,
    store::{
        self,
        postgres::{AddressError, Failure, Pool},
        sqlite::{Inspection, inspect},
    },
};

/// How long a server may take to answer the first word.
const LIMIT: Duration = Duration::from_secs(10);
/// Less room than this is worth a word.
const ROOM: u64 = 256 << 20;
const JOURNAL: &str = "/run/systemd/journal/socket";

/// Takes the state's step.
pub(super) async fn check_state(report: &mut Report<'_>, state: &State) {
    let outcome = match state {
        State::File { path } => {
            let path = path.clone();
            aside(move || state_file(&path)).await
        }
        State::Postgres { url, lease } => postgres(url, *lease).await,
    };
    report.about("").taken("state", outcome);
}

/// Takes the steps of the sinks.
pub(super) async fn check_sinks(report: &mut Report<'_>, sinks: &[SinkOptions]) {
    for sink in sinks {
        let outcome = match &sink.target {
            Target::Stdout { .. } => Ok(Passed::new((), "standard output")),
            Target::File { path, .. } => {
                let path = path.clone();
                aside(move || log_file(&path)).await
            }
            Target::Journald => journal(Path::new(JOURNAL)),
            Target::Otlp(options) => receiver(options).await,
        };
        report
            .about("")
            .taken(&format!("sink {}", sink.name), outcome);
    }
}

/// A disk can be slow, or a network one dead.
async fn aside(work: impl FnOnce() -> Outcome<()> + Send + 'static) -> Outcome<()> {
    match tokio::time::timeout(LIMIT, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
        Err(_) => Err(Trouble::new(
            format!("no answer within {}", humantime::format_duration(LIMIT)),
            "look whether the file system answers; a local one is best",
        )),
    }
}

fn state_file(path: &Path) -> Outcome<()> {
    let shown = path.display();
    let found = inspect(path).map_err(|error| match error {
        // Its messages end with what to do.
        store::Error::Open { path, problem } => {
            let (cause, next) = problem
                .split_once("; ")
                .unwrap_or((&problem, "choose another path, or look at the disk"));
            Trouble::new(format!("{}: {cause}", path.display()), next)
        }
        other => Trouble::new(other.to_string(), "look at the state's path"),
    })?;
    match found {
        Inspection::InUse { by } => {
            let by = by.map_or("an exporter".to_owned(), |by| format!("process {by}"));
            Ok(Passed::new((), format!("{shown} is in use by {by}")))
        }
        Inspection::New { folder } => {
            let free = probe(&folder)?;
            let what = format!("{shown} is new, its folder can be written to");
            Ok(as_whom(with_room(what, free)))
        }
        Inspection::Ready { size } => {
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            let free = probe(folder.unwrap_or(Path::new(".")))?;
            Ok(as_whom(with_room(
                format!("{shown} can be opened, {}", bytes(size)),
                free,
            )))
        }
    }
}

/// Creates and removes a file, as what writes there has to. Returns the room that is left.
fn probe(folder: &Path) -> Result<u64, Trouble> {
    let name = format!(".opsramp-exporter-check-{:016x}", fastrand::u64(..));
    let path: PathBuf = folder.join(name);
    let written = std::fs::write(&path, "check").and_then(|()| std::fs::remove_file(&path));
    if let Err(error) = written {
        // Where it could not be written it need not be removed.
        std::fs::remove_file(&path).ok();
        return Err(Trouble::new(
            format!(
                "the folder {} cannot be written to: {error}",
                folder.display()
            ),
            match error.kind() {
                io::ErrorKind::NotFound => "create the folder, and let it belong to the user \
                                            that the exporter runs as"
                    .to_owned(),
                io::ErrorKind::StorageFull => "make room".to_owned(),
                _ => format!(
                    "let it belong to the user that the exporter runs as (here: {})",
                    rustix::process::geteuid().as_raw()
                ),
            },
        ));
    }
    let room = rustix::fs::statvfs(folder).map_or(u64::MAX, |file_system| {
        file_system.f_bavail.saturating_mul(file_system.f_frsize)
    });
    Ok(room)
}

fn with_room(what: String, free: u64) -> Passed<()> {
    let what = match free {
        u64::MAX => what,
        free => format!("{what}, {} free", bytes(free)),
    };
    let passed = Passed::new((), what);
    if free < ROOM {
        passed.with_concern("the disk is nearly full; alerts wait until there is room")
    } else {
        passed
    }
}

/// A check as root proves little of what another user may do.
fn as_whom(passed: Passed<()>) -> Passed<()> {
    if passed.concern.is_none() && rustix::process::geteuid().is_root() {
        return passed.with_concern(
            "root may write everywhere; check again as the user that the exporter runs as",
        );
    }
    passed
}

fn bytes(n: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut shown) = (n as f64, "bytes");
    for unit in units {
        if value < 1024.0 {
            break;
        }
        (value, shown) = (value / 1024.0, unit);
    }
    format!("{value:.0} {shown}")
}

/// Logs in as the daemon does, and creates no table.
async fn postgres(url: &SecretSource, lease: Duration) -> Outcome<()> {
    const WHO: &str = "SELECT current_user::text, current_database()::text, \
        current_setting('server_encoding'), to_regclass('opsramp_exporter_schema') IS NOT NULL, \
        coalesce(has_schema_privilege(current_schema(), 'CREATE'), FALSE)";
    let pool = Pool::new(url.clone(), lease);
    let asked = async {
        let mut session = pool.session().await?;
        let rows = session.query(WHO, &[]).await?;
        let row = rows.first().ok_or(Failure::Closed)?;
        let name = |column: usize| row.try_get::<_, String>(column);
        let is = |column: usize| row.try_get::<_, bool>(column);
        Ok::<_, Failure>((name(0)?, name(1)?, name(2)?, is(3)?, is(4)?))
    };
    let answered = tokio::time::timeout(LIMIT, asked).await;
    let (user, database, encoding, has_tables, may_create) = answered
        .unwrap_or(Err(Failure::Timeout))
        .map_err(|failure| {
            let next = database_advice(&failure);
            Trouble::new(format!("{:#}", anyhow::Error::new(failure)), next)
        })?;
    if encoding != "UTF8" {
        return Err(Trouble::new(
            Failure::Encoding(encoding).to_string(),
            "make a database as docs/high-availability.md says, and name it in the URL",
        ));
    }
    if !has_tables && !may_create {
        return Err(Trouble::new(
            format!("the user {user} may not create tables in the database {database}"),
            format!("let the database, or a schema of it, belong to {user}"),
        ));
    }
    let tables = if has_tables {
        "it has the tables"
    } else {
        "the tables are made at the first start"
    };
    let found = format!("logged in to the database {database} as {user}, {tables}");
    Ok(Passed::new((), found))
}

fn database_advice(failure: &Failure) -> &'static str {
    const URL: &str = "write the URL as postgres://user:password@host:5432/database";
    let refused = match failure {
        Failure::Connect(error) | Failure::Sql(error) => error.code(),
        _ => None,
    };
    match (failure, refused.map(SqlState::code)) {
        (Failure::Secret(_), _) => "put the URL into the file that url_file names",
        (Failure::Address(AddressError::Unreadable), _) => {
            "look at every part of it: a password may need percent-encoding, and an option may be \
             one that there is not"
        }
        (Failure::Address(_), _) => URL,
        (Failure::Tls(_), _) => "look at sslmode and sslrootcert in the URL",
        (_, Some("28000" | "28P01")) => {
            "look at user and password in the URL, and whether pg_hba.conf lets this host in"
        }
        (_, Some("3D000")) => "create the database, or correct its name in the URL",
        (_, Some(code)) if code.starts_with("53") => {
            "let the server take more connections: each replica needs up to 8"
        }
        (_, Some(_)) => "look at the server's own log",
        _ => {
            "look whether host and port are right, whether the server runs and can be written to, \
             and whether a firewall lets this machine reach it"
        }
    }
}

fn log_file(path: &Path) -> Outcome<()> {
    let shown = path.display();
    if path.exists() {
        std::fs::OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(|error| {
                Trouble::new(
                    format!("{shown} cannot be appended to: {error}"),
                    "let it belong to the user that the exporter runs as",
                )
            })?;
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let free = probe(folder.unwrap_or(Path::new(".")))?;
    Ok(with_room(format!("{shown} can be written"), free))
}

fn journal(path: &Path) -> Outcome<()> {
    let connected = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    match connected {
        Ok(()) => Ok(Passed::new(
            (),
            format!("journald listens at {}", path.display()),
        )),
        Err(error) => Err(Trouble::new(
            format!("nobody listens at {}: {error}", path.display()),
            "look whether systemd-journald runs; into a container its socket has to be mounted",
        )),
    }
}

/// Sends a request without any record, which a receiver takes as it takes one with some.
async fn receiver(options: &OtlpOptions) -> Outcome<()> {
    let unusable = |cause: String| Trouble::new(cause, "look at the sink's endpoint and headers");
    let shown = Endpoint::of(&options.endpoint)
        .ok_or_else(|| unusable("the endpoint is not an http or https URL".to_owned()))?;
    let client = http_client::builder(&[&options.endpoint])
        .timeout(options.timeout)
        .build()
        .map_err(|error| unusable(error.to_string()))?;
    let mut request = client
        .post(&options.endpoint)
        .header(http::header::CONTENT_TYPE, "application/x-protobuf");
    for (name, source) in &options.headers {
        let value = source
            .read()
            .map_err(|error| unusable(format!("{:#}", anyhow::Error::new(error))))?;
        let mut value = http::HeaderValue::from_str(value.expose())
            .map_err(|_| unusable(format!("the header {name} cannot be sent")))?;
        value.set_sensitive(true);
        request = request.header(name, value);
    }
    let answer = request.send().await.map_err(|error| {
        Trouble::new(
            format!("{shown}: {:#}", anyhow::Error::new(error.without_url())),
            "look whether the receiver runs, and whether a firewall lets this machine reach it",
        )
    })?;
    let status = answer.status();
    let next = match status.as_u16() {
        200..=299 => return Ok(Passed::new((), format!("{shown} answers {status}"))),
        // It would rather have a record in it, but this is the right place.
        400 | 411 | 415 | 422 => {
            let found = format!("{shown} answers ({status} to an empty request)");
            return Ok(Passed::new((), found));
        }
        401 | 403 => "look at the sink's headers: the receiver wants other credentials",
        404 | 405 => {
            "look at the endpoint's path, such as /v1/logs, or /otlp/v1/logs of Grafana Loki"
        }
        300..=399 => "set the endpoint to where the redirect leads",
        _ => "look at the receiver's own log",
    };
    Err(Trouble::new(format!("{shown} answers {status}"), next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_at_a_glance() {
        assert_eq!(bytes(0), "0 bytes");
        assert_eq!(bytes(4096), "4 KiB");
        assert_eq!(bytes(12 << 30), "12 GiB");
    }

    #[test]
    fn a_folder_that_is_not_there_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let trouble = log_file(&folder.path().join("no/alerts.jsonl")).unwrap_err();
        assert!(trouble.next.starts_with("create the folder"), "{trouble:?}");
        assert!(log_file(&folder.path().join("alerts.jsonl")).is_ok());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_journal_is_asked_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        assert!(journal(&path).is_err());
        let listener = UnixDatagram::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        assert!(journal(&path).is_ok());
        assert!(listener.recv(&mut [0; 8]).is_err());
    }
}
