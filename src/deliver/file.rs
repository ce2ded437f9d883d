//! A file that every line reaches exactly once, whatever crashes.
//!
//! The sink remembers `settled`: the offset up to which the file's content is acknowledged and
//! safe on the disk. The store keeps this offset in a [`Mark`]. Whatever stands behind it was
//! written by a try that did not finish, because the process was killed, the disk was full or its
//! cache could not be written back. So before anything is appended, this content is compared with
//! the waiting lines: whole lines are not written again, and a torn line is completed. In the
//! ordinary case, nothing stands there and nothing is read. This one rule covers every fault, in a
//! running process and after a start.
//!
//! When a file is opened, the content behind `settled` need not be of the lines that come first: a
//! sink that had another name for a while may have written later lines there. So this part is
//! searched until all events are delivered that were journalled when the file was opened.
//!
//! Where replicas share the searches, waiting lines may stand before `settled` as well: after a
//! start, searches come one by one, and a lost search may come back much later. So the sink
//! remembers which parts of its files are doubtful: what an unfinished try has left, and what was
//! written but not yet known to the server when a search was lost. Events that another holder may
//! have delivered are looked for in the doubtful parts and at the file's end, however much was
//! written since.
//!
//! Lines are compared as a whole, never by a part of their content, so that no alert's text can
//! pass for another alert's line. If logrotate moves the file away, lines that are not settled are
//! looked for in the moved file. With `copytruncate`, which copies the file first, they are looked
//! for in the copy. What is written between copy and truncation is lost, which no writer can
//! prevent.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    ops::Range,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::{
    fs::{Advice, OFlags, fadvise},
    io::Errno,
};

use tokio::sync::watch;

use crate::{
    error_chain::chain,
    file_id::{FileId, file_id},
    paths::{folder, link_target},
    store::{Past, Pending},
};

use super::{
    Format,
    format::Lines,
    sink::{Progress, Writer},
};

use self::{
    mark::Mark,
    scan::{Missing, Scan, scan},
};

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod mark;
mod scan;

/// Readable for the group, and for nobody else beside the owner.
const MODE: u32 = 0o640;

/// How many bytes at a file's end are searched for waiting lines if no mark says where to begin.
/// Where replicas share the searches, that much of the settled end is searched as well: a process
/// before the last one may have left lines there, of which nothing is remembered. If no other
/// replica ever holds a search, all of the search's unacknowledged lines stand in this part.
const LOOK_BACK: u64 = 16 << 20;

/// Number of doubtful parts of one file that are remembered apart. Further parts are merged into
/// the last one.
const MAX_DOUBTFUL: usize = 64;

/// Maximum number of moved files that are kept because they may hold lines that are given again.
const MAX_MOVED_SETTLED: usize = 16;

/// Number of tries to lock a file that is locked already, with a pause between two tries.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Number of failures after which a file that was moved away is given up: some five minutes, at
/// the pace of the worker. Until then the file holds up the lines that follow, since some of them
/// may be in it.
const MAX_FAILURES: u32 = 64;

/// A file as a sink.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    format: Format,
    /// Files that other sinks write to.
    others: Vec<PathBuf>,
    /// Where a former process left off and which parts it left in doubt, until the file is open.
    mark: Option<(Mark, Vec<Range<u64>>)>,
    current: Option<OpenFile>,
    /// The last position in the journal.
    journalled: watch::Receiver<i64>,
    /// Events up to this position may stand in the doubtful parts, whoever has held their
    /// searches.
    doubted: i64,
    /// What was last heard of earlier deliveries, where replicas share the searches.
    past: Option<Past>,
    /// Files that were moved away before everything in them was settled.
    moved_unsettled: Vec<OpenFile>,
    /// Files that were moved away and are settled, but may hold lines that are given again. A file
    /// is closed once it is deleted, or once none of its lines can be given again.
    moved_settled: Vec<OpenFile>,
}

