//! The thread that owns the state file. It takes the commands in its queue as one group, does the
//! group's writes in one transaction, and answers them once the transaction is durable.
//!
//! Reads are answered at once. They come before the writes of their group, so that no sink ever
//! sees an event that a crash could still take back.

use std::{
    io,
    path::Path,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, Result, TransactionBehavior, ffi};
use tokio::{
    sync::{
        mpsc::{self, error::TryRecvError},
        oneshot, watch,
    },
    time::Instant,
};

use super::{
    Failed, Holds, alerts, failed,
    journal::Journal,
    open::{BUSY_TIMEOUT, Files, StateFile},
    page::Page,
};
use crate::{
    clock,
    identity::SearchKey,
    store::{Backlog, Batch, Commit, Error, Held, LOAD_PAGE, Loaded, PanicReport, SinkState},
};

/// Maximum number of commands in a group.
const GROUP: usize = 128;
/// A group takes in no more commands once it holds this many events.
const GROUP_EVENTS: usize = 16 * 1024;

/// Bytes of the pages that an alert, or anything else that is small, can touch: one page of its
/// table and one of an index.
const TOUCHED_BYTES: usize = 2 * 4096;

/// How long acknowledgements wait for a commit whose transaction they can share.
const LINGER: Duration = Duration::from_micros(500);

/// Maximum time between two looks at the state's files.
const FILE_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// What the thread is asked to do.
pub(super) enum Command {
    Write(Write),
    Acknowledge {
        sink: Box<str>,
        position: i64,
        mark: Option<Vec<u8>>,
        reply: oneshot::Sender<Answer<()>>,
    },
    /// Reads the file, and answers.
    Read(Box<dyn FnOnce(&mut Writer) + Send>),
    Close(oneshot::Sender<()>),
    /// Makes the thread panic, as a bug would.
    #[cfg(test)]
    Panic,
}

/// A request that changes the file.
#[derive(Debug)]
pub(super) enum Write {
    TakeUp(Job<(SearchKey, Timestamp), Loaded>),
    Release(Job<Held, ()>),
    Commit(Job<(Held, Commit, Timestamp), ()>),
    SetSinks(SinksJob),
    /// Makes room by giving up sinks that have left.
    GiveUpLeft,
}

type SinksJob = Job<Vec<String>, Vec<SinkState>>;
type Answer<A> = std::result::Result<A, Error>;
type Failure = Arc<dyn std::error::Error + Send + Sync>;

/// A write and its answer, which is held back until the transaction is durable.
#[derive(Debug)]
pub(super) struct Job<Q, A> {
    request: Q,
    answer: Answer<A>,
    reply: oneshot::Sender<Answer<A>>,
}

/// The commands that one transaction serves.
#[derive(Debug, Default)]
struct Group {
    writes: Vec<Write>,
    /// Callers that wait for the cursors to be stored.
    acknowledged: Vec<oneshot::Sender<Answer<()>>>,
    /// Commands taken in, reads included.
    commands: usize,
    events: usize,
    /// The caller that waits for the store to be closed.
    closing: Option<oneshot::Sender<()>>,
}

/// The connection that writes, and all that is known without a query.
#[derive(Debug)]
pub(super) struct Writer {
    file: StateFile,
    journal: Journal,
    holds: Holds,
    journalled: watch::Sender<i64>,
    /// Why the state is no longer ours. Once this is set, the state is not touched any more.
    lost: watch::Sender<Option<Error>>,
    /// Time between two looks at the state's files.
    check_interval: Duration,
    checked_at: Instant,
    /// Number of further transactions that fail as if there was no room.
    #[cfg(test)]
    faults: usize,
}

/// Wakes a thread that waits for a command.
struct Unpark(Thread);

// === impl Writer ===

impl Writer {
    pub(super) fn open(path: &Path, journal_limit: u64, holds: Holds) -> Answer<Self> {
        let (file, journal) =
            StateFile::open(path, |connection| Journal::load(connection, journal_limit))?;
        let (journalled, _) = watch::channel(journal.end());
        Ok(Self {
            file,
            journal,
            holds,
            journalled,
            lost: watch::Sender::new(None),
            check_interval: FILE_CHECK_INTERVAL,
            checked_at: Instant::now(),
            #[cfg(test)]
            faults: 0,
        })
    }

