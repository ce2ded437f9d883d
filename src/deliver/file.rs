//! A file that every line reaches exactly once, whatever crashes.
//!
//! The sink remembers up to where the file's content is known to be safe on the disk and
//! acknowledged: `settled`, kept in the store as a [`Mark`]. Whatever stands behind it was written
//! by a try that did not come to its end: because the process was killed, the disk was full or its
//! cache could not be written back. So before anything is appended, what stands there is compared
//! with the lines that wait: whole ones are not written again, a torn one is completed. In the
//! ordinary case nothing stands there and nothing is read. One rule for every fault, in a running
//! process and after a start.
//!
//! What stands behind it when a file is opened need not be of the lines that come first: a sink that had
//! another name for a while wrote later ones there. So that part is searched until all is delivered that
//! was journalled by then.
//!
//! Where replicas share the searches, what waits may stand before that as well: searches come one by
//! one after a start, and one that was lost may come back much later. So the sink remembers which
//! parts of its files are doubtful: what a try has left that did not come to its end, and what was
//! written of which the server had not heard when a search was lost. Events that another holder may
//! have delivered are looked for there, and at the file's end, however much was written since.
//!
//! Lines are compared as a whole, never by a part of their content, so that no alert's text can
//! pass for another alert's line. logrotate may move the file away (lines that are not settled are
//! then looked for where it went); with `copytruncate`, which copies it first, they are looked for in
//! the copy, and what is written between copy and truncation is lost, which no writer can help.

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

/// Readable for the group, for nobody else.
const MODE: u32 = 0o640;

/// How much of a file's end is searched for waiting lines where no mark says where to begin, and
/// where replicas share the searches: for what a process has left that was not the last one, of
/// which nothing is remembered. Where nobody else ever holds a search, all that is not acknowledged
/// stands there.
const LOOK_BACK: u64 = 16 << 20;

/// Doubtful parts of one file that are remembered apart; those beyond become one with the last.
const MAX_DOUBTFUL: usize = 64;

/// Files that were moved away with doubtful parts and are kept, at most.
const MAX_FORMER: usize = 16;

/// How often it is tried to lock a file that somebody else has locked, with a pause after each try.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// How often a file that was moved away is tried to be settled: some five minutes, at the pace of
/// the worker. Until then it holds up the lines that follow, since some of them may be in it.
const MAX_FAILURES: u32 = 64;

/// A file as a sink.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    format: Format,
    /// Files that other sinks write to.
    others: Vec<PathBuf>,
    /// Where a former process left off, and what it left in doubt, until the file is open.
    mark: Option<(Mark, Vec<Range<u64>>)>,
    current: Option<Tail>,
    /// The last position in the journal.
    journalled: watch::Receiver<i64>,
    /// Events up to this position may stand in what is doubtful, whoever holds their searches.
    doubted: i64,
    /// What was last heard of the past, where replicas share the searches.
    past: Option<Past>,
    /// Files that were moved away before everything in them was settled.
    moved: Vec<Tail>,
    /// Files that were moved away, are settled, and have doubtful parts. They are closed when they
    /// are deleted.
    former: Vec<Tail>,
}

/// The end of an open file.
#[derive(Debug)]
struct Tail {
    file: File,
    path: PathBuf,
    id: FileId,
    /// Up to here everything is acknowledged and safe on the disk.
    settled: u64,
    /// It was written up to here at least, be it safe or not.
    end: u64,
    /// Whether `settled` may stand in the middle of a line.
    inside_line: bool,
    /// From here on to what is settled, the server may not have heard of it yet.
    unstored: u64,
    /// Parts in which lines may stand that the journal gives again: what a try left unfinished, and what the
    /// server had not heard of when a search was lost.
    doubtful: Vec<Range<u64>>,
    /// What the store knows the file by, so that it is found again wherever it is moved; `None`
    /// where it does not know it yet.
    mark: Option<Mark>,
    /// Since it was moved away.
    failures: u32,
}

/// How far lines are safe.
#[derive(Debug)]
struct Settled {
    /// So many of them, from the first on.
    lines: usize,
    /// Where the file is settled, for the store.
    mark: Vec<u8>,
    /// Why no more of them could be written.
    error: Option<Error>,
}

