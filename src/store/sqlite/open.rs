//! Opening the state file: who may use it, whether it is ours, which version it has, and what to
//! do where something is wrong.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rusqlite::{
    Connection, ErrorCode, OpenFlags, Result, TransactionBehavior, config::DbConfig, ffi,
};
use rustix::fs::{FlockOperation, flock};

use super::checkpoint::{Checkpoint, checkpoint};
use crate::{
    file_id::{FileId, file_id},
    paths::{folder, follow_links, kind_of},
    store::Error,
};

/// How long another program's lock, such as that of an `sqlite3` shell, is waited for.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Marks a file as ours in its header, as ASCII: `OpRx`.
const APPLICATION_ID: i32 = 0x4f70_5278;

/// Brings a file from version n to n + 1, as a script for each n. Never change one that was
/// released: add one.
const MIGRATIONS: [&str; 2] = [
    include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/migrations/sqlite/0001_initial.sql"
    )),
    include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/migrations/sqlite/0002_checksum.sql"
    )),
];

/// Memory for pages of the file, in KiB.
const CACHE_KIB: i64 = 2048;
/// Pages that the write-ahead log gathers before they are copied into the file, while commits go on.
const LOG_PAGES: i64 = 4000;
/// Pages from which on a commit copies them itself, so that the log does not outgrow the copying.
const LOG_PAGES_AT_MOST: i64 = 4 * LOG_PAGES;
/// The same once something could not be written: how much room a quota leaves nobody tells, and what the
/// log takes of it is then missing when it is copied.
const LOG_PAGES_IN_NEED: i64 = LOG_PAGES / 16;
/// What stands before the pages of a log, and before each of them, in bytes.
const LOG_HEADER: u64 = 32;
const PAGE_HEADER: u64 = 24;
/// A longer log is cut back to this length, in bytes, once it was copied.
const LOG_BYTES: i64 = 16 * 1024 * 1024;
/// Statements that stay prepared; there are fewer.
const STATEMENTS: usize = 32;
/// For the owner alone: alerts tell much about a network.
const MODE: u32 = 0o600;
/// The user who may do everything.
const ROOT: u32 = 0;
/// The rights of everybody in a mode.
const OF_OTHERS: u32 = 0o007;
/// How often, and how soon, a start tries again to take a lock that is held.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The state file, open for writing, and the lock that keeps others from it.
#[derive(Debug)]
pub(super) struct StateFile {
    // Closed in this order: the lock is let go last.
    connection: Connection,
    checkpoint: Checkpoint,
    files: Files,
    /// What was last told to be gone.
    told: Option<&'static str>,
    /// Whether the log lacks what it held: nothing is copied from it any more.
    is_cut: bool,
    page_size: u64,
    lock: File,
}