    pub(super) fn files(&self) -> &Files {
        self.file.files()
    }

    pub(super) fn journalled(&self) -> watch::Receiver<i64> {
        self.journalled.subscribe()
    }

    pub(super) fn lost(&self) -> watch::Receiver<Option<Error>> {
        self.lost.subscribe()
    }

    /// A guard that must be kept for as long as the writer runs.
    pub(super) fn panic_report(&self) -> PanicReport {
        PanicReport {
            part: "the thread of the state store",
            lost: self.lost.clone(),
        }
    }

    /// Serves commands until the queue is closed or [`Command::Close`] comes, then closes the
    /// file. If the state is lost, this ends at once, and callers are told that the store is
    /// closed.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Command>, page: &Page) {
        let mut closing = None;
        while let Some(first) = self.next(&mut queue) {
            let mut group = Group::default();
            self.take(first, &mut group);
            self.fill(&mut group, &mut queue);
            if group.only_acknowledges() {
                thread::sleep(LINGER);
                self.fill(&mut group, &mut queue);
            }
            if let Some(reply) = group.closing.take() {
                // Commands that were sent before this are still served; no more can be sent.
                queue.close();
                closing = Some(reply);
            }
            if !self.keep_lock() {
                break;
            }
            self.write(group);
        }
        if self.keep_lock() {
            // The last chance for acknowledgements that could not be stored so far. If it fails
            // too, their callers already know that they are not stored.
            self.transaction(&mut []).ok();
            page.close();
            self.file.close();
        } else {
            page.close();
            self.file.abandon();
        }
        if let Some(reply) = closing {
            reply.send(()).ok();
        }
    }

    /// Returns the next command. While there is none, it prunes the journal step by step, looks at
    /// the files, and gives up sinks whose time after they left is over.
    fn next(&mut self, queue: &mut mpsc::Receiver<Command>) -> Option<Command> {
        loop {
            while self.journal.has_delivered() && self.keep_lock() {
                match queue.try_recv() {
                    Ok(command) => return Some(command),
                    Err(TryRecvError::Disconnected) => return None,
                    Err(TryRecvError::Empty) => {
                        // A step that fails is tried again after the next command or look at the
                        // files.
                        if self.transaction(&mut []).is_err() {
                            break;
                        }
                    }
                }
            }
            if let Poll::Ready(command) = self.wait(queue) {
                return command;
            }
        }
    }

    /// Waits for a command until the next look at the files, and does that look. Returns pending if
    /// no command has come.
    fn wait(&mut self, queue: &mut mpsc::Receiver<Command>) -> Poll<Option<Command>> {
        if self.lost.borrow().is_some() {
            return Poll::Ready(None);
        }
        let rest = self
            .check_interval
            .saturating_sub(self.checked_at.elapsed());
        if !rest.is_zero() {
            return receive(queue, rest);
        }
        self.check_files();
        if self.keep_lock() && self.journal.has_expired_sink(clock::since_boot()) {
            // If this fails, it is tried again at the next look.
            self.transaction(&mut []).ok();
        }
        Poll::Pending
    }

    /// Checks whether the files still are where the next start looks for them.
    fn check_files(&mut self) {
        self.file.check_log();
        self.file.report_if_gone();
        self.checked_at = Instant::now();
    }

    /// Whether the state is still ours alone. Asked before each write, because another exporter's
    /// changes would be unknown here.
    fn keep_lock(&mut self) -> bool {
        if self.lost.borrow().is_none()
            && let Err(error) = self.file.keep_lock()
        {
            self.lost.send_replace(Some(error));
        }
        self.lost.borrow().is_none()
    }

    fn fill(&mut self, group: &mut Group, queue: &mut mpsc::Receiver<Command>) {
        while !group.is_full()
            && let Ok(command) = queue.try_recv()
        {
            self.take(command, group);
        }
    }

    fn take(&mut self, command: Command, group: &mut Group) {
        group.commands += 1;
        match command {
            Command::Write(write) => {
                if let Some(write) = self.answer_from_memory(write, group) {
                    group.events += write.events();
                    group.writes.push(write);
                }
            }
            Command::Acknowledge {
                sink,
                position,
                mark,
                reply,
            } => {
                if self.journal.acknowledge(&sink, position, mark) {
                    group.acknowledged.push(reply);
                } else {
                    reply.send(Err(Error::unknown(&sink))).ok();
                }
            }
            Command::Read(read) => read(self),
            Command::Close(reply) => group.closing = Some(reply),
            #[cfg(test)]
            Command::Panic => panic!("as a bug would"),
        }
    }

    /// Answers a write that leaves the file as it is, and returns any other. So a reload that adds
    /// no sink works while the file cannot be written, also if it removes searches.
    fn answer_from_memory(&mut self, write: Write, group: &Group) -> Option<Write> {
        match write {
            Write::SetSinks(job) => self.name_known_sinks(job, group).map(Write::SetSinks),
            // A commit that was sent before the release is still its holder's.
            Write::Release(job) if !group.commits_under(job.request) => {
                self.holds.give_back(job.request);
                job.reply.send(Ok(())).ok();
                None
            }
            write => Some(write),
        }
    }

    fn name_known_sinks(&mut self, job: SinksJob, group: &Group) -> Option<SinksJob> {
        let comes_first = |write: &Write| matches!(write, Write::SetSinks(_));
        if group.writes.iter().any(comes_first) {
            return Some(job);
        }
        let now = clock::since_boot();
        let Some(states) = self.journal.set_known_sinks(&job.request, now) else {
            return Some(job);
        };
        self.journal.log_notices();
        job.reply.send(Ok(states)).ok();
        None
    }

    /// Does a group in one transaction and answers it. If the transaction fails, each write is
    /// tried alone, so that one cannot spoil the others.
    fn write(&mut self, mut group: Group) {
        self.refuse_what_has_no_room(&mut group);
        if group.is_empty() {
            return;
        }
        match self.transaction(&mut group.writes) {
            Ok(()) => {
                self.tell_sinks();
                group.settle(None, &self.holds);
            }
            Err(error) if is_busy(&error) => group.settle(Some(error), &self.holds),
            Err(error) => {
                // A used-up quota is reported as `SystemIoFailure`, as are other faults, which may
                // be over at once.
                if let Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure) =
                    error.sqlite_error_code()
                {
                    self.file.save_room();
                }
                for mut alone in group.split() {
                    let failure = self.try_alone(&mut alone.writes).err();
                    self.tell_sinks();
                    alone.settle(failure, &self.holds);
                }
            }
        }
    }

    /// Tries a write again by itself after its group has failed. If there is no room for it, gives
    /// up sinks that have left.
    fn try_alone(&mut self, writes: &mut Vec<Write>) -> Result<()> {
        let is_of_no_room = |done: &Result<()>| done.as_ref().is_err_and(finds_no_room);
        let mut done = self.transaction(writes);
        if is_of_no_room(&done) && self.may_lack_room_of_left(writes) {
            // If the fault is over by now, no sink need be given up.
            done = self.transaction(writes);
            if is_of_no_room(&done) {
                // If there is no room even so, no sink is given up.
                writes.insert(0, Write::GiveUpLeft);
                done = self.transaction(writes);
            }
        }
        done
    }

    /// Wakes the sinks. Called before a commit is answered, so that its caller finds the sinks
    /// told.
    fn tell_sinks(&self) {
        let end = self.journal.end();
        self.journalled
            .send_if_modified(|told| std::mem::replace(told, end) != end);
    }

    /// Whether `writes` add something, and sinks that have left keep at least as many bytes for
    /// themselves alone. If they keep less, giving them up would hardly help.
    fn may_lack_room_of_left(&self, writes: &[Write]) -> bool {
        if !writes.iter().any(Write::adds) || !self.journal.is_held_by_left() {
            return false;
        }
        let wanted: u64 = writes.iter().map(Write::bytes).sum();
        let held = self.journal.bytes_held_by_left(self.file.reader());
        held.is_ok_and(|held| held >= wanted.max(TOUCHED_BYTES as u64))
    }

    /// Gives up the sinks that have left and keep events that all others have, if more of the
    /// group's writes then find room. Returns whether the sinks were given up.
    fn make_room_of_left(&mut self, group: &Group, wanted: u64, room: u64) -> bool {
        if !self.journal.is_held_by_left() {
            return false;
        }
        let held = self.journal.bytes_held_by_left(self.file.reader());
        let more = self.file.room_with(wanted, held.unwrap_or_default());
        group.fitting(more) > group.fitting(room)
            && self.transaction(&mut [Write::GiveUpLeft]).is_ok()
    }

    /// Answers the writes for which the disk has no room with an error.
    fn refuse_what_has_no_room(&mut self, group: &mut Group) {
        let wanted: u64 = group.writes.iter().map(Write::bytes).sum();
        let mut room = self.file.room_for(wanted);
        if wanted > room && self.make_room_of_left(group, wanted, room) {
            room = self.file.room_for(wanted);
        }
        if wanted <= room {
            return;
        }
        let refused = group
            .writes
            .extract_if(.., |write| !write.fits_into(&mut room));
        let failure: Failure = Arc::new(io::Error::new(
            io::ErrorKind::StorageFull,
            "the disk is nearly full; the rest is kept for what waits to be delivered",
        ));
        refused.for_each(|write| write.settle(Some(&failure), &self.holds));
    }

    /// Stores the cursors, does `writes` and a step of pruning, durably. If it fails, nothing was
    /// done.
    fn transaction(&mut self, writes: &mut [Write]) -> Result<()> {
        self.file.check_log();
        let before = self.journal.clone();
        let done = self.try_transaction(writes);
        match done {
            Ok(()) => {
                self.journal.log_notices();
                self.file.copy_long_log();
                self.check_files();
            }
            Err(_) => self.journal = before,
        }
        done
    }

    fn try_transaction(&mut self, writes: &mut [Write]) -> Result<()> {
        #[cfg(test)]
        if let Some(rest) = self.faults.checked_sub(1) {
            self.faults = rest;
            let error = ffi::Error::new(ffi::SQLITE_IOERR_WRITE);
            return Err(rusqlite::Error::SqliteFailure(error, None));
        }
        let now = clock::since_boot();
        let transaction = self
            .file
            .connection()
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.journal.store_cursors(&transaction)?;
        for write in writes {
            write.apply(&transaction, &mut self.journal, &self.holds, now)?;
        }
        // Given up only after the writes, which may name a sink again just in time.
        self.journal.give_up_expired(&transaction, now)?;
        self.journal.prune(&transaction)?;
        transaction.commit()
    }

    /// Stores the acknowledgements if some of the sink's could not be stored so far and more events
    /// wait for it. Otherwise more than one batch would come again after a crash.
    fn store_acknowledged(&mut self, sink: &str) -> Answer<()> {
        if !self.journal.lacks_cursor(sink) {
            return Ok(());
        }
        if !self.keep_lock() {
            return Err(Error::Closed);
        }
        // Where another program has locked the file, the acknowledgement has waited for it already.
        // The sink tries again, and what others ask need not wait meanwhile.
        self.file.connection().busy_timeout(Duration::ZERO).ok();
        let (reply, mut stored) = oneshot::channel();
        self.write(Group {
            acknowledged: vec![reply],
            ..Group::default()
        });
        self.file.connection().busy_timeout(BUSY_TIMEOUT).ok();
        stored.try_recv().unwrap_or(Err(Error::Closed))
    }

    /// The connection, for statements that do not change the file.
    pub(super) fn reader(&self) -> &Connection {
        self.file.reader()
    }

    pub(super) fn has_room(&self, events: u64) -> bool {
        self.journal.has_room(events)
    }

    pub(super) fn backlog(&self, sink: &str) -> Answer<Backlog> {
        let backlog = self.journal.backlog(self.reader(), sink);
        backlog.ok_or_else(|| Error::unknown(sink))
    }

    pub(super) fn pending(
        &mut self,
        sink: &str,
        max_events: usize,
        max_bytes: usize,
    ) -> Answer<Batch> {
        self.store_acknowledged(sink)?;
        let before = self.journal.place(sink);
        let batch = self
            .journal
            .pending(self.file.reader(), sink, max_events, max_bytes);
        if self.journal.place(sink) != before {
            // Fewer events wait than the sinks were told.
            self.journalled.send_modify(|_| {});
        }
        batch.map_err(failed)?.ok_or_else(|| Error::unknown(sink))
    }
}

