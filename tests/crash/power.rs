//! Power cuts: SIGKILL at random moments. After each, all or some sectors of what was not synced
//! are removed from the files, because a disk may have kept any part of that. `strace` reports
//! what was written and what was synced.
//!
//! `OPSRAMP_TEST_KILLS` says how often, `OPSRAMP_TEST_SEED` repeats a run.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{ErrorKind, Write as _},
    time::{Duration, SystemTime},
};

use fastrand::Rng;
use opsramp_exporter::simulator::{DEMO_TENANT, Simulator};
use tokio::{process::Command, time::Instant};

use crate::{
    exporter::{Exporter, Members, PATIENCE, Place, needed, number, opsramp, seed},
    life::{Told, live},
    lines::{FILE, Story, wait_until_told},
    trace::{self, TRACE},
};

/// Number of power cuts if `OPSRAMP_TEST_KILLS` is not set.
const CUTS: usize = 25;

/// Duration of one step in the life of the alerts. With it, no more alerts leave than the exporter
/// can ask for within the allowance of its last life.
const STEP: Duration = Duration::from_millis(30);

/// Number of power cuts while the write-ahead log is copied into the state file. Each comes after
/// so many alerts that the log is long enough.
const CUTS_OF_CHECKPOINTS: usize = 3;
const ALERTS_OF_A_LONG_LOG: usize = 9000;

/// Number of bytes that a disk writes either completely or not at all.
const SECTOR: usize = 512;

/// Number of starts, each with files of its own, soon after which the power is cut.
const STARTS: usize = 10;

const STATE: &str = "state.db";

/// SQLite's write-ahead log.
const LOG: &str = "state.db-wal";

/// The lock, which a start takes before it opens the state file.
const LOCK: &str = "state.db.lock";

/// The files that have to outlive a power cut.
const FILES: [&str; 3] = [STATE, LOG, FILE];

/// The file with the shared memory of SQLite, which is worthless after a power cut.
const SHARED_MEMORY: &str = "state.db-shm";

/// The copy of the log file without the lines that lost bytes: only those lines hold zeros.
const CLEAN: &str = "clean.jsonl";

/// The content of the disk, and what is in memory only.
#[derive(Debug, Default)]
struct Disk {
    files: BTreeMap<&'static str, Kept>,
    changes: usize,
}

#[derive(Debug, Default)]
struct Kept {
    /// Whether the file's entry in the folder is synced.
    named: bool,
    synced: Vec<u8>,
    /// The changes since the last sync, each with its number.
    unsynced: Vec<(usize, Change)>,
    /// The length of the file, including unsynced changes.
    length: usize,
}

