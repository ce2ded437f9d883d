mod crashes;
mod moved;
mod names;
mod opening;
mod properties;
mod searches;
mod truncated;

use std::{
    fs,
    io::Read as _,
    os::unix::fs::{PermissionsExt as _, symlink},
};

use proptest::prelude::*;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use tempfile::TempDir;

use super::*;
use crate::{deliver::fuzzing::pending, record::tests::bare};

/// A file sink, the journal it reads, and a store that keeps what is saved across crashes.
#[derive(Debug)]
struct World {
    folder: TempDir,
    events: Vec<Pending>,
    sink: LogFile,
    /// What the running process knows …
    cursor: usize,
    mark: Option<Vec<u8>>,
    /// … and what the store would tell the next one.
    saved: (usize, Option<Vec<u8>>),
    rotations: usize,
    /// Where the journal ends when the sink opens its file.
    journal_end: i64,
}

/// The body of an event, which can be rendered in each format.
fn bare_about(alert: &str) -> String {
    let bare = String::from_utf8(bare().to_json()).unwrap();
    bare.replace("8005", alert)
}

#[derive(Debug)]
struct Before {
    size: u64,
    settled: Option<u64>,
    cursor: usize,
    mark: Option<Vec<u8>>,
}

impl World {
    fn new(bodies: impl IntoIterator<Item = String>) -> Self {
        // The folder is in memory if the system has such a disk: a sync costs nothing there.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let folder = folder.unwrap();
        let sink = LogFile::new(folder.path().join("alerts.jsonl"), Format::Json);
        Self {
            folder,
            events: bodies
                .into_iter()
                .zip(1..)
                .map(|(body, position)| pending(position, body.into()))
                .collect(),
            sink,
            cursor: 0,
            mark: None,
            saved: (0, None),
            rotations: 0,
            journal_end: i64::MAX,
        }
    }

    /// Returns a world with six events, as if the sync of the third and fourth had failed: neither
    /// the sink nor the journal went on.
    fn with_two_of_six_not_synced() -> Self {
        let mut world = Self::with_events(6);
        world.deliver(2);
        let mark = world.sink.current.as_ref().unwrap().mark.unwrap();
        world.deliver(2);
        let current = world.sink.current.as_mut().unwrap();
        current.settled = mark.offset;
        current.mark = Some(mark);
        world.cursor = 2;
        world
    }

    /// Returns a world whose events have lines of different lengths.
    fn with_events(count: usize) -> Self {
        Self::new(
            (0..count).map(|i| format!("{{\"event\":{i},\"x\":\"{}\"}}", "y".repeat(i * 7 % 40))),
        )
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("alerts.jsonl")
    }

    /// Delivers until `count` events are out. Returns how things were before the last try.
    fn try_deliver(&mut self, count: usize) -> Result<Before, Error> {
        let end = (self.cursor + count).min(self.events.len());
        loop {
            let before = Before {
                size: self.size(),
                settled: self.sink.current.as_ref().map(|current| current.settled),
                cursor: self.cursor,
                mark: self.mark.clone(),
            };
            let progress = self.sink.deliver(&self.events[self.cursor..end]);
            match progress.error {
                None => {}
                Some(crate::deliver::SinkError::File(error)) => return Err(error),
                Some(error) => panic!("{error}"),
            }
            self.cursor += progress.settled;
            self.mark = progress.mark;
            if self.cursor == end {
                return Ok(before);
            }
            // The sink goes on only after this progress was acknowledged.
            self.save();
        }
    }

    fn deliver(&mut self, count: usize) {
        self.try_deliver(count).unwrap();
        let inode = |mark: &Option<Vec<u8>>| Some(Mark::decode(mark.as_deref()?)?.0.inode);
        if inode(&self.mark) != inode(&self.saved.1) {
            // A sink is given the next file long after an acknowledgement was stored.
            self.save();
        }
    }

    /// Delivers, but only a part of the appended bytes reaches the file.
    fn deliver_part(&mut self, count: usize, keep: usize) -> Before {
        let before = self.try_deliver(count).unwrap();
        let appended = self.size() - before.size;
        let file = OpenOptions::new().write(true).open(self.path()).unwrap();
        file.set_len(before.size + keep as u64 % (appended + 1))
            .unwrap();
        before
    }

    fn size(&self) -> u64 {
        fs::metadata(self.path()).map_or(0, |metadata| metadata.len())
    }

    fn save(&mut self) {
        self.saved = (self.cursor, self.mark.clone());
    }

    fn crash(&mut self) {
        self.crash_into(Format::Json);
    }

    /// Crashes. The next process writes another format.
    fn crash_into(&mut self, format: Format) {
        let (cursor, mark) = self.saved.clone();
        self.cursor = cursor;
        self.mark.clone_from(&mark);
        self.sink = LogFile::new(self.path(), format)
            .resume_at(mark.as_deref())
            .with_journalled(watch::channel(self.journal_end).1);
    }

    /// Opens the file as the next delivery would.
    fn open(&mut self) {
        self.sink.current = Some(self.sink.follow_name().unwrap());
    }

    /// Delivers some events as a batch of a store that several replicas share.
    fn hand(&mut self, past: Past, which: &[usize]) {
        let events: Vec<_> = which.iter().map(|&it| self.events[it].clone()).collect();
        let mut rest = &events[..];
        self.sink.note_past(past);
        while !rest.is_empty() {
            let progress = self.sink.deliver(rest);
            assert!(progress.error.is_none(), "{:?}", progress.error);
            rest = &rest[progress.settled..];
            self.mark = progress.mark;
        }
    }

