//! How much more may be stored before the disk is too full for delivery to go on.
//!
//! Delivered events must be acknowledged, or the journal never shrinks: a disk that the journal
//! itself has filled would stay full for ever. So new alerts and events are refused while there is
//! still room for acknowledgements and for copying the write-ahead log into the file. Once the log
//! is copied, its pages can be used again.

use std::{fs, path::Path};

use rusqlite::Result;

use super::open::StateFile;

/// If the disk has this many bytes more than are wanted, nothing need be calculated. It is more
/// than twice the maximum length of the log.
const PLENTY: u64 = 128 * 1024 * 1024;
/// Bytes that are kept for acknowledgements; less on a very small disk.
const RESERVE: u64 = 1024 * 1024;

/// The disk that the state is on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disk {
    /// Free bytes that this process may use.
    pub(crate) free: u64,
    /// Bytes that are kept free for acknowledgements. With less, as a rule, nothing new is stored.
    pub(crate) reserve: u64,
}

/// The room that can be written to, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Room {
    /// Free on the disk for this process.
    free: u64,
    /// The part of `free` that copying the log into the file needs.
    debt: u64,
    /// The part of the log that is copied and can be used again.
    log: u64,
    /// The part of the file that holds nothing.
    unused: u64,
    /// Kept for acknowledgements.
    reserve: u64,
}

// === impl Disk ===

impl Disk {
    /// The disk of a file or a folder; `None` if the system does not tell. A file system without a
    /// size, such as ramfs, tells zeros, which do not mean that it is full.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let disk = rustix::fs::statvfs(path).ok()?;
        let size = disk.f_blocks.saturating_mul(disk.f_frsize);
        (size > 0).then(|| Self {
            free: disk.f_bavail.saturating_mul(disk.f_frsize),
            reserve: RESERVE.min(size / 16),
        })
    }
}

// === impl StateFile ===

impl StateFile {
    /// How many bytes may be stored now. Room for more than `wanted` bytes need not be looked for.
    pub(super) fn room_for(&self, wanted: u64) -> u64 {
        self.room_with(wanted, 0)
    }

    /// Like `Self::room_for`, if `freed` bytes of the file became free.
    pub(super) fn room_with(&self, wanted: u64, freed: u64) -> u64 {
        self.room_on(|| Disk::of(self.path()), wanted, freed)
    }

    /// Like `Self::room_with`, on the disk that `disk` returns each time it is called.
    fn room_on(&self, disk: impl Fn() -> Option<Disk>, wanted: u64, freed: u64) -> u64 {
        let Some(now) = disk() else {
            // If the free space is unknown, only writing shows whether there is room.
            return u64::MAX;
        };
        if now.free > wanted.saturating_mul(2).saturating_add(PLENTY) {
            return u64::MAX;
        }
        // If this fails, the write that follows meets the same fault and reports it.
        let before = self.room(now, false).unwrap_or_default();
        if wanted <= before.bytes() {
            return before.bytes();
        }
        let copied = self.reuse_log();
        // Copying the log, whole or in part, has made the file grow.
        let Some(now) = disk() else {
            return u64::MAX;
        };
        self.room(now, copied).map_or(0, |mut room| {
            if copied {
                room.unused += freed;
            }
            room.bytes()
        })
    }

    fn room(&self, Disk { free, reserve }: Disk, copied: bool) -> Result<Room> {
        let number = |pragma| {
            self.reader()
                .pragma_query_value(None, pragma, |row| row.get::<_, u32>(0))
                .map(u64::from)
        };
        let page = number("page_size")?;
        let length = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
        let debt = (number("page_count")? * page).saturating_sub(length(self.path()));
        let (log, unused) = if copied {
            let log = length(&self.sidecar("-wal"));
            (log, number("freelist_count")? * page)
        } else {
            (0, 0)
        };
        Ok(Room {
            free,
            debt,
            log,
            unused,
            reserve,
        })
    }
}