/// The files that the state is in. SQLite takes for its own whatever has their names, and would mix
/// what does not belong together: nothing may be opened by name where another file has one.
#[derive(Clone, Debug)]
pub(super) struct Files {
    path: PathBuf,
    /// Which ones were opened, by what they end in.
    ids: [(&'static str, FileId); 3],
}

/// Why the lock could not be taken.
enum Unlocked {
    /// Another process has it: the one that this tells, as [`holder`].
    Held(String),
    /// What is wrong.
    Failed(String),
}

// === impl Unlocked ===

impl Unlocked {
    /// What is wrong with the state file, and what to do.
    fn describe(self) -> String {
        match self {
            Self::Held(holder) => format!(
                "another exporter{holder} uses it; stop that one, or give this one a state file \
                 of its own"
            ),
            Self::Failed(problem) => problem,
        }
    }
}

// === impl Files ===

impl Files {
    /// Those of a state file that is open and was read.
    fn of(path: PathBuf) -> io::Result<Self> {
        let id = |suffix| -> io::Result<_> {
            let metadata = beside(&path, suffix).metadata()?;
            Ok((suffix, file_id(&metadata)))
        };
        let ids = [id("")?, id("-wal")?, id("-shm")?];
        Ok(Self { path, ids })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What the first of them ends in that was removed or replaced.
    pub(super) fn gone(&self) -> Option<&'static str> {
        self.ids.iter().find_map(|&(suffix, id)| {
            let found = beside(&self.path, suffix).metadata();
            (found.ok().as_ref().map(file_id) != Some(id)).then_some(suffix)
        })
    }
}

// === impl StateFile ===

impl StateFile {
    /// Opens the file, creates or migrates its tables, and loads what `load` reads from it.
    pub(super) fn open<T>(
        path: &Path,
        load: impl FnOnce(&Connection) -> Result<T>,
    ) -> std::result::Result<(Self, T), Error> {
        let opened = || {
            let path = resolve(path)?;
            let lock = lock_at_start(&path).map_err(Unlocked::describe)?;
            refuse_log_alone(&path)?;
            create(&path)?;
            let mut connection = connect(&path).map_err(|error| describe(&error))?;
            prepare(&mut connection)?;
            // Only now is it surely the exporter's.
            take_from_others(&path);
            let loaded = load(&connection).map_err(|error| describe(&error))?;
            let page_size = connection
                .pragma_query_value(None, "page_size", |row| row.get::<_, u32>(0))
                .map_err(|error| describe(&error))?;
            let files =
                Files::of(path).map_err(|error| format!("it cannot be looked at: {error}"))?;
            let file = Self {
                connection,
                checkpoint: Checkpoint::default(),
                files,
                told: None,
                is_cut: false,
                page_size: u64::from(page_size),
                lock,
            };
            Ok((file, loaded))
        };
        opened().map_err(|problem| Error::Open {
            path: path.to_owned(),
            problem,
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.files.path()
    }

    pub(super) fn files(&self) -> &Files {
        &self.files
    }

    pub(super) fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// The connection, for what does not change the file.
    pub(super) fn reader(&self) -> &Connection {
        &self.connection
    }

    /// A file beside it.
    pub(super) fn beside(&self, suffix: &str) -> PathBuf {
        beside(self.path(), suffix)
    }

    /// Says, once, that the file or one beside it was removed or replaced: it works on, and nobody
    /// finds it again.
    pub(super) fn tell_if_gone(&mut self) {
        let gone = self.files.gone();
        if gone == self.told {
            return;
        }
        self.told = gone;
        match gone {
            None => {}
            Some("") => tracing::error!(
                path = %self.path().display(),
                "the state file was removed or replaced while in use; the next start will not know what \
                 is stored now, and logs every open alert again"
            ),
            Some(suffix) => tracing::error!(
                path = %self.beside(suffix).display(),
                "a file that belongs to the state file was removed or replaced while in use; stop the \
                 exporter and start it again, for a crash would lose what is stored until then"
            ),
        }
    }

    /// Has nothing copied any more from a log that somebody has cut short, and says so: zeros would be
    /// copied over what is whole. Asked before a commit, which makes the log as long as ever.
    pub(super) fn look_at_log(&mut self) {
        if self.is_cut || !self.lacks_pages().unwrap_or_default() || self.files.gone().is_some() {
            return;
        }
        self.is_cut = true;
        self.connection
            .pragma_update(None, "wal_autocheckpoint", 0)
            .ok();
        self.keep_log_at_close();
        tracing::error!(
            path = %self.beside("-wal").display(),
            "the log of the state file was cut short while in use, and with it what was stored since it was \
             last copied into the file; stop the exporter and start it again: it goes on from there, and logs \
             again what has opened since"
        );
    }

    /// Whether the log is shorter than what it holds and the file does not.
    fn lacks_pages(&self) -> io::Result<bool> {
        let length = || Ok::<_, io::Error>(self.beside("-wal").metadata()?.len());
        let before = length()?;
        let Ok(log) = checkpoint(&self.connection, "NOOP") else {
            return Ok(false);
        };
        let pages = u64::try_from(log.pages).unwrap_or_default();
        let needed = LOG_HEADER + pages * (PAGE_HEADER + self.page_size);
        // What another program does to it by means of SQLite leaves it long enough before or after that.
        Ok(log.pages > log.copied && before < needed && length()? < needed)
    }

    /// Takes the lock again where its file was removed, for else a second exporter could start.
    ///
    /// # Errors
    /// [`Error::Lost`] where one has: what is known here of the state is no longer what is in it.
    pub(super) fn keep_lock(&mut self) -> std::result::Result<(), Error> {
        let held = self.lock.metadata().ok().as_ref().map(file_id);
        let found = self.beside(".lock").metadata().ok().as_ref().map(file_id);
        if held == found {
            return Ok(());
        }
        let (problem, is_used) = match lock(self.path()) {
            // Nobody has written a number to it: it was created here.
            Ok((lock, former)) if former.is_empty() => {
                self.lock = lock;
                return Ok(());
            }
            Ok((lock, former)) => {
                self.lock = lock;
                (format!("another exporter{former} has used it since"), true)
            }
            Err(Unlocked::Held(holder)) => (format!("another exporter{holder} uses it"), true),
            Err(Unlocked::Failed(problem)) => (problem, false),
        };
        // Where the file itself is another one, that is what the other exporter uses.
        if is_used && self.files.gone() != Some("") {
            return Err(Error::Lost {
                path: self.path().to_owned(),
                problem,
            });
        }
        tracing::error!(
            path = %self.path().display(),
            problem,
            "the state file's lock was removed while in use, and cannot be taken again"
        );
        Ok(())
    }

    /// Has the write-ahead log copied into the file, beside what goes on here, once it is long.
    pub(super) fn copy_long_log(&mut self) {
        if self.is_cut || self.checkpoint.is_under_way() {
            return;
        }
        // What cannot be told now is asked again after the next commit.
        if let Ok(log) = checkpoint(&self.connection, "NOOP")
            && log.pages - log.copied >= LOG_PAGES
            && self.files.gone().is_none()
        {
            self.checkpoint.start(self.files.path());
        }
    }

    /// Copies the write-ahead log into the file, so that the log is written from its start again:
    /// on a full disk that may be all the room there is. Returns whether it was copied whole.
    pub(super) fn reuse_log(&self) -> bool {
        // A checkpoint is tidying up: where it fails, the log keeps what it holds.
        !self.is_cut && checkpoint(&self.connection, "RESTART").is_ok_and(|log| !log.busy)
    }

    /// Makes the best of what room there is, after something could not be written: the log is copied
    /// now, and stays short until the next start.
    pub(super) fn save_room(&mut self) {
        // One that is under way is waited for: it would be in the way.
        self.checkpoint = Checkpoint::default();
        if self.is_cut {
            return;
        }
        self.connection
            .pragma_update(None, "wal_autocheckpoint", LOG_PAGES_IN_NEED)
            .ok();
        self.reuse_log();
    }

    /// Leaves one file without a log behind, where nobody else is reading it.
    pub(super) fn close(mut self) {
        self.look_at_log();
        if !self.is_cut {
            // It is only tidying up: whoever reads is not waited for.
            self.connection.busy_timeout(Duration::ZERO).ok();
            checkpoint(&self.connection, "TRUNCATE").ok();
        }
    }

    /// Lets it go as it is: it is another exporter's.
    pub(super) fn abandon(self) {
        self.keep_log_at_close();
    }

    /// Has nothing copied from the log when the connection is closed.
    fn keep_log_at_close(&self) {
        let no_copy = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        self.connection.set_db_config(no_copy, true).ok();
    }
}

/// The file of that name with a suffix.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(suffix);
    beside.into()
}

/// The file's own path, so that a link to it does not lead around its lock.
pub(super) fn resolve(path: &Path) -> std::result::Result<PathBuf, String> {
    let path = follow_links(path).ok_or("its links lead in a circle; let them lead to a file")?;
    match path.canonicalize() {
        Ok(path) => match path.metadata() {
            Ok(file) if file.is_dir() => Err("it is a folder; name a file in it".to_owned()),
            // Whoever opens a pipe may wait for ever, and nothing stays in a device.
            Ok(file) if !file.is_file() => Err(format!(
                "it is {}, not a regular file; name a file",
                kind_of(file.file_type())
            )),
            // What cannot be looked at cannot be opened either, and that says why.
            Ok(_) | Err(_) => Ok(path),
        },
        Err(_) => resolve_new(&path),
    }
}

/// The same for a file that is to be created.
fn resolve_new(path: &Path) -> std::result::Result<PathBuf, String> {
    let name = path
        .file_name()
        .ok_or("the path does not end in a file's name")?;
    let folder = folder(path);
    match folder.canonicalize() {
        Ok(folder) if folder.is_dir() => Ok(folder.join(name)),
        Ok(_) => Err(format!("{} is not a folder", folder.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!(
            "its folder {} does not exist; create it, and let it belong to the user that the \
             exporter runs as",
            folder.display()
        )),
        Err(error) => Err(format!(
            "its folder {} cannot be used: {error}",
            folder.display()
        )),
    }
}

/// SQLite deletes the log beside an empty file, and may all that is stored be in it. Where a crash
/// came amid the first start, the file has its first page before there is a log.
pub(super) fn refuse_log_alone(path: &Path) -> std::result::Result<(), String> {
    let length = |path: &Path| path.metadata().map_or(0, |file| file.len());
    let log = beside(path, "-wal");
    if length(path) > 0 || length(&log) == 0 {
        return Ok(());
    }
    Err(format!(
        "it is empty or missing, and {}, which belongs to it, is not; restore it from a backup, or \
         move it and the files beside it away: then every open alert is logged again",
        log.display()
    ))
}

/// Takes the lock, also where one that has ended holds it for a moment longer: a process that it was starting
/// has it until that is another program.
fn lock_at_start(path: &Path) -> std::result::Result<File, Unlocked> {
    let mut tries = 0..LOCK_TRIES;
    loop {
        match lock(path) {
            Err(Unlocked::Held(_)) if tries.next().is_some() => thread::sleep(LOCK_PAUSE),
            locked => return locked.map(|(lock, _)| lock),
        }
    }
}

/// Takes the lock beside the file; returns also whom it names that had it before, as [`holder`]. It is a
/// file of its own because SQLite's locks on the state file would be lost with any other handle that this
/// process closes on it.
fn lock(path: &Path) -> std::result::Result<(File, String), Unlocked> {
    let lock_path = beside(path, ".lock");
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(MODE)
        .open(&lock_path)
        .map_err(|error| Unlocked::Failed(not_writable(&lock_path, &error)))?;
    let taken = flock(&lock, FlockOperation::NonBlockingLockExclusive);
    let holder = holder(&mut lock);
    match taken {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(Unlocked::Held(holder)),
        Err(error) => {
            let problem = format!("{} cannot be locked: {error}", lock_path.display());
            return Err(Unlocked::Failed(problem));
        }
    }
    // On a full disk the number is missing and nothing else.
    if lock.set_len(0).is_ok() {
        lock.write_all_at(std::process::id().to_string().as_bytes(), 0)
            .ok();
    }
    Ok((lock, holder))
}

/// The process that a lock names, as it is told: ` (process 7)`. Only a courtesy: who holds the lock may not
/// have written its number yet.
fn holder(lock: &mut File) -> String {
    let mut number = String::new();
    lock.read_to_string(&mut number).ok();
    match number.trim() {
        "" => String::new(),
        number => format!(" (process {number})"),
    }
}

/// Creates the file where it is missing, so that SQLite gives its mode to the files beside it too,
/// and finds out whether it can be written.
fn create(path: &Path) -> std::result::Result<(), String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(MODE)
        .open(path)
        .map(drop)
        .map_err(|error| not_writable(path, &error))
}

/// Takes the rights that everybody has to the file and its log away, as a copy that was put back may have them.
/// Where it belongs to another user, that is told alone: by such a right the exporter may have it open.
fn take_from_others(path: &Path) {
    let me = rustix::process::geteuid().as_raw();
    let mut wanted = None;
    for path in ["", "-wal", "-shm"].map(|suffix| beside(path, suffix)) {
        let Ok(file) = fs::symlink_metadata(&path) else {
            continue;
        };
        let mode = file.mode() & 0o777;
        if !file.is_file() || mode & OF_OTHERS == 0 {
            // What belongs to the file is for whom that is for, as SQLite has it.
            wanted.get_or_insert(mode);
            continue;
        }
        let wanted = *wanted.get_or_insert(without_others(mode));
        // Whoever it belongs to loses nothing.
        let taken = if file.uid() == me || me == ROOT {
            fs::set_permissions(&path, fs::Permissions::from_mode(wanted))
        } else {
            let whose = format!("it belongs to user {}", file.uid());
            Err(io::Error::new(io::ErrorKind::PermissionDenied, whose))
        };
        let path = path.display();
        match taken {
            Ok(()) => tracing::warn!(
                "every user of this machine could open {path}, which holds alerts in full; its mode is {wanted:o} now, \
                 instead of {mode:o}"
            ),
            Err(error) => {
                tracing::warn!(
                    "every user of this machine may open {path}, which holds alerts in full, and the right cannot be \
                     taken away ({error}); do it as root: chown {me} {path} && chmod 600 {path}"
                );
                return;
            }
        }
    }
}

/// The mode without the rights of others; nor has the group any where it has the same ones, as a copy gets them by
/// chance. Others than these somebody has given it so that a backup can be read, or the exporter can open it.
fn without_others(mode: u32) -> u32 {
    let is_by_chance = (mode >> 3) & OF_OTHERS == mode & OF_OTHERS;
    mode & if is_by_chance { 0o700 } else { 0o770 }
}

pub(super) fn not_writable(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "{path} cannot be written by user {}; let it and its folder belong to that user",
            rustix::process::geteuid().as_raw()
        ),
        io::ErrorKind::ReadOnlyFilesystem => format!(
            "{path} is on a file system that is mounted read-only; choose another place, or \
             mount it writable"
        ),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            format!("{path} cannot be created: {error}; make room")
        }
        _ => format!("{path} cannot be opened for writing: {error}"),
    }
}

