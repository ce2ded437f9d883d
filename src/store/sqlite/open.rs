//! Opens the state file: checks who may use it, whether it is ours and which version it has, and
//! says what to do if something is wrong.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::ffi::OsStrExt as _,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
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

/// How long to wait for another program's lock, such as that of an `sqlite3` shell.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Marks a file as ours in its header, as ASCII: `OpRx`.
const APPLICATION_ID: i32 = 0x4f70_5278;

/// The scripts that bring a file from version n to n + 1, one for each n. Never change a released
/// script: add one.
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
/// Pages that the write-ahead log gathers before they are copied into the file, while commits go
/// on.
const LOG_PAGES: i64 = 4000;
/// Pages from which on a commit copies the log itself, so that the log does not outgrow the
/// copying thread.
const LOG_PAGES_AT_MOST: i64 = 4 * LOG_PAGES;
/// The same limit after something could not be written. Nothing tells how much room a quota
/// leaves, and the room that the log takes is then missing when the log is copied.
const LOG_PAGES_IN_NEED: i64 = LOG_PAGES / 16;
/// Bytes of the header of a log, and of the header before each of its pages.
const LOG_HEADER: u64 = 32;
const PAGE_HEADER: u64 = 24;
/// A log that is longer than this, in bytes, is cut back to it after it was copied.
const LOG_BYTES: i64 = 16 * 1024 * 1024;
/// The size of a file's first page, in bytes; SQLite's default.
const FIRST_PAGE: usize = 4096;
/// What is told of a damaged file.
pub(super) const DAMAGED: &str = "it is damaged; restore it from a backup, or move it and the files beside \
    it away: then every open alert is logged again";
/// What is told of a file that SQLite did not write.
pub(super) const NO_DATABASE: &str =
    "it is not an SQLite database; choose another path, or move the file away";
/// Maximum number of statements that stay prepared; there are fewer.
const STATEMENTS: usize = 32;
/// Only the owner may read the file, because alerts tell much about a network.
const MODE: u32 = 0o600;
/// The user id of root, who may do everything.
const ROOT: u32 = 0;
/// The bits of a mode that are the rights of others, as against owner and group.
const OF_OTHERS: u32 = 0o007;
/// How often, and after which pause, a start tries again to take a lock that is held.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Number of looks at the files that must have failed one after the other before that is reported.
const BLIND_LOOKS: u32 = 2;

/// The state file, open for writing, and the locks that keep others from it.
#[derive(Debug)]
pub(super) struct StateFile {
    // Fields are dropped in this order, so the locks are released last.
    connection: Connection,
    checkpoint: Checkpoint,
    files: Files,
    /// The suffix of the file that was last reported as gone.
    reported_gone: Option<&'static str>,
    /// Number of looks at the files, up to now, that have failed one after the other.
    blind_looks: u32,
    /// Whether the log was cut short. If so, nothing is copied from it any more.
    is_cut: bool,
    page_size: u64,
    /// All locks whose files still have a name somewhere. Somebody may move such a file, or the
    /// whole folder, back to its place, where it is then the state's lock again.
    locks: Vec<Lock>,
}

/// A lock that this process has.
#[derive(Debug)]
struct Lock {
    file: File,
    id: FileId,
}

