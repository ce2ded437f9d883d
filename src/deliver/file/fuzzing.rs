//! What must hold for a log file, whatever happens to the file and to its writer.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
};

use tempfile::TempDir;
use tokio::sync::watch;

use super::{LogFile, Mark};
use crate::{
    deliver::{
        Format,
        fuzzing::{line, pending, record},
        sink::Writer as _,
    },
    fuzzing::{self, Choices},
    store::Pending,
};

/// Names that the file has one after the other: the configuration may change it at a start.
const NAMES: [&str; 3] = ["alerts.jsonl", "alerts.log", "other.jsonl"];

/// A sink, the journal it reads, and a store that keeps what is saved across crashes.
struct World {
    folder: TempDir,
    events: Vec<Pending>,
    sink: LogFile,
    format: Format,
    name: &'static str,
    /// What the running process knows …
    at: Place,
    /// … and what the store would tell the next one.
    saved: Place,
    /// The journal ends behind so many events.
    journalled: watch::Sender<i64>,
    /// Up to here, a sink of another name may have written events.
    lent: usize,
    rotations: usize,
}

#[derive(Clone, Default)]
struct Place {
    cursor: usize,
    mark: Option<Vec<u8>>,
}

/// Checks that each event is exactly one whole line in the end, whatever happens: crashes in the
/// middle of a write, after it or after the acknowledgement, rotations, other writers of the file,
/// and starts with another format or another name of the file.
///
/// # Panics
/// If an event has no line or several.
pub fn torn_file(data: &[u8]) {
    let mut choices = Choices::new(data);
    let mut world = World::new(&mut choices);
    for _ in 0..48 {
        if choices.is_empty() {
            break;
        }
        match choices.below(256) {
            // These steps came later: what the corpus holds of lower bytes has kept its meaning.
            step @ 200.. => match step % 5 {
                0 => world.change_format(),
                1 => world.change_name(choices.below(NAMES.len())),
                2 => world.copy_and_truncate(),
                3 => world.journal(choices.below(8)),
                _ => world.lend(choices.below(6), choices.below(256)),
            },
            step => match step % 7 {
                0 => world.deliver(choices.below(6)),
                1 => world.saved = world.at.clone(),
                2 => world.crash(),
                3 => {
                    let before = world.size();
                    world.deliver_unsaved(choices.below(6));
                    world.tear(before, choices.below(256));
                    world.crash();
                }
                4 => world.rotate(),
                5 => world.sink.reopen(),
                _ => {
                    let length = choices.below(16);
                    world.disturb(choices.take(length));
                }
            },
        }
    }
    world.deliver(usize::MAX);
    world.check();
}

impl World {
    fn new(choices: &mut Choices<'_>) -> Self {
        let folder = fuzzing::folder();
        let events = (1..5 + choices.below(16))
            .zip(1..)
            .map(|(number, position)| {
                let length = choices.below(24);
                let text = choices.take(length).iter();
                let text: String = text.map(|byte| char::from(byte & 0x1f | b'@')).collect();
                pending(position, record(&format!("{number}:{text}")))
            })
            .collect();
        let mut world = Self {
            sink: LogFile::new(PathBuf::new(), Format::Json),
            format: Format::Json,
            name: NAMES[0],
            folder,
            events,
            at: Place::default(),
            saved: Place::default(),
            journalled: watch::Sender::new(0),
            lent: 0,
            rotations: 0,
        };
        world.crash();
        world
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join(self.name)
    }

    fn size(&self) -> u64 {
        fs::metadata(self.path()).map_or(0, |metadata| metadata.len())
    }

    fn truncate(&self, size: u64) {
        if let Ok(file) = OpenOptions::new().write(true).open(self.path()) {
            file.set_len(size).expect("a file can be made shorter");
        }
    }

    /// Takes what was appended since the file had `before` bytes away again, but for some lines
    /// and a part of the next one.
    fn tear(&self, before: u64, kept: usize) {
        let content = fs::read(self.path()).unwrap_or_default();
        let Some(appended) = content.get(before as usize..) else {
            return;
        };
        let mut lines = appended
            .split_inclusive(|byte| *byte == b'\n')
            .map(<[u8]>::len);
        let whole: usize = lines.by_ref().take(kept % 6).sum();
        let part = lines.next().map_or(0, |next| match kept / 6 {
            42 => next - 1,
            part => next * part / 42,
        });
        self.truncate(before + (whole + part) as u64);
    }

    fn deliver(&mut self, count: usize) {
        self.deliver_unsaved(count);
        let inode = |place: &Place| Some(Mark::decode(place.mark.as_deref()?)?.0.inode);
        if inode(&self.at) != inode(&self.saved) || self.is_beside_a_copy() {
            // A sink is given the next file long after an acknowledgement was stored.
            self.saved = self.at.clone();
        }
    }