/// The file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file's folder does not exist.
    #[error("cannot create {}: its folder does not exist", .0.display())]
    NoFolder(PathBuf),
    /// Something else has the file's name.
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
    /// The file is opened, and created where it is missing, with the first delivery.
    pub(super) fn new(path: PathBuf, format: Format) -> Self {
        Self {
            path,
            format,
            others: Vec::new(),
            mark: None,
            current: None,
            // As long as that is not told, whatever comes may have been written.
            journalled: watch::channel(i64::MAX).1,
            doubted: 0,
            past: None,
            moved: Vec::new(),
            former: Vec::new(),
        }
    }

    /// Tells it which files other sinks write to.
    pub(super) fn beside(mut self, others: Vec<PathBuf>) -> Self {
        self.others = others;
        self
    }

    /// Tells it how far the journal goes.
    pub(super) fn reading(mut self, journalled: watch::Receiver<i64>) -> Self {
        self.journalled = journalled;
        self
    }

    /// Goes on where a former process left off with `mark`.
    pub(super) fn after(mut self, mark: Option<&[u8]>) -> Self {
        self.mark = mark.and_then(Mark::decode);
        self
    }

    /// Sees to it that lines are in a file once. Without an error they are all there, except for a
    /// file that the store does not know yet: nothing is written to it before it does. The first of
    /// them is of the event at the position `first`.
    fn write(&mut self, first: i64, lines: &Lines) -> Result<Settled, Error> {
        let mut current = self.follow_name()?;
        if self.past.is_none() && first > self.doubted {
            // What comes now was journalled after the files were opened.
            self.former.clear();
            for tail in self.moved.iter_mut().chain([&mut current]) {
                tail.doubtful.clear();
            }
        }
        let written = self.write_to(&mut current, first, lines);
        self.current = Some(current);
        written
    }

    fn write_to(
        &mut self,
        current: &mut Tail,
        first: i64,
        lines: &Lines,
    ) -> Result<Settled, Error> {
        let mut missing = Missing::new(lines);
        self.moved.extend(current.leave_if_truncated(&self.others)?);
        if self.past.is_some() {
            for tail in self.moved.iter_mut().chain([&mut *current]) {
                tail.doubt_unsettled()?;
            }
        }
        let is_inherited = self.past.is_some_and(|past| past.is_inherited);
        let is_doubted = is_inherited || first <= self.doubted;
        let found = self.search_moved(current, is_inherited, is_doubted, &mut missing)?;
        if let Some(settled) = found {
            return Ok(settled);
        }
        let searched = self.moved.len();
        if is_doubted {
            self.find_in_others(&mut missing)?;
        }
        if current.mark.is_none()
            && let Some(lines) = missing.first_of_an_unbroken_rest()
        {
            let mark = current.mark_at(current.settled)?;
            current.mark = Some(mark);
            self.retire(searched);
            return Ok(Settled {
                lines,
                mark: mark.encode(&current.doubtful),
                error: None,
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

    /// Looks for lines in what is not settled of the files that were moved away, one after the other. `Some`: all
    /// were found, and it is settled up to the last of them.
    fn search_moved(
        &mut self,
        current: &Tail,
        is_inherited: bool,
        is_doubted: bool,
        missing: &mut Missing<'_>,
    ) -> Result<Option<Settled>, Error> {
        for searched in 0..self.moved.len() {
            let look = |missing: &mut Missing<'_>| match is_doubted {
                true => self.look_everywhere(current, is_inherited, missing),
                false => Ok(()),
            };
            let settled = self.moved[searched].settle_moved(missing, look);
            let moved = &mut self.moved[searched];
            match settled {
                Ok((scan, mark)) if !scan.at_end => {
                    // What follows belongs to later lines.
                    moved.settle_at(scan.end);
                    let mark = mark.encode(&moved.doubtful);
                    self.retire(searched);
                    return Ok(Some(Settled {
                        lines: missing.len(),
                        mark,
                        error: None,
                    }));
                }
                Ok(_) => {}
                Err(error) if moved.is_worth_another_try() => return Err(error),
                // It must not hold up for ever what comes after it.
                Err(error) => warn_of_unsearched(&error),
            }
        }
        Ok(None)
    }

    /// Looks for lines wherever they may stand, and leaves them as they are: a piece of one in a file that was
    /// moved away must not be completed if another sink has written the whole line elsewhere.
    fn look_everywhere(
        &self,
        current: &Tail,
        is_inherited: bool,
        missing: &mut Missing<'_>,
    ) -> Result<(), Error> {
        let look_back = if is_inherited { LOOK_BACK } else { 0 };
        current.look(current.settled.saturating_sub(look_back), missing)?;
        for tail in self.former.iter().chain(&self.moved) {
            // Whoever searches it next counts the failure.
            tail.look(tail.settled, missing).ok();
        }
        Ok(())
    }

    /// Looks for lines in the doubtful parts of files that were moved away.
    fn find_in_others(&mut self, missing: &mut Missing<'_>) -> Result<(), Error> {
        for tail in self.former.iter_mut().chain(&mut self.moved) {
            match tail.find_in(&tail.doubtful, missing) {
                Ok(()) => {}
                Err(error) if tail.is_worth_another_try() => return Err(error),
                Err(error) => {
                    warn_of_unsearched(&error);
                    tail.doubtful.clear();
                }
            }
        }
        Ok(())
    }

    /// Lets go of so many files that were moved away and are settled by now.
    fn retire(&mut self, count: usize) {
        let settled: Vec<_> = self.moved.drain(..count).collect();
        self.keep_doubtful(settled);
    }

    fn keep_doubtful(&mut self, settled: impl IntoIterator<Item = Tail>) {
        let is_shared = self.past.is_some();
        let doubtful = settled.into_iter().filter(|tail| {
            // Otherwise the store has heard of all that is settled.
            !tail.doubtful.is_empty() || is_shared && tail.is_in_doubt()
        });
        self.former.extend(doubtful);
        let excess = self.former.len().saturating_sub(MAX_FORMER);
        self.former.drain(..excess);
    }

    /// Takes the file that has the name now.
    fn follow_name(&mut self) -> Result<Tail, Error> {
        self.leave_if_moved()?;
        // With a file that was deleted, or compressed, its lines are gone: what would complete a
        // torn one there, nobody would ever read.
        self.moved.retain(|moved| !moved.is_deleted());
        self.former.retain(|former| !former.is_deleted());
        match self.current.take() {
            Some(current) => Ok(current),
            None => self.begin(),
        }
    }

    /// Opens the file and finds out up to where it is settled.
    fn begin(&mut self) -> Result<Tail, Error> {
        if let Ok(metadata) = fs::metadata(&self.path) {
            let id = file_id(&metadata);
            let mut back = self.moved.extract_if(.., |it| it.id == id);
            let mut former = self.former.extract_if(.., |it| it.id == id);
            // It was moved back, and is still locked.
            if let Some(tail) = back.next().or_else(|| former.next()) {
                return Ok(Tail {
                    path: self.path.clone(),
                    failures: 0,
                    ..tail
                });
            }
        }
        let mut tail = Tail::open(&self.path)?;
        tail.look_back(tail.size()?);
        if let Some((mark, doubtful)) = self.mark.take() {
            if mark.fits(&tail.file) {
                tail.settled = mark.offset;
                tail.inside_line = false;
                tail.mark = Some(mark);
                tail.doubtful = doubtful;
            } else if let Some(found) = mark.find_moved(&self.path, &self.others) {
                tracing::info!(
                    file = %found.path.display(),
                    "the log file was moved away while nobody wrote to it; \
                     lines that wait are looked for in it, too"
                );
                let mut found = Tail { doubtful, ..found };
                // As much as of the file that is written to.
                found.doubt(found.settled.saturating_sub(LOOK_BACK)..found.settled);
                found.doubt(found.settled..found.size().unwrap_or(found.end));
                self.moved.push(found);
            }
        }
        // A former worker of this process may have written what the server has not heard of.
        tail.unstored = tail.settled.saturating_sub(LOOK_BACK);
        tail.doubt(tail.settled..tail.end);
        // It is locked: nobody writes there any more what is journalled later.
        self.doubted = self.doubted.max(*self.journalled.borrow());
        Ok(tail)
    }

    /// Closes the file where its name is no longer its own.
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
        // Where even that fails, the file is searched as it is.
        let copy = current.leave_if_truncated(&self.others).ok().flatten();
        self.moved.extend(copy);
        if current.size().is_ok_and(|size| size != current.settled) {
            self.moved.push(current);
        } else {
            self.keep_doubtful([current]);
        }
        Ok(())
    }
}

impl Writer for LogFile {
    fn deliver(&mut self, events: &[Pending]) -> Progress {
        let first = events.first().map_or(i64::MAX, |first| first.position);
        let mut lines = Lines::render(self.format, events);
        match self.write(first, &lines) {
            Ok(settled) => Progress {
                settled: settled.lines,
                refused: lines.refused_among(settled.lines),
                mark: Some(settled.mark),
                error: settled.error.map(Into::into),
                ..Progress::default()
            },
            Err(error) => Progress::failed(error),
        }
    }

    fn hear(&mut self, past: Past) {
        let lost = self.past.is_some_and(|before| before.losses != past.losses);
        let others = self.moved.iter_mut().chain(&mut self.former);
        for tail in others.chain(&mut self.current) {
            if lost {
                tail.doubt(tail.unstored..tail.settled);
            }
            if lost || past.is_stored {
                tail.unstored = tail.settled;
            }
        }
        self.former.retain(Tail::is_in_doubt);
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

/// Opens the file to append to it. One that is created gets the mode 0640, whatever the umask: a
/// log agent of the same group shall read it.
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
            // Somebody else, logrotate for one, was quicker.
            None => options.create_new(false).open(path),
        },
        created => {
            let file = created?;
            file.set_permissions(fs::Permissions::from_mode(MODE))?;
            Ok(file)
        }
    }
}