// === impl Group ===

impl Group {
    fn is_full(&self) -> bool {
        self.commands >= GROUP || self.events >= GROUP_EVENTS || self.closing.is_some()
    }

    fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.acknowledged.is_empty()
    }

    /// How many of the writes fit into `room`.
    fn fitting(&self, mut room: u64) -> usize {
        let writes = self.writes.iter();
        writes.filter(|write| write.fits_into(&mut room)).count()
    }

    /// Whether the group has a commit under this right.
    fn commits_under(&self, held: Held) -> bool {
        let is_it = |write: &Write| matches!(write, Write::Commit(job) if job.request.0 == held);
        self.writes.iter().any(is_it)
    }

    fn only_acknowledges(&self) -> bool {
        self.writes.is_empty() && !self.acknowledged.is_empty() && self.closing.is_none()
    }

    /// The acknowledgements as one group, and each write as a group of its own. The
    /// acknowledgements come first because they make room.
    fn split(self) -> impl Iterator<Item = Self> {
        let acknowledged = Self {
            acknowledged: self.acknowledged,
            ..Self::default()
        };
        let writes = self.writes.into_iter().map(|write| Self {
            writes: vec![write],
            ..Self::default()
        });
        std::iter::once(acknowledged)
            .filter(|group| !group.is_empty())
            .chain(writes)
    }

    /// Answers all callers with their result, or with the failure of the transaction. Callers that
    /// no longer wait need no answer.
    fn settle(self, failure: Option<rusqlite::Error>, holds: &Holds) {
        let failure = failure.map(|error| -> Failure { Arc::new(Failed(error)) });
        for write in self.writes {
            write.settle(failure.as_ref(), holds);
        }
        for reply in self.acknowledged {
            let failure = failure.as_ref().map(Arc::clone);
            let answer = failure.map_or(Ok(()), |failure| Err(Error::Backend(failure)));
            reply.send(answer).ok();
        }
    }
}

