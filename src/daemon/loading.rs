//! Loads the configuration again, for reloads: off the thread that follows signals, and beside
//! earlier readings that hang.

use std::{
    collections::BTreeSet,
    fmt, fs,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    config::Loaded,
    file_id::{FileId, file_id},
    reading,
};

/// Time limit for reading the configuration and the files that it names: they can lie on a server
/// that hangs.
const LIMIT: Duration = Duration::from_secs(10);

/// Maximum number of readings that hang at the same time, because each of them keeps a thread. If
/// so many hang, nothing is read any more.
const MOST_READINGS: usize = 4;

type Load = dyn Fn(&Attempt) -> Result<Loaded, String> + Send + Sync;

/// Loads the configuration again. A reading that takes too long goes on in the background, and its
/// result is dropped: by the time it comes, the files may say something else.
pub struct LoadConfig {
    load: Arc<Load>,
    /// The attempts that may still be under way.
    attempts: Vec<Weak<Attempt>>,
}

/// One attempt to read the configuration and the files that it names.
#[derive(Debug, Default)]
pub struct Attempt {
    file: Mutex<Option<PathBuf>>,
    /// The pipe that is being read, if the file is one.
    pipe: Mutex<Option<FileId>>,
    /// The pipes for which earlier attempts wait.
    waited_for: Vec<FileId>,
}

/// A file is a pipe for which an earlier attempt waits.
#[derive(Debug, thiserror::Error)]
#[error(
    "an earlier reading still waits for the pipe {}; write the file to the pipe for that reading, or put a \
     file in the pipe's place, and reload again",
    .0.display()
)]
pub struct PipeInUse(PathBuf);

// === impl LoadConfig ===

impl LoadConfig {
    /// Creates what calls `load` for each reload. `load` may block; it says by
    /// [`Attempt::now_reads`] which file it reads. The error is a text for people.
    pub fn new(load: impl Fn(&Attempt) -> Result<Loaded, String> + Send + Sync + 'static) -> Self {
        Self {
            load: Arc::new(load),
            attempts: Vec::new(),
        }
    }

    /// Reads the configuration and the files that it names. Earlier readings that hang do not hold
    /// it up, unless there are too many.
    pub(super) async fn read(&mut self) -> Result<Loaded, String> {
        self.attempts.retain(|attempt| attempt.strong_count() > 0);
        if self.attempts.len() >= MOST_READINGS {
            return Err(self.refusal());
        }
        let hanging = self.attempts.iter().filter_map(Weak::upgrade);
        let attempt = Arc::new(Attempt {
            waited_for: hanging.filter_map(|it| *it.pipe.lock()).collect(),
            ..Attempt::default()
        });
        let weak = Arc::downgrade(&attempt);
        self.attempts.push(Weak::clone(&weak));
        let load = Arc::clone(&self.load);
        let loading = tokio::task::spawn_blocking(move || load(&attempt));
        match tokio::time::timeout(LIMIT, loading).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!(
                "the configuration, or a file that it names, {}",
                reading::unread_within(LIMIT, &files(&[weak]))
            )),
        }
    }

    fn refusal(&self) -> String {
        format!(
            "{MOST_READINGS} earlier readings still hang; unless one ends, it takes a restart to have the \
             files read again{}",
            reading::named(&files(&self.attempts))
        )
    }
}

impl fmt::Debug for LoadConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadConfig")
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}

// === impl Attempt ===

impl Attempt {
    /// Notes that a file, or one that it names, is read from now on. If the reading hangs, the
    /// message about that names this file.
    ///
    /// # Errors
    /// If the file is a pipe for which an earlier attempt waits: each byte of a pipe goes to one
    /// reader, so both would read a part, and a part can be a valid configuration.
    pub fn now_reads(&self, file: &Path) -> Result<(), PipeInUse> {
        *self.file.lock() = Some(file.to_owned());
        let found = fs::metadata(file).ok();
        let pipe = found.filter(|found| found.file_type().is_fifo());
        let pipe = pipe.as_ref().map(file_id);
        if pipe.is_some_and(|pipe| self.waited_for.contains(&pipe)) {
            return Err(PipeInUse(file.to_owned()));
        }
        *self.pipe.lock() = pipe;
        Ok(())
    }
}

/// Returns the files that the readings under way have begun with.
fn files(attempts: &[Weak<Attempt>]) -> Vec<PathBuf> {
    let attempts = attempts.iter().filter_map(Weak::upgrade);
    let files: BTreeSet<_> = attempts.filter_map(|it| it.file.lock().clone()).collect();
    files.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };

    use super::*;

    /// Reads, and lets the time limit pass as soon as the reading has begun.
    async fn read_too_long(load: &mut LoadConfig, begun: &AtomicUsize) -> String {
        let before = begun.load(Ordering::Relaxed);
        let pass = async {
            while begun.load(Ordering::Relaxed) == before {
                tokio::task::yield_now().await;
            }
            tokio::time::advance(LIMIT).await;
        };
        let (read, ()) = tokio::join!(load.read(), pass);
        read.unwrap_err()
    }

    #[tokio::test(start_paused = true)]
    async fn beside_readings_that_hang_others_begin_but_not_without_end() {
        let (come, comes) = mpsc::channel::<()>();
        let comes = Mutex::new(comes);
        let (begun, hangs) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(true)));
        let mut load = {
            let (begun, hangs) = (Arc::clone(&begun), Arc::clone(&hangs));
            LoadConfig::new(move |attempt| {
                let hangs = *hangs.lock();
                attempt.now_reads(Path::new("a.yml")).unwrap();
                begun.fetch_add(1, Ordering::Relaxed);
                if hangs {
                    comes.lock().recv().ok();
                }
                Err("read".to_owned())
            })
        };
        for _ in 0..MOST_READINGS {
            *hangs.lock() = false;
            assert_eq!(load.read().await.unwrap_err(), "read");
            *hangs.lock() = true;
            let expected =
                "the configuration, or a file that it names, could not be read within 10 s: a.yml";
            assert_eq!(read_too_long(&mut load, &begun).await, expected);
        }
        *hangs.lock() = false;
        let expected = "4 earlier readings still hang; unless one ends, it takes a restart to have \
                        the files read again: a.yml";
        assert_eq!(load.read().await.unwrap_err(), expected);
        come.send(()).unwrap();
        while load.read().await.unwrap_err() != "read" {
            tokio::task::yield_now().await;
        }
        drop(come);
    }

    #[test]
    fn a_pipe_for_which_an_earlier_attempt_waits_is_not_read_but_another_one_is() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, file) = (folder.path().join("pipe"), folder.path().join("file"));
        let make = || rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU);
        make().unwrap();
        fs::write(&file, "").unwrap();
        let earlier = Attempt::default();
        earlier.now_reads(&file).unwrap();
        assert_eq!(*earlier.pipe.lock(), None);
        earlier.now_reads(&pipe).unwrap();
        let later = Attempt {
            waited_for: earlier.pipe.lock().iter().copied().collect(),
            ..Attempt::default()
        };
        assert!(later.now_reads(&pipe).is_err());
        later.now_reads(&file).unwrap();
        // The old pipe is kept, so that the new one has another inode.
        fs::rename(&pipe, folder.path().join("old")).unwrap();
        make().unwrap();
        later.now_reads(&pipe).unwrap();
    }
}