/// The files of the state. SQLite takes any files with their names for its own, and would mix
/// contents that do not belong together. So nothing may be opened by name if another file has
/// taken that name.
#[derive(Clone, Debug)]
pub(super) struct Files {
    path: PathBuf,
    /// The files that were opened, each with the suffix of its name.
    ids: [(&'static str, FileId); 3],
}

/// Why the lock could not be taken.
enum LockFailure {
    /// Another process has the lock: the one that this text names, in the form of [`holder`].
    Held(String),
    /// The problem, and what to do.
    Failed(String),
}

// === impl LockFailure ===

impl LockFailure {
    /// Says what is wrong with the state file, and what to do.
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
    /// Returns the files of a state file that is open and was read.
    fn of(path: PathBuf) -> io::Result<Self> {
        let id = |suffix| -> io::Result<_> {
            let metadata = with_suffix(&path, suffix).metadata()?;
            Ok((suffix, file_id(&metadata)))
        };
        let ids = [id("")?, id("-wal")?, id("-shm")?];
        Ok(Self { path, ids })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The suffix of the first file that was removed or replaced.
    ///
    /// # Errors
    /// If a file cannot be looked at, and none is known to be gone.
    pub(super) fn gone_suffix(&self) -> io::Result<Option<&'static str>> {
        let mut gone = Ok(None);
        for &(suffix, id) in &self.ids {
            match id_at(&with_suffix(&self.path, suffix)) {
                Ok(found) if found == Some(id) => {}
                Ok(_) => return Ok(Some(suffix)),
                Err(error) => gone = Err(error),
            }
        }
        gone
    }

    /// Whether SQLite would find the files that were opened by their names.
    pub(super) fn are_in_place(&self) -> bool {
        matches!(self.gone_suffix(), Ok(None))
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
            let lock = lock_at_start(&path).map_err(LockFailure::describe)?;
            refuse_log_alone(&path)?;
            refuse_unwritable_beside(&path)?;
            let state = open_or_create(&path)?;
            empty_if_blank(&path, &state);
            sync(&path, &state)?;
            drop(state);
            let mut connection = connect(&path).map_err(|error| describe_at_start(&error))?;
            prepare(&mut connection)?;
            // Only after these checks is the file surely the exporter's.
            take_from_others(&path);
            let loaded = load(&connection).map_err(|error| describe_at_start(&error))?;
            let page_size = connection
                .pragma_query_value(None, "page_size", |row| row.get::<_, u32>(0))
                .map_err(|error| describe(&error))?;
            let files =
                Files::of(path).map_err(|error| format!("it cannot be looked at: {error}"))?;
            let file = Self {
                connection,
                checkpoint: Checkpoint::default(),
                files,
                reported_gone: None,
                blind_looks: 0,
                is_cut: false,
                page_size: u64::from(page_size),
                locks: vec![lock],
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

    /// The connection, for statements that do not change the file.
    pub(super) fn reader(&self) -> &Connection {
        &self.connection
    }

    /// The path of a file beside the state file.
    pub(super) fn sidecar(&self, suffix: &str) -> PathBuf {
        with_suffix(self.path(), suffix)
    }

    /// Reports once that the state file or a file beside it was removed or replaced. The exporter
    /// works on with the open file, but no later start can find it. If nobody can tell, because
    /// the files cannot be looked at, that is reported once it lasts.
    pub(super) fn report_if_gone(&mut self) {
        let looked = self
            .files
            .gone_suffix()
            .and_then(|gone| self.has_lock().map(|_| gone));
        let gone = match looked {
            Ok(gone) => gone,
            Err(error) => {
                self.blind_looks = self.blind_looks.saturating_add(1);
                if self.blind_looks == BLIND_LOOKS {
                    tracing::error!(
                        path = %self.path().display(),
                        %error,
                        "the state file, or a file beside it, cannot be looked at, so nobody can tell whether it is \
                         still in place; the exporter works on with the files that it has open"
                    );
                }
                return;
            }
        };
        self.blind_looks = 0;
        if gone == self.reported_gone {
            return;
        }
        self.reported_gone = gone;
        match gone {
            None => {}
            Some("") => tracing::error!(
                path = %self.path().display(),
                "the state file was removed or replaced while in use; the next start will not know what \
                 is stored now, and logs every open alert again"
            ),
            Some(suffix) => tracing::error!(
                path = %self.sidecar(suffix).display(),
                "a file that belongs to the state file was removed or replaced while in use; stop the \
                 exporter and start it again, for a crash would lose what is stored until then"
            ),
        }
    }

    /// Stops all copying from a log that somebody has cut short, and reports it, because zeros
    /// would be copied over intact pages. Must be called before a commit, because a commit makes
    /// the log as long as before.
    pub(super) fn check_log(&mut self) {
        if self.is_cut || !self.lacks_pages().unwrap_or_default() || !self.files.are_in_place() {
            return;
        }
        self.is_cut = true;
        self.connection
            .pragma_update(None, "wal_autocheckpoint", 0)
            .ok();
        self.keep_log_at_close();
        tracing::error!(
            path = %self.sidecar("-wal").display(),
            "the log of the state file was cut short while in use, and with it what was stored since it was \
             last copied into the file; stop the exporter and start it again: it goes on from there, and logs \
             again what has opened since"
        );
    }

    /// Whether the log is too short for its pages although some of them are not in the file yet.
    fn lacks_pages(&self) -> io::Result<bool> {
        let length = || Ok::<_, io::Error>(self.sidecar("-wal").metadata()?.len());
        let before = length()?;
        let Ok(log) = checkpoint(&self.connection, "NOOP") else {
            return Ok(false);
        };
        let pages = u64::try_from(log.pages).unwrap_or_default();
        let needed = LOG_HEADER + pages * (PAGE_HEADER + self.page_size);
        // If another program changes the log through SQLite, it is long enough before or after
        // that.
        Ok(log.pages > log.copied && before < needed && length()? < needed)
    }

    /// Takes the lock again if the lock's file was removed, because otherwise a second exporter
    /// could start.
    ///
    /// # Errors
    /// [`Error::Lost`] if a second exporter has started: it may have changed the state since.
    pub(super) fn keep_lock(&mut self) -> std::result::Result<(), Error> {
        // As long as the lock's file cannot be looked at, nobody knows that it is gone. If it is
        // there after all, this process would take itself for another exporter.
        if self.has_lock().unwrap_or(true) {
            return Ok(());
        }
        let (problem, is_used) = match lock(self.path()) {
            Ok((lock, former)) => {
                let has_name = |lock: &Lock| lock.file.metadata().map_or(true, |it| it.nlink() > 0);
                self.locks.retain(has_name);
                self.locks.push(lock);
                // If the lock's file names no process, it was created here.
                if former.is_empty() {
                    return Ok(());
                }
                (format!("another exporter{former} has used it since"), true)
            }
            // The lock's file has come back at this very moment.
            Err(LockFailure::Held(_)) if self.has_lock().unwrap_or(true) => return Ok(()),
            Err(LockFailure::Held(holder)) => (format!("another exporter{holder} uses it"), true),
            Err(LockFailure::Failed(problem)) => (problem, false),
        };
        // If the state file itself was replaced, the other exporter uses the new one.
        if is_used && !matches!(self.files.gone_suffix(), Ok(Some(""))) {
            return Err(Error::Lost {
                path: self.path().to_owned(),
                problem,
            });
        }
        let path = self.path().display();
        if self.has_lock().unwrap_or_default() {
            tracing::error!(%path, "the state file's lock was replaced while in use, and has been taken again");
        } else {
            tracing::error!(
                %path,
                problem,
                "the state file's lock was removed while in use, and cannot be taken again"
            );
        }
        Ok(())
    }

    /// Whether one of the locks lies where other exporters look for it.
    fn has_lock(&self) -> io::Result<bool> {
        let found = id_at(&self.sidecar(".lock"))?;
        Ok(self.locks.iter().any(|lock| Some(lock.id) == found))
    }

    /// Starts copying the write-ahead log into the file, in a thread of its own, if the log is
    /// long.
    pub(super) fn copy_long_log(&mut self) {
        if self.is_cut || self.checkpoint.is_under_way() {
            return;
        }
        // If the length is unknown now, the next commit asks again.
        if let Ok(log) = checkpoint(&self.connection, "NOOP")
            && log.pages - log.copied >= LOG_PAGES
            && self.files.are_in_place()
        {
            self.checkpoint.start(self.files.path());
        }
    }

    /// Copies the write-ahead log into the file, so that the log is written from its start again.
    /// On a full disk the log may be all the room there is. Returns whether the whole log was
    /// copied.
    pub(super) fn reuse_log(&self) -> bool {
        // If the checkpoint fails, nothing is lost, because the log keeps what it holds.
        !self.is_cut && checkpoint(&self.connection, "RESTART").is_ok_and(|log| !log.busy)
    }

    /// Makes the best of the room there is, after something could not be written: the log is
    /// copied now, and stays short until the next start.
    pub(super) fn save_room(&mut self) {
        // Waits for a checkpoint under way, because it would block this one.
        self.checkpoint = Checkpoint::default();
        if self.is_cut {
            return;
        }
        self.connection
            .pragma_update(None, "wal_autocheckpoint", LOG_PAGES_IN_NEED)
            .ok();
        self.reuse_log();
    }

    /// Closes the file and leaves no log behind, unless another program is reading it.
    pub(super) fn close(mut self) {
        self.check_log();
        if !self.is_cut {
            // The copying only tidies up, so readers are not waited for.
            self.connection.busy_timeout(Duration::ZERO).ok();
            checkpoint(&self.connection, "TRUNCATE").ok();
        }
    }

    /// Closes the file without changing it, because it is another exporter's now.
    pub(super) fn abandon(self) {
        self.keep_log_at_close();
    }

    /// Keeps SQLite from copying the log when the connection is closed.
    fn keep_log_at_close(&self) {
        let no_copy = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        self.connection.set_db_config(no_copy, true).ok();
    }
}

/// Returns which file is found by a path, if there is one.
fn id_at(path: &Path) -> io::Result<Option<FileId>> {
    match path.metadata() {
        Ok(metadata) => Ok(Some(file_id(&metadata))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Appends a suffix to the file's name.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Returns the file's real path, so that no link to it leads around its lock.
pub(super) fn resolve(path: &Path) -> std::result::Result<PathBuf, String> {
    let path = follow_links(path).ok_or("its links lead in a circle; let them lead to a file")?;
    match path.canonicalize() {
        Ok(path) => match path.metadata() {
            Ok(file) if file.is_dir() => Err("it is a folder; name a file in it".to_owned()),
            // Opening a pipe may block for ever, and a device keeps nothing.
            Ok(file) if !file.is_file() => Err(format!(
                "it is {}, not a regular file; name a file",
                kind_of(file.file_type())
            )),
            // If the file cannot be examined, opening it fails as well, with the reason.
            Ok(_) | Err(_) => Ok(path),
        },
        Err(_) => resolve_new(&path),
    }
}

/// Like `resolve`, for a file that is to be created.
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

/// Refuses an empty or missing state file with a log beside it: SQLite would delete the log,
/// although it may hold all that is stored. Neither a crash nor a power cut leaves this behind: the
/// file is [synced](sync) before SQLite opens it, and has its first page before there is a log.
pub(super) fn refuse_log_alone(path: &Path) -> std::result::Result<(), String> {
    // SQLite takes a file of one byte for an empty one, too.
    let is_empty = path.metadata().map_or(0, |file| file.len()) <= 1;
    if !is_empty || !has_log(path) {
        return Ok(());
    }
    Err(format!(
        "it is empty or missing, and {}, which belongs to it, is not; restore it from a backup, or \
         move it and the files beside it away: then every open alert is logged again",
        with_suffix(path, "-wal").display()
    ))
}

/// Whether the log beside a state file holds anything.
pub(super) fn has_log(path: &Path) -> bool {
    let log = with_suffix(path, "-wal").metadata();
    log.is_ok_and(|log| log.len() > 0)
}

/// Takes the lock, and tries again for a moment if it is held: when an exporter has ended, a
/// process that it was starting keeps the lock until that process runs another program.
fn lock_at_start(path: &Path) -> std::result::Result<Lock, LockFailure> {
    let mut tries = 0..LOCK_TRIES;
    loop {
        match lock(path) {
            Err(LockFailure::Held(_)) if tries.next().is_some() => thread::sleep(LOCK_PAUSE),
            locked => return locked.map(|(lock, _)| lock),
        }
    }
}

/// Takes the lock beside the file. Also returns the former holder that the lock's file names, in
/// the form of [`holder`]. The lock is a file of its own because SQLite's locks on the state file
/// would be lost as soon as this process closed another handle on it.
fn lock(path: &Path) -> std::result::Result<(Lock, String), LockFailure> {
    let lock_path = with_suffix(path, ".lock");
    let mut file = open_or_create(&lock_path).map_err(LockFailure::Failed)?;
    let id = file
        .metadata()
        .map(|it| file_id(&it))
        .map_err(|error| LockFailure::Failed(not_lockable(&lock_path, &error)))?;
    let taken = flock(&file, FlockOperation::NonBlockingLockExclusive);
    let holder = holder(&mut file);
    match taken {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(LockFailure::Held(holder)),
        Err(error) => {
            let problem = not_lockable(&lock_path, &error.into());
            return Err(LockFailure::Failed(problem));
        }
    }
    // On a full disk only the number is missing.
    if file.set_len(0).is_ok() {
        file.write_all_at(std::process::id().to_string().as_bytes(), 0)
            .ok();
    }
    Ok((Lock { file, id }, holder))
}

fn not_lockable(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be locked: {error}", path.display())
}

/// The process that a lock's file names, as it is told: ` (process 7)`. It is only a courtesy: the
/// holder may not have written its number yet.
fn holder(lock: &mut File) -> String {
    let mut number = String::new();
    lock.read_to_string(&mut number).ok();
    match number.trim() {
        "" => String::new(),
        number => format!(" (process {number})"),
    }
}

/// Opens the state file or its lock, and creates it if it is missing. SQLite gives the mode of the
/// state file to the files beside it too. Fails if the file cannot be written.
fn open_or_create(path: &Path) -> std::result::Result<File, String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(MODE)
        .open(path)
        .map_err(|error| not_writable(path, &error))
}

/// Opens a file for reading and writing, if it exists.
pub(super) fn open_existing(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

/// Empties a file that [`is_blank`] before SQLite refuses it. If there is a log, SQLite reads the
/// first page from there.
fn empty_if_blank(path: &Path, state: &File) {
    if has_log(path) {
        return;
    }
    if beginning(state).is_ok_and(|content| is_blank(&content)) && state.set_len(0).is_ok() {
        tracing::warn!(
            path = %path.display(),
            "the state file held nothing but zeros, as after a power cut amid the first start; it is begun anew"
        );
    }
}

/// Reads the first page of a file, and one byte more if the file is longer.
pub(super) fn beginning(file: &File) -> io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(FIRST_PAGE);
    file.take(FIRST_PAGE as u64 + 1).read_to_end(&mut content)?;
    Ok(content)
}

/// Whether a file's [`beginning`] is what a power cut may leave of one that was just created: its
/// first page was not synced and is zeros. No tables fit into one page.
pub(super) fn is_blank(content: &[u8]) -> bool {
    (1..=FIRST_PAGE).contains(&content.len()) && content.iter().all(|byte| *byte == 0)
}

/// Syncs the state file and its name, which were perhaps just created, restored or moved here. The
/// first commit makes the log durable, but not the file: SQLite syncs that at the next checkpoint,
/// and a power cut before could leave the log alone. Where folders cannot be synced, as on some
/// network file systems, SQLite does without, too.
fn sync(path: &Path, state: &File) -> std::result::Result<(), String> {
    state
        .sync_all()
        .map_err(|error| not_writable(path, &error))?;
    if let Ok(folder) = File::open(folder(path)) {
        folder.sync_all().ok();
    }
    Ok(())
}

/// Fails if a file beside the state file cannot be written: SQLite would open it for reading only,
/// and would keep it so when somebody mends that. This must come before SQLite opens the files,
/// because whoever closes one of them gives up the locks of this process.
pub(super) fn refuse_unwritable_beside(path: &Path) -> std::result::Result<(), String> {
    for suffix in ["-wal", "-shm"] {
        let path = with_suffix(path, suffix);
        open_existing(&path).map_err(|error| not_writable(&path, &error))?;
    }
    Ok(())
}

/// Takes away the rights that others have to the file and its log; a restored copy may have such
/// rights. If the file belongs to another user, this only warns, because the exporter may have it
/// open by such a right.
fn take_from_others(path: &Path) {
    let me = rustix::process::geteuid().as_raw();
    let mut wanted = None;
    let mut is_told = false;
    for path in ["", "-wal", "-shm"].map(|suffix| with_suffix(path, suffix)) {
        let Ok(file) = fs::symlink_metadata(&path) else {
            continue;
        };
        let mode = file.mode() & 0o777;
        if !file.is_file() || mode & OF_OTHERS == 0 {
            // The files beside the state file get its mode, as SQLite does it.
            wanted.get_or_insert(mode);
            continue;
        }
        let wanted = *wanted.get_or_insert(without_others(mode));
        // The rights of the file's owner stay as they are.
        let taken = if file.uid() == me || me == ROOT {
            fs::set_permissions(&path, fs::Permissions::from_mode(wanted))
        } else {
            let whose = format!("it belongs to user {}", file.uid());
            Err(io::Error::new(io::ErrorKind::PermissionDenied, whose))
        };
        let path = path.display();
        match taken {
            // The files beside the state file have its mode because SQLite gives it to them.
            Ok(()) if is_told => {}
            Ok(()) => {
                is_told = true;
                tracing::warn!(
                    "every user of this machine could open {path}, which holds alerts in full; its mode is {wanted:o} \
                     now, instead of {mode:o}"
                );
            }
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

/// Returns the mode without the rights of others. The group's rights are removed too if they are
/// the same, because a copy gets such rights by chance. Different rights were given to the group
/// on purpose, so that a backup can be read or the exporter can open the file.
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

/// Checks that the file is ours and of a known version, before anything in it is changed, and
/// migrates it.
fn prepare(connection: &mut Connection) -> std::result::Result<(), String> {
    let version = version(connection).map_err(|error| describe_at_start(&error))?;
    let version = version.migrations_done()?;
    let mode = write_ahead(connection, version == 0).map_err(|error| describe(&error))?;
    if !mode.eq_ignore_ascii_case("wal") {
        return Err(format!(
            "its file system does not support SQLite's write-ahead log (the journal mode stays \
             {mode}); choose a local file system"
        ));
    }
    migrate(connection, version, &MIGRATIONS).map_err(|error| describe_at_start(&error))
}

/// Reads a file that no log belongs to as a start would, with `load` if its tables need no
/// migration, and leaves no files beside it. Fails as opening the file would.
pub(super) fn read_as_start<T>(
    path: &Path,
    load: impl FnOnce(&Connection) -> Result<T>,
) -> std::result::Result<(), String> {
    let open = || {
        let path = percent_encode(path.as_os_str().as_bytes(), NON_ALPHANUMERIC);
        // Only an immutable file is read without the files beside it.
        let uri = format!("file:{path}?immutable=1");
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_URI;
        let connection = Connection::open_with_flags(uri, flags)?;
        let version = version(&connection)?;
        Ok((connection, version))
    };
    let (connection, version) = open().map_err(|error| describe_at_start(&error))?;
    if version.migrations_done()? == MIGRATIONS.len() {
        load(&connection).map_err(|error| describe_at_start(&error))?;
    }
    Ok(())
}

pub(super) enum Version {
    /// An exporter's file, with the number of migrations that were done; 0 for a new file.
    Ours(usize),
    /// An exporter's file that has tables, though its header says that it has none.
    Damaged,
    Foreign,
}

impl Version {
    /// The version that the header of a file tells; the file must not be empty.
    pub(super) fn of(application_id: i32, user_version: i32) -> Self {
        match (application_id, usize::try_from(user_version)) {
            (APPLICATION_ID, Ok(version)) => Self::Ours(version),
            _ => Self::Foreign,
        }
    }

    /// Number of migrations done. Fails if this version of the exporter cannot open the file.
    pub(super) fn migrations_done(self) -> std::result::Result<usize, String> {
        let known = MIGRATIONS.len();
        match self {
            Self::Ours(version) if version <= known => Ok(version),
            Self::Ours(version) => Err(format!(
                "it was written by a newer version (its schema is {version}, this version knows \
                 schemas up to {known}); install that version again, or choose another path"
            )),
            Self::Damaged => Err(DAMAGED.to_owned()),
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
        (APPLICATION_ID, 0) if tables > 0 => Version::Damaged,
        _ => Version::of(application, version),
    })
}

fn write_ahead(connection: &Connection, new: bool) -> Result<String> {
    if new {
        let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
        // Where a first start was broken off, the file may have a log already, which this would
        // remove.
        if !mode.eq_ignore_ascii_case("wal") {
            // A new file holds nothing that a rollback journal could restore, and the journal's
            // fsyncs are most of what the first start waits for.
            connection.pragma_update_and_check(None, "journal_mode", "memory", |_| Ok(()))?;
        }
    }
    let mode = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES_AT_MOST)?;
    connection.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
    Ok(mode)
}

/// Runs the missing migrations, all or none.
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

/// Like [`describe`], while a file is opened: what SQLite calls just an error is then damage, such
/// as an unknown format or a missing table, because the statements are right.
fn describe_at_start(error: &rusqlite::Error) -> String {
    match error {
        // Its own message would have the whole statement.
        rusqlite::Error::SqlInputError { msg, .. } => format!("{DAMAGED} ({msg})"),
        _ if error.sqlite_error_code() == Some(ErrorCode::Unknown) => {
            format!("{DAMAGED} ({error})")
        }
        _ => describe(error),
    }
}

/// Explains SQLite's error to operators.
pub(super) fn describe(error: &rusqlite::Error) -> String {
    let advice = match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => NO_DATABASE,
        Some(ErrorCode::DatabaseCorrupt) => DAMAGED,
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another program, such as an sqlite3 shell, has locked it; end that program"
        }
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            "it, its folder or the files beside it that end in -wal and -shm cannot be written; \
             let them belong to the user that the exporter runs as"
        }
        Some(ErrorCode::DiskFull) => "the disk is full; make room",
        // SQLite does not report a used-up quota, or a disk that is too full to begin, as a full
        // disk.
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