/// An open file, and what is known of its end.
#[derive(Debug)]
struct OpenFile {
    file: File,
    path: PathBuf,
    id: FileId,
    /// Up to here everything is acknowledged and safe on the disk.
    settled: u64,
    /// The file was written up to here at least, whether that is safe on the disk or not.
    end: u64,
    /// From here up to `settled`, the server may not have heard of the lines yet.
    unstored: u64,
    /// Parts that may hold lines that the journal gives again: what a try left unfinished, and
    /// what the server had not heard of when a search was lost.
    doubtful: Vec<Range<u64>>,
    /// What the store knows the file by, so that the file is found again wherever it is moved;
    /// `None` while the store does not know the file yet.
    mark: Option<Mark>,
    /// Failures since the file was moved away.
    failures: u32,
}

/// The file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file's folder does not exist.
    #[error("cannot create {}: its folder does not exist", .0.display())]
    NoFolder(PathBuf),
    /// The path leads to something that is no regular file.
    #[error("cannot write to {}: it is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// Another exporter, or another sink, writes to the file.
    #[error("cannot write to {}: another process or sink is writing to it", .0.display())]
    Locked(PathBuf),
    /// An operation failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

// === impl LogFile ===

impl LogFile {
    /// Returns a sink whose file is opened, and created if it is missing, with the first delivery.
    pub(super) fn new(path: PathBuf, format: Format) -> Self {
        Self {
            path,
            format,
            others: Vec::new(),
            mark: None,
            current: None,
            // Until `with_journalled` tells how far the journal goes, any event may have been written
            // already.
            journalled: watch::channel(i64::MAX).1,
            doubted: 0,
            past: None,
            moved_unsettled: Vec::new(),
            moved_settled: Vec::new(),
        }
    }

    /// Sets the files that other sinks write to.
    pub(super) fn with_other_files(mut self, others: Vec<PathBuf>) -> Self {
        self.others = others;
        self
    }

    /// Sets where to read how far the journal goes.
    pub(super) fn with_journalled(mut self, journalled: watch::Receiver<i64>) -> Self {
        self.journalled = journalled;
        self
    }

    /// Makes the sink go on where a former process left off with `mark`.
    pub(super) fn resume_at(mut self, mark: Option<&[u8]>) -> Self {
        self.mark = mark.and_then(Mark::decode);
        self
    }

    /// Makes sure that each of `lines` stands in a file once. Without an error, all lines are
    /// there afterwards, with one exception: nothing is written to a file before the store knows
    /// it. `events` are those of the lines.
    fn write(&mut self, events: &[Pending], lines: &Lines) -> Result<Progress, Error> {
        let first = events.first().map_or(i64::MAX, |first| first.position);
        let mut current = self.follow_name()?;
        if self.past.is_none() && first > self.doubted {
            // All events that come now were journalled after the files had been opened.
            self.moved_settled.clear();
            for file in self.moved_unsettled.iter_mut().chain([&mut current]) {
                file.doubtful.clear();
            }
        }
        let written = self.write_to(&mut current, first, events, lines);
        self.current = Some(current);
        written
    }

    fn write_to(
        &mut self,
        current: &mut OpenFile,
        first: i64,
        events: &[Pending],
        lines: &Lines,
    ) -> Result<Progress, Error> {
        self.moved_unsettled
            .extend(current.leave_if_truncated(&self.others)?);
        if self.past.is_some() {
            for file in self.moved_unsettled.iter_mut().chain([&mut *current]) {
                file.doubt_unsettled()?;
            }
        }
        let is_inherited = self.past.is_some_and(|past| past.is_inherited);
        let is_doubted = is_inherited || first <= self.doubted;
        // A former process, with another configuration, may have written the other format.
        let has_doubtful = |file: &OpenFile| !file.doubtful.is_empty();
        let mut others = self.moved_unsettled.iter().chain(&self.moved_settled);
        let may_be_in_other_format =
            is_inherited || is_doubted && (has_doubtful(current) || others.any(has_doubtful));
        let in_other_format =
            may_be_in_other_format.then(|| Lines::render(self.format.other(), events));
        let mut missing = Missing::new(lines, in_other_format.as_ref());
        let found = self.search_moved(current, is_inherited, is_doubted, &mut missing)?;
        if let Some(settled) = found {
            return Ok(settled);
        }
        let searched = self.moved_unsettled.len();
        if is_doubted {
            self.find_in_others(&mut missing)?;
        }
        if current.mark.is_none()
            && let Some(lines) = missing.first_of_an_unbroken_rest()
        {
            let mark = current.mark_at(current.settled)?;
            current.mark = Some(mark);
            self.retire(searched);
            return Ok(Progress {
                settled: lines,
                mark: Some(mark.encode(&current.doubtful)),
                ..Progress::default()
            });
        }
        if is_doubted {
            current.find_in(&current.doubtful, &mut missing)?;
        }
        if is_inherited {
            let end = current.settled.saturating_sub(LOOK_BACK)..current.settled;
            current.find_in(&[end], &mut missing)?;
        }
        let settled = current.settle(&mut missing)?;
        self.retire(searched);
        Ok(settled)
    }

