//! Inspects a state file without opening the store: for a check before the start, and beside a
//! running daemon.
//!
//! A usual reader of SQLite leaves files behind, which would belong to the user that checks, not
//! to the user that runs the exporter. So SQLite is told that the file does not change, and reads
//! what a start reads.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use tracing::subscriber::NoSubscriber;

use super::{
    journal::Journal,
    open::{
        DAMAGED, NO_DATABASE, Version, beginning, has_log, is_blank, not_writable, open_existing,
        read_as_start, refuse_log_alone, refuse_unwritable_beside, resolve, with_suffix,
    },
};
use crate::{paths::folder, store::Error};

/// The condition of a state file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspection {
    /// An exporter has it open.
    InUse {
        /// The number of that process, if it has written its number down.
        by: Option<u32>,
    },
    /// There is no file yet; it can be created.
    New {
        /// The folder for the new file.
        folder: PathBuf,
    },
    /// It can be opened.
    Ready {
        /// The folder that the file is in, after links are followed.
        folder: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
}

const MAGIC: &[u8] = b"SQLite format 3\0";

/// Inspects a state file, which is neither created nor changed.
///
/// # Errors
/// [`Error::Open`] if the daemon could not open it, as far as an inspection shows.
pub fn inspect(path: &Path) -> Result<Inspection, Error> {
    look(path).map_err(|problem| Error::Open {
        path: path.to_owned(),
        problem,
    })
}

fn look(path: &Path) -> Result<Inspection, String> {
    let path = resolve(path)?;
    let lock = with_suffix(&path, ".lock");
    if let Some(by) = holder(&lock).map_err(|error| not_writable(&lock, &error))? {
        // Whoever looks may lack a right that the exporter has. But nobody can write to a file
        // system that has become read-only.
        return match open_existing(&path) {
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                Err(not_writable(&path, &error))
            }
            _ => Ok(Inspection::InUse { by }),
        };
    }
    open_existing(&lock).map_err(|error| not_writable(&lock, &error))?;
    refuse_unwritable_beside(&path)?;
    refuse_log_alone(&path)?;
    let folder = folder(&path).to_owned();
    let Some(file) = open_existing(&path).map_err(|error| not_writable(&path, &error))? else {
        return Ok(Inspection::New { folder });
    };
    let size = file
        .metadata()
        .map_err(|error| format!("cannot be looked at: {error}"))?
        .len();
    let begin = beginning(&file).map_err(|error| format!("cannot be read: {error}"))?;
    // After a crash, all content of the database may still be in the log beside it.
    let has_log = has_log(&path);
    // SQLite takes a file of one byte for an empty one, too.
    if begin.len() <= 1 || is_blank(&begin) || (has_log && number(&begin, 68) == Some(0)) {
        return Ok(Inspection::Ready { folder, size });
    }
    if !begin.starts_with(MAGIC) {
        return Err(NO_DATABASE.to_owned());
    }
    let (Some(version), Some(application)) = (number(&begin, 60), number(&begin, 68)) else {
        return Err(DAMAGED.to_owned());
    };
    if has_log {
        // While a log holds changes, the file alone need not be whole.
        Version::of(application, version).migrations_done()?;
    } else {
        // A start would log what it does about sinks. Here, nothing is done.
        tracing::subscriber::with_default(NoSubscriber::default(), || {
            read_as_start(&path, |connection| Journal::load(connection, u64::MAX))
        })?;
    }
    Ok(Inspection::Ready { folder, size })
}

/// Reads a number of the header. Its offset is from SQLite's documentation of the file format.
fn number(begin: &[u8], at: usize) -> Option<i32> {
    let bytes = begin.get(at..at + 4)?;
    Some(i32::from_be_bytes(bytes.try_into().ok()?))
}

