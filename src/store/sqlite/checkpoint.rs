//! Copies the write-ahead log into the state file (a checkpoint) in a thread of its own, so that
//! no commit waits for it.

use std::{
    path::Path,
    thread::{self, JoinHandle},
};

use rusqlite::{Connection, OpenFlags, Result};

/// The checkpoint that is under way, if any. Dropping this waits for it.
///
/// The thread and the connection last for one checkpoint only, because most of the time there is
/// nothing to copy.
#[derive(Debug, Default)]
pub(super) struct Checkpoint(Option<JoinHandle<()>>);

// === impl Checkpoint ===

impl Checkpoint {
    pub(super) fn is_under_way(&self) -> bool {
        self.0.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Starts a checkpoint. If it fails, the log keeps what it holds, and the next checkpoint
    /// copies it.
    pub(super) fn start(&mut self, path: &Path) {
        let path = path.to_owned();
        self.0 = thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || {
                copy(&path).ok();
            })
            .ok();
    }
}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            thread.join().ok();
        }
    }
}

fn copy(path: &Path) -> Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.pragma_update(None, "synchronous", "full")?;
    checkpoint(&connection, "PASSIVE").map(drop)
}

/// The state of the write-ahead log after a checkpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Log {
    /// Whether another connection kept the checkpoint from completing.
    pub(super) busy: bool,
    pub(super) pages: i64,
    /// How many of these pages are in the file.
    pub(super) copied: i64,
}

/// Runs a checkpoint in one of SQLite's modes. `NOOP` copies nothing and only returns the state.
pub(super) fn checkpoint(connection: &Connection, mode: &str) -> Result<Log> {
    let mut statement = connection.prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?;
    statement.query_row([], |row| {
        Ok(Log {
            busy: row.get("busy")?,
            pages: row.get("log")?,
            copied: row.get("checkpointed")?,
        })
    })
}
