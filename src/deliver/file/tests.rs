use std::{
    fs,
    io::Read as _,
    os::unix::fs::{PermissionsExt as _, symlink},
};

use bytes::Bytes;
use jiff::Timestamp;
use proptest::prelude::*;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::store::JournalEvent;

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
        // In memory, where there is such a disk: a sync costs nothing there.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let folder = folder.unwrap();
        let sink = LogFile::new(folder.path().join("alerts.jsonl"), Format::Json);
        Self {
            folder,
            events: bodies
                .into_iter()
                .zip(1..)
                .map(|(body, position)| Pending {
                    position,
                    event: JournalEvent {
                        event_id: Uuid::nil(),
                        at: Timestamp::UNIX_EPOCH,
                        body: Bytes::from(body),
                    },
                })
                .collect(),
            sink,
            cursor: 0,
            mark: None,
            saved: (0, None),
            rotations: 0,
        }
    }

    /// With six events, as if the sync of the third and fourth had failed: neither the sink nor the
    /// journal went on.
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

    /// Lines of different lengths.
    fn with_events(count: usize) -> Self {
        Self::new(
            (0..count).map(|i| format!("{{\"event\":{i},\"x\":\"{}\"}}", "y".repeat(i * 7 % 40))),
        )
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("alerts.jsonl")
    }

    /// Delivers until `count` events are out; returns how things were before the last try.
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
            // It goes on after this was acknowledged.
            self.save();
        }
    }

    fn deliver(&mut self, count: usize) {
        self.try_deliver(count).unwrap();
        let inode = |mark: &Option<Vec<u8>>| Some(Mark::decode(mark.as_deref()?)?.0.inode);
        if inode(&self.mark) != inode(&self.saved.1) {
            // An acknowledgement is stored long before the next file comes.
            self.save();
        }
    }

    /// Delivers, but of what that appends only a part reaches the file.
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
        let (cursor, mark) = self.saved.clone();
        self.cursor = cursor;
        self.mark.clone_from(&mark);
        self.sink = LogFile::new(self.path(), Format::Json).after(mark.as_deref());
    }

    /// Delivers some events as a batch of a store that several replicas share.
    fn hand(&mut self, past: Past, which: &[usize]) {
        let events: Vec<_> = which.iter().map(|&it| self.events[it].clone()).collect();
        let mut rest = &events[..];
        self.sink.hear(past);
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
        let mut bytes = Lines::render(Format::Json, &self.events[self.cursor..end])
            .bytes()
            .to_vec();
        bytes.truncate(keep % (bytes.len() + 1));
        bytes
    }

    fn rotate(&mut self) {
        self.rotations += 1;
        let to = self
            .folder
            .path()
            .join(format!("alerts.jsonl.{}", self.rotations));
        if self.path().exists() {
            fs::rename(self.path(), to).unwrap();
        }
    }

    /// All files' content, the oldest first.
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
        self.events
            .iter()
            .map(|event| format!("{}\n", str::from_utf8(&event.event.body).unwrap()))
            .collect()
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
fn what_was_in_the_file_before_stays_and_an_unfinished_line_gets_its_end() {
    let mut world = World::with_events(2);
    world.append(b"somebody else's\nunfinished");
    world.deliver(2);
    assert_eq!(
        world.content(),
        format!("somebody else's\nunfinished\n{}", world.expected())
    );
}

/// What was before events of this process's own.
const OWN: Past = Past {
    is_inherited: false,
    is_stored: true,
    losses: 0,
};

/// What was before events that others may have delivered.
const INHERITED: Past = Past {
    is_inherited: true,
    ..OWN
};

#[test]
fn what_a_former_holder_may_have_written_is_looked_for_before_what_is_settled() {
    let mut world = World::with_events(4);
    world.deliver(3);
    world.hand(INHERITED, &[1, 3]);
    assert_eq!(world.content(), world.expected());
}

#[test]
fn lines_of_searches_that_come_one_by_one_are_found_where_the_file_was_moved_to() {
    let mut world = World::with_events(9);
    world.deliver(2);
    world.save();
    world.deliver(5);
    world.crash();
    world.rotate();
    world.hand(OWN, &[7]);
    for came in [&[5, 6][..], &[2], &[3, 4]] {
        world.hand(INHERITED, came);
    }
    world.rotate();
    world.hand(OWN, &[8]);
    // Another replica has held it until now.
    world.hand(INHERITED, &[4]);
    assert_eq!(world.content(), world.expected());
}