// === impl Room ===

impl Room {
    /// How many bytes may be stored. Each byte is written twice, first to the log and later to the
    /// file.
    fn bytes(self) -> u64 {
        let free = self.free.saturating_sub(self.debt);
        let log = (self.log + free).saturating_sub(self.reserve);
        let file = self.unused + free;
        let both = (self.log + self.unused + free).saturating_sub(self.reserve) / 2;
        log.min(file).min(both)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_written_twice_and_leaves_the_reserve() {
        let room = |free, debt, log, unused| {
            let room = Room {
                free,
                debt,
                log,
                unused,
                reserve: 10,
            };
            room.bytes()
        };
        assert_eq!(room(110, 0, 0, 0), 50);
        assert_eq!(room(110, 60, 0, 0), 20);
        assert_eq!(room(110, 111, 0, 0), 0);
        assert_eq!(room(9, 0, 0, 0), 0);
        // A disk that the journal filled, once it is delivered.
        assert_eq!(room(0, 0, 50, 200), 40);
        // The same before anything is delivered: the file cannot grow.
        assert_eq!(room(0, 0, 50, 0), 0);
        assert_eq!(room(0, 0, 50, 30), 30);
        assert_eq!(room(20, 0, 50, 30), 45);
    }

    #[test]
    fn a_file_system_that_states_no_size_does_not_count_as_full() {
        let disk = rustix::fs::statvfs("/proc").unwrap();
        assert_eq!((disk.f_blocks, disk.f_bavail), (0, 0));
        assert!(Disk::of(Path::new("/proc")).is_none());
        assert!(Disk::of(&std::env::temp_dir()).is_some());
    }

    #[test]
    fn where_there_is_plenty_nothing_is_calculated_and_a_megabyte_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let (file, ()) = StateFile::open(&path, |_| Ok(())).unwrap();
        assert!(file.reuse_log());
        let on = |free| {
            let reserve = Disk::of(&path).unwrap().reserve;
            file.room_on(|| Some(Disk { free, reserve }), 1000, 0)
        };
        assert_eq!(on(PLENTY + 2001), u64::MAX);
        assert_eq!(on(PLENTY + 2000), (PLENTY + 2000 - (1 << 20)) / 2);
        assert_eq!(file.room_on(|| None, 1000, 0), u64::MAX);
    }

    #[test]
    fn what_copying_the_log_takes_is_not_there_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.db");
        let (mut file, ()) = StateFile::open(&path, |_| Ok(())).unwrap();
        let fill = "CREATE TABLE filler AS SELECT zeroblob(4194304) AS content";
        file.connection().execute_batch(fill).unwrap();
        let used = || {
            let length = |path: &Path| fs::metadata(path).unwrap().len();
            length(&path) + length(&super::super::with_suffix(&path, "-wal"))
        };
        let none = Disk {
            free: 0,
            reserve: 0,
        };
        let debt = file.room(none, false).unwrap().debt;
        assert!(debt > 4 << 20, "{debt}");
        let rest = 100 << 10;
        let size = used() + debt + rest;
        let disk = || {
            Some(Disk {
                free: size - used(),
                reserve: 0,
            })
        };
        assert_eq!(file.room_on(disk, 0, 0), rest / 2);
        // The log is copied, so its pages can be written again.
        assert_eq!(file.room_on(disk, rest, 0), rest);
        // So can what becomes free in the file, unless the log cannot be copied.
        assert_eq!(file.room_on(disk, 2 * rest, 1000), rest + 1000);
        let reader = rusqlite::Connection::open(&path).unwrap();
        reader.execute_batch("BEGIN; SELECT * FROM filler").unwrap();
        let more = "CREATE TABLE more (x); DROP TABLE filler; PRAGMA busy_timeout = 0";
        file.connection().execute_batch(more).unwrap();
        assert!(file.room_on(disk, rest, 1000) < rest);
    }
}