fn connect(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    // The service may have no writable /tmp.
    connection.pragma_update(None, "temp_store", "memory")?;
    Ok(connection)
}

/// Makes sure that the file is ours and of this version, before anything in it is changed.
fn prepare(connection: &mut Connection) -> std::result::Result<(), String> {
    let version = version(connection).map_err(|error| describe(&error))?;
    let version = version.migrations_done()?;
    let mode = write_ahead(connection, version == 0).map_err(|error| describe(&error))?;
    if !mode.eq_ignore_ascii_case("wal") {
        return Err(format!(
            "its file system does not support SQLite's write-ahead log (the journal mode stays \
             {mode}); choose a local file system"
        ));
    }
    migrate(connection, version, &MIGRATIONS).map_err(|error| describe(&error))
}

pub(super) enum Version {
    /// So many migrations were done; 0 for a new file.
    Ours(usize),
    Foreign,
}

impl Version {
    /// What a file's header says, of one that is not empty.
    pub(super) fn of(application_id: i32, user_version: i32) -> Self {
        match (application_id, usize::try_from(user_version)) {
            (APPLICATION_ID, Ok(version)) => Self::Ours(version),
            _ => Self::Foreign,
        }
    }

    /// How many migrations were done to a file of ours that this version can open.
    pub(super) fn migrations_done(self) -> std::result::Result<usize, String> {
        let known = MIGRATIONS.len();
        match self {
            Self::Ours(version) if version <= known => Ok(version),
            Self::Ours(version) => Err(format!(
                "it was written by a newer version (its schema is {version}, this version knows \
                 schemas up to {known}); install that version again, or choose another path"
            )),
            Self::Foreign => {
                Err("it is the database of another program; choose another path".to_owned())
            }
        }
    }
}

