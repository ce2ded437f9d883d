//! The lines of the log file, which are read as they come and judged in the end.

#![allow(dead_code, reason = "each test crate uses its own part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::unix::fs::FileExt as _,
};

use opsramp_exporter::simulator::{ChangeKind, Simulator, Snapshot, Status};

use tokio::time::{Duration, Instant};

use crate::{
    exporter::{Members, PATIENCE, Place},
    life::Told,
};

pub(crate) const FILE: &str = "alerts.jsonl";

/// Reads the log file from where it left off. Also reads the file that was last moved away,
/// because a line that was being written at that moment ends up there.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    offset: u64,
    offset_before: u64,
    rotated: usize,
    pub(crate) told: Told,
    pub(crate) lines: usize,
}

/// The lines of all files.
#[derive(Debug)]
pub(crate) struct Story {
    /// The lines of each alert, in their order.
    lines: BTreeMap<String, Vec<Members>>,
}

/// The names of the rotated files, oldest first, and of the current one.
pub(crate) fn files(rotated: usize) -> Vec<String> {
    let old = (1..=rotated).map(|number| format!("{FILE}.{number}"));
    old.chain([FILE.to_owned()]).collect()
}

/// Waits until the files tell all that has happened.
pub(crate) async fn wait_for_story(place: &Place, files: &[String], opsramp: &Simulator) -> Story {
    wait_until_told(|| Story::judge(place, files, opsramp)).await
}

/// Waits until `look` finds that all that has happened is told.
pub(crate) async fn wait_until_told(look: impl Fn() -> Result<Story, String>) -> Story {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(story) => return story,
            Err(why) => assert!(Instant::now() < deadline, "{why}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

// === impl Reader ===

impl Reader {
    /// Reads the new lines that are complete.
    pub(crate) fn read(&mut self, place: &Place) {
        if self.rotated > 0 {
            let before = format!("{FILE}.{}", self.rotated);
            self.offset_before = self.read_from(place, &before, self.offset_before);
        }
        self.offset = self.read_from(place, FILE, self.offset);
    }

    /// Returns the offset up to which the file is read now.
    fn read_from(&mut self, place: &Place, name: &str, offset: u64) -> u64 {
        let Ok(file) = File::open(place.path(name)) else {
            return offset;
        };
        let size = file.metadata().unwrap().len();
        assert!(size >= offset, "{name} has become shorter");
        let mut new = vec![0; usize::try_from(size - offset).unwrap()];
        file.read_exact_at(&mut new, offset).unwrap();
        let whole = new.iter().rposition(|byte| *byte == b'\n');
        let whole = whole.map_or(0, |last| last + 1);
        for line in new[..whole].split(|byte| *byte == b'\n') {
            if line.is_empty() {
                continue;
            }
            self.lines += 1;
            let line = std::str::from_utf8(line).unwrap();
            self.told.note(&Members::parse(line));
        }
        offset + whole as u64
    }

    /// Moves the file away, like logrotate.
    pub(crate) fn rotate(&mut self, place: &Place) {
        self.read(place);
        let name = format!("{FILE}.{}", self.rotated + 1);
        if std::fs::rename(place.path(FILE), place.path(&name)).is_ok() {
            self.rotated += 1;
            self.offset_before = self.offset;
            self.offset = 0;
        }
    }

    pub(crate) fn files(&self) -> Vec<String> {
        files(self.rotated)
    }
}

// === impl Story ===

impl Story {
    /// Reads the files. Panics if an event is told twice. A last line that is not complete yet is
    /// an error, because its rest may still come.
    fn read(place: &Place, files: &[String]) -> Result<Self, String> {
        let mut lines: BTreeMap<String, Vec<Members>> = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for name in files {
            let told = place.text_of(name);
            if !(told.is_empty() || told.ends_with('\n')) {
                return Err(format!("{name} ends with a torn line"));
            }
            for line in told.lines() {
                let record = Members::parse(line);
                let id = record.text("event_id").to_owned();
                assert!(ids.insert(id), "doubled in {name}: {line}");
                let alert = record.text("alert_id").to_owned();
                lines.entry(alert).or_default().push(record);
            }
        }
        Ok(Self { lines })
    }

    pub(crate) fn count(&self, event: &str) -> usize {
        let all = self.lines.values().flatten();
        all.filter(|record| record.text("event") == event).count()
    }

    /// Panics if an alert left without a reason.
    pub(crate) fn expect_reasons(&self) {
        let all = self.lines.values().flatten();
        let unexplained: Vec<_> = all
            .filter(|record| record.text("reason") == "unknown")
            .collect();
        assert!(unexplained.is_empty(), "{unexplained:#?}");
    }

    /// Reads the files and compares them with what happened. Each alert must have one line that
    /// opens it, a chain of changes without a gap, and one line that ends it if it is not open any
    /// more. Only alerts whose opening was told may have been made to leave before.
    ///
    /// A missing line is an error, because it may still come; a wrong line is a panic.
    pub(crate) fn judge(
        place: &Place,
        files: &[String],
        opsramp: &Simulator,
    ) -> Result<Self, String> {
        let story = Self::read(place, files)?;
        let opened = ever_opened(opsramp);
        let told: BTreeSet<String> = story.lines.keys().cloned().collect();
        let made_up: Vec<_> = told.difference(&opened).collect();
        assert!(made_up.is_empty(), "made up: {made_up:?}");
        let lost: Vec<_> = opened.difference(&told).collect();
        if !lost.is_empty() {
            return Err(format!("{} lost: {lost:?}", lost.len()));
        }
        for (alert, lines) in &story.lines {
            let now = opsramp.world(|world, _| {
                let id = world.find(alert).unwrap();
                world.snapshot(id).unwrap()
            });
            judge_alert(lines, &now).map_err(|why| {
                let lines: Vec<String> = lines.iter().map(brief).collect();
                format!("alert {alert}: {why}: {lines:#?}")
            })?;
        }
        Ok(story)
    }
}

fn ever_opened(opsramp: &Simulator) -> BTreeSet<String> {
    let all = opsramp.world(|world, _| world.changes_since(0));
    let opened = all.into_iter().filter(|it| it.what == ChangeKind::Opened);
    opened.map(|it| it.alert_id).collect()
}

fn judge_alert(lines: &[Members], now: &Snapshot) -> Result<(), &'static str> {
    let events: Vec<&str> = lines.iter().map(|line| line.text("event")).collect();
    let (first, later) = events.split_first().unwrap();
    assert_eq!(*first, "opened", "{lines:#?}");
    assert!(!later.contains(&"opened"), "{lines:#?}");
    for pair in lines.windows(2) {
        assert_ne!(pair[0].text("event"), "left", "{lines:#?}");
        if pair[0].text("state") != pair[1].text("previous_state") {
            return Err("a change is missing");
        }
    }
    let last = lines.last().unwrap();
    let is_open = now.status == Status::New;
    if is_open == (last.text("event") == "left") {
        return Err("it does not end as it should");
    }
    if last.text("reason") == "unknown" {
        // The exporter could not ask what has become of the alert.
        return Ok(());
    }
    if last.text("state") != now.state.name() || last.text("status") != now.status.name() {
        return Err("the last line is not the last word");
    }
    Ok(())
}

fn brief(line: &Members) -> String {
    let keys = [
        "event",
        "previous_state",
        "state",
        "previous_status",
        "status",
        "reason",
    ];
    keys.map(|key| line.text(key)).join(" ")
}
