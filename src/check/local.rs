//! Checks of the local side: the state, the sinks and the web server. Nothing is delivered, and a
//! running daemon is not disturbed.

use std::{
    fs::{self, OpenOptions, TryLockError},
    io,
    os::unix::{fs::OpenOptionsExt as _, net::UnixDatagram},
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use rustix::fs::OFlags;
use rustls::{CertificateError, InvalidMessage};
use tokio_postgres::error::SqlState;

use super::{
    SILENT_FILE,
    network::Endpoint,
    report::{Outcome, Passed, Report, Trouble},
};
use crate::{
    clock,
    config::{State, Web},
    daemon,
    deliver::{OtlpOptions, SinkOptions, Target, journald, otlp},
    error_chain::{chain, error_of, tls_error},
    names, paths,
    secret::SecretSource,
    store::{
        self,
        postgres::{self, AddressError, Failure, Tables, Unfit},
        sqlite::{Disk, Inspection, inspect},
    },
    validity::{Ending, days},
};

/// Time for the answer of a disk. The database has three times as long.
const LIMIT: Duration = Duration::from_secs(10);
/// With less free space than this, the step has a warning.
const ROOM: u64 = 256 << 20;

/// Takes the step of the state.
pub(super) async fn check_state(report: &mut Report<'_>, state: &State) {
    let outcome = match state {
        State::File { path } => {
            let path = path.clone();
            on_blocking_thread(move || state_file(&path)).await
        }
        State::Postgres { url, lease } => database(url, *lease).await,
    };
    report.taken("state", outcome);
}

/// Takes the steps of the sinks.
pub(super) async fn check_sinks(report: &mut Report<'_>, sinks: &[SinkOptions]) {
    for sink in sinks {
        let outcome = match &sink.target {
            Target::Stdout { .. } => Ok(Passed::new((), "standard output")),
            Target::File { path, .. } => {
                let path = path.clone();
                on_blocking_thread(move || log_file(&path)).await
            }
            Target::Journald => journal(Path::new(journald::SOCKET)),
            Target::Otlp(options) => receiver(options).await,
        };
        report.taken(&format!("sink {}", sink.name), outcome);
    }
}

/// Takes the step of the web server, if it has TLS, because nothing else reports when its
/// certificate ends.
pub(super) async fn check_web(report: &mut Report<'_>, web: &Web) {
    let Some(path) = &web.config_file else {
        return;
    };
    let outcome = match daemon::check_web_file(path).await {
        Ok(checked) if !checked.has_certificate => return,
        Ok(checked) => certificate(checked.certificate_end, clock::now()),
        Err(error) => Err(Trouble::new(chain(error.as_ref()), "correct it")),
    };
    report.taken("web server", outcome);
}

fn certificate(not_after: Option<Timestamp>, now: Timestamp) -> Outcome<()> {
    let Some(not_after) = not_after else {
        let found = "TLS, the certificate does not tell its end";
        return Ok(Passed::new((), found));
    };
    let ending = Ending::of(not_after, now);
    if let Some(ending) = ending.filter(|ending| ending.has_expired()) {
        return Err(Trouble::new(
            format!("the certificate of the web server {ending}"),
            format!(
                "the clock here says {now:.0}; where that is wrong, set it; else renew the certificate, which \
                 takes no restart"
            ),
        ));
    }
    let left = days(not_after.duration_since(now));
    let passed = Passed::new((), format!("TLS, the certificate is valid for {left}"));
    Ok(match ending {
        Some(_) => {
            passed.with_concern("the certificate ends soon; renew it, which takes no restart")
        }
        None => passed,
    })
}

/// Does the work on another thread and within `LIMIT`, because a disk can be slow, or a network
/// disk dead.
async fn on_blocking_thread(work: impl FnOnce() -> Outcome<()> + Send + 'static) -> Outcome<()> {
    match tokio::time::timeout(LIMIT, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
        Err(_) => Err(Trouble::new(
            format!("no answer within {}", humantime::format_duration(LIMIT)),
            SILENT_FILE,
        )),
    }
}

fn state_file(path: &Path) -> Outcome<()> {
    let shown = path.display();
    let found = inspect(path).map_err(|error| match error {
        // The messages end with what to do.
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
            let what = format!("{shown} is in use by {by}");
            with_room_for_state(what, Disk::of(path))
        }
        Inspection::New { folder } => {
            probe(&folder)?;
            let what = format!("{shown} is new, its folder can be written to");
            with_room_for_state(what, Disk::of(&folder)).map(as_whom)
        }
        Inspection::Ready { folder, size } => {
            probe(&folder)?;
            let what = format!("{shown} can be opened, {}", bytes(size));
            with_room_for_state(what, Disk::of(&folder)).map(as_whom)
        }
    }
}

/// Creates and removes a file, as the exporter has to.
fn probe(folder: &Path) -> Result<(), Trouble> {
    let name = format!(".opsramp-exporter-check-{:016x}", fastrand::u64(..));
    let path: PathBuf = folder.join(name);
    let written = fs::write(&path, "check").and_then(|()| fs::remove_file(&path));
    if let Err(error) = written {
        // If the file was not created, there is nothing to remove.
        fs::remove_file(&path).ok();
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
    Ok(())
}

/// Judges the free space for the state. If there is less than the store keeps in reserve for
/// acknowledgements, the store takes nothing new.
fn with_room_for_state(what: String, disk: Option<Disk>) -> Outcome<()> {
    match disk {
        Some(Disk { free, reserve }) if free < reserve => Err(Trouble::new(
            format!(
                "{what}, but the disk has {} free, and {} are kept for what is delivered: alerts wait",
                bytes(free),
                bytes(reserve)
            ),
            "make room; what waits is stored and delivered from then on",
        )),
        disk => Ok(with_room(what, disk)),
    }
}

fn with_room(what: String, disk: Option<Disk>) -> Passed<()> {
    let Some(Disk { free, .. }) = disk else {
        return Passed::new((), what);
    };
    let passed = Passed::new((), format!("{what}, {} free", bytes(free)));
    if free < ROOM {
        passed.with_concern("the disk is nearly full; once it is, alerts wait until there is room")
    } else {
        passed
    }
}

/// Adds a warning if root runs the check, because this proves little about another user's rights.
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

/// Logs in as the daemon does, and creates no table. The limit is longer, because the server is
/// asked much and may be slow.
async fn database(url: &SecretSource, lease: Duration) -> Outcome<()> {
    let asked = tokio::time::timeout(LIMIT * 3, postgres::inspect(url, lease)).await;
    let found = asked.unwrap_or(Err(Failure::Timeout)).map_err(|failure| {
        let advice = database_advice(&failure);
        let text = chain(&failure);
        match (advice, text.split_once("; ")) {
            (None, Some((cause, next))) => Trouble::new(cause, next),
            _ => Trouble::new(
                text.as_str(),
                advice.unwrap_or("look at the server's own log"),
            ),
        }
    })?;
    let (user, database) = (&found.user, &found.database);
    let tables = match found.tables {
        Ok(Tables::New) => "the tables are made at the first start",
        Ok(Tables::Ready) => "it has the tables",
        Ok(Tables::Earlier) => {
            "it has an earlier version's tables, which the next start brings to this one's"
        }
        Err(unfit) => return Err(unfit_database(&unfit, user, database)),
    };
    let found = format!("logged in to the database {database} as {user}, {tables}");
    Ok(Passed::new((), found))
}

fn unfit_database(unfit: &Unfit, user: &str, database: &str) -> Trouble {
    let owner = format!("let the database, or a schema of it, belong to {user}");
    match unfit {
        Unfit::NoSchema => Trouble::new(
            format!("no schema that search_path names is there in the database {database}"),
            "create it, or correct search_path: in the URL's options, or as the user's or the database's \
             setting",
        ),
        Unfit::MayNotCreate => Trouble::new(
            format!("the user {user} may not create tables in the database {database}"),
            owner,
        ),
        Unfit::Taken(names) => Trouble::new(
            format!(
                "in the database {database} something else bears the names of tables: {}",
                names.join(", ")
            ),
            "use a database, or a schema, of its own",
        ),
        Unfit::Missing(names) => Trouble::new(
            format!(
                "of the tables in the database {database} some are missing: {}",
                names.join(", ")
            ),
            "restore them from a backup, or use an empty database",
        ),
        Unfit::Forbidden(names) => Trouble::new(
            format!(
                "the user {user} may not read and write tables in the database {database}: {}",
                names.join(", ")
            ),
            format!("let them belong to {user}, or grant SELECT, INSERT, UPDATE and DELETE"),
        ),
        Unfit::NotOwned(names) => Trouble::new(
            format!(
                "the tables in the database {database} are an earlier version's, and the user \
                 {user} may not change those that belong to somebody else: {}",
                names.join(", ")
            ),
            format!("let them belong to {user}"),
        ),
        Unfit::Refused(why) => Trouble::new(
            format!(
                "the database {database} does not let the user {user} do with the tables what a daemon \
                 does: {why}"
            ),
            "take back what was changed about them: row-level security, triggers, columns; or restore \
             them from a backup",
        ),
    }
}

/// Says what to do; `None` if the failure says so itself, behind a semicolon.
fn database_advice(failure: &Failure) -> Option<&'static str> {
    const URL: &str = "write the URL as postgres://user:password@host:5432/database";
    const AUTHORITY: &str = "name the file with the certificate of the authority that signed the server's as \
                             sslrootcert=FILE in the URL; without it the system's authorities count";
    let refused = match failure {
        Failure::Connect(error) | Failure::Sql(error) => error.code(),
        _ => None,
    };
    let next = match (failure, refused.map(SqlState::code)) {
        (Failure::Newer { .. } | Failure::Missing(_), _) => return None,
        (Failure::Encoding(_), _) => {
            "make a database as docs/high-availability.md says, and name it in the URL"
        }
        (Failure::Unread { .. }, _) => SILENT_FILE,
        (Failure::Secret(_), _) => "put the URL into the file that url_file names",
        (Failure::Address(AddressError::Unreadable), _) => {
            "look at every part of it: a password may need percent-encoding, and an option may be \
             one that there is not"
        }
        (Failure::Address(AddressError::Port), _) => "correct the port in the URL",
        (Failure::Address(AddressError::Value(_)), _) => "correct its value in the URL",
        (Failure::Address(AddressError::Unknown(_)), _) => {
            "correct its name, or take it out of the URL; if it is part of a password, write the & \
             before it as %26"
        }
        (Failure::Address(AddressError::Unsupported(_)), _) => {
            "take it out of the URL; docs/high-availability.md says what there is in its place"
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
        (Failure::Connect(error), _) if error.is_without_tls() => {
            "let the server speak TLS (ssl = on), or ask for less of it by the URL's sslmode"
        }
        _ => {
            "look whether host and port are right, whether the server runs and can be written to, \
             and whether a firewall lets this machine reach it"
        }
    };
    let advice = |error| tls_advice(error, AUTHORITY);
    Some(failure.of_tls().map_or(next, advice))
}

/// Says what to do about a failed handshake; `authority` is the advice if the certificate's issuer
/// is not known.
fn tls_advice(error: &rustls::Error, authority: &'static str) -> &'static str {
    let rustls::Error::InvalidCertificate(error) = error else {
        return "look whether the server speaks TLS 1.2 or 1.3, and what stands between here and \
                there";
    };
    match error {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "write the host in the URL as the certificate has it, and look whether the name leads \
             to the right server"
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            "look whether the clock here is right; else let the server have another certificate"
        }
        _ => authority,
    }
}

/// Says what to do if no answer of a receiver arrived. Look-ups, TLS and connections fail for
/// different reasons.
fn transport_advice(endpoint: &Endpoint, error: &reqwest::Error) -> &'static str {
    const AUTHORITY: &str = "where a company's own authority signed the receiver's certificate, add the authority to \
                             the system's (update-ca-certificates), or set the exporter's variable SSL_CERT_FILE to a \
                             file with every authority that is to be trusted; it then counts for OpsRamp and the \
                             database, too";
    if error_of::<names::Failure>(error).is_some() {
        return "look whether the host in the endpoint is written right, and whether this machine's name servers \
                answer (getent hosts HOST)";
    }
    match tls_error(error) {
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
            "look whether the port is right; where the receiver speaks plain HTTP, the endpoint starts \
             with http://"
        }
        Some(error) => tls_advice(error, AUTHORITY),
        // A server was reached. A server that expects TLS ends the connection, or answers with a
        // TLS alert, which is no HTTP.
        None if !error.is_connect() && !endpoint.tls => {
            "look whether the port is right, and at the receiver's own log; where the receiver speaks TLS, the \
             endpoint starts with https://"
        }
        None => "look whether the receiver runs, and whether a firewall lets this machine reach it",
    }
}

