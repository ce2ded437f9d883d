//! A thousand alerts within a second, and a SIGKILL in the middle of them.

use opsramp_exporter::simulator::DEMO_TENANT;
use tokio::time::Duration;

use crate::{
    exporter::{Place, eventually, opsramp},
    lines::{FILE, Story, files, wait_for_story},
};

const ALERTS: usize = 1000;
const BATCH: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_alerts_of_one_second_are_written_once_each_across_a_sigkill() {
    let opsramp = opsramp(0).await;
    let place = Place::new(&opsramp.url()).with_file_sink();
    let exporter = place.start().await;
    exporter.wait_until_complete().await;
    let killed = async {
        eventually("some are written", || async {
            place.lines_of(FILE).len() >= ALERTS / 4
        })
        .await;
        exporter.kill().await;
        place.start().await
    };
    let opened = async {
        for _ in 0..ALERTS / BATCH {
            opsramp.open_many(DEMO_TENANT, BATCH).unwrap();
            tokio::time::sleep(Duration::from_millis(700) / (ALERTS / BATCH) as u32).await;
        }
    };
    let (exporter, ()) = tokio::join!(killed, opened);
    wait_for_story(&place, &files(0), &opsramp).await;
    exporter.wait_for_poll().await;
    exporter.stop().await;
    let story = Story::judge(&place, &files(0), &opsramp).unwrap();
    assert_eq!(story.count("opened"), ALERTS);
}
