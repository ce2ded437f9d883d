//! What must hold for a log file, whatever happens to the file and to its writer.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::PathBuf,
};

use tempfile::TempDir;

use super::{LogFile, Mark};
use crate::{
    deliver::{Format, fuzzing::pending, sink::Writer as _},
    fuzzing::{self, Choices},
    store::Pending,
};

/// A sink, the journal it reads, and a store that keeps what is saved across crashes.
struct World {
    folder: TempDir,
    events: Vec<Pending>,
    sink: LogFile,
    /// What the running process knows …
    at: Place,
    /// … and what the store would tell the next one.
    saved: Place,
    rotations: usize,
}

#[derive(Clone, Default)]
struct Place {
    cursor: usize,
    mark: Option<Vec<u8>>,
}

/// Checks that each event is exactly one whole line in the end, whatever happens: crashes in the
/// middle of a write, after it or after the acknowledgement, rotations, and other writers of the
/// file.
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
        match choices.below(7) {
            0 => world.deliver(choices.below(6)),
            1 => world.saved = world.at.clone(),
            2 => world.crash(),
            3 => {
                let before = world.size();
                world.deliver_unsaved(choices.below(6));
                let kept = (choices.below(256) as u64).min(world.size().saturating_sub(before));
                world.truncate(before + kept);
                world.crash();
            }
            4 => world.rotate(),
            5 => world.sink.reopen(),
            _ => {
                let length = choices.below(16);
                world.disturb(choices.take(length));
            }
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
                let text = choices.take(length).iter().map(|byte| byte & 0x1f | b'@');
                pending(
                    position,
                    format!("{number}:")
                        .into_bytes()
                        .into_iter()
                        .chain(text)
                        .collect(),
                )
            })
            .collect();
        Self {
            sink: LogFile::new(folder.path().join("alerts.jsonl"), Format::Json),
            folder,
            events,
            at: Place::default(),
            saved: Place::default(),
            rotations: 0,
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("alerts.jsonl")
    }

    fn size(&self) -> u64 {
        fs::metadata(self.path()).map_or(0, |metadata| metadata.len())
    }

    fn truncate(&self, size: u64) {
        if let Ok(file) = OpenOptions::new().write(true).open(self.path()) {
            file.set_len(size).expect("a file can be made shorter");
        }
    }

    fn deliver(&mut self, count: usize) {
        self.deliver_unsaved(count);
        let inode = |place: &Place| Some(Mark::decode(place.mark.as_deref()?)?.0.inode);
        if inode(&self.at) != inode(&self.saved) {
            // A sink is given the next file long after an acknowledgement was stored.
            self.saved = self.at.clone();
        }
    }

    fn deliver_unsaved(&mut self, count: usize) {
        let end = self.at.cursor.saturating_add(count).min(self.events.len());
        loop {
            let progress = self.sink.deliver(&self.events[self.at.cursor..end]);
            assert!(progress.error.is_none(), "{:?}", progress.error);
            self.at.cursor += progress.settled;
            self.at.mark = progress.mark;
            if self.at.cursor == end {
                return;
            }
            // The sink goes on only after this progress was acknowledged.
            self.saved = self.at.clone();
        }
    }

    fn crash(&mut self) {
        self.at = self.saved.clone();
        self.sink = LogFile::new(self.path(), Format::Json).resume_at(self.at.mark.as_deref());
    }

    fn rotate(&mut self) {
        if self.path().exists() {
            self.rotations += 1;
            let to = self.path().with_extension(self.rotations.to_string());
            fs::rename(self.path(), to).expect("a file can be moved");
        }
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
        for event in &self.events {
            let body = &event.event.body;
            let count = lines.iter().filter(|line| *line == body).count();
            assert_eq!(
                count,
                1,
                "{} is there {count} times",
                String::from_utf8_lossy(body)
            );
        }
    }
}