/// Returns who holds the lock: `None` if nobody does, else the number that the holder wrote down,
/// if it wrote any.
fn holder(lock: &Path) -> io::Result<Option<Option<u32>>> {
    let mut file = match File::open(lock) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    // The lock taken here is shared, and is released at once when the file is closed.
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            Ok(Some(text.trim().parse().ok()))
        }
        Err(error) => Err(error.into()),
        Ok(()) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, thread, time::Duration};

    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;
    use crate::store::{JOURNAL_LIMIT, Options, Store};

    fn options(path: &Path) -> Options {
        Options::Sqlite {
            path: path.to_owned(),
            journal_limit: JOURNAL_LIMIT,
        }
    }

    /// Inspects a file that no store has open. A process that another test starts at this moment
    /// shares the locks of this one until it runs its program.
    fn inspect_unused(path: &Path) -> Result<Inspection, Error> {
        for _ in 0..1000 {
            match inspect(path) {
                Ok(Inspection::InUse { .. }) => thread::sleep(Duration::from_millis(1)),
                inspected => return inspected,
            }
        }
        inspect(path)
    }

    fn problem(path: &Path) -> String {
        match inspect_unused(path) {
            Err(Error::Open { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_file_is_told_apart_by_who_has_it_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let files = || fs::read_dir(folder.path()).unwrap().count();
        let new = Inspection::New {
            folder: folder.path().canonicalize().unwrap(),
        };
        assert_eq!(inspect(&path).unwrap(), new);
        assert_eq!(files(), 0);

        let options = options(&path);
        let store = Store::open(&options).await.unwrap();
        let by = Some(std::process::id());
        assert_eq!(inspect(&path).unwrap(), Inspection::InUse { by });
        store.close().await;
        let before = files();
        assert!(
            matches!(inspect_unused(&path).unwrap(), Inspection::Ready { size, .. } if size > 0)
        );
        assert_eq!(files(), before);
        // SQLite's files are beside the database, not beside a link to it.
        let elsewhere = tempfile::tempdir().unwrap();
        let link = elsewhere.path().join("state.db");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let own = folder.path().canonicalize().unwrap();
        assert!(
            matches!(inspect_unused(&link).unwrap(), Inspection::Ready { folder, .. } if folder == own)
        );
        // The inspections have released the lock.
        Store::open(&options).await.unwrap().close().await;
    }

    #[tokio::test]
    async fn a_file_that_the_start_refuses_as_damaged_is_refused_here_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state #1?%41.db");
        let options = options(&path);
        Store::open(&options).await.unwrap().close().await;
        let whole = fs::read(&path).unwrap();
        let files = || fs::read_dir(folder.path()).unwrap().count();
        let before = files();
        // The version of the tables, the format, the head of the schema, and all tables.
        let page = 4096;
        for (at, count, byte) in [
            (60, 4, 0),
            (44, 4, 0xfe),
            (100, 8, 0xfe),
            (page, whole.len() - page, 0),
        ] {
            let mut damaged = whole.clone();
            damaged[at..at + count].fill(byte);
            fs::write(&path, &damaged).unwrap();
            let told = problem(&path);
            assert!(told.starts_with(DAMAGED), "{told}");
            assert_eq!((files(), fs::read(&path).unwrap()), (before, damaged));
            match Store::open(&options).await {
                Err(Error::Open { problem, .. }) => assert_eq!(problem, told),
                other => panic!("{other:?}"),
            }
            for suffix in ["-wal", "-shm"] {
                fs::remove_file(with_suffix(&path, suffix)).ok();
            }
        }
        fs::write(&path, &whole).unwrap();
        assert!(matches!(
            inspect_unused(&path),
            Ok(Inspection::Ready { .. })
        ));
    }

    #[tokio::test]
    async fn what_a_start_would_log_and_mend_is_left_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let options = options(&path);
        let store = Store::open(&options).await.unwrap();
        store.set_sinks(vec!["file".to_owned()]).await.unwrap();
        store.close().await;
        // A place beyond the end of the journal.
        rusqlite::Connection::open(&path)
            .unwrap()
            .execute("UPDATE sink SET position = 99", [])
            .unwrap();
        let (lines, _guard) = crate::logging::captured();
        assert!(matches!(
            inspect_unused(&path),
            Ok(Inspection::Ready { .. })
        ));
        assert_eq!(*lines.lock(), Vec::<String>::new());
    }

    #[test]
    fn a_file_of_one_byte_is_an_empty_database_as_sqlite_takes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        for size in [0, 1] {
            fs::write(&path, vec![0; size as usize]).unwrap();
            let inspection = inspect(&path).unwrap();
            assert!(matches!(inspection, Inspection::Ready { size: found, .. } if found == size));
        }
    }

    #[test]
    fn what_could_not_be_opened_is_told_as_opening_would() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        fs::write(&path, "a text of somebody's that is surely no database").unwrap();
        assert!(problem(&path).starts_with("it is not an SQLite database"));
        assert!(problem(folder.path()).starts_with("it is a folder"));
        let pipe = folder.path().join("pipe");
        mkfifoat(CWD, &pipe, Mode::RWXU).unwrap();
        for (path, what) in [
            (&*pipe, "a named pipe"),
            (Path::new("/dev/null"), "a device"),
        ] {
            let told = format!("it is {what}, not a regular file; name a file");
            assert_eq!(problem(path), told);
        }
        assert!(problem(&folder.path().join("no/state.db")).contains("does not exist"));

        fs::remove_file(&path).unwrap();
        let sql = |sql: &str| {
            let connection = rusqlite::Connection::open(&path).unwrap();
            connection.execute_batch(sql).unwrap();
        };
        sql("CREATE TABLE theirs (x)");
        assert!(problem(&path).starts_with("it is the database of another program"));
        sql("PRAGMA application_id = 0x4f705278; PRAGMA user_version = 1000");
        assert!(problem(&path).starts_with("it was written by a newer version"));
    }
}