    /// The bytes of the next lines, cut off somewhere.
    fn torn(&self, count: usize, keep: usize) -> Vec<u8> {
        let end = (self.cursor + count).min(self.events.len());
        let mut bytes = Lines::render(self.sink.format, &self.events[self.cursor..end])
            .bytes()
            .to_vec();
        bytes.truncate(keep % (bytes.len() + 1));
        bytes
    }

    fn rotate(&mut self) {
        let to = self.next_rotated();
        if self.path().exists() {
            fs::rename(self.path(), to).unwrap();
        }
    }

    /// Does what logrotate does with `copytruncate`.
    fn copy_and_truncate(&mut self) {
        fs::copy(self.path(), self.next_rotated()).unwrap();
        File::create(self.path()).unwrap();
    }

    fn next_rotated(&mut self) -> PathBuf {
        self.rotations += 1;
        let name = format!("alerts.jsonl.{}", self.rotations);
        self.folder.path().join(name)
    }

    /// The content of all files, the oldest first.
    fn content(&self) -> String {
        let mut content = String::new();
        let rotated = (1..=self.rotations).map(|i| format!("alerts.jsonl.{i}"));
        for name in rotated.chain(["alerts.jsonl".to_owned()]) {
            if let Ok(mut file) = File::open(self.folder.path().join(name)) {
                file.read_to_string(&mut content).unwrap();
                assert!(content.is_empty() || content.ends_with('\n'), "{content}");
            }
        }
        content
    }

    fn expected(&self) -> String {
        (0..self.events.len())
            .map(|index| self.line(index))
            .collect()
    }

    fn line(&self, index: usize) -> String {
        format!(
            "{}\n",
            str::from_utf8(&self.events[index].event.body).unwrap()
        )
    }

    /// The lines in all files, without those of others.
    fn ours(&self) -> String {
        let content = self.content();
        let ours = content
            .split_inclusive('\n')
            .filter(|line| line.starts_with('{'));
        ours.collect()
    }

    fn append(&self, bytes: &[u8]) {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.path())
            .unwrap()
            .write_all(bytes)
            .unwrap();
    }
}

#[test]
fn lines_are_appended_to_a_file_that_only_its_owner_may_write() {
    let mut world = World::with_events(5);
    world.append(b"what was there\n");
    fs::remove_file(world.path()).unwrap();
    world.deliver(2);
    world.deliver(3);
    assert_eq!(world.content(), world.expected());
    let mode = fs::metadata(world.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640, "{mode:o}");
    assert_eq!(mode & 0o600, 0o600, "{mode:o}");
}

#[test]
fn the_next_process_goes_on_behind_what_is_settled() {
    let mut world = World::with_events(5);
    world.deliver(2);
    world.save();
    world.deliver(2);
    world.crash();
    world.open();
    let (mark, _) = Mark::decode(world.mark.as_deref().unwrap()).unwrap();
    let current = world.sink.current.as_ref().unwrap();
    assert_eq!((current.settled, current.mark), (mark.offset, Some(mark)));
    world.deliver(3);
    assert_eq!(world.content(), world.expected());
}

#[test]
fn an_event_that_cannot_be_read_is_refused_once_and_the_others_are_written() {
    let bare = String::from_utf8(bare().to_json()).unwrap();
    let mut world = World::new([bare.clone(), "{}".to_owned(), bare.replace("8005", "8006")]);
    world.sink.format = Format::Logfmt;
    // The first delivery only tells the store which file it is.
    for settled in [0, 3] {
        let progress = world.sink.deliver(&world.events);
        assert_eq!(
            (progress.settled, progress.refused.len()),
            (settled, settled / 3)
        );
    }
    assert_eq!(world.content().lines().count(), 2);
}

#[test]
fn the_end_of_a_longer_line_does_not_pass_for_a_line() {
    let mut world = World::with_events(1);
    // The file is so large that its end is searched from the end of that line on.
    let line = world.line(0);
    let rest = "x".repeat(LOOK_BACK as usize - line.len() - 1);
    world.append(format!("somebody's {line}{rest}\n").as_bytes());
    // Where no line is missing, the place stays as it is.
    assert_eq!(world.sink.deliver(&[]).settled, 0);
    world.deliver(1);
    assert!(world.content().ends_with(&format!("x\n{line}")));
}

#[test]
fn parts_in_doubt_that_touch_are_one_and_not_too_many_are_remembered() {
    let mut world = World::with_events(1);
    world.deliver(1);
    let current = world.sink.current.as_mut().unwrap();
    for part in [10..20, 30..40, 25..35, 40..50, 60..60] {
        current.doubt(part);
    }
    assert_eq!(current.doubtful, [10..20, 25..50]);
    for start in 10..100 {
        current.doubt(10 * start..10 * start + 5);
    }
    assert_eq!(current.doubtful.len(), MAX_DOUBTFUL);
    assert_eq!(current.doubtful[MAX_DOUBTFUL - 2..], [700..705, 710..995]);
}

#[test]
fn what_was_in_the_file_before_stays_and_an_unfinished_line_gets_its_end() {
    for unfinished in [
        "unfinished",
        "unfinished, and longer than any line that is to be written",
    ] {
        let mut world = World::with_events(2);
        world.append(format!("somebody else's\n{unfinished}").as_bytes());
        world.deliver(2);
        assert_eq!(
            world.content(),
            format!("somebody else's\n{unfinished}\n{}", world.expected())
        );
    }
}