fn version(connection: &Connection) -> Result<Version> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let (application, version) = (number("application_id")?, number("user_version")?);
    Ok(match (application, version) {
        (0, 0) if tables == 0 => Version::Ours(0),
        _ => Version::of(application, version),
    })
}

fn write_ahead(connection: &Connection, new: bool) -> Result<String> {
    if new {
        // There is nothing yet that a rollback journal could bring back; its fsyncs are most of
        // what the first start waits for.
        connection.pragma_update_and_check(None, "journal_mode", "memory", |_| Ok(()))?;
    }
    let mode = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES_AT_MOST)?;
    connection.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
    Ok(mode)
}

/// Does the migrations that are missing, all or none.
fn migrate(connection: &mut Connection, version: usize, migrations: &[&str]) -> Result<()> {
    if version == migrations.len() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for migration in &migrations[version..] {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", migrations.len() as i64)?;
    transaction.commit()
}

/// What SQLite's error means for whoever runs the exporter.
pub(super) fn describe(error: &rusqlite::Error) -> String {
    let advice = match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => {
            "it is not an SQLite database; choose another path, or move the file away"
        }
        Some(ErrorCode::DatabaseCorrupt) => {
            "it is damaged; restore it from a backup, or move it and the files beside it away: \
             then every open alert is logged again"
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another program, such as an sqlite3 shell, has locked it; end that program"
        }
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            "it, its folder or the files beside it that end in -wal and -shm cannot be written; \
             let them belong to the user that the exporter runs as"
        }
        Some(ErrorCode::DiskFull) => "the disk is full; make room",
        // A quota that is used up is no full disk to SQLite, nor is one that is too full to begin.
        Some(ErrorCode::SystemIoFailure)
            if matches!(
                error.sqlite_extended_error_code(),
                Some(ffi::SQLITE_IOERR_WRITE | ffi::SQLITE_IOERR_SHMSIZE)
            ) =>
        {
            "writing it failed; make room on the disk, or in the quota of this user or folder; where \
             there is room, look at the disk"
        }
        Some(ErrorCode::SystemIoFailure) => "reading or writing it failed; look at the disk",
        _ => return error.to_string(),
    };
    format!("{advice} ({error})")
}

#[cfg(test)]
mod tests;