// === impl Write ===

impl Write {
    fn events(&self) -> usize {
        match self {
            Self::Commit(job) => job.request.1.events.len(),
            _ => 0,
        }
    }

    /// Whether the file may have to grow for this write.
    fn adds(&self) -> bool {
        matches!(self, Self::TakeUp(_) | Self::Commit(_) | Self::SetSinks(_))
    }

    /// About how many bytes this write adds to the file and to its log.
    fn bytes(&self) -> u64 {
        let Self::Commit(job) = self else { return 0 };
        let (_, commit, _) = &job.request;
        let events = commit.events.iter();
        let events: usize = events.map(|event| 128 + event.body.len() * 3 / 2).sum();
        let alerts = commit.upserts.iter();
        let alerts: usize = alerts.map(|alert| TOUCHED_BYTES + alert.body.len()).sum();
        (events + alerts + TOUCHED_BYTES * commit.departures.len()) as u64
    }

    /// Whether the write fits into `room`. If so, its bytes are subtracted.
    fn fits_into(&self, room: &mut u64) -> bool {
        let rest = room.checked_sub(self.bytes());
        *room = rest.unwrap_or(*room);
        rest.is_some()
    }

    /// Does the write within a transaction. An error spoils the transaction. A refusal does not,
    /// because nothing has been written before it.
    fn apply(
        &mut self,
        connection: &Connection,
        journal: &mut Journal,
        holds: &Holds,
        now_since_boot: Duration,
    ) -> Result<()> {
        match self {
            Self::TakeUp(job) => {
                let (key, now) = &job.request;
                let search = alerts::search(connection, key, *now)?;
                let loaded = Loaded {
                    has_departed: alerts::has_departed(connection, search.row)?,
                    alerts: alerts::load(connection, search.row, "", LOAD_PAGE)?,
                    held: holds.take(search.row),
                    primed: search.primed,
                    first_seen: search.first_seen,
                };
                job.answer = Ok(loaded);
            }
            // Commits that come later in the group no longer have the right.
            Self::Release(job) => holds.give_back(job.request),
            Self::Commit(job) => {
                let (held, commit, now) = &job.request;
                job.answer = if !holds.is_held(*held) {
                    Err(Error::LeaseLost)
                } else if !commit.events.is_empty()
                    && !journal.make_room(connection, commit.events.len() as u64)?
                {
                    Err(Error::JournalFull {
                        limit: journal.limit(),
                        sink: journal.fullest_sink(),
                    })
                } else {
                    alerts::write(connection, held.row, commit, *now)?;
                    journal.append(connection, &commit.events)?;
                    Ok(())
                };
            }
            Self::SetSinks(job) => {
                job.answer = Ok(journal.set_sinks(connection, &job.request, now_since_boot)?);
            }
            Self::GiveUpLeft => {
                journal.give_up_left(connection)?;
                // Later writes of the transaction can use the room.
                journal.prune(connection)?;
            }
        }
        Ok(())
    }

