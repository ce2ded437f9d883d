//! Copies the write-ahead log into the state file (a checkpoint) in a thread of its own, so that
//! no commit waits for it.

use std::{
    path::Path,
    thread::{self, JoinHandle},
};

use rusqlite::{Connection, OpenFlags, Result};

/// The checkpoint that is under way, if one is; it is waited for when this is dropped.
///
/// Its thread and its connection last no longer than it does: most of the time there is nothing
/// to copy.
#[derive(Debug, Default)]
pub(super) struct Checkpoint(Option<JoinHandle<()>>);

// === impl Checkpoint ===

impl Checkpoint {
    pub(super) fn is_under_way(&self) -> bool {
        self.0.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Starts one. Where it fails, the log keeps what it holds and the next one finds it.
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

/// How the write-ahead log stands after a checkpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Log {
    /// Somebody was in the way of it.
    pub(super) busy: bool,
    pub(super) pages: i64,
    /// Of these, how many are in the file.
    pub(super) copied: i64,
}

/// Does a checkpoint, in one of SQLite's modes; `NOOP` only looks.
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
