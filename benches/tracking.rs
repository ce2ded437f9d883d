//! Reading a page against `serde_json` alone on the same bytes, and what a tracked alert costs in
//! memory: `cargo bench --bench tracking`.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on stops, and prints its figures"
)]

use std::{borrow::Cow, hint::black_box, sync::Arc, time::Duration};

use opsramp_exporter::{
    clock,
    opsramp::Answer,
    poll::{GroupLabel, sighting},
    simulator::{self, SearchParams, World},
    track::{Known, Sighting, Tracker},
};
use serde::Deserialize;
use tokio::time::Instant;

const ROUNDS: usize = 9;
const PAGES: usize = 20;
const TRACKED: u64 = 1_000_000;

/// What anybody would write who needs these fields: borrowed, and no more lenient than derived.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "to be read is all they are for")]
struct Plain<'a> {
    #[serde(borrow)]
    results: Vec<PlainAlert<'a>>,
    total_results: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "to be read is all they are for")]
struct PlainAlert<'a> {
    #[serde(borrow)]
    unique_id: Cow<'a, str>,
    #[serde(borrow, default)]
    subject: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    current_state: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    status: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    service_name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    metric: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    component: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    alert_type: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    priority: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    created_date: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    updated_time: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    client_unique_id: Option<Cow<'a, str>>,
}

fn best(mut work: impl FnMut()) -> Duration {
    (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            work();
            began.elapsed()
        })
        .min()
        .unwrap()
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * rustix::param::page_size() as u64
}

fn tracker() -> Tracker {
    Tracker::new(Arc::new([GroupLabel::State]), 200)
}

fn pages() -> Vec<String> {
    let now = clock::now();
    let options = simulator::Options {
        tenants: vec![simulator::TenantOptions {
            id: "client_1".to_owned(),
            alerts: PAGES * 500,
            ..simulator::TenantOptions::default()
        }],
        life: None,
        ..simulator::Options::default()
    };
    let mut world = World::new(options, now);
    (1..=PAGES)
        .map(|page| {
            let params = [
                ("pageNo".to_owned(), page.to_string()),
                ("pageSize".to_owned(), "500".to_owned()),
                ("queryString".to_owned(), "actions:OPEN".to_owned()),
            ];
            let params = SearchParams::parse(&params, world.options()).unwrap();
            let page = world.search("client_1", &params, now).unwrap();
            String::from_utf8(page.to_json(now)).unwrap()
        })
        .collect()
}

fn reading() {
    let pages = pages();
    let bytes: usize = pages.iter().map(String::len).sum();
    let mut known = tracker();
    for page in &pages {
        let answer = Answer::of_search(page.clone().into_bytes());
        let page = answer.page(1, false).unwrap();
        let sightings: Vec<Sighting<'_>> = page.alerts.iter().map(sighting).collect();
        for sighting in &sightings {
            let group = vec![sighting.state.to_owned()];
            known.load(Known {
                sighting: *sighting,
                ordinal: 1,
                created_at: None,
                group,
            });
        }
    }
    let plain = best(|| {
        for page in &pages {
            black_box(serde_json::from_str::<Plain<'_>>(page).unwrap());
        }
    });
    let value = best(|| {
        for page in &pages {
            black_box(serde_json::from_str::<serde_json::Value>(page).unwrap());
        }
    });
    let copies: Vec<Answer> = pages
        .iter()
        .map(|page| Answer::of_search(page.clone().into_bytes()))
        .collect();
    let ours = best(|| {
        for answer in &copies {
            let page = answer.page(1, false).unwrap();
            let sightings: Vec<Sighting<'_>> = page.alerts.iter().map(sighting).collect();
            let delta = known.compare(&sightings);
            assert!(delta.opened.is_empty());
            known.adopt(Vec::new(), &sightings);
        }
    });
    let speed = |took: Duration| bytes as f64 / took.as_secs_f64() / 1e6;
    println!(
        "{} alerts in {PAGES} pages, {:.1} MB",
        PAGES * 500,
        bytes as f64 / 1e6
    );
    println!("serde_json, borrowed fields   {:7.0} MB/s", speed(plain));
    println!(
        "decode + track                {:7.0} MB/s   {:.2} of it",
        speed(ours),
        plain.as_secs_f64() / ours.as_secs_f64()
    );
    println!(
        "serde_json::Value             {:7.0} MB/s   {:.2} of it",
        speed(value),
        plain.as_secs_f64() / value.as_secs_f64()
    );
}

fn memory() {
    let before = resident();
    let mut tracker = tracker();
    for number in 0..TRACKED {
        let id = (5_000_000 + number).to_string();
        let state = ["Critical", "Warning", "Info", "Ok"][number as usize % 4];
        let sighting = Sighting {
            id: &id,
            digest: number,
            state,
            status: "New",
        };
        let group = vec![state.to_owned()];
        tracker.load(Known {
            sighting,
            ordinal: 1,
            created_at: Some(number as i64),
            group,
        });
    }
    let used = resident() - before;
    println!(
        "{TRACKED} tracked alerts: {:.1} MiB, {:.0} bytes each",
        used as f64 / 1048576.0,
        used as f64 / TRACKED as f64
    );
    black_box(&tracker);
}

fn main() {
    memory();
    reading();
}