#[derive(Debug)]
enum Change {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

/// A system call that has begun.
#[derive(Debug)]
enum Call {
    Open(&'static str),
    Sync { name: &'static str, changes: usize },
    SyncFolder(Vec<&'static str>),
    Remove(&'static str),
    Other,
}

// === impl Disk ===

impl Disk {
    /// Reads the files as they are, and takes all of it for synced.
    fn of(place: &Place) -> Self {
        let mut disk = Self::default();
        for name in FILES {
            if let Ok(synced) = fs::read(place.path(name)) {
                let length = synced.len();
                let kept = Kept {
                    named: true,
                    synced,
                    length,
                    ..Kept::default()
                };
                disk.files.insert(name, kept);
            }
        }
        disk
    }

    /// Takes nothing of a file for synced, as of one that was copied here a moment ago.
    fn copied(mut self, name: &str) -> Self {
        let kept = self.files.get_mut(name).unwrap();
        kept.named = false;
        let bytes = std::mem::take(&mut kept.synced);
        kept.unsynced.push((0, Change::Write { at: 0, bytes }));
        self
    }

    /// Applies what a trace reports.
    fn replay(&mut self, place: &Place, trace: &str) {
        let folder = place.path("");
        let folder = folder.to_str().unwrap().trim_end_matches('/');
        let mut begun: BTreeMap<&str, Call> = BTreeMap::new();
        for line in trace.lines() {
            let (thread, rest) = line.split_once(' ').unwrap();
            let rest = rest.trim_start();
            if rest.starts_with("+++") || rest.starts_with("---") {
                continue;
            }
            if !rest.starts_with("<...") {
                begun.insert(thread, self.begin(folder, rest));
            }
            if let Some((_, result)) = rest.rsplit_once(" = ")
                && let Some(call) = begun.remove(thread)
                && !result.starts_with('-')
            {
                self.end(call);
            }
        }
    }

    fn begin(&mut self, folder: &str, line: &str) -> Call {
        let (call, arguments) = line.split_once('(').unwrap();
        let texts = || arguments.split('"').skip(1).step_by(2).map(unescape);
        let descriptor = || {
            let path = arguments.split_once('<').unwrap().1;
            unescape(path.split_once('>').unwrap().0)
        };
        let numbers = || {
            let numbers = arguments.split(") = ").next().unwrap();
            let numbers = numbers.trim_end_matches(" <unfinished ...>");
            numbers
                .trim_end_matches(')')
                .rsplit(", ")
                .map_while(|number| number.parse::<usize>().ok())
        };
        let ours = |path: &[u8]| {
            let name = path.strip_prefix(folder.as_bytes())?.strip_prefix(b"/")?;
            FILES.into_iter().find(|known| known.as_bytes() == name)
        };
        match call {
            "openat" if arguments.contains("O_CREAT") => {
                let path = texts().next().unwrap();
                ours(&path).map_or(Call::Other, Call::Open)
            }
            "write" | "pwrite64" => {
                if let Some(name) = ours(&descriptor()) {
                    let bytes = texts().next().unwrap();
                    let mut numbers = numbers();
                    let at = (call == "pwrite64").then(|| numbers.next().unwrap());
                    assert_eq!(numbers.next(), Some(bytes.len()), "{line:.300}");
                    let at = at.unwrap_or(self.files[name].length);
                    self.change(name, Change::Write { at, bytes });
                }
                Call::Other
            }
            "ftruncate" => {
                if let Some(name) = ours(&descriptor()) {
                    self.change(name, Change::Length(numbers().next().unwrap()));
                }
                Call::Other
            }
            "fsync" | "fdatasync" => {
                let path = descriptor();
                if path == folder.as_bytes() {
                    return Call::SyncFolder(self.files.keys().copied().collect());
                }
                ours(&path).map_or(Call::Other, |name| Call::Sync {
                    name,
                    changes: self.changes,
                })
            }
            "unlink" | "unlinkat" | "rename" => {
                let path = texts().next().unwrap();
                match ours(&path) {
                    None => Call::Other,
                    // A log without a state file, or with an empty one, is removed at the start.
                    Some(LOG) if self.files.get(STATE).is_none_or(|state| state.length == 0) => {
                        Call::Remove(LOG)
                    }
                    Some(_) => panic!("{line}"),
                }
            }
            _ => Call::Other,
        }
    }

    fn change(&mut self, name: &str, change: Change) {
        self.changes += 1;
        let kept = self.files.get_mut(name).unwrap();
        kept.length = match &change {
            Change::Write { at, bytes } => kept.length.max(at + bytes.len()),
            Change::Length(length) => *length,
        };
        kept.unsynced.push((self.changes, change));
    }

    fn end(&mut self, call: Call) {
        match call {
            Call::Open(name) => {
                self.files.entry(name).or_default();
            }
            Call::Sync { name, changes } => {
                let kept = self.files.get_mut(name).unwrap();
                let later = kept.unsynced.partition_point(|(n, _)| *n <= changes);
                for (_, change) in kept.unsynced.drain(..later) {
                    change.apply(&mut kept.synced, || true);
                }
            }
            Call::SyncFolder(names) => {
                for name in names {
                    if let Some(kept) = self.files.get_mut(name) {
                        kept.named = true;
                    }
                }
            }
            Call::Remove(name) => {
                self.files.remove(name);
            }
            Call::Other => {}
        }
    }

    /// Leaves in the files what is synced, and nothing, a part or all of the rest. The files stay
    /// the same inodes. Returns how many changes had not been synced.
    fn cut(self, place: &Place, rng: &mut Rng) -> usize {
        let mut unsynced = 0;
        for (name, kept) in self.files {
            if !kept.named && rng.bool() {
                // It may be gone already, where the power was cut while it was removed.
                if let Err(error) = fs::remove_file(place.path(name)) {
                    assert_eq!(error.kind(), ErrorKind::NotFound);
                }
                continue;
            }
            unsynced += kept.unsynced.len();
            let luck = *rng.choice(&[0.0, 0.5, 0.9, 1.0]).unwrap();
            let mut content = kept.synced;
            for (_, change) in kept.unsynced {
                change.apply(&mut content, || rng.f64() < luck);
            }
            overwrite(place, name, &content);
        }
        let shared = fs::metadata(place.path(SHARED_MEMORY)).map_or(0, |file| file.len());
        let noise: Vec<u8> = (0..shared).map(|_| rng.u8(..)).collect();
        overwrite(place, SHARED_MEMORY, &noise);
        unsynced
    }
}

fn overwrite(place: &Place, name: &str, content: &[u8]) {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(place.path(name));
    file.unwrap().write_all(content).unwrap();
}

// === impl Change ===

impl Change {
    /// Applies the change to a file's content, but each sector only if it is `kept`.
    fn apply(self, content: &mut Vec<u8>, mut kept: impl FnMut() -> bool) {
        match self {
            Self::Write { mut at, bytes } => {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let size = (SECTOR - at % SECTOR).min(rest.len());
                    let (sector, others) = rest.split_at(size);
                    if kept() {
                        if content.len() < at + size {
                            content.resize(at + size, 0);
                        }
                        content[at..at + size].copy_from_slice(sector);
                    }
                    at += size;
                    rest = others;
                }
            }
            Self::Length(length) => {
                if kept() {
                    content.resize(length, 0);
                }
            }
        }
    }
}

/// Returns the bytes of a string that `strace -xx` wrote.
fn unescape(text: &str) -> Vec<u8> {
    let bytes = text.split("\\x").skip(1);
    bytes
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

/// Returns the command for the daemon under a tracer that reports what is written, byte by byte,
/// and what is synced.
fn traced(place: &Place) -> Command {
    let [state, log, lines] = FILES;
    let calls = [
        "openat",
        "write",
        "pwrite64",
        "ftruncate",
        "fsync",
        "fdatasync",
        "unlink",
        "unlinkat",
        "rename",
    ];
    let options = ["-y", "-xx", "-s", "100000000"];
    // The empty name stands for the folder, which is synced, too.
    trace::traced(place, &[state, log, lines, ""], &calls, options)
}

/// The life of the daemon under a tracer, until the power is cut.
struct Life<'a> {
    place: &'a Place,
    disk: Disk,
    exporter: Exporter,
}

// === impl Life ===

impl<'a> Life<'a> {
    fn begin(place: &'a Place) -> Self {
        Self::begin_with(place, Disk::of(place))
    }

    fn begin_with(place: &'a Place, disk: Disk) -> Self {
        Self {
            place,
            disk,
            exporter: place.spawn(traced(place)),
        }
    }

    /// Cuts the power. Returns how many changes of the files had not been synced.
    async fn cut(mut self, rng: &mut Rng) -> usize {
        let pid = self.exporter.id().to_string();
        let ended = self.exporter.kill().await;
        assert_eq!(ended.code(), None, "ended by itself: {}", ended.error());
        // The tracer outlives the daemon by a moment; its last line is about the first thread.
        let deadline = Instant::now() + PATIENCE;
        let trace = loop {
            let trace = self.place.text_of(TRACE);
            let last = trace.lines().last().unwrap_or_default();
            if last.split_once(' ').is_some_and(|(thread, end)| {
                thread == pid && end.trim_start().starts_with("+++ killed")
            }) {
                break trace;
            }
            assert!(Instant::now() < deadline, "the trace has no end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        self.disk.replay(self.place, &trace);
        fs::remove_file(self.place.path(TRACE)).unwrap();
        self.disk.cut(self.place, rng)
    }
}

/// Returns the log file's text. Where bytes were lost, a part of a character may be left.
fn text(place: &Place) -> String {
    let bytes = fs::read(place.path(FILE)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns the log file's text without the lines that lost bytes.
fn clean(place: &Place) -> String {
    let text = text(place);
    let whole = text.split_inclusive('\n');
    whole.filter(|line| !line.contains('\0')).collect()
}

/// A reader of the log file while it is written, which starts again from the beginning after a
/// power cut.
#[derive(Default)]
struct Follower {
    offset: usize,
    told: Told,
}

// === impl Follower ===

impl Follower {
    /// Notes the lines since the last look.
    fn follow(&mut self, place: &Place) {
        let text = text(place);
        for line in text[self.offset..].split_inclusive('\n') {
            if !line.ends_with('\n') {
                break;
            }
            self.offset += line.len();
            if line.contains('\0') {
                continue;
            }
            self.told.note(&Members::parse(line));
        }
    }

    fn begin_anew(&mut self) {
        self.offset = 0;
    }
}

/// When a file was last written to, if it exists.
fn written(place: &Place, name: &str) -> Option<SystemTime> {
    let file = fs::metadata(place.path(name)).ok()?;
    Some(file.modified().unwrap())
}

/// Waits until somebody has written to a file since `before`.
async fn wait_until_written(place: &Place, name: &str, before: Option<SystemTime>) {
    let deadline = Instant::now() + PATIENCE;
    while written(place, name) == before {
        assert!(Instant::now() < deadline, "nobody writes to {name}");
        // While asleep, the test would miss the moment.
        tokio::task::yield_now().await;
    }
}

/// Checks that there is a tracer, and tells the seed of the numbers that it returns.
fn prepared() -> Rng {
    needed("strace", "strace");
    let seed = seed();
    eprintln!("OPSRAMP_TEST_SEED={seed}");
    Rng::with_seed(seed)
}

/// Starts the daemon a last time and waits until the file has all that has happened.
async fn judge(place: &Place, opsramp: &Simulator) -> Story {
    let exporter = place.start().await;
    let look = || {
        fs::write(place.path(CLEAN), clean(place)).unwrap();
        Story::judge(place, &[CLEAN.to_owned()], opsramp)
    };
    wait_until_told(look).await;
    exporter.wait_for_poll().await;
    exporter.stop().await;
    look().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_is_lost_or_doubled_by_power_cuts() {
    let mut rng = prepared();
    let cuts = number("OPSRAMP_TEST_KILLS").map_or(CUTS, |cuts| cuts as usize);
    eprintln!("{cuts} power cuts");
    let opsramp = opsramp(30).await;
    let mut place = Place::new(&opsramp.url()).with_file_sink();
    place.config["searches"][0]["full_read_interval"] = "500ms".into();
    place.write();
    let mut follower = Follower::default();
    let mut unsynced = 0;
    for _ in 0..cuts {
        let life = Life::begin(&place);
        for _ in 0..rng.u8(2..20) {
            tokio::time::sleep(STEP).await;
            follower.follow(&place);
            live(&opsramp, &mut follower.told, &mut rng);
        }
        // The cut often comes at the moment between a write and its sync.
        if let Some(name) = rng.choice(&[None, Some(FILE), Some(LOG)]).unwrap() {
            let before = written(&place, name);
            opsramp.open_many(DEMO_TENANT, 20).unwrap();
            wait_until_written(&place, name, before).await;
        }
        unsynced += life.cut(&mut rng).await;
        follower.begin_anew();
    }
    let story = judge(&place, &opsramp).await;
    story.expect_reasons();
    let garbled = text(&place).lines().count() - place.text_of(CLEAN).lines().count();
    eprintln!(
        "{} opened, {} changed, {} left; {unsynced} changes were not synced, {garbled} lines lost bytes",
        story.count("opened"),
        story.count("changed"),
        story.count("left"),
    );
    assert!(unsynced > 0, "nothing was cut off");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_while_the_log_is_copied_harms_nothing() {
    let mut rng = prepared();
    let opsramp = opsramp(0).await;
    let place = Place::new(&opsramp.url()).with_file_sink();
    place.start().await.stop().await;
    for _ in 0..CUTS_OF_CHECKPOINTS {
        opsramp
            .open_many(DEMO_TENANT, ALERTS_OF_A_LONG_LOG)
            .unwrap();
        let before = written(&place, STATE);
        let life = Life::begin(&place);
        wait_until_written(&place, STATE, before).await;
        tokio::time::sleep(Duration::from_millis(rng.u64(..150))).await;
        life.cut(&mut rng).await;
    }
    let story = judge(&place, &opsramp).await;
    assert_eq!(
        story.count("opened"),
        CUTS_OF_CHECKPOINTS * ALERTS_OF_A_LONG_LOG
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cuts_during_the_first_start_harm_nothing() {
    let mut rng = prepared();
    for _ in 0..STARTS {
        let opsramp = opsramp(30).await;
        let place = Place::new(&opsramp.url()).with_file_sink();
        place.write();
        let life = Life::begin(&place);
        wait_until_written(&place, rng.choice(FILES).unwrap(), None).await;
        tokio::time::sleep(Duration::from_micros(rng.u64(..10_000))).await;
        life.cut(&mut rng).await;
        // The second cut often comes while the start is made good.
        let before = written(&place, LOCK);
        let life = Life::begin(&place);
        wait_until_written(&place, LOCK, before).await;
        tokio::time::sleep(Duration::from_millis(rng.u64(..50))).await;
        life.cut(&mut rng).await;
        let story = judge(&place, &opsramp).await;
        assert_eq!(story.count("opened"), 30);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_after_the_state_was_copied_to_its_place_harms_nothing() {
    let mut rng = prepared();
    for _ in 0..STARTS {
        let opsramp = opsramp(30).await;
        let place = Place::new(&opsramp.url()).with_file_sink();
        let exporter = place.start().await;
        exporter.wait_until_complete().await;
        exporter.stop().await;
        opsramp.open_many(DEMO_TENANT, 5).unwrap();
        let life = Life::begin_with(&place, Disk::of(&place).copied(STATE));
        wait_until_written(&place, LOG, None).await;
        tokio::time::sleep(Duration::from_millis(rng.u64(..50))).await;
        life.cut(&mut rng).await;
        let story = judge(&place, &opsramp).await;
        assert_eq!(story.count("opened"), 35);
    }
}
