//! Every single write and sync of a scripted run fails: by SIGKILL before it happens, with an I/O
//! error, or as on a full disk. It fails once, or from then on until the process is killed.
//! `strace` injects the failures.
//!
//! A first run counts the system calls. Each call is then a point at which one run fails. There
//! are hundreds of points, so an ordinary run takes a sample and prints its seed
//! (`OPSRAMP_TEST_SEED`). `OPSRAMP_TEST_INJECT=all` takes all points.

use std::{collections::BTreeMap, time::Duration};

use fastrand::Rng;
use futures_util::{StreamExt as _, stream};
use opsramp_exporter::simulator::{Action, DEMO_TENANT, Simulator, State};
use tokio::{process::Command, time::Instant};

use crate::{
    exporter::{Exporter, PATIENCE, Place, Signal, needed, opsramp, seed},
    lines::{FILE, Story, files},
    trace,
};

/// Number of runs in a sample.
const SAMPLE: usize = 60;

/// Number of runs at the same time; mostly they wait for the next poll.
const AT_ONCE: usize = 4;

/// The targets whose system calls fail: their names, files and calls.
const TARGETS: [(&str, &[&str], &[&str]); 3] = [
    (
        "the state",
        &["state.db", "state.db-wal", "state.db-shm", "state.db.lock"],
        &[
            "openat",
            "write",
            "pwrite64",
            "ftruncate",
            "fsync",
            "fdatasync",
            "unlink",
            "pread64",
        ],
    ),
    (
        "the log file",
        &[FILE, "alerts.jsonl.1", ""],
        &[
            "openat",
            "write",
            "pwrite64",
            "fsync",
            "fdatasync",
            "pread64",
            "fcntl",
        ],
    ),
    // Requests to OpsRamp. Calls of `sendto` are left out, because the runtime uses them to hand
    // signals on to itself.
    ("the network", &[], &["writev"]),
];

const NETWORK: usize = 2;

/// How a system call fails, and whether all later ones do as well.
const FAILURES: [(&str, bool); 5] = [
    (KILL, false),
    ("error=EIO", false),
    ("error=ENOSPC", false),
    ("error=EIO", true),
    ("error=ENOSPC", true),
];

const KILL: &str = "signal=SIGKILL";

/// How long a process may go on trying if its calls fail for good.
const TRIES: Duration = Duration::from_millis(600);

/// A system call of the scripted run, and how it fails.
#[derive(Clone, Copy, Debug)]
struct Point {
    /// The index in [`TARGETS`].
    target: usize,
    call: &'static str,
    /// The number of the call among those of its thread, from 1.
    number: usize,
    failure: &'static str,
    lasting: bool,
}

/// Points that once revealed a fault are tried every time.
const FOUND: [Point; 1] = [
    // The exporter gave a rotated file up that could not be synced, and wrote its lines again.
    Point {
        target: 1,
        call: "fdatasync",
        number: 2,
        failure: "error=EIO",
        lasting: true,
    },
];

/// A scripted run.
struct Play {
    opsramp: Simulator,
    place: Place,
    /// `None` between an end and the next start.
    exporter: Option<Exporter>,
    /// Whether the process is to be killed if its tries lead to nothing.
    hopeless: bool,
    rotated: usize,
}

// === impl Play ===

impl Play {
    /// Runs the whole script, the first process under `strace`, and later ones without it. Returns
    /// the trace.
    async fn run(point: Option<Point>, target: usize) -> String {
        let opsramp = opsramp(3).await;
        let place = Place::new(&opsramp.url()).with_file_sink();
        place.write();
        let mut play = Self {
            exporter: Some(place.spawn(traced(&place, target, point))),
            hopeless: point.is_some_and(|point| point.lasting),
            opsramp,
            place,
            rotated: 0,
        };
        play.wait_for_story().await;
        let ids = play.opsramp.open_many(DEMO_TENANT, 2).unwrap();
        play.wait_for_story().await;
        let state = play
            .opsramp
            .world(|world, _| world.snapshot(ids[0]).unwrap().state);
        let other = if state == State::Critical {
            State::Ok
        } else {
            State::Critical
        };
        play.opsramp.set_state(ids[0], other).unwrap();
        play.wait_for_story().await;
        play.opsramp.act(ids[1], Action::Acknowledge).unwrap();
        play.wait_for_story().await;
        play.rotate();
        play.opsramp.open_many(DEMO_TENANT, 2).unwrap();
        play.wait_for_story().await;
        if let Some(exporter) = play.exporter.take() {
            exporter.signal(Signal::TERM);
            check_end(point, exporter).await;
        }
        // Whatever the last process left behind: nothing is repeated, nothing is missing.
        let exporter = play.place.start().await;
        exporter.wait_until_complete().await;
        exporter.wait_for_poll().await;
        exporter.stop().await;
        let story = Story::judge(&play.place, &files(play.rotated), &play.opsramp).unwrap();
        let told = ["opened", "changed", "left"].map(|event| story.count(event));
        assert_eq!(told, [7, 1, 1]);
        // The exporter asks once why an alert left. If that request fails, the reason stays
        // unknown.
        if target != NETWORK {
            story.expect_reasons();
        }
        play.place.text_of(trace::TRACE)
    }