    /// Answers the write. No file says which searches are held. So if the transaction has failed,
    /// a search that was to be released is released all the same, and one that was to be taken up
    /// is not held.
    fn settle(self, failure: Option<&Failure>, holds: &Holds) {
        match self {
            Self::TakeUp(job) => {
                let held = job.answer.as_ref().ok().map(|loaded| loaded.held);
                if !job.settle(failure)
                    && let Some(held) = held
                {
                    holds.give_back(held);
                }
            }
            Self::Release(job) => {
                holds.give_back(job.request);
                job.reply.send(Ok(())).ok();
            }
            Self::Commit(job) => {
                job.settle(failure);
            }
            Self::SetSinks(job) => {
                job.settle(failure);
            }
            Self::GiveUpLeft => {}
        }
    }
}

// === impl Job ===

impl<Q, A> Job<Q, A> {
    pub(super) fn new(request: Q, reply: oneshot::Sender<Answer<A>>) -> Self {
        Self {
            request,
            answer: Err(Error::Closed),
            reply,
        }
    }

    /// Returns whether the caller was told of a success.
    fn settle(self, failure: Option<&Failure>) -> bool {
        let answer = match failure {
            None => self.answer,
            Some(failure) => Err(Error::Backend(Arc::clone(failure))),
        };
        let is_done = answer.is_ok();
        self.reply.send(answer).is_ok() && is_done
    }
}

// === impl Unpark ===

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a command, for `limit` at most. The queue's own blocking wait has no time limit.
fn receive(queue: &mut mpsc::Receiver<Command>, limit: Duration) -> Poll<Option<Command>> {
    let until = Instant::now() + limit;
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        let received = queue.poll_recv(&mut context);
        let rest = until.saturating_duration_since(Instant::now());
        if received.is_ready() || rest.is_zero() {
            return received;
        }
        thread::park_timeout(rest);
    }
}

/// Whether the disk has no room, as against a fault that may be over in a moment. A used-up quota
/// is reported as one of the latter two codes.
fn finds_no_room(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error();
    code.is_some_and(|error| {
        error.code == ErrorCode::DiskFull
            || [ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_IOERR_SHMSIZE].contains(&error.extended_code)
    })
}

/// Whether another program holds a lock and the wait for it has timed out. Other writes shall not
/// wait for the same lock once more.
fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}

#[cfg(test)]
mod tests;