/// Reports what the sink would find, without writing a line.
fn log_file(path: &Path) -> Outcome<()> {
    let shown = path.display();
    // Files are created where links lead.
    let real = paths::follow_links(path).unwrap_or_else(|| path.to_owned());
    let folder = paths::folder(&real);
    let kind = match fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            probe(folder)?;
            let found = format!("{} can be created", real.display());
            return Ok(with_room(found, Disk::of(folder)));
        }
        Err(error) => {
            return Err(Trouble::new(
                format!("{shown} cannot be looked at: {error}"),
                "look at its links, and whether its folders may be entered",
            ));
        }
    };
    if !kind.is_file() {
        let what = paths::kind_of(kind);
        return Err(Trouble::new(
            format!("{shown} is {what}, not a regular file"),
            "name a file; for anything else there is standard output",
        ));
    }
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        // The file may have become a pipe meanwhile.
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(|error| {
            Trouble::new(
                format!("{shown} cannot be read and appended to: {error}"),
                "let it belong to the user that the exporter runs as, who both writes and reads it",
            )
        })?;
    // The lock is shared and lasts only for this statement; a sink that wants it at this moment
    // tries again.
    let in_use = matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
    drop(file);
    let found = format!(
        "{shown} can be written{}",
        if in_use {
            ", as another process does"
        } else {
            ""
        }
    );
    let passed = with_room(found, Disk::of(folder));
    Ok(match probe(folder) {
        Ok(()) => passed,
        Err(trouble) => passed.with_concern(format!(
            "{}; once the file is moved away, somebody else has to create the next one",
            trouble.cause
        )),
    })
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

