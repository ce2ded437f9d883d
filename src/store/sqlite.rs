//! The embedded store: one SQLite file.
//!
//! One thread owns the connection that writes; callers send it a command and await the answer. The
//! thread takes all commands in its queue into one transaction, so that many callers share one
//! fsync (group commit), and answers after it. The page of open alerts has a read-only connection
//! of its own. Neither that page nor copying the write-ahead log into the file ever delays a
//! commit.
//!
//! While the store is open it holds a lock on a file beside the state file (`….lock`). The lock
//! keeps a second exporter away but lets an operator read with `sqlite3` at any time.

use std::{collections::HashMap, fmt, path::Path, sync::Arc, thread};

use jiff::Timestamp;
use parking_lot::RwLock;
use rusqlite::types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    AlertFilter, Backlog, Batch, Commit, Error, Held, LOAD_PAGE, Loaded, OpenAlert, SinkState,
    StoredAlert,
};
use crate::identity::SearchKey;

mod alerts;
mod checkpoint;
mod inspect;
mod journal;
mod open;
mod page;
mod room;
mod writer;

pub use inspect::{Inspection, inspect};
use open::describe;
pub(crate) use open::with_suffix;
use page::Page;
pub(crate) use room::Disk;
use writer::{Command, Job, Write, Writer};

/// Commands that the queue holds before callers must wait to send.
const QUEUE: usize = 256;

/// The embedded store, open. Cheap to clone; closed with its last clone, at the latest.
#[derive(Clone, Debug)]
pub struct Sqlite {
    commands: mpsc::Sender<Command>,
    journalled: watch::Receiver<i64>,
    /// Why the state is no longer ours, or why nothing looks after it any more.
    lost: watch::Receiver<Option<Error>>,
    page: Page,
}

/// Which searches are held, and the current epoch of each. The lock on the state file makes this
/// process the only holder, so epochs need not outlive the process.
#[derive(Clone, Debug, Default)]
struct Holds(Arc<RwLock<HashMap<i64, Hold>>>);

#[derive(Clone, Copy, Debug, Default)]
struct Hold {
    epoch: i64,
    held: bool,
}

/// A time as it is stored: microseconds since 1970, as PostgreSQL has them.
#[derive(Clone, Copy)]
struct Micros(Timestamp);

/// Reading or writing failed; the message says what to do.
#[derive(Debug)]
struct Failed(rusqlite::Error);

// === impl Failed ===

impl std::error::Error for Failed {}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&describe(&self.0))
    }
}

fn failed(error: rusqlite::Error) -> Error {
    Error::backend(Failed(error))
}

// === impl Sqlite ===