#[test]
fn what_was_never_acknowledged_is_found_however_much_was_written_since() {
    let long = (4..22).map(|number| format!("{number}{}", "x".repeat(1 << 20)));
    let short = (0..4).map(|number| format!("{number}"));
    let mut world = World::new(short.chain(long));
    world.deliver(1);
    world.save();
    world.deliver(3);
    world.crash();
    world.hand(INHERITED, &[2]);
    for number in 4..21 {
        world.hand(OWN, &[number]);
    }
    world.hand(INHERITED, &[1]);
    // The next process knows of it as well.
    world.save();
    world.crash();
    world.hand(INHERITED, &[3]);
    world.hand(OWN, &[21]);
    assert!(world.content() == world.expected(), "each once");
}

#[test]
fn what_the_store_had_not_heard_of_when_a_search_was_lost_is_found_when_it_comes_back() {
    let mut world = World::with_events(5);
    world.hand(OWN, &[0]);
    world.hand(OWN, &[1]);
    let unheard = Past {
        is_stored: false,
        ..OWN
    };
    world.hand(unheard, &[2]);
    let losses = 1;
    world.hand(Past { losses, ..OWN }, &[3]);
    world.rotate();
    world.hand(Past { losses, ..OWN }, &[4]);
    world.hand(Past { losses, ..OWN }, &[]);
    assert_eq!(world.sink.former.len(), 1);
    world.hand(
        Past {
            losses,
            ..INHERITED
        },
        &[1],
    );
    assert_eq!(world.content(), world.expected());
    fs::remove_file(world.folder.path().join("alerts.jsonl.1")).unwrap();
    world.sink.reopen();
    assert!(
        world.sink.former.is_empty(),
        "it frees the room on the disk"
    );
}

#[test]
fn a_file_that_was_moved_away_is_closed_once_the_store_has_heard_of_all_in_it() {
    let mut world = World::with_events(3);
    for number in 0..2 {
        world.hand(OWN, &[number]);
    }
    world.rotate();
    // Whether it has heard of the last one is not known at that moment.
    world.sink.reopen();
    assert_eq!(world.sink.former.len(), 1);
    world.hand(OWN, &[2]);
    assert!(world.sink.former.is_empty());
    assert_eq!(world.content(), world.expected());
}

#[test]
fn a_doubtful_file_that_is_moved_back_is_gone_on_with() {
    let mut world = World::with_events(3);
    for number in 0..2 {
        world.hand(OWN, &[number]);
    }
    world.rotate();
    world.sink.reopen();
    fs::rename(world.folder.path().join("alerts.jsonl.1"), world.path()).unwrap();
    world.hand(OWN, &[2]);
    assert_eq!(world.content(), world.expected());
}

/// The heart of it: killed after any byte of a batch, with or without a batch before it.
#[test]
fn a_batch_torn_at_any_byte_is_completed_and_nothing_is_written_twice() {
    for before in [0, 3] {
        let length = World::with_events(before + 5).expected().len();
        for keep in 0..=length {
            let mut world = World::with_events(before + 5);
            world.deliver(before);
            world.save();
            let torn = world.torn(5, keep);
            world.append(&torn);
            world.crash();
            world.deliver(5);
            assert_eq!(world.content(), world.expected(), "{before} {keep}");
        }
    }
}

#[test]
fn a_batch_that_was_written_but_not_acknowledged_is_found_though_batches_are_smaller_now() {
    let mut world = World::with_events(60);
    world.deliver(5);
    world.save();
    world.deliver(20);
    world.deliver(30);
    world.crash();
    while world.cursor < 60 {
        world.deliver(7);
    }
    assert_eq!(world.content(), world.expected());
}

#[test]
fn after_a_sync_that_failed_lines_are_not_appended_again() {
    let mut world = World::with_two_of_six_not_synced();
    world.deliver(4);
    assert_eq!(world.content(), world.expected());
}