    /// Looks for lines in the unsettled ends of files that were moved away, one file after the
    /// other. Returns `Some` if all lines were found. The file that holds the last of them is then
    /// settled up to that line.
    fn search_moved(
        &mut self,
        current: &OpenFile,
        is_inherited: bool,
        is_doubted: bool,
        missing: &mut Missing<'_>,
    ) -> Result<Option<Progress>, Error> {
        for searched in 0..self.moved_unsettled.len() {
            let peek = |missing: &mut Missing<'_>| match is_doubted {
                true => self.peek_everywhere(current, is_inherited, missing),
                false => Ok(()),
            };
            let settled = self.moved_unsettled[searched].settle_moved(missing, peek);
            let moved = &mut self.moved_unsettled[searched];
            match settled {
                Ok((scan, mark)) if !scan.at_end => {
                    // The rest of the file belongs to later lines.
                    moved.settled = scan.end;
                    let mark = mark.encode(&moved.doubtful);
                    self.retire(searched);
                    return Ok(Some(Progress {
                        settled: missing.len(),
                        mark: Some(mark),
                        ..Progress::default()
                    }));
                }
                Ok(_) => {}
                Err(error) if moved.is_worth_another_try() => return Err(error),
                // The file must not hold up later lines for ever.
                Err(error) => warn_of_unsearched(&error),
            }
        }
        Ok(None)
    }

    /// Looks for lines wherever they may stand, and changes nothing: a torn line in a file that
    /// was moved away must not be completed if another sink has written the whole line elsewhere.
    fn peek_everywhere(
        &self,
        current: &OpenFile,
        is_inherited: bool,
        missing: &mut Missing<'_>,
    ) -> Result<(), Error> {
        let look_back = if is_inherited { LOOK_BACK } else { 0 };
        current.peek(current.settled.saturating_sub(look_back), missing)?;
        for file in self.moved_settled.iter().chain(&self.moved_unsettled) {
            // A failure is counted by the next search of the file.
            file.peek(file.settled, missing).ok();
        }
        Ok(())
    }

    /// Looks for lines in the doubtful parts of files that were moved away.
    fn find_in_others(&mut self, missing: &mut Missing<'_>) -> Result<(), Error> {
        for file in self
            .moved_settled
            .iter_mut()
            .chain(&mut self.moved_unsettled)
        {
            match file.find_in(&file.doubtful, missing) {
                Ok(()) => {}
                Err(error) if file.is_worth_another_try() => return Err(error),
                Err(error) => {
                    warn_of_unsearched(&error);
                    file.doubtful.clear();
                }
            }
        }
        Ok(())
    }

    /// Lets go of the first `count` files that were moved away, which are settled by now.
    fn retire(&mut self, count: usize) {
        let settled: Vec<_> = self.moved_unsettled.drain(..count).collect();
        self.keep_doubtful(settled);
    }

    fn keep_doubtful(&mut self, settled: impl IntoIterator<Item = OpenFile>) {
        let is_shared = self.past.is_some();
        let doubtful = settled.into_iter().filter(|file| {
            // If the searches are not shared, the store has heard of all settled lines.
            !file.doubtful.is_empty() || is_shared && file.is_in_doubt()
        });
        self.moved_settled.extend(doubtful);
        let excess = self.moved_settled.len().saturating_sub(MAX_MOVED_SETTLED);
        self.moved_settled.drain(..excess);
    }

    /// Takes the file that has the sink's path now.
    fn follow_name(&mut self) -> Result<OpenFile, Error> {
        self.leave_if_moved()?;
        // The lines of a file that was deleted, or compressed, are gone: nobody would ever read a
        // line that is completed there.
        self.moved_unsettled.retain(|file| !file.is_deleted());
        self.moved_settled.retain(|file| !file.is_deleted());
        match self.current.take() {
            Some(current) => Ok(current),
            None => self.open_current(),
        }
    }

    /// Opens the file and finds out up to where it is settled.
    fn open_current(&mut self) -> Result<OpenFile, Error> {
        if let Ok(metadata) = fs::metadata(&self.path) {
            let id = file_id(&metadata);
            let mut back = self.moved_unsettled.extract_if(.., |it| it.id == id);
            let mut former = self.moved_settled.extract_if(.., |it| it.id == id);
            // The file was moved back to its path. It is still open and locked.
            if let Some(file) = back.next().or_else(|| former.next()) {
                return Ok(OpenFile {
                    path: self.path.clone(),
                    failures: 0,
                    ..file
                });
            }
        }
        let mut file = OpenFile::open(&self.path)?;
        file.unsettle_end(file.size()?);
        if let Some((mark, doubtful)) = self.mark.take() {
            if mark.fits(&file.file) {
                file.settled = mark.offset;
                file.mark = Some(mark);
                file.doubtful = doubtful;
            } else if let Some(found) = mark.find_moved(&self.path, &self.others) {
                tracing::info!(
                    file = %found.path.display(),
                    "the log file was moved away while nobody wrote to it; \
                     lines that wait are looked for in it, too"
                );
                let mut found = OpenFile { doubtful, ..found };
                // As much of this file is doubted as of the file that is written to.
                found.doubt(found.settled.saturating_sub(LOOK_BACK)..found.settled);
                found.doubt(found.settled..found.size().unwrap_or(found.end));
                self.moved_unsettled.push(found);
            }
        }
        // A former worker of this process may have written lines of which the server has not
        // heard.
        file.unstored = file.settled.saturating_sub(LOOK_BACK);
        file.doubt(file.settled..file.end);
        // The file is locked, so nobody else writes events to it that are journalled later.
        self.doubted = *self.journalled.borrow();
        Ok(file)
    }

    /// Lets go of the current file if its path no longer leads to it.
    fn leave_if_moved(&mut self) -> Result<(), Error> {
        let Some(current) = &self.current else {
            return Ok(());
        };
        match fs::metadata(&self.path) {
            Ok(metadata) if file_id(&metadata) == current.id => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("look at", &self.path)(error));
            }
            _ => {}
        }
        let Some(mut current) = self.current.take() else {
            return Ok(());
        };
        // If even that fails, the file is searched as it is.
        let copy = current.leave_if_truncated(&self.others).ok().flatten();
        self.moved_unsettled.extend(copy);
        if current.size().is_ok_and(|size| size != current.settled) {
            self.moved_unsettled.push(current);
        } else {
            self.keep_doubtful([current]);
        }
        Ok(())
    }
}