/// Sends the receiver a request like the sink's, without any record, and judges the answer as the
/// sink would.
async fn receiver(options: &OtlpOptions) -> Outcome<()> {
    const UNUSABLE: &str = "look at the sink's endpoint and headers";
    const WRONG_PATH: &str =
        "look at the endpoint's path, such as /v1/logs, or /otlp/v1/logs of Grafana Loki";
    let endpoint = Endpoint::of(&options.endpoint)
        .ok_or_else(|| Trouble::new("the endpoint is not an http or https URL", UNUSABLE))?;
    let error = match otlp::probe(options).await {
        Ok(None) => return Ok(Passed::new((), format!("{endpoint} takes what is sent"))),
        Ok(Some(why)) => {
            let found = format!("{endpoint} answers; to an empty request, {why}");
            return Ok(Passed::new((), found));
        }
        Err(error) => error,
    };
    let next = match &error {
        otlp::Error::Status { status, .. } => match status.as_u16() {
            // The receiver wants a record in the request, but this is the right place.
            411 | 415 => {
                let found = format!("{endpoint} answers ({status} to an empty request)");
                return Ok(Passed::new((), found));
            }
            401 | 403 => "look at the sink's headers: the receiver wants other credentials",
            404 | 405 => WRONG_PATH,
            _ => "look at the receiver's own log",
        },
        otlp::Error::ExpectsTls { .. } if !endpoint.tls => "let the endpoint start with https://",
        otlp::Error::ExpectsTls { .. } => {
            "what stands before the receiver speaks to it without TLS: let it speak TLS there, too"
        }
        otlp::Error::NotOtlp { .. } => WRONG_PATH,
        otlp::Error::Redirect { .. } => "set the endpoint to where the redirect leads",
        otlp::Error::Transport(error) => transport_advice(&endpoint, error),
        otlp::Error::Timeout { .. } => {
            "look at the receiver's own log, or give the sink a longer timeout"
        }
        otlp::Error::HeadersUnread { .. } => SILENT_FILE,
        _ => UNUSABLE,
    };
    Err(Trouble::new(format!("{endpoint}: {}", chain(&error)), next))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, Mode};

    use super::*;

    #[test]
    fn bytes_are_read_at_a_glance() {
        assert_eq!(bytes(0), "0 bytes");
        assert_eq!(bytes(4096), "4 KiB");
        assert_eq!(bytes(12 << 30), "12 GiB");
    }

    #[test]
    fn with_less_room_than_the_store_keeps_the_state_fails() {
        let room = |free| {
            let reserve = 1 << 20;
            with_room_for_state("found".to_owned(), Some(Disk { free, reserve }))
        };
        let trouble = room((1 << 20) - 1).unwrap_err();
        assert!(trouble.cause.contains("1 MiB are kept"), "{trouble:?}");
        assert!(trouble.next.starts_with("make room"), "{trouble:?}");
        assert!(room(1 << 20).unwrap().concern.is_some());
        assert_eq!(room(1 << 30).unwrap().concern, None);
        let passed = with_room_for_state("found".to_owned(), None).unwrap();
        assert_eq!((passed.found.as_str(), passed.concern), ("found", None));
    }

    #[test]
    fn a_folder_that_is_not_there_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let trouble = log_file(&folder.path().join("no/alerts.jsonl")).unwrap_err();
        assert!(trouble.next.starts_with("create the folder"), "{trouble:?}");
        assert!(log_file(&folder.path().join("alerts.jsonl")).is_ok());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn of_a_log_file_is_told_what_a_sink_would_find() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let passed = |name: &str| {
            let passed = log_file(&at(name)).unwrap();
            assert!(passed.found.contains(name), "{}", passed.found);
            passed.found
        };
        let failed = |path: &Path| log_file(path).unwrap_err().cause;

        fs::write(at("there"), "a line\n").unwrap();
        assert!(passed("there").contains("can be written, "));
        let writer = fs::File::open(at("there")).unwrap();
        writer.lock().unwrap();
        assert!(passed("there").contains("as another process does"));
        assert_eq!(fs::read(at("there")).unwrap(), b"a line\n");

        symlink("there", at("link")).unwrap();
        assert!(passed("link").contains("can be written"));
        // A regular file in a folder in which nobody can create one.
        symlink("/proc/self/comm", at("elsewhere")).unwrap();
        let concern = log_file(&at("elsewhere")).unwrap().concern;
        assert!(
            concern
                .as_ref()
                .is_some_and(|concern| concern.contains("the folder /proc/")),
            "{concern:?}"
        );
        symlink("new", at("leads to new")).unwrap();
        let created = log_file(&at("leads to new")).unwrap().found;
        assert!(created.contains("/new can be created"), "{created}");
        assert!(!at("new").exists());
        symlink("no/alerts", at("leads nowhere")).unwrap();
        let trouble = log_file(&at("leads nowhere")).unwrap_err();
        assert!(trouble.next.starts_with("create the folder"), "{trouble:?}");
        symlink("loop", at("loop")).unwrap();
        assert!(failed(&at("loop")).contains("cannot be looked at"));

        rustix::fs::mkfifoat(CWD, at("pipe"), Mode::RWXU).unwrap();
        assert!(failed(&at("pipe")).ends_with("is a named pipe, not a regular file"));
        assert!(failed(folder.path()).contains("is a folder"));
        assert!(failed(Path::new("/dev/full")).contains("is a device"));
    }

    #[test]
    fn whose_certificate_is_not_believed_is_told_what_the_url_lacks() {
        use rustls::Error;
        let tls_advice = |error: &Error| tls_advice(error, "as sslrootcert=FILE in");
        for (error, advice) in [
            (CertificateError::UnknownIssuer, "as sslrootcert=FILE in"),
            (CertificateError::BadEncoding, "as sslrootcert=FILE in"),
            (CertificateError::NotValidForName, "write the host in the"),
            (CertificateError::Expired, "whether the clock here is right"),
        ] {
            let told = tls_advice(&Error::InvalidCertificate(error));
            assert!(told.contains(advice), "{told}");
        }
        assert!(tls_advice(&Error::DecryptError).contains("TLS 1.2 or 1.3"));
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