#[test]
fn a_torn_batch_is_completed_in_a_file_that_may_only_be_appended_to() {
    let length = World::with_events(5).expected().len();
    for keep in (0..=length).step_by(11) {
        let mut world = World::with_events(9);
        world.deliver(3);
        world.save();
        let torn = world.torn(5, keep);
        world.append(&torn);
        world.crash();
        let file = File::open(world.path()).unwrap();
        let flags = ioctl_getflags(&file).unwrap();
        if let Err(error) = ioctl_setflags(&file, flags | IFlags::APPEND) {
            eprintln!("only root may do that, and not on every file system: {error}");
            return;
        }
        let delivered = world.try_deliver(6);
        ioctl_setflags(&file, flags).unwrap();
        delivered.unwrap();
        assert_eq!(world.content(), world.expected(), "{keep}");
    }
}

#[test]
fn lines_whose_bytes_a_power_cut_took_are_written_again_and_the_others_are_not() {
    let mut world = World::with_events(6);
    world.deliver(2);
    world.save();
    let from = fs::metadata(world.path()).unwrap().len();
    world.deliver(4);
    // The file got its length, but one block never reached the disk.
    let file = OpenOptions::new().write(true).open(world.path()).unwrap();
    file.write_all_at(&[0; 10], from + 5).unwrap();
    world.crash();
    world.deliver(4);
    let content = fs::read_to_string(world.path()).unwrap();
    for event in &world.events {
        let line = str::from_utf8(&event.event.body).unwrap();
        assert_eq!(content.lines().filter(|found| *found == line).count(), 1);
    }
    assert_eq!(content.lines().count(), 7);
}

#[test]
fn a_torn_line_behind_one_that_lost_bytes_is_completed() {
    let mut world = World::with_events(6);
    world.deliver(2);
    world.save();
    let from = fs::metadata(world.path()).unwrap().len();
    world.deliver(3);
    let torn = world.torn(5, 300);
    world.append(&torn);
    let file = OpenOptions::new().write(true).open(world.path()).unwrap();
    file.write_all_at(&[0; 10], from + 5).unwrap();
    world.crash();
    world.deliver(4);
    let content = fs::read_to_string(world.path()).unwrap();
    let (garbled, whole): (Vec<_>, _) = content.lines().partition(|line| line.contains('\0'));
    let order = [0, 1, 3, 4, 5, 2].map(|index: usize| &world.events[index]);
    let expected = order.map(|event| str::from_utf8(&event.event.body).unwrap());
    assert_eq!((garbled.len(), whole), (1, expected.to_vec()));
}

#[test]
fn a_file_that_was_moved_away_is_left_and_a_new_one_is_begun() {
    let mut world = World::with_events(9);
    world.deliver(3);
    world.rotate();
    world.deliver(3);
    world.rotate();
    world.sink.reopen();
    assert!(world.path().exists(), "a reopened file is there at once");
    world.deliver(3);
    assert_eq!(world.content(), world.expected());
    assert_eq!(fs::read_dir(world.folder.path()).unwrap().count(), 3);
}

#[test]
fn a_file_that_is_moved_back_is_gone_on_with() {
    let mut world = World::with_events(9);
    world.deliver(3);
    let torn = world.torn(2, 60);
    world.append(&torn);
    world.rotate();
    world.sink.reopen();
    fs::rename(world.folder.path().join("alerts.jsonl.1"), world.path()).unwrap();
    world.deliver(6);
    assert_eq!(world.content(), world.expected());
    assert!(world.sink.moved.is_empty());
}

#[test]
fn a_line_torn_in_a_file_that_was_moved_away_is_completed_there() {
    for moved_while_running in [true, false] {
        let length = World::with_events(8).expected().len();
        for keep in 0..length {
            let mut world = World::with_events(9);
            world.deliver(3);
            world.save();
            let torn = world.torn(5, keep);
            world.append(&torn);
            if moved_while_running {
                world.rotate();
            } else {
                world.crash();
                world.rotate();
            }
            world.deliver(5);
            world.deliver(1);
            assert_eq!(world.content(), world.expected(), "{keep}");
            assert!(
                world.sink.moved.is_empty(),
                "it is closed once it is settled"
            );
        }
    }
}

#[test]
fn lines_of_a_file_that_was_deleted_before_they_were_safe_are_written_again() {
    let mut world = World::with_events(6);
    world.deliver(2);
    let torn = world.torn(4, 60);
    world.append(&torn);
    fs::remove_file(world.path()).unwrap();
    world.deliver(4);
    let all = world.expected();
    let expected: Vec<_> = all.lines().skip(2).collect();
    assert_eq!(world.content().lines().collect::<Vec<_>>(), expected);
}

