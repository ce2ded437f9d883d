//! SIGKILL at random moments, over and over, while alerts open, change and leave.
//!
//! `OPSRAMP_TEST_KILLS` says how often (the acceptance run: 200). `OPSRAMP_TEST_SEED` repeats a
//! run: what happens to the alerts, and when the daemon is killed.

use fastrand::Rng;
use tokio::time::{Duration, Instant};

use crate::{
    exporter::{Place, Signal, number, opsramp, seed},
    life::live,
    lines::{Reader, Story, wait_for_story},
};

/// Number of kills if `OPSRAMP_TEST_KILLS` is not set.
const KILLS: usize = 40;

/// Duration of one step in the life of the alerts.
const STEP: Duration = Duration::from_millis(10);

async fn survive(rotating: bool) {
    let kills = number("OPSRAMP_TEST_KILLS").map_or(KILLS, |kills| kills as usize);
    let seed = seed();
    eprintln!("{kills} kills, OPSRAMP_TEST_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let opsramp = opsramp(30).await;
    let mut place = Place::new(&opsramp.url()).with_file_sink();
    place.config["searches"][0]["full_read_interval"] = "500ms".into();
    place.write();
    let mut reader = Reader::default();
    let mut busy = 0;
    for _ in 0..kills {
        // Some processes are killed while they start, most after a few polls.
        let (exporter, millis) = if rng.u8(..4) == 0 {
            (place.spawn(place.command()), rng.u64(..60))
        } else {
            let began = Instant::now();
            let exporter = place.start().await;
            // On a machine that takes long for a start, polls take long as well.
            let slowness = (began.elapsed().as_millis() as u64 / 200).max(1);
            (exporter, rng.u64(..400) * slowness)
        };
        let listens = || {
            let lines = exporter.stderr.lines();
            lines.iter().any(|line| line.contains("listening on"))
        };
        let before = reader.lines;
        let mut left = Duration::from_millis(millis);
        while !left.is_zero() {
            let step = left.min(STEP);
            tokio::time::sleep(step).await;
            left -= step;
            reader.read(&place);
            live(&opsramp, &mut reader.told, &mut rng);
            if rotating && rng.u8(..60) == 0 {
                reader.rotate(&place);
                // Sometimes the daemon is not told.
                if rng.bool() && listens() {
                    exporter.signal(Signal::HUP);
                }
            }
        }
        let ended = exporter.kill().await;
        assert_eq!(ended.code(), None, "ended by itself: {}", ended.error());
        if rotating && rng.u8(..4) == 0 {
            reader.rotate(&place);
        }
        reader.read(&place);
        busy += usize::from(reader.lines > before);
    }
    let exporter = place.start().await;
    let story = wait_for_story(&place, &reader.files(), &opsramp).await;
    exporter.wait_for_poll().await;
    exporter.stop().await;
    Story::judge(&place, &reader.files(), &opsramp).unwrap();
    story.expect_reasons();
    eprintln!(
        "{} opened, {} changed, {} left in {} files; {busy} were killed after they had written",
        story.count("opened"),
        story.count("changed"),
        story.count("left"),
        reader.files().len()
    );
    assert!(
        busy * 3 > kills,
        "most were killed before they did anything"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_is_lost_or_doubled_by_sigkill() {
    survive(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_is_lost_or_doubled_by_sigkill_while_the_file_is_rotated() {
    survive(true).await;
}