    fn deliver_unsaved(&mut self, count: usize) {
        let end = self.at.cursor.saturating_add(count).min(self.events.len());
        self.journal_up_to(end);
        while self.at.cursor < end {
            let progress = self.sink.deliver(&self.events[self.at.cursor..end]);
            assert!(progress.error.is_none(), "{:?}", progress.error);
            self.at.cursor += progress.settled;
            self.at.mark = progress.mark;
            if self.at.cursor < end {
                // The sink goes on only after this progress was acknowledged.
                self.saved = self.at.clone();
            }
        }
    }

    fn crash(&mut self) {
        self.at = self.saved.clone();
        self.sink = self.start(self.at.mark.as_deref());
    }

    fn start(&self, mark: Option<&[u8]>) -> LogFile {
        LogFile::new(self.path(), self.format)
            .resume_at(mark)
            .with_journalled(self.journalled.subscribe())
    }

    fn change_format(&mut self) {
        self.format = self.format.other();
        self.crash();
    }

    fn change_name(&mut self, which: usize) {
        if !self.is_beside_a_copy() && !self.is_lent() {
            self.name = NAMES[which];
        }
        self.crash();
    }

    fn journal(&self, count: usize) {
        let journalled = *self.journalled.borrow() as usize + count;
        self.journal_up_to(journalled.min(self.events.len()));
    }

    fn journal_up_to(&self, end: usize) {
        self.journalled
            .send_modify(|journalled| *journalled = (*journalled).max(end as i64));
    }

    /// Gives the path to a sink of another name for a while. Such a sink writes what is journalled
    /// from then on.
    fn lend(&mut self, count: usize, kept: usize) {
        if self.is_beside_a_copy() {
            return;
        }
        let begin = *self.journalled.borrow() as usize;
        self.journal(count);
        let end = *self.journalled.borrow() as usize;
        let before = self.size();
        // The lock must be free.
        self.crash();
        let mut other = self.start(None);
        let mut cursor = begin;
        while cursor < end {
            let progress = other.deliver(&self.events[cursor..end]);
            assert!(progress.error.is_none(), "{:?}", progress.error);
            cursor += progress.settled;
        }
        self.tear(before, kept);
        self.lent = end;
    }

    /// Whether there may be lines that a sink of another name has written and this one does not
    /// know yet. It finds them only where it goes on itself.
    fn is_lent(&self) -> bool {
        self.saved.cursor < self.lent
    }

    /// Moves the file away, as logrotate does.
    fn rotate(&mut self) {
        if self.path().exists() && !self.is_beside_a_copy() && !self.is_lent() {
            fs::rename(self.path(), self.next_rotated()).expect("a file can be moved");
        }
    }

    /// Does what logrotate does with `copytruncate`. Only if the store knows the file, so that its
    /// copy can be recognised.
    fn copy_and_truncate(&mut self) {
        if let Some((mark, file)) = self.saved_mark()
            && mark.offset > 0
            && mark.fits(&file)
            && !self.is_lent()
        {
            fs::copy(self.path(), self.next_rotated()).expect("a file can be copied");
            self.truncate(0);
        }
    }

    fn next_rotated(&mut self) -> PathBuf {
        self.rotations += 1;
        let name = format!("{}.{}", self.name, self.rotations);
        self.folder.path().join(name)
    }

    /// Whether the store knows the file as it was before `copytruncate`. Until it has heard of the
    /// file as it is now, the copy is found by its name, which must go with the file's.
    fn is_beside_a_copy(&self) -> bool {
        self.saved_mark().is_some_and(|(mark, file)| {
            let metadata = file.metadata().expect("the file is there");
            metadata.ino() == mark.inode && !mark.fits(&file)
        })
    }

    fn saved_mark(&self) -> Option<(Mark, File)> {
        let (mark, _) = Mark::decode(self.saved.mark.as_deref()?)?;
        Some((mark, File::open(self.path()).ok()?))
    }

    /// Simulates another writer of the file, which never writes what could be an event's line.
    fn disturb(&self, bytes: &[u8]) {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.path())
            .expect("the file can be opened");
        let mut written = vec![b'#'];
        for byte in bytes {
            written.push(*byte);
            if *byte == b'\n' {
                written.push(b'#');
            }
        }
        file.write_all(&written).expect("the file can be written");
    }

    fn check(&self) {
        let mut lines: Vec<Vec<u8>> = Vec::new();
        for entry in fs::read_dir(self.folder.path()).expect("the folder is there") {
            let path = entry.expect("the folder can be read").path();
            let content = fs::read(&path).expect("the file can be read");
            lines.extend(content.split(|byte| *byte == b'\n').map(<[u8]>::to_vec));
        }
        for Pending { event, .. } in &self.events {
            let forms = [Format::Json, Format::Logfmt].map(|format| line(format, &event.body));
            let is_it = |line: &[u8]| forms.iter().any(|form| form.trim_ascii_end() == line);
            let count = lines.iter().filter(|line| is_it(line)).count();
            assert_eq!(
                count,
                1,
                "{} is there {count} times",
                String::from_utf8_lossy(&event.body)
            );
        }
    }
}