#[test]
fn a_line_torn_in_a_file_that_was_compressed_before_the_next_try_is_written_as_a_whole() {
    for keep in [30, 60] {
        let mut world = World::with_events(9);
        world.deliver(3);
        // What a full disk left, with nothing but a piece of a line behind what is settled.
        let torn = world.torn(1, keep);
        world.append(&torn);
        world.rotate();
        let moved = world.folder.path().join("alerts.jsonl.1");
        // Nothing can be created yet, when the sink is told that the file was moved away.
        fs::create_dir(world.path()).unwrap();
        world.sink.reopen();
        world.try_deliver(1).unwrap_err();
        let compressed = fs::read_to_string(&moved).unwrap();
        fs::remove_file(moved).unwrap();
        fs::remove_dir(world.path()).unwrap();
        world.deliver(6);
        let content = world.content();
        let lines = compressed.lines().take(3).chain(content.lines());
        let lines: String = lines.map(|line| format!("{line}\n")).collect();
        assert_eq!(lines, world.expected(), "{keep}");
        assert!(world.sink.moved.is_empty());
    }
}

#[test]
fn a_file_that_was_truncated_goes_on_at_its_beginning() {
    let mut world = World::with_events(6);
    world.deliver(4);
    File::options()
        .write(true)
        .open(world.path())
        .unwrap()
        .set_len(0)
        .unwrap();
    world.deliver(2);
    let all = world.expected();
    let expected: Vec<_> = all.lines().skip(4).collect();
    assert_eq!(world.content().lines().collect::<Vec<_>>(), expected);
}

#[test]
fn lines_that_copytruncate_carried_away_while_nobody_ran_are_found_in_the_copy() {
    let mut world = World::with_events(8);
    world.deliver(3);
    world.save();
    world.deliver(3);
    world.rotations = 1;
    fs::copy(world.path(), world.folder.path().join("alerts.jsonl.1")).unwrap();
    File::create(world.path()).unwrap();
    world.crash();
    world.deliver(5);
    assert_eq!(world.content(), world.expected());
}

/// Two sinks that write the same lines beside one another, and one of the files is gone when five
/// lines more stand in the other.
fn twin(name: &str) -> (World, PathBuf) {
    let mut world = World::with_events(9);
    world.deliver(4);
    world.save();
    let other = world.folder.path().join(name);
    fs::write(&other, world.expected()).unwrap();
    fs::remove_file(world.path()).unwrap();
    world.crash();
    (world, other)
}

fn expect_waiting_lines_in_a_new_file(world: &mut World, other: &Path) {
    world.deliver(5);
    let all = world.expected();
    let expected: Vec<_> = all.lines().skip(4).collect();
    assert_eq!(world.content().lines().collect::<Vec<_>>(), expected);
    assert_eq!(fs::read_to_string(other).unwrap(), all);
}

#[test]
fn the_file_of_a_sink_that_writes_the_same_lines_is_not_taken_for_ones_own() {
    let (mut world, other) = twin("others.jsonl");
    expect_waiting_lines_in_a_new_file(&mut world, &other);
    let (mut world, other) = twin("alerts-2.jsonl");
    world.sink = world.sink.beside(vec![other.clone()]);
    expect_waiting_lines_in_a_new_file(&mut world, &other);
}

#[test]
fn a_file_that_somebody_writes_to_is_not_taken_for_one_that_was_moved_away() {
    let (mut world, other) = twin("alerts.jsonl.1");
    let writer = File::open(&other).unwrap();
    writer.lock().unwrap();
    expect_waiting_lines_in_a_new_file(&mut world, &other);
}

#[test]
fn a_copy_is_told_by_its_number_or_date() {
    let [yes, no] = [
        [
            "a.jsonl.1",
            "a.jsonl-20260101",
            "a.1.jsonl",
            "a-20260101-1767225600.jsonl",
        ]
        .as_slice(),
        &["b.jsonl", "ab.jsonl", "a.jsonl2", "a.jsonl.gz", "a.json.1"],
    ];
    for path in ["a.jsonl", "/var/log/a.jsonl"] {
        for (names, is_copy) in [(yes, true), (no, false)] {
            for name in names {
                let found = mark::is_numbered(name.as_ref(), path.as_ref());
                assert_eq!(found, is_copy, "{name} of {path}");
            }
        }
    }
}