impl Writer for LogFile {
    fn deliver(&mut self, events: &[Pending]) -> Progress {
        let mut lines = Lines::render(self.format, events);
        match self.write(events, &lines) {
            Ok(progress) => Progress {
                refused: lines.refused_among(progress.settled),
                ..progress
            },
            Err(error) => Progress::failed(error),
        }
    }

    fn note_past(&mut self, past: Past) {
        let lost = self.past.is_some_and(|before| before.losses != past.losses);
        let others = self
            .moved_unsettled
            .iter_mut()
            .chain(&mut self.moved_settled);
        for file in others.chain(&mut self.current) {
            if lost {
                file.doubt(file.unstored..file.settled);
            }
            if lost || past.acks_stored {
                file.unstored = file.settled;
            }
        }
        self.moved_settled.retain(OpenFile::is_in_doubt);
        self.past = Some(past);
    }

    fn reopen(&mut self) {
        if self.current.is_none() {
            return;
        }
        match self.follow_name() {
            Ok(current) => self.current = Some(current),
            Err(error) => tracing::warn!(
                error = chain(&error),
                "cannot reopen the log file; it is tried again with the next alert line"
            ),
        }
    }
}

fn warn_of_unsearched(error: &Error) {
    tracing::warn!(
        error = chain(error),
        "a log file that was moved away cannot be searched; \
         lines that are in it already may be written again"
    );
}