impl Sqlite {
    /// Opens the state file, creates or migrates its tables.
    pub(super) async fn open(path: &Path, journal_limit: u64) -> Result<Self, Error> {
        let (commands, queue) = mpsc::channel(QUEUE);
        let (opened, answer) = oneshot::channel();
        let path = path.to_owned();
        let thread_path = path.clone();
        thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || {
                let holds = Holds::default();
                match Writer::open(&thread_path, journal_limit, holds.clone()) {
                    Ok(writer) => {
                        let _panics = writer.panic_report();
                        let page = Page::new(writer.files().clone(), holds);
                        let journalled = writer.journalled();
                        let lost = writer.lost();
                        // A caller that gave up waiting has dropped the queue's sender as well:
                        // the thread then ends by itself.
                        opened.send(Ok((page.clone(), journalled, lost))).ok();
                        writer.run(queue, &page);
                    }
                    Err(error) => {
                        opened.send(Err(error)).ok();
                    }
                }
            })
            .map_err(|error| Error::Open {
                path,
                problem: format!("no thread can be started for it: {error}"),
            })?;
        let (page, journalled, lost) = answer.await.map_err(|_| Error::Closed)??;
        Ok(Self {
            commands,
            journalled,
            lost,
            page,
        })
    }

    /// The same store, but each call takes longer by `by`. `look` is called after that delay,
    /// right before the command is passed on.
    #[cfg(test)]
    pub(crate) fn slowed(&self, by: std::time::Duration, look: impl Fn() + Send + 'static) -> Self {
        let (commands, mut queue) = mpsc::channel(QUEUE);
        let thread = self.commands.clone();
        tokio::spawn(async move {
            while let Some(command) = queue.recv().await {
                tokio::time::sleep(by).await;
                look();
                thread.send(command).await.ok();
            }
        });
        Self {
            commands,
            ..self.clone()
        }
    }

    pub(super) async fn take_up(&self, key: &SearchKey, now: Timestamp) -> Result<Loaded, Error> {
        let key = key.clone();
        self.write((key, now), Write::TakeUp).await
    }

    pub(super) async fn release(&self, held: Held) -> Result<(), Error> {
        self.write(held, Write::Release).await
    }

    pub(super) async fn departed(
        &self,
        held: Held,
        ids: Vec<Box<str>>,
    ) -> Result<Vec<(Box<str>, u32)>, Error> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.read(move |writer| alerts::departed(writer.reader(), held.row, ids).map_err(failed))
            .await
    }

    pub(super) async fn load(
        &self,
        held: Held,
        after: Box<str>,
    ) -> Result<Vec<StoredAlert>, Error> {
        self.read(move |writer| {
            alerts::load(writer.reader(), held.row, &after, LOAD_PAGE).map_err(failed)
        })
        .await
    }

    pub(super) async fn stored(
        &self,
        held: Held,
        ids: Vec<Box<str>>,
    ) -> Result<Vec<StoredAlert>, Error> {
        self.read(move |writer| alerts::stored(writer.reader(), held.row, &ids).map_err(failed))
            .await
    }

    pub(super) async fn commit(
        &self,
        held: Held,
        commit: Commit,
        now: Timestamp,
    ) -> Result<(), Error> {
        self.write((held, commit, now), Write::Commit).await
    }

    pub(super) async fn has_room(&self, events: u64) -> Result<bool, Error> {
        self.read(move |writer| Ok(writer.has_room(events))).await
    }

    pub(super) async fn open_alerts(&self, filter: AlertFilter) -> Result<Vec<OpenAlert>, Error> {
        let commands = self.commands.clone();
        self.page.read(filter, move || commands.is_closed()).await
    }

    pub(super) async fn set_sinks(&self, names: Vec<String>) -> Result<Vec<SinkState>, Error> {
        self.write(names, Write::SetSinks).await
    }

    pub(super) async fn pending(
        &self,
        sink: &str,
        max_events: usize,
        max_bytes: usize,
    ) -> Result<Batch, Error> {
        let sink = sink.to_owned();
        self.read(move |writer| writer.pending(&sink, max_events, max_bytes))
            .await
    }

    pub(super) async fn acknowledge(
        &self,
        sink: &str,
        position: i64,
        mark: Option<Vec<u8>>,
    ) -> Result<(), Error> {
        let sink = sink.into();
        self.ask(|reply| Command::Acknowledge {
            sink,
            position,
            mark,
            reply,
        })
        .await
    }

    pub(super) async fn backlog(&self, sink: &str) -> Result<Backlog, Error> {
        let sink = sink.to_owned();
        self.read(move |writer| writer.backlog(&sink)).await
    }

    pub(super) fn journalled(&self) -> watch::Receiver<i64> {
        self.journalled.clone()
    }

    pub(super) fn lost(&self) -> watch::Receiver<Option<Error>> {
        self.lost.clone()
    }

    pub(super) async fn close(&self) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Close(reply)).await.is_ok() {
            // Without an answer the thread has ended, which is what closing asks for.
            answer.await.ok();
        }
    }

    async fn write<Q, A>(&self, request: Q, kind: fn(Job<Q, A>) -> Write) -> Result<A, Error> {
        self.ask(|reply| Command::Write(kind(Job::new(request, reply))))
            .await
    }

    /// Has the thread read something, before the writes of its group.
    async fn read<A: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Writer) -> Result<A, Error> + Send + 'static,
    ) -> Result<A, Error> {
        self.ask(|reply| {
            Command::Read(Box::new(|writer| {
                reply.send(read(writer)).ok();
            }))
        })
        .await
    }

    async fn ask<A>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<A, Error>>) -> Command,
    ) -> Result<A, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }
}

// === impl Holds ===

impl Holds {
    /// Takes a search up. An earlier holder loses it.
    fn take(&self, row: i64) -> Held {
        let mut holds = self.0.write();
        let hold = holds.entry(row).or_default();
        hold.epoch += 1;
        hold.held = true;
        Held {
            row,
            epoch: hold.epoch,
        }
    }

    fn give_back(&self, held: Held) {
        let mut holds = self.0.write();
        if let Some(hold) = holds.get_mut(&held.row)
            && hold.epoch == held.epoch
        {
            hold.held = false;
        }
    }

    fn is_held(&self, held: Held) -> bool {
        let holds = self.0.read();
        holds
            .get(&held.row)
            .is_some_and(|hold| hold.held && hold.epoch == held.epoch)
    }

    fn holds_row(&self, row: i64) -> bool {
        let holds = self.0.read();
        holds.get(&row).is_some_and(|hold| hold.held)
    }
}

// === impl Micros ===

impl ToSql for Micros {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(self.0.as_microsecond()))
    }
}

impl FromSql for Micros {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let micros = value.as_i64()?;
        // Only the last hours of the range of dates are out of reach, and no calculation uses
        // them.
        let far = if micros < 0 {
            Timestamp::MIN
        } else {
            Timestamp::MAX
        };
        Ok(Self(Timestamp::from_microsecond(micros).unwrap_or(far)))
    }
}

#[cfg(test)]
mod tests;