#[test]
fn lines_that_copytruncate_carried_away_during_their_sync_are_found_in_the_copy() {
    let length = World::with_events(8).expected().len();
    for keep in 0..length {
        let mut world = World::with_events(9);
        world.deliver(3);
        // As if they were being written when logrotate came.
        let torn = world.torn(5, keep);
        world.append(&torn);
        world.rotations = 1;
        fs::copy(world.path(), world.folder.path().join("alerts.jsonl.1")).unwrap();
        File::create(world.path()).unwrap();
        world.deliver(5);
        world.deliver(1);
        assert_eq!(world.content(), world.expected(), "{keep}");
        assert!(world.sink.moved.is_empty());
    }
}

#[test]
fn lines_that_copytruncate_carries_away_between_two_looks_at_them_leave_no_hole() {
    let mut world = World::with_two_of_six_not_synced();
    let lines = Lines::render(Format::Json, &world.events[2..]);
    let missing = Missing::new(&lines);
    let current = world.sink.current.as_ref().unwrap();
    let scan = current.find_unsettled(&missing).unwrap();
    assert_eq!(scan.found.len(), 2);
    world.rotations = 1;
    fs::copy(world.path(), world.folder.path().join("alerts.jsonl.1")).unwrap();
    File::create(world.path()).unwrap();
    let error = current.rewrite(&scan, &missing).unwrap_err();
    assert_eq!(error.to_string(), "it has just been truncated");
    assert_eq!(world.size(), 0);
    world.deliver(4);
    assert_eq!(world.content(), world.expected());
}

/// Each time the file begins with the batch that is being synced.
#[test]
fn batch_after_batch_that_copytruncate_carries_away_during_its_sync_is_found() {
    let mut world = World::with_events(30);
    for _ in 0..5 {
        let events = &world.events[world.cursor..world.cursor + 5];
        // First the store gets to know the file.
        assert_eq!(world.sink.deliver(events).settled, 0);
        let batch = Lines::render(Format::Json, events);
        world.append(batch.bytes());
        world.sink.current.as_mut().unwrap().end = batch.bytes().len() as u64;
        for number in (1..=world.rotations).rev() {
            let name = |number| world.folder.path().join(format!("alerts.jsonl.{number}"));
            fs::rename(name(number), name(number + 1)).unwrap();
        }
        world.rotations += 1;
        fs::copy(world.path(), world.folder.path().join("alerts.jsonl.1")).unwrap();
        File::create(world.path()).unwrap();
        world.deliver(5);
    }
    world.deliver(30);
    let mut content = String::new();
    for number in (1..=world.rotations).rev() {
        let name = format!("alerts.jsonl.{number}");
        content += &fs::read_to_string(world.folder.path().join(name)).unwrap();
    }
    content += &fs::read_to_string(world.path()).unwrap();
    assert_eq!(content, world.expected());
}

#[test]
fn a_file_that_was_truncated_and_then_moved_away_holds_nothing_up() {
    let mut world = World::with_events(6);
    world.deliver(4);
    File::create(world.path()).unwrap();
    world.rotate();
    world.deliver(2);
    let all = world.expected();
    let expected: Vec<_> = all.lines().skip(4).collect();
    assert_eq!(world.content().lines().collect::<Vec<_>>(), expected);
}

#[test]
fn lines_that_were_written_while_copytruncate_was_at_work_are_not_written_again() {
    let mut world = World::with_events(9);
    world.deliver(1);
    world.rotations = 1;
    fs::copy(world.path(), world.folder.path().join("alerts.jsonl.1")).unwrap();
    // More than was there before, and its end was not acknowledged.
    let written = world.torn(8, 300);
    fs::write(world.path(), written).unwrap();
    world.deliver(8);
    assert_eq!(world.content(), world.expected());
}

#[test]
fn another_file_in_the_place_of_the_old_one_is_not_taken_for_it() {
    let mut world = World::with_events(4);
    world.deliver(2);
    world.save();
    // The same inode, and longer than the mark: only the content tells.
    fs::write(world.path(), "other\n".repeat(100)).unwrap();
    world.crash();
    world.deliver(2);
    let all = world.expected();
    let expected: String = all
        .lines()
        .skip(2)
        .map(|line| format!("{line}\n"))
        .collect();
    assert_eq!(world.content(), "other\n".repeat(100) + &expected);
}