/// Opens the file to append to it, and creates it if it is missing. A new file gets the mode 0640,
/// whatever the umask is, because a log agent of the same group has to read it.
fn open_or_create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).mode(MODE);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    match options.create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match link_target(path) {
            Some(target) => open_or_create(&target),
            // Another process, such as logrotate, was quicker.
            None => options.create_new(false).open(path),
        },
        created => {
            let file = created?;
            file.set_permissions(fs::Permissions::from_mode(MODE))?;
            Ok(file)
        }
    }
}

// === impl OpenFile ===

impl OpenFile {
    fn open(path: &Path) -> Result<Self, Error> {
        let file = open_or_create(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Error::NoFolder(link_target(path).unwrap_or_else(|| path.to_owned()))
            }
            io::ErrorKind::IsADirectory => Error::NotAFile(path.to_owned()),
            _ => Error::io("open", path)(error),
        })?;
        let metadata = file.metadata().map_err(Error::io("look at", path))?;
        if !metadata.is_file() {
            return Err(Error::NotAFile(path.to_owned()));
        }
        lock(&file).map_err(|error| match error {
            TryLockError::WouldBlock => Error::Locked(path.to_owned()),
            TryLockError::Error(error) => Error::io("lock", path)(error),
        })?;
        sync_folder(path).map_err(Error::io("sync the folder of", path))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            id: file_id(&metadata),
            settled: 0,
            end: 0,
            unstored: 0,
            doubtful: Vec::new(),
            mark: None,
            failures: 0,
        })
    }

    /// Counts a failure. Returns whether to try again, rather than to go on without this file.
    fn is_worth_another_try(&mut self) -> bool {
        self.failures += 1;
        self.failures < MAX_FAILURES
    }

    /// Whether no folder holds the file any more.
    fn is_deleted(&self) -> bool {
        let metadata = self.file.metadata();
        metadata.is_ok_and(|metadata| metadata.nlink() == 0)
    }

    fn size(&self) -> Result<u64, Error> {
        let metadata = self.file.metadata();
        metadata
            .map(|metadata| metadata.size())
            .map_err(Error::io("look at", &self.path))
    }

    /// Treats up to `LOOK_BACK` bytes at the end as not settled.
    fn unsettle_end(&mut self, size: u64) {
        self.end = size;
        self.settled = size.saturating_sub(LOOK_BACK);
    }

    /// Begins anew in a file that was truncated. Returns the copy that was made before, if one is
    /// found: the copy may hold lines that were written and not settled.
    fn leave_if_truncated(&mut self, others: &[PathBuf]) -> Result<Option<Self>, Error> {
        let size = self.size()?;
        // A file that was truncated may have grown again, so other content may stand before
        // `settled`.
        let is_the_same = |mark: &Mark| size == self.settled || mark.fits(&self.file);
        if size >= self.end && self.mark.as_ref().is_none_or(is_the_same) {
            return Ok(None);
        }
        tracing::info!(file = %self.path.display(), "the log file was truncated");
        self.unsettle_end(size);
        let unstored = std::mem::replace(&mut self.unstored, self.settled);
        let doubtful = std::mem::take(&mut self.doubtful);
        let mark = self.mark.take();
        let copy = mark.and_then(|mark| mark.find_moved(&self.path, others));
        Ok(copy.map(|copy| Self {
            unstored,
            doubtful,
            ..copy
        }))
    }

    /// Whether lines that are given again may stand before `settled`.
    fn is_in_doubt(&self) -> bool {
        self.unstored < self.settled || !self.doubtful.is_empty()
    }

    /// Notes that `part` may hold lines that are given again.
    fn doubt(&mut self, part: Range<u64>) {
        if part.is_empty() {
            return;
        }
        let is_full = self.doubtful.len() >= MAX_DOUBTFUL;
        match self.doubtful.last_mut() {
            Some(last) if is_full || part.start <= last.end => {
                last.start = last.start.min(part.start);
                last.end = last.end.max(part.end);
            }
            _ => self.doubtful.push(part),
        }
    }

    /// Doubts what unfinished tries have left: some of it may not be among the lines that wait
    /// now.
    fn doubt_unsettled(&mut self) -> Result<(), Error> {
        self.doubt(self.settled..self.size()?);
        Ok(())
    }

    /// Finds lines that stand in `parts`, and makes sure that they are on the disk.
    fn find_in(&self, parts: &[Range<u64>], missing: &mut Missing<'_>) -> Result<(), Error> {
        let mut found_any = false;
        for part in parts {
            let scan = self.find_and_rewrite(part.clone(), missing)?;
            missing.remove_found(&scan);
            found_any |= !scan.found.is_empty();
        }
        if found_any { self.sync() } else { Ok(()) }
    }

    /// Finds lines that stand in the doubtful parts or behind `from`, and changes nothing.
    fn peek(&self, from: u64, missing: &mut Missing<'_>) -> Result<(), Error> {
        let end = from..u64::MAX;
        for part in self.doubtful.iter().chain(std::iter::once(&end)) {
            let scan = self.scan(part.clone(), missing)?;
            missing.remove_found(&scan);
        }
        Ok(())
    }

    /// Finds lines behind `settled`.
    fn find_unsettled<'a>(&self, missing: &Missing<'a>) -> Result<Scan<'a>, Error> {
        self.find_and_rewrite(self.settled..u64::MAX, missing)
    }

    fn scan<'a>(&self, part: Range<u64>, missing: &Missing<'a>) -> Result<Scan<'a>, Error> {
        scan(&self.file, part.start, part.end, missing).map_err(Error::io("read back", &self.path))
    }

    /// Finds lines in `part`, and writes each of them once more where it stands. After a sync that
    /// failed, the kernel takes pages for clean that are not on the disk, so the next sync is
    /// reliable only if these pages are written again.
    fn find_and_rewrite<'a>(
        &self,
        part: Range<u64>,
        missing: &Missing<'a>,
    ) -> Result<Scan<'a>, Error> {
        let scan = self.scan(part.clone(), missing)?;
        if scan.found.is_empty() {
            return Ok(scan);
        }
        match self.rewrite(&scan) {
            // The file is append-only (`chattr +a`), so its lines cannot be written once more.
            // Instead, what is on the disk is read back.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {
                self.sync()?;
                fadvise(&self.file, 0, None, Advice::DontNeed)
                    .map_err(io::Error::from)
                    .map_err(Error::io("read back", &self.path))?;
                self.scan(part, missing)
            }
            written => written
                .map(|()| scan)
                .map_err(Error::io("write to", &self.path)),
        }
    }

    /// Writes the missing lines. If not all can be written, as on a full disk, those that are
    /// whole are settled. So only a piece of a line stays unsettled, whatever happens to the file
    /// until there is room.
    fn settle(&mut self, missing: &mut Missing<'_>) -> Result<Progress, Error> {
        let scan = self.find_unsettled(missing)?;
        missing.remove_found(&scan);
        self.end = scan.end;
        let append = missing.append_after(&scan.torn);
        let (lines, end, error) = match self.append(&append) {
            Ok(()) => {
                self.end += append.len() as u64;
                (missing.len(), self.end, None)
            }
            Err(error) => {
                let scan = self.scan(self.settled..u64::MAX, missing)?;
                missing.remove_found(&scan);
                match missing.first_of_an_unbroken_rest() {
                    Some(lines @ 1..) => (lines, scan.whole, Some(error)),
                    _ => return Err(error),
                }
            }
        };
        self.sync()?;
        let mark = self.mark_at(end)?;
        self.mark = Some(mark);
        self.settled = end;
        Ok(Progress {
            settled: lines,
            mark: Some(mark.encode(&self.doubtful)),
            error: error.map(Into::into),
            ..Progress::default()
        })
    }

    /// Finds lines in a file that was moved away. If a line is torn there, `peek_everywhere` finds
    /// out whether the whole line stands elsewhere; if not, the line is completed here.
    /// `peek_everywhere` reads much, so it is called for a torn line only. The file stays as
    /// unsettled as it was, in case the next file cannot be written.
    fn settle_moved<'a>(
        &self,
        missing: &mut Missing<'a>,
        peek_everywhere: impl FnOnce(&mut Missing<'a>) -> Result<(), Error>,
    ) -> Result<(Scan<'a>, Mark), Error> {
        let scan = self.find_unsettled(missing)?;
        let mut after = missing.clone();
        after.remove_found(&scan);
        let mut settled = None;
        if after.completion(&scan.torn).is_some() {
            let mut nowhere = after.clone();
            // If `peek_everywhere` fails, or the disk is full, the line stays torn here, and the
            // whole line is written to the new file.
            if peek_everywhere(&mut nowhere).is_ok()
                && let Some((index, rest)) = nowhere.completion(&scan.torn)
            {
                settled = self.secure(&scan, rest).ok();
                if settled.is_some() {
                    after.remove(index);
                }
            }
        }
        let settled = match settled {
            Some(settled) => settled,
            None => self.secure(&scan, &[])?,
        };
        let mark = self.mark_at(settled)?;
        *missing = after;
        Ok((scan, mark))
    }

    /// Appends, and makes sure that the appended bytes and the found lines are on the disk.
    /// Returns where the file ends then.
    fn secure(&self, scan: &Scan<'_>, append: &[u8]) -> Result<u64, Error> {
        self.append(append)?;
        self.sync()?;
        Ok(scan.end + append.len() as u64)
    }

    fn append(&self, bytes: &[u8]) -> Result<(), Error> {
        (&self.file)
            .write_all(bytes)
            .map_err(Error::io("write to", &self.path))
    }

    fn sync(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(Error::io("sync", &self.path))
    }

    /// Writes the found lines once more where they stand.
    fn rewrite(&self, scan: &Scan<'_>) -> io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(&self.file)?;
        // With O_APPEND, Linux appends to the end, whatever the offset is.
        rustix::fs::fcntl_setfl(&self.file, flags - OFlags::APPEND)?;
        let mut written = scan.found.iter().try_for_each(|found| {
            self.check_that_it_reaches(scan.end)?;
            self.file.write_all_at(found.line, found.at)
        });
        written = written.and_then(|()| self.check_that_it_reaches(scan.end));
        rustix::fs::fcntl_setfl(&self.file, flags)?;
        written
    }

    /// Fails if the file was truncated since it was read: a write behind its end would leave a
    /// hole.
    fn check_that_it_reaches(&self, end: u64) -> io::Result<()> {
        if self.file.metadata()?.size() < end {
            return Err(io::Error::other("it has just been truncated"));
        }
        Ok(())
    }

    fn mark_at(&self, settled: u64) -> Result<Mark, Error> {
        Mark::of(&self.file, self.id, settled).map_err(Error::io("read back", &self.path))
    }
}

/// Locks a file. A file that was just closed can stay locked for a moment: by a process that was
/// forked meanwhile and has not yet become another program, or by a process that looks through
/// `/proc`.
fn lock(file: &File) -> Result<(), TryLockError> {
    for _ in 1..LOCK_TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            locked => return locked,
        }
    }
    file.try_lock()
}

/// Makes sure that the file's name is on the disk.
fn sync_folder(path: &Path) -> io::Result<()> {
    let synced = fs::canonicalize(path)
        .and_then(|path| File::open(folder(&path)))
        .and_then(|folder| folder.sync_all());
    match synced {
        // Not every folder may be read, and not every file system can sync one. Syncing the file
        // itself mostly suffices.
        Err(error)
            if matches!(
                Errno::from_io_error(&error),
                Some(Errno::ACCESS | Errno::INVAL | Errno::NOTSUP)
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

// === impl Error ===

impl Error {
    fn io<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io {
            what,
            path: path.to_owned(),
            source,
        }
    }
}

#[cfg(test)]
mod tests;