// === impl Tail ===

impl Tail {
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
            inside_line: false,
            unstored: 0,
            doubtful: Vec::new(),
            mark: None,
            failures: 0,
        })
    }

    /// Counts a failure, and says whether to try again rather than to go on without.
    fn is_worth_another_try(&mut self) -> bool {
        self.failures += 1;
        self.failures < MAX_FAILURES
    }

    /// Whether it is in no folder any more.
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

    /// Trusts nothing that stands near the end.
    fn look_back(&mut self, size: u64) {
        self.end = size;
        self.settled = size.saturating_sub(LOOK_BACK);
        self.inside_line = self.settled > 0;
    }

    /// Begins anew in a file that was truncated. Returns the copy that was made before, if it is
    /// there: it may hold what was written and not settled.
    fn leave_if_truncated(&mut self, others: &[PathBuf]) -> Result<Option<Self>, Error> {
        let size = self.size()?;
        // What stands at `settled` may be something else by now, behind a truncation.
        let is_the_same = |mark: &Mark| size == self.settled || mark.fits(&self.file);
        if size >= self.end && self.mark.as_ref().is_none_or(is_the_same) {
            return Ok(None);
        }
        tracing::info!(file = %self.path.display(), "the log file was truncated");
        self.look_back(size);
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

    /// Whether lines that are given again may stand in what is settled.
    fn is_in_doubt(&self) -> bool {
        self.unstored < self.settled || !self.doubtful.is_empty()
    }

    /// Takes note that lines that stand there may be given again.
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

    /// Doubts what tries have left that did not come to their end: not all of it need be among what
    /// waits now.
    fn doubt_unsettled(&mut self) -> Result<(), Error> {
        self.doubt(self.settled..self.size()?);
        Ok(())
    }

    /// Finds lines that stand there, and makes sure that they are on the disk.
    fn find_in(&self, parts: &[Range<u64>], missing: &mut Missing<'_>) -> Result<(), Error> {
        let mut found_any = false;
        for part in parts {
            let inside_line = self.is_inside_line(part.start)?;
            let scan = self.find(part.clone(), inside_line, missing)?;
            missing.found(&scan);
            found_any |= !scan.found.is_empty();
        }
        if found_any { self.sync() } else { Ok(()) }
    }

    /// Finds lines that stand in doubtful parts and from there on, and leaves them as they are.
    fn look(&self, from: u64, missing: &mut Missing<'_>) -> Result<(), Error> {
        let end = from..u64::MAX;
        for part in self.doubtful.iter().chain(std::iter::once(&end)) {
            let inside_line = self.is_inside_line(part.start)?;
            let scan = self.scan(part.clone(), inside_line, missing)?;
            missing.found(&scan);
        }
        Ok(())
    }

    fn is_inside_line(&self, at: u64) -> Result<bool, Error> {
        let Some(before) = at.checked_sub(1) else {
            return Ok(false);
        };
        let mut byte = *b"\n";
        self.file
            .read_at(&mut byte, before)
            .map_err(Error::io("read back", &self.path))?;
        Ok(byte != *b"\n")
    }

    /// What stands behind what is settled.
    fn find_unsettled(&self, missing: &Missing<'_>) -> Result<Scan, Error> {
        self.find(self.settled..u64::MAX, self.inside_line, missing)
    }

    fn scan(
        &self,
        part: Range<u64>,
        inside_line: bool,
        missing: &Missing<'_>,
    ) -> Result<Scan, Error> {
        scan(&self.file, part.start, part.end, inside_line, missing)
            .map_err(Error::io("read back", &self.path))
    }

    /// What stands there. The lines among it are written once more where they stand: after a sync
    /// that failed the kernel takes pages for clean that are not on the disk, and only so does the
    /// next sync mean something.
    fn find(
        &self,
        part: Range<u64>,
        inside_line: bool,
        missing: &Missing<'_>,
    ) -> Result<Scan, Error> {
        let scan = self.scan(part.clone(), inside_line, missing)?;
        if scan.found.is_empty() {
            return Ok(scan);
        }
        match self.rewrite(&scan, missing) {
            // The file may only be appended to (`chattr +a`). What is on the disk is read back.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {
                self.sync()?;
                fadvise(&self.file, 0, None, Advice::DontNeed)
                    .map_err(io::Error::from)
                    .map_err(Error::io("read back", &self.path))?;
                self.scan(part, inside_line, missing)
            }
            written => written
                .map(|()| scan)
                .map_err(Error::io("write to", &self.path)),
        }
    }

    /// Writes the lines that are missing. Where not all can be written, as on a full disk, those
    /// that are whole are settled: nothing but a piece of a line is left open, whatever happens to
    /// the file until there is room.
    fn settle(&mut self, missing: &mut Missing<'_>) -> Result<Settled, Error> {
        let scan = self.find_unsettled(missing)?;
        missing.found(&scan);
        self.end = scan.end;
        let append = missing.append_after(&scan.torn);
        let (lines, settled, error) = match self.append(&append) {
            Ok(()) => {
                self.end += append.len() as u64;
                (missing.len(), self.end, None)
            }
            Err(error) => {
                let scan = self.scan(self.settled..u64::MAX, self.inside_line, missing)?;
                missing.found(&scan);
                match missing.first_of_an_unbroken_rest() {
                    Some(lines @ 1..) => (lines, scan.whole, Some(error)),
                    _ => return Err(error),
                }
            }
        };
        self.sync()?;
        let mark = self.mark_at(settled)?;
        self.mark = Some(mark);
        self.settle_at(settled);
        Ok(Settled {
            lines,
            mark: mark.encode(&self.doubtful),
            error,
        })
    }

    /// Takes note that it is settled up to there: behind a whole line, unless that is where it was.
    fn settle_at(&mut self, settled: u64) {
        self.inside_line &= settled == self.settled;
        self.settled = settled;
    }

    /// Finds lines in a file that was moved away, and completes one that is torn there and stands nowhere else as
    /// a whole: `look_everywhere` finds those that do, and reads much. The file stays as unsettled as it was, in
    /// case the next one cannot be written.
    fn settle_moved(
        &self,
        missing: &mut Missing<'_>,
        look_everywhere: impl FnOnce(&mut Missing<'_>) -> Result<(), Error>,
    ) -> Result<(Scan, Mark), Error> {
        let scan = self.find_unsettled(missing)?;
        let mut after = missing.clone();
        after.found(&scan);
        let mut settled = None;
        if after.completion(&scan.torn).is_some() {
            let mut nowhere = after.clone();
            // Where one cannot look, and on a full disk, the line stays torn, and is written to the new file as
            // a whole.
            if look_everywhere(&mut nowhere).is_ok()
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

    /// Appends, and makes sure that this and what was found are on the disk. Returns where the file
    /// ends then.
    fn secure(&self, scan: &Scan, append: &[u8]) -> Result<u64, Error> {
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

    /// Writes the lines that were found where they stand.
    fn rewrite(&self, scan: &Scan, missing: &Missing<'_>) -> io::Result<()> {
        let flags = rustix::fs::fcntl_getfl(&self.file)?;
        // With O_APPEND, Linux appends whatever the offset.
        rustix::fs::fcntl_setfl(&self.file, flags - OFlags::APPEND)?;
        let mut written = scan.found.iter().try_for_each(|&(index, at)| {
            self.check_that_it_reaches(scan.end)?;
            self.file.write_all_at(missing.line(index), at)
        });
        written = written.and_then(|()| self.check_that_it_reaches(scan.end));
        rustix::fs::fcntl_setfl(&self.file, flags)?;
        written
    }

    /// Where the file was truncated since it was read, what is written behind its end would leave a hole before it.
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

/// Locks a file. One that was just closed can be locked for a moment still: by a process that was
/// forked meanwhile and is about to become another program, and by whoever looks through `/proc`.
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
        // Not every folder may be read, and not every file system can do it; syncing the file
        // itself mostly does.
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