#[test]
fn a_foreign_line_in_between_neither_hides_nor_repeats_ours() {
    let mut world = World::with_events(6);
    world.deliver(2);
    world.save();
    world.append(b"a note by hand\n");
    world.deliver(2);
    world.append(b"another one, without its end");
    world.crash();
    world.deliver(4);
    let ours: Vec<_> = world
        .content()
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(str::to_owned)
        .collect();
    assert_eq!(ours.join("\n") + "\n", world.expected());
}

#[test]
fn two_sinks_cannot_write_one_file() {
    let mut world = World::with_events(2);
    world.deliver(1);
    let mut other = LogFile::new(world.path(), Format::Json);
    let progress = other.deliver(&world.events[1..]);
    assert_eq!(progress.settled, 0);
    let error = progress.error.unwrap().to_string();
    assert!(error.contains("another process or sink"), "{error}");
    world.sink = LogFile::new(world.path(), Format::Json);
    // First the store gets to know the file.
    assert_eq!(other.deliver(&world.events[1..]).settled, 0);
    assert_eq!(other.deliver(&world.events[1..]).settled, 1);
    assert_eq!(world.content(), world.expected());
}

#[test]
fn a_file_that_is_let_go_at_once_is_waited_for() {
    let mut world = World::with_events(1);
    let holder = File::create(world.path()).unwrap();
    holder.lock().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(2 * LOCK_PAUSE);
            drop(holder);
        });
        world.deliver(1);
    });
    assert_eq!(world.content(), world.expected());
}

#[test]
fn a_missing_folder_is_named_and_once_it_is_there_the_lines_are_written() {
    let mut world = World::with_events(2);
    let path = world.folder.path().join("missing").join("alerts.jsonl");
    world.sink = LogFile::new(path.clone(), Format::Json);
    let error = world.try_deliver(2).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("alerts.jsonl: its folder does not exist"),
        "{error}"
    );
    fs::create_dir(path.parent().unwrap()).unwrap();
    world.deliver(2);
    assert_eq!(fs::read_to_string(path).unwrap(), world.expected());
}

#[test]
fn what_a_link_leads_to_is_created() {
    let mut world = World::with_events(3);
    let folder = world.folder.path().to_owned();
    let target = folder.join("data/alerts.jsonl");
    symlink(&target, world.path()).unwrap();
    let error = world.try_deliver(1).unwrap_err();
    let expected = format!("{}: its folder", target.display());
    assert!(error.to_string().contains(&expected), "{error}");
    fs::create_dir(folder.join("data")).unwrap();
    fs::rename(world.path(), folder.join("link")).unwrap();
    symlink("link", world.path()).unwrap();
    world.deliver(2);
    fs::remove_file(&target).unwrap();
    world.cursor = 0;
    world.deliver(3);
    assert_eq!(world.content(), world.expected());
    let metadata = fs::symlink_metadata(&target).unwrap();
    assert!(metadata.is_file());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
}

#[test]
fn lines_of_a_file_that_was_moved_away_where_a_link_leads_to_are_found() {
    let mut world = World::with_events(8);
    let data = world.folder.path().join("data");
    fs::create_dir(&data).unwrap();
    symlink(data.join("alerts.jsonl"), world.path()).unwrap();
    world.deliver(3);
    world.save();
    world.deliver(3);
    let moved = data.join("alerts.jsonl.1");
    fs::rename(data.join("alerts.jsonl"), &moved).unwrap();
    world.crash();
    world.deliver(5);
    let content = fs::read_to_string(moved).unwrap() + &world.content();
    assert_eq!(content, world.expected());
}

#[test]
fn what_is_not_a_regular_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for path in [
        Path::new("/dev/full"),
        Path::new("/dev/null"),
        folder.path(),
    ] {
        let mut world = World::with_events(1);
        world.sink = LogFile::new(path.to_owned(), Format::Json);
        let error = world.try_deliver(1).unwrap_err();
        assert!(matches!(error, Error::NotAFile(_)), "{error}");
    }
}

#[test]
fn a_mark_reads_back_and_rubbish_is_no_mark() {
    let mut world = World::with_events(3);
    world.deliver(3);
    let bytes = world.mark.unwrap();
    let (mark, doubtful) = Mark::decode(&bytes).unwrap();
    assert_eq!((mark.encode(&doubtful), doubtful), (bytes.clone(), vec![]));
    let parts = vec![1..2, 5..9];
    let with_parts = mark.encode(&parts);
    assert_eq!(Mark::decode(&with_parts), Some((mark, parts)));
    assert_eq!(mark.offset, world.sink.current.unwrap().settled);
    let (short, odd) = (&bytes[..bytes.len() - 1], &with_parts[..41]);
    for rubbish in [short, odd, &bytes[1..], b"", &[0; 33]] {
        assert_eq!(Mark::decode(rubbish), None);
    }
}