    /// Waits until the files have all that has happened; starts the process again if it has ended.
    async fn wait_for_story(&mut self) {
        let began = Instant::now();
        loop {
            let judged = Story::judge(&self.place, &files(self.rotated), &self.opsramp);
            let Err(why) = judged else {
                return;
            };
            assert!(
                began.elapsed() < PATIENCE,
                "{why}; it said {:#?}",
                self.exporter.as_ref().map(|it| it.stderr.lines())
            );
            let Some(mut exporter) = self.exporter.take() else {
                self.exporter = Some(self.place.spawn(self.place.command()));
                continue;
            };
            if self.hopeless && began.elapsed() > TRIES {
                self.hopeless = false;
                let ended = exporter.kill().await;
                assert!(!ended.error().contains("panicked"), "{}", ended.error());
            } else if exporter.has_ended() {
                let ended = exporter.end().await;
                assert!(!ended.error().contains("panicked"), "{}", ended.error());
                assert_ne!(ended.code(), Some(0), "nobody asked: {}", ended.error());
            } else {
                self.exporter = Some(exporter);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// Moves the file away and says so, as logrotate does.
    fn rotate(&mut self) {
        std::fs::rename(self.place.path(FILE), self.place.path("alerts.jsonl.1")).unwrap();
        self.rotated = 1;
        if let Some(exporter) = &mut self.exporter
            && !exporter.has_ended()
        {
            exporter.signal(Signal::HUP);
        }
    }
}

/// Waits for the end of a process that was told to stop, and that may still be hit by the failure.
async fn check_end(point: Option<Point>, exporter: Exporter) {
    let ended = exporter.end().await;
    assert!(!ended.error().contains("panicked"), "{}", ended.error());
    let killed = point.is_some_and(|point| point.failure == KILL);
    if !(killed && ended.code().is_none()) {
        assert_eq!(ended.code(), Some(0), "{}", ended.error());
    }
}

/// Returns the command for the daemon under a tracer that makes a call fail.
fn traced(place: &Place, target: usize, point: Option<Point>) -> Command {
    let (_, names, calls) = TARGETS[target];
    let injection = point.map(|point| {
        let and_later = if point.lasting { "+" } else { "" };
        let Point {
            call,
            number,
            failure,
            ..
        } = point;
        format!("inject={call}:{failure}:when={number}{and_later}")
    });
    let options = injection.iter().flat_map(|it| ["-e", it]);
    trace::traced(place, names, calls, options)
}

/// Returns how often the busiest thread made each call.
fn count(trace: &str) -> BTreeMap<&'static str, usize> {
    let mut by_thread: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for line in trace.lines() {
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let Some((call, _)) = rest.trim_start().split_once('(') else {
            continue;
        };
        *by_thread.entry((call, thread)).or_default() += 1;
    }
    let mut most = BTreeMap::new();
    for ((call, _), count) in by_thread {
        let calls = TARGETS.iter().flat_map(|(_, _, calls)| *calls);
        let Some(call) = calls.into_iter().find(|known| **known == call) else {
            continue;
        };
        let most = most.entry(*call).or_default();
        *most = count.max(*most);
    }
    most
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_is_lost_or_doubled_wherever_a_system_call_fails() {
    needed("strace", "strace");
    let mut points = Vec::new();
    for (target, (name, ..)) in TARGETS.iter().enumerate() {
        let counts = count(&Play::run(None, target).await);
        eprintln!("{name}: {counts:?}");
        for (call, count) in counts {
            for number in 1..=count {
                points.extend(FAILURES.map(|(failure, lasting)| Point {
                    target,
                    call,
                    number,
                    failure,
                    lasting,
                }));
            }
        }
    }
    let total = points.len();
    if std::env::var("OPSRAMP_TEST_INJECT").as_deref() != Ok("all") {
        let seed = seed();
        eprintln!("{SAMPLE} of {total} points, OPSRAMP_TEST_SEED={seed}");
        Rng::with_seed(seed).shuffle(&mut points);
        points.truncate(SAMPLE);
        points.extend(FOUND);
    }
    let taken = points.len();
    let hits = stream::iter(points)
        .map(|point| async move {
            // The message of a panic names the point.
            let play = tokio::spawn(Play::run(Some(point), point.target));
            let trace = play
                .await
                .unwrap_or_else(|error| panic!("{point:?}: {error}"));
            usize::from(trace.contains("INJECTED") || trace.contains("killed by SIGKILL"))
        })
        .buffer_unordered(AT_ONCE)
        .collect::<Vec<_>>()
        .await;
    let hits: usize = hits.into_iter().sum();
    eprintln!("{hits} of {taken} runs were hit");
    // Not every run makes the last calls. The run that counts them makes more of them if it takes
    // longer: it polls all the while.
    assert!(hits * 2 >= taken, "{hits} of {taken}");
}