/// What may happen to a file and its writer.
#[derive(Clone, Debug)]
enum Step {
    Deliver(usize),
    /// The store notes what was acknowledged.
    Save,
    Kill,
    /// Killed in the middle of a write.
    KillWriting(usize, usize),
    /// A write that fails in its middle, as on a full disk.
    Fail(usize, usize),
    Rotate,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..6_usize).prop_map(Step::Deliver),
        3 => Just(Step::Save),
        1 => Just(Step::Kill),
        3 => (1..6_usize, any::<usize>()).prop_map(|(n, keep)| Step::KillWriting(n, keep)),
        2 => (1..6_usize, any::<usize>()).prop_map(|(n, keep)| Step::Fail(n, keep)),
        2 => Just(Step::Rotate),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_happens_each_line_is_there_once_and_in_order(
        steps in prop::collection::vec(step(), 1..40)
    ) {
        let mut world = World::with_events(60);
        for step in steps {
            match step {
                Step::Deliver(count) => world.deliver(count),
                Step::Save => world.save(),
                Step::Kill => world.crash(),
                Step::KillWriting(count, keep) => {
                    world.deliver_part(count, keep);
                    world.crash();
                }
                Step::Fail(count, keep) => {
                    world.sink.reopen();
                    if !world.sink.moved.is_empty() {
                        // What was written to another file cannot be undone here.
                        continue;
                    }
                    let before = world.deliver_part(count, keep);
                    let (Some(current), Some(settled)) =
                        (&mut world.sink.current, before.settled)
                    else {
                        world.crash();
                        continue;
                    };
                    current.settled = settled;
                    current.end = fs::metadata(&current.path).unwrap().len();
                    current.mark = before.mark.as_deref().and_then(Mark::decode).map(|it| it.0);
                    world.cursor = before.cursor;
                    world.mark = before.mark;
                }
                Step::Rotate => world.rotate(),
                Step::Reopen => world.sink.reopen(),
            }
        }
        world.deliver(60);
        prop_assert_eq!(world.content(), world.expected());
    }
}

/// What may happen to a sink whose searches come and go.
#[derive(Clone, Debug)]
enum Turn {
    /// So many events of a search.
    Deliver(usize, usize),
    Save,
    /// What was delivered of the search and not saved is given again.
    Lose(usize),
    Rotate,
    Reopen,
}

const SEARCHES: usize = 3;

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        6 => (0..SEARCHES, 1..4_usize).prop_map(|(search, n)| Turn::Deliver(search, n)),
        1 => Just(Turn::Save),
        3 => (0..SEARCHES).prop_map(Turn::Lose),
        2 => Just(Turn::Rotate),
        1 => Just(Turn::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whichever_searches_come_and_go_each_line_is_there_once(
        turns in prop::collection::vec(turn(), 1..40)
    ) {
        const EVENTS: usize = 20;
        let mut world = World::with_events(SEARCHES * EVENTS);
        let (mut given, mut saved, mut written) = ([0; SEARCHES], [0; SEARCHES], [0; SEARCHES]);
        let mut losses = 0;
        let rest = (0..SEARCHES).map(|search| Turn::Deliver(search, EVENTS));
        for turn in turns.into_iter().chain(rest) {
            match turn {
                Turn::Deliver(search, count) => {
                    let from = given[search];
                    let to = (from + count).min(EVENTS);
                    let past = Past {
                        is_inherited: from < written[search],
                        is_stored: given == saved,
                        losses,
                    };
                    let which: Vec<_> = (from..to).map(|it| it * SEARCHES + search).collect();
                    world.hand(past, &which);
                    given[search] = to;
                    written[search] = written[search].max(to);
                }
                Turn::Save => saved = given,
                Turn::Lose(search) => {
                    losses += u64::from(given[search] > saved[search]);
                    given[search] = saved[search];
                }
                Turn::Rotate => world.rotate(),
                Turn::Reopen => world.sink.reopen(),
            }
        }
        let sorted = |text: String| {
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        };
        prop_assert_eq!(sorted(world.content()), sorted(world.expected()));
    }
}
